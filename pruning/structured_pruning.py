# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Structured pruning: whole channels, heads, neurons and blocks are cut out: the net is smaller.

Papers: Li, Kadav, Durdanovic, Samet & Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017,
arXiv 1608.08710 (l1); Liu et al., "Learning Efficient Convolutional Networks through Network
Slimming", ICCV 2017, arXiv 1708.06519 (bn_gamma); Molchanov et al., "Importance Estimation for
Neural Network Pruning", CVPR 2019, arXiv 1906.10771 (taylor); Michel, Levy & Neubig, "Are Sixteen
Heads Really Better than One?", NeurIPS 2019, arXiv 1905.10650 (heads); Fang et al., "DepGraph:
Towards Any Structural Pruning", CVPR 2023, arXiv 2301.12900 (what must go together).

    w' = w[keep],  v' = v[:, keep]       (1)  a unit: rows of the layers before, columns after
    a_u = sum_g ||w_u||_p^p              (2)  l1, l2: over the rows that make unit u
    a_u = sum_g |gamma_u|                (3)  bn_gamma: the factors of its batch norms
    a_u = sum_g |sum_i w_i dL/dw_i|      (4)  taylor: what L would lose, to first order
    a_b = 1 - cos(x, f_b(x))             (5)  blocks: how much block b turns what goes in
    the round(s n) lowest of n units go  (6)  in each group; one at least is left

Units: inner, the channels between the convolutions of a residual block; stream, the channels that
all blocks of a stage add to, which must leave many layers g at once; heads of attention, whose size
stays; neurons of an MLP; blocks as a whole, where what comes out has the shape of what goes in. A
net is trained, cut, trained on and cut further.

A MASK MAKES NOTHING SMALLER OR FASTER, cutting does: OUT/levels.txt keeps three things apart:
dense, masked (the same units set to zero), and removed. The last two compute the same.

The buffer plan (U,) tells which of the U units of the dense net are left. It travels in the state
dict, and a net that loads one is first cut to it: --weights takes dense nets and cut ones alike.

Shapes: B batch, C channels, S img_size, K classes, D width, T tokens; images (B, C, S, S) as bytes,
maps (B, D, h, w), scores (B, K).
Unlike the papers: small nets; one share s for all groups; the momentum starts anew at each level;
(4) takes the place of the slope of a gate on each head, to which it is equal for (1).

    python structured_pruning.py                         8x8 digits shipped with scikit-learn
    python structured_pruning.py --units inner stream --score taylor
    python structured_pruning.py --config vit            heads and neurons of a transformer
    python structured_pruning.py --config resnet20       CIFAR-10, downloaded at first use
    python structured_pruning.py --smoke                 seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import copy
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_epochs": 10, "dense_epochs": 6, "sparsity": [0.5]}
BARS = {"dense_acc": (0.96, 1.0), "test_acc": (0.95, 1.0)}
BARS |= {"removed_share": (0.47, 0.48), "cut_gap": (0.0, 1e-5)}
CIFAR = {"dataset": "cifar10", "n_epochs": 200, "dense_epochs": 120, "pad": 4, "flip": True}
CONFIGS = {"digits": {}, "mnist": {"dataset": "mnist", "n_epochs": 4, "dense_epochs": 2, "pad": 2}}
CONFIGS["vit"] = {"model": "vit", "units": ["heads", "neurons"], "depths": [4], "width": 48}
CONFIGS["vit"] |= {"optimizer": "adamw", "lr": 6e-3, "weight_decay": 0.05}
CONFIGS["resnet20"] = CIFAR | {"batch_size": 128, "depths": [3, 3, 3]}
CONFIGS["resnet18_cifar"] = CIFAR | {"batch_size": 128, "depths": [2, 2, 2, 2], "width": 64}
KINDS = ["inner", "stream", "heads", "neurons", "blocks"]


# --- model ---------------------------------------------------------------------------------------
# Copied from pruning/magnitude_pruning.py
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


# Copied from pruning/magnitude_pruning.py
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


