"""stylegan.py: mapping, AdaIN, noise, equalised rates and mixing by hand; R1 of a linear judge;
path length and separability where they are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, load, mistake
from scipy.ndimage import convolve
from torch import nn

gan = load("gan/stylegan.py")
PATH = ROOT / "gan/stylegan.py"


def args_of(*argv):
    args = gan.parse_args([*argv, "--device", "cpu"])
    args.device = "cpu"
    return args


def small(seed=0, widths=(6, 5, 4), n_mapping=3):
    """A generator none of whose parameters is what it was at first."""
    torch.manual_seed(seed)
    model = gan.Generator(7, 8, n_mapping, 3, list(widths))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        model.w_mean.copy_(torch.randn(8))
    return model


# --- mapping and styles --------------------------------------------------------------------------
def test_mapping_by_hand():
    model, z = small(), torch.randn(4, 7)
    w = z / z.square().mean(1, keepdim=True).sqrt()
    for layer in model.mapping[::2]:
        n = layer.weight.shape[1]
        w = w @ (layer.weight * 0.01 * math.sqrt(2 / n)).T + 0.01 * layer.bias
        w = torch.where(w > 0, w, 0.2 * w)
    assert (model.style(z) - w).abs().max() < 1e-5
    assert (model.style(3.7 * z) - w).abs().max() < 1e-5  # the length of z does not count
    assert (model.style(-z) - w).abs().max() > 1e-4


def test_first_weights_are_scaled_up_by_the_multiplier():
    torch.manual_seed(0)
    layer = gan.EqualLinear(300, 400, lr_mul=0.01)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.02)
    effective = layer.weight * layer.scale
    assert effective.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.02)


@pytest.mark.parametrize("n", [4, 400])
def test_a_step_of_adam_moves_what_is_used_by_lr_times_its_scale(n):
    for layer, x in (
        (gan.EqualLinear(n, 3), torch.randn(5, n)),
        (gan.EqualConv2d(n, 3, 3), torch.randn(2, n, 4, 4)),
    ):
        before = layer.weight.detach() * layer.scale
        optimizer = torch.optim.Adam(layer.parameters(), 0.1, eps=1e-30)
        layer(x).square().sum().backward()
        optimizer.step()
        moved = (layer.weight * layer.scale - before).abs()
        fan_in = layer.weight[0].numel()
        assert moved.mean().item() == pytest.approx(0.1 * math.sqrt(2 / fan_in), rel=1e-3)


def test_adain_sets_mean_and_deviation():
    torch.manual_seed(0)
    x, style = 5 + 3 * torch.randn(4, 3, 16, 16), torch.randn(4, 6)
    y = gan.adain(x, style)
    assert (y.mean((2, 3)) - style[:, 3:]).abs().max() < 1e-5
    assert (y.std((2, 3), correction=0) - (1 + style[:, :3]).abs()).abs().max() < 1e-5
    assert (gan.adain(x, torch.zeros(4, 6)) - F.instance_norm(x, eps=1e-8)).abs().max() < 1e-5


def test_a_layer_by_hand():
    torch.manual_seed(0)
    layer, x, w = gan.StyleLayer(3, 4, 5, True), torch.randn(2, 3, 6, 6), torch.randn(2, 5)
    nn.init.normal_(layer.noise), nn.init.normal_(layer.bias)
    torch.manual_seed(3)
    y = layer(x, w)
    torch.manual_seed(3)
    n = torch.randn(2, 1, 12, 12)
    z = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    z = F.conv2d(z, layer.conv.weight * math.sqrt(2 / 27), padding=1)
    taps = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).numpy() / 16
    z = torch.stack(
        [
            torch.stack(
                [
                    torch.from_numpy(convolve(m, taps, mode="constant"))
                    for m in each.detach().numpy()
                ]
            )
            for each in z
        ]
    )
    z = F.leaky_relu(z + layer.noise * n + layer.bias, 0.2)
    assert (gan.adain(z, layer.style(w)) - y).abs().max() < 1e-4
    torch.manual_seed(4)
    assert (layer(x, w) - y).abs().max() > 1e-2  # other noise


def test_noise_is_one_number_a_pixel_and_off_at_first():
    layer = gan.StyleLayer(0, 4, 5, False)
    x, w = torch.randn(2, 4, 6, 6), torch.randn(2, 5)
    assert torch.equal(layer(x, w), layer(x, w))
    nn.init.ones_(layer.noise)
    layer.style.weight.data.zero_()
    gap = layer(torch.zeros(2, 4, 6, 6), w)
    assert (gap - gap[:, :1]).abs().max() < 1e-6 and gap.std() > 0.5


def test_sizes_and_layers():
    for size in (8, 16, 64):
        args = args_of("--img_size", str(size), "--channels", "3", "--dataset", "cifar10")
        generator, discriminator = gan.build(args)
        assert len(generator.layers) == 2 * math.log2(size) - 2
        x = generator(torch.randn(4, args.latent_dim))
        assert x.shape == (4, 3, size, size) and discriminator(x).shape == (4,)


def test_widths_of_the_paper():
    """512 maps up to 32 pixels, then half as many each time: 16 at 1024."""
    args = args_of("--config", "ffhq")
    args.device = "meta"
    with torch.device("meta"):
        generator, discriminator = gan.build(args)
    widths = [layer.bias.shape[0] for layer in generator.layers[::2]]
    assert widths == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert [block[1].weight.shape[0] for block in discriminator.blocks] == widths[:-1][::-1]
    assert len(generator.mapping) == 16 and generator.w_mean.shape == (512,)


# --- mixing, truncation --------------------------------------------------------------------------
def test_mixed_styles_come_from_one_cut():
    torch.manual_seed(0)
    model, z = small(widths=(4, 4, 4, 4)), torch.randn(2000, 7)
    ws = gan.mix_styles(model, z)
    w, other = model.style(z).chunk(2)
    first = (ws == w[:, None]).all(2)  # (B, L)
    assert ((ws == other[:, None]).all(2) == ~first).all()
    assert (first[:, :-1] >= first[:, 1:]).all() and first[:, 0].all()
    cuts = first.sum(1).bincount(minlength=9)
    assert cuts[8].item() == pytest.approx(100, abs=35)  # a tenth is not mixed
    assert (cuts[1:8] > 80).all() and cuts[0] == 0


def test_first_layers_do_not_feel_the_other_style():
    model = small()
    a, b = (torch.randn(1, 8, requires_grad=True) for _ in range(2))
    first = torch.arange(6)[:, None] < 3
    seen = []
    for at, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda _, x, y, at=at: seen.append(y))
    model.draw(torch.where(first, a, b)[None])
    for at, y in enumerate(seen):
        grads = torch.autograd.grad(y.square().sum(), [a, b], retain_graph=True, allow_unused=True)
        assert grads[0].abs().sum() > 0
        assert (grads[1] is None or not grads[1].any()) == (at < 3)


def test_mean_of_w_follows():
    model, z = small(), torch.randn(64, 7)
    before, w = model.w_mean.clone(), model.style(z).chunk(2)[0].mean(0)
    gan.mix_styles(model, z)
    assert (model.w_mean - (0.995 * before + 0.005 * w)).abs().max() < 1e-6


def test_truncation():
    model, w = small(), torch.randn(4, 8)
    ws = model.spread(w, 0.3, 2)
    wanted = model.w_mean + 0.3 * (w - model.w_mean)
    assert (ws[:, :2] - wanted[:, None]).abs().max() < 1e-6
    assert torch.equal(ws[:, 2:], w[:, None].expand(4, 4, 8))
    assert (model.spread(w, 1.0) - w[:, None]).abs().max() < 1e-6
    zero = model.spread(w, 0.0, 6)
    assert torch.equal(zero[0], zero[1])


# --- players -------------------------------------------------------------------------------------
def test_r1_of_a_linear_judge():
    torch.manual_seed(0)
    x, w = torch.randn(5, 3, 4, 4).requires_grad_(), torch.randn(3, 4, 4)
    assert gan.r1_penalty((x * w).sum((1, 2, 3)), x).item() == pytest.approx(
        w.square().sum().item() / 2, rel=1e-5
    )
    assert gan.r1_penalty((x**2).sum((1, 2, 3)), x).item() == pytest.approx(
        2 * x.square().sum((1, 2, 3)).mean().item(), rel=1e-5
    )


def test_only_real_images_are_penalised(monkeypatch):
    torch.manual_seed(0)
    generator, discriminator = small(), gan.Discriminator(3, [6, 5, 4])
    optimizer, seen = torch.optim.SGD(discriminator.parameters(), 0.0), []
    monkeypatch.setattr(gan, "r1_penalty", lambda score, real: seen.append(real) or score.sum() * 0)
    real = torch.randn(4, 3, 16, 16)
    gan.d_step(generator, discriminator, optimizer, real, torch.randn(8, 7), 1.0)
    assert len(seen) == 1 and seen[0] is real
    assert all(p.grad is None for p in generator.parameters())


def test_each_step_moves_its_player_alone():
    torch.manual_seed(0)
    players = small(), gan.Discriminator(3, [6, 5, 4])
    before = [{k: v.clone() for k, v in p.named_parameters()} for p in players]
    adam = [torch.optim.Adam(p.parameters(), 1e-2) for p in players]
    gan.d_step(*players, adam[1], torch.randn(4, 3, 16, 16), torch.randn(8, 7), 1.0)
    assert all(torch.equal(v, before[0][k]) for k, v in players[0].named_parameters())
    assert any(not torch.equal(v, before[1][k]) for k, v in players[1].named_parameters())
    now = {k: v.clone() for k, v in players[1].named_parameters()}
    gan.g_step(*players, adam[0], torch.randn(8, 7))
    assert all(torch.equal(v, now[k]) for k, v in players[1].named_parameters())
    assert any(not torch.equal(v, before[0][k]) for k, v in players[0].named_parameters())
    assert all(p.requires_grad for p in players[1].parameters())


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 12])
def test_group_deviation_by_hand(batch):
    x = torch.randn(batch, 3, 4, 4)
    y = gan.group_deviation(x)
    assert y.shape == (batch, 1, 4, 4)
    size = 4 if batch % 4 == 0 else 1 if batch < 2 else batch
    n = batch // size
    for i in range(batch):
        group = x[i % n :: n]
        wanted = (group.var(0, correction=0) + 1e-8).sqrt().mean()
        assert (y[i] - wanted).abs().max() < 1e-5
    assert gan.group_deviation(x[:1].expand(4, -1, -1, -1)).max() < 1e-3  # one picture, four times


# --- what is measured ----------------------------------------------------------------------------
class Line(nn.Module):
    """Pictures that are linear in w: their path length is known."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.A = nn.Parameter(torch.randn(5, 3 * 8 * 8))

    def style(self, z):
        return z

    def spread(self, w):
        return w[:, None]

    def draw(self, ws):
        return (ws[:, 0] @ self.A).view(-1, 3, 8, 8)


