"""improved_ddpm.py against diffusers: the same steps, and the same network."""

import pytest
import torch
from house import load

diffusers = pytest.importorskip("diffusers")
improved = load("diffusion/improved_ddpm.py")
F64 = torch.float64


def scheduler(betas):
    """diffusers' scheduler with its tables recomputed in float64, which it keeps in float32."""
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=len(betas),
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        clip_sample=True,
    )
    assert torch.allclose(theirs.betas.double(), betas, rtol=1e-3, atol=1e-6)
    theirs.betas = betas
    theirs.alphas = 1 - theirs.betas
    theirs.alphas_cumprod = theirs.alphas.cumprod(0)
    theirs.one = torch.ones((), dtype=F64)
    return theirs


def step_gap(timesteps):
    """Largest difference of x_{t-1} and x_hat between both, over times and random inputs."""
    betas = improved.noise_schedule("cosine", timesteps)
    theirs, ours = scheduler(betas), improved.GaussianDiffusion(betas, "cpu", F64)
    gap = 0.0
    for t in {0, 1, 2, timesteps // 2, timesteps - 2, timesteps - 1}:
        torch.manual_seed(t)
        x = torch.randn(4, 1, 8, 8, dtype=F64)
        out = torch.randn(4, 2, 8, 8, dtype=F64)
        generator = torch.Generator().manual_seed(7)
        step = theirs.step(out, t, x, generator=generator)
        torch.manual_seed(7)
        mine = ours.p_sample(lambda *_, out=out: out, x, torch.full((4,), t))
        for a, b in zip(mine, (step.prev_sample, step.pred_original_sample), strict=True):
            gap = max(gap, (a - b).abs().max().item())
    return gap


@pytest.mark.parametrize("timesteps", [50, 1000, 4000])
def test_step_equals_diffusers(timesteps):
    assert step_gap(timesteps) <= 1e-10


@pytest.mark.parametrize("table", ["coef_x0", "coef_xt", "log_beta", "log_beta_tilde"])
def test_a_wrong_coefficient_is_seen(monkeypatch, table):
    """Negative control: one table off by a thousandth, and the parity test above fails."""

    class Broken(improved.GaussianDiffusion):
        def __init__(self, *args):
            super().__init__(*args)
            self.tables[table] = self.tables[table] * 1.001

    monkeypatch.setattr(improved, "GaussianDiffusion", Broken)
    assert step_gap(50) > 1e-6


def carried(ours, heads, depth, levels):
    """Our state dict under diffusers' names; qkv rows go by head there, one layer each here."""
    found = {}
    stages = {}
    for i in range(levels):
        for j in range(depth + 1):
            if j < depth:
                stages["down", i, j] = f"input_blocks.{1 + i * (depth + 1) + j}"
            stages["up", i, j] = f"output_blocks.{i * (depth + 1) + j}"

    def copy(theirs, mine, flat=False):
        for key in ("weight", "bias"):
            value = ours[f"{mine}.{key}"]
            found[f"{theirs}.{key}"] = value.squeeze(-1) if flat and key == "weight" else value

    def resnet(theirs, mine):
        names = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
        names |= {"norm2": "out_layers.0", "conv2": "out_layers.3"}
        if f"{mine}.skip_connection.weight" in ours:
            names["conv_shortcut"] = "skip_connection"
        for a, b in names.items():
            copy(f"{theirs}.{a}", f"{mine}.{b}")

    def attention(theirs, mine):
        copy(f"{theirs}.group_norm", f"{mine}.norm")
        copy(f"{theirs}.to_out.0", f"{mine}.proj_out", flat=True)
        for key in ("weight", "bias"):
            rows = ours[f"{mine}.qkv.{key}"].unflatten(0, (heads, 3, -1))
            rows = rows.squeeze(-1) if key == "weight" else rows
            for part, name in enumerate("qkv"):
                found[f"{theirs}.to_{name}.{key}"] = rows[:, part].flatten(0, 1)

    for (way, i, j), mine in stages.items():
        resnet(f"{way}_blocks.{i}.resnets.{j}", f"{mine}.0")
        if f"{mine}.1.qkv.weight" in ours:
            attention(f"{way}_blocks.{i}.attentions.{j}", f"{mine}.1")
    for i in range(levels - 1):
        down = f"input_blocks.{(i + 1) * (depth + 1)}.0.op"
        copy(f"down_blocks.{i}.downsamplers.0.conv", down)
        last = f"output_blocks.{i * (depth + 1) + depth}"
        layer = 2 if f"{last}.1.qkv.weight" in ours else 1
        copy(f"up_blocks.{i}.upsamplers.0.conv", f"{last}.{layer}.conv")
    for i in (0, 2):
        resnet(f"mid_block.resnets.{i // 2}", f"middle_block.{i}")
    attention("mid_block.attentions.0", "middle_block.1")
    names = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    names |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    for a, b in names.items():
        copy(a, b)
    return found


def pair(channels, side, base, mults, depth, attention, head_dim, groups):
    """Our U-Net and diffusers' with the same random weights, none of them zero."""
    torch.manual_seed(0)
    heads = base * mults[-1] // head_dim
    ours = improved.UNet(channels, side, base, mults, depth, attention, heads, 0.0).eval()
    attend = [side >> i in attention for i in range(len(mults))]
    theirs = diffusers.UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=2 * channels,
        layers_per_block=depth,
        block_out_channels=[base * mult for mult in mults],
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attend],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in attend[::-1]],
        norm_num_groups=groups,
        norm_eps=1e-5,
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
        attention_head_dim=head_dim,
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=groups,
    ).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    theirs.load_state_dict(carried(ours.state_dict(), heads, depth, len(mults)))
    return ours, theirs


