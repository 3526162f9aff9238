"""Identities of the selective scan, oracles written as loops, and the tasks it learns."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from house import load
from torch.utils._python_dispatch import TorchDispatchMode

mod = load("ssm/mamba_scan.py")
LENGTHS = [1, 2, 3, 7, 16, 37, 64, 100, 257]
NAMES = ["u", "dt", "A", "B", "C", "D", "h0"]
SCANS = [scan for scan in mod.SCANS if scan != "triton"]  # test_mamba_triton.py has that one
every_scan = pytest.mark.parametrize("scan", SCANS)


def random_inputs(length, b=2, d=3, n=4, dtype=torch.float64):
    """u, dt, A, B, C, D, h0 that ask for gradients."""
    torch.manual_seed(length)
    shapes = [(b, length, d), (b, length, d), (d, n), (b, length, n), (b, length, n)]
    x = [torch.randn(shape, dtype=dtype) for shape in [*shapes, (d,), (b, d, n)]]
    x[1], x[2] = F.softplus(x[1]), -x[2].exp()
    return [part.requires_grad_() for part in x]


def loop(u, dt, A, B, C, D, h0):
    """Equations (4) to (7) as they stand, one step, channel axis and state axis at a time."""
    h, y = h0, []
    for k in range(u.shape[1]):
        a = torch.exp(torch.einsum("bd,dn->bdn", dt[:, k], A))
        b = torch.einsum("bd,bn,bd->bdn", dt[:, k], B[:, k], u[:, k])
        h = a * h + b
        y.append(torch.einsum("bn,bdn->bd", C[:, k], h) + D * u[:, k])
    return torch.stack(y, 1), h


def both_ways(function, inputs):
    """Outputs, and gradients of a sum in which every output has its own weight."""
    outputs = function(*inputs)
    torch.manual_seed(0)
    total = sum((torch.randn(out.shape).to(out.dtype) * out).sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(total, inputs)]


def gap(ours, theirs):
    """Largest difference, in units of the largest value of a tensor where that is above 1."""
    pairs = [*zip(ours, theirs, strict=True)]
    assert all(p.shape == q.shape for p, q in pairs)
    return max(((p - q).abs().max() / max(1, q.abs().max())).item() for p, q in pairs)


def scanned(scan):
    return lambda *inputs: mod.selective_scan(*inputs, scan=scan)


@every_scan
@pytest.mark.parametrize("length", LENGTHS)
def test_scan_equals_the_loop(scan, length):
    inputs = random_inputs(length)
    assert gap(both_ways(scanned(scan), inputs), both_ways(loop, inputs)) < 1e-12


@every_scan
@pytest.mark.parametrize("length", [1000, 2048])
def test_scan_in_float32(scan, length):
    exact = random_inputs(length)
    single = [x.detach().float().requires_grad_() for x in exact]
    ours = both_ways(scanned(scan), single)
    assert {x.dtype for x in ours} == {torch.float32}
    assert gap([x.double() for x in ours], both_ways(scanned("sequential"), exact)) < 1e-5


@every_scan
def test_scan_without_d_and_h0(scan):
    *inputs, D, h0 = random_inputs(20)
    ours = mod.selective_scan(*inputs, scan=scan)
    assert gap(ours, loop(*inputs, 0 * D, 0 * h0)) < 1e-12


@every_scan
def test_scan_goes_on_from_its_last_state(scan):
    u, dt, A, B, C, D, h = random_inputs(50)
    whole = mod.selective_scan(u, dt, A, B, C, D, h, scan=scan)
    parts = []
    for k in (slice(0, 19), slice(19, 50)):
        y, h = mod.selective_scan(u[:, k], dt[:, k], A, B[:, k], C[:, k], D, h, scan=scan)
        parts.append(y)
    assert gap([torch.cat(parts, 1), h], whole) < 1e-12


@every_scan
def test_gradcheck(scan):
    inputs = random_inputs(21, b=1, d=2, n=2)
    assert torch.autograd.gradcheck(scanned(scan), inputs)


@every_scan
def test_inputs_that_are_not_contiguous(scan):
    inputs = random_inputs(37)
    strewn = [x.detach().mT.contiguous().mT if x.ndim > 1 else x.detach() for x in inputs]
    strewn[0] = torch.stack([inputs[0].detach()] * 2, -1)[..., 0]
    strewn[3] = inputs[3].detach()[:1].expand(2, -1, -1)
    inputs[3] = strewn[3].contiguous().requires_grad_()
    assert not any(x.is_contiguous() for x in strewn if x.ndim > 1)
    strewn = [x.requires_grad_() for x in strewn]
    assert gap(both_ways(scanned(scan), strewn), both_ways(scanned(scan), inputs)) < 1e-12


@pytest.mark.parametrize("size", [1, 2, 5, 16, 36, 37, 64])
def test_any_size_of_a_chunk(size, monkeypatch):
    inputs = random_inputs(37)
    apply = mod.ChunkScan.apply
    monkeypatch.setitem(mod.SCANS, "chunk", lambda *x: apply(*x, size))
    assert gap(both_ways(scanned("chunk"), inputs), both_ways(loop, inputs)) < 1e-12


@pytest.mark.parametrize("scan", ["chunk", "blelloch"])
def test_second_derivative_is_refused(scan):
    inputs = random_inputs(5)
    y, _ = scanned(scan)(*inputs)
    (grad,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_operator_is_associative_and_composes_steps():
    def after(late, early):  # equation (8)
        return late[0] * early[0], late[0] * early[1] + late[1]

    one, two, three = torch.randn(3, 2, 5, dtype=torch.float64)
    left = after(after(three, two), one)
    right = after(three, after(two, one))
    assert gap(left, right) < 1e-14
    h = start = torch.randn(5, dtype=torch.float64)
    for a, b in (one, two, three):
        h = a * h + b
    assert gap([left[0] * start + left[1]], [h]) < 1e-14
    assert gap(after(one, two), after(two, one)) > 0.1  # but it does not commute


class Combines(TorchDispatchMode):
    """Count the uses of (8), each of which has one addcmul, and the rounds they come in."""

    def __init__(self):
        super().__init__()
        self.work = self.rounds = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.addcmul_.default:
            self.work += args[0].numel()
            self.rounds += 1
        return function(*args, **(kwargs or {}))


def hillis_steele(a, b):
    """The scan with fewest rounds: step k takes in step k - 1, then k - 2, k - 4, ..."""
    far = 1
    while far < b.shape[1]:
        a, b, early = a.clone(), b.clone(), (a[:, :-far], b[:, :-far])
        b[:, far:].addcmul_(a[:, far:], early[1])
        a[:, far:].mul_(early[0])
        far *= 2
    return b


@pytest.mark.parametrize("length", [1, 2, 3, 5, 37, 64, 1000, 1024])
def test_work_of_the_parallel_scan(length):
    a, b = torch.rand(2, 1, length, 1, dtype=torch.float64)
    expected = [torch.zeros(1, 1, dtype=torch.float64)]
    for k in range(length):
        expected.append(a[:, k] * expected[-1] + b[:, k])
    found = {}
    for scan in (mod.sweep, hillis_steele):
        with Combines() as count:
            h = scan(a.clone(), b.clone())
        assert gap([h], [torch.stack(expected[1:], 1)]) < 1e-14
        found[scan] = count
    logarithm = math.ceil(math.log2(length))
    assert found[mod.sweep].work < 2 * length and found[mod.sweep].rounds <= 2 * logarithm
    assert found[hillis_steele].rounds == logarithm
    if length >= 64:
        assert found[hillis_steele].work > 2 * length * logarithm / 3 > 2 * length


def saved(scan):
    """Number of values that a scan of 4000 states at each of 128 steps keeps for backward."""
    kept = []

    def pack(x):
        kept.append(x.numel())
        return x

    inputs = random_inputs(128, b=4, d=100, n=10, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        mod.selective_scan(*inputs, scan=scan)
    return max(kept)


def test_memory_of_the_chunked_scan():
    states = 128 * 4000
    assert saved("chunk") <= states / 8
    assert saved("blelloch") >= states and saved("sequential") >= states


@every_scan
def test_autocast_and_types(scan):
    inputs = [x.detach() for x in random_inputs(33, dtype=torch.float32)]
    halves = [x.bfloat16() if name in "uBC" else x for name, x in zip(NAMES, inputs, strict=True)]
    same = [x.float() for x in halves]
    with torch.autocast("cpu", torch.bfloat16):
        y, h = mod.selective_scan(*halves, scan=scan)
    exact_y, exact_h = mod.selective_scan(*same, scan=scan)
    assert y.dtype is torch.bfloat16 and h.dtype is torch.float32
    assert torch.equal(h, exact_h) and torch.equal(y, exact_y.bfloat16())
    assert {x.dtype for x in scanned(scan)(*random_inputs(3))} == {torch.float64}


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shape_is_named(name):
    inputs = dict(zip(NAMES, random_inputs(6), strict=True))
    inputs[name] = inputs[name][0] if name in ("u", "A") else inputs[name][..., :-1]
    with pytest.raises(ValueError, match=rf"^{name} has shape \(.*\), expected \("):
        mod.selective_scan(**inputs)


def test_empty_sequence_is_refused():
    inputs = [x[:, :0] if x.ndim == 3 and x.shape[1] == 6 else x for x in random_inputs(6)]
    with pytest.raises(ValueError, match="u has shape"):
        mod.selective_scan(*inputs)


def test_block_at_the_start():
    torch.manual_seed(0)
    block = mod.MambaBlock(64, d_state=5)
    dt = F.softplus(block.dt_proj.bias)
    assert 1e-3 <= dt.min() < 2e-3 and 0.05 < dt.max() <= 0.1 + 1e-6
    assert 0.3 < (dt.log() < math.log(1e-2)).float().mean() < 0.7  # log-uniform
    assert torch.allclose(-block.A_log.exp(), -torch.arange(1.0, 6).expand(128, 5))
    assert torch.equal(block.D, torch.ones(128))
    bound = math.ceil(64 / 16) ** -0.5
    assert 0.9 * bound < block.dt_proj.weight.abs().max() <= bound


@every_scan
def test_block_is_causal(scan):
    torch.manual_seed(0)
    block, x = mod.MambaBlock(16, scan=scan), torch.randn(1, 30, 16)
    other = x.clone()
    other[:, 20] += 1
    change = (block(x) - block(other)).abs().amax((0, 2))
    assert change[:20].max() == 0 and change[20:24].min() > 1e-4


def test_model_under_autocast_keeps_float32_where_it_matters():
    seen = {}

    def spy(u, dt, A, B, C, D, scan):
        seen.update(dt=dt.dtype, A=A.dtype, D=D.dtype, B=B.dtype)
        return u, None

    model = mod.Mamba(8, 16, 1)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(mod, "selective_scan", spy)
        model(torch.zeros(1, 4, dtype=torch.long))
    assert seen.pop("B") is torch.bfloat16
    assert set(seen.values()) == {torch.float32}


def arguments(task, **changed):
    given = {"dataset": task, "batch_size": 200, "seq_len": 40, "n_tokens": 5, "vocab_size": 10}
    return SimpleNamespace(**given | {"device": "cpu"} | changed)


def copied(x):
    """Answers of selective copying, from the symbols alone."""
    queue = [symbol for symbol in x if symbol > 1]
    return [queue.pop(0) if symbol == 1 else -100 for symbol in x]


def recalled(x):
    """Answers of induction heads: what came after the first cue."""
    first = x.index(1)
    return [x[first + 1] if symbol == 1 and k > first else -100 for k, symbol in enumerate(x)]


@pytest.mark.parametrize(
    "task, solve", [("selective_copying", copied), ("induction_heads", recalled)]
)
@pytest.mark.parametrize("changed", [{}, {"n_tokens": 1}, {"seq_len": 10}, {"vocab_size": 4}])
def test_answers_follow_from_the_symbols(task, solve, changed):
    torch.manual_seed(3)
    args = arguments(task, **changed)
    x, y = mod.load_data(args)
    assert y.tolist() == [solve(row) for row in x.tolist()]
    asked = y >= 0
    assert (asked.sum(1) == args.n_tokens).all() and asked[:, -1].all()
    assert (x[asked] == 1).all() and x.min() >= 0 and x.max() < args.vocab_size
    copying = task == "selective_copying"
    assert x.shape[1] == args.seq_len + (args.n_tokens if copying else 1)
    assert (x == 0).sum(1).unique().tolist() == [args.seq_len - args.n_tokens if copying else 0]
    assert ((x == 1).sum(1) == args.n_tokens + (not copying)).all()


@pytest.mark.parametrize("task", mod.TASKS)
def test_tasks_cannot_be_guessed(task):
    """Answers, and places of the first token or cue, are spread evenly; seeds fix a batch."""
    torch.manual_seed(0)
    args = arguments(task, batch_size=4000, n_tokens=1)
    x, y = mod.load_data(args)
    share = y[y >= 0].bincount(minlength=10)[2:] / 4000
    assert (share - 1 / 8).abs().max() < 0.025
    wanted = (x > 1) if task == "selective_copying" else (x == 1)
    where = wanted.int().argmax(1)
    assert where.min() < 2 and where.max() > 36 and abs(where.float().mean() - 19.5) < 1
    torch.manual_seed(0)
    again = mod.load_data(args)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert not torch.equal(x, mod.load_data(args)[0])


def off_by_one(a, b, h):
    """walk, but with the states before each step in place of those after it."""
    return torch.cat([h[:, None], true_walk(a, b, h)[:, :-1]], 1)


def unshifted(a, b):
    """sweep that forgets to go down."""
    if b.shape[1] > 1:
        b[:, 1::2].addcmul_(a[:, 1::2], b[:, :-1:2])
        a[:, 1::2].mul_(a[:, :-1:2])
        unshifted(a[:, 1::2], b[:, 1::2])
    return b


true_walk = mod.walk


@pytest.mark.parametrize("broken", [None, ("walk", off_by_one), ("sweep", unshifted)])
def test_smoke_notices_a_broken_scan(broken, monkeypatch, capsys):
    monkeypatch.setattr(mod, "train", lambda args: {"accuracy": 1.0})
    if broken:
        monkeypatch.setattr(mod, *broken)
    code = mod.smoke(SimpleNamespace(smoke=True, device="cpu"))
    assert code == (1 if broken else 0), capsys.readouterr().out


def without_selection(self, x):
    """dt, B and C that do not depend on the input: the block is a convolution again."""
    u, z, *_ = true_inputs(self, x)
    dt, B, C = self.x_proj(torch.ones_like(u)).split(self.sizes, -1)
    return u, z, F.softplus(self.dt_proj(dt)), B, C


true_inputs = mod.MambaBlock.inputs


def test_without_selection_the_smoke_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(mod.MambaBlock, "inputs", without_selection)
    args = mod.parse_args(["--smoke", "--device", "cpu", "--out", str(tmp_path)])
    assert mod.train(args)["accuracy"] < mod.BARS["accuracy"][0]


def test_weights_go_on_to_longer_sequences(tmp_path, capsys):
    """Train a little, then evaluate the checkpoint at another length; pictures are drawn."""
    small = ["--dim", "8", "--d_state", "2", "--batch_size", "4", "--device", "cpu"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert mod.main([*small, "--n_steps", "3", "--sample_interval", "2", "--out", str(first)]) == 0
    assert (first / "selection.png").stat().st_size > 1000
    longer = ["--weights", str(first / "last.pt"), "--n_steps", "0", "--seq_len", "300"]
    assert mod.main([*small, *longer, "--out", str(second)]) == 0
    assert sorted(path.name for path in second.iterdir()) == ["selection.png"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("accuracy ")


def test_named_configs():
    assert mod.parse_args([]) == mod.parse_args(["--config", "laptop"])
    paper = mod.parse_args(["--config", "induction_heads", "--lr", "0.5"])
    assert (paper.dataset, paper.seq_len, paper.lr) == ("induction_heads", 256, 0.5)
    assert mod.parse_args(["--config", "selective_copying", "--smoke"]).seq_len == 24


def test_more_tokens_than_fit_are_refused(capsys):
    mod.parse_args(["--n_tokens", "32"])
    with pytest.raises(SystemExit, match="2"):
        mod.parse_args(["--n_tokens", "33"])
    assert "error: --n_tokens 33: " in capsys.readouterr().err
