"""ngram_lm.py: every smoothing against dictionaries, sums, EM, generation, files, mistakes."""

import itertools
import math
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from house import call, load, mistake

mod = load("nlp/ngram_lm.py")
PATH = Path(mod.__file__)
N = 4


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@cache
def data():
    """A small text whose every tenth word is <unk>, and more of the same."""
    text = mod.markov(3, n_words=9, sentences=60)
    random = np.random.default_rng(0)
    parts = []
    for part in (text.train, text.test):
        hide = (part > mod.UNK) & (random.random(len(part)) < 0.1)
        parts.append(np.where(hide, mod.UNK, part))
    # One word that follows nothing but one other word, and one that is never seen.
    train = np.concatenate([parts[0], np.array([mod.S, 3, 12, mod.E] * 6)])
    return mod.Text(train, parts[1], [*text.names, "rare", "never"], text.source)


def counts(order=N):
    return mod.Counts(data().train, order, len(data().names))


def sentences(text):
    rows = []
    for word in text.tolist():
        rows = [*rows, [word]] if word == mod.S else [*rows[:-1], [*rows[-1], word]]
    return rows


@cache
def dictionary():
    """{n-gram: how often} of all that do not end with <s>."""
    found = Counter()
    for row in sentences(data().train):
        for n in range(1, N + 1):
            found.update(tuple(row[i : i + n]) for i in range(len(row) - n + 1))
    return {gram: k for gram, k in found.items() if gram[-1] != mod.S}


@cache
def adjusted(n, order, kneser):
    """{n-gram: count} of one n; with Kneser-Ney, of lower orders, words that stand before."""
    raw = {gram: k for gram, k in dictionary().items() if len(gram) == n}
    if not kneser or n == order:
        return raw
    before = defaultdict(set)
    for gram in dictionary():
        if len(gram) == n + 1:
            before[gram[1:]].add(gram[0])
    return {g: k if g[0] == mod.S else len(before[g]) for g, k in raw.items()}


@cache
def taken(smoothing, n, order):
    """What is taken from counts of 1, 2 and more of an order."""
    c = adjusted(n, order, "kneser" in smoothing)
    n1, n2, n3, n4 = (sum(k == r for k in c.values()) for r in (1, 2, 3, 4))
    try:
        Y = n1 / (n1 + 2 * n2)
        D = [1 - 2 * Y * n2 / n1, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3]
    except ZeroDivisionError:
        D, Y = [0, 0, 0], n1 / (n1 + 2 * n2) if n1 + n2 else 0
    if smoothing != "modified_kneser_ney":
        return [Y if 0 < Y < 1 else 0.5] * 3
    return D if all(0 < d < r for r, d in enumerate(D, 1)) else [0.5, 1, 1.5]


def discounted(smoothing, w, h, order):
    """(5) as it is written, one dictionary and one word at a time."""
    if h is None:
        return 1 / (len(data().names) - 1)
    c = adjusted(len(h) + 1, order, "kneser" in smoothing)
    after = {gram[-1]: k for gram, k in c.items() if gram[:-1] == h and k > 0}
    lower = discounted(smoothing, w, h[1:] if h else None, order)
    total = sum(after.values())
    if not total:
        return lower
    if smoothing == "witten_bell":
        return (after.get(w, 0) + len(after) * lower) / (total + len(after))
    D = taken(smoothing, len(h) + 1, order)
    kept = {word: k - D[min(k, 3) - 1] for word, k in after.items()}
    return kept.get(w, 0) / total + (total - sum(kept.values())) / total * lower


def contexts():
    """Seen and unseen ones, at the beginning of a sentence and within."""
    rows = [[mod.S], [mod.S, 5], [mod.S, 5, 4], [mod.S, 3, 12], [mod.S, 12, 12, 12], [mod.S, 13]]
    rows += [[mod.S, mod.UNK, 4, 5, 6, 7], [mod.S, 4, 13, 5], [mod.S, 4, 12, 3]]
    return rows + [row[:6] for row in sentences(data().train)[:9] if len(row) > 7]


