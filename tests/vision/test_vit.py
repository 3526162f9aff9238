"""vit.py: tokens, attention and rollout by hand; position codes of other sizes."""

import pytest
import torch
from house import call, load, mistake
from PIL import Image
from torch import nn

mod = load("vision/vit.py")
PATH = mod.Path(mod.__file__)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def network(*flags, n_classes=10):
    torch.manual_seed(0)
    model = mod.build(mod.parse_args([*flags, "--device", "cpu"]), n_classes).eval()
    nn.init.normal_(model.cls_token)
    nn.init.normal_(model.pos_embed)
    return model


@pytest.mark.parametrize(
    ("config", "n_classes", "millions"),
    [
        ("vit_tiny_patch16", 1000, 5.717),
        ("vit_small_patch16", 1000, 22.051),
        ("vit_base_patch16", 1000, 86.568),
        ("vit_base_patch32", 1000, 88.224),
        ("vit_large_patch16", 1000, 304.327),
        ("vit_tiny_cifar", 10, 5.363),
        ("vit_small_cifar", 10, 12.47),
    ],
)
def test_parameter_counts(config, n_classes, millions):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, n_classes)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=6e-3)


def test_patches_are_read_row_by_row():
    model, x = network(), torch.randn(2, 1, 8, 8)
    E, b = model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias
    z = model.embed(x)
    assert z.shape == (2, 17, 64)
    torch.testing.assert_close(
        z[:, 0], (model.cls_token + model.pos_embed[:, :1])[:, 0].expand(2, -1)
    )
    for at, (i, j) in enumerate((i, j) for i in range(4) for j in range(4)):
        patch = x[:, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1)
        want = patch @ E.T + b + model.pos_embed[0, at + 1]
        torch.testing.assert_close(z[:, at + 1], want)


def test_maps_are_those_of_the_attention():
    """The values weighted by maps give what forward gives where all heads agree."""
    torch.manual_seed(0)
    layer = mod.Attention(16, 1).double()
    x = torch.randn(2, 9, 16).double()
    A = layer.maps(x)
    torch.testing.assert_close(A.sum(2), torch.ones(2, 9).double())
    torch.testing.assert_close(layer.proj(A @ layer.split(x)[2, :, 0]), layer(x))


def test_rollout_by_hand():
    model, x = network("--depth", "2"), torch.randn(2, 1, 8, 8)
    z = model.embed(x)
    R = torch.eye(17)
    for block in model.blocks:
        R = (0.5 * block.attn.maps(block.norm1(z)) + 0.5 * torch.eye(17)) @ R
        z = block(z)
    torch.testing.assert_close(R.sum(2), torch.ones(2, 17))
    want = nn.functional.interpolate(R[:, :1, 1:].view(2, 1, 4, 4), (8, 8), mode="bilinear")[:, 0]
    want = want / want.amax((1, 2), keepdim=True)
    torch.testing.assert_close(mod.explain(model, x), want)


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = mod.DropPath(0.25), torch.ones(20_000, 2, 3)
    y = drop(x)
    assert {*y.flatten().tolist()} == {0.0, float(torch.tensor(1) / 0.75)}
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(y.amax((1, 2)), y.amin((1, 2)))  # an image's branch as a whole
    assert torch.equal(drop.eval()(x), x)
    rates = [block.drop_path.p for block in network("--depth", "5", "--drop_path", "0.4").blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_position_codes_are_stretched(capsys):
    torch.save(network().state_dict(), "small.pt")
    args = mod.parse_args(["--img_size", "16", "--weights", "small.pt", "--device", "cpu"])
    model, saved = mod.build(args, 10), torch.load("small.pt")["pos_embed"]
    told = "--weights small.pt: pos_embed of 4x4 patches is stretched to 8x8\n"
    assert capsys.readouterr().err == told
    assert torch.equal(model.pos_embed[:, 0], saved[:, 0])
    grid = model.pos_embed[0, 1:].view(8, 8, -1)
    want = nn.functional.interpolate(
        saved[:, 1:].mT.view(1, -1, 4, 4), (8, 8), mode="bicubic", antialias=True
    )[0].permute(1, 2, 0)
    torch.testing.assert_close(grid, want)
    assert (
        mod.build(mod.parse_args(["--weights", "small.pt", "--device", "cpu"]), 10).stretched == ""
    )


def test_a_stretched_model_predicts_much_the_same():
    code, _, err = call(PATH, "--n_epochs", "12", "--lr", "3e-3", "--dim", "48", "--device", "cpu")
    assert code == 0, err
    x, y = mod.load_data(mod.parse_args(["--device", "cpu"]))[1]
    big = mod.parse_args(
        ["--patch_size", "4", "--img_size", "16", "--dim", "48", "--device", "cpu"]
    )
    assert len(y) == 360 and big.img_size == 16
    mod.Path("seen").mkdir()
    for k in range(10):
        Image.fromarray(x[y == k][0, 0].numpy()).save(f"seen/{k}.png")
    flags = ["--dim", "48", "--predict", "seen", "--device", "cpu"]
    code, out, err = call(PATH, *flags)
    rows = out.splitlines()
    assert code == 0, err
    assert sum(row.split()[1] == row.split("/")[1][0] for row in rows) >= 8
    assert mod.Path("out/vit/explained.png").exists()


@pytest.mark.parametrize(
    ("flags", "about"),
    [
        (["--patch_size", "3"], "take [6, 9]"),
        (["--patch_size", "16"], "take [16]"),
        (["--heads", "5"], "--heads"),
    ],
)
def test_sizes_that_do_not_fit(flags, about):
    mistake(PATH, *flags, about=about)
