# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""Selective scan: the recurrence of Mamba, step by step, as a parallel prefix scan, in chunks, and
as a fused GPU kernel; with the Mamba block around it, which learns selective copying or induction
heads.

Paper: Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", COLM 2024,
arXiv 2312.00752; the scan: Blelloch, "Prefix Sums and Their Applications", CMU-CS-90-190, 1990.

    h'(t) = A h(t) + B u(t)                     (1)  the continuous system of one channel
    B_k, C_k = linear(u_k)                      (2)  selection: the system depends on the input,
    dt_k = softplus(linear(u_k) + bias)         (3)  and so does its step: a large one takes u_k
                                                     into the state, a small one keeps the state
    a_k = exp(dt_k A)                           (4)  u held for a step (ZOH): exact for A,
    b_k = dt_k B_k u_k                          (5)  to first order (Euler) for B
    h_k = a_k h_{k-1} + b_k                     (6)  recurrence, element by element
    y_k = C_k . h_k + D u_k                     (7)  output, of h_k and not of h_{k-1}
    (a2, b2) o (a1, b1) = (a2 a1, a2 b1 + b2)   (8)  step 1 and then step 2 as one step
    g_k = C_k dL/dy_k + a_{k+1} g_{k+1}         (9)  backward: g_k = dL/dh_k obeys (6) in reverse
    dL/da_k = g_k h_{k-1},  dL/db_k = g_k       (10)  as g_k is the gradient of a whole step
    block(x) = out(y * silu(z))                 (11)  x', z = in(x),  u = silu(conv(x'))
    L = -log softmax(scores)_answer             (12)  mean over the places that ask for an answer

Why (6) can be computed in parallel: the pair (a, b) stands for the map h -> a h + b, and (8)
composes two maps. Composition is associative, so (a_k, b_k) o ... o (a_1, b_1), whose second part
is h_k, may be bracketed at will. Blelloch's bracketing takes 2 log2 L rounds and fewer than 2 L
uses of (8); that of Hillis and Steele takes log2 L rounds, but L uses in each. The chunked scan
goes step by step. It is fast because it holds one chunk of states, which fits the cache; the
others come back in the backward pass, each from the one state kept per chunk. The fused kernel
does the same on a GPU, with the chunk in registers, where it is solved by a prefix scan.

Shapes: B batch, L steps, D channels, N states of a channel, T steps of a chunk, E width of the
model, V symbols; u, dt, y (B, L, D), A (D, N), B and C (B, L, N), D (D,), h (B, D, N), x (B, L, E).
Unlike the paper: the fused kernel is Triton's, not CUDA; V counts the noise and the cue;
in induction heads the cue comes n_tokens times before it ends the sequence, not once, and every
cue but the first asks for the answer; gradients are clipped.

    python mamba_scan.py                               selective copying, minutes on a laptop
    python mamba_scan.py --dataset induction_heads     what came after the cue?
    python mamba_scan.py --weights out/mamba_scan/last.pt --n_steps 0 --seq_len 256 --out out/long
                                                       only evaluate, here at 4 times the length
    python mamba_scan.py --config selective_copying --scan triton     the paper's size, for a GPU
    python mamba_scan.py --smoke                       seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"seq_len": 24, "n_tokens": 2, "vocab_size": 10, "dim": 24, "d_state": 4, "n_steps": 150}
BARS = {"accuracy": (0.93, 1.0), "scan_gap": (0.0, 1e-10)}
CONFIGS = {
    "laptop": {},
    "selective_copying": {"seq_len": 4096, "n_tokens": 16, "lr": 1e-4, "n_steps": 400_000},
    "induction_heads": {"dataset": "induction_heads", "seq_len": 256, "batch_size": 8}
    | {"lr": 1e-3, "n_steps": 204_800},
}


# --- the idea ------------------------------------------------------------------------------------
def discretise(u, dt, A, B):
    """Factors a and terms b (..., N, D) from u, dt (..., D), A (N, D), B (..., N)."""
    a = (dt[..., None, :] * A).exp_()  # (..., N, D)  eq. (1), (4)
    b = (dt * u)[..., None, :] * B[..., None]  # (..., N, D)  eq. (5)
    return a, b


