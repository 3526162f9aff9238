# /// script
# requires-python = ">=3.10"
# dependencies = ["gensim>=4.3,<5", "jieba>=0.42,<0.43", "numpy>=1.26,<3", "matplotlib>=3.8,<4"]
# ///
"""Word vectors of Chinese text with jieba and gensim: cut, filter, train, look at neighbours.

Papers: Mikolov, Chen, Corrado & Dean, "Efficient Estimation of Word Representations in Vector
Space", 2013, arXiv 1301.3781; Mikolov, Sutskever, Chen, Corrado & Dean, "Distributed
Representations of Words and Phrases and their Compositionality", NeurIPS 2013, arXiv 1310.4546;
gensim: Rehurek & Sojka, "Software Framework for Topic Modelling with Large Corpora", LREC 2010.

    h = mean of v_w' around w, to predict w                    (1)  cbow: a chance for each word, no
                                                                    vector; skipgram: h = v_w
    L = -log s(u_w h) - sum_{k=1..K} log s(-u_k h)             (2)  K words of noise, s(x) =
                                                                    1/(1 + e^-x)
    cos(a, b) = v_a v_b / (|v_a| |v_b|)                        (3)  neighbours are large in it
    d = v_a - v_b                                              (4)  what a has and b has not
    x = (v - mean v) V_2                                       (5)  PCA: V_2 are the two directions
                                                                    in which the v differ most

(1) and (2) are gensim's; nlp/word2vec.py has them written out. jieba cuts a text at the words of
its dictionary, and leaves commas, spaces, digits and smileys as words. A list of punctuation to be
dropped always lacks some (the often copied one has the half-width stop U+FF61, and not the
ordinary Chinese stop): here a word is what consists of letters alone, in whatever script.

Shapes: V words, D numbers in a vector; vectors (V, D), x (V, 2).
Unlike the papers: one thread, so that the same seed gives the same vectors; sub-sampling (1e-3) and
lr (0.025 to 0.0001) are gensim's.

    python word2vec_gensim.py                          sentences on two themes, in this file
    python word2vec_gensim.py --dataset weibo --data_root data    data/weibo/weibo_data.json
    python word2vec_gensim.py --nearest 踢球             with OUT/vectors.txt
    python word2vec_gensim.py --nearest "北京 - 中国 + 日本"
    python word2vec_gensim.py --compare 球员 青菜          cosine, difference, what it is close to
    python word2vec_gensim.py --smoke                  seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import difflib
import json
import logging
import math
import re
import sys
import tempfile
import time
from pathlib import Path

import jieba
import numpy as np
from gensim.models import KeyedVectors, Word2Vec

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"arch": "skipgram", "dim": 32}
BARS = {"theme_gap": (0.17, 2.0), "purity": (0.8, 1.0), "strays": (0.0, 0.0)}
FONTS = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei", "PingFang SC"]
KITCHEN = """
妈妈在厨房做饭，锅里的米饭很香。爸爸把青菜洗干净，再切成小块。奶奶喜欢喝鸡汤，汤里要放一点盐。
米饭煮好以后，先把青菜炒熟！锅里放油，再放鸡蛋和西红柿。妈妈说：“鸡汤要煮三个小时。”爸爸炒的青菜很好吃……
厨房里有油、盐、酱油和糖。切好的西红柿和鸡蛋一起炒，再放一点糖。奶奶煮的面条很香，汤也好喝。
先煮面条，再放青菜和鸡蛋；最后放盐。妈妈把鸡蛋炒熟，爸爸煮米饭。酱油放得太多，汤就不好喝了？
西红柿洗干净，切成小块放进锅里。奶奶在厨房煮鸡汤，妈妈炒青菜。糖和盐都要少放，油也不要太多。
面条和鸡汤一起吃，很香。爸爸把米饭煮熟，再炒鸡蛋。锅里的油热了，先放西红柿，再放青菜。
"""
STADIUM = """
球队今天有比赛，教练带球员去球场训练。前锋射门，守门员把足球扑出去了！后卫把足球传给前锋，前锋进球了。
裁判吹哨，比赛开始，球迷大声喊加油。教练说：“后卫要防守，前锋要进攻。”守门员扑出点球，球队赢了比赛……
球迷在球场看比赛，为球队加油。裁判给后卫一张黄牌；教练换下了球员。前锋射门得分，球队二比一赢了。
球员每天在球场训练射门、传球和防守。足球比赛有九十分钟，裁判说了算。守门员和后卫一起防守，前锋进攻得分？
教练让球员训练传球，再训练点球。球迷喊加油，前锋又进球了。球队输了比赛，教练和球员都不高兴。
裁判判了点球，前锋射门，守门员没有扑出。后卫传球给前锋，球队进攻。球场里的球迷都在喊加油！
"""


# --- the idea ------------------------------------------------------------------------------------
def is_word(text):
    """No punctuation, space, digit, smiley or mixture of those and letters."""
    return text.isalpha()


def cut_text(text, cutter):
    """The words of a text, in small letters."""
    return [word.lower() for word in cutter.cut(text) if is_word(word)]


def cosine(a, b):
    """Of vectors (..., D): (...)."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))  # eq. (3)


