# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "pillow>=10,<13", "numpy>=1.26,<3",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Guided diffusion (ADM): a classifier of noisy images steers a diffusion model towards a class.

Paper: Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021,
arXiv 2105.05233. The model is that of improved_ddpm.py, whose equations keep their numbers here,
with a better network. A second one, the encoder half of the same U-Net, learns to classify images
x_t however noisy; each reverse step then moves along the gradient of log p(y | x_t), by which
Bayes' rule turns p(x) into p(x | y). Larger scales s > 1 trade variety for sharper classes.

    alpha_t = 1 - beta_t, abar_t = alpha_1 alpha_2 ... alpha_t
    beta_t = linear from 1e-4 to 0.02, times 1000/T                     (1)  noise schedule
    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, eps ~ N(0, I)        (2)  q(x_t | x_0)
    mu_tilde = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0
               + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t      (3)  q(x_{t-1} | x_t, x_0),
    beta_tilde_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t               (4)  mean and variance
    x_hat = (x_t - sqrt(1 - abar_t) eps_hat) / sqrt(abar_t)             (5)  image seen in x_t
    x_{t-1} = mu_tilde(x_t, x_hat) + sigma_t z, z ~ N(0, I), 0 at t = 1 (8)  p(x_{t-1} | x_t)
    L_simple = E_{t, x_0, eps} (eps - eps_hat(x_t, t))^2                (9)  training loss
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))            (11)  a reverse step
    L_0 = -log p(x_0 | x_1), density integrated over x_0 +- 1/255      (12)  8-bit decoder
    abar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2)       (14)  cosine schedule:
    beta_t = min(1 - abar_t / abar_{t-1}, 0.999)                       (15)  gentle at both ends
    sigma_t^2 = exp(v log beta_t + (1 - v) log beta_tilde_t)           (16)  v is learned
    L_hybrid = L_simple + lambda L_vlb, mean held fixed in L_vlb       (17)  L_vlb: the bound
    beta_{S_i} = 1 - abar_{S_i} / abar_{S_{i-1}}                       (19)  steps S_1 < S_2 ...
    h = GroupNorm(h) (1 + w) + b, w and b from embeddings of t and y   (20)  inside the network
    L_y = E_{t, x_0, eps} -log p(y | x_t, t)                           (26)  classifier's loss
    g = grad_x log p(y | x_t)                                          (27)  which way y lies
    mean = mu_tilde(x_t, x_hat) + s sigma_t^2 g                        (28)  Algorithm 1
    eps_hat = (x_t - sqrt(abar_t) x_hat) / sqrt(1 - abar_t)            (29)  noise in x_t
    eps_hat' = eps_hat - s sqrt(1 - abar_t) g                          (30)  Algorithm 2, then
    x_{t-1} = sqrt(abar_{t-1}) x_hat' + sqrt(1 - abar_{t-1}) eps_hat'  (31)  a step of DDIM

s is 0.008 in (14), but the scale of guidance in (28) and (30): 10 suits networks that do not know
y, those that do (--class_cond) take 0.5 to 4; lambda = 0.001. g is taken at x_t, as in the official
code, although (28) was derived for g at the mean.

Shapes: B batch, C channels, H = W image side, E time embedding, T steps, K classes; images x
(B, C, H, W) in [-1, 1], t (B,) in 0..T-1 (the paper's t minus 1), y (B,) in 0..K-1.
Unlike the paper: both networks learn from the same noised batches, the classifier too at a constant
rate (AdamW, decay 0.05); gradients are clipped; x_hat' of (30) is clipped to [-1, 1] again, which
it leaves at large s; narrow nets have base_channels / 4 norm groups; the decay of the average of
weights is at most (1 + step) / (10 + step).
Official weights: parameter names are those of openai/guided-diffusion, so 256x256_diffusion.pt
(553,838,086 parameters) loads strictly with --config imagenet256, and 256x256_classifier.pt as
--classifier_weights; likewise at 64, 128 and 512 pixels.

    python guided_diffusion.py                          8x8 digits, offline, minutes on a CPU
    python guided_diffusion.py --sample --class_id 7    then sevens from OUT/last.pt
    python guided_diffusion.py --sample --use_ddim --sampling_steps 25 --classifier_scale 3
    python guided_diffusion.py --dataset folder --data_root photos --n_classes 3   photos/cat, ...
    python guided_diffusion.py --config imagenet128 --data_root imagenet/train --amp
    python guided_diffusion.py --smoke                  a self-check: exits 1 unless it learned
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
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 200, "batch_size": 64, "lr": 2e-3, "warmup": 20, "ema": 0.95, "timesteps": 50}
SMOKE |= {"channel_mult": [1, 2], "n_res_blocks": 1, "sample_interval": 200, "sampling_steps": 25}
BARS = {"acc_s10": (0.83, 1.0), "acc_ddim_s10": (0.67, 1.0), "acc_s0": (0.0, 0.27)}
BARS |= {"acc_t0": (0.9, 1.0), "score_gap": (0.0, 1e-12)}

