"""inplace_ops.py: each claim as Python and torch see it, and the meter against torch's profiler."""

import operator
import warnings

import pytest
import torch
from house import call, load, mistake

mod = load("basics/inplace_ops.py")
PATH = mod.Path(mod.__file__)
CLAIMS = {text: claim for text, _, claim in mod.STATEMENTS}


def pair(size=64):
    return torch.ones(size, size), torch.full((size, size), 2.0)


# --- examples ----------------------------------------------------------------------------------
def test_sum_that_is_bound_again_is_elsewhere():
    """Often listed among the in-place forms; this is the statement itself, not a lambda."""
    X, Y = pair()
    before, address, other = id(Y), Y.data_ptr(), Y
    Y = Y + X
    assert id(Y) != before and Y.data_ptr() != address
    assert other[0, 0] == 2 and Y[0, 0] == 3
    assert CLAIMS["Y = Y + X"] == (False, False, 1, 1)


def test_in_place_forms_keep_object_and_address():
    X, Y = pair()
    before, address, other = id(Y), Y.data_ptr(), Y
    Y += X
    Y[:] = X + Y
    Y.add_(X)
    torch.add(Y, X, out=Y)
    assert (id(Y), Y.data_ptr()) == (before, address)
    assert other[0, 0] == 6  # every name of Y sees it
    for text in ("Y += X", "Y[:] = X + Y", "Y.add_(X)", "torch.add(Y, X, out=Y)"):
        assert CLAIMS[text][:2] == (True, True)


# --- the meter -----------------------------------------------------------------------------------
def profiled(statement, size):
    """Peak and kept memory in units of Y, as torch's allocator reports them."""
    X, Y = pair(size)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            kept = statement(Y, X)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    del kept
    return peak / (4 * size * size), live / (4 * size * size)


@pytest.mark.parametrize("text, statement, claim", mod.STATEMENTS, ids=[*CLAIMS])
def test_statement(text, statement, claim):
    for size in (2, 300):
        assert mod.measure(statement, size) == claim
    peak, kept = profiled(statement, 1000)
    assert abs(peak - claim[2]) < 0.02 and abs(kept - claim[3]) < 0.02  # copies take odd buffers


@pytest.mark.parametrize(
    "statement, peak, kept",
    [
        (lambda Y, X: Y.add(1).add(1).add(1).add(1), 2, 1),
        (lambda Y, X: (Y + 1) @ (X + 1), 3, 1),
        (lambda Y, X: torch.softmax(Y * 2, 1), 2, 1),
        (lambda Y, X: torch.stack([Y, X, Y]), 3, 3),
        (lambda Y, X: [Y + 1, X + 1, Y[0]][0], 2, 1),
    ],
)
def test_meter_agrees_with_the_profiler(statement, peak, kept):
    assert mod.measure(statement, 300)[2:] == (peak, kept)
    assert profiled(statement, 300) == pytest.approx((peak, kept), abs=0.01)


def test_false_claim_is_counted(monkeypatch):
    args = mod.parse_args(["--smoke", "--size", "8"])
    assert mod.run(args) == {"wrong_statements": 0, "wrong_gradients": 0}
    monkeypatch.setattr(
        mod,
        "STATEMENTS",
        [
            ("Y = Y + X", lambda Y, X: Y + X, (True, True, 0, 0)),  # as is often written
            ("Y[:] = X + Y", lambda Y, X: Y.copy_(X + Y), (True, True, 0, 0)),
            ("Y += X", operator.iadd, (True, True, 0, 0)),
        ],
    )
    gradients = [("y = exp(x); y += 1", lambda x: operator.iadd(x.exp(), 1), mod.ONES)]
    monkeypatch.setattr(mod, "GRADIENTS", gradients)
    assert mod.run(args) == {"wrong_statements": 2, "wrong_gradients": 1}
    assert call(PATH, "--smoke")[0] == 1


# --- autograd ------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, make, claim", mod.GRADIENTS, ids=[row[0] for row in mod.GRADIENTS])
def test_gradient(text, make, claim):
    assert mod.outcome(make) == claim


def test_leaf_is_refused_by_name_and_allowed_without_grad():
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        x += 1
    with torch.no_grad():
        x += 1
    assert x.tolist() == [2, 2, 2] and x.is_leaf


def test_backward_refuses_by_the_count_of_changes():
    x = torch.ones(3, requires_grad=True)
    y = x.exp()
    assert y._version == 0
    y += 1
    assert y._version == 1
    with pytest.raises(RuntimeError, match="is at version 1; expected version 0"):
        y.sum().backward()


def test_other_mistakes_of_the_docstring():
    X, Y = pair()
    with pytest.raises(RuntimeError, match="can't be cast"):
        torch.add(Y, X, out=torch.empty(64, 64, dtype=torch.int64))
    counts = torch.ones(3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="can't be cast"):
        counts += 0.5
    small = torch.empty(3)
    with pytest.warns(UserWarning, match="was resized"):
        torch.add(Y, X, out=small)
    assert small.shape == (64, 64)


# --- the script ----------------------------------------------------------------------------------
def test_tables():
    code, out, err = call(PATH, "--size", 32)
    assert (code, err) == (0, "") and out.count("\n") == 20
    assert "do Y = Y + X  same object False  same address False  peak 1  kept 1\n" in out
    assert out.endswith("wrong_statements 0  wrong_gradients 0\n")


def test_size_of_a_matrix():
    mistake(PATH, "--size", 1, about="--size")  # of one element the transpose is no other layout
