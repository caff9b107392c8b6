"""Compare an answer with the expected one, and put the difference into words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmcourse import tolerance
from ssmcourse.grading import values

ORDINALS = ("first", "second", "third", "fourth", "fifth")


class Failure(Exception):  # noqa: N818 - the learner's, not ours
    """A layer fails: what was expected and what came, and the likely mistake where it is known."""

    def __init__(self, message: str, diagnosis: str = "") -> None:
        super().__init__(message)
        self.message, self.diagnosis = message, diagnosis


class WrongShape(Failure):
    """A tensor of another shape. A known mistake may explain it, which no other wrong kind has."""


def kind(
    got: Any,
    expected: Any,
    names: tuple[str, ...] = (),
    label: str = "The answer",
    *,
    any_float: bool = False,
) -> None:
    """Fail unless `got` is of the kind, shape, dtype and device of `expected`.

    With `any_float`, any real floating dtype will do where a real floating one is expected.
    """
    if isinstance(expected, tuple):
        _kind_of_tuple(got, expected, names, label, any_float)
    elif isinstance(expected, Tensor):
        _kind_of_tensor(got, expected, label, any_float)
    elif isinstance(expected, (bool, str)) or not isinstance(expected, (int, float, complex)):
        if not isinstance(got, type(expected)):
            raise Failure(f"{label} is {values.kind(got)}; expected {values.kind(expected)}.", _returned(got))
    elif not _is_number(got):
        raise Failure(f"{label} is {values.kind(got)}; expected a number.", _returned(got))


def diagnosed_kind(
    got: Any,
    expected: Any,
    mistakes: dict[str, Any],
    names: tuple[str, ...] = (),
    *,
    terms: int = 1,
    any_float: bool = False,
) -> None:
    """`kind`, where a wrong shape gets the words of the known mistake that makes it."""
    try:
        kind(got, expected, names, any_float=any_float)
    except WrongShape as failure:
        raise Failure(failure.message, known(got, mistakes, terms) or failure.diagnosis) from None


def _kind_of_tuple(
    got: Any, expected: tuple[Any, ...], names: tuple[str, ...], label: str, any_float: bool
) -> None:
    if not isinstance(got, (tuple, list)) or len(got) != len(expected):
        wanted = f"({', '.join(names)})" if names else f"a tuple of {len(expected)}"
        came = f"{values.kind(got)} of {len(got)}" if isinstance(got, (tuple, list)) else values.kind(got)
        raise Failure(f"{label} is {came}; expected {wanted}.", _returned(got))
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        kind(g, e, label=_label(i, names), any_float=any_float)


def _kind_of_tensor(got: Any, expected: Tensor, label: str, any_float: bool) -> None:
    shape, dtype = tuple(expected.shape), values.short_dtype(expected.dtype)
    if type(got) not in (Tensor, torch.nn.Parameter):
        raise Failure(
            f"{label} is {values.kind(got)}; expected a torch tensor of shape {shape} and dtype {dtype}.",
            _returned(got),
        )
    if tuple(got.shape) != shape:
        raise WrongShape(
            f"{label} has shape {tuple(got.shape)}; expected {shape}.", _about_shape(got, expected)
        )
    floats = any_float and got.is_floating_point() and expected.is_floating_point()
    if got.dtype != expected.dtype and not floats:
        wanted = "a floating dtype" if any_float and expected.is_floating_point() else dtype
        wider = got.dtype == torch.float64
        raise Failure(
            f"{label} has dtype {values.short_dtype(got.dtype)}; expected {wanted}.",
            "numbers of NumPy and of Python are float64: make tensors with dtype=x.dtype, of an input x"
            if wider
            else "a tensor was made without dtype=..., which gives float32 (or int64)",
        )
    if got.layout != expected.layout or got.device != expected.device:
        raise Failure(
            f"{label} is {got.layout} on {got.device}; expected {expected.layout} on {expected.device}."
        )


def _about_shape(got: Tensor, expected: Tensor) -> str:
    """What a wrong shape tells by itself."""
    shape, wanted = tuple(got.shape), tuple(expected.shape)
    if shape == wanted[::-1]:
        return "it is transposed"
    if tuple(n for n in shape if n != 1) == tuple(n for n in wanted if n != 1):
        return "an axis of length 1 is too many or missing: look at squeeze, unsqueeze and the indexing"
    off = [g - w for g, w in zip(shape, wanted, strict=False) if g != w]
    if len(shape) == len(wanted) and set(off) <= {1, -1}:
        return (
            "one too many: look at where a loop or slice ends"
            if 1 in off
            else "one is missing: look at where a loop or slice ends"
        )
    return ""


def _returned(got: Any) -> str:
    if got is None:
        return "a `return` is missing"
    if isinstance(got, np.ndarray):
        return "the answer is still in NumPy: compute it in torch"
    if isinstance(got, (list, tuple)) and got and all(isinstance(g, Tensor) for g in got):
        return "torch.stack(...) makes one tensor of a list of tensors"
    return ""


def _is_number(got: Any) -> bool:
    one = isinstance(got, (int, float, complex, np.number)) and not isinstance(got, bool)
    return one or (isinstance(got, Tensor) and got.ndim == 0)


def _label(i: int, names: tuple[str, ...]) -> str:
    return names[i] if i < len(names) else f"The {ORDINALS[i] if i < 5 else i + 1} value returned"


def same(
    got: Any,
    expected: Any,
    *,
    terms: int = 1,
    mistakes: dict[str, Any | Callable[[], Any]] | None = None,
    what: str = "The answer",
    names: tuple[str, ...] = (),
    default: str = "",
    any_float: bool = False,
) -> None:
    """Fail unless `got` equals `expected` to the tolerance of its dtype and of `terms`.

    Args:
        mistakes: words -> a wrong answer, or a function that computes it; the words of the first one
            that `got` equals are the diagnosis.
        what: opens the message.
        names: of the parts, where `expected` is a tuple.
        default: the diagnosis when no mistake fits.
        any_float: as in `kind`.
    """
    what = what or "The answer"
    diagnosed_kind(got, expected, mistakes or {}, names, terms=terms, any_float=any_float)
    part = _first_difference(got, expected, terms, names)
    if part is None:
        return
    label, g, e, difference = part
    where = f"{what}: {label}" if label else what
    words = known(got, mistakes or {}, terms) or _pattern(g, e, terms) or default
    raise Failure(f"{where} differs from the expected one.\n{_sides(g, e, difference)}", words)


def _first_difference(got: Any, expected: Any, terms: int, names: tuple[str, ...]) -> Any:
    if isinstance(expected, tuple):
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            found = _first_difference(g, e, terms, ())
            if found:
                return (_label(i, names), *found[1:])
        return None
    if isinstance(expected, str) or not isinstance(expected, (Tensor, int, float, complex)):
        return None if got == expected else ("", got, expected, None)
    g = got if isinstance(got, Tensor) else torch.tensor(got)
    e = expected if isinstance(expected, Tensor) else torch.tensor(expected)
    found = tolerance.mismatch(g.detach(), e, terms=terms)
    return ("", g.detach(), e.detach(), found) if found else None


def _sides(got: Any, expected: Any, difference: tolerance.Mismatch | None) -> str:
    if difference is None:
        return f"expected {values.describe(expected)}\ngot      {values.describe(got)}"
    lines = []
    if values.is_small(expected):
        lines = [f"expected {values.describe(expected)}", f"got      {values.describe(got)}"]
    return "\n".join([*lines, f"{difference}"])


def known(got: Any, mistakes: dict[str, Any], terms: int = 1) -> str:
    """The words of the first mistake that gives this very answer, or nothing.

    A mistake that cannot be computed for these inputs is not this one.
    """
    for words, wrong in mistakes.items():
        try:
            value = wrong() if callable(wrong) else wrong
            kind(got, value, any_float=True)
        except Exception:
            continue
        if _first_difference(got, value, terms, ()) is None:
            return words
    return ""


def _pattern(got: Any, expected: Any, terms: int) -> str:
    """What a wrong tensor shows by itself: NaN, zeros, a sign, a transpose, a factor."""
    if not isinstance(got, Tensor) or not got.numel():
        return ""
    g, e = tolerance.to_float64(got), tolerance.to_float64(expected)
    finite = np.isfinite(e)
    if not np.isfinite(g[finite]).all():
        name = "NaN" if np.isnan(g).any() else "infinity"
        return f"your answer holds {name}: a division by zero, an overflow, or memory that was never written"
    if not g.any():
        return "your answer is all zeros"
    wide = torch.from_numpy(g)
    if tolerance.mismatch(wide, -e, terms=terms) is None:
        return "the sign is turned: this is minus the expected answer"
    if g.ndim == 2 and g.shape[0] == g.shape[1] and tolerance.mismatch(wide, e.T, terms=terms) is None:
        return "rows and columns are exchanged: this is the transpose"
    top = np.unravel_index(np.abs(np.where(finite, e, 0.0)).argmax(), e.shape)
    factor = g[top] / e[top] if e[top] else 0.0
    if factor and g.size > 1 and tolerance.mismatch(wide, factor * e, terms=terms) is None:
        return f"every value is {values.number(complex(factor) if np.iscomplexobj(factor) else float(factor))} times the expected one"
    return ""
