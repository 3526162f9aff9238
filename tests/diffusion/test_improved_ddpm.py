"""Identities of improved_ddpm.py: each equation against a brute-force restatement in float64."""

import math
import shlex

import numpy as np
import pytest
import torch
from house import call, load, mistake
from scipy import stats

improved = load("diffusion/improved_ddpm.py")
PATH = improved.Path(improved.__file__)
F64 = torch.float64
TINY = shlex.split("--timesteps 25 --n_samples 4 --n_test 8 --sample_interval 3 --batch_size 8")
TINY += shlex.split("--base_channels 8 --channel_mult 1 2 --n_res_blocks 1 --device cpu")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def process(timesteps=50, schedule="cosine"):
    return improved.GaussianDiffusion(improved.noise_schedule(schedule, timesteps), "cpu", F64)


def plain(timesteps, schedule="cosine"):
    """beta and abar of eqs. (1), (14) and (15), one number after the other, index 0 unused."""
    beta, abar = [0.0], [1.0]
    for t in range(1, timesteps + 1):
        low, high = 0.1 / timesteps, 20 / timesteps
        f = [math.cos((u / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (t, t - 1)]
        linear = low + (high - low) * (t - 1) / (timesteps - 1)
        beta.append(linear if schedule == "linear" else min(1 - f[0] / f[1], 0.999))
        abar.append(abar[-1] * (1 - beta[-1]))
    return beta, abar


def tables(beta, abar, before, t):
    """What the tables should hold where abar goes from abar[before] to abar[t]."""
    rest = 1 - abar[t]
    return {
        "sqrt_abar": math.sqrt(abar[t]),
        "sqrt_one_minus_abar": math.sqrt(rest),
        "coef_x0": math.sqrt(abar[before]) * beta / rest,
        "coef_xt": math.sqrt(1 - beta) * (1 - abar[before]) / rest,
        "log_beta": math.log(beta),
    } | ({"log_beta_tilde": math.log((1 - abar[before]) / rest * beta)} if before else {})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("timesteps", [21, 50, 1000, 4000])
def test_tables(timesteps, schedule):
    """Term by term, and the variance of the first step that has no logarithm."""
    beta, abar = plain(timesteps, schedule)
    ours = process(timesteps, schedule).tables
    for t in {1, 2, 3, timesteps // 2, timesteps}:
        for name, value in tables(beta[t], abar, t - 1, t).items():
            assert ours[name][t - 1].item() == pytest.approx(value, rel=1e-9, abs=1e-14), name
    assert ours["log_beta_tilde"][0] == ours["log_beta_tilde"][1]


def test_cosine_values():
    """abar falls from 1 to 0, through f(1/2) / f(0), gently at both ends; beta is capped."""
    betas = improved.noise_schedule("cosine", 1000)
    abar = (1 - betas).cumprod(0)
    assert abar[499].item() == pytest.approx(0.493844, abs=1e-6)
    assert 4.0e-5 < betas[0].item() < 4.2e-5
    assert betas[-1] == 0.999
    assert (betas[1:] >= betas[:-1]).all()
    assert abar[-1].item() < 1e-8


@pytest.mark.parametrize("counts", [[10], [2], [50], [3, 4], [5, 10, 15]])
def test_space_timesteps(counts):
    """Restated by the strides of each part; both ends of it are there."""
    kept = improved.space_timesteps(50, counts).tolist()
    sizes = [50 // len(counts) + (i < 50 % len(counts)) for i in range(len(counts))]
    expected, start = [], 0
    for size, count in zip(sizes, counts, strict=True):
        stride = (size - 1) / (count - 1)
        expected += [start + round(i * stride) for i in range(count)]
        assert {start, start + size - 1} <= {*kept}
        start += size
    assert kept == expected
    assert len({*kept}) == sum(counts)


@pytest.mark.parametrize("counts", [[10], [4, 8]])
def test_respaced_chain(counts):
    """Its tables are those of a chain built from the kept abar alone, its times those of old."""
    (_, abar), kept = plain(50), improved.space_timesteps(50, counts).tolist()
    short = process().respaced(counts)
    assert short.timesteps == sum(counts)
    assert short.times.tolist() == [t * 20 for t in kept]
    for i, t in enumerate(kept):
        before = kept[i - 1] + 1 if i else 0
        beta = 1 - abar[t + 1] / abar[before]
        for name, value in tables(beta, abar, before, t + 1).items():
            assert short.tables[name][i].item() == pytest.approx(value, rel=1e-8), name


def test_all_steps_are_the_process_itself():
    d = process()
    for name, table in d.respaced([50]).tables.items():
        assert torch.allclose(table, d.tables[name], rtol=1e-9, atol=0), name


def test_the_network_is_told_the_old_time():
    """t * 1000/T of every kept step, the last one first."""
    d, told = process(100).respaced([5]), []

    def spy(x, t):
        told.append(t.tolist())
        return torch.cat([x, x], 1)

    [*d.p_sample_loop(spy, torch.randn(2, 1, 4, 4, dtype=F64))]
    assert told == [[t * 10.0] * 2 for t in (99, 74, 50, 25, 0)]


def test_learned_variance():
    """out = -1 is beta_tilde, 1 is beta, 0 their geometric mean, and beyond is not cut off."""
    d, (beta, abar) = process(), plain(50)
    x, t = torch.randn(5, 1, 2, 2, dtype=F64), torch.full((5,), 29)
    out = torch.tensor([-1.0, 0.0, 1.0, 3.0, -2.0], dtype=F64)
    values = torch.cat([x, out[:, None, None, None].expand_as(x)], 1)
    _, log_variance, _ = d.p_mean_variance(lambda *_: values, x, t)
    low, high = math.log((1 - abar[29]) / (1 - abar[30]) * beta[30]), math.log(beta[30])
    for row, o in zip(log_variance, out.tolist(), strict=True):
        expected = (o + 1) / 2 * high + (1 - o) / 2 * low
        assert (row - expected).abs().max() < 1e-10


def test_no_noise_in_the_last_step():
    d = process()
    x = torch.randn(3, 1, 4, 4, dtype=F64)
    for t, same in (0, True), (1, False):
        at = torch.full((3,), t)
        steps = [d.p_sample(lambda x, t: torch.cat([x, x], 1), x, at)[0] for _ in range(2)]
        assert torch.equal(*steps) == same


def brute_vlb(x0, x_t, eps, out, t, beta, abar):
    """Eqs. (11) and (12) pixel by pixel in nats per dimension, for the paper's t."""
    total = 0.0
    coef_x0 = math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t])
    coef_xt = math.sqrt(1 - beta[t]) * (1 - abar[t - 1]) / (1 - abar[t])
    at = max(t, 2)  # the first step borrows from the second
    tilde = (1 - abar[at - 1]) / (1 - abar[at]) * beta[at]
    for a, b, e, o in zip(*(part.flatten().tolist() for part in (x0, x_t, eps, out)), strict=True):
        x_hat = (b - math.sqrt(1 - abar[t]) * e) / math.sqrt(abar[t])
        mean = coef_x0 * x_hat + coef_xt * b
        v = (o + 1) / 2
        variance = beta[t] ** v * tilde ** (1 - v)
        if t > 1:
            gap = mean - coef_x0 * a - coef_xt * b
            total += 0.5 * (math.log(variance / tilde) + tilde / variance - 1 + gap**2 / variance)
        else:
            normal = stats.norm(mean, math.sqrt(variance))
            upper = normal.cdf(a + 1 / 255) if a < 0.999 else 1.0
            total -= math.log(upper - (normal.cdf(a - 1 / 255) if a > -0.999 else 0.0))
    return total / x0.numel()


def losses(kind, t, broken=None):
    """Ours and the restatement of the loss of two images at the paper's t."""
    torch.manual_seed(t)
    d, (beta, abar) = process(), plain(50)
    if broken:
        d.tables[broken] = d.tables[broken] * 1.01
    x0 = torch.randint(256, (2, 1, 3, 3)).to(F64) / 127.5 - 1
    x0[0, 0, 0] = torch.tensor([-1.0, 1.0, 0.0])
    noise = torch.randn_like(x0)
    eps, out = noise + 0.1 * torch.randn_like(x0), 0.5 * torch.randn_like(x0)
    at = torch.full((2,), t - 1)
    ours = d.training_losses(lambda *_: torch.cat([eps, out], 1), x0, at, noise, kind)
    expected = []
    for i in range(2):
        x_t = math.sqrt(abar[t]) * x0[i] + math.sqrt(1 - abar[t]) * noise[i]
        simple = ((noise[i] - eps[i]) ** 2).mean().item()
        bits = brute_vlb(x0[i], x_t, eps[i], out[i], t, beta, abar) / math.log(2)
        expected.append(
            {"simple": simple, "vlb": 50 * bits, "hybrid": simple + 0.001 * 50 * bits}[kind]
        )
    return ours, torch.tensor(expected, dtype=F64)


@pytest.mark.parametrize("t", [1, 2, 3, 25, 49, 50])
@pytest.mark.parametrize("kind", ["simple", "vlb", "hybrid"])
def test_losses(kind, t):
    ours, expected = losses(kind, t)
    assert torch.allclose(ours, expected, rtol=1e-8)


@pytest.mark.parametrize("table", ["coef_x0", "sqrt_abar", "log_beta", "log_beta_tilde"])
def test_a_wrong_coefficient_is_seen(table):
    """Negative control for the losses."""
    assert not torch.allclose(*losses("hybrid", 25, table), rtol=1e-5)


def gradients(kind):
    """Of the loss with respect to eps_hat and to the channels of the variance."""
    torch.manual_seed(0)
    d, (x0, noise) = process(), torch.rand(2, 50, 1, 4, 4, dtype=F64)
    out = torch.randn(50, 2, 4, 4, dtype=F64).requires_grad_()
    d.training_losses(lambda *_: out, x0, torch.arange(50), noise, kind).sum().backward()
    return out.grad.chunk(2, 1)


def test_the_mean_is_held_fixed_in_the_bound():
    """Exactly: to the last bit eps_hat is told the same as without the bound, v what it says."""
    (simple, none), (hybrid, some), (vlb, all_of_it) = map(gradients, ("simple", "hybrid", "vlb"))
    assert torch.equal(simple, hybrid)
    assert not none.any()
    assert torch.allclose(some, 0.001 * all_of_it, rtol=1e-12)
    assert (vlb.flatten(1).norm(dim=1) > 0).all()  # the control: without hybrid it is not fixed


def test_stop_gradient_reaches_no_weight_of_the_mean():
    net = improved.UNet(1, 8, 8, [1, 2], 1, [4], 4, 0.0).double()
    torch.nn.init.normal_(net.out[2].weight)
    d, (x0, noise) = process(), torch.rand(2, 8, 1, 8, 8, dtype=F64)
    grads = []
    for kind in ("simple", "hybrid"):
        net.zero_grad()
        t = torch.arange(8) * 6
        d.training_losses(net, x0, t, noise, kind).mean().backward()
        grads.append(net.out[2].weight.grad)
    assert torch.equal(grads[0][:1], grads[1][:1])
    assert not grads[0][1:].any()
    assert grads[1][1:].any()


class Gauss:
    """Optimal eps and variance for images N(0, s^2 I), in closed form, told times of T = 1000."""

    def __init__(self, chain, s, out=None):
        self.chain, self.s2, self.out = chain, s * s, out

    def __call__(self, x, time):
        d = self.chain
        t = (d.times[None] - time[:, None]).abs().argmin(1)
        a, b = d.at("sqrt_abar", t), d.at("sqrt_one_minus_abar", t)
        total = a * a * self.s2 + b * b
        low, high = d.at("log_beta_tilde", t), d.at("log_beta", t)
        spread = self.s2 * b * b / total  # of x_0, when x_t is known
        own = low.exp() * (t > 0)[:, None, None, None]
        exact = (d.at("coef_x0", t) ** 2 * spread + own).log()
        v = (exact - low) / (high - low)
        out = 2 * v - 1 if self.out is None else torch.full_like(v, self.out)
        return torch.cat([b / total * x, out.expand_as(x)], 1)


@pytest.mark.parametrize("counts", [[200], [50], [10], [5, 10]])
def test_sampling_with_the_optimal_network(counts):
    """With the right variance any number of steps gives that of the data."""
    torch.manual_seed(0)
    d = process(1000).respaced(counts)
    *_, (x, _) = d.p_sample_loop(Gauss(d, 0.3), torch.randn(400, 1, 8, 8, dtype=F64))
    assert x.std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("out", [-1.0, 1.0])
def test_a_fixed_variance_needs_many_steps(out):
    """Negative control: beta_tilde or beta in ten steps misses what the right one hits."""
    torch.manual_seed(0)
    d = process(1000).respaced([10])
    *_, (x, _) = d.p_sample_loop(Gauss(d, 0.3, out), torch.randn(400, 1, 8, 8, dtype=F64))
    assert abs(x.std().item() / 0.3 - 1) > 0.05


def test_bound_is_tight_with_the_right_variance():
    """-log2 p(x) of N(0, 0.3^2) in 8 bits is known; fixed variances stay further above it."""
    torch.manual_seed(0)
    x0 = ((torch.randn(400, 1, 8, 8, dtype=F64) * 0.3).clamp(-1, 1) * 127.5 + 127.5).round()
    x0 = x0 / 127.5 - 1
    logp = improved.discretized_gaussian_log_likelihood(x0, 0 * x0, 0 * x0 + 2 * math.log(0.3))
    exact = improved.bits(-logp).mean().item()
    d = process(50)
    gap = [d.calc_bpd(Gauss(d, 0.3, o), x0).sum(1).mean().item() - exact for o in (None, 1, -1)]
    assert -0.01 < gap[0] < 0.02
    assert gap[0] + 0.02 < min(gap[1:])


def test_terms_of_the_bound():
    d, x0 = process(), torch.rand(3, 1, 4, 4, dtype=F64) * 2 - 1
    terms = d.calc_bpd(lambda x, t: torch.cat([0 * x, 0 * x], 1), x0)
    assert terms.shape == (3, 51)
    _, abar = plain(50)
    a, b2 = math.sqrt(abar[50]), 1 - abar[50]
    prior = 0.5 * ((a * x0) ** 2 + b2 - 1 - math.log(b2))
    assert torch.allclose(terms[:, -1], prior.flatten(1).mean(1) / math.log(2), atol=1e-9)


def test_sampler_is_uniform_until_it_knows_ten_of_every_t():
    s = improved.LossSecondMomentSampler(6)
    for i in range(10):
        t, weights = s.sample(20)
        assert torch.equal(weights, torch.ones(20)), i
        s.update(torch.arange(6), torch.arange(1.0, 7.0))
        s.update(torch.tensor([5, 5, 5]), torch.full((3,), 6.0))
    t, weights = s.sample(20_000)
    rms = torch.arange(1.0, 7.0)
    p = 0.999 * rms / rms.sum() + 0.001 / 6
    assert torch.allclose(weights, 1 / (6 * p[t]))
    assert (t.bincount() / 20_000 - p).abs().max() < 0.015


def test_sampler_is_unbiased():
    """The weighted loss has the mean that uniform t would give, and a smaller spread."""
    torch.manual_seed(0)
    s, loss = improved.LossSecondMomentSampler(50), torch.rand(50).exp() ** 4
    for _ in range(10):
        s.update(torch.arange(50), loss)
    t, weights = s.sample(100_000)
    weighted = weights * loss[t]
    assert weighted.mean().item() == pytest.approx(loss.mean().item(), rel=0.005)
    assert weighted.std() < 0.05 * loss.std()
    assert abs(loss[t].mean() / loss.mean() - 1) > 0.1  # the control: without weights it is not


def test_sampler_remembers_the_last_ten():
    """Against lists that drop their oldest entry, many losses of one t in a batch among them."""
    torch.manual_seed(0)
    s, lists = improved.LossSecondMomentSampler(5), [[] for _ in range(5)]
    for _ in range(40):
        t, loss = torch.randint(5, (7,)), torch.rand(7)
        s.update(t, loss)
        for at, value in zip(t.tolist(), loss.tolist(), strict=True):
            lists[at] = [*lists[at], value][-10:]
    assert np.allclose(s.losses.sort(1)[0], [sorted(part) for part in lists])
    rms = torch.tensor(lists).square().mean(1).sqrt()
    t, weights = s.sample(100)
    p = 0.999 * rms / rms.sum() + 0.001 / 5
    assert torch.allclose(weights, 1 / (5 * p[t]))
    copy = improved.LossSecondMomentSampler(5)
    copy.load_state_dict(s.state_dict())
    torch.manual_seed(3)
    first = s.sample(9)
    torch.manual_seed(3)
    assert all(map(torch.equal, first, copy.sample(9)))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ("laptop", 438_946),
        ("mnist", 6_947_458),
        ("cifar10", 52_546_438),
        ("imagenet64", 121_063_942),
    ],
)
def test_parameter_counts(config, count):
    assert sum(p.numel() for p in net_of(config).parameters()) == count


