"""huffman.py: nothing shorter by brute force, Kraft, merged weights, files and damaged files."""

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from house import call, load, mistake

mod = load("nlp/huffman.py")
PATH = Path(mod.__file__)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def samples():
    """Counts of 2 to 9 symbols: random, equal, Fibonacci, powers of two."""
    draw = random.Random(0)
    for n in range(2, 10):
        for _ in range(10):
            yield [draw.randint(1, draw.choice([3, 20, 1000])) for _ in range(n)]
        yield [7] * n
        yield [round(1.618**i / 5**0.5) or 1 for i in range(1, n + 1)]
        yield [2**i for i in range(n)]


def bits_of(counts):
    lengths = mod.code_lengths(dict(enumerate(counts)))
    return sum(k * lengths[s] for s, k in enumerate(counts))


def fewest_bits(counts):
    """Over all sets of lengths that Kraft's inequality allows a prefix code to have."""
    n = len(counts)
    every = itertools.combinations_with_replacement(range(1, n), n)
    allowed = [ls for ls in every if sum(2.0**-bits for bits in ls) <= 1]
    return min(
        sum(k * bits for k, bits in zip(sorted(counts)[::-1], lengths, strict=True))
        for lengths in allowed
    )


def test_nothing_is_shorter():
    for counts in samples():
        if len(counts) <= 7:
            assert bits_of(counts) == fewest_bits(counts)


def test_merging_the_heaviest_is_seen(monkeypatch):
    real = mod.heapq.heappop
    monkeypatch.setattr(mod.heapq, "heappop", lambda heap: heap.pop() if heap[2:] else real(heap))
    assert any(bits_of(c) != fewest_bits(c) for c in samples() if 3 <= len(c) <= 5)


def test_kraft_bound_and_merged_weights():
    for counts in samples():
        n, lengths = sum(counts), mod.code_lengths(dict(enumerate(counts)))
        total, whole = mod.kraft_sum(lengths.values())
        assert total == whole
        entropy = -sum(k / n * math.log2(k / n) for k in counts)
        assert mod.entropy_bits(dict(enumerate(counts))) == pytest.approx(entropy, abs=1e-12)
        assert entropy - 1e-12 <= bits_of(counts) / n < entropy + 1
        assert bits_of(counts) == sum(w for w, *_ in mod.huffman_tree(counts))
    assert bits_of([2**i for i in range(2)]) == 3
    powers = {"a": 1, "b": 1, "c": 2, "d": 4, "e": 8}  # where the bound is met
    assert mod.entropy_bits(powers) == bits_of([*powers.values()]) / 16 == 1.875


def test_tree_and_paths():
    tree = mod.huffman_tree([5, 1, 1, 2])
    assert tree == [(2, 1, 2), (4, 3, 4), (9, 5, 0)]
    assert mod.huffman_paths(tree)[2] == [(6, 0), (5, 1), (4, 1)]
    assert mod.huffman_paths(mod.huffman_tree([3])) == [[]]
    # Every node is left both ways, which is what makes it a tree of a hierarchical softmax.
    steps = {step for path in mod.huffman_paths(tree) for step in path}
    assert steps == {(node, bit) for node in (4, 5, 6) for bit in (0, 1)}


def test_canonical_code():
    code = mod.canonical_code({"a": 2, "b": 1, "c": 3, "d": 3})  # the example of RFC 1951
    assert code == {"b": "0", "a": "10", "c": "110", "d": "111"}
    for counts in samples():
        code = mod.canonical_code(lengths := mod.code_lengths(dict(enumerate(counts))))
        words = [*code.values()]
        assert {s: len(word) for s, word in code.items()} == lengths
        assert words == sorted(words) == sorted(words, key=len)
        pairs = itertools.permutations(words, 2)
        assert not any(b.startswith(a) for a, b in pairs)


