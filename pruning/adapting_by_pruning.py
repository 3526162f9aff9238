# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4",
#                 "tqdm>=4.66,<5"]
# ///
"""Adapting by pruning: a pretrained transformer learns a new task by losing weights, no more.

Papers: Gao, Colombo & Wang, "Adapting by Pruning: A Case Study on BERT", 2021, arXiv 2105.03343;
Devlin, Chang, Lee & Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", NAACL 2019, arXiv 1810.04805; Zhu & Gupta, "To prune, or not to prune: exploring
the efficacy of pruning for model compression", 2017, arXiv 1710.01878 (cubic).

    m = 1[theta > 0],  f(x; w0 * m, p)               (1)  the net: w0 stays as it was pretrained
    m_t = sigmoid(t theta)                           (2)  forward: t = t_l, so large that m_t is m
    dm/dtheta = t m_t (1 - m_t)                      (3)  backward: t = t_s, so small that it moves
    theta <- theta - alpha dL/dtheta - gamma         (4)  gamma for all alike, until s is reached
    s_t = s_f + (s_i - s_f) (1 - t / T)^3            (5)  cubic: from sparsity s_i to s_f in T steps
    gamma = the round(s_t N)-th smallest of theta    (6)  cubic: as large as s_t needs, or negative
    z = W2 relu(W1 sum_l a_l h_l + b1) + b2          (7)  head p; h_l: [CLS] after layer l, sum a 1
    -log p(word | the rest), at 15 % of the places   (8)  pretraining on text, masked words
    bytes = N / 8                                    (9)  what the mask of one task takes

A net is pretrained, or loaded; then w0 is frozen, and theta and the head p are trained. What a
task adds is one bit a weight and a small head, in OUT/task.pt: numpy.unpackbits(bits,
bitorder="little") is m, over the matrices of the encoder in their order.
--method magnitude or random sets another mask once, and trains p alone; with --sparsity 0 this is
feature extraction. finetune trains w0 as well: what the others are to be measured by.

A MASK MAKES NOTHING SMALLER OR FASTER: the zeros are stored and multiplied like other numbers.

Shapes: B batch, T tokens, D width, V words, K classes, N weights in all matrices; tokens (B, T) are
numbers of words, or (B, T, V) amounts of each: a patch of an image is its pixels times as many
"words", and [CLS] the last one. Hidden states (B, T, D), scores (B, K).
Unlike the papers: (3) has the factor t that the paper leaves out (t_s = 1 there); Adam for SGD, and
gamma past it, since Adam would divide it out; (6) meets the sparsity where the paper's fixed gamma
may not (--schedule gamma); theta starts at N(0.01, std 0.001): the paper's 0.001 is called a
variance there, but a third of the weights would be gone at once. Masked are all matrices,
embeddings included, never biases and norms; no dropout, no pooler; masked words are all [MASK];
the vocabulary is one of whole words, if --vocab names none. Digits are pretrained with labels, and
the new task is to read them transposed; texts are pretrained on wikitext-2, its valid and test
parts, and the new task is to tell good reviews of films from bad ones.
Official weights: state dicts of Hugging Face's BertModel and its heirs, as bert-base-uncased:
torch.save(model.state_dict(), "bert.pt"), and the vocab.txt beside it.

    python adapting_by_pruning.py                          8x8 digits shipped with scikit-learn
    python adapting_by_pruning.py --sparsity 0.9 --schedule gamma --gamma 1e-4
    python adapting_by_pruning.py --weights last.pt --method magnitude --out out/magnitude
    python adapting_by_pruning.py --config rt_polarity     texts, both in --data_root
    python adapting_by_pruning.py --config bert_base --weights bert.pt --vocab vocab.txt
    python adapting_by_pruning.py --smoke                  seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_epochs": 20, "pretrain_epochs": 8}
BARS = {"test_acc": (0.94, 1.0), "over_magnitude": (0.1, 1.0), "over_features": (0.1, 1.0)}
BARS |= {"changed": (0.0, 0.0), "sparsity_gap": (0.0, 1e-3)}
TEXT = {"dataset": "rt_polarity", "seq_len": 64, "dim": 128, "heads": 4, "vocab_size": 12000}
CONFIGS = {"digits": {}, "rt_polarity": TEXT | {"depth": 2, "batch_size": 64, "lr": 2e-3}}
CONFIGS["rt_polarity"] |= {"n_epochs": 6, "pretrain_epochs": 4}
CONFIGS["bert_base"] = TEXT | {"dim": 768, "depth": 12, "heads": 12, "vocab_size": 30522}
CONFIGS["bert_base"] |= {"seq_len": 512, "batch_size": 8, "lr": 2e-5, "n_epochs": 3, "t_s": 1.0}
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


# --- model ---------------------------------------------------------------------------------------
class BertLayer(nn.Module):
    """Hidden states (B, T, D) -> (B, T, D); seen (B, 1, 1, T) is False where a row is padded."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        parts = nn.ModuleDict({key: nn.Linear(dim, dim) for key in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": parts, "output": dense_and_norm(dim, dim)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, 4 * dim)})
        self.output = dense_and_norm(4 * dim, dim)

    def forward(self, x, seen):
        parts = [part(x).unflatten(2, (self.heads, -1)) for part in self.attention["self"].values()]
        q, k, v = (part.transpose(1, 2) for part in parts)  # (B, heads, T, D / heads)
        y = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)  # (B, T, D)
        after = self.attention["output"]
        x = after["LayerNorm"](x + after["dense"](y))
        y = self.output["dense"](F.gelu(self.intermediate["dense"](x)))
        return self.output["LayerNorm"](x + y)


