# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""word2vec: skip-gram and CBOW, with negative sampling or a hierarchical softmax.

Papers: Mikolov, Chen, Corrado & Dean, "Efficient Estimation of Word Representations in Vector
Space", 2013, arXiv 1301.3781; Mikolov, Sutskever, Chen, Corrado & Dean, "Distributed
Representations of Words and Phrases and their Compositionality", NeurIPS 2013, arXiv 1310.4546;
Rong, "word2vec Parameter Learning Explained", 2014, arXiv 1411.2738.

    h = v_w, to predict each w' around w                       (1)  skip-gram
    h = mean of v_w' around w, to predict w                    (2)  cbow: what comes out is a
                                                                    distribution, not a vector
    L = -log s(u_o h) - sum_{k=1..K} log s(-u_k h)             (3)  ns: o is to be predicted, the k
                                                                    are noise; s(x) = 1/(1 + e^-x)
    P(k) ~ count_k^0.75                                        (4)  the noise
    P(o | h) = prod_{nodes n above o} s((1 - 2 b_n) u_n h)     (5)  hs: b_n = 0 or 1 is the branch
    L = -log P(o | h)                                          (6)  to o in a Huffman tree
    dL/d(u h) = s(u h) - y                                     (7)  y: 1 where s should be 1, else 0
    keep w with probability sqrt(t / f_w) + t / f_w            (8)  --subsample t; f_w is its share
    lr <- lr max(1 - done / total, 0.0001)                     (9)

Two things that are often mixed up: sub-sampling (8) drops frequent words before windows are made,
which widens them; negative sampling (3) replaces a softmax over V words by 1 + K yes-or-no
questions. Around w are the words up to r places away, in its sentence, r = 1 .. --window by chance.

Nothing here has a gradient that is V rows long: the rows that a step has used are added to, in
place. The noise of a step is the same for all its words: 64 words, each of which counts K / 64, so
that all scores of the noise are one product of two matrices, taken once for h and not for each o.

Shapes: V words, D numbers in a vector, P places in the text (rows of h), n pairs of a row and an
output (a word, or a node of the tree), M words of noise; h (P, D), u (n, D), syn0 (V, D), syn1 (V,
D) or (V - 1, D), ids (T,) of the text.
Unlike the paper: steps of many places at once, whose changes add up; noise that happens to be o is
kept; (8) as in the official code, as are the gradient of h that each word of (2) gets whole, not
its share, v drawn from +-1/2D, u = 0, and the tree; the sigmoid is not cut off at +-6.

    python word2vec.py                                     planted topics, nothing to download
    python word2vec.py --nearest t0w3                      with OUT/last.pt
    python word2vec.py --dataset tinyshakespeare --n_epochs 20
    python word2vec.py --dataset tinyshakespeare --nearest "king - man + woman"
    python word2vec.py --dataset file --data_root words.txt --arch cbow --loss hs --lr 0.05
    python word2vec.py --smoke                             seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import difflib
import heapq
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"dim": 32, "n_epochs": 3, "subsample": 0.0}
BARS = {"purity": (0.9, 1.0), "start_gap": (0.0, 1e-5)}
SHARED = 64  # words of noise in a step
FONTS = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei", "PingFang SC"]


# --- model ---------------------------------------------------------------------------------------
class Word2Vec(nn.Module):
    """Vectors of words, syn0, and of what they are asked about, syn1; no autograd."""

    def __init__(self, n_words, n_outputs, dim):
        super().__init__()
        self.syn0 = nn.Parameter((torch.rand(n_words, dim) - 0.5) / dim, requires_grad=False)
        self.syn1 = nn.Parameter(torch.zeros(n_outputs, dim), requires_grad=False)


# Copied from nlp/huffman.py
def huffman_tree(weights):
    """The inner nodes (weight, child, child) that S weights call for, numbered from S on; the last
    one is the root. Ties go by (weight, number), so that the tree is always the same."""
    heap, tree = [(weight, node) for node, weight in enumerate(weights)], []
    heapq.heapify(heap)
    while len(heap) > 1:
        (w_a, a), (w_b, b) = heapq.heappop(heap), heapq.heappop(heap)
        tree.append((w_a + w_b, a, b))
        heapq.heappush(heap, (w_a + w_b, len(weights) + len(tree) - 1))
    return tree


# Copied from nlp/huffman.py
def huffman_paths(tree):
    """For each symbol, the nodes from the root down to it and the branches taken there: a list of
    (node, 0 or 1), empty if there is but one symbol."""
    S = len(tree) + 1
    paths = {S + len(tree) - 1: []}
    for node, (_, a, b) in reversed([*enumerate(tree, S)]):
        paths |= {a: [*paths[node], (node, 0)], b: [*paths[node], (node, 1)]}
    return [paths[symbol] for symbol in range(S)]


