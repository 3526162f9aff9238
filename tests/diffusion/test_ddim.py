"""Identities of ddim.py: each equation against a brute-force restatement in float64."""

import ast
import math
import shlex
from itertools import pairwise

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake

ddim, ddpm = load("diffusion/ddim.py"), load("diffusion/ddpm.py")
DDIM, DDPM = ROOT / "diffusion/ddim.py", ROOT / "diffusion/ddpm.py"
F64 = torch.float64
TINY = shlex.split("--timesteps 25 --sampling_steps 5 --n_samples 4 --n_test 8 --batch_size 8")
TINY += shlex.split("--base_channels 8 --channel_mult 1 2 --n_res_blocks 1 --device cpu")
TINY += shlex.split("--sample_interval 3 --n_steps 3")


def process(timesteps=50, prediction="eps"):
    return ddim.GaussianDiffusion(timesteps, prediction, "cpu", F64)


def abar(timesteps):
    """abar_0 = 1, abar_1 ... abar_T of eq. (1), one number after the other."""
    values = [1.0]
    for t in range(1, timesteps + 1):
        low, high = 0.1 / timesteps, 20 / timesteps
        values.append(values[-1] * (1 - low - (high - low) * (t - 1) / (timesteps - 1)))
    return values


class Gauss:
    """Optimal eps for images N(0, s^2 I), in closed form: a network that needs no training."""

    def __init__(self, process, s):
        self.process, self.s2 = process, s * s

    def __call__(self, x, t):
        a, b = self.process.at("sqrt_abar", t), self.process.at("sqrt_one_minus_abar", t)
        return b / (a * a * self.s2 + b * b) * x


def source(file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return next(ast.unparse(node) for node in tree.body if getattr(node, "name", "") == name)


def test_training_is_that_of_ddpm():
    """Word for word but for the choice of loss, which DDIM does not have."""
    theirs = source("diffusion/ddpm.py", "train").replace(", args.loss_type", "")
    theirs = theirs.replace("the bits/dim of test images", "how well test images come back")
    assert source("diffusion/ddim.py", "train") == theirs


def test_the_losses_are_equal():
    x0, noise, out = torch.randn(3, 6, 1, 4, 4, dtype=F64)
    t = torch.randint(50, (6,))
    for prediction in ("eps", "x0", "v"):
        theirs = ddpm.GaussianDiffusion(50, prediction, "beta_tilde", "cpu", F64)
        pair = [
            d.training_losses(lambda x, t: out * x, x0, t, noise)
            for d in (process(prediction=prediction), theirs)
        ]
        assert torch.equal(*pair)


def test_a_checkpoint_of_ddpm_loads(tmp_path):
    assert call(DDPM, *TINY[:2], *TINY[4:], "--out", tmp_path)[0] == 0
    weights = torch.load(tmp_path / "last.pt", weights_only=True)["ema"]
    model, _ = ddim.build(ddim.parse_args(TINY))
    model.load_state_dict(weights)
    flags = [*TINY, "--sample", "--weights", tmp_path / "last.pt", "--out", tmp_path / "ddim"]
    assert call(DDIM, *flags)[0] == 0
    assert (tmp_path / "ddim" / "interpolation.png").exists()
    assert not (tmp_path / "ddim" / "last.pt").exists()


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 50, 99, 100])
def test_times(steps):
    """Falling, without repeats, from 0 to T - 1; as many as asked where they are distinct."""
    for spacing in ("uniform", "quad", "trailing"):
        times = ddim.ddim_timesteps(100, steps, spacing)
        assert times == sorted({*times}, reverse=True) and times[-1] >= 0
        assert len(times) == steps or spacing == "quad"
        assert times[0] == (80 if spacing == "quad" else 99)
        assert steps == 1 or times[-1] == 0 or spacing == "trailing"
    assert ddim.ddim_timesteps(100, steps, "trailing")[-1] == round(100 / steps) - 1


