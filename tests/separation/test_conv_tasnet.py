"""conv_tasnet.py by hand: norms, SI-SNR and PIT in float64, lengths, what a causal network may see,
long recordings in pieces, sounds of all kinds."""

import itertools
import math
import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile

mod = load("separation/conv_tasnet.py")
SCRIPT = ROOT / "separation/conv_tasnet.py"


def model(causal=False, n_src=2):
    """A small network in float64 in which no parameter has its initial value."""
    torch.manual_seed(0)
    masks = mod.MaskGenerator(12, n_src, (8, 10, 3), 3, 2, causal, "sigmoid")
    net = mod.TasNet(12, 16, masks).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


def arguments(*argv):
    args = mod.parse_args(["--device", "cpu", *argv])
    return args


def si_snr_by_hand(e, s):
    e, s = ([v - sum(x) / len(x) for v in x] for x in (e.tolist(), s.tolist()))
    scale = sum(a * b for a, b in zip(e, s, strict=True)) / sum(b * b for b in s)
    noise = sum((a - scale * b) ** 2 for a, b in zip(e, s, strict=True))
    return 10 * math.log10(sum((scale * b) ** 2 for b in s) / noise)


def test_si_snr_by_hand():
    torch.manual_seed(0)
    e, s = torch.randn(2, 5, 50, dtype=torch.float64)
    e = e + s + 3
    wanted = [si_snr_by_hand(*pair) for pair in zip(e, s, strict=True)]
    ours = mod.si_snr(e, s)
    assert (ours - torch.tensor(wanted, dtype=torch.float64)).abs().max() < 1e-10
    assert (mod.si_snr(7 * e - 2, s) - ours).abs().max() < 1e-10  # neither scale nor offset
    assert (mod.si_snr(s, e) - ours).abs().max() > 1e-2 or not torch.equal(e, s)
    zero_mean_left_out = 10 * math.log10(1 / ((e[0] - s[0]).square().sum() / s[0].square().sum()))
    assert abs(zero_mean_left_out - wanted[0]) > 0.1


def test_silence_gives_numbers():
    s = torch.randn(1, 2, 100)
    assert mod.si_snr(0 * s, s).abs().max() < 1e-3
    for e, r in ((0 * s, s), (s, 0 * s), (0 * s, 0 * s)):
        e = e.clone().requires_grad_()
        best = mod.pit(e, r)[0].sum()
        best.backward()
        assert best.isfinite() and e.grad.isfinite().all()


def pit_by_hand(e, s):
    n = len(e)
    orders = [*itertools.permutations(range(n))]
    scores = [sum(si_snr_by_hand(e[p[i]], s[i]) for i in range(n)) / n for p in orders]
    return max(scores), scores.index(max(scores))


def pit_gap():
    torch.manual_seed(1)
    gap = 0
    for n in (1, 2, 3, 4):
        e, s = torch.randn(2, 3, n, 40, dtype=torch.float64)
        best, which = mod.pit(e, s)
        for i in range(3):
            wanted, order = pit_by_hand(e[i], s[i])
            gap = max(gap, abs(wanted - best[i].item()), abs(order - which[i].item()))
    return gap


def test_pit_by_hand(monkeypatch):
    assert pit_gap() < 1e-9
    true = mod.si_snr
    monkeypatch.setattr(mod, "si_snr", lambda e, s: true(e, s).mT)  # the inverse permutation
    assert pit_gap() > 0.5


def test_pit_finds_the_order():
    torch.manual_seed(0)
    s = torch.randn(1, 3, 200, dtype=torch.float64)
    for number, order in enumerate(itertools.permutations(range(3))):
        e = torch.empty_like(s)
        e[:, list(order)] = s  # e[p[i]] is s[i]
        best, which = mod.pit(e + 1e-3 * torch.randn_like(e), s)
        assert which.item() == number and best > 40


def test_gln_and_cln_by_hand():
    x = torch.randn(2, 5, 30, dtype=torch.float64) * 3 + 1
    for causal in (False, True):
        norm = mod.normalisation(5, causal).double()
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        torch.nn.init.normal_(norm.bias)
        y = norm(x)
        for b, t in itertools.product(range(2), range(30)):
            seen = x[b, :, : t + 1] if causal else x[b]
            z = (x[b, :, t] - seen.mean()) / (seen.var(correction=0) + 1e-8).sqrt()
            z = z * norm.weight + norm.bias
            assert (y[b, :, t] - z).abs().max() < 1e-10


