"""autograd.py: the examples, and the engine against torch and central differences."""

import random

import pytest
import torch
from house import call, load

mod = load("basics/autograd.py")
PATH = mod.Path(mod.__file__)
Tensor = mod.Tensor
SHAPES = [(4, 4), (1, 4), (4, 1), ()]
# What random graphs are made of: a and b are any nodes, w is a matrix.
OPS = [lambda a, b, w: a + b, lambda a, b, w: a - b, lambda a, b, w: a.tanh() * b]
OPS += [lambda a, b, w: a / (b * b + 1), lambda a, b, w: (a + w) @ (w - b).tanh()]
OPS += [lambda a, b, w: (a**2 + 1).log() * b.relu(), lambda a, b, w: (a.tanh() * b.tanh()).exp()]
OPS += [lambda a, b, w: b + a.tanh().sum(), lambda a, b, w: b.detach().tanh() * a]


def leaf(value):
    return Tensor(torch.as_tensor(value, dtype=torch.float64), requires_grad=True)


def values(seed=0, shapes=SHAPES):
    torch.manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


# --- examples ----------------------------------------------------------------------------------
def test_vjp_of_the_docstring_has_the_shape_of_x_and_belongs_to_a_scalar():
    x, ours = torch.arange(4.0, requires_grad=True), Tensor(torch.arange(4.0), requires_grad=True)
    v = torch.tensor([1.0, 2.0, 3.0, 4.0])
    jacobian = torch.autograd.functional.jacobian(lambda x: x * x, x.detach())  # (M, N)
    (x * x).backward(gradient=v)
    (ours * ours).backward(v)
    (of_scalar,) = torch.autograd.grad(v @ (x * x), x)
    for grad in (ours.grad, x.grad, of_scalar, v @ jacobian):
        assert grad.tolist() == [0, 4, 12, 24]


def test_ones_for_v_are_the_sum():
    x, other = leaf([0.0, 1, 2, 3]), leaf([0.0, 1, 2, 3])
    (x * x).backward(torch.ones(4))
    (other * other).sum().backward()
    assert x.grad.tolist() == other.grad.tolist() == [0, 2, 4, 6]


def test_detach_stops_the_gradient():
    x = leaf([0.0, 1, 2, 3])
    u = (x * x).detach()
    (u * x).sum().backward()
    assert x.grad.tolist() == u.value.tolist() == [0, 1, 4, 9]  # not [0, 3, 12, 27]
    assert u.grad is None and not u.requires_grad and not u.parents


def test_gradients_pile_up_until_they_are_dropped():
    x = leaf([0.0, 1, 2, 3])
    assert x.grad is None
    y = (x * x).sum()
    y.backward()
    y.backward()
    assert x.grad.tolist() == [0, 4, 8, 12]
    x.grad = None
    y.backward()
    assert x.grad.tolist() == [0, 2, 4, 6]


# --- the engine ----------------------------------------------------------------------------------
def against_torch(function, shapes, seed=0):
    """Largest gap of value and gradients, for y of any shape, with a random v."""
    given = values(seed, shapes)
    theirs, ours = [x.clone().requires_grad_() for x in given], [leaf(x) for x in given]
    y, z = function(*theirs), function(*ours)
    v = torch.randn_like(y)
    y.backward(v)
    z.backward(v)
    gaps = [z.value - y] + [a.grad - b.grad for a, b in zip(ours, theirs, strict=True)]
    return max(gap.abs().max().item() for gap in gaps)


OPERATIONS = {
    "add": lambda a, b: a + b,
    "radd": lambda a, b: 2.0 + a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "rmul": lambda a, b: 3.0 * a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a, b: -a + b,
    "matmul": lambda a, b: a @ (a + b),
    "pow": lambda a, b: (a + b) ** 3,
    "exp": lambda a, b: (a + b).exp(),
    "log": lambda a, b: (a * a + b * b).log(),
    "tanh": lambda a, b: (a * b).tanh(),
    "relu": lambda a, b: (a - b).relu(),
    "sum": lambda a, b: a.sum() * b,
    "many uses": lambda a, b: a + a * a + a.exp() * a + b,
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(4, 4), (1, 4), (4, 1), (4,), ()])
def test_operation_and_broadcasting(name, shape):
    assert against_torch(OPERATIONS[name], [(4, 4), shape]) < 1e-12


