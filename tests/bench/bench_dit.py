"""Training step of dit.py against diffusers' DiTTransformer2DModel of the same size.

Width 192, 6 blocks, 6 heads, patches of 2 on 4 x 16 x 16 latents, batch 16. Both sides run noise,
the loss on eps_hat, gradient, clipping, AdamW and the average of weights. diffusers keeps a copy
of the embedders in each of its blocks, so that it has more parameters.
"""

import copy

import torch
from house import load

dit = load("diffusion/dit.py")
FLAGS = "--dataset latents --img_size 16 --dim 192 --depth 6 --heads 6 --batch_size 16"
FLAGS += " --n_classes 1000 --timesteps 1000"


def ours(device):
    args = dit.parse_args(FLAGS.split())
    args.device = device
    model, diffusion = dit.build(args)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0, fused=True)
    data = torch.randn(500, 4, 16, 16, device=device), torch.arange(500, device=device)

    def step():
        *batch, y = dit.draw_batch(*data, args)
        loss = diffusion.training_losses(dit.partial(model, y=y), *batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        dit.update_ema(ema, model, 0.9999)

    return step, sum(p.numel() for p in model.parameters())


def theirs(device):
    import diffusers
    from diffusers.training_utils import EMAModel

    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=6,
        sample_size=16,
        num_embeds_ada_norm=1000,
    ).to(device)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    ema = EMAModel(model.parameters(), decay=0.9999)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    latents = torch.randn(500, 4, 16, 16, device=device)
    labels = torch.arange(500, device=device)

    def step():
        rows = torch.randint(500, (16,), device=device)
        x0, y = latents[rows], labels[rows]
        noise = torch.randn_like(x0)
        t = torch.randint(1000, (16,), device=device)
        eps = model(scheduler.add_noise(x0, noise, t), t, y).sample[:, :4]
        loss = torch.nn.functional.mse_loss(eps, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())

    return step, sum(p.numel() for p in model.parameters())


def rows(device):
    (mine, size), (yours, other) = ours(device), theirs(device)
    name = f"dit train step, {size / 1e6:.2f}M vs {other / 1e6:.2f}M parameters, batch 16"
    peer = "diffusers DiTTransformer2DModel"
    yield {"name": name, "peer": peer, "target": 1.0, "ours": mine, "theirs": yours}
