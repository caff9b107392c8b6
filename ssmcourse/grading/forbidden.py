"""Notice when a learner's code calls what the exercise asks them to write.

Three kinds of forbidden name, each caught however it is spelled, aliased or passed on:

- Python functions (`ssmcourse.linear_scan`): for the time of the learner's call the function object
  itself gets another body, so every reference to it is watched. Calls from inside the library pass.
- torch's functions (`torch.cumsum`): a TorchFunctionMode sees each call that reaches torch's C++ code;
  the function, the method, and the in-place form count as one. What torch does inside is not seen.
- others (`numpy.cumsum`): replaced in their module, and in the globals and closure of the function.

Out of reach: copied source code, threads, methods of NumPy arrays.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType
from typing import Any

from torch.overrides import TorchFunctionMode

from ssmcourse.grading.errors import is_foreign, place

_watching: list[Watch] = []


class CallsTheAnswer(BaseException):
    """Ends the learner's call; a bare `except:` may swallow it, the watch remembers."""


class Watch:
    """A context in which calls of `names` are recorded: `called` is the first, `where` its line."""

    def __init__(self, names: tuple[str, ...], function: Any = None) -> None:
        self.names = names
        self.function = function
        self.called, self.where = "", ""
        self.originals: dict[str, Callable[..., Any]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Watch:
        self._stack.callback(_watching.remove, self)
        _watching.append(self)
        torch_names = [name for name in self.names if name.startswith("torch.")]
        for name in self.names:
            target = None if name in torch_names else resolve(name)
            if isinstance(target, FunctionType):
                self._stack.enter_context(self._other_body(name, target))
            elif target is not None:
                self._stack.enter_context(self._other_value(name, target))
        if torch_names:
            self._stack.enter_context(_TorchWatch(self, torch_names))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def caught(self, name: str, frame: FrameType | None) -> None:
        """Record a call and end it."""
        if not self.called:
            self.called = name
            while frame is not None and is_foreign(frame.f_code.co_filename):
                frame = frame.f_back
            if frame is not None:
                self.where = place(frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno)
        raise CallsTheAnswer

    @contextlib.contextmanager
    def _other_body(self, name: str, target: FunctionType) -> Iterator[None]:
        body = target.__code__
        twin = FunctionType(
            body, target.__globals__, target.__name__, target.__defaults__, target.__closure__
        )
        twin.__kwdefaults__ = target.__kwdefaults__
        self.originals[name] = twin
        constants = tuple(name if c == "?" else c for c in _spy.__code__.co_consts)
        target.__code__ = _spy.__code__.replace(co_consts=constants, co_freevars=body.co_freevars)
        try:
            yield
        finally:
            target.__code__ = body

    @contextlib.contextmanager
    def _other_value(self, name: str, target: Any) -> Iterator[None]:
        def spy(*args: Any, **kwargs: Any) -> Any:
            return self.caught(name, sys._getframe(1))

        module = importlib.import_module(name.rpartition(".")[0])
        spaces = [vars(module), getattr(self.function, "__globals__", {})]
        places = [(space, key) for space in spaces for key, value in space.items() if value is target]
        cells = [c for c in getattr(self.function, "__closure__", None) or () if _content(c) is target]
        for space, key in places:
            space[key] = spy
        for cell in cells:
            cell.cell_contents = spy
        try:
            yield
        finally:
            for space, key in places:
                space[key] = target
            for cell in cells:
                cell.cell_contents = target


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None


def _spy(*args: Any, **kwargs: Any) -> Any:
    from ssmcourse.grading.forbidden import _on_call

    return _on_call("?")(*args, **kwargs)


def _on_call(name: str) -> Callable[..., Any]:
    """The function to go on with, when it is the library that calls."""
    caller = sys._getframe(2)
    module = caller.f_globals.get("__name__", "")
    watch = _watching[-1]
    if module.startswith("ssmcourse.") and not module.startswith("ssmcourse.grading."):
        return watch.originals[name]
    watch.caught(name, caller)
    raise AssertionError


class _TorchWatch(TorchFunctionMode):
    def __init__(self, watch: Watch, names: list[str]) -> None:
        super().__init__()
        self.watch = watch
        self.forms = {form: name for name in names for form in _forms(name)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self.forms.get(getattr(func, "__name__", ""))
        if name:
            self.watch.caught(name, sys._getframe(1))
        return func(*args, **(kwargs or {}))


def _forms(name: str) -> list[str]:
    """The names under which torch knows it: cumsum, cumsum_; for torch.linalg.solve, linalg_solve."""
    parts = name.removeprefix("torch.").removeprefix("Tensor.").split(".")
    return [parts[-1], f"{parts[-1]}_", "_".join(parts)]


def resolve(name: str) -> Any:
    """The object that a dotted name stands for, or None where it is not installed."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return None
