"""covariate_shift.py: the weights against sklearn and the closed form, the fit against numpy."""

import math

import numpy as np
import pytest
import torch
from house import call, load, mistake
from sklearn.linear_model import LogisticRegression

mod = load("basics/covariate_shift.py")
PATH = mod.Path(mod.__file__)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def data(*argv, seed=0):
    args = mod.parse_args([*argv])
    torch.manual_seed(seed)
    return mod.load_data(args)


def metrics(*argv):
    args = mod.parse_args(["--smoke", *argv])
    args.out = "."
    return mod.run(args)


# --- logistic regression -------------------------------------------------------------------------
def problem(n=600, seed=1):
    torch.manual_seed(seed)
    X = torch.cat([torch.ones(n, 1), torch.randn(n, 3)], 1).double()
    h = X @ torch.tensor([0.3, 1.0, -2.0, 0.0]).double()
    return X, torch.where(torch.rand(n) < torch.sigmoid(h), 1.0, -1.0).double()


def test_logistic_regression_is_sklearns():
    X, z = problem()
    w = mod.logistic_regression(X, z)
    theirs = LogisticRegression(C=1e6, tol=1e-12, max_iter=10_000).fit(X[:, 1:], z)
    right = np.concatenate([theirs.intercept_, theirs.coef_[0]])
    assert np.abs(w.numpy() - right).max() < 1e-6


def test_its_loss_is_stationary_by_torch():
    X, z = problem()
    w = mod.logistic_regression(X, z).requires_grad_()
    torch.nn.functional.soft_margin_loss(X @ w, z, reduction="sum").backward()
    assert (w.grad + 1e-6 * w.detach()).abs().max() < 1e-9


