# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "pillow>=10,<13", "numpy>=1.26,<3",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Diffusion transformer (DiT): the U-Net of a diffusion model replaced by a plain transformer.

Paper: Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, arXiv 2212.09748.
The image, or its latent, is cut into patches; each becomes a token. Time and class do not become
tokens: their sum c is turned, block by block, into shifts, scales and gates (adaLN-Zero), all of
them zero at the start, so that every block begins as the identity. The diffusion process is that
of improved_ddpm.py, whose equations keep their numbers here.

    alpha_t = 1 - beta_t, abar_t = alpha_1 alpha_2 ... alpha_t
    beta_t = linear from 1e-4 to 0.02, times 1000/T                     (1)  noise schedule
    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, eps ~ N(0, I)        (2)  q(x_t | x_0)
    mu_tilde = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0
               + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t      (3)  q(x_{t-1} | x_t, x_0),
    beta_tilde_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t               (4)  mean and variance
    x_hat = (x_t - sqrt(1 - abar_t) eps_hat) / sqrt(abar_t)             (5)  image seen in x_t
    x_{t-1} = mu_tilde(x_t, x_hat) + sigma_t z, z ~ N(0, I), 0 at t = 1 (8)  p(x_{t-1} | x_t)
    L_simple = E_{t, x_0, eps} (eps - eps_hat(x_t, t, y))^2             (9)  training loss
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))            (11)  a reverse step
    L_0 = -log p(x_0 | x_1), density integrated over x_0 +- 1/255      (12)  8-bit decoder
    sigma_t^2 = exp(v log beta_t + (1 - v) log beta_tilde_t)           (16)  v is learned
    L_hybrid = L_simple + lambda L_vlb, mean held fixed in L_vlb       (17)  L_vlb: all T terms
    beta_{S_i} = 1 - abar_{S_i} / abar_{S_{i-1}}                       (19)  steps S_1 < S_2 ...
    c = MLP(embedding of t) + row y of a table, y dropped at times     (21)  condition
    (shift, scale, gate) x 2 = Linear(SiLU(c)), zero at the start      (22)  adaLN-Zero
    h = x + gate Attention(LayerNorm(x) (1 + scale) + shift)           (23)  a block,
    x = h + gate' MLP(LayerNorm(h) (1 + scale') + shift')              (24)  its second half
    eps_hat = eps(no class) + s (eps(class) - eps(no class))           (25)  guidance at scale s

lambda = 0.001. (25) needs no classifier: in training a tenth of the labels give way to one more
row of the table, "no class". s = 1 is plain conditional sampling, larger s obeys more.

Shapes: B batch, C channels, H = W image side, P patch side, N = (H / P)^2 tokens, D width; images
or latents x (B, C, H, W), t (B,) in 0..T-1 (the paper's t minus 1), classes y (B,).
Unlike the paper: gradients are clipped; the decay of the average of weights is at most
(1 + step) / (10 + step); (25) guides all channels of eps_hat, where the official code leaves out
the last of four; images may be pixels, which are clipped, as well as latents, which are not.
Official weights: parameter names are those of facebookresearch/DiT, whose DiT-XL-2-256x256.pt
loads strictly with --config DiT-XL/2.

    python dit.py                                       8x8 digits, offline, minutes on a CPU
    python dit.py --sample --class_id 7 --cfg_scale 4   then sevens from OUT/last.pt
    python dit.py --dataset mnist                       the same small net on MNIST, 32x32
    python dit.py --config DiT-S/2 --data_root latents.pt --amp
    torchrun --nproc_per_node 4 dit.py --config DiT-XL/2 --data_root latents.pt --amp
    python dit.py --smoke                               a self-check: exits 1 unless it learned

latents.pt is torch.save({"latents": (N, 4, 32, 32) scaled to deviation 1, "labels": (N,)}).
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
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 400, "batch_size": 64, "lr": 4e-3, "warmup": 20, "ema": 0.95, "timesteps": 50}
SMOKE |= {"dim": 64, "depth": 3, "label_init_std": 1.0, "cfg_scale": 3.0, "sample_interval": 400}
BARS = {"obeys": (0.85, 1.0), "guidance_gain": (0.1, 1.0), "frechet": (0.0, 6.6)}
BARS |= {"start_gap": (0.0, 0.0)}

