# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12"]
# ///
"""Reverse-mode differentiation: vector-Jacobian products, detach, and an engine to see inside.

Papers: Linnainmaa, "Taylor expansion of the accumulated rounding error", BIT 16, 1976; Baydin,
Pearlmutter, Radul & Siskind, "Automatic differentiation in machine learning: a survey", JMLR 18,
2018, arXiv 1502.05767.

    x_bar = v^T dy/dx = d(v.y)/dx                    (1)  y.backward(v): backward from v.y
    x_bar = sum_y y_bar^T dy/dx                      (2)  over all y made from x: parts add up
    a_bar = y_bar b,  b_bar = y_bar a                (3)  y = a b, element by element
    A_bar = Y_bar B^T,  B_bar = A^T Y_bar            (4)  Y = A B, the matrix product
    x_bar = y_bar f'(x)                              (5)  y = f(x), element by element
    x_bar = sum of y_bar over the repeated elements  (6)  x was broadcast
    x_bar = 0                                        (7)  y = detach(x): the same value, no way back

Writing x_bar for the gradient that arrives at x. v^T dy/dx is often called a scalar: the scalar is
v.y, and (1) is its gradient, which has the shape of x; the Jacobian (M, N) is never made. The
engine is class Tensor: it runs forward on torch tensors that know nothing of gradients, and each
result remembers its parents and how to pass a gradient on to them.

Shapes: N inputs, M outputs; x (N,), y and v (M,), dy/dx (M, N); a gradient has its value's shape.
Unlike the paper: whole arrays instead of scalars. Unlike torch's engine: nothing is freed, so
backward twice through one graph adds up, and 2-d matrices only.

    python autograd.py           the table: examples of (1) and (7), engine against torch on XOR
    python autograd.py --seed 1  other weights at the start
    python autograd.py --smoke   seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import sys
import time
from pathlib import Path

import torch

# Lowest and highest value that pass under --smoke.
BARS = {"wrong_examples": (0, 0), "xor_gap": (0.0, 1e-10), "xor_loss": (0.0, 0.19)}
ONES, RAMP = [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]
# y made from x = 0, 1, 2, 3; v; and the x.grad that y.backward(v) leaves behind.
EXAMPLES = [
    ("x * x", lambda x: x * x, ONES, [0.0, 2.0, 4.0, 6.0]),
    ("x * x", lambda x: x * x, RAMP, [0.0, 4.0, 12.0, 24.0]),
    ("detach(x * x) * x", lambda x: (x * x).detach() * x, ONES, [0.0, 1.0, 4.0, 9.0]),
    ("x * x * x", lambda x: x * x * x, ONES, [0.0, 3.0, 12.0, 27.0]),
]


# --- the idea ------------------------------------------------------------------------------------
class Tensor:
    """A value and, for each parent that needs it, the function from y_bar to the parent's x_bar."""

    def __init__(self, value, *parents, requires_grad=False):
        self.value, self.grad = value, None
        self.parents = [(x, vjp) for x, vjp in parents if x.requires_grad]
        self.requires_grad = requires_grad or bool(self.parents)

    def __add__(self, other):
        a, b = self, wrap(other)
        return Tensor(a.value + b.value, (a, lambda v: v), (b, lambda v: v))

    def __mul__(self, other):
        a, b = self, wrap(other)
        parts = (a, lambda v: v * b.value), (b, lambda v: v * a.value)  # eq. (3)
        return Tensor(a.value * b.value, *parts)

    def __matmul__(self, other):
        a, b = self, wrap(other)
        parts = (a, lambda v: v @ b.value.T), (b, lambda v: a.value.T @ v)  # eq. (4)
        return Tensor(a.value @ b.value, *parts)

    def __pow__(self, n):
        return Tensor(self.value**n, (self, lambda v: v * n * self.value ** (n - 1)))  # eq. (5)

    def exp(self):
        y = self.value.exp()
        return Tensor(y, (self, lambda v: v * y))  # eq. (5)

    def log(self):
        return Tensor(self.value.log(), (self, lambda v: v / self.value))  # eq. (5)

    def tanh(self):
        y = self.value.tanh()
        return Tensor(y, (self, lambda v: v * (1 - y * y)))  # eq. (5)

    def relu(self):
        return Tensor(self.value.relu(), (self, lambda v: v * (self.value > 0)))  # eq. (5)

    def sum(self):
        return Tensor(self.value.sum(), (self, lambda v: v.expand(self.value.shape)))

    def item(self):
        return self.value.item()

    def detach(self):
        return Tensor(self.value)  # eq. (7)

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -wrap(other)

    def __truediv__(self, other):
        return self * wrap(other) ** -1

    __radd__, __rmul__ = __add__, __mul__

    def backward(self, v=None):
        """Add d(v.y)/dx to the grad of every leaf x; v (of y's shape) may be left out if y is one
        number. Children pass on to their parents only when all parts of theirs have come in."""
        if v is None and self.value.numel() > 1:
            raise ValueError(f"y has shape {tuple(self.value.shape)}: backward needs a v like it")
        v = torch.ones_like(self.value) if v is None else torch.as_tensor(v)
        if v.shape != self.value.shape:
            raise ValueError(f"v has shape {tuple(v.shape)}, y {tuple(self.value.shape)}")
        bars = {self: v}  # eq. (1)
        for y in reversed(parents_first(self)):
            bar = bars.pop(y)
            if not y.parents and y.requires_grad:
                y.grad = bar if y.grad is None else y.grad + bar
            for x, vjp in y.parents:
                part = vjp(bar).sum_to_size(x.value.shape)  # eq. (6)
                bars[x] = bars[x] + part if x in bars else part  # eq. (2)


