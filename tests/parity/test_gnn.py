"""The convolutions of gnn/ against torch_geometric: same names of parameters, same numbers."""

import pytest
import torch
from house import load
from torch import nn

pyg = pytest.importorskip("torch_geometric.nn")
gcn, sage, gat = (load(f"gnn/{name}.py") for name in ("gcn", "graphsage", "gat"))
N, F, H = 40, 12, 6


@pytest.fixture(autouse=True)
def exact():
    """All that is made without a type is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(ours, theirs, limit=1e-9):
    return all(
        (p - q).abs().max() <= limit * max(1, q.abs().max())
        for p, q in zip(ours, theirs, strict=True)
    )


def graph():
    """A random graph in float64 with some nodes that nobody links to, and features to learn."""
    torch.manual_seed(0)
    edges = (torch.rand(N, N) < 0.1).triu(1)
    edges[:, -3:] = False
    edges = (edges | edges.T).nonzero().T.flip(0)  # (2, E) sorted by the second row
    x = torch.randn(N, F, requires_grad=True)
    return gcn.Data(x, edges, torch.zeros(N), ())


def randomised(theirs, ours):
    """Both with the same weights, none of which is 0 or alike, copied both ways."""
    torch.manual_seed(1)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


def both_ways(module, x, *rest):
    """Output, gradient of x and of the parameters in the order of their names."""
    y = module(x, *rest)
    torch.manual_seed(2)
    parameters = [parameter for _, parameter in sorted(module.named_parameters())]
    return [y, *torch.autograd.grad(y, [x, *parameters], torch.randn_like(y))]


# --- gcn -----------------------------------------------------------------------------------------
def gcn_pair(norm="sym"):
    data = graph()
    theirs, ours = randomised(pyg.GCNConv(F, H), gcn.GCNConv(F, H))
    want = both_ways(theirs, data.x, data.edge_index)
    data = gcn.normalise(data, norm)
    return both_ways(ours, data.x, data), want


def test_gcn_conv():
    assert close(*gcn_pair())


def test_gcn_conv_without_loops_differs():
    ours, theirs = gcn_pair("mean")
    assert not close(ours[:1], theirs[:1], 0.01)


def test_mean_is_their_mean():
    data = gcn.normalise(graph(), "mean")
    theirs = pyg.SimpleConv(aggr="mean")(data.x, data.edge_index)
    ours = gcn.propagate(*data.edge_index, data.edge_attr, data.x, N)
    assert close([ours], [theirs])


# --- graphsage -----------------------------------------------------------------------------------
def sage_pair():
    data = graph()
    theirs, ours = randomised(pyg.SAGEConv(F, H), sage.SAGEConv(F, H, 2))
    return both_ways(ours.eval(), data.x, data), both_ways(theirs, data.x, data.edge_index)


def test_sage_conv():
    assert close(*sage_pair())


def test_sage_conv_of_too_few_neighbours_differs(monkeypatch):
    monkeypatch.setattr(sage.SAGEConv, "eval", lambda self: self)
    ours, theirs = sage_pair()
    assert not close(ours[:1], theirs[:1], 0.01)


# --- gat -----------------------------------------------------------------------------------------
def gat_pair(heads, concat, slope=0.2):
    data = graph()
    theirs = pyg.GATConv(F, H, heads, concat, negative_slope=slope)
    theirs, ours = randomised(theirs, gat.GATConv(F, H, heads, concat, 0.0))
    want = both_ways(theirs, data.x, data.edge_index)
    return both_ways(ours, data.x, gat.add_loops(data)), want


@pytest.mark.parametrize("heads, concat", [(1, True), (4, True), (1, False), (3, False)])
def test_gat_conv(heads, concat):
    assert close(*gat_pair(heads, concat))


def test_gat_conv_of_another_slope_differs():
    ours, theirs = gat_pair(4, True, slope=0.1)
    assert not close(ours[:1], theirs[:1], 0.01)
