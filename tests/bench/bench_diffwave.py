"""One look of the base network at a second of sound of 22 kHz, in one piece, against the package
diffwave with the same weights."""

import torch
from diffwave.model import DiffWave
from diffwave.params import AttrDict, params
from house import load

mod = load("vocoder/diffwave.py")


def rows(device):
    torch.manual_seed(0)
    args = mod.parse_args(["--config", "base", "--dataset", "fsdd"])
    args.device = device
    ours, theirs = mod.build(args)[0].eval(), DiffWave(AttrDict(params)).eval().to(device)
    theirs.load_state_dict(ours.state_dict())
    m = torch.rand(1, 80, 86, device=device)
    x, t = torch.randn(1, 86 * 256, device=device), torch.tensor([7.3], device=device)

    @torch.inference_mode()
    def look():
        mod.predict_noise(ours, x, ours.stretch(m), t, x.shape[1])

    @torch.inference_mode()
    def their_look():
        theirs(x, m, t)

    yield {
        "name": "diffwave base, noise in one second of 22 kHz",
        "peer": "diffwave (LMNT)",
        "target": 1.05,
        "rounds": 5,
        "ours": look,
        "theirs": their_look,
    }
