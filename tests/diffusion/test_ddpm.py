"""Identities of ddpm.py: each equation against a brute-force restatement in float64."""

import math
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from house import ROOT, load
from PIL import Image
from scipy import stats

ddpm = load("diffusion/ddpm.py")
F64 = torch.float64
TINY = shlex.split("--timesteps 25 --n_samples 4 --n_test 8 --sample_interval 3 --batch_size 8")
TINY += shlex.split("--base_channels 8 --channel_mult 1 2 --n_res_blocks 1 --device cpu")


def process(timesteps=50, prediction="eps", variance="beta_tilde"):
    return ddpm.GaussianDiffusion(timesteps, prediction, variance, "cpu", F64)


def plain(timesteps):
    """beta, alpha and abar of eq. (1), one number after the other, index 0 unused."""
    beta, abar = [0.0], [1.0]
    for t in range(1, timesteps + 1):
        low, high = 0.1 / timesteps, 20 / timesteps
        beta.append(low + (high - low) * (t - 1) / (timesteps - 1))
        abar.append(abar[-1] * (1 - beta[-1]))
    return beta, abar


@pytest.mark.parametrize("timesteps", [21, 50, 1000])
def test_tables(timesteps):
    """Eqs. (1) to (4) term by term, and the variance of the first step that has no logarithm."""
    beta, abar = plain(timesteps)
    tables = process(timesteps, variance="beta").tables
    for t in {1, 2, 3, timesteps // 2, timesteps}:
        rest = 1 - abar[t]
        expected = {
            "sqrt_abar": math.sqrt(abar[t]),
            "sqrt_one_minus_abar": math.sqrt(rest),
            "coef_x0": math.sqrt(abar[t - 1]) * beta[t] / rest,
            "coef_xt": math.sqrt(1 - beta[t]) * (1 - abar[t - 1]) / rest,
        }
        if t > 1:
            expected["log_beta_tilde"] = math.log((1 - abar[t - 1]) / rest * beta[t])
            expected["log_sigma2"] = math.log(beta[t])
        for name, value in expected.items():
            assert tables[name][t - 1].item() == pytest.approx(value, rel=1e-10, abs=1e-14), name
    for name in ("log_beta_tilde", "log_sigma2"):
        assert tables[name][0] == tables["log_beta_tilde"][1]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_right_answer_gives_back_the_image(prediction):
    d = process(prediction=prediction)
    x0, noise = torch.randn(2, 50, 1, 4, 4, dtype=F64)
    t = torch.arange(50)
    out = d.target(x0, t, noise)
    assert (d.predict_x0(out, d.q_sample(x0, t, noise), t) - x0).abs().max() < 1e-10
    assert d.training_losses(lambda *_: out, x0, t, noise).abs().max() < 1e-20


def test_posterior_is_bayes_rule():
    """Eq. (3) and (4) against the product of the two Gaussians that they come from."""
    d, (beta, abar) = process(), plain(50)
    x0, x_t = torch.randn(2, 49, 1, 2, 2, dtype=F64)
    t = torch.arange(1, 50)
    mean, log_variance = d.q_posterior(x0, x_t, t)
    for i in range(49):
        at = i + 2  # the paper's t
        precision = (1 - beta[at]) / beta[at] + 1 / (1 - abar[at - 1])
        centre = math.sqrt(1 - beta[at]) / beta[at] * x_t[i]
        centre = centre + math.sqrt(abar[at - 1]) / (1 - abar[at - 1]) * x0[i]
        assert (mean[i] - centre / precision).abs().max() < 1e-10
        assert log_variance[i].item() == pytest.approx(-math.log(precision), abs=1e-10)


def test_no_noise_in_the_last_step():
    d = process()
    x = torch.randn(3, 1, 4, 4, dtype=F64)
    t = torch.zeros(3, dtype=torch.long)
    steps = [d.p_sample(lambda x, t: x, x, t)[0] for _ in range(2)]
    assert torch.equal(*steps)
    steps = [d.p_sample(lambda x, t: x, x, t + 1)[0] for _ in range(2)]
    assert not torch.equal(*steps)


def test_normal_kl():
    (m1, m2), (s1, s2) = torch.randn(2, 20, dtype=F64), torch.rand(2, 20, dtype=F64) + 0.2
    ours = ddpm.normal_kl(m1, 2 * s1.log(), m2, 2 * s2.log())
    normal = torch.distributions.Normal
    assert torch.allclose(ours, torch.distributions.kl_divergence(normal(m1, s1), normal(m2, s2)))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_decoder_against_scipy(dtype):
    """Eq. (12) bin by bin, deep in the tails too, and the 256 masses add up to one."""
    x = torch.linspace(-1, 1, 256, dtype=F64)
    for mean, std in [(0.0, 0.3), (0.9, 0.02), (-1.0, 0.01), (0.3, 0.002), (0.1, 3.0)]:
        edges = np.concatenate([[-np.inf], (x[1:] - 1 / 255).numpy(), [np.inf]])
        z = (edges - mean) / std
        upper, lower = stats.norm.logsf(z[:-1]), stats.norm.logsf(z[1:])
        left = z[1:] < 0  # take the difference on the side where it is small
        upper[left], lower[left] = stats.norm.logcdf(z[1:])[left], stats.norm.logcdf(z[:-1])[left]
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = torch.from_numpy(upper + np.log(-np.expm1(lower - upper)))
        log_variance = torch.full_like(x, 2 * math.log(std)).to(dtype)
        middle = torch.full_like(x, mean).to(dtype)
        ours = ddpm.discretized_gaussian_log_likelihood(x.to(dtype), middle, log_variance).double()
        assert ours.isfinite().all()
        assert ours.exp().sum().item() == pytest.approx(1, abs=1e-5 if dtype == F64 else 1e-4)
        tolerance = 1e-9 if dtype == F64 else 1e-4
        good = expected.isfinite()
        assert ((ours - expected)[good].abs() <= tolerance * (1 + expected[good].abs())).all()


class Gauss:
    """Optimal eps for images N(0, s^2 I), in closed form: a network that needs no training."""

    def __init__(self, process, s):
        self.process, self.s2 = process, s * s

    def __call__(self, x, t):
        a, b = self.process.at("sqrt_abar", t), self.process.at("sqrt_one_minus_abar", t)
        return b / (a * a * self.s2 + b * b) * x


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_sampling_with_the_optimal_network(variance):
    """It must give the variance of the data: all of eqs. (5) and (8), T times over."""
    torch.manual_seed(0)
    d = process(1000, variance=variance)
    *_, (x, _) = d.p_sample_loop(Gauss(d, 0.3), torch.randn(400, 1, 8, 8, dtype=F64))
    assert x.std().item() == pytest.approx(0.3, rel=0.02)


def test_bound_is_a_bound():
    """-log2 p(x) of N(0, 0.3^2) in 8 bits is known: the bound lies above it, and not by much."""
    torch.manual_seed(0)
    x0 = ((torch.randn(32, 1, 4, 4, dtype=F64) * 0.3).clamp(-1, 1) * 127.5 + 127.5).round()
    x0 = x0 / 127.5 - 1
    logp = ddpm.discretized_gaussian_log_likelihood(x0, 0 * x0, 0 * x0 + 2 * math.log(0.3))
    exact = ddpm.bits(-logp).mean().item()
    bounds = {}
    for variance in ("beta", "beta_tilde"):
        for timesteps in (25, 100, 400):
            d = process(timesteps, variance=variance)
            bound = d.calc_bpd(Gauss(d, 0.3), x0).sum(1).mean().item()
            bounds.setdefault(variance, []).append(bound)
            assert bound > exact
    assert max(bounds["beta"][1:]) < exact + 0.15  # right for broad data, as these are
    tilde = bounds["beta_tilde"]  # right for a single image: looser here, less so with T
    assert tilde[0] > tilde[1] > tilde[2] > max(bounds["beta"])


def test_terms_of_the_bound():
    """Shapes, the prior in closed form, and one KL restated from eqs. (3), (4) and (11)."""
    torch.manual_seed(0)
    d, (beta, abar) = process(variance="beta"), plain(50)
    x0 = torch.rand(3, 1, 4, 4, dtype=F64) * 2 - 1
    terms = d.calc_bpd(lambda x, t: 0 * x, x0)
    assert terms.shape == (3, 51)
    a, b2 = math.sqrt(abar[50]), 1 - abar[50]
    prior = 0.5 * ((a * x0) ** 2 + b2 - 1 - math.log(b2))
    assert torch.allclose(terms[:, -1], prior.flatten(1).mean(1) / math.log(2))
    t, noise = 30, torch.randn_like(x0)
    x_t = d.q_sample(x0, torch.full((3,), t - 1), noise)
    ours = d.vlb_terms(lambda x, t: 0 * x, x0, x_t, torch.full((3,), t - 1))
    tilde = (1 - abar[t - 1]) / (1 - abar[t]) * beta[t]
    x_hat = (x_t / math.sqrt(abar[t])).clamp(-1, 1)
    gap = math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t]) * (x0 - x_hat)
    ratio = tilde / beta[t]
    kl = 0.5 * (ratio - 1 - math.log(ratio) + gap**2 / beta[t])
    assert torch.allclose(ours, kl.flatten(1).mean(1) / math.log(2))


