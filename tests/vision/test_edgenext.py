"""edgenext.py: attention over channels by hand, codes of places, the chain, counts."""

import math

import pytest
import torch
from house import load, mistake
from torch import nn

mod = load("vision/edgenext.py")
PATH = mod.Path(mod.__file__)


def network(config):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        return mod.build(args, 1000)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ("edgenext_xx_small", 1.327),
        ("edgenext_x_small", 2.337),
        ("edgenext_small", 5.587),
        ("edgenext_base", 18.511),
    ],
)
def test_parameter_counts(config, millions):
    count = sum(p.numel() for p in network(config).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=1e-3)


def test_where_what_stands():
    stages = network("edgenext_small").stages
    kinds = [[type(block).__name__[0] for block in stage] for stage in stages]
    assert kinds == [["C"] * 3, ["C", "C", "S"], ["C"] * 8 + ["S"], ["C", "C", "S"]]
    assert [stage[0].dwconv.kernel_size[0] for stage in stages] == [3, 5, 7, 9]
    assert [len(stage[-1].convs) + 1 for stage in stages[1:]] == [2, 3, 4]
    assert [stage[-1].pos_embd is None for stage in stages[1:]] == [False, True, True]


def test_attention_over_channels_by_hand():
    torch.manual_seed(0)
    layer, z = mod.XCA(6, 2).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    nn.init.normal_(layer.temperature)
    q, k, v = layer.qkv(z).view(2, 5, 3, 2, 3).unbind(2)  # (B, N, heads, d)
    out = torch.zeros(2, 5, 2, 3, dtype=torch.float64)
    for b in range(2):
        for head in range(2):
            one, two = (w[b, :, head] / w[b, :, head].norm(dim=0) for w in (q, k))  # (N, d)
            A = (layer.temperature[head] * (one.T @ two)).softmax(1)  # (d, d)
            out[b, :, head] = v[b, :, head] @ A.T
    torch.testing.assert_close(layer(z), layer.proj(out.flatten(2)))


def test_codes_of_places_by_hand():
    coder = mod.PositionalEncodingFourier(64).double()
    nn.init.dirac_(coder.token_projection.weight)
    nn.init.zeros_(coder.token_projection.bias)
    codes = coder(torch.zeros(1, 64, 3, 5, dtype=torch.float64))
    assert codes.shape == (1, 64, 3, 5)
    for k in (0, 1, 7, 15):
        for y in range(3):
            angle = (y + 1) / (3 + 1e-6) * 2 * math.pi / 10000 ** (2 * k / 32)
            want = torch.tensor([math.sin(angle), math.cos(angle)]).double()
            torch.testing.assert_close(codes[0, 2 * k : 2 * k + 2, y, 4], want, atol=1e-5, rtol=0)
        angle = 4 / (5 + 1e-6) * 2 * math.pi / 10000 ** (2 * k / 32)
        assert codes[0, 32 + 2 * k, 0, 3].item() == pytest.approx(math.sin(angle), abs=1e-5)


def test_pieces_see_further_and_further():
    """Without attention, the pieces of an SDTA block see 3, 5, 7 places, and one."""
    torch.manual_seed(0)
    block = mod.SDTAEncoder(8, 0.0, 0.0, 2, 4, False)
    block.norm, seen = nn.Identity(), []
    block.pwconv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(1, 8, 15, 15).requires_grad_()
    block(x)
    z = seen[0].mT.view(1, 8, 15, 15)
    sides = []
    for at in (0, 2, 4, 6):
        slope = torch.autograd.grad(z[0, at, 7, 7], x, retain_graph=True)[0]
        sides.append(int((slope.abs().sum((0, 1)).sum(0) > 0).sum()))
    assert sides == [3, 5, 7, 1]


def test_any_width_is_cut_in_pieces():
    block = mod.SDTAEncoder(88, 0.0, 0.1, 4, 3, True)
    assert [conv.in_channels for conv in block.convs] == [30, 30]
    assert block(torch.randn(1, 88, 7, 5)).shape == (1, 88, 7, 5)


def test_wrong_sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(PATH, "--heads", "5", about="--heads")
