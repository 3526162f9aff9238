"""The filtered lrelu, one side after the other without the zeros, against the plain form: zeros put
between the pixels, and all taps of both sides at once; alone, and in a step of the generator."""

import contextlib

import torch
import torch.nn.functional as F
from house import load

gan = load("gan/stylegan3.py")


def plain(x, taps, up=1, down=1, padding=0):
    """What upfirdn2d does, as its name has it: up, finite impulse response, down."""
    taps = taps if taps.ndim > 1 else taps[:, None] * taps
    B, C, h, w = x.shape
    if up > 1:
        x = F.pad(x[..., None, :, None], (0, up - 1, 0, 0, 0, up - 1)).view(B, C, h * up, w * up)
        low = len(taps) - 1 - padding
        x = F.pad(x, (low, low - up + 1, low, low - up + 1))
        padding = 0
    x = F.conv2d(x, taps.flip(0, 1).expand(C, 1, -1, -1), padding=padding, groups=C)
    return x[:, :, ::down, ::down]


@contextlib.contextmanager
def in_plain_form():
    ours, gan.upfirdn2d = gan.upfirdn2d, plain
    try:
        yield
    finally:
        gan.upfirdn2d = ours


def rows(device):
    torch.manual_seed(0)
    for size, n_layers in ((32, 6), (64, 8)):
        argv = ["--img_size", f"{size}", "--n_layers", f"{n_layers}", "--fmap_max", "32"]
        args = gan.parse_args([*argv, "--fmap_base", "2048", "--batch_size", "8"])
        args.device = device
        generator = gan.build(args)[0]
        layer = [*generator.synthesis.values()][-3]
        n, side = layer.weight.shape[0], size + 20 + layer.weight.shape[2] - 1
        x, z = torch.randn(8, n, side, side, device=device), gan.noise(args, 8)
        x = x.contiguous(memory_format=torch.channels_last)  # as the generator has it
        filters = layer.up_filter, layer.down_filter, layer.up, layer.down, layer.crop

        def alone(x=x, filters=filters):
            leaf = x.clone().requires_grad_()
            gan.filtered_leaky(leaf, *filters).square().sum().backward()

        def step(generator=generator, z=z):
            generator.zero_grad()
            generator(z).square().sum().backward()

        for name, run in ((f"filtered lrelu, {n} x {side} x {side}", alone), ("generator", step)):

            def theirs(run=run):
                with in_plain_form():
                    run()

            yield {
                "name": f"stylegan3 {name}, both ways, batch 8, {size} px",
                "peer": "plain form: zeros, square filters",
                "target": 0.8,
                "ours": run,
                "theirs": theirs,
            }
        with torch.no_grad():
            here = generator.eval()(z)
            with in_plain_form():
                gap = (generator(z) - here).abs().max().item()
        if gap > 1e-4:
            raise ValueError(f"the two forms differ by {gap}")
