"""The causal convolution in Triton: each tile walks along its steps and holds the last w inputs in registers.

    v_t = bias + weight_{w-1} x_t + weight_{w-2} x_{t-1} + ... + weight_0 x_{t-w+1},      y_t = v_t or silu(v_t)

A program has STRIPS strips of STEPS consecutive steps each, and BLOCK_D channels. It walks along all its strips
at once. At each step it loads one line of x, and the window moves on: the oldest input falls out, the new one
comes in. So x is read once from memory, and the w - 1 steps before each strip once more.

Where another sequence begins the window is emptied. Its zeros are multiplied by taps, never by what was there.

| pointer                 | shape         | type                                                        |
|-------------------------|---------------|-------------------------------------------------------------|
| x_ptr, dy_ptr           | (b, l, d)     | any floating one; the strides of b and l are free            |
| y_ptr, dx_ptr           | (b, l, d)     | x's                                                          |
| weight_ptr, bias_ptr    | (d, w), (d,)  | the one computed in, float32 or float64; no bias: None       |
| state_ptr, dstate_ptr   | (b, w - 1, d) | weight's; inputs before the first step, oldest first; or None |
| seq_ptr                 | (b, l)        | int64, or None                                               |
| partial_ptr             | (p, w + 1, d) | weight's; what program p adds to dweight (w lines) and dbias |

Grid: b times the pieces of STRIPS STEPS steps, then the blocks of channels.
Elements moved for one of x's: forward 2 + (w - 1) / STEPS; backward 3 + 3 (w - 1) / STEPS, and the partial sums,
2 (w + 1) / (STRIPS STEPS). FLOPs for one: forward 2 w, backward 6 w, and about ten for silu.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false
# Triton's compiler does not know (*tiles, tile).
# ruff: noqa: RUF005

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels import runtime
from ssmcourse.kernels.causal_conv1d import operator
from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.launching import contiguous, on_device_of
from ssmcourse.kernels.triton_math import sigmoid


class Tile(NamedTuple):
    """STRIPS times BLOCK_D, and STEPS: small where the interpreter goes through every step in Python."""

    elements: int
    steps: int


_INTERPRETED = runtime.triton_mode() == "interpreted"
FORWARD = Tile(16, 8) if _INTERPRETED else Tile(512, 32)
BACKWARD = Tile(16, 8) if _INTERPRETED else Tile(512, 32)
BACKWARD_WARPS = 8  # with 4, some of its numbers find no register
AHEAD = 4  # lines of x that a thread asks for before it needs the first
WIDEST = 32  # taps: the window and the sums of the gradient are in registers

# --- What the kernels share ------------------------------------------------------------------------


@triton.jit
def _strips(l, STRIPS: tl.constexpr, STEPS: tl.constexpr):
    """The row of this program, and the first step of each of its strips."""
    pieces = tl.cdiv(l, STRIPS * STEPS)
    row = (tl.program_id(0) // pieces).to(tl.int64)
    start = (tl.program_id(0) % pieces) * STRIPS * STEPS + tl.arange(0, STRIPS) * STEPS
    return row, start[:, None]  # (STRIPS, 1)


@triton.jit
def taps_of(weight_ptr, offs_d, d, W: tl.constexpr):
    """The taps, oldest first, W tiles of (1, BLOCK_D)."""
    taps = ()
    for j in tl.static_range(W):
        taps = taps + (tl.load(weight_ptr + offs_d * W + j, mask=offs_d < d, other=0.0),)
    return taps


@triton.jit
def _zeros(like, N: tl.constexpr):
    """N tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(N):
        tiles = tiles + (tl.zeros_like(like),)
    return tiles


@triton.jit
def _kept(keep, window, N: tl.constexpr):
    """The N inputs of a window where `keep` (STRIPS, 1) is true, zeros elsewhere."""
    tiles = ()
    for j in tl.static_range(N):
        tiles = tiles + (tl.where(keep, window[j], 0.0),)
    return tiles


@triton.jit
def _mark(seq_ptr, row, t, l):
    """The number of step t's sequence, and beyond the ends of the row that of its end: (STRIPS, 1)."""
    inside = tl.minimum(tl.maximum(t, 0), l - 1)
    return tl.load(seq_ptr + row * l + inside)


