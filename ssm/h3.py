# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""H3: two state-space models and two products in the place of attention; recalls what came after
a symbol when it was last seen.

Paper: Fu, Dao, Saab, Thomas, Rudra & Re, "Hungry Hungry Hippos: Towards Language Modeling with
State Space Models", ICLR 2023, arXiv 2212.14052.

    q_t, k_t, v_t = W x_t + b                   (1)  each in H heads of d numbers
    k'_t = C . (k_t, k_{t-1} ... k_{t-N+1}) + D k_t   (2)  shift SSM: its state is the last N keys
    p_t = k'_t v_t^T                            (3)  first gate: d x d numbers of each head
    h_t = A_ h_{t-1} + B_ p_t                   (4)  diagonal SSM, one for each head, on all of p
    w_t = 2 Re(C . h_t) + D p_t                 (5)  half of the states: the others are conjugate
    A_ = (1 + dt/2 A) / (1 - dt/2 A),  B_ = dt / (1 - dt/2 A)   (6)  bilinear
    A_n = -1/2 + i pi n,  n = 0 ... N/2 - 1     (7)  at the start
    y_t = q_t^T w_t                             (8)  second gate, summed over the numbers of k
    K_j = 2 Re(C . A_^j B_)                     (9)  (4), (5) as a convolution, for training
    x <- x + W y + b,  x <- x + MLP(norm(x))    (10)  a layer; y is that of norm(x)
    L = -log softmax(scores)_answer             (11)  mean over the places that ask for an answer

What each part is for: a value is to be remembered together with the key that came right before
it. The shift SSM brings that key to the place of the value, (3) ties the two together, the
diagonal SSM keeps the pair, and (8) asks it by the query.

Shapes: B batch, L steps, E width of the model, H heads of d = E / H numbers, N states, V symbols;
x (B, L, E), q, k and v (B, H, d, L), p and w (B, H, d, d, L), h (B, H, d, d, N/2).
Unlike the paper: the input of the shift SSM is fixed to the first place; no dropout; associative
recall asks at every key that was seen before, not only at the last symbol; no attention layers, and
no language model.

    python h3.py                               associative recall, a minute on a laptop
    python h3.py --config induction_heads      what came after the cue?
    python h3.py --weights out/h3/last.pt --n_steps 0 --seq_len 80 --out out/long
                                               only evaluate, here at 4 times the length
    python h3.py --smoke                       seconds; exits 1 unless all BARS are met
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
SMOKE = {"vocab_size": 6, "n_steps": 200}
BARS = {"accuracy": (0.96, 1.0), "step_gap": (0.0, 1e-10)}
INDUCTION = {"dataset": "induction_heads", "seq_len": 30, "vocab_size": 20, "n_steps": 1000}
CONFIGS = {"laptop": {}, "induction_heads": INDUCTION}


# --- the idea ------------------------------------------------------------------------------------
# Copied from ssm/linear_ssm.py
def convolve(u, K):
    """Causal convolution of u with K (..., L)."""
    n = u.shape[-1] + K.shape[-1]  # shorter, and the end would come in at the beginning
    return torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(K, n), n)[..., : u.shape[-1]]


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


