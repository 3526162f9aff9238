# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "pillow>=10,<13", "numpy>=1.26,<3",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Improved DDPM: a cosine noise schedule, a learned variance, and a tenth of the sampling steps.

Paper: Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021,
arXiv 2102.09672. The model is that of ddpm.py, whose equations keep their numbers here. The
network also tells, for every pixel, where between its two bounds the variance of the reverse step
lies. This much improves the likelihood, and lets a trained model skip most of its steps.

    alpha_t = 1 - beta_t, abar_t = alpha_1 alpha_2 ... alpha_t
    beta_t = linear from 1e-4 to 0.02, times 1000/T                     (1)  noise schedule
    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, eps ~ N(0, I)        (2)  q(x_t | x_0)
    mu_tilde = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0
               + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t      (3)  q(x_{t-1} | x_t, x_0),
    beta_tilde_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t               (4)  mean and variance
    x_hat = (x_t - sqrt(1 - abar_t) eps_hat) / sqrt(abar_t)             (5)  image seen in x_t
    x_{t-1} = mu_tilde(x_t, x_hat) + sigma_t z, z ~ N(0, I), 0 at t = 1 (8)  p(x_{t-1} | x_t)
    L_simple = E_{t, x_0, eps} (eps - eps_hat(x_t, t))^2                (9)  training loss
    L_T = KL(q(x_T | x_0) || N(0, I))                                  (10)  what T doses leave
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))            (11)  a reverse step
    L_0 = -log p(x_0 | x_1), density integrated over x_0 +- 1/255      (12)  8-bit decoder
    bits/dim = (L_T + sum_{t>1} L_{t-1} + L_0) / (D ln 2)              (13)  bound on -log2 p(x_0)
    abar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2)       (14)  cosine schedule:
    beta_t = min(1 - abar_t / abar_{t-1}, 0.999)                       (15)  gentle at both ends
    sigma_t^2 = exp(v log beta_t + (1 - v) log beta_tilde_t)           (16)  v is learned
    L_hybrid = L_simple + lambda L_vlb, mean held fixed in L_vlb       (17)  L_vlb: the bound
    L_vlb = E_{t ~ p} L_t / p_t, p_t ~ sqrt(E L_t^2)                   (18)  importance sampling
    beta_{S_i} = 1 - abar_{S_i} / abar_{S_{i-1}}                       (19)  steps S_1 < S_2 ...
    h = GroupNorm(h) (1 + w) + b, w and b from the embedding of t      (20)  inside the network

s = 0.008, lambda = 0.001. v = (out + 1) / 2 of the raw output is not bounded. L_vlb has T terms:
one of them, at a random t, enters T-fold. --loss_type simple leaves v at 1/2.

