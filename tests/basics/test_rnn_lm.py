"""The recurrent layer against torch's, the window model against a loop, truncation, clipping, and
what the made-up text costs in theory and in practice."""

import copy
import itertools
import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake
from torch import nn

mod = load("basics/rnn_lm.py")
PATH = ROOT / "basics/rnn_lm.py"
WAYS = [f"the {a} {b} {c} {mod.WHO[b]}. " for a in mod.HOW for b in mod.WHO for c in mod.WHERE]
LENGTH = sum(map(len, WAYS)) / 64
TINY = ["--device", "cpu", "--n_steps", "4", "--sample_interval", "2", "--hidden", "8"]


def differences(ours, theirs):
    """Largest difference, in units of the largest value of a tensor where that is above 1."""
    pairs = [*zip(ours, theirs, strict=True)]
    return max(((p - q).abs().max() / q.abs().max().clamp(min=1)).item() for p, q in pairs)


def layer_gap(dtype):
    """States, last state and all gradients of our layer and torch's with the same weights."""
    torch.manual_seed(0)
    peer = nn.RNN(11, 7, batch_first=True, dtype=dtype)
    ours = mod.RNN(11, 7).to(dtype)
    ours.load_state_dict(peer.state_dict())
    x, h0 = torch.randint(11, (3, 20)), torch.randn(3, 7, dtype=dtype, requires_grad=True)
    states, last = peer(F.one_hot(x, 11).to(dtype), h0[None])
    outs = [ours(x, h0), (states, last[0])]
    grads = []
    for layer, (states, last) in zip((ours, peer), outs, strict=True):
        weight = torch.ones_like(states).cumsum(1).sin()
        total = (weight * states).sum() + last.square().sum()
        grads.append(torch.autograd.grad(total, [h0, *layer.parameters()]))
    return max(differences(*outs), differences(*grads))


def test_layer_equals_torch():
    assert layer_gap(torch.float64) < 1e-12
    assert layer_gap(torch.float32) < 1e-6


def test_wrong_layer_is_noticed(monkeypatch):
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda row, h, w: addmm(row, h, 0.999 * w))
    assert layer_gap(torch.float64) > 1e-4


def test_layer_starts_from_zero():
    layer, x = mod.RNN(5, 4), torch.randint(5, (2, 6))
    assert torch.equal(layer(x)[0], layer(x, torch.zeros(2, 4))[0])


def test_window_model_is_a_sum_of_rows():
    torch.manual_seed(0)
    layer = mod.Window(5, 4, 3).double()
    x, past = torch.randint(5, (2, 6)), torch.randint(5, (2, 3))
    h, last = layer(x, past)
    for b in range(2):
        text = [*past[b], *x[b]]
        for t in range(6):
            wanted = sum(layer.weight[k][text[t + 3 - k]] for k in range(3)).tanh()
            assert torch.allclose(h[b, t], wanted, atol=1e-12)
        assert last[b].tolist() == [int(i) for i in text[-3:]]
    assert torch.equal(layer(x)[0], layer(x, torch.zeros_like(past))[0])


@pytest.mark.parametrize("kind", ["rnn", "window"])
def test_state_makes_one_text_of_two_parts(kind):
    torch.manual_seed(0)
    model, x = mod.CharLM(kind, 7, 6, 4).double(), torch.randint(7, (2, 15))
    whole, last = model(x)
    first, state = model(x[:, :2])  # shorter than tau
    second, state = model(x[:, 2:], state)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-12)
    assert torch.allclose(state.double(), last.double(), atol=1e-12)
    cut, _ = model(x[:, 2:])
    assert (cut - second).abs().max() > 1e-3


def test_window_model_sees_tau_characters_and_no_more():
    torch.manual_seed(0)
    x = torch.randint(7, (1, 12))
    other = x.clone()
    other[0, 3] = (x[0, 3] + 1) % 7
    for kind, seen in [("window", {3, 4, 5, 6}), ("rnn", {*range(3, 12)})]:
        model = mod.CharLM(kind, 7, 6, 4).double()
        change = (model(x)[0] - model(other)[0]).abs().amax(2)[0]
        assert {*change.nonzero().flatten().tolist()} == seen


