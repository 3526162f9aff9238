"""Run a script on real data, measure what it made, and keep the numbers.

    python results/record.py diffusion/ddpm.py --dataset mnist --n_steps 4000

trains with the flags that follow the script's name, measures the outcome with the function that
MEASURES names for its folder, and writes results/<folder>/<script>-<dataset>.json; sha256 is that
of the script's code without its texts. With --resume a run that was cut short goes on; its
seconds add up. README takes its cells from these files: python tests/test_readme.py --fix.
"""

import datetime
import json
import platform
import resource
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "results")]
import measure  # noqa: E402
from house import code_sha256, load  # noqa: E402

MEASURES = {"diffusion": measure.images}


def clock():
    return {"wall_seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


def main():
    script, *argv = sys.argv[1:]
    module, code = load(script), code_sha256(ROOT / script)
    args = module.parse_args(argv)
    args.device = module.pick_device(args.device)
    spent = Path(args.out, "spent.json")
    before = json.loads(spent.read_text()) if args.resume and spent.exists() else {}
    start = clock()
    metrics = module.train(args)
    seconds = {key: now - start[key] + before.get(key, 0) for key, now in clock().items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    spent.write_text(json.dumps(seconds))
    folder = Path(script).parent.name
    metrics |= MEASURES[folder](module, args) if folder in MEASURES else {}
    row = {"script": script, "argv": [flag for flag in argv if flag != "--resume"]}
    local = {"device", "out", "data_root", "resume", "smoke"}
    row |= {"settings": {key: v for key, v in vars(args).items() if key not in local}}
    row |= {"seed": args.seed, "metrics": {key: float(f"{v:.5g}") for key, v in metrics.items()}}
    row |= {key: round(value, 1) for key, value in seconds.items()}
    row |= {"peak_memory_mb": round(peak / 2**20), "device": args.device}
    if args.device.startswith("cuda"):
        row |= {"device": torch.cuda.get_device_name()}
    row |= {"threads": torch.get_num_threads(), "machine": platform.machine()}
    row |= {"versions": {"python": platform.python_version(), "torch": torch.__version__}}
    row |= {"date": datetime.date.today().isoformat(), "sha256": code}
    path = ROOT / "results" / folder / f"{Path(script).stem}-{args.dataset}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")
    print(path.relative_to(ROOT), json.dumps(row["metrics"]))


if __name__ == "__main__":
    main()
