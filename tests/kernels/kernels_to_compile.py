"""Triton kernels that compile, and would disappoint on a GPU: what test_compiling.py expects to be noticed."""

from __future__ import annotations

import triton
import triton.language as tl

from ssmcourse.kernels.compiling import Compilation


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, l, UPCAST: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """c (M, M) = sum over tiles of a (M, l) times b (l, M)."""
    offs_m, offs_k = tl.arange(0, M), tl.arange(0, K)
    c = tl.zeros((M, M), tl.float32)
    for start in range(0, l, K):
        a = tl.load(a_ptr + offs_m[:, None] * l + start + offs_k[None, :])
        b = tl.load(b_ptr + (start + offs_k)[:, None] * M + offs_m[None, :])
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        c += tl.dot(a, b)
    tl.store(c_ptr + offs_m[:, None] * M + offs_m[None, :], c)


@triton.jit
def forgotten_kernel(x_ptr):
    tl.store(x_ptr, 0.0)


HALF = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "l": "i32"}
SIZES = {"UPCAST": False, "M": 64, "K": 32}


def compilations() -> list[Compilation]:
    return [
        Compilation("right", product_kernel, HALF, SIZES, half_dot=True),
        Compilation("upcast", product_kernel, HALF, SIZES | {"UPCAST": True}, half_dot=True),
        Compilation("spills", product_kernel, HALF, SIZES | {"M": 128, "K": 16}, num_warps=1, half_dot=True),
        Compilation(
            "may spill", product_kernel, HALF, SIZES | {"M": 128, "K": 16}, 1, half_dot=True, may_spill=True
        ),
        Compilation("too large", product_kernel, HALF, SIZES | {"M": 256, "K": 256}, 8, half_dot=True),
    ]
