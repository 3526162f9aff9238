"""Kill runs at random moments, by Ctrl-C and by kill -9, and see that nothing is lost.

    python tests/kill.py diffusion/ddpm.py gan/wgan.py --times 10

trains each script on a tiny scale and interrupts the run so often; each time the checkpoint must
load and be as new as the log, and the run goes on from there with --resume. A run that was only
killed must end with the bits of one that nobody touched. Each process is forked from one that has
imported the script, which saves most of the time.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from house import ROOT, load, tiny
from test_cli import differences

MANY = {"n_epochs": 9999, "n_steps": 999_999}  # no run comes to its end by itself


def start(module, argv, until=None):
    """The process id of main(argv), silent, in a process of its own, which may end once it has
    saved so many steps or epochs."""
    child = os.fork()
    if not child:
        code, save = 99, module.save

        def save_and_end(args, state, done):
            save(args, state, done)
            if done == until:
                os._exit(0)

        module.save = save_and_end
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            null = os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(null, 1), os.dup2(null, 2)
            code = module.main(argv)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        os._exit(code if isinstance(code, int) else 1)
    return child


def ended(child):
    """Exit code of a process, negative for a signal, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def rows(out):
    log = Path(out, "log.jsonl")
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [json.loads(row) for row in text.splitlines()]


def opened(out):
    return torch.load(Path(out, "last.pt"), map_location="cpu", weights_only=True)


def harass(path, module, how, times):
    """Interrupt a run so many times; return how many steps or epochs it has come to."""
    out, resume, done, pace = how.name, [], 0, None
    for _ in range(times):
        before, began = len(rows(out)), time.monotonic()
        child = start(module, [*tiny(path, out=out, **MANY), *resume])
        while len(rows(out)) <= before:  # each time a little further
            if os.waitpid(child, os.WNOHANG)[0] or time.monotonic() > began + 120:
                sys.exit(f"{path.name}: {Path('stderr.txt').read_text(encoding='utf-8')[-600:]}")
            time.sleep(0.01)
        pace = pace or time.monotonic() - began
        time.sleep(random.uniform(0, min(pace, 0.5)))
        os.kill(child, how)
        code, wanted = ended(child), 130 if how == signal.SIGINT else -how
        assert code == wanted, f"exit {code}"
        told = next(iter(rows(out)[-1].values()))
        assert opened(out)["done"] >= max(told, done), "the checkpoint is older than the log"
        done, resume = opened(out)["done"], ["--resume"]
    return done


def survives(path, times):
    """What became of one script; a text that begins with ok if nothing was lost."""
    module = load(path)
    key, part = ("n_epochs", 1) if "n_epochs" in vars(module.parse_args([])) else ("n_steps", 2)
    done = harass(path, module, signal.SIGINT, times)
    end = harass(path, module, signal.SIGKILL, times) + part
    argv = {out: tiny(path, out=out, **MANY) for out in ("SIGINT", "SIGKILL", "whole")}
    nearest = done + 2 * part - done % part
    assert ended(start(module, [*argv["SIGINT"], "--resume"], nearest)) == 0
    assert ended(start(module, [*argv["SIGKILL"], "--resume"], end)) == 0
    assert ended(start(module, argv["whole"], end)) == 0
    killed, whole = (opened(out) | {"args": 0} for out in ("SIGKILL", "whole"))
    odd = next(differences(killed, whole), "")
    return f"differs: {odd[:200]}" if odd else f"ok, {done} and {end} {key[2:]}"


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("scripts", nargs="+")
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args()
    bad = 0
    for script in args.scripts:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                text = survives(ROOT / script, args.times)
            except AssertionError as error:
                text = f"lost: {error}"
            os.chdir(ROOT)
        bad += not text.startswith("ok")
        print(f"{script}: {text}", flush=True)
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
