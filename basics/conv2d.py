# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4"]
# ///
"""Cross-correlation and pooling, forward and backward: as a loop, and over windows at once.

Paper: LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE, 1998; all windows as one matrix: Chellapilla, Puri & Simard, "High
Performance Convolutional Neural Networks for Document Processing", 2006.

    win[b,c,i,j,u,v] = x[b, c, s i + d u - p, s j + d v - p]             (1)  the windows of x
    y[b,o,i,j] = bias[o] + sum_{c,u,v} k[o,c,u,v] win[b,c,i,j,u,v]       (2)  forward
    dL/dk[o,c,u,v] = sum_{b,i,j} dL/dy[b,o,i,j] win[b,c,i,j,u,v]         (3)  backward, kernel
    dL/dx = dL/dy, with s - 1 zeros between its elements and d (h - 1)   (4)  backward, input
            around, correlated with k turned by 180 degrees and o, c exchanged
    x * k = corr(x, k turned by 180 degrees)                             (5)  true convolution
    max[b,c,i,j] = max_{u,v} win[b,c,i,j,u,v]                            (6)  padded with -inf
    avg[b,c,i,j] = mean_{u,v} win[b,c,i,j,u,v]                           (7)  padded zeros count

What networks call convolution is the cross-correlation (2): nothing is turned. As k is learned,
the name does not matter, until a kernel comes from elsewhere; (4), where s = 1, is a true one.
corr2d, the loop, takes one window at a time; its output must be made of x's type and on its
device. The windows (1) are a view, and (2) is one matrix product, of k as (O, C h w) and the
windows as (C h w, B H' W'): up to h w times the memory of x, and hundreds of times faster.

Where windows are tied, max pooling sends the gradient to the first maximum, as torch does.

Shapes: B batch, C input channels, O output channels, H x W input, H' x W' output, h x w kernel,
s stride, p padding, d dilation; x (B, C, H, W), k (O, C, h, w), y (B, O, H', W').
Unlike the paper: no trainable scale in the pooling, and every output channel sees all input
channels; einsum makes the matrix of windows.

    python conv2d.py           gaps and times, OUT/edges.png by a kernel learned from a picture
    python conv2d.py --smoke   seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
import timeit
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

# Lowest and highest value that pass under --smoke.
BARS = {"forward_gap": (0.0, 1e-12), "backward_gap": (0.0, 1e-12), "loop_gap": (0.0, 1e-5)}
BARS |= {"kernel_error": (0.0, 0.05), "speedup": (3.0, 1e9)}


# --- the idea ------------------------------------------------------------------------------------
def corr2d(x, k):
    """The loop: x (H, W) and k (h, w) to (H', W'), of x's type and on its device."""
    h, w = k.shape
    y = x.new_zeros(x.shape[0] - h + 1, x.shape[1] - w + 1)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = (x[i : i + h, j : j + w] * k).sum()
    return y


def windows(x, size, s=1, p=0, d=1, fill=0.0):
    """View of x (B, C, H, W), padded with fill, as (B, C, H', W', h, w) for size (h, w)."""
    x = F.pad(x, (p, p, p, p), value=fill) if p else x
    for axis, n in zip((2, 3), size, strict=True):
        if (span := d * (n - 1) + 1) > x.shape[axis]:
            raise ValueError(f"a window of {span} does not fit into {x.shape[axis]} of axis {axis}")
        x = x.unfold(axis, span, s)[..., ::d]
    return x  # eq. (1)


def forward(x, k, s=1, p=0, d=1):
    return torch.einsum("bcijuv,ocuv->boij", windows(x, k.shape[2:], s, p, d), k)  # eq. (2)


def grad_k(x, dy, size, s=1, p=0, d=1):
    return torch.einsum("bcijuv,boij->ocuv", windows(x, size, s, p, d), dy)  # eq. (3)


def grad_x(k, dy, size, s=1, p=0, d=1):
    """Gradient of x, size (H, W). What no window reaches, at the far edges, gets zeros."""
    (H, W), (h, w), (i, j) = size, k.shape[2:], dy.shape[2:]
    wide = dy.new_zeros(*dy.shape[:2], s * (i - 1) + 1, s * (j - 1) + 1)
    wide[:, :, ::s, ::s] = dy
    wide = F.pad(wide, (d * (w - 1), d * (w - 1), d * (h - 1), d * (h - 1)))
    dx = forward(wide, k.flip(2, 3).transpose(0, 1), d=d)  # of the padded x  eq. (4), (5)
    return F.pad(dx, (-p, p + W - dx.shape[3], -p, p + H - dx.shape[2]))  # (B, C, H, W)


class Correlate(torch.autograd.Function):
    """forward plus bias (O,), with the gradients above in place of those autograd would find."""

    @staticmethod
    def forward(ctx, x, k, bias, s, p, d):
        ctx.save_for_backward(x, k)
        ctx.how = s, p, d
        return forward(x, k, s, p, d) + bias[:, None, None]

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (x, k), how = ctx.saved_tensors, ctx.how
        dx, dk = grad_x(k, dy, x.shape[2:], *how), grad_k(x, dy, k.shape[2:], *how)
        return dx, dk, dy.sum((0, 2, 3)), None, None, None


