"""cgan.py: the condition is all that gan.py lacks, it reaches both players, and it is obeyed."""

import inspect
import json
from functools import partial

import pytest
import torch
from house import ROOT, load, mistake
from PIL import Image
from torch import nn

gan, plain = load("gan/cgan.py"), load("gan/gan.py")
Z, K, E = 3, 4, 2


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def small(dtype=torch.float32):
    torch.manual_seed(5)
    shape = 8, 1, 4, K, E
    return gan.Generator(Z, *shape).to(dtype), gan.Discriminator(*shape).to(dtype)


# --- the condition -------------------------------------------------------------------------------
def without_condition(player, other):
    """Give player the weights of gan.py's other, and vectors of zero to every class."""
    state = other.state_dict()
    first = player.state_dict()["model.0.weight"].clone()
    first[:, : state["model.0.weight"].shape[1]] = state["model.0.weight"]
    state |= {"model.0.weight": first, "embed.weight": torch.zeros_like(player.embed.weight)}
    player.load_state_dict(state)


def check_identity(zero=True):
    generator, discriminator = small(torch.float64)
    torch.manual_seed(6)
    others = plain.Generator(Z, 8, 1, 4).double(), plain.Discriminator(8, 1, 4).double()
    without_condition(generator, others[0])
    without_condition(discriminator, others[1])
    if not zero:
        nn.init.normal_(generator.embed.weight)
        nn.init.normal_(discriminator.embed.weight)
    y, z, real = torch.randint(K, (16,)), torch.randn(16, Z).double(), torch.rand(16, 1, 8, 8)
    fakes = generator(z, y)
    assert torch.allclose(fakes, others[0](z), rtol=0, atol=1e-12)
    assert torch.allclose(discriminator(fakes, y), others[1](fakes), rtol=0, atol=1e-12)
    sgd = [torch.optim.SGD(m.parameters(), 0.1) for m in (generator, discriminator, *others)]
    ours = gan.d_step(generator, discriminator, sgd[1], real.double(), z, y)
    assert abs(ours - plain.d_step(*others, sgd[3], real.double(), z)) < 1e-12
    ours = gan.g_step(generator, discriminator, sgd[0], z, y, "ns")
    assert ours.isfinite()


def test_zero_vectors_leave_gan():
    check_identity()
    with pytest.raises(AssertionError):
        check_identity(zero=False)


def check_renaming(rename_both=True):
    """Classes are mere names: exchange them and their vectors, and nothing has changed."""
    generator, discriminator = small(torch.float64)
    y, z = torch.randint(K, (16,)), torch.randn(16, Z).double()
    before = generator(z, y)
    scores = discriminator(before, y)
    new = torch.tensor([2, 0, 3, 1])  # class k is now called new[k]
    for player in (generator, discriminator):
        old = player.embed.weight.detach().clone()
        with torch.no_grad():
            player.embed.weight[new] = old
    y = new[y] if rename_both else y
    after = generator(z, y)
    assert torch.equal(after, before) and torch.equal(discriminator(after, y), scores)


def test_names_of_classes_do_not_matter():
    check_renaming()
    with pytest.raises(AssertionError):
        check_renaming(rename_both=False)


def test_losses_are_those_of_gan():
    for name in ("d_loss", "g_loss"):
        assert inspect.getsource(getattr(gan, name)) == inspect.getsource(getattr(plain, name))


def test_each_class_feeds_its_own_vector():
    generator, discriminator = small()
    y = torch.tensor([1, 1, 3, 1])
    generator(torch.randn(4, Z), y).square().sum().backward()
    discriminator(torch.rand(4, 1, 8, 8), y).sum().backward()
    for player in (generator, discriminator):
        assert (player.embed.weight.grad.abs().sum(1) > 0).tolist() == [False, True, False, True]


def far_from_the_best_d(told=True):
    """Class 0 is N(-1, 1) where its fakes are N(1, 1), class 1 the other way round: without the
    class real and fake are one mixture. The best score is -2 x and 2 x; largest gap of D to it."""
    torch.manual_seed(0)
    discriminator = gan.Discriminator(1, 1, 8, 2, E)
    adam = torch.optim.Adam(discriminator.parameters(), 5e-3, betas=(0.5, 0.999), fused=True)
    if not told:
        nn.init.zeros_(discriminator.embed.weight).requires_grad_(False)
    for at in range(400):
        adam.param_groups[0]["lr"] = 5e-3 * (1 - at / 400)
        y = torch.randint(2, (1024,))
        mean = (2.0 * y - 1).view(-1, 1, 1, 1)
        real, z = mean + torch.randn(1024, 1, 1, 1), torch.randn(1024, 1, 1, 1)
        gan.d_step(lambda z, y, mean=mean: z - mean, discriminator, adam, real, z, y)
    x, gaps = torch.linspace(-2, 2, 41), []
    for k in (0, 1):
        with torch.no_grad():
            found = discriminator(x.view(-1, 1, 1, 1), torch.full((41,), k)).sigmoid()
        gaps.append((found - ((4 * k - 2) * x).sigmoid()).abs().max().item())
    return max(gaps)


