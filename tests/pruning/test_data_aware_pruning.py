"""data_aware_pruning.py: attention, cut nets against masked ones, multiplications, the budget, and
an agent that finds the better arm of a bandit."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from house import call, load, mistake
from torch.utils.flop_counter import FlopCounterMode

mod = load("pruning/data_aware_pruning.py")
PATH = mod.Path(mod.__file__)
X = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def net(dtype=torch.float32, seed=0):
    """With statistics, scales and offsets that are not those of a new net."""
    torch.manual_seed(seed)
    model = mod.AttentiveNet([8, 16, 16], 3, 10, 4).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.2, 1.5)
    for layer in model.layers:
        torch.nn.init.normal_(layer.attend.weight)
    return model.to(dtype)


def plan(*rows):
    return [torch.tensor(row, dtype=torch.bool) for row in rows]


SOME = plan([1, 0], [0, 1, 1, 0], [1, 0, 1, 1])


# --- model ---------------------------------------------------------------------------------------
def test_attention_by_hand():
    layer, x = net(torch.float64).layers[1], torch.rand(5, 8, 8, 8, dtype=torch.float64)
    y, g = layer(x)
    e = (x.mean((2, 3)) @ layer.attend.weight.mT + layer.attend.bias).exp()
    wanted = 4 * e / e.sum(1, keepdim=True)
    assert (g - wanted).abs().max() < 1e-9 and (g.mean(1) - 1).abs().max() < 1e-9
    plain = F.batch_norm(
        F.conv2d(x, layer.conv.weight, stride=2, padding=1),
        layer.bn.running_mean,
        layer.bn.running_var,
        layer.bn.weight,
        layer.bn.bias,
    ).clamp(min=0)
    for group in range(4):
        part = slice(4 * group, 4 * group + 4)
        assert (y[:, part] - wanted[:, group, None, None, None] * plain[:, part]).abs().max() < 1e-9
    assert (y - plain).abs().max() > 1e-3


def test_an_image_alone_or_among_others():
    model = net()
    together = model(X)
    assert all((model(X[i : i + 1]) - together[i]).abs().max() < 1e-5 for i in range(6))


def test_all_groups_are_the_whole_net():
    model = net()
    everything = [torch.ones_like(layer.keep) for layer in model.layers]
    assert torch.equal(model(X, everything), model(X))
    mod.cut(model, everything)
    assert torch.equal(net()(X), model(X))


# --- masked and removed --------------------------------------------------------------------------
@pytest.mark.parametrize("some", [SOME, plan([0, 1], [1, 0, 0, 0], [0, 0, 0, 1])])
def test_masked_is_removed(some):
    masked, cut = net(torch.float64), net(torch.float64)
    x = X.double()
    mod.cut(cut, some)
    assert (masked(x, some) - cut(x)).abs().max() < 1e-9
    assert (masked(x) - cut(x)).abs().max() > 1e-2
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in masked.parameters())
    single, small = net(), net()
    mod.cut(small, some)
    assert (single(X, some) - small(X)).abs().max() < 1e-5 * max(1, single(X).abs().max())


def test_other_groups_are_seen():
    masked, cut = net(), net()
    mod.cut(cut, [~SOME[0], *SOME[1:]])  # as many, but not the same
    assert (masked(X, SOME) - cut(X)).abs().max() > 1e-3


def test_cut_twice_and_reload(tmp_path):
    once, twice = net(), net()
    mod.cut(twice, plan([1, 1], [0, 1, 1, 1], [1, 1, 1, 1]))
    mod.cut(twice, plan([1, 0], [1, 1, 0], [1, 0, 1, 1]))  # of those there
    mod.cut(once, SOME)
    assert torch.equal(once(X), twice(X))
    assert all(torch.equal(a.keep, b) for a, b in zip(twice.layers, SOME, strict=True))
    fresh = mod.AttentiveNet([8, 16, 16], 3, 10, 4).eval()
    fresh.load_state_dict(twice.state_dict(), strict=True)
    assert torch.equal(fresh(X), once(X))
    assert fresh.layers[1].conv.in_channels == 4 and fresh.fc.in_features == 12
    with pytest.raises(RuntimeError, match="keep"):
        mod.AttentiveNet([8, 16, 24], 3, 10, 4).load_state_dict(twice.state_dict())


# --- multiplications -----------------------------------------------------------------------------
@pytest.mark.parametrize("some", [None, SOME])
@pytest.mark.parametrize("side", [8, 13])
def test_multiplications(some, side):
    model = net()
    counts = [2, 4, 4] if some is None else [1, 2, 3]
    wanted = mod.count_macs(model, counts, side)
    mod.cut(model, some or plan([1] * 2, [1] * 4, [1] * 4))
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, side, side))
    assert counter.get_total_flops() == 2 * wanted
    assert mod.size(model, torch.rand(1, 3, side, side))["macs"] == wanted


WORTH = [torch.tensor([1.2, 0.8]), torch.tensor([0.1, 1.4, 1.3, 1.2]), torch.ones(4)]


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("start", [[2, 4, 4], [1, 1, 1], [2, 1, 3]])
def test_the_budget_is_met_and_used_up(share, start):
    model = net()
    budget = share * mod.count_macs(model, [2, 4, 4], 8)
    counts = mod.project(model, start, WORTH, 8, budget)
    assert mod.count_macs(model, counts, 8) <= budget
    for at, n in enumerate([2, 4, 4]):
        more = [c + (i == at) for i, c in enumerate(counts)]
        assert counts[at] == n or mod.count_macs(model, more, 8) > budget
    assert start == [2, 1, 3] or mod.project(model, counts, WORTH, 8, budget) == counts


def test_the_least_worthy_goes_first():
    model = net()
    budget = mod.count_macs(model, [2, 4, 4], 8) - 1
    assert mod.project(model, [2, 4, 4], WORTH, 8, budget) == [2, 3, 4]
    assert [m.tolist() for m in mod.to_plan([1, 3, 4], WORTH, "cpu")] == [
        [True, False],
        [False, True, True, True],
        [True] * 4,
    ]


def test_worth():
    model = net()
    found = mod.worth_of_groups(model, X, "attention")
    seen = [model.look(x[None])[1] for x in X]
    for at, w in enumerate(found):
        assert (w - sum(g[at][0] for g in seen) / 6).abs().max() < 1e-5
        assert w.mean() == pytest.approx(1, abs=1e-5)
    other = mod.worth_of_groups(model, 1 - X, "attention")  # other data, other groups
    assert max((a - b).abs().max() for a, b in zip(found, other, strict=True)) > 1e-2
    norm = model.layers[0].conv.weight.abs().view(2, -1).sum(1)
    assert torch.allclose(mod.worth_of_groups(model, X, "l1")[0], norm / norm.mean())


# --- agent ---------------------------------------------------------------------------------------
def bandit_slope(theta, rewards, baseline, beta=0.0):
    """Mean of the gradient over both arms: arm 0 has the chance sigmoid(theta)."""
    theta = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    total = 0.0
    for arm, reward in enumerate(rewards):
        choice = torch.distributions.Categorical(logits=torch.stack([theta, 0 * theta]))
        logp = choice.log_prob(torch.tensor(arm))
        loss = mod.policy_loss(reward, baseline, logp, choice.entropy(), beta)
        total += logp.exp().detach() * loss
    return torch.autograd.grad(total, theta)[0].item()


@pytest.mark.parametrize("baseline", [0.0, 0.4, -3.0])
@pytest.mark.parametrize("theta", [-1.0, 0.0, 2.0])
def test_gradient_of_a_bandit(theta, baseline):
    p = 1 / (1 + math.exp(-theta))
    up = p * (1 - p) * (0.9 - 0.2)  # of p 0.9 + (1 - p) 0.2: the baseline has no part in it
    assert bandit_slope(theta, [0.9, 0.2], baseline) == pytest.approx(-up, abs=1e-9)
    assert bandit_slope(theta, [0.2, 0.9], baseline) == pytest.approx(up, abs=1e-9)
    entropy_up = -p * (1 - p) * theta
    found = bandit_slope(theta, [0.9, 0.2], baseline, 0.5)
    assert found == pytest.approx(-up - 0.5 * entropy_up, abs=1e-9)


def test_agent_finds_what_is_rewarded(monkeypatch):
    """The reward is the share of the last layer: the counts must lean that way."""
    model = net()
    worth, budget = mod.worth_of_groups(model, X, "attention"), 1e9  # no budget: nothing to mend
    monkeypatch.setattr(mod, "project", lambda net, counts, *_: counts)

    def judge(sign):
        seen = []

        def share(net, x, y, plan):
            seen.append(plan[2].float().mean().item())
            return {"test_acc": sign * seen[-1]}

        monkeypatch.setattr(mod, "evaluate", share)
        torch.manual_seed(0)
        args = mod.parse_args(["--agent_lr", "0.03", "--episodes", "200", "--device", "cpu"])
        counts = mod.search(model, worth, budget, X, None, args)
        assert len(seen) == 200
        return counts[2], sum(seen[-20:]) / 20

    high, low = judge(1), judge(-1)
    assert high[0] == 4 and low[0] == 1 and high[1] > 0.8 and low[1] < 0.45


# --- training ------------------------------------------------------------------------------------
QUICK = ["--n_epochs", "4", "--dense_epochs", "3", "--episodes", "20", "--device", "cpu"]


def trained(out, *more):
    metrics = mod.train(mod.parse_args([*QUICK, "--out", str(out), *more]))
    rows = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    return metrics, torch.load(out / "last.pt", weights_only=True), rows


def test_run_table_and_reload(tmp_path):
    metrics, saved, rows = trained(tmp_path / "a")
    assert ["cut_acc" in row for row in rows] == [False, False, False, True]
    assert rows[3]["macs"] <= 0.5 * rows[2]["macs"] < rows[2]["macs"]
    assert metrics["dense_acc"] == rows[2]["test_acc"] and metrics["macs"] == rows[3]["macs"]
    text = (tmp_path / "a/policies.txt").read_text().splitlines()
    sizes = {row.split()[0]: row.split()[1:] for row in text if row.split()}
    assert sizes["dense"][:3] == sizes["masked"][:3] != sizes["removed"][:3]
    n = sum(w.numel() for k, w in saved["model"].items() if not k.endswith(("mean", "var", "keep")))
    assert int(sizes["removed"][0]) == n - 4  # num_batches_tracked
    more = ["--weights", str(tmp_path / "a/last.pt"), "--dense_epochs", "0", "--n_epochs", "1"]
    later, then, _ = trained(tmp_path / "b", *more, "--target_macs", "0.3")
    assert later["macs"] <= 0.3 * rows[2]["macs"]
    for i in range(4):  # what is gone stays gone
        old, new = (part["model"][f"layers.{i}.keep"] for part in (saved, then))
        assert not (new & ~old).any()


def test_parts_of_the_data_do_not_overlap():
    args = mod.parse_args(["--device", "cpu"])
    torch.manual_seed(0)
    parts = mod.load_data(args)
    assert [len(x) for x, _ in parts] == [1198, 239, 360]
    rows = {tuple(row) for x, _ in parts for row in x.flatten(1).tolist()}
    assert len(rows) == 1797


# --- command line --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "argv, part",
    [
        (["--widths", "16", "30"], "--widths 30: does not divide by --group_size 4"),
        (["--target_macs", "0.01"], "--target_macs 0.01: one group in each layer takes"),
        (["--target_macs", "1"], "--target_macs"),
        (["--dataset", "mnist", "--data_root", "nowhere"], "--data_root nowhere"),
    ],
)
def test_mistakes(argv, part, tmp_path):
    if argv[0] == "--dataset":
        (tmp_path / "nowhere").write_text("a file, so that nothing can be downloaded into it")
    mistake(PATH, *argv, about=part)


def test_weights_of_another_width(tmp_path):
    torch.save(mod.AttentiveNet([8, 8, 8, 8], 1, 10, 4).state_dict(), tmp_path / "w.pt")
    mistake(PATH, *QUICK, "--weights", "w.pt", about="set the flags to match")
    assert call(PATH, *QUICK, "--widths", "8", "8", "8", "8", "--weights", "w.pt")[0] == 0
