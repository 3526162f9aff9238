"""draggan.py: sampling, supervision and tracking against loops written from the paper; what may
move and what may not; PTI; the command line."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake
from PIL import Image
from scipy.ndimage import map_coordinates

gan = load("gan/draggan.py")
PATH = ROOT / "gan/draggan.py"
SMALL = ["--img_size", "16", "--fmap_max", "6", "--w_dim", "8", "--latent_dim", "8"]


def args_of(*argv):
    args = gan.parse_args([*SMALL, *argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def small(seed=0):
    """A generator none of whose parameters is what it was at first."""
    torch.manual_seed(seed)
    generator, _ = gan.build(args_of())
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        generator.mapping.w_avg.normal_()
    return generator.requires_grad_(False)


def texture(size=24, channels=5, seed=0):
    torch.manual_seed(seed)
    return torch.randn(1, channels, size, size, dtype=torch.float64)


def spots(*pairs):
    return torch.tensor(pairs, dtype=torch.float64)


# --- sampling ------------------------------------------------------------------------------------
def test_bilinear_is_map_coordinates_and_grid_sample():
    maps, points = texture(11), torch.rand(4, 6, 2, dtype=torch.float64) * 13 - 1  # some outside
    ours = gan.bilinear(maps, points)  # (C', n, k)
    x, y = points.unbind(2)
    for at, plane in enumerate(maps[0].numpy()):
        theirs = map_coordinates(plane, [y.numpy(), x.numpy()], order=1, mode="nearest")
        assert np.abs(ours[at].numpy() - theirs).max() < 1e-12
    grid = torch.stack([x, y], 2)[None] / 10 * 2 - 1
    wanted = F.grid_sample(maps, grid, padding_mode="border", align_corners=True)[0]
    assert (ours - wanted).abs().max() < 1e-12
    wrong = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[0]
    assert (ours - wrong).abs().max() > 0.1  # the other convention
    assert (gan.bilinear(maps, points.flip(2)) - ours).abs().max() > 0.1  # (y, x)


def test_bilinear_by_hand():
    maps = texture(7)
    (value,) = gan.bilinear(maps, spots((2.25, 4.5))[None])[:, 0].T
    a, b, c, d = (maps[0, :, y, x] for y, x in ((4, 2), (4, 3), (5, 2), (5, 3)))
    assert (value - (0.375 * a + 0.125 * b + 0.375 * c + 0.125 * d)).abs().max() < 1e-12
    whole = gan.bilinear(maps, spots((6, 3))[None])[:, 0, 0]
    assert torch.equal(whole, maps[0, :, 3, 6])


def test_disc_and_square():
    assert {tuple(row) for row in gan.offsets(1.5).tolist()} == {
        (x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)
    }
    assert len(gan.offsets(1)) == 5 and len(gan.offsets(0.3)) == 1
    assert len(gan.offsets(3)) == 29 and len(gan.offsets(3, square=True)) == 49
    assert len(gan.offsets(3 * 1024 / 512)) == 113  # the disc of a picture of 1024


# --- supervision and tracking --------------------------------------------------------------------
def plain_loss(maps, handles, targets, r1, first=None, editable=None, weight=0.0, fixed=None):
    """(16) and (17), point by point and pixel by pixel."""
    size, total = maps.shape[-1], 0.0
    fixed = maps.detach() if fixed is None else fixed
    for p, t in zip(handles.tolist(), targets.tolist(), strict=True):
        gap = math.dist(p, t)
        d = [(b - a) / max(gap, 1) for a, b in zip(p, t, strict=True)]
        terms = []
        for y in range(size):
            for x in range(size):
                if math.dist((x, y), p) <= r1:
                    u, v = x + d[0], y + d[1]
                    u, v = min(max(u, 0), size - 1), min(max(v, 0), size - 1)
                    i, j = min(int(u), size - 2), min(int(v), size - 2)
                    a, b = u - i, v - j
                    there = (1 - b) * ((1 - a) * maps[0, :, j, i] + a * maps[0, :, j, i + 1])
                    there = there + b * (
                        (1 - a) * maps[0, :, j + 1, i] + a * maps[0, :, j + 1, i + 1]
                    )
                    terms.append((there - fixed[0, :, y, x]).abs().mean())
        total = total + torch.stack(terms).mean()
    if editable is not None:
        total = total + weight * ((maps - first) * (1 - editable)).abs().mean()
    return total


def plain_track(maps, wanted, handles, r2):
    """(19), pixel by pixel."""
    size, found = maps.shape[-1], []
    for f, (px, py) in zip(wanted, handles.tolist(), strict=True):
        near = [
            ((maps[0, :, y, x] - f).abs().sum().item(), x, y)
            for x in range(size)
            for y in range(size)
            if abs(x - px) <= r2 and abs(y - py) <= r2
        ]
        found.append(min(near)[1:])
    return spots(*found)


HANDLES, TARGETS = spots((6, 7), (0, 12), (20, 22)), spots((9, 3), (0.5, 12), (23, 23))


@pytest.mark.parametrize("r1", [1, 1.5, 3, 5])
def test_motion_loss_is_the_plain_one_and_so_is_its_gradient(r1, monkeypatch):
    maps = texture().requires_grad_()
    ours, wanted = (f(maps, HANDLES, TARGETS, r1) for f in (gan.motion_loss, plain_loss))
    assert abs(ours.item() - wanted.item()) < 1e-12
    ours, wanted = (torch.autograd.grad(loss, maps)[0] for loss in (ours, wanted))
    assert (ours - wanted).abs().max() < 1e-12
    original = gan.bilinear  # a step that is a tenth too long is seen
    monkeypatch.setattr(gan, "bilinear", lambda m, q: original(m, q + 0.1 * (q % 1 > 0)))
    wrong = gan.motion_loss(maps, HANDLES, TARGETS, r1)
    assert abs(wrong.item() - plain_loss(maps, HANDLES, TARGETS, r1).item()) > 1e-6


def test_features_under_the_handle_are_held_fixed():
    """The slope is that of |F(q + d) - constant|, by differences, and not that of both moving."""
    maps, way = texture(16).requires_grad_(), texture(16, seed=1)
    handles, targets = spots((7, 8)), spots((12, 8.5))
    (slope,) = torch.autograd.grad(gan.motion_loss(maps, handles, targets, 3), maps)

    def at(step, fixed):
        moved = maps.detach() + step * way
        return plain_loss(moved, handles, targets, 3, fixed=fixed(moved)).item()

    for fixed, right in ((lambda moved: maps.detach(), True), (lambda moved: moved, False)):
        by_difference = (at(1e-6, fixed) - at(-1e-6, fixed)) / 2e-6
        assert (abs((slope * way).sum().item() - by_difference) < 1e-7) == right


def test_arrived_handles_pull_no_more():
    maps = texture().requires_grad_()
    loss = gan.motion_loss(maps, HANDLES, HANDLES.clone(), 3)
    (slope,) = torch.autograd.grad(loss, maps)
    assert loss.item() == 0 and not slope.any()


@pytest.mark.parametrize("shift", [(2, 0), (-3, 1), (0, -2), (3, 3)])
def test_whole_shifts_are_tracked_to_the_pixel(shift):
    maps, handles = texture(32), spots((12, 15), (20, 9))
    wanted = gan.bilinear(maps, handles[:, None])
    moved = maps.roll(shift[::-1], (2, 3))
    assert torch.equal(gan.track(moved, wanted, handles, 3), handles + spots(shift))
    found = gan.track(moved, wanted, handles, max(map(abs, shift)) - 1)
    assert not torch.equal(found, handles + spots(shift))  # beyond the window


@pytest.mark.parametrize("r2", [1, 2, 4])
def test_tracking_is_the_plain_one(r2):
    first, maps = texture(), texture(seed=3)
    wanted = gan.bilinear(first, HANDLES[:, None])
    plain = first[0, :, HANDLES[:, 1].long(), HANDLES[:, 0].long()].T
    assert torch.equal(gan.track(maps, wanted, HANDLES, r2), plain_track(maps, plain, HANDLES, r2))
    assert not torch.equal(gan.track(maps, wanted, HANDLES.flip(1), r2).flip(1), HANDLES)


# --- the whole drag ------------------------------------------------------------------------------
def linear(size=16, channels=4, layers=6, w_dim=5, seed=0):
    """Image and features that are linear in ws."""
    torch.manual_seed(seed)
    a = torch.randn(layers * w_dim, (channels + 1) * size * size, dtype=torch.float64) / 9
    b = torch.randn((channels + 1) * size * size, dtype=torch.float64)

    def render(ws):
        image, maps = (b + ws.flatten() @ a).view(1, -1, size, size).split([1, channels], 1)
        return image, maps

    return render, torch.randn(1, layers, w_dim, dtype=torch.float64)


def plain_drag(render, ws, handles, targets, n_free, n_steps, lr, r1, r2, editable, weight):
    """The paper's loop: Adam by hand on the first n_free styles."""
    _, first = render(ws)
    f = first[0, :, handles[:, 1].long(), handles[:, 0].long()].T
    m = v = 0.0
    for step in range(1, n_steps + 1):
        leaf = ws.clone().requires_grad_()
        loss = plain_loss(render(leaf)[1], handles, targets, r1, first, editable, weight)
        (g,) = torch.autograd.grad(loss, leaf)
        g[:, n_free:] = 0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        there = (v / (1 - 0.999**step)).sqrt() + 1e-8
        ws = ws - lr * m / (1 - 0.9**step) / there
        handles = plain_track(render(ws)[1], f, handles, r2)
    return ws, handles


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_drag_is_the_loop_of_the_paper(weight):
    render, ws = linear()
    handles, targets = spots((4, 5), (11, 9)), spots((9, 5), (11, 14))
    editable = (torch.rand(16, 16) > 0.5).double()
    how = (4, 6, 0.4, 1.5, 2)
    steps = [*gan.drag(render, ws, handles, targets, *how, editable, weight)]
    end, at = plain_drag(render, ws, handles, targets, *how, editable, weight)
    assert len(steps) == 7 and (steps[-1][0] - end).abs().max() < 1e-9
    assert torch.equal(steps[-1][2], at) and not torch.equal(at, handles)
    assert torch.equal(steps[0][0], ws) and torch.equal(steps[0][2], handles)
    other, _ = plain_drag(render, ws, handles, targets, *how, editable, weight + 1)
    assert (steps[-1][0] - other).abs().max() > 1e-4


