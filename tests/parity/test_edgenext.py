"""edgenext.py against timm: all variants by their keys, two by their numbers."""

import re

import pytest
import timm
import torch
from house import load
from oracles import proven

mod = load("vision/edgenext.py")
ALL = ["edgenext_xx_small", "edgenext_x_small", "edgenext_small", "edgenext_base"]


def network(config, device="cpu"):
    args = mod.parse_args(["--config", config])
    args.device = device
    return mod.build(args, 1000)


def of_timm(state):
    found = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", key)
        key = re.sub(r"^stages\.(\d)\.blocks", r"stages.\1", key)
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        found[key.replace("head.norm", "norm").replace("head.fc", "head")] = value
    return found


@pytest.mark.parametrize("config", ALL)
def test_layout_is_timms(config):
    with torch.device("meta"):
        ours, theirs = network(config, "meta"), timm.create_model(config)
    states = ours.state_dict(), of_timm(theirs.state_dict())
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("config", ["edgenext_xx_small", "edgenext_small"])
def test_network_is_timms(config):
    """timm works the codes of places out in float32 even here, in another order."""
    proven(network(config), timm.create_model(config), of_timm, side=64, tolerance=2e-8)
