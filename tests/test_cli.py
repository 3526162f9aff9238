"""How every script meets its user: wrong input costs one line and exit code 2, whatever it is, and
a run that was interrupted or killed goes on as if nothing had happened.

A script's main is called in this process, cut off from the network, in an empty folder; one script
of each folder is also run as users do and meets a real Ctrl-C.
"""

import functools
import inspect
import io
import itertools
import json
import math
import os
import pickle
import random
import shlex
import shutil
import signal
import socket
import sys
import warnings
import wave
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import house
import pytest
import torch
from house import ALL, SPECIMEN, Job, call, files, having, load, mistake, name, tiny

TRAINED = sorted({*having("n_epochs"), *having("n_steps")})
# What these flags say in the --help of every script that trains and has them.
HELP = {
    "n_steps": "optimiser steps in total",
    "batch_size": "examples per step",
    "b1": "adam: decay of the gradient's mean",
    "b2": "adam: decay of its square",
    "grad_clip": "largest norm of the gradient",
    "config": "named set of defaults",
    "weights": "state dict or checkpoint to load",
    "sample": "only draw, from --weights or OUT/last.pt",
    "amp": "bfloat16 autocast",
}
# Flags that use a trained model, with something to use it on.
USES = {"sample": [], "predict": ["file"], "separate": ["file"], "prompt": ["text"]}


class Bomb:
    """Whoever unpickles it finds a new file in the current folder."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


ALIEN = {"model": {"alien.weight": torch.zeros(100)}, "done": 1, "args": {}}
DAMAGED = {
    "missing": None,
    "empty": b"",
    "text": b"no checkpoint",
    "truncated": saved(ALIEN)[:500],
    "bomb": saved(ALIEN | {"done": Bomb()}),
    "pickled_bomb": pickle.dumps(Bomb(), protocol=2),
    "list": saved([1, 2]),
    "tensor": saved(torch.zeros(1)),
    "alien": saved(ALIEN),
}


def put(file, damage):
    if damage != "missing":
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_bytes(DAMAGED[damage])


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=name)


def each_alone(jobs):
    return pytest.mark.parametrize("alone", jobs, indirect=True, ids=[name(j.path) for j in jobs])


def actions(path):
    """Name -> action of the script's parser, taken at the moment when it would parse."""

    class Taken(Exception):
        pass

    def take(parser, *_):
        raise Taken(parser)

    with mock.patch.object(ArgumentParser, "parse_args", take), pytest.raises(Taken) as taken:
        load(path).parse_args([])
    return {action.dest: action for action in taken.value.args[0]._actions}


def once(fit, model, x, targets, n, lr):
    fit(model, x, targets, 1, lr)


@pytest.fixture(autouse=True)
def cut_off(tmp_path, monkeypatch):
    """An empty current folder, no network, and next to nothing of the stages before."""

    def refuse(*_, **__):
        raise OSError("the network is cut off")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for script in ("llm/sft.py", "llm/dpo.py"):
        fit = load(script).fit_rows
        monkeypatch.setattr(load(script), "fit_rows", functools.partial(once, fit))


@each(ALL)
def test_help_shows_the_docstring(path):
    code, out, err = call(path, "--help")
    assert (code, err, files()) == (0, "", {})
    assert load(path).__doc__.strip() in out


@each(ALL)
def test_commands_of_the_docstring_parse(path):
    for command in house.commands(load(path).__doc__):
        argv = shlex.split(command.partition(path.name)[2])
        assert call(path, *argv, function="parse_args")[1:] == ("", ""), command


@each(TRAINED)
def test_flags_that_all_scripts_share(path):
    ours, shared = actions(path), actions(SPECIMEN)
    wanted = HELP | {key: shared[key].help for key in house.LAST_FLAGS}
    assert not {key: a.help for key, a in ours.items() if a.help != wanted.get(key, a.help)}
    assert ours["out"].default == f"out/{path.stem}"
    assert (ours["seed"].default, ours["device"].default) == (0, "auto")


@each(ALL)
def test_unknown_flag(path):
    for word in ("--no_such_flag", "no_such_word", "--smok"):  # the last would be abbreviated
        mistake(path, word, about=word)


@each(ALL)
def test_bad_values(path):
    """Flag by flag, whatever is no number within its bounds or none of its choices."""
    for action in actions(path).values():
        bad = []
        if action.choices:
            bad = ["no_such_choice", ""]
        elif action.type:
            bounds = inspect.getclosurevars(action.type).nonlocals
            bad = ["x", "", "nan", "inf", bounds["low"] - 1, bounds["below"]]
            bad += ["1.5"] if isinstance(bounds["low"], int) else []
        for value in bad:
            flag = action.option_strings[0]
            mistake(path, flag, value, about=flag, function="parse_args")


@each(having("device"))
def test_bad_device(path):
    for device in ("no_such_device", "cuda:99", "meta"):
        mistake(path, *tiny(path), "--device", device, about="--device")


