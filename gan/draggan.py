# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "pillow>=10,<13",
#                 "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""DragGAN: take hold of points of a generated picture, and pull them to where they should be.

Papers: Pan, Tewari, Leimkuehler, Liu, Meka & Theobalt, "Drag Your GAN: Interactive Point-based
Manipulation on the Generative Image Manifold", SIGGRAPH 2023, arXiv 2305.10973; real images: Roich,
Mokady, Bermano & Cohen-Or, "Pivotal Tuning for Latent-based Editing of Real Images", ACM TOG 2022,
arXiv 2106.05744; the generator: StyleGAN2, Karras et al., CVPR 2020, arXiv 1912.04958.

    d_i = (t_i - p_i) / |t_i - p_i|              (15)  a pixel's way from handle p_i to target t_i
    L = sum_i mean_q |F(q + d_i) - F(q)|         (16)  q: pixels within r1 of p_i; F(q) is constant
        + lambda mean |F - F_0| (1 - M)          (17)  M: 1 where the picture may change
    w <- w after a step of Adam on L             (18)  its first layers; others hold the looks
    p_i <- argmin_q |F(q) - F_0(p_i at first)|   (19)  q: pixels in a square of r2 around p_i
    w = argmin d(G(w), x), then G = argmin d(G(w), x)  (20)  PTI: a pivot w, and a G that fits it

F are the features of a block of the generator, resized to the picture; F_0 those of the picture as
it was. (16) asks that what is at q now be at q + d_i next, which pulls at the surroundings of p_i;
(19) looks where they have come to; both are repeated until that is t_i. Nothing else knows what is
dragged: where features do not tell a place from its neighbours, or the generator has not learnt to
move what it draws, handles get lost; one that rather stretches a thing wants an --r1 that holds it.
--image x takes a real picture: no w draws it quite, so the generator is tuned to it, once a w is
found that comes near (20). d is the mean square, and the mean absolute differences of the bands of
a Laplacian pyramid.

The generator is that of stylegan2.py, whose checkpoints load: --weights, with the flags of their
architecture. Without, this script trains a small one to draw balls, whose place can be measured:

    w = f(z / rms(z)),  z ~ N(0, 1)              (1)  mapping f: fully connected layers
    W_i'' = W_i' / |W_i'|,  W_ijk' = s_j W_ijk,  s = A w      (2)  a style: (de)modulated weights
    x <- lrelu(conv(x, W'') + B n + b)           (3)  a layer; n: noise, one number a pixel
    w of layers before a cut, w' behind it       (4)  mixing: neighbouring styles need not agree
    w <- w_mean + psi (w - w_mean)               (5)  truncation: fewer surprises, less variety
    L_D = softplus(-D(x)) + softplus(D(G(z))) + gamma / 2 |dD(x)/dx|^2      (6)  D's loss with R1
    L_G = softplus(-D(G(z)))                     (7)  non-saturating
    W = c W',  W' ~ N(0, 1),  c = gain / sqrt(n) (8)  equalised learning rate, n inputs; f: 0.01 c
    image <- up(image) + rgb(x)                  (10)  G: each size adds its part; no growing
    L_path = E (|J^T n| - a)^2,  J = dG(w)/dw,  n ~ N(0, 1)   (12)  a: running mean of |J^T n|
    at every k-th step k L_path, or k times R1   (13)  lazy

