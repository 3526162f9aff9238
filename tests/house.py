"""What all tests share: where the scripts are, and how to import one without installing it."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ["basics", "nlp", "classic_ml", "gnn", "vision", "diffusion", "gan", "vocoder"]
FAMILIES += ["separation", "ssm", "llm", "pruning"]
SCRIPTS = sorted(path for family in FAMILIES for path in (ROOT / family).glob("*.py"))
SPECIMEN = ROOT / "tests/specimen/mlp.py"
ALL = [*SCRIPTS, SPECIMEN]


def name(path):
    """The script as people write it: diffusion/ddpm.py."""
    return str(Path(path).relative_to(ROOT))


def load(path):
    """Import a script by its path below ROOT, once: load("diffusion/ddpm.py").DDPM."""
    path = ROOT / path
    key = "onefile_" + "_".join(path.relative_to(ROOT).with_suffix("").parts)
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]