@each(having("dataset", "data_root"))
def test_missing_data(path):
    """The data sets other than the first are not here, unless the script makes them itself."""
    choices = [*actions(path)["dataset"].choices]
    for choice in choices[1:]:
        argv = [*tiny(path, n_steps=1), "--dataset", choice, "--data_root", "nowhere"]
        if call(path, *argv, "--out", "made")[0] != 0:
            mistake(path, *argv, about="--data")
    if "folder" in choices:
        Path("photos/a").mkdir(parents=True)
        argv = [*tiny(path), "--dataset", "folder", "--data_root", "photos"]
        mistake(path, *argv, about="--data")
        for file in ("photos/a.png", "photos/a/a.png"):
            Path(file).write_text("no image", encoding="utf-8")
        mistake(path, *argv, about="--data")


NAMES = [f"{part}-{of}" for part in ("train", "t10k") for of in ("images-idx3", "labels-idx1")]


@each([p for p in having("data_root") if "MNIST" in p.read_text(encoding="utf-8")])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_damaged_mnist(path, damage):
    Path("data/MNIST/raw").mkdir(parents=True)
    for n, file in zip((3, 1) * 2, NAMES, strict=True):
        header = bytes([0, 0, 8, n]) + (60_000).to_bytes(4, "big") + (n - 1) * bytes([0, 0, 0, 28])
        file = Path(f"data/MNIST/raw/{file}-ubyte")
        file.write_bytes({"empty": b"", "text": b"no such data", "cut": header + b"12345"}[damage])
    mistake(path, *tiny(path), "--dataset", "mnist", "--data_root", "data", about="--data")


@each([p for p in having("data_root") if "wavfile" in p.read_text(encoding="utf-8")])
def test_sound_that_is_cut_short(path):
    Path("sounds").mkdir()
    for n in range(4):
        with wave.open(f"sounds/{n}.wav", "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(b"12" * 8000)
    whole = Path("sounds/0.wav").read_bytes()
    Path("sounds/0.wav").write_bytes(whole[:5000])
    argv = [*tiny(path), "--dataset", "folder", "--data_root", "sounds"]
    mistake(path, *argv, about="sounds/0.wav")


@each(having("out"))
def test_out_that_cannot_be_written(path):
    Path("file").write_text("a file where a folder should be", encoding="utf-8")
    mistake(path, *tiny(path, out="file/out"), about="--out")


@each(having("resume"))
@pytest.mark.parametrize("damage", DAMAGED)
def test_checkpoint_that_cannot_be_resumed(path, damage):
    put("out/last.pt", damage)
    mistake(path, *tiny(path, out="out"), "--resume", about="--")


@each(having("weights"))
@pytest.mark.parametrize("damage", DAMAGED)
def test_weights_that_cannot_be_loaded(path, damage):
    put("weights.pt", damage)
    for use in [[], ["--sample"]] if path in having("sample") else [[]]:
        mistake(path, *tiny(path, weights="weights.pt"), *use, about="--weights")


@each(sorted({path for use in USES for path in having(use)}))
def test_use_of_a_model_that_is_not_there(path):
    for use in [use for use in USES if path in having(use)]:
        mistake(path, *tiny(path), f"--{use}", *USES[use], about="--")


class Killed(BaseException):
    """What a process feels of kill -9: no handler runs."""


def dying_save(number):
    """A torch.save that gets no further than half of the file when called the number-th time."""
    save, calls = torch.save, itertools.count(1)

    def half(thing, path):
        save(thing, path)
        if next(calls) == number:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise Killed

    return half


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained(path): a tiny run, and one killed while it saved for the second and last time."""

    @functools.cache
    def run(path):
        whole, half = (tmp_path_factory.mktemp(path.stem) / key for key in ("größe 全", "half"))
        code, stdout, stderr = call(path, *tiny(path, out=whole))
        assert code == 0, stderr
        strays = files()
        with mock.patch("torch.save", dying_save(2)), pytest.raises(Killed):
            call(path, *tiny(path, out=half))
        return SimpleNamespace(stdout=stdout, strays=strays, whole=whole, half=half)

    return run


def opened(folder):
    return torch.load(Path(folder, "last.pt"), map_location="cpu", weights_only=True)


@each(having("resume"))
def test_output_of_a_run(path, trained):
    run = trained(path)
    log = (run.whole / "log.jsonl").read_text(encoding="utf-8")
    done = [next(iter(json.loads(row).items())) for row in log.splitlines()]
    assert done in ([("epoch", 1), ("epoch", 2)], [("step", 2), ("step", 4)])
    assert run.stdout.count("\n") == len(done) + 1
    assert opened(run.whole)["done"] == done[1][1]
    assert opened(run.half)["done"] == done[0][1]
    assert (run.whole / "curves.png").exists() and not (run.whole / "last.tmp").exists()
    assert not run.strays


def differences(a, b, at="last.pt"):
    """Where two nests of dicts, lists and tensors differ, be it by one bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        yield from (f"{at}: only one has {key}" for key in a.keys() ^ b.keys())
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{at} {key}")
    elif isinstance(a, (list, tuple)):
        yield from differences(dict(enumerate(a)), dict(enumerate(b)), at)
    elif type(a) is not type(b) or not (torch.equal(a, b) if torch.is_tensor(a) else a == b):
        yield f"{at}: {a} is not {b}"


def resume_and_compare(path, run):
    """Resume the killed run to its end; in what does its checkpoint differ from the whole run's?"""
    shutil.copytree(run.half, "resumed")
    code, _, err = call(path, *tiny(path, out="resumed"), "--resume")
    assert (code, err) == (0, "")
    return [*differences(*(opened(at) | {"args": 0} for at in (run.whole, "resumed")))]


@each(having("resume"))
def test_killed_run_goes_on_bit_for_bit(path, trained):
    assert not resume_and_compare(path, trained(path))


def test_inexact_resume_is_noticed(trained, monkeypatch):
    run = trained(SPECIMEN)
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)
    assert resume_and_compare(SPECIMEN, run)


