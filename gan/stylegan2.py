# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""StyleGAN2: styles scale the weights of convolutions, and a step in w changes pictures evenly.

Papers: Karras, Laine, Aittala, Hellsten, Lehtinen & Aila, "Analyzing and Improving the Image
Quality of StyleGAN", CVPR 2020, arXiv 1912.04958; W+: Abdal, Qin & Wonka, "Image2StyleGAN", ICCV
2019, arXiv 1904.03189; the penalty R1: Mescheder, Geiger & Nowozin, ICML 2018, arXiv 1801.04406.

    w = f(z / rms(z)),  z ~ N(0, 1)              (1)  mapping f: fully connected layers
    W_i'' = W_i' / |W_i'|,  W_ijk' = s_j W_ijk,  s = A w      (2)  a style: (de)modulated weights
    x <- lrelu(conv(x, W'') + B n + b)           (3)  a layer; n: noise, one number a pixel
    w of layers before a cut, w' behind it       (4)  mixing: neighbouring styles need not agree
    w <- w_mean + psi (w - w_mean)               (5)  truncation: fewer surprises, less variety
    L_D = softplus(-D(x)) + softplus(D(G(z))) + gamma / 2 |dD(x)/dx|^2      (6)  D's loss with R1
    L_G = softplus(-D(G(z)))                     (7)  non-saturating
    W = c W',  W' ~ N(0, 1),  c = gain / sqrt(n) (8)  equalised learning rate, n inputs; f: 0.01 c
    l_W = E d(G(w), G(lerp(w, w', e))) / e^2     (9)  path length, to judge by
    image <- up(image) + rgb(x)                  (10)  G: each size adds its part; no growing
    x <- (down(x) + lrelu(conv(lrelu(conv(x))))) / sqrt 2     (11)  D: residual blocks
    L_path = E (|J^T n| - a)^2,  J = dG(w)/dw,  n ~ N(0, 1)   (12)  a: running mean of |J^T n|
    at every k-th step k L_path, or k times R1; Adam: c lr, b^c, c = k / (k + 1)     (13)  lazy
    w = argmin d(G(w), x)                        (14)  projection of an image x: in W, and in W+

AdaIN divided each map by its own deviation, and droplets grew in the pictures, by which G told what
that hid. (2) divides by the deviation that maps of variance 1 would have after modulation: the size
stays, and what a map holds counts. As s_j and |W_i'| are numbers of one image, the maps can be
scaled in place of the weights: one convolution for the batch (modulated_conv) is what a convolution
with a group for each image (grouped_conv) is, and faster. (12) asks that a step in w changes the
picture by the same length in all directions and everywhere; its slopes are of random sums of pixels
n, over sqrt(pixels), the mean over layers of |.|^2. That makes w easy to find again: --project. W+
has one w for each layer, and draws more closely what it is harder to edit by.

d in (9) and (14) is the mean squared difference at three scales, where the paper has VGG features,
so numbers compare only with one another. OUT/mixing.png takes the first styles from its left column
and the others from its top row; in the corner is the picture of w_mean.

Shapes: B batch, Z latent_dim, W w_dim, L layers = 2 log2(S) - 2, C channels, S img_size; z (B, Z),
w (B, W), styles ws (B, L, W), images (B, C, S, S) in [-1, 1].
Unlike the paper: the projection leaves the noise as it is, where the paper fits it as well, kept
white by a penalty; it takes the schedule of PTI (arXiv 2106.05744). The half-life of G's mean
weights is shorter at first. No mirrored pictures are learnt from. --config paper256 has the numbers
of the official code in PyTorch, not of the paper.
Official weights: names and shapes are those of NVlabs/stylegan2-ada-pytorch; a state dict of its
G_ema (not the pickled network, which runs code) loads by --weights, as in --config ffhq --sample.

    python stylegan2.py                         16x16 digits shipped with scikit-learn
    python stylegan2.py --config faces64 --data_root data/faces64
    python stylegan2.py --sample --psi 0.7      from OUT/last.pt
    python stylegan2.py --project digit.png     the same, run backwards
    python stylegan2.py --smoke                 seconds; exits 1 unless all BARS are met
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
SMOKE = {"n_steps": 240, "sample_interval": 240, "fmap_max": 16, "w_dim": 32, "n_mapping": 2}
SMOKE |= {"latent_dim": 32, "lr": 3e-3, "gamma": 0.5, "ema_kimg": 0.2}
BARS = {"swd": (0.0, 0.3), "classes": (2.5, 10.0), "form_gap": (0.0, 1e-4)}
PAPER = {"latent_dim": 512, "w_dim": 512, "n_mapping": 8, "fmap_max": 512, "fmap_base": 16384}
PAPER |= {"batch_size": 32, "lr": 2e-3, "gamma": 10.0, "ema_kimg": 10.0}
CONFIGS = {"laptop": {}, "ffhq": PAPER | {"dataset": "folder", "img_size": 1024}}
CONFIGS["ffhq"] |= {"n_steps": 781_250, "fmap_base": 32768, "sample_interval": 5000}
CONFIGS["paper256"] = CONFIGS["ffhq"] | {"img_size": 256, "fmap_base": 16384, "n_steps": 390_625}
CONFIGS["paper256"] |= {"batch_size": 64, "lr": 2.5e-3, "gamma": 1.0, "ema_kimg": 20.0}
CONFIGS["faces64"] = {"dataset": "folder", "img_size": 64, "channels": 1, "n_steps": 30_000}
CONFIGS["faces64"] |= {"fmap_max": 128, "fmap_base": 2048, "w_dim": 128, "latent_dim": 128}


# --- model ---------------------------------------------------------------------------------------
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


# Differs from gan/stylegan.py
class EqualLinear(nn.Module):
    """x (..., n) -> (..., m)."""

    def __init__(self, n, m, lr_mul=1.0, bias=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n) / lr_mul)
        self.bias = nn.Parameter(torch.full((m,), bias))
        self.scale, self.lr_mul = lr_mul / n**0.5, lr_mul

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)  # eq. (8)


# Differs from gan/stylegan.py
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


def with_filter(parts):  # under the name that the official blocks give it
    block = nn.ModuleDict(parts)
    block.register_buffer("resample_filter", TAPS[:, None] * TAPS)
    return block


def upfirdn2d(x, taps, up=1, down=1, padding=0):
    """Maps x (B, C, h, w), up - 1 zeros put between pixels, convolved with taps (k, k), of which
    every down-th pixel stays; padding: that of torch's convolution, transposed for up > 1."""
    taps = taps.expand(x.shape[1], 1, -1, -1)
    if up > 1:
        return F.conv_transpose2d(x, taps, None, up, padding, groups=x.shape[1])
    return F.conv2d(x, taps.flip(2, 3), None, down, padding, groups=x.shape[1])


def leaky(x):
    return F.leaky_relu(x, 0.2) * 2**0.5  # about as large as x was


def modulated_conv(x, weight, style, taps=None):
    """Maps x (B, n, h, w) -> (B, m, h, w), or with taps twice the size, by weight (m, n, 3, 3) that
    style (B, n) scales anew for each image. It is the maps that are scaled here: the same."""
    x = x * style[..., None, None]
    if taps is None:
        x = F.conv2d(x, weight, padding=1)
    else:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # (B, m, 2 h + 1, 2 w + 1)
        x = upfirdn2d(x, taps * 4, padding=1)  # (B, m, 2 h, 2 w)
    power = F.linear(style.square(), weight.square().sum((2, 3)))  # (B, m)
    return x * (power + 1e-8).rsqrt()[..., None, None]  # eq. (2)


# Differs from gan/stylegan.py
class StyleLayer(nn.Module):
    """x (B, n, h, w) and w (B, W) -> (B, m, h, w), or twice the size."""

    def __init__(self, n, m, w_dim, side, up=False):
        super().__init__()
        self.up, self.affine = up, EqualLinear(w_dim, n, bias=1.0)
        self.weight, self.bias = nn.Parameter(torch.randn(m, n, 3, 3)), nn.Parameter(torch.zeros(m))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(side, side))
        self.register_buffer("resample_filter", TAPS[:, None] * TAPS)

    def forward(self, x, w, fixed=False):
        taps = self.resample_filter if self.up else None
        x = modulated_conv(x, self.weight, self.affine(w), taps)
        n = self.noise_const if fixed else torch.randn_like(x[:, :1])
        return leaky(x + self.noise_strength * n + self.bias.to(x)[:, None, None])  # eq. (3)