def truncated_gap(part=5):
    """Gradients of the second of two windows, against those from a constant state."""
    torch.manual_seed(0)
    model, text = mod.CharLM("rnn", 7, 6, 4).double(), torch.randint(7, (2, 2 * part + 1))
    _, state = mod.window_loss(model, text[:, : part + 1])
    loss, _ = mod.window_loss(model, text[:, part:], state)
    ours = torch.autograd.grad(loss, [*model.parameters()])
    with torch.no_grad():
        known = model(text[:, :part])[1]
    scores = model(text[:, part:-1], known)[0]
    wanted = -scores.log_softmax(-1).gather(2, text[:, part + 1 :, None]).mean()
    assert abs(wanted.item() - loss.item()) < 1e-12
    return differences(ours, torch.autograd.grad(wanted, [*model.parameters()]))


def test_no_gradient_crosses_windows(monkeypatch):
    assert truncated_gap() < 1e-12
    monkeypatch.setattr(torch.Tensor, "detach", lambda x: x)
    assert truncated_gap() > 1e-6


def test_without_detach_the_second_step_fails(monkeypatch):
    """The graph of the first window is gone by then."""
    torch.manual_seed(0)
    model, text = mod.CharLM("rnn", 7, 6, 4), torch.randint(7, (2, 6))
    for undo, stops in [(False, False), (True, True)]:
        if undo:
            monkeypatch.setattr(torch.Tensor, "detach", lambda x: x)
        loss, state = mod.window_loss(model, text)
        loss.backward()
        loss, _ = mod.window_loss(model, text, state)
        if stops:
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                loss.backward()
        else:
            loss.backward()


@pytest.mark.parametrize("theta", [0.0, 0.5, 5.0, 1e3])
def test_clipping_equals_torch(theta):
    torch.manual_seed(0)
    ours = mod.CharLM("rnn", 7, 6, 4).double()
    mod.window_loss(ours, torch.randint(7, (2, 9)))[0].mul(30).backward()
    before = [p.grad.clone() for p in ours.parameters()]
    theirs = copy.deepcopy(ours)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        q.grad = p.grad.clone()
    mod.clip_gradient([*ours.parameters()], theta)
    nn.utils.clip_grad_norm_(theirs.parameters(), theta)
    after = [p.grad for p in ours.parameters()]
    assert differences(after, [p.grad for p in theirs.parameters()]) < 1e-12
    norm = torch.cat([g.flatten() for g in after]).norm().item()
    full = torch.cat([g.flatten() for g in before]).norm().item()
    assert 5 < full < 1e3
    assert abs(norm - min(theta, full)) < 1e-5
    assert (differences(after, before) == 0) is (theta == 1e3)


def test_clipping_of_a_gradient_of_zero():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    mod.clip_gradient([p], 1.0)
    assert torch.equal(p.grad, torch.zeros(3))


def bits_per_sentence(tau):
    """Entropy of the next character given the last tau, over all pairs of sentences."""
    counts = defaultdict(Counter)
    for first, second in itertools.product(WAYS, WAYS):
        text = first + second
        for i in range(len(first), len(text)):
            counts[text[i - tau : i]][text[i]] += 1
    bits = sum(-n * math.log2(n / sum(c.values())) for c in counts.values() for n in c.values())
    return bits / 64**2


def test_numbers_of_the_docstring():
    assert LENGTH == 34 and len({*WAYS}) == 64 and math.log2(64) == 6
    known = {0: 4.04 * 34, 1: 1.81 * 34, 8: 8, 20: 6}
    for tau, bits in known.items():
        assert abs(bits_per_sentence(tau) - bits) < (1e-9 if tau > 1 else 0.2), tau
    assert min(len(where) for where in mod.WHERE) + 2 > 8  # WHO is out of sight
    for text in ("0.1765", "0.2353", "4.04", "1.81"):
        assert text in mod.__doc__
    assert (round(6 / LENGTH, 4), round(8 / LENGTH, 4)) == (0.1765, 0.2353)


