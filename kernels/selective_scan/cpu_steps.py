"""One step of the selective scan and one step of its gradient, for a block of channels, in compiled code.

    h_t = gate h_{t-1} + dt share B_t x_t      gate = exp(dt A); share = 1 (Euler), (gate - 1) / (dt A) (zoh)
    y_t = Re(C_t h_t)                          twice that if A is complex: the caller doubles

(Gu & Dao 2023, Eq. 2a, 2b and 4.) A block is as many channels as keep their states (n, w) in the first level
of cache, and channels are the inner loop, which becomes SIMD instructions. The exponential is what costs
most, and one of base 2 is the cheapest: so the kernels are given A / log 2, called `rate`.

    code            shape      meaning
    h, gates        (n, w)     states; exp(dt A)
    rate            (n, w)     A / log 2
    dt, u, x        (w,)       the step, dt x, x
    B, C            (n,)       numbers that all channels of a group share,
                 or (n, w)     rows with a number for each channel, where B or C is constant in time
    zoh             None or 1  chooses the code that is compiled (None is a type of its own to Numba)
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from ssmcourse.kernels.vector_math import _power_of_two, exp

# The sums over channels may be taken in any order, or they could not be SIMD. NaN and infinity are kept.
summing = numba.njit(
    fastmath={"contract", "reassoc"},
    error_model="numpy",
    nogil=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)
inner = numba.njit(
    fastmath={"contract"}, error_model="numpy", nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)

LOG2 = math.log(2)


@inner
def advance(h, rate, dt, u, B, C, y, zoh):
    """h becomes the next state, and y (w,) is Re(C h)."""
    y[:] = 0
    for j in range(h.shape[0]):
        h_j, rate_j, B_j, C_j = h[j], rate[j], B[j], C[j]
        for k in range(y.size):
            e = dt[k] * rate_j[k]
            gate = exp2(e)
            if zoh is None:
                state = gate * h_j[k] + at(B_j, k) * u[k]
            else:
                state = gate * h_j[k] + at(B_j, k) * u[k] * share(e, gate)
            h_j[k] = state
            y[k] += (at(C_j, k) * state).real


@inner
def advance_and_keep(before, after, gates, rate, dt, u, B, zoh):
    """The states `after` the step from those `before` it, and the gates: for the gradient."""
    for j in range(before.shape[0]):
        before_j, after_j, gates_j, rate_j, B_j = before[j], after[j], gates[j], rate[j], B[j]
        for k in range(u.size):
            e = dt[k] * rate_j[k]
            gate = exp2(e)
            gates_j[k] = gate
            if zoh is None:
                after_j[k] = gate * before_j[k] + at(B_j, k) * u[k]
            else:
                after_j[k] = gate * before_j[k] + at(B_j, k) * u[k] * share(e, gate)


@inner
def read_out(h, C, y):
    """y (w,) is Re(C h)."""
    y[:] = 0
    for j in range(h.shape[0]):
        h_j, C_j = h[j], C[j]
        for k in range(y.size):
            y[k] += (at(C_j, k) * h_j[k]).real


@summing
def retreat(dh, before, after, gates, rate, dt, u, B, C, dy, dA, dB, dC, dx, dgate, ddirect, zoh):
    """The gradient of one step. With ' for the conjugate, and dh what the steps behind this one send:

        dh   += C' dy               dC = dy h_t'                dB = sum over channels of dh share' u
        dx    = sum over states of Re(dh (share B)')            (times dt: the caller's part)
        dh    = dh gate'            what the step before this one gets
        dgate = sum over states of Re(dh h_{t-1}' rate')        (times log 2: d loss / d dt by way of the gate)
        dA   += dh h_{t-1}' dt
    zoh: the share depends on dt and A as well; d (dt share) / d dt = gate, and its sum is ddirect.
    Euler's is dx, so ddirect is not touched.
    """
    dx[:] = 0
    dgate[:] = 0
    if zoh is not None:
        ddirect[:] = 0
    for j in range(dh.shape[0]):
        dh_j, before_j, after_j, gates_j = dh[j], before[j], after[j], gates[j]
        rate_j, dA_j, B_j, C_j, dB_j, dC_j = rate[j], dA[j], B[j], C[j], dB[j], dC[j]
        sum_B = sum_C = 0 * rate_j[0]
        for k in range(dt.size):
            g = dh_j[k] + np.conj(at(C_j, k)) * dy[k]
            b = np.conj(at(B_j, k))
            sum_C += gather(dC_j, k, dy[k] * np.conj(after_j[k]))
            through = g * np.conj(gates_j[k])
            dh_j[k] = through
            q = through * np.conj(before_j[k])
            dgate[k] += (q * np.conj(rate_j[k])).real
            if zoh is None:
                sum_B += gather(dB_j, k, g * u[k])
                dx[k] += (g * b).real
                dA_j[k] += q * dt[k]
            else:
                e = dt[k] * rate_j[k]
                s = share(e, gates_j[k])
                sum_B += gather(dB_j, k, g * np.conj(s) * u[k])
                dx[k] += (g * b * np.conj(s)).real
                ddirect[k] += (through * b).real
                dA_j[k] += (q + g * b * np.conj(share_slope(e, gates_j[k], s)) * u[k]) * dt[k]
        dB[j] += sum_B
        dC[j] += sum_C


# --- B and C: numbers that channels share, or rows with a number for each -------------------------


def at(coefficient: Any, k: int) -> Any:
    """The number that channel k uses."""
    raise NotImplementedError("only compiled code calls this")


def gather(gradient: Any, k: int, value: Any) -> Any:
    """Channel k's share of a gradient: added to a row in its place (0 remains to be summed), else to be summed."""
    raise NotImplementedError("only compiled code calls this")


