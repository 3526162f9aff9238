"""The chunked scan against the parallel scan of mambapy, the Mamba block against transformers."""

import torch
from house import load
from mambapy.pscan import pscan
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

mod = load("ssm/mamba_scan.py")


def theirs(u, dt, A, B, C):
    """The same function of the same inputs, as mambapy's block calls its scan."""
    a = torch.exp(dt.unsqueeze(-1) * A)  # (B, L, D, N)
    b = dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)  # (B, L, D, N)
    return (pscan(a, b) @ C.unsqueeze(-1)).squeeze(3)


def ours(u, dt, A, B, C):
    return mod.selective_scan(u, dt, A, B, C)[0]


def both_ways(function, inputs, grad):
    """Forward and backward of function, as something to time."""
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def fused(device):
    """The Triton kernels against the chunked scan at the size of a 1.3B model, bfloat16 in."""
    u, grad = torch.randn(2, 8, 2048, 2048, device=device, dtype=torch.bfloat16)
    dt = torch.rand_like(u) / 10
    A = -torch.rand(2048, 16, device=device) * 16
    B, C = torch.randn(2, 8, 2048, 16, device=device, dtype=torch.bfloat16)
    inputs = [x.requires_grad_() for x in (u, dt, A, B, C)]
    return {
        "name": "mamba_scan Triton scan, forward and backward, L 2048, D 2048",
        "peer": "mamba_scan chunked scan",
        "target": 0.1,
        "ours": both_ways(lambda *x: mod.selective_scan(*x, scan="triton")[0], inputs, grad),
        "theirs": both_ways(ours, inputs, grad),
    }


def rows(device):
    torch.manual_seed(0)
    for length in (256, 512, 1024, 2048):
        u, grad = torch.randn(2, 4, length, 256, device=device)
        dt = torch.rand(4, length, 256, device=device) / 10
        A = -torch.rand(256, 16, device=device) * 16
        B, C = torch.randn(2, 4, length, 16, device=device)
        inputs = [x.requires_grad_() for x in (u, dt, A, B, C)]
        yield {
            "name": f"mamba_scan chunked scan, forward and backward, L {length}",
            "peer": "mambapy pscan",
            "target": 0.5,
            "ours": both_ways(ours, inputs, grad),
            "theirs": both_ways(theirs, inputs, grad),
        }
    if torch.device(device).type == "cuda":
        yield fused(device)
    config = MambaConfig(hidden_size=128, time_step_rank=8, use_mambapy=False)
    peer = MambaMixer(config, layer_idx=0).to(device)
    block = mod.MambaBlock(128).to(device)
    block.load_state_dict(peer.state_dict())
    x, grad = torch.randn(2, 4, 256, 128, device=device)
    yield {
        "name": "mamba_scan Mamba block, forward and backward, L 256",
        "peer": "transformers MambaMixer slow path",
        "target": 0.15,
        "ours": both_ways(lambda *v: block(v[0]), [x.requires_grad_(), *block.parameters()], grad),
        "theirs": both_ways(lambda *v: peer(v[0]), [x, *peer.parameters()], grad),
    }