Shapes: B batch, C channels, H = W image side, D = C H W, E time embedding, T steps; images x
(B, C, H, W) in [-1, 1], t (B,) in 0..T-1 (the paper's t minus 1), abar_t of t = -1 is 1.
Unlike the paper: gradients are clipped; narrow nets have base_channels / 4 norm groups (32 from
128 on, as in the paper); the decay of the average of weights is at most (1 + step) / (10 + step);
the erf is exact.
Official weights: parameter names are those of openai/improved-diffusion, so its unconditional
state dicts load strictly, cifar10_uncond_50M_500K.pt with --config cifar10. As there, the network
is told t * 1000/T, which the steps that (19) keeps do not lose.

    python improved_ddpm.py                             8x8 digits, offline, minutes on a CPU
    python improved_ddpm.py --dataset mnist             the same small net on MNIST, 32x32
    python improved_ddpm.py --config cifar10 --amp      the paper's model
    python improved_ddpm.py --loss_type vlb --schedule_sampler loss-second-moment
    python improved_ddpm.py --sample --sampling_steps 20    from OUT/last.pt, in 20 of T steps
    python improved_ddpm.py --smoke                     a self-check: exits 1 unless it learned
"""

import argparse
import contextlib
import copy
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
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 200, "batch_size": 64, "lr": 2e-3, "warmup": 20, "ema": 0.95, "timesteps": 50}
SMOKE |= {"channel_mult": [1, 2], "n_res_blocks": 1, "sample_interval": 200, "n_test": 64}
BARS = {"bits_per_dim": (0.0, 5.0), "gain_on_beta": (0.23, 9.0), "frechet": (0.0, 3.8)}
BARS |= {"gain_on_beta_tilde": (0.44, 9.0), "marginal_gap": (0.0, 1e-12)}

PAPER = {"timesteps": 4000, "base_channels": 128, "n_res_blocks": 3, "attn_resolutions": [16, 8]}
PAPER |= {"batch_size": 128, "lr": 1e-4, "warmup": 1, "ema": 0.9999, "sample_interval": 10_000}
MNIST = {"dataset": "mnist", "timesteps": 1000, "base_channels": 64, "batch_size": 128, "lr": 2e-4}
CIFAR10 = {"dataset": "cifar10", "channel_mult": [1, 2, 2, 2], "dropout": 0.3}
IMAGENET = {"dataset": "folder", "img_size": 64, "channel_mult": [1, 2, 3, 4]}
CONFIGS = {
    "laptop": {},
    "mnist": MNIST | {"n_steps": 20_000, "ema": 0.999, "dropout": 0.1},
    "cifar10": PAPER | CIFAR10 | {"n_steps": 500_000, "sampling_steps": [250]},
    "imagenet64": PAPER | IMAGENET | {"n_steps": 1_500_000, "sampling_steps": [250]},
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


# Differs from diffusion/ddpm.py
def timestep_embedding(t, dim):
    """Cosine and sine of t (B,) at dim / 2 frequencies, geometric from 1 to 1/10000: (B, dim)."""
    rank = torch.arange(dim // 2, device=t.device)
    angle = t[:, None] * torch.exp(-math.log(10_000) * rank / (dim // 2))  # (B, dim / 2)
    return torch.cat([angle.cos(), angle.sin()], 1)


class ResBlock(nn.Module):
    def __init__(self, n_in, n_out, n_time, groups, dropout):
        super().__init__()
        conv, last = (nn.Conv2d(n, n_out, 3, padding=1) for n in (n_in, n_out))
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, n_in), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(n_time, 2 * n_out))
        layers = nn.GroupNorm(groups, n_out), nn.SiLU(), nn.Dropout(dropout), zero(last)
        self.out_layers = nn.Sequential(*layers)
        self.skip_connection = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, emb):  # (B, n_in, H, W), (B, E)
        w, b = self.emb_layers(emb)[:, :, None, None].chunk(2, 1)  # (B, n_out, 1, 1) each
        h = self.out_layers[0](self.in_layers(x)) * (1 + w) + b  # eq. (20)
        return self.skip_connection(x) + self.out_layers[1:](h)  # (B, n_out, H, W)


class AttentionBlock(nn.Module):
    """Every pixel looks at every other one, in several heads."""

    def __init__(self, channels, groups, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x):
        qkv = self.qkv(self.norm(x).flatten(2)).unflatten(1, (self.heads, -1))
        q, k, v = qkv.mT.contiguous().chunk(3, -1)  # (B, heads, H W, C / heads) each
        h = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2)  # (B, C, H W)
        return x + self.proj_out(h).reshape_as(x)  # (B, C, H, W)


class TimestepEmbedSequential(nn.Sequential):
    """Layers one after the other; the residual blocks among them also get the embedding of t."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


# Differs from diffusion/ddpm.py
class UNet(nn.Module):
    """The network (eps_hat, out)(x_t, t): down to coarse features, up again with skip connections.

    x (B, C, H, W) and t (B,) -> (B, 2 C, H, W). H must be divisible by 2^(levels - 1).
    Source: paper, section 2.1; official code: openai/improved-diffusion improved_diffusion/unet.py.
    """

    def __init__(self, channels, side, base, mults, n_res_blocks, attn_resolutions, heads, dropout):
        super().__init__()
        groups, n_time, last = min(32, base // 4), 4 * base, len(mults) - 1
        self.base = base
        layers = nn.Linear(base, n_time), nn.SiLU(), nn.Linear(n_time, n_time)
        self.time_embed = nn.Sequential(*layers)

        def block(n_in, n_out, attention):
            looks = [AttentionBlock(n_out, groups, heads)] if attention else []
            return [ResBlock(n_in, n_out, n_time, groups, dropout), *looks]

        stages = [[nn.Conv2d(channels, base, 3, padding=1)]]
        width, skips = base, [base]  # skips: the width of every feature map kept for the way up
        for i, mult in enumerate(mults):
            widths, width = [width] + [mult * base] * (n_res_blocks - 1), mult * base
            stages += [block(n_in, width, side >> i in attn_resolutions) for n_in in widths]
            half = OrderedDict(op=nn.Conv2d(width, width, 3, stride=2, padding=1))
            stages += [[nn.Sequential(half)]] * (i < last)
            skips += [width] * (n_res_blocks + (i < last))
        self.input_blocks = nn.ModuleList(TimestepEmbedSequential(*stage) for stage in stages)
        middle = block(width, width, True) + block(width, width, False)
        self.middle_block = TimestepEmbedSequential(*middle)
        stages = []
        for i, mult in reversed([*enumerate(mults)]):
            widths, width = [width] + [mult * base] * n_res_blocks, mult * base
            widths = [n_in + skips.pop() for n_in in widths]
            stages += [block(n_in, width, side >> i in attn_resolutions) for n_in in widths]
            twice = OrderedDict(up=nn.Upsample(scale_factor=2.0))
            twice["conv"] = nn.Conv2d(width, width, 3, padding=1)
            stages[-1] += [nn.Sequential(twice)] * (i > 0)
        self.output_blocks = nn.ModuleList(TimestepEmbedSequential(*stage) for stage in stages)
        conv = zero(nn.Conv2d(width, 2 * channels, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), conv)

    def forward(self, x, t):
        emb = self.time_embed(timestep_embedding(t, self.base).to(x.dtype))  # (B, E)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], 1), emb)
        return self.out(h)


# --- the idea ------------------------------------------------------------------------------------
def noise_schedule(schedule, timesteps):
    """beta of every step, "linear" or "cosine": (T,) in float64, as all tables are computed."""
    if schedule == "linear":
        ends = torch.tensor([1e-4, 0.02], dtype=torch.float64) * 1000 / timesteps
        return torch.linspace(*ends, timesteps, dtype=torch.float64)  # eq. (1)
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    abar = ((u + 0.008) / 1.008 * math.pi / 2).cos().square()  # eq. (14)
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)  # eq. (15)


def space_timesteps(timesteps, counts):
    """Indices of the steps to keep: of each of len(counts) parts so many, both ends included."""
    parts = torch.arange(timesteps).tensor_split(len(counts))
    ends = [(0, len(part) - 1, count) for part, count in zip(parts, counts, strict=True)]
    marks = [torch.linspace(*end, dtype=torch.float64).round().long() for end in ends]
    return torch.cat([part[mark] for part, mark in zip(parts, marks, strict=True)])


# Differs from diffusion/ddpm.py
class GaussianDiffusion:
    """The forward process q, the reverse process p around a network model(x, t), and the bound.

    The network puts out eps_hat and, in as many more channels, v of eq. (16); it is told times[t],
    by default t * 1000/T. Tables are computed in float64 and rounded once.
    """

    def __init__(self, betas, device, dtype=torch.float32, times=None):
        self.betas, self.timesteps = betas, len(betas)
        times = torch.arange(self.timesteps) * 1000 / self.timesteps if times is None else times
        self.times = times.to(device, dtype)
        abar = (1 - betas).cumprod(0)
        abar_prev = torch.cat([abar.new_ones(1), abar[:-1]])
        beta_tilde = (1 - abar_prev) / (1 - abar) * betas  # eq. (4)
        beta_tilde[0] = beta_tilde[1]  # is 0, has no logarithm; read by the decoder only
        tables = {
            "sqrt_abar": abar.sqrt(),
            "sqrt_one_minus_abar": (1 - abar).sqrt(),
            "coef_x0": abar_prev.sqrt() * betas / (1 - abar),
            "coef_xt": (1 - betas).sqrt() * (1 - abar_prev) / (1 - abar),
            "log_beta_tilde": beta_tilde.log(),
            "log_beta": betas.log(),
        }
        self.tables = {key: table.to(device, dtype) for key, table in tables.items()}

    def respaced(self, counts):
        """The process that visits only some steps; the network is told the t that they had."""
        kept = space_timesteps(self.timesteps, counts)
        abar = (1 - self.betas).cumprod(0)[kept]
        betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])  # eq. (19)
        return GaussianDiffusion(betas, self.times.device, self.times.dtype, self.times[kept])

    def at(self, name, t):
        """Values of a table at t (B,), shaped to multiply images: (B, 1, 1, 1)."""
        return self.tables[name][t][:, None, None, None]

    def q_sample(self, x0, t, noise):
        return self.at("sqrt_abar", t) * x0 + self.at("sqrt_one_minus_abar", t) * noise  # eq. (2)

    def q_posterior(self, x0, x_t, t):
        """Mean (B, C, H, W) and log variance (B, 1, 1, 1) of q(x_{t-1} | x_t, x_0)."""
        mean = self.at("coef_x0", t) * x0 + self.at("coef_xt", t) * x_t  # eq. (3)
        return mean, self.at("log_beta_tilde", t)

    def predict_x0(self, eps, x_t, t):
        return (x_t - self.at("sqrt_one_minus_abar", t) * eps) / self.at("sqrt_abar", t)  # eq. (5)

    def p_mean_variance(self, model, x_t, t, clip_denoised=True):
        """Mean and log variance of p(x_{t-1} | x_t), and x_hat, clipped to the range of images."""
        eps, out = model(x_t, self.times[t]).chunk(2, 1)  # (B, C, H, W) each
        x_hat = self.predict_x0(eps, x_t, t)
        x_hat = x_hat.clamp(-1, 1) if clip_denoised else x_hat
        v, low, high = (out + 1) / 2, self.at("log_beta_tilde", t), self.at("log_beta", t)
        log_variance = v * high + (1 - v) * low  # eq. (16)
        return self.q_posterior(x_hat, x_t, t)[0], log_variance, x_hat

    def p_sample(self, model, x_t, t):
        """One reverse step: x_{t-1} and x_hat, both (B, C, H, W)."""
        mean, log_variance, x_hat = self.p_mean_variance(model, x_t, t)
        z = torch.randn_like(x_t) * (t > 0)[:, None, None, None]  # none in the last step
        return mean + (log_variance / 2).exp() * z, x_hat  # eq. (8)

    def p_sample_loop(self, model, x):
        """Take noise x (B, C, H, W) to images; yields (x_{t-1}, x_hat) for t = T-1 ... 0."""
        for t in reversed(range(self.timesteps)):
            x, x_hat = self.p_sample(model, x, torch.full((len(x),), t, device=x.device))
            yield x, x_hat

    def training_losses(self, model, x0, t, noise, loss_type="hybrid"):
        """Loss of each image (B,): eq. (9), a one-step estimate of eq. (13) but L_T, or both."""
        x_t = self.q_sample(x0, t, noise)
        eps, out = model(x_t, self.times[t]).chunk(2, 1)
        simple = (noise - eps).square().flatten(1).mean(1)  # eq. (9)
        if loss_type == "simple":
            return simple
        held = torch.cat([eps if loss_type == "vlb" else eps.detach(), out], 1)
        vlb = self.timesteps * self.vlb_terms(lambda *_: held, x0, x_t, t, clip_denoised=False)
        return vlb if loss_type == "vlb" else simple + 0.001 * vlb  # eq. (17)

    def vlb_terms(self, model, x0, x_t, t, clip_denoised=True):
        """L_{t-1}, or L_0 where t = 0, of each image (B,) in bits per dimension."""
        true_mean, true_log_variance = self.q_posterior(x0, x_t, t)
        mean, log_variance, _ = self.p_mean_variance(model, x_t, t, clip_denoised)
        kl = normal_kl(true_mean, true_log_variance, mean, log_variance)  # eq. (11)
        nll = -discretized_gaussian_log_likelihood(x0, mean, log_variance)
        return torch.where(t == 0, bits(nll), bits(kl))

    def calc_bpd(self, model, x0):
        """Every term of the bound for images x0: (B, T + 1) bits/dim; the last one is L_T."""
        terms, origin = [], torch.zeros_like(x0)
        for step in range(self.timesteps):
            t = torch.full((len(x0),), step, device=x0.device)
            x_t = self.q_sample(x0, t, torch.randn_like(x0))
            terms.append(self.vlb_terms(model, x0, x_t, t))
        log_variance = 2 * self.at("sqrt_one_minus_abar", t).log()
        prior = normal_kl(self.q_sample(x0, t, origin), log_variance, origin, origin)  # eq. (10)
        return torch.stack([*terms, bits(prior)], 1)  # (B, T + 1), summed: eq. (13)


