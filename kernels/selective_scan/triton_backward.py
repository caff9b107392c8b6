"""The gradient of the selective scan in Triton: all of it in one kernel, from the last step to the first.

    g_t      = gate_{t+1} g_{t+1} + C_t dy_t          the gradient at h_t, a scan that runs the other way
    dC_t     = sum over channels of dy_t h_t,         dB_t = sum over channels of g_t share_t Δ_t x_t
    dx, dΔ, dA: see `retreat` in triton_steps.py

As in the forward kernel a program takes one row and BLOCK_D channels, and a loop does one step at a time. The
states h_t, which the gradient needs in reverse, are computed again, in two stages: from the state kept every CHUNK
steps to those before every STEPS-th, which go to a scratch of CHUNK / STEPS states for each program, written
again for every chunk, and from there to the STEPS states that registers hold. To run the recurrence itself in reverse,
h_{t-1} = (h_t - input) / gate, would lose all digits where a gate is small.

dB and dC are sums over channels, dA, dD and dbias over rows. Each program writes its own part, and the parts are
added in a fixed order: no atomic addition, and the same bits each time.

For each number of x, at n = 16, BLOCK_D = 16, CHUNK = 64 and STEPS = 2:
    bytes   x, dt, z, dy, dx, ddt and dz once, x and dt a second time from the cache, as are B and C, four times
            n/BLOCK_D = 1 number; of the kept states n/CHUNK = 1/4 float32 number; of dB and dC 2n/BLOCK_D = 2 such
            numbers, which the sum reads again. The scratch takes n/STEPS = 8 of them to the cache and back.
    FLOPs   some 30n + 100: 600, an exponential counted as one. The gates are computed three times over, rather than kept.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels import runtime
from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.launching import on_device_of
from ssmcourse.kernels.selective_scan import triton_arguments
from ssmcourse.kernels.selective_scan.triton_arguments import CHUNK, Plan, read, tuned
from ssmcourse.kernels.selective_scan.triton_forward import scan
from ssmcourse.kernels.selective_scan.triton_steps import (
    at_step,
    of_channels,
    place,
    read_block,
    read_parameters,
    read_start,
    read_steps,
    replay,
    retreat,
    step_of,
    step_size,
    with_step,
    write_block,
)
from ssmcourse.kernels.triton_math import sigmoid

FEWEST_STEPS = 4 if runtime.triton_mode() == "interpreted" else 2  # divides CHUNK
CONFIGURATIONS = [triton.Config({"STEPS": FEWEST_STEPS}, num_warps=warps) for warps in (2, 1)]


def plan(zoh: bool, packed: bool, constant: bool, n: int, size: int) -> Plan:
    """4 numbers a thread, as several such tiles are needed at once; or half, where more takes registers."""
    tight = zoh or packed or n > 32
    configurations = CONFIGURATIONS[1:] if packed and not zoh else CONFIGURATIONS
    return Plan(
        (128 if tight else 256) * 4 // size,
        configurations[:1] if tight or constant or size == 8 else configurations,
    )


@tuned(CONFIGURATIONS, plan)
@triton.jit
def gradient_kernel(
    x_ptr,  # (b, l, d), its steps stride_x apart; so are dt and z
    dt_ptr,
    A_ptr,  # (d, n)
    B_ptr,  # (b, l, groups_B, n), or (d, n) if not B_MOVES; so is C
    C_ptr,
    D_ptr,  # (d,) or None, as bias
    z_ptr,  # or None
    bias_ptr,
    sequence_ptr,  # (b, l) int64 or None
    kept_ptr,  # (b, chunks, n, d)
    dy_ptr,  # (b, l, d)
    dfinal_ptr,  # (sequences, d, n) or None
    scratch_ptr,  # (programs, CHUNK / STEPS, N, BLOCK_D)
    dx_ptr,  # (b, l, d); so are ddt and dz
    ddt_ptr,
    dz_ptr,
    dA_ptr,  # (b, d, n); so is dfirst
    dB_ptr,  # (b, l, programs of a row, n), or (b, d, n) if not B_MOVES; so is dC
    dC_ptr,
    dD_ptr,  # (b, d); so is dbias
    dbias_ptr,
    dfirst_ptr,
    l, d, n, groups, groups_B, groups_C, stride_x, stride_dt, stride_z, programs,
    B_MOVES: tl.constexpr, C_MOVES: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr,
    CHUNK: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid: (b · programs of a row,)."""
    dtype: tl.constexpr = A_ptr.dtype.element_ty  # computed in: float32 or float64
    pid = tl.program_id(0)
    row, group, offs_d, mask_d = place(pid, d, groups, BLOCK_D)
    offs_n = tl.arange(0, N)
    offs = offs_d[None, :] * n + offs_n[:, None]  # in (d, n)
    mask = mask_d[None, :] & (offs_n < n)[:, None]
    A, B_same, C_same, D, bias = read_parameters(
        A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, offs_d, mask_d, n, B_MOVES, C_MOVES, N
    )
    dh = tl.zeros((N, BLOCK_D), dtype)
    dA, dB_sum, dC_sum = dh, dh, dh
    dD = tl.zeros((BLOCK_D,), dtype)
    dbias = dD
    if dfinal_ptr is not None:
        last = row if sequence_ptr is None else tl.load(sequence_ptr + row * l + l - 1)
        dh = tl.load(dfinal_ptr + last * d * n + offs, mask=mask, other=0.0)  # (N, BLOCK_D)
    offs_scratch = offs_n[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    scratch_ptr += pid.to(tl.int64) * (CHUNK // STEPS * N * BLOCK_D) + offs_scratch

    chunks = tl.cdiv(l, CHUNK)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        blocks = tl.cdiv(tl.minimum(l - chunk * CHUNK, CHUNK), STEPS)
        offs_kept = ((row * chunks + chunk) * n + offs_n[:, None]) * d + offs_d[None, :]
        h = tl.load(kept_ptr + offs_kept, mask=mask, other=0.0)  # (N, BLOCK_D)
        for block in range(0, blocks):
            tl.store(scratch_ptr + block * N * BLOCK_D, h)
            begin = chunk * CHUNK + block * STEPS
            t = begin + tl.arange(0, STEPS)
            x, dt, _, B, _ = read_steps(
                x_ptr, dt_ptr, z_ptr, B_ptr, C_ptr, row, t, l, n, group, groups, groups_B, groups_C,
                stride_x, stride_dt, stride_z, offs_d, mask_d, B_MOVES, C_MOVES, N,
            )  # fmt: skip
            x = x.to(dtype)
            delta, _ = step_size(dt.to(dtype), bias, SOFTPLUS)
            B = of_channels(B, BLOCK_D, dtype) if B_MOVES else B_same
            h = replay(h, x, delta, A, B, sequence_ptr, row, begin, l, B_MOVES, ZOH)[STEPS]
        tl.debug_barrier()  # what a thread stored, another may load

        for block_back in range(0, blocks):
            block = blocks - 1 - block_back
            begin = chunk * CHUNK + block * STEPS
            t = begin + tl.arange(0, STEPS)
            x, dt, z, B, C = read_steps(
                x_ptr, dt_ptr, z_ptr, B_ptr, C_ptr, row, t, l, n, group, groups, groups_B, groups_C,
                stride_x, stride_dt, stride_z, offs_d, mask_d, B_MOVES, C_MOVES, N,
            )  # fmt: skip
            x = x.to(dtype)
            dy = read_block(dy_ptr, row, t, l, d, offs_d, mask_d).to(dtype)  # (STEPS, BLOCK_D)
            inside = (t < l)[:, None]
            delta, raw = step_size(dt.to(dtype), bias, SOFTPLUS)
            delta = tl.where(inside, delta, 0.0)
            B = of_channels(B, BLOCK_D, dtype) if B_MOVES else B_same
            C = of_channels(C, BLOCK_D, dtype) if C_MOVES else C_same
            dB, dC = tl.zeros((STEPS, N), dtype), tl.zeros((STEPS, N), dtype)
            h = tl.load(scratch_ptr + block * N * BLOCK_D)  # (N, BLOCK_D)
            states = replay(h, x, delta, A, B, sequence_ptr, row, begin, l, B_MOVES, ZOH)
            if z_ptr is not None:
                y = D * x
                for s in tl.static_range(STEPS):
                    y = with_step(y, s, step_of(y, s) + tl.sum(at_step(C, s, C_MOVES) * states[s + 1], 0))
                z = z.to(dtype)
                opened = sigmoid(z)
                dz = dy * y * opened * (1.0 + z * (1.0 - opened))
                write_block(dz_ptr, dz, row, t, l, d, offs_d, mask_d)
                dy *= z * opened
            dD += tl.sum(dy * x, 0)
            dx = D * dy
            ddelta = 0.0 * x
            for s in tl.static_range(STEPS - 1, -1, -1):
                before = states[s]
                if sequence_ptr is not None:
                    anew, sequence = read_start(sequence_ptr, row, begin + s, l)
                    before = tl.where(anew, 0.0, before)
                x_s, delta_s, dy_s = step_of(x, s), step_of(delta, s), step_of(dy, s)[None, :]
                g = dh + at_step(C, s, C_MOVES) * dy_s
                dh, dx_s, ddelta_s, dA_s, dB_s = retreat(
                    g, before, x_s, delta_s, A, at_step(B, s, B_MOVES), begin + s < l, ZOH
                )
                dA += dA_s
                dx = with_step(dx, s, step_of(dx, s) + dx_s)
                ddelta = with_step(ddelta, s, ddelta_s)
                dC_s = dy_s * states[s + 1]
                if B_MOVES:
                    dB = with_step(dB, s, tl.sum(dB_s, 1))
                else:
                    dB_sum += dB_s
                if C_MOVES:
                    dC = with_step(dC, s, tl.sum(dC_s, 1))
                else:
                    dC_sum += dC_s
                if sequence_ptr is not None:
                    arriving = tl.zeros((N, BLOCK_D), dtype)
                    if dfinal_ptr is not None:
                        arriving = tl.load(dfinal_ptr + sequence * d * n + offs, mask=mask & anew, other=0.0)
                    dh = tl.where(anew, arriving, dh)
            if SOFTPLUS:
                ddelta *= sigmoid(raw)
            dbias += tl.sum(tl.where(inside, ddelta, 0.0), 0)
            write_block(dx_ptr, dx, row, t, l, d, offs_d, mask_d)
            write_block(ddt_ptr, ddelta, row, t, l, d, offs_d, mask_d)
            part = (row * l + t)[:, None] * programs + pid % programs
            if B_MOVES:
                tl.store(dB_ptr + part * n + offs_n[None, :], dB, mask=inside & (offs_n < n)[None, :])
            if C_MOVES:
                tl.store(dC_ptr + part * n + offs_n[None, :], dC, mask=inside & (offs_n < n)[None, :])
        tl.debug_barrier()  # before the next chunk's states take the place of these

    tl.store(dA_ptr + row * d * n + offs, dA, mask=mask)
    if not B_MOVES:
        tl.store(dB_ptr + row * d * n + offs, dB_sum, mask=mask)
    if not C_MOVES:
        tl.store(dC_ptr + row * d * n + offs, dC_sum, mask=mask)
    if dD_ptr is not None:
        tl.store(dD_ptr + row * d + offs_d, dD, mask=mask_d)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + row * d + offs_d, dbias, mask=mask_d)
    if dfirst_ptr is not None:
        tl.store(dfirst_ptr + row * d * n + offs, dh, mask=mask)


def gradient(
    upstream: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...],
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None, sequence: Tensor | None,
    sequences: int, dt_softplus: bool, zoh: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of x, dt, A, B, C and of those of D, z, dt_bias and initial_state that are there."""
    arguments = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    dy, dfinal = upstream
    if x.numel() == 0:
        return _of_no_steps(arguments, dfinal)
    kept = outputs[2] if keep else scan(*arguments, sequence, sequences, dt_softplus, zoh, True)[2]
    given = read(x, dt, A, B, C, D, z, dt_bias, sequence, dt_softplus, zoh, plan)
    places = _places(given.programs, *arguments)
    dy = torch.zeros_like(x) if dy is None else dy
    grid = (len(x) * given.programs,)
    N, block_d = given.options["N"], given.options["BLOCK_D"]
    with on_device_of(x):
        gradient_kernel[grid](
            **given.tensors,
            kept_ptr=kept,
            dy_ptr=dy.contiguous(),
            dfinal_ptr=dfinal.contiguous() if sequences and dfinal is not None else None,
            scratch_ptr=A.new_empty((*grid, CHUNK // FEWEST_STEPS, N, block_d)),
            **places,
            **given.sizes,
            programs=given.programs,
            **given.options,
        )
    return [
        _summed(part, a)
        for part, a in zip(places.values(), arguments, strict=True)
        if part is not None and a is not None
    ]


def _places(
    programs: int, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None,
) -> dict[str, Tensor | None]:  # fmt: skip
    """Where the kernel writes, in the arguments' order: gradients, or parts of them that are to be summed."""
    (b, l, _), n = x.shape, A.shape[1]

    def like(t: Tensor | None) -> Tensor | None:
        return None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)

    def of_rows(t: Tensor | None) -> Tensor | None:
        return None if t is None else A.new_empty((b, *t.shape))

    dB, dC = (A.new_empty((b, l, programs, n)) if M.ndim == 4 else of_rows(M) for M in (B, C))
    return {
        "dx_ptr": like(x),
        "ddt_ptr": like(dt),
        "dA_ptr": of_rows(A),
        "dB_ptr": dB,
        "dC_ptr": dC,
        "dD_ptr": of_rows(D),
        "dz_ptr": like(z),
        "dbias_ptr": of_rows(dt_bias),
        "dfirst_ptr": like(initial_state),
    }


def _summed(part: Tensor, argument: Tensor) -> Tensor:
    """The gradient of an argument, from what the kernel wrote."""
    if part.shape == argument.shape:
        return part
    if argument.ndim == 4:  # B or C: over the blocks of channels of each group
        return part.unflatten(2, (argument.shape[2], -1)).sum(3).to(argument.dtype)
    return part.sum(0).to(argument.dtype)


def _of_no_steps(arguments: tuple[Tensor | None, ...], dfinal: Tensor | None) -> list[Tensor]:
    """Zeros; but the final state is the initial one where there are rows and no steps."""
    found = [torch.zeros_like(a, memory_format=torch.contiguous_format) for a in arguments if a is not None]
    if arguments[-1] is not None and dfinal is not None and len(dfinal) == len(found[-1]):
        found[-1].copy_(dfinal)
    return found


def compilations() -> Iterator[Compilation]:
    return triton_arguments.compilations("gradient", gradient_kernel, plan)
