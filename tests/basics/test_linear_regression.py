"""linear_regression.py: the numbers, sgd against torch.optim, theory against measurement."""

import math

import numpy as np
import pytest
import torch
from house import call, load, mistake

mod = load("basics/linear_regression.py")
PATH = mod.Path(mod.__file__)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data():
    return mod.load_data()


# --- examples ----------------------------------------------------------------------------------
def test_ten_steps_of_the_docstring_find_no_bias():
    """The loop as is often written, in float32 with torch.optim; the loss before the last step."""
    x = torch.arange(100.0)
    w, b = torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    optimizer, losses = torch.optim.SGD([w, b], lr=1e-4), []
    for _ in range(10):
        loss = torch.nn.functional.mse_loss(w * x + b, 2.138 * x + 3.213)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - 4624.583) < 1e-3 and abs(losses[-1] - 2.588338) < 1e-5
    for dtype in (torch.float32, torch.float64):
        x, y = mod.load_data(dtype)
        path = mod.fit_line(x, y, 1e-4, 10)
        assert abs(path[10, 0].item() - 2.186120) < 1e-6 > abs(path[10, 0] - w)
        assert abs(path[10, 1].item() - 0.019504) < 1e-6 > abs(path[10, 1] - b)
        assert abs(mod.mse(*path[9], x, y).item() - losses[-1]) < 1e-5


def test_data_needs_no_gradient():
    """With requires_grad the gradient of x piles up beside the fit: zero_grad never sees it."""
    x = torch.arange(100.0, requires_grad=True)
    w = torch.tensor(1.0, requires_grad=True)
    optimizer, sizes = torch.optim.SGD([w], lr=0.0), []
    for _ in range(3):
        optimizer.zero_grad()
        (w * x - 2 * x.detach()).square().mean().backward()
        sizes.append(x.grad.norm().item())
    assert sizes[1] / sizes[0] == pytest.approx(2) and sizes[2] / sizes[0] == pytest.approx(3)
    assert not mod.load_data()[0].requires_grad


# --- the step ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sgd_is_torchs_to_the_bit(dtype):
    x, y = mod.load_data(dtype)
    for lr in (1e-5, 1e-4, 3e-4):
        theirs = mod.fit_line(x, y, lr, 200, torch.optim.SGD)
        assert torch.equal(mod.fit_line(x, y, lr, 200), theirs)


def test_batch_size_belongs_to_a_summed_loss():
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    after = {}
    for key, mean, size in (("torch", True, 1), ("sum", False, 16), ("twice", True, 16)):
        w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        errors = (x @ w - y).square()
        (errors.mean() if mean else errors.sum()).backward()
        torch.optim.SGD([w], lr=0.1).step() if key == "torch" else mod.sgd_step([w], 0.1, size)
        after[key] = w.detach()
    assert (after["sum"] - after["torch"]).abs().max() < 1e-14
    assert torch.allclose(1 - after["twice"], (1 - after["torch"]) / 16, atol=1e-14)
    assert (after["twice"] - after["torch"]).abs().max() > 0.01


def test_gradient_of_mse():
    x, y = mod.load_data()
    w, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, -2.0))
    mod.mse(w, b, x, y).backward()
    errors = 0.7 * x - 2.0 - y
    assert torch.allclose(w.grad, 2 * (errors * x).mean(), rtol=1e-13)
    assert torch.allclose(b.grad, 2 * errors.mean(), rtol=1e-13)


# --- why the bias is not found -------------------------------------------------------------------
def test_hessian_and_its_eigenvalues(data):
    x, y = data
    theirs = torch.autograd.functional.hessian(
        lambda t: mod.mse(t[0], t[1], x, y), torch.randn(2, dtype=torch.float64)
    )
    assert (mod.mse_hessian(x) - theirs).abs().max() < 1e-9
    low, high = torch.linalg.eigvalsh(mod.mse_hessian(x)).tolist()
    assert abs(low - 0.507) < 5e-4 and abs(high - 6568.5) < 0.05
    assert abs(mod.largest_lr(x) - 3.04e-4) < 1e-6


