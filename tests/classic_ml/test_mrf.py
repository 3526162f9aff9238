"""mrf.py: cliques by all subsets, chances by plain products over all states, the factor m(F)."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from house import call, load, mistake

mod = load("classic_ml/mrf.py")
PATH = Path(mod.__file__)
GRAPHS = [mod.GRAPH, "A-B B-C C-A", "A-B-C-D-A", "A", "A B C", "A-B-C-A C-D E"]
GRAPHS += ["A-B-C-D-A A-C B-D D-E-F-D", "A-X B-X C-X D-X"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def field(text, K=2, seed=0):
    torch.manual_seed(seed)
    graph = mod.parse_graph(text)
    cliques = mod.maximal_cliques(graph)
    return graph, [(C, torch.randn([K] * len(C), dtype=torch.float64)) for C in cliques]


def plain_sums(graph, factors, K=2, combine=math.prod):
    """{state: P} and Z by equations (2) and (3) as they stand, with phi = exp f."""
    weight = {}
    for state in itertools.product(range(K), repeat=len(graph)):
        Y = dict(zip(graph, state, strict=True))
        weight[state] = combine(math.exp(f[tuple(Y[v] for v in C)]) for C, f in factors)
    Z = sum(weight.values())
    return {state: value / Z for state, value in weight.items()}, Z


def chance(P, graph, known):
    """P of the states that hold what is known, {node: state}."""
    at = {v: i for i, v in enumerate(graph)}
    return sum(p for state, p in P.items() if all(state[at[v]] == y for v, y in known.items()))


def separated(graph, a, b, given):
    """Whether no path leads from a to b outside given."""
    seen, edge = {a}, [a]
    while edge:
        edge = [u for v in edge for u in graph[v] if u not in seen and u not in given]
        seen |= {*edge}
    return b not in seen


def subsets_that_are_maximal_cliques(graph):
    cliques = []
    for size in range(1, len(graph) + 1):
        for some in itertools.combinations(graph, size):
            if all(v in graph[u] for u, v in itertools.combinations(some, 2)):
                cliques.append({*some})
    return sorted(tuple(sorted(c)) for c in cliques if not any(c < other for other in cliques))


def random_graph(seed, n=9, p=0.45):
    draw = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < p
    names = "ABCDEFGHI"[:n]
    edges = [f"{names[i]}-{names[j]}" for i in range(n) for j in range(i) if draw[i, j]]
    return mod.parse_graph(" ".join([*names, *edges]))


def test_cliques_of_known_graphs():
    graph = mod.parse_graph(mod.GRAPH)
    edges = ["AE", "BF", "CG", "DH", "EF", "FG", "GH"]  # a tree: its cliques are its edges
    assert mod.maximal_cliques(graph) == [*map(tuple, edges)]
    found = [mod.maximal_cliques(mod.parse_graph(text)) for text in GRAPHS[1:6]]
    assert found[0] == [("A", "B", "C")]
    assert found[1] == [*map(tuple, ["AB", "AD", "BC", "CD"])]
    assert found[2:4] == [[("A",)], [("A",), ("B",), ("C",)]]
    assert found[4] == [*map(tuple, ["ABC", "CD", "E"])]  # maximal, not only the largest


@pytest.mark.parametrize("seed", range(20))
def test_cliques_by_all_subsets(seed):
    graph = random_graph(seed, p=0.2 + 0.03 * seed)
    assert mod.maximal_cliques(graph) == subsets_that_are_maximal_cliques(graph)


@pytest.mark.parametrize("text", GRAPHS)
@pytest.mark.parametrize("K", [2, 3])
def test_joint_and_partition_function(text, K):
    if K ** len(mod.parse_graph(text)) > 1000:
        K = 2
    graph, factors = field(text, K)
    P, Z = plain_sums(graph, factors, K)
    log_p, log_z = mod.joint_of_field(factors, (*graph,))
    assert log_z.item() == pytest.approx(math.log(Z), abs=1e-12)
    assert all(log_p[state].exp().item() == pytest.approx(p, abs=1e-12) for state, p in P.items())


def test_sums_over_cliques_are_something_else():
    """The slip of writing a sum for the product of (3) is seen."""
    graph, factors = field(mod.GRAPH)
    log_z = mod.joint_of_field(factors, (*graph,))[1].item()
    assert abs(log_z - math.log(plain_sums(graph, factors, combine=sum)[1])) > 0.1


@pytest.mark.parametrize("text", GRAPHS)
def test_elimination_is_enumeration(text):
    graph, factors = field(text, seed=1)
    P, Z = plain_sums(graph, factors)
    assert mod.multiply_factors(mod.eliminate(factors, ()), ()).item() == pytest.approx(math.log(Z))
    for size in (1, 2):
        for keep in itertools.permutations(graph, size):
            found = (
                mod.multiply_factors(mod.eliminate(factors, keep), keep).exp() / Z
            ).broadcast_to([2] * size)
            for state in itertools.product(range(2), repeat=size):
                want = chance(P, graph, dict(zip(keep, state, strict=True)))
                assert found[state].item() == pytest.approx(want, abs=1e-12)


def test_elimination_goes_where_enumeration_cannot():
    """A chain of 300 nodes by the product of its matrices; an Ising ring in closed form."""
    torch.manual_seed(0)
    names = [f"{i:03}" for i in range(300)]
    matrices = torch.randn(299, 3, 3, dtype=torch.float64)
    chain = [(pair, f) for pair, f in zip(itertools.pairwise(names), matrices, strict=True)]
    want, shift = torch.ones(3, dtype=torch.float64), 0.0
    for f in matrices.flip(0):
        want = f.exp() @ want
        shift, want = shift + want.sum().log(), want / want.sum()
    found = mod.multiply_factors(mod.eliminate(chain, ()), ())
    assert found.item() == pytest.approx((want.sum().log() + shift).item(), rel=1e-12)
    J, n = 0.7, 50
    f = J * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    ring = [(tuple(sorted((f"{i:02}", f"{(i + 1) % n:02}"))), f) for i in range(n)]
    found = mod.multiply_factors(mod.eliminate(ring, ()), ()).item()
    want = n * math.log(2 * math.cosh(J)) + math.log1p(math.tanh(J) ** n)
    assert found == pytest.approx(want, rel=1e-12)


def test_large_f_do_not_overflow():
    _, factors = field("A-B B-C")
    factors = [(C, 1000 * f) for C, f in factors]
    assert mod.multiply_factors(mod.eliminate(factors, ()), ()).isfinite()
    assert mod.joint_of_field(factors, ("A", "B", "C"))[0].exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("text", GRAPHS[:6])
def test_a_node_knows_what_its_neighbours_tell(text):
    """P(Y_v | all others) = P(Y_v | N(v)), as quotients of plain sums."""
    graph, factors = field(text, seed=2)
    P, _ = plain_sums(graph, factors)
    for v in graph:
        for state in itertools.product(range(2), repeat=len(graph)):
            Y = dict(zip(graph, state, strict=True))
            near, rest = ({u: y for u, y in Y.items() if u in some} for some in (graph[v], graph))
            others = {u: y for u, y in rest.items() if u != v}
            whole = chance(P, graph, Y) / chance(P, graph, others)
            part = chance(P, graph, near | {v: Y[v]}) / chance(P, graph, near)
            assert whole == pytest.approx(part, abs=1e-12)


@pytest.mark.parametrize("text", GRAPHS)
def test_separation_is_independence(text):
    """(6) is 0 for all pairs that given nodes part, and for no other pair."""
    graph, factors = field(text, seed=3)
    nodes = (*graph,)
    for _, f in factors:  # ends of an edge are much alike, or what far nodes share is lost
        f.clamp_(-1, 1).add_(torch.eye(2).double().mul(2) if f.ndim == 2 else 0)
    log_p = mod.joint_of_field(factors, nodes)[0]
    for a, b in itertools.combinations(nodes, 2):
        others = [v for v in nodes if v not in (a, b)]
        for size in (0, 1, 2, len(others)):
            for given in itertools.combinations(others, size):
                shared = mod.information(log_p, nodes, {a}, {b}, {*given})
                if separated(graph, a, b, given):
                    assert abs(shared) < 1e-13
                else:
                    assert shared > 1e-9


def test_information_by_hand():
    p = torch.tensor([[0.4, 0.1], [0.2, 0.3]], dtype=torch.float64)
    a, b = p.sum(1), p.sum(0)
    want = sum(p[i, j] * math.log(p[i, j] / (a[i] * b[j])) for i in range(2) for j in range(2))
    assert mod.information(p.log(), "AB", {"A"}, {"B"}, ()) == pytest.approx(want.item())
    copy = torch.tensor([[0.5, 1e-300], [1e-300, 0.5]], dtype=torch.float64)
    assert mod.information(copy.log(), "AB", "A", "B", ()) == pytest.approx(math.log(2))


def test_a_missing_edge_is_seen():
    """Where G is left out of F's neighbours, F knows more than they tell."""
    graph, factors = field(mod.GRAPH)
    nodes = (*graph,)
    log_p = mod.joint_of_field(factors, nodes)[0]
    assert abs(mod.information(log_p, nodes, {"F"}, {*"ACDH"}, {*"BEG"})) < 1e-12
    assert mod.information(log_p, nodes, {"F"}, {*"ACDGH"}, {*"BE"}) > 1e-3


