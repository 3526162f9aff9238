"""melgan.py by hand: mel, losses and judges in float64; how far a sample sees, pieces without
seams; official weights; sounds of all kinds. What its siblings copy is tested here alone."""

import math
import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile
from torch import nn

mod = load("vocoder/melgan.py")
SCRIPT = ROOT / "vocoder/melgan.py"


def arguments(*argv):
    return mod.parse_args(["--device", "cpu", *argv])


def mel_by_hand(x, sr, hop, filters):
    """Frame by frame, by a discrete Fourier transform written out, in float64."""
    n = 4 * hop
    pad = (n - hop) // 2
    x = np.concatenate([x[1 : pad + 1][::-1], x, x[-pad - 1 : -1][::-1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    turns = np.exp(-2j * np.pi * np.outer(np.arange(n // 2 + 1), np.arange(n)) / n)
    frames = np.stack([x[at : at + n] * window for at in range(0, len(x) - n + 1, hop)], 1)
    return np.log(np.maximum(filters @ np.sqrt(np.abs(turns @ frames) ** 2 + 1e-9), 1e-5))


def test_mel_by_hand():
    mel = mod.Mel(8000, 16, 10, 4000.0).double()
    x = np.random.default_rng(0).normal(size=16 * 20)
    wanted = mel_by_hand(x, 8000, 16, mel.filters.numpy())
    ours = mel.float()(torch.from_numpy(x)[None].float())[0]
    assert ours.shape == (10, 20) and np.abs(ours.numpy() - wanted).max() < 1e-4
    assert np.abs(ours.numpy()[:, 1:] - wanted[:, :-1]).max() > 0.1


def test_silence_is_the_floor():
    mel = mod.Mel(8000, 64, 40, 4000.0)
    assert (mel(torch.zeros(1, 640)) - math.log(1e-5)).abs().max() < 1.5


def layers(seed, judges=2, depth=4):
    torch.manual_seed(seed)
    return [
        [torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(depth)] for _ in range(judges)
    ]


def losses_by_hand(real, fake):
    d = g = gap = 0
    for r, f in zip(real, fake, strict=True):
        d += np.maximum(0, 1 - r[-1].numpy()).mean() + np.maximum(0, 1 + f[-1].numpy()).mean()
        g -= f[-1].numpy().mean()
        for a, b in zip(r[:-1], f[:-1], strict=True):
            gap += np.abs(a.numpy() - b.numpy()).mean() * 4 / (len(r) - 2) / len(real)
    return d, g, gap


def losses(real, fake):
    return (
        mod.discriminator_loss(real, fake).item(),
        mod.generator_loss(fake).item(),
        mod.feature_loss(real, fake).item(),
    )


def test_losses_by_hand(monkeypatch):
    real, fake = layers(0), layers(1)
    wanted = losses_by_hand(real, fake)
    assert np.allclose(losses(real, fake), wanted, rtol=0, atol=1e-12)
    monkeypatch.setattr(F, "relu", lambda x: x.clamp(max=0))  # the min of the paper's own text
    assert abs(losses(real, fake)[0] - wanted[0]) > 0.1


def test_five_layers_and_one_weigh_as_in_the_official_code():
    real, fake = layers(0, 3, 7), layers(1, 3, 7)
    wanted = sum(
        F.l1_loss(r, f) * 4 / 5 / 3
        for a, b in zip(real, fake, strict=True)
        for r, f in zip(a[:-1], b[:-1], strict=True)
    )
    assert abs(mod.feature_loss(real, fake) - wanted) < 1e-12


def test_judges():
    torch.manual_seed(0)
    judges, x = mod.Discriminator(4).double(), torch.randn(2, 1, 2048, dtype=torch.float64)
    found = judges(x)
    assert [[*layer.shape] for layer in found[0]] == [
        [2, 4, 2048],
        [2, 16, 512],
        [2, 64, 128],
        [2, 256, 32],
        [2, 256, 8],
        [2, 256, 8],
        [2, 1, 8],
    ]
    for judge, layer in zip(judges, found, strict=True):
        assert torch.equal(layer[0], F.leaky_relu(judge.convs[0](x), 0.2))
        padded, weight = F.pad(x, (1, 1)), F.pad(torch.ones_like(x), (1, 1))
        x = padded.unfold(2, 4, 2).sum(-1) / weight.unfold(2, 4, 2).sum(-1)
        assert x.shape[-1] * 2 ** (1 + judge.n_pools) == 2048


def test_a_step_moves_each_player_by_its_own_loss():
    torch.manual_seed(0)
    args = arguments("--smoke")
    (generator, mel), judges = mod.build(args), mod.Discriminator(4)
    real = torch.randn(2, 1024) / 9
    before = [p.clone() for p in judges.parameters()]
    frozen = [torch.optim.SGD(player.parameters(), lr=0.0) for player in (generator, judges)]
    amp = torch.autocast("cpu", enabled=False)
    mod.gan_step(generator, judges, *frozen, mel(real), real[:, None], 10.0, amp)
    ours = [p.grad.clone() for p in generator.parameters()]
    theirs = [p.grad.clone() for p in judges.parameters()]
    fake = generator(mel(real))
    seen, fakes = judges(real[:, None]), judges(fake)
    loss = mod.generator_loss(fakes) + 10.0 * mod.feature_loss(seen, fakes)
    wanted = torch.autograd.grad(loss, [*generator.parameters()], retain_graph=True)
    assert max((a - b).abs().max() for a, b in zip(ours, wanted, strict=True)) < 1e-6
    loss = mod.discriminator_loss(judges(real[:, None]), judges(fake.detach()))
    wanted = torch.autograd.grad(loss, [*judges.parameters()])
    assert max((a - b).abs().max() for a, b in zip(theirs, wanted, strict=True)) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(before, judges.parameters(), strict=True))
    assert all(p.requires_grad for p in judges.parameters())


def net(rates, dim=16):
    torch.manual_seed(0)
    return mod.Generator(6, dim, rates, False).double().eval()


RATES = [[8, 8], [8, 8, 2, 2], [5, 4, 2], [3, 2], [2]]


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_length(rates):
    for n in (8, 9):
        assert net(rates)(torch.randn(1, 6, n).double()).shape == (1, 1, n * math.prod(rates))


def seen(generator, n, at):
    """The frames of n whose change is felt by the samples of frame at."""
    m = torch.randn(1, 6, n, dtype=torch.float64, requires_grad=True)
    hop = math.prod(generator.rates)
    generator(m)[0, 0, at * hop : (at + 1) * hop].square().sum().backward()
    return m.grad.abs().sum((0, 1)).nonzero()[:, 0]


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_reach(rates):
    generator = net(rates)
    n = generator.reach()
    frames = seen(generator, 4 * n, 2 * n)
    assert 2 * n - n <= frames.min() and frames.max() <= 2 * n + n
    assert max(2 * n - frames.min(), frames.max() - 2 * n) == n  # not a frame too many


@pytest.mark.parametrize("chunk", [1, 7, 29, 30, 31])
def test_pieces_are_the_whole(chunk):
    generator, m = net([8, 8]), torch.randn(6, 30, dtype=torch.float64)
    whole = generator(m[None])[0, 0]
    y = mod.vocode(generator, m, chunk)
    assert y.shape == whole.shape and (y - whole).abs().max() < 1e-12


def test_too_short_a_reach_is_heard(monkeypatch):
    generator, m = net([8, 8]), torch.randn(6, 60, dtype=torch.float64)
    reach = generator.reach()
    monkeypatch.setattr(generator, "reach", lambda: reach - 2)
    seam = mod.vocode(generator, m, 10) - generator(m[None])[0, 0]
    assert seam.abs().max() > 1e-9


def test_sizes_of_the_official_networks():
    args = arguments("--config", "paper", "--dataset", "folder")
    args.device = "meta"
    with torch.device("meta"):
        players = mod.build(args)[0], mod.Discriminator(args.d_dim)
    counts = [sum(p.numel() for p in player.parameters()) for player in players]
    assert counts == [4_266_050, 16_924_086]
    for module in players[0].modules():
        if hasattr(module, "parametrizations"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    assert sum(p.numel() for p in players[0].parameters()) == 4_260_257


def official(n_mels, ngf, rates):
    """The generator as its authors lay it out, under the weight norm of their time."""

    def normed(conv):
        with pytest.warns(FutureWarning):
            return nn.utils.weight_norm(conv)

    class Block(nn.Module):
        def __init__(self, dim, dilation):
            super().__init__()
            self.block = nn.Sequential(
                nn.LeakyReLU(0.2),
                nn.ReflectionPad1d(dilation),
                normed(nn.Conv1d(dim, dim, 3, dilation=dilation)),
                nn.LeakyReLU(0.2),
                normed(nn.Conv1d(dim, dim, 1)),
            )
            self.shortcut = normed(nn.Conv1d(dim, dim, 1))

        def forward(self, x):
            return self.shortcut(x) + self.block(x)

    mult = 2 ** len(rates)
    parts = [nn.ReflectionPad1d(3), normed(nn.Conv1d(n_mels, mult * ngf, 7))]
    for r in rates:
        up = nn.ConvTranspose1d(mult * ngf, mult * ngf // 2, 2 * r, r, r // 2 + r % 2, r % 2)
        parts += [nn.LeakyReLU(0.2), normed(up)]
        parts += [Block(mult * ngf // 2, dilation) for dilation in (1, 3, 9)]
        mult //= 2
    parts += [nn.LeakyReLU(0.2), nn.ReflectionPad1d(3), normed(nn.Conv1d(ngf, 1, 7)), nn.Tanh()]
    whole = nn.Module()
    whole.model = nn.Sequential(*parts)
    return whole


def test_official_weights_load_by_their_old_keys(tmp_path):
    torch.manual_seed(1)
    theirs = official(80, 4, [8, 8, 2, 2])
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    assert {"model.1.weight_g", "model.1.weight_v"} <= {*theirs.state_dict()}
    torch.save(theirs.state_dict(), tmp_path / "official.pt")
    ours = mod.build(arguments("--config", "paper", "--dataset", "fsdd", "--dim", "64"))[0]
    mod.load_weights(tmp_path / "official.pt", ours)
    m = torch.randn(1, 80, 12) - 5
    wanted = theirs.model(m / math.log(10))
    assert (ours(m) - wanted).abs().max() < 1e-5 and wanted.std() > 0.01
    assert (ours(m + 0.1) - wanted).abs().max() > 1e-3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32", "float64"])
def test_kinds_of_numbers_channels_and_rates(kind, folder, capsys):
    x = 0.5 * np.sin(np.arange(4000) / 10)
    most = {"uint8": 127, "int16": 32767, "int32": 2**31 - 1}.get(kind, 1)
    stored = (x * most + 128 * (kind == "uint8")).astype(kind)
    wavfile.write("a.wav", 8000, stored)
    wavfile.write("b.wav", 8000, np.stack([stored] * 2, 1))
    wavfile.write("c.wav", 16000, np.repeat(stored, 2))
    for name, told in (("a", ""), ("b", "2 channels"), ("c", "16000 Hz")):
        y = mod.read_sound(f"{name}.wav", "--predict", 8000)
        assert y.dtype == torch.float32 and len(y) == 4000
        assert name == "c" or np.abs(y.numpy() - x).max() < 0.02
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == bool(told)


def test_24_bits_and_tags(folder, recwarn):
    x = (0.5 * np.sin(np.arange(4000) / 10) * 2**23).astype("<i4")
    with wave.open("a.wav", "wb") as file:
        file.setparams((1, 3, 8000, 0, "NONE", ""))
        file.writeframes(x.view("u1").reshape(-1, 4)[:, :3].tobytes())
    assert np.abs(mod.read_sound("a.wav", "--predict", 8000).numpy() - x / 2**23).max() < 1e-6
    wavfile.write("b.wav", 8000, x)
    tagged = Path("b.wav").read_bytes() + b"id3 \x04\0\0\0abcd"
    Path("b.wav").write_bytes(tagged[:4] + (len(tagged) - 8).to_bytes(4, "little") + tagged[8:])
    assert len(mod.read_sound("b.wav", "--predict", 8000)) == 4000 and not recwarn


def test_too_loud_is_scaled(folder, capsys):
    wavfile.write("a.wav", 8000, np.array([3.0, -6.0, 1.5], "float32"))
    assert mod.read_sound("a.wav", "--predict", 8000).tolist() == [0.5, -1.0, 0.25]
    assert "peak 6" in capsys.readouterr().err


def test_sounds_that_are_none(folder):
    hole = np.zeros(100, "float32")
    hole[41] = np.nan
    wavfile.write("nan.wav", 8000, hole)
    wavfile.write("empty.wav", 8000, np.zeros(0, "int16"))
    Path("text.wav").write_text("no sound", encoding="utf-8")
    for name in ("nan.wav", "empty.wav", "text.wav", "absent.wav"):
        mistake(SCRIPT, "--predict", name, "--device", "cpu", about=f"--predict {name}")
    mistake(SCRIPT, "--predict", "nan.wav", "--device", "cpu", about="[41]")


def test_train_on_a_folder_and_predict(folder):
    rng = np.random.default_rng(0)
    for at in range(3):
        Path("a").mkdir(exist_ok=True)
        wavfile.write(f"a/{at}.wav", 8000, rng.normal(size=3000 + at).astype("float32") / 9)
    flags = [*tiny(SCRIPT, out="out", dim=16)]
    assert call(SCRIPT, *flags, "--dataset", "folder", "--data_root", ".")[0] == 0
    wanted = {"example_ref.wav", "example_gen.wav", "example.png", "last.pt"}
    assert {p.name for p in Path("out").iterdir()} >= wanted
    for name, n in (("long", 5001), ("short", 10), ("one", 1)):
        wavfile.write(f"{name}.wav", 8000, rng.normal(size=n).astype("float32") / 9)
        code, out, err = call(SCRIPT, *flags, "--predict", f"{name}.wav", "--chunk_frames", "9")
        assert (code, err) == (0, "") and "mel_l1" in out and "nan" not in out
        for kind in ("ref", "gen"):
            rate, y = wavfile.read(f"out/{name}_{kind}.wav")
            assert rate == 8000 and len(y) == n and y.dtype == "int16"
    wavfile.write("quiet.wav", 8000, np.zeros(5000, "int16"))
    assert call(SCRIPT, *flags, "--predict", "quiet.wav")[0] == 0
    mistake(SCRIPT, *flags, "--n_mels", "30", "--predict", "long.wav", about="set the flags")


def test_clips_are_levelled_and_short_ones_padded(folder):
    wavfile.write("a.wav", 8000, np.array([0.1, -0.2], "float32"))
    wavfile.write("b.wav", 8000, np.array([0.3, 0.0], "float32"))
    args = arguments("--dataset", "folder", "--data_root", ".", "--segment", "256")
    x, test = mod.load_data(args)
    assert len(x) == len(test) == 8 * 256 and not x[2:].any()
    assert torch.allclose(test[:2], torch.tensor([0.475, -0.95]))
    assert torch.allclose(x[:2], torch.tensor([0.95, 0.0]))


def test_mistakes(folder):
    mistake(SCRIPT, "--segment", "1000", about="--segment 1000")
    mistake(SCRIPT, "--dim", "18", about="--dim 18")
    mistake(SCRIPT, "--d_dim", "6", about="--d_dim 6")
    mistake(SCRIPT, "--rates", "3", "5", "--segment", "1500", about="--rates")
    mistake(SCRIPT, "--fmax", "4001", about="--fmax")
    mistake(SCRIPT, "--config", "paper", about="--dataset made_up")


@pytest.mark.skipif("ONEFILE_DATA" not in os.environ, reason="ONEFILE_DATA names no folder")
def test_fsdd():
    args = arguments("--dataset", "fsdd", "--data_root", os.environ["ONEFILE_DATA"])
    x, test = mod.load_data(args)
    assert 8 < len(x) / len(test) < 10 and abs(x.abs().max() - 0.95) < 1e-6
