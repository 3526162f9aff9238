# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Language models of characters: a window of the last tau, and a recurrent network from scratch.

Paper: Elman, "Finding Structure in Time", Cognitive Science, 1990; truncated backpropagation
through time: Williams & Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of
Recurrent Network Trajectories", Neural Computation, 1990; clipping: Pascanu, Mikolov & Bengio,
"On the Difficulty of Training Recurrent Neural Networks", ICML 2013, arXiv 1211.5063.

    h_t = tanh(x_t W_xh + b_xh + h_{t-1} W_hh + b_hh)     (1)  --model rnn: a summary of the past
    h_t = tanh(sum_{k<tau} x_{t-k} W_k)                   (2)  --model window: no older character
    P(x_{t+1} | h_t) = softmax(h_t W_hq + b_q)            (3)  a distribution, not a character
    L = -mean_t log P(x_{t+1} | h_t)                      (4)  the target is the input, shifted
    dh_{sT} / dh_{sT-1} := 0, for s = 1, 2, ...           (5)  truncated: the state goes on into
                                                               the next T steps, no gradient back
    g <- min(1, theta / |g|) g                            (6)  clipping: the direction stays
    bits per character = L / log 2,  perplexity = e^L     (7)  on text that was never seen
    argmax(scores + temperature * gumbel noise)           (8)  drawn from softmax(scores /
                                                               temperature); at 0 the likeliest

Without (5) the second backward pass fails, as the first has freed its part of the graph; had it
not, each pass would reach further back than the one before. On its way back through (1) a gradient
is multiplied by W_hh and 1 - h^2 at every step: it may grow, which (6) tames, or vanish, which
nothing in here prevents.

The default text is made up of sentences whose entropy is known, so that the loss can be told from
the best one. `the HOW WHO WHERE SOUND. ` has 4 HOW, 4 WHO and 4 WHERE, all equally likely, and WHO
alone decides SOUND: 6 bits a sentence of 34 characters on the average, 0.1765 a character. A model
that sees 8 characters has forgotten WHO when SOUND comes, and pays 8 bits, 0.2353 a character. By
their frequencies alone characters cost 4.04, by the one character before 1.81.

Shapes: B rows of text read side by side, T steps of a window of BPTT, V characters, H hidden units,
tau characters of context; x (B, T), h (B, H), scores (B, T, V), W_xh (V, H) as its transpose.
Unlike the paper: characters for words; Adam; x_t W_xh is looked up as a row, since x_t is one-hot;
the first 32 characters of each row of the test text warm the state up and are not judged.

    python rnn_lm.py                                  seconds; ends at 0.18 bits per character
    python rnn_lm.py --model window                   cannot get below 0.2353
    python rnn_lm.py --prompt "the old owl"           go on, with OUT/last.pt, as is likeliest
    python rnn_lm.py --dataset tinyshakespeare --hidden 256 --seq_len 64 --lr 2e-3 --n_steps 4000
    python rnn_lm.py --smoke                          seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Lowest and highest value that pass under --smoke.
BARS = {"excess_bits": (-0.005, 0.015)}


# --- model ---------------------------------------------------------------------------------------
class RNN(nn.RNN):
    """The parameters of nn.RNN; its forward pass for x (B, T) and h (B, H), written out."""

    def forward(self, x, h=None):
        rows = F.embedding(x, self.weight_ih_l0.T) + self.bias_ih_l0 + self.bias_hh_l0  # (B, T, H)
        states = [torch.zeros_like(rows[:, 0]) if h is None else h]
        for row in rows.unbind(1):
            states.append(torch.addmm(row, states[-1], self.weight_hh_l0.T).tanh())  # eq. (1)
        return torch.stack(states[1:], 1), states[-1]  # (B, T, H), (B, H)


class Window(nn.Module):
    """The same for a state (B, tau) that is the last characters alone; at first they are 0."""

    def __init__(self, n_chars, hidden, tau):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(tau, n_chars, hidden) * tau**-0.5)

    def forward(self, x, past=None):
        past = x.new_zeros(len(x), len(self.weight)) if past is None else past
        seen = torch.cat([past, x], 1)[:, 1:].unfold(1, past.shape[1], 1)  # (B, T, tau)
        terms = (F.embedding(seen[..., -1 - k], W) for k, W in enumerate(self.weight))
        return sum(terms).tanh(), seen[:, -1]  # (B, T, H), (B, tau)  eq. (2)


class CharLM(nn.Module):
    """Characters x (B, T) and the state they find: scores of the next ones, and the new state."""

    def __init__(self, kind, n_chars, hidden, tau):
        super().__init__()
        self.layer = RNN(n_chars, hidden) if kind == "rnn" else Window(n_chars, hidden, tau)
        self.head = nn.Linear(hidden, n_chars)

    def forward(self, x, state=None):
        h, state = self.layer(x, state)
        return self.head(h), state  # (B, T, V)  eq. (3)


# --- the idea ------------------------------------------------------------------------------------
def window_loss(model, text, state=None):
    """Loss on text (B, T + 1), and the state at its end, from which no gradient comes back."""
    scores, state = model(text[:, :-1], state)
    return F.cross_entropy(scores.mT, text[:, 1:]), state.detach()  # eq. (4), (5)


