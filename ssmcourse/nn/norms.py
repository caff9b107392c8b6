"""RMS norms as layers: the plain one between the blocks of a model, and the gated one inside a Mamba-2.

| code         | shape    | meaning                                             |
|--------------|----------|-----------------------------------------------------|
| `x`, `z`     | (..., d) | what is normalised, and its gate                    |
| `weight`     | (d,)     | a scale for every channel, 1 at first               |
| `group_size` |          | how many neighbouring channels a mean is over       |

Lesson 11.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssmcourse.arguments import integer, number
from ssmcourse.kernels.plain import few_rows
from ssmcourse.normalization import gated_rms_norm
from ssmcourse.precision import working_dtype


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) * weight, over the last dimension (Zhang & Sennrich 2019, eq. 4).

    Args:
        d: channels.
        eps: keeps the root from 0.
    Raises:
        ValueError: d is not an integer of 1 or more, or eps not a finite number of 0 or more.

    Computed in float32 at least and rounded once, to x's dtype; the same under autocast.
    """

    def __init__(
        self,
        d: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d = integer("d", d, 1)
        number("eps", eps)
        self.eps = float(eps)
        self.weight = nn.Parameter(torch.ones(d, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) in x's dtype."""
        if (
            x.ndim == 2 and x.shape[1] == len(self.weight) and few_rows(x, self.weight)
        ):  # a step of generation
            from ssmcourse.kernels.gated_rms_norm import cpu

            return cpu.of_few_rows(x, self.weight, self.eps)
        dtype = working_dtype(x, self.weight)
        y = nn.functional.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), self.eps)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class GatedRMSNorm(nn.Module):
    """The norm of x silu(z), or with `norm_before_gate` the norm of x times silu(z), in groups of channels.

    Args:
        d: channels.
        eps: keeps the root from 0.
        group_size: how many neighbouring channels are normalised together; a divisor of d, and d if not given.
        norm_before_gate: gate what is normalised already.
    Raises:
        ValueError: d or group_size is not an integer of 1 or more, group_size does not divide d, or eps is not a
            finite number of 0 or more.

    Source: Dao & Gu 2024 (Mamba-2), section 7.1. `gated_rms_norm` is what it computes.
    """

    def __init__(
        self,
        d: int,
        *,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d = integer("d", d, 1)
        number("eps", eps)
        divisor = f"a number that divides d {d}"
        if group_size is not None and d % integer("group_size", group_size, 1, divisor):
            raise ValueError(f"group_size: got {group_size}, expected {divisor}")
        self.eps, self.group_size, self.norm_before_gate = float(eps), group_size, bool(norm_before_gate)
        self.weight = nn.Parameter(torch.ones(d, device=device, dtype=dtype))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """(..., d) in x's dtype. z: the gate, of x's shape and dtype; without it this is an RMS norm in groups."""
        return gated_rms_norm(
            x,
            self.weight,
            z,
            eps=self.eps,
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
        )

    def extra_repr(self) -> str:
        groups = "" if self.group_size is None else f", group_size={self.group_size}"
        order = ", norm_before_gate=True" if self.norm_before_gate else ""
        return f"{len(self.weight)}, eps={self.eps}{groups}{order}"
