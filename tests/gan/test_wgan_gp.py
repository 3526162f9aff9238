"""wgan_gp.py: the penalty against closed forms, both steps, and the script around them."""

import inspect
import json
import os
import socket
from pathlib import Path

import pytest
import torch
from house import load
from PIL import Image
from torch import nn

gan = load("gan/wgan_gp.py")
B, C, S = 6, 2, 4
MNIST = Path(os.environ.get("ONEFILE_DATA", "nowhere"))


def pair(dtype=torch.float64):
    torch.manual_seed(3)
    return torch.randn(2, B, C, S, S, dtype=dtype)


def penalty(critic, real, fake, seed=7):
    torch.manual_seed(seed)
    return gan.gradient_penalty(critic, real, fake)


def drawn(seed=7):
    torch.manual_seed(seed)
    return torch.rand(B, 1, 1, 1)


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


GENERATORS = {"mlp": gan.Generator, "dcgan": gan.ConvGenerator}
CRITICS = {"mlp": gan.Discriminator, "dcgan": gan.ConvDiscriminator}


def small(net="mlp"):
    torch.manual_seed(5)
    return GENERATORS[net](3, 8, 1, 4), CRITICS[net](8, 1, 4)


# --- the penalty ---------------------------------------------------------------------------------
def check_linear():
    """D(x) = w.x has the slope ||w|| everywhere."""
    real, fake = pair()
    for size in (0.0, 0.3, 1.0, 4.0):
        w = torch.randn(C, S, S, dtype=torch.float64)
        w *= size / w.norm()
        got = penalty(lambda x, w=w: (w * x).sum((1, 2, 3)), real, fake)
        assert abs(got.item() - (size - 1) ** 2) < 1e-5


def check_quadratic():
    """D(x) = ||x||^2 / 2 has the slope ||x||, so the penalty tells x_hat."""
    real, fake = pair()
    x_hat = drawn() * real + (1 - drawn()) * fake
    got = penalty(lambda x: x.square().sum((1, 2, 3)) / 2, real, fake)
    assert abs(got.item() - (x_hat.flatten(1).norm(dim=1) - 1).square().mean().item()) < 1e-9


def check_flat():
    """A critic without slope: the norm has a kink there, its gradient must not be NaN."""
    w = torch.zeros(C, S, S, dtype=torch.float64, requires_grad=True)
    penalty(lambda x: (w * x).sum((1, 2, 3)), *pair()).backward()
    assert (w.grad == 0).all()


def test_penalty_closed_forms():
    check_linear()
    check_quadratic()
    check_flat()


@pytest.mark.parametrize(
    "right, wrong, check",
    [
        ("slope.flatten(1).square().sum(1)", "slope.square().sum(1)", check_linear),
        ("slope.flatten(1).square().sum(1)", "slope.flatten(1).square().sum(0)", check_linear),
        ("slope.flatten(1).square().sum(1)", "slope.flatten(1).square().sum()", check_linear),
        ("(norm - 1)", "norm", check_linear),
        ("(norm - 1).square()", "(norm - 1).clamp(min=0).square()", check_linear),
        ("(1 - eps) * fake", "eps * fake", check_quadratic),
        ("len(real), 1, 1, 1", "1, 1, 1, 1", check_quadratic),
        ("eps * real + (1 - eps) * fake", "real.clone()", check_quadratic),
        (" + 1e-12", "", check_flat),
    ],
)
def test_broken_penalties_are_caught(monkeypatch, right, wrong, check):
    source = inspect.getsource(gan.gradient_penalty)
    assert right in source
    space = dict(vars(gan))
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(gan, "gradient_penalty", space["gradient_penalty"])
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_penalty_at_the_ends(monkeypatch, eps):
    real, fake = pair()
    critic = gan.Discriminator(S, C, 3).double()
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: torch.full(size, eps))
    end = real if eps else fake
    (slope,) = torch.autograd.grad(critic(end.requires_grad_()).sum(), end)
    want = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    assert torch.allclose(gan.gradient_penalty(critic, real, fake), want, rtol=0, atol=1e-9)