def readout(C, h):
    return (C[..., None, :] @ h)[..., 0, :]  # (..., D)  eq. (7)


def sequential(u, dt, A, B, C, h):
    """The reference, step by step. (With a[:, k] for unbind the backward pass were O(L^2).)"""
    hs = [h]
    for a_k, b_k in zip(*(x.unbind(1) for x in discretise(u, dt, A, B)), strict=True):
        hs.append(a_k * hs[-1] + b_k)  # eq. (6)
    return readout(C, torch.stack(hs[1:], 1)), hs[-1]  # (B, L, D), (B, N, D)


def sweep(a, b):
    """Turn b_k (B, L, ...) into h_k, where h_0 = 0, for all k and in place; a is used up."""
    if b.shape[1] > 1:
        b[:, 1::2].addcmul_(a[:, 1::2], b[:, :-1:2])  # up: odd steps take in even ones, eq. (8)
        a[:, 1::2].mul_(a[:, :-1:2])
        sweep(a[:, 1::2], b[:, 1::2])  # which leaves half as many to solve
        b[:, 2::2].addcmul_(a[:, 2::2], b[:, 1:-1:2])  # down: even ones follow, eq. (8)
    return b


class PrefixScan(torch.autograd.Function):
    """All h_k from a_k, b_k (B, L, N, D), where h_0 = 0."""

    @staticmethod
    def forward(ctx, a, b):
        h = sweep(a.clone(), b.clone())
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, gh):
        a, h = ctx.saved_tensors
        g = sweep(a.roll(-1, 1).flip(1), gh.flip(1)).flip(1)  # a_1 comes last, unused  eq. (9)
        return g * F.pad(h[:, :-1], (0, 0, 0, 0, 1, 0)), g  # eq. (10)


def blelloch(u, dt, A, B, C, h):
    """Work-efficient parallel scan; keeps a few tensors (B, L, N, D) for the backward pass."""
    a, b = discretise(u, dt, A, B)  # (B, L, N, D)
    first = a[:, :1] * h[:, None] + b[:, :1]  # so that the scan may start from 0
    h = PrefixScan.apply(a, torch.cat([first, b[:, 1:]], 1))
    return readout(C, h), h[:, -1]


def walk(a, b, h):
    """Turn b (B, T, N, D) into the states that follow h (B, N, D), in place."""
    for a_k, b_k in zip(a.unbind(1), b.unbind(1), strict=True):
        h = b_k.addcmul_(a_k, h)  # eq. (6)
    return b


class ChunkScan(torch.autograd.Function):
    """Keeps the state before each chunk of T steps; 8 times 10,000 states fit a CPU's cache."""

    @staticmethod
    def forward(ctx, u, dt, A, B, C, h, T=8):
        y, starts = torch.empty_like(u), []
        for at in range(0, u.shape[1], T):
            k = slice(None), slice(at, at + T)
            starts.append(h)
            hs = walk(*discretise(u[k], dt[k], A, B[k]), h)  # (B, T, N, D)
            y[k] = readout(C[k], hs)
            h = hs[:, -1].clone()  # a view would keep the whole chunk alive
        ctx.save_for_backward(u, dt, A, B, C, torch.stack(starts, 1))
        ctx.T = T
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx, gy, carry):
        u, dt, A, B, C, starts = ctx.saved_tensors
        gu, gdt, gA, gB, gC = map(torch.zeros_like, (u, dt, A, B, C))
        for i in reversed(range(starts.shape[1])):
            k = slice(None), slice(i * ctx.T, (i + 1) * ctx.T)
            a, b = discretise(u[k], dt[k], A, B[k])  # (B, T, N, D)
            h = walk(a, b, starts[:, i])
            g = gy[k][..., None, :] * C[k][..., None]  # (B, T, N, D)
            g[:, -1] += carry
            for t in range(g.shape[1] - 1, 0, -1):
                g[:, t - 1].addcmul_(a[:, t], g[:, t])  # eq. (9)
            carry = a[:, 0] * g[:, 0]  # (B, N, D)
            gC[k] = (h @ gy[k][..., None])[..., 0]  # (B, T, N)
            gB[k] = (g @ (dt[k] * u[k])[..., None])[..., 0]  # (B, T, N)
            gx = readout(B[k], g)  # (B, T, D), of dt u
            p = a * g * torch.cat([starts[:, i : i + 1], h[:, :-1]], 1)  # of dt A: a times eq. (10)
            gu[k], gdt[k] = gx * dt[k], gx * u[k] + (p * A).sum(-2)
            gA += (p * dt[k][..., None, :]).sum((0, 1))
        return gu, gdt, gA, gB, gC, carry, None


