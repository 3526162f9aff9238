"""What the tests of networks against their oracles share."""

import contextlib
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import torch
from torch import nn


def randomised(model, seed=0):
    """The model in float64, in eval mode, with nothing left at a value that hides a mistake: norms,
    running statistics, layer scales, biases and tokens are drawn anew."""
    torch.manual_seed(seed)
    model = model.double().eval()
    for module in model.modules():
        for name, part in [*module.named_parameters(recurse=False)]:
            if name in ("weight", "bias") and isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(
                    part, std=1.4 / max(1, part[0].numel()) ** 0.5 if part.ndim > 1 else 0.2
                )
            else:
                nn.init.uniform_(part, 0.5, 1.5) if name == "weight" else nn.init.normal_(
                    part, std=0.5
                )
        for name, part in module.named_buffers(recurse=False):
            if name == "running_mean":
                nn.init.normal_(part, std=0.3)
            if name == "running_var":
                nn.init.uniform_(part, 0.5, 1.5)
    return model


def smooth_images(n, channels, side, seed=1):
    """Images (n, channels, side, side) of low frequencies, which random nets do not blur away."""
    torch.manual_seed(seed)
    coarse = 2 * torch.randn(n, channels, max(2, side // 8), max(2, side // 8), dtype=torch.float64)
    return nn.functional.interpolate(coarse, (side, side), mode="bicubic")


def gaps(ours, theirs, x):
    """Largest relative difference of the outputs and of the gradients of the input, and how much
    the outputs differ among the inputs (no test of anything if that is small)."""
    found = []
    for model in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = model(leaf)
        slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
        found.append((out.detach(), torch.autograd.grad((out * slope).sum(), leaf)[0]))
    (a, da), (b, db) = found
    spread = (b.std(0).mean() / b.abs().mean()).item()
    return [
        ((a - b).abs().max() / b.abs().max()).item(),
        ((da - db).abs().max() / db.abs().max()).item(),
    ], spread


def proven(ours, theirs, rename=dict, side=32, tolerance=1e-9, batch=3, channels=3):
    """Give ours the randomised weights of theirs, key for key after rename, and compare; then once
    more with one weight changed by a thousandth, which must be seen."""
    theirs = randomised(theirs)
    ours = ours.double().eval()
    ours.load_state_dict(rename(theirs.state_dict()), strict=True)
    x = smooth_images(batch, channels, side)
    found, spread = gaps(ours, theirs, x)
    assert spread > 0.05, "the outputs hardly depend on the input"
    assert max(found) < tolerance
    some = [p for p in ours.parameters() if p.ndim > 1]
    with torch.no_grad():
        some[len(some) // 2].mul_(1.001)
    assert max(gaps(ours, theirs, x)[0]) > 100 * tolerance


def both_ways(model, x, y):
    """A pass of x through the model and back, for the benchmarks."""
    model.train()

    def run():
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()

    return run


@contextlib.contextmanager
def nvidia_path():
    """While inside, the networks of the official StyleGAN2-ADA and StyleGAN3 code can be imported
    under their own names; they ship with the package draggan, whose __init__ is not run."""
    folder = Path(importlib.util.find_spec("draggan").origin).parent / "stylegan2"
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def official_stylegan2():
    """The official training.networks: Generator(z_dim, c_dim, w_dim, img_resolution, img_channels,
    mapping_kwargs, synthesis_kwargs), Discriminator(c_dim, img_resolution, img_channels, ..)."""
    with nvidia_path():
        return importlib.import_module("training.networks")


def official_stylegan3():
    """The official training.networks_stylegan3. The package lacks one operation, filtered_lrelu; it
    is put together here from the package's own upfirdn2d and bias_act, as it is defined."""
    with nvidia_path():
        ops = importlib.import_module("torch_utils.ops")
        resample = importlib.import_module("torch_utils.ops.upfirdn2d")
        activation = importlib.import_module("torch_utils.ops.bias_act")

        def filtered_lrelu(
            x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None
        ):
            x = activation.bias_act(x, b)
            x = resample.upfirdn2d(x, fu, up=up, padding=padding, gain=up**2)
            x = activation.bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
            return resample.upfirdn2d(x, fd, down=down)

        module = types.ModuleType("torch_utils.ops.filtered_lrelu")
        module.filtered_lrelu = filtered_lrelu
        sys.modules[module.__name__] = ops.filtered_lrelu = module
        return importlib.import_module("training.networks_stylegan3")
