"""The selective scan on the CPU: y, the final states, and every CHUNK steps the states for the gradient.

A job holds its states in the first level of cache and reads and writes every activation once; the rest is
arithmetic, most of it the exponential.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, empty, narrow, widen
from ssmcourse.kernels.selective_scan.cpu_jobs import (
    Job,
    dtype_of_activations,
    entering_states,
    forget_the_smallest,
    last_step,
    new_coefficients,
    read_arguments,
    read_coefficients,
    read_state,
    read_steps,
    remains_of,
    share_out,
    starts,
    write_kept,
    write_state,
)
from ssmcourse.kernels.selective_scan.cpu_steps import advance, apart
from ssmcourse.kernels.selective_scan.operator import CHUNK
from ssmcourse.kernels.threads import native, run
from ssmcourse.kernels.vector_math import inner, sigmoid


@native
def _scan(given, zoh, entering, y, leaving, ends, kept, job):
    """y, the states after the job's steps (leaving), after each sequence that ends within (ends), and kept."""
    (lo, hi), (begin, end), group = job.channels, job.steps, job.group
    # A field costs more than a variable.
    x_all, dt_all, z, sequence = given.x, given.dt, given.z, given.sequence
    B_all, C_all, B_moves, C_moves, d = given.B, given.C, given.B_moves, given.C_moves, given.x.shape[2]
    rate, bias, D = given.rate[:, lo:hi].copy(), given.dt_bias[lo:hi], given.D[lo:hi]
    to_positive, twice = given.softplus, given.twice
    h, x = np.empty_like(rate), np.empty((CHUNK, hi - lo), bias.dtype)
    dt, u, y_rows = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    B, C = new_coefficients(given.rows, B_moves, rate), new_coefficients(given.rows, C_moves, rate)
    if not B_moves:
        read_coefficients(B_all, 0, 0, 1, lo, group, d, B)
    if not C_moves:
        read_coefficients(C_all, 0, 0, 1, lo, group, d, C)
    for i in range(job.rows[0], job.rows[1]):
        read_state(entering, i, lo, h)
        t = begin
        while t < end:
            t0, t = t, last_step(sequence, i, t, end)
            if t0 % CHUNK == 0:
                forget_the_smallest(h)
                if kept.shape[1] > 0:
                    write_kept(h, kept, i, t0 // CHUNK, lo)
            if starts(sequence, i, t0):
                if ends.shape[0] > 0:
                    write_state(h, ends, sequence[i, t0 - 1], lo)
                h[:] = 0
            if B_moves:
                read_coefficients(B_all, i, t0, t, lo, group, d, B)
            if C_moves:
                read_coefficients(C_all, i, t0, t, lo, group, d, C)
            read_steps(x_all, dt_all, i, t0, t, lo, bias, to_positive, x, dt, u)
            advance(h, rate, dt, u, B, C, y_rows, t - t0, zoh)
            _write_steps(y_rows, twice, D, x, z, y, i, t0, t, lo)
        write_state(h, leaving, i, lo)


@inner
def _write_steps(y_rows, twice, D, x, z, y, i, begin, end, lo):
    """y = (Re(C h) + D x) silu(z), not gated where z has no elements."""
    apart()
    for s in range(end - begin):
        y_s, x_s, y_t = y_rows[s], x[s], y[i, begin + s, lo : lo + x.shape[1]]
        if z.size > 0:
            z_t = z[i, begin + s, lo : lo + x.shape[1]]
            for k in range(x_s.size):
                gate = widen(z_t[k])
                y_t[k] = narrow((twice * y_s[k] + D[k] * x_s[k]) * gate * sigmoid(gate), y_t[k])
        else:
            for k in range(x_s.size):
                y_t[k] = narrow(twice * y_s[k] + D[k] * x_s[k], y_t[k])


def scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None, sequence: Tensor | None,
    sequences: int, dt_softplus: bool, zoh: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the final states, and the states kept for the gradient, (b, chunks, n, d)."""
    (b, l, d), n = x.shape, A.shape[1]
    given = read_arguments(x, dt, A, B, C, D, z, dt_bias, sequence, dt_softplus)
    y, y_array = empty((b, l, d), dtype_of_activations(x, A))
    kept, kept_array = empty((b, -(-l // CHUNK) if keep else 0, n, d), A.dtype)
    packed = sequence is not None and l > 0 and sequences > 0
    ends, ends_array = empty((sequences if packed else 0, d, n), A.dtype)
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

    remains = [remains_of(dt, A, dt_bias, sequence, dt_softplus, piece) for piece in pieces[:-1]]
    last = torch.from_numpy(run_pieces(entering_states(first, remains, run_pieces))[-1])
    y = y.to(x.dtype)
    if not packed:
        return y, last[:sequences], kept  # as many as there are rows, or none
    ends[sequence[:, -1]] = last
    return y, ends, kept
