# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4",
#                 "tqdm>=4.66,<5"]
# ///
"""Self-organising map: units on a grid share out the data so that neighbours get what is alike.

Papers: Kohonen, "Self-organized formation of topologically correct feature maps", Biological
Cybernetics 43, 1982; batch map and PCA start: Kohonen, "Essentials of the self-organizing map",
Neural Networks 37, 2013; U-matrix: Ultsch & Siemon, "Kohonen's Self Organizing Feature Maps for
Exploratory Data Analysis", INNC 1990.

    u(x) = argmin_v |x - W_v|                                 (1)  best matching unit
    W_v <- W_v + alpha theta(u, v) (x - W_v)                  (2)  online, for each x in turn
    W_v <- W_v + alpha (m_v - W_v),                           (3)  batch, once an epoch; alpha = 1
        m_v = sum_n theta(u_n, v) x_n / sum_n theta(u_n, v)        puts the mean there
    theta = exp(-d^2 / 2 sigma^2)                             (4)  gaussian; d: between u and v
    theta = 1 if d <= sigma, else 0                           (5)  bubble
    theta = (1 - d^2 / sigma^2) exp(-d^2 / 2 sigma^2)         (6)  mexican_hat: a ring is pushed off
    theta = 2^-k                                              (7)  half; k steps from u to v
    sigma(s) = sigma + (sigma_end - sigma) s / S              (8)  s of S steps or epochs are done;
    alpha(s) = alpha (1 - s / S)                              (9)  online alone
    W = mean + a sqrt(l_1) e_1 + b sqrt(l_2) e_2              (10)  start; l, e: principal axes,
                                                                    a, b: from -2 to 2 on the grid
    QE = mean_x |x - W_u(x)|                                  (11)  quantisation error
    TE = share of x whose second best unit is not next to u   (12)  topographic error
    U_v = mean of |W_v - W_w| over all w next to v            (13)  U-matrix: high on a border

theta is a weight, which falls with the distance on the grid; it is not that distance. The winner
alone would make it k-means: it is theta that orders the map, and as sigma shrinks that order gets
detail. half has no sigma, never shrinks, and ends with the largest QE. With alpha = 1 the first
(2) puts W_u on x, and all that W_u held is gone; hence 0.5. (6) sums up to less than 0 over a wide
grid: units are driven apart, without end if alpha is high, and the map hardly unfolds; (3) cannot
use it at all. Of equals, (1) takes the first; a unit that nobody's theta reaches stays as it is.
Next to v are 8 units on a rectangular grid, 6 on a hexagonal one (odd rows half a step to the
right, rows sqrt(3)/2 apart); k counts 4 and 6 directions.

Shapes: N examples, D features, R x C = U units, that of row r and column c has number r C + c;
x (N, D), W (U, D), d^2, k and theta (U, U). OUT/umatrix.png: (13) with the commonest class of each
unit, and how many examples it won; OUT/planes.png: W, feature by feature.
Unlike the paper: theta and both schedules as above; every feature is scaled to mean 0, std 1 (but
digits have one unit for all pixels: ink of 0 to 1). A csv file may have a header, and classes in
its last column, where they are no numbers.

    python som.py                                           digits, batch map of 20 x 20
    python som.py --dataset iris --topology hexagonal --training online --neighbourhood bubble
    python som.py --dataset csv --data_root my.csv --n_rows 9 --n_columns 6
    python som.py --predict new.csv --n_rows 9 --n_columns 6    the unit of each row: OUT/units.csv
    python som.py --smoke                                   exits 1 unless all BARS are met
"""

import argparse
import contextlib
import csv
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"dataset": "iris", "n_rows": 8, "n_columns": 8, "init": "random"}
BARS = {"qe": (0.0, 0.292), "te": (0.0, 0.08), "batch_gap": (0.0, 1e-4)}


# --- the idea ------------------------------------------------------------------------------------
def lattice(n_rows, n_columns, hexagonal):
    """Places (U, 2) as (x, y), and steps k (U, U) from each unit to each."""
    y, x = torch.meshgrid(torch.arange(n_rows), torch.arange(n_columns), indexing="ij")
    x, y = x.flatten().double(), y.flatten().double()  # (U,), (U,)
    if not hexagonal:
        return torch.stack([x, y], 1), (x[:, None] - x).abs() + (y[:, None] - y).abs()
    x = x + y % 2 / 2
    across, down = (x[:, None] - x).abs(), (y[:, None] - y).abs()
    return torch.stack([x, y * 3**0.5 / 2], 1), torch.maximum(down, across + down / 2)


