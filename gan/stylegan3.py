# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""StyleGAN3: layers that do not alias, so that a picture moves as a whole, texture and all.

Papers: Karras, Aittala, Laine, Harkonen, Hellsten, Lehtinen & Aila, "Alias-Free Generative
Adversarial Networks", NeurIPS 2021, arXiv 2106.12423; the discriminator: Karras et al., CVPR 2020,
arXiv 1912.04958; the penalty R1: Mescheder, Geiger & Nowozin, ICML 2018, arXiv 1801.04406.

    w = f(z / rms(z)),  z ~ N(0, 1)              (1)  mapping f: fully connected layers
    W_i'' = W_i' / |W_i'|,  W_ijk' = s_j W_ijk,  s = A w      (2)  a style; rms(W_i), rms(s) 1
    x <- down(lrelu(up(conv(x / m, W'') + b)))   (3)  a layer; m: running rms(x)
    w <- w_mean + psi (w - w_mean)               (5)  truncation: fewer surprises, less variety
    L_D = softplus(-D(x)) + softplus(D(G(z))) + gamma / 2 |dD(x)/dx|^2      (6)  D's loss with R1
    L_G = softplus(-D(G(z)))                     (7)  non-saturating
    W = c W',  W' ~ N(0, 1),  c = 1 / sqrt(n)    (8)  equalised learning rate, n inputs; f: 0.01 c
    x <- (down(x) + lrelu(conv(lrelu(conv(x))))) / sqrt 2     (11)  D: residual blocks
    at every k-th step k times R1; Adam: c lr, b^c, c = k / (k + 1)         (13)  lazy
    x_c(p) = sin(2 pi (f_c . R (p - t) + phi_c))              (15)  the input; R and t: A w
    f_c = 2 (S / 4)^r,  f_t = 2^2.1 (S / 2^2.8)^r,  r = min(i / (N - 2), 1)  (16)  layer i of N
    EQ = 10 log10(2^2 / E (G(T z) - T G(z))^2)   (17)  decibels; T z: w is z's, the input is moved

A map stands for a signal, of which it has s samples a picture: enough, if no frequency lies above
s / 2. Convolutions move with their input, and so does the lrelu of a signal, but not the lrelu of
its samples: a corner has all frequencies, and what s / 2 cannot hold comes back as something else,
stuck to the pixels. So up reads the signal at twice the rate, and down takes away what is above
f_c, by sincs in Kaiser's window, 6 samples long, which are shut at f_t. At first f_t is far above
f_c, which is gentle; the last two layers use all that S samples can hold. The input is made of
waves and can be moved by any fraction; maps have a margin, as signals do not end at the border.
Config R (--rotation) can be turned, too: its kernels are 1x1, and its filters, jincs, are alike in
all directions.

(17) is measured for whole pixels (eq_t), for fractions (eq_t_frac) and for turns (eq_r; low without
--rotation). A row of OUT/translation.png and OUT/rotation.png is one w with the input moved.

Shapes: B batch, Z latent_dim, W w_dim, N n_layers, L = N + 2, C channels, S img_size; z (B, Z),
w (B, W), styles ws (B, L, W), images (B, C, S, S) in [-1, 1].
Unlike the paper: (17) reads moved pictures through a sinc of its own, without 3 pixels at the
border; the half-life of G's mean weights is shorter at first; all is done in float32. Pictures are
square, and there are no labels.
Official weights: names and shapes are those of NVlabs/stylegan3; a state dict of its G_ema (not the
pickled network, which runs code) loads by --weights.

    python stylegan3.py                         16x16 digits shipped with scikit-learn
    python stylegan3.py --config laptop_r       which can be turned as well
    python stylegan3.py --config faces64 --data_root data/faces64
    python stylegan3.py --sample --psi 0.7      from OUT/last.pt
    python stylegan3.py --smoke                 seconds; exits 1 unless all BARS are met
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
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 80, "sample_interval": 80, "batch_size": 16, "fmap_max": 16, "margin": 5}
SMOKE |= {"w_dim": 32, "latent_dim": 32, "lr": 4e-3, "gamma": 0.5, "ema_kimg": 0.2}
BARS = {"swd": (0.0, 0.38), "eq_t": (29.0, 200.0), "eq_t_frac": (42.0, 200.0)}
PAPER = {"latent_dim": 512, "w_dim": 512, "n_layers": 14, "fmap_max": 512, "fmap_base": 32768}
PAPER |= {"gamma": 32.8, "ema_kimg": 10.0, "dataset": "folder", "img_size": 1024}
PAPER |= {"n_steps": 781_250, "sample_interval": 5000}
CONFIGS = {"laptop": {}, "laptop_r": {"rotation": True}, "ffhq_t": PAPER}
CONFIGS["ffhq_r"] = PAPER | {"rotation": True, "blur_sigma": 10.0}
CONFIGS["faces64"] = {"dataset": "folder", "img_size": 64, "channels": 1, "n_steps": 30_000}
CONFIGS["faces64"] |= {"fmap_max": 128, "fmap_base": 2048, "w_dim": 128, "latent_dim": 128}