def test_x_hat_is_on_the_lines():
    real, fake = pair()
    seen = []
    penalty(lambda x: seen.append(x) or x.sum((1, 2, 3)), real, fake)
    share = (seen[0] - fake) / (real - fake)
    eps = share[:, :1, :1, :1]
    assert torch.allclose(share, eps.expand_as(share)) and len(eps.unique()) == B
    assert eps.min() >= 0 and eps.max() <= 1


@pytest.mark.parametrize("net", ["mlp", "dcgan", "smooth"])
def test_double_backward_gradcheck(net):
    torch.manual_seed(0)
    critic = CRITICS["mlp" if net == "smooth" else net](8, 1, 2).double()
    if net == "smooth":  # here the slope changes with x, too
        kinks = [i for i, layer in enumerate(critic.model) if isinstance(layer, gan.LeakyReLU)]
        for i in kinks:
            critic.model[i] = nn.Tanh()
    names, weights = zip(*critic.named_parameters(), strict=True)
    real, fake = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64)

    def loss(*values):
        state = dict(zip(names, values, strict=True))
        return penalty(lambda x: torch.func.functional_call(critic, state, x), real, fake)

    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)


def alone(monkeypatch, critic):
    """Largest change of an image's own penalty when the rest of the batch goes away."""
    real, fake = pair()
    eps = drawn()
    monkeypatch.setattr(torch, "rand", lambda n, *size, **kwargs: eps[:n])
    whole = gan.gradient_penalty(critic, real, fake).item()
    parts = []
    for i in range(B):
        monkeypatch.setattr(torch, "rand", lambda n, *size, i=i, **kwargs: eps[i : i + 1])
        parts.append(gan.gradient_penalty(critic, real[i : i + 1], fake[i : i + 1]).item())
    return abs(whole - sum(parts) / B)


@pytest.mark.parametrize("net", ["mlp", "dcgan"])
def test_penalty_is_each_images_own(monkeypatch, net):
    size = S if net == "mlp" else 8
    critic = CRITICS[net](size, C, 4).double()
    wide = nn.Upsample(scale_factor=size // S)
    assert alone(monkeypatch, lambda x: critic(wide(x))) < 1e-12


def test_batch_norm_would_mix_the_batch(monkeypatch):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(C, track_running_stats=False).double()
    critic = gan.Discriminator(S, C, 4).double()
    assert alone(monkeypatch, lambda x: critic(norm(x))) > 1e-4


def test_penalty_ignores_autocast():
    real, fake = pair(torch.float32)
    critic = gan.Discriminator(S, C, 4)
    want = penalty(critic, real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(penalty(critic, real, fake), want)
        assert critic(real).dtype == torch.bfloat16  # it was on


def test_leaky_relu_is_torchs():
    real, fake = pair(torch.float32)
    ours, theirs = gan.Discriminator(S, C, 4), gan.Discriminator(S, C, 4)
    theirs.load_state_dict(ours.state_dict())
    for i, layer in enumerate(theirs.model):
        if isinstance(layer, gan.LeakyReLU):
            theirs.model[i] = nn.LeakyReLU(0.2)
    for critic in (ours, theirs):
        (critic(real).square().mean() + penalty(critic, real, fake)).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-7) and a.grad.norm() > 0


# --- the losses and the steps --------------------------------------------------------------------
def test_losses():
    real, fake = torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 5.0])
    assert gan.d_loss(real, fake).item() == 1.0 - 1.5
    assert gan.g_loss(fake).item() == -1.0


