"""wgan.py: the clipping after every step, what a clipped critic measures, both steps, the run."""

import inspect
import json

import pytest
import torch
from house import load
from torch import nn

gan = load("gan/wgan.py")
GENERATORS = {"mlp": gan.Generator, "dcgan": gan.ConvGenerator}
CRITICS = {"mlp": gan.Discriminator, "dcgan": gan.ConvDiscriminator}


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def small(net="mlp", size=8):
    torch.manual_seed(5)
    return GENERATORS[net](3, size, 1, 4), CRITICS[net](size, 1, 4)


def largest(model):
    return max(w.detach().abs().max().item() for w in model.parameters())


# --- the clipping --------------------------------------------------------------------------------
@pytest.mark.parametrize("net", ["mlp", "dcgan"])
@pytest.mark.parametrize("c", [0.01, 0.25])
def test_weights_are_clipped_after_every_step(net, c):
    generator, critic = small(net, 16)
    gan.clip_weights(critic, c)
    assert 0 < largest(critic) <= c
    optimizer = torch.optim.RMSprop(critic.parameters(), lr=0.05)  # each step leads far outside
    for _ in range(5):
        before = [w.detach().clone() for w in critic.parameters()]
        loss = gan.d_step(generator, critic, optimizer, torch.rand(8, 1, 16, 16), z_of(8), c)
        assert largest(critic) <= c and not loss.requires_grad
        moved = [not torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True)]
        assert any(moved)
    edge = torch.cat([(w.detach().abs() == torch.tensor(c)).flatten() for w in critic.parameters()])
    assert edge.float().mean() > 0.1  # most weights of a clipped critic end there


def z_of(n):
    return torch.randn(n, 3)


def test_a_step_without_clipping_is_noticed(monkeypatch):
    generator, critic = small()
    gan.clip_weights(critic, 0.01)
    monkeypatch.setattr(gan, "clip_weights", lambda discriminator, clip_value: None)
    optimizer = torch.optim.RMSprop(critic.parameters(), lr=0.05)
    gan.d_step(generator, critic, optimizer, torch.rand(8, 1, 8, 8), z_of(8), 0.01)
    assert largest(critic) > 0.01


def test_clipping_is_min_of_max_and_keeps_what_is_inside():
    layer = nn.Linear(50, 40).double()
    nn.init.normal_(layer.weight, std=0.5)
    nn.init.normal_(layer.bias, std=0.5)
    old = [w.detach().clone() for w in layer.parameters()]
    gan.clip_weights(layer, 0.25)
    for was, now in zip(old, layer.parameters(), strict=True):
        low, high = torch.full_like(was, -0.25), torch.full_like(was, 0.25)
        assert torch.equal(torch.minimum(torch.maximum(was, low), high), now)
        assert (now == was).any() and (now != was).any() and now.requires_grad


@pytest.mark.parametrize("config", ["mlp", "dcgan"])
def test_the_first_critic_is_clipped_and_the_generator_never(config):
    generator, critic = gan.build(args_of("--config", config, "--dim", "8"))
    assert largest(critic) <= 0.01 < largest(generator)


def test_every_critic_that_gives_scores_is_clipped(monkeypatch, tmp_path):
    seen = []
    build = gan.build

    def watched(args):
        generator, critic = build(args)
        critic.register_forward_pre_hook(lambda net, x: seen.append(largest(net)))
        return generator, critic

    monkeypatch.setattr(gan, "build", watched)
    argv = ["--dim", "4", "--n_steps", "4", "--batch_size", "8", "--lr", "0.1"]
    gan.train(args_of(*argv, "--clip_value", "0.0625", "--out", str(tmp_path)))
    assert len(seen) == 4 * (5 * 2 + 1) and max(seen) == 0.0625


