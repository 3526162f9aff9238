# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "pillow>=10,<13",
#                 "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""CRNN: reads a line of text of any length, without being told where its letters are.

Paper: Shi, Bai & Yao, "An End-to-End Trainable Neural Network for Image-based Sequence Recognition
and Its Application to Scene Text Recognition", TPAMI 2017, arXiv 1507.05717; its loss and its beam
search: Graves, Fernandez, Gomez & Schmidhuber, "Connectionist Temporal Classification", ICML 2006.

    x_1 .. x_T = columns of CNN(image)                        (1)  32 rows become one
    y_t = softmax(W BiLSTM(W' BiLSTM(x)_t + b')_t + b)        (2)  a letter or a blank, each column
    p(l | y) = sum_{pi: B(pi) = l} prod_t y_t[pi_t]           (3)  B: merge repeats, drop blanks
    L = -log p(l | y)                                         (4)  CTC: a sum over paths
    l = B(argmax y_1, .., argmax y_T)                         (5)  greedy: of the best path alone
    b_t(l) = y_t[-] (a + b)_{t-1}(l),  a_t(l) = y_t[l_n] (a_{t-1}(l) + c_{t-1}(l_{<n}))  (6)

The net sees columns, the label is a word: which column shows which letter is not known. (3) adds up
all ways to write the word in T columns, blanks (class 0) between them. A letter that stays is one
letter; one that comes twice needs a blank in between, so T must be at least the letters and the
repeats. The likeliest path need not spell the likeliest word: (5) may say nothing at all where most
of (3) says "a". Prefix beam search (6) keeps, column by column, the best beginnings l, each with
the probabilities b and a that its last column was a blank or a letter. A letter goes on in its next
column (a), or is new after the beginning without it: c is b if that ends in the same letter, else
a + b.

At first all columns are best read as blanks, and training may rest there for long: --blank_bias
holds the blanks down at the start. Ten digits are read after some hundred steps, all 36 letters
not after a thousand. In the upper layers the maps are halved in height alone: text is wide.

Shapes: B batch, S = 32 height and W img_width of an image, T columns, K letters and the blank;
images x (B, 1, 32, W) as bytes, scores (T, B, K).
Unlike the paper: Adam for ADADELTA; a warm-up and a cosine for the steps of the learning rate; no
lexicon; batch norm after three of the convolutions, as in the released code; all images are scaled
to one width. Strings of digits in matplotlib's fonts by default, tested on fonts not seen before.
Folder: DATA_ROOT/train.tags and DATA_ROOT/test.tags, a line an image: its path from there, a blank,
its text (as IIIT5K is given); upper case is read as lower case.
Weights: the released crnn.pth (37 classes), with --config paper.

    python crnn.py                                       strings drawn on the spot
    python crnn.py --config paper --dataset iiit5k --n_rendered 20000
    python crnn.py --config paper --weights crnn.pth --predict sign.jpg
    python crnn.py --smoke                               seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"max_length": 2, "img_width": 32}
SMOKE |= {"n_rendered": 2000, "dim": 8, "hidden": 48, "lr": 5e-3}
BARS = {"test_acc": (0.76, 1.0), "ctc_gap": (0.0, 1e-5)}
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
CONFIGS = {"strings": {}, "paper": {"dim": 64, "hidden": 256, "n_rendered": 20_000}}
CONFIGS["paper"] |= {"alphabet": LETTERS, "n_epochs": 30}
# Fonts that ship with matplotlib: to train, to test.
FONTS = [
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif-Bold",
    "STIXGeneralBol",
]
FONTS += ["DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneralItalic", "cmss10", "cmr10", "cmb10"]
NEW_FONTS = ["DejaVuSerif", "DejaVuSans-BoldOblique", "STIXGeneral", "DejaVuSansMono-Bold"]


# --- the idea ------------------------------------------------------------------------------------
def ctc(scores, text, lengths):
    """Mean loss of scores (T, B, K) for texts (B, L) of the given lengths; padding is not read."""
    T, B, _ = scores.shape
    full = torch.full((B,), T, dtype=torch.long)
    y = scores.float().log_softmax(2)
    loss = F.ctc_loss(y, text, full, lengths, reduction="sum", zero_infinity=True)
    return loss / B  # eq. (4)


def best_path(scores):
    """Classes (B, T) of the best path of scores (T, B, K); 0 where there is nothing to read."""
    best = scores.argmax(2).T  # (B, T)
    repeated = F.pad(best[:, 1:] == best[:, :-1], (1, 0))
    return best.masked_fill(repeated, 0)  # eq. (5)


