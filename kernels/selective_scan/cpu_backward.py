"""The gradients of the selective scan on the CPU, all in one pass from the last step to the first.

The states of a chunk are recomputed from the one kept before it and stay in the second level of cache with
their gates, (CHUNK, n, w) each, until the way back through the chunk is done. Whatever sums over channels,
rows or time has a place of its own for each job, and these are added up in a fixed order.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, empty, narrow, widen
from ssmcourse.kernels.selective_scan.cpu_forward import scan
from ssmcourse.kernels.selective_scan.cpu_jobs import (
    Block,
    Given,
    Job,
    cut,
    dtype_of_activations,
    entering_states,
    first_step,
    forget_the_smallest,
    groups,
    new_coefficients,
    read_arguments,
    read_coefficients,
    read_kept,
    read_state,
    read_steps,
    remains_of,
    share_out,
    starts,
    write_state,
)
from ssmcourse.kernels.selective_scan.cpu_steps import (
    advance_and_keep,
    apart,
    read_out,
    retreat,
)
from ssmcourse.kernels.selective_scan.operator import CHUNK
from ssmcourse.kernels.threads import native, run
from ssmcourse.kernels.vector_math import LOG2, inner, sigmoid


class Found(NamedTuple):
    """Where a job writes the gradients; the sums over time are (b, ...) of its piece."""

    dx: np.ndarray  # (b, l, d); ddt and dz too
    ddt: np.ndarray
    dz: np.ndarray
    dA: np.ndarray  # (b, n, d)  # noqa: N815
    dB: np.ndarray  # (b, l, g, n) of its part of the channels, or (b, 1, d, n); dC too  # noqa: N815
    dC: np.ndarray  # noqa: N815
    dD: np.ndarray  # (b, d)  # noqa: N815
    ddt_bias: np.ndarray  # (b, d)


@native
def _gradient(given, zoh, dy, dends, arriving, kept, found, sent, job, first):
    """`arriving` (b, d, n): what the steps after the job's send to the state; `sent`: what these send on.

    `first`: this block is the first of its part of the channels, so there are no sums to add to.
    """
    (lo, hi), (begin, end), group = job.channels, job.steps, job.group
    # A field costs more than a variable.
    x_all, dt_all, z, sequence = given.x, given.dt, given.z, given.sequence
    B_all, C_all, B_moves, C_moves, d = given.B, given.C, given.B_moves, given.C_moves, given.x.shape[2]
    rate, bias, D = given.rate[:, lo:hi].copy(), given.dt_bias[lo:hi], given.D[lo:hi]
    to_positive, twice, skip = given.softplus, given.twice, D / given.twice  # twice dy meets half of D
    dx_all, ddt_all, dz, dB_all, dC_all = found.dx, found.ddt, found.dz, found.dB, found.dC
    n, w = rate.shape
    h, gates = np.empty((CHUNK + 1, n, w), rate.dtype), np.empty((CHUNK, n, w), rate.dtype)
    x = np.empty((CHUNK, w), bias.dtype)
    dt, u, y, dy_rows = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(x)
    dx, dgate, ddirect = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    dh, dA, dD, ddt_bias = np.empty_like(rate), np.empty_like(rate), np.empty_like(bias), np.empty_like(bias)
    B, C = new_coefficients(given.rows, B_moves, rate), new_coefficients(given.rows, C_moves, rate)
    dB, dC = np.zeros_like(B), np.zeros_like(C)
    if not B_moves:
        read_coefficients(B_all, 0, 0, 1, lo, group, d, B)
    if not C_moves:
        read_coefficients(C_all, 0, 0, 1, lo, group, d, C)
    for i in range(job.rows[0], job.rows[1]):
        read_state(arriving, i, lo, dh)
        dA[:], dD[:], ddt_bias[:] = 0, 0, 0
        t = end
        while t > begin:
            t1, t = t, first_step(sequence, i, begin, t)
            new = starts(sequence, i, t)
            if new:
                h[0, :] = 0
            else:
                read_kept(kept, i, t // CHUNK, lo, h[0])
            if B_moves:
                read_coefficients(B_all, i, t, t1, lo, group, d, B)
            if C_moves:
                read_coefficients(C_all, i, t, t1, lo, group, d, C)
            read_steps(x_all, dt_all, i, t, t1, lo, bias, to_positive, x, dt, u)
            advance_and_keep(h, gates, rate, dt, u, B, t1 - t, zoh)
            if z.size > 0:
                read_out(h, C, y, t1 - t)
            _through_gate(dy, z, y, twice, D, x, dz, dy_rows, dD, i, t, t1, lo)
            retreat(dh, h, gates, rate, dt, u, B, C, dy_rows, dA, dB, dC, dx, dgate, ddirect, t1 - t, zoh)
            direct = dx if zoh is None else ddirect
            _through_step_size(
                dt_all, bias, to_positive, x, dt, dy_rows, skip, dx, dgate, direct,
                dx_all, ddt_all, ddt_bias, i, t, t1, lo,
            )  # fmt: skip
            if B_moves:
                _add_coefficients(dB, dB_all, i, t, t1, lo, group, d, first)
            if C_moves:
                _add_coefficients(dC, dC_all, i, t, t1, lo, group, d, first)
            if new:
                dh[:] = 0
                if dends.shape[0] > 0:
                    read_state(dends, sequence[i, t - 1], lo, dh)
            if t % CHUNK == 0:
                forget_the_smallest(dh)
        write_state(dh, sent, i, lo)
        _write_sums(dA, dD, ddt_bias, found.dA, found.dD, found.ddt_bias, i, lo)
        if not B_moves:
            _add_coefficients(dB, dB_all, i, 0, 1, lo, 0, d, first)
        if not C_moves:
            _add_coefficients(dC, dC_all, i, 0, 1, lo, 0, d, first)


@inner
def _through_gate(dy, z, y, twice, D, x, dz, dy_rows, dD, i, begin, end, lo):
    """dz, and from dy the gradient of D x + Re(C h), of which `dy_rows` is to be twice if the states are complex."""
    apart()
    one, w = x.dtype.type(1), x.shape[1]
    for s in range(end - begin):
        x_s, y_s, dy_s, dy_t = x[s], y[s], dy_rows[s], dy[i, begin + s, lo : lo + w]
        if z.size > 0:
            z_t, dz_t = z[i, begin + s, lo : lo + w], dz[i, begin + s, lo : lo + w]
            for k in range(w):
                gate, upstream = widen(z_t[k]), widen(dy_t[k])
                half = sigmoid(gate)
                slope = half * (one + gate * (one - half))
                dz_t[k] = narrow(upstream * (twice * y_s[k] + D[k] * x_s[k]) * slope, dz_t[k])
                ungated = upstream * gate * half
                dD[k] += ungated * x_s[k]
                dy_s[k] = twice * ungated
        else:
            for k in range(w):
                upstream = widen(dy_t[k])
                dD[k] += upstream * x_s[k]
                dy_s[k] = twice * upstream


@inner
def _through_step_size(
    dt_all,
    bias,
    from_softplus,
    x,
    dt,
    dy,
    skip,
    dx,
    dgate,
    direct,
    dx_all,
    ddt_all,
    ddt_bias,
    i,
    begin,
    end,
    lo,
):
    """dx and ddt from what `retreat` found: the step size is in the gate and in the input's share."""
    apart()
    log2, w = x.dtype.type(LOG2), x.shape[1]
    for s in range(end - begin):
        dt_t, dx_t = dt_all[i, begin + s, lo : lo + w], dx_all[i, begin + s, lo : lo + w]
        ddt_t = ddt_all[i, begin + s, lo : lo + w]
        x_s, dt_s, dy_s, dx_s, dgate_s, direct_s = x[s], dt[s], dy[s], dx[s], dgate[s], direct[s]
        if from_softplus:
            for k in range(w):
                dx_t[k] = narrow(dx_s[k] * dt_s[k] + skip[k] * dy_s[k], dx_t[k])
                ddt = (dgate_s[k] * log2 + direct_s[k] * x_s[k]) * sigmoid(widen(dt_t[k]) + bias[k])
                ddt_t[k] = narrow(ddt, ddt_t[k])
                ddt_bias[k] += ddt
        else:
            for k in range(w):
                dx_t[k] = narrow(dx_s[k] * dt_s[k] + skip[k] * dy_s[k], dx_t[k])
                ddt = dgate_s[k] * log2 + direct_s[k] * x_s[k]
                ddt_t[k] = narrow(ddt, ddt_t[k])
                ddt_bias[k] += ddt


