"""State space models from HiPPO to Mamba: the library of the course.

Every name below is loaded on first use, so that `import ssmcourse` is quick and does not import
torch. Submodules are loaded the same way: `ssmcourse.explore.memory()` works at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what an editor and a type checker see
    from ssmcourse.discretization import discretize as discretize
    from ssmcourse.grading import check as check
    from ssmcourse.grading import hint as hint
    from ssmcourse.grading import predict as predict
    from ssmcourse.grading import progress as progress
    from ssmcourse.grading import solution as solution
    from ssmcourse.hippo import hippo_matrix as hippo_matrix
    from ssmcourse.hippo import hippo_project as hippo_project
    from ssmcourse.hippo import hippo_reconstruct as hippo_reconstruct
    from ssmcourse.scan import backends as backends
    from ssmcourse.scan import linear_scan as linear_scan

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "backends": "scan",
    "check": "grading",
    "discretize": "discretization",
    "hint": "grading",
    "hippo_matrix": "hippo",
    "hippo_project": "hippo",
    "hippo_reconstruct": "hippo",
    "linear_scan": "scan",
    "predict": "grading",
    "progress": "grading",
    "solution": "grading",
}


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
    return sorted({*globals(), *_HOME})