def pool(x, size, s, p, fill):
    """Windows of size x size, size apart unless s says otherwise: (B, C, H', W', size, size)."""
    if 2 * p > size:
        raise ValueError(f"padding {p} is more than half of size {size}: windows of padding alone")
    return windows(x, (size, size), s or size, p, fill=fill)


def max_pool2d(x, size, s=None, p=0):
    return pool(x, size, s, p, -math.inf).flatten(4).max(4)[0]  # eq. (6)


def avg_pool2d(x, size, s=None, p=0):
    return pool(x, size, s, p, 0.0).mean((4, 5))  # eq. (7)


# --- model ---------------------------------------------------------------------------------------
class Conv2d(nn.Module):
    """The layer, under torch's parameter names."""

    def __init__(self, in_channels, out_channels, size, stride=1, padding=0, dilation=1):
        super().__init__()
        self.how = stride, padding, dilation
        scale = (in_channels * size * size) ** -0.5
        self.weight = nn.Parameter(scale * torch.randn(out_channels, in_channels, size, size))
        self.bias = nn.Parameter(scale * torch.randn(out_channels))

    def forward(self, x):  # (B, C, H, W)
        return Correlate.apply(x, self.weight, self.bias, *self.how)  # (B, O, H', W')


# --- run, smoke ----------------------------------------------------------------------------------
def gaps(ours, theirs, inputs, how):
    """Largest difference of the outputs of two functions, and of the gradients of the inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outs = [function(*inputs, *how) for function in (ours, theirs)]
    grads = [torch.autograd.grad(y, inputs, torch.ones_like(y).cumsum(3)) for y in outs]
    out, *back = [(p - q).abs().max().item() for p, q in [outs, *zip(*grads, strict=True)]]
    return {"s, p, d": how, "forward_gap": out, "backward_gap": max(back)}


def learn(x, y, lr):
    """The kernel (1, 1, 1, 2) that turns x into y, by gradient descent."""
    k = x.new_zeros(1, 1, 1, 2)
    for _ in range(1000):
        k = k - lr * grad_k(x, (forward(x, k) - y) / y.numel(), (1, 2))
    return k


def draw(args, **panels):
    """OUT/edges.png: pictures (1, 1, H, W), side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(panels), 3.2), layout="constrained")
    for at, (title, panel) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), at, title=title, xticks=[], yticks=[])
        axes.imshow(panel[0, 0], cmap="gray")
    figure.savefig(Path(args.out, "edges.png"))


def run(args):
    """Print a row per comparison and per time; return the metrics that judge them."""
    torch.manual_seed(args.seed)
    x = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    inputs, rows = [x, *Conv2d(3, 4, 3).to(x).parameters()], []
    for how in [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 2, 2)]:
        rows.append({"": "conv2d"} | gaps(Correlate.apply, F.conv2d, inputs, how))
    for ours, theirs in [(max_pool2d, F.max_pool2d), (avg_pool2d, F.avg_pool2d)]:
        rows.append({"": ours.__name__} | gaps(ours, theirs, [x], (3, 2, 1)))
    metrics = {key: max(row[key] for row in rows) for key in ("forward_gap", "backward_gap")}
    x, k = torch.randn(1, 1, 64, 64), torch.randn(1, 1, 3, 3)
    metrics["loop_gap"] = (corr2d(x[0, 0], k[0, 0]) - forward(x, k)).abs().max().item()
    ways = {"loop": lambda: corr2d(x[0, 0], k[0, 0]), "windows": lambda: forward(x, k)}
    ways["torch"] = lambda: F.conv2d(x, k)
    took = {key: 1e3 * min(timeit.repeat(way, number=1, repeat=5)) for key, way in ways.items()}
    rows.append({"": "milliseconds"} | took)
    place = torch.linspace(-1, 1, 64).square().double()
    disc = (place + place[:, None] < 0.5).double()[None, None]  # (1, 1, H, W)
    edge = disc.new_tensor([[[[1.0, -1.0]]]])
    learned = learn(disc, forward(disc, edge), args.lr)
    if not learned.isfinite().all():
        sys.exit("stopped: the kernel is not finite; try a lower --lr")
    y = forward(disc, learned)
    draw(args, x=disc, y=y, max_pool2d=max_pool2d(y, 4), avg_pool2d=avg_pool2d(y, 4))
    rows.append({"": "kernel", "learned": [round(k, 4) for k in learned.flatten().tolist()]})
    for row in rows:
        print(line(row).strip(), file=sys.stderr if args.smoke else sys.stdout)
    error = (learned - edge).abs().max().item()
    return metrics | {"kernel_error": error, "speedup": took["loop"] / took["windows"]}


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
    add("--lr", type=at_least(0.0), default=1.0, help="gradient descent: learning rate")
    add("--seed", type=at_least(0), default=0, help="fixes the numbers that are compared")
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
