"""The arithmetic of the selective scan and of its gradient, for a block of channels and a few steps.

    h_t = gate h_{t-1} + dt share B_t x_t      gate = exp(dt A); share = 1 (Euler), (gate - 1) / (dt A) (zoh)
    y_t = Re(C_t h_t)                          twice that if A is complex: the caller doubles

(Gu & Dao 2023, Eq. 2a, 2b and 4.) A block is as many channels as keep their states (n, w) in the first level
of cache, and channels are the inner loop, which becomes SIMD instructions. The exponential is what costs
most, and one of base 2 is the cheapest: so the kernels are given A / log 2, called `rate`.

    code             shape                  meaning
    h                (n, w), (s + 1, n, w)  states: the present one; those before and after every step
    gates            (s, n, w)              exp(dt A)
    rate             (n, w)                 A / log 2
    dt, u, x, y      (s, w)                 the step size, dt x, x, y
    B, C             (s or 1, n)            numbers that all channels of the block share,
                     (s or 1, n, w)         or rows with a number for each; 1 if constant in time
    zoh              None or 1              chooses the code that is compiled (None is a type of its own to Numba)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from ssmcourse.kernels.vector_math import INLINED, LOG2, exp2, inner, summing


@intrinsic
def apart(typingctx):
    """In a function: the arrays it is given do not overlap (as `restrict` says in C).

    The compiler would have to check at run time, and where that takes many checks it gives up SIMD instead.
    """

    def emit(context, builder, signature, args):
        for argument in builder.function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.none(), emit


@inner
def advance(h, rate, dt, u, B, C, y, steps, zoh):
    """h becomes the state after the steps, and y[s] is Re(C h) of each."""
    apart()
    for s in range(steps):
        dt_s, u_s, y_s, B_s, C_s = dt[s], u[s], y[s], B[min(s, len(B) - 1)], C[min(s, len(C) - 1)]
        y_s[:] = 0
        for j in range(h.shape[0]):
            h_j, rate_j, B_j, C_j = h[j], rate[j], B_s[j], C_s[j]
            for k in range(y_s.size):
                e = dt_s[k] * rate_j[k]
                gate = exp2(e)
                if zoh is None:
                    state = gate * h_j[k] + at(B_j, k) * u_s[k]
                else:
                    state = gate * h_j[k] + at(B_j, k) * u_s[k] * share(e, gate)
                h_j[k] = state
                y_s[k] += (at(C_j, k) * state).real


@inner
def advance_and_keep(h, gates, rate, dt, u, B, steps, zoh):
    """All states after h[0], and the gates: for the gradient."""
    apart()
    for s in range(steps):
        dt_s, u_s, B_s, before, after, gates_s = dt[s], u[s], B[min(s, len(B) - 1)], h[s], h[s + 1], gates[s]
        for j in range(rate.shape[0]):
            before_j, after_j, gates_j, rate_j, B_j = before[j], after[j], gates_s[j], rate[j], B_s[j]
            for k in range(u_s.size):
                e = dt_s[k] * rate_j[k]
                gate = exp2(e)
                gates_j[k] = gate
                if zoh is None:
                    after_j[k] = gate * before_j[k] + at(B_j, k) * u_s[k]
                else:
                    after_j[k] = gate * before_j[k] + at(B_j, k) * u_s[k] * share(e, gate)


@inner
def read_out(h, C, y, steps):
    """y[s] is Re(C h) after step s."""
    apart()
    for s in range(steps):
        y_s, C_s, h_s = y[s], C[min(s, len(C) - 1)], h[s + 1]
        y_s[:] = 0
        for j in range(h_s.shape[0]):
            h_j, C_j = h_s[j], C_s[j]
            for k in range(y_s.size):
                y_s[k] += (at(C_j, k) * h_j[k]).real


@summing
def retreat(dh, h, gates, rate, dt, u, B, C, dy, dA, dB, dC, dx, dgate, ddirect, steps, zoh):
    """The gradient, from the last step to the first. With ' for the conjugate, and dh what later steps send:

        dh   += C' dy               dC += dy h_t'               dB += sum over channels of dh share' u
        dx    = sum over states of Re(dh (share B)')            (times dt: the caller's part)
        dh    = dh gate'            what the step before gets
        dgate = sum over states of Re(dh h_{t-1}' rate')        (times log 2: d loss / d dt by way of the gate)
        dA   += dh h_{t-1}' dt
    zoh: the share depends on dt and A as well; d (dt share) / d dt = gate, and its sum is ddirect.
    Euler's is dx, so ddirect is not touched.
    """
    apart()
    zero = rate.dtype.type(0)
    for back in range(steps):
        s = steps - 1 - back
        dt_s, u_s, dy_s, dx_s, dgate_s, ddirect_s = dt[s], u[s], dy[s], dx[s], dgate[s], ddirect[s]
        B_s, dB_s, C_s, dC_s = (
            B[min(s, len(B) - 1)], dB[min(s, len(B) - 1)], C[min(s, len(C) - 1)], dC[min(s, len(C) - 1)],
        )  # fmt: skip
        before, after, gates_s = h[s], h[s + 1], gates[s]
        dx_s[:] = 0
        dgate_s[:] = 0
        ddirect_s[:] = 0
        for j in range(dh.shape[0]):
            dh_j, before_j, after_j, gates_j, rate_j = dh[j], before[j], after[j], gates_s[j], rate[j]
            dA_j, B_j, C_j, dB_j, dC_j = dA[j], B_s[j], C_s[j], dB_s[j], dC_s[j]
            sum_B = sum_C = zero
            for k in range(dt_s.size):
                g = dh_j[k] + np.conj(at(C_j, k)) * dy_s[k]
                b = np.conj(at(B_j, k))
                sum_C += gather(dC_j, k, dy_s[k] * np.conj(after_j[k]))
                through = g * np.conj(gates_j[k])
                dh_j[k] = through
                q = through * np.conj(before_j[k])
                dgate_s[k] += (q * np.conj(rate_j[k])).real
                if zoh is None:
                    sum_B += gather(dB_j, k, g * u_s[k])
                    dx_s[k] += (g * b).real
                    dA_j[k] += q * dt_s[k]
                else:
                    e = dt_s[k] * rate_j[k]
                    part = share(e, gates_j[k])
                    sum_B += gather(dB_j, k, g * np.conj(part) * u_s[k])
                    dx_s[k] += (g * b * np.conj(part)).real
                    ddirect_s[k] += (through * b).real
                    dA_j[k] += (q + g * b * np.conj(share_slope(e, gates_j[k], part)) * u_s[k]) * dt_s[k]
            add_sum(dB_s, j, sum_B)
            add_sum(dC_s, j, sum_C)


# --- B and C: numbers that channels share, or rows with a number for each -------------------------


def at(coefficient: Any, k: int) -> Any:
    """The number that channel k uses."""
    raise NotImplementedError("only compiled code calls this")


def gather(gradient: Any, k: int, value: Any) -> Any:
    """Channel k's share of a gradient: added to a row in its place (0 remains to be summed), else to be summed."""
    raise NotImplementedError("only compiled code calls this")


