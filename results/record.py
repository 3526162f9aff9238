"""Run a script on real data, measure what it made, and keep the numbers.

    python results/record.py diffusion/ddpm.py --dataset mnist --n_steps 4000

trains with the flags that follow the script's name, measures the outcome with the function that
MEASURES names for its folder, and writes results/<folder>/<script>-<dataset>.json; sha256 is that
of the script's code without its texts. With --resume a run that was cut short goes on; its
seconds add up. With --seeds 10 the run is repeated with seeds 0 to 9, and the metrics are means
that have their standard deviations beside them. README takes its cells from these files:
python tests/test_readme.py --fix.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "results")]
import measure  # noqa: E402
from house import code_sha256, load  # noqa: E402

TOLD = ["guided_diffusion", "dit", "latent_diffusion"]
# The measure of a script, or else that of its folder.
MEASURES = {"diffusion/ddim.py": measure.steps, "diffusion": measure.images}
MEASURES |= {f"diffusion/{name}.py": measure.asked_images for name in TOLD}
MEASURES |= {"diffusion/autoencoder_kl.py": None, "basics/kan.py": measure.grids}
GANS = ["gan", "cgan", "dcgan", "wgan", "wgan_gp"]
MEASURES |= {f"gan/{name}.py": measure.players for name in GANS}
MEASURES["vocoder"] = measure.copies
# What takes the place of train in a script that trains nothing.
TRAINS = {"nlp/ngram_lm.py": measure.smoothings}


def clock():
    return {"wall_seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


def measured(module, script, argv):
    """Train, or go on, and measure: settings, metrics and seconds of one run."""
    args = module.parse_args(argv)
    if "device" in args:
        args.device = module.pick_device(args.device)
    spent = Path(args.out, "spent.json")
    goes_on = getattr(args, "resume", False) and spent.exists()
    before, start = json.loads(spent.read_text()) if goes_on else {}, clock()
    metrics = TRAINS[script](module, args) if script in TRAINS else module.train(args)
    seconds = {key: now - start[key] + before.get(key, 0) for key, now in clock().items()}
    Path(args.out).mkdir(parents=True, exist_ok=True)
    spent.write_text(json.dumps(seconds))
    further = MEASURES.get(script, MEASURES.get(script.split("/")[0]))
    return args, metrics | (further(module, args) if further else {}), seconds


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("script")
    parser.add_argument("--seeds", type=int)
    own, argv = parser.parse_known_args()
    script = own.script
    module, code = load(script), code_sha256(ROOT / script)
    seeds = [["--seed", str(seed)] for seed in range(own.seeds)] if own.seeds else [[]]
    runs = [measured(module, script, [*argv, *seed]) for seed in seeds]
    args, metrics, _ = runs[0]
    seconds = {key: sum(run[2][key] for run in runs) for key in runs[0][2]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device = getattr(args, "device", "cpu")
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    local = "--data_root", "--out"
    places = {at + i for at, flag in enumerate(argv) if flag in local for i in (0, 1)}
    typed = [word for at, word in enumerate(argv) if at not in places and word != "--resume"]
    row = {"script": script, "argv": typed}
    local = {"device", "out", "data_root", "resume", "smoke", "seed"}
    row |= {"settings": {key: v for key, v in vars(args).items() if key not in local}}
    row |= {"seed": args.seed if len(runs) == 1 else [run[0].seed for run in runs]}
    values = {key: [run[1][key] for run in runs] for key in metrics}
    row |= {"metrics": {k: float(f"{statistics.mean(v):.5g}") for k, v in values.items()}}
    if len(runs) > 1:
        row |= {"std": {k: float(f"{statistics.stdev(v):.3g}") for k, v in values.items()}}
    row |= {key: round(value, 1) for key, value in seconds.items()}
    row |= {"peak_memory_mb": round(peak / 2**20), "device": device}
    if device.startswith("cuda"):
        row |= {"device": torch.cuda.get_device_name()}
    row |= {"threads": torch.get_num_threads(), "machine": platform.machine()}
    row |= {"versions": {"python": platform.python_version(), "torch": torch.__version__}}
    row |= {"date": datetime.date.today().isoformat(), "sha256": code}
    path = ROOT / "results" / Path(script).parent / f"{Path(script).stem}-{args.dataset}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")
    print(path.relative_to(ROOT), json.dumps(row["metrics"]))


if __name__ == "__main__":
    main()
