"""A Conformer layer with attention against torchaudio's, on a batch with padding."""

import torch
from house import load
from torchaudio.models.conformer import ConformerLayer

mod = load("ssm/h3_conformer.py")


def rows(device):
    torch.manual_seed(0)
    ours = mod.ConformerLayer(64, 15, 0.0, [mod.MHSA(64, 4, 0.0)]).to(device)
    theirs = ConformerLayer(64, 256, 4, 15).to(device)
    lengths = torch.tensor([200, 180, 150, 120, 100, 80, 60, 40], device=device)
    mask = mod.frames_within(200, lengths)[..., None]  # (8, 200, 1)
    x, grad = torch.randn(2, 8, 200, 64, device=device)
    x.requires_grad_()

    def run(layer, forward):
        inputs = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(forward(), inputs, grad)

    def their_forward():
        return theirs(x.transpose(0, 1), mask[..., 0] == 0).transpose(0, 1)

    yield {
        "name": "h3_conformer layer with attention, forward and backward, T 200",
        "peer": "torchaudio ConformerLayer",
        "target": 1.2,
        "ours": run(ours, lambda: ours(x, mask)),
        "theirs": run(theirs, their_forward),
    }