def test_vlb_loss_has_the_weight_of_the_paper():
    """For eps, L_{t-1} = beta^2 / (2 sigma^2 alpha (1 - abar)) |eps - eps_hat|^2."""
    d, (beta, abar) = process(), plain(50)
    x0, noise, out = torch.randn(3, 2, 1, 4, 4, dtype=F64)
    for t in (2, 17, 50):
        at = torch.full((2,), t - 1)
        loss = d.training_losses(lambda *_: out, x0, at, noise, "vlb")
        sigma2 = (1 - abar[t - 1]) / (1 - abar[t]) * beta[t]
        weight = beta[t] ** 2 / (2 * sigma2 * (1 - beta[t]) * (1 - abar[t]))
        plain_loss = (noise - out).square().flatten(1).mean(1)
        assert torch.allclose(loss, 50 * weight * plain_loss / math.log(2))


@pytest.mark.parametrize("table", ["coef_x0", "coef_xt"])
def test_a_wrong_posterior_is_seen(table):
    """Negative control for the tests above: one coefficient off, and sampling drifts away."""
    torch.manual_seed(0)
    d = process(1000)
    d.tables[table] = d.tables[table] * 1.01
    *_, (x, _) = d.p_sample_loop(Gauss(d, 0.3), torch.randn(400, 1, 8, 8, dtype=F64))
    assert abs(x.std().item() / 0.3 - 1) > 0.02


