"""How large the largest tensor is that a call makes: what says that no state is kept for every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """`with Largest() as largest: ...`; then largest.numel. Views count for nothing."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor) and not value._is_view():
                self.numel = max(self.numel, value.numel())
        return out
