# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4"]
# ///
"""Linear regression by gradient descent: where a small loss hides a bias that was never found.

Papers: Robbins & Monro, "A Stochastic Approximation Method", Annals of Mathematical Statistics 22,
1951; LeCun, Bottou, Orr & Mueller, "Efficient BackProp", 1998 (why the inputs are standardised).

    L(t) = mean_i (w x_i + b - y_i)^2,  t = (w, b)              (1)
    t <- t - lr dL/dt                                           (2)  a step
    H = d2L/dt2 = 2 [[mean x^2, mean x], [mean x, 1]]           (3)  the same everywhere
    t_n - t* = (I - lr H)^n (t_0 - t*)                          (4)  the error after n steps
    lr < 2 / lambda_max                                         (5)  or (4) grows
    n = log(eps) / log(1 - lr lambda_min)                       (6)  steps to shrink all by eps
    t* = (X^T X)^-1 X^T y,  X = (x, 1)                          (7)  normal equations
    x' = (x - m) / s,  w = w' / s,  b = b' - w' m / s           (8)  m, s mean and deviation of x

The line y = 2.138 x + 3.213 on x = 0 .. 99, from t = (1, 0), with lr 1e-4: after 10 steps w is
2.186 and b is 0.0195. The loss fell from 4625 to 2.588 and the picture looks perfect, but b has
not been found: H has the eigenvalues 6568.5 and 0.507. By (5) lr must stay below 3.04e-4 for the
sake of the first, which is w; by (6) the second, which is b, then takes 1.6e5 steps to come within
0.001. The cause is x: standardised by (8), H is 2 I, and 100 steps of lr 0.1 find both.

Three errors of such code, often seen: x needs no requires_grad (its gradient piles up unseen);
dividing the step by the batch size belongs to a *summed* loss, with a mean it divides twice; and
a plot of the fitted line shows w, not b.

Shapes: N examples; x and y (N,), t (2,), X (N, 2), H (2, 2).
Unlike the paper: every step sees all examples, so nothing is stochastic.

    python linear_regression.py            the table and OUT/fit.png
    python linear_regression.py --lr 3e-4  as fast as can be; beyond 3.04e-4 it diverges
    python linear_regression.py --smoke    seconds; exits 1 unless all BARS are met
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

# Lowest and highest value that pass under --smoke.
BARS = {"torch_gap": (0.0, 0.0), "predicted_gap": (0.0, 1e-9), "standard_gap": (0.0, 1e-8)}
BARS |= {"w_error": (0.0, 0.05), "b_error": (3.19, 3.2)}
W, B, START = 2.138, 3.213, (1.0, 0.0)


# --- the idea ------------------------------------------------------------------------------------
def mse(w, b, x, y):
    return (w * x + b - y).square().mean()  # eq. (1)


def sgd_step(params, lr, batch_size=1):
    """One step down the gradients; give batch_size only if the loss is a sum over the batch."""
    with torch.no_grad():
        for param in params:
            param.sub_(param.grad / batch_size, alpha=lr)  # eq. (2)


def fit_line(x, y, lr, n_steps, optimizer=None, batch_size=1):
    """t after 0, 1, .. n_steps steps (n_steps + 1, 2), by sgd_step or by a class of torch.optim."""
    params = w, b = [torch.tensor(value, dtype=x.dtype, requires_grad=True) for value in START]
    theirs, path = optimizer and optimizer(params, lr=lr), [torch.stack(params).detach()]
    for _ in range(n_steps):
        w.grad = b.grad = None
        mse(w, b, x, y).backward()
        theirs.step() if theirs else sgd_step(params, lr, batch_size)
        path.append(torch.stack(params).detach())
    return torch.stack(path)  # (n_steps + 1, 2)


def mse_hessian(x):
    """H (2, 2); it depends neither on t nor on y."""
    m = x.mean()
    return 2 * torch.stack([x.square().mean(), m, m, torch.ones_like(m)]).view(2, 2)  # eq. (3)


def predict_fit(x, lr, n, best):
    """t after n steps, without taking any."""
    shrink = torch.eye(2, dtype=x.dtype) - lr * mse_hessian(x)
    return best + torch.linalg.matrix_power(shrink, n) @ (best.new_tensor(START) - best)  # eq. (4)


def largest_lr(x):
    return 2 / torch.linalg.eigvalsh(mse_hessian(x))[1].item()  # eq. (5)


def steps_needed(x, lr, eps):
    """Steps until the slow direction has shrunk by eps."""
    slow = torch.linalg.eigvalsh(mse_hessian(x))[0]
    return (math.log(eps) / torch.log1p(-lr * slow)).item()  # eq. (6)


def normal_equations(x, y):
    """The best t (2,), in one go."""
    X = torch.stack([x, torch.ones_like(x)], 1)  # (N, 2)
    return torch.linalg.solve(X.T @ X, X.T @ y)  # (2,)  eq. (7)


def fit_standardised(x, y, lr=0.1, n_steps=100):
    """fit_line on x', told as t of x."""
    m, s = x.mean(), x.std(correction=0)
    w, b = fit_line((x - m) / s, y, lr, n_steps).T  # eq. (8)
    return torch.stack([w / s, b - w * m / s], 1)  # (n_steps + 1, 2)  eq. (8)


