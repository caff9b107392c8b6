"""Rung 1: one thread for each row and channel, which walks through all of l.

    h_t = a_t h_{t-1} + b_t

Arrays: a, b, h (b, l, d); initial_state (b, d). Grid: one thread a row and channel, b d in all.
Bytes: a and b once, h once. Work: l multiplications and additions a channel, l steps deep.

Neighbouring threads hold neighbouring channels, so that the 32 threads of a warp read 32 neighbours in memory in one
access. With few rows and channels most of the GPU idles: the other rungs cut l into pieces. This one multiplies no
gates with each other, so its results are the sequence's own; and it takes complex numbers.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from numba import cuda
from torch import Tensor

from ssmcourse.kernels.linear_scan.numba_cuda.launch import SIMULATED, launch
from ssmcourse.kernels.linear_scan.numba_cuda.steps import time_of

THREADS = 32 if SIMULATED else 128


@cuda.jit
def scan_kernel(a, b, initial_state, h, reverse):
    rows, l, d = b.shape
    thread = cuda.grid(1)
    if thread >= rows * d:
        return
    i, k = thread // d, thread % d
    state = initial_state[i, k]
    for step in range(l):
        t = time_of(step, l, reverse)
        state = a[i, t, k] * state + b[i, t, k]
        h[i, t, k] = state


def scan(a: Tensor, b: Tensor, initial_state: Tensor, h: Tensor, reverse: bool) -> None:
    """Fill h."""
    rows, _, d = b.shape
    launch(scan_kernel, -(-rows * d // THREADS), THREADS, a, b, initial_state, h, reverse)
