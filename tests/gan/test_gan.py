"""gan.py: the losses against closed forms, the best D against densities, both steps, the run."""

import inspect
import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, load
from PIL import Image
from torch import nn

gan = load("gan/gan.py")
SIBLINGS = [ROOT / f"gan/{name}.py" for name in ("cgan", "dcgan", "wgan", "wgan_gp")]
NS, MINIMAX = (partial(gan.g_loss, kind=kind) for kind in ("ns", "minimax"))


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def small():
    torch.manual_seed(5)
    return gan.Generator(3, 8, 1, 4), gan.Discriminator(8, 1, 4)


def scores(n=400, spread=4.0):
    torch.manual_seed(1)
    return spread * torch.randn(2, n, dtype=torch.float64)


def break_loss(monkeypatch, name, right, wrong):
    """Put a loss in gan's place that has wrong where its source says right."""
    source = inspect.getsource(getattr(gan, name))
    assert right in source
    space = dict(vars(gan))
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(gan, name, space[name])


# --- the losses ----------------------------------------------------------------------------------
def check_value_at_half():
    unsure = torch.zeros(7, dtype=torch.float64)
    assert abs(-gan.d_loss(unsure, unsure).item() + 2 * math.log(2)) < 1e-12


def check_log_forms():
    real, fake = scores()
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    want = -d_real.log().mean() - (1 - d_fake).log().mean()
    assert abs(gan.d_loss(real, fake) - want) < 1e-9
    assert abs(gan.g_loss(fake, "ns") + d_fake.log().mean()) < 1e-9
    assert abs(gan.g_loss(fake, "minimax") - (1 - d_fake).log().mean()) < 1e-9


def check_gradients():
    """By the score: -(1 - D) of the non-saturating loss, -D of minimax, D - 1 and D of D's own."""
    fake = scores()[1].requires_grad_()
    d, n = fake.detach().sigmoid(), len(fake)
    for kind, slope in (("ns", d - 1), ("minimax", -d)):
        (grad,) = torch.autograd.grad(gan.g_loss(fake, kind), fake)
        assert torch.allclose(n * grad, slope, rtol=0, atol=1e-12)
        assert (grad < 0).all()  # a higher score is always better
    real = scores()[0].requires_grad_()
    by_real, by_fake = torch.autograd.grad(gan.d_loss(real, fake), (real, fake))
    assert torch.allclose(n * by_real, real.detach().sigmoid() - 1, rtol=0, atol=1e-12)
    assert torch.allclose(n * by_fake, d, rtol=0, atol=1e-12)


def check_jensen_shannon():
    """Two laws on five points as samples of 60: with the best scores, V = -log 4 + 2 JSD."""
    counts = torch.tensor([[10, 20, 5, 15, 10], [30, 6, 12, 4, 8]])
    p, q = counts.double() / 60
    best = (p / q).log()  # the logit of p / (p + q)
    real, fake = (best.repeat_interleave(n) for n in counts)
    m = (p + q) / 2
    jsd = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    value = -gan.d_loss(real, fake)
    assert abs(value - (2 * jsd - math.log(4))) < 1e-12
    for seed in range(20):  # and no other scores do better
        torch.manual_seed(seed)
        other = best + 0.1 * torch.randn(5)
        assert -gan.d_loss(*(other.repeat_interleave(n) for n in counts)) < value


CHECKS = [check_value_at_half, check_log_forms, check_gradients, check_jensen_shannon]


@pytest.mark.parametrize("check", CHECKS)
def test_losses(check):
    check()


@pytest.mark.parametrize(
    "name, right, wrong, check",
    [
        ("d_loss", "softplus(-real", "softplus(real", check_gradients),
        ("d_loss", "softplus(fake", "softplus(-fake", check_jensen_shannon),
        ("d_loss", ").mean()  #", ").mean() / 2  #", check_value_at_half),
        ("d_loss", ".mean() +", ".mean() -", check_value_at_half),
        ("g_loss", "return F.softplus(-fake", "return F.softplus(fake", check_gradients),
        ("g_loss", "return F.softplus(-fake", "return -F.softplus(fake", check_gradients),
        ("g_loss", "return -F.softplus(fake", "return F.softplus(fake", check_log_forms),
        ("g_loss", "return -F.softplus(fake", "return F.softplus(-fake", check_log_forms),
    ],
)
def test_broken_losses_are_caught(monkeypatch, name, right, wrong, check):
    break_loss(monkeypatch, name, right, wrong)
    with pytest.raises(AssertionError):
        check()