def add_sum(gradients: Any, j: int, total: Any) -> None:
    """Add what was to be summed; nothing where each channel has its place."""
    raise NotImplementedError("only compiled code calls this")


@overload(at, jit_options=INLINED)
def _at(coefficient, k):
    if isinstance(coefficient, types.Array):
        return lambda coefficient, k: coefficient[k]
    return lambda coefficient, k: coefficient


@overload(gather, jit_options=INLINED)
def _gather(gradient, k, value):
    if not isinstance(gradient, types.Array):
        return lambda gradient, k, value: value

    def into_row(gradient, k, value):
        gradient[k] += value
        return 0 * value

    return into_row


@overload(add_sum, jit_options=INLINED)
def _add_sum(gradients, j, total):
    if gradients.ndim == 2:  # to add 0 to a row Numba would compile seconds of error messages
        return lambda gradients, j, total: None

    def to_number(gradients, j, total):
        gradients[j] += total

    return to_number


# --- What zero-order hold makes of 2^e ------------------------------------------------------------


def share(e: Any, gate: Any) -> Any:
    """(exp(z) - 1) / z at z = e log 2, where gate = exp(z): phi1 of ssmcourse.discretization."""
    raise NotImplementedError("only compiled code calls this")


def share_slope(e: Any, gate: Any, share: Any) -> Any:
    """The derivative of that: (gate - share) / z."""
    raise NotImplementedError("only compiled code calls this")


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


@overload(share, jit_options=INLINED)
def _share(e, gate):
    double = e in (types.float64, types.complex128)
    return (lambda e, gate: _share64(e, gate)) if double else (lambda e, gate: _share32(e, gate))


@overload(share_slope, jit_options=INLINED)
def _share_slope(e, gate, share):
    double = e in (types.float64, types.complex128)
    if double:
        return lambda e, gate, share: _slope64(e, gate, share)
    return lambda e, gate, share: _slope32(e, gate, share)
