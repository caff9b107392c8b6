"""The linear scan in Triton: in one pass, a block of steps at once; or in three phases, where rows are few and long.

    h_t = a_t h_{t-1} + b_t,        a, b, h: (b, l, d), h_{-1}: (b, d)

**One pass.** Two steps in a row are one step: h -> a2 (a1 h + b1) + b2 has the gate a2 a1 and the input
a2 b1 + b2. That is associative, so `tl.associative_scan` may combine the steps of a block in any grouping, in
log2(BLOCK_L) rounds. A program takes one row and BLOCK_D channels through all of l, block by block, with the state
carried from block to block; lesson 08 fuses more into such a loop. Grid: (b, blocks of channels), or the other way
round: b is along side ROW_SIDE.

**Three phases.** With few rows and channels that would be few programs. So l is cut into chunks: (1) each chunk is
walked from a zero state, for the product of its gates and its end; (2) the states are passed over the chunks,
state -> gate state + end; (3) each chunk is walked again, from the state that enters it, and h is written. A lane of a
tile walks one chunk of one channel, step after step. Grid: (b times groups of chunks, blocks of channels).

Elements moved for each of h's: one pass 3, three phases 5 + 4 / CHUNK. FLOPs for each: 6 and 5 (complex: 4 times that).

**Gates beyond the range of a float.** A product of gates may overflow, or vanish and grow again, where no state
does. A block or chunk whose gates can grow something by more than 2^32, or that has an infinity in it, is
therefore walked step by step with its true state.

| pointer           | shape     | type                                                                          |
|-------------------|-----------|-------------------------------------------------------------------------------|
| a_ptr, b_ptr, h_ptr | (b, l, d) | any floating one; complex: pairs of reals                                     |
| state_ptr         | (b, d)    | the one computed in: float32 or wider                                          |
| gate_ptr, end_ptr | (b, c, d) | state's: the chunks' gates and ends; `end` is then the state that enters        |
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false
# Triton's compiler does not know (*tiles, tile).
# ruff: noqa: RUF005

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels import runtime
from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.launching import on_device_of
from ssmcourse.kernels.linear_scan import operator

# The interpreter runs every lane of a scan in Python: small blocks there.
_INTERPRETED = runtime.triton_mode() == "interpreted"
BLOCK_L = 16 if _INTERPRETED else 32  # with 64, half as many programs have room for their registers
CHUNK = 8 if _INTERPRETED else 64
LANES = 64 if _INTERPRETED else 256  # chunks times channels of a tile that walks
AHEAD = 4  # steps whose a and b are asked for before the first is needed
ENOUGH = 256  # programs: some two for each multiprocessor of a large GPU
MOST_PROGRAMS = 65535  # that a GPU starts along the second side of a grid; along the first, 2^31 - 1
GROWTH = tl.constexpr(32.0)  # log2 of what the gates of a block may make of something

# --- One pass --------------------------------------------------------------------------------------


@triton.jit
def _then(a1, b1, a2, b2):
    """The step (a1, b1), then the step (a2, b2), as one step."""
    return a2 * a1, a2 * b1 + b2


@triton.jit
def _growth(square):
    """log2 of max(|a|, 1), for |a|^2."""
    return 0.5 * tl.log2(tl.maximum(square.to(tl.float32), 1.0))


@triton.jit
def _in_range(growth, size, state_size):
    """Does no channel of a block grow too much or hold an infinity? For (BLOCK_L, BLOCK_D) twice and (BLOCK_D,)."""
    growth = tl.sum(tl.where(size < float("inf"), growth, float("inf")), 0)
    return tl.max(tl.where(state_size < float("inf"), growth, float("inf")), 0) <= GROWTH


@triton.jit
def scan_kernel(
    a_ptr, b_ptr, state_ptr, h_ptr, l, d,
    REVERSE: tl.constexpr, ROW_SIDE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(ROW_SIDE).to(tl.int64)
    offs_d = tl.program_id(1 - ROW_SIDE) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_l = tl.arange(0, BLOCK_L)
    last = (offs_l == BLOCK_L - 1)[:, None]
    T: tl.constexpr = state_ptr.dtype.element_ty
    state = tl.load(state_ptr + row * d + offs_d, mask=offs_d < d, other=0.0)  # (BLOCK_D,)
    for start in range(0, l, BLOCK_L):
        step = start + offs_l
        t = l - 1 - step if REVERSE else step
        offs = (row * l + t[:, None]) * d + offs_d[None, :]
        mask = (step < l)[:, None] & (offs_d < d)[None, :]
        a = tl.load(a_ptr + offs, mask=mask, other=1.0).to(T)  # (BLOCK_L, BLOCK_D); past the end
        b = tl.load(b_ptr + offs, mask=mask, other=0.0).to(T)  # (BLOCK_L, BLOCK_D); a step that does nothing
        if _in_range(_growth(a * a), tl.abs(b), tl.abs(state)):
            decay, local = tl.associative_scan((a, b), 0, _then)
            h = decay * state[None, :] + local
            tl.store(h_ptr + offs, h, mask=mask)
            state = tl.sum(tl.where(last, h, 0.0), 0)
        else:
            state = _walk(a_ptr, b_ptr, h_ptr, (state,), row, start, l, d, offs_d, False, REVERSE, BLOCK_L)[0]


@triton.jit
def _then_complex(a1, c1, b1, d1, a2, c2, b2, d2):
    """`_then` for gates a + ic and inputs b + id."""
    return a2 * a1 - c2 * c1, a2 * c1 + c2 * a1, a2 * b1 - c2 * d1 + b2, a2 * d1 + c2 * b1 + d2


@triton.jit
def complex_scan_kernel(
    a_ptr, b_ptr, state_ptr, h_ptr, l, d,
    REVERSE: tl.constexpr, ROW_SIDE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Triton has no complex numbers: real and imaginary parts are two arrays, interleaved in memory.
    row = tl.program_id(ROW_SIDE).to(tl.int64)
    offs_d = tl.program_id(1 - ROW_SIDE) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_l = tl.arange(0, BLOCK_L)
    last = (offs_l == BLOCK_L - 1)[:, None]
    re, im = _number(state_ptr, row * d + offs_d, offs_d < d, 0.0, True, tl.float32)  # (BLOCK_D,)
    for start in range(0, l, BLOCK_L):
        step = start + offs_l
        t = l - 1 - step if REVERSE else step
        offs = (row * l + t[:, None]) * d + offs_d[None, :]
        mask = (step < l)[:, None] & (offs_d < d)[None, :]
        a_re, a_im = _number(a_ptr, offs, mask, 1.0, True, re.dtype)  # (BLOCK_L, BLOCK_D)
        b_re, b_im = _number(b_ptr, offs, mask, 0.0, True, re.dtype)  # (BLOCK_L, BLOCK_D)
        size, state_size = tl.abs(b_re) + tl.abs(b_im), tl.abs(re) + tl.abs(im)
        if _in_range(_growth(a_re * a_re + a_im * a_im), size, state_size):
            a_re, a_im, b_re, b_im = tl.associative_scan((a_re, a_im, b_re, b_im), 0, _then_complex)
            h_re = a_re * re[None, :] - a_im * im[None, :] + b_re
            h_im = a_re * im[None, :] + a_im * re[None, :] + b_im
            tl.store(h_ptr + 2 * offs, h_re, mask=mask)
            tl.store(h_ptr + 2 * offs + 1, h_im, mask=mask)
            re = tl.sum(tl.where(last, h_re, 0.0), 0)
            im = tl.sum(tl.where(last, h_im, 0.0), 0)
        else:
            re, im = _walk(a_ptr, b_ptr, h_ptr, (re, im), row, start, l, d, offs_d, True, REVERSE, BLOCK_L)


# --- Step by step ----------------------------------------------------------------------------------
# A number is a tuple of tiles: one if it is real, two if it is complex.


@triton.jit
def _number(ptr, offs, mask, other, COMPLEX: tl.constexpr, T: tl.constexpr):
    """Load a number; `other`, a real one, where the mask is false."""
    if COMPLEX:
        re = tl.load(ptr + 2 * offs, mask=mask, other=other)
        return re, tl.load(ptr + 2 * offs + 1, mask=mask, other=0.0)
    else:
        return (tl.load(ptr + offs, mask=mask, other=other).to(T),)


@triton.jit
def _write(ptr, offs, number, mask, COMPLEX: tl.constexpr):
    if COMPLEX:
        tl.store(ptr + 2 * offs, number[0], mask=mask)
        tl.store(ptr + 2 * offs + 1, number[1], mask=mask)
    else:
        tl.store(ptr + offs, number[0], mask=mask)


@triton.jit
def _step(a, h, b, COMPLEX: tl.constexpr):
    """a h + b."""
    if COMPLEX:
        return a[0] * h[0] - a[1] * h[1] + b[0], a[0] * h[1] + a[1] * h[0] + b[1]
    else:
        return (a[0] * h[0] + b[0],)


@triton.jit
def _walk(
    a_ptr, b_ptr, h_ptr, state, row, start, l, d, offs_d,
    COMPLEX: tl.constexpr, REVERSE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The state after STEPS steps from `start` on; each is written to h_ptr, if that is not None."""
    T: tl.constexpr = state[0].dtype
    for step in range(start, tl.minimum(start + STEPS, l)):
        t = l - 1 - step if REVERSE else step
        offs = (row * l + t) * d + offs_d
        mask = offs_d < d
        a = _number(a_ptr, offs, mask, 1.0, COMPLEX, T)
        state = _step(a, state, _number(b_ptr, offs, mask, 0.0, COMPLEX, T), COMPLEX)
        if h_ptr is not None:
            _write(h_ptr, offs, state, mask, COMPLEX)
    return state


