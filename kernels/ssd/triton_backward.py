"""SSD in Triton, backward: the gradients of the five steps of triton_forward.py, whose names and shapes hold here too.

Here are the kernels 1 to 3, a program a head; in triton_backward_groups.py what the heads of a group share, and the end.

Of a chunk, with E the state that enters it, F the one after its last step, x̄ = dt x, and L_ij = exp(s_i - s_j):

    1. state_gradient    dE_i = Σ_i exp(s_i) C_iᵀ dy_i, by the outputs of the chunk
    2. passing_gradient  dE = dE_i + exp(s_last) dF, and dF is dE of the next chunk: from chunk to chunk, to the start
    3. input_gradient    dx̄_j = Σ_{i≥j} L_ij G_ij dy_i + exp(s_last - s_j) B_j dF
    4. matrix_gradient   dG_ij = Σ_heads L_ij dy_i · x̄_j
    5. C_gradient        dC_i = Σ_j dG_ij B_j + Σ_heads exp(s_i) dy_i Eᵀ
       B_gradient        dB_j = Σ_i dG_ij C_i + Σ_heads exp(s_last - s_j) x̄_j dFᵀ
    6. decay_gradient    d log_a

Step k's decay is in every path from a step before k to k or a later one, so d log_a_k is a sum over these paths:

    d log_a_k = Σ_{j<k≤i} dy_i · x̄_j L_ij G_ij          inside the chunk         (kernel 4, pairs)
              + Σ_{i≥k} exp(s_i) dy_i · C_i E             from the start to i      (kernel 5, entered)
              + Σ_{j<k} exp(s_last - s_j) B_j dF · x̄_j    from j to the end        (kernel 3, leaving)
              + exp(s_last) E · dF                        from the start to the end (kernel 2, through)

No path is added and taken away again: differences of larger sums would leave rounding where the answer is 0.
Of packed sequences, one that ends inside the chunk has the end of its own, and dF is the gradient of its final state.

Every number is summed by one program, in one order, so the gradients are the same bits in every run.
"""

# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from ssmcourse.kernels.ssd.triton_tiles import (
    NOTHING,
    compilation,
    decay,
    load_numbers,
    load_rows,
    load_sums,
    place,
    product,
    sequence_before,
    tunings,
)

# --- The ends of sequences ----------------------------------------------------------------------------