def random_graph(leaves, seed, ops=OPS):
    """One number made from leaves (torch's or ours) by 12 operations drawn at random."""
    draw, pool = random.Random(seed), [*leaves]
    for _ in range(12):
        pool.append(draw.choice(ops)(draw.choice(pool), draw.choice(pool), leaves[0]))
    return sum((node.tanh().sum() for node in pool[1:]), pool[0].sum())


def graph_gap():
    """Worst gap to torch of 30 graphs, relative where a gradient is large."""
    worst = 0.0
    for seed in range(30):
        given = values(seed)
        theirs, ours = [x.clone().requires_grad_() for x in given], [leaf(x) for x in given]
        random_graph(theirs, seed).backward()
        random_graph(ours, seed).backward()
        for a, b in zip(ours, theirs, strict=True):
            worst = max(worst, ((a.grad - b.grad).abs() / b.grad.abs().clamp(min=1)).max().item())
    return worst


def test_random_graphs():
    assert graph_gap() < 1e-12


def test_random_graphs_use_every_operation():
    used = set()

    def spy(at):
        return lambda *x: used.add(at) or OPS[at](*x)

    for seed in range(30):
        random_graph(values(), seed, [spy(at) for at in range(len(OPS))])
    assert used == {*range(len(OPS))}


def test_central_differences():
    """No torch.autograd here: the plain values are pushed a little, up and down."""
    for seed in (0, 1, 3):
        given = values(seed)
        ours = [leaf(x.clone()) for x in given]
        random_graph(ours, seed, OPS[:-1]).backward()  # detach has a difference but no gradient
        for x, node in zip(given, ours, strict=True):
            for at in torch.cartesian_prod(*map(torch.arange, x.shape)) if x.dim() else [()]:
                at, ends = tuple(map(int, at)), []
                for push in (1e-6, -2e-6):
                    x[at] += push
                    ends.append(random_graph(given, seed, OPS[:-1]).item())
                x[at] += 1e-6
                slope = (ends[0] - ends[1]) / 2e-6
                assert abs(slope - node.grad[at].item()) < 1e-6 * max(1, abs(slope))


def test_net_trains_as_in_torch():
    metrics = mod.run(mod.parse_args(["--smoke", "--seed", "2"]))
    assert metrics["wrong_examples"] == 0 and metrics["xor_gap"] < 1e-10


def test_deep_graph_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(5000):
        y = y + x * 0.001
    y.backward()
    assert abs(x.grad.item() - 6) < 1e-9


def test_constants_cost_nothing():
    x, c = leaf([1.0, 2.0]), Tensor(torch.ones(2))
    y = x * c + 1.0
    assert len(y.parents) == 1 and not (c * c).parents
    y.sum().backward()
    assert c.grad is None


BREAKS = {
    "exp": lambda x: Tensor(x.value.exp(), (x, lambda v: v)),
    "tanh": lambda x: Tensor(x.value.tanh(), (x, lambda v: v * (1 - x.value.tanh()))),
    "relu": lambda x: Tensor(x.value.relu(), (x, lambda v: v)),
    "sum": lambda x: Tensor(x.value.sum(), (x, lambda v: 2 * v.expand(x.value.shape))),
    "detach": lambda x: x,
    "__neg__": lambda x: x,
    "__matmul__": lambda a, b: Tensor(
        a.value @ b.value, (a, lambda v: v @ b.value), (b, lambda v: a.value.T @ v)
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_wrong_rule_is_seen(name, monkeypatch):
    monkeypatch.setattr(Tensor, name, BREAKS[name])
    assert graph_gap() > 1e-3


# --- mistakes ------------------------------------------------------------------------------------
def test_backward_needs_a_v_of_the_shape_of_y():
    x = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match=r"y has shape \(2,\): backward needs a v"):
        (x * x).backward()
    for v in (torch.ones(3), torch.ones(1), torch.ones(2, 1)):
        with pytest.raises(ValueError, match=r"v has shape .*, y \(2,\)"):
            (x * x).backward(v)
    assert x.grad is None


def test_table():
    code, out, err = call(PATH, "--seed", 3)
    assert (code, err) == (0, "") and out.count("\n") == 8
    for grad in ("[0.0, 2.0, 4.0, 6.0]", "[0.0, 1.0, 4.0, 9.0]", "[0.0, 3.0, 12.0, 27.0]"):
        assert f"x.grad {grad}\n" in out
