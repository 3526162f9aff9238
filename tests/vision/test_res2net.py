"""res2net.py: the chain by hand, how far it sees, and its options."""

import pytest
import torch
from house import call, load, mistake

mod = load("vision/res2net.py")
PATH = mod.Path(mod.__file__)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ("res2net50_26w_4s", 25.699),
        ("res2net50_26w_6s", 37.05),
        ("res2net50_26w_8s", 48.40),
        ("res2net50_48w_2s", 25.29),
        ("res2net50_14w_8s", 25.06),
        ("res2net101_26w_4s", 45.21),
    ],
)
def test_parameter_counts(config, millions):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=6e-3)


def inner(block, x):
    """What the last 1x1 convolution of a block in eval mode sees, piece by piece."""
    seen = []
    handle = block.conv3.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block.eval()(x)
    handle.remove()
    return seen[0].split(block.width, 1)


def test_chain_by_hand():
    torch.manual_seed(0)
    block, x = mod.Bottle2neck(32, 8, 1, 64, 4, 1, False), torch.randn(2, 32, 9, 9)
    found = inner(block, x)
    x1, x2, x3, x4 = block.bn1(block.conv1(x)).relu().split(8, 1)
    K = [lambda z, i=i: block.bns[i](block.convs[i](z)).relu() for i in range(3)]
    y1 = K[0](x1)
    y2 = K[1](x2 + y1)
    y3 = K[2](x3 + y2)
    for one, two in zip(found, (y1, y2, y3, x4), strict=True):
        torch.testing.assert_close(one, two)
    assert (found[2] - K[2](x3)).abs().max() > 1e-3  # without a chain it is another one


def test_no_chain_where_the_shape_changes():
    torch.manual_seed(0)
    block, x = mod.Bottle2neck(32, 8, 2, 64, 4, 1, False), torch.randn(2, 32, 8, 8)
    found = inner(block, x)
    pieces = block.bn1(block.conv1(x)).relu().split(8, 1)
    for i in range(3):
        torch.testing.assert_close(found[i], block.bns[i](block.convs[i](pieces[i])).relu())
    torch.testing.assert_close(found[3], torch.nn.functional.avg_pool2d(pieces[3], 3, 2, 1))


def test_pieces_see_further_and_further():
    torch.manual_seed(0)
    block = mod.Bottle2neck(64, 16, 1, 64, 4, 1, False)
    x = torch.randn(1, 64, 17, 17).requires_grad_()
    sides = []
    for piece in inner(block, x):
        slope = torch.autograd.grad(piece[0, :, 8, 8].sum(), x, retain_graph=True)[0]
        sides.append(int((slope.abs().sum((0, 1)).sum(0) > 0).sum()))
    assert sides == [3, 5, 7, 1]


def test_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--se", "--groups", "2", "--base_width", "32", "--n_epochs", "3", "--device", "cpu"]
    code, out, err = call(PATH, *flags)
    assert code == 0, err
    assert float(out.split()[-1]) > 0.7
    saved = torch.load("out/res2net/last.pt")["model"]
    assert saved["layer1.0.convs.0.weight"].shape[1] == 4 and "layer1.0.se.fc1.weight" in saved
    mistake(PATH, "--groups", "5", about="--groups")
