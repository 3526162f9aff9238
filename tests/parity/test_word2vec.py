"""word2vec.py against gensim: the same topics from the same text, the same files and formulas."""

import pytest
import torch
import torch.nn.functional as F
from gensim.models import KeyedVectors, Word2Vec
from house import call, load

mod = load("nlp/word2vec.py")
PATH = mod.Path(mod.__file__)
WAYS = [(arch, loss) for arch in ("skipgram", "cbow") for loss in ("ns", "hs")]
BLUR = 0.5  # share of words that belong to another topic, or all would be too easy


def blurred():
    """60 topics of 10 words, each of which occurs some 40 times."""
    torch.manual_seed(0)
    rows = mod.planted(60, 10, 2400, 10)
    strangers = [word for row in mod.planted(60, 10, 2400, 10) for word in row]
    swap = torch.rand(len(strangers)) < BLUR
    order = torch.randperm(len(strangers))
    words = [word for row in rows for word in row]
    words = [strangers[j] if s else w for w, s, j in zip(words, swap, order, strict=True)]
    return [words[i : i + 10] for i in range(0, len(words), 10)]


def nearest(vectors, n=5):
    cosine = (v := F.normalize(vectors)) @ v.T - 2 * torch.eye(len(vectors))
    return cosine.topk(n).indices


def purity(vectors, words):
    topic = torch.tensor([int(word[1:].split("w")[0]) for word in words])
    return (topic[nearest(vectors)] == topic[:, None]).float().mean().item()


def ours(rows, arch, loss, tmp_path, monkeypatch, epochs):
    monkeypatch.setattr(mod, "planted", lambda: rows)
    argv = ["--arch", arch, "--loss", loss, "--dim", "32", "--n_epochs", epochs, "--device", "cpu"]
    argv += ["--subsample", "0", "--lr", 0.025 if arch == "skipgram" else 0.05]
    code, _, err = call(PATH, *argv, "--out", tmp_path)
    assert (code, err) == (0, "")
    return KeyedVectors.load_word2vec_format(tmp_path / "vectors.txt", binary=False)


def theirs(rows, arch, loss, epochs):
    sg, hs, negative = int(arch == "skipgram"), int(loss == "hs"), 5 * (loss == "ns")
    known = {"vector_size": 32, "window": 5, "min_count": 5, "sample": 0, "workers": 1, "seed": 1}
    alpha = 0.025 if sg else 0.05
    model = Word2Vec(rows, sg=sg, hs=hs, negative=negative, alpha=alpha, epochs=epochs, **known)
    return model.wv


@pytest.mark.parametrize("arch, loss", WAYS)
def test_same_quality_on_a_hard_text(arch, loss, tmp_path, monkeypatch):
    rows, epochs = blurred(), 10
    a, b = ours(rows, arch, loss, tmp_path, monkeypatch, epochs), theirs(rows, arch, loss, epochs)
    x = torch.from_numpy(a.vectors).float()
    y = torch.stack([torch.from_numpy(b[word].copy()) for word in a.index_to_key])
    found = purity(x, a.index_to_key), purity(y, a.index_to_key)
    pairs = zip(nearest(x).tolist(), nearest(y).tolist(), strict=True)
    both = [(set(p), set(q)) for p, q in pairs]
    overlap = sum(len(p & q) for p, q in both) / 5 / len(both)
    print(arch, loss, found, overlap)
    assert found[0] > found[1] - 0.05 and found[0] > 0.3
    assert overlap > 0.25  # by chance 0.008


def same_answers(shown, wv, want):
    """The same cosines; words whose cosines are nearly equal may change places."""
    cosines, known = [float(x) for x, _ in shown], dict(want)
    assert cosines == pytest.approx([x for _, x in want], abs=6e-4)
    assert sum(word in known for _, word in shown) >= 9
    assert all(abs(known.get(word, float(x)) - float(x)) < 6e-4 for x, word in shown)


def test_gensim_reads_our_files(tmp_path, monkeypatch):
    wv = ours(mod.planted(), "skipgram", "ns", tmp_path, monkeypatch, 1)
    state = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    assert (torch.from_numpy(wv.vectors.copy()) - state["syn0"]).abs().max() < 1e-5
    argv = ["--dim", 32, "--out", tmp_path, "--device", "cpu", "--nearest", wv.index_to_key[3]]
    shown = [row.split() for row in call(PATH, *argv)[1].splitlines()]
    want = wv.most_similar(wv.index_to_key[3], topn=10)
    same_answers(shown, wv, want)


def test_sums_of_words_as_gensim_does_them(tmp_path, monkeypatch):
    wv = ours(mod.planted(), "cbow", "ns", tmp_path, monkeypatch, 1)
    argv = ["--arch", "cbow", "--dim", 32, "--out", tmp_path, "--device", "cpu"]
    out = call(PATH, *argv, "--nearest", "t1w1 - t2w2 + t3w3")[1]
    want = wv.most_similar(positive=["t1w1", "t3w3"], negative=["t2w2"], topn=10)
    same_answers([row.split() for row in out.splitlines()], wv, want)


def test_subsampling_is_gensims():
    rows = mod.planted()
    rows = [[word[:2] for word in row] + ["rare"] * (i % 50 == 0) for i, row in enumerate(rows)]
    model = Word2Vec(vector_size=4, min_count=1, sample=0.01)
    model.build_vocab(rows)
    words = model.wv.index_to_key
    counts = torch.tensor([float(model.wv.get_vecattr(word, "count")) for word in words])
    kept = [model.wv.get_vecattr(word, "sample_int") / 2**32 for word in words]
    assert mod.keep_chance(counts, 0.01).tolist() == pytest.approx(kept, abs=1e-6)
    assert min(kept) < 0.5 and max(kept) > 0.999


def test_tree_is_as_good_as_gensims():
    """Ties may be settled otherwise, but the bits of all words together are the same."""
    rows = blurred()
    model = Word2Vec(vector_size=4, min_count=1, hs=1, negative=0)
    model.build_vocab(rows)
    counts = [model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key]
    bits = [len(model.wv.get_vecattr(word, "code")) for word in model.wv.index_to_key]
    paths = mod.huffman_paths(mod.huffman_tree(counts))
    assert sum(k * len(p) for k, p in zip(counts, paths, strict=True)) == sum(
        k * b for k, b in zip(counts, bits, strict=True)
    )
