"""SSD's place in torch: what a compiled backend is given, what it gives back, and in which shapes.

x, z (b, l, h, p), B, C (b, l, g, n) have one type, the others that which it is computed in: float32, or float64
for float64. The steps dt and the logarithms of the decays, log_a = dt A, come ready made, (b, l, h). D is (h, p).

`sequences` is how many final states are wanted: 0, or s, one for each row or each packed sequence.
A backend gives y (b, l, h, p), the final states (s, h, p, n), and what it keeps for its backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssmcourse.kernels import registration

SCHEMA = (
    "Tensor x, Tensor dt, Tensor log_a, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? initial_state, "
    "Tensor? seq_idx, SymInt sequences, bool keep"
)

Backend = Callable[..., tuple[Tensor, Tensor]]


def register(
    name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    gradient: Callable[..., list[Tensor]],
    span: int,
) -> Backend:
    """Make `forward` the torch operator `ssmcourse::ssd_{name}`.

    Args:
        forward: (*the arguments of SCHEMA) -> y, the final states, and those kept for the gradient, (b, spans - 1,
            h, n, p): at every multiple of `span` steps but 0, or with `keep` false none.
        gradient: ((dy, d final states), (y, final states, kept), *arguments) -> the gradients, as for
            kernels.registration.
    Returns:
        The backend: (x, ..., seq_idx, sequences, chunk_size) -> y and the final states.
    """

    def fake(
        x: Tensor, dt: Tensor, log_a: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        initial_state: Tensor | None, seq_idx: Tensor | None, sequences: int, keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        (b, l, h, p), n = x.shape, B.shape[3]
        kept = (l - 1) // span if keep else 0
        return x.new_empty(x.shape), dt.new_empty((sequences, h, p, n)), dt.new_empty((b, kept, h, n, p))

    operator = registration.register(f"ssd_{name}", SCHEMA, forward, gradient, fake, results=2, kept=1)

    def backend(*arguments: Any) -> tuple[Tensor, Tensor]:
        *given, _ = arguments  # the size of a chunk is the backend's own
        keep = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in given)
        y, final, _ = operator(*given, keep)
        return y, final

    return backend
