"""stylegan3.py against the official networks: the same state dicts, strictly, both ways; pictures
and all gradients in float64, for configs T and R, of inputs that are moved, too."""

import types

import pytest
import torch
from house import load
from oracles import official_stylegan3

gan, official = load("gan/stylegan3.py"), official_stylegan3()
Z, W = 10, 9
KINDS = [(16, 6, False), (16, 7, True), (32, 6, True), (32, 14, False), (64, 8, False)]


class Double(types.ModuleType):
    """torch, where float32 is float64: the official networks cast their inputs to float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def float64(monkeypatch):
    monkeypatch.setattr(official, "torch", Double("torch"))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pair(size, n_layers, rotation, base=256, most=8, margin=10, n_mapping=2, z=Z, w=W):
    """Ours and the official generator, as they are made."""
    maps = {"channel_base": base * (1 + rotation), "channel_max": most * (1 + rotation)}
    form = {"conv_kernel": 1 if rotation else 3, "use_radial_filters": rotation}
    form |= {"num_layers": n_layers, "num_fp16_res": 0, "margin_size": margin}
    more = {"mapping_kwargs": {"num_layers": n_mapping}, **form, **maps}
    theirs = official.Generator(z, 0, w, size, 3, **more)
    sizes = size, n_layers, margin, maps["channel_max"], maps["channel_base"]
    stages = [gan.Signal(i, *sizes) for i in range(n_layers + 1)]
    return gan.Generator(z, w, n_mapping, 3, stages, rotation, 0.999), theirs


def shaken(ours, theirs):
    """The official weights, none as at first, in both; the input is moved, turned and enlarged."""
    with torch.no_grad():
        for part in theirs.parameters():
            part.add_(0.3 * torch.randn_like(part))
        for name, part in theirs.named_buffers():
            if name.endswith("magnitude_ema"):
                part.uniform_(0.5, 1.5)
        theirs.mapping.w_avg.normal_()
        matrix = torch.tensor([[0.9, -0.5, 0.1], [0.4, 1.3, -0.2], [0.0, 0.0, 1.0]])
        theirs.synthesis.input.transform.copy_(matrix)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    if torch.get_default_dtype() == torch.float64:
        ours.double(), theirs.double()
        for module in theirs.modules():  # the official resampling takes its filters in float32
            for name, part in module.named_buffers(recurse=False):
                if name.endswith("_filter"):
                    setattr(module, name, part.float())
    return ours.eval(), theirs.eval()


def gap_of(ours, theirs, psi=1.0, train=False):
    """Largest relative difference of pictures, of gradients of all parameters, and of buffers."""
    z = torch.randn(2, Z)
    ours.train(train), theirs.train(train)
    pictures = ours(z, psi), theirs(z, None, truncation_psi=psi, update_emas=train)
    slope = torch.randn_like(pictures[0])
    grads = []
    for model, x in zip((ours, theirs), pictures, strict=True):
        names = sorted(dict(model.named_parameters()))
        parts = [dict(model.named_parameters())[name] for name in names]
        grads.append(torch.autograd.grad((x * slope).sum(), parts))
    assert pictures[0].std(0).mean() > 1e-3  # they tell the z apart
    gaps = [(pictures[0] - pictures[1]).abs().max() / pictures[1].abs().max()]
    size = max(grad.abs().max() for grad in grads[1])
    gaps += [(a - b).abs().max() / size for a, b in zip(*grads, strict=True)]
    there = theirs.state_dict()
    gaps += [(value - there[key]).abs().max() for key, value in ours.state_dict().items()]
    return max(gap.item() for gap in gaps)


@pytest.mark.parametrize("size, n_layers, rotation", KINDS)
def test_names_and_filters(size, n_layers, rotation):
    ours, theirs = pair(size, n_layers, rotation)
    mine, there = ours.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in there.items()}
    for key, value in there.items():
        if key.endswith("_filter"):
            assert (mine[key] - value).abs().max() < 1e-7
    theirs.load_state_dict(mine, strict=True), ours.load_state_dict(there, strict=True)
    assert theirs.num_ws == ours.num_ws


@pytest.mark.parametrize("size, n_layers, rotation", KINDS)
def test_pictures_and_gradients(float64, size, n_layers, rotation):
    torch.manual_seed(0)
    ours, theirs = shaken(*pair(size, n_layers, rotation))
    assert gap_of(ours, theirs, psi=0.6) < 1e-9


@pytest.mark.parametrize("rotation", [False, True])
def test_training_mode_and_its_running_means(float64, rotation):
    torch.manual_seed(0)
    ours, theirs = shaken(*pair(16, 6, rotation, margin=4))
    before = ours.synthesis.L1_24_16 if rotation else ours.synthesis.L1_24_8
    before = before.magnitude_ema.clone()
    assert gap_of(ours, theirs, train=True) < 1e-9
    assert gap_of(ours, theirs, train=True) < 1e-9  # the means have moved by now
    now = (ours.synthesis.L1_24_16 if rotation else ours.synthesis.L1_24_8).magnitude_ema
    assert (now - before).abs() > 1e-6


@pytest.mark.parametrize("key", ["up_filter", "weight", "magnitude_ema", "affine.bias"])
def test_what_is_wrong_is_seen(float64, key):
    torch.manual_seed(0)
    ours, theirs = shaken(*pair(16, 6, False))
    layer = ours.synthesis.L2_36_8
    part = dict([*layer.named_parameters(), *layer.named_buffers()])[key]
    with torch.no_grad():
        part.flatten()[0].mul_(1.001)
    z = torch.randn(3, Z)
    gap = (ours(z) - theirs(z, None)).abs().max() / theirs(z, None).abs().max()
    assert gap > 1e-7


@pytest.mark.parametrize("config", ["ffhq_t", "ffhq_r"])
def test_number_of_weights_at_1024(config):
    """All shapes; ours with nothing in memory."""
    args = gan.parse_args(["--config", config, "--device", "cpu"])
    args.device = "meta"
    with torch.device("meta"):
        ours = gan.build(args)[0]
    _, theirs = pair(1024, 14, config == "ffhq_r", 32768, 512, z=512, w=512)
    there = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == there


def test_official_weights_are_loaded(tmp_path):
    ours, theirs = pair(16, 6, False, 1024, 24, z=64, w=64)
    torch.save(theirs.state_dict(), tmp_path / "g.pt")
    args = ["--channels", "3", "--dataset", "cifar10", "--img_size", "16", "--device", "cpu"]
    args = gan.parse_args([*args, "--weights", str(tmp_path / "g.pt")])
    args.device = "cpu"
    model, z = gan.build(args)[0].eval(), torch.randn(2, 64)
    assert (model(z) - theirs.eval()(z, None)).abs().max() < 1e-5
    assert (ours.eval()(z) - model(z)).abs().max() > 1e-3
