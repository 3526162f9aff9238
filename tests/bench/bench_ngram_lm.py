"""ngram_lm.py against nltk.lm: a Kneser-Ney trigram of about 1 MB of random words.

nltk needs so long for a word that it scores 90 of the 20,000 that ours scores: the ratio is an
upper bound.
"""

import numpy as np
from house import load
from nltk.lm import KneserNeyInterpolated
from nltk.lm.preprocessing import padded_everygram_pipeline

mod = load("nlp/ngram_lm.py")


def zipf(random, n_sentences, n_words=8000):
    """Sentences of 20 words, of which the r-th has a chance like 1 / r."""
    chance = 1 / np.arange(1, n_words + 1)
    return random.choice(n_words, (n_sentences, 20), p=chance / chance.sum())


def rows(device):
    random = np.random.default_rng(0)
    train, test = zipf(random, 10_000), zipf(random, 1000)
    text, questions = (
        np.pad(part + 3, ((0, 0), (1, 1)), constant_values=(mod.S, mod.E)).ravel()
        for part in (train, test)
    )
    words = [[f"w{i}" for i in row] for row in train.tolist()]
    few = [[f"w{i}" for i in row] for row in test[:5].tolist()]

    def ours():
        counts = mod.Counts(text, 3, 8003)
        model = mod.fit_ngrams(counts, "kneser_ney", 3)
        return mod.perplexity(model.score(*counts.events(questions)))

    def theirs():
        model = KneserNeyInterpolated(3)
        model.fit(*padded_everygram_pipeline(3, words))
        return [model.logscore(row[i], row[i - 2 : i]) for row in few for i in range(2, 20)]

    yield {
        "name": "ngram_lm Kneser-Ney trigram, fit on 200k words and score 20k (nltk: 90 of them)",
        "peer": "nltk.lm",
        "target": 0.02,
        "rounds": 3,
        "ours": ours,
        "theirs": theirs,
    }
