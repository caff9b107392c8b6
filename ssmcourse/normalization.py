"""RMS norm with a gate: what Mamba-2 puts between its recurrence and its last projection.

| code         | shape    | meaning                                                                |
|--------------|----------|------------------------------------------------------------------------|
| `x`          | (..., d) | what the recurrence gives                                              |
| `z`          | (..., d) | the gate branch                                                        |
| `weight`     | (d,)     | a scale for every channel                                              |
| `group_size` |          | channels that are normalised together; d // g where B and C have g groups |

A root mean square divides out the length of a vector and keeps its direction: y does not change if x is
multiplied by a number (but for eps). Lesson 11.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmcourse.arguments import Arguments, integer, number
from ssmcourse.kernels import runtime
from ssmcourse.precision import working_dtype


def gated_rms_norm(
    x: Tensor,
    weight: Tensor,
    z: Tensor | None = None,
    *,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = False,
    backend: str = "auto",
) -> Tensor:
    """y = u / sqrt(mean(u^2) + eps) * weight, where u = x silu(z): the gate comes first.

    Args:
        x: (..., d), one dimension or more.
        weight: (d,), of any floating dtype.
        z: x's shape and dtype, the gate; without it, u = x and this is the RMS norm.
        eps: keeps the root from 0.
        group_size: how many neighbouring channels a mean is over; a divisor of d, and d if not given.
        norm_before_gate: gate what is normalised instead: u = x, and the result times silu(z).
        backend: a name from `backends("gated_rms_norm")`; "auto" takes the best one for x's device.
    Returns:
        (..., d) in x's dtype. Half types are computed in float32 and rounded once.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is not there.

    Gradients of x, weight and z (first order; to any order with backend="reference").

    Cost: O(1) an element. "cpu" and "triton" read x and z once and write y; the reference has some ten intermediate
    results.
    Source: Zhang & Sennrich 2019 (RMS norm), eq. 4; Dao & Gu 2024 (Mamba-2), section 7.1. Lesson 11.
    """
    given = Arguments()
    given.activation("x", x, "... d")
    given.parameter("weight", weight, "d")
    given.activation("z", z, "... d", optional=True)
    if z is not None and z.shape != x.shape:
        raise ValueError(f"z: got shape {tuple(z.shape)}, expected {tuple(x.shape)}, as x")
    number("eps", eps)
    d = x.shape[-1]
    n = d if group_size is None else integer("group_size", group_size, 1)
    if n and d % n:
        raise ValueError(f"group_size: got {n}, expected a number that divides the {d} channels of x")
    working = working_dtype(x, weight)
    norm = runtime.choose("gated_rms_norm", backend, x.device.type) if x.numel() else _by_definition
    wide = x.dtype if working == torch.float32 else working
    gate = None if z is None else z.to(wide)
    return norm(x.to(wide), weight.to(working), gate, float(eps), n, bool(norm_before_gate))[0].to(x.dtype)


def _by_definition(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: float, group_size: int, norm_first: bool
) -> tuple[Tensor]:
    """Computed in weight's dtype, given back in x's."""
    u = x.to(weight.dtype)
    gate = None if z is None else z.to(weight.dtype) * torch.sigmoid(z.to(weight.dtype))
    if gate is not None and not norm_first:
        u = u * gate
    groups = u.unflatten(-1, (-1, group_size)) if group_size else u[..., None]
    y = (groups * inverse_root(groups, eps)).reshape(u.shape) * weight
    if gate is not None and norm_first:
        y = y * gate
    return (y.to(x.dtype),)


def inverse_root(u: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(u^2) + eps) over the last dimension. Squares that would overflow are taken of u / m."""
    if not u.numel():
        return u
    largest = u.detach().abs().amax(-1, keepdim=True)
    m = torch.where(largest > 2.0**60, largest, 1)
    return torch.rsqrt((u / m).square().mean(-1, keepdim=True) + eps / m / m) / m


runtime.register(
    "gated_rms_norm",
    cpu="ssmcourse.kernels.gated_rms_norm.cpu:gated_rms_norm",
    triton="ssmcourse.kernels.gated_rms_norm.triton:gated_rms_norm",
    reference=_by_definition,
)
