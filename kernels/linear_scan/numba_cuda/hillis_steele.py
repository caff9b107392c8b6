"""Rung 2: a block scans one row and channel, one step a thread, in log2(l) rounds (Hillis & Steele 1986).

    round r:  pair_i <- pair_{i - 2^r} then pair_i      for all i >= 2^r at once

After round r each pair covers 2^(r+1) steps. A thread reads its neighbour's pair while the neighbour writes it, so there
are two buffers: a round reads one and writes the other, and one barrier a round will do.

Arrays: a, b, h (b, l, d); initial_state (b, d). Grid: a block a row and channel, l threads. Shared: 4 l numbers.
Work: n log2(n) - n + 1 combinations for n = l; the sequence needs n - 1. Bytes: a, b and h once, but the threads of a
warp lie d apart in memory, so each access of four bytes moves a sector of 32. The rungs from 5 on cure both.
"""

# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from numba import cuda
from torch import Tensor

from ssmcourse.kernels.linear_scan.numba_cuda.launch import MOST_THREADS, at_most, launch
from ssmcourse.kernels.linear_scan.numba_cuda.steps import device, load_step, then, time_of


@device
def scan_block(gate, state, shared, i, n, column, columns):
    """Scan n pairs, and that in several columns at once; this thread brings pair i of its column.

    shared: 4 n columns numbers: gates and states, two buffers of each. Returns the thread's own pair, scanned, and where
    in `shared` the buffer with all scanned gates begins; the states follow 2 n columns later.
    """
    size = n * columns
    gates, states = shared[: 2 * size], shared[2 * size : 4 * size]
    at, buffer = i * columns + column, 0
    gates[at], states[at] = gate, state
    cuda.syncthreads()
    distance = 1
    while distance < n:
        if i >= distance:
            left = buffer + at - distance * columns
            gate, state = then(gates[left], states[left], gate, state)
        buffer = size - buffer
        gates[buffer + at], states[buffer + at] = gate, state
        cuda.syncthreads()
        distance *= 2
    return gate, state, buffer


@cuda.jit
def hillis_steele_kernel(a, b, initial_state, h, reverse):
    _, l, d = b.shape
    shared = cuda.shared.array(0, a.dtype)
    step = cuda.threadIdx.x
    i, k = cuda.blockIdx.x // d, cuda.blockIdx.x % d
    gate, state = load_step(a, b, initial_state, i, step, k, reverse)
    gate, state, _ = scan_block(gate, state, shared, step, cuda.blockDim.x, 0, 1)
    if step < l:
        h[i, time_of(step, l, reverse), k] = state


def scan(a: Tensor, b: Tensor, initial_state: Tensor, h: Tensor, reverse: bool) -> None:
    """Fill h."""
    rows, l, d = b.shape
    at_most(MOST_THREADS, l, "hillis_steele", "a thread a step, in one block")
    launch(hillis_steele_kernel, rows * d, l, a, b, initial_state, h, reverse, shared=4 * l)
