"""Identities of dit.py: adaLN-Zero, guidance, the hybrid loss, classes and their dropping."""

import math
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake
from PIL import Image

dit, improved = load("diffusion/dit.py"), load("diffusion/improved_ddpm.py")
DIT = ROOT / "diffusion/dit.py"
F64 = torch.float64
TINY = shlex.split("--timesteps 25 --n_samples 10 --n_test 8 --sample_interval 3 --batch_size 8")
TINY += shlex.split("--dim 16 --depth 2 --heads 2 --device cpu")


def process(timesteps=50, **flags):
    betas = torch.linspace(0.1 / timesteps, 20 / timesteps, timesteps, dtype=F64)
    return dit.GaussianDiffusion(betas, "cpu", F64, **flags)


def network(*sizes, noisy=True):
    """A small DiT in float64; noisy: zero-initialised layers at random, or every block is idle."""
    torch.manual_seed(0)
    model = dit.DiT(*(sizes or (3, 8, 2, 16, 2, 2, 5))).double()
    for parameter in model.parameters() if noisy else ():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", ["S", "B", "L", "XL"])
def test_sizes_are_those_of_the_paper(name):
    """Parameters at patch 2, latents of 4 x 32 x 32 and 1000 classes, without fixed positions."""
    millions = {"S": 32.87, "B": 130.32, "L": 457.84, "XL": 674.83}[name]
    args = dit.parse_args(["--config", f"DiT-{name}/2"])
    with torch.device("meta"):
        model, _ = dit.build(args.__class__(**vars(args) | {"device": "meta"}))
    count = sum(p.numel() for p in model.parameters())
    d, depth = args.dim, args.depth
    block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 6 * d * d + 6 * d
    ends = 16 * d + d + 256 * d + d + d * d + d + 1001 * d + 2 * d * d + 2 * d + 32 * d + 32
    assert count == depth * block + ends
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_names_are_the_official_ones():
    keys = set(dit.DiT(4, 8, 2, 16, 1, 2, 10).state_dict())
    block = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"}
    layers = {f"blocks.0.{name}" for name in block} | {"x_embedder.proj", "final_layer.linear"}
    layers |= {"t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.adaLN_modulation.1"}
    expected = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
    assert keys == expected | {"pos_embed", "y_embedder.embedding_table.weight"}