@functools.cache
def kernels():
    """The fused scan, forward and backward: a program walks a few channels of one sequence chunk
    by chunk, its state (N, D) in registers, and solves a chunk (T, N, D) there by a prefix scan.
    Triton comes with torch for Linux and is imported when first needed."""
    global tl, compose  # kernels look up what they use among the names of this module
    triton, tl = map(importlib.import_module, ("triton", "triton.language"))

    @triton.jit
    def compose(a1, b1, a2, b2):
        return a1 * a2, a2 * b1 + b2  # eq. (8)

    @triton.jit
    def forward(
        u, dt, A, B, C, h0, y, starts, last, d, n,
        L: tl.constexpr, T: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at_d, at_n, t = tl.program_id(1) * D + tl.arange(0, D), tl.arange(0, N), tl.arange(0, T)
        nd, in_nd = at_n[:, None] * d + at_d, (at_n[:, None] < n) & (at_d < d)
        A_, h = tl.load(A + nd, in_nd, 0.0), tl.load(h0 + row * n * d + nd, in_nd, 0.0)
        for k in range(0, L, T):
            tl.store(starts + (row * tl.cdiv(L, T) + k // T) * n * d + nd, h, in_nd)
            at_t, in_t = (row * L + k + t)[:, None], (k + t < L)[:, None]
            td, in_td = at_t * d + at_d, in_t & (at_d < d)
            tn, in_tn = at_t * n + at_n, in_t & (at_n < n)
            dt_k = tl.load(dt + td, in_td, 0.0).to(A_.dtype)  # 0 behind the end: h stays
            x = dt_k * tl.load(u + td, in_td, 0.0)
            B_k, C_k = tl.load(B + tn, in_tn, 0.0), tl.load(C + tn, in_tn, 0.0)
            a = tl.exp(dt_k[:, None, :] * A_[None])  # (T, N, D)  eq. (4)
            b = x[:, None, :] * B_k[:, :, None].to(A_.dtype)  # (T, N, D)  eq. (5)
            through, local = tl.associative_scan((a, b), 0, compose)
            hs = through * h[None] + local
            tl.store(y + td, tl.sum(hs * C_k[:, :, None], 1), in_td)  # (T, D)  eq. (7)
            h = tl.sum(tl.where((t == T - 1)[:, None, None], hs, 0.0), 0)  # (N, D)
        tl.store(last + row * n * d + nd, h, in_nd)

    @triton.jit
    def backward(
        u, dt, A, B, C, starts, gy, gh, gu, gdt, gA, gB, gC, gh0, d, n,
        L: tl.constexpr, T: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at_d, at_n, t = tl.program_id(1) * D + tl.arange(0, D), tl.arange(0, N), tl.arange(0, T)
        nd, in_nd = at_n[:, None] * d + at_d, (at_n[:, None] < n) & (at_d < d)
        A_, carry = tl.load(A + nd, in_nd, 0.0), tl.load(gh + row * n * d + nd, in_nd, 0.0)
        gA_ = tl.zeros_like(A_)
        for back in range(0, L, T):
            k = (L - 1) // T * T - back
            h = tl.load(starts + (row * tl.cdiv(L, T) + k // T) * n * d + nd, in_nd, 0.0)
            at_t, in_t = (row * L + k + t)[:, None], (k + t < L)[:, None]
            td, in_td = at_t * d + at_d, in_t & (at_d < d)
            tn, in_tn = at_t * n + at_n, in_t & (at_n < n)
            dt_k = tl.load(dt + td, in_td, 0.0).to(A_.dtype)
            u_k, gy_k = tl.load(u + td, in_td, 0.0).to(A_.dtype), tl.load(gy + td, in_td, 0.0)
            B_k = tl.load(B + tn, in_tn, 0.0)[:, :, None].to(A_.dtype)  # (T, N, 1)
            C_k, x = tl.load(C + tn, in_tn, 0.0)[:, :, None], (dt_k * u_k)[:, None, :]
            a, b = tl.exp(dt_k[:, None, :] * A_[None]), x * B_k
            through, local = tl.associative_scan((a, b), 0, compose)
            hs = through * h[None] + local  # (T, N, D), once more
            next_dt = tl.load(dt + td + d, in_td & (k + t + 1 < L)[:, None], 0.0).to(A_.dtype)
            next_a, gy_k = tl.exp(next_dt[:, None, :] * A_[None]), gy_k[:, None, :].to(A_.dtype)
            g = gy_k * C_k + tl.where((t == T - 1)[:, None, None], carry[None], 0.0)
            _, g = tl.associative_scan((next_a, g), 0, compose, reverse=True)  # eq. (9)
            carry = tl.sum(tl.where((t == 0)[:, None, None], a * g, 0.0), 0)  # (N, D)
            tl.atomic_add(gC + tn, tl.sum(hs * gy_k, 2), in_tn)  # other channels add theirs
            tl.atomic_add(gB + tn, tl.sum(g * x, 2), in_tn)
            gx, p = tl.sum(g * B_k, 1), g * (hs - b)  # (T, D); p: a times eq. (10)
            tl.store(gu + td, gx * dt_k, in_td)
            tl.store(gdt + td, gx * u_k + tl.sum(p * A_[None], 1), in_td)
            gA_ += tl.sum(p * dt_k[:, None, :], 0)
        tl.store(gA + row * n * d + nd, gA_, in_nd)
        tl.store(gh0 + row * n * d + nd, carry, in_nd)

    return {"forward": forward, "backward": backward}


class TritonScan(torch.autograd.Function):
    """ChunkScan by kernels(): reads u, dt, B and C in the type they have, computes in that of A."""

    T = 16  # steps of a chunk, of which 4096 states are in registers

    @staticmethod
    def launch(name, u, A, *tensors):
        """Run a kernel for all sequences and blocks of channels."""
        (n, d), (wide, most) = A.shape, (1 << (x - 1).bit_length() for x in A.shape)
        block = min(most, max(4, 256 // wide))
        with torch.cuda.device_of(u):
            run = kernels()[name][len(u), -(-d // block)]
            run(*tensors, d, n, u.shape[1], TritonScan.T, wide, block)

    @staticmethod
    def forward(ctx, u, dt, A, B, C, h):
        y, last = torch.empty_like(u, dtype=A.dtype), torch.empty_like(h)
        starts = h.new_empty(len(u), -(-u.shape[1] // TritonScan.T), *A.shape)
        TritonScan.launch("forward", u, A, u, dt, A, B, C, h, y, starts, last)
        ctx.save_for_backward(u, dt, A, B, C, starts)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy, gh):
        u, dt, A, B, C, starts = ctx.saved_tensors
        grads = [torch.empty_like(u), torch.empty_like(dt), torch.empty_like(starts[:, 0])]
        grads += [torch.zeros_like(x, dtype=A.dtype) for x in (B, C)]
        grads += [torch.empty_like(starts[:, 0])]
        TritonScan.launch(
            "backward", u, A, *ctx.saved_tensors, gy.contiguous(), gh.contiguous(), *grads
        )
        gu, gdt, gA, gB, gC, gh0 = grads
        return gu, gdt, gA.sum(0), gB.to(B.dtype), gC.to(C.dtype), gh0


def lacks_triton(device):
    """Why the kernels cannot run on a device, or None. Triton's interpreter runs them anywhere."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton, which comes with torch for Linux, is not installed"
    if not str(device).startswith("cuda") and os.environ.get("TRITON_INTERPRET") != "1":
        return f"needs a CUDA device, not {device}"
    return None


# A scan takes contiguous u, dt (B, L, D), A (N, D), B, C (B, L, N), h (B, N, D), all float32 or all
# float64; it returns y without D u, and the last h. N stands before D as long rows are fast.
SCANS = {"chunk": ChunkScan.apply, "blelloch": blelloch, "sequential": sequential}
SCANS |= {"triton": TritonScan.apply}  # where B, C, dt and u may be of another type


def selective_scan(u, dt, A, B, C, D=None, h0=None, scan="chunk"):
    """Scan L steps: y (B, L, D) in the type of u, and the last state h (B, D, N).

    u, dt (B, L, D), dt > 0 (softplus and bias are up to the caller); A (D, N), real and negative;
    B, C (B, L, N); D (D,), h0 (B, D, N): 0 if None. Computes in the type of A, but at least
    float32, under autocast as well. Raises ValueError for a wrong shape, and where scan "triton"
    cannot run. Paper: algorithm 2; official code: state-spaces/mamba
    mamba_ssm/ops/selective_scan_interface.py."""
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (B, L, D) with L > 0")
    (b, length, d), n, dtype = u.shape, A.shape[-1], u.dtype
    D = A.new_zeros(d) if D is None else D
    h0 = A.new_zeros(b, d, n) if h0 is None else h0
    wanted = [("dt", dt, u.shape), ("A", A, (d, n)), ("B", B, (b, length, n))]
    wanted += [("C", C, (b, length, n)), ("D", D, (d,)), ("h0", h0, (b, d, n))]
    for name, x, shape in wanted:
        if x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {tuple(shape)}")
    if scan == "triton" and (reason := lacks_triton(u.device)):
        raise ValueError(f"scan triton {reason}")
    exact = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        A, h0 = A.mT.to(exact).contiguous(), h0.mT.to(exact).contiguous()
        kinds = [x.dtype if scan == "triton" else exact for x in (u, dt, B, C)]
        u, dt, B, C = (x.to(k).contiguous() for x, k in zip((u, dt, B, C), kinds, strict=True))
        y, h = SCANS[scan](u, dt, A, B, C, h0)
        return (y + D * u).to(dtype), h.mT  # eq. (7)


# --- model ---------------------------------------------------------------------------------------
class MambaBlock(nn.Module):
    """Mixes a sequence (B, L, E) causally. Paper: section 3.4, figure 3; names and initial values
    of the official code, state-spaces/mamba mamba_ssm/modules/mamba_simple.py."""

    def __init__(self, dim, d_state=16, d_conv=4, expand=2, scan="chunk"):
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.scan, self.sizes = scan, (rank, d_state, d_state)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))  # (D, N)
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        dt = torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_proj.bias = nn.Parameter(dt + (-(-dt).expm1()).log())  # softplus of it is dt

    def inputs(self, x):
        """What the scan and the gate see of x: u, z, dt (B, L, D) and B, C (B, L, N)."""
        u, z = self.in_proj(x).chunk(2, -1)  # (B, L, D)
        u = F.silu(self.conv1d(u.mT)[..., : x.shape[1]].mT)  # cut: the rest sees the future
        dt, B, C = self.x_proj(u).split(self.sizes, -1)  # eq. (2)
        dt = F.linear(dt, self.dt_proj.weight) + self.dt_proj.bias  # float32 under autocast, too
        return u, z, F.softplus(dt), B, C  # eq. (3)

    def forward(self, x):
        u, z, dt, B, C = self.inputs(x)
        y, _ = selective_scan(u, dt, -self.A_log.exp(), B, C, self.D, scan=self.scan)
        return self.out_proj(y * F.silu(z))  # (B, L, E)  eq. (11)


class ResidualBlock(nn.Module):
    def __init__(self, dim, d_state, scan):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = MambaBlock(dim, d_state, scan=scan)

    def forward(self, x):
        return x + self.mixer(self.norm(x))


class Mamba(nn.Module):
    """Symbols (B, L) to scores of the answers (B, L, V)."""

    def __init__(self, vocab_size, dim, depth, d_state=16, scan="chunk"):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.layers = nn.Sequential(*(ResidualBlock(dim, d_state, scan) for _ in range(depth)))
        self.norm_f = nn.RMSNorm(dim, eps=1e-5)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, x):
        return self.lm_head(self.norm_f(self.layers(self.embedding(x))))  # (B, L, V)


# --- data ----------------------------------------------------------------------------------------
# Symbols x: 0 noise, 1 cue, from 2 on tokens. Answers y: -100 where nothing is asked for.
def places(n, length, count):
    """count different places below length in rising order, for each of n sequences."""
    return torch.rand(n, length).topk(count).indices.sort().values  # (n, count)


def selective_copying(n, length, count, vocab_size):
    """Tokens strewn among noise, then as many cues: each asks for the next token."""
    tokens = torch.randint(2, vocab_size, (n, count))
    x = torch.zeros(n, length, dtype=torch.long).scatter_(1, places(n, length, count), tokens)
    return F.pad(x, (0, count), value=1), F.pad(tokens, (length, 0), value=-100)


def induction_heads(n, length, count, vocab_size):
    """Random tokens, and cues that one token always follows: all cues but the first ask for it."""
    x = torch.randint(2, vocab_size, (n, length))
    answer = torch.randint(2, vocab_size, (n, 1))
    cues = places(n, length - count, count) + torch.arange(count)  # never side by side
    x.scatter_(1, cues, 1).scatter_(1, cues + 1, answer.expand(n, count))
    x = F.pad(x, (0, 1), value=1)  # (n, length + 1)
    return x, torch.where(x == 1, answer, -100).scatter_(1, cues[:, :1], -100)


TASKS = {"selective_copying": selective_copying, "induction_heads": induction_heads}


def load_data(args):
    """A fresh batch of the seed in force, on the device: symbols x and answers y (B, L)."""
    with torch.device(args.device):
        return TASKS[args.dataset](args.batch_size, args.seq_len, args.n_tokens, args.vocab_size)


# --- train, evaluate, smoke ----------------------------------------------------------------------
def train(args):
    """Train from scratch, or on from OUT/last.pt; return the accuracy on sequences never seen."""
    if args.scan == "triton" and (reason := lacks_triton(args.device)):
        fail(f"--scan triton: {reason}; take --scan chunk")
    torch.manual_seed(args.seed)
    model = Mamba(args.vocab_size, args.dim, args.depth, args.d_state, args.scan).to(args.device)
    if args.weights and not args.resume:
        load_weights(args.weights, model)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, (args.b1, args.b2), fused=True)
    state = {"model": model, "optimizer": optimizer}
    step = begin(args, state)
    try:
        while step < args.n_steps:
            total = torch.zeros((), device=args.device)
            n = min(args.sample_interval - step % args.sample_interval, args.n_steps - step)
            for _ in tqdm(range(n), f"step {step + n}", leave=False, disable=None):
                torch.manual_seed(args.seed * 1_000_000 + step)  # so that a resumed run is exact
                x, y = load_data(args)
                with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
                    scores = model(x)  # (B, L, V)
                loss = F.cross_entropy(scores.flatten(0, 1).float(), y.flatten())  # eq. (12)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
                optimizer.step()
                total += loss.detach()
                step += 1
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite at step {step}; try a lower --lr")
            save(args, state, step)
            log(args, step=step, loss=total.item() / n, **evaluate(model, args))
    except KeyboardInterrupt:
        save(args, state, step)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    plot_selection(model, args)
    return evaluate(model, args)


@torch.inference_mode()
def evaluate(model, args):
    """Share of right answers in eight batches that no step of training draws."""
    torch.manual_seed(-1)
    batches = (load_data(args) for _ in range(8))
    right = [(model(x).argmax(-1) == y)[y >= 0] for x, y in batches]
    return {"accuracy": torch.cat(right).float().mean().item()}


@torch.inference_mode()
def plot_selection(model, args):
    """OUT/selection.png: a sequence; dt of the first layer, bright where a channel takes it in."""
    from matplotlib.figure import Figure

    torch.manual_seed(-1)
    x, first = load_data(args)[0][:1], model.layers[0]  # (1, L)
    dt = first.mixer.inputs(first.norm(model.embedding(x)))[2][0]  # (L, D)
    figure = Figure(figsize=(10, 4), layout="constrained")
    top, below = figure.subplots(2, height_ratios=[1, 9])
    top.matshow(x.cpu(), aspect="auto", cmap="tab20").axes.set(title="symbols", yticks=[])
    below.matshow((dt / dt.amax(0)).T[dt.mean(0).argsort()].cpu(), aspect="auto")
    below.set(title="dt / largest dt of the channel", ylabel="channel")
    figure.savefig(Path(args.out, "selection.png"))


def smoke(args):
    """A short run in a temporary folder, then gradients of y and h by all scans, in float64."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    device, grads = args.device if args.device.startswith("cuda") else "cpu", []
    x = torch.rand(4, 2, 37, 6, dtype=torch.float64, device=device, requires_grad=True)
    for scan in [scan for scan in SCANS if scan != "triton" or not lacks_triton(device)]:
        y, h = selective_scan(x[0], x[1], -x[2, 0, :6], x[2], x[3], h0=x[3, :, :6], scan=scan)
        grads += torch.autograd.grad(y.square().sum() + h.square().sum(), x)
    return report(args, **metrics, scan_gap=max((g - grads[0]).abs().max() for g in grads))


# --- plumbing, word for word the same in every script --------------------------------------------
def fail(message):
    """A mistake the user can mend: one line on stderr, exit code 2."""
    print(f"{Path(__file__).name}: error: {' '.join(message.split())[:300]}", file=sys.stderr)
    sys.exit(2)


def pick_device(name):
    try:
        auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        probe = torch.ones(1, device=auto if name == "auto" else name)
        return str(probe.device) if probe.item() else name  # item() fails where nothing can run
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name}: cannot be used, try --device cpu: {error}")


def begin(args, state=None):
    """Open OUT before the work starts. With --resume restore every part of state and return how
    many epochs (or steps) are done; else put an earlier run aside and return 0. Without state
    (nothing is trained, as in --sample) leave what is there."""
    out, resume = Path(args.out), state is not None and getattr(args, "resume", False)
    free = {"n_epochs", "n_steps", "sample_interval", "n_samples", "data_root", "weights"}
    free |= {"compile", "device", "out", "resume"}
    try:
        if resume:
            saved = dict(torch.load(out / "last.pt", map_location="cpu", weights_only=True))
            made = {key: value for key, value in saved["args"].items() if key not in free}
            if odd := [f"--{k} {v}" for k, v in made.items() if v != vars(args).get(k)]:
                fail(f"--resume: {out}/last.pt was made with {' '.join(odd)}; type that")
            for name, part in state.items():
                part.load_state_dict(saved[name])
            return saved["done"]
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # fails now where nothing can be written
        for name in ("last.pt", "log.jsonl") if state is not None else ():
            if (out / name).exists():
                os.replace(out / name, out / f"previous_{name}")
        return 0
    except OSError as error:
        fail(f"--out {out}: {'no last.pt to resume from' if resume else 'cannot write'}: {error}")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--resume: {out}/last.pt is damaged or no checkpoint of this script")


def save(args, state, done):
    """Write every part of state next to last.pt, then rename: a crash never leaves half a file."""
    path = Path(args.out, "last.pt")
    parts = {name: part.state_dict() for name, part in state.items()}
    torch.save(parts | {"done": done, "args": vars(args)}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_weights(path, model, parts=("ema", "model", "generator")):
    """Load, strictly, the first of parts that a checkpoint of ours has, or a bare state dict."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = next((saved[part] for part in parts if part in saved), saved)
        theirs = {key: tuple(value.shape) for key, value in saved.items()}
    except OSError as error:
        fail(f"--weights {path}: cannot be read ({error.strerror}); name an existing file")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--weights {path}: holds no state dict; name a file made by torch.save of one")
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        key = next((k for k in ours | theirs if ours.get(k) != theirs.get(k)), error)
        there, here = theirs.get(key, "absent"), ours.get(key, "absent")
        fail(f"--weights {path}: {key} is {there} there but {here} here; set the flags to match")


def line(row):
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def log(args, **row):
    """Append a JSON line to OUT/log.jsonl and show it; --smoke keeps stdout to one line."""
    with open(Path(args.out, "log.jsonl"), "a", encoding="utf-8") as file:
        print(json.dumps(row), file=file)
    print(line(row), file=sys.stderr if args.smoke else sys.stdout, flush=True)


def plot(args):
    """Draw every column of OUT/log.jsonl against its first one into OUT/curves.png."""
    from matplotlib.figure import Figure

    path = Path(args.out, "log.jsonl")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if rows := [json.loads(row) for row in text.splitlines()]:
        first, *others = rows[-1]
        wide, high = min(len(others), 4), math.ceil(len(others) / 4)
        figure = Figure(figsize=(4 * wide, 3 * high), layout="constrained")
        for at, key in enumerate(others, 1):
            axes = figure.add_subplot(high, wide, at, xlabel=first, title=key)
            axes.plot([row[first] for row in rows], [row.get(key) for row in rows], marker=".")
        figure.savefig(Path(args.out, "curves.png"))


def report(args, **values):
    """Print the JSON line of --smoke; return 0 if every bar is met, else 1."""
    values = {key: float(value) for key, value in values.items()}
    ok = all(low <= values[key] <= high for key, (low, high) in BARS.items())
    values = {key: value if math.isfinite(value) else None for key, value in values.items()}
    head = {"script": Path(__file__).name, "ok": ok, "device": getattr(args, "device", "cpu")}
    tail = {"bars": BARS, "cpu_seconds": round(time.process_time(), 1)}
    print(json.dumps(head | values | tail))
    return 0 if ok else 1


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the docstring as written, and every default that tells something."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def at_least(low, below=2**31):
    """Type of a flag: a number of low's kind (int or float), low <= number < below."""

    def number(text):
        with contextlib.suppress(ValueError):
            if low <= (value := type(low)(text)) < below:
                return value
        raise argparse.ArgumentTypeError(f"{text} is no {type(low).__name__} in [{low}, {below})")

    return number


# --- command line --------------------------------------------------------------------------------
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = fail
    add = parser.add_argument
    add("--config", choices=CONFIGS, default="laptop", help="named set of defaults")
    add("--dataset", choices=TASKS, default="selective_copying", help="task, made up as it is read")
    add("--seq_len", type=at_least(2), default=64, help="symbols before the final cues")
    add("--n_tokens", type=at_least(1), default=4, help="tokens to copy; cues before the final one")
    add("--vocab_size", type=at_least(4), default=16, help="symbols V, noise and cue among them")
    add("--scan", choices=SCANS, default="chunk", help="how the recurrence is computed")
    add("--dim", type=at_least(1), default=64, help="width E of the model")
    add("--depth", type=at_least(1), default=2, help="Mamba blocks")
    add("--d_state", type=at_least(1), default=16, help="states N of a channel")
    add("--n_steps", type=at_least(0), default=1000, help="optimiser steps in total")
    add("--batch_size", type=at_least(1), default=64, help="examples per step")
    add("--lr", type=at_least(0.0), default=1e-2, help="adam: learning rate")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--grad_clip", type=at_least(0.0), default=1.0, help="largest norm of the gradient")
    add("--sample_interval", type=at_least(1), default=200, help="steps between evaluations")
    add("--weights", help="state dict or checkpoint to load")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    typed = parser.parse_args(argv)
    parser.set_defaults(**CONFIGS[typed.config])
    if typed.smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    if 2 * args.n_tokens > args.seq_len:
        fail(f"--n_tokens {args.n_tokens}: no room for so many; make --seq_len twice as large")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