PAPER = {"dataset": "folder", "base_channels": 256, "attn_resolutions": [32, 16, 8], "lr": 1e-4}
PAPER |= {"head_channels": 64, "classifier_width": 128, "classifier_depth": 2, "batch_size": 256}
PAPER |= {"timesteps": 1000, "schedule": "linear", "warmup": 1, "ema": 0.9999, "flip": True}
PAPER |= {"classifier_lr": 3e-4, "classifier_scale": 1.0, "class_cond": True}
PAPER |= {"sampling_steps": 250, "sample_interval": 10_000, "n_steps": 1_980_000}
SMALL = {"base_channels": 192, "n_res_blocks": 3, "classifier_depth": 4, "schedule": "cosine"}
SMALL |= {"dropout": 0.1, "batch_size": 2048, "lr": 3e-4, "new_attention_order": True}
SMALL |= {"img_size": 64, "channel_mult": [1, 2, 3, 4], "n_steps": 540_000}
MIDDLE = {"img_size": 128, "channel_mult": [1, 1, 2, 3, 4], "heads": 4, "n_steps": 4_360_000}
HUGE = {"img_size": 512, "channel_mult": [0.5, 1, 1, 2, 2, 4, 4], "n_steps": 1_940_000}
CONFIGS = {
    "laptop": {},
    "mnist": {"dataset": "mnist", "base_channels": 32, "classifier_width": 32, "n_steps": 20_000},
    "imagenet64": PAPER | SMALL,
    "imagenet128": PAPER | MIDDLE | {"classifier_scale": 0.5},
    "imagenet256": PAPER | {"img_size": 256, "channel_mult": [1, 1, 2, 2, 4, 4]},
    "imagenet512": PAPER | HUGE | {"classifier_scale": 4.0},
}
# Side, channels and classes of every data set; MNIST's 28 pixels are padded with black to 32.
SIZES = {"digits": (8, 1, 10), "mnist": (32, 1, 10), "fashion_mnist": (32, 1, 10)}
SIZES |= {"cifar10": (32, 3, 10), "folder": (64, 3, 1000)}