def fitted(smoothing, order=N):
    mu = [0.6, 0.5, 0.7, 0.3][:order]
    return mod.fit_ngrams(counts(), smoothing, order, 0.3, mu)


@pytest.mark.parametrize("order", range(1, N + 1))
@pytest.mark.parametrize("smoothing", ["absolute", "kneser_ney", "modified_kneser_ney"])
def test_discounts_against_dictionaries(smoothing, order):
    words = range(1, len(data().names))
    p = fitted(smoothing, order).next_words(contexts())
    for row, history in zip(p, contexts(), strict=True):
        h = tuple(history[max(0, len(history) - order + 1) :])
        want = [discounted(smoothing, w, h, order) for w in words]
        assert abs(row[1:] - want).max() < 1e-12


@pytest.mark.parametrize("smoothing", ["absolute", "kneser_ney", "modified_kneser_ney"])
def test_a_wrong_count_is_seen(smoothing, monkeypatch):
    real = mod.discounts
    monkeypatch.setattr(mod, "discounts", lambda c, modified: real(c, modified) * 1.001)
    h = (4, 5)
    p = fitted(smoothing, 3).next_words([[mod.S, *h]])[0, 4]
    assert abs(p - discounted(smoothing, 4, h, 3)) > 1e-7


def test_witten_bell_against_dictionaries():
    p = fitted("witten_bell").next_words(contexts())
    for row, history in zip(p, contexts(), strict=True):
        want = [discounted("witten_bell", w, tuple(history[-3:]), N) for w in range(1, len(row))]
        assert abs(row[1:] - want).max() < 1e-12


def interpolated(w, h, mu):
    if h is None:
        return 1 / (len(data().names) - 1)
    lower = interpolated(w, h[1:] if h else None, mu)
    total = sum(k for gram, k in dictionary().items() if gram[:-1] == h)
    m = mu[len(h)]
    return m * dictionary().get((*h, w), 0) / total + (1 - m) * lower if total else lower


def test_jelinek_mercer_against_dictionaries():
    p = fitted("jelinek_mercer").next_words(contexts())
    for row, history in zip(p, contexts(), strict=True):
        want = [interpolated(w, tuple(history[-3:]), [0.6, 0.5, 0.7, 0.3]) for w in (1, 2, 5, 12)]
        assert abs(row[[1, 2, 5, 12]] - want).max() < 1e-12


def backed_off(w, h, order):
    """Katz: words seen get their discounted share, the others what is left, by the lower order."""
    V = len(data().names) - 1
    if h is None:
        return 1 / V
    c = {gram: k for gram, k in dictionary().items() if len(gram) == len(h) + 1}
    after = {gram[-1]: k for gram, k in c.items() if gram[:-1] == h}
    if not after:
        return backed_off(w, h[1:] if h else None, order)
    n = [sum(k == r for k in c.values()) for r in range(7)]
    d = [(r - 0.5) / r for r in range(1, 6)]
    if all(n[1:]):
        q = 6 * n[6] / n[1]
        good = [((r + 1) * n[r + 1] / n[r] / r - q) / (1 - q) for r in range(1, 6)]
        d = good if all(0 < x < 1 for x in good) else d
    kept = {word: k * ([*d, 1][min(k, 6) - 1]) for word, k in after.items()}
    lower = {word: backed_off(word, h[1:] if h else None, order) for word in range(1, V + 1)}
    rest = 1 - sum(lower[word] for word in after)
    total = sum(after.values())
    if rest < 1e-9:
        return after.get(w, 0) / total
    total += abs(total - sum(kept.values())) < 1e-9
    if w in after:
        return kept[w] / total
    return (1 - sum(kept.values()) / total) / rest * lower[w]


def test_katz_against_dictionaries():
    p = fitted("katz", 3).next_words(contexts())
    for row, history in zip(p, contexts(), strict=True):
        want = [backed_off(w, tuple(history[-2:]), 3) for w in (1, 2, 4, 5, 12, 13)]
        assert abs(row[[1, 2, 4, 5, 12, 13]] - want).max() < 1e-12


