"""diffwave.py by hand: the network, its schedules and its sampler in float64, how far it looks,
pieces without seams. What it copies from melgan.py and wavenet.py is tested there."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile

mod = load("vocoder/diffwave.py")
SCRIPT = ROOT / "vocoder/diffwave.py"


def arguments(*argv):
    return mod.parse_args(["--device", "cpu", "--dataset", "fsdd", *argv])


def net(depth=6, cycle=4, rates=(4, 3), official=False):
    torch.manual_seed(0)
    model = mod.DiffWave(5, [*rates], depth, cycle, 6, 20, official).double().eval()
    torch.nn.init.normal_(model.output_projection.weight)
    return model


def block_by_hand(block, h, c, u):
    """Sample by sample, tap by tap."""
    w, d, dim = block.dilated_conv.weight, block.dilated_conv.dilation[0], h.shape[0]
    h_u = h + (block.diffusion_projection.weight @ u + block.diffusion_projection.bias)[:, None]
    hs, skips = [], []
    for t in range(h.shape[1]):
        y = block.dilated_conv.bias + block.conditioner_projection.bias
        y = y + block.conditioner_projection.weight[..., 0] @ c[:, t]
        for i in (-1, 0, 1):
            if 0 <= t + i * d < h.shape[1]:
                y = y + w[..., 1 + i] @ h_u[:, t + i * d]
        z = y[dim:].tanh() * y[:dim].sigmoid()
        out = block.output_projection.weight[..., 0] @ z + block.output_projection.bias
        hs.append((h[:, t] + out[:dim]) / 2**0.5)
        skips.append(out[dim:])
    return torch.stack(hs, 1), torch.stack(skips, 1)


def network_by_hand(model, x, c, t):
    """One sound (S,) at a whole step t."""
    u = [f(t * 10 ** (i * 4 / 63)) for f in (math.sin, math.cos) for i in range(64)]
    u = torch.tensor(u, dtype=torch.float64)
    for p in (model.diffusion_embedding.projection1, model.diffusion_embedding.projection2):
        u = p.weight @ u + p.bias
        u = u * u.sigmoid()
    h, s = (model.input_projection.weight[:, 0] * x + model.input_projection.bias[:, None]), 0
    h = h.clamp(min=0)
    for block in model.residual_layers:
        h, skip = block_by_hand(block, h, c, u)
        s = s + skip
    s = s / len(model.residual_layers) ** 0.5
    s = model.skip_projection.weight[..., 0] @ s + model.skip_projection.bias[:, None]
    last = model.output_projection
    return (last.weight[..., 0] @ s.clamp(min=0))[0] + last.bias


def test_network_by_hand(monkeypatch):
    model, x = net(), torch.randn(2, 24, dtype=torch.float64)
    c = torch.randn(2, 5, 24, dtype=torch.float64)
    t = torch.tensor([3.0, 0.0], dtype=torch.float64)
    ours = model(x, c, t)
    wanted = torch.stack([network_by_hand(model, x[n], c[n], int(t[n])) for n in range(2)])
    assert (ours - wanted)[1].abs().max() < 1e-12 and wanted.std() > 0.1
    assert (ours - wanted).abs().max() < 2e-4  # sines of large angles are of float32
    assert (model(x, c, t + 1) - wanted).abs().max() > 1e-3
    monkeypatch.setattr(mod.math, "sqrt", lambda n: n**0.5 * 1.1)
    assert (model(x, c, t) - wanted).abs().max() > 1e-3


def test_steps_between_steps():
    model = net().diffusion_embedding
    t = torch.tensor([3.0, 4.0, 3.25], dtype=torch.float64)
    model.projection1 = model.projection2 = torch.nn.Identity()
    mod_silu, mod.F.silu = mod.F.silu, lambda u: u
    try:
        a, b, between = model(t)
    finally:
        mod.F.silu = mod_silu
    assert (between - (0.75 * a + 0.25 * b)).abs().max() < 1e-12
    assert abs(a[0] - math.sin(3)) < 1e-6 and abs(a[64] - math.cos(3)) < 1e-6


def test_schedules():
    b, a, t = mod.schedule(50, 0.05, False)
    assert b.dtype == torch.float64 and torch.equal(t, torch.arange(50.0).double())
    assert abs(b[0] - 1e-4) < 1e-12 and abs(b[49] - 0.05) < 1e-12
    left = 1.0
    for n in range(50):
        left *= 1 - (1e-4 + (0.05 - 1e-4) * n / 49)
        assert abs(a[n] - left) < 1e-12
    fast = mod.schedule(50, 0.05, True)
    wanted = [0.0, 0.894170, 4.086661, 10.451819, 22.992494, 42.918645]
    assert fast[0].tolist() == mod.FAST and (fast[2] - torch.tensor(wanted)).abs().max() < 1e-4
    assert (mod.schedule(50, 0.04, True)[2] - torch.tensor(wanted)).abs().max() > 0.1


@pytest.mark.parametrize("timesteps, end", [(2, 1e-4), (10, 0.01), (200, 0.02), (1000, 0.02)])
def test_no_step_of_the_fast_schedule_is_dropped(timesteps, end):
    """Those with more noise than any in training go to the last one."""
    b, a, t = mod.schedule(timesteps, end, True)
    assert len(b) == len(a) == len(t) == 6
    assert t[0] == 0 and (t.diff() >= 0).all() and t[-1] <= timesteps - 1
    if a[-1] < mod.schedule(timesteps, end, False)[1][-1]:
        assert t[-1] == timesteps - 1


def test_loss_by_hand():
    model, a = net(), mod.schedule(20, 0.05, False)[1]
    x, noise = torch.randn(2, 2, 24, dtype=torch.float64)
    m, t = torch.randn(2, 5, 2, dtype=torch.float64), torch.tensor([7, 19])
    c, wanted = model.stretch(m), 0
    for n in range(2):
        left = math.prod(1 - (1e-4 + (0.05 - 1e-4) * i / 19) for i in range(int(t[n]) + 1))
        x_t = left**0.5 * x[n] + (1 - left) ** 0.5 * noise[n]
        e = model(x_t[None], c[n : n + 1], t[n : n + 1].double())
        wanted += (e - noise[n]).abs().mean() / 2
    assert abs(mod.loss_of(model, x, m, t, noise, a) - wanted) < 1e-6
    assert abs(mod.loss_of(model, x, m, t - 1, noise, a) - wanted) > 1e-4


def sampled_by_hand(model, m, timesteps, end, fast):
    b = mod.FAST if fast else [1e-4 + (end - 1e-4) * n / (timesteps - 1) for n in range(timesteps)]
    a = [math.prod(1 - v for v in b[: n + 1]) for n in range(len(b))]
    t, c = mod.schedule(timesteps, end, fast)[2], model.stretch(m)
    x = torch.randn(c.shape[0], c.shape[2], dtype=torch.float64)
    for n in range(len(b) - 1, -1, -1):
        e = model(x, c, t[n].expand(len(x)))
        x = (x - b[n] / (1 - a[n]) ** 0.5 * e) / (1 - b[n]) ** 0.5
        if n > 0:
            n_ = torch.randn(x.shape, dtype=torch.float64)
            x = x + (b[n] * (1 - a[n - 1]) / (1 - a[n])) ** 0.5 * n_
        x = x.clamp(-1, 1)
    return x


@pytest.mark.parametrize("fast", [False, True])
def test_sampler_by_hand(fast, monkeypatch):
    model, m = net(), torch.randn(2, 5, 9, dtype=torch.float64)
    with torch.no_grad():
        model.output_projection.weight.mul_(0.3)
    torch.manual_seed(1)
    wanted = sampled_by_hand(model, m, 20, 0.05, fast)
    steps = mod.schedule(20, 0.05, fast)
    for chunk in (10, 1000):
        torch.manual_seed(1)
        y = mod.sample(model, m, steps, chunk)
        assert y.shape == (2, 108) and (y - wanted).abs().max() < 1e-10
    assert wanted.abs().lt(1).double().mean() > 0.01
    torch.manual_seed(1)
    assert (mod.sample(model, m, (steps[0] * 1.01, *steps[1:]), 99) - wanted).abs().max() > 1e-4


def test_reach_and_seams(monkeypatch):
    model, c = net(), torch.randn(1, 5, 120, dtype=torch.float64)
    x, t = torch.randn(1, 120, dtype=torch.float64), torch.tensor([2.5], dtype=torch.float64)
    reach = model.reach()
    assert reach == 1 + 2 + 4 + 8 + 1 + 2
    x.requires_grad_()
    whole = model(x, c, t)
    felt = torch.autograd.grad(whole[0, 60], x)[0][0].nonzero()[:, 0]
    assert (felt.min(), felt.max()) == (60 - reach, 60 + reach)
    for chunk in (1, 7, 50, 120, 999):
        assert (mod.predict_noise(model, x, c, t, chunk) - whole).abs().max() < 1e-12
    monkeypatch.setattr(model, "reach", lambda: reach - 3)
    assert (mod.predict_noise(model, x, c, t, 30) - whole).abs().max() > 1e-9


SIZES = {"base": 2_619_971, "large": 6_885_315}


@pytest.mark.parametrize("config", SIZES)
def test_sizes_of_the_official_networks(config):
    args = arguments("--config", config)
    sizes = args.depth, args.cycle, args.dim, args.timesteps, args.official_mel
    with torch.device("meta"):
        model = mod.DiffWave(args.n_mels, args.rates, *sizes)
    assert sum(p.numel() for p in model.parameters()) == SIZES[config]
    assert model.reach() == 3 * 1023 and not any(
        "embedding.embedding" in k for k in model.state_dict()
    )


def test_train_and_predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*tiny(SCRIPT, out="out", dim=8)]
    assert call(SCRIPT, *flags)[0] == 0
    wanted = {"example_ref.wav", "example_gen.wav", "example.png", "last.pt"}
    assert {p.name for p in Path("out").iterdir()} >= wanted
    for name, n in (("long", 901), ("one", 1)):
        x = np.random.default_rng(0).normal(size=2 * n).astype("float32") / 9
        wavfile.write(f"{name}.wav", 16000, x)
        code, out, err = call(SCRIPT, *flags, "--predict", f"{name}.wav", "--chunk_frames", "9")
        assert code == 0 and "mel_l1" in out and "nan" not in out and "16000 Hz" in err
        assert len(wavfile.read(f"out/{name}_gen.wav")[1]) == n
    wavfile.write("b.wav", 8000, np.zeros(3000, "int16"))
    mistake(SCRIPT, *flags, "--dim", "6", "--predict", "b.wav", about="set the flags")
    mistake(SCRIPT, "--segment", "1000", about="--segment 1000")
    mistake(SCRIPT, "--timesteps", "1", about="--timesteps")
    mistake(SCRIPT, "--beta_end", "1", about="--beta_end")
