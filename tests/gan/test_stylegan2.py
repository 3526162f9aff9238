"""stylegan2.py: resampling against scipy, modulated convolutions against a loop, penalties of
linear players in closed form, lazy steps, who hears which w, a projection that finds back."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake
from scipy.signal import convolve2d, upfirdn

gan = load("gan/stylegan2.py")
PATH = ROOT / "gan/stylegan2.py"
QUICK = ["--n_steps", "2", "--sample_interval", "2", "--fmap_max", "4", "--batch_size", "4"]
QUICK += ["--latent_dim", "8", "--w_dim", "8", "--n_mapping", "1", "--img_size", "8"]


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def small(seed=0, widths=(6, 5, 4), n_mapping=3, dtype=torch.float32):
    """A generator none of whose parameters is what it was at first."""
    torch.manual_seed(seed)
    model = gan.Generator(7, 8, n_mapping, 3, list(widths)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        model.mapping.w_avg.copy_(torch.randn(8))
    return model


# --- resampling ----------------------------------------------------------------------------------
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_upfirdn2d_is_scipys_along_both_sides(up, down):
    torch.manual_seed(0)
    x, (rows, columns) = torch.randn(2, 3, 6, 9).double(), torch.randn(2, 4).double()
    y = gan.upfirdn2d(x, rows[:, None] * columns, up, down, 0 if up > 1 else 3)
    wanted = upfirdn(columns.numpy(), x.numpy(), up, down, axis=3)
    wanted = torch.from_numpy(upfirdn(rows.numpy(), wanted, up, down, axis=2))
    assert y.shape == wanted.shape and (y - wanted).abs().max() < 1e-12
    turned = gan.upfirdn2d(x, (rows[:, None] * columns).flip(0, 1), up, down, 0 if up > 1 else 3)
    assert (turned - wanted).abs().max() > 0.1  # a correlation is something else


def test_an_even_picture_stays_as_bright():
    taps, x = gan.TAPS[:, None] * gan.TAPS, torch.full((1, 2, 8, 8), 3.0)
    up = gan.upfirdn2d(x, taps * 4, up=2, padding=1)
    down = gan.upfirdn2d(x, taps, down=2, padding=1)
    assert up.shape == (1, 2, 16, 16) and down.shape == (1, 2, 4, 4)
    assert (up[..., 1:-1, 1:-1] - 3).abs().max() < 1e-6  # all four phases of the taps sum to 1
    assert (down[..., 1:-1, 1:-1] - 3).abs().max() < 1e-6
    assert (up[..., 0, :] - 3).abs().min() > 0.1  # beyond the rim it is grey


# --- modulated convolutions ----------------------------------------------------------------------
def by_loop(x, weight, style, up=False, epsilon=1e-8):
    """Image by image, map by map: scale, divide by the norm, convolve in scipy."""
    taps, found = (gan.TAPS[:, None] * gan.TAPS).double() * 4, []
    for image, s in zip(x, style, strict=True):
        kernels = weight * s[:, None, None]
        kernels = kernels / (kernels.square().sum((1, 2, 3), keepdim=True) + epsilon).sqrt()
        if up:
            wide = image.new_zeros(len(image), 2 * image.shape[1] - 1, 2 * image.shape[2] - 1)
            wide[:, ::2, ::2] = image
        for kernel in kernels:
            if up:  # a true convolution, then the filter
                maps = [convolve2d(m, k) for m, k in zip(wide, kernel, strict=True)]
                found.append(torch.from_numpy(convolve2d(sum(maps), taps)[2:-2, 2:-2]))
            else:
                turned = kernel.flip(1, 2)
                maps = [convolve2d(m, k, "same") for m, k in zip(image, turned, strict=True)]
                found.append(torch.from_numpy(sum(maps)))
    return torch.stack(found).unflatten(0, (len(x), len(weight)))


def parts(seed=0):
    torch.manual_seed(seed)
    sizes = (3, 5, 6, 7), (4, 5, 3, 3), (3, 5)
    return [torch.randn(size).double() for size in sizes]


def test_scaled_maps_are_scaled_weights_are_a_loop():
    x, weight, style = parts()
    wanted = by_loop(x, weight, style)
    assert (gan.modulated_conv(x, weight, style) - wanted).abs().max() < 1e-12
    assert (gan.grouped_conv(x, weight, style) - wanted).abs().max() < 1e-12
    assert (by_loop(x, weight, style, epsilon=1e-2) - wanted).abs().max() > 1e-5
    taps = (gan.TAPS[:, None] * gan.TAPS).double()
    larger = gan.modulated_conv(x, weight, style, taps)
    assert larger.shape == (3, 4, 12, 14)
    assert (larger - by_loop(x, weight, style, up=True)).abs().max() < 1e-12


def test_both_forms_have_the_same_slopes():
    x, weight, style = (part.requires_grad_() for part in parts())
    slopes = [
        torch.autograd.grad((form(x, weight, style) ** 3).sum(), [x, weight, style])
        for form in (gan.modulated_conv, gan.grouped_conv)
    ]
    for a, b in zip(*slopes, strict=True):
        assert (a - b).abs().max() < 1e-9 * b.abs().max()


@pytest.mark.parametrize("size", [0.01, 1, 100])
def test_demodulated_maps_have_variance_1(size):
    torch.manual_seed(0)
    x, style = torch.randn(16, 32, 24, 24), size * torch.randn(16, 32).exp()
    y = gan.modulated_conv(x, torch.randn(8, 32, 3, 3), style)[..., 1:-1, 1:-1]
    assert y.std().item() == pytest.approx(1, abs=0.02)
    assert (y.std((2, 3)) - 1).abs().max() < 0.25
    plain = F.conv2d(x * style[..., None, None], torch.randn(8, 32, 3, 3))
    assert not 0.5 < plain.std() < 2


def test_a_layer_by_hand():
    torch.manual_seed(0)
    layer = gan.StyleLayer(5, 4, 6, 8)
    x, w = torch.randn(2, 5, 8, 8), torch.randn(2, 6)
    with torch.no_grad():
        layer.noise_strength.fill_(0.7)
        layer.bias.normal_()
    style = w @ layer.affine.weight.T / math.sqrt(6) + 1  # a style is 1 at first
    y = by_loop(x.double(), layer.weight.detach().double(), style.detach().double())
    torch.manual_seed(3)
    n = torch.randn(2, 1, 8, 8)
    for noise, fixed in ((n, False), (layer.noise_const, True)):
        z = y + 0.7 * noise + layer.bias[:, None, None]
        torch.manual_seed(3)
        found = layer(x, w, fixed)
        assert (torch.where(z > 0, z, 0.2 * z) * math.sqrt(2) - found).abs().max() < 1e-5
    assert (layer(x, w) - layer(x, w)).abs().max() > 0.1  # other noise
    assert torch.equal(layer(x, w, True), layer(x, w, True))


# --- generator -----------------------------------------------------------------------------------
def test_mapping_by_hand():
    model, z = small(), torch.randn(4, 7)
    w = z / z.square().mean(1, keepdim=True).sqrt()
    for layer in model.mapping.values():
        w = w @ (layer.weight * 0.01 / math.sqrt(layer.weight.shape[1])).T + 0.01 * layer.bias
        w = torch.where(w > 0, w, 0.2 * w) * math.sqrt(2)
    assert (model.style(z) - w).abs().max() < 1e-5
    assert (model.style(3.7 * z) - w).abs().max() < 1e-5  # the length of z does not count
    assert (model.style(-z) - w).abs().max() > 1e-4


@pytest.mark.parametrize("size", [8, 16, 64])
def test_sizes_and_number_of_styles(size):
    args = args_of("--img_size", str(size), "--channels", "3", "--fmap_base", "128")
    generator, discriminator = gan.build(args)
    assert generator.num_ws == 2 * math.log2(size) - 2
    x = generator(torch.randn(4, args.latent_dim))
    assert x.shape == (4, 3, size, size) and discriminator(x).shape == (4,)


def test_the_picture_is_a_sum_of_its_sizes():
    """Without the colours of one size, what is missing is that size's part, enlarged."""
    model, ws = small(dtype=torch.float64), torch.randn(2, 6, 8).double()
    whole = model.draw(ws, fixed=True)
    bare = copy.deepcopy(model)
    with torch.no_grad():
        bare.synthesis.b8.torgb.weight.zero_()
        bare.synthesis.b8.torgb.bias.copy_(torch.tensor([1.0, 2, 3]))
    seen = []
    model.synthesis.b8.torgb.register_forward_hook(lambda *call: seen.append(call[2]))
    model.draw(ws, fixed=True)
    part = seen[0] - torch.tensor([1.0, 2, 3])[:, None, None]
    part = gan.upfirdn2d(part, (gan.TAPS[:, None] * gan.TAPS).double() * 4, up=2, padding=1)
    assert (whole - bare.draw(ws, fixed=True) - part).abs().max() < 1e-12


