# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26,<3", "matplotlib>=3.8,<4"]
# ///
"""N-gram language models: nine ways to give chances to what was never seen, in closed form.

Papers: Chen & Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling",
Computer Speech & Language, 1999 (all of them; modified Kneser-Ney); Katz, "Estimation of
Probabilities from Sparse Data", IEEE TASSP, 1987; Kneser & Ney, "Improved Backing-off for M-gram
Language Modeling", ICASSP 1995; Jelinek & Mercer, "Interpolated Estimation of Markov Source
Parameters from Sparse Data", 1980; Witten & Bell, "The Zero-Frequency Problem", IEEE TIT, 1991;
Heafield et al., "Scalable Modified Kneser-Ney Language Model Estimation", ACL 2013 (kenlm).

    P(w_1 .. w_m) = prod_i P(w_i | h_i)                     (1)  h: the n - 1 words before; fewer
                                                                 where the sentence begins
    perplexity = exp(-sum_i log P(w_i | h_i) / m)           (2)  </s> is counted, <s> is not
    P(w | h) = C(hw) / C(h)                                 (3)  mle; C(h) = sum_w C(hw)
    P(w | h) = (C(hw) + k) / (C(h) + k V)                   (4)  lidstone; laplace: k = 1
    P(w | h) = (C(hw) - D) / C(h) + gamma(h) P(w | h')      (5)  h' is h without its first word;
                                                                 gamma(h): all D taken / C(h)
    D = n_1 / (n_1 + 2 n_2)                                 (6)  absolute; n_r n-grams occur r times
    C(hw) <- N(. hw)                                        (7)  kneser_ney: (5), (6) with the
        number of different words before hw, for all orders but the highest; no word stands before
        <s>, so that what begins with it keeps C
    D_r = r - (r + 1) n_{r+1} / n_r n_1 / (n_1 + 2 n_2)     (8)  modified_kneser_ney: D by r = C(hw)
                                                                 = 1, 2, 3 or more
    D = C(hw) N(h .) / (C(h) + N(h .))                      (9)  witten_bell; N(h .): how many
                                                                 different words follow h
    D = (1 - mu_n) C(hw)                                    (10)  jelinek_mercer
    mu_n <- mean over (w, h) of P(n is used | w, h)         (11)  EM on text not counted: on
                                                                  counted text mu goes to 1
    P(w | h) = d_r r / C(h) if r > 0, else alpha(h) P(w | h')                 (12)  katz
    d_r = (r* / r - q) / (1 - q), r* = (r + 1) n_{r+1} / n_r                  (13)  Good-Turing,
                                            q = 6 n_6 / n_1; d_r = 1 for r > 5
    alpha(h) = (1 - sum_seen P(w | h)) / (1 - sum_seen P(w | h'))             (14)
    next word = argmax(log P + temperature gumbel noise)    (15)  draws P^(1 / temperature)

(5) ends at P(w) = 1 / V for h' of nothing, which is what <unk> lives on. In all but mle, laplace
and lidstone a context that was never seen counts for nothing: P(w | h) = P(w | h').

An example often given: after `yes no no no no yes` and `no no no yes yes yes no`, (3) gives to `yes
no no yes` in trigrams 1/2 1 1/2 2/5 1/2. That is 0.05, not 0.1.

Every model ends up as two tables per order: P(w | h) of the n-grams seen, and the factor gamma(h)
on P(w | h') for the others. N-grams are numbers: an n-gram is the number of its first n - 1 words,
times the number of words, plus its last word; a sorted list of those is the whole dictionary.

Shapes: V words that can come next (no <s>, but </s> and <unk>), N the order, T words of running
text, Q questions, G_n different n-grams; numbers of n-grams (N + 1, Q), P (Q,) or (Q, V + 1).
Unlike the papers: one <s>, as in kenlm; if some n_r is 0, or D or d out of bounds, D is 0.5, or
0.5, 1, 1.5 by r, and d_r = (r - 0.5) / r; (12) adds 1 to C(h) where nothing would be left for words
not seen, and discounts nothing where all words were seen; mle goes to h' where h was never seen;
--method beam judges by log P per word. Perplexities compare only if the words are the same.

    python ngram_lm.py                                   random sentences whose perplexity is known
    python ngram_lm.py --dataset wikitext2 --order 5     DATA_ROOT/wikitext-2/valid.txt, test.txt
    python ngram_lm.py --dataset tinyshakespeare --chars --order 7 --min_count 1
    python ngram_lm.py --dataset tinyshakespeare --prompt "my lord ," --method sample
    python ngram_lm.py --dataset file --data_root words.txt --arpa    a sentence per line
    python ngram_lm.py --smoke                           seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import itertools
import json
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Lowest and highest value that pass under --smoke.
BARS = {"example_gap": (0.0, 1e-12), "sum_gap": (0.0, 1e-9), "em_fall": (0.0, 1e-12)}
BARS |= {"kn_over_source": (1.0, 1.42), "kn_below_absolute": (0.05, 1.0)}
BARS |= {"absolute_below_laplace": (1.5, 4.0)}
S, E, UNK = 0, 1, 2  # numbers of:
NAMES = ["<s>", "</s>", "<unk>"]
EXAMPLE = "yes no no no no yes\nno no no yes yes yes no"
SMOOTHINGS = ["mle", "laplace", "lidstone", "jelinek_mercer", "witten_bell", "katz", "absolute"]
SMOOTHINGS += ["kneser_ney", "modified_kneser_ney"]


# --- model ---------------------------------------------------------------------------------------
class Grams(NamedTuple):
    """All different n-grams of one n, sorted by key = number of the context * words + last word."""

    key: np.ndarray  # (G_n,) like the rest
    context: np.ndarray  # number of the first n - 1 words among the (n-1)-grams
    word: np.ndarray  # the last one
    suffix: np.ndarray  # number of the last n - 1 words among the (n-1)-grams
    begins: np.ndarray  # with <s>?
    count: np.ndarray


class Counts:
    """The n-grams up to an order of a text (T,): numbers below n_words, each sentence S .. E."""

    def __init__(self, text, order, n_words):
        self.n_words, every = n_words, np.arange(n_words)
        count = np.bincount(text, minlength=n_words) * (every != S)  # S never comes next
        self.grams = [None, Grams(every, 0 * every, every, every, every == S, count)]
        ids, place = text, self.place(text)
        for n in range(2, order + 1):
            at = np.flatnonzero(place >= n - 1)
            if not len(at):
                raise ValueError(f"no sentence has the {n} words of a {n}-gram")
            key = ids[at - 1] * n_words + text[at]
            key, first, inverse = np.unique(key, return_index=True, return_inverse=True)
            suffix, begins = ids[at[first]], text[at[first] - n + 1] == S
            count = np.bincount(inverse)
            self.grams.append(Grams(key, key // n_words, key % n_words, suffix, begins, count))
            ids = np.full(len(text), -2)
            ids[at] = inverse

    @staticmethod
    def place(text):
        """Of each word in its sentence."""
        at = np.arange(len(text))
        return at - np.maximum.accumulate(np.where(text == S, at, 0))

    def find(self, n, context, word):
        """Numbers of the n-grams that are these (n-1)-grams and one more word; -1 if not seen."""
        if n == 1:
            return word
        key, known = context * self.n_words + word, self.grams[n].key
        at = np.minimum(np.searchsorted(known, key), len(known) - 1)
        return np.where((context >= 0) & (known[at] == key), at, -1)

    def ids(self, text):
        """Numbers (N + 1, T) of the 0 to N words up to each place; -1: not seen, -2: not there."""
        found, place = [0 * text, text], self.place(text)
        for n in range(2, len(self.grams)):
            before = np.concatenate([[-1], found[-1][:-1]])
            found.append(np.where(place < n - 1, -2, self.find(n, before, text)))
        return np.stack(found)

    def events(self, text):
        """The numbers (N, M) of the contexts of all words that come next, and those words (M,)."""
        at = np.flatnonzero(text != S)
        return self.ids(text)[:-1, at - 1], text[at]


class Model:
    """P (G_n,) of the n-grams seen and gamma (G_{n-1},) of their contexts, n = 1 .. N."""

    def __init__(self, counts, smoothing):
        self.counts, self.direct = counts, smoothing in ("mle", "laplace", "lidstone")
        self.to_shorter = smoothing == "mle"
        self.p = [(np.arange(counts.n_words) != S) / (counts.n_words - 1)]
        self.gamma = []

    def score(self, context, word):
        """P (Q,) of words after contexts whose ends of 0 to N - 1 words have numbers (N, Q)."""
        p = bottom = self.p[0][word]
        for n, (above, gamma) in enumerate(zip(self.p[1:], self.gamma, strict=True), 1):
            h = context[n - 1]
            g = self.counts.find(n, h, word)
            lower = bottom if self.direct else p
            unseen = p if self.to_shorter else lower
            seen = np.where(g >= 0, above[g], gamma[h] * lower)
            p = np.where(h == -2, p, np.where(h == -1, unseen, seen))
        return p

    def next_words(self, histories):
        """P (Q, V + 1) of all words after lists of words, each of which begins with S."""
        ends = np.cumsum([len(words) for words in histories]) - 1
        context = self.counts.ids(np.concatenate(histories))[: len(self.gamma), ends]  # (N, Q)
        words, V1 = np.arange(self.counts.n_words), self.counts.n_words
        p = self.score(context.repeat(V1, 1), np.tile(words, len(histories)))
        return p.reshape(len(histories), V1)


# --- the idea ------------------------------------------------------------------------------------
def perplexity(p):
    """Of text whose words (M,) had these chances."""
    with np.errstate(divide="ignore"):
        return float(np.exp(-np.log(p).mean()))  # eq. (1), (2)


def fit_ngrams(counts, smoothing, order, k=0.1, mu=()):
    """The Model of an order from Counts of that order or more; k of (4), mu (N,) of (10)."""
    model = Model(counts, smoothing)
    for n in range(1, order + 1):
        grams, c = counts.grams[n], counts.grams[n].count
        if "kneser" in smoothing and n < order:
            before = np.bincount(counts.grams[n + 1].suffix, minlength=len(c))
            c = np.where(grams.begins, c, before)  # eq. (7)
        contexts = len(counts.grams[n - 1].key) if n > 1 else 1
        total = np.bincount(grams.context, c, contexts)  # (G_{n-1},)
        C = total[grams.context]  # (G_n,)
        if smoothing == "mle":
            kept = c  # eq. (3)
        elif smoothing in ("laplace", "lidstone"):
            add = 1 if smoothing == "laplace" else k
            kept = c * C / (C + add * (counts.n_words - 1))  # eq. (4)
        elif smoothing == "jelinek_mercer":
            kept = mu[n - 1] * c  # eq. (10)
        elif smoothing == "witten_bell":
            followers = np.bincount(grams.context, c > 0, contexts)[grams.context]
            kept = c * C / (C + followers)  # eq. (9)
        elif smoothing == "katz":
            kept = good_turing(c)
        else:
            kept = c - discounts(c, smoothing == "modified_kneser_ney")[np.minimum(c, 3)]
        lower = model.p[0][grams.word] if model.direct else model.p[-1][grams.suffix]
        if smoothing == "katz":
            p, gamma = back_off(grams, c, kept, total, lower)
        else:
            taken = total - np.bincount(grams.context, kept, contexts)
            gamma = np.divide(taken, total, out=np.ones(contexts), where=total > 0)
            p = kept / np.maximum(C, 1) + gamma[grams.context] * lower  # eq. (5)
        model.p.append(p)
        model.gamma.append(gamma)
    return model


def discounts(c, modified):
    """D of counts 0, 1, 2 and 3 or more."""
    n1, n2, n3, n4 = ((c == r).sum() for r in (1, 2, 3, 4))
    with np.errstate(divide="ignore", invalid="ignore"):
        Y = n1 / np.float64(n1 + 2 * n2)  # eq. (6)
        above = zip((1, 2, 3), (n1, n2, n3), (n2, n3, n4), strict=True)
        D = [r - (r + 1) * Y * m / np.float64(n) for r, n, m in above] if modified else 3 * [Y]
    if not all(0 < d < r for d, r in zip(D, (1, 2, 3), strict=True)):  # nan is not, either
        D = [0.5, 1.0, 1.5] if modified else 3 * [0.5]
    return np.array([0, *D])  # eq. (8)


def good_turing(c, k=5):
    """Counts c with what is taken from those up to k."""
    n = np.bincount(np.minimum(c, k + 2), minlength=k + 3).astype(float)
    r = np.arange(1, k + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = (k + 1) * n[k + 1] / n[1]
        d = ((r + 1) * n[r + 1] / n[r] / r - q) / (1 - q)  # eq. (13)
    if not ((d > 0) & (d < 1)).all():
        d = (r - 0.5) / r
    return c * np.array([0, *d, 1])[np.minimum(c, k + 1)]


def back_off(grams, c, kept, total, lower):
    """P (G_n,) and alpha (G_{n-1},) of (12): interpolation would add to what was seen, too."""
    rest = 1 - np.bincount(grams.context, lower * (c > 0), len(total))  # for what was not seen
    none = rest < 1e-9
    kept = np.where(none[grams.context], c, kept)
    sums = np.bincount(grams.context, kept, len(total))
    total = total + ((total - sums < 1e-9) & ~none)
    left = np.divide(total - sums, total, out=np.ones(len(total)), where=total > 0)
    alpha = left / np.where(none, 1, rest)  # eq. (14)
    p = np.where(c > 0, kept / total[grams.context], alpha[grams.context] * lower)  # eq. (12)
    return p, alpha


def em(counts, text, rounds=100):
    """mu (N,) of (10) for a text that counts has not seen, and the mean log P of each round."""
    (context, word), rows = counts.events(text), []
    for n, h in enumerate(context, 1):
        grams, g = counts.grams[n], counts.find(n, h, word)
        total = np.bincount(grams.context, grams.count)
        total = np.where((h >= 0) & (h < len(total)), total[np.minimum(h, len(total) - 1)], 0)
        ml = np.where(g >= 0, grams.count[g], 0) / np.maximum(total, 1)  # (M,), as (3) has it
        rows.append((total > 0, ml))  # in contexts never seen order n is no choice
    mu, curve = np.full(len(rows), 0.5), []
    for _ in range(rounds):
        p = [np.full(len(word), 1 / (counts.n_words - 1))]
        for m, (known, ml) in zip(mu, rows, strict=True):
            p.append(np.where(known, m * ml + (1 - m) * p[-1], p[-1]))
        curve.append(np.log(p[-1]).mean())
        reach, better = np.ones(len(word)), mu.copy()
        for n in reversed(range(len(mu))):
            known, ml = rows[n]
            used = known * reach * mu[n] * ml / p[n + 1]
            better[n] = used.sum() / max((known * reach).sum(), 1e-300)  # eq. (11)
            reach = reach - used
        if abs(better - mu).max() < 1e-6:
            break
        mu = np.clip(better, 1e-9, 1 - 1e-9)
    return mu, curve


def go_on(model, words, method, n_words, width=5, temperature=1.0, seed=0):
    """At most n_words words after those given; argmax and sample are beams of width 1."""
    random, width = np.random.default_rng(seed), width if method == "beam" else 1
    live, ended, start = [(0.0, [S, *words])], [], len(words) + 1
    for _ in range(n_words):
        p = model.next_words([path for _, path in live])  # (Q, V + 1)
        p[:, UNK] = 0  # nobody wants to read it
        with np.errstate(divide="ignore"):
            total = np.log(p) + np.array([[log_p] for log_p, _ in live])
        noise = random.gumbel(size=total.shape) * temperature if method == "sample" else 0
        best = np.argsort(-(total + noise), None, kind="stable")[:width]  # eq. (15)
        grown = [(total.flat[i], [*live[i // p.shape[1]][1], i % p.shape[1]]) for i in best]
        grown = [(log_p, path) for log_p, path in grown if log_p > -math.inf]
        ended += [pair for pair in grown if pair[1][-1] == E]
        live = [pair for pair in grown if pair[1][-1] != E]
        if not live:
            break
    every = [*ended, *live] or [(0.0, [S, *words])]
    best = max(every, key=lambda pair: pair[0] / max(1, len(pair[1]) - start))[1]
    return [int(word) for word in best[start:] if word != E]


# --- data ----------------------------------------------------------------------------------------
class Text(NamedTuple):
    train: np.ndarray  # (T,) like test
    test: np.ndarray
    names: list  # of the words
    source: float  # perplexity of test for whoever knows where it comes from


def markov(seed, n_words=30, sentences=1200):
    """Sentences in which the two words before decide the chances of the next."""
    random = np.random.default_rng(seed)
    chance = random.dirichlet([0.1] * n_words, (n_words, n_words)) * 0.95  # 1 in 20 ends
    table = np.concatenate([chance, np.full((n_words, n_words, 1), 0.05)], 2).cumsum(2)
    live, u, v = np.arange(sentences), *np.zeros((2, sentences), int)
    texts, log_p = [[S] for _ in live], [[] for _ in live]
    while len(live):
        w = (random.random((len(live), 1)) * table[u, v, -1:] > table[u, v]).sum(1)
        p = np.diff(table[u, v], prepend=0, axis=1)[np.arange(len(w)), w]
        for i, word, chance_of_it in zip(live, w, p, strict=True):
            texts[i].append(E if word == n_words else int(word) + len(NAMES))
            log_p[i].append(math.log(chance_of_it))
        on = w < n_words
        live, u, v = live[on], v[on], w[on]
    cut = sentences * 9 // 10
    train, test = (np.concatenate(part) for part in (texts[:cut], texts[cut:]))
    source = math.exp(-np.concatenate(log_p[cut:]).mean())
    return Text(train, test, [*NAMES, *(f"w{i}" for i in range(n_words))], source)


def read_lines(file, chars):
    """The lines that are not empty, as lists of words or characters."""
    mend = "name a text in UTF-8, or take --dataset markov"
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        fail(f"--data_root: {file} cannot be read ({error.strerror}); {mend}")
    except UnicodeDecodeError as error:
        fail(f"--data_root: {file} is not in UTF-8 (byte {error.start}); {mend}")
    lines = [[*row.strip()] if chars else row.split() for row in text.splitlines() if row.strip()]
    for mark in NAMES[:2]:
        if any(mark in row for row in lines):
            fail(f"--data_root: {file} has {mark} among its words; take the marks out, lines do")
    if len(lines) < 2:
        fail(f"--data_root: {file} has fewer than two lines that are not empty; {mend}")
    return lines


def numbered(lines, known):
    rows = ([S, *(known.get(word, UNK) for word in row), E] for row in lines)
    return np.array([word for row in rows for word in row])


def load_data(args):
    """Return the Text; words that occur less than --min_count times in its train are <unk>."""
    if args.dataset == "markov":
        return markov(args.seed)
    if args.dataset == "wikitext2":
        files = [Path(args.data_root, "wikitext-2", f"{part}.txt") for part in ("valid", "test")]
        train, test = (read_lines(file, args.chars) for file in files)
    else:
        file = Path(args.data_root)
        file = file if args.dataset == "file" else file / "tinyshakespeare" / "input.txt"
        lines = read_lines(file, args.chars)
        cut = max(1, len(lines) * 9 // 10)
        train, test = lines[:cut], lines[cut:]
    often = Counter(word for row in train for word in row)
    words = sorted(w for w, n in often.items() if n >= args.min_count and w not in NAMES)
    known = {word: i for i, word in enumerate([*NAMES, *words])}
    return Text(numbered(train, known), numbered(test, known), [*known], math.nan)


# --- run, smoke ----------------------------------------------------------------------------------
def count(args, text):
    """Counts of text.train, and mu and the curve of EM on its last tenth by counts of the rest."""
    starts = np.flatnonzero(text.train == S)
    cut = starts[len(starts) * 9 // 10] if len(starts) > 1 else len(text.train)
    try:
        counts = Counts(text.train, args.order, len(text.names))
        part = Counts(text.train[:cut], args.order, len(text.names))
    except ValueError as error:
        fail(f"--order {args.order}: {error}; lower it")
    return counts, *em(part, text.train[cut:] if cut < len(text.train) else text.train)


def example():
    """The five factors of `yes no no yes` after EXAMPLE, by (3) in trigrams."""
    known = {word: i for i, word in enumerate([*NAMES, "no", "yes"])}
    counts = Counts(numbered(map(str.split, EXAMPLE.splitlines()), known), 3, len(known))
    sentence = numbered([["yes", "no", "no", "yes"]], known)
    return fit_ngrams(counts, "mle", 3).score(*counts.events(sentence))


def sum_gap(model, text):
    """How far sums over all words are from 1, after contexts seen and not seen."""
    parts = [text.train[i : i + 4] for i in range(0, min(len(text.train), 400), 13)]
    words = [[S, *(w for w in part if w not in (S, E))] for part in (*parts, [UNK, UNK], [])]
    words += [[S, *row[:0:-1]] for row in words]
    return float(abs(model.next_words(words).sum(1) - 1).max())


def draw(args, table):
    """Write OUT/perplexity.png: a line a smoothing over the orders."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(layout="constrained")).add_subplot(xlabel="order", yscale="log")
    for smoothing, row in table.items():
        axes.plot(range(1, len(row) + 1), row, marker=".", label=smoothing)
    axes.set_ylabel("perplexity")
    axes.set_xticks(range(1, args.order + 1))
    axes.legend()
    figure.savefig(Path(args.out, "perplexity.png"))


