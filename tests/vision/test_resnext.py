"""resnext.py: one grouped convolution is many paths, and a block costs what ResNet's costs."""

import pytest
import torch
from house import load
from torch import nn

mod = load("vision/resnext.py")
resnet = load("vision/resnet.py")


def size(config, n_classes):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        return sum(p.numel() for p in mod.build(args, n_classes).parameters())


@pytest.mark.parametrize(
    ("config", "n_classes", "millions"),
    [
        ("resnext50_32x4d", 1000, 25.029),
        ("resnext101_32x4d", 1000, 44.18),
        ("resnext101_32x8d", 1000, 88.79),
        ("resnext101_64x4d", 1000, 83.46),
        ("resnext29_32x4d", 10, 4.776),
        ("resnext29_8x64d", 10, 34.43),
    ],
)
def test_parameter_counts(config, n_classes, millions):
    assert size(config, n_classes) / 1e6 == pytest.approx(millions, abs=6e-3)


def paths_gap(G, shuffled=False):
    """Largest difference between a block and G paths of its weights, added up one by one."""
    torch.manual_seed(0)
    block = mod.Bottleneck(64, 16, 1, G, 64 // G * 2).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(4, 64, 5, 5, dtype=torch.float64)
    d = len(block.conv1.weight) // G
    total = 0
    for g in range(G):
        own = slice(g * d, (g + 1) * d)
        y = nn.functional.conv2d(x, block.conv1.weight[own])
        y = norm(y, block.bn1, own).relu()
        kernel = block.conv2.weight[slice((G - 1 - g) * d, (G - g) * d) if shuffled else own]
        y = norm(nn.functional.conv2d(y, kernel, padding=1), block.bn2, own).relu()
        total = total + nn.functional.conv2d(y, block.conv3.weight[:, own])
    want = (norm(total, block.bn3, slice(None)) + x).relu()
    return (block(x) - want).abs().max().item()


def norm(x, bn, own):
    return nn.functional.batch_norm(x, None, None, bn.weight[own], bn.bias[own], training=True)


@pytest.mark.parametrize("G", [1, 4, 32])
def test_groups_are_paths(G):
    assert paths_gap(G) < 1e-12


def test_paths_of_other_weights_are_seen():
    assert paths_gap(4, shuffled=True) > 1e-3


def test_cost_is_resnets():
    count = [
        sum(p.numel() for p in block.parameters() if p.ndim == 4)
        for block in (mod.Bottleneck(256, 64, 1, 32, 4), resnet.Bottleneck(256, 64, 1))
    ]
    assert count == [70_144, 69_632]
