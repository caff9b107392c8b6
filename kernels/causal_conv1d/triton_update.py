"""One step of the causal convolution in Triton: what generation does for each token, in one launch.

    v = bias + weight . (state, x),    y = v or silu(v),    new state: the window (state, x) without its oldest input

| pointer              | shape         | type                                       |
|----------------------|---------------|--------------------------------------------|
| x_ptr, y_ptr         | (b, d)        | any floating one                           |
| state_ptr, new_ptr   | (b, w - 1, d) | any floating one; the new state has x's    |
| weight_ptr, bias_ptr | (d, w), (d,)  | the one computed in; no bias: None         |

Grid: b, blocks of channels. Elements moved for one of x's: 2 w, and the weight once for each row. FLOPs: 2 w.
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

from ssmcourse.kernels import registration
from ssmcourse.kernels.causal_conv1d.triton import (
    refuse_wide,
    taps_of,
    type_of,
    weighted_sum,
)
from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.launching import contiguous, on_device_of
from ssmcourse.kernels.triton_math import sigmoid


@triton.jit
def update_kernel(
    x_ptr, state_ptr, weight_ptr, bias_ptr, y_ptr, new_ptr, d,
    W: tl.constexpr, SILU: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = offs_d < d
    offs_state = row * (W - 1) * d + offs_d
    taps = taps_of(weight_ptr, offs_d, d, W)
    window = ()
    for j in tl.static_range(W - 1):
        window = window + (tl.load(state_ptr + offs_state + j * d, mask=mask, other=0.0).to(taps[0].dtype),)
    window = window + (tl.load(x_ptr + row * d + offs_d, mask=mask, other=0.0).to(taps[0].dtype),)
    v = weighted_sum(taps, window, bias_ptr, offs_d, d, W)
    y = v * sigmoid(v) if SILU else v  # (BLOCK_D,)
    tl.store(y_ptr + row * d + offs_d, y, mask=mask)
    for j in tl.static_range(W - 1):
        tl.store(new_ptr + offs_state + j * d, window[j + 1], mask=mask)


def forward(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """y (b, d) and the new state (b, w - 1, d), both of x's dtype, in one launch."""
    (b, d), w = x.shape, weight.shape[1]
    refuse_wide(w)
    y, new = _fake(x, state)
    given = map(contiguous, (x, state, weight, bias))
    block_d = min(256, triton.next_power_of_2(d))
    with on_device_of(x):
        update_kernel[b, triton.cdiv(d, block_d)](*given, y, new, d, W=w, SILU=silu, BLOCK_D=block_d)
    return y, new


def gradient(
    upstream: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
) -> list[Tensor]:
    """In torch: generation has no backward, and what trains through steps has few of them."""
    dy, dnew = upstream
    window = torch.cat([state.to(weight.dtype), x.to(weight.dtype)[:, None]], 1)  # (b, w, d)
    dv = torch.zeros_like(window[:, 0]) if dy is None else dy.to(weight.dtype)
    if silu:
        v = (window * weight.T).sum(1) + (0 if bias is None else bias)
        s = torch.sigmoid(v)
        dv = dv * (s * (1 + v * (1 - s)))
    dwindow = dv[:, None] * weight.T
    if dnew is not None:
        dwindow[:, 1:] += dnew
    dweight = (dv[:, None] * window).sum(0).T
    found = [dwindow[:, -1].to(x.dtype), dwindow[:, :-1].to(state.dtype), dweight]
    found += [] if bias is None else [dv.sum(0)]
    return [g.clone(memory_format=torch.contiguous_format) for g in found]


def _fake(x: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(state.shape)


def compilations() -> Iterator[Compilation]:
    for dtype, w in (("fp32", 4), ("bf16", 4), ("fp16", 3), ("fp64", 2)):
        constexprs = {"W": w, "SILU": True, "BLOCK_D": 256}
        signature = {n: type_of(n, dtype) for n in update_kernel.arg_names if n not in constexprs}
        yield Compilation(f"causal_conv1d.update_kernel {dtype} w={w}", update_kernel, signature, constexprs)


update = registration.register(
    "causal_conv1d_update_triton",
    "Tensor x, Tensor state, Tensor weight, Tensor? bias, bool silu",
    forward,
    gradient,
    _fake,
    results=2,
)
