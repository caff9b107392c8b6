"""Rung 3: a block scans one row and channel up and down a tree, with 2 (n - 1) combinations (Blelloch 1990).

    up:    right <- left then right                               from the leaves to the root: totals
    down:  left <- parent,  right <- parent then left's total     from the root: what comes before

`parent` is what comes before the whole of its part, and lies where the right child's total was. The root has nothing
before it, (1, 0). In the end element i holds what comes before step i: an exclusive scan.

Arrays: a, b, h (b, l, d); initial_state (b, d). Grid: a block a row and channel, n threads, n the power of two from l on.
Shared: 2 (n + n / 32) numbers. Bytes as for rung 2. Depth: 2 log2(n) rounds, in which fewer and fewer threads work.

Element k of the tree lies at k + k // 32: in round r the threads want elements 2^r apart, which without that gap are in
one of a few banks of shared memory, and wait for each other. (Harris, Sengupta & Owens, GPU Gems 3, chapter 39.)
Numbers of 8 bytes take two banks each; there half of the threads of a round still meet another.
"""

# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from numba import cuda
from torch import Tensor

from ssmcourse.kernels.linear_scan.numba_cuda.launch import MOST_THREADS, at_most, launch, power_of_two
from ssmcourse.kernels.linear_scan.numba_cuda.steps import device, load_step, then, time_of, times

BANKS = 32


@device
def place(k):
    """Where element k of the tree lies."""
    return k + k // BANKS


@device
def up_sweep(gates, states, i, n):
    """Totals: each right child becomes its parent."""
    distance = 1
    while distance < n:
        element = 2 * distance * (i + 1) - 1
        if element < n:
            left, right = place(element - distance), place(element)
            gates[right], states[right] = then(gates[left], states[left], gates[right], states[right])
        cuda.syncthreads()
        distance *= 2


@device
def down_sweep(gates, states, i, n):
    """What comes before: the left child takes its parent's, the right one that and then the left one's total."""
    distance = n // 2
    while distance > 0:
        element = 2 * distance * (i + 1) - 1
        if element < n:
            left, right = place(element - distance), place(element)
            gate, state = gates[left], states[left]
            gates[left], states[left] = gates[right], states[right]
            gates[right], states[right] = then(gates[right], states[right], gate, state)
        cuda.syncthreads()
        distance //= 2


@cuda.jit
def blelloch_kernel(a, b, initial_state, h, reverse):
    _, l, d = b.shape
    step, n = cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, a.dtype)
    gates, states = shared[: place(n)], shared[place(n) :]
    i, k = cuda.blockIdx.x // d, cuda.blockIdx.x % d
    gate, state = load_step(a, b, initial_state, i, step, k, reverse)
    gates[place(step)], states[place(step)] = gate, state
    cuda.syncthreads()
    up_sweep(gates, states, step, n)
    if step == 0:  # the thread that works alone at the root, on either way
        gates[place(n - 1)], states[place(n - 1)] = 1, 0
    down_sweep(gates, states, step, n)
    if step < l:
        h[i, time_of(step, l, reverse), k] = times(gate, states[place(step)]) + state


def scan(a: Tensor, b: Tensor, initial_state: Tensor, h: Tensor, reverse: bool) -> None:
    """Fill h."""
    rows, l, d = b.shape
    at_most(MOST_THREADS, l, "blelloch", "a thread a step, in one block")
    n = power_of_two(l)
    launch(blelloch_kernel, rows * d, n, a, b, initial_state, h, reverse, shared=2 * (n + n // BANKS))
