# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Latent diffusion (Stable Diffusion): DDPM on the latents of an autoencoder, steered by words.

Paper: Rombach, Blattmann, Lorenz, Esser & Ommer, "High-Resolution Image Synthesis with Latent
Diffusion Models", CVPR 2022, arXiv 2112.10752. Stage 1 is autoencoder_kl.py, whose equations keep
their numbers, as do those of ddpm.py and ddim.py. Stage 2 is DDPM where an image has f^2 times
fewer places: cheaper by far. What to draw, a class or a text y, becomes vectors tau(y), and the
U-Net looks at them by cross-attention. Both stages train here, one after the other.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, eps ~ N(0, I)        (2)  here x_0 is a latent
    x_hat = (x_t - sqrt(1 - abar_t) eps_hat) / sqrt(abar_t)             (5)  latent seen in x_t
    L = E_{t, x_0, eps, y} (eps - eps_hat(x_t, t, tau(y)))^2            (9)  trains U-Net and tau
    x_t' = sqrt(abar_t') x_hat + sqrt(1 - abar_t') eps_hat             (16)  DDIM step to t' < t
    (mu, log sigma^2) = E(x), log sigma^2 in [-30, 20]                 (31)  posterior q(z | x)
    z = mu + sigma eps, eps ~ N(0, I)                                  (32)  latent
    KL = 1/2 sum (mu^2 + sigma^2 - 1 - log sigma^2)                    (33)  to N(0, I)
    L_1 = E sum |x - x_hat| + lambda_kl E KL                           (41)  stage 1 in short
    x_0 = z / std(z), std over sampled latents of the data             (42)  of variance 1
    sqrt(beta_t) = linear from sqrt(beta_start) to sqrt(beta_end)      (43)  noise schedule
    softmax(Q K^T / sqrt(d)) V, Q = W_Q phi(x_t),
    K = W_K tau(y), V = W_V tau(y)                                     (44)  cross-attention
    eps_hat = eps_hat(no y) + s (eps_hat(y) - eps_hat(no y))           (45)  guidance of scale s

abar_t is the product of all 1 - beta up to t. To make (45) possible one y in ten is replaced by
the empty text in training. s = 1 is plain conditional sampling; a larger s obeys y more, at the
cost of variety. Latents are not bounded: x_hat is never clipped. beta_start and beta_end hold for
T = 1000 and are multiplied by 1000/T.

Shapes: B batch, C channels, H = W image side, Z latent channels, h = w = H / f latent side, E time
embedding, L tokens of D = context_dim numbers, K classes; images x (B, C, H, W) in [-1, 1],
latents (B, Z, h, w), texts (B, L) integer, 0 where there is none, tau(y) (B, L, D), t (B,).
Unlike the paper: stage 1 has neither discriminator nor perceptual loss, train it with
autoencoder_kl.py for those and name it by --ae_weights; std in (42) is of 1000 latents, not of
one batch; DDIM visits both 0 and T-1; padding is masked in cross-attention; texts are spelled
letter by letter, captions come from class names; narrow nets have base_channels / 4 norm groups
(32 from 128 on, as in the paper); the average of weights is that of ddpm.py.
Official weights: parameter names of the U-Net are those of diffusers' UNet2DConditionModel, so the
state dict of Stable Diffusion 1.4's U-Net (859,520,964 parameters) loads strictly into build's
model.unet with --config sd14, its autoencoder (diffusers' AutoencoderKL) by --ae_weights. The
U-Net of --config ldm4 is that for the classes of ImageNet (400,920,579 parameters).

    python latent_diffusion.py                                8x8 digits, offline, minutes on a CPU
    python latent_diffusion.py --prompt "a photo of a seven"  draw that, from OUT/last.pt
    python latent_diffusion.py --dataset shapes               coloured shapes, offline as well
    python latent_diffusion.py --dataset shapes --prompt "a big blue disc"    none was trained on
    python latent_diffusion.py --config mnist --ae_weights out/autoencoder_kl/last.pt
    python latent_diffusion.py --smoke                       a self-check: exits 1 unless it learned
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
SMOKE = {"n_steps": 360, "ae_steps": 200, "batch_size": 32, "lr": 3e-3, "warmup": 20, "ema": 0.95}
SMOKE |= {"base_channels": 64, "channel_mult": [1], "attn_levels": [0], "n_res_blocks": 1}
SMOKE |= {"ae_res_blocks": 1, "timesteps": 100, "sampling_steps": 10, "sample_interval": 360}
SMOKE |= {"n_samples": 200, "cfg_scale": 4.0}
BARS = {"ae_mse_share": (0.0, 0.185), "guided_acc": (0.6, 1.0), "guidance_gain": (0.11, 1.0)}
BARS |= {"latent_std": (0.9, 1.1)}

LDM = {"dataset": "shapes", "timesteps": 1000, "sampling_steps": 200, "n_res_blocks": 2}
LDM |= {"ae_base_channels": 128, "ae_res_blocks": 2, "ema": 0.9999, "sample_interval": 5000}
SD = {"base_channels": 320, "channel_mult": [1, 2, 4, 4], "attn_levels": [0, 1, 2], "heads": 8}
SD |= {"context_dim": 768, "ae_channel_mult": [1, 2, 4, 4], "beta_start": 0.00085}
LDM4 = {"base_channels": 192, "channel_mult": [1, 2, 3, 5], "attn_levels": [1, 2, 3]}
LDM4 |= {"context_dim": 512, "head_dim": 32, "ae_channel_mult": [1, 2, 4], "latent_channels": 3}
MNIST = {"dataset": "mnist", "base_channels": 64, "ae_channel_mult": [1, 2, 2], "timesteps": 1000}
CONFIGS = {
    "laptop": {},
    "mnist": MNIST | {"ae_base_channels": 32, "n_steps": 20_000, "lr": 5e-4, "ema": 0.999},
    "sd14": LDM | SD | {"beta_end": 0.012, "img_size": 512, "lr": 1e-4, "cond": "text"},
    "ldm4": LDM | LDM4 | {"img_size": 256, "lr": 1e-4, "cond": "class"},
}
# Side and channels of the images of every data set; MNIST's 28 pixels are padded with black to 32.
SIZES = {"digits": (8, 1), "mnist": (32, 1), "fashion_mnist": (32, 1), "cifar10": (32, 3)}
SIZES |= {"shapes": (16, 3)}
NAMES = {"digits": "zero, one, two, three, four, five, six, seven, eight, nine"}
NAMES["mnist"] = NAMES["digits"]
NAMES["fashion_mnist"] = "t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag"
NAMES["fashion_mnist"] += ", boot"
NAMES["cifar10"] = "airplane, car, bird, cat, deer, dog, frog, horse, ship, truck"
COLOURS = {"red": (255, 20, 20), "green": (20, 200, 50), "blue": (50, 80, 255)}
NAMES["shapes"] = ", ".join(
    f"{size} {colour} {kind}"
    for size in ("small", "big")
    for colour in COLOURS
    for kind in ("disc", "square", "triangle")
)
UNSEEN = 15  # big blue disc, left out of training: can words be put together anew?
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 -.,'"  # tokens 3 and on
LENGTH = 32  # L, of texts; tokens 0, 1 and 2 are padding, unknown and start


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


# Copied from diffusion/autoencoder_kl.py
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


# Copied from diffusion/autoencoder_kl.py
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


# Copied from diffusion/autoencoder_kl.py
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


# Copied from diffusion/autoencoder_kl.py
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


# Copied from diffusion/autoencoder_kl.py
def wide(x):
    """In float32, if it was narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Copied from diffusion/autoencoder_kl.py
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


# Copied from diffusion/autoencoder_kl.py
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


# Differs from diffusion/ddpm.py
class ResnetBlock(PlainBlock):
    """A PlainBlock of the U-Net, which is told the time, by its embedding (B, E)."""

    def __init__(self, n_in, n_out, groups, n_time):
        super().__init__(n_in, n_out, groups)
        self.norm1.eps = self.norm2.eps = 1e-5
        self.time_emb_proj = nn.Linear(n_time, n_out)
        zero(self.conv2)

    def forward(self, x, emb):  # (B, n_in, h, w), (B, E)
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(emb)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))  # (B, n_out, h, w)


class CrossAttention(nn.Module):
    """Tokens x (B, N, width) look at the context (B, L, D), or at each other without one."""

    def __init__(self, width, n_context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(n_context, width, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        h = F.scaled_dot_product_attention(q, k, v, mask)  # (B, heads, N, d)  eq. (44)
        return self.to_out(h.transpose(1, 2).flatten(2))  # (B, N, width)


class GatedFeedForward(nn.Module):
    """GEGLU: one half of the hidden numbers gates the other."""

    def __init__(self, width):
        super().__init__()
        first = nn.ModuleDict({"proj": nn.Linear(width, 8 * width)})
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x):
        h, gate = self.net[0]["proj"](x).chunk(2, -1)  # (B, N, 4 width) each
        return self.net[2](h * F.gelu(gate))


class BasicTransformerBlock(nn.Module):
    """Attention among the places of the image, then from them to the text, then an MLP."""

    def __init__(self, width, n_context, heads):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = CrossAttention(width, width, heads)
        self.attn2 = CrossAttention(width, n_context, heads)
        self.ff = GatedFeedForward(width)

    def forward(self, x, context, mask):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the places of a feature map (B, width, h, w), beside a skip."""

    def __init__(self, width, n_context, heads, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(width, n_context, heads)])
        self.proj_out = zero(nn.Conv2d(width, width, 1))

    def forward(self, x, context, mask):
        h = self.proj_in(self.norm(x)).flatten(2).mT  # (B, h w, width)
        h = self.transformer_blocks[0](h, context, mask)
        return x + self.proj_out(h.mT.reshape_as(x))  # (B, width, h, w)


# Differs from diffusion/ddpm.py
class Level(nn.Module):
    """Residual blocks at one resolution, a transformer behind each if looks, a change of size."""

    def __init__(self, widths, n_out, n_time, groups, looks, n_context, heads):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(n, n_out, groups, n_time) for n in widths)
        looks = [SpatialTransformer(n_out, n_context, heads, groups) for _ in widths if looks]
        self.attentions = nn.ModuleList(looks)
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    def forward(self, i, h, emb, context, mask):
        """The i-th block of the level."""
        h = self.resnets[i](h, emb)
        return self.attentions[i](h, context, mask) if i < len(self.attentions) else h