Shapes: B batch, Z latent_dim, W w_dim, L layers = 2 log2(S) - 2, C channels, S img_size; n points,
(x, y) in pixels; z (B, Z), w (B, W), styles ws (B, L, W), images (B, C, S, S) in [-1, 1], features
F (1, C', S, S).
Unlike the paper: means stand for the sums in (16) and (17), as in the official code. r1, r2 and the
distance at which a handle has arrived are pixels of a picture of 512; in small ones, r1 is 1.5 and
r2 is 2 at least, and a handle must come to the very pixel, by a last step as short as what is left.
Adam's rate is higher, as a pixel of a small picture is more of it. PTI: no LPIPS, whose weights
would be a download, no noise maps to fit, no locality regulariser; the rates fall at the end. The
balls' D has no residual blocks and compares no images of a batch, R1 and L_path join the losses.

    python draggan.py                            train on 16x16 balls; how far are they dragged?
    python draggan.py --sample                   OUT/samples.png, from OUT/last.pt; counted from 0
    python draggan.py --points "5,8>9,8" --pick 3    OUT/drag.png, drag.gif, after.png, drag.pt
    python draggan.py --points "5,8>9,8" --mask white_may_move.png --image real.png
    python draggan.py --config faces64 --weights faces.pt --points "20,40>16,40;44,40>48,40"
    python draggan.py --config balls64           30,000 steps: a matter of a GPU
    python draggan.py --smoke                    seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import copy
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import deque
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 200, "sample_interval": 200, "fmap_max": 16, "lr": 3e-3, "ema_kimg": 0.2}
SMOKE |= {"drag_steps": 20, "pivot_steps": 150, "tune_steps": 1500, "gamma": 1.0}
BARS = {"known_px": (0.0, 1.0), "known_tracker_px": (0.0, 1.0), "known_outside": (0.0, 0.1)}
BARS |= {"asked": (0.0, 0.99), "outside": (0.0, 0.2), "rest": (0.0, 0.0)}
BARS |= {"pivot_mse": (0.0, 0.08), "tuning": (0.0, 0.5)}
CONFIGS = {"laptop": {}, "balls64": {"img_size": 64, "fmap_max": 128, "fmap_base": 4096}}
CONFIGS["balls64"] |= {"w_dim": 128, "latent_dim": 128, "n_mapping": 8, "gamma": 50.0, "r1": 96.0}
CONFIGS["balls64"] |= {"n_steps": 30_000, "batch_size": 32, "sample_interval": 2000}
CONFIGS["faces64"] = CONFIGS["balls64"] | {"channels": 1, "fmap_base": 2048, "r1": 24.0}


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


# Copied from gan/stylegan2.py
def upfirdn2d(x, taps, up=1, down=1, padding=0):
    """Maps x (B, C, h, w), up - 1 zeros put between pixels, convolved with taps (k, k), of which
    every down-th pixel stays; padding: that of torch's convolution, transposed for up > 1."""
    taps = taps.expand(x.shape[1], 1, -1, -1)
    if up > 1:
        return F.conv_transpose2d(x, taps, None, up, padding, groups=x.shape[1])
    return F.conv2d(x, taps.flip(2, 3), None, down, padding, groups=x.shape[1])


# Copied from gan/stylegan2.py
def leaky(x):
    return F.leaky_relu(x, 0.2) * 2**0.5  # about as large as x was


# Copied from gan/stylegan2.py
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


# Copied from gan/stylegan2.py
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


# Copied from gan/stylegan2.py
class ToRGB(nn.Module):
    """x (B, n, h, w) and w (B, W) -> (B, C, h, w)."""

    def __init__(self, n, m, w_dim):
        super().__init__()
        self.scale, self.affine = 1 / n**0.5, EqualLinear(w_dim, n, bias=1.0)
        self.weight, self.bias = nn.Parameter(torch.randn(m, n, 1, 1)), nn.Parameter(torch.zeros(m))

    def forward(self, x, w):
        return F.conv2d(x * (self.affine(w) * self.scale)[..., None, None], self.weight, self.bias)


# Copied from gan/stylegan2.py
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
    """Images (B, C, S, S) -> scores (B,); simpler than that of stylegan2.py."""

    def __init__(self, channels, widths):
        super().__init__()
        self.first, pairs = EqualConv2d(channels, widths[-1], 1), pairwise(widths[::-1])
        self.blocks = nn.ModuleList(
            nn.ModuleList([EqualConv2d(n, n, 3), EqualConv2d(n, m, 3)]) for n, m in pairs
        )
        self.score = EqualLinear(16 * widths[0], 1)

    def forward(self, x):
        x = leaky(self.first(x))
        for one, two in self.blocks:
            x = F.avg_pool2d(leaky(two(leaky(one(x)))), 2)
        return self.score(x.flatten(1))[:, 0]  # (B,)


