"""The table that every backend of every operator passes, and how a row of it is judged.

An operator's test file brings three things: a `call` and an `oracle`, both from named inputs to one
tensor or a tuple of tensors, and its cases. `assert_agrees` runs the oracle on float64 copies of the very
inputs that the backend got (so that their rounding is nobody's fault) and compares the results and
the gradient of every floating input with the tolerance table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmcourse.kernels.runtime import device_type
from ssmcourse.scan import backends
from ssmcourse.tolerance import mismatch

Inputs = dict[str, Tensor]
Function = Callable[..., Tensor | tuple[Tensor, ...]]

BACKENDS = ["reference", "cpu", "triton", "numba_cuda"]
LENGTHS = [1, 2, 3, 17, 64, 65]  # 17 and 65 are one more than the chunks of the emulated and real backends
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@dataclass(frozen=True)
class Case:
    """A row: a name, what makes the inputs, and the keyword options of the call.

    `terms` is how many rounded terms an element sums (tolerance.py), in a result or a gradient.
    """

    name: str
    make: Callable[[], Inputs]
    terms: int
    options: dict[str, Any] = field(default_factory=dict)


def need(operator: str, backend: str) -> None:
    """Skip where this machine does not have the backend (triton on macOS, say)."""
    if backend not in backends(operator):
        pytest.skip(f"{backend} does not run on this machine")


def assert_agrees(call: Function, oracle: Function, inputs: Inputs, *, terms: int, **options: Any) -> None:
    """Results and gradients of `call` are those of `oracle` in float64."""
    got, weights = results_and_gradients(call, inputs, options)
    wide = {name: t.detach().to(torch.promote_types(t.dtype, torch.float64)) for name, t in inputs.items()}
    expected, _ = results_and_gradients(oracle, wide, options, weights)
    for name, value in got.items():
        base = inputs.get(name.removeprefix("d "))
        assert base is None or (value.shape == base.shape and value.dtype == base.dtype), name
        problem = mismatch(value, expected[name], terms=terms)
        assert problem is None, f"{name}: {problem}"


def results_and_gradients(
    function: Function, inputs: Inputs, options: dict[str, Any], weights: list[Tensor] | None = None
) -> tuple[Inputs, list[Tensor]]:
    """The results with the gradients of a weighting of them, and the weights: random ones if none are given.

    Where the backend is one for a GPU that is there, it computes there; what comes back is on the CPU.
    """
    where = device_type(options["backend"]) if options.get("backend") else "cpu"
    inputs = {name: t.to(where) if where == "cuda" else t for name, t in inputs.items()}
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    before = {name: t.detach().clone() for name, t in inputs.items()}
    results = function(**leaves, **options)
    results = results if isinstance(results, tuple) else (results,)
    weights = weights or [random(r.shape, r.dtype, seed=99 + i) for i, r in enumerate(results)]
    upstream = [w.to(r.device, r.dtype) for w, r in zip(weights, results, strict=True)]
    gradients = torch.autograd.grad(results, list(leaves.values()), upstream)
    for name, tensor in inputs.items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), f"{name} was changed in place"
    named = {f"result {i}": r for i, r in enumerate(results)}
    named |= {f"d {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: t.cpu() for name, t in named.items()}, weights


def random(shape: Any, dtype: torch.dtype = torch.float64, *, seed: int) -> Tensor:
    """Normal numbers, the same for every dtype up to its rounding (so half types see what float64 sees)."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def among_nans(tensor: Tensor) -> Tensor:
    """The same numbers, every second of each row in memory NaN: reading beside it shows."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan, dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]
