"""The tables of the docstring by brute force, what a beam may lose, the trained seq2seq."""

import itertools
import math

import pytest
import torch
from house import call, load

mod = load("basics/beam_search.py")
PATH = mod.Path(mod.__file__)
START = torch.zeros(1, 0).long()
A, B, C, END = range(4)
# The tables as they are printed with a column per step: rows are tokens, columns time steps.
FIRST = [[0.5, 0.1, 0.2, 0.0], [0.2, 0.4, 0.2, 0.2], [0.2, 0.3, 0.4, 0.2], [0.1, 0.2, 0.2, 0.6]]
SECOND = [[0.5, 0.1, 0.1, 0.1], [0.2, 0.4, 0.6, 0.2], [0.2, 0.3, 0.2, 0.1], [0.1, 0.2, 0.1, 0.6]]


def brute_force():
    """{answer: P} of all answers that end, or are 4 long, as products."""
    found = {}
    for y in itertools.product(range(4), repeat=4):
        y = y[: y.index(END) + 1] if END in y else y
        table = SECOND if y[1:2] == (C,) else FIRST
        found[y] = math.prod(table[token][t] for t, token in enumerate(y))
    return found


def beam(k, T=4, step=mod.tables):
    return mod.beam_search(step, START, k, T, END)


def random_model(v, seed):
    """step of a model whose every prefix has its own random distribution."""
    torch.manual_seed(seed)
    weight = 5 * torch.randn(64, v)

    def step(tokens, prefix):
        prefix = torch.cat([prefix, tokens[:, None]], 1)
        place = (prefix * (v ** torch.arange(prefix.shape[1]))).sum(1) * 7 + prefix.shape[1]
        return weight[place % 64].log_softmax(1), prefix

    return step


def test_tables_of_the_docstring():
    for table in (FIRST, SECOND):
        assert [sum(column) for column in zip(*table, strict=True)] == pytest.approx([1] * 4)
    assert [*map(list, zip(*FIRST, strict=True))] == mod.FIRST
    assert [*map(list, zip(*SECOND, strict=True))] == mod.SECOND
    every = brute_force()
    assert sum(every.values()) == pytest.approx(1)
    assert [every[A, B, C, END], every[A, C, B, END]] == pytest.approx([0.048, 0.054])
    ended = {y: p for y, p in every.items() if y[-1] == END}
    best = max(ended.values())  # of the tables: not A C B eos but two shorter ones
    assert {y for y, p in ended.items() if p > best - 1e-9} == {(END,), (A, END)}
    assert best == pytest.approx(0.1)


def test_exhaustive_search_is_brute_force():
    found = beam(4**4)
    for y, p in brute_force().items():
        assert (p == 0 and y not in found) or math.exp(found[y]) == pytest.approx(p, abs=1e-7)


@pytest.mark.parametrize(
    "alpha, answer, score",
    [(0.75, (A, C, B, END), -1.0319), (1.0, (A, C, B, END), -0.7297), (0.0, None, math.log(0.1))],
)
def test_best_answer(alpha, answer, score):
    y, log_p = mod.best_answer(beam(4**4), alpha, END)
    assert y == answer or (answer is None and y in {(END,), (A, END)})
    assert mod.normalised(log_p, len(y), alpha) == pytest.approx(score, abs=1e-4)


def test_scores_of_the_docstring_answers():
    assert mod.normalised(math.log(0.048), 4, 0.75) == pytest.approx(-1.0736, abs=1e-4)
    assert mod.normalised(math.log(0.054), 4, 0.75) == pytest.approx(-1.0319, abs=1e-4)
    # Dividing by L^alpha lifts a long answer more than a short one, as log P < 0.
    assert mod.normalised(-3.0, 4, 0.75) > mod.normalised(-3.0, 2, 0.75) > -3.0


def test_greedy_and_beams_on_the_tables():
    y, log_p = mod.greedy(mod.tables, START, 4, END)
    assert y == [A, B, C, END] and math.exp(log_p) == pytest.approx(0.048)
    assert mod.best_answer(beam(1), 0.75, END)[0] == (A, B, C, END)
    y, log_p = mod.best_answer(beam(2), 0.75, END)
    assert y == (A, C, B, END) and math.exp(log_p) == pytest.approx(0.054)


@pytest.mark.parametrize("seed", range(20))
def test_beam_of_one_is_greedy_and_a_wide_one_is_exhaustive(seed):
    step, T, v = random_model(4, seed), 4, 4
    (y, log_p), found = mod.greedy(step, START, T, END), beam(1, T, step)
    longest = max(found, key=len)
    assert longest == tuple(y) and found[longest] == pytest.approx(log_p, abs=1e-5)
    every, wide = beam(v**T, T, step), beam(v ** (T - 1), T, step)
    for alpha in (0.0, 0.75, 1.0):
        assert mod.best_answer(wide, alpha, END) == mod.best_answer(every, alpha, END)