# Differs from diffusion/ddpm.py
class UNet(nn.Module):
    """The network eps_hat(x_t, t, tau(y)) with mask (B, L), False where the text has no token.

    x (B, Z, h, w), t (B,) integer, context (B, L, D) -> (B, Z, h, w). h must be divisible by
    2^(levels - 1). There are `heads` heads of attention, or width / head_dim, if that is given.
    Source: paper, appendix E; official code: CompVis/latent-diffusion
    ldm/modules/diffusionmodules/openaimodel.py and ldm/modules/attention.py.
    """

    def __init__(self, channels, base, mults, depth, attn_levels, n_context, heads, head_dim=0):
        super().__init__()
        groups, n_time, last = min(32, base // 4), 4 * base, len(mults) - 1
        self.base = base

        def level(widths, n_out, looks):
            n_heads = n_out // head_dim if head_dim else heads
            return Level(widths, n_out, n_time, groups, looks, n_context, n_heads)

        layers = {"linear_1": nn.Linear(base, n_time), "act": nn.SiLU()}
        layers["linear_2"] = nn.Linear(n_time, n_time)
        self.time_embedding = nn.Sequential(OrderedDict(layers))
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        width, skips = base, [base]  # skips: the width of every feature map kept for the way up
        for i, mult in enumerate(mults):
            widths, width = [width] + [mult * base] * (depth - 1), mult * base
            self.down_blocks.append(level(widths, width, i in attn_levels))
            skips += [width] * (depth + (i < last))
            if i < last:
                shrink = OrderedDict(conv=nn.Conv2d(width, width, 3, stride=2, padding=1))
                self.down_blocks[i].downsamplers.append(nn.Sequential(shrink))
        self.mid_block = level([width, width], width, True)
        self.mid_block.attentions.pop(1)
        for i, mult in reversed([*enumerate(mults)]):
            widths, width = [width] + [mult * base] * depth, mult * base
            widths = [n_in + skips.pop() for n_in in widths]
            self.up_blocks.append(level(widths, width, i in attn_levels))
            self.up_blocks[-1].upsamplers.extend([Upsample(width)] * (i > 0))
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=1e-5)
        self.conv_out = zero(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x, t, context, mask=None):
        emb = timestep_embedding(t, self.base).to(x.dtype)  # (B, E / 4)
        emb = F.silu(self.time_embedding(emb))  # (B, E), for every block
        mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, L), the same for all
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                h = level(i, h, emb, context, mask)
                skips.append(h)
            for downsample in level.downsamplers:
                h = downsample(h)
                skips.append(h)
        for i in range(2):
            h = self.mid_block(i, h, emb, context, mask)
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                h = level(i, torch.cat([h, skips.pop()], 1), emb, context, mask)
            for upsample in level.upsamplers:
                h = upsample(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class ConditionEncoder(nn.Module):
    """tau: tokens (B, L) -> vectors (B, L, D). Depth 0 is a table, which will do for classes."""

    def __init__(self, n_tokens, length, dim, depth, heads=4):
        super().__init__()
        self.token = nn.Embedding(n_tokens, dim)
        self.position = nn.Parameter(0.1 * torch.randn(length, dim))
        kinds = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layers = [nn.TransformerEncoderLayer(dim, heads, 4 * dim, **kinds) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens):
        h = self.token(tokens) + self.position[: tokens.shape[1]]
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=tokens == 0)
        return h


