"""Ours against the peer, alternating in one process; the ratio of medians goes into a table.

    python tests/bench/run.py              every row
    python tests/bench/run.py ddpm scan    the rows whose name holds one of these words

A row comes from rows(device) of a bench_*.py beside this file: a generator of dicts with
name, peer, target (largest ratio ours/theirs that passes), ours and theirs (functions of no
argument). Rows measured before stay in the table until they are measured again.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent.parent / "results"
HEAD = """# Speed

Time of ours divided by time of the peer (ratio of medians, both alternating in one process; below
1 is faster). Made by `python tests/bench/run.py`.

| row | peer | ours ms | peer ms | ratio | target | met | rounds | machine | date |
|---|---|---|---|---|---|---|---|---|---|
"""


def seconds(function, device):
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def compare(row, device, rounds):
    """Time both sides in turn, after one warm-up each; the first mover changes every round."""
    sides = {"ours": row["ours"], "theirs": row["theirs"]}
    times = {side: [] for side in sides}
    for function in sides.values():
        seconds(function, device)
    for at in range(rounds):
        for side in sorted(sides, reverse=at % 2 == 1):
            times[side].append(seconds(sides[side], device))
    ours, theirs = (statistics.median(times[side]) for side in ("ours", "theirs"))
    return {"ours": ours * 1e3, "theirs": theirs * 1e3, "ratio": ours / theirs, "rounds": rounds}


def machine(device):
    if device != "cpu":
        return torch.cuda.get_device_name() if device.startswith("cuda") else device
    return f"{os.cpu_count()} cores {platform.machine()}, {torch.get_num_threads()} threads"


def table(rows):
    lines = [
        f"| {r['name']} | {r['peer']} | {r['ours']:.1f} | {r['theirs']:.1f} | {r['ratio']:.2f} "
        f"| {r['target']} | {'yes' if r['ratio'] <= r['target'] else 'no'} | {r['rounds']} "
        f"| {r['machine']} | {r['date']} |"
        for r in sorted(rows, key=lambda r: (r["name"], r["machine"]))
    ]
    return HEAD + "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="measure the rows that hold one of these")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    record = RESULTS / "bench.json"
    known = json.loads(record.read_text()) if record.exists() else []
    for path in sorted(HERE.glob("bench_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for row in module.rows(args.device):
            if args.words and not any(word in row["name"] for word in args.words):
                continue
            new = {key: row[key] for key in ("name", "peer", "target")}
            new |= compare(row, args.device, row.get("rounds", args.rounds))
            new |= {"machine": machine(args.device), "torch": torch.__version__}
            new |= {"date": datetime.date.today().isoformat()}
            print(f"{new['name']}: {new['ratio']:.3f} of {new['peer']} (target {new['target']})")
            sys.stdout.flush()
            known = [r for r in known if (r["name"], r["machine"]) != (new["name"], new["machine"])]
            known.append(new)
            RESULTS.mkdir(exist_ok=True)
            record.write_text(json.dumps(known, indent=1) + "\n")
            (RESULTS / "bench.md").write_text(table(known))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
