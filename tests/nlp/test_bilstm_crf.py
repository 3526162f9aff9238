"""bilstm_crf.py: the CRF by enumeration, moves and spans by hand, files, a text to tag."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from house import call, load, mistake, tiny

mod = load("nlp/bilstm_crf.py")
PATH = Path(mod.__file__)
LENGTHS = [5, 1, 3, 4, 2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def random_crf(K=3, size=2.0, lengths=LENGTHS):
    """A CRF, scores, tags and mask, in float64."""
    torch.manual_seed(0)
    crf = mod.CRF(K).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter, std=size)
    B, T = len(lengths), max(lengths)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    P = size * torch.randn(B, T, K, dtype=torch.float64)
    return crf, P.requires_grad_(), torch.randint(K, (B, T)), mask


def score_by_hand(crf, P, y):
    """(2) for one sentence, term by term."""
    total = crf.start_transitions[y[0]] + crf.end_transitions[y[-1]]
    for t, tag in enumerate(y):
        total = total + P[t, tag]
        if t:
            total = total + crf.transitions[y[t - 1], tag]
    return total


def all_scores(crf, P, n):
    every = [*itertools.product(range(P.shape[1]), repeat=n)]
    return every, torch.stack([score_by_hand(crf, P, y) for y in every])


def crf_gaps():
    """Of s, log Z, the loss' gradients and the best tags, from enumeration."""
    crf, P, y, mask = random_crf()
    leaves = [P, *crf.parameters()]
    score, log_z, loss, best = 0.0, 0.0, 0, mod.crf_decode(crf, P, mask).tolist()
    wrong = 0
    for b, n in enumerate(LENGTHS):
        every, scores = all_scores(crf, P[b], n)
        own = score_by_hand(crf, P[b], y[b, :n].tolist())
        score = max(score, abs(own - mod.crf_score(crf, P, y, mask)[b]).item())
        log_z = max(log_z, abs(scores.logsumexp(0) - mod.crf_log_z(crf, P, mask)[b]).item())
        loss = loss + scores.logsumexp(0) - own
        wrong += tuple(best[b][:n]) != every[scores.argmax()]
        wrong += {*best[b][n:]} > {best[b][n - 1]}
    want = torch.autograd.grad(loss, leaves)
    got = torch.autograd.grad(mod.crf_loss(crf, P, y, mask).sum(), leaves)
    slope = max((p - q).abs().max().item() for p, q in zip(got, want, strict=True))
    return score, log_z, slope, wrong


def test_crf_is_the_sum_over_all_tags():
    score, log_z, slope, wrong = crf_gaps()
    assert max(score, log_z, slope) < 1e-12 and wrong == 0


@pytest.mark.parametrize("part, seen", [("start", 0), ("end", 0), ("", 1)])
def test_a_part_left_out_is_seen(part, seen, monkeypatch):
    """log Z without a, e, or with A the other way round."""
    real = mod.crf_log_z

    class Broken:
        def __init__(self, crf):
            self.start_transitions = crf.start_transitions * (part != "start")
            self.end_transitions = crf.end_transitions * (part != "end")
            self.transitions = crf.transitions if part else crf.transitions.T

    monkeypatch.setattr(mod, "crf_log_z", lambda crf, P, mask: real(Broken(crf), P, mask))
    assert min(crf_gaps()[1:3]) > 1e-3


def test_a_wrong_mask_is_seen(monkeypatch):
    real = mod.crf_decode
    monkeypatch.setattr(mod, "crf_decode", lambda crf, P, mask: real(crf, P, mask | True))
    assert crf_gaps()[3] > 0


@pytest.mark.parametrize("size", [1e-3, 10, 300, 1e4])
def test_no_score_is_too_large(size):
    """Loss and gradients stay finite, the loss stays a minus log of a probability."""
    crf, P, _, mask = random_crf(size=size)
    crf, P = crf.float(), P.detach().float().requires_grad_()
    with torch.no_grad():
        crf.transitions.clamp_(-30, 30)
    y = mod.crf_decode(crf, P, mask)
    loss = mod.crf_loss(crf, P, y, mask)
    assert loss.isfinite().all() and (loss > -1e-6 * size).all()
    grads = torch.autograd.grad(loss.sum(), [P, *crf.parameters()])
    assert all(g.isfinite().all() for g in grads)
    want = mod.crf_log_z(crf.double(), P.double(), mask)
    assert (mod.crf_log_z(crf.float(), P, mask) / want - 1).abs().max() < 1e-5


