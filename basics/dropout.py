# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4"]
# ///
"""Inverted dropout written out: its mean, its variance, and the ridge penalty it amounts to.

Paper: Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov, "Dropout: A Simple Way to Prevent
Neural Networks from Overfitting", JMLR 15, 2014 (linear regression: its section 9.1).

    h'_i = m_i h_i / (1 - p)                  (1)  m_i = 0 with probability p, else 1
    E[h'_i] = h_i                             (2)  so evaluation uses h as it is
    Var[h'_i] = h_i^2 p / (1 - p)             (3)  the noise that training sees
    dL/dh_i = m_i / (1 - p) dL/dh'_i          (4)  backward: what was dropped learns nothing
    E|y - X'w|^2 = |y - Xw|^2 + p / (1 - p) sum_j (X^T X)_jj w_j^2     (5)  X' = dropout(X)
    w = (X^T X + p / (1 - p) diag(X^T X))^-1 X^T y                     (6)  where it is least

(5) is (2) and (3) put into a square: in linear regression dropout is a ridge penalty that is
scaled to each input. With as many weights as examples, least squares fits the noise; the picture
test_error.png shows what a p > 0 saves. The error grows again as p nears 1.

A mask made with rand > p, as it is often written, is wrong where p = 0: rand is in [0, 1), and
what draws exactly 0 (one in 2^24) would be dropped. So m = (rand >= p), drawn on the device of h
and always in float32: in bfloat16 rand has 256 values, and p = 0.1 would drop 0.1016. At p = 1
nothing is kept, and (1) would be 0 / 0: the output is 0.

Shapes: N examples, D inputs, M masks; h of any shape, X (N, D), w (D,), y (N,), m (M, D).
Unlike the paper: p is the chance to drop, not to keep; the 1 / (1 - p) stands in training and not,
as its inverse, on the weights of the finished network.

    python dropout.py                 the table and OUT/test_error.png
    python dropout.py --dropout 0.2   the regression with less noise
    python dropout.py --smoke         seconds; exits 1 unless all BARS are met
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
from torch import nn

# Lowest and highest value that pass under --smoke.
BARS = {"mean_sigmas": (0.0, 4.5), "moments_gap": (0.0, 1e-12), "ridge_gap": (0.0, 1e-12)}
BARS |= {"sgd_gap": (0.0, 0.035), "error_ratio": (0.0, 0.95)}
NOISE = 0.5  # standard deviation of y given x


# --- model ---------------------------------------------------------------------------------------
class Dropout(nn.Module):
    """dropout in train(), nothing in eval()."""

    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, h):
        return dropout(h, self.p, self.training)


# --- the idea ------------------------------------------------------------------------------------
def dropout(h, p, training=True):
    """h with every element zeroed with probability p, the others scaled so that the mean stays."""
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}: no probability")
    if not training:
        return h  # eq. (2)
    keep = torch.rand(h.shape, device=h.device) >= p
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.where(keep, h, 0) * scale  # eq. (1), (4)


def variance(p):
    """Variance of h' where h = 1."""
    return p / (1 - p)  # eq. (3)


def every_mask(n, p):
    """The 2^n masks m of n elements (M, D) and the probability of each (M,)."""
    m = torch.cartesian_prod(*n * [torch.tensor([0.0, 1.0], dtype=torch.float64)])
    return m, (m * (1 - p) + (1 - m) * p).prod(1)


def penalised(X, y, w, p):
    return (y - X @ w).square().sum() + variance(p) * (X.square().sum(0) @ w.square())  # eq. (5)


def ridge(X, y, p):
    """The w that makes penalised(X, y, w, p) least; p = 0: least squares."""
    gram = X.T @ X  # (D, D)
    return torch.linalg.solve(gram + variance(p) * gram.diag().diag(), X.T @ y)  # (D,)  eq. (6)


