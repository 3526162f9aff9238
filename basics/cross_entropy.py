# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12"]
# ///
"""Cross-entropy: of two distributions, of class scores and labels, its gradient, its pitfalls.

Papers: Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal, 1948;
Bridle, "Probabilistic Interpretation of Feedforward Classification Network Outputs", 1990 (softmax
with (5)); Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
arXiv 1512.00567 (label smoothing (6)).

    H(p, q) = -sum_x p(x) log q(x)                    (1)  in nats; 0 log 0 = 0
    H(p, q) = H(p, p) + KL(p | q)                     (2)  so q = p is the best q
    log q_i = z_i - m - log sum_j exp(z_j - m)        (3)  log-softmax, m = max_j z_j
    L = -mean_n sum_i t_ni log q_ni                   (4)  over the examples that count
    dL/dz_n = (q_n - t_n) / (number of them)          (5)  softmax minus target
    t_n = (1 - e) onehot(y_n) + e / K                 (6)  target; e is the label smoothing
    L >= log(1 + (K - 1) / e^1)                       (7)  if z is itself a softmax

Often written without its sum, (1) is no number; with p = (1, 0, 0), q1 = (.5, .4, .1) and q2 =
(.8, .1, .1) it gives log 2 = 0.693147 and -log .8 = 0.223144. Just as often the loss is written
-sum_i log q_i: over classes that would be 3.912 and 4.828, so that the better q2 looks worse. It
is -log q_y, of the true class y alone, and the mean (not the sum) over examples.

log(softmax(z)) in two steps overflows or meets log 0 for scores above 88; (3) never does: the
largest exponent is 0. And softmax before a loss that holds one already is no error that torch
could see, but by (7) the loss stays above 1.461 for K = 10, however sure the network is.

Shapes: N examples, K classes; z, q and t (N, K), y (N,); p and q of (1) (..., K).
Unlike the paper: nats for Shannon's bits. Unlike torch: it is an error if no example counts.

    python cross_entropy.py           the table
    python cross_entropy.py --lr 0.1  softmax regression with smaller steps
    python cross_entropy.py --smoke   seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

# Lowest and highest value that pass under --smoke.
BARS = {"table_gap": (0.0, 1e-12), "torch_gap": (0.0, 1e-12), "gradient_gap": (0.0, 1e-12)}
BARS |= {"stable_gap": (0.0, 1e-5), "floor_gap": (0.0, 1e-12), "test_acc": (0.95, 1.0)}
P, Q = [1.0, 0.0, 0.0], {"q1": [0.5, 0.4, 0.1], "q2": [0.8, 0.1, 0.1]}
KNOWN = {"q1": math.log(2), "q2": -math.log(0.8)}


# --- the idea ------------------------------------------------------------------------------------
def H(p, q):
    """Cross-entropy (...,) of p and q (..., K): infinite where q rules out what p has."""
    for name, x in {"p": p, "q": q}.items():
        if not torch.allclose(x.sum(-1), x.new_ones(())) or (x < 0).any():
            raise ValueError(f"{name} is no distribution: its last axis must sum to 1")
    return -torch.xlogy(p, q).sum(-1)  # eq. (1)


def kl(p, q):
    return H(p, q) - H(p, p)  # eq. (2)


def log_softmax(z):
    """log q (..., K) of scores z (..., K)."""
    z = z - z.amax(-1, keepdim=True)
    return z - z.exp().sum(-1, keepdim=True).log()  # eq. (3)


def targets(z, y, ignore_index=-100, smoothing=0.0):
    """Target t (N, K), zero where y says ignore_index, and how many examples count. y holds classes
    (N,) or distributions (N, K)."""
    n, k = z.shape
    if y.is_floating_point():
        t, counts = y, torch.ones(n, dtype=torch.bool)
        if not torch.allclose(t.sum(1), t.new_ones(n)) or (t < 0).any():
            raise ValueError("y is no distribution: its rows must sum to 1")
    else:
        counts = y != ignore_index
        if not ((y >= 0) & (y < k) | ~counts).all():
            raise ValueError(f"y holds classes outside 0..{k - 1}")
        t = F.one_hot(y * counts, k).to(z)  # (N, K)
    if not counts.any():
        raise ValueError("every example is ignored: their mean is 0 / 0")
    return counts.to(z)[:, None] * ((1 - smoothing) * t + smoothing / k), counts.sum()  # eq. (6)


def cross_entropy(z, y, **how):
    """Mean loss of scores z (N, K); y and how as in targets."""
    t, n = targets(z, y, **how)
    return (t * -log_softmax(z)).masked_fill(t == 0, 0).sum() / n  # eq. (4)


def gradient(z, y, **how):
    """dL/dz (N, K) of cross_entropy."""
    t, n = targets(z, y, **how)
    return (log_softmax(z).exp() * t.sum(1, keepdim=True) - t) / n  # eq. (5)


def floor(k):
    return math.log(1 + (k - 1) / math.e)  # eq. (7)


# --- run, smoke ----------------------------------------------------------------------------------
def against_torch():
    """Largest gap of loss and gradient to torch's, over all kinds of targets."""
    z = torch.randn(64, 10, dtype=torch.float64, requires_grad=True)
    y, soft = torch.randint(10, (64,)), torch.randn(64, 10, dtype=torch.float64).softmax(1)
    some = y.masked_fill(torch.arange(64) % 3 == 0, -100)
    gaps = []
    for target, e in [(y, 0.0), (some, 0.0), (some, 0.2), (soft, 0.0), (soft, 0.2)]:
        theirs = F.cross_entropy(z, target, label_smoothing=e)
        grad = torch.autograd.grad(theirs, z)[0]
        ours = cross_entropy(z, target, smoothing=e)
        ways = [torch.autograd.grad(ours, z)[0], gradient(z, target, smoothing=e)]
        gaps.append([(ours - theirs).abs().item(), *((g - grad).abs().max().item() for g in ways)])
    return max(gap[0] for gap in gaps), max(max(gap[1:]) for gap in gaps)


