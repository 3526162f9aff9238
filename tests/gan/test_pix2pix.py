"""pix2pix.py: the official networks, what a patch is, the steps of both players, the pairs."""

import inspect
import json
import math
from itertools import pairwise

import pytest
import torch
from house import ROOT, load, mistake
from PIL import Image
from torch import nn

gan = load("gan/pix2pix.py")
PATH = ROOT / "gan/pix2pix.py"


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def small(size=32, dim=2):
    torch.manual_seed(5)
    return gan.Generator(size, dim), gan.Discriminator(6, dim)


def size_of(model):
    return sum(p.numel() for p in model.parameters())


# --- the networks --------------------------------------------------------------------------------
class Level(nn.Module):
    """The official block, restated from its description: recursive, from the outermost inwards."""

    def __init__(self, channels, depth=0):
        super().__init__()
        outer, inner = channels[depth], channels[depth + 1]
        outermost, innermost = depth == 0, depth == len(channels) - 2
        down = nn.Conv2d(3 if outermost else outer, inner, 4, 2, 1, bias=False)
        width = inner if innermost else 2 * inner
        up = nn.ConvTranspose2d(width, 3 if outermost else outer, 4, 2, 1, bias=outermost)
        before = [] if outermost else [nn.LeakyReLU(0.2)]
        middle = [] if innermost else [Level(channels, depth + 1)]
        norm = [] if innermost or outermost else [nn.BatchNorm2d(inner)]
        after = [nn.Tanh()] if outermost else [nn.BatchNorm2d(outer)]
        self.model = nn.Sequential(*before, down, *norm, *middle, nn.ReLU(), up, *after)
        self.outermost = outermost

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Official(nn.Module):
    def __init__(self, dim, levels):
        super().__init__()
        self.model = Level([3, dim, 2 * dim, 4 * dim] + [8 * dim] * (levels - 3))

    def forward(self, x):
        return self.model(x)


def randomise(model):
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.1 if value.dim() == 1 else value * 5)


@pytest.mark.parametrize("size, levels", [(32, 5), (64, 6), (128, 7)])
def test_official_weights_load_and_mean_the_same(size, levels):
    ours, theirs = gan.Generator(size, 2).double(), Official(2, levels).double()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for layer in ours.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    x = torch.rand(1, 3, size, size, dtype=torch.float64) * 2 - 1
    assert (ours(x) - theirs(x)).abs().max() < 1e-9
    ours.model.model[1].model[2].weight.data *= 1.01
    assert (ours(x) - theirs(x)).abs().max() > 1e-6


