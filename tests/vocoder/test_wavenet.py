"""wavenet.py by hand: mu-law, a block and the loss in float64, what a score may depend on, samples
from queues and drawn anew. What it copies from melgan.py is tested there."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile

mod = load("vocoder/wavenet.py")
SCRIPT = ROOT / "vocoder/wavenet.py"


def arguments(*argv):
    return mod.parse_args(["--device", "cpu", *argv])


def net(kernel=2, depth=6, cycle=4, rates=(4, 3), voices=3):
    torch.manual_seed(0)
    model = mod.WaveNet(5, [*rates], depth, cycle, 6, 7, kernel, voices).double().eval()
    with torch.no_grad():  # louder, so that no code is always the likeliest
        for key, p in model.named_parameters():
            p.mul_(1 if "upsampler" in key else 0.2 if "bias" in key else 2)
    return model


def test_mu_law_by_hand():
    x = torch.linspace(-1, 1, 40_001, dtype=torch.float64)
    f = [math.copysign(math.log(1 + 255 * abs(v)) / math.log(256), v) for v in x.tolist()]
    wanted = [math.floor((v + 1) / 2 * 255 + 0.5) for v in f]
    assert mod.mu_law(x).tolist() == wanted and {*wanted} == {*range(256)}
    codes = torch.arange(256)
    assert torch.equal(mod.mu_law(mod.inverse_mu_law(codes)), codes)
    assert mod.mu_law(torch.zeros(1)).item() == 128
    near = x[x.abs() < 0.01]
    assert (mod.inverse_mu_law(mod.mu_law(near)) - near).abs().max() < 4e-4  # 8 bits: 4e-3


def block_by_hand(block, h, c, g):
    """Sample by sample, tap by tap."""
    w, bias = block.dilated_conv.weight, block.dilated_conv.bias
    d, k, dim = block.dilated_conv.dilation[0], w.shape[2], h.shape[0]
    hs, skips = [], []
    for t in range(h.shape[1]):
        y = bias + block.conditioner_projection.weight[..., 0] @ c[:, t]
        y = y + block.voice_projection.weight @ g
        for i in range(k):
            if t - i * d >= 0:
                y = y + w[..., k - 1 - i] @ h[:, t - i * d]
        z = y[:dim].tanh() * y[dim:].sigmoid()
        out = block.output_projection.weight[..., 0] @ z + block.output_projection.bias
        hs.append(h[:, t] + out[:dim])
        skips.append(out[dim:])
    return torch.stack(hs, 1), torch.stack(skips, 1)


@pytest.mark.parametrize("kernel, dilation", [(1, 1), (2, 1), (2, 4), (3, 2)])
def test_block_by_hand(kernel, dilation):
    torch.manual_seed(0)
    block = mod.ResidualBlock(5, 6, 7, kernel, dilation).double()
    h, c, g = (torch.randn(*n, dtype=torch.float64) for n in ((6, 20), (5, 20), (6,)))
    ours = block(h[None], c[None], g[None])
    wanted = block_by_hand(block, h, c, g)
    assert max((a[0] - b).abs().max() for a, b in zip(ours, wanted, strict=True)) < 1e-12
    halves = block_by_hand(block, h, c, -g)
    assert (ours[1][0] - halves[1]).abs().max() > 1e-3


def test_scores_and_loss_by_hand():
    model, m = net(), torch.randn(2, 5, 3, dtype=torch.float64)
    x, g = torch.rand(2, 36, dtype=torch.float64) * 2 - 1, torch.tensor([2, 0])
    c, q, total = model.stretch(m), mod.mu_law(x), 0
    for n in range(2):
        codes = [128, *q[n].tolist()[:-1]]
        h, s = model.input_projection.weight[codes].T, 0
        for block in model.residual_layers:
            h, skip = block_by_hand(block, h, c[n], model.voices.weight[g[n]])
            s = s + skip
        for p in (model.skip_projection, model.output_projection):
            s = p.weight[..., 0] @ s.clamp(min=0) + p.bias[:, None]
        assert (model(q, c, g)[n] - s).abs().max() < 1e-12
        total -= sum(s.log_softmax(0)[code, t] for t, code in enumerate(q[n].tolist()))
    assert abs(mod.loss_of(model, x, m, g) - total / 72) < 1e-6
    assert abs(mod.loss_of(model, x, m, 1 - g.clamp(max=1)) - total / 72) > 1e-4


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_a_score_depends_on_the_reach_before_it_alone(kernel):
    model = net(kernel)
    reach = model.reach()
    assert reach == 1 + (kernel - 1) * (1 + 2 + 4 + 8 + 1 + 2)
    c, g, t = torch.randn(1, 5, 80, dtype=torch.float64), torch.tensor([1]), 20
    q = torch.randint(256, (1, 80))
    other = q.clone()
    other[0, t] = (q[0, t] + 7) % 256
    a, b = model(q, c, g)[0], model(other, c, g)[0]
    assert torch.equal(a[:, : t + 1], b[:, : t + 1])  # to the bit
    changed = (a != b).any(0).nonzero()[:, 0]
    assert changed.min() == t + 1 and changed.max() == t + reach
    far = c.clone()
    far[..., t] += 1
    felt = (model(q, far, g)[0] != a).any(0).nonzero()[:, 0]
    assert felt.min() == t and felt.max() == t + reach - kernel  # of the sample told


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kernel", [2, 3])
def test_300_samples_from_queues_are_those_drawn_anew(kernel, temperature, dtype):
    model, drawn = net(kernel, voices=4).to(dtype), []
    m, g = torch.randn(2, 5, 25, dtype=dtype), torch.tensor([3, 1])
    for sampler in (mod.sample, mod.sample_naively):
        torch.manual_seed(0)
        drawn.append(sampler(model, m, g, temperature))
    assert drawn[0].shape == (2, 300) and torch.equal(*drawn)
    assert len(drawn[0].unique()) > 9 and not torch.equal(drawn[0][0], drawn[0][1])
    torch.manual_seed(0)
    assert not torch.equal(mod.sample(model, m, g.flip(0), temperature), drawn[1])
    torch.manual_seed(0)
    assert not torch.equal(mod.sample(model, m.flip(0), g, temperature), drawn[1])


@pytest.mark.parametrize("kernel", [1, 4])
def test_other_kernels_and_more_samples_than_are_prepared_at_once(kernel):
    model, m = net(kernel, 4, 3), torch.randn(1, 5, 90, dtype=torch.float64)
    g = torch.tensor([0])
    codes = mod.sample(model, m, g, 0.0)
    told = model(codes, model.stretch(m), g).argmax(1)
    assert codes.shape == (1, 1080) and torch.equal(codes, told)


def test_a_wrong_queue_is_heard(monkeypatch):
    model, m, g = net(3), torch.randn(1, 5, 20, dtype=torch.float64), torch.tensor([0])
    wanted = mod.sample_naively(model, m, g, 0.0)
    assert torch.equal(mod.sample(model, m, g, 0.0), wanted)
    true = mod.Queue.__init__

    def unturned(self, *args):
        true(self, *args)
        self.turned = self.turned[:1] * self.k

    monkeypatch.setattr(mod.Queue, "__init__", unturned)
    assert not torch.equal(mod.sample(model, m, g, 0.0), wanted)


def test_temperature():
    torch.manual_seed(0)
    scores = torch.tensor([[0.0, 1.0, 3.0]]).repeat(20_000, 1)
    assert mod.draw_code(scores, 0.0).eq(2).all()
    for t in (0.5, 1.0, 2.0):
        p = mod.draw_code(scores, t).bincount(minlength=3) / 20_000
        assert (p - (scores[0] / t).softmax(0)).abs().max() < 0.02


@pytest.mark.parametrize("rates", [[8, 8], [16, 16], [5, 4], [3, 2], [2]], ids=str)
def test_upsampling(rates):
    stretch = mod.SpectrogramUpsampler(rates)
    m = torch.rand(1, 4, 7, requires_grad=True)  # positive, where it is linear
    c = stretch(m)
    assert c.shape == (1, 4, 7 * math.prod(rates))
    at = math.prod(rates) * 3 + math.prod(rates) // 2
    frames = torch.autograd.grad(c[0, 2, at], m)[0][0].nonzero()
    assert {*frames[:, 0].tolist()} == {2} and 3 in frames[:, 1] and frames[:, 1].max() < 6
    with torch.no_grad():
        for conv in stretch.children():
            conv.bias.zero_()
    assert (stretch(torch.full((1, 4, 7), 3.0))[0, :, at] - 3).abs().max() < 1e-5


def test_size_of_the_named_configuration():
    args = arguments("--config", "paper", "--dataset", "fsdd")
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args)[0]
    block = 128 * 256 * 2 + 256 + 128 * 256 + 80 * 256 + 128 * 256 + 256
    ends = 256 * 128 + 8 * 128 + 128 * 129 + 256 * 129 + 2 * (3 * 32 + 1)
    assert sum(p.numel() for p in model.parameters()) == 30 * block + ends
    assert model.reach() == 1 + 3 * 1023


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_on_voices_and_predict(folder):
    rng = np.random.default_rng(0)
    for at in range(4):
        Path("in", "ab"[at % 2]).mkdir(parents=True, exist_ok=True)
        x = rng.normal(size=3000 + at).astype("float32") / 9
        wavfile.write(f"in/{'ab'[at % 2]}/{at}.wav", 8000, x)
    flags = [*tiny(SCRIPT, out="out", dim=8)]
    data = ["--dataset", "folder", "--data_root", "in"]
    assert call(SCRIPT, *flags, *data)[0] == 0
    wanted = {"example_ref.wav", "example_gen.wav", "example.png", "last.pt"}
    assert {p.name for p in Path("out").iterdir()} >= wanted
    for name, n in (("long", 901), ("one", 1)):
        wavfile.write(f"{name}.wav", 16000, rng.normal(size=2 * n).astype("float32") / 9)
        code, out, err = call(SCRIPT, *flags, "--predict", f"{name}.wav", "--voice", "1")
        assert code == 0 and "16000 Hz" in err and "mel_l1" in out and "nan" not in out
        rate, y = wavfile.read(f"out/{name}_gen.wav")
        assert rate == 8000 and len(y) == n and y.dtype == "int16"
    wavfile.write("one.wav", 8000, np.zeros(1, "int16"))
    mistake(SCRIPT, *flags, "--kernel", "3", "--predict", "one.wav", about="set the flags")
    x = mod.load_data(arguments(*flags, *data))[0]
    assert {*x[1].tolist()} == {0.0, 1.0} and x[0, x[1] == 1].abs().max() <= 0.95 + 1e-6


def test_voices_of_the_data(folder):
    for name in "abc":
        Path(name).mkdir()
        wavfile.write(f"{name}/x.wav", 8000, np.ones(3000, "float32") / 9)
    data = ["--dataset", "folder", "--data_root", ".", "--device", "cpu"]
    mistake(SCRIPT, *data, "--n_voices", "2", about="--n_voices 2: there are 3")
    mistake(SCRIPT, "--n_voices", "2", "--device", "cpu", about="--n_voices 2: there are 3")
    parts = mod.load_data(arguments(*data[:-2], "--segment", "256"))
    assert [sorted({*part[1].tolist()}) for part in parts] == [[1.0, 2.0], [0.0]]


def test_mistakes(folder):
    mistake(SCRIPT, "--segment", "1000", about="--segment 1000")
    mistake(SCRIPT, "--rates", "3", "5", "--segment", "1500", about="--rates")
    mistake(SCRIPT, "--voice", "8", about="--voice 8")
    mistake(SCRIPT, "--fmax", "4001", about="--fmax")
    mistake(SCRIPT, "--config", "paper", about="--dataset made_up")


@pytest.mark.skipif("ONEFILE_DATA" not in os.environ, reason="ONEFILE_DATA names no folder")
def test_fsdd():
    args = arguments("--dataset", "fsdd", "--data_root", os.environ["ONEFILE_DATA"])
    x, test = mod.load_data(args)
    assert 8 < x.shape[1] / test.shape[1] < 10
    assert {*x[1].tolist()} == {*test[1].tolist()} == {*range(6)}
