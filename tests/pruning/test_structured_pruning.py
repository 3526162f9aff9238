"""structured_pruning.py: what goes together, that masked and removed nets agree, plans that travel
in checkpoints, and what the table says."""

import json

import pytest
import torch
import torch.nn.functional as F
from house import call, load, mistake

mod = load("pruning/structured_pruning.py")
PATH = mod.Path(mod.__file__)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def net(*argv, seed=0):
    """With statistics, scales and offsets that are not those of a new net."""
    torch.manual_seed(seed)
    args = mod.parse_args([*argv, "--width", "8", "--device", "cpu"])
    model = mod.build(args).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.2, 1.5)
    return model


X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
RESNET = ["--depths", "2", "1", "2"]
VIT = ["--model", "vit", "--units", "heads", "--depths", "3", "--heads", "2"]
CASES = [(RESNET, kind) for kind in ("inner", "stream", "blocks")]
CASES += [(VIT, kind) for kind in ("heads", "neurons", "blocks")]


def pair(argv, units, sparsity=0.5, score="l1"):
    """The same net masked and cut by one plan."""
    masked, cut = net(*argv), net(*argv)
    plan = mod.choose_units(cut, sparsity, units, score, X, Y)
    mod.set_to_zero(masked, plan)
    mod.shrink(cut, plan)
    return masked, cut, plan


# --- masked and removed --------------------------------------------------------------------------
@pytest.mark.parametrize("argv, kind", CASES)
@pytest.mark.parametrize("score", ["l1", "taylor", "random"])
def test_masked_is_removed(argv, kind, score):
    masked, cut, plan = pair(argv, [kind], score=score)
    dense = net(*argv)
    with torch.inference_mode():
        assert (masked(X) - cut(X)).abs().max() < 1e-5 * dense(X).abs().max()
        assert (dense(X) - cut(X)).abs().max() > 1e-4
    assert not plan.all() and torch.equal(cut.plan, plan)
    n = [sum(p.numel() for p in model.parameters()) for model in (dense, masked, cut)]
    assert n[0] == n[1] > n[2]


@pytest.mark.parametrize("argv, kinds", [(RESNET, mod.KINDS), (VIT, mod.KINDS)])
def test_all_kinds_at_once_and_again(argv, kinds):
    masked, cut, _ = pair(argv, kinds, 0.3)
    plan = mod.choose_units(cut, 0.6, kinds, "l2", X, Y)
    assert not (plan & ~cut.plan).any()  # what is gone stays gone
    mod.set_to_zero(masked, plan)
    mod.shrink(cut, plan)
    with torch.inference_mode():
        assert (masked(X) - cut(X)).abs().max() < 1e-5


def test_a_constant_that_vanishes_is_seen(monkeypatch):
    """Zero filters alone would leave relu(beta): their norms must be zero as well."""
    true = mod.walk_groups

    def layers_alone(model, plan):
        for kind, old, new, members in true(model, plan):
            yield kind, old, new, [member for member in members if member[1].ndim > 1]

    masked, cut, plan = pair(RESNET, ["inner"])
    spoilt = net(*RESNET)
    monkeypatch.setattr(mod, "walk_groups", layers_alone)
    mod.set_to_zero(spoilt, plan)
    with torch.inference_mode():
        assert (masked(X) - cut(X)).abs().max() < 1e-5 < (spoilt(X) - cut(X)).abs().max()


# --- groups --------------------------------------------------------------------------------------
def test_groups_of_a_resnet():
    groups = net(*RESNET).groups
    assert [group.kind for group in groups if group.kind != "blocks"].count("stream") == 3
    assert [group.n for group in groups if group.kind == "stream"] == [8, 16, 32]
    assert [group.n for group in groups if group.kind == "inner"] == [8, 8, 16, 32, 32]
    last = next(group for group in groups[::-1] if group.kind == "stream")
    assert ("fc.weight", 1, 1) in last.members and ("fc.bias", 0, 1) not in last.members
    assert sum(group.kind == "blocks" for group in groups) == 3  # the others change the shape


def test_every_entry_is_in_as_many_groups_as_it_has_prunable_sides():
    model = net(*RESNET)
    sides = {(name, dim) for g in model.groups if g.kind != "blocks" for name, dim, _ in g.members}
    for name, tensor in model.state_dict().items():
        if name != "plan" and tensor.ndim:
            ends = {0} if tensor.ndim == 1 else {0, 1}
            ends -= {1} if name == "conv1.weight" else {0} if name.startswith("fc.") else set()
            assert {dim for at, dim in sides if at == name} == ends, name