def wrap(other):
    """A torch tensor, or a number in full precision, as a constant of the graph."""
    if isinstance(other, Tensor):
        return other
    return Tensor(torch.as_tensor(other, dtype=None if torch.is_tensor(other) else torch.float64))


def parents_first(root):
    """All that root was made from, parents before children; a stack, as graphs can be deep."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, finished = stack.pop()
        if finished:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [(node, True), *((x, False) for x, _ in node.parents)]
    return order


# --- run, smoke ----------------------------------------------------------------------------------
def teach_xor(make, values, steps=200, lr=0.3):
    """Teach XOR to 8 tanh units by gradient descent; make turns a value into a leaf of torch or
    of the engine, and all the rest is the same for both. Return the loss of every step."""
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)  # (4, 2)
    sign, losses = 1 - 2 * (x.sum(1, keepdim=True) % 2), []  # (4, 1)
    for _ in range(steps):
        w1, b1, w2, b2 = leaves = [make(value) for value in values]
        z = (make(x) @ w1 + b1).tanh() @ w2 + b2  # (4, 1)
        loss = ((z * sign).exp() + 1).log().sum() / len(x)
        loss.backward()
        losses.append(loss.item())
        values = [value - lr * leaf.grad for value, leaf in zip(values, leaves, strict=True)]
    return losses


def run(args):
    """Print a row for each example and comparison; return how far all is from torch."""
    torch.manual_seed(args.seed)
    makes = [lambda x: x.clone().requires_grad_(), lambda x: Tensor(x, requires_grad=True)]
    rows, wrong = [], 0
    for name, function, v, right in EXAMPLES:
        for make in makes:
            x = make(torch.arange(4.0))
            function(x).backward(torch.tensor(v))
            wrong += x.grad.tolist() != right
        rows.append({"y": name, "v": v, "x.grad": x.grad.tolist()})
    values = [torch.randn(shape, dtype=torch.float64) for shape in [(2, 8), (1, 8), (8, 1), (1,)]]
    theirs, ours = (teach_xor(make, values) for make in makes)
    rows += [{"xor step": n, "loss": ours[n - 1], "torch": theirs[n - 1]} for n in (1, 20, 200)]
    for row in rows:
        print(line(row), file=sys.stderr if args.smoke else sys.stdout)
    gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return {"wrong_examples": wrong, "xor_gap": gap, "xor_loss": ours[-1]}


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
    add("--seed", type=at_least(0), default=0, help="fixes the weights of the net")
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
