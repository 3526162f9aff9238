"""Identities of autoencoder_kl.py: each equation against a brute-force restatement in float64."""

import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake
from PIL import Image

kl = load("diffusion/autoencoder_kl.py")
SCRIPT = ROOT / "diffusion/autoencoder_kl.py"
F64 = torch.float64
TINY = shlex.split("--base_channels 8 --channel_mult 1 2 --n_res_blocks 1 --batch_size 8")
TINY += shlex.split("--sample_interval 2 --n_samples 5 --n_test 8 --disc_start 2 --device cpu")


fit_classifier = kl.fit_classifier


@pytest.fixture(autouse=True)
def no_classifier(monkeypatch):
    """Random features do where only the machinery is looked at, and take no time."""
    monkeypatch.setattr(kl, "fit_classifier", lambda *_: None)


def tiny(*argv):
    torch.manual_seed(0)
    args = kl.parse_args([*TINY, *argv])
    parts = [part.double() for part in kl.build(args)]
    return args, *parts, torch.zeros((), dtype=F64, requires_grad=True)


def test_posterior():
    """Eqs. (31) to (33): clamp, spread of samples, and the KL of torch.distributions."""
    torch.manual_seed(0)
    moments = torch.randn(3, 8, 2, 2, dtype=F64)
    moments[0, 4:] = 100.0
    moments[1, 4:] = -100.0
    q = kl.DiagonalGaussian(moments)
    assert (q.logvar[0] == 20).all() and (q.logvar[1] == -30).all()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(q.mean, (q.logvar / 2).exp()), normal(0.0, 1.0)
    )
    assert torch.allclose(q.kl(), expected.sum((1, 2, 3)), rtol=1e-12)
    q = kl.DiagonalGaussian(torch.cat([torch.full((1, 2, 100, 100), v) for v in (2.0, -1.0)], 1))
    z = q.sample()
    assert z.mean().item() == pytest.approx(2, abs=0.02)
    assert z.std().item() == pytest.approx(math.exp(-0.5), rel=0.02)


def plain_reconstruction(x, x_hat, distance, s, lambda_p):
    """Eqs. (35) and (36), pixel after pixel."""
    total = 0.0
    for b in range(len(x)):
        for a, c in zip(x[b].flatten().tolist(), x_hat[b].flatten().tolist(), strict=True):
            total += (abs(a - c) + lambda_p * distance[b].item()) / math.exp(s) + s
    return total / len(x)


def test_reconstruction_loss():
    x, x_hat = torch.randn(2, 3, 2, 4, 4, dtype=F64)
    distance, s = torch.rand(3, dtype=F64), torch.tensor(0.3, dtype=F64)
    ours = kl.reconstruction_loss(x, x_hat, distance, s, 0.7).item()
    assert ours == pytest.approx(plain_reconstruction(x, x_hat, distance, 0.3, 0.7), rel=1e-12)
    for wrong in (x_hat, distance * 1.01, 0.3, 0.71), (x_hat, distance, 0.31, 0.7):
        assert ours != pytest.approx(plain_reconstruction(x, *wrong), rel=1e-6)


def test_hinge():
    real, fake = torch.randn(2, 4, 1, 3, 3, dtype=F64)
    pairs = zip(real.flatten().tolist(), fake.flatten().tolist(), strict=True)
    expected = sum(max(0, 1 - r) + max(0, 1 + f) for r, f in pairs) / 2 / 36
    assert kl.hinge_loss(real, fake).item() == pytest.approx(expected, rel=1e-12)
    assert kl.hinge_loss(real.abs() + 1, -fake.abs() - 1) == 0  # good enough is good enough
    assert kl.hinge_loss(fake, real) != kl.hinge_loss(real, fake)
    assert kl.adversarial_loss(fake).item() == pytest.approx(-fake.mean().item())


def slopes(model, function, weight):
    """Gradient by the last layer's weight, by central differences."""
    flat, out = weight.detach().flatten(), []
    for i in range(len(flat)):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight.view(-1)[i] += step
                values.append(function().item())
                weight.view(-1)[i] -= step
        out.append((values[0] - values[1]) / 2e-6)
    return torch.tensor(out, dtype=F64)