class LossSecondMomentSampler(nn.Module):
    """Draws t more often where losses are large; uniform until it knows ten of every t."""

    def __init__(self, timesteps):
        super().__init__()
        self.register_buffer("losses", torch.zeros(timesteps, 10))  # the last ten at each t
        self.register_buffer("seen", torch.zeros(timesteps, dtype=torch.long))

    def sample(self, n):
        """Times t (n,), and weights (n,) that keep the mean of a loss what uniform t would give."""
        p = self.losses.square().mean(1).sqrt()  # eq. (18)
        p = 0.999 * p / p.sum() + 0.001 / len(p)  # never 0, whatever the ten were
        p = torch.where(self.seen.min() < 10, torch.ones_like(p) / len(p), p)
        t = torch.multinomial(p, n, replacement=True)
        return t, 1 / (len(p) * p[t])

    def update(self, t, losses):
        """Take note of the losses (B,) at t (B,), each in the place of the oldest one there."""
        earlier = (t[:, None] == t).tril(-1).sum(1)  # of the same t, in this batch
        self.losses[t, (self.seen[t] + earlier) % 10] = losses
        self.seen.index_add_(0, t, torch.ones_like(t))


# Copied from diffusion/ddpm.py
def bits(nats):
    """Mean over the dimensions of an image, in bits: (B, C, H, W) -> (B,)."""
    return nats.flatten(1).mean(1) / math.log(2)


