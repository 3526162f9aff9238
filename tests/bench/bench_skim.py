"""A stream against the time it lasts: 1 s of sound in blocks (real-time factor), and the slowest
kind of block, which ends a segment, against its own length (latency). Frames of 16 samples."""

import time

import torch
from house import load

mod = load("separation/skim.py")


def rows(device):
    torch.manual_seed(0)
    args = mod.parse_args(["--config", "espnet", "--win", "32"])
    args.device = device
    model = mod.build(args).eval()

    @torch.inference_mode()
    def stream(x, state, size):
        for block in x.split(size, 1):
            y, state = model.stream(block, state)
            y.cpu()  # as a listener would
        return state

    for size in (16, 160, 800):
        shared = {"peer": "the time it lasts", "target": 1.0}
        x = torch.randn(1, 8000, device=device)
        yield shared | {
            "name": f"skim stream, 6 x 128, 1 s in blocks of {size} samples",
            "ours": lambda x=x, size=size: stream(x, model.init_state(), size),
            "theirs": lambda: time.sleep(1.0),
        }
        start = torch.randn(1, 16 * 250, device=device)  # all frames of a segment
        state = stream(start, model.init_state(), 800)
        block = torch.randn(1, size, device=device)
        yield shared | {
            "name": f"skim stream, 6 x 128, block of {size} samples after a segment's end",
            "ours": lambda block=block, state=state, size=size: stream(block, state, size),
            "theirs": lambda size=size: time.sleep(size / mod.RATE),
        }
