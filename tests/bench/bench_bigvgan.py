"""The anti-aliased activation against the same of transformers for Qwen2.5-Omni, and against one
that multiplies no zeros, in two rows of even and odd samples; and the base network."""

import torch
import torch.nn.functional as F
from house import load
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as qwen
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig

mod = load("vocoder/bigvgan.py")


def polyphase(net, h):
    """Rows of taps for samples of even and of odd number, which are then read as two channels."""
    up, down, c = net.upsample.filter[0], net.downsample.lowpass.filter[0], h.shape[1]
    up = torch.stack([F.pad(up.flip(1)[:, ::2], (0, 1)), F.pad(up.flip(1)[:, 1::2], (1, 0))])
    down = torch.stack([F.pad(down[:, 1::2], (1, 0)), F.pad(down[:, ::2], (0, 1))], 1)
    z = F.conv1d(F.pad(h, (3, 3), mode="replicate"), 2 * up.repeat(c, 1, 1), groups=c)
    z = net.act(z.unflatten(1, (c, 2)).flatten(2)).unflatten(2, (2, -1))  # (B, C, 2, S)
    first, last = z[..., :1, :1].expand(-1, -1, 2, 3), z[..., 1:, -1:].expand(-1, -1, 2, 3)
    z = torch.cat([first, z, last], 3).flatten(1, 2)
    return F.conv1d(z, down.repeat(c, 1, 1), groups=c)


def rows(device):
    torch.manual_seed(0)
    dim, n = 64, 11_008  # as in the third stage of half a second
    ours = mod.AntiAliased(dim, "snakebeta").to(device)
    theirs = qwen.Qwen2_5OmniAntiAliasedActivation1d(qwen.Qwen2_5OmniSnakeBeta(dim)).to(device)
    h = torch.randn(1, dim, n, device=device)

    def forward(net, h):
        with torch.inference_mode():
            net(h)

    def step(net):
        x = h.clone().requires_grad_()
        net(x).square().sum().backward()

    def rowwise(h):
        return polyphase(ours, h)

    if (rowwise(h) - ours(h)).abs().max() > 1e-5:
        raise ValueError("the two forms of the activation differ")
    peers = {"transformers Qwen2_5OmniAntiAliasedActivation1d": theirs, "polyphase rows": rowwise}
    for peer, other in peers.items():
        yield {
            "name": f"bigvgan activation, 64 x 11008, against {peer.split()[0]}",
            "peer": peer,
            "target": 1.05,
            "ours": lambda: forward(ours, h),
            "theirs": lambda other=other: forward(other, h),
        }
        yield {
            "name": f"bigvgan activation, 64 x 11008, with backward, against {peer.split()[0]}",
            "peer": peer,
            "target": 1.05,
            "ours": lambda: step(ours),
            "theirs": lambda other=other: step(other),
        }
    args = mod.parse_args(["--config", "base_22k", "--dataset", "fsdd"])
    args.device = device
    generator, m = mod.build(args)[0], torch.randn(80, 43, device=device) - 5
    sizes = {"mel_dim": 80, "upsample_initial_channel": 512, "upsample_rates": [8, 8, 2, 2]}
    config = Qwen2_5OmniBigVGANConfig(**sizes, upsample_kernel_sizes=[16, 16, 4, 4])
    whole = qwen.Qwen2_5OmniToken2WavBigVGANModel(config).eval().to(device)
    yield {
        "name": "bigvgan base, half a second of 22 kHz from its mel",
        "peer": "transformers Qwen2_5OmniToken2WavBigVGANModel",
        "target": 1.05,
        "ours": lambda: mod.vocode(generator, m, 400),
        "theirs": lambda: forward(whole, m[None]),
    }
