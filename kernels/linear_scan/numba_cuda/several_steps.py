"""Rung 5: several steps a thread, and 32 neighbouring channels a block.

    1. a thread loads STEPS steps of its channel into registers and combines them, one after another
    2. the block scans the threads' totals, in shared memory as rung 2 does, in 32 columns side by side
    3. a thread goes on from the state before its steps, and writes the STEPS states that follow

A block is a tile: x, 32 channels (the lanes of a warp); y, segments of STEPS steps (its warps). So a warp reads 32
neighbours in memory at once, and in shared memory each lane has a bank of its own. Of fewer channels, some lanes have none.

Arrays: a, b, h (b, l, d); initial_state (b, d). Grid: a block a row and strip of 32 channels. Shared: 128 numbers a
segment. Bytes: a, b and h once. Work: a combination a step and the step itself, and log2(segments) / STEPS combinations more.

In the last pass the gates are those that were given: only the state before a thread's steps comes from products of
gates. The two rungs above take tiles from here.
"""

# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from numba import cuda
from torch import Tensor

from ssmcourse.kernels.linear_scan.numba_cuda.hillis_steele import scan_block
from ssmcourse.kernels.linear_scan.numba_cuda.launch import WARP, at_most, launch, power_of_two
from ssmcourse.kernels.linear_scan.numba_cuda.steps import device, then, time_of, times

STEPS = 8  # of a thread; their gates and inputs are in registers: 16, or 32 in float64
MOST_SEGMENTS = 16  # of a tile: 512 threads, for which a GPU has up to 128 registers each


@device
def tile_of(block, rows, d):
    """Which tile is block number `block`'s: its number along l, its row, and this thread's channel."""
    strips = (d + WARP - 1) // WARP
    return block // (rows * strips), block // strips % rows, block % strips * WARP + cuda.threadIdx.x


@device
def first_step(tile):
    """The first of this thread's steps."""
    return (tile * cuda.blockDim.y + cuda.threadIdx.y) * STEPS


@device
def load_steps(a, b, i, first, k, reverse, gates, inputs):
    """Fill the registers, with (1, 0) where there is no step or no channel. Returns their total, a pair."""
    _, l, d = b.shape
    total_gate, total_state = a.dtype.type(1), a.dtype.type(0)
    for e in range(STEPS):
        gates[e], inputs[e] = 1, 0
        if first + e < l and k < d:
            t = time_of(first + e, l, reverse)
            gates[e], inputs[e] = a[i, t, k], b[i, t, k]
    for e in range(STEPS):
        total_gate, total_state = then(total_gate, total_state, gates[e], inputs[e])
    return total_gate, total_state


@device
def scan_tile(gate, state, shared):
    """From each thread's total to what comes before it in the tile, and the total of the tile: two pairs."""
    segment, segments, lane = cuda.threadIdx.y, cuda.blockDim.y, cuda.threadIdx.x
    _, _, buffer = scan_block(gate, state, shared, segment, segments, lane, WARP)
    gates, states = shared[buffer:], shared[buffer + 2 * segments * WARP :]
    at, last = (segment - 1) * WARP + lane, (segments - 1) * WARP + lane
    before_gate = gates[at] if segment > 0 else shared.dtype.type(1)
    before_state = states[at] if segment > 0 else shared.dtype.type(0)
    return before_gate, before_state, gates[last], states[last]


@device
def walk(gates, inputs, state, h, i, first, k, reverse):
    """From the state before a thread's steps through all of them."""
    _, l, d = h.shape
    for e in range(STEPS):
        state = times(gates[e], state) + inputs[e]
        if first + e < l and k < d:
            h[i, time_of(first + e, l, reverse), k] = state


@cuda.jit
def several_steps_kernel(a, b, initial_state, h, reverse):
    rows, _, d = b.shape
    gates, inputs = cuda.local.array(STEPS, a.dtype), cuda.local.array(STEPS, a.dtype)
    shared = cuda.shared.array(0, a.dtype)
    tile, i, k = tile_of(cuda.blockIdx.x, rows, d)
    first = first_step(tile)
    gate, state = load_steps(a, b, i, first, k, reverse, gates, inputs)
    gate, state, _, _ = scan_tile(gate, state, shared)
    entering = initial_state[i, k] if k < d else a.dtype.type(0)
    walk(gates, inputs, times(gate, entering) + state, h, i, first, k, reverse)


def scan(a: Tensor, b: Tensor, initial_state: Tensor, h: Tensor, reverse: bool) -> None:
    """Fill h."""
    l = b.shape[1]
    at_most(MOST_SEGMENTS * STEPS, l, "several_steps", f"{STEPS} steps a thread, in one block")
    segments = power_of_two(-(-l // STEPS))
    blocks, threads, shared = tiles(b, segments)
    launch(several_steps_kernel, blocks, threads, a, b, initial_state, h, reverse, shared=shared)


def tiles(b: Tensor, segments: int) -> tuple[int, tuple[int, int], int]:
    """Blocks, threads of a block and numbers in shared memory, for tiles of so many segments."""
    rows, l, d = b.shape
    blocks = rows * -(-d // WARP) * -(-l // (segments * STEPS))
    return blocks, (WARP, segments), 4 * segments * WARP