# --- the idea ------------------------------------------------------------------------------------
class Questions(NamedTuple):
    """What is asked about each word: rows of syn1 and y, those of word w from start[w] on."""

    node: torch.Tensor
    y: torch.Tensor  # float
    start: torch.Tensor  # (V + 1,)

    def about(self, word):
        """For words (n,): which of them, node and y of all their questions."""
        many = self.start.diff()[word]
        which = torch.arange(len(word), device=word.device).repeat_interleave(many)
        first = self.start[word] - (many.cumsum(0) - many)  # (n,)
        at = first[which] + torch.arange(len(which), device=word.device)
        return which, self.node[at], self.y[at]


def questions(counts, loss, device="cpu"):
    """The word itself (ns), or the way down to it in the Huffman tree of counts (hs)."""
    V, ways = len(counts), [[(i, 0)] for i in range(len(counts))]
    if loss == "hs":
        ways = [[(n - V, b) for n, b in path] for path in huffman_paths(huffman_tree(counts))]
    steps = torch.tensor([step for way in ways for step in way], device=device)  # (n, 2)
    start = torch.tensor([0, *map(len, ways)], device=device).cumsum(0)
    return Questions(steps[:, 0], 1.0 - steps[:, 1], start)


def row_bags(table, index, row, P, weight=None):
    """Means, or sums with a weight (n,), of table[index] over the rows, sorted: (P, D)."""
    start = torch.searchsorted(row, torch.arange(P, device=row.device))
    mode = "mean" if weight is None else "sum"
    return F.embedding_bag(index, table, start, mode=mode, per_sample_weights=weight)


def logistic(h, syn1, row, node, y):
    """Sum of -log P of answers y (n,); its gradients for h (P, D) and syn1[node] (n, D)."""
    u, x = syn1.index_select(0, node), h.index_select(0, row)  # (n, D)
    score = (u * x).sum(1)  # (n,)
    g = score.sigmoid() - y  # (n,)  eq. (7)
    loss = F.softplus(score).sum() - y @ score  # eq. (3), (5), (6)
    return loss, row_bags(syn1, node, row, len(h), g), g[:, None] * x


def noise_logistic(h, syn1, words, weight):
    """The second part of (3): the same words (M,) for all of h (P, D), times weight (P,)."""
    u = syn1.index_select(0, words)  # (M, D)
    score = h @ u.T  # (P, M)
    g = score.sigmoid() * weight[:, None]  # eq. (7)
    return weight @ F.softplus(score).sum(1), g @ u, g.T @ h  # eq. (3)


def keep_chance(counts, t):
    """Of each word under sub-sampling; 1 for t = 0."""
    ratio = (t or math.inf) * counts.sum() / counts
    return (ratio.sqrt() + ratio).clamp(max=1)  # eq. (8)


def linear_rate(lr, done):
    return lr * max(1 - done, 1e-4)  # eq. (9)


def word_windows(ids, sentence, window):
    """In random order the words (P,) that have any around them, and all pairs of one of those, as
    a number of a row, and a word around it: (n,), (n,), sorted by row."""
    reach = torch.randint(1, window + 1, (len(ids), 1), device=ids.device)
    offset = torch.arange(-window, window + 1, device=ids.device)
    order = torch.randperm(len(ids), device=ids.device)
    at = order[:, None] + offset  # (T, 2 window + 1)
    inside = (offset != 0) & (offset.abs() <= reach) & (at >= 0) & (at < len(ids))
    inside &= sentence[at.clamp(0, len(ids) - 1)] == sentence[order, None]
    order, at, inside = (x[inside.any(1)] for x in (order, at, inside))
    row, column = inside.nonzero(as_tuple=True)
    return ids[order], row, ids[at[row, column]]


# --- data ----------------------------------------------------------------------------------------
class Corpus(NamedTuple):
    """The text, whole on the device, without the words that are too rare."""

    ids: torch.Tensor  # (T,) like the number of the sentence of each
    sentence: torch.Tensor
    words: list  # (V,) the most frequent first
    counts: list  # (V,)


def planted(topics=8, words=12, sentences=1500, length=10):
    """Sentences, each about one topic: the words of a topic are what should become neighbours."""
    topic = torch.randint(topics, (sentences, 1)).expand(-1, length)
    pairs = torch.stack([topic, torch.randint(words, (sentences, length))], 2).tolist()
    return [[f"t{t}w{w}" for t, w in row] for row in pairs]


