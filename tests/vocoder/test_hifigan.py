"""hifigan.py by hand: losses, folding and pooling in float64, a step of both players, sizes of the
official networks, how far a sample sees. What it copies from melgan.py is tested there."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake, tiny
from scipy.io import wavfile

mod = load("vocoder/hifigan.py")
SCRIPT = ROOT / "vocoder/hifigan.py"


def arguments(*argv):
    return mod.parse_args(["--device", "cpu", "--dataset", "fsdd", *argv])


def layers(seed, judges=3, depth=4):
    torch.manual_seed(seed)
    return [[*torch.randn(depth, 2, 3, 5, dtype=torch.float64)] for _ in range(judges)]


def losses_by_hand(real, fake):
    d = g = gap = 0
    for r, f in zip(real, fake, strict=True):
        r, f = [a.numpy() for a in r], [a.numpy() for a in f]
        d += np.mean((r[-1] - 1) ** 2) + np.mean(f[-1] ** 2)
        g += np.mean((f[-1] - 1) ** 2)
        gap += sum(np.mean(np.abs(a - b)) for a, b in zip(r, f, strict=True))
    return d, g, gap


def losses(real, fake):
    return (
        mod.discriminator_loss(real, fake).item(),
        mod.generator_loss(fake).item(),
        mod.feature_loss(real, fake).item(),
    )


def test_losses_by_hand():
    real, fake = layers(0), layers(1)
    assert np.allclose(losses(real, fake), losses_by_hand(real, fake), rtol=0, atol=1e-12)
    no_scores = [r[:-1] for r in real], [f[:-1] for f in fake]
    assert mod.feature_loss(real, fake) - mod.feature_loss(*no_scores) > 0.1
    assert abs(losses(fake, real)[0] - losses(real, fake)[0]) > 0.1


@pytest.mark.parametrize("period", [2, 3, 5, 7, 11])
def test_folding_by_hand(period):
    """The official layout, (B, 1, S/P, P) under kernels of one column, with the same weights."""
    torch.manual_seed(0)
    judge = mod.PeriodDiscriminator(4, period).double()
    x = torch.randn(2, 1, 1024, dtype=torch.float64)
    found = judge(x)
    h = F.pad(x, (0, -1024 % period), "reflect").reshape(2, 1, -1, period)
    for n, conv in enumerate([*judge.convs, judge.conv_post]):
        stride, pad = (conv.stride[0], 1), (conv.padding[0], 0)
        h = F.conv2d(h, conv.weight[..., None], conv.bias, stride, pad)
        h = F.leaky_relu(h, 0.1) if n < 5 else h
        ours = found[n].unflatten(0, (2, period)).movedim(1, 3)
        assert ours.shape == h.shape and (ours - h).abs().max() < 1e-12
    assert [conv.stride[0] for conv in judge.convs] == [3, 3, 3, 3, 1]


def test_pooling_by_hand():
    torch.manual_seed(0)
    judges, x = mod.Discriminator(4).double(), torch.randn(1, 1, 1000, dtype=torch.float64)
    found = judges.eval()(x)
    assert len(found) == 8
    for judge, layer in zip([*judges][5:], found[5:], strict=True):
        assert torch.equal(layer[0], F.leaky_relu(judge.convs[0](x), 0.1))
        x = F.pad(x, (2, 2)).unfold(2, 4, 2).mean(-1)


def test_norms_of_the_judges():
    judges, x = mod.Discriminator(4), torch.randn(1, 1, 1024)
    for _ in range(30):
        judges(x)
    sizes = [[torch.linalg.matrix_norm(c.weight.flatten(1), 2) for c in j.convs] for j in judges]
    assert all(abs(size - 1) < 0.05 for size in sizes[5])
    assert not all(abs(size - 1) < 0.05 for size in sizes[6])


def test_a_step_moves_each_player_by_its_own_loss():
    torch.manual_seed(0)
    args = arguments("--smoke")
    (generator, mel), judges = mod.build(args), mod.Discriminator(4)
    for judge in judges:  # one that changes with every call cannot be compared
        judge.conv_post.eval(), [conv.eval() for conv in judge.convs]
    real, amp = torch.randn(2, 1024) / 9, torch.autocast("cpu", enabled=False)
    frozen = [torch.optim.SGD(player.parameters(), lr=0.0) for player in (generator, judges)]
    eyes, heard = (mel(real), real[:, None]), mod.Mel(8000, 64, 40, 4000.0)
    logged = mod.gan_step(generator, judges, *frozen, *eyes, heard, (2.0, 45.0), amp)
    ours = [p.grad.clone() for p in generator.parameters()]
    theirs = [p.grad.clone() for p in judges.parameters()]
    fake = generator(mel(real))
    seen, fakes = judges(real[:, None]), judges(fake)
    mels = (heard(fake[:, 0]) - heard(real)).abs().mean()
    parts = mod.generator_loss(fakes), mod.feature_loss(seen, fakes), mels
    loss = parts[0] + 2 * parts[1] + 45 * parts[2]
    wanted = torch.autograd.grad(loss, [*generator.parameters()], retain_graph=True)
    for a, b in zip(ours, wanted, strict=True):
        assert (a - b).abs().max() < 1e-4 * max(1, b.abs().max())
    loss = mod.discriminator_loss(seen, judges(fake.detach()))
    wanted = torch.autograd.grad(loss, [*judges.parameters()])
    assert max((a - b).abs().max() for a, b in zip(theirs, wanted, strict=True)) < 1e-5
    assert (logged - torch.stack([loss, *parts])).abs().max() < 1e-5
    assert all(p.requires_grad for p in judges.parameters())


def net(rates, resblock):
    torch.manual_seed(0)
    return mod.Generator(6, 16, rates, resblock, False).double().eval()


NETS = [(rates, n) for n in (1, 2) for rates in ([8, 8], [8, 8, 2, 2], [5, 4, 2], [2])]


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
    for chunk in (1, 7, 59, 60, 61):
        y = mod.vocode(generator, m, chunk)
        assert y.shape == whole.shape and (y - whole).abs().max() < 1e-12
    reach = generator.reach()
    monkeypatch.setattr(generator, "reach", lambda: reach // 2)
    assert (mod.vocode(generator, m, 10) - whole).abs().max() > 1e-8


SIZES = {"v1": (13_936_130, 13_926_017), "v2": (928_514, 925_985), "v3": (1_464_322, 1_462_273)}


@pytest.mark.parametrize("config", SIZES)
def test_sizes_of_the_official_networks(config):
    args = arguments("--config", config)
    args.device = "meta"
    with torch.device("meta"):
        generator, judges = mod.build(args)[0], [*mod.Discriminator(args.d_dim)]
    counts = [sum(p.numel() for p in generator.parameters())]
    for module in generator.modules():
        if hasattr(module, "parametrizations"):
            torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
    counts += [sum(p.numel() for p in generator.parameters())]
    assert (*counts,) == SIZES[config]
    counts = [
        sum(p.numel() for j in part for p in j.parameters()) for part in (judges[:5], judges[5:])
    ]
    assert counts == [41_105_770, 29_618_821]


def test_train_and_predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*tiny(SCRIPT, out="out", dim=16)]
    assert call(SCRIPT, *flags)[0] == 0
    wavfile.write("a.wav", 16000, np.random.default_rng(0).normal(size=9001).astype("float32") / 9)
    code, out, err = call(SCRIPT, *flags, "--predict", "a.wav", "--chunk_frames", "9")
    assert code == 0 and "mel_l1" in out and "16000 Hz" in err
    assert len(wavfile.read("out/a_gen.wav")[1]) == 4501 and Path("out/a.png").exists()
    wavfile.write("b.wav", 8000, np.zeros(3000, "int16"))
    mistake(SCRIPT, *flags, "--resblock", "1", "--predict", "b.wav", about="set the flags")
    mistake(SCRIPT, *flags, "--resblock", "3", about="--resblock")
