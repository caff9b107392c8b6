"""The autograder: `check`, `hint`, `solution`, `predict`, `progress`.

The same checks run in three ways: `check(my_function)` in a notebook, `pytest exercises/`, and
`ssmcourse grade`. How a check is written is told in `registry`; what happens to a learner's function
in `runner` (time limit), `trial` (calls and comparisons), `forbidden`, `guard` and `process`.

The names are loaded on first use: pytest imports this package for its plugin, and that must be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssmcourse.grading.session import check as check
    from ssmcourse.grading.session import hint as hint
    from ssmcourse.grading.session import predict as predict
    from ssmcourse.grading.session import progress as progress
    from ssmcourse.grading.session import solution as solution

__all__ = ["check", "hint", "predict", "progress", "solution"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ssmcourse.grading' has no attribute {name!r}")
    from ssmcourse.grading import session

    value = getattr(session, name)
    globals()[name] = value
    return value
