# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "matplotlib>=3.8,<4",
#                 "tqdm>=4.66,<5"]
# ///
"""CycleGAN: translates images between two sets in which nothing is paired.

Paper: Zhu, Park, Isola & Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent
Adversarial Networks", ICCV 2017, arXiv 1703.10593.

    y_hat = G(x), x_hat = F(y)                            (1)  fakes, from A to B and back
    L_D = E (D(y) - 1)^2 + E D(y_hat)^2                   (2)  D of B descends half of it; A alike
    L_GAN = E (D(y_hat) - 1)^2                            (3)  G: be taken for real; F alike
    L_cyc = E |F(G(x)) - x| + E |G(F(y)) - y|             (4)  and there and back be where one was
    L_G = L_GAN of G and F + lambda L_cyc + mu L_idt      (5)  what G and F descend
    lr_e = lr max(0, 1 - max(0, e + 1 - e_0) / (n + 1))   (6)  e epochs done; from e_0 on it falls
    w ~ N(0, 0.02^2)                                      (7)  every weight at first, biases 0
    L_idt = E |G(y) - y| + E |F(x) - x|                   (8)  leave alone what needs no translation

Without pairs no one can tell G what y belongs to x, and (3) alone is content with any y. But if F
is to find x again, (4), then G(x) must still hold all there is in x, and the easiest place for it
is where it was. (8) keeps the colours. Squares (2), (3) for logarithms steady the training, and so
does a pool of earlier fakes: from it, every other time, D gets an old fake for the new one, which
takes its place there, lest G and D chase each other in circles.

Shapes: B batch, S img_size, L size before the crop, P patches a side; images (B, 3, S, S), bytes
(N, 3, L, L), scores (B, 1, P, P), P = 30 where S = 256.
Unlike the paper: (6) and (8) for all sets as in the official port to PyTorch, the authors'
junyanz/pytorch-CycleGAN-and-pix2pix, whose state dicts of either generator load at --config
summer2winter; 64 px by default. Images of a batch never meet at one place of
the pool.

    python cyclegan.py                         label maps and photos of shapes, drawn here, unpaired
    python cyclegan.py --config summer2winter  DATA_ROOT/summer2winter_yosemite, trainA ... testB
    python cyclegan.py --dataset folder --data_root horse2zebra    trainA, trainB, testA and testB
    python cyclegan.py --predict new.png       a file or a folder, by out/cyclegan/last.pt
    python cyclegan.py --smoke                 a few seconds; exits 1 unless all BARS are met
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
SMOKE = {"n_epochs": 3, "batch_size": 4, "dim": 8, "img_size": 32, "n_residual_blocks": 2}
SMOKE |= {"lr": 2e-3, "decay_epoch": 2, "decay_epochs": 1}
BARS = {"cycle": (0.0, 0.082), "things": (0.9, 1.0), "ground": (0.992, 1.0), "pool_gap": (0.0, 0.0)}
CONFIGS = {"shapes": {}}
CONFIGS["summer2winter"] = {"dataset": "summer2winter", "img_size": 256, "dim": 64}


# --- model ---------------------------------------------------------------------------------------
# Differs from gan/dcgan.py
def init_weights(layer):
    """Redraw the weights of one layer."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0.0, 0.02)  # eq. (7)
        nn.init.zeros_(layer.bias)


class Residual(nn.Module):
    """Adds what two convolutions find to maps (B, n, S, S)."""

    def __init__(self, n):
        super().__init__()
        a, b = ([nn.ReflectionPad2d(1), nn.Conv2d(n, n, 3), nn.InstanceNorm2d(n)] for _ in "ab")
        self.conv_block = nn.Sequential(*a, nn.ReLU(), *b)

    def forward(self, x):
        return x + self.conv_block(x)


