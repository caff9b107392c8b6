"""What a Mamba and a Mamba-2 layer do between their two projections, for one token on the CPU: one call a layer.

Token by token, a layer of a small model is some thirty operations of torch on a few thousand numbers, and the way into
each costs more than the operation. Here are the same operations one after another, made of the parts that the other
kernels are made of: the convolution's step, the state's, the norm. It is for few rows, since the projections inside
are products of a matrix and a vector, and for one dtype, float32 or float64 (`kernels.plain.few_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.autograd.graph import increment_version

from ssmcourse.kernels.arrays import address, array_at, nothing
from ssmcourse.kernels.causal_conv1d import cpu_update as convolution
from ssmcourse.kernels.gated_rms_norm import cpu as norm
from ssmcourse.kernels.state_update.cpu import advance_channels, advance_heads
from ssmcourse.kernels.threads import native
from ssmcourse.kernels.vector_math import exp, inner, sigmoid, summing

# --- Kernels --------------------------------------------------------------------------------------
# `projected` (rows, ...) is what in_proj gives, y (rows, ...) what out_proj gets. window (rows, w - 1, c) and state
# are advanced in place. What is optional has no elements where it is not there.


@summing
def _times(matrix, vector, out):
    """out = matrix vector."""
    for i in range(out.size):
        row, total = matrix[i], vector.dtype.type(0)
        for k in range(vector.size):
            total += row[k] * vector[k]
        out[i] = total


@inner
def _minus_exp(A_log, out):
    for k in range(out.size):
        out[k] = -exp(A_log[k])


@inner
def _mamba(projected, window, state, weight, bias, x_proj, dt_proj, dt_bias, A_log, D, y):
    """projected: x, z (d each). state (rows, d, n), y (rows, d)."""
    (d, n), r, w = A_log.shape, dt_proj.shape[1], window.shape[1] + 1
    A, x = np.empty((d, n), y.dtype), np.empty((1, d), y.dtype)
    selected, dt = np.empty(r + 2 * n, y.dtype), np.empty(d, y.dtype)
    _minus_exp(A_log.reshape(d * n), A.reshape(d * n))
    for row in range(len(projected)):
        xz, y_row = projected[row], y[row].reshape(1, d)
        convolution.advance(xz[:d].reshape(1, d), window[row].reshape(1, w - 1, d), weight, bias, x, True)
        _times(x_proj, x[0], selected)
        _times(dt_proj, selected[:r], dt)
        B, C = selected[r : r + n].reshape(1, 1, n), selected[r + n :].reshape(1, 1, n)
        advance_channels(
            state[row].reshape(1, d, n), x, dt.reshape(1, d), A, B, C, D, xz[d:].reshape(1, d), dt_bias, y_row,
            0, d, True, None,
        )  # fmt: skip


@inner
def _gated_mlp(gate, value, out):
    for k in range(out.size):
        out[k] = gate[k] * sigmoid(gate[k]) * value[k]


@inner
def _for_channels(D, out):
    """D of heads, or of channels (h p,), as (h, p)."""
    per_head = D.size // out.shape[0]
    for i in range(out.shape[0]):
        for m in range(out.shape[1]):
            out[i, m] = D[i] if per_head == 1 else D[i * per_head + m]


@inner
def _mamba2(
    projected,
    window,
    state,
    weight,
    bias,
    dt_bias,
    A_log,
    D,
    scale,
    y,
    groups,
    low,
    high,
    size,
    eps,
    norm_first,
):
    """projected: two parts of an MLP (if there is one), z, then x, B and C, dt. state (rows, h, p, n), scale (h p,),
    the weight of a norm in groups of `size` channels."""
    (h, p, n), (c, w) = state.shape[1:], weight.shape
    d, rest = h * p, y.shape[1] - h * p
    A, skip, ungated = np.empty(h, y.dtype), np.empty((h, p), y.dtype), np.empty((1, 1, 0), y.dtype)
    xBC, scanned = np.empty((1, c), y.dtype), np.empty((1, h, p), y.dtype)
    r = np.empty((1, d // size), y.dtype)
    _minus_exp(A_log, A)
    _for_channels(D, skip)
    for row in range(len(projected)):
        zxbcdt, y_row = projected[row], y[row]
        z, rest_of_it = zxbcdt[2 * rest : 2 * rest + d], zxbcdt[2 * rest + d :]
        convolution.advance(
            rest_of_it[:c].reshape(1, c), window[row].reshape(1, w - 1, c), weight, bias, xBC, True
        )
        B = xBC[0, d : d + groups * n].reshape(1, groups, n)
        C = xBC[0, d + groups * n :].reshape(1, groups, n)
        gate = ungated if scale.size else z.reshape(1, h, p)
        advance_heads(
            state[row].reshape(1, h, p, n), xBC[0, :d].reshape(1, h, p), rest_of_it[c:].reshape(1, h), A, B, C, skip,
            gate, dt_bias, scanned, 0, h, True, low, high,
        )  # fmt: skip
        out = y_row[rest:].reshape(1, d)
        if scale.size:
            norm.normalize(scanned.reshape(1, d), scale, z.reshape(1, d), out, r, size, eps, norm_first, 0, 1)
        else:
            out[0, :] = scanned.reshape(d)
        _gated_mlp(zxbcdt[:rest], zxbcdt[rest : 2 * rest], y_row[:rest])


# Where the arguments lie, instead of arrays: to make a dozen of these would take as long as the kernel.


@native
def _mamba_at(places, rows, d, n, r, w, biased, like):
    """places: of the arguments of _mamba, in their order."""
    projected, window = array_at(places[0], (rows, 2 * d), like), array_at(places[1], (rows, w - 1, d), like)
    state, weight = array_at(places[2], (rows, d, n), like), array_at(places[3], (d, w), like)
    bias, x_proj = array_at(places[4], (biased * d,), like), array_at(places[5], (r + 2 * n, d), like)
    dt_proj, dt_bias = array_at(places[6], (d, r), like), array_at(places[7], (d,), like)
    A_log, D = array_at(places[8], (d, n), like), array_at(places[9], (d,), like)
    y = array_at(places[10], (rows, d), like)
    _mamba(projected, window, state, weight, bias, x_proj, dt_proj, dt_bias, A_log, D, y)


@native
def _mamba2_at(
    places, rows, inner, h, p, n, c, w, biased, of_D, normed, groups, low, high, size, eps, norm_first, like
):
    """places: of the arguments of _mamba2, in their order."""
    d = h * p
    parts = 2 * inner - d + c + h
    projected, window = array_at(places[0], (rows, parts), like), array_at(places[1], (rows, w - 1, c), like)
    state, weight = array_at(places[2], (rows, h, p, n), like), array_at(places[3], (c, w), like)
    bias, dt_bias = array_at(places[4], (biased * c,), like), array_at(places[5], (h,), like)
    A_log, D = array_at(places[6], (h,), like), array_at(places[7], (of_D,), like)
    scale, y = array_at(places[8], (normed * d,), like), array_at(places[9], (rows, inner), like)
    _mamba2(
        projected,
        window,
        state,
        weight,
        bias,
        dt_bias,
        A_log,
        D,
        scale,
        y,
        groups,
        low,
        high,
        size,
        eps,
        norm_first,
    )


# --- Who does what ----------------------------------------------------------------------------


def mamba(
    projected: Tensor, conv: Tensor, ssm: Tensor, weight: Tensor, bias: Tensor | None, x_proj: Tensor,
    dt_proj: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y (b, d), and both states after the token, in the place of those before.

    projected: (b, 2 d), weight: (d, 1, w); the rest as in the layer.
    """
    given = [*_in_one_piece(projected, conv, ssm, weight, bias, x_proj, dt_proj, dt_bias, A_log, D)]
    conv, ssm = _changed(given[1]), _changed(given[2])
    (rows, d, n), r, w = ssm.shape, dt_proj.shape[1], weight.shape[2]
    y = projected.new_empty(rows, d)
    _mamba_at(tuple(map(address, (*given, y))), rows, d, n, r, w, int(bias is not None), nothing(y.dtype, 1))
    return y, conv, ssm