def test_quad_times_are_the_official_ones():
    for steps in (5, 10, 20, 30):
        official = (np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2).astype(int)
        assert ddim.ddim_timesteps(1000, steps, "quad") == sorted({*official}, reverse=True)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_step_against_plain_numbers(eta, prediction):
    """Eqs. (5), (7), (14) to (16) with Python floats, one pixel at a time."""
    d, a = process(prediction=prediction), abar(50)
    x, out = torch.randn(2, 2, 1, 2, 2, dtype=F64)
    for t, to in [(49, 30), (30, 0), (7, 6), (0, -1), (49, -1)]:
        torch.manual_seed(3)
        ours, ours_hat = d.ddim_step(lambda *_: out, x, t, to, eta)
        torch.manual_seed(3)
        z = torch.randn_like(x)
        now, then = a[t + 1], a[to + 1]
        for i in range(x.numel()):
            x_t, o = x.flatten()[i].item(), out.flatten()[i].item()
            x_hat = {
                "eps": (x_t - math.sqrt(1 - now) * o) / math.sqrt(now),
                "x0": o,
                "v": math.sqrt(now) * x_t - math.sqrt(1 - now) * o,
            }[prediction]
            x_hat = min(max(x_hat, -1.0), 1.0)
            eps = (x_t - math.sqrt(now) * x_hat) / math.sqrt(1 - now)
            sigma2 = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
            expected = math.sqrt(then) * x_hat + math.sqrt(1 - then - sigma2) * eps
            expected += math.sqrt(sigma2) * z.flatten()[i].item()
            assert ours.flatten()[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
            assert ours_hat.flatten()[i].item() == pytest.approx(x_hat, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_process_of_the_family_has_the_same_marginals(eta):
    """Two leaps, x_0 -> x_t -> x_t' with the true noise, have the law of one: lemma 1."""
    d, a = process(), abar(50)
    for t, to in [(49, 20), (20, 3), (3, 2)]:
        s2 = d.sigma(t, to, eta) ** 2
        turn = math.sqrt(1 - a[to + 1] - s2) / math.sqrt(1 - a[t + 1])
        mean = math.sqrt(a[to + 1]) + turn * (math.sqrt(a[t + 1]) - math.sqrt(a[t + 1]))
        variance = turn**2 * (1 - a[t + 1]) + s2
        assert mean == pytest.approx(math.sqrt(a[to + 1]), abs=1e-12)
        assert variance == pytest.approx(1 - a[to + 1], abs=1e-12)


def test_all_steps_with_noise_are_ddpm():
    """eta = 1, S = T: whole chains from the same noise and seed."""
    ours = process()
    theirs = ddpm.GaussianDiffusion(50, "eps", "beta_tilde", "cpu", F64)
    x = torch.randn(4, 1, 4, 4, dtype=F64)

    def model(x, t):
        return torch.tanh(x + t[:, None, None, None] / 25 - 1)

    torch.manual_seed(1)
    *_, (mine, _) = ours.ddim_sample_loop(model, x, ddim.ddim_timesteps(50, 50), eta=1.0)
    torch.manual_seed(1)
    *_, (yours, _) = theirs.p_sample_loop(model, x)
    assert (mine - yours).abs().max() < 1e-10
    torch.manual_seed(1)
    *_, (other, _) = ours.ddim_sample_loop(model, x, ddim.ddim_timesteps(50, 50), eta=0.9)
    assert (other - yours).abs().max() > 1e-3


def test_without_noise_nothing_is_drawn():
    d, x = process(), torch.randn(4, 1, 4, 4, dtype=F64)
    before = torch.get_rng_state()
    pair = [[*d.ddim_sample_loop(Gauss(d, 0.3), x, [49, 20, 0])][-1][0] for _ in range(2)]
    assert torch.equal(*pair) and torch.equal(before, torch.get_rng_state())


def test_the_exact_solution_of_the_equation():
    """For Gaussian data the ODE ends at s x_T / sqrt(1 - abar_T + abar_T s^2); Euler's error
    falls like 1/S."""
    d, x = process(1000), torch.randn(3, 1, 4, 4, dtype=F64)
    exact = 0.3 * x / math.sqrt(1 - d.abar[999] + d.abar[999] * 0.09)
    errors = []
    for steps in (25, 50, 100, 200):
        times = ddim.ddim_timesteps(1000, steps)
        *_, (y, _) = d.ddim_sample_loop(Gauss(d, 0.3), x, times, clip_denoised=False)
        errors.append(((y - exact).norm() / exact.norm()).item())
    assert errors[-1] < 0.03
    for large, small in pairwise(errors):
        assert 1.6 < large / small < 2.5


def round_trip(d, steps, twist=1.0):
    times = ddim.ddim_timesteps(d.timesteps, steps)
    x = torch.randn(3, 1, 4, 4, dtype=F64) * 0.3
    model = Gauss(d, 0.3)
    noise = d.ddim_encode(model, x, times) * twist
    *_, (y, _) = d.ddim_sample_loop(model, noise, times, clip_denoised=False)
    return ((y - x).norm() / x.norm()).item(), noise.std().item()


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_encoding_is_undone_by_decoding(prediction):
    torch.manual_seed(0)
    d = process(1000, prediction)
    if prediction != "eps":
        eps = Gauss(d, 0.3)
        d.predict_x0 = lambda out, x, t: (
            (x - d.at("sqrt_one_minus_abar", t) * eps(x, t)) / d.at("sqrt_abar", t)
        )
    coarse, fine = round_trip(d, 50)[0], round_trip(d, 1000)[0]
    assert fine < 1e-2 and fine < coarse / 5
    assert round_trip(d, 1000)[1] == pytest.approx(1.0, abs=0.25)
    assert round_trip(d, 1000, twist=1.05)[0] > 3e-2


def test_slerp():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 8, 8, dtype=F64)
    w = torch.linspace(0, 1, 5, dtype=F64)
    path = ddim.slerp(a, b, w)
    assert path.shape == (5, 3, 8, 8)
    assert torch.allclose(path[0], a) and torch.allclose(path[-1], b)
    b = b * (a.norm() / b.norm())  # of equal length, all points between are as long
    path = ddim.slerp(a, b, w).flatten(1)
    assert torch.allclose(path.norm(dim=1), a.norm().expand(5))
    angles = torch.arccos((path[1:] * path[:-1]).sum(1) / a.norm() ** 2)
    assert torch.allclose(angles, angles[:1].expand(4))
    assert torch.lerp(a, b, torch.tensor(0.5, dtype=F64)).norm() < 0.8 * a.norm()


def test_coefficients_keep_their_digits():
    """1 - abar of the first steps, where float32 tables would be off by a thousandth."""
    d, a = ddim.GaussianDiffusion(1000, "eps", "cpu"), abar(1000)
    sigma2 = (1 - a[1]) / (1 - a[2]) * (1 - a[2] / a[1])
    assert d.sigma(1, 0, 1.0) == pytest.approx(math.sqrt(sigma2), rel=1e-9)
    assert d.tables["sqrt_one_minus_abar"][0].item() == pytest.approx(0.01, rel=1e-6)


def test_pictures(tmp_path):
    assert call(DDIM, *TINY, "--out", tmp_path)[0] == 0
    for name in ("samples_000003", "trajectory", "interpolation", "reconstruction", "curves"):
        assert (tmp_path / f"{name}.png").stat().st_size > 100


@pytest.mark.parametrize(
    "flags, word",
    [
        ("--sampling_steps 26", "--sampling_steps 26"),
        ("--eta 1.5", "--eta 1.5"),
        ("--sample --out nowhere", "--weights"),
    ],
)
def test_mistakes(flags, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(DDIM, *TINY, *shlex.split(flags), about=word)


def test_another_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(DDIM, *TINY, "--out", "run")[0] == 0
    for flags in (["--timesteps", "30"], ["--prediction_type", "v"]):
        mistake(DDIM, *TINY, *flags, "--sample", "--out", "run", about=" ".join(flags))