def test_losses_are_cross_entropy_and_never_clamped():
    real, fake = scores(spread=3.0)
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    entropy = F.binary_cross_entropy_with_logits
    assert torch.allclose(gan.d_loss(real, fake), entropy(real, ones) + entropy(fake, zeros))
    assert torch.allclose(NS(fake), entropy(fake, ones))
    real, fake = real.float().clamp(-15, 15), fake.float().clamp(-15, 15)
    plain = F.binary_cross_entropy(real.sigmoid(), ones.float())
    plain += F.binary_cross_entropy(fake.sigmoid(), zeros.float())
    assert torch.allclose(gan.d_loss(real, fake), plain, rtol=0, atol=2e-5)
    far = torch.tensor([-300.0], requires_grad=True)
    NS(far).backward()
    assert NS(far).item() == 300.0 and far.grad.item() == -1.0
    lost = torch.tensor([-300.0], requires_grad=True)
    F.binary_cross_entropy(lost.sigmoid(), torch.ones(1)).backward()
    assert lost.grad.item() == 0.0  # which is what sigmoid and log would have made of it


def test_where_minimax_has_no_slope():
    far = torch.full((1,), -20.0, requires_grad=True)
    (flat,) = torch.autograd.grad(MINIMAX(far), far)
    (steep,) = torch.autograd.grad(NS(far), far)
    assert -1e-8 < flat.item() < 0 and abs(steep.item() + 1) < 1e-8


# --- the steps -----------------------------------------------------------------------------------
def far_from_the_best_d(steps=300):
    """Largest gap between the trained D and p / (p + p_g) on a line; p = N(1, 1), p_g = N(-1, 1),
    so the best score is 2 x."""
    torch.manual_seed(0)
    discriminator = gan.Discriminator(1, 1, 8)
    adam = torch.optim.Adam(discriminator.parameters(), 5e-3, betas=(0.5, 0.999), fused=True)
    for at in range(steps):
        adam.param_groups[0]["lr"] = 5e-3 * (1 - at / steps)
        real = 1 + torch.randn(1024, 1, 1, 1)
        gan.d_step(lambda z: z - 1, discriminator, adam, real, torch.randn(1024, 1, 1, 1))
    x = torch.linspace(-2.5, 2.5, 101)
    with torch.no_grad():
        found = discriminator(x.view(-1, 1, 1, 1)).sigmoid()
    p, q = ((-(x - mean).square() / 2).exp() for mean in (1, -1))
    return (found - p / (p + q)).abs().max().item()


def test_discriminator_finds_the_ratio_of_densities(monkeypatch):
    assert far_from_the_best_d() < 0.04
    assert far_from_the_best_d(0) > 0.3
    right = gan.d_loss
    monkeypatch.setattr(gan, "d_loss", lambda real, fake: right(2 * real, fake))
    assert far_from_the_best_d() > 0.08


@pytest.mark.parametrize("kind", ["ns", "minimax"])
def test_signs(monkeypatch, kind):
    def gained():
        generator, discriminator = small()
        z = torch.randn(32, 3)
        before = discriminator(generator(z)).mean().item()
        sgd = torch.optim.SGD(generator.parameters(), 0.01)
        loss = gan.g_step(generator, discriminator, sgd, z, kind)
        assert not loss.requires_grad
        return discriminator(generator(z)).mean().item() - before

    assert gained() > 1e-5
    right = gan.g_loss
    monkeypatch.setattr(gan, "g_loss", lambda score, kind: -right(score, kind))
    assert gained() < 0  # so the test sees a wrong sign


def test_steps_touch_their_own_player_only():
    generator, discriminator = small()
    players = generator, discriminator
    states = [{k: v.clone() for k, v in m.named_parameters()} for m in players]
    adam = [torch.optim.Adam(m.parameters(), 1e-2) for m in players]
    real, z = torch.rand(16, 1, 8, 8), torch.randn(16, 3)
    inputs = []
    discriminator.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))

    loss = gan.d_step(generator, discriminator, adam[1], real, z)
    assert len(inputs) == 1 and inputs[0].grad_fn is None and torch.equal(inputs[0][:16], real)
    assert not loss.requires_grad
    assert all(p.grad is None and p.equal(states[0][k]) for k, p in generator.named_parameters())
    assert all(not p.equal(states[1][k]) for k, p in discriminator.named_parameters())

    now = {k: v.clone() for k, v in discriminator.named_parameters()}
    adam[1].zero_grad()
    gan.g_step(generator, discriminator, adam[0], z, "ns")
    assert all(p.grad is None and p.equal(now[k]) for k, p in discriminator.named_parameters())
    assert all(p.requires_grad for p in discriminator.parameters())
    assert any(not p.equal(states[0][k]) for k, p in generator.named_parameters())