def test_sizes_of_the_paper():
    generator, discriminator = gan.Generator(256, 64), gan.Discriminator(6, 64)
    assert size_of(generator) == 54_413_955 and size_of(discriminator) == 2_768_705
    widths = [64, 128, 256, 512, 512, 512, 512, 512]
    down = 16 * sum(n * m for n, m in pairwise([3, *widths]))
    wide = [2 * n for n in widths[:-1]] + [512]  # of what comes up, the lower maps and the skips
    up = 16 * sum(n * m for n, m in zip(wide, [3, *widths], strict=False)) + 3
    norms = 2 * (sum(widths[1:-1]) + sum(widths[:-1]))
    assert size_of(generator) == down + up + norms
    drops = [at for at, m in generator.named_modules() if isinstance(m, nn.Dropout)]
    assert len(drops) == 3
    assert generator(torch.rand(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    keys = [*discriminator.state_dict()]
    layers = sorted({int(key.split(".")[1]) for key in keys})
    assert layers == [0, 2, 3, 5, 6, 8, 9, 11] and "model.3.running_mean" in keys
    assert {"model.0.bias", "model.11.bias"} <= {*keys} and "model.2.bias" not in keys


def field(discriminator, size=256):
    """Side of the square of pixels that the score in the middle depends on; scores a side."""
    net = [m for m in discriminator.model if not isinstance(m, nn.BatchNorm2d)]
    x = torch.rand(1, 6, size, size, dtype=torch.float64, requires_grad=True)
    scores = nn.Sequential(*net).double()(x)
    middle = scores.shape[2] // 2
    (slope,) = torch.autograd.grad(scores[0, 0, middle, middle], x)
    rows, columns = (slope[0].abs().sum(0) > 0).nonzero().T
    assert rows.unique().numel() == columns.unique().numel()
    return rows.unique().numel(), scores.shape[2]


def test_a_patch_has_70_pixels_a_side():
    discriminator = gan.Discriminator(6, 2)
    assert field(discriminator) == (70, 30)
    discriminator.model[8].stride = (2, 2)  # as PyTorch-GAN has it
    assert field(discriminator)[0] == 94


def first_weights():
    torch.manual_seed(0)
    for layer in [*gan.Generator(64, 16).modules(), *gan.Discriminator(6, 16).modules()]:
        if isinstance(layer, nn.BatchNorm2d):
            assert abs(layer.weight.mean() - 1) < 0.02 and (layer.bias == 0).all()
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            n = layer.weight.numel()
            assert abs(layer.weight.std() / 0.02 - 1) < 4 / math.sqrt(2 * n)
            assert layer.bias is None or (layer.bias == 0).all()


@pytest.mark.parametrize("right, wrong", [("0.0, 0.02", "0.0, 0.03"), ("1.0, 0.02", "0.0, 0.02")])
def test_first_weights(monkeypatch, right, wrong):
    first_weights()
    space = dict(vars(gan))
    exec(inspect.getsource(gan.init_weights).replace(right, wrong), space)
    monkeypatch.setattr(gan, "init_weights", space["init_weights"])
    with pytest.raises(AssertionError):
        first_weights()


def test_norm_is_by_the_images_at_hand_in_every_mode():
    norm = gan.BatchNorm2d(4)
    x = torch.rand(1, 4, 5, 5) * 3 + 7
    whole = norm(x)
    assert whole.mean().abs() < 1e-5 and torch.equal(norm.eval()(x), whole)
    assert (norm.running_mean == 0).all() and norm.num_batches_tracked == 0
    theirs = nn.BatchNorm2d(4)
    assert torch.allclose(theirs(x), whole, atol=1e-6)
    assert not torch.allclose(theirs.eval()(x), whole, atol=0.1)  # what ruins the official images


def test_dropout_is_the_noise_and_samples_repeat():
    generator, _ = small(64)
    x = torch.rand(3, 3, 64, 64)
    assert not torch.equal(generator(x), generator(x))
    images = gan.sample(generator, x)
    assert torch.equal(gan.sample(generator, x), images)
    assert torch.equal(gan.sample(generator, x[:1]), images[:1])  # not a matter of its neighbours
    assert generator.training


def test_edges_find_their_way_round_the_bottleneck():
    generator, _ = small()
    deep = generator.model.model[1]
    for _ in range(3):
        deep = deep.model[3]
    with torch.no_grad():
        deep.model[1].weight.zero_()  # nothing comes out of 1x1 but a constant
    x = torch.rand(2, 3, 32, 32)
    assert (generator(x)[0] - generator(x)[1]).abs().max() > 1e-4
    skip = gan.UnetSkipConnectionBlock.forward
    with pytest.MonkeyPatch.context() as patch:
        bare = lambda self, x: torch.cat([0 * x, self.model(x)], 1)  # noqa: E731
        patch.setattr(gan.UnetSkipConnectionBlock, "forward", bare)
        assert (generator(x)[0] - generator(x)[1]).abs().max() < 1e-6
    assert gan.UnetSkipConnectionBlock.forward is skip


# --- losses and steps ----------------------------------------------------------------------------
def losses():
    real, fake = torch.randn(2, 2, 1, 3, 3).double()
    d = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    assert (gan.d_loss(real, fake) - d).abs() < 1e-9
    assert (gan.g_loss(fake) + torch.sigmoid(fake).log().mean()).abs() < 1e-9
    y, y_hat = torch.rand(2, 2, 3, 4, 4).double()
    brute = sum(abs(p - q) for p, q in zip(y.flatten(), y_hat.flatten(), strict=True)) / y.numel()
    assert (gan.pixel_loss(y, y_hat) - brute).abs() < 1e-9
    assert gan.d_loss(torch.tensor([1e4]), torch.tensor([-1e4])) == 0
    assert torch.isfinite(gan.d_loss(torch.tensor([-1e4]), torch.tensor([1e4])))


@pytest.mark.parametrize("name", ["d_loss", "g_loss", "pixel_loss"])
def test_losses(monkeypatch, name):
    losses()
    right = getattr(gan, name)
    monkeypatch.setattr(gan, name, lambda *x: 1.01 * right(*x))
    with pytest.raises(AssertionError):
        losses()


def batch(n=2):
    torch.manual_seed(1)
    return gan.scale(gan.draw_maps(n, 32)).chunk(2, 1)


AMP = torch.autocast("cpu", torch.bfloat16, enabled=False)


def gradients(model, loss):
    return torch.autograd.grad(loss, [*model.parameters()])


def steps():
    """Are the steps those of SGD on (2) / 2 and on (5)?"""
    generator, discriminator = small()
    x, y = batch()
    y_hat = generator(x)
    score = {key: discriminator(torch.cat([x, v], 1)) for key, v in (("y", y), ("g", y_hat))}
    loss = -torch.sigmoid(score["y"]).log().mean() - (1 - torch.sigmoid(score["g"])).log().mean()
    wanted = gradients(discriminator, loss / 2)
    before = [p.detach().clone() for p in discriminator.parameters()]
    sgd = torch.optim.SGD(discriminator.parameters(), 1.0)
    said = gan.d_step(discriminator, sgd, x, y, y_hat, AMP)
    assert (said - loss).abs() < 1e-5 and not said.requires_grad
    for p, old, g in zip(discriminator.parameters(), before, wanted, strict=True):
        assert torch.allclose(old - p, g, atol=1e-6)
    assert all(p.grad is None for p in generator.parameters())
    score = discriminator(torch.cat([x, y_hat], 1))  # by D after its step
    loss = -torch.sigmoid(score).log().mean()
    wanted = gradients(generator, loss + 7.0 * (y - y_hat).abs().mean())
    y_hat = generator(x)
    before = [p.detach().clone() for p in generator.parameters()]
    kept = [p.grad.clone() for p in discriminator.parameters()]
    sgd = torch.optim.SGD(generator.parameters(), 1.0)
    said = gan.g_step(discriminator, sgd, x, y, y_hat, 7.0, AMP)
    assert (said[0] - loss).abs() < 1e-5 and not said.requires_grad
    assert (said[1] - (y - y_hat).abs().mean()).abs() < 1e-6
    for p, old, g in zip(generator.parameters(), before, wanted, strict=True):
        assert torch.allclose(old - p, g, atol=1e-5)
    for p, old in zip(discriminator.parameters(), kept, strict=True):
        assert torch.equal(p.grad, old) and p.requires_grad  # D learns nothing from G's step


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("d_step", "(loss / 2)", "loss"),
        ("d_step", "y_hat.detach()", "y_hat"),
        ("g_step", "loss + lambda_pixel", "-loss + lambda_pixel"),
        ("g_step", "lambda_pixel * l1", "2 * lambda_pixel * l1"),
        ("g_step", "discriminator.requires_grad_(False)", "pass"),
        ("g_step", "[x, y_hat]", "[y_hat, x]"),
    ],
)
def test_steps(monkeypatch, name, right, wrong):
    steps()
    source = inspect.getsource(getattr(gan, name))
    assert right in source
    space = dict(vars(gan))
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(gan, name, space[name])
    with pytest.raises((AssertionError, RuntimeError)):
        steps()


