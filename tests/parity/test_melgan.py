"""The mel filters against those of transformers and torchaudio, the spectrogram against the
former's in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from house import load
from torchaudio.functional import melscale_fbanks
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

mod = load("vocoder/melgan.py")
FRONT_ENDS = [(22050, 256, 80, 8000.0), (22050, 256, 80, 11025.0), (24000, 256, 100, 12000.0)]
FRONT_ENDS += [(8000, 64, 40, 4000.0), (16000, 160, 20, 900.0)]


@pytest.mark.parametrize("sr, hop, n_mels, fmax", FRONT_ENDS)
def test_filters(sr, hop, n_mels, fmax):
    ours = mod.Mel(sr, hop, n_mels, fmax).filters.double()
    scale = {"norm": "slaney", "mel_scale": "slaney"}
    theirs = mel_filter_bank(2 * hop + 1, n_mels, 0.0, fmax, sr, **scale)
    assert np.abs(ours.numpy() - theirs.T).max() < 1e-8
    assert (
        ours - melscale_fbanks(2 * hop + 1, 0.0, fmax, n_mels, sr, **scale).T
    ).abs().max() < 1e-6
    others = melscale_fbanks(2 * hop + 1, 0.0, fmax, n_mels, sr)  # HTK's, not of area 1
    assert (ours - others.T).abs().max() > 0.1


@pytest.mark.parametrize("sr, hop, n_mels, fmax", FRONT_ENDS)
def test_spectrogram(sr, hop, n_mels, fmax):
    torch.manual_seed(0)
    mel, x = mod.Mel(sr, hop, n_mels, fmax), torch.randn(1, 12 * hop) / 9
    padded = F.pad(x, (3 * hop // 2, 3 * hop // 2), mode="reflect")[0].double().numpy()
    sizes = window_function(4 * hop, "hann"), 4 * hop, hop
    theirs = spectrogram(padded, *sizes, power=1.0, center=False, dither=0.0, dtype=np.float64)
    theirs = np.sqrt(theirs**2 + 1e-9)
    theirs = np.log(np.maximum(mel.filters.double().numpy() @ theirs, 1e-5))
    gap = np.abs(mel(x)[0].numpy() - theirs).max()
    assert mel(x).shape == (1, n_mels, 12) and gap < 1e-5 * max(1, np.abs(theirs).max())