# Copied from diffusion/ddpm.py
def normal_kl(mean1, log_variance1, mean2, log_variance2):
    """KL(N(mean1, variance1) || N(mean2, variance2)) in nats, elementwise."""
    gap = log_variance1 - log_variance2
    return 0.5 * (gap.exp() - 1 - gap + (mean1 - mean2).square() * (-log_variance2).exp())


# Copied from diffusion/ddpm.py
def discretized_gaussian_log_likelihood(x, mean, log_variance):
    """log of the mass that N(mean, variance) puts on the bin of width 2/255 around x, elementwise.

    The first bin opens to -inf, the last one to inf, so that the 256 masses add up to 1. The CDF
    is taken on the side of the mean where it is small: precise in float32 far into the tails.
    """
    inverse_std = (-log_variance / 2).exp()
    far = (x - mean).abs()
    upper = torch.special.log_ndtr((1 / 255 - far) * inverse_std)
    lower = torch.special.log_ndtr((-1 / 255 - far) * inverse_std)
    inner = upper + torch.log(-torch.expm1(lower - upper))
    first = torch.special.log_ndtr((x - mean + 1 / 255) * inverse_std)
    last = torch.special.log_ndtr((mean - x + 1 / 255) * inverse_std)
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, inner))  # eq. (12)


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
    kind = args.n_res_blocks, args.attn_resolutions, args.heads, args.dropout
    model = UNet(*shape, *kind).to(args.device)
    if args.device.startswith("cuda"):  # where convolutions want it; slower on a CPU
        model = model.to(memory_format=torch.channels_last)
    return model, GaussianDiffusion(noise_schedule(args.schedule, args.timesteps), args.device)


