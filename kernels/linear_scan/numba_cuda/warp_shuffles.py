"""Rung 4: a block scans one row and channel in its warps first; lanes of a warp hand each other registers.

    1. each warp scans its 32 steps by Hillis & Steele, with shuffles in place of shared memory and barriers
    2. the first warp scans the totals of all warps, of which there are 32 at most
    3. each thread goes on from what comes before its warp

Arrays: a, b, h (b, l, d); initial_state (b, d). Grid: a block a row and channel, l threads up to the next multiple of 32.
Shared: 64 numbers. Bytes as for rung 2. Two barriers, where rung 2 has 1 + log2(l): shuffles keep a warp together.
"""

# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from numba import cuda
from torch import Tensor

from ssmcourse.kernels.linear_scan.numba_cuda.launch import MOST_THREADS, WARP, at_most, launch
from ssmcourse.kernels.linear_scan.numba_cuda.steps import device, load_step, then, time_of, times

ALL_LANES = 0xFFFFFFFF


@device
def scan_warp(gate, state, lane):
    """Scan the 32 pairs of a warp; each lane brings one and gets it back scanned."""
    distance = 1
    while distance < WARP:
        left_gate = cuda.shfl_up_sync(ALL_LANES, gate, distance)
        left_state = cuda.shfl_up_sync(ALL_LANES, state, distance)
        if lane >= distance:
            gate, state = then(left_gate, left_state, gate, state)
        distance *= 2
    return gate, state


@cuda.jit
def warp_shuffles_kernel(a, b, initial_state, h, reverse):
    _, l, d = b.shape
    total_gates = cuda.shared.array(WARP, a.dtype)
    total_states = cuda.shared.array(WARP, a.dtype)
    step = cuda.threadIdx.x
    warp, lane = step // WARP, step % WARP
    i, k = cuda.blockIdx.x // d, cuda.blockIdx.x % d
    gate, state = load_step(a, b, initial_state, i, step, k, reverse)
    gate, state = scan_warp(gate, state, lane)
    if lane == WARP - 1:
        total_gates[warp], total_states[warp] = gate, state
    cuda.syncthreads()
    if warp == 0:
        there = lane < cuda.blockDim.x // WARP
        total_gate = total_gates[lane] if there else a.dtype.type(1)
        total_state = total_states[lane] if there else a.dtype.type(0)
        _, total_states[lane] = scan_warp(total_gate, total_state, lane)
    cuda.syncthreads()
    if warp > 0:
        state = times(gate, total_states[warp - 1]) + state
    if step < l:
        h[i, time_of(step, l, reverse), k] = state


def scan(a: Tensor, b: Tensor, initial_state: Tensor, h: Tensor, reverse: bool) -> None:
    """Fill h."""
    rows, l, d = b.shape
    at_most(MOST_THREADS, l, "warp_shuffles", "a thread a step, in one block")
    launch(warp_shuffles_kernel, rows * d, -(-l // WARP) * WARP, a, b, initial_state, h, reverse)