@pytest.mark.parametrize(
    ("config", "count"), [("laptop", 408_641), ("mnist", 6_469_889), ("celebahq256", 113_673_219)]
)
def test_parameter_counts(config, count):
    args = ddpm.parse_args(["--config", config])
    shape = args.channels, args.img_size, args.base_channels, args.channel_mult
    with torch.device("meta"):
        net = ddpm.UNet(*shape, args.n_res_blocks, args.attn_resolutions, args.dropout)
    assert sum(p.numel() for p in net.parameters()) == count


def test_loss_at_the_start_is_one():
    """Zero-initialised output: the net says 0, and eps has variance 1."""
    torch.manual_seed(0)
    net = ddpm.UNet(1, 8, 16, [1, 2], 1, [4], 0.0)
    d = ddpm.GaussianDiffusion(50, "eps", "beta", "cpu")
    x0, noise = torch.rand(256, 1, 8, 8) * 2 - 1, torch.randn(256, 1, 8, 8)
    loss = d.training_losses(net, x0, torch.randint(50, (256,)), noise).mean().item()
    assert loss == pytest.approx(1, abs=0.05)


def test_frechet():
    """Against scipy's matrix root, and for Gaussians known in closed form."""
    from scipy.linalg import sqrtm

    torch.manual_seed(0)
    x, y = torch.randn(500, 6) @ torch.randn(6, 6), torch.randn(400, 6) + 1
    cov = [np.cov(part.double().numpy().T) for part in (x, y)]
    gap = ((x.double().mean(0) - y.double().mean(0)) ** 2).sum().item()
    expected = gap + np.trace(cov[0] + cov[1] - 2 * sqrtm(cov[0] @ cov[1]).real)
    assert ddpm.frechet(x, y) == pytest.approx(expected, rel=1e-6)
    assert ddpm.frechet(x, x) == pytest.approx(0, abs=1e-5)


