"""What the kernels of the selective scan are given, how they read and write it, and who does what.

A job takes some rows, a piece of l and a block of channels. Where rows and blocks are too few for the
threads, l is cut into pieces: all run once from zero states, to learn what they add, then once more from
the states that truly enter them. What a piece makes of a state is known without running it:

    h -> exp(A * (sum of dt)) h + what it adds
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, widen
from ssmcourse.kernels.selective_scan.cpu_steps import apart
from ssmcourse.kernels.selective_scan.operator import CHUNK
from ssmcourse.kernels.vector_math import LOG2, inner, softplus

BLOCK = 256  # channels at most
BLOCK_STATES = 4096  # n of each channel; with more, states and rates leave the first level of cache
BLOCK_AT_LEAST = 32  # channels; with fewer, starting the inner loop costs more than a second thread brings
PIECE_AT_LEAST = 8 * CHUNK  # steps

Range = tuple[int, int]
Block = tuple[Range, int]  # channels, and the group they are of
Remains = Callable[[Tensor], Tensor]  # a state (b, d, n) -> what a piece of l leaves of it


class Given(NamedTuple):
    """The arguments as the kernels read them: of the dtype computed in, activations perhaps of a half type beside
    float32; of z and sequence size 0 if absent."""

    x: np.ndarray  # (b, l, d); dt and z too
    dt: np.ndarray
    B: np.ndarray  # (b, l, g, n), or (1, 1, d, n) where constant in time; C too
    C: np.ndarray
    B_moves: bool  # it is not constant in time
    C_moves: bool
    rows: int | None  # 1: a block keeps rows of B and C, not numbers; see cpu_steps.py
    z: np.ndarray
    rate: np.ndarray  # (n, d): A / log 2
    D: np.ndarray  # (d,), zero if absent
    dt_bias: np.ndarray  # (d,), zero if absent
    sequence: np.ndarray  # (b, l)
    softplus: bool
    twice: np.floating  # 2 where states are complex (each stands for its conjugate too), else 1


class Job(NamedTuple):
    """One call of a kernel. The channels are of one group, unless B and C are kept as rows."""

    rows: Range
    steps: Range
    channels: Range
    group: int


def read_arguments(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, sequence: Tensor | None, dt_softplus: bool,
) -> Given:  # fmt: skip
    """The tensors as arrays, without a copy where they are contiguous and of the dtype computed in or half types."""
    d, stored = x.shape[2], dtype_of_activations(x, A)
    of_B = A.dtype if A.is_complex() else stored
    rate = as_array(A.T / LOG2)
    zeros, x_array = np.zeros(d, rate.real.dtype), as_array(x.to(stored))
    as_rows = any(M.ndim == 2 or M.shape[2] * 16 > d > M.shape[2] > 1 for M in (B, C))
    return Given(
        x=x_array,
        dt=as_array(dt.to(stored)),
        B=as_array((B[None, None] if B.ndim == 2 else B).to(of_B)),
        C=as_array((C[None, None] if C.ndim == 2 else C).to(of_B)),
        B_moves=B.ndim == 4,
        C_moves=C.ndim == 4,
        rows=1 if as_rows else None,
        z=np.empty((0, 0, 0), x_array.dtype) if z is None else as_array(z.to(stored)),
        rate=rate,
        D=zeros if D is None else as_array(D),
        dt_bias=zeros if dt_bias is None else as_array(dt_bias),
        sequence=np.empty((0, 0), np.int64) if sequence is None else as_array(sequence),
        softplus=dt_softplus,
        twice=zeros.dtype.type(2 if A.is_complex() else 1),
    )


def dtype_of_activations(x: Tensor, A: Tensor) -> torch.dtype:
    """What x, dt, z, y and their gradients are in memory: half types beside float32 are converted in the kernel."""
    real = A.dtype.to_real()
    return x.dtype if real == torch.float32 else real


# --- Reading and writing in a kernel ------------------------------------------------------------


@inner
def last_step(sequence, i, begin, end):
    """Where a segment ends that begins there: a run of steps of one chunk and one sequence."""
    t = begin + 1
    while t < end and t % CHUNK != 0 and not starts(sequence, i, t):
        t += 1
    return t


@inner
def first_step(sequence, i, begin, end):
    """Where a segment begins that ends there."""
    t = end - 1
    while t > begin and t % CHUNK != 0 and not starts(sequence, i, t):
        t -= 1
    return t


@inner
def starts(sequence, i, t):
    """Whether a packed sequence starts at step t, the row's first not counted."""
    return sequence.size > 0 and t > 0 and sequence[i, t] != sequence[i, t - 1]


