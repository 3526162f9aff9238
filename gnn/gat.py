# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4",
#                 "tqdm>=4.66,<5"]
# ///
"""Graph attention network: each node decides which neighbours to listen to.

Paper: Velickovic, Cucurull, Casanova, Romero, Lio & Bengio, "Graph Attention Networks",
ICLR 2018, arXiv 1710.10903.

    L = -mean_{v labelled} log softmax(Z_v)_{y_v}   (1)  cross-entropy of the few known classes
    H = elu(conv(X)), Z = conv(H)                   (2)  two layers see neighbours of neighbours
    A~ = A + I                                      (3)  each node is its own neighbour, too
    e_uv = LeakyReLU(a_src . W x_u + a_dst . W x_v) (4)  how much v cares for u; slope 0.2
    alpha_uv = exp(e_uv) / sum_u' exp(e_u'v)        (5)  softmax over the edges into v
    conv(x)_v = sum_u alpha_uv W x_u + b            (6)  by each head; joined, at last averaged

The weights of GCN follow from degrees; these follow from what the nodes hold, and are learned.
The vector a of the paper takes [W x_v ; W x_u]; its halves a_dst and a_src act on nodes, so an
edge costs one sum. OUT/attention.png shows the heads of the first layer: alpha into the node with
most edges, and alpha of all edges, times the degree of v; there 1 is the plain mean.

Shapes: N nodes, E edges (u, v) in columns, each in both directions, F features, M heads of H
hidden units, K classes; x (N, F) sparse, edge_index (2, E), e and alpha (E, M), z (N, K), y (N,).
Unlike the paper: a block model by default (600 nodes, 5 classes, 100 words); 600 steps and the last
weights, where there the best by validation count (patience 100); decay on b, too. As there:
dropout 0.6 on the input of each layer and on alpha, rows of X sum to 1, the Planetoid split (20 a
class, 500, 1000), one output head on Cora (on Pubmed 8, averaged: --out_heads 8).

    python gat.py                                  a random graph, nothing to download
    python gat.py --dataset cora --data_root data  reads data/Cora/raw/ind.cora.*
    python gat.py --smoke                          exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import os
import pickle
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 100, "sample_interval": 50}
BARS = {"test_acc": (0.65, 1.0), "order_gap": (0.0, 1e-5)}


# --- the idea ------------------------------------------------------------------------------------
# Copied from gnn/gcn.py
def propagate(source, target, weight, h, n):
    """Each edge takes weight (E,) times a row of h (S, H) from source (E,) to target (E,), where
    the rows are added up: (n, H). Rows of several heads (S, M, H) go with weights (E, M)."""
    message = weight.unsqueeze(-1) * h.index_select(0, source)  # (E, H)
    return h.new_zeros(n, *h.shape[1:]).index_add(0, target, message)  # (n, H)


# Copied from gnn/gcn.py
class Words(NamedTuple):
    """A sparse matrix (N, F) as a list of its entries: which words a node holds."""

    index: torch.Tensor  # (2, W) nodes and words
    value: torch.Tensor  # (W,)
    shape: tuple  # (N, F)


# Copied from gnn/gcn.py
def times(x, weight):
    """x (N, F), Words or not, by weight (F, H): (N, H)."""
    if isinstance(x, Words):
        node, word = x.index
        return propagate(word, node, x.value, weight, x.shape[0])
    return x @ weight


# Copied from gnn/gcn.py
def drop(x, p, training):
    """Dropout of x (N, F); in Words the zeros stay what they are."""
    if isinstance(x, Words):
        return x._replace(value=nn.functional.dropout(x.value, p, training))
    return nn.functional.dropout(x, p, training)


def add_loops(data):
    """The same data with an edge from each node to itself."""
    n, edges = len(data.y), data.edge_index
    edges = torch.cat([edges, torch.arange(n, device=edges.device).expand(2, n)], 1)  # eq. (3)
    return data._replace(edge_index=edges)


def edge_softmax(e, v, n):
    """Softmax of e (E, M) among the edges that lead to the same of n nodes, v (E,): (E, M). The
    largest of each node is taken out first, so that no exp overflows."""
    index = v[:, None].expand_as(e)  # (E, M)
    top = e.new_zeros(n, e.shape[1]).scatter_reduce(
        0, index, e.detach(), "amax", include_self=False
    )
    e = (e - top[v]).exp()
    return e / e.new_zeros(n, e.shape[1]).index_add(0, v, e)[v]  # eq. (5)


class GATConv(nn.Module):
    """x (N, F) -> (N, M H) or, averaged, (N, H); parameters named as in torch_geometric."""

    def __init__(self, n_in, n_out, heads, concat, p):
        super().__init__()
        self.heads, self.concat, self.p = heads, concat, p
        self.lin = nn.Linear(n_in, heads * n_out, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, n_out))
        self.att_dst = nn.Parameter(torch.empty(1, heads, n_out))
        self.bias = nn.Parameter(torch.zeros(heads * n_out if concat else n_out))
        nn.init.xavier_uniform_(self.lin.weight)
        for a in (self.att_src, self.att_dst):  # Glorot's bound of a map from n_out to 1
            nn.init.uniform_(a, -((6 / (n_out + 1)) ** 0.5), (6 / (n_out + 1)) ** 0.5)

    def attend(self, x, data):
        """W x (N, M, H) and alpha (E, M)."""
        u, v = data.edge_index
        h = times(x, self.lin.weight.T).unflatten(1, (self.heads, -1))  # (N, M, H)
        src, dst = (h * self.att_src).sum(2), (h * self.att_dst).sum(2)  # (N, M), (N, M)
        e = nn.functional.leaky_relu(src[u] + dst[v], 0.2)  # eq. (4)
        return h, edge_softmax(e, v, len(h))

    def forward(self, x, data):
        h, alpha = self.attend(x, data)
        h = propagate(*data.edge_index, drop(alpha, self.p, self.training), h, len(h))  # (N, M, H)
        return (h.flatten(1) if self.concat else h.mean(1)) + self.bias  # eq. (6)


# --- model ---------------------------------------------------------------------------------------
class GAT(nn.Module):
    """A graph -> scores (N, K) of its nodes; embed returns the hidden layer (N, M H)."""

    def __init__(self, n_in, hidden, n_classes, p, heads, out_heads):
        super().__init__()
        self.p = p
        self.conv1 = GATConv(n_in, hidden, heads, True, p)
        self.conv2 = GATConv(heads * hidden, n_classes, out_heads, False, p)

    def embed(self, data):
        h = self.conv1(drop(data.x, self.p, self.training), data)  # (N, M H)
        return nn.functional.elu(h)

    def forward(self, data):
        return self.conv2(drop(self.embed(data), self.p, self.training), data)  # eq. (2)


# --- data ----------------------------------------------------------------------------------------
# Copied from gnn/gcn.py
class Data(NamedTuple):
    """A graph, under the names that torch_geometric uses where it has one for it."""

    x: Words  # (N, F) features
    edge_index: torch.Tensor  # (2, E) columns (u, v) sorted by v, each edge in both directions
    y: torch.Tensor  # (N,) classes
    split: tuple  # the nodes to train, validate and test on
    edge_attr: torch.Tensor | None = None  # (E,) weights
    pos: torch.Tensor | None = None  # (N, 2) where a picture puts the nodes


# Copied from gnn/gcn.py
def block_model(n=600, n_classes=5, n_words=100):
    """A graph of papers. Of about 5 links, 4 lead to the own class; a word of the own class is in
    it with probability 0.14, any other with 0.06: too little to tell the class from the words."""
    y = torch.randint(n_classes, (n,))
    same = y[:, None] == y  # (N, N)
    p = torch.where(same, 4.0, 1 / (n_classes - 1)) * n_classes / n
    edges = (torch.rand(n, n) < p).triu(1).nonzero().T  # (2, E)
    own = y[:, None] == torch.arange(n_words) % n_classes  # (N, F)
    x = torch.rand(n, n_words) < torch.where(own, 0.14, 0.06)  # (N, F)
    x = Words(x.nonzero().T, torch.ones(int(x.sum())), x.shape)
    return x, edges, y, torch.arange(n).split([100, 200, n - 300])


# Copied from gnn/gcn.py
class Unpickler(pickle.Unpickler):
    """Reads arrays, sparse matrices (as plain objects) and dicts of lists, and runs nothing."""

    def find_class(self, module, name):
        if f"{module}.{name}" == "scipy.sparse.csr.csr_matrix":
            return SimpleNamespace
        if name in {"_reconstruct", "ndarray", "dtype", "defaultdict", "list"} and (
            module in {"numpy", "numpy.core.multiarray", "collections", "__builtin__"}
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


# Copied from gnn/gcn.py
def planetoid(folder, name):
    """The graph of the files ind.NAME.*; rows of tx and ty belong to the nodes of test.index."""

    def read(part):
        with open(folder / f"ind.{name}.{part}", "rb") as file:
            return Unpickler(file, encoding="latin1").load()

    text = (folder / f"ind.{name}.test.index").read_text(encoding="utf-8")
    test = torch.tensor([int(row) for row in text.split()])
    with warnings.catch_warnings():  # numpy finds these files old
        warnings.simplefilter("ignore")
        n_train, graph = len(read("y")), read("graph")
        ally, ty = (torch.from_numpy(read(part)).argmax(1) for part in ("ally", "ty"))
        sparse = [read("allx"), read("tx")]
    n, index, values = len(graph), [], []  # some nodes of citeseer have neither words nor class
    for nodes, matrix in zip([torch.arange(len(ally)), test], sparse, strict=True):
        rows = nodes.repeat_interleave(torch.from_numpy(matrix.indptr).diff())
        index.append(torch.stack([rows, torch.from_numpy(matrix.indices).long()]))  # (2, words)
        values.append(torch.from_numpy(matrix.data).float())
    x = Words(torch.cat(index, 1), torch.cat(values), (n, sparse[0]._shape[1]))
    y = torch.zeros(n, dtype=torch.long)
    y[: len(ally)], y[test] = ally, ty
    edges = torch.tensor([(u, v) for u, others in graph.items() for v in others]).T  # (2, E)
    if edges.max() >= n:
        raise ValueError("an edge leads out of the graph")
    known = torch.arange(len(ally))
    return x, edges, y, (known[:n_train], known[n_train : n_train + 500], test)


def load_data(args):
    """Return the Data, whole on the device."""
    if args.dataset == "sbm":
        x, edges, y, split = block_model()
    else:
        folder = Path(args.data_root, {"cora": "Cora", "citeseer": "CiteSeer"}[args.dataset], "raw")
        what = f"--data_root {args.data_root}: {folder}/ind.{args.dataset}.*"
        mend = "copy them from github.com/kimiyoung/planetoid, or take --dataset sbm"
        try:
            x, edges, y, split = planetoid(folder, args.dataset)
        except OSError as error:
            fail(f"{what} cannot be read ({error.strerror}); {mend}")
        except Exception as error:  # there is no end to what a damaged pickle may raise
            fail(f"{what} are damaged ({error}); {mend}")
    node, n = x.index[0], len(y)
    value = x.value / torch.zeros(n).index_add(0, node, x.value)[node]  # each row sums to 1
    u, v = torch.cat([edges, edges.flip(0)], 1)[:, (edges[0] != edges[1]).repeat(2)]
    key = (v * n + u).unique()  # sorted, and each edge once
    edge_index = torch.stack([key % n, key // n])  # (2, E)
    parts = x.index, value, edge_index, y, *split
    index, value, edge_index, y, *split = (part.to(args.device) for part in parts)
    return Data(Words(index, value, x.shape), edge_index, y, split)


# --- train, evaluate, smoke ----------------------------------------------------------------------
def build(args, data):
    sizes = data.x.shape[1], args.hidden, int(data.y.max()) + 1
    model = GAT(*sizes, args.dropout, args.heads, args.out_heads)
    return model.to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the accuracy on each part of the nodes."""
    torch.manual_seed(args.seed)
    data = add_loops(load_data(args))
    model, nodes = build(args, data), data.split[0]
    groups = [{"params": model.parameters(), "weight_decay": args.weight_decay}]
    optimizer = torch.optim.Adam(groups, lr=args.lr, fused=True)
    state = {"model": model, "optimizer": optimizer}
    step = begin(args, state)
    try:
        while step < args.n_steps:
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                z = model(data)
                loss = nn.functional.cross_entropy(z[nodes], data.y[nodes])  # eq. (1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                step += 1
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            log(args, step=step, loss=total.item() / n, **evaluate(model, data))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    draw_embedding(args, model, data)
    draw_attention(args, model, data)
    plot(args)
    return evaluate(model, data)


