"""The separator against a restatement frame by frame and segment by segment in float64: the LSTM
written out, no batch of segments, states handed on by hand; and torch's LSTMCell once more."""

import pytest
import torch
from house import load

mod = load("separation/skim.py")


def lstm_by_hand(x, net, h, c):
    """x (B, T, E) through the gates in torch's order: i, f, g, o."""
    found = []
    for t in range(x.shape[1]):
        gates = x[:, t] @ net.weight_ih_l0.T + net.bias_ih_l0 + h @ net.weight_hh_l0.T
        i, f, g, o = (gates + net.bias_hh_l0).chunk(4, 1)
        i, f, o = (1 / (1 + (-gate).exp()) for gate in (i, f, o))
        c = f * c + i * g.tanh()
        h = o * c.tanh()
        found.append(h)
    return torch.stack(found, 1), h, c


def lstm_by_cell(x, net, h, c):
    cell = torch.nn.LSTMCell(net.input_size, net.hidden_size).double()
    cell.load_state_dict({key[:-3]: value for key, value in net.state_dict().items()})
    found = []
    for t in range(x.shape[1]):
        h, c = cell(x[:, t], (h, c))
        found.append(h)
    return torch.stack(found, 1), h, c


def residual_by_hand(x, net, h, c, lstm):
    y, h, c = lstm(x, net.lstm, h, c)
    y = y @ net.proj.weight.T + net.proj.bias
    y = (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True, correction=0) + 2**-23).sqrt()
    return x + y * net.norm.weight + net.norm.bias, h, c


def masks_by_hand(w, net, lstm=lstm_by_hand):
    """Layer by layer, segment after segment, of w (B, N, T)."""
    segments = [*w.mT.split(net.segment, 1)]
    begins = [(torch.zeros(len(w), net.hidden).double(),) * 2] * len(segments)
    for layer, seg in enumerate(net.seg_lstms):
        ends = []
        for s, (h, c) in enumerate(begins):
            segments[s], h, c = residual_by_hand(segments[s], seg, h, c, lstm)
            ends.append((h, c))
        if layer == len(net.mem_lstms):
            break
        both = []
        for at, mem in enumerate(net.mem_lstms[layer]):
            zero = torch.zeros_like(ends[0][0])
            row = torch.stack([end[at] for end in ends], 1)  # (B, J, H)
            row = residual_by_hand(row, mem, zero, zero, lstm)[0]
            both.append([zero, *row.unbind(1)[:-1]])
        begins = [*zip(*both, strict=True)]
    x = torch.cat(segments, 1)
    x = torch.where(x > 0, x, x * net.output[0].weight)
    x = (x @ net.output[1].weight.T + net.output[1].bias).clamp(min=0)
    return x.view(*x.shape[:2], net.n_src, -1).permute(0, 2, 3, 1)


def separator(n_blocks=3, segment=7, n_src=2):
    torch.manual_seed(0)
    net = mod.SkiM(10, n_src, 6, n_blocks, segment).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    net.hidden = 6
    return net


def gap(net, n, lstm=lstm_by_hand):
    """Largest relative difference of the masks and of all gradients for n frames."""
    w, found = torch.randn(2, 10, n, dtype=torch.float64, requires_grad=True), []
    for m in (net(w), masks_by_hand(w, net, lstm)):
        weight = torch.randn(m.shape, generator=torch.Generator().manual_seed(1)).double()
        inputs = [w, *net.parameters()] if lstm is lstm_by_hand else [w]
        grads = torch.autograd.grad((m * weight).sum(), inputs, allow_unused=n <= net.segment)
        found.append([m, *(grad for grad in grads if grad is not None)])
    # Where there is one segment, memories take part in ours, padded away, and not in theirs.
    pairs = zip(*(f[: 2 if n <= net.segment else None] for f in found), strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)


@pytest.mark.parametrize("n", [1, 6, 7, 8, 14, 15, 40])
def test_separator(n):
    assert gap(separator(), n) < 1e-9
    assert gap(separator(1, 5, 3), n if n > 5 else 6) < 1e-9
    assert gap(separator(), n, lstm_by_cell) < 1e-9


def test_separator_in_single_precision():
    net, w = separator(), torch.randn(2, 10, 157)
    with torch.no_grad():
        wanted = masks_by_hand(w.double(), net)
        assert (net.float()(w) - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max())


@pytest.mark.parametrize("name", ["seg_lstms.1.proj", "mem_lstms.0.1.norm", "output.1"])
def test_a_wrong_weight_is_seen(name):
    net, other, w = separator(), separator(), torch.randn(2, 10, 40).double()
    with torch.no_grad():
        other.get_submodule(name).weight.mul_(1.001)
        assert (other(w) - masks_by_hand(w, net)).abs().max() > 1e-7


def test_exchanged_memories_are_seen():
    net, other, w = separator(), separator(), torch.randn(2, 10, 40).double()
    pair = other.mem_lstms[0]
    pair[0], pair[1] = pair[1], pair[0]
    with torch.no_grad():
        assert (other(w) - masks_by_hand(w, net)).abs().max() > 1e-4
