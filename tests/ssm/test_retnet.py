"""Identities of retnet.py: three forms, decay and rotation by brute force, states, the model."""

import cmath
import math
import shlex
import time

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake

retnet, mamba = load("ssm/retnet.py"), load("ssm/mamba.py")
RETNET = ROOT / "ssm/retnet.py"
TINY = shlex.split("--dim 16 --depth 2 --heads 2 --seq_len 40 --batch_size 4 --n_steps 4")
TINY += shlex.split("--sample_interval 2 --device cpu")
every_form = pytest.mark.parametrize("form", retnet.FORMS)


def random_inputs(length, heads=3, width=4, dtype=torch.float64):
    """q, k, v and a state behind 9 steps, which ask for gradients."""
    torch.manual_seed(length)
    q, k = torch.randn(2, 2, heads, length, width, dtype=dtype)
    v = torch.randn(2, heads, length, 2 * width, dtype=dtype)
    S = torch.randn(2, heads, width, 2 * width, dtype=dtype)
    return [x.requires_grad_() for x in (q, k, v, S)]


def by_hand(q, k, v, S, n=9):
    """Scores of every pair of steps as complex numbers, number by number, then the sum."""
    heads, length, width = q.shape[1:]
    y = torch.zeros(*v.shape, dtype=torch.float64)
    theta = [10_000 ** (-j / (width // 2 - 1)) for j in range(width // 2)]
    for h in range(heads):
        gamma = 1 - 2 ** (-5 - h)
        for i in range(length):
            for m in range(i + 1):
                score = 0
                for j, angle in enumerate(theta):
                    a = torch.complex(q[:, h, i, 2 * j], q[:, h, i, 2 * j + 1])
                    b = torch.complex(k[:, h, m, 2 * j], k[:, h, m, 2 * j + 1])
                    score = score + (a * b.conj() * cmath.exp(1j * angle * (i - m))).real
                score = score * gamma ** (i - m) / math.sqrt(width)
                y[:, h, i] += score[:, None] * v[:, h, m]
            turned = []
            for j, angle in enumerate(theta):
                a = torch.complex(q[:, h, i, 2 * j], q[:, h, i, 2 * j + 1])
                a = a * cmath.exp(1j * angle * (n + i))
                turned += [a.real, a.imag]
            y[:, h, i] += gamma ** (i + 1) * torch.einsum(
                "kb,bkm->bm", torch.stack(turned), S[:, h]
            )
    return y


def both_ways(form, inputs, n=9):
    """Outputs, and gradients of a sum in which every output has its own weight."""
    outputs = retnet.retention(*inputs, n, form)
    torch.manual_seed(0)
    total = sum((torch.randn(out.shape).to(out.dtype) * out).sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(total, inputs)]


def gap(ours, theirs):
    """Largest difference, in units of the largest value of a tensor where that is above 1."""
    pairs = [*zip(ours, theirs, strict=True)]
    assert all(p.shape == q.shape for p, q in pairs)
    return max(((p - q).abs().max() / max(1, q.abs().max())).item() for p, q in pairs)


@every_form
def test_retention_by_hand(form):
    inputs = [x.detach() for x in random_inputs(7)]
    assert gap([retnet.retention(*inputs, 9, form)[0]], [by_hand(*inputs)]) < 1e-12


@every_form
def test_a_wrong_coefficient_is_seen(form, monkeypatch):
    inputs = [x.detach() for x in random_inputs(7)]
    ours = retnet.retention(*inputs, 9, form)[0]
    rotate, steps = retnet.rotate, retnet.FORMS[form]

    def other_decay(q, k, v, gamma, S):
        return steps(q, k, v, gamma + 1e-4, S)

    with monkeypatch.context() as patch:
        patch.setitem(retnet.FORMS, form, other_decay)
        assert gap([retnet.retention(*inputs, 9, form)[0]], [ours]) > 1e-5
    monkeypatch.setattr(retnet, "rotate", lambda x, n: rotate(x, n + 1))
    assert gap([retnet.retention(*inputs, 9, form)[0]], [ours]) > 1e-3  # S stays where it was
    monkeypatch.setattr(retnet, "rotate", lambda x, n: x)
    assert gap([retnet.retention(*inputs, 9, form)[0]], [ours]) > 1e-3


@pytest.mark.parametrize("length", [1, 2, 7, 63, 64, 65, 100, 128, 200])
def test_three_forms_are_one_function(length):
    """Forward and gradient, from a state, also where the last chunk is a short one."""
    inputs = random_inputs(length)
    whole = both_ways("parallel", inputs)
    for form in ("recurrent", "chunk"):
        assert gap(both_ways(form, inputs), whole) < 1e-12


@pytest.mark.parametrize("size", [1, 2, 5, 16, 36, 37, 64])
def test_any_size_of_a_chunk(size, monkeypatch):
    inputs, chunkwise = random_inputs(37), retnet.chunkwise
    monkeypatch.setitem(retnet.FORMS, "chunk", lambda *x: chunkwise(*x, T=size))
    assert gap(both_ways("chunk", inputs), both_ways("recurrent", inputs)) < 1e-12


def test_chunks_without_the_state_are_seen(monkeypatch):
    """Negative control: each chunk begins with nothing."""
    true = retnet.parallel
    inputs = random_inputs(100)
    monkeypatch.setattr(retnet, "parallel", lambda q, k, v, g, S: true(q, k, v, g, 0 * S))
    assert gap(both_ways("chunk", inputs), both_ways("recurrent", inputs)) > 1e-2


@every_form
def test_forms_in_float32(form):
    exact = random_inputs(300)
    single = [x.detach().float().requires_grad_() for x in exact]
    ours = [x.double() for x in both_ways(form, single, n=0)]
    assert gap(ours, both_ways("recurrent", exact, n=0)) < 1e-5


def test_long_sequences_stay_finite():
    """gamma^-n would overflow in float32 from 2800 steps on, were it ever computed."""
    inputs = random_inputs(4000, heads=1, width=2, dtype=torch.float32)
    assert all(x.isfinite().all() for x in both_ways("parallel", inputs))


@every_form
def test_decay_survives_bfloat16(form):
    """The gamma of head 4 and those above it are 1 in bfloat16; ours are not."""
    h = torch.arange(8.0)
    assert (1 - 2 ** (-5 - h)).bfloat16().eq(1).tolist() == [False] * 4 + [True] * 4
    inputs = [
        x.detach().bfloat16() for x in random_inputs(150, heads=8, width=6, dtype=torch.float32)[:3]
    ]
    with torch.autocast("cpu", torch.bfloat16):
        y, S = retnet.retention(*inputs, form=form)
    expected = retnet.retention(*(x.float() for x in inputs), form=form)
    assert y.dtype is S.dtype is torch.float32
    assert torch.equal(y, expected[0]) and torch.equal(S, expected[1])


def test_angles_are_those_of_torchscale():
    """Pairs side by side; from one radian a step down to 1e-4, both ends included."""
    x = torch.tensor([1.0, 0.0] * 8, dtype=torch.float64).expand(1, 1, 2, 16)
    turned = retnet.rotate(x, 4)[0, 0].unflatten(-1, (8, 2))
    theta = torch.logspace(0, -4, 8, dtype=torch.float64)
    for i, n in enumerate((4, 5)):
        expected = torch.stack([(n * theta).cos(), (n * theta).sin()], -1)
        assert (turned[i] - expected).abs().max() < 1e-12


def network(form="chunk"):
    torch.manual_seed(0)
    model = retnet.RetNetLM(11, 16, 2, 2, form).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@every_form
@pytest.mark.parametrize("cuts", [[1] * 20, [1, 2, 3, 14], [20], [2, 17, 1], [19, 1]])
def test_any_cutting_gives_the_same(cuts, form):
    """Eq. (16): scores and last states do not depend on where the text is cut, batches included."""
    model, x = network(form), torch.randint(11, (3, 20))
    whole, last = network("parallel")(x)
    parts, states = [], None
    for part in x.split(cuts, 1):
        scores, states = model(part, states)
        parts.append(scores)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-10
    for (S, n), (S2, n2) in zip(states, last, strict=True):
        assert (S - S2).abs().max() < 1e-10 and n == n2 == 20


def test_gradients_of_the_model_in_three_forms():
    x, grads = torch.randint(11, (2, 101)), []
    for form in retnet.FORMS:
        model = network(form)
        F.cross_entropy(model(x[:, :-1])[0].mT, x[:, 1:]).backward()
        grads.append([p.grad for p in model.parameters()])
    assert gap(grads[0], grads[1]) < 1e-10 and gap(grads[0], grads[2]) < 1e-10


def test_a_forgotten_part_of_the_state_is_seen():
    """Negative control: without S, or without the number of steps."""
    model, x = network(), torch.randint(11, (3, 20))
    whole, (_, states) = model(x)[0], model(x[:, :10])
    for lost in (0, 1):
        broken = [tuple(p * (i != lost) for i, p in enumerate(state)) for state in states]
        assert (model(x[:, 10:], broken)[0] - whole[:, 10:]).abs().max() > 1e-3


def test_the_state_does_not_grow():
    model = network()
    for length in (1, 3, 150):
        _, states = model(torch.randint(11, (2, length)))
        assert [(tuple(S.shape), n) for S, n in states] == [((2, 2, 8, 16), length)] * 2


@every_form
def test_nothing_sees_the_future(form):
    model, x = network(form), torch.randint(11, (1, 20))
    y = x.clone()
    y[0, 12] = (y[0, 12] + 1) % 11
    change = (model(x)[0] - model(y)[0]).abs().amax((0, 2))
    assert change[:12].max() == 0 and change[12:].min() > 0


def test_layer_by_hand():
    """Eq. (8), (9), (13) around retention: heads, norm of each head, gate, feed-forward network."""
    layer = network().layers[0]
    x = torch.randn(2, 9, 16, dtype=torch.float64)

    def norm(x, weight=1.0):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    z, part = norm(x, layer.retention_layer_norm.weight), layer.retention
    q, k, v = (z @ p.weight.T for p in (part.q_proj, part.k_proj, part.v_proj))
    heads = (torch.stack(t.chunk(2, -1), 1) for t in (q, k, v))
    y = norm(by_hand(*heads, torch.zeros(2, 2, 8, 16, dtype=torch.float64)))
    gate = z @ part.g_proj.weight.T
    y = x + (gate * gate.sigmoid() * torch.cat([*y.unbind(1)], -1)) @ part.out_proj.weight.T
    z = norm(y, layer.final_layer_norm.weight) @ layer.ffn.fc1.weight.T
    z = z * (1 + torch.erf(z / math.sqrt(2))) / 2
    assert (layer(x)[0] - (y + z @ layer.ffn.fc2.weight.T)).abs().max() < 1e-12


def test_initial_values():
    """As the official code draws them: xavier's bound times 2^-2.5, times 1/2 for the output."""
    torch.manual_seed(0)
    model = retnet.RetNetLM(50, 64, 2, 4)
    for layer in model.layers:
        part = layer.retention
        gains = {part.q_proj: 2**-2.5, part.k_proj: 2**-2.5, part.v_proj: 2**-2.5}
        for linear, gain in (gains | {part.g_proj: 2**-2.5, part.out_proj: 0.5}).items():
            bound = gain * math.sqrt(6 / sum(linear.weight.shape))
            assert 0.98 * bound < linear.weight.detach().abs().max() <= bound
            assert linear.bias is None
    assert model.output_projection.weight is model.embed_tokens.weight
    assert model.embed_tokens.weight.detach().std() == pytest.approx(64**-0.5, rel=0.1)


@pytest.mark.parametrize("size, billions", [("1.3b", 1.3), ("2.7b", 2.7), ("6.7b", 6.7)])
def test_sizes(size, billions):
    """Heads of 256, and the number of parameters by the name, with 50,000 symbols say."""
    args = retnet.parse_args(["--config", size])
    with torch.device("meta"):
        model = retnet.RetNetLM(50_000, args.dim, args.depth, args.heads)
    assert args.dim // args.heads == 256 and args.warmup == 375
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.03)
    assert retnet.parse_args(["--config", size, "--smoke"]).seq_len == 72


def test_parameters_of_the_configs_and_of_mamba():
    args, other = (m.parse_args(["--config", "tinyshakespeare"]) for m in (retnet, mamba))
    ours = retnet.RetNetLM(65, args.dim, args.depth, args.heads)
    theirs = mamba.MambaLM(65, other.dim, other.depth, other.d_state)
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in (ours, theirs))
    assert ours == pytest.approx(0.8e6, rel=0.02) and ours == pytest.approx(theirs, rel=0.06)


def test_sampling_reads_its_own_words():
    """Greedy writing with the state equals reading the whole text anew for every symbol."""
    x = torch.randint(11, (2, 5))
    ours = retnet.sample(network(), x, 12, temperature=0)
    model = network("parallel")
    for _ in range(12):
        x = torch.cat([x, model(x)[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(ours, x[:, 5:])
    assert retnet.sample(network(), x, 40, n_symbols=3).max() < 3


def test_matrices_decay_and_nothing_else(monkeypatch, tmp_path):
    seen = []
    true_adamw = torch.optim.AdamW

    def spy(groups, *args, **flags):
        seen.append(groups)
        return true_adamw(groups, *args, **flags)

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    assert call(RETNET, *TINY, "--out", tmp_path)[0] == 0
    decay, plain = seen[0]
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decay["params"]} == {2} and {p.ndim for p in plain["params"]} == {1}
    args = retnet.parse_args(TINY)
    model = retnet.build(args, retnet.load_data(args)[2])
    assert len(decay["params"]) + len(plain["params"]) == len([*model.parameters()])


@every_form
def test_prompt(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, "--out", "run", "--form", form]
    assert call(RETNET, *flags)[0] == 0
    code, out, _ = call(RETNET, *flags, "--prompt", "the old", "--n_tokens", "9")
    assert code == 0 and out.startswith("the old") and len(out) == 7 + 9 + 1


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(RETNET, *TINY, "--out", "none", "--prompt", "the", about="--weights")
    mistake(RETNET, *TINY, "--out", "none", "--prompt", "Zebra", about="--prompt")
    mistake(RETNET, *TINY, "--vocab_size", "5", about="--vocab_size 5")
    mistake(RETNET, *TINY, "--heads", "3", about="--heads 3")
    mistake(RETNET, *TINY, "--heads", "16", about="--heads 16")  # one number has no partner


def test_autocast_trains(tmp_path):
    assert call(RETNET, *TINY, "--out", tmp_path, "--amp")[0] == 0


def test_text_and_entropy_are_those_of_mamba():
    ours, theirs = (m.load_data(m.parse_args(["--device", "cpu"])) for m in (retnet, mamba))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert ours[2] == theirs[2]


def broken_chunks(q, k, v, gamma, S):
    """The mistake of taking gamma^i for gamma^(i+1) where the past comes in."""
    return retnet.parallel(q, k, v, gamma, S / gamma)


def test_smoke_notices_a_broken_form(monkeypatch, capsys, tmp_path):
    args = retnet.parse_args([*TINY, "--smoke"])
    monkeypatch.setattr(retnet, "BARS", {k: v for k, v in retnet.BARS.items() if "gap" in k})
    assert retnet.smoke(args) == 0, capsys.readouterr().out
    monkeypatch.setitem(retnet.FORMS, "chunk", broken_chunks)
    assert retnet.smoke(args) == 1


def test_a_step_costs_the_same_however_long_the_text():
    """Against a quadratic or cached reader, whose steps grow; medians, as clocks are noisy."""
    torch.set_num_threads(1)
    model, times = retnet.RetNetLM(11, 32, 2, 2), {}
    with torch.inference_mode():
        for length in (16, 4096):
            _, states = model(torch.randint(11, (1, length)))
            x, laps = torch.zeros(1, 1, dtype=torch.long), []
            for _ in range(60):
                start = time.perf_counter()
                model(x, states)
                laps.append(time.perf_counter() - start)
            times[length] = sorted(laps)[10]
    assert times[4096] < 1.5 * times[16]
