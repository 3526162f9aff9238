# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""H3-Conformer: speech to digits by a Conformer whose attention makes way for state-space models,
wholly, in the upper half, or beside it; read both ways, and trained by CTC.

Papers: Honda, Sakai & Kawahara, "Efficient and Robust Long-Form Speech Recognition with Hybrid
H3-Conformer", Interspeech 2024, arXiv 2410.04159; Gulati et al., "Conformer:
Convolution-augmented Transformer for Speech Recognition", Interspeech 2020, arXiv 2005.08100;
H3 itself: Fu et al., ICLR 2023, arXiv 2212.14052, which h3.py shows alone and causal.

    q_t, k_t, v_t = W x_t + b                   (1)  each in H heads of d numbers
    k'_t = C . (k_t ... k_{t-N+1}) + C' . (k_{t+1} ... k_{t+N}) + D k_t   (2)  shift SSM, both ways
    p_t = k'_t v_t^T                            (3)  first gate: d x d numbers of each head
    h_t = A_ h_{t-1} + B_ p_t,  h'_t = A'_ h'_{t+1} + B'_ p_t   (4)  diagonal SSMs, one for each way
    w_t = 2 Re(C . h_t + C' . h'_{t+1}) + D p_t (5)  what was, is and will be, each once
    A_ = (1 + dt/2 A) / (1 - dt/2 A),  B_ = dt / (1 - dt/2 A)   (6)  bilinear
    A_n = -1/2 + i pi n,  n = 0 ... N/2 - 1     (7)  at the start
    y_t = q_t^T w_t                             (8)  second gate, summed over the numbers of k
    K_j = 2 Re(C . A_^j B_)                     (9)  (4), (5) as a convolution with K and K'
    x <- x + 1/2 FF(x),  FF(x) = W2 swish(W1 norm(x))   (10)
    x <- x + Mix(norm(x))                       (11)  attention, H3, or the mean of both
    x <- x + W2 swish(BN(depthwise(GLU(W1 norm(x)))))   (12)  what is near
    x <- norm(x + 1/2 FF(x))                    (13)  (10) to (13) are a layer
    F = (S - 256) // 80 + 1                     (14)  windows of 32 ms, one each 10 ms, in log-mel
    T = (F - 1) // 2 + 1, twice                 (15)  frames behind two convolutions of stride 2
    L = -log sum_(paths that read y) prod_t P_t(path_t)   (16)  CTC: a path holds blanks and repeats

Padding: sequences of a batch end at different frames. What lies behind the end is set to 0 before
every convolution (biases undo that, so each time anew), hidden from attention, and left out of the
mean and variance of BN. A sequence then gets the same scores in any batch, and (4) reads it
backwards from its own end, though nothing is flipped.

Shapes: B sequences, S samples, F windows, T frames (L in H3), M mel bands, E width, H heads of
d = E / H numbers, N states, V symbols: the blank, 0, and the digits plus 1.
Unlike the paper: utterances are clips of digits in a row, not hours of speech; attention is told
no positions, as the convolutions can tell them; one H3 holds the kernels of both ways; "parallel"
takes the mean of the two mixers.

    python h3_conformer.py                     made-up digits, nothing to download
    python h3_conformer.py --config fsdd       DATA_ROOT/fsdd/recordings, takes 0-4 for the test
    python h3_conformer.py --config fsdd --weights out/h3_conformer/last.pt --n_steps 0 \
        --min_digits 30 --max_digits 60 --out out/long     only evaluate, 10 times as long
    python h3_conformer.py --config fsdd --predict my.wav  digits of a recording, 8 kHz
    python h3_conformer.py --smoke             seconds; exits 1 unless all BARS are met
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
import wave
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 250, "max_digits": 4, "n_mels": 24, "dim": 32, "depth": 2, "kernel_size": 7}
BARS = {"ter": (0.0, 0.02), "padding_gap": (0.0, 1e-9)}
CONFIGS = {"laptop": {}, "fsdd": {"dataset": "fsdd", "n_steps": 1200, "sample_interval": 400}}