class H3(nn.Module):
    """Mixes a sequence (B, L, E) causally. Paper: section 3.2, algorithm 1; official code:
    HazyResearch/H3 src/models/ssm/h3.py, whose order of channels (d, H) the output has."""

    def __init__(self, dim, d_state, head_dim):
        super().__init__()
        self.heads = dim // head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        bound = d_state**-0.5
        self.ssm_k_C = nn.Parameter(torch.empty(dim, d_state).uniform_(-bound, bound))
        self.ssm_k_D = nn.Parameter(torch.randn(dim))
        self.kernel = DiagonalSSM(self.heads, d_state)
        self.D = nn.Parameter(torch.randn(self.heads))
        self.output_linear = nn.Linear(dim, dim)

    def inputs(self, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)  # eq. (1)

    def gate(self, k, v):
        k, v = (part.unflatten(1, (self.heads, -1)) for part in (k, v))
        return k[:, :, :, None] * v[:, :, None]  # (B, H, d, d, ...)  eq. (3)

    def ask(self, q, w):
        q = q.unflatten(1, (self.heads, -1))[:, :, :, None]
        return (q * w).sum(2).transpose(1, 2).flatten(1, 2)  # (B, E, ...)  eq. (8)

    def forward(self, x):
        """All of x (B, L, E) at once."""
        q, k, v = (part.mT for part in self.inputs(x))  # (B, E, L)
        k = convolve(k, self.ssm_k_C) + self.ssm_k_D[:, None] * k  # eq. (2)
        p = self.gate(k, v)  # (B, H, d, d, L)
        K = self.kernel(x.shape[1])[:, None, None]  # (H, 1, 1, L)
        w = convolve(p, K) + self.D[:, None, None, None] * p
        return self.output_linear(self.ask(q, w).mT)

    def step(self, x, state=None):
        """One step x (B, E) on from the state: the keys before (B, E, N), the last first, and h."""
        q, k, v = self.inputs(x)
        keys, h = state or (torch.zeros_like(self.ssm_k_C).expand(len(x), -1, -1), 0.0)
        keys = torch.cat([k[..., None], keys[..., :-1]], -1)  # (B, E, N)
        k = (self.ssm_k_C * keys).sum(-1) + self.ssm_k_D * k  # eq. (2)
        p, (A_, B_, C) = self.gate(k, v), (m[:, None, None] for m in self.kernel.system())
        h = A_ * h + B_ * p[..., None]  # (B, H, d, d, N/2)  eq. (4)
        w = 2 * (C * h).sum(-1).real + self.D[:, None, None] * p  # eq. (5)
        return self.output_linear(self.ask(q, w)), (keys, h)


# --- model ---------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, dim, d_state, head_dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = H3(dim, d_state, head_dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def after(self, x):
        return x + self.mlp(self.norm2(x))  # eq. (10)

    def forward(self, x):
        return self.after(x + self.mixer(self.norm1(x)))

    def step(self, x, state=None):
        y, state = self.mixer.step(self.norm1(x), state)
        return self.after(x + y), state


class H3Model(nn.Module):
    """Symbols (B, L) to scores of the answers (B, L, V)."""

    def __init__(self, vocab_size, dim, depth, d_state, head_dim):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList([Block(dim, d_state, head_dim) for _ in range(depth)])
        self.norm_f = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, x):
        x = self.embedding(x)  # (B, L, E)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm_f(x))  # (B, L, V)

    def step(self, x, states=None):
        """One more symbol x (B,): scores (B, V), and the states behind it."""
        x, after = self.embedding(x), []  # (B, E)
        for layer, state in zip(self.layers, states or [None] * len(self.layers), strict=True):
            x, state = layer.step(x, state)
            after.append(state)
        return self.lm_head(self.norm_f(x)), after


