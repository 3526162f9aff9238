"""The fused kernels of mamba_scan.py without a GPU: run by Triton's interpreter against the chunked
scan, and compiled for one. Triton is told which of the two it is to do before it is imported, so
each has a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from house import ROOT, load, mistake

mod = load("ssm/mamba_scan.py")
SCRIPT = ROOT / "ssm/mamba_scan.py"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton comes with torch for Linux alone"
)

# Prints, for each case, the largest difference of any output or gradient, relative to its size.
INTERPRETED = """
import importlib.util, json, tempfile, torch
from house import load
mod = load("ssm/mamba_scan.py")

def both_ways(scan, inputs):
    outputs = mod.selective_scan(*inputs, scan=scan)
    torch.manual_seed(0)
    total = sum((torch.randn(x.shape).to(x.dtype) * x).sum() for x in outputs)
    return [*outputs, *torch.autograd.grad(total, inputs)]

def gap(length, b, d, n, kind):
    torch.manual_seed(length)
    shapes = [(b, length, d)] * 2 + [(d, n)] + [(b, length, n)] * 2 + [(d,), (b, d, n)]
    x = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    x[1], x[2] = torch.nn.functional.softplus(x[1]), -x[2].exp()
    kind = getattr(torch, kind)
    exact = torch.promote_types(kind, torch.float32)
    kinds = [kind, kind, exact, kind, kind, exact, exact]
    x = [part.to(k).requires_grad_() for part, k in zip(x, kinds)]
    ours = both_ways("triton", x)
    theirs = both_ways("chunk", x)
    assert [p.dtype for p in ours] == [q.dtype for q in theirs]
    gaps = [(p - q).abs().max() / max(1, q.abs().max()) for p, q in zip(ours, theirs)]
    return max(map(float, gaps))

found = [gap(*case) for case in CASES]
source = open(mod.__file__, encoding="utf-8").read()
for old, new in BREAKS:
    assert source.count(old), old
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/broken.py"  # a file, as Triton reads the source of its kernels
        with open(path, "w", encoding="utf-8") as file:
            file.write(source.replace(old, new))
        spec = importlib.util.spec_from_file_location("broken", path)
        mod = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mod)
        found.append(gap(*CASES[0]))
print(json.dumps(found))
"""

# Compiles both kernels for two types of input and prints how large the code is.
COMPILED = """
import json
from house import load
mod = load("ssm/mamba_scan.py")
kernels = mod.kernels()
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
sizes = []
for name, kernel in kernels.items():
    for kind in ("fp32", "bf16"):
        inputs = {"u", "dt", "B", "C", "gu", "gdt"}
        signature = {
            key: "constexpr" if key in "LTND" else "i32" if key in "dn"
            else "*" + (kind if key in inputs else "fp32") for key in kernel.arg_names
        }
        values = {"L": 2048, "T": mod.TritonScan.T, "N": 16, "D": 16}
        numbers = {(kernel.arg_names.index(key),): value for key, value in values.items()}
        target = GPUTarget("cuda", 90, 32)
        made = triton.compile(ASTSource(kernel, signature, numbers), target=target)
        sizes.append(len(made.asm["ptx"]))
print(json.dumps(sizes))
"""


def run(program, cases=(), breaks=(), **env):
    """What program prints, in a process of its own."""
    head = f"CASES = {[*cases]!r}\nBREAKS = {[*breaks]!r}\n"
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    clean |= {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"} | env
    command = [sys.executable, "-c", head + program]
    done = subprocess.run(command, env=clean, capture_output=True, encoding="utf-8", timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


# Lengths around the chunk's of 16; batch, channels and states that fill no block.
CASES = [(length, 2, 3, 4, "float64") for length in (18, 1, 2, 15, 16, 17, 37)]
CASES += [(19, 1, 5, 3, "float64"), (5, 2, 2, 1, "float64"), (3, 1, 9, 32, "float64")]
CASES += [(37, 1, 3, 4, "float32"), (20, 1, 3, 4, "bfloat16")]
BREAKS = {
    "y of the state before": ("tl.sum(hs * C_k", "tl.sum(h[None] * C_k"),
    "a of the step itself, backwards": ("(k + t + 1 < L)", "(k + t < 0)"),
    "h for h_{k-1}": ("g * (hs - b)", "g * hs"),
    "no carry": ("carry[None], 0.0)", "0.0 * carry[None], 0.0)"),
    "composed the other way": ("a2 * b1 + b2", "a1 * b2 + b1"),
    "one sequence reads another": ("(row * L + k + t)", "(k + t)"),
}


@pytest.fixture(scope="module")
def gaps():
    """Case or break -> largest difference of value, last state (h0 is given) and all gradients."""
    found = run(INTERPRETED, CASES, BREAKS.values(), TRITON_INTERPRET="1")
    return dict(zip([*CASES, *BREAKS], found, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_equal_the_chunked_scan(case, gaps):
    """In bfloat16, y and most gradients are rounded as they leave, both ways alike but for that."""
    limit = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.02}[case[-1]]
    assert gaps[case] < limit and (case[-1] != "bfloat16" or gaps[case] > 0)


@pytest.mark.parametrize("name", BREAKS)
def test_broken_kernel_is_noticed(name, gaps):
    assert gaps[name] > 1e-3


def test_kernels_compile_for_a_gpu(tmp_path):
    """PTX for an H100 comes out, though there is none."""
    sizes = run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
    assert len(sizes) == 4 and min(sizes) > 5000


def test_where_triton_cannot_run_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    argv = ["--scan", "triton", "--device", "cpu"]
    mistake(SCRIPT, *argv, about="--scan triton: needs a CUDA device, not cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    mistake(SCRIPT, *argv, about="--scan triton: the package triton")


def test_selective_scan_refuses_without_a_gpu(monkeypatch):
    import torch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.rand(1, 3, 2)
    with pytest.raises(ValueError, match="scan triton needs a CUDA device"):
        mod.selective_scan(x, x, -torch.ones(2, 4), *torch.rand(2, 1, 3, 4), scan="triton")


def test_import_does_not_import_triton():
    """(torch itself may.)"""
    program = "import json, sys, torch, tqdm; from torch import nn; from house import load\n"
    program += "before = {*sys.modules}; load('ssm/mamba_scan.py')\n"
    program += "print(json.dumps([m for m in {*sys.modules} - before if 'triton' in m]))"
    assert run(program) == []
