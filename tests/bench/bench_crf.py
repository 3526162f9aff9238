"""crf.py against CRFsuite: 30 steps of L-BFGS on 1,500 sentences of 30 random characters that are
to be cut into words, with the features that occur."""

import tempfile
from pathlib import Path

import pycrfsuite
import torch
from house import load

mod = load("classic_ml/crf.py")
STEPS = 30


def sentences():
    """Words of 1 to 4 of 500 characters; the first ones of a word are rather low."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 5, (1500, 12)).tolist()
    chars = (500 * torch.rand(1500, 12, 4) ** torch.tensor([2.0, 1.0, 0.7, 0.5])).long().tolist()
    pairs = [zip(n, c, strict=True) for n, c in zip(lengths, chars, strict=True)]
    rows = [["".join(chr(0x4E00 + c) for c in word[:n]) for n, word in row] for row in pairs]
    return mod.cut_words(rows)


def rows(device):
    train = sentences()
    before, mod.read_columns = mod.read_columns, lambda args, part: train
    args = mod.parse_args(["--dataset", "ud", "--device", device])
    numbers, tags, chains, seen, _ = mod.load_data(args)
    mod.read_columns = before
    trainer = pycrfsuite.Trainer(algorithm="lbfgs", verbose=False)
    trainer.set_params({"c2": args.c2, "max_iterations": STEPS, "epsilon": 0, "delta": 0})
    for columns, row in train:
        trainer.append(mod.window_attributes(columns), row)
    losses = {}

    def ours():
        model = mod.build(args, len(numbers), len(tags), seen)
        known = {"max_iter": STEPS, "max_eval": 10**9, "line_search_fn": "strong_wolfe"}
        optimizer = torch.optim.LBFGS([model.w], tolerance_change=0, tolerance_grad=0, **known)

        def closure():
            losses["ours"], model.w.grad = model.objective(chains, seen, args.c2)
            return losses["ours"]

        optimizer.step(closure)

    def theirs():
        with tempfile.TemporaryDirectory() as folder:
            trainer.train(str(Path(folder, "model")))
            losses["theirs"] = trainer.logparser.last_iteration["loss"]

    ours()
    theirs()
    print("crf: loss {:.1f}, of CRFsuite {:.1f}".format(losses["ours"], losses["theirs"]))
    yield {
        "name": f"crf {STEPS} steps of L-BFGS, {len(chains.old)} places, {len(tags)} tags",
        "peer": "CRFsuite",
        "target": 2.0,
        "rounds": 5,
        "ours": ours,
        "theirs": theirs,
    }
