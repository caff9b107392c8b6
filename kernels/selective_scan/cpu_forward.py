"""The selective scan on the CPU: y, the final states, and every CHUNK steps the states for the gradient.

A job holds its states in the first level of cache and reads and writes every activation once; the rest is
arithmetic, most of it the exponential.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, empty
from ssmcourse.kernels.selective_scan.cpu_jobs import (
    Job,
    copy,
    decay,
    entering_states,
    forget_the_smallest,
    new_coefficients,
    read_arguments,
    read_coefficients,
    read_state,
    read_step,
    share_out,
    starts,
    write_state,
)
from ssmcourse.kernels.selective_scan.cpu_steps import advance, inner
from ssmcourse.kernels.selective_scan.operator import CHUNK
from ssmcourse.kernels.threads import native, run
from ssmcourse.kernels.vector_math import sigmoid


@native
def _scan(given, zoh, entering, y, leaving, ends, kept, job):
    """y, the states after the job's steps (leaving), after each sequence that ends within (ends), and kept."""
    (lo, hi), (begin, end), d = job.channels, job.steps, given.x.shape[2]
    rate, bias, D = given.rate[:, lo:hi].copy(), given.dt_bias[lo:hi], given.D[lo:hi]
    h = np.empty_like(rate)
    x, dt, u, y_t = np.empty((4, hi - lo), bias.dtype)
    B, C = new_coefficients(given.rows, rate), new_coefficients(given.rows, rate)
    if not given.B_moves:
        read_coefficients(given.B, B, 0, 0, lo, 0, d)
    if not given.C_moves:
        read_coefficients(given.C, C, 0, 0, lo, 0, d)
    for i in range(job.rows[0], job.rows[1]):
        read_state(entering[i, lo:hi], h)
        for t in range(begin, end):
            if t % CHUNK == 0:
                forget_the_smallest(h)
                if kept.shape[1] > 0:
                    copy(h, kept[i, t // CHUNK, :, lo:hi])
            if starts(given.sequence, i, t):
                if ends.shape[0] > 0:
                    write_state(h, ends[given.sequence[i, t - 1], lo:hi])
                h[:] = 0
            read_step(given.x[i, t, lo:hi], given.dt[i, t, lo:hi], bias, given.softplus, x, dt, u)
            if given.B_moves:
                read_coefficients(given.B, B, i, t, lo, job.group, d)
            if given.C_moves:
                read_coefficients(given.C, C, i, t, lo, job.group, d)
            advance(h, rate, dt, u, B, C, y_t, zoh)
            _write_step(y_t, given.twice, D, x, given.z[i, t, lo:hi], y[i, t, lo:hi])
        write_state(h, leaving[i, lo:hi])


@inner
def _write_step(y_t, twice, D, x, z, out):
    """y = (Re(C h) + D x) silu(z), without D and z where they have no elements."""
    for k in range(x.size):
        y_t[k] *= twice
    if D.size > 0:
        for k in range(x.size):
            y_t[k] += D[k] * x[k]
    if z.size > 0:
        for k in range(x.size):
            y_t[k] *= z[k] * sigmoid(z[k])
    for k in range(x.size):
        out[k] = y_t[k]


def scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None, sequence: Tensor | None,
    sequences: int, dt_softplus: bool, zoh: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the final states, and the states kept for the gradient, (b, chunks, n, d)."""
    (b, l, d), n = x.shape, A.shape[1]
    given = read_arguments(x, dt, A, B, C, D, z, dt_bias, sequence, dt_softplus)
    y, y_array = empty((b, l, d), A.dtype.to_real())
    kept, kept_array = empty((b, -(-l // CHUNK) if keep else 0, n, d), A.dtype)
    ends, ends_array = empty((max(sequences, 0), d, n), A.dtype)
    first = np.zeros((b, d, n), given.rate.dtype) if initial_state is None else as_array(initial_state)
    pieces, rows, blocks = share_out(given)

    def run_pieces(entering: list[np.ndarray]) -> list[np.ndarray]:
        leaving = [np.empty_like(first) for _ in entering]
        jobs = [
            (given, 1 if zoh else None, h, y_array, h_after, ends_array, kept_array, Job(some, piece, *block))
            for piece, h, h_after in zip(pieces, entering, leaving, strict=False)
            for some in rows
            for block in blocks
        ]
        run(_scan, jobs)
        return leaving

    decays = [decay(dt, A, dt_bias, sequence, dt_softplus, piece) for piece in pieces[:-1]]
    last = torch.from_numpy(run_pieces(entering_states(first, decays, run_pieces))[-1])
    y = y.to(x.dtype)
    if sequences < 0:
        return y, last, kept
    ends[torch.arange(b) if sequence is None or l == 0 else sequence[:, -1]] = last
    return y, ends, kept
