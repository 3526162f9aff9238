"""bilstm_crf.py against pytorch-crf: loss and gradients, and the best tags, of 28 tags as in
ResumeNER, 64 sentences of up to 80 characters."""

import torch
from house import load
from torchcrf import CRF

mod = load("nlp/bilstm_crf.py")
B, T, K = 64, 80, 28


def rows(device):
    torch.manual_seed(0)
    theirs, ours = CRF(K, batch_first=True).to(device), mod.CRF(K).to(device)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.randint(20, T + 1, (B, 1), device=device)
    lengths[0] = T
    mask = torch.arange(T, device=device) < lengths
    P = (3 * torch.randn(B, T, K, device=device)).requires_grad_()
    y = torch.randint(K, (B, T), device=device)

    def our_loss():
        return torch.autograd.grad(mod.crf_loss(ours, P, y, mask).mean(), [P, *ours.parameters()])

    def their_loss():
        loss = -theirs(P, y, mask, reduction="mean")
        return torch.autograd.grad(loss, [P, *theirs.parameters()])

    def our_tags():
        with torch.inference_mode():
            return mod.crf_decode(ours, P, mask).tolist()

    def their_tags():
        with torch.inference_mode():
            return theirs.decode(P, mask)

    known = {"peer": "pytorch-crf", "rounds": 15}
    name = f"bilstm_crf loss and gradients, B {B}, T {T}, K {K}"
    yield known | {"name": name, "target": 1.0, "ours": our_loss, "theirs": their_loss}
    name = f"bilstm_crf decode, B {B}, T {T}, K {K}"
    yield known | {"name": name, "target": 0.5, "ours": our_tags, "theirs": their_tags}
