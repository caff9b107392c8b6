"""SSD in Triton: the sizes of tiles, and the small functions that several kernels call.

A chunk is CHUNK steps, a tile of a matrix BLOCK x BLOCK, BLOCK x BLOCK_N or BLOCK x BLOCK_P. What all kernels share:

    steps_ptr    (b, h, 3, l)   dt, and the cumulative sum s of log_a inside its chunk as two numbers, s = hi + lo
    number_ptr   (b, l)         the number of a step's sequence, counted on from row to row; read if PACKED
    ends_ptr     (s,)           the last step of each sequence, counted through all rows: row l + step
    states_ptr   (b, c - 1, h, n, p)   the state that enters each chunk but the first; initial_ptr (b, h, p, n) has that

Why two numbers: after one step of log_a = -1e4, s is about -1e4, and float32 has no digits left there for the steps
of -0.01 that follow. With hi and lo the difference of two sums is as good as the sum of the steps between them.

OPERAND is the type in which matrices are multiplied: that of x on a GPU, so that tensor cores multiply half types.
Triton's interpreter cannot compute in bfloat16; there it is the type of the sums.
"""

# pyright: reportCallIssue=false

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ssmcourse.kernels import runtime

INTERPRETED = runtime.triton_mode() == "interpreted"
CHUNK = 16 if INTERPRETED else 256  # small, so that short tests have several chunks


class Blocks(NamedTuple):
    """The sizes of tiles; every one a power of two, and on a GPU 16 or more, as tensor cores want it."""

    chunk: int
    block: int  # steps
    n: int
    p: int
    rows: int  # steps i of a tile where y and G are made: the more, the less often the steps j are read


def blocks(n: int, p: int, dtype: torch.dtype) -> Blocks:
    """For x of this type: matrices of float32 and float64 are multiplied without tensor cores, in smaller tiles."""
    if INTERPRETED:
        return Blocks(CHUNK, 16, min(16, triton.next_power_of_2(n)), min(16, triton.next_power_of_2(p)), 16)
    largest = {2: 64, 4: 32, 8: 16}[dtype.itemsize]
    of_n, of_p = (min(largest, max(16, triton.next_power_of_2(size))) for size in (n, p))
    return Blocks(CHUNK, largest, of_n, of_p, 128 if largest == 64 else largest)


# Warps and stages of a program that tuning tries; untuned it is the first pair,
CONFIGURATIONS = ((4, 2), (4, 3), (8, 2))
# or for numbers of so many bytes this one, where the first would run out of registers (`make kernels` tells).
INSTEAD = {
    (2, "chunk_scan_kernel"): (8, 2),
    (2, "input_gradient_kernel"): (8, 2),
    (2, "matrix_gradient_kernel"): (8, 2),
    (4, "input_gradient_kernel"): (8, 2),
    (4, "matrix_gradient_kernel"): (4, 1),
    (4, "B_gradient_kernel"): (8, 2),
    (4, "C_gradient_kernel"): (8, 2),
}


def configuration(kernel: Any, dtype: torch.dtype) -> dict[str, int]:
    """How a GPU runs a program of this kernel, if nobody has measured what is best."""
    warps, stages = INSTEAD.get((dtype.itemsize, kernel.__name__), CONFIGURATIONS[0])
    return {"num_warps": warps, "num_stages": stages}


