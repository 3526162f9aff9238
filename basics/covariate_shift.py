# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4"]
# ///
"""Covariate shift: training examples weighted so that they stand for inputs drawn elsewhere.

Papers: Shimodaira, "Improving predictive inference under covariate shift by weighting the
log-likelihood function", Journal of Statistical Planning and Inference 90, 2000 (the weighted fit,
and this example); Bickel, Brueckner & Scheffer, "Discriminative Learning for Differing Training
and Test Distributions", ICML, 2007 (the weights from a classifier).

    E_p l(f(x), y) = E_q beta(x) l(f(x), y),  beta = p / q   (1)  as p(y|x) = q(y|x)
    L = sum_i log(1 + exp(-z_i h(x_i)))                      (2)  z = -1 for an x, +1 for a u
    beta(x) = (n / m) exp(h(x))                              (3)
    beta <- min(beta, c)                                     (4)  less variance for some bias
    w = (X^T diag(beta) X)^-1 X^T diag(beta) y               (5)  f(x) = w_0 + w_1 x
    n_eff = (sum_i beta_i)^2 / sum_i beta_i^2                (6)  as many unweighted examples
    log p / q = log(s_q / s_p) - ((x - m_p) / s_p)^2 / 2 + ((x - m_q) / s_q)^2 / 2   (7)  normal

exp(h) is the odds that x came from p in the pooled data, so it holds m / n: the often quoted
beta = exp(h) is right for n = m alone. For the fit (5) a common factor cancels; the estimate of
the risk, (1), it puts wrong by m / n, and c in (4) then cuts elsewhere. By (7) h must be able to
be quadratic: logistic regression on x alone would be wrong however many examples there are. Since
E_q beta = 1, a mean far from 1, like a small n_eff, warns that q hardly reaches p.

Source q = N(0.5, 0.5^2), target p = N(0, 0.3^2), y = x^3 - x + N(0, 0.3^2), and a line to fit it:
wrong everywhere, so that it matters where it is least wrong. For every kind of weights, the table
tells the risk of the fit on the target, what (1) estimates it to be, mean beta, and n_eff.

Shapes: n source, m target examples; x, y, beta (n,), u (m,), z (n + m,), X (n, 2), w (2,).
Unlike the paper: ordinary logistic regression in two steps, not one model of both.

    python covariate_shift.py                    the table and OUT/shift.png
    python covariate_shift.py --target_mean -1   the fewer examples there are, the less they tell
    python covariate_shift.py --smoke            seconds; exits 1 unless all BARS are met
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
BARS = {"excess_ratio": (0.0, 0.04), "log_beta_corr": (0.999, 1.0)}
BARS |= {"mean_beta": (0.99, 1.01), "estimate_ratio": (0.82, 1.17)}
SOURCE, TARGET_STD, NOISE = (0.5, 0.5), 0.3, 0.3


# --- the idea ------------------------------------------------------------------------------------
def powers(x, degree):
    """1, x, .. x^degree (len(x), degree + 1)."""
    return torch.stack([x**k for k in range(degree + 1)], 1)


def logistic_regression(X, z, ridge=1e-6):
    """w (D,) that minimises (2) for h(x) = X w, by Newton's method; ridge bounds w where the
    classes do not overlap."""

    def loss(w):
        return nn.functional.softplus(-z * (X @ w)).sum() + ridge / 2 * w.square().sum()  # eq. (2)

    w = X.new_zeros(X.shape[1])
    for _ in range(30):
        wrong = torch.sigmoid(-z * (X @ w))  # (N,)
        gradient = ridge * w - X.T @ (z * wrong)
        curvature = X.T @ ((wrong * (1 - wrong))[:, None] * X)  # (D, D)
        step = torch.linalg.solve(curvature + ridge * torch.eye(len(w), dtype=w.dtype), gradient)
        while loss(w - step) > loss(w) and step.norm() > 1e-9:
            step = step / 2
        w = w - step
    return w


def importance(x, u, clip=math.inf):
    """beta of each x (n,), from x (n,) of the source and u (m,) of the target alone."""
    z = torch.cat([-torch.ones_like(x), torch.ones_like(u)])
    h = powers(x, 2) @ logistic_regression(powers(torch.cat([x, u]), 2), z)
    beta = len(x) / len(u) * h.exp()  # eq. (3)
    return beta.clamp(max=clip)  # eq. (4)


def true_log_ratio(x, target_mean):
    """What log(beta) should be."""
    a, b = (x - target_mean) / TARGET_STD, (x - SOURCE[0]) / SOURCE[1]
    return math.log(SOURCE[1] / TARGET_STD) - a**2 / 2 + b**2 / 2  # eq. (7)


def weighted_fit(x, y, beta):
    """Least squares of the line, by a solver that bears with few examples of any weight."""
    root = beta.sqrt()[:, None]
    solution = torch.linalg.lstsq(root * powers(x, 1), root * y[:, None], driver="gelsd")
    return solution.solution[:, 0]  # eq. (5)


def effective(beta):
    return (beta.sum() ** 2 / beta.square().sum()).item()  # eq. (6)


def risk(w, x, y, beta=1.0):
    return (beta * (powers(x, 1) @ w - y).square()).mean().item()  # eq. (1)


# --- data ----------------------------------------------------------------------------------------
def load_data(args):
    """x, y of the source (n,) each, u of the target (m,), x, y of the target to test (10^5,)."""
    draws = ((args.n_source, *SOURCE), (args.n_target, args.target_mean, TARGET_STD))
    draws += ((100_000, args.target_mean, TARGET_STD),)
    x, u, test = (torch.randn(n, dtype=torch.float64) * std + mean for n, mean, std in draws)
    y, right = (v**3 - v + NOISE * torch.randn_like(v) for v in (x, test))
    return x, y, u, test, right


# --- run, smoke ----------------------------------------------------------------------------------
def draw_shift(args, x, y, u, beta, fits):
    """OUT/shift.png: the examples with their lines, and log beta as estimated and as it is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot(1, 2, 1, xlabel="x", ylabel="y", title="fits")
    seen = beta > 0.01  # the others would take no ink but much room
    size = 2 * beta[seen].clamp(max=20)
    axes.scatter(x[seen], y[seen], s=size, c="lightgray", label="source, by weight")
    grid = torch.linspace(u.min(), u.max(), 100, dtype=x.dtype)
    axes.plot(grid, grid**3 - grid, "k", label="truth, where the target is")
    for name in ("none", "logistic"):
        axes.plot(grid, powers(grid, 1) @ fits[name], label=f"weights: {name}")
    axes.legend()
    axes = figure.add_subplot(1, 2, 2, xlabel="x", title="log beta")
    axes.plot(x, beta.log(), ".", label="logistic")
    grid = torch.linspace(x.min(), x.max(), 100, dtype=x.dtype)
    axes.plot(grid, true_log_ratio(grid, args.target_mean), "k", label="true")
    axes.legend()
    figure.savefig(Path(args.out, "shift.png"))


