"""rnn_lm.py against the same step of training around nn.RNN, whose loop over time is not Python."""

import torch
import torch.nn.functional as F
from house import load
from torch import nn

mod = load("basics/rnn_lm.py")


class Peer(nn.Module):
    """nn.RNN on one-hot characters, and the same head."""

    def __init__(self, n_chars, hidden):
        super().__init__()
        self.n_chars = n_chars
        self.rnn = nn.RNN(n_chars, hidden, batch_first=True)
        self.head = nn.Linear(hidden, n_chars)

    def forward(self, x, h):
        states, h = self.rnn(F.one_hot(x, self.n_chars).float(), h[None])
        return self.head(states), h[0]


def training(model, text, h, clip):
    """One step of truncated backpropagation, as something to time."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step():
        scores, _ = model(text[:, :-1], h)
        loss = F.cross_entropy(scores.mT, text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        clip([*model.parameters()], 1.0)
        optimizer.step()

    return step


def rows(device):
    torch.manual_seed(0)
    for hidden, length, n_chars in [(64, 32, 23), (256, 64, 65)]:
        text = torch.randint(n_chars, (32, length + 1), device=device)
        h = torch.zeros(32, hidden, device=device)
        ours = mod.CharLM("rnn", n_chars, hidden, 0).to(device)
        theirs = Peer(n_chars, hidden).to(device)
        yield {
            "name": f"rnn_lm training step, H {hidden}, T {length}, B 32",
            "peer": "nn.RNN on one-hot characters",
            "target": 3.0,
            "rounds": 51,
            "ours": training(ours, text, h, mod.clip_gradient),
            "theirs": training(theirs, text, h, nn.utils.clip_grad_norm_),
        }
