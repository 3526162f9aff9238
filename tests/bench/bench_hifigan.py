"""V1 on one second of sound against the generator of transformers, which has the same layers
without weight norm; and folding at a period by convolutions of one dimension against two."""

import torch
import torch.nn.functional as F
from house import load
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

mod = load("vocoder/hifigan.py")


class Folded(torch.nn.Module):
    """The official judge of a period: (B, 1, S/P, P) under kernels of one column."""

    def __init__(self, judge):
        super().__init__()
        self.judge = judge

    def forward(self, x):
        period, layers = self.judge.period, []
        h = F.pad(x, (0, -x.shape[2] % period), "reflect").unflatten(2, (-1, period))
        for n, conv in enumerate([*self.judge.convs, self.judge.conv_post]):
            stride, pad = (conv.stride[0], 1), (conv.padding[0], 0)
            h = F.conv2d(h, conv.weight[..., None], conv.bias, stride, pad)
            layers.append(h := F.leaky_relu(h, 0.1) if n < 5 else h)
        return layers


def rows(device):
    torch.manual_seed(0)
    args = mod.parse_args(["--config", "v1", "--dataset", "fsdd"])
    args.device = device
    ours, m = mod.build(args)[0], torch.randn(80, 86, device=device) - 5
    sizes = {"upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, 4]}
    config = SpeechT5HifiGanConfig(**sizes, normalize_before=False)
    theirs = SpeechT5HifiGan(config).eval().to(device)

    def their_sound():
        with torch.inference_mode():
            theirs(m.T)

    yield {
        "name": "hifigan V1, one second of 22 kHz from its mel (ms / 1000 = real-time factor)",
        "peer": "transformers SpeechT5HifiGan",
        "target": 1.1,
        "ours": lambda: mod.vocode(ours, m, 400),
        "theirs": their_sound,
    }
    judge, x = mod.PeriodDiscriminator(32, 3).to(device), torch.randn(1, 1, 8192, device=device)
    official = Folded(judge)

    def step(judge):
        judge.zero_grad()
        sum(layer.square().mean() for layer in judge(x)).backward()

    yield {
        "name": "hifigan judge of period 3, forward and backward, 1 x 8192",
        "peer": "conv2d with kernels of one column",
        "target": 1.0,
        "ours": lambda: step(judge),
        "theirs": lambda: step(official),
    }
