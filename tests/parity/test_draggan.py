"""draggan.py against the drag of the package draggan, and its generator against NVIDIA's."""

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F
from house import load
from oracles import official_stylegan2

gan = load("gan/draggan.py")


@pytest.fixture(scope="module")
def package():
    """The module draggan.draggan, without what it does to the search path."""
    before = [*sys.path]
    try:
        return importlib.import_module("draggan.draggan")
    finally:
        sys.path[:] = before


def flipped(points):
    """As a list of (y, x), which is what they take."""
    return list(points.flip(1))


def setting(seed, size=40, n=3):
    torch.manual_seed(seed)
    maps = torch.randn(1, 6, size, size, dtype=torch.float64)
    handles = torch.randint(9, size - 9, (n, 2)).double()
    return maps, handles, handles + 8 * torch.randn(n, 2, dtype=torch.float64)


@pytest.mark.parametrize("r1", [1, 3, 6])
@pytest.mark.parametrize("far", [1.0, 0.02])
def test_motion_supervision(package, r1, far):
    """Also where the target is nearer than a pixel: both stop there. They add 1e-7 to a length."""
    for seed in range(3):
        maps, handles, targets = setting(seed)
        targets, maps = handles + far * (targets - handles), maps.requires_grad_()
        ours = gan.motion_loss(maps, handles, targets, r1)
        theirs = package.motion_supervison(flipped(handles), flipped(targets), maps, r1, "cpu")
        assert abs(ours - theirs) < 1e-6 * theirs
        a, b = (torch.autograd.grad(loss, maps)[0] for loss in (ours, theirs))
        assert (a - b).abs().max() < 1e-6 * b.abs().max()
        (wrong,) = torch.autograd.grad(gan.motion_loss(maps, handles, targets, r1 + 1), maps)
        assert (wrong - b).abs().max() > 1e-2 * b.abs().max()


@pytest.mark.parametrize("r2", [2, 5, 8])
def test_point_tracking(package, r2):
    for seed in range(3):
        first, at_first, _ = setting(seed)
        step = torch.tensor([1.0, -2.0]).double()
        maps = first.roll((-2, 1), (2, 3)) + 0.1 * torch.randn_like(first)
        wanted = gan.bilinear(first, at_first[:, None])
        ours = gan.track(maps, wanted, at_first + 1, r2)
        points = (at_first + 1).flip(1), at_first.flip(1)
        theirs = package.point_tracking(maps, first, *points, r2, "cpu")
        assert torch.equal(ours.flip(1), theirs)
        if r2 > 2:
            assert torch.equal(ours, at_first + step)
            assert not torch.equal(gan.track(maps, wanted, at_first + 1, 2), ours)


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_image_and_features_of_the_official_generator(block):
    torch.manual_seed(0)
    sizes = {"channel_base": 256, "channel_max": 12, "num_fp16_res": 0}
    mapping = {"num_layers": 3}
    theirs = official_stylegan2().Generator(10, 0, 14, 32, 3, mapping, sizes).eval()
    with torch.no_grad():
        for part in [*theirs.parameters(), theirs.mapping.w_avg]:
            part.add_(0.3 * torch.randn_like(part))
    ours = gan.Generator(10, 14, 3, 3, [12, 12, 12, 8])
    ours.load_state_dict(theirs.state_dict())
    seen = []
    theirs.synthesis.get_submodule(f"b{2 << block}").register_forward_hook(
        lambda part, x, made: seen.append(made[0])
    )
    z = torch.randn(1, 10)
    ws = theirs.mapping(z, None, truncation_psi=0.7)
    assert (gan.sample(ours, z, 0.7)[0] - ws).abs().max() < 1e-5 * ws.abs().max()
    found = gan.features(ours, ws, block)
    wanted = theirs.synthesis(ws, noise_mode="const")
    wanted = wanted, F.interpolate(seen[0], (32, 32), mode="bilinear")
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
    other = gan.features(ours, ws * 1.01, block)
    assert all(
        (a - b).abs().max() > 1e-4 * b.abs().max() for a, b in zip(other, wanted, strict=True)
    )


def test_a_drag_is_theirs_step_by_step(package):
    """The package's loop, whose mask is switched off, made of its own two functions."""
    torch.manual_seed(0)
    a = torch.randn(6 * 5, 5 * 32 * 32, dtype=torch.float64) / 9
    b = torch.randn(5 * 32 * 32, dtype=torch.float64)

    def render(ws):
        return (b + ws.flatten() @ a).view(1, 5, 32, 32).split([1, 4], 1)

    ws, handles = torch.randn(1, 6, 5).double(), torch.tensor([[12.0, 13], [19, 17]]).double()
    targets = handles + torch.tensor([[6.0, 0], [-3, 5]]).double()
    free = ws[:, :4].clone().requires_grad_()
    optimizer = torch.optim.Adam([free], 0.3)
    maps, first = render(ws)[1], render(ws)[1]
    at, paths = handles.flip(1), []
    for _ in range(6):
        maps = render(torch.cat([free, ws[:, 4:]], 1))[1]
        loss = package.motion_supervison([*at], flipped(targets), maps, 3, "cpu")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        maps = render(torch.cat([free, ws[:, 4:]], 1))[1].detach()
        at = package.point_tracking(maps, first, at, handles.flip(1), 2, "cpu")
        paths.append(at.flip(1))
    steps = [*gan.drag(render, ws, handles, targets, 4, 6, 0.3, 48, 32)][1:]  # 3 and 2 pixels
    assert all(torch.equal(step[2], path) for step, path in zip(steps, paths, strict=True))
    assert (steps[-1][0][:, :4] - free).abs().max() < 1e-4
    assert not torch.equal(paths[-1], handles)
