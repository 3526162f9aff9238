"""Identities of latent_diffusion.py: each equation against a brute-force restatement."""

import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake
from PIL import Image

ldm = load("diffusion/latent_diffusion.py")
SCRIPT = ROOT / "diffusion/latent_diffusion.py"
F64 = torch.float64
TINY = shlex.split("--base_channels 8 --channel_mult 1 --attn_levels 0 --n_res_blocks 1 --heads 2")
TINY += shlex.split("--ae_base_channels 8 --ae_res_blocks 1 --ae_steps 2 --context_dim 8")
TINY += shlex.split("--timesteps 25 --sampling_steps 3 --sample_interval 2 --n_samples 20")
TINY += shlex.split("--n_test 8 --batch_size 8")
TINY += ["--device", "cpu"]


def plain(timesteps, start, end):
    """abar of eq. (43), one number after the other, index 0 the paper's t = 0."""
    abar = [1.0]
    for t in range(timesteps):
        a, b = math.sqrt(start), math.sqrt(end)
        beta = (a + (b - a) * t / (timesteps - 1)) ** 2 * 1000 / timesteps
        abar.append(abar[-1] * (1 - beta))
    return abar


@pytest.mark.parametrize("timesteps", [50, 1000])
def test_tables(timesteps):
    d = ldm.GaussianDiffusion(timesteps, 0.0015, 0.0195, "cpu", F64)
    abar = plain(timesteps, 0.0015, 0.0195)
    assert d.abar[-1] == 1
    for t in (1, 2, timesteps // 2, timesteps):
        assert d.abar[t - 1] == pytest.approx(abar[t], rel=1e-10)
        assert d.tables["sqrt_abar"][t - 1].item() == pytest.approx(math.sqrt(abar[t]), rel=1e-10)
    # a schedule linear in beta, not in its root, is another one
    straight = torch.linspace(0.0015, 0.0195, timesteps, dtype=F64) * 1000 / timesteps
    assert abs((1 - straight).cumprod(0)[-1].item() / abar[-1] - 1) > 0.1


class Gauss:
    """Optimal eps for latents N(0, s^2 I), in closed form, or off by a factor."""

    def __init__(self, process, s, factor=1.0):
        self.process, self.s2, self.factor = process, s * s, factor

    def __call__(self, x, t, which):
        a, b = self.process.at("sqrt_abar", t), self.process.at("sqrt_one_minus_abar", t)
        return self.factor * b / (a * a * self.s2 + b * b) * x


@pytest.mark.parametrize(("factor", "good"), [(1.0, True), (1.02, False)])
def test_sampling_with_the_optimal_network(factor, good):
    """All steps with the right eps give the deviation of the data; nothing is clipped."""
    torch.manual_seed(0)
    d = ldm.GaussianDiffusion(1000, 0.0015, 0.0195, "cpu", F64)
    which = torch.zeros(100, dtype=torch.long)
    noise = torch.randn(100, 4, 8, 8, dtype=F64)
    *_, x = d.ddim_sample_loop(Gauss(d, 3.0, factor), noise, 1000, which, 1.0)
    assert (abs(x.std().item() / 3 - 1) < 0.02) is good
    assert x.abs().max() > 9


@pytest.mark.parametrize("steps", [1, 3, 7, 36, 37, 100])
def test_times_of_the_sampler(steps):
    """So many, falling, within 0..T-1, each step from where the last one ended."""
    d, seen = ldm.GaussianDiffusion(100, 0.0015, 0.0195, "cpu", F64), []

    def model(x, t, which):
        seen.append(t[0].item())
        return x

    loop = d.ddim_sample_loop(model, torch.zeros(1, 1, 1, 1), steps, torch.zeros(1).long(), 1.0)
    assert len([*loop]) == steps == len(seen)
    assert seen == sorted({*seen}, reverse=True) and seen[0] == 99
    assert steps == 1 or seen[-1] == 0


def test_last_step_gives_the_clean_latent():
    d = ldm.GaussianDiffusion(50, 0.0015, 0.0195, "cpu", F64)
    x0, noise = torch.randn(2, 3, 4, 4, 4, dtype=F64) * 5
    for t in (0, 20, 49):
        x_t = d.q_sample(x0, torch.full((3,), t), noise)
        assert (d.ddim_step(x_t, noise, t, -1) - x0).abs().max() < 1e-10
        if t:
            to = d.q_sample(x0, torch.full((3,), t - 1), noise)
            assert (d.ddim_step(x_t, noise, t, t - 1) - to).abs().max() < 1e-10


def test_guidance():
    """Eq. (45): s = 0 ignores the text, s = 1 is the plain net and asks it once, s = 3 by hand."""
    d, calls = ldm.GaussianDiffusion(50, 0.0015, 0.0195, "cpu", F64), []

    def model(x, t, which):
        calls.append(len(x))
        return x * torch.tensor([2.0, 5.0, -7.0], dtype=F64)[which][:, None, None, None]

    x, which = torch.randn(2, 4, 2, 2, dtype=F64), torch.tensor([0, 1])
    c = torch.tensor([2.0, 5.0], dtype=F64)[:, None, None, None]
    assert torch.allclose(d.guided(model, x, 3, which, 0.0), -7 * x)
    assert torch.allclose(d.guided(model, x, 3, which, 3.0), (-7 + 3 * (c + 7)) * x)
    calls.clear()
    assert torch.allclose(d.guided(model, x, 3, which, 1.0), c * x)
    assert calls == [2]


def test_loss():
    d = ldm.GaussianDiffusion(50, 0.0015, 0.0195, "cpu", F64)
    x0, noise, out = torch.randn(3, 5, 4, 2, 2, dtype=F64)
    t = torch.tensor([0, 3, 10, 30, 49])
    asked = []

    def model(*inputs):
        asked.append(inputs)
        return out

    losses = d.training_losses(model, x0, t, noise, t)
    for i in range(5):
        gap = [(a - b) ** 2 for a, b in zip(noise[i].flatten(), out[i].flatten(), strict=True)]
        assert losses[i].item() == pytest.approx(sum(gap).item() / 16, rel=1e-12)
        a, b = math.sqrt(d.abar[t[i]]), math.sqrt(1 - d.abar[t[i]])
        assert torch.allclose(asked[0][0][i], a * x0[i] + b * noise[i])


def test_cross_attention():
    """Eq. (44) head by head in plain numbers; tokens that are masked weigh nothing."""
    torch.manual_seed(0)
    layer = ldm.CrossAttention(8, 6, 2).double()
    x, context = torch.randn(1, 3, 8, dtype=F64), torch.randn(1, 4, 6, dtype=F64)
    mask = torch.tensor([[[[True, True, True, False]]]])
    q, k, v = layer.to_q(x)[0], layer.to_k(context)[0], layer.to_v(context)[0]
    rows = []
    for n in range(3):
        parts = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = [math.exp((q[n, head] @ k[i, head]).item() / math.sqrt(4)) for i in range(3)]
            parts.append(sum(w / sum(scores) * v[i, head] for i, w in enumerate(scores)))
        rows.append(torch.cat(parts))
    expected = layer.to_out(torch.stack(rows))[None]
    assert (layer(x, context, mask) - expected).abs().max() < 1e-10
    assert (layer(x, context) - expected).abs().max() > 1e-4  # without the mask


def tiny(*argv):
    torch.manual_seed(0)
    args = ldm.parse_args([*TINY, *argv])
    model, diffusion = ldm.build(args)
    return args, model, diffusion


def shaken(model):
    """All parameters random: those that start at zero hide what stands before them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_padding_is_not_seen():
    """A longer row of padding changes neither tau of the letters nor what the U-Net says."""
    _, model, _ = tiny()
    shaken(model.double()).eval()
    x, t, which = torch.randn(2, 4, 4, 4, dtype=F64), torch.tensor([3, 20]), torch.tensor([0, 1])
    long, short = (ldm.to_tokens(["a photo of a six", "one"], n) for n in (32, 20))
    outs = [model.told(texts)(x, t, which) for texts in (long, short)]
    assert (outs[0] - outs[1]).abs().max() < 1e-12
    other = model.told(ldm.to_tokens(["a photo of a two", "one"]))(x, t, which)
    assert (outs[0] - other)[0].abs().max() > 1e-6
    assert (outs[0] - other)[1].abs().max() < 1e-12
    empty = model.told(ldm.to_tokens(["", ""]))(x, t, which)  # all padding but the start
    assert empty.isfinite().all()


def test_order_of_letters_is_seen():
    _, model, _ = tiny()
    shaken(model.tau).eval()
    a, b = model.tau(ldm.to_tokens(["no", "on"]))
    assert (a[1:3] - b[1:3].flip(0)).abs().max() > 1e-3


def test_to_tokens(capsys):
    rows = ldm.to_tokens(["A b", ""], 6)
    a, b, space = (3 + ldm.LETTERS.index(letter) for letter in "ab ")
    assert rows.tolist() == [[2, a, space, b, 0, 0], [2, 0, 0, 0, 0, 0]]
    assert capsys.readouterr().err == ""
    assert ldm.to_tokens(["a#", "abcdef"], 6).tolist()[0][:3] == [2, a, 1]
    err = capsys.readouterr().err
    assert err.count("warning") == 2 and "#" in err and "cut to 5" in err


@pytest.mark.parametrize("dataset", ldm.SIZES)
def test_captions(dataset, capsys):
    """All different, all known letters, none cut; the empty one is last; classes are one token."""
    args = ldm.parse_args(["--dataset", dataset, "--device", "cpu"])
    args.device = "cpu"
    texts = ldm.captions(args)
    assert len(texts.unique(dim=0)) == len(texts) == (19 if dataset == "shapes" else 11)
    assert texts[-1].tolist() == [2] + [0] * 31 and (texts != 1).all()
    assert capsys.readouterr().err == ""
    args.cond = "class"
    assert ldm.captions(args)[:, 0].tolist() == [*range(3, 2 + len(texts)), 2]
    args.cond = "none"
    assert (ldm.captions(args) == 2).all()


def test_shapes():
    """Sizes, colours, forms and areas are those that the names say, and the unseen is unseen."""
    torch.manual_seed(0)
    x, y = ldm.draw_shapes(180, 32)
    names = ldm.NAMES["shapes"].split(", ")
    assert x.shape == (180, 3, 32, 32) and x.dtype == torch.uint8 and len(names) == 18
    assert names[ldm.UNSEEN] == "big blue disc"
    for image, k in zip(x.double(), y.tolist(), strict=True):
        size, colour, kind = names[k].split()
        strong = image.flatten(1).amax(1)
        assert strong.argmax() == ["red", "green", "blue"].index(colour)
        area = (image / torch.tensor(ldm.COLOURS[colour]).view(3, 1, 1)).mean(0).sum() * 4 / 32**2
        r = 0.62 if size == "big" else 0.34
        expected = {"disc": math.pi, "square": 4, "triangle": 2}[kind] * r * r
        assert area.item() == pytest.approx(expected, rel=0.12), names[k]
    args = ldm.parse_args(["--dataset", "shapes"])
    args.device = "cpu"
    (_, seen), (_, held_out) = ldm.load_data(args)
    assert ldm.UNSEEN not in seen and ldm.UNSEEN in held_out and len(seen.unique()) == 17


def run(*argv, out):
    code, stdout, err = call(SCRIPT, *TINY, *argv, "--out", out)
    assert code == 0, err
    return torch.load(Path(out, "last.pt"), weights_only=True), stdout


def test_scale_factor_is_stored_and_makes_the_deviation_one(tmp_path):
    """Eq. (42), of sampled latents, in every part of the checkpoint; decoding divides by it."""
    saved, _ = run("--n_steps", "2", out=tmp_path)
    args, model, _ = tiny()
    model.load_state_dict(saved["ema"])
    (images, _), _ = ldm.load_data(args)
    assert model.scale_factor != 1 and saved["model"]["scale_factor"] == model.scale_factor
    posterior = ldm.DiagonalGaussian(ldm.encode_images(model, images, args))
    torch.manual_seed(0)
    assert model.latents(posterior).std().item() == pytest.approx(1, abs=0.03)
    mean_only = (posterior.mean * model.scale_factor).std().item()
    assert abs(mean_only - 1) > 0.03  # a std of the means is another number
    model.double()
    z = torch.randn(2, 4, 4, 4, dtype=F64)
    assert torch.allclose(model.images(z * model.scale_factor), model.autoencoder.decode(z))
    assert not torch.allclose(model.images(z), model.autoencoder.decode(z))


def test_latents_are_drawn_anew(tmp_path):
    """The moments are kept, not the samples: no two batches see the same latents."""
    args, model, _ = tiny()
    moments = torch.cat([torch.ones(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)], 1)
    x0, _, _, which = ldm.draw_batch(model, moments, torch.zeros(1, dtype=torch.long), args)
    assert x0.std(0).mean() > 0.5 and x0.mean().item() == pytest.approx(1, abs=0.3)
    assert set(which.tolist()) <= {0, -1}


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5])
def test_a_share_of_the_texts_is_dropped(drop):
    args, model, _ = tiny("--cond_drop", str(drop), "--batch_size", "4000")
    moments = torch.zeros(1, 8, 1, 1)
    which = ldm.draw_batch(model, moments, torch.zeros(1, dtype=torch.long), args)[3]
    assert (which == -1).float().mean().item() == pytest.approx(drop, abs=0.03)


def test_stage_2_leaves_the_autoencoder_alone(tmp_path):
    one, _ = run("--n_steps", "2", out=tmp_path / "a")
    two, _ = run("--n_steps", "4", out=tmp_path / "b")
    for key, value in one["model"].items():
        learned = not key.startswith("autoencoder") and key != "scale_factor"
        moved = not torch.equal(value, two["model"][key])
        assert not moved or learned, key
    assert not torch.equal(one["model"]["tau.position"], two["model"]["tau.position"])


def test_autoencoder_of_stage_1(tmp_path, monkeypatch):
    """last.pt of autoencoder_kl.py is taken as it is, and not trained; other shapes are refused."""
    flags = "--base_channels 8 --n_res_blocks 1 --n_steps 1 --perceptual_weight 0 --device cpu"
    stage1 = ROOT / "diffusion/autoencoder_kl.py"
    code, _, err = call(stage1, *flags.split(), "--out", tmp_path / "ae")
    assert code == 0, err
    monkeypatch.setattr(ldm, "train_autoencoder", lambda *_: pytest.fail("trained"))
    weights = ["--ae_weights", tmp_path / "ae/last.pt", "--n_steps", "2"]
    saved, _ = run(*weights, out=tmp_path / "ldm")
    theirs = torch.load(tmp_path / "ae/last.pt", weights_only=True)["model"]
    for key, value in theirs.items():
        assert torch.equal(saved["ema"][f"autoencoder.{key}"], value)
    code, _, err = call(SCRIPT, *TINY, *weights, "--latent_channels", "3", "--out", tmp_path / "x")
    assert code == 2 and err.count("\n") == 1 and "conv_out" in err


def test_only_evaluate(tmp_path):
    """--n_steps 0 --weights scores what training scored at its end."""
    _, trained = run("--n_steps", "2", out=tmp_path / "a")
    weights = ["--weights", tmp_path / "a/last.pt", "--out", tmp_path / "b"]
    code, again, _ = call(SCRIPT, *TINY, "--n_steps", "0", *weights)
    assert code == 0 and again.splitlines()[-1] == trained.splitlines()[-1]
    assert all(key in again for key in ("ae_mse_share", "latent_std", "test_loss"))


def test_drawing(tmp_path):
    """--sample: a column for each class. --prompt: that text, odd letters and all; other flags
    than those of training are refused."""
    run("--n_steps", "2", out=tmp_path)
    code, _, err = call(SCRIPT, *TINY, "--sample", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert np.array(Image.open(tmp_path / "samples.png")).shape == (2 * 34 + 2, 10 * 34 + 2, 3)
    code, _, err = call(SCRIPT, *TINY, "--prompt", "a photo of a seven", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert (tmp_path / "prompt.png").exists()
    code, _, err = call(SCRIPT, *TINY, "--prompt", "eine Fünf" * 9, "--out", tmp_path)
    assert code == 0 and err.count("warning") == 2 and "ü" in err
    for flags in (["--timesteps", "30"], ["--beta_end", "0.012"]):
        code, _, err = call(SCRIPT, *TINY, "--sample", *flags, "--out", tmp_path)
        assert code == 2 and "was trained with" in err


def test_prompts_decide_what_is_drawn(tmp_path):
    """The same noise, another text: another picture; with guidance 0 the same one."""
    args, model, diffusion = tiny()
    shaken(model)
    texts, same = ldm.to_tokens(["one", "two", ""]), torch.zeros(2, dtype=torch.long)
    pictures = {}
    for scale in (0.0, 3.0):
        for i in (0, 1):
            pictures[scale, i] = ldm.sample(model, diffusion, texts, same + i, args, scale)
    assert torch.equal(pictures[0.0, 0], pictures[0.0, 1])
    assert not torch.equal(pictures[3.0, 0], pictures[3.0, 1])


@pytest.mark.parametrize(
    "flags",
    [["--cond", "class"], ["--cond", "none"], ["--amp"], ["--dataset", "shapes"]],
)
def test_variants_train(tmp_path, flags):
    run(*flags, "--n_steps", "3", out=tmp_path)
    assert call(SCRIPT, *TINY, *flags, "--sample", "--out", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("flags", "about"),
    [
        (["--img_size", "16"], "--img_size"),
        (["--dataset", "shapes", "--img_size", "10", "--channel_mult", "1", "2"], "--channel_mult"),
        (["--base_channels", "18"], "--base_channels"),
        (["--context_dim", "18"], "--context_dim"),
        (["--heads", "7"], "--heads"),
        (["--attn_levels", "2"], "--attn_levels"),
        (["--sampling_steps", "300"], "--sampling_steps"),
        (["--beta_start", "0.019", "--beta_end", "0.012"], "--beta_end"),
        (["--prompt", "a photo of a six", "--cond", "class"], "--prompt"),
    ],
)
def test_flags_that_do_not_fit(flags, about, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(SCRIPT, *flags, about=about)
