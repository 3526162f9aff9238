"""The Mamba block of mamba.py against that of mambapy, and a step of writing after long texts."""

import torch
from house import load
from mambapy.mamba import MambaBlock, MambaConfig

mod = load("ssm/mamba.py")


def both_ways(function, block, x, grad):
    """Forward and backward of a block, as something to time."""
    inputs = [x.requires_grad_(), *block.parameters()]
    return lambda: torch.autograd.grad(function(x), inputs, grad)


def writing(model, length, device):
    """A step after length characters, as something to time."""
    with torch.inference_mode():
        _, states = model(torch.randint(65, (1, length), device=device))
    x = torch.zeros(1, 1, dtype=torch.long, device=device)

    def step():
        with torch.inference_mode():
            model(x, states)

    return step


def rows(device):
    torch.manual_seed(0)
    for length in (256, 512, 1024):
        theirs = MambaBlock(MambaConfig(d_model=128, n_layers=1)).to(device)
        ours = mod.MambaBlock(128).to(device)
        ours.load_state_dict(theirs.state_dict())
        x, grad = torch.randn(2, 4, length, 128, device=device)
        yield {
            "name": f"mamba block of width 128, forward and backward, L {length}",
            "peer": "mambapy MambaBlock",
            "target": 0.55,
            "ours": both_ways(lambda x, block=ours: block(x)[0], ours, x, grad),
            "theirs": both_ways(theirs, theirs, x, grad),
        }
    model = mod.MambaLM(65, 128, 7).to(device)
    yield {
        "name": "mamba step of writing after 1000 characters",
        "peer": "the same after 100",
        "target": 1.2,
        "rounds": 51,
        "ours": writing(model, 1000, device),
        "theirs": writing(model, 100, device),
    }
