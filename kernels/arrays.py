"""Between torch tensors and the arrays of a compiled kernel, half types included.

Numba knows neither bfloat16 nor a float16 that computes. So they travel as integers of the same width, each
type as one of its own, uint16 for bfloat16 and int16 for float16, and a kernel turns a value into a
float32 as it reads it (`widen`) and back as it writes it (`narrow`). Both vectorise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from ssmcourse.kernels import memory
from ssmcourse.kernels.vector_math import INLINED

_AS_INTEGERS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}


def as_array(tensor: Tensor | None) -> np.ndarray | None:
    """The tensor's values as a contiguous NumPy array, without a copy where it is contiguous already."""
    if tensor is None:
        return None
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    integers = _AS_INTEGERS.get(tensor.dtype)
    return (tensor if integers is None else tensor.view(integers)).numpy()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """A new tensor (memory.py says where from), and its memory as `as_array` would show it."""
    integers = _AS_INTEGERS.get(dtype)
    array = memory.empty(shape, torch.empty((), dtype=integers or dtype).numpy().dtype)
    tensor = torch.from_numpy(array)
    return (tensor if integers is None else tensor.view(dtype)), array


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


_I16, _I32, _HALF, _FLOAT = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()


@intrinsic
def _from_bfloat16(typingctx, value):
    def emit(context, builder, signature, args):
        wide = builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, _FLOAT)

    return types.float32(types.uint16), emit


@intrinsic
def _from_float16(typingctx, value):
    def emit(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], _HALF), _FLOAT)

    return types.float32(types.int16), emit


@intrinsic
def _to_float16(typingctx, value):
    def emit(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], _HALF), _I16)

    return types.int16(types.float32), emit


@intrinsic
def _to_bfloat16(typingctx, value):
    """The upper half of the bits, after adding half a unit of it (a tie goes to the even neighbour)."""

    def emit(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
        # Rounding could carry a NaN's bits over into those of a zero.
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        kept = builder.select(is_nan, ir.Constant(_I32, 0x7FC00000), rounded)
        return builder.trunc(builder.lshr(kept, ir.Constant(_I32, 16)), _I16)

    return types.uint16(types.float32), emit
