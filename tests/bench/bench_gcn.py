"""gcn.py against the same model in torch_geometric, on a random graph of the size of Cora."""

import torch
from house import load
from torch import nn
from torch_geometric.nn import GCNConv

mod = load("gnn/gcn.py")
N, F, K, E, WORDS = 2708, 1433, 7, 5278, 49216


class Peer(nn.Module):
    """Their layers with cached weights of the edges, on the dense features their data set has."""

    def __init__(self):
        super().__init__()
        self.conv1 = GCNConv(F, 16, cached=True)
        self.conv2 = GCNConv(16, K, cached=True)

    def forward(self, x, edge_index):
        h = self.conv1(nn.functional.dropout(x, 0.5), edge_index).relu()
        return self.conv2(nn.functional.dropout(h, 0.5), edge_index)


def epoch(model, inputs, y):
    """One step of training on the whole graph, as something to time."""
    groups = [{"params": model.conv1.parameters(), "weight_decay": 5e-4}]
    groups += [{"params": model.conv2.parameters()}]
    optimizer = torch.optim.Adam(groups, lr=0.01, fused=True)

    def step():
        loss = nn.functional.cross_entropy(model(*inputs)[:140], y[:140])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def rows(device):
    torch.manual_seed(0)
    edges = torch.randint(N, (2, E), device=device)
    edges = torch.cat([edges, edges.flip(0)], 1)
    index = torch.randperm(N * F, device=device)[:WORDS].sort()[0]
    index = torch.stack([index // F, index % F])
    x = mod.Words(index, torch.rand(WORDS, device=device), (N, F))
    y = torch.randint(K, (N,), device=device)
    data = mod.normalise(mod.Data(x, edges, y, ()), "sym")
    dense = torch.zeros(N, F, device=device).index_put((*index,), x.value)
    yield {
        "name": "gcn epoch, graph of Cora's size",
        "peer": "torch_geometric, dense features",
        "target": 1.0,
        "rounds": 25,
        "ours": epoch(mod.GCN(F, 16, K, 0.5).to(device), [data], y),
        "theirs": epoch(Peer().to(device), [dense, edges], y),
    }
    h, grad = torch.randn(2, N, 16, device=device)
    h.requires_grad_()
    conv, peer = mod.GCNConv(16, 16).to(device), GCNConv(16, 16, cached=True).to(device)
    yield {
        "name": "gcn convolution of 16 channels, forward and backward, graph of Cora's size",
        "peer": "torch_geometric GCNConv",
        "target": 1.0,
        "rounds": 51,
        "ours": lambda: torch.autograd.grad(conv(h, data), [h, *conv.parameters()], grad),
        "theirs": lambda: torch.autograd.grad(peer(h, edges), [h, *peer.parameters()], grad),
    }