def load_data(args):
    """Return the Corpus."""
    torch.manual_seed(args.seed)
    file = Path(args.data_root, {"file": ""}.get(args.dataset, "tinyshakespeare/input.txt"))
    try:
        rows = planted()
        if args.dataset != "planted":
            text = file.read_text(encoding="utf-8").lower()
            rows = [re.findall(r"[\w']+", row) for row in text.splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--data_root: {file} cannot be read ({error}); name a text in UTF-8")
    often = Counter(word for row in rows for word in row)
    words = sorted((w for w in often if often[w] >= args.min_count), key=lambda w: (-often[w], w))
    known = {word: i for i, word in enumerate(words)}
    rows = [[known[word] for word in row if word in known] for row in rows]
    if len(words) < 2 or max(map(len, rows)) < 2:
        fail(f"--min_count {args.min_count}: leaves no two words side by side; lower it")
    ids = torch.tensor([i for row in rows for i in row])
    sentence = torch.arange(len(rows)).repeat_interleave(torch.tensor([*map(len, rows)]))
    return Corpus(ids.to(args.device), sentence.to(args.device), words, [often[w] for w in words])


class Step(NamedTuple):
    """What is learned at once from P places of the text."""

    source: tuple  # words to make h (P, D) from, and the rows of h that they belong to
    asked: tuple  # row of h, node and y of each question about the words to predict: (n,)
    many: torch.Tensor  # (P,) words to predict
    noise: torch.Tensor  # (M,)
    done: float  # share of the epoch before this step


def w2v_steps(args, corpus, asked):
    """The Steps of an epoch. Windows are made for a part of the text at a time."""
    counts = torch.tensor(corpus.counts, device=args.device).float()
    kept = torch.rand_like(p := keep_chance(counts, args.subsample)[corpus.ids]) < p
    parts = zip(*(x[kept].split(100_000) for x in (corpus.ids, corpus.sentence)), strict=True)
    total, B = max(1, int(kept.sum())), args.batch_size
    for part, (ids, sentence) in enumerate(parts):
        centre, row, around = word_windows(ids, sentence, args.window)
        P, every = len(centre), torch.arange(len(centre), device=args.device)
        source, to = ((centre, every), (around, row))[:: 1 if args.arch == "skipgram" else -1]
        which, node, y = asked.about(to[0])  # (n,)
        bounds = torch.arange(0, P + B, B, device=args.device)
        out, many = to[1][which], to[1].bincount(minlength=P).float()
        i, j = (torch.searchsorted(x, bounds).tolist() for x in (source[1], out))
        words = (counts**0.75).multinomial(SHARED * len(i), replacement=True)  # eq. (4)
        for s, at in enumerate(range(0, P, B)):
            a, b = slice(*i[s : s + 2]), slice(*j[s : s + 2])
            done = (part * 100_000 + len(ids) * at / P) / total
            pair = (source[0][a], source[1][a] - at), (out[b] - at, node[b], y[b])
            yield Step(*pair, many[at : at + B], words[s * SHARED :][:SHARED], done)


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args, corpus):
    n_outputs = len(corpus.words) - (args.loss == "hs")
    return Word2Vec(len(corpus.words), n_outputs, args.dim).to(args.device)


def w2v_learn(model, step, arch, K, lr):
    """Take a Step; return the sum of (3) or (6), K = 0, over all words to predict."""
    word, row = step.source
    if arch == "skipgram":
        h = model.syn0.index_select(0, word)  # (P, D)  eq. (1)
    else:
        h = row_bags(model.syn0, word, row, len(step.many))  # eq. (2)
    loss, dh, du = logistic(h, model.syn1, *step.asked)
    if K:
        more, dh_noise, du_noise = noise_logistic(h, model.syn1, step.noise, step.many * K / SHARED)
        loss, dh = loss + more, dh + dh_noise
        model.syn1.index_add_(0, step.noise, du_noise, alpha=-lr)
    model.syn1.index_add_(0, step.asked[1], du, alpha=-lr)
    model.syn0.index_add_(0, word, dh.index_select(0, row) if arch == "cbow" else dh, alpha=-lr)
    return loss


