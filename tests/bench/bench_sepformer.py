"""The separator of the paper's size and speechbrain's, with the same weights: 1 s of sound."""

import torch
from house import load

mod, peer = load("separation/sepformer.py"), load("tests/parity/test_speechbrain_sepformer.py")


def rows(device):
    torch.manual_seed(0)
    sizes = 256, 2, (256, 8, 1024), 8, 2, 250
    ours, theirs = mod.MaskingNetwork(*sizes).to(device), peer.official(*sizes).to(device)
    ours.load_state_dict(peer.ours_of(theirs.state_dict(), 8, 2))
    w = torch.randn(1, 256, 1001, device=device)

    def forward(net):
        with torch.inference_mode():
            net.eval()(w)

    def step(net):
        net.zero_grad()
        net.train()(w).square().mean().backward()

    shared = {"peer": "speechbrain Dual_Path_Model", "target": 0.9}
    for name, work in ("forward", forward), ("forward and backward", step):
        yield shared | {
            "name": f"sepformer masks, paper's network, 1 s, {name}",
            "ours": lambda work=work: work(ours),
            "theirs": lambda work=work: work(theirs),
        }
