"""One step of the selective scan and of SSD on the CPU, for generation: one call a token.

    h' = exp(Δ A) h + share Δ B x,    y = (C h' + D x) silu(z)          for each channel, with n states

share is 1 (Euler, Gu & Dao 2023; always in SSD, Dao & Gu 2024, eq. 1) or (exp(Δ A) - 1) / (Δ A) (zero-order hold).
What a step costs is mostly the way into it. So there is neither a gradient nor an operator of torch around it:
the caller asks `kernels.plain` whether it may come here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, narrow, nothing, widen
from ssmcourse.kernels.selective_scan.cpu_steps import apart, share
from ssmcourse.kernels.threads import native, run
from ssmcourse.kernels.vector_math import LOG2, exp, exp2, inner, sigmoid, softplus, summing

BLOCK = 1 << 10  # states whose gates are computed together
PARALLEL_FROM = 1 << 16  # states; below, waking a second thread costs more than it saves

# --- Kernels --------------------------------------------------------------------------------------
# Arrays as the public functions have them, those of optional arguments empty where there is none. A job takes the
# channels (or heads) begin to end, counted on from row to row. They compute in the type of the states. `zoh` is None
# or True: it chooses the code that is compiled, since with both in one loop there is no SIMD.


@inner
def _exponents(A, delta, out):
    """delta A / log 2 for some channels: (channels, n)."""
    apart()
    for i in range(delta.size):
        A_i, out_i, delta_i = A[i], out[i], delta[i] * A.dtype.type(1 / LOG2)
        for j in range(A_i.size):
            out_i[j] = delta_i * A_i[j]


@inner
def _powers_of_two(e):
    """In one loop over all channels: one over the states of a channel is too short for SIMD."""
    for k in range(e.size):
        e[k] = exp2(e[k])


@summing
def _channel(h, gate, u, B, C):
    """C h, after h = gate h + u B."""
    apart()
    y = u * 0
    for j in range(h.size):
        h[j] = gate[j] * h[j] + u * widen(B[j])
        y += widen(C[j]) * h[j]
    return y


@summing
def _channel_zoh(h, e, u, B, C):
    """C h, after h = 2^e h + share u B."""
    apart()
    y = u * 0
    for j in range(h.size):
        gate = exp2(e[j])
        h[j] = gate * h[j] + share(e[j], gate) * u * widen(B[j])
        y += widen(C[j]) * h[j]
    return y


@summing
def _channel_of_head(h, decay, u, B, C):
    """C h, after h = decay h + u B."""
    apart()
    y = u * 0
    for j in range(h.size):
        h[j] = decay * h[j] + u * widen(B[j])
        y += widen(C[j]) * h[j]
    return y


@inner
def _step_sizes(dt, bias, softplus_too, delta):
    for i in range(delta.size):
        delta[i] = widen(dt[i])
    if bias.size:
        for i in range(delta.size):
            delta[i] += bias[i]
    if softplus_too:
        for i in range(delta.size):
            delta[i] = softplus(delta[i])


@inner
def _skip_and_gate(value, x, D, z, y):
    """y = (value + D x) silu(z) for some channels."""
    if D.size:
        for i in range(value.size):
            value[i] += D[i] * widen(x[i])
    if z.size:
        for i in range(value.size):
            gate = value.dtype.type(widen(z[i]))
            value[i] *= gate * sigmoid(gate)
    for i in range(value.size):
        y[i] = narrow(value[i], y[i])


@inner
def _part(optional, begin, end):
    """These channels of an argument that may not be there."""
    return optional[begin:end] if optional.size else optional


@native
def advance_channels(h, x, dt, A, B, C, D, z, bias, y, begin, end, softplus_too, zoh):
    d, n = A.shape
    room = min(d, max(1, BLOCK // max(1, n)))  # channels at once
    deltas, values, exponents = np.empty(room, A.dtype), np.empty(room, A.dtype), np.empty((room, n), A.dtype)
    per_B, per_C = d // B.shape[1], d // C.shape[1]  # channels of a group
    k = begin
    while k < end:
        row, first = k // d, k % d
        last = min(first + room, d, first + end - k)
        delta, value, e = deltas[: last - first], values[: last - first], exponents[: last - first]
        x_row, h_row = x[row, first:last], h[row, first:last]
        _step_sizes(dt[row, first:last], _part(bias, first, last), softplus_too, delta)
        _exponents(A[first:last], delta, e)
        if zoh is None:
            _powers_of_two(e.reshape(e.size))
        for i in range(delta.size):
            B_i, C_i = B[row, (first + i) // per_B], C[row, (first + i) // per_C]
            u = delta[i] * widen(x_row[i])
            if zoh is None:
                value[i] = _channel(h_row[i], e[i], u, B_i, C_i)
            else:
                value[i] = _channel_zoh(h_row[i], e[i], u, B_i, C_i)
        z_row = z[row, first:last] if z.size else z[0]
        _skip_and_gate(value, x_row, _part(D, first, last), z_row, y[row, first:last])
        k += delta.size


@native
def advance_heads(h, x, dt, A, B, C, D, z, bias, y, begin, end, softplus_too, low, high):
    (_, heads, p), dtype = x.shape, A.dtype.type
    per_group = heads // B.shape[1]
    delta, value = np.empty(1, A.dtype), np.empty(p, A.dtype)
    for k in range(begin, end):
        row, i = k // heads, k % heads
        _step_sizes(dt[row, i : i + 1], _part(bias, i, i + 1), softplus_too, delta)
        step = delta[0]
        step = dtype(low) if step < low else dtype(high) if step > high else step  # a NaN stays one
        decay, B_i, C_i, x_i = exp(step * A[i]), B[row, i // per_group], C[row, i // per_group], x[row, i]
        for m in range(p):
            value[m] = _channel_of_head(h[row, i, m], decay, step * widen(x_i[m]), B_i, C_i)
        D_i = D[i] if D.size else D[0]
        z_i = z[row, i] if z.size else z[0, 0]
        _skip_and_gate(value, x_i, D_i, z_i, y[row, i])


# --- Who does what ----------------------------------------------------------------------------


def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, zoh: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, d) and the new state (b, d, n). B, C: (b, g, n). state, A, D and dt_bias have the type computed in."""
    given = (state, x, dt, A, B, C, D, z, dt_bias)
    return _run(advance_channels, len(x) * x.shape[1], given, (dt_softplus, True if zoh else None))


