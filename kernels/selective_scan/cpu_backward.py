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

from ssmcourse.kernels.arrays import as_array, empty
from ssmcourse.kernels.selective_scan.cpu_forward import scan
from ssmcourse.kernels.selective_scan.cpu_jobs import (
    Block,
    Given,
    Job,
    copy,
    cut,
    decay,
    entering_states,
    forget_the_smallest,
    groups,
    new_coefficients,
    read_arguments,
    read_coefficients,
    read_state,
    read_step,
    share_out,
    starts,
    write_state,
)
from ssmcourse.kernels.selective_scan.cpu_steps import (
    LOG2,
    advance_and_keep,
    inner,
    read_out,
    retreat,
)
from ssmcourse.kernels.selective_scan.operator import CHUNK
from ssmcourse.kernels.threads import native, run
from ssmcourse.kernels.vector_math import sigmoid


class Found(NamedTuple):
    """Where a job writes the gradients; the sums over time are (b, ...) of its piece."""

    dx: np.ndarray  # (b, l, d); ddt and dz too
    ddt: np.ndarray
    dz: np.ndarray
    dA: np.ndarray  # (b, n, d)
    dB: np.ndarray  # (b, l, g, n) of its part of the channels, or (b, 1, d, n); dC too
    dC: np.ndarray
    dD: np.ndarray  # (b, d)
    ddt_bias: np.ndarray  # (b, d)