# --- the idea ------------------------------------------------------------------------------------
# Points (n, 2) are (x, y) in pixels, of which the first one's middle is (0, 0).
def offsets(r, square=False):
    """Whole steps (k, 2) from the middle of a disc, or square, to the pixels within r."""
    side = torch.arange(-math.floor(r), math.floor(r) + 1.0)
    steps = torch.cartesian_prod(side, side)
    return steps if square else steps[steps.square().sum(1) <= r * r]


def bilinear(maps, points):
    """Values (C', n, k) of maps (1, C', S, S) at points (n, k, 2), linear between the pixels."""
    grid = 2 * points / (maps.shape[-1] - 1) - 1  # -1 is the first pixel, 1 the last
    return F.grid_sample(maps, grid[None], padding_mode="border", align_corners=True)[0]


def motion_loss(maps, handles, targets, r1):
    """Small where what surrounds handles (n, 2) in maps (1, C', S, S) is found a step towards
    targets (n, 2) as well: there maps are to become what they are here, not the other way round."""
    gap = targets - handles
    step = gap / gap.norm(dim=1, keepdim=True).clamp(min=1)  # eq. (15)
    here = handles[:, None] + offsets(r1).to(maps)  # (n, k, 2)
    inside = ((here >= 0) & (here <= maps.shape[-1] - 1)).all(2)  # (n, k)
    change = bilinear(maps, here + step[:, None]) - bilinear(maps, here).detach()  # (C', n, k)
    return ((change.abs().mean(0) * inside).sum(1) / inside.sum(1)).sum()  # eq. (16)


def track(maps, wanted, handles, r2):
    """The pixels (n, 2) near handles (n, 2) where maps are most like wanted (C', n, 1)."""
    near = (handles[:, None] + offsets(r2, square=True).to(maps)).clamp(0, maps.shape[-1] - 1)
    best = (bilinear(maps, near) - wanted).abs().sum(0).argmin(1)  # (n,)
    return near[torch.arange(len(near), device=best.device), best]  # eq. (19)


def features(generator, ws, block):
    """The image (1, C, S, S) of styles ws (1, L, W), its noise fixed, and F (1, C', S, S)."""
    kept, layer = [], generator.synthesis[f"b{2 << block}"].conv1
    hook = layer.register_forward_hook(lambda layer, x, made: kept.append(made))
    image = generator.draw(ws, True)
    hook.remove()
    return image, F.interpolate(kept[0], image.shape[2:], mode="bilinear")


def drag(render, ws, handles, targets, n_free, n_steps, lr, r1, r2, editable=None, weight=0.0):
    """Pull handles (n, 2) in the image of ws (1, L, W) to targets (n, 2); render(ws) is image, F.
    Yields (ws, image, handles, loss), at first and after each step, until all have arrived. r1, r2
    are pixels of a picture of 512; in small ones they still reach the pixels around."""
    free, fixed = ws[:, :n_free].clone().requires_grad_(), ws[:, n_free:]
    optimizer = torch.optim.Adam([free], lr)
    for step in range(n_steps + 1):
        ws = torch.cat([free, fixed], 1)
        image, maps = render(ws)
        scale = image.shape[-1] / 512
        if step == 0:
            first, wanted = maps.detach(), bilinear(maps.detach(), handles[:, None])
        else:
            handles = track(maps.detach(), wanted, handles, max(2, r2 * scale))
        loss = motion_loss(maps, handles, targets, max(1.5, r1 * scale))
        if editable is not None:
            loss = loss + weight * ((maps - first).abs() * (1 - editable)).mean()  # eq. (17)
        yield ws.detach(), image.detach(), handles, loss.detach()
        if (targets - handles).norm(dim=1).max() < (1 if len(targets) <= 5 else 2) * min(1, scale):
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # eq. (18)


def distance(a, b):
    """Mean absolute differences of the bands of images a and b (B, C, S, S), summed up."""
    total, rest = 0.0, a - b  # bands of the difference are differences of the bands
    while rest.shape[-1] > 4:
        small = F.avg_pool2d(rest, 2)
        total = total + (rest - F.interpolate(small, scale_factor=2, mode="bilinear")).abs().mean()
        rest = small
    return total + rest.abs().mean()


