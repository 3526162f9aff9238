"""resnext.py against torchvision: all variants by their keys and counts, some by their numbers."""

import pytest
import torch
import torchvision
from house import load
from oracles import proven

mod = load("vision/resnext.py")
ALL = ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]


def network(config, device="cpu"):
    args = mod.parse_args(["--config", config])
    args.device = device
    return mod.build(args, 1000)


@pytest.mark.parametrize("config", ALL)
def test_layout_is_torchvisions(config):
    with torch.device("meta"):
        ours, theirs = network(config, "meta"), getattr(torchvision.models, config)()
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("config", ["resnext50_32x4d"])
def test_network_is_torchvisions(config):
    proven(network(config), getattr(torchvision.models, config)())