def test_ties_are_settled():
    counts = dict(zip("abcdefg", [1] * 7, strict=True))
    backwards = dict(reversed(counts.items()))
    assert mod.code_lengths(counts) == mod.code_lengths(backwards)
    assert mod.huffman_encode(b"abab") == mod.huffman_encode(b"abab")


TEXTS = [b"a", b"aaaa", b"ab", bytes(range(256)), "die größte 数".encode(), b"\0" * 9 + b"\1"]
TEXTS += [random.Random(1).randbytes(5000), b"a" * 1000 + b"b"]
TEXTS += [b"".join(bytes([i]) * 2**i for i in range(18))]  # code words of up to 17 bits


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_round_trip(text):
    blob = mod.huffman_encode(text)
    assert mod.huffman_decode(blob) == text
    bits = max(len(text), bits_of([*Counter(text).values()]))
    table = 2 * len({*text})
    assert len(blob) == mod.HEAD + table + math.ceil(bits / 8)


def test_one_symbol_has_one_bit():
    assert mod.code_lengths({"x": 12}) == {"x": 1}
    assert mod.canonical_code({"x": 1}) == {"x": "0"}
    assert len(mod.huffman_encode(b"x" * 80)) == mod.HEAD + 2 + 10


def test_every_cut_and_every_changed_byte_is_told():
    blob = mod.huffman_encode(b"abracadabra, abracadabra")
    for end in range(len(blob)):
        with pytest.raises(ValueError, match="truncated" if end >= 17 else "truncated|written"):
            mod.huffman_decode(blob[:end])
    for at, by in itertools.product(range(len(blob)), (1, 16, 128)):
        if at < len(blob) - 1:  # whose last bits only fill it up
            changed = blob[:at] + bytes([blob[at] ^ by]) + blob[at + 1 :]
            with pytest.raises(ValueError, match=r"truncated|written|damaged"):
                mod.huffman_decode(changed)
    with pytest.raises(ValueError, match="damaged"):
        mod.huffman_decode(blob + b"\0")
    with pytest.raises(ValueError, match="no code"):  # a lone symbol of no bits
        mod.huffman_decode(mod.huffman_encode(b"aa")[:18] + b"\0\0")


def test_files_both_ways():
    text = random.Random(2).randbytes(300) + b"the rest"
    Path("a.bin").write_bytes(text)
    code, out, err = call(PATH, "--encode", "a.bin", "--out", "x")
    assert (code, err) == (0, "") and out.count("\n") <= 30
    code, out, err = call(PATH, "--decode", "x/a.bin.huf", "--out", "y/z")
    assert (code, err) == (0, "") and "bytes 308" in out
    assert Path("y/z/a.bin").read_bytes() == text
    Path("x/a.bin.huf").rename("plain")
    assert call(PATH, "--decode", "plain")[0] == 0
    assert Path("out/huffman/plain.decoded").read_bytes() == text


def test_table():
    code, out, err = call(PATH)
    assert (code, err) == (0, "") and 20 < out.count("\n") <= 30
    assert "kraft 1 " in out and mod.huffman_decode(Path("out/huffman/text.huf").read_bytes()) == (
        mod.TEXT.encode()
    )


def test_mistakes():
    Path("empty").write_bytes(b"")
    Path("foreign").write_bytes(b"PK\3\4 is another kind of file")
    Path("cut").write_bytes(mod.huffman_encode(mod.TEXT.encode())[:-9])
    mistake(PATH, "--encode", "empty", about="is empty")
    mistake(PATH, "--decode", "empty", about="was not written by --encode")
    mistake(PATH, "--decode", "foreign", about="was not written by --encode")
    mistake(PATH, "--decode", "cut", about="is truncated after")
    for flag in ("--encode", "--decode"):
        mistake(PATH, flag, "nowhere", about=f"{flag} nowhere: cannot be read")
        mistake(PATH, flag, ".", about="cannot be read")
    mistake(PATH, "--encode", "cut", "--decode", "cut", about="--decode: cannot go with")
