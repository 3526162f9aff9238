"""dpo.py: loss and gradient in closed form, log-probabilities by hand, the reference, data."""

import json
import math

import pytest
import torch
from house import ROOT, call, load, mistake

mod, sft = load("llm/dpo.py"), load("llm/sft.py")
SCRIPT = ROOT / "llm/dpo.py"
TINY = ["--dim", "16", "--batch_size", "4", "--n_steps", "4", "--sample_interval", "2"]
TINY += ["--device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """The stages before, in no time."""
    true = mod.fit_rows
    monkeypatch.setattr(mod, "fit_rows", lambda model, x, y, n, lr: true(model, x, y, 2, lr))


def pairs_of(h):
    """Log-probabilities of model and reference with a given h."""
    pi = torch.tensor([[h - 3.0, -2.0]], dtype=torch.float64, requires_grad=True)
    return pi, torch.tensor([[-3.0, -2.0]], dtype=torch.float64)


@pytest.mark.parametrize("h, loss", [(1.3, 0.630258), (-0.4, 0.713347), (0.0, math.log(2))])
def test_loss_in_closed_form(h, loss):
    """Values, and the gradient -beta sigmoid(-beta h) of h."""
    pi, ref = pairs_of(h)
    ours, rewards = mod.preference_loss(pi, ref, 0.1)
    assert ours.item() == pytest.approx(loss, abs=1e-6)
    assert rewards[0].tolist() == pytest.approx([0.1 * h, 0.0])
    ours.sum().backward()
    slope = -0.1 / (1 + math.exp(0.1 * h))
    assert pi.grad[0].tolist() == pytest.approx([slope, -slope])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_smoothing(smoothing):
    pi, ref = pairs_of(1.7)
    ours, _ = mod.preference_loss(pi, ref, 0.5, smoothing)
    p = 1 / (1 + math.exp(-0.85))
    expected = -(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p)
    assert ours.item() == pytest.approx(expected)
    swapped, _ = mod.preference_loss(pi.flip(1), ref.flip(1), 0.5, 1 - smoothing)
    assert swapped.item() == pytest.approx(expected)  # wrong pairs are pairs the other way round


def test_ipo():
    pi, ref = pairs_of(1.7)
    ours, _ = mod.preference_loss(pi, ref, 0.1, kind="ipo")
    assert ours.item() == pytest.approx((1.7 - 5) ** 2)


def test_large_differences_stay_finite():
    for h in (-1e5, 1e5):
        pi, ref = pairs_of(h)
        loss, _ = mod.preference_loss(pi, ref, 0.5)
        loss.sum().backward()
        assert loss.isfinite().all() and pi.grad.isfinite().all()


def network(args=None):
    torch.manual_seed(0)
    model = mod.build(args or mod.parse_args(TINY), mod.Tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_log_probabilities_by_hand():
    """Token by token over the last answer and its end, of chats of different lengths."""
    tokenizer, model = mod.Tokenizer(), network().double()
    chats = [
        mod.ask_about("Anna", "Ben", end="."),
        mod.ask_about("Anna", "Ben"),
        mod.ask_about("Ivo"),
    ]
    chats.append(mod.ask_about("Ivo", end="!!"))
    coded = [mod.encode_answer(tokenizer, chat, 200) for chat in chats]
    x, targets = (t.unflatten(0, (2, 2)) for t in mod.chat_tensors(coded, "cpu"))
    logp, n = mod.sequence_logp(model, x, targets)
    for chat, ours, count in zip(chats, logp.flatten(), n.flatten(), strict=True):
        ids, _ = mod.encode_chat(tokenizer, chat[:-1], ask=True)
        answer = [*tokenizer.encode(chat[-1]["content"]), 2]
        total = 0.0
        for token in answer:
            total += model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
            ids = [*ids, token]
        assert ours.item() == pytest.approx(total, abs=1e-5) and count == len(answer)
    assert (logp / n)[0, 0] != logp[0, 0]


def test_first_loss_is_log_2(quick):
    args = mod.parse_args(TINY)
    model, tokenizer = mod.begin_with(args)
    pairs, _ = mod.load_data(args, tokenizer)
    found = mod.evaluate(model, model, *pairs, args)
    assert found["val_loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert (found["margin"], found["chosen"], found["accuracy"]) == (0, 0, 0)
    assert call(SCRIPT, *TINY, "--n_steps", "1", "--sample_interval", "1")[0] == 0
    row = json.loads(mod.Path("out/dpo/log.jsonl").read_text(encoding="utf-8"))
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-7)
    other = network()
    assert mod.evaluate(model, other, *pairs, args)["val_loss"] != pytest.approx(
        math.log(2), abs=1e-4
    )


def test_the_reference_stays(quick):
    """Bit for bit what the stage before has left, through training and --resume."""
    args = mod.parse_args(TINY)
    before = mod.begin_with(args)[0].state_dict()
    for flags in ([], ["--n_steps", "6", "--resume"]):
        assert call(SCRIPT, *TINY, *flags)[0] == 0
        saved = torch.load("out/dpo/last.pt", weights_only=True)
        assert all(torch.equal(before[key], value) for key, value in saved["reference"].items())
        assert any(not torch.equal(before[key], value) for key, value in saved["model"].items())


def test_gradient_of_a_batch():
    """Only the model learns; in the direction that raises the better answer's log-probability."""
    args = mod.parse_args(TINY)
    model, reference = network(), network().requires_grad_(False)
    pairs, _ = mod.load_data(args, mod.Tokenizer())
    loss, _, before = mod.compare(model, reference, *pairs, args)
    loss.mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    after, rewards, logp = mod.compare(model, reference, *pairs, args)
    assert after.mean() < loss.mean() and (rewards[:, 0] - rewards[:, 1]).mean() > 0
    args.sft_coef = 0.5
    more, _, _ = mod.compare(model, reference, *pairs, args)
    n = (pairs[1] >= 0).sum(-1)[:, 0]
    assert torch.allclose(more, after - 0.5 * logp[:, 0] / n, atol=1e-6)
    args.loss, args.sft_coef = "ipo", 0.0
    ipo, _, _ = mod.compare(model, reference, *pairs, args)
    h = (logp - before) / (pairs[1] >= 0).sum(-1)
    assert torch.allclose(ipo, (h[:, 0] - h[:, 1] - 5).square(), atol=1e-4)


PAIR = {"instruction": "a", "input": "b", "chosen": "yes", "rejected": "no"}
TURNS = sft.ask_about("Anna", "Ben")
KEYS = {
    "conversations": [{"from": "human", "value": "a\nb"}],
    "chosen": {"from": "gpt", "value": "yes"},
}
KEYS |= {"rejected": {"from": "gpt", "value": "no"}}


def test_records():
    for record in (PAIR, KEYS):
        chosen, rejected = mod.as_pair(record)
        assert chosen == [mod.say("user", "a\nb"), mod.say("assistant", "yes")]
        assert rejected == [mod.say("user", "a\nb"), mod.say("assistant", "no")]
    other = [*TURNS[:-1], mod.say("assistant", "pink")]
    assert mod.as_pair({"chosen": TURNS, "rejected": other}) == (TURNS, other)
    bad = [{"chosen": TURNS, "rejected": TURNS}, {"chosen": TURNS, "rejected": TURNS[:2]}]
    bad += [PAIR | {"chosen": "no"}, PAIR | {"rejected": ""}, {"chosen": "a"}, {}]
    bad += [{"chosen": TURNS, "rejected": [mod.say("user", "other"), *other[1:]]}]
    assert [mod.as_pair(record) for record in bad] == [None] * len(bad)


def test_what_cannot_teach_is_left_out_and_counted(capsys):
    good = [PAIR | {"instruction": f"say {i}"} for i in range(200)]
    same = PAIR | {"chosen": "x" * 100 + "a", "rejected": "x" * 100 + "b"}
    rows = [*good, PAIR | {"instruction": "x" * 300}, same, PAIR | {"chosen": "no"}]
    text = "\n".join(map(json.dumps, rows)) + "\nno json"
    mod.Path("a.jsonl").write_text(text, encoding="utf-8")
    args = mod.parse_args([*TINY, "--dataset", "file", "--data_root", "a.jsonl", "--seq_len", "60"])
    (x, targets), (test, _) = mod.load_data(args, mod.Tokenizer())
    assert len(x) + len(test) == 200 and x.shape[1] == 2 and ((targets >= 0).sum(2) > 0).all()
    err = capsys.readouterr().err
    assert "a.jsonl:204" in err and "left out: 3 records, 2 have no two answers" in err


def test_stages(quick):
    """Not from a pretrained model; from a fine-tuned one, or on from a preferring one."""
    torch.manual_seed(0)
    small = ["--dim", "16", "--seq_len", "12", "--n_steps", "2", "--n_test", "5", "--device", "cpu"]
    assert call(ROOT / "llm/minimind.py", *small)[0] == 0
    mistake(SCRIPT, *TINY, "--weights", "out/minimind/last.pt", about="is of stage pretrain")
    mistake(SCRIPT, *TINY, "--dataset", "zh", about="--dataset zh: needs a fine-tuned model")
    weights = ["--weights", "out/minimind/last.pt", "--n_steps", "2", "--device", "cpu"]
    assert call(ROOT / "llm/sft.py", *weights)[0] == 0
    assert call(SCRIPT, *TINY, "--weights", "out/sft/last.pt")[0] == 0
    assert call(SCRIPT, *TINY, "--weights", "out/dpo/last.pt", "--out", "again")[0] == 0
    asked = ["--weights", "again/last.pt", "--prompt", "Who?", "--n_tokens", "3", "--device", "cpu"]
    for script in ("dpo", "sft", "minimind"):
        assert call(ROOT / f"llm/{script}.py", *asked)[0] == 0
    mistake(SCRIPT, *TINY, *asked[:2], "--prompt", "x" * 300, about="--prompt: 3")
    mistake(ROOT / "llm/sft.py", "--weights", "again/last.pt", "--device", "cpu", about="stage dpo")


def test_prompt_is_greedy():
    """One token after the other, up to the end of the turn."""
    model, tokenizer = network(), mod.Tokenizer()
    chat = [mod.say("user", "Who?")]
    ids = mod.encode_chat(tokenizer, chat, ask=True)[0]
    drawn = [*sft.sample(model, [ids], 24, stop=2, temperature=0)]
    expected = [i.item() for i in drawn if i.item() != 2]
    assert mod.sample(model, tokenizer, chat) == tokenizer.decode(expected)


@pytest.mark.parametrize("flags", [["--loss", "ipo"], ["--label_smoothing", "0.2"], ["--amp"]])
def test_variants_train(quick, flags):
    assert call(SCRIPT, *TINY, *flags)[0] == 0


@pytest.mark.parametrize("dataset", ["preference", "zh"])
def test_real_pairs(dataset, data_root):
    flags = ["--dataset", dataset, "--data_root", str(data_root), "--seq_len", "700"]
    (x, targets), (test, _) = mod.load_data(mod.parse_args([*TINY, *flags]), mod.Tokenizer())
    assert len(x) > 5 * len(test) > 50 and ((targets >= 0).sum(2) > 0).all()