def gap_after_critic_step():
    generator, critic = small()
    real, z = torch.rand(32, 1, 8, 8), torch.randn(32, 3)
    fake = generator(z).detach()
    before = (critic(real).mean() - critic(fake).mean()).item()
    sgd = torch.optim.SGD(critic.parameters(), 0.01)
    loss = gan.d_step(generator, critic, sgd, real, z, 0)[0]
    assert abs(loss.item() + before) < 1e-6
    return (critic(real).mean() - critic(fake).mean()).item() - before


def score_after_generator_step():
    generator, critic = small()
    z = torch.randn(32, 3)
    before = critic(generator(z)).mean().item()
    gan.g_step(generator, critic, torch.optim.SGD(generator.parameters(), 0.01), z)
    return critic(generator(z)).mean().item() - before


def test_signs(monkeypatch):
    assert gap_after_critic_step() > 1e-5
    assert score_after_generator_step() > 1e-5
    right = gan.g_loss
    monkeypatch.setattr(gan, "g_loss", lambda score: -right(score))
    assert score_after_generator_step() < 0  # so the test sees a wrong sign


def test_steps_touch_their_own_player_only():
    generator, critic = small()
    states = [{k: v.clone() for k, v in m.named_parameters()} for m in (generator, critic)]
    adam = [torch.optim.Adam(m.parameters(), 1e-2) for m in (generator, critic)]
    real, z = torch.rand(16, 1, 8, 8), torch.randn(16, 3)
    inputs = []
    critic.register_forward_pre_hook(lambda _, x: inputs.append(x[0].grad_fn))

    gan.d_step(generator, critic, adam[1], real, z, 10.0)
    assert inputs[0] is None  # no graph behind the fakes
    assert all(p.grad is None and p.equal(states[0][k]) for k, p in generator.named_parameters())
    moved = [not p.equal(states[1][k]) for k, p in critic.named_parameters()]
    assert sum(moved) >= len(moved) - 1  # the last bias cancels in (2)

    now = {k: v.clone() for k, v in critic.named_parameters()}
    adam[1].zero_grad()
    gan.g_step(generator, critic, adam[0], z)
    assert all(p.grad is None and p.equal(now[k]) for k, p in critic.named_parameters())
    assert all(p.requires_grad for p in critic.parameters())
    assert any(not p.equal(states[0][k]) for k, p in generator.named_parameters())


def test_critic_finds_the_wasserstein_distance():
    """Two clouds, one the other moved by W = 1.5. A critic of slope s along the way has the loss
    -s W + lambda (s - 1)^2, least at s = 1 + W / (2 lambda): the estimate should be s W."""
    torch.manual_seed(0)
    critic = gan.Discriminator(2, 1, 16)
    adam = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.0, 0.9))
    move = torch.tensor([0.9, -1.2, 0.0, 0.0]).view(1, 1, 2, 2)
    found = []
    for _ in range(400):
        real = 0.5 * torch.randn(256, 1, 2, 2) + move
        cloud = torch.randn(256, 4)
        loss, _ = gan.d_step(lambda z: 0.5 * z.view(-1, 1, 2, 2), critic, adam, real, cloud, 10.0)
        found.append(-loss.item())
    assert abs(sum(found[-100:]) / 100 - 1.5 * (1 + 1.5 / 20)) < 0.05


def test_order_and_fresh_noise(monkeypatch, tmp_path):
    calls = []

    def d_step(generator, critic, optimizer, real, z, lambda_gp):
        calls.append(("d", z, real))
        return torch.tensor([-2.0, 0.5])

    def g_step(generator, critic, optimizer, z):
        calls.append(("g", z, None))
        return torch.tensor(1.0)

    monkeypatch.setattr(gan, "d_step", d_step)
    monkeypatch.setattr(gan, "g_step", g_step)
    argv = ["--dim", "4", "--n_steps", "3", "--n_critic", "2", "--batch_size", "8"]
    gan.train(args_of(*argv, "--out", str(tmp_path)))
    assert "".join(call[0] for call in calls) == "ddg" * 3
    noises = [call[1] for call in calls]
    reals = [call[2] for call in calls if call[0] == "d"]
    for group in (noises, reals):
        assert len({tuple(t.flatten().tolist()) for t in group}) == len(group)
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert (row["wasserstein"], row["penalty"], row["g_loss"]) == (2.0, 0.5, 1.0)


