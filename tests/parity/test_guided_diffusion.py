"""guided_diffusion.py against diffusers: a guided DDIM step, and the network."""

import pytest
import torch
from house import load

diffusers = pytest.importorskip("diffusers")
guided = load("diffusion/guided_diffusion.py")
F64 = torch.float64


def ddim_gap(timesteps, steps, break_table=None):
    """Largest difference of x_{t-1} over the steps of a respaced chain, guided by a known g.

    What diffusers cannot know is the gradient: it is given eps_hat' of eq. (30).
    """
    betas = guided.noise_schedule("linear", timesteps)
    ours = guided.GaussianDiffusion(betas, "cpu", F64).respaced(steps)
    if break_table:
        ours.tables[break_table] = ours.tables[break_table] * 1.001
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=timesteps,
        clip_sample=True,
        set_alpha_to_one=True,
    )
    theirs.alphas_cumprod = (1 - betas).cumprod(0)
    theirs.final_alpha_cumprod = torch.ones((), dtype=F64)
    kept = (ours.times * timesteps / 1000).round().long().tolist()
    theirs.num_inference_steps = timesteps // (kept[1] - kept[0])  # from which it takes its stride
    torch.manual_seed(0)
    x, g = torch.randn(2, 4, 1, 8, 8, dtype=F64)
    gap = 0.0
    for i in range(1, steps):
        if kept[i] - kept[i - 1] != kept[1] - kept[0]:
            continue  # its stride is the same everywhere, ours as even as T allows
        t, out = torch.full((4,), i), torch.randn(4, 2, 8, 8, dtype=F64)
        mine = ours.ddim_sample(lambda *_, out=out: out, x, t, lambda *_: g)
        a = theirs.alphas_cumprod[kept[i]]
        a, b = a.sqrt(), (1 - a).sqrt()
        x_hat = ((x - b * out[:, :1]) / a).clamp(-1, 1)
        eps = (x - a * x_hat) / b - b * g
        step = theirs.step(eps, kept[i], x, use_clipped_model_output=True)
        gap = max(gap, (mine - step.prev_sample).abs().max().item())
    return gap


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 1000), (1000, 38), (50, 50)])
def test_guided_ddim_step_equals_diffusers(timesteps, steps):
    assert ddim_gap(timesteps, steps) <= 1e-10


@pytest.mark.parametrize("table", ["sqrt_abar", "sqrt_abar_prev", "sqrt_one_minus_abar_prev"])
def test_a_wrong_coefficient_is_seen(table):
    assert ddim_gap(50, 50, table) > 1e-6


def carried(ours, depth, levels, split):
    """Our state dict under diffusers' names; split: qkv (3 C, C) of a layer -> q, k, v."""
    found = {}

    def copy(theirs, mine):
        for key in ("weight", "bias"):
            found[f"{theirs}.{key}"] = ours[f"{mine}.{key}"]

    def resnet(theirs, mine):
        names = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
        names |= {"norm2": "out_layers.0", "conv2": "out_layers.3"}
        if f"{mine}.skip_connection.weight" in ours:
            names["conv_shortcut"] = "skip_connection"
        for a, b in names.items():
            copy(f"{theirs}.{a}", f"{mine}.{b}")

    def attention(theirs, mine):
        copy(f"{theirs}.group_norm", f"{mine}.norm")
        for key in ("weight", "bias"):
            rows = ours[f"{mine}.qkv.{key}"], ours[f"{mine}.proj_out.{key}"]
            rows, out = (part.squeeze(-1) if key == "weight" else part for part in rows)
            found[f"{theirs}.to_out.0.{key}"] = out
            for name, part in zip("qkv", split(rows), strict=True):
                found[f"{theirs}.to_{name}.{key}"] = part

    def block(theirs, j, mine):
        resnet(f"{theirs}.resnets.{j}", f"{mine}.0")
        if f"{mine}.1.qkv.weight" in ours:
            attention(f"{theirs}.attentions.{j}", f"{mine}.1")

    for i in range(levels):
        for j in range(depth):
            block(f"down_blocks.{i}", j, f"input_blocks.{1 + i * (depth + 1) + j}")
        for j in range(depth + 1):
            block(f"up_blocks.{i}", j, f"output_blocks.{i * (depth + 1) + j}")
        if i < levels - 1:
            down = f"input_blocks.{(i + 1) * (depth + 1)}.0"
            resnet(f"down_blocks.{i}.downsamplers.0", down)
            last = f"output_blocks.{i * (depth + 1) + depth}"
            layer = 2 if f"{last}.1.qkv.weight" in ours else 1
            resnet(f"up_blocks.{i}.upsamplers.0", f"{last}.{layer}")
    for i in (0, 2):
        resnet(f"mid_block.resnets.{i // 2}", f"middle_block.{i}")
    attention("mid_block.attentions.0", "middle_block.1")
    names = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    names |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    for a, b in names.items():
        copy(a, b)
    found["class_embedding.weight"] = ours["label_emb.weight"]
    return found


