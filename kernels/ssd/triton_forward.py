"""SSD in Triton, forward: the five steps of the chunked algorithm, each a kernel (Dao & Gu 2024, section 6; lesson 10).

With s_i the sum of log_a from a chunk's first step to its step i, and E the state that enters the chunk:

    1. cumulative_sum   s, for each chunk and head
    2. chunk_matrix     G = C Bᵀ, for each chunk and group
    3. chunk_state      S = Σ_j exp(s_last - s_j) B_j dt_j x_jᵀ, what the chunk adds to the state
    4. state_passing    E of the next chunk = exp(s_last) E + S
    5. chunk_scan       y_i = Σ_{j≤i} exp(s_i - s_j) G_ij dt_j x_j + exp(s_i) C_i E + D x_i

and final_state, which is steps 3 and 4 from the last chunk's begin to a sequence's end. triton_tiles.py has the shapes
of steps_ptr, number_ptr, ends_ptr and states_ptr; x, y (b, l, h, p), B, C (b, l, g, n), G (b, c, g, CHUNK, CHUNK).

Bytes, each array once a launch (what programs of a launch read again is in the L2 cache): for x of 2 bytes, h 24, p 64,
n 128, g 1 and chunks of 256, a step of a row moves 25.0 kB for 6.8 kB of inputs and outputs, 3.6 times as much.
The states are half of that: CHUNK steps share (h, n, p) of them, written, passed and read in float32.
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
    entering_state,
    load_numbers,
    load_rows,
    load_sums,
    place,
    product,
    sequence_before,
    tunings,
)

# A step below this forgets everything in float64 too. Cut there, one reset costs the sums after it no digits.
LOWEST = tl.constexpr(-2000.0)


@triton.jit
def cumulative_sum_kernel(dt_ptr, log_a_ptr, steps_ptr, l, h, CHUNK: tl.constexpr, BLOCK_H: tl.constexpr):
    """dt and s_i = log_a_0 + ... + log_a_i inside each chunk, a head's steps side by side.

    dt, log_a (b, l, h) -> steps (b, h, 3, l). Grid: (b c, h / BLOCK_H). Bytes: 5 b l h numbers.
    """
    row, _, begin, left = place(tl.program_id(0), l, CHUNK)
    t = tl.arange(0, CHUNK)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (t < left)[:, None] & (heads < h)[None, :]
    here = (row * l + begin) * h
    dt = tl.load(dt_ptr + here + t[:, None] * h + heads[None, :], mask=mask, other=0.0)  # (CHUNK, BLOCK_H)
    log_a = tl.load(
        log_a_ptr + here + t[:, None] * h + heads[None, :], mask=mask, other=0.0
    )  # (CHUNK, BLOCK_H)
    sums = tl.cumsum(tl.where(log_a < LOWEST, LOWEST, log_a).to(tl.float64), 0)
    hi = sums.to(dt.dtype)
    lo = (sums - hi.to(tl.float64)).to(dt.dtype)
    steps = steps_ptr + (row * h + heads[None, :]) * (3 * l) + begin + t[:, None]
    tl.store(steps, dt, mask=mask)
    tl.store(steps + l, hi, mask=mask)
    tl.store(steps + 2 * l, lo, mask=mask)


@triton.jit
def chunk_matrix_kernel(
    C_ptr, B_ptr, G_ptr, l, g, N: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """G = C Bᵀ on and below the diagonal, tile by tile; above it G stays unwritten, and unread.

    C, B (b, l, g, n) -> G (b, c, g, CHUNK, CHUNK). Grid: (b c, g, (CHUNK / ROWS)²), a program a tile.
    Bytes: B, C and G once. FLOPs: b l g CHUNK n.
    """
    row, _, begin, left = place(tl.program_id(0), l, CHUNK)
    group = tl.program_id(1)
    tile_i, tile_j = tl.program_id(2) // (CHUNK // ROWS), tl.program_id(2) % (CHUNK // ROWS)
    i, j = tile_i * ROWS + tl.arange(0, ROWS), tile_j * ROWS + tl.arange(0, ROWS)
    here = ((row * l + begin) * g + group) * N
    if tile_j <= tile_i:
        G = tl.zeros((ROWS, ROWS), G_ptr.dtype.element_ty)
        for start in range(0, N, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            C = load_rows(C_ptr + here, i, left, g * N, offs_n, N)  # (ROWS, BLOCK_N)
            B = load_rows(B_ptr + here, j, left, g * N, offs_n, N)  # (ROWS, BLOCK_N)
            G = product(C, tl.trans(B), G, OPERAND, PRECISION)
        out = G_ptr + (tl.program_id(0).to(tl.int64) * g + group) * (CHUNK * CHUNK)
        tl.store(out + i[:, None] * CHUNK + j[None, :], G)


@triton.jit
def sum_to_end(
    B, x, steps, numbers, end, l, h, g, offs_n, offs_p,
    PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ exp(s_end - s_j) B_j dt_j x_jᵀ over the steps j <= end of a chunk that are of the sequence of `end`.

    B, x, steps and numbers point to the chunk's first step.
    """
    state = tl.zeros((BLOCK_N, BLOCK_P), steps.dtype.element_ty)
    hi_end, lo_end = tl.load(steps + l + end), tl.load(steps + 2 * l + end)
    for start in range(0, end + 1, BLOCK):
        j = start + tl.arange(0, BLOCK)
        kept = j <= end
        if PACKED:
            kept = kept & (load_numbers(numbers, j, end + 1) == tl.load(numbers + end))
        hi, lo = load_sums(steps, j, end + 1, l)  # (BLOCK,)
        dt = tl.load(steps + j, mask=j <= end, other=0.0)  # (BLOCK,)
        weight = decay(hi_end, lo_end, hi, lo, kept) * dt
        B_j = load_rows(B, j, end + 1, g * N, offs_n, N)  # (BLOCK, BLOCK_N)
        x_j = load_rows(x, j, end + 1, h * P, offs_p, P)  # (BLOCK, BLOCK_P)
        state = product(tl.trans(B_j), x_j.to(weight.dtype) * weight[:, None], state, OPERAND, PRECISION)
    return state