@triton.jit
def last_step(
    sequence, numbers, ends_ptr, first, chunk, l, left,
    HAS_FINAL: tl.constexpr, PACKED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The last step of a sequence in a chunk, whose first step is `first` of all; and does it go on in the next?

    A sequence that ends has a gradient only by its final state: without any of these its end does not matter.
    """
    stop = left - 1
    goes_on = chunk < tl.cdiv(l, CHUNK) - 1
    if PACKED:
        goes_on = tl.load(numbers + CHUNK, mask=goes_on, other=-1) == sequence
        if HAS_FINAL:
            stop = tl.minimum(stop, (tl.load(ends_ptr + sequence) - first).to(tl.int32))
    return stop, goes_on


@triton.jit
def leaving_gradient(
    dstates_ptr, dfinal_ptr, sequence, goes_on, row, chunk, chunks, head, h, offs_n, offs_p,
    HAS_FINAL: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """dF, a tile (len(offs_n), len(offs_p)): what enters the next chunk has it, or a final state."""
    mask = (offs_n < N)[:, None] & (offs_p < P)[None, :]
    if goes_on:
        here = dstates_ptr + ((row * chunks + chunk + 1) * h + head) * (N * P)
        dF = tl.load(here + offs_n[:, None] * P + offs_p[None, :], mask=mask, other=0.0)
    else:
        here = dfinal_ptr + (tl.cast(sequence, tl.int64) * h + head) * (N * P)
        dF = tl.load(here + offs_p[None, :] * N + offs_n[:, None], mask=mask & HAS_FINAL, other=0.0)
    return dF


@triton.jit
def sequences_of(numbers, row, start, left, PACKED: tl.constexpr, BLOCK: tl.constexpr):
    """The first and the last sequence of a tile of steps; an unpacked row is one."""
    lowest, highest = row.to(tl.int32), row.to(tl.int32)
    if PACKED:
        lowest = tl.load(numbers + start, mask=start < left, other=0)
        highest = tl.load(numbers + tl.minimum(start + BLOCK, left) - 1, mask=start < left, other=-1)
    return lowest, highest


# --- 1, 2. The states ---------------------------------------------------------------------------------


@triton.jit
def state_gradient_kernel(
    C_ptr, dy_ptr, steps_ptr, number_ptr, dstates_ptr, l, h, g,
    HAS_INITIAL: tl.constexpr, PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ_i exp(s_i) C_iᵀ dy_i: what the chunk's own outputs say of the state that enters it.

    C (b, l, g, n), dy (b, l, h, p) -> dstates (b, c, h, n, p). Grid: (b c, h, tiles of the state).
    Bytes: dy, C and dstates once. FLOPs: 2 b l h n p.
    """
    row, chunk, begin, left = place(tl.program_id(0), l, CHUNK)
    head = tl.program_id(1)
    offs_n = tl.program_id(2) // tl.cdiv(P, BLOCK_P) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_p = tl.program_id(2) % tl.cdiv(P, BLOCK_P) * BLOCK_P + tl.arange(0, BLOCK_P)
    steps = steps_ptr + (row * h + head) * (3 * l) + begin
    numbers = number_ptr + row * l + begin
    C = C_ptr + ((row * l + begin) * g + head // (h // g)) * N
    dy = dy_ptr + ((row * l + begin) * h + head) * P
    if (chunk > 0) | HAS_INITIAL:
        dE = tl.zeros((BLOCK_N, BLOCK_P), steps_ptr.dtype.element_ty)
        for start in range(0, left, BLOCK):
            i = start + tl.arange(0, BLOCK)
            hi, lo = load_sums(steps, i, left, l)  # (BLOCK,)
            weight = tl.exp(hi + lo)
            if PACKED:
                weight = tl.where(
                    load_numbers(numbers, i, left) == sequence_before(numbers, chunk), weight, 0.0
                )
            C_i = load_rows(C, i, left, g * N, offs_n, N)  # (BLOCK, BLOCK_N)
            dy_i = load_rows(dy, i, left, h * P, offs_p, P)  # (BLOCK, BLOCK_P)
            dE = product(tl.trans(C_i), dy_i.to(weight.dtype) * weight[:, None], dE, OPERAND, PRECISION)
        out = dstates_ptr + (tl.program_id(0).to(tl.int64) * h + head) * (N * P)
        mask = (offs_n < N)[:, None] & (offs_p < P)[None, :]
        tl.store(out + offs_n[:, None] * P + offs_p[None, :], dE, mask=mask)


@triton.jit
def passing_gradient_kernel(
    dstates_ptr, dfinal_ptr, dinitial_ptr, through_ptr, states_ptr, initial_ptr, steps_ptr, number_ptr, ends_ptr, l, h,
    HAS_INITIAL: tl.constexpr, HAS_FINAL: tl.constexpr, PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dE = (what state_gradient found) + exp(s_last) dF, from the last chunk to the first, in place.

    dstates (b, c, h, n, p), dfinal (s, h, p, n), dinitial (b, h, p, n), which is dE of the first chunk;
    through (b, h, n p / BLOCK, c), a part of the sum exp(s_last) E · dF. Grid: (b, h, n p / BLOCK).
    Bytes: dstates read and written, the states read.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    e = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)  # elements of a state, n major
    e_p = (e % P) * N + e // P  # where they are in a state with p major
    mask = e < N * P
    chunks = tl.cdiv(l, CHUNK)
    through = through_ptr + ((row * h + head) * tl.cdiv(N * P, BLOCK) + tl.program_id(2)) * chunks
    dE = tl.zeros((BLOCK,), steps_ptr.dtype.element_ty)
    for k in range(chunks if HAS_INITIAL else chunks - 1):
        chunk = chunks - 1 - k
        first = row * l + chunk * CHUNK
        steps = steps_ptr + (row * h + head) * (3 * l) + chunk * CHUNK
        numbers = number_ptr + first
        sequence = row.to(tl.int32)
        if PACKED:
            sequence = sequence_before(numbers, chunk)
        left = tl.minimum(CHUNK, l - chunk * CHUNK)
        stop, goes_on = last_step(
            sequence, numbers, ends_ptr, first, chunk, l, left, HAS_FINAL, PACKED, CHUNK
        )
        if not goes_on:
            final = dfinal_ptr + (tl.cast(sequence, tl.int64) * h + head) * (N * P)
            dE = tl.load(final + e_p, mask=mask & HAS_FINAL, other=0.0)  # (BLOCK,)
        dE = tl.exp(tl.load(steps + l + stop) + tl.load(steps + 2 * l + stop)) * dE
        if PACKED:  # no state may enter
            dE = tl.where(tl.load(numbers) == sequence, dE, 0.0)
        if chunk == 0:
            E = tl.load(initial_ptr + (row * h + head) * (N * P) + e_p, mask=mask, other=0.0)  # (BLOCK,)
        else:
            entering = states_ptr + ((row * (chunks - 1) + chunk - 1) * h + head) * (N * P)
            E = tl.load(entering + e, mask=mask, other=0.0)  # (BLOCK,)
        tl.store(through + chunk, tl.sum(E * dE, 0))
        here = dstates_ptr + ((row * chunks + chunk) * h + head) * (N * P) + e
        dE += tl.load(here, mask=mask, other=0.0)  # (BLOCK,)
        if chunk == 0:
            tl.store(dinitial_ptr + (row * h + head) * (N * P) + e_p, dE, mask=mask)
        else:
            tl.store(here, dE, mask=mask)


# --- 3. The inputs ------------------------------------------------------------------------------------


@triton.jit
def input_gradient_kernel(
    G_ptr, B_ptr, x_ptr, dy_ptr, D_ptr, steps_ptr, number_ptr, ends_ptr, dstates_ptr, dfinal_ptr,
    dx_ptr, ddt_ptr, leaving_ptr, dD_ptr, l, h, g,
    HAS_FINAL: tl.constexpr, HAS_D: tl.constexpr, PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx_j = dt_j dx̄_j + D dy_j,  dx̄_j = Σ_{i≥j} L_ij G_ij dy_i + exp(s_last - s_j) B_j dF: the scan, from the end.

    ddt and leaving (b, h, p / BLOCK_P, l), parts of x_j · dx̄_j, and of its second term times dt_j;
    dD (b c CHUNK / BLOCK, h, p), parts of Σ dy x. Grid: (b c, h, CHUNK / BLOCK tiles of steps times p / BLOCK_P).
    Bytes: G, B, x, dy, dstates and dx once. FLOPs: b l h p (CHUNK + 2 n).
    """
    row, chunk, begin, left = place(tl.program_id(0), l, CHUNK)
    head = tl.program_id(1)
    group = head // (h // g)
    tiles_p = tl.cdiv(P, BLOCK_P)
    tile, tile_p = tl.program_id(2) // tiles_p, tl.program_id(2) % tiles_p
    offs_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    j = tile * BLOCK + tl.arange(0, BLOCK)
    steps = steps_ptr + (row * h + head) * (3 * l) + begin
    numbers = number_ptr + row * l + begin
    here = ((row * l + begin) * h + head) * P  # in x, dy and dx
    B_rows = B_ptr + ((row * l + begin) * g + group) * N
    hi, lo = load_sums(steps, j, left, l)  # (BLOCK,)
    dt = tl.load(steps + j, mask=j < left, other=0.0)  # (BLOCK,)
    dxbar = tl.zeros((BLOCK, BLOCK_P), steps_ptr.dtype.element_ty)
    lowest, highest = sequences_of(numbers, row, tile * BLOCK, left, PACKED, BLOCK)
    for sequence in range(lowest, highest + 1):  # from the steps after this chunk
        stop, goes_on = last_step(
            sequence, numbers, ends_ptr, row * l + begin, chunk, l, left, HAS_FINAL, PACKED, CHUNK
        )
        if goes_on | HAS_FINAL:
            part = tl.zeros((BLOCK, BLOCK_P), dxbar.dtype)
            for start in range(0, N, BLOCK_N):
                offs_n = start + tl.arange(0, BLOCK_N)
                B = load_rows(B_rows, j, left, g * N, offs_n, N)  # (BLOCK, BLOCK_N)
                dF = leaving_gradient(  # (BLOCK_N, BLOCK_P)
                    dstates_ptr, dfinal_ptr, sequence, goes_on, row, chunk, tl.cdiv(l, CHUNK), head, h,
                    offs_n, offs_p, HAS_FINAL, N, P,
                )  # fmt: skip
                part = product(B, dF, part, OPERAND, PRECISION)
            kept = j <= stop
            if PACKED:
                kept = kept & (load_numbers(numbers, j, left) == sequence)
            dxbar += (
                part * decay(tl.load(steps + l + stop), tl.load(steps + 2 * l + stop), hi, lo, kept)[:, None]
            )
    x = load_rows(x_ptr + here, j, left, h * P, offs_p, P).to(dxbar.dtype)  # (BLOCK, BLOCK_P)
    vectors = ((row * h + head) * tiles_p + tile_p) * l + begin + j
    tl.store(leaving_ptr + vectors, tl.sum(dxbar * x, 1) * dt, mask=j < left)
    G = G_ptr + (tl.program_id(0).to(tl.int64) * g + group) * (CHUNK * CHUNK)
    for start in range(tile * BLOCK, left, BLOCK):  # from the steps of this chunk
        i = start + tl.arange(0, BLOCK)
        kept = (j[:, None] <= i[None, :]) & (i < left)[None, :]
        if PACKED:
            kept = kept & (load_numbers(numbers, j, left)[:, None] == load_numbers(numbers, i, left)[None, :])
        hi_i, lo_i = load_sums(steps, i, left, l)  # (BLOCK,)
        M = tl.load(G + i[None, :] * CHUNK + j[:, None])  # (BLOCK, BLOCK), transposed
        M *= decay(hi_i[None, :], lo_i[None, :], hi[:, None], lo[:, None], kept)
        dy = load_rows(dy_ptr + here, i, left, h * P, offs_p, P)  # (BLOCK, BLOCK_P)
        dxbar = product(M, dy, dxbar, OPERAND, PRECISION)
    tl.store(ddt_ptr + vectors, tl.sum(dxbar * x, 1), mask=j < left)
    dx = dxbar * dt[:, None]
    if HAS_D:
        D = tl.load(D_ptr + head * P + offs_p, mask=offs_p < P, other=0.0)  # (BLOCK_P,)
        dy = load_rows(dy_ptr + here, j, left, h * P, offs_p, P).to(dx.dtype)  # (BLOCK, BLOCK_P)
        dx += D[None, :] * dy
        parts = dD_ptr + ((tl.program_id(0).to(tl.int64) * (CHUNK // BLOCK) + tile) * h + head) * P
        tl.store(parts + offs_p, tl.sum(dy * x, 0), mask=offs_p < P)
    mask = (j < left)[:, None] & (offs_p < P)[None, :]
    tl.store(dx_ptr + here + j[:, None] * (h * P) + offs_p[None, :], dx, mask=mask)


def compilations() -> Iterator[Any]:
    """Each kernel with everything that is optional and with nothing, for float32 and a half type."""
    multiply = state_gradient_kernel, input_gradient_kernel
    for dtype in ("fp32", "bf16"):
        for kernel in (*multiply, passing_gradient_kernel):
            yield compilation(kernel, dtype, " bare", **NOTHING)
            yield compilation(kernel, dtype, PACKED=False)
            yield compilation(kernel, dtype, " packed")
    for kernel in multiply:
        yield from tunings(compilation(kernel, "bf16", PACKED=False))
