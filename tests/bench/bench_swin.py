"""swin.py against torchvision and timm: forward and backward of the same net, as each comes."""

import timm
import torch
import torchvision
from house import load
from oracles import both_ways

mod = load("vision/swin.py")


def rows(device):
    torch.manual_seed(0)
    shape = 8, 3, 64, 64
    x, y = torch.randn(shape, device=device), torch.randint(10, shape[:1], device=device)
    args = mod.parse_args(["--config", "swin_tiny", "--img_size", "64", "--drop_path", "0"])
    args.device = device
    theirs = torchvision.models.swin_t(num_classes=10)
    yield {
        "name": "swin_tiny forward and backward, 8 images of 64 px",
        "peer": "torchvision, which pads to window 7",
        "target": 1.0,
        "ours": both_ways(mod.build(args, 10), x, y),
        "theirs": both_ways(theirs.to(device), x, y),
    }
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, num_classes=10
    )
    yield {
        "name": "swin_tiny forward and backward, 8 images of 64 px, window 4",
        "peer": "timm",
        "target": 1.05,
        "ours": both_ways(mod.build(args, 10), x, y),
        "theirs": both_ways(theirs.to(device), x, y),
    }
