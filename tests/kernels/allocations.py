"""How much memory a call takes, for tests that no tensor is copied needlessly."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssmcourse.kernels import memory


def allocated(function: Callable[..., Tensor], inputs: dict[str, Tensor], **options: Any) -> tuple[int, int]:
    """Bytes taken for the result, and for the result and all gradients: torch's in all, NumPy's at their peak."""
    inputs = {name: t.detach() for name, t in inputs.items()}
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    dy = torch.ones_like(function(**inputs, **options))

    def both() -> None:
        torch.autograd.grad(function(**leaves, **options), list(leaves.values()), dy)

    both()  # what is compiled is not counted
    return _bytes(lambda: function(**inputs, **options)), _bytes(both)


def _bytes(call: Callable[[], Any]) -> int:
    memory._free.clear()
    tracemalloc.start()
    try:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as seen:
            call()
        of_numpy = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return of_numpy + sum(max(0, event.self_cpu_memory_usage) for event in seen.key_averages())
