# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Conditional GAN: both players are told the class, so that the fakes can be asked for by class.

Paper: Mirza & Osindero, "Conditional Generative Adversarial Nets", 2014, arXiv 1411.1784.

    x_tilde = G(z|y), z ~ N(0, I)                      (1)  a fake of class y
    L_D = -E log D(x|y) - E log(1 - D(x_tilde|y))      (2)  discriminator: know real from fake
    L_G = -E log D(x_tilde|y)                          (3)  generator: be taken for real (ns)
    L_G = E log(1 - D(x_tilde|y))                      (4)  the same as a game of sum 0 (minimax)

A GAN for every class, all in one pair of networks: y comes with an image of the data, or for G's
step from one drawn at random, and is set beside the input of both networks as a learned vector.
D must be told as well: only then is a good fake of another class a bad one, as the best answer is
D*(x|y) = p(x|y) / (p(x|y) + p_g(x|y)). The rest is gan.py. G may still draw all fakes of a class
alike; --b1 0 leaves them more variety, as the smoke does.

Shapes: B batch, Z latent_dim, C channels, S img_size, E label_dim; z (B, Z), classes y (B,),
images (B, C, S, S), scores (B,).
Unlike the paper: the label's layer has no ReLU of its own; leaky ReLU and batch norm for maxout,
ReLU, sigmoid and dropout; Gaussian noise for uniform; Adam for momentum; 8x8 digits by default.

    python cgan.py                        8x8 digits shipped with scikit-learn
    python cgan.py --dataset mnist        the real thing, downloaded at first use
    python cgan.py --sample --class_id 7  new sevens from out/cgan/last.pt
    python cgan.py --smoke                a few seconds; exits 1 unless all BARS are met
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
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 2200, "sample_interval": 2200, "lr": 5e-4, "dim": 64, "latent_dim": 64}
SMOKE["b1"] = 0.0
BARS = {"swd": (0.0, 0.126), "classes": (9.5, 10.0), "confidence": (0.88, 1.0)}
BARS |= {"asked_acc": (0.92, 1.0), "value_gap": (0.0, 1e-6)}


# --- model ---------------------------------------------------------------------------------------
# Differs from gan/gan.py
class Generator(nn.Module):
    """As in gan.py, but beside the noise stands a learned vector of each class y (B,)."""

    def __init__(self, latent_dim, img_size, channels, dim, n_classes, label_dim):
        super().__init__()
        self.embed = nn.Embedding(n_classes, label_dim)
        layers = [nn.Linear(latent_dim + label_dim, dim), nn.LeakyReLU(0.2)]
        for n in (dim, 2 * dim, 4 * dim):
            layers += [nn.Linear(n, 2 * n), nn.BatchNorm1d(2 * n), nn.LeakyReLU(0.2)]
        layers += [nn.Linear(8 * dim, channels * img_size**2)]
        layers += [nn.Unflatten(1, (channels, img_size, img_size))]
        self.model = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z, y):  # (B, Z), (B,)
        return self.model(torch.cat([z, self.embed(y)], 1))  # (B, C, S, S)


