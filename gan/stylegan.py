# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""StyleGAN: a learned map turns noise into styles, which say at every scale how the picture looks.

Papers: Karras, Laine & Aila, "A Style-Based Generator Architecture for Generative Adversarial
Networks", CVPR 2019, arXiv 1812.04948; the penalty R1: Mescheder, Geiger & Nowozin, "Which
Training Methods for GANs do actually Converge?", ICML 2018, arXiv 1801.04406; AdaIN: Huang &
Belongie, ICCV 2017, arXiv 1703.06868.

    w = f(z / rms(z)),  z ~ N(0, 1)              (1)  mapping f: fully connected layers
    AdaIN(x) = (1 + y_s) (x - mean x) / std x + y_b,  (y_s, y_b) = A w    (2)  a style; per map
    x <- AdaIN(lrelu(conv(x) + B n + b), A w)    (3)  a layer; n: noise, one number a pixel
    w of layers before a cut, w' behind it       (4)  mixing: neighbouring styles need not agree
    w <- w_mean + psi (w - w_mean)               (5)  truncation: fewer surprises, less variety
    L_D = softplus(-D(x)) + softplus(D(G(z))) + gamma / 2 |dD(x)/dx|^2      (6)  D's loss with R1
    L_G = softplus(-D(G(z)))                     (7)  non-saturating
    W = c W',  W' ~ N(0, 1),  c = gain / sqrt(n) (8)  equalised learning rate, n inputs; f: 0.01 c
    l_W = E d(G(w_t), G(w_t+e)) / e^2,  w_t = lerp(w, w', t)                (9)  path length
    separability = exp(sum_i H(Y_i | X_i))       (10)  X_i: side of a linear SVM, Y_i: attribute

The synthesis begins with a learned constant: all that tells pictures apart comes by (2), once in
each layer, and by noise, which can but move details. The first layers say what is where, the last
ones the colours: OUT/mixing.png takes the first from its left column and the others from its top
row; in the corner is the picture of w_mean.

(9) is short where a step in W changes the picture evenly; d is here the mean squared difference at
three scales, where the paper has VGG features, so numbers compare only with one another. (10) is 1
where each attribute is a direction in W; those of generated pictures come from a classifier of real
ones, the surer half counts. Both are printed for W and, to compare, for Z.

Shapes: B batch, Z latent_dim, W w_dim, L layers = 2 log2(S) - 2, C channels, S img_size; z (B, Z),
w (B, W), styles ws (B, L, W), images (B, C, S, S) in [-1, 1].
Unlike the paper: all layers are trained from the start, at the full resolution; the batch size and
the learning rate are the same at all times.

    python stylegan.py                          16x16 digits shipped with scikit-learn
    python stylegan.py --dataset shapes         things with three known attributes, also offline
    python stylegan.py --config faces64 --data_root data/faces64
    python stylegan.py --sample --psi 0.7       from OUT/last.pt
    python stylegan.py --smoke                  seconds; exits 1 unless all BARS are met
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
BARS = {"swd": (0.0, 0.29), "classes": (2.5, 10.0), "style_gap": (0.0, 1e-4)}
PAPER = {"latent_dim": 512, "w_dim": 512, "n_mapping": 8, "fmap_max": 512, "fmap_base": 16384}
PAPER |= {"batch_size": 32, "lr": 2e-3, "gamma": 10.0, "ema_kimg": 10.0}
CONFIGS = {"laptop": {}, "ffhq": PAPER | {"dataset": "folder", "img_size": 1024}}
CONFIGS["ffhq"] |= {"n_steps": 781_250, "lr": 3e-3, "sample_interval": 5000}
CONFIGS["faces64"] = {"dataset": "folder", "img_size": 64, "channels": 1, "n_steps": 30_000}
CONFIGS["faces64"] |= {"fmap_max": 128, "fmap_base": 2048, "w_dim": 128, "latent_dim": 128}


# --- model ---------------------------------------------------------------------------------------
class EqualLinear(nn.Module):
    """x (..., n) -> (..., m)."""

    def __init__(self, n, m, gain=2**0.5, lr_mul=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n) / lr_mul)
        self.bias = nn.Parameter(torch.zeros(m))
        self.scale, self.lr_mul = gain / n**0.5 * lr_mul, lr_mul

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)  # eq. (8)


class EqualConv2d(nn.Module):
    """x (B, n, h, w) -> (B, m, h, w), by an odd kernel."""

    def __init__(self, n, m, kernel, gain=2**0.5, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(m)) if bias else None
        self.scale, self.padding = gain / (n * kernel**2) ** 0.5, kernel // 2

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)  # eq. (8)