def neighbourhood(kind, d2, k, sigma):
    """theta of pairs of units with squared distances d2, k steps apart."""
    if kind == "gaussian":
        return (-d2 / (2 * sigma**2)).exp()  # eq. (4)
    if kind == "bubble":
        return (d2 <= sigma**2).to(d2.dtype)  # eq. (5)
    if kind == "mexican_hat":
        return (1 - d2 / sigma**2) * (-d2 / (2 * sigma**2)).exp()  # eq. (6)
    return 0.5**k  # eq. (7)


def principal_plane(x, n_rows, n_columns):
    """W (U, D) spread over the plane of the largest variance; the longer side takes the first
    axis, and an axis points to where its largest coefficient is positive."""
    values, vectors = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
    axes = (vectors * values.clamp(min=0).sqrt()).flip(1)[:, :2]  # (D, 2)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    axes = nn.functional.pad(axes, (0, 2 - axes.shape[1])).T  # (2, D), if D is but 1
    first, second = axes if n_rows > n_columns else axes.flip(0)
    a, b = (torch.linspace(-2, 2, n) if n > 1 else torch.zeros(1) for n in (n_rows, n_columns))
    a, b = torch.cartesian_prod(a, b).to(x).T[..., None]  # (U, 1), (U, 1)
    return x.mean(0) + a * first + b * second  # eq. (10)


def online_epoch(model, x, kind, alpha, sigma):
    """Show x (N, D) one by one, with alpha and sigma (N,); return the sum of |x - W_u|."""
    W, total = model.weight, x.new_zeros(1)
    for i in tqdm(range(len(x)), "online", leave=False, disable=None):
        away = x[i] - W  # (U, D)
        far = away.square().sum(1)
        u = far.argmin(0, keepdim=True)  # (1,)  eq. (1)
        theta = neighbourhood(kind, model.d2[u], model.k[u], sigma[i])  # (1, U)
        W += alpha[i] * theta.T * away  # eq. (2)
        total += far[u].sqrt()
    return total


def batch_epoch(model, x, kind, alpha, sigma):
    """Find all u, then move all units at once; return the sum of |x - W_u| before that."""
    W, total = model.weight, x.new_zeros(1)
    won, held = W.new_zeros(len(W)), torch.zeros_like(W)
    for part in x.split(4096):  # what follows needs no more memory than this
        far, u = model(part).min(1)  # eq. (1)
        won.index_add_(0, u, torch.ones_like(far))
        held.index_add_(0, u, part)
        total += far.clamp(min=0).sqrt().sum()
    theta = neighbourhood(kind, model.d2, model.k, sigma)  # (U, U)
    share = (theta @ won)[:, None]  # (U, 1)
    move = torch.where(share > 1e-30, theta @ held / share - W, 0.0)
    W += alpha * move  # eq. (3)
    return total


def u_matrix(model):
    """U (U,) of all units."""
    exact = "donot_use_mm_for_euclid_dist"
    far = torch.cdist(model.weight, model.weight, compute_mode=exact)  # (U, U)
    return (far * model.near).sum(1) / model.near.sum(1)  # eq. (13)


# --- model ---------------------------------------------------------------------------------------
class SOM(nn.Module):
    """x (N, D), scaled -> its squared distance (N, U) from every unit."""

    def __init__(self, n_rows, n_columns, n_in, topology):
        super().__init__()
        place, k = lattice(n_rows, n_columns, topology == "hexagonal")
        d2 = (place[:, None] - place).square().sum(2)  # (U, U)
        reach = 1.1 if topology == "hexagonal" else 2.1  # of a diagonal step, squared: 2
        self.register_buffer("weight", torch.zeros(len(k), n_in))
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("std", torch.ones(n_in))
        for name, value in {"place": place, "d2": d2, "k": k}.items():
            self.register_buffer(name, value.float(), persistent=False)
        self.register_buffer("near", (d2 > 0) & (d2 < reach), persistent=False)

    def scale(self, x):
        return (x - self.mean) / self.std

    def forward(self, x):
        squares = x.square().sum(1, keepdim=True) + self.weight.square().sum(1)  # (N, U)
        return torch.addmm(squares, x, self.weight.T, alpha=-2)


