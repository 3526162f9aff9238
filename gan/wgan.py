# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""WGAN: a critic measures how far the fakes are from the data; its weights are clipped.

Paper: Arjovsky, Chintala & Bottou, "Wasserstein GAN", ICML 2017, arXiv 1701.07875.

    x_tilde = G(z), z ~ N(0, I)                        (1)  a fake
    L_D = E D(x_tilde) - E D(x)                        (2)  critic: score the real above the fake
    L_G = -E D(x_tilde)                                (3)  generator: be scored high
    w = min(max(w, -c), c), each weight w of D         (4)  clipped after every step of the critic

Over all D whose slope by the image is nowhere above 1, the largest -L_D is the Wasserstein
distance: the least work, mass times way, that carries the fakes onto the data. It falls steadily
as they come near, even from far off, where the Jensen-Shannon divergence of a plain GAN stands
still at log 2: so the critic may and should be trained near its best before G moves, and its loss
tells how good the images are. A network whose weights are at most c has, batch norm apart, a slope
of at most some K that depends on c and its layers alone; so (4) makes -L_D an estimate of K times
the distance. It is logged as wasserstein. Adam's mean of past gradients is unstable here, as the
critic keeps changing; hence RMSprop.

Shapes: B batch, Z latent_dim, C channels, S img_size; z (B, Z), images (B, C, S, S), scores (B,).
Unlike the paper: MLPs and 8x8 digits by default; --config dcgan is its convolutional net at 32x32
(the critic has batch norm there: clipped without it, it hardly learns); PyTorch's initial weights,
clipped; n_critic critic steps from the start, where the official code begins with 25 times 100.

    python wgan.py                                 8x8 digits shipped with scikit-learn
    python wgan.py --config dcgan --dataset mnist  the real thing, downloaded at first use
    python wgan.py --sample                        new images from out/wgan/last.pt
    python wgan.py --smoke                         a few seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import copy
import json
import math
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 400, "sample_interval": 400, "lr": 5e-4, "dim": 64, "latent_dim": 64}
BARS = {"swd": (0.0, 0.1), "classes": (9.2, 10.0), "confidence": (0.7, 1.0)}
BARS["largest_weight"] = (0.0, 0.01)
CONFIGS = {"mlp": {}, "dcgan": {"img_size": 32, "dim": 64, "n_steps": 200_000}}


# --- model ---------------------------------------------------------------------------------------
# Copied from gan/gan.py
class Generator(nn.Module):
    """Noise (B, Z) -> images (B, C, S, S) in [-1, 1]: layers of dim, 2 dim, 4 dim, 8 dim, C S S."""

    def __init__(self, latent_dim, img_size, channels, dim):
        super().__init__()
        layers = [nn.Linear(latent_dim, dim), nn.LeakyReLU(0.2)]
        for n in (dim, 2 * dim, 4 * dim):
            layers += [nn.Linear(n, 2 * n), nn.BatchNorm1d(2 * n), nn.LeakyReLU(0.2)]
        layers += [nn.Linear(8 * dim, channels * img_size**2)]
        layers += [nn.Unflatten(1, (channels, img_size, img_size))]
        self.model = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z):  # (B, Z)
        return self.model(z)  # (B, C, S, S)


