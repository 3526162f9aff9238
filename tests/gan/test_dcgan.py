"""dcgan.py: the paper's rules read off the networks, their first weights, batch norm's part."""

import inspect
import json
import math

import pytest
import torch
from house import ROOT, load, mistake
from torch import nn

gan, plain = load("gan/dcgan.py"), load("gan/gan.py")


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def small(size=16):
    torch.manual_seed(5)
    return gan.Generator(3, size, 1, 4), gan.Discriminator(size, 1, 4)


# --- the rules -----------------------------------------------------------------------------------
def kinds(model):
    return [type(layer).__name__ for layer in model.model]


def shapes(model, x):
    """Shape of what each layer puts out, and the kind of the layer."""
    rows = []
    for layer in model.model:
        x = layer(x)
        rows.append((type(layer).__name__, tuple(x.shape[1:])))
    return rows


def test_the_papers_networks():
    """Figure 1: 100 -> 4x4x1024 -> 8x8x512 -> 16x16x256 -> 32x32x128 -> 64x64x3."""
    generator, discriminator = gan.Generator(100, 64, 3, 128), gan.Discriminator(64, 3, 128)
    up = [row for row in shapes(generator, torch.rand(2, 100)) if row[0] == "ConvTranspose2d"]
    assert [shape for _, shape in up] == [(512, 8, 8), (256, 16, 16), (128, 32, 32), (3, 64, 64)]
    assert shapes(generator, torch.rand(2, 100))[1] == ("Unflatten", (1024, 4, 4))
    down = [row for row in shapes(discriminator, torch.rand(2, 3, 64, 64)) if row[0] == "Conv2d"]
    assert [s for _, s in down] == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)]


def check_rules(generator, discriminator, levels):
    block = ["BatchNorm2d", "ReLU", "ConvTranspose2d"]
    assert kinds(generator) == ["Linear", "Unflatten", *block * levels, "Tanh"]
    block = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    tail = ["Flatten", "Linear"]
    assert kinds(discriminator) == ["Conv2d", "LeakyReLU", *block * (levels - 1), *tail]
    for layer in [*generator.model, *discriminator.model]:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        assert getattr(layer, "negative_slope", 0.2) == 0.2
        assert getattr(layer, "eps", 1e-5) == 1e-5 and getattr(layer, "momentum", 0.1) == 0.1


@pytest.mark.parametrize("size, levels", [(8, 1), (16, 2), (32, 3), (64, 4), (128, 5)])
def test_rules_hold_at_every_size(size, levels):
    generator, discriminator = gan.Generator(5, size, 3, 2), gan.Discriminator(size, 3, 2)
    check_rules(generator, discriminator, levels)
    images = generator(torch.rand(2, 5))
    assert images.shape == (2, 3, size, size) and images.abs().max() <= 1
    assert discriminator(images).shape == (2,)


def test_broken_rules_are_noticed():
    for at, layer in ((1, nn.BatchNorm2d(4)), (1, nn.LeakyReLU(0.1)), (0, nn.Conv2d(1, 4, 3, 2))):
        generator, discriminator = small()
        discriminator.model.insert(at, layer)
        if at == 0 or isinstance(layer, nn.LeakyReLU):
            discriminator.model.pop(at + 1)
        with pytest.raises(AssertionError):
            check_rules(generator, discriminator, 2)


@pytest.mark.parametrize(
    "z, s, c, d, levels", [(100, 64, 3, 128, 4), (100, 32, 1, 32, 3), (5, 8, 3, 4, 1)]
)
def test_sizes(z, s, c, d, levels):
    maps = [d * 2**i for i in range(levels)]  # d, 2d, 4d, ...
    steps = list(zip([c, *maps], maps, strict=False))
    top = 16 * maps[-1]
    count = [sum(p.numel() for p in m.parameters()) for m in (gan.Generator(z, s, c, d),)]
    assert count == [(z + 1) * top + sum(16 * n * m + n for n, m in steps) + 2 * sum(maps)]
    count = sum(p.numel() for p in gan.Discriminator(s, c, d).parameters())
    assert count == sum(16 * n * m + m for n, m in steps) + 2 * sum(maps[1:]) + top + 1