# --- data ----------------------------------------------------------------------------------------
# Symbols x and answers y: -100 where nothing is asked for.
def associative_recall(n, length, vocab_size):
    """Pairs of a key and its value, fixed for a sequence, then a key: each known one asks."""
    n_keys = vocab_size // 2
    table = torch.randint(n_keys, vocab_size, (n, n_keys))
    keys = torch.randint(n_keys, (n, length // 2))
    last = keys.gather(1, torch.randint(length // 2, (n, 1)))  # was there before
    keys = torch.cat([keys, last], 1)  # (n, L / 2 + 1)
    values = table.gather(1, keys)
    earlier = (keys[:, :, None] == keys[:, None]).tril(-1).any(2)
    asked = torch.where(earlier, values, -100)
    x = torch.stack([keys, values], 2).flatten(1)[:, :-1]  # (n, L + 1)
    return x, torch.stack([asked, torch.full_like(asked, -100)], 2).flatten(1)[:, :-1]


# Differs from ssm/mamba_scan.py
def induction_heads(n, length, vocab_size):
    """Random symbols with a cue, 0, among them, and once more at the end: what came after it?"""
    x = torch.randint(1, vocab_size, (n, length))
    cue = torch.randint(length - 1, (n, 1))
    answer = x.gather(1, cue + 1)
    x = F.pad(x.scatter_(1, cue, 0), (0, 1))  # (n, L + 1)
    return x, F.pad(answer, (length, 0), value=-100)


TASKS = {"associative_recall": associative_recall, "induction_heads": induction_heads}


def load_data(args):
    """A fresh batch of the seed in force, on the device: symbols x and answers y (B, L + 1)."""
    with torch.device(args.device):
        return TASKS[args.dataset](args.batch_size, args.seq_len, args.vocab_size)


# --- train, evaluate, smoke ----------------------------------------------------------------------
def build(args):
    sizes = args.vocab_size, args.dim, args.depth, args.d_state, args.head_dim
    return H3Model(*sizes).to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the accuracy on sequences never seen."""
    torch.manual_seed(args.seed)
    model = build(args)
    if args.weights:
        load_weights(args.weights, model)
    groups = [{"params": [], "weight_decay": args.weight_decay, "lr": args.lr}]
    groups += [{"params": [], "weight_decay": 0.0, "lr": args.lr / 5}]
    for name, parameter in model.named_parameters():
        groups[".kernel." in name or "ssm_k" in name]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, betas=(args.b1, args.b2), fused=True)
    state = {"model": model, "optimizer": optimizer}
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                x, y = load_data(args)
                loss = F.cross_entropy(model(x).mT, y)  # eq. (11)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                total += loss.detach()
                step += 1
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            log(args, step=step, loss=total.item() / n, **evaluate(model, args))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(model, args)


@torch.inference_mode()
def evaluate(model, args):
    """Share of right answers to the last symbol, in eight batches that training never draws."""
    torch.manual_seed(-1)
    batches = (load_data(args) for _ in range(8))
    right = [model(x)[:, -1].argmax(-1) == y[:, -1] for x, y in batches]
    return {"accuracy": torch.cat(right).float().mean().item()}


def smoke(args):
    """A short run in a temporary folder; then, in float64, step by step against all at once."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        model = build(args)
        load_weights(f"{args.out}/last.pt", model)
    x, states, gaps = load_data(args)[0].cpu(), None, []
    with torch.inference_mode():
        at_once = model.cpu().double()(x)
        for k in range(x.shape[1]):
            scores, states = model.step(x[:, k], states)
            gaps.append((scores - at_once[:, k]).abs().max())
    return report(args, **metrics, step_gap=max(gaps))


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
    add("--dataset", choices=TASKS, default="associative_recall", help="task to learn")
    add("--seq_len", type=at_least(2), default=20, help="symbols L before the final one")
    add("--vocab_size", type=at_least(4), default=10, help="symbols V; half of them are keys")
    add("--dim", type=at_least(1), default=32, help="width E of the model")
    add("--depth", type=at_least(1), default=2, help="layers")
    add("--d_state", type=at_least(2), default=32, help="states N of a system, in pairs")
    add("--head_dim", type=at_least(1), default=4, help="numbers d of a head")
    add("--n_steps", type=at_least(0), default=600, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=64, help="examples per step")
    add("--lr", type=at_least(0.0), default=5e-3, help="adam: learning rate; of the SSMs, a fifth")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--weight_decay", type=at_least(0.0), default=0.1, help="of all but the SSMs")
    add("--grad_clip", type=at_least(0.0), default=1.0, help="largest norm of the gradient")
    add("--sample_interval", type=at_least(1), default=100, help="steps between evaluations")
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
    if args.dim % args.head_dim:
        fail(f"--head_dim {args.head_dim}: does not divide --dim {args.dim}; change either")
    if args.dataset == "associative_recall" and args.seq_len % 2:
        fail(f"--seq_len {args.seq_len}: pairs have two symbols; make it even")
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
