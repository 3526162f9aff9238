"""crf.py against CRFsuite: the same weights from the same features, and the same tags."""

import pycrfsuite
import pytest
import torch
from house import call, load

mod = load("classic_ml/crf.py")
PATH = mod.Path(mod.__file__)


def crfsuite(file, train, c2, possible):
    """A tagger with what CRFsuite learns from sentences ([columns], tags)."""
    known = {"c2": c2, "max_iterations": 2000, "epsilon": 1e-9, "delta": 1e-13, "period": 20}
    known |= {"feature.possible_states": possible, "feature.possible_transitions": possible}
    trainer = pycrfsuite.Trainer(algorithm="lbfgs", params=known, verbose=False)
    for columns, tags in train:
        trainer.append(mod.window_attributes(columns), tags)
    trainer.train(str(file))
    tagger = pycrfsuite.Tagger()
    tagger.open(str(file))
    return tagger


def ours(tmp_path, c2, features):
    """Our model after training, its attributes and tags, and both parts of the data."""
    argv = ["--c2", c2, "--features", features, "--device", "cpu", "--out", tmp_path / "out"]
    assert call(PATH, *argv, "--n_steps", 300)[0] == 0
    args = mod.parse_args([*map(str, argv)])
    numbers, tags, _, seen, test = mod.load_data(args)
    model = mod.build(args, len(numbers), len(tags), seen)
    mod.load_weights(tmp_path / "out/last.pt", model)
    words = mod.re.findall("[^。？]+.", mod.re.sub("(?=[。？])", " ", mod.TEXT))
    torch.manual_seed(args.seed)
    words = [words[i].split() for i in torch.randperm(len(words)).tolist()]
    assert mod.cut_words(words[:20]) == test
    return model, numbers, tags, mod.cut_words(words[20:]), test


def compare(tmp_path, c2, features, their_c2=None):
    """Largest differences of weights: of states, of transitions; and whether all tags agree."""
    model, numbers, tags, train, test = ours(tmp_path, c2, features)
    tagger = crfsuite(tmp_path / "theirs", train, their_c2 or c2, features == "all")
    info, names = tagger.info(), [*numbers]
    gaps = {"state": 0.0, "transition": 0.0}
    for k, w in zip(model.features.tolist(), model.w.tolist(), strict=True):
        i, j = divmod(k, len(tags))
        if i < len(names):
            kind, theirs = "state", info.state_features.get((names[i], tags[j]), 0.0)
        else:
            kind = "transition"
            theirs = info.transitions.get((tags[i - len(names)], tags[j]), 0.0)
        gaps[kind] = max(gaps[kind], abs(w - theirs))
    # those that CRFsuite found too small to be written into its file are 0 there
    assert len(info.state_features) + len(info.transitions) <= len(model.w)
    mine = mod.predict_tags(model, numbers, tags, [columns for columns, _ in test])
    other = [tagger.tag(mod.window_attributes(columns)) for columns, _ in test]
    return gaps["state"], gaps["transition"], mine == other


@pytest.mark.parametrize("features", ["seen", "all"])
@pytest.mark.parametrize("c2", [1.0, 0.1])
def test_same_weights_and_tags(tmp_path, c2, features):
    state, transition, same = compare(tmp_path, c2, features)
    assert state < 1e-5 and transition < 1e-5 and same


def test_half_the_penalty_is_seen(tmp_path):
    """1/2 c2 ||w||^2, as others write it, is another minimum."""
    assert min(compare(tmp_path, 1.0, "seen", their_c2=0.5)[:2]) > 0.01


def test_chances_of_tags(tmp_path):
    """p(y | x) and p(y_t = j | x) of a sentence."""
    model, numbers, tags, train, test = ours(tmp_path, 1.0, "all")
    tagger = crfsuite(tmp_path / "theirs", train, 1.0, True)
    for columns, row in test[:5]:
        rows = mod.window_attributes(columns)
        tagger.set(rows)
        chains = mod.chain_up([rows], numbers, "cpu")
        with torch.no_grad():
            P, A = model.scores(chains)
            log_z, p, _ = mod.forward_backward(P, A, chains)
        y = torch.tensor([tags.index(tag) for tag in row])
        log_p = P.gather(1, y[:, None]).sum() + A[y[:-1], y[1:]].sum() - log_z[0]
        assert abs(log_p.exp().item() - tagger.probability(row)) < 1e-5
        for t in range(len(row)):
            want = [tagger.marginal(tag, t) for tag in tags]
            assert p[t].tolist() == pytest.approx(want, abs=1e-5)
