"""magnitude_pruning.py against torch.nn.utils.prune: the same masks, to the bit, pruned again and
again. Torch counts the share of what is left, and so do the amounts here."""

import pytest
import torch
import torch.nn.utils.prune as peer
from house import load
from torch import nn

mod = load("pruning/magnitude_pruning.py")


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 10))


def ones(weights):
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}


def wrong(masks, model):
    layers = zip(masks.values(), model, strict=True)
    return sum(int((mask != layer.weight_mask.bool()).sum()) for mask, layer in layers)


def gaps(method, seed, tilt=0.0):
    """Entries of the masks in which three rounds of pruning differ; tilt spoils our weights."""
    model = net(seed)
    weights = {name: w.detach() + tilt * w.sign() for name, w in mod.prunable(model).items()}
    masks, found = ones(weights), []
    for amount in (0.3, 0.5, 0.2):
        if method == "global":
            peer.global_unstructured(
                [(m, "weight") for m in model], peer.L1Unstructured, amount=amount
            )
            dead = sum(int((m.weight_mask == 0).sum()) for m in model)
            masks = mod.prune(weights, masks, dead / sum(w.numel() for w in weights.values()))
        else:
            for name, layer in zip(weights, model, strict=True):
                own = {name: weights[name]}
                if method == "local":
                    peer.l1_unstructured(layer, "weight", amount)
                    share = 1 - layer.weight_mask.mean().item()
                    masks |= mod.prune(own, masks, share, "local")
                else:
                    norm, dim = method
                    peer.ln_structured(layer, "weight", amount, n=norm, dim=dim)
                    others = [d for d in range(weights[name].ndim) if d != dim]
                    share = (layer.weight_mask.sum(others) == 0).float().mean().item()
                    masks |= mod.prune(own, masks, share, "ln", norm, dim)
        found.append(wrong(masks, model))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["local", "global", (1, 0), (2, 0), (1, 1), (2, 1)])
def test_masks_are_torchs(method, seed):
    assert gaps(method, seed) == [0, 0, 0]


def test_other_sizes_are_seen():
    torch.manual_seed(0)
    assert gaps("local", 0, tilt=-0.05) != [0, 0, 0]  # small weights change their order
    assert gaps("global", 0, tilt=-0.05) != [0, 0, 0]


def test_random_takes_as_many():
    model = net(0)
    weights = mod.prunable(model)
    masks = mod.prune(weights, ones(weights), 0.37, "random")
    peer.global_unstructured([(m, "weight") for m in model], peer.RandomUnstructured, amount=0.37)
    dead = [int((~masks[f"{i}.weight"]).sum()) for i in range(3)]
    assert sum(dead) == sum(int((m.weight_mask == 0).sum()) for m in model)
