"""resnet.py: counts, shapes, the data and the flags that the classifiers share."""

import io
import itertools

import numpy as np
import pytest
import torch
from house import call, load, mistake
from PIL import Image
from torch import nn
from unpack_cifar import unpack

mod = load("vision/resnet.py")
PATH = mod.Path(mod.__file__)
QUICK = ["--n_epochs", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arguments(*flags):
    return mod.parse_args([*flags, "--device", "cpu"])


def size(config, n_classes):
    args = arguments("--config", config)
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, n_classes)
    return sum(p.numel() for p in model.parameters())


# --- architecture --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "n_classes", "count"),
    [
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet101", 1000, 44_549_160),
        ("resnet152", 1000, 60_192_808),
        ("resnet18_cifar", 10, 11_173_962),
        ("resnet20", 10, 272_474),
        ("resnet56", 10, 855_770),
    ],
)
def test_parameter_counts(config, n_classes, count):
    assert size(config, n_classes) == count


def test_zero_f_passes_the_input_on():
    basic, bottleneck = mod.BasicBlock(8, 8, 1), mod.Bottleneck(32, 8, 1)
    for block, last in ((basic, basic.bn2), (bottleneck, bottleneck.bn3)):
        x = torch.randn(2, block.n_out, 5, 5)
        nn.init.zeros_(last.weight)
        assert torch.equal(block(x), x.relu())
        nn.init.constant_(last.weight, 0.01)
        assert not torch.equal(block(x), x.relu())


def test_gradient_gets_past_the_blocks():
    """Through 40 blocks it stays as it was; without the shortcuts it is lost."""
    torch.manual_seed(0)

    def slope(residual):
        x = leaf = torch.randn(4, 8, 6, 6).requires_grad_()
        for _ in range(40):
            conv = nn.Conv2d(8, 8, 3, padding=1)
            x = conv(x) / 4 + (x if residual else 0)
        return torch.autograd.grad(x.square().mean().sqrt(), leaf)[0].norm().item()

    assert slope(True) > 1e6 * slope(False)


# --- schedule, optimizer, augmentation -----------------------------------------------------------
def test_rate_rises_then_falls():
    assert mod.rate(0.5, 10, 2) == 0.25 and mod.rate(2, 10, 2) == 1
    assert mod.rate(6, 10, 2) == pytest.approx(0.5) and mod.rate(10, 10, 2) == pytest.approx(0)
    rates = [mod.rate(at / 10, 10, 2) for at in range(20, 101)]
    assert all(a > b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_only_matrices_decay(kind):
    args = arguments("--optimizer", kind, "--lr", "0.1", "--weight_decay", "0.5")
    model = mod.build(args, 10)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = mod.make_optimizer(args, model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        heavy = "conv" in name or name in ("fc.weight", "layer2.0.downsample.0.weight")
        heavy |= name == "layer3.0.downsample.0.weight"
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if heavy else 1.0))


def test_augment_moves_and_mirrors():
    x = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(400, 1, 1, 1)
    assert torch.equal(mod.augment(x, 0, False), x)
    torch.manual_seed(0)
    padded, seen = nn.functional.pad(x[0, 0], [2] * 4), set()
    windows = {
        (r, c, f): padded[r : r + 8, c : c + 8].flip(1) if f else padded[r : r + 8, c : c + 8]
        for r, c, f in itertools.product(range(5), range(5), (False, True))
    }
    for image in mod.augment(x, 2, True):
        seen |= {key for key, window in windows.items() if torch.equal(window, image[0])}
    assert seen == windows.keys()
    colours = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(mod.augment(colours, 0, False), colours)


def test_standardise_is_imagenets():
    from torchvision.transforms import Normalize

    x = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    want = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(x / 255)
    torch.testing.assert_close(mod.standardise(x), want)
    assert mod.standardise(x[:, :1]).shape == (2, 1, 4, 4)


