"""Values that go to the learner and come back: copies, fingerprints, and short descriptions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SHOWN = 8  # a row of at most this many values is written out
SHOWN_ROWS = 4  # and a matrix of at most this many rows and columns


def copy_of(value: Any) -> Any:
    """A copy that shares no memory with `value`; functions and other objects pass through."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, (list, tuple)):
        return type(value)(copy_of(v) for v in value)
    if isinstance(value, dict):
        return {k: copy_of(v) for k, v in value.items()}
    return value


def fingerprint(value: Any) -> Any:
    """Something that compares equal exactly when shape, dtype and every bit are the same."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return tuple(value.shape), value.dtype, plain.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(fingerprint(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, fingerprint(v)) for k, v in value.items())
    return id(value) if callable(value) else repr(value)


def kind(value: Any) -> str:
    """What a value is, in a learner's words: 'a NumPy array', 'a list', 'None'."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return "a NumPy array"
    if isinstance(value, Tensor):
        return "a tensor" if type(value) is Tensor else f"a {type(value).__name__} (a subclass of Tensor)"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def short_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe(value: Any) -> str:
    """A value in a few characters: small ones whole, tensors by dtype and shape."""
    if isinstance(value, Tensor):
        if is_small(value):
            return _written(value.detach().cpu().tolist())
        return f"{short_dtype(value.dtype)} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(describe(v) for v in value[:SHOWN]) + (", ..." if len(value) > SHOWN else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, (float, complex)) and not isinstance(value, bool):
        return number(value)
    if callable(value):
        return getattr(value, "__name__", "a function")
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_small(value: Tensor) -> bool:
    """Whether a tensor can be written out in one line."""
    if value.ndim == 2:
        return max(value.shape) <= SHOWN_ROWS
    return value.ndim < 2 and value.numel() <= SHOWN


def _written(plain: Any) -> str:
    return f"[{', '.join(map(_written, plain))}]" if isinstance(plain, list) else number(plain)


def number(value: Any) -> str:
    """A number with at most five significant digits."""
    if isinstance(value, complex):
        return f"{value.real:.5g}{value.imag:+.5g}j"
    return f"{value + 0.0:.5g}" if isinstance(value, float) else str(value)  # + 0.0 turns -0 into 0
