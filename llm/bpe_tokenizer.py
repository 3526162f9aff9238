# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Byte-level byte pair encoding: a vocabulary grown from any text, that can write all others, too.

Papers: Sennrich, Haddow & Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL
2016, arXiv 1508.07909; on bytes: Radford, Wu, Child, Luan, Amodei & Sutskever, "Language Models are
Unsupervised Multitask Learners", OpenAI, 2019; the idea: Gage, "A New Algorithm for Data
Compression", The C Users Journal, 1994.

    c(a, b) = sum over words w of n_w (times that a b stands in w)   (1)  pairs of neighbours
    (a, b)* = argmax c(a, b), the smallest pair of equals            (2)  becomes a new symbol ab
    encode: of all pairs in a word that ever merged, merge the one   (3)  merged first, then again
    bits per byte = log2 |V| tokens / bytes                          (4)  if all were alike

A text is cut into words first (letters with the blank before them, digits, signs, blanks), so that
no symbol reaches over two of them; each different word is kept once, with its count n_w. The 256
bytes are symbols from the start: nothing is unknown, and one Chinese character is three bytes until
their pairs have merged. Counting all pairs anew after every merge, as is often shown, costs |V|
passes over the text. Here each pair knows the words it stands in, a merge changes only those, and a
heap holds the pairs; an entry whose count is no longer true goes back with the true one when it
comes up. (3) uses a heap of places, too: a Chinese sentence is one long word.

Special tokens are no text: what a user types never turns into one, only what the template puts
there does. decode gives back every text; a stream of tokens is decoded piece by piece, and bytes
that only begin a character wait for the rest of it.

Shapes: |V| vocab_size, tokens are numbers below it: the special ones first, the bytes, the merges.
Unlike the paper: ties by number, and classes of characters, exactly as in the tokenizers library,
whose tokenizer.json is written and read.

    python bpe_tokenizer.py                                  the text in this file, 600 tokens
    python bpe_tokenizer.py --dataset zh_novel --vocab_size 6400
    python bpe_tokenizer.py --encode "the old owl"           by OUT/tokenizer.json: pieces, numbers
    python bpe_tokenizer.py --decode 72 269 1                and back
    python bpe_tokenizer.py --smoke                          seconds; exits 1 unless BARS are met
"""

import argparse
import codecs
import contextlib
import heapq
import json
import math
import random
import re
import sys
import tempfile
import time
import unicodedata
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path

# Lowest and highest value that pass under --smoke.
BARS = {"wrong_texts": (0.0, 0.0), "bytes_per_token": (2.0, 9.0), "leaked_specials": (0.0, 0.0)}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TURN = "'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'"  # in Jinja
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TEXT = """
The owl lives in the old tree by the river, and in the night you can hear the owl call. The children
who live near the river know the call of the owl, and when they hear it they know that it is time to
go home. "There is the owl," says the mother, "there is the owl in the old tree." The older children
remember another owl, and an older tree; they say that there was a time when there were seven owls.
A word that is often used becomes one symbol, and a word that is never used stays what it was: a row
of letters. The more often two symbols stand side by side, the earlier they become another symbol.
河边的老树上住着一只猫头鹰，夜里可以听见猫头鹰的叫声。住在河边的孩子们都认得猫头鹰的叫声，一听见它，
他们就知道该回家了。“猫头鹰在那里，”母亲说，“猫头鹰在河边的老树上。”大一些的孩子还记得另一只猫头鹰，
和一棵更老的树；他们说，从前河边有七只猫头鹰。常用的词会变成一个符号，从来不用的词还是原来的样子：
一串字节。两个符号越是常常站在一起，它们就越早变成一个新的符号。河边的孩子们知道，老树知道，猫头鹰也知道。
"""


# --- the idea ------------------------------------------------------------------------------------
@cache
def word_pattern():
    """GPT-2's cut into words, with the classes of Unicode spelled out: Python counts a superscript
    2 among the letters, and four signs more among the blanks."""
    marks = map(chr, range(128, sys.maxunicode))
    numbers = "".join(c for c in marks if unicodedata.category(c) in ("Nl", "No"))
    blank = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
    letter, number = f"(?:(?![{numbers}])[^\\W\\d_])", f"[\\d{numbers}]"
    sign = f"(?:(?![{blank}])[^\\w]|_)"
    ends = f"[{blank}]+(?![^{blank}])|[{blank}]+"
    return re.compile(f"'s|'t|'re|'ve|'m|'ll|'d| ?{letter}+| ?{number}+| ?{sign}+|{ends}")


@cache
def byte_signs():
    """A character that can be printed for each byte, as GPT-2 chose them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    signs = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [signs[b] for b in range(256)]


