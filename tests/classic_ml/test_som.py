"""som.py: neighbours and steps by hand, both ways of training unit by unit, errors, files."""

import csv
import functools
import json
import math
from pathlib import Path

import pytest
import torch
from house import call, load, mistake

mod = load("classic_ml/som.py")
PATH = Path(mod.__file__)
KINDS = ["gaussian", "bubble", "mexican_hat", "half"]
TINY = ["--dataset", "iris", "--n_rows", "4", "--n_columns", "3", "--n_epochs", "3"]
TINY += ["--device", "cpu"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def som(R=4, C=3, D=5, topology="rectangular", seed=0):
    torch.manual_seed(seed)
    model = mod.SOM(R, C, D, topology).double()
    model.weight.normal_()
    return model


def examples(n=30, D=5):
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def place(v, C, topology):
    r, c = divmod(v, C)
    return (c + 0.5 * (r % 2), r * math.sqrt(3) / 2) if topology == "hexagonal" else (c, r)


@functools.cache
def steps_by_walking(R, C, topology):
    """k from each unit to each, by breadth-first search over the sides that cells share."""
    near = {}
    for v in range(R * C):
        r, c = divmod(v, C)
        if topology == "hexagonal":  # the rows beside an odd one lie half a step to the left
            side = (0, 1) if r % 2 else (-1, 0)
            cells = [(r, c - 1), (r, c + 1)] + [(r + d, c + s) for d in (-1, 1) for s in side]
        else:
            cells = [(r, c - 1), (r, c + 1), (r - 1, c), (r + 1, c)]
        near[v] = [a * C + b for a, b in cells if 0 <= a < R and 0 <= b < C]
    k = torch.full((R * C, R * C), 1000.0, dtype=torch.float64)
    for start in range(R * C):
        edge, far = [start], 0
        while edge:
            k[start, edge] = torch.minimum(k[start, edge], torch.tensor(float(far)).double())
            edge, far = [w for v in edge for w in near[v] if k[start, w] == 1000], far + 1
    return k


@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
@pytest.mark.parametrize("R, C", [(4, 5), (5, 4), (1, 6), (6, 1), (2, 2)])
def test_lattice(topology, R, C):
    model = som(R, C, topology=topology)
    for u in range(R * C):
        for v in range(R * C):
            d2 = math.dist(place(u, C, topology), place(v, C, topology)) ** 2
            assert model.d2[u, v].item() == pytest.approx(d2, abs=1e-9)
    assert (model.k == steps_by_walking(R, C, topology)).all()
    if topology == "hexagonal":  # next to a unit is what shares a side with it ...
        assert (model.near == (model.k == 1)).all()
    else:  # ... or a corner
        diagonal = (model.k == 2) & (model.d2 == 2)
        assert (model.near == ((model.k == 1) | diagonal)).all()


def theta(kind, u, v, sigma, C, topology):
    d2 = math.dist(place(u, C, topology), place(v, C, topology)) ** 2
    if kind == "half":
        return 2.0 ** -steps_by_walking(4, C, topology)[u, v].item()
    if kind == "bubble":
        return float(math.sqrt(d2) <= sigma + 1e-12)
    bell = math.exp(-d2 / (2 * sigma * sigma))
    return bell * (1 - d2 / sigma**2 if kind == "mexican_hat" else 1)


@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
@pytest.mark.parametrize("kind", KINDS)
def test_neighbourhoods_pair_by_pair(kind, topology):
    model = som(topology=topology)
    for sigma in (0.5, 1.3, 2.1):
        found = mod.neighbourhood(kind, model.d2, model.k, sigma)
        for u in range(12):
            for v in range(12):
                want = theta(kind, u, v, sigma, 3, topology)
                assert found[u, v].item() == pytest.approx(want, abs=1e-12)
    assert (found.diagonal() == 1).all() and (found == found.T).all()


def test_half_of_the_notes():
    """1, 1/2, 1/4 ... by Manhattan distance, whatever sigma is."""
    model = som(3, 3)
    found = mod.neighbourhood("half", model.d2, model.k, 0.1)[4].view(3, 3)
    assert found.tolist() == [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]


def winner(W, x):
    far = [math.dist(w, x) for w in W]
    return far.index(min(far))


@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
@pytest.mark.parametrize("kind", KINDS)
def test_online_unit_by_unit(kind, topology):
    model, x = som(topology=topology), examples(6)
    alpha, sigma = torch.linspace(0.5, 0.1, 6).double(), torch.linspace(2, 0.7, 6).double()
    W, far = model.weight.tolist(), 0.0
    for row, a, s in zip(x.tolist(), alpha.tolist(), sigma.tolist(), strict=True):
        u = winner(W, row)
        far += math.dist(W[u], row)
        for v, w in enumerate(W):
            share = a * theta(kind, u, v, s, 3, topology)
            W[v] = [p + share * (q - p) for p, q in zip(w, row, strict=True)]
    total = mod.online_epoch(model, x, kind, alpha, sigma)
    assert (model.weight - torch.tensor(W, dtype=x.dtype)).abs().max() < 1e-12
    assert total.item() == pytest.approx(far, abs=1e-12)


@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
@pytest.mark.parametrize("kind", ["gaussian", "bubble", "half"])
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_batch_unit_by_unit(kind, topology, alpha):
    model, x = som(topology=topology), examples()
    W = model.weight.clone()
    u = [winner(W.tolist(), row) for row in x.tolist()]
    total = mod.batch_epoch(model, x, kind, alpha, 1.1)
    assert total.item() == pytest.approx(sum((x - W[u]).norm(dim=1)).item(), abs=1e-9)
    for v in range(12):
        share = x.new_tensor([theta(kind, k, v, 1.1, 3, topology) for k in u])
        if share.sum() > 0:
            mean = (share[:, None] * x).sum(0) / share.sum()
            want = W[v] + alpha * (mean - W[v])
        else:
            want = W[v]  # out of everybody's reach
        assert (model.weight[v] - want).abs().max() < 1e-12


def test_units_out_of_reach_stay():
    model, x = som(), examples(2)
    before = model.weight.clone()
    won = model(x).argmin(1).tolist()
    mod.batch_epoch(model, x, "bubble", 1.0, 0.5)
    for v in range(12):
        assert (v in won) == bool((model.weight[v] != before[v]).any())
    assert model.weight.isfinite().all()


def test_batches_of_any_length_are_one(monkeypatch):
    model, other, x = som(), som(), examples(9000)
    assert (model.weight == other.weight).all()
    mod.batch_epoch(model, x, "gaussian", 1.0, 1.0)
    u = other(x).argmin(1)
    share = mod.neighbourhood("gaussian", other.d2, other.k, 1.0)[u]  # (N, U)
    assert (model.weight - share.T @ x / share.sum(0)[:, None]).abs().max() < 1e-12


def test_without_neighbours_it_is_k_means():
    model, x = som(), examples(300)
    errors = []
    for _ in range(8):
        errors.append(mod.batch_epoch(model, x, "bubble", 1.0, 0.5).item())
        u = model(x).argmin(1)
    mod.batch_epoch(model, x, "bubble", 1.0, 0.5)
    for v in u.unique().tolist():
        assert (model.weight[v] - x[u == v].mean(0)).abs().max() < 1e-12
    assert errors[-1] < 0.85 * errors[0]


def test_best_of_equals_is_the_first():
    model = som()
    model.weight.zero_()
    x = examples(3)
    assert model(x).argmin(1).tolist() == model(x).min(1)[1].tolist() == [0, 0, 0]
    mod.online_epoch(model, x[:1], "bubble", torch.ones(1).double(), torch.full((1,), 0.5))
    assert (model.weight[0] == x[0]).all() and (model.weight[1:] == 0).all()  # alpha(0) = 1


def test_errors_and_u_matrix_by_hand():
    for topology in ("rectangular", "hexagonal"):
        model, x = som(topology=topology), examples()
        W, wrong, far = model.weight.tolist(), 0, 0.0
        for row in x.tolist():
            order = sorted(range(12), key=lambda v: math.dist(W[v], row))
            far += math.dist(W[order[0]], row) / 30
            apart = math.dist(*(place(v, 3, topology) for v in order[:2]))
            wrong += apart > (1.01 if topology == "hexagonal" else 1.42)
        found = mod.evaluate(model, x)
        assert found["qe"] == pytest.approx(far, abs=1e-9)
        assert found["te"] == pytest.approx(wrong / 30, abs=1e-6) and 0 < wrong < 30
        U = mod.u_matrix(model)
        for v in range(12):
            near = [w for w in range(12) if model.near[v, w]]
            want = sum(math.dist(W[v], W[w]) for w in near) / len(near)
            assert U[v].item() == pytest.approx(want, abs=1e-12)


def test_u_matrix_is_high_on_a_border():
    model = som(4, 6)
    model.weight.copy_((torch.arange(24) % 6 >= 3).double()[:, None].expand(-1, 5))
    U = mod.u_matrix(model).view(4, 6)
    assert (U[:, [0, 1, 4, 5]] == 0).all() and (U[:, 2:4] > 0.5).all()


@pytest.mark.parametrize("R, C", [(6, 4), (4, 6), (5, 5), (1, 7), (7, 1)])
def test_plane_of_the_principal_axes(R, C):
    torch.manual_seed(0)
    x = torch.randn(5000, 3).double() * torch.tensor([1.0, 5.0, 2.0]) + 7
    W = mod.principal_plane(x, R, C).view(R, C, 3)
    assert (W.mean((0, 1)) - x.mean(0)).abs().max() < 1e-5
    long, short = (W.transpose(0, 1), W)[:: 1 if R > C else -1]
    if max(R, C) > 1:  # the longer side spans 4 standard deviations of feature 1, upwards
        span = long[0][-1] - long[0][0]
        assert span[1].item() == pytest.approx(20, rel=0.03) and abs(span[0]) < 0.5
    if min(R, C) > 1:
        span = short[0][-1] - short[0][0]
        assert span[2].abs().item() == pytest.approx(8, rel=0.05)


def test_plane_of_one_feature():
    W = mod.principal_plane(torch.randn(50, 1), 3, 4)
    assert W.shape == (12, 1) and W.isfinite().all() and W[0] < W[3] and W[0] == W[4]


def test_schedules(monkeypatch):
    """Online: sigma and alpha step by step through all epochs; batch: once an epoch."""
    seen = []

    def note(model, x, kind, alpha, sigma):
        seen.append((alpha, sigma))
        return x.new_zeros(1)

    for each in ("online_epoch", "batch_epoch"):
        monkeypatch.setattr(mod, each, note)
    argv = [*TINY, "--sigma", "2", "--sigma_end", "1", "--lr", "0.6"]
    call(PATH, *argv, "--training", "online", "--out", "a")
    alpha, sigma = (torch.cat(parts).double() for parts in zip(*seen, strict=True))
    s = torch.arange(450, dtype=torch.float64) / 450
    assert (alpha - 0.6 * (1 - s)).abs().max() < 1e-6
    assert (sigma - (2 - s)).abs().max() < 1e-6
    seen.clear()
    call(PATH, *argv, "--out", "b")
    assert seen == [(0.6, pytest.approx(2 - epoch / 3)) for epoch in range(3)]


def errors_of(*argv):
    code, out, err = call(PATH, *argv)
    assert (code, err) == (0, ""), err
    words = out.splitlines()[-1].split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


SMALL = ["--dataset", "iris", "--n_rows", "8", "--n_columns", "8", "--n_epochs", "20"]


def test_iris_by_every_neighbourhood():
    """half does not shrink: its map is the coarsest; without training there is no order at all."""
    found = {kind: errors_of(*SMALL, "--neighbourhood", kind) for kind in ("gaussian", "half")}
    assert found["gaussian"]["qe"] < 0.35 < 0.45 < found["half"]["qe"]
    online = errors_of(*SMALL, "--training", "online")
    assert online["qe"] < 0.4 and online["te"] < 0.15
    hexagonal = errors_of(*SMALL, "--topology", "hexagonal")
    assert hexagonal["qe"] < 0.35 and hexagonal["te"] < 0.15
    none = errors_of(*SMALL[:-1], "0", "--init", "random")
    assert none["te"] > 0.5 and none["qe"] > 0.6


def test_hats_drive_units_apart_without_end():
    hat = ["--neighbourhood", "mexican_hat", "--training", "online", "--n_epochs", "40"]
    code, _, err = call(PATH, *SMALL, *hat)
    assert code == 1 and err.startswith("stopped: the loss is not finite in epoch")


@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
@pytest.mark.parametrize("training", ["batch", "online"])
def test_pictures(topology, training):
    errors_of(*TINY, "--topology", topology, "--training", training, "--out", "o")
    for name in ("umatrix", "planes", "curves"):
        assert Path(f"o/{name}.png").stat().st_size > 5000
    rows = Path("o/log.jsonl").read_text(encoding="utf-8").splitlines()
    assert {*json.loads(rows[0])} == {"epoch", "loss", "qe", "te"}


@pytest.mark.parametrize("R, C", [(1, 9), (9, 1), (1, 2), (15, 15)])
def test_grids_of_any_shape(R, C):
    """Also one row or column, and more units than examples."""
    argv = [*TINY, "--n_rows", str(R), "--n_columns", str(C), "--out", "o"]
    assert errors_of(*argv)["qe"] < 1.5
    assert errors_of(*argv, "--topology", "hexagonal")["qe"] < 1.5


def test_orders():
    runs = [
        errors_of(*TINY, "--training", "online", "--order", order, "--seed", seed)["qe"]
        for order, seed in (("sequential", 0), ("sequential", 1), ("random", 0), ("random", 1))
    ]
    assert runs[0] == runs[1] and len({*runs}) == 3


def table(name, rows):
    with open(name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def plain(n=40):
    draw = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return [[f"{a:.4f}", f"{100 + 50 * b:.4f}"] for a, b in draw.tolist()]


CSV = ["--dataset", "csv", "--data_root", "a.csv", *TINY[2:]]


def test_csv_with_and_without_header_and_classes():
    x = [[float(cell) for cell in row] for row in plain()]
    named = [["long", "wide", "kind"]] + [[*row, "ab"[i % 2]] for i, row in enumerate(plain())]
    for rows, names, y in (
        (plain(), ["1", "2"], []),
        ([["long", "wide"], *plain()], ["long", "wide"], []),
        (named, ["long", "wide"], ["a", "b"] * 20),
        (named[1:], ["1", "2"], ["a", "b"] * 20),
    ):
        table("a.csv", rows)
        found = mod.read_table("--data_root", "a.csv")
        assert torch.allclose(found[0], torch.tensor(x)) and found[1:] == (y, names)
    assert errors_of(*CSV)["qe"] < 1
    text = Path("a.csv").read_text(encoding="utf-8")
    Path("a.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert len(mod.read_table("--data_root", "a.csv")[0]) == 40


def test_features_are_scaled_and_constant_ones_are_no_trouble():
    table("a.csv", [[*row, "3"] for row in plain()])
    model = mod.build(mod.parse_args(CSV), mod.read_table("--data_root", "a.csv")[0])
    x = model.scale(mod.read_table("--data_root", "a.csv")[0])
    assert x.mean(0).abs().max() < 1e-5 and x.std(0).tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    assert errors_of(*CSV)["qe"] < 1


def test_predict_maps_rows_as_training_did():
    table("a.csv", plain())
    errors_of(*CSV, "--out", "o")
    table("b.csv", plain()[:5][::-1])
    code, out, err = call(PATH, *CSV, "--predict", "b.csv", "--out", "o")
    assert (code, err) == (0, "") and "units.csv  examples 5" in out
    with open("o/units.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["row", "column", "distance"] and len(rows) == 5
    state = torch.load("o/last.pt", weights_only=True)["model"]
    x = torch.tensor([[float(cell) for cell in row] for row in plain()[:5][::-1]])
    x = (x - state["mean"]) / state["std"]
    for row, (r, c, far) in zip(x, rows, strict=True):
        each = (state["weight"] - row).norm(dim=1)
        assert each.argmin() == 3 * int(r) + int(c)
        assert each.min().item() == pytest.approx(float(far), rel=1e-4)
    table("b.csv", plain()[:1])  # one row can be mapped, if not trained on
    assert "examples 1" in call(PATH, *CSV, "--predict", "b.csv", "--out", "o")[1]
    mistake(PATH, *CSV, "--predict", "b.csv", "--n_rows", "5", "--out", "o", about="weight is")
    table("c.csv", [row[:1] for row in plain()])
    mistake(PATH, *CSV, "--predict", "c.csv", "--out", "o", about="weight is")


@pytest.mark.parametrize(
    "rows, about",
    [
        ([], "holds no rows"),
        ([["1", "2"]], "one row is nothing"),
        ([["a", "b"]], "holds no rows"),
        ([["1", "2"], ["3"]], "data row 2 has 1 cells, the first 2"),
        ([["1", "2"], ["nan", "3"]], "data row 2 holds 'nan'"),
        ([["1", "2"], ["inf", "3"]], "data row 2 holds 'inf'"),
        ([["1", "2"], ["x", "3"]], "data row 2 holds 'x'"),
        ([["1", "2"], ["", "3"]], "data row 2 holds ''"),
        ([["a"], ["b"], ["c"]], "holds no rows"),
    ],
)
def test_bad_tables(rows, about):
    table("a.csv", rows)
    mistake(PATH, *CSV, "--out", "o", about=about)


def test_files_that_are_no_tables():
    mistake(PATH, *CSV, about="--data_root a.csv: cannot be read")
    Path("a.csv").write_bytes(b"\xff\xfe1,2\n")
    mistake(PATH, *CSV, about="is no csv text")


@pytest.mark.parametrize(
    "argv, about",
    [
        (["--n_rows", "1", "--n_columns", "1"], "a map has 2 to 10,000 units"),
        (["--n_rows", "101", "--n_columns", "100"], "a map has 2 to 10,000 units"),
        (["--neighbourhood", "mexican_hat"], "--training online"),
        (["--sigma", "0"], "--sigma"),
    ],
)
def test_mistakes(argv, about):
    mistake(PATH, *argv, about=about)
