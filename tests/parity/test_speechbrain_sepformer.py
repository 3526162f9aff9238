"""sepformer.py against the official network, that of speechbrain, by its own state dict."""

import warnings

import pytest
import torch
from house import load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from speechbrain.lobes.models.dual_path import Dual_Path_Model, SBTransformerBlock

mod = load("separation/sepformer.py")
TABLE = {".self_att.att.": ".self_attn.", ".pos_ffn.ffn.0.": ".linear1."}
TABLE |= {".pos_ffn.ffn.3.": ".linear2.", ".norm1.norm.": ".norm1.", ".norm2.norm.": ".norm2."}
TABLE |= {".layers.": ".", "output.0.": "output.", "output_gate.0.": "output_gate."}


def official(n_filters, n_src, sizes, depth, n_blocks, size):
    dim, heads, hidden = sizes
    shape = {"num_layers": depth, "d_model": dim, "nhead": heads, "d_ffn": hidden, "dropout": 0}
    shape |= {"use_positional_encoding": True, "norm_before": True}
    paths = (SBTransformerBlock(**shape) for _ in range(2))
    how = {"num_layers": n_blocks, "norm": "ln", "K": size, "num_spks": n_src}
    how |= {"skip_around_intra": True, "linear_layer_after_inter_intra": False}
    return Dual_Path_Model(n_filters, dim, *paths, **how)


def ours_of(saved, depth, n_blocks):
    """The official state dict under our names; tables of sines are not learned."""
    table, found = dict(TABLE), {}
    for at in range(n_blocks):
        for path, name in enumerate(("intra", "inter")):
            start, own = f"dual_mdl.{at}.{name}_", f"dual_mdl.{2 * at + path}."
            table |= {f"{start}mdl.mdl.norm.norm.": f"{own}mdl.{depth}."}
            table |= {f"{start}mdl.mdl.": f"{own}mdl.", f"{start}norm.": f"{own}norm."}
    table |= {"prelu.": f"dual_mdl.{2 * n_blocks}.", "conv2d.": f"dual_mdl.{2 * n_blocks + 1}."}
    for key, value in saved.items():
        name, moved = key, False
        for old, new in table.items():
            if not (old.startswith("dual_mdl") and moved) and old in name:  # numbers change once
                name, moved = name.replace(old, new), moved or old.startswith("dual_mdl")
        if not key.endswith("pos_enc.pe"):
            found[name] = value
    return found


def pair(n_src, size, depth=2, n_blocks=2):
    """Theirs and ours with the same weights, none of which is left at its initial value."""
    torch.manual_seed(0)
    sizes = 20, n_src, (12, 3, 16), depth, n_blocks, size
    theirs, ours = official(*sizes).eval(), mod.MaskingNetwork(*sizes).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ours.load_state_dict(ours_of(theirs.state_dict(), depth, n_blocks))
    return theirs, ours


def gap(theirs, ours, n):
    w = torch.randn(2, 20, n)
    with torch.inference_mode():
        y = theirs(w).transpose(0, 1)  # theirs have the voices first
        return ((ours(w) - y).abs().max() / y.abs().max()).item()


@pytest.mark.parametrize("n", [9, 100, 101, 105, 2000])
@pytest.mark.parametrize("n_src, size", [(2, 10), (3, 6)])
def test_masks_are_the_official_ones(n, n_src, size):
    assert gap(*pair(n_src, size), n) < 1e-5


@pytest.mark.parametrize("part", ["dual_mdl.0.norm", "dual_mdl.3.mdl.1.norm2", "output_gate"])
def test_a_wrong_weight_is_seen(part):
    theirs, ours = pair(2, 10)
    with torch.no_grad():
        ours.get_submodule(part).weight.mul_(1.01)
    assert gap(theirs, ours, 100) > 1e-4


def test_the_paper_has_as_many_weights():
    with torch.device("meta"):
        theirs = official(256, 2, (256, 8, 1024), 8, 2, 250)
        ours = mod.MaskingNetwork(256, 2, (256, 8, 1024), 8, 2, 250)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert {k: v.shape for k, v in ours_of(theirs.state_dict(), 8, 2).items()} == shapes