def test_which_layer_hears_which_style():
    """From a cut on the other w is heard, and not before: its slope is exactly 0 there."""
    model, ws = small(widths=(4, 4, 4)), torch.randn(1, 6, 8, requires_grad=True)
    heard = {}
    for name, layer in model.synthesis.named_modules():
        if isinstance(layer, (gan.StyleLayer, gan.ToRGB)):
            layer.register_forward_hook(lambda _, x, y, name=name: heard.update({name: y}))
    model.draw(ws, fixed=True)
    order = ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1", "b16.torgb"]
    for at, name in enumerate(order):
        (slope,) = torch.autograd.grad(heard[name].square().sum(), ws, retain_graph=True)
        assert (slope[0].abs().sum(1) > 0).tolist() == [i <= at for i in range(6)]
    for at, name in ((1, "b4.torgb"), (3, "b8.torgb")):  # which share the next block's
        (slope,) = torch.autograd.grad(heard[name].square().sum(), ws, retain_graph=True)
        assert slope[0, at].any() and not slope[0, at + 1 :].any()


def test_mixed_styles_come_from_one_cut():
    torch.manual_seed(0)
    model, z = small(widths=(4, 4, 4, 4)), torch.randn(2000, 7)
    before = model.mapping.w_avg.clone()
    ws = gan.mix_styles(model, z)
    w, other = model.style(z).chunk(2)
    first = (ws == w[:, None]).all(2)  # (B, L)
    assert ((ws == other[:, None]).all(2) == ~first).all()
    assert (first[:, :-1] >= first[:, 1:]).all() and first[:, 0].all()
    cuts = first.sum(1).bincount(minlength=9)
    assert cuts[8].item() == pytest.approx(100, abs=35)  # a tenth is not mixed
    assert (cuts[1:8] > 80).all() and cuts[0] == 0
    assert (model.mapping.w_avg - (0.995 * before + 0.005 * w.mean(0))).abs().max() < 1e-6


