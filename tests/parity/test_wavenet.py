"""mu-law against torchaudio's, code for code."""

import torch
from house import load
from torchaudio.functional import mu_law_decoding, mu_law_encoding

mod = load("vocoder/wavenet.py")


def test_mu_law():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for x in (torch.linspace(-1, 1, 20_001, dtype=dtype), torch.randn(9999).tanh().to(dtype)):
            codes = mod.mu_law(x)
            assert torch.equal(codes, mu_law_encoding(x, 256))
            assert not torch.equal(codes, mu_law_encoding(x, 255))
            back, theirs = mod.inverse_mu_law(codes), mu_law_decoding(codes, 256)
            assert (back - theirs).abs().max() < 1e-6