@each(having("resume"))
def test_resume_with_other_flags(path, trained):
    shutil.copytree(trained(path).half, "out")
    mistake(path, *tiny(path, out="out", seed=7), "--resume", about="--seed")


def poisoned(value):
    """The same nest of dicts, lists and tensors with nan in place of every float."""
    if isinstance(value, dict):
        return {key: poisoned(part) for key, part in value.items()}
    if torch.is_tensor(value) and value.is_floating_point():
        return torch.full_like(value, math.nan)
    return [*map(poisoned, value)] if isinstance(value, list) else value


@each(having("resume"))
def test_loss_that_is_not_finite_stops_the_run(path, trained):
    shutil.copytree(trained(path).half, "out")
    checkpoint = opened("out")
    torch.save(poisoned(checkpoint) | {"args": checkpoint["args"]}, "out/last.pt")
    before = files()
    code, out, err = call(path, *tiny(path, out="out"), "--resume")
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert err.startswith("stopped: the loss is not finite")
    assert files() == before


@each(having("sample", "resume"))
def test_sample_draws_from_the_checkpoint(path, trained):
    shutil.copytree(trained(path).whole, "out")
    before = files()
    assert call(path, *tiny(path, out="out"), "--sample")[0] == 0
    assert files().items() > before.items()
    assert call(path, *tiny(path, out="new", weights="out/last.pt"), "--sample")[0] == 0
    assert [*Path("new").iterdir()]


def endless(path):
    """Flags of a run that only Ctrl-C ends."""
    return tiny(path, n_epochs=9999, n_steps=999_999, out="out")


@pytest.fixture
def ctrl_c(monkeypatch):
    """ctrl_c(seconds): Ctrl-C comes so many seconds after the next checkpoint has been written."""
    before, replace = signal.signal(signal.SIGALRM, signal.default_int_handler), os.replace

    def after(seconds):
        def replace_then_wait(*names):
            replace(*names)
            monkeypatch.setattr(os, "replace", replace)
            signal.setitimer(signal.ITIMER_REAL, seconds, 30)  # again: a __del__ may swallow one

        monkeypatch.setattr(os, "replace", replace_then_wait)

    yield after
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@each(having("resume"))
def test_ctrl_c_saves_and_exits_130(path, trained, ctrl_c):
    trained(path)  # so that all is imported
    ctrl_c(random.Random(path.name).uniform(0.001, 0.5))  # a moment of its own for each script
    code, _, err = call(path, *endless(path))
    assert (code, err) == (130, "interrupted: --resume --out out goes on\n")
    assert opened("out")["done"] >= 1
    assert not [file for file in files() if file.parts[0] != "out" or file.suffix == ".tmp"]


FIRST = {path.parent: path for path in reversed(having("resume"))}  # of each folder


@each_alone([Job(path, (*endless(path),), interrupted=True) for path in FIRST.values()])
def test_ctrl_c_in_a_terminal(alone):
    assert alone.code == 130, alone.stderr
    assert alone.stderr == "interrupted: --resume --out out goes on\n"
    assert opened(alone.folder / "elsewhere/out")["done"] >= 1
    assert not [file for file in alone.left if not file.startswith("elsewhere/out")]


@pytest.mark.parametrize(
    "fails, code, err, also",
    [
        (False, 2, "mlp.py: error: --lr: no", lambda: None),
        (True, 1, "mlp.py: error: --lr: no", lambda: None),
        (True, 2, "usage: mlp.py\nmlp.py: error: --lr: no", lambda: None),
        (True, 2, "error: --lr: no", lambda: None),
        (True, 2, "mlp.py: error: something is wrong", lambda: None),
        (True, 2, "mlp.py: error: --lr: no", lambda: print("sorry")),
        (True, 2, "mlp.py: error: --lr: no", lambda: Path("litter").touch()),
        (True, 2, "mlp.py: error: --lr: no", lambda: warnings.warn("look", stacklevel=1)),
    ],
)
def test_bad_manners_are_noticed(fails, code, err, also, monkeypatch):
    def fail(message):
        print(err, file=sys.stderr)
        also()
        sys.exit(code)

    monkeypatch.setattr(load(SPECIMEN), "fail", fail)
    with pytest.raises(AssertionError) if fails else nullcontext():
        mistake(SPECIMEN, "--lr", "x", about="--lr")
