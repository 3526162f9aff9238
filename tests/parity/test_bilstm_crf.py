"""bilstm_crf.py against pytorch-crf: the same parameters, likelihoods, gradients and best tags."""

import pytest
import torch
from house import load
from torchcrf import CRF

mod = load("nlp/bilstm_crf.py")
LENGTHS = [20, 1, 7, 13, 1, 2, 19, 20]


def pair(dtype, K, size):
    """Ours and theirs with the same parameters, copied both ways; scores, tags, mask."""
    torch.manual_seed(K)
    theirs, ours = CRF(K, batch_first=True).to(dtype), mod.CRF(K).to(dtype)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=size)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    mask = torch.arange(20) < torch.tensor(LENGTHS)[:, None]
    P = (size * torch.randn(8, 20, K, dtype=dtype)).requires_grad_()
    return ours, theirs, P, torch.randint(K, (8, 20)), mask


def differences(dtype, K, size=1.0):
    """Of log p and of the gradients by scores, A, a and e, relative to the largest."""
    ours, theirs, P, y, mask = pair(dtype, K, size)
    mine = -mod.crf_loss(ours, P, y, mask)
    other = theirs(P, y, mask, reduction="none")
    names = [name for name, _ in ours.named_parameters()]
    sides = [
        [log_p, *torch.autograd.grad(log_p.sum(), [P, *map(crf.get_parameter, names)])]
        for log_p, crf in ((mine, ours), (other, theirs))
    ]
    return [
        ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
        for a, b in zip(*sides, strict=True)
    ]


@pytest.mark.parametrize("K", [1, 2, 9, 28])
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_likelihood_and_gradients(dtype, limit, K):
    assert max(differences(dtype, K)) < limit


@pytest.mark.parametrize("size", [0.01, 10.0])
def test_small_and_large_scores(size):
    assert max(differences(torch.float64, 9, size)) < 1e-12


def test_a_changed_move_is_seen(monkeypatch):
    real = mod.CRF.load_state_dict

    def load_badly(self, state, strict):
        real(self, state, strict=strict)
        with torch.no_grad():
            self.transitions[0, 1] += 1e-3

    monkeypatch.setattr(mod.CRF, "load_state_dict", load_badly)
    monkeypatch.setattr(CRF, "load_state_dict", lambda *_, **__: None)
    assert max(differences(torch.float64, 9)) > 1e-6


@pytest.mark.parametrize("K", [2, 9, 28])
def test_best_tags(K):
    ours, theirs, P, _, mask = pair(torch.float32, K, 1.0)
    mine = mod.crf_decode(ours, P, mask).tolist()
    assert [row[:n] for row, n in zip(mine, LENGTHS, strict=True)] == theirs.decode(P, mask)


@pytest.mark.parametrize("scheme", ["B-X M-X E-X S-X O", "B-X I-X B-Y I-Y O"])
def test_best_of_legal_tags(scheme):
    """With what is illegal written into their parameters, they take the same tags."""
    tags = scheme.split()
    ours, theirs, P, _, mask = pair(torch.float64, len(tags), 3.0)
    illegal = mod.illegal_moves(tags)
    with torch.no_grad():
        theirs.start_transitions += illegal[0]
        theirs.transitions += illegal[1]
        theirs.end_transitions += illegal[2]
    mine = mod.crf_decode(ours, P, mask, illegal).tolist()
    want = theirs.decode(P, mask)
    assert [row[:n] for row, n in zip(mine, LENGTHS, strict=True)] == want
    assert want != [
        row[:n] for row, n in zip(mod.crf_decode(ours, P, mask).tolist(), LENGTHS, strict=True)
    ]
