"""The paper's network against torchaudio's: forward on 2 s of sound, and a step of training."""

import torch
from house import load
from torchaudio.models import ConvTasNet

mod = load("separation/conv_tasnet.py")


def rows(device):
    torch.manual_seed(0)
    args = mod.parse_args(["--config", "paper"])
    args.device = device
    ours, theirs = mod.build(args), ConvTasNet().to(device)
    ours.load_state_dict(theirs.state_dict())
    x, s = torch.randn(2, 16_000, device=device), torch.randn(2, 2, 8000, device=device)

    def forward(net, x):
        with torch.inference_mode():
            net(x)

    def step(net, x):
        net.zero_grad()
        (-mod.pit(net(x), s)[0].mean()).backward()

    shared = {"peer": "torchaudio ConvTasNet", "target": 1.0}
    yield shared | {
        "name": "conv_tasnet forward, paper's network, 2 x 2 s",
        "ours": lambda: forward(ours, x),
        "theirs": lambda: forward(theirs, x[:, None]),
    }
    x = x[:, :8000]
    yield shared | {
        "name": "conv_tasnet forward, backward and PIT, paper's network, 2 x 1 s",
        "ours": lambda: step(ours, x),
        "theirs": lambda: step(theirs, x[:, None]),
    }