def test_marginal_of_the_path_needs_m():
    graph, factors = field(mod.GRAPH)
    f = dict(factors)
    P, Z = plain_sums(graph, factors)
    kept, without, message = mod.marginal_with_message(factors, (*"AEFB",))
    assert [scope for scope, _ in message] == [("F",)]  # of F alone, as F alone meets G
    for y in range(2):  # m(F): the sum over G, H, C, D of the other four cliques
        m = sum(
            math.exp(f["F", "G"][y, g] + f["G", "H"][g, h] + f["C", "G"][c, g] + f["D", "H"][d, h])
            for g, h, c, d in itertools.product(range(2), repeat=4)
        )
        assert message[0][1][y].exp().item() == pytest.approx(m, rel=1e-12)
    alone = {}
    for a, e, y, b in itertools.product(range(2), repeat=4):
        alone[a, e, y, b] = math.exp(f["A", "E"][a, e] + f["E", "F"][e, y] + f["B", "F"][b, y])
        want = chance(P, graph, {"A": a, "E": e, "F": y, "B": b})
        assert kept[a, e, y, b].exp().item() == pytest.approx(want, abs=1e-12)
        assert alone[a, e, y, b] * message[0][1][y].exp().item() / Z == pytest.approx(want)
    for state, value in alone.items():
        assert without[state].exp().item() == pytest.approx(value / sum(alone.values()))
    assert (kept.exp() - without.exp()).abs().max() > 0.01
    # If the four are the whole graph, nothing is missing.
    _, factors = field("A-E-F-B")
    kept, without, message = mod.marginal_with_message(factors, (*"AEFB",))
    assert not message and (kept - without).abs().max() < 1e-12


