# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Mamba: a language model whose memory is a state of fixed size that chooses what it keeps.

Paper: Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", COLM 2024,
arXiv 2312.00752. The selective scan, which mamba_scan.py derives and tests, is copied from there,
and equations keep the numbers that they have there.

    h'(t) = A h(t) + B u(t)                     (1)  the continuous system of one channel
    B_k, C_k = linear(u_k)                      (2)  selection: the system depends on the input,
    dt_k = softplus(linear(u_k) + bias)         (3)  and so does its step
    a_k = exp(dt_k A)                           (4)  u held for a step (ZOH): exact for A,
    b_k = dt_k B_k u_k                          (5)  to first order (Euler) for B
    h_k = a_k h_{k-1} + b_k                     (6)  recurrence, element by element
    y_k = C_k . h_k + D u_k                     (7)  output, of h_k and not of h_{k-1}
    g_k = C_k dL/dy_k + a_{k+1} g_{k+1}         (9)  backward: g_k = dL/dh_k obeys (6) in reverse
    dL/da_k = g_k h_{k-1},  dL/db_k = g_k       (10)  as g_k is the gradient of a whole step
    block(x) = out(y * silu(z))                 (11)  x', z = in(x),  u = silu(conv(x'))
    x <- x + block(norm(x))                     (13)  a layer; there is no other kind
    P(x_{k+1} | x_1 ... x_k) = softmax(E norm(x))   (14)  E: the embedding, used a second time
    L = -mean_k log P(x_{k+1} | x_1 ... x_k)    (15)  bits per character = L / log 2
    state = (last d_conv - 1 of x', h) of all layers    (16)  all that goes on to the next character

Training sees all k at once; writing goes character by character, and each takes as long as the
first: (16) does not grow, where the cache of a transformer does.

The default text is made up of sentences whose entropy is known, so that the loss can be told from
the best one. `the HOW WHO WHERE SOUND. ` has 4 HOW, 4 WHO and 4 WHERE, all equally likely, and WHO
alone decides SOUND: 6 bits a sentence of 34 characters on the average, 0.1765 a character.

Shapes: B batch, L characters, E width of the model, D = 2 E channels, N states of each, T steps
of a chunk, V characters of the alphabet; x (B, L, E), u, dt, y (B, L, D), h (B, D, N).
Unlike the paper: plain PyTorch for the fused kernel; characters; after the warm-up the step size
falls with the root of its number, so that a run can always go on, where the paper's cosine ends.
Official weights: parameter names are those of state-spaces/mamba: mamba-130m and its larger
siblings load strictly into MambaLM(50280, dim, depth), --config 130m ... 2.8b, and so do those of
transformers. They read and write the tokens of GPT-NeoX, ids that sample() takes and returns.

    python mamba.py                                    a minute; ends near 0.18 bits per character
    python mamba.py --prompt "the old owl "            go on, with OUT/last.pt
    python mamba.py --config tinyshakespeare           0.8M parameters, context 64
    python mamba.py --dataset tinyshakespeare --dim 384 --depth 11 --seq_len 256 --batch_size 64 \
        --n_steps 5000 --lr 2e-3 --amp             10M parameters, for a GPU
    python mamba.py --dataset file --data_root novel.txt
    python mamba.py --smoke                            seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"seq_len": 72, "d_state": 8, "n_steps": 200, "sample_interval": 200}
