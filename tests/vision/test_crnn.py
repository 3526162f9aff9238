"""crnn.py: CTC and both decoders against all paths, the net layer by layer, lists of images."""

import itertools
import math

import pytest
import torch
from house import call, load, mistake
from PIL import Image
from torch import nn

mod = load("vision/crnn.py")
PATH = mod.Path(mod.__file__)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- CTC -----------------------------------------------------------------------------------------
def collapsed(path):
    """B of (3)."""
    return tuple(k for k, _ in itertools.groupby(path) if k)


def by_all_paths(y):
    """{text: p} of log probabilities y (T, K)."""
    T, K = y.shape
    found = {}
    for path in itertools.product(range(K), repeat=T):
        p = math.exp(sum(y[t, k].item() for t, k in enumerate(path)))
        found[collapsed(path)] = found.get(collapsed(path), 0.0) + p
    return found


def random_y(T, K, seed=0):
    torch.manual_seed(seed)
    return (2 * torch.randn(T, K, dtype=torch.float64)).log_softmax(1)


def test_loss_sums_over_all_paths():
    y, lengths = random_y(5, 3), [0, 1, 2, 2, 3]
    texts = [(), (1,), (1, 1), (2, 1), (1, 2, 1)]
    want = by_all_paths(y)
    for text, n in zip(texts, lengths, strict=True):
        padded = torch.tensor([[*text, *[0] * (4 - n)]])
        loss = mod.ctc(y[:, None], padded, torch.tensor([n])).item()
        assert loss == pytest.approx(-math.log(want[text]), abs=1e-5)


def test_repeats_need_a_blank_between():
    y = random_y(2, 3)
    assert (1, 1) not in by_all_paths(y)
    loss = mod.ctc(y[:, None].requires_grad_(), torch.tensor([[1, 1]]), torch.tensor([2]))
    assert loss.item() == 0  # such a text teaches nothing, and breaks nothing


@pytest.mark.parametrize("seed", range(5))
def test_wide_beam_is_exhaustive(seed):
    y = random_y(5, 3, seed)
    want = by_all_paths(y)
    best = max(want, key=want.get)
    text, p = mod.prefix_beam_search(y, 10_000)
    assert text == best and math.exp(p) == pytest.approx(want[best], rel=1e-9)


def test_narrow_beam_is_close():
    hits = 0
    for seed in range(20):
        y = random_y(6, 4, seed)
        text, p = mod.prefix_beam_search(y, 8)
        want = by_all_paths(y)
        hits += text == max(want, key=want.get)
        assert math.exp(p) <= want[text] + 1e-9
    assert hits >= 18


def test_greedy_says_nothing_where_the_beam_reads():
    y = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert mod.best_path(y[:, None]).tolist() == [[0, 0]]
    text, p = mod.prefix_beam_search(y, 4)
    assert text == (1,) and math.exp(p) == pytest.approx(0.64)


def test_best_path_merges_then_drops():
    path = torch.tensor([1, 1, 0, 1, 2, 2, 0, 0, 2])
    scores = nn.functional.one_hot(path, 3)[:, None].float()
    assert [k for k in mod.best_path(scores)[0].tolist() if k] == [1, 1, 2, 2]
    assert collapsed(path.tolist()) == (1, 1, 2, 2)


# --- the net -------------------------------------------------------------------------------------
def paper(device="cpu"):
    args = mod.parse_args(["--config", "paper"])
    args.device = device
    return mod.build(args)


def test_layout_of_the_released_file():
    with torch.device("meta"):
        state = paper("meta").state_dict()
    convs = {f"cnn.conv{i}.{part}" for i in range(7) for part in ("weight", "bias")}
    norms = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    norms = {f"cnn.batchnorm{i}.{part}" for i in (2, 4, 6) for part in norms}
    lstm = [f"{kind}_{side}_l0{way}" for kind in ("weight", "bias") for side in ("ih", "hh")
            for way in ("", "_reverse")]  # fmt: skip
    rnn = {f"rnn.{i}.rnn.{part}" for i in (0, 1) for part in lstm}
    rnn |= {f"rnn.{i}.embedding.{part}" for i in (0, 1) for part in ("weight", "bias")}
    assert state.keys() == convs | norms | rnn and len(state) == 49
    count = sum(v.numel() for k, v in state.items() if "running" not in k and "tracked" not in k)
    assert count / 1e6 == pytest.approx(8.331, abs=1e-3)


def test_net_layer_by_layer():
    torch.manual_seed(0)
    model = mod.CRNN(4, 8, 5).double().eval()
    for name, part in model.named_buffers():
        if "running" in name:
            nn.init.uniform_(part, 0.5, 1.5)
    x, p = torch.randn(3, 1, 32, 100, dtype=torch.float64), dict(model.cnn.named_children())
    y = nn.functional.max_pool2d(p["conv0"](x).relu(), 2)
    y = nn.functional.max_pool2d(p["conv1"](y).relu(), 2)
    y = p["batchnorm2"](p["conv2"](y)).relu()
    y = nn.functional.max_pool2d(p["conv3"](y).relu(), 2, (2, 1), (0, 1))
    y = p["batchnorm4"](p["conv4"](y)).relu()
    y = nn.functional.max_pool2d(p["conv5"](y).relu(), 2, (2, 1), (0, 1))
    y = p["batchnorm6"](p["conv6"](y)).relu()
    assert y.shape == (3, 32, 1, 26)
    columns = y.squeeze(2).permute(2, 0, 1)
    torch.testing.assert_close(model(x), model.rnn(columns))


