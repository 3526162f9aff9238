"""em_coins.py: the numbers of the books, likelihoods by plain products, no step downhill."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from house import call, load, mistake

mod = load("classic_ml/em_coins.py")
PATH = Path(mod.__file__)
TWO = [(5, 10), (9, 10), (8, 10), (4, 10), (7, 10)]
THREE = [(int(side), 1) for side in "1101001011"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def counts(trials):
    return torch.tensor(trials, dtype=torch.float64).T


def steps(trials, start, n):
    """Numbers before the first step and after each, as the books list them."""
    path = mod.em_path(*counts(trials), *mod.unpack(start), len(start) == 3, n)
    return [[w[0].item(), *t.tolist()][-len(start) :] for w, t in path]


def likelihood(trials, w, t):
    """Products over all ways to have picked the coins: nothing is summed inside a log."""
    total = 0.0
    for picked in itertools.product(range(2), repeat=len(trials)):
        chance = 1.0
        for k, (h, n) in zip(picked, trials, strict=True):
            chance *= w[k] * t[k] ** h * (1 - t[k]) ** (n - h)
        total += chance
    return total


def random_problem(seed):
    draw = torch.Generator().manual_seed(seed)
    n = torch.randint(1, 12, (6,), generator=draw).double()
    h = (n * torch.rand(6, generator=draw)).round()
    share = torch.rand(1, generator=draw, dtype=torch.float64) * 0.98 + 0.01
    t = torch.rand(2, generator=draw, dtype=torch.float64) * 0.98 + 0.01
    return h, n, torch.cat([share, 1 - share]), t


def test_two_coins_of_the_paper():
    path = steps(TWO, [0.6, 0.5], 10)
    assert path[1] == pytest.approx([0.7130, 0.5813], abs=5.1e-5)
    assert path[10] == pytest.approx([0.7967, 0.5197], abs=5.1e-5)
    r = mod.expectation(mod.joint_of_coins(*counts(TWO), *mod.unpack([0.6, 0.5])))
    assert r[:, 0].tolist() == pytest.approx([0.45, 0.80, 0.73, 0.35, 0.65], abs=0.0051)
    assert r.sum(1).tolist() == pytest.approx([1.0] * 5, abs=1e-15)


def test_two_coins_with_labels():
    h, n = counts(TWO)
    r = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1], [1, 0]], dtype=torch.float64)
    _, t = mod.maximisation(h, n, r, *mod.unpack([0.6, 0.5]), False)
    assert t.tolist() == pytest.approx([0.80, 0.45], abs=1e-15)


@pytest.mark.parametrize(
    "start, want",
    [([0.5, 0.5, 0.5], [0.5, 0.6, 0.6]), ([0.4, 0.6, 0.7], [0.4064, 0.5368, 0.6432])],
)
def test_three_coins_of_the_book(start, want):
    path = steps(THREE, start, 10)
    assert path[1] == pytest.approx(want, abs=5.1e-5)
    assert path[10] == pytest.approx(path[1], abs=1e-12)  # one step is enough


@pytest.mark.parametrize("seed", range(5))
def test_three_coins_reach_the_ridge_in_one_step(seed):
    draw = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pi, p, q = steps(THREE, draw.tolist(), 1)[1]
    assert pi * p + (1 - pi) * q == pytest.approx(0.6, abs=1e-12)
    l_ik = mod.joint_of_coins(*counts(THREE), *mod.unpack([pi, p, q]))
    top = 6 * math.log(0.6) + 4 * math.log(0.4)
    assert mod.log_likelihood(l_ik).item() == pytest.approx(top, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_one_step_coin_by_coin(seed):
    h, n, w, t = random_problem(seed)
    trials = [*zip(h.tolist(), n.tolist(), strict=True)]
    l_ik = mod.joint_of_coins(h, n, w, t)
    want = math.log(likelihood(trials, w.tolist(), t.tolist()))
    assert mod.log_likelihood(l_ik).item() == pytest.approx(want, abs=1e-12)
    heads, flips, share = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    for a, b in trials:
        each = [w[k].item() * t[k].item() ** a * (1 - t[k].item()) ** (b - a) for k in (0, 1)]
        for k in (0, 1):
            part = each[k] / sum(each)
            heads[k] += part * a
            flips[k] += part * b
            share[k] += part / len(trials)
    (_, (fixed, new)), (_, (learned, _)) = (
        mod.em_path(h, n, w, t, learn, 1) for learn in (False, True)
    )
    want = [a / b for a, b in zip(heads, flips, strict=True)]
    assert new.tolist() == pytest.approx(want, abs=1e-12)
    assert fixed.tolist() == w.tolist() and learned.tolist() == pytest.approx(share, abs=1e-12)


def gains(problem, learn_w, n=30):
    h, n_flips, w, t = problem
    path = mod.em_path(h, n_flips, w, t, learn_w, n)
    L = [mod.log_likelihood(mod.joint_of_coins(h, n_flips, *each)).item() for each in path]
    return [b - a for a, b in itertools.pairwise(L)]


@pytest.mark.parametrize("learn_w", [False, True])
def test_likelihood_never_falls(learn_w):
    for seed in range(40):
        assert min(gains(random_problem(seed), learn_w)) >= -1e-12


def test_a_wrong_step_falls(monkeypatch):
    right = mod.maximisation

    def too_far(h, n, r, w, t, learn_w):
        w, new = right(h, n, r, w, t, learn_w)
        return w, (t + 2.5 * (new - t)).clamp(0.01, 0.99)

    monkeypatch.setattr(mod, "maximisation", too_far)
    assert min(min(gains(random_problem(seed), False)) for seed in range(40)) < -1e-3


def test_bound_touches_at_its_own_r_alone():
    for seed in range(20):
        h, n, w, t = random_problem(seed)
        l_ik = mod.joint_of_coins(h, n, w, t)
        L, r = mod.log_likelihood(l_ik), mod.expectation(l_ik)
        assert mod.lower_bound(l_ik, r).item() == pytest.approx(L.item(), abs=1e-12)
        other = torch.rand(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        other = torch.cat([other, 1 - other], 1)
        assert mod.lower_bound(l_ik, other) < L
        assert mod.lower_bound(l_ik, (r > 0.5).double()) <= L  # 0 log 0 is 0


@pytest.mark.parametrize("start", [[0.6, 0.5], [0.4, 0.6, 0.7]])
def test_nothing_on_a_grid_is_likelier(start):
    trials = TWO if len(start) == 2 else THREE
    h, n = counts(trials)
    w, t = mod.em_path(h, n, *mod.unpack(start), len(start) == 3, 200)[-1]
    ticks, L = mod.surface(h, n, w, 100)
    best = mod.log_likelihood(mod.joint_of_coins(h, n, w, t))
    assert best >= L.max() - 1e-12 and best < L.max() + 0.01
    for row, column in ((3, 40), (70, 20), (99, 0)):  # the surface, point by point
        pair = [ticks[column].item(), ticks[row].item()]
        want = math.log(likelihood(trials, w.tolist(), pair))
        assert L[row, column].item() == pytest.approx(want, abs=1e-10)
    if len(start) == 2:  # and the other top is as high
        assert (L - L.T).abs().max() < 1e-12


def test_exchanged_and_equal_coins():
    path, other = steps(TWO, [0.6, 0.5], 10), steps(TWO, [0.5, 0.6], 10)
    assert other[-1] == pytest.approx(path[-1][::-1], abs=1e-12)
    assert steps(TWO, [0.3, 0.3], 10)[-1] == pytest.approx([33 / 50] * 2, abs=1e-12)
    code, _, err = call(PATH, "--start", "0.3", "0.3")
    assert code == 0 and "stay alike" in err and err.count("\n") == 1


def test_certain_coins_are_no_trouble():
    """All heads or all tails drive a chance to 0 or 1, where plain logs would give nan."""
    trials = [(4, 4), (0, 4), (4, 4), (0, 4)]
    assert steps(trials, [0.6, 0.5], 100)[-1] == pytest.approx([1.0, 0.0], abs=1e-9)
    h, n = counts(trials)
    w, sure = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    l_ik = mod.joint_of_coins(h, n, w, sure)
    assert mod.log_likelihood(l_ik).item() == pytest.approx(4 * math.log(0.5), abs=1e-12)
    assert mod.lower_bound(l_ik, mod.expectation(l_ik)).item() == pytest.approx(4 * math.log(0.5))
    assert mod.em_path(h, n, w, sure, True, 3)[-1][1].tolist() == [1.0, 0.0]
    # A coin without a share in any trial keeps its chance.
    r = torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64)
    assert mod.maximisation(h, n, r, w, sure + 0.25, True)[1][1] == 0.25


def test_many_flips_do_not_underflow():
    path = steps([(60_000, 100_000), (20_000, 100_000)], [0.55, 0.3], 5)
    assert path[-1] == pytest.approx([0.6, 0.2], abs=1e-12)


def test_table_and_picture():
    for model in mod.EXAMPLES:
        code, out, err = call(PATH, "--model", model, "--out", model, "--n_iterations", "60")
        assert (code, err) == (0, "") and 20 < out.count("\n") <= 30
        assert Path(model, "path.png").stat().st_size > 10_000
    assert "A 0.7968  B 0.5196" in call(PATH, "--n_iterations", "60")[1]


def test_known_numbers_are_judged(monkeypatch, tmp_path):
    monkeypatch.setattr(mod.tempfile, "tempdir", str(tmp_path))
    assert call(PATH, "--smoke")[0] == 0
    assert call(PATH, "--smoke", "--model", "three_coins")[0] == 0
    monkeypatch.setattr(mod, "KNOWN", [("two_coins", [0.6, 0.5], 9, [0.7968, 0.5197])])
    assert call(PATH, "--smoke")[0] == 1


@pytest.mark.parametrize(
    "argv, about",
    [
        (["--trials", "five"], "--trials: five is not heads/flips"),
        (["--trials", "5/10", "5"], "--trials: 5 is"),
        (["--trials", "-1/10"], "--trials"),
        (["--trials", "11/10"], "--trials: 11/10 has"),
        (["--trials", "0/0"], "--trials: 0/0 has no flips"),
        (["--start", "0.5"], "--start: --model two_coins takes 2"),
        (["--start", "0.5", "0.5", "--model", "three_coins"], "takes 3 numbers; type pi p q"),
        (["--start", "0", "0.5"], "--start"),
        (["--start", "1", "0.5"], "--start"),
    ],
)
def test_mistakes(argv, about):
    mistake(PATH, *argv, "--out", "o", about=about)
