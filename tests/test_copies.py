"""The same block in two files never drifts: plumbing and marked copies are compared as text.

    python tests/test_copies.py          tell what has drifted
    python tests/test_copies.py --fix    rewrite it first, then tell what is left to do by hand

A copy carries, right above it, "# Copied from gan/gan.py" or, with whole words exchanged,
"# Copied from gan/gan.py with Generator->Decoder, latent_dim->dim". A block that must bear the
name of another but differs from it carries "# Differs from gan/gan.py".
"""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from house import PLUMBING, ROLES, ROOT, SCRIPTS, SPECIMEN, name

MARKER = re.compile(r"# (Copied|Differs) from (\S+\.py)(?: with (\S+->\S+(?:, \S+->\S+)*))?")


class Block(NamedTuple):
    """A top-level def or class: its text, the lines it stands on (from 0), the comment above."""

    text: str
    first: int
    last: int
    marker: str


class Fault(NamedTuple):
    file: str
    block: str
    what: str
    right: str = ""  # the text that would mend it, if there is one


def blocks(source):
    """Name -> Block."""
    lines, found = ["", *source.splitlines()], {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min(part.lineno for part in [node, *node.decorator_list])
            text = "\n".join(lines[first : node.end_lineno + 1])
            found[node.name] = Block(text, first - 1, node.end_lineno, lines[first - 1])
    return found


def exchange(text, words):
    """Put new for old in "old->new, old2->new2", all at once, whole words only."""
    pairs = dict(pair.split("->") for pair in words.split(", ")) if words else {}
    one = "|".join(map(re.escape, sorted(pairs, key=len, reverse=True)))
    return re.sub(rf"(?<!\w)(?:{one})(?!\w)", lambda m: pairs[m[0]], text) if pairs else text


def formatted(text):
    """As ruff would lay it out, since a longer name may need another line."""
    ruff = [sys.executable, "-m", "ruff", "format", "--line-length", "100", "-"]
    return subprocess.run(ruff, input=text, capture_output=True, encoding="utf-8").stdout.rstrip()


def faults(sources, specimen):
    """All Faults of the scripts, file -> source, by their markers and the specimen's plumbing."""
    trees = {file: blocks(source) for file, source in sources.items()}
    every = [(file, key, block) for file, tree in trees.items() for key, block in tree.items()]
    right = {key: block.text for key, block in blocks(specimen).items()}
    for key in {*PLUMBING} - {*right}:  # not in the specimen: most scripts must be right
        texts = [block.text for _, other, block in every if other == key]
        right[key] = max(texts, key=texts.count, default="")
    owners = {}
    for file, key, block in every:
        marker = MARKER.fullmatch(block.marker)
        if key in PLUMBING and block.text != right[key]:
            yield Fault(file, key, "is not word for word the plumbing", right[key])
        elif marker:
            yield from compare(block, file, key, trees, *marker.groups())
        elif key not in [*PLUMBING, *ROLES] and owners.setdefault(key, file) != file:
            yield Fault(file, key, f"is in {owners[key]} too, without a word of Copied or Differs")
    for file, source in sources.items():
        known = [block.marker for block in trees[file].values() if MARKER.fullmatch(block.marker)]
        rows = [row.strip() for row in source.splitlines()]
        said = [row for row in rows if re.match("# *(copied|differs) from", row, re.I)]
        for row in (Counter(said) - Counter(known)).elements():
            yield Fault(file, row, "is no marker right above a top-level def or class")


def compare(block, file, key, trees, kind, origin, words):
    """Faults of a block that says Copied from origin, with words exchanged, or Differs."""
    there = {exchange(k, words): other for k, other in trees.get(origin, {}).items()}
    if file == origin or key not in there:
        yield Fault(file, key, f"{origin} has no such block")
    elif kind == "Differs":
        if block.text == there[key].text:
            yield Fault(file, key, f"does not differ from {origin}")
    elif there[key].marker.startswith("# Copied from"):
        yield Fault(file, key, f"{origin} has it from elsewhere; name that file")
    else:
        text = exchange(there[key].text, words)
        if text != block.text and (text := formatted(text)) != block.text:
            yield Fault(file, key, f"is not what {origin} has", text)


def fix(root, sources, found):
    """Write the right text, where a Fault has one, into the files below root."""
    for file in {fault.file for fault in found if fault.right}:
        lines, tree = sources[file].splitlines(), blocks(sources[file])
        mend = [(tree[f.block], f.right) for f in found if f.file == file and f.right]
        for block, text in sorted(mend, key=lambda pair: -pair[0].first):
            lines[block.first : block.last] = text.splitlines()
        Path(root, file).write_text("\n".join(lines) + "\n", encoding="utf-8")


@functools.cache
def ours():
    """Sources of the scripts, the specimen's, and all Faults."""
    sources = {name(path): path.read_text(encoding="utf-8") for path in SCRIPTS}
    specimen = SPECIMEN.read_text(encoding="utf-8")
    return sources, specimen, [*faults(sources, specimen)]


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_blocks_do_not_drift(path):
    assert not [f"{f.block} {f.what}" for f in ours()[2] if f.file == name(path)]


FAIL = "def fail(message):\n    sys.exit(2)\n\n\n"
LOAD = "def load_weights(path):\n    return path\n\n\n"
NET = "class Net:\n    def forward(self, x):\n        return Net, x\n\n\n"
TRAIN = "def train(args):\n    return args.lr\n"
COPY = "# Copied from gan/a.py with Net->Critic, x->image\n"
TREE = {
    "gan/a.py": FAIL + LOAD + NET + TRAIN,
    "gan/b.py": FAIL + COPY + NET.replace("Net", "Critic").replace("x", "image") + TRAIN,
    "gan/c.py": FAIL + LOAD + "# Differs from gan/a.py\n" + NET.replace("x", "y") + TRAIN,
    "gan/d.py": LOAD + TRAIN.replace("lr", "b1"),
}
BREAKS = [
    ("gan/b.py", "sys.exit(2)", "sys.exit(1)", "fail is not word for word"),
    ("gan/d.py", "return path", "return None", "load_weights is not word for word"),
    ("gan/b.py", "return Critic", "return [Critic]", "Critic is not what gan/a.py has"),
    ("gan/b.py", "class Critic", "@final\nclass Critic", "Critic is not what gan/a.py has"),
    ("gan/a.py", "return Net", "return [Net]", "Critic is not what gan/a.py has"),
    ("gan/a.py", "class Net", "# Copied from gan/c.py\nclass Net", "from elsewhere"),
    ("gan/b.py", "from gan/a.py", "from gan/b.py", "gan/b.py has no such block"),
    ("gan/b.py", "from gan/a.py", "from gan/e.py", "gan/e.py has no such block"),
    ("gan/b.py", "Net->Critic, ", "", "gan/a.py has no such block"),
    ("gan/b.py", COPY, COPY + "\n", "is no marker"),
    ("gan/b.py", "x->image", "x -> image", "is no marker"),
    ("gan/b.py", "    return args", "    # Copied from gan/a.py\n    return args", "is no marker"),
    (
        "gan/c.py",
        "self, y):\n        return Net, y",
        "self, x):\n        return Net, x",
        "not differ",
    ),
    ("gan/c.py", "# Differs from gan/a.py\n", "", "Net is in gan/a.py too"),
]


def told(tree):
    return [f"{fault.block} {fault.what}" for fault in faults(tree, FAIL)]


def test_sound_tree_passes():
    assert not told(TREE)


@pytest.mark.parametrize("file, old, new, fault", BREAKS, ids=[f"{b[3]}" for b in BREAKS])
def test_fault_is_told(file, old, new, fault):
    assert old in TREE[file]
    found = told(TREE | {file: TREE[file].replace(old, new, 1)})
    assert any(fault in text for text in found), found


def test_fix_rewrites_plumbing_and_copies_and_lays_them_out(tmp_path):
    wide = "def wide(x):\n    return " + " + ".join(["wide(x)"] * 9) + "\n\n\n"
    stale = "# Copied from gan/a.py with x->image\ndef wide(image):\n    return image\n\n\n"
    tree = TREE | {"gan/a.py": wide + TREE["gan/a.py"], "gan/b.py": stale + TREE["gan/b.py"]}
    tree["gan/b.py"] = tree["gan/b.py"].replace("sys.exit(2)", "sys.exit(1)")
    (tmp_path / "gan").mkdir()
    fix(tmp_path, tree, [*faults(tree, FAIL)])
    mended = (tmp_path / "gan/b.py").read_text(encoding="utf-8")
    assert "sys.exit(2)" in mended and "\n        + wide(image)\n" in mended
    assert max(map(len, mended.splitlines())) <= 100
    assert not told(tree | {"gan/b.py": mended})
    assert [path.name for path in (tmp_path / "gan").iterdir()] == ["b.py"]


if __name__ == "__main__":
    if "--fix" in sys.argv:
        fix(ROOT, ours()[0], ours()[2])
        ours.cache_clear()  # what is told now is left to do by hand
    print("\n".join(f"{fault.file}: {fault.block} {fault.what}" for fault in ours()[2]))
    sys.exit(len(ours()[2]) > 0)
