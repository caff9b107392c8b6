"""Along the sequence, tile by tile: the compiled part of SSD on the CPU that carries states from tile to tile.

One call does one row of the batch and the heads first to stop, all of one group: they share B and C, hence
C Bᵀ. It holds one state (n, p) for each head. The result does not depend on where the tiles end.

A row of `tiles` is (begin, end, enters, leaves, final, room):

    begin, end     its steps
    enters         whether a state enters it: not at the start of a packed sequence
    leaves         whether its last state is needed, by the next tile or as a final one
    final          the place of its last state among the final ones, or -1
    room           the place of the state that enters it among `Buffers.entered`

A tile of the table never reaches over a multiple of SPAN; there the forward keeps its states for the backward.
"""

from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import numpy as np

from ssmcourse.kernels.ssd.products import A_UPPER, ALL, AS_IS, OUT_LOWER, PAD, TRANSPOSED, multiply
from ssmcourse.kernels.ssd.tiles import (
    TILE,
    advance,
    clear,
    copy,
    dot,
    edges,
    finish,
    finish_inputs,
    flush,
    load,
    load_steps,
    mask,
    outputs,
    scale_columns,
    scale_rows,
    store_steps,
    store_transposed,
    sum_stretches,
    through_entry,
    through_mask,
    through_state,
    transpose,
    undo_gate,
)
from ssmcourse.kernels.threads import native
from ssmcourse.kernels.vector_math import inner

SPAN = 16 * TILE


class Inputs(NamedTuple):
    """The operator's arrays, or the gradients by them, of the type that is computed in; x, B, C and z may be half."""

    x: np.ndarray  # (b, l, h, p)
    dt: np.ndarray  # (b, l, h)
    log_a: np.ndarray  # (b, l, h)
    B: np.ndarray  # (b, l, g, n); as a gradient (parts, b, l, g, n)
    C: np.ndarray  # the same
    D: np.ndarray  # (h, p); as a gradient (b, h, p), float64
    z: np.ndarray  # (b, l, h, p), or anything where there is no gate
    initial: np.ndarray  # (b, h, p, n)


# Room for one tile (tiles.py explains the names) and for the states of a job's heads, as name: shape, in letters:
# t is TILE, h the heads, r the tiles of a span that a state enters; n and p are rounded up to a multiple of PAD.
FORWARD = {
    "B": "tn", "C": "tn", "B_T": "nt", "G": "tt", "L": "tt", "M": "tt", "xbar": "tp", "Y": "tp",
    "steps": "t", "log_a": "t", "sums": "t", "from_start": "t", "to_end": "t",
    "states": "hnp",  # S on the way forward, dS on the way back
}  # fmt: skip
BACKWARD = {
    "C_T": "nt", "dG": "tt", "dG_T": "tt", "dM": "tt", "dB_T": "nt", "dC_T": "nt", "E": "nt",
    "xbar_T": "pt", "dY_T": "pt", "dX": "tp", "dY": "tp", "dD": "p", "dlog_a": "t", "dfrom_start": "t", "dto_end": "t",
    "entered": "rhnp",
}  # fmt: skip
Buffers = namedtuple("Buffers", [*FORWARD, *BACKWARD])


