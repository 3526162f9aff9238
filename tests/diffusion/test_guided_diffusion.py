"""Identities of guided_diffusion.py: each equation against a restatement in float64."""

import math
import shlex
from unittest import mock

import numpy as np
import pytest
import torch
from house import call, load, mistake
from PIL import Image

guided = load("diffusion/guided_diffusion.py")
improved = load("diffusion/improved_ddpm.py")
PATH = guided.Path(guided.__file__)
F64 = torch.float64
TINY = shlex.split("--timesteps 25 --n_samples 4 --n_test 8 --sample_interval 3 --batch_size 8")
TINY += shlex.split("--base_channels 8 --channel_mult 1 2 --n_res_blocks 1 --device cpu")
TINY += shlex.split("--classifier_width 8 --sampling_steps 3")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def process(timesteps=50, schedule="cosine", kind=guided):
    return kind.GaussianDiffusion(kind.noise_schedule(schedule, timesteps), "cpu", F64)


def shake(net, spread=0.2):
    """Random weights, none of them zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            std = spread if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.normal_(std=std)
    return net.double().eval()


def classifier(n_classes=4):
    torch.manual_seed(0)
    return shake(guided.Classifier(n_classes, 1, 8, 8, [1, 2], 1, [4], 4))


def pair_of_steps(scale):
    """One unguided step and one loss, here and by improved_ddpm.py, whose tests prove it."""
    torch.manual_seed(1)
    x0, noise = torch.rand(50, 1, 4, 4, dtype=F64) * 2 - 1, torch.randn(50, 1, 4, 4, dtype=F64)
    out, t = torch.randn(50, 2, 4, 4, dtype=F64), torch.arange(50)
    found = []
    for kind in (guided, improved):
        d = process(kind=kind)
        if kind is guided:
            d.tables = {key: table * scale for key, table in d.tables.items()}
        loss = d.training_losses(lambda *_: out, x0, t, noise)
        torch.manual_seed(2)
        step = d.p_sample(lambda *_: out, x0, t)
        found.append((loss, step if kind is guided else step[0]))
    return found


def test_without_guidance_it_is_improved_ddpm():
    (loss, step), (loss2, step2) = pair_of_steps(1.0)
    assert torch.allclose(loss, loss2, rtol=1e-12)
    assert torch.equal(step, step2)
    wrong, _ = pair_of_steps(1.001)
    assert not torch.allclose(wrong[0], loss2, rtol=1e-5)  # the control: tables off by a little
    assert not torch.allclose(wrong[1], step2, rtol=1e-5)


def test_the_mean_is_held_fixed_in_the_bound():
    torch.manual_seed(0)
    d, (x0, noise) = process(), torch.rand(2, 50, 1, 4, 4, dtype=F64)
    out = torch.randn(50, 2, 4, 4, dtype=F64).requires_grad_()
    loss = d.training_losses(lambda *_: out, x0, torch.arange(50), noise).sum()
    simple = (noise - out[:, :1]).square().flatten(1).mean(1).sum()
    ours, plain = (torch.autograd.grad(part, out, retain_graph=True)[0] for part in (loss, simple))
    assert torch.equal(ours[:, :1], plain[:, :1])
    assert (ours[:, 1:].flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("steps", [50, 10])
def test_respaced_chain(steps):
    """The abar of the kept steps, of those before them, and the times they had."""
    d, kept = process(), np.round(np.linspace(0, 49, steps)).astype(int).tolist()
    short = d.respaced(steps)
    assert short.times.tolist() == [20.0 * t for t in kept]
    abar = [1.0, *(d.tables["sqrt_abar"][kept] ** 2).tolist()]
    for i in range(steps):
        a, before = abar[i + 1], abar[i]
        beta = 1 - a / before
        expected = {
            "sqrt_abar": math.sqrt(a),
            "sqrt_abar_prev": math.sqrt(before),
            "sqrt_one_minus_abar_prev": math.sqrt(1 - before),
            "coef_x0": math.sqrt(before) * beta / (1 - a),
            "log_beta": math.log(beta),
        }
        for name, value in expected.items():
            assert short.tables[name][i].item() == pytest.approx(value, rel=1e-7, abs=1e-12), name


def difference(function, x, way, step=1e-5):
    return (function(x + step * way) - function(x - step * way)) / (2 * step)


def test_gradient_equals_finite_differences():
    """Eq. (27), image by image, along random ways; probabilities in place of logs are seen."""
    net, scale = classifier(), 3.0
    x, way = torch.randn(2, 5, 1, 8, 8, dtype=F64)
    y, time = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([0.0, 20, 480, 960, 500], dtype=F64)
    ours = (guided.cond_fn(net, scale, y, x, time) * way).flatten(1).sum(1)

    def scores(x, log):
        values = net(x, time).log_softmax(1) if log else net(x, time).softmax(1)
        return scale * values[range(5), y]

    with torch.no_grad():
        assert torch.allclose(ours, difference(lambda x: scores(x, True), x, way), rtol=1e-5)
        assert not torch.allclose(ours, difference(lambda x: scores(x, False), x, way), rtol=0.1)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert ours.abs().max() > 1e-2


def test_no_image_has_a_part_in_the_gradient_of_another():
    net, y, time = classifier(), torch.tensor([0, 1, 2]), torch.tensor([0.0, 20, 480], dtype=F64)
    x = torch.randn(3, 1, 8, 8, dtype=F64)
    parts = [(y[i : i + 1], x[i : i + 1], time[i : i + 1]) for i in range(3)]
    alone = [guided.cond_fn(net, 1.0, *part) for part in parts]
    assert torch.allclose(guided.cond_fn(net, 1.0, y, x, time), torch.cat(alone), rtol=1e-10)


def guidance(x, time):
    return 0.3 * x.cos() + time[:, None, None, None] / 1000


@pytest.mark.parametrize("t", [1, 2, 25, 50])
def test_algorithms_restated(t):
    """Eqs. (28) to (31) from the schedule alone, with a known gradient, for the paper's t."""
    torch.manual_seed(t)
    d, x = process(), torch.randn(3, 1, 2, 2, dtype=F64)
    out, at = torch.randn(3, 2, 2, 2, dtype=F64), torch.full((3,), t - 1)
    f = [math.cos((u / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in range(51)]
    beta = [0.0, *(min(1 - f[u] / f[u - 1], 0.999) for u in range(1, 51))]
    abar = np.cumprod([1 - b for b in beta]).tolist()
    s = max(t, 2)
    tilde = (1 - abar[s - 1]) / (1 - abar[s]) * beta[s]
    v = (out[:, 1:] + 1) / 2
    variance = beta[t] ** v * tilde ** (1 - v)
    a, b = math.sqrt(abar[t]), math.sqrt(1 - abar[t])
    x_hat = ((x - b * out[:, :1]) / a).clamp(-1, 1)
    g = guidance(x, torch.full((3,), (t - 1) * 20.0))
    mean = math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t]) * x_hat
    mean = mean + math.sqrt(1 - beta[t]) * (1 - abar[t - 1]) / (1 - abar[t]) * x + variance * g
    torch.manual_seed(9)
    noise = torch.randn_like(x) if t > 1 else 0 * x
    torch.manual_seed(9)
    ours = d.p_sample(lambda *_: out, x, at, guidance)
    assert torch.allclose(ours, mean + variance.sqrt() * noise, atol=1e-9)
    eps = (x - a * x_hat) / b - b * g
    x_hat = ((x - b * eps) / a).clamp(-1, 1)
    expected = math.sqrt(abar[t - 1]) * x_hat
    expected = expected + math.sqrt(1 - abar[t - 1]) * (x - a * x_hat) / b
    assert torch.allclose(d.ddim_sample(lambda *_: out, x, at, guidance), expected, atol=1e-9)