def test_heads_keep_their_size():
    _, cut, _ = pair(VIT, ["heads"])
    block = cut.blocks[0]
    assert block.q.weight.shape == (4, 8) and block.proj.weight.shape == (8, 4)
    assert block.head_dim == 4 and block.fc1.weight.shape == (32, 8)


@pytest.mark.parametrize("argv", [RESNET, VIT])
def test_layers_tell_their_new_sizes(argv):
    _, cut, _ = pair(argv, ["inner", "stream", "heads", "neurons"])
    told = {"Conv2d": ["out_channels", "in_channels"], "Linear": ["out_features", "in_features"]}
    told["BatchNorm2d"] = ["num_features"]
    for layer in cut.modules():
        keys = told.get(type(layer).__name__, [])
        assert [getattr(layer, key) for key in keys] == [*getattr(layer, "weight", X).shape][
            : len(keys)
        ]


def test_one_unit_is_left():
    _, cut, plan = pair(RESNET, ["inner", "stream"], 0.999)
    left = [int(part.sum()) for part in plan.split([group.n for group in cut.groups])]
    assert left == [1] * len(cut.groups)
    assert cut(X).shape == (6, 10)


# --- scores --------------------------------------------------------------------------------------
def test_scores_by_hand():
    w, rows = torch.randn(4, 3, 3, 3), torch.randn(5, 4, 3, 3)
    gamma = torch.tensor([0.5, -2.0, 1.0, 0.1])
    members = [("a.weight", w, 0, 1), ("n.weight", gamma, 0, 1), ("b.weight", rows, 1, 1)]
    assert torch.allclose(mod.worth(members, 4, "l1"), w.abs().sum((1, 2, 3)))
    assert torch.allclose(mod.worth(members, 4, "l2"), w.square().sum((1, 2, 3)))
    assert torch.equal(mod.worth(members, 4, "bn_gamma"), gamma.abs())
    w.grad, rows.grad = torch.randn_like(w), torch.randn_like(rows)
    total = (w * w.grad).sum((1, 2, 3)).abs() + (rows * rows.grad).sum((0, 2, 3)).abs()
    assert torch.allclose(mod.worth(members, 4, "taylor"), total)


def test_width_of_a_head_counts_all_its_rows():
    w = torch.randn(6, 4)
    assert torch.allclose(mod.worth([("q.weight", w, 0, 3)], 2, "l1"), w.abs().view(2, -1).sum(1))


def test_taylor_foretells_the_loss():
    """Of a unit that is nearly gone, (4) is the change of the loss to first order."""
    model = net(*RESNET).double()
    x = X.double()
    weight = model.layer1[0].conv2.weight
    weight.data *= 1e-4
    model.zero_grad()
    before = F.cross_entropy(model(x), Y)
    before.backward()
    told = mod.worth([("layer1.0.conv2.weight", weight, 1, 1)], 8, "taylor")
    worst = told.argmax()
    weight.data[:, worst] = 0
    change = (F.cross_entropy(model(x), Y) - before).abs().item()
    assert told[worst].item() == pytest.approx(change, rel=1e-2) and change > 0


def test_a_block_that_does_nothing_goes_first():
    model = net("--depths", "4", "1", "1")
    for name in ("weight", "bias"):
        getattr(model.layer1[2].bn2, name).data.zero_()
    found = mod.turns(model, ["layer1.1", "layer1.2", "layer1.3"], X)
    assert (
        found["layer1.2"] == pytest.approx(0, abs=1e-6) and min(found, key=found.get) == "layer1.2"
    )
    y = model(X)
    mod.shrink(model, mod.choose_units(model, 0.25, ["blocks"], "l1", X, Y))
    assert isinstance(model.layer1[2], torch.nn.Identity)
    assert torch.equal(model(X), y)
    assert all(hasattr(model.layer1[at], "conv2") for at in (0, 1, 3))


# --- plans that travel ---------------------------------------------------------------------------
@pytest.mark.parametrize("argv", [RESNET, VIT])
def test_a_cut_net_loads_into_a_dense_one(argv):
    _, cut, _ = pair(argv, mod.KINDS, 0.4)
    fresh = net(*argv, seed=1)
    fresh.load_state_dict(cut.state_dict())
    with torch.inference_mode():
        assert torch.equal(fresh(X), cut(X))
    dense = net(*argv, seed=2)
    bare = {key: value for key, value in dense.state_dict().items() if key != "plan"}
    again = net(*argv, seed=3)
    again.load_state_dict(bare)
    with torch.inference_mode():
        assert torch.equal(again(X), dense(X))


