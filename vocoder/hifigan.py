# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "scipy>=1.11,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""HiFi-GAN: mel spectrograms become sound through blocks that look at several scales at once,
taught by judges who fold the sound at periods that are prime.

Paper: Kong, Kim & Bae, "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity
Speech Synthesis", NeurIPS 2020, arXiv 2010.05646.

    m = ln max(W |STFT(x)|, 1e-5)                      (1)  mel spectrogram of a sound x
    x~ = G(m)                                          (2)  r samples of each frame of m
    L_D = sum_k E (D_k(x) - 1)^2 + E D_k(x~)^2         (3)  what the judges descend
    L_adv = sum_k E (D_k(x~) - 1)^2                    (4)  be taken for a recording
    L_FM = sum_k sum_i mean|D_k^i(x) - D_k^i(x~)|      (5)  feel like it, layer by layer
    L_G = L_adv + lambda_feat L_FM + lambda_mel L_mel  (6)  what the generator descends
    h <- h + C_1 * LReLU(C_d * LReLU(h))               (7)  for d = 1, 3, 5; "2": h + C_d * LReLU(h)
    D_k hears x_k, x_0 = x, x_k+1 = pool(x_k)          (8)  the judges of scales
    L_mel = mean|m(x) - m(x~)|                         (9)  of all bands up to half the rate
    D_p hears x[p t + i] as P sounds i = 0 ... p - 1   (10)  the judges of periods 2, 3, 5, 7, 11
    h = 1/K sum_k block_k(h)                           (11)  kernels of K sizes: a fused field

Voiced speech is a sum of sines of many periods: folded at p, what repeats after p samples stands
still. Each judge of periods reads all p rows of the folded sound with the same kernels. Weights
are normed, w = g v / |v|, and those of the first judge of scales divided by their largest
singular value. The initial weights are PyTorch's: under a norm, the N(0, 0.01) of the official
code changes nothing. Every slope is 0.1, but 0.01 before the last convolution, as there.

Shapes: B sounds, S samples, M mel bands, F frames of r samples, S = F r; m (B, M, F), x (B, 1, S).
Unlike the paper: the default is a small net for 8 kHz, fed with (m + 5) / 2.5, for that learns far
sooner than m as it is; the learning rate stays as it is, for the paper's decay by 0.999 an epoch.
Official weights: the generators' load as they are by --config v1, v2 or v3, LJ Speech's for one.

    python hifigan.py                      made-up voices, nothing to download
    python hifigan.py --dataset fsdd --data_root DATA --n_steps 20000    DATA/fsdd/recordings
    python hifigan.py --dataset folder --data_root my_sounds    any .wav below it; 1 in 20 held out
    python hifigan.py --predict talk.wav   its mel made sound again by out/hifigan/last.pt
    python hifigan.py --config v1 --weights generator_v1 --predict talk.wav
    python hifigan.py --smoke              seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.io import wavfile
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 40, "sample_interval": 40, "dim": 48, "d_dim": 4, "segment": 1024}
SMOKE |= {"batch_size": 4, "lr": 3e-3}
BARS = {"mel_l1": (0.0, 0.69), "to_wrong_mel": (0.0, 0.67), "to_mean_mel": (0.0, 0.64)}
BARS |= {"seam": (0.0, 1e-5)}
PAPER = {"sr": 22050, "n_mels": 80, "fmax": 8000.0, "official_mel": True, "rates": [8, 8, 2, 2]}
PAPER |= {"d_dim": 32, "segment": 8192, "n_steps": 2_500_000, "resblock": 1}
PAPER |= {"batch_size": 16, "lr": 2e-4}
CONFIGS = {"laptop": {}, "v1": PAPER | {"dim": 512}, "v2": PAPER | {"dim": 128}}
CONFIGS["v3"] = PAPER | {"dim": 256, "rates": [8, 8, 4], "resblock": 2}
# Kernel sizes, and dilations of each, of the two kinds of blocks.
BLOCKS = {1: {3: (1, 3, 5), 7: (1, 3, 5), 11: (1, 3, 5)}, 2: {3: (1, 2), 5: (2, 6), 7: (3, 12)}}