def write_arpa(args, model, names):
    """Write OUT/model.arpa: log10 P, the n-gram, log10 gamma, for each n-gram."""
    with np.errstate(divide="ignore"):
        logs = [np.maximum(np.log10(p), -99) for p in (*model.p[1:], *model.gamma[1:])]
    N, spelled = len(model.gamma), [""]
    with open(Path(args.out, "model.arpa"), "w", encoding="utf-8") as file:
        sizes = [f"ngram {n}={len(p)}" for n, p in enumerate(model.p[1:], 1)]
        print("\\data\\", *sizes, sep="\n", file=file)
        for n, grams in enumerate(model.counts.grams[1 : N + 1], 1):
            print(f"\n\\{n}-grams:", file=file)
            pairs = zip(grams.context, grams.word, strict=True)
            spelled = [f"{spelled[h]} {names[w]}".strip() for h, w in pairs]
            after = [f"\t{x:.7f}" for x in logs[N + n - 1]] if n < N else [""] * len(spelled)
            for p, words, gamma in zip(logs[n - 1], spelled, after, strict=True):
                print(f"{p:.7f}\t{words}{gamma}", file=file)
        print("\n\\end\\", file=file)


def open_folder(args):
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        fail(f"--out {args.out}: cannot write there ({error.strerror}); name another folder")


