"""graphsage.py: the sample, the mean over it, and what the graph is good for."""

import pytest
import torch
from house import load
from torch import nn

mod = load("gnn/graphsage.py")
N, F, H = 9, 5, 3
PAIRS = torch.tensor([[0, 0, 0, 1, 2, 4, 5, 5], [1, 2, 3, 2, 4, 5, 6, 7]])  # node 8 has none


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """An empty folder, and no t-SNE."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mod, "draw_embedding", lambda *_: None)


def graph():
    torch.manual_seed(0)
    x = torch.randn(N, F, dtype=torch.float64)
    edges = torch.cat([PAIRS, PAIRS.flip(0)], 1)
    edges = edges[:, edges[1].argsort(stable=True)]
    return mod.Data(x, edges, torch.arange(N) % 2, ())


def conv(size):
    torch.manual_seed(1)
    layer = mod.SAGEConv(F, H, size).double()
    nn.init.normal_(layer.lin_l.bias)
    return layer


def by_hand(layer, data, chosen):
    """Equations (4) and (5), one node at a time; chosen: the neighbours of each node."""
    rows = []
    for v in range(N):
        row = layer.lin_l.bias + layer.lin_r.weight @ data.x[v]
        if chosen[v]:
            m = sum(data.x[u] for u in chosen[v]) / len(chosen[v])
            row = row + layer.lin_l.weight @ m
        rows.append(row)
    return torch.stack(rows)


def neighbours(weight=None):
    u, v = graph().edge_index
    weight = torch.ones(len(u)) if weight is None else weight
    return [u[(v == node) & (weight > 0)].tolist() for node in range(N)]


def test_convolution_of_all_neighbours():
    layer, data = conv(1).eval(), graph()
    want = by_hand(layer, data, neighbours())
    assert (layer(data.x, data) - want).abs().max() < 1e-6  # the weights are float32
    assert (layer.train()(data.x, data) - want).abs().max() > 0.01  # one neighbour is not all


def test_convolution_of_a_sample():
    layer, data = conv(2), graph()
    torch.manual_seed(5)
    chosen = neighbours(mod.sample_weights(data.edge_index[1], 2))
    torch.manual_seed(5)
    assert (layer(data.x, data) - by_hand(layer, data, chosen)).abs().max() < 1e-6


def test_swapped_maps_are_noticed():
    layer, data = conv(1).eval(), graph()
    found = layer(data.x, data)
    layer.lin_l.weight, layer.lin_r.weight = layer.lin_r.weight, layer.lin_l.weight
    assert (found - by_hand(layer, data, neighbours())).abs().max() > 0.01


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_sample_is_small_fair_and_without_repeats(size):
    torch.manual_seed(size)
    u, v = graph().edge_index
    draws = torch.stack([mod.sample_weights(v, size) for _ in range(3000)])  # (draws, E)
    degree = v.bincount(minlength=N)
    for node in range(N):
        mine = draws[:, v == node]
        k = min(size, int(degree[node]))
        assert ((mine > 0).sum(1) == k).all()
        if k:
            assert torch.equal(mine[mine > 0], torch.full((3000 * k,), 1 / k))
            share = (mine > 0).float().mean(0)
            assert (share - k / degree[node]).abs().max() < 0.05
    assert len(u) == draws.shape[1]


def test_unfair_sample_would_be_noticed(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.arange(n))
    with pytest.raises(AssertionError):
        test_sample_is_small_fair_and_without_repeats(1)


def test_layers_draw_s1_and_s2(monkeypatch):
    sizes, true = [], mod.sample_weights
    monkeypatch.setattr(mod, "sample_weights", lambda v, n: sizes.append(n) or true(v, n))
    args = mod.parse_args(["--n_steps", "1", "--device", "cpu", "--s1", "4", "--s2", "3"])
    args.device = "cpu"
    mod.train(args)
    assert sizes[:2] == [4, 3] and min(sizes[2:]) > 1000  # evaluation: all edges


def test_bar_is_out_of_reach_without_the_edges(monkeypatch):
    """The same network on the words alone: what the bar asks for comes from the graph."""
    model = mod.block_model

    def lonely():
        x, edges, y, split = model()
        return x, edges[:, :0], y, split

    monkeypatch.setattr(mod, "block_model", lonely)
    args = mod.parse_args(["--n_steps", "100", "--device", "cpu"])
    args.device = "cpu"
    assert mod.train(args)["test_acc"] < 0.5 < mod.BARS["test_acc"][0]


def test_layers_can_be_put_to_another_graph():
    """Inductive: weights learned on one random graph serve on one never seen."""
    args = mod.parse_args(["--n_steps", "100", "--device", "cpu"])
    args.device = "cpu"
    mod.train(args)
    torch.manual_seed(99)
    data = mod.load_data(args)
    model = mod.build(args, data)
    before = mod.evaluate(model, data)["test_acc"]
    model.load_state_dict(torch.load(f"{args.out}/last.pt", weights_only=True)["model"])
    assert mod.evaluate(model, data)["test_acc"] > 0.55 > before + 0.2


def test_cora_is_learned(data_root):
    argv = ["--dataset", "cora", "--data_root", str(data_root), "--n_steps", "60"]
    args = mod.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    assert mod.train(args)["test_acc"] > 0.76
