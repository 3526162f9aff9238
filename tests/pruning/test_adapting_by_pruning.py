"""adapting_by_pruning.py: the gradient of the mask, how theta is pushed, what may not change, texts
and patches, and what a task takes on the disk."""

import json
import math
import os

import numpy as np
import pytest
import torch
from house import load, mistake

mod = load("pruning/adapting_by_pruning.py")
PATH = mod.Path(mod.__file__)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- mask ----------------------------------------------------------------------------------------
def slope(t_l, t_s, theta, grad):
    theta = theta.clone().requires_grad_()
    m = mod.TwoTemperatures.apply(theta, t_l, t_s)
    m.backward(grad)
    return m.detach(), theta.grad


THETA = torch.linspace(-2, 2, 41, dtype=torch.float64)
GRAD = torch.randn(41, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("t_l", [1.0, 3.0, 1e5])
@pytest.mark.parametrize("t_s", [0.5, 1.0, 10.0])
def test_closed_form(t_l, t_s):
    m, found = slope(t_l, t_s, THETA, GRAD)
    assert (m - 1 / (1 + torch.exp(-t_l * THETA))).abs().max() < 1e-12
    e = torch.exp(-t_s * THETA)
    assert (found - GRAD * t_s * e / (1 + e) ** 2).abs().max() < 1e-12


@pytest.mark.parametrize("t", [0.5, 4.0])
def test_one_temperature_is_plain_autograd(t):
    theta = THETA.clone().requires_grad_()
    torch.sigmoid(t * theta).backward(GRAD)
    assert (slope(t, t, THETA, GRAD)[1] - theta.grad).abs().max() < 1e-12
    assert (slope(t, t + 1, THETA, GRAD)[1] - theta.grad).abs().max() > 1e-2
    s = torch.sigmoid(t * THETA)  # the paper's formula, without the factor t
    assert (GRAD * s * (1 - s) - theta.grad).abs().max() > 1e-2
    args = THETA.clone().requires_grad_(), t, t
    assert torch.autograd.gradcheck(mod.TwoTemperatures.apply, args)
    assert not torch.autograd.gradcheck(
        mod.TwoTemperatures.apply, (args[0], t, 2 * t), raise_exception=False
    )


def test_large_t_is_the_hard_mask():
    theta = THETA[THETA.abs() > 1e-3].float()
    assert torch.equal(mod.TwoTemperatures.apply(theta, 1e5, 1.0), (theta > 0).float())


# --- theta ---------------------------------------------------------------------------------------
def test_gamma_alone_prunes_after_theta_over_gamma_steps():
    theta = torch.tensor([0.0105, 0.0205, 0.0305, 0.5])
    for step in range(1, 60):
        mod.push(theta, 0.75, "gamma", 0.001, 0.0)
        live = [theta0 - 1e-3 * min(step, 31) > 0 for theta0 in (0.0105, 0.0205, 0.0305, 0.5)]
        assert (theta > 0).tolist() == live, step
    assert math.isclose(theta[3], 0.5 - 0.031, rel_tol=1e-5)  # no push once s is reached


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0, 1.5])
def test_cubic_push_meets_the_sparsity(share):
    theta = torch.randn(1000, generator=torch.Generator().manual_seed(0)) + 9
    before = theta.clone()
    mod.push(theta, 0.6, "cubic", 0.0, share)
    k = round(1000 * (0.6 - 0.6 * (1 - min(share, 1.0)) ** 3))
    assert int((theta <= 0).sum()) == k
    assert (theta - before).std() < 1e-6  # all alike
    if share == 1.0:  # too many are gone: some come back
        mod.push(theta, 0.2, "cubic", 0.0, share)
        assert int((theta <= 0).sum()) == 200


def test_pack():
    for n in (1, 8, 13, 1000):
        mask = torch.rand(n) < 0.5
        bits = mod.pack(mask)
        assert bits.dtype == torch.uint8 and len(bits) == math.ceil(n / 8)
        assert np.unpackbits(bits.numpy(), count=n, bitorder="little").tolist() == mask.tolist()


# --- model ---------------------------------------------------------------------------------------
def encoder(vocab_size=30, dtype=torch.float32):
    torch.manual_seed(0)
    return mod.BertModel(vocab_size, 12, 16, 2, 4).to(dtype)