def run(args):
    """Print a row of perplexities per smoothing; return the metrics of --smoothing."""
    open_folder(args)
    text, factors, show = load_data(args), example(), sys.stderr if args.smoke else sys.stdout
    counts, mu, curve = count(args, text)
    metrics = {"example": float(factors.prod()), "sum_gap": 0.0}
    known, table = text.test[text.test != S] != UNK, {}
    metrics |= {"words": len(text.names), "tokens": int((text.train != S).sum())}
    metrics |= {"test_tokens": len(known), "unknown": float(1 - known.mean())}
    print(line({"example": " ".join(f"{p:g}" for p in factors)}), file=show)
    for smoothing in SMOOTHINGS:
        table[smoothing] = []
        for n in range(1, args.order + 1):
            model = fit_ngrams(counts, smoothing, n, args.k, mu)
            context, word = counts.events(text.test)
            table[smoothing].append(perplexity(model.score(context[:n], word)))
        metrics["sum_gap"] = max(metrics["sum_gap"], sum_gap(model, text))
        if smoothing == args.smoothing and args.arpa:
            write_arpa(args, model, text.names)
        row = {f"order {n}": ppl for n, ppl in enumerate(table[smoothing], 1)}
        print(f"{smoothing:19}  {line(row)}", file=show)
    draw(args, table)
    flat = [m * np.prod(1 - mu[n + 1 :]) for n, m in enumerate(mu)]  # the lambdas of (10)
    metrics["lambda"] = " ".join(f"{x:.3f}" for x in (np.prod(1 - mu), *flat))
    metrics["em_fall"] = max([0.0, *(a - b for a, b in itertools.pairwise(curve))])
    metrics |= {"source": text.source, "perplexity": table[args.smoothing][-1]}
    return metrics, table


