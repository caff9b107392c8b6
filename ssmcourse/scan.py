"""The linear scan h_t = a_t h_{t-1} + b_t: the recurrence under every model of this course.

Seen as a matrix, h = M b with M[t, s] = a_t a_{t-1} ... a_{s+1} for s <= t. Lesson 00 draws it,
lesson 06 computes it in parallel (Blelloch, "Prefix sums and their applications", 1990).
"""

from __future__ import annotations

import torch
from torch import Tensor

import ssmcourse
from ssmcourse.arguments import Arguments
from ssmcourse.kernels import runtime


def linear_scan(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along dimension 1, elementwise in all others.

    Args:
        a: gates, of b's rank; each dimension has b's size, or 1 where a gate is shared.
        b: inputs, (b, l, ...) with any trailing shape, or none.
        initial_state: (b, ...), the state before the first step; zero if not given.
        reverse: run from the end: h_t = a_t h_{t+1} + b_t, and the initial state enters there.
        backend: a name from `backends("linear_scan")`; "auto" takes the best one for b's device.
    Returns:
        All states h, of b's shape. The dtype is that which torch promotes a and b to. Half types are
        computed in float32, states included, and rounded once; "cpu" makes the gradient of a from the
        rounded h (infinity or NaN next to an h that overflowed in float16). The initial state is
        converted to the type computed in. Autocast changes nothing here. With l = 0 the result is empty.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is not there.

    Backend "triton" multiplies gates with each other. Where that could leave the range of a float it goes step by
    step, as the others do.

    Gradients of a, b and the initial state to any order; that of a shared gate is summed over those who
    share it. `torch.compile` and torch.func.vmap work; inside torch.func.grad and jvp, and in forward mode,
    "auto" is the reference.

    Cost: O(b l d) work, l steps deep on one channel. Memory: the result, and a copy of `a` only if it is
    shared among trailing dimensions. "cpu" and "triton" read and write half types as they are; the other backends
    make copies of them in float32.
    """
    _check(a, b, initial_state)
    dtype = torch.promote_types(a.dtype, b.dtype)
    working = torch.promote_types(dtype, torch.float32)
    scan = runtime.choose("linear_scan", backend, b.device.type)
    a, x = a.to(dtype), b.to(dtype)
    if initial_state is None:
        first = x.new_zeros(b.shape[:1] + b.shape[2:], dtype=working)
    else:
        first = initial_state.to(working)
    if b.numel() == 0:
        return (a * first[:, None] + x).to(dtype)  # nothing, but differentiable
    if b.ndim == 3:
        return scan(a if a.shape == b.shape else a.expand(b.shape), x, first, reverse)
    rows, l = b.shape[:2]
    flat = (rows, l, -1)
    h = scan(a.expand(b.shape).reshape(flat), x.reshape(flat), first.reshape(rows, -1), reverse)
    return h.reshape(b.shape)


def backends(operator: str) -> list[str]:
    """The backends of an operator that run on this machine, best first.

    Args:
        operator: the name of a public function, such as "linear_scan".
    Raises:
        ValueError: no operator of that name has backends.
    """
    if operator in dir(ssmcourse):
        getattr(ssmcourse, operator)  # the module that defines it names its backends
    return runtime.backends(operator)


def _by_definition(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
    """One step after another, in the type of the initial state: float32 for half a and b.

    `unbind`, since the backward of b[:, t] would fill a zero tensor a step.
    """
    steps = list(zip(a.unbind(1), b.unbind(1), strict=True))
    h, states = initial_state, []
    for a_t, b_t in reversed(steps) if reverse else steps:
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, 1).to(b.dtype)


runtime.register(
    "linear_scan",
    cpu="ssmcourse.kernels.linear_scan.cpu:linear_scan",
    triton="ssmcourse.kernels.linear_scan.triton:linear_scan",
    numba_cuda="ssmcourse.kernels.linear_scan.numba_cuda:linear_scan",
    reference=_by_definition,
)


def _check(a: Tensor, b: Tensor, initial_state: Tensor | None) -> None:
    given = Arguments()
    given.parameter("b", b, "...", may_be_complex=True)
    given.parameter("a", a, "...", may_be_complex=True)
    given.parameter("initial_state", initial_state, "...", may_be_complex=True, optional=True)
    if b.ndim < 2:
        raise ValueError(f"b: got shape {tuple(b.shape)}, expected (b, l, ...)")
    if a.ndim != b.ndim or any(m not in (1, n) for m, n in zip(a.shape, b.shape, strict=True)):
        raise ValueError(
            f"a: got shape {tuple(a.shape)}, expected {tuple(b.shape)} as b, or 1 where a gate is shared"
        )
    if initial_state is None:
        return
    expected = b.shape[:1] + b.shape[2:]
    if initial_state.shape != expected:
        got = tuple(initial_state.shape)
        raise ValueError(f"initial_state: got shape {got}, expected {tuple(expected)}: b's without l")
    if initial_state.is_complex() and not (a.is_complex() or b.is_complex()):
        raise ValueError(f"initial_state: got {initial_state.dtype}, expected a real one beside real a and b")