def prefix_beam_search(y, width):
    """The likeliest text, a tuple of classes, of log probabilities y (T, K), and its own log
    probability; width beginnings are kept."""
    beams = {(): (0.0, -math.inf)}  # the end was a blank, or a letter
    for row in y.tolist():
        grown = defaultdict(lambda: (-math.inf, -math.inf))
        for text, (blank, letter) in beams.items():
            for k, p in enumerate(row):
                if k == 0:
                    parts = [(text, 0, either(blank, letter) + p)]
                elif text[-1:] == (k,):
                    parts = [(text, 1, letter + p), ((*text, k), 1, blank + p)]
                else:
                    parts = [((*text, k), 1, either(blank, letter) + p)]
                for key, kind, value in parts:
                    old = grown[key]
                    new = either(old[kind], value)  # eq. (6)
                    grown[key] = (new, old[1]) if kind == 0 else (old[0], new)
        beams = dict(sorted(grown.items(), key=lambda item: -either(*item[1]))[:width])
    text = next(iter(beams))
    return text, either(*beams[text])


def either(a, b):
    """log(e^a + e^b)"""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))  # eq. (3)


# --- model ---------------------------------------------------------------------------------------
class BidirectionalLSTM(nn.Module):
    """Columns (T, B, n_in) -> (T, B, n_out)."""

    def __init__(self, n_in, hidden, n_out):
        super().__init__()
        self.rnn = nn.LSTM(n_in, hidden, bidirectional=True)
        self.embedding = nn.Linear(2 * hidden, n_out)

    def forward(self, x):
        return self.embedding(self.rnn(x)[0])


class CRNN(nn.Module):
    """Images (B, 1, 32, W) -> scores (T, B, K)."""

    def __init__(self, dim, hidden, n_classes):
        super().__init__()
        widths = [1, dim, 2 * dim, 4 * dim, 4 * dim, 8 * dim, 8 * dim, 8 * dim]
        pools = {0: (2, 2, 0), 1: (2, 2, 0)}  # later ones keep the width
        pools |= dict.fromkeys((3, 5), ((2, 2), (2, 1), (0, 1)))
        self.cnn = nn.Sequential()
        for i in range(7):
            conv = nn.Conv2d(widths[i], widths[i + 1], 2 if i == 6 else 3, padding=int(i < 6))
            self.cnn.add_module(f"conv{i}", conv)
            if i in (2, 4, 6):
                self.cnn.add_module(f"batchnorm{i}", nn.BatchNorm2d(widths[i + 1]))
            self.cnn.add_module(f"relu{i}", nn.ReLU(inplace=True))
            if i in pools:
                self.cnn.add_module(f"pooling{i}", nn.MaxPool2d(*pools[i]))
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        first = BidirectionalLSTM(8 * dim, hidden, hidden)
        self.rnn = nn.Sequential(first, BidirectionalLSTM(hidden, hidden, n_classes))

    def forward(self, x):
        columns = self.cnn(x)[:, :, 0].permute(2, 0, 1)  # (T, B, D)  eq. (1)
        return self.rnn(columns)  # (T, B, K)  eq. (2)


# --- data ----------------------------------------------------------------------------------------
# Copied from vision/resnet.py
def find_images(root):
    """All image files below a folder, or the one file that root is."""
    kinds, root = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}, Path(root)
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in kinds)