def test_what_stands_beyond_the_end_does_not_matter():
    crf, P, y, mask = random_crf()
    other, z = torch.where(mask[..., None], P, 99.0), torch.where(mask, y, 0)
    assert torch.equal(mod.crf_loss(crf, P, y, mask), mod.crf_loss(crf, other, z, mask))
    assert torch.equal(mod.crf_decode(crf, P, mask), mod.crf_decode(crf, other, mask))


BMES = ["B-X", "M-X", "E-X", "S-X", "B-Y", "M-Y", "E-Y", "S-Y", "O"]
BIO = ["B-X", "I-X", "B-Y", "I-Y", "O"]
BIOES = ["B-X", "I-X", "E-X", "S-X", "O"]
PLAIN_WORDS = ["B", "M", "E", "S"]


def tags_of(length, scheme):
    """All ways to tag so many places with whole spans."""
    kinds = sorted({tag[1:] for tag in scheme if tag != "O"})
    inner, last = ("M", "E") if "M" + kinds[0] in scheme else ("I", "I")
    last = "E" if "E" + kinds[0] in scheme else last
    if length == 0:
        yield ()
        return
    if "O" in scheme:
        yield from (("O", *rest) for rest in tags_of(length - 1, scheme))
    for kind in kinds:
        for n in range(1, length + 1):
            span = ["B", *[inner] * (n - 2), last] if n > 1 else ["S" if last == "E" else "B"]
            for rest in tags_of(length - n, scheme):
                yield (*[part + kind for part in span], *rest)


@pytest.mark.parametrize("scheme", [BMES, BIO, BIOES, PLAIN_WORDS], ids=" ".join)
def test_moves_are_legal_where_spans_can_make_them(scheme):
    start, moves, end = mod.illegal_moves(scheme)
    legal = {*tags_of(4, scheme)}
    assert len(legal) > 7
    for tags in itertools.product(scheme, repeat=4):
        k = [scheme.index(tag) for tag in tags]
        cost = start[k[0]] + moves[k[:-1], k[1:]].sum() + end[k[-1]]
        assert (cost == 0) == (tags in legal), tags


@pytest.mark.parametrize("scheme", [BMES, BIO, BIOES, PLAIN_WORDS], ids=" ".join)
def test_decoded_tags_are_legal_and_the_best_of_those(scheme):
    K = len(scheme)
    crf, P, _, mask = random_crf(K, lengths=[4] * 20)
    best = mod.crf_decode(crf, P, mask, mod.illegal_moves(scheme)).tolist()
    legal = [[scheme.index(tag) for tag in tags] for tags in tags_of(4, scheme)]
    for b, row in enumerate(best):
        scores = [score_by_hand(crf, P[b], y).item() for y in legal]
        assert row == legal[scores.index(max(scores))]
    free = mod.crf_decode(crf, P, mask).tolist()
    assert any(row not in legal for row in free)


def test_spans_by_hand():
    def spans(text):
        return mod.read_spans(text.split())

    assert spans("B-X M-X E-X O S-Y B-X E-X") == {(0, 3, "X"), (4, 5, "Y"), (5, 7, "X")}
    assert spans("B-X I-X B-X I-X I-Y O") == {(0, 2, "X"), (2, 4, "X"), (4, 5, "Y")}
    assert spans("I-X I-X O I-X") == {(0, 2, "X"), (3, 4, "X")}  # what conlleval makes of it
    assert spans("B E S B M E") == {(0, 2, ""), (2, 3, ""), (3, 6, "")}
    assert spans("B-X E-X E-X M-X") == {(0, 2, "X"), (2, 3, "X"), (3, 4, "X")}
    assert spans("O O") == spans("") == set()
    assert spans("S-NN S-VB-X") == {(0, 1, "NN"), (1, 2, "VB-X")}
    for scheme in (BMES, BIO, BIOES, PLAIN_WORDS):
        found = [frozenset(mod.read_spans(tags)) for tags in tags_of(5, scheme)]
        assert len({*found}) == len(found)


