"""What every launcher of a Triton kernel does first."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current GPU, which may be another one than x's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Without gaps, and without a graph behind it; None stays None."""
    return None if tensor is None else tensor.detach().contiguous()
