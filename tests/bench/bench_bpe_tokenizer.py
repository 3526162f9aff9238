"""bpe_tokenizer.py against a rebuild of all counts after each merge, and the tokenizers library."""

from collections import Counter
from itertools import pairwise

from house import load
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

mod = load("llm/bpe_tokenizer.py")
SIZE = 900


def text():
    """Some 300 kB of words that are made of each other."""
    words = mod.word_pattern().findall(mod.TEXT)
    return "".join(words[i * i % len(words)] + words[i * 7 % len(words)] for i in range(40_000))


def rebuild(text):
    """As it is often shown: the text as one list of numbers, all pairs counted for every merge."""
    ids, merges = [*text.encode()], {}
    for new in range(256, 256 + SIZE - 259):
        count = Counter(pairwise(ids))
        pair = max(count, key=count.get)
        ids, merges[pair] = [*mod.merge_in(tuple(ids), pair, new)], new
    return merges


def library(text):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    )


def rows(device):
    sample = text()
    rows = ("a rebuild per merge", rebuild, 0.02), ("tokenizers (Rust)", library, 30.0)
    for peer, theirs, target in rows:
        yield {
            "name": f"bpe_tokenizer training, {len(sample) // 1000}k characters, {SIZE} tokens",
            "peer": peer,
            "target": target,
            "rounds": 3,
            "ours": lambda: mod.train_bpe(sample, SIZE),
            "theirs": lambda theirs=theirs: theirs(sample),
        }
