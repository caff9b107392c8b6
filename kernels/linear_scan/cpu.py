"""The linear scan on the CPU: loops compiled by Numba, channels in the inner one.

Arrays are (b, l, d), states (b, d). The inner loop runs over neighbours in memory, which the
compiler turns into SIMD instructions, and the state of a step is the row written just before it.
Reading a and b and writing h once is all the traffic there is: at d = 256 the scan takes about as
long as copying its arrays would (benchmarks/linear_scan.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels.linear_scan import operator
from ssmcourse.kernels.threads import native, run

NARROW = 4  # up to so many channels, looking ahead in time beats SIMD over channels
PARALLEL_FROM = 1 << 16  # elements; below, waking a second thread costs more than it saves
BLOCK_AT_LEAST = 256  # channels; a kilobyte a step keeps the memory's prefetcher going
PIECE_AT_LEAST = 256  # steps

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
def _held(product):
    """Whether a product of gates is well inside the range of a float32."""
    size = abs(product.real) + abs(product.imag)
    return 1e-30 < size < 1e30


@native
def _scan_narrow(a, b, entering, h, begin, end, lo, hi, reverse):
    """The same for a few channels, one after another.

    A step must wait for the product and the sum of the step before: 8 cycles, with the memory idle.
    So the maps of four steps, h -> decay * h + local, are composed first, which waits for nothing;
    then the state goes through all four at once. Where a product leaves the range of a float
    (`_held` says no), the four steps are done one by one.
    """
    differs, moves = a.shape[0] > 1, a.shape[1] > 1
    start, onward = (end - 1, -1) if reverse else (begin, 1)
    in_fours = (end - begin) // 4 * 4
    for i in range(b.shape[0]):
        for k in range(lo, hi):
            gate, x, out = a[i * differs, :, k], b[i, :, k], h[i, :, k]
            state = entering[i, k]
            for step in range(0, in_fours, 4):
                t0 = start + onward * step
                t1, t2, t3 = t0 + onward, t0 + 2 * onward, t0 + 3 * onward
                a1, a2, a3 = gate[t1 * moves], gate[t2 * moves], gate[t3 * moves]
                decay0, local0 = gate[t0 * moves], x[t0]
                decay1, local1 = a1 * decay0, a1 * local0 + x[t1]
                decay2, local2 = a2 * decay1, a2 * local1 + x[t2]
                decay3, local3 = a3 * decay2, a3 * local2 + x[t3]
                after = decay3 * state + local3
                if _held(decay1) and _held(decay2) and _held(decay3) and np.isfinite(after):
                    out[t0] = decay0 * state + local0
                    out[t1] = decay1 * state + local1
                    out[t2] = decay2 * state + local2
                    out[t3] = state = after
                else:
                    for t in (t0, t1, t2, t3):
                        state = gate[t * moves] * state + x[t]
                        out[t] = state
            for step in range(in_fours, end - begin):
                t = start + onward * step
                state = gate[t * moves] * state + x[t]
                out[t] = state


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
                total = dh_t[k] + carry_i[k]
                db_t[k] = total
                da_t[k] = total * np.conj(h_before[k])
                carry_i[k] = total * np.conj(a_t[k])


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
                gate = np.conj(a_t[k]) if gradient else a_t[k]
                local_i[k] = gate * (local_i[k] + x_t[k]) if gradient else gate * local_i[k] + x_t[k]
                product = gate * decay_i[k]
                # Zero in good time: arithmetic on denormals would take 30 times as long. A gate that
                # would make it grow again asks for the exact way, one step at a time, by a NaN.
                size, gain = abs(product.real) + abs(product.imag), abs(gate.real) + abs(gate.imag)
                decay_i[k] = product if not size <= 1e-30 else 0 if gain <= 1 else np.nan


# --- Who does what ----------------------------------------------------------------------------


def scan(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
    """h of `linear_scan`, for a and b (b, l, d) and the initial state (b, d), all of one dtype."""
    gates, x, first = _gates(a), _array(b), _array(initial_state)
    h = np.empty_like(x)  # NumPy asks for huge pages: fresh memory costs a third less than torch's
    rows, pieces, blocks = _plan(*x.shape)
    kernel = _scan_narrow if x.shape[2] <= NARROW else _scan
    run(
        kernel,
        [
            (_of(gates, i), x[i], entering[i], h[i], *piece, *block, reverse)
            for piece, entering in _entering(gates, x, first, pieces, reverse, gradient=False)
            for i in rows
            for block in blocks
        ],
    )
    return torch.from_numpy(h)


def gradient(
    dh: Tensor, a: Tensor, h: Tensor, initial_state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """da, db and d initial_state in one pass over dh, a and h."""
    gates, x, states, first = _gates(a), _array(dh), _array(h), _array(initial_state)
    da, db = np.empty_like(x), np.empty_like(x)
    rows, pieces, blocks = _plan(*x.shape)
    carries = _entering(gates, x, np.zeros_like(first), pieces, not reverse, gradient=True)
    run(
        _gradient,
        [
            (x[i], _of(gates, i), states[i], first[i], carry[i], da[i], db[i], *piece, *block, reverse)
            for piece, carry in carries
            for i in rows
            for block in blocks
        ],
    )
    _, last_carry = carries[-1]
    return torch.from_numpy(da), torch.from_numpy(db), torch.from_numpy(last_carry)


def _plan(b: int, l: int, d: int) -> tuple[list[slice], list[Range], list[Range]]:
    """Rows, pieces of l and blocks of channels to share out among the threads.

    l is cut last: to know the states that enter the pieces, a and b have to be read once more, which
    two threads do not win back, nor a few for a row so narrow that `_scan_narrow` takes it.
    """
    threads = torch.get_num_threads() if b * l * d >= PARALLEL_FROM else 1
    rows = _cut(b, threads)
    blocks = _cut(d, threads // len(rows), BLOCK_AT_LEAST)
    idle = threads // (len(rows) * len(blocks))
    pieces = _cut(l, idle if idle > 2 and d > NARROW else 1, PIECE_AT_LEAST)
    return [slice(*r) for r in rows], pieces, blocks


def _cut(n: int, parts: int, at_least: int = 1) -> list[Range]:
    parts = max(1, min(parts, n // at_least))
    return [(n * p // parts, n * (p + 1) // parts) for p in range(parts)]


def _entering(
    a: np.ndarray, x: np.ndarray, first: np.ndarray, pieces: list[Range], reverse: bool, gradient: bool
) -> list[tuple[Range, np.ndarray]]:
    """The pieces in the order they are passed through, each with the state (b, d) that enters it."""
    in_order = pieces[::-1] if reverse else pieces
    maps = [(np.empty_like(first), np.empty_like(first)) for _ in in_order[:-1]]
    run(_through, [(a, x, *m, *p, reverse, gradient) for p, m in zip(in_order, maps, strict=False)])
    if not all(np.isfinite(m).all() for m in (*maps, (first,))):
        return [((0, x.shape[1]), first)]  # products that a float cannot hold: one step at a time
    states = [first]
    for decay, local in maps:
        states.append(decay * states[-1] + local)
    return list(zip(in_order, states, strict=True))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _gates(a: Tensor) -> np.ndarray:
    """a without the copies that expanding made: (b or 1, l or 1, d)."""
    a = a[:1] if a.stride(0) == 0 else a
    return _array(a[:, :1] if a.stride(1) == 0 else a)


def _of(gates: np.ndarray, rows: slice) -> np.ndarray:
    return gates if len(gates) == 1 else gates[rows]


linear_scan = operator.register("cpu", scan, gradient)
