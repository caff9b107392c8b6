"""What the backends of the linear scan share: their place in torch, and the rule for gradients.

h_t = a_t h_{t-1} + b_t is linear in b, so its gradient is another such recurrence that runs the
other way. With dh_t the gradient that arrives at h_t from outside, and ' for the conjugate:

    db_t = a_{t+1}' db_{t+1} + dh_t        a scan in reverse, its gates shifted by one step
    da_t = db_t h_{t-1}'                   h_{-1} is the initial state
    d initial_state = a_0' db_0

Here every array is (b, l, d), an initial state (b, d). Lesson 06 derives the three lines.

For half types a, b, h and their gradients are half; the initial state and its gradient have the type that is
computed in, float32. The h_{t-1} in da is then the rounded one; the initial state is not rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Scan = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
Gradient = Callable[[Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


def register(name: str, scan: Scan, gradient: Gradient | None = None, *, reads_half: bool = False) -> Scan:
    """Make `scan` the torch operator `ssmcourse::linear_scan_{name}`.

    It then works under autograd to any order, `torch.compile` and `torch.func.vmap`.

    Args:
        scan: (a, b, initial_state, reverse) -> h, a new contiguous tensor. `a` may be an expanded
            view. a, b and h have one dtype, all have one device.
        gradient: (dh, a, h, initial_state, reverse) -> (da, db, d initial_state), all three in one
            pass. Without it, and for second derivatives, the rule above is applied with `scan`.
        reads_half: whether `scan` takes half types as they are; else it gets copies in float32.
    """
    operator = torch.library.custom_op(
        f"ssmcourse::linear_scan_{name}",
        scan,
        mutates_args=(),
        schema="(Tensor a, Tensor b, Tensor initial_state, bool reverse) -> Tensor",
    )
    operator.register_fake(lambda a, b, initial_state, reverse: b.new_empty(b.shape))
    operator.register_vmap(_over_folded_batches(operator))
    fused = _register_gradient(name, gradient) if gradient else None

    def remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
        a, _, initial_state, ctx.reverse = inputs
        ctx.save_for_backward(a, output, initial_state)

    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        a, h, initial_state = ctx.saved_tensors
        if fused is None or torch.is_grad_enabled():  # enabled: someone wants the second derivative
            return *by_the_rule(operator, dh, a, h, initial_state, ctx.reverse), None
        return *fused(dh, a, h, initial_state, ctx.reverse), None

    operator.register_autograd(backward, setup_context=remember)
    overload = getattr(torch.ops.ssmcourse, f"linear_scan_{name}").default
    return overload if reads_half else _widened(overload)


def _widened(scan: Scan) -> Scan:
    """`scan` for half types as well: it sees a and b in the type that is computed in, the initial state's."""

    def wide(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
        working = initial_state.dtype
        return scan(a.to(working), b.to(working), initial_state, reverse).to(b.dtype)

    return wide


def by_the_rule(
    scan: Scan, dh: Tensor, a: Tensor, h: Tensor, initial_state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """da, db and d initial_state by the three lines at the top of this file."""
    first, nothing = initial_state[:, None], torch.zeros_like(initial_state)
    closed = torch.zeros_like(a[:, :1])
    if reverse:
        h_before = torch.cat([h[:, 1:], first], 1)
        gate_after = torch.cat([closed, a[:, :-1]], 1)
    else:
        h_before = torch.cat([first, h[:, :-1]], 1)
        gate_after = torch.cat([a[:, 1:], closed], 1)
    db = scan(gate_after.conj().resolve_conj(), dh, nothing, not reverse)
    entry = -1 if reverse else 0
    da = (db * h_before.conj()).to(a.dtype)  # half: h_before is float32, as its first step is
    return da, db, db[:, entry].to(initial_state.dtype) * a[:, entry].conj()


def _register_gradient(name: str, gradient: Gradient) -> Gradient:
    operator = torch.library.custom_op(
        f"ssmcourse::linear_scan_{name}_gradient",
        gradient,
        mutates_args=(),
        schema="(Tensor dh, Tensor a, Tensor h, Tensor initial_state, bool reverse)"
        " -> (Tensor, Tensor, Tensor)",
    )
    operator.register_fake(
        lambda dh, a, h, initial_state, reverse: (
            h.new_empty(h.shape),
            h.new_empty(h.shape),
            initial_state.new_empty(initial_state.shape),
        )
    )
    operator.register_vmap(_over_folded_batches(operator))
    return operator


def _over_folded_batches(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule: rows do not know of each other, so a mapped dimension is just more rows."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
        *tensors, reverse = args
        n = info.batch_size
        folded = [
            (t.expand(n, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
            for t, dim in zip(tensors, in_dims, strict=False)
        ]
        result = operator(*folded, reverse)
        if isinstance(result, Tensor):
            return result.unflatten(0, (n, -1)), 0
        return tuple(t.unflatten(0, (n, -1)) for t in result), (0,) * len(result)

    return rule
