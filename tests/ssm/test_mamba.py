"""Identities of mamba.py: states, initial values, sampling, text and weight decay."""

import math
import shlex
import time

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake

mamba, scans = load("ssm/mamba.py"), load("ssm/mamba_scan.py")
MAMBA = ROOT / "ssm/mamba.py"
TINY = shlex.split("--dim 16 --depth 2 --d_state 4 --seq_len 40 --batch_size 4 --n_steps 4")
TINY += shlex.split("--sample_interval 2 --device cpu")


def network(d_state=4):
    torch.manual_seed(0)
    model = mamba.MambaLM(11, 16, 2, d_state).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("cuts", [[1] * 20, [1, 2, 3, 14], [20], [2, 17, 1], [19, 1]])
def test_any_cutting_gives_the_same(cuts):
    """Eq. (16): scores and last states do not depend on where the text is cut, batches included."""
    model, x = network(), torch.randint(11, (3, 20))
    whole, last = model(x)
    parts, states = [], None
    for part in x.split(cuts, 1):
        scores, states = model(part, states)
        parts.append(scores)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12
    for (past, h), (past2, h2) in zip(states, last, strict=True):
        assert (past - past2).abs().max() < 1e-12 and (h - h2).abs().max() < 1e-12


def test_a_forgotten_part_of_the_state_is_seen():
    """Negative control: without the last inputs of the convolution, or without h."""
    model, x = network(), torch.randint(11, (3, 20))
    whole, (_, states) = model(x)[0], model(x[:, :10])
    for lost in (0, 1):
        broken = [tuple(p * (i != lost) for i, p in enumerate(state)) for state in states]
        assert (model(x[:, 10:], broken)[0] - whole[:, 10:]).abs().max() > 1e-3


def test_the_state_does_not_grow():
    model = network()
    for length in (1, 3, 50):
        _, states = model(torch.randint(11, (2, length)))
        assert [(tuple(past.shape), tuple(h.shape)) for past, h in states] == [
            ((2, 3, 32), (2, 32, 4))
        ] * 2


def test_nothing_sees_the_future():
    model, x = network(), torch.randint(11, (1, 20))
    y = x.clone()
    y[0, 12] = (y[0, 12] + 1) % 11
    change = (model(x)[0] - model(y)[0]).abs().amax((0, 2))
    assert change[:12].max() == 0 and change[12:].min() > 0


def test_block_equals_that_of_mamba_scan():
    torch.manual_seed(0)
    ours, theirs = mamba.MambaBlock(16, 4).double(), scans.MambaBlock(16, 4).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 37, 16, dtype=torch.float64)
    assert (ours(x)[0] - theirs(x)).abs().max() < 1e-12


def test_initial_values():
    """As the official code draws them: dt, A, D, the tied embedding, the rescaled output."""
    torch.manual_seed(0)
    model = mamba.MambaLM(50, 64, 8)
    mixers = [layer.mixer for layer in model.backbone.layers]
    for mixer in mixers:
        dt = F.softplus(mixer.dt_proj.bias.detach())
        assert dt.min() * 1.001 >= 1e-3 and dt.max() <= 0.1001
        assert dt.log().std() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.15)
        assert torch.allclose(mixer.A_log.detach().exp(), torch.arange(1.0, 17.0).expand(128, 16))
        assert mixer.D.eq(1).all()
        assert mixer.dt_proj.weight.detach().abs().max() <= 0.5  # rank 4
        assert mixer.dt_proj.weight.detach().abs().max() > 0.45
        bound = 1 / math.sqrt(128 * 8)
        assert 0.9 * bound < mixer.out_proj.weight.detach().abs().max() <= bound
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert model.lm_head.weight.detach().std() == pytest.approx(0.02, rel=0.1)


def test_choose():
    """Temperature, top_k and top_p against the probabilities that they leave."""
    torch.manual_seed(0)
    scores = torch.tensor([0.5, 2.0, -1.0, 1.0]).log_softmax(0).repeat(40_000, 1)
    p = scores[0].softmax(0)

    def share(*how):
        return mamba.choose(scores, *how).flatten().bincount(minlength=4) / len(scores)

    assert torch.allclose(share(1.0, 0, 1.0), p, atol=0.01)
    assert torch.allclose(share(0.5, 0, 1.0), (2 * scores[0]).softmax(0), atol=0.01)
    assert share(0.0, 0, 1.0).tolist() == [0, 1, 0, 0]
    assert share(1.0, 1, 1.0).tolist() == [0, 1, 0, 0]
    two = torch.tensor([0, p[1], 0, p[3]])
    assert torch.allclose(share(1.0, 2, 1.0), two / two.sum(), atol=0.01)
    assert p[1] < 0.7 < p[1] + p[3]
    assert torch.allclose(share(1.0, 0, 0.7), two / two.sum(), atol=0.01)
    assert share(1.0, 0, 0.0001).tolist() == [0, 0, 0, 0] or share(1.0, 0, 0.3)[1] == 1


