"""stylegan2.py against the same script with naive convolutions: weights modulated and used image by
image in a loop, the blur apart, over the zeros of an enlarged map or at full size before it is
thinned out; and against the grouped convolution, one form for the other."""

import importlib.util

import torch
import torch.nn.functional as F
from house import ROOT, load

gan = load("gan/stylegan2.py")
BATCH, SIZE = 8, 64


def naive_module():
    """The script once more, the two functions on which all rests written as first thought of."""
    spec = importlib.util.spec_from_file_location("naive_stylegan2", ROOT / "gan/stylegan2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def upfirdn2d(x, taps, up=1, down=1, padding=0):
        B, C, h, w = x.shape
        if up > 1:
            wide = x.new_zeros(B, C, h, up, w, up)
            wide[:, :, :, 0, :, 0] = x
            x, padding = wide.reshape(B, C, h * up, w * up), len(taps) - 1 - padding
            x = F.pad(x, (padding, padding - 1, padding, padding - 1))
            padding = 0
        x = F.pad(x, (padding,) * 4)
        x = F.conv2d(x, taps.flip(0, 1).expand(C, 1, -1, -1), groups=C)
        return x[:, :, ::down, ::down]

    def modulated_conv(x, weight, style, taps=None):
        found = []
        for image, s in zip(x, style, strict=True):
            kernel = weight * s[None, :, None, None]
            kernel = kernel * (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
            if taps is None:
                found.append(F.conv2d(image[None], kernel, padding=1))
            else:
                wide = image.new_zeros(1, len(image), image.shape[1], 2, image.shape[2], 2)
                wide[:, :, :, 0, :, 0] = image
                wide = wide.reshape(1, len(image), 2 * image.shape[1], 2 * image.shape[2])
                wide = F.pad(wide, (2, 1, 2, 1))
                found.append(upfirdn2d(F.conv2d(wide, kernel.flip(2, 3)), taps * 4, padding=1))
        return torch.cat(found)

    module.upfirdn2d, module.modulated_conv = upfirdn2d, modulated_conv
    return module


def players(module, device):
    torch.manual_seed(0)
    more = ["--img_size", str(SIZE), "--channels", "3", "--fmap_max", "128"]
    more += ["--fmap_base", "2048", "--w_dim", "128", "--latent_dim", "128"]
    args = module.parse_args(more)
    args.device = device
    return module.build(args)


def both_steps(module, device):
    """A step of D and one of G, without the penalties, which are due now and then."""
    pair = players(module, device)
    adam = [torch.optim.Adam(player.parameters(), 0.0, fused=True) for player in pair]
    real = torch.randn(BATCH, 3, SIZE, SIZE, device=device)

    def run():
        module.d_step(*pair, adam[1], real, torch.randn(2 * BATCH, 128, device=device))
        module.g_step(*pair, adam[0], torch.randn(2 * BATCH, 128, device=device))

    return run


def penalties(module, device):
    """R1 and the path length penalty, once each."""
    generator, discriminator = players(module, device)
    mean = torch.zeros((), device=device)

    def run():
        real = torch.randn(BATCH, 3, SIZE, SIZE, device=device).requires_grad_()
        module.r1_penalty(discriminator(real), real).backward()
        ws = module.mix_styles(generator, torch.randn(BATCH, 128, device=device))
        module.path_penalty(generator.draw(ws), ws, mean).backward()

    return run


def one_form(form, device):
    torch.manual_seed(0)
    sizes = (BATCH, 128, 16, 16), (128, 128, 3, 3), (BATCH, 128)
    parts = [torch.randn(size, device=device, requires_grad=True) for size in sizes]

    def run():
        torch.autograd.grad(form(*parts).square().sum(), parts)

    return run


def rows(device):
    naive = naive_module()
    z = torch.randn(3, 128, device=device)
    a, b = (players(module, device)[0] for module in (gan, naive))
    gap = (a.draw(a.spread(a.style(z)), True) - b.draw(b.spread(b.style(z)), True)).abs().max()
    assert gap < 1e-3, "the naive form draws something else"
    for what, make, target in (
        ("a D and a G step", both_steps, 0.9),
        ("R1 and path penalty", penalties, 0.8),
    ):
        yield {
            "name": f"stylegan2 {what}, batch {BATCH}, {SIZE} px",
            "peer": "convolutions image by image, separate blur",
            "target": target,
            "ours": make(gan, device),
            "theirs": make(naive, device),
        }
    yield {
        "name": f"stylegan2 modulated convolution, 128 maps of 16 px, batch {BATCH}",
        "peer": "grouped form of the same script",
        "target": 1.0,
        "ours": one_form(gan.modulated_conv, device),
        "theirs": one_form(gan.grouped_conv, device),
    }
