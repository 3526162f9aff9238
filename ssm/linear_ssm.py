# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Linear state-space model: one system as differential equation, recurrence and convolution; the
memory of HiPPO; and S4D, which learns by convolution and is used as a recurrence.

Papers: Gu, Goel & Re, "Efficiently Modeling Long Sequences with Structured State Spaces" (S4),
ICLR 2022, arXiv 2111.00396; Gu, Dao, Ermon, Rudra & Re, "HiPPO: Recurrent Memory with Optimal
Polynomial Projections", NeurIPS 2020, arXiv 2008.07669; Gu, Gupta, Goel & Re, "On the
Parameterization and Initialization of Diagonal State Space Models" (S4D), NeurIPS 2022, arXiv
2206.11893.

    h'(t) = A h(t) + B u(t),  y(t) = C h(t) + D u(t)      (1)  h, not h', is the state
    A_ = exp(dt A),  B_ = A^-1 (exp(dt A) - I) B          (2)  zoh: exact where u is held for dt
    A_ = (I - dt/2 A)^-1 (I + dt/2 A),  B_ = (I - dt/2 A)^-1 dt B   (3)  bilinear
    A_ = I + dt A,  B_ = dt B                             (4)  euler
    h_k = A_ h_{k-1} + B_ u_k,  y_k = C h_k + D u_k       (5)  recurrent; of h_k, not of h_{k-1}
    y = K * u + D u,  K_k = C A_^k B_                     (6)  convolutional: (5) written out
    A_nk = -sqrt(2n + 1) sqrt(2k + 1) for n > k, -(n + 1) for n = k, 0 for n < k;
    B_n = sqrt(2n + 1),  n = 0 ... N - 1                  (7)  HiPPO-LegS
    c'(t) = (A c(t) + B f(t)) / t                         (8)  memory of all of f from 0 to t
    c_k = c at t = k: a step of (2) with dt = log k - log(k - 1)   (9)  log t makes it uniform
    f(s) ~ sum_n c_n sqrt(2n + 1) P_n(2s/t - 1)           (10)  Legendre polynomials P_n
    A_n = -1/2 + i pi n,  B_n = 1,  n = 0 ... N/2 - 1     (11)  S4D-Lin: one of each pair
    y_k = 2 Re(sum_n C_n h_kn) + D u_k                    (12)  the other of the pair: conjugate
    L = -log softmax(scores)_class                        (13)  scores: linear in the mean of y

(8) holds the projection of the whole past on N polynomials, each moment weighing the same; it
follows that c is the best that N numbers can keep. S4 leaves the 1/t out of it, and with a fixed
dt the same A forgets exponentially. (6) needs zeros behind u and K, since the product of two
spectra is a convolution around a circle.

Shapes: B batch, L steps, N states, E channels, K classes; u, y (..., L), A (N, N), B, C, c (N,).
S4D: u, y (B, E, L), A_, B_, C (E, N/2) complex, h (B, E, N/2); pictures x (B, L), row by row.
Unlike the paper: mean over all steps and no bidirectional layers; a constant step size; S4 itself
(the matrix of LegS, as diagonal plus low rank) is left out for its diagonal successor.
Official weights: parameter names are those of state-spaces/s4, example.py and models/s4/s4d.py.

    python linear_ssm.py                       8x8 digits as 64 steps, nothing to download
    python linear_ssm.py --config mnist14      MNIST, pooled to 14x14 = 196 steps
    python linear_ssm.py --config mnist        MNIST, 784 steps, for a GPU
    python linear_ssm.py --method euler        what a crude discretisation leads to
    python linear_ssm.py --smoke               seconds; exits 1 unless all BARS are met
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
SMOKE = {"n_epochs": 10, "dim": 48}
BARS = {"test_acc": (0.93, 1.0), "memory_ratio": (0.99, 1.01), "euler_ratio": (3.0, 100.0)}
BARS |= {"conv_gap": (0.0, 1e-12), "step_gap": (0.0, 1e-9)}
MNIST = {"dataset": "mnist", "dim": 128, "depth": 4, "d_state": 64, "dropout": 0.1}
MNIST |= {"dt_min": 1e-3, "dt_max": 0.1, "batch_size": 64, "n_epochs": 20}
SMALL = {"dataset": "mnist", "pool": 2, "dt_min": 3e-3, "batch_size": 64, "n_epochs": 4}
CONFIGS = {"laptop": {}, "mnist14": SMALL, "mnist": MNIST}


