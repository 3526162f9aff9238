"""Dropout against torch under torch's own masks, its moments from all masks, and its edges."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from house import call, load

mod = load("basics/dropout.py")
PATH = mod.Path(mod.__file__)


def both_ways(function, h):
    """Output, and gradient of a sum in which every element has its own weight."""
    h = h.detach().requires_grad_()
    out = function(h)
    weight = torch.arange(1.0, 1 + h.numel(), dtype=h.dtype).view_as(h)
    return out.detach(), torch.autograd.grad((weight * out).sum(), h)[0]


def with_torch_masks(h, p, monkeypatch):
    """Outputs and gradients of ours and of torch, ours fed with the mask that torch drew."""
    torch.manual_seed(0)
    theirs = both_ways(lambda h: F.dropout(h, p), h)
    kept = theirs[0] != 0
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.where(kept, 1.0, p - 1))
    return both_ways(lambda h: mod.dropout(h, p), h), theirs


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_equals_torch_forward_and_backward(p, dtype, bound, monkeypatch):
    torch.manual_seed(1)
    h = torch.randn(7, 50, dtype=dtype)
    ours, theirs = with_torch_masks(h, p, monkeypatch)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and ((a - b).abs() <= bound * b.abs().clamp(min=1)).all()


def test_missing_scale_is_noticed(monkeypatch):
    h = torch.randn(7, 50, dtype=torch.float64)
    scaled = mod.dropout
    monkeypatch.setattr(mod, "dropout", lambda h, p: (1 - p) * scaled(h, p))
    ours, theirs = with_torch_masks(h, 0.5, monkeypatch)
    assert all((a - b).abs().max() > 0.1 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_million_ones(p):
    """What the docstring says: mean 1 and a share p of zeros, to three standard deviations."""
    torch.manual_seed(0)
    h = mod.dropout(torch.ones(1_000_000), p).double()
    assert abs(h.mean() - 1) < 3 * math.sqrt(p / (1 - p)) / 1000
    assert abs((h == 0).double().mean() - p) < 3 * math.sqrt(p * (1 - p)) / 1000
    assert abs(h.var() / (p / (1 - p)) - 1) < 0.02


def test_moments_and_penalty_from_all_masks(monkeypatch):
    for p in (0.1, 0.5, 0.9):
        assert max(mod.moments_gap(p)) < 1e-12
    monkeypatch.setattr(mod, "variance", lambda p: p)  # the variance without the scale
    assert min(mod.moments_gap(0.5)) > 1e-3


def test_ridge_is_the_minimiser():
    X, y = torch.randn(9, 4).double(), torch.randn(9).double()
    w = mod.ridge(X, y, 0.3).requires_grad_()
    assert torch.autograd.grad(mod.penalised(X, y, w, 0.3), w)[0].abs().max() < 1e-12
    assert torch.autograd.grad(mod.penalised(X, y, w, 0.2), w)[0].abs().max() > 1e-2


def test_edges():
    h = torch.randn(1000)
    assert torch.equal(mod.dropout(h, 0.0), h)
    assert torch.equal(mod.dropout(h, 1.0), 0 * h)
    assert torch.equal(mod.dropout(h, 0.5, training=False), h)
    layer = mod.Dropout(0.5)
    assert not torch.equal(layer(h), h) and torch.equal(layer.eval()(h), h)
    assert torch.equal(mod.dropout(torch.full((9,), math.inf), 1.0), torch.zeros(9))
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="no probability"):
            mod.dropout(h, p)


def test_a_rand_of_exactly_zero(monkeypatch):
    """With rand > p, as is often written, p = 0 would drop it."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert torch.equal(mod.dropout(torch.ones(5), 0.0), torch.ones(5))
    assert not (torch.rand(5) > 0.0).any()  # that mask: all is dropped
    assert torch.equal(mod.dropout(torch.ones(5), 1e-9), torch.zeros(5))


def test_bfloat16_drops_the_right_share():
    torch.manual_seed(0)
    ones = torch.ones(1_000_000, dtype=torch.bfloat16)
    assert mod.dropout(ones, 0.1).dtype == torch.bfloat16
    assert abs((mod.dropout(ones, 0.1) == 0).double().mean() - 0.1) < 0.001
    naive = torch.rand(1_000_000, dtype=torch.bfloat16) >= 0.1
    assert abs((~naive).double().mean() - 0.1) > 0.001


def test_smoke_misses_a_bar_where_the_scale_is_missing(monkeypatch, tmp_path):
    scaled = mod.dropout
    monkeypatch.setattr(mod, "dropout", lambda h, p, training=True: (1 - p) * scaled(h, p))
    metrics = mod.run(SimpleNamespace(dropout=0.5, seed=0, out=tmp_path, smoke=True))
    low, high = mod.BARS["mean_sigmas"]
    assert not low <= metrics["mean_sigmas"] <= high


def test_table_and_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(PATH, "--out", "here")
    assert (code, err) == (0, "") and 2 < out.count("\n") <= 30
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["test_error.png"]
