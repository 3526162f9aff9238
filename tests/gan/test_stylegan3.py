"""stylegan3.py: filters against scipy, the signals of the layers, resampling, what the input's
transform does, and (17) of nets that are known to be equivariant, or not."""

import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch
import torch.nn.functional as F
from house import ROOT, load, mistake
from scipy.ndimage import convolve1d
from torch import nn

gan, sg2 = load("gan/stylegan3.py"), load("gan/stylegan2.py")
PATH = ROOT / "gan/stylegan3.py"
SIZES = [(16, 6), (32, 6), (32, 8), (64, 10), (256, 14), (1024, 14)]


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def signal(cutoff, half_width, rate, side, maps):
    return SimpleNamespace(cutoff=cutoff, half_width=half_width, rate=rate, side=side, maps=maps)


def signals(size, n_layers, fmap_max=8, fmap_base=256, margin=10):
    sizes = size, n_layers, margin, fmap_max, fmap_base
    return [gan.Signal(i, *sizes) for i in range(n_layers + 1)]


def move(x, y, angle):
    """Where the points of a moved picture come from."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, s, -x], [-s, c, -y], [0.0, 0.0, 1.0]])


def unfiltered(model):
    """A copy whose lrelus see samples and not signals: each filter is but one tap."""
    bare = copy.deepcopy(model)
    for layer in [*bare.synthesis.values()][1:-1]:
        ups = layer.up_filter, layer.crop % 2, 1 / layer.up
        for taps, at, tap in ups, (layer.down_filter, 0, 1.0):
            taps.zero_()[(len(taps) // 2 - 1 + at,) * taps.ndim] = tap
    return bare


def small(seed=0, size=16, n_layers=4, rotation=False, margin=4, changed=0.3):
    """A generator in eval mode, none of whose parameters is what it was at first."""
    torch.manual_seed(seed)
    stages = signals(size, n_layers, margin=margin)
    model = gan.Generator(7, 8, 2, 2, stages, rotation, 0.999).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * changed)
        model.mapping.w_avg.copy_(torch.randn(8))
        for layer in [*model.synthesis.values()][1:]:
            layer.magnitude_ema.uniform_(0.5, 1.5)
    return model


# --- filters -------------------------------------------------------------------------------------
@pytest.mark.parametrize("size, n", SIZES)
def test_filters_are_those_of_scipy(size, n):
    stages = signals(size, n)
    for old, new in zip([stages[0], *stages], stages, strict=False):
        dense = 2 * max(old.rate, new.rate)
        for which in (old, new):
            taps = gan.lowpass(6 * dense // which.rate, which, dense)
            width = 2 * which.half_width
            right = scipy.signal.firwin(len(taps), which.cutoff, width=width, fs=dense)
            assert np.abs(taps.numpy() - right).max() < 1e-7
            assert taps.sum().item() == pytest.approx(1, abs=1e-6)
            assert (taps - taps.flip(0)).abs().max() < 1e-7
            wrong = scipy.signal.firwin(len(taps), which.cutoff, width=1.2 * width, fs=dense)
            assert np.abs(taps.numpy() - wrong).max() > 1e-5


@pytest.mark.parametrize("half_width", [0.5, 2, 4])  # no window, a weak one, a strong one
def test_all_branches_of_the_window(half_width):
    taps = gan.lowpass(24, signal(3.0, half_width, 16, 16, 1), 32)
    right = scipy.signal.firwin(24, 3.0, width=2 * half_width, fs=32)
    assert np.abs(taps.numpy() - right).max() < 1e-7


@pytest.mark.parametrize("cutoff, half_width", [(2.0, 6.0), (5.6, 3.1)])
def test_radial_filters_are_jincs(cutoff, half_width):
    taps = gan.lowpass(12, signal(cutoff, half_width, 16, 16, 1), 32, True)
    t = (np.arange(12) - 5.5) / 32
    r = np.hypot(t[:, None], t)
    loss = scipy.signal.kaiser_atten(12, half_width / 8)
    window = scipy.signal.windows.kaiser(12, scipy.signal.kaiser_beta(loss))
    right = scipy.special.j1(2 * np.pi * cutoff * r) / (np.pi * r) * np.outer(window, window)
    assert np.abs(taps.numpy() - right / right.sum()).max() < 1e-7
    plain = gan.lowpass(12, signal(cutoff, half_width, 16, 16, 1), 32)
    assert (taps - plain[:, None] * plain).abs().max() > 1e-4


@pytest.mark.parametrize("up, down", [(2, 1), (4, 1), (1, 2), (1, 4)])
def test_resampling_is_that_of_scipy(up, down):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 20, 23, dtype=torch.float64)
    half = torch.randn(6, dtype=torch.float64)
    taps = torch.cat([half, half.flip(0)])
    square = gan.upfirdn2d(x, taps[:, None] * taps, up, down)
    y = gan.upfirdn2d(x, taps, up, down)
    assert (square - y).abs().max() < 1e-12
    right = x.numpy()
    for axis in (2, 3):
        right = scipy.signal.upfirdn(taps.numpy(), right, up, axis=axis)
        if down > 1:  # of which only what is not at the border
            right = right.take(range(11, x.shape[axis], down), axis)
    assert np.abs(y.numpy() - right).max() < 1e-12
    if up > 1:
        cropped = gan.upfirdn2d(x, taps, up, padding=3)
        assert torch.equal(cropped, y[:, :, 3:-3, 3:-3])
    assert (gan.upfirdn2d(x, taps.roll(1), up, down) - y).abs().max() > 1e-2


@pytest.mark.parametrize("frequency, low, high", [(1, 0.99, 1.01), (5, 0.75, 1.01), (15.5, 0, 0.1)])
def test_a_signal_of_few_frequencies_comes_back(frequency, low, high):
    """Twice as dense, and back: what lies below the cutoff is what it was, what lies well above it
    is gone, and nothing comes back as something else."""
    taps = gan.lowpass(12, signal(10.0, 6.0, 32, 52, 1), 64)
    _, (left,) = scipy.signal.freqz(taps.numpy(), worN=[frequency], fs=64)
    left = abs(left) ** 4  # two filters, two sides
    wave = (2 * math.pi * frequency * (torch.arange(52) + 0.5) / 32).sin()
    x = (wave[:, None] * wave)[None, None]
    y = gan.upfirdn2d(gan.upfirdn2d(x, 2 * taps, up=2, padding=2), taps, down=2)
    assert y.shape == (1, 1, 50, 50) and low <= left <= high
    assert (y - left * x[..., 1:-1, 1:-1])[..., 6:-6, 6:-6].abs().max() < 0.02


def test_without_corners_a_layer_only_resamples():
    torch.manual_seed(0)
    layer = [*small().synthesis.values()][2]
    x, up, down = torch.randn(2, 8, 26, 26), layer.up_filter, layer.down_filter
    steps = layer.up, layer.down, layer.crop
    plain = gan.upfirdn2d(gan.upfirdn2d(x, up * 2, up=2, padding=layer.crop), down, down=2)
    assert (gan.filtered_leaky(x, up, down, *steps, slope=1.0) - 2**0.5 * plain).abs().max() < 1e-5
    assert (gan.filtered_leaky(x, up, down, *steps) - 2**0.5 * plain).abs().max() > 0.1
    flat = gan.filtered_leaky(torch.full((1, 1, 26, 26), -3.0), up, down, *steps)
    assert (flat[..., 8:-8, 8:-8] + 3 * 0.2 * 2**0.5).abs().max() < 0.05  # a constant stays one


def test_unfiltered_is_the_lrelu_of_samples():
    model = small(n_layers=6)
    layer = [*unfiltered(model).synthesis.values()][2]
    x = torch.randn(2, 8, 26, 26)
    y = gan.filtered_leaky(x, layer.up_filter, layer.down_filter, 2, 2, layer.crop)
    k = (26 - y.shape[2]) // 2
    assert (y - gan.leaky(x)[..., k : 26 - k, k : 26 - k]).abs().max() < 1e-6
    assert (model.synthesis.L1_24_8.up_filter > 0).sum() > 1  # a copy


# --- signals -------------------------------------------------------------------------------------
@pytest.mark.parametrize("size, n", SIZES)
def test_cutoffs_stops_rates_and_sides(size, n):
    """As the paper has it, word for word: 2 critical layers, first stop 2^2.1, last one 2^0.3
    times the last cutoff, a margin of 10."""
    i = np.minimum(np.arange(n + 1) / (n - 2), 1)
    cutoffs = 2 * (size / 2 / 2) ** i
    stops = 2**2.1 * (size / 2 * 2**0.3 / 2**2.1) ** i
    rates = np.exp2(np.ceil(np.log2(np.minimum(2 * stops, size))))
    widths = np.maximum(stops, rates / 2) - cutoffs
    stages = signals(size, n, 512, 32768)
    for at, stage in enumerate(stages):
        assert stage.cutoff == pytest.approx(cutoffs[at], rel=1e-12)
        assert stage.half_width == pytest.approx(widths[at], rel=1e-12)
        assert stage.rate == rates[at]
        assert stage.side == (rates[at] + 20 if at < n - 1 else size)
    maps = [round(min(512, 16384 / cutoff)) for cutoff in cutoffs]
    assert [stage.maps for stage in stages] == maps and maps[-2] == min(512, 32768 // size)
    assert stages[-1].rate == size and stages[-1].cutoff == pytest.approx(size / 2)
    assert all(a.rate <= b.rate and a.cutoff <= b.cutoff for a, b in pairwise(stages))


def test_layers_of_each_config():
    for config, kernel, twice in (("laptop", 3, 1), ("laptop_r", 1, 2)):
        args = args_of("--config", config)
        model = gan.build(args)[0]
        first, *layers = model.synthesis.values()
        assert model.num_ws == args.n_layers + 2 == len(layers) + 1
        assert first.signal.maps == twice * args.fmap_max
        assert [layer.weight.shape[2] for layer in layers] == [kernel] * args.n_layers + [1]
        radial = [layer.down_filter.ndim == 2 for layer in layers[:-1]]
        assert radial == [config == "laptop_r"] * (args.n_layers - 2) + [False] * 2
        assert all(layer.up_filter.ndim == 1 for layer in layers[:-1])
        assert model(torch.randn(2, args.latent_dim)).shape == (2, 1, 16, 16)


# --- input, layers -------------------------------------------------------------------------------
def test_input_by_hand():
    torch.manual_seed(0)
    net, w = gan.SynthesisInput(6, signal(2.0, 6.0, 16, 24, 5)), torch.randn(3, 6)
    with torch.no_grad():
        net.affine.weight.normal_(), net.affine.bias.add_(0.3)
    net.transform.copy_(torch.tensor([[0.9, -0.3, 0.2], [0.4, 1.1, -0.1], [0.0, 0.0, 1.0]]))
    x = net(None, w)
    t = net.affine(w).detach()
    c, s, dx, dy = (t / t[:, :2].norm(dim=1, keepdim=True)).T
    for b, row, column in ((0, 0, 0), (1, 3, 20), (2, 23, 7)):
        p = torch.tensor([(column + 0.5 - 12) / 16, (row + 0.5 - 12) / 16, 1.0])
        p = (net.transform @ p)[:2] - torch.stack([dx[b], dy[b]])
        p = torch.stack([c[b] * p[0] - s[b] * p[1], s[b] * p[0] + c[b] * p[1]])
        turn = torch.tensor([[c[b], -s[b]], [s[b], c[b]]]) @ net.transform[:2, :2]
        fade = (1 - ((net.freqs @ turn).norm(dim=1) - 2) / (8 - 2)).clamp(0, 1)
        waves = (2 * math.pi * (net.freqs @ p + net.phases)).sin() * fade
        assert (net.weight @ waves / 5**0.5 - x[b, :, row, column]).abs().max() < 1e-5


def test_frequencies_fill_a_disc():
    torch.manual_seed(0)
    net = gan.SynthesisInput(4, signal(2.0, 6.0, 16, 16, 4000))
    r = net.freqs.norm(dim=1)
    assert r.max() < 2.01 and (r < 1).float().mean().item() == pytest.approx(0.25, abs=0.12)
    assert net.phases.min() < -0.49 and net.phases.max() > 0.49
    assert torch.equal(
        net(None, torch.randn(1, 4)), net(None, torch.zeros(1, 4))
    )  # w moves nothing yet


def test_the_input_moves_by_any_fraction():
    torch.manual_seed(0)
    net, w = gan.SynthesisInput(4, signal(2.0, 6.0, 16, 24, 5)), torch.zeros(1, 4)
    x = net(None, w)
    net.transform.copy_(move(2 / 16, -1 / 16, 0.0))  # two to the right, one up
    assert (net(None, w)[..., :-1, 2:] - x[..., 1:, :-2]).abs().max() < 1e-5
    net.transform.copy_(move(0.0, 0.0, math.pi / 2))
    assert (net(None, w) - x.rot90(-1, (2, 3))).abs().max() < 1e-5
    (
        net.transform.copy_(move(0.31, 0.0, 0.0)),
        net.transform.copy_(net.transform @ move(-0.31, 0.0, 0.0)),
    )
    assert (net(None, w) - x).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_convolution_one_image_at_a_time(kernel):
    torch.manual_seed(0)
    x, weight, style = torch.randn(3, 4, 5, 6), torch.randn(2, 4, kernel, kernel), torch.randn(3, 4)
    y = gan.modulated_conv(x, weight, style, torch.tensor(0.7))
    v = weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()
    s = style / style.square().mean().sqrt()  # of the batch
    for b in range(3):
        u = v * s[b, :, None, None]
        u = u / (u.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        assert (0.7 * F.conv2d(x[b], u, padding=kernel - 1) - y[b]).abs().max() < 1e-5
    assert (gan.modulated_conv(x, 3 * weight, 5 * style, 0.7) - y).abs().max() < 1e-5


def test_running_size_is_frozen_when_drawing():
    model, z = small(), torch.randn(4, 7)
    layers = [*model.synthesis.values()][1:]
    before = [layer.magnitude_ema.item() for layer in layers]
    still = model(z)
    assert [layer.magnitude_ema.item() for layer in layers] == before
    assert torch.equal(model(z), still)
    x = model.synthesis.input(None, model.style(z))
    w_avg, w = model.mapping.w_avg.clone(), model.style(z)
    model.train()
    moved = model(z)
    wanted = 0.999 * before[0] + 0.001 * x.square().mean().item()
    assert layers[0].magnitude_ema.item() == pytest.approx(wanted, rel=1e-6)
    assert (model.mapping.w_avg - (0.998 * w_avg + 0.002 * w.mean(0))).abs().max() < 1e-6
    assert all(layer.magnitude_ema.item() != old for layer, old in zip(layers, before, strict=True))
    model.eval()
    assert (model(z) - moved).abs().max() < 1e-6  # it is updated before it is used
    assert (moved - still).abs().max() > 1e-7


def test_half_life_of_the_running_size_is_twenty_thousand_images():
    layer = gan.build(args_of("--batch_size", "50"))[0].synthesis.L0_36_24
    assert layer.decay**400 == pytest.approx(0.5)


# --- the idea ------------------------------------------------------------------------------------
class Waves(nn.Module):
    """A net whose pictures move with its input exactly; stuck: how much of them does not."""

    def __init__(self, stuck=0.0, offset=0.0):
        super().__init__()
        first = gan.SynthesisInput(5, signal(2.0, 6.0, 32, 32, 3))
        self.synthesis = nn.ModuleDict({"input": first})
        self.grain, self.stuck, self.offset = 0.5 * torch.randn(3, 32, 32), stuck, offset

    def style(self, z):
        return z

    def spread(self, w):
        return w[:, None]

    def draw(self, ws):
        moved = not torch.equal(self.synthesis.input.transform, torch.eye(3))
        x = self.synthesis.input(None, ws[:, 0]) * 0.5
        return x + self.stuck * self.grain + self.offset * moved


def test_decibels_of_nets_that_are_known():
    torch.manual_seed(0)
    z = torch.randn(6, 5)
    exact = gan.equivariance(Waves(), z)
    assert exact["eq_t"] > 90 and exact["eq_t_frac"] > 50 and exact["eq_r"] > 50
    grainy = gan.equivariance(Waves(stuck=1.0), z)
    assert all(value < 20 for value in grainy.values())
    off = gan.equivariance(Waves(offset=0.2), z)  # off by a fifth each time: 10 log10(4 / 0.04)
    assert off["eq_t"] == pytest.approx(20, abs=0.01)
    assert off["eq_r"] == pytest.approx(20, abs=0.2)


def test_equivariance_leaves_the_generator_as_it_was():
    model, z = small(), torch.randn(4, 7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gan.equivariance(model, z)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_pictures_are_read_where_they_come_from():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    y, inside = gan.read(x, move(3 / 16, -2 / 16, 0.0), 0)
    assert (y[..., :-2, 3:] - x[..., 2:, :-3]).abs().max() < 1e-4
    assert torch.equal(inside.nonzero().amin(0), torch.tensor([0, 3])) and inside.sum() == 14 * 13
    y, inside = gan.read(x, move(0.0, 0.0, math.pi), 0)
    assert (y - x.flip(2, 3)).abs().max() < 1e-3 and inside.all()
    at = (torch.arange(32) + 0.5) / 32 - 0.5
    wave = (2 * math.pi * 5 * at).sin().expand(1, 1, 32, 32)
    y, inside = gan.read(wave, move(0.07, 0.0, 0.0), 3)
    assert (y - (2 * math.pi * 5 * (at - 0.07)).sin())[..., inside].abs().max() < 0.01
    grid = F.affine_grid(move(0.14, 0, 0)[None, :2], wave.shape, align_corners=False)
    bilinear = F.grid_sample(wave, grid, align_corners=False)
    assert (bilinear - (2 * math.pi * 5 * (at - 0.07)).sin())[..., inside].abs().max() > 0.05


class Planted(nn.Module):
    """A StyleGAN2 that begins with waves in place of its constant, which can so be moved."""

    def __init__(self, widths):
        super().__init__()
        self.inner = sg2.Generator(32, 32, 2, 1, widths)
        first = gan.SynthesisInput(32, signal(1.0, 0.5, 4, 4, widths[0]))
        self.synthesis = nn.ModuleDict({"input": first})
        self.style, self.spread = self.inner.style, self.inner.spread

    def draw(self, ws):
        self.inner.synthesis.b4.const.data = self.synthesis.input(None, ws[:1, 0])[0]
        return self.inner.draw(ws)

    def __deepcopy__(self, memo):  # whose methods are its own inner part's
        return self


@pytest.mark.parametrize("seed", [0, 1])
def test_pictures_move_with_their_input_as_those_of_stylegan2_do_not(seed):
    torch.manual_seed(seed)
    z = torch.randn(8, 32)
    kinds = [
        gan.Generator(32, 32, 2, 1, signals(32, 6, 16, 1024), rotation, 0.999).eval()
        for rotation in (False, True)
    ]
    found, turned = (gan.equivariance(kind, z) for kind in kinds)
    other = gan.equivariance(Planted([16, 16, 16, 16]), z)
    assert found["eq_t"] > 45 and found["eq_t_frac"] > 40 and found["eq_r"] < 35
    assert found["eq_t"] > other["eq_t"] + 8 and found["eq_t_frac"] > other["eq_t_frac"] + 8
    assert turned["eq_r"] > found["eq_r"] + 15


def test_filters_are_what_it_is_due_to():
    torch.manual_seed(0)
    model = gan.Generator(32, 32, 2, 1, signals(16, 6, 16, 1024), False, 0.999).eval()
    z = torch.randn(8, 32)
    with_filters, without = (
        gan.equivariance(net, z)["eq_t_frac"] for net in (model, unfiltered(model))
    )
    assert with_filters > without + 10


def test_blur():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 24, 24)
    assert gan.blurred(x, 0.3) is x
    y = gan.blurred(x, 1.5)
    taps = np.exp2(-((np.arange(-4, 5) / 1.5) ** 2))
    right = x.numpy()
    for axis in (2, 3):
        right = convolve1d(right, taps / taps.sum(), axis, mode="constant")
    assert np.abs(y.numpy() - right).max() < 1e-5


def test_only_what_the_judge_sees_is_blurred(monkeypatch):
    torch.manual_seed(0)
    model, judge = small().train(), gan.Discriminator(2, [6, 5, 4])
    seen, optimizer = [], torch.optim.SGD(judge.parameters(), 0.0)
    monkeypatch.setattr(gan, "blurred", lambda x, sigma: seen.append((x, sigma)) or x)
    real = torch.randn(4, 2, 16, 16)
    gan.d_step(model, judge, optimizer, real, torch.randn(4, 7), 2.0)
    assert len(seen) == 2 and any(x is real for x, _ in seen) and {s for _, s in seen} == {2.0}
    gan.g_step(model, judge, torch.optim.SGD(model.parameters(), 0.0), torch.randn(4, 7), 3.0)
    assert seen[2][1] == 3.0


def test_each_step_moves_its_player_alone():
    torch.manual_seed(0)
    players = small().train(), gan.Discriminator(2, [6, 5, 4])
    before = [{k: v.clone() for k, v in p.named_parameters()} for p in players]
    adam = [torch.optim.Adam(p.parameters(), 1e-2) for p in players]
    gan.d_step(*players, adam[1], torch.randn(4, 2, 16, 16), torch.randn(4, 7), 0.0)
    assert all(torch.equal(v, before[0][k]) for k, v in players[0].named_parameters())
    assert any(not torch.equal(v, before[1][k]) for k, v in players[1].named_parameters())
    now = {k: v.clone() for k, v in players[1].named_parameters()}
    gan.g_step(*players, adam[0], torch.randn(4, 7), 0.0)
    assert all(torch.equal(v, now[k]) for k, v in players[1].named_parameters())
    assert all(not torch.equal(v, before[0][k]) for k, v in players[0].named_parameters())
    assert all(p.requires_grad for p in players[1].parameters())


def test_truncation():
    model, w = small(), torch.randn(4, 8)
    ws = model.spread(w, 0.3)
    wanted = model.mapping.w_avg + 0.3 * (w - model.mapping.w_avg)
    assert ws.shape == (4, 6, 8) and (ws - wanted[:, None]).abs().max() < 1e-6


# --- runs ----------------------------------------------------------------------------------------
QUICK = ["--n_steps", "2", "--sample_interval", "2", "--fmap_max", "4", "--batch_size", "4"]
QUICK += ["--latent_dim", "8", "--w_dim", "8", "--n_mapping", "1", "--margin", "2", "--n_layers"]
QUICK += ["4", "--r1_every", "2"]


@pytest.mark.parametrize("more", [[], ["--config", "laptop_r", "--blur_sigma", "2"]])
def test_pictures_and_numbers(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    rates, adam, noise = [], torch.optim.Adam, gan.noise
    monkeypatch.setattr(gan, "noise", lambda args, n: noise(args, min(n, 40)))
    monkeypatch.setattr(
        torch.optim, "Adam", lambda *a, **k: rates.append((k["lr"], k["betas"])) or adam(*a, **k)
    )
    metrics = gan.train(args_of(*QUICK, *more, "--lr", "1e-3", "--out", "o"))
    names = {"translation.png", "rotation.png", "truncation.png", "interpolation.png"}
    assert names | {"samples_000002.png"} <= {path.name for path in (tmp_path / "o").iterdir()}
    keys = {"eq_t", "eq_t_frac", "eq_r", "swd", "classes"}
    assert keys <= {*metrics} and all(math.isfinite(value) for value in metrics.values())
    (g_lr, g_betas), (d_lr, d_betas) = rates
    assert (g_lr, d_lr) == pytest.approx((1e-3, 0.8e-3 * 2 / 3))
    assert g_betas == (0.0, 0.99) and d_betas[1] == pytest.approx(0.99 ** (2 / 3))
    saved = torch.load("o/last.pt", weights_only=True)
    assert torch.equal(saved["ema"]["synthesis.input.transform"], torch.eye(3))


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(PATH, "--img_size", "24", about="--img_size 24")
    mistake(PATH, "--n_layers", "2", about="--n_layers")
    mistake(PATH, "--margin", "-1", about="--margin")