@inner
def read_steps(x_all, dt_all, i, begin, end, lo, bias, to_positive, x, dt, u):
    """Rows (w,) of x, of dt after bias and softplus, and of their product."""
    apart()
    for s in range(end - begin):
        x_t, dt_t = x_all[i, begin + s, lo : lo + bias.size], dt_all[i, begin + s, lo : lo + bias.size]
        x_s, dt_s, u_s = x[s], dt[s], u[s]
        if to_positive:
            for k in range(bias.size):
                x_s[k] = widen(x_t[k])
                dt_s[k] = softplus(widen(dt_t[k]) + bias[k])
                u_s[k] = x_s[k] * dt_s[k]
        else:
            for k in range(bias.size):
                x_s[k] = widen(x_t[k])
                dt_s[k] = widen(dt_t[k]) + bias[k]
                u_s[k] = x_s[k] * dt_s[k]


@inner
def read_state(states, i, lo, h):
    """h (n, w) from states (b, d, n)."""
    for j in range(h.shape[0]):
        for k in range(h.shape[1]):
            h[j, k] = states[i, lo + k, j]


@inner
def write_state(h, states, i, lo):
    for j in range(h.shape[0]):
        for k in range(h.shape[1]):
            states[i, lo + k, j] = h[j, k]


@inner
def read_kept(kept, i, chunk, lo, h):
    """h (n, w). Written out: for `h[:] = kept[...]` Numba compiles seconds of error messages."""
    for j in range(h.shape[0]):
        h_j, kept_j = h[j], kept[i, chunk, j, lo : lo + h.shape[1]]
        for k in range(h.shape[1]):
            h_j[k] = kept_j[k]


@inner
def write_kept(h, kept, i, chunk, lo):
    for j in range(h.shape[0]):
        h_j, kept_j = h[j], kept[i, chunk, j, lo : lo + h.shape[1]]
        for k in range(h.shape[1]):
            kept_j[k] = h_j[k]


@inner
def forget_the_smallest(h):
    """Zero for what is no normal float any more: on such numbers arithmetic takes 30 times as long."""
    smallest = np.finfo(h.dtype).tiny
    for j in range(h.shape[0]):
        h_j = h[j]
        for k in range(h.shape[1]):
            h_j[k] = 0 if abs(h_j[k]) < smallest else h_j[k]


def new_coefficients(rows: int | None, moves: bool, rate: Any) -> Any:
    """Where a job keeps what a segment's steps use of B or C: numbers (s, n), or rows (s, n, w)."""
    raise NotImplementedError("only compiled code calls this")


def read_coefficients(B: Any, i: int, begin: int, end: int, lo: int, group: int, d: int, now: Any) -> None:
    """What these steps use of B (b, l, g, n): that of the group, or that of channels lo, lo + 1, ... of d."""
    raise NotImplementedError("only compiled code calls this")


@overload(new_coefficients)
def _new_coefficients(rows, moves, rate):
    def new_numbers(rows, moves, rate):
        return np.zeros((CHUNK if moves else 1, rate.shape[0]), rate.dtype)

    def new_rows(rows, moves, rate):
        return np.zeros((CHUNK if moves else 1, *rate.shape), rate.dtype)

    return new_numbers if isinstance(rows, types.NoneType) else new_rows