@torch.inference_mode()
def evaluate(model, data):
    model.eval()
    right = (model(data).argmax(1) == data.y).float()  # (N,)
    parts = zip(("train", "val", "test"), data.split, strict=True)
    return {f"{part}_acc": right[nodes].mean().item() for part, nodes in parts}


# Copied from gnn/gcn.py
@torch.inference_mode()
def draw_embedding(args, model, data):
    """Write OUT/embedding.png: the hidden layer by t-SNE, a colour a class, and the edges."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    model.eval()
    pos = TSNE(random_state=0).fit_transform(model.embed(data).cpu().numpy())
    data = data._replace(pos=torch.from_numpy(pos))
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.add_subplot(title="hidden layer, t-SNE")
    lines = data.pos[data.edge_index.T.cpu()]  # (E, 2, 2)
    axes.add_collection(LineCollection(lines.numpy(), colors="0.5", linewidths=0.1, zorder=0))
    axes.scatter(*data.pos.T.numpy(), s=8, c=data.y.cpu().numpy(), cmap="tab10")
    axes.set_axis_off()
    figure.savefig(Path(args.out, "embedding.png"), dpi=100)


@torch.inference_mode()
def draw_attention(args, model, data):
    """Write OUT/attention.png: alpha of the first layer, by head."""
    from matplotlib.figure import Figure

    model.eval()
    u, v = data.edge_index.cpu()
    alpha, y, degree = model.conv1.attend(data.x, data)[1].cpu(), data.y.cpu(), v.bincount()
    edges = (v == degree.argmax()).nonzero()[:40, 0]
    edges = edges[y[u[edges]].argsort()]  # those from one class side by side
    figure = Figure(figsize=(12, 4), layout="constrained")
    title = f"alpha into the busiest node, of class {int(y[degree.argmax()])}"
    axes = figure.add_subplot(1, 2, 1, title=title, xlabel="from a node of class", ylabel="head")
    figure.colorbar(axes.imshow(alpha[edges].T.numpy(), aspect="auto", cmap="viridis"))
    axes.set_xticks(range(len(edges)), y[u[edges]].tolist(), fontsize=6)
    axes = figure.add_subplot(1, 2, 2, title="all edges", xlabel="alpha / mean", yscale="log")
    axes.hist((alpha * degree[v, None]).numpy(), 40, histtype="step")
    figure.savefig(Path(args.out, "attention.png"))


def smoke(args):
    """A short run in a temporary folder, then: new numbers for the nodes change no score."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    data = load_data(args)
    model, order = build(args, data).eval(), torch.randperm(len(data.y), device=args.device)
    index = torch.stack([order[data.x.index[0]], data.x.index[1]])
    other = data._replace(x=data.x._replace(index=index), edge_index=order[data.edge_index].flip(1))
    z, z_other = (model(add_loops(each)) for each in (data, other))
    return report(args, **metrics, order_gap=(z_other[order] - z).detach().abs().max())


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
    add("--n_steps", type=at_least(1), default=600, help="optimiser steps in total")
    add("--lr", type=at_least(0.0), default=0.005, help="adam: learning rate")
    add("--weight_decay", type=at_least(0.0), default=5e-4, help="adam: decay of the weights")
    add("--hidden", type=at_least(1), default=8, help="hidden units H of a head")
    add(
        "--dropout",
        type=at_least(0.0, 1.0),
        default=0.6,
        help="dropout before each layer, and of alpha",
    )
    add("--heads", type=at_least(1), default=8, help="heads M of the first layer")
    add("--out_heads", type=at_least(1), default=1, help="heads of the second layer, averaged")
    add("--dataset", choices=["sbm", "cora", "citeseer"], default="sbm", help="sbm needs no files")
    add("--data_root", default="data", help="folder of the data sets")
    add("--sample_interval", type=at_least(1), default=20, help="steps between evaluations")
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