def test_order_and_fresh_noise(monkeypatch, tmp_path):
    calls = []

    def d_step(generator, discriminator, optimizer, real, z):
        calls.append(("d", z, real))
        return torch.tensor(1.25)

    def g_step(generator, discriminator, optimizer, z, kind):
        calls.append(("g", z, None))
        return torch.tensor(0.5)

    monkeypatch.setattr(gan, "d_step", d_step)
    monkeypatch.setattr(gan, "g_step", g_step)
    argv = ["--dim", "4", "--n_steps", "3", "--batch_size", "8", "--out", str(tmp_path)]
    gan.train(args_of(*argv))
    assert "".join(call[0] for call in calls) == "dg" * 3  # Algorithm 1 with k = 1
    noises, reals = [call[1] for call in calls], [call[2] for call in calls if call[0] == "d"]
    for group in (noises, reals):
        assert len({tuple(t.flatten().tolist()) for t in group}) == len(group)
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert (row["d_loss"], row["g_loss"]) == (1.25, 0.5)
    calls.clear()
    gan.train(args_of(*argv, "--n_critic", "3"))
    assert "".join(call[0] for call in calls) == "dddg" * 3


# --- the networks --------------------------------------------------------------------------------
def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("z, s, c, d", [(100, 28, 1, 128), (7, 8, 3, 2)])
def test_sizes(z, s, c, d):
    linear = [(z, d), (d, 2 * d), (2 * d, 4 * d), (4 * d, 8 * d), (8 * d, c * s * s)]
    g = sum((n + 1) * m for n, m in linear) + 2 * (2 * d + 4 * d + 8 * d)
    assert count(gan.Generator(z, s, c, d)) == g
    linear = [(c * s * s, 4 * d), (4 * d, 2 * d), (2 * d, 1)]
    critic = sum((n + 1) * m for n, m in linear)
    assert count(gan.Discriminator(s, c, d)) == critic
    if z == 100:
        assert (g, critic) == (1_510_032, 533_505)
        args = args_of("--dataset", "mnist")
        assert [count(model) for model in gan.build(args)] == [g, critic]


def test_shapes_and_norms():
    generator, discriminator = gan.Generator(6, 5, 3, 2), gan.Discriminator(5, 3, 2)
    images = generator(5 * torch.randn(4, 6))
    assert images.shape == (4, 3, 5, 5) and images.abs().max() <= 1
    assert discriminator(images).shape == (4,)
    kinds = {type(layer).__name__ for layer in discriminator.modules()}
    assert kinds == {"Discriminator", "Sequential", "Linear", "LeakyReLU"}
    norms = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert len(norms) == 3 and all(norm.eps == 1e-5 for norm in norms)
    faint = 0.3 * torch.randn(500, norms[0].num_features)
    assert abs(norms[0](faint).std().item() - 1) < 0.01  # eps = 0.8 would leave 0.32


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


# --- the run -------------------------------------------------------------------------------------
ARGV = ["--dim", "8", "--latent_dim", "5", "--batch_size", "16", "--lr", "1e-3", "--n_samples", "4"]
ARGV += ["--sample_interval", "2", "--device", "cpu"]


def test_ema_is_the_mean_it_says_and_draws(tmp_path, monkeypatch, capsys):
    seen = []
    g_step = gan.g_step

    def watched(generator, *rest):
        loss = g_step(generator, *rest)
        seen.append([p.detach().double() for p in generator.parameters()])
        return loss

    monkeypatch.setattr(gan, "g_step", watched)
    out = tmp_path / "mean"
    assert gan.main([*ARGV, "--n_steps", "20", "--ema", "0.6", "--out", str(out)]) == 0
    saved = torch.load(out / "last.pt", weights_only=True)
    torch.manual_seed(0)
    args = args_of(*ARGV)
    gan.load_data(args)  # draws the split before the weights
    mean = [p.detach().double() for p in gan.build(args)[0].parameters()]
    for step, weights in enumerate(seen):
        decay = min(0.6, (1 + step) / (10 + step))
        mean = [decay * m + (1 - decay) * w for m, w in zip(mean, weights, strict=True)]
    names = [name for name, _ in gan.build(args)[0].named_parameters()]
    for name, m, w in zip(names, mean, seen[-1], strict=True):
        assert torch.allclose(saved["ema"][name].double(), m, rtol=0, atol=1e-6)
        assert torch.equal(saved["generator"][name].double(), w) and not torch.allclose(m, w)
    for name in saved["ema"].keys() - {*names}:  # running averages of batch norm
        assert torch.equal(saved["ema"][name], saved["generator"][name])

    assert gan.main([*ARGV, "--sample", "--ema", "0.6", "--out", str(out)]) == 0
    torch.save(saved["ema"], tmp_path / "bare.pt")
    bare = ["--sample", "--weights", str(tmp_path / "bare.pt"), "--out", str(tmp_path / "bare")]
    assert gan.main([*ARGV, *bare]) == 0
    pictures = [(tmp_path / at / "samples.png").read_bytes() for at in ("mean", "bare")]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("flags", [[], ["--ema", "0.9"], ["--g_loss", "minimax"]], ids=str)
