"""minimind_moe.py against transformers: Mixtral, which has no shared experts, weights both ways."""

import pytest
import torch
from house import load
from transformers import MixtralConfig, MixtralForCausalLM

mod = load("llm/minimind_moe.py")


def pair(k, seed=0):
    """Theirs with weights at random, norms included, and ours with the same."""
    config = MixtralConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=6,
        num_experts_per_tok=k,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    torch.manual_seed(seed)
    theirs = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = mod.MiniMindForCausalLM(97, 64, 3, 4, 2, 48, 6, 0, k, theta=1e4).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def worst(ours, theirs):
    """Largest difference of scores and gradients, in units of the largest number if above 1."""
    x, y = torch.randint(97, (2, 3, 40), generator=torch.Generator().manual_seed(1))
    a, b = ours(x), theirs(x).logits
    gaps = [(a, b)]
    mod.next_token_loss(a, y, y.numel()).backward()
    torch.nn.functional.cross_entropy(b.flatten(0, 1), y.flatten()).backward()
    others = dict(theirs.named_parameters())
    gaps += [(p.grad, others[key].grad) for key, p in ours.named_parameters() if key in others]
    assert len(gaps) == len(others) + 1
    return max(((p - q).abs().max() / max(1, q.abs().max())).item() for p, q in gaps)


@pytest.mark.parametrize("k", [2, 3])
def test_scores_and_gradients(k):
    ours, theirs = pair(k)
    assert worst(ours, theirs) <= 1e-5
    ours, theirs = pair(k)
    with torch.no_grad():
        ours.model.layers[1].mlp.experts.down_proj.mul_(1.001)
    assert worst(ours, theirs) > 1e-5


def test_state_dicts_go_both_ways():
    ours, theirs = pair(2)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    fresh, _ = pair(2, seed=1)
    theirs.load_state_dict(fresh.state_dict(), strict=True)
    x = torch.randint(97, (2, 30))
    assert (theirs(x).logits - fresh(x)).abs().max() < 1e-4
    assert (theirs(x).logits - ours(x)).abs().max() > 1e-2


def test_greedy_generation():
    ours, theirs = pair(2)
    x = torch.tensor([[5, 17, 40, 3, 88, 2, 9]])
    for penalty in (1.0, 1.3):  # which keeps such a small model from one word over and over
        how = {"max_new_tokens": 64, "do_sample": False, "repetition_penalty": penalty}
        there = theirs.generate(x, attention_mask=torch.ones_like(x), **how)[0, 7:]
        here = torch.cat([*mod.sample(ours, x.tolist(), 64, temperature=0, penalty=penalty)])
        assert torch.equal(here, there)
    assert len({*here.tolist()}) > 5


@pytest.mark.parametrize("k", [1, 2])
def test_balance(k):
    """Theirs pools the layers and is k, not 1, where all experts are alike."""
    ours, theirs = pair(k)
    x = torch.randint(97, (2, 30))
    with torch.no_grad():
        ours(x)
        out = theirs(x, output_router_logits=True)
        logits = torch.cat([part.reshape(-1, 6) for part in out.router_logits])
    p = logits.softmax(-1)
    balance, _ = mod.load_balance(p, p.topk(k)[1])
    assert k * balance.item() == pytest.approx(out.aux_loss.item(), rel=1e-5)
    if k == 1:  # where they have a weight of one, and deeper layers read other numbers
        return
    each = [layer.mlp.balance.item() for layer in ours.model.layers]
    apart = [mod.load_balance(q, q.topk(k)[1])[0].item() for q in p.chunk(3)]
    assert each == pytest.approx(apart, rel=1e-4)
