"""Each block, the encoder-decoder and the whole network against a restatement in the official
layout (channels first, attention as sums over pairs of frames), with the same weights in float64,
LayerScale far from its 1e-5, which would hide every error."""

import math

import pytest
import torch
import torch.nn.functional as F
from house import load

mod = load("separation/sepreformer.py")


def wild(net):
    """No parameter and no statistic at its initial value."""
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.randn_like(tensor) * 0.3 + name.endswith(("scale", "var", "weight")) * 0.3
                )
                if name.endswith("var"):
                    tensor.abs_().add_(0.5)
    return net.double().eval()


def dense(x, layer):
    """A layer along the channels of x (B, E, T)."""
    bias = 0 if layer.bias is None else layer.bias[:, None]
    return torch.einsum("oe,bet->bot", layer.weight, x) + bias


def over_channels(x, norm):
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None] + norm.bias[:, None]


def of_batch(x, norm):
    mean, var = norm.running_mean[:, None], norm.running_var[:, None]
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None] + norm.bias[:, None]


def of_all(x, norm, eps=1e-8):
    mean, var = x.mean((1, 2), keepdim=True), x.var((1, 2), keepdim=True, correction=0)
    return (x - mean) / (var + eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]


def half_gated(x):
    a, b = x.chunk(2, 1)
    return a / (1 + (-b).exp())


def gelu(x):
    return x / 2 * (1 + (x / 2**0.5).erf())