def dense_and_norm(n_in, dim):
    norm = nn.LayerNorm(dim, eps=1e-12)
    return nn.ModuleDict({"dense": nn.Linear(n_in, dim), "LayerNorm": norm})


class BertModel(nn.Module):
    """Tokens (B, T) or (B, T, V) -> depth + 1 hidden states (B, T, D), the embedding first."""

    def __init__(self, vocab_size, seq_len, dim, depth, heads):
        super().__init__()
        sizes = {"word": vocab_size, "position": seq_len, "token_type": 2}
        parts = {f"{key}_embeddings": nn.Embedding(n, dim) for key, n in sizes.items()}
        for part in parts.values():
            nn.init.normal_(part.weight, 0, 0.02)
        self.embeddings = nn.ModuleDict(parts | {"LayerNorm": nn.LayerNorm(dim, eps=1e-12)})
        layers = nn.ModuleList(BertLayer(dim, heads) for _ in range(depth))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.register_load_state_dict_pre_hook(rename_keys)

    def forward(self, tokens):
        word, place, kind, norm = self.embeddings.values()
        counted = tokens.is_floating_point()
        seen = None if counted else (tokens != 0)[:, None, None]  # (B, 1, 1, T)
        x = tokens @ word.weight if counted else word(tokens)  # (B, T, D)
        states = [norm(x + place.weight[: x.shape[1]] + kind.weight[0])]
        for layer in self.encoder["layer"]:
            states.append(layer(states[-1], seen))
        return states


def rename_keys(model, saved, *rest):
    """Let the model read the state dicts of BertModel's heirs and of older versions."""
    for key in [*saved]:
        value, new = saved.pop(key), key.removeprefix("bert.")
        new = new.replace("LayerNorm.gamma", "LayerNorm.weight")
        new = new.replace("LayerNorm.beta", "LayerNorm.bias")
        if not new.startswith(("cls.", "pooler.", "embeddings.position_ids")):
            saved[new] = value


class TaskHead(nn.Module):
    """Hidden states, a list of (B, T, D) -> scores (B, K)."""

    def __init__(self, dim, depth, n_classes):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(depth))
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, n_classes)

    def forward(self, states):
        h = torch.stack([state[:, 0] for state in states[1:]], -1)  # (B, D, depth)
        return self.fc2(self.fc1(h @ self.mix.softmax(0)).relu())  # (B, K)  eq. (7)