# --- data ----------------------------------------------------------------------------------------
def read_table(flag, path):
    """Features x (N, D), a class per row or none, and names of the features, from a csv file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        fail(f"{flag} {path}: cannot be read ({error.strerror}); name a csv file")
    except (UnicodeDecodeError, csv.Error) as error:
        fail(f"{flag} {path}: is no csv text in utf-8 ({error}); name another file")

    def number(text):
        with contextlib.suppress(ValueError):
            return float(text.removeprefix("\ufeff"))  # which some programs write first

    header = rows.pop(0) if rows and not any(number(cell) is not None for cell in rows[0]) else []
    labelled = bool(rows) and number(rows[0][-1]) is None
    y, table = [row[-1] for row in rows if labelled], []
    for at, row in enumerate(rows, 1):
        table.append([number(cell) for cell in row[: len(row) - labelled]])
        odd = [cell for cell, v in zip(row, table[-1], strict=False) if not math.isfinite(v or 0)]
        odd += [cell for cell, v in zip(row, table[-1], strict=False) if v is None]
        if odd or len(row) != len(rows[0]):
            what = f"holds {odd[0]!r}" if odd else f"has {len(row)} cells, the first {len(rows[0])}"
            fail(f"{flag} {path}: data row {at} {what}; fill in numbers, or take the row out")
    if not table or not table[0]:
        fail(f"{flag} {path}: holds no rows of numbers; name another file")
    names = header if len(header) == len(rows[0]) else range(1, len(table[0]) + 1)
    return torch.tensor(table), y, [*map(str, names)][: len(table[0])]


def load_data(args):
    """Features x (N, D) on the device, a class per example or none, names of the features."""
    if args.dataset == "csv":
        x, y, names = read_table("--data_root", args.data_root)
        if len(x) < 2:
            fail(f"--data_root {args.data_root}: one row is nothing to map; name another file")
        return x.to(args.device), y, names
    from sklearn.datasets import load_digits, load_iris

    data = load_digits() if args.dataset == "digits" else load_iris()
    x = torch.from_numpy(data.data).float() / (16 if args.dataset == "digits" else 1)
    y = [str(data.target_names[k]) for k in data.target]
    return x.to(args.device), y, data.feature_names


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args, x):
    """The map before training, its scale taken from x (N, D), or as --weights has both."""
    model = SOM(args.n_rows, args.n_columns, x.shape[1], args.topology).to(args.device)
    if args.weights:
        load_weights(args.weights, model)
        return model
    if args.dataset != "digits":
        std = x.std(0)
        model.mean.copy_(x.mean(0))
        model.std.copy_(torch.where(std > 0, std, 1.0))  # a constant feature tells nothing
    x = model.scale(x)
    if args.init == "pca":
        model.weight.copy_(principal_plane(x, args.n_rows, args.n_columns))
    else:
        model.weight.copy_(x.mean(0) + x.std(0) * torch.randn(model.weight.shape).to(x))
    return model


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the errors of the map."""
    torch.manual_seed(args.seed)
    x, y, names = load_data(args)
    model = build(args, x)
    state = {"model": model}
    epoch, x = begin(args, state), model.scale(x)
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            if args.training == "online":
                order = torch.randperm(len(x)) if args.order == "random" else torch.arange(len(x))
                done = (epoch + torch.arange(len(x), device=x.device) / len(x)) / args.n_epochs
                sigma = args.sigma + (args.sigma_end - args.sigma) * done  # eq. (8)
                alpha = args.lr * (1 - done)  # eq. (9)
                total = online_epoch(
                    model, x[order.to(args.device)], args.neighbourhood, alpha, sigma
                )
            else:
                sigma = args.sigma + (args.sigma_end - args.sigma) * epoch / args.n_epochs
                total = batch_epoch(model, x, args.neighbourhood, args.lr, sigma)
            if not (total.isfinite().all() and model.weight.isfinite().all()):
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            log(args, epoch=epoch, loss=total.item() / len(x), **evaluate(model, x))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    draw_planes(args, model, x, y, names)
    plot(args)
    return evaluate(model, x)


