"""ddpm.py against diffusers: the same steps, and the same network under weight transfer."""

import pytest
import torch
from house import load

diffusers = pytest.importorskip("diffusers")
ddpm = load("diffusion/ddpm.py")

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {"beta_tilde": "fixed_small", "beta": "fixed_large"}


def scheduler(timesteps, prediction, variance):
    """diffusers' scheduler with its tables recomputed in float64, which it keeps in float32."""
    ours = diffusers.DDPMScheduler(
        num_train_timesteps=timesteps,
        beta_start=0.1 / timesteps,
        beta_end=20 / timesteps,
        prediction_type=PREDICTIONS[prediction],
        variance_type=VARIANCES[variance],
        clip_sample=True,
    )
    ours.betas = torch.linspace(0.1 / timesteps, 20 / timesteps, timesteps, dtype=torch.float64)
    ours.alphas = 1 - ours.betas
    ours.alphas_cumprod = ours.alphas.cumprod(0)
    ours.one = torch.ones((), dtype=torch.float64)
    return ours


def step_gap(timesteps, prediction, variance):
    """Largest difference of x_{t-1} and x_hat between both, over times and random inputs."""
    theirs = scheduler(timesteps, prediction, variance)
    ours = ddpm.GaussianDiffusion(timesteps, prediction, variance, "cpu", torch.float64)
    gap = 0.0
    for t in {0, 1, 2, timesteps // 2, timesteps - 2, timesteps - 1}:
        torch.manual_seed(t)
        x, out = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
        noise = torch.randn(4, 1, 8, 8, dtype=torch.float64)
        generator = torch.Generator().manual_seed(7)
        step = theirs.step(out, t, x, generator=generator)
        torch.manual_seed(7)
        mine = ours.p_sample(lambda *_, out=out: out, x, torch.full((4,), t))
        for a, b in zip(mine, (step.prev_sample, step.pred_original_sample), strict=True):
            gap = max(gap, (a - b).abs().max().item())
        noisy = theirs.add_noise(x, noise, torch.tensor([t]))
        gap = max(gap, (ours.q_sample(x, torch.tensor([t]), noise) - noisy).abs().max().item())
    return gap


@pytest.mark.parametrize("timesteps", [50, 1000])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_step_equals_diffusers(timesteps, prediction, variance):
    assert step_gap(timesteps, prediction, variance) <= 1e-10


@pytest.mark.parametrize("table", ["coef_x0", "coef_xt", "log_sigma2", "sqrt_one_minus_abar"])
def test_a_wrong_coefficient_is_seen(monkeypatch, table):
    """Negative control: one table off by a thousandth, and the parity test above fails."""

    class Broken(ddpm.GaussianDiffusion):
        def __init__(self, *args):
            super().__init__(*args)
            self.tables[table] = self.tables[table] * 1.001

    monkeypatch.setattr(ddpm, "GaussianDiffusion", Broken)
    assert step_gap(50, "eps", "beta_tilde") > 1e-6


def pair(channels, side, base, mults, depth, attention, groups):
    """Our U-Net and diffusers' with the same random weights, none of them zero."""
    torch.manual_seed(0)
    ours = ddpm.UNet(channels, side, base, mults, depth, attention, 0.0).eval()
    attend = [side >> i in attention for i in range(len(mults))]
    theirs = diffusers.UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=depth,
        block_out_channels=[base * mult for mult in mults],
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attend],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in attend[::-1]],
        norm_num_groups=groups,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
    ).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


SHAPES = {
    "cifar": (3, 32, 32, (1, 2, 2, 2), 2, [16], 8),
    "laptop": (1, 32, 16, (1, 2, 2), 2, [16, 4], 4),
    "digits": (1, 8, 16, (1, 2), 1, [4], 4),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_unet_equals_diffusers(shape):
    """Forward and every gradient, in float64, where a wrong epsilon cannot hide."""
    ours, theirs = (net.double() for net in pair(*SHAPES[shape]))
    x = torch.randn(2, *SHAPES[shape][:1], *[SHAPES[shape][1]] * 2, dtype=torch.float64)
    t = torch.tensor([0, 731])
    a, b = ours(x, t), theirs(x, t).sample
    assert (a - b).abs().max() <= 1e-9 * b.abs().max()
    a.square().mean().backward()
    b.square().mean().backward()
    grads = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - grads[name].grad).abs().max() <= 1e-9, name


def test_unet_equals_diffusers_in_float32():
    ours, theirs = pair(*SHAPES["laptop"])
    x, t = torch.randn(4, 1, 32, 32), torch.tensor([0, 5, 60, 199])
    a, b = ours(x, t), theirs(x, t).sample
    assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


def test_official_size_loads_strictly():
    """The layout of google/ddpm-cifar10-32: same names, same shapes, 35,746,307 parameters."""
    args = ddpm.parse_args(["--config", "cifar10"])
    shape = args.channels, args.img_size, args.base_channels, args.channel_mult
    with torch.device("meta"):
        ours = ddpm.UNet(*shape, args.n_res_blocks, args.attn_resolutions, args.dropout)
        theirs = diffusers.UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            attention_head_dim=None,
        )
    assert sum(p.numel() for p in ours.parameters()) == 35_746_307
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert ours.conv_norm_out.num_groups == 32
