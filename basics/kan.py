# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Kolmogorov-Arnold network: a learned curve on every edge, and a formula read off the curves.

Paper: Liu, Wang, Vaidya, Ruehle, Halverson, Soljacic, Hou & Tegmark, "KAN: Kolmogorov-Arnold
Networks", ICLR 2025, arXiv 2404.19756.

    KAN(x) = (Phi_{L-1} o .. o Phi_0) x,  Phi(x)_o = sum_i phi_{o,i}(x_i)  (1)  nodes only add
    phi(x) = w_b silu(x) + w_s sum_j c_j B_j(x)                            (2)  one edge
    B_j(x) = [relu(2 - a)^3 - 4 relu(1 - a)^3] / 6,  a = |x - t_{j+2}| / h (3)  cubic B-spline
    c' = argmin mean_n (sum_j c_j B_j(x_n) - sum_j c'_j B'_j(x_n))^2       (4)  from grid to grid
    phi(x) ~ c f(a x + b) + d,  f = x, square, exp or sin                  (5)  by the largest R^2

The theorem of Kolmogorov and Arnold writes any continuous f: [0, 1]^n -> R by (1) with the widths
n, 2n + 1, 1, but with curves that may be fractal; a KAN takes smooth ones and any widths.

A cubic B-spline spans four intervals of the G that cut the grid, so three more knots stand on
either side. On even knots the recursion of Cox and de Boor is the closed form (3), which is fast
and has no half-open intervals to lose the last knot by. Outside the grid the spline fades to zero
and w_b silu alone is left: the grid must follow the activations. (4) moves it, and extends it to a
larger G, on the samples seen; the hidden ones are elsewhere than in [-1, 1]. It is solved in
float64 with a small ridge, since an interval without samples leaves c' open. The coefficients are
new ones then, and what Adam remembers of the old is dropped. In --grids the same G twice is a move.

(5) goes over a lattice of a and b that closes in, with c and d by least squares; of two f that fit
alike the simpler one wins. Snapped together, the curves are the formula: formula_rmse judges it. A
Bessel function is none of these f, so with --dataset bessel it is test_rmse alone that counts.

Shapes: N examples, I inputs and O outputs of a layer, G intervals, J = G + 3 splines; x (N, I),
grid (I, G + 7) holds t, B (N, I, J), coef (I, O, J) holds c, scale_base and scale_sp (I, O).
Unlike the paper: even grids, from the lowest to the highest activation, where its code also
follows their percentiles; k = 3 only; Adam in place of LBFGS; no sparsity penalty and no pruning:
the widths are those the paper has after pruning. w_b starts at 1 / sqrt(I): from random signs so
small a network often gets stuck. Parameters are named as in the paper's code, pykan.

    python kan.py                        exp(sin(pi x) + y^2): RMSE, formula, OUT/splines.png
    python kan.py --dataset bessel --grids 5 10 20 50 100
    python kan.py --dataset product      as in section 3.1 of the paper, like the next two
    python kan.py --dataset sum100 --n_train 5000 --grids 3 5 --grid_interval 300 --n_steps 600
    python kan.py --dataset nested --n_train 5000 --grids 3 5 10 --grid_interval 300 --n_steps 900
    python kan.py --smoke                seconds; exits 1 unless all BARS are met
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
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

SMOKE = {"n_steps": 900, "sample_interval": 300}  # defaults under --smoke; what passes there
BARS = {"test_rmse": (0.0, 0.0013), "formula_rmse": (0.0, 0.0003)}
W = math.pi
SETS = {"exp": ([2, 1, 1], lambda x: ((W * x[:, :1]).sin() + x[:, 1:] ** 2).exp())}
SETS["bessel"] = [1, 1], lambda x: torch.special.bessel_j0(20 * x)
SETS["product"] = [2, 2, 1], lambda x: x.prod(1, True)
SETS["sum100"] = [100, 1, 1], lambda x: (W / 2 * x).sin().square().mean(1, True).exp()
SETS["nested"] = [4, 4, 2, 1], lambda x: (W * x**2).view(-1, 2, 2).sum(2).sin().mean(1, True).exp()
SYMBOLS = {"": torch.positive, "square": torch.square, "exp": torch.exp, "sin": torch.sin}