def sgd(X, y, p, steps=3000, lr=0.1):
    """Minimise |y - dropout(X) w|^2, with new masks at each step; the mean of the later steps."""
    w, total = X.new_zeros(X.shape[1]), 0
    for step in range(steps):
        dropped = dropout(X, p)
        w = w - lr * (1 - p) * dropped.T @ (dropped @ w - y) / len(y)
        total = total + w * (2 * step >= steps)
    return total / (steps - steps // 2)


# --- run, smoke ----------------------------------------------------------------------------------
def moments_gap(p):
    """How far the exact mean, variance and penalty, from all masks, are off (2), (3) and (5)."""
    h, (X, y, w) = torch.randn(8).double(), (torch.randn(s).double() for s in [(1, 8), 1, 8])
    m, chance = every_mask(8, p)
    dropped = m * h / (1 - p)  # (M, D)
    mean = chance @ dropped
    gaps = [mean - h, chance @ (dropped - mean).square() - h.square() * variance(p)]
    moments = torch.cat(gaps).abs().max().item()
    exact = chance @ (y - (m * X / (1 - p)) @ w).square()
    return moments, abs(exact.item() / penalised(X, y, w, p).item() - 1)


def draw(args, X, y, truth):
    """OUT/test_error.png: the error on new data against p, by (6)."""
    from matplotlib.figure import Figure

    ps = [i / 100 for i in range(96)]
    errors = [(ridge(X, y, p) - truth).square().sum().item() + NOISE**2 for p in ps]
    axes = (figure := Figure(layout="constrained")).add_subplot(xlabel="p", ylabel="test error")
    axes.semilogy(ps, errors, label="dropout, by (6)")
    axes.axhline(NOISE**2, color="gray", linestyle=":", label="noise alone")
    axes.legend()
    figure.savefig(Path(args.out, "test_error.png"))


def run(args):
    """Print one row per p; return the metrics that judge all that is claimed above."""
    torch.manual_seed(args.seed)
    n, rows = 1_000_000, []
    for p in (0.1, 0.5, 0.9):
        h = Dropout(p)(torch.ones(n)).double()
        row = {"p": p, "mean": h.mean().item(), "variance": h.var().item(), "exact": variance(p)}
        row |= {"zeros": (h == 0).double().mean().item()}
        row["mean_sigmas"] = abs(row["mean"] - 1) / math.sqrt(variance(p) / n)
        row["moments_gap"], row["ridge_gap"] = moments_gap(p)
        print(line(row), file=sys.stderr if args.smoke else sys.stdout)
        rows.append(row)
    X, truth = torch.randn(40, 40).double(), torch.randn(40).double() / math.sqrt(40)
    y = X @ truth + NOISE * torch.randn(40)
    draw(args, X, y, truth)
    fits = {"zero": 0 * truth, "plain": ridge(X, y, 0.0), "exact": ridge(X, y, args.dropout)}
    fits["sgd"] = sgd(X, y, args.dropout)
    errors = {k: (w - truth).square().sum().item() + NOISE**2 for k, w in fits.items()}
    row = {"p": args.dropout} | {f"test_error_{key}": value for key, value in errors.items()}
    print(line(row), file=sys.stderr if args.smoke else sys.stdout)
    metrics = {key: max(row[key] for row in rows) for key in BARS if key in rows[0]}
    metrics["sgd_gap"] = ((fits["sgd"] - fits["exact"]).norm() / fits["exact"].norm()).item()
    return metrics | {"error_ratio": errors["sgd"] / min(errors["zero"], errors["plain"])}


def smoke(args):
    """The whole run, its picture in a temporary folder."""
    with tempfile.TemporaryDirectory() as args.out:
        return report(args, **run(args))


# --- plumbing, word for word the same in every script --------------------------------------------
def fail(message):
    """A mistake the user can mend: one line on stderr, exit code 2."""
    print(f"{Path(__file__).name}: error: {' '.join(message.split())[:300]}", file=sys.stderr)
    sys.exit(2)


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


def line(row):
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


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
    add("--dropout", type=at_least(0.0, 1.0), default=0.5, help="p of the regression")
    add("--seed", type=at_least(0), default=0, help="fixes masks and data")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.smoke:
        return smoke(args)
    begin(args)
    print(line(run(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