def test_path_length_of_a_linear_generator():
    model, z = Line(), torch.randn(40, 5)
    a, b = z.chunk(2)
    step = ((b - a) @ model.A).view(-1, 3, 8, 8).detach()
    wanted = gan.differences(step, 0 * step).mean().item()
    assert gan.path_length(model, z, "w") == pytest.approx(wanted, rel=1e-4)
    assert gan.path_length(model, z, "z") != pytest.approx(wanted, rel=0.1)  # along the sphere


def test_differences_by_hand():
    a, b = torch.randn(2, 3, 2, 8, 8)
    d = (a - b).view(3, 2, 4, 2, 4, 2).mean((3, 5))
    d2 = (a - b).view(3, 2, 2, 4, 2, 4).mean((3, 5))
    wanted = sum(x.square().mean((1, 2, 3)) for x in (a - b, d, d2)) / 3
    assert (gan.differences(a, b) - wanted).abs().max() < 1e-6


def test_separability_knows_a_direction_from_a_ring():
    torch.manual_seed(0)
    x = torch.randn(500, 4)
    y = x[:, :1] > 0
    points = torch.randn(2000, 3)
    along = points[:, :1].expand(-1, 4)  # the attribute is a direction
    ring = (points.norm(dim=1, keepdim=True) - 1.6).expand(-1, 4)  # it is a shell: no direction
    first, second = (gan.separability(x, y, fakes, points) for fakes in (along, ring))
    assert first == pytest.approx(1, abs=0.05) and 1.6 < second <= 2.01
    assert gan.separability(x, y, torch.ones(2000, 4), points) == 1  # too rare to count
    none = torch.tensor([[True, False]]).expand(500, 2)  # a folder alone, a class that is absent
    assert gan.separability(x, none, along, points) == 1


