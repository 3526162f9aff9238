"""swin.py against timm and torchvision: variants by their keys, two sizes by their numbers."""

import re

import pytest
import timm
import torch
import torchvision
from house import load
from oracles import proven

mod = load("vision/swin.py")
ALL = ["swin_tiny", "swin_small", "swin_base", "swin_large"]


def network(config, *flags, device="cpu"):
    args = mod.parse_args(["--config", config, *flags])
    args.device = device
    return mod.build(args, 1000)


def of_timm(state):
    """There a stage begins with the merging, here it ends with it."""
    found = {}
    for key, value in state.items():
        key = re.sub(r"s\.(\d)\.downsample", lambda m: f"s.{int(m[1]) - 1}.downsample", key)
        found[key.replace("head.fc", "head")] = value
    return found


def of_torchvision(state):
    """features 0 is the stem, odd ones are blocks, even ones merge."""
    found = {}
    for key, value in state.items():
        if key.startswith("features.0."):
            key = key.replace("features.0.0", "patch_embed.proj")
            key = key.replace("features.0.2", "patch_embed.norm")
        key = re.sub(r"features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.", key)
        merge = re.match(r"features\.([246])\.", key)
        key = f"layers.{int(merge[1]) // 2 - 1}.downsample.{key[11:]}" if merge else key
        key = key.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        if not key.endswith("relative_position_index"):
            found[key] = value
    return found


@pytest.mark.parametrize("config", ALL)
def test_layout_is_timms(config):
    with torch.device("meta"):
        ours = network(config, device="meta")
        theirs = timm.create_model(f"{config}_patch4_window7_224")
    shapes = [
        {k: v.shape for k, v in net.items()}
        for net in (ours.state_dict(), of_timm(theirs.state_dict()))
    ]
    assert shapes[0] == shapes[1]


def test_network_is_timms():
    """64 px, window 4: shifted windows in two stages, one window in the others."""
    theirs = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4)
    proven(network("swin_tiny", "--img_size", "64"), theirs, of_timm, side=64)


def test_network_is_torchvisions():
    """At 56 px maps of 14 and 7 need no padding, the only thing in which it differs."""
    shape = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [3, 6]}
    theirs = torchvision.models.SwinTransformer(**shape, window_size=[7, 7])
    flags = ["--img_size", "56", "--dim", "24", "--depths", "2", "2", "--heads", "3", "6"]
    proven(network("swin_tiny", *flags), theirs, of_torchvision, side=56)


def test_official_files_hold_more_than_weights():
    ours = network("swin_tiny", "--img_size", "64", "--dim", "12", "--heads", "1", "2", "4", "8")
    state = ours.state_dict() | {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16)
    }
    ours.load_state_dict(state | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)})
    with pytest.raises(RuntimeError, match="something_else"):
        ours.load_state_dict(state | {"layers.0.something_else": torch.zeros(1)})