def test_good_turing_by_hand():
    """n_r = 100, 40, 20, 12, 8, 5: q = 0.3 and d_1 = (0.8 - 0.3) / 0.7."""
    c = np.repeat(np.arange(1, 7), [100, 40, 20, 12, 8, 5])
    kept = mod.good_turing(np.append(c, 50))
    assert kept[0] == pytest.approx((0.8 - 0.3) / 0.7)
    assert kept[100] == pytest.approx(2 * (3 * 20 / 40 / 2 - 0.3) / 0.7)
    assert kept[-2:].tolist() == [6, 50]
    # All that is taken is what (13) wants: n_1 counts for all that was never seen.
    assert (c - kept[:-1]).sum() == pytest.approx(100)


def test_counts_and_lidstone():
    V = len(data().names) - 1
    for smoothing, k in (("mle", 0), ("laplace", 1), ("lidstone", 0.3)):
        p = fitted(smoothing).next_words(contexts())
        for row, history in zip(p, contexts(), strict=True):
            h = tuple(history[-3:])
            total = sum(n for gram, n in dictionary().items() if gram[:-1] == h)
            if total or k:
                want = [(dictionary().get((*h, w), 0) + k) / (total + k * V) for w in range(1, 14)]
                assert abs(row[1:] - want).max() < 1e-12
    for n in range(1, N + 1):
        grams = counts().grams[n]
        assert set(dictionary().values()) >= {*grams.count.tolist()} - {0}
        assert grams.count.sum() == sum(k for g, k in dictionary().items() if len(g) == n)


@pytest.mark.parametrize("order", range(1, N + 1))
@pytest.mark.parametrize("smoothing", mod.SMOOTHINGS)
def test_sums(smoothing, order):
    p = fitted(smoothing, order).next_words(contexts())
    assert abs(p.sum(1) - 1).max() < 1e-12 and p.min() >= 0 and (p[:, mod.S] == 0).all()
    if smoothing != "mle":
        assert p[:, 1:].min() > 0
    assert mod.sum_gap(fitted(smoothing, order), data()) < 1e-12


@pytest.mark.parametrize("smoothing", mod.SMOOTHINGS)
def test_score_of_running_text_is_that_of_next_words(smoothing):
    model, text = fitted(smoothing), data().test
    p = model.score(*counts().events(text))
    rows = [row[: i + 1] for row in sentences(text) for i in range(1, len(row))]
    one = [model.next_words([row[:-1]])[0, row[-1]] for row in rows[:200]]
    assert len(rows) == len(p) and abs(p[:200] - one).max() < 1e-15
    assert mod.perplexity(p[:3]) == pytest.approx(math.prod(one[:3]) ** (-1 / 3))


def test_example():
    assert mod.example().tolist() == [0.5, 1, 0.5, 0.4, 0.5]
    assert mod.example().prod() == 0.05


def test_what_begins_with_s_keeps_its_count(monkeypatch):
    model = fitted("kneser_ney", 3)
    grams = model.counts.grams[2]
    raw = dict(zip(zip(grams.context, grams.word, strict=True), grams.count, strict=True))
    assert raw[mod.S, 3] > 1  # while no more than one thing stands before <s>
    p = model.next_words([[mod.S]])[0]
    want = [discounted("kneser_ney", w, (mod.S,), 3) for w in range(1, len(p))]
    assert abs(p[1:] - want).max() < 1e-12


def test_discounts_fall_back():
    assert mod.discounts(np.array([5, 6]), False).tolist() == [0, 0.5, 0.5, 0.5]
    assert mod.discounts(np.array([1, 2, 2]), True).tolist() == [0, 0.5, 1.0, 1.5]
    assert mod.discounts(np.array([1, 1, 2]), False)[1] == 0.5  # 2 / (2 + 2)
    D = mod.discounts(np.repeat([1, 2, 3, 4], [20, 8, 4, 2]), True)
    Y = 20 / 36
    assert D.tolist() == pytest.approx([0, 1 - 2 * Y * 0.4, 2 - 3 * Y * 0.5, 3 - 4 * Y * 0.5])


