"""Identities of minimind.py: layers and RoPE by hand, cache, padding, sampling, data, DDP."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake

mod, bpe = load("llm/minimind.py"), load("llm/bpe_tokenizer.py")
SCRIPT = ROOT / "llm/minimind.py"
TINY = ["--dim", "16", "--seq_len", "12", "--batch_size", "4", "--n_steps", "4"]
TINY += ["--sample_interval", "2", "--n_test", "20", "--device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


scalings = pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "yarn"])


def network(vocab=11, heads=4, kv_heads=2, depth=2, **options):
    torch.manual_seed(0)
    options = {"theta": 100.0, "seq_len": 16} | options
    model = mod.MiniMindForCausalLM(vocab, 32, depth, heads, kv_heads, 48, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def angles_by_hand(n, width, theta, scaling, s, length):
    """w_i of every pair, one by one, and the factor of cos and sin."""
    if scaling == "ntk":
        theta = theta * s ** (width / (width - 2))
    w = [theta ** (-2 * i / width) for i in range(width // 2)]
    if scaling == "linear":
        w = [x / s for x in w]
    if scaling == "yarn":
        edges = [width * math.log(length / (2 * math.pi * turns)) for turns in (32, 1)]
        low, high = (edge / (2 * math.log(theta)) for edge in edges)
        low, high = max(0, math.floor(low)), min(width - 1, math.ceil(high))
        r = [min(1, max(0, (i - low) / (high - low))) for i in range(width // 2)]
        w = [(1 - a) * x + a * x / s for a, x in zip(r, w, strict=True)]
    return [n * x for x in w], 0.1 * math.log(s) + 1 if scaling == "yarn" else 1.0


@scalings
def test_angles(scaling):
    """Numbers of section 4 of YaRN: pairs 5 and 14 of a head of 64, theta 1e6, 2048 tokens."""
    cos, sin = mod.rope_angles(torch.tensor([0, 1, 77]), 64, 1e6, scaling, 16.0, 2048)
    for row, n in enumerate((0, 1, 77)):
        angle, sharp = angles_by_hand(n, 64, 1e6, scaling, 16.0, 2048)
        expected = torch.tensor([math.cos(a) * sharp for a in angle * 2])
        assert (cos[row] - expected).abs().max() < 1e-5
        expected = torch.tensor([math.sin(a) * sharp for a in angle * 2])
        assert (sin[row] - expected).abs().max() < 1e-5
    plain = mod.rope_angles(torch.tensor([1]), 64, 1e6)[1][0] if scaling == "yarn" else None
    if scaling == "yarn":
        assert sharp == pytest.approx(1.277, abs=1e-3)
        same = (sin[1] / sharp - plain).abs()[:32] < 1e-7
        assert same[:6].all() and not same[6:15].any()


def test_slow_and_fast_pairs_of_ntk():
    """The fastest pair stays, the slowest is stretched by s, as the linear form does to all."""
    w = [mod.rope_angles(torch.ones(1), 32, 1e4, kind, 4.0)[1][0, :16] for kind in ("none", "ntk")]
    ratio = w[0].asin() / w[1].asin()
    assert ratio[0] == pytest.approx(1) and ratio[-1] == pytest.approx(4, rel=1e-4)


def test_turned_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 9, 1, 8, dtype=torch.float64)

    def scores(n):
        angles = mod.rope_angles(n + torch.arange(9), 8, 1e4)
        a, b = mod.rope_turn(q, *angles)[0, :, 0], mod.rope_turn(k, *angles)[0, :, 0]
        return a @ b.T

    assert (scores(0) - scores(500)).abs().max() < 1e-4  # angles are float32
    assert (scores(0) - q[0, :, 0] @ k[0, :, 0].T).abs().max() > 0.1


def layer_by_hand(model, x):
    """Scores of tokens x (B, L): each head, each pair of tokens."""
    part, (batch, length) = model.model, x.shape
    x = part.embed_tokens(x)

    def norm(x, layer):
        return layer.weight * x / (x.square().mean(-1, keepdim=True) + layer.eps).sqrt()

    for layer in part.layers:
        attn, z = layer.self_attn, norm(x, layer.input_layernorm)
        width, heads = attn.width, attn.q_proj.out_features // attn.width
        q, k, v = (z @ p.weight.T for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        out = torch.zeros(batch, length, heads * width, dtype=x.dtype)
        for h in range(heads):
            g = h // (heads // attn.kv_heads)
            mine = q[..., h * width : (h + 1) * width]
            key, value = (t[..., g * width : (g + 1) * width] for t in (k, v))
            if hasattr(attn.q_norm, "weight"):
                mine, key = norm(mine, attn.q_norm), norm(key, attn.k_norm)
            turned = []
            for t in (mine, key):
                rows = []
                for n in range(length):
                    angle, _ = angles_by_hand(n, width, part.rope["theta"], "none", 1, 16)
                    a, b = t[:, n, : width // 2], t[:, n, width // 2 :]
                    cos = torch.tensor([math.cos(w) for w in angle], dtype=x.dtype)
                    sin = torch.tensor([math.sin(w) for w in angle], dtype=x.dtype)
                    rows.append(torch.cat([a * cos - b * sin, b * cos + a * sin], -1))
                turned.append(torch.stack(rows, 1))
            for n in range(length):
                score = (turned[0][:, n : n + 1] * turned[1][:, : n + 1]).sum(-1) / width**0.5
                mixed = (score.softmax(-1)[..., None] * value[:, : n + 1]).sum(1)
                out[:, n, h * width : (h + 1) * width] = mixed
        x = x + out @ attn.o_proj.weight.T
        z, mlp = norm(x, layer.post_attention_layernorm), layer.mlp
        gate = z @ mlp.gate_proj.weight.T
        x = x + (gate * gate.sigmoid() * (z @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
    return norm(x, part.norm) @ part.embed_tokens.weight.T


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_model_by_hand(qk_norm, kv_heads, monkeypatch):
    model, x = network(kv_heads=kv_heads, qk_norm=qk_norm), torch.randint(11, (2, 9))
    expected = layer_by_hand(model, x)
    assert (model(x) - expected).abs().max() < 1e-6  # angles are float32
    true = mod.rope_angles
    monkeypatch.setattr(mod, "rope_angles", lambda n, *a, **k: true(1.01 * n, *a, **k))
    assert (model(x) - expected).abs().max() > 1e-4


@scalings
@pytest.mark.parametrize("cuts", [[20], [12, 5, 3], [1] * 20, [19, 1], [1, 18, 1]])
def test_cache_is_the_whole_text_read_again(cuts, scaling):
    """Prefill, chunks and single tokens, at any cut."""
    model, x = network(scaling=scaling, factor=4.0), torch.randint(11, (3, 20))
    kept = mod.KVCache(model, 3, 25)
    with torch.inference_mode():
        parts = torch.cat([model(part, kept) for part in x.split(cuts, 1)], 1)
        assert (parts - model(x)).abs().max() < 1e-6 and kept.n == 20
        assert (model(x, last=True) - model(x)[:, -1:]).abs().max() < 1e-12


def test_a_cache_that_forgets_where_it_is_is_seen(monkeypatch):
    """Negative control: angles that begin anew with every piece, or a mask aligned to the left."""
    model, x = network(), torch.randint(11, (3, 20))
    true, whole = mod.rope_angles, model(x)

    def read():
        kept = mod.KVCache(model, 3, 20)
        with torch.inference_mode():
            return torch.cat([model(part, kept) for part in x.split([12, 8], 1)], 1)

    assert (read() - whole).abs().max() < 1e-6
    with monkeypatch.context() as patch:
        patch.setattr(mod, "rope_angles", lambda n, *a, **k: true(n - n[0], *a, **k))
        assert (read() - whole).abs().max() > 1e-3
    attention = F.scaled_dot_product_attention

    def left(q, k, v, mask, *rest, **flags):
        mask = None if mask is None else torch.ones(mask.shape, dtype=torch.bool).tril()
        return attention(q, k, v, mask, *rest, **flags)

    monkeypatch.setattr(F, "scaled_dot_product_attention", left)
    assert (read() - whole).abs().max() > 1e-3


def test_padding_in_front_changes_nothing():
    model, x = network(), torch.randint(11, (3, 12))
    pad = torch.tensor([0, 5, 11])
    ours, kept = model(x, pad=pad), mod.KVCache(model, 3, 12)
    with torch.inference_mode():
        again = torch.cat([model(part, kept, pad) for part in x.split([11, 1], 1)], 1)
    for row, n in enumerate(pad):
        alone = model(x[row : row + 1, n:])[0]
        assert (ours[row, n:] - alone).abs().max() < 1e-6
        assert (again[row, n:] - alone).abs().max() < 1e-6
    assert (ours[1] - model(x)[1]).abs().max() > 1e-3 and ours.isfinite().all()


def test_nothing_sees_the_future():
    model, x = network(), torch.randint(11, (1, 20))
    y = x.clone()
    y[0, 12] = (y[0, 12] + 1) % 11
    change = (model(x) - model(y)).abs().amax((0, 2))
    assert change[:12].max() == 0 and change[12:].min() > 0


def test_initial_values():
    torch.manual_seed(0)
    model = mod.MiniMindForCausalLM(500, 64, 8, 4, 2, 192, theta=1e4)
    for name, parameter in model.named_parameters():
        ends = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 0.02 / math.sqrt(16) if ends else 0.02
        assert parameter.ndim == 1 or parameter.std().item() == pytest.approx(std, rel=0.05), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


SIZES = {"v1-small": 26.88, "minimind2-small": 25.83, "minimind3": 63.91}


@pytest.mark.parametrize("config", SIZES)
def test_sizes_are_those_of_the_notes(config):
    args = mod.parse_args(["--config", config])
    args.device = "meta"
    with torch.device("meta"):
        model = mod.build(args, mod.Tokenizer())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        SIZES[config], abs=5e-3
    )


def draws(model, prompts, n, **how):
    return torch.stack([*mod.sample(model, prompts, n, **how)], 1).tolist()


def test_greedy_batch_equals_greedy_alone():
    """Rows of different lengths, with and without penalty, against reading all text anew."""
    model, prompts = network(), [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2]]
    for penalty in (1.0, 1.5):
        ours = draws(model, prompts, 15, temperature=0, penalty=penalty)
        for prompt, row in zip(prompts, ours, strict=True):
            text = [*prompt]
            for _ in range(15):
                scores = model(torch.tensor([text]))[0, -1]
                for i in {*text}:
                    scores[i] = scores[i] / penalty if scores[i] > 0 else scores[i] * penalty
                text.append(scores.argmax().item())
            assert row == text[len(prompt) :]
    assert draws(model, prompts, 15, temperature=0) != ours
    assert draws(model, prompts, 15, top_k=1) == draws(model, prompts, 15, temperature=0)
    assert draws(model, prompts, 15, top_p=0.0) == draws(model, prompts, 15, temperature=0)
    assert max(max(row) for row in draws(model, prompts, 40, n_tokens=3)) < 3


def test_stop():
    model, prompts = network(), [[1, 2, 3], [4], [5, 6]]
    free = draws(model, prompts, 30, temperature=0)
    for stop in {*free[0]}:
        ours = draws(model, prompts, 30, temperature=0, stop=stop)
        for row, whole in zip(ours, free, strict=True):
            end = whole.index(stop) + 1 if stop in whole else 30
            assert row[:end] == whole[:end][: len(row)] and {*row[end:]} <= {stop}
        ends = [row.index(stop) + 1 if stop in row else 30 for row in free]
        assert len(ours[0]) == max(ends)


@pytest.mark.parametrize("flags", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.7}, {}])
def test_draws_have_the_law_of_the_flags(flags):
    torch.manual_seed(0)
    scores = torch.tensor([2.0, 0.0, 1.5, 1.0, -1.0, 0.5])
    p = (scores / 0.8).softmax(0)
    order = p.argsort(descending=True).tolist()[: flags.get("top_k") or None]
    p = {i: p[i].item() / sum(p[j].item() for j in order) for i in order}
    kept, total = {}, 0.0
    for i in order:
        if total < flags.get("top_p", 1.0):
            kept[i] = p[i]
        total += p[i]
    drawn = mod.choose_token(scores.expand(20_000, 6), temperature=0.8, **flags).flatten()
    share = drawn.bincount(minlength=6) / 20_000
    for i in range(6):
        assert share[i] == pytest.approx(kept.get(i, 0) / sum(kept.values()), abs=0.012)


def test_loss_by_hand():
    scores, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    targets[0, 3] = -100
    parts = [
        -scores[b, n].log_softmax(0)[targets[b, n]]
        for b in range(2)
        for n in range(5)
        if targets[b, n] >= 0
    ]
    assert mod.next_token_loss(scores, targets, 9).item() == pytest.approx(sum(parts).item() / 9)


def test_tokenizer_is_that_of_bpe_tokenizer(tmp_path):
    theirs = bpe.train_bpe(bpe.TEXT, 600)
    theirs.save(tmp_path)
    args = mod.parse_args(["--tokenizer", str(tmp_path / "tokenizer.json")])
    ours, plain = mod.read_tokenizer(args, mod.Tokenizer()), mod.Tokenizer()
    assert ours.symbols == theirs.symbols
    for text in (bpe.TEXT, "aaaa aaa bbabab", "é²Ⅷ😀<|im_end|>", "", "猫头鹰 owl\r\n\t x"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == plain.decode(plain.encode(text)) == text
        assert plain.encode(text) == [plain.known[bytes([b])] for b in text.encode()]
    again = mod.Tokenizer()
    again.load_state_dict(ours.state_dict())
    assert again.encode(bpe.TEXT) == theirs.encode(bpe.TEXT) and again.symbols == ours.symbols


def test_bits_per_byte_of_any_tokenizer():
    """A model that knows nothing: log2(V) bits a token, whose bytes are 0, 1 or 2."""
    tokenizer = mod.Tokenizer([(3 + 64, 3 + 65)])
    model = network(len(tokenizer.symbols))
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    args = mod.parse_args(TINY)
    test = torch.tensor([260 - 1] * 6 + [0] * 5 + [50] * 2)
    found = mod.evaluate(model, test, args, tokenizer)
    bits = 12 * math.log2(260) / (5 * 2 + 2)
    assert tokenizer.symbols[259] == b"ab" and found["bits_per_byte"] == pytest.approx(bits)
    assert found["val_loss"] == pytest.approx(math.log(260))
    assert found["perplexity_12"] == pytest.approx(260)


def test_matrices_decay_and_nothing_else():
    args = mod.parse_args(TINY)
    decay, plain = mod.adamw(args, mod.build(args, mod.Tokenizer())).param_groups
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decay["params"]} == {2} and {p.ndim for p in plain["params"]} == {1}


def run(out, *flags):
    code, _, err = call(SCRIPT, *TINY, *flags, "--out", out)
    assert code == 0, err
    return torch.load(f"{out}/last.pt", weights_only=True)


def losses(out):
    rows = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["loss"] for row in rows]


@pytest.mark.parametrize("accum", [2, 4])
def test_parts_of_a_batch_add_up(tmp_path, accum):
    whole, parts = run(tmp_path / "a"), run(tmp_path / "b", "--accum", accum)
    for key, value in whole["model"].items():
        assert torch.allclose(value, parts["model"][key], atol=1e-5), key
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-5)


def test_schedule(tmp_path):
    """Up within --warmup steps, then along a cosine to a tenth of --lr."""
    run(tmp_path, "--n_steps", "8", "--warmup", "2", "--sample_interval", "1", "--lr", "1")
    rows = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(row)["lr"] for row in rows]
    cosine = [0.55 + 0.45 * math.cos(math.pi * n / 6) for n in range(7)]
    assert found == pytest.approx([0.55, *cosine])


def test_two_processes_equal_one(tmp_path):
    """torchrun with two ranks: the losses of 20 steps as those of one process, which takes twice
    as many rows a step; --accum as well."""
    flags = ["--n_steps", "20", "--sample_interval", "1", "--accum", "2"]
    run(tmp_path / "one", *flags)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", f"{SCRIPT}", *TINY, *flags, "--out", f"{tmp_path / 'two'}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("perplexity_48") == 1
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(two) == 20 and one == pytest.approx(two, abs=1e-4)
    weights = [torch.load(tmp_path / key / "last.pt", weights_only=True) for key in ("one", "two")]
    for key, value in weights[0]["model"].items():
        assert torch.allclose(value, weights[1]["model"][key], atol=1e-4), key
    other = run(tmp_path / "other", *flags, "--batch_size", "2", "--accum", "1")
    assert other and losses(tmp_path / "other") != pytest.approx(one, abs=1e-4)


def test_config_and_tokenizer_travel():
    """--prompt and --weights need no flag of the model, nor the tokenizer's file."""
    bpe.train_bpe(bpe.TEXT, 300).save(".")
    flags = ["--tokenizer", "tokenizer.json", "--heads", "2", "--qk_norm", "--rope_theta", "77"]
    run("out/minimind", *flags)
    os.remove("tokenizer.json")
    code, out, err = call(SCRIPT, "--prompt", "Anna", "--n_tokens", "9", "--device", "cpu")
    assert (code, err) == (0, "") and out.startswith("Anna")
    code, out, _ = call(SCRIPT, "--prompt", "Anna", "Ben", "--n_tokens", "9", "--device", "cpu")
    assert code == 0 and out.startswith("Anna") and "\nBen" in out
    flags = ["--weights", "out/minimind/last.pt", "--out", "b", "--device", "cpu"]
    assert call(SCRIPT, "--n_steps", "0", "--n_test", "5", *flags)[0] == 0
    assert call(SCRIPT, "--n_steps", "2", "--n_test", "5", *flags)[0] == 0
    assert torch.load("b/last.pt", weights_only=True)["args"]["heads"] == 2


