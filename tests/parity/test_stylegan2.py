"""stylegan2.py against the official networks and losses: the same state dicts, strictly, both ways;
pictures, scores, penalties and all their gradients in float64."""

import contextlib
import importlib
import types

import pytest
import torch
from house import load
from oracles import nvidia_path, official_stylegan2

gan = load("gan/stylegan2.py")
official = official_stylegan2()
with nvidia_path():
    losses = importlib.import_module("training.loss")
    resample = importlib.import_module("torch_utils.ops.upfirdn2d")
# The package's loss is newer than its conv2d_gradfix; on a CPU this context does nothing.
losses.conv2d_gradfix = types.SimpleNamespace(
    no_weight_gradients=lambda *_: contextlib.nullcontext()
)
Z, W = 10, 9


class Wide(types.ModuleType):
    """torch, where float32 is float64: the official networks cast their inputs to float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def float64(monkeypatch):
    monkeypatch.setattr(official, "torch", Wide("torch"))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def widths_of(size):
    return [min(12, 128 // side) for side in (4, 8, 16, 32, 64) if side <= size]


def players(size, channels, n_mapping=3, seed=0):
    """Ours and the official ones, (G, D) each, with the same weights, none as at first."""
    torch.manual_seed(seed)
    widths = {"channel_base": 128, "channel_max": 12}
    more = {"mapping_kwargs": {"num_layers": n_mapping}, "synthesis_kwargs": widths}
    theirs = (
        official.Generator(Z, 0, W, size, channels, **more),
        official.Discriminator(0, size, channels, **widths),
    )
    for model in theirs:
        for part in [*model.parameters(), *model.buffers()]:
            if part.shape != (4, 4) or part.sum() != 1:  # not the filter
                part.data += 0.3 * torch.randn_like(part)
        model.to(torch.get_default_dtype())
        for module in model.modules():
            if hasattr(module, "resample_filter"):  # which the official code insists on
                module.resample_filter = module.resample_filter.to(torch.float32)
    ours = (
        gan.Generator(Z, W, n_mapping, channels, widths_of(size)),
        gan.Discriminator(channels, widths_of(size)),
    )
    for mine, other in zip(ours, theirs, strict=True):
        mine.to(torch.get_default_dtype()).load_state_dict(other.state_dict(), strict=True)
    return ours, theirs


def gap(a, b):
    """Largest difference of two tensors, in parts of the larger of 1 and what is there."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def slopes(out, models, z):
    """Gradients of a fixed mixture of out, by name, and the one at z."""
    mixture = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    names = [
        (f"{at} {key}", part) for at, m in enumerate(models) for key, part in m.named_parameters()
    ]
    grads = torch.autograd.grad((out * mixture).sum(), [z, *(part for _, part in names)])
    return dict(zip(["z", *(name for name, _ in names)], grads, strict=True))


def compare(size, channels, wrong=1.0):
    """Gaps of pictures, scores and the worst gradient; wrong: factor on one of our weights."""
    (g, d), (g2, d2) = players(size, channels)
    with torch.no_grad():
        g.synthesis[f"b{size}"].conv0.affine.weight.mul_(wrong)
    z = torch.randn(4, Z, requires_grad=True)
    image = g.draw(g.spread(g.style(z), 0.7), fixed=True)
    image2 = g2(z, None, truncation_psi=0.7, noise_mode="const")
    score, score2 = d(image), d2(image2, None)[:, 0]
    ours, theirs = slopes(score, (g, d), z), slopes(score2, (g2, d2), z)
    assert ours.keys() == theirs.keys() and image2.std() > 0.3 and score2.std() > 0.01
    worst = max(((ours[k] - theirs[k]).abs().max() / theirs[k].abs().max()).item() for k in ours)
    return gap(image, image2), gap(score, score2), worst


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_pictures_scores_and_gradients(size, channels, float64):
    assert max(compare(size, channels)) < 1e-9


def test_in_float32():
    assert max(compare(32, 3)) < 1e-5


def test_one_weight_wrong_is_seen(float64):
    assert min(compare(32, 3, wrong=1.001)) > 1e-6


@pytest.mark.parametrize("size", [16, 64])
def test_state_dicts_fit_both_ways(size):
    ours, theirs = players(size, 3)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.state_dict().keys() == other.state_dict().keys()
        assert {k for k, _ in mine.named_parameters()} == {k for k, _ in other.named_parameters()}
        other.load_state_dict(mine.state_dict(), strict=True)


def test_the_noise_of_each_layer_is_drawn_alike():
    (g, _), (g2, _) = players(32, 1)
    z = torch.randn(4, Z)
    torch.manual_seed(5)
    a = g(z)
    torch.manual_seed(5)
    b = g2(z, None, noise_mode="random")
    assert gap(a, b) < 1e-5 and gap(a, g(z)) > 1e-2


