# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Data-aware pruning: attention over groups of channels says which, an agent says how many stay.

Papers: Yang, Zhai, Xiang, Wu, Shi & Wu, "Data-Aware Adaptive Pruning Model Compression Algorithm
Based on a Group Attention Mechanism and Reinforcement Learning", IEEE Access 10, 2022, doi
10.1109/ACCESS.2022.3188119; Williams, "Simple Statistical Gradient-Following Algorithms for
Connectionist Reinforcement Learning", Machine Learning 8, 1992 (REINFORCE).

THIS IS A RECONSTRUCTION from the abstract and from notes, not from the full text: that the layer
before tells the attention to the channels of the next, and that an agent decides how much is kept
for the data at hand, is theirs; sizes, states, reward, agent and all equations are ours.

    g_l = G softmax(W_l mean_hw(x_{l-1}) + c_l)     (1)  attention to the G groups; its mean is 1
    x_l = g_l * relu(bn(conv(x_{l-1})))             (2)  each group of channels times its own
    a_l = mean of g_l over the data                 (3)  what a group is worth to these data
    r_l ~ pi(r | s_l),  n_l = max(1, round(r_l G))  (4)  the n_l worthiest groups of layer l stay
    M = sum_l (9 S_l^2 C_l + G_l) C_{l-1} + C_L K   (5)  multiplications of a net, for an image
    n_l +- 1: the least worthy goes, the most comes (6)  until M <= s M_dense and no more would fit
    J = (R - b) sum_l log pi(r_l) + beta sum_l H    (7)  to ascend; R: accuracy on held-out images
    b <- 0.9 b + 0.1 R                              (8)  without it, R is never below 0

A net with attention is trained; the agent tries --episodes policies, each one brought to the budget
by (6) and judged with the other groups masked; what it likes best in the end is cut out for good,
and the smaller net is trained on. OUT/policies.txt compares it, before this, with one ratio for all
layers and with 20 policies by chance, at the same budget; test images have no part in the search.

A MASK MAKES NOTHING SMALLER OR FASTER, cutting does, and here both compute the same: a softmax over
what is left takes the place of (1), G being what is left. The attention stays in the net, which
needs it for every image: the small W_l are counted in (5).

The buffers keep (G,) tell which groups of the dense net are left. They travel in the state dict,
and a net that loads them is first cut to them: --weights takes dense nets and cut ones alike.

Shapes: B batch, C_l channels, S_l side, K classes, G groups of --group_size channels; images
(B, C_0, S_0, S_0) as bytes, maps (B, C_l, S_l, S_l), attention (B, G), scores (B, K). s_l is what
the agent sees of a layer: place, share of channels and of M, entropy and peak of a_l, M so far.
Unlike the paper: all that is said above; small plain nets.

    python data_aware_pruning.py                    8x8 digits shipped with scikit-learn
    python data_aware_pruning.py --target_macs 0.25 --rank l1
    python data_aware_pruning.py --config mnist     downloaded at first use
    python data_aware_pruning.py --config cifar10
    python data_aware_pruning.py --smoke            seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import copy
import functools
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
SMOKE = {"n_epochs": 12, "dense_epochs": 8}
BARS = {"dense_acc": (0.975, 1.0), "test_acc": (0.965, 1.0), "over_random": (0.05, 1.0)}
BARS |= {"macs_share": (0.47, 0.5), "cut_gap": (0.0, 1e-5)}
CONFIGS = {"digits": {}, "mnist": {"dataset": "mnist", "n_epochs": 6, "dense_epochs": 4, "pad": 2}}
CONFIGS["cifar10"] = {"dataset": "cifar10", "n_epochs": 90, "dense_epochs": 60, "pad": 4}
CONFIGS["cifar10"] |= {"widths": [64, 64, 128, 128, 256, 256], "group_size": 8}
CONFIGS["cifar10"] |= {"flip": True, "batch_size": 128}
RATIOS = [0.25, 0.5, 0.75, 1.0]