def test_resume_is_exact(tmp_path, capsys, flags):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    argv = [*ARGV, *flags]
    assert gan.main([*argv, "--n_steps", "6", "--out", str(whole)]) == 0
    assert gan.main([*argv, "--n_steps", "3", "--out", str(halves)]) == 0
    assert gan.main([*argv, "--n_steps", "6", "--out", str(halves), "--resume"]) == 0
    a, b = (torch.load(out / "last.pt", weights_only=True) for out in (whole, halves))
    assert a["done"] == b["done"] == 6
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    same = [torch.equal(a["ema"][key], a["generator"][key]) for key in a["ema"]]
    assert all(same) != ("--ema" in flags)
    for name in ("samples_000006.png", "interpolation.png"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()


def test_minimax_is_another_run(tmp_path, capsys):
    runs = {}
    for kind in ("ns", "minimax"):
        out = tmp_path / kind
        assert gan.main([*ARGV, "--n_steps", "2", "--g_loss", kind, "--out", str(out)]) == 0
        runs[kind] = torch.load(out / "last.pt", weights_only=True)["generator"]
    assert not torch.equal(runs["ns"]["model.0.weight"], runs["minimax"]["model.0.weight"])


def test_judging_a_checkpoint_repeats_its_metrics(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert gan.main([*ARGV, "--n_steps", "4", "--out", out]) == 0
    metrics = capsys.readouterr().out.splitlines()[-1]
    judged = [*ARGV, "--n_steps", "0", "--weights", f"{out}/last.pt", "--out", f"{out}2"]
    assert gan.main(judged) == 0
    assert capsys.readouterr().out.splitlines()[-1] == metrics


def met(metrics):
    return [low <= metrics[key] <= high for key, (low, high) in gan.BARS.items() if key in metrics]


def test_no_cheat_meets_all_bars():
    torch.manual_seed(0)
    data = gan.load_data(args_of())
    (x, y), (real, _) = data
    n, flat = len(real), x.flatten(1)
    assert all(met(gan.evaluate(x[torch.randperm(len(x))[:n]], data)))  # real images do
    mean = flat.mean(0)
    kinds = [flat[y == k] for k in range(10)]
    middle = torch.stack([kind[torch.cdist(kind, kind).sum(0).argmin()] for kind in kinds])
    cheats = {
        "one class": x[y == 3].repeat(3, 1, 1, 1),
        "half the classes": x[y < 5],
        "one image of each class": middle.repeat(n // 10, 1),
        "the mean": mean.expand(n, 64),
        "blends": x[torch.randint(len(x), (2, n))].mean(0),
        "noise": torch.rand(n, 64) * 2 - 1,
    }
    for name, fakes in cheats.items():
        assert not all(met(gan.evaluate(fakes.reshape(-1, 1, 8, 8), data))), name


# --- the siblings --------------------------------------------------------------------------------
FAMILY = [path for path in SIBLINGS if path.exists()]


@pytest.mark.parametrize("path", FAMILY, ids=lambda path: path.stem)
def test_siblings_load_and_judge_alike(path):
    """These bear no marker of a copy, as every script has one of its own; here they are copies."""
    other = load(f"gan/{path.name}")
    for name in ("load_data", "sample", "evaluate", "generate", "main"):
        ours, theirs = (inspect.getsource(getattr(m, name)).splitlines() for m in (gan, other))
        if path.stem != "cgan" or name == "main":
            assert theirs == ours, name
        elif name == "load_data":  # two lines more: the classes must be as many as --n_classes
            assert [row for row in theirs if "n_classes" not in row] == ours


@pytest.mark.parametrize("path", [ROOT / "gan/gan.py", *FAMILY], ids=lambda path: path.stem)
def test_folder_of_images_in_grey_and_in_colour(path, tmp_path, capsys):
    script, photos = load(f"gan/{path.name}"), tmp_path / "photos"
    for i in range(24):
        file = photos / ("red" if i % 2 else "grey") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 20), (255, 0, 0) if i % 2 else (102, 102, 102)).save(file)
    argv = ["--dataset", "folder", "--data_root", str(photos), "--img_size", "8", "--dim", "2"]
    argv += ["--n_classes", "2"] * (path.stem == "cgan") + ["--device", "cpu", "--n_steps", "2"]
    for channels in ("3", "1"):
        out = tmp_path / channels
        flags = [*argv, "--channels", channels, "--n_samples", "4", "--out", str(out)]
        assert script.main([*flags, "--batch_size", "4"]) == 0
        assert script.main([*flags, "--batch_size", "4", "--sample"]) == 0
        saved = torch.load(out / "last.pt", weights_only=True)["args"]
        assert (saved["img_size"], saved["channels"]) == (8, int(channels))
        assert (out / "interpolation.png").exists()