def pca(vectors):
    """Two coordinates (V, 2) of vectors (V, D)."""
    centred = vectors - vectors.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T  # eq. (5)


def learn_vectors(sentences, args):
    """gensim's KeyedVectors of lists of words, the most frequent first."""
    known = {"vector_size": args.dim, "window": args.window, "min_count": args.min_count}
    known |= {"sg": int(args.arch == "skipgram"), "negative": args.n_negatives}  # eq. (1), (2)
    known |= {"epochs": args.n_iterations, "seed": args.seed, "workers": 1}
    return Word2Vec(sentences, **known).wv


# --- data ----------------------------------------------------------------------------------------
def read_posts(args):
    """The first --n_posts texts of the file: a JSON list, or one JSON object a line."""
    file = Path(args.data_root, "weibo/weibo_data.json")
    what = f"--data_root: {file}"
    try:
        text = file.read_text(encoding="utf-8")
        try:
            rows = json.loads(text)
        except json.JSONDecodeError:
            rows = [json.loads(row) for row in text.splitlines() if row.strip()]
        return [str(row["content"]) for row in rows[: args.n_posts]]
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{what} cannot be read ({error}); the default --dataset needs no files")
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        fail(f'{what} is no list of {{"content": text}} ({type(error).__name__}: {error}); mend it')


def load_data(args):
    """Return the sentences, lists of words, and for the two themes the number of each."""
    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    cutter.tmp_dir = args.out  # where it leaves its dictionary, ready to be read
    if args.dataset == "weibo":
        return [cut_text(text, cutter) for text in read_posts(args)], None
    themes = [re.findall("[^。！？…]+[。！？…]+”?", text) for text in (KITCHEN, STADIUM)]
    pairs = [(cut_text(text, cutter), n) for n, theme in enumerate(themes) for text in theme]
    order = np.random.default_rng(args.seed).permutation(np.arange(len(pairs)).repeat(40))
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


# --- run, smoke ----------------------------------------------------------------------------------
# Copied from nlp/ngram_lm.py
def open_folder(args):
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        fail(f"--out {args.out}: cannot write there ({error.strerror}); name another folder")


def run(args):
    """Train, show neighbours, write OUT/vectors.txt and OUT/vectors.png; return the metrics."""
    open_folder(args)
    sentences, themes = load_data(args)
    if len({word for row in sentences for word in row}) < 2:
        fail("--n_posts: there are no two words in the text; take more of it")
    try:
        wv = learn_vectors(sentences, args)
    except RuntimeError as error:  # no word is left
        fail(f"--min_count {args.min_count}: leaves no word ({error}); lower it")
    if len(wv) < 3:
        fail(f"--min_count {args.min_count}: leaves only {len(wv)} words; lower it")
    wv.save_word2vec_format(str(Path(args.out, "vectors.txt")))
    shown = [word for word in wv.index_to_key if len(word) > 1] or wv.index_to_key
    for word in shown[:25]:
        near = "  ".join(f"{other} {x:.2f}" for other, x in wv.most_similar(word, topn=5))
        print(f"{word}:  {near}", file=sys.stderr if args.smoke else sys.stdout)
    draw(args, wv[shown[:100]], shown[:100])
    words = sum(map(len, sentences))
    metrics = {"sentences": len(sentences), "words": words, "vocabulary": len(wv)}
    return metrics | (theme_scores(wv, sentences, themes) if themes else {})