# --- model ---------------------------------------------------------------------------------------
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


# Copied from gan/stylegan2.py
class EqualLinear(nn.Module):
    """x (..., n) -> (..., m)."""

    def __init__(self, n, m, lr_mul=1.0, bias=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n) / lr_mul)
        self.bias = nn.Parameter(torch.full((m,), bias))
        self.scale, self.lr_mul = lr_mul / n**0.5, lr_mul

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)  # eq. (8)


# Copied from gan/stylegan2.py
class EqualConv2d(nn.Module):
    """x (B, n, h, w) -> (B, m, h, w), by an odd kernel."""

    def __init__(self, n, m, kernel, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(m)) if bias else None
        self.register_buffer("resample_filter", TAPS[:, None] * TAPS)  # unused, official
        self.scale, self.padding = 1 / (n * kernel**2) ** 0.5, kernel // 2

    def forward(self, x, stride=1):
        padding = self.padding if stride < 2 else 0  # upfirdn2d has left a rim
        return F.conv2d(x, self.weight * self.scale, self.bias, stride, padding)  # eq. (8)


# Copied from gan/stylegan2.py
def with_filter(parts):  # under the name that the official blocks give it
    block = nn.ModuleDict(parts)
    block.register_buffer("resample_filter", TAPS[:, None] * TAPS)
    return block


# Differs from gan/stylegan2.py
def upfirdn2d(x, taps, up=1, down=1, padding=0):
    """Maps x (B, C, h, w), up - 1 zeros put between pixels, convolved with even taps, (k, k) or one
    (k,) a side; every down-th pixel stays; padding: that of torch's (transposed) convolution."""
    conv, step, C = F.conv_transpose2d if up > 1 else F.conv2d, max(up, down), x.shape[1]
    if taps.ndim > 1:
        return conv(x, taps.expand(C, 1, -1, -1), None, step, padding, groups=C)
    taps = taps[:, None].expand(C, 1, -1, -1)
    x = conv(x, taps, None, (step, 1), (padding, 0), groups=C)
    return conv(x, taps.mT, None, (1, step), (0, padding), groups=C)


# Copied from gan/stylegan2.py
def leaky(x):
    return F.leaky_relu(x, 0.2) * 2**0.5  # about as large as x was


# Differs from gan/stylegan2.py
def modulated_conv(x, weight, style, gain):
    """Maps x (B, n, h, w), times gain, -> (B, m, h + k - 1, w + k - 1), by weight (m, n, k, k) that
    style (B, n) scales anew for each image. It is the maps that are scaled here: the same."""
    weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
    style = style * style.square().mean().rsqrt()
    x = F.conv2d(x * (style * gain)[..., None, None], weight, padding=weight.shape[2] - 1)
    power = F.linear(style.square(), weight.square().sum((2, 3)))  # (B, m)
    return x * (power + 1e-8).rsqrt()[..., None, None]  # eq. (2)


class Signal:
    """What the i-th layer makes: nothing half_width above the cutoff; maps of side, in all."""

    def __init__(self, i, size, n_layers, margin, fmap_max, fmap_base):
        r = min(i / (n_layers - 2), 1)
        self.cutoff, stop = 2 * (size / 4) ** r, 2**2.1 * (size / 2**2.8) ** r  # eq. (16)
        self.rate = 2 ** math.ceil(math.log2(min(2 * stop, size)))  # samples a picture
        self.half_width = max(stop, self.rate / 2) - self.cutoff
        self.side = self.rate + 2 * margin if i < n_layers - 1 else size
        self.maps = max(1, round(min(fmap_max, fmap_base / 2 / self.cutoff)))