# Differs from diffusion/ddpm.py
def draw_batch(images, args):
    """Random images x_0 and noises eps, both (B, C, H, W)."""
    x0 = to_model(images[torch.randint(len(images), (args.batch_size,), device=args.device)])
    if args.flip:
        mirror = torch.rand(args.batch_size, 1, 1, 1, device=args.device) < 0.5
        x0 = torch.where(mirror, x0.flip(3), x0)
    return x0, torch.randn_like(x0)


# Copied from diffusion/ddpm.py
def update_ema(ema, model, decay):
    """Draw the averaged weights a little, 1 - decay, towards those of the model."""
    with torch.no_grad():
        torch._foreach_lerp_([*ema.parameters()], [*model.parameters()], 1 - decay)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the bits/dim of test images."""
    torch.manual_seed(args.seed)
    images, test = load_data(args)
    model, diffusion = build(args)
    if args.weights:
        load_weights(args.weights, model)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    sampler = LossSecondMomentSampler(args.timesteps).to(args.device)
    state = {"model": model, "ema": ema, "optimizer": optimizer, "sampler": sampler}
    step = begin(args, state)
    net = torch.compile(model) if args.compile else model
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    try:
        while step < args.n_steps:
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                x0, noise = draw_batch(images, args)
                t, weights = sampler.sample(args.batch_size)
                with cast:  # touches matmul and convolution; tables and losses stay in float32
                    losses = diffusion.training_losses(net, x0, t, noise, args.loss_type)
                loss = (weights * losses).mean()
                optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / args.warmup)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                if args.schedule_sampler != "uniform":  # which it is as long as it knows nothing
                    sampler.update(t, losses.detach())
                update_ema(ema, model, min(args.ema, (1 + step) / (10 + step)))
                total += loss.detach()
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            draw(ema, diffusion, args, f"samples_{step:06d}.png")
            log(args, step=step, loss=total.item() / n)
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(ema, diffusion, to_model(test[: args.n_test]), args)


@torch.inference_mode()
def sample(model, diffusion, args):
    """Draw n_samples images; return them and, at ten times, ten of their x_t and x_hat.

    Shapes: images (n_samples, C, H, W), frames (<= 10, 2, <= 10, C, H, W), all in [-1, 1].
    """
    model.eval()
    torch.manual_seed(args.seed)  # the same noise at every call: grids can be compared
    diffusion = diffusion.respaced(args.sampling_steps or [args.timesteps])
    side, marks = args.img_size, torch.linspace(0, diffusion.timesteps - 1, 10).long().tolist()
    noise = torch.randn(args.n_samples, args.channels, side, side, device=args.device)
    steps, frames = tqdm(range(diffusion.timesteps), "sampling", leave=False, disable=None), []
    for step, (x, x_hat) in zip(steps, diffusion.p_sample_loop(model, noise), strict=True):
        if step in marks:
            frames.append(torch.stack([x[:10], x_hat[:10]]))
    return x.clamp(-1, 1), torch.stack(frames)


def draw(model, diffusion, args, name):
    """Write a grid of samples, and how ten of them came out of the noise: x_t, below it x_hat."""
    from torchvision.utils import save_image

    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp):
        x, frames = sample(model, diffusion, args)
    times = frames.permute(2, 1, 0, 3, 4, 5).flatten(0, 2)  # rows: x_t of one image, its x_hat
    for file, images, nrow in (name, x, math.isqrt(len(x))), ("trajectory.png", times, 10):
        images = F.interpolate(images.float(), scale_factor=max(1, 32 // args.img_size))
        save_image(images, Path(args.out, file), nrow=nrow, normalize=True, value_range=(-1, 1))


def generate(args):
    """--sample: draw with --weights or OUT/last.pt into OUT/samples.png and OUT/trajectory.png."""
    path = args.weights or f"{args.out}/last.pt"
    model, diffusion = build(args)
    load_weights(path, model)
    saved = torch.load(path, map_location="cpu", weights_only=True).get("args", {})
    for key in ("timesteps", "schedule", "heads"):  # which no shape gives away
        if key in saved and saved[key] != getattr(args, key):
            fail(f"--{key} {getattr(args, key)}: {path} was trained with {saved[key]}; type that")
    begin(args)
    draw(model, diffusion, args, "samples.png")
    return 0


@torch.inference_mode()
def evaluate(model, diffusion, x0, args):
    """Bound on the bits per dimension of images x0 (N, C, H, W), all T terms of each."""
    model.eval()
    torch.manual_seed(args.seed)
    batches = tqdm(x0.split(args.batch_size), "bits/dim", leave=False, disable=None)
    bpd = torch.cat([diffusion.calc_bpd(model, batch).sum(1) for batch in batches])
    return {"bits_per_dim": bpd.mean().item()}


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
    torch.manual_seed(args.seed)
    reals, test = map(to_model, load_data(args))
    metrics["frechet"] = frechet(fakes.flatten(1), reals.flatten(1))
    # The same network with its variance overruled, at each end of eq. (16), must do worse.
    for name, out in ("gain_on_beta", 1.0), ("gain_on_beta_tilde", -1.0):
        nn.init.zeros_(model.out[2].weight[args.channels :])
        nn.init.constant_(model.out[2].bias[args.channels :], out)
        fixed = evaluate(model, diffusion, test[: args.n_test], args)
        metrics[name] = fixed["bits_per_dim"] - metrics["bits_per_dim"]
    # In ten steps: to x_t and one step back is to x_{t-1} in one leap, which is a leap of all T.
    betas = noise_schedule(args.schedule, args.timesteps)
    full, kept = GaussianDiffusion(betas, "cpu", torch.float64), space_timesteps(len(betas), [10])
    d = full.respaced([10]).tables
    a, b, x0, xt = d["sqrt_abar"], d["sqrt_one_minus_abar"], d["coef_x0"], d["coef_xt"]
    mean, variance = x0 + xt * a, (xt * b).square() + d["log_beta_tilde"].exp()
    gaps = mean[1:] - a[:-1], variance[1:] - b[:-1].square(), a - full.tables["sqrt_abar"][kept]
    return report(args, **metrics, marginal_gap=torch.cat(gaps).abs().max().item())


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
    add("--heads", type=at_least(1), default=4, help="of attention")
    add("--dropout", type=at_least(0.0, 1.0), default=0.0, help="inside residual blocks")
    add("--timesteps", type=at_least(21), default=200, help="T, doses of noise")
    add("--schedule", choices=["cosine", "linear"], default="cosine", help="eq. (14), or eq. (1)")
    add("--loss_type", choices=["hybrid", "simple", "vlb"], default="hybrid", help="eq. (17), ...")
    samplers = ["uniform", "loss-second-moment"]
    add("--schedule_sampler", choices=samplers, default="uniform", help="how t is drawn; eq. (18)")
    text = "of the T: 50, say; 10 15 20: so many of each third; default: all"
    add("--sampling_steps", type=at_least(2), nargs="+", help=text)
    add("--sample_interval", type=at_least(1), default=1000, help="steps between sample grids")
    add("--n_samples", type=at_least(1), default=64, help="images in a grid")
    add("--n_test", type=at_least(1), default=64, help="test images scored in bits/dim at the end")
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
    if args.base_channels % 4:
        fail(f"--base_channels {args.base_channels}: is no multiple of 4; try 32, 64 or 128")
    if args.base_channels % args.heads:
        fail(f"--heads {args.heads}: does not divide --base_channels {args.base_channels}; try 4")
    parts = args.sampling_steps or [2]
    if max(parts) > args.timesteps // len(parts):
        limit = f"--timesteps {args.timesteps} has {args.timesteps // len(parts)} for each of them"
        fail(f"--sampling_steps {' '.join(map(str, parts))}: too many; {limit}")
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