# Differs from gan/gan.py
class Generator(nn.Sequential):
    """Images (B, 3, S, S) -> images in [-1, 1], from a quarter of the side; ResnetGenerator."""

    def __init__(self, n_blocks, dim):
        super().__init__()
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, dim, 7), nn.InstanceNorm2d(dim), nn.ReLU()]
        for n in (dim, 2 * dim):
            layers += [nn.Conv2d(n, 2 * n, 3, 2, 1), nn.InstanceNorm2d(2 * n), nn.ReLU()]
        layers += [Residual(4 * dim) for _ in range(n_blocks)]
        for n in (2 * dim, dim):
            layers += [nn.ConvTranspose2d(2 * n, n, 3, 2, 1, 1), nn.InstanceNorm2d(n), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(dim, 3, 7), nn.Tanh()]
        self.add_module("model", nn.Sequential(*layers).apply(init_weights))


# Differs from gan/gan.py
class Discriminator(nn.Sequential):
    """The PatchGAN, images (B, n_in, S, S) -> scores (B, 1, P, P); official NLayerDiscriminator."""

    def __init__(self, n_in, dim):
        super().__init__()
        layers = [nn.Conv2d(n_in, dim, 4, 2, 1), nn.LeakyReLU(0.2)]
        for n, stride in ((dim, 2), (2 * dim, 2), (4 * dim, 1)):
            layers += [nn.Conv2d(n, 2 * n, 4, stride, 1)]
            layers += [nn.InstanceNorm2d(2 * n), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(8 * dim, 1, 4, 1, 1)]
        self.add_module("model", nn.Sequential(*layers).apply(init_weights))


# --- the idea ------------------------------------------------------------------------------------
# Differs from gan/gan.py
def d_loss(real_score, fake_score):
    return (real_score - 1).square().mean() + fake_score.square().mean()  # eq. (2)


# Differs from gan/gan.py
def g_loss(fake_score):
    return (fake_score - 1).square().mean()  # eq. (3)


# Copied from gan/pix2pix.py
def pixel_loss(y, y_hat):
    return (y - y_hat).abs().mean()  # eq. (4)


class ImagePool:
    """Up to so many earlier fakes, for D. Official code: ImagePool in util/image_pool.py."""

    def __init__(self, size, like):
        self.size, self.images = size, like[:0].float()

    def query(self, images):
        """Store what there is room for; of the rest, swap about half for fakes stored before."""
        first, rest = images.tensor_split([self.size - len(self.images)])
        self.images = torch.cat([self.images, first])
        slots = torch.randperm(len(self.images), device=images.device)[: len(rest)]
        old, new, more = self.images[slots], rest[: len(slots)], rest[len(slots) :]
        swap = torch.rand(len(slots), 1, 1, 1, device=images.device) < 0.5
        self.images[slots] = torch.where(swap, new, old)
        return torch.cat([first, torch.where(swap, old, new), more])

    def state_dict(self):
        return {"images": self.images}

    def load_state_dict(self, state):
        self.images = state["images"].to(self.images.device)


# Differs from gan/gan.py
def d_step(discriminator, optimizer, reals, fakes, amp):
    """One step of both discriminators; the fakes carry no graph."""
    with amp:
        triples = zip(discriminator, reals, fakes, strict=True)
        loss = sum(d_loss(*judge(torch.cat(pair)).float().chunk(2)) for judge, *pair in triples)
    optimizer.zero_grad()
    (loss / 2).backward()
    optimizer.step()
    return loss.detach()


