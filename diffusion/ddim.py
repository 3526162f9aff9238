# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "pillow>=10,<13", "numpy>=1.26,<3",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Denoising diffusion implicit model (DDIM): the net of DDPM, sampled in few steps, or inverted.

Paper: Song, Meng & Ermon, "Denoising Diffusion Implicit Models", ICLR 2021, arXiv 2010.02502.
The loss of DDPM looks at the marginals q(x_t | x_0) alone, and many processes share them: those
whose step back to any earlier time t' is (16) below, with more noise or less. One trained net
serves them all. Without noise (eta = 0) sampling is a map from x_T to an image: the solution of
an ordinary differential equation, which allows long steps and can be run backwards.

    alpha_t = 1 - beta_t, abar_t = alpha_1 alpha_2 ... alpha_t (the paper's alpha_t is abar_t)
    beta_t = linear from 1e-4 to 0.02, times 1000/T                     (1)  noise schedule
    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, eps ~ N(0, I)        (2)  q(x_t | x_0)
    x_hat = (x_t - sqrt(1 - abar_t) eps_hat) / sqrt(abar_t)             (5)  image seen in x_t
    v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0                         (6)  "velocity", and from
    x_hat = sqrt(abar_t) x_t - sqrt(1 - abar_t) v_hat                   (7)  it the image
    L_simple = E_{t, x_0, eps} (eps - eps_hat(x_t, t))^2                (9)  loss, that of DDPM
    eps_hat = (x_t - sqrt(abar_t) x_hat) / sqrt(1 - abar_t)            (14)  noise, (5) turned
    sigma = eta sqrt((1 - abar_t') / (1 - abar_t))
            sqrt(1 - abar_t / abar_t')                                 (15)  noise of a step
    x_t' = sqrt(abar_t') x_hat
           + sqrt(1 - abar_t' - sigma^2) eps_hat + sigma z             (16)  a step from t to t'
    slerp(a, b; w) = (sin((1 - w) phi) a + sin(w phi) b) / sin(phi)    (17)  phi: angle of a and b

The times visited are S of the T, tau_1 < ... < tau_S, and abar = 1 before tau_1. At eta = 1 and
S = T (16) is the step of DDPM with variance beta_tilde. At eta = 0 it is Euler's method for
d(x / sqrt(abar)) = eps_hat d sqrt((1 - abar) / abar), in either direction: upwards it finds the
x_T of a given image. Noises on a line between two are too short; (17) keeps to the sphere.

Shapes: B batch, C channels, H = W image side, E time embedding, T steps of training, S steps of
sampling; images x (B, C, H, W) in [-1, 1], t (B,) in 0..T-1 (the paper's t minus 1).
Unlike the paper: x_hat is clipped to [-1, 1] and eps_hat follows it; uniform times include both 0
and T-1; the schedule is multiplied by 1000/T as in ddpm.py, whose checkpoints load unchanged.
Official weights: parameter names are those of diffusers' UNet2DModel, so the state dict of
google/ddpm-cifar10-32 (35,746,307 parameters) loads strictly with --config cifar10.

    python ddim.py                                      8x8 digits, offline, two minutes on a CPU
    python ddim.py --sample --sampling_steps 10         then draw from it, in ten steps
    python ddim.py --weights out/ddpm/last.pt --sample  or from what ddpm.py has trained
    python ddim.py --config cifar10 --amp --spacing quad --sampling_steps 50
    python ddim.py --smoke                              a self-check: exits 1 unless it learned
"""

import argparse
import contextlib
import copy
import datetime
import json
import math
import os
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 200, "batch_size": 64, "lr": 2e-3, "warmup": 20, "ema": 0.95, "timesteps": 50}
SMOKE |= {"channel_mult": [1, 2], "n_res_blocks": 1, "sample_interval": 200, "n_test": 64}
SMOKE |= {"sampling_steps": 10}
BARS = {"reconstruction_mse": (0.0, 0.024), "frechet": (0.0, 6.5), "kinship": (0.996, 1.0)}
BARS |= {"ddpm_gap": (0.0, 1e-12)}

PAPER = {"timesteps": 1000, "sampling_steps": 50, "base_channels": 128, "attn_resolutions": [16]}
PAPER |= {"batch_size": 128, "warmup": 5000, "ema": 0.9999, "flip": True, "sample_interval": 10_000}
CIFAR10 = {"dataset": "cifar10", "channel_mult": [1, 2, 2, 2], "lr": 2e-4, "dropout": 0.1}
CELEBA = {"dataset": "folder", "img_size": 256, "channel_mult": [1, 1, 2, 2, 4, 4], "lr": 2e-5}
MNIST = {"dataset": "mnist", "timesteps": 1000, "base_channels": 64, "batch_size": 128, "lr": 2e-4}
CONFIGS = {
    "laptop": {},
    "mnist": MNIST | {"n_steps": 20_000, "ema": 0.999, "dropout": 0.1},
    "cifar10": PAPER | CIFAR10 | {"n_steps": 800_000},
    "celebahq256": PAPER | CELEBA | {"n_steps": 500_000, "batch_size": 64},
}
# Side and channels of the images of every data set; MNIST's 28 pixels are padded with black to 32.
SIZES = {"digits": (8, 1), "mnist": (32, 1), "fashion_mnist": (32, 1), "cifar10": (32, 3)}
SIZES |= {"folder": (64, 3)}


# --- model ---------------------------------------------------------------------------------------
# Copied from diffusion/ddpm.py
def zero(layer):
    """Set a layer to zero: every branch, and with them the net, starts as a plain skip."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# Copied from diffusion/ddpm.py
def timestep_embedding(t, dim):
    """Sine and cosine of t (B,) at dim / 2 frequencies, geometric from 1 to 1/10000: (B, dim)."""
    rank = torch.arange(dim // 2, device=t.device)
    angle = t[:, None] * torch.exp(-math.log(10_000) * rank / (dim // 2 - 1))  # (B, dim / 2)
    return torch.cat([angle.sin(), angle.cos()], 1)


# Copied from diffusion/ddpm.py
class ResnetBlock(nn.Module):
    def __init__(self, n_in, n_out, n_time, groups, dropout):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, n_in, eps=1e-6)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(n_time, n_out)
        self.norm2 = nn.GroupNorm(groups, n_out, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(n_out, n_out, 3, padding=1))
        self.conv_shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, emb):  # (B, n_in, H, W), (B, E)
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.conv_shortcut(x) + h  # (B, n_out, H, W)


# Copied from diffusion/ddpm.py
class Attention(nn.Module):
    """Every pixel looks at every other one: a single head as wide as the feature map."""

    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Sequential(zero(nn.Linear(channels, channels)))

    def forward(self, x):
        h = self.group_norm(x).flatten(2).mT[:, None]  # (B, 1, H W, C)
        h = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out(h)[:, 0].mT.reshape_as(x)  # (B, C, H, W)


# Copied from diffusion/ddpm.py
class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H / 2, W / 2); uneven as in TensorFlow


# Copied from diffusion/ddpm.py
class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0))  # (B, C, 2 H, 2 W)


# Copied from diffusion/ddpm.py
class Level(nn.Module):
    """Residual blocks at one resolution, attention behind each if asked, and a change of size."""

    def __init__(self, widths, n_out, n_time, groups, dropout, attention):
        super().__init__()
        blocks = [ResnetBlock(n_in, n_out, n_time, groups, dropout) for n_in in widths]
        looks = [Attention(n_out, groups) if attention else nn.Identity() for _ in blocks]
        self.resnets, self.attentions = nn.ModuleList(blocks), nn.ModuleList(looks)
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()


# Copied from diffusion/ddpm.py
class UNet(nn.Module):
    """The network eps_hat(x_t, t): down to coarse features, and up again with skip connections.

    x (B, C, H, W) and t (B,) integer -> (B, C, H, W). H must be divisible by 2^(levels - 1).
    Source: paper, appendix B; official code: hojonathanho/diffusion diffusion_tf/models/unet.py.
    """

    def __init__(self, channels, side, base, mults, n_res_blocks, attn_resolutions, dropout):
        super().__init__()
        groups, n_time, last = min(32, base // 4), 4 * base, len(mults) - 1
        self.base = base
        layers = {"linear_1": nn.Linear(base, n_time), "act": nn.SiLU()}
        layers["linear_2"] = nn.Linear(n_time, n_time)
        self.time_embedding = nn.Sequential(OrderedDict(layers))
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        width, skips = base, [base]  # skips: the width of every feature map kept for the way up
        for i, mult in enumerate(mults):
            widths, width = [width] + [mult * base] * (n_res_blocks - 1), mult * base
            level = Level(widths, width, n_time, groups, dropout, side >> i in attn_resolutions)
            level.downsamplers.extend([Downsample(width)] * (i < last))
            self.down_blocks.append(level)
            skips += [width] * (n_res_blocks + (i < last))
        self.mid_block = Level([width, width], width, n_time, groups, dropout, True)
        self.mid_block.attentions.pop(1)
        for i, mult in reversed([*enumerate(mults)]):
            widths, width = [width] + [mult * base] * n_res_blocks, mult * base
            widths = [n_in + skips.pop() for n_in in widths]
            level = Level(widths, width, n_time, groups, dropout, side >> i in attn_resolutions)
            level.upsamplers.extend([Upsample(width)] * (i > 0))
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = zero(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x, t):
        emb = timestep_embedding(t, self.base).to(x.dtype)  # (B, E / 4)
        emb = F.silu(self.time_embedding(emb))  # (B, E), for every block
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            for resnet, attention in zip(level.resnets, level.attentions, strict=True):
                h = attention(resnet(h, emb))
                skips.append(h)
            for downsample in level.downsamplers:
                h = downsample(h)
                skips.append(h)
        h = self.mid_block.attentions[0](self.mid_block.resnets[0](h, emb))
        h = self.mid_block.resnets[1](h, emb)
        for level in self.up_blocks:
            for resnet, attention in zip(level.resnets, level.attentions, strict=True):
                h = attention(resnet(torch.cat([h, skips.pop()], 1), emb))
            for upsample in level.upsamplers:
                h = upsample(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


# --- the idea ------------------------------------------------------------------------------------
# Differs from diffusion/ddpm.py
class GaussianDiffusion:
    """The forward process q and, around a network model(x, t), the steps of DDIM up and down.

    prediction_type: what the network puts out: the noise "eps", the image "x0" or "v" of eq. (6).
    abar is kept in float64, for a step's coefficients: 1 - abar_t in float32 has lost half its
    digits at small t. Its last entry, which index -1 finds, is the 1 of the clean image.
    """

    def __init__(self, timesteps, prediction_type, device, dtype=torch.float32):
        self.timesteps, self.prediction_type = timesteps, prediction_type
        ends = torch.tensor([1e-4, 0.02], dtype=torch.float64) * 1000 / timesteps
        betas = torch.linspace(*ends, timesteps, dtype=torch.float64)  # eq. (1)
        abar = (1 - betas).cumprod(0)
        tables = {"sqrt_abar": abar.sqrt(), "sqrt_one_minus_abar": (1 - abar).sqrt()}
        self.tables = {key: table.to(device, dtype) for key, table in tables.items()}
        self.abar = [*abar.tolist(), 1.0]

    def at(self, name, t):
        """Values of a table at t (B,), shaped to multiply images: (B, 1, 1, 1)."""
        return self.tables[name][t][:, None, None, None]

    def q_sample(self, x0, t, noise):
        return self.at("sqrt_abar", t) * x0 + self.at("sqrt_one_minus_abar", t) * noise  # eq. (2)

    def target(self, x0, t, noise):
        """What the network should say about q_sample(x0, t, noise)."""
        v = self.at("sqrt_abar", t) * noise - self.at("sqrt_one_minus_abar", t) * x0  # eq. (6)
        return {"eps": noise, "x0": x0, "v": v}[self.prediction_type]

    def predict_x0(self, model_out, x_t, t):
        a, b = self.at("sqrt_abar", t), self.at("sqrt_one_minus_abar", t)
        if self.prediction_type == "eps":
            return (x_t - b * model_out) / a  # eq. (5)
        return a * x_t - b * model_out if self.prediction_type == "v" else model_out  # eq. (7)

    def predict(self, model, x_t, t, clip_denoised=True):
        """x_hat, clipped to the range of images, and the eps_hat that belongs to it; t an int."""
        t = torch.full((len(x_t),), t, device=x_t.device)
        x_hat = self.predict_x0(model(x_t, t), x_t, t)
        x_hat = x_hat.clamp(-1, 1) if clip_denoised else x_hat
        a, b = self.at("sqrt_abar", t), self.at("sqrt_one_minus_abar", t)
        return x_hat, (x_t - a * x_hat) / b  # eq. (14)

    def training_losses(self, model, x0, t, noise):
        """Loss of each image (B,)."""
        x_t = self.q_sample(x0, t, noise)
        return (self.target(x0, t, noise) - model(x_t, t)).square().flatten(1).mean(1)  # eq. (9)

    def sigma(self, t, to, eta):
        """Standard deviation of the noise in a step from t to the earlier time `to`."""
        a, b = self.abar[t], self.abar[to]
        return eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)  # eq. (15)

    def ddim_step(self, model, x_t, t, to, eta=0.0, clip_denoised=True):
        """From time t to an earlier one, -1 being the clean image: x_to and x_hat (B, C, H, W)."""
        x_hat, eps_hat = self.predict(model, x_t, t, clip_denoised)
        b, sigma = self.abar[to], self.sigma(t, to, eta)
        mean = math.sqrt(b) * x_hat + math.sqrt(1 - b - sigma**2) * eps_hat
        return (mean + sigma * torch.randn_like(x_t) if sigma else mean), x_hat  # eq. (16)

    def ddim_sample_loop(self, model, x, times, eta=0.0, clip_denoised=True):
        """Take noise x (B, C, H, W) down the falling times; yields (x_t', x_hat) of every step."""
        for t, to in zip(times, [*times[1:], -1], strict=True):
            x, x_hat = self.ddim_step(model, x, t, to, eta, clip_denoised)
            yield x, x_hat

    def ddim_encode(self, model, x, times):
        """Take images x (B, C, H, W) up the same falling times to the noise they come out of.

        Each step is the mirror image of one of ddim_sample_loop, and asks the network about the
        same t. It sees the less noisy end of the step there, which is the error of the inversion.
        """
        for t, at in reversed([*zip(times, [*times[1:], -1], strict=True)]):
            eps_hat = self.predict(model, x, t, clip_denoised=False)[1]
            a, b = self.abar[at], self.abar[t]
            x_hat = (x - math.sqrt(1 - a) * eps_hat) / math.sqrt(a)  # eq. (5)
            x = math.sqrt(b) * x_hat + math.sqrt(1 - b) * eps_hat  # eq. (16)
        return x


def ddim_timesteps(timesteps, steps, spacing="uniform"):
    """The times in 0..timesteps-1 that a sampler of so many steps visits, falling: ints.

    uniform: evenly from T-1 to 0. quad: squares of even numbers, dense near 0, from 0.8 T; what
    coincides is visited once (the official choice for CIFAR-10). trailing: the last time of each
    of S equal parts.
    """
    if spacing == "trailing":
        times = (timesteps - torch.arange(steps) * timesteps / steps).round() - 1
    elif spacing == "quad":
        times = torch.linspace((0.8 * timesteps) ** 0.5, 0, steps, dtype=torch.float64).square()
    else:
        times = torch.linspace(timesteps - 1, 0, steps, dtype=torch.float64).round()
    return times.long().unique_consecutive().tolist()


def slerp(a, b, w):
    """Spherical interpolation of noises a, b (C, H, W) at weights w (N,): (N, C, H, W)."""
    phi = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    w = w[:, None, None, None]
    return (torch.sin((1 - w) * phi) * a + torch.sin(w * phi) * b) / torch.sin(phi)  # eq. (17)


# --- data ----------------------------------------------------------------------------------------
def load_data(args):
    """Return the images for training and for testing: uint8 (N, C, H, W), whole on the device."""
    if args.dataset == "digits":
        from sklearn.datasets import load_digits

        x = torch.from_numpy(load_digits().images * 255 / 16).round().to(torch.uint8)[:, None]
        splits = x[torch.randperm(len(x))].split([len(x) - 297, 297])
    elif args.dataset == "folder":
        x = load_folder(args)
        splits = x[torch.randperm(len(x))].split([len(x) - len(x) // 10, len(x) // 10])
    else:
        from torchvision import datasets

        names = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
        try:
            kind = getattr(datasets, names[args.dataset])
            sets = [kind(args.data_root, train=part, download=True) for part in (True, False)]
        except Exception as error:  # whatever the files hold
            where = f"--dataset {args.dataset}: cannot be read from {args.data_root}"
            fail(f"{where} nor downloaded; --dataset digits needs neither ({error!r})")
        splits = [torch.as_tensor(s.data) for s in sets]
        if args.dataset == "cifar10":
            splits = [x.permute(0, 3, 1, 2) for x in splits]
        else:
            splits = [F.pad(x, (2, 2, 2, 2))[:, None] for x in splits]
    return [fit(x, args.img_size).to(args.device) for x in splits]


# Copied from diffusion/ddpm.py
def fit(x, side):
    """Resize images (N, C, H, W); uint8 keeps the 256 grey levels that eq. (12) counts on."""
    from torchvision.transforms.functional import resize

    return x.contiguous() if x.shape[-1] == side else resize(x, [side, side], antialias=True)


# Copied from diffusion/ddpm.py
def load_folder(args):
    """Every image below --data_root, its shorter side scaled to img_size, the centre cut out."""
    import numpy as np
    from PIL import Image, ImageOps

    kinds = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
    root = Path(args.data_root)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in kinds)
    if len(paths) < 20:
        fail(f"--data_root {root}: holds {len(paths)} images, at least 20 are needed")
    images, mode = [], "L" if args.channels == 1 else "RGB"
    for path in tqdm(paths, "reading", leave=False, disable=None):
        try:
            with Image.open(path) as image:
                image = ImageOps.fit(image.convert(mode), (args.img_size, args.img_size))
        except (OSError, ValueError, SyntaxError) as error:
            fail(f"--data_root {root}: {path.name} cannot be read ({error}); mend or remove it")
        images.append(torch.from_numpy(np.array(image)).reshape(*image.size, -1))
    return torch.stack(images).permute(0, 3, 1, 2)


# Copied from diffusion/ddpm.py
def to_model(images):
    """Grey levels 0 ... 255 to [-1, 1], with no noise added: bins of 2/255, as eq. (12) wants."""
    return images.float() / 127.5 - 1


# --- train, sample, evaluate, smoke --------------------------------------------------------------
def build(args):
    """The network, at random, and the diffusion process around it."""
    shape = args.channels, args.img_size, args.base_channels, args.channel_mult
    model = UNet(*shape, args.n_res_blocks, args.attn_resolutions, args.dropout).to(args.device)
    if args.device.startswith("cuda"):  # where convolutions want it; slower on a CPU
        model = model.to(memory_format=torch.channels_last)
    return model, GaussianDiffusion(args.timesteps, args.prediction_type, args.device)


# Copied from diffusion/ddpm.py
def draw_batch(images, args):
    """Random images x_0 (B, C, H, W), their times t (B,) and noises eps (B, C, H, W)."""
    x0 = to_model(images[torch.randint(len(images), (args.batch_size,), device=args.device)])
    if args.flip:
        mirror = torch.rand(args.batch_size, 1, 1, 1, device=args.device) < 0.5
        x0 = torch.where(mirror, x0.flip(3), x0)
    t = torch.randint(args.timesteps, (args.batch_size,), device=args.device)
    return x0, t, torch.randn_like(x0)


# Copied from diffusion/ddpm.py
def update_ema(ema, model, decay):
    """Draw the averaged weights a little, 1 - decay, towards those of the model."""
    with torch.no_grad():
        torch._foreach_lerp_([*ema.parameters()], [*model.parameters()], 1 - decay)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return how well test images come back."""
    rank, world = join(args)
    if args.batch_size % world:
        fail(f"--batch_size {args.batch_size}: does not share out among {world} processes")
    torch.manual_seed(args.seed)
    images, test = load_data(args)
    model, diffusion = build(args)
    if args.weights:
        load_weights(args.weights, model)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    state = {"model": model, "ema": ema, "optimizer": optimizer}
    step = begin(args, state if rank == 0 or args.resume else None)
    net = torch.compile(model) if args.compile else model
    net = DistributedDataParallel(net) if world > 1 else net
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    try:
        while step < args.n_steps:
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            bar = tqdm(range(n), f"step {step + n}", leave=False, disable=True if rank else None)
            for _ in bar:
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                batch = [part[rank::world] for part in draw_batch(images, args)]
                with cast:  # touches matmul and convolution; tables and losses stay in float32
                    loss = diffusion.training_losses(net, *batch).mean()
                optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / args.warmup)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                update_ema(ema, model, min(args.ema, (1 + step) / (10 + step)))
                total += loss.detach()
                step += 1
            if world > 1:
                distributed.all_reduce(total)
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            if rank == 0:
                save(args, state, step)
                draw(ema, diffusion, args, f"samples_{step:06d}.png")
                log(args, step=step, loss=total.item() / world / n)
    except KeyboardInterrupt:
        if rank == 0:
            save(args, state, step)
            print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    metrics = {}
    if rank == 0:
        plot(args)
        metrics = evaluate(ema, diffusion, to_model(test[: args.n_test]), args)
    if world > 1:
        distributed.barrier()  # all leave together, when nothing is under way any more
        distributed.destroy_process_group()
    return metrics


@torch.inference_mode()
def sample(model, diffusion, args, noise=None):
    """Turn noise (N, C, H, W), by default that of n_samples, into images; return them, and ten of
    their x_t and x_hat at up to ten times.

    Shapes: images (N, C, H, W), frames (<= 10, 2, <= 10, C, H, W), all in [-1, 1].
    """
    model.eval()
    torch.manual_seed(args.seed)  # the same noise at every call: grids can be compared
    side, times = args.img_size, ddim_timesteps(args.timesteps, args.sampling_steps, args.spacing)
    if noise is None:
        noise = torch.randn(args.n_samples, args.channels, side, side, device=args.device)
    marks = torch.linspace(0, len(times) - 1, 10).long().tolist()
    steps, frames = tqdm(range(len(times)), "sampling", leave=False, disable=None), []
    loop = diffusion.ddim_sample_loop(model, noise, times, args.eta)
    for step, (x, x_hat) in zip(steps, loop, strict=True):
        if step in marks:
            frames.append(torch.stack([x[:10], x_hat[:10]]))
    return x.clamp(-1, 1), torch.stack(frames)


def draw(model, diffusion, args, name):
    """Write a grid of samples, how ten of them came out of the noise (x_t, below it x_hat), and
    what lies between the noises of six pairs."""
    from torchvision.utils import save_image

    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp):
        x, frames = sample(model, diffusion, args)
        torch.manual_seed(args.seed)
        side, weights = args.img_size, torch.linspace(0, 1, 11, device=args.device)
        ends = torch.randn(6, 2, args.channels, side, side, device=args.device)
        between = torch.cat([slerp(a, b, weights) for a, b in ends])  # (6 * 11, C, H, W)
        between, _ = sample(model, diffusion, args, between)
    times = frames.permute(2, 1, 0, 3, 4, 5).flatten(0, 2)  # rows: x_t of one image, its x_hat
    pictures = (name, x, math.isqrt(len(x))), ("trajectory.png", times, len(frames))
    for file, images, nrow in *pictures, ("interpolation.png", between, 11):
        images = F.interpolate(images.float(), scale_factor=max(1, 32 // args.img_size))
        save_image(images, Path(args.out, file), nrow=nrow, normalize=True, value_range=(-1, 1))


def generate(args):
    """--sample: draw with --weights or OUT/last.pt into OUT/samples.png and its neighbours."""
    path = args.weights or f"{args.out}/last.pt"
    model, diffusion = build(args)
    load_weights(path, model)
    saved = torch.load(path, map_location="cpu", weights_only=True).get("args", {})
    for key in ("timesteps", "prediction_type"):  # which no shape gives away
        if key in saved and saved[key] != getattr(args, key):
            fail(f"--{key} {getattr(args, key)}: {path} was trained with {saved[key]}; type that")
    begin(args)
    draw(model, diffusion, args, "samples.png")
    return 0


@torch.inference_mode()
def evaluate(model, diffusion, x0, args):
    """Encode images x0 (N, C, H, W), decode them again: mean squared error, pixels in [0, 1].

    Writes the images, their x_T and what came back into OUT/reconstruction.png.
    """
    from torchvision.utils import save_image

    model.eval()
    times = ddim_timesteps(args.timesteps, args.sampling_steps, args.spacing)
    noise = diffusion.ddim_encode(model, x0, times)
    *_, (y, _) = diffusion.ddim_sample_loop(model, noise, times, clip_denoised=False)
    rows = torch.cat([x0[:10], noise[:10] / 3, y[:10]])  # three deviations of x_T fill the range
    rows = F.interpolate(rows, scale_factor=max(1, 32 // args.img_size))
    file = Path(args.out, "reconstruction.png")
    save_image(rows, file, nrow=len(x0[:10]), normalize=True, value_range=(-1, 1))
    return {"reconstruction_mse": ((y - x0) / 2).square().mean().item()}


# Copied from diffusion/ddpm.py
def frechet(x, y):
    """Frechet distance between Gaussians fitted to x (N, D) and y (M, D)."""
    x, y = x.double().cpu(), y.double().cpu()
    cov_x, cov_y = x.T.cov(), y.T.cov()
    root = torch.linalg.eigvals(cov_x @ cov_y).real.clamp(min=0).sqrt().sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    return (gap + cov_x.trace() + cov_y.trace() - 2 * root).item()


def smoke(args):
    """A short run in a temporary folder, samples of its checkpoint, and an identity."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        model, diffusion = build(args)
        load_weights(f"{args.out}/last.pt", model)
    fakes, _ = sample(model, diffusion, args)
    reals = to_model(load_data(args)[0])
    distance = frechet(fakes.flatten(1), reals.flatten(1))
    # Without noise few steps and many lead from one x_T to one image.
    args.sampling_steps = args.timesteps
    pairs = torch.stack([fakes, sample(model, diffusion, args)[0]]).flatten(1)
    # At eta = 1 the step is the posterior of DDPM: coefficients of x_hat and x_t, and variance.
    gap = 0.0
    for t in range(1, args.timesteps):
        a, b, s = diffusion.abar[t], diffusion.abar[t - 1], diffusion.sigma(t, t - 1, 1.0)
        beta, turn = 1 - a / b, math.sqrt((1 - b - s**2) / (1 - a))
        gap = max(gap, abs(math.sqrt(b) - turn * math.sqrt(a) - math.sqrt(b) * beta / (1 - a)))
        gap = max(gap, abs(turn - math.sqrt(1 - beta) * (1 - b) / (1 - a)))
        gap = max(gap, abs(s**2 - (1 - b) / (1 - a) * beta))
    kinship = pairs.corrcoef()[0, 1]
    return report(args, **metrics, frechet=distance, kinship=kinship, ddpm_gap=gap)


# --- plumbing, word for word the same in every script --------------------------------------------
def fail(message):
    """A mistake the user can mend: one line on stderr, exit code 2."""
    print(f"{Path(__file__).name}: error: {' '.join(message.split())[:300]}", file=sys.stderr)
    sys.exit(2)


def pick_device(name):
    try:
        auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        probe = torch.ones(1, device=auto if name == "auto" else name)
        return str(probe.device) if probe.item() else name  # item() fails where nothing can run
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name}: cannot be used, try --device cpu: {error}")


def join(args):
    """Under torchrun: meet the other processes, take one's own GPU; return (rank, world size)."""
    if (world := int(os.environ.get("WORLD_SIZE", 1))) == 1:
        return 0, 1
    if args.device.startswith("cuda"):
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(args.device)
    backend = "nccl" if args.device.startswith("cuda") else "gloo"
    patience = datetime.timedelta(days=1)  # the others wait while rank 0 draws and evaluates
    distributed.init_process_group(backend, timeout=patience)
    return distributed.get_rank(), world


def begin(args, state=None):
    """Open OUT before the work starts. With --resume restore every part of state and return how
    many epochs (or steps) are done; else put an earlier run aside and return 0. Without state
    (nothing is trained, as in --sample) leave what is there."""
    out, resume = Path(args.out), state is not None and getattr(args, "resume", False)
    free = {"n_epochs", "n_steps", "sample_interval", "n_samples", "data_root", "weights"}
    free |= {"compile", "device", "out", "resume"}
    try:
        if resume:
            saved = dict(torch.load(out / "last.pt", map_location="cpu", weights_only=True))
            made = {key: value for key, value in saved["args"].items() if key not in free}
            if odd := [f"--{k} {v}" for k, v in made.items() if v != vars(args).get(k)]:
                fail(f"--resume: {out}/last.pt was made with {' '.join(odd)}; type that")
            for name, part in state.items():
                part.load_state_dict(saved[name])
            return saved["done"]
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # fails now where nothing can be written
        for name in ("last.pt", "log.jsonl") if state is not None else ():
            if (out / name).exists():
                os.replace(out / name, out / f"previous_{name}")
        return 0
    except OSError as error:
        fail(f"--out {out}: {'no last.pt to resume from' if resume else 'cannot write'}: {error}")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--resume: {out}/last.pt is damaged or no checkpoint of this script")


def save(args, state, done):
    """Write every part of state next to last.pt, then rename: a crash never leaves half a file."""
    path = Path(args.out, "last.pt")
    parts = {name: part.state_dict() for name, part in state.items()}
    torch.save(parts | {"done": done, "args": vars(args)}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_weights(path, model, parts=("ema", "model", "generator")):
    """Load, strictly, the first of parts that a checkpoint of ours has, or a bare state dict."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = next((saved[part] for part in parts if part in saved), saved)
        theirs = {key: tuple(value.shape) for key, value in saved.items()}
    except OSError as error:
        fail(f"--weights {path}: cannot be read ({error.strerror}); name an existing file")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--weights {path}: holds no state dict; name a file made by torch.save of one")
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        key = next((k for k in ours | theirs if ours.get(k) != theirs.get(k)), error)
        there, here = theirs.get(key, "absent"), ours.get(key, "absent")
        fail(f"--weights {path}: {key} is {there} there but {here} here; set the flags to match")


def line(row):
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def log(args, **row):
    """Append a JSON line to OUT/log.jsonl and show it; --smoke keeps stdout to one line."""
    with open(Path(args.out, "log.jsonl"), "a", encoding="utf-8") as file:
        print(json.dumps(row), file=file)
    print(line(row), file=sys.stderr if args.smoke else sys.stdout, flush=True)


def plot(args):
    """Draw every column of OUT/log.jsonl against its first one into OUT/curves.png."""
    from matplotlib.figure import Figure

    path = Path(args.out, "log.jsonl")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if rows := [json.loads(row) for row in text.splitlines()]:
        first, *others = rows[-1]
        wide, high = min(len(others), 4), math.ceil(len(others) / 4)
        figure = Figure(figsize=(4 * wide, 3 * high), layout="constrained")
        for at, key in enumerate(others, 1):
            axes = figure.add_subplot(high, wide, at, xlabel=first, title=key)
            axes.plot([row[first] for row in rows], [row.get(key) for row in rows], marker=".")
        figure.savefig(Path(args.out, "curves.png"))


def report(args, **values):
    """Print the JSON line of --smoke; return 0 if every bar is met, else 1."""
    values = {key: float(value) for key, value in values.items()}
    ok = all(low <= values[key] <= high for key, (low, high) in BARS.items())
    values = {key: value if math.isfinite(value) else None for key, value in values.items()}
    head = {"script": Path(__file__).name, "ok": ok, "device": getattr(args, "device", "cpu")}
    tail = {"bars": BARS, "cpu_seconds": round(time.process_time(), 1)}
    print(json.dumps(head | values | tail))
    return 0 if ok else 1


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the docstring as written, and every default that tells something."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def at_least(low, below=2**31):
    """Type of a flag: a number of low's kind (int or float), low <= number < below."""

    def number(text):
        with contextlib.suppress(ValueError):
            if low <= (value := type(low)(text)) < below:
                return value
        raise argparse.ArgumentTypeError(f"{text} is no {type(low).__name__} in [{low}, {below})")

    return number


# --- command line --------------------------------------------------------------------------------
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = fail
    add = parser.add_argument
    add("--n_steps", type=at_least(0), default=3000, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=1e-3, help="adam: learning rate")
    add("--warmup", type=at_least(1), default=100, help="steps over which --lr is reached")
    add("--grad_clip", type=at_least(0.0), default=1.0, help="largest norm of the gradient")
    add("--ema", type=at_least(0.0, 1.0), default=0.995, help="decay of the average of weights")
    add("--dataset", choices=[*SIZES], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--img_size", type=at_least(4), help="side of the images; default: that of the data set")
    add("--channels", type=int, choices=[1, 3], help="of a folder's images: 1 grey, 3 colour")
    add("--flip", action="store_true", help="mirror half of the images: photos yes, digits no")
    add("--config", choices=[*CONFIGS], default="laptop", help="named set of defaults")
    add("--base_channels", type=at_least(8), default=16, help="width of the net at full size")
    add("--channel_mult", type=at_least(1), nargs="+", default=[1, 2, 2], help="... at each size")
    add("--n_res_blocks", type=at_least(1), default=2, help="residual blocks at each size")
    add(
        "--attn_resolutions", type=at_least(1), nargs="*", default=[16, 4], help="sides that attend"
    )
    add("--dropout", type=at_least(0.0, 1.0), default=0.0, help="inside residual blocks")
    add("--timesteps", type=at_least(21), default=200, help="T, doses of noise")
    add(
        "--prediction_type", choices=["eps", "x0", "v"], default="eps", help="what the net predicts"
    )
    add("--sampling_steps", type=at_least(1), default=20, help="S, steps from noise to image")
    add("--spacing", choices=["uniform", "quad", "trailing"], default="uniform", help="of the S")
    add("--eta", type=at_least(0.0), default=0.0, help="noise of a step: 0 none, 1 that of DDPM")
    add("--sample_interval", type=at_least(1), default=1000, help="steps between sample grids")
    add("--n_samples", type=at_least(1), default=64, help="images in a grid")
    add("--n_test", type=at_least(1), default=64, help="test images encoded and decoded at the end")
    add("--weights", help="state dict or checkpoint to load")
    add("--sample", action="store_true", help="only draw, from --weights or OUT/last.pt")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--compile", action="store_true", help="torch.compile the network for training")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    typed = parser.parse_args(argv)
    parser.set_defaults(**CONFIGS[typed.config])
    if typed.smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    side, channels = SIZES[args.dataset]
    args.img_size, args.channels = args.img_size or side, args.channels or channels
    if args.dataset != "folder" and args.channels != channels:
        fail(f"--channels {args.channels}: {args.dataset} has {channels}; leave the flag out")
    halvings = len(args.channel_mult) - 1
    if args.img_size % 2**halvings:
        reason = f"cannot be halved {halvings} times; try a multiple of {2**halvings}"
        fail(f"--img_size {args.img_size}: {reason}")
    if args.sampling_steps > args.timesteps:
        reason = f"the process has but {args.timesteps} steps; take at most so many"
        fail(f"--sampling_steps {args.sampling_steps}: {reason}")
    if args.eta > 1:
        fail(f"--eta {args.eta}: more noise than any step can hold; type 0 ... 1")
    if args.base_channels % 4:
        fail(f"--base_channels {args.base_channels}: is no multiple of 4; try 32, 64 or 128")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.sample:
            return generate(args)
        if metrics := train(args):
            print(line(metrics))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