# --- the idea ------------------------------------------------------------------------------------
class TwoTemperatures(torch.autograd.Function):
    """Mask of theta, steep on the way forward and gentle on the way back."""

    @staticmethod
    def forward(ctx, theta, t_l, t_s):
        ctx.save_for_backward(theta)
        ctx.t_s = t_s
        return torch.sigmoid(t_l * theta)  # eq. (2)

    @staticmethod
    def backward(ctx, grad):
        m = torch.sigmoid(ctx.t_s * ctx.saved_tensors[0])
        return grad * ctx.t_s * m * (1 - m), None, None  # eq. (3)


class Theta(nn.Module):
    """One number for each of n weights: positive where the weight is kept."""

    def __init__(self, n, std):
        super().__init__()
        self.theta = nn.Parameter(0.01 + std * torch.randn(n))

    def forward(self, t_l, t_s):
        return TwoTemperatures.apply(self.theta, t_l, t_s)


def maskable(encoder):
    """Name -> every matrix of the encoder."""
    return {name: w for name, w in encoder.named_parameters() if w.ndim == 2}


def masked(encoder, m, tokens):
    """Hidden states of the encoder with its matrices times m (N,), or whole if m is None."""
    if m is None:
        return encoder(tokens)
    matrices = maskable(encoder)
    parts = zip(matrices.items(), m.split([w.numel() for w in matrices.values()]), strict=True)
    weights = {name: w * part.view_as(w) for (name, w), part in parts}
    return functional_call(encoder, weights, (tokens,))


# Copied from pruning/magnitude_pruning.py
def all_but_smallest(sizes, k):
    """Masks of the tensors sizes: 0 at the k smallest of all their entries, or at all that are
    negative if these are more. Of equal ones the first ones go, so that k is met exactly."""
    flat = torch.cat([size.flatten() for size in sizes])  # (N,)
    k = max(k, int((flat < 0).sum()))
    bar = flat.kthvalue(max(k, 1)).values
    keep, ties = flat > bar, (flat == bar).nonzero()[:, 0]
    keep[ties[k - len(flat) + int(keep.sum()) + len(ties) :]] = True
    parts = keep.split([size.numel() for size in sizes])
    return [part.view(size.shape) for part, size in zip(parts, sizes, strict=True)]


# Copied from pruning/magnitude_pruning.py
def cubic(s_i, s_f, share):
    return s_f + (s_i - s_f) * (1 - min(share, 1.0)) ** 3  # eq. (5)


@torch.no_grad()
def push(theta, sparsity, schedule, gamma, share):
    """Move all of theta (N,) alike, towards a sparsity; share of the steps is done."""
    if schedule == "cubic":
        k = round(cubic(0.0, sparsity, share) * len(theta))
        theta -= theta.kthvalue(k).values if k else 0.0  # eq. (6)
    else:
        theta -= gamma * ((theta <= 0).float().mean() < sparsity)  # eq. (4)


def pack(mask):
    """Mask (N,) -> bytes (N / 8,), the first entry in the lowest bit."""
    bits = F.pad(mask.byte(), (0, -len(mask) % 8)).view(-1, 8)
    return (bits << torch.arange(8, device=mask.device)).sum(1).byte()  # eq. (9)


def masked_words(encoder, tokens, mask_id):
    """Loss of the words that are hidden from the encoder; its embeddings read them out as well."""
    hide = (torch.rand(tokens.shape, device=tokens.device) < 0.15) & (tokens != 0)
    x = encoder(tokens.masked_fill(hide, mask_id))[-1][hide]  # (n, D)
    words = encoder.embeddings["word_embeddings"].weight
    return F.cross_entropy(x @ words.mT, tokens[hide])  # eq. (8)


# --- data ----------------------------------------------------------------------------------------
CLASSES = {"digits": 10, "rt_polarity": 2}