class LatentDiffusion(nn.Module):
    """All that it takes to draw: U-Net, tau, autoencoder, and the factor 1 / std(z) of eq. (42)."""

    def __init__(self, unet, tau, autoencoder):
        super().__init__()
        self.unet, self.tau, self.autoencoder = unet, tau, autoencoder.requires_grad_(False)
        self.register_buffer("scale_factor", torch.ones(()))

    def told(self, texts):
        """eps_hat as a function of x_t (B, Z, h, w), t (B,) and which (B,) of the texts (M, L)
        holds; so tau has to read each of them but once."""
        context, mask = self.tau(texts), texts > 0  # (M, L, D), (M, L)
        return lambda x_t, t, which: self.unet(x_t, t, context[which], mask[which])

    def latents(self, posterior):
        """Sampled latents of images, scaled: (B, Z, h, w)."""
        return posterior.sample() * self.scale_factor  # eq. (42)

    def images(self, x0):
        """Images (B, C, H, W) of scaled latents (B, Z, h, w)."""
        return self.autoencoder.decode(x0 / self.scale_factor)


# --- the idea ------------------------------------------------------------------------------------
def to_tokens(texts, length=LENGTH):
    """Texts as numbers (N, length), letter by letter behind a start sign; padded with 0."""
    rows = []
    for text in texts:
        known = {letter: i for i, letter in enumerate(LETTERS, 3)}
        if odd := sorted({letter for letter in text.lower() if letter not in known}):
            print(f"warning: unknown in {text!r}: {' '.join(odd)}", file=sys.stderr)
        if len(text) >= length:
            print(f"warning: {text!r} is cut to {length - 1} letters", file=sys.stderr)
        row = [2, *(known.get(letter, 1) for letter in text.lower())][:length]
        rows.append(row + [0] * (length - len(row)))
    return torch.tensor(rows)


