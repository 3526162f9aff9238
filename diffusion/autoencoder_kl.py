# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""KL autoencoder: images to small latents and back, sharp to the eye: stage 1 of latent diffusion.

Paper: Rombach, Blattmann, Lorenz, Esser & Ommer, "High-Resolution Image Synthesis with Latent
Diffusion Models", CVPR 2022, arXiv 2112.10752; the loss is that of Esser, Rombach & Ommer,
"Taming Transformers for High-Resolution Image Synthesis" (VQGAN), CVPR 2021, arXiv 2012.09841.
An encoder E shrinks an image f-fold in each direction, a decoder turns the latent back into an
image. Pixels alone would reward blur, so the reconstruction is compared in the features phi of a
trained network too, and a discriminator D looks at it patch by patch.

    (mu, log sigma^2) = E(x), log sigma^2 in [-30, 20]                 (31)  posterior q(z | x)
    z = mu + sigma eps, eps ~ N(0, I)                                  (32)  latent
    KL = 1/2 sum (mu^2 + sigma^2 - 1 - log sigma^2)                    (33)  to N(0, I)
    P = sum_l mean_hw sum_c (phi_l(x) - phi_l(x_hat))^2                (34)  |phi_l| = 1 a pixel
    R = |x - x_hat| + lambda_p P                                       (35)  at every pixel
    L_rec = E sum (R / exp(s) + s)                                     (36)  s: learned log scale
    L_adv = -E D(x_hat)                                                (37)  D: mean over patches
    w = ||grad L_rec|| / (||grad L_adv|| + 1e-4), at most 1e4          (38)  both of the decoder's
    L = L_rec + lambda_kl E KL + lambda_d w L_adv                      (39)  last layer's weights
    L_D = 1/2 E max(0, 1 - D(x)) + 1/2 E max(0, 1 + D(x_hat))          (40)  hinge loss

Sums run over an image or its latent, E is the mean over a batch: the weights have no meaning
without that. P counts once for each pixel in (36). The adversarial term of (39) and (40) begin at
step disc_start: a D that comes before the reconstructions are good would drive them astray. With
lambda_kl = 1e-6 the KL keeps latents near the origin and no more: they are far from N(0, I), and
decoded noise is no image. To draw images is stage 2's task, see latent_diffusion.py.

Shapes: B batch, C channels, H = W image side, Z latent_channels, f = 2^(levels - 1); images x
(B, C, H, W) in [-1, 1], latents z (B, Z, H / f, W / f). Numbers below (31) are the siblings'.
Unlike the paper: P is LPIPS with all its channel weights 1; without --vgg_weights phi are the
features of a small classifier, trained before on the same images; s is learned (the official
optimiser leaves it out, so that it stays 0); D sees x_hat from before the step of E and decoder,
not after; narrow nets have base_channels / 4 norm groups (32 from 128 on, as in the paper).
Official weights: parameter names are those of diffusers' AutoencoderKL, so its state dict of the
autoencoder of Stable Diffusion (83,653,863 parameters) loads strictly with --config f8.

    python autoencoder_kl.py                            8x8 digits, offline, minutes on a CPU
    python autoencoder_kl.py --config mnist             MNIST, 32x32 to latents of 8x8
    python autoencoder_kl.py --config f8 --data_root photos --vgg_weights vgg16-397923af.pth --amp
    python autoencoder_kl.py --n_steps 0 --weights out/autoencoder_kl/last.pt --out out/tested
                                                        only score it and draw reconstructions
    python autoencoder_kl.py --smoke                    a self-check: exits 1 unless it learned