def blur(x):
    """x (B, C, h, w), smoothed by 1, 2, 1 along both sides: what was copied or dropped leaves no
    pattern."""
    taps = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype) / 4
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def adain(x, style):
    """Maps x (B, C, h, w), each with the mean and the deviation that style (B, 2 C) says."""
    scale, shift = style[..., None, None].chunk(2, 1)
    var, mean = torch.var_mean(x, (2, 3), keepdim=True, correction=0)
    return (x - mean) * (var + 1e-8).rsqrt() * (1 + scale) + shift  # eq. (2)


class StyleLayer(nn.Module):
    """x (B, n, h, w) and w (B, W) -> (B, m, h, w), or twice the size; n = 0: x stays as it is."""

    def __init__(self, n, m, w_dim, up):
        super().__init__()
        self.up, self.conv = up, EqualConv2d(n, m, 3, bias=False) if n else nn.Identity()
        self.noise, self.bias = (nn.Parameter(torch.zeros(m, 1, 1)) for _ in range(2))
        self.style = EqualLinear(w_dim, 2 * m, gain=1.0)

    def forward(self, x, w):
        x = blur(self.conv(F.interpolate(x, scale_factor=2))) if self.up else self.conv(x)
        n = torch.randn(len(x), 1, *x.shape[2:], device=x.device, dtype=x.dtype)
        return adain(F.leaky_relu(x + self.noise * n + self.bias, 0.2), self.style(w))  # eq. (3)


# Differs from gan/gan.py
class Generator(nn.Module):
    """Noise (B, Z) -> images (B, C, S, S)."""

    def __init__(self, latent_dim, w_dim, n_mapping, channels, widths):
        super().__init__()
        sizes = pairwise([latent_dim] + [w_dim] * n_mapping)
        layers = [
            part for pair in sizes for part in (EqualLinear(*pair, lr_mul=0.01), nn.LeakyReLU(0.2))
        ]
        self.mapping = nn.Sequential(*layers)
        self.constant = nn.Parameter(torch.ones(1, widths[0], 4, 4))
        n = widths[0]
        layers = [StyleLayer(0, n, w_dim, False), StyleLayer(n, n, w_dim, False)]
        for n, m in pairwise(widths):
            layers += [StyleLayer(n, m, w_dim, True), StyleLayer(m, m, w_dim, False)]
        self.layers = nn.ModuleList(layers)
        self.to_rgb = EqualConv2d(widths[-1], channels, 1, gain=1.0)
        self.register_buffer("w_mean", torch.zeros(w_dim))

    def style(self, z):
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        return self.mapping(z)  # (B, W)  eq. (1)

    def draw(self, ws):  # (B, L, W)
        x = self.constant.expand(len(ws), -1, -1, -1)
        for layer, w in zip(self.layers, ws.unbind(1), strict=True):
            x = layer(x, w)
        return self.to_rgb(x)  # (B, C, S, S)

    def spread(self, w, psi=1.0, cutoff=8):
        """The same w (B, W) for all layers, (B, L, W); the first cutoff of them are truncated."""
        first = torch.arange(len(self.layers), device=w.device)[:, None] < cutoff
        return torch.where(first, self.w_mean.lerp(w, psi)[:, None], w[:, None])  # eq. (5)

    def forward(self, z, psi=1.0):
        return self.draw(self.spread(self.style(z), psi))


# Differs from gan/gan.py
class Discriminator(nn.Module):
    """Images (B, C, S, S) -> scores (B,)."""

    def __init__(self, channels, widths):
        super().__init__()
        self.from_rgb, wide = EqualConv2d(channels, widths[-1], 1), widths[0]
        pairs = pairwise(widths[::-1])
        self.blocks = nn.ModuleList(
            nn.ModuleList([EqualConv2d(n, n, 3), EqualConv2d(n, m, 3)]) for n, m in pairs
        )
        self.conv, self.fc = EqualConv2d(wide + 1, wide, 3), EqualLinear(wide * 16, wide)
        self.score = EqualLinear(wide, 1, gain=1.0)

    def forward(self, x):
        x = F.leaky_relu(self.from_rgb(x), 0.2)
        for first, second in self.blocks:
            x = F.leaky_relu(first(x), 0.2)
            x = F.leaky_relu(F.avg_pool2d(second(blur(x)), 2), 0.2)
        x = torch.cat([x, group_deviation(x)], 1)
        x = F.leaky_relu(self.fc(F.leaky_relu(self.conv(x), 0.2).flatten(1)), 0.2)
        return self.score(x)[:, 0]  # (B,)