def test_nodes_that_share_no_clique():
    """What is kept may be tied by the others alone; the product is then flat, but sums to 1."""
    _, factors = field("A-B-C")
    kept, without, message = mod.marginal_with_message(factors, ("A", "C"))
    assert without.exp().flatten().tolist() == pytest.approx([0.25] * 4)
    assert kept.exp().sum().item() == pytest.approx(1) and message[0][0] == ("A", "C")


def test_places_of_a_path_are_as_far_as_in_the_graph():
    graph = mod.parse_graph("A-B-C-D-E")
    places = mod.layout(graph)
    far = torch.cdist(places, places)
    want = (torch.arange(5)[:, None] - torch.arange(5)).abs()
    assert (far - want).abs().max() < 0.3
    for text in GRAPHS:
        places = mod.layout(mod.parse_graph(text))
        apart = torch.pdist(places)
        assert places.isfinite().all() and (len(apart) == 0 or apart.min() > 0.3)


@pytest.mark.parametrize("text", GRAPHS)
def test_table_and_picture(text):
    code, out, err = call(PATH, "--graph", text, "--out", "o")
    assert (code, err) == (0, "") and 2 < out.count("\n") <= 30
    assert Path("o/graph.png").stat().st_size > 5000
    *_, gap, _, _, _ = out.splitlines()[-1].split("  ")
    assert gap.startswith("elimination_gap") and float(gap.split()[1]) < 1e-12


def test_default_path_and_seed():
    out = call(PATH)[1]
    assert "maximal cliques A-E B-F C-G D-H E-F F-G G-H\n" in out
    assert "P(A E F B) needs m(F) " in out
    assert call(PATH)[1] == out != call(PATH, "--seed", "1")[1]


def test_broken_elimination_misses_a_bar(monkeypatch):
    real = mod.eliminate

    def without_first(factors, keep):
        return real(factors[1:] if len(factors) == 7 else factors, keep)

    monkeypatch.setattr(mod, "eliminate", without_first)
    assert call(PATH, "--smoke")[0] == 1


@pytest.mark.parametrize(
    "argv, about",
    [
        (["--graph", ""], "--graph: has no node"),
        (["--graph", "A-A"], "--graph: A-A ties A to itself"),
        (["--graph", "A-"], "--graph: A- lacks a name"),
        (["--graph", "A--B"], "lacks a name"),
        (["--graph", " ".join("ABCDEFGHIJKLMNOPQRS")], "19 nodes have 2^19 states"),
        (["--n_states", "64"], "8 nodes have 64^8 states"),
        (["--keep", "A Q"], "--keep: A Q are not nodes"),
        (["--keep", "A A"], "--keep: A A are not"),
        (["--n_states", "1"], "--n_states"),
    ],
)
def test_mistakes(argv, about):
    mistake(PATH, *argv, "--out", "o", about=about)