def test_masked_is_multiplied():
    a, b, ids = encoder(), encoder(), torch.randint(1, 30, (4, 9))
    matrices = mod.maskable(a)
    n = sum(w.numel() for w in matrices.values())
    assert n == sum(w.numel() for k, w in a.state_dict().items() if w.ndim == 2)
    m, at = torch.rand(n) < 0.5, 0
    with torch.no_grad():
        for w in mod.maskable(b).values():
            w *= m[at : at + w.numel()].view_as(w)
            at += w.numel()
    assert torch.equal(mod.masked(a, m, ids)[-1], b(ids)[-1])
    assert not torch.equal(a(ids)[-1], b(ids)[-1])
    assert torch.equal(mod.masked(a, torch.ones(n), ids)[-1], mod.masked(a, None, ids)[-1])
    assert all(torch.equal(w, encoder().state_dict()[k]) for k, w in a.state_dict().items())


def test_padding_changes_nothing():
    model, ids = encoder(), torch.randint(1, 30, (2, 9))
    padded = torch.nn.functional.pad(ids, (0, 3))
    assert (model(padded)[-1][:, :9] - model(ids)[-1]).abs().max() < 1e-5
    padded[:, 9:] = 1
    assert (model(padded)[-1][:, :9] - model(ids)[-1]).abs().max() > 1e-3


def test_amounts_of_words():
    model, ids = encoder(), torch.randint(1, 30, (2, 9))
    counted = torch.nn.functional.one_hot(ids, 30).float()
    assert (model(counted)[-1] - model(ids)[-1]).abs().max() < 1e-5


def test_head_by_hand():
    head, states = mod.TaskHead(16, 2, 3), [torch.randn(4, 9, 16) for _ in range(3)]
    torch.nn.init.normal_(head.mix)
    a = head.mix.exp() / head.mix.exp().sum()
    h = a[0] * states[1][:, 0] + a[1] * states[2][:, 0]
    z = head.fc1(h).clamp(min=0) @ head.fc2.weight.mT + head.fc2.bias
    assert (head(states) - z).abs().max() < 1e-5


def test_masked_words_by_hand(monkeypatch):
    model, ids = encoder(dtype=torch.float64), torch.randint(5, 30, (2, 8))
    ids[1, 6:] = 0
    chance = torch.ones(2, 8)
    chance[0, 3] = chance[1, 2] = chance[1, 7] = 0.1  # the last is padding
    monkeypatch.setattr(torch, "rand", lambda *_, **__: chance)
    hidden = ids.clone()
    hidden[0, 3] = hidden[1, 2] = 4
    z = model(hidden)[-1] @ model.embeddings["word_embeddings"].weight.mT
    logp = z.log_softmax(-1)
    wanted = -(logp[0, 3, ids[0, 3]] + logp[1, 2, ids[1, 2]]) / 2
    assert (mod.masked_words(model, ids, 4) - wanted).abs() < 1e-9


def test_patches():
    images = torch.arange(128.0).view(2, 8, 8)
    x = mod.as_patches(images, 20)
    assert x.shape == (2, 5, 20) and x[:, 0].sum() == 2 and (x[:, 0, 16] == 1).all()
    assert not x[:, 1:, 16:].any()
    assert torch.equal(x[1, 2, :16].view(4, 4), images[1, :4, 4:])
    assert torch.equal(x[0, 3, :16].view(4, 4), images[0, 4:, :4])


# --- training ------------------------------------------------------------------------------------
def trained(out, *more):
    quick = ["--n_epochs", "4", "--pretrain_epochs", "2", "--device", "cpu", "--out", str(out)]
    metrics = mod.train(mod.parse_args([*quick, *more]))
    rows = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    return metrics, torch.load(out / "last.pt", weights_only=True), rows


@pytest.mark.parametrize("method", ["adapt", "magnitude", "random", "finetune"])
def test_what_a_method_may_change(method, tmp_path):
    _, first, _ = trained(tmp_path / "a", "--method", "magnitude", "--sparsity", "0")
    weights = [
        "--weights",
        str(tmp_path / "a/last.pt"),
        "--n_epochs",
        "2",
        "--pretrain_epochs",
        "0",
    ]
    metrics, then, rows = trained(tmp_path / "b", *weights, "--method", method)
    same = all(torch.equal(w, then["model"][k]) for k, w in first["model"].items())
    assert same is (method != "finetune")
    n = sum(w.numel() for w in first["model"].values() if w.ndim == 2)
    assert metrics["sparsity"] == pytest.approx(0 if method == "finetune" else 0.5, abs=1 / n)
    assert metrics["mask_bytes"] == math.ceil(n / 8) and len(rows) == 2
    task = torch.load(tmp_path / "b/task.pt", weights_only=True)
    m = np.unpackbits(task["bits"].numpy(), count=n, bitorder="little")
    if method == "adapt":
        assert torch.equal(torch.from_numpy(m).bool(), then["theta"]["theta"] > 0)
    if method == "magnitude":
        w = torch.cat([w.flatten() for w in first["model"].values() if w.ndim == 2]).abs()
        m = torch.from_numpy(m).bool()
        assert w[~m].max() <= w[m].min()