"""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 240, "batch_size": 64, "disc_start": 160, "disc_weight": 0.2, "n_test": 299}
SMOKE |= {"n_res_blocks": 1, "sample_interval": 120}
BARS = {"mse_share": (0.0, 0.22), "judge_acc": (0.9, 1.0), "kl_gap": (0.0, 1e-10)}

# The paper's learning rate is 4.5e-6 times the batch size.
PAPER = {"dataset": "folder", "img_size": 256, "base_channels": 128, "lr": 5.4e-5}
PAPER |= {"batch_size": 12, "n_steps": 250_000, "disc_start": 50_001, "sample_interval": 5000}
PAPER |= {"disc_channels": 64, "disc_layers": 3}
MNIST = {"dataset": "mnist", "channel_mult": [1, 2, 2], "base_channels": 32, "disc_layers": 2}
CONFIGS = {
    "laptop": {},
    "mnist": MNIST | {"n_steps": 8000, "disc_start": 4000, "lr": 5e-4},
    "f4": PAPER | {"channel_mult": [1, 2, 4], "latent_channels": 3},
    "f8": PAPER | {"channel_mult": [1, 2, 4, 4], "latent_channels": 4},
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


class PlainBlock(nn.Module):
    """ddpm.py's ResnetBlock without a time and without dropout."""

    def __init__(self, n_in, n_out, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, n_in, eps=1e-6)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, n_out, eps=1e-6)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x):  # (B, n_in, H, W)
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))  # (B, n_out, H, W)


class Stage(nn.Module):
    """Residual blocks, attention behind the first if asked for, and a change of size likewise."""

    def __init__(self, widths, n_out, groups, attention=False, down=False, up=False):
        super().__init__()
        self.resnets = nn.ModuleList(PlainBlock(n_in, n_out, groups) for n_in in widths)
        self.attentions = nn.ModuleList([Attention(n_out, groups)] if attention else [])
        self.downsamplers = nn.ModuleList([Downsample(n_out)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(n_out)] if up else [])

    def forward(self, h):
        first, *others = self.resnets
        for layer in (first, *self.attentions, *others, *self.downsamplers, *self.upsamplers):
            h = layer(h)
        return h


