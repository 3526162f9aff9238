"""The paper's network and the same put together in the official form: 1 s of sound."""

import torch
from house import load

mod, peer = load("separation/sepformer.py"), load("tests/parity/test_sepformer.py")


def rows(device):
    torch.manual_seed(0)
    args = mod.parse_args(["--config", "paper"])
    args.device = device
    ours = mod.build(args).eval()
    theirs = peer.Peer(256, 16, 2, (256, 8, 1024), 8, 2, 250).to(device).eval()
    theirs.load_state_dict({peer.renamed(k, 8, 2): v for k, v in ours.state_dict().items()})
    x, s = torch.randn(1, 8000, device=device), torch.randn(1, 2, 8000, device=device)

    def forward(net):
        with torch.inference_mode():
            net(x)

    def step(net):
        net.zero_grad()
        (-mod.pit(net.train()(x), s)[0].mean()).backward()
        net.eval()

    shared = {"peer": "in the official form", "target": 0.9}
    yield shared | {
        "name": "sepformer forward, paper's network, 1 s",
        "ours": lambda: forward(ours),
        "theirs": lambda: forward(theirs),
    }
    yield shared | {
        "name": "sepformer forward, backward and PIT, paper's network, 1 s",
        "ours": lambda: step(ours),
        "theirs": lambda: step(theirs),
    }