@triton.jit
def _first_window(
    x_ptr,
    state_ptr,
    seq_ptr,
    offs_x,
    offs_state,
    row,
    start,
    l,
    mask,
    stride_xl,
    d,
    W: tl.constexpr,
    T: tl.constexpr,
):
    """The w - 1 inputs before each strip, (STRIPS, BLOCK_D); those before the first step are the initial state's."""
    window = ()
    for i in tl.static_range(1 - W, 0):
        t = start + i
        x = tl.load(x_ptr + offs_x + i * stride_xl, mask=mask & (t >= 0) & (t < l), other=0.0).to(T)
        if state_ptr is not None:
            x += tl.load(state_ptr + offs_state + i * d, mask=mask & (t < 0), other=0.0)
        if seq_ptr is not None:
            same = _mark(seq_ptr, row, t, l) == _mark(seq_ptr, row, t - 1, l)
            window = _kept(same, window, W - 1 + i)
        window = window + (x,)
    return window


@triton.jit
def weighted_sum(taps, window, bias_ptr, offs_d, d, W: tl.constexpr):
    """v = bias + taps . window: (STRIPS, BLOCK_D)."""
    v = taps[0] * window[0]
    for j in tl.static_range(1, W):
        v += taps[j] * window[j]
    if bias_ptr is not None:
        v += tl.load(bias_ptr + offs_d, mask=offs_d < d, other=0.0)  # (1, BLOCK_D)
    return v


# --- Forward ---------------------------------------------------------------------------------------


@triton.jit
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, state_ptr, seq_ptr, y_ptr, l, d, stride_xb, stride_xl,
    W: tl.constexpr, SILU: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr, AHEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, start = _strips(l, STRIPS, STEPS)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = offs_d < d
    offs_x = row * stride_xb + start.to(tl.int64) * stride_xl + offs_d  # of each strip's first step
    offs_y = (row * l + start) * d + offs_d
    offs_state = (row * (W - 1) + W - 1 + start) * d + offs_d
    taps = taps_of(weight_ptr, offs_d, d, W)
    T: tl.constexpr = taps[0].dtype
    window = _first_window(
        x_ptr, state_ptr, seq_ptr, offs_x, offs_state, row, start, l, mask, stride_xl, d, W, T
    )
    for ahead in range(0, STEPS, AHEAD):
        lines = ()
        for k in tl.static_range(AHEAD):  # on their way at once
            i = ahead + k
            line = tl.load(x_ptr + offs_x + i * stride_xl, mask=mask & (start + i < l), other=0.0)
            lines = lines + (line.to(T),)  # (STRIPS, BLOCK_D)
        for k in tl.static_range(AHEAD):
            i = ahead + k
            t = start + i
            if seq_ptr is not None:
                same = _mark(seq_ptr, row, t, l) == _mark(seq_ptr, row, t - 1, l)
                window = _kept(same, window, W - 1)
            window = window + (lines[k],)
            v = weighted_sum(taps, window, bias_ptr, offs_d, d, W)
            y = v * sigmoid(v) if SILU else v
            tl.store(y_ptr + offs_y + i * d, y, mask=mask & (t < l))
            window = window[1:]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> Tensor:
    """y; all arguments as in operator.py, x not empty."""
    (_, l, d), w = x.shape, weight.shape[1]
    x, y = _lines(x), torch.empty_like(x, memory_format=torch.contiguous_format)
    given = map(contiguous, (weight, bias, initial_state, seq_idx))
    grid, tile = _plan(FORWARD, x, w)
    with on_device_of(x):
        forward_kernel[grid](x, *given, y, l, d, *x.stride()[:2], W=w, SILU=silu, AHEAD=AHEAD, **tile)
    return y