# --- the idea ------------------------------------------------------------------------------------
def bases(x, grid):
    """Values (N, I, J) at x (N, I) of the cubic B-splines whose even knots are grid (I, J + 4)."""
    low, high, J = grid[:, 0], grid[:, -1], grid.shape[1] - 4
    at = (x - low) * ((J + 3) / (high - low)) - 2  # (N, I): t_{j+2} lies at j
    a = (at.unsqueeze(-1) - torch.arange(J, device=x.device)).abs()  # (N, I, J)
    return (2 - a).relu().pow(3) / 6 - (1 - a).relu().pow(3) * (2 / 3)  # eq. (3)


def snap(x, y):
    """Name of a symbol and (a, b, c, d) for the curve y (N,) of x (N,); a simple one wins a tie."""
    fits, dy = [], y - y.mean()
    for rank, (name, f) in enumerate(SYMBOLS.items()):
        a = b = 0.0
        for step in torch.linspace(-10, 10, 41, dtype=x.dtype) * 0.25 ** torch.arange(9)[:, None]:
            z = f((a + step[:, None, None]) * x + b + step[:, None])  # (41, 41, N)
            dz = z - z.mean(2, keepdim=True)
            c = dz @ dy / dz.square().sum(2).clamp(min=1e-12)  # (41, 41)
            miss = 1 - (c * (dz @ dy) / dy.square().sum()).nan_to_num(0.0)  # 1 - R^2
            i, j = divmod(miss.argmin().item(), 41)
            a, b, best = a + step[i], b + step[j], c[i, j]
        numbers = torch.stack([a, b, best, y.mean() - best * z[i, j].mean()]).tolist()
        fits.append((miss[i, j].item() + 1e-4 * rank, name, numbers))
    return min(fits)[1:]  # eq. (5)


# --- model ---------------------------------------------------------------------------------------
class KANLayer(nn.Module):
    """x (N, I) -> (N, O): a curve for each pair of an input and an output."""

    def __init__(self, n_in, n_out, G):
        super().__init__()
        self.register_buffer("grid", torch.arange(-3.0, G + 4).repeat(n_in, 1) / G * 2 - 1)
        self.coef = nn.Parameter(0.1 * torch.randn(n_in, n_out, G + 3))
        self.scale_base, self.scale_sp = map(nn.Parameter, torch.full((2, n_in, n_out), n_in**-0.5))

    def forward(self, x):
        spline = (self.scale_sp.unsqueeze(-1) * self.coef).transpose(1, 2).flatten(0, 1)  # (IJ, O)
        return F.silu(x) @ self.scale_base + bases(x, self.grid).flatten(1) @ spline  # eq. (2)

    def curves(self, x):  # each edge by itself, (N, I, O): their sum over I is forward(x)
        spline = torch.einsum("nij,ioj->nio", bases(x, self.grid), self.coef)
        return F.silu(x).unsqueeze(-1) * self.scale_base + self.scale_sp * spline

    @torch.no_grad()
    def regrid(self, x, G):
        """Span the grid over x (N, I) in G intervals; the curves stay, as far as G allows."""
        x, grid, coef = (part.cpu().double() for part in (x, self.grid, self.coef))
        low, high = x.aminmax(dim=0)
        new = low + (high - low).clamp(min=1e-3) / G * torch.arange(-3, G + 4)[:, None]
        B, B_new = (bases(x, knots).transpose(0, 1) for knots in (grid, new.T))  # (I, N, J)
        gram = B_new.mT @ B_new + 1e-11 * len(x) * torch.eye(G + 3)  # (I, G + 3, G + 3)
        coef = torch.linalg.solve(gram, B_new.mT @ (B @ coef.mT)).mT  # (I, O, G + 3)  eq. (4)
        self.coef.set_(coef.to(self.coef)), self.grid.set_(new.T.to(self.grid))

    @torch.no_grad()
    def _load_from_state_dict(self, saved, prefix, *rest):
        for key, part in ("grid", self.grid), ("coef", self.coef):  # there G may be another
            part.set_(part.new_empty(saved[prefix + key].shape))
        super()._load_from_state_dict(saved, prefix, *rest)


