"""The place in torch of the two kernels of linear systems: K_t = C A^t B, and 2 Re sum_n weight_n z_n^t."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ssmcourse.kernels import registration


def register(
    name: str,
    schema: str,
    forward: Callable[..., Tensor],
    gradient: Callable[..., list[Tensor]],
    fake: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """Make `forward` the torch operator `ssmcourse::{name}`, differentiable once.

    Args:
        schema: "Tensor A, ..., int l".
        forward: (*arguments) -> K (h, l).
        gradient: (dK, *arguments) -> the gradients of the tensors among the arguments.
        fake: (*arguments) -> an empty K.
    """

    def backward(upstream: tuple, outputs: tuple, *arguments: Tensor | int) -> list[Tensor]:
        return gradient(upstream[0], *arguments)

    operator = registration.register(
        name, schema, lambda *a: (forward(*a),), backward, lambda *a: (fake(*a),), results=1
    )
    return lambda *arguments: operator(*arguments)[0]
