"""In which dtype an operator computes: float32 at least, and the same under autocast as without it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable)


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What the tensors promote to, float32 at least: half types are computed in float32."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def without_autocast(function: Function) -> Function:
    """The function unaffected by autocast, which would run its matrix products in half precision.

    The device is that of the first tensor among the arguments.
    """

    @functools.wraps(function)
    def exact(*args, **kwargs):
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                device = value.device.type
                if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                    with torch.autocast(device, enabled=False):
                        return function(*args, **kwargs)
                break
        return function(*args, **kwargs)

    return exact  # pyright: ignore[reportReturnType]