# --- Backward --------------------------------------------------------------------------------------


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, state_ptr, seq_ptr, dx_ptr, dstate_ptr, partial_ptr,
    l, d, stride_yb, stride_yl, stride_xb, stride_xl,
    W: tl.constexpr, SILU: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # dv_t reaches the w inputs of step t's window. x_t has all of its gradient w - 1 steps later, with
    # the last window that it is in: so the walk goes on so far behind the strip. `sums` are the gradients
    # of the window so far.
    row, start = _strips(l, STRIPS, STEPS)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = offs_d < d
    offs_x = row * stride_xb + start.to(tl.int64) * stride_xl + offs_d
    offs_dy = row * stride_yb + start.to(tl.int64) * stride_yl + offs_d
    offs_dx = (row * l + start - (W - 1)) * d + offs_d
    offs_state = (row * (W - 1) + W - 1 + start) * d + offs_d
    taps = taps_of(weight_ptr, offs_d, d, W)
    T: tl.constexpr = taps[0].dtype
    window = _first_window(
        x_ptr, state_ptr, seq_ptr, offs_x, offs_state, row, start, l, mask, stride_xl, d, W, T
    )
    nothing = tl.zeros([STRIPS, BLOCK_D], T)
    sums, dtaps, dbias = _zeros(nothing, W - 1), _zeros(nothing, W), nothing
    age = start * 0 + W  # steps since a sequence began, (STRIPS, 1)
    for i in range(STEPS + W - 1):
        t = start + i
        x = tl.load(x_ptr + offs_x + i * stride_xl, mask=mask & (t < l), other=0.0).to(T)
        dv = tl.load(dy_ptr + offs_dy + i * stride_yl, mask=mask & (t < l), other=0.0).to(T)
        if seq_ptr is not None:
            same = _mark(seq_ptr, row, t, l) == _mark(seq_ptr, row, t - 1, l)
            window = _kept(same, window, W - 1)
            age = tl.where(same, age + 1, 0)
        window = window + (x,)
        if SILU:
            v = weighted_sum(taps, window, bias_ptr, offs_d, d, W)
            s = sigmoid(v)
            dv = tl.where(t < l, dv * (s * (1 + v * (1 - s))), 0.0)  # (STRIPS, BLOCK_D)
        sums = _spread(sums + (nothing,), dv, taps, age, seq_ptr is not None, W)
        ours = tl.where(i < STEPS, dv, 0.0)  # later steps are another strip's
        dtaps = _products(dtaps, ours, window, W)
        dbias += ours
        done = t - (W - 1)
        tl.store(dx_ptr + offs_dx + i * d, sums[0], mask=mask & (i >= W - 1) & (done < l))
        if dstate_ptr is not None:
            before = mask & (start == 0) & (done < 0)
            tl.store(dstate_ptr + offs_state + (i - (W - 1)) * d, sums[0], mask=before)
        sums = sums[1:]
        window = window[1:]
    offs_partial = tl.program_id(0).to(tl.int64) * (W + 1) * d + offs_d
    for j in tl.static_range(W):
        tl.store(partial_ptr + offs_partial + j * d, tl.sum(dtaps[j], 0)[None, :], mask=mask)
    tl.store(partial_ptr + offs_partial + W * d, tl.sum(dbias, 0)[None, :], mask=mask)


@triton.jit
def _spread(sums, dv, taps, age, PACKED: tl.constexpr, W: tl.constexpr):
    """The gradients of a window, after dv has reached those of its inputs that are in its sequence."""
    tiles = ()
    for j in tl.static_range(W):
        share = taps[j] * dv  # (STRIPS, BLOCK_D)
        share = tl.where(age >= W - 1 - j, share, 0.0) if PACKED else share
        tiles = tiles + (sums[j] + share,)
    return tiles


@triton.jit
def _products(dtaps, dv, window, W: tl.constexpr):
    """The gradients of the taps, with what dv adds."""
    tiles = ()
    for j in tl.static_range(W):
        tiles = tiles + (dtaps[j] + dv * window[j],)
    return tiles


