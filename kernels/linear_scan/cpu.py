"""The linear scan on the CPU: loops compiled by Numba, channels in the inner one.

Arrays are (b, l, d), states (b, d). The inner loop runs over neighbours in memory, which the
compiler turns into SIMD instructions, and the state of a step is the row written just before it.
Reading a and b and writing h once is all the traffic there is: at d = 256 the scan takes about as
long as copying its arrays would (benchmarks/linear_scan.py). A large h is written past the cache, into memory
that was used before (memory.py).

Half types are read and written as they are; states are float32 inside (arrays.py). Only their gradient, which has
nothing but h to know them from, takes them as rounded there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, empty, narrow, widen
from ssmcourse.kernels.linear_scan import operator
from ssmcourse.kernels.memory import LARGE, LINE
from ssmcourse.kernels.threads import native, run

NARROW = 8  # up to so many channels, one chain of products and sums after another beats SIMD over channels
IN_CACHE = 512  # steps of such a chain before the next channel's, which lies in the same lines of the cache
PARALLEL_FROM = 1 << 16  # elements; below, waking a second thread costs more than it saves
BLOCK_AT_LEAST = 256  # channels; a kilobyte a step keeps the memory's prefetcher going
PIECE_AT_LEAST = 256  # steps
READING = 0.6  # what `_through` takes, which writes nothing, of the time of `_scan`

Range = tuple[int, int]


# --- Kernels: steps begin to end of all rows of their arguments, channels lo to hi -------------
# Gates may be shared, by all rows or by all steps: `i * differs` and `t * moves` then stay 0.


@native
def _scan(a, b, entering, h, begin, end, lo, hi, reverse):
    """h_t = a_t h_{t-1} + b_t, with `entering` (b, d) before the first step."""
    differs, moves = a.shape[0] > 1, a.shape[1] > 1
    for i in range(b.shape[0]):
        h_before = entering[i, lo:hi]
        for step in range(end - begin):
            t = end - 1 - step if reverse else begin + step
            a_t, b_t, h_t = a[i * differs, t * moves, lo:hi], b[i, t, lo:hi], h[i, t, lo:hi]
            for k in range(hi - lo):
                h_t[k] = a_t[k] * h_before[k] + b_t[k]
            h_before = h_t


@native
def _scan_half(a, b, state, h, begin, end, lo, hi, reverse):
    """The same for half types, whose rounded h cannot be the state: that is float32, in `state` (b, d), in place."""
    differs, moves = a.shape[0] > 1, a.shape[1] > 1
    for i in range(b.shape[0]):
        state_i = state[i, lo:hi]
        for step in range(end - begin):
            t = end - 1 - step if reverse else begin + step
            a_t, b_t, h_t = a[i * differs, t * moves, lo:hi], b[i, t, lo:hi], h[i, t, lo:hi]
            for k in range(hi - lo):
                after = widen(a_t[k]) * state_i[k] + widen(b_t[k])
                state_i[k] = after
                h_t[k] = narrow(after, h_t[k])


@intrinsic
def _one_line(typingctx, a, b, state, h, k):
    """h[k:] = state[k:] = a[k:] * state[k:] + b[k:] for one line of h, which goes past the cache."""
    lanes = LINE * 8 // a.dtype.bitwidth
    number = ir.DoubleType() if a.dtype == types.float64 else ir.FloatType()

    def emit(context, builder, signature, args):
        line = ir.VectorType(number, lanes).as_pointer()
        places = [
            builder.bitcast(builder.gep(make_array(array)(context, builder, value).data, [args[4]]), line)
            for array, value in zip(signature.args[:4], args[:4], strict=True)
        ]
        gate, x, before = (builder.load(place, align=a.dtype.bitwidth // 8) for place in places[:3])
        product = builder.fmul(gate, before, flags=("contract",))
        after = builder.fadd(product, x, flags=("contract",))
        builder.store(after, places[2], align=a.dtype.bitwidth // 8)
        stored = builder.store(after, places[3], align=LINE)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(a, b, state, h, types.intp), emit


@native
def _scan_streaming(a, b, entering, h, begin, end, lo, hi, reverse):
    """`_scan` for an h that is too large for the cache: whole lines of it, real numbers, written past the cache.

    A plain store reads the line before it overwrites it: a quarter of all traffic.
    """
    differs, moves, lanes = a.shape[0] > 1, a.shape[1] > 1, LINE // a.itemsize
    state = np.empty(hi - lo, b.dtype)
    for i in range(b.shape[0]):
        for k in range(hi - lo):
            state[k] = entering[i, lo + k]
        for step in range(end - begin):
            t = end - 1 - step if reverse else begin + step
            a_t, b_t, h_t = a[i * differs, t * moves, lo:hi], b[i, t, lo:hi], h[i, t, lo:hi]
            for k in range(0, hi - lo, lanes):
                _one_line(a_t, b_t, state, h_t, k)


@native
def _scan_narrow(a, b, entering, h, begin, end, lo, hi, reverse):
    """The same for a few channels, one after another, with the state in a register.

    A step waits for the product and the sum of the step before, a single instruction of 4 cycles. That is
    less than what it costs to begin a loop over a few channels, and to read their states back.
    """
    differs, moves = a.shape[0] > 1, a.shape[1] > 1
    for i in range(b.shape[0]):
        states = entering[i].copy()
        for done in range(0, end - begin, IN_CACHE):
            n = min(IN_CACHE, end - begin - done)
            low = end - done - n if reverse else begin + done
            for k in range(lo, hi):
                gate, x, out = (
                    a[i * differs, low * moves :, k],
                    b[i, low : low + n, k],
                    h[i, low : low + n, k],
                )
                if reverse:
                    gate, x, out = a[i * differs, low * moves : low + n, k][::-1], x[::-1], out[::-1]
                state = states[k]
                for t in range(n):
                    state = widen(gate[t * moves]) * state + widen(x[t])
                    out[t] = narrow(state, out[t])
                states[k] = state


@native
def _gradient(dh, a, h, initial_state, carry, da, db, begin, end, lo, hi, reverse):
    """da, db, and in `carry` (b, d) what the steps before these get: a_t' db_t of the last one done.

    It goes through the steps backwards. On entry `carry` is what the steps behind these sent.
    """
    differs, moves, l = a.shape[0] > 1, a.shape[1] > 1, h.shape[1]
    for i in range(h.shape[0]):
        carry_i, first = carry[i, lo:hi], initial_state[i, lo:hi]
        for step in range(end - begin):
            t = begin + step if reverse else end - 1 - step
            before = t + 1 if reverse else t - 1
            h_before = h[i, before, lo:hi] if 0 <= before < l else first
            dh_t, a_t = dh[i, t, lo:hi], a[i * differs, t * moves, lo:hi]
            da_t, db_t = da[i, t, lo:hi], db[i, t, lo:hi]
            for k in range(hi - lo):
                total = widen(dh_t[k]) + carry_i[k]
                db_t[k] = narrow(total, db_t[k])
                da_t[k] = narrow(total * np.conj(widen(h_before[k])), da_t[k])
                carry_i[k] = total * np.conj(widen(a_t[k]))


@native
def _through(a, x, decay, local, begin, end, reverse, gradient):
    """What the steps do to a state that goes through them: h -> decay * h + local, both (b, d).

    With `gradient`, x is dh and the state is the `carry` of `_gradient`, on its way back.
    """
    differs, moves = a.shape[0] > 1, a.shape[1] > 1
    decay[:], local[:] = 1, 0
    for i in range(x.shape[0]):
        decay_i, local_i = decay[i], local[i]
        for step in range(end - begin):
            t = end - 1 - step if reverse else begin + step
            a_t, x_t = a[i * differs, t * moves], x[i, t]
            for k in range(x.shape[2]):
                gate, x_k = widen(a_t[k]), widen(x_t[k])
                gate = np.conj(gate) if gradient else gate
                local_i[k] = gate * (local_i[k] + x_k) if gradient else gate * local_i[k] + x_k
                product = gate * decay_i[k]
                # Zero in good time: arithmetic on denormals would take 30 times as long. A gate that
                # would make it grow again asks for the exact way, one step at a time, by a NaN.
                size, gain = abs(product.real) + abs(product.imag), abs(gate.real) + abs(gate.imag)
                decay_i[k] = product if not size <= 1e-30 else 0 if gain <= 1 else np.nan


# --- Who does what ----------------------------------------------------------------------------


def scan(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
    """h of `linear_scan`, for a and b (b, l, d) of one dtype, and the initial state (b, d) in that computed in."""
    gates, x, first = _gates(a), as_array(b), as_array(initial_state)
    result, h = empty(x.shape, b.dtype)
    rows, pieces, blocks = _plan(*x.shape)
    kernel = _kernel(x, blocks)
    first = first.copy() if kernel is _scan_half else first  # which writes to it

    def jobs(piece: Range, entering: np.ndarray) -> list[tuple]:
        return [
            (kernel, _of(gates, i), x[i], entering[i], h[i], *piece, *block, reverse)
            for i in rows
            for block in blocks
        ]

    def leaving(piece: Range, state: np.ndarray) -> np.ndarray:
        return state if kernel is _scan_half else h[:, piece[0] if reverse else piece[1] - 1]

    _pass(jobs, leaving, gates, x, first, rows, pieces, reverse, gradient=False)
    return result


def _kernel(x: np.ndarray, blocks: list[Range]) -> Callable[..., None]:
    if x.shape[2] <= NARROW:
        return _scan_narrow
    if x.dtype.kind in "iu":
        return _scan_half
    lines = all(end * x.itemsize % LINE == 0 for _, end in blocks)
    return _scan_streaming if lines and x.nbytes >= LARGE and not np.iscomplexobj(x) else _scan


def gradient(
    dh: Tensor, a: Tensor, h: Tensor, initial_state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """da, db and d initial_state in one pass over dh, a and h."""
    gates, x, states, first = _gates(a), as_array(dh), as_array(h), as_array(initial_state)
    nothing = np.zeros_like(first)
    wider = h.dtype != initial_state.dtype  # a half h
    first = as_array(initial_state.to(h.dtype)) if wider else first
    (da_tensor, da), (db_tensor, db) = empty(x.shape, h.dtype), empty(x.shape, h.dtype)
    rows, pieces, blocks = _plan(*x.shape)

    def jobs(piece: Range, carry: np.ndarray) -> list[tuple]:
        gates_of = [(i, _of(gates, i)) for i in rows]
        return [
            (_gradient, x[i], a_i, states[i], first[i], carry[i], da[i], db[i], *piece, *block, reverse)
            for i, a_i in gates_of
            for block in blocks
        ]

    def leaving(_: Range, carry: np.ndarray) -> np.ndarray:
        return carry

    carry = _pass(jobs, leaving, gates, x, nothing, rows, pieces, not reverse, gradient=True)
    if wider:  # than what the kernel was given
        entry = -1 if reverse else 0
        da_tensor[:, entry] = db_tensor[:, entry] * initial_state
    return da_tensor, db_tensor, torch.from_numpy(carry)


def _plan(b: int, l: int, d: int) -> tuple[list[slice], list[Range], list[Range]]:
    """Rows, pieces of l and blocks of channels to share out among the threads.

    l is cut last: to know the states that enter the pieces, a and b have to be read once more. A few
    channels are not: `_scan_narrow` wins nothing from it.
    """
    threads = torch.get_num_threads() if b * l * d >= PARALLEL_FROM else 1
    if threads == 1:
        return [slice(0, b)], [(0, l)], [(0, d)]
    rows = _cut(b, threads)
    blocks = _cut(d, threads // len(rows), BLOCK_AT_LEAST)
    idle = threads // (len(rows) * len(blocks))
    pieces = min(idle, l // PIECE_AT_LEAST) if d > NARROW else 1
    return [slice(*r) for r in rows], _pieces(l, pieces), blocks


def _pieces(l: int, threads: int) -> list[Range]:
    """One for each thread, and before them one short enough to be done while the others are only read."""
    if threads < 2:
        return [(0, l)]
    ends = [round(l * (READING + n) / (READING + threads)) for n in range(threads + 1)]
    return list(zip([0, *ends], ends, strict=False))


def _cut(n: int, parts: int, at_least: int = 1) -> list[Range]:
    parts = max(1, min(parts, n // at_least))
    return [(n * p // parts, n * (p + 1) // parts) for p in range(parts)]


def _pass(
    jobs: Callable[[Range, np.ndarray], list[tuple]],
    leaving: Callable[[Range, np.ndarray], np.ndarray],
    a: np.ndarray,
    x: np.ndarray,
    state: np.ndarray,
    rows: list[slice],
    pieces: list[Range],
    reverse: bool,
    gradient: bool,
) -> np.ndarray:
    """Run the jobs of every piece with the state (b, d) that enters it; the state after the last.

    While the first piece is done, the others, but for the last, are summed up as maps (`_through`). Then
    all entering states are known.
    """
    if len(pieces) == 1:
        only = jobs(pieces[0], state)
        if len(only) == 1:
            _call(*only[0])
        else:
            run(_call, only)
        return leaving(pieces[0], state)
    l = x.shape[1]
    if reverse:  # cut as if l ran the other way
        pieces = [(l - end, l - begin) for begin, end in pieces]
    maps = [(np.empty_like(state), np.empty_like(state)) for _ in pieces[1:-1]]
    summing_up = [
        (_through, _of(a, i), x[i], decay[i], local[i], *piece, reverse, gradient)
        for piece, (decay, local) in zip(pieces[1:], maps, strict=False)
        for i in rows
    ]
    run(_call, [*jobs(pieces[0], state), *summing_up])
    state = leaving(pieces[0], state)
    if not all(np.isfinite(m).all() for m in (*maps, (state,))):  # one step after another, then
        rest = (0, pieces[0][0]) if reverse else (pieces[0][1], l)
        run(_call, jobs(rest, state))
        return leaving(rest, state)
    states = [state]
    for decay, local in maps:
        states.append(decay * states[-1] + local)
    run(
        _call,
        [job for piece, entering in zip(pieces[1:], states, strict=True) for job in jobs(piece, entering)],
    )
    return leaving(pieces[-1], states[-1])


def _call(kernel: Callable[..., None], *arguments: Any) -> None:
    kernel(*arguments)


def _gates(a: Tensor) -> np.ndarray:
    """a without the copies that expanding made: (b or 1, l or 1, d)."""
    a = a[:1] if a.stride(0) == 0 else a
    return as_array(a[:, :1] if a.stride(1) == 0 else a)


def _of(gates: np.ndarray, rows: slice) -> np.ndarray:
    return gates if len(gates) == 1 else gates[rows]


linear_scan = operator.register("cpu", scan, gradient, reads_half=True)