def test_truncation():
    model, w = small(), torch.randn(4, 8)
    wanted = model.mapping.w_avg + 0.3 * (w - model.mapping.w_avg)
    assert (model.spread(w, 0.3) - wanted[:, None]).abs().max() < 1e-6
    assert model.spread(w).shape == (4, 6, 8)
    assert (model.spread(w) - w[:, None]).abs().max() < 1e-6
    zero = model.draw(model.spread(w, 0.0), fixed=True)
    assert (zero - zero[:1]).abs().max() < 1e-5


# --- penalties -----------------------------------------------------------------------------------
def test_r1_of_a_linear_judge():
    torch.manual_seed(0)
    x, w = torch.randn(5, 3, 4, 4).requires_grad_(), torch.randn(3, 4, 4)
    found = gan.r1_penalty((x * w).sum((1, 2, 3)), x).item()
    assert found == pytest.approx(w.square().sum().item() / 2, rel=1e-5)


def linear(A, ws):
    """Pictures (B, 1, 4, 4) that are linear in each style of ws (B, L, W), by A (L, W, 16)."""
    return torch.einsum("blw,lwp->bp", ws, A).view(-1, 1, 4, 4)


def test_path_length_of_a_linear_generator():
    torch.manual_seed(0)
    A, ws = torch.randn(3, 5, 16).double(), torch.randn(2, 3, 5).double().requires_grad_()
    mean = torch.tensor(2.0).double()
    torch.manual_seed(1)
    penalty = gan.path_penalty(linear(A, ws), ws, mean)
    torch.manual_seed(1)
    n = torch.randn(2, 16, dtype=torch.float64) / 4
    length = (A @ n.T).square().sum(1).mean(0).sqrt()  # |A^T n|, the mean over layers
    now = 0.99 * 2 + 0.01 * length.mean()
    assert penalty.item() == pytest.approx((length - now).square().mean().item(), rel=1e-12)
    assert mean.item() == pytest.approx(now.item(), rel=1e-12)  # and it has moved in place
    assert penalty.item() != pytest.approx((length - 2).square().mean().item(), rel=1e-3)