BARS = {"excess_bits": (-0.01, 0.03), "step_gap": (0.0, 1e-9)}
SIZES = {"130m": (768, 24), "370m": (1024, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}
SMALL = {"dataset": "tinyshakespeare", "dim": 128, "depth": 7, "seq_len": 64, "batch_size": 12}
CONFIGS = {"laptop": {}, "tinyshakespeare": SMALL | {"n_steps": 2000}}
CONFIGS |= {size: {"dim": e, "depth": n, "vocab_size": 50_280} for size, (e, n) in SIZES.items()}


# --- the idea ------------------------------------------------------------------------------------
# Copied from ssm/mamba_scan.py
def discretise(u, dt, A, B):
    """Factors a and terms b (..., N, D) from u, dt (..., D), A (N, D), B (..., N)."""
    a = (dt[..., None, :] * A).exp_()  # (..., N, D)  eq. (1), (4)
    b = (dt * u)[..., None, :] * B[..., None]  # (..., N, D)  eq. (5)
    return a, b


# Copied from ssm/mamba_scan.py
def readout(C, h):
    return (C[..., None, :] @ h)[..., 0, :]  # (..., D)  eq. (7)


# Copied from ssm/mamba_scan.py
def walk(a, b, h):
    """Turn b (B, T, N, D) into the states that follow h (B, N, D), in place."""
    for a_k, b_k in zip(a.unbind(1), b.unbind(1), strict=True):
        h = b_k.addcmul_(a_k, h)  # eq. (6)
    return b


# Copied from ssm/mamba_scan.py
class ChunkScan(torch.autograd.Function):
    """Keeps the state before each chunk of T steps; 8 times 10,000 states fit a CPU's cache."""

    @staticmethod
    def forward(ctx, u, dt, A, B, C, h, T=8):
        y, starts = torch.empty_like(u), []
        for at in range(0, u.shape[1], T):
            k = slice(None), slice(at, at + T)
            starts.append(h)
            hs = walk(*discretise(u[k], dt[k], A, B[k]), h)  # (B, T, N, D)
            y[k] = readout(C[k], hs)
            h = hs[:, -1].clone()  # a view would keep the whole chunk alive
        ctx.save_for_backward(u, dt, A, B, C, torch.stack(starts, 1))
        ctx.T = T
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx, gy, carry):
        u, dt, A, B, C, starts = ctx.saved_tensors
        gu, gdt, gA, gB, gC = map(torch.zeros_like, (u, dt, A, B, C))
        for i in reversed(range(starts.shape[1])):
            k = slice(None), slice(i * ctx.T, (i + 1) * ctx.T)
            a, b = discretise(u[k], dt[k], A, B[k])  # (B, T, N, D)
            h = walk(a, b, starts[:, i])
            g = gy[k][..., None, :] * C[k][..., None]  # (B, T, N, D)
            g[:, -1] += carry
            for t in range(g.shape[1] - 1, 0, -1):
                g[:, t - 1].addcmul_(a[:, t], g[:, t])  # eq. (9)
            carry = a[:, 0] * g[:, 0]  # (B, N, D)
            gC[k] = (h @ gy[k][..., None])[..., 0]  # (B, T, N)
            gB[k] = (g @ (dt[k] * u[k])[..., None])[..., 0]  # (B, T, N)
            gx = readout(B[k], g)  # (B, T, D), of dt u
            p = a * g * torch.cat([starts[:, i : i + 1], h[:, :-1]], 1)  # of dt A: a times eq. (10)
            gu[k], gdt[k] = gx * dt[k], gx * u[k] + (p * A).sum(-2)
            gA += (p * dt[k][..., None, :]).sum((0, 1))
        return gu, gdt, gA, gB, gC, carry, None


# Differs from ssm/mamba_scan.py
def selective_scan(u, dt, A, B, C, D, h=None):
    """Scan on from the state h (B, D, N): y (B, L, D) in the type of u, and the last state. Shapes
    as in mamba_scan.py. Computes in the type of A but at least float32, under autocast as well."""
    exact = torch.promote_types(A.dtype, torch.float32)
    h = u.new_zeros(len(u), *A.shape) if h is None else h
    with torch.autocast(u.device.type, enabled=False):
        y, h = ChunkScan.apply(*(x.to(exact).contiguous() for x in (u, dt, A.mT, B, C, h.mT)))
        return (y + D * u).to(u.dtype), h.mT  # eq. (7)


# --- model ---------------------------------------------------------------------------------------
# Differs from ssm/mamba_scan.py
class MambaBlock(nn.Module):
    """Mixes a sequence (B, L, E) causally, going on from a state. Paper: section 3.4, figure 3;
    names and initial values of the official code, mamba_ssm/modules/mamba_simple.py."""

    def __init__(self, dim, d_state=16, d_conv=4, expand=2):
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.sizes = (rank, d_state, d_state)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))  # (D, N)
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        dt = torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_proj.bias = nn.Parameter(dt + (-(-dt).expm1()).log())  # softplus of it is dt

    def forward(self, x, state=None):
        """x (B, L, E) and the state before it -> (B, L, E) and the state behind it."""
        u, z = self.in_proj(x).chunk(2, -1)  # (B, L, D)
        past, h = state or (u.new_zeros(len(u), self.conv1d.kernel_size[0] - 1, u.shape[2]), None)
        u = torch.cat([past, u], 1)  # (B, d_conv - 1 + L, D)
        past = u[:, u.shape[1] - past.shape[1] :]  # eq. (16)
        u = F.silu(self.conv1d(u.mT).mT)  # (B, L, D)
        dt, B, C = self.x_proj(u).split(self.sizes, -1)  # eq. (2)
        dt = F.linear(dt, self.dt_proj.weight) + self.dt_proj.bias  # float32 under autocast, too
        y, h = selective_scan(u, F.softplus(dt), -self.A_log.exp(), B, C, self.D, h)  # eq. (3)
        return self.out_proj(y * F.silu(z)), (past, h)  # (B, L, E)  eq. (11)