# --- model ---------------------------------------------------------------------------------------
# Copied from vocoder/melgan.py
class Mel(nn.Module):
    """Sounds (B, F r) to mels (B, M, F): windows of 4 r, Slaney's scale, bands of area 1."""

    def __init__(self, sr, hop, n_mels, fmax):
        super().__init__()
        self.hop, top = hop, fmax * 3 / 200 if fmax < 1000 else 15 + 27 * math.log(fmax / 1e3, 6.4)
        mels = torch.linspace(0, top, n_mels + 2, dtype=torch.float64)
        hz = torch.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))[:, None]
        f = torch.linspace(0, sr / 2, 2 * hop + 1, dtype=torch.float64)
        sides = (f - hz[:-2]) / hz[:-1].diff(dim=0), (hz[2:] - f) / hz[1:].diff(dim=0)
        filters = torch.minimum(*sides).clamp(min=0) * 2 / (hz[2:] - hz[:-2])  # (M, 2 r + 1)
        self.register_buffer("filters", filters.float())
        self.register_buffer("window", torch.hann_window(4 * hop))

    def forward(self, x):
        x = F.pad(x.float(), (3 * self.hop // 2, 3 * self.hop // 2), mode="reflect")
        sizes = 4 * self.hop, self.hop, 4 * self.hop, self.window, False
        bands = torch.view_as_real(torch.stft(x, *sizes, return_complex=True))
        magnitude = (bands.square().sum(-1) + 1e-9).sqrt()  # (B, 2 r + 1, F)
        return (self.filters @ magnitude).clamp(min=1e-5).log()  # (B, M, F)  eq. (1)


def dilated(dim, kernel, dilation):  # keeps the length
    return weight_norm(nn.Conv1d(dim, dim, kernel, 1, (kernel - 1) * dilation // 2, dilation))


class ResBlock1(nn.Module):
    """h (B, C, S) to the same shape: wide convolutions, each followed by a near one."""

    def __init__(self, dim, kernel, dilations):
        super().__init__()
        self.convs1 = nn.ModuleList(dilated(dim, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(dilated(dim, kernel, 1) for _ in dilations)

    def forward(self, h):
        for wide, near in zip(self.convs1, self.convs2, strict=True):
            h = h + near(F.leaky_relu(wide(F.leaky_relu(h, 0.1)), 0.1))  # eq. (7)
        return h


class ResBlock2(nn.Module):
    """h (B, C, S) to the same shape: wide convolutions alone."""

    def __init__(self, dim, kernel, dilations):
        super().__init__()
        self.convs = nn.ModuleList(dilated(dim, kernel, d) for d in dilations)

    def forward(self, h):
        for wide in self.convs:
            h = h + wide(F.leaky_relu(h, 0.1))
        return h


# Differs from vocoder/melgan.py
class Generator(nn.Module):
    """Mel spectrograms (B, M, F) to sounds (B, 1, F r): half the channels at each of the rates."""

    def __init__(self, n_mels, dim, rates, resblock, official_mel):
        super().__init__()
        self.rates, self.official_mel, self.n_kernels = rates, official_mel, len(BLOCKS[resblock])
        self.conv_pre = weight_norm(nn.Conv1d(n_mels, dim, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for n, r in enumerate(rates):
            sizes = dim >> n, dim >> n + 1, 2 * r, r, r // 2 + r % 2, r % 2
            self.ups.append(weight_norm(nn.ConvTranspose1d(*sizes)))
            block = ResBlock1 if resblock == 1 else ResBlock2
            self.resblocks.extend(block(sizes[1], *both) for both in BLOCKS[resblock].items())
        self.conv_post = weight_norm(nn.Conv1d(sizes[1], 1, 7, padding=3))

    def forward(self, m):
        h = self.conv_pre(m if self.official_mel else (m + 5) / 2.5)
        for n, up in enumerate(self.ups):
            h, k = up(F.leaky_relu(h, 0.1)), self.n_kernels
            h = sum(block(h) for block in self.resblocks[n * k : n * k + k]) / k  # eq. (11)
        return self.conv_post(F.leaky_relu(h)).tanh()  # eq. (2)

    def reach(self):
        """Frames on either side that a sample depends on."""
        convs = [[c for c in b.modules() if isinstance(c, nn.Conv1d)] for b in self.resblocks]
        n, widest = 3, max(sum(c.padding[0] for c in each) for each in convs)
        for r in reversed(self.rates):
            n = (n + widest + r - 1 + (r + 1) // 2) // r  # blocks, then 2 r taps
        return n + 3


def listen(x, convs, last):
    """What each layer makes of x, the scores last."""
    layers = [x]
    for conv in convs:
        layers.append(F.leaky_relu(conv(layers[-1]), 0.1))
    return [*layers[1:], last(layers[-1])]


class PeriodDiscriminator(nn.Module):
    """Sound (B, 1, S), folded, to its layers; all rows are sounds of their own."""

    def __init__(self, dim, period):
        super().__init__()
        self.period, sizes = period, [1, dim, 4 * dim, 16 * dim, 32 * dim, 32 * dim]
        convs = (nn.Conv1d(n, m, 5, 3 if n < m else 1, 2) for n, m in pairwise(sizes))
        self.convs = nn.ModuleList(map(weight_norm, convs))
        self.conv_post = weight_norm(nn.Conv1d(sizes[-1], 1, 3, padding=1))

    def forward(self, x):
        x = F.pad(x, (0, -x.shape[2] % self.period), mode="reflect")
        x = x.unflatten(2, (-1, self.period)).movedim(3, 1)  # (B, P, 1, S/P)  eq. (10)
        return listen(x.flatten(0, 1), self.convs, self.conv_post)


# Differs from vocoder/melgan.py
class ScaleDiscriminator(nn.Module):
    """Sound (B, 1, S), pooled, to its layers."""

    def __init__(self, dim, n_pools):
        super().__init__()
        self.n_pools, norm = n_pools, weight_norm if n_pools else spectral_norm
        sizes = [4 * dim, 4 * dim, 8 * dim, 16 * dim, 32 * dim, 32 * dim]
        more = zip(pairwise(sizes), (2, 2, 4, 4, 1), (4, 16, 16, 16, 16), strict=True)
        convs = [nn.Conv1d(1, sizes[0], 15, padding=7)]
        convs += [nn.Conv1d(*nm, 41, stride, 20, groups=groups) for nm, stride, groups in more]
        convs += [nn.Conv1d(sizes[-1], sizes[-1], 5, padding=2)]
        self.convs = nn.ModuleList(map(norm, convs))
        self.conv_post = norm(nn.Conv1d(sizes[-1], 1, 3, padding=1))

    def forward(self, x):
        for _ in range(self.n_pools):
            x = F.avg_pool1d(x, 4, 2, 2)  # (B, 1, S/2 + 1)  eq. (8)
        return listen(x, self.convs, self.conv_post)


# Differs from vocoder/melgan.py
class Discriminator(nn.ModuleList):
    """K judges: sound (B, 1, S) to the layers of each."""

    def __init__(self, dim):
        super().__init__(PeriodDiscriminator(dim, p) for p in (2, 3, 5, 7, 11))
        self.extend(ScaleDiscriminator(dim, n) for n in range(3))

    def forward(self, x):
        return [judge(x) for judge in self]


# --- the idea ------------------------------------------------------------------------------------
# Differs from vocoder/melgan.py
def discriminator_loss(real, fake):
    """Of all judges' layers; a recording should score 1, a fake 0."""
    pairs = ((r[-1], f[-1]) for r, f in zip(real, fake, strict=True))
    return sum((1 - r).square().mean() + f.square().mean() for r, f in pairs)  # eq. (3)


# Differs from vocoder/melgan.py
def generator_loss(fake):
    return sum((1 - f[-1]).square().mean() for f in fake)  # eq. (4)


# Differs from vocoder/melgan.py
def feature_loss(real, fake):
    """How far all judges' layers are from what they are for the recording."""
    pairs = [p for both in zip(real, fake, strict=True) for p in zip(*both, strict=True)]
    return sum(F.l1_loss(f, r.detach()) for r, f in pairs)  # eq. (5)


# Differs from vocoder/melgan.py
def gan_step(generator, discriminator, optimizer_g, optimizer_d, m, real, mel, lambdas, amp):
    """A step of the judges, then one of the generator, whose gradient passes through them."""
    with amp:
        fake = generator.train()(m)
        seen, fakes = discriminator(real), discriminator(fake.detach())
    d_loss = discriminator_loss(seen, fakes)
    optimizer_d.zero_grad()
    d_loss.backward()
    optimizer_d.step()
    discriminator.requires_grad_(False)
    with amp:
        seen, fakes = discriminator(real), discriminator(fake)
    g_loss, gap = generator_loss(fakes), feature_loss(seen, fakes)
    mel_loss = F.l1_loss(mel(fake[:, 0]), mel(real[:, 0]))  # eq. (9)
    optimizer_g.zero_grad()
    (g_loss + lambdas[0] * gap + lambdas[1] * mel_loss).backward()  # eq. (6)
    optimizer_g.step()
    discriminator.requires_grad_(True)
    return torch.stack([d_loss, g_loss, gap, mel_loss]).detach()


# --- data ----------------------------------------------------------------------------------------
# Samples per second of made-up voices; lowest and highest pitch, and two formants (Hz).
RATE, VOICES = 8000, [(85, 130, 300, 900), (190, 270, 750, 2200), (135, 180, 500, 1500)]


# Copied from separation/conv_tasnet.py
def made_up_voice(low, high, *formants, n):
    """n samples of syllables, each of its own pitch with vibrato, and pauses between them."""
    sizes = torch.randint(1000, 2500, (n // 1000 + 1,))
    at = torch.arange(len(sizes)).repeat_interleave(sizes)[:n]  # which syllable
    pitch = torch.empty(len(sizes)).uniform_(low, high)[at]
    pitch = pitch * (1 + 0.02 * (torch.arange(n) * (2 * math.pi * 5 / RATE)).sin())
    formants = torch.tensor(formants) * torch.empty(len(sizes), 1).uniform_(0.9, 1.1)
    f = pitch[:, None] * (k := torch.arange(1, 25))  # (n, 24)
    gain = sum(1 / (1 + ((f - each[at, None]) / 100) ** 2) for each in formants.T)
    waves = (pitch.cumsum(0)[:, None] * k * (2 * math.pi / RATE)).sin()
    share = (torch.arange(n) - (sizes.cumsum(0) - sizes)[at]) / sizes[at]  # of the syllable
    return (waves * gain * (f < RATE / 2)).sum(1) * (share * math.pi / 0.85).sin().clamp(min=0)


# Copied from vocoder/melgan.py
def read_sound(file, flag, sr):
    """Samples (S,) of a .wav of any rate, kind of number and number of channels."""
    from scipy.signal import resample_poly

    try:
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of tags in it
        warnings.filterwarnings("error", "Reached EOF")  # of a file cut short
        rate, x = wavfile.read(file)
    except Exception as error:  # whatever the file holds
        fail(f"{flag} {file}: cannot be read as .wav; name or convert one ({error})")
    most = 1 if x.dtype.kind == "f" else 2.0 ** (8 * x.dtype.itemsize - 1)
    x = torch.atleast_2d(torch.from_numpy(x.T / most - (x.dtype.kind == "u"))).double()
    if not x.numel() or not x.isfinite().all():
        at = (~x.isfinite().all(0)).nonzero().flatten().tolist()[:1]
        fail(f"{flag} {file}: holds no sound, or nan at {at}; name another one")
    y, n = torch.from_numpy(resample_poly(x.mean(0).numpy(), sr, rate)), len(x)
    if (rate, n, peak := max(1.0, y.abs().max().item())) != (sr, 1, 1):
        told = f"{rate} Hz, {n} channels, peak {peak:.4g}; made one of {sr} Hz, 1 channel, peak 1"
        print(f"{file}: {told}", file=sys.stderr)
    return (y / peak).float()


def load_data(args):
    """Sound (S,) to learn from and sound held out: clip after clip, each with its peak at 0.95."""
    root, fsdd, parts = Path(args.data_root), args.dataset == "fsdd", [[], []]
    if args.dataset == "made_up":
        parts = [[made_up_voice(*voice, n=n * RATE) for voice in VOICES] for n in (20, 4)]
        parts = [[x + 0.02 * torch.randn(len(x)) for x in part] for part in parts]  # breath
    else:
        files = root.glob("fsdd/recordings/[0-9]_*_[0-9]*.wav" if fsdd else "**/*.wav")
        for at, file in enumerate(sorted(files)):
            part = parts[int(file.stem.split("_")[2]) < 5 if fsdd else at % 20 == 0]
            part.append(read_sound(file, "--data_root", args.sr))
        if not all(parts):
            fail(f"--data_root {root}: too few .wav files there; name 2 or more, or see --help")
    parts = [torch.cat([x * 0.95 / x.abs().max().clamp(min=1e-5) for x in p]) for p in parts]
    return [F.pad(x, (0, max(0, 8 * args.segment - len(x)))).to(args.device) for x in parts]


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args):
    """The generator, and the spectrogram that it reads, on the device."""
    mel = Mel(args.sr, math.prod(args.rates), args.n_mels, args.fmax)
    generator = Generator(args.n_mels, args.dim, args.rates, args.resblock, args.official_mel)
    return generator.to(args.device), mel.to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of sounds never heard."""
    torch.manual_seed(args.seed)
    (x, test), (generator, mel) = load_data(args), build(args)
    players = generator, Discriminator(args.d_dim).to(args.device)
    if args.weights:
        load_weights(args.weights, generator)
    betas, lambdas = (args.b1, args.b2), (args.lambda_feat, args.lambda_mel)
    optimizers = [torch.optim.AdamW(p.parameters(), args.lr, betas, fused=True) for p in players]
    full = Mel(args.sr, mel.hop, args.n_mels, args.sr / 2).to(args.device)
    names = "generator", "discriminator", "optimizer_g", "optimizer_d"
    state = dict(zip(names, (*players, *optimizers), strict=True))
    step, clips = begin(args, state), x.unfold(0, args.segment, 1)  # (., S), no copy
    amp = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp)
    try:
        while step < args.n_steps:
            total = torch.zeros(4, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                real = clips[torch.randint(len(clips), (args.batch_size,), device=args.device)]
                batch = mel(real), real[:, None]  # (B, M, F), (B, 1, S)
                total += gan_step(*players, *optimizers, *batch, full, lambdas, amp)
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            row = zip(("d_loss", "g_loss", "features", "mel"), (total / n).tolist(), strict=True)
            log(args, step=step, **dict(row), **evaluate(generator, mel, test, args))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    draw(args, "example", test[: 3 * args.sr], generator, mel)
    return evaluate(generator, mel, test, args)


@torch.inference_mode()
def evaluate(generator, mel, test, args):
    """Distance of mels held out to those of their sounds; over that to other mels, to the mean."""
    x = test.unfold(0, 4 * args.segment, 4 * args.segment)  # (., S)
    m = mel(x[:: -(-len(x) // 32)])  # (B, M, F), 32 at most
    e = mel(generator.eval()(m)[:, 0])
    own, wrong = (m - e).abs().mean().item(), (m.roll(1, 0) - e).abs().mean().item()
    mean = (m - m.mean((0, 2), keepdim=True)).abs().mean().item()
    return {"mel_l1": own, "to_wrong_mel": own / wrong, "to_mean_mel": own / max(mean, 1e-9)}


# Copied from vocoder/melgan.py
@torch.inference_mode()
def vocode(generator, m, chunk):
    """Sound (S,) of a mel (M, F), chunk frames at a time and so many around as they depend on."""
    hop, reach, parts = math.prod(generator.rates), generator.reach(), []
    with parametrize.cached():  # g v / |v| once
        for at in range(0, m.shape[1], chunk):
            first = max(0, at - reach)
            y = generator.eval()(m[None, :, first : at + chunk + reach])[0, 0]
            parts.append(y[(at - first) * hop :][: chunk * hop])
    return torch.cat(parts)


def draw(args, stem, x, generator, mel):
    """OUT/stem_ref.wav of x (S,), _gen.wav of its mel alone, .png of both; returns how it went."""
    from matplotlib.figure import Figure

    start, hop, figure = time.perf_counter(), mel.hop, Figure((8, 4), layout="constrained")
    m = mel(F.pad(x, (0, max(-len(x) % hop, 8 * hop - len(x))))[None])[0]  # (M, F)
    y = vocode(generator, m, args.chunk_frames)  # (F r,)
    e, seconds = mel(y[None])[0], time.perf_counter() - start
    for at, (key, sound, bands) in enumerate([("ref", x, m), ("gen", y[: len(x)], e)], 1):
        sound = (sound.clamp(-1, 1) * 32767).round().short().cpu()
        wavfile.write(Path(args.out, f"{stem}_{key}.wav"), args.sr, sound.numpy())
        axes = figure.add_subplot(2, 1, at, title=f"{stem}_{key}.wav", xticks=[], yticks=[])
        axes.imshow(bands.cpu(), origin="lower", aspect="auto", vmin=-11.5, vmax=2)
    figure.savefig(Path(args.out, f"{stem}.png"))
    return {"mel_l1": (e - m).abs().mean().item(), "time": seconds * args.sr / len(x)}


def generate(args):
    """The work of --predict: the sound made anew from its mel alone."""
    x, (generator, mel) = read_sound(args.predict, "--predict", args.sr), build(args)
    load_weights(args.weights or f"{args.out}/last.pt", generator)
    begin(args)
    print(line(draw(args, Path(args.predict).stem, x.to(args.device), generator, mel)))
    return 0


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    generator, m = build(args)[0], torch.randn(args.n_mels, 50, device=args.device) - 5
    seam = (vocode(generator, m, 7) - vocode(generator, m, 50)).abs().max()
    return report(args, **metrics, seam=seam)


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
    add("--config", choices=CONFIGS, default="laptop", help="named set of defaults")
    add("--dataset", choices=["made_up", "fsdd", "folder"], default="made_up", help="speech")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the sounds")
    add("--sr", type=at_least(100), default=8000, help="samples per second")
    add(
        "--rates",
        type=at_least(1),
        nargs="+",
        default=[8, 8],
        help="to grow by, r in all",
    )
    add("--n_mels", type=at_least(1), default=40, help="bands M of the mel")
    add("--fmax", type=at_least(0.0), default=0.0, help="highest Hz of the mel; 0: half of sr")
    add("--official_mel", action="store_true", help="feed the generator as official weights want")
    add("--dim", type=at_least(2), default=64, help="channels of the generator's first layer")
    add("--resblock", type=int, choices=BLOCKS, default=2, help="kind of the generator's blocks")
    add("--d_dim", type=at_least(4), default=4, help="channels of a period judge's first layer")
    add("--segment", type=at_least(1), default=2048, help="samples S of a sound in training")
    add("--n_steps", type=at_least(0), default=1000, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=8, help="examples per step")
    add("--lr", type=at_least(0.0), default=1e-3, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.8, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.99, help="adam: decay of its square")
    add("--lambda_feat", type=at_least(0.0), default=2.0, help="weight of the feature loss")
    add("--lambda_mel", type=at_least(0.0), default=45.0, help="weight of the mel loss")
    add("--sample_interval", type=at_least(1), default=250, help="steps between evaluations")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", help="only make this .wav anew from its mel, by --weights or OUT/last.pt")
    add("--chunk_frames", type=at_least(1), default=400, help="frames of a long .wav at a time")
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
    args.fmax, hop = args.fmax or args.sr / 2, math.prod(args.rates)
    if args.segment % hop or args.segment < 4 * hop:
        fail(f"--segment {args.segment}: not whole frames; make it a multiple of {hop}, 4 or more")
    if args.dim % 2 ** len(args.rates):
        fail(f"--dim {args.dim}: cannot be halved {len(args.rates)} times; make it a power of 2")
    if args.d_dim % 4:
        fail(f"--d_dim {args.d_dim}: cannot be grouped by 4; make it a multiple of 4")
    if hop % 2:
        fail(f"--rates: their product {hop} is odd; make one of them even")
    if args.dataset == "made_up" and args.sr != RATE and not args.predict:
        fail(f"--dataset made_up: is of {RATE} Hz, not --sr {args.sr}; name another data set")
    if not args.fmax <= args.sr / 2:
        fail(f"--fmax {args.fmax}: is beyond half of --sr {args.sr}; lower it")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.predict:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