# Differs from gan/gan.py
def g_step(generator, discriminator, optimizer, x, y, lambda_cyc, lambda_id, amp):
    """One step of both generators; return losses (2,), and the fakes x_hat and y_hat."""
    forth, back = generator
    discriminator.requires_grad_(False)
    with amp:
        y_hat, y_same = forth(torch.cat([x, y])).chunk(2)  # eq. (1)
        x_hat, x_same = back(torch.cat([y, x])).chunk(2)
        x_again, y_again = back(y_hat), forth(x_hat)
        loss = g_loss(discriminator[0](x_hat).float()) + g_loss(discriminator[1](y_hat).float())
    cycle = pixel_loss(x, x_again) + pixel_loss(y, y_again)  # eq. (4)
    identity = pixel_loss(y, y_same) + pixel_loss(x, x_same)  # eq. (8)
    optimizer.zero_grad()
    (loss + lambda_cyc * cycle + lambda_id * identity).backward()  # eq. (5)
    optimizer.step()
    discriminator.requires_grad_(True)
    return torch.stack([loss, cycle]).detach(), x_hat.detach(), y_hat.detach()


# Copied from gan/pix2pix.py
def learning_rate(lr, epoch, decay_epoch, decay_epochs):
    """For the epoch that comes after so many; it knows of no end, so that runs can be prolonged."""
    return lr * max(0.0, 1 - max(0, epoch + 1 - decay_epoch) / (decay_epochs + 1))  # eq. (6)


# --- data ----------------------------------------------------------------------------------------
# The classes of shapes, first the ground: their colours in maps (A) and in photos (B).
COLOURS = {"A": [[20, 20, 20], [230, 80, 50]], "B": [[20, 20, 20], [80, 150, 200]]}


# Copied from gan/pix2pix.py
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


# Differs from gan/pix2pix.py
def load_images(folder, size, flag="--data_root"):
    """A file, or all of a folder, squeezed to squares: names, bytes (N, 3, S, S)."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
    from torchvision.transforms.functional import pil_to_tensor

    paths = [Path(folder)] if Path(folder).is_file() else sorted(Path(folder).glob("*"))
    paths = [path for path in paths if path.suffix.lower() in IMG_EXTENSIONS]
    if not paths:
        fail(f"{flag}: {folder} holds no images; name another place")
    images = []
    for path in paths:
        try:
            images.append(pil_to_tensor(default_loader(path).resize((size, size))))  # bicubic
        except (OSError, ValueError, SyntaxError) as error:
            fail(f"{flag}: {path} cannot be read ({error}); mend or remove it")
    return [path.stem for path in paths], torch.stack(images)


def load_data(args):
    """Return [x, y] to learn from, bytes (N, 3, L, L), and [x, y] held out, bytes (N, 3, S, S)."""
    root = Path(args.data_root, *["summer2winter_yosemite"] * (args.dataset == "summer2winter"))
    sets = []
    for part, n, size in (("train", 400, args.img_size * 143 // 128), ("test", 64, args.img_size)):
        if args.dataset == "shapes":
            sides = draw_maps(n, size).chunk(2, 1)
        else:
            sides = [load_images(root / f"{part}{side}", size)[1] for side in "AB"]
        sets.append([x.to(args.device) for x in sides][:: 1 if args.direction == "AtoB" else -1])
    return sets


# Copied from gan/pix2pix.py
def scale(x):
    return x.float() / 127.5 - 1  # from bytes to [-1, 1]


# Copied from gan/pix2pix.py
def jitter(x, size):
    """Crop bytes (B, C, L, L) where chance has it, mirror every other one: (B, C, S, S)."""
    row, col = torch.randint(x.shape[3] - size + 1, (2, len(x)), device=x.device)
    x = x.unfold(2, size, 1).unfold(3, size, 1)[torch.arange(len(x), device=x.device), :, row, col]
    return scale(torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x))


# --- train, sample, predict, evaluate, smoke -----------------------------------------------------
def build(args):
    """Return both players, on the device: G and F, D of x and D of y; --weights are those of G."""
    generator = nn.ModuleList(Generator(args.n_residual_blocks, args.dim) for _ in "GF")
    discriminator = nn.ModuleList(Discriminator(3, args.dim) for _ in "xy")
    if args.weights:
        load_weights(args.weights, generator[0], parts=(args.direction,))
    return generator.to(args.device), discriminator.to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the held-out images."""
    torch.manual_seed(args.seed)
    (xs, ys), test = load_data(args)
    generator, discriminator = players = build(args)
    adam = {"betas": (args.b1, args.b2), "fused": True}
    optimizer_g, optimizer_d = (torch.optim.Adam(each.parameters(), **adam) for each in players)
    pools = [ImagePool(args.pool_size, x) for x in test]
    ways = ["AtoB", "BtoA"][:: 1 if args.direction == "AtoB" else -1]
    state = dict(zip(ways, generator, strict=True)) | {"discriminator": discriminator}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    state |= {"pool_x": pools[0], "pool_y": pools[1]}
    amp = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp)
    epoch = begin(args, state)
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            for group in optimizer_g.param_groups + optimizer_d.param_groups:
                group["lr"] = learning_rate(args.lr, epoch, args.decay_epoch, args.decay_epochs)
            total = torch.zeros(3, device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(max(len(xs), len(ys))).to(args.device).split(args.batch_size)
            for i in tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None):
                j = torch.randint(len(ys), (len(i),), device=args.device)
                x, y = jitter(xs[i % len(xs)], args.img_size), jitter(ys[j], args.img_size)
                g, *fakes = g_step(
                    *players, optimizer_g, x, y, args.lambda_cyc, args.lambda_id, amp
                )
                fakes = map(ImagePool.query, pools, fakes)
                d = d_step(discriminator, optimizer_d, (x, y), fakes, amp)
                total += torch.stack([d, *g])
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            d, g, c = (total / len(batches)).tolist()
            log(args, epoch=epoch, d_loss=d, g_loss=g, cyc=c, **evaluate(args, generator, test))
            if epoch % args.sample_interval == 0:
                x = scale(test[0][: args.n_samples])
                y_hat = sample(generator[0], x)
                picture(args, f"samples_{epoch:04d}", x, y_hat, sample(generator[1], y_hat))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(args, generator, test)


