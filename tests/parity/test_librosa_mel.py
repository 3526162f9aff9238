"""The mel that all vocoders copy against librosa's: its filters, and the spectrogram in float64."""

import librosa
import numpy as np
import pytest
import torch
from house import load

mod = load("vocoder/melgan.py")
FRONT_ENDS = [(22050, 256, 80, 8000.0), (22050, 256, 80, 11025.0), (24000, 256, 100, 12000.0)]
FRONT_ENDS += [(8000, 64, 40, 4000.0), (16000, 160, 20, 900.0)]


@pytest.mark.parametrize("sr, hop, n_mels, fmax", FRONT_ENDS)
def test_filters(sr, hop, n_mels, fmax):
    ours = mod.Mel(sr, hop, n_mels, fmax).filters.numpy()
    sizes = {"sr": sr, "n_fft": 4 * hop, "n_mels": n_mels, "fmin": 0.0, "fmax": fmax}
    theirs = librosa.filters.mel(**sizes, dtype=np.float64)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-6
    assert np.abs(ours - librosa.filters.mel(**sizes, htk=True)).max() > 1e-4
    assert np.abs(ours - librosa.filters.mel(**sizes, norm=None)).max() > 0.1


@pytest.mark.parametrize("sr, hop, n_mels, fmax", FRONT_ENDS)
def test_log_mel(sr, hop, n_mels, fmax):
    torch.manual_seed(0)
    mel, x = mod.Mel(sr, hop, n_mels, fmax), torch.randn(1, 12 * hop) / 9
    pad = 3 * hop // 2
    padded = np.pad(x[0].double().numpy(), pad, mode="reflect")
    sizes = {"n_fft": 4 * hop, "hop_length": hop}
    bands = librosa.stft(padded, **sizes, center=False, dtype=np.complex128)
    theirs = np.sqrt(np.abs(bands) ** 2 + 1e-9)
    theirs = librosa.feature.melspectrogram(
        S=theirs, sr=sr, **sizes, n_mels=n_mels, fmin=0.0, fmax=fmax, dtype=np.float64
    )
    theirs = np.log(np.maximum(theirs, 1e-5))
    ours = mel(x)[0].numpy()
    assert ours.shape == theirs.shape == (n_mels, 12)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert np.abs(ours[:, 1:] - theirs[:, :-1]).max() > 0.1  # a frame late


def test_silence():
    """Where librosa has nothing at all the floor is the square root of 1e-9 in each bin."""
    mel = mod.Mel(8000, 64, 40, 4000.0)
    filters = librosa.filters.mel(sr=8000, n_fft=256, n_mels=40, fmin=0.0, fmax=4000.0)
    wanted = np.log(np.maximum(filters.sum(1) * 1e-9**0.5, 1e-5))[:, None]
    assert np.abs(mel(torch.zeros(1, 640))[0].numpy() - wanted).max() < 1e-5
