# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12"]
# ///
"""Greedy, beam and exhaustive search, on two tables made for it and in a small trained seq2seq.

Papers: Lowerre, "The Harpy Speech Recognition System", CMU 1976 (beam search); Sutskever, Vinyals
& Le, "Sequence to Sequence Learning with Neural Networks", NeurIPS 2014, arXiv 1409.3215; Wu et
al., "Google's Neural Machine Translation System", 2016, arXiv 1609.08144 (length normalisation).

    log P(y | c) = sum_t log P(y_t | y_1 .. y_{t-1}, c)         (1)  c: what is to be answered
    y_t = argmax P(y_t | y_1 .. y_{t-1}, c)                     (2)  greedy search
    Y_t = the k of (Y_{t-1} x all tokens) with the largest (1)  (3)  beam; k = 1 is greedy, and
                                                                     k >= V^(T-1) exhaustive
    score = log P(y | c) / L^alpha                              (4)  L tokens, eos counted
    loss = -mean_t log P(y_t | y_1 .. y_{t-1}, c)               (5)  of the seq2seq

The tables hold P(y_t | ...) of A, B, C, eos for t = 1 .. 4; the second is for y_2 = C. Greedy
search finds A B C eos, 0.5 * 0.4 * 0.4 * 0.6 = 0.048. A C B eos has 0.5 * 0.3 * 0.6 * 0.6 = 0.054:
k = 2 finds it. But with alpha = 0 that is not the best answer of the tables: eos alone and A eos
have 0.1 each. L^alpha is said to penalise long answers; as log P < 0, it makes them *less* bad,
and takes away the preference for short ones: A C B eos is the best with alpha = 0.75 (-1.0319) and
with alpha = 1 (-0.7297).

An answer that ends leaves the beam with its score, and the beam goes on with the rest. (4) judges
at the end alone: in (3) all have the same length. If none ends within T, the best is unfinished.

The seq2seq reads 3 of 5 symbols and has learned two kinds of answers: R and the source reversed,
in 40 % of all cases, or S and one of its 3 rotations, with 20 % each. S is the likelier start,
so greedy search goes for 20 %; a beam finds the 40 %. Nobody can know which kind will come: (5)
cannot fall below (0.4 log 1 / 0.4 + 0.6 log 1 / 0.2) / 5 = 0.2664.

A model is a function step(tokens, state) -> log P of what follows, state; it begins with eos.

Shapes: n prefixes in the beam (at most k), V tokens, T steps, B pairs, E width; tokens (n,), log P
(n, V), state (n, ...), paths (n, t); sources x (B, 3), answers y (B, 5).
Unlike the paper: L^alpha for ((5 + L) / 6)^alpha; T is short, so no threshold stops the beam early.

    python beam_search.py                           the table
    python beam_search.py --beam_size 1 --alpha 0   greedy in all but name
    python beam_search.py --smoke                   seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import itertools
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn

# Lowest and highest value that pass under --smoke.
BARS = {"table_gap": (0.0, 1e-6), "total_gap": (0.0, 1e-6), "exhaustive_gap": (0.0, 1e-5)}
BARS |= {"beam_right": (0.9, 1.0), "greedy_right": (0.0, 0.1)}
FIRST = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2], [0.2, 0.2, 0.4, 0.2], [0, 0.2, 0.2, 0.6]]
SECOND = [*FIRST[:2], [0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.1, 0.6]]  # rows: t; columns: A B C eos
NAMES, WORDS = ["A", "B", "C", "eos"], ["a", "b", "c", "d", "e", "R", "S", "eos"]
KNOWN = {"A B C eos": 0.048, "A C B eos": 0.054, "eos": 0.1, "A eos": 0.1}
R, S, EOS = 5, 6, 7


# --- the idea ------------------------------------------------------------------------------------
def normalised(log_p, length, alpha):
    return log_p / length**alpha  # eq. (4)


def greedy(step, state, T, eos):
    """An answer, as a list of tokens, and its log P; the first token that step gets is eos."""
    path, total = [eos], 0.0
    while len(path) <= T and (path[-1] != eos or len(path) == 1):
        log_p, state = step(torch.tensor(path[-1:]), state)
        path.append(log_p[0].argmax().item())  # eq. (2)
        total += log_p[0, path[-1]].item()
    return path[1:], total


def beam_search(step, state, k, T, eos):
    """All that was ever in the beam: {tuple of tokens: log P}. The state (1, ...) stands for c."""
    tokens, scores, paths, found = torch.tensor([eos]), torch.zeros(1), torch.zeros(1, 0).long(), {}
    for _ in range(T):
        log_p, state = step(tokens, state)
        scores = (scores[:, None] + log_p).flatten()  # (n V,)  eq. (1)
        scores, best = scores.topk(min(k, scores.isfinite().sum()))  # eq. (3)
        row, tokens = best // log_p.shape[1], best % log_p.shape[1]  # (n,)
        paths = torch.cat([paths[row], tokens[:, None]], 1)  # (n, t)
        found |= dict(zip(map(tuple, paths.tolist()), scores.tolist(), strict=True))
        on = tokens != eos  # and the states move along with the prefixes they belong to:
        tokens, scores, paths, state = tokens[on], scores[on], paths[on], state[row[on]]
        if not len(tokens):
            break
    if not found:
        raise ValueError("nothing can follow the start: all its probabilities are 0")
    return found


def best_answer(found, alpha, eos):
    """(answer, log P) with the best score, among those that end if there are any."""
    ended = {y: log_p for y, log_p in found.items() if y[-1] == eos} or found
    return max(ended.items(), key=lambda item: normalised(item[1], len(item[0]), alpha))


# --- model ---------------------------------------------------------------------------------------
class Seq2Seq(nn.Module):
    """One GRU reads the source, another writes the answer from the state that the first ends in."""

    def __init__(self, n_tokens=8, dim=64):
        super().__init__()
        self.embedding, self.head = nn.Embedding(n_tokens, dim), nn.Linear(dim, n_tokens)
        self.encoder, self.decoder = (nn.GRU(dim, dim, batch_first=True) for _ in range(2))

    def encode(self, x):
        return self.encoder(self.embedding(x))[1][0]  # (B, E)

    def forward(self, x, y):
        """log P (B, 5, V) of each token of y after those before it."""
        before = torch.cat([torch.full_like(y[:, :1], EOS), y[:, :-1]], 1)  # (B, 5)
        h, _ = self.decoder(self.embedding(before), self.encode(x)[None])
        return self.head(h).log_softmax(-1)

    def step(self, tokens, state):
        h, state = self.decoder(self.embedding(tokens)[:, None], state[None])
        return self.head(h[:, 0]).log_softmax(-1), state[0]


# --- data ----------------------------------------------------------------------------------------
def draw_pairs(n):
    """Sources x (n, 3) and answers y (n, 5)."""
    x, turn = torch.rand(n, 5).argsort(1)[:, :3], torch.rand(n, 1) < 0.4
    rotated = x.gather(1, (torch.arange(3) + torch.randint(3, (n, 1))) % 3)
    start, end = torch.where(turn, R, S), torch.full((n, 1), EOS)
    return x, torch.cat([start, torch.where(turn, x.flip(1), rotated), end], 1)


# --- run, smoke ----------------------------------------------------------------------------------
def tables(tokens, prefix):
    """step of the two tables; its state is the prefix (n, t), which begins with eos."""
    prefix = torch.cat([prefix, tokens[:, None]], 1)
    second = (prefix[:, 2:3] == NAMES.index("C")).any(1).long()  # (n,)
    return torch.tensor([FIRST, SECOND])[second, prefix.shape[1] - 1].log(), prefix


def learn_pairs(lr):
    """A trained Seq2Seq and its last loss."""
    model = Seq2Seq()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / 600)
        x, y = draw_pairs(128)
        loss = -model(x, y).gather(2, y[..., None]).mean()  # eq. (5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False), loss.item()


def spell(y, names=NAMES):
    return " ".join(names[token] for token in y)


def run(args):
    """Print a row per answer, search and source; return the metrics that judge them."""
    torch.manual_seed(args.seed)
    k, alpha, start = args.beam_size, args.alpha, torch.zeros(1, 0).long()
    found, every = (beam_search(tables, start, width, 4, 3) for width in (k, 4**4))
    chance = {spell(y): math.exp(log_p) for y, log_p in every.items()}
    whole = [math.exp(log_p) for y, log_p in every.items() if y[-1] == 3 or len(y) == 4]
    metrics = {"total_gap": abs(sum(whole) - 1)}
    metrics["table_gap"] = max(abs(chance[y] - p) for y, p in KNOWN.items())
    rows = []
    for y, p in KNOWN.items():
        scores = {f"alpha {a}": normalised(math.log(p), len(y.split()), a) for a in (0, 0.75, 1)}
        rows.append({"answer": y, "P": chance[y]} | scores)
    answers = [greedy(tables, start, 4, 3), *(best_answer(y, alpha, 3) for y in (found, every))]
    for name, (y, log_p) in zip(["greedy", f"beam {k}", "exhaustive"], answers, strict=True):
        rows.append({"tables": name, "P": math.exp(log_p), "y": spell(y)})
    model, loss = learn_pairs(args.lr)
    pairs, sources = [], [*itertools.permutations(range(5), 3)]
    for x in sources:
        state = model.encode(torch.tensor([x]))
        found = beam_search(model.step, state, k, 5, EOS)
        pairs.append([greedy(model.step, state, 5, EOS), best_answer(found, alpha, EOS)])
    best = best_answer(beam_search(model.step, state, 8**4, 5, EOS), alpha, EOS)
    metrics["exhaustive_gap"] = abs(pairs[-1][1][1] - best[1])
    for name, answers in zip(["greedy", f"beam {k}"], zip(*pairs, strict=True), strict=True):
        mean = sum(math.exp(log_p) for _, log_p in answers) / len(sources)
        right = sum((*y,) == (R, *x[::-1], EOS) for x, (y, _) in zip(sources, answers, strict=True))
        rows.append({"seq2seq": name, "mean P": mean, "reversed": right / len(sources)})
        rows[-1] |= {"x": spell(x, WORDS), "y": spell(answers[-1][0], WORDS)}
    for row in rows:
        print(line(row), file=sys.stderr if args.smoke else sys.stdout)
    shares = {"greedy_right": rows[-2]["reversed"], "beam_right": rows[-1]["reversed"]}
    return metrics | {"loss": loss} | shares


def smoke(args):
    """The whole run: it takes seconds."""
    return report(args, **run(args))


# --- plumbing, word for word the same in every script --------------------------------------------
def fail(message):
    """A mistake the user can mend: one line on stderr, exit code 2."""
    print(f"{Path(__file__).name}: error: {' '.join(message.split())[:300]}", file=sys.stderr)
    sys.exit(2)


def line(row):
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


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
    add("--beam_size", type=at_least(1), default=2, help="answers k in the beam")
    add("--alpha", type=at_least(0.0), default=0.75, help="power of the length L in the score")
    add("--lr", type=at_least(0.0), default=1e-2, help="adam: learning rate")
    add("--seed", type=at_least(0), default=0, help="fixes weights and pairs of the seq2seq")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.smoke:
        return smoke(args)
    print(line(run(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