def gradient(
    upstream: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> list[Tensor]:
    """The gradients of x, weight, bias and initial_state, those that are not None."""
    (_, l, d), w = x.shape, weight.shape[1]
    x, dy = _lines(x), _lines(upstream[0])
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    given = [contiguous(t) for t in (weight, bias, initial_state, seq_idx)]
    dstate = None if given[2] is None else torch.empty_like(given[2])
    grid, tile = _plan(BACKWARD, x, w)
    partial = weight.new_empty(grid[0], w + 1, d)
    strides = (*dy.stride()[:2], *x.stride()[:2])
    with on_device_of(x):
        backward_kernel[grid](
            dy, x, *given, dx, dstate, partial, l, d, *strides, W=w, SILU=silu, **tile, num_warps=BACKWARD_WARPS
        )  # fmt: skip
    total = partial.sum(0)  # in one order, whatever the order in which programs ran
    found = [dx, total[:w].T.contiguous(), total[w].clone(), dstate]
    return [g for g, given in zip(found, (x, weight, bias, initial_state), strict=True) if given is not None]


# --- Launching -------------------------------------------------------------------------------------


def _plan(tile: Tile, x: Tensor, w: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid, and the sizes of a tile."""
    refuse_wide(w)
    b, l, d = x.shape
    sizes = _sizes(tile, w, d, l)
    grid = (b * triton.cdiv(l, sizes["STRIPS"] * tile.steps), triton.cdiv(d, sizes["BLOCK_D"]))
    return grid, sizes


def _sizes(tile: Tile, w: int, d: int, l: int) -> dict[str, int]:
    """A wide window leaves room for fewer elements at once, since all of it is in registers."""
    elements = max(1, tile.elements * 4 // max(4, triton.next_power_of_2(w)))
    block_d = min(256, elements, triton.next_power_of_2(d))
    strips = min(elements // block_d, triton.next_power_of_2(triton.cdiv(l, tile.steps)))
    return {"STRIPS": strips, "STEPS": tile.steps, "BLOCK_D": block_d}


def refuse_wide(w: int) -> None:
    if w > WIDEST:
        raise ValueError(
            f"weight: got w={w}, expected w of at most {WIDEST} for backend 'triton'; for longer kernels there "
            "are backend='reference' and fft_conv"
        )


def _lines(x: Tensor) -> Tensor:
    """Channels next to each other; rows and steps may be apart, as where x is a slice of a projection."""
    x = x.detach()
    return x if x.stride(2) == 1 else x.contiguous()


OPTIONAL = ("bias_ptr", "state_ptr", "seq_ptr", "dstate_ptr")


def compilations() -> Iterator[Compilation]:
    """Any number of channels, and one that lets four or eight of them be moved at once; with and without options."""
    for dtype, w, full, d in (
        ("fp32", 4, True, None), ("bf16", 4, True, None), ("fp64", 2, True, None), ("fp32", WIDEST, True, None),
        ("fp32", 4, False, 1536), ("bf16", 4, False, 1536), ("bf16", 4, True, 1536), ("fp16", 3, True, 1536),
    ):  # fmt: skip
        tiles = {forward_kernel: _sizes(FORWARD, w, 1536, 4096) | {"AHEAD": AHEAD}}
        tiles |= {backward_kernel: _sizes(BACKWARD, w, 1536, 4096)}
        for kernel, tile in tiles.items():
            constexprs: dict[str, Any] = {"W": w, "SILU": full} | tile
            if d is not None:
                constexprs |= {n: d for n in kernel.arg_names if n in ("d", "stride_xl", "stride_yl")}
            if not full:
                constexprs |= {n: None for n in kernel.arg_names if n in OPTIONAL}
            signature = {n: type_of(n, dtype) for n in kernel.arg_names if n not in constexprs}
            label = f"{dtype} w={w}{' packed' if full else ''}{f' d={d}' if d else ''}"
            warps = BACKWARD_WARPS if kernel is backward_kernel else 4
            yield Compilation(
                f"causal_conv1d.{kernel.__name__} {label}", kernel, signature, constexprs, warps
            )


def type_of(name: str, dtype: str) -> str:
    if not name.endswith("_ptr"):
        return "i32"
    if name == "seq_ptr":
        return "*i64"
    wide = name.startswith(("weight", "bias", "state", "dstate", "partial")) and dtype != "fp64"
    return "*fp32" if wide else f"*{dtype}"


causal_conv1d = operator.register("triton", forward, gradient)