def predicted_gap(data, lr=1e-4, n=1000):
    x, y = data
    best = mod.normal_equations(x, y)
    return (mod.fit_line(x, y, lr, n)[n] - mod.predict_fit(x, lr, n, best)).abs().max().item()


@pytest.mark.parametrize("lr, n", [(1e-4, 1), (1e-4, 1000), (3e-4, 200), (3.1e-4, 100), (0.0, 5)])
def test_error_after_n_steps_is_predicted(data, lr, n):
    assert predicted_gap(data, lr, n) < 1e-9


def test_wrong_hessian_is_seen(data, monkeypatch):
    right = mod.mse_hessian
    monkeypatch.setattr(mod, "mse_hessian", lambda x: right(x) / 2)  # the 2 of the square forgotten
    assert predicted_gap(data) > 0.01
    assert mod.run(args("--smoke"))["predicted_gap"] > 0.01


def test_largest_lr_divides_falling_from_growing(data):
    x, y = data
    best, limit = mod.normal_equations(x, y), mod.largest_lr(x)
    for factor, grows in ((0.98, False), (1.02, True)):
        away = (mod.fit_line(x, y, factor * limit, 100) - best).norm(dim=1)
        assert (away[-1] > 10 * away[0]).item() is grows
        assert (away[-1] < away[0] * 1.01).item() is not grows


def test_steps_needed(data):
    x, y = data
    best, n = mod.normal_equations(x, y), mod.steps_needed(x, 1e-4, 1e-3 / mod.B)
    assert 1.55e5 < n < 1.65e5
    errors = [
        abs(mod.predict_fit(x, 1e-4, round(k * n), best)[1].item() - mod.B) for k in (0.99, 1)
    ]
    assert errors[0] > 1e-3 * 1.05 and abs(errors[1] - 1e-3) < 1e-5
    assert mod.steps_needed(x, 0.0, 0.1) == math.inf


def test_normal_equations(data):
    x, y = data
    noisy = y + torch.sin(x)
    theirs = np.polyfit(x.numpy(), noisy.numpy(), 1)
    assert np.abs(mod.normal_equations(x, noisy).numpy() - theirs).max() < 1e-9
    assert (mod.normal_equations(x, y) - torch.tensor([2.138, 3.213]).double()).abs().max() < 1e-6


def test_standardised_x_finds_both(data):
    x, y = data
    assert (mod.fit_standardised(x, y)[-1] - torch.tensor([2.138, 3.213])).abs().max() < 1e-6
    one = mod.fit_standardised(x, y, lr=0.5, n_steps=1)[1]  # H = 2 I: Newton's own step
    assert (one - mod.normal_equations(x, y)).abs().max() < 1e-9
    low = mod.fit_standardised(*mod.load_data(torch.float32))[-1]
    assert (low - torch.tensor([2.138, 3.213])).abs().max() < 1e-4


# --- the script ----------------------------------------------------------------------------------
def args(*argv):
    parsed = mod.parse_args([*argv])
    parsed.out = "."
    return parsed


def test_table_and_picture():
    code, out, err = call(PATH, "--out", "here")
    assert (code, err) == (0, "") and out.count("\n") == 11
    assert "steps 10  w 2.186  b 0.0195  loss 2.588  predicted w 2.186  predicted b 0.0195\n" in out
    assert "standardised: w 2.138  b 3.213\n" in out
    assert mod.Path("here/fit.png").stat().st_size > 5000


def test_rate_that_diverges_stops_with_one_line():
    code, out, err = call(PATH, "--lr", "4e-4")
    assert (code, out) == (1, "")
    assert err == "stopped: the loss is not finite; try a lower --lr than 0.000304\n"


def test_smoke_fails_without_a_step():
    assert call(PATH, "--smoke", "--lr", 0)[0] == 1


def test_mistakes():
    mistake(PATH, "--lr", "-1", about="--lr")
