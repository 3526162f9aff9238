"""vit.py against timm: forward and backward of the same net, as each comes."""

import timm
import torch
from house import load
from oracles import both_ways

mod = load("vision/vit.py")


def rows(device):
    torch.manual_seed(0)
    shape = 16, 3, 32, 32
    x, y = torch.randn(shape, device=device), torch.randint(10, shape[:1], device=device)
    args = mod.parse_args(["--config", "vit_tiny_patch16", "--img_size", "32", "--patch_size", "4"])
    args.device = device
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)
    yield {
        "name": "vit_tiny, patch 4 forward and backward, 16 images of 32 px",
        "peer": "timm",
        "target": 1.05,
        "ours": both_ways(mod.build(args, 10), x, y),
        "theirs": both_ways(theirs.to(device), x, y),
    }
