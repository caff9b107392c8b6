"""Implicit attention matrices on the CPU: loops compiled by Numba, columns in the inner one.

A tile of columns goes down the rows of M. Its states (n, tile) stay in the cache next to the core, and the
inner loop runs over neighbours in memory, which the compiler turns into SIMD instructions. The upper
triangle is never touched: NumPy's zeros are pages that nobody has asked for yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels.arrays import as_array
from ssmcourse.kernels.implicit_attention import operator
from ssmcourse.kernels.threads import native, run

TILE = 256  # columns; 16 states of them are 16 kB
LANES = 16  # the inner loop ends on a multiple, or its rest would be done one by one
PARALLEL_FROM = 1 << 24  # products, 2 ms; below, torch's threads are in the way, which spin after their work


# --- Kernels ----------------------------------------------------------------------------------


@native
def _decayed(gate, state, floor):
    """gate * state, and 0 once that is below `floor`: arithmetic on denormals would take 100 times as long."""
    s = gate * state
    return s * (not ((np.abs(s.real) < floor) & (np.abs(s.imag) < floor)))


@native
def _matrix(a, B_bar, C, M, lo, hi, floor):
    """Tiles lo to hi of M, counted row by row. M is 0 on entry, and stays so above the diagonal."""
    l, n = a.shape[1:]
    tiles = (l + TILE - 1) // TILE
    S = np.zeros((n, TILE), a.dtype)
    for tile in range(lo, hi):
        r, left = tile // tiles, tile % tiles * TILE
        right = min(left + TILE, l)
        for i in range(left, l):
            begun = min(i, right) - left  # columns with a state that decays in step i
            wide = min((begun + LANES - 1) // LANES * LANES, right - left)
            M_i = M[r, i, left : left + wide]
            for k in range(n):
                gate, c, S_k = a[r, i, k], C[r, i, k], S[k, :wide]
                for j in range(wide):
                    S_k[j] = _decayed(gate, S_k[j], floor)
                    M_i[j] += c * S_k[j]
            M_i[begun:] = 0  # what a NaN in a lane too many has left
            if i < right:
                S[:, i - left] = B_bar[r, i]
                for k in range(n):
                    M[r, i, i] += C[r, i, k] * B_bar[r, i, k]


@native
def _gradient(dM, a, B_bar, C, dlog_a, dB_bar, dC, lo, hi, floor):
    """Rows lo to hi. One state at a time: its S_ij of a whole tile is kept, (l, tile), for the way up."""
    l, n = a.shape[1:]
    S = np.zeros((l, TILE), a.dtype)
    dS, to_a, to_C = np.empty(TILE, a.dtype), np.empty(TILE, a.dtype), np.empty(TILE, a.dtype)
    for r in range(lo, hi):
        for left in range(0, l, TILE):
            right = min(left + TILE, l)
            for k in range(n):
                for i in range(left, l):
                    S_i, S_before = S[i - left], S[max(i - left - 1, 0)]
                    for j in range(min(i, right) - left):
                        S_i[j] = _decayed(a[r, i, k], S_before[j], floor)
                    if i < right:
                        S_i[i - left] = B_bar[r, i, k]
                dS[:] = 0
                gate = a[r, l - 1, k]
                for i in range(l - 1, left - 1, -1):
                    begun = min(i, right) - left
                    alive = min(i + 1, right) - left
                    c, S_i, dM_i = np.conj(C[r, i, k]), S[i - left], dM[r, i, left:right]
                    for j in range(alive):
                        dS[j] = dM_i[j] * c + _decayed(gate, dS[j], floor)
                        to_a[j] = dS[j] * np.conj(S_i[j])
                        to_C[j] = dM_i[j] * np.conj(S_i[j])
                    gate = np.conj(a[r, i, k])
                    if begun > 0:
                        dlog_a[r, i, k] += _total(to_a, begun)
                    dC[r, i, k] += _total(to_C, alive)
                    if i < right:
                        dB_bar[r, i, k] = dS[i - left]


@native
def _total(x, n):
    """The sum of the first n >= 1, which are overwritten: the upper half is added to the lower, again and again."""
    while n > 1:
        half = (n + 1) // 2
        for j in range(n - half):
            x[j] += x[half + j]
        n = half
    return x[0]


# --- Who does what ----------------------------------------------------------------------------


def matrix(log_a: Tensor, B_bar: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """M (r, l, l) of `semiseparable_matrix`, for arguments (r, l, n) and D (r,); and the gates exp(log_a)."""
    gates = log_a.detach().contiguous().exp()
    a, inputs, outputs = as_array(gates), as_array(B_bar), as_array(C)
    rows, l, n = a.shape
    M = np.zeros((rows, l, l), a.dtype)
    tiles = rows * -(-l // TILE)
    run(_matrix, [(a, inputs, outputs, M, *part, _floor(a)) for part in _cut(tiles, rows * l * l * n)])
    if D is not None:
        np.einsum("rii -> ri", M)[...] += as_array(D)[:, None]
    return torch.from_numpy(M), gates


def gradient(
    upstream: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
    log_a: Tensor,
    B_bar: Tensor,
    C: Tensor,
    D: Tensor | None,
) -> list[Tensor]:
    """dlog_a, dB_bar, dC and, where D is given, dD."""
    dM = as_array(upstream[0])
    arrays = as_array(outputs[1]), as_array(B_bar), as_array(C)
    found = [np.zeros_like(arrays[0]), np.empty_like(arrays[1]), np.zeros_like(arrays[2])]
    rows, l, n = arrays[0].shape
    parts = _cut(rows, rows * l * l * n)
    run(_gradient, [(dM, *arrays, *found, *part, _floor(dM)) for part in parts])
    if D is not None:
        found.append(np.einsum("rii -> r", dM))
    return [torch.from_numpy(array) for array in found]


def _cut(n: int, work: int) -> Iterator[tuple[int, int]]:
    """n tiles or rows in parts, some more than there are threads: those on the left take longer."""
    threads = torch.get_num_threads()
    parts = min(n, 4 * threads) if threads > 1 and work >= PARALLEL_FROM else 1
    return ((n * p // parts, n * (p + 1) // parts) for p in range(parts))


def _floor(array: np.ndarray) -> np.floating:
    """What counts as decayed to nothing: next to the smallest normal number of its dtype."""
    real = array.real.dtype.type
    return real(16) * np.finfo(real).tiny


semiseparable_matrix = operator.register("cpu", matrix, gradient)