@overload(at, inline="always")
def _at(coefficient, k):
    if isinstance(coefficient, types.Array):
        return lambda coefficient, k: coefficient[k]
    return lambda coefficient, k: coefficient


@overload(gather, inline="always")
def _gather(gradient, k, value):
    if not isinstance(gradient, types.Array):
        return lambda gradient, k, value: value

    def into_row(gradient, k, value):
        gradient[k] += value
        return 0 * value

    return into_row


# --- 2^e and what zero-order hold makes of it -----------------------------------------------------


def exp2(e: Any) -> Any:
    """2^e: relative error 2e-7 (float32), 3e-16 + 1e-16 |e| (float64); complex by way of cos and sin."""
    raise NotImplementedError("only compiled code calls this")


def share(e: Any, gate: Any) -> Any:
    """(exp(z) - 1) / z at z = e log 2, where gate = exp(z): phi1 of ssmcourse.discretization."""
    raise NotImplementedError("only compiled code calls this")


def share_slope(e: Any, gate: Any, share: Any) -> Any:
    """The derivative of that: (gate - share) / z."""
    raise NotImplementedError("only compiled code calls this")


f4 = np.float32


@inner
def _exp2_32(e):
    e = f4(-126) if e < f4(-126) else e  # false for NaN, which stays
    e = f4(128) if e > f4(128) else e
    shifted = e + f4(12582912)  # a float of this size has no room for a fraction: this rounds e
    r = e - (shifted - f4(12582912))
    p = f4(0.00132764677993)
    p = p * r + f4(0.00967554124829)
    p = p * r + f4(0.0555071328665)
    p = p * r + f4(0.240221197266)
    p = p * r + f4(0.693146967059)
    p = p * r + f4(1.00000007165)
    return p * _power_of_two(shifted) * f4(2)


@inner
def _exp2_complex(e):
    angle = e.imag * LOG2
    return exp2(e.real) * complex(math.cos(angle), math.sin(angle))


@overload(exp2, inline="always")
def _exp2(e):
    if isinstance(e, types.Complex):
        return lambda e: _exp2_complex(e)
    return (lambda e: exp(e * LOG2)) if e == types.float64 else (lambda e: _exp2_32(e))


def _near_zero(real: type) -> tuple[Any, Any]:
    """`share` and `share_slope` for numbers of this precision: a Taylor series where the quotient is 0 / 0."""
    one, near, log2 = real(1), real(0.5), real(LOG2)
    terms = range(15 if real is np.float64 else 8, -1, -1)
    share_terms = tuple(real(1 / math.factorial(k + 1)) for k in terms)
    slope_terms = tuple(real((k + 1) / math.factorial(k + 2)) for k in terms)

    @inner
    def near_share(e, gate):
        z = e * log2
        series = z * share_terms[0] + share_terms[1]
        for c in share_terms[2:]:
            series = series * z + c
        return series if abs(z) < near else (gate - one) / z

    @inner
    def near_slope(e, gate, share):
        z = e * log2
        series = z * slope_terms[0] + slope_terms[1]
        for c in slope_terms[2:]:
            series = series * z + c
        return series if abs(z) < near else (gate - share) / z

    return near_share, near_slope


_share32, _slope32 = _near_zero(np.float32)
_share64, _slope64 = _near_zero(np.float64)


@overload(share, inline="always")
def _share(e, gate):
    double = e in (types.float64, types.complex128)
    return (lambda e, gate: _share64(e, gate)) if double else (lambda e, gate: _share32(e, gate))


@overload(share_slope, inline="always")
def _share_slope(e, gate, share):
    double = e in (types.float64, types.complex128)
    if double:
        return lambda e, gate, share: _slope64(e, gate, share)
    return lambda e, gate, share: _slope32(e, gate, share)
