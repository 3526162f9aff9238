# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "scipy>=1.11,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""WaveNet: sound drawn sample by sample, each from all before it through convolutions whose taps
lie ever further apart, and from a mel spectrogram and a voice.

Papers: van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior & Kavukcuoglu,
"WaveNet: A Generative Model for Raw Audio", 2016, arXiv 1609.03499; (9) from Paine, Khorrami,
Chang, Zhang, Ramachandran, Hasegawa-Johnson & Huang, "Fast Wavenet Generation Algorithm", 2016,
arXiv 1611.09482.

    m = ln max(W |STFT(x)|, 1e-5)                      (1)  mel spectrogram of a sound x
    z = tanh(W_f * h + V_f c + U_f g) sigmoid(W_g * h + V_g c + U_g g)   (2)  gated unit
    h <- h + P z,  s <- s + Q z                        (3)  on to the next block, on to the end
    scores = B relu(A relu(s))                         (4)  of what to tell at every t
    f = sign(x) ln(1 + 255 |x|) / ln 256               (5)  mu-law: finer near silence
    q = floor((f + 1) 255/2 + 1/2)                     (6)  one of 256 codes; 128 is silence
    p(q | m, g) = prod_t p(q_t | q_<t, m, g)           (7)  softmax of the scores
    L = -1/S sum_t ln p(q_t | q_<t, m, g)              (8)  all t at once when q is known
    (W * h)_t = sum_i W_i h_t-id, i = 0 ... k-1        (9)  when drawn: from a queue per block
    reach = 1 + (k - 1) sum_n d_n                      (10)  samples that the next one depends on

c is m, stretched to samples by transposed convolutions that are learned too; g the vector of a
voice. Block n looks back by d = 2^n, and from 1 again after each cycle. To draw one sample anew
costs a pass over the whole reach; with queues, what one sample alone costs. A block's queue is d
rows of k inputs: the row t mod d holds just those that (9) needs at t, so that nothing is moved.

Shapes: B sounds, S samples, M mel bands, F frames of r samples, S = F r, L blocks, k taps, R and K
channels of h and s; x, q (B, S), m (B, M, F), c (B, M, S), g (B,) or (B, R).
Unlike the paper: it tells no widths, those of --config paper (30 blocks) are usual ones; mels take
the place of linguistic features; the first layer is a table of codes, not a convolution of them.

    python wavenet.py                      made-up voices, nothing to download
    python wavenet.py --dataset fsdd --data_root DATA --n_steps 20000    DATA/fsdd/recordings
    python wavenet.py --dataset folder --data_root my_sounds    any .wav below it; 1 in 20 held out,
                                           each folder of them a voice
    python wavenet.py --predict talk.wav --voice 1    its mel made sound again, slowly
    python wavenet.py --smoke              seconds; exits 1 unless all BARS are met
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
SMOKE = {"n_steps": 60, "sample_interval": 60, "depth": 8, "dim": 32, "skip_dim": 64}
SMOKE |= {"segment": 1024, "batch_size": 4, "lr": 5e-3}
BARS = {"nll": (0.0, 5.21), "to_unigram": (-9.0, -0.27), "to_wrong_mel": (-9.0, -0.02)}
BARS |= {"alike": (1.0, 1.0)}
CONFIGS = {"laptop": {}, "paper": {"sr": 22050, "rates": [16, 16], "n_mels": 80, "depth": 30}}
CONFIGS["paper"] |= {"dim": 128, "skip_dim": 128, "segment": 8192, "n_steps": 1_000_000}


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


# Differs from ssm/mamba_scan.py
class ResidualBlock(nn.Module):
    """h (B, R, S), c (B, M, S) and the voice (B, R) to the next h and what the end shall know."""

    def __init__(self, n_mels, dim, skip_dim, kernel, dilation):
        super().__init__()
        self.sizes, self.past = (dim, skip_dim), (kernel - 1) * dilation
        self.dilated_conv = nn.Conv1d(dim, 2 * dim, kernel, dilation=dilation)
        self.voice_projection = nn.Linear(dim, 2 * dim, bias=False)
        self.conditioner_projection = nn.Conv1d(n_mels, 2 * dim, 1, bias=False)
        self.output_projection = nn.Conv1d(dim, dim + skip_dim, 1)

    def forward(self, h, c, g):
        y = self.dilated_conv(F.pad(h, (self.past, 0)))  # (B, 2 R, S), of the past alone
        y = y + self.conditioner_projection(c) + self.voice_projection(g)[..., None]
        f, g = y.chunk(2, 1)
        y = self.output_projection(f.tanh() * g.sigmoid())  # (B, R + K, S)  eq. (2)
        residual, skip = y.split(self.sizes, 1)
        return h + residual, skip  # eq. (3)


