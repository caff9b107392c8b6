"""The linear scan in Triton: a block of steps at once, and a carry from block to block.

Two steps in a row are one step: h -> a2 (a1 h + b1) + b2 has the gate a2 a1 and the input
a2 b1 + b2. That is associative, so `tl.associative_scan` may combine the steps of a block in any
grouping, in log2(BLOCK_L) rounds. Each program goes through all of l for one row and BLOCK_D
channels; lesson 08 fuses more into such a loop.

The gates of a block are multiplied with each other, so BLOCK_L of them must not overflow together.
Triton has no complex numbers: there the real and imaginary parts are two arrays, interleaved in memory.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels import runtime
from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.linear_scan import operator

# The interpreter runs every lane of a scan in Python: small blocks there.
BLOCK_L = 64 if runtime.triton_mode() == "compiled" else 16


@triton.jit
def _then(a1, b1, a2, b2):
    """The step (a1, b1), then the step (a2, b2), as one step."""
    return a2 * a1, a2 * b1 + b2


@triton.jit
def scan_kernel(
    a_ptr, b_ptr, state_ptr, h_ptr, l, d, REVERSE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_l = tl.arange(0, BLOCK_L)
    last = (offs_l == BLOCK_L - 1)[:, None]
    state = tl.load(state_ptr + row * d + offs_d, mask=offs_d < d, other=0.0)  # (BLOCK_D,)
    for start in range(0, l, BLOCK_L):
        step = start + offs_l
        t = l - 1 - step if REVERSE else step
        offs = (row * l + t[:, None]) * d + offs_d[None, :]
        mask = (step < l)[:, None] & (offs_d < d)[None, :]
        a = tl.load(a_ptr + offs, mask=mask, other=1.0)  # (BLOCK_L, BLOCK_D); past the end
        b = tl.load(b_ptr + offs, mask=mask, other=0.0)  # (BLOCK_L, BLOCK_D); a step that does nothing
        decay, local = tl.associative_scan((a, b), 0, _then)
        h = decay * state[None, :] + local
        tl.store(h_ptr + offs, h, mask=mask)
        state = tl.sum(tl.where(last, h, 0.0), 0)


@triton.jit
def _then_complex(a1, c1, b1, d1, a2, c2, b2, d2):
    """`_then` for gates a + ic and inputs b + id."""
    return a2 * a1 - c2 * c1, a2 * c1 + c2 * a1, a2 * b1 - c2 * d1 + b2, a2 * d1 + c2 * b1 + d2


@triton.jit
def complex_scan_kernel(
    a_ptr, b_ptr, state_ptr, h_ptr, l, d, REVERSE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_l = tl.arange(0, BLOCK_L)
    last = (offs_l == BLOCK_L - 1)[:, None]
    offs_state = 2 * (row * d + offs_d)  # of the real part; the imaginary part is next to it
    state_re = tl.load(state_ptr + offs_state, mask=offs_d < d, other=0.0)  # (BLOCK_D,)
    state_im = tl.load(state_ptr + offs_state + 1, mask=offs_d < d, other=0.0)  # (BLOCK_D,)
    for start in range(0, l, BLOCK_L):
        step = start + offs_l
        t = l - 1 - step if REVERSE else step
        offs = 2 * ((row * l + t[:, None]) * d + offs_d[None, :])
        mask = (step < l)[:, None] & (offs_d < d)[None, :]
        a_re = tl.load(a_ptr + offs, mask=mask, other=1.0)  # (BLOCK_L, BLOCK_D), as the next three
        a_im = tl.load(a_ptr + offs + 1, mask=mask, other=0.0)
        b_re = tl.load(b_ptr + offs, mask=mask, other=0.0)
        b_im = tl.load(b_ptr + offs + 1, mask=mask, other=0.0)
        a_re, a_im, b_re, b_im = tl.associative_scan((a_re, a_im, b_re, b_im), 0, _then_complex)
        h_re = a_re * state_re[None, :] - a_im * state_im[None, :] + b_re
        h_im = a_re * state_im[None, :] + a_im * state_re[None, :] + b_im
        tl.store(h_ptr + offs, h_re, mask=mask)
        tl.store(h_ptr + offs + 1, h_im, mask=mask)
        state_re = tl.sum(tl.where(last, h_re, 0.0), 0)
        state_im = tl.sum(tl.where(last, h_im, 0.0), 0)


def scan(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
    """h of `linear_scan`, for a and b (b, l, d) and the initial state (b, d), all of one dtype."""
    rows, l, d = b.shape
    kernel = complex_scan_kernel if b.is_complex() else scan_kernel
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    block_d = min(32, triton.next_power_of_2(d))
    with torch.cuda.device(b.device) if b.is_cuda else contextlib.nullcontext():
        kernel[rows, triton.cdiv(d, block_d)](
            *map(_plain, (a, b, initial_state, h)), l, d, REVERSE=reverse, BLOCK_L=BLOCK_L, BLOCK_D=block_d
        )
    return h


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous and real: a complex tensor as pairs of reals."""
    tensor = tensor.detach().contiguous()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def compilations() -> Iterator[Compilation]:
    """Forward and backward, float32 and float64, real and complex."""
    for kernel, dtype in ((scan_kernel, "fp32"), (scan_kernel, "fp64"), (complex_scan_kernel, "fp32")):
        pointers = dict.fromkeys(("a_ptr", "b_ptr", "state_ptr", "h_ptr"), f"*{dtype}")
        for reverse in (False, True):
            name = f"linear_scan.{kernel.__name__} {dtype}{' reverse' if reverse else ''}"
            constexprs = {"REVERSE": reverse, "BLOCK_L": 64, "BLOCK_D": 32}
            yield Compilation(name, kernel, pointers | {"l": "i32", "d": "i32"}, constexprs)


linear_scan = operator.register("triton", scan)
