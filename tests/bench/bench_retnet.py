"""The chunkwise form of retention against the parallel form, and a layer in both."""

import torch
from house import load

mod = load("ssm/retnet.py")


def both_ways(function, inputs, grad):
    """Forward and backward of function, as something to time."""
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def rows(device):
    torch.manual_seed(0)
    for length in (512, 2048):
        q, k = torch.randn(2, 2, 4, length, 64, device=device)
        v, grad = torch.randn(2, 2, 4, length, 128, device=device)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        sides = {
            form: both_ways(lambda *x, form=form: mod.retention(*x, form=form)[0], inputs, grad)
            for form in ("chunk", "parallel")
        }
        yield {
            "name": f"retnet chunkwise retention, forward and backward, L {length}",
            "peer": "the parallel form",
            "target": 0.33 if length == 2048 else 1.0,
            "ours": sides["chunk"],
            "theirs": sides["parallel"],
        }
    blocks = [mod.MultiScaleRetention(256, 4, form).to(device) for form in ("chunk", "parallel")]
    blocks[1].load_state_dict(blocks[0].state_dict())
    x, grad = torch.randn(2, 2, 2048, 256, device=device)
    ours, theirs = (
        both_ways(lambda *v, b=b: b(v[0])[0], [x.requires_grad_(), *b.parameters()], grad)
        for b in blocks
    )
    yield {
        "name": "retnet multi-scale retention of width 256, forward and backward, L 2048",
        "peer": "the same in the parallel form",
        "target": 0.33,
        "ours": ours,
        "theirs": theirs,
    }
