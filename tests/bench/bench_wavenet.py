"""30 blocks, one voice, no batch: samples from queues against samples each drawn anew, and against
the usual incremental form, written here: in every block a convolution module on a buffer that is
one tensor, concatenated anew at every sample, and a projection of the conditions of that sample."""

import torch
import torch.nn.functional as F
from house import load

mod = load("vocoder/wavenet.py")


@torch.inference_mode()
def anew(model, c, g, n):
    """The last n codes of sounds as long as c, their first ones silence."""
    q = torch.full((1, c.shape[2]), 128, device=c.device)
    for t in range(c.shape[2] - n, c.shape[2]):
        first = t - model.reach()
        scores = model(q[:, first : t + 1], c[:, :, first : t + 1], g)[:, :, -1]
        q[:, t] = mod.draw_code(scores, 1.0)
    return q[:, -n:]


@torch.inference_mode()
def usual(model, m, g):
    """Codes as sample draws them."""
    c, g = model.stretch(m), model.voices(g)
    buffers = [c.new_zeros(1, block.sizes[0], block.past) for block in model.residual_layers]
    q, codes = torch.full((1, 1), 128, device=c.device), []
    for t in range(c.shape[2]):
        h, s, now = model.input_projection(q).mT, 0, c[:, :, t : t + 1]
        for n, block in enumerate(model.residual_layers):
            seen = torch.cat([buffers[n], h], 2)  # (1, R, past + 1)
            buffers[n] = seen[:, :, 1:]
            conv = block.dilated_conv  # on the taps alone: far sooner than dilated, on all
            y = F.conv1d(seen[:, :, :: conv.dilation[0]], conv.weight, conv.bias)
            y = y + block.conditioner_projection(now)
            a, b = (y + block.voice_projection(g)[..., None]).chunk(2, 1)
            residual, skip = block.output_projection(a.tanh() * b.sigmoid()).split(block.sizes, 1)
            h, s = h + residual, s + skip
        scores = model.output_projection(model.skip_projection(s.relu()).relu())
        q = mod.draw_code(scores[:, :, 0], 1.0)[:, None]
        codes.append(q)
    return torch.cat(codes, 1)


def rows(device):
    torch.manual_seed(0)
    args = mod.parse_args(["--config", "paper", "--dataset", "fsdd"])
    args.device = device
    model, g = mod.build(args)[0].eval(), torch.zeros(1, dtype=torch.long, device=device)
    m = torch.randn(1, 80, 4, device=device)  # 1024 samples
    c = torch.randn(1, 80, model.reach() + 5, device=device)
    yield {
        "name": "wavenet 30 blocks: 1024 samples from queues to 4 drawn anew (1 / 256 of them)",
        "peer": "a pass over the reach for each sample",
        "target": 256 / 50,
        "rounds": 3,
        "ours": lambda: mod.sample(model, m, g),
        "theirs": lambda: anew(model, c, g, 4),
    }
    yield {
        "name": "wavenet 30 blocks: 1024 samples",
        "peer": "a convolution and a concatenated buffer per block",
        "target": 0.5,
        "rounds": 5,
        "ours": lambda: mod.sample(model, m, g),
        "theirs": lambda: usual(model, m, g),
    }