def theme_scores(wv, sentences, themes):
    """Of words of one theme alone: how much larger the mean cosine is within a theme than between
    the two, and the share of the same theme among the 5 nearest; and how many words are none."""
    seen = {word: set() for word in wv.index_to_key}
    for row, theme in zip(sentences, themes, strict=True):
        for word in {*row} & {*seen}:
            seen[word].add(theme)
    words = [word for word, some in seen.items() if len(some) == 1]
    theme, v = np.array([min(seen[word]) for word in words]), wv[words]
    same, cosines = theme[:, None] == theme, cosine(v[:, None], v)  # (V, V), (V, V)
    np.fill_diagonal(cosines, np.nan)
    near = np.argsort(np.nan_to_num(cosines, nan=-2.0), axis=1)[:, -5:]
    gap = np.nanmean(cosines[same]) - np.nanmean(cosines[~same])
    strays = sum(not re.fullmatch("[\u4e00-\u9fff]+", word) for row in sentences for word in row)
    return {"theme_gap": gap, "purity": np.take_along_axis(same, near, 1).mean(), "strays": strays}


def draw(args, vectors, words):
    """Write OUT/vectors.png: words where (5) puts them."""
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    font = next((font.name for font in fontManager.ttflist if font.name in FONTS), None)
    if font is None and max("".join(words)) > "\u2e7f":  # matplotlib's own font ends before Chinese
        print("no font for:", *(f"{i} {word}" for i, word in enumerate(words)), file=sys.stderr)
        words = range(len(words))
    axes = (figure := Figure(figsize=(8, 8), layout="constrained")).add_subplot()
    axes.scatter(*(x := pca(vectors)).T, s=4)
    for point, word in zip(x, words, strict=True):
        axes.annotate(word, point, fontsize=8, fontfamily=font)
    figure.savefig(Path(args.out, "vectors.png"))


def look_up(args):
    """Answer --nearest or --compare from OUT/vectors.txt."""
    file = Path(args.out, "vectors.txt")
    try:
        wv = KeyedVectors.load_word2vec_format(str(file))
    except (OSError, ValueError, EOFError) as error:
        fail(f"--out: {file} holds no vectors ({error}); run without --nearest and --compare first")
    flag, asked = "compare", [("+", word) for word in args.compare or ()]
    if args.nearest is not None:
        flag, asked = "nearest", re.findall(r"([+-]?)\s*([^\s+-]+)", args.nearest) or [("", "")]
    for _, word in asked:
        if word.lower() not in wv:
            like = difflib.get_close_matches(word, wv.index_to_key, 3) or wv.index_to_key[:3]
            fail(f"--{flag}: {word} is not in the vocabulary; try {', '.join(like)}")
    words = [word.lower() for _, word in asked]
    if flag == "nearest":
        signs = [-1.0 if sign == "-" else 1.0 for sign, _ in asked]
        near = wv.most_similar([*zip(words, signs, strict=True)], topn=10)
    else:
        a, b = wv[words]
        d = a - b  # eq. (4)
        print(f"cosine {cosine(a, b):.3f}  length of the difference {np.linalg.norm(d):.3f}")
        near = wv.similar_by_vector(d, topn=10)
    for word, x in near:
        print(f"{x:.3f}  {word}")
    return 0


def smoke(args):
    with tempfile.TemporaryDirectory() as args.out:
        metrics = run(args)
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
    add("--arch", choices=["cbow", "skipgram"], default="cbow", help="h of (1)")
    add("--n_negatives", type=at_least(1, 1001), default=5, help="words of noise K of (2)")
    add("--dim", type=at_least(2, 10_001), default=100, help="numbers in a vector D")
    add("--window", type=at_least(1, 1001), default=5, help="most places away that is still around")
    add("--n_iterations", type=at_least(1), default=5, help="passes over the text")
    add("--min_count", type=at_least(1), default=5, help="rarer words are left out")
    add("--dataset", choices=["themes", "weibo"], default="themes", help="themes needs no files")
    add("--data_root", default="data", help="folder of the data sets")
    add("--n_posts", type=at_least(1), default=50_000, help="how many posts of weibo, at most")
    add("--nearest", metavar="WORDS", help="only show neighbours of a word, or of a sum of words")
    add("--compare", nargs=2, metavar="WORD", help="only compare two words")
    add("--seed", type=at_least(0), default=0, help="fixes vectors and noise")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    if parser.parse_args(argv).smoke:
        parser.set_defaults(**SMOKE)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.smoke:
        return smoke(args)
    if args.nearest is not None or args.compare:
        return look_up(args)
    print(line(run(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
