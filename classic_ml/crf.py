# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4"]
# ///
"""Linear-chain conditional random field: yes-or-no features of a sentence decide all its tags.

Papers: Lafferty, McCallum & Pereira, "Conditional Random Fields: Probabilistic Models for
Segmenting and Labeling Sequence Data", ICML 2001; Sha & Pereira, "Shallow Parsing with Conditional
Random Fields", NAACL 2003. L-BFGS: Liu & Nocedal, Mathematical Programming, 1989.

    p(y | x) = exp(sum_k w_k F_k(x, y)) / Z(x)                      (1)
    F_k(x, y) = sum_{t=1..T} f_k(y_{t-1}, y_t, x, t)                (2)  how often f_k is 1
    f_k = [x has attribute a at t] [y_t = j]                        (3)  a state feature (a, j)
    f_k = [y_{t-1} = i] [y_t = j],  t > 1                           (4)  a transition (i, j)
    J(w) = sum_x (log Z(x) - sum_k w_k F_k(x, y)) + c2 ||w||^2      (5)  to be minimised: convex
    dJ/dw_k = sum_x (E F_k(x, y') - F_k(x, y)) + 2 c2 w_k           (6)  y' as the model has it
    alpha_t(j) = P_tj + log sum_i exp(alpha_{t-1}(i) + A_ij)        (7)  alpha_1 = P_1
    beta_t(i) = log sum_j exp(A_ij + P_{t+1,j} + beta_{t+1}(j))     (8)  beta_T = 0
    log Z = log sum_j exp(alpha_1(j) + beta_1(j))                   (9)
    p(y'_t = j) = exp(alpha_t(j) + beta_t(j) - log Z)               (10)
    p(y'_{t-1} = i, y'_t = j) = exp(alpha_{t-1}(i) + A_ij + P_tj + beta_t(j) - log Z)    (11)
    delta_t(j) = P_tj + max_i (delta_{t-1}(i) + A_ij)               (12)  Viterbi

P_tj is the sum of w over the attributes of place t together with j, and A_ij is w of (i, j): all w
stand in one table, a row an attribute or a tag i, a column a tag j. Features are those that the
training set has (--features all: any a and i with any j). Attributes are the tokens around t, alone
or two and three in a row, with a mark where the sentence ends; nothing else is at the ends.

All sentences are worked through at once, the longest first: at place t there are n_t of them left,
a row each, without any filling or mask. The sums of (7) and (8) are products with exp(A), and the
sum of (11) over all places is one product of two matrices. float64, as L-BFGS wants.

Shapes: K tags, V attributes, F features, S sentences, N places of all of them, first all t = 1 (S),
then all t = 2 (n_2), ...; E pairs of a place and an attribute; table (V + K, K), w (F,), P, alpha
and beta (N, K), A (K, K).
Unlike the papers: L-BFGS with a line search for strong Wolfe conditions in place of iterative
scaling (Lafferty) and conjugate gradients (Sha); c2 ||w||^2 as in CRFsuite, without 1/2.

    python crf.py                                  cuts Chinese text into words: 79 sentences here
    python crf.py --predict 我明天去北京              with OUT/last.pt
    python crf.py --dataset ud --data_root data    the same, of data/zh_seg/udc/*.conll
    python crf.py --dataset conll2000 --data_root data    chunks of data/conll2000/*.txt
    python crf.py --smoke                          seconds; exits 1 unless all BARS are met
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
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence

# Lowest and highest value that pass under --smoke.
BARS = {"f1": (0.8, 1.0), "logz_gap": (0.0, 1e-9), "grad_gap": (0.0, 1e-9)}
FILES = {"ud": "zh_seg/udc/{}.conll", "conll2000": "conll2000/{}.txt"}
FILES |= {"resume": "ResumeNER/{}.char.bmes"}
NEAR = [(-2,), (-1,), (0,), (1,), (2,), (-2, -1), (-1, 0), (0, 1), (1, 2)]
# Places around t whose tokens are attributes of t; those of a second column, if there is one.
WINDOWS = [[*NEAR, (-1, 1)], [*NEAR, (-2, -1, 0), (-1, 0, 1), (0, 1, 2)]]
TEXT = """
我 今天 去 学校。他 明天 去 北京。我们 明天 去 公园。我 喜欢 吃 苹果。他 不 喜欢 吃 米饭。
妈妈 在 家 做 饭。爸爸 在 公司 工作。我们 一起 去 看 电影。今天 天气 很 好。昨天 下雨 了。
我 的 朋友 是 医生。她 在 上海 学习。我 住 在 上海。我 有 一 个 妹妹。他 有 两 个 孩子。
妹妹 喜欢 看 电视。孩子 在 公园 玩。我 想 喝 茶。你 喜欢 喝 什么？你 在 做 什么？你 明天 去 哪里？
他 昨天 去 了 医院。我 昨天 买 了 一 本 书。商店 里 有 很多 东西。学校 里 有 很多 学生。
他 在 图书馆 学习 英文。我们 学习 中文。他们 学习 英文。老师 喜欢 喝 茶。妈妈 去 商店 买 东西。
爸爸 开车 去 公司。我 坐 火车 去 北京。她 坐 飞机 去 上海。飞机 比 火车 快。我 的 书 在 家。
老师 的 书 在 学校。今天 很 热。昨天 很 冷。北京 比 上海 冷。我 觉得 中文 很 难。这 本 书 很 好看。
这 个 苹果 很 好吃。米饭 很 好吃。咖啡 不 好喝。我 每天 去 学校。妹妹 每天 学习 中文。
我们 每天 一起 吃 饭。孩子 们 在 家 看 电视。明天 我 不 去 公司。你 今天 看 书 了 吗？
你 是 医生 吗？北京 大 还是 上海 大？你 喝 茶 还是 喝 咖啡？他 有 很多 时间。我 明天 有 时间。
医院 在 学校 的 东边。商店 在 公园 的 西边。朋友 昨天 来 了。火车 来 了。飞机 没有 来。
他 会 说 中文。我 会 开车。孩子 不 会 开车。我 在 图书馆 看 书。图书馆 里 有 很多 书。
他 想 喝 咖啡。学生 在 学校 学习 中文。她 买 了 两 个 苹果。明天 天气 不 好。他们 住 在 北京。
火车 很 快。昨天 我们 没有 看 电影。妈妈 的 朋友 是 老师。她 会 说 英文。茶 很 好喝。
她 去 图书馆 学习。我 没有 时间。医生 在 医院 工作。他 每天 看 电视。
"""


# --- the idea ------------------------------------------------------------------------------------
class Chains(NamedTuple):
    """Places of sentences: of all of them t = 1, then t = 2, ..."""

    sizes: list  # n_t
    old: torch.Tensor  # (N,) the places as they were, sentence by sentence
    sentence: torch.Tensor  # (N,) of each place, 0 the longest
    before: torch.Tensor  # (N - S,) where the place t - 1 is, for t > 1
    attribute: torch.Tensor  # (E,) of each place
    first: torch.Tensor  # (N,) where those of a place begin
    place: torch.Tensor  # (E,) of each attribute
    start: torch.Tensor  # (V,) where those of an attribute begin


def log_product(a, E):
    """log sum_i exp(a_i) E_ij for a (n, K), the largest of a row taken out: (n, K)."""
    high = a.amax(1, keepdim=True)  # (n, 1)
    return ((a - high).exp() @ E).log() + high


def forward_backward(P, A, chains):
    """log Z (S,), p(y_t = j) (N, K), and the sum of p(y_{t-1} = i, y_t = j) over all t (K, K)."""
    E, parts = A.exp(), P.split(chains.sizes)
    alpha, beta = [parts[0]], [torch.zeros_like(parts[-1])]
    for p in parts[1:]:
        alpha.append(p + log_product(alpha[-1][: len(p)], E))  # eq. (7)
    for p, n in zip(parts[:0:-1], chains.sizes[-2::-1], strict=True):
        b = log_product(p + beta[-1], E.T)  # eq. (8)
        beta.append(F.pad(b, (0, 0, 0, n - len(b))))  # (n, K), 0 for those that end here
    log_z = (alpha[0] + beta[-1]).logsumexp(1)  # eq. (9)
    alpha, beta = torch.cat(alpha), torch.cat(beta[::-1])  # (N, K), (N, K)
    p = (alpha + beta - log_z[chains.sentence, None]).exp()  # eq. (10)
    a, S = alpha[chains.before], chains.sizes[0]  # (N - S, K)
    high = a.amax(1, keepdim=True)
    right = P[S:] + beta[S:] + high - log_z[chains.sentence[S:], None]
    return log_z, p, E * ((a - high).exp().T @ right.exp())  # eq. (11)


def best_tags(P, A, chains):
    """The best tags (N,)."""
    delta, back = [P[: chains.sizes[0]]], []
    for p in P.split(chains.sizes)[1:]:
        best = (delta[-1][: len(p), :, None] + A).max(1)  # (n, K)
        delta.append(p + best.values)  # eq. (12)
        back.append(best.indices)
    y = [delta.pop().argmax(1)]
    while back:
        before = back.pop().gather(1, y[-1][:, None])[:, 0]
        y.append(torch.cat([before, delta.pop()[len(before) :].argmax(1)]))
    return torch.cat(y[::-1])


def count_features(chains, p, pairs):
    """All F_k of the table ((V + K) K,), or their mean: p (N, K) says which tags the places have,
    pairs (K, K) how often i and j follow each other."""
    state = F.embedding_bag(chains.place, p, chains.start, mode="sum")  # (V, K)
    return torch.cat([state, pairs]).flatten()  # eq. (2)


# Copied from nlp/bilstm_crf.py
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


# Copied from nlp/bilstm_crf.py
def span_f1(right, found, true):
    """Precision, recall and their harmonic mean."""
    f1 = 2 * right / max(1, found + true)
    return {"precision": right / max(1, found), "recall": right / max(1, true), "f1": f1}


# --- model ---------------------------------------------------------------------------------------
class ChainCRF(nn.Module):
    """Weights w (F,) of features (F,), numbers in the table (V + K, K) as if it were flat."""

    def __init__(self, features, n_attributes, n_tags):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(features), dtype=torch.float64))
        self.features, self.V, self.K = features, n_attributes, n_tags

    def scores(self, chains):
        table = self.w.new_zeros((self.V + self.K) * self.K)
        table = table.index_copy(0, self.features, self.w).view(-1, self.K)  # (V + K, K)
        P = F.embedding_bag(chains.attribute, table[: self.V], chains.first, mode="sum")  # eq. (3)
        return P, table[self.V :]  # (N, K), (K, K)  eq. (4)

    @torch.no_grad()
    def objective(self, chains, seen, c2):
        """J and its gradient (F,); seen ((V + K) K,) are all F_k of the training set."""
        P, A = self.scores(chains)
        log_z, p, pairs = forward_backward(P, A, chains)
        J = log_z.sum() - self.w @ seen[self.features] + c2 * self.w @ self.w  # eq. (1), (5)
        slope = (count_features(chains, p, pairs) - seen)[self.features]
        return J, slope + 2 * c2 * self.w  # eq. (6)


# --- data ----------------------------------------------------------------------------------------
def cut_words(rows):
    """Of sentences, lists of words: ([characters], tags), S, or B, M and E for each character."""
    tags = [["S" if len(w) == 1 else "B" + "M" * (len(w) - 2) + "E" for w in row] for row in rows]
    return [([[*"".join(a)]], [*"".join(b)]) for a, b in zip(rows, tags, strict=True)]


def read_columns(args, part):
    """Sentences ([columns], tags) of train or test; in the file an empty line ends one."""
    file = Path(args.data_root, FILES[args.dataset].format(part))
    try:
        rows = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--data_root: {file} cannot be read ({error}); the default --dataset needs no files")
    rows = [re.split(r"[ \t]+", row.strip(" \t\r")) for row in rows]
    found = [[*some] for full, some in itertools.groupby(rows, lambda row: row != [""]) if full]
    if not found or len({len(row) for rows in found for row in rows} | {1}) != 2:
        fail(f"--data_root: {file} is no text of some columns, the same in all rows; mend it")
    if args.dataset == "ud":  # number, word, ...
        return cut_words([[row[1] for row in rows] for rows in found])
    return [(c[:-1], c[-1]) for c in ([*zip(*rows, strict=True)] for rows in found)]


def window_attributes(columns):
    """For each place of a sentence the list of its attributes."""
    padded = [["<<", "<", *column, ">", ">>"] for column in columns]
    some = [(f"{c}{at}", padded[c], at) for c in range(len(columns)) for at in WINDOWS[c]]
    places = range(2, len(columns[0]) + 2)
    return [[name + "/".join([c[t + k] for k in at]) for name, c, at in some] for t in places]


def chain_up(rows, numbers, device):
    """The Chains of sentences, lists of places that are lists of attributes; those that numbers
    does not know are left out."""
    lengths = [*map(len, rows)]
    packed = pack_sequence(torch.arange(sum(lengths)).split(lengths), enforce_sorted=False)
    old, sizes = packed.data, packed.batch_sizes.tolist()  # (N,)
    sentence = torch.cat([torch.arange(n) for n in sizes])  # (N,)
    before = old.argsort()[old[sizes[0] :] - 1]  # (N - S,)
    known = [[numbers[a] for a in place if a in numbers] for row in rows for place in row]
    known = [known[place] for place in old.tolist()]
    many = torch.tensor([*map(len, known)])  # (N,)
    attribute = torch.tensor([a for place in known for a in place], dtype=torch.long)  # (E,)
    place = torch.arange(len(many)).repeat_interleave(many)[attribute.argsort(stable=True)]
    per = attribute.bincount(minlength=len(numbers))  # (V,)
    parts = old, sentence, before, attribute, many.cumsum(0) - many, place, per.cumsum(0) - per
    return Chains(sizes, *(part.to(device) for part in parts))


def load_data(args):
    """Return the numbers of attributes; tags; Chains of the training set; how often each feature of
    the table is 1 there ((V + K) K,); the test set, sentences ([columns], tags)."""
    torch.manual_seed(args.seed)
    if args.dataset == "sentences":
        words = re.findall("[^。？]+.", re.sub("(?=[。？])", " ", TEXT))
        words = [words[i].split() for i in torch.randperm(len(words)).tolist()]
        train, test = cut_words(words[20:]), cut_words(words[:20])
    else:
        train, test = (read_columns(args, part) for part in ("train", "test"))
    rows = [window_attributes(columns) for columns, _ in train]
    known = sorted({a for row in rows for place in row for a in place})
    numbers = {a: i for i, a in enumerate(known)}
    tags = sorted({tag for _, tags in train for tag in tags})
    chains, K = chain_up(rows, numbers, args.device), len(tags)
    y = torch.tensor([tags.index(tag) for _, tags_of in train for tag in tags_of])
    y = y.to(args.device)[chains.old]  # (N,)
    pairs = (y[chains.before] * K + y[chains.sizes[0] :]).bincount(minlength=K * K).view(K, K)
    seen = count_features(chains, F.one_hot(y, K).double(), pairs)
    return numbers, tags, chains, seen, test


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args, V, K, seen):
    features = (seen >= (args.features == "seen")).nonzero()[:, 0]  # (F,)
    return ChainCRF(features, V, K).to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the scores of the test set."""
    numbers, tags, chains, seen, test = load_data(args)
    model = build(args, len(numbers), len(tags), seen)
    if args.weights and not args.resume:
        load_weights(args.weights, model)
    known = {"tolerance_grad": 1e-9, "tolerance_change": 1e-12, "max_eval": 10**9}
    optimizer = torch.optim.LBFGS([model.w], line_search_fn="strong_wolfe", **known)
    state = {"model": model, "optimizer": optimizer}
    step = begin(args, state)

    def closure():
        J, model.w.grad = model.objective(chains, seen, args.c2)
        return J

    try:
        while step < args.n_steps:
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            optimizer.param_groups[0]["max_iter"] = n
            if closure().isfinite():  # or the line search would never end
                optimizer.step(closure)
            loss, step = closure(), step + n
            if not loss.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a higher --c2")
            save(args, state, step)
            log(args, step=step, loss=loss.item(), slope=model.w.grad.abs().max().item())
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    pairs = zip(model.w.tolist(), model.features.tolist(), strict=True)
    names = [*numbers, *(f"from {tag}" for tag in tags)]
    rows = [f"{w:8.4f}  {names[k // model.K]} -> {tags[k % model.K]}\n" for w, k in pairs]
    rows = sorted(rows, key=lambda row: -abs(float(row[:9])))[:200]
    Path(args.out, "features.txt").write_text("".join(rows), encoding="utf-8")
    return evaluate(model, numbers, tags, test)