def test_discriminator_finds_the_ratio_within_each_class():
    assert far_from_the_best_d() < 0.08
    assert far_from_the_best_d(told=False) > 0.4


# --- the steps and their labels ------------------------------------------------------------------
def test_same_labels_for_real_and_fake_and_for_both_players():
    generator, discriminator = small()
    seen = []
    for player in (generator, discriminator):
        player.register_forward_pre_hook(lambda net, given: seen.append((net, *given)))
    y, z, real = torch.tensor([3, 1, 0, 2]), torch.randn(4, Z), torch.rand(4, 1, 8, 8)
    sgd = [torch.optim.SGD(m.parameters(), 0.1) for m in (generator, discriminator)]
    assert not gan.d_step(generator, discriminator, sgd[1], real, z, y).requires_grad
    assert [call[0] for call in seen] == [generator, discriminator]  # one pass for both
    assert torch.equal(seen[0][2], y) and torch.equal(seen[1][2], torch.cat([y, y]))
    assert torch.equal(seen[1][1][:4], real) and seen[1][1].grad_fn is None
    seen.clear()
    before = [w.detach().clone() for w in discriminator.parameters()]
    discriminator.zero_grad()
    gan.g_step(generator, discriminator, sgd[0], z, y, "ns")
    assert torch.equal(seen[0][2], y) and torch.equal(seen[1][2], y)
    assert all(map(torch.equal, before, discriminator.parameters()))
    assert all(w.grad is None and w.requires_grad for w in discriminator.parameters())


@pytest.mark.parametrize("kind", ["ns", "minimax"])
def test_signs(monkeypatch, kind):
    def gained():
        generator, discriminator = small()
        z, y = torch.randn(32, Z), torch.randint(K, (32,))
        score = partial(lambda: discriminator(generator(z, y), y).mean().item())
        before = score()
        sgd = torch.optim.SGD(generator.parameters(), 0.01)
        gan.g_step(generator, discriminator, sgd, z, y, kind)
        return score() - before

    assert gained() > 1e-5
    right = gan.g_loss
    monkeypatch.setattr(gan, "g_loss", lambda score, kind: -right(score, kind))
    assert gained() < 0


def test_labels_come_from_the_data_fresh_for_each_step(monkeypatch, tmp_path):
    calls = []

    def d_step(generator, discriminator, optimizer, real, z, y):
        calls.append(("d", z, y, real))
        return torch.tensor(1.25)

    def g_step(generator, discriminator, optimizer, z, y, kind):
        calls.append(("g", z, y, None))
        return torch.tensor(0.5)

    monkeypatch.setattr(gan, "d_step", d_step)
    monkeypatch.setattr(gan, "g_step", g_step)
    argv = ["--dim", "4", "--n_steps", "30", "--out", str(tmp_path)]
    gan.train(args_of(*argv))
    assert "".join(call[0] for call in calls) == "dg" * 30
    for at in (1, 2):
        assert len({tuple(call[at].flatten().tolist()) for call in calls}) == 60
    torch.manual_seed(0)
    (x, y), _ = gan.load_data(args_of())
    known = {tuple(image.flatten().tolist()): label for image, label in zip(x, y, strict=True)}
    for _, _, labels, real in calls[:8:2]:
        assert labels.tolist() == [known[tuple(image.flatten().tolist())] for image in real]
    asked = torch.cat([call[2] for call in calls if call[0] == "g"])
    assert (asked.bincount(minlength=10) / len(asked)).sub(0.1).abs().max() < 0.03
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert (row["d_loss"], row["g_loss"]) == (1.25, 0.5)