def test_at_first_weights_are_as_large_as_the_official():
    torch.manual_seed(0)
    theirs = official.Generator(512, 0, 512, 16, 3, mapping_kwargs={"num_layers": 2})
    ours = gan.Generator(512, 512, 2, 3, [512] * 3)
    for (key, a), b in zip(ours.named_parameters(), theirs.state_dict().items(), strict=False):
        b = theirs.state_dict()[key]
        assert abs(a.mean() - b.mean()) < 0.15 * max(1, b.std() if b.numel() > 1 else 1), key
        if b.numel() > 1000:
            assert a.std().item() == pytest.approx(b.std().item(), rel=0.1), key


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
def test_scores_of_any_batch(batch, float64):
    (_, d), (_, d2) = players(16, 1)
    d2.b4.mbstd.group_size = 4 if batch % 4 == 0 else batch  # ours takes all where 4 do not fit
    x = torch.randn(batch, 1, 16, 16)
    assert gap(d(x), d2(x, None)[:, 0]) < 1e-9


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("up", [1, 2])
def test_modulated_convolution(up, fused, float64):
    torch.manual_seed(0)
    x, w, s = torch.randn(3, 5, 8, 8), torch.randn(4, 5, 3, 3), torch.randn(3, 5)
    taps = resample.setup_filter([1, 3, 3, 1])
    more = {"up": up, "padding": 1, "resample_filter": taps, "flip_weight": up == 1}
    theirs = official.modulated_conv2d(x, w, s, fused_modconv=fused, **more)
    ours = gan.modulated_conv(x, w, s, taps.double() if up == 2 else None)
    assert gap(ours, theirs) < 1e-9


def test_resampling_of_pictures(float64):
    torch.manual_seed(0)
    x, taps = torch.randn(2, 3, 8, 12), torch.randn(4, 4)
    one = taps.to(torch.float32)
    theirs = resample.upsample2d(x, one), resample.downsample2d(x, one)
    ours = gan.upfirdn2d(x, one.double() * 4, up=2, padding=1)
    assert gap(ours, theirs[0]) < 1e-9
    assert gap(gan.upfirdn2d(x, one.double(), down=2, padding=1), theirs[1]) < 1e-9


def official_gradients(phase, g2, d2, real, z, gain, steps=1):
    loss = losses.StyleGAN2Loss("cpu", g2, d2, r1_gamma=7.0, pl_weight=2.0)
    loss.pl_mean = loss.pl_mean.to(z)
    for model in (g2, d2):
        model.zero_grad()
    for _ in range(steps):
        nothing = torch.zeros(len(z), 0)
        loss.accumulate_gradients(phase, real, nothing, z, nothing, gain, 0)
    return loss


def same_gradients(mine, other):
    theirs = dict(other.named_parameters())
    gaps = [
        (part.grad - theirs[key].grad).abs().max() / theirs[key].grad.abs().max().clamp(min=1e-9)
        for key, part in mine.named_parameters()
        if theirs[key].grad is not None and theirs[key].grad.any()
    ]
    assert len(gaps) > len(theirs) / 2
    return max(gaps).item()


def test_losses_of_both_players(float64):
    (g, d), (g2, d2) = players(16, 1)
    real, z = torch.randn(4, 1, 16, 16), torch.randn(4, Z)
    torch.manual_seed(3)
    official_gradients("Dmain", g2, d2, real, z, 1)
    torch.manual_seed(3)
    gan.d_loss(d(real), d(g(z).detach())).backward()
    assert same_gradients(d, d2) < 1e-9
    torch.manual_seed(3)
    official_gradients("Gmain", g2, d2, real, z, 1)
    torch.manual_seed(3)
    gan.g_loss(d(g(z))).backward()
    assert same_gradients(g, g2) < 1e-9


@pytest.mark.parametrize("weight", [7.0, 7.1])
def test_lazy_r1(weight, float64):
    (_, d), (g2, d2) = players(16, 1)
    real, z = torch.randn(4, 1, 16, 16), torch.randn(4, Z)
    official_gradients("Dreg", g2, d2, real, z, 16)
    penalty = weight * gan.r1_penalty(d(real.requires_grad_()), real)
    gan.lazy_step(torch.optim.SGD(d.parameters(), 0.0), penalty, 16)
    assert (same_gradients(d, d2) < 1e-9) == (weight == 7)


@pytest.mark.parametrize("weight", [2.0, 2.1])
def test_lazy_path_penalty_and_its_mean(weight, float64):
    (g, _), (g2, d2) = players(16, 1)
    z, mean = torch.randn(8, Z), torch.zeros([])
    torch.manual_seed(3)
    loss = official_gradients("Greg", g2, d2, None, z, 4, steps=2)
    torch.manual_seed(3)
    for _ in range(2):  # the second time, the mean is not 0
        ws = g.spread(g.style(z[:4]))
        (4 * weight * gan.path_penalty(g.draw(ws), ws, mean)).backward()
    assert gap(mean, loss.pl_mean) < 1e-9 and mean > 0
    assert (same_gradients(g, g2) < 1e-9) == (weight == 2)


@pytest.mark.parametrize("config, base", [("ffhq", 32768), ("paper256", 16384)])
def test_networks_of_the_paper(config, base, monkeypatch):
    args = gan.parse_args(["--config", config])
    args.device = "meta"
    more = {"channel_base": base, "channel_max": 512}
    monkeypatch.setattr(resample, "setup_filter", lambda *_, **__: torch.zeros(4, 4))
    with torch.device("meta"):
        ours = gan.build(args)
        theirs = (
            official.Generator(512, 0, 512, args.img_size, 3, synthesis_kwargs=more),
            official.Discriminator(0, args.img_size, 3, **more),
        )
    for mine, other in zip(ours, theirs, strict=True):
        shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (mine, other)]
        assert shapes[0] == shapes[1]
    assert ours[0].num_ws == theirs[0].num_ws
    count = [sum(part.numel() for part in player.parameters()) for player in ours]
    assert count == ([30_370_060, 29_012_513] if config == "ffhq" else count)