# Differs from gan/gan.py
class Discriminator(nn.Module):
    """As in gan.py, but beside the pixels stands a learned vector of each class y (B,)."""

    def __init__(self, img_size, channels, dim, n_classes, label_dim):
        super().__init__()
        self.embed = nn.Embedding(n_classes, label_dim)
        layers = [nn.Linear(channels * img_size**2 + label_dim, 4 * dim), nn.LeakyReLU(0.2)]
        layers += [nn.Linear(4 * dim, 2 * dim), nn.LeakyReLU(0.2), nn.Linear(2 * dim, 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x, y):  # (B, C, S, S), (B,)
        return self.model(torch.cat([x.flatten(1), self.embed(y)], 1))[:, 0]  # (B,)


# --- the idea ------------------------------------------------------------------------------------
# Of scores, -log D is softplus(-score) and -log(1 - D) is softplus(score): finite, however sure D.
# Copied from gan/gan.py
def d_loss(real_score, fake_score):
    return F.softplus(-real_score).mean() + F.softplus(fake_score).mean()  # eq. (2)


# Copied from gan/gan.py
def g_loss(fake_score, kind):
    """What the generator descends: kind "ns" (non-saturating) or "minimax"."""
    if kind == "minimax":
        return -F.softplus(fake_score).mean()  # eq. (4)
    return F.softplus(-fake_score).mean()  # eq. (3)


# Differs from gan/gan.py
def d_step(generator, discriminator, optimizer, real, z, y):
    """One step of the discriminator; the fakes carry no graph: the generator feels nothing."""
    with torch.no_grad():
        fake = generator(z, y)  # eq. (1)
    real_score, fake_score = discriminator(torch.cat([real, fake]), y.repeat(2)).chunk(2)
    loss = d_loss(real_score, fake_score)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# Differs from gan/gan.py
def g_step(generator, discriminator, optimizer, z, y, kind):
    """One step of the generator; the gradient passes through the discriminator, not into it."""
    discriminator.requires_grad_(False)
    loss = g_loss(discriminator(generator(z, y), y), kind)
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
    if (k := len(y.unique())) != args.n_classes:
        fail(f"--n_classes {args.n_classes}: --dataset {args.dataset} has {k}; type that")
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
    shape = args.img_size, args.channels, args.dim, args.n_classes, args.label_dim
    generator, discriminator = Generator(args.latent_dim, *shape), Discriminator(*shape)
    if args.weights:
        load_weights(args.weights, generator)
    return generator.to(args.device), discriminator.to(args.device)


# Copied from gan/gan.py
def noise(args, n):
    return torch.randn(n, args.latent_dim, device=args.device)  # (N, Z)


def rows(args, n):
    """Classes y (N,) for a picture with one row of each."""
    return torch.arange(n, device=args.device) // math.ceil(n / args.n_classes)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of 1000 fakes."""
    torch.manual_seed(args.seed)
    data = load_data(args)
    generator, discriminator = players = build(args)
    adam = {"lr": args.lr, "betas": (args.b1, args.b2), "fused": True}
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    ema = copy.deepcopy(generator) if args.ema else generator  # this one draws
    state = {"generator": generator, "discriminator": discriminator, "ema": ema}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    (x, y), z_fixed = data[0], noise(args, 1000)  # the same z each time: progress can be seen
    y_fixed = y[torch.randint(len(y), (1000,), device=args.device)]
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros(2, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                for _ in range(args.n_critic):  # the discriminator goes first
                    i = torch.randint(len(x), (args.batch_size,), device=args.device)
                    d = d_step(*players, optimizer_d, x[i], noise(args, len(i)), y[i])
                i = torch.randint(len(x), (args.batch_size,), device=args.device)
                g = g_step(*players, optimizer_g, noise(args, len(i)), y[i], args.g_loss)
                if args.ema:
                    update_ema(ema, generator, min(args.ema, (1 + step) / (10 + step)))
                total += torch.stack([g, d])
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            fakes, y_rows = sample(ema, z_fixed, y_fixed), rows(args, args.n_samples)
            picture(args, f"samples_{step:06d}", sample(ema, z_fixed[: args.n_samples], y_rows))
            g, d = (total / n).tolist()
            log(args, step=step, d_loss=d, g_loss=g, **evaluate(fakes, y_fixed, data))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    z = interpolate(noise(args, args.n_classes), noise(args, args.n_classes))
    picture(args, "interpolation", sample(ema, z, rows(args, len(z))))
    plot(args)
    return evaluate(sample(ema, z_fixed, y_fixed), y_fixed, data)


@torch.inference_mode()
def sample(generator, z, y):
    """Images (N, C, S, S) of z (N, Z) and y (N,), alone: batch norm uses running averages."""
    generator.eval()
    images = torch.cat([generator(*part) for part in zip(z.split(100), y.split(100), strict=True)])
    generator.train()
    return images


# Copied from gan/gan.py
def interpolate(z0, z1, n=8):
    """n steps from each z0 (N, Z) to its z1, (N n, Z); on this arc all are N(0, I) as z0 is."""
    angle = torch.linspace(0, math.pi / 2, n, device=z0.device)[:, None]
    return (angle.cos() * z0[:, None] + angle.sin() * z1[:, None]).flatten(0, 1)


# Differs from gan/gan.py
def picture(args, name, images):
    """Write OUT/name.png, a row for each class; black is -1 and white is 1, whatever they hold."""
    from torchvision.utils import save_image

    path, nrow = Path(args.out, f"{name}.png"), math.ceil(len(images) / args.n_classes)
    images = F.interpolate(images, scale_factor=max(1, 32 // args.img_size))
    save_image(images, path, nrow=nrow, normalize=True, value_range=(-1, 1))


def generate(args):
    """The work of --sample: OUT/samples.png."""
    args.weights = args.weights or f"{args.out}/last.pt"
    torch.manual_seed(args.seed)
    generator, _ = build(args)
    begin(args)
    y = rows(args, args.n_samples)
    y = y if args.class_id is None else torch.full_like(y, args.class_id)
    picture(args, "samples", sample(generator, noise(args, len(y)), y))
    print(f"{args.out}/samples.png")
    return 0


@torch.inference_mode()
def evaluate(fakes, asked, data):
    """Measures of fakes (N, C, S, S) of classes asked (N,); a cheat does well by some, not by all.
    swd: sliced Wasserstein distance to held-out images (along a line, sorting is the best plan).
    classes: exp(entropy) of their classes, by a vote of 10 nearest neighbours in the data.
    confidence: the winner's share of votes; noise, blurs and blends lie between the classes.
    asked_acc: how often the winner is the class that was asked for."""
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
    values = {"swd": swd, "classes": classes, "confidence": confidence.mean()}
    values["asked_acc"] = (winner == asked[:n]).float().mean()
    return {name: value.item() for name, value in values.items()}


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    unsure = torch.zeros(8)  # D = 1/2 everywhere
    return report(args, **metrics, value_gap=(d_loss(unsure, unsure) - 2 * math.log(2)).abs())


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
    add("--n_steps", type=at_least(0), default=20_000, help="optimiser steps in total")
    add("--batch_size", type=at_least(2), default=64, help="examples per step")
    add("--lr", type=at_least(0.0), default=2e-4, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.5, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--n_critic", type=at_least(1), default=1, help="steps of D before each step of G")
    add("--g_loss", choices=["ns", "minimax"], default="ns", help="loss of G: eq. (3) or eq. (4)")
    add("--ema", type=at_least(0.0, 1.0), default=0.0, help="decay of G's mean weights; 0: no mean")
    add("--dim", type=at_least(1), default=128, help="width of both networks")
    add("--latent_dim", type=at_least(1), default=100, help="size Z of the noise")
    add("--label_dim", type=at_least(1), default=10, help="size E of the vector of a class")
    add("--dataset", choices=[*SIZES], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--img_size", type=at_least(1), help="side of the images; default: that of the data set")
    add("--channels", type=int, choices=[1, 3], help="1 grey, 3 colour; default: as the data set")
    add("--n_classes", type=at_least(1), default=10, help="classes of the data set")
    add("--class_id", type=at_least(0), help="class to --sample; default: a row of each")
    add("--sample_interval", type=at_least(1), default=500, help="steps between sample grids")
    add("--n_samples", type=at_least(1, 1001), default=100, help="images in a grid")
    add("--weights", help="state dict or checkpoint to load")
    add("--sample", action="store_true", help="only draw, from --weights or OUT/last.pt")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    typed = parser.parse_args(argv)
    if typed.smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    size, channels = SIZES[args.dataset]
    args.img_size, args.channels = args.img_size or size, args.channels or channels
    if (args.class_id or 0) >= args.n_classes:
        fail(f"--class_id {args.class_id}: there are {args.n_classes}; the last is one less")
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
