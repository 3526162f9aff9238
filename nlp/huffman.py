# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Huffman coding of files: no other code that gives each byte its own code word is shorter.

Papers: Huffman, "A Method for the Construction of Minimum-Redundancy Codes", Proceedings of the
IRE, 1952; canonical codes: Schwartz & Kallick, "Generating a Canonical Prefix Encoding",
Communications of the ACM, 1964.

    H = -sum_s p_s log2 p_s                       (1)  entropy in bits, p_s = n_s / sum n
    w = w_a + w_b                                 (2)  the two lightest nodes get a parent, until
                                                       one node is left: the root
    l_s = number of nodes above s                 (3)  length of the code word of s
    L = sum_s p_s l_s,  H <= L < H + 1            (4)  mean length; no prefix code is below H
    sum_s 2^-l_s = 1                              (5)  Kraft: no bit pattern is left unused
    sum_s n_s l_s = sum of all w of (2)           (6)  an n_s is in as many w as nodes are above s
    c = 0, then c <- (c + 1) 2^(l' - l)           (7)  canonical code words, by (l, s); l' next

Many trees are equally good: of nodes of equal weight those made last wait longest, so that the
tree is always the same. Its left and right do not matter, as (7) needs nothing but the lengths:
these alone go into the file. A lone symbol has no node above it, but needs one bit all the same:
its Kraft sum is 1/2, and its L may reach H + 1.

The file: "huf1"; 8 bytes, length of the text; 4, its checksum; 1, number of symbols less one; for
each symbol, 1 for itself and 1 for l_s; then the code words, filled up with 0s to a whole byte.

Shapes: S symbols, S - 1 inner nodes, numbered from S on in the order in which they are made.
Unlike the paper: two branches only; canonical code words; symbols are the bytes of any file.

    python huffman.py                            code a text in this file, show the code words
    python huffman.py --encode huffman.py        write out/huffman/huffman.py.huf
    python huffman.py --decode out/huffman/huffman.py.huf     the file again, in the same folder
    python huffman.py --smoke                    a second; exits 1 unless all BARS are met
"""

import argparse
import heapq
import json
import math
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

# Lowest and highest value that pass under --smoke.
BARS = {"kraft_gap": (0.0, 0.0), "weight_gap": (0.0, 0.0), "redundancy": (0.0, 0.1)}
BARS |= {"bits_per_byte": (4.0, 4.3), "wrong_bytes": (0.0, 0.0)}
MAGIC, HEAD = b"huf1", 17
TEXT = """
the words that people use most are short, and those that are long are rare: a language pays for
what it says in letters, and it has had a long time to learn how to pay little. morse looked into
the boxes of a printer to see which types there were most of, and gave e a single dot. he was close
to the best that can be done, which was found a century later by a student who had been told to
choose between an exam and a paper. he was about to give up when he saw that one should begin at
the wrong end: with the two rarest letters, which may as well have the longest code words, and
which differ in the last bit alone. take them for one letter, and there is one letter fewer. go on
like this until a single one is left. his teacher, who had begun with the most frequent letters,
never quite reached what this reaches always.
"""


# --- the idea ------------------------------------------------------------------------------------
def huffman_tree(weights):
    """The inner nodes (weight, child, child) that S weights call for, numbered from S on; the last
    one is the root. Ties go by (weight, number), so that the tree is always the same."""
    heap, tree = [(weight, node) for node, weight in enumerate(weights)], []
    heapq.heapify(heap)
    while len(heap) > 1:
        (w_a, a), (w_b, b) = heapq.heappop(heap), heapq.heappop(heap)
        tree.append((w_a + w_b, a, b))
        heapq.heappush(heap, (w_a + w_b, len(weights) + len(tree) - 1))
    return tree


def huffman_paths(tree):
    """For each symbol, the nodes from the root down to it and the branches taken there: a list of
    (node, 0 or 1), empty if there is but one symbol."""
    S = len(tree) + 1
    paths = {S + len(tree) - 1: []}
    for node, (_, a, b) in reversed([*enumerate(tree, S)]):
        paths |= {a: [*paths[node], (node, 0)], b: [*paths[node], (node, 1)]}
    return [paths[symbol] for symbol in range(S)]


def code_lengths(counts):
    """{symbol: bits}, from {symbol: how often}."""
    symbols = sorted(counts)
    paths = huffman_paths(huffman_tree([counts[s] for s in symbols]))  # eq. (2)
    return {s: max(1, len(path)) for s, path in zip(symbols, paths, strict=True)}  # eq. (3)


def canonical_code(lengths):
    """{symbol: code word, a string of 0 and 1}, the shortest first."""
    code, c, before = {}, 0, 0
    for s in sorted(lengths, key=lambda s: (lengths[s], s)):
        c = (c + 1) << lengths[s] - before if code else 0  # eq. (7)
        before = lengths[s]
        code[s] = f"{c:0{before}b}"
    return code


def entropy_bits(counts):
    """Mean of the information of a symbol."""
    n = sum(counts.values())
    return -sum(k / n * math.log2(k / n) for k in counts.values())  # eq. (1)


def kraft_sum(lengths):
    """An integer over 2^longest, so that it is exact."""
    longest = max(lengths)
    return sum(1 << longest - bits for bits in lengths), 1 << longest  # eq. (5)


def huffman_encode(data):
    """The bytes of the file that huffman_decode reads, for one byte or more."""
    lengths = code_lengths(Counter(data))
    code = canonical_code(lengths)
    bits = "".join([code[byte] for byte in data])
    head = MAGIC + len(data).to_bytes(8, "big") + zlib.crc32(data).to_bytes(4, "big")
    table = bytes(part for pair in lengths.items() for part in pair)
    body = int(bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8, "big")
    return head + bytes([len(lengths) - 1]) + table + body


def huffman_decode(blob):
    """What huffman_encode was given. ValueError: blob is not what it gave back."""
    n, check = (int.from_bytes(blob[a:b], "big") for a, b in ((4, 12), (12, 16)))
    if blob[:4] != MAGIC:
        raise ValueError("was not written by --encode")
    start = HEAD + 2 * (blob[16] + 1) if len(blob) >= HEAD else len(blob) + 1
    if len(blob) < start:
        raise ValueError("is truncated within its table of code words")
    lengths = dict(zip(blob[HEAD:start:2], blob[HEAD + 1 : start : 2], strict=True))
    total, whole = kraft_sum(lengths.values())
    some_code = total == whole > 1 or (total, whole) == (1, 2)
    if (start - HEAD) // 2 != len(lengths) or not some_code:
        raise ValueError("is damaged: its table is that of no code")
    symbols = {word: s for s, word in canonical_code(lengths).items()}
    bits = f"{int.from_bytes(blob[start:], 'big'):0{8 * (len(blob) - start)}b}"
    data, word = bytearray(), ""
    for bit in bits:
        word += bit
        if word in symbols:
            data.append(symbols[word])
            if len(data) == n:
                break
            word = ""
    if len(data) < n:
        raise ValueError(f"is truncated after {len(data)} of {n} bytes")
    if zlib.crc32(data) != check or len(bits) - sum(map(lengths.get, data)) > 7:
        raise ValueError("is damaged: the bytes in it are not those that were encoded")
    return bytes(data)


# --- run, smoke ----------------------------------------------------------------------------------
def read_bytes(flag, file):
    try:
        return Path(file).read_bytes()
    except OSError as error:
        fail(f"--{flag} {file}: cannot be read ({error.strerror}); name an existing file")


def write_bytes(args, file, data):
    """Write OUT/file and return its path."""
    path = Path(args.out, file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        fail(f"--out {args.out}: cannot write {path} ({error.strerror}); name another folder")
    return path


def run(args):
    """Encode or decode a file into OUT, print a row per code word; return what judges the code."""
    if args.decode:
        try:
            data = huffman_decode(read_bytes("decode", args.decode))
        except ValueError as error:
            fail(f"--decode {args.decode}: {error}; name a whole file that --encode has written")
        name = Path(args.decode).name
        name = name.removesuffix(".huf") if name.endswith(".huf") else f"{name}.decoded"
        return {"file": write_bytes(args, name, data), "bytes": len(data)}
    data = read_bytes("encode", args.encode) if args.encode else TEXT.encode()
    if not data:
        fail(f"--encode {args.encode}: is empty, there is nothing to code; name another file")
    blob, counts = huffman_encode(data), Counter(data)
    lengths, H = code_lengths(counts), entropy_bits(counts)
    bits, (total, whole) = sum(counts[s] * lengths[s] for s in counts), kraft_sum(lengths.values())
    name = f"{Path(args.encode).name if args.encode else 'text'}.huf"
    path = write_bytes(args, name, blob)
    code, out = canonical_code(lengths), sys.stderr if args.smoke else sys.stdout
    for s, word in [*code.items()][:28]:
        print(f"{chr(s) if 32 < s < 127 else f'#{s}':>5} {counts[s]:9}  {word}", file=out)
    if len(code) > 28:
        print(f"and {len(code) - 28} longer ones", file=out)
    L = bits / len(data)  # eq. (4)
    metrics = {"file": path, "bytes": len(data), "coded": len(blob), "kraft": total / whole}
    metrics |= {"entropy": H, "bits_per_byte": L, "redundancy": L - H}
    merged = sum(w for w, *_ in huffman_tree([counts[s] for s in sorted(counts)]))  # eq. (6)
    return metrics | {"merged": merged}


def smoke(args):
    with tempfile.TemporaryDirectory() as args.out:
        metrics = run(args)
        again = huffman_decode(metrics.pop("file").read_bytes())
    wrong = sum(a != b for a, b in zip(again, TEXT.encode(), strict=True))
    metrics |= {"kraft_gap": abs(metrics["kraft"] - 1), "wrong_bytes": wrong}
    gap = abs(metrics["merged"] - metrics["bits_per_byte"] * metrics["bytes"])
    return report(args, **metrics, weight_gap=round(gap, 6))


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


# --- command line --------------------------------------------------------------------------------
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = fail
    add = parser.add_argument
    add("--encode", metavar="FILE", help="write OUT/FILE.huf")
    add("--decode", metavar="FILE", help="write what --encode has made FILE of")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    args = parser.parse_args(argv)
    if args.encode and args.decode:
        fail("--decode: cannot go with --encode; type one of them")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.smoke:
        return smoke(args)
    print(line(run(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
