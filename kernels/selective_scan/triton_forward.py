"""The selective scan in Triton: y, the final states, and every CHUNK steps the states for the gradient.

    h_t = exp(Δ_t A) h_{t-1} + B̄_t x_t,    y_t = (C_t h_t + D x_t) silu(z_t)      (Gu & Dao 2023, Eq. 2, Alg. 2)

A program takes one row and BLOCK_D channels from the first step to the last. Its states (N, BLOCK_D) stay in
registers: gates and inputs of the states, which would be n times as large as x, are never in memory.

Why a loop over the steps and no `tl.associative_scan` as in linear_scan: a thread for each of b d channels is
enough to fill a GPU when a model trains, so nothing has to be parallel in time as well (few rows of few channels
do leave it partly idle). The loop takes one exponential and four other operations for a
state and step; the scan takes a logarithm of steps more, and it multiplies gates with each other, which turns
0 · ∞ into NaN where a state of 0 grows. What a loop must do is to hide how long memory takes: STEPS steps are
loaded together, while the STEPS before them are computed.

For each number of x, at n = 16, BLOCK_D = 64 and CHUNK = 64:
    bytes   x, dt, z and y once; B and C once for each block of channels, which are 2n/BLOCK_D = 1/2 number; of the
            kept states n/CHUNK = 1/4 float32 number. In bfloat16: 8 + 1 + 1, in float32: 16 + 2 + 1.
    FLOPs   7n for the states and 50 for softplus and gate: 160, an exponential counted as one.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.launching import on_device_of
from ssmcourse.kernels.selective_scan import triton_arguments
from ssmcourse.kernels.selective_scan.triton_arguments import Plan, empty, read, refuse, tuned
from ssmcourse.kernels.selective_scan.triton_steps import (
    advance,
    at_step,
    of_channels,
    place,
    read_parameters,
    read_start,
    read_steps,
    step_of,
    step_size,
    with_step,
    write_block,
)
from ssmcourse.kernels.triton_math import sigmoid

# STEPS divides CHUNK.
CONFIGURATIONS = [
    triton.Config({"STEPS": steps}, num_warps=warps) for steps, warps in ((4, 2), (2, 2), (4, 4))
]


def plan(zoh: bool, packed: bool, constant: bool, n: int, size: int) -> Plan:
    """16 numbers a thread, 8 where much else is in registers."""
    numbers = 512 if zoh and packed else 1024
    return Plan(numbers if size == 4 else numbers // 4, CONFIGURATIONS)


@tuned(CONFIGURATIONS, plan)
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
    A, B_same, C_same, D, bias = read_parameters(
        A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, offs_d, mask_d, n, B_MOVES, C_MOVES, N
    )
    if first_ptr is None:
        h = tl.zeros((N, BLOCK_D), dtype)
    else:
        h = tl.load(first_ptr + row * d * n + offs, mask=mask, other=0.0)  # (N, BLOCK_D)

    ahead = read_steps(
        x_ptr, dt_ptr, z_ptr, B_ptr, C_ptr, row, tl.arange(0, STEPS), l, n, group, groups, groups_B, groups_C,
        stride_x, stride_dt, stride_z, offs_d, mask_d, B_MOVES, C_MOVES, N,
    )  # fmt: skip
    for begin in range(0, l, STEPS):
        if kept_ptr is not None:  # noqa: SIM102  (the first is known to the compiler, the second is not)
            if begin % CHUNK == 0:
                chunk = row * tl.cdiv(l, CHUNK) + begin // CHUNK
                tl.store(kept_ptr + (chunk * n + offs_n[:, None]) * d + offs_d[None, :], h, mask=mask)
        x, dt, z, B, C = ahead
        t = begin + tl.arange(0, STEPS)
        ahead = read_steps(
            x_ptr, dt_ptr, z_ptr, B_ptr, C_ptr, row, t + STEPS, l, n, group, groups, groups_B, groups_C,
            stride_x, stride_dt, stride_z, offs_d, mask_d, B_MOVES, C_MOVES, N,
        )  # fmt: skip
        x = x.to(dtype)
        delta, _ = step_size(dt.to(dtype), bias, SOFTPLUS)
        B = of_channels(B, BLOCK_D, dtype) if B_MOVES else B_same  # (STEPS, N, BLOCK_D) if it moves
        C = of_channels(C, BLOCK_D, dtype) if C_MOVES else C_same
        y = D * x
        for s in tl.static_range(STEPS):
            if sequence_ptr is not None:
                anew, before = read_start(sequence_ptr, row, begin + s, l)
                if final_ptr is not None:
                    tl.store(final_ptr + before * d * n + offs, h, mask=mask & anew)
                h = tl.where(anew, 0.0, h)
            after = advance(h, step_of(x, s), step_of(delta, s), A, at_step(B, s, B_MOVES), ZOH)
            h = tl.where(begin + s < l, after, h)  # past the end it stays what it is
            y = with_step(y, s, step_of(y, s) + tl.sum(at_step(C, s, C_MOVES) * h, 0))
        if z_ptr is not None:
            z = z.to(dtype)
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
    y, final, kept = empty(
        x, dt, A, B, C, D, z, dt_bias, initial_state, sequence, sequences, dt_softplus, zoh, keep
    )
    if x.numel() == 0:
        return y, final.zero_() if initial_state is None else final.copy_(initial_state[:sequences]), kept
    given = read(x, dt, A, B, C, D, z, dt_bias, sequence, dt_softplus, zoh, plan)
    with on_device_of(x):
        scan_kernel[(len(x) * given.programs,)](
            **given.tensors,
            first_ptr=None if initial_state is None else initial_state.contiguous(),
            y_ptr=y,
            final_ptr=final if sequences else None,
            kept_ptr=kept if keep else None,
            **given.sizes,
            **given.options,
        )
    return y, final, kept


def compilations() -> Iterator[Compilation]:
    return triton_arguments.compilations("scan", scan_kernel, plan)