def net_of(config):
    args = improved.parse_args(["--config", config])
    shape = args.channels, args.img_size, args.base_channels, args.channel_mult
    kind = args.n_res_blocks, args.attn_resolutions, args.heads, args.dropout
    with torch.device("meta"):
        return improved.UNet(*shape, *kind)


def test_official_names_and_shapes():
    """Where the official CIFAR-10 model keeps what, and what it is made of."""
    net = net_of("cifar10")
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    expected = {
        "time_embed.0.weight": (512, 128),
        "time_embed.2.bias": (512,),
        "input_blocks.0.0.weight": (128, 3, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (128,),
        "input_blocks.1.0.in_layers.2.weight": (128, 128, 3, 3),
        "input_blocks.1.0.emb_layers.1.weight": (256, 512),
        "input_blocks.1.0.out_layers.0.bias": (128,),
        "input_blocks.1.0.out_layers.3.weight": (128, 128, 3, 3),
        "input_blocks.4.0.op.weight": (128, 128, 3, 3),
        "input_blocks.5.0.skip_connection.weight": (256, 128, 1, 1),
        "input_blocks.5.1.norm.weight": (256,),
        "input_blocks.5.1.qkv.weight": (768, 256, 1),
        "input_blocks.15.0.out_layers.3.bias": (256,),
        "middle_block.1.proj_out.weight": (256, 256, 1),
        "middle_block.2.in_layers.2.weight": (256, 256, 3, 3),
        "output_blocks.3.1.conv.weight": (256, 256, 3, 3),
        "output_blocks.7.2.conv.weight": (256, 256, 3, 3),
        "output_blocks.15.0.skip_connection.weight": (128, 256, 1, 1),
        "out.0.weight": (128,),
        "out.2.weight": (6, 128, 3, 3),
    }
    assert expected.items() <= shapes.items()
    assert "input_blocks.15.1.qkv.weight" not in shapes  # attention at 16 and 8 alone
    assert net.out[0].num_groups == 32
    assert {layer.eps for layer in net.modules() if hasattr(layer, "num_groups")} == {1e-5}


def test_loss_at_the_start_is_one():
    """Zero-initialised output: the net says 0, eps has variance 1, and v is 1/2."""
    torch.manual_seed(0)
    net = improved.UNet(1, 8, 16, [1, 2], 1, [4], 4, 0.0)
    d = improved.GaussianDiffusion(improved.noise_schedule("cosine", 50), "cpu")
    x0, noise = torch.rand(256, 1, 8, 8) * 2 - 1, torch.randn(256, 1, 8, 8)
    assert not net(noise, torch.zeros(256)).any()
    loss = d.training_losses(net, x0, torch.randint(50, (256,)), noise, "simple").mean().item()
    assert loss == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("flags", "about"),
    [
        (["--img_size", "10"], "--img_size"),
        (["--base_channels", "18"], "--base_channels"),
        (["--heads", "3"], "--heads"),
        (["--channels", "3"], "--channels"),
        (["--timesteps", "20"], "--timesteps"),
        (["--sampling_steps", "201"], "--sampling_steps"),
        (["--sampling_steps", "80", "30", "30"], "--sampling_steps"),
    ],
)
def test_flags_that_do_not_fit(flags, about):
    mistake(PATH, *flags, about=about)