class SynthesisInput(nn.Module):
    """w (B, W) -> maps (B, C, h, w) of a signal: waves that w, and transform, shift and turn."""

    def __init__(self, w_dim, signal):
        super().__init__()
        self.signal, n = signal, signal.maps
        freqs = torch.randn(n, 2)
        r = freqs.norm(dim=1, keepdim=True)
        self.weight, self.affine = nn.Parameter(torch.randn(n, n)), EqualLinear(w_dim, 4)
        nn.init.zeros_(self.affine.weight)  # at first nothing is moved or turned
        self.affine.bias = nn.Parameter(torch.eye(4)[0])
        self.register_buffer("transform", torch.eye(3))  # from a place in the picture to one here
        self.register_buffer("freqs", freqs / (r * (r**2 / 4).exp()) * signal.cutoff)
        self.register_buffer("phases", torch.rand(n) - 0.5)

    def forward(self, _, w):
        signal, t = self.signal, self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        turn = torch.stack([t[:, 0], -t[:, 1], t[:, 1], t[:, 0]], 1).unflatten(1, (2, 2))
        freqs = self.freqs @ turn  # (B, C, 2)
        phases = self.phases + (freqs @ (self.transform[:2, 2] - t[:, 2:])[..., None])[..., 0]
        freqs = freqs @ self.transform[:2, :2]
        at = (torch.arange(signal.side).to(w) + 0.5 - signal.side / 2) / signal.rate
        angle = freqs[..., :1, None] * at + freqs[..., 1:, None] * at[:, None]  # (B, C, h, w)
        x = (2 * math.pi * (angle + phases[..., None, None])).sin()  # eq. (15)
        over = (freqs.norm(dim=2) - signal.cutoff) / (signal.rate / 2 - signal.cutoff)
        x = x * (1 - over).clamp(0, 1)[..., None, None]  # what is too fine, if magnified, fades
        x = F.conv2d(x, self.weight[..., None, None] / len(self.weight) ** 0.5)
        return x.contiguous(memory_format=torch.channels_last)  # filters are faster so