def splitter(new_order, heads):
    """How the rows of qkv make q, k and v: all of one kind together, or head by head."""
    if new_order:
        return lambda rows: rows.chunk(3)
    return lambda rows: [part.flatten(0, 1) for part in rows.unflatten(0, (heads, 3, -1)).unbind(1)]


def pair(new_order):
    """Our U-Net and diffusers' with the same random weights, none of them zero."""
    torch.manual_seed(0)
    base, mults, depth, attention, side = 16, (1, 2, 2), 2, [8, 4], 16
    look = 0, 8, new_order  # heads of 8 channels
    ours = guided.UNet(5, 3, side, base, mults, depth, attention, 0.0, *look).eval()
    attend = [side >> i in attention for i in range(len(mults))]
    downs = ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attend]
    theirs = diffusers.UNet2DModel(
        sample_size=side,
        in_channels=3,
        out_channels=6,
        layers_per_block=depth,
        block_out_channels=[base * mult for mult in mults],
        down_block_types=downs,
        up_block_types=["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attend[::-1]],
        downsample_type="resnet",
        upsample_type="resnet",
        norm_num_groups=4,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=4,
        num_class_embeds=5,
    ).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    theirs.load_state_dict(carried(ours.state_dict(), depth, 3, splitter(new_order, 4)))
    return ours.double(), theirs.double()


@pytest.mark.parametrize("new_order", [False, True])
def test_unet_equals_diffusers(new_order):
    """Forward and every gradient, in float64, where a wrong epsilon cannot hide."""
    ours, theirs = pair(new_order)
    x, t, y = torch.randn(2, 3, 16, 16, dtype=F64), torch.tensor([0, 731]), torch.tensor([4, 1])
    a, b = ours(x, t, y), theirs(x, t, y).sample
    assert (a - b).abs().max() <= 1e-9 * b.abs().max()
    a.square().mean().backward()
    b.square().mean().backward()
    grads = {name: parameter.grad for name, parameter in ours.named_parameters()}
    grads = carried(grads, 2, 3, splitter(new_order, 4))
    for name, parameter in theirs.named_parameters():
        assert (parameter.grad - grads[name]).abs().max() <= 1e-9, name


@pytest.mark.parametrize("change", ["order", "epsilon", "class", "resize"])
def test_a_wrong_layer_is_seen(change):
    """Negative control for the parity of the networks."""
    ours, theirs = pair(False)
    x, t, y = torch.randn(2, 3, 16, 16, dtype=F64), torch.tensor([0, 731]), torch.tensor([4, 1])
    for layer in ours.modules():
        if change == "order" and isinstance(layer, guided.AttentionBlock):
            layer.new_order = True
        if change == "epsilon" and isinstance(layer, torch.nn.GroupNorm):
            layer.eps = 1e-6
        if change == "resize" and isinstance(getattr(layer, "resize", None), torch.nn.AvgPool2d):
            layer.resize = torch.nn.MaxPool2d(2)
    a, b = ours(x, t, y.flip(0) if change == "class" else y), theirs(x, t, y).sample
    assert (a - b).abs().max() > 1e-7 * b.abs().max()


def test_classifier_shares_the_encoder_of_diffusers():
    """The trunk of the classifier with the weights of the U-Net gives the U-Net's middle."""
    ours, theirs = pair(False)
    judge = guided.Classifier(7, 3, 16, 16, (1, 2, 2), 2, [8, 4], 8).double()
    missing, unexpected = judge.load_state_dict(
        {k: v for k, v in ours.state_dict().items() if not k.startswith(("out", "label"))}, False
    )
    assert {key.split(".")[0] for key in missing} == {"out"} and not unexpected
    seen = []
    theirs.mid_block.register_forward_hook(lambda *io: seen.append(io[2]))
    theirs.class_embedding.weight.detach().zero_()
    x, t = torch.randn(2, 3, 16, 16, dtype=F64), torch.tensor([0, 731])
    theirs(x, t, torch.tensor([0, 0]))
    judge.out[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    judge(x, t)
    assert (seen[0] - seen[1]).abs().max() <= 1e-9 * seen[0].abs().max()
