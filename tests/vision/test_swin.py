"""swin.py: windows, seams and biases by hand; which sizes fit."""

import pytest
import torch
from house import load, mistake
from torch import nn

mod = load("vision/swin.py")
PATH = mod.Path(mod.__file__)


@pytest.mark.parametrize(
    ("config", "millions"),
    [("swin_tiny", 28.288), ("swin_small", 49.606), ("swin_base", 87.768), ("swin_large", 196.53)],
)
def test_parameter_counts(config, millions):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=6e-3)


def test_windows_there_and_back():
    x = torch.arange(2 * 6 * 6 * 3).view(2, 6, 6, 3)
    windows = mod.to_windows(x, 3)
    assert windows.shape == (2, 4, 9, 3)
    assert torch.equal(windows[:, 1], x[:, :3, 3:].flatten(1, 2))
    assert torch.equal(windows[:, 2], x[:, 3:, :3].flatten(1, 2))
    assert torch.equal(mod.from_windows(windows, 3, 6), x)


def neighbours(side, M, shift):
    """Who may look at whom on the whole map, from the shifted grid itself: no roll, no mask."""
    band = (torch.arange(side) - shift).div(M, rounding_mode="floor")
    band = torch.stack(torch.meshgrid(band, band, indexing="ij"), 2).flatten(0, 1)
    return (band[:, None] == band).all(2)


@pytest.mark.parametrize(("side", "M"), [(8, 4), (9, 3), (14, 7), (12, 4), (6, 2)])
@pytest.mark.parametrize("shifted", [False, True])
def test_who_hears_whom(side, M, shifted):
    """Through a block a token hears its window on the shifted grid, and nothing else."""
    torch.manual_seed(0)
    block = mod.Block(4, 2, 0.0, side, M, M // 2 if shifted else 0).double()
    x = torch.randn(1, side, side, 4, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda x: block(x).sum(3), x)[0, :, :, 0]
    heard = slope.abs().sum(4).view(side**2, side**2) > 1e-12
    assert torch.equal(heard, neighbours(side, M, M // 2 if shifted else 0))
    if shifted:
        block.mask.zero_()  # without (8) the edges hear one another
        slope = torch.autograd.functional.jacobian(lambda x: block(x).sum(3), x)[0, :, :, 0]
        assert not torch.equal(slope.abs().sum(4).view(side**2, side**2) > 1e-12, heard)


def test_bias_depends_on_the_relative_place_alone():
    torch.manual_seed(0)
    layer = mod.WindowAttention(8, 2, 3).double()
    nn.init.normal_(layer.relative_position_bias_table)
    x = torch.randn(2, 1, 9, 8, dtype=torch.float64)
    q, k, v = layer.qkv(x).view(2, 9, 3, 2, 4).unbind(2)  # (B, N, H, d)
    z = torch.zeros(2, 9, 2, 4, dtype=torch.float64)
    for h in range(2):
        score = torch.einsum("bnd,bmd->bnm", q[:, :, h], k[:, :, h]) / 2
        for i in range(9):
            for j in range(9):
                dy, dx = i // 3 - j // 3, i % 3 - j % 3
                score[:, i, j] += layer.relative_position_bias_table[(dy + 2) * 5 + dx + 2, h]
        z[:, :, h] = score.softmax(2) @ v[:, :, h]
    torch.testing.assert_close(layer(x, None)[:, 0], layer.proj(z.flatten(2)))


def test_merging_takes_the_four_column_by_column():
    merge = mod.PatchMerging(1)
    merge.norm, merge.reduction = nn.Identity(), nn.Identity()
    x = torch.arange(16.0).view(1, 4, 4, 1)
    assert merge(x)[0, 0, 0].tolist() == [0, 4, 1, 5]
    assert merge(x)[0, 1, 0].tolist() == [8, 12, 9, 13]


def test_small_maps_are_one_window():
    args = mod.parse_args(["--config", "swin_tiny", "--device", "cpu"])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, 10)
    shifts = [[block.shift for block in stage.blocks] for stage in model.layers]
    assert shifts == [[0, 3], [0, 3], [0, 3] * 3, [0, 0]]
    assert [stage.blocks[0].side for stage in model.layers] == [56, 28, 14, 7]


@pytest.mark.parametrize(
    ("flags", "window"),
    [([], 4), (["--dataset", "mnist", "--patch_size", "2"], 7), (["--config", "swin_cifar"], 4)],
)
def test_window_that_fits_is_found(flags, window):
    assert mod.parse_args(flags).window_size == window


@pytest.mark.parametrize(
    ("flags", "about"),
    [
        (["--window_size", "3"], "take one of [1, 2, 4, 8]"),
        (["--patch_size", "3"], "take [6, 12]"),
        (["--heads", "2"], "--heads"),
        (["--heads", "2", "5"], "--heads"),
    ],
)
def test_sizes_that_do_not_fit(flags, about, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(PATH, *flags, about=about)


def test_table_of_another_window(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = mod.parse_args(["--device", "cpu"])
    torch.save(mod.build(args, 10).state_dict(), "w.pt")
    about = "relative_position_bias_table is (49, 2) there but (9, 2) here"
    mistake(PATH, "--window_size", "2", "--weights", "w.pt", "--n_epochs", "0", about=about)