@pytest.mark.parametrize("width", [16, 32, 50, 99, 100, 101, 160])
def test_number_of_columns(width):
    args = mod.parse_args(["--img_width", str(width), "--max_length", "2"])
    assert len(mod.CRNN(1, 2, 3)(torch.zeros(1, 1, 32, width))) == mod.columns(args)


# --- data ----------------------------------------------------------------------------------------
def test_strings_are_seeded_and_fonts_are_new():
    args = mod.parse_args(["--max_length", "3", "--device", "cpu"])
    x, texts = mod.render(mod.FONTS, 20, args, "a")
    assert x.shape == (20, 1, 32, 100) and {*map(len, texts)} == {1, 2, 3}
    again, same = mod.render(mod.FONTS, 20, args, "a")
    assert torch.equal(x, again) and texts == same
    assert not {*mod.FONTS} & {*mod.NEW_FONTS}
    assert (x.flatten(1).float().std(1) > 15).all()  # ink and ground can be told apart


def write_list(rows, part="train", images=True):
    for row in rows:
        name = row.split(" ")[0]
        mod.Path(name).parent.mkdir(exist_ok=True)
        if images:
            Image.new("RGB", (60, 20), (90, 90, 90)).save(name)
    mod.Path(f"{part}.tags").write_text("\n".join(rows) + "\n", encoding="utf-8")


FLAGS = [
    "--alphabet",
    mod.LETTERS,
    "--dataset",
    "folder",
    "--data_root",
    ".",
    "--n_rendered",
    "0",
    "--n_epochs",
    "1",
]


def test_folder_is_read():
    write_list([f"train/{i}.png Word{i}" for i in range(9)])
    write_list(["test/a.png Apple", "test/b.png 42"], "test")
    args = mod.parse_args([*FLAGS, "--device", "cpu"])
    (x, text, lengths), (x_test, said, _) = mod.load_data(args)
    assert x.shape == (9, 1, 32, 100) and lengths.tolist() == [5] * 9 and x_test.shape[0] == 2
    assert mod.as_text(args, text[3].tolist()) == "word3"
    assert [mod.as_text(args, row.tolist()) for row in said] == ["apple", "42"]


@pytest.mark.parametrize(
    ("row", "about"),
    [
        ("train/x.png caf\u00e9", "line 2: '\u00e9'"),
        ("train/x.png", "line 2: ''"),
        (f"train/x.png {'ab' * 14}", "line 2: 'abab"),
        (f"train/x.png {'a' * 14}", "does not fit in 26 columns"),
    ],
)
def test_labels_that_cannot_be_learned(row, about):
    write_list(["train/0.png fine", row])
    write_list(["test/a.png apple"], "test")
    mistake(PATH, *FLAGS, "--device", "cpu", about=about)


def test_files_that_are_missing_or_damaged():
    mistake(PATH, *FLAGS, "--device", "cpu", about="train.tags")
    write_list(["train/0.png fine"])
    write_list(["test/a.png apple"], "test")
    mod.Path("train/0.png").write_bytes(b"none")
    mistake(PATH, *FLAGS, "--device", "cpu", about="train/0.png")


@pytest.mark.parametrize(
    "flags",
    [["--alphabet", "aab"], ["--alphabet", "a b"], ["--max_length", "20"], ["--n_rendered", "1"]],
)
def test_flags_that_do_not_fit(flags):
    mistake(PATH, *flags, about=flags[0])


def test_predict_after_training():
    flags = ["--alphabet", "0123456789", "--max_length", "1", "--img_width", "32", "--dim", "8"]
    flags += ["--hidden", "32", "--device", "cpu"]
    code, _, err = call(PATH, *flags, "--n_rendered", "1500", "--n_epochs", "6", "--lr", "5e-3")
    assert code == 0, err
    args = mod.parse_args(flags)
    x, texts = mod.render(mod.NEW_FONTS, 12, args, "predict")
    mod.Path("seen").mkdir()
    for at, (image, text) in enumerate(zip(x, texts, strict=True)):
        Image.fromarray(image[0].numpy()).save(f"seen/{at:02}_{text}.png")
    code, out, err = call(PATH, *flags, "--predict", "seen")
    rows = [row.split("  ") for row in out.splitlines()]
    assert code == 0 and len(rows) == 12, err
    assert sum(row[0].split("_")[1][0] == row[1] for row in rows) >= 10
    assert all(row[2].endswith("%") for row in rows)
    assert mod.Path("out/crnn/columns.png").exists()
    mistake(PATH, *flags, "--predict", "nowhere", about="--predict")