class ToRGB(nn.Module):
    """x (B, n, h, w) and w (B, W) -> (B, C, h, w)."""

    def __init__(self, n, m, w_dim):
        super().__init__()
        self.scale, self.affine = 1 / n**0.5, EqualLinear(w_dim, n, bias=1.0)
        self.weight, self.bias = nn.Parameter(torch.randn(m, n, 1, 1)), nn.Parameter(torch.zeros(m))

    def forward(self, x, w):
        return F.conv2d(x * (self.affine(w) * self.scale)[..., None, None], self.weight, self.bias)


# Differs from gan/gan.py
class Generator(nn.Module):
    """Noise (B, Z) -> images (B, C, S, S)."""

    def __init__(self, latent_dim, w_dim, n_mapping, channels, widths):
        super().__init__()
        sizes = enumerate(pairwise([latent_dim] + [w_dim] * n_mapping))
        layers = {f"fc{at}": EqualLinear(*pair, lr_mul=0.01) for at, pair in sizes}
        self.mapping, self.num_ws = nn.ModuleDict(layers), 2 * len(widths)
        self.mapping.register_buffer("w_avg", torch.zeros(w_dim))
        self.synthesis = nn.ModuleDict()
        for at, (n, m) in enumerate(pairwise([widths[0], *widths])):
            parts = {"conv0": StyleLayer(n, m, w_dim, 4 << at, True)} if at else {}
            parts |= {"conv1": StyleLayer(m, m, w_dim, 4 << at), "torgb": ToRGB(m, channels, w_dim)}
            self.synthesis[f"b{4 << at}"] = with_filter(parts)
        self.synthesis.b4.const = nn.Parameter(torch.randn(widths[0], 4, 4))

    def style(self, z):
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.mapping.values():
            z = leaky(layer(z))
        return z.to(self.mapping.w_avg)  # (B, W)  eq. (1)

    def draw(self, ws, fixed=False):  # (B, L, W); fixed: with the same noise always
        x, image = self.synthesis.b4.const.expand(len(ws), -1, -1, -1), 0
        for at, block in enumerate(self.synthesis.values()):
            if at:
                x = block.conv0(x, ws[:, 2 * at - 1], fixed)
                image = upfirdn2d(image, block.resample_filter * 4, up=2, padding=1)
            x = block.conv1(x, ws[:, 2 * at], fixed)
            image = image + block.torgb(x, ws[:, 2 * at + 1]).to(ws)  # eq. (10)
        return image  # (B, C, S, S)

    def spread(self, w, psi=1.0):
        """The same w (B, W), truncated, for all layers: (B, L, W)."""
        return self.mapping.w_avg.lerp(w, psi)[:, None].expand(-1, self.num_ws, -1)  # eq. (5)

    def forward(self, z, psi=1.0):
        return self.draw(self.spread(self.style(z), psi))


