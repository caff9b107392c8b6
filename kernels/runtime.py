"""What this machine can run, decided once per process, and which backend an operator gets.

A backend for the GPU is tested at its first use (self_test.py). One that fails is left out, with a warning.

Two libraries must know before they are imported that there is no GPU: Triton reads
TRITON_INTERPRET, numba-cuda reads NUMBA_ENABLE_CUDASIM. So importing this module, on a machine
without a GPU, sets both (unless you have set them yourself) and imports neither library.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch

TritonMode = Literal["compiled", "interpreted", "absent"]
CudaMode = Literal["real", "simulated", "absent"]


@functools.cache
def has_cuda() -> bool:
    """Is there an NVIDIA GPU that this torch can use?"""
    return torch.version.cuda is not None and torch.cuda.is_available()


@functools.cache
def device() -> torch.device:
    """Where the course runs by default: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if has_cuda() else "cpu")


if not has_cuda():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")


def triton_mode() -> TritonMode:
    """How `triton.jit` kernels run: `compiled` for the GPU, `interpreted` on the CPU, or `absent`."""
    return cast(TritonMode, _triton().mode)


def cuda_mode() -> CudaMode:
    """How Numba's `cuda.jit` kernels run: on a `real` GPU, `simulated` on the CPU, or `absent`."""
    return cast(CudaMode, _numba_cuda().mode)


def why_absent(backend: str) -> str:
    """Why `triton`, `numba_cuda` or `cpu` does not run here, as one clause; empty if it does."""
    return _found(backend).why


_RESTART = "restart Python and import ssmcourse.scan first"


class _Found(NamedTuple):
    """How a library was found to run here and, if it does not, why, as one clause."""

    mode: str
    why: str = ""


@functools.cache
def _triton() -> _Found:
    interpret = _switched_on("TRITON_INTERPRET")
    try:
        import triton.language
        from triton.runtime.interpreter import InterpretedFunction
    except Exception as error:  # a broken installation is a finding, not a crash
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("triton"):
            return _Found("absent", "triton is not installed; it has no wheels for macOS and Windows")
        return _Found("absent", f"triton does not import: {error}")
    # Triton's own library functions took their mode when triton was first imported.
    if interpret and not isinstance(triton.language.sum, InterpretedFunction):
        return _Found("absent", f"triton was imported before ssmcourse: {_RESTART}")
    if interpret:
        return _Found("interpreted")
    if has_cuda():
        return _Found("compiled")
    return _Found("absent", "there is no GPU, and TRITON_INTERPRET is switched off")


@functools.cache
def _numba_cuda() -> _Found:
    if _numba().mode == "absent":
        return _numba()
    simulate = _switched_on("NUMBA_ENABLE_CUDASIM")
    if simulate and "numba.cuda" not in sys.modules:
        from numba.core import config

        config.ENABLE_CUDASIM = 1  # pyright: ignore  (numba may have read its settings before we made ours)
    try:
        from numba import cuda
    except Exception as error:
        return _Found("absent", f"numba.cuda does not import: {error}")
    if "simulator" in cuda.jit.__module__:
        return _Found("simulated")
    if simulate:
        return _Found("absent", f"numba.cuda was imported before ssmcourse: {_RESTART}")
    if has_cuda() and cuda.is_available():
        return _Found("real")
    return _Found("absent", "there is no GPU that Numba can use, and NUMBA_ENABLE_CUDASIM is switched off")


@functools.cache
def _numba() -> _Found:
    try:
        import numba  # noqa: F401
    except Exception as error:
        return _Found("absent", f"numba does not import: {error}")
    return _Found("native")


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "0").strip().lower() in ("1", "true", "yes", "on", "y")


# --- Backends ---------------------------------------------------------------------------------

# Backend name -> the library it needs. Any other name is an algorithm in torch, for every device.
_LIBRARY = {"cpu": _numba, "triton": _triton, "numba_cuda": _numba_cuda}

# Mode -> its place in the order "best first", and the type of device whose tensors it takes.
_PLACE = {
    "compiled": (0, "cuda"),
    "real": (0, "cuda"),
    "native": (1, "cpu"),
    "torch": (2, "any"),
    "interpreted": (3, "cpu"),
    "simulated": (3, "cpu"),
}

_OPERATORS: dict[str, dict[str, Callable[..., Any] | str]] = {}
_NOTHING: Mapping[str, str] = {}