def mamba2(
    projected: Tensor, conv: Tensor, ssm: Tensor, weight: Tensor, bias: Tensor | None, dt_bias: Tensor,
    A_log: Tensor, D: Tensor, scale: Tensor | None, d_inner: int, groups: int, dt_limit: tuple[float, float],
    group_size: int | None, eps: float, norm_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y (b, d_inner), and both states after the token, in the place of those before. scale: the norm's weight."""
    given = [*_in_one_piece(projected, conv, ssm, weight, bias, dt_bias, A_log, D, scale)]
    conv, ssm = _changed(given[1]), _changed(given[2])
    (rows, h, p, n), (c, _, w) = ssm.shape, weight.shape
    y = projected.new_empty(rows, d_inner)
    _mamba2_at(
        tuple(map(address, (*given, y))), rows, d_inner, h, p, n, c, w, int(bias is not None), len(D),
        int(scale is not None), groups, *dt_limit, group_size or h * p, eps, norm_first, nothing(y.dtype, 1),
    )  # fmt: skip
    return y, conv, ssm


def _in_one_piece(*tensors: Tensor | None) -> Iterator[Tensor | None]:
    for tensor in tensors:
        yield None if tensor is None else tensor.contiguous().resolve_neg()


def _changed(state: Tensor) -> Tensor:
    """The state, about to be written into: a gradient that needs what is there is then refused by torch."""
    if not state.is_inference():
        increment_version(state)
    return state
