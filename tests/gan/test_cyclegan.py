"""cyclegan.py: the official networks, the pool by simulation, there and back, unpaired images."""

import inspect
import json
import math

import pytest
import torch
from house import ROOT, load, mistake
from PIL import Image
from torch import nn

gan, paired = load("gan/cyclegan.py"), load("gan/pix2pix.py")
PATH = ROOT / "gan/cyclegan.py"
AMP = torch.autocast("cpu", torch.bfloat16, enabled=False)


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def players():
    torch.manual_seed(5)
    generator = nn.ModuleList(gan.Generator(1, 2) for _ in range(2))
    return generator, nn.ModuleList(gan.Discriminator(3, 2) for _ in range(2))


def batch(n=2):
    torch.manual_seed(1)
    return gan.scale(gan.draw_maps(n, 32)).chunk(2, 1)


# --- the networks --------------------------------------------------------------------------------
def reference(w, x, n_blocks):
    """The official generator on its state dict, reflection and instance norm by hand."""

    def reflect(x, p):
        i = torch.arange(-p, x.shape[2] + p).abs()
        i = torch.where(i >= x.shape[2], 2 * x.shape[2] - 2 - i, i)
        return x[:, :, i][:, :, :, i]

    def conv(at, x, norm=True, up=False, **how):
        function = nn.functional.conv_transpose2d if up else nn.functional.conv2d
        x = function(x, w[f"model.{at}.weight"], w[f"model.{at}.bias"], **how)
        mean, var = x.mean((2, 3), True), x.var((2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() if norm else x

    x = conv(1, reflect(x, 3)).relu()
    for at in (4, 7):
        x = conv(at, x, stride=2, padding=1).relu()
    for at in range(10, 10 + n_blocks):
        h = conv(f"{at}.conv_block.1", reflect(x, 1)).relu()
        x = x + conv(f"{at}.conv_block.5", reflect(h, 1))
    for at in (10 + n_blocks, 13 + n_blocks):
        x = conv(at, x, up=True, stride=2, padding=1, output_padding=1).relu()
    return conv(17 + n_blocks, reflect(x, 3), norm=False).tanh()


@pytest.mark.parametrize("n_blocks", [1, 9])
def test_official_names_and_what_they_mean(n_blocks):
    model = gan.Generator(n_blocks, 2).double()
    for p in model.parameters():
        nn.init.normal_(p, 0.0, 0.3)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    w = model.state_dict()
    assert len(w) == 2 * (6 + 2 * n_blocks)  # no more than reference() reads
    assert (model(x) - reference(w, x, n_blocks)).abs().max() < 1e-9
    w["model.10.conv_block.5.weight"] = w["model.10.conv_block.5.weight"].flip(3)
    assert (model(x) - reference(w, x, n_blocks)).abs().max() > 1e-6


def test_sizes_of_the_paper():
    d, n = 64, 9
    count = 3 * d * 49 + d + sum(9 * m * 2 * m + 2 * m for m in (d, 2 * d))
    count += n * 2 * (9 * (4 * d) ** 2 + 4 * d)
    count += sum(9 * 2 * m * m + m for m in (2 * d, d)) + 3 * d * 49 + 3
    sizes = [sum(p.numel() for p in m.parameters()) for m in (gan.Generator(n, d),)]
    assert sizes == [count] == [11_378_179]
    discriminator = gan.Discriminator(3, 64)
    assert sum(p.numel() for p in discriminator.parameters()) == 2_764_737
    layers = sorted({int(key.split(".")[1]) for key in discriminator.state_dict()})
    assert layers == [0, 2, 5, 8, 11]
    args = args_of("--config", "summer2winter")
    assert (args.img_size, args.dim, args.n_residual_blocks, args.batch_size) == (256, 64, 9, 1)
    assert (args.lambda_cyc, args.lambda_id, args.pool_size) == (10.0, 5.0, 50)
    assert (args.lr, args.b1, args.n_epochs, args.decay_epoch) == (2e-4, 0.5, 200, 100)


def field(discriminator):
    net = [m for m in discriminator.model if not isinstance(m, nn.InstanceNorm2d)]
    x = torch.rand(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    scores = nn.Sequential(*net).double()(x)
    (slope,) = torch.autograd.grad(scores[0, 0, 15, 15], x)
    rows, _ = (slope[0].abs().sum(0) > 0).nonzero().T
    return rows.unique().numel(), scores.shape[2]


def test_a_patch_has_70_pixels_a_side():
    discriminator = gan.Discriminator(3, 2)
    assert field(discriminator) == (70, 30)
    discriminator.model[2].stride = (1, 1)
    assert field(discriminator)[0] != 70


def test_first_weights():
    torch.manual_seed(0)
    for layer in [*gan.Generator(2, 32).modules(), *gan.Discriminator(3, 32).modules()]:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            n = layer.weight.numel()
            assert abs(layer.weight.std() / 0.02 - 1) < 4 / math.sqrt(2 * n)
            assert (layer.bias == 0).all()
    assert not list(gan.Generator(2, 4).buffers())  # batch or no batch, eval or not


def test_images_do_not_meet_in_the_norm():
    generator = gan.Generator(1, 2)
    x = torch.rand(20, 3, 32, 32)
    images = gan.sample(generator, x)
    assert torch.allclose(gan.sample(generator, x[17:18]), images[17:18], atol=1e-6)


# --- the pool ------------------------------------------------------------------------------------
def numbered(first, n):
    return torch.arange(first, first + n).float().view(n, 1, 1, 1)


def simulate(size, batch, rounds):
    """How often a full pool answers with an old image, and the ages of those; checks the rest."""
    torch.manual_seed(0)
    pool, at, old, asked, ages = gan.ImagePool(size, torch.zeros(1, 1, 1, 1)), 0, 0, 0, []
    stored = []
    for _ in range(rounds):
        images = numbered(at, batch)
        answer = pool.query(images)
        assert answer.shape == images.shape
        for image, said in zip(images.flatten().tolist(), answer.flatten().tolist(), strict=True):
            if len(stored) < size:  # the first ones pass as they are, and stay
                assert said == image
                stored.append(image)
            elif said != image:  # an old one comes out once, the new one takes its place
                assert said in stored
                stored[stored.index(said)] = image
                old += 1
                ages.append(image - said)
            asked += at >= size
            at += 1
        assert pool.images.flatten().tolist() == stored
        images.fill_(-1.0)  # what came and what went are not what is kept
        answer.fill_(-1.0)
        assert -1.0 not in pool.images
    return old / max(asked, 1), torch.tensor(ages)


@pytest.mark.parametrize("batch", [1, 4])
def test_pool_mixes_old_with_new(batch):
    share, ages = simulate(20, batch, 6000 // batch)
    assert abs(share - 0.5) < 3 * 0.5 / math.sqrt(6000)
    # A slot is written with probability 1/40 per image: ages are geometric, 40 images on average.
    assert abs(ages.mean() - 40) < 3 * 40 / math.sqrt(len(ages))


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("< 0.5", "< 0.4"),
        ("torch.where(swap, new, old)", "new"),
        ("torch.where(swap, old, new)", "new"),
        (
            "torch.randperm(len(self.images), device=images.device)",
            "torch.arange(len(self.images))",
        ),
        (
            "torch.cat([self.images, first])",
            "torch.cat([self.images, first]) if len(first) else images",
        ),
    ],
)
def test_broken_pool_is_noticed(monkeypatch, right, wrong):
    source = inspect.getsource(gan.ImagePool)
    assert right in source
    space = dict(vars(gan))
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(gan, "ImagePool", space["ImagePool"])
    with pytest.raises((AssertionError, IndexError, RuntimeError, ValueError)):
        test_pool_mixes_old_with_new(1)


def test_pool_of_no_size_and_batches_larger_than_the_pool():
    images = numbered(0, 8)
    assert torch.equal(gan.ImagePool(0, images).query(images), images)
    pool = gan.ImagePool(3, images)
    assert torch.equal(pool.query(images)[:3], images[:3])
    answer = torch.cat([pool.query(numbered(8, 8)), pool.images]).flatten().tolist()
    assert len({*answer}) == 11  # none is lost, none is doubled


def test_pool_goes_through_a_checkpoint():
    pool, other = (gan.ImagePool(5, numbered(0, 1)) for _ in range(2))
    for at in range(3):
        pool.query(numbered(at * 4, 4))
    other.load_state_dict(pool.state_dict())
    answers = []
    for each in (pool, other):
        torch.manual_seed(0)
        answers.append([each.query(numbered(100 + 4 * at, 4)) for at in range(5)])
    assert all(map(torch.equal, *answers))


# --- losses and steps ----------------------------------------------------------------------------
class Same(nn.Module):
    def forward(self, x):
        return x


def test_networks_that_do_nothing_lose_nothing_but_to_d():
    _, discriminator = players()
    x, y = batch()
    bias = nn.Parameter(torch.zeros(()))
    sgd = torch.optim.SGD([bias], 0.0)

    def losses(change):
        class Change(Same):
            def forward(self, x):
                return change(x) + bias

        pair = nn.ModuleList([Change(), Change()])
        return gan.g_step(pair, discriminator, sgd, x, y, 10.0, 5.0, AMP)

    (loss, cycle), x_hat, y_hat = losses(lambda x: x)
    assert cycle == 0 and torch.equal(y_hat, x) and torch.equal(x_hat, y)
    d_x, d_y = discriminator
    assert torch.allclose(loss, (d_x(y) - 1).square().mean() + (d_y(x) - 1).square().mean())
    (_, cycle), *_ = losses(lambda x: -x)  # there and back is the same again, but not identity
    assert cycle == 0
    (_, cycle), *_ = losses(lambda x: x + 0.25)
    assert abs(cycle - 2 * 0.5) < 1e-5


def steps():
    """Are the steps those of SGD on (2) / 2 and on (5), each network written out by itself?"""
    generator, discriminator = players()
    (forth, back), (d_x, d_y) = generator, discriminator
    x, y = batch()
    x_hat, y_hat = back(y), forth(x)
    loss = (d_x(x_hat) - 1).square().mean() + (d_y(y_hat) - 1).square().mean()
    cycle = (back(y_hat) - x).abs().mean() + (forth(x_hat) - y).abs().mean()
    identity = (forth(y) - y).abs().mean() + (back(x) - x).abs().mean()
    whole = [*generator.parameters()]
    wanted = torch.autograd.grad(loss + 10 * cycle + 5 * identity, whole)
    before = [p.detach().clone() for p in whole]
    sgd = torch.optim.SGD(whole, 0.1)
    said, *fakes = gan.g_step(generator, discriminator, sgd, x, y, 10.0, 5.0, AMP)
    assert torch.allclose(said, torch.stack([loss, cycle]), atol=1e-5) and not said.requires_grad
    assert torch.allclose(fakes[0], x_hat, atol=1e-5) and torch.allclose(fakes[1], y_hat, atol=1e-5)
    assert not fakes[0].requires_grad and not fakes[1].requires_grad
    for p, old, g in zip(whole, before, wanted, strict=True):
        assert torch.allclose((old - p) / 0.1, g, atol=1e-4, rtol=1e-3)
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())
    loss = (d_x(x) - 1).square().mean() + d_x(fakes[0]).square().mean()
    loss = loss + (d_y(y) - 1).square().mean() + d_y(fakes[1]).square().mean()
    whole = [*discriminator.parameters()]
    wanted = torch.autograd.grad(loss / 2, whole)
    before = [p.detach().clone() for p in whole]
    said = gan.d_step(discriminator, torch.optim.SGD(whole, 1.0), (x, y), fakes, AMP)
    assert torch.allclose(said, loss, atol=1e-5) and not said.requires_grad
    for p, old, g in zip(whole, before, wanted, strict=True):
        assert torch.allclose(old - p, g, atol=1e-5)


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("d_step", "(loss / 2)", "loss"),
        ("d_step", "(discriminator, reals", "(discriminator[::-1], reals"),
        ("d_loss", "(real_score - 1)", "real_score"),
        ("d_loss", "fake_score.square().mean()", "fake_score.mean().square()"),
        ("g_loss", "(fake_score - 1)", "fake_score"),
        ("g_step", "lambda_cyc * cycle", "cycle"),
        ("g_step", "lambda_id * identity", "identity"),
        ("g_step", "pixel_loss(y, y_same)", "pixel_loss(x, y_same)"),
        ("g_step", "torch.cat([y, x])", "torch.cat([x, y])"),
        ("g_step", "back(y_hat), forth(x_hat)", "back(y_hat), forth(x)"),
        ("g_step", "discriminator[0](x_hat)", "discriminator[1](x_hat)"),
        ("g_step", "discriminator.requires_grad_(False)", "pass"),
    ],
)
def test_steps(monkeypatch, name, right, wrong):
    steps()
    source = inspect.getsource(getattr(gan, name))
    assert right in source
    space = vars(gan).copy()
    exec(source.replace(right, wrong), space)
    for key in ("d_loss", "g_loss"):  # a step that keeps its loss must be shown the broken one
        monkeypatch.setattr(gan, key, space[key])
    monkeypatch.setattr(gan, name, space[name])
    with pytest.raises(AssertionError):
        steps()