def load_data(args):
    """Return the words, and (x, y) to pretrain on (y of texts: unused), to learn from and to be
    tested on."""
    if args.dataset == "digits":
        from sklearn.datasets import load_digits

        images, y = map(torch.from_numpy, load_digits(return_X_y=True))
        images, n = images.view(-1, 8, 8).float() / 16, 1437
        order = torch.randperm(len(y))
        x, y = as_patches(images.mT[order], args.vocab_size), y[order]
        vocab, old = MARKS, (as_patches(images[order[:n]], args.vocab_size), y[:n])
    else:
        (vocab, wiki, x, y), n = load_texts(args), 9596
        if len(y) <= n:
            fail(f"--data_root {args.data_root}: the reviews are cut short; unpack them anew")
        order = torch.randperm(len(y))
        x, y, old = x[order], y[order], (wiki, torch.zeros(len(wiki)))
    parts = old, (x[:n], y[:n]), (x[n:], y[n:])
    return vocab, *((x.to(args.device), y.to(args.device)) for x, y in parts)


def as_patches(images, vocab_size):
    """Images (N, 8, 8) -> amounts of words (N, 5, V): [CLS] is word 16, then four patches of 4x4
    pixels, pixel i being so much of word i."""
    x = images.unfold(1, 4, 4).unfold(2, 4, 4).reshape(-1, 4, 16)
    cls = F.one_hot(torch.tensor([16]), 17).expand(len(x), 1, 17)
    return F.pad(torch.cat([cls, F.pad(x, (0, 1))], 1), (0, vocab_size - 17))  # (N, 5, V)


def load_texts(args):
    """The words, rows of them to pretrain on (M, T), reviews (N, T), and which are good (N,)."""
    files = [f"rt-polarity/rt-polarity.{part}" for part in ("neg", "pos")]
    files += [f"wikitext-2/{part}.txt" for part in ("valid", "test")]
    try:
        texts = [Path(args.data_root, file).read_text(encoding="utf-8") for file in files]
        vocab = args.vocab and Path(args.vocab).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        where = f"--dataset rt_polarity: {', '.join(files)} or --vocab cannot be read"
        fail(f"{where} from --data_root {args.data_root}; --dataset digits needs none ({error})")
    texts = [re.sub("<unk>", "[UNK]", text.lower()).strip() for text in texts]
    texts = [[re.findall(r"\[UNK\]|\w+|[^\w\s]", row) for row in t.split("\n")] for t in texts]
    if not vocab:
        count = Counter(word for text in texts for row in text for word in row)
        vocab = MARKS + [word for word, _ in count.most_common() if word != "[UNK]"]
        vocab = vocab[: args.vocab_size]
    ids = {word: at for at, word in enumerate(vocab)}
    if len(vocab) > args.vocab_size or not ids.keys() >= {*MARKS} or ids["[PAD]"]:
        fail(f"--vocab: needs {' '.join(MARKS)}, the first one first; --vocab_size {len(vocab)}")
    neg, pos, *wiki = ([[i for w in row for i in pieces(w, ids)] for row in t] for t in texts)
    stream, n = [i for text in wiki for row in text for i in row], args.seq_len - 2
    cut = [stream[at : at + n] for at in range(0, len(stream), n)]
    y = torch.tensor([0] * len(neg) + [1] * len(pos))
    return vocab, as_rows(cut, ids, args.seq_len), as_rows(neg + pos, ids, args.seq_len), y


def pieces(word, ids):
    """Numbers of the longest pieces that spell a word; ##piece is one inside of it."""
    found, at = [], 0
    while at < len(word):
        ends = range(len(word), at, -1)
        keys = (("##" if at else "") + word[at:end] for end in ends)
        end, key = next(((e, k) for e, k in zip(ends, keys, strict=True) if k in ids), (0, ""))
        if not key:
            return [ids["[UNK]"]]
        found.append(ids[key])
        at = end
    return found


