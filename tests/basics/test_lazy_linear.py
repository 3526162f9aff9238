"""lazy_linear.py: the layer against nn.LazyLinear and nn.Linear, inferred shapes against runs."""

import math

import pytest
import torch
from house import call, load, mistake
from torch import nn

mod = load("basics/lazy_linear.py")
PATH = mod.Path(mod.__file__)


def grown(n_out, shape, cls=mod.LazyLinear, seed=0):
    """A layer after its first x, of this shape."""
    torch.manual_seed(seed)
    layer = cls(n_out)
    layer(torch.zeros(shape))
    return layer


# --- the layer -----------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7), (0, 7), (4, 1)])
def test_equal_to_torch_forward_and_backward(shape):
    ours, theirs = grown(5, shape), grown(5, shape, nn.LazyLinear)
    assert [*ours.state_dict()] == [*theirs.state_dict()] == ["weight", "bias"]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-7 and a.shape == b.shape  # drawn in the same order
    ours, theirs = ours.double(), theirs.double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    x, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, right = ours(x), theirs(z)
    v = torch.randn_like(y)
    y.backward(v)
    right.backward(v)
    assert torch.allclose(y, right, rtol=0, atol=1e-12) and y.shape == right.shape
    assert torch.allclose(x.grad, z.grad, rtol=0, atol=1e-12)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=0, atol=1e-12)


def test_weights_are_uniform_within_the_bound():
    layer, bound = grown(400, (1, 100)), 1 / math.sqrt(100)
    for parameter, n in ((layer.weight, 40_000), (layer.bias, 400)):
        assert parameter.abs().max() <= bound
        assert abs(parameter.std().item() / (bound / math.sqrt(3)) - 1) < 4 / math.sqrt(n)


def test_nothing_has_a_size_before_the_first_x():
    layer = mod.LazyLinear(3)
    assert [*map(nn.parameter.is_lazy, layer.parameters())] == [True, True]
    with pytest.raises(ValueError, match="uninitialized parameter"):
        sum(parameter.numel() for parameter in layer.parameters())
    layer(torch.zeros(2, 4))
    assert sum(parameter.numel() for parameter in layer.parameters()) == 3 * 4 + 3


def test_optimiser_may_come_before_the_dry_run():
    layer = mod.LazyLinear(3)
    weight, optimizer = layer.weight, torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight is weight
    before = weight.detach().clone()
    optimizer.step()
    assert torch.allclose(weight, before - 0.1 * 2)


def test_x_of_another_width_is_refused():
    layer = grown(3, (2, 4))
    with pytest.raises(ValueError, match=r"x is \(2, 5\), but 4 inputs were seen at first"):
        layer(torch.zeros(2, 5))
    assert layer.weight.shape == (3, 4)


def test_weights_are_kept_at_the_second_x():
    layer = grown(3, (2, 4))
    before = layer.weight.detach().clone()
    layer(torch.ones(6, 4))
    assert torch.equal(layer.weight, before)


def test_loaded_weights_tell_the_size():
    net, other = nn.Sequential(mod.LazyLinear(3)), nn.Sequential(nn.Linear(4, 3))
    net.load_state_dict(other.state_dict())
    x = torch.randn(2, 4)
    assert torch.allclose(net(x), other(x), atol=1e-6)
    other = nn.Sequential(nn.LazyLinear(3))
    other.load_state_dict(net.state_dict())
    assert torch.allclose(other(x), net(x), atol=1e-6)
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Sequential(mod.LazyLinear(5)).load_state_dict(net.state_dict())


# --- the shapes ----------------------------------------------------------------------------------
def test_window_against_convolutions_and_pools():
    for n in (5, 6, 7, 12):
        for k in (1, 2, 3, 5):
            for s in (1, 2, 3):
                for p in range(k // 2 + 1):
                    for layer in (nn.Conv2d(1, 1, k, s, p), nn.MaxPool2d(k, s, p)):
                        real = layer(torch.zeros(1, 1, n, n)).shape[-1]
                        assert mod.window(n, layer) == real, (n, k, s, p)


@pytest.mark.parametrize("size, width", [(28, 400), (32, 576), (12, 16), (45, 1296), (64, 3136)])
def test_inferred_shapes_are_those_of_a_run(size, width):
    net = mod.lenet(mod.LazyLinear)
    shape = (3, 1, size, size + 4)
    x, told = torch.zeros(shape), mod.infer(net, shape)
    for layer, inferred in zip(net, told, strict=True):
        x = layer(x)
        assert tuple(x.shape) == inferred
    assert mod.infer(net, (3, 1, size, size))[6] == (3, width)


# --- the script ----------------------------------------------------------------------------------
def args(*argv):
    return mod.parse_args(["--smoke", *argv])


def test_three_networks_agree():
    for seed in ("0", "1"):
        metrics = mod.run(args("--seed", seed))
        assert metrics["wrong_shapes"] == 0 and metrics["weight_gap"] < 1e-7
        assert metrics["output_gap"] < 1e-6 and metrics["grad_gap"] < 1e-5


def test_wrong_bound_is_seen(monkeypatch):
    def give_size(self, n_in):
        self.weight.materialize((self.out_features, n_in))
        self.bias.materialize((self.out_features,))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -1 / n_in, 1 / n_in)

    monkeypatch.setattr(mod.LazyLinear, "give_size", give_size)
    assert mod.run(args())["weight_gap"] > 0.01
    assert call(PATH, "--smoke")[0] == 1


def test_forgotten_bias_is_seen(monkeypatch):
    forward = mod.LazyLinear.forward
    monkeypatch.setattr(mod.LazyLinear, "forward", lambda self, x: forward(self, x) - self.bias)
    metrics = mod.run(args())
    assert metrics["output_gap"] > 1e-3 and metrics["grad_gap"] > 1e-3


def test_wrong_arithmetic_is_seen(monkeypatch):
    right = mod.window
    monkeypatch.setattr(mod, "window", lambda n, layer: right(n + 1, layer))
    with pytest.raises(RuntimeError, match="2x400 and 576x120"):  # nn.Linear was told another D
        mod.run(args())


def test_table():
    code, out, err = call(PATH)
    assert (code, err) == (0, "") and out.count("\n") == 13
    assert "layer Flatten  inferred (2, 400)  real (2, 400)  parameters 0\n" in out


def test_image_too_small_for_both_poolings():
    mistake(PATH, "--img_size", 11, about="--img_size")
    assert call(PATH, "--img_size", 12, "--smoke")[0] == 0
