"""The Mamba block and model against transformers (slow path), the scans against mambapy's."""

import pytest
import torch
import torch.nn.functional as F
from house import load

mod = load("ssm/mamba_scan.py")
SCANS = [scan for scan in mod.SCANS if scan != "triton"]  # needs a GPU, or its interpreter
pscan = pytest.importorskip("mambapy.pscan").pscan
transformers = pytest.importorskip("transformers")
MambaMixer = transformers.models.mamba.modeling_mamba.MambaMixer


def close(ours, theirs, limit=1e-5):
    return all(
        (p - q).abs().max() <= limit * max(1, q.abs().max())
        for p, q in zip(ours, theirs, strict=True)
    )


def blocks(scan="chunk"):
    """Their block of 32 channels with nothing left at 0 or 1, and ours with the same weights."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(hidden_size=32, state_size=8, use_mambapy=False)
    theirs = MambaMixer(config, layer_idx=0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = mod.MambaBlock(32, d_state=8, scan=scan)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def both_ways(module):
    """Output, gradient of the input and of every parameter in the order of their names."""
    torch.manual_seed(1)
    x = torch.randn(3, 41, 32, requires_grad=True)
    y = module(x)
    parameters = [parameter for _, parameter in sorted(module.named_parameters())]
    return [y, *torch.autograd.grad(y, [x, *parameters], torch.randn_like(y))]


@pytest.mark.parametrize("scan", SCANS)
def test_block_equals_transformers(scan):
    ours, theirs = blocks(scan)
    assert close(both_ways(ours), both_ways(theirs))


def first_order(u, dt, A, B):
    return 1 + dt[..., None, :] * A, true_discretise(u, dt, A, B)[1]


def both_exact(u, dt, A, B):
    a, b = true_discretise(u, dt, A, B)
    return a, b * ((a - 1) / (dt[..., None, :] * A))


def late_readout(C, h):
    return true_readout(C, torch.roll(h, 1, 1))


def second_bias(self, x):
    u, z, dt, B, C = true_inputs(self, x)
    return u, z, F.softplus(dt.expm1().log() + self.dt_proj.bias), B, C


true_discretise, true_readout, true_inputs = mod.discretise, mod.readout, mod.MambaBlock.inputs
BREAKS = {
    "exp(dt A) as 1 + dt A": (mod, "discretise", first_order),
    "zero-order hold for B too": (mod, "discretise", both_exact),
    "y from the state before": (mod, "readout", late_readout),
    "bias of dt added twice": (mod.MambaBlock, "inputs", second_bias),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_block_differs(name, monkeypatch):
    monkeypatch.setattr(*BREAKS[name])
    ours, theirs = (both_ways(block)[:1] for block in blocks())
    assert not close(ours, theirs, 1e-3)


def test_model_equals_transformers():
    """The whole stack, under their names of the parameters."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "vocab_size": 17}
    config = transformers.MambaConfig(**sizes, tie_word_embeddings=False, use_mambapy=False)
    theirs = transformers.MambaForCausalLM(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ours = mod.Mamba(17, dim=32, depth=3, d_state=8)
    names = {"backbone.": "", "embeddings": "embedding"}
    weights = theirs.state_dict()
    for old, new in names.items():
        weights = {key.replace(old, new): value for key, value in weights.items()}
    ours.load_state_dict(weights, strict=True)
    x = torch.randint(17, (2, 50))
    assert close([ours(x)], [theirs(x).logits])


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("length", [1, 4, 37, 128])
def test_scan_equals_mambapy(scan, length):
    """Discretisation, scan and contraction with C as in mambapy's block, in float64."""

    def theirs(u, dt, A, B, C):
        a = torch.exp(dt.unsqueeze(-1) * A)
        b = dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        return (pscan(a, b) @ C.unsqueeze(-1)).squeeze(3)

    def ours(*inputs):
        return mod.selective_scan(*inputs, scan=scan)[0]

    torch.manual_seed(length)
    u, B, C = (torch.randn(2, length, n, dtype=torch.float64) for n in (6, 4, 4))
    dt = torch.rand(2, length, 6, dtype=torch.float64)
    A = -4 * torch.rand(6, 4, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (u, dt, A, B, C)]
    grad, found = torch.randn_like(u), []
    for function in (ours, theirs):
        y = function(*inputs)
        found.append([y, *torch.autograd.grad(y, inputs, grad)])
    assert close(*found, 1e-10)
