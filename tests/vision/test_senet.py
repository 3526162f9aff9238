"""senet.py: the gate looks at the whole map, and only F(x) goes through it."""

import pytest
import torch
from house import load
from torch import nn

mod = load("vision/senet.py")


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ("seresnet18", 11.780),
        ("seresnet34", 21.960),
        ("seresnet50", 28.088),
        ("seresnet101", 49.327),
        ("seresnet152", 66.822),
        ("seresnext50_32x4d", 27.560),
        ("seresnext101_32x4d", 48.955),
    ],
)
def test_parameter_counts(config, millions):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


@pytest.mark.parametrize(("n", "hidden"), [(64, 8), (144, 8), (256, 16), (2048, 128), (16, 8)])
def test_hidden_layer(n, hidden):
    assert len(mod.SqueezeExcite(n).fc1.weight) == hidden


def test_gate_by_hand():
    torch.manual_seed(0)
    gate, x = mod.SqueezeExcite(32).double(), torch.randn(3, 32, 4, 5, dtype=torch.float64)
    q = x.flatten(2).mean(2)
    h = (q @ gate.fc1.weight[:, :, 0, 0].T + gate.fc1.bias).clamp(min=0)
    e = 1 / (1 + (-(h @ gate.fc2.weight[:, :, 0, 0].T + gate.fc2.bias)).exp())
    assert (gate(x) - x * e[:, :, None, None]).abs().max() < 1e-12
    assert (gate(x) - x * e.softmax(1)[:, :, None, None]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_shut_gates_leave_the_shortcut(kind):
    torch.manual_seed(0)
    block = mod.BasicBlock(16, 16, 1) if kind == "basic" else mod.Bottleneck(16, 4, 1, 1, 64)
    nn.init.zeros_(block.se.fc2.weight)
    x = torch.randn(2, 16, 5, 5)
    nn.init.constant_(block.se.fc2.bias, -1e4)
    assert torch.equal(block(x), x.relu())
    nn.init.constant_(block.se.fc2.bias, 1e4)  # wide open: ResNet's block
    last = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())) if kind == "basic" else None
    if last is not None:
        torch.testing.assert_close(block(x), (last + x).relu())


def test_a_far_pixel_is_heard():
    """Through the gate each place depends on all others, though F sees no further than 5 pixels."""
    torch.manual_seed(0)
    block = mod.BasicBlock(8, 8, 1).eval()
    x = torch.randn(1, 8, 15, 15).requires_grad_()
    slope = torch.autograd.grad(block(x)[0, :, 0, 0].sum(), x)[0]
    assert slope[0, :, 14, 14].abs().max() > 0
    block.se = nn.Identity()
    slope = torch.autograd.grad(block(x)[0, :, 0, 0].sum(), x)[0]
    assert slope[0, :, 14, 14].abs().max() == 0
