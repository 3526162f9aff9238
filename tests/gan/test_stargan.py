"""stargan.py: labels that reach the output, the mask of several sets, both players' steps."""

import inspect
import json
from itertools import pairwise

import pytest
import torch
from house import ROOT, load, mistake
from PIL import Image
from torch import nn

gan = load("gan/stargan.py")
PATH = ROOT / "gan/stargan.py"
AMP = torch.autocast("cpu", torch.bfloat16, enabled=False)


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def players(n_labels=3):
    torch.manual_seed(5)
    return gan.Generator(n_labels, 1, 2), gan.Discriminator(16, 3, 2)


# --- the networks --------------------------------------------------------------------------------
def test_sizes_and_names_of_the_official_networks():
    """CelebA at 128 pixels, five attributes."""
    generator, discriminator = gan.Generator(5, 6, 64), gan.Discriminator(128, 5, 64)
    d, c, norms = 64, 5, 2 * (64 + 128 + 256 + 12 * 256 + 128 + 64)
    count = 49 * (3 + c) * d + 16 * (2 * d * d + 8 * d * d) + 12 * 9 * 16 * d * d
    count += 16 * (8 * d * d + 2 * d * d) + 49 * 3 * d + norms
    assert sum(p.numel() for p in generator.parameters()) == count
    keys = [*generator.state_dict()]
    assert {"main.9.main.0.weight", "main.14.main.4.running_var", "main.21.weight"} <= {*keys}
    assert {k.split(".")[1] for k in keys} == {
        *map(str, [0, 1, 3, 4, 6, 7, *range(9, 17), 18, 19, 21])
    }
    maps = [3, 64, 128, 256, 512, 1024, 2048]
    count = sum(16 * n * m + m for n, m in pairwise(maps))
    count += 9 * 2048 + 4 * 5 * 2048
    assert sum(p.numel() for p in discriminator.parameters()) == count
    score, logits = discriminator(torch.rand(2, 3, 128, 128))
    assert score.shape == (2, 1, 2, 2) and logits.shape == (2, 5)


def felt(generator):
    x = torch.rand(1, 3, 32, 32)
    h = [
        generator.main[:2](torch.cat([x, c[:, :, None, None].expand(-1, -1, 32, 32)], 1))
        for c in (torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 0, 1]]))
    ]
    return (h[0] - h[1]).abs().max().item()


def test_labels_reach_the_output_thanks_to_zero_padding():
    generator, _ = players()
    assert felt(generator) > 0.1
    generator.main[0].padding_mode = "reflect"
    generator.main[0]._reversed_padding_repeated_twice = (3, 3, 3, 3)
    assert felt(generator) < 1e-4  # the norm takes away what is constant in a plane


def test_norm_keeps_its_averages_and_images_apart():
    generator, _ = players()
    x, c = torch.rand(3, 3, 16, 16), torch.eye(3)
    images = generator(x, c)
    assert torch.allclose(gan.sample(generator, x[1:2], c[1]), images[1:2], atol=1e-5)
    assert torch.allclose(gan.sample(generator, x, c), images, atol=1e-5)
    assert all((b == 0).all() for k, b in generator.named_buffers() if k.endswith("mean"))


# --- labels, classes, the penalty ----------------------------------------------------------------
def test_labels_of_one_set_and_of_several():
    labels, shares = gan.labels_of(torch.tensor([0, 0, 0]))
    assert torch.equal(labels, torch.eye(3)) and shares.all()
    labels, shares = gan.labels_of(torch.tensor([0, 0, 1, 1, 1]))
    assert labels.shape == (5, 7)  # (c_1, c_2, m)
    assert labels[1].tolist() == [0, 1, 0, 0, 0, 1, 0] and labels[4].tolist() == [
        0,
        0,
        0,
        0,
        1,
        0,
        1,
    ]
    assert shares.sum(1).tolist() == [2, 2, 3, 3, 3]


def check_class_loss():
    torch.manual_seed(0)
    _, shares = gan.labels_of(torch.tensor([0, 0, 1, 1, 1]))
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    domain = torch.tensor([0, 1, 2, 3, 4, 0])
    loss = gan.class_loss(logits, domain, shares)
    brute = 0
    for row, d in zip(logits, domain.tolist(), strict=True):
        known = row[:2] if d < 2 else row[2:]
        brute = brute + known.exp().sum().log() - row[d]
    assert (loss - brute / 6).abs() < 1e-9
    (slope,) = torch.autograd.grad(loss, logits)
    assert (slope[~shares[domain]] == 0).all() and (slope[shares[domain]] != 0).all()


