"""Correlation and pooling against torch, forward and backward, and what they refuse."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from house import call, load
from torch import nn

mod = load("basics/conv2d.py")
PATH = mod.Path(mod.__file__)
HOWS = [(s, p, d) for s in (1, 2, 3) for p in (0, 1, 4) for d in (1, 2)]


def both_ways(function, *inputs):
    """Output, and gradients of a sum in which every element has its own weight."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    torch.manual_seed(7)
    weight = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad((weight * out).sum(), inputs)]


def gap(ours, theirs):
    """Largest difference, in units of the largest value where that is above 1."""
    pairs = [*zip(ours, theirs, strict=True)]
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    return max(((a - b).abs().max() / max(1, b.abs().max())).item() for a, b in pairs)


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def convolved(how, size=(3, 2), dtype=torch.float64):
    torch.manual_seed(0)
    inputs = [random(2, 3, 11, 14), random(4, 3, *size), random(4)]
    inputs = [x.to(dtype) for x in inputs]
    ours = both_ways(lambda *t: mod.Correlate.apply(*t, *how), *inputs)
    return gap(ours, both_ways(lambda *t: F.conv2d(*t, *how), *inputs))


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_equals_torch(how):
    assert convolved(how) < 1e-12
    assert convolved(how, dtype=torch.float32) < 1e-6


@pytest.mark.parametrize("old, new", [("flip(2, 3).", ""), (", (-p, p", ", (1 - p, p - 1")])
def test_wrong_gradient_is_noticed(old, new, monkeypatch):
    source = PATH.read_text(encoding="utf-8")
    code = source[source.index("def grad_x(") : source.index("class Correlate(")]
    assert old in code
    broken = dict(vars(mod))
    exec(code.replace(old, new), broken)
    monkeypatch.setattr(mod, "grad_x", broken["grad_x"])
    assert convolved((1, 1, 1), size=(3, 3)) > 1e-2


def test_gradients_are_those_of_autograd_through_the_windows():
    x, k = random(2, 3, 9, 8), random(4, 3, 3, 3)
    ours = both_ways(lambda x, k: mod.Correlate.apply(x, k, random(4) * 0, 2, 1, 1), x, k)
    assert gap(ours, both_ways(lambda x, k: mod.forward(x, k, 2, 1, 1), x, k)) < 1e-12


def test_loop_equals_torch_and_keeps_the_type():
    for dtype, bound in [(torch.float64, 1e-12), (torch.float32, 1e-6)]:
        x, k = random(12, 9, dtype=dtype), random(3, 2, dtype=dtype)
        theirs = both_ways(lambda x, k: F.conv2d(x[None, None], k[None, None])[0, 0], x, k)
        assert gap(both_ways(mod.corr2d, x, k), theirs) < bound
    x = torch.arange(9.0).view(3, 3)
    assert mod.corr2d(x, torch.arange(4.0).view(2, 2)).tolist() == [[19, 25], [37, 43]]


def test_turned_kernel_is_a_true_convolution():
    signal = pytest.importorskip("scipy.signal")
    x, k = random(8, 7), random(3, 2)
    theirs = torch.from_numpy(signal.convolve2d(x, k, mode="valid"))
    assert gap([mod.corr2d(x, k.flip(0, 1))], [theirs]) < 1e-12
    assert gap([mod.corr2d(x, k)], [theirs]) > 0.1


@pytest.mark.parametrize("size, s, p", [(2, None, 0), (3, 2, 1), (3, 1, 0), (4, 3, 2), (5, 2, 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_equals_torch(size, s, p, ties):
    torch.manual_seed(0)
    x = random(2, 3, 11, 14)
    x = x.round().clamp(min=0) if ties else x
    for ours, theirs in [(mod.max_pool2d, F.max_pool2d), (mod.avg_pool2d, F.avg_pool2d)]:
        a, b = (both_ways(lambda x, f=f: f(x, size, s, p), x) for f in (ours, theirs))
        assert gap(a, b) < 1e-12


def test_shared_gradient_of_ties_is_noticed():
    """amax shares the gradient among ties, which torch's pooling does not."""
    x = random(1, 1, 8, 8).round().clamp(min=0)
    theirs = both_ways(lambda x: F.max_pool2d(x, 2), x)
    amax = both_ways(lambda x: mod.pool(x, 2, None, 0, 0.0).amax((4, 5)), x)
    assert gap(amax[:1], theirs[:1]) == 0 and gap(amax, theirs) > 0.1


def test_max_pool_of_negatives_ignores_the_padding():
    x = -torch.ones(1, 1, 4, 4)
    assert torch.equal(mod.max_pool2d(x, 3, 1, 1), x)
    assert mod.avg_pool2d(x, 3, 1, 1)[0, 0, 0, 0] == pytest.approx(-4 / 9)


def test_layer_takes_torch_weights():
    theirs = nn.Conv2d(3, 4, 3, 2, 1, 2).double()
    ours = mod.Conv2d(3, 4, 3, 2, 1, 2).double()
    ours.load_state_dict(theirs.state_dict())
    x = random(2, 3, 11, 14)
    assert gap([ours(x)], [theirs(x)]) < 1e-12


def test_refusals():
    x = torch.zeros(1, 1, 4, 5)
    with pytest.raises(ValueError, match="a window of 5 does not fit into 4 of axis 2"):
        mod.forward(x, torch.zeros(1, 1, 5, 5))
    with pytest.raises(ValueError, match="a window of 5 does not fit into 4 of axis 2"):
        mod.forward(x, torch.zeros(1, 1, 3, 3), d=2)
    for pool in (mod.max_pool2d, mod.avg_pool2d):
        with pytest.raises(ValueError, match="more than half"):
            pool(x, 2, 1, 2)


def test_speed_and_the_learned_kernel(tmp_path):
    metrics = mod.run(SimpleNamespace(seed=0, lr=1.0, out=tmp_path, smoke=True))
    assert metrics["kernel_error"] < 1e-4 and metrics["speedup"] > 3
    metrics = mod.run(SimpleNamespace(seed=0, lr=0.0, out=tmp_path, smoke=True))
    assert metrics["kernel_error"] == 1


def test_table_and_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(PATH, "--out", "here")
    assert (code, err) == (0, "") and 2 < out.count("\n") <= 30
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["edges.png"]
    code, out, err = call(PATH, "--lr", "10", "--out", "here")
    assert (code, out) == (1, "") and err.startswith("stopped: the kernel is not finite")
