"""sepreformer.py by hand: voices that change places, lengths, what runs in training alone, the
loss, sizes of the paper's networks, a run on a folder."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile

mod = load("separation/sepreformer.py")
SCRIPT = ROOT / "separation/sepreformer.py"


def stirred(net):
    """Far from LayerScale's 1e-5, which hides what a branch does."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return net.eval()


def network(n_src=2, win=16, depth=2):
    torch.manual_seed(0)
    return stirred(mod.TasNet(6, win, mod.Separator(6, n_src, (8, 2, 5, 0.0), depth, 1, 1)))


def speaker_gap(net, n_src=3):
    x = torch.randn(2, n_src, 11, 8, dtype=torch.float64)
    y, gap = net(x.flatten(0, 1)).view_as(x), 0
    for order in itertools.permutations(range(n_src)):
        other = net(x[:, list(order)].flatten(0, 1)).view_as(x)
        gap = max(gap, (other - y[:, list(order)]).abs().max().item())
    return gap


def test_speaker_block_is_equivariant():
    torch.manual_seed(0)
    net = stirred(mod.SpeakerBlock(8, 2, 0.0, 3)).double()
    assert speaker_gap(net) < 1e-12
    net.n_src = 2  # pairs voices of different mixtures
    assert speaker_gap(net) > 1e-3


def test_speaker_block_looks_at_voices_not_at_frames():
    torch.manual_seed(0)
    net = stirred(mod.SpeakerBlock(8, 2, 0.0, 2))
    net.ffn = torch.nn.Identity()
    x = torch.randn(4, 11, 8)
    y = net(x)
    x[1, 5] += torch.arange(8)
    changed = (net(x) != y).any(2)  # (B C, T)
    assert changed[:2, 5].all() and changed.sum() == 2


def test_decoder_treats_all_voices_alike():
    """Exchanging the voices right after the split exchanges the outputs."""
    net, w = network().separator.double(), torch.randn(1, 6, 32, dtype=torch.float64)
    y, true = net(w)[0], net.split.forward
    net.split.forward = lambda x: true(x).flip(0)
    assert (net(w)[0] - y.flip(1)).abs().max() < 1e-10 and (y - y.flip(1)).abs().max() > 1e-3


@pytest.mark.parametrize("win", [4, 16, 20])
@pytest.mark.parametrize("depth", [1, 3])
def test_length_of_the_output_is_that_of_the_input(win, depth):
    net = network(3, win, depth)
    for n in (1, win - 1, win, win + 1, 200, 201):
        assert net(torch.randn(2, n)).shape == (2, 3, n)
        assert [tuple(y.shape) for y in net.train()(torch.randn(2, n))] == [(2, 3, n)] * (depth + 1)
        net.eval()


def test_lower_scales_are_left_out_unless_in_training():
    net, calls = network(), []
    for at, head in enumerate(net.separator.heads):
        head.register_forward_hook(lambda *_, at=at: calls.append(at))
    net(torch.randn(1, 100))
    assert calls == [0]
    net.train()(torch.randn(2, 100))
    assert sorted(calls) == [0, 0, 1, 2]


def test_places_know_no_end():
    net = network().separator
    with torch.inference_mode():
        d = net(torch.randn(1, 6, 4 * 2100))[0]
    assert d.shape[3] == 4 * 2100 and d.isfinite().all()


def test_magnitudes_by_hand():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 1000, dtype=torch.float64)
    ours = mod.magnitudes(x.float()).view(2, 257, -1)
    padded = np.pad(x[0].numpy(), ((0, 0), (256, 256)))
    window = np.sin(np.pi * np.arange(512) / 512) ** 2
    for at in range(ours.shape[2]):
        frame = np.abs(np.fft.rfft(padded[:, at * 128 : at * 128 + 512] * window))
        assert np.abs(ours[:, :, at].numpy() - frame).max() < 1e-3


def loss_gap():
    torch.manual_seed(0)
    s, e, one, two = torch.randn(4, 3, 2, 900)
    best = []
    for each, kind in ((e, None), (one, mod.magnitudes), (two, mod.magnitudes)):
        a, b = (each, s) if kind is None else (kind(each), kind(s))
        scores = [mod.si_snr(a[:, list(p)], b).mean(1) for p in ([0, 1], [1, 0])]
        best.append(torch.maximum(*scores).mean())
    wanted = -(0.7 * best[0] + 0.3 * (best[1] + best[2]) / 2)
    return (mod.separation_loss(e, [one, two], s, 0.3) - wanted).abs()


def test_loss_by_hand(monkeypatch):
    assert loss_gap() < 1e-4
    true = mod.pit
    monkeypatch.setattr(mod, "pit", lambda e, s: (true(e, s)[0] * 1.01, None))
    assert loss_gap() > 1e-3


def test_gradients_reach_every_parameter():
    net = network().train()
    e, *low = net(torch.randn(2, 900))
    mod.separation_loss(e, low, torch.randn(2, 2, 900), 0.4).backward()
    assert not [key for key, value in net.named_parameters() if value.grad is None]


@pytest.mark.parametrize(
    "config, deployed, in_all",
    [
        ("tiny", 3_711_488, 3_926_528),
        ("small", 8_087_936, 8_450_944),
        ("base", 14_147_840, 14_691_584),
        ("large", 55_222_016, 56_816_384),
    ],
)
def test_sizes_of_the_networks_of_the_paper(config, deployed, in_all):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        net = mod.build(args)
    count = sum(p.numel() for p in net.parameters())
    for part in (*net.separator.heads[1:], *net.decoder[1:]):
        count -= sum(p.numel() for p in part.parameters())
    assert count == deployed
    assert sum(p.numel() for p in net.parameters()) == in_all


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_on_a_folder_and_separate(folder):
    rng = np.random.default_rng(0)
    for speaker, at in itertools.product("ab", range(6)):
        Path(speaker).mkdir(exist_ok=True)
        wavfile.write(f"{speaker}/{at}.wav", 8000, rng.normal(size=3000).astype("float32") / 9)
    flags = [*tiny(SCRIPT, out="out")]
    assert call(SCRIPT, *flags, "--dataset", "folder", "--data_root", ".")[0] == 0
    wavfile.write("mix.wav", 8000, rng.normal(size=5000).astype("float32") / 9)
    assert call(SCRIPT, *flags, "--separate", "mix.wav", "--chunk_s", "0.2")[::2] == (0, "")
    for name in ("mix_mix", "mix_s1", "mix_s2"):
        rate, y = wavfile.read(f"out/{name}.wav")
        assert rate == 8000 and len(y) == 5000 and np.abs(y).max() > 0
    mistake(SCRIPT, *flags, "--n_src", "3", "--separate", "mix.wav", about="set the flags to match")


def test_mistakes(folder):
    mistake(SCRIPT, "--win", "18", about="--win 18")
    mistake(SCRIPT, "--kernel_size", "6", about="--kernel_size 6")
    mistake(SCRIPT, "--dim", "10", "--heads", "4", about="--dim 10")
