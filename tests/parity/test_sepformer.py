"""The network against one of torch.nn's parts, put together as the official one is: channels
first, attention of its own for every layer with its map kept, chunks by two shifted views."""

import math

import pytest
import torch
import torch.nn.functional as F
from house import load
from torch import nn

mod = load("separation/sepformer.py")


class PeerLayer(nn.Module):
    """One pre-norm layer of x (B, T, E); attention keeps its map, as the official one does."""

    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.att = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, 1e-6) for _ in range(2))
        self.ffn = nn.ModuleList([nn.Linear(dim, hidden), nn.Linear(hidden, dim)])

    def forward(self, x):
        y = self.norms[0](x)
        x = x + self.att(y, y, y, need_weights=True)[0]
        return x + self.ffn[1](self.ffn[0](self.norms[1](x)).clamp(min=0))


class PeerStack(nn.Module):
    def __init__(self, dim, heads, hidden, depth):
        super().__init__()
        self.layers = nn.ModuleList(PeerLayer(dim, heads, hidden) for _ in range(depth))
        self.norm, self.outer = nn.LayerNorm(dim, 1e-6), nn.GroupNorm(1, dim, 1e-8)

    def forward(self, x):
        table = torch.zeros(x.shape[1:])
        t, scale = torch.arange(x.shape[1])[:, None], -math.log(1e4) / x.shape[2]
        rate = (torch.arange(0, x.shape[2], 2) * scale).exp()
        table[:, 0::2], table[:, 1::2] = (t * rate).sin(), (t * rate).cos()
        x = x + table.to(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Peer(nn.Module):
    """x (B, S) to (B, C, S), with its encoder and decoder."""

    def __init__(self, n_filters, win, n_src, sizes, depth, n_blocks, size):
        super().__init__()
        dim = sizes[0]
        self.size, self.n_src, self.stride = size, n_src, win // 2
        self.encoder = nn.Conv1d(1, n_filters, win, win // 2, bias=False)
        self.decoder = nn.ConvTranspose1d(n_filters, 1, win, win // 2, bias=False)
        self.norm = nn.GroupNorm(1, n_filters, 1e-8)
        self.conv1d = nn.Conv1d(n_filters, dim, 1, bias=False)
        self.stacks = nn.ModuleList(PeerStack(*sizes, depth) for _ in range(2 * n_blocks))
        self.prelu, self.conv2d = nn.PReLU(), nn.Conv2d(dim, n_src * dim, 1)
        self.output, self.gate = nn.Conv1d(dim, dim, 1), nn.Conv1d(dim, dim, 1)
        self.end = nn.Conv1d(dim, n_filters, 1, bias=False)

    def segment(self, x):
        (b, e, n), size, half = x.shape, self.size, self.size // 2
        gap = size - (half + n % size) % size
        x = torch.cat([x, x.new_zeros(b, e, gap)], 2)
        edge = x.new_zeros(b, e, half)
        x = torch.cat([edge, x, edge], 2)
        one, two = x[:, :, :-half].reshape(b, e, -1, size), x[:, :, half:].reshape(b, e, -1, size)
        return torch.cat([one, two], 3).view(b, e, -1, size).transpose(2, 3), gap  # (b, e, K, J)

    def over_add(self, x, gap):
        (b, e, *_), size, half = x.shape, self.size, self.size // 2
        x = x.transpose(2, 3).reshape(b, e, -1, 2 * size)
        one = x[..., :size].reshape(b, e, -1)[..., half:]
        two = x[..., size:].reshape(b, e, -1)[..., :-half]
        both = one + two
        return both[..., :-gap] if gap else both

    def forward(self, x):
        n, (b, c) = x.shape[1], (len(x), self.n_src)
        x = F.pad(x, (self.stride, self.stride + -n % self.stride))[:, None]
        w = self.encoder(x).relu()
        h, gap = self.segment(self.conv1d(self.norm(w)))
        _, e, k, j = h.shape
        for intra, inter in zip(self.stacks[::2], self.stacks[1::2], strict=True):
            y = intra(h.permute(0, 3, 2, 1).reshape(b * j, k, e))
            h = intra.outer(y.view(b, j, k, e).permute(0, 3, 2, 1)) + h
            y = inter(h.permute(0, 2, 3, 1).reshape(b * k, j, e))
            h = inter.outer(y.view(b, k, j, e).permute(0, 3, 1, 2)) + h
        v = self.conv2d(self.prelu(h)).reshape(b * c, e, k, j)
        v = self.over_add(v, gap)
        m = self.end(self.output(v).tanh() * self.gate(v).sigmoid()).relu().view(b, c, *w.shape[1:])
        y = self.decoder((m * w[:, None]).flatten(0, 1)).view(b, c, -1)
        return y[..., self.stride :][..., :n]


NAMES = {"masknet.output_gate": "gate", "masknet.end_conv1x1": "end", "masknet.dual_mdl": "stacks"}
NAMES |= {"masknet.": "", ".self_attn": ".att", ".norm1": ".norms.0", ".norm2": ".norms.1"}
NAMES |= {".linear1": ".ffn.0", ".linear2": ".ffn.1"}


def renamed(key, depth, n_blocks):
    """Name in Peer of a parameter of ours."""
    for old, new in NAMES.items():
        key = key.replace(old, new)
    first, *rest = key.split(".")
    if first == "stacks" and int(rest[0]) >= 2 * n_blocks:  # the two at the end
        return ".".join([("prelu", "conv2d")[int(rest[0]) - 2 * n_blocks], *rest[1:]])
    if first == "stacks" and rest[1] == "norm":
        rest[1] = "outer"
    elif first == "stacks":
        rest[1:3] = ["norm"] if int(rest[2]) == depth else ["layers", rest[2]]
    return ".".join([first, *rest])


def pair(n_src=2, size=10, depth=2):
    """Theirs and ours with the same weights, none of which is left at its initial value."""
    torch.manual_seed(0)
    ours = mod.MaskingNetwork(20, n_src, (12, 3, 16), depth, 2, size)
    ours = mod.TasNet(20, 16, ours)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs = Peer(20, 16, n_src, (12, 3, 16), depth, 2, size)
    theirs.load_state_dict({renamed(k, depth, 2): v for k, v in ours.state_dict().items()})
    return ours, theirs


def gap(ours, theirs, n, dtype=torch.float64):
    """Largest relative difference of the outputs and of the gradients for sounds of n samples."""
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x, found = torch.randn(2, n, dtype=dtype, requires_grad=True), []
    for net in (ours, theirs):
        y = net(x)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        names = dict(net.named_parameters())
        if net is ours:
            names = {renamed(key, 2, 2): value for key, value in names.items()}
        inputs = [x, *(p for _, p in sorted(names.items()))]
        found.append([y, *torch.autograd.grad((y * weight).sum(), inputs)])
    pairs = zip(*found, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 800, 801, 1000])
def test_network(n):
    torch.set_default_dtype(torch.float64)  # for the table of sines
    try:
        assert gap(*pair(), n) < 1e-9
        assert gap(*pair(3, 6), n) < 1e-9
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("n", [8000, 8001])
def test_network_in_single_precision(n):
    ours, theirs = pair()
    x = torch.randn(2, n)
    with torch.inference_mode():
        for net in (ours, theirs):
            net.eval()
        a, b = ours(x), theirs(x)
    assert (a - b).abs().max() < 1e-4 * max(1, b.abs().max())


WEIGHTS = ["dual_mdl.0.norm", "dual_mdl.1.mdl.0.self_attn.out_proj", "dual_mdl.2.mdl.2"]
WEIGHTS += ["dual_mdl.3.mdl.1.norm2", "dual_mdl.4", "norm", "output", "output_gate"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_wrong_weight_is_seen(name):
    ours, theirs = pair()
    with torch.no_grad():
        ours.masknet.get_submodule(name).weight.mul_(1.001)
    assert gap(ours, theirs, 800) > 1e-6


def test_exchanged_paths_are_seen():
    ours, theirs = pair()
    paths = ours.masknet.dual_mdl
    paths[0], paths[1] = paths[1], paths[0]
    with torch.no_grad():
        assert (ours(x := torch.randn(2, 800)) - theirs(x)).abs().max() > 1e-3


def test_an_average_in_place_of_the_sum_is_seen(monkeypatch):
    true = mod.add_chunks
    monkeypatch.setattr(mod, "add_chunks", lambda x, n: true(x, n) / 2)
    assert gap(*pair(), 800) > 1e-3
