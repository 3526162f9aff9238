# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""BiLSTM-CRF: a tagger that scores whole sequences of tags, for word segmentation, names, POS.

Papers: Huang, Xu & Yu, "Bidirectional LSTM-CRF Models for Sequence Tagging", 2015, arXiv
1508.01991; Lample, Ballesteros, Subramanian, Kawakami & Dyer, "Neural Architectures for Named
Entity Recognition", NAACL 2016, arXiv 1603.01360.

    P_t = W [h_t forward; h_t backward] + b                    (1)  scores of the K tags at place t
    s(y) = a_{y_1} + sum_{t=1..T} P_{t,y_t} + sum_{t=2..T} A_{y_{t-1},y_t} + e_{y_T}     (2)
    alpha_1 = a + P_1                                          (3)  forward, in logarithms:
    alpha_t(j) = P_tj + log sum_i exp(alpha_{t-1}(i) + A_ij)   (4)  all tags up to t that end in j
    log Z = log sum_j exp(alpha_T(j) + e_j)                    (5)  sum over all K^T sequences
    L = log Z - s(y)                                           (6)  -log p(y | x), never negative
    delta_t(j) = P_tj + max_i (delta_{t-1}(i) + A_ij)          (7)  Viterbi: max instead of sum
    y_{t-1} = argmax_i (delta_{t-1}(i) + A_{i,y_t})            (8)  back from y_T, the best with e
    F1 = 2 right / (found + true)                              (9)  of whole spans, with their kind
    L = -sum_t log softmax(P_t)_{y_t}                          (10)  --head softmax: no A, a, e

Tags say where in a span a character stands: B, M or I, E, S (alone); O is outside. Names carry a
kind, B-NAME, and words to be cut do not. Tags of another form (NN, VB) are spans of length 1. Where
the CRF decodes, moves that no span can make (B-NAME to E-ORG, S to E) cost 10000: never taken, but
no infinity either. In training they are learned like all others.

The sum of (4) is a product with the matrix exp(A), not a cube of B K K numbers; (8) needs no stored
pointers, since delta_{t-1} tells again which i was best, for one j in place of K.