def ssd_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, low: float, high: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, h, p) and the new state (b, h, p, n). A: (h,), D: (h, p); state, A, D, dt_bias as above."""
    given = (state, x, dt, A, B, C, D, z, dt_bias)
    return _run(advance_heads, len(x) * x.shape[1], given, (dt_softplus, low, high))


def _run(
    kernel: Callable[..., Any], count: int, given: tuple[Tensor | None, ...], options: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """y and the new state. `count`: channels or heads of all rows."""
    state, x, dt, A, B, C, D, z, dt_bias = given
    new = state.clone(memory_format=torch.contiguous_format)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    arrays = [as_array(t) for t in (new, x, dt, A, B, C)]
    arrays.append(nothing(A.dtype, x.ndim - 1) if D is None else as_array(D))
    arrays.append(nothing(x.dtype, x.ndim) if z is None else as_array(z))
    arrays.append(nothing(A.dtype, 1) if dt_bias is None else as_array(dt_bias))
    arrays.append(as_array(y))
    parts = torch.get_num_threads() if new.numel() >= PARALLEL_FROM else 1
    if parts == 1:
        kernel(*arrays, 0, count, *options)
    else:
        cuts = [count * part // parts for part in range(parts + 1)]
        run(kernel, [(*arrays, begin, end, *options) for begin, end in itertools.pairwise(cuts)])
    return y, new
