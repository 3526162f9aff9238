"""Training and sampling of improved_ddpm.py against diffusers: 32 x 32, equal networks of 1.7M.

diffusers has no bound to train the variance with: its training step is the cheaper L_simple on
half of the outputs, ours all of L_hybrid. A sampling step is network and scheduler on both sides.
"""

import copy

import torch
from house import load

improved = load("diffusion/improved_ddpm.py")
FLAGS = ["--dataset", "mnist", "--base_channels", "32", "--timesteps", "1000"]


def ours(device):
    args = improved.parse_args([*FLAGS, "--attn_resolutions", "16"])
    args.device = device
    model, diffusion = improved.build(args)
    sampler = improved.LossSecondMomentSampler(args.timesteps).to(device)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, fused=True)
    images = torch.randint(256, (1000, 1, 32, 32), dtype=torch.uint8, device=device)
    x, t = torch.randn(32, 1, 32, 32, device=device), torch.full((32,), 500, device=device)

    def train():
        x0, noise = improved.draw_batch(images, args)
        t, weights = sampler.sample(args.batch_size)
        loss = (weights * diffusion.training_losses(model, x0, t, noise)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        improved.update_ema(ema, model, 0.995)

    @torch.inference_mode()
    def sample():
        diffusion.p_sample(ema, x, t)

    return train, sample, sum(p.numel() for p in model.parameters())


def theirs(device):
    import diffusers
    from diffusers.training_utils import EMAModel

    model = diffusers.UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=2,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attn_norm_num_groups=8,
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
    ).to(device)
    kind = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}
    scheduler = diffusers.DDPMScheduler(**kind)
    ema = EMAModel(model.parameters(), decay=0.995)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    images = torch.rand(1000, 1, 32, 32, device=device) * 2 - 1
    x = torch.randn(32, 1, 32, 32, device=device)

    def train():
        x0 = images[torch.randint(1000, (32,), device=device)]
        noise = torch.randn_like(x0)
        t = torch.randint(1000, (32,), device=device)
        out = model(scheduler.add_noise(x0, noise, t), t).sample[:, :1]
        loss = torch.nn.functional.mse_loss(out, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())

    @torch.inference_mode()
    def sample():
        scheduler.step(model(x, 500).sample, 500, x)

    return train, sample, sum(p.numel() for p in model.parameters())


def rows(device):
    (train, sample, size), (train2, sample2, other) = ours(device), theirs(device)
    head = f"{size / 1e6:.2f}M vs {other / 1e6:.2f}M parameters, batch 32"
    peer = {"peer": "diffusers UNet2DModel", "target": 1.0}
    yield {"name": f"improved_ddpm train step, {head}", "ours": train, "theirs": train2} | peer
    yield {"name": f"improved_ddpm sampling step, {head}", "ours": sample, "theirs": sample2} | peer