class Encoder(nn.Module):
    """Images (B, C, H, W) -> (B, 2 Z, H / f, W / f), what becomes mean and log variance."""

    def __init__(self, channels, latent_channels, base, mults, n_res_blocks):
        super().__init__()
        groups, last, width = min(32, base // 4), len(mults) - 1, base
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, mult in enumerate(mults):
            widths, width = [width] + [mult * base] * (n_res_blocks - 1), mult * base
            self.down_blocks.append(Stage(widths, width, groups, down=i < last))
        self.mid_block = Stage([width] * 2, width, groups, attention=True)
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 2 * latent_channels, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """Latents (B, Z, H / f, W / f) -> images (B, C, H, W); one more block a level than E has."""

    def __init__(self, channels, latent_channels, base, mults, n_res_blocks):
        super().__init__()
        groups, width = min(32, base // 4), mults[-1] * base
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid_block = Stage([width] * 2, width, groups, attention=True)
        self.up_blocks = nn.ModuleList()
        for i, mult in reversed([*enumerate(mults)]):
            widths, width = [width] + [mult * base] * n_res_blocks, mult * base
            self.up_blocks.append(Stage(widths, width, groups, up=i > 0))
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z):
        h = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


def wide(x):
    """In float32, if it was narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class DiagonalGaussian:
    """q(z | x) of eq. (31) from moments (B, 2 Z, h, w): mean and log variance, (B, Z, h, w)."""

    def __init__(self, moments):
        self.mean, logvar = wide(moments).chunk(2, 1)  # (B, Z, h, w) each
        self.logvar = logvar.clamp(-30, 20)  # eq. (31)

    def sample(self):
        noise = torch.randn_like(self.mean)
        return self.mean + (self.logvar / 2).exp() * noise  # eq. (32)

    def kl(self):
        """Of each image, in nats: (B,), summed over the latent."""
        terms = self.mean.square() + self.logvar.exp() - 1 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)  # eq. (33)


class AutoencoderKL(nn.Module):
    """Encoder and decoder with a 1x1 convolution at either side of the latent. Source: paper,
    appendix G; official code: CompVis/latent-diffusion ldm/models/autoencoder.py."""

    def __init__(self, channels, latent_channels, base, mults, n_res_blocks):
        super().__init__()
        self.encoder = Encoder(channels, latent_channels, base, mults, n_res_blocks)
        self.decoder = Decoder(channels, latent_channels, base, mults, n_res_blocks)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, x):  # (B, C, H, W)
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z):  # (B, Z, H / f, W / f)
        return wide(self.decoder(self.post_quant_conv(z)))  # (B, C, H, W)


class PatchDiscriminator(nn.Module):
    """Scores (B, 1, h, w) of images (B, C, H, W), each for the patch that it sees: 70 pixels wide
    with 3 layers, as in pix2pix. BatchNorm and initial weights are those of the official code."""

    def __init__(self, channels, base, n_layers):
        super().__init__()
        layers, width = [nn.Conv2d(channels, base, 4, 2, 1), nn.LeakyReLU(0.2)], base
        for i in range(1, n_layers + 1):
            n_in, width, stride = width, base * min(2**i, 8), 2 if i < n_layers else 1
            layers += [nn.Conv2d(n_in, width, 4, stride, 1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        for weight in (layer.weight for layer in self.main if hasattr(layer, "weight")):
            nn.init.normal_(weight, 1.0 if weight.dim() == 1 else 0.0, 0.02)

    def forward(self, x):
        return wide(self.main(x))


class Perceptual(nn.Module):
    """Distances (B,) of images (B, C, H, W) in the feature maps that the stages put out."""

    def __init__(self, stages, n_in, shift=0.0, scale=1.0):
        super().__init__()
        self.stages, self.n_in = nn.ModuleList(stages), n_in
        self.register_buffer("shift", torch.as_tensor(shift).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.as_tensor(scale).view(-1, 1, 1), persistent=False)

    def features(self, x):
        h, maps = (x.expand(-1, self.n_in, -1, -1) - self.shift) / self.scale, []
        for stage in self.stages:
            h = stage(h)
            maps.append(wide(h))
        return maps

    def forward(self, x, y):
        total = 0.0
        for a, b in zip(self.features(x), self.features(y), strict=True):
            gap = F.normalize(a, dim=1) - F.normalize(b, dim=1)
            # sum over channels, mean over pixels, sum over stages
            total = total + gap.square().sum(1).mean((1, 2))  # eq. (34)
        return total


# --- the idea ------------------------------------------------------------------------------------
def reconstruction_loss(x, x_hat, distance, s, lambda_p):
    """A scalar, of images x, x_hat (B, C, H, W), distance (B,) of eq. (34) and log scale s."""
    r = (x - x_hat).abs() + lambda_p * distance[:, None, None, None]  # (B, C, H, W)  eq. (35)
    # sum over pixels and channels, mean over the batch
    return (r / s.exp() + s).flatten(1).sum(1).mean()  # eq. (36)


def adversarial_loss(fake_score):
    return -fake_score.mean()  # over patches and the batch, eq. (37)


def hinge_loss(real_score, fake_score):
    """Hinge: a score is good enough beyond 1 or -1. Mean over patches and the batch."""
    return 0.5 * (F.relu(1 - real_score).mean() + F.relu(1 + fake_score).mean())  # eq. (40)


def adaptive_weight(rec, adv, last_weight):
    """How much larger the gradient of rec is than that of adv where both enter the decoder."""
    norms = [
        torch.autograd.grad(loss, last_weight, retain_graph=True)[0].norm() for loss in (rec, adv)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)  # eq. (38)


def autoencoder_loss(model, discriminator, perceptual, s, x, args, adversarial):
    """Loss of the autoencoder, what is logged of it (6,), and x_hat (B, C, H, W) for hinge_loss."""
    posterior = model.encode(x)
    x_hat = model.decode(posterior.sample())
    distance = perceptual(x, x_hat) if args.perceptual_weight else x.new_zeros(len(x))
    rec = reconstruction_loss(x, x_hat, distance, s, args.perceptual_weight)
    kl, adv, w = posterior.kl().mean(), x.new_zeros(()), x.new_zeros(())  # mean over the batch
    if adversarial:
        discriminator.requires_grad_(False)  # the gradient passes through but does not stay
        adv = adversarial_loss(discriminator(x_hat))
        w = adaptive_weight(rec, adv, model.decoder.conv_out.weight)
        discriminator.requires_grad_(True)
    loss = rec + args.kl_weight * kl + args.disc_weight * w * adv  # eq. (39)
    parts = [loss, (x - x_hat).abs().mean(), distance.mean(), kl, adv, w]
    return loss, torch.stack(parts).detach(), x_hat.detach()


# --- data ----------------------------------------------------------------------------------------
def load_data(args):
    """Return (x, y) for training and for testing: images x uint8 (N, C, H, W) and their classes
    y (N,), whole on the device."""
    if args.dataset in ("digits", "folder"):
        if args.dataset == "folder":
            x, y = load_folder(args.data_root, args.img_size)
        else:
            from sklearn.datasets import load_digits

            x, y = map(torch.from_numpy, load_digits(return_X_y=True))
            x = (x.view(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)
        n_test = len(x) // 6
        splits = [(x[i], y[i]) for i in torch.randperm(len(x)).split([len(x) - n_test, n_test])]
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
            splits = [(x.permute(0, 3, 1, 2).contiguous(), y) for x, y in splits]
        else:
            splits = [(F.pad(x, (2, 2, 2, 2))[:, None], y) for x, y in splits]
    return [(x.to(args.device), y.to(args.device)) for x, y in splits]


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


# Copied from diffusion/ddpm.py
def to_model(images):
    """Grey levels 0 ... 255 to [-1, 1], with no noise added: bins of 2/255, as eq. (12) wants."""
    return images.float() / 127.5 - 1


# --- train, evaluate, smoke ----------------------------------------------------------------------
def build(args):
    """The autoencoder and the discriminator, at random, and the perceptual features: of VGG16,
    or of a network that fit_classifier has yet to train."""
    channels = SIZES[args.dataset][1]
    shape = args.base_channels, args.channel_mult, args.n_res_blocks
    model = AutoencoderKL(channels, args.latent_channels, *shape)
    discriminator = PatchDiscriminator(channels, args.disc_channels, args.disc_layers)
    if args.vgg_weights:
        perceptual = vgg16_features(args.vgg_weights)
    else:
        widths = zip([channels, 16, 32], [16, 32, 64], [1, 2, 2], strict=True)
        convs = [nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in widths]
        perceptual = Perceptual([nn.Sequential(c, nn.ReLU()) for c in convs], channels)
    return [part.to(args.device) for part in (model, discriminator, perceptual)]


def vgg16_features(path):
    """The five stages of torchvision's VGG16, cut where LPIPS cuts them, for images in [-1, 1]."""
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["D"])
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = {key[9:]: part for key, part in saved.items() if key.startswith("features.")}
        layers.load_state_dict(saved)
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--vgg_weights {path}: is no state dict of torchvision's vgg16; name its .pth file")
    cuts = (0, 4), (4, 9), (9, 16), (16, 23), (23, 30)  # at relu1_2, 2_2, 3_3, 4_3 and 5_3
    stages = [layers[a:b] for a, b in cuts]
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    return Perceptual(stages, 3, 2 * mean - 1, 2 * std).requires_grad_(False)


