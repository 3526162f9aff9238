# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "scipy>=1.11,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""SepFormer: takes speakers who talk at once apart, on learned filters, by transformers that look
now along the frames of a chunk, now across the chunks.

Paper: Subakan et al., "Attention Is All You Need in Speech Separation", ICASSP 2021,
arXiv 2010.13154.

    x = sum_i g_i s_i                       (1)  a mixture of C voices, each as loud as its gain
    w_k = relu(U x_k)                       (2)  encoder: frames of L samples, one each L/2
    d_i = m_i . w                           (3)  a mask for each voice
    s^_i = sum_k V d_i,k                    (4)  decoder: frames are added where they overlap
    h_j = frames jK/2 ... jK/2 + K-1        (5)  chunk j of F gLN(w), its half shared with the next
    e_t = sin(t / 10000^(2i/E)), e'_t = cos(t / 10000^(2i/E))   (6)  channels 2i and 2i + 1
    z = z + MHA(LN(z)),  z = z + W relu(W LN(z))    (7)  first z: x + e; depth times, LN: T(x)
    h <- h + gLN(T_intra(h)),  h <- h + gLN(T_inter(h))     (8)  along frames, across chunks
    v_i = sum_j W_i PReLU(h_j),  m_i = relu(W (tanh(A v_i) . sigmoid(G v_i)))   (9)
    s_t = <s^, s> s / |s|^2,  SI-SNR = 10 log10(|s_t|^2 / |s^ - s_t|^2)   (10)  both of mean 0
    L = -max_p mean_i SI-SNR(s^_p(i), s_i)  (11)  PIT: nobody says which output is whose

Shapes: B mixtures, C voices, S samples, T frames, N filters, J chunks of K frames, E width.
Unlike the paper: the learning rate stays as it is; voices are not sped up and down; mixtures are
padded by L/2 at both ends.
As in the official network (speechbrain/speechbrain lobes/models/dual_path.py): overlaps are added,
not averaged; there is always an even number of chunks; chunks share half their frames.

    python sepformer.py                    made-up voices, nothing to download
    python sepformer.py --dataset fsdd --data_root DATA --n_steps 3000      DATA/fsdd/recordings
    python sepformer.py --dataset folder --data_root my_voices      a folder of .wav per speaker, of
        which every fifth is held out
    python sepformer.py --separate mix.wav      by out/sepformer/last.pt: mix_s1.wav, ...
    python sepformer.py --smoke            seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
import time
import warnings
import wave
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.io import wavfile
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 60, "sample_interval": 60, "crop_s": 0.25, "n_filters": 64, "win": 32}
SMOKE |= {"dim": 48, "hidden": 96, "depth": 1, "chunk": 24, "lr": 3e-3}
BARS = {"si_snri": (8.2, 60.0), "wrong_lengths": (0, 0), "order_gap": (0.0, 1e-4)}
BARS |= {"fold_gap": (0.0, 0.0)}
CONFIGS = {"laptop": {}, "paper": {"n_filters": 256, "dim": 256, "hidden": 1024, "heads": 8}}
CONFIGS["paper"] |= {"depth": 8, "chunk": 250, "crop_s": 4.0, "batch_size": 1, "lr": 1.5e-4}


