"""word2vec_gensim.py: the filter, cosines and PCA by hand, files of posts, questions to vectors."""

import json
from pathlib import Path

import jieba
import numpy as np
import pytest
from gensim.models import KeyedVectors
from house import call, load, mistake

mod = load("nlp/word2vec_gensim.py")
PATH = Path(mod.__file__)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def cutter(tmp_path_factory):
    mod.jieba.setLogLevel(mod.logging.WARNING)
    cutter = jieba.Tokenizer()
    cutter.tmp_dir = str(tmp_path_factory.mktemp("jieba"))
    return cutter


def test_only_words_are_left(cutter):
    text = "你好。今天,真的！abc123 iPhone｡ 12 ３ 😀[哈]～——…“书”、"
    assert mod.cut_text(text, cutter) == ["你好", "今天", "真的", "iphone", "哈", "书"]
    assert {"。", ",", "！", " ", "12"} <= {*cutter.cut(text)}  # jieba alone keeps them
    marks = "。｡，、；：？！…—～·“”‘’（）《》【】,.;:?!-_()[]{}<>\"'@#$%^&*+=|/\\~` 0１㊙😀"
    assert not [c for c in marks if mod.is_word(c)]
    assert all(map(mod.is_word, ["中", "國語", "café", "かな", "々"]))


def test_a_list_that_lacks_the_full_stop_is_seen(monkeypatch):
    """The filter that drops what a list of punctuation names."""
    listed = "｡＂＃＄％，、！？"
    monkeypatch.setattr(mod, "is_word", lambda text: text not in listed)
    _, out, _ = call(PATH, "--smoke")
    row = json.loads(out)
    assert not row["ok"] and row["strays"] > 100


def test_cosine_and_pca():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(20, 6)) * [5, 3, 1, 0.5, 0.2, 0.1] + 7
    want = [[np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) for b in v] for a in v]
    assert np.abs(mod.cosine(v[:, None], v) - want).max() < 1e-12
    x = mod.pca(v)
    assert np.abs(x.mean(0)).max() < 1e-12 and abs(x[:, 0] @ x[:, 1]) < 1e-9
    spread = np.sort(np.linalg.eigvalsh(np.cov(v.T)))[::-1][:2]
    assert x.var(0, ddof=1) == pytest.approx(spread)


def test_themes_are_told_apart_and_untrained_vectors_do_not():
    code, out, _ = call(PATH, "--smoke")
    row = json.loads(out)
    assert code == 0 and row["theme_gap"] > 0.2 and row["purity"] > 0.95
    code, out, _ = call(PATH, "--smoke", "--arch", "cbow", "--n_iterations", "1")
    assert code == 1 and json.loads(out)["theme_gap"] < 0.1


def test_scores_by_hand():
    wv = KeyedVectors(2)
    vectors = {"a": [1, 0], "b": [1, 0.1], "c": [0, 1], "d": [0.1, 1], "和": [1, 1]}
    wv.add_vectors([*vectors], np.array([*vectors.values()], dtype=np.float32))
    scores = mod.theme_scores(wv, [["a", "b", "和", "。"], ["c", "d", "和"]], [0, 1])
    within = 1 / np.sqrt(1.01)
    across = (0 + 2 * 0.1 / np.sqrt(1.01) + 0.2 / 1.01) / 4
    assert scores["theme_gap"] == pytest.approx(within - across)
    assert scores["strays"] == 5


def test_same_seed_same_vectors():
    argv = ["--dim", "8"]
    for out in ("x", "y"):
        assert call(PATH, *argv, "--out", out)[0] == 0
    assert call(PATH, *argv, "--out", "z", "--seed", "1")[0] == 0
    texts = [Path(out, "vectors.txt").read_text(encoding="utf-8") for out in ("x", "y", "z")]
    assert texts[0] == texts[1] != texts[2]
    assert {path.name for path in Path("x").iterdir()} == {
        "vectors.txt",
        "vectors.png",
        "jieba.cache",
    }


def put_vectors():
    rows = ["5 3", "国王 3 0 1", "男人 2 0 0", "女人 0 0.5 0", "女王 1 -1 1", "iphone 1 1 -1", ""]
    Path("v").mkdir()
    Path("v/vectors.txt").write_text("\n".join(rows), encoding="utf-8")
    return ["--out", "v"]