# --- model ---------------------------------------------------------------------------------------
# Copied from diffusion/ddpm.py
def zero(layer):
    """Set a layer to zero: every branch, and with them the net, starts as a plain skip."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# Copied from diffusion/improved_ddpm.py
def timestep_embedding(t, dim):
    """Cosine and sine of t (B,) at dim / 2 frequencies, geometric from 1 to 1/10000: (B, dim)."""
    rank = torch.arange(dim // 2, device=t.device)
    angle = t[:, None] * torch.exp(-math.log(10_000) * rank / (dim // 2))  # (B, dim / 2)
    return torch.cat([angle.cos(), angle.sin()], 1)


# Differs from diffusion/improved_ddpm.py
class ResBlock(nn.Module):
    def __init__(self, n_in, n_out, n_time, groups, dropout, resize=None):
        super().__init__()
        conv, last = (nn.Conv2d(n, n_out, 3, padding=1) for n in (n_in, n_out))
        self.resize = resize or nn.Identity()  # of both branches, if at all
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, n_in), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(n_time, 2 * n_out))
        layers = nn.GroupNorm(groups, n_out), nn.SiLU(), nn.Dropout(dropout), zero(last)
        self.out_layers = nn.Sequential(*layers)
        self.skip_connection = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, emb):  # (B, n_in, H, W), (B, E)
        w, b = self.emb_layers(emb)[:, :, None, None].chunk(2, 1)  # (B, n_out, 1, 1) each
        h = self.in_layers[2](self.resize(self.in_layers[:2](x)))  # (B, n_out, H', W')
        h = self.out_layers[0](h) * (1 + w) + b  # eq. (20)
        return self.skip_connection(self.resize(x)) + self.out_layers[1:](h)


def attend(qkv, heads, new_order):
    """Attention of rows (B, 3 C, N) that hold q, k, v of each head, or all q, then all k, all v."""
    qkv = qkv.unflatten(1, (3, heads, -1) if new_order else (heads, 3, -1))
    q, k, v = qkv.mT.contiguous().unbind(1 if new_order else 2)  # (B, heads, N, C / heads) each
    return F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2)  # (B, C, N)


# Differs from diffusion/improved_ddpm.py
class AttentionBlock(nn.Module):
    def __init__(self, groups, heads, head_channels, new_order, channels):
        super().__init__()
        self.heads, self.new_order = heads or channels // head_channels, new_order
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x):
        h = attend(self.qkv(self.norm(x).flatten(2)), self.heads, self.new_order)
        return x + self.proj_out(h).reshape_as(x)  # (B, C, H, W)


class AttentionPool2d(nn.Module):
    """What the mean of all pixels sees when it looks at them: (B, n_in, side, side) -> (B, K)."""

    def __init__(self, side, n_in, heads, n_classes):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(n_in, side**2 + 1) / n_in**0.5)
        self.qkv_proj = nn.Conv1d(n_in, 3 * n_in, 1)
        self.c_proj = nn.Conv1d(n_in, n_classes, 1)

    def forward(self, x):
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], 2) + self.positional_embedding
        return self.c_proj(attend(self.qkv_proj(x), self.heads, True)[:, :, :1])[:, :, 0]


# Copied from diffusion/improved_ddpm.py
class TimestepEmbedSequential(nn.Sequential):
    """Layers one after the other; the residual blocks among them also get the embedding of t."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class HalfUNet(nn.Module):
    """The way down and the middle: half of one network, nearly all of the other."""

    def __init__(self, n_classes, channels, side, base, mults, n_res_blocks, sides, dropout, *look):
        super().__init__()
        groups, n_time, last = min(32, base // 4), 4 * base, len(mults) - 1
        self.base, self.sides, width = base, sides, int(mults[0] * base)
        self.res = partial(ResBlock, n_time=n_time, groups=groups, dropout=dropout)
        self.look = partial(AttentionBlock, groups, *look)
        layers = nn.Linear(base, n_time), nn.SiLU(), nn.Linear(n_time, n_time)
        self.time_embed = nn.Sequential(*layers)
        self.label_emb = nn.Embedding(n_classes, n_time) if n_classes else None
        stages = [[nn.Conv2d(channels, width, 3, padding=1)]]
        self.skips = [width]  # the width of every feature map kept for the way up
        for i, mult in enumerate(mults):
            widths, width = [width] + [int(mult * base)] * (n_res_blocks - 1), int(mult * base)
            stages += [self.block(n_in, width, side >> i) for n_in in widths]
            stages += [[self.res(width, width, resize=nn.AvgPool2d(2))]] * (i < last)
            self.skips += [width] * (n_res_blocks + (i < last))
        self.input_blocks = nn.ModuleList(TimestepEmbedSequential(*stage) for stage in stages)
        middle = self.res(width, width), self.look(width), self.res(width, width)
        self.middle_block = TimestepEmbedSequential(*middle)

    def block(self, n_in, n_out, side):
        return [self.res(n_in, n_out), *[self.look(n_out)] * (side in self.sides)]

    def forward(self, x, t, y=None):
        emb = self.time_embed(timestep_embedding(t, self.base).to(x.dtype))  # (B, E)
        emb = emb + self.label_emb(y) if self.label_emb else emb
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        return self.middle_block(h, emb), emb, skips


# Differs from diffusion/improved_ddpm.py
class UNet(HalfUNet):
    """The network (eps_hat, out)(x_t, t, y): (B, C, H, W), (B,) and (B,) -> (B, 2 C, H, W).
    Source: section 3; official code: openai/guided-diffusion guided_diffusion/unet.py."""

    def __init__(self, n_classes, channels, side, base, mults, n_res_blocks, *kind):
        super().__init__(n_classes, channels, side, base, mults, n_res_blocks, *kind)
        stages, skips, width = [], [*self.skips], self.skips[-1]
        for i, mult in reversed([*enumerate(mults)]):
            widths, width = [width] + [int(mult * base)] * n_res_blocks, int(mult * base)
            widths = [n_in + skips.pop() for n_in in widths]
            stages += [self.block(n_in, width, side >> i) for n_in in widths]
            stages[-1] += [self.res(width, width, resize=nn.Upsample(scale_factor=2.0))] * (i > 0)
        self.output_blocks = nn.ModuleList(TimestepEmbedSequential(*stage) for stage in stages)
        conv = zero(nn.Conv2d(width, 2 * channels, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(min(32, base // 4), width), nn.SiLU(), conv)

    def forward(self, x, t, y=None):
        h, emb, skips = super().forward(x, t, y)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], 1), emb)
        return self.out(h)


class Classifier(HalfUNet):
    """Scores (B, K) whose softmax is p(y | x_t): x (B, C, H, W), t (B,). No image sees another."""

    def __init__(self, n_classes, channels, side, base, mults, depth, sides, head_channels):
        super().__init__(0, channels, side, base, mults, depth, sides, 0.0, 0, head_channels, False)
        width, side = self.skips[-1], side >> len(mults) - 1
        pool = AttentionPool2d(side, width, width // head_channels, n_classes)
        self.out = nn.Sequential(nn.GroupNorm(min(32, base // 4), width), nn.SiLU(), pool)

    def forward(self, x, t):
        return self.out(super().forward(x, t)[0])


# --- the idea ------------------------------------------------------------------------------------
def cond_fn(classifier, scale, y, x_t, time):
    """s grad_x log p(y | x_t): (B, C, H, W). That of the sum: no image has a part in another's."""
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        log_p = classifier(x, time).log_softmax(1).gather(1, y[:, None])  # (B, 1)
        return scale * torch.autograd.grad(log_p.sum(), x)[0]  # eq. (27)


# Copied from diffusion/improved_ddpm.py
def noise_schedule(schedule, timesteps):
    """beta of every step, "linear" or "cosine": (T,) in float64, as all tables are computed."""
    if schedule == "linear":
        ends = torch.tensor([1e-4, 0.02], dtype=torch.float64) * 1000 / timesteps
        return torch.linspace(*ends, timesteps, dtype=torch.float64)  # eq. (1)
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    abar = ((u + 0.008) / 1.008 * math.pi / 2).cos().square()  # eq. (14)
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)  # eq. (15)


# Differs from diffusion/improved_ddpm.py
class GaussianDiffusion:
    """The forward process q, and the reverse process p around a network model(x, t) that puts out
    eps_hat and, in as many more channels, v of eq. (16). It is told times[t], else t * 1000/T."""

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
            "sqrt_abar_prev": abar_prev.sqrt(),
            "sqrt_one_minus_abar_prev": (1 - abar_prev).sqrt(),
            "coef_x0": abar_prev.sqrt() * betas / (1 - abar),
            "coef_xt": (1 - betas).sqrt() * (1 - abar_prev) / (1 - abar),
            "log_beta_tilde": beta_tilde.log(),
            "log_beta": betas.log(),
        }
        self.tables = {key: table.to(device, dtype) for key, table in tables.items()}

    def respaced(self, steps):
        """The process that visits only some steps; the network is told the t that they had."""
        kept = torch.linspace(0, self.timesteps - 1, steps, dtype=torch.float64).round().long()
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

    def p_mean_variance(self, model, x_t, t, clip_denoised=True):
        """Mean and log variance of p(x_{t-1} | x_t), and x_hat, clipped to the range of images."""
        eps, out = model(x_t, self.times[t]).chunk(2, 1)  # (B, C, H, W) each
        x_hat = (x_t - self.at("sqrt_one_minus_abar", t) * eps) / self.at("sqrt_abar", t)  # eq. (5)
        x_hat = x_hat.clamp(-1, 1) if clip_denoised else x_hat
        v, low, high = (out + 1) / 2, self.at("log_beta_tilde", t), self.at("log_beta", t)
        log_variance = v * high + (1 - v) * low  # eq. (16)
        return self.q_posterior(x_hat, x_t, t)[0], log_variance, x_hat

    def p_sample(self, model, x_t, t, guide=None):
        """One reverse step, Algorithm 1: x_{t-1} (B, C, H, W). guide(x_t, time): s g, or none."""
        mean, log_variance, _ = self.p_mean_variance(model, x_t, t)
        if guide:
            mean = mean + log_variance.exp() * guide(x_t, self.times[t])  # eq. (28)
        z = torch.randn_like(x_t) * (t > 0)[:, None, None, None]  # none in the last step
        return mean + (log_variance / 2).exp() * z  # eq. (8)

    def ddim_sample(self, model, x_t, t, guide=None):
        """One step without noise, Algorithm 2: x_{t-1} (B, C, H, W)."""
        a, b = self.at("sqrt_abar", t), self.at("sqrt_one_minus_abar", t)
        x_hat = self.p_mean_variance(model, x_t, t)[2]
        if guide:
            eps = (x_t - a * x_hat) / b - b * guide(x_t, self.times[t])  # eq. (30)
            x_hat = ((x_t - b * eps) / a).clamp(-1, 1)
        eps = (x_t - a * x_hat) / b  # eq. (29)
        a, b = self.at("sqrt_abar_prev", t), self.at("sqrt_one_minus_abar_prev", t)
        return a * x_hat + b * eps  # eq. (31)

    def training_losses(self, model, x0, t, noise):
        """Loss of each image (B,): noise, and 1/1000 of a one-step estimate of the bound."""
        x_t = self.q_sample(x0, t, noise)
        eps, out = model(x_t, self.times[t]).chunk(2, 1)
        simple = (noise - eps).square().flatten(1).mean(1)  # eq. (9)
        held = torch.cat([eps.detach(), out], 1)
        true_mean, true_log_variance = self.q_posterior(x0, x_t, t)
        mean, log_variance, _ = self.p_mean_variance(lambda *_: held, x_t, t, clip_denoised=False)
        kl = normal_kl(true_mean, true_log_variance, mean, log_variance)  # eq. (11)
        nll = -discretized_gaussian_log_likelihood(x0, mean, log_variance)
        nats = torch.where((t == 0)[:, None, None, None], nll, kl).flatten(1).mean(1)
        return simple + 0.001 * self.timesteps * nats / math.log(2)  # eq. (17)


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
    """Return (images, classes) for training and for testing: uint8 (N, C, H, W), long (N,)."""
    if args.dataset in ("digits", "folder"):
        if args.dataset == "digits":
            from sklearn.datasets import load_digits

            x, y = map(torch.from_numpy, load_digits(return_X_y=True))
            x = (x * 255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
        else:
            x, y = load_folder(args)
        order = torch.randperm(len(x)).split([len(x) - len(x) // 10, len(x) // 10])
        splits = [(x[i], y[i]) for i in order]
    else:
        from torchvision import datasets

        names = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
        try:
            kind = getattr(datasets, names[args.dataset])
            sets = [kind(args.data_root, train=part, download=True) for part in (True, False)]
        except Exception as error:  # whatever the files hold
            where = f"--dataset {args.dataset}: cannot be read from {args.data_root}"
            fail(f"{where} nor downloaded; --dataset digits needs neither ({error!r})")
        splits = [(torch.as_tensor(s.data), torch.as_tensor(s.targets)) for s in sets]
        if args.dataset == "cifar10":
            splits = [(x.permute(0, 3, 1, 2), y) for x, y in splits]
        else:
            splits = [(F.pad(x, (2, 2, 2, 2))[:, None], y) for x, y in splits]
    return [(x.to(args.device), y.to(args.device)) for x, y in splits]


# Differs from diffusion/ddpm.py
def load_folder(args):
    """The images in the folders of --data_root, cut to img_size; class: a folder, by alphabet."""
    import numpy as np
    from PIL import ImageOps
    from torchvision.datasets import ImageFolder

    root, size, mode = args.data_root, (args.img_size,) * 2, "L" if args.channels == 1 else "RGB"
    try:
        found = ImageFolder(root, lambda image: np.array(ImageOps.fit(image.convert(mode), size)))
        if len(found.classes) != args.n_classes or len(found) < 20:
            has = f"{len(found)} images in {len(found.classes)} folders"
            fail(f"--data_root {root}: has {has}; --n_classes must say so, 20 images be there")
        pairs = [*tqdm(found, "reading", leave=False, disable=None)]
    except (OSError, ValueError, SyntaxError) as error:
        fail(f"--data_root {root}: a folder of images for every class is wanted ({error})")
    images, labels = zip(*pairs, strict=True)
    images = torch.from_numpy(np.stack(images)).reshape(len(images), *size, -1)
    return images.permute(0, 3, 1, 2), torch.tensor(labels)


# Copied from diffusion/ddpm.py
def to_model(images):
    """Grey levels 0 ... 255 to [-1, 1], with no noise added: bins of 2/255, as eq. (12) wants."""
    return images.float() / 127.5 - 1


# --- train, sample, evaluate, smoke --------------------------------------------------------------
def build(args):
    """The network and the classifier, at random or from files, and the diffusion process."""
    shape = args.channels, args.img_size
    kind = args.base_channels, args.channel_mult, args.n_res_blocks, args.attn_resolutions
    look = args.heads, args.head_channels, args.new_attention_order
    model = UNet(args.n_classes * args.class_cond, *shape, *kind, args.dropout, *look)
    kind = args.classifier_width, args.channel_mult, args.classifier_depth, args.attn_resolutions
    classifier = Classifier(args.n_classes, *shape, *kind, args.head_channels)
    if args.weights:
        load_weights(args.weights, model)
    if args.classifier_weights:
        load_weights(args.classifier_weights, classifier, ("classifier",))
    if args.device.startswith("cuda"):  # where convolutions want it; slower on a CPU
        model = model.to(memory_format=torch.channels_last)
    diffusion = GaussianDiffusion(noise_schedule(args.schedule, args.timesteps), args.device)
    return model.to(args.device), classifier.to(args.device), diffusion


# Differs from diffusion/improved_ddpm.py
def draw_batch(images, labels, args):
    """Random images x_0 (B, C, H, W), classes y and times t (B,), and noises eps (B, C, H, W)."""
    i = torch.randint(len(images), (args.batch_size,), device=args.device)
    x0 = to_model(images[i])
    mirror = torch.rand(args.batch_size, 1, 1, 1, device=args.device) < args.flip / 2
    x0 = torch.where(mirror, x0.flip(3), x0)
    t = torch.randint(args.timesteps, (args.batch_size,), device=args.device)
    return x0, labels[i], t, torch.randn_like(x0)


# Copied from diffusion/ddpm.py
def update_ema(ema, model, decay):
    """Draw the averaged weights a little, 1 - decay, towards those of the model."""
    with torch.no_grad():
        torch._foreach_lerp_([*ema.parameters()], [*model.parameters()], 1 - decay)


def train(args):
    """Train both from scratch, or on from OUT/last.pt; return the accuracies of the classifier."""
    torch.manual_seed(args.seed)
    (images, labels), test = load_data(args)
    model, classifier, diffusion = build(args)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    groups = [{"params": model.parameters(), "lr": args.lr, "weight_decay": 0.0}]
    groups += [{"params": classifier.parameters(), "lr": args.classifier_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, fused=True)
    state = {"model": model, "ema": ema, "classifier": classifier, "optimizer": optimizer}
    step = begin(args, state)
    net = torch.compile(model) if args.compile else model
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    try:
        while step < args.n_steps:
            model.train()
            total = torch.zeros(2, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                x0, y, t, noise = draw_batch(images, labels, args)
                with cast:  # touches matmul and convolution; tables and losses stay in float32
                    loss = diffusion.training_losses(partial(net, y=y), x0, t, noise).mean()
                    scores = classifier(diffusion.q_sample(x0, t, noise), diffusion.times[t])
                    loss_c = F.cross_entropy(scores, y)  # eq. (26)
                optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / args.warmup)
                optimizer.zero_grad()
                (loss + loss_c).backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                update_ema(ema, model, min(args.ema, (1 + step) / (10 + step)))
                total += torch.stack([loss, loss_c]).detach()
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            draw(ema, classifier, diffusion, args, f"samples_{step:06d}.png")
            loss, loss_c = (total / n).tolist()
            log(args, step=step, loss=loss, classifier_loss=loss_c)
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(classifier, diffusion, *test, args)


@torch.no_grad()
def sample(model, classifier, diffusion, args):
    """Draw n_samples images (n_samples, C, H, W) in [-1, 1] and tell the classes asked for."""
    model.eval()
    torch.manual_seed(args.seed)  # the same noise at every call: grids can be compared
    diffusion = diffusion.respaced(args.sampling_steps or args.timesteps)
    classes = torch.tensor(args.class_id or range(args.n_classes), device=args.device)
    rows = torch.arange(args.n_samples, device=args.device) // math.isqrt(args.n_samples)
    y = classes[rows % len(classes)]  # a class to every row of the grid
    guide = args.classifier_scale and partial(cond_fn, classifier, args.classifier_scale, y)
    step = diffusion.ddim_sample if args.use_ddim else diffusion.p_sample
    x = torch.randn(len(y), args.channels, args.img_size, args.img_size, device=args.device)
    for t in tqdm(range(diffusion.timesteps)[::-1], "sampling", leave=False, disable=None):
        x = step(partial(model, y=y), x, torch.full_like(y, t), guide)
    return x.clamp(-1, 1), y


def draw(model, classifier, diffusion, args, name):
    """Write a grid of samples, a class in every row."""
    from torchvision.utils import save_image

    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp):
        x, _ = sample(model, classifier, diffusion, args)
    x, nrow = F.interpolate(x.float(), scale_factor=max(1, 32 // args.img_size)), math.isqrt(len(x))
    save_image(x, Path(args.out, name), nrow=nrow, normalize=True, value_range=(-1, 1))


def generate(args):
    """--sample: draw with --weights or OUT/last.pt into OUT/samples.png."""
    path = args.weights = args.weights or f"{args.out}/last.pt"
    args.classifier_weights = args.classifier_weights or (args.classifier_scale and path)
    model, classifier, diffusion = build(args)
    saved = torch.load(path, map_location="cpu", weights_only=True).get("args", {})
    for key in ("timesteps", "schedule", "heads", "head_channels"):  # which no shape gives away
        if key in saved and saved[key] != getattr(args, key):
            fail(f"--{key} {getattr(args, key)}: {path} was trained with {saved[key]}; type that")
    begin(args)
    draw(model, classifier, diffusion, args, "samples.png")
    return 0


@torch.inference_mode()
def evaluate(classifier, diffusion, images, labels, args):
    """Accuracy of the classifier on images (N, C, H, W), clean and with more and more noise."""
    torch.manual_seed(args.seed)
    metrics, x0, y = {}, to_model(images[: args.n_test]), labels[: args.n_test]
    for step in (third * (args.timesteps - 1) // 3 for third in range(4)):
        t = torch.full_like(y, step)
        parts = [diffusion.q_sample(x0, t, torch.randn_like(x0)), diffusion.times[t], y]
        batches = zip(*(part.split(args.batch_size) for part in parts), strict=True)
        right = sum((classifier(x, t).argmax(1) == y).sum() for x, t, y in batches)
        metrics[f"acc_t{step}"] = right.item() / len(x0)
    return metrics


def smoke(args):
    """A short run in a temporary folder, samples judged by an independent classifier."""
    from sklearn.linear_model import LogisticRegression

    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        args.weights = args.classifier_weights = f"{args.out}/last.pt"
        model, classifier, diffusion = build(args)
    torch.manual_seed(args.seed)
    (x, y), _ = load_data(args)
    judge = LogisticRegression(max_iter=1000).fit(to_model(x).flatten(1).cpu(), y.cpu())
    for name, scale, ddim in ("acc_s0", 0.0, 0), ("acc_s10", 10.0, 0), ("acc_ddim_s10", 10.0, 1):
        args.classifier_scale, args.use_ddim = scale, ddim
        fakes, asked = sample(model, classifier, diffusion, args)
        metrics[name] = judge.score(fakes.flatten(1).cpu(), asked.cpu())
    # Weighted by p(y | x_t), the gradients of all classes cancel: they are those of log 1.
    x, t = torch.randn(4, *x.shape[1:], dtype=torch.float64, device=x.device), y[:4]
    p = classifier.double()(x, t).detach().softmax(1).T[:, :, None, None, None]  # (K, B, 1, 1, 1)
    scores = [cond_fn(classifier, 1.0, torch.full_like(t, k), x, t) for k in range(len(p))]
    return report(args, **metrics, score_gap=(p * torch.stack(scores)).sum(0).abs().max())


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
    add("--img_size", type=at_least(4), help="side of a folder's images; default: 64")
    add("--channels", type=int, choices=[1, 3], help="of a folder's images: 1 grey, 3 colour")
    add("--n_classes", type=at_least(1), help="folders in the folder; default there: 1000")
    add("--flip", action="store_true", help="mirror half of the images: photos yes, digits no")
    add("--config", choices=[*CONFIGS], default="laptop", help="named set of defaults")
    add("--base_channels", type=at_least(8), default=16, help="width of the net at full size")
    mults = {"type": at_least(0.25), "nargs": "+", "default": [1.0, 2.0, 2.0]}
    add("--channel_mult", **mults, help="... at each size")
    add("--n_res_blocks", type=at_least(1), default=2, help="residual blocks at each size")
    add(
        "--attn_resolutions", type=at_least(1), nargs="*", default=[16, 4], help="sides that attend"
    )
    add("--head_channels", type=at_least(1), default=8, help="width of a head of attention")
    add("--heads", type=at_least(0), default=0, help="of attention; 0: as many as their width says")
    text = "rows of qkv hold all q, all k, all v"
    add("--new_attention_order", action="store_true", help=text)
    add("--class_cond", action="store_true", help="tell the diffusion model the class too")
    add("--dropout", type=at_least(0.0, 1.0), default=0.0, help="inside residual blocks")
    add("--timesteps", type=at_least(21), default=200, help="T, doses of noise")
    add("--schedule", choices=["cosine", "linear"], default="cosine", help="eq. (14), or eq. (1)")
    add("--classifier_width", type=at_least(8), default=16, help="its --base_channels")
    add("--classifier_depth", type=at_least(1), default=1, help="its --n_res_blocks")
    add("--classifier_lr", type=at_least(0.0), default=1e-3, help="adamw: learning rate")
    add("--classifier_weights", help="state dict or checkpoint to load the classifier from")
    add("--classifier_scale", type=at_least(0.0), default=10.0, help="s, strength of the guidance")
    add("--class_id", type=at_least(0), nargs="+", help="classes to draw; default: all of them")
    add("--use_ddim", action="store_true", help="draw by Algorithm 2, without noise")
    add("--sampling_steps", type=at_least(2), help="of the T, evenly spread; default: all")
    add("--sample_interval", type=at_least(1), default=1000, help="steps between sample grids")
    add("--n_samples", type=at_least(1), default=100, help="images in a grid")
    add("--n_test", type=at_least(1), default=1000, help="test images classified at the end")
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
    side, channels, n_classes = SIZES[args.dataset]
    args.img_size, args.channels = args.img_size or side, args.channels or channels
    args.n_classes = args.n_classes or n_classes
    if args.dataset != "folder" and args.channels != channels:
        fail(f"--channels {args.channels}: {args.dataset} has {channels}; leave the flag out")
    if args.dataset != "folder" and args.img_size != side:
        fail(f"--img_size {args.img_size}: {args.dataset} has {side}; leave the flag out")
    if args.dataset != "folder" and args.n_classes != n_classes:
        fail(f"--n_classes {args.n_classes}: {args.dataset} has {n_classes}; leave the flag out")
    if max(args.class_id or [0]) >= args.n_classes:
        fail(f"--class_id {max(args.class_id)}: classes are 0 to {args.n_classes - 1}; try those")
    halvings = len(args.channel_mult) - 1
    if args.img_size % 2**halvings:
        reason = f"cannot be halved {halvings} times; try a multiple of {2**halvings}"
        fail(f"--img_size {args.img_size}: {reason}")
    widths = {"base_channels": args.base_channels, "classifier_width": args.classifier_width}
    for flag, width in widths.items():  # groups and heads must share out the channels
        unit = math.lcm(min(32, width // 4), args.heads or 1, args.head_channels)
        if odd := [mult for mult in args.channel_mult if int(mult * width) % unit]:
            reason = f"{int(odd[0] * width)} channels are no multiple of {unit}"
            fail(f"--{flag} {width}: {reason}; try other --head_channels or --channel_mult")
    if (args.sampling_steps or 2) > args.timesteps:
        fail(f"--sampling_steps {args.sampling_steps}: of {args.timesteps}; try fewer")
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