def test_weights_of_the_sibling_load(tmp_path):
    sibling = load("pruning/magnitude_pruning.py")
    args = sibling.parse_args(["--width", "8", "--device", "cpu"])
    theirs = sibling.build(args).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    ours = mod.build(
        mod.parse_args(["--width", "8", "--device", "cpu", "--weights", "w.pt"])
    ).eval()
    with torch.inference_mode():
        assert torch.equal(ours(X), theirs(X))


def test_a_net_with_other_units_is_refused(tmp_path):
    _, cut, _ = pair(RESNET, ["inner"])
    torch.save(cut.state_dict(), "cut.pt")
    flags = ["--depths", "1", "1", "1", "--width", "8", "--weights", "cut.pt"]
    mistake(PATH, *flags, about="--weights cut.pt")
    flags[1:4] = "2", "1", "2"
    model = mod.build(mod.parse_args([*flags, "--device", "cpu"])).eval()
    with torch.inference_mode():
        assert torch.equal(model(X), cut(X))


# --- training ------------------------------------------------------------------------------------
QUICK = ["--n_epochs", "3", "--dense_epochs", "1", "--width", "4", "--sparsity", "0.25", "0.5"]


@pytest.mark.parametrize(
    "more", [["--units", "inner", "stream"], ["--model", "vit", "--units", "heads"]]
)
def test_levels_and_table(more, tmp_path):
    args = mod.parse_args([*QUICK, *more, "--device", "cpu", "--out", "o"])
    metrics = mod.train(args)
    rows = [json.loads(text) for text in (tmp_path / "o/log.jsonl").read_text().splitlines()]
    assert [row["level"] for row in rows] == [0, 0.25, 0.5]
    assert rows[0]["params"] > rows[1]["params"] > rows[2]["params"] == metrics["params"]
    assert rows[0]["macs"] > rows[1]["macs"] > rows[2]["macs"]
    table = [line.split() for line in (tmp_path / "o/levels.txt").read_text().splitlines()]
    dense, masked, removed = table[-3:]
    assert [row[0] for row in table[-3:]] == ["dense", "masked", "removed"]
    assert dense[1:4] == masked[1:4] and int(removed[1]) == metrics["params"] < int(dense[1])
    assert (tmp_path / "o/levels.png").stat().st_size > 1000
    saved = torch.load("o/last.pt", weights_only=True)["model"]
    learned = [
        v.numel() for k, v in saved.items() if not k.startswith("plan") and "running" not in k
    ]
    assert sum(n for n in learned if n > 1) == metrics["params"]


def test_multiplications_by_hand():
    model = net("--depths", "1", "1", "1")
    w = 8
    by_hand = 64 * 9 * (w + 2 * w * w)  # the stem, and the first stage at 8 x 8
    by_hand += 16 * (9 * (2 * w * w + 4 * w * w) + 2 * w * w) + 4 * (
        9 * (8 + 16) * w * w + 8 * w * w
    )
    assert mod.size(model, X[:1])["macs"] == by_hand + 4 * w * 10


def test_a_run_goes_on_from_a_cut_net(tmp_path):
    flags = [*QUICK, "--device", "cpu", "--out", "o"]
    whole = mod.train(mod.parse_args([*flags[:-1], "whole"]))
    short = mod.parse_args(flags)
    short.n_epochs = 3
    calls = []

    def stop(args, **row):
        calls.append(row)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mod, "log", stop)
        mod.train(short)
    goes_on = mod.train(mod.parse_args([*flags, "--resume"]))
    assert goes_on["test_acc"] == whole["test_acc"] and goes_on["params"] == whole["params"]
    a, b = (torch.load(f"{at}/last.pt", weights_only=True)["model"] for at in ("o", "whole"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- command line --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "argv, part",
    [
        (["--units", "heads"], "--units heads: this resnet has none"),
        (["--units", "inner", "neurons"], "--units neurons: this resnet has none"),
        (["--model", "vit"], "--units inner: this vit has none"),
        (["--model", "vit", "--units", "heads", "--score", "bn_gamma"], "--score bn_gamma"),
        (["--model", "vit", "--units", "heads", "--width", "18"], "--width"),
        (["--sparsity", "0.9", "0.5"], "must rise"),
        (["--sparsity", "1"], "--sparsity"),
    ],
)
def test_mistakes(argv, part):
    mistake(PATH, *argv, about=part)


def test_help_says_what_a_mask_does():
    code, out, _ = call(PATH, "--help")
    assert code == 0 and "A MASK MAKES NOTHING SMALLER" in out
