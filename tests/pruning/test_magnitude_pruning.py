"""magnitude_pruning.py: which weights go, that they stay away, and what the table says of it."""

import json
import math

import pytest
import torch
from house import load, mistake
from torch import nn

mod = load("pruning/magnitude_pruning.py")
PATH = mod.Path(mod.__file__)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(seed=0):
    torch.manual_seed(seed)
    return {"a": torch.randn(8, 4, 3, 3), "b": torch.randn(10, 16)}


def ones(of):
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in of.items()}


# --- masks ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("method", ["global", "local", "random"])
def test_count_is_met_to_one_weight(method, sparsity):
    w = weights()
    masks = mod.prune(w, ones(w), sparsity, method)
    dead = {name: int((~mask).sum()) for name, mask in masks.items()}
    if method == "local":
        assert dead == {name: round(sparsity * v.numel()) for name, v in w.items()}
    assert sum(dead.values()) == pytest.approx(sparsity * 448, abs=1 if method == "local" else 0.5)
    if method != "random":
        assert all(v[~masks[k]].numel() == 0 or v[~masks[k]].abs().max() < 5 for k, v in w.items())


def test_global_takes_the_smallest_of_all_layers():
    w = weights()
    w["b"] /= 100
    masks = mod.prune(w, ones(w), 160 / 448)
    assert masks["a"].float().mean() > 0.95 and masks["b"].float().mean() < 0.1
    kept = torch.cat([v[masks[k]].abs() for k, v in w.items()])
    gone = torch.cat([v[~masks[k]].abs() for k, v in w.items()])
    assert gone.max() <= kept.min() and len(gone) == 160


def test_ties_do_not_spoil_the_count():
    w = {"a": torch.ones(5, 5), "b": torch.ones(5, 5)}
    for k in range(50):
        masks = mod.prune(w, ones(w), k / 50)
        assert sum(int((~mask).sum()) for mask in masks.values()) == k


def test_what_is_gone_stays_gone():
    w, masks = weights(), ones(weights())
    for sparsity in (0.2, 0.5, 0.8):
        old, masks = (
            masks,
            mod.prune({k: torch.randn_like(v) for k, v in w.items()}, masks, sparsity),
        )
        assert not any((masks[k] & ~old[k]).any() for k in w)
    less = mod.prune(w, masks, 0.1)  # asked for less than is gone
    assert all(torch.equal(less[k], masks[k]) for k in w)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("dim", [0, 1])
def test_channels_go_as_a_whole(norm, dim):
    w = weights()
    masks = mod.prune(w, ones(w), 0.5, "ln", norm, dim)
    for name, mask in masks.items():
        others = [d for d in range(mask.ndim) if d != dim]
        share = mask.float().mean(others)
        assert sorted({*share.tolist()}) == [0, 1] and share.mean() == 0.5
        size = w[name].abs().pow(norm).sum(others)
        assert size[share == 0].max() < size[share == 1].min()
    all_but_one = mod.prune(w, ones(w), 0.999, "ln", norm, dim)
    assert all(mask.any() for mask in all_but_one.values())


def test_norms_differ_for_channels_alone():
    w = {"a": torch.tensor([[3.0, 0.0, 0.0], [1.5, 1.5, 1.5]])}  # L1: 3 < 4.5; L2: 3 > 2.6
    first, second = (mod.prune(w, ones(w), 0.5, "ln", norm)["a"][:, 0].tolist() for norm in (1, 2))
    assert (first, second) == ([False, True], [True, False])


@pytest.mark.parametrize("n, m", [(2, 4), (1, 2), (3, 9)])
def test_n_of_m(n, m):
    w = torch.randn(4, 36)
    mask = mod.prune({"a": w}, ones({"a": w}), 0.5, "nm", nm=(n, m))["a"]
    groups, kept = w.abs().view(-1, m), mask.view(-1, m)
    assert (kept.sum(1) == n).all()
    for group, keep in zip(groups, kept, strict=True):
        assert group[keep].min() >= group[~keep].max()


def test_cubic_schedule():
    assert mod.cubic(0.1, 0.9, 0) == pytest.approx(0.1) and mod.cubic(0.1, 0.9, 1) == 0.9
    assert mod.cubic(0.1, 0.9, 2) == 0.9
    assert mod.cubic(0, 0.8, 0.5) == pytest.approx(0.8 - 0.8 / 8)


def test_prunable_leaves_out_what_is_excluded():
    model = mod.ResNet([1, 1], 4, 1, 10)
    assert {"conv1.weight", "fc.weight"} < {*mod.prunable(model)}
    some = mod.prunable(model, ["conv1", "layer2"])
    assert [*some] == ["layer1.0.conv1.weight", "layer1.0.conv2.weight", "fc.weight"]
    assert not any("bn" in name or "bias" in name for name in mod.prunable(model))