def test_sampling_reads_its_own_words():
    """Greedy writing with the state equals reading the whole text anew for every symbol."""
    model, x = network(), torch.randint(11, (2, 5))
    ours = mamba.sample(model, x, 12, temperature=0)
    for _ in range(12):
        x = torch.cat([x, model(x)[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(ours, x[:, 5:])
    assert mamba.sample(model, x, 40, n_symbols=3).max() < 3


def test_windows_and_loss_by_hand():
    args = mamba.parse_args(TINY)
    _, test, chars = mamba.load_data(args)
    model = mamba.build(args, chars)
    losses = []
    for at in range(0, len(test) - 40, 40):
        scores = model(test[None, at : at + 40])[0][0].log_softmax(-1)
        losses.append(-scores[torch.arange(40), test[at + 1 : at + 41]])
    losses = torch.stack(losses).mean(0)
    metrics = mamba.evaluate(model, test, args)
    assert metrics["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert metrics["bits"] == pytest.approx(losses.mean().item() / math.log(2), rel=1e-5)
    assert metrics["bits_late"] == pytest.approx(losses[20:].mean().item() / math.log(2), rel=1e-5)


def test_entropy_of_the_sentences():
    """The rate of the default text that the smoke is judged by."""
    _, _, chars = mamba.load_data(mamba.parse_args(["--device", "cpu"]))
    lengths = [len(f"the {h} {w} {a} {s}. ") for h in mamba.HOW for w, s in mamba.WHO.items()
               for a in mamba.WHERE]  # fmt: skip
    assert len(lengths) == 64 and sum(lengths) / 64 == 34
    words = [*mamba.HOW, *mamba.WHO, *mamba.WHO.values(), *mamba.WHERE, "the. "]
    assert chars == sorted({*"".join(words)})


def test_matrices_decay_and_nothing_else(monkeypatch, tmp_path):
    seen = []
    true_adamw = torch.optim.AdamW

    def spy(groups, *args, **flags):
        seen.append(groups)
        return true_adamw(groups, *args, **flags)

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    assert call(MAMBA, *TINY, "--out", tmp_path)[0] == 0
    decay, plain = seen[0]
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    args = mamba.parse_args(TINY)
    model = mamba.build(args, mamba.load_data(args)[2])
    shapes = sorted(tuple(p.shape) for p in decay["params"])
    expected = [tuple(p.shape) for n, p in model.named_parameters()
                if n.endswith("weight") and "norm" not in n]  # fmt: skip
    assert shapes == sorted(expected)
    assert len(decay["params"]) + len(plain["params"]) == len([*model.parameters()])


def test_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(MAMBA, *TINY, "--out", "run")[0] == 0
    code, out, _ = call(MAMBA, *TINY, "--out", "run", "--prompt", "the old", "--n_tokens", "9")
    assert code == 0 and out.startswith("the old") and len(out) == 7 + 9 + 1
    mistake(MAMBA, *TINY, "--out", "run", "--prompt", "Zebra", about="--prompt")
    mistake(MAMBA, *TINY, "--out", "none", "--prompt", "the", about="--weights")
    mistake(MAMBA, *TINY, "--vocab_size", "5", about="--vocab_size 5")
    mistake(MAMBA, *TINY, "--dataset", "file", "--data_root", "no.txt", about="no.txt")


def test_own_text(tmp_path):
    (tmp_path / "text.txt").write_text("abc " * 600, encoding="utf-8")
    flags = ["--dataset", "file", "--data_root", tmp_path / "text.txt", "--out", tmp_path / "run"]
    assert call(MAMBA, *TINY, *flags)[0] == 0


def test_a_step_costs_the_same_however_long_the_text():
    """Against a quadratic or cached reader, whose steps grow; medians, as clocks are noisy."""
    torch.set_num_threads(1)
    model, times = mamba.MambaLM(11, 32, 2), {}
    with torch.inference_mode():
        for length in (16, 4096):
            _, states = model(torch.randint(11, (1, length)))
            x, laps = torch.zeros(1, 1, dtype=torch.long), []
            for _ in range(60):
                start = time.perf_counter()
                model(x, states)
                laps.append(time.perf_counter() - start)
            times[length] = sorted(laps)[10]
    assert times[4096] < 1.5 * times[16]
