# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "matplotlib>=3.8,<4",
#                 "tqdm>=4.66,<5"]
# ///
"""pix2pix: translates images, taught by pairs and by a discriminator that judges patches.

Paper: Isola, Zhu, Zhou & Efros, "Image-to-Image Translation with Conditional Adversarial
Networks", CVPR 2017, arXiv 1611.07004.

    y_hat = G(x)                                          (1)  a fake; dropout in G is its noise
    L_D = -E log D(x, y) - E log(1 - D(x, y_hat))         (2)  D descends half of it
    L_cGAN = -E log D(x, y_hat)                           (3)  G: be taken for real
    L_1 = E |y - y_hat|                                   (4)  and be right
    L_G = L_cGAN + lambda L_1                             (5)  what G descends
    lr_e = lr max(0, 1 - max(0, e + 1 - e_0) / (n + 1))   (6)  e epochs done; from e_0 on it falls
    w ~ N(0, 0.02^2)                                      (7)  every weight at first, biases 0

Where x leaves open what y is, (4) alone is content with the median of all it may be, a blur.
D sees the input beside the output, so that to pass for real G must be sharp and fit its input. As
(4) sees to what is large, D needs to judge only what is small: it is a convolutional net that
gives a score to each patch of 70x70 pixels, and E in (2) and (3) is over images and patches. G is
a U-Net: each level down to 1x1 pixels hands its maps over to the level up of the same size too,
so that edges find their way round the bottleneck.

Shapes: B batch, S img_size, L size before the crop, P patches a side; images (B, 3, S, S), bytes
(N, 6, L, L), scores (B, 1, P, P), P = 30 where S = 256.
Batch norm takes its statistics from the images at hand, in use as in training, and dropout stays
on: eval() changes the images for the worse, as averages of batches of one image fit none.
Unlike the paper: G has no dropout right above the bottleneck, and (6), as in the official port to
PyTorch, junyanz/pytorch-CycleGAN-and-pix2pix, whose state dicts of 256 px load at --dim 64; 64 px
by default.

    python pix2pix.py                    label maps to photos of shapes, drawn here
    python pix2pix.py --config facades   DATA_ROOT/facades/{train,test}: photo left, labels right
    python pix2pix.py --dataset folder --data_root maps  train, test or trainA, trainB, testA, testB
    python pix2pix.py --predict new.png  a file or a folder, translated by out/pix2pix/last.pt
    python pix2pix.py --smoke            a few seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
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
SMOKE = {"n_epochs": 3, "dim": 8, "img_size": 32, "lr": 2e-3, "decay_epoch": 1}
BARS = {"l1": (0.0, 0.107), "things": (0.88, 1.0), "ground": (0.999, 1.0), "value_gap": (0.0, 1e-6)}
FACADES = {"dataset": "facades", "direction": "BtoA", "img_size": 256, "dim": 64}
CONFIGS = {"shapes": {}, "facades": FACADES}


# --- model ---------------------------------------------------------------------------------------
# Differs from gan/dcgan.py
def init_weights(layer):
    """Redraw the weights of one layer; the scales of batch norm start around 1."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0.0, 0.02)  # eq. (7)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


class BatchNorm2d(nn.BatchNorm2d):
    """By the statistics of the images at hand, always; the averages are here for official files."""

    def forward(self, x):
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class UnetSkipConnectionBlock(nn.Module):
    """One level of the U-Net and, as submodule, all below it: (B, n, S, S) -> (B, 2n, S, S)."""

    def __init__(self, n_outer, n_inner, submodule=None, dropout=False):
        super().__init__()
        layers = [nn.LeakyReLU(0.2), nn.Conv2d(n_outer, n_inner, 4, 2, 1, bias=False)]
        if submodule:  # the lowest level has no norm at 1x1: of one value it would make 0
            layers += [BatchNorm2d(n_inner), submodule]
            n_inner *= 2
        layers += [nn.ReLU(), nn.ConvTranspose2d(n_inner, n_outer, 4, 2, 1, bias=False)]
        layers += [BatchNorm2d(n_outer)] + [nn.Dropout(0.5)] * dropout
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return torch.cat([x, self.model(x)], 1)  # (B, 2n, S, S)


