"""A bar that an untrained model passes is none: where there is an --lr, --lr 0 must fail."""

import json

import pytest
from house import Job, having, name

LEARNERS = having("lr")


@pytest.mark.bars
@pytest.mark.parametrize(
    "alone",
    [Job(p, ("--smoke", "--lr", "0")) for p in LEARNERS],
    indirect=True,
    ids=map(name, LEARNERS),
)
def test_untrained_model_misses_a_bar(alone):
    assert alone.code == 1, alone.stderr
    row = json.loads(alone.stdout)
    assert row["ok"] is False