@triton.jit
def _lines(
    a_ptr, b_ptr, row, step, i, l, d, offs_d,
    COMPLEX: tl.constexpr, REVERSE: tl.constexpr, AHEAD: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """a, b, offset and mask of AHEAD steps of each chunk, (CHUNKS, BLOCK_D) each, all on their way at once."""
    lines = ()
    for k in tl.static_range(AHEAD):
        at = step + i + k
        t = l - 1 - at if REVERSE else at
        offs = (row * l + t) * d + offs_d
        mask = (at < l) & (offs_d < d)
        a = _number(a_ptr, offs, mask, 1.0, COMPLEX, T)  # past the end, a step that does nothing
        lines = lines + ((a, _number(b_ptr, offs, mask, 0.0, COMPLEX, T), offs, mask),)
    return lines


# --- Three phases ----------------------------------------------------------------------------------


@triton.jit
def _chunks(l, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Of this program: the row, the chunks (CHUNKS, 1), how many a row has, and the channels (1, BLOCK_D)."""
    many = tl.cdiv(l, CHUNK)
    groups = tl.cdiv(many, CHUNKS)
    row = (tl.program_id(0) // groups).to(tl.int64)
    chunk = (tl.program_id(0) % groups) * CHUNKS + tl.arange(0, CHUNKS)
    return row, chunk[:, None], many, tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def ends_kernel(
    a_ptr, b_ptr, gate_ptr, end_ptr, l, d, COMPLEX: tl.constexpr, REVERSE: tl.constexpr,
    CHUNK: tl.constexpr, AHEAD: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Phase 1. A chunk's gate is NaN where the product of its gates is not to be trusted.
    row, chunk, many, offs_d = _chunks(l, CHUNK, CHUNKS, BLOCK_D)
    T: tl.constexpr = end_ptr.dtype.element_ty
    zeros = tl.zeros([CHUNKS, BLOCK_D], T)
    end, nothing = ((zeros, zeros) if COMPLEX else (zeros,)), ((zeros, zeros) if COMPLEX else (zeros,))
    gate = (zeros + 1, zeros) if COMPLEX else (zeros + 1,)
    growth = zeros.to(tl.float32)
    for i in range(0, CHUNK, AHEAD):
        lines = _lines(a_ptr, b_ptr, row, chunk * CHUNK, i, l, d, offs_d, COMPLEX, REVERSE, AHEAD, T)
        for k in tl.static_range(AHEAD):
            a = lines[k][0]
            end = _step(a, end, lines[k][1], COMPLEX)
            gate = _step(a, gate, nothing, COMPLEX)
            growth += _growth(a[0] * a[0] + a[1] * a[1] if COMPLEX else a[0] * a[0])
    offs = (row * many + chunk) * d + offs_d
    mask = (chunk < many) & (offs_d < d)
    trusted = tl.where(growth > GROWTH, float("nan"), gate[0])
    _write(gate_ptr, offs, (trusted, gate[1]) if COMPLEX else (trusted,), mask, COMPLEX)
    _write(end_ptr, offs, end, mask, COMPLEX)


@triton.jit
def pass_kernel(
    a_ptr, b_ptr, gate_ptr, end_ptr, state_ptr, l, d, COMPLEX: tl.constexpr, REVERSE: tl.constexpr,
    CHUNK: tl.constexpr, AHEAD: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Phase 2. In the place of each chunk's end: the state that enters the chunk. Grid: (b, blocks of channels).
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    T: tl.constexpr = state_ptr.dtype.element_ty
    state = _number(state_ptr, row * d + offs_d, offs_d < d, 0.0, COMPLEX, T)  # (BLOCK_D,)
    many = tl.cdiv(l, CHUNK)
    for first in range(0, many, AHEAD):
        chunks = _lines(gate_ptr, end_ptr, row, 0, first, many, d, offs_d, COMPLEX, False, AHEAD, T)
        for k in tl.static_range(AHEAD):
            gate, end, offs, mask = chunks[k]
            _write(end_ptr, offs, state, mask, COMPLEX)
            size = tl.abs(state[0]) + tl.abs(state[1]) if COMPLEX else tl.abs(state[0])
            if tl.max(tl.where((gate[0] == gate[0]) & (size < float("inf")), 0, 1), 0) > 0:
                start = (first + k) * CHUNK
                state = _walk(a_ptr, b_ptr, None, state, row, start, l, d, offs_d, COMPLEX, REVERSE, CHUNK)
            else:
                state = _step(gate, state, end, COMPLEX)


@triton.jit
def states_kernel(
    a_ptr, b_ptr, entering_ptr, h_ptr, l, d, COMPLEX: tl.constexpr, REVERSE: tl.constexpr,
    CHUNK: tl.constexpr, AHEAD: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Phase 3.
    row, chunk, many, offs_d = _chunks(l, CHUNK, CHUNKS, BLOCK_D)
    T: tl.constexpr = entering_ptr.dtype.element_ty
    mask = (chunk < many) & (offs_d < d)
    state = _number(
        entering_ptr, (row * many + chunk) * d + offs_d, mask, 0.0, COMPLEX, T
    )  # (CHUNKS, BLOCK_D)
    for i in range(0, CHUNK, AHEAD):
        lines = _lines(a_ptr, b_ptr, row, chunk * CHUNK, i, l, d, offs_d, COMPLEX, REVERSE, AHEAD, T)
        for k in tl.static_range(AHEAD):
            state = _step(lines[k][0], state, lines[k][1], COMPLEX)
            _write(h_ptr, lines[k][2], state, lines[k][3], COMPLEX)


# --- Launching -------------------------------------------------------------------------------------


def scan(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
    """h of `linear_scan`, for a and b (b, l, d) of one dtype and the initial state (b, d) of that computed in."""
    return _scan(a, b, initial_state, reverse, b.dtype)


def gradient(
    dh: Tensor, a: Tensor, h: Tensor, initial_state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """da, db and d initial_state by the rule in operator.py; half types are rounded at its end alone."""

    def wide(a: Tensor, b: Tensor, first: Tensor, reverse: bool) -> Tensor:
        return _scan(a, b, first, reverse, first.dtype)

    da, db, dfirst = operator.by_the_rule(wide, dh, a, h, initial_state, reverse)
    return da, db.to(h.dtype), dfirst


def _scan(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool, dtype: torch.dtype) -> Tensor:
    rows, l, d = b.shape
    programs = rows * triton.cdiv(d, _one_pass_sizes(d)["BLOCK_D"])
    way = three_phases if programs < ENOUGH and l >= 4 * CHUNK else one_pass
    return way(a, b, initial_state, reverse, dtype)


def one_pass(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool, dtype: torch.dtype) -> Tensor:
    """h of the given dtype: each row and block of channels by one program."""
    rows, l, d = b.shape
    kernel = complex_scan_kernel if b.is_complex() else scan_kernel
    h = b.new_empty(b.shape, dtype=dtype)
    sizes = _one_pass_sizes(d)
    blocks = triton.cdiv(d, sizes["BLOCK_D"])
    wide = blocks > MOST_PROGRAMS
    with on_device_of(b):
        kernel[(blocks, rows) if wide else (rows, blocks)](
            *map(_plain, (a, b, initial_state, h)), l, d, REVERSE=reverse, ROW_SIDE=int(wide), **sizes
        )
    return h


def three_phases(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool, dtype: torch.dtype) -> Tensor:
    """h of the given dtype: each chunk of each row by lanes of its own."""
    rows, l, d = b.shape
    many = triton.cdiv(l, CHUNK)
    h = b.new_empty(b.shape, dtype=dtype)
    gate, end = (initial_state.new_empty(rows, many, d) for _ in range(2))
    a, b, initial_state, out, gate, end = map(_plain, (a, b, initial_state, h, gate, end))
    options = {"COMPLEX": h.is_complex(), "REVERSE": reverse, "CHUNK": CHUNK, "AHEAD": AHEAD}
    sizes = _walk_sizes(d, many)
    grid = (rows * triton.cdiv(many, sizes["CHUNKS"]), triton.cdiv(d, sizes["BLOCK_D"]))
    block_d = min(32, triton.next_power_of_2(d))
    with on_device_of(h):
        ends_kernel[grid](a, b, gate, end, l, d, **options, **sizes)
        pass_kernel[rows, triton.cdiv(d, block_d)](
            a, b, gate, end, initial_state, l, d, **options, BLOCK_D=block_d, num_warps=1
        )
        states_kernel[grid](a, b, end, out, l, d, **options, **sizes)
    return h


def _one_pass_sizes(d: int) -> dict[str, int]:
    return {"BLOCK_L": BLOCK_L, "BLOCK_D": min(32, triton.next_power_of_2(d))}


def _walk_sizes(d: int, many: int) -> dict[str, int]:
    block_d = min(32, triton.next_power_of_2(d))
    return {"CHUNKS": min(LANES // block_d, triton.next_power_of_2(many)), "BLOCK_D": block_d}


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous and real: a complex tensor as pairs of reals."""
    tensor = tensor.detach().contiguous()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def compilations() -> Iterator[Compilation]:
    """Forward and backward, float32, half and float64, real and complex; one pass and three phases."""
    for dtype, is_complex in (("fp32", False), ("bf16", False), ("fp64", False), ("fp32", True)):
        one = complex_scan_kernel if is_complex else scan_kernel
        walking = {"CHUNK": CHUNK, "AHEAD": AHEAD}
        for kernel, own in (
            (one, {"ROW_SIDE": 0} | _one_pass_sizes(64)),
            (ends_kernel, walking | _walk_sizes(64, 1024)),
            (pass_kernel, walking | {"BLOCK_D": 32}),
            (states_kernel, walking | _walk_sizes(64, 1024)),
        ):
            for reverse in (False, True) if dtype == "fp32" else (False,):
                constexprs: dict[str, Any] = {"REVERSE": reverse} | own
                constexprs |= {} if kernel is one else {"COMPLEX": is_complex}
                signature = {n: _type(n, dtype) for n in kernel.arg_names if n not in constexprs}
                label = f"{'complex ' if is_complex else ''}{dtype}{' reverse' if reverse else ''}"
                name = f"linear_scan.{kernel.__name__} {label}"
                yield Compilation(
                    name, kernel, signature, constexprs, num_warps=1 if kernel is pass_kernel else 4
                )


def _type(name: str, dtype: str) -> str:
    if not name.endswith("_ptr"):
        return "i32"
    given = name in ("a_ptr", "b_ptr", "h_ptr") or dtype == "fp64"
    return f"*{dtype}" if given else "*fp32"


linear_scan = operator.register("triton", scan, gradient, reads_half=True)