# --- data, judging, the run ----------------------------------------------------------------------
def put(path, colour, size=(80, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_sets_of_unlike_numbers(tmp_path, direction, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part, n in (("trainA", 3), ("trainB", 5), ("testA", 1), ("testB", 2)):
        for at in range(n):
            put(
                tmp_path / "sets" / part / f"{at}.png",
                (250, 0, 0) if part[-1] == "A" else (0, 0, 250),
            )
    argv = ["--dataset", "folder", "--data_root", "sets", "--img_size", "128", "--device", "cpu"]
    (x, y), test = gan.load_data(args_of(*argv, "--direction", direction))
    if direction == "BtoA":
        x, y, test = y, x, test[::-1]
    assert x.shape == (3, 3, 143, 143) and y.shape == (5, 3, 143, 143)
    assert (x[:, 0] == 250).all() and (y[:, 2] == 250).all() and (y[:, 0] == 0).all()
    assert [len(part) for part in test] == [1, 2] and test[0].shape[2:] == (128, 128)
    put(tmp_path / "sets/trainA/0.png", (0, 0, 0))
    (tmp_path / "sets/testB/0.png").write_text("no image")
    mistake(PATH, *argv, about="sets/testB/0.png cannot be read")
    (tmp_path / "sets/testB/0.png").unlink()
    (tmp_path / "sets/testB/1.png").unlink()
    mistake(PATH, *argv, about="sets/testB holds no images")
    mistake(PATH, "--dataset", "summer2winter", "--data_root", "sets", about="--data_root")


def judged(y_hat, test, back=None):
    answers = iter([y_hat, test[0] if back is None else back])

    class Says(nn.Module):
        def forward(self, x):
            return next(self.parts)

    forth, again = Says(), Says()
    for net, images in zip((forth, again), answers, strict=True):
        net.parts = iter(images.split(16))
    return gan.evaluate(args_of("--img_size", "32"), [forth, again], test)


def met(metrics):
    return {key: lo <= metrics[key] <= hi for key, (lo, hi) in gan.BARS.items() if key in metrics}


def test_no_cheat_meets_all_bars():
    _, test = gan.load_data(args_of("--img_size", "32"))
    x, y = map(gan.scale, test)
    truth = judged(y, test, x)
    assert truth == {"cycle": 0.0, "things": 1.0, "ground": 1.0} and all(met(truth).values())
    cheats = {
        "the input": x,
        "another truth": y.roll(1, 0),
        "the mean image": y.mean(0).expand_as(y),
        "nothing but ground": y.flatten(2).median(2)[0][..., None, None].expand_as(y),
        "inside out": -y,
        "moved by three pixels": y.roll((3, 3), (2, 3)),
        "other colours": y[:, [1, 2, 0]],
    }
    for name, images in cheats.items():
        assert not all(met(judged(images, test, x)).values()), name
    assert not met(judged(y, test, x.roll(1, 0)))["cycle"]


ARGV = ["--dim", "2", "--img_size", "32", "--n_residual_blocks", "1", "--batch_size", "100"]
ARGV += ["--sample_interval", "2", "--lr", "1e-3", "--pool_size", "110", "--device", "cpu"]


def test_resume_is_exact_and_both_ways_are_kept(tmp_path, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert gan.main([*ARGV, "--n_epochs", "2", "--out", f"{whole}"]) == 0
    assert gan.main([*ARGV, "--n_epochs", "1", "--out", f"{halves}"]) == 0
    assert gan.main([*ARGV, "--n_epochs", "2", "--out", f"{halves}", "--resume"]) == 0
    a, b = (torch.load(out / "last.pt", weights_only=True) for out in (whole, halves))
    for part in ("AtoB", "BtoA", "discriminator", "pool_x", "pool_y"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    assert a["pool_x"]["images"].shape == (110, 3, 32, 32)
    assert not torch.equal(a["pool_x"]["images"], a["pool_y"]["images"])
    row = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])
    assert [*row] == ["epoch", "d_loss", "g_loss", "cyc", "cycle", "things", "ground"]
    assert Image.open(whole / "samples_0002.png").size == (3 * 34 + 2, 6 * 34 + 2)
    put(tmp_path / "new/a.png", (250, 10, 20))
    predict = [*ARGV, "--predict", f"{tmp_path}/new"]
    for direction in ("AtoB", "BtoA"):
        out, file = tmp_path / direction, tmp_path / f"{direction}.pt"
        way = ["--direction", direction]
        assert gan.main([*predict, *way, "--weights", f"{whole}/last.pt", "--out", f"{out}"]) == 0
        torch.save(a[direction], file)  # bare, as the official ones are
        assert gan.main([*predict, *way, "--weights", f"{file}", "--out", f"{out}2"]) == 0
        assert (out / "a.png").read_bytes() == (tmp_path / f"{direction}2/a.png").read_bytes()
    assert (tmp_path / "AtoB/a.png").read_bytes() != (tmp_path / "BtoA/a.png").read_bytes()


def test_only_the_idea_differs_from_pix2pix():
    for name in ("draw_maps", "scale", "jitter", "picture", "learning_rate", "pixel_loss"):
        assert inspect.getsource(getattr(gan, name)) == inspect.getsource(getattr(paired, name))


def test_amp_trains(tmp_path):
    argv = [*ARGV, "--n_epochs", "1", "--amp", "--out", f"{tmp_path}"]
    assert gan.main(argv) == 0
    assert math.isfinite(json.loads((tmp_path / "log.jsonl").read_text())["d_loss"])


def test_summer2winter(data_root):
    args = args_of("--config", "summer2winter", "--img_size", "128", "--data_root", f"{data_root}")
    (x, y), test = gan.load_data(args)
    assert min(len(x), len(y)) >= 500 and min(map(len, test)) >= 100
    assert x.shape[1:] == (3, 143, 143)
