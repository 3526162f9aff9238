"""skim.py: a stream in blocks of any size is the whole at once, nothing depends on the future,
memories skip from segment to segment, lengths, the size of the network, a run on a folder."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile

mod = load("separation/skim.py")
SCRIPT = ROOT / "separation/skim.py"


def separator(n_blocks=3, segment=10, n_src=2):
    torch.manual_seed(0)
    net = mod.SkiM(12, n_src, 8, n_blocks, segment).double().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def network(win=16, **sizes):
    return mod.TasNet(12, win, separator(**sizes)).double().requires_grad_(False)


def in_blocks(net, x, sizes, flush):
    """All that comes out of blocks of these sizes, again and again, and of flush zeros."""
    state, found, sizes = net.init_state(), [], itertools.cycle(sizes)
    x = torch.cat([x, x.new_zeros(len(x), flush)], 1)
    while x.shape[1]:
        n = next(sizes)
        y, state = net.stream(x[:, :n], state)
        x = x[:, n:]
        found.append(y)
    return torch.cat(found, 2)


def stream_gap(net, n, win, sizes):
    x = torch.randn(2, n).to(net.encoder.weight)
    hop = win // 2
    y = in_blocks(net, x, sizes, hop + -n % hop)
    assert y.shape[2] == n + -n % hop + hop  # as much as was put in
    return (y[..., hop:][..., :n] - net(x)).abs().max()


@pytest.mark.parametrize("win", [2, 16, 20])
@pytest.mark.parametrize("sizes", [(7,), (160,), (1,), (33, 1, 400), (5000,)], ids=str)
def test_stream_is_the_whole(win, sizes):
    n = 150 if sizes == (1,) or win == 2 else 1007
    assert stream_gap(network(win), n, win, sizes) < 1e-10
    assert stream_gap(network(win).float(), n, win, sizes) < 1e-4


def test_frame_by_frame_is_the_whole():
    net, w = separator(), torch.randn(2, 12, 157, dtype=torch.float64)
    state, found = net.init_state(), []
    for frame in w.split(1, 2):
        m, state = net.stream(frame, state)
        found.append(m)
    assert (torch.cat(found, 3) - net(w)).abs().max() < 1e-10


@pytest.mark.parametrize("n", [9, 10, 11, 20, 21, 157])
def test_stream_across_the_ends_of_segments(n):
    net, w = separator(), torch.randn(1, 12, 157, dtype=torch.float64)
    first, state = net.stream(w[..., :n], net.init_state())
    second, _ = net.stream(w[..., n:], state) if n < 157 else (first[..., :0], None)
    assert (torch.cat([first, second], 3) - net(w)).abs().max() < 1e-10


def test_a_memory_that_is_lost_is_seen(monkeypatch):
    net, true = network(), mod.SkiM.stream

    def forgetful(self, w, state):
        m, (at, ends, memory) = true(self, w, state)
        return m, (at, ends, [[None, None] for _ in memory])

    monkeypatch.setattr(mod.SkiM, "stream", forgetful)
    assert stream_gap(net, 1007, 16, (160,)) > 1e-6


def test_state_is_all_there_is():
    """Two streams by turns do not touch each other, and a state may be used again."""
    net, x = network(), torch.randn(2, 1, 640, dtype=torch.float64)
    wanted = [in_blocks(net, each, (80,), 0) for each in x]
    states, found = [net.init_state(), net.init_state()], ([], [])
    for block in x.split(80, 2):
        for at in (0, 1):
            again, _ = net.stream(block[at], states[at])
            y, states[at] = net.stream(block[at], states[at])
            assert torch.equal(y, again)
            found[at].append(y)
    assert all(torch.equal(torch.cat(a, 2), b) for a, b in zip(found, wanted, strict=True))
    assert not [*net.buffers()]


def test_future_is_ignored_bit_for_bit():
    net, x = network().float(), torch.randn(1, 3000)
    y = net(x)
    for t in (1500, 1501, 1508):
        other = x.clone()
        other[:, t:] += 1
        changed = (net(other) != y).any(1)[0]
        assert not changed[: t - 16].any() and changed[t:].any()


def segment_leak(net):
    w = torch.randn(1, 12, 40, dtype=torch.float64)
    m = net(w)
    w[..., 25] += 1
    return (net(w) != m).any(1).any(1)[0]  # (T,)


def test_memory_skips_to_the_next_segment(monkeypatch):
    changed = segment_leak(separator())
    assert not changed[:25].any() and changed[25:].all()
    changed = segment_leak(separator(n_blocks=1))  # without a MemLSTM
    assert changed[25:30].all() and not changed[:25].any() and not changed[30:].any()
    true = mod.F.pad
    monkeypatch.setattr(mod.F, "pad", lambda x, by: x if by == (0, 0, 1, -1) else true(x, by))
    assert segment_leak(separator())[20:25].any()


@pytest.mark.parametrize("win", [2, 16, 20])
def test_length_of_the_output_is_that_of_the_input(win):
    net = network(win, n_src=3).float()
    for n in (1, win - 1, win, win + 1, 200, 201):
        assert net(torch.randn(2, n)).shape == (2, 3, n)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 500, 1001])
def test_separate_streams_and_keeps_the_length(n):
    net, x = network().float(), torch.randn(n)
    made = ["--device", "cpu", "--win", "16"]
    whole, _ = mod.separate(net, x, mod.parse_args(made))
    live, speed = mod.separate(net, x, mod.parse_args([*made, "--stream", "--block", "37"]))
    assert whole.shape == live.shape == (2, n) and (whole - live).abs().max() < 1e-4
    scale = (whole @ x) / whole.square().sum(1).clamp(min=1e-9)
    assert ((scale - 1).abs() < 1e-3)[whole.any(1)].all()  # as loud as in the mixture
    assert speed["rtf"] > 0 and speed["worst_block_ms"] > 0
    assert not mod.separate(net, 0 * x, mod.parse_args(made))[0].any()


def test_size_of_the_network():
    args = mod.parse_args(["--config", "espnet"])
    args.device = "meta"
    with torch.device("meta"):
        count = sum(p.numel() for p in mod.build(args).parameters())

    def residual(e, h):
        return 4 * h * (e + h) + 2 * 4 * h + h * e + e + 2 * e

    masks = 1 + 64 * 128 + 128
    assert count == 6 * residual(64, 128) + 10 * residual(128, 128) + masks + 2 * 64 * 2


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
    flags.remove("--stream")
    assert call(SCRIPT, *flags, "--dataset", "folder", "--data_root", ".")[0] == 0
    wavfile.write("mix.wav", 8000, rng.normal(size=5000).astype("float32") / 9)
    found = []
    for more in ([], ["--stream"]):
        code, out, err = call(SCRIPT, *flags, *more, "--separate", "mix.wav")
        assert (code, err) == (0, "") and out.startswith("rtf ")
        found.append([wavfile.read(f"out/mix_{name}.wav") for name in ("mix", "s1", "s2")])
    for (rate, y), (_, z) in zip(*found, strict=True):
        assert rate == 8000 and len(y) == 5000 and np.abs(y).max() > 0
        assert np.abs(y.astype(int) - z).max() <= 1
    mistake(SCRIPT, *flags, "--n_src", "3", "--separate", "mix.wav", about="set the flags to match")


def test_mistakes(folder):
    mistake(SCRIPT, "--win", "15", about="--win 15")
    mistake(SCRIPT, "--block", "0", about="--block")
    mistake(SCRIPT, "--separate", "absent.wav", "--device", "cpu", about="--separate absent.wav")
