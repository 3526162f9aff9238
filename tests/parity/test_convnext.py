"""convnext.py against timm and torchvision: variants by their keys, some by their numbers."""

import re

import pytest
import timm
import torch
import torchvision
from house import load
from oracles import proven

mod = load("vision/convnext.py")
V1 = ["tiny", "small", "base", "large", "xlarge"]
V2 = ["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"]
ALL = [f"convnext_{key}" for key in V1] + [f"convnextv2_{key}" for key in V2]


def network(config, *flags, device="cpu"):
    args = mod.parse_args(["--config", config, *flags])
    args.device = device
    return mod.build(args, 1000)


def of_timm(state):
    found = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", key)
        key = re.sub(r"^stages\.(\d)\.blocks", r"stages.\1", key)
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("mlp.grn", "grn")
        key = key.replace("head.norm", "norm").replace("head.fc", "head")
        if "grn" in key:
            key = key.replace("weight", "gamma").replace("bias", "beta")
            value = value.view(1, 1, 1, -1)
        found[key] = value.flatten(1) if "pwconv" in key and value.ndim == 4 else value
    return found


def of_torchvision(state):
    """features 0 is the stem, odd ones are stages, the other even ones the layers between."""
    names = {"block.0.": "dwconv.", "block.2.": "norm.", "block.3.": "pwconv1."}
    names |= {"block.5.": "pwconv2.", "layer_scale": "gamma"}
    names |= {"classifier.0": "norm", "classifier.2": "head"}
    found = {}
    for key, value in state.items():
        if at := re.match(r"features\.(\d)\.", key):
            kind = "stages" if int(at[1]) % 2 else "downsample_layers"
            key = f"{kind}.{int(at[1]) // 2}.{key[11:]}"
        for old, new in names.items():
            key = key.replace(old, new)
        found[key] = value.flatten() if key.endswith("gamma") else value
    return found


@pytest.mark.parametrize("config", ALL)
def test_layout_is_timms(config):
    with torch.device("meta"):
        ours, theirs = network(config, device="meta"), timm.create_model(config)
    states = ours.state_dict(), of_timm(theirs.state_dict())
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("config", ["convnext_tiny", "convnextv2_atto", "convnextv2_tiny"])
def test_network_is_timms(config):
    proven(network(config), timm.create_model(config), of_timm)


def test_network_is_torchvisions():
    setting = torchvision.models.convnext.CNBlockConfig
    stages = [setting(24, 48, 2), setting(48, None, 2)]
    flags = ["--depths", "2", "2", "--dims", "24", "48"]
    proven(network("convnext_tiny", *flags), torchvision.models.ConvNeXt(stages), of_torchvision)