# --- data ----------------------------------------------------------------------------------------
def paint(root, classes=("cat", "dog"), n=12, side=(20, 24)):
    """A folder of images of a class each: dark and bright ones."""
    for label, name in enumerate(classes):
        folder = mod.Path(root, name)
        folder.mkdir(parents=True)
        for at in range(n):
            Image.new("RGB", side, (60 + 120 * label + at,) * 3).save(folder / f"{at}.png")


def test_folder_is_split_in_five_parts():
    paint("pets")
    args = arguments("--dataset", "folder", "--data_root", "pets", "--img_size", "16")
    torch.manual_seed(0)
    (x, y), (x_test, y_test), names = mod.load_data(args)
    assert names == ["cat", "dog"] and len(x) + len(x_test) == 24 and 1 <= len(x_test) <= 10
    assert x.dtype == torch.uint8 and x.shape[1:] == (3, 16, 16)
    for images, labels in ((x, y), (x_test, y_test)):
        assert torch.equal(images[:, 0, 0, 0] >= 150, labels == 1)


@pytest.mark.parametrize("held", ["test", "val"])
def test_folder_with_a_split_of_its_own(held):
    paint("pets/train")
    paint(f"pets/{held}", n=3)
    args = arguments("--dataset", "folder", "--data_root", "pets", "--img_size", "16")
    (x, _), (x_test, y_test), names = mod.load_data(args)
    assert (len(x), len(x_test), names) == (24, 6, ["cat", "dog"])
    assert torch.equal(x_test[:, 0, 0, 0] >= 150, y_test == 1)


def test_digits_are_whole_and_seeded():
    args = arguments()
    torch.manual_seed(0)
    (x, y), (x_test, _), names = mod.load_data(args)
    assert (len(x), len(x_test), len(names)) == (1437, 360, 10) and x.shape[1:] == (1, 8, 8)
    assert int(x.max()) == 255 and y.bincount().min() > 100
    torch.manual_seed(0)
    assert torch.equal(mod.load_data(args)[1][0], x_test)
    assert mod.load_data(arguments("--channels", "3", "--img_size", "16"))[0][0].shape == (
        1437,
        3,
        16,
        16,
    )


def test_exif_rotation_and_odd_modes():
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 16, 8))  # blue above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save("turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (30, 20), (10, 20, 30, 0)).save("alpha.png")
    Image.new("P", (20, 30)).save("palette.png")
    args = arguments("--dataset", "folder", "--img_size", "16")
    x = mod.read_images([mod.Path(p) for p in ("turned.jpg", "alpha.png", "palette.png")], args)
    assert x.shape == (3, 3, 16, 16)
    assert x[0, 0, :6].float().mean() > 200 and x[0, 2, 10:].float().mean() > 200


def test_unreadable_image_is_named():
    paint("pets")
    mod.Path("pets/cat/3.png").write_bytes(b"no image")
    mistake(PATH, "--dataset", "folder", "--data_root", "pets", *QUICK, about="3.png")
    mod.Path("classes.txt").write_text("\n".join("0123456789"), encoding="utf-8")
    mistake(PATH, "--predict", "pets/cat/3.png", "--weights", weights("w.pt"), about="3.png")


def test_jpeg_cifar_becomes_a_folder():
    random, files = np.random.default_rng(0), []
    mod.Path("stored").mkdir()
    for part, n in ("train", 30), ("test", 10):
        files = [io.BytesIO() for _ in range(n)]
        label = np.arange(n) % 10
        for file, k in zip(files, label, strict=True):
            pixels = np.full((32, 32, 3), 20 * k + 10) + random.integers(0, 5, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(file, "jpeg")
        jpeg = [np.frombuffer(file.getvalue(), np.uint8) for file in files]
        offset = np.cumsum([0, *map(len, jpeg)])
        np.savez(f"stored/{part}.npz", jpeg=np.concatenate(jpeg), offset=offset, label=label)
    unpack("stored", "photos")
    flags = ["--dataset", "folder", "--data_root", "photos", "--img_size", "32"]
    (x, y), (x_test, _), names = mod.load_data(arguments(*flags))
    assert (len(x), len(x_test), names[0], names[9]) == (30, 10, "airplane", "truck")
    assert torch.equal(x.float().mean((1, 2, 3)).div(20).long(), y)


def test_folder_of_one_class():
    paint("pets", classes=("cat",), n=30)
    mistake(PATH, "--dataset", "folder", "--data_root", "pets", *QUICK, about="--data_root")


# --- weights, predict ----------------------------------------------------------------------------
def weights(path, n_classes=10, **flags):
    typed = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    torch.manual_seed(7)
    torch.save(mod.build(arguments(*typed), n_classes).state_dict(), path)
    return path


def test_head_of_other_classes_starts_anew(capsys):
    args = arguments("--weights", weights("seven.pt", n_classes=7))
    saved, model = torch.load("seven.pt"), mod.build(args, 10)
    told = "--weights seven.pt: fc.weight knows 7 classes, not 10: it is left out\n"
    assert capsys.readouterr().err == told
    assert model.fc.anew and len(model.fc.weight) == 10
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items() if "fc" not in k)
    same = mod.build(args, 7)
    assert not same.fc.anew and torch.equal(same.fc.weight, saved["fc.weight"])