def pivotal_tuning(generator, target, n_pivot, n_tune, rates=(1e-2, 3e-4)):
    """A copy of the generator, tuned to draw target (1, C, S, S) of ws (1, L, W), whose image was
    most like it before; these ws; and both errors."""
    model, found = copy.deepcopy(generator).requires_grad_(False), {}
    w = model.mapping.w_avg[None].clone()
    stages = ("pivot", [w], n_pivot), ("tuned", [*model.synthesis.parameters()], n_tune)
    for (name, parts, n), lr in zip(stages, rates, strict=True):
        optimizer = torch.optim.Adam([part.requires_grad_() for part in parts], lr)
        for step in range(n):
            optimizer.param_groups[0]["lr"] = lr * min(1, 4 - 4 * step / n)  # falls at the end
            image = model.draw(model.spread(w), True)
            loss = F.mse_loss(image, target) + distance(image, target)
            optimizer.zero_grad()
            loss.backward()  # eq. (20)
            optimizer.step()
        for part in parts:
            part.requires_grad_(False)
        found[f"{name}_mse"] = F.mse_loss(model.draw(model.spread(w), True), target).item()
    return model, model.spread(w), found


def players_step(generator, discriminator, optimizer_g, optimizer_d, real, z, lazy, mean):
    """A step of both players, with z (2 B, Z); lazy: the weights of R1 and of the path length, 0
    where not due; mean: a of (12), drawn nearer in place. Returns both losses, (2,)."""
    w, other = generator.style(z).chunk(2)  # (B, W)
    cut = torch.randint(1, generator.num_ws + 1, (len(w), 1, 1), device=z.device)
    first = torch.arange(generator.num_ws, device=z.device)[:, None] < cut  # (B, L, 1)
    ws = torch.where(first, w[:, None], other[:, None])  # eq. (4)
    generator.mapping.w_avg.lerp_(w.detach().mean(0), 0.005)
    image, score = generator.draw(ws), discriminator(real.requires_grad_(lazy[0] > 0))
    d = loss = F.softplus(-score).mean() + F.softplus(discriminator(image.detach())).mean()
    if lazy[0]:
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        loss = d + lazy[0] / 2 * slope.square().sum((1, 2, 3)).mean()  # eq. (6), (13)
    optimizer_d.zero_grad()
    loss.backward()
    optimizer_d.step()
    discriminator.requires_grad_(False)
    g = loss = F.softplus(-discriminator(image)).mean()  # eq. (7)
    if lazy[1]:
        n = torch.randn_like(image) / image.shape[-1]
        (slope,) = torch.autograd.grad((image * n).sum(), ws, create_graph=True)  # (B, L, W)
        length = slope.square().sum(2).mean(1).sqrt()  # (B,)
        mean.lerp_(length.detach().mean(), 0.01)
        loss = g + lazy[1] * (length - mean).square().mean()  # eq. (12), (13)
    optimizer_g.zero_grad()
    loss.backward()
    optimizer_g.step()
    discriminator.requires_grad_(True)
    return torch.stack([g, d]).detach()


# Copied from gan/gan.py
def update_ema(ema, generator, decay):
    """Draw the averaged weights a little, 1 - decay, towards the generator's."""
    with torch.no_grad():
        torch._foreach_lerp_([*ema.parameters()], [*generator.parameters()], 1 - decay)
        torch._foreach_copy_([*ema.buffers()], [*generator.buffers()])