@inner
def _write_sums(dA, dD, ddt_bias, dA_all, dD_all, ddt_bias_all, i, lo):
    for k in range(dD.size):
        dD_all[i, lo + k], ddt_bias_all[i, lo + k] = dD[k], ddt_bias[k]
        for j in range(dA.shape[0]):
            dA_all[i, j, lo + k] = dA[j, k]


def _add_coefficients(dB, found, i, begin, end, lo, group, d, first):
    """dB of these steps to where it belongs in (b, l, g, n): `read_coefficients` the other way. Clears dB."""
    raise NotImplementedError("only compiled code calls this")


@overload(_add_coefficients)
def _add_coefficients_of(dB, found, i, begin, end, lo, group, d, first):
    def add_numbers(dB, found, i, begin, end, lo, group, d, first):
        for s in range(end - begin):
            dB_s, found_s = dB[s], found[i, begin + s, group]
            for j in range(dB_s.size):
                found_s[j] = dB_s[j] if first else found_s[j] + dB_s[j]
        dB[:] = 0

    def add_rows(dB, found, i, begin, end, lo, group, d, first):
        each = d // found.shape[2]
        for s in range(end - begin):
            for k in range(dB.shape[2]):
                found_k = found[i, begin + s, (lo + k) // each]
                for j in range(dB.shape[1]):
                    found_k[j] += dB[s, j, k]
        dB[:] = 0

    return add_numbers if dB.ndim == 2 else add_rows


# --- Who does what ----------------------------------------------------------------------------


def gradient(
    upstream: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...],
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None, sequence: Tensor | None,
    sequences: int, dt_softplus: bool, zoh: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of x, dt, A, B, C and of those of D, z, dt_bias and initial_state that are there."""
    (b, _, d), n = x.shape, A.shape[1]
    kept = outputs[2]
    if not keep:
        arguments = (x, dt, A, B, C, D, z, dt_bias, initial_state, sequence)
        kept = scan(*arguments, sequences, dt_softplus, zoh, True)[2]
    given = read_arguments(x, dt, A, B, C, D, z, dt_bias, sequence, dt_softplus)
    dy = as_array(
        (torch.zeros_like(x) if upstream[0] is None else upstream[0]).to(dtype_of_activations(x, A))
    )
    dends, last = _of_final_states(upstream[1], A.new_zeros(b, d, n), sequence)
    pieces, rows, blocks = share_out(given)
    parts = _parts(blocks, len(pieces) * len(rows))
    places = _Places(given, dtype_of_activations(x, A), len(pieces), max(map(len, parts), default=0))
    order = range(len(pieces))[::-1]

    def run_pieces(arriving: list[np.ndarray]) -> list[np.ndarray]:
        sent = [np.empty_like(last) for _ in arriving]
        places.restart()
        jobs = [
            (given, zoh, dy, dends, dh, as_array(kept), places.of(p, q), dh_before, some, pieces[p], part)
            for p, dh, dh_before in zip(order, arriving, sent, strict=False)
            for some in rows
            for group in parts
            for q, part in enumerate(group)
        ]
        run(_one_part, jobs)
        return sent

    back = A.conj()
    remains = [remains_of(dt, back, dt_bias, sequence, dt_softplus, pieces[p]) for p in order[:-1]]
    sent = run_pieces(entering_states(last, remains, run_pieces))[-1]
    return places.gradients((x, dt, A, B, C, D, z, dt_bias, initial_state), torch.from_numpy(sent))


def _one_part(given, zoh, dy, dends, arriving, kept, found, sent, rows, steps, blocks) -> None:
    """The blocks of a part one after another: they add their sums over channels to the same place."""
    for number, (channels, group) in enumerate(blocks):
        job = Job(rows, steps, channels, group)
        _gradient(given, 1 if zoh else None, dy, dends, arriving, kept, found, sent, job, number == 0)


def _parts(blocks: list[Block], others: int) -> list[list[list[Block]]]:
    """The blocks of each group in as many parts as keep the threads busy, and no more: each has a dB, dC."""
    threads = torch.get_num_threads()
    of_groups = [list(some) for _, some in itertools.groupby(blocks, key=lambda block: block[1])]
    each = 1 if threads == 1 else -(-2 * threads // max(1, others * len(of_groups)))
    return [[group[lo:hi] for lo, hi in cut(len(group), each)] for group in of_groups]


def _of_final_states(
    dfinal: Tensor | None, nothing: Tensor, sequence: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients at the ends of all sequences (none if not asked for), and of the last one of each row."""
    if dfinal is None or len(dfinal) == 0:
        return as_array(nothing[:0]), as_array(nothing)
    if sequence is None or sequence.shape[1] == 0:
        return as_array(nothing[:0]), as_array(dfinal)
    return as_array(dfinal), as_array(dfinal[sequence[:, -1]])


class _Places:
    """Arrays for the gradients; what several jobs add to has a copy for each of them."""

    def __init__(self, given: Given, stored: torch.dtype, pieces: int, parts: int) -> None:
        b, n, d = len(given.x), *given.rate.shape
        activations = [empty(array.shape, stored) for array in (given.x, given.dt, given.z)]
        (self.dx, _), (self.ddt, _), (self.dz, _) = activations
        self.activations = [array for _, array in activations]
        self.dA = np.empty((pieces, b, n, d), given.rate.dtype)
        self.dD, self.ddt_bias = np.empty((2, pieces, b, d), given.dt_bias.dtype)
        self.rows, self.moves = given.rows, (given.B_moves, given.C_moves)
        self.dB, self.dC = (
            self._for_coefficients(given, B, parts if moves else pieces)
            for B, moves in zip((given.B, given.C), self.moves, strict=True)
        )

    @staticmethod
    def _for_coefficients(given: Given, B: np.ndarray, copies: int) -> np.ndarray:
        """(copies, b, l, g, n)"""
        _, l, g, n = B.shape
        return np.empty(
            (copies, len(given.x), l, groups(given) if given.rows is None else g, n), given.rate.dtype
        )

    def restart(self) -> None:
        """Rows are added to what is there; numbers are written first."""
        if self.rows is not None:
            self.dB[:] = self.dC[:] = 0

    def of(self, piece: int, part: int) -> Found:
        """Where the jobs of a piece of l and a part of the channels write."""
        dB, dC = (
            of_all[part if moves else piece]
            for of_all, moves in zip((self.dB, self.dC), self.moves, strict=True)
        )
        return Found(*self.activations, self.dA[piece], dB, dC, self.dD[piece], self.ddt_bias[piece])

    def gradients(self, arguments: tuple[Tensor | None, ...], dinitial: Tensor) -> list[Tensor]:
        """What each argument gets, in its own shape and dtype."""
        _, _, _, B, C, *_ = arguments
        found = (
            self.dx,
            self.ddt,
            torch.from_numpy(self.dA.sum((0, 1))).T,
            _of_coefficients(self.dB, B),
            _of_coefficients(self.dC, C),
            torch.from_numpy(self.dD.sum((0, 1))),
            self.dz,
            torch.from_numpy(self.ddt_bias.sum((0, 1))),
            dinitial,
        )
        return [
            gradient.to(argument.dtype).contiguous()
            for gradient, argument in zip(found, arguments, strict=True)
            if argument is not None
        ]


def _of_coefficients(copies: np.ndarray, B: Tensor) -> Tensor:
    """The gradient of B or C: over copies, over rows if constant, over groups where all use the same."""
    total = torch.from_numpy(copies[0] if len(copies) == 1 else copies.sum(0))
    if B.ndim == 2:
        return total.sum(0)[0]
    return total if B.shape[2] == total.shape[2] else total.sum(2, keepdim=True)