# Levels that attend all have the same width: diffusers fixes that of a head, we their number.
SHAPES = {
    "cifar": (3, 32, 16, (1, 2, 2, 2), 3, [16, 8], 8, 4),
    "digits": (1, 8, 16, (1, 2), 1, [4], 8, 4),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_unet_equals_diffusers(shape):
    """Forward and every gradient, in float64, where a wrong epsilon cannot hide."""
    channels, side, *_ = SHAPES[shape]
    ours, theirs = (net.double() for net in pair(*SHAPES[shape]))
    x, t = torch.randn(2, channels, side, side, dtype=F64), torch.tensor([0.0, 731.25])
    a, b = ours(x, t), theirs(x, t).sample
    assert (a - b).abs().max() <= 1e-9 * b.abs().max()
    a.square().mean().backward()
    b.square().mean().backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    heads = SHAPES[shape][2] * 2 // SHAPES[shape][6]
    grads = carried(grads, heads, SHAPES[shape][4], len(SHAPES[shape][3]))
    for name, parameter in theirs.named_parameters():
        assert (parameter.grad - grads[name]).abs().max() <= 1e-9, name


def test_unet_equals_diffusers_in_float32():
    ours, theirs = pair(*SHAPES["digits"])
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 5, 60, 199])
    a, b = ours(x, t), theirs(x, t).sample
    assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


@pytest.mark.parametrize("change", ["scale_and_shift_exchanged", "epsilon", "heads"])
def test_a_wrong_layer_is_seen(change):
    """Negative control for the parity of the networks."""
    ours, theirs = (net.double() for net in pair(*SHAPES["digits"]))
    for layer in ours.modules():
        if change == "epsilon" and isinstance(layer, torch.nn.GroupNorm):
            layer.eps = 1e-6
        if change == "heads" and isinstance(layer, improved.AttentionBlock):
            layer.heads = 2
        if change == "scale_and_shift_exchanged" and isinstance(layer, improved.ResBlock):
            linear = layer.emb_layers[1]
            for part in (linear.weight, linear.bias):
                part.detach().copy_(part.detach().roll(len(part) // 2, 0))
    x, t = torch.randn(2, 1, 8, 8, dtype=F64), torch.tensor([3, 40])
    a, b = ours(x, t), theirs(x, t).sample
    assert (a - b).abs().max() > 1e-7 * b.abs().max()