@torch.no_grad()
def predict_tags(model, numbers, tags, sentences):
    """The best tags of sentences, lists of columns."""
    rows = [window_attributes(columns) for columns in sentences]
    chains = chain_up(rows, numbers, model.w.device)
    y = best_tags(*model.scores(chains), chains)[chains.old.argsort()]  # (N,)
    return [[tags[k] for k in part.tolist()] for part in y.split([*map(len, rows)])]


def generate(args):
    """Print --predict with its spans set apart, as word/kind."""
    chars = [*"".join(args.predict.split())]
    if args.dataset == "conll2000" or not chars:
        fail("--predict: wants some characters, and no conll2000, whose words have POS tags, too")
    numbers, tags, _, seen, _ = load_data(args)
    model = build(args, len(numbers), len(tags), seen)
    load_weights(args.weights or f"{args.out}/last.pt", model)
    best = predict_tags(model, numbers, tags, [[chars]])[0]
    for first, end, kind in sorted(read_spans(best), reverse=True):
        chars[first:end] = [f" {''.join(chars[first:end])}{'/' * bool(kind)}{kind} "]
    print(*"".join(chars).split())
    return 0


def evaluate(model, numbers, tags, test):
    found = predict_tags(model, numbers, tags, [columns for columns, _ in test])
    found, true = ([*map(read_spans, rows)] for rows in (found, [tags for _, tags in test]))
    right = sum(len(a & b) for a, b in zip(found, true, strict=True))
    return span_f1(right, *(sum(map(len, rows)) for rows in (found, true)))