# --- model ---------------------------------------------------------------------------------------
class GroupAttention(nn.Module):
    """Maps (B, n_in, S, S) -> (B, n, S / stride, S / stride) and the attention (B, G)."""

    def __init__(self, n_in, n, stride, group_size):
        super().__init__()
        self.group_size = group_size
        self.conv = nn.Conv2d(n_in, n, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(n)
        self.attend = nn.Linear(n_in, n // group_size)
        self.register_buffer("keep", torch.ones(n // group_size, dtype=torch.bool))

    def forward(self, x, keep=None):
        """keep (G,), if given, masks groups of those that are there."""
        score = self.attend(x.mean((2, 3)))  # (B, G)
        score = score if keep is None else score.masked_fill(~keep, -math.inf)
        g = score.isfinite().sum(1, keepdim=True) * score.softmax(1)  # eq. (1)
        each = g.repeat_interleave(self.group_size, 1)[:, :, None, None]  # (B, n, 1, 1)
        return each * self.bn(self.conv(x)).relu(), g  # eq. (2)


class AttentiveNet(nn.Module):
    """Images (B, C, S, S) -> scores (B, K); the side is halved where the width grows."""

    def __init__(self, widths, channels, n_classes, group_size):
        super().__init__()
        ends = [*zip([channels, *widths], widths, strict=False)]
        strides = [1] + [1 + (n > n_in) for n_in, n in ends[1:]]
        layers = [GroupAttention(*e, s, group_size) for e, s in zip(ends, strides, strict=True)]
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(widths[-1], n_classes)
        self.register_load_state_dict_pre_hook(cut_first)

    def forward(self, x, plan=None):
        return self.look(x, plan)[0]

    def look(self, x, plan=None):
        """Scores and the attention of each layer; plan: what of each layer is not masked."""
        seen = []
        for layer, keep in zip(self.layers, plan or [None] * len(self.layers), strict=True):
            x, g = layer(x, keep)  # (B, C, S, S), (B, G)
            seen.append(g)
        return self.fc(x.mean((2, 3))), seen  # (B, K)


def cut_first(net, saved, prefix, *rest):
    """Before the net loads a state dict: remove what is not in there."""
    plan = []
    for i, layer in enumerate(net.layers):
        new = saved.setdefault(f"layers.{i}.keep", layer.keep).to(layer.keep.device)
        if new.shape != layer.keep.shape:
            return  # strict loading will tell
        plan.append(new[layer.keep])
    cut(net, plan)


# --- the idea ------------------------------------------------------------------------------------
@torch.no_grad()
def cut(net, plan):
    """Remove, for good, the groups that are False in plan: for each layer (G,) of those there."""
    before = torch.ones_like(net.layers[0].conv.weight[0, :, 0, 0], dtype=torch.bool)  # (C_0,)
    for layer, left in zip(net.layers, plan, strict=True):
        out = left.repeat_interleave(layer.group_size)  # (C,)
        layer.keep[layer.keep.clone()] = left
        layer.conv.weight.set_(layer.conv.weight[out][:, before])
        layer.attend.weight.set_(layer.attend.weight[left][:, before])
        layer.attend.bias.set_(layer.attend.bias[left])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(layer.bn, name).set_(getattr(layer.bn, name)[out])
        layer.conv.out_channels, layer.conv.in_channels = layer.conv.weight.shape[:2]
        layer.attend.out_features, layer.attend.in_features = layer.attend.weight.shape
        layer.bn.num_features = len(layer.bn.weight)
        before = out
    net.fc.weight.set_(net.fc.weight[:, before])
    net.fc.in_features = net.fc.weight.shape[1]


@torch.no_grad()
def worth_of_groups(net, x, rank):
    """For each layer what its groups are worth, (G,), mean 1; x are images of the data."""
    if rank == "attention":
        net.eval()
        return [g.mean(0).cpu() for g in net.look(x)[1]]  # eq. (3)
    groups = [layer.conv.weight.abs().unflatten(0, (-1, layer.group_size)) for layer in net.layers]
    return [(w.flatten(1).sum(1) / w.sum() * len(w)).cpu() for w in groups]


def count_macs(net, counts, side):
    """Multiplications for an image of this side if counts[l] groups of layer l are left."""
    total, n_in = 0, net.layers[0].conv.weight.shape[1]
    for layer, n in zip(net.layers, counts, strict=True):
        side = math.ceil(side / layer.conv.stride[0])
        total += (9 * side**2 * n * layer.group_size + n) * n_in
        n_in = n * layer.group_size
    return total + n_in * len(net.fc.bias)  # eq. (5)


def project(net, counts, worth, side, budget):
    """The counts, changed group by group until their multiplications meet the budget."""
    order, counts = [w.sort(descending=True).values.tolist() for w in worth], [*counts]

    def macs_with(at, step):
        return count_macs(net, [n + step * (i == at) for i, n in enumerate(counts)], side)

    while count_macs(net, counts, side) > budget:
        last = {order[i][n - 1]: i for i, n in enumerate(counts) if n > 1}
        counts[last[min(last)]] -= 1
    while True:
        more = [i for i, n in enumerate(counts) if n < len(order[i]) and macs_with(i, 1) <= budget]
        if not more:
            return counts
        counts[max(more, key=lambda i: order[i][counts[i]])] += 1  # eq. (6)


def to_plan(counts, worth, device):
    """The counts[l] worthiest groups of each layer l: a mask (G,) for each."""
    ranks = [w.argsort(descending=True).argsort() for w in worth]
    return [(rank < n).to(device) for rank, n in zip(ranks, counts, strict=True)]


class Agent(nn.Module):
    """What is seen of a layer (6,) -> scores of RATIOS."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, len(RATIOS)))

    def forward(self, net, worth, side, sample=True):
        """Go through the layers: counts of groups, sum of log pi, sum of entropies."""
        full = [len(w) for w in worth]
        whole, counts, logp, entropy = count_macs(net, full, side), [], 0.0, 0.0
        for at, w in enumerate(worth):
            p, so_far = w / w.sum(), count_macs(net, [*counts, *full[at:]], side) / whole
            share = 1 - count_macs(net, [*full[:at], 0, *full[at + 1 :]], side) / whole
            sight = [at / len(full), len(w) / max(full), share, so_far, w.max().item() - 1]
            sight.append(-(p * p.log()).sum().item() / math.log(max(2, len(w))))
            choice = torch.distributions.Categorical(logits=self.layers(torch.tensor(sight)))
            r = choice.sample() if sample else choice.logits.argmax()
            counts.append(max(1, round(RATIOS[int(r)] * len(w))))  # eq. (4)
            logp, entropy = logp + choice.log_prob(r), entropy + choice.entropy()
        return counts, logp, entropy


def policy_loss(reward, baseline, logp, entropy, beta):
    return -(reward - baseline) * logp - beta * entropy  # eq. (7)


def search(net, worth, budget, x, y, args):
    """Let an agent try policies on held-out (x, y); return counts of groups within the budget."""
    agent, baseline = Agent(), None
    optimizer = torch.optim.Adam(agent.parameters(), args.agent_lr, fused=True)
    for _ in tqdm(range(args.episodes), "search", leave=False, disable=None):
        counts, logp, entropy = agent(net, worth, x.shape[2])
        counts = project(net, counts, worth, x.shape[2], budget)
        reward = evaluate(net, x, y, to_plan(counts, worth, x.device))["test_acc"]
        baseline = reward if baseline is None else baseline
        optimizer.zero_grad()
        policy_loss(reward, baseline, logp, entropy, args.entropy).backward()
        optimizer.step()
        baseline = 0.9 * baseline + 0.1 * reward  # eq. (8)
    with torch.no_grad():
        counts = agent(net, worth, x.shape[2], sample=False)[0]
    return project(net, counts, worth, x.shape[2], budget)


# --- data ----------------------------------------------------------------------------------------
CHANNELS = {"digits": 1, "mnist": 1, "fashion_mnist": 1, "cifar10": 3}
SIDES = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}


def load_data(args):
    """Return (x, y) to learn from, to search on and to be tested on: bytes x (N, C, S, S)."""
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
    held = n - min(2000, n // 6)
    return (x[:held], y[:held]), (x[held:n], y[held:n]), (x[n:], y[n:])


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
    net = AttentiveNet(args.widths, CHANNELS[args.dataset], 10, args.group_size)
    if args.weights:
        load_weights(args.weights, net)
    return net.to(args.device)


def begin_cut(net, optimizer, data, held, test, args):
    """Search a policy, cut; return accuracies before anything is mended, at the same budget."""
    worth = worth_of_groups(net, data[0][:2000] / 255, args.rank)
    if not all(w.isfinite().all() for w in worth):
        sys.exit("stopped: the loss is not finite before the search; try a lower --lr")
    side, full = held[0].shape[2], [len(w) for w in worth]
    budget = int(args.target_macs * count_macs(net, [len(g.keep) for g in net.layers], side))
    counts = search(net, worth, budget, *held, args)
    same = [[max(1, round(i / 100 * n)) for n in full] for i in range(101)]
    same = max(c for c in same if count_macs(net, c, side) <= budget)
    chance = torch.tensor(RATIOS)[torch.randint(len(RATIOS), (20, len(full)))] * torch.tensor(full)
    policies, row = {"cut_acc": [counts], "uniform_acc": [same]}, {}
    policies["random_acc"] = chance.round().clamp(min=1).int().tolist()
    for key, tries in policies.items():
        tries = [project(net, some, worth, side, budget) for some in tries]
        found = [evaluate(net, *test, to_plan(c, worth, args.device))["test_acc"] for c in tries]
        row[key] = sum(found) / len(found)
    cut(net, to_plan(counts, worth, args.device))
    optimizer.state.clear()
    return row


def train(args):
    """Train, cut, train on, or go on from OUT/last.pt; return the metrics of the test set."""
    torch.manual_seed(args.seed)
    (x, y), held, test = load_data(args)
    net = build(args)
    rule = {"weight_decay": args.weight_decay, "fused": True}
    optimizer = torch.optim.SGD(net.parameters(), args.lr, args.momentum, **rule)
    state = {"model": net, "optimizer": optimizer}
    epoch, first = begin(args, state), min(args.dense_epochs, args.n_epochs - 1)
    n = max(1, len(x) // args.batch_size)  # whole batches: batch norm cannot do with a single image
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            row, last = {}, first if epoch < first else args.n_epochs
            if epoch == first:
                row = begin_cut(net, optimizer, (x, y), held, test, args)
            net.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(x)).to(args.device).split(args.batch_size)[:n]
            for at, i in enumerate(tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None)):
                share = (last - epoch - (at + 1) / n) / max(first, last - first)
                optimizer.param_groups[0]["lr"] = args.lr * (0.5 - 0.5 * math.cos(math.pi * share))
                loss = F.cross_entropy(net(augment(x[i], args.pad, args.flip) / 255), y[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach_()  # a graph kept alive would insist on the old sizes
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            row |= {"loss": total.item() / n, **size(net, x[:1])}
            log(args, epoch=epoch, **row, **evaluate(net, *test))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return tabulate(args, net, test[0][:64] / 255)


@torch.inference_mode()
def evaluate(net, x, y, plan=None):
    net.eval()
    z = torch.cat([net(part / 255, plan) for part in x.split(250)])  # (N, K)
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


# Differs from pruning/structured_pruning.py
def size(net, x):
    """Parameters of the net, and multiplications for an image of the size of x."""
    macs = count_macs(net, [int(layer.keep.sum()) for layer in net.layers], x.shape[2])
    return {"params": sum(p.numel() for p in net.parameters()), "macs": macs}


# Differs from pruning/magnitude_pruning.py
def tabulate(args, net, x):
    """OUT/policies.txt: policies at one budget; the net dense, masked, removed; its numbers."""
    text = Path(args.out, "log.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(row) for row in text.splitlines()]
    found = next((row for row in rows if "cut_acc" in row), {})
    dense = build(argparse.Namespace(**vars(args) | {"weights": None}))
    masked, plan = copy.deepcopy(dense), [layer.keep for layer in net.layers]
    masked.forward = functools.partial(masked.forward, plan=plan)
    nets = {"dense": dense, "masked": masked, "removed": net}
    policies = {k: found.get(k, math.nan) for k in ("cut_acc", "uniform_acc", "random_acc")}
    lines = [[*policies], [*map("{:.4g}".format, policies.values())]]
    lines += [[], ["", "params", "macs", "kb", "ms"]]
    for (name, one), ms in zip(nets.items(), latencies([*nets.values()], x), strict=True):
        params, macs = size(one, x).values()
        lines.append([name, f"{params}", f"{macs}", f"{params / 250:.4g}", f"{ms:.4g}"])
    kept = [f"{int(layer.keep.sum())}/{len(layer.keep)}" for layer in net.layers]
    lines += [[], ["groups left", *kept]]
    text = "\n".join("".join(f"{word:>15}" for word in words) for words in lines)
    Path(args.out, "policies.txt").write_text(f"{text}\n", encoding="utf-8")
    share = size(net, x)["macs"] / size(dense, x)["macs"]
    done = [row["test_acc"] for row in rows if row["macs"] > rows[-1]["macs"]] or [math.nan]
    last = {"test_acc": rows[-1]["test_acc"], "dense_acc": done[-1], "macs_share": share}
    return last | policies | size(net, x)


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        last = torch.load(Path(args.out, "last.pt"), map_location="cpu", weights_only=True)
    net = build(args).cpu().eval()
    x = torch.rand(64, CHANNELS[args.dataset], *[SIDES[args.dataset]] * 2)
    plan = [last["model"][f"layers.{i}.keep"] for i in range(len(net.layers))]
    masked = net(x, plan).detach()
    cut(net, plan)
    metrics["over_random"] = metrics["cut_acc"] - metrics["random_acc"]
    return report(args, **metrics, cut_gap=(net(x) - masked).detach().abs().max())


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
    add("--dense_epochs", type=at_least(0), default=10, help="of these, before the search")
    add("--batch_size", type=at_least(2), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=0.1, help="largest learning rate")
    add("--momentum", type=at_least(0.0, 1.0), default=0.9, help="decay of the velocity")
    add("--weight_decay", type=at_least(0.0), default=5e-4, help="pull of the weights to zero")
    add("--config", choices=[*CONFIGS], default="digits", help="named set of defaults")
    add("--target_macs", type=at_least(0.0, 1.0), default=0.5, help="share s of multiplications")
    add("--rank", choices=["attention", "l1"], default="attention", help="eq. (3), or |weights|")
    add("--episodes", type=at_least(1), default=400, help="policies that the agent tries")
    add("--agent_lr", type=at_least(0.0), default=0.01, help="adam: learning rate of the agent")
    add("--entropy", type=at_least(0.0), default=0.03, help="beta: weight of the entropy")
    widths = [16, 32, 32, 64]
    add("--widths", type=at_least(1), nargs="+", default=widths, help="channels of each layer")
    add("--group_size", type=at_least(1), default=4, help="channels of a group")
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
    if odd := [n for n in args.widths if n % args.group_size]:
        fail(f"--widths {odd[0]}: does not divide by --group_size {args.group_size}")
    with torch.device("meta"):
        net = AttentiveNet(args.widths, CHANNELS[args.dataset], 10, args.group_size)
    counts, side = [n // args.group_size for n in args.widths], SIDES[args.dataset]
    least = count_macs(net, [1] * len(counts), side) / count_macs(net, counts, side)
    if args.target_macs < least:
        fail(
            f"--target_macs {args.target_macs}: one group in each layer takes {least:.3g}; raise it"
        )
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
