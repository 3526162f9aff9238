# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""MiniMind with a mixture of experts: many feed-forward networks, of which each token uses a few.

Papers: Dai et al., "DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts
Language Models", ACL 2024, arXiv 2401.06066: many small experts, and shared ones; the loss of
balance: Fedus, Zoph & Shazeer, "Switch Transformers", JMLR 2022, arXiv 2101.03961; no token is ever
dropped: Gale, Narayanan, Young & Zaharia, "MegaBlocks", MLSys 2023, arXiv 2211.15841. The model
around, (1) to (14), is that of minimind.py, where its papers are named.

    norm(x) = g * x / sqrt(mean(x^2) + eps)     (1)  RMSNorm, before each block of a layer
    w_i = theta^(-2i/d),  i = 0 ... d/2 - 1     (2)  angle that pair i turns by from token to token
    R_n (a, b) = (a cos nw - b sin nw, b cos nw + a sin nw)   (3)  so R_n q . R_m k: n - m alone
    y_n = sum_{m<=n} softmax_m(R_n q_n . R_m k_m / sqrt(d)) v_m    (4)  k, v shared by H/K heads
    FFN(x) = W_down (silu(W_gate x) * W_up x)   (5)  SwiGLU
    x <- x + W_o attention(norm(x)),  x <- x + FFN(norm(x))   (6)  a layer
    P(x_{n+1} | x_1 ... x_n) = softmax(E norm(x))             (7)  E: the embedding once more
    L = -mean_n log P(x_{n+1} | x_1 ... x_n)    (8)  bits per byte = sum / bytes / log 2
    linear: w_i <- w_i / s                      (9)  to read s times the length of training
    NTK: theta <- theta s^(d/(d-2))             (10)  slow pairs stretch by s, fast ones stay
    YaRN: w_i <- (1 - r_i) w_i + r_i w_i / s    (11)  r_i: 0 for 32 turns in that length, 1 for 1
    cos, sin <- (0.1 log s + 1) cos, sin        (12)  YaRN's attention is a little sharper
    z_v <- z_v / p if z_v > 0 else z_v p        (13)  repetition penalty, of tokens v seen before
    draw from the fewest best with sum P >= top_p             (14)  the best one always among them
    p = softmax(W_g x)                          (15)  router: a share for each of M experts
    w_e = p_e / sum of the k largest p, 0 for all others      (16)  k = 1: w_e = p_e, or the text
                                                                    would teach the router nothing
    y = sum_e w_e FFN_e(x) + FFN_shared(x)      (17)  in the place of (5); shared: for every token
    B = M sum_e f_e P_e                         (18)  f_e: share of the choices that fell on e, P_e:
                                                      mean of p_e; 1 if all are alike, M at worst
    L <- L + lambda sum over layers B           (19)  really added, or some experts get everything

Choices are sorted by experts, so that each expert meets its rows as one matrix, and one grouped
product does them all. There is no capacity and nothing is dropped or padded: all tokens may go to
one expert. Weights of all experts are one tensor, so that those without a token get a gradient of
zero rather than none. (18) is of the batch, not of each sequence, and counts k choices as shares of
one, so that the number does not depend on k.

The default text is 10 facts like `Anna likes red.`, in any order: log2(10) bits each, or 0.206 a
byte; a window begins without a past, and costs more.

Shapes: B batch, L tokens, N tokens read so far, E width, H heads, K heads of keys and values,
d = E / H, F width of an expert, V tokens known, M experts, k of them for each of T = B L tokens;
x (B, L, E), p (T, M), choices and their weights (T, k).
Unlike the paper: experts are F = 8/3 E / (k + shared) wide unless told, as much work as one dense
network; v1-moe and minimind3-moe have wide ones. One process trains, where minimind.py shares.
Official weights: without shared experts, state dicts bear the names of MixtralForCausalLM in
transformers 5, load from there and go there.

    python minimind_moe.py                             half a minute: ten facts by heart
    python minimind_moe.py --prompt "Anna likes"       go on, with OUT/last.pt
    python minimind_moe.py --config tinyshakespeare    8 experts and a shared one, context 64
    python minimind_moe.py --config minimind3-moe --dataset file --data_root novel.txt --amp \
        --tokenizer out/bpe_tokenizer/tokenizer.json
    python minimind_moe.py --smoke                     seconds; exits 1 unless all BARS are met