def test_momentum_cannot_revive_a_weight():
    torch.manual_seed(0)
    layer = nn.Linear(20, 5)
    own = mod.prunable(nn.Sequential(layer))
    masks = mod.prune(own, ones(own), 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for step in range(4):
        layer(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
        if step == 2:  # without (1) they come back
            assert layer.weight[~masks["0.weight"]].abs().max() > 0
        if step != 1:
            mod.apply_masks(own, masks) if step != 2 else None
    assert layer.weight[~masks["0.weight"]].abs().max() == 0


# --- training ------------------------------------------------------------------------------------
QUICK = ["--n_epochs", "4", "--dense_epochs", "2", "--width", "4"]


def trained(tmp_path, *more):
    args = mod.parse_args([*QUICK, *more, "--device", "cpu", "--out", str(tmp_path)])
    metrics = mod.train(args)
    rows = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    return metrics, torch.load(tmp_path / "last.pt", weights_only=True), rows


def test_levels_parts_and_table(tmp_path):
    metrics, saved, rows = trained(tmp_path, "--sparsity", "0.5", "0.75")
    assert [row["level"] for row in rows] == [0, 0, 0.5, 0.75]
    assert ["cut_acc" in row for row in rows] == [False, False, True, True]
    keep = torch.cat([mask.flatten() for mask in saved["masks"].values()])
    assert metrics["sparsity"] == pytest.approx(0.75, abs=1 / len(keep))
    assert {"conv1.weight", "fc.weight"}.isdisjoint(saved["masks"])
    for name, mask in saved["masks"].items():
        assert not saved["model"][name][~mask].any()
    head, *table = (tmp_path / "levels.txt").read_text().splitlines()
    assert head.split()[:2] == ["sparsity", "of_all"] and len(table) == 3
    assert (tmp_path / "levels.png").stat().st_size > 1000
    n = sum(p.numel() for p in mod.ResNet([1, 1, 1], 4, 1, 10).parameters())
    left = n - round(0.75 * len(keep))
    assert metrics["packed_kb"] == pytest.approx((4 * left + len(keep) / 8) / 1000, rel=1e-6)
    assert metrics["dense_kb"] == metrics["masked_kb"] == n * 4 / 1000


def test_rewinding_starts_from_the_early_weights(tmp_path):
    _, saved, _ = trained(tmp_path, "--sparsity", "0.5", "--rewind", "1", "--lr", "1e-30")
    for name, mask in saved["masks"].items():  # nothing has moved since
        assert torch.equal(saved["model"][name], saved["early"][name] * mask)
    _, other, _ = trained(tmp_path / "b", "--sparsity", "0.5", "--rewind", "1")
    name = "layer1.0.conv1.weight"
    assert not torch.equal(other["model"][name], other["early"][name] * other["masks"][name])


def test_cubic_ends_at_the_level(tmp_path):
    metrics, _, rows = trained(tmp_path, "--sparsity", "0.8", "--schedule", "cubic")
    assert 0.3 < rows[2]["sparsity"] <= rows[3]["sparsity"]
    assert metrics["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_loaded_weights_can_be_pruned_at_once(tmp_path):
    _, saved, _ = trained(tmp_path)
    torch.save(saved["model"], tmp_path / "w.pt")
    more = ["--weights", str(tmp_path / "w.pt"), "--dense_epochs", "0", "--lr", "0"]
    more += ["--sparsity", "0.9"]
    metrics, later, rows = trained(tmp_path / "b", *more)
    assert rows[0]["level"] == 0.9 and metrics["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert torch.equal(later["model"]["conv1.weight"], saved["model"]["conv1.weight"])
    assert not math.isnan(rows[0]["cut_acc"])


# --- command line --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "argv, part",
    [
        (["--nm", "4", "4"], "--nm 4 4: leaves all weights"),
        (["--method", "nm", "--nm", "2", "7"], "do not divide by 7"),
        (["--method", "nm", "--schedule", "cubic"], "--schedule cubic"),
        (["--exclude", "conv9"], "--exclude conv9: no layer; there are conv1.weight"),
        (["--exclude", "conv1", "fc", "layer1", "layer2", "layer3"], "nothing is left"),
        (["--sparsity", "0.9", "0.5"], "must rise"),
        (["--sparsity", "1"], "--sparsity"),
        (["--sparsity", "0"], "must rise"),
        (["--rewind", "5", "--dense_epochs", "2"], "--rewind 5"),
        (["--dataset", "mnist", "--data_root", "nowhere"], "--data_root nowhere"),
    ],
)
def test_mistakes(argv, part, tmp_path):
    if argv[0] == "--dataset":
        (tmp_path / "nowhere").write_text("a file, so that nothing can be downloaded into it")
    mistake(PATH, *argv, about=part)