class Mixture:
    """Exact networks for images N(mu_k, s^2 I) of probability w_k: eps_hat and log p(y | x_t)."""

    def __init__(self, chain):
        self.chain, self.s2 = chain, 0.15**2
        self.mu, self.w = torch.tensor([-0.5, 0.0, 0.5], dtype=F64), torch.tensor([0.5, 0.3, 0.2])

    def scores(self, x, time):
        """log p(x_t, y = k) but for a constant: (B, K). The classifier."""
        t = (self.chain.times[None] - time[:, None]).abs().argmin(1)
        a, b = (
            self.chain.at("sqrt_abar", t)[:, 0, 0],
            self.chain.at("sqrt_one_minus_abar", t)[:, 0, 0],
        )
        spread = a * a * self.s2 + b * b  # (B, 1)
        square = (
            (x.flatten(1)[:, None] - a[:, :, None] * self.mu[:, None]).square().sum(2)
        )  # (B, K)
        return self.w.log() - square / (2 * spread)

    def __call__(self, x, time):
        """The optimal eps, and the variance between beta_tilde and beta of a single Gaussian."""
        d = self.chain
        t = (d.times[None] - time[:, None]).abs().argmin(1)
        a, b = d.at("sqrt_abar", t), d.at("sqrt_one_minus_abar", t)
        p = self.scores(x, time).softmax(1)  # (B, K)
        spread = a * a * self.s2 + b * b
        mean = a * (p @ self.mu)[:, None, None, None]
        return torch.cat([b / spread * (x - mean), torch.zeros_like(x)], 1)


