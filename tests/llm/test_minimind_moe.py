"""minimind_moe.py: routing by hand, grouped products against a loop, balance, the model around."""

import math

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake

mod, dense = load("llm/minimind_moe.py"), load("llm/minimind.py")
SCRIPT = ROOT / "llm/minimind_moe.py"
TINY = ["--dim", "16", "--seq_len", "12", "--batch_size", "4", "--n_steps", "4"]
TINY += ["--sample_interval", "2", "--n_test", "20", "--device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def block(n=5, shared=1, k=2, dim=16, width=24, dtype=torch.float64):
    torch.manual_seed(0)
    part = mod.MOEFeedForward(dim, width, n, shared, k).to(dtype)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return part


def by_hand(part, x):
    """Token by token: shares, the k best, each expert's own network, the shared one."""
    out = []
    for token in x.flatten(0, -2):
        p = (part.gate.weight @ token).softmax(0)
        best = p.argsort(descending=True)[: part.k]
        total = sum(p[e] for e in best) if part.k > 1 else 1.0
        y = part.shared_experts(token) if part.shared_experts else 0
        for e in best:
            gate, up = (part.experts.gate_up_proj[e] @ token).chunk(2)
            y = y + p[e] / total * (part.experts.down_proj[e] @ (gate * gate.sigmoid() * up))
        out.append(y)
    return torch.stack(out).view_as(x)


def both_ways(function, part, x):
    """Outputs, and gradients of everything in a sum with a weight for each output."""
    part.zero_grad()
    x = x.detach().requires_grad_()
    out = function(part, x)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    (out * slope).sum().backward()
    return [out, x.grad, *(p.grad.clone() for p in part.parameters())]


def gap(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return max(((p - q).abs().max() / max(1, q.abs().max())).item() for p, q in pairs)


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_layer_by_hand(k, shared):
    part, x = block(k=k, shared=shared), torch.randn(2, 7, 16, dtype=torch.float64)
    found = both_ways(lambda p, x: p(x), part, x)
    assert gap(found, both_ways(by_hand, part, x)) < 1e-10
    assert all(grad.abs().max() > 0 for grad in found[2:])  # the router, too, even where k is 1


def test_a_forgotten_weight_is_seen(monkeypatch):
    """Negative control: choices of equal weight, and tokens given back to others."""
    part, x, true = block(), torch.randn(2, 7, 16, dtype=torch.float64), mod.route
    expected = by_hand(part, x)
    assert (part(x) - expected).abs().max() < 1e-10
    with monkeypatch.context() as patch:
        patch.setattr(mod, "route", lambda *a: (*true(*a)[:2], torch.full((14, 2), 0.5)))
        assert (part(x) - expected).abs().max() > 1e-3
    sort = torch.Tensor.argsort
    monkeypatch.setattr(torch.Tensor, "argsort", lambda t, **k: sort(t, **k).roll(1))
    assert (part(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_grouped_product_is_the_loop(tokens, monkeypatch):
    """In float32, where the library has one product for all; experts without a token included."""
    part, x = block(n=8, k=3, dtype=torch.float32), torch.randn(1, tokens, 16)
    calls, grouped = [], F.grouped_mm
    with monkeypatch.context() as patch:
        patch.setattr(F, "grouped_mm", lambda *a, **k: calls.append(1) or grouped(*a, **k))
        ours = both_ways(lambda p, x: p(x), part, x)
    assert len(calls) == 2
    monkeypatch.delattr(F, "grouped_mm")
    assert gap(ours, both_ways(lambda p, x: p(x), part, x)) < 1e-5
    assert gap(ours, both_ways(by_hand, part, x)) < 1e-5


def test_all_tokens_may_go_to_one_expert():
    part = block(n=4, k=1)
    x = torch.randn(1, 9, 16, dtype=torch.float64).abs()
    with torch.no_grad():
        part.gate.weight[2] = 5.0
    found = both_ways(lambda p, x: p(x), part, x)
    assert part.load.tolist() == [0, 0, 1, 0]
    assert gap(found, both_ways(by_hand, part, x)) < 1e-10
    grad = part.experts.down_proj.grad
    assert grad[2].abs().max() > 0 and grad[[0, 1, 3]].abs().max() == 0  # zero, not None


def test_balance_by_hand():
    torch.manual_seed(0)
    p = torch.randn(30, 6).softmax(-1)
    choice = p.topk(2)[1]
    balance, load = mod.load_balance(p, choice)
    count = [sum(e in row for row in choice.tolist()) for e in range(6)]
    total = sum(count[e] / 60 * sum(row[e] for row in p.tolist()) / 30 for e in range(6))
    assert balance.item() == pytest.approx(6 * total)
    assert load.tolist() == pytest.approx([n / 60 for n in count])


def test_balance_is_1_if_alike_and_grows_to_m():
    choice = torch.arange(40).view(20, 2) % 8
    assert mod.load_balance(torch.full((20, 8), 1 / 8), choice)[0].item() == pytest.approx(1)
    one = F.one_hot(torch.zeros(20, dtype=torch.long), 8).float()
    assert mod.load_balance(one, torch.zeros(20, 1, dtype=torch.long))[0].item() == pytest.approx(8)


def test_balance_is_really_added(monkeypatch, tmp_path):
    """The router of a run with lambda is another one; so is the whole loss's gradient."""
    weights = []
    for value in ("0", "1"):
        assert call(SCRIPT, *TINY, "--lambda_balance", value, "--out", value)[0] == 0
        saved = torch.load(f"{value}/last.pt", weights_only=True)["model"]
        weights.append(saved["model.layers.0.mlp.gate.weight"])
    assert (weights[0] - weights[1]).abs().max() > 1e-4


def test_only_the_loss_of_balance_mends_a_collapse(monkeypatch):
    """A router that sends all to one expert, with and without lambda, 60 steps."""
    true, worst = mod.build, {}

    def collapsed(args, tokenizer):
        model = true(args, tokenizer)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.input_layernorm.weight.abs_()
                layer.mlp.gate.weight.zero_()
                layer.mlp.gate.weight[0] = layer.post_attention_layernorm.weight * 0.02
        return model

    monkeypatch.setattr(mod, "build", collapsed)
    flags = [*TINY, "--n_steps", "60", "--sample_interval", "60", "--experts_per_token", "1"]
    for value in ("0", "0.1"):
        code, out, err = call(SCRIPT, *flags, "--lambda_balance", value)
        assert code == 0, err
        words = out.split()
        worst[value] = float(words[words.index("most_load") + 1])
    assert worst["0.1"] < 0.7 * worst["0"]


def network(vocab=11, shared=1, k=2):
    torch.manual_seed(0)
    options = {"theta": 100.0, "seq_len": 16}
    model = mod.MiniMindForCausalLM(vocab, 32, 2, 4, 2, 16, 6, shared, k, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_one_expert_is_the_dense_model():
    """All experts alike and no shared one: shares do not matter, the model is minimind.py's."""
    ours = network(shared=0, k=3)
    theirs = dense.MiniMindForCausalLM(11, 32, 2, 4, 2, 16, theta=100.0, seq_len=16).double().eval()
    state = {k: v for k, v in ours.state_dict().items() if ".mlp." not in k}
    for i, layer in enumerate(ours.model.layers):
        experts = layer.mlp.experts
        with torch.no_grad():
            for part in experts.parameters():
                part.copy_(part[:1].expand_as(part).clone())
        key = f"model.layers.{i}.mlp"
        state[f"{key}.gate_proj.weight"], state[f"{key}.up_proj.weight"] = experts.gate_up_proj[
            0
        ].chunk(2)
        state[f"{key}.down_proj.weight"] = experts.down_proj[0]
    theirs.load_state_dict(state)
    x = torch.randint(11, (2, 9))
    assert (ours(x) - theirs(x)).abs().max() < 1e-10


@pytest.mark.parametrize("cuts", [[20], [12, 5, 3], [1] * 20])
def test_cache_is_the_whole_text_read_again(cuts):
    model, x = network(), torch.randint(11, (3, 20))
    kept = mod.KVCache(model, 3, 20)
    with torch.inference_mode():
        parts = torch.cat([model(part, kept) for part in x.split(cuts, 1)], 1)
        assert (parts - model(x)).abs().max() < 1e-6


SIZES = {"v1-moe": None, "minimind3-moe": 198.42}


@pytest.mark.parametrize("config", SIZES)
def test_sizes_are_those_of_the_notes(config):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, mod.Tokenizer())
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n) / 1e6
    if config == "v1-moe":  # 4 experts and a shared one, in the place of one network of 26.88M
        gates = 8 * 4 * 512 / 1e6
        assert millions == pytest.approx(26.88 + experts + gates, abs=5e-3)
        assert experts == pytest.approx(4 * 8 * 3 * 512 * 1408 / 1e6)
    else:
        assert millions == pytest.approx(SIZES[config], abs=5e-3)


def test_initial_values():
    torch.manual_seed(0)
    args = mod.parse_args(["--dim", "64", "--depth", "8", "--device", "cpu"])
    for name, parameter in mod.build(args, mod.Tokenizer()).named_parameters():
        ends = "o_proj" in name or "down_proj" in name
        std = 0.02 / math.sqrt(16) if ends else 0.02
        assert parameter.ndim == 1 or parameter.std().item() == pytest.approx(std, rel=0.08), name


def test_a_token_costs_what_it_costs_in_the_dense_model():
    """The default width: k + shared experts are together as wide as one network, to rounding."""
    args = mod.parse_args(["--dim", "256"])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, mod.Tokenizer())
    mlp = model.model.layers[0].mlp
    used = 2 * mlp.experts.down_proj.shape[2] + mlp.shared_experts.down_proj.in_features
    assert used == pytest.approx(256 * 8 / 3, rel=0.07)


def test_prompt(tmp_path):
    assert call(SCRIPT, *TINY, "--experts_per_token", "3")[0] == 0
    code, out, err = call(SCRIPT, "--prompt", "Anna", "--n_tokens", "9", "--device", "cpu")
    assert (code, err) == (0, "") and out.startswith("Anna")  # the numbers travel
    saved = torch.load("out/minimind_moe/last.pt", weights_only=True)
    assert saved["args"]["stage"] == "moe" and saved["args"]["experts_per_token"] == 3


def test_other_scripts_refuse_experts(tmp_path):
    assert call(SCRIPT, *TINY)[0] == 0
    moe = ["--weights", "out/minimind_moe/last.pt", "--device", "cpu"]
    mistake(ROOT / "llm/sft.py", *moe, about="--weights")
    mistake(ROOT / "llm/dpo.py", *moe, about="--weights")
    mistake(ROOT / "llm/minimind.py", *moe, "--prompt", "A", about="--weights")


def test_mistakes():
    mistake(SCRIPT, *TINY, "--experts_per_token", "9", about="--experts_per_token 9")
    mistake(SCRIPT, *TINY, "--vocab_size", "5", about="--vocab_size 5")
    mistake(SCRIPT, *TINY, "--heads", "3", about="--heads 3")
    assert call(SCRIPT, *TINY)[0] == 0
    mistake(SCRIPT, *TINY, "--prompt", "x" * 13, about="--prompt: 13 tokens")
    saved = torch.load("out/minimind_moe/last.pt", weights_only=True)["model"]
    torch.save(saved, "bare.pt")
    wide = ["--weights", "bare.pt", "--prompt", "A"]
    mistake(SCRIPT, *TINY, *wide, "--n_routed_experts", "4", about="there but (4, 16) here")


@pytest.mark.parametrize("flags", [["--amp"], ["--n_shared_experts", "0"], ["--qk_norm"]])
def test_variants_train(flags):
    code, _, err = call(SCRIPT, *TINY, *flags)
    assert code == 0, err