def test_em_never_falls_and_finds_the_best():
    part = mod.Counts(data().train, 2, len(data().names))
    mu, curve = mod.em(part, data().test, 300)
    assert min(b - a for a, b in itertools.pairwise(curve)) > -1e-12
    model = mod.fit_ngrams(part, "jelinek_mercer", 2, mu=mu)
    events = part.events(data().test)

    def likelihood(mu):
        return np.log(mod.fit_ngrams(part, "jelinek_mercer", 2, mu=mu).score(*events)).mean()

    assert likelihood(mu) == pytest.approx(curve[-1], abs=1e-5)
    assert abs(model.next_words(contexts()).sum(1) - 1).max() < 1e-12
    grid = np.linspace(0.05, 0.95, 19)
    assert likelihood(mu) >= max(likelihood(pair) for pair in itertools.product(grid, grid))
    # On the text that was counted the highest order would take it all.
    assert mod.em(part, data().train, 2000)[0][1] > 0.95


def test_generation():
    model = fitted("modified_kneser_ney", 3)
    greedy = mod.go_on(model, [4], "argmax", 8)
    history = [mod.S, 4]
    for word in greedy:
        p = model.next_words([history])[0]
        p[mod.UNK] = 0
        assert p.argmax() == word
        history.append(word)
    assert mod.go_on(model, [4], "beam", 8, width=1) == greedy
    assert mod.go_on(model, [4], "sample", 8, temperature=0.0) == greedy
    draws = {tuple(mod.go_on(model, [4], "sample", 8, seed=seed)) for seed in range(9)}
    assert len(draws) > 3
    assert mod.go_on(model, [4], "sample", 8, seed=1) == mod.go_on(model, [4], "sample", 8, seed=1)


def test_wide_beam_finds_the_best_by_brute_force():
    model, best = fitted("kneser_ney", 3), (-math.inf, None)
    words = [w for w in range(1, len(data().names)) if w != mod.UNK]
    for length in (1, 2):
        for path in itertools.product(words, repeat=length):
            if mod.E in path[:-1] or (length < 2 and path[-1] != mod.E):
                continue
            p = [model.next_words([[mod.S, *path[:i]]])[0, w] for i, w in enumerate(path)]
            best = max(best, (np.log(p).mean(), [w for w in path if w != mod.E]))
    assert mod.go_on(model, [], "beam", 2, width=500) == best[1]


def test_samples_follow_the_model():
    model, random = fitted("witten_bell", 2), Counter()
    for seed in range(1500):
        random.update(mod.go_on(model, [5], "sample", 1, temperature=2.0, seed=seed) or [mod.E])
    p = model.next_words([[mod.S, 5]])[0] ** 0.5
    p[mod.UNK] = 0
    for word in range(1, 12):
        assert random[word] / 1500 == pytest.approx(p[word] / p.sum(), abs=0.05)


def read_arpa(file):
    """{n-gram: (log10 P, log10 gamma)}"""
    found = {}
    for row in Path(file).read_text(encoding="utf-8").splitlines():
        if "\t" in row:
            p, words, *gamma = row.split("\t")
            found[tuple(words.split(" "))] = float(p), float(gamma[0]) if gamma else 0.0
    return found


@pytest.mark.parametrize("smoothing", ["modified_kneser_ney", "katz", "witten_bell"])
def test_arpa_read_back(smoothing):
    code, _, err = call(PATH, "--arpa", "--smoothing", smoothing, "--out", "x")
    assert (code, err) == (0, "")
    text = mod.markov(0)
    table, full = read_arpa("x/model.arpa"), mod.Counts(text.train, 3, len(text.names))
    assert len(table) == sum(len(grams.key) for grams in full.grams[1:])

    def log_p(w, h):
        if (*h, w) in table or not h:
            return table[(*h, w)][0]
        return table.get(h, (0, 0))[1] + log_p(w, h[1:])

    model = mod.fit_ngrams(full, smoothing, 3)
    ours = np.log10(model.score(*full.events(text.test)))[:300]
    rows = [row[max(0, i - 2) : i + 1] for row in sentences(text.test) for i in range(1, len(row))]
    spelled = [tuple(text.names[w] for w in row) for row in rows[:300]]
    theirs = [log_p(row[-1], row[:-1]) for row in spelled]
    assert abs(ours - theirs).max() < 1e-5


