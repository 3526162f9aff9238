# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12"]
# ///
"""In-place operations: which statements take new memory, and which ones autograd forbids.

Paper: Paszke, Gross, Chintala, Chanan, Yang, DeVito, Lin, Desmaison, Antiga & Lerer, "Automatic
differentiation in PyTorch", NIPS workshop, 2017 (its section on in-place operations).

    Y = Y + X                   (1)  a new tensor of n s bytes: the name Y moves to it
    y_i <- y_i + x_i            (2)  in place: 0 bytes, every other name of Y sees it too
    d(x + 1)/dx = 1             (3)  backward needs nothing of x or y: y may be overwritten
    d exp(x)/dx = exp(x) = y    (4)  backward needs the result: y may not
    d(x x)/dx = 2 x             (5)  backward needs the input: x may not

For each statement the table says whether Y is the same object as before (id), at the same address
(data_ptr), and how much memory was taken at the peak and is still held, in units of Y; the meter
sees every operation that torch executes and the storage of its result. Y = Y + X is no in-place
form of Y += X, though lists of such forms name it; and Y[:] = X + Y keeps Y where it is, but first
makes all of X + Y. With out=, Y must have the dtype of the result; another shape of it is mended
by new memory, with a warning.

Autograd counts the changes of each tensor (y._version). Backward compares the count with that of
the moment when the tensor was saved, and refuses if it grew, rather than be wrong. A leaf that
needs a gradient is refused at once, unless no_grad says that this is an update.

Shapes: X and Y (N, N), n = N^2 elements of s bytes; x and y (3,).
Unlike the paper: this tells about torch alone; nothing is said of its caching of freed memory.

    python inplace_ops.py              both tables
    python inplace_ops.py --size 4000  the same with 64 MB tensors
    python inplace_ops.py --smoke      seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import operator
import sys
import time
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Lowest and highest value that pass under --smoke.
BARS = {"wrong_statements": (0, 0), "wrong_gradients": (0, 0)}
# What is typed; the same as a function that returns Y; and what is claimed: same object, same
# address, memory at the peak, memory that is kept (in units of Y).
STATEMENTS = [
    ("Y = Y + X", lambda Y, X: Y + X, (False, False, 1, 1)),  # eq. (1)
    ("Y += X", operator.iadd, (True, True, 0, 0)),  # eq. (2)
    ("Y[:] = X + Y", lambda Y, X: operator.setitem(Y, slice(None), X + Y), (True, True, 1, 0)),
    ("Y.add_(X)", lambda Y, X: Y.add_(X), (True, True, 0, 0)),
    ("torch.add(Y, X, out=Y)", lambda Y, X: torch.add(Y, X, out=Y), (True, True, 0, 0)),
    ("Y = 2 * Y + X", lambda Y, X: 2 * Y + X, (False, False, 2, 1)),
    ("Y = X.add(Y, alpha=2)", lambda Y, X: X.add(Y, alpha=2), (False, False, 1, 1)),
    ("Y.mul_(2).add_(X)", lambda Y, X: Y.mul_(2).add_(X), (True, True, 0, 0)),
    ("Y = Y.view(-1)", lambda Y, X: Y.view(-1), (False, True, 0, 0)),
    ("Y = Y.T", lambda Y, X: Y.T, (False, True, 0, 0)),
    ("Y = Y.T.reshape(-1)", lambda Y, X: Y.T.reshape(-1), (False, False, 1, 1)),
    ("Y = Y.to(Y.dtype)", lambda Y, X: Y.to(Y.dtype), (True, True, 0, 0)),
    ("Y = Y.double()", lambda Y, X: Y.double(), (False, False, 2, 2)),
]
# What is done to x = (0, 1, 2) before y.sum().backward(), and what comes of it.
ONES, REFUSED, LATER = [1.0, 1.0, 1.0], "refused at once", "refused by backward"
GRADIENTS = [
    ("x += 1", lambda x: operator.iadd(x, 1), REFUSED),
    ("y = x + 1; y += 1", lambda x: operator.iadd(x + 1, 1), ONES),  # eq. (3)
    ("y = exp(x); y += 1", lambda x: operator.iadd(x.exp(), 1), LATER),  # eq. (4)
    ("y = exp(x); y = y + 1", lambda x: x.exp() + 1, [1.0, 2.7183, 7.3891]),
    ("y = x * x; x.detach().add_(1)", lambda x: (x * x, x.detach().add_(1))[0], LATER),  # eq. (5)
    ("y = x + 1; x.detach().add_(1)", lambda x: (x + 1, x.detach().add_(1))[0], ONES),
]


# --- the idea ------------------------------------------------------------------------------------
class Meter(TorchDispatchMode):
    """Within it, every result that lies in no known storage adds its bytes to live, until freed."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            storage = tensor.untyped_storage() if torch.is_tensor(tensor) else None
            if storage is not None and storage.data_ptr() not in self.known:
                self.known.add(storage.data_ptr())
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage.data_ptr(), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, address, n_bytes):
        self.known.discard(address)
        self.live -= n_bytes


def measure(statement, size):
    """Same object, same address, peak and kept memory in units of Y (size, size)."""
    X, Y = torch.ones(size, size), torch.ones(size, size)
    with Meter(X, Y) as meter:
        Z = statement(Y, X)
        Z = Y if Z is None else Z
    unit = Y.untyped_storage().nbytes()
    return Z is Y, Z.data_ptr() == Y.data_ptr(), meter.peak / unit, meter.live / unit


def outcome(make):
    """x.grad after y.sum().backward() for y = make(x), or who refused."""
    x = torch.arange(3.0, requires_grad=True)
    try:
        y = make(x)
    except RuntimeError:
        return REFUSED
    try:
        y.sum().backward()
    except RuntimeError:
        return LATER
    return [round(value, 4) for value in x.grad.tolist()]


# --- run, smoke ----------------------------------------------------------------------------------
def run(args):
    """Print both tables; return in how many rows things are not as they are claimed to be."""
    rows, wrong = [], dict.fromkeys(BARS, 0)
    for text, statement, claim in STATEMENTS:
        found = measure(statement, args.size)
        keys = ("same object", "same address", "peak", "kept")
        rows.append({"do": text} | dict(zip(keys, found, strict=True)))
        wrong["wrong_statements"] += found != claim
    for text, make, claim in GRADIENTS:
        found = outcome(make)
        rows.append({"do": text, "x.grad": found})
        wrong["wrong_gradients"] += found != claim
    for row in rows:
        print(line(row), file=sys.stderr if args.smoke else sys.stdout)
    return wrong


def smoke(args):
    """The whole run: it takes no time."""
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
    add("--size", type=at_least(2, 10_001), default=1000, help="rows and columns N of X and Y")
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