"""

import argparse
import codecs
import contextlib
import json
import math
import os
import re
import sys
import tempfile
import time
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_steps": 250, "sample_interval": 250}
BARS = {"bits_per_byte": (0.2, 0.295), "facts": (8.0, 10.0), "cache_gap": (0.0, 1e-5)}
BARS |= {"least_load": (0.01, 1.0), "most_load": (0.0, 0.7)}
# What builds the model, and travels in the checkpoint.
SHAPE = ["dim", "depth", "heads", "kv_heads", "ffn_dim", "vocab_size", "rope_theta", "qk_norm"]
SHAPE += ["seq_len", "n_routed_experts", "n_shared_experts", "experts_per_token"]
SMALL = {"dataset": "tinyshakespeare", "dim": 128, "depth": 4, "heads": 4, "kv_heads": 4}
SMALL |= {"seq_len": 64, "batch_size": 12, "n_steps": 2000, "warmup": 100}
REAL = {"dim": 512, "depth": 8, "heads": 16, "kv_heads": 8, "ffn_dim": 1408, "vocab_size": 6400}
REAL |= {"seq_len": 340, "batch_size": 32, "lr": 5e-4, "warmup": 100, "n_routed_experts": 4}
CONFIGS = {"laptop": {}, "tinyshakespeare": SMALL, "v1-moe": REAL | {"rope_theta": 1e4}}
CONFIGS["minimind3-moe"] = REAL | {"dim": 768, "heads": 8, "kv_heads": 4, "ffn_dim": 2432}
CONFIGS["minimind3-moe"] |= {"qk_norm": True, "n_shared_experts": 0, "experts_per_token": 1}


# --- the idea ------------------------------------------------------------------------------------
# Copied from llm/minimind.py
def rope_angles(positions, width, theta, scaling="none", factor=1.0, seq_len=2048):
    """cos and sin (N, d) that turn heads of a width d at positions (N,), always in float32."""
    theta = theta * factor ** (width / (width - 2)) if scaling == "ntk" else theta  # eq. (10)
    i, sharp = torch.arange(width // 2, device=positions.device), 1.0
    w = 1.0 / theta ** (2 * i.float() / width)  # (d / 2,)  eq. (2)
    if scaling == "linear":
        w = w / factor  # eq. (9)
    if scaling == "yarn":
        log_length = [math.log(seq_len / (2 * math.pi * turns)) for turns in (32, 1)]
        low, high = (width * length / (2 * math.log(theta)) for length in log_length)
        low, high = max(0, math.floor(low)), min(width - 1, math.ceil(high))
        r = ((i - low) / max(high - low, 1e-3)).clamp(0, 1)
        w = (1 - r) * w + r * w / factor  # eq. (11)
        sharp = 0.1 * math.log(factor) + 1  # eq. (12)
    angles = (positions.float()[:, None] * w).repeat(1, 2)  # (N, d)
    return angles.cos() * sharp, angles.sin() * sharp


# Copied from llm/minimind.py
def rope_turn(x, cos, sin):
    """Turn x (B, L, heads, d), whose pairs are the two halves of a head, by angles of (L, d)."""
    a, b = x.chunk(2, -1)
    turned = x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]  # eq. (3)
    return turned.to(x.dtype)


# Copied from llm/minimind.py
def next_token_loss(scores, targets, n):
    """Sum over scores (B, L, V) of targets (B, L) other than -100, divided by n; in float32."""
    scores, targets = scores.flatten(0, 1).float(), targets.flatten()
    return F.cross_entropy(scores, targets, ignore_index=-100, reduction="sum") / n  # eq. (8)


# Copied from llm/minimind.py
def choose_token(scores, seen=None, temperature=1.0, top_k=0, top_p=1.0, penalty=1.0):
    """Draw (B, 1) by scores (B, V), of the top_k best and of the fewest that share top_p; seen
    (B, V) is true for the tokens of the text so far. Temperature 0 takes the best."""
    if seen is not None:
        tame = torch.where(scores > 0, scores / penalty, scores * penalty)  # eq. (13)
        scores = torch.where(seen, tame, scores)
    if not temperature:
        return scores.argmax(-1, keepdim=True)
    best, ids = scores.sort(-1, descending=True)
    p = (best[:, : top_k or None] / temperature).softmax(-1)
    p = p * (p.cumsum(-1) - p < max(top_p, 1e-9))  # eq. (14)
    return ids.gather(-1, torch.multinomial(p, 1))


def route(x, weight, k):
    """Of tokens x (T, E): shares p (T, M) of all experts, choices (T, k) and their weights (T, k).
    In float32 at least: rounded shares choose other experts."""
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        p = F.linear(x.to(exact), weight.to(exact)).softmax(-1)  # (T, M)  eq. (15)
    w, choice = p.topk(k)
    return p, choice, w / w.sum(-1, keepdim=True) if k > 1 else w  # eq. (16)


def expert_linear(x, weight, ends):
    """Rows of x (A, in), sorted by their experts, whose rows end at ends (M,), by weight (M, out,
    in) of each. One product where the library has it for these numbers, else one an expert."""
    fast = x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and x.device.type == "cpu")
    if fast and hasattr(F, "grouped_mm") and not any(n % 8 for n in weight.shape[1:]):
        return F.grouped_mm(x.contiguous(), weight.mT, offs=ends)  # (A, out)
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([part @ w.T for part, w in zip(x.split(sizes), weight, strict=True)])


def load_balance(p, choice):
    """B, which is 1 if the router finds all alike, and the share (M,) of choices of each expert."""
    f = choice.flatten().bincount(minlength=p.shape[1]) / choice.numel()
    return p.shape[1] * (f * p.mean(0)).sum(), f  # eq. (18)


# --- model ---------------------------------------------------------------------------------------
# Copied from llm/minimind.py
class KVCache:
    """Room for keys and values (B, K, N, d) of every layer, of which the first n are filled."""

    def __init__(self, model, rows, room):
        part = model.model.layers[0].self_attn
        shape = 2, rows, part.kv_heads, room, part.width
        weight = part.k_proj.weight
        self.n, self.layers = 0, [weight.new_empty(shape) for _ in model.model.layers]


# Copied from llm/minimind.py
class Attention(nn.Module):
    """Causal attention of H heads, H / K of which read the same keys and values."""

    def __init__(self, dim, heads, kv_heads, qk_norm=False, dropout=0.0):
        super().__init__()
        self.kv_heads, self.width, self.dropout = kv_heads, dim // heads, dropout
        self.q_proj = nn.Linear(dim, heads * self.width, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * self.width, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * self.width, bias=False)
        self.o_proj = nn.Linear(heads * self.width, dim, bias=False)
        self.q_norm = nn.RMSNorm(self.width, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.width, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x, angles, mask=None, past=None, n=0):
        """x (B, L, E), the n-th token and those after it; mask (..., L, N) is true where one may
        look, None: at all before; past (2, B, K, N, d) holds what came before, and takes x in."""
        parts = (part(x) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.unflatten(-1, (-1, self.width)) for part in parts)  # (B, L, H or K, d)
        q, k = rope_turn(self.q_norm(q), *angles), rope_turn(self.k_norm(k), *angles)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H or K, L, d)
        if past is not None:
            end = n + x.shape[1]
            past[0, :, :, n:end], past[1, :, :, n:end] = k, v
            k, v = past[:, :, :, :end]  # (B, K, N, d)
        drop = self.dropout if self.training else 0.0
        first = mask is None and x.shape[1] > 1
        y = F.scaled_dot_product_attention(q, k, v, mask, drop, first, enable_gqa=True)  # eq. (4)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, L, E)


# Copied from llm/minimind.py
class FeedForward(nn.Module):
    def __init__(self, dim, ffn_dim):
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # eq. (5)


class Experts(nn.Module):
    """M networks like FeedForward, the weights of all in one tensor."""

    def __init__(self, n, dim, ffn_dim):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * ffn_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(n, dim, ffn_dim))

    def forward(self, x, choice, w):
        """Tokens x (T, E), choices and their weights (T, k) -> (T, E)."""
        order = choice.flatten().argsort(stable=True)  # (T k,)
        ends = choice.flatten().bincount(minlength=len(self.down_proj)).cumsum(0).int()
        at, device = order // choice.shape[1], x.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        up, down = self.gate_up_proj.to(low), self.down_proj.to(low)
        rows = x.index_select(0, at).to(low)  # (T k, E)
        gate, y = expert_linear(rows, up, ends).chunk(2, -1)  # (T k, F) each
        y = expert_linear(F.silu(gate) * y, down, ends)  # (T k, E)
        y = y * w.flatten()[order, None].to(low)
        return torch.zeros_like(x, dtype=low).index_add(0, at, y)


class MOEFeedForward(nn.Module):
    """Keeps load (M,) and balance, a loss, of the last batch. Official code: as MiniMindModel."""

    def __init__(self, dim, ffn_dim, n_routed, n_shared, k):
        super().__init__()
        self.k, self.gate = k, nn.Linear(dim, n_routed, bias=False)
        self.experts = Experts(n_routed, dim, ffn_dim)
        self.shared_experts = FeedForward(dim, n_shared * ffn_dim) if n_shared else None

    def forward(self, x):
        rows = x.flatten(0, -2)  # (T, E)
        p, choice, w = route(rows, self.gate.weight, self.k)
        self.balance, self.load = load_balance(p, choice)
        y = self.experts(rows, choice, w)
        y = y + self.shared_experts(rows) if self.shared_experts else y  # eq. (17)
        return y.view_as(x)


# Differs from llm/minimind.py
class MiniMindBlock(nn.Module):
    def __init__(self, dim, heads, kv_heads, ffn_dim, n_routed, n_shared, k, qk_norm, dropout):
        super().__init__()
        eps = 1e-6 if qk_norm else 1e-5
        self.self_attn = Attention(dim, heads, kv_heads, qk_norm, dropout)
        self.mlp = MOEFeedForward(dim, ffn_dim, n_routed, n_shared, k)
        self.input_layernorm = nn.RMSNorm(dim, eps=eps)  # eq. (1)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps=eps)
        self.dropout = dropout

    def forward(self, x, *context):
        y = self.self_attn(self.input_layernorm(x), *context)
        x = x + F.dropout(y, self.dropout, self.training)
        y = self.mlp(self.post_attention_layernorm(x))
        return x + F.dropout(y, self.dropout, self.training)  # eq. (6)


# Copied from llm/minimind.py
class MiniMindModel(nn.Module):
    """Tokens x (B, L) -> (B, L, E). Official code: jingyaogong/minimind, model_minimind.py."""

    def __init__(self, vocab_size, dim, depth, *shape, qk_norm=False, dropout=0.0, **rope):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        blocks = [MiniMindBlock(dim, *shape, qk_norm, dropout) for _ in range(depth)]
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(dim, eps=1e-6 if qk_norm else 1e-5)
        self.rope, self.dropout = rope, dropout

    def forward(self, x, kept=None, pad=None):
        n, mask, at = kept.n if kept else 0, None, torch.arange(x.shape[1], device=x.device)
        angles = rope_angles(n + at, self.layers[0].self_attn.width, **self.rope)
        if (n and len(at) > 1) or pad is not None:
            to = torch.arange(n + len(at), device=x.device)
            mask = to <= n + at[:, None]  # (L, N)
            if pad is not None:  # padding sees itself, as nothing at all would be nan
                mask = mask & (to >= pad[:, None, None]) | (to == n + at[:, None])  # (B, L, N)
                mask = mask[:, None]  # (B, 1, L, N)
        x = F.dropout(self.embed_tokens(x), self.dropout, self.training)  # (B, L, E)
        for i, layer in enumerate(self.layers):
            x = layer(x, angles, mask, kept.layers[i] if kept else None, n)
        if kept:
            kept.n = n + len(at)
        return self.norm(x)


# Copied from llm/minimind.py
class MiniMindForCausalLM(nn.Module):
    """Tokens x (B, L) -> scores (B, L, V) of what comes next. kept: a KVCache of what stands before
    x, which takes x in; pad (B,): tokens to be ignored in front of each row; last: (B, 1, V)."""

    def __init__(self, vocab_size, dim, depth, *shape, **options):
        super().__init__()
        self.model = MiniMindModel(vocab_size, dim, depth, *shape, **options)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                ends = "o_proj" in name or "down_proj" in name  # of a branch, summed up over layers
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) ** ends)

    def forward(self, x, kept=None, pad=None, last=False):
        x = self.model(x, kept, pad)
        return self.lm_head(x[:, -1:] if last else x)  # (B, L, V)  eq. (7)


# --- data ----------------------------------------------------------------------------------------
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


# Copied from llm/bpe_tokenizer.py
@cache
def word_pattern():
    """GPT-2's cut into words, with the classes of Unicode spelled out: Python counts a superscript
    2 among the letters, and four signs more among the blanks."""
    marks = map(chr, range(128, sys.maxunicode))
    numbers = "".join(c for c in marks if unicodedata.category(c) in ("Nl", "No"))
    blank = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
    letter, number = f"(?:(?![{numbers}])[^\\W\\d_])", f"[\\d{numbers}]"
    sign = f"(?:(?![{blank}])[^\\w]|_)"
    ends = f"[{blank}]+(?![^{blank}])|[{blank}]+"
    return re.compile(f"'s|'t|'re|'ve|'m|'ll|'d| ?{letter}+| ?{number}+| ?{sign}+|{ends}")


# Copied from llm/minimind.py
class Tokenizer:
    """Bytes, and what the merges of bpe_tokenizer.py make of them; without any, bytes alone."""

    def __init__(self, merges=()):
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order = plain + [b for b in range(256) if b not in plain]
        self.symbols = [s.encode() for s in SPECIAL] + [bytes([b]) for b in order]
        self.known = {symbol: i for i, symbol in enumerate(self.symbols) if len(symbol) == 1}
        self.merges, self.words = {}, {}
        for rank, (a, b) in enumerate(merges):
            joined = self.symbols[a] + self.symbols[b]
            if self.known.setdefault(joined, len(self.symbols)) == len(self.symbols):
                self.symbols.append(joined)
            self.merges[a, b] = rank, self.known[joined]

    def encode_word(self, data):
        """Numbers of bytes: of all pairs that ever merged, the one that merged first, again."""
        ids = [self.known[bytes([b])] for b in data]
        while pairs := [pair for pair in enumerate(pairwise(ids)) if pair[1] in self.merges]:
            i, pair = min(pairs, key=lambda pair: self.merges[pair[1]])  # the leftmost of equals
            ids[i : i + 2] = [self.merges[pair][1]]
        return ids

    def encode(self, text):
        """Numbers of a text; what looks like a special token in it are letters."""
        ids = []
        for word in word_pattern().findall(text) if self.merges else text:
            if word not in self.words:
                self.words[word] = self.encode_word(word.encode(errors="replace"))
            ids += self.words[word]
        return ids

    def decode(self, ids):
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids):
        """The text that each number completes; bytes that are no UTF-8 become U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            yield decoder.decode(self.symbols[i])
        yield decoder.decode(b"", final=True)

    def state_dict(self):
        return {"merges": [*self.merges]}

    def load_state_dict(self, state):
        self.__init__(state["merges"])