# Differs from ssm/mamba_scan.py
class ResidualBlock(nn.Module):
    def __init__(self, dim, d_state):
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(dim, eps=1e-5), MambaBlock(dim, d_state)

    def forward(self, x, state=None):
        y, state = self.mixer(self.norm(x), state)
        return x + y, state  # eq. (13)


class MambaLM(nn.Module):
    """Symbols x (B, L) and the states they find, or None: scores (B, L, V) of what comes next, and
    the states behind. Official code: MambaLMHeadModel in mamba_ssm/models/mixer_seq_simple.py."""

    def __init__(self, vocab_size, dim, depth, d_state=16):
        super().__init__()
        layers = [ResidualBlock(dim, d_state) for _ in range(depth)]
        parts = {"embedding": nn.Embedding(vocab_size, dim), "layers": nn.ModuleList(layers)}
        self.backbone = nn.ModuleDict(parts | {"norm_f": nn.RMSNorm(dim, eps=1e-5)})
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight
        nn.init.normal_(self.lm_head.weight, std=0.02)
        for layer in layers:
            layer.mixer.out_proj.weight.detach().div_(math.sqrt(depth))  # as many terms add up
        self.register_load_state_dict_pre_hook(from_transformers)

    def forward(self, x, states=None):
        layers, after = self.backbone.layers, []
        x = self.backbone.embedding(x)  # (B, L, E)
        for layer, state in zip(layers, states or [None] * len(layers), strict=True):
            x, state = layer(x, state)
            after.append(state)
        return self.lm_head(self.backbone.norm_f(x)), after  # (B, L, V)  eq. (14)


def from_transformers(model, weights, *_):
    """Take state dicts of transformers, which say embeddings and may leave the tied head out."""
    if "backbone.embeddings.weight" in weights:
        weights["backbone.embedding.weight"] = weights.pop("backbone.embeddings.weight")
        weights.setdefault("lm_head.weight", weights["backbone.embedding.weight"])


# --- data ----------------------------------------------------------------------------------------
HOW = ["black", "small", "old", "young"]
WHO = {"dog": "barks", "cat": "purrs", "cow": "moos", "owl": "hoots"}
WHERE = ["in the barn", "by the river", "near the mill", "behind the hill"]


