"""Maximal cliques of mrf.py against networkx, on random graphs and on known ones."""

import networkx
import pytest
from house import load

mod = load("classic_ml/mrf.py")


def ours(graph):
    return mod.maximal_cliques({v: {*graph[v]} for v in graph})


def theirs(graph):
    return sorted(tuple(sorted(C)) for C in networkx.find_cliques(graph))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 7, 20, 35])
def test_random_graphs(n, p):
    graph = networkx.gnp_random_graph(n, p, seed=n)
    assert ours(graph) == theirs(graph)


@pytest.mark.parametrize(
    "graph",
    [
        networkx.karate_club_graph(),
        networkx.petersen_graph(),
        networkx.complete_multipartite_graph(3, 3, 3, 3),  # 3^4 cliques, the most 12 nodes can have
        networkx.turan_graph(13, 4),
        networkx.path_graph(30),
    ],
)
def test_known_graphs(graph):
    assert ours(graph) == theirs(graph)


def test_notes_graph_is_read_alike():
    graph = networkx.Graph(edge.split("-") for edge in mod.GRAPH.split())
    assert mod.parse_graph(mod.GRAPH) == {v: {*graph[v]} for v in sorted(graph)}
    assert mod.maximal_cliques(mod.parse_graph(mod.GRAPH)) == theirs(graph)


def test_a_missing_edge_is_seen():
    graph = networkx.karate_club_graph()
    less = graph.copy()
    less.remove_edge(0, 1)
    assert ours(less) != theirs(graph)