@native
def _gradient(given, zoh, dy, dends, arriving, kept, found, sent, job, first):
    """`arriving` (b, d, n): what the steps after the job's send to the state; `sent`: what these send on.

    `first`: this block is the first of its part of the channels, so there are no sums to add to.
    """
    (lo, hi), (begin, end), d = job.channels, job.steps, given.x.shape[2]
    rate, bias, D = given.rate[:, lo:hi].copy(), given.dt_bias[lo:hi], given.D[lo:hi]
    (n, w), real = rate.shape, bias.dtype
    h, gates = np.empty((CHUNK + 1, n, w), rate.dtype), np.empty((CHUNK, n, w), rate.dtype)
    x, dt, u = np.empty((3, CHUNK, w), real)
    y_t, dy_t, dx_t, skip, dgate, ddirect, dD, ddt_bias = np.empty((8, w), real)
    dh, dA, nothing = np.empty_like(rate), np.empty_like(rate), np.zeros_like(rate)
    B, C = new_coefficients(given.rows, rate), new_coefficients(given.rows, rate)
    dB, dC = np.empty_like(B), np.empty_like(C)
    if not given.B_moves:
        read_coefficients(given.B, B, 0, 0, lo, 0, d)
    if not given.C_moves:
        read_coefficients(given.C, C, 0, 0, lo, 0, d)
    for i in range(job.rows[0], job.rows[1]):
        read_state(arriving[i, lo:hi], dh)
        dA[:], dB[:], dC[:], dD[:], ddt_bias[:] = 0, 0, 0, 0, 0
        for t0 in range((end - 1) // CHUNK * CHUNK, begin - 1, -CHUNK):
            steps = min(CHUNK, end - t0)
            copy(kept[i, t0 // CHUNK, :, lo:hi], h[0])
            for s in range(steps):
                t = t0 + s
                read_step(
                    given.x[i, t, lo:hi], given.dt[i, t, lo:hi], bias, given.softplus, x[s], dt[s], u[s]
                )
                if given.B_moves:
                    read_coefficients(given.B, B, i, t, lo, job.group, d)
                before = nothing if starts(given.sequence, i, t) else h[s]
                advance_and_keep(before, h[s + 1], gates[s], rate, dt[s], u[s], B, zoh)
            for s in range(steps - 1, -1, -1):
                t = t0 + s
                if given.B_moves:
                    read_coefficients(given.B, B, i, t, lo, job.group, d)
                if given.C_moves:
                    read_coefficients(given.C, C, i, t, lo, job.group, d)
                begins = starts(given.sequence, i, t)
                before = nothing if begins else h[s]
                if given.z.size > 0:
                    read_out(h[s + 1], C, y_t)
                _through_gate(
                    dy[i, t, lo:hi], given.z[i, t, lo:hi], y_t, given.twice, D, x[s],
                    dy_t, found.dz[i, t, lo:hi], skip, dD,
                )  # fmt: skip
                retreat(
                    dh, before, h[s + 1], gates[s], rate, dt[s], u[s], B, C,
                    dy_t, dA, dB, dC, dx_t, dgate, ddirect, zoh,
                )  # fmt: skip
                _through_step_size(
                    given.dt[i, t, lo:hi], bias, given.softplus, x[s], dt[s], skip, dx_t, dgate,
                    dx_t if zoh is None else ddirect, found.dx[i, t, lo:hi], found.ddt[i, t, lo:hi], ddt_bias,
                )  # fmt: skip
                if given.B_moves:
                    _add_coefficients(dB, found.dB, i, t, lo, job.group, d, first)
                if given.C_moves:
                    _add_coefficients(dC, found.dC, i, t, lo, job.group, d, first)
                if begins:
                    dh[:] = 0
                    if dends.shape[0] > 0:
                        read_state(dends[given.sequence[i, t - 1], lo:hi], dh)
            forget_the_smallest(dh)
        write_state(dh, sent[i, lo:hi])
        copy(dA, found.dA[i, :, lo:hi])
        for k in range(w):
            found.dD[i, lo + k], found.ddt_bias[i, lo + k] = dD[k], ddt_bias[k]
        if not given.B_moves:
            _add_coefficients(dB, found.dB, i, 0, lo, 0, d, first)
        if not given.C_moves:
            _add_coefficients(dC, found.dC, i, 0, lo, 0, d, first)


@inner
def _through_gate(dy, z, y, twice, D, x, dy_t, dz, skip, dD):
    """From dy to dy_t, the gradient of C h, by way of the gate and past the skip, which gets its share."""
    one = twice / twice
    for k in range(x.size):
        dy_t[k] = dy[k]
        skip[k] = D[k] if D.size > 0 else 0
    if z.size > 0:
        for k in range(x.size):
            s = sigmoid(z[k])
            dz[k] = dy[k] * (twice * y[k] + skip[k] * x[k]) * s * (one + z[k] * (one - s))
            dy_t[k] *= z[k] * s
    for k in range(x.size):
        dD[k] += dy_t[k] * x[k]
        skip[k] *= dy_t[k]
        dy_t[k] *= twice


@inner
def _through_step_size(raw, bias, from_softplus, x, dt, skip, dx_t, dgate, direct, dx, ddt, ddt_bias):
    """dx and ddt from what `retreat` found: the step size is in the gate and in the input's share."""
    for k in range(x.size):
        dx[k] = dx_t[k] * dt[k] + skip[k]
        dgate[k] = dgate[k] * LOG2 + direct[k] * x[k]
    if from_softplus:
        for k in range(x.size):
            dgate[k] *= sigmoid(raw[k] + bias[k])
    for k in range(x.size):
        ddt[k] = dgate[k]
        ddt_bias[k] += dgate[k]


def _add_coefficients(dB, found, i, t, lo, group, d, first):
    """A step's dB to where it belongs in (b, l, g, n): `read_coefficients` the other way. dB is zero afterwards."""
    raise NotImplementedError("only compiled code calls this")


@overload(_add_coefficients)
def _add_coefficients_of(dB, found, i, t, lo, group, d, first):
    def add_numbers(dB, found, i, t, lo, group, d, first):
        found_t = found[i, t, group]
        for j in range(dB.size):
            found_t[j] = dB[j] if first else found_t[j] + dB[j]
        dB[:] = 0

    def add_rows(dB, found, i, t, lo, group, d, first):
        each = d // found.shape[2]
        for k in range(dB.shape[1]):
            found_k = found[i, t, (lo + k) // each]
            for j in range(dB.shape[0]):
                found_k[j] += dB[j, k]
        dB[:] = 0

    return add_numbers if dB.ndim == 1 else add_rows


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
    dy = as_array((torch.zeros_like(x) if upstream[0] is None else upstream[0]).to(A.dtype.to_real()))
    dends, last = _of_final_states(upstream[1], A.new_zeros(b, d, n), sequence, sequences)
    pieces, rows, blocks = share_out(given)
    parts = _parts(blocks, len(pieces) * len(rows))
    places = _Places(given, len(pieces), max(map(len, parts), default=0))
    order = range(len(pieces))[::-1]

    def run_pieces(arriving: list[np.ndarray]) -> list[np.ndarray]:
        sent = [np.empty_like(last) for _ in arriving]
        jobs = [
            (given, zoh, dy, dends, dh, as_array(kept), places.of(p, q), dh_before, some, pieces[p], part)
            for p, dh, dh_before in zip(order, arriving, sent, strict=False)
            for some in rows
            for group in parts
            for q, part in enumerate(group)
        ]
        run(_one_part, jobs)
        return sent

    decays = [decay(dt, A, dt_bias, sequence, dt_softplus, pieces[p]).conj() for p in order[:-1]]
    sent = run_pieces(entering_states(last, decays, run_pieces))[-1]
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
    dfinal: Tensor | None, nothing: Tensor, sequence: Tensor | None, sequences: int
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients at the ends of all sequences (none if not asked for), and of the last one of each row."""
    if dfinal is None or sequences < 0:
        return as_array(nothing[:0]), as_array(nothing if dfinal is None else dfinal)
    b = len(nothing)
    in_rows = sequence is None or sequence.shape[1] == 0
    return as_array(dfinal), as_array(dfinal[torch.arange(b) if in_rows else sequence[:, -1]])


class _Places:
    """Arrays for the gradients; what several jobs add to has a copy for each of them."""

    def __init__(self, given: Given, pieces: int, parts: int) -> None:
        b, n, d = len(given.x), *given.rate.shape
        real = torch.from_numpy(given.dt_bias).dtype
        activations = [empty(array.shape, real) for array in (given.x, given.dt, given.z)]
        (self.dx, _), (self.ddt, _), (self.dz, _) = activations
        self.activations = [array for _, array in activations]
        self.dA = np.empty((pieces, b, n, d), given.rate.dtype)
        self.dD, self.ddt_bias = np.empty((2, pieces, b, d), given.dt_bias.dtype)
        self.moves = given.B_moves, given.C_moves
        self.dB, self.dC = (
            self._for_coefficients(given, B, parts if moves else pieces)
            for B, moves in zip((given.B, given.C), self.moves, strict=True)
        )

    @staticmethod
    def _for_coefficients(given: Given, B: np.ndarray, copies: int) -> np.ndarray:
        """(copies, b, l, g, n): numbers are written before they are added to, rows are not."""
        b, _, _, n = B.shape
        if given.rows is None:
            return np.empty((copies, b, B.shape[1], groups(given), n), B.dtype)
        return np.zeros((copies, len(given.x), *B.shape[1:]), B.dtype)

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