def smoke(args):
    """A short run, then log Z by enumeration and its gradients (10), (11) by autograd."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    chains, total = chain_up([[[]] * n for n in (4, 3, 1)], {"": 0}, "cpu"), 0
    leaves = P, A = [torch.randn(n, 3, dtype=torch.float64).requires_grad_() for n in (8, 3)]
    for r, n in enumerate((4, 3, 1)):
        at = (chains.sentence == r).nonzero()[:, 0]  # (n,)
        y = torch.cartesian_prod(*[torch.arange(3)] * n).view(-1, n)  # (3^n, n)
        total += (P[at, y].sum(1) + A[y[:, :-1], y[:, 1:]].sum(1)).logsumexp(0)
    with torch.no_grad():
        log_z, *counts = forward_backward(P, A, chains)
    slopes = zip(torch.autograd.grad(total, leaves), counts, strict=True)
    grad_gap = max((a - b).abs().max().item() for a, b in slopes)
    return report(args, **metrics, logz_gap=abs(log_z.sum() - total.detach()), grad_gap=grad_gap)


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
    sets = ["sentences", *FILES]
    add("--features", choices=["seen", "all"], default="seen", help="in training, or thinkable")
    add("--c2", type=at_least(0.0), default=0.1, help="of the penalty in (5)")
    add("--dataset", choices=sets, default="sentences", help="sentences needs no files")
    add("--data_root", default="data", help="folder of the data sets")
    add("--n_steps", type=at_least(0), default=100, help="optimiser steps in total")
    add("--sample_interval", type=at_least(1), default=20, help="steps between checkpoints")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", metavar="TEXT", help="only tag a text, with --weights or OUT/last.pt")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    if args.device.startswith("mps"):  # knows no float64
        args.device = "cpu"
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