class SynthesisLayer(nn.Module):
    """Maps x (B, n, h, w) of Signal old and w (B, W) -> those of new; left: layers behind it."""

    def __init__(self, w_dim, old, new, rotation, left, decay):
        super().__init__()
        self.affine, self.left, self.decay = EqualLinear(w_dim, old.maps, bias=1.0), left, decay
        kernel, dense = 1 if rotation or not left else 3, 2 * max(old.rate, new.rate)
        self.weight = nn.Parameter(torch.randn(new.maps, old.maps, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(new.maps))
        self.register_buffer("magnitude_ema", torch.ones([]))
        if left:
            self.up, self.down = up, down = dense // old.rate, dense // new.rate
            self.register_buffer("up_filter", lowpass(6 * up, old, dense))
            down_filter = lowpass(6 * down, new, dense, rotation and left > 2)
            self.register_buffer("down_filter", down_filter)
            self.crop = ((old.side + kernel + 4) * up - (new.side + 5) * down) // 2

    def forward(self, x, w):
        if self.training:
            self.magnitude_ema.lerp_(x.detach().square().mean(), 1 - self.decay)
        style, gain = self.affine(w), self.magnitude_ema.rsqrt()
        if not self.left:
            style = style * gain / len(self.weight[0]) ** 0.5
            return F.conv2d(x * style[..., None, None], self.weight, self.bias).to(w)
        x = modulated_conv(x, self.weight, style, gain) + self.bias[:, None, None]
        return filtered_leaky(x, self.up_filter, self.down_filter, self.up, self.down, self.crop)


# Differs from gan/gan.py
class Generator(nn.Module):
    """Noise (B, Z) -> images (B, C, S, S)."""

    def __init__(self, latent_dim, w_dim, n_mapping, channels, stages, rotation, decay):
        super().__init__()
        stages[-1].maps = channels
        sizes = enumerate(pairwise([latent_dim] + [w_dim] * n_mapping))
        layers = {f"fc{at}": EqualLinear(*pair, lr_mul=0.01) for at, pair in sizes}
        self.mapping, self.num_ws = nn.ModuleDict(layers), len(stages) + 1
        self.mapping.register_buffer("w_avg", torch.zeros(w_dim))
        self.synthesis = nn.ModuleDict({"input": SynthesisInput(w_dim, stages[0])})
        for at, (old, new) in enumerate(pairwise([stages[0], *stages])):
            layer = SynthesisLayer(w_dim, old, new, rotation, len(stages) - 1 - at, decay)
            self.synthesis[f"L{at}_{new.side}_{new.maps}"] = layer

    def style(self, z):
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.mapping.values():
            z = leaky(layer(z))
        if self.training:
            self.mapping.w_avg.lerp_(z.detach().mean(0).to(self.mapping.w_avg), 0.002)
        return z.to(self.mapping.w_avg)  # (B, W)  eq. (1)

    def draw(self, ws):  # (B, L, W)
        x = None
        for layer, w in zip(self.synthesis.values(), ws.unbind(1), strict=True):
            x = layer(x, w)
        return x / 4  # (B, C, S, S)

    def spread(self, w, psi=1.0):
        """The same w (B, W), truncated, for all layers: (B, L, W)."""
        return self.mapping.w_avg.lerp(w, psi)[:, None].expand(-1, self.num_ws, -1)  # eq. (5)

    def forward(self, z, psi=1.0):
        return self.draw(self.spread(self.style(z), psi))


# Copied from gan/stylegan2.py
class Discriminator(nn.Module):
    """Images (B, C, S, S) -> scores (B,)."""

    def __init__(self, channels, widths):
        super().__init__()
        for at, (n, m) in enumerate(pairwise(widths[::-1])):
            parts = {"conv0": EqualConv2d(n, n, 3), "conv1": EqualConv2d(n, m, 3)}
            parts |= {"skip": EqualConv2d(n, m, 1, bias=False)}
            parts |= {} if at else {"fromrgb": EqualConv2d(channels, n, 1)}
            self.add_module(f"b{2 << len(widths) - at}", with_filter(parts))
        parts = {"conv": EqualConv2d(m + 1, m, 3), "fc": EqualLinear(m * 16, m)}
        self.b4 = nn.ModuleDict(parts | {"out": EqualLinear(m, 1)})

    def forward(self, x):
        *blocks, last = self.children()
        x = leaky(blocks[0].fromrgb(x))
        for block in blocks:
            y = block.skip(upfirdn2d(x, block.resample_filter, down=2, padding=1))
            x = upfirdn2d(leaky(block.conv0(x)), block.resample_filter, padding=2)
            x = (y + leaky(block.conv1(x, 2))) / 2**0.5  # eq. (11)
        x = torch.cat([x, group_deviation(x)], 1)
        x = leaky(last.fc(leaky(last.conv(x)).flatten(1)))
        return last.out(x)[:, 0]  # (B,)


# Copied from gan/stylegan.py
def group_deviation(x, size=4):
    """How much x (B, C, h, w) varies within its group of images: a map (B, 1, h, w) that is even,
    by which a generator of one picture alone is caught."""
    size = size if len(x) % size == 0 else 1 if len(x) < 2 else len(x)
    groups = x.view(size, -1, *x.shape[1:])  # image i is in group i modulo B / size
    deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3), keepdim=True)
    return deviation.repeat(size, 1, *x.shape[2:])


# --- the idea ------------------------------------------------------------------------------------
# Of scores, -log D is softplus(-score) and -log(1 - D) is softplus(score): finite, however sure D.
# Copied from gan/stylegan.py
def d_loss(real_score, fake_score):
    return F.softplus(-real_score).mean() + F.softplus(fake_score).mean()  # eq. (6)


# Copied from gan/stylegan.py
def g_loss(fake_score):
    return F.softplus(-fake_score).mean()  # eq. (7)