def test_f1():
    assert mod.span_f1(3, 4, 6) == pytest.approx({"precision": 0.75, "recall": 0.5, "f1": 0.6})
    assert mod.span_f1(0, 0, 0)["f1"] == mod.span_f1(0, 0, 5)["f1"] == 0


def data(*argv):
    return mod.load_data(mod.parse_args([*argv, "--device", "cpu"]))


def test_grammar():
    parts, chars, tags = data()
    assert [len(part.x) for part in parts] == [600, 100, 100]
    assert tags == ["B-LOC", "B-NAME", "E-LOC", "E-NAME", "M-LOC", "M-NAME", "O"]
    words = []
    for part in parts:
        found = set()
        for x, spans in zip(part.x.tolist(), part.spans, strict=True):
            text = "".join(chars[i] for i in x)
            found |= {text[a:b] for a, b, kind in spans if kind == "NAME"}
            assert all(text[b - 1] in "市县省" for _, b, kind in spans if kind == "LOC")
        words.append(found)
    assert len(words[2] - words[0]) > 20 and all(word[0] in mod.FAMILY for word in words[2])
    assert ["".join(mod.bmes("x" * n)) for n in (1, 2, 5)] == ["S", "BE", "BMMME"]


def write(train, dev="", test=""):
    Path("mine").mkdir(exist_ok=True)
    for part, text in (("train", train), ("dev", dev or train), ("test", test or train)):
        Path("mine", f"{part}.txt").write_text(text, encoding="utf-8")
    return ["--dataset", "folder", "--data_root", "mine"]


def test_files():
    argv = write(
        "New B-LOC\nYork x I-LOC\r\n. O\n\n\n \nhe\tO\n", dev="it O\n\n", test="York B-LOC"
    )
    (train, dev, test), chars, tags = data(*argv)
    assert chars == ["", "?", ".", "New", "York", "he"] and tags == ["B-LOC", "I-LOC", "O"]
    assert train.x.tolist() == [[3, 4, 2], [5, 0, 0]] and train.y.tolist() == [[0, 1, 2], [2, 0, 0]]
    assert train.lengths.tolist() == [3, 1] and train.spans == [{(0, 2, "LOC")}, set()]
    assert dev.x.tolist() == [[1]] and test.spans == [{(0, 1, "LOC")}]


def test_files_of_the_data_sets():
    Path("ResumeNER").mkdir()
    Path("WeiboNER").mkdir()
    Path("zh_seg/udc").mkdir(parents=True)
    texts = {"ResumeNER/{}.char.bmes": "高 B-NAME\n勇 E-NAME\n\n男 O\n"}
    texts["WeiboNER/weiboNER_2nd_conll.{}"] = "科0\tB-ORG.NAM\n技1\tI-ORG.NAM\n0 O\n"
    texts["zh_seg/udc/{}.conll"] = "1\t看似\t_\tVERB\n2\t二\t_\tNUM\n3\t三四五\t_\tNUM\n\n"
    for name, text in texts.items():
        for part in ("train", "dev", "test"):
            Path(name.format(part)).write_text(text, encoding="utf-8")
    argv = ["--data_root", ".", "--dataset"]
    parts, chars, _ = data(*argv, "resume")
    assert chars[2:] == sorted("高勇男") and parts[2].spans == [{(0, 2, "NAME")}, set()]
    parts, chars, _ = data(*argv, "weibo")
    assert chars[2:] == sorted("科技0") and parts[1].spans == [{(0, 2, "ORG.NAM")}]
    parts, chars, tags = data(*argv, "ud")
    assert tags == ["B", "E", "M", "S"]
    assert parts[0].spans == [{(0, 2, ""), (2, 3, ""), (3, 6, "")}]


def test_parts_of_speech_are_spans_of_one_token():
    argv = write("the DT\nBig JJ\ncat NN\n\ndogs NN\nbark VB\n\n" * 30)
    (train, *_), _, tags = data(*argv)
    assert tags == ["S-DT", "S-JJ", "S-NN", "S-VB"]
    assert train.spans[1] == {(0, 1, "NN"), (1, 2, "VB")}
    code, _, err = call(PATH, *argv, "--n_epochs", "8", "--device", "cpu")
    assert (code, err) == (0, "")
    got = call(PATH, *argv, "--predict", "the cat bark", "--device", "cpu")
    assert got == (0, "the/DT cat/NN bark/VB\n", "")