# Differs from gan/gan.py
class Generator(nn.Sequential):
    """The U-Net, images (B, 3, S, S) -> images in [-1, 1]: halves the side down to 1x1 while the
    channels grow from dim to 8 dim. Official code: UnetGenerator in models/networks.py."""

    def __init__(self, img_size, dim):
        super().__init__()
        block = UnetSkipConnectionBlock(8 * dim, 8 * dim)
        for _ in range(img_size.bit_length() - 6):  # levels of 8 dim: as many as the size needs
            block = UnetSkipConnectionBlock(8 * dim, 8 * dim, block, dropout=True)
        for n in (4 * dim, 2 * dim, dim):
            block = UnetSkipConnectionBlock(n, 2 * n, block)
        layers = [nn.Conv2d(3, dim, 4, 2, 1, bias=False), block, nn.ReLU()]
        layers += [nn.ConvTranspose2d(2 * dim, 3, 4, 2, 1), nn.Tanh()]
        self.add_module("model", nn.Sequential())
        self.model.add_module("model", nn.Sequential(*layers).apply(init_weights))


# Differs from gan/gan.py
class Discriminator(nn.Sequential):
    """The PatchGAN, images (B, n_in, S, S) -> scores (B, 1, P, P); official NLayerDiscriminator."""

    def __init__(self, n_in, dim):
        super().__init__()
        layers = [nn.Conv2d(n_in, dim, 4, 2, 1), nn.LeakyReLU(0.2)]
        for n, stride in ((dim, 2), (2 * dim, 2), (4 * dim, 1)):
            layers += [nn.Conv2d(n, 2 * n, 4, stride, 1, bias=False)]
            layers += [BatchNorm2d(2 * n), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(8 * dim, 1, 4, 1, 1)]
        self.add_module("model", nn.Sequential(*layers).apply(init_weights))


# --- the idea ------------------------------------------------------------------------------------
# Of scores, -log D is softplus(-score) and -log(1 - D) is softplus(score): finite, however sure D.
# Copied from gan/gan.py
def d_loss(real_score, fake_score):
    return F.softplus(-real_score).mean() + F.softplus(fake_score).mean()  # eq. (2)


# Differs from gan/gan.py
def g_loss(fake_score):
    return F.softplus(-fake_score).mean()  # eq. (3)


def pixel_loss(y, y_hat):
    return (y - y_hat).abs().mean()  # eq. (4)


# Differs from gan/gan.py
def d_step(discriminator, optimizer, x, y, y_hat, amp):
    """One step of the discriminator; the fakes are cut from their graph: G feels nothing."""
    with amp:
        real, fake = (discriminator(torch.cat([x, image], 1)) for image in (y, y_hat.detach()))
        loss = d_loss(real.float(), fake.float())
    optimizer.zero_grad()
    (loss / 2).backward()
    optimizer.step()
    return loss.detach()


# Differs from gan/gan.py
def g_step(discriminator, optimizer, x, y, y_hat, lambda_pixel, amp):
    """One step of the generator, through the graph that it made y_hat with."""
    discriminator.requires_grad_(False)
    with amp:
        loss = g_loss(discriminator(torch.cat([x, y_hat], 1)).float())
    l1 = pixel_loss(y, y_hat)
    optimizer.zero_grad()
    (loss + lambda_pixel * l1).backward()  # eq. (5)
    optimizer.step()
    discriminator.requires_grad_(True)
    return torch.stack([loss, l1]).detach()


def learning_rate(lr, epoch, decay_epoch, decay_epochs):
    """For the epoch that comes after so many; it knows of no end, so that runs can be prolonged."""
    return lr * max(0.0, 1 - max(0, epoch + 1 - decay_epoch) / (decay_epochs + 1))  # eq. (6)


# --- data ----------------------------------------------------------------------------------------
# The classes of shapes, first the ground: their colours in label maps (A) and in photos (B).
COLOURS = {"A": [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]}
COLOURS |= {"B": [[70, 65, 60], [190, 80, 70], [90, 170, 60], [90, 140, 200]]}


