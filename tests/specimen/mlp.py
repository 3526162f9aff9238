# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Multilayer perceptron: one hidden layer, trained by softmax cross-entropy.

Paper: Rumelhart, Hinton & Williams, "Learning representations by back-propagating errors", 1986.

    h = relu(W1 x + b1)                (1)  hidden code
    z = W2 h + b2                      (2)  class scores
    L = log(sum_k exp z_k) - z_y       (3)  cross-entropy of the true class y

Shapes: B batch, D inputs, H hidden, K classes; x (B, D), h (B, H), z (B, K), y (B,).
Unlike the paper: relu for the sigmoid, Adam for gradient descent with momentum.

    python mlp.py                  8x8 digits shipped with scikit-learn, nothing to download
    python mlp.py --dataset mnist  the real thing, downloaded to --data_root at first use
    python mlp.py --smoke          a few seconds; exits 1 unless all BARS are met
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
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_epochs": 10, "hidden": 32}
BARS = {"test_acc": (0.90, 1.0), "loss_gap": (0.0, 1e-4)}


# --- model ---------------------------------------------------------------------------------------
class MLP(nn.Module):
    def __init__(self, n_in, hidden, n_classes):
        super().__init__()
        self.inner = nn.Linear(n_in, hidden)
        self.outer = nn.Linear(hidden, n_classes)

    def forward(self, x):  # (B, D)
        h = torch.relu(self.inner(x))  # (B, H)  eq. (1)
        return self.outer(h)  # (B, K)  eq. (2)


# --- the idea ------------------------------------------------------------------------------------
def cross_entropy(z, y):
    """Mean loss of scores z (B, K) against y (B,); logsumexp first takes out the maximum."""
    return (z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]).mean()  # eq. (3)


# --- data ----------------------------------------------------------------------------------------
def load_data(args):
    """Return (x, y) for training and for testing: x (N, D) in [0, 1], whole on the device."""
    if args.dataset == "digits":
        from sklearn.datasets import load_digits

        x, y = map(torch.from_numpy, load_digits(return_X_y=True))
        x, order = x.float() / 16, torch.randperm(len(x))
        splits = [(x[i], y[i]) for i in (order[360:], order[:360])]
    else:
        from torchvision.datasets import MNIST

        try:
            sets = [MNIST(args.data_root, train=part, download=True) for part in (True, False)]
        except Exception as error:  # whatever the files hold
            where = f"--dataset mnist: cannot be read from {args.data_root}/MNIST/raw"
            fail(f"{where} nor downloaded; --dataset digits needs neither ({error!r})")
        splits = [(s.data.flatten(1) / 255, s.targets) for s in sets]
    return [(x.to(args.device), y.to(args.device)) for x, y in splits]


# --- train, evaluate, smoke ----------------------------------------------------------------------
def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the test set."""
    torch.manual_seed(args.seed)
    (x, y), test = load_data(args)
    model = MLP(x.shape[1], args.hidden, 10).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    state = {"model": model, "optimizer": optimizer}
    epoch = begin(args, state)
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(x)).to(args.device).split(args.batch_size)
            for i in tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None):
                loss = cross_entropy(model(x[i]), y[i])
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
    return evaluate(model, *test)


@torch.inference_mode()
def evaluate(model, x, y):
    model.eval()
    return {"test_acc": (model(x).argmax(1) == y).float().mean().item()}


def smoke(args):
    """A short run in a temporary folder, then the identities that need no training."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    z, y = 50 * torch.randn(64, 10), torch.randint(10, (64,))
    loss_gap = (cross_entropy(z, y) - nn.functional.cross_entropy(z, y)).abs().item()
    return report(args, **metrics, loss_gap=loss_gap)


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
    add("--n_epochs", type=at_least(1), default=30, help="passes over the training set")
    add("--batch_size", type=at_least(1), default=64, help="examples per step")
    add("--lr", type=at_least(0.0), default=2e-3, help="adam: learning rate")
    add("--hidden", type=at_least(1), default=128, help="hidden units H")
    add("--dataset", choices=["digits", "mnist"], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets")
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
