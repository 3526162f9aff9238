# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Magnitude pruning: most weights of a trained net can be set to zero, the small ones first.

Papers: Han, Pool, Tran & Dally, "Learning both Weights and Connections for Efficient Neural
Networks", NIPS 2015, arXiv 1506.02626; Zhu & Gupta, "To prune, or not to prune: exploring the
efficacy of pruning for model compression", 2017, arXiv 1710.01878; Frankle & Carbin, "The Lottery
Ticket Hypothesis", ICLR 2019, arXiv 1803.03635.

    w <- m * w                                     (1)  after every step: what is zero stays zero
    m_i = 0 at the round(s N) smallest |w_i|       (2)  over all layers, or layer by layer
    m_c = 0 at the round(s C) smallest ||w_c||_p   (3)  ln: whole channels c of a layer
    m_i = 1 at the n largest |w_i| of each m       (4)  n:m, of m that lie side by side in a row
    s_t = s_f + (s_i - s_f) (1 - t / T)^3          (5)  cubic: from sparsity s_i to s_f in T steps
    w <- m * w_E                                   (6)  --rewind E: the weights of epoch E again
    bytes = 4 (1 - s) N + N / 8                    (7)  packed: what is left, and one bit a weight

A net is trained, pruned, trained on (this mends most of the harm), pruned further, and so on: one
--sparsity is one-shot pruning, several are iterative pruning. The learning rate of each part runs
as it did in the last epochs before the first pruning. With --rewind the survivors start that part
from what they were in an early epoch, which is the lottery ticket.

|w| is the L1 norm and the L2 norm of a single weight: both rank single weights alike, and differ
for groups alone, as in (3).

A MASK MAKES NOTHING SMALLER OR FASTER: the zeros are stored and multiplied like other numbers. So
OUT/levels.txt keeps three things apart: dense, masked (same bytes, same latency), and packed,
which is smaller on the disk by (7) but must be unpacked to run. Half of the weights in the pattern
2:4 are skipped by some GPUs, with kernels that are not used here. To be faster at once, remove
whole channels, not weights.

Shapes: B batch, C channels, S img_size, K classes, D width, N weights that may be pruned; images
(B, C, S, S) as bytes, maps (B, D, h, w), scores (B, K); a mask has the shape of its weight.
Unlike the paper: a small ResNet for LeNet, AlexNet and VGG; biases and norms are never pruned, nor
the layers of --exclude; (5) is done every 10 steps in the first half of the epochs of a level; ln
leaves one channel of a layer; the momentum starts anew at each level.
OUT/last.pt holds the zeros in place: nothing is left to be removed before it is used. A net that
--weights loads is pruned at once by --dense_epochs 0.

    python magnitude_pruning.py                          8x8 digits shipped with scikit-learn
    python magnitude_pruning.py --method ln --sparsity 0.25 0.5 --norm 2
    python magnitude_pruning.py --config lottery         iterative, back to epoch 2 each time
    python magnitude_pruning.py --config resnet20        CIFAR-10, downloaded at first use
    python magnitude_pruning.py --smoke                  seconds; exits 1 unless all BARS are met
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
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_epochs": 10, "dense_epochs": 6, "sparsity": [0.8, 0.9]}
BARS = {"dense_acc": (0.96, 1.0), "cut_acc": (0.4, 1.0), "test_acc": (0.965, 1.0)}
BARS |= {"miscounted": (0.0, 0.0), "revived": (0.0, 0.0)}
CIFAR = {"dataset": "cifar10", "n_epochs": 200, "dense_epochs": 120, "pad": 4, "flip": True}
CONFIGS = {"digits": {}, "mnist": {"dataset": "mnist", "n_epochs": 4, "dense_epochs": 2, "pad": 2}}
CONFIGS["lottery"] = {"n_epochs": 50, "sparsity": [0.5, 0.75, 0.875, 0.9375, 0.96875], "rewind": 2}
CONFIGS["resnet20"] = CIFAR | {"batch_size": 128, "depths": [3, 3, 3]}
CONFIGS["resnet18_cifar"] = CIFAR | {"batch_size": 128, "depths": [2, 2, 2, 2], "width": 64}


