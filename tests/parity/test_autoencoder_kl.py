"""autoencoder_kl.py against diffusers' AutoencoderKL: weights carried over both ways."""

import pytest
import torch
from house import load

diffusers = pytest.importorskip("diffusers")
kl = load("diffusion/autoencoder_kl.py")

# channels, Z, base, mults, residual blocks, norm groups
SHAPES = {
    "laptop": (1, 4, 16, (1, 2), 2, 4),
    "mnist": (1, 4, 32, (1, 2, 2), 2, 8),
    "f8": (3, 4, 16, (1, 2, 4, 4), 2, 4),
}


def peer(channels, latent, base, mults, depth, groups):
    return diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(mults),
        up_block_types=["UpDecoderBlock2D"] * len(mults),
        block_out_channels=[base * mult for mult in mults],
        layers_per_block=depth,
        latent_channels=latent,
        norm_num_groups=groups,
    )


def pair(shape):
    """Ours and theirs with the same random weights, none of them zero, in float64."""
    torch.manual_seed(0)
    ours, theirs = kl.AutoencoderKL(*SHAPES[shape][:-1]).double(), peer(*SHAPES[shape]).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gaps(ours, theirs, shape):
    """Largest differences of moments, decoded images, KL, and gradients of both networks."""
    x = torch.rand(2, SHAPES[shape][0], 16, 16, dtype=torch.float64) * 2 - 1
    mine, other = ours.encode(x), theirs.encode(x).latent_dist
    z = torch.randn_like(other.mean)
    a, b = ours.decode(z), theirs.decode(z).sample
    pairs = [(mine.mean, other.mean), (mine.logvar, other.logvar), (a, b), (mine.kl(), other.kl())]
    rows = {i: (p - q).abs().max().item() / q.abs().max().item() for i, (p, q) in enumerate(pairs)}
    for posterior, image in ((mine, a), (other, b)):
        (image.square().mean() + posterior.kl().mean() + posterior.mean.sum()).backward()
    grads = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = max(1.0, grads[name].grad.abs().max().item())
        rows[name] = (parameter.grad - grads[name].grad).abs().max().item() / scale
    return rows


@pytest.mark.parametrize("shape", SHAPES)
def test_autoencoder_equals_diffusers(shape):
    assert max(gaps(*pair(shape), shape).values()) <= 1e-9


def test_weights_come_back():
    """Theirs, as initialised by them, into ours: the other direction, strictly."""
    theirs = peer(*SHAPES["laptop"]).double()
    ours = kl.AutoencoderKL(*SHAPES["laptop"][:-1]).double()
    ours.load_state_dict(theirs.state_dict())
    assert max(gaps(ours, theirs, "laptop").values()) <= 1e-9


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net: setattr(net.encoder.conv_norm_out, "eps", 1e-5),
        lambda net: setattr(net.decoder.mid_block.attentions[0].group_norm, "eps", 1e-5),
        lambda net: net.post_quant_conv.weight.data.mul_(1.001),
    ],
)
def test_a_small_mistake_is_seen(spoil):
    """Negative control: another epsilon, or one layer off by a thousandth."""
    ours, theirs = pair("laptop")
    spoil(ours)
    assert max(gaps(ours, theirs, "laptop").values()) > 1e-9


def test_samples_agree():
    ours, theirs = pair("laptop")
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    torch.manual_seed(3)
    mine = ours.encode(x).sample()
    torch.manual_seed(3)
    assert (mine - theirs.encode(x).latent_dist.sample()).abs().max() <= 1e-9


@pytest.mark.parametrize(("config", "count"), [("f8", 83_653_863), ("f4", 55_312_063)])
def test_official_size_loads_strictly(config, count):
    """The layout of Stable Diffusion's autoencoder (f8), and of f4: same names and shapes."""
    args = kl.parse_args(["--config", config])
    with torch.device("meta"):
        numbers = args.base_channels, args.channel_mult, args.n_res_blocks
        ours = kl.AutoencoderKL(3, args.latent_channels, *numbers)
        theirs = peer(3, args.latent_channels, *numbers, 32)
    assert sum(p.numel() for p in ours.parameters()) == count
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert ours.encoder.conv_norm_out.num_groups == 32