def test_slope_of_the_path_penalty_passes_through_the_mean():
    torch.manual_seed(0)
    A, ws = torch.randn(3, 5, 16).double(), torch.randn(2, 3, 5).double().requires_grad_()
    size = torch.tensor(1.5).double().requires_grad_()
    torch.manual_seed(1)
    gan.path_penalty(size * linear(A, ws), ws, torch.zeros(()).double()).backward()
    torch.manual_seed(1)
    n = torch.randn(2, 16, dtype=torch.float64) / 4
    length = (A @ n.T).square().sum(1).mean(0).sqrt()
    off = length - 0.01 * length.mean()  # penalty = size^2 mean off^2
    assert size.grad.item() == pytest.approx((2 * 1.5 * off.square().mean()).item(), rel=1e-9)
    held = 2 * (1.5 * off * length).mean().item()  # if the mean were detached
    assert size.grad.item() != pytest.approx(held, rel=1e-3)


def test_mean_of_path_lengths_follows():
    torch.manual_seed(0)
    A, ws = torch.randn(3, 5, 16), torch.randn(64, 3, 5).requires_grad_()
    mean, wanted = torch.zeros(()), 0.0
    for step in range(50):
        torch.manual_seed(step)
        gan.path_penalty(linear(A, ws), ws, mean)
        torch.manual_seed(step)
        n = torch.randn(64, 1, 4, 4).flatten(1) / 4
        length = (A @ n.T).square().sum(1).mean(0).sqrt()
        wanted = 0.99 * wanted + 0.01 * length.mean().item()
    assert mean.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("k", [1, 4, 16])
def test_a_lazy_step_is_k_plain_ones(k):
    w = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    w.grad = torch.ones(3)  # of an earlier loss, which must not count
    gan.lazy_step(torch.optim.SGD([w], 0.1), (w**2).sum(), k)
    assert torch.allclose(w, torch.tensor([1.0, -2.0, 3.0]) * (1 - 0.2 * k))


@pytest.mark.parametrize("k", [4, 16])
def test_numbers_of_adam_with_a_step_more(k):
    adam = gan.lazily({"lr": 2e-3, "betas": (0.5, 0.99), "fused": True}, k)
    assert adam["lr"] * (k + 1) == pytest.approx(2e-3 * k)  # the same way in k + 1 steps as in k
    for mine, b in zip(adam["betas"], (0.5, 0.99), strict=True):
        assert mine ** (k + 1) == pytest.approx(b**k) and mine != pytest.approx(b, rel=1e-4)
    assert adam["fused"] and gan.lazily({"lr": 1.0, "betas": (0.0, 0.9)}, k)["betas"][0] == 0


