"""SI-SNR and PIT of conv_tasnet.py, which its siblings copy, against torchmetrics and
fast_bss_eval."""

import fast_bss_eval
import pytest
import torch
from house import load
from torchmetrics.functional.audio import (
    permutation_invariant_training,
    scale_invariant_signal_noise_ratio,
)

mod = load("separation/conv_tasnet.py")


def voices(n_src):
    torch.manual_seed(0)
    s = torch.randn(4, n_src, 2000, dtype=torch.float64) + 0.3
    return s.roll(1, 1) * 0.7 + 0.2 * torch.randn_like(s), s  # in another order


def test_si_snr():
    e, s = voices(3)
    theirs = scale_invariant_signal_noise_ratio(e, s)
    assert (mod.si_snr(e, s) - theirs).abs().max() < 1e-6
    assert (mod.si_snr(e + 0.5, s) - theirs).abs().max() < 1e-6  # offsets do not count
    with_offset = fast_bss_eval.si_sdr(s, e, zero_mean=False)
    found = fast_bss_eval.si_sdr(s, e, zero_mean=True)
    assert (with_offset - found).abs().max() > 1e-3


@pytest.mark.parametrize("n_src", [2, 3, 4])
def test_best_order(n_src):
    e, s = voices(n_src)
    ours, _ = mod.pit(e, s)
    metric = scale_invariant_signal_noise_ratio
    theirs, _ = permutation_invariant_training(e, s, metric, eval_func="max")
    assert (ours - theirs).abs().max() < 1e-6
    found = fast_bss_eval.si_sdr(s, e, zero_mean=True).mean(1)
    assert (ours - found).abs().max() < 1e-4
    assert (mod.si_snr(e, s).mean(1) - theirs).abs().max() > 1
