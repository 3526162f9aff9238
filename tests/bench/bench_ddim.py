"""Sampling of ddim.py against diffusers' DDIMPipeline: 50 steps, equal nets of 1.6M parameters.

Sixteen images of 32 x 32; both sides draw x_T, take 50 steps without noise and end in [0, 1].
"""

from house import load

ddim = load("diffusion/ddim.py")
FLAGS = "--dataset mnist --base_channels 32 --timesteps 1000 --sampling_steps 50 --n_samples 16"


def ours(device):
    args = ddim.parse_args([*FLAGS.split(), "--attn_resolutions", "16"])
    args.device = device
    model, diffusion = ddim.build(args)
    return lambda: ddim.sample(model, diffusion, args)[0] / 2 + 0.5, model


def theirs(device):
    import diffusers

    model = diffusers.UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        norm_eps=1e-6,
        downsample_padding=0,
        attention_head_dim=None,
    )
    pipeline = diffusers.DDIMPipeline(model, diffusers.DDIMScheduler()).to(device)
    pipeline.set_progress_bar_config(disable=True)
    flags = {"batch_size": 16, "num_inference_steps": 50, "use_clipped_model_output": True}
    return lambda: pipeline(**flags, output_type="np").images, model


def rows(device):
    (mine, net), (yours, other) = ours(device), theirs(device)
    size = {sum(p.numel() for p in model.parameters()) for model in (net, other)}
    assert len(size) == 1
    name = f"ddim sampling, 50 steps, 16 images, {size.pop() / 1e6:.2f}M parameters"
    peer = "diffusers DDIMPipeline"
    yield {"name": name, "peer": peer, "target": 1.0, "ours": mine, "theirs": yours}
