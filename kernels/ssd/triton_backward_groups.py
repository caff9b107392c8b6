"""SSD in Triton, backward: kernels 4 to 6 of triton_backward.py, which says what they compute.

dG, dB and dC are sums over the heads of a group. One program goes through these heads, so that nothing is written
for each of them: 24 heads that share B would have 24 times as many gradients of B.
"""

# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from ssmcourse.kernels.ssd.triton_backward import last_step, leaving_gradient, sequences_of
from ssmcourse.kernels.ssd.triton_tiles import (
    NOTHING,
    compilation,
    decay,
    entering_state,
    load_numbers,
    load_rows,
    load_sums,
    place,
    product,
    sequence_before,
    tunings,
)

# --- 4, 5. What the heads of a group share ------------------------------------------------------------


@triton.jit
def matrix_gradient_kernel(
    G_ptr, x_ptr, dy_ptr, steps_ptr, number_ptr, dG_ptr, pairs_ptr, l, h, g,
    PACKED: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dG_ij = Σ_heads L_ij dy_i · x̄_j, a program a tile; and what the paths from j to i say of the decays.

    dG (b, c, g, CHUNK, CHUNK). pairs (b, h, CHUNK / BLOCK, l): the tile in row I and column J has a part of d log_a_k
    for the steps k of either; those of I find it in line J, those of J in line I. Those of tiles between I and J
    all have the same part, the sum of the tile: decay_gradient finds it in line J at the first step of I.
    Grid: (b c, g, (CHUNK / BLOCK)²). Bytes: G and dG once, x and dy once. FLOPs: b l h p CHUNK.
    """
    row, _, begin, left = place(tl.program_id(0), l, CHUNK)
    group = tl.program_id(1)
    tiles = CHUNK // BLOCK
    tile_i, tile_j = tl.program_id(2) // tiles, tl.program_id(2) % tiles
    i, j = tile_i * BLOCK + tl.arange(0, BLOCK), tile_j * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, BLOCK)
    numbers = number_ptr + row * l + begin
    here = (tl.program_id(0).to(tl.int64) * g + group) * (CHUNK * CHUNK) + i[:, None] * CHUNK + j[None, :]
    if tile_j <= tile_i:
        dG = tl.zeros((BLOCK, BLOCK), steps_ptr.dtype.element_ty)
        kept = (j[None, :] <= i[:, None]) & (i < left)[:, None]
        if PACKED:
            kept = kept & (load_numbers(numbers, i, left)[:, None] == load_numbers(numbers, j, left)[None, :])
        for head in range(group * (h // g), (group + 1) * (h // g)):
            rows = ((row * l + begin) * h + head) * P
            dL = tl.zeros((BLOCK, BLOCK), dG.dtype)
            for start in range(0, P, BLOCK_P):
                offs_p = start + tl.arange(0, BLOCK_P)
                dy = load_rows(dy_ptr + rows, i, left, h * P, offs_p, P)  # (BLOCK, BLOCK_P)
                x = load_rows(x_ptr + rows, j, left, h * P, offs_p, P)  # (BLOCK, BLOCK_P)
                dL = product(dy, tl.trans(x), dL, OPERAND, PRECISION)
            steps = steps_ptr + (row * h + head) * (3 * l) + begin
            hi_i, lo_i = load_sums(steps, i, left, l)  # (BLOCK,)
            hi_j, lo_j = load_sums(steps, j, left, l)  # (BLOCK,)
            dt = tl.load(steps + j, mask=j < left, other=0.0)  # (BLOCK,)
            dL *= decay(hi_i[:, None], lo_i[:, None], hi_j[None, :], lo_j[None, :], kept) * dt[None, :]
            dG += dL
            G = tl.load(G_ptr + here)  # (BLOCK, BLOCK), once more for each head: registers are few
            paths = tl.where(j[None, :] < i[:, None], dL * G, 0.0)
            pairs = pairs_ptr + (row * h + head) * tiles * l + begin
            if tile_i == tile_j:
                before = (k[:, None] < k[None, :]).to(G.dtype)
                # From before k to each i. In tf32 for half types, whose own range these products may leave.
                to_each_i = tl.dot(paths, before, input_precision=PRECISION, out_dtype=G.dtype)
                over_k = tl.sum(tl.where(k[:, None] >= k[None, :], to_each_i, 0.0), 0)
                tl.store(pairs + tile_i * l + i, over_k, mask=i < left)
            else:
                from_j, to_i = tl.sum(paths, 0), tl.sum(paths, 1)
                before_k = tl.sum(tl.where(k[:, None] < k[None, :], from_j[:, None], 0.0), 0)
                after_k = tl.sum(tl.where(k[:, None] >= k[None, :], to_i[:, None], 0.0), 0)
                tl.store(pairs + tile_i * l + j, before_k, mask=j < left)
                tl.store(pairs + tile_j * l + i, after_k, mask=i < left)
        tl.store(dG_ptr + here, dG)


@triton.jit
def C_gradient_kernel(
    dG_ptr, B_ptr, C_ptr, dy_ptr, steps_ptr, number_ptr, states_ptr, initial_ptr, dC_ptr, entered_ptr, l, h, g,
    HAS_INITIAL: tl.constexpr, PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dC_i = Σ_{j≤i} dG_ij B_j + Σ_heads exp(s_i) dy_i Eᵀ.

    dC (b, l, g, n); entered (b, h, n / BLOCK_N, l), parts of the second term times C_i.
    Grid: (b c, g, CHUNK / BLOCK tiles of steps times n / BLOCK_N). Bytes: dG, B, C, dC, dy and the states once.
    FLOPs: b l n (g CHUNK + 2 h p).
    """
    row, chunk, begin, left = place(tl.program_id(0), l, CHUNK)
    group = tl.program_id(1)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile, tile_n = tl.program_id(2) // tiles_n, tl.program_id(2) % tiles_n
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    i = tile * BLOCK + tl.arange(0, BLOCK)
    numbers = number_ptr + row * l + begin
    here = ((row * l + begin) * g + group) * N  # in B, C and dC
    dG = dG_ptr + (tl.program_id(0).to(tl.int64) * g + group) * (CHUNK * CHUNK)
    dC = tl.zeros((BLOCK, BLOCK_N), steps_ptr.dtype.element_ty)
    for start in range(0, (tile + 1) * BLOCK, BLOCK):
        j = start + tl.arange(0, BLOCK)
        dG_ij = tl.load(dG + i[:, None] * CHUNK + j[None, :])  # (BLOCK, BLOCK)
        B = load_rows(B_ptr + here, j, left, g * N, offs_n, N)  # (BLOCK, BLOCK_N)
        dC = product(dG_ij, B, dC, OPERAND, PRECISION)
    C = load_rows(C_ptr + here, i, left, g * N, offs_n, N).to(dC.dtype)  # (BLOCK, BLOCK_N)
    for head in range(group * (h // g), (group + 1) * (h // g)):
        dy_rows = dy_ptr + ((row * l + begin) * h + head) * P
        part = tl.zeros((BLOCK, BLOCK_N), dC.dtype)
        for start in range(0, P, BLOCK_P):
            offs_p = start + tl.arange(0, BLOCK_P)
            dy = load_rows(dy_rows, i, left, h * P, offs_p, P)  # (BLOCK, BLOCK_P)
            E = entering_state(
                states_ptr,
                initial_ptr,
                row,
                chunk,
                tl.cdiv(l, CHUNK),
                head,
                h,
                offs_n,
                offs_p,
                HAS_INITIAL,
                N,
                P,
            )  # (BLOCK_N, BLOCK_P)
            part = product(dy, tl.trans(E), part, OPERAND, PRECISION)
        hi, lo = load_sums(steps_ptr + (row * h + head) * (3 * l) + begin, i, left, l)  # (BLOCK,)
        part *= tl.exp(hi + lo)[:, None]
        if PACKED:
            enters = load_numbers(numbers, i, left) == sequence_before(numbers, chunk)
            part = tl.where(enters[:, None], part, 0.0)
        dC += part
        out = entered_ptr + ((row * h + head) * tiles_n + tile_n) * l + begin
        tl.store(out + i, tl.sum(part * C, 1), mask=i < left)
    mask = (i < left)[:, None] & (offs_n < N)[None, :]
    tl.store(dC_ptr + here + i[:, None] * (g * N) + offs_n[None, :], dC, mask=mask)


@triton.jit
def B_gradient_kernel(
    dG_ptr, C_ptr, x_ptr, steps_ptr, number_ptr, ends_ptr, dstates_ptr, dfinal_ptr, dB_ptr, l, h, g,
    HAS_FINAL: tl.constexpr, PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dB_j = Σ_{i≥j} dG_ij C_i + Σ_heads exp(s_last - s_j) dt_j x_j dFᵀ.

    dB (b, l, g, n). Grid: (b c, g, CHUNK / BLOCK tiles of steps times n / BLOCK_N).
    Bytes: dG, C, dB, x and dstates once. FLOPs: b l n (g CHUNK + 2 h p).
    """
    row, chunk, begin, left = place(tl.program_id(0), l, CHUNK)
    group = tl.program_id(1)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(2) // tiles_n
    offs_n = tl.program_id(2) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tile * BLOCK + tl.arange(0, BLOCK)
    numbers = number_ptr + row * l + begin
    here = ((row * l + begin) * g + group) * N  # in C and dB
    dG = dG_ptr + (tl.program_id(0).to(tl.int64) * g + group) * (CHUNK * CHUNK)
    dB = tl.zeros((BLOCK, BLOCK_N), steps_ptr.dtype.element_ty)
    for start in range(tile * BLOCK, left, BLOCK):
        i = start + tl.arange(0, BLOCK)
        dG_ij = tl.load(dG + i[None, :] * CHUNK + j[:, None])  # (BLOCK, BLOCK), transposed
        C = load_rows(C_ptr + here, i, left, g * N, offs_n, N)  # (BLOCK, BLOCK_N)
        dB = product(dG_ij, C, dB, OPERAND, PRECISION)
    lowest, highest = sequences_of(numbers, row, tile * BLOCK, left, PACKED, BLOCK)
    for head in range(group * (h // g), (group + 1) * (h // g)):
        steps = steps_ptr + (row * h + head) * (3 * l) + begin
        hi, lo = load_sums(steps, j, left, l)  # (BLOCK,)
        dt = tl.load(steps + j, mask=j < left, other=0.0)  # (BLOCK,)
        for sequence in range(lowest, highest + 1):
            stop, goes_on = last_step(
                sequence, numbers, ends_ptr, row * l + begin, chunk, l, left, HAS_FINAL, PACKED, CHUNK
            )
            if goes_on | HAS_FINAL:
                part = tl.zeros((BLOCK, BLOCK_N), dB.dtype)
                for start in range(0, P, BLOCK_P):
                    offs_p = start + tl.arange(0, BLOCK_P)
                    x_rows = x_ptr + ((row * l + begin) * h + head) * P
                    x = load_rows(x_rows, j, left, h * P, offs_p, P)  # (BLOCK, BLOCK_P)
                    dF = leaving_gradient(  # (BLOCK_N, BLOCK_P)
                        dstates_ptr, dfinal_ptr, sequence, goes_on, row, chunk, tl.cdiv(l, CHUNK), head, h,
                        offs_n, offs_p, HAS_FINAL, N, P,
                    )  # fmt: skip
                    part = product(x, tl.trans(dF), part, OPERAND, PRECISION)
                kept = j <= stop
                if PACKED:
                    kept = kept & (load_numbers(numbers, j, left) == sequence)
                weight = decay(tl.load(steps + l + stop), tl.load(steps + 2 * l + stop), hi, lo, kept) * dt
                dB += part * weight[:, None]
    mask = (j < left)[:, None] & (offs_n < N)[None, :]
    tl.store(dB_ptr + here + j[:, None] * (g * N) + offs_n[None, :], dB, mask=mask)


# --- 6. The decays ------------------------------------------------------------------------------------


@triton.jit
def _then(sum1, fresh1, sum2, fresh2):
    """Two stretches of a sum as one; the sum begins again where a stretch is fresh."""
    return tl.where(fresh2 != 0, sum2, sum1 + sum2), fresh1 | fresh2


@triton.jit
def decay_gradient_kernel(
    pairs_ptr, entered_ptr, leaving_ptr, through_ptr, parts_ptr, number_ptr, ends_ptr, dlog_a_ptr, ddt_ptr, l, h,
    HAS_FINAL: tl.constexpr, PACKED: tl.constexpr,
    LINES: tl.constexpr, TILES_N: tl.constexpr, TILES_P: tl.constexpr, PARTS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """d log_a_k, the sum over all paths through the decay of step k; and ddt, summed up.

    pairs (b, h, LINES, l), entered (b, h, TILES_N, l), leaving and parts (of ddt) (b, h, TILES_P, l), through
    (b, h, PARTS, c) -> d log_a, ddt (b, l, h). Grid: (b c, h / BLOCK_H). Bytes: each once.
    """
    row, chunk, begin, left = place(tl.program_id(0), l, CHUNK)
    k = tl.arange(0, CHUNK)[:, None]
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    mask = (k < left) & (heads < h)
    at = row * h + heads
    numbers = number_ptr + row * l + begin
    total = tl.zeros((CHUNK, BLOCK_H), pairs_ptr.dtype.element_ty)
    for line in range(LINES):  # inside the chunk
        of_line = pairs_ptr + (at * LINES + line) * l + begin
        total += tl.load(of_line + k, mask=mask, other=0.0)  # (CHUNK, BLOCK_H)
        for tile in range(line + 2, LINES):  # the tiles between hold steps that all paths of this one pass
            start = tile * (CHUNK // LINES)
            paths = tl.load(of_line + start, mask=(heads < h) & (start < left), other=0.0)  # (1, BLOCK_H)
            between = (k >= (line + 1) * (CHUNK // LINES)) & (k < start)
            total += tl.where(between, paths, 0.0)
    sequence = row.to(tl.int32)
    if PACKED:
        sequence = sequence_before(numbers, chunk)
    stop, _ = last_step(
        sequence, numbers, ends_ptr, row * l + begin, chunk, l, left, HAS_FINAL, PACKED, CHUNK
    )
    from_start = tl.zeros((CHUNK, BLOCK_H), total.dtype)
    for part in range(PARTS):
        through = through_ptr + (at * PARTS + part) * tl.cdiv(l, CHUNK) + chunk
        from_start += tl.where(k == stop, tl.load(through, mask=heads < h, other=0.0), 0.0)
    for tile in range(TILES_N):
        entered = entered_ptr + (at * TILES_N + tile) * l + begin
        from_start += tl.load(entered + k, mask=mask, other=0.0)  # (CHUNK, BLOCK_H)
    total += tl.cumsum(from_start, 0, reverse=True)
    to_end = tl.zeros((CHUNK, BLOCK_H), total.dtype)
    ddt = tl.zeros((CHUNK, BLOCK_H), total.dtype)
    for tile in range(TILES_P):
        offs = (at * TILES_P + tile) * l + begin + k
        to_end += tl.load(
            leaving_ptr + offs - 1, mask=mask & (k > 0), other=0.0
        )  # (CHUNK, BLOCK_H), of k - 1
        ddt += tl.load(parts_ptr + offs, mask=mask, other=0.0)  # (CHUNK, BLOCK_H)
    if PACKED:
        number, before = load_numbers(numbers, k, left), load_numbers(numbers - 1, k, left * (k > 0))
        fresh = tl.broadcast_to((number != before).to(tl.int32), (CHUNK, BLOCK_H))
        to_end = tl.where(fresh != 0, 0.0, to_end)
        to_end, _ = tl.associative_scan((to_end, fresh), 0, _then)
        total += to_end
    else:
        total += tl.cumsum(to_end, 0)
    out = (row * l + begin) * h + k * h + heads
    tl.store(dlog_a_ptr + out, total, mask=mask)
    tl.store(ddt_ptr + out, ddt, mask=mask)


def compilations() -> Iterator[Any]:
    """Each kernel with everything that is optional and with nothing, for float32 and a half type."""
    multiply = matrix_gradient_kernel, C_gradient_kernel, B_gradient_kernel
    for dtype in ("fp32", "bf16"):
        for kernel in (*multiply, decay_gradient_kernel):
            yield compilation(kernel, dtype, " bare", **NOTHING)
            yield compilation(kernel, dtype, PACKED=False)
            yield compilation(kernel, dtype, " packed")
    for kernel in multiply:
        yield from tunings(compilation(kernel, "bf16", PACKED=False))
