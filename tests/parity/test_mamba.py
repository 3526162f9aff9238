"""mamba.py against transformers' MambaForCausalLM: logits, gradients, cached steps, checkpoints."""

import pytest
import torch
import torch.nn.functional as F
from house import load

transformers = pytest.importorskip("transformers")
mamba = load("ssm/mamba.py")
CONFIG = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 16}


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


def pair():
    """Theirs with nothing left at 0 or 1, and ours with the state dict of theirs, strictly."""
    torch.manual_seed(0)
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**CONFIG, use_mambapy=False))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = mamba.MambaLM(97, 64, 3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs.eval()


def test_logits_and_gradients():
    ours, theirs = pair()
    torch.manual_seed(1)
    x = torch.randint(97, (3, 42))
    mine, _ = ours(x[:, :-1])
    yours = theirs(x[:, :-1]).logits
    assert close(mine, yours) and yours.std() > 0.5
    for scores in (mine, yours):
        F.cross_entropy(scores.mT, x[:, 1:]).backward()
    theirs.backbone.embedding = theirs.backbone.embeddings
    known = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        key = name.replace("embeddings", "embedding")
        if key in known:
            assert close(known.pop(key).grad, parameter.grad), key
    assert not known


@pytest.mark.parametrize("what", ["dt_proj.bias", "conv1d.weight", "A_log", "norm.weight"])
def test_a_wrong_weight_is_seen(what):
    ours, theirs = pair()
    x = torch.randint(97, (2, 40))
    with torch.no_grad():
        layer = ours.backbone.layers[1]
        dict(layer.named_parameters()).get(f"mixer.{what}", layer.norm.weight).mul_(1.02)
        assert not close(ours(x)[0], theirs(x).logits)


@pytest.mark.parametrize("split", [1, 5, 38])
def test_going_on_from_a_state_equals_transformers(split):
    """A first part at once, then the rest symbol by symbol, against theirs all at once."""
    ours, theirs = pair()
    x = torch.randint(97, (2, 39))
    with torch.inference_mode():
        scores, states = ours(x[:, :split])
        parts = [scores]
        for symbol in x[:, split:].split(1, 1):
            scores, states = ours(symbol, states)
            parts.append(scores)
        assert close(torch.cat(parts, 1), theirs(x).logits)


def test_greedy_text_equals_transformers():
    ours, theirs = pair()
    x = torch.randint(97, (1, 9))
    with torch.inference_mode():
        mine = mamba.sample(ours, x, 20, temperature=0)
        flags = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(torch.cat([x, mine], 1), theirs.generate(x, **flags))


def test_checkpoints_without_the_tied_head():
    """As safetensors store them; a foreign key is still refused."""
    ours, theirs = pair()
    weights = {k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    fresh = mamba.MambaLM(97, 64, 3)
    fresh.load_state_dict(weights, strict=True)
    assert torch.equal(fresh.lm_head.weight, ours.lm_head.weight)
    with pytest.raises(RuntimeError, match="stranger"):
        fresh.load_state_dict(weights | {"stranger": torch.zeros(1)})


@pytest.mark.parametrize("size", ["130m", "370m", "1.4b", "2.8b"])
def test_sizes(size):
    """Names, shapes and number of the parameters of transformers' model of that size."""
    args = mamba.parse_args(["--config", size])
    flags = {"vocab_size": 50_280, "hidden_size": args.dim, "num_hidden_layers": args.depth}
    with torch.device("meta"):
        theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**flags))
        ours = mamba.MambaLM(50_280, args.dim, args.depth, args.d_state)
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    expected = {k.replace("embeddings", "embedding"): v for k, v in theirs.state_dict().items()}
    assert shapes == {k: v.shape for k, v in expected.items()}
    millions = {"130m": 129, "370m": 372, "1.4b": 1372, "2.8b": 2768}[size]
    assert sum(p.numel() for p in ours.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