@torch.inference_mode()
def sample(generator, x):
    """Translate images (N, 3, S, S), each by itself."""
    return torch.cat([generator(part) for part in x.split(16)])


# Copied from gan/pix2pix.py
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
        picture(args, name, sample(generator[0], scale(image)))
        print(f"{args.out}/{name}.png")
    return 0


@torch.inference_mode()
def evaluate(args, generator, test):
    """Held-out |F(G(x)) - x|; for shapes, shares of things and of ground in their right colour."""
    x, y = map(scale, test)
    y_hat = sample(generator[0], x)
    row = {"cycle": pixel_loss(x, sample(generator[1], y_hat)).item()}
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
    images = torch.rand(50, 3, 2, 2)
    pool_gap = (ImagePool(50, images).query(images) - images).abs().max()  # the first ones pass
    return report(args, **metrics, pool_gap=pool_gap)


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
    add("--lambda_cyc", type=at_least(0.0), default=10.0, help="weight of the cycle loss")
    add("--lambda_id", type=at_least(0.0), default=5.0, help="weight of the identity loss")
    add("--pool_size", type=at_least(0), default=50, help="earlier fakes kept for D")
    add("--config", choices=[*CONFIGS], default="shapes", help="named set of defaults")
    add("--dim", type=at_least(1), default=32, help="width of both networks")
    add("--n_residual_blocks", type=at_least(1), default=9, help="of the generator")
    add(
        "--dataset",
        choices=["shapes", "summer2winter", "folder"],
        default="shapes",
        help="to learn from",
    )
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--direction", choices=["AtoB", "BtoA"], default="AtoB", help="to judge, to predict")
    add("--img_size", type=int, choices=[32, 64, 128, 256, 512], default=64, help="side of images")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--sample_interval", type=at_least(1), default=10, help="epochs between pictures")
    add("--n_samples", type=at_least(1), default=6, help="held-out images in a picture")
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