def test_cln_of_a_long_sound_stays_exact():
    norm, x = mod.CumulativeNorm(1, 4, eps=1e-8), torch.randn(1, 4, 60_000) + 1
    assert (norm(x) - norm.double()(x.double())).abs().max() < 2e-3


@pytest.mark.parametrize("win", [2, 16, 20])
@pytest.mark.parametrize("causal", [False, True])
def test_length_of_the_output_is_that_of_the_input(win, causal):
    net = mod.TasNet(6, win, mod.MaskGenerator(6, 3, (4, 5, 3), 2, 1, causal, "relu"))
    for n in (1, win - 1, win, win + 1, 800, 801):
        assert net(torch.randn(2, n)).shape == (2, 3, n)


def leak(causal):
    net, x = model(causal).float(), torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x)
        x[:, 1500:] += 1
        return (net(x) - y)[..., : 1500 - 16].abs().max()


def test_causal_network_does_not_see_the_future():
    assert leak(True) == 0 and leak(False) > 1e-6


def test_mixtures():
    args = arguments("--crop_s", "0.1", "--n_src", "2", "--batch_size", "64", "--level_db", "6")
    x = torch.arange(5000).float() + 1e-3
    where = torch.tensor([[0, 1000, 3000], [1000, 2000, 2000]])
    torch.manual_seed(0)
    mixed, s = mod.mixtures(x, where, args)
    assert s.shape == (64, 2, 800) and torch.allclose(mixed, s.sum(1))
    gain = s[..., 1] - s[..., 0]  # of a ramp of slope 1
    assert (20 * (gain * 10).log10()).abs().max() <= 3.01
    who = torch.bucketize(s[..., 400] / gain, torch.tensor([1000.0, 3000.0]))
    ends = torch.bucketize(s[..., -1] / gain - 1, torch.tensor([1000.0, 3000.0]))
    assert (who[:, 0] != who[:, 1]).all() and {*who.flatten().tolist()} == {0, 1, 2}
    assert torch.equal(who, ends)