def test_two_parts_of_a_run(tmp_path):
    _, saved, rows = trained(tmp_path)
    assert [row["sparsity"] > 0 for row in rows] == [False, False, True, True]
    assert rows[3]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert (tmp_path / "vocab.txt").read_text().split() == mod.MARKS
    assert saved["theta"]["theta"].std() > 0.001


def test_gamma_schedule_prunes_by_and_by(tmp_path):
    more = ["--schedule", "gamma", "--lr", "1e-9", "--gamma", "1.6e-4"]  # 63 of 90 steps
    metrics, _, rows = trained(tmp_path, *more)
    assert rows[2]["sparsity"] < 0.01
    assert 0.5 <= metrics["sparsity"] < 0.6


# --- texts ---------------------------------------------------------------------------------------
def corpus(folder):
    lines = {"rt-polarity/rt-polarity.neg": "a bad film .", "rt-polarity/rt-polarity.pos": "Good !"}
    lines |= {
        f"wikitext-2/{part}.txt": " = A <unk> film = \n \n good ," for part in ("valid", "test")
    }
    for name, text in lines.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{text}\n" * 3, encoding="utf-8")
    return ["--config", "rt_polarity", "--data_root", str(folder), "--device", "cpu"]


def test_texts(tmp_path):
    args = mod.parse_args([*corpus(tmp_path), "--seq_len", "6"])
    vocab, wiki, x, y = mod.load_texts(args)
    assert vocab[:5] == mod.MARKS and sorted(vocab[5:]) == sorted(
        ["a", "bad", "film", ".", "good", "!", "=", ","]
    )
    assert y.tolist() == [0, 0, 0, 1, 1, 1] and x.shape == (6, 6)
    assert " ".join(vocab[i] for i in x[0]) == "[CLS] a bad film . [SEP]"
    assert " ".join(vocab[i] for i in x[5]) == "[CLS] good ! [SEP] [PAD] [PAD]"
    rows = [" ".join(vocab[i] for i in row) for row in wiki[:2]]
    assert rows == ["[CLS] = a [UNK] film [SEP]", "[CLS] = good , = [SEP]"]


def test_a_vocabulary_of_ones_own(tmp_path):
    argv = corpus(tmp_path)
    for words in (["[PAD]", "a"], [*mod.MARKS[::-1], "a"], [*mod.MARKS, *map(str, range(20_000))]):
        (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        mistake(PATH, *argv, "--vocab", "vocab.txt", about="--vocab")
    (tmp_path / "vocab.txt").write_text(
        "\n".join([*mod.MARKS, "b", "##a", "##d"]), encoding="utf-8"
    )
    vocab, _, x, _ = mod.load_texts(mod.parse_args([*argv, "--vocab", "vocab.txt"]))
    assert [vocab[i] for i in x[0]][1:5] == ["[UNK]", "b", "##a", "##d"]
    mistake(PATH, *argv, "--vocab", "nowhere", about="--vocab")


@pytest.mark.skipif("ONEFILE_DATA" not in os.environ, reason="ONEFILE_DATA names no folder")
def test_real_texts():
    root = ["--config", "rt_polarity", "--data_root", os.environ["ONEFILE_DATA"]]
    args = mod.parse_args([*root, "--device", "cpu"])
    _, (wiki, _), (x, y), (_, z) = mod.load_data(args)
    assert (len(y), len(z), len(wiki)) == (9596, 1066, len(wiki)) and 0.45 < z.float().mean() < 0.55
    assert x.shape[1] <= 64 and (x[:, 0] == 2).all() and (wiki == 1).float().mean() < 0.1


# --- command line --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "argv, part",
    [
        (["--dim", "10"], "--dim 10: does not divide by --heads 4"),
        (["--sparsity", "1"], "--sparsity"),
        (["--vocab_size", "16"], "--vocab_size"),
        (["--config", "rt_polarity", "--data_root", "nowhere"], "--data_root nowhere"),
    ],
)
def test_mistakes(argv, part):
    mistake(PATH, *argv, about=part)