# --- what it measures ----------------------------------------------------------------------------
def measured(distance, c=0.1, steps=150):
    """What a clipped critic without hidden layers makes of two clouds on a line."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(0, 3), nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1))
    critic.append(nn.Flatten(0))
    gan.clip_weights(critic, c)
    optimizer = torch.optim.RMSprop(critic.parameters(), lr=0.01)
    real = distance + torch.randn(256, 1, 1, 1)
    z = torch.randn(256, 1, 1, 1)
    for _ in range(steps):
        loss = gan.d_step(lambda z: z, critic, optimizer, real, z, c)
    return -loss.item(), c * abs((real.mean() - z.mean()).item())


def test_linear_critic_reaches_c_times_the_gap_of_means():
    for distance in (-3.0, -0.5, 1.0, 4.0):
        for c in (0.1, 0.02):
            found, want = measured(distance, c)
            assert abs(found - want) < 1e-6


def test_estimate_grows_with_the_distance():
    """Two Gaussians: the distance is |mu1 - mu2|, and what the MLP says goes up with it."""
    found = []
    for distance in (0.5, 1.0, 2.0, 4.0):
        torch.manual_seed(1)
        critic = gan.Discriminator(1, 1, 8)
        gan.clip_weights(critic, 0.1)
        optimizer = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
        for _ in range(200):
            real = distance + 0.1 * torch.randn(64, 1, 1, 1)
            cloud = 0.1 * torch.randn(64, 1, 1, 1)
            loss = gan.d_step(lambda z: z, critic, optimizer, real, cloud, 0.1)
        found.append(-loss.item())
    both = torch.tensor([found, [0.5, 1.0, 2.0, 4.0]])
    assert min(found) > 0 and torch.corrcoef(both)[0, 1] > 0.99


# --- the losses and the steps --------------------------------------------------------------------
def test_losses():
    real, fake = torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 5.0])
    assert gan.d_loss(real, fake).item() == 1.0 - 1.5
    assert gan.g_loss(fake).item() == -1.0


def gap_after_critic_step():
    generator, critic = small()
    real, z = torch.rand(32, 1, 8, 8), z_of(32)
    fake = generator(z).detach()
    before = (critic(real).mean() - critic(fake).mean()).item()
    sgd = torch.optim.SGD(critic.parameters(), 0.01)
    assert abs(gan.d_step(generator, critic, sgd, real, z, 10.0).item() + before) < 1e-6
    return (critic(real).mean() - critic(fake).mean()).item() - before


def score_after_generator_step():
    generator, critic = small()
    z = z_of(32)
    before = critic(generator(z)).mean().item()
    gan.g_step(generator, critic, torch.optim.SGD(generator.parameters(), 0.01), z)
    return critic(generator(z)).mean().item() - before


def test_signs(monkeypatch):
    assert gap_after_critic_step() > 1e-5
    assert score_after_generator_step() > 1e-5
    right = gan.g_loss
    monkeypatch.setattr(gan, "g_loss", lambda score: -right(score))
    assert score_after_generator_step() < 0  # so the test sees a wrong sign
    wrong = gan.d_loss
    monkeypatch.setattr(gan, "d_loss", lambda real, fake: wrong(fake, real))
    with pytest.raises(AssertionError):
        gap_after_critic_step()


def test_steps_touch_their_own_player_only():
    generator, critic = small("dcgan", 16)
    states = [{k: v.clone() for k, v in m.named_parameters()} for m in (generator, critic)]
    real, z = torch.rand(16, 1, 16, 16), z_of(16)
    inputs = []
    critic.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))

    gan.d_step(generator, critic, torch.optim.RMSprop(critic.parameters(), 1e-3), real, z, 0.01)
    assert [x.grad_fn for x in inputs] == [None, None]  # no graph behind the fakes
    assert torch.equal(inputs[0], real) and len(inputs[1]) == 16  # not in one batch: batch norm
    assert all(p.grad is None and p.equal(states[0][k]) for k, p in generator.named_parameters())

    now = {k: v.clone() for k, v in critic.named_parameters()}
    critic.zero_grad()
    gan.g_step(generator, critic, torch.optim.RMSprop(generator.parameters(), 1e-3), z)
    assert all(p.grad is None and p.equal(now[k]) for k, p in critic.named_parameters())
    assert all(p.requires_grad for p in critic.parameters())
    assert any(not p.equal(states[0][k]) for k, p in generator.named_parameters())


def test_order_fresh_batches_and_fresh_noise(monkeypatch, tmp_path):
    calls = []

    def d_step(generator, critic, optimizer, real, z, clip_value):
        assert type(optimizer) is torch.optim.RMSprop and clip_value == 0.01
        calls.append(("d", z, real))
        return torch.tensor(-2.0)

    def g_step(generator, critic, optimizer, z):
        calls.append(("g", z, None))
        return torch.tensor(1.0)

    monkeypatch.setattr(gan, "d_step", d_step)
    monkeypatch.setattr(gan, "g_step", g_step)
    argv = ["--dim", "4", "--n_steps", "2", "--batch_size", "8"]
    gan.train(args_of(*argv, "--out", str(tmp_path)))
    assert "".join(call[0] for call in calls) == "dddddg" * 2
    noises, reals = [call[1] for call in calls], [call[2] for call in calls if call[0] == "d"]
    for group in (noises, reals):
        assert len({tuple(t.flatten().tolist()) for t in group}) == len(group)
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert (row["wasserstein"], row["g_loss"]) == (2.0, 1.0)


# --- the networks --------------------------------------------------------------------------------
def count(model):
    return sum(p.numel() for p in model.parameters())


def test_mlp_sizes():
    args = args_of("--dataset", "mnist")
    assert [count(model) for model in gan.build(args)] == [1_510_032, 533_505]


@pytest.mark.parametrize(
    "z, s, c, d, levels", [(100, 32, 1, 64, 3), (5, 8, 3, 4, 1), (5, 64, 3, 2, 4)]
)
def test_dcgan_sizes(z, s, c, d, levels):
    maps = [d * 2**i for i in range(levels)]  # d, 2d, 4d, ...
    steps = list(zip([c, *maps], maps, strict=False))
    top = 16 * maps[-1]
    g = (z + 1) * top + sum(16 * n * m + n for n, m in steps) + 2 * sum(maps)
    generator, critic = gan.ConvGenerator(z, s, c, d), gan.ConvDiscriminator(s, c, d)
    assert count(generator) == g
    d = sum(16 * n * m + m for n, m in steps) + 2 * sum(maps[1:]) + top + 1
    assert count(critic) == d
    images = generator(torch.randn(3, z))
    assert images.shape == (3, c, s, s) and images.abs().max() <= 1 and critic(images).shape == (3,)
    assert [type(layer).__name__ for layer in critic][:2] == ["Conv2d", "LeakyReLU"]
    norms = [m for net in (generator, critic) for m in net if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 * levels - 1 and all(norm.eps == 1e-5 for norm in norms)


def test_flags(capsys):
    args = args_of("--config", "dcgan", "--dataset", "mnist")
    assert (args.img_size, args.channels, args.lr, args.n_critic) == (32, 1, 5e-5, 5)
    assert gan.CONFIGS["mlp"] == {} and args_of().clip_value == 0.01
    for bad in (["--config", "dcgan", "--img_size", "28"], ["--clip_value", "0"]):
        with pytest.raises(SystemExit) as stop:
            args_of(*bad)
        assert stop.value.code == 2 and bad[-2] in capsys.readouterr().err


# --- the run -------------------------------------------------------------------------------------
ARGV = ["--dim", "4", "--latent_dim", "5", "--batch_size", "8", "--n_critic", "2", "--lr", "1e-3"]
ARGV += ["--n_samples", "4", "--sample_interval", "2", "--device", "cpu"]


@pytest.mark.parametrize("flags", [[], ["--config", "dcgan", "--img_size", "16", "--ema", "0.9"]])
def test_resume_is_exact_and_what_is_saved_is_clipped(tmp_path, capsys, flags):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    argv = [*ARGV, *flags]
    assert gan.main([*argv, "--n_steps", "4", "--out", str(whole)]) == 0
    assert gan.main([*argv, "--n_steps", "3", "--out", str(halves)]) == 0
    assert gan.main([*argv, "--n_steps", "4", "--out", str(halves), "--resume"]) == 0
    a, b = (torch.load(out / "last.pt", weights_only=True) for out in (whole, halves))
    assert a["done"] == b["done"] == 4
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    weights = [v for key, v in a["discriminator"].items() if key.endswith(("weight", "bias"))]
    assert max(w.abs().max().item() for w in weights) <= 0.01
    assert gan.main([*argv, "--sample", "--out", str(whole)]) == 0
    assert (whole / "interpolation.png").exists() and (whole / "samples.png").exists()


def met(metrics):
    return [low <= metrics[key] <= high for key, (low, high) in gan.BARS.items() if key in metrics]


def test_no_cheat_meets_all_bars():
    torch.manual_seed(0)
    data = gan.load_data(args_of())
    (x, y), (real, _) = data
    n, flat = len(real), x.flatten(1)
    assert all(met(gan.evaluate(x[torch.randperm(len(x))[:n]], data)))  # real images do
    kinds = [flat[y == k] for k in range(10)]
    middle = torch.stack([kind[torch.cdist(kind, kind).sum(0).argmin()] for kind in kinds])
    cheats = {
        "one class": x[y == 3].repeat(3, 1, 1, 1),
        "half the classes": x[y < 5],
        "one image of each class": middle.repeat(n // 10, 1),
        "the mean": flat.mean(0).expand(n, 64),
        "blends": x[torch.randint(len(x), (2, n))].mean(0),
        "noise": torch.rand(n, 64) * 2 - 1,
    }
    for name, fakes in cheats.items():
        assert not all(met(gan.evaluate(fakes.reshape(-1, 1, 8, 8), data))), name


@pytest.mark.parametrize(
    "right, wrong", [("-clip_value, clip_value", "0, clip_value"), (".clamp_(", ".clamp(")]
)
def test_broken_clipping_is_caught(monkeypatch, right, wrong):
    source = inspect.getsource(gan.clip_weights)
    assert right in source
    space = dict(vars(gan))
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(gan, "clip_weights", space["clip_weights"])
    with pytest.raises(AssertionError):
        test_clipping_is_min_of_max_and_keeps_what_is_inside()
