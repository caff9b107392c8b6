"""Between torch tensors and the arrays of a compiled kernel, half types included.

Numba knows neither bfloat16 nor a float16 that computes. So they travel as integers of the same width, each
type as one of its own, uint16 for bfloat16 and int16 for float16, and a kernel turns a value into a
float32 as it reads it (`widen`) and back as it writes it (`narrow`). Both vectorise.
"""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic, overload
from torch import Tensor

from ssmcourse.kernels import memory
from ssmcourse.kernels.vector_math import INLINED

SMALL = 1 << 16  # numbers; a result with fewer is there quicker than memory.py finds room for it
_AS_INTEGERS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}


def as_array(tensor: Tensor | None) -> np.ndarray | None:
    """The tensor's values as a contiguous NumPy array, without a copy where it is contiguous already."""
    if tensor is None:
        return None
    if tensor.requires_grad:  # what is not needed is left out: a step of generation has a dozen arrays
        tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    tensor = tensor.contiguous()
    integers = _AS_INTEGERS.get(tensor.dtype)
    return (tensor if integers is None else tensor.view(integers)).numpy()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """A new tensor (memory.py says where from, unless it is small), and its memory as `as_array` would show it."""
    if math.prod(shape) < SMALL:
        tensor = torch.empty(shape, dtype=dtype)
        return tensor, cast(np.ndarray, as_array(tensor))
    integers = _AS_INTEGERS.get(dtype)
    array = memory.empty(shape, torch.empty((), dtype=integers or dtype).numpy().dtype)
    tensor = torch.from_numpy(array)
    return (tensor if integers is None else tensor.view(dtype)), array


@functools.cache
def nothing(dtype: torch.dtype, ndim: int) -> np.ndarray:
    """For an optional argument that is not there, (1, ..., 1, 0): a None would compile a kernel anew."""
    return np.empty(
        (1,) * (ndim - 1) + (0,), torch.empty((), dtype=_AS_INTEGERS.get(dtype, dtype)).numpy().dtype
    )


def address(tensor: Tensor | None) -> int:
    """Where a contiguous tensor's values lie, for `array_at`; 0 for None. A fraction of what making an array costs."""
    return 0 if tensor is None else tensor.data_ptr()


def array_at(address: Any, shape: Any, like: Any) -> Any:
    """In a kernel: the array of that shape (a tuple) at an address, of the type of `like`."""
    raise NotImplementedError("only compiled code calls this")


@overload(array_at, jit_options=INLINED)
def _array_at(address, shape, like):
    return lambda address, shape, like: carray(_pointer(address, like), shape)


@intrinsic
def _pointer(typingctx, address, like):
    def emit(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), emit


def widen(value: Any) -> Any:
    """In a kernel: the number that an element stands for; float32 for both half types."""
    raise NotImplementedError("only compiled code calls this")


def narrow(value: Any, like: Any) -> Any:
    """In a kernel: the number as an element of an array whose elements are like `like`, rounded to nearest."""
    raise NotImplementedError("only compiled code calls this")


@overload(widen, jit_options=INLINED)
def _widen(value):
    if value == types.uint16:
        return lambda value: _from_bfloat16(value)
    if value == types.int16:
        return lambda value: _from_float16(value)
    return lambda value: value


@overload(narrow, jit_options=INLINED)
def _narrow(value, like):
    if like == types.uint16:
        return lambda value, like: _to_bfloat16(np.float32(value))
    if like == types.int16:
        return lambda value, like: _to_float16(np.float32(value))
    return lambda value, like: value


_I16, _I32, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()


def _i32(number: int) -> ir.Constant:
    return ir.Constant(_I32, number)


@intrinsic
def _from_bfloat16(typingctx, value):
    def emit(context, builder, signature, args):
        wide = builder.shl(builder.zext(args[0], _I32), _i32(16))
        return builder.bitcast(wide, _FLOAT)

    return types.float32(types.uint16), emit


# For float16 LLVM has instructions, but where the processor does not (x86 before F16C, or Numba told to compile
# for any CPU) they become calls of functions that Numba does not have, and that aborts the process. So: arithmetic.


@intrinsic
def _from_float16(typingctx, value):
    """The exponent moved from a bias of 15 to one of 127; what has none is a whole number of 2^-24."""

    def emit(context, builder, signature, args):
        bits = builder.zext(args[0], _I32)
        sign = builder.shl(builder.and_(bits, _i32(0x8000)), _i32(16))
        size = builder.and_(bits, _i32(0x7FFF))
        normal = builder.add(builder.shl(size, _i32(13)), _i32((127 - 15) << 23))
        special = builder.icmp_unsigned(">=", size, _i32(0x7C00))  # infinity and NaN
        normal = builder.select(special, builder.or_(normal, _i32(0x7F800000)), normal)
        small = builder.fmul(builder.uitofp(size, _FLOAT), ir.Constant(_FLOAT, 2.0**-24))
        is_small = builder.icmp_unsigned("<", size, _i32(0x0400))
        wide = builder.select(is_small, builder.bitcast(small, _I32), normal)
        return builder.bitcast(builder.or_(wide, sign), _FLOAT)

    return types.float32(types.int16), emit


@intrinsic
def _to_float16(typingctx, value):
    """As `_to_bfloat16`; below 2^-14 the sum with 1/2, whose last bit is 2^-24, does the rounding."""

    def emit(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32)
        sign = builder.and_(bits, _i32(0x80000000))
        size = builder.xor(bits, sign)
        odd = builder.and_(builder.lshr(size, _i32(13)), _i32(1))
        moved = builder.add(builder.sub(size, _i32((127 - 15) << 23)), builder.add(odd, _i32(0xFFF)))
        half = ir.Constant(_FLOAT, 0.5)
        small = builder.bitcast(builder.fadd(builder.bitcast(size, _FLOAT), half), _I32)
        small = builder.sub(small, builder.bitcast(half, _I32))
        is_small = builder.icmp_unsigned("<", size, _i32((127 - 14) << 23))
        found = builder.select(is_small, small, builder.lshr(moved, _i32(13)))
        is_nan = builder.icmp_unsigned(">", size, _i32(0x7F800000))
        special = builder.select(is_nan, _i32(0x7E00), _i32(0x7C00))
        is_large = builder.icmp_unsigned(">=", size, _i32((127 + 16) << 23))
        found = builder.select(is_large, special, found)
        return builder.trunc(builder.or_(found, builder.lshr(sign, _i32(16))), _I16)

    return types.int16(types.float32), emit


@intrinsic
def _to_bfloat16(typingctx, value):
    """The upper half of the bits, after adding half a unit of it (a tie goes to the even neighbour)."""

    def emit(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, _i32(16)), _i32(1))
        rounded = builder.add(bits, builder.add(odd, _i32(0x7FFF)))
        # Rounding could carry a NaN's bits over into those of a zero.
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        kept = builder.select(is_nan, _i32(0x7FC00000), rounded)
        return builder.trunc(builder.lshr(kept, _i32(16)), _I16)

    return types.uint16(types.float32), emit
