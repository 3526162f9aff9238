# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12"]
# ///
"""LazyLinear: a linear layer that takes its number of inputs from the first x it sees.

Papers: LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86, 1998 (the network LeNet-5, whose shapes are inferred here); Paszke et
al., "PyTorch: An Imperative Style, High-Performance Deep Learning Library", NeurIPS, 2019, arXiv
1912.01703 (nn.LazyLinear came with release 1.8).

    y = x W^T + b                           (1)
    D = the last size of the first x        (2)  then W (K, D) is made, and stays
    W, b ~ U(-1 / sqrt D, 1 / sqrt D)       (3)  as nn.Linear does
    n' = floor((n + 2 p - k) / s) + 1       (4)  side n after windows k, stride s, padding p
    D = C h w                               (5)  after nn.Flatten

What the lazy layer saves is the arithmetic of (4) and (5), layer by layer: the table shows it, and
the sizes that a run really has. Given the same seed, three networks have the same weights, outputs
and gradients: with this LazyLinear, with nn.LazyLinear, and with nn.Linear told its D by (5).

Until the first x the parameters are there but have no size: count them, initialise them and
compile only after a dry run. An optimiser may be built before it, as the parameter it was given
is the one that gets a size later. Weights that are loaded tell D as an x would. From then on an x
of another width is an error.

Shapes: B images, C channels, sides h and w, D inputs, K outputs; x (B, C, h, w) or (..., D),
y (..., K).
Unlike the paper: relu and max-pooling, all feature maps connected, a linear last layer.

    python lazy_linear.py                shapes of LeNet-5 for 28 x 28 images
    python lazy_linear.py --img_size 64  and for larger ones: only D changes
    python lazy_linear.py --smoke        seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn

# Lowest and highest value that pass under --smoke.
BARS = {"wrong_shapes": (0, 0), "weight_gap": (0.0, 1e-7), "output_gap": (0.0, 1e-6)}
BARS |= {"grad_gap": (0.0, 1e-5)}


# --- model ---------------------------------------------------------------------------------------
class LazyLinear(nn.Module):
    """nn.Linear(D, out_features) from the first x (..., D), or the first weights, onwards."""

    def __init__(self, out_features):
        super().__init__()
        self.out_features = out_features
        self.weight = nn.UninitializedParameter()
        self.bias = nn.UninitializedParameter()

    def give_size(self, n_in):
        """Turn the parameters, which stay the same objects, into W (K, D) and b (K,)."""
        self.weight.materialize((self.out_features, n_in))
        self.bias.materialize((self.out_features,))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -1 / math.sqrt(n_in), 1 / math.sqrt(n_in))  # eq. (3)

    def forward(self, x):  # (..., D)
        if nn.parameter.is_lazy(self.weight):
            self.give_size(x.shape[-1])  # eq. (2)
        if x.shape[-1] != self.weight.shape[1]:
            wanted = self.weight.shape[1]
            raise ValueError(f"x is {tuple(x.shape)}, but {wanted} inputs were seen at first")
        return x @ self.weight.T + self.bias  # (..., K)  eq. (1)

    def _load_from_state_dict(self, state, prefix, *others):
        weight = state.get(f"{prefix}weight")
        if nn.parameter.is_lazy(self.weight) and not nn.parameter.is_lazy(weight):
            self.give_size(weight.shape[1])
        super()._load_from_state_dict(state, prefix, *others)


def lenet(linear):
    """LeNet-5 whose linear layers are linear(K)."""
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, linear(120), nn.ReLU(), linear(84), nn.ReLU(), linear(10))


# --- the idea ------------------------------------------------------------------------------------
def window(n, layer):
    """Side n after a convolution or pooling with square windows."""
    sizes = (layer.kernel_size, layer.stride, layer.padding)
    k, s, p = (size[0] if isinstance(size, tuple) else size for size in sizes)
    return (n + 2 * p - k) // s + 1  # eq. (4)


def infer(net, shape):
    """The shape after each layer, from the shape of the input, without a look at any data."""
    shapes = []
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            channels = getattr(layer, "out_channels", shape[1])
            shape = (shape[0], channels, *(window(n, layer) for n in shape[2:]))
        elif isinstance(layer, nn.Flatten):
            shape = (shape[0], math.prod(shape[1:]))  # eq. (5)
        elif hasattr(layer, "out_features"):
            shape = (*shape[:-1], layer.out_features)
        shapes.append(shape)
    return shapes


# --- run, smoke ----------------------------------------------------------------------------------
def gap(ours, theirs):
    """Largest difference of two lists of tensors; inf if a shape differs."""
    pairs = [*zip(ours, theirs, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        return math.inf
    return max((a - b).abs().max().item() for a, b in pairs)


def trial(linear, x, seed):
    """Build LeNet-5, run it dry, then once forward and backward: parameters, output, gradients."""
    torch.manual_seed(seed)
    net = lenet(linear)
    net(torch.zeros_like(x))
    y = net(x)
    y.square().sum().backward()
    return net, list(net.parameters()), [y], [p.grad for p in net.parameters()]


def run(args):
    """Print inferred and real shapes; return the gaps to nn.LazyLinear and nn.Linear."""
    torch.manual_seed(args.seed)
    x = torch.randn(2, 1, args.img_size, args.img_size)
    net, *ours = trial(LazyLinear, x, args.seed)
    told = infer(net, tuple(x.shape))
    widths = iter(shape[-1] for shape in told[6:12:2])  # D of the three linear layers
    others = [trial(nn.LazyLinear, x, args.seed)]
    others.append(trial(lambda n_out: nn.Linear(next(widths), n_out), x, args.seed))
    wrong = 0
    for layer, shape in zip(net, told, strict=True):
        x = layer(x)
        wrong += tuple(x.shape) != shape
        count = sum(parameter.numel() for parameter in layer.parameters())
        row = {"layer": type(layer).__name__, "inferred": shape, "real": tuple(x.shape)}
        print(line(row | {"parameters": count}), file=sys.stderr if args.smoke else sys.stdout)
    metrics = {"wrong_shapes": wrong}
    for key, at in (("weight_gap", 0), ("output_gap", 1), ("grad_gap", 2)):
        metrics[key] = max(gap(ours[at], theirs[at]) for _, *theirs in others)
    return metrics


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
    add("--img_size", type=at_least(12, 1025), default=28, help="side of the images")
    add("--seed", type=at_least(0), default=0, help="fixes weights and images")
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