def generate(args):
    """Print --prompt and how the model of --smoothing goes on."""
    text = load_data(args)
    counts, mu, _ = count(args, text)
    model, known = fit_ngrams(counts, args.smoothing, args.order, args.k, mu), [*text.names]
    words = [*args.prompt] if args.chars else args.prompt.split()
    strange = [word for word in words if word not in known[2:]]
    if strange and UNK not in text.train:
        fail(f"--prompt: {strange[0]} is not in the text, nor is <unk>; use words like {known[-1]}")
    ids = [UNK if word in strange else known.index(word) for word in words]
    how = args.method, args.n_words, args.beam_size, args.temperature, args.seed
    words += [known[i] for i in go_on(model, ids, *how)]
    print(("" if args.chars else " ").join(words))
    return 0


def smoke(args):
    with tempfile.TemporaryDirectory() as args.out:
        metrics, table = run(args)
    del metrics["lambda"]
    laplace, absolute, kn = (table[key][-1] for key in ("laplace", "absolute", "kneser_ney"))
    metrics |= {"kn_over_source": kn / metrics["source"], "kn_below_absolute": absolute - kn}
    metrics |= {"absolute_below_laplace": laplace - absolute}
    metrics |= {"example_gap": abs(metrics["example"] - 0.05)}
    return report(args, **metrics)


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
    best, sets = "modified_kneser_ney", ["markov", "wikitext2", "tinyshakespeare", "file"]
    add("--order", type=at_least(1, 10), default=3, help="longest n-grams N")
    add("--smoothing", choices=SMOOTHINGS, default=best, help="of --prompt and --arpa")
    add("--k", type=at_least(1e-9), default=0.1, help="what lidstone adds to every count")
    add("--dataset", choices=sets, default="markov", help="markov needs no files")
    add(
        "--data_root", default="data", help="folder of the data sets; with --dataset file, the file"
    )
    add("--chars", action="store_true", help="characters for words")
    add("--min_count", type=at_least(1), default=2, help="rarer words become <unk>")
    add("--arpa", action="store_true", help="write OUT/model.arpa")
    add("--prompt", metavar="TEXT", help="only go on with it")
    add("--method", choices=["argmax", "beam", "sample"], default="argmax", help="of --prompt")
    add("--n_words", type=at_least(1), default=30, help="most words after --prompt")
    add("--beam_size", type=at_least(1), default=5, help="sentences that --method beam keeps")
    add("--temperature", type=at_least(0.0), default=1.0, help="of --method sample; 0: argmax")
    add("--seed", type=at_least(0), default=0, help="fixes the sentences of markov and samples")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    args = parser.parse_args(argv)
    if args.arpa and args.smoothing in ("laplace", "lidstone"):
        fail(f"--arpa: {args.smoothing} does not back off; choose another --smoothing")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.smoke:
        return smoke(args)
    if args.prompt is not None:
        return generate(args)
    print(line(run(args)[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