# --- the idea ------------------------------------------------------------------------------------
def split_chunks(x, size):
    """Frames x (B, E, T) to chunks (B, E, J, size): every frame is in two of them."""
    x = F.pad(x, (size // 2, size // 2 + size - (size // 2 + x.shape[2]) % size))
    return x.unfold(2, size, size // 2)  # (B, E, J, K)  eq. (5)


def add_chunks(x, n):
    """Chunks x (B, E, J, K) to n frames (B, E, n), each the sum of its two."""
    first, second = x.chunk(2, 3)  # (B, E, J, K/2)
    return (first[:, :, 1:] + second[:, :, :-1]).flatten(2)[..., :n]


class PathTransformer(nn.Module):
    """x (B, E, J, K), along K alone; returned as (B, E, K, J), so that the next goes along J."""

    def __init__(self, sizes, n):
        super().__init__()
        layers = (nn.TransformerEncoderLayer(*sizes, 0, "relu", 1e-6, True, True) for _ in range(n))
        self.mdl = nn.Sequential(*layers, nn.LayerNorm(sizes[0], 1e-6))  # eq. (7)
        self.norm = nn.GroupNorm(1, sizes[0], 1e-8)

    def forward(self, x):
        y = x.permute(0, 2, 3, 1)  # (B, J, K, E)
        t, i = (torch.arange(n, device=x.device) for n in y.shape[2:])
        angle = t[:, None] / 10000 ** (i[::2] / len(i))  # (K, E/2)
        y = y + torch.stack([angle.sin(), angle.cos()], 2).flatten(1)  # eq. (6)
        y = self.mdl(y.flatten(0, 1)).view_as(y).permute(0, 3, 1, 2)  # (B, E, J, K)
        return (x + self.norm(y)).mT  # (B, E, K, J)  eq. (8)


class MaskingNetwork(nn.Module):
    """The separator: w (B, N, T) to masks (B, C, N, T)."""

    def __init__(self, n_filters, n_src, sizes, depth, n_blocks, chunk):
        super().__init__()
        self.n_src, self.chunk, dim = n_src, chunk, sizes[0]
        self.norm = nn.GroupNorm(1, n_filters, 1e-8)
        self.conv1d = nn.Conv1d(n_filters, dim, 1, bias=False)
        paths = (PathTransformer(sizes, depth) for _ in range(2 * n_blocks))
        self.dual_mdl = nn.Sequential(*paths, nn.PReLU(), nn.Conv2d(dim, n_src * dim, 1))
        self.output, self.output_gate = (nn.Conv1d(dim, dim, 1) for _ in range(2))
        self.end_conv1x1 = nn.Conv1d(dim, n_filters, 1, bias=False)

    def forward(self, w):
        h = self.dual_mdl(split_chunks(self.conv1d(self.norm(w)), self.chunk))  # (B, C E, J, K)
        v = add_chunks(h, w.shape[2]).unflatten(1, (self.n_src, -1)).flatten(0, 1)  # (B C, E, T)
        v = self.output(v).tanh() * self.output_gate(v).sigmoid()
        return self.end_conv1x1(v).relu().unflatten(0, (-1, self.n_src))  # (B, C, N, T)  eq. (9)


# Copied from separation/conv_tasnet.py
def si_snr(e, s):
    """Decibels (...) by which what e (..., S) has of s (..., S) outweighs all else in it; 0 where
    e is silent."""
    eps = torch.finfo(e.dtype).eps
    e, s = (x - x.mean(-1, keepdim=True) for x in (e, s))
    scale = ((e * s).sum(-1) + eps) / (s.square().sum(-1) + eps)
    part = scale[..., None] * s
    ratio = (part.square().sum(-1) + eps) / ((e - part).square().sum(-1) + eps)
    return 10 * ratio.log10()  # eq. (10)


# Copied from separation/conv_tasnet.py
def pit(e, s):
    """The SI-SNR of estimates e (B, C, S) in that order of theirs which suits s (B, C, S) best:
    (B,), and the number (B,) of the permutation p, where e[p[i]] belongs to s[i]."""
    pairs, n = si_snr(e[:, :, None], s[:, None]), e.shape[1]  # (B, C, C)
    orders = itertools.permutations(range(n))
    scores = [sum(pairs[:, j, i] for i, j in enumerate(order)) / n for order in orders]
    return torch.stack(scores, 1).max(1)  # eq. (11)


# --- model ---------------------------------------------------------------------------------------
# Differs from separation/conv_tasnet.py
class TasNet(nn.Module):
    """Mixtures (B, S) of any S to their voices (B, C, S), by masks on learned filters."""

    def __init__(self, n_filters, win, masknet):
        super().__init__()
        self.encoder = nn.Conv1d(1, n_filters, win, win // 2, win // 2, bias=False)
        self.masknet = masknet
        self.decoder = nn.ConvTranspose1d(n_filters, 1, win, win // 2, win // 2, bias=False)

    def forward(self, x):
        whole = F.pad(x, (0, -x.shape[-1] % self.encoder.stride[0]))[:, None]
        w = self.encoder(whole).relu()  # (B, N, T)  eq. (2)
        d = self.masknet(w) * w[:, None]  # (B, C, N, T)  eq. (3)
        y = self.decoder(d.flatten(0, 1)).unflatten(0, d.shape[:2])  # (B, C, 1, S')  eq. (4)
        return y[:, :, 0, : x.shape[-1]]


# --- data ----------------------------------------------------------------------------------------
RATE = 8000
# Of made-up speakers: lowest and highest pitch, and two formants (Hz).
VOICES = [(85, 130, 300, 900), (190, 270, 750, 2200), (135, 180, 500, 1500)]


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


# Copied from separation/conv_tasnet.py
def read_sound(file, flag):
    """Samples (S,) of a .wav of any rate, kind of number and number of channels."""
    from scipy.signal import resample_poly

    try:
        warnings.filterwarnings("error", "Reached EOF")  # of a file cut short
        rate, x = wavfile.read(file)
    except Exception as error:  # whatever the file holds
        fail(f"{flag} {file}: cannot be read as .wav; name or convert one ({error})")
    most = 1 if x.dtype.kind == "f" else 2.0 ** (8 * x.dtype.itemsize - 1)
    x = torch.atleast_2d(torch.from_numpy(x.T / most - (x.dtype.kind == "u"))).double().mean(0)
    if not len(x) or not x.isfinite().all():
        fail(f"{flag} {file}: holds no sound, or nan; name another one")
    if rate != RATE:
        x = torch.from_numpy(resample_poly(x.numpy(), RATE, rate))
        print(f"{file}: resampled from {rate} to {RATE} Hz", file=sys.stderr)
    return x.float()


def load_data(args):
    """Speech for training and for testing: of each, the samples (S,) of one speaker after the
    other, and where each begins and how many there are (2, speakers)."""
    sounds, root = {}, Path(args.data_root)  # of (is it held out, speaker)
    if args.dataset == "made_up":
        for (held, n), voice in itertools.product(enumerate((60, 10)), VOICES[: args.n_src]):
            sounds[held, voice] = [made_up_voice(*voice, n=n * RATE)]
    else:
        fsdd = args.dataset == "fsdd"
        files = sorted(root.glob("fsdd/recordings/[0-9]_*_[0-9]*.wav" if fsdd else "**/*.wav"))
        for at, file in enumerate(files):
            _, speaker, take = file.stem.split("_") if fsdd else (0, file.parent, at % 5 + 4)
            sounds.setdefault((int(take) < 5, speaker), []).append(read_sound(file, "--data_root"))
    parts = []
    for part in (False, True):
        each = [sound for (held, _), sound in sounds.items() if held == part]
        if len(each) < args.n_src:
            fail(f"--data_root {root}: too few speakers there; see --help, or lower --n_src")
        each = [torch.cat([x / (x.square().mean().sqrt() + 1e-5) for x in sound]) for sound in each]
        each = [x.repeat(math.ceil(args.crop_s * RATE / len(x))) for x in each]
        sizes = torch.tensor([*map(len, each)], device=args.device)
        data = torch.cat(each).to(args.device)
        parts.append((data, torch.stack([sizes.cumsum(0) - sizes, sizes])))
    return parts


# Copied from separation/conv_tasnet.py
def mixtures(x, where, args):
    """A batch from load_data: mixtures (B, S), and what they are made of (B, C, S)."""
    crop, size = round(args.crop_s * RATE), (args.batch_size, args.n_src)
    who = torch.rand(size[0], where.shape[1], device=x.device).argsort(1)[:, : size[1]]  # (B, C)
    begins, sizes = where[:, who]
    begins = begins + (torch.rand(size, device=x.device) * (sizes - crop + 1)).long()
    s = x[begins[..., None] + torch.arange(crop, device=x.device)]  # (B, C, S)
    s = s * 10 ** ((torch.rand(*size, 1, device=x.device) - 0.5) * args.level_db / 20 - 1)
    return s.sum(1), s  # eq. (1)


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args):
    sizes, times = (args.dim, args.heads, args.hidden), (args.depth, args.n_blocks)
    masks = MaskingNetwork(args.n_filters, args.n_src, sizes, *times, args.chunk)
    return TasNet(args.n_filters, args.win, masks).to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the gain on speech never heard."""
    torch.manual_seed(args.seed)
    (data, test), model = load_data(args), build(args)
    if args.weights:
        load_weights(args.weights, model)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, (args.b1, args.b2), fused=True)
    state = {"model": model, "optimizer": optimizer}
    step = begin(args, state)
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                x, s = mixtures(*data, args)
                with cast:
                    e = model.train()(x)
                loss = -pit(e.float(), s)[0].mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                total += loss.detach()
                step += 1
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            log(args, step=step, loss=total.item() / n, **evaluate(model, test, args))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    x = mixtures(*test, args)[0][0]
    draw(args, "example", x, separate(model, x, args))
    return evaluate(model, test, args)


@torch.inference_mode()
def evaluate(model, test, args):
    """si_snri: decibels by which separation raises the SI-SNR, over 8 batches of mixtures."""
    torch.manual_seed(-1)
    batches = (mixtures(*test, args) for _ in range(8))
    gains = [pit(model.eval()(x), s)[0] - si_snr(x[:, None], s).mean(1) for x, s in batches]
    return {"si_snri": torch.cat(gains).mean().item()}


# Copied from separation/conv_tasnet.py
@torch.inference_mode()
def separate(model, x, args):
    """Voices (C, S) of a mixture x (S,). Each piece of --chunk_s shares a tenth with the one
    before: there its voices are put into that one's order, and faded in."""
    chunk, y = round(args.chunk_s * RATE), None
    fade = chunk // 10
    for start in range(0, max(1, len(x) - fade), chunk - fade):
        part = x[start : start + chunk]
        e = model.eval()(part[None])  # (1, C, S)
        e = e * ((e @ part) / (e.square().sum(-1) + 1e-9))[..., None]  # as loud as in the mixture
        y = e[..., :fade] if y is None else y
        old, new = y[..., start:], e[..., :fade]
        order = [*itertools.permutations(range(e.shape[1]))][pit(new, old)[1].item()]
        up, e = torch.linspace(0, 1, old.shape[-1], device=x.device), e[:, order]
        y = torch.cat([y[..., :start], old.lerp(e[..., :fade], up), e[..., fade:]], -1)
    return y[0]


def draw(args, stem, x, voices):
    """OUT/stem_s1.wav, ... of voices (C, S), and OUT/stem.png: spectrograms below that of x."""
    from matplotlib.figure import Figure

    sounds = torch.cat([x[None], voices]).cpu()  # (1 + C, S)
    figure = Figure((8, 2 * len(sounds)), layout="constrained")
    window, loudest = torch.hann_window(256), max(1.0, sounds.abs().max().item())
    for at, sound in enumerate(sounds):
        name = f"{stem}_s{at}.wav" if at else f"{stem}_mix.wav"
        with wave.open(str(Path(args.out, name)), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((sound / loudest * 32767).short().numpy().tobytes())
        bands = torch.stft(sound, 256, 64, 256, window, pad_mode="constant", return_complex=True)
        axes = figure.add_subplot(len(sounds), 1, at + 1, title=name, xticks=[], yticks=[])
        axes.imshow((bands.abs() + 1e-3).log(), origin="lower", aspect="auto")
    figure.savefig(Path(args.out, f"{stem}.png"))


def generate(args):
    """The work of --separate: a .wav of each voice, and a picture."""
    x, model = read_sound(args.separate, "--separate").to(args.device), build(args)
    load_weights(args.weights or f"{args.out}/last.pt", model)
    begin(args)
    voices = separate(model, x, args)
    draw(args, Path(args.separate).stem, x, voices)
    if not voices.any():
        print("nothing came out: the input is silent, or the network", file=sys.stderr)
    return 0


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    model, (x, s) = build(args), torch.randn(2, 4, args.n_src, 2000, device=args.device)
    with torch.inference_mode():
        lengths = 1, args.win - 1, args.win, args.win + 1
        wrong = sum(model(x[:, 0, :n]).shape[-1] != n for n in lengths)
    order_gap = (pit(s + x, s)[0] - pit((s + x).flip(1), s)[0]).abs().max()
    fold_gap = (add_chunks(split_chunks(s, args.chunk), s.shape[2]) / 2 - s).abs().max()
    return report(args, **metrics, wrong_lengths=wrong, order_gap=order_gap, fold_gap=fold_gap)


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
    add("--data_root", default="data", help="folder of the data sets; for folder, of the speakers")
    add("--n_src", type=at_least(1, 6), default=2, help="voices C of a mixture")
    add("--crop_s", type=at_least(0.05), default=1.0, help="seconds of a mixture in training")
    add("--level_db", type=at_least(0.0), default=5.0, help="most that voices differ in loudness")
    add("--n_filters", type=at_least(1), default=128, help="filters N of encoder and decoder")
    add("--win", type=at_least(2), default=16, help="samples L of a filter")
    add("--dim", type=at_least(2), default=64, help="width E of the transformers")
    add("--heads", type=at_least(1), default=4, help="heads of an attention")
    add("--hidden", type=at_least(1), default=128, help="width inside a feed-forward step")
    add("--depth", type=at_least(1), default=2, help="layers of a transformer")
    add("--n_blocks", type=at_least(1), default=2, help="times both transformers are done")
    add("--chunk", type=at_least(2), default=50, help="frames K of a chunk")
    add("--n_steps", type=at_least(0), default=1000, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=8, help="examples per step")
    add("--lr", type=at_least(0.0), default=2e-3, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--grad_clip", type=at_least(0.0), default=5.0, help="largest norm of the gradient")
    add("--sample_interval", type=at_least(1), default=100, help="steps between evaluations")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--weights", help="state dict or checkpoint to load")
    add("--separate", help="only take this .wav apart, by --weights or OUT/last.pt")
    add("--chunk_s", type=at_least(0.1), default=10.0, help="seconds of a long .wav at a time")
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
    if args.win % 2:
        fail(f"--win {args.win}: cannot be shared by two frames; make it even")
    if args.chunk % 2:
        fail(f"--chunk {args.chunk}: cannot be shared by two chunks; make it even")
    if args.dim % (2 * args.heads):
        fail(f"--dim {args.dim}: holds no {args.heads} heads of even width; make it a multiple")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.separate:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
