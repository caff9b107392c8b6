"""Products of small matrices inside a compiled kernel, at the speed of a BLAS.

The tiles of SSD are so small (64 x 64 times 64 x 128) that they stay in the cache, and each is used at once by the
loop that follows. A BLAS cannot be called from there without starting threads of its own, which a fork or a
second thread of ours would meet. So this is the innermost part of one: a block of `out` is held in the
registers while `depth` runs, one column of a against one row of b at a time,

    out[r, :] += a[r, k] b[k, :]        for 12 rows r and 2 vectors of columns

(Goto & van de Geijn, Anatomy of high-performance matrix multiplication, 2008, calls it the micro-kernel).
The compiler does not keep an array in registers by itself, hence the few lines of its own language.

a is (rows, depth) or, `transposed`, (depth, rows); b is (depth, cols); out is (rows, cols). They are float32
or float64 matrices, contiguous, in buffers whose sides are multiples of PAD: `rows` and `cols` are rounded
up, so that an out has unspecified values beyond them. `depth` is kept exactly.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ssmcourse.kernels.threads import native

PAD = 16

# Options are NumPy's numbers: of Python's, Numba would make a version of `multiply` for each combination.
AS_IS, TRANSPOSED = np.bool_(False), np.bool_(True)
# What of the product is needed: a is 0 above / below its diagonal, or out is not read above it.
ALL, A_LOWER, A_UPPER, OUT_LOWER = np.int64(0), np.int64(1), np.int64(2), np.int64(3)


def _registers() -> tuple[int, int, int]:
    """Bytes in a vector register here, and the rows of the two kinds of blocks that the registers hold."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 12, 8
    if features.get("avx"):
        return 32, 6, 4
    many = llvmlite.binding.get_process_triple().startswith(("aarch64", "arm64"))
    return (16, 12, 8) if many else (16, 6, 4)


VECTOR_BYTES, TALL, SHORT = _registers()


def _block(rows: int, vectors: int) -> Any:
    """A block of out of so many rows and vectors: from `corner` on, with a from `first` on and b from (start, col)."""

    @intrinsic
    def block(typingctx, a, first, down, along, b, start, col, out, corner, depth, keep):
        index = types.intp
        signature = types.void(a, index, index, index, b, index, index, out, index, index, out.dtype)

        def emit(context, builder, signature, args):
            def memory(i):
                array = context.make_array(signature.args[i])(context, builder, args[i])
                return array.data, cgutils.unpack_tuple(builder, array.shape)[1]

            (a_data, _), (b_data, b_width), (out_data, out_width) = memory(0), memory(4), memory(7)
            _, first, down, along, _, start, col, _, corner, depth, keep = args
            kernel = _micro_kernel(builder.module, context.get_data_type(out.dtype), rows, vectors)
            a_block = builder.gep(a_data, [first])
            b_block = builder.gep(b_data, [builder.add(builder.mul(start, b_width), col)])
            out_block = builder.gep(out_data, [corner])
            builder.call(kernel, [a_block, down, along, b_block, b_width, out_block, out_width, depth, keep])
            return context.get_dummy_value()

        return signature, emit

    return block


def _micro_kernel(module: ir.Module, number: ir.Type, rows: int, vectors: int) -> ir.Function:
    """out = keep out + a b for `rows` rows and `vectors` vectors of columns, as a function of its own in `module`.

    Its arguments: a, steps to the next row and column of a, b and its width, out and its width, depth, keep.
    """
    long, bits = ir.IntType(64), 32 if number == ir.FloatType() else 64
    lanes = 8 * VECTOR_BYTES // bits
    name, data = f"ssmcourse_product_{rows}_{vectors}_{lanes}_{bits}", number.as_pointer()
    if name in module.globals:
        return module.globals[name]
    arguments = [data, long, long, data, long, data, long, long, number]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")  # compiled once, not at every call
    a, down, along, b, b_width, out, out_width, depth, keep = function.args
    builder = ir.IRBuilder(function.append_basic_block())

    vector = ir.VectorType(number, lanes)
    fma = cgutils.get_or_insert_function(
        module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f{bits}"
    )
    nothing = ir.Constant(vector, [ir.Constant(number, 0.0)] * lanes)
    block = [(r, v) for r in range(rows) for v in range(vectors)]

    def constant(value):
        return ir.Constant(long, value)

    def vector_at(row, v):
        return builder.bitcast(builder.gep(row, [constant(v * lanes)]), vector.as_pointer())

    def load(row, v):
        return builder.load(vector_at(row, v), align=bits // 8)

    def everywhere(scalar):
        first = builder.insert_element(
            ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    out_rows = [builder.gep(out, [builder.mul(constant(r), out_width)]) for r in range(rows)]
    a_steps = [builder.mul(constant(r), down) for r in range(rows)]
    sums = {at: cgutils.alloca_once(builder, vector) for at in block}  # these become registers
    with builder.if_else(builder.fcmp_ordered("==", keep, ir.Constant(number, 0.0))) as (anew, onward):
        with anew:
            for at in block:
                builder.store(nothing, sums[at])
        with onward:
            for r, v in block:
                builder.store(builder.fmul(everywhere(keep), load(out_rows[r], v)), sums[r, v])
    with cgutils.for_range(builder, depth) as loop:
        b_row = builder.gep(b, [builder.mul(loop.index, b_width)])
        a_column = builder.gep(a, [builder.mul(loop.index, along)])
        b_vectors = [load(b_row, v) for v in range(vectors)]
        for r in range(rows):
            factor = everywhere(builder.load(builder.gep(a_column, [a_steps[r]])))
            for v in range(vectors):
                builder.store(builder.call(fma, [factor, b_vectors[v], builder.load(sums[r, v])]), sums[r, v])
    for r, v in block:
        builder.store(builder.load(sums[r, v]), vector_at(out_rows[r], v), align=bits // 8)
    builder.ret_void()
    return function


_tall_and_wide, _short_and_wide = _block(TALL, 2), _block(SHORT, 2)
_tall, _short = _block(TALL, 1), _block(SHORT, 1)


@native
def multiply(a, transposed, b, out, rows, cols, depth, keep, part=ALL):
    """out = keep * out + a b; with keep = 0 whatever `out` held, NaN included, is gone."""
    down, along = (1, a.shape[1]) if transposed else (a.shape[1], 1)
    rows, cols = (rows + 7) // 8 * 8, (cols + PAD - 1) // PAD * PAD
    lanes = VECTOR_BYTES // out.itemsize
    wide = cols // (2 * lanes) * (2 * lanes)
    row = 0
    while row < rows:
        rest = rows - row
        height = SHORT if rest == SHORT or rest == 2 * SHORT else TALL
        start, stop, right = 0, depth, cols
        if part == A_LOWER:
            stop = min(depth, row + height)
        elif part == A_UPPER:
            start = min(row, depth)
        elif part == OUT_LOWER:
            right = min(cols, (row + height + lanes - 1) // lanes * lanes)
        first = row * down + start * along
        for col in range(0, right, 2 * lanes):
            corner = row * out.shape[1] + col
            if col < wide and height == TALL:
                _tall_and_wide(a, first, down, along, b, start, col, out, corner, stop - start, keep)
            elif col < wide:
                _short_and_wide(a, first, down, along, b, start, col, out, corner, stop - start, keep)
            elif height == TALL:
                _tall(a, first, down, along, b, start, col, out, corner, stop - start, keep)
            else:
                _short(a, first, down, along, b, start, col, out, corner, stop - start, keep)
        row += height