def regression(lr, k=3, n=300):
    """Softmax regression on k Gaussian clouds by (5) alone: loss, and accuracy on n new points."""
    angle = 2 * math.pi * torch.arange(k) / k
    y = torch.arange(2 * n) % k
    x = 2 * torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)[y] + torch.randn(2 * n, 3) * 0.7
    x[:, 2] = 1  # the bias
    w = torch.zeros(3, k)
    for _ in range(200):
        w -= lr * x[:n].T @ gradient(x[:n] @ w, y[:n])
    right = (x[n:] @ w).argmax(1) == y[n:]
    return cross_entropy(x[:n] @ w, y[:n]).item(), right.float().mean().item()


def run(args):
    """Print a row per claim; return the metrics that judge them."""
    torch.manual_seed(args.seed)
    rows, metrics, p = [], {}, torch.tensor(P, dtype=torch.float64)
    for name, q in Q.items():
        q = torch.tensor(q, dtype=torch.float64)
        row = {"q": name, "H(p, q)": H(p, q).item(), "KL": kl(p, q).item()}
        rows.append(row | {"-sum log q": -q.log().sum().item()})
        metrics["table_gap"] = max(metrics.get("table_gap", 0), abs(row["H(p, q)"] - KNOWN[name]))
    metrics["torch_gap"], metrics["gradient_gap"] = against_torch()
    z, y = torch.randn(64, 10), torch.randint(10, (64,))
    for scale in (1.0, 100.0, 1e4):
        naive = -(scale * z).exp().div((scale * z).exp().sum(1, keepdim=True)).log()
        loss, exact = (cross_entropy(scale * x, y).item() for x in (z, z.double()))
        rows.append({"scores times": scale, "naive": naive[range(64), y].mean().item(), "L": loss})
        metrics["stable_gap"] = max(metrics.get("stable_gap", 0), abs(loss - exact) / scale)
    sure = 1e3 * F.one_hot(y, 10).double()
    twice = cross_entropy(sure.softmax(1), y).item()
    rows.append({"sure and right": cross_entropy(sure, y).item(), "softmax twice": twice})
    metrics["floor_gap"] = abs(twice - floor(10))
    loss, metrics["test_acc"] = regression(args.lr)
    rows.append({"regression, loss": loss, "test_acc": metrics["test_acc"]})
    for row in rows:
        print(line(row), file=sys.stderr if args.smoke else sys.stdout)
    return metrics


def smoke(args):
    """The whole run: it takes a second."""
    return report(args, **run(args))


# --- plumbing, word for word the same in every script --------------------------------------------
def fail(message):
    """A mistake the user can mend: one line on stderr, exit code 2."""
    print(f"{Path(__file__).name}: error: {' '.join(message.split())[:300]}", file=sys.stderr)
    sys.exit(2)


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
    add("--lr", type=at_least(0.0), default=0.5, help="gradient descent: learning rate")
    add("--seed", type=at_least(0), default=0, help="fixes scores and data")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.smoke:
        return smoke(args)
    print(line(run(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
