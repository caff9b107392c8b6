"""Judging with the functions that were there at the beginning.

A learner's notebook may replace `torch.allclose`, `numpy.isclose`, `ssmcourse.grading.judge.judge` or
a method of `torch.Tensor`, by intent or by accident. The verdict must not change. So the names that a
verdict depends on are remembered when the grader is imported; while it judges they are as they were,
and afterwards they are what the notebook had made of them. What was replaced is told.

This stops accidents and simple tricks. Someone who wants to fool a program that runs in their own
process can; `ssmcourse grade` judges in a process of its own.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

_BUILTINS = (
    "abs", "all", "any", "bool", "complex", "float", "getattr", "hasattr", "id", "int", "isinstance", "iter",
    "len", "list", "max", "min", "next", "range", "repr", "set", "sorted", "str", "sum", "tuple", "type", "zip",
)  # fmt: skip
_ABSENT = object()
_FRIENDS = ("torch", "numpy", "ssmcourse", "functools")  # replacements that these made are their own affair


def _owners() -> list[tuple[str, Any]]:
    """(name, module or class) of everything that a verdict depends on."""
    found: list[tuple[str, Any]] = [
        ("torch", torch), ("torch.Tensor", torch.Tensor), ("torch.testing", torch.testing),
        ("torch.autograd", torch.autograd), ("torch.linalg", torch.linalg), ("torch.fft", torch.fft),
        ("torch.nn.functional", torch.nn.functional),
        ("numpy", np), ("numpy.testing", np.testing), ("numpy.linalg", np.linalg), ("math", math),
    ]  # fmt: skip
    for name, module in sorted(sys.modules.items()):
        if name == "ssmcourse.tolerance" or name.startswith("ssmcourse.grading"):
            found.append((name, module))
            classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == name]
            found += [(f"{name}.{c.__name__}", c) for c in classes]
    return found


class Snapshot:
    """The names a verdict depends on, as they were when this was made."""

    def __init__(self) -> None:
        self._owners = _owners()
        self._values: list[tuple[str, Any, str, Any]] = [
            ("builtins", builtins, name, getattr(builtins, name)) for name in _BUILTINS
        ]
        self._tensor_names = frozenset(vars(torch.Tensor))
        self._bodies: list[tuple[str, FunctionType, Any]] = []
        self._tables: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        for where, owner in self._owners:
            ours = where.startswith("ssmcourse.")
            for name, value in list(vars(owner).items()):
                if callable(value) or isinstance(value, (ModuleType, staticmethod, classmethod, property)):
                    self._values.append((where, owner, name, value))
                if ours and isinstance(value, FunctionType):
                    self._bodies.append((f"{where}.{name}", value, value.__code__))
                if where == "ssmcourse.tolerance" and isinstance(value, dict) and not name.startswith("__"):
                    self._tables.append((value, dict(value)))

    @contextlib.contextmanager
    def restored(self) -> Iterator[list[str]]:
        """Inside, everything is as it was; yields the names of what the notebook had replaced."""
        undo: list[Callable[[], object]] = []
        told: list[str] = []
        for where, owner, name, value in self._values:
            now = vars(owner).get(name, _ABSENT)
            if now is not value:
                _set(owner, name, value)
                undo.append(functools.partial(_set, owner, name, now))
                if not str(getattr(now, "__module__", "")).startswith(_FRIENDS):
                    told.append(f"{where}.{name}")
        for name in set(vars(torch.Tensor)) - self._tensor_names:
            if hasattr(torch._C.TensorBase, name):  # hides one of torch's methods
                undo.append(functools.partial(_set, torch.Tensor, name, vars(torch.Tensor)[name]))
                told.append(f"torch.Tensor.{name}")
                delattr(torch.Tensor, name)
        for name, function, body in self._bodies:
            if function.__code__ is not body:
                undo.append(functools.partial(setattr, function, "__code__", function.__code__))
                told.append(name)
                function.__code__ = body
        for table, content in self._tables:
            if table != content:
                undo.append(functools.partial(_refill, table, dict(table)))
                told.append("ssmcourse.tolerance")
                _refill(table, content)
        try:
            yield sorted(set(told))
        finally:
            for step in undo:
                step()


def _set(owner: Any, name: str, value: Any) -> None:
    if value is _ABSENT:
        with contextlib.suppress(AttributeError):
            delattr(owner, name)
    else:
        setattr(owner, name, value)


def _refill(table: dict[Any, Any], content: dict[Any, Any]) -> None:
    table.clear()
    table.update(content)