def test_each_penalty_is_due_when_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    keep = gan.lazy_step
    monkeypatch.setattr(gan, "lazy_step", lambda *a: seen.append((*a[::2], len(seen))) or keep(*a))
    short = [*QUICK, "--n_steps", "9", "--sample_interval", "9"]
    gan.train(args_of(*short, "--r1_every", "5", "--path_every", "3", "--out", "o"))
    assert [k for _, k, _ in seen] == [5, 3, 3, 5, 3]
    rates = {k: optimizer.param_groups[0]["lr"] for optimizer, k, _ in seen}
    assert rates == pytest.approx({5: 2e-3 * 5 / 6, 3: 2e-3 * 3 / 4})


def test_each_step_moves_its_player_alone():
    torch.manual_seed(0)
    players = small(), gan.Discriminator(3, [6, 5, 4])
    before = [{k: v.clone() for k, v in p.named_parameters()} for p in players]
    adam = [torch.optim.Adam(p.parameters(), 1e-2) for p in players]
    gan.d_step(*players, adam[1], torch.randn(4, 3, 16, 16), torch.randn(8, 7))
    assert all(torch.equal(v, before[0][k]) for k, v in players[0].named_parameters())
    assert all(not torch.equal(v, before[1][k]) for k, v in players[1].named_parameters())
    now = {k: v.clone() for k, v in players[1].named_parameters()}
    gan.g_step(*players, adam[0], torch.randn(8, 7))
    assert all(torch.equal(v, now[k]) for k, v in players[1].named_parameters())
    assert all(not torch.equal(v, before[0][k]) for k, v in players[0].named_parameters())


def test_bfloat16_reaches_all_weights():
    """No slope is missing, and together they point where those of float32 do."""
    torch.manual_seed(0)
    players = small(), gan.Discriminator(3, [6, 5, 4])
    for key, part in players[0].named_parameters():
        part.data *= "noise_strength" not in key  # bfloat16 draws other numbers
    twin = copy.deepcopy(players)
    for amp, (generator, discriminator) in ((True, players), (False, twin)):
        with torch.autocast("cpu", torch.bfloat16, amp, cache_enabled=False):
            torch.manual_seed(0)
            sgd = [torch.optim.SGD(p.parameters(), 0.0) for p in (discriminator, generator)]
            real = torch.randn(4, 3, 16, 16)
            gan.d_step(generator, discriminator, sgd[0], real, torch.randn(8, 7))
            gan.g_step(generator, discriminator, sgd[1], torch.randn(8, 7))
    for mine, other in zip(players, twin, strict=True):
        for key, part in mine.named_parameters():
            assert part.grad is not None and (part.ndim == 0 or part.grad.any()), key
        slopes = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (mine, other)]
        assert F.cosine_similarity(*slopes, dim=0) > 0.95


def test_ema():
    model, target = small(), small(1)
    before = {k: v.clone() for k, v in model.named_parameters()}
    gan.update_ema(model, target, 0.9)
    for (key, mine), other in zip(model.named_parameters(), target.parameters(), strict=True):
        assert torch.allclose(mine, 0.9 * before[key] + 0.1 * other, atol=1e-6)
    assert torch.equal(model.mapping.w_avg, target.mapping.w_avg)
    noise = [m.synthesis.b8.conv0.noise_const for m in (model, target)]
    assert torch.equal(*noise)


# --- what is measured ----------------------------------------------------------------------------
def test_path_length_to_judge_by():
    class Line(torch.nn.Module):
        """Pictures that are linear in w: their path length is known."""

        def __init__(self):
            super().__init__()
            self.A = torch.nn.Parameter(torch.randn(5, 3 * 8 * 8))

        def style(self, z):
            return z

        def spread(self, w):
            return w[:, None]

        def draw(self, ws):
            return (ws[:, 0] @ self.A).view(-1, 3, 8, 8)

    torch.manual_seed(0)
    model, z = Line(), torch.randn(40, 5)
    a, b = z.chunk(2)
    step = ((b - a) @ model.A).view(-1, 3, 8, 8).detach()
    wanted = gan.differences(step, 0 * step).mean().item()
    assert gan.path_length(model, z) == pytest.approx(wanted, rel=1e-4)


