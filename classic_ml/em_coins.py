# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4"]
# ///
"""Expectation maximisation: how often each coin shows heads, where nobody noted which was flipped.

Papers: Dempster, Laird & Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm",
Journal of the Royal Statistical Society B 39, 1977; two coins: Do & Batzoglou, "What is the
expectation maximization algorithm?", Nature Biotechnology 26, 2008; three coins: Li Hang,
"Statistical Learning Methods", Tsinghua University Press, 2012, chapter 9.

    l_ik = log w_k + h_i log t_k + (n_i - h_i) log(1 - t_k)   (1)  log P(trial i, by coin k)
    L = sum_i log sum_k exp l_ik                              (2)  log-likelihood of what was seen
    r_ik = exp(l_ik - log sum_j exp l_ij)                     (3)  E-step: P(coin k | trial i)
    t_k = sum_i r_ik h_i / sum_i r_ik n_i                     (4)  M-step: heads of all flips
    w_k = sum_i r_ik / m                                      (5)  M-step, if w is unknown, too
    F = sum_ik r_ik (l_ik - log r_ik) <= L                    (6)  equal for the r of the E-step

Why L never falls: (3) makes F equal to L, then (4) and (5) find the largest F for that r, and the
new L is not below it. It is a climb to *a* top. Exchange the coins and L is the same, so there are
two; and coins that start alike get the same r, hence the same t: they stay alike for ever. The
binomial coefficient of a trial is left out of (1): it falls out of (3), and L only moves by it.

two_coins: 5 times one of two coins is picked (w = 1/2 each) and flipped 10 times. From t = 0.6, 0.5
the first step leads to 0.7130, 0.5813, and the tenth to 0.7967, 0.5197. Had anyone noted that the
first coin was taken in trials 2, 3, 5, (4) would give 0.80, 0.45 at once.
three_coins: a first coin, heads with probability pi, picks one of two others, p and q; 10 trials of
one flip. L depends on pi p + (1 - pi) q alone: one step reaches the top, 0.6, from anywhere, and
where on that ridge it ends is decided by the start: 0.5, 0.6, 0.6 from 0.5, 0.5, 0.5, and 0.4064,
0.5368, 0.6432 from 0.4, 0.6, 0.7. Both are as likely, and neither is the truth.

Shapes: m trials, K = 2 coins that can be picked; heads h and flips n (m,), chances of heads t (K,),
their shares w (K,), l and r (m, K). OUT/path.png: L over both t, and the steps on it.
Unlike the paper: everything stays in the log domain, as products of many chances underflow.

    python em_coins.py                                    the table and OUT/path.png
    python em_coins.py --model three_coins --start 0.4 0.6 0.7
    python em_coins.py --trials 3/7 9/12 2/8 --start 0.3 0.8  heads/flips of your own
    python em_coins.py --smoke                            seconds; exits 1 unless all BARS are met
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
BARS = {"known_gap": (0.0, 5.1e-5), "smallest_gain": (-1e-12, 100.0), "bound_gap": (0.0, 1e-12)}
BARS |= {"grid_gap": (-0.01, 0.0)}
# Heads/flips of the trials and a start: t of both coins, or pi, p, q.
EXAMPLES = {
    "two_coins": (["5/10", "9/10", "8/10", "4/10", "7/10"], [0.6, 0.5]),
    "three_coins": ([f"{side}/1" for side in "1101001011"], [0.5, 0.5, 0.5]),
}
# What the books tell: model, start, number of the step, result of it.
KNOWN = [("two_coins", [0.6, 0.5], 1, [0.7130, 0.5813])]
KNOWN += [("two_coins", [0.6, 0.5], 10, [0.7967, 0.5197])]
KNOWN += [("three_coins", [0.5, 0.5, 0.5], step, [0.5, 0.6, 0.6]) for step in (1, 10)]
KNOWN += [("three_coins", [0.4, 0.6, 0.7], 10, [0.4064, 0.5368, 0.6432])]
NAMES = {"two_coins": ["A", "B"], "three_coins": ["pi", "p", "q"]}


# --- the idea ------------------------------------------------------------------------------------
def joint_of_coins(h, n, w, t):
    """l (m, K). t of 0 or 1 is no trouble: 0 log 0 is 0."""
    h, n = h[:, None], n[:, None]  # (m, 1)
    return w.log() + torch.xlogy(h, t) + torch.xlogy(n - h, 1 - t)  # eq. (1)


def log_likelihood(l_ik):
    return l_ik.logsumexp(1).sum()  # eq. (2)


def expectation(l_ik):
    return (l_ik - l_ik.logsumexp(1, keepdim=True)).exp()  # eq. (3)


def maximisation(h, n, r, w, t, learn_w):
    """The w and t that are best for r. A coin that had no share in any trial keeps its t."""
    flips = r.T @ n  # (K,)
    t = torch.where(flips > 0, r.T @ h / flips, t)  # eq. (4)
    return (r.mean(0) if learn_w else w), t  # eq. (5)


def lower_bound(l_ik, r):
    """F; r log r is 0 at r = 0, whatever l is there."""
    share = torch.where(r > 0, r * l_ik, 0.0)  # (m, K)
    return (share - torch.xlogy(r, r)).sum()  # eq. (6)


def em_path(h, n, w, t, learn_w, n_iterations):
    """(w, t) before the first step and after each."""
    path = [(w, t)]
    for _ in range(n_iterations):
        r = expectation(joint_of_coins(h, n, *path[-1]))
        path.append(maximisation(h, n, r, *path[-1], learn_w))
    return path


# --- data ----------------------------------------------------------------------------------------
def load_data(args):
    """Heads and flips of the trials, as typed or of the model's example."""
    pairs = []
    for trial in args.trials or EXAMPLES[args.model][0]:
        heads, _, flips = trial.partition("/")
        if not (heads.isdecimal() and flips.isdecimal()):
            fail(f"--trials: {trial} is not heads/flips; type 5/10, say")
        if int(flips) < max(1, int(heads)):
            fail(f"--trials: {trial} has no flips, or more heads than flips; type 5/10, say")
        pairs.append((int(heads), int(flips)))
    return torch.tensor(pairs, dtype=torch.float64).T