def test_a_transposed_convolution_is_what_a_convolution_does_to_gradients():
    """G's layers are the transposes of D's: <conv(x), h> = <x, conv_transpose(h)>."""
    up = next(m for m in small()[0].double().model if isinstance(m, nn.ConvTranspose2d))
    x, h = torch.randn(1, 4, 8, 8).double(), torch.randn(1, 8, 4, 4).double()
    down = nn.functional.conv2d(x, up.weight, stride=2, padding=1)
    raised = up(h) - up.bias[:, None, None]
    assert abs((down * h).sum() - (x * raised).sum()) < 1e-9


# --- the first weights ---------------------------------------------------------------------------
def check_weights():
    torch.manual_seed(0)
    for model in (gan.Generator(100, 64, 3, 64), gan.Discriminator(64, 3, 64)):
        for layer in model.model:
            if isinstance(layer, nn.BatchNorm2d):
                assert abs(layer.weight.mean() - 1) < 0.02 and (layer.bias == 0).all()
                assert abs(layer.weight.std() / 0.02 - 1) < 0.3
            elif hasattr(layer, "weight"):
                n = layer.weight.numel()
                assert abs(layer.weight.std() / 0.02 - 1) < max(0.01, 4 / math.sqrt(2 * n))
                assert abs(layer.weight.mean()) < 4 * 0.02 / math.sqrt(n)
                assert (layer.bias == 0).all()


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("0.0, 0.02", "0.0, 0.03"),
        ("(nn.Linear, nn.Conv2d, nn.ConvTranspose2d)", "(nn.Linear, nn.Conv2d)"),
        ("(nn.Linear, nn.Conv2d, nn.ConvTranspose2d)", "(nn.Conv2d, nn.ConvTranspose2d)"),
        ("1.0, 0.02", "0.0, 0.02"),
        ("zeros_(layer.bias)", "ones_(layer.bias)"),
    ],
)
def test_first_weights(monkeypatch, right, wrong):
    check_weights()
    source = inspect.getsource(gan.init_weights)
    assert right in source
    space = dict(vars(gan))
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(gan, "init_weights", space["init_weights"])
    with pytest.raises(AssertionError):
        check_weights()


# --- the steps -----------------------------------------------------------------------------------
def test_only_networks_and_noise_differ_from_gan():
    for name in ("d_loss", "g_loss", "g_step", "update_ema", "train", "build", "generate", "smoke"):
        ours, theirs = (inspect.getsource(getattr(module, name)) for module in (gan, plain))
        assert ours == theirs, name


def test_real_and_fake_go_through_d_one_after_the_other():
    generator, discriminator = small()
    seen = []
    discriminator.register_forward_pre_hook(lambda net, x: seen.append(x[0]))
    sgd = torch.optim.SGD(discriminator.parameters(), 0.01)
    real, z = torch.rand(8, 1, 16, 16), torch.rand(8, 3)
    before = [w.detach().clone() for w in generator.parameters()]
    assert not gan.d_step(generator, discriminator, sgd, real, z).requires_grad
    assert torch.equal(seen[0], real) and seen[1].shape == real.shape and seen[1].grad_fn is None
    assert all(map(torch.equal, before, generator.parameters()))
    assert all(w.grad is None for w in generator.parameters())
    fakes = torch.full_like(real, -1.0)  # in one batch they would change the score of the real
    apart = discriminator(real)
    together = discriminator(torch.cat([real, fakes]))[:8]
    assert not torch.allclose(apart, together, rtol=0, atol=1e-3)


def step_of_d():
    """By how much one step lowers D's loss on the same images, and what it said the loss was."""
    generator, discriminator = small()
    real, z = torch.rand(32, 1, 16, 16), torch.rand(32, 3)
    fake = generator(z).detach()
    loss = [gan.d_loss(discriminator(real), discriminator(fake)).item()]
    sgd = torch.optim.SGD(discriminator.parameters(), 0.02)
    said = gan.d_step(generator, discriminator, sgd, real, z).item()
    loss.append(gan.d_loss(discriminator(real), discriminator(fake)).item())
    return loss[0] - loss[1], said - loss[0]


@pytest.mark.parametrize("kind", ["ns", "minimax"])
def test_signs(monkeypatch, kind):
    def gained():
        generator, discriminator = small()
        z = torch.rand(32, 3)
        before = discriminator(generator(z)).mean().item()
        sgd = torch.optim.SGD(generator.parameters(), 0.01)
        gan.g_step(generator, discriminator, sgd, z, kind)
        assert all(w.requires_grad and w.grad is None for w in discriminator.parameters())
        return discriminator(generator(z)).mean().item() - before

    gain, gap = step_of_d()
    assert gain > 1e-4 and abs(gap) < 1e-6
    assert gained() > 1e-7
    right = gan.g_loss
    monkeypatch.setattr(gan, "g_loss", lambda score, kind: -right(score, kind))
    assert gained() < -1e-7


