"""h3.py by brute force: a shift register and a diagonal system, number by number; the tasks; and
S4D, which lacks the products and does not recall."""

import math
import shlex

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake
from torch import nn

mod = load("ssm/h3.py")
SCRIPT = ROOT / "ssm/h3.py"
TINY = shlex.split("--dim 8 --depth 1 --d_state 4 --head_dim 2 --batch_size 4 --n_steps 4")
TINY += shlex.split("--sample_interval 2 --device cpu")
sizes = pytest.mark.parametrize("head_dim", [1, 2, 4, 8])
lengths = pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 40])


def mixer(head_dim=4, d_state=6):
    """With nothing left at its initial value."""
    torch.manual_seed(0)
    layer = mod.H3(8, d_state, head_dim).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return layer


def by_hand(layer, x, d):
    """Eq. (1) to (8), a batch's row, head and pair of numbers at a time."""
    heads, n = 8 // d, layer.ssm_k_C.shape[1]
    q, k, v = (x @ p.weight.T + p.bias for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    out = torch.zeros_like(x)
    shifted = torch.zeros_like(k)
    for t in range(x.shape[1]):  # the register holds the newest key first
        register = [k[:, t - j] if t >= j else torch.zeros_like(k[:, 0]) for j in range(n)]
        taps = layer.ssm_k_C.T
        shifted[:, t] = sum(c * key for c, key in zip(taps, register, strict=True))
        shifted[:, t] += layer.ssm_k_D * k[:, t]
    part = layer.kernel
    A, C = torch.complex(-part.log_A_real.exp(), part.A_imag), torch.view_as_complex(part.C)
    for h in range(heads):
        dt = part.log_dt[h].exp()
        A_, B_ = (1 + dt * A[h] / 2) / (1 - dt * A[h] / 2), dt / (1 - dt * A[h] / 2)
        for i in range(d):
            for j in range(d):
                state = torch.zeros(len(x), n // 2, dtype=torch.cdouble)
                for t in range(x.shape[1]):
                    p = shifted[:, t, h * d + i] * v[:, t, h * d + j]
                    state = A_ * state + B_ * p[:, None]
                    both = (C[h] * state).sum(1) + (C[h].conj() * state.conj()).sum(1)
                    w = both.real + layer.D[h] * p
                    out[:, t, j * heads + h] += q[:, t, h * d + i] * w
    return out @ layer.output_linear.weight.T + layer.output_linear.bias


@sizes
@lengths
def test_convolution_equals_explicit_recurrence(head_dim, length):
    """Also where the sequence is shorter than the shift register."""
    layer, x = mixer(head_dim), torch.randn(2, length, 8, dtype=torch.float64)
    with torch.no_grad():
        assert (layer(x) - by_hand(layer, x, head_dim)).abs().max() < 1e-10


@sizes
@lengths
def test_steps_equal_convolution(head_dim, length):
    layer, x, state = mixer(head_dim), torch.randn(2, length, 8, dtype=torch.float64), None
    with torch.no_grad():
        whole = layer(x)
        for t in range(length):
            y, state = layer.step(x[:, t], state)
            assert (y - whole[:, t]).abs().max() < 1e-10
    assert state[0].shape == (2, 8, 6)
    assert state[1].shape == (2, 8 // head_dim, head_dim, head_dim, 3)


def test_gradients_of_steps_and_convolution():
    layer, x = mixer(), torch.randn(2, 20, 8, dtype=torch.float64)
    weight, state, ys = torch.randn(2, 20, 8, dtype=torch.float64), None, []
    for t in range(20):
        y, state = layer.step(x[:, t], state)
        ys.append(y)
    parameters = [*layer.parameters()]
    ours = torch.autograd.grad((layer(x) * weight).sum(), parameters)
    theirs = torch.autograd.grad((torch.stack(ys, 1) * weight).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1, b.abs().max())


@pytest.mark.parametrize("what", ["ssm_k_C", "ssm_k_D", "D", "kernel.C", "kernel.A_imag"])
def test_a_wrong_number_is_seen(what):
    layer, x = mixer(), torch.randn(2, 20, 8, dtype=torch.float64)
    with torch.no_grad():
        right = by_hand(layer, x, 4)
        layer.get_parameter(what).mul_(1.001)
        assert (layer(x) - right).abs().max() > 1e-6


def test_a_flipped_shift_kernel_is_seen():
    layer, x = mixer(), torch.randn(2, 20, 8, dtype=torch.float64)
    with torch.no_grad():
        right = layer(x)
        layer.ssm_k_C.copy_(layer.ssm_k_C.flip(1))
        assert (layer(x) - right).abs().max() > 1e-3


def test_nothing_sees_the_future():
    torch.manual_seed(0)
    model, x = mod.H3Model(9, 8, 2, 4, 2).double(), torch.randint(9, (1, 30))
    other = x.clone()
    other[0, 12] = (x[0, 12] + 1) % 9
    change = (model(x) - model(other)).abs().amax((0, 2))
    assert change[:12].max() < 1e-14 < 1e-10 < change[12:].min()


def test_model_steps():
    torch.manual_seed(0)
    model, x, states = mod.H3Model(9, 8, 3, 4, 2).double(), torch.randint(9, (3, 30)), None
    whole = model(x)
    for t in range(30):
        scores, states = model.step(x[:, t], states)
        assert (scores - whole[:, t]).abs().max() < 1e-10


def test_bilinear_is_that_of_linear_ssm():
    theirs = load("ssm/linear_ssm.py")
    part = mod.DiagonalSSM(3, 8)
    A = torch.complex(-part.log_A_real.exp(), part.A_imag)
    A_, B_ = theirs.diagonal_steps(A, part.log_dt.exp()[:, None], "bilinear")
    ours = part.system()
    assert torch.allclose(ours[0], A_) and torch.allclose(ours[1], B_)


def test_initial_values():
    torch.manual_seed(0)
    layer = mod.H3(400, 16, 4)
    dt = layer.kernel.log_dt.detach().exp()
    assert 0.99e-3 < dt.min() < 2e-3 and 0.08 < dt.max() < 0.101
    assert 0.24 < layer.ssm_k_C.detach().abs().max() <= 0.25
    assert layer.ssm_k_D.detach().std().item() == pytest.approx(1, rel=0.15)
    assert torch.allclose(layer.kernel.A_imag[7].detach(), math.pi * torch.arange(8))
    assert layer.D.shape == (100,) and layer.kernel.C.shape == (100, 8, 2)


def recalled(x):
    """Answers of associative recall, from the symbols alone."""
    known, y = {}, []
    for key, value in zip(x[::2], [*x[1::2], None], strict=True):
        y += [known.get(key, -100), -100]
        known[key] = value
    return y[:-1]


def after_the_cue(x):
    return [-100] * (len(x) - 1) + [x[x.index(0) + 1]]


@pytest.mark.parametrize(
    "task, solve", [("associative_recall", recalled), ("induction_heads", after_the_cue)]
)
@pytest.mark.parametrize("length, vocab", [(20, 6), (2, 4), (40, 10)])
def test_answers_follow_from_the_symbols(task, solve, length, vocab):
    torch.manual_seed(3)
    x, y = mod.TASKS[task](300, length, vocab)
    assert x.shape == y.shape == (300, length + 1)
    assert y.tolist() == [solve(row) for row in x.tolist()]
    assert (y[:, -1] >= 0).all() and x.min() >= 0 and x.max() < vocab
    half = vocab // 2
    if task == "associative_recall":
        assert (x[:, ::2] < half).all() and (x[:, 1::2] >= half).all() and y.max() >= half
    else:
        assert ((x == 0).sum(1) == 2).all() and (x[:, -1] == 0).all()


def test_tasks_cannot_be_guessed():
    torch.manual_seed(0)
    for task, answers in ((mod.associative_recall, 5), (mod.induction_heads, 9)):
        x, y = task(5000, 20, 10)
        share = y[:, -1].bincount(minlength=10)[-answers:] / 5000
        assert (share - 1 / answers).abs().max() < 0.03
        torch.manual_seed(0)
        assert torch.equal(mod.associative_recall(5000, 20, 10)[0], x) or answers == 9


class S4DMixer(nn.Module):
    """A diagonal SSM for each channel and no product: as large, but blind to what it reads."""

    def __init__(self, dim, d_state, head_dim):
        super().__init__()
        self.kernel, self.D = mod.DiagonalSSM(dim, d_state), nn.Parameter(torch.randn(dim))
        self.out = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GLU())

    def forward(self, x):
        u = x.mT
        y = mod.convolve(u, self.kernel(u.shape[-1])) + self.D[:, None] * u
        return self.out(F.gelu(y.mT))


def test_s4d_does_not_recall(monkeypatch, tmp_path):
    """The same model and steps, with S4D in the place of H3: far below the bar of the smoke."""
    monkeypatch.setattr(mod, "H3", S4DMixer)
    args = mod.parse_args(["--smoke", "--device", "cpu", "--out", str(tmp_path)])
    assert mod.train(args)["accuracy"] < 0.9 < mod.BARS["accuracy"][0]


def test_ssm_parameters_have_a_group(monkeypatch, tmp_path):
    seen = []
    true_adamw = torch.optim.AdamW

    def spy(groups, **flags):
        seen.append(groups)
        return true_adamw(groups, **flags)

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    assert call(SCRIPT, *TINY, "--out", tmp_path)[0] == 0
    plain, ssm = seen[0]
    assert (plain["weight_decay"], plain["lr"]) == (0.1, 5e-3)
    assert (ssm["weight_decay"], ssm["lr"]) == (0.0, 1e-3)
    shapes = sorted(tuple(p.shape) for p in ssm["params"])
    assert shapes == sorted([(8, 4), (8,), (4,), (4, 2), (4, 2), (4, 2, 2)])


def test_weights_go_on_to_longer_sequences(tmp_path):
    assert call(SCRIPT, *TINY, "--out", tmp_path / "first")[0] == 0
    longer = ["--weights", tmp_path / "first/last.pt", "--n_steps", 0, "--seq_len", 80]
    code, out, _ = call(SCRIPT, *TINY, *longer, "--out", tmp_path / "second")
    assert code == 0 and out.startswith("accuracy ")


def test_induction_heads_trains(tmp_path):
    assert call(SCRIPT, "--config", "induction_heads", *TINY, "--out", tmp_path)[0] == 0
    args = mod.parse_args(["--config", "induction_heads"])
    assert (args.seq_len, args.vocab_size) == (30, 20)


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(SCRIPT, *TINY, "--d_state", "5", about="--d_state 5")
    mistake(SCRIPT, *TINY, "--head_dim", "3", about="--head_dim 3")
    mistake(SCRIPT, *TINY, "--seq_len", "21", about="--seq_len 21")


def test_smoke_notices_a_broken_step(monkeypatch, capsys):
    monkeypatch.setattr(mod, "BARS", {"step_gap": mod.BARS["step_gap"]})
    args = mod.parse_args([*TINY, "--smoke"])
    assert mod.smoke(args) == 0, capsys.readouterr().out
    true = mod.convolve
    monkeypatch.setattr(mod, "convolve", lambda u, K: true(u, K.roll(1, -1)))
    assert mod.smoke(args) == 1