def test_strong_ridge_is_sklearns_too():
    X, z = problem()
    w = mod.logistic_regression(X, z, ridge=5.0)
    theirs = LogisticRegression(C=0.2, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(X, z)
    assert np.abs(w.numpy() - theirs.coef_[0]).max() < 1e-6


def test_classes_that_do_not_overlap_stay_finite():
    x, u = torch.linspace(0, 1, 20).double(), torch.linspace(3, 4, 10).double()
    beta = mod.importance(x, u)
    assert beta.isfinite().all() and beta.max() < 0.1


# --- the weights ---------------------------------------------------------------------------------
def test_the_factor_n_over_m():
    """The usual beta = exp(h) is right for n = m alone: it is short by m / n otherwise."""
    for n, m in ((4000, 4000), (4000, 1000), (1000, 4000)):
        x, _, u, *_ = data("--n_source", str(n), "--n_target", str(m))
        z = torch.cat([-torch.ones(n), torch.ones(m)]).double()
        w = mod.logistic_regression(mod.powers(torch.cat([x, u]), 2), z)
        usual = (mod.powers(x, 2) @ w).exp()
        beta = mod.importance(x, u)
        assert abs(beta.mean() - 1) < 0.03
        assert abs(usual.mean() - m / n) < 0.03 * m / n
        assert torch.allclose(beta, usual * n / m, rtol=1e-12)


def test_weights_are_the_true_ratio():
    x, _, u, *_ = data("--n_source", "4000", "--n_target", "4000")
    p = torch.distributions.Normal(torch.tensor(0.0).double(), 0.3).log_prob(x)
    q = torch.distributions.Normal(torch.tensor(0.5).double(), 0.5).log_prob(x)
    assert (mod.true_log_ratio(x, 0.0) - (p - q)).abs().max() < 1e-12
    beta = mod.importance(x, u)
    central = (x - 0.5).abs() < 1
    assert ((beta - (p - q).exp()).abs()[central]).max() < 0.3  # of a ratio of 3.64 at most
    assert abs(mod.true_log_ratio(torch.linspace(-1, 1, 999), 0.0).max().exp() - 3.64) < 0.01


def test_x_alone_is_the_wrong_model():
    x, y, u, test, right = data()
    z = torch.cat([-torch.ones_like(x), torch.ones_like(u)])
    w = mod.logistic_regression(mod.powers(torch.cat([x, u]), 1), z)
    h = mod.powers(x, 1) @ w
    true = mod.true_log_ratio(x, 0.0)
    assert torch.corrcoef(torch.stack([h, true]))[0, 1] < 0.95
    linear = (4 * h.exp(), mod.importance(x, u))
    worse, better = (mod.risk(mod.weighted_fit(x, y, b), test, right) for b in linear)
    assert worse > better + 0.01


def test_clipping():
    x, _, u, *_ = data()
    beta = mod.importance(x, u)
    assert torch.equal(mod.importance(x, u, clip=1.5), beta.clamp(max=1.5))
    assert (beta > 1.5).any()
    assert mod.effective(beta.clamp(max=1.5)) > mod.effective(beta)


# --- the weighted fit ----------------------------------------------------------------------------
def test_fit_is_numpys():
    torch.manual_seed(0)
    x, y, beta = (torch.rand(50, dtype=torch.float64) for _ in range(3))
    right = np.polyfit(x, y, 1, w=beta.sqrt())[::-1]
    assert np.abs(mod.weighted_fit(x, y, beta).numpy() - right).max() < 1e-12
    assert torch.allclose(mod.weighted_fit(x, y, beta), mod.weighted_fit(x, y, 7 * beta))


def test_whole_weights_are_copies():
    torch.manual_seed(0)
    x, y = torch.rand(2, 5, dtype=torch.float64)
    beta = torch.tensor([3, 0, 1, 2, 1])
    copies = [v.repeat_interleave(beta) for v in (x, y)]
    one = mod.weighted_fit(*copies, torch.ones(7).double())
    assert torch.allclose(mod.weighted_fit(x, y, beta.double()), one)
    w = torch.tensor([0.2, -1.0]).double()
    assert math.isclose(mod.risk(w, x, y, beta) * 5, mod.risk(w, *copies) * 7)


def test_effective_number():
    assert mod.effective(torch.full((40,), 3.0)) == pytest.approx(40)
    assert mod.effective(torch.tensor([0.0, 5.0, 0.0])) == pytest.approx(1)


def test_risk_identity():
    """(1) for a fixed f: weighted on the source it is the risk on the target."""
    x, y, _, test, right = data("--n_source", "400000")
    w = torch.tensor([0.1, 0.5]).double()
    beta = mod.true_log_ratio(x, 0.0).exp()
    assert mod.risk(w, x, y, beta) == pytest.approx(mod.risk(w, test, right), rel=0.02)
    assert mod.risk(w, x, y) > 1.5 * mod.risk(w, test, right)


# --- the script ----------------------------------------------------------------------------------
def test_test_risk_falls():
    for seed in ("0", "1"):
        found = metrics("--seed", seed)
        assert all(low <= found[key] <= high for key, (low, high) in mod.BARS.items())


def test_forgotten_factor_is_seen(monkeypatch):
    right = mod.importance
    monkeypatch.setattr(mod, "importance", lambda x, u: right(x, u) * len(u) / len(x))
    found = metrics()
    assert found["excess_ratio"] < 0.04  # a common factor does not change the fit ...
    assert abs(found["mean_beta"] - 0.25) < 0.01 and found["estimate_ratio"] < 0.3  # ... but these
    assert call(PATH, "--smoke")[0] == 1


def test_swapped_labels_are_seen(monkeypatch):
    right = mod.importance
    monkeypatch.setattr(mod, "importance", lambda x, u: 1 / right(x, u))
    found = metrics()
    assert found["excess_ratio"] > 0.5 and found["log_beta_corr"] < 0


def test_table_and_picture():
    code, out, err = call(PATH, "--out", "here")
    assert (code, err) == (0, "") and out.count("\n") == 6
    assert mod.Path("here/shift.png").stat().st_size > 5000


@pytest.mark.parametrize("mean", ["-5", "3"])
def test_target_out_of_reach_is_told(mean):
    code, out, err = call(PATH, "--target_mean", mean, "--out", "here")
    assert code == 0 and out.count("\n") == 6
    assert err == "warning: the source hardly reaches the target; trust no weight\n"


def test_mistakes():
    for flag, value in (("--clip", "0"), ("--clip", "-1"), ("--n_source", "1")):
        mistake(PATH, flag, value, about=flag)
