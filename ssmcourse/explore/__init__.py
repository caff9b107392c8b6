"""Pictures: the matrix M live (`MatrixView`), curves, and the explorables of the lessons.

Every name below is loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

# public name -> (module, name in it)
_HOME = {
    "MatrixView": ("matrix_view", "MatrixView"),
    "CurveView": ("curve_view", "CurveView"),
    "curves": ("plots", "curves"),
    "show": ("plots", "show"),
    "stored_result": ("plots", "stored_result"),
    "memory": ("apps.memory", "memory"),
    "hippo": ("apps.hippo", "hippo"),
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssmcourse.explore' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(importlib.import_module(f"ssmcourse.explore.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