# --- data ----------------------------------------------------------------------------------------
def load_data(dtype=torch.float64):
    """x = 0 .. 99 and y on the line (N,)."""
    x = torch.arange(100, dtype=dtype)
    return x, W * x + B


# --- run, smoke ----------------------------------------------------------------------------------
def draw_fit(args, x, y, path, standard):
    """OUT/fit.png: the line after 10 steps, and the errors of w and b at each step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot(1, 2, 1, xlabel="x", title="after 10 steps: what does not show")
    axes.plot(x, y, ".", label="data")
    axes.plot(x, path[10, 0] * x + path[10, 1], label="w {:.3f}, b {:.4f}".format(*path[10]))
    axes.legend()
    axes = figure.add_subplot(1, 2, 2, xlabel="step", title="error")
    for name, run in (("", path), (" standardised", standard)):
        for key, error in zip("wb", (run - run.new_tensor([W, B])).abs().T, strict=True):
            axes.loglog(range(1, len(run)), error[1:], label=key + name)
    axes.legend()
    figure.savefig(Path(args.out, "fit.png"))


def run(args):
    """Print what is found after so many steps, and what (4) says; return the metrics of BARS."""
    x, y = load_data()
    best, limit = normal_equations(x, y), largest_lr(x)
    rows = [{"eigenvalues": torch.linalg.eigvalsh(mse_hessian(x)).tolist(), "largest lr": limit}]
    path, gaps = fit_line(x, y, args.lr, 10_000), []
    if not path.isfinite().all():
        sys.exit(f"stopped: the loss is not finite; try a lower --lr than {limit:.3g}")
    for n in (0, 10, 100, 1000, 10_000):
        (w, b), told = path[n].tolist(), predict_fit(x, args.lr, n, best)
        row = {"steps": n, "w": w, "b": b, "loss": mse(w, b, x, y).item()}
        rows.append(row | {"predicted w": told[0].item(), "predicted b": told[1].item()})
        gaps.append((path[n] - told).abs().max().item())
    rows.append({"steps to b within 1e-3": steps_needed(x, args.lr, 1e-3 / B)})
    w, b = fit_line(x, y, args.lr, 10, batch_size=len(x))[-1].tolist()
    rows.append({"steps": 10, "mean loss, divided again: w": w, "b": b})
    away = (fit_line(x, y, 1.02 * limit, 100)[[0, -1]] - best).norm(dim=1)
    rows.append({"steps": 100, "lr": 1.02 * limit, "error grows by": (away[1] / away[0]).item()})
    standard = fit_standardised(x, y)
    w, b = standard[-1].tolist()
    rows.append({"steps": 100, "standardised: w": w, "b": b})
    for row in rows:
        print(line(row), file=sys.stderr if args.smoke else sys.stdout)
    draw_fit(args, x, y, path, standard)
    theirs = fit_line(x, y, args.lr, 1000, torch.optim.SGD)
    metrics = {"torch_gap": (theirs - path[:1001]).abs().max().item(), "predicted_gap": max(gaps)}
    metrics["standard_gap"] = (standard[-1] - best).abs().max().item()
    (w, b), (best_w, best_b) = path[10].tolist(), best.tolist()
    return metrics | {"w_error": abs(w - best_w), "b_error": abs(b - best_b)}


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
    add("--lr", type=at_least(0.0), default=1e-4, help="sgd: learning rate on the raw x")
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
