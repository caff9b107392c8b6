"""The matrix products of matmul.py on a CPU: a few systems at a time, on our own threads, gradients by hand.

Torch would cut every one of the many small products in two for two threads, and where another program holds one
of the cores, each waits for it: a hundred times slower was measured. Here a thread takes some systems, as many
as fit into its cache, and goes through all of their products by itself. The gradient makes the tables again, so
nothing but the arguments is kept.

For Z = X Y, dX = dZ Y^H and dY = X^H dZ; a table that was doubled, T = [T', T' P], gives dT' = dT_1 + dT_2 P^H and
dP = T'^H dT_2, and a square, P_{k+1} = P_k P_k, dP_k = dP_{k+1} P_k^H + P_k^H dP_{k+1}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels.s4_kernels import operator
from ssmcourse.kernels.s4_kernels.matmul import BLOCK, LEAPS, TINY, columns_of
from ssmcourse.kernels.threads import run

Array = np.ndarray


# --- A dense matrix -----------------------------------------------------------------------------


class Tables(NamedTuple):
    """What the kernel is the product of, and what made it. `turn`: the power that the rows begin with."""

    powers: list[Array]  # A^(2^k), (h, n, n)
    columns: Array  # A^i B, (h, n, I)
    leaps: list[Array]  # C A^(I j), some rows j at a time, each (h, width, n)
    turn: int


def _tables(A: Array, B: Array, C: Array, l: int) -> Tables:
    powers, columns, rows = [A], B[:, :, None], C[:, None]
    while columns.shape[2] < columns_of(l):
        columns = np.concatenate([columns, powers[-1] @ columns], 2)
        powers.append(_squared(powers))
    turn, count = len(powers) - 1, -(-l // columns.shape[2])
    while rows.shape[1] * LEAPS < count:
        rows = np.concatenate([rows, rows @ powers[-1]], 1)
        powers.append(_squared(powers))
    leaps = [rows]
    while len(leaps) * rows.shape[1] < count:
        leaps.append(leaps[-1] @ powers[-1])
    for table in (columns, *leaps):
        _flush(table, TINY)
    return Tables(powers, columns, leaps, turn)


def _dense(A: Array, B: Array, C: Array, K: Array) -> None:
    tables = _tables(A, B, C, K.shape[1])
    product = np.concatenate(tables.leaps, 1) @ tables.columns
    K[:] = product.reshape(len(K), -1)[:, : K.shape[1]]


def _dense_gradient(A: Array, B: Array, C: Array, dK: Array, dA: Array, dB: Array, dC: Array) -> None:
    powers, columns, leaps, turn = _tables(A, B, C, dK.shape[1])
    d_product = _padded(dK, len(leaps) * leaps[0].shape[1], columns.shape[2])
    d_columns = _adjoint(np.concatenate(leaps, 1)) @ d_product
    d_leaps = np.split(d_product @ _adjoint(columns), len(leaps), 1)
    last = _adjoint(powers[-1])
    for k in range(len(leaps) - 1, 0, -1):
        d_leaps[k - 1] = d_leaps[k - 1] + d_leaps[k] @ last
    d_powers = [np.zeros_like(A) for _ in powers]
    if len(leaps) > 1:
        d_powers[-1] += _adjoint(np.concatenate(leaps[:-1], 1)) @ np.concatenate(d_leaps[1:], 1)
    d_rows = d_leaps[0]
    for k in range(len(powers) - 2, turn - 1, -1):
        half = d_rows.shape[1] // 2
        d_powers[k] += _adjoint(leaps[0][:, :half]) @ d_rows[:, half:]
        d_rows = d_rows[:, :half] + d_rows[:, half:] @ _adjoint(powers[k])
    for k in range(turn - 1, -1, -1):
        half = d_columns.shape[2] // 2
        d_powers[k] += d_columns[:, :, half:] @ _adjoint(columns[:, :, :half])
        d_columns = d_columns[:, :, :half] + _adjoint(powers[k]) @ d_columns[:, :, half:]
    for k in range(len(powers) - 1, 0, -1):
        before = _adjoint(powers[k - 1])
        d_powers[k - 1] += d_powers[k] @ before + before @ d_powers[k]
    dA[:], dB[:], dC[:] = d_powers[0], d_columns[:, :, 0], d_rows[:, 0]


def _squared(powers: list[Array]) -> Array:
    """The next power; flushed at every second, and there at the root of TINY: that lasts for two products."""
    square = powers[-1] @ powers[-1]
    return _flush(square, TINY**0.5) if len(powers) % 2 == 0 else square


def _adjoint(value: Array) -> Array:
    turned = value.swapaxes(1, 2)
    return turned.conj() if np.iscomplexobj(value) else turned


# --- A diagonal one -------------------------------------------------------------------------------


def _modes(weight: Array, z: Array, l: int) -> tuple[list[Array], Array, Array, int]:
    """z^(2^k), (h, n); z^i, i < I, (h, I, n); weight z^(I j), (h, J, n); the power that the last begins with."""
    powers, tables, turn = [z], [], 0
    for first, count in ((np.ones_like(z), columns_of(l)), (weight, -(-l // columns_of(l)))):
        turn, table = len(powers) - 1, first[:, None]
        while table.shape[1] < count:
            table = np.concatenate([table, table[:, : count - table.shape[1]] * powers[-1][:, None]], 1)
            powers.append(_flush(powers[-1] * powers[-1], TINY))
        tables.append(_flush(table, TINY))
    return powers, *tables, turn


def _vandermonde(weight: Array, z: Array, K: Array) -> None:
    _, inner, outer, _ = _modes(weight, z, K.shape[1])
    product = outer.conj().view(np.float64) @ inner.view(np.float64).swapaxes(1, 2)
    K[:] = 2 * product.reshape(len(K), -1)[:, : K.shape[1]]


def _vandermonde_gradient(weight: Array, z: Array, dK: Array, d_weight: Array, dz: Array) -> None:
    powers, inner, outer, turn = _modes(weight, z, dK.shape[1])
    d_product = 2 * _padded(dK, outer.shape[1], inner.shape[1])
    d_outer = (d_product @ inner.conj().view(np.float64)).view(z.dtype)
    d_inner = (d_product.swapaxes(1, 2) @ outer.conj().view(np.float64)).view(z.dtype)
    d_powers = [np.zeros_like(z) for _ in powers]
    _undouble(d_inner, inner, powers, d_powers, 0)
    d_weight[:] = _undouble(d_outer, outer, powers, d_powers, turn)
    for k in range(len(powers) - 1, 0, -1):
        d_powers[k - 1] += 2 * powers[k - 1].conj() * d_powers[k]
    dz[:] = d_powers[0]


def _undouble(d_table: Array, table: Array, powers: list[Array], d_powers: list[Array], start: int) -> Array:
    """The gradient of a table's first row; adds those of the powers from `start` that doubled it."""
    for k in range((table.shape[1] - 1).bit_length() - 1, -1, -1):
        half = 1 << k
        second = d_table[:, half:]
        d_powers[start + k] += (table[:, : second.shape[1]].conj() * second).sum(1)
        d_table = d_table[:, :half].copy()
        d_table[:, : second.shape[1]] += second * powers[start + k].conj()[:, None]
    return d_table[:, 0]


