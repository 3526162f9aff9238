"""The diff of two siblings is the idea: the lines that change between them stay few."""

import ast
from difflib import SequenceMatcher

import pytest
from budgets import DIFFS
from house import ROOT

PAIRS = [pair for pair in DIFFS if all((ROOT / file).exists() for file in pair)]


def code(source):
    """Lines after the docstring, without blank ones and the markers of copies."""
    lines = source.splitlines()[ast.parse(source).body[0].end_lineno :]
    markers = ("# Copied from", "# Differs from")
    return [line for line in lines if line.strip() and not line.startswith(markers)]


def changed_lines(old, new):
    """Where lines make way for others, the larger number of the two counts."""
    pairs = SequenceMatcher(None, code(old), code(new), autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in pairs if kind != "equal")


@pytest.mark.parametrize("pair", PAIRS, ids=" -> ".join)
def test_diff_is_short(pair):
    old, new = ((ROOT / file).read_text(encoding="utf-8") for file in pair)
    assert changed_lines(old, new) <= DIFFS[pair]


@pytest.mark.parametrize(
    "new, count",
    [
        ('"""A."""\na = 1\nb = 2\nc = 3\n', 0),
        ('"""Another text,\nand more of it."""\n\na = 1\n\nb = 2\nc = 3\n', 0),
        ('"""A."""\na = 1\n# Copied from gan/gan.py\nb = 2\n# Differs from x.py\nc = 3\n', 0),
        ('"""A."""\na = 1\nb = 9\nc = 3\n', 1),
        ('"""A."""\na = 1\nb = 2  # why\nc = 3\n', 1),
        ('"""A."""\na = 1\nc = 3\n', 1),
        ('"""A."""\na = 1\nb = 7\nb = 8\nb = 9\nc = 3\n', 3),
        ('"""A."""\nd = 1\ne = 1\nf = 1\na = 1\nc = 3\n', 4),
    ],
)
def test_changed_lines_are_counted(new, count):
    assert changed_lines('"""A."""\na = 1\nb = 2\nc = 3\n', new) == count
