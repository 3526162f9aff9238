"""bigvgan.py by hand: the activation sample by sample in float64, what it does to tones, the judges
of resolutions, sizes of the official networks, how far a sample sees. What it copies from its
siblings is tested there."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile
from scipy.signal import firwin

mod = load("vocoder/bigvgan.py")
SCRIPT = ROOT / "vocoder/bigvgan.py"


def arguments(*argv):
    return mod.parse_args(["--device", "cpu", "--dataset", "fsdd", *argv])


def activation(dim, kind="snakebeta"):
    torch.manual_seed(0)
    act = mod.AntiAliased(dim, kind).double()
    for parameter in act.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return act


def test_filter_is_scipys():
    attenuation = 2.285 * 5 * math.pi * 1.2 + 7.95
    taps = firwin(12, 0.5, window=("kaiser", 0.1102 * (attenuation - 8.7)))
    ours = mod.Filter().filter[0, 0].numpy()
    assert np.abs(ours - taps).max() < 1e-7 and abs(ours.sum() - 1) < 1e-6
    first = [0.002029, 0.009389, -0.025543, -0.057657, 0.128573, 0.443210]
    assert np.abs(ours[:6] - first).max() < 1e-6


def test_snake_of_a_number():
    for kind in ("snake", "snakebeta"):
        snake = mod.Snake(1, kind)
        assert abs(snake(torch.full((1, 1, 1), 1.3)).item() - 2.2284443) < 1e-6
    snake.alpha.data.fill_(math.log(2.0)), snake.beta.data.fill_(math.log(5.0))
    wanted = 1.3 + math.sin(2 * 1.3) ** 2 / 5
    assert abs(snake(torch.full((3, 2, 4), 1.3)) - wanted).max() < 1e-6
    assert not [key for key, _ in mod.Snake(3, "snake").named_parameters() if key != "alpha"]


def by_hand(act, h):
    """Stuff zeros, filter, activate, filter, drop every other sample: one channel (S,)."""
    f, n = act.upsample.filter[0, 0].double().numpy(), len(h)
    padded = np.concatenate([[h[0]] * 5, h, [h[-1]] * 5])
    stuffed = np.zeros(2 * len(padded))
    stuffed[::2] = padded
    z = 2 * np.convolve(stuffed, f)[15 : 15 + 2 * n]
    a, b = act.act.alpha.exp().item(), act.act.beta.exp().item()
    z = z + np.sin(a * z) ** 2 / b
    padded = np.concatenate([[z[0]] * 5, z, [z[-1]] * 6])
    return np.array([f @ padded[at : at + 12] for at in range(0, 2 * n, 2)])


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_activation_by_hand(n, monkeypatch):
    act = activation(1)
    h = torch.randn(1, 1, n, dtype=torch.float64)
    wanted = by_hand(act, h[0, 0].numpy())
    assert np.abs(act(h)[0, 0].detach().numpy() - wanted).max() < 1e-8
    monkeypatch.setattr(mod.AntiAliased, "forward", lambda self, h: self.act(h))  # plain
    assert np.abs(act(h)[0, 0].detach().numpy() - wanted).max() > 1e-3 or n == 1


def test_channels_do_not_mix():
    act = activation(3)
    h = torch.randn(2, 3, 20, dtype=torch.float64)
    whole = act(h)
    for c in range(3):
        one = activation(1)
        one.act.alpha.data, one.act.beta.data = act.act.alpha[c : c + 1], act.act.beta[c : c + 1]
        assert (one(h[:, c : c + 1]) - whole[:, c : c + 1]).abs().max() < 1e-12


@pytest.mark.parametrize("f, gain", [(0.1, 1.0), (0.2, 1.0), (0.25, 0.98), (0.4, 0.67)])
def test_band_that_passes(f, gain):
    act = mod.AntiAliased(1, "snake").double()
    act.act = torch.nn.Identity()
    h = (2 * math.pi * f * torch.arange(1000, dtype=torch.float64)).cos()[None, None]
    assert abs(act(h)[0, 0, 100:900].std() / h[0, 0, 100:900].std() - gain) < 0.01


def test_overtones_do_not_come_back_as_other_tones():
    act = mod.AntiAliased(1, "snake").double()
    f = 0.35  # twice that is 0.3 from a whole cycle: an alias
    h = (2 * math.pi * f * torch.arange(1000, dtype=torch.float64)).cos()
    found = []
    for y in (act(h[None, None])[0, 0], h + h.sin() ** 2):
        found.append(
            torch.fft.rfft(y.detach() * torch.hann_window(1000).double()).abs()[300].item()
        )
    assert found[0] < 0.35 * found[1]


def test_judges_of_resolutions():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 2048)
    for judge in [*mod.Discriminator(4)][5:]:
        n_fft, hop, win = judge.sizes
        pad, seen = (n_fft - hop) // 2, {}
        judge.convs[0].register_forward_pre_hook(lambda _, x, seen=seen: seen.update(x=x[0]))
        layers = judge(x)
        padded, start = (
            np.pad(x[:, 0].double().numpy(), ((0, 0), (pad, pad)), "reflect"),
            (n_fft - win) // 2,
        )
        frames = [
            np.abs(np.fft.rfft(padded[:, at + start : at + start + win], n_fft))
            for at in range(0, padded.shape[1] - n_fft + 1, hop)
        ]
        wanted = np.stack(frames, 2)[:, None]
        assert seen["x"].shape == wanted.shape
        assert np.abs(seen["x"].numpy() - wanted).max() < 1e-4 * wanted.max()
        assert [layer.shape[1] for layer in layers] == [4] * 5 + [1]


def test_gradients_are_clipped():
    torch.manual_seed(0)
    args = arguments("--smoke")
    (generator, mel), judges = mod.build(args), mod.Discriminator(4)
    real, amp = torch.randn(2, 1024) / 9, torch.autocast("cpu", enabled=False)
    sizes = []
    for limit in (1e9, 1e-3):
        optimizers = [
            torch.optim.SGD(player.parameters(), lr=0.0) for player in (generator, judges)
        ]
        eyes, weights = (mel(real), real[:, None]), (2.0, 45.0, limit)
        mod.gan_step(generator, judges, *optimizers, *eyes, mel, weights, amp)
        for player in (generator, judges):
            sizes.append(torch.stack([p.grad.norm() for p in player.parameters()]).norm().item())
    assert min(sizes[:2]) > 1e-2
    assert max(sizes[2:]) < 1.001e-3


def net(rates, resblock):
    torch.manual_seed(0)
    return mod.Generator(6, 16, rates, resblock, "snakebeta", False).double().eval()


NETS = [(rates, n) for n in (1, 2) for rates in ([8, 8], [4, 4, 2, 2], [5, 4, 2], [2])]


@pytest.mark.parametrize("rates, resblock", NETS, ids=str)
def test_length_and_reach(rates, resblock):
    generator, hop = net(rates, resblock), math.prod(rates)
    n = generator.reach()
    m = torch.randn(1, 6, 4 * n, dtype=torch.float64, requires_grad=True)
    y = generator(m)
    assert y.shape == (1, 1, 4 * n * hop)
    y[0, 0, 2 * n * hop : (2 * n + 1) * hop].square().sum().backward()
    frames = m.grad.abs().sum((0, 1)).nonzero()[:, 0]
    assert n - 1 <= max(2 * n - frames.min(), frames.max() - 2 * n) <= n


@pytest.mark.parametrize("resblock", [1, 2])
def test_pieces_are_the_whole(resblock, monkeypatch):
    generator, m = net([8, 8], resblock), torch.randn(6, 60, dtype=torch.float64)
    whole = generator(m[None])[0, 0]
    for chunk in (7, 59, 60):
        y = mod.vocode(generator, m, chunk)
        assert y.shape == whole.shape and (y - whole).abs().max() < 1e-12
    reach = generator.reach()
    monkeypatch.setattr(generator, "reach", lambda: reach // 2)
    assert (mod.vocode(generator, m, 10) - whole).abs().max() > 1e-8


SIZES = {"base": 14_025_154, "base_22k": 13_953_474, "large": 112_446_290}


@pytest.mark.parametrize("config", SIZES)
def test_sizes_of_the_official_networks(config):
    args = arguments("--config", config)
    args.device = "meta"
    with torch.device("meta"):
        generator, judges = mod.build(args)[0], [*mod.Discriminator(args.d_dim)]
    assert sum(p.numel() for p in generator.parameters()) == SIZES[config]
    counts = [sum(p.numel() for p in judge.parameters()) for judge in judges]
    assert (sum(counts[:5]), sum(counts[5:])) == (41_105_770, 280_902)


def test_train_and_predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*tiny(SCRIPT, out="out", dim=16, n_steps=2)]
    assert call(SCRIPT, *flags, "--activation", "snake")[0] == 0
    wavfile.write("a.wav", 8000, np.random.default_rng(0).normal(size=4501).astype("float32") / 9)
    flags += ["--predict", "a.wav", "--chunk_frames", "9"]
    code, out, err = call(SCRIPT, *flags, "--activation", "snake")
    assert (code, err) == (0, "") and "mel_l1" in out
    assert len(wavfile.read("out/a_gen.wav")[1]) == 4501 and Path("out/a.png").exists()
    mistake(SCRIPT, *flags, about="set the flags to match")
    mistake(SCRIPT, *flags, "--segment", "512", about="--segment 512")
