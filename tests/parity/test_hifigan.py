"""The generator against SpeechT5HifiGan of transformers: the same weights, under the official names
and the weight norm of their time, in float64."""

import pytest
import torch
from house import load
from torch import nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

mod = load("vocoder/hifigan.py")


def pair(tmp_path, rates=(8, 8, 2, 2)):
    torch.manual_seed(0)
    sizes = {"model_in_dim": 80, "upsample_initial_channel": 64, "normalize_before": False}
    sizes |= {"upsample_rates": [*rates], "upsample_kernel_sizes": [2 * r for r in rates]}
    theirs = SpeechT5HifiGan(SpeechT5HifiGanConfig(**sizes)).eval()
    for module in theirs.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(module)
    saved = {k.replace("upsampler.", "ups."): v for k, v in theirs.state_dict().items()}
    saved = {k: v for k, v in saved.items() if k not in ("mean", "scale")}
    assert {"ups.0.weight_g", "resblocks.0.convs1.0.weight_v", "conv_post.bias"} <= {*saved}
    torch.save({"generator": saved}, tmp_path / "generator_v1")
    ours = mod.Generator(80, 64, [*rates], 1, True)
    mod.load_weights(tmp_path / "generator_v1", ours)
    return ours.double().eval(), theirs.double()


def gap(ours, theirs):
    m = torch.randn(1, 80, 30, dtype=torch.float64, requires_grad=True)
    ys = ours(m)[0, 0], theirs(m[0].T)
    assert ys[1].std() > 0.01
    grads = [torch.autograd.grad(y.square().sum(), m)[0] for y in ys]
    return max((a - b).abs().max().item() for a, b in (ys, grads))


@pytest.mark.parametrize("rates", [(8, 8, 2, 2), (4, 4)])
def test_generator(tmp_path, rates):
    assert gap(*pair(tmp_path, rates)) < 1e-9


def test_the_last_slope_is_another(tmp_path, monkeypatch):
    ours, theirs = pair(tmp_path)
    true = mod.F.leaky_relu
    monkeypatch.setattr(mod.F, "leaky_relu", lambda h, slope=0.1: true(h, slope))
    wrong = ours(m := torch.randn(1, 80, 30, dtype=torch.float64))
    monkeypatch.undo()
    assert (wrong[0, 0] - theirs(m[0].T)).abs().max() > 1e-3


def test_a_wrong_weight_is_seen(tmp_path):
    ours, theirs = pair(tmp_path)
    with torch.no_grad():
        ours.resblocks[4].convs2[1].bias.add_(1e-3)
    assert gap(ours, theirs) > 1e-6
