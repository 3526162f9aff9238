"""Convexity: exact examples, counterexamples that must be refuted, and paths equal to torch's."""

import math

import pytest
import torch
from house import call, load

mod = load("basics/convexity.py")
PATH = mod.Path(mod.__file__)


def points(i, d, m=4000):
    torch.manual_seed(0)
    return 4 * torch.rand(m, i, d, dtype=torch.float64) - 2


def zero(d):
    return torch.zeros(d, dtype=torch.float64)


def test_two_points_of_jensen():
    """E exp(X) = cosh 1 = 1.5431 >= exp(E X) = 1 for X = -1 or 1, as (3) says."""
    left = (math.exp(1) + math.exp(-1)) / 2
    assert left == math.cosh(1) == pytest.approx(1.5431, abs=1e-4)
    assert left >= math.exp(0)


def test_jensen_gap_by_a_loop(monkeypatch):
    x, weight = points(3, 2, m=50), torch.rand(50, 3)
    monkeypatch.setattr(torch, "rand", lambda *_: weight)
    w = weight.double() / weight.double().sum(1, keepdim=True)
    for f, d, _ in mod.FUNCTIONS.values():
        x_d = x[..., :d].abs()
        loop = []
        for row, part in zip(x_d, w, strict=True):
            middle = sum(part[i] * row[i] for i in range(3))
            loop.append(sum(part[i] * f(row[i]) for i in range(3)) - f(middle))
        assert abs(mod.jensen_gap(f, x_d) - min(loop)) < 1e-12


@pytest.mark.parametrize("name", mod.FUNCTIONS)
def test_functions(name):
    f, d, convex = mod.FUNCTIONS[name]
    x = points(4, d).abs() + 1e-3 if name == "-log x" else points(4, d)
    for i in (2, 4):
        assert (mod.jensen_gap(f, x[:, :i]) >= -1e-12) == convex
    assert (mod.eigenvalues(f, x[:, 0]).min() >= -1e-12) == convex
    negated = mod.jensen_gap(lambda x: -f(x), x)  # concave: (3) is the other way round
    assert negated < -0.01


def test_level_sets():
    """Convex for a convex f, but for many others too: on a line, those of x^3 and sqrt |x|."""
    x = points(2, 2)
    for name, (f, d, _) in mod.FUNCTIONS.items():
        inside = x[..., :d].abs() if name == "-log x" else x[..., :d]
        share = mod.outside(mod.level_set(f, 0.5), inside)
        assert share == 0 if name != "x^2 - y^2" else share > 0.01


def test_sets():
    *convex, union = [mod.outside(contains, points(2, 2)) for contains in mod.SETS.values()]
    assert convex == [0, 0, 0] and union > 0.1
    everything = mod.outside(lambda x: x[..., 0] < 9, points(2, 2))
    assert everything == 0  # R^d is convex: the domain, not the objective


def test_function_on_a_set_that_is_not_convex():
    f, x = mod.FUNCTIONS["max(x, y)"][0], points(2, 2)
    assert mod.jensen_gap(f, x, contains=mod.SETS["half-plane"]) >= -1e-12
    with pytest.raises(ValueError, match="a set that is not convex"):
        mod.jensen_gap(f, x, contains=mod.SETS["either of two discs"])


def test_hessian_at_the_saddle():
    f = mod.FUNCTIONS["x^2 - y^2"][0]
    assert mod.eigenvalues(f, zero(2)[None]).tolist() == [[-2, 2]]
    assert mod.eigenvalues(mod.FUNCTIONS["x^3"][0], zero(1)[None]).tolist() == [[0]]


@pytest.mark.parametrize(
    "f, at, kind",
    [
        (lambda x: x[0] ** 2 - x[1] ** 2, [0, 0], "saddle"),
        (lambda x: x[0] * x[1], [0, 0], "saddle"),
        (lambda x: x[0] ** 2 + x[1] ** 2, [0, 0], "minimum"),
        (lambda x: -(x[0] ** 2) - x[1] ** 2, [0, 0], "maximum"),  # a saddle as is often written
        (lambda x: x[0] ** 2 + x[1] ** 2, [0, 1], "not critical"),
        (lambda x: x[0] ** 3, [0], "undecided, looks like a saddle"),
        (lambda x: x[0] ** 4, [0], "undecided, looks like a minimum"),
        (lambda x: -(x[0] ** 4), [0], "undecided, looks like a maximum"),
        (mod.hill, [0, 0], "saddle"),
        (mod.hill, [0, 2**0.5], "minimum"),
    ],
)
def test_kinds_of_critical_points(f, at, kind):
    torch.manual_seed(0)
    assert mod.kind(f, torch.tensor(at, dtype=torch.float64)) == kind


def torch_path(method, lr, steps=100):
    x = torch.tensor([1.5, 0.001], dtype=torch.float64, requires_grad=True)
    optimizer = {
        "descent": lambda: torch.optim.SGD([x], lr),
        "momentum": lambda: torch.optim.SGD([x], lr, momentum=0.9),
        "adam": lambda: torch.optim.Adam([x], lr),
    }[method]()
    path = [x.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        mod.hill(x).backward()
        optimizer.step()
        path.append(x.detach().clone())
    return torch.stack(path)


@pytest.mark.parametrize("method", ["descent", "momentum", "adam"])
def test_paths_equal_torch(method):
    start = torch.tensor([1.5, 0.001], dtype=torch.float64)
    theirs = torch_path(method, 0.05)
    gap = (mod.descend(mod.hill, start, method, 0.05, steps=100) - theirs).abs().max()
    assert gap < 1e-12
    if method != "descent":  # another b1 is seen
        other = mod.descend(mod.hill, start, method, 0.05, steps=100, b1=0.8)
        assert (other - theirs).abs().max() > 0.01


@pytest.mark.parametrize("method", ["descent", "momentum", "adam"])
def test_saddle_holds_only_what_starts_on_its_axis(method):
    ends = []
    for y in (0.0, 1e-3, -1e-3):
        start = torch.tensor([1.5, y], dtype=torch.float64)
        ends.append(mod.descend(mod.hill, start, method, 0.05)[-1].tolist())
    assert ends[0] == pytest.approx([0, 0], abs=1e-4) and ends[0][1] == 0
    assert ends[1] == pytest.approx([0, 2**0.5], abs=1e-4)
    assert ends[2] == pytest.approx([0, -(2**0.5)], abs=1e-4)


def test_local_minimum_is_global_without_existence_or_uniqueness():
    flat = lambda x: (x[0].abs() - 1).relu()  # noqa: E731
    assert mod.jensen_gap(flat, points(3, 1)) >= -1e-12
    ends = [mod.descend(flat, zero(1) + s, "descent", 0.1)[-1].item() for s in (-3.0, 3.0)]
    assert all(flat(torch.tensor([end])) < 0.11 for end in ends) and ends[1] - ends[0] > 1.5
    path = mod.descend(lambda x: x[0].exp(), zero(1), "descent", 0.1, steps=1000)[:, 0]
    assert (path.diff() < 0).all() and path[-1] < -4  # it goes on for ever


def test_table_and_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(PATH, "--out", "here")
    assert (code, err) == (0, "") and 2 < out.count("\n") <= 30
    assert "H [-2.0, 2.0]  is saddle" in out and out.count("not refuted") == 4
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["paths.png"]
    code, out, err = call(PATH, "--lr", "10", "--out", "here")
    assert (code, out) == (1, "") and err.startswith("stopped: a path is not finite")