Shapes: B sentences, T characters of the longest one, K tags, V characters known (0 fills up, 1 is
unknown), D numbers of a vector, H units each way; x and y (B, T), mask (B, T) true up to the end
of each sentence, P (B, T, K), A (K, K), a and e (K,).
Unlike the paper: characters alone, without spelling features or word vectors made elsewhere; Adam;
batches of about equal length. As in Lample: dropout; characters seen once are unknown half of the
time. CRF bears the names of pytorch-crf's parameters.

    python bilstm_crf.py                           names in a small grammar, nothing to download
    python bilstm_crf.py --predict 王小明在北江市工作      with OUT/last.pt
    python bilstm_crf.py --dataset resume --data_root data    reads data/ResumeNER/*.char.bmes
    python bilstm_crf.py --dataset folder --data_root mine    mine/{train,dev,test}.txt: a token and
                                                   its tag a line, an empty line after a sentence
    python bilstm_crf.py --head softmax            what the CRF is worth
    python bilstm_crf.py --smoke                   seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import itertools
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
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_epochs": 6}
BARS = {"f1": (0.95, 1.0), "logz_gap": (0.0, 1e-4), "illegal": (0.0, 0.0)}
FILES = {"resume": "ResumeNER/{}.char.bmes", "weibo": "WeiboNER/weiboNER_2nd_conll.{}"}
FILES |= {"ud": "zh_seg/udc/{}.conll", "folder": "{}.txt"}


# --- the idea ------------------------------------------------------------------------------------
class CRF(nn.Module):
    """What it costs to go from tag to tag: a, A and e of (2), under the names of pytorch-crf."""

    def __init__(self, n_tags):
        super().__init__()
        self.start_transitions = nn.Parameter(torch.empty(n_tags).uniform_(-0.1, 0.1))
        self.end_transitions = nn.Parameter(torch.empty(n_tags).uniform_(-0.1, 0.1))
        self.transitions = nn.Parameter(torch.empty(n_tags, n_tags).uniform_(-0.1, 0.1))


def crf_score(crf, P, y, mask):
    """s of tags y (B, T) of scores P (B, T, K): (B,). Where mask is false, y may be any tag."""
    K = P.shape[2]
    moves = crf.transitions.flatten().index_select(0, (y[:, :-1] * K + y[:, 1:]).flatten())
    moves = torch.cat([crf.start_transitions[y[:, :1]], moves.view(len(y), -1)], 1)  # (B, T)
    steps = moves + P.gather(2, y[:, :, None])[:, :, 0]  # (B, T)
    last = y.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]  # (B,)
    return steps.where(mask, 0).sum(1) + crf.end_transitions[last]  # eq. (2)


def crf_log_z(crf, P, mask):
    """log Z (B,) of scores P (B, T, K). Largest values are taken out, so that no exp overflows; one
    that vanishes beside them (by 1e-38) is cut off there, which keeps gradients finite."""
    top = crf.transitions.detach().amax(0)  # (K,)
    A, tiny = (crf.transitions - top).exp(), torch.finfo(P.dtype).tiny
    alpha = crf.start_transitions + P[:, 0]  # (B, K)  eq. (3)
    for p, on in zip((P + top).unbind(1)[1:], mask[:, :, None].unbind(1)[1:], strict=True):
        high = alpha.detach().amax(1, keepdim=True)  # (B, 1)
        total = ((alpha - high).exp() @ A).clamp(min=tiny)  # (B, K)
        alpha = torch.where(on, p + high + total.log(), alpha)  # eq. (4)
    return (alpha + crf.end_transitions).logsumexp(1)  # eq. (5)


def crf_loss(crf, P, y, mask):
    """-log p (B,) of tags y (B, T): a likelihood's logarithm with its sign turned."""
    return crf_log_z(crf, P, mask) - crf_score(crf, P, y, mask)  # eq. (6)


def crf_decode(crf, P, mask, illegal=(0, 0, 0)):
    """The best tags (B, T) of scores P (B, T, K); beyond the end of a sentence, its last one.
    illegal is added to a, A and e. Inside, B stands last: maxima over the first axis are fast."""
    A, P = crf.transitions + illegal[1], P.permute(1, 2, 0).contiguous()  # (T, K, B)
    delta = [P[0] + (crf.start_transitions + illegal[0])[:, None]]  # (K, B)
    for p, on in zip(P[1:], mask.T[1:], strict=True):
        best = (delta[-1][:, None] + A[:, :, None]).amax(0)  # (K, B)
        delta.append(torch.where(on, p + best, delta[-1]))  # eq. (7)
    y = [(delta.pop() + (crf.end_transitions + illegal[2])[:, None]).argmax(0)]  # (B,)
    for on in mask.T[1:].flip(0):
        back = (delta.pop() + A[:, y[-1]]).argmax(0)  # eq. (8)
        y.append(torch.where(on, back, y[-1]))
    return torch.stack(y[::-1], 1)  # (B, T)


def illegal_moves(tags):
    """For (K,) starts, (K, K) moves and (K,) ends: 0, or -10000 where no span goes that way."""
    part, K = [tag[0] for tag in tags], len(tags)
    opens, inside = (torch.tensor([p in some for p in part]) for some in ("BIM", "IME"))  # (K,)
    same = torch.tensor([a[1:] == b[1:] for a in tags for b in tags]).view(K, K)
    must = opens & bool({*part} & {*"MES"})  # with B and I alone, any I may be the last
    legal = torch.where(inside, opens[:, None] & same, ~must[:, None])  # (K, K)
    return [-10_000.0 * bad for bad in (inside, ~legal, must)]


def read_spans(tags):
    """{(first, end, kind)}. What no legal tags would do opens a new span, as conlleval has it."""
    spans, first, before = set(), None, "O"
    for t, tag in enumerate([*tags, "O"]):
        goes_on = tag[0] in "IME" and before[0] in "BIM" and tag[1:] == before[1:]
        if first is not None and not goes_on:
            spans.add((first, t, before[2:]))
        first = None if tag == "O" else first if goes_on else t
        before = tag
    return spans


def span_f1(right, found, true):
    """Precision, recall and their harmonic mean."""
    f1 = 2 * right / max(1, found + true)
    return {"precision": right / max(1, found), "recall": right / max(1, true), "f1": f1}


# --- model ---------------------------------------------------------------------------------------
class BiLSTMCRF(nn.Module):
    """x (B, T) of lengths (B,), which are on the CPU -> scores P (B, T, K)."""

    def __init__(self, n_chars, n_tags, dim, hidden, dropout, head):
        super().__init__()
        self.embedding = nn.Embedding(n_chars, dim, padding_idx=0)
        self.lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, n_tags)
        self.dropout = nn.Dropout(dropout)
        self.crf = CRF(n_tags) if head == "crf" else None

    def forward(self, x, lengths):
        e = self.dropout(self.embedding(x))  # (B, T, D)
        packed = pack_padded_sequence(e, lengths, batch_first=True, enforce_sorted=False)
        h = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]  # (B, T, 2 H)
        return self.linear(self.dropout(h))  # (B, T, K)  eq. (1)

    def loss(self, x, y, lengths):
        P, mask = self(x, lengths), x > 0
        if self.crf is None:
            return F.cross_entropy(P[mask], y[mask], reduction="sum") / len(x)  # eq. (10)
        return crf_loss(self.crf, P, y, mask).mean()


# --- data ----------------------------------------------------------------------------------------
class Sentences(NamedTuple):
    """A part of a data set: numbers, filled up with 0, and what they stand for."""

    x: torch.Tensor  # (N, T) characters
    y: torch.Tensor  # (N, T) tags
    lengths: torch.Tensor  # (N,) on the CPU
    spans: list  # (N,) of sets


FAMILY, GIVEN, PLACE, KIND = "王李张刘陈杨", "小明文华国天志芳海平", "东南西北江河山海平", "市县省"
PLAIN = ["{N}在{L}工作", "{N}和{N}明天去{L}", "昨天{N}来了", "{L}的天气很好", "王国在{L}的东边"]
PLAIN += ["{N}说{L}的江小", "海平面在{L}很平", "小河和大江在{L}", "{N}", "刘海很好", "明天去{L}"]


def grammar(n):
    """Sentences (characters, tags). Whether 王, 小 or 海 is in a name depends on what is around;
    most names of the test occur nowhere else."""
    forms = {"{N}": ("-NAME", FAMILY, GIVEN, [*GIVEN, ""]), "{L}": ("-LOC", PLACE, PLACE, KIND)}
    for _ in range(n):
        text, tags = "", []
        for piece in re.findall(r"\{.\}|[^{]+", PLAIN[torch.randint(len(PLAIN), ())]):
            kind, *letters = forms.get(piece, ("", [piece]))
            word = "".join(some[torch.randint(len(some), ())] for some in letters)
            tags += [part + kind if kind else "O" for part in bmes(word)]
            text += word
        yield [*text], tags


def bmes(word):
    """Where each character stands: S, or B, M and E."""
    return "S" if len(word) == 1 else "B" + "M" * (len(word) - 2) + "E"


def read_part(args, part):
    """Sentences (tokens, tags) of train, dev or test; in the file an empty line ends one."""
    file = Path(args.data_root, FILES[args.dataset].format(part))
    try:
        rows = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--data_root: {file} cannot be read ({error}); the default --dataset needs no files")
    rows = [re.split(r"[ \t]+", row.strip(" \t\r")) for row in rows]
    found = [[*some] for full, some in itertools.groupby(rows, lambda row: row != [""]) if full]
    if not found or min(len(row) for rows in found for row in rows) < 2:
        fail(f"--data_root: {file} is no text of two columns or more; name one that is")
    if args.dataset == "ud":  # number, word, ...
        words = [[row[1] for row in rows] for rows in found]
        return [([*"".join(row)], [*"".join(map(bmes, row))]) for row in words]
    end = 1 if args.dataset == "weibo" else None  # there, tokens bear their place in the word
    return [([row[0][:end] for row in rows], [row[-1] for row in rows]) for rows in found]


def load_data(args):
    """Return Sentences of train, dev and test, whole on the device; characters; tags."""
    torch.manual_seed(args.seed)
    parts = [[*grammar(n)] for n in (600, 100, 100)]
    if args.dataset != "grammar":
        parts = [read_part(args, part) for part in ("train", "dev", "test")]
    if not all(re.fullmatch(r"O|[BIMES](-.+)?", tag) for _, tags in parts[0] for tag in tags):
        parts = [[(row, [f"S-{tag}" for tag in tags]) for row, tags in part] for part in parts]
    chars = ["", "?", *sorted({char for row, _ in parts[0] for char in row})]
    tags, ready = sorted({tag for _, row in parts[0] for tag in row}), []
    number, place = ({key: i for i, key in enumerate(keys)} for keys in (chars, tags))
    for part in parts:
        if odd := {tag for _, row in part for tag in row} - {*tags}:
            fail(f"--data_root: dev or test has a tag {min(odd)}, train has none; mend the files")
        x = [torch.tensor([number.get(char, 1) for char in row]) for row, _ in part]
        y = [torch.tensor([place[tag] for tag in row]) for _, row in part]
        lengths, spans = torch.tensor([*map(len, x)]), [read_spans(row) for _, row in part]
        x, y = (pad_sequence(rows, batch_first=True).to(args.device) for rows in (x, y))  # (N, T)
        ready.append(Sentences(x, y, lengths, spans))
    return ready, chars, tags


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args, chars, tags):
    sizes = len(chars), len(tags), args.dim, args.hidden, args.dropout, args.head
    return BiLSTMCRF(*sizes).to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the scores of the test set."""
    (part, dev, test), chars, tags = load_data(args)
    x, y, lengths, _ = part
    rare, model = x.flatten().bincount(minlength=len(chars)) == 1, build(args, chars, tags)
    if args.weights and not args.resume:
        load_weights(args.weights, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    state = {"model": model, "optimizer": optimizer}
    epoch = begin(args, state)
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            near = (lengths * (1 + 0.1 * torch.rand(len(x)))).argsort().split(args.batch_size)
            batches = [near[b] for b in torch.randperm(len(near)).tolist()]
            for i in tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None):
                n, at = lengths[i], i.to(args.device)
                xs, ys = x[at, : n.max()], y[at, : n.max()]  # (B, T)
                hide = rare[xs] & (torch.rand(xs.shape, device=args.device) < 0.5)  # (B, T)
                loss = model.loss(xs.masked_fill(hide, 1), ys, n)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(i)
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            row = {"loss": total.item() / len(x), "dev_f1": evaluate(model, dev, tags)["f1"]}
            log(args, epoch=epoch, **row)
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    scores, rows = evaluate(model, test, tags), []
    for kind, row in scores.pop("kinds").items():
        rows.append(line({"kind": kind, "right": row[0], "true": row[2], **span_f1(*row)}))
    Path(args.out, "kinds.txt").write_text("\n".join([*rows, ""]), encoding="utf-8")
    return scores


@torch.inference_mode()
def generate(args):
    """Print --predict with its spans set apart, as word/kind."""
    _, chars, tags = load_data(args)
    model = build(args, chars, tags)
    load_weights(args.weights or f"{args.out}/last.pt", model)
    glue = " " if args.dataset == "folder" else ""  # where a token may be a word
    if not (tokens := args.predict.split() if glue else [*"".join(args.predict.split())]):
        fail("--predict: there is no text in it; type some")
    x = torch.tensor([[chars.index(c) if c in chars else 1 for c in tokens]], device=args.device)
    part = Sentences(x, x, torch.tensor([len(tokens)]), [])
    for first, end, kind in sorted(predict_spans(model, part, tags)[0], reverse=True):
        tokens[first:end] = [f" {glue.join(tokens[first:end])}{'/' * bool(kind)}{kind} "]
    print(*glue.join(tokens).split())
    return 0


@torch.inference_mode()
def predict_spans(model, part, tags):
    """What the model finds in each sentence, in the order of part: sets."""
    model.eval()
    illegal = [penalty.to(part.x.device) for penalty in illegal_moves(tags)]
    spans = [set()] * len(part.x)
    for i in part.lengths.argsort().split(256):
        n = part.lengths[i]
        x = part.x[i.to(part.x.device), : n.max()]  # (B, T)
        P = model(x, n)  # (B, T, K)
        y = P.argmax(2) if model.crf is None else crf_decode(model.crf, P, x > 0, illegal)
        for where, row, length in zip(i.tolist(), y.tolist(), n.tolist(), strict=True):
            spans[where] = read_spans([tags[k] for k in row[:length]])
    return spans


def evaluate(model, part, tags):
    """Scores of all spans, and how many of each kind are right, found and true."""
    every = part.spans, predict_spans(model, part, tags)
    every = [[(n, *span) for n, row in enumerate(rows) for span in row] for rows in every]
    some = {*every[0]} & {*every[1]}, every[1], every[0]
    right, found, true = (Counter(kind for *_, kind in rows) for rows in some)
    kinds = {kind: (right[kind], found[kind], true[kind]) for kind in sorted(found | true)}
    return span_f1(*map(len, some)) | {"kinds": kinds}  # eq. (9)


def smoke(args):
    """A short run, then log Z by its definition, and illegal moves in the best of random tags."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    crf, P = CRF(3), 3 * torch.randn(4, 5, 3)
    gaps, mask = [], torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    for b, n in enumerate(mask.sum(1).tolist()):
        every = torch.cartesian_prod(*[torch.arange(3)] * n).view(-1, n)  # (3^n, n)
        scores = crf_score(crf, P[b, :n].expand(len(every), n, 3), every, every >= 0)
        gaps.append(abs((scores.logsumexp(0) - crf_log_z(crf, P, mask)[b]).item()))
    a, A, e = illegal_moves(["B-X", "M-X", "E-X", "S-X", "B-Y", "M-Y", "E-Y", "S-Y", "O"])
    P = 5 * torch.randn(64, 20, 9)
    y = crf_decode(CRF(9), P, P[..., 0] < math.inf, (a, A, e))  # (64, 20)
    illegal = a[y[:, 0]].sum() + A[y[:, :-1], y[:, 1:]].sum() + e[y[:, -1]].sum()
    return report(args, **metrics, logz_gap=max(gaps), illegal=(illegal < 0).float())


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
    sets = ["grammar", *FILES]
    add("--head", choices=["crf", "softmax"], default="crf", help="loss (6) or (10)")
    add("--dim", type=at_least(1), default=50, help="numbers in a character's vector D")
    add("--hidden", type=at_least(1), default=64, help="units of the LSTM each way H")
    add("--dropout", type=at_least(0.0, 1.0), default=0.5, help="before and after the LSTM")
    add("--dataset", choices=sets, default="grammar", help="grammar needs no files")
    add("--data_root", default="data", help="folder of the data sets, or of the three files")
    add("--n_epochs", type=at_least(0), default=15, help="passes over the training set")
    add("--batch_size", type=at_least(1), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=5e-3, help="adam: learning rate")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", metavar="TEXT", help="only tag a text, with --weights or OUT/last.pt")
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
        if args.predict is not None:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
