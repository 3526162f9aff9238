# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""RetNet: retention, an attention whose weights fade with the distance instead of being compared,
so that the past fits a matrix; in parallel, step by step, and chunk by chunk.

Paper: Sun, Dong, Huang, Ma, Xia, Xue, Wang & Wei, "Retentive Network: A Successor to Transformer
for Large Language Models", 2023, arXiv 2307.08621. Equations (13) to (16) are those of mamba.py.

    q_n, k_n, v_n = W_Q x_n, W_K x_n / sqrt(K), W_V x_n   (1)  of one head
    q_n, k_n <- q_n e^{i n theta}, k_n e^{i n theta}      (2)  pairs of numbers as complex ones:
                                                               q_n . k_m depends on n - m alone
    gamma = 1 - 2^(-5 - h)                      (3)  decay of head h: 32, 64, 128 ... steps
    y = (q k^T * D) v,  D_nm = gamma^(n-m)      (4)  parallel; D_nm = 0 for n < m, the future
    S_n = gamma S_{n-1} + k_n^T v_n,  y_n = q_n S_n       (5)  recurrent: the same numbers
    y_i <- y_i + gamma^(i+1) q_i S              (6)  chunk: (4) inside it, i = 0 ... T - 1, and S
    S <- gamma^T S + sum_j gamma^(T-1-j) k_j^T v_j        (7)  for all that came before it
    MSR(x) = W_O (silu(W_G x) * norm(y))        (8)  gate; norm: of each head, without weights
    FFN(x) = W_2 gelu(W_1 x)                    (9)
    x <- x + MSR(norm(x)),  x <- x + FFN(norm(x))         (13)  a layer
    P(x_{k+1} | x_1 ... x_k) = softmax(E norm(x))   (14)  E: the embedding, used a second time
    L = -mean_k log P(x_{k+1} | x_1 ... x_k)    (15)  bits per character = L / log 2
    state = (S, n) of all layers                (16)  all that goes on to the next character

The three forms compute one function. (4) takes L^2 operations, all of them at once, (5) takes L
steps and the same time for each character, (6) and (7) take L T operations and L / T steps: chunks
are for training, and (5) is for writing.

The default text is made up of sentences whose entropy is known, so that the loss can be told from
the best one. `the HOW WHO WHERE SOUND. ` has 4 HOW, 4 WHO and 4 WHERE, all equally likely, and WHO
alone decides SOUND: 6 bits a sentence of 34 characters on the average, 0.1765 a character.

Shapes: B batch, L characters, E width of the model, H heads, K = E / H numbers of a query or key,
M = 2 K of a value, T steps of a chunk, V characters of the alphabet; x (B, L, E), q and k
(B, H, L, K), v and y (B, H, L, M), S (B, H, K, M).
Unlike the paper: RMS norms for layer and group norm, as in the official code; scores are not
divided by the sum of their row, as norm(y) would undo it; characters; after the warm-up the step
size falls with the root of its number, so that a run can always go on.
Official weights: none were published; parameter names, angles and initial values are those of
microsoft/torchscale, torchscale/architecture/retnet.py.

    python retnet.py                                   a minute; ends near 0.18 bits per character
    python retnet.py --prompt "the old owl "           go on, with OUT/last.pt
    python retnet.py --config tinyshakespeare          0.8M parameters, context 64
    python retnet.py --dataset tinyshakespeare --dim 384 --depth 6 --heads 6 --seq_len 256 \
        --batch_size 64 --n_steps 5000 --lr 2e-3 --amp 11M parameters, for a GPU
    python retnet.py --dataset file --data_root novel.txt
    python retnet.py --smoke                           seconds; exits 1 unless all BARS are met
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
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"seq_len": 72, "n_steps": 300, "sample_interval": 300}
BARS = {"excess_bits": (-0.01, 0.036), "step_gap": (0.0, 1e-9), "form_gap": (0.0, 1e-12)}
SIZES = {"1.3b": (2048, 24, 8, 6e-4), "2.7b": (2560, 32, 10, 3e-4), "6.7b": (4096, 32, 16, 3e-4)}
SMALL = {"dataset": "tinyshakespeare", "dim": 128, "depth": 4, "seq_len": 64, "batch_size": 12}
CONFIGS = {"laptop": {}, "tinyshakespeare": SMALL | {"n_steps": 2000}}
CONFIGS |= {
    size: dict(zip(("dim", "depth", "heads", "lr"), made, strict=True)) | {"warmup": 375}
    for size, made in SIZES.items()
}


