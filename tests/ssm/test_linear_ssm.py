"""linear_ssm.py against scipy's discretisation and simulation, numpy's Legendre polynomials, and
differential equations solved in tiny steps."""

import math
import shlex

import numpy as np
import pytest
import torch
from house import ROOT, call, load, mistake

signal = pytest.importorskip("scipy.signal")
mod = load("ssm/linear_ssm.py")
SCRIPT = ROOT / "ssm/linear_ssm.py"
TINY = shlex.split("--dim 4 --depth 1 --d_state 4 --n_epochs 1 --batch_size 500 --device cpu")
every_method = pytest.mark.parametrize("method", mod.METHODS)


def random_system(n=5):
    torch.manual_seed(0)
    A = torch.randn(n, n, dtype=torch.float64) - 2 * torch.eye(n, dtype=torch.float64)
    return A, *torch.randn(2, n, dtype=torch.float64)


@every_method
@pytest.mark.parametrize("system", ["random", "legs", "singular"])
def test_discretise_equals_scipy(method, system):
    """The double integrator is singular: no A^-1, and yet an exact step."""
    A, B, C = random_system()
    if system == "legs":
        A, B = mod.legs(5)
    if system == "singular":
        A, B, C = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double(), C[:2], B[:2]
    zero = np.zeros((1, 1))
    arrays = A.numpy(), B.numpy()[:, None], C.numpy()[None], zero
    A_, B_, *_ = signal.cont2discrete(arrays, 0.3, method)
    ours = mod.matrix_steps(A, B, 0.3, method)
    assert np.abs(ours[0].numpy() - A_).max() < 1e-12
    assert np.abs(ours[1].numpy() - B_[:, 0]).max() < 1e-12


@every_method
def test_diagonal_equals_matrix(method):
    A = torch.complex(-torch.rand(6, dtype=torch.float64) - 0.1, torch.randn(6).double())
    one = torch.ones(6, dtype=A.dtype)
    A_, B_ = mod.matrix_steps(torch.diag(A), one, 0.2, method)
    ours = mod.diagonal_steps(A, torch.tensor(0.2), method)
    assert (ours[0] - A_.diagonal()).abs().max() < 1e-7  # 0.2 is a float32
    assert (ours[1] - B_).abs().max() < 1e-7


def test_diagonal_is_exact_for_small_steps():
    """exp(z) - 1 by itself loses all digits of a small z in float32."""
    A, dt = torch.tensor([-0.5 + 0j]), torch.tensor(1e-5)
    _, B_ = mod.diagonal_steps(A, dt, "zoh")
    assert B_.real.item() == pytest.approx(1e-5, rel=1e-5)
    assert ((dt * A).exp() - 1).div(A).real.item() != pytest.approx(1e-5, rel=1e-3)


@every_method
def test_recurrence_equals_scipy_and_convolution(method):
    A, B = mod.legs(16)
    torch.manual_seed(0)
    C, u = torch.randn(16, dtype=torch.float64) / 16, torch.randn(256, dtype=torch.float64)
    A_, B_ = mod.matrix_steps(A, B, 0.01, method)
    y = mod.recurrent(A_, B_, C, u)
    h, outs = np.zeros(16), []
    for u_k in u.numpy():  # of h_k: scipy's dlsim would read h_{k-1}
        h = A_.numpy() @ h + B_.numpy() * u_k
        outs.append(C.numpy() @ h)
    assert np.abs(y.numpy() - outs).max() < 1e-12
    system = (
        A_.numpy(),
        B_.numpy()[:, None],
        (C @ A_).numpy()[None],
        (C @ B_).numpy()[None, None],
        1,
    )
    _, theirs, _ = signal.dlsim(system, u.numpy()[:, None])
    assert np.abs(y.numpy() - theirs[:, 0]).max() < 1e-12
    assert (y - mod.convolve(u, mod.kernel(A_, B_, C, 256))).abs().max() < 1e-12


def test_zoh_solves_the_differential_equation():
    """Against 20,000 tiny steps of Euler between the samples; bilinear is off by far more."""
    A, B, C = random_system()
    u, h, ys = torch.randn(6, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), []
    tiny = mod.matrix_steps(A, B, 0.3 / 20_000, "euler")
    step = torch.eye(6, dtype=torch.float64)
    step[:5, :5], step[:5, 5] = tiny
    step = torch.linalg.matrix_power(step, 20_000)
    for u_k in u:
        h = step[:5, :5] @ h + step[:5, 5] * u_k
        ys.append(C @ h)
    gaps = {m: (mod.recurrent(*mod.matrix_steps(A, B, 0.3, m), C, u) - torch.stack(ys)).abs().max()
            for m in mod.METHODS}  # fmt: skip
    assert gaps["zoh"] < 1e-3 < gaps["bilinear"] < gaps["euler"]


