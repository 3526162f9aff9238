# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4"]
# ///
"""Markov random field: a graph tells which variables a joint distribution ties together directly.

Papers: Hammersley & Clifford, "Markov fields on finite graphs and lattices", 1971 (unpublished;
proof in Besag, "Spatial Interaction and the Statistical Analysis of Lattice Systems", Journal of
the Royal Statistical Society B 36, 1974); elimination: Zhang & Poole, "A simple approach to
Bayesian network computations", Canadian AI, 1994; cliques: Bron & Kerbosch, "Algorithm 457: finding
all cliques of an undirected graph", Communications of the ACM, 1973, the pivot by Tomita, Tanaka &
Takahashi, "The worst-case time complexity for generating all maximal cliques", 2006.

    grow(R, P, X): R if P and X are empty, else for each v of P - N(u), u with most N(u) in P:
        grow(R + v, P & N(v), X & N(v)), and v goes from P to X     (1)  maximal cliques
    P(Y) = 1/Z prod_C phi_C(Y_C),  phi_C = exp f_C > 0              (2)  C: the maximal cliques
    Z = sum_Y prod_C phi_C(Y_C)                                     (3)  K^N products
    m(Y_N) = sum_{Y_v} prod_{factors with v}                        (4)  v goes, its N are tied
    P(Y_S) = 1/Z prod_{C in S} phi_C(Y_C) m(Y_S)                    (5)  m: all others eliminated
    I(A; B | S) = sum P(a,b,s) log(P(a,b,s) P(s) / P(a,s) P(b,s))   (6)  0 if S parts A from B

A maximal clique is one that no node can join; it need not be the largest: two nodes and a triangle
may both be maximal. (3) sums products, one for each state of all nodes; to sum over cliques in
place of the product is a common slip. By (6) a node knows no more than its neighbours tell it:
P(Y_v | all others) = P(Y_v | N(v)), while an edge ties its ends whatever else is known.

The graph drawn by default is A-E-F-G-H-D with B at F and C at G. For A, E, F, B alone one would
write 1/Z phi(A,E) phi(E,F) phi(F,B). That holds if these four are the whole graph. Here F meets G,
too, and the sum over G, H, C, D leaves a factor m(F), by (5): "without m" tells how far off the
chances are without it, even if they are scaled to sum to 1.

Shapes: N nodes of K states, f_C one axis of K a node, log P one axis a node, (K, .., K).
Unlike the papers: f is drawn from N(0, 1), nothing is learned; the log domain; elimination takes
the node with the smallest table first.

    python mrf.py                                   tables, and OUT/graph.png
    python mrf.py --graph "A-B B-C C-A C-D E" --n_states 3 --keep "A D"
    python mrf.py --smoke                           seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

# Lowest and highest value that pass under --smoke.
BARS = {"cliques": (7.0, 7.0), "elimination_gap": (0.0, 1e-12), "markov_gap": (-1e-12, 1e-12)}
BARS |= {"message_gap": (0.0, 1e-12), "edge_information": (1e-6, math.log(2))}
BARS |= {"without_m": (1e-4, 1.0)}
GRAPH, KEEP = "E-A F-B G-C H-D E-F F-G G-H", "A E F B"
MOST_STATES = 2**18


# --- the idea ------------------------------------------------------------------------------------
def maximal_cliques(graph):
    """Sorted tuples of nodes, from {node: set of its neighbours}."""
    found = []

    def grow(R, P, X):
        if not P and not X:
            found.append(tuple(sorted(R)))
        elif P:
            u = max(P | X, key=lambda u: len(P & graph[u]))
            for v in P - graph[u]:  # the others are in cliques with u, or found from a v
                grow(R | {v}, P & graph[v], X & graph[v])
                P, X = P - {v}, X | {v}  # eq. (1)

    grow(set(), {*graph}, set())
    return sorted(found)


def multiply_factors(factors, scope):
    """Sum of the f of (nodes, f), with an axis for each node of scope, in this order."""
    total = torch.zeros((), dtype=torch.float64)
    for nodes, f in factors:
        f = f.permute([nodes.index(v) for v in scope if v in nodes])
        total = total + f[tuple(slice(None) if v in nodes else None for v in scope)]
    return total


def joint_of_field(factors, nodes):
    """log P (K, .., K) of all states, and log Z, by enumeration."""
    f = multiply_factors(factors, nodes)
    log_z = f.logsumexp([*range(f.ndim)])  # eq. (3)
    return f - log_z, log_z  # eq. (2)


def eliminate(factors, keep):
    """Factors of nodes in keep whose product is the sum over all other nodes."""
    left = {v for nodes, _ in factors for v in nodes} - {*keep}
    while left:
        tied = {v: {u for nodes, _ in factors if v in nodes for u in nodes} for v in left}
        v = min(sorted(left), key=lambda v: len(tied[v]))
        scope, gone = tuple(sorted(tied[v] - {v})), [pair for pair in factors if v in pair[0]]
        m = multiply_factors(gone, (v, *scope)).logsumexp(0)  # eq. (4)
        factors = [*(pair for pair in factors if v not in pair[0]), (scope, m)]
        left.remove(v)
    return factors


def marginal_with_message(factors, keep):
    """log P (K, .., K) of keep, the same without m but scaled to sum to 1, and the factors of m."""
    inner = [pair for pair in factors if {*pair[0]} <= {*keep}]
    message = eliminate([pair for pair in factors if not {*pair[0]} <= {*keep}], keep)
    log_z = multiply_factors(eliminate(factors, ()), ())
    p = multiply_factors([*inner, *message], keep) - log_z  # eq. (5)
    alone = joint_of_field([*inner, (keep, torch.zeros_like(p))], keep)[0]
    return p, alone, message


def sum_out(log_p, nodes, keep):
    """log P of keep; the axes of the other nodes have length 1."""
    axes = [at for at, v in enumerate(nodes) if v not in keep]
    return log_p.logsumexp(axes, keepdim=True) if axes else log_p


def information(log_p, nodes, a, b, given):
    """What sets of nodes a and b tell about each other, in nats, once those given are known."""
    abs_, as_, bs_, s = (sum_out(log_p, nodes, {*v, *given}) for v in ((*a, *b), a, b, ()))
    return (abs_.exp() * (abs_ + s - as_ - bs_)).sum().item()  # eq. (6)


# --- data ----------------------------------------------------------------------------------------
def parse_graph(text):
    """{node: set of its neighbours} of words like A-B, A-B-C (a path) or A (a lone node)."""
    graph = {}
    for word in text.split():
        path = word.split("-")
        if "" in path:
            fail(f"--graph: {word} lacks a name; type edges like A-B, and lone nodes like C")
        for v in path:
            graph.setdefault(v, set())
        for u, v in itertools.pairwise(path):
            if u == v:
                fail(f"--graph: {word} ties {u} to itself; type edges between two nodes")
            graph[u].add(v)
            graph[v].add(u)
    if not graph:
        fail("--graph: has no node; type edges like A-B, and lone nodes like C")
    return dict(sorted(graph.items()))


# --- run, smoke ----------------------------------------------------------------------------------
def layout(graph, rounds=300):
    """Places (N, 2) as far apart as the nodes are in the graph, by majorising the stress."""
    n, nodes = len(graph), [*graph]
    far = torch.tensor([[1.0 if v in graph[u] else 1e9 for v in nodes] for u in nodes])
    far.fill_diagonal_(0.0)
    for k in range(n):
        far = torch.minimum(far, far[:, k : k + 1] + far[k : k + 1])  # shortest paths
    far = torch.where(far < 1e9, far, n**0.5 + 1)
    turn = torch.arange(n) * 2 * math.pi / n
    places = torch.stack([turn.cos(), turn.sin()], 1)  # (N, 2)
    for _ in range(rounds):
        pull = far / torch.cdist(places, places).clamp(min=1e-6)
        places = (pull.sum(1, keepdim=True) * places - pull @ places) / n
    return places


def draw_graph(args, graph, chance, tie):
    """OUT/graph.png: nodes by the chance of their state 1, edges by what their ends share."""
    from matplotlib.figure import Figure

    at = dict(zip(graph, layout(graph).tolist(), strict=True))
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(title="chance of state 1; width: mutual information of the ends")
    widest = max(tie.values(), default=1.0)
    for (u, v), nats in tie.items():
        axes.plot(*zip(at[u], at[v], strict=True), "0.5", linewidth=1 + 7 * nats / widest, zorder=1)
    places = [*zip(*at.values(), strict=True)]
    dots = axes.scatter(*places, s=600, c=chance, cmap="coolwarm", vmin=0, vmax=1, zorder=2)
    for v, (x, y) in at.items():
        axes.text(x, y, v, ha="center", va="center", zorder=3)
    figure.colorbar(dots)
    axes.set_aspect("equal")
    axes.margins(0.15)
    axes.set_axis_off()
    figure.savefig(Path(args.out, "graph.png"), dpi=100)


def run(args):
    """Print cliques, m and a row a node, draw the graph; return the metrics that judge them."""
    torch.manual_seed(args.seed)
    graph, K, out = parse_graph(args.graph), args.n_states, sys.stderr if args.smoke else sys.stdout
    nodes, keep = tuple(graph), tuple(args.keep.split()) or tuple(graph)[:1]
    if K ** len(nodes) > MOST_STATES:
        fail(
            f"--graph: {len(nodes)} nodes have {K}^{len(nodes)} states, too many to enumerate (at "
            f"most {MOST_STATES}); take fewer nodes or a lower --n_states"
        )
    if {*keep} - {*nodes} or len({*keep}) < len(keep):
        fail(
            f"--keep: {' '.join(keep)} are not nodes of --graph, each once; it has "
            f"{' '.join(nodes)}"
        )
    cliques = maximal_cliques(graph)
    factors = [(C, torch.randn([K] * len(C), dtype=torch.float64)) for C in cliques]
    log_p, log_z = joint_of_field(factors, nodes)
    gaps = [multiply_factors(eliminate(factors, ()), ()) - log_z]
    print("maximal cliques", *("-".join(C) for C in cliques[:30]), file=out)
    markov, edges, chance, tie = [0.0], [], [], {}
    for v in nodes:
        p = sum_out(log_p, nodes, {v}).flatten().exp()  # (K,)
        gaps += [*(multiply_factors(eliminate(factors, (v,)), (v,)) - log_z).exp() - p]
        rest, near = {*nodes} - {v} - graph[v], graph[v]
        markov.append(information(log_p, nodes, {v}, rest, near))
        own = [information(log_p, nodes, {v}, {u}, {*nodes} - {u, v}) for u in sorted(near)]
        row = {"node": v, "neighbours": " ".join(sorted(near)) or "none", "P(0)": p[0].item()}
        row |= {"I(rest | neighbours)": markov[-1], "I(edge | others)": min(own, default=0.0)}
        print(line(row), file=out)
        tie |= {(v, u): information(log_p, nodes, {v}, {u}, ()) for u in near if u > v}
        chance.append(p[1].item())
        edges += own
    kept, without, message = marginal_with_message(factors, keep)
    axes = [sorted(keep).index(v) for v in keep]
    right = sum_out(log_p, nodes, keep).squeeze().exp()
    for scope, m in message:
        values = " ".join(f"{value:.4g}" for value in m.exp().flatten()[:16].tolist())
        print(f"P({' '.join(keep)}) needs m({' '.join(scope)}) {values}", file=out)
    draw_graph(args, graph, chance, tie)
    off = [(p.exp() - right.permute(axes)).abs().max().item() for p in (kept, without)]
    metrics = {"cliques": len(cliques), "log_z": log_z.item(), "markov_gap": max(markov, key=abs)}
    metrics |= {"elimination_gap": max(abs(float(gap)) for gap in gaps)}
    metrics |= {"edge_information": min(edges, default=0.0)}
    return metrics | {"message_gap": off[0], "without_m": off[1]}


def smoke(args):
    """The whole run: it takes a second."""
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
    add("--graph", default=GRAPH, help="edges, and nodes without any")
    add("--keep", help="nodes S of (5); A E F B, or the first node of a graph of your own")
    add("--n_states", type=at_least(2, 65), default=2, help="states K of a node")
    add("--seed", type=at_least(0), default=0, help="fixes the f of all cliques")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    args = parser.parse_args(argv)
    args.keep = args.keep or (KEEP if args.graph == GRAPH else "")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.smoke:
        return smoke(args)
    begin(args)
    print(line(run(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
