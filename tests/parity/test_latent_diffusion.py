"""latent_diffusion.py against diffusers: its U-Net under weight transfer, and DDIM's steps."""

import pytest
import torch
from house import load

diffusers = pytest.importorskip("diffusers")
ldm = load("diffusion/latent_diffusion.py")
F64 = torch.float64

# Z, base, mults, blocks, levels that attend, context, heads, channels of a head, norm groups
SHAPES = {
    "laptop": (4, 32, (1, 2), 2, [0, 1], 64, 4, 0, 8),
    "coarse": (4, 32, (1, 2), 1, [1], 48, 4, 0, 8),
    "head_dim": (3, 32, (1, 2, 3), 1, [1, 2], 16, 4, 16, 8),
    "sd": (4, 32, (1, 2, 4, 4), 2, [0, 1, 2], 24, 8, 0, 8),
}


def peer(z, base, mults, depth, levels, context, heads, head_dim, groups):
    kinds = ["CrossAttn" if i in levels else "" for i in range(len(mults))]
    return diffusers.UNet2DConditionModel(
        in_channels=z,
        out_channels=z,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in kinds[::-1]],
        block_out_channels=[base * mult for mult in mults],
        layers_per_block=depth,
        cross_attention_dim=context,
        # by this name diffusers means the number of heads
        attention_head_dim=[base * m // head_dim if head_dim else heads for m in mults],
        norm_num_groups=groups,
        norm_eps=1e-5,
    ).eval()


def pair(shape):
    """Ours and theirs with the same random weights, none of them zero, in float64."""
    torch.manual_seed(0)
    ours, theirs = ldm.UNet(*SHAPES[shape][:-1]).double(), peer(*SHAPES[shape]).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gaps(ours, theirs, shape):
    """Largest differences of the output and of every gradient, the context's too."""
    torch.manual_seed(1)
    z, context = SHAPES[shape][0], SHAPES[shape][5]
    x, t = torch.randn(2, z, 8, 8, dtype=F64), torch.tensor([3, 731])
    y = torch.randn(2, 5, context, dtype=F64)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    rows, outs, slopes = {}, [], []
    for net in (ours, theirs):
        told = y.clone().requires_grad_()
        if net is ours:
            out = net(x, t, told, mask)
        else:
            out = net(x, t, told, encoder_attention_mask=mask).sample
        out.square().mean().backward()
        outs.append(out)
        slopes.append(told.grad)
    rows["out"] = (outs[0] - outs[1]).abs().max().item() / outs[1].abs().max().item()
    rows["context"] = (slopes[0] - slopes[1]).abs().max().item()
    assert slopes[1].abs().max() > 1e-6, "the context has no effect"
    assert slopes[0][1, 2:].abs().max() == 0, "padding is seen"
    grads = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = max(1.0, grads[name].grad.abs().max().item())
        rows[name] = (parameter.grad - grads[name].grad).abs().max().item() / scale
    return rows


@pytest.mark.parametrize("shape", SHAPES)
def test_unet_equals_diffusers(shape):
    assert max(gaps(*pair(shape), shape).values()) <= 1e-9


def test_weights_come_back():
    """Theirs, as initialised by them, into ours: the other direction, strictly."""
    theirs = peer(*SHAPES["laptop"]).double()
    ours = ldm.UNet(*SHAPES["laptop"][:-1]).double()
    ours.load_state_dict(theirs.state_dict())
    assert max(gaps(ours, theirs, "laptop").values()) <= 1e-9


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net: setattr(net.conv_norm_out, "eps", 1e-6),
        lambda net: setattr(net.down_blocks[0].resnets[0].norm2, "eps", 1e-6),
        lambda net: setattr(net.mid_block.attentions[0].norm, "eps", 1e-5),
        lambda net: setattr(
            net.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight,
            "data",
            net.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight.data * 1.001,
        ),
    ],
)
def test_a_small_mistake_is_seen(spoil):
    """Negative control: another epsilon, or one layer off by a thousandth."""
    ours, theirs = pair("coarse")
    spoil(ours)
    assert max(gaps(ours, theirs, "coarse").values()) > 1e-9


def official(config):
    args = ldm.parse_args(["--config", config])
    shape = args.latent_channels, args.base_channels, args.channel_mult, args.n_res_blocks
    shape += args.attn_levels, args.context_dim, args.heads, args.head_dim
    with torch.device("meta"):
        return ldm.UNet(*shape), peer(*shape, 32)


@pytest.mark.parametrize(("config", "count"), [("sd14", 859_520_964), ("ldm4", 400_920_579)])
def test_official_size_loads_strictly(config, count):
    """The U-Nets of Stable Diffusion 1.4 and of LDM-4 for the classes of ImageNet (400.9M)."""
    ours, theirs = official(config)
    assert sum(p.numel() for p in ours.parameters()) == count
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert ours.conv_norm_out.num_groups == 32


def scheduler(timesteps, start, end):
    """diffusers' DDIM over the same schedule, its tables recomputed in float64."""
    scale = 1000 / timesteps
    ours = diffusers.DDIMScheduler(
        num_train_timesteps=timesteps,
        beta_start=start * scale,
        beta_end=end * scale,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="linspace",
    )
    roots = torch.linspace((start * scale) ** 0.5, (end * scale) ** 0.5, timesteps, dtype=F64)
    assert (ours.betas - roots**2).abs().max() < 1e-6
    ours.alphas_cumprod = (1 - roots**2).cumprod(0)
    ours.final_alpha_cumprod = torch.ones((), dtype=F64)
    return ours


@pytest.mark.parametrize(
    ("timesteps", "start", "end"), [(1000, 0.00085, 0.012), (50, 0.0015, 0.0195)]
)
def test_ddim_equals_diffusers(timesteps, start, end):
    """Schedule, x_hat and steps; theirs goes to t - T // S, so single steps are compared."""
    theirs = scheduler(timesteps, start, end)
    ours = ldm.GaussianDiffusion(timesteps, start, end, "cpu", F64)
    assert torch.allclose(
        torch.tensor(ours.abar[:-1], dtype=F64), theirs.alphas_cumprod, atol=1e-13
    )
    theirs.set_timesteps(timesteps // 5)
    x, out = torch.randn(2, 3, 4, 8, 8, dtype=F64)
    for t in (timesteps - 1, timesteps // 2, 7, 3):
        step = theirs.step(out, t, x, eta=0.0).prev_sample
        assert (ours.ddim_step(x, out, t, max(t - 5, -1)) - step).abs().max() <= 1e-10
        noisy = theirs.add_noise(x, out, torch.tensor([t]))
        assert (ours.q_sample(x, torch.tensor([t]), out) - noisy).abs().max() <= 1e-10


def test_guidance_equals_diffusers_way():
    """The pipeline's formula over one batch of both halves."""
    ours, theirs = pair("coarse")
    diffusion = ldm.GaussianDiffusion(100, 0.0015, 0.0195, "cpu", F64)
    x, context = torch.randn(2, 4, 8, 8, dtype=F64), torch.randn(3, 5, 48, dtype=F64)
    mask = torch.ones(3, 5, dtype=torch.bool)
    which = torch.tensor([0, 1])
    with torch.no_grad():
        mine = diffusion.guided(lambda x, t, i: ours(x, t, context[i], mask[i]), x, 40, which, 7.5)
        halves = theirs(
            torch.cat([x] * 2), 40, torch.cat([context[2:].expand(2, -1, -1), context[:2]])
        ).sample
    without, given = halves.chunk(2)
    assert (mine - (without + 7.5 * (given - without))).abs().max() <= 1e-9
