"""bpe_tokenizer.py against the tokenizers library: merges, numbers, cuts, files, chat template."""

import json
import random
from pathlib import Path

import pytest
from house import load
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

mod = load("llm/bpe_tokenizer.py")
SIGNS = "aAzZ09 \t\n\r_-.,'’\"éñß²³¼Ⅷ٣中文字，。！😀👩‍🚀नमस्ते กำ\u0301\u3000\x85\xa0\x1c\x00𝟘②"


def texts(n=300, seed=0):
    draw = random.Random(seed)
    words = [*SIGNS, "'s", "'ll", "the ", "owl", "猫头鹰", "  ", "\n\n", "12", *mod.SPECIAL]
    return ["".join(draw.choices(words, k=draw.randrange(60))) for _ in range(n)]


def theirs(text, vocab_size):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=mod.SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator([text], trainer)
    return json.loads(made.to_str())["model"]


@pytest.mark.parametrize("seed", range(3))
def test_words_are_cut_alike(seed):
    cut, signs = pre_tokenizers.ByteLevel(add_prefix_space=False), mod.byte_signs()
    for text in texts(seed=seed):
        want = [word for word, _ in cut.pre_tokenize_str(text)]
        found = mod.word_pattern().findall(text)
        assert ["".join(signs[b] for b in word.encode()) for word in found] == want


@pytest.mark.parametrize("source", ["owl", "mixed"])
def test_merges_and_numbers_are_theirs(source):
    text = mod.TEXT if source == "owl" else "".join(texts(400, seed=7))
    ours, model = mod.train_bpe(text, 900), theirs(text, 900)
    signs = mod.byte_signs()
    spell = ["".join(signs[b] for b in symbol) for symbol in ours.symbols]
    assert [[spell[a], spell[b]] for a, b in ours.merges] == [[*pair] for pair in model["merges"]]
    vocab = {word: i for word, i in model["vocab"].items() if i >= len(mod.SPECIAL)}
    assert {spell[i]: i for i in range(len(mod.SPECIAL), len(spell))} == vocab


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    ours = mod.train_bpe(mod.TEXT + "".join(texts(100, seed=3)), 1000)
    ours.save(folder)
    return ours, folder


def test_file_is_read_by_the_library(saved):
    ours, folder = saved
    library = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    for text in [mod.TEXT, *texts(seed=5)]:
        ids = library.encode(text).ids
        assert ours.encode(text, allow_special=True) == ids
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False) == text


def test_a_missing_merge_is_seen(saved):
    ours, folder = saved
    library = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    used = {*ours.encode(mod.TEXT)}
    pair = next(pair for pair, (_, new) in ours.merges.items() if new in used)
    kept = ours.merges.pop(pair)
    ours.known.clear()
    assert ours.encode(mod.TEXT) != library.encode(mod.TEXT).ids
    ours.merges[pair] = kept
    ours.known.clear()
    assert ours.encode(mod.TEXT) == library.encode(mod.TEXT).ids


def test_chat_is_what_the_template_says(saved):
    ours, folder = saved
    library = PreTrainedTokenizerFast.from_pretrained(folder)
    talk = [{"role": "system", "content": "Be an owl."}, {"role": "user", "content": "谁？"}]
    talk += [{"role": "assistant", "content": "猫头鹰\n owl"}]
    for ask in (False, True):
        text = library.apply_chat_template(talk, tokenize=False, add_generation_prompt=ask)
        ids = ours.chat(talk, add_generation_prompt=ask)
        assert ours.decode(ids) == text
        assert library(text)["input_ids"] == ids