def clip_gradient(parameters, theta):
    """Scale the gradients, in place, as if they were one vector."""
    norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
    for p in parameters:
        p.grad *= (theta / (norm + 1e-6)).clamp(max=1.0)  # 1e-6 as torch has it  eq. (6)


# --- data ----------------------------------------------------------------------------------------
HOW = ["black", "small", "old", "young"]
WHO = {"dog": "barks", "cat": "purrs", "cow": "moos", "owl": "hoots"}
WHERE = ["in the barn", "by the river", "near the mill", "behind the hill"]


def load_data(args):
    """Nine tenths of the text and the rest, as numbers in batch_size rows; the characters."""
    torch.manual_seed(args.seed)
    ways = [f"the {how} {who} {at} {WHO[who]}. " for how in HOW for who in WHO for at in WHERE]
    text = "".join(ways[i] for i in torch.randint(64, (4000,)))
    if args.dataset == "tinyshakespeare":
        file = Path(args.data_root, "tinyshakespeare", "input.txt")
        if not file.is_file():
            fail(f"--data_root: no file {file}; copy it from github.com/karpathy/char-rnn")
        text = file.read_text(encoding="utf-8", errors="replace")
    chars, n = sorted(set(text)), args.batch_size
    ids = torch.tensor([*map(chars.index, text)], device=args.device)
    parts = ids.tensor_split([len(ids) * 9 // 10])
    train, test = (p[: len(p) // n * n].view(n, len(p) // n) for p in parts)
    if train.shape[1] <= args.seq_len or test.shape[1] < 34:
        fail("--batch_size: rows of text are too short; lower it, or --seq_len")
    return train, test, chars


# --- train, evaluate, smoke ----------------------------------------------------------------------
def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the unseen text."""
    text, test, chars = load_data(args)
    model = CharLM(args.model, len(chars), args.hidden, args.tau).to(args.device)
    if args.weights and not args.resume:
        load_weights(args.weights, model)
    optimizer, carry = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True), nn.Module()
    carry.register_buffer("state", model(text[:, :1])[1].detach())
    state = {"model": model, "optimizer": optimizer, "carry": carry}
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                at = step % ((text.shape[1] - 1) // args.seq_len) * args.seq_len
                part = text[:, at : at + args.seq_len + 1]  # (B, T + 1)
                loss, carry.state = window_loss(model, part, carry.state if at else None)
                optimizer.zero_grad()
                loss.backward()
                clip_gradient([*model.parameters()], args.grad_clip)
                optimizer.step()
                total += loss.detach()
                step += 1
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            log(args, step=step, loss=total.item() / n, **evaluate(model, test))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    return evaluate(model, test)


@torch.inference_mode()
def generate(args):
    """Print --prompt, and how the model goes on once it has read that."""
    *_, chars = load_data(args)
    if not args.prompt or not {*args.prompt} <= {*chars}:
        fail(f"--prompt: {args.prompt!r}; type something made of {''.join(chars)!r} alone")
    model = CharLM(args.model, len(chars), args.hidden, args.tau).to(args.device)
    load_weights(args.weights or f"{args.out}/last.pt", model)
    x, state = torch.tensor([[*map(chars.index, args.prompt)]], device=args.device), None
    for _ in range(args.n_chars):
        scores, state = model(x, state)
        noise = -torch.empty_like(scores[:, -1:]).exponential_().log()
        x = (scores[:, -1:] + args.temperature * noise).argmax(-1)  # (1, 1)  eq. (8)
        args.prompt += chars[x]
    print(args.prompt)
    return 0


@torch.inference_mode()
def evaluate(model, test):
    loss = window_loss(model, test[:, 32:], model(test[:, :32])[1])[0].item()
    return {"bits_per_char": loss / math.log(2), "perplexity": math.exp(loss)}  # eq. (7)


def smoke(args):
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    return report(args, **metrics, excess_bits=metrics["bits_per_char"] - 6 / 34)


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
    add("--model", choices=["rnn", "window"], default="rnn", help="rnn: (1), window: (2)")
    add("--hidden", type=at_least(1), default=64, help="hidden units H")
    add("--tau", type=at_least(1), default=8, help="characters the window model sees")
    add("--dataset", choices=["sentences", "tinyshakespeare"], default="sentences", help="text")
    add("--data_root", default="data", help="folder of the data sets")
    add("--seq_len", type=at_least(1), default=32, help="steps T before the gradient is cut off")
    add("--n_steps", type=at_least(0), default=800, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=32, help="examples per step")
    add("--lr", type=at_least(0.0), default=5e-3, help="adam: learning rate")
    add("--grad_clip", type=at_least(0.0), default=1.0, help="largest norm of the gradient")
    add("--sample_interval", type=at_least(1), default=100, help="steps between evaluations")
    add("--weights", help="state dict or checkpoint to load")
    add("--prompt", metavar="TEXT", help="only go on with it, from --weights or OUT/last.pt")
    add("--n_chars", type=at_least(1), default=100, help="characters after --prompt")
    add("--temperature", type=at_least(0.0), default=0.0, help="of (8); 0: the likeliest character")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
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