@triton.jit
def product(a, b, acc, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b, summed in acc's type."""
    return tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def decay(hi_to, lo_to, hi_from, lo_from, kept):
    """exp(s_to - s_from) where `kept`, else 0. The mask comes first: above the diagonal exp may overflow."""
    return tl.exp(tl.where(kept, (hi_to - hi_from) + (lo_to - lo_from), -float("inf")))


@triton.jit
def place(pid, l, CHUNK: tl.constexpr):
    """Of the program's chunk: its row, its number there, its first step, and how many steps of it there are."""
    chunks = tl.cdiv(l, CHUNK)
    row, chunk = pid // chunks, pid % chunks
    begin = chunk * CHUNK
    return row.to(tl.int64), chunk, begin, tl.minimum(CHUNK, l - begin)


@triton.jit
def load_sums(steps, t, left, l):
    """hi and lo of the steps t < left of a chunk; `steps` points to its first."""
    hi = tl.load(steps + l + t, mask=t < left, other=0.0)
    lo = tl.load(steps + 2 * l + t, mask=t < left, other=0.0)
    return hi, lo


@triton.jit
def load_rows(rows, t, left, stride, offs, WIDTH: tl.constexpr):
    """The steps t < left of a chunk: a tile (len(t), len(offs)). `rows` points to the chunk's first step.

    It is a pointer of 64 bits, made once; inside a chunk 32 bits are enough, and registers are few.
    """
    mask = (t < left)[:, None] & (offs < WIDTH)[None, :]
    return tl.load(rows + t[:, None] * stride + offs[None, :], mask=mask, other=0.0)


@triton.jit
def load_numbers(numbers, t, left):
    """The sequences of the steps t < left of a chunk, -1 for others."""
    return tl.load(numbers + t, mask=t < left, other=-1)


@triton.jit
def sequence_before(numbers, chunk):
    """The sequence whose state enters a chunk: that of the step before it. The initial state is the first one's."""
    return tl.load(numbers - tl.minimum(chunk, 1))


@triton.jit
def entering_state(
    states_ptr, initial_ptr, row, chunk, chunks, head, h, offs_n, offs_p, HAS_INITIAL: tl.constexpr,
    N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A tile (len(offs_n), len(offs_p)) of the state that enters a chunk."""
    mask = (offs_n < N)[:, None] & (offs_p < P)[None, :]
    if chunk == 0:
        first = initial_ptr + (row * h + head) * (N * P)
        state = tl.load(first + offs_p[None, :] * N + offs_n[:, None], mask=mask & HAS_INITIAL, other=0.0)
    else:
        here = states_ptr + ((row * (chunks - 1) + chunk - 1) * h + head) * (N * P)
        state = tl.load(here + offs_n[:, None] * P + offs_p[None, :], mask=mask, other=0.0)
    return state


# --- To be compiled without a GPU ---------------------------------------------------------------------

ACTIVATIONS = {"x", "B", "C", "z", "y", "dy", "dz", "dx", "dB", "dC", "dG"}  # of x's type
NOTHING = dict.fromkeys(("HAS_INITIAL", "HAS_FINAL", "HAS_D", "HAS_Z", "PACKED", "BACKWARD"), False)
INTEGERS = {"number": "*i32", "ends": "*i64"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def compilation(kernel: Any, dtype: str, label: str = "", *, n: int = 128, p: int = 64, **flags: Any) -> Any:
    """The kernel for x of a type, as the launcher would call it: with every flag that is not named true."""
    from ssmcourse.kernels.compiling import Compilation

    sizes, half = blocks(n, p, DTYPES[dtype]), DTYPES[dtype].itemsize == 2
    constants = {
        "N": n, "P": p, "CHUNK": sizes.chunk, "BLOCK": sizes.block, "BLOCK_N": sizes.n, "BLOCK_P": sizes.p,
        "ROWS": sizes.rows, "BLOCK_H": 8, "LINES": sizes.chunk // sizes.block, "TILES_N": n // sizes.n, "TILES_P": p // sizes.p,
        "PARTS": n * p // 256, "OPERAND": getattr(tl, str(DTYPES[dtype]).removeprefix("torch.")),
        "PRECISION": "tf32" if half else "ieee",
    }  # fmt: skip
    signature, constexprs = {}, {}
    for parameter in inspect.signature(kernel.fn).parameters.values():
        name = parameter.name.removesuffix("_ptr")
        if "constexpr" in str(parameter.annotation):
            constexprs[name] = constants[name] if name in constants else flags.get(name, True)
        elif name == parameter.name:
            signature[name] = "i32"
        else:
            of_sums = "*fp64" if dtype == "fp64" else "*fp32"
            signature[parameter.name] = INTEGERS.get(name, f"*{dtype}" if name in ACTIVATIONS else of_sums)
    multiplies = half and "OPERAND" in constexprs  # matrices
    return Compilation(
        f"ssd.{kernel.__name__} {dtype}{label}", kernel, signature, constexprs, half_dot=multiplies,
        **configuration(kernel, DTYPES[dtype]),
    )  # fmt: skip


def tunings(compilation: Any) -> Iterator[Any]:
    """The same kernel in every configuration that tuning tries."""
    for warps, stages in CONFIGURATIONS:
        if (warps, stages) != (compilation.num_warps, compilation.num_stages):
            name = f"{compilation.name}, {warps} warps, {stages} stages"
            yield compilation._replace(name=name, num_warps=warps, num_stages=stages, may_spill=True)