def draw_maps(n, size):
    """Label maps of boxes and ellipses of three classes, and photos of them: bytes (n, 6, S, S)."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    kinds = torch.zeros(n, size, size, dtype=torch.long)
    for _ in range(3):  # the later one hides the earlier
        y, x = size * torch.rand(2, n, 1, 1)
        h, w = size * (0.12 + 0.16 * torch.rand(2, n, 1, 1))
        y, x = (row - y).abs() / h, (column - x).abs() / w  # (n, S, S), both 1 at the border
        inside = torch.where(torch.rand(n, 1, 1) < 0.5, y**2 + x**2, y.maximum(x)) < 1
        kinds = torch.where(inside, torch.randint(1, len(COLOURS["A"]), (n, 1, 1)), kinds)
    stripes = torch.stack([0 * row, row, column, row + column])[kinds, row, column] // 2 % 2
    a, b = (torch.tensor(COLOURS[side])[kinds] for side in "AB")  # (n, S, S, 3)
    return torch.cat([a, b + 50 * stripes[..., None]], 3).movedim(3, 1).byte()


def load_images(folder, size, beside=1, flag="--data_root"):
    """A file, or all of a folder, each of one or more images: names, bytes (N, 3 beside, S, S)."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
    from torchvision.transforms.functional import pil_to_tensor

    paths = [Path(folder)] if Path(folder).is_file() else sorted(Path(folder).glob("*"))
    paths = [path for path in paths if path.suffix.lower() in IMG_EXTENSIONS]
    if not paths:
        fail(f"{flag}: {folder} holds no images; name another place")
    images = []
    for path in paths:
        try:
            image = default_loader(path)
            w = image.width // beside
            boxes = [(k * w, 0, k * w + w, image.height) for k in range(beside)]
            parts = [image.crop(box).resize((size, size)) for box in boxes]  # bicubic
            images.append(torch.cat([*map(pil_to_tensor, parts)]))
        except (OSError, ValueError, SyntaxError) as error:
            fail(f"{flag}: {path} cannot be read ({error}); mend or remove it")
    return [path.stem for path in paths], torch.stack(images)