# --- Both -----------------------------------------------------------------------------------------


def _padded(dK: Array, rows: int, columns: int) -> Array:
    whole = np.zeros((len(dK), rows * columns), dK.dtype)
    whole[:, : dK.shape[1]] = dK
    return whole.reshape(len(dK), rows, columns)


def _flush(value: Array, below: float) -> Array:
    """Zero in place of what is all but zero; NaN and infinity stay."""
    parts = value.view(np.float64)
    parts -= np.clip(parts, -below, below)
    return value


def _by_parts(
    kernel: Callable[..., None], given: tuple[Array, ...], made: tuple[Array, ...], size: int
) -> None:
    """Call the kernel for some systems at a time, whose tables have `size` elements each."""
    h = len(given[0])
    count = min(h, max(-(-h * size // BLOCK), torch.get_num_threads()))
    parts = [slice(h * p // count, h * (p + 1) // count) for p in range(count)]
    run(kernel, [tuple(array[part] for array in (*given, *made)) for part in parts])


def _arrays(*tensors: Tensor) -> tuple[Array, ...]:
    return tuple(t.detach().resolve_conj().contiguous().numpy() for t in tensors)


def _made(*arrays: Array) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def dense_forward(A: Tensor, B: Tensor, C: Tensor, l: int) -> Tensor:
    given = _arrays(A, B, C)
    K = np.zeros((len(given[0]), l), given[0].dtype)
    _by_parts(_dense, given, (K,), A.shape[1] ** 2)
    return torch.from_numpy(K)


def dense_gradient(dK: Tensor, A: Tensor, B: Tensor, C: Tensor, l: int) -> list[Tensor]:
    given = _arrays(A, B, C)
    made = tuple(np.zeros_like(array) for array in given)
    _by_parts(_dense_gradient, (*given, *_arrays(dK)), made, A.shape[1] ** 2)
    return _made(*made)


def vandermonde_forward(weight: Tensor, z: Tensor, l: int) -> Tensor:
    given = _arrays(weight, z)
    K = np.zeros((len(given[0]), l))
    _by_parts(_vandermonde, given, (K,), z.shape[1] * columns_of(l))
    return torch.from_numpy(K)


def vandermonde_gradient(dK: Tensor, weight: Tensor, z: Tensor, l: int) -> list[Tensor]:
    given = _arrays(weight, z)
    made = tuple(np.zeros_like(array) for array in given)
    _by_parts(_vandermonde_gradient, (*given, *_arrays(dK)), made, z.shape[1] * columns_of(l))
    return _made(*made)


dense_kernel = operator.register(
    "dense_kernel_cpu",
    "Tensor A, Tensor B, Tensor C, int l",
    dense_forward,
    dense_gradient,
    lambda A, B, C, l: A.new_empty((A.shape[0], l)),
)
vandermonde = operator.register(
    "vandermonde_cpu",
    "Tensor weight, Tensor z, int l",
    vandermonde_forward,
    vandermonde_gradient,
    lambda weight, z, l: z.new_empty((z.shape[0], l), dtype=torch.float64),
)