def test_stream_is_the_batch(tmp_path):
    run(tmp_path)
    flags = ["--device", "cpu", "--out", tmp_path, "--temperature", "0", "--n_tokens", "30"]
    alone = call(SCRIPT, "--prompt", "Anna likes", *flags)[1]
    both = call(SCRIPT, "--prompt", "Anna likes", "Ben", *flags)[1]
    assert both.startswith(alone)


def test_perplexity_by_length_and_scaling(tmp_path):
    """Ten facts by heart: plain RoPE loses beyond the length of training, where all forms differ;
    that length comes with the checkpoint."""
    long = ["--dim", "32", "--n_steps", "150", "--seq_len", "24", "--batch_size", "16"]
    run(tmp_path, *long, "--sample_interval", "150", "--n_test", "40")
    found = {}
    for kind in ("none", "linear", "ntk", "yarn"):
        args = mod.parse_args([*TINY, "--rope_scaling", kind, "--rope_factor", "4"])
        tokenizer, _ = mod.adopt(args, tmp_path / "last.pt")
        model = mod.build(args, tokenizer)
        mod.load_weights(tmp_path / "last.pt", model)
        test = mod.load_data(args, tokenizer)[1]
        found[kind] = mod.evaluate(model, test, args, tokenizer, (1, 2, 4))
        assert [*found[kind]][2:] == ["perplexity_24", "perplexity_48", "perplexity_96"]
    last = {kind: metrics["perplexity_96"] for kind, metrics in found.items()}
    assert len({*last.values()}) == 4
    assert last["none"] > 1.05 * found["none"]["perplexity_24"]


