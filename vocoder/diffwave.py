# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchaudio>=2.7,<2.12", "scipy>=1.11,<2",
#                 "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""DiffWave: noise becomes sound in a few steps, each of which takes out some of what a network that
hears past and future, and reads a mel spectrogram, holds for noise.

Paper: Kong, Ping, Huang, Zhao & Catanzaro, "DiffWave: A Versatile Diffusion Model for Audio
Synthesis", ICLR 2021, arXiv 2009.09761.

    m = ln max(W |STFT(x)|, 1e-5)                      (1)  mel spectrogram of a sound x
    z = tanh(W_f * (h + u) + V_f c) sigmoid(W_g * (h + u) + V_g c)   (2)  gated unit
    h <- (h + P z) / sqrt(2),  s <- s + Q z            (3)  on to the next block, on to the end
    eps_theta = B relu(A s / sqrt(L))                  (4)  noise at every sample
    a_t = prod_i<=t (1 - b_i),  b from 1e-4 to beta_end    (5)  t = 0 ... T - 1
    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps            (6)  sound after t steps of noise
    L = E |eps - eps_theta(x_t, t, m)|                 (7)
    x_t-1 = (x_t - b_t / sqrt(1 - a_t) eps_theta) / sqrt(1 - b_t) + sigma_t n    (8)
    sigma_t^2 = b_t (1 - a_t-1) / (1 - a_t)            (9)  none after the last step, t = 0
    t_s = t + (r_t - r_s) / (r_t - r_t+1), r = sqrt(a) (10)  a step of few between two of all T

c is m, stretched to samples by transposed convolutions that are learned too; u a projection of
sines and cosines of t. Block n looks by d = 2^n to both sides, and by 1 again after each cycle.
Six steps with larger b do nearly as well as all T: each goes to the network as the fractional t
whose x_t holds as much noise, (10).

Shapes: B sounds, S samples, M mel bands, F frames of r samples, S = F r, L blocks, R channels of h
and s, T steps; x (B, S), m (B, M, F), c (B, M, S), t (B,).
Unlike the paper: the distance in (7) is not squared and x stays in [-1, 1], as in the well-known
code of LMNT, for whose weights --official_mel is; the default is a small net for 8 kHz; stretching
starts as a mean of two frames.
Official weights: LMNT's load as they are by --config base.

    python diffwave.py                     made-up voices, nothing to download
    python diffwave.py --dataset fsdd --data_root DATA --n_steps 20000    DATA/fsdd/recordings
    python diffwave.py --dataset folder --data_root my_sounds    any .wav below it; 1 in 20 held out
    python diffwave.py --predict talk.wav --fast    its mel made sound again, in six steps
    python diffwave.py --config base --weights weights.pt --predict talk.wav
    python diffwave.py --smoke             seconds; exits 1 unless all BARS are met
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
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.io import wavfile
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 90, "sample_interval": 90, "depth": 8, "dim": 32, "fast": True}
SMOKE |= {"segment": 1024, "batch_size": 4, "lr": 3e-3}
BARS = {"noise_l1": (0.0, 0.4), "fast_mel_l1": (0.0, 2.03), "to_wrong_mel": (0.0, 0.997)}
BARS |= {"seam": (0.0, 1e-9)}
CONFIGS = {"laptop": {}, "base": {"sr": 22050, "rates": [16, 16], "n_mels": 80, "depth": 30}}
CONFIGS["base"] |= {"segment": 15872, "lr": 2e-4, "n_steps": 1_000_000, "official_mel": True}
CONFIGS["large"] = CONFIGS["base"] | {"dim": 128, "timesteps": 200, "beta_end": 0.02}
# The b of the fast schedule.
FAST = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5]


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


class OfficialMel(nn.Module):
    """As Mel, as official weights want it: HTK's scale from 20 Hz on, frames around their start."""

    def __init__(self, sr, hop, n_mels, fmax):
        from torchaudio.transforms import MelSpectrogram

        super().__init__()
        self.hop, more = hop, {"n_mels": n_mels, "power": 1.0, "normalized": True}
        self.bands = MelSpectrogram(sr, 4 * hop, None, hop, 20.0, fmax, **more)

    def forward(self, x):
        return self.bands(x.float())[..., :-1].clamp(min=1e-5).log()  # (B, M, F)


