# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "matplotlib>=3.8,<4",
#                 "tqdm>=4.66,<5"]
# ///
"""StarGAN: one generator translates among many sets of images, to whichever is asked.

Paper: Choi, Choi, Kim, Ha, Kim & Choo, "StarGAN: Unified Generative Adversarial Networks for
Multi-Domain Image-to-Image Translation", CVPR 2018, arXiv 1711.09020.

    y_hat = G(x, c')                                      (1)  a fake of the domain that c' asks for
    L_adv = E D_src(y_hat) - E D_src(x)                   (2)  critic: score the real above the fake
    L_src = -E D_src(y_hat)                               (3)  generator: be scored high
    x_hat = eps x + (1 - eps) y_hat, eps ~ U[0, 1]        (4)  somewhere between a real and a fake
    P = E (||grad D_src(x_hat)||_2 - 1)^2                 (5)  penalty; the gradient is by x_hat
    lr_e = lr max(0, 1 - max(0, e + 1 - e_0) / (n + 1))   (6)  e epochs done; from e_0 on it falls
    L_cls = -E log D_cls(c | x), or c' and y_hat          (7)  be of the domain that is said
    L_rec = E |x - G(y_hat, c)|                           (8)  and be x again if asked for its own
    L_D = L_adv + lambda_gp P + lambda_cls L_cls(x)       (9)  what D descends
    L_G = L_src + lambda_cls L_cls(y_hat) + lambda_rec L_rec   (10)  what G descends

K domains would need K (K - 1) generators of the CycleGAN kind. Here one is told by a label c',
spread out to planes beside those of x, what to make; D says too which domain it sees, learns that
from the real images alone, (7), and G must convince it. Padding must be with zeros: the norm takes
away what is constant in a plane, so that labels are felt only where the border differs.

With several data sets, each labelled by its own domains only, c is (c_1, ..., c_n, m): zeros for
what is unknown of an image, and m, a mask, 1 for the set that c speaks of; (7) then looks at the
domains of that set alone, and each batch is of one set.

Shapes: B batch, S img_size, K domains of all sets, M length of a label: K, or K and the sets;
images (B, 3, S, S), labels (B, M), maps of scores (B, 1, 2, 2), logits of domains (B, K).
Unlike the paper: domains exclude each other (softmax, as for RaFD; no several attributes a face);
images are squeezed, not cropped, to squares; (2) and (3) are means over the map of scores, but the
gradient in (5) is that of its sum, as in the official yunjey/stargan, whose state dicts load at
--img_size 128 --dim 64; 32 px by default.

    python stargan.py                       things in three colours, drawn here
    python stargan.py --config faces --data_root faces    faces/DOMAIN/*, or faces/SET/DOMAIN/*
    python stargan.py --predict new.png     a file or a folder, to all domains, by its last.pt
    python stargan.py --smoke               a few seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
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
SMOKE = {"n_epochs": 4, "batch_size": 8, "dim": 8, "n_residual_blocks": 2, "lr": 2e-3, "b2": 0.9}
SMOKE |= {"decay_epoch": 2, "decay_epochs": 3, "n_critic": 2, "lambda_rec": 40.0, "lambda_gp": 1.0}
BARS = {"rec": (0.0, 0.075), "asked": (0.95, 1.0), "things": (0.44, 1.0), "ground": (0.86, 1.0)}
BARS |= {"shape": (0.67, 1.0), "p_gap": (0.0, 1e-4)}
CONFIGS = {"shapes": {}, "faces": {"dataset": "folder", "img_size": 128, "dim": 64}}


# --- model ---------------------------------------------------------------------------------------
def instance_norm(n):
    """Never put into eval(); momentum 0 leaves the averages alone, here for official files only."""
    return nn.InstanceNorm2d(n, affine=True, track_running_stats=True, momentum=0.0)


# Differs from gan/cyclegan.py
class Residual(nn.Module):
    """Adds what two convolutions find to maps (B, n, S, S)."""

    def __init__(self, n):
        super().__init__()
        a, b = ([nn.Conv2d(n, n, 3, 1, 1, bias=False), instance_norm(n)] for _ in "ab")
        self.main = nn.Sequential(*a, nn.ReLU(), *b)

    def forward(self, x):
        return x + self.main(x)


# Differs from gan/gan.py
class Generator(nn.Module):
    """Images (B, 3, S, S) and labels (B, M) -> images in [-1, 1]. Official code: model.py."""

    def __init__(self, n_labels, n_blocks, dim):
        super().__init__()
        layers = [nn.Conv2d(3 + n_labels, dim, 7, 1, 3, bias=False), instance_norm(dim), nn.ReLU()]
        for n in (dim, 2 * dim):
            layers += [nn.Conv2d(n, 2 * n, 4, 2, 1, bias=False), instance_norm(2 * n), nn.ReLU()]
        layers += [Residual(4 * dim) for _ in range(n_blocks)]
        for n in (2 * dim, dim):
            up = nn.ConvTranspose2d(2 * n, n, 4, 2, 1, bias=False)
            layers += [up, instance_norm(n), nn.ReLU()]
        self.main = nn.Sequential(*layers, nn.Conv2d(dim, 3, 7, 1, 3, bias=False), nn.Tanh())

    def forward(self, x, c):
        planes = c[..., None, None].expand(-1, -1, *x.shape[2:])  # (B, M, S, S)
        return self.main(torch.cat([x, planes], 1))


# Differs from gan/gan.py
class Discriminator(nn.Module):
    """Images (B, 3, S, S) -> scores (B, 1, 2, 2), logits (B, K). Official code: model.py."""

    def __init__(self, img_size, n_domains, dim):
        super().__init__()
        layers, maps = [], [3] + [dim * 2**i for i in range(img_size.bit_length() - 2)]
        for n, m in pairwise(maps):
            layers += [nn.Conv2d(n, m, 4, 2, 1), nn.LeakyReLU(0.01)]
        self.main = nn.Sequential(*layers)
        self.conv1 = nn.Conv2d(maps[-1], 1, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(maps[-1], n_domains, 2, bias=False)

    def forward(self, x):
        h = self.main(x)  # (B, n, 2, 2)
        return self.conv1(h), self.conv2(h).flatten(1)  # (B, 1, 2, 2), (B, K)


# --- the idea ------------------------------------------------------------------------------------
# Copied from gan/wgan.py
def d_loss(real_score, fake_score):
    return fake_score.mean() - real_score.mean()  # eq. (2)


# Copied from gan/wgan.py
def g_loss(fake_score):
    return -fake_score.mean()  # eq. (3)


# Copied from gan/wgan_gp.py
def gradient_penalty(discriminator, real, fake):
    """How far the critic's slope is from 1 between real and fake (B, C, S, S); differentiable."""
    with torch.autocast(real.device.type, enabled=False):  # bfloat16 is too coarse for that
        eps = torch.rand(len(real), 1, 1, 1, device=real.device)  # one per image
        x_hat = (eps * real + (1 - eps) * fake).requires_grad_()  # eq. (4)
        (slope,) = torch.autograd.grad(discriminator(x_hat).sum(), x_hat, create_graph=True)
        norm = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()  # (B,)
        return (norm - 1).square().mean()  # eq. (5)