def depthwise(x, conv):
    taps = conv.weight.shape[2]
    frames = F.pad(x, (taps // 2, taps // 2)).unfold(2, taps, conv.stride[0])
    return torch.einsum("betk,ek->bet", frames, conv.weight[:, 0]) + conv.bias[:, None]


def gcfn(x, net):
    y = depthwise(dense(over_channels(x, net.norm), net.up), net.conv)
    return x + net.scale[:, None] * dense(half_gated(y), net.down)


def attention(x, net, places=None):
    """x (B, E, T), places the Embedding or None."""
    b, e, n = x.shape
    parts = dense(over_channels(x, net.norm), net.qkv).view(b, 3, net.heads, -1, n)
    q, k, v = parts.unbind(1)  # (B, H, d, T)
    scores = torch.einsum("bhdt,bhdu->bhtu", q, k)
    if places is not None:
        for t in range(n):
            for u in range(n):
                row = places.weight[min(max(t - u, -2000), 1999) + 2000]
                scores[:, :, t, u] += q[..., t] @ row
    weights = (scores / q.shape[2] ** 0.5).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    y = torch.einsum("bhtu,bhdu->bhdt", weights, v).reshape(b, e, n)
    return net.scale[:, None] * dense(y, net.out)


def nearest(x, n):
    return x[:, :, torch.arange(n) * x.shape[2] // n]


def global_block(x, net, places, few):
    small = x.unflatten(2, (few, -1)).mean(3)
    y = nearest(attention(small, net.attention, places), x.shape[2])
    gate = 1 / (1 + (-dense(over_channels(x, net.gate[0]), net.gate[1])).exp())
    return gcfn(x + gate * y, net.ffn)


def local_block(x, net):
    y = half_gated(dense(over_channels(x, net.norm), net.up))
    y = of_batch(dense(depthwise(y, net.conv), net.mid), net.bn)
    return gcfn(x + net.scale[:, None] * dense(gelu(y), net.down), net.ffn)


def speaker_block(x, net, n_src):
    y = torch.empty_like(x)
    for b in range(0, len(x), n_src):
        for t in range(x.shape[2]):
            voices = x[b : b + n_src, :, t].T[None]  # (1, E, C)
            y[b : b + n_src, :, t] = attention(voices, net.attention)[0].T
    return gcfn(x + y, net.ffn)


def stage(x, net, places, few, n_src):
    for blocks in net.blocks:
        x = local_block(global_block(x, blocks[0], places, few), blocks[1])
        x = speaker_block(x, blocks[2], n_src) if len(blocks) == 3 else x
    return x


def head(y, net):
    return dense(half_gated(dense(y, net.up)), net.down)


def voices_of(x, net, n_src):
    y = dense(half_gated(dense(x, net.up)), net.down)
    return of_all(y.reshape(len(x) * n_src, -1, x.shape[2]), net.norm)


def separated(w, net, n_src):
    """d of scale 0, and masked ones of lower scales."""
    scales, n = len(net.fuse), w.shape[2]
    x = dense(of_all(w, net.norm), _matrix(net.conv1d))
    x = F.pad(x, (0, -n % 2**scales))
    few, skips, low = x.shape[2] // 2**scales, [], []
    for at in range(scales):
        x = stage(x, net.encoder[at], net.places, few, n_src)
        skips.append(voices_of(x, net.split, n_src))
        x = gelu(of_batch(depthwise(x, net.halve[at].conv), net.halve[at].bn))
    x = stage(x, net.encoder[scales], net.places, few, n_src)
    y = voices_of(x, net.split, n_src)
    for at in range(scales):
        low.append(y)
        skip = skips[scales - 1 - at]
        y = dense(torch.cat([nearest(y, skip.shape[2]), skip], 1), net.fuse[at])
        y = stage(y, net.decoder[at], net.places, few, n_src)
    found = [head(y, net.heads[0])[..., :n].reshape(len(w), n_src, -1, n)]
    for at, y in enumerate(low):
        mask = head(nearest(y, n), net.heads[at + 1]).clamp(min=0)
        found.append(mask.reshape(len(w), n_src, -1, n) * w[:, None])
    return found


class _matrix:
    """A convolution of one tap, as dense reads a layer."""

    def __init__(self, conv):
        self.weight, self.bias = conv.weight[:, :, 0], None


SIZES = (12, 3, 7, 0.05)


def block(kind):
    torch.manual_seed(0)
    if kind is mod.SpeakerBlock:
        return wild(mod.SpeakerBlock(12, 3, 0.05, 3))
    return wild(kind(*SIZES) if kind in (mod.GlobalBlock, mod.LocalBlock) else kind(12, 0.05))


def gaps():
    torch.manual_seed(1)
    x, places = torch.randn(6, 12, 24).double(), wild(torch.nn.Embedding(4000, 4))
    t = torch.arange(6)
    r = places((t[:, None] - t).clamp(-2000, 1999) + 2000)
    pairs = {"gcfn": (block(mod.GCFN)(x.mT), gcfn(x, block(mod.GCFN)))}
    net = block(mod.LocalBlock)
    pairs["local"] = net(x.mT), local_block(x, net)
    net = block(mod.GlobalBlock)
    pairs["global"] = net(x.mT, r), global_block(x, net, places, 6)
    net = block(mod.SpeakerBlock)
    pairs["speaker"] = net(x.mT), speaker_block(x, net, 3)
    return {key: (a.mT - b).abs().max().item() for key, (a, b) in pairs.items()}


def test_blocks():
    assert max(gaps().values()) < 1e-9


@pytest.mark.parametrize(
    "part, wrong", [("glu", lambda x, dim=-1: x.chunk(2, dim)[0]), ("gelu", F.relu)]
)
def test_a_wrong_function_is_seen(part, wrong, monkeypatch):
    monkeypatch.setattr(mod.F, part, wrong)
    assert gaps()["local"] > 1e-3


def network(n_src=2):
    torch.manual_seed(0)
    return wild(mod.TasNet(10, 16, mod.Separator(10, n_src, SIZES, 2, 1, 2)))


@pytest.mark.parametrize("n, n_src", [(1, 2), (15, 2), (17, 3), (200, 2), (203, 3)])
def test_network(n, n_src):
    net, x = network(n_src), torch.randn(2, n).double()
    net.train()
    for part in net.modules():  # all scales, but nothing left out and statistics as they are
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm | torch.nn.Dropout):
            part.eval()
        if isinstance(part, mod.ScaledAttention):
            part.eval()
    with torch.no_grad():
        w = F.gelu(net.encoder(F.pad(x, (0, -n % 4))[:, None]))
        ours, theirs = net.separator(w), separated(w, net.separator, n_src)
        assert len(ours) == len(theirs) == 3 and w.shape[2] == math.ceil(n / 4) + 1
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() < 1e-9 * max(1, b.abs().max())
        for e, d, decoder in zip(net(x), theirs, net.decoder, strict=True):
            y = decoder(d.flatten(0, 1)).view(2, n_src, -1)[..., :n]
            assert (e - y).abs().max() < 1e-9 * max(1, y.abs().max())
        assert (
            net.eval()(x) - net.decoder[0](theirs[0].flatten(0, 1)).view(2, n_src, -1)[..., :n]
        ).abs().max() < 1e-9


WEIGHTS = ["encoder.2.blocks.0.1.bn", "encoder.0.blocks.0.0.attention.qkv", "halve.1.conv"]
WEIGHTS += ["split.norm", "fuse.0", "decoder.1.blocks.1.2.attention.out", "heads.0.up", "places"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_wrong_weight_is_seen(name):
    net = network()
    w = torch.randn(1, 10, 41).double()
    with torch.no_grad():
        theirs = separated(w, net.separator, 2)[0]
        assert (net.separator(w)[0] - theirs).abs().max() < 1e-9
        net.separator.get_submodule(name).weight.mul_(1.01)
        assert (net.separator(w)[0] - theirs).abs().max() > 1e-6