def learn_merges(words, symbols, vocab_size):
    """[(a, b)] in order, from [(numbers, n)]; symbols, a list of bytes, grows to vocab_size."""
    count, where, merges = Counter(), defaultdict(set), []  # where: numbers of words
    for i, (word, n) in enumerate(words):
        for pair in pairwise(word):
            count[pair] += n  # eq. (1)
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in count.items()]
    heapq.heapify(heap)
    known = {symbol: i for i, symbol in enumerate(symbols) if len(symbol) == 1}
    while heap and len(symbols) < vocab_size:
        n, pair = heapq.heappop(heap)  # eq. (2)
        if -n != count[pair]:
            if count[pair] > 0:
                heapq.heappush(heap, (-count[pair], pair))
            continue
        joined = symbols[pair[0]] + symbols[pair[1]]
        new = known.setdefault(joined, len(symbols))  # ab c and a bc are one symbol
        symbols += [joined] if new == len(symbols) else []
        merges.append(pair)
        touched = set()
        for i in where.pop(pair):
            word, n = words[i]
            merged = merge_in(word, pair, new)
            for old in pairwise(word):
                count[old] -= n
            for fresh in pairwise(merged):
                count[fresh] += n
                if i not in where[fresh]:
                    where[fresh].add(i)
                    touched.add(fresh)
            words[i] = merged, n
        for fresh in touched:
            heapq.heappush(heap, (-count[fresh], fresh))
    return merges


def merge_in(word, pair, new):
    """A word, a tuple of symbols, with each pair in it, from the left, made new."""
    out, i = [], 0
    while i < len(word):
        out.append(new if word[i : i + 2] == pair else word[i])
        i += 1 + (word[i : i + 2] == pair)
    return tuple(out)


