"""A compiled kernel's place in torch: a custom operator, its gradient, and what torch asks of both.

An operator file brings three plain functions and a schema; `register` makes of them two operators of torch,
`ssmcourse::NAME` and `ssmcourse::NAME_gradient`, so that autograd, `torch.compile`, `torch.func.vmap` and
`torch.library.opcheck` work. (`linear_scan` is differentiable to any order: it has a registration of its own.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register(
    name: str,
    schema: str,
    forward: Callable[..., tuple[Tensor, ...]],
    gradient: Callable[..., list[Tensor]],
    fake: Callable[..., tuple[Tensor, ...]],
    *,
    results: int,
    kept: int = 0,
) -> Callable[..., tuple[Tensor, ...]]:
    """Make `forward` the torch operator `ssmcourse::{name}`, differentiable once.

    Args:
        schema: the arguments alone, as torch writes them: "Tensor x, Tensor? D, bool softplus".
        forward: (*arguments) -> new contiguous tensors: the results, then those that are kept for the
            gradient and are nobody else's business (states at the ends of chunks, say). A tuple, even of one.
        gradient: (upstream, outputs, *arguments) -> the gradients of the floating and complex tensors among
            the arguments that are not None, in their order: contiguous, each of its argument's shape and
            dtype. `upstream` has a gradient for each result, None where nobody used that result, or where it is
            empty beside one that is not; `outputs` is all that `forward` gave.
        fake: (*arguments) -> empty tensors of the shapes and dtypes that `forward` gives.
        results, kept: how many tensors of either kind `forward` gives.
    Returns:
        The operator. Call it with all arguments, by position; it returns results and kept tensors, a tuple.
    """
    outputs = results + kept
    single = outputs == 1  # which torch wants, and hands back, without a tuple around it
    operator = torch.library.custom_op(
        f"ssmcourse::{name}",
        (lambda *arguments: forward(*arguments)[0]) if single else forward,
        mutates_args=(),
        schema=f"({schema}) -> ({', '.join(['Tensor'] * outputs)})",
    )
    operator.register_fake((lambda *arguments: fake(*arguments)[0]) if single else fake)
    operator.register_vmap(_one_by_one(operator))
    backward_operator = _register_gradient(name, schema, gradient, results, outputs)

    def remember(ctx: Any, inputs: tuple, output: Any) -> None:
        output = (output,) if single else output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output, *(v for v in inputs if isinstance(v, Tensor)))
        ctx.others = [None if isinstance(v, Tensor) else (v,) for v in inputs]  # None: saved as a tensor
        ctx.mark_non_differentiable(*output[results:])

    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        given = [next(saved) for _ in range(outputs)]
        arguments = [next(saved) if other is None else other[0] for other in ctx.others]
        if all(d is None for d in upstream[:results]):
            return (None,) * len(arguments)
        found = iter(backward_operator(*upstream[:results], *given, *arguments))
        return tuple(next(found) if _differentiable(v) else None for v in arguments)

    operator.register_autograd(backward, setup_context=remember)
    overload = getattr(torch.ops.ssmcourse, name).default
    return (lambda *arguments: (overload(*arguments),)) if single else overload


def _register_gradient(
    name: str, schema: str, gradient: Callable[..., list[Tensor]], results: int, outputs: int
) -> Callable[..., list[Tensor]]:
    upstream = "".join(f"Tensor? d{i}, " for i in range(results))
    given = "".join(f"Tensor out{i}, " for i in range(outputs))

    def flat(*values: Any) -> list[Tensor]:
        upstream = values[:results]
        if any(d is not None and d.numel() for d in upstream):
            # For an empty result beside another, autograd hands over None, and torch.compile an empty tensor.
            upstream = tuple(None if d is None or not d.numel() else d for d in upstream)
        return gradient(upstream, values[results : results + outputs], *values[results + outputs :])

    def fake(*values: Any) -> list[Tensor]:
        arguments = [v for v in values[results + outputs :] if _differentiable(v)]
        return [torch.empty_like(v, memory_format=torch.contiguous_format) for v in arguments]

    operator = torch.library.custom_op(
        f"ssmcourse::{name}_gradient",
        flat,
        mutates_args=(),
        schema=f"({upstream}{given}{schema}) -> Tensor[]",
    )
    operator.register_fake(fake)
    operator.register_vmap(_one_by_one(operator))

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"{name}: the compiled backend has first derivatives only; for second ones pass backend='reference'"
        )

    operator.register_autograd(refuse)
    return getattr(torch.ops.ssmcourse, f"{name}_gradient").default


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule: one call for each slice. It costs what a loop costs, and no more memory than its result."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
        calls = [
            operator(*(v if dim is None else v.select(dim, i) for v, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        stacked = type(calls[0])(torch.stack(slices) for slices in zip(*calls, strict=True))
        return stacked, type(calls[0])([0] * len(stacked))

    return rule