def test_narrow_beam_can_miss_the_best():
    """Or the test above would show nothing."""
    missed = 0
    for seed in range(20):
        step = random_model(4, seed)
        both = [mod.best_answer(beam(k, 4, step), 0.75, END)[0] for k in (1, 4**4)]
        missed += both[0] != both[1]
    assert missed >= 3


@pytest.mark.parametrize("seed", range(10))
def test_beam_against_sorted_lists(seed):
    """The same search with Python lists, every prefix scored from its beginning."""
    step, k, T = random_model(4, seed), 3, 5

    def log_p(y):
        total, state, token = 0.0, START, END
        for following in y:
            p, state = step(torch.tensor([token]), state)
            total, token = total + p[0, following].item(), following
        return total

    live, found = [()], {}
    for _ in range(T):
        grown = sorted(((log_p((*y, i)), (*y, i)) for y in live for i in range(4)), reverse=True)
        found |= {y: p for p, y in grown[:k]}
        live = [y for _, y in grown[:k] if y[-1] != END]
    ours = beam(k, T, step)
    assert ours.keys() == found.keys()
    assert all(abs(ours[y] - found[y]) < 1e-4 for y in found)


def test_states_that_stay_behind_are_noticed():
    """A model whose state does not follow its prefix finds other answers."""
    step = random_model(4, 0)

    def stale(tokens, state):
        log_p, after = step(tokens, state)
        return log_p, after.flip(0)

    assert beam(3, 4, stale) != beam(3, 4, step)


def test_six_candidates_of_five_words():
    """A picture: k = 2, T = 3, words A .. E, F for eos."""
    best = {"": "AC", "A": "B", "C": "E", "AB": "D", "CE": "D"}  # what follows what, if it is kept

    def step(tokens, prefix):
        prefix = torch.cat([prefix, tokens[:, None]], 1)
        p = torch.full((len(prefix), 6), 0.01)
        for row, path in zip(p, prefix[:, 1:].tolist(), strict=True):
            for word in best["".join("ABCDEF"[token] for token in path)]:
                row["ABCDEF".index(word)] = 1.0
        return (p / p.sum(1, keepdim=True)).log(), prefix

    found = mod.beam_search(step, START, 2, 3, 5)
    names = ["".join("ABCDEF"[token] for token in y) for y in found]
    assert sorted(names) == ["A", "AB", "ABD", "C", "CE", "CED"]
    assert mod.best_answer(found, 0.75, 5)[0][0] in (A, C)  # none has ended: an unfinished one


def test_beam_wider_than_the_vocabulary_and_dead_ends():
    assert len([y for y in beam(100) if len(y) == 1]) == 4
    nothing = lambda tokens, state: (torch.full((len(tokens), 4), -math.inf), state)  # noqa: E731
    with pytest.raises(ValueError, match="nothing can follow"):
        mod.beam_search(nothing, torch.zeros(1, 1), 2, 4, END)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return mod.learn_pairs(1e-2)


def test_seq2seq_steps_equal_its_forward_pass(trained):
    model = trained[0]
    x, y = mod.draw_pairs(7)
    whole, state, token = model(x, y), model.encode(x), torch.full((7,), mod.EOS)
    for t in range(5):
        log_p, state = model.step(token, state)
        assert (log_p - whole[:, t]).abs().max() < 1e-5
        token = y[:, t]
    assert whole.exp().sum(2) == pytest.approx(torch.ones(7, 5), abs=1e-5)


def test_seq2seq_prefers_what_only_a_beam_finds(trained):
    model, loss = trained
    assert loss == pytest.approx((0.4 * math.log(2.5) + 0.6 * math.log(5)) / 5, abs=0.05)
    state = model.encode(torch.tensor([[4, 0, 2]]))
    y, log_p = mod.greedy(model.step, state, 5, mod.EOS)
    assert y[0] == mod.S and math.exp(log_p) == pytest.approx(0.2, abs=0.1)
    found = mod.beam_search(model.step, state, 2, 5, mod.EOS)
    y, log_p = mod.best_answer(found, 0.75, mod.EOS)
    assert y == (mod.R, 2, 0, 4, mod.EOS) and math.exp(log_p) == pytest.approx(0.4, abs=0.1)


def test_pairs():
    torch.manual_seed(0)
    x, y = mod.draw_pairs(10_000)
    turned = y[:, 0] == mod.R
    assert turned.double().mean().item() == pytest.approx(0.4, abs=0.02)
    assert (y[turned, 1:4] == x[turned].flip(1)).all() and (y[:, 4] == mod.EOS).all()
    rotations = torch.stack([x.roll(i, 1) for i in range(3)], 1)  # (n, 3, 3)
    which = (rotations == y[:, None, 1:4]).all(2)[~turned].double()
    assert (which.sum(1) == 1).all()
    assert which.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_table(monkeypatch):
    monkeypatch.setattr(mod, "learn_pairs", lambda lr: (mod.Seq2Seq().requires_grad_(False), 0.0))
    code, out, err = call(PATH)
    assert (code, err) == (0, "") and 2 < out.count("\n") <= 30
    for number in ("0.048", "0.054", "-1.032", "-1.074", "-0.7297"):
        assert number in out
