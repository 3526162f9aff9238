"""som.py against MiniSom, in float64: the same start, examples and order give the same weights."""

import minisom
import numpy as np
import pytest
import torch
from house import load
from sklearn.datasets import load_iris

mod = load("classic_ml/som.py")
x = load_iris().data
x = (x - x.mean(0)) / x.std(0)
x = x[np.random.RandomState(0).permutation(len(x))]
R, C, D, N = 7, 6, x.shape[1], len(x)  # an odd number of rows: theirs count from the last one


def pair(kind="gaussian", topology="rectangular", sigma=3.0, lr=0.5, decay="linear"):
    """Theirs and ours with the same weights. Their first axis is our row on a rectangular grid,
    but our column on a hexagonal one, where they shift the first coordinate."""
    names = {"linear": ("linear_decay_to_zero", "linear_decay_to_one")}
    first, second = names.get(decay, ("asymptotic_decay", "asymptotic_decay"))
    size = (R, C) if topology == "rectangular" else (C, R)
    more = {"decay_function": first, "sigma_decay_function": second, "random_seed": 1}
    more |= {"sigma": sigma, "learning_rate": lr, "topology": topology}
    theirs = minisom.MiniSom(*size, D, neighborhood_function=kind, **more)
    ours = mod.SOM(R, C, D, topology).double()
    ours.weight.copy_(carried(theirs))
    return theirs, ours


def carried(theirs):
    weights = torch.from_numpy(theirs.get_weights().copy())
    weights = weights.transpose(0, 1) if theirs.topology == "hexagonal" else weights
    return weights.reshape(-1, D)


def schedules(decay, sigma, lr):
    t = torch.arange(N, dtype=torch.float64) / N
    if decay == "linear":
        return lr * (1 - t), sigma + (1 - sigma) * t
    return lr / (1 + 2 * t), sigma / (1 + 2 * t)


def one_epoch(kind, topology, decay, spoil=1.0):
    sigma, lr = (1.5, 0.05) if kind == "mexican_hat" else (3.0, 0.5)
    theirs, ours = pair(kind, topology, sigma, lr, decay)
    theirs.train(x, N)
    alpha, sigma = schedules(decay, sigma, lr)
    mod.online_epoch(ours, torch.from_numpy(x), kind, alpha, spoil * sigma)
    return theirs, ours


CASES = [("gaussian", "rectangular"), ("mexican_hat", "rectangular")]
CASES += [("gaussian", "hexagonal"), ("mexican_hat", "hexagonal")]


@pytest.mark.parametrize("kind, topology", CASES)
@pytest.mark.parametrize("decay", ["linear", "asymptotic"])
def test_one_epoch_online(kind, topology, decay):
    theirs, ours = one_epoch(kind, topology, decay)
    assert (ours.weight - carried(theirs)).abs().max() <= 1e-10
    assert (ours.weight - carried(pair(kind, topology)[0])).abs().max() > 0.1  # and they have moved


def test_another_sigma_is_seen():
    theirs, ours = one_epoch("gaussian", "rectangular", "linear", spoil=1.001)
    assert (ours.weight - carried(theirs)).abs().max() > 1e-5


@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
@pytest.mark.parametrize("lr", [1.0, 0.3])
def test_one_epoch_batch(topology, lr):
    theirs, ours = pair("gaussian", topology, 2.0, lr)
    theirs.train_batch_offline(x, 1)
    mod.batch_epoch(ours, torch.from_numpy(x), "gaussian", lr, 2.0)
    assert (ours.weight - carried(theirs)).abs().max() <= 1e-10


@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
def test_errors_and_u_matrix(topology):
    theirs, ours = one_epoch("gaussian", topology, "linear")
    found = mod.evaluate(ours, torch.from_numpy(x))
    assert found["qe"] == pytest.approx(theirs.quantization_error(x), abs=1e-10)
    assert found["te"] == pytest.approx(theirs.topographic_error(x), abs=1e-7)
    want = theirs.distance_map(scaling="mean")
    want = torch.from_numpy(want if topology == "rectangular" else want.T.copy()).flatten()
    U = mod.u_matrix(ours)
    assert (U / U.max() - want).abs().max() <= 1e-10
    if topology == "hexagonal":
        places = np.stack(theirs.get_euclidean_coordinates(), 2).swapaxes(0, 1).reshape(-1, 2)
        places = torch.from_numpy(places.copy())
        assert (torch.cdist(places, places).square() - ours.d2).abs().max() < 1e-6


def test_a_batch_map_is_finer_than_theirs():
    """After the same number of epochs, from the same start, on the same grid."""
    theirs, ours = pair("gaussian", sigma=2.0)
    theirs.train(x, 20 * N)
    for epoch in range(20):
        sigma = 2.0 + (0.5 - 2.0) * epoch / 20
        mod.batch_epoch(ours, torch.from_numpy(x), "gaussian", 1.0, sigma)
    assert mod.evaluate(ours, torch.from_numpy(x))["qe"] < theirs.quantization_error(x)