@triton.jit
def chunk_state_kernel(
    B_ptr, x_ptr, steps_ptr, number_ptr, states_ptr, l, h, g,
    PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S = Σ_j exp(s_last - s_j) B_j dt_j x_jᵀ of each chunk but the last.

    B (b, l, g, n), x (b, l, h, p), steps -> states (b, c - 1, h, n, p).
    Grid: (b (c - 1), h, tiles of the state). Bytes: x, B and the states once. FLOPs: 2 b l h n p.
    """
    chunks = tl.cdiv(l, CHUNK) - 1
    row, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    first = row * l + chunk * CHUNK
    head = tl.program_id(1)
    offs_n = tl.program_id(2) // tl.cdiv(P, BLOCK_P) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_p = tl.program_id(2) % tl.cdiv(P, BLOCK_P) * BLOCK_P + tl.arange(0, BLOCK_P)
    state = sum_to_end(
        B_ptr + (first * g + head // (h // g)) * N, x_ptr + (first * h + head) * P,
        steps_ptr + (row * h + head) * (3 * l) + chunk * CHUNK, number_ptr + first,
        CHUNK - 1, l, h, g, offs_n, offs_p, PACKED, N, P, BLOCK, BLOCK_N, BLOCK_P, OPERAND, PRECISION,
    )  # fmt: skip
    out = states_ptr + (tl.program_id(0).to(tl.int64) * h + head) * (N * P)
    mask = (offs_n < N)[:, None] & (offs_p < P)[None, :]
    tl.store(out + offs_n[:, None] * P + offs_p[None, :], state, mask=mask)


@triton.jit
def state_passing_kernel(
    states_ptr, initial_ptr, steps_ptr, number_ptr, l, h,
    HAS_INITIAL: tl.constexpr, PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """E of the next chunk = exp(s_last) E + S, from chunk to chunk, in place: where S of chunk k was is E of k + 1.

    states (b, c - 1, h, n, p), initial (b, h, p, n). Grid: (b, h, n p / BLOCK): each element has a scan of its own.
    Bytes: the states read and written. FLOPs: 2 for each of their numbers.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    e = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)  # elements of a state, n major
    mask = e < N * P
    first = initial_ptr + (row * h + head) * (N * P)
    state = tl.load(first + (e % P) * N + e // P, mask=mask & HAS_INITIAL, other=0.0)  # (BLOCK,)
    steps = steps_ptr + (row * h + head) * (3 * l)
    chunks = tl.cdiv(l, CHUNK) - 1
    for chunk in range(chunks):
        last = chunk * CHUNK + CHUNK - 1
        state = tl.exp(tl.load(steps + l + last) + tl.load(steps + 2 * l + last)) * state
        if PACKED:
            numbers = number_ptr + row * l + chunk * CHUNK
            state = tl.where(tl.load(numbers + CHUNK - 1) == sequence_before(numbers, chunk), state, 0.0)
        here = states_ptr + ((row * chunks + chunk) * h + head) * (N * P) + e
        state += tl.load(here, mask=mask, other=0.0)  # (BLOCK,)
        tl.store(here, state, mask=mask)


@triton.jit
def chunk_scan_kernel(
    G_ptr, C_ptr, x_ptr, steps_ptr, number_ptr, states_ptr, initial_ptr, D_ptr, z_ptr, y_ptr, dy_ptr, dz_ptr, l, h, g,
    HAS_INITIAL: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, PACKED: tl.constexpr, BACKWARD: tl.constexpr,
    N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y_i = (Σ_{j≤i} exp(s_i - s_j) G_ij dt_j x_j + exp(s_i) C_i E + D x_i) silu(z_i).

    Grid: (b c, h, CHUNK / ROWS tiles of steps times p / BLOCK_P). Bytes: G, C, x, z, the states and y once.
    FLOPs: b l h p (CHUNK + 2 n).
    BACKWARD undoes the gate instead, and needs the same sum for that: from dy to dz, and to y the gradient of the sum.
    """
    row, chunk, begin, left = place(tl.program_id(0), l, CHUNK)
    head = tl.program_id(1)
    group = head // (h // g)
    tile = tl.program_id(2) // tl.cdiv(P, BLOCK_P)
    offs_p = tl.program_id(2) % tl.cdiv(P, BLOCK_P) * BLOCK_P + tl.arange(0, BLOCK_P)
    i = tile * ROWS + tl.arange(0, ROWS)
    steps = steps_ptr + (row * h + head) * (3 * l) + begin
    numbers = number_ptr + row * l + begin
    here = ((row * l + begin) * h + head) * P  # in x, z and y
    hi, lo = load_sums(steps, i, left, l)  # (ROWS,)
    y = tl.zeros((ROWS, BLOCK_P), steps_ptr.dtype.element_ty)
    if (chunk > 0) | HAS_INITIAL:  # from the steps before this chunk
        C = C_ptr + ((row * l + begin) * g + group) * N
        for start in range(0, N, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            C_i = load_rows(C, i, left, g * N, offs_n, N)  # (ROWS, BLOCK_N)
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
            y = product(C_i, E, y, OPERAND, PRECISION)
        y *= tl.exp(hi + lo)[:, None]
        if PACKED:
            y = tl.where((load_numbers(numbers, i, left) == sequence_before(numbers, chunk))[:, None], y, 0.0)
    G = G_ptr + (tl.program_id(0).to(tl.int64) * g + group) * (CHUNK * CHUNK)
    for start in range(0, (tile + 1) * ROWS, BLOCK):  # from the steps of this chunk
        j = start + tl.arange(0, BLOCK)
        kept = (j[None, :] <= i[:, None]) & (i < left)[:, None]
        if PACKED:
            kept = kept & (load_numbers(numbers, i, left)[:, None] == load_numbers(numbers, j, left)[None, :])
        hi_j, lo_j = load_sums(steps, j, left, l)  # (BLOCK,)
        dt = tl.load(steps + j, mask=j < left, other=0.0)  # (BLOCK,)
        M = tl.load(G + i[:, None] * CHUNK + j[None, :])  # (ROWS, BLOCK)
        M *= decay(hi[:, None], lo[:, None], hi_j[None, :], lo_j[None, :], kept) * dt[None, :]
        x = load_rows(x_ptr + here, j, left, h * P, offs_p, P)  # (BLOCK, BLOCK_P)
        y = product(M, x, y, OPERAND, PRECISION)
    if HAS_D:
        D = tl.load(D_ptr + head * P + offs_p, mask=offs_p < P, other=0.0)  # (BLOCK_P,)
        y += D[None, :] * load_rows(x_ptr + here, i, left, h * P, offs_p, P).to(y.dtype)
    mask = (i < left)[:, None] & (offs_p < P)[None, :]
    offs = i[:, None] * (h * P) + offs_p[None, :]
    if HAS_Z:
        z = tl.load(z_ptr + here + offs, mask=mask, other=0.0).to(y.dtype)  # (ROWS, BLOCK_P)
        gate = 1 / (1 + tl.exp(-z))
        if BACKWARD:
            dy = tl.load(dy_ptr + here + offs, mask=mask, other=0.0).to(y.dtype)  # (ROWS, BLOCK_P)
            tl.store(dz_ptr + here + offs, dy * y * gate * (1 + z * (1 - gate)), mask=mask)
            y = dy
        y *= z * gate
    tl.store(y_ptr + here + offs, y, mask=mask)


@triton.jit
def final_state_kernel(
    B_ptr, x_ptr, steps_ptr, number_ptr, ends_ptr, states_ptr, initial_ptr, final_ptr, l, h, g,
    HAS_INITIAL: tl.constexpr, PACKED: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state after a sequence's last step: exp(s_end) E + Σ_j exp(s_end - s_j) B_j dt_j x_jᵀ.

    final (s, h, p, n). Grid: (s, h, tiles of the state).
    Bytes: at most a chunk of x and B and two states for each sequence.
    """
    last = tl.load(ends_ptr + tl.program_id(0))
    row, last_in_row = last // l, (last % l).to(tl.int32)
    chunk, end = last_in_row // CHUNK, last_in_row % CHUNK
    first = row * l + chunk * CHUNK
    head = tl.program_id(1)
    offs_n = tl.program_id(2) // tl.cdiv(P, BLOCK_P) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_p = tl.program_id(2) % tl.cdiv(P, BLOCK_P) * BLOCK_P + tl.arange(0, BLOCK_P)
    steps = steps_ptr + (row * h + head) * (3 * l) + chunk * CHUNK
    numbers = number_ptr + first
    state = sum_to_end(
        B_ptr + (first * g + head // (h // g)) * N, x_ptr + (first * h + head) * P, steps, numbers,
        end, l, h, g, offs_n, offs_p, PACKED, N, P, BLOCK, BLOCK_N, BLOCK_P, OPERAND, PRECISION,
    )  # fmt: skip
    E = entering_state(
        states_ptr, initial_ptr, row, chunk, tl.cdiv(l, CHUNK), head, h, offs_n, offs_p, HAS_INITIAL, N, P
    )  # (BLOCK_N, BLOCK_P)
    E *= tl.exp(tl.load(steps + l + end) + tl.load(steps + 2 * l + end))
    if PACKED:
        E = tl.where(tl.load(numbers + end) == sequence_before(numbers, chunk), E, 0.0)
    out = final_ptr + (tl.program_id(0).to(tl.int64) * h + head) * (N * P)
    mask = (offs_n < N)[:, None] & (offs_p < P)[None, :]
    tl.store(out + offs_p[None, :] * N + offs_n[:, None], state + E, mask=mask)


def compilations() -> Iterator[Any]:
    """Each kernel with everything that is optional and with nothing, for float32 and a half type."""
    multiply = chunk_matrix_kernel, chunk_state_kernel, chunk_scan_kernel, final_state_kernel
    for dtype in ("fp32", "bf16"):
        for kernel in (*multiply, cumulative_sum_kernel, state_passing_kernel):
            yield compilation(kernel, dtype, " bare", **NOTHING)
            yield compilation(kernel, dtype, " packed", BACKWARD=False)
        yield compilation(chunk_scan_kernel, dtype, " gate's gradient", PACKED=False)
    for kernel in multiply:
        yield from tunings(compilation(kernel, "bf16", PACKED=False, BACKWARD=False))