def load_data(args):
    """Nine tenths of the text and the rest, as numbers (N,) on the device; its characters."""
    torch.manual_seed(args.seed)
    ways = [f"the {how} {who} {at} {WHO[who]}. " for how in HOW for who in WHO for at in WHERE]
    text = "".join(ways[i] for i in torch.randint(64, (4000,)))
    if args.dataset != "sentences":
        file = Path(args.data_root, {"file": ""}.get(args.dataset, "tinyshakespeare/input.txt"))
        if not file.is_file():
            fail(f"--data_root: no file {file}; name a text, or copy it from karpathy/char-rnn")
        text = file.read_text(encoding="utf-8", errors="replace")
    chars = sorted(set(text))
    ids = torch.tensor([*map({c: i for i, c in enumerate(chars)}.get, text)], device=args.device)
    train, test = ids.tensor_split([len(ids) * 9 // 10])
    if len(test) <= args.seq_len:
        fail(f"--seq_len {args.seq_len}: the held-out text has {len(test)} characters; lower it")
    return train, test, chars


# --- train, sample, evaluate, smoke --------------------------------------------------------------
def build(args, chars):
    if (size := args.vocab_size or len(chars)) < len(chars):
        fail(f"--vocab_size {size}: the text has {len(chars)} characters; leave the flag out")
    return MambaLM(size, args.dim, args.depth, args.d_state).to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the unseen text."""
    text, test, chars = load_data(args)
    torch.manual_seed(args.seed)
    model = build(args, chars)
    if args.weights:
        load_weights(args.weights, model)
    groups = [{"params": [], "weight_decay": decay} for decay in (args.weight_decay, 0.0)]
    for name, parameter in model.named_parameters():
        groups[parameter.ndim < 2 or "A_log" in name]["params"].append(parameter)
    betas = args.b1, args.b2
    optimizer = torch.optim.AdamW(groups, args.lr, betas, fused=True)
    state = {"model": model, "optimizer": optimizer}
    step, windows = begin(args, state), text.unfold(0, args.seq_len + 1, 1)  # (N - L, L + 1)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                part = windows[torch.randint(len(windows), (args.batch_size,), device=args.device)]
                with torch.autocast(text.device.type, torch.bfloat16, enabled=args.amp):
                    scores, _ = model(part[:, :-1])  # (B, L, V)
                loss = F.cross_entropy(scores.float().mT, part[:, 1:])  # eq. (15)
                warm = (step + 1) / args.warmup
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * min(warm, warm**-0.5)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                total += loss.detach()
                step += 1
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            log(args, step=step, loss=total.item() / n, **evaluate(model, test, args))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(model, test, args)


def choose(scores, temperature, top_k, top_p):
    """Draw (B, 1) by scores (B, V), of the top_k best and of the fewest that share top_p."""
    if not temperature:
        return scores.argmax(-1, keepdim=True)
    p, symbols = (scores / temperature).softmax(-1).sort(-1, descending=True)
    p = p * (p.cumsum(-1) - p < top_p)
    return symbols.gather(-1, torch.multinomial(p[:, : top_k or None], 1))


@torch.inference_mode()
def sample(model, x, n, temperature=1.0, top_k=0, top_p=1.0, n_symbols=None):
    """Go on after x (B, L), L > 0, one symbol at a time: the n that follow, (B, n)."""
    states, out = None, []
    for _ in range(n):
        scores, states = model(x, states)
        x = choose(scores[:, -1, :n_symbols].float(), temperature, top_k, top_p)  # (B, 1)
        out.append(x)
    return torch.cat(out, 1)


def generate(args):
    """Print --prompt, and how the model goes on once it has read that."""
    *_, chars = load_data(args)
    if not args.prompt or not {*args.prompt} <= {*chars}:
        fail(f"--prompt: {args.prompt!r}; type something made of {''.join(chars)!r} alone")
    model = build(args, chars)
    load_weights(args.weights or f"{args.out}/last.pt", model)
    x = torch.tensor([[*map(chars.index, args.prompt)]], device=args.device)
    torch.manual_seed(args.seed)
    ids = sample(model, x, args.n_tokens, args.temperature, args.top_k, args.top_p, len(chars))
    print(args.prompt + "".join(chars[i] for i in ids[0]))
    return 0


@torch.inference_mode()
def evaluate(model, test, args):
    """Loss on windows of the test text, in nats and bits; bits_late: in their second halves."""
    rows = test.unfold(0, args.seq_len + 1, args.seq_len).split(args.batch_size)  # (B, L + 1)
    losses = [F.cross_entropy(model(x[:, :-1])[0].mT, x[:, 1:], reduction="none") for x in rows]
    loss = torch.cat(losses).mean(0).tolist()  # (L,)
    mean, late = statistics.mean(loss), statistics.mean(loss[len(loss) // 2 :])
    return {"val_loss": mean, "bits": mean / math.log(2), "bits_late": late / math.log(2)}


def smoke(args):
    """A short run in a temporary folder; then, in float64, step by step against all at once."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        text, _, chars = load_data(args)
        model = build(args, chars)
        load_weights(f"{args.out}/last.pt", model)
    x, states, gaps = text[None, :20].cpu(), None, []
    with torch.inference_mode():
        at_once, _ = model.cpu().double()(x)
        for i in range(20):
            scores, states = model(x[:, i : i + 1], states)
            gaps.append((scores[:, 0] - at_once[:, i]).abs().max())
    return report(args, **metrics, excess_bits=metrics["bits_late"] - 6 / 34, step_gap=max(gaps))


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
    add("--config", choices=CONFIGS, default="laptop", help="named set of defaults")
    add(
        "--dataset",
        choices=["sentences", "tinyshakespeare", "file"],
        default="sentences",
        help="text to learn",
    )
    add("--data_root", default="data", help="folder of the data sets; for file, the text itself")
    add("--seq_len", type=at_least(2), default=96, help="symbols L of a window")
    add("--vocab_size", type=at_least(1), help="characters V; default: those of the text")
    add("--dim", type=at_least(1), default=64, help="width E of the model")
    add("--depth", type=at_least(1), default=2, help="layers")
    add("--d_state", type=at_least(1), default=16, help="states N of a channel")
    add("--n_steps", type=at_least(0), default=600, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=16, help="examples per step")
    add("--lr", type=at_least(0.0), default=6e-3, help="adam: learning rate")
    add("--warmup", type=at_least(1), default=100, help="steps over which --lr is reached")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.95, help="adam: decay of its square")
    add("--weight_decay", type=at_least(0.0), default=0.1, help="of the matrices")
    add("--grad_clip", type=at_least(0.0), default=1.0, help="largest norm of the gradient")
    add("--sample_interval", type=at_least(1), default=200, help="steps between evaluations")
    add("--weights", help="state dict or checkpoint to load")
    add("--prompt", help="text to go on with, in the place of training")
    add("--n_tokens", type=at_least(1), default=200, help="symbols to write after --prompt")
    add("--temperature", type=at_least(0.0), default=1.0, help="0: always the likeliest")
    add("--top_k", type=at_least(0), default=0, help="only among so many; 0: all")
    add("--top_p", type=at_least(0.0), default=1.0, help="only among those that have it together")
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
    return parser.parse_args(argv)


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
