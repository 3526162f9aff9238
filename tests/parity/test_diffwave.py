"""The network and the sampler against the package diffwave of its well-known code, weights loaded
as they are; its mel as its preprocessing writes it down."""

import math

import numpy as np
import pytest
import torch
from diffwave.model import DiffWave
from diffwave.params import AttrDict, params
from house import load
from torchaudio.transforms import MelSpectrogram

mod = load("vocoder/diffwave.py")


def pair(tmp_path, dim=64, depth=30, beta_end=0.05, timesteps=50):
    """Theirs, its zeros made noise, and ours with the weights of its checkpoint."""
    torch.manual_seed(0)
    noise = np.linspace(1e-4, beta_end, timesteps).tolist()
    changed = {"residual_channels": dim, "residual_layers": depth, "noise_schedule": noise}
    theirs = DiffWave(AttrDict(params | changed)).eval()
    torch.nn.init.normal_(theirs.output_projection.weight)
    saved = {"step": 1, "model": theirs.state_dict(), "params": params | changed}
    torch.save(saved, tmp_path / "weights.pt")
    flags = ["--config", "base", "--dataset", "fsdd", "--device", "cpu", "--dim", str(dim)]
    args = mod.parse_args([*flags, "--depth", str(depth), "--timesteps", str(timesteps)])
    ours, mel = mod.build(args)
    mod.load_weights(tmp_path / "weights.pt", ours)
    return ours.eval(), theirs, mel


def unit(n):
    """A mel as they store it, and what ours would be of the same sound."""
    torch.manual_seed(2)
    theirs = torch.rand(2, 80, n)
    return theirs, (theirs - 0.8) * math.log(10) / 0.2


@pytest.mark.parametrize("t", [0, 7.3, 22.992494, 49])
def test_network(tmp_path, t):
    ours, theirs, _ = pair(tmp_path)
    m, logs = unit(4)
    x = torch.randn(2, 1024).requires_grad_()
    # At a batch of 1 their steps between two steps have the shape they want.
    found = [ours(x[:1], ours.stretch(logs[:1]), torch.tensor([float(t)]))]
    found.append(theirs(x[:1], m[:1], torch.tensor([float(t)]))[:, 0])
    grads = [torch.autograd.grad(y.square().mean(), x)[0] for y in found]
    for a, b in (found, grads):
        assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())
    assert found[1].std() > 0.1
    off = ours(x[:1], ours.stretch(logs[:1]), torch.tensor([49 - float(t)]))
    assert (off - found[1]).abs().max() > 1e-3


def test_network_at_whole_steps_of_a_batch_in_float64(tmp_path):
    ours, theirs, _ = pair(tmp_path)
    ours, theirs, (m, logs) = ours.double(), theirs.double(), unit(4)
    x, t = torch.randn(2, 1024).double(), torch.tensor([31, 2])
    a = ours(x, ours.stretch(logs.double()), t.double())
    b = theirs(x, m.double(), t)[:, 0]
    assert (a - b).abs().max() <= 1e-5 * b.abs().max() and (a - b.flip(0)).abs().max() > 0.1


def test_a_wrong_weight_is_seen(tmp_path):
    ours, theirs, _ = pair(tmp_path)
    with torch.no_grad():
        ours.residual_layers[11].conditioner_projection.bias.add_(1e-3)
    m, logs = unit(4)
    x, t = torch.randn(1, 1024), torch.tensor([3.0])
    gap = ours(x, ours.stretch(logs[:1]), t) - theirs(x, m[:1], t)[:, 0]
    assert gap.abs().max() > 1e-4


@pytest.mark.parametrize("fast", [False, True])
def test_sampler(tmp_path, fast, monkeypatch):
    from diffwave import inference

    ours, theirs, _ = pair(tmp_path, 16, 6)
    with torch.no_grad():
        for model in (ours, theirs):
            model.output_projection.weight.mul_(0.1)
    monkeypatch.setitem(inference.models, "here", theirs)
    m, logs = unit(4)
    torch.manual_seed(3)
    wanted = inference.predict(m[:1], "here", device=torch.device("cpu"), fast_sampling=fast)[0]
    torch.manual_seed(3)
    y = mod.sample(ours, logs[:1], mod.schedule(50, 0.05, fast), 10**6)
    assert y.shape == wanted.shape and 0.01 < wanted.abs().mean() < 0.99
    assert (y - wanted).abs().max() < 1e-4
    torch.manual_seed(3)
    off = mod.sample(ours, logs[:1], mod.schedule(50, 0.045, fast), 10**6)
    assert (off - wanted).abs().max() > 1e-3


def test_mel(tmp_path):
    ours, theirs, mel = pair(tmp_path, 16, 6)
    torch.manual_seed(4)
    x = torch.randn(1, 256 * 12) / 9
    sizes = {"win_length": 1024, "hop_length": 256, "n_fft": 1024, "f_min": 20.0}
    bands = MelSpectrogram(22050, **sizes, f_max=11025.0, n_mels=80, power=1.0, normalized=True)
    m = 20 * torch.log10(torch.clamp(bands(x), min=1e-5)) - 20
    m = torch.clamp((m + 100) / 100, 0.0, 1.0)[..., :12]  # one more frame ends theirs
    assert mel(x).shape == m.shape and m.std() > 0.05
    a, b = ours.stretch(mel(x)), theirs.spectrogram_upsampler(m)
    assert (a - b).abs().max() < 1e-5 and (ours.stretch(mel(x) + 0.1) - b).abs().max() > 1e-4