# --- the idea ------------------------------------------------------------------------------------
def rotate(x, n):
    """Turn x (B, H, L, K), whose first step is the n-th of all, by angles that grow with n."""
    theta = 1e4 ** -torch.linspace(0, 1, x.shape[-1] // 2, dtype=x.dtype, device=x.device)
    angle = (n + torch.arange(x.shape[-2], device=x.device))[:, None] * theta  # (L, K / 2)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # (B, H, L, K / 2)
    turned = pairs * torch.polar(torch.ones_like(angle), angle)  # eq. (2)
    return torch.view_as_real(turned).flatten(-2)  # (B, H, L, K)


def parallel(q, k, v, gamma, S):
    """All steps at once; gamma (H, 1, 1). S (B, H, K, M) is the state before, then behind them."""
    n = torch.arange(q.shape[2], device=q.device)
    D = (gamma ** (n[:, None] - n).relu()).tril()  # (H, L, L)
    y = (q @ k.mT * D) @ v  # (B, H, L, M)  eq. (4)
    n = n[:, None]
    y = y + gamma ** (n + 1) * (q @ S)  # eq. (6)
    return y, gamma ** len(n) * S + (gamma ** n.flip(0) * k).mT @ v  # eq. (7)


def chunkwise(q, k, v, gamma, S, T=64):
    """Chunks of T steps, each at once, one after the other; the last one may be shorter."""
    ys = []
    for part in zip(*(x.split(T, 2) for x in (q, k, v)), strict=True):
        y, S = parallel(*part, gamma, S)
        ys.append(y)
    return torch.cat(ys, 2), S


# Differs from ssm/linear_ssm.py
def recurrent(q, k, v, gamma, S):
    """One step after the other."""
    ys = []
    for q_n, k_n, v_n in zip(*(x.split(1, 2) for x in (q, k, v)), strict=True):
        S = gamma * S + k_n.mT @ v_n
        ys.append(q_n @ S)  # eq. (5)
    return torch.cat(ys, 2), S


FORMS = {"chunk": chunkwise, "parallel": parallel, "recurrent": recurrent}


def retention(q, k, v, S=None, n=0, form="chunk"):
    """Go on from the state S behind n steps: y (B, H, L, M), and the last state. Computes in
    float32 at least, under autocast as well: in bfloat16 the gamma of most heads rounds to 1."""
    exact = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.to(exact) for x in (q, k, v))
        h = torch.arange(q.shape[1], dtype=exact, device=q.device)
        gamma = 1 - 2 ** (-5 - h[:, None, None])  # (H, 1, 1)  eq. (3)
        S = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if S is None else S
        k = k / math.sqrt(k.shape[-1])  # eq. (1)
        return FORMS[form](rotate(q, n), rotate(k, n), v, gamma, S)


# --- model ---------------------------------------------------------------------------------------
class MultiScaleRetention(nn.Module):
    """Mixes a sequence (B, L, E) causally, going on from a state. Paper: section 2.2; names and
    initial values of the official code, torchscale/component/multiscale_retention.py."""

    def __init__(self, dim, heads, form="chunk"):
        super().__init__()
        self.heads, self.form = heads, form
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.g_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.out_proj = nn.Linear(2 * dim, dim, bias=False)
        for part in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            nn.init.xavier_uniform_(part.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out_proj.weight, gain=0.5)

    def forward(self, x, state=None):
        """x (B, L, E) and the state before it -> (B, L, E) and the state behind it."""
        parts = (part(x) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        S, n = state or (None, 0)
        y, S = retention(q, k, v, S, n, self.form)  # (B, H, L, M)
        y = F.rms_norm(y, y.shape[-1:], eps=1e-6).transpose(1, 2).flatten(2)  # (B, L, 2 E)
        y = self.out_proj(F.silu(self.g_proj(x)) * y)  # (B, L, E)  eq. (8)
        return y, (S, n + x.shape[1])  # eq. (16)


class FeedForwardNetwork(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * dim, bias=False)
        self.fc2 = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))  # eq. (9)


