"""exp and its relatives for compiled kernels, written so that a loop over them becomes SIMD instructions.

Numba turns np.exp into a call of the C library for every element, and a selective scan takes an exponential for
every channel, state and step: most of its time. The functions here are arithmetic alone, which the compiler
turns into vectors of 8 or 16. They are called from `@native` code, on float32 or float64 scalars, and
compute in the type they are given. NaN and infinity come through.

    exp(x) = 2^k exp(r), with k the integer next to x / log 2 and |r| <= log(2) / 2.

exp(r) is a polynomial, fitted for the least relative error by Remez' exchange. 2^k is made from the bits of
x / log 2 + 1.5 * 2^23: a float of that size has no room for a fraction, so its lowest bits are k.
(Cody & Waite, Software Manual for the Elementary Functions, 1980, is where this way of doing it comes from.)
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

LOG2 = math.log(2)

# A product and a sum may become one instruction that rounds once; nothing else of fastmath is allowed.
INLINED = {"forceinline": True}  # by LLVM: Numba's inline="always" loses statements behind inner loops
small = numba.njit(fastmath={"contract"}, error_model="numpy", nogil=True, forceinline=True)
# For the inner loops of kernels: no way in from Python, which would have to be compiled too.
_PART = {"error_model": "numpy", "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner = numba.njit(fastmath={"contract"}, **_PART)
# The same for sums, which may be taken in any order, or they could not be SIMD. NaN and infinity come through.
summing = numba.njit(fastmath={"contract", "reassoc"}, **_PART)


def exp(x: Any) -> Any:
    """e^x: relative error 2e-7 (float32), 5e-16 (float64); 0 below about 2e-38 (4e-308)."""
    raise NotImplementedError("only compiled code calls this")


def exp2(x: Any) -> Any:
    """2^x: relative error 2e-7 (float32; 0 below 2^-126.5), 3e-16 + 1e-16 |x| (float64); complex by cos and sin.

    The cheapest of the exponentials in float32: for a kernel that can divide by log 2 beforehand.
    """
    raise NotImplementedError("only compiled code calls this")


def expm1(x: Any) -> Any:
    """e^x - 1, without the cancellation near 0; error as that of exp."""
    raise NotImplementedError("only compiled code calls this")


def softplus(x: Any) -> Any:
    """log(1 + e^x): relative error 4e-7 (float32), 1e-15 (float64); x itself where x is large."""
    raise NotImplementedError("only compiled code calls this")


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x): relative error 4e-7 (float32), 1e-15 (float64)."""
    raise NotImplementedError("only compiled code calls this")


@intrinsic
def _power_of_two(typingctx, shifted):
    """2^k for `shifted` = k + ROUNDER, whose lowest bits are k + the exponent's bias: they become the exponent."""
    wide = shifted == types.float64
    integer, mantissa = (ir.IntType(64), 52) if wide else (ir.IntType(32), 23)

    def emit(context, builder, signature, args):
        bits = builder.shl(builder.bitcast(args[0], integer), ir.Constant(integer, mantissa))
        return builder.bitcast(bits, ir.DoubleType() if wide else ir.FloatType())

    return shifted(shifted), emit


@overload(exp, jit_options=INLINED)
def _exp(x):
    return (lambda x: _exp64(x)) if x == types.float64 else (lambda x: _exp32(x))


@overload(exp2, jit_options=INLINED)
def _exp2(x):
    if isinstance(x, types.Complex):
        return lambda x: _exp2_complex(x)
    return (lambda x: exp(x * LOG2)) if x == types.float64 else (lambda x: _exp2_32(x))


@overload(expm1, jit_options=INLINED)
def _expm1(x):
    return (lambda x: _expm1_64(x)) if x == types.float64 else (lambda x: _expm1_32(x))


@overload(softplus, jit_options=INLINED)
def _softplus(x):
    return (lambda x: _softplus64(x)) if x == types.float64 else (lambda x: _softplus32(x))


@overload(sigmoid, jit_options=INLINED)
def _sigmoid(x):
    return (lambda x: _sigmoid64(x)) if x == types.float64 else (lambda x: _sigmoid32(x))


# --- float32 ----------------------------------------------------------------------------------
# Each argument is kept where 2^(k-1) is a float. A comparison with NaN is false, so NaN stays NaN.

f4 = np.float32
one, two, half = f4(1), f4(2), f4(0.5)
ROUNDER32 = f4(1.5 * 2**23 + 127)  # 127 and 1023: the bias of the exponent