# --- data ----------------------------------------------------------------------------------------
def draw_balls(n, size):
    """Images (n, 3, S, S) in [-1, 1] of a ball on grey, no two places of which look the same."""
    row, column = torch.meshgrid(*[torch.arange(size) / size] * 2, indexing="ij")
    r, ground = 0.17 + 0.06 * torch.rand(n, 1, 1), 0.05 + 0.15 * torch.rand(n, 1, 1, 1)
    middle = r + 0.02 + (0.96 - 2 * r) * torch.rand(2, n, 1, 1)
    v, u = (row - middle[0]) / r, (column - middle[1]) / r  # (n, S, S)
    away, tint = torch.hypot(u, v), torch.tensor([1.0, 0.75, 0.3])[:, None, None]
    colour = ((0.8 - 0.2 * v) * (away / 0.6).clamp(max=1))[:, None] * tint  # (n, 3, S, S)
    return 2 * ground.lerp(colour, (0.5 - (away - 1) * r * size).clamp(0, 1)[:, None]) - 1


def ball_at(images):
    """The centre (N, 2) of what is bright in images (N, C, S, S)."""
    bright = (images.mean(1) + 0.4).clamp(min=0)  # (N, S, S)
    at = torch.arange(bright.shape[-1]).to(bright)
    middle = torch.stack([(bright * at).sum((1, 2)), (bright * at[:, None]).sum((1, 2))], 1)
    return middle / bright.sum((1, 2)).clamp(min=1e-3)[:, None]