def generate(args):
    """The work of --predict: the units of a file's rows into OUT/units.csv."""
    args.weights = args.weights or f"{args.out}/last.pt"
    x = read_table("--predict", args.predict)[0].to(args.device)
    model = build(args, x)
    begin(args)
    x, out = model.scale(x), Path(args.out, "units.csv")
    u = torch.cat([model(part).argmin(1) for part in x.split(4096)])
    far = (x - model.weight[u]).norm(dim=1).tolist()
    with open(out, "w", encoding="utf-8", newline="") as file:
        rows = [(v // args.n_columns, v % args.n_columns) for v in u.tolist()]
        table = [(*at, f"{d:.6g}") for at, d in zip(rows, far, strict=True)]
        csv.writer(file).writerows([("row", "column", "distance"), *table])
    print(line({"file": out, "examples": len(x), **evaluate(model, x)}))
    return 0


@torch.inference_mode()
def evaluate(model, x):
    best = torch.cat([model(part).topk(2, largest=False)[1] for part in x.split(4096)])  # (N, 2)
    u, second = best.T
    qe = (x - model.weight[u]).norm(dim=1).mean()  # eq. (11)
    te = (~model.near[u, second]).float().mean()  # eq. (12)
    return {"qe": qe.item(), "te": te.item()}


def draw_planes(args, model, x, y, names):
    """Write OUT/umatrix.png and OUT/planes.png (the first 64 planes)."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    turns = (torch.arange(6) + 0.5) / 6 if args.topology == "hexagonal" else torch.arange(4) / 4
    turns = 2 * math.pi * (turns if args.topology == "hexagonal" else turns + 0.125)
    corner = torch.stack([turns.cos(), turns.sin()], 1)  # (6 or 4, 2)
    corner = corner * (3**-0.5 if args.topology == "hexagonal" else 2**-0.5)
    place = model.place.cpu()
    cells = (place[:, None] + corner).numpy()  # (U, 6 or 4, 2)

    def paint(axes, values, cmap, title):
        axes.add_collection(PolyCollection(cells, array=values.cpu().numpy(), cmap=cmap))
        axes.set_xlim(cells[..., 0].min(), cells[..., 0].max())
        axes.set_ylim(cells[..., 1].max(), cells[..., 1].min())  # row 0 is the top one
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title(title)
        return axes.collections[0]

    u = torch.cat([model(part).argmin(1) for part in x.split(4096)]).cpu()
    won = u.bincount(minlength=len(place))
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    axes = figure.add_subplot(1, 2, 1)
    figure.colorbar(paint(axes, u_matrix(model), "bone_r", "U-matrix, commonest class"))
    kinds = sorted({*y})
    for v in won.nonzero()[:, 0].tolist() if y else ():
        here = [y[n] for n in (u == v).nonzero()[:, 0].tolist()]
        most = max(kinds, key=here.count)
        colour = f"C{kinds.index(most) % 10}"
        at = {"ha": "center", "va": "center", "fontsize": 8, "fontweight": "bold"}
        at["path_effects"] = [withStroke(linewidth=2, foreground="white")]
        axes.text(*place[v].tolist(), most[:2], color=colour, **at)
    figure.colorbar(paint(figure.add_subplot(1, 2, 2), won, "viridis", "examples won"))
    figure.savefig(Path(args.out, "umatrix.png"), dpi=80)
    side = math.ceil(min(len(names), 64) ** 0.5)
    figure = Figure(figsize=(10, 10), layout="constrained")
    for at, name in enumerate(names[:64], 1):
        paint(figure.add_subplot(side, side, at), model.weight[:, at - 1], "viridis", name)
    figure.savefig(Path(args.out, "planes.png"), dpi=80)


def smoke(args):
    """A short run in a temporary folder, then: (3) is the mean it says, example by example."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    x = load_data(args)[0]
    model = build(args, x)
    x = model.scale(x)
    theta = neighbourhood("gaussian", model.d2, model.k, 1.0)[model(x).argmin(1)]  # (N, U)
    want = (theta.T @ x) / theta.sum(0)[:, None]  # (U, D)
    batch_epoch(model, x, "gaussian", 1.0, 1.0)
    return report(args, **metrics, batch_gap=(model.weight - want).abs().max())


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
    kinds = ["gaussian", "bubble", "mexican_hat", "half"]
    add("--n_epochs", type=at_least(0), default=30, help="passes over the data, S of (8)")
    add("--training", choices=["batch", "online"], default="batch", help="by (3) or by (2)")
    add("--order", choices=["random", "sequential"], default="random", help="of examples, online")
    add("--lr", type=at_least(0.0), help="alpha; default: 1 for batch, 0.5 at first for online")
    add("--neighbourhood", choices=kinds, default="gaussian", help="theta")
    add("--sigma", type=at_least(1e-3), help="reach of theta at first; default: longer side / 2")
    add("--sigma_end", type=at_least(1e-3), default=0.4, help="reach of theta at the end")
    add(
        "--topology",
        choices=["rectangular", "hexagonal"],
        default="rectangular",
        help="of the grid",
    )
    add("--n_rows", type=at_least(1, 1001), default=20, help="rows R of the grid")
    add("--n_columns", type=at_least(1, 1001), default=20, help="columns C of the grid")
    add(
        "--init",
        choices=["pca", "random"],
        default="pca",
        help="by (10), or normal around the mean",
    )
    add("--dataset", choices=["digits", "iris", "csv"], default="digits", help="what to map")
    add("--data_root", default="data", help="the file of --dataset csv")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", metavar="FILE", help="csv whose rows to map, by --weights or OUT/last.pt")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    if parser.parse_args(argv).smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    if not 2 <= args.n_rows * args.n_columns <= 10_000:
        fail("--n_rows, --n_columns: a map has 2 to 10,000 units; type other numbers of them")
    if args.training == "batch" and args.neighbourhood == "mexican_hat":
        fail("--neighbourhood mexican_hat: has weights below 0; type --training online with it")
    args.sigma = args.sigma or max(args.n_rows, args.n_columns) / 2
    args.lr = (1.0 if args.training == "batch" else 0.5) if args.lr is None else args.lr
    return args


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