def as_rows(rows, ids, seq_len):
    """Lists of numbers -> (N, T), each between [CLS] and [SEP], cut or padded alike."""
    longest = min(seq_len, max(map(len, rows), default=0) + 2)
    rows = [[ids["[CLS]"], *row[: longest - 2], ids["[SEP]"]] for row in rows]
    return torch.tensor([row + [ids["[PAD]"]] * (longest - len(row)) for row in rows])


# --- train, evaluate, smoke ----------------------------------------------------------------------
def build(args):
    """Return encoder, head and theta, on the device, with --weights if there are any."""
    encoder = BertModel(args.vocab_size, args.seq_len, args.dim, args.depth, args.heads)
    head = TaskHead(args.dim, args.depth, CLASSES[args.dataset])
    theta = Theta(sum(w.numel() for w in maskable(encoder).values()), args.theta_std)
    if args.weights:
        load_weights(args.weights, encoder)
    return encoder.to(args.device), head.to(args.device), theta.to(args.device)


def begin_task(encoder, head, theta, optimizer, args):
    """A new head; theta stays what it is, or is the mask of --method from here on."""
    head.load_state_dict(TaskHead(args.dim, args.depth, len(head.fc2.bias)).state_dict())
    optimizer.state.clear()
    sizes = [w.detach().abs() for w in maskable(encoder).values()]
    if args.method == "random":
        sizes = [torch.rand_like(size) for size in sizes]
    if args.method in ("random", "magnitude"):
        keep = all_but_smallest(sizes, round(args.sparsity * len(theta.theta)))
        theta.load_state_dict({"theta": torch.cat([m.flatten() for m in keep]).float() - 0.5})