def load_data(args):
    """Return images x (N, C, S, S), to learn from and held out, whole on the device."""
    x = draw_balls(5000, args.img_size)
    return (x if args.channels == 3 else x.mean(1, keepdim=True)).to(args.device).split(4000)


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


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of dragged balls."""
    torch.manual_seed(args.seed)
    x, _ = load_data(args)
    generator, discriminator = players = build(args)
    adam = {"lr": args.lr, "betas": (args.b1, args.b2), "fused": True}
    optimizers = [torch.optim.Adam(player.parameters(), **adam) for player in players]
    ema = copy.deepcopy(generator).requires_grad_(False)  # this one draws
    state = {"generator": generator, "discriminator": discriminator, "ema": ema}
    mean = nn.ParameterDict({"a": nn.Parameter(torch.zeros([]), False)}).to(args.device)
    state |= {"optimizer_g": optimizers[0], "optimizer_d": optimizers[1], "mean": mean}
    z_fixed = torch.randn(args.n_samples, args.latent_dim, device=args.device)  # for the pictures
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros(2, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                i = torch.randint(len(x), (args.batch_size,), device=args.device)
                z = torch.randn(2 * len(i), args.latent_dim, device=args.device)
                lazy = 16 * args.gamma * (step % 16 == 0), 4 * args.lambda_path * (step % 4 == 0)
                total += players_step(*players, *optimizers, x[i], z, lazy, mean["a"])
                decay = 0.5 ** (args.batch_size / (1000 * args.ema_kimg))
                update_ema(ema, generator, min(decay, (1 + step) / (10 + step)))
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            picture(args, f"samples_{step:06d}", sample(ema, z_fixed)[1])
            g, d = (total / n).tolist()
            log(args, step=step, d_loss=d, g_loss=g)
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(args, ema)


def sample(generator, z, psi=1.0):
    """Styles ws (N, L, W) of z (N, Z) and their images (N, C, S, S), the noise fixed."""
    with torch.no_grad():
        ws = generator.spread(generator.style(z), psi)
        return ws, torch.cat([generator.draw(part, True) for part in ws.split(100)])


def pull(args, generator, ws, handles, targets, editable=None):
    """drag, by the flags."""
    how = (args.n_w_layers, args.drag_steps, args.lr_drag, args.r1, args.r2)
    how += (editable, args.lambda_mask)
    return drag(lambda w: features(generator, w, args.feature_block), ws, handles, targets, *how)


def evaluate(args, generator, n=8):
    """Drag the balls of n pictures by a quarter of the side, each another way; mean distances, seen
    in the pictures, in pixels: from the target before and after, and from where (19) says."""
    torch.manual_seed(1)
    z, found = torch.randn(25 * n, args.latent_dim, device=args.device), []
    ws, images = sample(generator, z, args.psi)
    at = ball_at(images)
    central = (at - args.img_size / 2).norm(dim=1).argsort()[:n]  # there is room on all sides
    for turn, i in zip(torch.linspace(0, 2 * math.pi, n + 1), central, strict=False):
        way = args.img_size / 4 * torch.stack([turn.cos(), turn.sin()]).to(at)
        start, end = at[i].round()[None], (at[i] + way).round()[None]
        _, image, handles, _ = deque(pull(args, generator, ws[i][None], start, end), 1)[0]
        moved = ball_at(image) - at[i]
        found.append(torch.cat([end - start, end - start - moved, handles - start - moved]))
    means = torch.stack(found).norm(dim=2).mean(0).tolist()
    return dict(zip(("start_px", "end_px", "tracker_px"), means, strict=True))


# Copied from gan/gan.py
def picture(args, name, images):
    """Write OUT/name.png, a square of images; black is -1 and white is 1, whatever they hold."""
    from torchvision.utils import save_image

    path, nrow = Path(args.out, f"{name}.png"), math.ceil(len(images) ** 0.5)
    images = F.interpolate(images, scale_factor=max(1, 32 // args.img_size))
    save_image(images, path, nrow=nrow, normalize=True, value_range=(-1, 1))


def frame(image, handles, targets):
    """A Pillow image of image (1, C, S, S), enlarged, with handles in red and targets in blue."""
    from PIL import ImageDraw
    from torchvision.transforms.functional import to_pil_image

    zoom = max(1, 256 // image.shape[-1])
    x = F.interpolate(image.clamp(-1, 1) / 2 + 0.5, scale_factor=zoom)[0].expand(3, -1, -1)
    shown = to_pil_image(x.cpu())
    for points, ink in ((targets, "blue"), (handles, "red")):
        for x, y in (zoom * (points + 0.5)).tolist():
            ImageDraw.Draw(shown).ellipse((x - 5, y - 5, x + 5, y + 5), ink, "white")
    return shown


def generate(args):
    """The work of --sample, OUT/samples.png, and of --points: drag.png, drag.gif, after.png and
    drag.pt, which holds w and, as a checkpoint does, the generator."""
    from PIL import Image

    args.weights = args.weights or f"{args.out}/last.pt"
    torch.manual_seed(args.seed)
    (generator, _), found = build(args), {}
    z = torch.randn(max(args.n_samples, args.pick + 1), args.latent_dim)
    ws, images = sample(generator, z.to(args.device), args.psi)
    ws = ws[args.pick][None]
    editable = (load_picture(args, "mask") > 0).float() if args.mask else None
    target = load_picture(args, "image") if args.image else None
    begin(args)
    if args.sample:
        picture(args, "samples", images[: args.n_samples])
        print(f"{args.out}/samples.png")
        return 0
    generator.requires_grad_(False)
    if args.image:
        generator, ws, found = pivotal_tuning(generator, target, args.pivot_steps, args.tune_steps)
    points = torch.tensor(args.points, device=args.device).round()  # (n, 4)
    handles, targets = points.split(2, 1)  # (n, 2), (n, 2)
    steps, frames = pull(args, generator, ws, handles, targets, editable), []
    for now in tqdm(steps, "drag", args.drag_steps + 1, leave=False, disable=None):
        ws, image, handles, loss = now
        frames.append(frame(image, handles, targets))
    shown = [frames[int(k)] for k in torch.linspace(0, len(frames) - 1, 8).round()]
    strip = Image.new("RGB", (8 * shown[0].width, shown[0].height))
    for k, part in enumerate(shown):
        strip.paste(part, (k * part.width, 0))
    strip.save(Path(args.out, "drag.png"))
    few = frames[:: 1 + len(frames) // 100] + frames[-1:]
    few[0].save(Path(args.out, "drag.gif"), save_all=True, append_images=few[1:], loop=0)
    picture(args, "after", image)
    torch.save({"ema": generator.state_dict(), "w": ws}, Path(args.out, "drag.pt"))
    left = (targets - handles).norm(dim=1).max().item()
    print(line(found | {"steps": len(frames) - 1, "loss": loss.item(), "left_px": left}))
    return 0


def textures(size):
    """A generator of known motion: the sum of ws' layers says by two numbers where a disc goes, by
    two more where both disc and ground go. Channel 0 of its image shows the disc."""
    xy = torch.stack(torch.meshgrid(2 * [torch.linspace(-1, 1, size)], indexing="xy"), 2)[None]
    disc = (20 * (0.1 - xy.square().sum(3))).sigmoid()[None]  # (1, 1, S, S)
    maps = F.interpolate(torch.randn(1, 16, size // 4, size // 4), (size, size), mode="bicubic")
    how = {"padding_mode": "border", "align_corners": True}

    def render(ws):
        alone, both = ws[0].sum(0).split(2)
        ground = F.grid_sample(maps[:, :8], xy - both, **how)
        thing = F.grid_sample(torch.cat([disc, maps[:, 8:]], 1), xy - alone - both, **how)
        alpha, skin = thing.split([1, 8], 1)
        return torch.cat([2 * alpha - 1, ground[:, :2]], 1), ground.lerp(skin, alpha)

    return render


def smoke(args):
    """A short run in a temporary folder; drags in a picture known to move and in those of the run,
    with a mask and without; then PTI of a picture that was held out."""
    with tempfile.TemporaryDirectory() as args.out:
        found = train(args)
        args.weights = f"{args.out}/last.pt"
        generator, _ = build(args)
    torch.manual_seed(args.seed)
    generator.requires_grad_(False)
    render, ws, p, way = textures(32), torch.zeros(1, 8, 4), *torch.tensor([[[16.0, 15]], [[5, 0]]])
    before, change = render(ws)[0], []
    rim = F.pad(torch.zeros(26, 26), (3, 3, 3, 3), value=1.0)
    for part in (1 - rim, None):
        steps = drag(render, ws, p, p + way, 6, 100, 2e-3, 3.0, 12.0, part, args.lambda_mask)
        _, image, at, _ = deque(steps, 1)[0]
        moved = ball_at(image[:, :1]) - ball_at(before[:, :1])
        change.append(((image - before).abs() * rim).mean())
        found |= {"known_px": (way - moved).norm(), "known_tracker_px": (at - p - moved).norm()}
    z, asked, outside, rest = torch.randn(8, args.latent_dim), [0, 0], [0, 0], []
    half = (torch.arange(args.img_size) * 2 >= args.img_size)[:, None].float().to(args.device)
    for ws in sample(generator, z.to(args.device), args.psi)[0].split(1):
        image, maps = features(generator, ws, args.feature_block)
        p, unit = ball_at(image).round(), torch.tensor([1.0, 0.0]).to(image)
        for k, part in enumerate((half, None)):
            runs = [*pull(args, generator, ws, p, p + 3 * unit, part)]
            outside[k] += ((runs[-1][1] - image).abs() * (1 - half)).mean()
            rest.append((runs[-1][0] - ws)[:, args.n_w_layers :].abs().max())
        for k, now in enumerate((features(generator, runs[1][0], args.feature_block)[1], maps)):
            asked[k] += (bilinear(now, p[:, None] + unit) - bilinear(maps, p[:, None])).abs().mean()
    pairs = {"known_outside": change, "asked": asked, "outside": outside}
    found |= {key: a / b for key, (a, b) in pairs.items()} | {"rest": max(rest)}
    x = load_data(args)[1][:1]
    *_, errors = pivotal_tuning(generator, x, args.pivot_steps, args.tune_steps)
    return report(args, **found, **errors, tuning=errors["tuned_mse"] / errors["pivot_mse"])


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
def read_points(text, size):
    """Rows of four numbers, x and y of handle and target, of "x,y>x,y;..."."""
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    rows = []
    for part in text.split(";"):
        if not (found := re.fullmatch(f"{number},{number}>{number},{number}", part)):
            fail(f'--points {text}: is not of the form "x,y>x,y;x,y>x,y"; name at least one pair')
        rows.append([*map(float, found.groups())])
        if max(rows[-1]) > size - 1:
            fail(f"--points {part}: is outside of the picture; x and y go from 0 to {size - 1}")
    return rows


def load_picture(args, flag):
    """The file of --image, cropped square, or of --mask: (1, C, S, S) in [-1, 1]."""
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    path, side = getattr(args, flag), (args.img_size, args.img_size)
    try:
        image = Image.open(path).convert("L" if flag == "mask" or args.channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        fail(f"--{flag} {path}: cannot be read ({error}); name an image")
    if flag == "mask" and image.size != side:
        fail(f"--mask {path}: has {image.size} pixels, the picture {side}; make it as large")
    return pil_to_tensor(ImageOps.fit(image, side))[None].to(args.device) / 127.5 - 1


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = fail
    add = parser.add_argument
    add("--n_steps", type=at_least(0), default=3000, help="optimiser steps in total")
    add("--batch_size", type=at_least(2), default=16, help="examples per step")
    add("--lr", type=at_least(0.0), default=2.5e-3, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.0, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.99, help="adam: decay of its square")
    add("--gamma", type=at_least(0.0), default=5.0, help="weight of the penalty R1 of eq. (6)")
    add("--lambda_path", type=at_least(0.0), default=2.0, help="weight of the penalty of eq. (12)")
    add("--ema_kimg", type=at_least(1e-9), default=2.0, help="half-life of G's mean weights")
    add("--config", choices=CONFIGS, default="laptop", help="named set of defaults")
    add("--fmap_max", type=at_least(1), default=32, help="most channels of a layer")
    add("--fmap_base", type=at_least(1), default=512, help="channels times the side of a map")
    add("--n_mapping", type=at_least(1), default=2, help="layers of the mapping f")
    add("--w_dim", type=at_least(1), default=32, help="size W of a style")
    add("--latent_dim", type=at_least(1), default=32, help="size Z of the noise")
    add("--img_size", type=at_least(1), default=16, help="side of the images")
    add("--channels", type=int, choices=[1, 3], default=3, help="1 grey, 3 colour")
    add("--sample_interval", type=at_least(1), default=500, help="steps between sample grids")
    add("--n_samples", type=at_least(1, 1001), default=64, help="images in a grid")
    add("--weights", help="state dict or checkpoint to load")
    add("--psi", type=at_least(-9.0, 9.0), default=0.7, help="psi of eq. (5), for what is dragged")
    add("--sample", action="store_true", help="only draw, from --weights or OUT/last.pt")
    add("--points", help="drag: handles and targets in pixels from 0, as x,y>x,y;x,y>x,y")
    add("--pick", type=at_least(0, 1000), default=0, help="which picture of the samples is dragged")
    add("--mask", help="image file of the same side: only where it is white may change")
    add("--image", help="image file to invert and drag in place of a sample")
    add("--lambda_mask", type=at_least(0.0), default=20.0, help="weight of eq. (17)")
    add("--lr_drag", type=at_least(0.0), default=2e-2, help="adam of the drag: learning rate")
    add("--drag_steps", type=at_least(0), default=300, help="most steps of a drag")
    add("--r1", type=at_least(0.0), default=3.0, help="radius of eq. (16) if the side is 512")
    add("--r2", type=at_least(0.0), default=12.0, help="half side of eq. (19) if the side is 512")
    add("--feature_block", type=at_least(1), default=6, help="F is of this block, or the last")
    add("--n_w_layers", type=at_least(1), default=6, help="layers of w that move; 2 or more do not")
    add("--pivot_steps", type=at_least(0), default=450, help="steps to find the w of --image")
    add("--tune_steps", type=at_least(0), default=350, help="steps to tune the generator to it")
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
    if args.img_size not in (8, 16, 32, 64, 128, 256, 512, 1024):
        fail(f"--img_size {args.img_size}: 4x4 maps are doubled; take 8, 16, 32 ... 1024")
    blocks = args.img_size.bit_length() - 2
    args.feature_block = min(args.feature_block, blocks)
    args.n_w_layers = min(args.n_w_layers, 2 * blocks - 2)
    if args.points is not None:
        args.points = read_points(args.points, args.img_size)
    elif args.mask or args.image:
        fail("--points: is missing; say what --mask or --image is to be dragged, as 8,9>8,5")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.sample or args.points:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
