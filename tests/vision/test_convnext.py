"""convnext.py: the two blocks by hand, what GRN does, counts."""

import pytest
import torch
from house import load, mistake
from torch import nn

mod = load("vision/convnext.py")
PATH = mod.Path(mod.__file__)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ("convnext_tiny", 28.589),
        ("convnext_small", 50.224),
        ("convnext_base", 88.591),
        ("convnext_large", 197.767),
        ("convnextv2_atto", 3.708),
        ("convnextv2_femto", 5.233),
        ("convnextv2_pico", 9.066),
        ("convnextv2_nano", 15.624),
        ("convnextv2_tiny", 28.635),
        ("convnextv2_base", 88.718),
        ("convnextv2_large", 197.957),
        ("convnextv2_huge", 660.290),
    ],
)
def test_parameter_counts(config, millions):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


def by_hand(block, x):
    y = nn.functional.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=len(x[0]))
    y = y.permute(0, 2, 3, 1)
    y = (y - y.mean(3, keepdim=True)) / (y.var(3, correction=0, keepdim=True) + 1e-6).sqrt()
    h = block.pwconv1(y * block.norm.weight + block.norm.bias)
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    if block.gamma is None:
        G = h.square().sum((1, 2), keepdim=True).sqrt()
        h = block.grn.gamma * h * G / (G.mean(3, keepdim=True) + 1e-6) + block.grn.beta + h
    y = block.pwconv2(h)
    return x + (y if block.gamma is None else block.gamma * y).permute(0, 3, 1, 2)


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_block_by_hand(layer_scale):
    torch.manual_seed(0)
    block = mod.Block(6, 0.0, layer_scale).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), by_hand(block, x))
    with torch.no_grad():
        block.pwconv2.weight.mul_(1.001)
        wrong = block(x)
        block.pwconv2.weight.div_(1.001)
    assert (wrong - by_hand(block, x)).abs().max() > 1e-6


def test_grn_lets_the_strong_grow():
    torch.manual_seed(0)
    grn, h = mod.GRN(4), torch.randn(1, 6, 6, 4)
    assert torch.equal(grn(h), h)  # at first it does nothing
    nn.init.ones_(grn.gamma)
    h = h / torch.linalg.vector_norm(h, dim=(1, 2), keepdim=True) * torch.tensor([1.0, 2, 3, 10])
    growth = (grn(h) / h).mean((0, 1, 2))
    torch.testing.assert_close(growth, 1 + torch.tensor([1.0, 2, 3, 10]) / 4)


def test_layer_scale_hides_the_block_at_first():
    block, x = mod.Block(6, 0.0, 1e-6), torch.randn(2, 6, 9, 9)
    assert 0 < (block(x) - x).abs().max() < 1e-5


def test_wrong_sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(PATH, "--dims", "8", about="--dims")
    mistake(PATH, "--patch_size", "8", about="--img_size")