# --- noise, pictures, the run --------------------------------------------------------------------
def test_noise_fills_the_cube_evenly():
    torch.manual_seed(0)
    z = gan.noise(args_of("--latent_dim", "50"), 2000)
    assert z.shape == (2000, 50) and -1 <= z.min() < -0.999 and 0.999 < z.max() <= 1
    assert abs(z.mean()) < 0.01 and abs(z.var() - 1 / 3) < 0.01


def test_interpolation_is_straight():
    a, b = gan.noise(args_of(), 3), gan.noise(args_of(), 3)
    walk = gan.interpolate(a, b, 5).view(3, 5, -1)
    for at in range(5):
        assert torch.allclose(walk[:, at], a + at / 4 * (b - a), atol=1e-6)


def test_sample_is_each_zs_own_and_restores_the_mode():
    generator, _ = small()
    z = torch.rand(130, 3)
    images = gan.sample(generator, z)
    assert generator.training and images.shape == (130, 1, 16, 16)
    assert torch.allclose(gan.sample(generator, z[100:101]), images[100:101], atol=1e-6)
    generator(z)  # moves the running averages, as training does
    assert not torch.allclose(gan.sample(generator, z), images, atol=1e-6)


def test_sizes_follow_the_data():
    sizes = {"digits": (16, 1), "mnist": (32, 1), "fashion_mnist": (32, 1), "cifar10": (32, 3)}
    for dataset, size in (sizes | {"folder": (64, 3)}).items():
        args = args_of("--dataset", dataset)
        assert (args.img_size, args.channels) == size
    args = args_of()
    assert (args.lr, args.b1, args.b2) == (2e-4, 0.5, 0.999)
    torch.manual_seed(0)
    (x, _), (real, _) = gan.load_data(args)
    assert x.shape == (1437, 1, 16, 16) and real.shape == (360, 1, 16, 16)
    for bad in ("28", "4", "48", "512"):
        mistake(ROOT / "gan/dcgan.py", "--img_size", bad, about=f"--img_size {bad}")


ARGV = ["--dim", "2", "--latent_dim", "5", "--batch_size", "8", "--lr", "1e-3", "--n_samples", "4"]
ARGV += ["--sample_interval", "2", "--device", "cpu"]


@pytest.mark.parametrize("flags", [[], ["--ema", "0.9", "--g_loss", "minimax"]], ids=str)
def test_resume_is_exact(tmp_path, capsys, flags):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    argv = [*ARGV, *flags]
    assert gan.main([*argv, "--n_steps", "4", "--out", str(whole)]) == 0
    assert gan.main([*argv, "--n_steps", "3", "--out", str(halves)]) == 0
    assert gan.main([*argv, "--n_steps", "4", "--out", str(halves), "--resume"]) == 0
    a, b = (torch.load(out / "last.pt", weights_only=True) for out in (whole, halves))
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    for name in ("samples_000004.png", "interpolation.png"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    row = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])
    assert {"d_loss", "g_loss", "swd", "classes", "confidence"} <= row.keys()
    assert gan.main([*argv, "--sample", "--out", str(whole)]) == 0


def met(metrics):
    return [low <= metrics[key] <= high for key, (low, high) in gan.BARS.items() if key in metrics]


def test_no_cheat_meets_all_bars():
    torch.manual_seed(0)
    data = gan.load_data(args_of())
    (x, y), (real, _) = data
    n, flat = len(real), x.flatten(1)
    assert all(met(gan.evaluate(x[:n], data)))  # real images do
    kinds = [flat[y == k] for k in range(10)]
    middle = torch.stack([kind[torch.cdist(kind, kind).sum(0).argmin()] for kind in kinds])
    cheats = {
        "one class": x[y == 3].repeat(3, 1, 1, 1),
        "half the classes": x[y < 5],
        "one image of each class": middle.repeat(n // 10, 1),
        "the mean": flat.mean(0).expand(n, 256),
        "blends": x[torch.randint(len(x), (2, n))].mean(0),
        "noise": torch.rand(n, 256) * 2 - 1,
    }
    for name, fakes in cheats.items():
        assert not all(met(gan.evaluate(fakes.reshape(-1, 1, 16, 16), data))), name