def load_data(args):
    """Return pairs to learn from, bytes (N, 6, L, L) with room for crops, and pairs held out, bytes
    (N, 6, S, S); inputs are their first three channels. Whole on the device."""
    root = Path(args.data_root, *["facades"] * (args.dataset == "facades"))
    sets = []
    for part, n, size in (("train", 400, args.img_size * 143 // 128), ("test", 64, args.img_size)):
        if args.dataset == "shapes":
            pairs = draw_maps(n, size)
        elif (root / f"{part}A").is_dir():
            (names, a), (others, b) = (load_images(root / f"{part}{s}", size) for s in "AB")
            if names != others:
                fail(f"--data_root {root}: {part}A and {part}B differ; name pairs of files alike")
            pairs = torch.cat([a, b], 1)
        else:
            _, pairs = load_images(root / part, size, 2)
        sets.append(pairs.roll(3 if args.direction == "BtoA" else 0, 1).to(args.device))
    return sets


def scale(x):
    return x.float() / 127.5 - 1  # from bytes to [-1, 1]


def jitter(x, size):
    """Crop bytes (B, C, L, L) where chance has it, mirror every other one: (B, C, S, S)."""
    row, col = torch.randint(x.shape[3] - size + 1, (2, len(x)), device=x.device)
    x = x.unfold(2, size, 1).unfold(3, size, 1)[torch.arange(len(x), device=x.device), :, row, col]
    return scale(torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x))


# --- train, sample, predict, evaluate, smoke -----------------------------------------------------
def build(args):
    """Return both players, on the device; --weights are the generator's."""
    generator, discriminator = Generator(args.img_size, args.dim), Discriminator(6, args.dim)
    if args.weights:
        load_weights(args.weights, generator)
    return generator.to(args.device), discriminator.to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the held-out pairs."""
    torch.manual_seed(args.seed)
    pairs, test = load_data(args)
    generator, discriminator = players = build(args)
    adam = {"betas": (args.b1, args.b2), "fused": True}
    optimizer_g, optimizer_d = (torch.optim.Adam(each.parameters(), **adam) for each in players)
    state = {"generator": generator, "discriminator": discriminator}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    amp = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp)
    epoch = begin(args, state)
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            for group in optimizer_g.param_groups + optimizer_d.param_groups:
                group["lr"] = learning_rate(args.lr, epoch, args.decay_epoch, args.decay_epochs)
            total = torch.zeros(3, device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(pairs)).to(args.device).split(args.batch_size)
            for i in tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None):
                x, y = jitter(pairs[i], args.img_size).chunk(2, 1)
                with amp:
                    y_hat = generator(x)  # eq. (1)
                d = d_step(discriminator, optimizer_d, x, y, y_hat, amp)
                g = g_step(discriminator, optimizer_g, x, y, y_hat, args.lambda_pixel, amp)
                total += torch.stack([d, *g])
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            d, g, l1 = (total / len(batches)).tolist()
            log(args, epoch=epoch, d_loss=d, g_loss=g, pixel=l1, **evaluate(args, generator, test))
            if epoch % args.sample_interval == 0:
                x, y = scale(test[: args.n_samples]).chunk(2, 1)
                picture(args, f"samples_{epoch:04d}", x, sample(generator, x), y)
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(args, generator, test)


@torch.inference_mode()
def sample(generator, x):
    """Translate images (N, 3, S, S), one by one: batch norm ties those of a batch together."""
    torch.manual_seed(0)  # the same dropout each time
    return torch.cat([generator(image) for image in x.split(1)])


# Differs from gan/gan.py
def picture(args, name, *columns):
    """Write OUT/name.png: images (N, 3, S, S) of each column one below the other."""
    from torchvision.utils import save_image

    path, images = Path(args.out, f"{name}.png"), torch.stack(columns, 1).flatten(0, 1)
    save_image(images, path, nrow=len(columns), normalize=True, value_range=(-1, 1))


def generate(args):
    """The work of --predict: OUT/NAME.png of the image, or of each one in the folder."""
    args.weights = args.weights or f"{args.out}/last.pt"
    generator, _ = build(args)
    names, x = load_images(args.predict, args.img_size, flag="--predict")
    begin(args)
    for name, image in zip(names, x.to(args.device).split(1), strict=True):
        picture(args, name, sample(generator, scale(image)))
        print(f"{args.out}/{name}.png")
    return 0


@torch.inference_mode()
def evaluate(args, generator, pairs):
    """Over held-out pairs, l1: mean of |y - y_hat|. For shapes, whose look is known, things and
    ground: share of their pixels in the right colour, where the truth has them; patterns aside."""
    x, y = scale(pairs).chunk(2, 1)
    y_hat = sample(generator, x)
    row = {"l1": pixel_loss(y, y_hat).item()}
    if args.dataset == "shapes":
        ground = scale(torch.tensor(COLOURS[args.direction[-1]][0], device=x.device))[:, None, None]
        padded = [F.pad(d, (2, 1, 2, 1), "replicate") for d in (y - ground, y_hat - y)]
        things, wrong = (F.avg_pool2d(d, 4, 1).abs().amax(1) > 0.25 for d in padded)  # (N, S, S)
        row |= {"things": 1 - wrong[things].float().mean().item()}
        row |= {"ground": 1 - wrong[~things].float().mean().item()}
    return row


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    value_gap = (d_loss(torch.zeros(8), torch.zeros(8)) - math.log(4)).abs()
    return report(args, **metrics, value_gap=value_gap)


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
    add("--n_epochs", type=at_least(0), default=200, help="passes over the training set")
    add("--batch_size", type=at_least(1), default=1, help="examples per step")
    add("--lr", type=at_least(0.0), default=2e-4, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.5, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--decay_epoch", type=at_least(0), default=100, help="epochs before --lr begins to fall")
    add("--decay_epochs", type=at_least(0), default=100, help="epochs that it falls for")
    add("--lambda_pixel", type=at_least(0.0), default=100.0, help="weight of the L1 loss")
    add("--config", choices=[*CONFIGS], default="shapes", help="named set of defaults")
    add("--dim", type=at_least(1), default=32, help="width of both networks")
    add(
        "--dataset", choices=["shapes", "facades", "folder"], default="shapes", help="to learn from"
    )
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--direction", choices=["AtoB", "BtoA"], default="AtoB", help="A is left, B is right")
    add("--img_size", type=int, choices=[32, 64, 128, 256, 512], default=64, help="side of images")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--sample_interval", type=at_least(1), default=10, help="epochs between pictures")
    add("--n_samples", type=at_least(1), default=6, help="held-out pairs in a picture")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", help="only translate this image or folder, by --weights or OUT/last.pt")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    typed = parser.parse_args(argv)
    parser.set_defaults(**CONFIGS[typed.config])
    if typed.smoke:
        parser.set_defaults(**SMOKE)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.predict:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
