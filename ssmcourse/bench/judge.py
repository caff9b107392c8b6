"""Is every contestant right? Results and gradients against the loop in float64, by the tolerance table."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssmcourse.bench import contestants
from ssmcourse.bench.contestants import Entry
from ssmcourse.bench.operators import Inputs, Operator
from ssmcourse.bench.peers import Peer
from ssmcourse.tolerance import mismatch

GRADIENTS_UP_TO = 320  # steps: the oracle keeps every state in float64; a chunk of 256, and some of the next
QUADRATIC_UP_TO = 1e10  # numbers filled in a backward, states included: ten seconds
Row = dict[str, Any]


def check(
    op: Operator, numbers: tuple[int, ...], inputs: Inputs, peers: list[Peer], rows: dict[str, Row]
) -> tuple[list[Entry], list[int]]:
    """Fill in the errors of all; return those that ran, and the shape of the result.

    `rows[name]` gets, for "forward" and for "both", `error` and `valid`, or `failed`.
    """
    options = op.options(op.sizes(numbers))
    with torch.no_grad():
        expected = op.oracle(**op.inputs(numbers, torch.float64), **options)
    weight = arriving(list(expected.shape))
    terms = op.length(numbers)
    entries = []
    for peer in peers:
        row = rows[peer.name]
        try:
            entry = contestants.enter(peer, inputs, options, weight)
            row["forward"] = _judged(entry.own(entry.forward()), expected, terms)
        except Exception as error:  # a peer's trouble is a line in the table, not the end of it
            row["failed"] = _one_line(error)
            continue
        entries.append(entry)
    if op.backward:
        _check_gradients(op, numbers, [entry.peer for entry in entries], rows)
    return entries, list(expected.shape)


def arriving(shape: list[int]) -> Tensor:
    """The gradient that arrives at a result: always the same normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _check_gradients(op: Operator, numbers: tuple[int, ...], peers: list[Peer], rows: dict[str, Row]) -> None:
    l = min(op.length(numbers), GRADIENTS_UP_TO)
    options = op.options(op.sizes(numbers) | {"l": l})
    inputs = op.inputs(numbers, l=l)
    wide = {name: t.requires_grad_() for name, t in op.inputs(numbers, torch.float64, l=l).items()}
    y = op.oracle(**wide, **options)
    weight = arriving(list(y.shape))
    gradients = torch.autograd.grad(y, list(wide.values()), weight.to(y.dtype))
    expected = dict(zip(wide, gradients, strict=True))
    terms = l * op.sizes(numbers).get("n", 1)  # sums over steps for a parameter, over states for an input
    for peer in peers:
        row = rows[peer.name]
        try:
            entry = contestants.enter(peer, inputs, options, weight)
            row["both"] = _worst(entry.own(entry.both())[1], expected, terms)
        except Exception as error:
            row["both"] = {"failed": _one_line(error)}
        if peer.quadratic and math.prod(numbers) * op.length(numbers) > QUADRATIC_UP_TO:
            row["both"]["left_out"] = "its backward takes O(l^2)"


def _worst(got: Inputs, expected: Inputs, terms: int) -> Row:
    judged = [_judged(got[name], expected[name], terms) for name in expected]
    return {"error": max(j["error"] for j in judged), "valid": all(j["valid"] for j in judged)}


def _judged(got: Tensor, expected: Tensor, terms: int) -> Row:
    """The largest error relative to the largest value, and whether the tolerance table allows it."""
    problem = mismatch(got, expected, terms=terms)
    scale = float(expected.abs().max())
    error = float((got.to(expected.dtype) - expected).abs().max()) / (scale or 1.0)
    return {"error": error, "valid": problem is None}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
