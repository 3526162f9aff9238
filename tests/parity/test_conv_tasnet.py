"""The network against torchaudio's, in float64 and float32, by strict transfer of the weights."""

import pytest
import torch
from house import load
from torchaudio.models import ConvTasNet

mod = load("separation/conv_tasnet.py")


def pair(mask, n_src=2):
    """Theirs and ours with the same weights, none of which is left at its initial value."""
    torch.manual_seed(0)
    theirs = ConvTasNet(n_src, 16, 24, 3, 12, 20, 4, 2, mask)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ours = mod.TasNet(24, 16, mod.MaskGenerator(24, n_src, (12, 20, 3), 4, 2, False, mask))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def gap(ours, theirs, n, dtype=torch.float64, inputs_only=False):
    """Largest relative difference of the outputs and of the gradients for sounds of n samples."""
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x = torch.randn(2, n, dtype=dtype, requires_grad=True)
    found = []
    for net, y in ((ours, ours(x)), (theirs, theirs(x[:, None]))):
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        inputs = [x] if inputs_only else [x, *(p for _, p in sorted(net.named_parameters()))]
        found.append([y, *torch.autograd.grad((y * weight).sum(), inputs)])
    pairs = zip(*found, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)


@pytest.mark.parametrize("mask", ["sigmoid", "relu"])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 8000, 8001])
def test_network(mask, n):
    assert gap(*pair(mask), n) < 1e-9
    assert gap(*pair(mask, 3), n) < 1e-9


@pytest.mark.parametrize("n", [8000, 8001])
def test_network_in_single_precision(n):
    """Gradients of parameters are sums over so many samples that only float64 compares them."""
    assert gap(*pair("sigmoid"), n, torch.float32, inputs_only=True) < 1e-5


@pytest.mark.parametrize("name", ["conv_layers.3.conv_layers.1", "output_prelu", "input_norm"])
def test_a_wrong_weight_is_seen(name):
    ours, theirs = pair("sigmoid")
    with torch.no_grad():
        ours.mask_generator.get_submodule(name).weight.mul_(1.001)
    assert gap(ours, theirs, 800) > 1e-6


def test_a_wrong_dilation_is_seen():
    ours, theirs = pair("relu")
    conv = ours.mask_generator.conv_layers[2].conv_layers[3]
    conv.dilation, conv.padding = (2,), (2,)
    assert gap(ours, theirs, 800) > 1e-6
