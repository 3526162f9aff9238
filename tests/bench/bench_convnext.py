"""convnext.py against timm: forward and backward of the same nets, as each comes."""

import timm
import torch
from house import load
from oracles import both_ways

mod = load("vision/convnext.py")


def rows(device):
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 64, 64, device=device), torch.randint(10, (8,), device=device)
    for config in ["convnext_tiny", "convnextv2_atto"]:
        args = mod.parse_args(["--config", config, "--drop_path", "0"])
        args.device = device
        yield {
            "name": f"{config} forward and backward, 8 images of 64 px",
            "peer": "timm",
            "target": 1.05,
            "ours": both_ways(mod.build(args, 10), x, y),
            "theirs": both_ways(timm.create_model(config, num_classes=10).to(device), x, y),
        }
