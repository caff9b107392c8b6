"""The selective scan in Triton: y, the final states, and every CHUNK steps the states for the gradient.

    h_t = exp(Δ_t A) h_{t-1} + B̄_t x_t,    y_t = (C_t h_t + D x_t) silu(z_t)      (Gu & Dao 2023, Eq. 2, Alg. 2)

A program takes one row and BLOCK_D channels from the first step to the last. Its states (N, BLOCK_D) stay in
registers: gates and inputs of the states, which would be n times as large as x, are never in memory.

Why a loop over the steps and no `tl.associative_scan` as in linear_scan: b d n recurrences are enough to fill a
GPU, so nothing has to be parallel in time as well. The loop takes one exponential and four other operations for a
state and step; the scan takes a logarithm of steps more, and it multiplies gates with each other, which turns
0 · ∞ into NaN where a state of 0 grows. What a loop must do is to hide how long memory takes: STEPS steps are
loaded together, before the first of them is computed.

Bytes: x, dt, z and y once; B and C once for each block of channels, so 2n/BLOCK_D of x (from the L2 cache); the
kept states n/CHUNK float32 numbers for each of x. FLOPs: 7n + 40 for each of x (an exponential counted as 2).
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels import runtime
from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.selective_scan.triton_arguments import CHUNK, empty, on_device_of, read, refuse
from ssmcourse.kernels.selective_scan.triton_steps import (
    advance,
    place,
    read_block,
    read_start,
    read_states,
    of_channels,
    sigmoid,
    step_of,
    step_size,
    with_step,
    write_block,
)

STEPS = 4  # divides CHUNK
WARPS = 2


@triton.jit
def scan_kernel(
    x_ptr,  # (b, l, d), its steps stride_x apart; so are dt and z
    dt_ptr,
    A_ptr,  # (d, n)
    B_ptr,  # (b, l, groups_B, n), or (d, n) if not B_MOVES; so is C
    C_ptr,
    D_ptr,  # (d,) or None, as bias
    z_ptr,  # or None
    bias_ptr,
    first_ptr,  # (b, d, n) or None
    sequence_ptr,  # (b, l) int64 or None
    y_ptr,  # (b, l, d)
    final_ptr,  # (sequences, d, n) or None
    kept_ptr,  # (b, chunks, n, d) or None
    l, d, n, groups, groups_B, groups_C, stride_x, stride_dt, stride_z,
    B_MOVES: tl.constexpr, C_MOVES: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr,
    CHUNK: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid: (b · groups · blocks of channels in a group,)."""
    dtype: tl.constexpr = A_ptr.dtype.element_ty  # computed in: float32 or float64
    row, group, offs_d, mask_d = place(tl.program_id(0), d, groups, BLOCK_D)
    offs_n = tl.arange(0, N)
    offs = offs_d[None, :] * n + offs_n[:, None]  # in (d, n)
    mask = mask_d[None, :] & (offs_n < n)[:, None]
    A = tl.load(A_ptr + offs, mask=mask, other=0.0)  # (N, BLOCK_D)
    if not B_MOVES:
        B = tl.load(B_ptr + offs, mask=mask, other=0.0).to(dtype)  # (N, BLOCK_D)
    if not C_MOVES:
        C = tl.load(C_ptr + offs, mask=mask, other=0.0).to(dtype)  # (N, BLOCK_D)
    bias = 0.0 if bias_ptr is None else tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0)  # (BLOCK_D,)
    D = 0.0 if D_ptr is None else tl.load(D_ptr + offs_d, mask=mask_d, other=0.0)  # (BLOCK_D,)
    if first_ptr is None:
        h = tl.zeros((N, BLOCK_D), dtype)
    else:
        h = tl.load(first_ptr + row * d * n + offs, mask=mask, other=0.0)  # (N, BLOCK_D)

    t = tl.arange(0, STEPS)
    group_B = group * groups_B // groups
    group_C = group * groups_C // groups
    x_next = read_block(x_ptr, row, t, l, stride_x, offs_d, mask_d)  # (STEPS, BLOCK_D)
    dt_next = read_block(dt_ptr, row, t, l, stride_dt, offs_d, mask_d)  # (STEPS, BLOCK_D)
    z_next = x_next if z_ptr is None else read_block(z_ptr, row, t, l, stride_z, offs_d, mask_d)
    B_next = B if not B_MOVES else read_states(B_ptr, row, t, l, group_B, groups_B, n, N)
    C_next = C if not C_MOVES else read_states(C_ptr, row, t, l, group_C, groups_C, n, N)
    for begin in range(0, l, STEPS):
        if kept_ptr is not None:
            if begin % CHUNK == 0:
                chunk = row * tl.cdiv(l, CHUNK) + begin // CHUNK
                tl.store(kept_ptr + (chunk * n + offs_n[:, None]) * d + offs_d[None, :], h, mask=mask)
        t = begin + tl.arange(0, STEPS)
        x, z, B_here, C_here = x_next.to(dtype), z_next.to(dtype), B_next, C_next
        delta, _ = step_size(dt_next.to(dtype), bias, SOFTPLUS)
        x_next = read_block(x_ptr, row, t + STEPS, l, stride_x, offs_d, mask_d)  # (STEPS, BLOCK_D)
        dt_next = read_block(dt_ptr, row, t + STEPS, l, stride_dt, offs_d, mask_d)  # (STEPS, BLOCK_D)
        if z_ptr is not None:
            z_next = read_block(z_ptr, row, t + STEPS, l, stride_z, offs_d, mask_d)
        if B_MOVES:
            B_next = read_states(B_ptr, row, t + STEPS, l, group_B, groups_B, n, N)
            B_all = of_channels(B_here, BLOCK_D, dtype)
        if C_MOVES:
            C_next = read_states(C_ptr, row, t + STEPS, l, group_C, groups_C, n, N)
            C_all = of_channels(C_here, BLOCK_D, dtype)
        y = D * x
        for s in tl.static_range(STEPS):
            if sequence_ptr is not None:
                anew, before = read_start(sequence_ptr, row, begin + s, l)
                if final_ptr is not None:
                    tl.store(final_ptr + before * d * n + offs, h, mask=mask & anew)
                h = tl.where(anew, 0.0, h)
            B_s = step_of(B_all, s) if B_MOVES else B
            C_s = step_of(C_all, s) if C_MOVES else C
            after = advance(h, step_of(x, s), step_of(delta, s), A, B_s, ZOH)
            h = tl.where(begin + s < l, after, h)  # past the end it stays what it is
            y = with_step(y, s, step_of(y, s) + tl.sum(C_s * h, 0))
        if z_ptr is not None:
            y *= z * sigmoid(z)
        write_block(y_ptr, y, row, t, l, d, offs_d, mask_d)

    if final_ptr is not None:
        last = row if sequence_ptr is None else tl.load(sequence_ptr + row * l + l - 1)
        tl.store(final_ptr + last * d * n + offs, h, mask=mask)


def scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None, sequence: Tensor | None,
    sequences: int, dt_softplus: bool, zoh: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the final states, and the states kept for the gradient, (b, chunks, n, d)."""
    refuse(A)
    y, final, kept = empty(x, dt, A, B, C, D, z, dt_bias, initial_state, sequence, sequences, dt_softplus, zoh, keep)
    if x.numel() == 0:
        return y, final.zero_() if initial_state is None else final.copy_(initial_state[:sequences]), kept
    given = read(x, dt, A, B, C, D, z, dt_bias, sequence, dt_softplus, zoh, states=1024)
    with on_device_of(x):
        scan_kernel[(len(x) * given.programs,)](
            **given.tensors,
            first_ptr=None if initial_state is None else initial_state.contiguous(),
            y_ptr=y,
            final_ptr=final if sequences else None,
            kept_ptr=kept if keep else None,
            **given.sizes,
            **given.options,
            STEPS=STEPS,
            num_warps=WARPS,
        )
    return y, final, kept