def labels_of(sets):
    """Of domains by the numbers (K,) of their sets: labels (K, M), and who shares a set (K, K)."""
    mask = F.one_hot(sets) if sets.any() else torch.zeros(len(sets), 0)
    return torch.cat([torch.eye(len(sets)), mask], 1), sets[:, None] == sets


def class_loss(logits, domain, shares):
    return F.cross_entropy(logits.masked_fill(~shares[domain], -torch.inf), domain)  # eq. (7)


# Differs from gan/gan.py
def d_step(generator, discriminator, optimizer, x, old, new, labels, shares, w_cls, w_gp, amp):
    """One step of the discriminator; the fakes carry no graph: the generator feels nothing."""
    with torch.no_grad(), amp:
        y_hat = generator(x, labels[new])  # eq. (1)
    with amp:
        score, logits = discriminator(torch.cat([x, y_hat]))
    loss, cls = d_loss(*score.float().chunk(2)), class_loss(logits[: len(x)].float(), old, shares)
    penalty = gradient_penalty(lambda x_hat: discriminator(x_hat)[0], x, y_hat)
    optimizer.zero_grad()
    (loss + w_gp * penalty + w_cls * cls).backward()  # eq. (9)
    optimizer.step()
    return torch.stack([loss, penalty, cls]).detach()


# Differs from gan/gan.py
def g_step(generator, discriminator, optimizer, x, old, new, labels, shares, w_cls, w_rec, amp):
    """One step of the generator; the gradient passes through the discriminator, not into it."""
    discriminator.requires_grad_(False)
    with amp:
        y_hat = generator(x, labels[new])
        (score, logits), again = discriminator(y_hat), generator(y_hat, labels[old])
    loss, cls = g_loss(score.float()), class_loss(logits.float(), new, shares)
    rec = (x - again).abs().mean()  # eq. (8)
    optimizer.zero_grad()
    (loss + w_cls * cls + w_rec * rec).backward()  # eq. (10)
    optimizer.step()
    discriminator.requires_grad_(True)
    return torch.stack([loss, cls, rec]).detach()


# Copied from gan/pix2pix.py
def learning_rate(lr, epoch, decay_epoch, decay_epochs):
    """For the epoch that comes after so many; it knows of no end, so that runs can be prolonged."""
    return lr * max(0.0, 1 - max(0, epoch + 1 - decay_epoch) / (decay_epochs + 1))  # eq. (6)