def draw_mixture(algorithm, y, scale, steps=200):
    torch.manual_seed(0)
    d = process(1000).respaced(steps)
    m = Mixture(d)
    x, y = torch.randn(600, 1, 2, 2, dtype=F64), torch.full((600,), y)

    def guide(x, time):
        return guided.cond_fn(m.scores, scale, y, x, time)

    for t in range(d.timesteps)[::-1]:
        x = getattr(d, algorithm)(m, x, torch.full((600,), t), guide if scale else None)
    landed = (x.flatten(1).mean(1)[:, None] - m.mu).abs().argmin(1)
    return x, (landed[:, None] == torch.arange(3)).float().mean(0), (landed == y).float().mean()


@pytest.mark.parametrize("algorithm", ["p_sample", "ddim_sample"])
@pytest.mark.parametrize("y", [0, 2])
def test_guided_samples_have_the_law_of_their_class(algorithm, y):
    """At s = 1 exact networks turn p(x) into p(x | y): right class, its mean and its spread."""
    x, _, hits = draw_mixture(algorithm, y, 1.0)
    assert hits >= 0.99
    mu = [-0.5, 0.0, 0.5][y]
    assert x.mean().item() == pytest.approx(mu, abs=0.02)
    assert x.std().item() == pytest.approx(0.15, rel=0.08)