class Tokenizer:
    """Symbols (bytes) by number, and the merges {pair: (rank, number of the outcome)}."""

    def __init__(self, symbols, merges, special=SPECIAL):
        self.special = {name: i for i, name in enumerate(special)}
        self.symbols, self.known, known = symbols, {}, {}
        for i, symbol in enumerate(symbols[len(special) :], len(special)):
            known.setdefault(symbol, i)
        self.bytes = [known[bytes([b])] for b in range(256)]
        ranks = enumerate(merges)
        self.merges = {(a, b): (n, known[symbols[a] + symbols[b]]) for n, (a, b) in ranks}

    def encode_word(self, data):
        """Numbers of bytes without blanks between."""
        ids, after = [self.bytes[b] for b in data], [*range(1, len(data) + 1)]
        before, heap = [*range(-1, len(data) - 1)], []

        def offer(i):
            pair = (ids[i], ids[after[i]]) if i >= 0 and after[i] < len(ids) else None
            if pair in self.merges:
                heapq.heappush(heap, (self.merges[pair][0], i, pair))

        for i in range(len(ids)):
            offer(i)
        while heap:
            _, i, pair = heapq.heappop(heap)  # eq. (3)
            j = after[i]
            if j < len(ids) and (ids[i], ids[j]) == pair:
                ids[i], ids[j], after[i] = self.merges[pair][1], -1, after[j]
                if after[j] < len(ids):
                    before[after[j]] = i
                offer(before[i])
                offer(i)
        return [n for n in ids if n >= 0]

    def encode(self, text, allow_special=False):
        """Numbers of a text. Special tokens in it are letters, unless they are allowed."""
        names, ids = "|".join(map(re.escape, self.special)), []
        for part in re.split(f"({names})", text) if allow_special else [text]:
            if allow_special and part in self.special:
                ids.append(self.special[part])
                continue
            for word in word_pattern().findall(part):
                if word not in self.known:
                    self.known[word] = self.encode_word(word.encode())
                ids += self.known[word]
        return ids

    def decode(self, ids):
        """The text of numbers; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.symbols[i] for i in ids).decode(errors="replace")

    def decode_stream(self, ids):
        """The same, a piece for each number: the characters that it completes."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            yield decoder.decode(self.symbols[i])
        yield decoder.decode(b"", final=True)

    def chat(self, messages, add_generation_prompt=False):
        """Numbers of [{"role": .., "content": ..}]; what the contents say stays text."""
        start, end = self.special["<|im_start|>"], self.special["<|im_end|>"]
        ids = []
        for message in messages:
            ids += [start, *self.encode(f"{message['role']}\n{message['content']}"), end]
            ids += self.encode("\n")
        return ids + [start, *self.encode("assistant\n")] * add_generation_prompt

    def save(self, folder):
        """Write tokenizer.json and tokenizer_config.json, as the tokenizers library has them."""
        signs, n = byte_signs(), len(self.special)
        spell = ["".join(signs[b] for b in symbol) for symbol in self.symbols]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added = [{"id": i, "content": s, **flags, "special": True} for s, i in self.special.items()]
        level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        level |= {"trim_offsets": True}
        vocab = self.special | {spell[i]: i for i in range(n, len(spell))}
        model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False}
        model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
        model |= {"byte_fallback": False, "ignore_merges": False, "vocab": vocab}
        model |= {"merges": [[spell[a], spell[b]] for a, b in self.merges]}
        whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
        whole |= {"normalizer": None, "pre_tokenizer": level, "post_processor": None}
        whole |= {"decoder": level, "model": model}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[2]}
        turns = "{% for m in messages %}{{ " + TURN + " }}{% endfor %}"
        config |= {"pad_token": SPECIAL[0], "chat_template": turns + ASK}
        for name, part in ("tokenizer.json", whole), ("tokenizer_config.json", config):
            text = json.dumps(part, ensure_ascii=False, indent=1)
            Path(folder, name).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, file):
        """Read what save wrote. ValueError, KeyError, TypeError: it is something else."""
        whole = json.loads(Path(file).read_text(encoding="utf-8"))
        back = {sign: b for b, sign in enumerate(byte_signs())}
        special = [part["content"] for part in whole["added_tokens"]]
        vocab, symbols = whole["model"]["vocab"], []
        for name in sorted(vocab, key=vocab.get):
            symbols.append(name.encode() if name in special else bytes(back[c] for c in name))
        merges = [(vocab[a], vocab[b]) for a, b in whole["model"]["merges"]]
        return cls(symbols, merges, special)


def train_bpe(text, vocab_size):
    """The Tokenizer of a text; it is smaller than vocab_size where all pairs have merged."""
    order = sorted(range(256), key=lambda b: byte_signs()[b])
    symbols = [name.encode() for name in SPECIAL] + [bytes([b]) for b in order]
    number = {b: i for i, b in enumerate(order, len(SPECIAL))}
    counts = Counter(word_pattern().findall(text))
    words = [(tuple(number[b] for b in word.encode()), n) for word, n in counts.items()]
    return Tokenizer(symbols, learn_merges(words, symbols, vocab_size))


# --- data ----------------------------------------------------------------------------------------
FILES = {"zh_novel": "zh_novel/hongloumeng.txt", "tinyshakespeare": "tinyshakespeare/input.txt"}


def load_data(args):
    """The text to learn from."""
    if args.dataset == "owl":
        return TEXT
    file = Path(args.data_root, FILES.get(args.dataset, ""))
    try:
        data = file.read_bytes()
    except OSError as error:
        fail(f"--data_root: {file} cannot be read ({error.strerror}); --dataset owl needs no file")
    text = data.decode(errors="replace")
    if odd := text.count("\ufffd") - data.count("\ufffd".encode()):
        print(f"{file}: {odd} bytes are no UTF-8 and were replaced", file=sys.stderr)
    if not text.strip():
        fail(f"--data_root: {file} is empty, there is nothing to learn from; name another file")
    return text


