"""Training step of ddpm.py against diffusers and denoising-diffusion-pytorch: 32 x 32, batch 32.

Each side runs all that a step is made of in its own habit: noise, loss, gradient, clipping, Adam
and the average of weights; the network is the laptop's at twice the width, 1.6M parameters.
"""

import copy

import torch
from house import load

ddpm = load("diffusion/ddpm.py")
FLAGS = ["--dataset", "mnist", "--base_channels", "32", "--timesteps", "1000"]


def ours(device):
    args = ddpm.parse_args([*FLAGS, "--attn_resolutions", "16"])
    args.device = device
    model, diffusion = ddpm.build(args)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, fused=True)
    images = torch.randint(256, (1000, 1, 32, 32), dtype=torch.uint8, device=device)

    def step():
        batch = ddpm.draw_batch(images, args)
        loss = diffusion.training_losses(model, *batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ddpm.update_ema(ema, model, 0.995)

    return step, sum(p.numel() for p in model.parameters())


def diffusers_step(device):
    import diffusers
    from diffusers.training_utils import EMAModel

    model = diffusers.UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        norm_eps=1e-6,
        downsample_padding=0,
        attention_head_dim=None,
    ).to(device)
    scheduler = diffusers.DDPMScheduler()
    ema = EMAModel(model.parameters(), decay=0.995)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    images = torch.rand(1000, 1, 32, 32, device=device) * 2 - 1

    def step():
        x0 = images[torch.randint(1000, (32,), device=device)]
        noise = torch.randn_like(x0)
        t = torch.randint(1000, (32,), device=device)
        out = model(scheduler.add_noise(x0, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(out, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())

    return step, sum(p.numel() for p in model.parameters())


def lucidrains_step(device):
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    model = Unet(dim=34, dim_mults=(1, 2, 2), channels=1, flash_attn=False)
    diffusion = GaussianDiffusion(model, image_size=32, timesteps=1000, beta_schedule="linear")
    diffusion.to(device)
    ema = EMA(diffusion, beta=0.995, update_every=10)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=2e-4, betas=(0.9, 0.99))
    images = torch.rand(1000, 1, 32, 32, device=device)

    def step():
        loss = diffusion(images[torch.randint(1000, (32,), device=device)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        ema.update()

    return step, sum(p.numel() for p in model.parameters())


def rows(device):
    mine, size = ours(device)
    peers = {
        "diffusers UNet2DModel": (diffusers_step, 1.0),
        "denoising-diffusion-pytorch": (lucidrains_step, 0.8),
    }
    for peer, (make, target) in peers.items():
        theirs, other = make(device)
        name = f"ddpm train step, {size / 1e6:.2f}M vs {other / 1e6:.2f}M parameters, batch 32"
        yield {"name": name, "peer": peer, "target": target, "ours": mine, "theirs": theirs}