# --- the networks --------------------------------------------------------------------------------
def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("z, s, c, d", [(100, 28, 1, 128), (7, 8, 3, 2)])
def test_mlp_sizes(z, s, c, d):
    linear = [(z, d), (d, 2 * d), (2 * d, 4 * d), (4 * d, 8 * d), (8 * d, c * s * s)]
    g = sum((n + 1) * m for n, m in linear) + 2 * (2 * d + 4 * d + 8 * d)
    assert count(gan.Generator(z, s, c, d)) == g
    linear = [(c * s * s, 4 * d), (4 * d, 2 * d), (2 * d, 1)]
    assert count(gan.Discriminator(s, c, d)) == sum((n + 1) * m for n, m in linear)
    if z == 100:
        assert g == 1_510_032


@pytest.mark.parametrize(
    "z, s, c, d, levels", [(128, 32, 1, 64, 3), (5, 8, 3, 4, 1), (5, 64, 3, 2, 4)]
)
def test_dcgan_sizes(z, s, c, d, levels):
    maps = [d * 2**i for i in range(levels)]  # d, 2d, 4d, ...
    steps = list(zip([c, *maps], maps, strict=False))
    top = 16 * maps[-1]
    g = (z + 1) * top + sum(16 * n * m + n for n, m in steps) + 2 * sum(maps)
    assert count(gan.ConvGenerator(z, s, c, d)) == g
    critic = sum(16 * n * m + m for n, m in steps) + top + 1
    assert count(gan.ConvDiscriminator(s, c, d)) == critic


@pytest.mark.parametrize(
    "net, s", [("mlp", 5), ("mlp", 8), ("dcgan", 8), ("dcgan", 16), ("dcgan", 32)]
)
def test_shapes_and_no_batch_norm_in_the_critic(net, s):
    generator, critic = GENERATORS[net](6, s, 3, 2), CRITICS[net](s, 3, 2)
    images = generator(5 * torch.randn(4, 6))
    assert images.shape == (4, 3, s, s) and images.abs().max() <= 1
    assert critic(images).shape == (4,)
    kinds = {type(layer).__name__ for layer in critic.modules()}
    assert not any("Norm" in kind for kind in kinds)
    kinds -= {"Discriminator", "ConvDiscriminator", "Sequential"}
    assert kinds <= {"Flatten", "Linear", "Conv2d", "LeakyReLU"}
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms and all(m.eps == 1e-5 for m in norms)


def test_sample_is_each_zs_own_and_restores_the_mode():
    generator, _ = small()
    z = torch.randn(230, 3)
    images = gan.sample(generator, z)
    assert generator.training and images.shape == (230, 1, 8, 8)
    assert torch.allclose(gan.sample(generator, z[200:201]), images[200:201], atol=1e-6)


def test_interpolation_keeps_the_ends_and_the_length():
    a, b = torch.eye(6)[:2], torch.eye(6)[2:4]
    walk = gan.interpolate(a, b, 5).view(2, 5, 6)
    assert torch.allclose(walk[:, 0], a) and torch.allclose(walk[:, -1], b, atol=1e-6)
    assert torch.allclose(walk.norm(dim=2), torch.ones(2, 5))


# --- data and metrics ----------------------------------------------------------------------------
def met(metrics):
    return [low <= metrics[key] <= high for key, (low, high) in gan.BARS.items() if key in metrics]