def test_only_the_head_may_differ():
    mistake(PATH, "--weights", weights("wide.pt", width=8), *QUICK, about="--weights")


def test_predict_after_training():
    code, _, err = call(PATH, "--n_epochs", "4", "--device", "cpu")
    assert code == 0, err
    x, y = mod.load_data(arguments())[0]
    mod.Path("seen").mkdir()
    for k in range(10):
        Image.fromarray(x[y == k][0, 0].numpy()).save(f"seen/{k}.png")
    code, out, err = call(PATH, "--predict", "seen", "--device", "cpu")
    rows = out.splitlines()
    assert code == 0 and len(rows) == 10, err
    assert sum(row.split()[1] == row.split("/")[1][0] for row in rows) >= 8  # path, likeliest class
    assert all(len(row.split("  ")) == 6 and "%" in row for row in rows)
    assert mod.Path("out/resnet/explained.png").exists()
    code, out, _ = call(PATH, "--predict", "seen/3.png", "--device", "cpu")
    assert code == 0 and len(out.splitlines()) == 1


def test_predict_with_imagenets_names():
    Image.new("RGB", (300, 200), (90, 120, 30)).save("photo.jpg")
    made = weights("official.pth", 1000, config="resnet18", width=4)
    flags = ["--config", "resnet18", "--width", "4", "--weights", made, "--device", "cpu"]
    code, out, err = call(PATH, *flags, "--predict", "photo.jpg")
    from torchvision.models import ResNet18_Weights

    assert code == 0, err
    assert out.split("  ")[1].rsplit(" ", 1)[0] in ResNet18_Weights.DEFAULT.meta["categories"]
    mistake(PATH, "--weights", weights("ten.pt"), "--predict", "photo.jpg", about="classes.txt")
    mistake(PATH, *flags, "--predict", "nothing.jpg", about="--predict")


# --- what the net looks at -----------------------------------------------------------------------
def test_grad_cam_by_hand():
    """With one map and one class the explanation is that map, rectified and scaled."""
    torch.manual_seed(0)
    model = mod.build(arguments(), 10).eval()
    x = torch.randn(3, 1, 8, 8)
    seen = mod.explain(model, x)
    assert seen.shape == (3, 8, 8) and seen.min() >= 0 and seen.amax((1, 2)).max() == 1
    maps = model.features(x)
    best = model.classify(maps).argmax(1)
    weight = model.fc.weight[best] / maps.shape[2] ** 2  # of the mean over places: (B, D)
    want = torch.einsum("bd,bdhw->bhw", weight, maps).relu()
    want = nn.functional.interpolate(want[:, None], (8, 8), mode="bilinear")[:, 0]
    want = want / want.amax((1, 2), keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(seen, want.detach())


def test_amp_and_adamw_train():
    flags = ["--amp", "--optimizer", "adamw", "--lr", "0.005", "--pad", "1", "--n_epochs", "3"]
    code, out, err = call(PATH, *flags, "--block", "bottleneck", "--width", "8", "--device", "cpu")
    assert code == 0, err
    assert float(out.split()[-1]) > 0.6
