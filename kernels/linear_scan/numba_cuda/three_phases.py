"""Rung 6: any length, in three phases. (Harris, Sengupta & Owens, GPU Gems 3, chapter 39, for sums.)

    1. scan every tile as if nothing came before it: local states, and the products of gates up to each of them
    2. scan the tiles' totals: a linear scan like the one asked for, only shorter, so this function calls itself
    3. add what comes before:  h_t = product_t (state before the tile) + local_t

Arrays: a, b, h, products (b, l, d); totals and states after each tile (b, tiles, d), in the order of the scan.
Grid: a block a tile (rung 5), b ceil(d / 32) ceil(l / (segments STEPS)) of them. Bytes: a and b are read; h and the
products written, read, and h written again: 7 numbers a step, where 3 would do. The next rung does with 3.
"""

# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from numba import cuda
from torch import Tensor

from ssmcourse.kernels.linear_scan.numba_cuda import several_steps
from ssmcourse.kernels.linear_scan.numba_cuda.launch import SIMULATED, launch, like
from ssmcourse.kernels.linear_scan.numba_cuda.several_steps import (
    MOST_SEGMENTS,
    STEPS,
    first_step,
    load_steps,
    scan_tile,
    tile_of,
)
from ssmcourse.kernels.linear_scan.numba_cuda.steps import then, time_of, times

SEGMENTS = 2 if SIMULATED else MOST_SEGMENTS


@cuda.jit
def scan_tiles_kernel(a, b, h, products, total_gates, total_states, reverse):
    rows, l, d = b.shape
    gates = cuda.local.array(STEPS, a.dtype)
    inputs = cuda.local.array(STEPS, a.dtype)
    shared = cuda.shared.array(0, a.dtype)
    tile, i, k = tile_of(cuda.blockIdx.x, rows, d)
    first = first_step(tile)
    gate, state = load_steps(a, b, i, first, k, reverse, gates, inputs)
    gate, state, total_gate, total_state = scan_tile(gate, state, shared)
    for e in range(STEPS):
        gate, state = then(gate, state, gates[e], inputs[e])
        if first + e < l and k < d:
            t = time_of(first + e, l, reverse)
            products[i, t, k], h[i, t, k] = gate, state
    if cuda.threadIdx.y == 0 and k < d:
        total_gates[i, tile, k], total_states[i, tile, k] = total_gate, total_state


@cuda.jit
def add_kernel(products, initial_state, after, h, reverse):
    rows, l, d = h.shape
    tile, i, k = tile_of(cuda.blockIdx.x, rows, d)
    first = first_step(tile)
    if k < d:
        entering = after[i, tile - 1, k] if tile > 0 else initial_state[i, k]
        for e in range(STEPS):
            if first + e < l:
                t = time_of(first + e, l, reverse)
                h[i, t, k] = times(products[i, t, k], entering) + h[i, t, k]


def scan(
    a: Tensor, b: Tensor, initial_state: Tensor, h: Tensor, reverse: bool, segments: int = SEGMENTS
) -> None:
    """Fill h."""
    rows, l, d = b.shape
    if l <= segments * STEPS:
        several_steps.scan(a, b, initial_state, h, reverse)
        return
    blocks, threads, shared = several_steps.tiles(b, segments)
    products = like(b, rows, l, d)
    total_gates, total_states, after = (like(b, rows, -(-l // (segments * STEPS)), d) for _ in range(3))
    launch(
        scan_tiles_kernel, blocks, threads, a, b, h, products, total_gates, total_states, reverse, shared=shared,
    )  # fmt: skip
    scan(total_gates, total_states, initial_state, after, False, segments)
    launch(add_kernel, blocks, threads, products, initial_state, after, h, reverse)
