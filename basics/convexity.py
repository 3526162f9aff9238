# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4"]
# ///
"""Convex sets and functions, Jensen's inequality, Hessians, saddle points and ways out of one.

Papers: Jensen, "Sur les fonctions convexes et les inegalites entre les valeurs moyennes", Acta
Mathematica 30, 1906; Boyd & Vandenberghe, "Convex Optimization", 2004; Polyak, "Some methods of
speeding up the convergence of iteration methods", 1964 (8); Kingma & Ba, "Adam", ICLR 2015, arXiv
1412.6980 (9).

    a, b in X  =>  l a + (1 - l) b in X                  (1)  X is a convex set; 0 <= l <= 1
    l f(a) + (1 - l) f(b) >= f(l a + (1 - l) b)          (2)  f is convex on a convex X
    sum_i l_i f(x_i) >= f(sum_i l_i x_i)                 (3)  Jensen; l_i >= 0, sum_i l_i = 1
    S_b = {x in X: f(x) <= b} is convex                  (4)  follows from (2), not the reverse
    all eigenvalues of the Hessian >= 0 everywhere       (5)  equals (2), f smooth, X open, convex
    df/dx = 0 with eigenvalues of both signs             (6)  saddle
    x <- x - lr g                                        (7)  gradient descent, g = df/dx
    v <- b v + g,  x <- x - lr v                         (8)  momentum
    x <- x - lr m' / (sqrt(v') + eps)                    (9)  Adam; m', v': means of g and g^2

Draws of points can refute (1) to (5) but never prove them: "not refuted" is all they say. Where
E[f(X)] >= f(E[X]) is written for (3): X = -1 or 1 and f = exp give cosh 1 = 1.5431 >= exp 0 = 1.

Four corrections to what is often written. A saddle is a critical point that is no local minimum
and no local maximum; "neither local nor global minimum" would admit maxima. x^3 at 0 is a poor
example: its Hessian is 0, as is that of x^4, and decides nothing; x^2 - y^2, with 2 and -2, is the
good one. Not the problems of deep learning are convex but their domain, R^d: intersections of
convex sets are convex, unions need not be. And that every local minimum of a convex f is global
gives neither existence (exp has none) nor uniqueness (max(|x| - 1, 0) has an interval of them).

Started exactly on the axis y = 0 of x^2 - y^2 + y^4 / 4, every method below runs into the saddle;
with 0.001 beside it, it gets out. Adam leaves first, since it does not mind how small a slope is.

Shapes: M draws of I points in D dimensions; x (D,), points (M, I, D), Hessian (D, D).
Unlike the paper: checks by drawing points instead of proofs; all in float64.

    python convexity.py           the table and OUT/paths.png
    python convexity.py --smoke   seconds; exits 1 unless all BARS are met
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
from torch.func import grad, hessian, vmap

# Lowest and highest value that pass under --smoke.
BARS = {"sets_outside": (0.0, 0.0), "union_outside": (0.1, 1.0), "convex_gap": (-1e-12, 1.0)}
BARS |= {"other_gap": (-1e9, -0.01), "eigenvalue_gap": (0.0, 1e-12), "stuck": (0.0, 0.0)}
BARS |= {"distance": (0.0, 0.01)}
SETS = {
    "disc": lambda x: disc(x),
    "half-plane": lambda x: x.sum(-1) <= 1,
    "both of two discs": lambda x: disc(x - 0.5) & disc(x + 0.5),
    "either of two discs": lambda x: disc(x - 0.9) | disc(x + 0.9),  # not convex
}
FUNCTIONS = {  # name: f of x (D,), D, is it convex?
    "x^2": (lambda x: x[0] ** 2, 1, True),
    "exp x": (lambda x: x[0].exp(), 1, True),
    "-log x": (lambda x: -x[0].log(), 1, True),
    "max(x, y)": (lambda x: x.amax(), 2, True),
    "x^3": (lambda x: x[0] ** 3, 1, False),
    "sqrt |x|": (lambda x: x[0].abs().sqrt(), 1, False),
    "x^2 - y^2": (lambda x: x[0] ** 2 - x[1] ** 2, 2, False),
}


# --- the idea ------------------------------------------------------------------------------------
def disc(x):
    """Is x (..., 2) in the unit disc?"""
    return x.norm(dim=-1) <= 1


def outside(contains, points):
    """Share of the segments between points (M, 2, D) of a set that leave it: 0 if it is convex."""
    a, b = points[contains(points).all(1)].unbind(1)
    share = torch.rand(len(a), 1).to(a)
    return (~contains(share * a + (1 - share) * b)).double().mean().item()  # eq. (1)


def level_set(f, b):
    return lambda x: vmap(f)(x.flatten(0, -2)).view(x.shape[:-1]) <= b  # eq. (4)


def jensen_gap(f, points, contains=None):
    """Least of left minus right of (3) over points (M, I, D), with weights drawn at random. (2) is
    (3) for I = 2. Where f is defined on a set that is not convex, f of the mean may not exist."""
    if contains is not None and outside(contains, points[:, :2]):
        raise ValueError("f is defined on a set that is not convex")
    weight = torch.rand(points.shape[:2]).to(points)  # (M, I)
    weight = weight / weight.sum(1, keepdim=True)
    middle = (weight[..., None] * points).sum(1)  # (M, D)
    return ((weight * vmap(vmap(f))(points)).sum(1) - vmap(f)(middle)).min().item()  # eq. (2), (3)


def eigenvalues(f, x):
    return torch.linalg.eigvalsh(vmap(hessian(f))(x))  # (M, D), for x (M, D)  eq. (5)


def kind(f, x):
    """What x (D,) is: the Hessian decides where it can, else a look at points nearby."""
    if grad(f)(x).abs().max() > 1e-9:
        return "not critical"
    low, high = eigenvalues(f, x[None])[0, [0, -1]].tolist()
    if low * high:
        return "saddle" if low < 0 < high else "minimum" if low > 0 else "maximum"  # eq. (6)
    near = vmap(f)(x + 0.01 * torch.randn(1000, len(x)).to(x)) - f(x)
    looks = "saddle" if near.min() < 0 < near.max() else "minimum" if near.min() >= 0 else "maximum"
    return f"undecided, looks like a {looks}"


def descend(f, x, method, lr, steps=300, b1=0.9, b2=0.999, eps=1e-8):
    """The path (steps + 1, D) of descent, momentum or adam from x (D,)."""
    path, v, square = [x], torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, steps + 1):
        g = grad(f)(path[-1])
        v, square = b1 * v + g, b2 * square + (1 - b2) * g * g
        move = g if method == "descent" else v  # eq. (7), (8)
        if method == "adam":
            mean, root = (1 - b1) * v / (1 - b1**step), (square / (1 - b2**step)).sqrt()
            move = mean / (root + eps)  # eq. (9)
        path.append(path[-1] - lr * move)
    return torch.stack(path)


# --- run, smoke ----------------------------------------------------------------------------------
def hill(x):
    """A saddle at 0 between minima at (0, 2^.5) and (0, -2^.5), of x (2, ...)."""
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4


def draw(args, paths):
    """OUT/paths.png: the paths (steps + 1, 2) on the contours of hill."""
    from matplotlib.figure import Figure

    x, y = torch.meshgrid(*2 * [torch.linspace(-2, 2, 81)], indexing="xy")
    axes = (figure := Figure(layout="constrained")).add_subplot(xlabel="x", ylabel="y")
    axes.contour(x, y, hill([x, y]), 30, cmap="gray", linewidths=0.5)
    for name, path in paths.items():
        axes.plot(*path.T, marker=".", label=name)
    axes.legend()
    figure.savefig(Path(args.out, "paths.png"))


def run(args):
    """Print a row per set, function, critical point and path; return what judges them."""
    torch.manual_seed(args.seed)
    draws = 4 * torch.rand(4000, 4, 2, dtype=torch.float64) - 2  # (M, I, D)
    rows, gaps, paths = [], {True: [], False: []}, {}
    for name, contains in SETS.items():
        rows.append({"set": name, "segments outside": outside(contains, draws[:, :2])})
    *convex, union = [row["segments outside"] for row in rows]
    for name, (f, d, known) in FUNCTIONS.items():
        x = draws[..., :d].abs() if name == "-log x" else draws[..., :d]
        gaps[known].append(jensen_gap(f, x))
        row = {"f": name, "Jensen gap": gaps[known][-1]}
        row["eigenvalue"] = eigenvalues(f, x[:, 0]).min().item()
        row["level set outside"] = outside(level_set(f, 0.5), x[:, :2])
        rows.append(row | {"convex": "refuted" if gaps[known][-1] < -1e-12 else "not refuted"})
    for name in ("x^2", "x^3", "x^2 - y^2"):
        f, x = FUNCTIONS[name][0], draws.new_zeros(FUNCTIONS[name][1])
        rows.append({"at 0": name, "H": eigenvalues(f, x[None])[0].tolist(), "is": kind(f, x)})
    metrics = {"sets_outside": max(convex), "union_outside": union, "convex_gap": min(gaps[True])}
    metrics |= {"other_gap": max(gaps[False]), "stuck": 0.0, "distance": 0.0}
    metrics["eigenvalue_gap"] = max(abs(rows[-1]["H"][0] + 2), abs(rows[-1]["H"][1] - 2))
    for method in ("descent", "momentum", "adam"):
        starts = draws.new_tensor([[1.5, 0.0], [1.5, 0.001]])
        stuck, paths[method] = (descend(hill, x, method, args.lr) for x in starts)
        if not paths[method].isfinite().all():
            sys.exit("stopped: a path is not finite; try a lower --lr")
        rows.append({"path": method, "steps near y = 0": sum(paths[method][:, 1] < 0.5).item()})
        rows[-1] |= {"end y": paths[method][-1, 1].item(), "from y = 0": stuck[-1, 1].item()}
        away = (paths[method][-1] - draws.new_tensor([0, 2**0.5])).norm().item()
        metrics["distance"] = max(away, metrics["distance"])
        metrics["stuck"] = max(stuck[:, 1].abs().max().item(), metrics["stuck"])
    draw(args, paths)
    for row in rows:
        print(line(row), file=sys.stderr if args.smoke else sys.stdout)
    return metrics


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
    add("--lr", type=at_least(0.0), default=0.05, help="learning rate of the paths")
    add("--seed", type=at_least(0), default=0, help="fixes the points that are drawn")
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