def test_data_is_on_the_grey_levels():
    """uint8 at every size, and [-1, 1] in steps of 2/255: else eq. (12) counts nothing."""
    for flags in ([], ["--img_size", "16"]):
        args = ddpm.parse_args([*flags, "--device", "cpu"])
        for part in ddpm.load_data(args):
            assert part.dtype == torch.uint8
            assert part.shape[1:] == (1, args.img_size, args.img_size)
    x = ddpm.to_model(torch.arange(256, dtype=torch.uint8))
    assert torch.allclose(x, torch.linspace(-1, 1, 256), atol=1e-6)


@pytest.mark.skipif("ONEFILE_DATA" not in os.environ, reason="ONEFILE_DATA is not set")
def test_mnist():
    root = ["--dataset", "mnist", "--data_root", os.environ["ONEFILE_DATA"], "--device", "cpu"]
    train, test = ddpm.load_data(ddpm.parse_args(root))
    assert train.shape == (60_000, 1, 32, 32)
    assert test.shape == (10_000, 1, 32, 32)
    assert train.float().mean().item() == pytest.approx(33.318 * 28**2 / 32**2, abs=0.01)


@pytest.mark.parametrize("channels", ["1", "3"])
def test_folder(tmp_path, channels):
    """Grey, alpha and odd-sized pictures of nested folders all become (C, 16, 16)."""
    (tmp_path / "in").mkdir()
    for i in range(20):
        mode, size = ["L", "RGB", "RGBA", "P"][i % 4], (20 + i, 33)
        Image.new(mode, size).save(tmp_path / "in" / f"{i}.png")
    flags = ["--dataset", "folder", "--data_root", str(tmp_path), "--img_size", "16"]
    args = ddpm.parse_args([*flags, "--channels", channels, "--device", "cpu"])
    train, test = ddpm.load_data(args)
    assert train.shape == (18, int(channels), 16, 16)
    assert len(test) == 2
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(SystemExit) as stop:
        ddpm.load_data(args)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--img_size", "10"],
        ["--base_channels", "18"],
        ["--channels", "3"],
        ["--timesteps", "20"],
        ["--dataset", "folder", "--data_root", "nowhere"],
    ],
)
def test_flags_that_do_not_fit(flags, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        ddpm.main(flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def run(argv, out):
    ddpm.main([*TINY, *argv, "--out", str(out)])
    return torch.load(out / "last.pt", weights_only=True)


def test_sampling_needs_the_flags_of_training(tmp_path, capsys):
    run(["--n_steps", "2"], tmp_path / "a")
    assert ddpm.main([*TINY, "--sample", "--out", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a/samples.png").exists()
    assert (tmp_path / "a/trajectory.png").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        ddpm.main([*TINY, "--sample", "--prediction_type", "v", "--out", str(tmp_path / "a")])
    assert stop.value.code == 2
    assert "trained with eps" in capsys.readouterr().err


def test_only_evaluate(tmp_path, capsys):
    """--n_steps 0 --weights scores what training scored at its end."""
    run(["--n_steps", "2"], tmp_path / "a")
    trained = capsys.readouterr().out.splitlines()[-1]
    weights = ["--weights", str(tmp_path / "a/last.pt"), "--out", str(tmp_path / "b")]
    assert ddpm.main([*TINY, "--n_steps", "0", *weights]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == trained


@pytest.mark.parametrize("flags", [["--loss_type", "vlb"], ["--prediction_type", "v"], ["--amp"]])
def test_variants_train(tmp_path, flags):
    run([*flags, "--n_steps", "3"], tmp_path)


def test_two_processes_equal_one(tmp_path):
    """torchrun with two ranks on the CPU: the same weights as one process, to rounding."""
    flags = [*TINY, "--n_steps", "4", "--flip"]
    single = run(["--n_steps", "4", "--flip"], tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", str(ROOT / "diffusion/ddpm.py"), *flags]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("bits_per_dim") == 1
    double = torch.load(tmp_path / "two/last.pt", weights_only=True)
    for part in ("model", "ema"):
        for key, value in single[part].items():
            assert torch.allclose(value, double[part][key], atol=1e-6), key