def test_convolution_needs_its_zeros():
    u, K = torch.randn(2, 64, dtype=torch.float64)
    right = torch.tensor(np.convolve(u.numpy(), K.numpy())[:64])
    circular = torch.fft.irfft(torch.fft.rfft(u) * torch.fft.rfft(K), 64)
    assert (mod.convolve(u, K) - right).abs().max() < 1e-12
    assert (circular - right).abs().max() > 0.1
    assert (mod.convolve(u[:1], K[:1]) - u[:1] * K[:1]).abs().max() < 1e-14


def test_legs():
    A, B = mod.legs(4)
    root = [1, 3**0.5, 5**0.5, 7**0.5]
    for n in range(4):
        assert B[n].item() == pytest.approx(root[n])
        for k in range(4):
            expected = -root[n] * root[k] if n > k else -(n + 1) if n == k else 0
            assert A[n, k].item() == pytest.approx(expected)


def test_polynomials_equal_numpy_and_are_orthonormal():
    x = (np.arange(200) + 0.5) / 200 * 2 - 1
    theirs = np.polynomial.legendre.legvander(x, 9) * np.sqrt(2 * np.arange(10) + 1)
    assert np.abs(mod.polynomials(10, 200).numpy() - theirs).max() < 1e-12
    P = mod.polynomials(6, 4000)
    assert (P.T @ P / 4000 - torch.eye(6, dtype=torch.float64)).abs().max() < 1e-4
    assert mod.polynomials(1, 5).shape == (5, 1)


def rms(kept, f):
    return (kept - f).square().mean().sqrt().item()


def test_memory_of_hippo():
    """Zoh in log t is as good as least squares, Euler is not."""
    f = mod.history()
    found = {name: rms(kept, f) for name, kept in mod.remember(f).items()}
    best = found["least squares"]
    assert best < found["zoh"] <= 1.01 * best < found["bilinear"] < 2 * best < found["euler"] / 2


def test_memory_is_the_projection_of_what_was_held():
    """c_n is the integral of f with each polynomial, f constant for each unit of time."""
    f, n = mod.history(60), 8
    P = mod.polynomials(n, 60 * 400)
    c = (P * f.repeat_interleave(400)[:, None]).mean(0)
    assert (mod.memorise(f, n, "zoh") - c).abs().max() < 1e-4
    assert (mod.memorise(f, n, "euler") - c).abs().max() > 1e-2
    constant = mod.memorise(torch.full((50,), 3.0, dtype=torch.float64), n, "bilinear")
    assert (constant - 3 * torch.eye(n, dtype=torch.float64)[0]).abs().max() < 1e-12


def test_a_wrong_sign_is_seen(monkeypatch):
    f, true = mod.history(200), mod.legs
    monkeypatch.setattr(mod, "legs", lambda n: (true(n)[0] - 0.05 * torch.eye(n), true(n)[1]))
    found = mod.remember(f)
    assert rms(found["zoh"], f) > 1.5 * rms(found["least squares"], f)


def model(method="zoh", dropout=0.0):
    torch.manual_seed(0)
    return mod.S4Model(10, 6, 2, 8, dropout, 0.01, 0.3, method).double().eval()


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_layer_equals_both_conjugate_halves(method, length):
    """Eq. (12) by hand: all N states as a dense complex system, without the factor 2."""
    layer = model(method).s4_layers[0]
    K = layer.kernel(length)
    part = layer.kernel
    A = torch.complex(-part.log_A_real.exp(), part.A_imag)
    for e in range(6):
        dt = part.log_dt[e].exp().item()
        both = torch.cat([A[e], A[e].conj()])
        A_, B_ = mod.matrix_steps(torch.diag(both), torch.ones_like(both), dt, method)
        C = torch.view_as_complex(part.C)[e]
        theirs = mod.kernel(A_, B_, torch.cat([C, C.conj()]), length)
        assert theirs.imag.abs().max() < 1e-12
        assert (K[e] - theirs.real).abs().max() < 1e-12


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("length", [1, 2, 64])
def test_steps_equal_convolution(method, length):
    """Scores after every prefix are those that the convolution finds for it."""
    net, x, state = model(method), torch.rand(3, length, dtype=torch.float64), None
    with torch.inference_mode():
        for k in range(length):
            scores, state = net.step(x[:, k], state)
            assert (scores - net(x[:, : k + 1])).abs().max() < 1e-12


def test_a_step_without_its_state_is_seen():
    net, x = model(), torch.rand(3, 20, dtype=torch.float64)
    _, (hs, total, k) = net.step(x[:, 0])
    right, _ = net.step(x[:, 1], (hs, total, k))
    wrong, _ = net.step(x[:, 1], ([0 * h for h in hs], total, k))
    assert (right - wrong).abs().max() > 1e-6