@small
def _parts32(x):
    """e^r - 1 and 2^(k-1): 2^128 would be infinite."""
    x = f4(-87.5) if x < f4(-87.5) else x
    x = f4(88.9) if x > f4(88.9) else x
    shifted = x * f4(1.4426950408889634) + (ROUNDER32 - one)
    k = shifted - (ROUNDER32 - one)
    r = x - k * f4(0.693145751953125) - k * f4(1.428606820309417e-06)  # log 2 in two parts
    p = f4(0.00138146132608)
    p = p * r + f4(0.00836870982417)
    p = p * r + f4(0.0416683873613)
    p = p * r + f4(0.166665206898)
    p = p * r + f4(0.499999934517)
    return p * (r * r) + r, _power_of_two(shifted)


@small
def _exp32(x):
    less_one, half_scale = _parts32(x)
    return (less_one + one) * half_scale * two


@small
def _exp2_32(x):
    """2^k times a polynomial in the fraction that is left, fitted for the least relative error.

    It is 1 at 0, exactly: a gate of 1 + 1e-7 would grow a memory of 65,536 steps by a hundredth.
    """
    x = f4(-127) if x < f4(-127) else x  # 2^-127 comes out as 0
    x = f4(128) if x > f4(128) else x  # infinity
    shifted = x + ROUNDER32
    r = x - (shifted - ROUNDER32)
    p = f4(0.001326472749)
    p = p * r + f4(0.009671512642)
    p = p * r + f4(0.055507337423)
    p = p * r + f4(0.240222420854)
    p = p * r + f4(0.693146977600)
    p = p * r + one
    return p * _power_of_two(shifted)


@small
def _exp2_complex(x):
    angle = x.imag * LOG2
    return exp2(x.real) * complex(math.cos(angle), math.sin(angle))


@small
def _expm1_32(x):
    less_one, half_scale = _parts32(x)
    return (less_one * half_scale + (half_scale - half)) * two


@small
def _sigmoid32(x):
    return one / (one + _exp32(-x))


@small
def _softplus32(x):
    y = _exp32(-x if x > f4(0) else x)
    s = y / (two + y)  # log(1 + y) = 2 artanh(s), and s is at most 1/3
    w = s * s
    p = f4(0.14012229485511)
    p = p * w + f4(0.13999570523920)
    p = p * w + f4(0.20010849530638)
    p = p * w + f4(0.33333206566332)
    return (f4(0) if x < f4(0) else x) + two * (s + s * (w * p))


# --- float64: the same, with longer polynomials ---------------------------------------------------

ROUNDER64 = 1.5 * 2**52 + 1023


@small
def _parts64(x):
    x = -708.5 if x < -708.5 else x
    x = 709.9 if x > 709.9 else x
    shifted = x * 1.4426950408889634 + (ROUNDER64 - 1)
    k = shifted - (ROUNDER64 - 1)
    r = x - k * 0.6931471803691238 - k * 1.9082149292705877e-10
    p = 2.0826633585818389807e-9
    p = p * r + 2.5112024809881877036e-8
    p = p * r + 2.7557581754585452245e-7
    p = p * r + 2.7557234895798513251e-6
    p = p * r + 2.4801586926845051022e-5
    p = p * r + 1.9841269896350595801e-4
    p = p * r + 1.3888888891115452995e-3
    p = p * r + 8.3333333333170473623e-3
    p = p * r + 4.166666666666609484e-2
    p = p * r + 0.16666666666666683403
    p = p * r + 0.5
    return p * (r * r) + r, _power_of_two(shifted)


@small
def _exp64(x):
    less_one, half_scale = _parts64(x)
    return (less_one + 1.0) * half_scale * 2.0


@small
def _expm1_64(x):
    less_one, half_scale = _parts64(x)
    return (less_one * half_scale + (half_scale - 0.5)) * 2.0


@small
def _sigmoid64(x):
    return 1.0 / (1.0 + _exp64(-x))


@small
def _softplus64(x):
    y = _exp64(-x if x > 0.0 else x)
    s = y / (2.0 + y)
    w = s * s
    p = 0.085092890258474388028
    p = p * w + 0.041700499096935242026
    p = p * w + 0.06053043344961144263
    p = p * w + 0.066504867624260385715
    p = p * w + 0.076932799640889509553
    p = p * w + 0.090908719623332835869
    p = p * w + 0.11111111984869521663
    p = p * w + 0.14285714273926873042
    p = p * w + 0.20000000000078621978
    p = p * w + 0.333333333333331519
    return (0.0 if x < 0.0 else x) + 2.0 * (s + s * (w * p))