# --- run, smoke ----------------------------------------------------------------------------------
def unpack(start):
    """w and t (2,) of t_A, t_B, where w is 1/2 each, or of pi, p, q."""
    share = start[0] if len(start) == 3 else 0.5
    return torch.tensor([[share, 1 - share], start[-2:]], dtype=torch.float64)


def solve(args, start):
    """h and n of the trials, and the path from a start; three numbers: w is unknown, too."""
    h, n = load_data(args)
    return h, n, em_path(h, n, *unpack(start), len(start) == 3, args.n_iterations)


def surface(h, n, w, size=200):
    """Ticks (size,), and L (size, size) with t_1 along the columns and t_2 along the rows."""
    ticks = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    alone = joint_of_coins(h, n, torch.ones_like(ticks), ticks)  # (m, size)
    first, second = (share.log() + alone for share in w)
    return ticks, torch.logaddexp(first[:, None], second[:, :, None]).sum(0)  # (size, size)


def draw_path(args, h, n, path):
    """OUT/path.png: L around its top, at the last w, and the steps of t."""
    from matplotlib.figure import Figure

    ticks, L = surface(h, n, path[-1][0])
    figure = Figure(figsize=(6, 5), layout="constrained")
    first, second = NAMES[args.model][-2:]
    title = f"log-likelihood, {len(path) - 1} steps"
    axes = figure.add_subplot(xlabel=f"heads of coin {first}", ylabel=f"of {second}", title=title)
    levels = L.max() - torch.logspace(1.3, -2, 16, dtype=L.dtype)
    figure.colorbar(axes.contourf(ticks, ticks, L, levels=levels.tolist(), extend="both"))
    t = torch.stack([t for _, t in path])
    axes.plot(*t.T, "o-", color="tab:red", markersize=4, label="EM")
    axes.plot(*t[0], "s", color="white", markeredgecolor="tab:red", label="start")
    axes.plot([0, 1], [0, 1], ":", color="gray", label="coins alike: no way off this line")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    figure.savefig(Path(args.out, "path.png"), dpi=100)


def run(args):
    """Print a row per step (the first 25 and the last), draw the path; return what judges it."""
    start = args.start or EXAMPLES[args.model][1]
    if args.start and start[-1] == start[-2]:
        print("--start: coins that start alike stay alike; type two chances", file=sys.stderr)
    h, n, path = solve(args, start)
    L, gains, bound_gap, r = None, [], 0.0, None
    for step, (w, t) in enumerate(path):
        l_ik, before = joint_of_coins(h, n, w, t), L
        L, values = log_likelihood(l_ik).item(), [w[0].item(), *t.tolist()][-len(start) :]
        row = {"step": step} | dict(zip(NAMES[args.model], values, strict=True)) | {"L": L}
        if step:  # with the r of the old t: F has risen from the old L, and L is not below it
            gains.append(L - before)
            row |= {"gain of F": lower_bound(l_ik, r).item() - before, "gain of L": gains[-1]}
        r = expectation(l_ik)
        bound_gap = max(bound_gap, abs(L - lower_bound(l_ik, r).item()))
        if step <= 25 or step == args.n_iterations:
            print(line(row), file=sys.stderr if args.smoke else sys.stdout)
    draw_path(args, h, n, path)
    grid_gap = surface(h, n, w)[1].max().item() - L
    judged = {"smallest_gain": min(gains), "bound_gap": bound_gap, "grid_gap": grid_gap}
    return dict(zip(NAMES[args.model], values, strict=True)) | {"L": L} | judged


def smoke(args):
    """The whole run, and the numbers of the books, of both models."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = run(args)
    known_gap = 0.0
    for model, start, steps, want in KNOWN:
        typed = argparse.Namespace(model=model, trials=None, n_iterations=steps)
        w, t = solve(typed, start)[2][-1]
        got = [w[0].item(), *t.tolist()][-len(start) :]
        known_gap = max(known_gap, *(abs(a - b) for a, b in zip(got, want, strict=True)))
    return report(args, **metrics, known_gap=known_gap)


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
    add("--model", choices=[*EXAMPLES], default="two_coins", help="which coins are unknown")
    add("--trials", nargs="+", help="heads/flips of each trial; default: the model's example")
    add("--start", nargs="+", type=at_least(1e-6, 1.0), help="t of A and B, or pi, p and q")
    add("--n_iterations", type=at_least(1, 100_001), default=10, help="steps of EM")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    args = parser.parse_args(argv)
    names = NAMES[args.model]
    if args.start and len(args.start) != len(names):
        fail(f"--start: --model {args.model} takes {len(names)} numbers; type {' '.join(names)}")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.smoke:
        return smoke(args)
    begin(args)
    print(line(run(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