def test_no_cheat_meets_all_bars():
    torch.manual_seed(0)
    data = gan.load_data(args_of())
    (x, y), (real, _) = data
    assert x.shape == (1438 - 1, 1, 8, 8) and real.shape == (360, 1, 8, 8)
    assert x.min() == -1 and x.max() == 1
    n, flat = len(real), x.flatten(1)
    assert all(met(gan.evaluate(x[torch.randperm(len(x))[:n]], data)))  # real images do
    mean = flat.mean(0)
    _, spread, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    gauss = mean + torch.randn(n, 64) * spread / len(x) ** 0.5 @ axes
    two = x[torch.randint(len(x), (2, n))]
    cheats = {
        "each pixel alone": torch.stack([p[torch.randint(len(x), (n,))] for p in flat.T], 1),
        "mean and covariance": gauss.clamp(-1, 1),
        "one class": x[y == 3].repeat(3, 1, 1, 1),
        "half the classes": x[y < 5],
        "the mean": mean.expand(n, 64),
        "blends": two.mean(0),
        "noise": torch.rand(n, 64) * 2 - 1,
    }
    for name, fakes in cheats.items():
        assert not all(met(gan.evaluate(fakes.reshape(-1, 1, 8, 8), data))), name


@pytest.mark.skipif(not (MNIST / "MNIST/raw").is_dir(), reason="ONEFILE_DATA has no MNIST")
def test_mnist_is_padded():
    argv = ["--dataset", "mnist", "--data_root", str(MNIST)]
    (a, y), (b, _) = gan.load_data(args_of(*argv))
    assert a.shape == (60_000, 1, 28, 28) and b.shape == (10_000, 1, 28, 28)
    assert y[:5].tolist() == [5, 0, 4, 1, 9]
    (c, _), _ = gan.load_data(args_of(*argv, "--img_size", "32"))
    assert torch.equal(c[:, :, 2:-2, 2:-2], a) and (c[:, :, :2] == -1).all()


