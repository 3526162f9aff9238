"""word2vec.py: gradients by autograd, the tree, windows by hand, topics found by all four ways."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from house import call, load, mistake, tiny

mod = load("nlp/word2vec.py")
PATH = Path(mod.__file__)
WAYS = [(arch, loss) for arch in ("skipgram", "cbow") for loss in ("ns", "hs")]
COUNTS = [40, 17, 17, 9, 5, 3, 1, 1, 1]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def flags(**changed):
    typed = {"dim": 8, "device": "cpu"} | changed
    return mod.parse_args(
        [word for key, value in typed.items() for word in (f"--{key}", f"{value}")]
    )


def random_model(n_outputs, V=9, D=6):
    torch.manual_seed(0)
    model = mod.Word2Vec(V, n_outputs, D).double()
    for parameter in model.parameters():
        parameter.normal_()
    return model


def small_step(arch, loss):
    """A Step of random pairs over 9 words, and the pairs."""
    torch.manual_seed(1)
    P, row = 4, torch.tensor([0, 0, 1, 2, 2, 2, 3])
    centre, around = torch.randint(9, (P,)), torch.randint(9, row.shape)
    source, to = (centre, torch.arange(P)), (around, row)
    if arch == "cbow":
        source, to = to, source
    which, node, y = mod.questions(COUNTS, loss).about(to[0])
    many = to[1].bincount(minlength=P).double()
    noise = torch.randint(9, (mod.SHARED,))
    return mod.Step(source, (to[1][which], node, y.double()), many, noise, 0.0), source, to


def by_hand(model, source, to, loss, noise, K):
    """(1) to (6), one pair after the other, from the tables of the model."""
    total = 0
    for w, row in zip(*map(torch.Tensor.tolist, to), strict=True):
        h = model.syn0[source[0][source[1] == row]].mean(0)
        if loss == "ns":
            total = total - F.logsigmoid(model.syn1[w] @ h)
            for k in noise.tolist():
                total = total - K / len(noise) * F.logsigmoid(-(model.syn1[k] @ h))
        else:
            path = mod.huffman_paths(mod.huffman_tree(COUNTS))[w]
            for node, bit in path:
                total = total - F.logsigmoid((1 - 2 * bit) * (model.syn1[node - 9] @ h))
    return total


def learned(arch, loss, lr=0.1, K=3):
    """Loss and what a step has changed, against the gradient by autograd."""
    model = random_model(8 if loss == "hs" else 9)
    step, source, to = small_step(arch, loss)
    old = [p.detach().clone().requires_grad_() for p in (model.syn0, model.syn1)]
    copy = type("", (), {"syn0": old[0], "syn1": old[1]})
    want = by_hand(copy, source, to, loss, step.noise, K)
    g0, g1 = torch.autograd.grad(want, old)
    if arch == "cbow":  # each word gets the whole of the gradient of h
        h = torch.stack([old[0][source[0][source[1] == r]].mean(0) for r in range(4)]).detach()
        h.requires_grad_()
        terms = [to[0], torch.arange(4)]
        table = type("", (), {"syn0": h, "syn1": old[1].detach()})
        own = by_hand(table, (torch.arange(4), torch.arange(4)), terms, loss, step.noise, K)
        (gh,) = torch.autograd.grad(own, h)
        g0 = torch.zeros_like(g0).index_add_(0, source[0], gh[source[1]])
    got = mod.w2v_learn(model, step, arch, K if loss == "ns" else 0, lr)
    new = (model.syn0, model.syn1)
    sides = zip(old, new, (g0, g1), strict=True)
    return (got - want).abs().item(), [((a - b) / lr - g).abs().max().item() for a, b, g in sides]


@pytest.mark.parametrize("arch, loss", WAYS)
def test_gradients(arch, loss):
    gap, gaps = learned(arch, loss)
    assert gap < 1e-12 and max(gaps) < 1e-12


@pytest.mark.parametrize("arch, loss", WAYS)
def test_a_wrong_sign_is_seen(arch, loss, monkeypatch):
    real = mod.logistic
    monkeypatch.setattr(mod, "logistic", lambda h, u, r, n, y: real(h, u, r, n, 1 - y))
    assert learned(arch, loss)[0] > 0.1


@pytest.mark.parametrize("counts", [COUNTS, [1, 1], [5, 1, 1], [2**i for i in range(12)]])
def test_hierarchical_softmax_sums_to_1(counts):
    torch.manual_seed(0)
    h, syn1 = torch.randn(1, 6).double(), torch.randn(len(counts) - 1, 6).double()
    asked, total = mod.questions(counts, "hs"), 0
    for w in range(len(counts)):
        which, node, y = asked.about(torch.tensor([w]))
        total += (-mod.logistic(h, syn1, which, node, y.double())[0]).exp()
    assert abs(total - 1) < 1e-12


def test_questions_about_many_words():
    asked = mod.questions(COUNTS, "hs")
    which, node, y = asked.about(torch.tensor([3, 0, 3, 8]))
    paths = mod.huffman_paths(mod.huffman_tree(COUNTS))
    want = [(i, n - 9, 1.0 - b) for i, w in enumerate([3, 0, 3, 8]) for n, b in paths[w]]
    assert [*zip(which.tolist(), node.tolist(), y.tolist(), strict=True)] == want
    which, node, y = mod.questions(COUNTS, "ns").about(torch.tensor([3, 0]))
    assert (which.tolist(), node.tolist(), y.tolist()) == ([0, 1], [3, 0], [1, 1])


def test_windows_by_hand(monkeypatch):
    monkeypatch.setattr(mod.torch, "randint", lambda low, high, size, device: reach)
    ids = torch.arange(10, 20)
    sentence = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2, 2])
    reach = torch.tensor([1, 2, 3, 1, 3, 3, 1, 2, 1, 3])[:, None]
    real = torch.randperm
    monkeypatch.setattr(mod.torch, "randperm", lambda n, device: real(n))
    torch.manual_seed(0)
    order = real(10)
    torch.manual_seed(0)
    centre, row, around = mod.word_windows(ids, sentence, 3)
    want = []
    for at, i in enumerate(order.tolist()):
        near = range(i - reach[at].item(), i + reach[at].item() + 1)
        near = [j for j in near if 0 <= j < 10 and j != i and sentence[j] == sentence[i]]
        want += [(i + 10, near)] if near else []
    got = [(c, (around[row == r] - 10).tolist()) for r, c in enumerate(centre.tolist())]
    assert got == want and 14 not in centre.tolist()
    assert (row.diff() >= 0).all()


def test_sizes_of_windows():
    torch.manual_seed(0)
    _, row, _ = mod.word_windows(torch.arange(5000), torch.zeros(5000).long(), 5)
    assert Counter(row.bincount().tolist()).keys() >= {2, 4, 6, 8, 10}
    assert len(row) / 5000 == pytest.approx(6, abs=0.15)


def test_subsampling_and_learning_rate():
    counts = torch.tensor([9000.0, 900, 99, 1])
    chance = mod.keep_chance(counts, 0.01)
    assert chance.tolist() == pytest.approx(
        [(1 / 90) ** 0.5 + 1 / 90, (1 / 9) ** 0.5 + 1 / 9, 1, 1]
    )
    assert (mod.keep_chance(counts, 0.0) == 1).all()
    assert mod.linear_rate(0.1, 0.25) == pytest.approx(0.075)
    assert mod.linear_rate(0.1, 1.0) == pytest.approx(1e-5)


def test_an_epoch_asks_about_every_pair():
    """The Steps of an epoch are the windows of the whole text, cut into rows."""
    args = flags(subsample=0.0, batch_size=100)
    corpus = mod.load_data(args)
    parts = [*mod.w2v_steps(args, corpus, mod.questions(corpus.counts, "ns"))]
    assert len(parts) == 150 and sum(len(part.many) for part in parts) == 15_000
    pairs = sum(len(part.asked[0]) for part in parts)
    assert pairs == sum(part.many.sum() for part in parts)
    for part in parts[:3]:
        assert (part.asked[0].bincount(minlength=100) == part.many).all()
        topic = [corpus.words[i][:2] for i in part.source[0].tolist()]
        to = zip(*map(torch.Tensor.tolist, part.asked[:2]), strict=True)
        assert all(topic[row] == corpus.words[node][:2] for row, node in to)
    assert [parts[0].done, parts[75].done] == [0, 0.5]
    words = torch.cat([part.noise for part in parts]).bincount() / (150 * mod.SHARED)
    want = torch.tensor(corpus.counts) ** 0.75
    assert (words - want / want.sum()).abs().max() < 0.006


def test_cbow_is_the_other_way_round():
    args = flags(arch="cbow", subsample=0.0)
    corpus = mod.load_data(args)
    part = next(mod.w2v_steps(args, corpus, mod.questions(corpus.counts, "ns")))
    assert (part.many == 1).all() and (part.asked[0] == torch.arange(64)).all()
    assert len(part.source[0]) == len(part.source[1]) > 128


@pytest.mark.parametrize("arch, loss", WAYS)
def test_topics_are_found(arch, loss):
    argv = ["--smoke", "--device", "cpu", "--arch", arch, "--loss", loss, "--seed", "3"]
    code, out, _ = call(PATH, *argv)
    row = mod.json.loads(out)
    assert code == 0 and row["purity"] > 0.9
    assert row["start_gap"] < 1e-5


@pytest.mark.parametrize("arch, loss", WAYS)
def test_loss_at_the_start(arch, loss):
    args = flags(arch=arch, loss=loss)
    corpus = mod.load_data(args)
    asked = mod.questions(corpus.counts, loss)
    step = next(mod.w2v_steps(args, corpus, asked))
    got = (
        mod.w2v_learn(mod.build(args, corpus), step, arch, 7 * (loss == "ns"), 0.0)
        / step.many.sum()
    )
    if loss == "ns":
        assert got == pytest.approx(8 * math.log(2), abs=1e-5)
    else:
        assert 6 * math.log(2) < got < 7 * math.log(2)  # 96 words lie 6 or 7 nodes deep


def test_untrained_vectors_know_no_topics():
    args = flags()
    corpus = mod.load_data(args)
    assert mod.evaluate(mod.build(args, corpus), corpus)["purity"] < 0.25
    assert mod.evaluate(mod.build(args, corpus), corpus._replace(words=["a", "b"])) == {}


def test_files_neighbours_and_sums():
    text = "the king rules the land\nthe queen rules the land\nthe dog eats the bone\n" * 40
    Path("a.txt").write_text(text, encoding="utf-8")
    argv = ["--dataset", "file", "--data_root", "a.txt", "--dim", "16", "--device", "cpu"]
    code, _, err = call(PATH, *argv, "--n_epochs", "30")
    assert (code, err) == (0, "")
    out = Path("out/word2vec")
    head, *rows = (out / "vectors.txt").read_text(encoding="utf-8").splitlines()
    assert head == f"{len(rows)} 16" and rows[0].startswith("the ") and len(rows[3].split()) == 17
    assert (out / "vectors.png").exists()
    code, shown, err = call(PATH, *argv, "--nearest", "King")
    assert (code, err) == (0, "") and "king" not in shown and shown.count("\n") == 7
    assert "queen" in shown.splitlines()[0]
    assert call(PATH, *argv, "--nearest", "king - rules + eats")[0] == 0
    weights = ["--weights", out / "last.pt"]
    assert call(PATH, *argv, *weights, "--nearest", "king", "--out", "x")[1] == shown
    mistake(PATH, *argv, "--nearest", "quen", about="quen is not in the vocabulary; try queen")
    mistake(PATH, *argv, "--nearest", "+", about="--nearest:")
    mistake(PATH, *argv, "--nearest", "king", "--dim", "8", about="--weights")


def test_sums_of_words():
    """king - man + woman is queen if the vectors say so; the words of the sum are left out."""
    Path("a.txt").write_text("king man woman queen other\n" * 9, encoding="utf-8")
    argv = ["--dataset", "file", "--data_root", "a.txt", "--dim", "4", "--device", "cpu"]
    vectors = {"king": [3.0, 0, 0, 0], "man": [0.0, 2, 0, 0], "woman": [0, 0, 0.5, 0]}
    vectors |= {"queen": [1.0, -1, 1, 0], "other": [1.0, 1, 0, 0]}
    rows = [vectors[word] for word in mod.load_data(mod.parse_args(argv)).words]
    torch.save({"syn0": torch.tensor(rows), "syn1": torch.zeros(5, 4)}, "w.pt")
    argv += ["--weights", "w.pt", "--nearest"]
    assert call(PATH, *argv, "king - man + woman")[1] == "1.000  queen\n0.000  other\n"
    assert call(PATH, *argv, "king + man")[1].startswith("1.000  other")


def test_words_without_a_font(monkeypatch, capsys):
    args = flags()
    torch.manual_seed(0)
    words = ["词语", "句子", "the"]
    monkeypatch.setattr(mod, "FONTS", [])
    Path("x").mkdir()
    args.out = "x"
    mod.draw(args, torch.randn(3, 8), words)
    assert capsys.readouterr().err == "no font for: 0 词语 1 句子 2 the\n"
    mod.draw(args, torch.randn(3, 8), ["a", "b", "ç"])
    assert capsys.readouterr().err == ""


def test_schedule_goes_on_after_an_interruption(monkeypatch):
    """The learning rate of a resumed run is that of the whole one."""
    seen, real = [], mod.linear_rate

    def spy(lr, done):
        seen.append(round(done, 9))
        return real(lr, done)

    monkeypatch.setattr(mod, "linear_rate", spy)
    argv = [*tiny(PATH, batch_size=1000), "--out", "x"]
    assert call(PATH, *argv)[0] == 0
    assert seen == sorted(seen) and seen[0] == 0 and 0.9 < seen[-1] < 1
    assert seen[len(seen) // 2] == 0.5


def test_mistakes():
    Path("empty").write_bytes(b"")
    Path("latin").write_bytes(b"caf\xe9 au lait\n" * 9)
    Path("alone").write_bytes(b"a\nb\nc\n" * 9)
    argv = ["--device", "cpu", "--dataset", "file", "--data_root"]
    mistake(PATH, *argv, "empty", about="--min_count 5: leaves no two words")
    mistake(PATH, *argv, "alone", about="--min_count 5: leaves no two words")
    mistake(PATH, *argv, "latin", about="latin cannot be read")
    mistake(PATH, *argv, "nowhere", about="nowhere cannot be read")
    mistake(PATH, "--subsample", "-1", about="--subsample")
    mistake(PATH, "--device", "cpu", "--min_count", "9999", about="--min_count")
    mistake(PATH, "--device", "cpu", "--nearest", "t0w1", about="--weights")