def register(operator: str, **implementations: Callable[..., Any] | str) -> None:
    """Name the backends of an operator; those of equal rank are listed in the order given.

    Args:
        operator: the public function's name.
        implementations: backend name -> the function, or "module:function" to import at first use,
            so that registering an operator loads neither numba nor triton.
    """
    _OPERATORS[operator] = implementations


def backends(operator: str) -> list[str]:
    """The backends of `operator` that run on this machine, best first.

    What is compiled for the GPU comes first; what an interpreter or a simulator runs comes last.
    """
    usable = [name for name in _implementations(operator) if _found(name).mode != "absent"]
    return sorted(usable, key=lambda name: _PLACE[_found(name).mode][0])


def device_type(backend: str) -> str:
    """Whose tensors a backend takes that runs here: those on "cpu", on "cuda", or on "any"."""
    return _PLACE[_found(backend).mode][1]


def choose(
    operator: str, backend: str, where: str, cannot_take: Mapping[str, str] = _NOTHING
) -> Callable[..., Any]:
    """The implementation of `operator` to call for tensors on a device of the type `where`.

    Args:
        backend: a name from `backends(operator)`, or "auto": the first of them that takes such tensors. Inside
            torch.func.grad, jvp and their like, and in forward-mode differentiation, that is the first
            one written in torch: a compiled operator would stop there, or drop the tangent in silence.
        where: `tensor.device.type`.
        cannot_take: backend -> what about these arguments is not for it, as {"triton": "complex A"}.
    Raises:
        ValueError: the backend is unknown, does not run here, or does not take such tensors or the way they
            are being differentiated. The message says which, why, and what there is.
    """
    name = _load(operator, backend, where, cannot_take)
    # Not from a dict of what is loaded: torch.compile looks at a dict once, and would miss the second operator.
    return cast(Callable[..., Any], _OPERATORS[operator][name])


def _load(operator: str, backend: str, where: str, cannot_take: Mapping[str, str] = _NOTHING) -> str:
    """The name of the backend chosen, once _OPERATORS has its function instead of where that is."""
    if not isinstance(backend, str):
        raise ValueError(
            f"backend: got {type(backend).__name__}, expected a name. "
            f"{operator} has here: auto, {', '.join(backends(operator))}"
        )
    usable = [name for name in backends(operator) if name not in cannot_take]
    in_torch = _traced_by_torch()
    fitting = [name for name in usable if device_type(name) in (("any",) if in_torch else (where, "any"))]
    name = fitting[0] if backend == "auto" else backend
    if name not in fitting:
        if name not in _implementations(operator):
            why = "which is not one of its names"
        elif name in cannot_take:
            why = f"which does not take {cannot_take[name]}"
        elif name not in usable:
            why = f"which does not run here: {_found(name).why}"
        elif in_torch:
            why = "which torch.func.grad, jvp and forward-mode differentiation cannot see into"
            usable = fitting
        else:
            why = f"which does not take tensors on {where!r}"
        raise ValueError(f"backend: got {backend!r}, {why}. {operator} has here: auto, {', '.join(usable)}")
    if why := _why_it_fails(name):
        _FAILED[name] = _Found("absent", why)
        warnings.warn(f"backend {name!r} is left out from now on: {why}", RuntimeWarning, stacklevel=4)
        return _load(operator, backend, where, cannot_take)
    implementation = _implementations(operator)[name]
    if isinstance(implementation, str):
        module, _, function = implementation.partition(":")
        _OPERATORS[operator][name] = getattr(importlib.import_module(module), function)
    return name


# To torch.compile the name is a constant. The public decorator for that would import triton.
_load._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _traced_by_torch() -> bool:
    """Is a transform at work that differentiates torch's own operations, one after another?"""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return (
        any(level.key() in _DIFFERENTIATING for level in levels)
        or torch.autograd.forward_ad._current_level >= 0
    )


_DIFFERENTIATING = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


_FAILED: dict[str, _Found] = {}


@functools.cache
def _why_it_fails(backend: str) -> str:
    """What a backend for the GPU gets wrong on this machine, found out at its first use; empty if nothing."""
    if _found(backend).mode not in ("compiled", "real"):
        return ""
    from ssmcourse.kernels import self_test

    return self_test.why_not(backend, "cuda")


def _found(backend: str) -> _Found:
    if backend in _FAILED:
        return _FAILED[backend]
    return _LIBRARY[backend]() if backend in _LIBRARY else _Found("torch")


def _implementations(operator: str) -> dict[str, Callable[..., Any] | str]:
    if operator not in _OPERATORS:
        raise ValueError(f"operator: got {operator!r}, expected one of {', '.join(sorted(_OPERATORS))}")
    return _OPERATORS[operator]
