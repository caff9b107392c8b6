"""SSD on the CPU: the chunked algorithm with tiles of 64 steps, whatever chunk size the caller named.

Nothing between the tiles' states leaves the cache: walk.py goes along the sequence, tiles.py is one tile,
products.py multiplies matrices. Here: the table of tiles, and who does which heads.

The backward needs the state that entered each tile. The forward keeps one every SPAN steps only; the backward
goes from span to span towards the start, computes the states inside a span again, and passes its tiles in reverse.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, empty
from ssmcourse.kernels.ssd import operator, walk
from ssmcourse.kernels.ssd.tiles import TILE
from ssmcourse.kernels.ssd.walk import SPAN, Inputs
from ssmcourse.kernels.threads import run

Job = tuple[
    int, int, tuple[int, int], int
]  # row, group, its heads from and to, which part of the group these are


def forward(
    x: Tensor,
    dt: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    sequences: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final states, and the states (b, spans - 1, h, n, p) at every multiple of SPAN but 0."""
    (b, l, h, p), (g, n) = x.shape, B.shape[2:]
    inputs = _inputs(x, dt, log_a, B, C, D, z, initial_state)
    tables = _tables(b, l, seq_idx, initial_state is not None, sequences > 0)
    y, y_array = empty((b, l, h, p), _stored(x, dt))
    states, state_array = empty((sequences, h, p, n), dt.dtype)
    kept, kept_array = empty((b, (l - 1) // SPAN if keep else 0, h, n, p), dt.dtype)
    given = (inputs, z is not None, y_array, kept_array, state_array)
    jobs = [(*given, tables[row], row, group, *heads) for row, group, heads, _ in _jobs(b, h, g)]
    _run(walk.forward, jobs, lambda: walk.buffers(n, p, h // g, 0, inputs.dt.dtype))
    return y.to(x.dtype), states, kept


def gradient(
    upstream: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
    x: Tensor,
    dt: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    sequences: int,
    keep: bool,
) -> list[Tensor]:
    """The gradients of the tensors that there are, in the order of the arguments."""
    (b, l, h, p), (g, n) = x.shape, B.shape[2:]
    dy, dfinal = upstream
    inputs = _inputs(x, dt, log_a, B, C, D, z, initial_state)
    tables = _tables(b, l, seq_idx, initial_state is not None, dfinal is not None)
    stored = _stored(x, dt)
    dy_array = as_array((torch.zeros_like(x) if dy is None else dy).to(stored))
    dfinal_array = as_array(dt.new_empty(0, h, p, n) if dfinal is None else dfinal)
    shares = _jobs(b, h, g)
    parts = 1 + max(part for *_, part in shares)
    of_steps = [empty(tuple(dt.shape), dt.dtype) for _ in range(2)]
    of_groups = [empty((parts, *B.shape), stored) for _ in range(2)]  # half parts: torch sums them in float32
    made = [empty(tuple(x.shape), stored), *of_steps, *of_groups]
    dD = np.zeros((b, h, p))  # a sum over all steps
    dz = made[0] if z is None else empty(tuple(x.shape), stored)
    dinitial = empty((b, h, p, n), dt.dtype)
    d = Inputs(*(array for _, array in made), dD, dz[1], dinitial[1])
    given = (dy_array, dfinal_array, inputs, z is not None, as_array(outputs[2]), d)
    spans = [np.searchsorted(table[:, 0], np.arange(0, l + SPAN, SPAN)) for table in tables]
    jobs = [(*given, tables[row], spans[row], row, group, *heads, part) for row, group, heads, part in shares]
    rooms = 1 + max(table[:, 5].max() for table in tables)
    _run(walk.gradient, jobs, lambda: walk.buffers(n, p, h // g, rooms, inputs.dt.dtype))
    dx, ddt, dlog_a, dB, dC = (tensor for tensor, _ in made)
    found = [dx.to(x.dtype), ddt, dlog_a]
    found += [(t[0] if parts == 1 else t.sum(0)).to(x.dtype) for t in (dB, dC)]
    if D is not None:
        found.append(torch.from_numpy(dD.sum(0)).to(dt.dtype))
    if z is not None:
        found.append(dz[0].to(x.dtype))
    return found if initial_state is None else [*found, dinitial[0]]


def _inputs(
    x: Tensor,
    dt: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
) -> Inputs:
    """Zeros for D and the initial state where there are none, x for z."""
    (b, _, h, p), n = x.shape, B.shape[3]
    stored = _stored(x, dt)
    D = dt.new_zeros(h, p) if D is None else D
    initial_state = dt.new_zeros(b, h, p, n) if initial_state is None else initial_state
    arrays = [as_array(t) for t in (x.to(stored), dt, log_a, B.to(stored), C.to(stored), D)]
    gate = arrays[0] if z is None else as_array(z.to(stored))
    return Inputs(*arrays, gate, as_array(initial_state))


def _stored(x: Tensor, dt: Tensor) -> torch.dtype:
    """The type in which the kernels read and write activations: that computed in, or a half type beside float32."""
    half = x.dtype in (torch.float16, torch.bfloat16) and dt.dtype == torch.float32
    return x.dtype if half else dt.dtype


def _jobs(b: int, h: int, g: int) -> list[Job]:
    """Rows and groups, and where these are too few for the threads, parts of the heads of a group."""
    heads = h // g
    parts = min(heads, max(1, -(-torch.get_num_threads() // (b * g))))
    return [
        (row, group, (group * heads + heads * k // parts, group * heads + heads * (k + 1) // parts), k)
        for row in range(b)
        for group in range(g)
        for k in range(parts)
    ]


def _run(kernel: Callable[..., None], jobs: list[tuple], buffers: Callable[[], walk.Buffers]) -> None:
    """kernel(*job, buffers) for every job, with one set of buffers for each thread."""
    free = deque(buffers() for _ in range(min(torch.get_num_threads(), len(jobs))))

    def with_buffers(*job: Any) -> None:
        room = free.pop()
        kernel(*job, room)
        free.append(room)

    run(with_buffers, jobs)


def _tables(b: int, l: int, seq_idx: Tensor | None, initial: bool, final: bool) -> list[np.ndarray]:
    """For each row of the batch its table of tiles (walk.py says what is in it)."""
    tables, sequences = [], 0
    for row in range(b):
        starts = np.zeros(l, bool)
        if seq_idx is not None:
            labels = seq_idx[row].numpy()
            starts[1:] = labels[1:] != labels[:-1]
        starts[0] = True
        tables.append(_table(starts, initial, final, sequences))
        sequences += int(starts.sum())
    return tables


def _table(starts: np.ndarray, initial: bool, final: bool, sequences: int) -> np.ndarray:
    """One row's, from where its sequences start; `sequences` are those of the rows before."""
    l = len(starts)
    steps = np.arange(l)
    cut = starts | (steps % SPAN == 0)
    begin = np.flatnonzero((steps - np.maximum.accumulate(np.where(cut, steps, 0))) % TILE == 0)
    fresh = starts[begin]
    last = np.append(fresh[1:], True)  # of its sequence
    enters = ~fresh
    enters[0] = initial
    slot = np.where(last & final, sequences + np.cumsum(fresh) - 1, -1)
    entered = np.cumsum(enters)
    before_span = np.where(begin % SPAN == 0, entered - enters, 0)
    room = np.where(enters, entered - 1 - np.maximum.accumulate(before_span), 0)
    columns = (begin, np.append(begin[1:], l), enters, ~last | (slot >= 0), slot, room)
    return np.stack([np.asarray(column, np.int64) for column in columns], 1)


ssd = operator.register("cpu", forward, gradient, SPAN)