def test_markov_knows_its_perplexity():
    text = mod.markov(0)
    assert (text.train[0], text.train[-1]) == (mod.S, mod.E)
    assert 5 < text.source < 7
    assert (text.train == mod.S).sum() == (text.train == mod.E).sum() == 1080
    ends = (text.train == mod.E).sum() / (text.train != mod.S).sum()
    assert ends == pytest.approx(0.05, abs=0.01)


def test_table():
    code, out, err = call(PATH)
    assert (code, err) == (0, "") and out.count("\n") == 2 + len(mod.SMOOTHINGS)
    assert "example 0.5 1 0.5 0.4 0.5" in out and "example 0.05" in out
    assert Path("out/ngram_lm/perplexity.png").exists()


def test_files_and_prompts():
    Path("a.txt").write_text("ein Haus\n\nein Haus im Wald\nein Baum\n" * 4, encoding="utf-8")
    argv = ["--dataset", "file", "--data_root", "a.txt"]
    code, out, err = call(PATH, *argv)
    assert (code, err) == (0, "") and "unknown 0" in out
    assert call(PATH, *argv, "--prompt", "ein Haus im")[1] == "ein Haus im Wald\n"
    assert call(PATH, *argv, "--prompt", "ei", "--chars", "--n_words", "1")[1] == "ein\n"
    mistake(PATH, *argv, "--prompt", "ein Schloss", about="--prompt: Schloss is not in the text")
    Path("b.txt").write_text("ein Haus\nein Dorf im Wald\nein Haus\n" * 2, encoding="utf-8")
    argv[3] = "b.txt"
    code, out, _ = call(PATH, *argv, "--prompt", "ein Schloss", "--min_count", "3")
    assert code == 0 and out.startswith("ein Schloss")  # as <unk>, for rarer words are


def test_mistakes():
    files = {"empty": b"", "one": b"one line\n", "latin": b"caf\xe9 au lait\nb\n"}
    files |= {"marks": b"<s> a b </s>\n<s> b </s>\n", "short": b"a\nb\nc\n"}
    for name, content in files.items():
        Path(name).write_bytes(content)
    argv = ["--dataset", "file", "--data_root"]
    mistake(PATH, *argv, "empty", about="fewer than two lines")
    mistake(PATH, *argv, "one", about="fewer than two lines")
    mistake(PATH, *argv, "latin", about="not in UTF-8 (byte 3)")
    mistake(PATH, *argv, "marks", about="<s> among its words")
    mistake(PATH, *argv, "nowhere", about="nowhere cannot be read")
    for order in (4, 9):
        code, out, err = call(PATH, *argv, "short", "--order", order)
        assert code == 2 and out == "" and f"--order {order}: no sentence has" in err
    mistake(PATH, "--arpa", "--smoothing", "laplace", about="--arpa")
    mistake(PATH, "--order", "10", about="--order")


def test_real_text(data_root):
    """Kneser-Ney is ahead, modified still more, and an order of 2 is no optimum."""
    argv = ["--dataset", "wikitext2", "--data_root", data_root, "--order", "3"]
    args = mod.parse_args([*map(str, argv), "--out", "x"])
    metrics, table = mod.run(args)
    best = [table[key][-1] for key in ("modified_kneser_ney", "kneser_ney", "absolute", "laplace")]
    assert best == sorted(best) and best[0] < table["modified_kneser_ney"][1]
    assert metrics["perplexity"] == pytest.approx(174.5, abs=0.5)
