"""The gated RMS norm on the CPU: one pass over a group of channels, which stays in the first cache.

    gate first:  u = x silu(z)    r = 1 / sqrt(mean(u^2) + eps)    y = u r weight
    norm first:  u = x            r = 1 / sqrt(mean(u^2) + eps)    y = u r weight silu(z)

With n = u r, and dn = dy weight (silu(z)) the gradient that reaches it:

    du = r (dn - n mean(dn n))        dweight = sum over rows of dy n (silu(z))
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels import registration
from ssmcourse.kernels.arrays import as_array, empty, narrow, nothing, widen
from ssmcourse.kernels.plain import unwatched
from ssmcourse.kernels.threads import native, run
from ssmcourse.kernels.vector_math import inner, sigmoid, summing

SCHEMA = "Tensor x, Tensor weight, Tensor? z, float eps, int group_size, bool norm_first"
PARALLEL_FROM = 1 << 16  # numbers; below, waking a second thread costs more than it saves

# --- Kernels --------------------------------------------------------------------------------------
# x, y, dy, dx (rows, d), z and dz too or without elements, weight (d,), r (rows, groups). A group has n channels.


@inner
def _load(x, out):
    for k in range(out.size):
        out[k] = widen(x[k])


@inner
def _silu(z, out):
    for k in range(out.size):
        value = out.dtype.type(widen(z[k]))
        out[k] = value * sigmoid(value)


@inner
def _multiply(out, factor):
    for k in range(out.size):
        out[k] *= factor[k]


@inner
def _store(values, out):
    for k in range(out.size):
        out[k] = narrow(values[k], out[k])


@summing
def _dot(a, b):
    total = a.dtype.type(0)
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@inner
def _inverse_root(u, eps):
    """1 / sqrt(mean(u^2) + eps). Where squares overflow, they are taken of u / m."""
    one, n = u.dtype.type(1), u.dtype.type(u.size)
    total = _dot(u, u)
    if total < np.inf:
        return one / np.sqrt(total / n + eps)
    m = u.dtype.type(0)
    for k in range(u.size):
        m = max(m, abs(u[k]))
    total = u.dtype.type(0)
    for k in range(u.size):
        total += (u[k] / m) * (u[k] / m)
    return one / np.sqrt(total / n + eps / m / m) / m


@native
def normalize(x, weight, z, y, r, n, eps, norm_first, begin, end):
    u, gate = np.empty(n, weight.dtype), np.empty(n, weight.dtype)
    gated, eps = z.size > 0, weight.dtype.type(eps)
    for row in range(begin, end):
        for g in range(r.shape[1]):
            first, last = g * n, g * n + n
            _load(x[row, first:last], u)
            if gated:
                _silu(z[row, first:last], gate)
                if not norm_first:
                    _multiply(u, gate)
            root = _inverse_root(u, eps)
            r[row, g] = root
            weight_g = weight[first:last]
            for k in range(n):
                u[k] = u[k] * root * weight_g[k]
            if gated and norm_first:
                _multiply(u, gate)
            _store(u, y[row, first:last])


@inner
def _through_silu(dgate, z):
    """From the gradient at silu(z) to that at z, in place."""
    for k in range(dgate.size):
        value = dgate.dtype.type(widen(z[k]))
        s = sigmoid(value)
        dgate[k] *= s * (1 + value * (1 - s))


@native
def _gradient(dy, x, weight, z, r, dx, dz, dweight, n, norm_first, begin, end):
    dtype = weight.dtype
    normed, gate, dn, other = np.empty(n, dtype), np.empty(n, dtype), np.empty(n, dtype), np.empty(n, dtype)
    gated = z.size > 0
    for row in range(begin, end):
        for g in range(r.shape[1]):
            first, last, root = g * n, g * n + n, r[row, g]
            weight_g, dweight_g = weight[first:last], dweight[first:last]
            _load(x[row, first:last], normed)
            if gated:
                _silu(z[row, first:last], gate)
                if not norm_first:
                    _multiply(normed, gate)
            for k in range(n):
                normed[k] *= root
            _load(dy[row, first:last], dn)
            if gated and norm_first:
                for k in range(n):
                    other[k] = dn[k] * normed[k] * weight_g[k]
                _through_silu(other, z[row, first:last])
                _store(other, dz[row, first:last])
                _multiply(dn, gate)
            for k in range(n):
                dweight_g[k] += dn[k] * normed[k]
            _multiply(dn, weight_g)
            along = _dot(dn, normed) / dtype.type(n)  # what would only make u longer, which r undoes
            for k in range(n):
                dn[k] = root * (dn[k] - normed[k] * along)
            if gated and not norm_first:
                _load(x[row, first:last], other)
                _multiply(other, dn)
                _through_silu(other, z[row, first:last])
                _store(other, dz[row, first:last])
                _multiply(dn, gate)
            _store(dn, dx[row, first:last])


# --- Who does what ----------------------------------------------------------------------------


def forward(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: float, group_size: int, norm_first: bool
) -> tuple[Tensor, Tensor]:
    """y and r, for x and z of any leading dimensions, not empty."""
    y, y_array = empty(x.shape, x.dtype)
    r, r_array = empty((*x.shape[:-1], x.shape[-1] // group_size), weight.dtype)
    arrays = (
        _lines(x),
        as_array(weight),
        nothing(x.dtype, 2) if z is None else _lines(z),
        y_array.reshape(-1, x.shape[-1]),
    )
    arrays += (r_array.reshape(-1, r.shape[-1]),)
    run(normalize, [(*arrays, group_size, eps, norm_first, *rows) for rows in _plan(x)])
    return y, r


def gradient(
    upstream: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_first: bool,
) -> list[Tensor]:
    """The gradients of x, weight and, if there is one, z."""
    d, plan = x.shape[-1], _plan(x)
    dx, dx_array = empty(x.shape, x.dtype)
    z_array = dz_array = nothing(x.dtype, 2)
    gradients = [dx]
    if z is not None:
        dz, dz_array = empty(x.shape, x.dtype)
        z_array, dz_array = _lines(z), dz_array.reshape(-1, d)
        gradients.append(dz)
    given = _lines(upstream[0]), _lines(x), as_array(weight), z_array, _lines(outputs[1])
    found = dx_array.reshape(-1, d), dz_array
    dweight = np.zeros((len(plan), d))
    run(
        _gradient,
        [
            (*given, *found, part, group_size, norm_first, *rows)
            for part, rows in zip(dweight, plan, strict=True)
        ],
    )
    gradients.insert(1, torch.from_numpy(dweight.sum(0)).to(weight.dtype))
    return gradients


def _plan(x: Tensor) -> list[tuple[int, int]]:
    """Rows from and to, shared out among the threads."""
    rows = x.numel() // x.shape[-1]
    jobs = min(rows, torch.get_num_threads()) if x.numel() >= PARALLEL_FROM else 1
    return list(itertools.pairwise(rows * job // jobs for job in range(jobs + 1)))


def _lines(tensor: Tensor) -> np.ndarray:
    """(rows, d)."""
    return as_array(tensor).reshape(-1, tensor.shape[-1])


def _fake(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: float, group_size: int, norm_first: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(*x.shape[:-1], x.shape[-1] // group_size)


_operator = registration.register(
    "gated_rms_norm_cpu",
    SCHEMA,
    forward,
    gradient,
    _fake,
    results=1,
    kept=1,
)


def gated_rms_norm(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: float, group_size: int, norm_first: bool
) -> tuple[Tensor, Tensor]:
    """y and r. weight has the dtype computed in."""
    function = forward if unwatched(x, weight, z) else _operator
    return function(x, weight, z, eps, group_size, norm_first)


def of_few_rows(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y for few rows (m, d) of weight's dtype, without a gate, a gradient or anything else (`kernels.plain.few_rows`)."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, d = x.shape
    roots = np.empty((rows, 1), nothing(x.dtype, 1).dtype)
    normalize(as_array(x), as_array(weight), nothing(x.dtype, 2), as_array(y), roots, d, eps, False, 0, rows)
    return y