def test_learning_rate():
    """The official schedule, 100 epochs at lr and 100 falling; and as often as one likes."""
    rates = [gan.learning_rate(2e-4, epoch, 100, 100) for epoch in range(300)]
    for epoch, rate in enumerate(rates[:200]):
        assert abs(rate - 2e-4 * (1.0 - max(0, epoch + 1 - 100) / 101)) < 1e-12
    assert {*rates[:100]} == {2e-4} and 0 < rates[199] < 2e-6 and {*rates[200:]} == {0.0}
    assert gan.learning_rate(1.0, 0, 0, 0) == 0.0 and gan.learning_rate(1.0, 5, 6, 0) == 1.0


def test_amp_trains(tmp_path):
    argv = ["--n_epochs", "1", "--dim", "2", "--img_size", "32", "--amp", "--device", "cpu"]
    assert gan.main([*argv, "--batch_size", "20", "--out", f"{tmp_path}"]) == 0
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["pixel"] > 0 and math.isfinite(row["d_loss"])


# --- data ----------------------------------------------------------------------------------------
def crops():
    """Every crop is a window of its image, mirrored or not, the same of input and truth."""
    x = torch.arange(2 * 3 * 40 * 40).view(2, 3, 40, 40).remainder(251).byte()
    x = torch.cat([x, 255 - x], 1)
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        for image, crop in zip(x, gan.jitter(x, 36), strict=True):
            assert torch.allclose(crop[:3], -crop[3:], atol=1e-6)  # both halves at one place
            windows = {
                (r, c, flip): gan.scale(image[:, r : r + 36, c : c + 36]).flip([2] * flip)
                for r in range(5)
                for c in range(5)
                for flip in (0, 1)
            }
            at = [key for key, window in windows.items() if torch.equal(window, crop)]
            assert len(at) == 1
            seen |= {("r", at[0][0]), ("c", at[0][1]), ("flip", at[0][2])}
    assert len(seen) == 12