@torch.inference_mode()
def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the vectors."""
    corpus = load_data(args)
    model, asked = build(args, corpus), questions(corpus.counts, args.loss, args.device)
    if args.weights and not args.resume:
        load_weights(args.weights, model)
    K, state = args.n_negatives if args.loss == "ns" else 0, {"model": model}
    loss, epoch = math.nan, begin(args, state)
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            total, pairs = torch.zeros((2, 1), device=args.device)  # summed there: no sync
            parts = w2v_steps(args, corpus, asked)
            for step in tqdm(parts, f"epoch {epoch + 1}", leave=False, disable=None):
                lr = linear_rate(args.lr, (epoch + step.done) / args.n_epochs)
                total += w2v_learn(model, step, args.arch, K, lr)
                pairs += step.many.sum()
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch, loss = epoch + 1, (total / pairs).item()
            save(args, state, epoch)
            log(args, epoch=epoch, loss=loss, **evaluate(model, corpus))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    pairs = zip(corpus.words, model.syn0.tolist(), strict=True)  # in the text format of gensim, too
    rows = [" ".join([word, *map("{:.6g}".format, vector)]) for word, vector in pairs]
    rows = [f"{len(rows)} {args.dim}", *rows, ""]
    Path(args.out, "vectors.txt").write_text("\n".join(rows), encoding="utf-8")
    draw(args, model.syn0[:100].cpu(), corpus.words[:100])
    return {"loss": loss, **evaluate(model, corpus)}


def draw(args, vectors, words):
    """Write OUT/vectors.png: the two directions in which the vectors differ most."""
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    x = (x := vectors - vectors.mean(0)) @ torch.linalg.svd(x, full_matrices=False).Vh[:2].T
    font = next((font.name for font in fontManager.ttflist if font.name in FONTS), None)
    if font is None and max("".join(words)) > "\u2e7f":  # matplotlib's own font ends before Chinese
        print("no font for:", *(f"{i} {word}" for i, word in enumerate(words)), file=sys.stderr)
        words = range(len(words))
    axes = (figure := Figure(figsize=(8, 8), layout="constrained")).add_subplot()
    axes.scatter(*x.T, s=4)
    for point, word in zip(x, words, strict=True):
        axes.annotate(word, point, fontsize=8, fontfamily=font)
    figure.savefig(Path(args.out, "vectors.png"))


@torch.inference_mode()
def generate(args):
    """Print the neighbours of --nearest, a word or a sum of words."""
    corpus = load_data(args)
    model, query, used = build(args, corpus), 0, []
    load_weights(args.weights or f"{args.out}/last.pt", model)
    vectors = F.normalize(model.syn0)  # (V, D)
    for sign, word in re.findall(r"([+-]?)\s*([^\s+-]+)", args.nearest.lower()) or [("", "")]:
        if word not in corpus.words:
            like = difflib.get_close_matches(word, corpus.words, 3) or corpus.words[:3]
            fail(f"--nearest: {word} is not in the vocabulary; try {', '.join(like)}")
        used.append(corpus.words.index(word))
        query = query + vectors[used[-1]] * (-1 if sign == "-" else 1)
    cosine = vectors @ F.normalize(query, dim=0)  # (V,)
    cosine[used] = -2
    for i in cosine.topk(min(10, len(cosine) - len({*used}))).indices.tolist():
        print(f"{cosine[i]:.3f}  {corpus.words[i]}")
    return 0


@torch.inference_mode()
def evaluate(model, corpus):
    """Of planted words: share of the same topic among the 5 nearest neighbours."""
    topic = [re.fullmatch(r"t(\d+)w\d+", word) for word in corpus.words]
    if not all(topic):
        return {}
    topic, n = torch.tensor([int(match[1]) for match in topic]), min(5, len(topic) - 1)
    cosine = (v := F.normalize(model.syn0.cpu())) @ v.T - 2 * torch.eye(len(topic))
    return {"purity": (topic[cosine.topk(n).indices] == topic[:, None]).float().mean().item()}


def smoke(args):
    """A short run in a temporary folder, then the loss that all have at the start."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    args.loss, K, corpus = "ns", args.n_negatives, load_data(args)
    step = next(w2v_steps(args, corpus, questions(corpus.counts, "ns", args.device)))
    start = w2v_learn(build(args, corpus), step, args.arch, K, 0.0) / step.many.sum()
    return report(args, **metrics, start_gap=abs(start - (1 + K) * math.log(2)))


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
    sets = ["planted", "tinyshakespeare", "file"]
    add("--arch", choices=["skipgram", "cbow"], default="skipgram", help="(1) or (2)")
    add("--loss", choices=["ns", "hs"], default="ns", help="(3) or (6)")
    add("--n_negatives", type=at_least(1), default=5, help="words of noise K for a word, of (3)")
    add("--dim", type=at_least(2), default=100, help="numbers in a vector D")
    add("--window", type=at_least(1), default=5, help="most places away that is still around")
    add("--subsample", type=at_least(0.0), default=1e-3, help="t of (8); 0: keep all words")
    add("--dataset", choices=sets, default="planted", help="planted needs no files")
    add("--data_root", default="data", help="folder of the data sets, or the file")
    add("--min_count", type=at_least(1), default=5, help="rarer words are left out")
    add("--n_epochs", type=at_least(0), default=5, help="passes over the training set")
    add("--batch_size", type=at_least(1), default=64, help="examples per step")
    add("--lr", type=at_least(0.0), default=0.025, help="sgd: learning rate at the start")
    add("--weights", help="state dict or checkpoint to load")
    add("--nearest", metavar="WORDS", help="only show neighbours, from --weights or OUT/last.pt")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    if parser.parse_args(argv).smoke:
        parser.set_defaults(**SMOKE)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.nearest is not None:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
