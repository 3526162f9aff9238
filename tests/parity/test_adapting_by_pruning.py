"""adapting_by_pruning.py's encoder against transformers' BertModel with random weights: all hidden
states, gradients, and the keys of its heirs and of older versions."""

import pytest
import torch
from house import load
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

mod = load("pruning/adapting_by_pruning.py")
IDS = torch.randint(1, 60, (3, 11), generator=torch.Generator().manual_seed(0))
IDS[0, 7:] = IDS[1, 10:] = 0  # padding


def theirs(kind=BertModel, **changed):
    torch.manual_seed(0)
    options = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_labels": 2}
    options |= {"num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 16}
    model = kind(BertConfig(**options | changed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases as well
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ours(weights):
    model = mod.BertModel(60, 16, 24, 3, 4)
    model.load_state_dict(weights, strict=True)
    return model


def gaps(a, b):
    """Of hidden states where there is a word, and of the gradient of each weight."""
    x, seen = a(IDS), IDS != 0
    y = b(IDS, attention_mask=seen.long(), output_hidden_states=True).hidden_states
    found = [((p - q)[seen], q[seen]) for p, q in zip(x, y, strict=True)]
    out = torch.randn(24, generator=torch.Generator().manual_seed(1))
    for last in x[-1], y[-1]:
        ((last @ out)[seen] ** 2).sum().backward()
    named = dict(b.named_parameters())
    found += [(p.grad - named[k].grad, named[k].grad) for k, p in a.named_parameters()]
    return max((d.abs().max() / q.abs().max().clamp(min=1)).item() for d, q in found)


def test_hidden_states_and_gradients():
    b = theirs()
    assert gaps(ours(b.state_dict()), b) < 1e-5


@pytest.mark.parametrize("what", ["hidden_act", "layer_norm_eps", "type"])
def test_differences_are_seen(what):
    changed = {"hidden_act": "relu"} if what == "hidden_act" else {}
    changed |= {"layer_norm_eps": 1e-1} if what == "layer_norm_eps" else {}
    b = theirs(**changed)
    a = ours(b.state_dict())
    if what == "type":
        kinds = a.embeddings["token_type_embeddings"].weight.detach()
        kinds.copy_(kinds.roll(1, 0))
    assert gaps(a, b) > 1e-4


def test_heirs_and_old_names(tmp_path):
    b = theirs(BertForSequenceClassification)
    assert "bert.encoder.layer.0.attention.self.query.weight" in b.state_dict()
    saved = {k: v for k, v in b.state_dict().items() if not k.startswith("classifier")}
    old = {k.replace("Norm.weight", "Norm.gamma"): v for k, v in saved.items()}
    old = {k.replace("Norm.bias", "Norm.beta"): v for k, v in old.items()}
    old |= {"cls.predictions.bias": torch.zeros(60)}
    old |= {"bert.embeddings.position_ids": torch.arange(16)}
    for weights in saved, old:
        assert gaps(ours(weights), b.bert) < 1e-5
        b.zero_grad()
    torch.save(old, tmp_path / "bert.pt")
    sizes = ["--vocab_size", "60", "--seq_len", "16", "--dim", "24", "--weights"]
    args = mod.parse_args([*sizes, str(tmp_path / "bert.pt"), "--device", "cpu"])
    assert args.pretrain_epochs == 0
    assert gaps(mod.build(args)[0], b.bert) < 1e-5


def test_word_pieces(tmp_path):
    words = [*mod.MARKS, "un", "##aff", "##able", "##a", "af", "a", ".", "runn", "##ing", "##i"]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(words), encoding="utf-8")
    peer, ids = BertTokenizer(str(file)), {word: at for at, word in enumerate(words)}
    for text in ("unaffable .", "running a un", "af affa xyz unx", "a", "unaaaable"):
        found = [i for word in text.split() for i in mod.pieces(word, ids)]
        assert peer.encode(text) == [2, *found, 3]