def render(fonts, n, args, seed):
    """n strings of 1 to max_length letters in one of fonts, on grey of any shade: bytes
    (n, 1, 32, W), and their texts."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.transforms.functional import pil_to_tensor

    folder, draw = Path(matplotlib.get_data_path(), "fonts", "ttf"), random.Random(seed)
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 28) for name in fonts]
    images, texts = [torch.zeros(0, 32, args.img_width, dtype=torch.uint8)], []
    for _ in range(n):
        text = "".join(draw.choices(args.alphabet, k=draw.randint(1, args.max_length)))
        font, ground = draw.choice(fonts), draw.randrange(256)
        ink = (ground + draw.randint(80, 176)) % 256
        left, top, right, bottom = font.getbbox(text)
        edge = [draw.randint(1, 5) for _ in range(4)]
        image = Image.new("L", (right - left + edge[0] + edge[1], bottom - top + edge[2] + edge[3]))
        image.paste(ground, (0, 0, *image.size))
        ImageDraw.Draw(image).text((edge[0] - left, edge[2] - top), text, ink, font)
        images.append(pil_to_tensor(image.resize((args.img_width, 32))))
        texts.append(text)
    return torch.cat(images)[:, None], texts


def read_line(path, args):
    """An image of text as bytes (1, 32, W), grey, turned as EXIF says."""
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("L")
        return pil_to_tensor(image.resize((args.img_width, 32)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        fail(f"{path}: cannot be read as an image ({error}); mend or remove it")


def read_tags(path, args):
    """The images (N, 1, 32, W) that a list names, and their texts."""
    try:
        rows = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--data_root: {path} cannot be read ({error}); --dataset strings needs no file")
    images, texts = [], []
    for at, row in enumerate(rows, 1):
        if not row.strip():
            continue
        name, _, text = row.strip().partition(" ")
        text = text.strip().lower()
        repeats = sum(a == b for a, b in itertools.pairwise(text))
        if odd := [c for c in text if c not in args.alphabet]:
            fail(f"{path}, line {at}: {odd[0]!r} is not in --alphabet; add it or mend the line")
        if not text or len(text) + repeats > columns(args):
            fail(f"{path}, line {at}: {text!r} does not fit in {columns(args)} columns; mend it")
        images.append(read_line(path.parent / name, args))
        texts.append(text)
    if not images:
        fail(f"--data_root: {path} names no image")
    return torch.stack(images), texts


def load_data(args):
    """Return (x, text, lengths) to learn from and to be tested on: bytes x (N, 1, 32, W), classes
    (N, L) from 1 on, padded with 0, whole on the device."""
    x, texts = render(FONTS, args.n_rendered, args, f"{args.seed} train")
    parts = [(x, texts), render(NEW_FONTS, 500, args, f"{args.seed} test")]
    if args.dataset != "strings":
        root = Path(args.data_root, "" if args.dataset == "folder" else "IIIT5K")
        read = [read_tags(root / f"{part}.tags", args) for part in ("train", "test")]
        parts = [(torch.cat([x, read[0][0]]), texts + read[0][1]), read[1]]
    made = []
    for x, texts in parts:
        codes = [torch.tensor([args.alphabet.index(c) + 1 for c in text]) for text in texts]
        text = nn.utils.rnn.pad_sequence(codes, batch_first=True)
        made.append((x.to(args.device), text.to(args.device), (text > 0).sum(1)))
    return made


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def columns(args):
    """T of an image of width W."""
    return args.img_width // 4 + 1


def build(args):
    """Return the model, on the device, with --weights if there are any."""
    model = CRNN(args.dim, args.hidden, len(args.alphabet) + 1)
    with torch.no_grad():
        model.rnn[1].embedding.bias[0] -= args.blank_bias
    if args.weights:
        load_weights(args.weights, model)
    return model.to(args.device)


# Copied from vision/resnet.py
def rate(done, total, warmup):
    """Share of --lr after done of total epochs: up in a straight line, down along a cosine."""
    if done < warmup:
        return done / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / max(total - warmup, 1e-9))


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the test set."""
    torch.manual_seed(args.seed)
    (x, text, lengths), test = load_data(args)
    model = build(args)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, (args.b1, args.b2), fused=True)
    state = {"model": model, "optimizer": optimizer}
    epoch = begin(args, state)
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    n = max(1, len(x) // args.batch_size)  # whole batches
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(x)).split(args.batch_size)[:n]
            for at, i in enumerate(tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None)):
                share = rate(epoch + (at + 1) / n, args.n_epochs, args.warmup_epochs)
                optimizer.param_groups[0]["lr"] = args.lr * share
                on = i.to(args.device)
                with cast:
                    scores = model(to_unit(x[on]))
                loss = ctc(scores, text[on], lengths[i])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                total += loss.detach()
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            log(args, epoch=epoch, loss=total.item() / n, **evaluate(model, *test))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    draw(args, model, test[0][:6])
    return evaluate(model, *test)


def to_unit(x):
    """Bytes -> [-1, 1]"""
    return x / 127.5 - 1


@torch.inference_mode()
def evaluate(model, x, text, lengths):
    """Loss, and share of texts that greedy decoding reads to the letter."""
    model.eval()
    scores = torch.cat([model(to_unit(part)) for part in x.split(250)], 1)  # (T, N, K)
    said = best_path(scores)
    order = (said == 0).int().sort(dim=1, stable=True)[1]  # what is read, moved to the left
    said, length = said.gather(1, order), max(said.shape[1], text.shape[1])
    pad = [F.pad(part, (0, length - part.shape[1])) for part in (said, text)]
    right = (pad[0] == pad[1]).all(1)
    return {"test_loss": ctc(scores, text, lengths).item(), "test_acc": right.float().mean().item()}