def test_class_loss_looks_at_the_known_set_alone(monkeypatch):
    check_class_loss()
    monkeypatch.setattr(gan, "class_loss", lambda z, d, shares: nn.functional.cross_entropy(z, d))
    with pytest.raises(AssertionError):
        check_class_loss()


def test_penalty_is_of_the_sum_of_the_map():
    """D_src linear with slope w in each of four scores: the slope of their sum is 4 w."""
    w = torch.rand(3, 4, 4)
    d = lambda x: (w * x).sum((1, 2, 3))[:, None].expand(-1, 4)  # noqa: E731
    penalty = gan.gradient_penalty(d, *torch.rand(2, 8, 3, 4, 4))
    assert abs(penalty - (4 * w.norm() - 1) ** 2) < 1e-3


# --- the steps -----------------------------------------------------------------------------------
def steps():
    generator, discriminator = players()
    labels, shares = gan.labels_of(torch.tensor([0, 0, 0]))
    torch.manual_seed(1)
    x, old, new = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    ce = nn.functional.cross_entropy
    y_hat = generator(x, labels[new])
    score, logits = discriminator(y_hat)
    rec = (generator(y_hat, labels[old]) - x).abs().mean()
    whole = [*generator.parameters()]
    wanted = torch.autograd.grad(-score.mean() + 2 * ce(logits, new) + 10 * rec, whole)
    before = [p.detach().clone() for p in whole]
    batch = (x, old, new, labels, shares)
    sgd = torch.optim.SGD(whole, 0.1)
    gan.g_step(generator, discriminator, sgd, *batch, 2.0, 10.0, AMP)
    for p, o, g in zip(whole, before, wanted, strict=True):
        assert torch.allclose((o - p) / 0.1, g, atol=1e-3, rtol=1e-3)
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())
    y_hat, whole = generator(x, labels[new]).detach(), [*discriminator.parameters()]
    score, logits = discriminator(x)
    loss = discriminator(y_hat)[0].mean() - score.mean() + 2 * ce(logits, old)
    torch.manual_seed(3)
    eps = torch.rand(4, 1, 1, 1)
    between = (eps * x + (1 - eps) * y_hat).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(between)[0].sum(), between, create_graph=True)
    loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    wanted = torch.autograd.grad(loss, whole)
    before = [p.detach().clone() for p in whole]
    kept = [p.grad.clone() for p in generator.parameters()]
    torch.manual_seed(3)
    gan.d_step(generator, discriminator, torch.optim.SGD(whole, 0.1), *batch, 2.0, 10.0, AMP)
    for p, o, g in zip(whole, before, wanted, strict=True):
        assert torch.allclose((o - p) / 0.1, g, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(p.grad, k) for p, k in zip(generator.parameters(), kept, strict=True))


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("g_step", "g_loss(score.float())", "-g_loss(score.float())"),
        ("g_step", "logits.float(), new", "logits.float(), old"),
        ("g_step", "labels[old]", "labels[new]"),
        ("g_step", "w_rec * rec", "rec"),
        ("d_step", ".float(), old", ".float(), new"),
        ("d_step", "logits[: len(x)]", "logits[len(x) :]"),
        ("d_step", "w_gp * penalty", "penalty"),
        ("d_step", "w_cls * cls", "cls"),
    ],
)
def test_steps(monkeypatch, name, right, wrong):
    steps()
    source = inspect.getsource(getattr(gan, name))
    assert right in source
    space = dict(vars(gan))
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(gan, name, space[name])
    with pytest.raises(AssertionError):
        steps()


# --- data, judging, the run ----------------------------------------------------------------------
def put(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)