# --- data ----------------------------------------------------------------------------------------
COLOURS = [[220, 60, 50], [60, 190, 70], [70, 100, 220]]  # of things, one a domain
GROUND = 100  # grey; on black, things and ground often change places


# Differs from gan/pix2pix.py
def draw_maps(n, size):
    """A box or an ellipse, n times in each colour, about the centre: bytes (3 n, 3, S, S)."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y, x = size * (0.35 + 0.3 * torch.rand(2, 3 * n, 1, 1))
    h, w = size * (0.15 + 0.2 * torch.rand(2, 3 * n, 1, 1))
    y, x = (row - y).abs() / h, (column - x).abs() / w  # (3 n, S, S), both 1 at the border
    inside = torch.where(torch.rand(3 * n, 1, 1) < 0.5, y**2 + x**2, y.maximum(x)) < 1
    colours = torch.tensor(COLOURS).repeat_interleave(n, 0)[..., None, None]  # (3 n, 3, 1, 1)
    return torch.where(inside[:, None], colours, GROUND).byte()


# Copied from gan/cyclegan.py
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


def list_domains(args):
    """Folders of the domains, None where they are drawn, and the number of each one's set (K,)."""
    if args.dataset == "shapes":
        return [None] * len(COLOURS), torch.zeros(len(COLOURS), dtype=torch.long)
    flat, deep = (sorted(filter(Path.is_dir, Path(args.data_root).glob(g))) for g in ("*", "*/*"))
    if len(found := deep or flat) < 2:
        fail(f"--data_root {args.data_root}: holds {len(found)} folders; make 2, one a domain")
    parents = sorted({path.parent for path in found})
    return found, torch.tensor([parents.index(path.parent) for path in found])


def load_data(args):
    """Return (x, domain) to learn from and, each tenth, held out: bytes (N, 3, S, S), and (N,)."""
    if args.dataset == "shapes":
        parts = draw_maps(320, args.img_size).chunk(len(COLOURS))
    else:
        parts = [load_images(folder, args.img_size)[1] for folder in list_domains(args)[0]]
    x, domain = torch.cat(parts), torch.cat([torch.full([len(p)], k) for k, p in enumerate(parts)])
    held = torch.cat([torch.arange(len(part)) % 10 == 0 for part in parts])
    return [(x[i].to(args.device), domain[i].to(args.device)) for i in (~held, held)]


# Copied from gan/pix2pix.py
def scale(x):
    return x.float() / 127.5 - 1  # from bytes to [-1, 1]