class DecoderLayer(nn.Module):
    def __init__(self, dim, heads, form):
        super().__init__()
        self.retention_layer_norm = nn.RMSNorm(dim, eps=1e-6)
        self.retention = MultiScaleRetention(dim, heads, form)
        self.final_layer_norm, self.ffn = nn.RMSNorm(dim, eps=1e-6), FeedForwardNetwork(dim)

    def forward(self, x, state=None):
        y, state = self.retention(self.retention_layer_norm(x), state)
        x = x + y
        return x + self.ffn(self.final_layer_norm(x)), state  # eq. (13)


class RetNetLM(nn.Module):
    """Symbols x (B, L) and the states they find, or None: scores (B, L, V) of what comes next, and
    the states behind. Official code: RetNetDecoder in torchscale/architecture/retnet.py."""

    def __init__(self, vocab_size, dim, depth, heads, form="chunk"):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList([DecoderLayer(dim, heads, form) for _ in range(depth)])
        self.layer_norm = nn.RMSNorm(dim, eps=1e-6)
        self.output_projection = nn.Linear(dim, vocab_size, bias=False)
        self.output_projection.weight = self.embed_tokens.weight
        nn.init.normal_(self.embed_tokens.weight, std=dim**-0.5)

    def forward(self, x, states=None):
        after = []
        x = self.embed_tokens(x)  # (B, L, E)
        for layer, state in zip(self.layers, states or [None] * len(self.layers), strict=True):
            x, state = layer(x, state)
            after.append(state)
        return self.output_projection(self.layer_norm(x)), after  # (B, L, V)  eq. (14)


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
    return RetNetLM(size, args.dim, args.depth, args.heads, args.form).to(args.device)


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the unseen text."""
    text, test, chars = load_data(args)
    torch.manual_seed(args.seed)
    model = build(args, chars)
    if args.weights:
        load_weights(args.weights, model)
    groups = [{"params": [], "weight_decay": decay} for decay in (args.weight_decay, 0.0)]
    for parameter in model.parameters():
        groups[parameter.ndim < 2]["params"].append(parameter)
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


# Copied from ssm/mamba.py
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
    """A short run in a temporary folder; then, in float64, step by step against all at once, and
    gradients of y and S by all forms."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
        text, _, chars = load_data(args)
        model = build(args, chars)
        load_weights(f"{args.out}/last.pt", model)
    x, states, gaps, grads = text[None, :100].cpu(), None, [], []
    with torch.inference_mode():
        at_once, _ = model.cpu().double()(x)
        for i in range(100):
            scores, states = model(x[:, i : i + 1], states)
            gaps.append((scores[:, 0] - at_once[:, i]).abs().max())
    x = torch.rand(3, 2, 5, 100, 6, dtype=torch.float64, requires_grad=True)  # q, k, v
    for form in FORMS:
        y, S = retention(*x, x[0, :, :, :6], 7, form)
        grads += torch.autograd.grad(y.square().sum() + S.square().sum(), x)
    form_gap = max((g - grads[0]).abs().max() / grads[0].abs().max() for g in grads)
    excess = metrics["bits_late"] - 6 / 34
    return report(args, **metrics, excess_bits=excess, step_gap=max(gaps), form_gap=form_gap)


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
    add("--heads", type=at_least(1), default=4, help="heads H, each with a decay of its own")
    add("--form", choices=FORMS, default="chunk", help="how retention is computed")
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
    args = parser.parse_args(argv)
    if args.dim % (2 * args.heads):
        fail(f"--heads {args.heads}: heads of --dim {args.dim} need an even width; change either")
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