PAPER = {"dataset": "latents", "timesteps": 1000, "sampling_steps": 250, "n_classes": 1000}
PAPER |= {"batch_size": 256, "lr": 1e-4, "warmup": 1, "ema": 0.9999, "flip": True}
PAPER |= {"n_steps": 400_000, "sample_interval": 10_000, "cfg_scale": 4.0, "n_samples": 16}
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
MNIST = {"dataset": "mnist", "timesteps": 1000, "dim": 256, "depth": 8, "n_steps": 20_000}
CONFIGS = {"laptop": {}, "mnist": MNIST | {"batch_size": 128, "lr": 3e-4, "ema": 0.999}} | {
    f"DiT-{name}/{p}": PAPER | {"depth": depth, "dim": dim, "heads": heads, "patch_size": p}
    for name, (depth, dim, heads) in SIZES.items()
    for p in (2, 4, 8)
}
# Side, channels and classes of every data set; MNIST's 28 pixels are padded with black to 32.
DATA = {"digits": (8, 1, 10), "mnist": (32, 1, 10), "fashion_mnist": (32, 1, 10)}
DATA |= {"cifar10": (32, 3, 10), "folder": (64, 3, 2), "latents": (32, 4, 1000)}


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


def position_embedding(side, dim):
    """Sine and cosine of a patch's column in the first half, of its row in the second: (N, dim)."""
    at, rank = (torch.arange(n, dtype=torch.float64) for n in (side, dim // 4))
    angle = at[:, None] / 10_000 ** (rank / (dim // 4))  # (side, dim / 4)
    one = torch.cat([angle.sin(), angle.cos()], 1)  # (side, dim / 2)
    return torch.cat([one.repeat(side, 1), one.repeat_interleave(side, 0)], 1).float()


class TimestepEmbedder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        return self.mlp(timestep_embedding(t, 256).to(self.mlp[0].weight.dtype))  # (B, D)


# Differs from diffusion/ddpm.py
class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv)  # (B, heads, N, D / heads)
        return self.proj(x.transpose(1, 2).flatten(2))  # (B, N, D)


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated as the condition c (B, D) commands."""

    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, 1e-6, elementwise_affine=False) for _ in "12")
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        shift, scale, gate, *mlp = self.adaLN_modulation(c)[:, None].chunk(6, 2)  # eq. (22)
        x = x + gate * self.attn(modulate(self.norm1(x), shift, scale))  # eq. (23)
        shift, scale, gate = mlp  # (B, 1, D) each
        return x + gate * self.mlp(modulate(self.norm2(x), shift, scale))  # eq. (24)


class FinalLayer(nn.Module):
    def __init__(self, dim, n_out):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.linear = nn.Linear(dim, n_out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, 2)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """The network (eps_hat, out)(x_t, t, y): patches in, patches of twice the channels out.

    x (B, C, H, W), t (B,), y (B,) in 0..n_classes, the last being "no class" -> (B, 2 C, H, W).
    H must be divisible by patch_size, dim by heads and by 4.
    Source: paper, section 3.2; official code: facebookresearch/DiT models.py.
    """

    def __init__(self, channels, side, patch_size, dim, depth, heads, n_classes, label_std=0.02):
        super().__init__()
        self.n_classes, self.grid, self.patch_size = n_classes, side // patch_size, patch_size
        conv = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.x_embedder = nn.Sequential(OrderedDict(proj=conv))
        self.t_embedder, table = TimestepEmbedder(dim), nn.Embedding(n_classes + 1, dim)
        self.y_embedder = nn.Sequential(OrderedDict(embedding_table=table))
        self.register_buffer("pos_embed", position_embedding(self.grid, dim)[None])  # (1, N, D)
        self.blocks = nn.ModuleList(DiTBlock(dim, heads) for _ in range(depth))
        self.final_layer = FinalLayer(dim, 2 * channels * patch_size**2)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.detach().flatten(1))  # of a patch as well
                nn.init.zeros_(module.bias)
        for layer in self.t_embedder.mlp[0], self.t_embedder.mlp[2]:
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(table.weight, std=label_std)
        for block in self.blocks:
            zero(block.adaLN_modulation)
        zero(self.final_layer)

    def forward(self, x, t, y):
        x = self.x_embedder(x).flatten(2).mT + self.pos_embed  # (B, N, D)
        c = self.t_embedder(t) + self.y_embedder(y)  # eq. (21)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c).unflatten(2, (self.patch_size, self.patch_size, -1))
        x = x.unflatten(1, (self.grid, self.grid)).permute(0, 5, 1, 3, 2, 4)
        return x.flatten(4, 5).flatten(2, 3)  # (B, 2 C, H, W)


# --- the idea ------------------------------------------------------------------------------------
# Differs from diffusion/ddpm.py
class GaussianDiffusion:
    """The forward process q and the reverse process p around a network model(x, t).

    The network puts out eps_hat and, in as many more channels, v of eq. (16); it is told times[t],
    by default t * 1000/T. clip_denoised: x_hat is held in [-1, 1] in sampling, as suits pixels.
    """

    def __init__(self, betas, device, dtype=torch.float32, times=None, clip_denoised=True):
        self.betas, self.timesteps, self.clip_denoised = betas, len(betas), clip_denoised
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

    def respaced(self, steps):
        """The process that visits only so many steps; the network is told the t that they had."""
        kept = torch.linspace(0, self.timesteps - 1, steps, dtype=torch.float64).round().long()
        abar = (1 - self.betas).cumprod(0)[kept]
        betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])  # eq. (19)
        kind = self.times.device, self.times.dtype, self.times[kept], self.clip_denoised
        return GaussianDiffusion(betas, *kind)

    def at(self, name, t):
        """Values of a table at t (B,), shaped to multiply images: (B, 1, 1, 1)."""
        return self.tables[name][t][:, None, None, None]

    def q_sample(self, x0, t, noise):
        return self.at("sqrt_abar", t) * x0 + self.at("sqrt_one_minus_abar", t) * noise  # eq. (2)

    def q_posterior(self, x0, x_t, t):
        """Mean (B, C, H, W) and log variance (B, 1, 1, 1) of q(x_{t-1} | x_t, x_0)."""
        mean = self.at("coef_x0", t) * x0 + self.at("coef_xt", t) * x_t  # eq. (3)
        return mean, self.at("log_beta_tilde", t)

    def p_mean_variance(self, model, x_t, t, clip_denoised=False):
        """Mean and log variance of p(x_{t-1} | x_t), and x_hat, clipped to the range of images."""
        eps, out = model(x_t, self.times[t]).chunk(2, 1)  # (B, C, H, W) each
        a, b = self.at("sqrt_abar", t), self.at("sqrt_one_minus_abar", t)
        x_hat = (x_t - b * eps) / a  # eq. (5)
        x_hat = x_hat.clamp(-1, 1) if clip_denoised else x_hat
        v, low, high = (out + 1) / 2, self.at("log_beta_tilde", t), self.at("log_beta", t)
        log_variance = v * high + (1 - v) * low  # eq. (16)
        return self.q_posterior(x_hat, x_t, t)[0], log_variance, x_hat

    def p_sample(self, model, x_t, t):
        """One reverse step: x_{t-1} and x_hat, both (B, C, H, W)."""
        mean, log_variance, x_hat = self.p_mean_variance(model, x_t, t, self.clip_denoised)
        z = torch.randn_like(x_t) * (t > 0)[:, None, None, None]  # none in the last step
        return mean + (log_variance / 2).exp() * z, x_hat  # eq. (8)

    def p_sample_loop(self, model, x):
        """Take noise x (B, C, H, W) to images; yields (x_{t-1}, x_hat) for t = T-1 ... 0."""
        for t in reversed(range(self.timesteps)):
            x, x_hat = self.p_sample(model, x, torch.full((len(x),), t, device=x.device))
            yield x, x_hat

    def training_losses(self, model, x0, t, noise):
        """Loss of each image (B,): eq. (9), and a one-step estimate of all T terms of the bound."""
        x_t = self.q_sample(x0, t, noise)
        eps, out = model(x_t, self.times[t]).chunk(2, 1)
        simple = (noise - eps).square().flatten(1).mean(1)  # eq. (9)
        held = torch.cat([eps.detach(), out], 1)
        mean, log_variance, _ = self.p_mean_variance(lambda *_: held, x_t, t)
        kl = normal_kl(*self.q_posterior(x0, x_t, t), mean, log_variance)  # eq. (11)
        nll = -discretized_gaussian_log_likelihood(x0, mean, log_variance)
        vlb = self.timesteps * torch.where(t == 0, bits(nll), bits(kl))
        return simple + 0.001 * vlb  # eq. (17)


def guided(model, y, scale):
    """The network (x, t) -> (eps_hat, out) for classes y (B,) under classifier-free guidance."""
    if scale == 1:
        return partial(model, y=y)
    both = torch.cat([y, torch.full_like(y, model.n_classes)])  # (2 B,)

    def net(x, t):
        asked, free = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        (eps, out), (eps_free, _) = asked.chunk(2, 1), free.chunk(2, 1)
        return torch.cat([eps_free + scale * (eps - eps_free), out], 1)  # eq. (25)

    return net


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
    """Return (images or latents, classes) for training and for testing: uint8 or float32
    (N, C, H, W), long (N,), whole on the device."""
    if args.dataset in ("digits", "folder", "latents"):
        if args.dataset == "digits":
            from sklearn.datasets import load_digits

            x, y = map(torch.from_numpy, load_digits(return_X_y=True))
            x = (x * 255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
        else:
            x, y = load_folder(args) if args.dataset == "folder" else load_latents(args)
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
    return [(fit(x, args.img_size).to(args.device), y.to(args.device)) for x, y in splits]


# Copied from diffusion/ddpm.py
def fit(x, side):
    """Resize images (N, C, H, W); uint8 keeps the 256 grey levels that eq. (12) counts on."""
    from torchvision.transforms.functional import resize

    return x.contiguous() if x.shape[-1] == side else resize(x, [side, side], antialias=True)


# Copied from diffusion/guided_diffusion.py
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


def load_latents(args):
    """Latents (N, C, H, W) and their classes (N,) from the file that --data_root names."""
    path, shape = args.data_root, (args.channels, args.img_size, args.img_size)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        x, y = saved["latents"].float(), saved["labels"].long()
        there = f"{tuple(x.shape)} and classes up to {y.max()}"
    except OSError as error:
        fail(f"--data_root {path}: cannot be read ({error.strerror}); name a file of latents")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--data_root {path}: is no torch.save({{'latents': x, 'labels': y}}); make one")
    if x.shape[1:] != shape or len(x) != len(y) or y.max() >= args.n_classes:
        fail(f"--data_root {path}: holds {there}; set --img_size and --n_classes to fit")
    return x, y


# Differs from diffusion/ddpm.py
def to_model(x):
    """Grey levels 0 ... 255 to [-1, 1], with no noise added; latents as they are."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


# --- train, sample, evaluate, smoke --------------------------------------------------------------
def build(args):
    """The network, at random, and the diffusion process around it."""
    shape = args.channels, args.img_size, args.patch_size, args.dim, args.depth, args.heads
    model = DiT(*shape, args.n_classes, args.label_init_std).to(args.device)
    ends = torch.tensor([1e-4, 0.02], dtype=torch.float64) * 1000 / args.timesteps
    betas = torch.linspace(*ends, args.timesteps, dtype=torch.float64)  # eq. (1)
    clip = args.dataset != "latents"
    return model, GaussianDiffusion(betas, args.device, clip_denoised=clip)


# Differs from diffusion/ddpm.py
def draw_batch(images, labels, args):
    """Random images x_0 and noises eps (B, C, H, W), their times t and classes y (B,)."""
    rows = torch.randint(len(images), (args.batch_size,), device=args.device)
    x0, y = to_model(images[rows]), labels[rows]
    mirror = torch.rand(args.batch_size, 1, 1, 1, device=args.device) < args.flip / 2
    x0 = torch.where(mirror, x0.flip(3), x0)
    dropped = torch.rand(args.batch_size, device=args.device) < args.label_dropout
    t = torch.randint(args.timesteps, (args.batch_size,), device=args.device)
    return x0, t, torch.randn_like(x0), torch.where(dropped, args.n_classes, y)


# Copied from diffusion/ddpm.py
def update_ema(ema, model, decay):
    """Draw the averaged weights a little, 1 - decay, towards those of the model."""
    with torch.no_grad():
        torch._foreach_lerp_([*ema.parameters()], [*model.parameters()], 1 - decay)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the loss of test images."""
    rank, world = join(args)
    if args.batch_size % world:
        fail(f"--batch_size {args.batch_size}: does not share out among {world} processes")
    torch.manual_seed(args.seed)
    data, test = load_data(args)
    model, diffusion = build(args)
    if args.weights:
        load_weights(args.weights, model)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0, fused=True)
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
                *batch, y = (part[rank::world] for part in draw_batch(*data, args))
                with cast:  # touches matmul and convolution; tables and losses stay in float32
                    loss = diffusion.training_losses(partial(net, y=y), *batch).mean()
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
        metrics = evaluate(ema, diffusion, *(part[: args.n_test] for part in test), args)
    if world > 1:
        distributed.barrier()  # all leave together, when nothing is under way any more
        distributed.destroy_process_group()
    return metrics


@torch.inference_mode()
def sample(model, diffusion, args):
    """Draw images (n_samples, C, H, W) of class_id, or of all classes in turn; with them return, at
    up to ten times, x_t and x_hat of up to ten: (<= 10, 2, <= 10, C, H, W)."""
    model.eval()
    torch.manual_seed(args.seed)  # the same noise at every call: grids can be compared
    y = torch.arange(args.n_samples, device=args.device) * args.n_classes // args.n_samples
    net = guided(model, y if args.class_id is None else 0 * y + args.class_id, args.cfg_scale)
    diffusion = diffusion.respaced(args.sampling_steps or args.timesteps)
    side, marks = args.img_size, torch.linspace(0, diffusion.timesteps - 1, 10).long().tolist()
    noise = torch.randn(args.n_samples, args.channels, side, side, device=args.device)
    steps, frames = tqdm(range(diffusion.timesteps), "sampling", leave=False, disable=None), []
    for step, (x, x_hat) in zip(steps, diffusion.p_sample_loop(net, noise), strict=True):
        if step in marks:
            frames.append(torch.stack([x[:10], x_hat[:10]]))
    return x.clamp(-1, 1) if diffusion.clip_denoised else x, torch.stack(frames)


def draw(model, diffusion, args, name):
    """Write a grid of samples, and how ten of them came out of the noise: x_t, below it x_hat."""
    from torchvision.utils import save_image

    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp):
        x, frames = sample(model, diffusion, args)
    if args.dataset == "latents":  # for the decoder of an autoencoder to turn into pixels
        return torch.save(x.cpu(), Path(args.out, name).with_suffix(".pt"))
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
    for key in ("timesteps", "heads", "dataset"):  # which no shape gives away
        if key in saved and saved[key] != getattr(args, key):
            fail(f"--{key} {getattr(args, key)}: {path} was trained with {saved[key]}; type that")
    begin(args)
    draw(model, diffusion, args, "samples.png")
    return 0


@torch.inference_mode()
def evaluate(model, diffusion, x, y, args):
    """Mean of eq. (9) over images or latents x (N, C, H, W) of classes y (N,), t spread evenly."""
    model.eval()
    torch.manual_seed(args.seed)
    x0, noise = to_model(x), torch.randn(x.shape, device=x.device)
    t = torch.arange(len(x), device=x.device) * args.timesteps // len(x)
    eps = model(diffusion.q_sample(x0, t, noise), diffusion.times[t], y).chunk(2, 1)[0]
    return {"test_loss": F.mse_loss(eps, noise).item()}


# Copied from diffusion/ddpm.py
def frechet(x, y):
    """Frechet distance between Gaussians fitted to x (N, D) and y (M, D)."""
    x, y = x.double().cpu(), y.double().cpu()
    cov_x, cov_y = x.T.cov(), y.T.cov()
    root = torch.linalg.eigvals(cov_x @ cov_y).real.clamp(min=0).sqrt().sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    return (gap + cov_x.trace() + cov_y.trace() - 2 * root).item()


def smoke(args):
    """A short run in a temporary folder; samples of its checkpoint, read by another classifier."""
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(args.seed)
    (x, y), _ = load_data(args)
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        model, diffusion = build(args)
        gap = model(to_model(x), 0 * y, y).abs().max().item()  # at the start nothing comes out
        load_weights(f"{args.out}/last.pt", model)
    x = to_model(x).flatten(1).cpu()
    judge = LogisticRegression(max_iter=300).fit(x, y.cpu())
    asked, told = torch.arange(args.n_samples) * args.n_classes // args.n_samples, []
    for scale in (1.0, args.cfg_scale):
        args.cfg_scale = scale
        fakes = sample(model, diffusion, args)[0].cpu().flatten(1)
        told.append((judge.predict(fakes) == asked.numpy()).mean())
    metrics["frechet"] = frechet(fakes, x)
    return report(args, **metrics, obeys=told[1], guidance_gain=told[1] - told[0], start_gap=gap)


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
    add("--dataset", choices=[*DATA], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--img_size", type=at_least(4), help="side of the images; default: that of the data set")
    add("--channels", type=int, choices=[1, 3], help="of a folder's images: 1 grey, 3 colour")
    add("--n_classes", type=at_least(1), help="of a folder or latents; default: the data set's")
    add("--flip", action="store_true", help="mirror half of the images: photos yes, digits no")
    add("--config", choices=[*CONFIGS], default="laptop", help="named set of defaults")
    add("--patch_size", type=at_least(1), default=2, help="P, side of a token")
    add("--dim", type=at_least(8), default=96, help="D, width of the transformer")
    add("--depth", type=at_least(1), default=4, help="blocks")
    add("--heads", type=at_least(1), default=4, help="of attention")
    add("--label_dropout", type=at_least(0.0, 1.0), default=0.1, help="share trained without class")
    add("--label_init_std", type=at_least(0.0), default=0.02, help="of the table of classes")
    add("--timesteps", type=at_least(21), default=200, help="T, doses of noise")
    add("--sampling_steps", type=at_least(2), help="steps from noise to image; default: all of T")
    add("--cfg_scale", type=at_least(0.0), default=2.0, help="s of eq. (25); 1: no guidance")
    add("--class_id", type=at_least(0), help="class to draw; default: all in turn")
    add("--sample_interval", type=at_least(1), default=1000, help="steps between sample grids")
    add("--n_samples", type=at_least(1), default=100, help="images in a grid")
    add("--n_test", type=at_least(1), default=64, help="test images scored at the end")
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
    side, channels, n_classes = DATA[args.dataset]
    args.img_size, args.channels = args.img_size or side, args.channels or channels
    args.n_classes = args.n_classes or n_classes
    if args.dataset != "folder" and args.channels != channels:
        fail(f"--channels {args.channels}: {args.dataset} has {channels}; leave the flag out")
    if args.dataset not in ("folder", "latents") and args.n_classes != n_classes:
        fail(f"--n_classes {args.n_classes}: {args.dataset} has {n_classes}; leave the flag out")
    if args.img_size % args.patch_size:
        reason = f"is no multiple of --patch_size {args.patch_size}; change one of them"
        fail(f"--img_size {args.img_size}: {reason}")
    if args.dim % args.heads or args.dim % 4:
        fail(f"--dim {args.dim}: is no multiple of 4 and of --heads {args.heads}; try 64 or 384")
    if args.class_id is not None and args.class_id >= args.n_classes:
        fail(f"--class_id {args.class_id}: the classes are 0 to {args.n_classes - 1}; take one")
    if (args.sampling_steps or 0) > args.timesteps:
        reason = f"the process has but {args.timesteps} steps; take at most so many"
        fail(f"--sampling_steps {args.sampling_steps}: {reason}")
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