def test_several_sets_train_and_predict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for at in range(11):
        for k, name in enumerate(["hair/dark", "hair/fair", "mood/glad", "mood/sad", "mood/wild"]):
            put(tmp_path / "faces" / name / f"{at}.png", (50 * k, at, 0))
    argv = ["--dataset", "folder", "--data_root", "faces", "--dim", "2", "--n_residual_blocks", "1"]
    args = args_of(*argv)
    (x, domain), (held, _) = gan.load_data(args)
    assert len(x) == 45 and len(held) == 10 and domain.bincount().tolist() == [9] * 5
    assert (x[:, 0, 0, 0] == 50 * domain).all()
    (generator, _), labels, shares = gan.build(args)
    assert labels.shape == (5, 7) and generator.main[0].in_channels == 10
    argv += ["--device", "cpu", "--out", "out"]
    seen, right = [], gan.d_step
    monkeypatch.setattr(gan, "d_step", lambda *a: seen.append((a[4], a[5])) or right(*a))
    assert gan.main([*argv, "--n_epochs", "1", "--batch_size", "4", "--n_critic", "2"]) == 0
    for old, new in seen:  # of one set each, and the wanted as common as the real
        assert len({*shares[old].all(0).tolist()}) == 2 and torch.equal(
            old.sort()[0], new.sort()[0]
        )
    assert gan.main([*argv, "--predict", "faces/hair/dark/0.png"]) == 0
    assert Image.open("out/0.png").size == (6 * 34 + 2, 36)
    (tmp_path / "faces/mood/sad/3.png").write_text("no image")
    mistake(PATH, *argv, about="faces/mood/sad/3.png cannot be read")
    mistake(
        PATH, *argv[2:], "--dataset", "folder", "--data_root", "faces/hair/dark", about="0 folders"
    )


def met(metrics):
    return {key: lo <= metrics[key] <= hi for key, (lo, hi) in gan.BARS.items() if key in metrics}


def judged(answer):
    """Bars met by a generator that answers so to (x, number of the label)."""
    args = args_of()
    _, test = gan.load_data(args)
    labels, _ = gan.labels_of(torch.zeros(3, dtype=torch.long))

    class Says(nn.Module):
        def forward(self, x, c):
            return answer(x, c.argmax(1))

    def judge(x):  # by the colour that there is most of
        return x[:, :1, :2, :2], x.mean((2, 3))

    return met(gan.evaluate(args, (Says(), judge), labels, test))


def mask(x):
    return x.amax(1, keepdim=True) > x.amin(1, keepdim=True)


GREY = gan.scale(torch.tensor(gan.GROUND))


def truth(x, new):
    return torch.where(mask(x), gan.scale(torch.tensor(gan.COLOURS))[new, :, None, None], x)


def inside_out(x, new):
    return torch.where(mask(x), GREY, truth(torch.where(mask(x), x, x + 1e-3 * COLOUR), new))


COLOUR = torch.tensor([1.0, 0, 0])[:, None, None]  # makes the grey ground a thing
CHEATS = {
    "the input": lambda x, new: x,
    "nothing": lambda x, new: torch.full_like(x, GREY),
    "another truth": lambda x, new: truth(x, new).roll(1, 0),
    "another truth, of the same colour": lambda x, new: truth(x, new).roll(2, 0),
    "the mean image": lambda x, new: truth(x, new).mean(0, keepdim=True).expand_as(x),
    "the usual place": lambda x, new: torch.where(
        mask(x).float().mean(0) > 0.4, truth(x + 1e-3 * COLOUR, new), GREY
    ),
    "always red": lambda x, new: truth(x, 0 * new),
    "colour alone": lambda x, new: truth(x + 1e-3 * COLOUR, new),
    "moved": lambda x, new: truth(x, new).roll((5, 5), (2, 3)),
    "inside out": inside_out,
    "upside down": lambda x, new: truth(x, new).flip(2).roll(3, 3),
}


def test_no_cheat_meets_all_bars():
    """Without rec, which judges two passes and which the first cheat would meet."""
    assert all(judged(truth).values())
    for name, cheat in CHEATS.items():
        assert not all(ok for key, ok in judged(cheat).items() if key != "rec"), name


@pytest.mark.parametrize("name", ["nothing", "another truth", "the usual place", "inside out"])
def test_shape_is_no_matter_of_colour(name):
    assert not judged(CHEATS[name])["shape"]


ARGV = ["--dim", "2", "--n_residual_blocks", "1", "--batch_size", "100", "--n_critic", "2"]
ARGV += ["--sample_interval", "2", "--n_samples", "4", "--device", "cpu"]


def test_resume_is_exact(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert gan.main([*ARGV, "--n_epochs", "2", "--out", f"{whole}"]) == 0
    assert gan.main([*ARGV, "--n_epochs", "1", "--out", f"{halves}"]) == 0
    assert gan.main([*ARGV, "--n_epochs", "2", "--out", f"{halves}", "--resume"]) == 0
    a, b = (torch.load(out / "last.pt", weights_only=True) for out in (whole, halves))
    for part in ("generator", "discriminator"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    row = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])
    assert [*row] == ["epoch", "d_loss", "g_loss", "rec", "asked", "things", "ground", "shape"]
    assert (whole / "samples_0002.png").exists()