# --- the idea ------------------------------------------------------------------------------------
def matrix_steps(A, B, dt, method):
    """A_ (N, N) and B_ (N,) of A and B. The exponential of a block matrix gives both parts of (2),
    where A has no inverse as well."""
    eye, half = torch.eye(len(A), dtype=A.dtype), dt / 2 * A
    if method == "zoh":
        both = F.pad(torch.cat([A, B[:, None]], 1), (0, 0, 0, 1))  # (N + 1, N + 1)
        both = torch.linalg.matrix_exp(dt * both)[:-1]
        return both[:, :-1], both[:, -1]  # eq. (2)
    if method == "bilinear":
        both = torch.linalg.solve(eye - half, torch.cat([eye + half, dt * B[:, None]], 1))
        return both[:, :-1], both[:, -1]  # eq. (3)
    return eye + 2 * half, dt * B  # eq. (4)


def diagonal_steps(A, dt, method):
    """The same for many systems of one state each and B = 1, entry by entry."""
    z = dt * A
    if method == "zoh":
        return z.exp(), z.expm1() / A  # eq. (2)
    if method == "bilinear":
        return (1 + z / 2) / (1 - z / 2), dt / (1 - z / 2)  # eq. (3)
    return 1 + z, dt + 0 * z  # eq. (4)


def recurrent(A_, B_, C, u):
    """y (L,) of u (L,), step by step, with D = 0."""
    h, y = torch.zeros_like(B_), []
    for u_k in u:
        h = A_ @ h + B_ * u_k
        y.append(C @ h)  # eq. (1), (5)
    return torch.stack(y)


def kernel(A_, B_, C, length):
    """K (L,): the answer to a single 1."""
    K = []
    for _ in range(length):
        K.append(C @ B_)  # eq. (6)
        B_ = A_ @ B_
    return torch.stack(K)


def convolve(u, K):
    """Causal convolution of u with K (..., L)."""
    n = u.shape[-1] + K.shape[-1]  # shorter, and the end would come in at the beginning
    return torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(K, n), n)[..., : u.shape[-1]]


def legs(n_states):
    """A (N, N) and B (N,) of HiPPO-LegS in float64."""
    n = torch.arange(n_states, dtype=torch.float64)
    B = (2 * n + 1).sqrt()
    return -torch.outer(B, B).tril(-1) - torch.diag(n + 1), B  # eq. (7)


def memorise(f, n_states, method):
    """c (N,) of the history f (L,), whose values are held for one unit of time each."""
    A, B = legs(n_states)
    c = f[0] * torch.eye(n_states, dtype=f.dtype)[0]  # the constant that has been all so far
    for k, f_k in enumerate(f[1:], 2):
        dt = -math.log1p(-1 / k) if method == "zoh" else 1 / k  # eq. (9)
        A_, B_ = matrix_steps(A, B, dt, method)
        c = A_ @ c + B_ * f_k  # eq. (8)
    return c


def polynomials(n_states, length):
    """sqrt(2n + 1) P_n in the middle of each of L equal steps: (L, N)."""
    x = (torch.arange(length, dtype=torch.float64) + 0.5) / length * 2 - 1
    P = [torch.ones_like(x), x]
    for n in range(1, n_states):
        P.append(((2 * n + 1) * x * P[n] - n * P[n - 1]) / (n + 1))
    return torch.stack(P[:n_states], 1) * legs(n_states)[1]


def remember(f, n_states=32):
    """What is left of f (L,): the least-squares optimum, and the memory by every method (L,)."""
    P = polynomials(n_states, len(f))
    found = {"least squares": P @ torch.linalg.lstsq(P, f[:, None]).solution[:, 0]}
    return found | {m: P @ memorise(f, n_states, m) for m in METHODS}  # eq. (10)


METHODS = ["zoh", "bilinear", "euler"]


