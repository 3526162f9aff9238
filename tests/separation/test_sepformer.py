"""sepformer.py by hand: chunks and their sum, what each path may see, the table of sines, lengths,
the size of the paper's network, a run on a folder."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile
from torch import nn

mod = load("separation/sepformer.py")
SCRIPT = ROOT / "separation/sepformer.py"
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 40]


@pytest.mark.parametrize("n, size", itertools.product(LENGTHS, [2, 4, 6, 10]))
def test_chunks_by_hand(n, size):
    x, half = torch.arange(1.0, n + 1)[None, None], size // 2
    y = mod.split_chunks(x, size)
    assert y.shape[2] % 2 == 0 and y.shape[3] == size
    for j, k in itertools.product(range(y.shape[2]), range(size)):
        t = (j - 1) * half + k  # half a chunk of nothing comes first
        assert y[0, 0, j, k] == (t + 1 if 0 <= t < n else 0)
    assert torch.bincount(y.flatten().long())[1:].tolist() == [2] * n  # each frame in two


@pytest.mark.parametrize("n, size", itertools.product(LENGTHS, [2, 4, 6, 10]))
def test_added_chunks_are_twice_the_frames(n, size, monkeypatch):
    x = torch.randn(2, 3, n)
    assert torch.equal(mod.add_chunks(mod.split_chunks(x, size), n), 2 * x)
    moved = mod.split_chunks(x, size).roll(1, 3)
    assert size == 2 or not torch.equal(mod.add_chunks(moved, n), 2 * x)


def path(depth=1):
    torch.manual_seed(0)
    net = mod.PathTransformer((8, 2, 12), depth).eval()
    net.norm = nn.Identity()  # its statistics would let every chunk see the others
    return net


def test_a_path_sees_its_own_row_alone():
    net, x = path(), torch.randn(1, 8, 5, 6)
    y = net(x)
    assert y.shape == (1, 8, 6, 5)
    x[:, :, 2, 3] += torch.arange(8)  # more than an offset, which LN takes away
    changed = (net(x) != y).any(1)[0]  # (K, J)
    assert changed[:, 2].all() and not changed[:, [0, 1, 3, 4]].any()


def test_two_paths_see_all():
    x = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    first, second = path().double(), path().double()
    y = second(first(x))
    assert y.shape == x.shape
    x[:, :, 2, 3] += torch.arange(8)  # more than an offset, which LN takes away
    changed = (second(first(x)) != y).any(1)[0]
    assert changed.all()


def sines_gap(net):
    net.mdl = nn.Identity()
    y = (net(torch.zeros(1, 8, 5, 6)).mT)[0, :, 2]  # (E, K)
    wanted = torch.empty(8, 6)
    for t, i in itertools.product(range(6), range(4)):
        angle = t / 10000 ** (2 * i / 8)
        wanted[2 * i, t], wanted[2 * i + 1, t] = math.sin(angle), math.cos(angle)
    return (y - wanted).abs().max()


def test_sines_and_cosines_by_hand(monkeypatch):
    assert sines_gap(path()) < 1e-6
    monkeypatch.setattr(torch.Tensor, "sin", torch.Tensor.cos)
    assert sines_gap(path()) > 0.5


def test_positions_know_no_end():
    with torch.inference_mode():
        y = path()(torch.randn(1, 8, 1, 5000))
    assert y.shape == (1, 8, 5000, 1) and y.isfinite().all()


@pytest.mark.parametrize("win", [2, 16, 20])
@pytest.mark.parametrize("size", [2, 10])
def test_length_of_the_output_is_that_of_the_input(win, size):
    net = mod.TasNet(6, win, mod.MaskingNetwork(6, 3, (4, 2, 5), 1, 1, size))
    for n in (1, win - 1, win, win + 1, 200, 201):
        assert net(torch.randn(2, n)).shape == (2, 3, n)


def test_masks_are_not_negative_and_silence_stays_silent():
    torch.manual_seed(0)
    net = mod.MaskingNetwork(6, 2, (4, 2, 5), 1, 1, 4)
    masks = net(torch.randn(2, 6, 30))
    assert masks.shape == (2, 2, 6, 30) and masks.min() == 0 and masks.max() > 0
    assert not mod.TasNet(6, 4, net)(torch.zeros(1, 500)).any()


def test_size_of_the_network_of_the_paper():
    args = mod.parse_args(["--config", "paper"])
    args.device = "meta"
    with torch.device("meta"):
        net = mod.build(args)
    count = [sum(p.numel() for p in part.parameters()) for part in (net.masknet, net)]
    assert count == [25_671_169, 25_679_361]


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
    mistake(SCRIPT, "--win", "15", about="--win 15")
    mistake(SCRIPT, "--chunk", "7", about="--chunk 7")
    mistake(SCRIPT, "--dim", "12", "--heads", "4", about="--dim 12")