# Copied from llm/minimind.py
def read_tokenizer(args, found):
    """The Tokenizer of --tokenizer, or the one found in a checkpoint; they must not be at odds."""
    if not args.tokenizer:
        return found
    try:
        whole = json.loads(Path(args.tokenizer).read_text(encoding="utf-8"))
        vocab = whole["model"]["vocab"]
        tokenizer = Tokenizer([(vocab[a], vocab[b]) for a, b in whole["model"]["merges"]])
        good = len(vocab) == len(tokenizer.symbols) and vocab["~"] == tokenizer.known[b"~"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        good = False
    if not good:
        fail(f"--tokenizer {args.tokenizer}: is no file of bpe_tokenizer.py; make one with that")
    if found.merges and found.merges != tokenizer.merges:
        fail(f"--tokenizer {args.tokenizer}: not that of the checkpoint, which it brings; drop it")
    return tokenizer


FACTS = {"Anna": "red", "Ben": "blue", "Carl": "green", "Dora": "pink", "Emil": "black"}
FACTS |= {"Fay": "white", "Gus": "brown", "Hana": "gold", "Ivo": "grey", "Jane": "violet"}


def load_data(args, tokenizer):
    """Nine tenths of the text and the last tenth, (N,); <|endoftext|> is behind each document."""
    torch.manual_seed(args.seed)
    facts = [f"{who} likes {what}." for who, what in FACTS.items()]
    texts = [facts[i] for i in torch.randint(len(facts), (3000,))]
    if args.dataset != "facts":
        file = Path(args.data_root, {"file": ""}.get(args.dataset, "tinyshakespeare/input.txt"))
        if not file.is_file():
            fail(f"--data_root: no file {file}; name another, --dataset facts needs none")
        texts = [file.read_text(encoding="utf-8", errors="replace")]
    ids = torch.tensor([i for text in texts for i in (*tokenizer.encode(text), 0)])
    train, test = ids.to(args.device).tensor_split([len(ids) * 9 // 10])
    if len(test) <= args.seq_len:
        fail(f"--seq_len {args.seq_len}: the held-out text has {len(test)} tokens; lower it")
    return train, test


# --- train, sample, evaluate, smoke --------------------------------------------------------------
def build(args, tokenizer):
    if (size := args.vocab_size or len(tokenizer.symbols)) < len(tokenizer.symbols):
        fail(f"--vocab_size {size}: the tokenizer has {len(tokenizer.symbols)}; leave it out")
    n, shared, k = args.n_routed_experts, args.n_shared_experts, args.experts_per_token
    shape = size, args.dim, args.depth, args.heads, args.kv_heads
    hidden = args.ffn_dim or 16 * math.ceil(args.dim * 8 / 3 / (k + shared) / 16)
    options = {"theta": args.rope_theta, "qk_norm": args.qk_norm}
    return MiniMindForCausalLM(*shape, hidden, n, shared, k, **options).to(args.device)


# Copied from llm/minimind.py
def adopt(args, path):
    """Take the numbers of the model from a checkpoint; return its tokenizer and its stage. Without
    them, as in a state dict, flags tell; of what is no such file load_weights tells."""
    try:
        saved = dict(torch.load(path, map_location="cpu", weights_only=True))
        merges, made = saved["tokenizer"]["merges"], {key: saved["args"][key] for key in SHAPE}
    except Exception:
        return Tokenizer(), "unknown"
    vars(args).update(made)
    return Tokenizer(merges), saved["args"]["stage"]


# Copied from vision/resnet.py
def rate(done, total, warmup):
    """Share of --lr after done of total epochs: up in a straight line, down along a cosine."""
    if done < warmup:
        return done / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / max(total - warmup, 1e-9))


# Copied from llm/minimind.py
def adamw(args, model):
    """The optimizer: matrices decay, the weights of norms do not."""
    groups = [{"params": [], "weight_decay": decay} for decay in (args.weight_decay, 0.0)]
    for parameter in model.parameters():
        groups[parameter.ndim < 2]["params"].append(parameter)
    return torch.optim.AdamW(groups, args.lr, (args.b1, args.b2), fused=True)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the unseen text."""
    tokenizer = read_tokenizer(args, adopt(args, args.weights)[0])
    text, test = load_data(args, tokenizer)
    torch.manual_seed(args.seed)
    model = build(args, tokenizer)
    if args.weights:
        load_weights(args.weights, model)
    windows = text.unfold(0, args.seq_len + 1, 1)  # (N - L, L + 1)
    optimizer = adamw(args, model)
    step = begin(args, state := {"model": model, "optimizer": optimizer, "tokenizer": tokenizer})
    try:
        while step < args.n_steps:
            model.train()
            total = torch.zeros(2, device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                part = windows[torch.randint(len(windows), (args.batch_size,), device=args.device)]
                with torch.autocast(text.device.type, torch.bfloat16, enabled=args.amp):
                    scores = model(part[:, :-1])  # (B, L, V)
                loss = next_token_loss(scores, part[:, 1:], part[:, 1:].numel())
                balance = sum(layer.mlp.balance for layer in model.model.layers)
                total += torch.stack([loss, balance]).detach()
                loss = loss + args.lambda_balance * balance  # eq. (19)
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * (0.1 + 0.9 * rate(step + 1, args.n_steps, args.warmup))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                step += 1
            if not total.isfinite().all():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            loss, balance = (total / n).tolist()
            row = {"loss": loss, "balance": balance / args.depth}
            log(args, step=step, **row, **evaluate(model, test, args, tokenizer))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(model, test, args, tokenizer)


# Copied from llm/minimind.py
@torch.inference_mode()
def sample(model, prompts, n, stop=None, n_tokens=None, **how):
    """Go on after prompts, B lists of numbers of any length; yield the next numbers (B,), up to n
    times or until all have said stop, which goes on saying stop. n_tokens: use no others."""
    model.eval()
    device, longest = model.lm_head.weight.device, max(map(len, prompts))
    pad = torch.tensor([longest - len(ids) for ids in prompts], device=device)
    x = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts], device=device)
    kept, vocab_size = KVCache(model, len(x), longest + n), model.lm_head.out_features
    done = torch.zeros(len(x), 1, dtype=torch.bool, device=device)
    seen = torch.zeros(len(x), vocab_size, dtype=torch.bool, device=device)
    for row, ids in zip(seen, prompts, strict=True):
        row[ids] = True
    pad = pad if min(map(len, prompts)) < longest else None
    for _ in range(n):
        scores = model(x, kept, pad, last=True)[:, -1, :n_tokens].float()  # (B, V)
        x = choose_token(scores, seen[:, :n_tokens], **how)  # (B, 1)
        seen.scatter_(1, x, True)
        if stop is not None:
            x = x.masked_fill(done, stop)
            done |= x == stop
        yield x[:, 0]
        if stop is not None and done.all():
            return


def generate(args):
    path = args.weights or f"{args.out}/last.pt"
    tokenizer = read_tokenizer(args, adopt(args, path)[0])
    model = build(args, tokenizer)
    load_weights(path, model)
    if not 0 < len(ids := tokenizer.encode(args.prompt)) <= args.seq_len:
        fail(f"--prompt: {len(ids)} tokens, 1 to {args.seq_len} are possible; shorten it")
    torch.manual_seed(args.seed)
    how = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    how |= {"penalty": args.penalty, "n_tokens": len(tokenizer.symbols), "stop": 0}
    drawn = sample(model, [ids], args.n_tokens, **how)
    print(args.prompt, end="")
    for piece in tokenizer.decode_stream(ids.item() for ids in drawn if ids.item()):
        print(piece, end="", flush=True)
    print()
    return 0


@torch.inference_mode()
def evaluate(model, test, args, tokenizer):
    """Loss of unseen text (N,); least and largest share of the choices that an expert gets."""
    model.eval()
    sizes = [0 if i < len(SPECIAL) else len(s) for i, s in enumerate(tokenizer.symbols)]
    windows = test.unfold(0, args.seq_len + 1, args.seq_len)[: args.n_test]  # (W, L + 1)
    sums, loads = [], []
    for x in windows.split(args.batch_size):
        with torch.autocast(test.device.type, torch.bfloat16, enabled=args.amp):
            sums.append(next_token_loss(model(x[:, :-1]), x[:, 1:], 1.0))
        loads.append(torch.stack([layer.mlp.load for layer in model.model.layers]))
    load, loss = torch.stack(loads).mean(0), torch.stack(sums).sum().item()
    size = torch.tensor(sizes, device=test.device)[windows[:, 1:]].sum().item()
    metrics = {"val_loss": loss / windows[:, 1:].numel()}
    metrics |= {"bits_per_byte": loss / math.log(2) / max(size, 1)}
    return metrics | {"least_load": load.min().item(), "most_load": load.max().item()}


def smoke(args):
    """A short run in a temporary folder; facts by heart; then identities, in float64."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        tokenizer, _ = adopt(args, f"{args.out}/last.pt")
        model = build(args, tokenizer)
        load_weights(f"{args.out}/last.pt", model)
    asked = [tokenizer.encode(f"{who} likes") for who in FACTS]
    said = torch.stack([*sample(model, asked, 12, 0, temperature=0)], 1).tolist()
    said = [tokenizer.decode(i for i in ids if i) for ids in said]
    facts = sum(text == f" {what}." for text, what in zip(said, FACTS.values(), strict=True))
    model, x = model.cpu().double(), load_data(args, tokenizer)[0][:60].view(2, 30).cpu()
    kept = KVCache(model, 2, 30)
    with torch.inference_mode():
        parts = torch.cat([model(part, kept) for part in x.split([12, 10, *[1] * 8], 1)], 1)
        padded = model(x, pad=torch.tensor([7, 0]))[0, 7:] - model(x[:1, 7:])[0]
        cache_gap = max((parts - model(x)).abs().max(), padded.abs().max())
    return report(args, **metrics, facts=facts, cache_gap=cache_gap)


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
    parser.set_defaults(stage="moe")  # goes into the checkpoint
    add = parser.add_argument
    add("--config", choices=[*CONFIGS], default="laptop", help="named set of defaults")
    add(
        "--dataset",
        choices=["facts", "tinyshakespeare", "file"],
        default="facts",
        help="text to learn",
    )
    add("--data_root", default="data", help="folder of the data sets; for file, the text itself")
    add("--tokenizer", help="tokenizer.json of bpe_tokenizer.py; default: bytes")
    add("--seq_len", type=at_least(2), default=48, help="tokens L of a window")
    add("--vocab_size", type=at_least(1), help="tokens V; default: those of the tokenizer")
    add("--dim", type=at_least(1), default=64, help="width E of the model")
    add("--depth", type=at_least(1), default=2, help="layers")
    add("--heads", type=at_least(1), default=4, help="heads H")
    add("--kv_heads", type=at_least(1), default=2, help="heads K of keys and values")
    add("--ffn_dim", type=at_least(1), help="width F of an expert; default: see above")
    add("--rope_theta", type=at_least(1.5), default=1e6, help="theta of eq. (2)")
    add("--qk_norm", action="store_true", help="normalise queries and keys, as Qwen3 does")
    add("--n_routed_experts", type=at_least(2), default=8, help="M, experts to choose from")
    add("--n_shared_experts", type=at_least(0), default=1, help="experts that all tokens use")
    add("--experts_per_token", type=at_least(1), default=2, help="k, experts that a token chooses")
    add("--lambda_balance", type=at_least(0.0), default=0.01, help="lambda of eq. (19)")
    add("--n_steps", type=at_least(0), default=600, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=16, help="examples per step")
    add("--lr", type=at_least(0.0), default=3e-3, help="adam: learning rate")
    add("--warmup", type=at_least(0), default=20, help="steps over which --lr is reached")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.95, help="adam: decay of its square")
    add("--weight_decay", type=at_least(0.0), default=0.1, help="of the matrices")
    add("--grad_clip", type=at_least(0.0), default=1.0, help="largest norm of the gradient")
    add("--sample_interval", type=at_least(1), default=200, help="steps between evaluations")
    add("--n_test", type=at_least(1), default=2000, help="windows of unseen text to score")
    add("--weights", help="state dict or checkpoint to load")
    add("--prompt", help="text to go on with, in the place of training")
    add("--n_tokens", type=at_least(1), default=200, help="tokens to write after --prompt")
    add("--temperature", type=at_least(0.0), default=1.0, help="0: always the likeliest")
    add("--top_k", type=at_least(0), default=0, help="only among so many; 0: all")
    add("--top_p", type=at_least(0.0), default=1.0, help="only among those that have it together")
    add("--penalty", type=at_least(1.0), default=1.0, help="p of eq. (13) against repetition")
    add("--amp", action="store_true", help="bfloat16 autocast")
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
    if args.dim % (2 * args.heads) or args.dim // args.heads < 4:
        fail(
            f"--heads {args.heads}: heads of --dim {args.dim} need an even width from 4; change it"
        )
    if args.heads % args.kv_heads:
        fail(f"--kv_heads {args.kv_heads}: must divide --heads {args.heads}; change either")
    if args.experts_per_token > args.n_routed_experts:
        fail(
            f"--experts_per_token {args.experts_per_token}: more than --n_routed_experts; lower it"
        )
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.prompt is not None:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
