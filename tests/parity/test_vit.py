"""vit.py against timm and torchvision: variants by their keys, some by their numbers."""

import pytest
import timm
import torch
import torchvision
from house import load
from oracles import proven

mod = load("vision/vit.py")
ALL = ["tiny_patch16", "small_patch16", "base_patch16", "base_patch32", "large_patch16"]


def network(config, *flags, device="cpu"):
    args = mod.parse_args(["--config", config, *flags])
    args.device = device
    return mod.build(args, 1000)


@pytest.mark.parametrize("config", [f"vit_{key}" for key in ALL])
def test_layout_is_timms(config):
    with torch.device("meta"):
        ours, theirs = network(config, device="meta"), timm.create_model(f"{config}_224")
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_network_is_timms():
    small = ["--img_size", "64"]
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64)
    proven(network("vit_tiny_patch16", *small), theirs, side=64)


NAMES = {"class_token": "cls_token", "encoder.pos_embedding": "pos_embed"}
NAMES |= {"conv_proj": "patch_embed.proj", "encoder.ln": "norm", "heads.head": "head"}
NAMES |= {"encoder.layers.encoder_layer_": "blocks.", ".ln_1.": ".norm1.", ".ln_2.": ".norm2."}
NAMES |= {"self_attention.in_proj_": "attn.qkv.", "self_attention.out_proj": "attn.proj"}
NAMES |= {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}


def renamed(state):
    found = {}
    for key, value in state.items():
        for old, new in NAMES.items():
            key = key.replace(old, new)
        found[key] = value
    return found


def test_network_is_torchvisions():
    shape = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 3}
    theirs = torchvision.models.VisionTransformer(**shape, hidden_dim=192, mlp_dim=768)
    ours = network("vit_tiny_patch16", "--img_size", "64", "--depth", "2")
    proven(ours, theirs, renamed, side=64)
