"""kan.py against pykan: a training step of networks of the same size, Adam on both sides."""

import torch
from house import load
from kan import KAN as Peer
from torch import nn

mod = load("basics/kan.py")


def training_step(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def run():
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def rows(device):
    for widths, n, fast in (
        ([2, 5, 1], 1000, False),
        ([2, 5, 1], 1000, True),
        ([64, 32, 10], 64, True),
    ):
        torch.manual_seed(0)
        x, y = (2 * torch.rand(n, width, device=device) - 1 for width in (widths[0], widths[-1]))
        theirs = Peer([*widths], grid=5, k=3, auto_save=False, device=device)
        if fast:  # without symbols and without what their pictures need
            theirs.speed()
        yield {
            "name": f"kan training step, widths {widths}, batch {n}, {'fast' if fast else 'plain'}",
            "peer": "pykan, after speed()" if fast else "pykan, as it comes",
            "target": 0.2,
            "rounds": 51,
            "ours": training_step(mod.KAN(widths, 5).to(device), x, y),
            "theirs": training_step(theirs, x, y),
        }