def fit_classifier(perceptual, x, y):
    """Teach the stages to tell the classes y (N,) of images x, by a last layer that is dropped."""
    if len(y.unique()) < 2:
        fail("--vgg_weights: is needed, as the images are of one class; or --perceptual_weight 0")
    head = nn.Linear(64, int(y.max()) + 1, device=x.device)
    optimizer = torch.optim.Adam([*perceptual.parameters(), *head.parameters()], 2e-3, fused=True)
    steps = range(max(300, len(x) // 64))
    for _ in tqdm(steps, "no --vgg_weights: a classifier for P", leave=False, disable=None):
        i = torch.randint(len(x), (64,), device=x.device)
        scores = head(perceptual.features(to_model(x[i]))[-1].mean((2, 3)))  # (B, classes)
        optimizer.zero_grad()
        F.cross_entropy(scores, y[i]).backward()
        optimizer.step()


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of test images."""
    torch.manual_seed(args.seed)
    (images, labels), (test, _) = load_data(args)
    model, discriminator, perceptual = build(args)
    if args.weights:
        load_weights(args.weights, model)
    scale = nn.ParameterDict({"s": torch.zeros((), device=args.device)})
    adam = {"lr": args.lr, "betas": (args.b1, args.b2), "fused": True}
    optimizer_g = torch.optim.Adam([*model.parameters(), *scale.parameters()], **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    state = {"model": model, "discriminator": discriminator, "scale": scale}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    state |= {} if args.vgg_weights else {"perceptual": perceptual}
    step = begin(args, state)
    if step == 0 < args.n_steps and args.perceptual_weight and not args.vgg_weights:
        fit_classifier(perceptual, images, labels)
    if step == 0 < args.n_steps <= args.disc_start:
        print(f"--disc_start {args.disc_start}: never reached, no adversary", file=sys.stderr)
    perceptual.requires_grad_(False)
    test = to_model(test[: args.n_test])
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    names = "loss", "l1", "perceptual", "kl", "g_loss", "weight", "d_loss"
    try:
        while step < args.n_steps:
            total = torch.zeros(len(names), device=args.device)  # summed there: no sync
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                i = torch.randint(len(images), (args.batch_size,), device=args.device)
                x, adversarial = to_model(images[i]), step >= args.disc_start
                parts = model, discriminator, perceptual, scale["s"], x, args, adversarial
                with cast:  # touches matmul and convolution; losses stay in float32
                    loss, row, x_hat = autoencoder_loss(*parts)
                optimizer_g.zero_grad()
                loss.backward()
                optimizer_g.step()
                if adversarial:  # on the same batch
                    with cast:
                        loss = hinge_loss(discriminator(x), discriminator(x_hat))
                    optimizer_d.zero_grad()
                    loss.backward()
                    optimizer_d.step()
                total += torch.cat([row, loss.detach()[None] * adversarial])
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            draw(model, test, args, f"reconstructions_{step:06d}.png")
            row = dict(zip(names, (total / n).tolist(), strict=True))
            log(args, step=step, **row, **evaluate(model, test, args))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    draw(model, test, args, "reconstructions.png")
    return evaluate(model, test, args)


@torch.inference_mode()
def reconstruct(model, x, args):
    """Images x (N, C, H, W) from the means of their latents, and the latents, drawn at random."""
    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp):
        posteriors = [model.encode(part) for part in x.split(args.batch_size)]
        images = torch.cat([model.decode(posterior.mean) for posterior in posteriors])
    return images.clamp(-1, 1), torch.cat([posterior.sample() for posterior in posteriors])


def draw(model, x, args, name):
    """Write a grid of test images, and below each row of them their reconstructions."""
    from torchvision.utils import save_image

    x = x[: args.n_samples]
    nrow = math.ceil(len(x) ** 0.5)
    pairs = zip(x.split(nrow), reconstruct(model, x, args)[0].split(nrow), strict=True)
    rows = [F.pad(part, (0, 0) * 3 + (0, nrow - len(part))) for pair in pairs for part in pair]
    images = F.interpolate(torch.cat(rows), scale_factor=max(1, 32 // args.img_size))
    path = Path(args.out, name)
    save_image(images, path, nrow=nrow, normalize=True, value_range=(-1, 1))


def evaluate(model, x, args):
    """Of test images x: error, the same as a share of the pixels' variance and in decibels; and
    the deviation of their latents, by which latent_diffusion.py divides them."""
    torch.manual_seed(args.seed)
    y, z = reconstruct(model, x, args)
    mse, variance = (y - x).square().mean().item(), x.var(0, correction=0).mean().item()
    row = {"mse": mse, "mse_share": mse / max(variance, 1e-9)}  # all x may be equal
    psnr = 10 * math.log10(4 / max(mse, 1e-9))  # 4: the square of the range
    return row | {"psnr": psnr, "latent_std": z.std().item()}


def smoke(args):
    """A short run in a temporary folder, its reconstructions judged, and an identity."""
    from sklearn.linear_model import LogisticRegression

    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        model, *_ = build(args)
        load_weights(f"{args.out}/last.pt", model)
    torch.manual_seed(args.seed)  # the same split
    (x, y), (test, labels) = [(to_model(x), y.cpu()) for x, y in load_data(args)]
    judge = LogisticRegression(max_iter=300).fit(x.flatten(1).cpu(), y)
    judge_acc = judge.score(reconstruct(model, test, args)[0].flatten(1).cpu(), labels)
    moments = torch.randn(8, 6, 2, 2, dtype=torch.float64)
    q = DiagonalGaussian(moments)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(q.mean, (q.logvar / 2).exp()), normal(0.0, 1.0))
    kl_gap = (kl.sum((1, 2, 3)) - q.kl()).abs().max()
    return report(args, **metrics, judge_acc=judge_acc, kl_gap=kl_gap)


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
    add("--batch_size", type=at_least(2), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=1e-3, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.5, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of its square")
    add("--dataset", choices=[*SIZES], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--img_size", type=at_least(4), help="side that a folder's images get, 64 by default")
    add("--config", choices=[*CONFIGS], default="laptop", help="named set of defaults")
    add("--base_channels", type=at_least(8), default=16, help="width of the net at full size")
    add("--channel_mult", type=at_least(1), nargs="+", default=[1, 2], help="... at each size")
    add("--n_res_blocks", type=at_least(1), default=2, help="residual blocks at each size")
    add("--latent_channels", type=at_least(1), default=4, help="channels Z of the latent")
    add("--kl_weight", type=at_least(0.0), default=1e-6, help="lambda_kl")
    add("--perceptual_weight", type=at_least(0.0), default=1.0, help="lambda_p; 0 leaves P out")
    add("--vgg_weights", help="torchvision's vgg16 .pth, for P; else a classifier is trained")
    add("--disc_weight", type=at_least(0.0), default=0.5, help="lambda_d")
    add("--disc_start", type=at_least(0), default=1500, help="first step of the discriminator")
    add("--disc_channels", type=at_least(1), default=16, help="width of its first layer")
    add("--disc_layers", type=at_least(1), default=1, help="its depth; patches are 16, 34, 70 wide")
    add("--sample_interval", type=at_least(1), default=500, help="steps between sample grids")
    add("--n_samples", type=at_least(1), default=64, help="images in a grid")
    add("--n_test", type=at_least(1), default=256, help="test images encoded and decoded")
    add("--weights", help="state dict or checkpoint to load")
    add("--amp", action="store_true", help="bfloat16 autocast")
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
    side = SIZES[args.dataset][0]
    args.img_size = args.img_size or side
    if args.dataset != "folder" and args.img_size != side:
        fail(f"--img_size {args.img_size}: {args.dataset} has {side}; leave the flag out")
    halvings = len(args.channel_mult) - 1
    if args.img_size % 2**halvings:
        reason = f"cannot be halved {halvings} times; try a multiple of {2**halvings}"
        fail(f"--img_size {args.img_size}: {reason}")
    if args.base_channels % 4:
        fail(f"--base_channels {args.base_channels}: is no multiple of 4; try 32, 64 or 128")
    if args.img_size >> args.disc_layers < 3:
        fail(f"--disc_layers {args.disc_layers}: too many for {args.img_size} pixels; take fewer")
    if args.vgg_weights and args.img_size < 16:
        fail("--vgg_weights: halves its input four times; leave it out, or --img_size 16 or more")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