def run(args):
    """Print a row for each kind of weights; return the metrics of BARS."""
    torch.manual_seed(args.seed)
    x, y, u, test, right = load_data(args)
    beta, true = importance(x, u), true_log_ratio(x, args.target_mean).exp()
    kinds = {"none": torch.ones_like(x), "logistic": beta, "clipped": beta.clamp(max=args.clip)}
    kinds |= {"without n/m": beta * len(u) / len(x), "true": true}
    fits, rows = {}, {}
    for name, weights in kinds.items():
        fits[name] = w = weighted_fit(x, y, weights)
        row = {"target_risk": risk(w, test, right), "estimate": risk(w, x, y, weights)}
        rows[name] = row | {"mean_beta": weights.mean().item(), "n_eff": effective(weights)}
        print(line({"weights": name} | rows[name]), file=sys.stderr if args.smoke else sys.stdout)
    found = rows["logistic"]
    if found["n_eff"] < 0.01 * len(x) or not 0.5 < found["mean_beta"] < 2:
        print("warning: the source hardly reaches the target; trust no weight", file=sys.stderr)
    draw_shift(args, x, y, u, beta, fits)
    excess = {name: row["target_risk"] - NOISE**2 for name, row in rows.items()}
    corr = torch.corrcoef(torch.stack([beta.log(), true.log()]))[0, 1].item()
    metrics = {"excess_ratio": excess["logistic"] / excess["none"], "log_beta_corr": corr}
    metrics["estimate_ratio"] = found["estimate"] / found["target_risk"]
    return metrics | {"mean_beta": found["mean_beta"]}


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
    add("--n_source", type=at_least(10, 1_000_001), default=4000, help="labelled examples n")
    add("--n_target", type=at_least(10, 1_000_001), default=1000, help="unlabelled examples m")
    add("--target_mean", type=at_least(-5.0, 5.0), default=0.0, help="mean of the target's x")
    add("--clip", type=at_least(1e-3), default=2.0, help="largest weight c of the clipped fit")
    add("--seed", type=at_least(0), default=0, help="fixes the examples")
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