# --- run, smoke ----------------------------------------------------------------------------------
def run(args):
    """Learn from all lines but each tenth, write OUT/tokenizer.json, measure it on the others."""
    lines = load_data(args).splitlines(keepends=True)
    text = "".join(lines[3::10])
    del lines[3::10]
    start = time.process_time()
    tokenizer = train_bpe("".join(lines), args.vocab_size)
    spent = time.process_time() - start
    ids, size = tokenizer.encode(text) or [0], max(1, len(text.encode()))
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        tokenizer.save(args.out)
    except OSError as error:
        fail(f"--out {args.out}: cannot be written ({error.strerror}); name another folder")
    if len(tokenizer.symbols) < args.vocab_size:
        print(f"all pairs have merged at {len(tokenizer.symbols)} tokens", file=sys.stderr)
    metrics = {"tokens": len(tokenizer.symbols), "train_seconds": spent}
    metrics |= {"bytes_per_token": size / len(ids), "chars_per_token": len(text) / len(ids)}
    metrics["bits_per_byte"] = math.log2(len(tokenizer.symbols)) * len(ids) / size  # eq. (4)
    longest = sorted(tokenizer.symbols[259:], key=len)[-12:]
    print(*(repr(x.decode(errors="replace")) for x in longest), file=sys.stderr)
    return metrics, tokenizer


def use(args):
    """The work of --encode and --decode."""
    try:
        tokenizer = Tokenizer.load(Path(args.out, "tokenizer.json"))
    except OSError as error:
        fail(f"--out {args.out}: no tokenizer.json there ({error.strerror}); train one first")
    except (ValueError, KeyError, TypeError, AttributeError):
        fail(f"--out {args.out}: tokenizer.json is not one that this script has written")
    if args.decode:
        if (most := max(args.decode)) >= len(tokenizer.symbols):
            fail(f"--decode {most}: there are {len(tokenizer.symbols)} tokens; stay below that")
        print(tokenizer.decode(args.decode))
        return 0
    ids = tokenizer.encode(args.encode)
    print(*(repr(tokenizer.decode([i])) for i in ids))
    print(*ids)
    return 0


def smoke(args):
    """The text in this file, then texts at random, there and back, whole and as a stream."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics, tokenizer = run(args)
        again = Tokenizer.load(Path(args.out, "tokenizer.json"))
    draw, wrong = random.Random(0), 0
    signs = [*TEXT, *"\t\r\n  \u3000é²Ⅷ😀👩‍🚀नमस्ते مرحبا\x00\x1c", *SPECIAL]
    for _ in range(300):
        text = "".join(draw.choices(signs, k=draw.randrange(40)))
        ids = tokenizer.encode(text)
        wrong += tokenizer.decode(ids) != text or "".join(tokenizer.decode_stream(ids)) != text
        wrong += again.encode(text) != ids
        wrong += tokenizer.decode(tokenizer.encode(text, allow_special=True)) != text
    leaked = sum(i < len(SPECIAL) for i in tokenizer.encode("".join(SPECIAL)))
    return report(args, **metrics, wrong_texts=wrong, leaked_specials=leaked)


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
    add(
        "--vocab_size", type=at_least(259), default=600, help="tokens: 3 special, 256 bytes, merges"
    )
    add("--dataset", choices=["owl", *FILES, "file"], default="owl", help="text to learn from")
    add("--data_root", default="data", help="folder of the data sets; for file, the file")
    add("--encode", metavar="TEXT", help="print its tokens, by OUT/tokenizer.json")
    add("--decode", type=at_least(0), nargs="+", help="print the text of these tokens")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        if args.smoke:
            return smoke(args)
        if args.encode is not None or args.decode:
            return use(args)
        print(line(run(args)[0]))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