@pytest.mark.parametrize("algorithm", ["p_sample", "ddim_sample"])
def test_unguided_samples_have_the_law_of_all(algorithm):
    """The control: without the gradient the classes come as often as in the data."""
    _, often, _ = draw_mixture(algorithm, 0, 0.0)
    assert (often - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 0.07


def test_guidance_away_from_a_class_is_seen():
    """The control: the sign of the gradient turned round."""
    _, _, hits = draw_mixture("p_sample", 2, -1.0)
    assert hits < 0.2


def test_attention_pool_equals_torch():
    """Against multi-head attention of torch, of which only the mean's row is kept."""
    torch.manual_seed(0)
    pool = shake(guided.AttentionPool2d(3, 8, 2, 5))
    x = torch.randn(4, 8, 3, 3, dtype=F64)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(pool.qkv_proj.weight[:, :, 0])
        theirs.in_proj_bias.copy_(pool.qkv_proj.bias)
        theirs.out_proj.weight.copy_(torch.eye(8))
        rows = torch.cat([x.mean((2, 3))[:, :, None], x.flatten(2)], 2)
        rows = (rows + pool.positional_embedding).mT
        seen = theirs(rows, rows, rows)[0][:, 0]
        expected = seen @ pool.c_proj.weight[:, :, 0].T + pool.c_proj.bias
        assert torch.allclose(pool(x), expected, atol=1e-10)
        pool.heads = 4
        assert not torch.allclose(pool(x), expected, atol=1e-4)


def test_both_orders_of_qkv():
    """Rows by head in one, by kind in the other: the same attention after a permutation."""
    qkv = torch.randn(2, 24, 7, dtype=F64)
    legacy = qkv.unflatten(1, (3, 2, 4)).transpose(1, 2).flatten(1, 3)
    assert torch.equal(guided.attend(qkv, 2, True), guided.attend(legacy, 2, False))
    assert not torch.allclose(guided.attend(qkv, 2, True), guided.attend(qkv, 2, False))


def test_the_class_reaches_a_network_that_asks_for_it():
    torch.manual_seed(0)
    net = shake(guided.UNet(3, 1, 8, 8, [1, 2], 1, [4], 0.0, 0, 4, False))
    x, t = torch.randn(2, 1, 8, 8, dtype=F64), torch.zeros(2, dtype=F64)
    assert not torch.allclose(net(x, t, torch.tensor([0, 1])), net(x, t, torch.tensor([0, 2])))
    deaf = shake(guided.UNet(0, 1, 8, 8, [1, 2], 1, [4], 0.0, 0, 4, False))
    assert torch.equal(deaf(x, t, torch.tensor([0, 1])), deaf(x, t))


def nets_of(config):
    """The network and the classifier of a config, on meta, where they cost nothing."""
    args = guided.parse_args(["--config", config, "--device", "meta"])
    others = {"noise_schedule": mock.DEFAULT, "GaussianDiffusion": mock.DEFAULT}
    with torch.device("meta"), mock.patch.multiple(guided, **others):
        return guided.build(args)[:2]


@pytest.mark.parametrize(
    ("config", "millions", "of_classifier"),
    [
        ("imagenet64", 296, 65),
        ("imagenet128", 422, 43),
        ("imagenet256", 554, 54),
        ("imagenet512", 559, 54),
    ],
)
def test_parameter_counts_of_the_paper(config, millions, of_classifier):
    """Its tables of hyperparameters give the size of every model in millions."""
    counts = [sum(p.numel() for p in net.parameters()) for net in nets_of(config)]
    assert [round(count / 1e6) for count in counts] == [millions, of_classifier]


def test_official_names_and_shapes():
    """Where the official 256-pixel models keep what."""
    model, judge = nets_of("imagenet256")
    expected = {
        "time_embed.0.weight": (1024, 256),
        "label_emb.weight": (1000, 1024),
        "input_blocks.0.0.weight": (256, 3, 3, 3),
        "input_blocks.3.0.in_layers.2.weight": (256, 256, 3, 3),  # a residual block that halves
        "input_blocks.3.0.emb_layers.1.weight": (512, 1024),
        "input_blocks.7.0.skip_connection.weight": (512, 256, 1, 1),
        "input_blocks.10.1.qkv.weight": (1536, 512, 1),
        "input_blocks.17.1.proj_out.bias": (1024,),
        "middle_block.1.norm.weight": (1024,),
        "output_blocks.2.2.out_layers.3.weight": (1024, 1024, 3, 3),  # one that doubles
        "output_blocks.11.1.in_layers.0.weight": (512,),
        "output_blocks.17.0.skip_connection.weight": (256, 512, 1, 1),
        "out.2.weight": (6, 256, 3, 3),
    }
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert expected.items() <= shapes.items()
    expected = {
        "time_embed.2.weight": (512, 512),
        "input_blocks.16.1.qkv.weight": (1536, 512, 1),
        "middle_block.2.out_layers.3.weight": (512, 512, 3, 3),
        "out.0.weight": (512,),
        "out.2.positional_embedding": (512, 65),
        "out.2.qkv_proj.weight": (1536, 512, 1),
        "out.2.c_proj.weight": (1000, 512, 1),
    }
    shapes = {name: tuple(value.shape) for name, value in judge.state_dict().items()}
    assert expected.items() <= shapes.items()
    assert "label_emb.weight" not in shapes
    assert next(layer.heads for layer in model.modules() if hasattr(layer, "heads")) == 8
    assert {layer.eps for layer in model.modules() if hasattr(layer, "num_groups")} == {1e-5}


def test_classes_of_the_digits():
    args = guided.parse_args(["--device", "cpu"])
    (x, y), (test, truth) = guided.load_data(args)
    assert x.shape[1:] == (1, 8, 8)
    assert (x.dtype, len(x), len(test)) == (torch.uint8, len(y), len(truth))
    assert sorted({*y.tolist()}) == [*range(10)]
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype(int)
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for image, label in zip(test, truth, strict=True):
        assert known[image.flatten().numpy().astype(int).tobytes()] == label


@pytest.mark.parametrize("channels", ["1", "3"])
def test_folder_of_classes(tmp_path, channels):
    """A class a folder, in the order of the alphabet; grey, alpha and odd sizes all fit."""
    for i in range(24):
        folder = tmp_path / "cab"[i % 3]
        folder.mkdir(exist_ok=True)
        mode, size = ["L", "RGB", "RGBA", "P"][i % 4], (20 + i, 33)
        Image.new(mode, size, 40 * (i % 3)).convert("RGBA").save(folder / f"{i}.png")
    flags = ["--dataset", "folder", "--data_root", str(tmp_path), "--img_size", "16"]
    flags += ["--channels", channels, "--device", "cpu"]
    (x, y), (test, truth) = guided.load_data(guided.parse_args([*flags, "--n_classes", "3"]))
    assert x.shape == (22, int(channels), 16, 16)
    assert sorted(torch.cat([y, truth]).tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    grey = torch.cat([x, test])[:, 0, 0, 0]
    assert (grey[torch.cat([y, truth]) == 2] == 0).all()  # folder c was the first to be filled
    mistake(PATH, *flags, "--n_classes", "4", "--out", tmp_path / "o", about="--n_classes")
    (tmp_path / "a/broken.png").write_bytes(b"\x89PNG no picture")
    mistake(PATH, *flags, "--n_classes", "3", about="--data_root")


def run(argv, out):
    code, stdout, stderr = call(PATH, *TINY, *argv, "--out", out)
    assert code == 0, stderr
    return torch.load(out / "last.pt", weights_only=True), stdout.splitlines()[-1]


VARIANTS = ["--class_cond", "--use_ddim --classifier_scale 3", "--amp --flip", "--heads 2"]
VARIANTS += ["--classifier_scale 0", "--new_attention_order --class_id 3 5"]


@pytest.mark.parametrize("flags", VARIANTS)
def test_variants_train(tmp_path, flags):
    run([*flags.split(), "--n_steps", "2"], tmp_path)


def test_rows_of_the_grid_are_classes():
    args = guided.parse_args([*TINY, "--n_samples", "16", "--class_id", "7", "2", "--use_ddim"])
    nets = guided.build(args)
    assert guided.sample(*nets, args)[1].tolist() == [7] * 4 + [2] * 4 + [7] * 4 + [2] * 4
    args.class_id, args.n_samples = None, 100
    assert guided.sample(*nets, args)[1].tolist() == [k for k in range(10) for _ in range(10)]


def test_sampling_needs_the_flags_of_training(tmp_path):
    run(["--n_steps", "2"], tmp_path)
    for flags in [], ["--use_ddim"], ["--classifier_scale", "0"]:
        assert call(PATH, *TINY, "--sample", *flags, "--out", tmp_path)[0] == 0
    assert (tmp_path / "samples.png").exists()
    for flags in ["--schedule", "linear"], ["--heads", "2"], ["--timesteps", "30"]:
        mistake(PATH, *TINY, *flags, "--sample", "--out", tmp_path, about=flags[0])


def test_two_files_of_weights(tmp_path):
    """Bare state dicts, as the official ones are: without the classifier's only s = 0 draws."""
    saved, trained = run(["--n_steps", "2"], tmp_path / "a")
    files = [tmp_path / "net.pt", tmp_path / "judge.pt"]
    for file, part in zip(files, ("ema", "classifier"), strict=True):
        torch.save(saved[part], file)
    only = ["--sample", "--weights", files[0]]
    assert (
        call(PATH, *TINY, *only, "--classifier_weights", files[1], "--out", tmp_path / "b")[0] == 0
    )
    assert call(PATH, *TINY, *only, "--classifier_scale", "0", "--out", tmp_path / "c")[0] == 0
    mistake(PATH, *TINY, *only, "--out", tmp_path / "d", about="--weights")
    whole = [tmp_path / "a/last.pt"] * 2
    flags = ["--n_steps", "0", "--weights", whole[0], "--classifier_weights", whole[1]]
    code, stdout, _ = call(PATH, *TINY, *flags, "--out", tmp_path / "e")
    assert (code, stdout.splitlines()[-1]) == (0, trained)


@pytest.mark.parametrize(
    ("flags", "about"),
    [
        (["--img_size", "16"], "--img_size"),
        (["--channel_mult", "1", "1", "1", "1", "1"], "--img_size"),
        (["--base_channels", "18"], "--base_channels"),
        (["--heads", "3"], "--base_channels"),
        (["--head_channels", "5"], "--base_channels"),
        (["--classifier_width", "12"], "--classifier_width"),
        (["--class_id", "3", "10"], "--class_id"),
        (["--n_classes", "9"], "--n_classes"),
        (["--channels", "3"], "--channels"),
        (["--classifier_scale", "-1"], "--classifier_scale"),
        (["--sampling_steps", "201"], "--sampling_steps"),
        (["--dataset", "folder", "--data_root", "nowhere"], "--data_root"),
    ],
)
def test_flags_that_do_not_fit(flags, about):
    mistake(PATH, *flags, about=about)
