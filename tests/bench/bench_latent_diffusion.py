"""Training step of latent_diffusion.py's U-Net against diffusers' UNet2DConditionModel.

The same layers on both sides, the same latents and the same vectors of texts; each side runs all
that a step is made of in its own habit: noise, loss, gradient, clipping, Adam, average of weights.
"""

import copy

import torch
from house import load

ldm = load("diffusion/latent_diffusion.py")
FLAGS = ["--dataset", "mnist", "--config", "mnist", "--batch_size", "32"]


def ours(device, latents, context):
    args = ldm.parse_args(FLAGS)
    args.device = device
    model, diffusion = ldm.build(args)
    unet, mask = model.unet, torch.ones(context.shape[:2], dtype=torch.bool, device=device)
    ema = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.Adam(unet.parameters(), lr=2e-4, fused=True)

    def step():
        i = torch.randint(len(latents), (32,), device=device)
        t = torch.randint(args.timesteps, (32,), device=device)
        batch = latents[i], t, torch.randn_like(latents[i]), i
        net = lambda x, t, i: unet(x, t, context[i], mask[i])  # noqa: E731
        loss = diffusion.training_losses(net, *batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ldm.update_ema(ema, unet, 0.999)

    return step, args, sum(p.numel() for p in unet.parameters())


def theirs(device, latents, context, args):
    import diffusers
    from diffusers.training_utils import EMAModel

    n = len(args.channel_mult)
    model = diffusers.UNet2DConditionModel(
        in_channels=args.latent_channels,
        out_channels=args.latent_channels,
        down_block_types=["CrossAttnDownBlock2D"] * n,
        up_block_types=["CrossAttnUpBlock2D"] * n,
        block_out_channels=[args.base_channels * mult for mult in args.channel_mult],
        layers_per_block=args.n_res_blocks,
        cross_attention_dim=args.context_dim,
        attention_head_dim=args.heads,
        norm_num_groups=min(32, args.base_channels // 4),
    ).to(device)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    ema = EMAModel(model.parameters(), decay=0.999)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    mask = torch.ones(context.shape[:2], dtype=torch.bool, device=device)

    def step():
        i = torch.randint(len(latents), (32,), device=device)
        noise = torch.randn_like(latents[i])
        t = torch.randint(args.timesteps, (32,), device=device)
        noisy = scheduler.add_noise(latents[i], noise, t)
        out = model(noisy, t, context[i], encoder_attention_mask=mask[i]).sample
        loss = torch.nn.functional.mse_loss(out, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())

    return step, sum(p.numel() for p in model.parameters())


def rows(device):
    latents = torch.randn(500, 4, 8, 8, device=device)
    context = torch.randn(500, 32, 64, device=device)
    mine, args, size = ours(device, latents, context)
    other, count = theirs(device, latents, context, args)
    assert size == count
    name = f"latent_diffusion train step, {size / 1e6:.2f}M parameters, 8x8 latents, batch 32"
    peer = "diffusers UNet2DConditionModel"
    yield {"name": name, "peer": peer, "target": 1.0, "ours": mine, "theirs": other}