def train(args):
    """Pretrain and adapt, or go on from OUT/last.pt; return the metrics of the test set."""
    torch.manual_seed(args.seed)
    vocab, old, (x, y), test = load_data(args)
    encoder, head, theta = build(args)
    rule = {"lr": args.lr, "fused": True}
    optimizer_w = torch.optim.Adam([*encoder.parameters(), *head.parameters()], **rule)
    optimizer_m = torch.optim.Adam([*theta.parameters(), *head.parameters()], **rule)
    state = {"model": encoder, "head": head, "theta": theta}
    state |= {"optimizer_w": optimizer_w, "optimizer_m": optimizer_m}
    epoch, first = begin(args, state), min(args.pretrain_epochs, args.n_epochs - 1)
    Path(args.out, "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            if epoch == first:
                begin_task(encoder, head, theta, optimizer_w, args)
            early, adapts = epoch < first, epoch >= first and args.method == "adapt"
            whole = early or args.method == "finetune"
            encoder.requires_grad_(whole)
            theta.requires_grad_(adapts)
            optimizer = optimizer_w if whole else optimizer_m
            (now, z), begun, end = (old, 0, first) if early else ((x, y), first, args.n_epochs)
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(now)).to(args.device).split(args.batch_size)
            for at, i in enumerate(tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None)):
                share = (epoch - begun + (at + 1) / len(batches)) / (end - begun)
                optimizer.param_groups[0]["lr"] = args.lr * (1 - share)
                if early and args.dataset != "digits":
                    loss = masked_words(encoder, now[i], vocab.index("[MASK]"))
                else:
                    m = None if whole else theta(args.t_l, args.t_s)
                    loss = F.cross_entropy(head(masked(encoder, m, now[i])), z[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if adapts:
                    push(theta.theta, args.sparsity, args.schedule, args.gamma, 2 * share)
                total += loss.detach()
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            m = (theta.theta > 0) | whole  # eq. (1)
            row = {"loss": total.item() / len(batches), "sparsity": 1 - m.float().mean().item()}
            log(args, epoch=epoch, **row, **evaluate(encoder, head, m, *test))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    m = (theta.theta > 0) | (args.method == "finetune")
    bits = pack(m).cpu()
    torch.save({"bits": bits, "head": head.state_dict()}, Path(args.out, "task.pt"))
    found = {"sparsity": 1 - m.float().mean().item(), "mask_bytes": len(bits)}
    return found | evaluate(encoder, head, m, *test)


@torch.inference_mode()
def evaluate(encoder, head, m, x, y):
    z = torch.cat([head(masked(encoder, m, part)) for part in x.split(250)])  # (N, K)
    acc = (z.argmax(1) == y).float().mean()
    return {"test_loss": F.cross_entropy(z, y).item(), "test_acc": acc.item()}


def smoke(args):
    """Pretrain and use what there is as features; then adapt, and prune by magnitude instead."""
    runs, n = {}, max(1, args.n_epochs - args.pretrain_epochs)
    with tempfile.TemporaryDirectory() as folder:
        first = {"method": "magnitude", "sparsity": 0.0}
        then = {"weights": f"{folder}/features/last.pt", "pretrain_epochs": 0, "n_epochs": n}
        cases = {"features": first, "adapt": then, "magnitude": then | {"method": "magnitude"}}
        for name, case in cases.items():
            changed = argparse.Namespace(**vars(args) | case | {"out": f"{folder}/{name}"})
            metrics = train(changed)
            last = torch.load(f"{changed.out}/last.pt", map_location="cpu", weights_only=True)
            runs[name] = metrics, last["model"]
    (_, before), (metrics, after) = runs["features"], runs["adapt"]
    metrics["over_features"] = metrics["test_acc"] - runs["features"][0]["test_acc"]
    metrics["over_magnitude"] = metrics["test_acc"] - runs["magnitude"][0]["test_acc"]
    metrics["changed"] = sum((w != after[name]).sum() for name, w in before.items())
    return report(args, **metrics, sparsity_gap=abs(metrics["sparsity"] - args.sparsity))


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
    add("--n_epochs", type=at_least(1), default=40, help="passes over the training set")
    add("--pretrain_epochs", type=at_least(0), default=20, help="of these; 0 with --weights")
    add("--batch_size", type=at_least(1), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=5e-3, help="adam: learning rate")
    add("--config", choices=[*CONFIGS], default="digits", help="named set of defaults")
    methods = ["adapt", "magnitude", "random", "finetune"]
    add("--method", choices=methods, default="adapt", help="what becomes of the encoder")
    add("--sparsity", type=at_least(0.0, 1.0), default=0.5, help="share s of zeros")
    add("--schedule", choices=["cubic", "gamma"], default="cubic", help="eq. (6), or --gamma")
    add("--gamma", type=at_least(0.0), default=1e-4, help="gamma: what theta loses at each step")
    add("--t_l", type=at_least(0.0), default=1e5, help="factor of theta in the forward pass")
    add("--t_s", type=at_least(0.0), default=10.0, help="factor of theta in the backward pass")
    add("--theta_std", type=at_least(0.0), default=0.001, help="spread of the first theta")
    add("--dim", type=at_least(1), default=48, help="width D")
    add("--depth", type=at_least(1), default=3, help="layers")
    add("--heads", type=at_least(1), default=4, help="heads of attention")
    add("--vocab_size", type=at_least(17), default=17, help="words V")
    add("--seq_len", type=at_least(5), default=5, help="most tokens of a text")
    add("--dataset", choices=[*CLASSES], default="digits", help="digits needs no files")
    add("--data_root", default="data", help="folder of the data sets")
    add("--vocab", help="file of words and pieces, one a line, that a text is spelt with")
    add("--weights", help="state dict or checkpoint to load")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    typed = parser.parse_args(argv)
    parser.set_defaults(**CONFIGS[typed.config])
    if typed.smoke:
        parser.set_defaults(**SMOKE)
    if typed.weights:
        parser.set_defaults(pretrain_epochs=0)
    args = parser.parse_args(argv)
    if args.dim % args.heads:
        fail(f"--dim {args.dim}: does not divide by --heads {args.heads}; choose a multiple")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