class WaveNet(nn.Module):
    """Scores (B, 256, S) of codes q (B, S), each from those before it, c (B, M, S) and g (B,)."""

    def __init__(self, n_mels, rates, depth, cycle, dim, skip_dim, kernel, n_voices):
        super().__init__()
        self.input_projection = nn.Embedding(256, dim)
        self.voices = nn.Embedding(n_voices, dim)
        self.spectrogram_upsampler = SpectrogramUpsampler(rates)
        sizes = n_mels, dim, skip_dim, kernel
        blocks = (ResidualBlock(*sizes, 2 ** (n % cycle)) for n in range(depth))
        self.residual_layers = nn.ModuleList(blocks)
        self.skip_projection = nn.Conv1d(skip_dim, skip_dim, 1)
        self.output_projection = nn.Conv1d(skip_dim, 256, 1)

    def forward(self, q, c, g):
        h = self.input_projection(F.pad(q[:, :-1], (1, 0), value=128)).mT  # (B, R, S), one late
        g, s = self.voices(g), 0
        for block in self.residual_layers:
            h, skip = block(h, c, g)
            s = s + skip
        return self.output_projection(self.skip_projection(s.relu()).relu())  # (B, 256, S)  eq. (4)

    def stretch(self, m):
        return self.spectrogram_upsampler((m + 5) / 2.5)  # (B, M, S)

    def reach(self):
        return 1 + sum(block.past for block in self.residual_layers)  # eq. (10)


# --- the idea ------------------------------------------------------------------------------------
def mu_law(x):
    """Codes, of the shape of x in [-1, 1]."""
    f = x.sign() * (255 * x.abs()).log1p() / math.log1p(255)  # eq. (5)
    return ((f + 1) / 2 * 255 + 0.5).long()  # eq. (6)


def inverse_mu_law(q):
    """Sound, of the shape of q: the middle of what each code stands for."""
    f = q / 255 * 2 - 1
    return f.sign() * ((f.abs() * math.log1p(255)).exp() - 1) / 255


def loss_of(model, x, m, g):
    """What sounds x (B, S) cost by their mels and voices, in nats a sample."""
    q, c = mu_law(x), model.stretch(m)
    return F.cross_entropy(model(q, c, g).float(), q)  # eq. (8)


def draw_code(scores, temperature):
    """One code (B,) by each row of scores (B, 256); at temperature 0 the likeliest."""
    if not temperature:
        return scores.argmax(1)
    return torch.multinomial((scores / temperature).softmax(1), 1)[:, 0]  # eq. (7)


@torch.inference_mode()
def sample_naively(model, m, g, temperature=1.0):
    """Codes (B, S) as sample draws them; each costs a pass over all that it depends on."""
    c, reach = model.stretch(m), model.reach()
    q = torch.zeros(len(c), 0, dtype=torch.long, device=c.device)
    for t in range(c.shape[2]):
        q, first = F.pad(q, (0, 1)), max(0, t - reach)
        scores = model(q[:, first:], c[:, :, first : t + 1], g)[:, :, -1]
        q[:, t] = draw_code(scores, temperature)
    return q