# Differs from diffusion/ddpm.py
class GaussianDiffusion:
    """The forward process q on latents, and the guided steps of DDIM back.

    abar is kept in float64, for a step's coefficients: 1 - abar_t in float32 has lost half its
    digits at small t. Its last entry, which index -1 finds, is the 1 of the clean latent.
    """

    def __init__(self, timesteps, beta_start, beta_end, device, dtype=torch.float32):
        self.timesteps = timesteps
        roots = beta_start**0.5, beta_end**0.5
        betas = torch.linspace(*roots, timesteps, dtype=torch.float64).square()  # eq. (43)
        abar = (1 - betas * 1000 / timesteps).cumprod(0)
        tables = {"sqrt_abar": abar.sqrt(), "sqrt_one_minus_abar": (1 - abar).sqrt()}
        self.tables = {key: table.to(device, dtype) for key, table in tables.items()}
        self.abar = [*abar.tolist(), 1.0]

    def at(self, name, t):
        """Values of a table at t (B,), shaped to multiply images: (B, 1, 1, 1)."""
        return self.tables[name][t][:, None, None, None]

    def q_sample(self, x0, t, noise):
        return self.at("sqrt_abar", t) * x0 + self.at("sqrt_one_minus_abar", t) * noise  # eq. (2)

    def training_losses(self, model, x0, t, noise, which):
        """Loss of each latent (B,), for a model(x_t, t, which)."""
        eps_hat = model(self.q_sample(x0, t, noise), t, which)
        return (noise - eps_hat).square().flatten(1).mean(1)  # eq. (9)

    def guided(self, model, x_t, t, which, scale):
        """eps_hat (B, Z, h, w) of the texts which (B,); text -1 is the empty one; t is an int."""
        t = torch.full((len(x_t),), t, device=x_t.device)
        if scale == 1:
            return model(x_t, t, which)
        both = torch.cat([torch.full_like(which, -1), which])  # (2 B,)
        without, given = model(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return without + scale * (given - without)  # eq. (45)

    def ddim_step(self, x_t, eps_hat, t, to):
        """From time t to an earlier one, -1 being the clean latent: x_to (B, Z, h, w)."""
        a, b = self.abar[t], self.abar[to]
        x_hat = (x_t - math.sqrt(1 - a) * eps_hat) / math.sqrt(a)  # eq. (5)
        return math.sqrt(b) * x_hat + math.sqrt(1 - b) * eps_hat  # eq. (16)

    def ddim_sample_loop(self, model, x, steps, which, scale):
        """Take noise x (B, Z, h, w) in so many steps from T-1 to 0; yields the latent of each."""
        times = torch.linspace(self.timesteps - 1, 0, steps, dtype=torch.float64).round()
        times = times.long().tolist()
        for t, to in zip(times, [*times[1:], -1], strict=True):
            x = self.ddim_step(x, self.guided(model, x, t, which, scale), t, to)
            yield x


# --- data ----------------------------------------------------------------------------------------
def load_data(args):
    """Return (x, y) for training and for testing: images x uint8 (N, C, H, W) and their classes
    y (N,), whole on the device."""
    if args.dataset in ("digits", "shapes"):
        if args.dataset == "shapes":
            x, y = draw_shapes(3600, args.img_size)
        else:
            from sklearn.datasets import load_digits

            x, y = map(torch.from_numpy, load_digits(return_X_y=True))
            x = (x.view(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)
        n_test = len(x) // 6
        splits = [(x[i], y[i]) for i in torch.randperm(len(x)).split([len(x) - n_test, n_test])]
        if args.dataset == "shapes":
            splits[0] = tuple(part[splits[0][1] != UNSEEN] for part in splits[0])
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


def draw_shapes(n, side):
    """n images (n, 3, side, side) of the shapes in turn, anywhere on black, and which they are."""
    y = torch.arange(n) % 18
    r = torch.where(y < 9, 0.34, 0.62)[:, None, None]  # half its width; the image is 2 wide
    middle = (torch.rand(2, n, 1, 1) * 2 - 1) * (1 - r)
    line = (torch.arange(side) * 2 + 1) / side - 1
    v, u = (line[:, None] - middle[0]) / r, (line - middle[1]) / r  # (n, side, 1), (n, 1, side)
    inside = [(u**2 + v**2).sqrt(), torch.maximum(u.abs(), v.abs())]
    inside.append(torch.maximum(2 * u.abs() - v, v.abs()))  # all are 1 on the edge
    edge = torch.stack(inside, 1)[torch.arange(n), y % 3] - 1  # (n, side, side)
    mask = (0.5 - edge * r * side / 2).clamp(0, 1)[:, None]  # the edge is a pixel wide
    colour = torch.tensor([*COLOURS.values()])[y // 3 % 3][:, :, None, None]
    return (mask * colour).round().to(torch.uint8), y


def captions(args):
    """The text of every class as tokens (K + 1, L), the empty one last. For --cond class they are
    but one token long; for none all are empty."""
    names = NAMES[args.dataset].split(", ")
    if args.cond == "text":
        form = "a {}" if args.dataset == "shapes" else "a photo of a {}"
        tokens = to_tokens([*map(form.format, names), ""])
    else:
        tokens = torch.tensor([*range(3, 3 + len(names)), 2])[:, None]
    return (tokens if args.cond != "none" else tokens.clamp(max=2)).to(args.device)


# Copied from diffusion/ddpm.py
def to_model(images):
    """Grey levels 0 ... 255 to [-1, 1], with no noise added: bins of 2/255, as eq. (12) wants."""
    return images.float() / 127.5 - 1


# --- train, sample, evaluate, smoke --------------------------------------------------------------
def build(args):
    """The networks, at random, and the diffusion process around the U-Net."""
    channels, texts = SIZES[args.dataset][1], captions(args)
    shape = args.ae_base_channels, args.ae_channel_mult, args.ae_res_blocks
    autoencoder = AutoencoderKL(channels, args.latent_channels, *shape)
    shape = args.base_channels, args.channel_mult, args.n_res_blocks, args.attn_levels
    unet = UNet(args.latent_channels, *shape, args.context_dim, args.heads, args.head_dim)
    n_tokens = 3 + (len(LETTERS) if args.cond == "text" else len(texts) - 1)
    depth = args.text_depth if args.cond == "text" else 0
    tau = ConditionEncoder(n_tokens, texts.shape[1], args.context_dim, depth)
    model = LatentDiffusion(unet, tau, autoencoder).to(args.device)
    return model, GaussianDiffusion(args.timesteps, args.beta_start, args.beta_end, args.device)


def train_autoencoder(autoencoder, images, args):
    """Stage 1, reconstruction and KL alone, where no --ae_weights are given."""
    autoencoder.requires_grad_(True)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=args.lr, fused=True)
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    for step in tqdm(range(args.ae_steps), "stage 1", leave=False, disable=None):
        i = torch.randint(len(images), (args.batch_size,), device=args.device)
        x = to_model(images[i])
        with cast:
            posterior = autoencoder.encode(x)
            x_hat = autoencoder.decode(posterior.sample())
        pixels = (x - x_hat).abs().flatten(1).sum(1)  # sum over the image, then mean over batch
        loss = (pixels + args.kl_weight * posterior.kl()).mean()  # eq. (41)
        fall = min(1.0, 2 - 2 * step / args.ae_steps)  # to 0 in the second half
        optimizer.param_groups[0]["lr"] = args.lr * fall
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    autoencoder.requires_grad_(False)


@torch.inference_mode()
def encode_images(model, images, args):
    """Moments (N, 2 Z, h, w) of the posteriors of images: what is kept of them for stage 2."""
    model.eval()
    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp):
        parts = [model.autoencoder.encode(to_model(part)) for part in images.split(args.batch_size)]
    return torch.cat([torch.cat([q.mean, q.logvar], 1) for q in parts])


# Differs from diffusion/ddpm.py
def draw_batch(model, moments, y, args):
    """Random latents x_0 (B, Z, h, w), times t (B,), noises eps, and which text each has (B,)."""
    i = torch.randint(len(y), (args.batch_size,), device=args.device)
    x0 = model.latents(DiagonalGaussian(moments[i]))
    t = torch.randint(args.timesteps, (args.batch_size,), device=args.device)
    drop = torch.rand(args.batch_size, device=args.device) < args.cond_drop
    return x0, t, torch.randn_like(x0), torch.where(drop, -1, y[i])  # -1: the empty text


# Copied from diffusion/ddpm.py
def update_ema(ema, model, decay):
    """Draw the averaged weights a little, 1 - decay, towards those of the model."""
    with torch.no_grad():
        torch._foreach_lerp_([*ema.parameters()], [*model.parameters()], 1 - decay)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of test images."""
    torch.manual_seed(args.seed)
    (images, y), test = load_data(args)
    model, diffusion = build(args)
    if args.ae_weights:
        load_weights(args.ae_weights, model.autoencoder)
    if args.weights:
        load_weights(args.weights, model)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    learners = [*model.unet.parameters(), *model.tau.parameters()]
    optimizer = torch.optim.Adam(learners, lr=args.lr, fused=True)
    state = {"model": model, "ema": ema, "optimizer": optimizer}
    step, texts = begin(args, state), captions(args)
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    try:
        if step == 0 and not args.weights:
            if not args.ae_weights:
                train_autoencoder(model.autoencoder, images, args)
            z = DiagonalGaussian(encode_images(model, images[:1000], args)).sample()
            model.scale_factor.copy_(1 / z.std())  # eq. (42)
            ema.load_state_dict(model.state_dict())
        moments = encode_images(model, images, args)
        while step < args.n_steps:
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                batch = draw_batch(model, moments, y, args)
                with cast:  # touches matmul and convolution; tables and losses stay in float32
                    loss = diffusion.training_losses(model.told(texts), *batch).mean()
                optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / args.warmup)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(learners, args.grad_clip)
                optimizer.step()
                update_ema(ema, model, min(args.ema, (1 + step) / (10 + step)))
                total += loss.detach()
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            draw(ema, diffusion, texts, args, f"samples_{step:06d}.png")
            log(args, step=step, loss=total.item() / n)
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(ema, diffusion, *test, args)


@torch.inference_mode()
def sample(model, diffusion, texts, which, args, scale):
    """Images (N, C, H, W) of which (N,) of the texts (M, L), obeyed with that guidance scale."""
    model.eval()
    torch.manual_seed(args.seed)  # the same noise at every call: grids can be compared
    side, steps = args.img_size >> len(args.ae_channel_mult) - 1, args.sampling_steps
    x = torch.randn(len(which), args.latent_channels, side, side, device=args.device)
    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp):
        loop = diffusion.ddim_sample_loop(model.told(texts), x, steps, which, scale)
        *_, x = tqdm(loop, "sampling", steps, leave=False, disable=None)
        return model.images(x).clamp(-1, 1)


def draw(model, diffusion, texts, args, name):
    """Write a grid of samples, a column for every text (M, L) but the last, which is empty."""
    from torchvision.utils import save_image

    which = torch.arange(args.n_samples, device=args.device) % (len(texts) - 1)
    images = sample(model, diffusion, texts, which, args, args.cfg_scale)
    images = F.interpolate(images, scale_factor=max(1, 32 // args.img_size))
    nrow = max(len(texts) - 1, math.isqrt(len(images)) if len(texts) == 2 else 1)
    save_image(images, Path(args.out, name), nrow=nrow, normalize=True, value_range=(-1, 1))


def generate(args):
    """--sample: draw every class with --weights or OUT/last.pt into OUT/samples.png; --prompt: draw
    that into OUT/prompt.png."""
    path = args.weights or f"{args.out}/last.pt"
    model, diffusion = build(args)
    load_weights(path, model)
    saved = torch.load(path, map_location="cpu", weights_only=True).get("args", {})
    for key in ("timesteps", "beta_start", "beta_end", "cond"):  # which no shape gives away
        if key in saved and saved[key] != getattr(args, key):
            fail(f"--{key} {getattr(args, key)}: {path} was trained with {saved[key]}; type that")
    begin(args)
    if args.prompt is None:
        draw(model, diffusion, captions(args), args, "samples.png")
    else:
        texts = to_tokens([args.prompt, ""]).to(args.device)
        draw(model, diffusion, texts, args, "prompt.png")
    return 0


@torch.inference_mode()
def evaluate(model, diffusion, images, y, args):
    """Of test images: error of the autoencoder as a share of the pixels' variance, deviation of
    the scaled latents, and the loss of eq. (9)."""
    torch.manual_seed(args.seed)
    images, y = images[: args.n_test], y[: args.n_test]
    x, posterior = to_model(images), DiagonalGaussian(encode_images(model, images, args))
    parts = posterior.mean.split(args.batch_size)
    x_hat = torch.cat([model.autoencoder.decode(part) for part in parts])
    share = (x_hat - x).square().mean() / x.var(0, correction=0).mean().clamp(min=1e-9)
    x0, t = model.latents(posterior), torch.randint(args.timesteps, y.shape, device=y.device)
    net, noise = model.told(captions(args)), torch.randn_like(x0)
    loss = diffusion.training_losses(net, x0, t, noise, y).mean()
    row = {"ae_mse_share": share, "latent_std": x0.std(), "test_loss": loss}
    return {key: value.item() for key, value in row.items()}


def smoke(args):
    """A short run in a temporary folder; samples of its prompts, judged by a classifier."""
    from sklearn.linear_model import LogisticRegression

    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        model, diffusion = build(args)
        load_weights(f"{args.out}/last.pt", model)
    (x, y), _ = load_data(args)
    judge = LogisticRegression(max_iter=300).fit(to_model(x).flatten(1).cpu(), y.cpu())
    which = torch.arange(args.n_samples, device=args.device) % 10
    for name, scale in ("guided_acc", args.cfg_scale), ("plain_acc", 1.0):
        images = sample(model, diffusion, captions(args), which, args, scale)
        metrics[name] = judge.score(images.flatten(1).cpu(), which.cpu())
    gain = metrics["guided_acc"] - metrics["plain_acc"]
    return report(args, **metrics, guidance_gain=gain)


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
    add("--n_steps", type=at_least(0), default=4000, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=64, help="examples per step")
    add("--lr", type=at_least(0.0), default=1e-3, help="adam: learning rate")
    add("--warmup", type=at_least(1), default=100, help="steps over which --lr is reached")
    add("--grad_clip", type=at_least(0.0), default=1.0, help="largest norm of the gradient")
    add("--ema", type=at_least(0.0, 1.0), default=0.995, help="decay of the average of weights")
    add("--dataset", choices=[*SIZES], default="digits", help="digits and shapes need no download")
    add("--data_root", default="data", help="folder of the data sets")
    add("--img_size", type=at_least(8), help="side of the shapes, 16 by default")
    add("--config", choices=[*CONFIGS], default="laptop", help="named set of defaults")
    add("--ae_weights", help="last.pt of autoencoder_kl.py; else stage 1 is trained here")
    add("--ae_steps", type=at_least(0), default=1500, help="steps of stage 1")
    add("--ae_base_channels", type=at_least(8), default=16, help="autoencoder: width at full size")
    add("--ae_channel_mult", type=at_least(1), nargs="+", default=[1, 2], help="... at each size")
    add("--ae_res_blocks", type=at_least(1), default=2, help="... residual blocks at each size")
    add("--latent_channels", type=at_least(1), default=4, help="channels Z of the latent")
    add("--kl_weight", type=at_least(0.0), default=1e-6, help="lambda_kl")
    add("--base_channels", type=at_least(8), default=32, help="U-Net: width at full size")
    add("--channel_mult", type=at_least(1), nargs="+", default=[1, 2], help="... at each size")
    add("--n_res_blocks", type=at_least(1), default=2, help="... residual blocks at each size")
    add("--attn_levels", type=at_least(0), nargs="*", default=[0, 1], help="... sizes that attend")
    add("--heads", type=at_least(1), default=4, help="... heads of attention")
    add("--head_dim", type=at_least(0), default=0, help="... or channels of a head, if not 0")
    add("--cond", choices=["text", "class", "none"], default="text", help="what y is")
    add("--cond_drop", type=at_least(0.0, 1.0), default=0.1, help="share of y left out in training")
    add("--context_dim", type=at_least(4), default=64, help="width D of tau(y)")
    add("--text_depth", type=at_least(0), default=1, help="layers of the text encoder")
    add("--timesteps", type=at_least(21), default=200, help="T, doses of noise")
    add("--beta_start", type=at_least(0.0, 0.02), default=0.0015, help="smallest beta at T = 1000")
    add("--beta_end", type=at_least(0.0, 0.02), default=0.0195, help="largest beta at T = 1000")
    add("--sampling_steps", type=at_least(1), default=20, help="S, steps from noise to image")
    add("--cfg_scale", type=at_least(0.0), default=3.0, help="guidance s; 1 is none")
    add("--sample_interval", type=at_least(1), default=1000, help="steps between sample grids")
    add("--n_samples", type=at_least(1), default=60, help="images in a grid")
    add("--n_test", type=at_least(1), default=256, help="test images scored at the end")
    add("--weights", help="state dict or checkpoint to load")
    add("--sample", action="store_true", help="only draw, from --weights or OUT/last.pt")
    add("--prompt", help="only draw this text, from --weights or OUT/last.pt")
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
    if args.dataset != "shapes" and args.img_size != side:
        fail(f"--img_size {args.img_size}: {args.dataset} has {side}; leave the flag out")
    halvings = len(args.channel_mult) + len(args.ae_channel_mult) - 2
    if args.img_size % 2**halvings:
        reason = f"images have {args.img_size} pixels, no multiple of {2**halvings}; type fewer"
        fail(f"--channel_mult, --ae_channel_mult: {reason}")
    for key in ("base_channels", "ae_base_channels", "context_dim"):
        if getattr(args, key) % 4:
            fail(f"--{key} {getattr(args, key)}: is no multiple of 4; try 32, 64 or 128")
    part = args.head_dim or args.heads
    if any(mult * args.base_channels % part for mult in args.channel_mult):
        fail(f"--heads, --head_dim {part}: does not divide every width; try 4, or other widths")
    if max(args.attn_levels, default=0) >= len(args.channel_mult):
        fail(f"--attn_levels {max(args.attn_levels)}: is no level; 0 is the first")
    if args.sampling_steps > args.timesteps:
        reason = f"the process has but {args.timesteps} steps; take at most so many"
        fail(f"--sampling_steps {args.sampling_steps}: {reason}")
    if args.beta_start > args.beta_end or args.beta_end * 1000 / args.timesteps >= 1:
        fail(f"--beta_end {args.beta_end}: too small or too large; 0.0195 suits any --timesteps")
    if args.prompt is not None and args.cond != "text":
        fail(f"--prompt: is no use with --cond {args.cond}; --sample draws every class")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.sample or args.prompt is not None:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