@overload(read_coefficients)
def _read_coefficients(B, i, begin, end, lo, group, d, now):
    def read_numbers(B, i, begin, end, lo, group, d, now):
        for s in range(end - begin):
            B_t, now_s = B[i, begin + s, min(group, B.shape[2] - 1)], now[s]
            for j in range(now_s.size):
                now_s[j] = widen(B_t[j])

    def read_rows(B, i, begin, end, lo, group, d, now):
        each = d // B.shape[2]
        for s in range(end - begin):
            for k in range(now.shape[2]):
                B_k = B[i, begin + s, (lo + k) // each]
                for j in range(now.shape[1]):
                    now[s, j, k] = widen(B_k[j])

    return read_numbers if now.ndim == 2 else read_rows


# --- Who does what ----------------------------------------------------------------------------


def share_out(given: Given) -> tuple[list[Range], list[Range], list[Block]]:
    """Pieces of l, rows, and blocks of channels: as many jobs as divide evenly among the threads, if possible."""
    (b, l, d), n = given.x.shape, len(given.rate)
    threads, g = torch.get_num_threads(), groups(given)
    channels = d // g
    widest = min(BLOCK, max(64, BLOCK_STATES // max(1, n)))
    unit = min(threads // math.gcd(b * g, threads), max(1, channels // BLOCK_AT_LEAST))
    each = -(-channels // (widest * unit)) * unit
    blocks = [
        ((lo + channels * group, hi + channels * group), group)
        for group in range(g)
        for lo, hi in cut(channels, each, unit=16)
        if lo < hi
    ]
    rows = cut(b, 1 if threads == 1 else 4 * threads)
    idle = threads // max(1, len(rows) * len(blocks))
    return cut(l, idle if idle > 2 else 1, PIECE_AT_LEAST, CHUNK), rows, blocks


def groups(given: Given) -> int:
    """How many groups of channels are blocks of their own; rows may be of several."""
    return max(given.B.shape[2], given.C.shape[2]) if given.rows is None else 1


def cut(n: int, parts: int, at_least: int = 1, unit: int = 1) -> list[Range]:
    """0 to n in at most so many ranges of about equal length, all but the last whole units (of 16: SIMD)."""
    parts = max(1, min(parts, n // at_least))
    edges = [n * p // parts // unit * unit for p in range(parts)] + [n]
    return list(itertools.pairwise(edges))


def entering_states(
    first: np.ndarray, remains: list[Remains], run_pieces: Callable[[list[np.ndarray]], list[np.ndarray]]
) -> list[np.ndarray]:
    """The state (b, d, n) that enters each piece.

    Args:
        remains: what each piece leaves of a state, the last one's left out; in the order of passing through.
        run_pieces: states that enter the first pieces -> those that leave them.
    """
    states = [first]
    if remains:
        added = run_pieces([np.zeros_like(first)] * len(remains))
        for of, own in zip(remains, added, strict=True):  # by torch: NumPy would warn of infinity and NaN
            states.append((of(torch.from_numpy(states[-1])) + torch.from_numpy(own)).numpy())
    return states


def remains_of(
    dt: Tensor, A: Tensor, dt_bias: Tensor | None, sequence: Tensor | None, dt_softplus: bool, piece: Range
) -> Remains:
    """h -> exp(A * (sum of dt)) h, what the steps of a piece leave of a state; nothing if a sequence starts there."""
    begin, end = piece
    steps = dt[:, begin:end].to(A.dtype.to_real())
    if dt_bias is not None:
        steps = steps + dt_bias
    if dt_softplus:
        steps = torch.nn.functional.softplus(steps, threshold=40)
    left = torch.exp(steps.sum(1)[..., None] * A)
    new = None
    if sequence is not None:
        new = (sequence[:, max(begin - 1, 0)] != sequence[:, end - 1])[:, None, None]

    def of(h: Tensor) -> Tensor:
        kept = torch.where(h == 0, 0, left * h)  # where A > 0, `left` may be infinite
        return kept if new is None else torch.where(new, 0, kept)  # not 0 * h: that keeps a NaN

    return of
