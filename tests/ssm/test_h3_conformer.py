"""h3_conformer.py by brute force: H3 as recurrences both ways, CTC as a sum over all paths; padding
that must not be seen, and what happens where it is."""

import itertools
import shlex
import wave

import pytest
import torch
import torch.nn.functional as F
from house import ROOT, call, load, mistake
from torch import nn

mod = load("ssm/h3_conformer.py")
SCRIPT = ROOT / "ssm/h3_conformer.py"
TINY = shlex.split("--dim 8 --depth 2 --heads 2 --d_state 4 --head_dim 2 --kernel_size 3")
TINY += shlex.split("--n_mels 8 --batch_size 2 --n_steps 2 --sample_interval 2 --device cpu")
every_mixer = pytest.mark.parametrize("mixer", mod.MIXERS)


def disturb(module):
    """With nothing left at its initial value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def h3(head_dim=4, d_state=6):
    torch.manual_seed(0)
    return disturb(mod.H3(8, d_state, head_dim).double())


def run_ssm(part, h, p):
    """w (L,) of p (L,): system h of part, whose state is known right before each output."""
    A, C = torch.complex(-part.log_A_real.exp(), part.A_imag)[h], torch.view_as_complex(part.C)[h]
    dt = part.log_dt[h].exp()
    A_, B_ = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
    state, w = 0, []
    for p_t in p:
        state = A_ * state + B_ * p_t
        w.append((C * state).sum() + (C.conj() * state.conj()).sum())
    return torch.stack(w).real


def by_hand(layer, x, d):
    """Eq. (1) to (8) for one sequence x (L, 8), which is all there is."""
    heads, n = 8 // d, layer.ssm_k_C.shape[-1]
    q, k, v = (x @ p.weight.T + p.bias for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    past, future = layer.ssm_k_C.flatten(1, 2)  # (8, N)
    shifted, out, length = layer.ssm_k_D.flatten() * k, torch.zeros_like(x), len(x)
    for t in range(length):
        for j in range(n):
            if t - j >= 0:
                shifted[t] = shifted[t] + past[:, j] * k[t - j]
            if t + 1 + j < length:
                shifted[t] = shifted[t] + future[:, j] * k[t + 1 + j]
    for h, i, j in itertools.product(range(heads), range(d), range(d)):
        p = shifted[:, h * d + i] * v[:, h * d + j]
        w = run_ssm(layer.kernel, h, p) + layer.D.flatten()[h] * p
        if length > 1:
            back = run_ssm(layer.kernel_back, h, p.flip(0)).flip(0)  # of t and all behind it
            w = w + F.pad(back[1:], (0, 1))
        out[:, j * heads + h] += q[:, h * d + i] * w
    return out @ layer.output_linear.weight.T + layer.output_linear.bias


@pytest.mark.parametrize("head_dim", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 33])
def test_convolutions_equal_recurrences_both_ways(head_dim, length):
    """In float64, within the lengths of a batch that also holds a longer sequence."""
    layer = h3(head_dim)
    x = torch.randn(2, length + 9, 8, dtype=torch.float64)
    mask = mod.frames_within(length + 9, torch.tensor([length, length + 9]))[..., None]
    with torch.no_grad():
        y = layer(x, mask)
        for i, n in enumerate([length, length + 9]):
            assert (y[i, :n] - by_hand(layer, x[i, :n], head_dim)).abs().max() < 1e-10


def test_gradients_of_both_forms():
    layer, x = h3(), torch.randn(1, 12, 8, dtype=torch.float64)
    weight, parameters = torch.randn(12, 8, dtype=torch.float64), [*layer.parameters()]
    found = []
    for y in (layer(x, torch.ones(1, 12, 1))[0], by_hand(layer, x[0], 4)):
        found.append(torch.autograd.grad((y * weight).sum(), parameters))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * max(1, theirs.abs().max())


NUMBERS = ["ssm_k_C", "ssm_k_D", "D", "kernel.C", "kernel_back.C", "kernel_back.log_dt"]


@pytest.mark.parametrize("what", NUMBERS)
def test_a_wrong_number_is_seen(what):
    layer, x = h3(), torch.randn(1, 20, 8, dtype=torch.float64)
    with torch.no_grad():
        right = by_hand(layer, x[0], 4)
        layer.get_parameter(what).mul_(1.001)
        assert (layer(x, torch.ones(1, 20, 1))[0] - right).abs().max() > 1e-6


def test_a_future_that_begins_with_the_present_is_seen(monkeypatch):
    layer, x = h3(), torch.randn(1, 20, 8, dtype=torch.float64)
    true = mod.convolve_both
    monkeypatch.setattr(mod, "convolve_both", lambda u, K, L: true(u, K, L.roll(1, -1)))
    with torch.no_grad():
        wrong = layer(x, torch.ones(1, 20, 1))[0]
        assert (wrong - by_hand(layer, x[0], 4)).abs().max() > 1e-3


def model(mixer, **changed):
    torch.manual_seed(0)
    sizes = {"n_mels": 8, "dim": 8, "depth": 3, "heads": 2, "d_state": 4, "head_dim": 2}
    sizes |= {"kernel_size": 5, "dropout": 0.0, "mixer": mixer} | changed
    return disturb(mod.Conformer(**sizes).double())


def sounds(*lengths, pad=0):
    """A batch of noises that end at their lengths, with pad zeros behind the longest."""
    torch.manual_seed(1)
    noise = [torch.randn(n, dtype=torch.float64) for n in lengths]
    x = nn.utils.rnn.pad_sequence(noise, batch_first=True)
    return F.pad(x, (0, pad)), torch.tensor(lengths)


def gap_of_padding(net):
    """Largest change of log P between a batch and each of its sequences alone, in evaluation."""
    x, lengths = sounds(2345, 4000, 980, 3111)
    net.eval()
    with torch.no_grad():
        together, frames = net(x, lengths)
        gaps = []
        for i, n in enumerate(lengths):
            alone, (t,) = net(x[i : i + 1, :n], n[None])
            assert t == frames[i] == alone.shape[1]
            gaps.append((together[i, :t] - alone[0]).abs().max())
    return max(gaps)


def gap_of_training(net):
    """Largest change of loss, statistics and gradients when a batch is padded more, in training."""
    found = []
    for pad in (0, 3000):
        twin = model(net)
        p, ends = twin(*sounds(2345, 4000, 980, 3111, pad=pad))
        y = torch.tensor([1, 2, 2, 10, 3, 1, 4])
        loss = F.ctc_loss(p.transpose(0, 1), y, ends, torch.tensor([2, 3, 0, 2]))
        loss.backward()
        kept = [b for name, b in twin.named_buffers() if "running" in name]
        found.append([loss.detach(), *kept, *(q.grad for q in twin.parameters())])
    return max((a - b).abs().max() for a, b in zip(*found, strict=True))


@every_mixer
def test_padding_is_not_seen(mixer):
    assert gap_of_padding(model(mixer)) < 1e-10
    assert gap_of_padding(model(mixer, kernel_size=31, depth=1)) < 1e-10
    single = model(mixer).float()
    x, lengths = sounds(2345, 4000)
    with torch.no_grad():
        together, _ = single.eval()(x.float(), lengths)
        alone, (t,) = single(x[:1, :2345].float(), lengths[:1])
    assert (together[0, :t] - alone[0]).abs().max() < 1e-5


@every_mixer
def test_padding_is_not_seen_in_training(mixer):
    assert gap_of_training(mixer) < 1e-10


def blind(kind):
    """The forward of a module, told that there is no padding."""
    true = kind.forward
    return lambda self, x, mask: true(self, x, torch.ones_like(mask))


LEAKS = {"hybrid": mod.H3, "h3": mod.H3, "mhsa": mod.MHSA}


@pytest.mark.parametrize("mixer", LEAKS)
def test_mixer_that_reads_padding_is_noticed(mixer, monkeypatch):
    monkeypatch.setattr(LEAKS[mixer], "forward", blind(LEAKS[mixer]))
    assert gap_of_padding(model(mixer)) > 1e-4


@every_mixer
def test_front_end_and_convolutions_that_read_padding_are_noticed(mixer, monkeypatch):
    """All masks gone; then only those of the depthwise convolutions."""
    with monkeypatch.context() as patch:
        patch.setattr(mod, "frames_within", lambda n, lengths: torch.ones(len(lengths), n))
        assert gap_of_padding(model(mixer)) > 1e-4
    monkeypatch.setattr(mod.ConformerLayer, "forward", blind(mod.ConformerLayer))
    net = model(mixer)
    for layer in net.layers:
        for mixing in layer.mixers:  # still told the truth
            true = mixing.forward
            mixing.forward = lambda y, _, true=true: true(y, truth)
    x, lengths = sounds(2345, 4000)
    net.eval()
    with torch.no_grad():
        p, ends = net.front_end(x, lengths)
        truth = mod.frames_within(p.shape[1], ends)[..., None]
        together, _ = net(x, lengths)
        truth = torch.ones(1, ends[0], 1)
        alone, _ = net(x[:1, :2345], lengths[:1])
    assert (together[0, : ends[0]] - alone[0]).abs().max() > 1e-4


def test_statistics_that_count_padding_are_noticed(monkeypatch):
    monkeypatch.setattr(mod.MaskedBatchNorm, "forward", blind(mod.MaskedBatchNorm))
    assert gap_of_padding(model("h3")) < 1e-10  # evaluation uses the running ones
    assert gap_of_training("h3") > 1e-4


def test_batch_norm_equals_that_of_the_frames_alone():
    torch.manual_seed(0)
    ours, theirs = mod.MaskedBatchNorm(5).double(), nn.BatchNorm1d(5).double()
    disturb(ours)
    theirs.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(3, 5, 11, dtype=torch.float64, requires_grad=True)
        mask = mod.frames_within(11, torch.tensor([11, 4, 7])) > 0  # (3, 11)
        y = ours(x, mask[:, None].double()).mT[mask]  # (22, 5)
        z = theirs(x.mT[mask])
        weight = torch.randn_like(z)
        assert (y - z).abs().max() < 1e-12
        for a, b in zip(
            torch.autograd.grad((y * weight).sum(), [x, *ours.parameters()]),
            torch.autograd.grad((z * weight).sum(), [x, *theirs.parameters()]),
            strict=True,
        ):
            assert (a - b).abs().max() < 1e-12
        for name in ("running_mean", "running_var"):
            assert (getattr(ours, name) - getattr(theirs, name)).abs().max() < 1e-12


def test_lengths_of_the_front_end():
    """Formulas (14) and (15) against the frames that come out, one number of samples at a time."""
    front = mod.FrontEnd(8, 4)
    with torch.no_grad():
        for n in [*range(256, 1400, 16), 335, 336, 337, 655, 656, 657, 4000]:
            x, lengths = front(torch.randn(1, n), torch.tensor([n]))
            assert x.shape == (1, int(lengths), 4), n


def test_loudness_does_not_matter():
    net = model("h3").eval()
    x, lengths = sounds(3000, 2000)
    with torch.no_grad():
        assert (net(x, lengths)[0] - net(x * 0.01, lengths)[0]).abs().max() < 1e-6
        assert net(0 * x, lengths)[0].isfinite().all()


@pytest.mark.parametrize(
    "mixer, kinds",
    [
        ("mhsa", [{"MHSA"}] * 4),
        ("h3", [{"H3"}] * 4),
        ("hybrid", [{"MHSA"}, {"MHSA"}, {"H3"}, {"H3"}]),
        ("parallel", [{"MHSA", "H3"}] * 4),
    ],
)
def test_where_the_mixers_are(mixer, kinds):
    layers = model(mixer, depth=4).layers
    assert [{type(m).__name__ for m in layer.mixers} for layer in layers] == kinds


def test_parallel_is_the_mean():
    layer = model("parallel").layers[0].eval()
    x, mask = torch.randn(2, 6, 8, dtype=torch.float64), torch.ones(2, 6, 1)
    both, found = layer.mixers, []
    with torch.no_grad():
        for mixers in ([both[0]], [both[1]], [both[0], both[1]]):
            layer.conv_norm.weight.zero_(), layer.ffn2[0].weight.zero_()
            layer.final_norm, layer.mixers = nn.Identity(), nn.ModuleList(mixers)
            found.append(layer(x, mask))
    # Norms without weight make what follows add the same to all three.
    assert (found[2] - (found[0] + found[1]) / 2).abs().max() < 1e-10


def paths_that_read(y, t, v):
    """All of the v^t paths whose greedy reading is y."""
    for path in itertools.product(range(v), repeat=t):
        scores = F.one_hot(torch.tensor([path]), v).float()
        if mod.greedy_decode(scores, torch.tensor([t])) == [y]:
            yield path


@pytest.mark.parametrize("y", [[1], [1, 2], [2, 2], [1, 2, 1]])
def test_ctc_sums_over_all_paths(y):
    """Eq. (16): the loss in use, with 0 for the blank, and the decoder read paths alike."""
    torch.manual_seed(0)
    p = torch.randn(5, 1, 3, dtype=torch.float64).log_softmax(-1)
    loss = F.ctc_loss(
        p, torch.tensor([y]), torch.tensor([5]), torch.tensor([len(y)]), reduction="sum"
    )
    paths = [*paths_that_read(y, 5, 3)]
    total = sum(p[range(5), 0, list(path)].sum().exp() for path in paths)
    assert len(paths) > 3 and abs(total.log() + loss) < 1e-12


def test_greedy_reading():
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 0, 3, 3], [0, 0, 5, 5, 5, 7, 7, 7, 7, 7]])
    scores = F.one_hot(path, 11).float()
    assert mod.greedy_decode(scores, torch.tensor([10, 5])) == [[1, 1, 2, 3], [5]]
    assert mod.greedy_decode(scores, torch.tensor([7, 2])) == [[1, 1, 2], []]


def test_sequence_too_short_for_its_digits_does_not_spoil_the_batch(monkeypatch, tmp_path):
    """Without zero_infinity the loss is infinite, and the run stops."""
    clip = torch.randn(400, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(mod, "load_data", lambda args: [[(clip, 7)]] * 2)  # 7 7 7 needs 5 frames
    assert call(SCRIPT, *TINY, "--out", tmp_path / "a")[0] == 0
    true = F.ctc_loss

    def strict(*args, zero_infinity):
        return true(*args)

    monkeypatch.setattr(F, "ctc_loss", strict)
    assert call(SCRIPT, *TINY, "--out", tmp_path / "b")[0] == 1


def slow_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    swap = slow_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(swap, slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1)


def test_edit_distance():
    torch.manual_seed(0)
    for n, m in itertools.product(range(6), range(6)):
        a, b = torch.randint(3, (n,)).tolist(), torch.randint(3, (m,)).tolist()
        assert mod.edit_distance(a, b) == slow_distance(a, b)


def test_utterances():
    args = mod.parse_args([*TINY, "--batch_size", "50", "--min_digits", "2", "--max_digits", "4"])
    clips = [(torch.full((100 + k,), k + 1.0), k) for k in range(10)]
    torch.manual_seed(0)
    x, lengths, y, sizes = mod.utterances(clips, args)
    assert sizes.unique().tolist() == [2, 3, 4] and x.shape == (50, lengths.max())
    for row, n, part in zip(x, lengths, y.split(sizes.tolist()), strict=True):
        wanted = torch.cat([clips[digit - 1][0] for digit in part])
        assert len(wanted) == n and torch.equal(row[:n], wanted) and not row[n:].any()
    assert sorted({*y.tolist()}) == [*range(1, 11)]  # 0 is the blank


def put_wav(file, samples, channels=1, width=2, rate=8000):
    with wave.open(str(file), "wb") as sound:
        sound.setparams((channels, width, rate, 0, "NONE", ""))
        sound.writeframes(bytes(samples.to(torch.int16).numpy()))
    return file


def test_wav_is_read_exactly(tmp_path):
    samples = torch.randint(-(2**15), 2**15, (1000,))
    x = mod.read_wav(put_wav(tmp_path / "a.wav", samples), "--predict")
    assert torch.equal(x * 2**15, samples.float())


def test_recordings(tmp_path):
    """Takes 0 to 4 are held out; what else lies there is not looked at."""
    folder = tmp_path / "fsdd/recordings"
    folder.mkdir(parents=True)
    for digit, take in itertools.product(range(10), (0, 4, 5, 10, 49)):
        put_wav(folder / f"{digit}_ann_{take}.wav", torch.full((900,), 100 * digit + take))
    put_wav(folder / "noise.wav", torch.zeros(900))
    args = mod.parse_args(["--dataset", "fsdd", "--data_root", str(tmp_path), "--device", "cpu"])
    train, test = mod.load_data(args)
    told = [sorted((int(x[0] * 2**15), digit) for x, digit in part) for part in (train, test)]
    assert told[0] == sorted((100 * k + t, k) for k in range(10) for t in (5, 10, 49))
    assert told[1] == sorted((100 * k + t, k) for k in range(10) for t in (0, 4))
    run = [*TINY, "--dataset", "fsdd", "--data_root", tmp_path]
    assert call(SCRIPT, *run, "--out", tmp_path / "out")[0] == 0
    (folder / "3_ann_7.wav").write_bytes(b"no wav")
    mistake(SCRIPT, *run, "--out", tmp_path / "out2", about="3_ann_7.wav")


def test_real_recordings(data_root):
    argv = ["--config", "fsdd", "--data_root", str(data_root), "--device", "cpu"]
    train, test = mod.load_data(mod.parse_args(argv))
    assert (len(train), len(test)) == (2700, 300)
    assert [digit for _, digit in test] == [k for k in range(10) for _ in range(30)]


def test_made_up_digits_differ_by_what_they_glide_through():
    torch.manual_seed(0)
    front, means = mod.FrontEnd(24, 4), []
    for digit in range(10):
        looks = [front.log_mel(mod.made_up_digit(digit)[None])[0] for _ in range(5)]
        means.append(torch.stack([F.adaptive_avg_pool1d(x.T, 5) for x in looks]).mean(0))
    far = torch.cdist(torch.stack(means).flatten(1), torch.stack(means).flatten(1))
    assert (far + 99 * torch.eye(10)).min() > 1


@pytest.fixture
def trained(tmp_path):
    assert call(SCRIPT, *TINY, "--out", tmp_path / "run")[0] == 0
    return tmp_path / "run"


def test_predict(trained, tmp_path, monkeypatch):
    sound = put_wav(tmp_path / "a.wav", 3000 * torch.randn(5000))
    seen = []
    monkeypatch.setattr(mod, "greedy_decode", lambda p, ends: seen.append(p) or [[3, 1, 10]])
    code, out, err = call(SCRIPT, *TINY, "--out", trained, "--predict", sound)
    assert (code, out, err) == (0, "2 0 9\n", "") and seen[0].shape == (1, 15, 11)


@pytest.mark.parametrize(
    "spoiled",
    [{"channels": 2}, {"width": 1}, {"rate": 16000}, {"samples": torch.zeros(255)}],
    ids=str,
)
def test_predict_refuses(spoiled, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_wav("a.wav", **{"samples": torch.zeros(2000)} | spoiled)
    mistake(SCRIPT, *TINY, "--out", trained, "--predict", "a.wav", about="--predict a.wav")
    mistake(SCRIPT, *TINY, "--out", trained, "--predict", "none.wav", about="--predict none.wav")


def test_weights_go_on_to_longer_utterances(trained, tmp_path):
    longer = shlex.split("--n_steps 0 --min_digits 10 --max_digits 12")
    longer += ["--weights", trained / "last.pt", "--out", tmp_path / "long"]
    code, out, _ = call(SCRIPT, *TINY, *longer)
    assert code == 0 and out.startswith("ter ")


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(SCRIPT, "--d_state", "5", about="--d_state 5")
    mistake(SCRIPT, "--head_dim", "3", about="--head_dim 3")
    mistake(SCRIPT, "--heads", "3", about="--heads 3")
    mistake(SCRIPT, "--kernel_size", "4", about="--kernel_size 4")
    mistake(SCRIPT, "--min_digits", "8", about="--min_digits 8")


def test_smoke_notices_a_leak(monkeypatch, capsys):
    monkeypatch.setattr(mod, "BARS", {"padding_gap": mod.BARS["padding_gap"]})
    assert mod.smoke(mod.parse_args([*TINY, "--smoke"])) == 0, capsys.readouterr().out
    monkeypatch.setattr(mod.H3, "forward", blind(mod.H3))
    assert mod.smoke(mod.parse_args([*TINY, "--smoke"])) == 1