def test_positions_restated():
    """Column first, then row; sines before cosines; written with loops."""
    ours, side, dim = dit.position_embedding(4, 24), 4, 24
    for row in range(side):
        for column in range(side):
            for half, at in enumerate((column, row)):
                for k in range(dim // 4):
                    angle = at / 10_000 ** (k / (dim // 4))
                    token, start = ours[row * side + column], half * dim // 2
                    assert token[start + k].item() == pytest.approx(math.sin(angle), abs=1e-6)
                    cosine = token[start + dim // 4 + k].item()
                    assert cosine == pytest.approx(math.cos(angle), abs=1e-6)


def test_patches_go_back_to_their_place():
    """With an identity for the last layer the token of a patch fills that patch and no other."""
    model = network(1, 8, 2, 16, 0, 2, 5, noisy=False)
    with torch.no_grad():
        model.final_layer.linear.weight.normal_()
        x = torch.randn(1, 1, 8, 8, dtype=F64)
        moved = x.clone()
        moved[..., 2:4, 4:6] += 1
        t, y = torch.zeros(1), torch.zeros(1, dtype=torch.long)
        change = (model(moved, t, y) - model(x, t, y)).abs().amax((0, 1)) > 1e-9
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:4, 4:6] = True
    assert torch.equal(change, inside)


def test_at_the_start_every_block_is_the_identity():
    model = network(noisy=False)
    x, c = torch.randn(2, 16, 16, dtype=F64), torch.randn(2, 16, dtype=F64)
    for block in model.blocks:
        assert torch.equal(block(x, c), x)
    image, y = torch.randn(2, 3, 8, 8, dtype=F64), torch.tensor([0, 5])
    assert model(image, y, y).abs().max() == 0
    assert network()(image, y, y).abs().max() > 0.1  # the control: no longer after training


def test_block_restated():
    """Eqs. (22) to (24) with one attention head at a time."""
    block = network().blocks[0]
    x, c = torch.randn(2, 16, 16, dtype=F64), torch.randn(2, 16, dtype=F64)
    table = block.adaLN_modulation[1](c / (1 + (-c).exp())).reshape(2, 6, 16)

    def norm(h):
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def modulated(h, at):
        return norm(h) * (1 + table[:, at + 1, None]) + table[:, at, None]

    q, k, v = block.attn.qkv(modulated(x, 0)).split(16, -1)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        scores = (q[..., part] @ k[..., part].mT / math.sqrt(8)).exp()
        heads.append(scores / scores.sum(-1, keepdim=True) @ v[..., part])
    h = x + table[:, 2, None] * block.attn.proj(torch.cat(heads, -1))
    inner = block.mlp.fc1(modulated(h, 3))
    inner = inner / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    expected = h + table[:, 5, None] * block.mlp.fc2(inner)
    assert (block(x, c) - expected).abs().max() < 1e-12


def test_guidance():
    """Eq. (25) on eps_hat alone; scale 1 is the class, scale 0 no class; never the variance."""
    model = network()
    x, t = torch.randn(3, 3, 8, 8, dtype=F64), torch.tensor([3.0, 500.0, 999.0])
    y, none = torch.tensor([0, 4, 2]), torch.full((3,), 5)
    asked, free = model(x, t, y), model(x, t, none)
    for scale in (0.0, 1.0, 2.5):
        out = dit.guided(model, y, scale)(x, t)
        expected = free[:, :3] + scale * (asked[:, :3] - free[:, :3])
        assert (out[:, :3] - expected).abs().max() < 1e-12
        assert (out[:, 3:] - asked[:, 3:]).abs().max() < 1e-12
    assert (asked - free).abs().max() > 1e-3


def test_loss_is_that_of_improved_ddpm():
    """The hybrid loss, and its gradient, of the same outputs; without any clipping."""
    betas = process().betas
    yours = improved.GaussianDiffusion(betas, "cpu", F64)
    x0, noise = torch.rand(2, 6, 1, 4, 4, dtype=F64) * 2 - 1
    t = torch.tensor([0, 1, 2, 10, 30, 49])
    outs = [torch.randn(6, 2, 4, 4, dtype=F64).requires_grad_()]
    outs.append(outs[0].detach().clone().requires_grad_())
    losses = [d.training_losses(lambda x, t, o=o: o, x0, t, noise)
              for d, o in zip((process(), yours), outs, strict=True)]  # fmt: skip
    assert (losses[0] - losses[1]).abs().max() < 1e-12
    for loss in losses:
        loss.sum().backward()
    assert (outs[0].grad - outs[1].grad).abs().max() < 1e-12


def test_the_bound_does_not_move_the_mean():
    """Stop-gradient of eq. (17): the mean half only sees eq. (9)."""
    x0, noise = torch.rand(2, 4, 1, 4, 4, dtype=F64) * 2 - 1
    t, out = torch.tensor([0, 5, 20, 49]), torch.randn(4, 2, 4, 4, dtype=F64).requires_grad_()
    process().training_losses(lambda *_: out, x0, t, noise).sum().backward()
    simple = 2 * (out[:, :1] - noise).detach() / 16
    assert torch.allclose(out.grad[:, :1], simple, atol=1e-14)
    assert out.grad[:, 1:].abs().min() > 0


def test_latents_are_not_clipped():
    def shout(x, t):
        return torch.cat([-3 * x, 0 * x], 1)

    x, t = torch.randn(2, 1, 4, 4, dtype=F64) * 3, torch.tensor([40, 40])
    clipped = process().p_sample(shout, x, t)[1]
    free = process(clip_denoised=False)
    assert clipped.abs().max() == 1
    assert free.p_sample(shout, x, t)[1].abs().max() > 2
    assert free.respaced(10).clip_denoised is False


def test_a_share_of_the_labels_is_dropped():
    args = dit.parse_args(["--batch_size", "4000", "--label_dropout", "0.3"])
    args.device = "cpu"
    images, labels = torch.zeros(50, 1, 8, 8, dtype=torch.uint8), torch.arange(50) % 10
    torch.manual_seed(0)
    *_, y = dit.draw_batch(images, labels, args)
    assert (y == 10).double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert sorted({*y.tolist()}) == [*range(11)]
    args.label_dropout = 0.0
    assert dit.draw_batch(images, labels, args)[3].max() == 9


def test_images_and_labels_stay_together():
    """A pair of the batch is a pair of the data, mirrored or not."""
    args = dit.parse_args(["--batch_size", "64", "--label_dropout", "0", "--flip"])
    args.device = "cpu"
    labels = torch.arange(200)
    images = labels.to(torch.uint8)[:, None, None, None].expand(200, 1, 8, 8).contiguous()
    x0, _, _, y = dit.draw_batch(images, labels, args)
    assert torch.equal(((x0[:, 0, 0, 0] + 1) * 127.5).round().long(), y)


def test_samples_are_of_the_classes_in_turn():
    """The classes that the net is asked for, seen by a network that writes them down."""
    seen = []

    class Spy(torch.nn.Module):
        n_classes = 10

        def forward(self, x, t, y):
            seen.append(y)
            return torch.cat([x, x], 1) * 0

    for flags, expected in [
        ("--n_samples 20 --cfg_scale 1", [c for c in range(10) for _ in range(2)]),
        ("--n_samples 3 --cfg_scale 1 --class_id 7", [7, 7, 7]),
        ("--n_samples 3 --cfg_scale 2 --class_id 7", [7, 7, 7, 10, 10, 10]),
    ]:
        args = dit.parse_args([*flags.split(), "--timesteps", "25", "--device", "cpu"])
        seen.clear()
        dit.sample(Spy(), dit.build(args)[1], args)
        assert len(seen) == 25 and all(y.tolist() == expected for y in seen)


def test_class_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for at in range(24):
        (tmp_path / "photos" / "abc"[at % 3]).mkdir(parents=True, exist_ok=True)
        pixels = np.full((9, 9, 3), 80 * (at % 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "abc"[at % 3] / f"{at}.png")
    flags = ["--dataset", "folder", "--data_root", "photos", "--img_size", "8"]
    args = dit.parse_args([*flags, "--n_classes", "3"])
    args.device = "cpu"
    for x, y in dit.load_data(args):
        assert torch.equal(x[:, 0, 0, 0].long(), 80 * y)
    mistake(DIT, *TINY, *flags, about="24 images in 3 folders")


def test_latents_in_and_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = torch.randn(60, 4, 8, 8), torch.arange(60) % 3
    torch.save({"latents": x, "labels": y}, "latents.pt")
    flags = [*TINY, "--dataset", "latents", "--data_root", "latents.pt", "--n_classes", "3"]
    flags += ["--img_size", "8", "--n_steps", "3", "--out", "run"]
    assert call(DIT, *flags)[0] == 0
    drawn = torch.load("run/samples_000003.pt", weights_only=True)
    assert drawn.shape == (10, 4, 8, 8) and drawn.isfinite().all()
    mistake(DIT, *flags, "--n_classes", "2", about="classes up to 2")
    mistake(DIT, *flags, "--img_size", "16", about="--img_size")
    mistake(DIT, *flags, "--data_root", "none.pt", about="none.pt")
    torch.save({"images": x}, "bare.pt")
    mistake(DIT, *flags, "--data_root", "bare.pt", about="bare.pt")


@pytest.mark.parametrize(
    "flags, word",
    [
        ("--img_size 9", "--img_size 9"),
        ("--dim 18", "--dim 18"),
        ("--dim 20 --heads 3", "--dim 20"),
        ("--class_id 10", "--class_id 10"),
        ("--n_classes 11", "--n_classes 11"),
        ("--sampling_steps 26", "--sampling_steps 26"),
        ("--config DiT-M/2", "--config"),
    ],
)
def test_mistakes(flags, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(DIT, *TINY, *shlex.split(flags), about=word)


def test_two_processes_train_like_one(tmp_path):
    """torchrun shares every batch out; the weights agree up to the order of additions."""
    flags = [*TINY, "--n_steps", "4", "--sample_interval", "4", "--out"]
    assert call(DIT, *flags, tmp_path / "one")[0] == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*launch, DIT, *flags, tmp_path / "two"], check=True, env=env, timeout=120)
    one, two = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in ("one", "two"))
    start = dit.build(dit.parse_args(TINY))[0].state_dict()
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], atol=1e-5), key
    assert any((one["model"][key] - start[key]).abs().max() > 1e-3 for key in start)
