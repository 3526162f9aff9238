"""crf.py: log Z, chances, gradient and best tags by enumeration; features, files, words to cut."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from house import call, load, mistake, tiny

mod = load("classic_ml/crf.py")
PATH = Path(mod.__file__)
LENGTHS = [2, 5, 1, 4, 1, 5]
ROWS = {"a": [["p", "q"], ["q"], [], ["p"]], "b": [["r"]], "c": [["q", "r"], ["p"], ["q"]]}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def random_chains(size=2.0, K=3):
    """Chains of six sentences, their scores P (N, K) and A (K, K); P once more, by sentence."""
    torch.manual_seed(0)
    chains = mod.chain_up([[[]] * n for n in LENGTHS], {"": 0}, "cpu")
    P, A = (size * torch.randn(n, K, dtype=torch.float64) for n in (sum(LENGTHS), K))
    return chains, P.requires_grad_(), A.requires_grad_(), P[chains.old.argsort()].split(LENGTHS)


def score_by_hand(P, A, y):
    steps = sum(P[t, tag] for t, tag in enumerate(y))
    return steps + sum(A[i, j] for i, j in itertools.pairwise(y))


def all_ways(P, A):
    every = [*itertools.product(range(len(A)), repeat=len(P))]
    return every, torch.stack([score_by_hand(P, A, y) for y in every])


def chain_gaps(size=2.0):
    """Of the sum of log Z, of its gradients, and how many sentences are tagged wrongly."""
    chains, P, A, parts = random_chains(size)
    ways = [all_ways(part, A) for part in parts]
    total = sum(scores.logsumexp(0) for _, scores in ways)
    with torch.no_grad():
        log_z, p, pairs = mod.forward_backward(P, A, chains)
        best = mod.best_tags(P, A, chains)[chains.old.argsort()].split(LENGTHS)
    slopes = torch.autograd.grad(total, (P, A))
    wrong = [tuple(y.tolist()) != w[s.argmax()] for y, (w, s) in zip(best, ways, strict=True)]
    gaps = [(a - b).abs().max().item() for a, b in zip((p, pairs), slopes, strict=True)]
    return abs(log_z.sum() - total).item(), max(gaps), sum(wrong)


@pytest.mark.parametrize("size", [0.1, 2.0, 60.0])
def test_sums_over_all_tags(size):
    log_z, slope, wrong = chain_gaps(size)
    assert log_z < 1e-11 * max(1, size) and slope < 1e-11 and wrong == 0


def test_log_z_of_each_sentence():
    chains, P, A, parts = random_chains()
    log_z = mod.forward_backward(P, A, chains)[0]
    want = sorted(all_ways(part, A)[1].logsumexp(0).item() for part in parts)
    assert sorted(log_z.tolist()) == pytest.approx(want)
    assert chains.sizes == [6, 4, 3, 3, 2] and (chains.sizes[0],) == log_z.shape


@pytest.mark.parametrize("mistaken", ["transposed", "before", "lost"])
def test_mistakes_in_the_sums_are_seen(mistaken, monkeypatch):
    real = mod.forward_backward

    def broken(P, A, chains):
        if mistaken == "transposed":
            return real(P, A.T, chains)
        if mistaken == "before":
            return real(P, A, chains._replace(before=chains.before.flip(0)))
        log_z, p, pairs = real(P, A, chains)
        return log_z, p, pairs - 0.001

    monkeypatch.setattr(mod, "forward_backward", broken)
    log_z, slope, _ = chain_gaps()
    assert max(log_z, slope) > 1e-4


def test_a_transposed_move_changes_the_best_tags(monkeypatch):
    real = mod.best_tags
    monkeypatch.setattr(mod, "best_tags", lambda P, A, chains: real(P, A.T, chains))
    assert chain_gaps()[2] > 0


def small(features):
    """A model of the sentences ROWS with random weights, and what its objective needs."""
    numbers = {"p": 0, "q": 1, "r": 2}
    tags = [[0, 1, 0, 0], [1], [2, 2, 1]]
    chains = mod.chain_up([*ROWS.values()], numbers, "cpu")
    y = torch.tensor([tag for row in tags for tag in row])[chains.old]
    pairs = torch.zeros(3, 3, dtype=torch.long)
    for row in tags:
        for i, j in itertools.pairwise(row):
            pairs[i, j] += 1
    seen = mod.count_features(chains, mod.F.one_hot(y, 3).double(), pairs)
    model = mod.build(mod.parse_args(["--features", features, "--device", "cpu"]), 3, 3, seen)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.w)
    return model, chains, seen, tags, numbers


def features_by_hand(row, y, numbers, V=3, K=3):
    """All F_k by (2), (3), (4), feature by feature."""
    counts = torch.zeros(V + K, K, dtype=torch.float64)
    for t, (place, tag) in enumerate(zip(row, y, strict=True)):
        for a in place:
            counts[numbers[a], tag] += 1
        if t:
            counts[V + y[t - 1], tag] += 1
    return counts.flatten()


@pytest.mark.parametrize("features", ["seen", "all"])
def test_objective_by_its_definition(features):
    model, chains, seen, tags, numbers = small(features)
    by_hand = sum(
        features_by_hand(row, y, numbers) for row, y in zip(ROWS.values(), tags, strict=True)
    )
    assert torch.equal(seen, by_hand)
    assert len(model.w) == (18 if features == "all" else (by_hand > 0).sum())
    w = model.w.detach().clone().requires_grad_()
    J = 0.7 * w @ w
    for row, y in zip(ROWS.values(), tags, strict=True):
        ways = [*itertools.product(range(3), repeat=len(row))]
        scores = [w @ features_by_hand(row, way, numbers)[model.features] for way in ways]
        J = J + torch.stack(scores).logsumexp(0)
        J = J - w @ features_by_hand(row, y, numbers)[model.features]
    got, slope = model.objective(chains, seen, 0.7)
    assert abs(got - J).item() < 1e-12
    assert (slope - torch.autograd.grad(J, w)[0]).abs().max() < 1e-12
    wrong = model.objective(chains, seen, 0.7001)[1]
    assert (slope - wrong).abs().max() > 1e-5


def test_gradient_by_autograd():
    """Through forward_backward itself, on real sentences."""
    args = mod.parse_args(["--device", "cpu"])
    numbers, tags, chains, seen, _ = mod.load_data(args)
    model = mod.build(args, len(numbers), len(tags), seen)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.w)
    log_z = mod.forward_backward(*model.scores(chains), chains)[0]
    J = log_z.sum() - model.w @ seen[model.features] + 0.3 * model.w @ model.w
    want = torch.autograd.grad(J, model.w)[0]
    got, slope = model.objective(chains, seen, 0.3)
    assert abs(got - J) < 1e-9 and (slope - want).abs().max() < 1e-9


def test_minimum_has_no_slope_and_moments_agree():
    """At the minimum, expected features are the observed ones less 2 c2 w."""
    assert call(PATH, "--device", "cpu", "--n_steps", "200", "--c2", "1")[0] == 0
    args = mod.parse_args(["--device", "cpu", "--c2", "1"])
    numbers, tags, chains, seen, _ = mod.load_data(args)
    model = mod.build(args, len(numbers), len(tags), seen)
    mod.load_weights("out/crf/last.pt", model)
    J, slope = model.objective(chains, seen, 1)
    assert slope.abs().max() < 1e-4
    for _ in range(3):  # it is convex: everywhere else J is larger
        with torch.no_grad():
            model.w += 0.01 * torch.randn_like(model.w)
        assert model.objective(chains, seen, 1)[0] > J
    rows = Path("out/crf/features.txt").read_text(encoding="utf-8").splitlines()
    sizes = [abs(float(row.split()[0])) for row in rows]
    assert len(rows) == 200 and sizes == sorted(sizes, reverse=True)


def test_attributes_of_a_place():
    found = mod.window_attributes([[*"中文书"]])
    assert len(found) == 3 and len(found[0]) == 10
    assert found[0][:5] == ["0(-2,)<<", "0(-1,)<", "0(0,)中", "0(1,)文", "0(2,)书"]
    assert found[2][-3:] == ["0(0, 1)书/>", "0(1, 2)>/>>", "0(-1, 1)文/>"]
    two = mod.window_attributes([["the", "cat"], ["DT", "NN"]])
    assert len(two[0]) == 22 and "1(-1, 0, 1)DT/NN/>" in two[1] and "0(0,)cat" in two[1]


def test_unknown_attributes_are_left_out():
    chains = mod.chain_up([[["p", "new"], ["new"]], [["q"]]], {"p": 0, "q": 1}, "cpu")
    assert chains.attribute.tolist() == [0, 1] and chains.first.tolist() == [0, 1, 2]
    model = mod.ChainCRF(torch.arange(8), 2, 2)
    with torch.no_grad():
        model.w += torch.arange(8)
    P, A = model.scores(chains)
    assert P.tolist() == [[0, 1], [2, 3], [0, 0]] and A.tolist() == [[4, 5], [6, 7]]


def test_words_are_cut_into_tags():
    (columns, tags), *_ = mod.cut_words([["我", "今天", "去图书馆"], ["a"]])
    assert columns == [[*"我今天去图书馆"]] and "".join(tags) == "SBEBMME"
    args = mod.parse_args(["--device", "cpu"])
    _, tags, chains, _, test = mod.load_data(args)
    assert tags == ["B", "E", "M", "S"] and len(test) == 20 and chains.sizes[0] == 59
    assert all(columns[0][-1] in "。？" and row[-1] == "S" for columns, row in test)


def test_moves_carry_information(monkeypatch):
    """A first sign says where a row of equal signs begins; then X and Y take turns."""
    rows = [[["x" if i % 2 else "y", *"aaaaa"[: 2 + i % 4]]] for i in range(20)]
    turns = [["B-X", "B-Y"] * 4, ["B-Y", "B-X"] * 4]
    sentences = [(row, turns[row[0][0] == "y"][: len(row[0])]) for row in rows]
    monkeypatch.setattr(mod, "WINDOWS", [[(0,)]])
    monkeypatch.setattr(mod, "read_columns", lambda args, part: sentences)
    args = mod.parse_args(["--dataset", "resume", "--device", "cpu", "--out", "x"])
    assert mod.train(args)["f1"] == 1
    real = mod.count_features
    monkeypatch.setattr(mod, "count_features", lambda c, p, pairs: real(c, p, 0 * pairs))
    assert mod.train(args)["f1"] < 0.7


def test_a_text_is_cut_and_weights_are_reused():
    argv = ["--device", "cpu"]
    assert call(PATH, *argv)[0] == 0
    want = (0, "我们 明天 去 北京 看 朋友\n", "")
    assert call(PATH, *argv, "--predict", "我们明天去北京看朋友") == want
    weights = ["--weights", "out/crf/last.pt", "--out", "y"]
    assert call(PATH, *argv, *weights, "--predict", "我们明天去 北京看朋友") == want
    code, out, _ = call(PATH, *argv, *weights, "--n_steps", "0")
    assert code == 0 and float(out.split()[-1]) > 0.8
    mistake(PATH, *argv, "--predict", "", about="--predict: wants some characters")
    mistake(PATH, *argv, "--predict", "x", "--dataset", "conll2000", about="--predict")
    mistake(PATH, *argv, "--predict", "x", "--features", "all", about="--weights")


def test_untrained_model_fails():
    code, out, _ = call(PATH, "--smoke", "--device", "cpu", "--n_steps", "0")
    assert code == 1 and mod.json.loads(out)["f1"] < 0.65


def test_columns_of_files():
    Path("conll2000").mkdir()
    Path("ResumeNER").mkdir()
    text = "The DT B-NP\r\ncat NN I-NP\n\n\nsits\tVB B-VP\n"
    for file in ("conll2000/train.txt", "conll2000/test.txt"):
        Path(file).write_text(text, encoding="utf-8")
    args = mod.parse_args(["--dataset", "conll2000", "--data_root", ".", "--device", "cpu"])
    rows = mod.read_columns(args, "train")
    assert rows[0] == ([("The", "cat"), ("DT", "NN")], ("B-NP", "I-NP")) and len(rows) == 2
    code, out, err = call(PATH, "--dataset", "conll2000", "--data_root", ".", "--device", "cpu")
    assert (code, err) == (0, "") and out.splitlines()[-1] == "precision 1  recall 1  f1 1"
    for part in ("train", "test"):
        Path(f"ResumeNER/{part}.char.bmes").write_text("高 B-X\n勇 E-X\n\n男 O\n", encoding="utf-8")
    argv = ["--dataset", "resume", "--data_root", ".", "--device", "cpu"]
    assert call(PATH, *argv)[0] == 0
    assert call(PATH, *argv, "--predict", "高勇男")[1] == "高勇/X 男\n"


def test_mistakes():
    Path("conll2000").mkdir()
    argv = ["--dataset", "conll2000", "--data_root", ".", *tiny(PATH)]
    mistake(PATH, *argv, about="--data_root: conll2000/train.txt cannot be read")
    for text in ("", "\n\n", "a\nb\n", "a b\nc d e\n"):
        Path("conll2000/train.txt").write_text(text, encoding="utf-8")
        mistake(PATH, *argv, about="--data_root: conll2000/train.txt is no text of some columns")
    Path("conll2000/train.txt").write_bytes(b"caf\xe9 O\n")
    mistake(PATH, *argv, about="cannot be read")
    mistake(PATH, "--c2", "-1", about="--c2")


@pytest.mark.parametrize("name, sizes", [("ud", (500, 4)), ("conll2000", (2012, 22))])
def test_real_data(name, sizes, data_root, monkeypatch):
    monkeypatch.setattr(mod, "WINDOWS", [[(0,)], [(0,)]])
    argv = ["--dataset", name, "--data_root", str(data_root), "--device", "cpu"]
    _, tags, chains, seen, test = mod.load_data(mod.parse_args(argv))
    assert (len(test), len(tags)) == sizes
    assert seen.sum() == len(chains.attribute) + len(chains.before)


def test_loss_of_no_knowledge():
    """With all weights 0, J is N log K."""
    args = mod.parse_args(["--device", "cpu"])
    numbers, tags, chains, seen, _ = mod.load_data(args)
    J = mod.build(args, len(numbers), len(tags), seen).objective(chains, seen, 1)[0]
    assert J.item() == pytest.approx(len(chains.old) * math.log(4))
