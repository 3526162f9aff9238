"""som.py against MiniSom on the digits: time until the quantisation error is that of MiniSom's last
map. Both start on the plane of the principal axes; topographic errors are told beside it."""

import warnings

import torch
from house import load
from minisom import MiniSom
from sklearn.datasets import load_digits

mod = load("classic_ml/som.py")
SIDE, EPOCHS = 20, 5


def peer(x, sigma):
    """Five epochs of MiniSom, with its own schedules and rate."""
    som = MiniSom(SIDE, SIDE, x.shape[1], sigma=sigma, learning_rate=0.5, random_seed=0)
    som.pca_weights_init(x)
    som.train(x, EPOCHS * len(x), random_order=True)
    return som


def batch(x, n_epochs, sigma):
    """A batch map of n_epochs that begins with the same sigma."""
    model = mod.SOM(SIDE, SIDE, x.shape[1], "rectangular").to(x.device)
    model.weight.copy_(mod.principal_plane(x, SIDE, SIDE))
    for epoch in range(n_epochs):
        mod.batch_epoch(model, x, "gaussian", 1.0, sigma + (0.4 - sigma) * epoch / n_epochs)
    return model


def rows(device):
    warnings.filterwarnings("ignore", module="minisom")
    x = load_digits().data / 16
    mine = torch.from_numpy(x).float().to(device)
    for sigma in (2, 3):
        som = peer(x, sigma)
        qe, te = som.quantization_error(x), som.topographic_error(x)
        for n_epochs in range(1, 200):
            found = mod.evaluate(batch(mine, n_epochs, sigma), mine)
            if found["qe"] <= qe:
                break
        theirs = f"MiniSom, 5 epochs online, QE {qe:.3f} TE {te:.3f}"
        yield {
            "name": f"som of the digits, 20 x 20 units, sigma {sigma} at first, batch",
            "peer": f"{theirs}; ours {n_epochs}, {found['qe']:.3f} {found['te']:.3f}",
            "target": 0.3,
            "rounds": 7,
            "ours": lambda n_epochs=n_epochs, sigma=sigma: batch(mine, n_epochs, sigma),
            "theirs": lambda sigma=sigma: peer(x, sigma),
        }
