"""What all tests share: where the scripts are, how they are read, imported and run alone."""

import ast
import hashlib
import importlib.util
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ["basics", "nlp", "classic_ml", "gnn", "vision", "diffusion", "gan", "vocoder"]
FAMILIES += ["separation", "ssm", "llm", "pruning"]
SCRIPTS = sorted(path for family in FAMILIES for path in (ROOT / family).glob("*.py"))
SPECIMEN = ROOT / "tests/specimen/mlp.py"
ALL = [*SCRIPTS, SPECIMEN]

# Functions that read the same in every script that has them, in this order ...
PLUMBING = ["fail", "pick_device", "join", "begin", "save", "load_weights", "line", "log", "plot"]
PLUMBING += ["report", "Help", "at_least"]
# ... and those that bear the same name in every script but do what that script is about.
ROLES = ["load_data", "build", "train", "sample", "generate", "evaluate", "run", "smoke"]
ROLES += ["draw", "parse_args", "main"]
LAST_FLAGS = ["seed", "device", "out", "resume", "smoke"]


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
        try:
            spec.loader.exec_module(sys.modules[key])
        except BaseException:  # a half-made module must not pass for the script next time
            del sys.modules[key]
            raise
    return sys.modules[key]


def flags(source):
    """Names of the flags that a script defines, in order, read from its text."""
    return re.findall(r'\badd\(\s*"--([^"]+)"', source)


@cache
def having(*names):
    """The scripts that define all these flags."""
    return [p for p in ALL if {*names} <= {*flags(p.read_text(encoding="utf-8"))}]


def constants(source):
    """Values of the capital names at module level that need no import but math."""
    values = {"math": math}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            with suppress(NameError, AttributeError):
                exec(compile(ast.Module([node], []), "constants", "exec"), values)
    return {key: value for key, value in values.items() if key.isupper()}


def commands(doc):
    """The shell commands of a docstring, each as one string without its explanation."""
    found = []
    for row in (doc or "").splitlines():
        text = re.split(r"\s{2,}", row.strip())[0]
        if re.match(r" {4}(\w+=\S+ )*(python|torchrun|uv) ", row):
            found.append(text)
        elif re.match(r" {5,}--", row) and found:  # goes on from the row above
            found[-1] += " " + text
    return found


def tiny(path, **changed):
    """Flags of a run as small as --smoke, on the CPU, of two epochs or four steps in two parts."""
    source = path.read_text(encoding="utf-8")
    short = {"n_epochs": 2, "n_steps": 4, "sample_interval": 2, "ae_steps": 2, "device": "cpu"}
    short |= changed
    known = flags(source)
    argv = []
    for key, value in (constants(source).get("SMOKE", {}) | short).items():
        if key in known and value is not None and value is not False:
            argv += [f"--{key}"]
            argv += [] if value is True else map(str, value if type(value) is list else [value])
    return argv


def call(path, *argv, function="main"):
    """Exit code, stdout and stderr of `python path argv`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings(record=True) as told:
        try:
            code = getattr(load(path), function)([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
    if isinstance(code, str):  # which Python prints at the end of a process
        code = print(code, file=err) or 1
    seen = [w for w in told if issubclass(w.category, (UserWarning, RuntimeWarning))]
    return code, out.getvalue(), err.getvalue() + "".join(f"{w.message}\n" for w in seen)


def files():
    """Path -> contents of every file below the current folder."""
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def mistake(path, *argv, about, function="main"):
    """Insist that the script refuses argv in one line that names what it is about."""
    before = files()
    code, out, err = call(path, *argv, function=function)
    shown = f"{' '.join(map(str, argv))} -> exit {code}, stdout {out!r}, stderr {err!r}"
    assert code == 2 and out == "" and err.count("\n") == 1, shown
    assert err.startswith(f"{path.name}: error: ") and about in err and err[-1] == "\n", shown
    assert files() == before, f"{shown}: files have changed"


class Job(NamedTuple):
    """A script to be run alone with these flags; interrupted: by Ctrl-C, once it has saved
    twice (before, a library that is being imported may swallow it)."""

    path: Path
    argv: tuple = ()
    interrupted: bool = False


class Run(NamedTuple):
    """What came out of a Job, and all that it left behind in its four folders."""

    code: int
    stdout: str
    stderr: str
    left: list
    folder: Path


def run_alone(job, folder, caches):
    """Run a copy that has nothing beside it, from another folder, offline, in one thread."""
    script, cwd, home, tmp = (folder / key for key in ("script", "elsewhere", "home", "tmp"))
    for each in (script, cwd, home, tmp):
        each.mkdir(parents=True)
    script = Path(shutil.copy(job.path, script))
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env |= {"HOME": f"{home}", "TMPDIR": f"{tmp}", "MPLCONFIGDIR": f"{caches}"}
    env |= {"CUDA_CACHE_PATH": f"{caches}", "TORCHINDUCTOR_CACHE_DIR": f"{caches}"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    process = subprocess.Popen([sys.executable, script, *job.argv], cwd=cwd, env=env, **pipes)
    try:
        if job.interrupted:
            late, log = time.monotonic() + 120, cwd / "out/log.jsonl"
            while process.poll() is None and time.monotonic() < late:
                if log.exists() and log.read_bytes().count(b"\n") > 1:
                    process.send_signal(signal.SIGINT)
                    break
                time.sleep(0.05)
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    left = sorted(str(path.relative_to(folder)) for path in folder.glob("*/**/*"))
    left.remove(str(script.relative_to(folder)))
    return Run(process.returncode, stdout, stderr, left, folder)


class _Bare(ast.NodeTransformer):
    """Drops what changes no number of a run: texts, the self-check, the shared plumbing, and what
    is done where something fails."""

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Call(self, node):
        node.keywords = [word for word in node.keywords if word.arg != "help"]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node):
        return None if node.name in {*PLUMBING, "smoke"} else self.generic_visit(node)

    def visit_Assign(self, node):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        return None if names <= {"SMOKE", "BARS"} else self.generic_visit(node)

    visit_AugAssign = visit_Assign

    def visit_ExceptHandler(self, node):
        return ast.ExceptHandler(None, None, [ast.Pass()])


def code_sha256(path):
    """Of a script's own code: tells whether a record was made by what stands there now."""
    code = ast.dump(_Bare().visit(ast.parse(Path(path).read_text(encoding="utf-8"))))
    return hashlib.sha256(code.encode()).hexdigest()