# --- the idea ------------------------------------------------------------------------------------
def convolve_both(u, K, K_back):
    """u, convolved with K (..., M) over the present and past, and K_back over the future."""
    n = max(u.shape[-1], K.shape[-1]) + K.shape[-1]  # neither end comes in at the other
    K = torch.cat([F.pad(K, (0, n - 2 * K.shape[-1])), K_back.flip(-1)], -1)  # lag -1 comes last
    return torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(K, n), n)[..., : u.shape[-1]]


# Copied from ssm/h3.py
class DiagonalSSM(nn.Module):
    """One system of N states for each of H heads, as N/2 complex ones. Official code:
    HazyResearch/H3 src/models/ssm/ss_kernel_diag.py."""

    def __init__(self, heads, d_state):
        super().__init__()
        log_dt = torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1))
        self.log_dt = nn.Parameter(log_dt)
        self.log_A_real = nn.Parameter(torch.full((heads, d_state // 2), math.log(0.5)))
        self.A_imag = nn.Parameter((math.pi * torch.arange(d_state // 2)).repeat(heads, 1))
        C = torch.randn(heads, d_state // 2, dtype=torch.cfloat)
        self.C = nn.Parameter(torch.view_as_real(C))

    def system(self):
        """A_, B_ and C (H, N/2)."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)  # eq. (7)
        dt = self.log_dt.exp()[:, None]
        A_, B_ = (1 + dt / 2 * A) / (1 - dt / 2 * A), dt / (1 - dt / 2 * A)  # eq. (6)
        return A_, B_, torch.view_as_complex(self.C)

    def forward(self, length):
        """K (H, L)"""
        A_, B_, C = self.system()
        powers = (A_.log()[..., None] * torch.arange(length, device=C.device)).exp()
        return 2 * torch.einsum("hn,hnl->hl", C * B_, powers).real  # eq. (9)


# Differs from ssm/h3.py
class H3(nn.Module):
    """Mixes sequences (B, L, E) both ways, within mask (B, L, 1)."""

    def __init__(self, dim, d_state, head_dim):
        super().__init__()
        self.sizes = dim // head_dim, head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        C = torch.empty(2, *self.sizes, d_state).uniform_(-1, 1) / d_state**0.5
        self.ssm_k_C, self.D = nn.Parameter(C), nn.Parameter(torch.randn(self.sizes[0], 1, 1, 1))
        self.ssm_k_D = nn.Parameter(torch.randn(*self.sizes, 1))
        self.kernel, self.kernel_back = (DiagonalSSM(self.sizes[0], d_state) for _ in range(2))
        self.output_linear = nn.Linear(dim, dim)

    def forward(self, x, mask):
        q, k, v = self.q_proj(x), self.k_proj(x) * mask, self.v_proj(x) * mask  # eq. (1)
        q, k, v = (part.mT.unflatten(1, self.sizes) for part in (q, k, v))  # (B, H, d, L)
        k = convolve_both(k, *self.ssm_k_C) + self.ssm_k_D * k  # eq. (2)
        p = k[:, :, :, None] * v[:, :, None]  # (B, H, d, d, L)  eq. (3)
        K, K_back = (part(x.shape[1])[:, None, None] for part in (self.kernel, self.kernel_back))
        w = convolve_both(p, K, K_back) + self.D * p  # eq. (4), (5)
        y = (q[:, :, :, None] * w).sum(2)  # (B, H, d, L)  eq. (8)
        return self.output_linear(y.transpose(1, 2).flatten(1, 2).mT)  # (B, L, E)


class MHSA(nn.MultiheadAttention):
    """The same by attention."""

    def forward(self, x, mask):
        x, behind = x.transpose(0, 1), mask[..., 0] == 0  # (T, B, E), (B, T)
        return super().forward(x, x, x, behind, need_weights=False)[0].transpose(0, 1)


def greedy_decode(scores, lengths):
    """Best path of each of scores (B, T, V), without repeats and blanks: a list of symbols."""
    paths = zip(scores.argmax(-1).tolist(), lengths.tolist(), strict=True)
    return [[key for key, _ in itertools.groupby(path[:n]) if key] for path, n in paths]


def edit_distance(a, b):
    """Fewest insertions, deletions and exchanges that make b of a."""
    row = [*range(len(b) + 1)]
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(last + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


# --- model ---------------------------------------------------------------------------------------
RATE = 8000
MIXERS = {"mhsa": ((MHSA,), (MHSA,)), "h3": ((H3,), (H3,)), "hybrid": ((MHSA,), (H3,))}
MIXERS |= {"parallel": ((MHSA, H3),) * 2}  # of the lower half of the layers, of the upper half


def frames_within(length, lengths):
    return (torch.arange(length, device=lengths.device) < lengths[:, None]).float()  # (B, length)


class FrontEnd(nn.Module):
    """Samples (B, S), 0 behind their numbers (B,), to frames (B, T, E) and theirs."""

    def __init__(self, n_mels, dim):
        super().__init__()
        edges = 700 * (torch.linspace(0, math.log(1 + RATE / 1400), n_mels + 2).exp() - 1)
        f, rise = torch.linspace(0, RATE / 2, 129)[:, None], edges.diff()
        filters = torch.minimum((f - edges[:-2]) / rise[:-1], (edges[2:] - f) / rise[1:]).clamp(0)
        self.register_buffer("filters", filters, persistent=False)  # (129, M), triangles
        self.register_buffer("window", torch.hann_window(256), persistent=False)
        self.convs = nn.ModuleList(nn.Conv2d(n, dim, 3, 2, 1) for n in (1, dim))
        self.linear = nn.Linear(dim * ((n_mels + 3) // 4), dim)

    def log_mel(self, x):
        x = torch.stft(x, 256, 80, window=self.window, center=False, return_complex=True)
        return ((x.abs().square().mT @ self.filters + 1e-3).log() - 2) / 3  # about -3 to 3

    def forward(self, x, lengths):
        x = x * (lengths / (x.square().sum(1) + 1e-9)).sqrt()[:, None]  # equally loud
        x, lengths = self.log_mel(x)[:, None], (lengths - 256) // 80 + 1  # (B, 1, F, M)  eq. (14)
        for conv in self.convs:
            x = conv(x * frames_within(x.shape[2], lengths)[:, None, :, None]).relu()
            lengths = (lengths - 1) // 2 + 1  # eq. (15)
        return self.linear(x.transpose(1, 2).flatten(2)), lengths  # (B, T, E)


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm of x (B, E, T) whose statistics are those of the frames in mask (B, 1, T)."""

    def forward(self, x, mask):
        mean, var = self.running_mean, self.running_var
        if self.training:
            n = mask.sum()
            mean = (x * mask).sum((0, 2)) / n
            var = ((x - mean[:, None]).square() * mask).sum((0, 2)) / n
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(var.detach() * n / (n - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (x - mean[:, None]) * scale[:, None] + self.bias[:, None]


def feed_forward(dim, dropout):
    parts = [nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(4 * dim, dim), nn.Dropout(dropout))


class ConformerLayer(nn.Module):
    def __init__(self, dim, kernel_size, dropout, mixers):
        super().__init__()
        self.ffn1, self.ffn2 = (feed_forward(dim, dropout) for _ in range(2))
        self.mix_norm, self.conv_norm, self.final_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.mixers, self.dropout = nn.ModuleList(mixers), nn.Dropout(dropout)
        self.pointwise1, self.pointwise2 = nn.Conv1d(dim, 2 * dim, 1), nn.Conv1d(dim, dim, 1)
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.batch_norm = MaskedBatchNorm(dim)

    def forward(self, x, mask):  # (B, T, E), (B, T, 1)
        x = x + self.ffn1(x) / 2  # eq. (10)
        y = self.mix_norm(x)
        x = x + self.dropout(sum(m(y, mask) for m in self.mixers)) / len(self.mixers)  # eq. (11)
        y = F.glu(self.pointwise1(self.conv_norm(x).mT), 1)  # (B, E, T)
        y = F.silu(self.batch_norm(self.depthwise(y * mask.mT), mask.mT))
        x = x + self.dropout(self.pointwise2(y).mT)  # eq. (12)
        return self.final_norm(x + self.ffn2(x) / 2)  # eq. (13)


class Conformer(nn.Module):
    """Samples (B, S) and their numbers (B,) to log P (B, T, V) and the numbers of frames (B,)."""

    def __init__(self, n_mels, dim, depth, heads, d_state, head_dim, kernel_size, dropout, mixer):
        super().__init__()
        self.front_end, self.dropout = FrontEnd(n_mels, dim), nn.Dropout(dropout)
        sizes = {MHSA: (dim, heads, dropout), H3: (dim, d_state, head_dim)}
        mixers = [[m(*sizes[m]) for m in MIXERS[mixer][2 * i >= depth]] for i in range(depth)]
        self.layers = nn.ModuleList(ConformerLayer(dim, kernel_size, dropout, m) for m in mixers)
        self.head = nn.Linear(dim, 11)

    def forward(self, x, lengths):
        x, lengths = self.front_end(x, lengths)
        x, mask = self.dropout(x), frames_within(x.shape[1], lengths)[..., None]  # (B, T, 1)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x).log_softmax(-1), lengths  # (B, T, V)


# --- data ----------------------------------------------------------------------------------------
VOWELS = {"i": (300, 2300), "e": (450, 1900), "a": (750, 1300), "o": (500, 900), "u": (320, 700)}


def made_up_digit(digit):
    """A made-up word: two resonances that glide from one vowel to another, in some noise."""
    start, end = (torch.tensor(VOWELS[v]) for v in [*itertools.combinations(VOWELS, 2)][digit])
    t = torch.linspace(0, 1, int(torch.randint(1000, 1800, ())))[:, None]
    f = (start + (end - start) * t) * torch.empty(1).uniform_(0.9, 1.1)  # a speaker's  (S, 2)
    voice = (f.cumsum(0) * 2 * math.pi / RATE).sin() @ torch.tensor([1.0, 0.5])
    return voice * (math.pi * t[:, 0]).sin() + 0.1 * torch.randn(len(t))


def read_wav(file, flag):
    """Samples (S,) of a recording."""
    with contextlib.suppress(OSError, EOFError, wave.Error), wave.open(str(file)) as sound:
        samples = bytearray(sound.readframes(sound.getnframes()))
        if sound.getparams()[:3] == (1, 2, RATE) and len(samples) >= 512:
            return torch.frombuffer(samples, dtype=torch.int16) / 2**15
    fail(f"{flag} {file}: is no .wav of one channel, 16 bits, {RATE} Hz and 32 ms; convert one")


def load_data(args):
    """Clips for training and for testing: two lists of (samples (S,) on the device, digit)."""
    if args.dataset == "made_up":
        clips = [(made_up_digit(k % 10), k % 10, "nobody", k // 10) for k in range(1000)]
    else:
        files = sorted(Path(args.data_root, "fsdd/recordings").glob("[0-9]_*_[0-9]*.wav"))
        clips = [(read_wav(f, "--data_root"), *f.stem.split("_")) for f in files]
    clips = [(x.to(args.device), int(digit), int(take) < 5) for x, digit, _, take in clips]
    parts = [[(x, digit) for x, digit, held in clips if held == part] for part in (False, True)]
    if not all(parts):
        fail("--data_root: no fsdd/recordings there; copy Jakobovski/free-spoken-digit-dataset")
    return parts


def utterances(clips, args):
    """A batch of sequences of clips: samples (B, S), their numbers, symbols (sum,), theirs."""
    counts = torch.randint(args.min_digits, args.max_digits + 1, (args.batch_size,)).tolist()
    picked = [[clips[i] for i in torch.randint(len(clips), (n,)).tolist()] for n in counts]
    sounds = [torch.cat([x for x, _ in part]) for part in picked]
    y = torch.tensor([digit + 1 for part in picked for _, digit in part], device=args.device)
    numbers = torch.tensor([[*map(len, sounds)], counts], device=args.device)
    return nn.utils.rnn.pad_sequence(sounds, batch_first=True), numbers[0], y, numbers[1]


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args):
    sizes = args.n_mels, args.dim, args.depth, args.heads, args.d_state, args.head_dim
    return Conformer(*sizes, args.kernel_size, args.dropout, args.mixer).to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the error on clips never heard."""
    torch.manual_seed(args.seed)
    (clips, test), model = load_data(args), build(args)
    if args.weights:
        load_weights(args.weights, model)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, (args.b1, args.b2), fused=True)
    state = {"model": model, "optimizer": optimizer}
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                x, lengths, y, sizes = utterances(clips, args)
                p, ends = model.train()(x, lengths)
                loss = F.ctc_loss(p.transpose(0, 1), y, ends, sizes, zero_infinity=True)  # eq. (16)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                warm = (step + 1) / args.warmup
                optimizer.param_groups[0]["lr"] = args.lr * min(warm, warm**-0.5)
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
    return evaluate(model, test, args)


@torch.inference_mode()
def evaluate(model, clips, args):
    """ter: edits that mend what was recognised, per digit that was said, in 16 batches."""
    torch.manual_seed(-1)
    edits = said = 0
    for x, lengths, y, sizes in (utterances(clips, args) for _ in range(16)):
        paths, truths = greedy_decode(*model.eval()(x, lengths)), y.split(sizes.tolist())
        edits += sum(edit_distance(a, b.tolist()) for a, b in zip(paths, truths, strict=True))
        said += len(y)
    return {"ter": edits / said}


@torch.inference_mode()
def generate(args):
    """The work of --predict: print the digits of a recording."""
    x, model = read_wav(args.predict, "--predict").to(args.device), build(args).eval()
    load_weights(args.weights or f"{args.out}/last.pt", model)
    (path,) = greedy_decode(*model(x[None], torch.tensor([len(x)], device=args.device)))
    print(*(symbol - 1 for symbol in path))
    return 0


def smoke(args):
    """A short run in a temporary folder; then, in float64, a padded sequence and it alone."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics, model = train(args), build(args)
        load_weights(f"{args.out}/last.pt", model)
    x, lengths, *_ = (part.cpu() for part in utterances(load_data(args)[1], args))
    x, i, model = x.double(), lengths.argmin(), model.cpu().double().eval()
    with torch.inference_mode():
        padded, frames = model(x, lengths)
        alone, _ = model(x[i, None, : lengths[i]], lengths[i, None])
    return report(args, **metrics, padding_gap=(padded[i, : frames[i]] - alone[0]).abs().max())


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
    add("--dataset", choices=["made_up", "fsdd"], default="made_up", help="clips of digits")
    add("--data_root", default="data", help="folder of the data sets")
    add("--min_digits", type=at_least(1), default=3, help="fewest digits of an utterance")
    add("--max_digits", type=at_least(1), default=7, help="most digits of an utterance")
    add("--mixer", choices=MIXERS, default="hybrid", help="hybrid: attention below, H3 above")
    add("--n_mels", type=at_least(4), default=40, help="mel bands M")
    add("--dim", type=at_least(1), default=64, help="width E of the model")
    add("--depth", type=at_least(1), default=4, help="layers")
    add("--heads", type=at_least(1), default=4, help="heads of the attention")
    add("--d_state", type=at_least(2), default=32, help="states N of a system, in pairs")
    add("--head_dim", type=at_least(1), default=4, help="numbers d of a head of H3")
    add("--kernel_size", type=at_least(1), default=15, help="frames a depthwise convolution sees")
    add("--dropout", type=at_least(0.0, 1.0), default=0.1, help="share of zeroed activations")
    add("--n_steps", type=at_least(0), default=300, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=16, help="examples per step")
    add("--lr", type=at_least(0.0), default=2e-3, help="adam: largest learning rate")
    add("--warmup", type=at_least(1), default=50, help="steps over which --lr is reached")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.98, help="adam: decay of its square")
    add("--grad_clip", type=at_least(0.0), default=1.0, help="largest norm of the gradient")
    add("--sample_interval", type=at_least(1), default=100, help="steps between evaluations")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", help="only print the digits of this .wav, by --weights or OUT/last.pt")
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
    if args.min_digits > args.max_digits:
        fail(f"--min_digits {args.min_digits}: above --max_digits {args.max_digits}; lower it")
    if args.d_state % 2:
        fail(f"--d_state {args.d_state}: complex states come in pairs; make it even")
    if args.kernel_size % 2 == 0:
        fail(f"--kernel_size {args.kernel_size}: has no middle; make it odd")
    for flag in ("head_dim", "heads"):
        if args.dim % vars(args)[flag]:
            fail(f"--{flag} {vars(args)[flag]}: does not divide --dim {args.dim}; change either")
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
