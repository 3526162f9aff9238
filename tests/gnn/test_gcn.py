"""gcn.py: the convolution node by node, the files of Planetoid, and what the graph is good for."""

import collections
import pickle
from pathlib import Path

import pytest
import torch
from house import call, load, mistake
from torch import nn

mod = load("gnn/gcn.py")
N, F, H = 9, 5, 3
PAIRS = torch.tensor([[0, 0, 0, 1, 2, 4, 5, 5], [1, 2, 3, 2, 4, 5, 6, 7]])  # node 8 has none


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """An empty folder, and no t-SNE."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mod, "draw_embedding", lambda *_: None)


def graph():
    torch.manual_seed(0)
    x = torch.randn(N, F) * (torch.rand(N, F) < 0.5)
    x[3] = 0
    edges = torch.cat([PAIRS, PAIRS.flip(0)], 1)
    return mod.Data(words(x.double()), edges, torch.arange(N) % 2, ())


def words(x):
    return mod.Words(x.nonzero().T, x[x != 0], x.shape)


def dense(x):
    return torch.zeros(x.shape, dtype=x.value.dtype).index_put((*x.index,), x.value)


def conv():
    torch.manual_seed(1)
    layer = mod.GCNConv(F, H).double()
    nn.init.normal_(layer.bias)
    return layer


def neighbours(v):
    return [u for u, w in graph().edge_index.T.tolist() if w == v]


def by_hand(layer, norm):
    """Equations (3) to (6), one node and one neighbour at a time."""
    x, rows = dense(graph().x), []
    for v in range(N):
        row = torch.zeros(H, dtype=torch.float64)
        if norm == "sym":
            for u in [*neighbours(v), v]:
                d = (len(neighbours(u)) + 1) * (len(neighbours(v)) + 1)
                row = row + layer.lin.weight @ x[u] / d**0.5
        elif neighbours(v):  # the plain mean; without neighbours there is no 0/0
            row = sum(layer.lin.weight @ x[u] for u in neighbours(v)) / len(neighbours(v))
        rows.append(row + layer.bias)
    return torch.stack(rows)


def gap(norm, **changed):
    layer, data = conv(), mod.normalise(graph(), norm)._replace(**changed)
    data = data._replace(edge_attr=data.edge_attr.double())
    found, want = layer(data.x, data), by_hand(layer, norm)
    grad = torch.randn(N, H, dtype=torch.float64)
    pairs = [torch.autograd.grad(y, [*layer.parameters()], grad) for y in (found, want)]
    pairs = zip((found, *pairs[0]), (want, *pairs[1]), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("norm", ["sym", "mean"])
def test_convolution_node_by_node(norm):
    assert gap(norm) < 1e-6  # edge_attr is made in float32


def test_weights_of_the_edges():
    data = mod.normalise(graph(), "sym")
    a = torch.zeros(N, N).index_put((data.edge_index[1], data.edge_index[0]), data.edge_attr)
    loops = torch.eye(N).index_put((*graph().edge_index,), torch.ones(()))
    d = loops.sum(1).diag().inverse().sqrt()
    assert torch.allclose(a, d @ loops @ d) and torch.linalg.eigvalsh(a).max() < 1 + 1e-6
    mean = mod.normalise(graph(), "mean")
    into = torch.zeros(N).index_add(0, mean.edge_index[1], mean.edge_attr)
    assert torch.allclose(into, torch.tensor([1.0] * 8 + [0.0])) and mean.edge_attr.isfinite().all()


def test_wrong_weights_are_noticed():
    right, mean = (mod.normalise(graph(), norm) for norm in ("sym", "mean"))
    assert gap("sym", edge_attr=right.edge_attr**2) > 0.01
    assert gap("sym", edge_index=mean.edge_index, edge_attr=mean.edge_attr) > 0.01
    degree = torch.tensor([len(neighbours(v)) for v in range(N)]).clamp(min=1)  # of A, not A + I
    u, v = right.edge_index
    assert gap("sym", edge_attr=(degree[u] * degree[v]).rsqrt()) > 0.01
    star = torch.tensor([[1, 2, 3], [0, 0, 0]])
    assert gap("sym", edge_index=star, edge_attr=torch.ones(3)) > 0.01


def test_isolated_node_keeps_the_bias():
    layer, data = conv().float(), mod.normalise(graph(), "mean")
    assert torch.equal(layer(words(dense(data.x).float()), data)[8], layer.bias)


def test_sparse_features_are_the_same_features():
    x, w = graph().x, torch.randn(F, H, dtype=torch.float64)
    assert torch.allclose(mod.times(x, w), dense(x) @ w, rtol=0, atol=1e-12)
    assert torch.equal(mod.times(dense(x), w), dense(x) @ w)


def test_dropout_of_sparse_features():
    x = graph().x
    assert torch.equal(dense(mod.drop(x, 0.5, False)), dense(x))
    draws = torch.stack([dense(mod.drop(x, 0.25, True)) for _ in range(4000)])
    kept = draws != 0
    assert not kept[:, dense(x) == 0].any()
    share = kept.double().mean(0)[dense(x) != 0]
    assert (share - 0.75).abs().max() < 0.04
    assert torch.allclose(draws[kept], (dense(x) / 0.75).expand_as(draws)[kept])


# --- the model and its training ------------------------------------------------------------------
def args_of(*argv):
    args = mod.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def test_two_layers_see_two_steps_far():
    args = args_of()
    torch.manual_seed(0)
    data = mod.normalise(mod.load_data(args), "sym")
    model = mod.build(args, data).eval()
    x = dense(data.x).requires_grad_()
    (slope,) = torch.autograd.grad(model(data._replace(x=x))[7].sum(), x)
    u, v = data.edge_index
    near = {*u[v == 7].tolist()}
    far = {*u[torch.isin(v, torch.tensor([*near]))].tolist()}
    assert {*slope.abs().sum(1).nonzero()[:, 0].tolist()} <= far
    assert len(far) > len(near) > 2


def test_decay_is_for_the_first_layer_only(monkeypatch):
    seen, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: seen.append(adam(*a, **k)) or seen[0])
    mod.train(args_of("--n_steps", "1"))
    first, second = seen[0].param_groups
    assert [tuple(p.shape) for p in first["params"]] == [(16,), (16, 100)]
    assert [tuple(p.shape) for p in second["params"]] == [(5,), (5, 16)]
    assert (first["weight_decay"], second["weight_decay"]) == (5e-4, 0)


def test_bar_is_out_of_reach_without_the_edges(monkeypatch):
    """The same network on the words alone: what the bar asks for comes from the graph."""
    model = mod.block_model

    def lonely():
        x, edges, y, split = model()
        return x, edges[:, :0], y, split

    monkeypatch.setattr(mod, "block_model", lonely)
    assert mod.train(args_of("--n_steps", "100"))["test_acc"] < 0.5 < mod.BARS["test_acc"][0]


def test_renumbering_that_is_wrong_is_noticed(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.arange(n).roll(1) // 2 * 2)
    code, out, _ = call(Path(mod.__file__), "--smoke", "--n_steps", "1", "--device", "cpu")
    assert code == 1 and '"order_gap": 0.0' not in out


def test_block_model():
    torch.manual_seed(0)
    x, (u, v), y, split = mod.block_model()
    assert 4.5 < 2 * len(u) / len(y) < 5.5 and 0.75 < (y[u] == y[v]).float().mean() < 0.85
    own = y[:, None] == torch.arange(100) % 5
    held = dense(x)
    assert 0.13 < held[own].mean() < 0.15 and 0.055 < held[~own].mean() < 0.065
    assert torch.equal(torch.cat(split).sort()[0], torch.arange(600))


# --- the files -----------------------------------------------------------------------------------
def old(thing):
    """A pickle with the names of modules that Python 2 knew."""
    names = {b"scipy.sparse._csr": b"scipy.sparse.csr", b"numpy._core": b"numpy.core"}
    data = pickle.dumps(thing, protocol=2 if isinstance(thing, dict) else 3)
    for new, name in names.items():
        data = data.replace(new, name)
    return data


def write_planetoid(**changed):
    """Six nodes known, then test nodes 9, 6, 7 in this order; node 8 is in no file but graph."""
    import numpy
    from scipy.sparse import csr_matrix

    x = numpy.zeros((9, 4), dtype="float32")
    for node in range(9):
        x[node, [node % 4, 3]] = 1
    y = numpy.eye(3, dtype="int32")[[0, 1, 2, 0, 1, 2, 2, 0, 1]]
    graph = collections.defaultdict(list, {v: [(v + 1) % 10, (v - 1) % 10] for v in range(10)})
    graph[0] += [0, 1, 1, 5]
    graph[8] = []
    graph[7], graph[9] = [6], [0]
    parts = {"y": y[:2], "allx": csr_matrix(x[:6]), "ally": y[:6]}
    parts |= {"tx": csr_matrix(x[6:]), "ty": y[6:], "graph": graph}
    files = {key: old(part) for key, part in parts.items()} | {"test.index": b"9\n6\n7\n"}
    folder = Path("data/Cora/raw")
    folder.mkdir(parents=True, exist_ok=True)
    for key, text in (files | changed).items():
        (folder / f"ind.cora.{key}").write_bytes(text)
    return x, y, folder


def test_planetoid_files():
    x, y, folder = write_planetoid()
    found, edges, labels, (train, val, test) = mod.planetoid(folder, "cora")
    rows = [0, 1, 2, 3, 4, 5, 9, 6, 7]
    assert torch.equal(dense(found)[rows], torch.from_numpy(x))
    assert found.shape == (10, 4) and not dense(found)[8].any()
    assert torch.equal(labels[rows], torch.from_numpy(y).argmax(1))
    assert train.tolist() == [0, 1] and val.tolist() == [2, 3, 4, 5] and test.tolist() == [9, 6, 7]
    assert edges.shape == (2, 20)


def test_edges_are_made_clean(monkeypatch):
    *_, folder = write_planetoid()
    x, edges, y, _ = mod.planetoid(folder, "cora")
    split = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
    monkeypatch.setattr(mod, "planetoid", lambda *_: (x, edges, y, split))
    data = mod.load_data(args_of("--dataset", "cora"))
    u, v = data.edge_index.tolist()
    want = {(i, i + 1) for i in range(7)} | {(0, 9), (0, 5)}
    assert {*zip(u, v, strict=True)} == want | {(b, a) for a, b in want} and len(u) == 2 * len(want)
    assert v == sorted(v)
    total = dense(data.x).sum(1)
    assert torch.allclose(total, (torch.arange(10) != 8).float())


CORA = ["--dataset", "cora", "--device", "cpu"]


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("part", ["allx", "graph", "ty"])
def test_files_that_are_no_such_thing(part):
    for text in (
        b"",
        b"text",
        pickle.dumps(Bomb(), protocol=2),
        pickle.dumps({1: "a"}, protocol=2),
    ):
        write_planetoid(**{part: text})
        mistake(Path(mod.__file__), *CORA, about="kimiyoung/planetoid")
    assert not Path("exploded").exists()


def test_edge_out_of_the_graph():
    graph = collections.defaultdict(list, {v: [0] for v in range(9)} | {9: [10]})
    write_planetoid(graph=old(graph))
    mistake(Path(mod.__file__), *CORA, about="an edge leads out of the graph")


def test_missing_files_are_named():
    where = ["--data_root", "nowhere", "--device", "cpu"]
    for about in ("nowhere/Cora/raw", "kimiyoung/planetoid", "--dataset sbm"):
        mistake(Path(mod.__file__), "--dataset", "cora", *where, about=about)


@pytest.mark.parametrize(
    "name, sizes, n_entries",
    [("cora", (2708, 1433, 10556, 140), 49216), ("citeseer", (3327, 3703, 9104, 120), 105165)],
)
def test_real_files(data_root, name, sizes, n_entries):
    data = mod.load_data(args_of("--dataset", name, "--data_root", str(data_root)))
    (n, n_words), n_edges = data.x.shape, data.edge_index.shape[1]
    assert (n, n_words, n_edges, len(data.split[0])) == sizes
    assert len(data.x.value) == n_entries
    assert [len(part) for part in data.split[1:]] == [500, 1000]
    assert len({*torch.cat(data.split).tolist()}) == sum(map(len, data.split))
    u, v = data.edge_index
    assert 0.7 < (data.y[u] == data.y[v]).float().mean() < 0.85  # rows of tx in their places


def test_cora_is_learned(data_root):
    argv = ["--dataset", "cora", "--data_root", str(data_root), "--n_steps", "100"]
    args = args_of(*argv)
    torch.manual_seed(0)
    assert mod.train(args)["test_acc"] > 0.79