def group_deviation(x, size=4):
    """How much x (B, C, h, w) varies within its group of images: a map (B, 1, h, w) that is even,
    by which a generator of one picture alone is caught."""
    size = size if len(x) % size == 0 else 1 if len(x) < 2 else len(x)
    groups = x.view(size, -1, *x.shape[1:])  # image i is in group i modulo B / size
    deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3), keepdim=True)
    return deviation.repeat(size, 1, *x.shape[2:])


# --- the idea ------------------------------------------------------------------------------------
# Of scores, -log D is softplus(-score) and -log(1 - D) is softplus(score): finite, however sure D.
# Differs from gan/gan.py
def d_loss(real_score, fake_score):
    return F.softplus(-real_score).mean() + F.softplus(fake_score).mean()  # eq. (6)


# Differs from gan/gan.py
def g_loss(fake_score):
    return F.softplus(-fake_score).mean()  # eq. (7)


def mix_styles(generator, z):
    """Styles (B, L, W) of two halves of z (2 B, Z): those of the second from a cut on, which is
    drawn anew for each picture, and in a tenth of them behind the end."""
    w, other = generator.style(z).chunk(2)
    n, B = len(generator.layers), len(w)
    cut = torch.randint(1, n, (B, 1), device=z.device)
    cut = torch.where(torch.rand(B, 1, device=z.device) < 0.9, cut, n)
    first = torch.arange(n, device=z.device) < cut  # (B, L)
    with torch.no_grad():
        generator.w_mean.lerp_(w.mean(0), 0.005)
    return torch.where(first[..., None], w[:, None], other[:, None])  # eq. (4)