def test_text_is_made_of_the_sentences():
    train, test, chars = mod.load_data(mod.parse_args(["--device", "cpu", "--batch_size", "1"]))
    text = "".join(chars[i] for i in torch.cat([train, test], 1)[0])
    found = [f"{part}. " for part in text.split(". ") if part]
    assert len(found) == 4000 and {*found} == {*WAYS}
    assert abs(len(train[0]) / len(text) - 0.9) < 1e-4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """kind -> folder and final metrics of a run of the default size, cut short."""
    runs = {}
    for kind in ("rnn", "window"):
        out = tmp_path_factory.mktemp(kind)
        code, _, err = call(
            PATH, "--device", "cpu", "--model", kind, "--n_steps", 500, "--out", out
        )
        assert code == 0, err
        rows = Path(out, "log.jsonl").read_text(encoding="utf-8").splitlines()
        runs[kind] = out, json.loads(rows[-1])
    return runs


def test_window_pays_for_what_it_forgets(trained):
    rnn, window = (trained[kind][1]["bits_per_char"] for kind in ("rnn", "window"))
    assert 6 / 34 - 0.005 < rnn < 8 / 34 - 0.01 < 8 / 34 - 0.005 < window < 8 / 34 + 0.03
    for _, row in trained.values():
        assert abs(math.log2(row["perplexity"]) - row["bits_per_char"]) < 1e-6


def go_on(trained, kind, prompt, *argv):
    out = trained[kind][0]
    words = ["--device", "cpu", "--model", kind, "--out", out, "--prompt", prompt, *argv]
    code, text, err = call(PATH, *words)
    assert (code, err) == (0, "") and text.startswith(prompt) and text.endswith("\n")
    return text[len(prompt) : -1]


def test_prefix_decides_what_follows(trained):
    """The sound of an animal named 12 characters and more before it."""
    right = {"rnn": 0, "window": 0}
    for kind, (who, sound) in itertools.product(right, mod.WHO.items()):
        said = go_on(trained, kind, f"the old {who} in the barn ", "--n_chars", len(sound))
        right[kind] += said == sound
    assert right["rnn"] == 4 and right["window"] <= 1


def test_temperature(trained):
    one, other = (go_on(trained, "rnn", "the ", "--seed", seed) for seed in (0, 1))
    assert one == other and len(one) == 100
    drawn = [go_on(trained, "rnn", "the ", "--temperature", 1, "--seed", s) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    wild = go_on(trained, "rnn", "the ", "--temperature", 100)
    assert len({*wild}) > len({*one})


def test_gumbel_noise_draws_from_the_softmax():
    torch.manual_seed(0)
    scores = torch.tensor([1.0, 0.0, -1.0]).expand(100_000, 3)
    drawn = (scores - 2.0 * torch.empty_like(scores).exponential_().log()).argmax(1)
    share = drawn.bincount(minlength=3) / len(drawn)
    assert (share - (scores[0] / 2).softmax(0)).abs().max() < 0.01
    assert (share - scores[0].softmax(0)).abs().max() > 0.05


def test_mistakes(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    for prompt in ("", "Zebra"):
        mistake(PATH, *TINY, "--prompt", prompt, about="--prompt")
    mistake(PATH, *TINY, "--prompt", "the", about="--weights")
    wrong = ["--device", "cpu", "--prompt", "the", "--weights", trained["window"][0] / "last.pt"]
    mistake(PATH, *wrong, about="--weights")
    for n in (5000, 20_000, 10**6):
        mistake(PATH, *TINY, "--batch_size", n, about="--batch_size")
    mistake(PATH, *TINY, "--seq_len", 10**6, about="--seq_len")
    mistake(PATH, *TINY, "--dataset", "tinyshakespeare", about="--data_root")


def test_text_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/tinyshakespeare").mkdir(parents=True)
    Path("data/tinyshakespeare/input.txt").write_text("abc\n" * 4000, encoding="utf-8")
    argv = [*TINY, "--dataset", "tinyshakespeare"]
    assert call(PATH, *argv)[0] == 0
    code, text, _ = call(PATH, *argv, "--prompt", "ab", "--n_chars", "5")
    assert code == 0 and len(text) == 8