def test_adaptive_weight_against_brute_force():
    """Eq. (38): both gradients by finite differences at all the weights of the last layer."""
    _, model, discriminator, perceptual, s = tiny()
    discriminator.eval()
    x = torch.rand(2, 1, 8, 8, dtype=F64) * 2 - 1
    z = model.encode(x).mean.detach()
    weight = model.decoder.conv_out.weight
    with torch.no_grad():
        discriminator.main[-1].weight.mul_(100)  # or (38) would be clamped

    def rec():
        x_hat = model.decode(z)
        return kl.reconstruction_loss(x, x_hat, perceptual(x, x_hat), s, 1.0)

    def adv():
        return kl.adversarial_loss(discriminator(model.decode(z)))

    w = kl.adaptive_weight(rec(), adv(), weight).item()
    a, b = slopes(model, rec, weight).norm(), slopes(model, adv, weight).norm()
    assert w == pytest.approx((a / (b + 1e-4)).item(), rel=1e-5)
    assert abs(w - (a / b).item()) > 1e-5 * w  # the 1e-4 is felt
    small = kl.adaptive_weight(rec(), adv() * 1e-9, weight)
    assert small == 1e4  # clamped


def test_autoencoder_loss():
    """Eq. (39) from its parts; no KL in (38); the discriminator gets no gradient."""
    args, model, discriminator, perceptual, s = tiny("--kl_weight", "0.01")
    x = torch.rand(4, 1, 8, 8, dtype=F64) * 2 - 1
    results = {}
    for adversarial in (False, True):
        torch.manual_seed(1)
        parts = model, discriminator, perceptual, s, x, args, adversarial
        loss, row, x_hat = kl.autoencoder_loss(*parts)
        results[adversarial] = loss.item(), row.tolist()
        assert not x_hat.requires_grad
    loss.backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(p.requires_grad for p in discriminator.parameters())
    assert model.encoder.conv_in.weight.grad.abs().max() > 0 and s.grad is not None
    total, l1, distance, nats, adv, w = results[True][1]
    # at s = 0 the loss is the sum over 64 pixels
    assert results[False][0] == pytest.approx(64 * (l1 + distance) + 0.01 * nats, rel=1e-10)
    assert results[True][0] == pytest.approx(results[False][0] + 0.5 * w * adv, rel=1e-10)
    assert total == results[True][0] and w > 0
    assert results[False][1][4:] == [0, 0]


def test_perceptual_distance():
    """Eq. (34) cell by cell; 0 for equal images; blind to the contrast of a feature vector."""
    _, _, _, perceptual, _ = tiny()
    x, y = torch.randn(2, 2, 1, 8, 8, dtype=F64)
    expected = torch.zeros(2, dtype=F64)
    for a, b in zip(perceptual.features(x), perceptual.features(y), strict=True):
        for i in range(2):
            cells = [(r, c) for r in range(a.shape[2]) for c in range(a.shape[3])]
            for r, c in cells:
                u, v = a[i, :, r, c], b[i, :, r, c]
                u, v = (p / p.norm().clamp(min=1e-12) for p in (u, v))
                expected[i] += (u - v).square().sum() / len(cells)
    assert torch.allclose(perceptual(x, y), expected, rtol=1e-10)
    assert perceptual(x, x).abs().max() == 0


def test_classifier_learns_and_is_the_default():
    args = kl.parse_args(["--device", "cpu"])
    torch.manual_seed(0)
    (x, y), (test, labels) = kl.load_data(args)
    *_, perceptual = kl.build(args)
    before = [p.clone() for p in perceptual.parameters()]
    fit_classifier(perceptual, x, y)
    assert all(not torch.equal(a, b) for a, b in zip(before, perceptual.parameters(), strict=True))
    with torch.no_grad():  # its features tell the classes: nearest class mean
        ours, theirs = (perceptual.features(kl.to_model(p))[-1].mean((2, 3)) for p in (x, test))
    means = torch.stack([ours[y == k].mean(0) for k in range(10)])
    assert (torch.cdist(theirs, means).argmin(1) == labels).float().mean() > 0.75