def run(argv, out):
    code, stdout, stderr = call(PATH, *TINY, *argv, "--out", out)
    assert code == 0, stderr
    return torch.load(out / "last.pt", weights_only=True), stdout.splitlines()[-1]


def test_sampling_needs_the_flags_of_training(tmp_path):
    run(["--n_steps", "2"], tmp_path)
    short = ["--sample", "--sampling_steps", "5", "--out", tmp_path]
    assert call(PATH, *TINY, *short)[0] == 0
    assert (tmp_path / "samples.png").exists()
    assert (tmp_path / "trajectory.png").exists()
    for flags in ["--schedule", "linear"], ["--heads", "2"], ["--timesteps", "30"]:
        mistake(PATH, *TINY, *flags, "--sample", "--out", tmp_path, about=flags[0])


def test_only_evaluate(tmp_path):
    """--n_steps 0 --weights scores what training scored at its end."""
    _, trained = run(["--n_steps", "2"], tmp_path / "a")
    flags = ["--n_steps", "0", "--weights", str(tmp_path / "a/last.pt")]
    code, stdout, _ = call(PATH, *TINY, *flags, "--out", tmp_path / "b")
    assert code == 0
    assert stdout.splitlines()[-1] == trained


VARIANTS = ["--loss_type vlb", "--loss_type simple --schedule linear", "--amp", "--flip"]