def test_jitter():
    crops()


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("- size + 1", "- size"),
        ("x.flip(3)", "x.flip(2)"),
        ("torch.arange(len(x), device=x.device)", "torch.zeros(len(x)).long()"),
        ("x.flip(3), x)", "x.roll(3, 1).flip(3), x)"),
    ],
)
def test_jitter_broken(monkeypatch, right, wrong):
    source = inspect.getsource(gan.jitter)
    assert right in source
    space = dict(vars(gan))
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(gan, "jitter", space["jitter"])
    with pytest.raises(AssertionError):
        crops()


def put(path, colour, size=(80, 40), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour[0])
    image.paste(colour[1], (size[0] // 2, 0, size[0], size[1]))
    image.convert(mode).save(path)


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize("layout", ["beside", "apart"])
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_layouts_of_a_folder(tmp_path, layout, direction):
    for part, n in (("train", 3), ("test", 2)):
        for at in range(n):
            if layout == "beside":
                put(tmp_path / part / f"{at}.png", (RED, (0, at, 255)))
            else:
                put(tmp_path / f"{part}A" / f"{at}.png", (RED, RED))
                put(tmp_path / f"{part}B" / f"{at}.png", ((0, at, 255),) * 2)
    argv = ["--dataset", "folder", "--data_root", f"{tmp_path}", "--img_size", "128"]
    pairs, test = gan.load_data(args_of(*argv, "--direction", direction))
    assert pairs.shape == (3, 6, 143, 143) and test.shape == (2, 6, 128, 128)
    assert pairs.dtype == torch.uint8
    a, b = pairs.chunk(2, 1) if direction == "AtoB" else pairs.chunk(2, 1)[::-1]
    assert (a[:, 0] == 255).all() and (a[:, 1:] == 0).all()
    assert (b[:, 2] == 255).all() and (b[:, 1] == torch.arange(3)[:, None, None]).all()


def test_256_pixels_are_cut_from_286(tmp_path):
    for part in ("train", "test"):
        put(tmp_path / f"facades/{part}/1.jpg", (RED, BLUE), (512, 256))
    args = args_of("--config", "facades", "--data_root", f"{tmp_path}")
    pairs, test = gan.load_data(args)
    assert pairs.shape == (1, 6, 286, 286) and test.shape == (1, 6, 256, 256)
    assert (pairs[0, :3].float().mean((1, 2)) - torch.tensor([0.0, 0, 255])).abs().max() < 3
    assert (args.batch_size, args.dim, args.direction) == (1, 64, "BtoA")
    assert (args.lr, args.b1, args.b2, args.lambda_pixel) == (2e-4, 0.5, 0.999, 100.0)
    assert (args.n_epochs, args.decay_epoch, args.decay_epochs) == (200, 100, 100)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    put(tmp_path / "a.png", (RED, RED), mode=mode)
    names, x = gan.load_images(tmp_path, 32)
    assert names == ["a"] and x.shape == (1, 3, 32, 32)


def test_mistakes_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--dataset", "folder", "--data_root", "maps", "--device", "cpu"]
    mistake(PATH, *argv, about="maps/train holds no images")
    put(tmp_path / "maps/trainA/1.png", (RED, RED))
    put(tmp_path / "maps/trainB/2.png", (RED, RED))
    mistake(PATH, *argv, about="trainA and trainB differ")
    put(tmp_path / "maps/trainB/1.png", (RED, RED))
    (tmp_path / "maps/trainB/2.png").write_text("no image")
    mistake(PATH, *argv, about="maps/trainB/2.png cannot be read")
    (tmp_path / "maps/trainB/2.png").unlink()
    mistake(PATH, *argv, about="maps/test holds no images")
    mistake(PATH, "--dataset", "facades", "--data_root", "maps", about="facades/train holds no")
    mistake(PATH, "--img_size", "100", about="--img_size")


def test_held_out_pairs_are_not_learned_from():
    pairs, test = gan.load_data(args_of("--img_size", "32"))
    scaled = nn.functional.interpolate(pairs.float(), (32, 32))
    assert torch.cdist(test.float().flatten(1), scaled.flatten(1)).min() > 1000
    assert inspect.getsource(gan.train).count("test") == 4  # read, judged twice, its pictures


def test_shapes_are_what_their_labels_say():
    torch.manual_seed(0)
    x, y = gan.draw_maps(200, 32).chunk(2, 1)
    label = torch.tensor(gan.COLOURS["A"])
    kinds = (x[:, None] == label[..., None, None]).all(2)  # (N, 4, S, S)
    assert (kinds.sum(1) == 1).all()
    assert all(0.05 < share < 0.9 for share in kinds.float().mean((0, 2, 3)))
    for k, colour in enumerate(gan.COLOURS["B"]):
        shades = y.movedim(1, 3)[kinds[:, k]].unique(dim=0).tolist()
        assert sorted(shades) == [colour] + [[v + 50 for v in colour]] * (k > 0)
    row = y[:, 0].float()
    stripes = [(row.diff(dim=d) != 0).float() for d in (1, 2)]
    inside = [
        [(k[:, 1:] & k[:, :-1]), (k[:, :, 1:] & k[:, :, :-1])] for k in kinds[:, 1:].unbind(1)
    ]
    change = [[s[i].mean().item() for s, i in zip(stripes, at, strict=True)] for at in inside]
    assert [[round(2 * c) for c in at] for at in change] == [[1, 0], [0, 1], [1, 1]]


# --- judging, the run ----------------------------------------------------------------------------
class Cheat(nn.Module):
    def __init__(self, answers):
        super().__init__()
        self.answers = iter(answers)

    def forward(self, x):
        return next(self.answers)[None]


def judged(y_hat, pairs, *argv):
    return gan.evaluate(args_of("--img_size", "32", *argv), Cheat(y_hat), pairs)


def met(metrics):
    return {key: lo <= metrics[key] <= hi for key, (lo, hi) in gan.BARS.items() if key in metrics}


def test_no_cheat_meets_all_bars():
    _, pairs = gan.load_data(args_of("--img_size", "32"))
    x, y = gan.scale(pairs).chunk(2, 1)
    truth = judged(y, pairs)
    assert truth == {"l1": 0.0, "things": 1.0, "ground": 1.0} and all(met(truth).values())
    ground = gan.scale(torch.tensor(gan.COLOURS["B"][0]))[:, None, None]
    cheats = {
        "the input": x,
        "the mean image": y.mean(0).expand_as(y),
        "another truth": y.roll(1, 0),
        "nothing but ground": ground.expand_as(y),
        "moved by three pixels": y.roll((3, 3), (2, 3)),
        "other colours": y[:, [1, 2, 0]],
        "too dark": (y - 0.3).clamp(-1),
    }
    for name, images in cheats.items():
        assert not all(met(judged(images, pairs)).values()), name
    assert not met(judged(cheats["the input"], pairs))["things"]
    assert not met(judged(cheats["moved by three pixels"], pairs))["ground"]
    back = pairs.roll(3, 1)
    assert judged(x, back, "--direction", "BtoA")["ground"] == 1.0
    assert judged(y, back, "--direction", "BtoA")["things"] < 0.5


ARGV = ["--dim", "2", "--img_size", "32", "--batch_size", "100", "--sample_interval", "2"]
ARGV += ["--lr", "1e-3", "--decay_epoch", "1", "--decay_epochs", "2", "--device", "cpu"]


def test_resume_is_exact_and_predict_translates(tmp_path, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert gan.main([*ARGV, "--n_epochs", "4", "--out", f"{whole}"]) == 0
    assert gan.main([*ARGV, "--n_epochs", "2", "--out", f"{halves}"]) == 0
    assert gan.main([*ARGV, "--n_epochs", "4", "--out", f"{halves}", "--resume"]) == 0
    a, b = (torch.load(out / "last.pt", weights_only=True) for out in (whole, halves))
    for part in ("generator", "discriminator"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    assert a["optimizer_g"]["param_groups"][0]["lr"] == 1e-3 * (1 - 3 / 3)
    name = "samples_0004.png"
    assert (whole / name).read_bytes() == (halves / name).read_bytes()
    assert Image.open(whole / name).size == (3 * 34 + 2, 6 * 34 + 2)
    rows = [json.loads(row) for row in (whole / "log.jsonl").read_text().splitlines()]
    assert [*rows[3]] == ["epoch", "d_loss", "g_loss", "pixel", "l1", "things", "ground"]
    put(tmp_path / "new/a.png", (RED, BLUE), (50, 70))
    put(tmp_path / "new/b.png", (BLUE, RED))
    capsys.readouterr()
    assert gan.main([*ARGV, "--predict", f"{tmp_path}/new", "--out", f"{whole}"]) == 0
    assert capsys.readouterr().out == f"{whole}/a.png\n{whole}/b.png\n"
    one = [*ARGV, "--predict", f"{tmp_path}/new/b.png", "--out", f"{tmp_path}/other"]
    assert gan.main([*one, "--weights", f"{whole}/last.pt"]) == 0
    assert (tmp_path / "other/b.png").read_bytes() == (whole / "b.png").read_bytes()
    assert Image.open(whole / "a.png").size == (32, 32)
    assert (whole / "a.png").read_bytes() != (whole / "b.png").read_bytes()


def test_facades(data_root):
    pairs, test = gan.load_data(args_of("--config", "facades", "--data_root", f"{data_root}"))
    assert len(pairs) >= 200 and len(test) >= 50
    labels, photos = test.float().chunk(2, 1)  # labels, on the right, are flat
    flat = [(x.diff(dim=3).abs().sum(1) < 12).float().mean() for x in (labels, photos)]
    assert flat[0] > 0.6 > flat[1]
