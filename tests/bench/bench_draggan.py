"""draggan.py's supervision, its slope and tracking against the functions of the package draggan:
two handles on features of 128 channels, 256 px."""

import importlib
import sys

import torch
from house import load

gan = load("gan/draggan.py")


def rows(device):
    before = [*sys.path]
    peer = importlib.import_module("draggan.draggan")
    sys.path[:] = before
    torch.manual_seed(0)
    first = torch.randn(1, 128, 256, 256, device=device)
    maps = first.roll(1, 3).requires_grad_()
    handles = torch.tensor([[90.0, 120.0], [160.0, 60.0]], device=device)
    targets, wanted = handles + 20, gan.bilinear(first, handles[:, None])

    def ours():
        torch.autograd.grad(gan.motion_loss(maps, handles, targets, 3), maps)
        gan.track(maps.detach(), wanted, handles, 12)

    def theirs():
        points = [*handles.flip(1)], [*targets.flip(1)]
        torch.autograd.grad(peer.motion_supervison(*points, maps, 3, device), maps)
        peer.point_tracking(maps.detach(), first, handles.flip(1), handles.flip(1), 12, device)

    name = "draggan supervision and tracking, 2 handles"
    yield {"name": name, "peer": "draggan", "target": 1.0, "ours": ours, "theirs": theirs}
