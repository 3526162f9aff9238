"""structured_pruning.py on torchvision's ResNet-18 against torch-pruning, which traces the net for
what depends on a channel: the same channels cut leave the same shapes and the same logits."""

import copy

import pytest
import torch
import torch_pruning as peer
from house import load
from torchvision.models import resnet18

mod = load("pruning/structured_pruning.py")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = resnet18().eval()
    for name, tensor in model.state_dict().items():  # nothing stays at its initial value
        if "bn" in name or "downsample.1" in name:
            tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else None
    return model


def cut_by_peer(model, ours, plan, x):
    """Groups in which torch-pruning cuts the channels that plan has at 0."""
    graph, sizes = peer.DependencyGraph().build_dependency(model, x), [g.n for g in ours.groups]
    for group, new in zip(ours.groups, plan.split(sizes), strict=True):
        if group.kind in ("inner", "stream"):
            layer = model.get_submodule(group.members[0][0].rpartition(".")[0])
            gone = (~new).nonzero()[:, 0].tolist()
            graph.get_pruning_group(layer, peer.prune_conv_out_channels, gone).prune()
    return model


@pytest.mark.parametrize("units", [["inner"], ["stream"], ["inner", "stream"]])
@pytest.mark.parametrize("score", ["l1", "random"])
def test_shapes_and_logits(net, units, score):
    torch.manual_seed(1)
    x, ours = torch.randn(2, 3, 64, 64), mod.with_plan(copy.deepcopy(net))
    plan = mod.choose_units(ours, 0.4, units, score, x, None)
    mod.shrink(ours, plan)
    theirs = cut_by_peer(copy.deepcopy(net), ours, plan, x)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes.pop("plan") == plan.shape
    assert {key: value.shape for key, value in theirs.state_dict().items()} == shapes
    with torch.inference_mode():
        y = theirs(x)
        assert (ours(x) - y).abs().max() < 1e-5 * y.abs().max()
        with_all = net(x)
    assert (with_all - y).abs().max() > 1e-2 * y.abs().max()


def test_other_channels_are_seen(net):
    x, ours = torch.randn(2, 3, 64, 64), mod.with_plan(copy.deepcopy(net))
    plan = mod.choose_units(ours, 0.4, ["inner"], "l1", x, None)
    mod.shrink(ours, plan)
    first = ours.groups[0].n
    plan[:first] = plan[:first].roll(1)  # as many, but not the same
    theirs = cut_by_peer(copy.deepcopy(net), ours, plan, x)
    with torch.inference_mode():
        assert (ours(x) - theirs(x)).abs().max() > 1e-3


def test_half_of_resnet18(net):
    ours = mod.with_plan(copy.deepcopy(net))
    x = torch.randn(1, 3, 224, 224)
    assert mod.size(ours, x) == {"params": 11_689_512, "macs": 1_814_073_344}
    mod.shrink(ours, mod.choose_units(ours, 0.5, ["inner", "stream"], "l1", x, None))
    found = mod.size(ours, x)
    assert found["params"] == 3_055_880
    assert found["macs"] == pytest.approx(0.487e9, rel=0.02)  # theirs count batch norms as well