def test_folder_of_images(tmp_path, capsys):
    for i in range(24):
        path = tmp_path / ("red" if i % 2 else "grey") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        colour = (255, 0, 0) if i % 2 else (102, 102, 102)
        Image.new("RGB", (12 + i, 20), colour).save(path)
    argv = ["--dataset", "folder", "--data_root", str(tmp_path), "--img_size", "8"]
    (x, y), held_out = gan.load_data(args_of(*argv))
    assert x.shape == (19, 3, 8, 8) and held_out[0].shape == (5, 3, 8, 8)
    red = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 8, 8)
    for image, label in zip(x, y, strict=True):
        assert torch.allclose(image, red if label else torch.full((3, 8, 8), -0.2), atol=1e-6)
    (x, y), _ = gan.load_data(args_of(*argv, "--channels", "1"))
    assert x.shape == (19, 1, 8, 8) and torch.allclose(x[y == 1], torch.tensor(-1 / 3), atol=1e-6)

    (tmp_path / "broken.png").write_bytes(b"no image")
    for bad in (argv, ["--dataset", "folder", "--data_root", str(tmp_path / "none")]):
        with pytest.raises(SystemExit) as stop:
            gan.load_data(args_of(*bad))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        assert error.startswith("wgan_gp.py: error: --data_root")


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_data(monkeypatch, tmp_path, capsys, dataset):
    def blocked(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", blocked)
    with pytest.raises(SystemExit) as stop:
        gan.main(["--dataset", dataset, "--data_root", str(tmp_path), "--out", str(tmp_path / "o")])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and str(tmp_path) in error and "--dataset digits" in error


def test_sizes_follow_the_data(capsys):
    sizes = {("digits", "mlp"): 8, ("mnist", "mlp"): 28, ("mnist", "dcgan"): 32}
    sizes |= {("fashion_mnist", "dcgan"): 32, ("cifar10", "dcgan"): 32, ("folder", "mlp"): 64}
    for (dataset, config), size in sizes.items():
        args = args_of("--dataset", dataset, "--config", config)
        colours = 3 if dataset in ("cifar10", "folder") else 1
        assert (args.img_size, args.channels) == (size, colours)
        nets = [type(net).__name__ for net in gan.build(args)]
        names = ["Generator", "Discriminator"]
        assert nets == (names if config == "mlp" else [f"Conv{name}" for name in names])
    with pytest.raises(SystemExit) as stop:
        args_of("--config", "dcgan", "--img_size", "28")
    assert stop.value.code == 2 and "--img_size 28" in capsys.readouterr().err


# --- the whole script ----------------------------------------------------------------------------
ARGV = ["--dim", "8", "--latent_dim", "5", "--batch_size", "16", "--n_critic", "2", "--lr", "1e-3"]
ARGV += ["--n_samples", "4", "--sample_interval", "2", "--device", "cpu"]


def test_resume_is_exact(tmp_path, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert gan.main([*ARGV, "--n_steps", "6", "--out", str(whole)]) == 0
    assert gan.main([*ARGV, "--n_steps", "3", "--out", str(halves)]) == 0
    half = torch.load(halves / "last.pt", weights_only=True)
    assert gan.main([*ARGV, "--n_steps", "6", "--out", str(halves), "--resume"]) == 0
    a, b = (torch.load(out / "last.pt", weights_only=True) for out in (whole, halves))
    assert a["done"] == b["done"] == 6

    def leaves(value):
        if isinstance(value, dict):
            return [leaf for key in sorted(value, key=str) for leaf in leaves(value[key])]
        return [value] if isinstance(value, torch.Tensor) else []

    for part in ("generator", "discriminator", "ema", "optimizer_g", "optimizer_d"):
        same = [torch.equal(p, q) for p, q in zip(leaves(a[part]), leaves(b[part]), strict=True)]
        assert same and all(same)
        old = [torch.equal(p, q) for p, q in zip(leaves(a[part]), leaves(half[part]), strict=True)]
        assert not all(old)
    grids = sorted(path.name for path in whole.glob("samples_*.png"))
    assert grids == ["samples_000002.png", "samples_000004.png", "samples_000006.png"]
    for name in ("samples_000006.png", "interpolation.png"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    assert (whole / "curves.png").exists()


def test_sample_and_evaluate_a_checkpoint(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert gan.main([*ARGV, "--n_steps", "4", "--out", out]) == 0
    metrics = capsys.readouterr().out.splitlines()[-1]
    for _ in range(2):
        assert gan.main([*ARGV, "--sample", "--out", out]) == 0
    assert capsys.readouterr().out == f"{out}/samples.png\n" * 2
    assert (tmp_path / "run/last.pt").exists()  # sampling leaves the run where it is
    picture = Image.open(tmp_path / "run/samples.png")
    assert picture.size == (2 * 32 + 3 * 2,) * 2
    judged = [*ARGV, "--n_steps", "0", "--weights", f"{out}/last.pt", "--out", f"{out}2"]
    assert gan.main(judged) == 0
    assert capsys.readouterr().out.splitlines()[-1] == metrics
    for bad in ([*ARGV, "--sample", "--dim", "4", "--out", out], [*ARGV, "--sample", "--out", "x"]):
        with pytest.raises(SystemExit) as stop:
            gan.main(bad)
        assert stop.value.code == 2 and "--weights" in capsys.readouterr().err
    assert not Path("x").exists()


def test_a_diverging_run_stops_and_keeps_the_last_good_state(tmp_path, capsys):
    assert gan.main([*ARGV, "--n_steps", "2", "--out", str(tmp_path)]) == 0
    wild = [*ARGV, "--lr", "1e9", "--n_steps", "20", "--sample_interval", "20"]
    with pytest.raises(SystemExit, match="not finite"):
        gan.main([*wild, "--out", str(tmp_path)])
    assert torch.load(tmp_path / "previous_last.pt", weights_only=True)["done"] == 2
