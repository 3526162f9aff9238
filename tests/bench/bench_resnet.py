"""resnet.py against torchvision: forward and backward of the same nets, as each comes."""

import torch
import torchvision
from house import load
from oracles import both_ways

mod = load("vision/resnet.py")


def rows(device):
    for config, target in ("resnet18", 1.05), ("resnet50", 1.0):
        torch.manual_seed(0)
        x, y = torch.randn(8, 3, 64, 64, device=device), torch.randint(10, (8,), device=device)
        args = mod.parse_args(["--config", config])
        args.device = device
        yield {
            "name": f"{config} forward and backward, 8 images of 64 px",
            "peer": "torchvision",
            "target": target,
            "ours": both_ways(mod.build(args, 10), x, y),
            "theirs": both_ways(
                getattr(torchvision.models, config)(num_classes=10).to(device), x, y
            ),
        }
