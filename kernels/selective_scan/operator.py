"""What the backends of the selective scan share: their place in torch.

x, dt, z and y are (b, l, d), states (b, d, n), B and C (b, l, g, n) in g groups of channels, or (d, n) constant
in time. `sequence` (b, l) numbers the packed sequences 0, 1, 2, ... over all rows, row by row: the state is
reset where the number changes. `sequences` is how many final states are wanted: one for each of them (without
`sequence` one for each row), or 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssmcourse.kernels.registration import register as register_operator

CHUNK = 32  # steps from one state that is kept for the gradient to the next

SCHEMA = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? initial_state, Tensor? sequence, SymInt sequences, bool dt_softplus, bool zoh, bool keep"
)

Scan = Callable[..., tuple[Tensor, ...]]


def register(name: str, scan: Scan, gradient: Callable[..., list[Tensor]]) -> Scan:
    """Make `scan` the torch operator `ssmcourse::selective_scan_{name}`.

    Args:
        scan: (*the arguments of SCHEMA) -> y, final states, states kept. A, D, dt_bias and the initial state
            have the dtype that is computed in (A and the state perhaps its complex twin), the others that
            of x. With `keep`, the states before every CHUNK-th step are kept for the gradient.
        gradient: ((dy, d final states), (y, final, kept), *arguments) -> the gradients, as for
            kernels.registration.
    """
    return register_operator(f"selective_scan_{name}", SCHEMA, scan, gradient, _empty, results=2, kept=1)


def _empty(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None, sequence: Tensor | None,
    sequences: int, dt_softplus: bool, zoh: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Tensors of the shapes that a scan returns."""
    b, l, d = x.shape
    n = A.shape[1]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, A.new_empty((sequences, d, n)), A.new_empty((b, (l + CHUNK - 1) // CHUNK if keep else 0, n, d))
