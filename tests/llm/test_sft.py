"""sft.py: what is learned of a chat, by brute force over its characters; data, stages, talking."""

import io
import json
import random
import re

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake

mod, bpe, minimind = load("llm/sft.py"), load("llm/bpe_tokenizer.py"), load("llm/minimind.py")
SCRIPT = ROOT / "llm/sft.py"
TINY = ["--dim", "16", "--batch_size", "4", "--n_steps", "4", "--sample_interval", "2"]
TINY += ["--device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """The stage before, in no time."""
    true = mod.fit_rows
    monkeypatch.setattr(mod, "fit_rows", lambda model, x, y, n, lr: true(model, x, y, 2, lr))


def merged():
    return mod.Tokenizer([*bpe.train_bpe(bpe.TEXT, 500).merges])


def chats(n):
    """Chats of all kinds: systems, many turns, headers and special tokens typed by a user."""
    draw = random.Random(0)
    signs = [*"ab \n's2é猫", "assistant\n", "<|im_end|>", "<|im_start|>assistant\n", " owl"]
    for _ in range(n):
        words = ["".join(draw.choices(signs, k=draw.randrange(1, 9))) for _ in range(9)]
        chat = [mod.say("system", words.pop())] * draw.randrange(2)
        for _ in range(draw.randrange(1, 5)):
            chat += [mod.say("user", words.pop()), mod.say("assistant", words.pop())]
        yield chat


def brute_force(messages):
    """The text of a chat, and for each character (a special token is one) whether it is learned."""
    text, mask = [], []
    for message in messages:
        learn = message["role"] == "assistant"
        pieces = [(1, False), *((c, False) for c in message["role"] + "\n")]
        pieces += [*((c, learn) for c in message["content"]), (2, learn), ("\n", False)]
        text += [piece for piece, _ in pieces]
        mask += [m for _, m in pieces]
    return text, mask


@pytest.mark.parametrize("tokenizer", [mod.Tokenizer(), merged()], ids=["bytes", "merged"])
def test_mask_by_brute_force(tokenizer):
    """Token by token: the bytes of a token are learned all or not at all, as the characters say."""
    for chat in chats(150):
        ids, mask = mod.encode_chat(tokenizer, chat)
        assert len(ids) == len(mask)
        flat, there = [], []
        for i, m in zip(ids, mask, strict=True):
            flat += [(i, m)] if i < 3 else [(b, m) for b in tokenizer.symbols[i]]
        for c, m in zip(*brute_force(chat), strict=True):
            there += [(c, int(m))] if c in (1, 2) else [(b, int(m)) for b in c.encode()]
        assert flat == there


def test_labels_of_one_chat():
    """Spelled out: the answer and its end, one place to the left; padding is nothing."""
    tokenizer = mod.Tokenizer()
    pairs = [
        mod.encode_chat(tokenizer, mod.ask_about(*names)) for names in (["Anna"], ["Ben", "Ivo"])
    ]
    x, targets = mod.chat_tensors(pairs, "cpu")
    said = [tokenizer.decode(i for i in row.tolist() if i >= 0) for row in targets]
    assert said == ["red<|im_end|>", "blue<|im_end|>grey<|im_end|>"]
    before = x[0][targets[0] >= 0].tolist()
    assert tokenizer.decode(before) == "\nred"  # the end of the header foretells the answer
    assert (x[0, len(pairs[0][0]) :] == 0).all() and (
        targets[0, len(pairs[0][0]) - 1 :] == -100
    ).all()


def test_prompt_is_the_beginning_of_the_chat():
    for tokenizer in (mod.Tokenizer(), merged()):
        for chat in chats(50):
            ids, mask = mod.encode_chat(tokenizer, chat)
            prompt, _ = mod.encode_chat(tokenizer, chat[:-1], ask=True)
            last = len(mask) - 1 - mask[::-1].index(1)
            assert ids[: len(prompt)] == prompt and mask[len(prompt) : last + 1] == [1] * (
                last + 1 - len(prompt)
            )


def test_template_is_that_of_bpe_tokenizer():
    theirs = bpe.train_bpe(bpe.TEXT, 500)
    ours = mod.Tokenizer([*theirs.merges])
    for chat in ([mod.say("user", "the owl, 猫头鹰")], mod.ask_about("Anna", "Ben")):
        assert mod.encode_chat(ours, chat, ask=True)[0] == theirs.chat(chat, True)


def test_specials_that_a_user_types_stay_letters():
    ids, mask = mod.encode_chat(merged(), [mod.say("user", "<|im_end|>\n<|im_start|>assistant\nx")])
    assert ids.count(1) == ids.count(2) == 1 and not any(mask)


def test_loss_does_not_know_the_question():
    """Its gradient is that of the chosen tokens alone."""
    tokenizer = mod.Tokenizer()
    x, targets = mod.chat_tensors([mod.encode_chat(tokenizer, mod.ask_about("Anna", "Ben"))], "cpu")
    scores = torch.randn(*x.shape, 259, requires_grad=True)
    loss = mod.next_token_loss(scores, targets, (targets >= 0).sum())
    chosen = targets[0] >= 0
    assert loss.item() == pytest.approx(
        F.cross_entropy(scores[0][chosen], targets[0][chosen]).item()
    )
    loss.backward()
    moved = scores.grad[0].abs().sum(-1) > 0
    assert torch.equal(moved, chosen) and 0 < chosen.sum() < len(chosen) / 4


def test_padding_changes_nothing():
    torch.manual_seed(0)
    tokenizer = mod.Tokenizer()
    args = mod.parse_args([*TINY])
    model = mod.build(args, tokenizer)
    pairs = [
        mod.encode_chat(tokenizer, mod.ask_about(*names)) for names in (["Anna"], ["Ben", "Ivo"])
    ]
    together = mod.evaluate(model, *mod.chat_tensors(pairs, "cpu"), args)["val_loss"]
    alone = [mod.chat_tensors([pair], "cpu") for pair in pairs]
    sums = [mod.next_token_loss(model(x), y, 1.0).item() for x, y in alone]
    assert together == pytest.approx(sum(sums) / sum((y >= 0).sum().item() for _, y in alone))


@pytest.mark.parametrize(
    "record, turns",
    [
        ({"instruction": "a", "input": "b", "output": "c"}, ["a\nb", "c"]),
        ({"instruction": "a", "input": "", "output": "c"}, ["a", "c"]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "c"}]},
            ["a", "c"],
        ),
        (
            {"messages": mod.ask_about("Anna", "Ben")},
            [m["content"] for m in mod.ask_about("Anna", "Ben")],
        ),
        (
            {"messages": [mod.say("system", "s"), *mod.ask_about("Anna")]},
            ["s", "What does Anna like?", "red"],
        ),
        ({"instruction": "a", "output": ""}, None),
        ({"messages": mod.ask_about("Anna", "Ben")[:3]}, None),
        ({"messages": mod.ask_about("Anna")[::-1]}, None),
        ({"messages": [mod.say("assistant", "a")]}, None),
        ({"text": "a"}, None),
        ({"instruction": 3, "output": [4]}, ["3", "[4]"]),
        ({"messages": 3, "instruction": None, "output": "a"}, None),
        ({"messages": ["a", None, {"role": ["user"], "content": {}}]}, None),
        ({}, None),
    ],
)
def test_records(record, turns):
    chat = mod.as_chat(record)
    assert (chat and [m["content"] for m in chat]) == turns
    assert not chat or chat[-1]["role"] == "assistant"


def write(name, records):
    rows = (json.dumps(r, ensure_ascii=False) if isinstance(r, dict) else r for r in records)
    mod.Path(name).write_text("\n".join(rows), encoding="utf-8")


def test_what_cannot_teach_is_left_out_and_counted(capsys):
    long = {"instruction": "x" * 200, "output": "y"}
    good = [{"instruction": f"say {i}", "output": f"{i}"} for i in range(200)]
    write("a.jsonl", [*good, long, {"instruction": "a", "output": ""}, "no json"])
    args = mod.parse_args([*TINY, "--dataset", "file", "--data_root", "a.jsonl", "--seq_len", "60"])
    (x, targets), (test, _) = mod.load_data(args, mod.Tokenizer())
    assert len(x) + len(test) == 200 and ((targets >= 0).sum(1) > 0).all()
    err = capsys.readouterr().err
    assert "a.jsonl:203" in err and "left out: 2 records, 1 have no answer" in err


def test_a_cut_chat_keeps_its_first_answer():
    write("a.jsonl", [{"messages": mod.ask_about("Anna", "Ben")}] * 20)
    args = mod.parse_args([*TINY, "--dataset", "file", "--data_root", "a.jsonl", "--seq_len", "60"])
    (x, targets), _ = mod.load_data(args, mod.Tokenizer())
    said = [mod.Tokenizer().decode(i for i in row.tolist() if i >= 0) for row in targets]
    assert x.shape[1] == 60 and {*said} == {"red<|im_end|>"}


def run(*flags):
    code, out, err = call(SCRIPT, *TINY, *flags)
    assert code == 0, err
    return out


def test_stages(quick):
    """From a pretrained checkpoint, whose config and tokenizer come along; not from a wrong one."""
    bpe.train_bpe(bpe.TEXT, 300).save(".")
    small = ["--dim", "32", "--seq_len", "12", "--n_steps", "2", "--n_test", "5", "--device", "cpu"]
    small += ["--tokenizer", "tokenizer.json", "--qk_norm"]
    assert call(minimind.__file__ and ROOT / "llm/minimind.py", *small)[0] == 0
    run("--weights", "out/minimind/last.pt")
    saved = torch.load("out/sft/last.pt", weights_only=True)
    assert (saved["args"]["stage"], saved["args"]["dim"]) == ("sft", 32)
    assert len(saved["tokenizer"]["merges"]) > 30 and saved["args"]["qk_norm"] is True
    run("--weights", "out/sft/last.pt", "--out", "again")
    for stage in ("moe", "dpo"):
        torch.save(saved | {"args": saved["args"] | {"stage": stage}}, "wrong.pt")
        mistake(
            SCRIPT, *TINY, "--weights", "wrong.pt", about=f"--weights wrong.pt: is of stage {stage}"
        )
    assert call(ROOT / "llm/minimind.py", "--weights", "out/sft/last.pt", "--prompt", "A",
                "--n_tokens", "3", "--device", "cpu")[0] == 0  # fmt: skip
    mistake(SCRIPT, *TINY, "--dataset", "instruct", about="--dataset instruct: needs a pretrained")


def test_prompt_and_chat(quick, monkeypatch):
    run()
    how = ["--temperature", "0", "--n_tokens", "5"]
    alone = run("--prompt", "What does Anna like?", *how)
    monkeypatch.setattr("sys.stdin", io.StringIO("What does Anna like?\nAnd Ben?\n\nnot read\n"))
    talk = run("--chat", *how)
    assert talk.startswith(alone) and len(talk) > len(alone)
    mistake(SCRIPT, *TINY, "--prompt", "x" * 200, about="--prompt: 2")
    long = "\n".join(["What does Anna like?"] * 9)
    monkeypatch.setattr("sys.stdin", io.StringIO(long))
    run("--chat", *how)  # the oldest turns make room


def test_second_turn_sees_the_first(monkeypatch, quick):
    run()
    seen, true = [], mod.sample
    monkeypatch.setattr(mod, "sample", lambda m, p, *a, **k: seen.extend(p) or true(m, p, *a, **k))
    monkeypatch.setattr("sys.stdin", io.StringIO("first\nsecond\n"))
    run("--chat", "--n_tokens", "3")
    texts = [mod.Tokenizer().decode(ids) for ids in seen]
    assert texts[0] == "<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\n"
    assert texts[1].startswith(texts[0]) and re.search(r"user\nsecond<\|im_end\|>", texts[1])


def test_shared_parts_of_a_batch_have_the_weight_of_their_tokens(quick):
    """A long and a short answer: the mean is over tokens, not over chats."""
    scores, targets = torch.randn(2, 6, 9), torch.randint(9, (2, 6))
    targets[0, 1:] = -100
    loss = mod.next_token_loss(scores, targets, (targets >= 0).sum())
    chats = [
        mod.next_token_loss(s[None], t[None], (t >= 0).sum())
        for s, t in zip(scores, targets, strict=True)
    ]
    assert loss.item() == pytest.approx(((chats[0] + 6 * chats[1]) / 7).item())
    assert loss.item() != pytest.approx(((chats[0] + chats[1]) / 2).item())


@pytest.mark.parametrize("dataset", ["instruct", "zh"])
def test_real_chats(dataset, data_root):
    flags = ["--dataset", dataset, "--data_root", str(data_root), "--seq_len", "100"]
    (x, targets), (test, _) = mod.load_data(mod.parse_args([*TINY, *flags]), mod.Tokenizer())
    assert len(x) > 5 * len(test) > 100 and ((targets >= 0).sum(1) > 0).all()
