"""The causal convolution on the CPU: sums of shifted lines.

In memory a row of x is one long line of l d numbers, and the step before is d places to the left. So
a tap is a multiple of that line, shifted, and neighbours are added to neighbours: SIMD for any d. Narrow
steps are taken several at a time (`WIDE`), for which the taps are laid out as often.

What lies outside a step's sequence is not multiplied by zero but left out, so that no infinity from there
leaves a NaN here. The gradient recomputes f's argument, in chunks of steps that stay in the cache.
"""

from __future__ import annotations

import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, empty, narrow, widen
from ssmcourse.kernels.causal_conv1d import operator
from ssmcourse.kernels.threads import native, run
from ssmcourse.kernels.vector_math import inner, sigmoid

WIDE = 1024  # numbers that a loop should go through at least: several steps where d is smaller
CHUNK = 1 << 16  # numbers in a chunk of the gradient, whose intermediate results stay in the second cache
PARALLEL_FROM = 1 << 16  # numbers; below, waking a second thread costs more than it saves
PIECE_AT_LEAST = 256  # steps

# --- Kernels --------------------------------------------------------------------------------------
# x, y, dy, dx (b, l d) and before (b, (w - 1) d), the initial state: step and channel are one dimension.
# taps (w, wide) and bias (wide,) are repeated for wide / d steps; taps[w - 1] belongs to the step itself.
# seq (b, l), or (0, 0) where every row is one sequence.


@inner
def _together(seq, i, first, last):
    """Are the steps first to last of row i in one sequence?"""
    if seq.shape[0]:
        for t in range(first + 1, last + 1):
            if seq[i, t] != seq[i, t - 1]:
                return False
    return True


@inner
def _first_seen(seq, i, t, w):
    """The first step that step t sees: w - 1 steps back, or where its sequence begins."""
    for s in range(t, max(t - w + 1, 0), -1):
        if not _together(seq, i, s - 1, s):
            return s
    return t - w + 1


def _room(out, spare):
    """In a kernel: where to compute `out`: in place, or for half types in `spare`, of the type computed in."""
    raise NotImplementedError("only compiled code calls this")


def _widened(row, spare):
    """In a kernel: `row` in the type computed in: itself, or for half types what it holds, in `spare`."""
    raise NotImplementedError("only compiled code calls this")


def _store(value, out):
    """In a kernel: out = value, which may have been computed in place."""
    raise NotImplementedError("only compiled code calls this")


@overload(_room)
def _(out, spare):
    in_place = out.dtype == spare.dtype
    return (lambda out, spare: out) if in_place else (lambda out, spare: spare[: out.size])


@overload(_widened)
def _(row, spare):
    def widened(row, spare):
        for k in range(row.size):
            spare[k] = widen(row[k])
        return spare[: row.size]

    return (lambda row, spare: row) if row.dtype == spare.dtype else widened


@overload(_store)
def _(value, out):
    def narrowed(value, out):
        for k in range(out.size):
            out[k] = narrow(value[k], out[k])

    return (lambda value, out: None) if out.dtype == value.dtype else narrowed


@inner
def _fill(out, values):
    for k in range(out.size):
        out[k] = values[k]


@inner
def _clear(out):
    for k in range(out.size):
        out[k] = 0


@inner
def _silu(value):
    for k in range(value.size):
        value[k] = value[k] * sigmoid(value[k])


@inner
def _add_taps(source, at, stride, taps, newest, count, out):
    """out += taps[newest - m] * source[at + m * stride:] for m = 0, ..., count - 1."""
    n = out.size
    for m in range(count):
        row, tap = source[at + m * stride : at + m * stride + n], taps[newest - m]
        for k in range(n):
            out[k] += tap[k] * widen(row[k])


@inner
def _four_taps(source, at, stride, taps, bias, out):
    """out = bias + taps[3 - m] * source[at + m * stride:], m = 0, ..., 3: in one go, since w is mostly 4."""
    n = out.size
    row0, row1 = source[at : at + n], source[at + stride : at + stride + n]
    row2, row3 = source[at + 2 * stride : at + 2 * stride + n], source[at + 3 * stride : at + 3 * stride + n]
    tap0, tap1, tap2, tap3 = taps[3], taps[2], taps[1], taps[0]
    for k in range(n):
        value = bias[k] + tap0[k] * widen(row0[k]) + tap1[k] * widen(row1[k])
        out[k] = value + tap2[k] * widen(row2[k]) + tap3[k] * widen(row3[k])