def test_initial_values():
    torch.manual_seed(0)
    part = mod.S4DKernel(400, 8, 1e-3, 0.1, "zoh")
    A_, _, C = part.system()
    dt = part.log_dt.detach().exp()
    assert 0.99e-3 < dt.min() < 2e-3 and 0.08 < dt.max() < 0.101
    expected = -0.5 + 1j * math.pi * torch.arange(4)
    assert torch.allclose(A_.log() / dt[:, None], expected.expand(400, 4), atol=1e-3)
    assert C.abs().square().mean().item() == pytest.approx(1, rel=0.1)
    assert A_.abs().max() < 1


def test_system_is_stable_whatever_is_learned():
    part = mod.S4DKernel(3, 8, 1e-3, 0.1, "bilinear")
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(5 * torch.randn_like(parameter))
    assert part.system()[0].abs().max() <= 1


def test_official_names():
    """Those of example.py of state-spaces/s4, where C is a pair of real numbers."""
    names = {f"s4_layers.0.{key}" for key in ("D", "kernel.C", "kernel.log_dt", "kernel.A_imag")}
    names |= {"s4_layers.0.kernel.log_A_real", "s4_layers.0.output_linear.0.weight"}
    names |= {"encoder.weight", "norms.0.weight", "decoder.bias"}
    state = model().state_dict()
    assert names <= {*state}
    assert state["s4_layers.0.kernel.C"].shape == (6, 4, 2)
    assert state["s4_layers.0.output_linear.0.weight"].shape == (12, 6, 1)


def test_delicate_parameters_have_a_group(monkeypatch, tmp_path):
    seen = []
    true_adamw = torch.optim.AdamW

    def spy(groups, **flags):
        seen.append(groups)
        return true_adamw(groups, **flags)

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    assert call(SCRIPT, *TINY, "--out", tmp_path)[0] == 0
    plain, delicate = seen[0]
    assert (plain["weight_decay"], plain["lr"]) == (0.01, 0.01)
    assert (delicate["weight_decay"], delicate["lr"]) == (0.0, 0.001)
    assert [tuple(p.shape) for p in delicate["params"]] == [(4,), (4, 2), (4, 2)]
    assert (tmp_path / "memory.png").stat().st_size > 10_000


def test_pool_is_the_mean_of_pixels():
    args = mod.parse_args([*TINY, "--pool", "2"])
    torch.manual_seed(0)
    (pooled, _), _ = mod.load_data(args)
    args.pool = 1
    torch.manual_seed(0)
    (x, _), (test, _) = mod.load_data(args)
    assert x.shape == (1437, 64) and test.shape == (360, 64) and pooled.shape == (1437, 16)
    x = x.view(-1, 8, 8)
    assert torch.allclose(pooled[:, 5], x[:, 2:4, 2:4].mean((1, 2)))


def test_euler_stops_or_falls_behind(tmp_path, monkeypatch):
    """Where |1 + dt A| > 1 the kernel explodes: one line, no checkpoint of nonsense."""
    monkeypatch.chdir(tmp_path)
    argv = ["--smoke", "--method", "euler", "--d_state", "64", "--n_epochs", "1"]
    code, _, err = call(SCRIPT, *argv, "--device", "cpu")
    assert code == 1 and ("not finite" in err or "test_acc" in err)


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(SCRIPT, *TINY, "--d_state", "5", about="--d_state 5")
    mistake(SCRIPT, *TINY, "--dt_min", "0", about="--dt_min")
    mistake(SCRIPT, *TINY, "--dt_min", "2", about="--dt_min 2")
    mistake(SCRIPT, *TINY, "--pool", "3", about="--pool 3")


def test_smoke_notices_what_is_broken(monkeypatch, capsys):
    monkeypatch.setattr(mod, "BARS", {k: v for k, v in mod.BARS.items() if k != "test_acc"})
    args = mod.parse_args([*TINY, "--smoke"])
    assert mod.smoke(args) == 0, capsys.readouterr().out
    true = mod.convolve
    with monkeypatch.context() as patch:
        patch.setattr(mod, "convolve", lambda u, K: true(u, K.roll(1, -1)))  # h_{k-1} for h_k
        assert mod.smoke(args) == 1
    monkeypatch.setattr(mod, "memorise", lambda f, n, m: torch.zeros(n, dtype=f.dtype))
    assert mod.smoke(args) == 1


def test_named_configs():
    assert mod.parse_args([]) == mod.parse_args(["--config", "laptop"])
    small = mod.parse_args(["--config", "mnist14", "--lr", "0.5"])
    assert (small.dataset, small.pool, small.lr) == ("mnist", 2, 0.5)
    paper = mod.parse_args(["--config", "mnist"])
    assert (paper.dim, paper.depth, paper.d_state, paper.pool) == (128, 4, 64, 1)