class Queue:
    """A block that goes from sample to sample; its past inputs lie in a queue that never moves."""

    def __init__(self, block, g, z):  # voices (B, R); where to put z (B, R + 1), the last of it 1
        w, self.d, dim = block.dilated_conv.weight, block.dilated_conv.dilation[0], g.shape[1]
        self.k, self.z, self.gated = w.shape[2], z, z[:, :-1]
        queue = g.new_zeros(self.d, len(g), self.k, dim)  # 0 is what came before the first sample
        self.rows, self.slots = queue.flatten(2).unbind(), [row.unbind(1) for row in queue]
        # Where the newest input lies in slot i of its row, the one in slot j is (i - j) mod k old.
        turns = [[w[..., (j - i - 1) % self.k] for j in range(self.k)] for i in range(self.k)]
        self.turned = [torch.cat(turn, 1).mT.contiguous() for turn in turns]  # (k R, 2 R)
        out = block.output_projection
        out = torch.cat([out.weight[..., 0].mT, out.bias[None]])  # (R + 1, R + K)
        self.onward, self.skip = (part.contiguous() for part in out.split(block.sizes, 1))
        self.y = g.new_empty(len(g), 2 * dim)
        self.halves = self.y.chunk(2, 1)

    def slot(self, t):
        """Where h (B, R) of sample t belongs."""
        return self.slots[t % self.d][t // self.d % self.k]

    def step(self, t, fed, out):
        """From h in its slot and conditions (B, 2 R) to z, and to the next h in out."""
        row, turned = self.rows[t % self.d], self.turned[t // self.d % self.k]
        torch.addmm(fed, row, turned, out=self.y)  # eq. (9)
        torch.mul(self.halves[0].tanh(), self.halves[1].sigmoid(), out=self.gated)
        torch.addmm(self.slot(t), self.z, self.onward, out=out)


@torch.inference_mode()
def sample(model, m, g, temperature=1.0):
    """Codes (B, S) of mels (B, M, F) in voices (B,): what sample_naively draws, far sooner."""
    blocks, c, g = model.residual_layers, model.stretch(m), model.voices(g)
    z = g.new_ones(len(g), len(blocks), g.shape[1] + 1)
    queues = [Queue(block, g, z[:, n]) for n, block in enumerate(blocks)]
    skips = torch.cat([queue.skip for queue in queues])  # all at once, (L (R + 1), K)
    fed = torch.cat([block.conditioner_projection.weight for block in blocks])  # (L 2 R, M, 1)
    bias = [block.voice_projection(g) + block.dilated_conv.bias for block in blocks]
    bias, spare = torch.stack(bias, 1), torch.empty_like(g)  # (B, L, 2 R), (B, R)
    heads = [(p.weight[..., 0], p.bias) for p in (model.skip_projection, model.output_projection)]
    q, codes = torch.full_like(g[:, 0], 128).long(), []
    for part in tqdm(c.split(1000, 2), leave=False, disable=None):
        conditions = F.conv1d(part, fed).unflatten(1, bias.shape[1:])  # (B, L, 2 R, s)
        conditions = (conditions + bias[..., None]).permute(3, 1, 0, 2).contiguous()
        for each in conditions:  # (L, B, 2 R)
            t = len(codes)
            torch.index_select(model.input_projection.weight, 0, q, out=queues[0].slot(t))
            outs = [queue.slot(t) for queue in queues[1:]] + [spare]
            for queue, condition, out in zip(queues, each, outs, strict=True):
                queue.step(t, condition, out)
            s = F.linear((z.flatten(1) @ skips).relu(), *heads[0])  # (B, K)
            q = draw_code(F.linear(s.relu(), *heads[1]), temperature)
            codes.append(q)
    return torch.stack(codes, 1)


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
    """Sound to learn from and sound held out: (2, S), clips with peaks at 0.95 and their voices."""
    root, fsdd, parts, voices = Path(args.data_root), args.dataset == "fsdd", [[], []], {}
    if args.dataset == "made_up":
        parts = [[made_up_voice(*voice, n=n * RATE) for voice in VOICES] for n in (20, 4)]
        parts = [[(x + 0.02 * torch.randn(len(x)), at) for at, x in enumerate(p)] for p in parts]
    else:
        files = root.glob("fsdd/recordings/[0-9]_*_[0-9]*.wav" if fsdd else "**/*.wav")
        for at, file in enumerate(sorted(files)):
            voice = voices.setdefault(file.stem.split("_")[1] if fsdd else file.parent, len(voices))
            part = parts[int(file.stem.split("_")[2]) < 5 if fsdd else at % 20 == 0]
            part.append((read_sound(file, "--data_root", args.sr), voice))
        if not all(parts):
            fail(f"--data_root {root}: too few .wav files there; name 2 or more, or see --help")
    if (n := max(len(voices), len(VOICES) * (not voices))) > args.n_voices:
        fail(f"--n_voices {args.n_voices}: there are {n}; allow for more")
    parts = [[(x * 0.95 / x.abs().max().clamp(min=1e-5), v) for x, v in p] for p in parts]
    parts = [torch.cat([torch.stack([x, torch.full_like(x, v)]) for x, v in p], 1) for p in parts]
    return [F.pad(x, (0, max(0, 8 * args.segment - x.shape[1]))).to(args.device) for x in parts]


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args):
    """The network, and the spectrogram that it reads, on the device."""
    mel = Mel(args.sr, math.prod(args.rates), args.n_mels, args.fmax)
    sizes = args.depth, args.cycle, args.dim, args.skip_dim, args.kernel, args.n_voices
    return WaveNet(args.n_mels, args.rates, *sizes).to(args.device), mel.to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of sounds never heard."""
    torch.manual_seed(args.seed)
    (x, test), (model, mel) = load_data(args), build(args)
    if args.weights:
        load_weights(args.weights, model)
    betas = args.b1, args.b2
    optimizer = torch.optim.Adam(model.parameters(), args.lr, betas, fused=True)
    state = {"model": model, "optimizer": optimizer}
    step, clips = begin(args, state), x.unfold(1, args.segment, 1)  # (2, ., S), no copy
    amp = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                at = torch.randint(clips.shape[1], (args.batch_size,), device=args.device)
                real, voice = clips[:, at]  # (B, S) each
                m, g = mel(real), voice[:, -1].long()  # (B, M, F), (B,)
                with amp:
                    loss = loss_of(model.train(), real, m, g)
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
    voice, (x, _) = int(test[1, 0]), test[:, : 4 * args.segment]
    draw(args, "example", x, voice, model, mel)
    return evaluate(model, mel, test, args)


@torch.inference_mode()
def evaluate(model, mel, test, args):
    """Nats a sample of sounds held out; less those by frequencies of codes, by other mels."""
    x, voice = test.unfold(1, 4 * args.segment, 4 * args.segment)  # (., S)
    x, voice = (part[:: -(-len(x) // 8)] for part in (x, voice))  # 8 at most
    m, g, p = mel(x), voice[:, -1].long(), mu_law(x).flatten().bincount(minlength=256) / x.numel()
    own, wrong = (loss_of(model.eval(), x, each, g).item() for each in (m, m.roll(1, 0)))
    unigram = -p.xlogy(p).sum().item()
    return {"nll": own, "to_unigram": own - unigram, "to_wrong_mel": own - wrong}


def draw(args, stem, x, voice, model, mel):
    """OUT/stem_ref.wav of x (S,), _gen.wav of its mel alone, .png of both; returns how it went."""
    from matplotlib.figure import Figure

    start, hop, figure = time.perf_counter(), mel.hop, Figure((8, 4), layout="constrained")
    m = mel(F.pad(x, (0, max(-len(x) % hop, 8 * hop - len(x))))[None])  # (1, M, F)
    torch.manual_seed(args.seed)
    g = torch.tensor([voice], device=args.device)
    y = inverse_mu_law(sample(model.eval(), m, g, args.temperature))[0]  # (F r,)
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
    print(line(draw(args, Path(args.predict).stem, x.to(args.device), args.voice, model, mel)))
    return 0


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    model, drawn = build(args)[0].cpu().double(), []
    m = torch.randn(2, args.n_mels, 2, dtype=torch.float64) - 5
    for sampler in (sample, sample_naively):
        torch.manual_seed(args.seed)
        drawn.append(sampler(model, m, torch.tensor([0, 1])))
    return report(args, **metrics, alike=(drawn[0] == drawn[1]).double().mean())


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
    add("--depth", type=at_least(1), default=20, help="blocks L")
    add("--cycle", type=at_least(1), default=10, help="blocks until dilations are 1 again")
    add("--kernel", type=at_least(1), default=2, help="taps k of a dilated convolution")
    add("--dim", type=at_least(1), default=64, help="channels R between blocks")
    add("--skip_dim", type=at_least(1), default=128, help="channels K of what the end is told")
    add("--n_voices", type=at_least(2), default=8, help="voices to tell apart, at most")
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
    add("--voice", type=at_least(0), default=0, help="... in this voice, counted from 0")
    add("--temperature", type=at_least(0.0), default=1.0, help="0: always the likeliest code")
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
    if args.voice >= args.n_voices:
        fail(f"--voice {args.voice}: there are {args.n_voices}, the first is 0; see --n_voices")
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