@inner
def _sum(x, before, seq, taps, bias, d, i, t, end, value):
    """f's argument at the next steps from t on, as many as one loop can do; how many those are."""
    w, wide = taps.shape
    first, at_once = t - w + 1, min(wide // d, end - t)
    if first < 0 or not _together(seq, i, first, t + at_once - 1):
        first, at_once = _first_seen(seq, i, t, w), 1
    given = min(t, t - first) + 1  # of the steps seen, so many are x's
    value = value[: at_once * d]
    if w == 4 and given == 4:
        _four_taps(x[i], t * d, -d, taps, bias, value)
    else:
        _fill(value, bias)
        _add_taps(x[i], t * d, -d, taps, w - 1, given, value)
        _add_taps(before[i], (w - 2) * d, -d, taps, w - 1 - given, -min(first, 0), value)
    return at_once


@native
def _forward(x, before, seq, taps, bias, d, y, begin, end, silu):
    """y for the steps begin to end of every row."""
    spare = np.empty(taps.shape[1], taps.dtype)
    for i in range(x.shape[0]):
        t = begin
        while t < end:
            value = _room(y[i, t * d : t * d + spare.size], spare)
            n = d * _sum(x, before, seq, taps, bias, d, i, t, end, value)
            if silu:
                _silu(value[:n])
            _store(value[:n], y[i, t * d : t * d + n])
            t += n // d


@inner
def _through_silu(dy, value):
    """In place of f's argument `value`, the gradient there."""
    for k in range(value.size):
        s = sigmoid(value[k])
        value[k] = widen(dy[k]) * (s * (1 + value[k] * (1 - s)))


@inner
def _add_products(source, dvalue, at, stride, newest, count, sums):
    """sums[newest - m] += source * dvalue[at + m * stride:] for m = 0, ..., count - 1."""
    n = source.size
    for m in range(count):
        row, total = dvalue[at + m * stride : at + m * stride + n], sums[newest - m]
        for k in range(n):
            total[k] += widen(source[k]) * row[k]


@inner
def _two_lines(source, dvalue, at, stride, taps, sums, out):
    """What `_add_taps` and `_add_products` do to out and sums, w = 4, and the bias: twice as many numbers as taps has.

    In one go: a row of dvalue is read once for both, a tap and a sum once for both lines.
    """
    n = out.size // 2
    row0, row1 = dvalue[at:], dvalue[at + stride :]
    row2, row3 = dvalue[at + 2 * stride :], dvalue[at + 3 * stride :]
    tap0, tap1, tap2, tap3 = taps[3], taps[2], taps[1], taps[0]
    sum0, sum1, sum2, sum3, total = sums[3], sums[2], sums[1], sums[0], sums[4]
    for k in range(n):
        a0, a1, a2, a3, x_a = row0[k], row1[k], row2[k], row3[k], widen(source[k])
        b0, b1, b2, b3, x_b = row0[n + k], row1[n + k], row2[n + k], row3[n + k], widen(source[n + k])
        out[k] = tap0[k] * a0 + tap1[k] * a1 + tap2[k] * a2 + tap3[k] * a3
        out[n + k] = tap0[k] * b0 + tap1[k] * b1 + tap2[k] * b2 + tap3[k] * b3
        sum0[k] += x_a * a0 + x_b * b0
        sum1[k] += x_a * a1 + x_b * b1
        sum2[k] += x_a * a2 + x_b * b2
        sum3[k] += x_a * a3 + x_b * b3
        total[k] += a0 + b0


@inner
def _inputs(dvalue, source, seq, taps, spare, d, i, l, begin, end, dx, sums):
    """dx (steps d) of `source`, the steps begin to end, and what these add to `sums` (w + 1, wide).

    The steps are x's or, negative, the initial state's, not both. `sums` are the gradients of the taps and, from
    x's steps alone, of the bias.
    """
    w, line = taps.shape[0], taps.shape[1] // d
    origin = max(begin, 0)  # the step at which dvalue begins
    t = begin
    while t < end:
        at_once, skipped = 2 * line if w == 4 and t + 2 * line <= end else min(line, end - t), max(-t, 0)
        last = min(t + w, l) - 1  # of the steps that see step t
        if t < 0 or t + at_once + w - 1 > l or not _together(seq, i, t, t + at_once + w - 2):
            at_once = 1
            while not _together(seq, i, max(t, 0), last):
                last -= 1
        place, n = (t - begin) * d, at_once * d
        row, out = source[place : place + n], dx[place : place + n]
        value, count, at = _room(out, spare), last - t + 1 - skipped, (t + skipped - origin) * d
        if at_once > line:
            _two_lines(row, dvalue, at, d, taps, sums, value)
        else:
            _clear(value)
            _add_taps(dvalue, at, d, taps, w - 1 - skipped, count, value)
            _add_products(row, dvalue, at, d, w - 1 - skipped, count, sums)
            if t >= 0:
                for k in range(n):
                    sums[w, k] += dvalue[at + k]
        _store(value, out)
        t += at_once


@native
def _gradient(dy, x, before, seq, taps, bias, d, dx, dbefore, totals, begin, end, silu):
    """dx for the steps begin to end, dbefore if they are the first, and what they add to totals (w + 1, d)."""
    w, wide = taps.shape
    l, chunk = x.shape[1] // d, max(CHUNK // d, 4 * w)
    spare, sums = np.empty(2 * wide, taps.dtype), np.empty((w + 1, wide), taps.dtype)
    dvalue = np.empty((chunk + w - 1) * d, taps.dtype)
    for i in range(x.shape[0]):
        for start in range(begin, end, chunk):
            stop = min(start + chunk, end)
            seen = min(stop + w - 1, l)  # the steps up to here see those of this chunk
            part, dy_part = dvalue[: (seen - start) * d], dy[i, start * d : seen * d]
            if silu:
                t = start
                while t < seen:
                    t += _sum(x, before, seq, taps, bias, d, i, t, seen, part[(t - start) * d :])
                _through_silu(dy_part, part)
            else:
                part = _widened(dy_part, part)
            for j in range(w + 1):
                _clear(sums[j])
            x_part, dx_part = x[i, start * d : stop * d], dx[i, start * d : stop * d]
            _inputs(part, x_part, seq, taps, spare, d, i, l, start, stop, dx_part, sums)
            if start == 0:
                _inputs(part, before[i], seq, taps, spare, d, i, l, 1 - w, 0, dbefore[i], sums)
            for j in range(w + 1):
                for place in range(0, wide, d):
                    for k in range(d):
                        totals[j, k] += sums[j, place + k]


# --- Who does what ----------------------------------------------------------------------------


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> Tensor:
    """y; all arguments as in operator.py, x not empty."""
    line, before, seq, taps, shift = _arrays(x, weight, bias, initial_state, seq_idx)
    y, out = empty(x.shape, x.dtype)
    out = _line(out)
    run(
        _forward,
        [
            (line[i], before[i], seq[i], taps, shift, x.shape[2], out[i], *piece, silu)
            for i, piece in _plan(*x.shape)
        ],
    )
    return y


def gradient(
    upstream: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> list[Tensor]:
    """The gradients of x, weight, bias and initial_state, those that are not None."""
    (b, l, d), w = x.shape, weight.shape[1]
    line, before, seq, taps, shift = _arrays(x, weight, bias, initial_state, seq_idx)
    dy, dbefore = _line(as_array(upstream[0])), np.empty_like(before)
    dx, dx_line = empty(x.shape, x.dtype)
    dx_line = _line(dx_line)
    jobs = _plan(b, l, d)
    totals = np.zeros((len(jobs), w + 1, d))
    run(
        _gradient,
        [
            (
                dy[i],
                line[i],
                before[i],
                seq[i],
                taps,
                shift,
                d,
                dx_line[i],
                dbefore[i],
                total,
                *piece,
                silu,
            )
            for (i, piece), total in zip(jobs, totals, strict=True)
        ],
    )
    total = torch.from_numpy(totals.sum(0)).to(weight.dtype)
    found = [dx, total[:w].T.contiguous()]
    found += [] if bias is None else [total[w].clone()]
    return found if initial_state is None else [*found, torch.from_numpy(dbefore).view(b, w - 1, d)]


def _plan(b: int, l: int, d: int) -> list[tuple[slice, tuple[int, int]]]:
    """Rows and pieces of l to share out among the threads."""
    threads = torch.get_num_threads() if b * l * d >= PARALLEL_FROM else 1
    rows = min(b, threads)
    pieces = max(1, min(threads // rows, l // PIECE_AT_LEAST))
    return [
        (slice(b * r // rows, b * (r + 1) // rows), (l * p // pieces, l * (p + 1) // pieces))
        for r in range(rows)
        for p in range(pieces)
    ]


def _arrays(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, seq_idx: Tensor | None
) -> tuple[np.ndarray, ...]:
    """x, before, seq, taps and bias as the kernels take them."""
    (b, _, d), w = x.shape, weight.shape[1]
    at_once = max(1, WIDE // d)
    taps = as_array(weight.mT)
    shift = np.zeros(d, taps.dtype) if bias is None else as_array(bias)
    before = (
        np.zeros((b, (w - 1) * d), taps.dtype) if initial_state is None else _line(as_array(initial_state))
    )
    seq = np.zeros((0, 0), np.int64) if seq_idx is None else as_array(seq_idx)
    return _line(as_array(x)), before, seq, np.tile(taps, (1, at_once)), np.tile(shift, at_once)


def _line(array: np.ndarray) -> np.ndarray:
    """Step and channel as one dimension."""
    return array.reshape(array.shape[0], array.shape[1] * array.shape[2])


causal_conv1d = operator.register("cpu", forward, gradient)
