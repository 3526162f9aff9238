"""The table of the docstring, cross-entropy against torch, and scores that break the naive form."""

import math

import pytest
import torch
import torch.nn.functional as F
from house import call, load

mod = load("basics/cross_entropy.py")
PATH = mod.Path(mod.__file__)
P = torch.tensor([1.0, 0, 0]).double()
Q1, Q2 = torch.tensor([[0.5, 0.4, 0.1], [0.8, 0.1, 0.1]]).double()


def distributions(*shape):
    return torch.randn(shape, dtype=torch.float64).softmax(-1)


def scores(dtype=torch.float64):
    """z, and classes, classes with some ignored, and distributions as y."""
    torch.manual_seed(0)
    z = (3 * torch.randn(32, 5, dtype=torch.float64)).to(dtype)
    y = torch.randint(5, (32,))
    return z, [y, y.masked_fill(torch.rand(32) < 0.4, -100), distributions(32, 5).to(dtype)]


def test_table_of_the_docstring():
    p, q = P, torch.tensor([[0.5, 0.4, 0.1], [0.8, 0.1, 0.1]], dtype=torch.float64)
    assert mod.H(p, q).tolist() == pytest.approx([0.693147, 0.223144], abs=1e-6)
    assert mod.H(p, q)[0].item() == math.log(2)
    wrong = -q.log().sum(1)  # the loss as is often written: over classes
    assert wrong.tolist() == pytest.approx([3.912023, 4.828314], abs=1e-6)
    z, y = q.log(), torch.zeros(2, dtype=torch.long)
    assert mod.cross_entropy(z, y).item() == pytest.approx((0.693147 + 0.223144) / 2, abs=1e-6)


def test_entropy_and_divergence():
    p, q = distributions(2, 20, 6)
    for a, b in zip(p, q, strict=True):
        loop = -sum(x * math.log(y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
        assert abs(mod.H(a, b) - loop) < 1e-12
    assert (mod.kl(p, q) - F.kl_div(q.log(), p, reduction="none").sum(1)).abs().max() < 1e-12
    assert (mod.kl(p, q) > 0).all() and mod.kl(p, p).abs().max() == 0


def test_zeros():
    q = torch.tensor([1.0, 0, 0]).double()
    assert mod.H(P, q) == 0  # 0 log 0 = 0
    assert mod.H(Q1, q) == math.inf
    z = torch.tensor([[0.0, -math.inf, 1.0]])
    soft = torch.tensor([[0.5, 0.0, 0.5]])
    assert mod.cross_entropy(z, soft).isfinite() and F.cross_entropy(z, soft).isnan()


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_equals_torch_forward_and_backward(dtype, bound, smoothing):
    z, kinds = scores(dtype)
    z.requires_grad_()
    for y in kinds:
        theirs = F.cross_entropy(z, y, label_smoothing=smoothing)
        ours = mod.cross_entropy(z, y, smoothing=smoothing)
        assert ours.dtype == dtype and (ours - theirs).abs() <= bound * max(1, theirs)
        grad = torch.autograd.grad(theirs, z)[0]
        for way in (torch.autograd.grad(ours, z)[0], mod.gradient(z, y, smoothing=smoothing)):
            assert (way - grad).abs().max() <= bound
    assert (mod.log_softmax(z) - F.log_softmax(z, 1)).abs().max() <= 10 * bound
    other = mod.cross_entropy(z, kinds[0], ignore_index=3)
    assert (other - F.cross_entropy(z, kinds[0], ignore_index=3)).abs() <= bound * max(1, other)


def test_wrong_smoothing_and_wrong_count_are_noticed(monkeypatch):
    z, (y, some, _) = scores()
    right = mod.targets
    with monkeypatch.context() as patch:
        patch.setattr(mod, "targets", lambda z, y, **how: (right(z, y, **how)[0], len(z)))
        assert (mod.cross_entropy(z, some) - F.cross_entropy(z, some)).abs() > 0.1
    monkeypatch.setattr(
        mod, "targets", lambda z, y, smoothing: right(z, y, smoothing=smoothing / 2)
    )
    theirs = F.cross_entropy(z, y, label_smoothing=0.2)
    assert (mod.cross_entropy(z, y, smoothing=0.2) - theirs).abs() > 0.01


def test_gradient_by_differences():
    z, (_, y, _) = scores()
    grad, step = mod.gradient(z, y, smoothing=0.1), 1e-5
    for i, j in [(0, 0), (3, 2), (31, 4)]:
        d = torch.zeros_like(z)
        d[i, j] = step
        up, down = (mod.cross_entropy(x, y, smoothing=0.1) for x in (z + d, z - d))
        assert abs((up - down) / (2 * step) - grad[i, j]) < 1e-9


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_large_scores_stay_finite(scale):
    z, (y, *_) = scores(torch.float32)
    z = (scale * z).requires_grad_()
    loss = mod.cross_entropy(z, y)
    assert loss.isfinite() and (loss - F.cross_entropy(z, y)).abs() <= 1e-6 * loss
    assert torch.autograd.grad(loss, z)[0].isfinite().all()
    naive = -z.softmax(1).log()[range(32), y].mean()  # even with torch's stable softmax
    assert naive.isinf() if scale > 1 else (naive - loss).abs() < 1e-5


def test_softmax_twice_never_gets_below_the_floor():
    assert mod.floor(10) == pytest.approx(1.461150, abs=1e-6)
    z, (y, *_) = scores()
    assert F.cross_entropy(z.softmax(1), y) > mod.floor(5)
    sure = 1e3 * F.one_hot(y, 5).double()
    assert F.cross_entropy(sure.softmax(1), y).item() == pytest.approx(mod.floor(5), abs=1e-12)
    assert F.cross_entropy(sure, y) == 0


def test_refusals():
    z, (y, _, soft) = scores()
    for bad in (y + 5, y - 6):
        with pytest.raises(ValueError, match=r"outside 0\.\.4"):
            mod.cross_entropy(z, bad)
    with pytest.raises(ValueError, match="every example is ignored"):
        mod.cross_entropy(z, torch.full((32,), -100))
    assert F.cross_entropy(z, torch.full((32,), -100)).isnan()
    with pytest.raises(ValueError, match="rows must sum to 1"):
        mod.cross_entropy(z, 2 * soft)
    with pytest.raises(ValueError, match="q is no distribution"):
        mod.H(P, P + 1)
    with pytest.raises(ValueError, match="p is no distribution"):
        mod.H(torch.tensor([1.5, -0.5]), torch.tensor([0.5, 0.5]))


def test_regression_learns_and_only_with_an_lr():
    torch.manual_seed(0)
    assert mod.regression(0.5)[1] > 0.95
    assert mod.regression(0.0) == pytest.approx((math.log(3), 1 / 3))


def test_table():
    code, out, err = call(PATH)
    assert (code, err) == (0, "") and 2 < out.count("\n") <= 30
    for number in ("0.6931", "0.2231", "3.912", "4.828", "1.461"):
        assert number in out
