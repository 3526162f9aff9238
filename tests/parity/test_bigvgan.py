"""The activation and the generator against those that transformers keeps for Qwen2.5-Omni: the same
weights, under the official names and the weight norm of their time."""

import pytest
import torch
from house import load
from torch import nn
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as qwen
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig

mod = load("vocoder/bigvgan.py")


def activations(dim):
    torch.manual_seed(0)
    theirs = qwen.Qwen2_5OmniAntiAliasedActivation1d(qwen.Qwen2_5OmniSnakeBeta(dim))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = mod.AntiAliased(dim, "snakebeta")
    assert not ours.load_state_dict(theirs.state_dict(), strict=False).unexpected_keys
    return ours, theirs


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000])
def test_activation(n):
    ours, theirs = activations(5)
    h = torch.randn(2, 5, n)
    assert (ours(h) - theirs(h)).abs().max() < 1e-6 * max(1, h.abs().max())
    ours.upsample.filter.copy_(theirs.upsample.filter)  # theirs are rounded along the way
    ours.downsample.lowpass.filter.copy_(theirs.downsample.filter)
    ours, theirs = ours.double(), theirs.double()
    h = h.double().requires_grad_()
    found = []
    for net in (ours, theirs):
        y = net(h)
        inputs = [h, net.act.alpha, net.act.beta]
        found.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert max((a - b).abs().max() for a, b in zip(*found, strict=True)) < 1e-9 * max(1, n)


def test_a_wrong_tap_is_seen():
    ours, theirs = activations(5)
    ours.upsample.filter[..., 3] += 1e-4
    h = torch.randn(2, 5, 64)
    assert (ours(h) - theirs(h)).abs().max() > 1e-5


def generators(tmp_path, rates):
    torch.manual_seed(0)
    sizes = {"mel_dim": 80, "upsample_initial_channel": 64, "upsample_rates": [*rates]}
    sizes |= {"upsample_kernel_sizes": [2 * r for r in rates]}
    theirs = qwen.Qwen2_5OmniToken2WavBigVGANModel(Qwen2_5OmniBigVGANConfig(**sizes)).eval()
    for module in theirs.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            nn.init.normal_(module.weight, std=0.7 * module.weight[0].numel() ** -0.5)
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(module)
        elif isinstance(module, qwen.Qwen2_5OmniSnakeBeta):
            nn.init.normal_(module.alpha, std=0.3), nn.init.normal_(module.beta, std=0.3)
    saved = dict(theirs.state_dict())
    filters = {k: v for k, v in theirs.named_buffers() if k.endswith("filter")}
    saved |= {k.replace("downsample.", "downsample.lowpass."): v for k, v in filters.items()}
    saved["conv_post.bias"] = torch.zeros(1)  # which theirs does without
    assert {"ups.0.0.weight_g", "activation_post.downsample.lowpass.filter"} <= {*saved}
    torch.save({"generator": saved}, tmp_path / "g_05000000")
    ours = mod.Generator(80, 64, [*rates], 1, "snakebeta", True)
    mod.load_weights(tmp_path / "g_05000000", ours)
    return ours.double().eval(), theirs.double()


@pytest.mark.parametrize("rates", [(8, 8, 2, 2), (4, 2)])
def test_generator(tmp_path, rates):
    ours, theirs = generators(tmp_path, rates)
    m = torch.randn(1, 80, 12, dtype=torch.float64) - 5
    wanted = theirs(m)
    assert wanted.abs().max() < 1 and wanted.std() > 1e-3  # so that nothing was cut off there
    y = ours(theirs.process_mel_spectrogram(m))[0, 0]
    assert (y - wanted.tanh()).abs().max() < 1e-9
    with torch.no_grad():
        ours.resblocks[4].activations[3].act.beta.add_(1e-3)
    assert (ours(theirs.process_mel_spectrogram(m))[0, 0] - wanted.tanh()).abs().max() > 1e-9