# --- model ---------------------------------------------------------------------------------------
# Differs from vision/resnet.py
class BasicBlock(nn.Module):
    """Maps (B, n_in, h, w) -> (B, n, h / stride, w / stride)."""

    def __init__(self, n_in, n, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n)
        self.conv2 = nn.Conv2d(n, n, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n)
        other = [nn.Conv2d(n_in, n, 1, stride, bias=False), nn.BatchNorm2d(n)]
        self.downsample = nn.Sequential(*(other if n_in != n or stride != 1 else []))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu_()
        return (self.bn2(self.conv2(y)) + self.downsample(x)).relu_()


# Differs from vision/resnet.py
class ResNet(nn.Module):
    """Images (B, C, S, S) -> scores (B, K); each stage has its depth and twice the width."""

    def __init__(self, depths, width, channels, n_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        n_in = width
        for i, depth in enumerate(depths):
            n = width * 2**i
            blocks = [BasicBlock(n_in, n, 2 if i else 1)]
            blocks += [BasicBlock(n, n, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            n_in = n
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu_()
        for part in [*self.children()][2:-1]:
            x = part(x)  # (B, D, h, w)
        return self.fc(x.mean((2, 3)))  # (B, K)


class Kept(dict):  # name -> tensor, as a part of the checkpoint
    def state_dict(self):
        return dict(self)

    def load_state_dict(self, saved):
        for name, value in self.items():
            value.copy_(saved[name])


# --- the idea ------------------------------------------------------------------------------------
def prunable(model, exclude=()):
    """Name -> weight of every convolution and linear layer but those in or below exclude."""
    layers = [(k, m) for k, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    out = tuple(f"{part}." for part in exclude)
    return {f"{k}.weight": m.weight for k, m in layers if not f"{k}.".startswith(out)}


def all_but_smallest(sizes, k):
    """Masks of the tensors sizes: 0 at the k smallest of all their entries, or at all that are
    negative if these are more. Of equal ones the first ones go, so that k is met exactly."""
    flat = torch.cat([size.flatten() for size in sizes])  # (N,)
    k = max(k, int((flat < 0).sum()))
    bar = flat.kthvalue(max(k, 1)).values
    keep, ties = flat > bar, (flat == bar).nonzero()[:, 0]
    keep[ties[k - len(flat) + int(keep.sum()) + len(ties) :]] = True
    parts = keep.split([size.numel() for size in sizes])
    return [part.view(size.shape) for part, size in zip(parts, sizes, strict=True)]


def channel_mask(w, mask, sparsity, norm, dim):
    """Mask of w, 0 in whole channels along dim; those that mask has left out stay so."""
    others = [d for d in range(w.ndim) if d != dim]
    size = torch.linalg.vector_norm(w, norm, others, keepdim=True)  # (C, 1, 1, 1)
    size = size.where(mask.sum(others, keepdim=True) > 0, -1.0)
    k = min(round(sparsity * w.shape[dim]), w.shape[dim] - 1)
    return all_but_smallest([size], k)[0].expand_as(w).clone()  # eq. (3)


def n_of_m_mask(w, n, m):
    """Mask of w that leaves n of every m weights of a row, whose length divides by m."""
    best = w.abs().reshape(-1, m).topk(n, 1).indices  # (N / m, n)
    mask = torch.zeros(w.numel() // m, m, dtype=torch.bool, device=w.device)
    return mask.scatter_(1, best, True).view(w.shape)  # eq. (4)


@torch.no_grad()
def prune(weights, masks, sparsity, method="global", norm=1, dim=0, nm=(2, 4)):
    """Masks, name -> 0 or 1, of a sparsity in [0, 1); what masks has at 0 stays 0."""
    if method == "ln":
        return {k: channel_mask(w, masks[k], sparsity, norm, dim) for k, w in weights.items()}
    if method == "nm":
        return {k: n_of_m_mask(w, *nm) for k, w in weights.items()}
    size = torch.rand_like if method == "random" else torch.abs
    groups = [[k] for k in weights] if method == "local" else [[*weights]]
    found = {}
    for names in groups:
        k = round(sparsity * sum(weights[name].numel() for name in names))
        sizes = [size(weights[name]).where(masks[name], -1.0) for name in names]
        found |= zip(names, all_but_smallest(sizes, k), strict=True)  # eq. (2)
    return found


@torch.no_grad()
def apply_masks(weights, masks):
    """Set to zero, in place, what a step has moved: momentum and weight decay move all of them."""
    torch._foreach_mul_([*weights.values()], [masks[name] for name in weights])  # eq. (1)


def cubic(s_i, s_f, share):
    return s_f + (s_i - s_f) * (1 - min(share, 1.0)) ** 3  # eq. (5)


# --- data ----------------------------------------------------------------------------------------
CHANNELS = {"digits": 1, "mnist": 1, "fashion_mnist": 1, "cifar10": 3}


def load_data(args):
    """Return (x, y) to learn from and to be tested on: bytes x (N, C, S, S), on the device."""
    if args.dataset == "digits":
        from sklearn.datasets import load_digits

        x, y = map(torch.from_numpy, load_digits(return_X_y=True))
        order, n = torch.randperm(len(x)), 1437
        x, y = x[order].view(-1, 1, 8, 8) * 255 / 16, y[order]
    else:
        from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

        read = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "cifar10": CIFAR10}[args.dataset]
        try:
            parts = [read(args.data_root, train=part, download=True) for part in (True, False)]
        except Exception as error:  # whatever the files hold
            where = f"--dataset {args.dataset}: cannot be read from --data_root {args.data_root}"
            fail(f"{where} nor downloaded; --dataset digits needs neither ({error!r})")
        x = torch.cat([torch.as_tensor(part.data) for part in parts])
        y = torch.cat([torch.as_tensor(part.targets) for part in parts])
        x, n = x.view(*x.shape[:3], -1).movedim(3, 1), len(parts[0])
    x, y = x.round().byte().to(args.device), y.to(args.device)
    return (x[:n], y[:n]), (x[n:], y[n:])


# Copied from vision/resnet.py
def augment(x, pad, flip):
    """Bytes x (B, C, S, S), each image moved by up to pad pixels, and half of them mirrored."""
    B, _, S, _ = x.shape
    move = torch.randint(2 * pad + 1, (2, B, 1), device=x.device)
    rows, cols = move + torch.arange(S, device=x.device)  # (B, S)
    at = torch.arange(B, device=x.device)[:, None, None], rows[:, :, None], cols[:, None]
    x = F.pad(x, [pad] * 4).permute(0, 2, 3, 1)[at].permute(0, 3, 1, 2)  # (B, C, S, S)
    return x.where(torch.rand(B, 1, 1, 1, device=x.device) < 0.5, x.flip(3)) if flip else x


# --- train, evaluate, smoke ----------------------------------------------------------------------
def build(args):
    """Return the model, on the device, with --weights if there are any."""
    model = ResNet(args.depths, args.width, CHANNELS[args.dataset], 10)
    if args.weights:
        load_weights(args.weights, model)
    return model.to(args.device)


def stage(epoch, args):
    """Number of the level an epoch belongs to, 0 for dense; where that part begins and ends."""
    dense, n = min(args.dense_epochs, args.n_epochs - 1), len(args.sparsity)
    ends = [dense + i * (args.n_epochs - dense) // n for i in range(n + 1)]
    at = sum(end <= epoch for end in ends)
    return at, ends[at - 1] if at else 0, ends[at]


def begin_level(model, optimizer, weights, masks, test):
    """Let the masks act; return the accuracy before anything is mended."""
    apply_masks(weights, masks)
    optimizer.state.clear()
    return {"cut_acc": evaluate(model, *test)["test_acc"]}


def train(args):
    """Train and prune from scratch, or on from OUT/last.pt; return the metrics of the test set."""
    torch.manual_seed(args.seed)
    (x, y), test = load_data(args)
    model, early = build(args), build(args)
    weights = prunable(model, args.exclude)
    masks = Kept({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})
    rule = {"momentum": args.momentum, "weight_decay": args.weight_decay, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), args.lr, **rule)
    state = {"model": model, "optimizer": optimizer, "masks": masks, "early": early}
    epoch = begin(args, state)
    how, whole = (args.method, args.norm, args.dim, args.nm), stage(0, args)[2]
    n = max(1, len(x) // args.batch_size)  # whole batches: batch norm cannot do with a single image
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            level, first, last = stage(epoch, args)
            s_i, s_f = [0.0, 0.0, *args.sparsity][level : level + 2]
            row = {"level": s_f}
            if epoch == args.rewind:
                early.load_state_dict(model.state_dict())
            if level and epoch == first:
                if args.schedule == "stepwise":
                    masks.update(prune(weights, masks, s_f, *how))
                if args.rewind is not None:
                    model.load_state_dict(early.state_dict())  # eq. (6)
                row |= begin_level(model, optimizer, weights, masks, test)
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(x)).to(args.device).split(args.batch_size)[:n]
            for at, i in enumerate(tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None)):
                left = last - epoch - (at + 1) / n
                share = left / max(whole, last - first)
                optimizer.param_groups[0]["lr"] = args.lr * (0.5 - 0.5 * math.cos(math.pi * share))
                loss = F.cross_entropy(model(augment(x[i], args.pad, args.flip) / 255), y[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if level and args.schedule == "cubic" and (at % 10 == 0 or at + 1 == n):
                    s = cubic(s_i, s_f, 2 - 2 * left / (last - first))
                    masks.update(prune(weights, masks, s, *how))
                apply_masks(weights, masks)
                total += loss.detach()
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            keep = torch.cat([mask.flatten() for mask in masks.values()])
            row |= {"loss": total.item() / n, "sparsity": 1 - keep.sum().item() / len(keep)}
            log(args, epoch=epoch, **row, **evaluate(model, *test))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    times = latencies([early, model], test[0][:64] / 255)
    return tabulate(args, model, masks, dict(zip(["dense_ms", "masked_ms"], times, strict=True)))


@torch.inference_mode()
def evaluate(model, x, y):
    model.eval()
    z = torch.cat([model(part / 255) for part in x.split(250)])  # (N, K)
    acc = (z.argmax(1) == y).float().mean()
    return {"test_loss": F.cross_entropy(z, y).item(), "test_acc": acc.item()}


@torch.inference_mode()
def latencies(nets, x):
    """Median milliseconds of each net on x; they take turns, as the pace of a machine changes."""
    times = torch.empty(60, len(nets))
    for row in times:
        for at, net in enumerate(nets):
            start = time.perf_counter()
            net.eval()(x).sum().item()  # waits for the device
            row[at] = time.perf_counter() - start
    return (1e3 * times[10:].median(0).values).tolist()


def tabulate(args, model, masks, times):
    """OUT/levels.txt and .png, a row for each level; return the last one's numbers."""
    P, N = (sum(p.numel() for p in parts) for parts in (model.parameters(), masks.values()))
    keys = ["sparsity", "of_all", "cut_acc", "test_acc", "dense_kb", "masked_kb", "packed_kb"]
    keys, rows = [*keys, *times], {}
    for text in Path(args.out, "log.jsonl").read_text(encoding="utf-8").splitlines():
        new = json.loads(text) | times
        row, s = rows.setdefault(new["level"], {"cut_acc": math.nan}), new["sparsity"]
        row |= new | {"of_all": s * N / P, "dense_kb": P / 250, "masked_kb": P / 250}
        row["packed_kb"] = (4 * (P - s * N) + (N / 8 if s else 0)) / 1000  # eq. (7)
    table = ["".join(f"{row[key]:>10.4g}" for key in keys) for row in rows.values()]
    text = "\n".join(["".join(f"{key:>10}" for key in keys), *table, ""])
    Path(args.out, "levels.txt").write_text(text, encoding="utf-8")
    draw(args, masks, rows.values())
    found = {"empty_layers": sum(not mask.any() for mask in masks.values())}
    return {key: row[key] for key in keys} | found | {"dense_acc": rows.get(0.0, row)["test_acc"]}


def draw(args, masks, rows):
    """OUT/levels.png: accuracy at each level, as cut and as mended; zeros of each layer."""
    from matplotlib.figure import Figure

    figure = Figure((12, 1 + 0.3 * len(masks)), layout="constrained")
    axes = figure.add_subplot(121, xlabel="sparsity", ylabel="test accuracy")
    for key in "cut_acc", "test_acc":
        axes.plot([r["sparsity"] for r in rows], [r[key] for r in rows], marker=".", label=key)
    axes.legend()
    axes = figure.add_subplot(122, xlabel="share of zeros", xlim=(0, 1))
    axes.barh([*masks][::-1], [1 - m.float().mean().item() for m in masks.values()][::-1])
    figure.savefig(Path(args.out, "levels.png"))


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        last = torch.load(Path(args.out, "last.pt"), map_location="cpu", weights_only=True)
    keep = torch.cat([mask.flatten() for mask in last["masks"].values()])
    w = torch.cat([last["model"][name].flatten() for name in last["masks"]])
    metrics["miscounted"] = abs((~keep).sum().item() - round(args.sparsity[-1] * len(keep)))
    return report(args, **metrics, revived=w[~keep].count_nonzero())


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


def load_weights(path, model, parts=("ema", "model", "generator")):
    """Load, strictly, the first of parts that a checkpoint of ours has, or a bare state dict."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = next((saved[part] for part in parts if part in saved), saved)
        theirs = {key: tuple(value.shape) for key, value in saved.items()}
    except OSError as error:
        fail(f"--weights {path}: cannot be read ({error.strerror}); name an existing file")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--weights {path}: holds no state dict; name a file made by torch.save of one")
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        key = next((k for k in ours | theirs if ours.get(k) != theirs.get(k)), error)
        there, here = theirs.get(key, "absent"), ours.get(key, "absent")
        fail(f"--weights {path}: {key} is {there} there but {here} here; set the flags to match")


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
    add("--n_epochs", type=at_least(1), default=20, help="passes over the training set")
    add("--dense_epochs", type=at_least(0), default=10, help="of these, before the first pruning")
    add("--batch_size", type=at_least(2), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=0.1, help="largest learning rate")
    add("--momentum", type=at_least(0.0, 1.0), default=0.9, help="decay of the velocity")
    add("--weight_decay", type=at_least(0.0), default=5e-4, help="pull of the weights to zero")
    add("--config", choices=[*CONFIGS], default="digits", help="named set of defaults")
    add(
        "--sparsity",
        type=at_least(0.0, 1.0),
        nargs="+",
        default=[0.5, 0.8, 0.9, 0.95, 0.98],
        help="shares of zeros, one level after the other",
    )
    methods = ["global", "local", "random", "ln", "nm"]
    add("--method", choices=methods, default="global", help="eq. (2) over all or each layer, ...")
    add("--norm", type=int, choices=[1, 2], default=1, help="ln: p of the norm")
    add("--dim", type=int, choices=[0, 1], default=0, help="ln: 0 channels made, 1 channels read")
    add("--nm", type=at_least(1), nargs=2, default=[2, 4], help="nm: n weights are left of each m")
    add("--schedule", choices=["stepwise", "cubic"], default="stepwise", help="way to a level")
    add("--rewind", type=at_least(0), help="epoch whose weights each level starts from")
    add("--exclude", nargs="*", default=["conv1", "fc"], help="layers that stay dense")
    add("--depths", type=at_least(1), nargs="+", default=[1, 1, 1], help="blocks of each stage")
    add("--width", type=at_least(1), default=16, help="channels of the first stage")
    add("--dataset", choices=[*CHANNELS], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets")
    add("--pad", type=at_least(0), default=0, help="pixels that a training image may be moved")
    add("--flip", action="store_true", help="mirror half of the training images")
    add("--weights", help="state dict or checkpoint to load")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    typed = parser.parse_args(argv)
    parser.set_defaults(**CONFIGS[typed.config])
    if typed.smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    n, m = args.nm
    if n >= m:
        fail(f"--nm {n} {m}: leaves all weights; the first must be below the second")
    if args.method == "nm":
        args.sparsity = [1 - n / m]
    with torch.device("meta"):
        model = build(argparse.Namespace(**vars(args) | {"device": "meta", "weights": None}))
    for part in args.exclude:
        if len(prunable(model, [part])) == len(prunable(model)):
            fail(f"--exclude {part}: no layer; there are {' '.join(prunable(model))}")
    rows = {name: w[0].numel() for name, w in prunable(model, args.exclude).items()}
    if not rows:
        fail(f"--exclude {' '.join(args.exclude)}: nothing is left to prune; exclude less")
    if args.method == "nm" and (odd := [name for name, row in rows.items() if row % m]):
        fail(f"--nm {n} {m}: the rows of {odd[0]} do not divide by {m}; add it to --exclude")
    if args.method == "nm" and args.schedule == "cubic":
        fail("--schedule cubic: --method nm has one sparsity alone; use stepwise")
    if sorted({*args.sparsity}) != args.sparsity or args.sparsity[0] == 0:
        fail("--sparsity: the levels must rise from above 0; sort them")
    if (args.rewind or 0) > args.dense_epochs:
        fail(f"--rewind {args.rewind}: is after --dense_epochs {args.dense_epochs}; lower it")
    return args


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