# --- model ---------------------------------------------------------------------------------------
class S4DKernel(nn.Module):
    """E diagonal systems of N states, as N/2 complex ones."""

    def __init__(self, dim, d_state, dt_min, dt_max, method):
        super().__init__()
        self.method = method
        log_dt = torch.empty(dim).uniform_(math.log(dt_min), math.log(dt_max))
        self.log_dt = nn.Parameter(log_dt)  # positive, and spread over all scales
        C = torch.randn(dim, d_state // 2, dtype=torch.cfloat)
        self.C = nn.Parameter(torch.view_as_real(C))
        self.log_A_real = nn.Parameter(torch.full((dim, d_state // 2), math.log(0.5)))
        self.A_imag = nn.Parameter((math.pi * torch.arange(d_state // 2)).repeat(dim, 1))

    def system(self):
        """A_, B_ and C (E, N/2); the real part of A is negative whatever is learned."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)  # eq. (11)
        A_, B_ = diagonal_steps(A, self.log_dt.exp()[:, None], self.method)
        return A_, B_, torch.view_as_complex(self.C)

    def forward(self, length):
        """K (E, L)"""
        A_, B_, C = self.system()
        powers = (A_.log()[..., None] * torch.arange(length, device=C.device)).exp()
        return 2 * torch.einsum("en,enl->el", C * B_, powers).real  # eq. (6), (12)


class S4D(nn.Module):
    """The systems, each on its channel, and a gated linear layer that mixes the channels."""

    def __init__(self, dim, d_state, dropout, dt_min, dt_max, method):
        super().__init__()
        self.D = nn.Parameter(torch.randn(dim))
        self.kernel = S4DKernel(dim, d_state, dt_min, dt_max, method)
        self.dropout = nn.Dropout1d(dropout)
        self.output_linear = nn.Sequential(nn.Conv1d(dim, 2 * dim, 1), nn.GLU(1))

    def forward(self, u):
        """All of u (B, E, L) at once."""
        y = convolve(u, self.kernel(u.shape[-1])) + self.D[:, None] * u
        return self.output_linear(self.dropout(F.gelu(y)))  # (B, E, L)

    def step(self, u, h):
        """One step u (B, E) on from the state h (B, E, N/2)."""
        A_, B_, C = self.kernel.system()
        h = A_ * h + B_ * u[..., None]  # eq. (5)
        y = 2 * (C * h).sum(-1).real + self.D * u  # (B, E)  eq. (12)
        return self.output_linear(F.gelu(y)[..., None])[..., 0], h


class S4Model(nn.Module):
    """Scores (B, K) of sequences x (B, L). Layers end in a norm."""

    def __init__(self, n_classes, dim, depth, *layer):
        super().__init__()
        self.encoder = nn.Linear(1, dim)
        self.s4_layers = nn.ModuleList([S4D(dim, *layer) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(depth)])
        self.decoder = nn.Linear(dim, n_classes)

    def forward(self, x):
        z = self.encoder(x[..., None])  # (B, L, E)
        for layer, norm in zip(self.s4_layers, self.norms, strict=True):
            z = norm(z + layer(z.mT).mT)
        return self.decoder(z.mean(1))  # (B, K)

    def step(self, x, state=None):
        """Read x (B,): the scores of all that was read so far, and the state."""
        hs, total, k = state or ([0.0] * len(self.norms), 0.0, 0)
        z, after = self.encoder(x[:, None]), []  # (B, E)
        for layer, norm, h in zip(self.s4_layers, self.norms, hs, strict=True):
            y, h = layer.step(z, h)
            z = norm(z + y)
            after.append(h)
        total = total + z
        return self.decoder(total / (k + 1)), (after, total, k + 1)


# --- data ----------------------------------------------------------------------------------------
def load_data(args):
    """Return (x, y) for training and for testing: x (N, L) in [0, 1], whole on the device."""
    if args.dataset == "digits":
        from sklearn.datasets import load_digits

        x, y = map(torch.from_numpy, load_digits(return_X_y=True))
        x, order = x.float().view(-1, 8, 8) / 16, torch.randperm(len(x))
        splits = [(x[i], y[i]) for i in (order[360:], order[:360])]
    else:
        from torchvision.datasets import MNIST

        try:
            sets = [MNIST(args.data_root, train=part, download=True) for part in (True, False)]
        except Exception as error:  # whatever the files hold
            where = f"--dataset mnist: cannot be read from {args.data_root}/MNIST/raw"
            fail(f"{where} nor downloaded; --dataset digits needs neither ({error!r})")
        splits = [(s.data / 255, s.targets) for s in sets]
    if splits[0][0].shape[-1] % args.pool:
        fail(f"--pool {args.pool}: does not divide the side of a picture; take 1 or 2")
    splits = [(F.avg_pool2d(x, args.pool).flatten(1), y) for x, y in splits]
    return [(x.to(args.device), y.to(args.device)) for x, y in splits]


def history(length=1000):
    """A signal (L,) to be memorised: a decaying wave and a chirp."""
    t = torch.linspace(0, 1, length, dtype=torch.float64)
    return (12 * math.pi * t).sin() * (-2 * t).exp() + 0.7 * (2 * math.pi * (t + 6 * t**2)).cos()


# --- train, evaluate, smoke ----------------------------------------------------------------------
def build(args):
    system = args.d_state, args.dropout, args.dt_min, args.dt_max, args.method
    return S4Model(10, args.dim, args.depth, *system).to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the test set."""
    torch.manual_seed(args.seed)
    (x, y), test = load_data(args)
    model = build(args)
    if args.weights:
        load_weights(args.weights, model)
    groups = [{"params": [], "weight_decay": args.weight_decay, "lr": args.lr}]
    groups += [{"params": [], "weight_decay": 0.0, "lr": args.lr / 10}]
    for name, parameter in model.named_parameters():
        delicate = name.endswith(("log_dt", "log_A_real", "A_imag"))
        groups[delicate]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, betas=(args.b1, args.b2), fused=True)
    state = {"model": model, "optimizer": optimizer}
    epoch = begin(args, state)
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(x)).to(args.device).split(args.batch_size)
            for i in tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None):
                loss = F.cross_entropy(model(x[i]), y[i])  # eq. (13)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(i)
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            log(args, epoch=epoch, loss=total.item() / len(x), **evaluate(model, *test))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    plot_memory(args)
    return evaluate(model, *test)


@torch.inference_mode()
def evaluate(model, x, y):
    model.eval()
    scores = torch.cat([model(part) for part in x.split(500)])
    return {"test_acc": (scores.argmax(1) == y).float().mean().item()}


def plot_memory(args):
    """OUT/memory.png: a history, and what 32 numbers keep of it."""
    from matplotlib.figure import Figure

    f = history()
    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, (name, kept) in zip(figure.subplots(2, 2).flat, remember(f).items(), strict=True):
        axes.plot(f, color="lightgray", linewidth=4)
        axes.plot(kept, linewidth=1)
        error = (kept - f).square().mean().sqrt()
        axes.set(title=f"{name}: RMS error {error:.3g}", ylim=(-2, 2))
    figure.savefig(Path(args.out, "memory.png"))


def smoke(args):
    """A short run in a temporary folder; then, in float64, the memory against the best one, and
    recurrence against convolution, of a system and of the trained model."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        model = build(args)
        load_weights(f"{args.out}/last.pt", model)
    f = history()
    error = {name: (kept - f).square().mean().sqrt() for name, kept in remember(f).items()}
    metrics["memory_ratio"] = error["zoh"] / error["least squares"]
    metrics["euler_ratio"] = error["euler"] / error["least squares"]
    A, B = legs(16)
    u, C, gaps = torch.randn(256, dtype=B.dtype), torch.randn(16, dtype=B.dtype) / 16, []
    for method in ("zoh", "bilinear"):
        A_, B_ = matrix_steps(A, B, 0.01, method)
        gaps.append((recurrent(A_, B_, C, u) - convolve(u, kernel(A_, B_, C, 256))).abs().max())
    x, state = load_data(args)[1][0][:20].cpu().double(), None
    with torch.inference_mode():
        at_once = model.cpu().double().eval()(x)
        for x_k in x.unbind(1):
            scores, state = model.step(x_k, state)
    step_gap = (scores - at_once).abs().max()
    return report(args, **metrics, conv_gap=max(gaps), step_gap=step_gap)


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
    add("--dataset", choices=["digits", "mnist"], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets")
    add("--pool", type=at_least(1), default=1, help="pixels per side that become one")
    add("--method", choices=METHODS, default="zoh", help="discretisation of the layers")
    add("--dim", type=at_least(1), default=64, help="channels E")
    add("--depth", type=at_least(1), default=2, help="layers")
    add("--d_state", type=at_least(2), default=32, help="states N of a channel, in pairs")
    add("--dt_min", type=at_least(0.0), default=1e-2, help="smallest step at the start")
    add("--dt_max", type=at_least(0.0), default=0.3, help="largest step at the start")
    add("--dropout", type=at_least(0.0, 1.0), default=0.0, help="share of channels left out")
    add("--n_epochs", type=at_least(0), default=12, help="passes over the training set")
    add("--batch_size", type=at_least(1), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=1e-2, help="adam: learning rate; of A and dt, a tenth")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--weight_decay", type=at_least(0.0), default=0.01, help="of all but A and dt")
    add("--weights", help="state dict or checkpoint to load")
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
    if args.d_state % 2:
        fail(f"--d_state {args.d_state}: complex states come in pairs; make it even")
    if not 0 < args.dt_min <= args.dt_max:
        fail(f"--dt_min {args.dt_min}: not between 0 and --dt_max {args.dt_max}; change either")
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