# Copied from vocoder/wavenet.py
class SpectrogramUpsampler(nn.Module):
    """Mels (B, M, F) to (B, M, F r): each frame becomes as many as the rates say, one by one."""

    def __init__(self, rates):
        super().__init__()
        for n, r in enumerate(rates, 1):
            conv = nn.ConvTranspose2d(1, 1, (3, 2 * r), (1, r), (1, r // 2 + r % 2), (0, r % 2))
            nn.init.constant_(nn.init.zeros_(conv.weight)[:, :, 1], 0.5)  # two frames' mean
            self.add_module(f"conv{n}", conv)

    def forward(self, m):
        m = m[:, None]  # (B, 1, M, F)
        for conv in self.children():
            m = F.leaky_relu(conv(m), 0.4)  # (B, 1, M, F r)
        return m[:, 0]


class DiffusionEmbedding(nn.Module):
    """Steps (B,), whole or not, to vectors (B, 512)."""

    def __init__(self, timesteps):
        super().__init__()
        t = torch.arange(timesteps)[:, None] * 10 ** (torch.arange(64) * 4 / 63)  # (T, 64)
        self.register_buffer("embedding", torch.cat([t.sin(), t.cos()], 1), persistent=False)
        self.projection1, self.projection2 = nn.Linear(128, 512), nn.Linear(512, 512)

    def forward(self, t):
        low, high = self.embedding[t.floor().long()], self.embedding[t.ceil().long()]
        u = low + (high - low) * (t - t.floor())[:, None]  # (B, 128)
        return F.silu(self.projection2(F.silu(self.projection1(u))))


# Differs from vocoder/wavenet.py
class ResidualBlock(nn.Module):
    """h (B, R, S), c (B, M, S) and the step (B, 512) to the next h and what the end shall know."""

    def __init__(self, n_mels, dim, dilation):
        super().__init__()
        self.dilated_conv = nn.Conv1d(dim, 2 * dim, 3, padding=dilation, dilation=dilation)
        self.diffusion_projection = nn.Linear(512, dim)
        self.conditioner_projection = nn.Conv1d(n_mels, 2 * dim, 1)
        self.output_projection = nn.Conv1d(dim, 2 * dim, 1)

    def forward(self, h, c, u):
        y = self.dilated_conv(h + self.diffusion_projection(u)[..., None])  # (B, 2 R, S)
        y = y + self.conditioner_projection(c)
        g, f = y.chunk(2, 1)
        y = self.output_projection(f.tanh() * g.sigmoid())  # (B, 2 R, S)  eq. (2)
        residual, skip = y.chunk(2, 1)
        return (h + residual) / math.sqrt(2), skip  # eq. (3)


class DiffWave(nn.Module):
    """Noise (B, S) in x (B, S) of steps t (B,), given c (B, M, S)."""

    def __init__(self, n_mels, rates, depth, cycle, dim, timesteps, official_mel):
        super().__init__()
        self.official_mel = official_mel
        self.input_projection = nn.Conv1d(1, dim, 1)
        self.diffusion_embedding = DiffusionEmbedding(timesteps)
        self.spectrogram_upsampler = SpectrogramUpsampler(rates)
        blocks = (ResidualBlock(n_mels, dim, 2 ** (n % cycle)) for n in range(depth))
        self.residual_layers = nn.ModuleList(blocks)
        self.skip_projection = nn.Conv1d(dim, dim, 1)
        self.output_projection = nn.Conv1d(dim, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.output_projection.weight)

    def forward(self, x, c, t):
        h = self.input_projection(x[:, None]).relu()  # (B, R, S)
        u, s = self.diffusion_embedding(t), 0
        for block in self.residual_layers:
            h, skip = block(h, c, u)
            s = s + skip
        s = self.skip_projection(s / math.sqrt(len(self.residual_layers)))
        return self.output_projection(s.relu())[:, 0]  # (B, S)  eq. (4)

    def stretch(self, m):
        if self.official_mel:  # decibels, -100 to 0 of them made 0 to 1
            return self.spectrogram_upsampler((m * 0.2 / math.log(10) + 0.8).clamp(0, 1))
        return self.spectrogram_upsampler((m + 5) / 2.5)  # (B, M, S)

    def reach(self):
        """Samples on either side that one depends on."""
        return sum(block.dilated_conv.dilation[0] for block in self.residual_layers)


# --- the idea ------------------------------------------------------------------------------------
def schedule(timesteps, beta_end, fast):
    """Of the steps to draw in: b, a of (5) and where among all T they lie, float64 (T,) or (6,)."""
    b = torch.linspace(1e-4, beta_end, timesteps, dtype=torch.float64)
    r = (1 - b).cumprod(0).sqrt()
    b = torch.tensor(FAST, dtype=torch.float64) if fast else b
    a = (1 - b).cumprod(0)  # eq. (5)
    t = ((r > a.sqrt()[:, None]).sum(1) - 1).clamp(0, timesteps - 2)
    return b, a, t + ((r[t] - a.sqrt()) / (r[t] - r[t + 1])).clamp(0, 1)  # eq. (10)


# Differs from vocoder/wavenet.py
def loss_of(model, x, m, t, noise, a):
    """How far off is what the network takes for noise, after steps t (B,); a (T,)."""
    x = a[t, None].sqrt() * x + (1 - a[t, None]).sqrt() * noise  # eq. (6)
    e = model(x, model.stretch(m), t.float())
    return F.l1_loss(e.float(), noise)  # eq. (7)


def predict_noise(model, x, c, t, chunk):
    """The network's answer (B, S), chunk samples at a time and as many around as they depend on."""
    parts, reach = [], model.reach()
    for at in range(0, x.shape[1], chunk):
        first, last = max(0, at - reach), at + chunk + reach
        e = model(x[:, first:last], c[:, :, first:last], t)
        parts.append(e[:, at - first :][:, :chunk])
    return torch.cat(parts, 1)


@torch.inference_mode()
def sample(model, m, steps, chunk):
    """Sounds (B, S) of mels (B, M, F), in steps of schedule."""
    c, (b, a, t) = model.stretch(m), (part.tolist() for part in steps)
    x = torch.randn_like(c[:, 0])
    for n in tqdm(range(len(b) - 1, -1, -1), leave=False, disable=None):
        e = predict_noise(model, x, c, torch.full_like(x[:, 0], t[n]), chunk)
        x = (x - b[n] / math.sqrt(1 - a[n]) * e) / math.sqrt(1 - b[n])
        if n:
            sigma = math.sqrt(b[n] * (1 - a[n - 1]) / (1 - a[n]))  # eq. (9)
            x = x + sigma * torch.randn_like(x)  # eq. (8)
        x = x.clamp(-1, 1)
    return x


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
    """The network, and the spectrogram that it reads, on the device."""
    kind = OfficialMel if args.official_mel else Mel
    mel = kind(args.sr, math.prod(args.rates), args.n_mels, args.fmax)
    sizes = args.depth, args.cycle, args.dim, args.timesteps, args.official_mel
    return DiffWave(args.n_mels, args.rates, *sizes).to(args.device), mel.to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of sounds never heard."""
    torch.manual_seed(args.seed)
    (x, test), (model, mel) = load_data(args), build(args)
    if args.weights:
        load_weights(args.weights, model)
    betas = args.b1, args.b2
    optimizer = torch.optim.Adam(model.parameters(), args.lr, betas, fused=True)
    state = {"model": model, "optimizer": optimizer}
    step, clips = begin(args, state), x.unfold(0, args.segment, 1)  # (., S), no copy
    a = schedule(args.timesteps, args.beta_end, False)[1].float().to(args.device)  # (T,)
    amp = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                real = clips[torch.randint(len(clips), (args.batch_size,), device=args.device)]
                t = torch.randint(args.timesteps, (args.batch_size,), device=args.device)
                m, noise = mel(real), torch.randn_like(real)  # (B, M, F), (B, S)
                with amp:
                    loss = loss_of(model.train(), real, m, t, noise, a)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                step += 1
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            log(args, step=step, loss=(total / n).item(), **evaluate(model, mel, test, args))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    draw(args, "example", test[: 4 * args.segment], model, mel)
    return evaluate(model, mel, test, args)


@torch.inference_mode()
def evaluate(model, mel, test, args):
    """Loss on sounds held out; distance of few-step samples to their mels; over that to others."""
    x = test.unfold(0, 4 * args.segment, 4 * args.segment)  # (., S)
    x = x[:: -(-len(x) // 8)]  # 8 at most
    m, a = mel(x), schedule(args.timesteps, args.beta_end, False)[1].float().to(x.device)
    torch.manual_seed(args.seed)
    t, noise = torch.arange(len(x), device=x.device) * len(a) // len(x), torch.randn_like(x)
    loss = loss_of(model.eval(), x, m, t, noise, a).item()
    e = mel(sample(model, m, schedule(args.timesteps, args.beta_end, True), x.shape[1]))
    own, wrong = ((each - e).abs().mean().item() for each in (m, m.roll(1, 0)))
    return {"noise_l1": loss, "fast_mel_l1": own, "to_wrong_mel": own / wrong}


def draw(args, stem, x, model, mel):
    """OUT/stem_ref.wav of x (S,), _gen.wav of its mel alone, .png of both; returns how it went."""
    from matplotlib.figure import Figure

    start, hop, figure = time.perf_counter(), mel.hop, Figure((8, 4), layout="constrained")
    m = mel(F.pad(x, (0, max(-len(x) % hop, 8 * hop - len(x))))[None])  # (1, M, F)
    torch.manual_seed(args.seed)
    steps = schedule(args.timesteps, args.beta_end, args.fast)
    y = sample(model.eval(), m, steps, args.chunk_frames * hop)[0]  # (F r,)
    m, e, seconds = m[0], mel(y[None])[0], time.perf_counter() - start
    for at, (key, sound, bands) in enumerate([("ref", x, m), ("gen", y[: len(x)], e)], 1):
        sound = (sound.clamp(-1, 1) * 32767).round().short().cpu()
        wavfile.write(Path(args.out, f"{stem}_{key}.wav"), args.sr, sound.numpy())
        axes = figure.add_subplot(2, 1, at, title=f"{stem}_{key}.wav", xticks=[], yticks=[])
        axes.imshow(bands.cpu(), origin="lower", aspect="auto", vmin=-11.5, vmax=2)
    figure.savefig(Path(args.out, f"{stem}.png"))
    return {"mel_l1": (e - m).abs().mean().item(), "time": seconds * args.sr / len(x)}


def generate(args):
    """The work of --predict: the sound made anew from its mel alone."""
    x, (model, mel) = read_sound(args.predict, "--predict", args.sr), build(args)
    load_weights(args.weights or f"{args.out}/last.pt", model)
    begin(args)
    print(line(draw(args, Path(args.predict).stem, x.to(args.device), model, mel)))
    return 0


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    model, m = build(args)[0].cpu().double(), torch.randn(1, args.n_mels, 50).double() - 5
    with torch.inference_mode():
        model.output_projection.weight.normal_()  # it would be silent
        c, x = model.stretch(m), torch.randn(1, 50 * math.prod(args.rates)).double()
        whole, parts = (predict_noise(model, x, c, x[:, 0] * 0, n) for n in (x.shape[1], 500))
    return report(args, **metrics, seam=(whole - parts).abs().max())


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
    add("--official_mel", action="store_true", help="read what official weights want")
    add("--depth", type=at_least(1), default=20, help="blocks L")
    add("--cycle", type=at_least(1), default=10, help="blocks until dilations are 1 again")
    add("--dim", type=at_least(1), default=64, help="channels R between blocks")
    add("--timesteps", type=at_least(2), default=50, help="steps T of noise in training")
    add("--beta_end", type=at_least(1e-4, 1.0), default=0.05, help="noise of the last of them")
    add("--segment", type=at_least(1), default=4096, help="samples S of a sound in training")
    add("--n_steps", type=at_least(0), default=5000, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=8, help="examples per step")
    add("--lr", type=at_least(0.0), default=1e-3, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--sample_interval", type=at_least(1), default=500, help="steps between evaluations")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", help="only make this .wav anew from its mel, by --weights or OUT/last.pt")
    add("--fast", action="store_true", help="... in 6 steps instead of all")
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