class KAN(nn.Sequential):
    def __init__(self, widths, G):
        super().__init__(*(KANLayer(*pair, G) for pair in itertools.pairwise(widths)))  # eq. (1)

    def regrid(self, x, G):
        for layer in self:
            x, _ = layer(x), layer.regrid(x, G)  # what it was before, so that no errors add up


# --- data ----------------------------------------------------------------------------------------
def load_data(args):
    x = 2 * torch.rand(2, args.n_train, SETS[args.dataset][0][0]) - 1  # to train, to test
    return [(part.to(args.device), SETS[args.dataset][1](part).to(args.device)) for part in x]


# --- train, evaluate, smoke ----------------------------------------------------------------------
def train(args):
    torch.manual_seed(args.seed)
    (x, y), test = load_data(args)
    model = KAN(SETS[args.dataset][0], args.grids[0]).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    state = {"model": model, "optimizer": optimizer}
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                if step % args.grid_interval == 0 and step < args.grid_interval * len(args.grids):
                    model.regrid(x, args.grids[step // args.grid_interval])
                    optimizer.state.clear()
                loss = F.mse_loss(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach_()  # a graph kept alive would insist on the size of coef
                step += 1
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            log(args, step=step, loss=total.item() / n, **evaluate(model, *test))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(model, *test) | read_formula(args, model, x, *test)


@torch.inference_mode()
def evaluate(model, x, y):
    return {"test_rmse": (model(x) - y).square().mean().sqrt().item()}


def read_formula(args, model, *parts):
    """OUT/splines.png: the curves that vary most on x (N, I); how all symbols err on z, y."""
    from matplotlib.figure import Figure

    model, (x, z, y) = model.cpu().double(), (part.cpu().double() for part in parts)
    figure, n = Figure((15, 3 * len(model)), layout="constrained"), len(model)
    wide = min(4, max(layer.scale_sp.numel() for layer in model))
    for row, layer in enumerate(model):
        phi, total = layer.curves(x).detach(), 0 * layer(z).detach()
        for at, k in enumerate(phi.std(0).flatten().argsort(descending=True).tolist(), 1):
            i, o = divmod(k, phi.shape[2])
            name, (a, b, c, d) = snap(x[::10, i], phi[::10, i, o])
            total[:, o] += c * SYMBOLS[name](a * z[:, i] + b) + d
            if at <= wide:
                axes = figure.add_subplot(n, wide, wide * row + at)
                axes.set_title(f"{c:.2f} {name}({a:.2f} x{i + 1} {b:+.2f}) {d:+.2f}")
                axes.plot(x[:, i], phi[:, i, o], ".")
        x, z = layer(x).detach(), total
    figure.savefig(Path(args.out, "splines.png"))
    return {"formula_rmse": (z - y).square().mean().sqrt().item()}


def smoke(args):
    with tempfile.TemporaryDirectory() as args.out:
        return report(args, **train(args))


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
    add("--n_steps", type=at_least(1), default=2000, help="optimiser steps in total")
    add("--lr", type=at_least(0.0), default=0.01, help="adam: learning rate")
    add("--dataset", choices=[*SETS], default="exp", help="formula to learn")
    add("--n_train", type=at_least(1), default=1000, help="examples to learn from, and to test on")
    add(
        "--grids",
        type=at_least(1),
        nargs="+",
        default=[5, 5, 5, 10, 10, 20],
        help="one G after another",
    )
    add("--grid_interval", type=at_least(1), default=100, help="steps between two of --grids")
    add("--sample_interval", type=at_least(1), default=200, help="steps between evaluations")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    if parser.parse_args(argv).smoke:
        parser.set_defaults(**SMOKE)
    return parser.parse_args(argv)


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