def test_questions_to_the_vectors():
    argv = put_vectors()
    code, out, err = call(PATH, *argv, "--compare", "国王", "男人")
    first, *near = out.splitlines()
    assert (code, err) == (0, "")
    assert first == f"cosine {3 / np.sqrt(10):.3f}  length of the difference {np.sqrt(2):.3f}"
    assert near[0] == f"{4 / np.sqrt(2 * 10):.3f}  国王" and len(near) == 5
    v = {
        k: np.array(x) / np.linalg.norm(x)
        for k, x in {
            "国王": [3, 0, 1],
            "男人": [2, 0, 0],
            "女人": [0, 0.5, 0],
            "女王": [1, -1, 1],
        }.items()
    }
    total = v["国王"] - v["男人"] + v["女人"]
    shown = call(PATH, *argv, "--nearest", "国王 - 男人 + 女人")[1].splitlines()
    cosine = total @ v["女王"] / np.linalg.norm(total)
    assert f"{cosine:.3f}  女王" in shown and len(shown) == 2
    assert call(PATH, *argv, "--nearest", "iPhone")[0] == 0
    mistake(PATH, *argv, "--nearest", "女皇", about="--nearest: 女皇 is not in the vocabulary; try")
    mistake(PATH, *argv, "--nearest", "", about="--nearest")
    mistake(PATH, *argv, "--compare", "国王", "书", about="--compare: 书")
    mistake(PATH, "--nearest", "国王", about="--out: out/word2vec_gensim/vectors.txt holds no")
    Path("v/vectors.txt").write_text("nothing", encoding="utf-8")
    mistake(PATH, *argv, "--nearest", "国王", about="--out: v/vectors.txt holds no vectors")


def put_posts(text):
    Path("weibo").mkdir(exist_ok=True)
    Path("weibo/weibo_data.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["--dataset", "weibo", "--data_root", "."]


POSTS = [{"content": f"今天天气很好，我们去公园看书！{i}"} for i in range(30)]


@pytest.mark.parametrize("form", ["list", "lines"])
def test_posts(form):
    rows = [json.dumps(post, ensure_ascii=False) for post in POSTS]
    argv = put_posts("\n".join(rows) if form == "lines" else json.dumps(POSTS))
    code, out, _ = call(PATH, *argv, "--dim", "8", "--n_posts", "20")
    assert code == 0 and out.splitlines()[-1].startswith("sentences 20  words 1")
    assert out.count("\n") <= 30 and Path("out/word2vec_gensim/vectors.png").exists()


def test_words_without_a_font(monkeypatch, capsys):
    monkeypatch.setattr(mod, "FONTS", [])
    args = mod.parse_args(["--out", "."])
    vectors = np.random.default_rng(0).normal(size=(3, 5))
    mod.draw(args, vectors, ["词语", "句子", "the"])
    assert capsys.readouterr().err == "no font for: 0 词语 1 句子 2 the\n"
    mod.draw(args, vectors, ["a", "b", "ç"])
    assert capsys.readouterr().err == "" and Path("vectors.png").exists()


def refused(*argv, about):
    """As mistake, but jieba's cache may have been written into --out."""
    code, out, err = call(PATH, *argv)
    assert code == 2 and out == "" and err.count("\n") == 1 and about in err, err


def test_mistakes():
    for text in ('{"content": "一"', '[{"text": "一"}]', "[1, 2]", "17", b"\xd6\xd0\xce\xc4"):
        refused(*put_posts(text), about="--data_root: weibo/weibo_data.json")
    refused(*put_posts("[]"), about="--n_posts: there are no two words")
    refused(*put_posts('[{"content": "。，！123"}]'), about="--n_posts: there are no two words")
    argv = put_posts(json.dumps(POSTS))
    refused(*argv, "--min_count", "99", about="--min_count 99: leaves no word")
    refused("--dataset", "weibo", "--data_root", "nowhere", about="--data_root: nowhere/weibo")


def test_real_posts(data_root):
    args = mod.parse_args(["--dataset", "weibo", "--data_root", str(data_root), "--n_posts", "500"])
    posts = mod.read_posts(args)
    assert len(posts) == 500 and "宁波妇儿医院" in posts[0]
