"""The causal convolution's place in torch: arguments, shapes, and which gradients there are.

    y_t = f(bias + weight_{w-1} x_t + weight_{w-2} x_{t-1} + ... + weight_0 x_{t-w+1}),      f: identity or SiLU

| argument        | shape         | dtype                                                             |
|-----------------|---------------|-------------------------------------------------------------------|
| `x`, `y`        | (b, l, d)     | any floating one                                                  |
| `weight`        | (d, w)        | the one computed in: x's, or float32 beside half types            |
| `bias`          | (d,)          | weight's                                                          |
| `initial_state` | (b, w - 1, d) | weight's; the inputs before the first step, oldest first          |
| `seq_idx`       | (b, l)        | int64; where it changes, a new sequence begins and sees nothing   |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssmcourse.kernels import registration

SCHEMA = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? seq_idx, bool silu"


def register(
    name: str, forward: Callable[..., Tensor], gradient: Callable[..., list[Tensor]]
) -> Callable[..., Tensor]:
    """Make `forward` and `gradient` the torch operator `ssmcourse::causal_conv1d_{name}`."""

    def as_tuple(*arguments: Any) -> tuple[Tensor]:
        return (forward(*arguments),)

    operator = registration.register(f"causal_conv1d_{name}", SCHEMA, as_tuple, gradient, _fake, results=1)

    def convolution(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial_state: Tensor | None,
        seq_idx: Tensor | None,
        silu: bool,
    ) -> Tensor:
        return operator(x, weight, bias, initial_state, seq_idx, silu)[0]

    return convolution


def _fake(x: Tensor, *_: Any) -> tuple[Tensor]:
    return (torch.empty_like(x, memory_format=torch.contiguous_format),)