def r1_penalty(score, real):
    """Half the squared slope of scores (B,) at images real (B, C, S, S), on average."""
    (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean() / 2


# Differs from gan/gan.py
def d_step(generator, discriminator, optimizer, real, z, gamma):
    """One step of the discriminator; the fakes carry no graph: the generator feels nothing."""
    with torch.no_grad():
        fake = generator.draw(mix_styles(generator, z))
    score = discriminator(real.requires_grad_())
    loss = d_loss(score, discriminator(fake))
    optimizer.zero_grad()
    (loss + gamma * r1_penalty(score, real)).backward()  # eq. (6)
    optimizer.step()
    return loss.detach()


# Differs from gan/gan.py
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
SIZES = {"digits": (16, 1), "shapes": (16, 3), "mnist": (32, 1), "fashion_mnist": (32, 1)}
SIZES |= {"cifar10": (32, 3), "folder": (64, 3)}


def draw_attributes(n, size):
    """n things on grey, bytes (n, 3, S, S), and y (n,), whose three bits tell of each whether it is
    a disc or a box, large or small, warm or cold."""
    y = torch.randint(8, (n,))
    box, large, warm = (y[:, None, None] >> bit & 1 for bit in range(3))
    row, column = torch.meshgrid(*[torch.arange(size) / size] * 2, indexing="ij")
    middle, r = 0.35 + 0.3 * torch.rand(2, n, 1, 1), 0.15 + 0.12 * large
    u, v = (row - middle[0]).abs() / r, (column - middle[1]).abs() / r  # (n, S, S)
    edge = torch.where(box > 0, 0.9 * u.maximum(v), (u**2 + v**2).sqrt()) - 1
    inside = (0.5 - edge * r * size).clamp(0, 1)[:, None]  # the edge is a pixel wide
    warmth = torch.where(warm > 0, torch.tensor([230.0, 140, 40])[:, None, None, None], 0)
    colour = torch.where(warm > 0, warmth, torch.tensor([40.0, 110, 230])[:, None, None, None])
    return (inside * colour.movedim(0, 1) + (1 - inside) * 128).byte(), y


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
    if args.dataset in ("digits", "shapes", "folder"):
        if args.dataset == "folder":
            x, y = load_folder(args.data_root, args.img_size)
        elif args.dataset == "shapes":
            x, y = draw_attributes(4000, args.img_size)
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
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    ema = copy.deepcopy(generator)  # this one draws
    state = {"generator": generator, "discriminator": discriminator, "ema": ema}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    x, z_fixed = data[0][0], noise(args, 1000)  # the same z in every picture: progress can be seen
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros(2, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                i = torch.randint(len(x), (args.batch_size,), device=args.device)
                d = d_step(*players, optimizer_d, x[i], noise(args, 2 * len(i)), args.gamma)
                g = g_step(*players, optimizer_g, noise(args, 2 * len(i)))
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
    return evaluate(sample(ema, z_fixed), data) | entanglement(args, ema, data[0])


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
    w, n = generator.style(z[:16]), len(generator.layers)
    rows, columns = generator.spread(w[:8]), generator.spread(w[8:])
    cut = torch.arange(n, device=w.device)[:, None] < max(2, n // 2)
    mixed = [torch.cat([row[None], torch.where(cut, row, columns)]) for row in rows]
    corner = generator.spread(generator.w_mean[None])  # the mean picture
    picture(args, "mixing", generator.draw(torch.cat([corner, columns, *mixed])), 9)
    psis = torch.linspace(-1, 1, 8).tolist()
    truncated = [generator.spread(row[None], psi, n) for row in w[:8] for psi in psis]
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


def differences(a, b):
    """Mean squared difference (N,) of images a and b (N, C, S, S), at three scales."""
    scales = [
        (F.avg_pool2d(a - b, k) if k > 1 else a - b).square().mean((1, 2, 3)) for k in (1, 2, 4)
    ]
    return sum(scales) / 3


@torch.inference_mode()
def path_length(generator, z, space, step=1e-4):
    """l_W, or l_Z with space "z", of pairs of z (2 N, Z): a float."""
    a, b = (generator.style(z) if space == "w" else z).double().chunk(2)
    share, model = (
        torch.rand(len(a), 1, device=z.device).double(),
        copy.deepcopy(generator).double(),
    )
    if space == "z":  # along the sphere
        angle = F.cosine_similarity(a, b)[:, None].clamp(-1, 1).acos()
        a, b = F.normalize(a), F.normalize(b)
    found = []
    for t in (share, share + step):
        torch.manual_seed(0)  # the same noise at both ends
        if space == "w":
            w = torch.lerp(a, b, t)
        else:
            w = model.style((a * ((1 - t) * angle).sin() + b * (t * angle).sin()) / angle.sin())
        found.append(model.draw(model.spread(w)))
    return (differences(*found) / step**2).mean().item()  # eq. (9)


def separability(x, y, fakes, points):
    """exp(sum H) for attributes y (N, A) of images x (N, D), by what a classifier of them says of
    fakes (M, D), whose latents are points (M, W). Attributes that are too rare do not count."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    total, half = 0.0, len(points) // 4
    for column in y.T[y.any(0) & ~y.all(0)]:
        score = LogisticRegression(max_iter=200).fit(x, column).decision_function(fakes)
        score = torch.from_numpy(score)
        sure = score.abs().topk(2 * half)[1][torch.randperm(2 * half)]
        label, at = score[sure] > 0, points[sure]
        if 5 < label[:half].sum() < half - 5:
            side = torch.from_numpy(LinearSVC().fit(at[:half], label[:half]).predict(at[half:]))
            for part in label[half:][side], label[half:][~side]:  # which the SVM has not seen
                p = part.double().mean().nan_to_num()
                total += len(part) / half * torch.special.entr(torch.stack([p, 1 - p])).sum().item()
    return math.exp(total)  # eq. (10)


def entanglement(args, generator, data):
    """Path length and separability, in W and in Z; 32 pixels a side suffice for the classifiers."""
    torch.manual_seed(1)
    z = noise(args, 4000)
    x, y = (part[:2000].cpu() for part in data)
    attributes = y[:, None] >> torch.arange(3) & 1 if args.dataset == "shapes" else F.one_hot(y)
    small, x = min(32, args.img_size), F.adaptive_avg_pool2d(x, min(32, args.img_size)).flatten(1)
    parts = (F.adaptive_avg_pool2d(sample(generator, part), small) for part in z.split(100))
    fakes = torch.cat([*parts]).flatten(1).cpu()
    w, rows = generator.style(z).detach().cpu(), attributes.bool()
    found = {"ppl_w": path_length(generator, z[:400], "w")}
    found["ppl_z"] = path_length(generator, z[:400], "z")
    found["separability_w"] = separability(x, rows, fakes, w)
    return found | {"separability_z": separability(x, rows, fakes, z.cpu())}


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    style = torch.randn(4, 6)
    var, mean = torch.var_mean(adain(torch.randn(4, 3, 8, 8), style), (2, 3), correction=0)
    gap = (torch.cat([var.sqrt() - (1 + style[:, :3]).abs(), mean - style[:, 3:]])).abs().max()
    return report(args, **metrics, style_gap=gap)


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