def lowpass(n, signal, rate, radial=False):
    """n taps, (n, n) if radial, that let a Signal's frequencies pass and no others, at a rate."""
    t = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / rate
    stop = 2.285 * (n - 1) * math.pi * 4 * signal.half_width / rate + 7.95  # decibels, by Kaiser
    low, high = max(0, stop - 21), 0.1102 * (stop - 8.7)
    beta = high if stop > 50 else 0.5842 * low**0.4 + 0.07886 * low
    window = torch.kaiser_window(n, periodic=False, beta=beta, dtype=torch.float64)
    taps = torch.sinc(2 * signal.cutoff * t) * window
    if radial:
        r, window = math.pi * torch.hypot(t[:, None], t), window[:, None] * window
        taps = torch.special.bessel_j1(2 * signal.cutoff * r) / r * window
    return (taps / taps.sum()).float()


def filtered_leaky(x, up_taps, down_taps, up, down, crop, slope=0.2):
    """lrelu of the signal of maps x (B, C, h, w), crop of whose dense samples go at each border."""
    x = upfirdn2d(x, up_taps * up, up=up, padding=crop)
    return upfirdn2d(F.leaky_relu(x, slope), down_taps, down=down) * 2**0.5  # eq. (3)


# Copied from gan/stylegan.py
def r1_penalty(score, real):
    """Half the squared slope of scores (B,) at images real (B, C, S, S), on average."""
    (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean() / 2


def blurred(images, sigma):
    """images (B, C, S, S) out of focus; sigma, in pixels, is to the base 2."""
    if (n := int(3 * sigma)) < 1:
        return images
    taps = (-((torch.arange(-n, n + 1, device=images.device) / sigma) ** 2)).exp2()
    return upfirdn2d(images, taps / taps.sum(), padding=n)


# Differs from gan/gan.py
def d_step(generator, discriminator, optimizer, real, z, sigma):
    """One step of the discriminator; the fakes carry no graph: the generator feels nothing."""
    with torch.no_grad():
        fake = blurred(generator(z), sigma)
    loss = d_loss(discriminator(blurred(real, sigma)), discriminator(fake))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# Differs from gan/gan.py
def g_step(generator, discriminator, optimizer, z, sigma):
    """One step of the generator; the gradient passes through the discriminator, not into it."""
    discriminator.requires_grad_(False)
    loss = g_loss(discriminator(blurred(generator(z), sigma)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    discriminator.requires_grad_(True)
    return loss.detach()


# Copied from gan/gan.py
def update_ema(ema, generator, decay):
    """Draw the averaged weights a little, 1 - decay, towards the generator's."""
    with torch.no_grad():
        torch._foreach_lerp_([*ema.parameters()], [*generator.parameters()], 1 - decay)
        torch._foreach_copy_([*ema.buffers()], [*generator.buffers()])


# --- data ----------------------------------------------------------------------------------------
# Side and channels that the images have, or get where they differ among themselves (folder).
SIZES = {"digits": (16, 1), "mnist": (32, 1), "fashion_mnist": (32, 1)}
SIZES |= {"cifar10": (32, 3), "folder": (64, 3)}


# Copied from gan/gan.py
def load_folder(root, size):
    """All images below root, cropped square: bytes x (N, 3, S, S), and their folders y (N,)."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    paths = sorted(p for p in Path(root).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
    if len(paths) < 20:
        fail(f"--data_root {root}: holds {len(paths)} images; name 20 or more, or --dataset digits")
    images = []
    for path in paths:
        try:
            images.append(pil_to_tensor(center_crop(resize(default_loader(path), size), size)))
        except (OSError, ValueError, SyntaxError) as error:
            fail(f"--data_root {root}: {path.name} cannot be read ({error}); mend or remove it")
    folders = sorted({path.parent for path in paths})
    return torch.stack(images), torch.tensor([folders.index(path.parent) for path in paths])


def load_data(args):
    """Return (x, y) to learn from and (x, y) held out: images x (N, C, S, S) in [-1, 1] and their
    classes y (N,), whole on the device."""
    if args.dataset in ("digits", "folder"):
        if args.dataset == "folder":
            x, y = load_folder(args.data_root, args.img_size)
        else:
            from sklearn.datasets import load_digits

            x, y = map(torch.from_numpy, load_digits(return_X_y=True))
            x = x.view(-1, 1, 8, 8) * 255 / 16  # from 0..16 to the range of bytes
        order, n = torch.randperm(len(x)), len(x) * 4 // 5
        x, y = x[order], y[order]
    else:
        from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

        read = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "cifar10": CIFAR10}[args.dataset]
        try:
            parts = [read(args.data_root, train=part, download=True) for part in (True, False)]
        except Exception as error:  # whatever the files hold
            where = f"--dataset {args.dataset}: cannot be read from --data_root {args.data_root}"
            fail(f"{where} nor downloaded; --dataset digits needs neither ({error!r})")
        x, n = torch.cat([torch.as_tensor(part.data) for part in parts]), len(parts[0])
        x = x.view(*x.shape[:3], -1).movedim(3, 1)  # (N, C, S, S)
        y = torch.cat([torch.as_tensor(part.targets) for part in parts])
    x, size = x.float() / 127.5 - 1, args.img_size
    if (x.shape[3], size) == (28, 32):
        x = F.pad(x, (2, 2, 2, 2), value=-1)  # a black margin keeps strokes sharp
    elif x.shape[3] != size:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    if x.shape[1] != args.channels:  # colour to grey, or grey to colour
        x = x.mean(1, keepdim=True).expand(-1, args.channels, -1, -1)
    x, y = x.contiguous().to(args.device), y.to(args.device)
    return (x[:n], y[:n]), (x[n:], y[n:])


# --- train, sample, evaluate, smoke --------------------------------------------------------------
def build(args):
    """Return both players, on the device; --weights are the generator's."""
    sides = [2**i for i in range(2, args.img_size.bit_length())]
    widths = [min(args.fmap_max, max(1, args.fmap_base // side)) for side in sides]
    form = args.img_size, args.n_layers, args.margin
    maps = [(1 + args.rotation) * n for n in (args.fmap_max, args.fmap_base)]
    stages = [Signal(i, *form, *maps) for i in range(args.n_layers + 1)]
    dims, decay = (args.latent_dim, args.w_dim, args.n_mapping), 0.5 ** (args.batch_size / 20_000)
    generator = Generator(*dims, args.channels, stages, args.rotation, decay)
    discriminator = Discriminator(args.channels, widths)
    if args.weights:
        load_weights(args.weights, generator)
    return generator.to(args.device), discriminator.to(args.device)


# Copied from gan/gan.py
def noise(args, n):
    return torch.randn(n, args.latent_dim, device=args.device)  # (N, Z)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of 500 fakes."""
    torch.manual_seed(args.seed)
    data = load_data(args)
    generator, discriminator = players = build(args)
    adam = {"lr": args.lr, "betas": (args.b1, args.b2), "fused": True}
    c = args.r1_every / (args.r1_every + 1)
    slower = {"lr": c * 0.8 * args.lr, "betas": (args.b1**c, args.b2**c)}  # eq. (13)
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam | slower)
    ema = copy.deepcopy(generator).eval()  # this one draws
    state = {"generator": generator, "discriminator": discriminator, "ema": ema}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    x, z_fixed = data[0][0], noise(args, 500)  # the same z in every picture: progress can be seen
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros(2, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                i = torch.randint(len(x), (args.batch_size,), device=args.device)
                sigma = args.blur_sigma * max(0.0, 1 - step / 6250)
                d = d_step(*players, optimizer_d, x[i], noise(args, len(i)), sigma)
                g = g_step(*players, optimizer_g, noise(args, len(i)), sigma)
                if step % args.r1_every == 0:
                    seen = blurred(real := x[i].requires_grad_(), sigma)
                    r1 = r1_penalty(discriminator(seen), real)
                    optimizer_d.zero_grad()
                    (args.r1_every * args.gamma * r1).backward()  # eq. (13)
                    optimizer_d.step()
                decay = 0.5 ** (args.batch_size / (1000 * args.ema_kimg))
                update_ema(ema, generator, min(decay, (1 + step) / (10 + step)))
                total += torch.stack([g, d])
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            fakes = sample(ema, z_fixed)
            picture(args, f"samples_{step:06d}", fakes[: args.n_samples])
            g, d = (total / n).tolist()
            log(args, step=step, d_loss=d, g_loss=g, **evaluate(fakes, data))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    draw(args, ema, z_fixed)
    return evaluate(sample(ema, z_fixed), data) | equivariance(ema, z_fixed[:32])


@torch.inference_mode()
def sample(generator, z, psi=1.0):
    """Images (N, C, S, S) of z (N, Z)."""
    return torch.cat([generator(part, psi) for part in z.split(100)])


@torch.inference_mode()
def draw(args, generator, z):
    """OUT/translation.png and OUT/rotation.png: a row is one w under moved inputs;
    OUT/truncation.png: psi from -1 to 1; OUT/interpolation.png: from w to w'."""
    w, moved = generator.style(z[:16]), copy.deepcopy(generator)
    for name, step, turn in ("translation", 1 / 14, 0.0), ("rotation", 0.0, math.pi / 4):
        spots = [(step * (i - 3.5), step * (i - 3.5) / 2, turn * i) for i in range(8)]
        columns = [draw_moved(moved, moved.spread(w[:8]), *spot) for spot in spots]
        picture(args, name, torch.stack(columns, 1).flatten(0, 1), 8)
    psis = torch.linspace(-1, 1, 8).tolist()
    truncated = [generator.spread(row[None], psi) for row in w[:8] for psi in psis]
    picture(args, "truncation", generator.draw(torch.cat(truncated)), 8)
    share = torch.linspace(0, 1, 8, device=w.device)[:, None]
    between = torch.lerp(w[:8, None], w[8:, None], share).flatten(0, 1)  # (64, W)
    picture(args, "interpolation", generator.draw(generator.spread(between)), 8)


# Differs from gan/gan.py
def picture(args, name, images, nrow=None):
    """Write OUT/name.png, a square of images; black is -1 and white is 1, whatever they hold."""
    from torchvision.utils import save_image

    path, nrow = Path(args.out, f"{name}.png"), nrow or math.ceil(len(images) ** 0.5)
    images = F.interpolate(images, scale_factor=max(1, 32 // args.img_size))
    save_image(images, path, nrow=nrow, normalize=True, value_range=(-1, 1))


def generate(args):
    """The work of --sample: OUT/samples.png."""
    args.weights = args.weights or f"{args.out}/last.pt"
    torch.manual_seed(args.seed)
    generator = build(args)[0].eval()
    begin(args)
    picture(args, "samples", sample(generator, noise(args, args.n_samples), args.psi))
    print(f"{args.out}/samples.png")
    return 0


@torch.inference_mode()
def evaluate(fakes, data):
    """Three measures of fakes (N, C, S, S); a cheat may do well by one or two, not by all.
    swd: sliced Wasserstein distance to held-out images (along a line, sorting is the best plan).
    classes: exp(entropy) of their classes, by a vote of 10 nearest neighbours in the data.
    confidence: the winner's share of votes; noise, blurs and blends lie between the classes."""
    (x, y), (real, _) = data
    n = min(len(fakes), len(real))
    fakes, real, x = fakes[:n].flatten(1), real[:n].flatten(1), x[:10_000].flatten(1)
    torch.manual_seed(0)  # the same lines each time
    lines = F.normalize(torch.randn(x.shape[1], 256, device=x.device), dim=0)
    swd = ((fakes @ lines).sort(0)[0] - (real @ lines).sort(0)[0]).abs().mean()
    near = torch.cdist(fakes, x).topk(10, largest=False)[1]  # (N, 10)
    confidence, winner = F.one_hot(y[near]).float().mean(1).max(1)  # (N,), (N,)
    share = F.one_hot(winner).float().mean(0)  # (classes,)
    classes = torch.distributions.Categorical(share).entropy().exp()
    return {"swd": swd.item(), "classes": classes.item(), "confidence": confidence.mean().item()}


def draw_moved(generator, ws, x=0.0, y=0.0, angle=0.0):
    """What it draws of ws, the input moved by x, y (shares of the side) and turned by angle."""
    c, s = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[c, s, -x], [-s, c, -y], [0.0, 0.0, 1.0]])  # where a point comes from
    generator.synthesis.input.transform.copy_(matrix)
    return generator.draw(ws)


def read(images, matrix, border):
    """Images (N, C, S, S) moved, between pixels by a sinc, and where (S, S) they are known."""
    S, t = images.shape[3], (torch.arange(47) - 23) / 4  # a quarter of a pixel is bicubic's part
    taps = torch.sinc(t) * torch.kaiser_window(47, periodic=False, beta=6.0)
    dense = upfirdn2d(images, taps.to(images), up=4, padding=23)  # (N, C, 4 S - 3, 4 S - 3)
    theta = matrix[:2] * matrix.new_tensor([1.0, 1.0, 2.0])  # torch's side is 2
    grid = F.affine_grid(theta.expand(len(images), 2, 3), images.shape, align_corners=False)
    inside = grid[0].abs().amax(2) < 1 - (2 * border + 0.8) / S
    return F.grid_sample(dense, grid * S / (S - 1), "bicubic", align_corners=True), inside


@torch.no_grad()
def equivariance(generator, z):
    """EQ-T, for whole pixels and for fractions, and EQ-R, in decibels, of z (N, Z)."""
    torch.manual_seed(0)
    generator, total = copy.deepcopy(generator), {}
    for part in z.split(4):
        ws = generator.spread(generator.style(part))
        images, (x, y, a) = draw_moved(generator, ws), torch.rand(3).tolist()
        x, y, S = x / 4 - 0.125, y / 4 - 0.125, images.shape[3]
        spots = {"eq_t": (round(x * S) / S, round(y * S) / S), "eq_t_frac": (x, y)}
        for key, spot in (spots | {"eq_r": (0.0, 0.0, 2 * math.pi * a)}).items():
            there, border = draw_moved(generator, ws, *spot), 0 if key == "eq_t" else 3
            wanted, inside = read(images, generator.synthesis.input.transform, border)
            error = (there - wanted).square()[..., inside].mean()
            total[key] = total.get(key, 1e-20) + error / math.ceil(len(z) / 4)
    return {key: 10 * math.log10(4 / error) for key, error in total.items()}  # eq. (17)


def smoke(args):
    """A short run in a temporary folder."""
    with tempfile.TemporaryDirectory() as args.out:
        return report(args, **train(args))


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
    add("--n_steps", type=at_least(0), default=1000, help="optimiser steps in total")
    add("--batch_size", type=at_least(2), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=2.5e-3, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.0, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.99, help="adam: decay of its square")
    add("--gamma", type=at_least(0.0), default=1.0, help="weight of the penalty R1 of eq. (6)")
    add("--r1_every", type=at_least(1), default=16, help="steps from one R1 to the next")
    add("--blur_sigma", type=at_least(0.0), default=0.0, help="pixels of blur for D, at first")
    add("--ema_kimg", type=at_least(1e-9), default=1.0, help="half-life of G's mean weights")
    add("--config", choices=CONFIGS, default="laptop", help="named set of defaults")
    add("--rotation", action="store_true", help="config R: pictures may be turned")
    add("--n_layers", type=at_least(3), default=6, help="layers N of the synthesis")
    add("--margin", type=at_least(0), default=10, help="pixels of the maps beyond each border")
    add("--fmap_max", type=at_least(1), default=24, help="most channels of a layer")
    add("--fmap_base", type=at_least(1), default=1024, help="channels times the side of a map")
    add("--n_mapping", type=at_least(1), default=2, help="layers of the mapping f")
    add("--w_dim", type=at_least(1), default=64, help="size W of a style")
    add("--latent_dim", type=at_least(1), default=64, help="size Z of the noise")
    add("--dataset", choices=[*SIZES], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--img_size", type=at_least(1), help="side of the images; default: that of the data set")
    add("--channels", type=int, choices=[1, 3], help="1 grey, 3 colour; default: as the data set")
    add("--sample_interval", type=at_least(1), default=500, help="steps between sample grids")
    add("--n_samples", type=at_least(1, 1001), default=64, help="images in a grid")
    add("--weights", help="state dict or checkpoint to load")
    add("--psi", type=at_least(-9.0, 9.0), default=0.7, help="psi of eq. (5), for --sample")
    add("--sample", action="store_true", help="only draw, from --weights or OUT/last.pt")
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
    size, channels = SIZES[args.dataset]
    args.img_size, args.channels = args.img_size or size, args.channels or channels
    if args.img_size not in (8, 16, 32, 64, 128, 256, 512, 1024):
        fail(f"--img_size {args.img_size}: 4x4 maps are doubled; take 8, 16, 32 ... 1024")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.sample:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