# Copied from gan/gan.py
class Discriminator(nn.Module):
    """Images (B, C, S, S) -> scores (B,): layers of 4 dim, 2 dim and 1 units."""

    def __init__(self, img_size, channels, dim):
        super().__init__()
        layers = [nn.Linear(channels * img_size**2, 4 * dim), nn.LeakyReLU(0.2)]
        layers += [nn.Linear(4 * dim, 2 * dim), nn.LeakyReLU(0.2), nn.Linear(2 * dim, 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x):  # (B, C, S, S)
        return self.model(x.flatten(1))[:, 0]  # (B,)


class ConvGenerator(nn.Sequential):
    """In convolutions: a 4x4 map grows to SxS while its channels shrink. (B, Z) -> (B, C, S, S)."""

    def __init__(self, latent_dim, img_size, channels, dim):
        maps = [dim * 2**i for i in reversed(range(img_size.bit_length() - 3))]
        layers = [nn.Linear(latent_dim, maps[0] * 4 * 4), nn.Unflatten(1, (maps[0], 4, 4))]
        for n, m in pairwise([*maps, channels]):
            layers += [nn.BatchNorm2d(n), nn.ReLU(), nn.ConvTranspose2d(n, m, 4, 2, 1)]
        super().__init__(*layers, nn.Tanh())


class ConvDiscriminator(nn.Sequential):
    """In convolutions: the maps of ConvGenerator in reverse. (B, C, S, S) -> (B,)."""

    def __init__(self, img_size, channels, dim):
        layers, maps = [], [dim * 2**i for i in range(img_size.bit_length() - 3)]
        for n, m in pairwise([channels, *maps]):
            layers += [nn.Conv2d(n, m, 4, 2, 1), nn.BatchNorm2d(m), nn.LeakyReLU(0.2)]
        layers.pop(1)  # no batch norm right behind the images
        super().__init__(*layers, nn.Flatten(), nn.Linear(maps[-1] * 4 * 4, 1), nn.Flatten(0))


# --- the idea ------------------------------------------------------------------------------------
# Differs from gan/gan.py
def d_loss(real_score, fake_score):
    return fake_score.mean() - real_score.mean()  # eq. (2)


# Differs from gan/gan.py
def g_loss(fake_score):
    return -fake_score.mean()  # eq. (3)


def clip_weights(discriminator, clip_value):
    """Clip every parameter in place, biases and those of batch norm too."""
    with torch.no_grad():
        for w in discriminator.parameters():
            w.clamp_(-clip_value, clip_value)  # eq. (4)


# Differs from gan/gan.py
def d_step(generator, discriminator, optimizer, real, z, clip_value):
    """One step of the discriminator; the fakes carry no graph: the generator feels nothing."""
    with torch.no_grad():
        fake = generator(z)  # eq. (1)
    loss = d_loss(discriminator(real), discriminator(fake))  # batch norm: one at a time
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    clip_weights(discriminator, clip_value)
    return loss.detach()


# Differs from gan/gan.py
def g_step(generator, discriminator, optimizer, z):
    """One step of the generator; the gradient passes through the discriminator, not into it."""
    discriminator.requires_grad_(False)
    loss = g_loss(discriminator(generator(z)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    discriminator.requires_grad_(True)
    return loss.detach()


# Copied from gan/gan.py
def update_ema(ema, generator, decay):
    """Draw the averaged weights a little, 1 - decay, towards the generator's."""
    with torch.no_grad():
        torch._foreach_lerp_([*ema.parameters()], [*generator.parameters()], 1 - decay)
        torch._foreach_copy_([*ema.buffers()], [*generator.buffers()])


# --- data ----------------------------------------------------------------------------------------
# Side and channels that the images have, or get where they differ among themselves (folder).
SIZES = {"digits": (8, 1), "mnist": (28, 1), "fashion_mnist": (28, 1)}
SIZES |= {"cifar10": (32, 3), "folder": (64, 3)}


# Copied from gan/gan.py
def load_folder(root, size):
    """All images below root, cropped square: bytes x (N, 3, S, S), and their folders y (N,)."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    paths = sorted(p for p in Path(root).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
    if len(paths) < 20:
        fail(f"--data_root {root}: holds {len(paths)} images; name 20 or more, or --dataset digits")
    images = []
    for path in paths:
        try:
            images.append(pil_to_tensor(center_crop(resize(default_loader(path), size), size)))
        except (OSError, ValueError, SyntaxError) as error:
            fail(f"--data_root {root}: {path.name} cannot be read ({error}); mend or remove it")
    folders = sorted({path.parent for path in paths})
    return torch.stack(images), torch.tensor([folders.index(path.parent) for path in paths])


def load_data(args):
    """Return (x, y) to learn from and (x, y) held out: images x (N, C, S, S) in [-1, 1] and their
    classes y (N,), whole on the device."""
    if args.dataset in ("digits", "folder"):
        if args.dataset == "folder":
            x, y = load_folder(args.data_root, args.img_size)
        else:
            from sklearn.datasets import load_digits

            x, y = map(torch.from_numpy, load_digits(return_X_y=True))
            x = x.view(-1, 1, 8, 8) * 255 / 16  # from 0..16 to the range of bytes
        order, n = torch.randperm(len(x)), len(x) * 4 // 5
        x, y = x[order], y[order]
    else:
        from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

        read = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "cifar10": CIFAR10}[args.dataset]
        try:
            parts = [read(args.data_root, train=part, download=True) for part in (True, False)]
        except Exception as error:  # whatever the files hold
            where = f"--dataset {args.dataset}: cannot be read from --data_root {args.data_root}"
            fail(f"{where} nor downloaded; --dataset digits needs neither ({error!r})")
        x, n = torch.cat([torch.as_tensor(part.data) for part in parts]), len(parts[0])
        x = x.view(*x.shape[:3], -1).movedim(3, 1)  # (N, C, S, S)
        y = torch.cat([torch.as_tensor(part.targets) for part in parts])
    x, size = x.float() / 127.5 - 1, args.img_size
    if (x.shape[3], size) == (28, 32):
        x = F.pad(x, (2, 2, 2, 2), value=-1)  # a black margin keeps strokes sharp
    elif x.shape[3] != size:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    if x.shape[1] != args.channels:  # colour to grey, or grey to colour
        x = x.mean(1, keepdim=True).expand(-1, args.channels, -1, -1)
    x, y = x.contiguous().to(args.device), y.to(args.device)
    return (x[:n], y[:n]), (x[n:], y[n:])


# --- train, sample, evaluate, smoke --------------------------------------------------------------
def build(args):
    """Return both players, on the device; --weights are the generator's."""
    shape, mlp = (args.img_size, args.channels, args.dim), args.config == "mlp"
    generator = (Generator if mlp else ConvGenerator)(args.latent_dim, *shape)
    discriminator = (Discriminator if mlp else ConvDiscriminator)(*shape)
    clip_weights(discriminator, args.clip_value)
    if args.weights:
        load_weights(args.weights, generator)
    return generator.to(args.device), discriminator.to(args.device)


# Copied from gan/gan.py
def noise(args, n):
    return torch.randn(n, args.latent_dim, device=args.device)  # (N, Z)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of 1000 fakes."""
    torch.manual_seed(args.seed)
    data = load_data(args)
    generator, discriminator = players = build(args)
    optimizer_g = torch.optim.RMSprop(generator.parameters(), lr=args.lr)
    optimizer_d = torch.optim.RMSprop(discriminator.parameters(), lr=args.lr)
    ema = copy.deepcopy(generator) if args.ema else generator  # this one draws
    state = {"generator": generator, "discriminator": discriminator, "ema": ema}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    x, z_fixed = data[0][0], noise(args, 1000)  # the same z in every picture: progress can be seen
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros(2, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                for _ in range(args.n_critic):  # the discriminator goes first
                    i = torch.randint(len(x), (args.batch_size,), device=args.device)
                    d = d_step(*players, optimizer_d, x[i], noise(args, len(i)), args.clip_value)
                g = g_step(*players, optimizer_g, noise(args, args.batch_size))
                if args.ema:
                    update_ema(ema, generator, min(args.ema, (1 + step) / (10 + step)))
                total += torch.stack([g, d])
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            fakes = sample(ema, z_fixed)
            picture(args, f"samples_{step:06d}", fakes[: args.n_samples])
            g, d = (total / n).tolist()
            log(args, step=step, wasserstein=-d, g_loss=g, **evaluate(fakes, data))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    picture(args, "interpolation", sample(ema, interpolate(z_fixed[:8], z_fixed[8:16])))
    plot(args)
    return evaluate(sample(ema, z_fixed), data)


@torch.inference_mode()
def sample(generator, z):
    """Images (N, C, S, S) of z (N, Z), each by itself: batch norm uses its running averages."""
    generator.eval()
    images = torch.cat([generator(part) for part in z.split(100)])
    generator.train()
    return images


# Copied from gan/gan.py
def interpolate(z0, z1, n=8):
    """n steps from each z0 (N, Z) to its z1, (N n, Z); on this arc all are N(0, I) as z0 is."""
    angle = torch.linspace(0, math.pi / 2, n, device=z0.device)[:, None]
    return (angle.cos() * z0[:, None] + angle.sin() * z1[:, None]).flatten(0, 1)


# Copied from gan/gan.py
def picture(args, name, images):
    """Write OUT/name.png, a square of images; black is -1 and white is 1, whatever they hold."""
    from torchvision.utils import save_image

    path, nrow = Path(args.out, f"{name}.png"), math.ceil(len(images) ** 0.5)
    images = F.interpolate(images, scale_factor=max(1, 32 // args.img_size))
    save_image(images, path, nrow=nrow, normalize=True, value_range=(-1, 1))


def generate(args):
    """The work of --sample: OUT/samples.png."""
    args.weights = args.weights or f"{args.out}/last.pt"
    torch.manual_seed(args.seed)
    generator, _ = build(args)
    begin(args)
    picture(args, "samples", sample(generator, noise(args, args.n_samples)))
    print(f"{args.out}/samples.png")
    return 0


@torch.inference_mode()
def evaluate(fakes, data):
    """Three measures of fakes (N, C, S, S); a cheat may do well by one or two, not by all.
    swd: sliced Wasserstein distance to held-out images (along a line, sorting is the best plan).
    classes: exp(entropy) of their classes, by a vote of 10 nearest neighbours in the data.
    confidence: the winner's share of votes; noise, blurs and blends lie between the classes."""
    (x, y), (real, _) = data
    n = min(len(fakes), len(real))
    fakes, real, x = fakes[:n].flatten(1), real[:n].flatten(1), x[:10_000].flatten(1)
    torch.manual_seed(0)  # the same lines each time
    lines = F.normalize(torch.randn(x.shape[1], 256, device=x.device), dim=0)
    swd = ((fakes @ lines).sort(0)[0] - (real @ lines).sort(0)[0]).abs().mean()
    near = torch.cdist(fakes, x).topk(10, largest=False)[1]  # (N, 10)
    confidence, winner = F.one_hot(y[near]).float().mean(1).max(1)  # (N,), (N,)
    share = F.one_hot(winner).float().mean(0)  # (classes,)
    classes = torch.distributions.Categorical(share).entropy().exp()
    return {"swd": swd.item(), "classes": classes.item(), "confidence": confidence.mean().item()}


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        _, critic = build(args)
        load_weights(f"{args.out}/last.pt", critic, ("discriminator",))
    largest = max(w.detach().abs().max() for w in critic.parameters())
    return report(args, **metrics, largest_weight=largest)


# --- plumbing, word for word the same in every script --------------------------------------------
def fail(message):
    """A mistake the user can mend: one line on stderr, exit code 2."""
    print(f"{Path(__file__).name}: error: {' '.join(message.split())[:300]}", file=sys.stderr)
    sys.exit(2)


def pick_device(name):
    try:
        auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        probe = torch.ones(1, device=auto if name == "auto" else name)
        return str(probe.device) if probe.item() else name  # item() fails where nothing can run
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name}: cannot be used, try --device cpu: {error}")


def begin(args, state=None):
    """Open OUT before the work starts. With --resume restore every part of state and return how
    many epochs (or steps) are done; else put an earlier run aside and return 0. Without state
    (nothing is trained, as in --sample) leave what is there."""
    out, resume = Path(args.out), state is not None and getattr(args, "resume", False)
    free = {"n_epochs", "n_steps", "sample_interval", "n_samples", "data_root", "weights"}
    free |= {"compile", "device", "out", "resume"}
    try:
        if resume:
            saved = dict(torch.load(out / "last.pt", map_location="cpu", weights_only=True))
            made = {key: value for key, value in saved["args"].items() if key not in free}
            if odd := [f"--{k} {v}" for k, v in made.items() if v != vars(args).get(k)]:
                fail(f"--resume: {out}/last.pt was made with {' '.join(odd)}; type that")
            for name, part in state.items():
                part.load_state_dict(saved[name])
            return saved["done"]
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # fails now where nothing can be written
        for name in ("last.pt", "log.jsonl") if state is not None else ():
            if (out / name).exists():
                os.replace(out / name, out / f"previous_{name}")
        return 0
    except OSError as error:
        fail(f"--out {out}: {'no last.pt to resume from' if resume else 'cannot write'}: {error}")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--resume: {out}/last.pt is damaged or no checkpoint of this script")


def save(args, state, done):
    """Write every part of state next to last.pt, then rename: a crash never leaves half a file."""
    path = Path(args.out, "last.pt")
    parts = {name: part.state_dict() for name, part in state.items()}
    torch.save(parts | {"done": done, "args": vars(args)}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_weights(path, model, parts=("ema", "model", "generator")):
    """Load, strictly, the first of parts that a checkpoint of ours has, or a bare state dict."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = next((saved[part] for part in parts if part in saved), saved)
        theirs = {key: tuple(value.shape) for key, value in saved.items()}
    except OSError as error:
        fail(f"--weights {path}: cannot be read ({error.strerror}); name an existing file")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--weights {path}: holds no state dict; name a file made by torch.save of one")
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        key = next((k for k in ours | theirs if ours.get(k) != theirs.get(k)), error)
        there, here = theirs.get(key, "absent"), ours.get(key, "absent")
        fail(f"--weights {path}: {key} is {there} there but {here} here; set the flags to match")


def line(row):
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def log(args, **row):
    """Append a JSON line to OUT/log.jsonl and show it; --smoke keeps stdout to one line."""
    with open(Path(args.out, "log.jsonl"), "a", encoding="utf-8") as file:
        print(json.dumps(row), file=file)
    print(line(row), file=sys.stderr if args.smoke else sys.stdout, flush=True)


def plot(args):
    """Draw every column of OUT/log.jsonl against its first one into OUT/curves.png."""
    from matplotlib.figure import Figure

    path = Path(args.out, "log.jsonl")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if rows := [json.loads(row) for row in text.splitlines()]:
        first, *others = rows[-1]
        wide, high = min(len(others), 4), math.ceil(len(others) / 4)
        figure = Figure(figsize=(4 * wide, 3 * high), layout="constrained")
        for at, key in enumerate(others, 1):
            axes = figure.add_subplot(high, wide, at, xlabel=first, title=key)
            axes.plot([row[first] for row in rows], [row.get(key) for row in rows], marker=".")
        figure.savefig(Path(args.out, "curves.png"))


def report(args, **values):
    """Print the JSON line of --smoke; return 0 if every bar is met, else 1."""
    values = {key: float(value) for key, value in values.items()}
    ok = all(low <= values[key] <= high for key, (low, high) in BARS.items())
    values = {key: value if math.isfinite(value) else None for key, value in values.items()}
    head = {"script": Path(__file__).name, "ok": ok, "device": getattr(args, "device", "cpu")}
    tail = {"bars": BARS, "cpu_seconds": round(time.process_time(), 1)}
    print(json.dumps(head | values | tail))
    return 0 if ok else 1


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the docstring as written, and every default that tells something."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def at_least(low, below=2**31):
    """Type of a flag: a number of low's kind (int or float), low <= number < below."""

    def number(text):
        with contextlib.suppress(ValueError):
            if low <= (value := type(low)(text)) < below:
                return value
        raise argparse.ArgumentTypeError(f"{text} is no {type(low).__name__} in [{low}, {below})")

    return number


# --- command line --------------------------------------------------------------------------------
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = fail
    add = parser.add_argument
    add("--n_steps", type=at_least(0), default=5000, help="optimiser steps in total")
    add("--batch_size", type=at_least(2), default=64, help="examples per step")
    add("--lr", type=at_least(0.0), default=5e-5, help="rmsprop: learning rate")
    add("--n_critic", type=at_least(1), default=5, help="steps of D before each step of G")
    add("--clip_value", type=at_least(1e-6), default=0.01, help="largest weight of the critic")
    add("--config", choices=[*CONFIGS], default="mlp", help="named set of defaults")
    add("--ema", type=at_least(0.0, 1.0), default=0.0, help="decay of G's mean weights; 0: no mean")
    add("--dim", type=at_least(1), default=128, help="width of both networks")
    add("--latent_dim", type=at_least(1), default=100, help="size Z of the noise")
    add("--dataset", choices=[*SIZES], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--img_size", type=at_least(1), help="side of the images; default: that of the data set")
    add("--channels", type=int, choices=[1, 3], help="1 grey, 3 colour; default: as the data set")
    add("--sample_interval", type=at_least(1), default=500, help="steps between sample grids")
    add("--n_samples", type=at_least(1, 1001), default=64, help="images in a grid")
    add("--weights", help="state dict or checkpoint to load")
    add("--sample", action="store_true", help="only draw, from --weights or OUT/last.pt")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    typed = parser.parse_args(argv)
    parser.set_defaults(**CONFIGS[typed.config])
    if typed.smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    size, channels = SIZES[args.dataset]
    args.img_size, args.channels = args.img_size or size, args.channels or channels
    if args.config == "dcgan" and args.img_size not in (8, 16, 32, 64, 128, 256):
        fail(f"--img_size {args.img_size}: dcgan doubles 4x4 maps; take 8, 16, 32, 64, 128 or 256")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.sample:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