# --- the networks, the pictures, the measures ----------------------------------------------------
@pytest.mark.parametrize("z, s, c, d, k, e", [(100, 28, 1, 128, 10, 10), (7, 8, 3, 2, 5, 3)])
def test_sizes(z, s, c, d, k, e):
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    generator, discriminator = gan.Generator(z, s, c, d, k, e), gan.Discriminator(s, c, d, k, e)
    assert count(generator) == count(plain.Generator(z, s, c, d)) + k * e + e * d
    assert count(discriminator) == count(plain.Discriminator(s, c, d)) + k * e + e * 4 * d
    if z == 100:
        assert count(generator) == 1_510_032 + 100 + 10 * 128
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 3 and all(norm.eps == 1e-5 for norm in norms)
    images = generator(torch.randn(4, z), torch.arange(4))
    assert images.shape == (4, c, s, s) and discriminator(images, torch.arange(4)).shape == (4,)


def test_rows_are_classes():
    args = args_of()
    assert torch.equal(gan.rows(args, 100), torch.arange(10).repeat_interleave(10))
    assert gan.rows(args, 25).tolist() == [k for k in range(10) for _ in range(3)][:25]
    args.n_classes = 3
    assert gan.rows(args, 6).tolist() == [0, 0, 1, 1, 2, 2]


def test_asked_accuracy():
    torch.manual_seed(0)
    data = gan.load_data(args_of())
    real, labels = data[1]
    right = gan.evaluate(real, labels, data)
    assert right["asked_acc"] > 0.95 and right["swd"] == 0
    assert gan.evaluate(real, (labels + 1) % 10, data)["asked_acc"] < 0.05
    mixed = labels[torch.randperm(len(labels))]
    assert abs(gan.evaluate(real, mixed, data)["asked_acc"] - 0.1) < 0.06
    shared = plain.evaluate(real, data)
    assert shared == {key: right[key] for key in shared}


def met(metrics):
    return [low <= metrics[key] <= high for key, (low, high) in gan.BARS.items() if key in metrics]


def test_no_cheat_meets_all_bars():
    torch.manual_seed(0)
    data = gan.load_data(args_of())
    (x, y), (real, labels) = data
    n, flat = len(real), x.flatten(1)
    assert all(met(gan.evaluate(x[:n], y[:n], data)))  # real images do
    means = torch.stack([flat[y == k].mean(0) for k in range(10)])
    kinds = [flat[y == k] for k in range(10)]
    middle = torch.stack([kind[torch.cdist(kind, kind).sum(0).argmin()] for kind in kinds])
    cheats = {
        "a real image of any class": x[:n],
        "the mean of the class": means[labels],
        "one image of the class": middle[labels],
        "noise": torch.rand(n, 64) * 2 - 1,
    }
    for name, fakes in cheats.items():
        assert not all(met(gan.evaluate(fakes.reshape(-1, 1, 8, 8), labels, data))), name


# --- the run -------------------------------------------------------------------------------------
ARGV = ["--dim", "8", "--latent_dim", "5", "--batch_size", "16", "--lr", "1e-3"]
ARGV += ["--n_samples", "20", "--sample_interval", "2", "--device", "cpu"]


@pytest.mark.parametrize("flags", [[], ["--ema", "0.9"]], ids=str)
def test_resume_is_exact_and_a_class_can_be_drawn(tmp_path, capsys, flags):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    argv = [*ARGV, *flags]
    assert gan.main([*argv, "--n_steps", "4", "--out", str(whole)]) == 0
    metrics = capsys.readouterr().out.splitlines()[-1]
    assert gan.main([*argv, "--n_steps", "3", "--out", str(halves)]) == 0
    assert gan.main([*argv, "--n_steps", "4", "--out", str(halves), "--resume"]) == 0
    a, b = (torch.load(out / "last.pt", weights_only=True) for out in (whole, halves))
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    for name in ("samples_000004.png", "interpolation.png"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    assert Image.open(whole / "samples_000004.png").size == (2 * 34 + 2, 10 * 34 + 2)
    assert Image.open(whole / "interpolation.png").size == (8 * 34 + 2, 10 * 34 + 2)
    pictures = []
    for asked in ([], ["--class_id", "7"], ["--class_id", "0"]):
        assert gan.main([*argv, "--sample", *asked, "--out", str(whole)]) == 0
        pictures.append((whole / "samples.png").read_bytes())
    assert len({*pictures}) == 3
    capsys.readouterr()
    judged = [*argv, "--n_steps", "0", "--weights", f"{whole}/last.pt", "--out", f"{whole}2"]
    assert gan.main(judged) == 0
    assert capsys.readouterr().out.splitlines()[-1] == metrics


def test_wrong_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = ROOT / "gan/cgan.py"
    mistake(script, "--class_id", "10", about="--class_id")
    mistake(script, "--n_classes", "5", "--class_id", "5", about="--class_id")
    mistake(script, *ARGV, "--n_classes", "11", "--out", "out", about="--n_classes")
