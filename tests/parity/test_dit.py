"""dit.py against diffusers' DiTTransformer2DModel and timm's blocks, weights carried over."""

import pytest
import torch
from house import load

diffusers = pytest.importorskip("diffusers")
dit = load("diffusion/dit.py")
F64 = torch.float64


def pair():
    """Our network and diffusers', with the same random weights in float64.

    diffusers keeps a copy of both embedders in every block, and sines and cosines in float32 with
    a divisor that is not the official one: both sides get ours, which a test of its own checks.
    """
    torch.manual_seed(0)
    ours = dit.DiT(4, 8, 2, 64, 3, 4, 10).double()
    for name, parameter in ours.named_parameters():
        torch.nn.init.normal_(parameter, std=0.05 if "adaLN" in name else 0.1)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    ).double()
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.forward = lambda t: dit.timestep_embedding(t, 256)
    theirs.load_state_dict(carried(ours.state_dict()), strict=False)
    assert (theirs.pos_embed.pos_embed - ours.pos_embed).abs().max() < 1e-6
    theirs.pos_embed.pos_embed.copy_(ours.pos_embed)
    return ours, theirs.eval()


def carried(weights):
    """Our state dict under the names of diffusers."""
    names = {"attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
    names |= {"adaLN_modulation.1": "norm1.linear"}
    out = {}
    for key, value in weights.items():
        module, kind = key.rsplit(".", 1) if "." in key else (key, "")
        if key.startswith("x_embedder"):
            out[f"pos_embed.proj.{kind}"] = value
        elif key.startswith("final_layer"):
            new = {"final_layer.linear": "proj_out_2"}.get(module, "proj_out_1")
            out[f"{new}.{kind}"] = value
        elif key.startswith("blocks"):
            _, at, rest = module.split(".", 2)
            where = f"transformer_blocks.{at}"
            if rest == "attn.qkv":
                for part, name in zip(value.chunk(3), "qkv", strict=True):
                    out[f"{where}.attn1.to_{name}.{kind}"] = part
            else:
                out[f"{where}.{names[rest]}.{kind}"] = value
        for at in range(3):
            emb = f"transformer_blocks.{at}.norm1.emb"
            if key.startswith("t_embedder.mlp"):
                layer = {"0": "linear_1", "2": "linear_2"}[module.rsplit(".", 1)[1]]
                out[f"{emb}.timestep_embedder.{layer}.{kind}"] = value
            elif key.startswith("y_embedder"):
                out[f"{emb}.class_embedder.embedding_table.weight"] = value
    return out


def inputs():
    torch.manual_seed(1)
    x = torch.randn(3, 4, 8, 8, dtype=F64)
    return x, torch.tensor([0, 500, 999]), torch.tensor([0, 9, 10])


def test_every_weight_is_carried():
    ours, theirs = pair()
    missing = {*theirs.state_dict()} - {*carried(ours.state_dict())}
    assert not missing and not {*carried(ours.state_dict())} - {*theirs.state_dict()}


def test_forward_and_gradient():
    (ours, theirs), (x, t, y) = pair(), inputs()
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, yours = ours(x1, t, y), theirs(x2, t, y).sample
    assert yours.abs().max() > 0.5
    assert (mine - yours).abs().max() <= 1e-9
    weight = torch.randn_like(mine)
    (mine * weight).sum().backward()
    (yours * weight).sum().backward()
    assert (x1.grad - x2.grad).abs().max() <= 1e-9
    grads = carried({k: p.grad for k, p in ours.named_parameters()})
    for key, parameter in theirs.named_parameters():
        if "norm1.emb" not in key:  # ours is the sum over the copies
            assert (grads[key] - parameter.grad).abs().max() <= 1e-9, key


@pytest.mark.parametrize("what", ["qkv", "gate", "time"])
def test_a_wrong_layer_is_seen(what):
    (ours, theirs), (x, t, y) = pair(), inputs()
    with torch.no_grad():
        if what == "qkv":  # the order of q and k
            weight = ours.blocks[1].attn.qkv.weight
            weight[:128] = weight[:128].roll(64, 0)
        elif what == "gate":  # scale and shift the other way round
            weight = ours.blocks[1].adaLN_modulation[1].weight
            weight[:128] = weight[:128].roll(64, 0)
        else:
            t = t + torch.tensor([0, 1, 0])
        yours = theirs(x, inputs()[1], y).sample
        assert (ours(x, t, y) - yours).abs().max() > 1e-4


def test_time_equals_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.arange(0, 1000, 37)
    flags = {"flip_sin_to_cos": True, "downscale_freq_shift": 0}
    gap = dit.timestep_embedding(t, 256) - get_timestep_embedding(t, 256, **flags)
    assert gap.abs().max() <= 2e-4  # angles up to 999 in float32
    flags["downscale_freq_shift"] = 1
    assert (dit.timestep_embedding(t, 256) - get_timestep_embedding(t, 256, **flags)).max() > 0.1


def test_blocks_equal_timm():
    timm = pytest.importorskip("timm.models.vision_transformer")
    torch.manual_seed(0)
    x = torch.randn(2, 16, 64, dtype=F64)
    ours, theirs = dit.Attention(64, 4).double(), timm.Attention(64, 4, qkv_bias=True).double()
    theirs.load_state_dict(ours.state_dict())
    assert (ours(x) - theirs(x)).abs().max() <= 1e-12
    gelu = lambda: torch.nn.GELU(approximate="tanh")  # noqa: E731
    ours, theirs = dit.Mlp(64).double(), timm.Mlp(64, 256, act_layer=gelu).double()
    theirs.load_state_dict(ours.state_dict())
    assert (ours(x) - theirs(x)).abs().max() <= 1e-12
