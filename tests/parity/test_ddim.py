"""ddim.py against diffusers: whole sampling loops, both ways, with a fixed network."""

import pytest
import torch
from house import load

diffusers = pytest.importorskip("diffusers")
ddim = load("diffusion/ddim.py")

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def network():
    """Any function of x and t will do; this one moves x far enough to be clipped at times."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 1, 3, padding=1).double()
    return lambda x, t: torch.tanh(2 * conv(x) + (t.double() / 500 - 1).reshape(-1, 1, 1, 1))


def scheduler(kind, prediction, **flags):
    """diffusers' scheduler with its tables recomputed in float64, which it keeps in float32."""
    theirs = kind(prediction_type=PREDICTIONS[prediction], beta_end=0.02, beta_start=1e-4, **flags)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    theirs.alphas_cumprod = (1 - betas).cumprod(0)
    theirs.final_alpha_cumprod = theirs.initial_alpha_cumprod = torch.ones((), dtype=betas.dtype)
    return theirs


def loop_gap(prediction, spacing, steps, eta, twist=1.0):
    """Largest difference between both after all steps, from the same x_T and the same z."""
    model = network()
    theirs = scheduler(diffusers.DDIMScheduler, prediction, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    times = theirs.timesteps.tolist()
    ours = ddim.GaussianDiffusion(1000, prediction, "cpu", torch.float64)
    ours.abar = [a * twist for a in ours.abar[:-1]] + [1.0]
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    torch.manual_seed(5)
    *_, (mine, _) = ours.ddim_sample_loop(model, x, times, eta)
    generator = torch.Generator().manual_seed(5)
    for t in times:
        out = model(x, torch.full((2,), t))
        step = theirs.step(out, t, x, eta, use_clipped_model_output=True, generator=generator)
        x = step.prev_sample
    return (mine - x).abs().max().item()


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loop_equals_diffusers(prediction, spacing, steps, eta):
    assert loop_gap(prediction, spacing, steps, eta) <= 1e-9


def test_a_wrong_coefficient_is_seen():
    assert loop_gap("eps", "trailing", 10, 0.0, twist=0.999) > 1e-4


@pytest.mark.parametrize("steps", [1, 3, 10, 50, 1000])
def test_trailing_times_equal_diffusers(steps):
    theirs = scheduler(diffusers.DDIMScheduler, "eps", timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert ddim.ddim_timesteps(1000, steps, "trailing") == theirs.timesteps.tolist()


def test_encoding_equals_diffusers():
    model, steps = network(), 50
    flags = {"timestep_spacing": "leading", "clip_sample": False, "steps_offset": 0}
    theirs = scheduler(diffusers.DDIMInverseScheduler, "eps", **flags)
    theirs.set_timesteps(steps)
    ours = ddim.GaussianDiffusion(1000, "eps", "cpu", torch.float64)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    times = theirs.timesteps.tolist()
    mine = ours.ddim_encode(model, x, times[::-1])
    for t in times:
        x = theirs.step(model(x, torch.full((2,), t)), t, x).prev_sample
    assert (mine - x).abs().max() <= 1e-9