class TransformerBlock(nn.Module):
    """Tokens (B, T, D) -> (B, T, D); the heads are as many as there are rows for."""

    def __init__(self, dim, heads):
        super().__init__()
        self.head_dim = dim // heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        y, split = self.norm1(x), (-1, self.head_dim)
        q, k, v = (part(y).unflatten(2, split).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, T, head_dim)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    """Images (B, C, S, S) -> scores (B, K)."""

    def __init__(self, depth, dim, heads, patch, side, channels, n_classes):
        super().__init__()
        self.patch = nn.Conv2d(channels, dim, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, n_classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT + self.place  # (B, T, D)
        return self.fc(self.norm(self.blocks(x)).mean(1))  # (B, K)


# --- the idea ------------------------------------------------------------------------------------
class Group(NamedTuple):
    """n units; members: the name of a tensor, its dimension along them, its entries per unit."""

    kind: str
    n: int
    members: list


def find_groups(model):
    """The groups of a ResNet with basic blocks (torchvision's as well) or of a SmallViT."""
    modules, tensors, found = dict(model.named_modules()), model.state_dict(), []

    def made(*layers, width=1):
        names = [f"{layer}.{key}" for layer in layers for key in modules[layer].state_dict()]
        return [(name, 0, width) for name in names if tensors[name].ndim]

    def read(layer, width=1):
        return [(f"{layer}.weight", 1, width)]

    stream = made("conv1", "bn1") if "conv1" in modules else []
    for at, block in modules.items():
        if hasattr(block, "conv2"):
            found.append(("inner", made(f"{at}.conv1", f"{at}.bn1") + read(f"{at}.conv2")))
            stream += read(f"{at}.conv1")
            if block.downsample:
                found.append(("stream", stream + read(f"{at}.downsample.0")))
                stream = made(f"{at}.downsample.0", f"{at}.downsample.1")
            else:
                found.append(("blocks", made(f"{at}.bn2", width=block.bn2.num_features)))
            stream += made(f"{at}.conv2", f"{at}.bn2")
        if hasattr(block, "head_dim"):
            n, parts = block.head_dim, [f"{at}.{part}" for part in "qkv"]
            found.append(("heads", made(*parts, width=n) + read(f"{at}.proj", n)))
            found.append(("neurons", made(f"{at}.fc1") + read(f"{at}.fc2")))
            found.append(("blocks", made(f"{at}.proj", f"{at}.fc2", width=len(block.proj.bias))))
    found += [("stream", stream + read("fc"))] if stream else []
    return [Group(kind, len(tensors[on[0][0]]) // on[0][2], on) for kind, on in found]


def with_plan(model):
    """The dense model with a buffer plan of all of its units, ready to load that of another."""
    model.groups = find_groups(model)
    model.register_buffer("plan", torch.ones(sum(g.n for g in model.groups), dtype=torch.bool))

    def cut_first(model, saved, prefix, *rest):
        shrink(model, saved.setdefault("plan", model.plan).to(model.plan.device))

    model.register_load_state_dict_pre_hook(cut_first)
    return model


def walk_groups(model, plan):
    """For each group: what of its n units is left in the model, and in plan (U,); its members that
    are still there: name, tensor, dimension, entries per unit."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    sizes = [group.n for group in model.groups]
    for group, *parts in zip(model.groups, model.plan.split(sizes), plan.split(sizes), strict=True):
        members = [(name, tensors[name], *how) for name, *how in group.members if name in tensors]
        if members:
            yield group.kind, *parts, members


def entries(units, width):
    """Where units (n,) of width entries each lie along a dimension: (n width,)."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


@torch.no_grad()
def shrink(model, plan):
    """Remove, for good, each unit that is 0 in plan (U,)."""
    if plan.shape != model.plan.shape:
        return  # strict loading will tell
    for kind, old, new, members in walk_groups(model, plan):
        left = new[old].nonzero()[:, 0]  # counted among those still there
        if kind == "blocks" and not new.any():
            parent, _, name = members[0][0].rsplit(".", 2)[0].rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
        elif len(left) < old.sum():
            for _, tensor, dim, width in members:
                tensor.set_(tensor.index_select(dim, entries(left, width)))  # eq. (1)
                tensor.grad = None
    model.plan &= plan
    for layer in model.modules():  # what a layer tells of itself
        if isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels = layer.weight.shape[:2]
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = len(layer.weight)


@torch.no_grad()
def set_to_zero(model, plan):
    """Mask what shrink removes: the rows that make each unit that is 0 in plan (U,)."""
    for _, old, new, members in walk_groups(model, plan):
        gone = (~new[old]).nonzero()[:, 0]
        for _, tensor, dim, width in members:
            if dim == 0:
                tensor.index_fill_(0, entries(gone, width), 0.0)


@torch.no_grad()
def worth(members, n, score):
    """How much each of the n units of a group is worth, (n,)."""
    if score == "random":
        return torch.rand(n)
    total = torch.zeros(n)
    for name, w, dim, _ in members:
        part = w.transpose(0, dim).reshape(n, -1)
        if score == "taylor" and w.grad is not None:
            slope = w.grad.transpose(0, dim).reshape(n, -1)
            total += (part * slope).sum(1).abs().cpu()  # eq. (4)
        elif score == "bn_gamma" and name.endswith("weight") and w.ndim == 1:
            total += part.abs().sum(1).cpu()  # eq. (3)
        elif score in ("l1", "l2") and dim == 0 and w.ndim > 1:
            total += part.abs().pow(int(score[1])).sum(1).cpu()  # eq. (2)
    return total


@torch.no_grad()
def turns(model, names, x):
    """How far each block of these names turns its input, for images x (B, C, S, S)."""
    found, hooks = {}, []
    for name in names:

        def hook(block, given, made, name=name):
            cos = F.cosine_similarity(given[0].flatten(1), made.flatten(1))
            found[name] = 1 - cos.mean().item()  # eq. (5)

        hooks.append(model.get_submodule(name).register_forward_hook(hook))
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def choose_units(model, sparsity, units, score, x, y):
    """The plan (U,) that leaves a share 1 - sparsity of these units; they are judged on images x
    (B, C, S, S) of classes y (B,)."""
    model.eval().zero_grad()
    if score == "taylor":
        F.cross_entropy(model(x), y).backward()
    plan, blocks = model.plan.clone(), {}
    for kind, old, new, members in walk_groups(model, plan):  # new is a view of plan
        if kind == "blocks":
            blocks[members[0][0].rsplit(".", 2)[0]] = new
        elif kind in units:
            n, left = len(new), int(old.sum())
            k = left - n + min(round(sparsity * n), n - 1)
            worst = worth(members, left, score).argsort()[: max(k, 0)].to(new.device)
            new[new.nonzero()[worst, 0]] = False  # eq. (6)
    if "blocks" in units:
        n = sum(group.kind == "blocks" for group in model.groups)
        change = turns(model, blocks, x)
        for name in sorted(blocks, key=change.get)[: max(0, len(blocks) - n + round(sparsity * n))]:
            blocks[name][:] = False
    return plan


# --- data ----------------------------------------------------------------------------------------
CHANNELS = {"digits": 1, "mnist": 1, "fashion_mnist": 1, "cifar10": 3}
SIDES = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}


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
    channels = CHANNELS[args.dataset]
    if args.model == "vit":
        size = args.patch_size, SIDES[args.dataset]
        model = SmallViT(sum(args.depths), args.width, args.heads, *size, channels, 10)
    else:
        model = ResNet(args.depths, args.width, channels, 10)
    model = with_plan(model)
    if args.weights:
        load_weights(args.weights, model)
    return model.to(args.device)


# Copied from pruning/magnitude_pruning.py
def stage(epoch, args):
    """Number of the level an epoch belongs to, 0 for dense; where that part begins and ends."""
    dense, n = min(args.dense_epochs, args.n_epochs - 1), len(args.sparsity)
    ends = [dense + i * (args.n_epochs - dense) // n for i in range(n + 1)]
    at = sum(end <= epoch for end in ends)
    return at, ends[at - 1] if at else 0, ends[at]


# Differs from pruning/magnitude_pruning.py
def begin_level(model, optimizer, sparsity, data, test, args):
    """Cut down to a level; return the accuracy before anything is mended."""
    x, y = (part[:512] for part in data)
    plan = choose_units(model, sparsity, args.units, args.score, x / 255, y)
    shrink(model, plan)
    optimizer.state.clear()
    return {"cut_acc": evaluate(model, *test)["test_acc"]}


def train(args):
    """Train and prune from scratch, or on from OUT/last.pt; return the metrics of the test set."""
    torch.manual_seed(args.seed)
    (x, y), test = load_data(args)
    model = build(args)
    rule = {"weight_decay": args.weight_decay, "fused": True}
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum, **rule)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), args.lr, **rule)
    state = {"model": model, "optimizer": optimizer}
    epoch = begin(args, state)
    whole = stage(0, args)[2]
    n = max(1, len(x) // args.batch_size)  # whole batches: batch norm cannot do with a single image
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            level, first, last = stage(epoch, args)
            row = {"level": [0.0, *args.sparsity][level]}
            if level and epoch == first:
                row |= begin_level(model, optimizer, row["level"], (x, y), test, args)
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(x)).to(args.device).split(args.batch_size)[:n]
            for at, i in enumerate(tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None)):
                share = (last - epoch - (at + 1) / n) / max(whole, last - first)
                optimizer.param_groups[0]["lr"] = args.lr * (0.5 - 0.5 * math.cos(math.pi * share))
                loss = F.cross_entropy(model(augment(x[i], args.pad, args.flip) / 255), y[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach_()  # a graph kept alive would insist on the old sizes
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            row |= {"loss": total.item() / n} | size(model, x[:1] / 255)
            log(args, epoch=epoch, **row, **evaluate(model, *test))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return tabulate(args, model, test[0][:64] / 255)


# Copied from pruning/magnitude_pruning.py
@torch.inference_mode()
def evaluate(model, x, y):
    model.eval()
    z = torch.cat([model(part / 255) for part in x.split(250)])  # (N, K)
    acc = (z.argmax(1) == y).float().mean()
    return {"test_loss": F.cross_entropy(z, y).item(), "test_acc": acc.item()}


# Copied from pruning/magnitude_pruning.py
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


@torch.inference_mode()
def size(model, x):
    """Parameters of the model, and multiplications for an image x (1, C, S, S)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    n = sum(p.numel() for p in model.parameters())
    return {"params": n, "macs": counter.get_total_flops() // 2}


# Differs from pruning/magnitude_pruning.py
def tabulate(args, model, x):
    """OUT/levels.txt and .png, a row for each level and the last one masked; return its numbers."""
    dense = build(argparse.Namespace(**vars(args) | {"weights": None}))
    masked = copy.deepcopy(dense)
    set_to_zero(masked, model.plan)
    nets, rows = {"dense": dense, "masked": masked, "removed": model}, {}
    for text in Path(args.out, "log.jsonl").read_text(encoding="utf-8").splitlines():
        new = json.loads(text)
        rows[new["level"]] = rows.get(new["level"], {"cut_acc": math.nan}) | new
    keys = ["level", "params", "macs", "cut_acc", "test_acc"]
    lines = [keys, *([f"{row[key]:.4g}" for key in keys] for row in rows.values())]
    lines += [[], ["last level", "params", "macs", "kb", "ms"]]
    times = latencies([*nets.values()], x)
    for (name, net), ms in zip(nets.items(), times, strict=True):
        what = [*size(net, x[:1]).values()]
        lines.append([name, *map(str, what), f"{what[0] / 250:.4g}", f"{ms:.4g}"])
    text = "\n".join("".join(f"{word:>12}" for word in words) for words in lines)
    Path(args.out, "levels.txt").write_text(f"{text}\n", encoding="utf-8")
    draw(args, model, rows.values())
    row = [*rows.values()][-1]
    found = {key: row[key] for key in keys} | dict(
        zip([f"{k}_ms" for k in nets], times, strict=True)
    )
    share = 1 - row["params"] / size(dense, x[:1])["params"]
    return found | {"removed_share": share, "dense_acc": rows.get(0.0, row)["test_acc"]}


def draw(args, model, rows):
    """OUT/levels.png: accuracy against multiplications; the share of each group that is left."""
    from matplotlib.figure import Figure

    figure = Figure((12, 1 + 0.3 * len(model.groups)), layout="constrained")
    axes = figure.add_subplot(121, xlabel="multiplications", ylabel="test accuracy")
    for key in "cut_acc", "test_acc":
        axes.plot([r["macs"] for r in rows], [r[key] for r in rows], marker=".", label=key)
    axes.legend()
    axes = figure.add_subplot(122, xlabel="share that is left", xlim=(0, 1))
    parts = model.plan.split([group.n for group in model.groups])
    names = [f"{at} {group.kind}" for at, group in enumerate(model.groups)]
    axes.barh(names[::-1], [part.float().mean().item() for part in parts][::-1])
    figure.savefig(Path(args.out, "levels.png"))


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly, of both kinds of nets."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics, gaps = train(args), []
    x = torch.rand(4, CHANNELS[args.dataset], SIDES[args.dataset], SIDES[args.dataset])
    for args.model in "resnet", "vit":
        model = build(args).eval()
        masked, x = copy.deepcopy(model), x.to(args.device)
        plan = choose_units(model, 0.5, KINDS, "random", x, None)
        shrink(model, plan)
        set_to_zero(masked, plan)
        gaps.append((model(x) - masked(x)).abs().max().item())
    return report(args, **metrics, cut_gap=max(gaps))


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
    add("--optimizer", choices=["sgd", "adamw"], default="sgd", help="rule of the steps")
    add("--momentum", type=at_least(0.0, 1.0), default=0.9, help="sgd: decay of the velocity")
    add("--weight_decay", type=at_least(0.0), default=5e-4, help="pull of the weights to zero")
    add("--config", choices=[*CONFIGS], default="digits", help="named set of defaults")
    add(
        "--sparsity",
        type=at_least(0.0, 1.0),
        nargs="+",
        default=[0.25, 0.5, 0.75],
        help="shares of the units that are cut, one level after the other",
    )
    add("--units", choices=KINDS, nargs="+", default=["inner"], help="what is cut")
    scores = ["l1", "l2", "bn_gamma", "taylor", "random"]
    add("--score", choices=scores, default="l1", help="eq. (2), (2), (3), (4), or a lottery")
    add("--model", choices=["resnet", "vit"], default="resnet", help="kind of net")
    add("--depths", type=at_least(1), nargs="+", default=[1, 1, 1], help="blocks of each stage")
    add("--width", type=at_least(1), default=16, help="channels of the first stage; D of a vit")
    add("--heads", type=at_least(1), default=4, help="vit: heads of attention")
    add("--patch_size", type=at_least(1), default=2, help="vit: side of a token")
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
    if sorted({*args.sparsity}) != args.sparsity or args.sparsity[0] == 0:
        fail("--sparsity: the levels must rise from above 0; sort them")
    if args.width % args.heads or SIDES[args.dataset] % args.patch_size:
        fail("--width, --patch_size: must share out among --heads, and divide the side of an image")
    with torch.device("meta"):
        model = build(argparse.Namespace(**vars(args) | {"device": "meta", "weights": None}))
    there = {group.kind for group in model.groups}
    if odd := {*args.units} - there:
        fail(f"--units {min(odd)}: this {args.model} has none; there are {' '.join(sorted(there))}")
    if args.score == "bn_gamma" and not {*args.units} <= {"inner", "stream", "blocks"}:
        fail("--score bn_gamma: heads and neurons have no batch norm; take l1 or taylor")
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