class Swaps(torch.nn.Module):
    """A perfect separator of a low and a high tone, whose outputs change places at every call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        f = torch.fft.rfft(x)
        low = torch.fft.irfft(f * (torch.arange(f.shape[-1]) < 0.2 * f.shape[-1]), x.shape[-1])
        self.calls += 1
        both = torch.stack([low, x - low], 1)
        return (both.flip(1) if self.calls % 2 else both) * self.calls


def test_pieces_keep_their_voices_and_loudness():
    t = torch.arange(40_000) / mod.RATE
    s = torch.stack([(2 * math.pi * 200 * t).sin(), (2 * math.pi * 2000 * t).sin() / 2])
    net = Swaps()
    y = mod.separate(net, s.sum(0), arguments("--chunk_s", "1.0"))
    assert y.shape == s.shape and net.calls > 4
    assert mod.pit(y[None], s[None])[0] > 20
    assert (y.square().mean(1).sort().values - s.square().mean(1).sort().values).abs().max() < 0.03


@pytest.mark.parametrize("n", [1, 15, 79, 80, 799, 800, 801, 1520, 1521, 5000])
def test_pieces_have_the_length_of_the_whole(n):
    net, x = model().float(), torch.randn(n)
    args = arguments("--chunk_s", "0.1")
    assert mod.separate(net, x, args).shape == (2, n)
    assert mod.separate(net, 0 * x, args).isfinite().all()


def test_one_piece_is_the_network_on_the_whole():
    net, x = model().float(), torch.randn(3000)
    y, e = mod.separate(net, x, arguments()), net(x[None])[0].detach()
    scale = (y * e).sum(1) / e.square().sum(1)
    assert (y - scale[:, None] * e).abs().max() < 1e-5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32"])
def test_kinds_of_numbers_channels_and_rates(kind, folder, capsys):
    x = 0.5 * np.sin(np.arange(4000) / 10)
    most = {"uint8": 127, "int16": 32767, "int32": 2**31 - 1, "float32": 1}[kind]
    stored = (x * most + 128 * (kind == "uint8")).astype(kind)
    wavfile.write("a.wav", 8000, stored)
    wavfile.write("b.wav", 8000, np.stack([stored] * 2, 1))
    wavfile.write("c.wav", 16000, np.repeat(stored, 2))
    for name in "ab":
        y = mod.read_sound(f"{name}.wav", "--separate")
        assert y.dtype == torch.float32 and np.abs(y.numpy() - x).max() < 0.02
    assert not capsys.readouterr().err
    assert len(mod.read_sound("c.wav", "--separate")) == 4000
    assert "16000" in capsys.readouterr().err


def test_24_bits(folder):
    x = (0.5 * np.sin(np.arange(4000) / 10) * 2**23).astype("<i4")
    with wave.open("a.wav", "wb") as file:
        file.setparams((1, 3, 8000, 0, "NONE", ""))
        file.writeframes(x.view("u1").reshape(-1, 4)[:, :3].tobytes())
    assert np.abs(mod.read_sound("a.wav", "--separate").numpy() - x / 2**23).max() < 1e-6


def test_sounds_that_are_none(folder):
    wavfile.write("nan.wav", 8000, np.full(100, np.nan, "float32"))
    wavfile.write("empty.wav", 8000, np.zeros(0, "int16"))
    Path("text.wav").write_text("no sound", encoding="utf-8")
    for name in ("nan.wav", "empty.wav", "text.wav", "absent.wav"):
        mistake(SCRIPT, "--separate", name, "--device", "cpu", about=f"--separate {name}")


def test_train_on_a_folder_and_separate(folder):
    rng = np.random.default_rng(0)
    for speaker, at in itertools.product("ab", range(6)):
        Path(speaker).mkdir(exist_ok=True)
        wavfile.write(f"{speaker}/{at}.wav", 8000, rng.normal(size=3000).astype("float32") / 9)
    flags = [*tiny(SCRIPT, out="out")]
    assert call(SCRIPT, *flags, "--dataset", "folder", "--data_root", ".")[0] == 0
    assert {p.name for p in Path("out").iterdir()} >= {"example_s1.wav", "example.png", "last.pt"}
    wavfile.write("mix.wav", 8000, rng.normal(size=5000).astype("float32") / 9)
    code, _, err = call(SCRIPT, *flags, "--separate", "mix.wav")
    assert (code, err) == (0, "")
    for name in ("mix_mix", "mix_s1", "mix_s2"):
        rate, y = wavfile.read(f"out/{name}.wav")
        assert rate == 8000 and len(y) == 5000 and np.abs(y).max() > 0
    wavfile.write("quiet.wav", 8000, np.zeros(5000, "int16"))
    code, _, err = call(SCRIPT, *flags, "--separate", "quiet.wav")
    assert code == 0 and "silent" in err
    mistake(SCRIPT, *flags, "--n_src", "3", "--separate", "mix.wav", about="set the flags to match")


def test_mistakes(folder):
    mistake(SCRIPT, "--win", "15", about="--win 15")
    mistake(SCRIPT, "--kernel_size", "2", about="--kernel_size 2")
    mistake(SCRIPT, *tiny(SCRIPT), "--n_src", "5", about="--n_src")


@pytest.mark.skipif("ONEFILE_DATA" not in os.environ, reason="ONEFILE_DATA names no folder")
def test_fsdd():
    args = arguments("--dataset", "fsdd", "--data_root", os.environ["ONEFILE_DATA"])
    (x, where), (held, there) = mod.load_data(args)
    assert where.shape == there.shape == (2, 6) and 8 < len(x) / len(held) < 10
    assert where[:, -1].sum() == len(x) and (x.square().mean() - 1).abs() < 0.01


def test_size_of_the_network_of_the_paper():
    args = arguments("--config", "paper")
    args.device = "meta"
    with torch.device("meta"):
        count = sum(p.numel() for p in mod.build(args).parameters())
    assert count == 4_984_881  # 5,050,545 with a residual path in the last block, 128 * 513 more
    assert count + 128 * 513 == 5_050_545