# --- train, sample, predict, evaluate, smoke -----------------------------------------------------
def build(args):
    """Return both players, labels and shares of labels_of, on the device; --weights are G's."""
    labels, shares = (table.to(args.device) for table in labels_of(list_domains(args)[1]))
    generator = Generator(labels.shape[1], args.n_residual_blocks, args.dim)
    discriminator = Discriminator(args.img_size, len(labels), args.dim)
    if args.weights:
        load_weights(args.weights, generator)
    return (generator.to(args.device), discriminator.to(args.device)), labels, shares


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the held-out images."""
    torch.manual_seed(args.seed)
    (x, domain), test = load_data(args)
    players, labels, shares = build(args)
    adam = {"betas": (args.b1, args.b2), "fused": True}
    optimizer_g, optimizer_d = (torch.optim.Adam(each.parameters(), **adam) for each in players)
    state = {"generator": players[0], "discriminator": players[1]}
    state |= {"optimizer_g": optimizer_g, "optimizer_d": optimizer_d}
    sets = [row[domain].nonzero()[:, 0] for row in shares.unique(dim=0)]  # each set's images
    amp = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp)
    epoch = begin(args, state)
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            for group in optimizer_g.param_groups + optimizer_d.param_groups:
                group["lr"] = learning_rate(args.lr, epoch, args.decay_epoch, args.decay_epochs)
            total = torch.zeros(6, device=args.device)  # summed there: no sync at every step
            batches = [j for i in sets for j in i[torch.randperm(len(i))].split(args.batch_size)]
            batches = [batches[at] for at in torch.randperm(len(batches)).tolist()]
            for at, i in enumerate(tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None)):
                mirror = torch.rand(len(i), 1, 1, 1, device=args.device) < 0.5
                real, old = scale(torch.where(mirror, x[i].flip(3), x[i])), domain[i]
                new = old[torch.randperm(len(i), device=args.device)]  # as common as the real ones
                batch = real, old, new, labels, shares, args.lambda_cls
                total[:3] += d_step(*players, optimizer_d, *batch, args.lambda_gp, amp)
                if (epoch * len(batches) + at + 1) % args.n_critic == 0:
                    g = g_step(*players, optimizer_g, *batch, args.lambda_rec, amp)
                    total[3:] += args.n_critic * g
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            d, _, _, g, *_ = (total / len(batches)).tolist()
            log(args, epoch=epoch, d_loss=d, g_loss=g, **evaluate(args, players, labels, test))
            if epoch % args.sample_interval == 0:
                y = scale(test[0][:: max(1, len(test[0]) // args.n_samples)])
                columns = [sample(players[0], y, label) for label in labels]
                picture(args, f"samples_{epoch:04d}", y, *columns)
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(args, players, labels, test)


@torch.inference_mode()
def sample(generator, x, label):
    """Translate images (N, 3, S, S), to one label (M,), or each to its own (N, M)."""
    pairs = zip(x.split(64), label.expand(len(x), -1).split(64), strict=True)
    return torch.cat([generator(*pair) for pair in pairs])


# Copied from gan/pix2pix.py
def picture(args, name, *columns):
    """Write OUT/name.png: images (N, 3, S, S) of each column one below the other."""
    from torchvision.utils import save_image

    path, images = Path(args.out, f"{name}.png"), torch.stack(columns, 1).flatten(0, 1)
    save_image(images, path, nrow=len(columns), normalize=True, value_range=(-1, 1))


def generate(args):
    """The work of --predict: OUT/NAME.png, the image and its translation to each domain."""
    args.weights = args.weights or f"{args.out}/last.pt"
    (generator, _), labels, _ = build(args)
    names, x = load_images(args.predict, args.img_size, flag="--predict")
    begin(args)
    for name, image in zip(names, scale(x.to(args.device)).split(1), strict=True):
        picture(args, name, image, *[sample(generator, image, label) for label in labels])
        print(f"{args.out}/{name}.png")
    return 0


@torch.inference_mode()
def evaluate(args, players, labels, test):
    """Held out, rec: |G(G(x, c'), c) - x|; asked: share that D says is of c'; things, ground: right
    share of each; shape: share nearer to the own than to another's truth (0.5: x is not seen)."""
    (generator, discriminator), x, rows = players, scale(test[0]), []
    on = x.amax(1, keepdim=True) > x.amin(1, keepdim=True)  # a thing: the ground is grey
    for new, label in enumerate(labels):
        y_hat = sample(generator, x, label)
        again, (_, logits) = sample(generator, y_hat, labels[test[1]]), discriminator(y_hat)
        rows.append([(x - again).abs(), logits.argmax(1) == new])
        if args.dataset == "shapes":
            colour = torch.tensor(COLOURS[new], device=x.device)[:, None, None]
            y = torch.where(on, scale(colour), x)
            own, other = ((y_hat - each).abs().amax(1, True) for each in (y, y.roll(1, 0)))
            rows[-1] += [own[on] < 0.25, own[~on] < 0.25, (own < other)[on != on.roll(1, 0)]]
    means = torch.tensor([[part.float().mean() for part in row] for row in rows]).mean(0).tolist()
    return dict(zip(("rec", "asked", "things", "ground", "shape"), means, strict=False))


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    penalty = gradient_penalty(lambda x: 3 * x[:, 0, 0, 0], *torch.rand(2, 8, 3, 4, 4))  # slope 3
    return report(args, **metrics, p_gap=(penalty - (3 - 1) ** 2).abs())


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
    add("--n_epochs", type=at_least(0), default=20, help="passes over the training set")
    add("--batch_size", type=at_least(1), default=16, help="examples per step")
    add("--lr", type=at_least(0.0), default=1e-4, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.5, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--decay_epoch", type=at_least(0), default=10, help="epochs before --lr begins to fall")
    add("--decay_epochs", type=at_least(0), default=10, help="epochs that it falls for")
    add("--n_critic", type=at_least(1), default=5, help="steps of D before each step of G")
    add("--lambda_cls", type=at_least(0.0), default=1.0, help="weight of the domain losses")
    add("--lambda_rec", type=at_least(0.0), default=10.0, help="weight of the reconstruction")
    add("--lambda_gp", type=at_least(0.0), default=10.0, help="weight of the gradient penalty")
    add("--config", choices=[*CONFIGS], default="shapes", help="named set of defaults")
    add("--dim", type=at_least(1), default=32, help="width of both networks")
    add("--n_residual_blocks", type=at_least(1), default=6, help="of the generator")
    add("--dataset", choices=["shapes", "folder"], default="shapes", help="to learn from")
    add("--data_root", default="data", help="of folder: DOMAIN/* or SET/DOMAIN/*")
    add("--img_size", type=int, choices=[32, 64, 128, 256], default=32, help="side of images")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--sample_interval", type=at_least(1), default=5, help="epochs between pictures")
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
