"""gat.py: attention edge by edge, the softmax over a node's edges, and its picture."""

import math
from pathlib import Path

import pytest
import torch
from house import call, load
from torch import nn

mod = load("gnn/gat.py")
N, F, H, M = 9, 5, 3, 2
PAIRS = torch.tensor([[0, 0, 0, 1, 2, 4, 5, 5], [1, 2, 3, 2, 4, 5, 6, 7]])  # node 8 has none


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def graph():
    torch.manual_seed(0)
    x = torch.randn(N, F, dtype=torch.float64)
    return mod.Data(x, torch.cat([PAIRS, PAIRS.flip(0)], 1), torch.arange(N) % 2, ())


def conv(concat=True, p=0.0):
    torch.manual_seed(1)
    layer = mod.GATConv(F, H, M, concat, p).double()
    nn.init.normal_(layer.bias)
    return layer


def by_hand(layer, slope=0.2, loops=True):
    """Equations (3) to (6), one node, head and neighbour at a time."""
    data, rows = graph(), []
    weight = layer.lin.weight.unflatten(0, (M, H))
    for v in range(N):
        near = [u for u, w in data.edge_index.T.tolist() if w == v] + [v] * loops
        heads = []
        for m in range(M):
            maps = [weight[m] @ data.x[u] for u in near]
            e = [
                layer.att_src[0, m] @ h + layer.att_dst[0, m] @ weight[m] @ data.x[v] for h in maps
            ]
            e = [math.exp(x if x > 0 else slope * x) for x in torch.stack(e).tolist()]
            heads.append(sum(x / sum(e) * h for x, h in zip(e, maps, strict=True)))
        rows.append((torch.cat(heads) if layer.concat else sum(heads) / M) + layer.bias)
    return torch.stack(rows)


def gap(layer, want):
    data = mod.add_loops(graph())
    return (layer(data.x, data) - want).abs().max().item()


@pytest.mark.parametrize("concat", [True, False])
def test_convolution_edge_by_edge(concat):
    layer = conv(concat)
    assert gap(layer, by_hand(layer)) < 1e-12


def test_wrong_convolutions_are_noticed():
    layer = conv()
    assert gap(layer, by_hand(layer, slope=0.01)) > 1e-3
    want = by_hand(layer)
    layer.att_src, layer.att_dst = layer.att_dst, layer.att_src
    assert gap(layer, want) > 1e-3


def test_edge_softmax():
    torch.manual_seed(2)
    v, e = torch.tensor([0, 1, 1, 3, 3, 3, 0]), 1000 * torch.randn(7, 2, dtype=torch.float64)
    alpha = mod.edge_softmax(e, v, 4)
    for node in (0, 1, 3):
        assert torch.allclose(alpha[v == node], e[v == node].softmax(0), rtol=0, atol=1e-12)
    plain = e.exp() / e.exp().new_zeros(4, 2).index_add(0, v, e.exp())[v]
    assert alpha.isfinite().all() and not plain.isfinite().all()  # what the maximum is for
    e = (e / 1000).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: mod.edge_softmax(e, v, 4), [e])


def test_dropout_of_attention():
    """In training some edges are silent and the others louder; in evaluation none is."""
    layer, data = conv(p=0.6), mod.add_loops(graph())
    still = layer.eval()(data.x, data)
    assert gap(layer, by_hand(layer)) < 1e-12
    torch.manual_seed(0)
    draws = torch.stack([layer.train()(data.x, data) for _ in range(4000)])
    assert draws[0].sub(still).abs().max() > 0.1 and draws.mean(0).sub(still).abs().max() < 0.2


def test_zero_attention_is_the_mean():
    layer, data = conv(), mod.add_loops(graph())
    for part in (layer.att_src, layer.att_dst):
        nn.init.zeros_(part)
    alpha = layer.attend(data.x, data)[1]
    v = data.edge_index[1]
    assert torch.allclose(alpha, (1 / v.bincount()[v]).double()[:, None].expand_as(alpha))


def args_of(*argv):
    args = mod.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def test_pictures():
    assert call(Path(mod.__file__), "--n_steps", "2", "--device", "cpu", "--out", "o")[0] == 0
    for name in ("embedding", "attention"):
        assert Path(f"o/{name}.png").stat().st_size > 5000


def test_bar_is_out_of_reach_without_the_edges(monkeypatch):
    """The same network on the words alone: what the bar asks for comes from the graph."""
    model = mod.block_model

    def lonely():
        x, edges, y, split = model()
        return x, edges[:, :0], y, split

    monkeypatch.setattr(mod, "block_model", lonely)
    monkeypatch.setattr(mod, "draw_embedding", lambda *_: None)
    assert mod.train(args_of("--n_steps", "100"))["test_acc"] < 0.5 < mod.BARS["test_acc"][0]


def test_cora_is_learned(data_root, monkeypatch):
    monkeypatch.setattr(mod, "draw_embedding", lambda *_: None)
    argv = ["--dataset", "cora", "--data_root", str(data_root), "--n_steps", "80"]
    assert mod.train(args_of(*argv))["test_acc"] > 0.77
