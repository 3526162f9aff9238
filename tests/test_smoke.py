"""Every script, copied alone into an empty folder, proves with --smoke that it learns."""

import json
import math

import pytest
from budgets import SMOKE_SECONDS, budget
from house import ALL, Job, Run, constants, name, run_alone


def complaints(run, file, bars, seconds):
    """What is wrong with the Run of a smoke; bars and seconds are those that hold for it."""
    if run.code or run.stdout.count("\n") != 1:
        return [f"exit {run.code}, stdout {run.stdout[-500:]!r}, stderr {run.stderr[-2000:]}"]
    row = json.loads(run.stdout)
    found = [f"leaves {path}" for path in run.left]
    if row["ok"] is not True or row["script"] != file:
        found.append(f"says script {row['script']}, ok {row['ok']}")
    if row["bars"] != {key: [*bar] for key, bar in bars.items()}:
        found.append(f"says that the bars are {row['bars']}")
    values = {k: v for k, v in row.items() if k not in ("script", "ok", "device", "bars")}
    found += [f"{key} is {v}" for key, v in values.items() if v is None or not math.isfinite(v)]
    found += [f"{key} is missing" for key in bars if key not in row]
    found += [
        f"{key} {row[key]} is not in [{low}, {high}]"
        for key, (low, high) in bars.items()
        if isinstance(row.get(key), float) and not low <= row[key] <= high
    ]
    if row["cpu_seconds"] > seconds:
        found.append(f"takes {row['cpu_seconds']} CPU seconds, {seconds} are allowed")
    return found


@pytest.mark.parametrize(
    "alone", [Job(p, ("--smoke",)) for p in ALL], indirect=True, ids=map(name, ALL)
)
def test_smoke(alone, request):
    path = request.node.callspec.params["alone"].path
    bars = constants(path.read_text(encoding="utf-8"))["BARS"]
    assert not complaints(alone, path.name, bars, budget(SMOKE_SECONDS, name(path)))


ROW = {"script": "x.py", "ok": True, "device": "cpu", "acc": 0.9, "bars": {"acc": [0.5, 1.0]}}
ROW |= {"cpu_seconds": 5.0}


CHANGES = [{"ok": False}, {"script": "y.py"}, {"acc": 0.4}, {"acc": None}, {"more": None}]
CHANGES += [{"bars": {}}, {"cpu_seconds": 16.0}, {"stdout": "one\ntwo\n"}, {"code": 1}]
CHANGES += [{"left": ["home/.cache"]}]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_complaints_are_made(change):
    def judged(change):
        row = ROW | {k: v for k, v in change.items() if k not in ("code", "left", "stdout")}
        stdout = change.get("stdout", json.dumps(row) + "\n")
        run = Run(change.get("code", 0), stdout, "", change.get("left", []), None)
        return complaints(run, "x.py", {"acc": (0.5, 1.0)}, 15)

    assert not judged({})
    assert judged(change)


def test_missing_metric_is_told():
    run = Run(0, json.dumps({k: v for k, v in ROW.items() if k != "acc"}) + "\n", "", [], None)
    assert complaints(run, "x.py", {"acc": (0.5, 1.0)}, 15) == ["acc is missing"]


LITTER = """
import os, pathlib, tempfile
assert not os.listdir() and os.environ["OMP_NUM_THREADS"] == "1" and "PYTHONPATH" not in os.environ
for folder in (".", pathlib.Path(__file__).parent, pathlib.Path.home(), tempfile.gettempdir()):
    pathlib.Path(folder, "litter").mkdir()
"""


def test_litter_is_found(tmp_path):
    (tmp_path / "litter.py").write_text(LITTER, encoding="utf-8")
    run = run_alone(Job(tmp_path / "litter.py"), tmp_path / "alone", tmp_path)
    assert run.code == 0, run.stderr
    assert run.left == [f"{at}/litter" for at in ("elsewhere", "home", "script", "tmp")]
