"""The Conformer layer with attention against torchaudio's, in float64, by transfer of the weights;
the log-mel front end and the edit distance against torchaudio's."""

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from house import load
from torch import nn
from torchaudio.models.conformer import ConformerLayer

mod = load("ssm/h3_conformer.py")
# Ours -> theirs, beginnings of the names of the parameters.
NAMES = {
    "ffn1.": "ffn1.sequential.",
    "ffn2.": "ffn2.sequential.",
    "mix_norm.": "self_attn_layer_norm.",
    "mixers.0.": "self_attn.",
    "conv_norm.": "conv_module.layer_norm.",
    "pointwise1.": "conv_module.sequential.0.",
    "depthwise.": "conv_module.sequential.2.",
    "batch_norm.": "conv_module.sequential.3.",
    "pointwise2.": "conv_module.sequential.5.",
    "final_norm.": "final_layer_norm.",
}


def theirs_of(name):
    return next(name.replace(ours, theirs, 1) for ours, theirs in NAMES.items() if ours in name)


def layers(kernel_size=7):
    """Ours and theirs with the same weights, none of which is left at its initial value."""
    torch.manual_seed(0)
    theirs = ConformerLayer(16, 64, 4, kernel_size).double()
    with torch.no_grad():
        for parameter in [*theirs.parameters(), theirs.conv_module.sequential[3].running_mean]:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        theirs.conv_module.sequential[3].running_var.uniform_(0.5, 2)
    ours = mod.ConformerLayer(16, kernel_size, 0.0, [mod.MHSA(16, 4, 0.0)]).double()
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights.pop(theirs_of(name)) for name in ours.state_dict()})
    assert not weights  # every one of theirs has found its place
    return ours, theirs


def both_ways(layer, names, x, forward):
    """Output, gradients of the input and of the parameters, statistics of the norm."""
    x = x.clone().requires_grad_()
    y = forward(layer, x)
    torch.manual_seed(2)
    parameters = dict(layer.named_parameters())
    wanted = [x, *(parameters[name] for name in names)]
    grads = torch.autograd.grad(y, wanted, torch.randn(y.shape, dtype=y.dtype))
    return [y, *grads, *(b for name, b in layer.named_buffers() if "running" in name)]


def gap(training, kernel_size=7):
    ours, theirs = (layer.train(training) for layer in layers(kernel_size))
    names = [name for name, _ in ours.named_parameters()]
    torch.manual_seed(1)
    x = torch.randn(3, 21, 16, dtype=torch.float64)
    found = both_ways(ours, names, x, lambda layer, x: layer(x, torch.ones(3, 21, 1)))
    names = [theirs_of(name) for name in names]
    other = both_ways(
        theirs, names, x, lambda layer, x: layer(x.transpose(0, 1), None).transpose(0, 1)
    )
    pairs = zip(found, other, strict=True)
    return max(((a - b).abs().max() / max(1, b.abs().max())).item() for a, b in pairs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 7, 31])
def test_layer_equals_torchaudio(training, kernel_size):
    assert gap(training, kernel_size) < 1e-9


def test_padded_batch_equals_torchaudio_one_by_one():
    """Theirs lets padding into valid frames through its convolution; ours does not."""
    ours, theirs = (layer.eval() for layer in layers())
    x, lengths = torch.randn(3, 21, 16, dtype=torch.float64), torch.tensor([21, 9, 14])
    mask = mod.frames_within(21, lengths)[..., None]
    with torch.no_grad():
        y = ours(x, mask)
        leaky = theirs(x.transpose(0, 1), mask[..., 0] == 0).transpose(0, 1)
        for i, n in enumerate(lengths):
            alone = theirs(x[i : i + 1, :n].transpose(0, 1), None).transpose(0, 1)[0]
            assert (y[i, :n] - alone).abs().max() < 1e-9
            assert n == 21 or (leaky[i, :n] - alone).abs().max() > 1e-3


def whole_feed_forward(self, x, mask):
    self.ffn1[-1].p = 0.0
    return true_forward(self, x + self.ffn1(x) / 2, mask)


def swapped_gate(x, dim):
    return F.sigmoid(x.chunk(2, dim)[0]) * x.chunk(2, dim)[1]


class Plain(nn.BatchNorm1d):
    """Divides the variance by one less than it should."""

    def forward(self, x, mask):
        y = super().forward(x)
        return y * (1 - 0.5 / (x.shape[0] * x.shape[2]))


true_forward = mod.ConformerLayer.forward
BREAKS = {
    "feed-forward twice": (mod.ConformerLayer, "forward", whole_feed_forward),
    "gate and gated exchanged": (F, "glu", swapped_gate),
    "relu for swish": (F, "silu", F.relu),
    "another variance": (mod, "MaskedBatchNorm", Plain),
}


class Broken:
    """torch.nn.functional with one function exchanged, for our file alone."""

    def __init__(self, name, wrong):
        setattr(self, name, wrong)

    def __getattr__(self, name):
        return getattr(F, name)


@pytest.mark.parametrize("name", BREAKS)
def test_broken_layer_differs(name, monkeypatch):
    target, key, wrong = BREAKS[name]
    if target is F:
        target, key, wrong = mod, "F", Broken(key, wrong)
    monkeypatch.setattr(target, key, wrong)
    assert gap(True) > 1e-4


@pytest.mark.parametrize("n_mels", [8, 24, 40])
def test_mel_spectrogram_equals_torchaudio(n_mels):
    torch.manual_seed(0)
    x = torch.randn(2, 3000, dtype=torch.float64)
    sizes = {"n_fft": 256, "hop_length": 80, "center": False, "n_mels": n_mels}
    theirs = torchaudio.transforms.MelSpectrogram(mod.RATE, **sizes).double()
    ours = mod.FrontEnd(n_mels, 4).double().log_mel(x)
    wanted = ((theirs(x) + 1e-3).log() - 2) / 3
    assert ours.shape == wanted.mT.shape and (ours - wanted.mT).abs().max() < 1e-5
    wrong = torchaudio.transforms.MelSpectrogram(mod.RATE, **sizes, mel_scale="slaney").double()
    assert (ours - ((wrong(x) + 1e-3).log().mT - 2) / 3).abs().max() > 1e-2


def test_edit_distance_equals_torchaudio():
    torch.manual_seed(0)
    for n in range(30):
        a, b = torch.randint(4, (n,)).tolist(), torch.randint(4, (29 - n,)).tolist()
        assert mod.edit_distance(a, b) == torchaudio.functional.edit_distance(a, b)