# Differs from gan/gan.py
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


# Copied from gan/stylegan.py with w_mean->mapping.w_avg, len(generator.layers)->generator.num_ws
def mix_styles(generator, z):
    """Styles (B, L, W) of two halves of z (2 B, Z): those of the second from a cut on, which is
    drawn anew for each picture, and in a tenth of them behind the end."""
    w, other = generator.style(z).chunk(2)
    n, B = generator.num_ws, len(w)
    cut = torch.randint(1, n, (B, 1), device=z.device)
    cut = torch.where(torch.rand(B, 1, device=z.device) < 0.9, cut, n)
    first = torch.arange(n, device=z.device) < cut  # (B, L)
    with torch.no_grad():
        generator.mapping.w_avg.lerp_(w.mean(0), 0.005)
    return torch.where(first[..., None], w[:, None], other[:, None])  # eq. (4)


# Copied from gan/stylegan.py
def r1_penalty(score, real):
    """Half the squared slope of scores (B,) at images real (B, C, S, S), on average."""
    (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean() / 2


def path_penalty(images, ws, mean):
    """How uneven images (B, C, S, S) are in their styles ws (B, L, W); mean a follows in place."""
    n = torch.randn_like(images) / images[0, 0].numel() ** 0.5
    (slope,) = torch.autograd.grad((images * n).sum(), ws, create_graph=True)  # (B, L, W)
    length = slope.square().sum(2).mean(1).sqrt()  # (B,)
    now = mean.lerp(length.mean(), 0.01)
    mean.copy_(now.detach())
    return (length - now).square().mean()  # eq. (12)


def lazily(adam, every):
    """Numbers of Adam by which every + 1 steps, one for a penalty, come to what every did."""
    c = every / (every + 1)
    return adam | {"lr": adam["lr"] * c, "betas": [b**c for b in adam["betas"]]}  # eq. (13)


def lazy_step(optimizer, penalty, every):
    """A step for a penalty alone, due at every so many-th step of its player, the stronger."""
    optimizer.zero_grad()
    (every * penalty).backward()  # eq. (13)
    optimizer.step()


# Differs from gan/gan.py
def d_step(generator, discriminator, optimizer, real, z):
    """One step of the discriminator; the fakes carry no graph: the generator feels nothing."""
    with torch.no_grad():
        fake = generator.draw(mix_styles(generator, z))
    loss = d_loss(discriminator(real), discriminator(fake))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# Copied from gan/stylegan.py
def g_step(generator, discriminator, optimizer, z):
    """One step of the generator; the gradient passes through the discriminator, not into it."""
    discriminator.requires_grad_(False)
    loss = g_loss(discriminator(generator.draw(mix_styles(generator, z))))
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


def load_image(args):
    """The image of --project, cropped square: (1, C, S, S) in [-1, 1]."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    try:
        x = center_crop(resize(default_loader(args.project), args.img_size), args.img_size)
    except (OSError, ValueError, SyntaxError) as error:
        fail(f"--project {args.project}: cannot be read ({error}); name an image")
    x = pil_to_tensor(x)[None].to(args.device) / 127.5 - 1
    return x.mean(1, keepdim=True) if args.channels == 1 else x


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
    generator = Generator(args.latent_dim, args.w_dim, args.n_mapping, args.channels, widths)
    discriminator = Discriminator(args.channels, widths)
    if args.weights:
        load_weights(args.weights, generator)
    return generator.to(args.device), discriminator.to(args.device)


# Copied from gan/gan.py
def noise(args, n):
    return torch.randn(n, args.latent_dim, device=args.device)  # (N, Z)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of 1000 fakes."""
    torch.manual_seed(args.seed)
    data = load_data(args)
    generator, discriminator = players = build(args)
    adam = {"lr": args.lr, "betas": (args.b1, args.b2), "fused": True}
    optimizer_g = torch.optim.Adam(generator.parameters(), **lazily(adam, args.path_every))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **lazily(adam, args.r1_every))
    ema = copy.deepcopy(generator)  # this one draws
    mean = nn.ParameterDict({"a": nn.Parameter(torch.zeros([]), False)}).to(args.device)
    state = {"generator": generator, "discriminator": discriminator, "ema": ema}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d, "mean": mean}
    x, z_fixed = data[0][0], noise(args, 1000)  # the same z in every picture: progress can be seen
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros(2, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                i = torch.randint(len(x), (args.batch_size,), device=args.device)
                with torch.autocast(x.device.type, torch.bfloat16, args.amp, cache_enabled=False):
                    d = d_step(*players, optimizer_d, x[i], noise(args, 2 * len(i)))
                    g = g_step(*players, optimizer_g, noise(args, 2 * len(i)))
                if step % args.r1_every == 0:
                    r1 = r1_penalty(discriminator(real := x[i].requires_grad_()), real)
                    lazy_step(optimizer_d, args.gamma * r1, args.r1_every)
                if step % args.path_every == 0:
                    ws = mix_styles(generator, noise(args, len(i) // 2 * 2))
                    penalty = path_penalty(generator.draw(ws), ws, mean["a"])
                    lazy_step(optimizer_g, args.lambda_path * penalty, args.path_every)
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
    return evaluate(sample(ema, z_fixed), data) | {"ppl": path_length(ema, z_fixed[:400])}


@torch.inference_mode()
def sample(generator, z, psi=1.0):
    """Images (N, C, S, S) of z (N, Z); the noise of the layers is that of torch's generator."""
    torch.manual_seed(0)
    return torch.cat([generator(part, psi) for part in z.split(100)])


@torch.inference_mode()
def draw(args, generator, z):
    """OUT/mixing.png: the first styles of a row's picture and the last ones of a column's;
    OUT/truncation.png: psi from -1 to 1; OUT/interpolation.png: from w to w'."""
    torch.manual_seed(0)
    w, n = generator.style(z[:16]), generator.num_ws
    rows, columns = generator.spread(w[:8]), generator.spread(w[8:])
    cut = torch.arange(n, device=w.device)[:, None] < max(2, n // 2)
    mixed = [torch.cat([row[None], torch.where(cut, row, columns)]) for row in rows]
    corner = generator.spread(generator.mapping.w_avg[None])  # the mean picture
    picture(args, "mixing", generator.draw(torch.cat([corner, columns, *mixed])), 9)
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
    generator, _ = build(args)
    begin(args)
    if args.project:
        return project_image(args, generator)
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


# Copied from gan/stylegan.py
def differences(a, b):
    """Mean squared difference (N,) of images a and b (N, C, S, S), at three scales."""
    scales = [
        (F.avg_pool2d(a - b, k) if k > 1 else a - b).square().mean((1, 2, 3)) for k in (1, 2, 4)
    ]
    return sum(scales) / 3


# Differs from gan/stylegan.py
@torch.inference_mode()
def path_length(generator, z, step=1e-4):
    """l_W of pairs of z (2 N, Z): a float."""
    a, b = generator.style(z).double().chunk(2)
    model, found = copy.deepcopy(generator).double(), []
    for t in (0, step):
        torch.manual_seed(0)  # the same noise at both ends
        found.append(model.draw(model.spread(torch.lerp(a, b, t))))
    return (differences(*found) / step**2).mean().item()  # eq. (9)


def invert(generator, target, n_ws, n_steps=500):
    """Styles (1, L, W), of n_ws different w, by which target (1, C, S, S) is drawn best."""
    z = torch.randn(1000, generator.mapping.fc0.weight.shape[1], device=target.device)
    var, mean = torch.var_mean(generator.style(z).detach(), 0, correction=0)
    w = mean.repeat(1, n_ws, 1).requires_grad_()
    optimizer = torch.optim.Adam([w], fused=True)
    for step in tqdm(range(n_steps), f"projection, {n_ws} w", leave=False, disable=None):
        t = step / n_steps
        fade = 0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / 0.25))
        optimizer.param_groups[0]["lr"] = 0.01 * min(1, t / 0.05) * fade
        away = 0.05 * var.sum().sqrt() * max(0, 1 - t / 0.75) ** 2 * torch.randn_like(w)
        image = generator.draw((w + away).expand(-1, generator.num_ws, -1), True)
        (w.grad,) = torch.autograd.grad(differences(image, target).sum(), w)  # eq. (14)
        optimizer.step()
    return w.detach().expand(-1, generator.num_ws, -1)


def project_image(args, generator):
    """The work of --project: OUT/projection.png shows the image, and what W and W+ make of it; the
    styles go into OUT/projection.pt."""
    target = load_image(args)
    ws = torch.cat([invert(generator, target, n) for n in (1, generator.num_ws)])  # (2, L, W)
    torch.save({"w": ws[:1].clone(), "w_plus": ws[1:].clone()}, f"{args.out}/projection.pt")
    picture(args, "projection", torch.cat([target, generator.draw(ws, True).detach()]), 3)
    print(f"{args.out}/projection.png")
    return 0


def grouped_conv(x, weight, style):
    """modulated_conv as (2) says it: in one convolution each image has a group and its weights."""
    w = weight * style[:, None, :, None, None]  # (B, m, n, 3, 3)
    w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()  # eq. (2)
    y = F.conv2d(x.flatten(0, 1)[None], w.flatten(0, 1), padding=1, groups=len(x))
    return y.unflatten(1, w.shape[:2])[0]  # (B, m, h, w)


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    x, weight, style = torch.randn(4, 6, 8, 8), torch.randn(5, 6, 3, 3), torch.randn(4, 6)
    gap = (modulated_conv(x, weight, style) - grouped_conv(x, weight, style)).abs().max()
    return report(args, **metrics, form_gap=gap)


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
    add("--lr", type=at_least(0.0), default=2e-3, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.0, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.99, help="adam: decay of its square")
    add("--gamma", type=at_least(0.0), default=1.0, help="weight of the penalty R1 of eq. (6)")
    add("--r1_every", type=at_least(1), default=16, help="steps from one R1 to the next")
    add("--path_every", type=at_least(1), default=4, help="steps from one eq. (12) to the next")
    add("--lambda_path", type=at_least(0.0), default=2.0, help="weight of the penalty of eq. (12)")
    add("--ema_kimg", type=at_least(1e-9), default=1.0, help="half-life of G's mean weights")
    add("--config", choices=CONFIGS, default="laptop", help="named set of defaults")
    add("--fmap_max", type=at_least(1), default=24, help="most channels of a layer")
    add("--fmap_base", type=at_least(1), default=1024, help="channels times the side of a map")
    add("--n_mapping", type=at_least(1), default=8, help="layers of the mapping f")
    add("--w_dim", type=at_least(1), default=64, help="size W of a style")
    add("--latent_dim", type=at_least(1), default=64, help="size Z of the noise")
    add("--dataset", choices=[*SIZES], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--img_size", type=at_least(1), help="side of the images; default: that of the data set")
    add("--channels", type=int, choices=[1, 3], help="1 grey, 3 colour; default: as the data set")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--sample_interval", type=at_least(1), default=500, help="steps between sample grids")
    add("--n_samples", type=at_least(1, 1001), default=64, help="images in a grid")
    add("--weights", help="state dict or checkpoint to load")
    add("--psi", type=at_least(-9.0, 9.0), default=0.7, help="psi of eq. (5), for --sample")
    add("--sample", action="store_true", help="only draw, from --weights or OUT/last.pt")
    add("--project", help="only look for the styles of this image, in W and W+")
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
        if args.sample or args.project:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
