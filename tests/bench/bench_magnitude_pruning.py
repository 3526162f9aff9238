"""magnitude_pruning.py: the global mask of a ResNet-50, beside torch.nn.utils.prune."""

import torch
import torch.nn.utils.prune as peer
from house import load
from torch import nn
from torchvision.models import resnet50

mod = load("pruning/magnitude_pruning.py")


def theirs(model):
    layers = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    peer.global_unstructured(layers, peer.L1Unstructured, amount=0.8)
    for layer, name in layers:
        peer.remove(layer, name)


def rows(device):
    torch.manual_seed(0)
    model = resnet50().to(device)
    weights = mod.prunable(model)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    start = {name: w.detach().clone() for name, w in weights.items()}

    def ours():
        mod.apply_masks(weights, mod.prune(weights, masks, 0.8))

    def fresh(step):
        """Both begin with a dense net each time: equal zeros would be ties."""

        def run():
            torch._foreach_copy_([w.data for w in weights.values()], [*start.values()])
            step()

        return run

    yield {
        "name": "magnitude_pruning global mask of a ResNet-50, 80 % zeros",
        "peer": "torch.nn.utils.prune.global_unstructured",
        "target": 1.0,
        "ours": fresh(ours),
        "theirs": fresh(lambda: theirs(model)),
    }
