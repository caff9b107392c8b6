"""State space models from HiPPO to Mamba: the library of the course.

Every name below is loaded on first use, so that `import ssmcourse` is quick and does not import
torch. `import ssmcourse.hippo` and the like work as in any package.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "hippo_matrix": "hippo",
    "hippo_project": "hippo",
    "hippo_reconstruct": "hippo",
    "discretize": "discretization",
    "linear_scan": "scan",
    "backends": "scan",
    "check": "grading",
    "hint": "grading",
    "solution": "grading",
    "progress": "grading",
    "predict": "grading",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"ssmcourse.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"ssmcourse.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"ssmcourse.{name}":
            raise
        raise AttributeError(f"module 'ssmcourse' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
