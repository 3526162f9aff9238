"""senet.py against timm: all variants by their keys and counts, some by their numbers."""

import pytest
import timm
import torch
from house import load
from oracles import proven

mod = load("vision/senet.py")
ALL = [
    "seresnet18",
    "seresnet34",
    "seresnet50",
    "seresnet101",
    "seresnet152",
    "seresnext50_32x4d",
    "seresnext101_32x4d",
]


def network(config, device="cpu"):
    args = mod.parse_args(["--config", config])
    args.device = device
    return mod.build(args, 1000)


@pytest.mark.parametrize("config", ALL)
def test_layout_is_timms(config):
    with torch.device("meta"):
        ours, theirs = network(config, "meta"), timm.create_model(config)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("config", ["seresnet18", "seresnet50", "seresnext50_32x4d"])
def test_network_is_timms(config):
    proven(network(config), timm.create_model(config))