def buffers(n: int, p: int, heads: int, rooms: int, number: np.dtype) -> Buffers:
    """Zeros; with no `rooms` for states, those of the backward are empty."""
    n, p = (-(-size // PAD) * PAD for size in (n, p))
    sides = {"n": n, "p": p, "t": TILE, "h": heads, "r": rooms}
    shapes = [[sides[s] for s in shape] for shape in FORWARD.values()]
    shapes += [[sides[s] if rooms else 0 for s in shape] for shape in BACKWARD.values()]
    return Buffers(*(np.zeros(shape, number) for shape in shapes))


@native
def forward(inputs, gated, y, kept, final, tiles, row, group, first, stop, w):
    """Writes the heads' part of y, of `final` (s, h, p, n), and of `kept` (b, spans - 1, h, n, p)."""
    n, p = inputs.B.shape[3], inputs.x.shape[3]
    for h in range(first, stop):
        transpose(inputs.initial[row, h], p, n, w.states[h - first])
    for begin, end, enters, leaves, slot, _ in tiles:
        q = end - begin
        _open(inputs, w, row, group, begin, q)
        for h in range(first, stop):
            state = w.states[h - first]
            if kept.shape[1] and begin % SPAN == 0 and begin > 0:
                copy(state, n, p, kept[row, begin // SPAN - 1, h])
            _open_head(inputs, w, row, h, begin, q)
            mask(w.log_a, w.G, w.sums, w.L, w.M, q)
            outputs(w.C, state, enters, w.from_start, w.M, w.xbar, w.Y, q, n, p)
            finish(w.Y, inputs.x, inputs.D, inputs.z, gated, row, h, begin, q, y)
            if leaves:
                advance(state, w.B, w.xbar, w.from_start, w.to_end, enters, q, n, p)
            if slot >= 0:
                transpose(state, n, p, final[slot, h])


@inner
def _open(inputs, w, row, group, begin, q):
    """B, C and C Bᵀ of a tile, for all heads of the group."""
    n = inputs.B.shape[3]
    load(inputs.B, row, group, begin, q, w.B)
    load(inputs.C, row, group, begin, q, w.C)
    transpose(w.B, q, n, w.B_T)
    multiply(w.C, AS_IS, w.B_T, w.G, q, q, n, 0.0, OUT_LOWER)


@inner
def _open_head(inputs, w, row, h, begin, q):
    """xbar and the decays to the tile's edges."""
    load_steps(inputs.dt, row, h, begin, q, w.steps)
    load_steps(inputs.log_a, row, h, begin, q, w.log_a)
    load(inputs.x, row, h, begin, q, w.xbar)
    scale_rows(w.xbar, w.steps, q)
    edges(w.log_a, w.from_start, w.to_end, q)


@native
def gradient(dy, dfinal, inputs, gated, kept, d, tiles, spans, row, group, first, stop, part, w):
    """Writes the heads' part of all in `d`; span i has the tiles spans[i] to spans[i + 1].

    The heads' sums for B and C go to d.B[part] and d.C[part].
    """
    n, p = inputs.B.shape[3], inputs.x.shape[3]
    for span in range(spans.shape[0] - 2, -1, -1):
        inside = tiles[spans[span] : spans[span + 1]]
        _enter(inputs, kept, inside, row, group, first, stop, w)
        for k in range(inside.shape[0] - 1, -1, -1):
            begin, end, enters, leaves, slot, room = inside[k]
            q = end - begin
            _open(inputs, w, row, group, begin, q)
            transpose(w.C, q, n, w.C_T)
            clear(w.dG)
            clear(w.dB_T)
            clear(w.dC_T)
            for h in range(first, stop):
                dS = w.states[h - first]
                if slot >= 0:
                    transpose(dfinal[slot, h], p, n, dS)
                S = w.entered[room, h - first]
                _head_gradient(dy, inputs, gated, d, S, dS, enters, leaves, row, h, begin, q, w)
            _close(w, q, n)
            store_transposed(w.dB_T, q, n, part, row, begin, group, d.B)
            store_transposed(w.dC_T, q, n, part, row, begin, group, d.C)
    for h in range(first, stop):
        transpose(w.states[h - first], n, p, d.initial[row, h])


@inner
def _enter(inputs, kept, inside, row, group, first, stop, w):
    """The states that entered the tiles of a span, computed again into `w.entered`."""
    n, p = inputs.B.shape[3], inputs.x.shape[3]
    span = inside[0, 0] // SPAN
    for k in range(inside.shape[0]):
        begin, end, enters, _, _, room = inside[k]
        if k == 0 and enters:
            for h in range(first, stop):
                if span == 0:
                    transpose(inputs.initial[row, h], p, n, w.entered[0, h - first])
                else:
                    copy(kept[row, span - 1, h], n, p, w.entered[0, h - first])
        if k + 1 == inside.shape[0] or not inside[k + 1, 2]:
            continue
        q = end - begin
        load(inputs.B, row, group, begin, q, w.B)
        for h in range(first, stop):
            after = w.entered[inside[k + 1, 5], h - first]
            if enters:
                copy(w.entered[room, h - first], n, p, after)
            _open_head(inputs, w, row, h, begin, q)
            advance(after, w.B, w.xbar, w.from_start, w.to_end, enters, q, n, p)


@inner
def _head_gradient(dy, inputs, gated, d, S, dS, enters, leaves, row, h, begin, q, w):
    """One head of one tile. dS, by the last state, becomes that by the state that entered."""
    n, p = inputs.B.shape[3], inputs.x.shape[3]
    _open_head(inputs, w, row, h, begin, q)
    mask(w.log_a, w.G, w.sums, w.L, w.M, q)
    load(dy, row, h, begin, q, w.dY)
    if gated:
        outputs(w.C, S, enters, w.from_start, w.M, w.xbar, w.Y, q, n, p)
        undo_gate(w.dY, w.Y, inputs.x, inputs.D, inputs.z, row, h, begin, q, d.z)
    transpose(w.xbar, q, p, w.xbar_T)
    transpose(w.dY, q, p, w.dY_T)
    w.dfrom_start[:] = 0
    w.dto_end[:] = 0
    dwhole = w.dto_end[0]
    if leaves:
        multiply(w.B, AS_IS, dS, w.dX, q, p, n, 0.0, ALL)
        through_state(w.dX, w.xbar, w.to_end, w.dto_end, q, p)
        if enters:
            dwhole = w.from_start[q - 1] * dot(dS, S, n, p)
    multiply(w.M, TRANSPOSED, w.dY, w.dX, q, p, q, 1.0 if leaves else 0.0, A_UPPER)
    multiply(w.dY, AS_IS, w.xbar_T, w.dM, q, q, p, 0.0, OUT_LOWER)
    through_mask(w.dM, w.L, w.M, w.sums, w.dG, w.dlog_a, q)
    if enters:
        multiply(S, AS_IS, w.dY_T, w.E, n, q, p, 0.0, ALL)
        through_entry(w.E, w.C_T, w.from_start, w.dfrom_start, w.dC_T, q, n)
    sum_stretches(w.dlog_a, w.dfrom_start, w.dto_end, dwhole, q)
    store_steps(w.dlog_a, row, h, begin, q, d.log_a)
    finish_inputs(w.dX, w.dY, inputs.x, w.steps, inputs.D, row, h, begin, q, d.x, d.dt, w.dD, d.D)
    if leaves:
        scale_columns(w.xbar_T, w.to_end, q, p)
        multiply(dS, AS_IS, w.xbar_T, w.dB_T, n, q, p, 1.0, ALL)
    if enters:
        scale_rows(w.dY, w.from_start, q)
        keep = float(w.from_start[q - 1]) if leaves else 0.0
        multiply(w.C, TRANSPOSED, w.dY, dS, n, p, q, keep, ALL)
        flush(dS)


@inner
def _close(w, q, n):
    """What C Bᵀ, of all heads together, adds to the gradients of B and C."""
    transpose(w.dG, q, q, w.dG_T)
    multiply(w.B, TRANSPOSED, w.dG_T, w.dC_T, n, q, q, 1.0, ALL)
    multiply(w.C, TRANSPOSED, w.dG, w.dB_T, n, q, q, 1.0, ALL)
