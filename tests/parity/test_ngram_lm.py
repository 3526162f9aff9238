"""ngram_lm.py against nltk.lm, where both mean the same.

nltk takes <s> for a word that may come next and puts two </s> after a sentence (it is given no such
n-gram, so that here it does not), ends its recursion at relative frequencies (here at ours, put in
their place) and gives 0 to all words after a context that it has not seen in MLE (left out). Two
<s> are a longer context than one to nltk, so that it interpolates once more (left out), and in
Kneser-Ney it counts the one before the other (contexts with <s> are left out).
"""

import numpy as np
import pytest
from house import load
from nltk.lm import (
    MLE,
    AbsoluteDiscountingInterpolated,
    KneserNeyInterpolated,
    Laplace,
    Lidstone,
    WittenBellInterpolated,
)
from nltk.lm.preprocessing import padded_everygrams

mod = load("nlp/ngram_lm.py")
TEXT = mod.markov(1, n_words=12, sentences=120)
V = len(TEXT.names) - 1
COUNTS = mod.Counts(TEXT.train, 3, V + 1)


def spelled(text):
    """Sentences of names without <s> and </s>."""
    rows = []
    for word in text.tolist():
        if word == mod.S:
            rows.append([])
        elif word != mod.E:
            rows[-1].append(TEXT.names[word])
    return rows


def oracle(kind, *args, **known):
    """Fitted, with a vocabulary of V words."""
    model = kind(*args, order=3, **known)
    model.vocab.update([*TEXT.names[3:], "</s>"])
    for row in spelled(TEXT.train):
        grams = [g for g in padded_everygrams(3, row) if "</s>" not in g[:-1] and g[-1] != "<s>"]
        model.counts.update([grams])
    assert len(model.vocab) == V
    return model


def questions(most=2):
    """(word, context of two) of the test text, with at most so many <s>, and unseen ones."""
    for row in spelled(TEXT.test)[:6]:
        row = ["<s>", "<s>", *row, "</s>"]
        for i in range(2, len(row)):
            if row[i - 2 : i].count("<s>") <= most:
                yield row[i], (*row[i - 2 : i],)
    for context in [("w1", "w2"), ("w3", "w3"), ("w0", "<UNK>"), ("<UNK>", "w4")]:
        yield from [("w5", context), ("<UNK>", context), ("</s>", context)]


def ours(smoothing, pairs, **known):
    model = mod.fit_ngrams(COUNTS, smoothing, 3, **known)
    number = {name: i for i, name in enumerate(TEXT.names)} | {"<UNK>": mod.UNK}
    rows = [[number[w] for w in h if w != "<s>"] for _, h in pairs]
    rows = [[mod.S, *([5] if len(row) == 2 else []), *row] for row in rows]  # 5: before all of h
    p = model.next_words(rows)
    return p[range(len(pairs)), [number[w] for w, _ in pairs]]


def gap(smoothing, theirs, pairs, **known):
    want = np.array([theirs.unmasked_score(*pair) for pair in pairs])
    assert want.std() > 0.01 and len(want) > 50
    return abs(ours(smoothing, pairs, **known) - want).max()


def seen(theirs, pairs):
    return [(w, h) for w, h in pairs if theirs.counts[h].N()]


def test_mle():
    theirs = oracle(MLE)
    assert gap("mle", theirs, seen(theirs, [*questions()])) < 1e-12


@pytest.mark.parametrize("k", [1, 0.5, 0.01])
def test_laplace_and_lidstone(k):
    theirs = oracle(Laplace) if k == 1 else oracle(Lidstone, k)
    pairs = [*questions()]
    assert len(seen(theirs, pairs)) < len(pairs)
    assert gap("laplace" if k == 1 else "lidstone", theirs, pairs, k=k) < 1e-12
    assert gap("lidstone", theirs, pairs, k=k * 1.001) > 1e-9


def test_perplexity():
    theirs = oracle(Laplace)
    rows = [["<s>", "<s>", *row, "</s>"] for row in spelled(TEXT.test)]
    events = [(row[i], (*row[i - 2 : i],)) for row in rows for i in range(2, len(row))]
    bits = [-np.log2(theirs.unmasked_score(*event)) for event in events]
    p = mod.fit_ngrams(COUNTS, "laplace", 3).score(*COUNTS.events(TEXT.test))
    assert mod.perplexity(p) == pytest.approx(2 ** np.mean(bits), rel=1e-12)


def with_our_unigrams(theirs, smoothing):
    p = mod.fit_ngrams(COUNTS, smoothing, 1 if "kneser" not in smoothing else 3).p[1]
    number = {name: i for i, name in enumerate(TEXT.names)} | {"<UNK>": mod.UNK}
    theirs.estimator.unigram_score = lambda word: p[number[word]]
    return theirs


def test_witten_bell():
    theirs = with_our_unigrams(oracle(WittenBellInterpolated), "witten_bell")
    assert gap("witten_bell", theirs, [*questions(1)]) < 1e-12


@pytest.mark.parametrize(
    "smoothing, kind",
    [("absolute", AbsoluteDiscountingInterpolated), ("kneser_ney", KneserNeyInterpolated)],
)
def test_one_discount_for_all_orders(smoothing, kind, monkeypatch):
    pairs = [*questions(0 if smoothing == "kneser_ney" else 1)]
    monkeypatch.setattr(mod, "discounts", lambda c, modified: np.array([0, 0.4, 0.4, 0.4]))
    theirs = with_our_unigrams(oracle(kind, discount=0.4), smoothing)
    assert gap(smoothing, theirs, pairs) < 1e-12
    monkeypatch.setattr(mod, "discounts", lambda c, modified: np.array([0, 0.4, 0.41, 0.4]))
    assert gap(smoothing, theirs, pairs) > 1e-6


def test_kneser_ney_down_to_its_unigrams(monkeypatch):
    """Without a discount on words alone, both stop at the share of the bigrams that end in them."""
    D = {V + 1: 0.0}
    monkeypatch.setattr(
        mod, "discounts", lambda c, modified: np.array([0.0] + 3 * [D.get(len(c), 0.1)])
    )
    theirs = oracle(KneserNeyInterpolated)
    assert gap("kneser_ney", theirs, [*questions(0)]) < 1e-12
