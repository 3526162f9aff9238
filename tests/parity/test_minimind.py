"""minimind.py against transformers: Llama and Qwen3, weights both ways, cache, RoPE, sampling."""

import pytest
import torch
from house import load
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.generation.logits_process import LogitsProcessorList as Chain
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

mod = load("llm/minimind.py")
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
each_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind, seed=0, **rope):
    """Theirs with weights at random, norms included, and ours with the same."""
    config, model = KINDS[kind]
    eps = 1e-6 if kind == "qwen3" else 1e-5
    config = config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=eps,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4} | rope,
    )
    torch.manual_seed(seed)
    theirs = model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    options = {"theta": 1e4, "qk_norm": kind == "qwen3", "seq_len": 64}
    if rope:
        options |= {"scaling": rope["rope_type"], "factor": rope["factor"]}
    ours = mod.MiniMindForCausalLM(97, 64, 3, 4, 2, 112, **options).eval()
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


@each_kind
def test_scores_and_gradients(kind):
    ours, theirs = pair(kind)
    assert worst(ours, theirs) <= 1e-5
    ours, theirs = pair(kind)
    with torch.no_grad():
        ours.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert worst(ours, theirs) > 1e-5


@each_kind
def test_state_dicts_go_both_ways(kind, tmp_path):
    """The same keys; a folder written by theirs is read, ours is read by theirs."""
    ours, theirs = pair(kind)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    fresh, _ = pair(kind, seed=1)
    theirs.load_state_dict(fresh.state_dict(), strict=True)
    x = torch.randint(97, (2, 30))
    assert (theirs(x).logits - fresh(x)).abs().max() < 1e-4
    assert (theirs(x).logits - ours(x)).abs().max() > 1e-2


@each_kind
def test_greedy_generation(kind):
    """64 tokens, from one prompt and from two of different lengths."""
    ours, theirs = pair(kind)
    prompts = [[5, 17, 40, 3, 88, 2, 9], [61, 8, 44]]
    for rows in (prompts[:1], prompts):
        longest = max(map(len, rows))
        x = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        there = theirs.generate(x, attention_mask=mask, max_new_tokens=64, do_sample=False)
        here = torch.stack([*mod.sample(ours, rows, 64, temperature=0)], 1)
        assert torch.equal(here, there[:, longest:])
        assert len({*here[0].tolist()}) > 3  # not one token over and over


@each_kind
def test_greedy_generation_with_penalty(kind):
    ours, theirs = pair(kind)
    x = torch.tensor([[5, 17, 40, 3, 88, 2, 9]])
    how = {"max_new_tokens": 64, "do_sample": False, "repetition_penalty": 1.3}
    there = theirs.generate(x, attention_mask=torch.ones_like(x), **how)[0, 7:]
    here = torch.cat([*mod.sample(ours, x.tolist(), 64, temperature=0, penalty=1.3)])
    assert torch.equal(here, there)


@each_kind
def test_cache(kind):
    """Prefill, a chunk, single tokens: as theirs in one piece."""
    ours, theirs = pair(kind)
    x, kept = torch.randint(97, (2, 60)), mod.KVCache(ours, 2, 60)
    with torch.inference_mode():
        parts = [ours(part, kept) for part in x.split([30, 10, *[1] * 20], 1)]
        gap = (torch.cat(parts, 1) - theirs(x).logits).abs().max()
    assert gap <= 1e-5 * max(1, theirs(x).logits.abs().max().item())


@pytest.mark.parametrize("factor, width, theta, length", [(16, 64, 1e6, 2048), (4, 96, 1e4, 512)])
def test_yarn_frequencies(factor, width, theta, length):
    rope = {"rope_type": "yarn", "rope_theta": theta, "factor": float(factor)}
    rope |= {"original_max_position_embeddings": length}
    config = LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        head_dim=width,
        max_position_embeddings=length * factor,
        rope_parameters=rope,
    )
    w, sharp = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    at = torch.tensor([0, 1, 2])
    cos, sin = mod.rope_angles(at, width, theta, "yarn", float(factor), length)
    angles = torch.outer(at.double(), w.double())
    assert (cos[:, : width // 2] - angles.cos() * sharp).abs().max() < 1e-6
    assert (sin[:, width // 2 :] - angles.sin() * sharp).abs().max() < 1e-6
    cos, _ = mod.rope_angles(at, width, theta, "yarn", factor + 0.01, length)
    assert (cos[:, : width // 2] - angles.cos() * sharp).abs().max() > 1e-5


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_scaled_models(scaling):
    rope = {"rope_type": scaling, "factor": 4.0}
    rope |= {"original_max_position_embeddings": 64} if scaling == "yarn" else {}
    assert worst(*pair("llama", **rope)) <= 1e-5


@pytest.mark.parametrize("top_k, top_p, penalty", [(0, 0.8, 1.0), (20, 1.0, 1.4), (30, 0.7, 1.2)])
def test_law_of_drawing(top_k, top_p, penalty, monkeypatch):
    """Probabilities as those of the chain of processors in transformers."""
    torch.manual_seed(0)
    scores, text = 3 * torch.randn(4, 97), torch.randint(97, (4, 25))
    chain = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(0.7)]
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    chain += [TopPLogitsWarper(top_p)]
    expected = Chain(chain)(text, scores.clone()).softmax(-1)
    seen, laws = torch.zeros(4, 97, dtype=torch.bool).scatter(1, text, True), []
    true = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda p, n: laws.append(p) or true(p, n))
    mod.choose_token(scores, seen, 0.7, top_k, top_p, penalty)
    p = laws[0] / laws[0].sum(-1, keepdim=True)
    assert (p - expected.sort(-1, descending=True)[0][:, : p.shape[1]]).abs().max() < 1e-5