def test_attributes_of_the_drawn_things():
    torch.manual_seed(0)
    x, y = gan.draw_attributes(400, 16)
    assert x.shape == (400, 3, 16, 16) and x.dtype == torch.uint8
    warm, large = y >> 2 & 1, y >> 1 & 1
    tint = x[:, 0].float().mean((1, 2)) - x[:, 2].float().mean((1, 2))
    assert ((tint > 0) == (warm > 0)).all()
    area = ((x.float() - 128).abs().amax(1) > 30).float().mean((1, 2))
    assert area[large > 0].min() > area[large < 1].max() * 0.9
    assert len(y.unique()) == 8


# --- runs ----------------------------------------------------------------------------------------
QUICK = ["--n_steps", "2", "--sample_interval", "2", "--fmap_max", "4", "--batch_size", "4"]
QUICK += ["--latent_dim", "8", "--w_dim", "8", "--n_mapping", "1"]


def test_pictures_and_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = args_of(*QUICK, "--dataset", "shapes", "--out", "o")
    metrics = gan.train(args)
    names = {"mixing.png", "truncation.png", "interpolation.png", "samples_000002.png"}
    assert names <= {path.name for path in (tmp_path / "o").iterdir()}
    keys = {"ppl_w", "ppl_z", "separability_w", "separability_z", "swd"}
    assert keys <= {*metrics} and all(math.isfinite(value) for value in metrics.values())


def test_one_folder_of_larger_pictures(tmp_path, monkeypatch):
    from torchvision.utils import save_image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for at in range(20):
        save_image(torch.rand(3, 64, 64), tmp_path / f"mine/{at}.png")
    args = args_of(*QUICK, "--dataset", "folder", "--data_root", ".", "--out", "o")
    metrics = gan.train(args)
    assert metrics["separability_w"] == 1 and math.isfinite(metrics["ppl_w"])


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(PATH, "--img_size", "24", about="--img_size 24")
    mistake(PATH, "--psi", "nan", about="--psi")