def as_text(args, classes):
    return "".join(args.alphabet[k - 1] for k in classes if k)


@torch.inference_mode()
def draw(args, model, x):
    """OUT/columns.png: images (N, 1, 32, W), and under each the first choice of every column."""
    from matplotlib.figure import Figure

    scores = model.eval()(to_unit(x)).cpu()
    figure = Figure((0.28 * len(scores) + 1, 1.3 * len(x)), layout="constrained")
    for at, (image, path) in enumerate(zip(x.cpu(), scores.argmax(2).T.tolist(), strict=True), 1):
        title = as_text(args, best_path(scores)[at - 1].tolist())
        axes = figure.add_subplot(len(x), 1, at, yticks=[], title=title)
        axes.imshow(image[0], cmap="gray", aspect="auto", extent=(0, len(path), 0, 1))
        strip = [args.alphabet[k - 1] if k else "-" for k in path]
        axes.set_xticks([t + 0.5 for t in range(len(path))], strip)
    figure.savefig(Path(args.out, "columns.png"))


def generate(args):
    """The work of --predict: what each image says, by beam search, and how sure that is."""
    args.weights = args.weights or f"{args.out}/last.pt"
    if not (paths := find_images(args.predict)):
        fail(f"--predict {args.predict}: neither an image nor a folder of some; name one")
    model = build(args).eval()
    begin(args)
    x = torch.stack([read_line(path, args) for path in paths]).to(args.device)
    with torch.inference_mode():
        y = torch.cat([model(to_unit(part)) for part in x.split(250)], 1).log_softmax(2).cpu()
    for path, rows in zip(paths, y.unbind(1), strict=True):
        text, p = prefix_beam_search(rows, args.beam)
        print(path, as_text(args, text), f"{math.exp(p):.1%}", sep="  ")
    draw(args, model, x[:6])
    return 0


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    y = torch.randn(6, 1, 4).log_softmax(2)  # a beam that drops nothing knows (3) to the last digit
    text, p = prefix_beam_search(y[:, 0], 10_000)
    loss = ctc(y, torch.tensor([text]), torch.tensor([len(text)])).item()
    return report(args, **metrics, ctc_gap=abs(loss + p))


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
    add("--n_epochs", type=at_least(0), default=10, help="passes over the training set")
    add("--batch_size", type=at_least(2), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=3e-3, help="largest learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--grad_clip", type=at_least(1e-6), default=5.0, help="largest norm of the gradient")
    add("--warmup_epochs", type=at_least(0), default=1, help="epochs in which --lr is reached")
    add("--config", choices=[*CONFIGS], default="strings", help="named set of defaults")
    add("--dim", type=at_least(1), default=16, help="channels of the first convolution")
    add("--hidden", type=at_least(1), default=64, help="units of an LSTM, each way")
    add(
        "--blank_bias",
        type=at_least(0.0),
        default=3.0,
        help="taken from the blank's score at first",
    )
    add("--alphabet", default=LETTERS[:10], help="letters that can be read")
    add(
        "--dataset", choices=["strings", "iiit5k", "folder"], default="strings", help="text to read"
    )
    add("--data_root", default="data", help="folder of the data sets; for folder, of the lists")
    add("--img_width", type=at_least(16), default=100, help="width W that images are scaled to")
    add("--n_rendered", type=at_least(0), default=4000, help="strings drawn to train on")
    add("--max_length", type=at_least(1), default=6, help="letters of a string at most")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", help="image, or folder of images, to read; nothing is trained")
    add("--beam", type=at_least(1), default=10, help="beginnings kept by --predict's beam search")
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
    if not args.alphabet or len({*args.alphabet}) < len(args.alphabet) or " " in args.alphabet:
        fail(f"--alphabet {args.alphabet!r}: give each letter once, and no blank")
    if 2 * args.max_length - 1 > columns(args):
        fail(f"--max_length {args.max_length}: too long for --img_width {args.img_width}")
    if args.dataset == "strings" and args.n_rendered < 2:
        fail(f"--n_rendered {args.n_rendered}: --dataset strings consists of them; take 2 or more")
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