def test_a_text_is_tagged_and_kinds_are_counted():
    argv = ["--device", "cpu"]
    assert call(PATH, *argv, "--n_epochs", "6")[0] == 0
    code, out, err = call(PATH, *argv, "--predict", "昨天 王小明来了")
    assert (code, out, err) == (0, "昨天 王小明/NAME 来了\n", "")
    assert call(PATH, *argv, "--predict", "海平面在江河市很平")[1] == "海平面在 江河市/LOC 很平\n"
    assert call(PATH, *argv, "--predict", "哈")[0] == 0
    rows = Path("out/bilstm_crf/kinds.txt").read_text(encoding="utf-8").splitlines()
    assert [row.split()[1] for row in rows] == ["LOC", "NAME"]
    mistake(PATH, *argv, "--predict", " ", about="--predict: there is no text")
    mistake(PATH, *argv, "--predict", "x", "--head", "softmax", about="--weights")


def test_evaluation_by_hand(monkeypatch):
    part = mod.Sentences(None, None, None, [{(0, 1, "X"), (2, 4, "Y")}, {(0, 2, "X")}, set()])
    found = [{(0, 1, "X"), (2, 3, "Y")}, {(0, 2, "Y")}, {(0, 2, "X")}]
    monkeypatch.setattr(mod, "predict_spans", lambda *_: found)
    scores = mod.evaluate(None, part, [])
    assert scores["kinds"] == {"X": (1, 2, 2), "Y": (0, 2, 1)}
    assert scores["f1"] == pytest.approx(2 / 7)


def test_predictions_do_not_depend_on_the_batch():
    args = mod.parse_args(["--device", "cpu"])
    (_, dev, _), chars, tags = mod.load_data(args)
    torch.manual_seed(0)
    model = mod.build(args, chars, tags)
    torch.nn.init.normal_(model.linear.weight)
    whole = mod.predict_spans(model, dev, tags)
    assert sum(map(len, whole)) > 50
    for b, n in enumerate(dev.lengths[:20].tolist()):
        one = mod.Sentences(dev.x[b : b + 1, :n], None, dev.lengths[b : b + 1], [])
        assert mod.predict_spans(model, one, tags)[0] == whole[b]


def test_softmax_head_learns_too():
    code, out, _ = call(PATH, "--smoke", "--device", "cpu", "--head", "softmax", "--n_epochs", "8")
    assert code == 0 and mod.json.loads(out)["f1"] > 0.9


def test_untrained_model_finds_nothing_right():
    code, out, _ = call(PATH, "--smoke", "--device", "cpu", "--lr", "0", "--n_epochs", "1")
    assert code == 1 and mod.json.loads(out)["f1"] < 0.3


def test_loss_starts_at_the_logarithm_of_all_ways(monkeypatch):
    args = mod.parse_args(["--device", "cpu"])
    (part, *_), chars, tags = mod.load_data(args)
    model = mod.build(args, chars, tags)
    n = part.lengths[:50]
    loss = model.loss(part.x[:50, : n.max()], part.y[:50, : n.max()], n).item()
    assert loss == pytest.approx(n.float().mean().item() * math.log(7), rel=0.1)


@pytest.mark.parametrize("name", ["resume", "weibo", "ud"])
def test_real_data(name, data_root):
    (train, dev, test), _, tags = data("--dataset", name, "--data_root", str(data_root))
    sizes = {
        "resume": (3821, 463, 477, 28),
        "weibo": (1350, 270, 270, 17),
        "ud": (3997, 500, 500, 4),
    }
    assert (len(train.x), len(dev.x), len(test.x), len(tags)) == sizes[name]
    if name == "resume":
        assert sum(map(len, test.spans)) == 1630


def test_mistakes():
    argv = write("a O\nb B-X\n", dev="a I-X\n")
    mistake(PATH, *argv, *tiny(PATH), about="--data_root: dev or test has a tag I-X")
    for text, about in (("", "no text of two columns"), ("a O\nb\n", "no text of two columns")):
        mistake(PATH, *write(text, dev="a O"), *tiny(PATH), about=about)
    Path("mine/dev.txt").write_bytes(b"caf\xe9 O\n")
    Path("mine/train.txt").write_bytes(b"caf O\n")
    mistake(PATH, *argv, *tiny(PATH), about="dev.txt cannot be read")