@pytest.mark.parametrize("flags", VARIANTS)
def test_variants_train(tmp_path, flags):
    run([*flags.split(), "--n_steps", "3", "--sampling_steps", "5"], tmp_path)


def test_resume_with_the_importance_sampler(tmp_path):
    """Its memory is part of the checkpoint: 5 + 5 steps equal 10, bit for bit."""
    flags = shlex.split("--loss_type vlb --schedule_sampler loss-second-moment --batch_size 128")
    flags += shlex.split("--sample_interval 5 --sampling_steps 2 --n_test 1")
    whole, _ = run([*flags, "--n_steps", "10"], tmp_path / "a")
    half, _ = run([*flags, "--n_steps", "5"], tmp_path / "b")
    both, _ = run([*flags, "--n_steps", "10", "--resume"], tmp_path / "b")
    assert half["sampler"]["seen"].min() >= 10  # what follows depends on the losses
    assert half["sampler"]["seen"].sum() == 5 * 128
    for part in ("sampler", "ema", "model"):
        for key, value in whole[part].items():
            assert torch.equal(value, both[part][key]), key
    assert not torch.equal(half["sampler"]["losses"], both["sampler"]["losses"])


def test_uniform_times_teach_the_sampler_nothing(tmp_path):
    assert not run(["--n_steps", "2"], tmp_path)[0]["sampler"]["seen"].any()