def test_records_and_bad_lines(tmp_path, capsys):
    good = "\n".join(json.dumps({"text": f"row {i}\u2028"}) for i in range(150))
    (tmp_path / "a.jsonl").write_text(good + "\nno json\n", encoding="utf-8")
    assert len(mod.read_records(tmp_path / "a.jsonl")) == 150
    assert f"{tmp_path}/a.jsonl:151" in capsys.readouterr().err
    args = mod.parse_args([*TINY, "--dataset", "file", "--data_root", f"{tmp_path}/a.jsonl"])
    train, test = mod.load_data(args, mod.Tokenizer())
    assert (torch.cat([train, test]) == 0).sum() == 150
    (tmp_path / "b.jsonl").write_text(good + "\n[]\n3\nx", encoding="utf-8")
    mistake(SCRIPT, *TINY, "--dataset", "file", "--data_root", f"{tmp_path}/b.jsonl", about=":152")


def test_mistakes(tmp_path):
    mistake(SCRIPT, *TINY, "--out", "none", "--prompt", "the", about="--weights")
    mistake(SCRIPT, *TINY, "--vocab_size", "5", about="--vocab_size 5")
    mistake(SCRIPT, *TINY, "--heads", "3", about="--heads 3")
    mistake(SCRIPT, *TINY, "--kv_heads", "3", about="--kv_heads 3")
    mistake(SCRIPT, *TINY, "--accum", "3", about="--batch_size 4")
    mistake(SCRIPT, *TINY, "--tokenizer", "none.json", about="--tokenizer")
    (tmp_path / "odd.json").write_text('{"model": {"vocab": {"~": 3}, "merges": []}}')
    mistake(SCRIPT, *TINY, "--tokenizer", "odd.json", about="--tokenizer")
    run("out/minimind")
    mistake(SCRIPT, *TINY, "--prompt", "x" * 13, about="--prompt: 13 tokens")
    mistake(SCRIPT, *TINY, "--prompt", "", about="--prompt: 0 tokens")
    scaled = ["--rope_scaling", "linear", "--rope_factor", "2"]
    assert call(SCRIPT, *TINY, "--prompt", "x" * 13, *scaled, "--n_tokens", "2")[0] == 0
    bpe.train_bpe(bpe.TEXT, 300).save(".")
    other = ["--tokenizer", "tokenizer.json", "--prompt", "Anna"]
    mistake(SCRIPT, *TINY, *other, about="--weights out/minimind/last.pt")
    run("out/merged", "--tokenizer", "tokenizer.json")
    bpe.train_bpe(bpe.TEXT, 320).save(".")
    other += ["--out", "out/merged"]
    mistake(SCRIPT, *TINY, *other, about="--tokenizer tokenizer.json: not that")
    saved = torch.load("out/minimind/last.pt", weights_only=True)
    torch.save(saved["model"], "bare.pt")
    assert (
        call(SCRIPT, *TINY, "--prompt", "Anna", "--weights", "bare.pt", "--n_tokens", "2")[0] == 0
    )
    mistake(
        SCRIPT, *TINY, "--dim", "32", "--prompt", "A", "--weights", "bare.pt", about="(259, 16)"
    )


@pytest.mark.parametrize("flags", [["--amp"], ["--dropout", "0.1"], ["--qk_norm"]])
def test_variants_train(tmp_path, flags):
    run(tmp_path, *flags)


def test_shakespeare(data_root):
    flags = ["--config", "tinyshakespeare", "--data_root", str(data_root), "--device", "cpu"]
    train, test = mod.load_data(mod.parse_args(flags), mod.Tokenizer())
    assert len(train) == 1_003_855 and len(test) == 111_540  # and an end of the document
