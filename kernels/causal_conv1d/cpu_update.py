"""One step of the causal convolution on the CPU, for generation: one call a token.

    y = f(bias + weight_{w-1} x + weight_{w-2} x_{t-1} + ... + weight_0 x_{t-w+1}),      f: identity or SiLU

As in `kernels/state_update/cpu.py`, there is neither a gradient nor an operator of torch around it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, narrow, nothing, widen
from ssmcourse.kernels.threads import native
from ssmcourse.kernels.vector_math import sigmoid


@native
def advance(x, window, weight, bias, y, silu):
    """y (b, d), and x (b, d) becomes the last of the window (b, w - 1, d) of inputs, the first of which goes."""
    (rows, d), w, dtype = x.shape, weight.shape[1], weight.dtype.type
    for row in range(rows):
        for i in range(d):
            value = weight[i, w - 1] * dtype(widen(x[row, i]))
            for j in range(w - 1):
                value += weight[i, j] * dtype(widen(window[row, j, i]))
            if bias.size:
                value += bias[i]
            if silu:
                value *= sigmoid(value)
            y[row, i] = narrow(value, y[row, i])
        for j in range(w - 2):
            for i in range(d):
                window[row, j, i] = window[row, j + 1, i]
        if w > 1:
            for i in range(d):
                window[row, w - 2, i] = x[row, i]


def update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """y (b, d) and the new state (b, w - 1, d), both of x's dtype; weight and bias of the one computed in."""
    wide = torch.promote_types(x.dtype, state.dtype)
    if wide != x.dtype:
        y, new = update(x.to(wide), state, weight, bias, silu)
        return y.to(x.dtype), new.to(x.dtype)
    new = state.to(wide, copy=True, memory_format=torch.contiguous_format)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    shift = nothing(weight.dtype, 1) if bias is None else as_array(bias)
    advance(as_array(x), as_array(new), as_array(weight), shift, as_array(y), silu)
    return y, new