def test_projection_finds_back():
    model = small(widths=(8, 8, 8))
    with torch.no_grad():
        torch.manual_seed(1)
        w = model.style(torch.randn(1000, 7))
        target = model.draw(model.spread(w[:1]), True)
        start = model.draw(model.spread(w.mean(0)[None]), True)
    before = gan.differences(start, target).item()
    torch.manual_seed(2)
    after = []
    for n_ws in (1, 6):
        ws = gan.invert(model, target, n_ws, 300)
        assert ws.shape == (1, 6, 8) and not ws.requires_grad
        assert (ws[:, 0] == ws[:, 5]).all() == (n_ws == 1)
        after.append(gan.differences(model.draw(ws, True), target).item())
    assert max(after) < before / 20
    assert all(p.grad is None for p in model.parameters())
    other = gan.differences(model.draw(ws, True), start).item()  # it is that picture's, no other's
    assert other > 10 * after[1]


# --- runs ----------------------------------------------------------------------------------------
def test_pictures_numbers_and_projection(tmp_path, monkeypatch):
    from torchvision.utils import save_image

    monkeypatch.chdir(tmp_path)
    metrics = gan.train(args_of(*QUICK, "--out", "o"))
    assert {"swd", "classes", "confidence", "ppl"} == {*metrics}
    assert all(math.isfinite(value) for value in metrics.values())
    made = {"mixing.png", "truncation.png", "interpolation.png", "samples_000002.png"}
    assert made <= {path.name for path in (tmp_path / "o").iterdir()}
    save_image(torch.rand(3, 12, 9), "wide.png")
    keep = gan.invert
    monkeypatch.setattr(gan, "invert", lambda *a: keep(*a, n_steps=3))
    code, out, err = call(PATH, *QUICK, "--device", "cpu", "--project", "wide.png", "--out", "o")
    assert code == 0 and "projection.png" in out, err
    found = torch.load("o/projection.pt", weights_only=True)
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "w": (1, 4, 8),
        "w_plus": (1, 4, 8),
    }
    assert (tmp_path / "o/projection.png").exists() and (tmp_path / "o/last.pt").exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_image_to_project(tmp_path, channels):
    from torchvision.utils import save_image

    x = torch.zeros(3, 16, 32)
    x[0, :, 8:24] = 1
    save_image(x, tmp_path / "x.png")
    image = tmp_path / "x.png"
    args = args_of("--project", str(image), "--img_size", "16", "--channels", str(channels))
    found = gan.load_image(args)  # the middle, which is red
    wanted = torch.tensor([1.0, -1, -1]) if channels == 3 else torch.tensor([-1 / 3])
    assert found.shape == (1, channels, 16, 16)
    assert (found - wanted[:, None, None]).abs().max() < 1e-5


def test_bfloat16_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = gan.train(args_of(*QUICK, "--amp", "--out", "o"))
    assert all(math.isfinite(value) for value in metrics.values())


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(PATH, "--img_size", "24", about="--img_size 24")
    mistake(PATH, "--psi", "nan", about="--psi")
    mistake(PATH, "--project", "none.png", about="last.pt")
    generator, _ = gan.build(args_of(*QUICK))
    torch.save(generator.state_dict(), "g.pt")
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    (tmp_path / "o").mkdir()
    for name in ("none.png", "text.png"):
        more = ["--weights", "g.pt", "--out", "o", "--project", name, "--device", "cpu"]
        mistake(PATH, *QUICK, *more, about=f"--project {name}")