def test_only_the_first_styles_move():
    render, ws = linear()
    *_, (end, *_) = gan.drag(render, ws, spots((4, 5)), spots((9, 5)), 4, 5, 0.1, 3, 12)
    assert torch.equal(end[:, 4:], ws[:, 4:]) and not (end[:, :4] == ws[:, :4]).any()
    leaf = ws.clone().requires_grad_()
    _, maps = render(torch.cat([leaf[:, :4], leaf[:, 4:].detach()], 1))
    (slope,) = torch.autograd.grad(gan.motion_loss(maps, spots((4, 5)), spots((9, 5)), 3), leaf)
    assert not slope[:, 4:].any() and slope[:, :4].all()
    generator = small()
    ws, _ = gan.sample(generator, torch.randn(1, 8))
    args = args_of("--drag_steps", "5", "--lr_drag", "0.1")
    *_, (end, *_) = gan.pull(
        args, generator, ws, torch.tensor([[4.0, 5]]), torch.tensor([[9.0, 5]])
    )
    assert args.n_w_layers == 4 and ws.shape[1] == 6
    assert torch.equal(end[:, 4:], ws[:, 4:]) and not torch.equal(end[:, :4], ws[:, :4])


def test_the_mask_costs_nothing_at_first_nor_where_all_may_move():
    render, ws = linear()
    how = (render, ws, spots((4, 5)), spots((9, 5)), 4, 4, 0.05, 3, 12)
    free, none, ones, half = (
        [*gan.drag(*how, editable, 20.0)]
        for editable in (None, *(torch.full((16, 16), v, dtype=torch.float64) for v in (0, 1, 0.5)))
    )
    assert none[0][3] == free[0][3] == half[0][3]
    assert none[2][3] > half[2][3] > 0
    for a, b in zip(free, ones, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(free[-1][0], none[-1][0])


def test_nothing_is_done_where_all_have_arrived():
    render, ws = linear()
    handles = spots((4, 5), (11, 9))
    steps = [*gan.drag(render, ws, handles, handles.clone(), 4, 50, 0.1, 3, 12)]
    assert len(steps) == 1 and torch.equal(steps[0][0], ws) and steps[0][3] == 0
    assert all(part.isfinite().all() for part in steps[0])


@pytest.mark.parametrize(
    "size, n, gap, stops",
    [
        (512, 1, 0.9, True),
        (512, 1, 1.1, False),
        (512, 5, 1.1, False),
        (512, 6, 1.9, True),
        (512, 6, 2.1, False),
        (64, 1, 0.1, True),
        (64, 1, 0.9, False),
        (1024, 2, 0.9, True),
    ],
)
def test_when_it_stops(size, n, gap, stops):
    """Within a pixel for up to 5 points, two for more; in small pictures a part of one."""

    def render(ws):
        return ws.sum() * torch.ones(1, 1, size, size), ws.sum() * torch.ones(1, 2, size, size)

    handles = torch.full((n, 2), 9.0)
    targets = handles + torch.tensor([gap, 0])
    steps = [*gan.drag(render, torch.ones(1, 6, 2), handles, targets, 4, 3, 0.1, 3, 12)]
    assert (len(steps) == 1) == stops


def test_a_known_thing_ends_where_it_should():
    """Two directions, diagonal; the ground stays if the mask says so, and else goes along."""
    torch.manual_seed(0)
    render, ws = gan.textures(32), torch.zeros(1, 8, 4)
    before, rim = render(ws)[0], F.pad(torch.zeros(26, 26), (3, 3, 3, 3), value=1.0)
    handle, changes = torch.tensor([[15.0, 15.0]]), []
    for way in torch.tensor([[4.0, 3.0]]), torch.tensor([[-3.0, 4.0]]):
        for editable in (None, 1 - rim):
            steps = gan.drag(render, ws, handle, handle + way, 6, 99, 2e-3, 3, 12, editable, 20.0)
            *_, (_, image, at, _) = steps
            moved = gan.ball_at(image[:, :1]) - gan.ball_at(before[:, :1])
            assert (moved - way).norm() < 1 and (at - handle - moved).norm() < 1
            changes.append(((image - before).abs() * rim).mean())
    assert changes[1] < 0.1 * changes[0] and changes[3] < 0.1 * changes[2]


def test_a_drag_without_motion_goes_nowhere(monkeypatch):
    """The control of the test above."""
    torch.manual_seed(0)
    render, ws = gan.textures(32), torch.zeros(1, 8, 4)
    handle, way = torch.tensor([[15.0, 15.0]]), torch.tensor([[4.0, 3.0]])
    original = gan.motion_loss
    monkeypatch.setattr(gan, "motion_loss", lambda *given: -original(*given))
    *_, (_, image, _, _) = gan.drag(render, ws, handle, handle + way, 6, 99, 2e-3, 3, 12)
    moved = gan.ball_at(image[:, :1]) - gan.ball_at(render(ws)[0][:, :1])
    assert not (moved - way).norm() < 1


def test_features_are_those_of_the_block():
    generator = small()
    ws, image = gan.sample(generator, torch.randn(1, 8))
    seen = {}
    for name, block in generator.synthesis.items():
        block.conv1.register_forward_hook(lambda p, x, y, name=name: seen.update({name: y}))
    for block, name in enumerate(("b4", "b8", "b16"), 1):
        shown, maps = gan.features(generator, ws, block)
        assert torch.equal(shown, image) and maps.shape[2:] == (16, 16)
        wanted = F.interpolate(seen[name], (16, 16), mode="bilinear", align_corners=False)
        assert torch.equal(maps, wanted)
    assert args_of().feature_block == 3  # there are no six


# --- real images ---------------------------------------------------------------------------------
def test_distance_by_hand():
    a, b = torch.randn(2, 2, 3, 16, 16).double()
    x, total = a - b, 0.0
    for side in (8, 4):
        low = x.view(2, 3, side, 2, side, 2).mean((3, 5))
        total += (x - F.interpolate(low, scale_factor=2, mode="bilinear")).abs().mean()
        x = low
    assert abs((gan.distance(a, b) - total - x.abs().mean()).item()) < 1e-12
    assert gan.distance(a, a) == 0 and gan.distance(a, b) == gan.distance(b, a)


def test_pivotal_tuning_changes_what_it_should_alone():
    generator, target = small(), torch.randn(1, 3, 16, 16).tanh()
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    model, ws, errors = gan.pivotal_tuning(generator, target, 30, 30, (0.05, 0.01))
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(key.startswith("synthesis.") for key in changed)
    assert not any("const" in key and "noise" in key for key in changed)
    assert torch.equal(ws, ws[:, :1].expand(-1, 6, -1))  # a w of W
    assert errors["tuned_mse"] < errors["pivot_mse"]
    start = generator.draw(generator.spread(generator.mapping.w_avg[None]), True)
    assert errors["pivot_mse"] < F.mse_loss(start, target)
    drawn = F.mse_loss(model.draw(ws, True), target).item()
    assert drawn == pytest.approx(errors["tuned_mse"], rel=1e-6)


def test_pivotal_tuning_at_rate_0_changes_nothing():
    generator, target = small(), torch.randn(1, 3, 16, 16)
    model, ws, errors = gan.pivotal_tuning(generator, target, 3, 3, (0.0, 0.0))
    assert all(torch.equal(v, generator.state_dict()[k]) for k, v in model.state_dict().items())
    assert torch.equal(ws[0, 0], generator.mapping.w_avg)
    assert errors["tuned_mse"] == errors["pivot_mse"]


# --- training ------------------------------------------------------------------------------------
class Line(torch.nn.Module):
    """Images that are linear in their styles, whose slopes are known."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.A, self.M = (torch.nn.Parameter(torch.randn(*n)) for n in ((4, 5, 48), (5, 5)))
        self.num_ws = 4
        self.mapping = torch.nn.Module()
        self.mapping.w_avg = torch.zeros(5)

    def style(self, z):
        return z @ self.M

    def draw(self, ws):
        return torch.einsum("blw,lwp->bp", ws, self.A).view(-1, 3, 4, 4)


class Judge(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x):
        return (x * self.w).sum((1, 2, 3))


def test_a_step_of_both_players():
    """The slopes that arrive are those of (6), (7) and (12), the penalties as strong as said."""
    generator, discriminator = Line(), Judge()
    optimizers = [torch.optim.SGD(p.parameters(), 0.0) for p in (generator, discriminator)]
    real, z, mean = torch.randn(3, 3, 4, 4), torch.randn(6, 5), torch.tensor(0.7)
    torch.manual_seed(5)
    losses = gan.players_step(generator, discriminator, *optimizers, real, z, (3.0, 2.0), mean)
    torch.manual_seed(5)
    cut = torch.randint(1, 5, (3, 1, 1))
    w, other = (z @ generator.M).detach().chunk(2)
    rows = [[a if k < c else b for k in range(4)] for a, b, c in zip(w, other, cut, strict=True)]
    ws = torch.stack([torch.stack(row) for row in rows])
    A = generator.A.detach().requires_grad_()
    fake = torch.einsum("blw,lwp->bp", ws, A).view(-1, 3, 4, 4)
    W = discriminator.w.detach().requires_grad_()
    d = F.softplus(-(real * W).sum((1, 2, 3))).mean()
    d = d + F.softplus((fake.detach() * W).sum((1, 2, 3))).mean()
    (wanted,) = torch.autograd.grad(d + 3 / 2 * W.square().sum(), W)
    assert (discriminator.w.grad - wanted).abs().max() < 1e-5
    g = F.softplus(-(fake * W.detach()).sum((1, 2, 3))).mean()
    n = torch.randn_like(fake).flatten(1) / 4
    lengths = torch.einsum("bp,lwp->blw", n, A).square().sum(2).mean(1).sqrt()
    now = 0.7 + 0.01 * (lengths.mean().detach() - 0.7)
    assert abs(mean - now) < 1e-6
    (wrong,) = torch.autograd.grad(g, A, retain_graph=True)
    (wanted,) = torch.autograd.grad(g + 2 * (lengths - now).square().mean(), A)
    assert (generator.A.grad - wanted).abs().max() < 1e-4
    assert (losses - torch.stack([g, d])).abs().max() < 1e-6
    assert (generator.A.grad - wrong).abs().max() > 1e-2
    assert all(p.requires_grad for p in discriminator.parameters())
    assert (generator.mapping.w_avg - 0.005 * w.mean(0)).abs().max() < 1e-6


def test_balls_are_where_they_are_found():
    torch.manual_seed(0)
    x = gan.draw_balls(200, 32)
    assert x.shape == (200, 3, 32, 32) and x.abs().max() <= 1
    torch.manual_seed(0)
    r, _ = 0.17 + 0.06 * torch.rand(200, 1, 1), torch.rand(200, 1, 1, 1)
    middle = (r + 0.02 + (0.96 - 2 * r) * torch.rand(2, 200, 1, 1))[..., 0, 0] * 32
    at = gan.ball_at(x)
    x_gap, y_gap = (at - middle.flip(0).T).T
    assert x_gap.abs().max() < 0.1 and y_gap.abs().max() < 1.4  # it is lighter above
    inner = x[(at[:, 0] < 20).nonzero()[:, 0]]
    moved = gan.ball_at(inner.roll(2, 3)) - gan.ball_at(inner)
    assert (moved - torch.tensor([2.0, 0.0])).abs().max() < 0.01


# --- the command line ----------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with the checkpoint of a short run; call what follows."""
    monkeypatch.chdir(tmp_path)
    code, _, err = call(PATH, *SMALL, "--n_steps", "2", "--batch_size", "4", "--drag_steps", "2")
    assert code == 0, err
    return lambda *argv: call(PATH, *SMALL, "--device", "cpu", "--drag_steps", "4", *argv)


def test_pictures_of_a_drag(run, tmp_path):
    Image.fromarray(np.uint8([[255] * 8 + [0] * 8] * 16)).save("mask.png")
    code, out, err = run("--points", "5,8>9,8; 3,3 > 3,5", "--mask", "mask.png", "--pick", "70")
    assert (code, err) == (0, "") and out.startswith("steps 4  loss ")
    strip, film = (Image.open(tmp_path / f"out/draggan/drag.{kind}") for kind in ("png", "gif"))
    assert strip.size == (8 * 256, 256) and film.size == (256, 256) and film.n_frames > 1
    assert Image.open(tmp_path / "out/draggan/after.png").height == 32
    saved = torch.load(tmp_path / "out/draggan/drag.pt", weights_only=True)
    assert saved["w"].shape == (1, 6, 8)
    assert run("--sample", "--weights", "out/draggan/drag.pt")[0] == 0


def test_handles_are_red_and_targets_blue():
    image = torch.zeros(1, 1, 16, 16)
    shown = np.asarray(gan.frame(image, torch.tensor([[3.0, 8.0]]), torch.tensor([[12.0, 8.0]])))
    assert shown.shape == (256, 256, 3)
    assert shown[8 * 16 + 8, 3 * 16 + 8].tolist() == [255, 0, 0]
    assert shown[8 * 16 + 8, 12 * 16 + 8].tolist() == [0, 0, 255]


def test_dragging_a_real_picture_of_another_size(run, tmp_path):
    Image.fromarray(np.uint8(np.random.default_rng(0).random((40, 30, 3)) * 255)).save("me.png")
    short = "--pivot_steps", "3", "--tune_steps", "3"
    code, out, err = run(*short, "--points", "5,8>9,8", "--image", "me.png")
    assert (code, err) == (0, "") and out.startswith("pivot_mse ") and "tuned_mse" in out
    tuned = torch.load(tmp_path / "out/draggan/drag.pt", weights_only=True)["ema"]
    ema = torch.load(tmp_path / "out/draggan/last.pt", weights_only=True)["ema"]
    changed = {key for key in ema if not torch.equal(ema[key], tuned[key])}
    assert changed and all(key.startswith("synthesis") for key in changed)


def test_one_that_stands_at_its_target(run):
    code, out, _ = run("--points", "5,8>5,8")
    assert code == 0 and "steps 0  loss 0  left_px 0" in out


@pytest.mark.parametrize(
    "points", ["", ";", "5,8", "5,8>9", "5,8>9,8;", "a,b>c,d", "5;8>9;8", "-1,8>9,8", "nan,8>9,8"]
)
def test_points_that_are_none(points, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(PATH, f"--points={points}", about="--points")


def test_mistakes(run, tmp_path):
    mistake(PATH, *SMALL, "--points", "5,8>16,8", about="outside of the picture")
    mistake(PATH, *SMALL, "--points", "5,15.5>9,8", about="outside of the picture")
    for flag in ("mask", "image"):
        (tmp_path / "none.png").write_text("no image", encoding="utf-8")
        mistake(PATH, f"--{flag}", "none.png", about="--points")
        for file in ("none.png", "nowhere.png", "."):
            mistake(PATH, *SMALL, "--points", "5,8>9,8", f"--{flag}", file, about=f"--{flag}")
    Image.new("L", (16, 17)).save("tall.png")
    mistake(PATH, *SMALL, "--points", "5,8>9,8", "--mask", "tall.png", about="--mask")
    mistake(PATH, "--points", "5,8>9,8", about="--weights")  # a generator of another size
    mistake(PATH, *SMALL, "--points", "5,8>9,8", "--weights", "no.pt", about="--weights")
    mistake(PATH, "--img_size", "24", about="--img_size 24")