def vgg_file(path):
    """A file laid out as torchvision's vgg16 weights are, small random numbers in it."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    layers = make_layers(cfgs["D"])
    saved = {f"features.{key}": value for key, value in layers.state_dict().items()}
    torch.save(saved | {"classifier.0.weight": torch.zeros(1)}, path)
    return layers


def test_vgg_features(tmp_path):
    """The outputs of relu1_2 ... relu5_3 on images normalised as ImageNet's, grey ones too."""
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.transforms.functional import normalize

    layers = vgg_file(tmp_path / "vgg16.pth")
    nodes = ["3", "8", "15", "22", "29"]
    oracle = create_feature_extractor(layers, nodes)
    perceptual = kl.vgg16_features(tmp_path / "vgg16.pth")
    assert not any(p.requires_grad for p in perceptual.parameters())
    for channels in (1, 3):
        x = torch.rand(2, channels, 32, 32)
        seen = normalize(x.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        expected = oracle(seen)
        ours = perceptual.features(2 * x - 1)
        assert [m.shape[1] for m in ours] == [64, 128, 256, 512, 512]
        for node, map_ in zip(nodes, ours, strict=True):
            gap = (map_ - expected[node]).abs().max()
            assert gap <= 1e-5 * expected[node].abs().max()


def test_vgg_weights_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": torch.zeros(1)}, "wrong.pth")
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    for name in ("wrong.pth", "text.pth", "missing.pth"):
        flags = ["--vgg_weights", name, "--dataset", "folder", "--device", "cpu"]
        (tmp_path / "in").mkdir(exist_ok=True)
        for i in range(20):
            Image.new("RGB", (70, 64)).save(tmp_path / "in" / f"{i}.png")
        mistake(SCRIPT, *flags, "--data_root", "in", about="--vgg_weights")


@pytest.mark.parametrize(("n_layers", "width"), [(1, 16), (2, 34), (3, 70)])
def test_patch_of_the_discriminator(n_layers, width):
    """A score depends on so many pixels in a row, and on no others."""
    torch.manual_seed(0)
    net = kl.PatchDiscriminator(1, 4, n_layers).double().eval()
    x = torch.randn(1, 1, 128, 128, dtype=F64, requires_grad=True)
    scores = net(x)
    middle = scores.shape[2] // 2
    scores[0, 0, middle, middle].backward()
    felt = x.grad[0, 0].abs() > 0
    assert felt.any(0).sum() == felt.any(1).sum() == width


def test_discriminator_is_the_official_one():
    """A PatchGAN of 64 filters and 3 layers on colour images, under the official names."""
    net = kl.PatchDiscriminator(3, 64, 3)
    assert sum(p.numel() for p in net.parameters()) == 2_765_633
    names = [key for key, _ in net.named_parameters()]
    assert names[0] == "main.0.weight" and names[-1] == "main.11.bias"


def test_every_pixel_of_the_latent_sees_the_whole_image():
    """Attention in the middle: no latent is local; without it, each would be."""
    _, model, *_ = tiny()
    torch.nn.init.normal_(model.encoder.mid_block.attentions[0].to_out[0].weight)
    x = torch.randn(1, 1, 32, 32, dtype=F64, requires_grad=True)

    def seen():
        (slope,) = torch.autograd.grad(model.encode(x).mean[0, 0, 0, 0], x)
        return (slope.abs() > 1e-15).sum().item()

    whole = seen()
    assert whole == 32 * 32
    model.encoder.mid_block.attentions[0] = torch.nn.Identity()
    for module in model.encoder.modules():  # whose statistics are of the whole image too
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda h: h
    assert seen() < 24 * 24


@pytest.mark.parametrize(
    ("config", "count", "shape"),
    [("f8", 83_653_863, (8, 4, 32)), ("f4", 55_312_063, (4, 3, 64)), ("mnist", None, (4, 4, 8))],
)
def test_configs(config, count, shape):
    """Numbers of parameters, and how far each config shrinks an image."""
    args = kl.parse_args(["--config", config])
    channels = kl.SIZES[args.dataset][1]
    numbers = args.base_channels, args.channel_mult, args.n_res_blocks
    with torch.device("meta"):
        model = kl.AutoencoderKL(channels, args.latent_channels, *numbers)
        z = model.encode(torch.zeros(1, channels, args.img_size, args.img_size)).mean
    assert count in (None, sum(p.numel() for p in model.parameters()))
    assert z.shape == (1, shape[1], shape[2], shape[2])
    assert args.img_size // shape[2] == shape[0] == 2 ** (len(args.channel_mult) - 1)


def run(*argv, out):
    code, _, err = call(SCRIPT, *TINY, *argv, "--out", out)
    assert code == 0, err
    return torch.load(Path(out, "last.pt"), weights_only=True), err


def test_discriminator_learns_only_after_its_start(tmp_path):
    """Steps 0 and 1 leave it alone, step 2 = disc_start moves it; a late start is warned of."""
    saved, err = run("--n_steps", "2", out=tmp_path / "a")
    fresh = kl.build(kl.parse_args(TINY))[1].state_dict()
    assert saved["optimizer_d"]["state"] == {}
    assert all(int(value) == 0 for key, value in saved["discriminator"].items() if "tracked" in key)
    assert fresh.keys() == saved["discriminator"].keys()
    assert "never reached" in err
    saved, err = run("--n_steps", "3", out=tmp_path / "b")
    assert all(part["step"] == 1 for part in saved["optimizer_d"]["state"].values())
    assert err == ""


def test_the_scale_is_learned_and_saved(tmp_path):
    saved, _ = run("--n_steps", "2", out=tmp_path)
    assert saved["scale"]["s"] != 0
    assert "logvar" not in "".join(saved["model"])


def test_without_a_perceptual_term_no_classifier_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(kl, "fit_classifier", lambda *_: pytest.fail("trained"))
    run("--n_steps", "1", "--perceptual_weight", "0", out=tmp_path)
    with pytest.raises(pytest.fail.Exception):
        call(SCRIPT, *TINY, "--n_steps", "1", "--out", tmp_path)


def test_only_evaluate(tmp_path):
    """--n_steps 0 --weights scores what training scored at its end, and draws the pairs."""
    out = call(SCRIPT, *TINY, "--n_steps", "2", "--out", tmp_path / "a")[1]
    weights = ["--weights", tmp_path / "a/last.pt", "--out", tmp_path / "b"]
    code, again, _ = call(SCRIPT, *TINY, "--n_steps", "0", *weights)
    assert code == 0
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert all(key in again for key in ("mse", "psnr", "latent_std"))
    assert (tmp_path / "b/reconstructions.png").exists()


def test_measures(monkeypatch):
    """Error, share of variance and decibels of a reconstruction that is known."""
    torch.manual_seed(0)
    x = torch.rand(50, 1, 4, 4) * 2 - 1
    noisy = x + 0.1
    monkeypatch.setattr(kl, "reconstruct", lambda *_: (noisy, torch.randn(9999)))
    row = kl.evaluate(None, x, kl.parse_args([]))
    assert row["mse"] == pytest.approx(0.01, rel=1e-5)
    assert row["psnr"] == pytest.approx(10 * math.log10(4 / 0.01), rel=1e-5)
    assert row["mse_share"] == pytest.approx(0.01 / x.var(0, correction=0).mean().item(), rel=1e-5)
    assert row["latent_std"] == pytest.approx(1, abs=0.05)


def test_grid_shows_originals_over_reconstructions(tmp_path, monkeypatch):
    """Five images: rows of three and two, each above its own reconstruction."""
    monkeypatch.setattr(kl, "reconstruct", lambda model, x, args: (-x, None))
    args = kl.parse_args([*TINY, "--out", str(tmp_path)])
    x = torch.ones(5, 1, 8, 8)
    kl.draw(None, x, args, "grid.png")
    grid = torch.from_numpy(np.array(Image.open(tmp_path / "grid.png").convert("L")))
    assert grid.shape == (34 * 4 + 2, 34 * 3 + 2)
    centres = grid[18::34, 18::34]
    assert centres.tolist()[:2] == [[255] * 3, [0] * 3]
    assert centres[2, :2].tolist() == [255, 255] and centres[3, :2].tolist() == [0, 0]


def test_amp_trains(tmp_path):
    run("--n_steps", "3", "--amp", out=tmp_path)


def test_folder_of_one_class(tmp_path, monkeypatch):
    """No labels to learn features from: the user is told what to do."""
    monkeypatch.setattr(kl, "fit_classifier", fit_classifier)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for i in range(30):
        Image.new("RGB", (20, 16)).save(tmp_path / "in" / f"{i}.png")
    flags = [*TINY, "--dataset", "folder", "--data_root", "in", "--img_size", "16"]
    code, _, err = call(SCRIPT, *flags, "--n_steps", "1", "--out", "a")
    assert code == 2 and "--vgg_weights" in err
    code, _, err = call(SCRIPT, *flags, "--n_steps", "1", "--perceptual_weight", "0", "--out", "b")
    assert code == 0, err


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset", "folder", "--img_size", "9", "--data_root", "x"],
        ["--img_size", "16"],
        ["--base_channels", "18"],
        ["--disc_layers", "2"],
        ["--vgg_weights", "vgg.pth"],
    ],
)
def test_flags_that_do_not_fit(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(SCRIPT, *flags, about=flags[-2] if "folder" not in flags else "--img_size")
