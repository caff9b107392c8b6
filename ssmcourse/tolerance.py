"""How close is close enough: one table for the tests, the autograder and the lessons.

A sum of n rounded terms carries an error that grows like sqrt(n) when the roundings are
independent (Higham, Accuracy and Stability of Numerical Algorithms, section 2.6). So a
tolerance here depends on two things only: the dtype, and how many terms are summed.

The comparison is written in plain NumPy arithmetic, on copies. It calls none of
`torch.allclose`, `torch.equal`, `torch.testing.assert_close` or their NumPy twins, so replacing
those cannot change a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Relative error allowed for one term. Each is some hundred units in the last place (float64:
# tens of thousands, since its oracles are themselves float64), and half types round at their
# output at least.
BASE_RTOL = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}
REAL_OF = {torch.complex128: torch.float64, torch.complex64: torch.float32}


@dataclass(frozen=True)
class Tolerance:
    """|got - expected| <= atol * max|expected| + rtol * |expected|, element by element."""

    rtol: float
    atol: float


def tolerance(dtype: torch.dtype, terms: int = 1) -> Tolerance:
    """The tolerance for results of `dtype` that are sums of about `terms` terms.

    Args:
        dtype: a floating or complex torch dtype.
        terms: how many rounded terms enter one element of the result, at least 1.
    Returns:
        Tolerance; both of its numbers grow with sqrt(terms).
    """
    base = BASE_RTOL.get(REAL_OF.get(dtype, dtype))
    if base is None:
        raise ValueError(f"dtype: got {dtype}, expected a floating or complex torch dtype")
    if terms < 1:
        raise ValueError(f"terms: got {terms}, expected 1 or more")
    grown = base * terms**0.5
    return Tolerance(rtol=grown, atol=grown)


def to_float64(value: Any) -> np.ndarray:
    """A NumPy copy in float64 (complex128 for complex input), detached from any graph."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        wide = torch.complex128 if value.is_complex() else torch.float64
        return np.array(value.resolve_conj().resolve_neg().to(wide).numpy())
    array = np.array(value)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


@dataclass(frozen=True)
class Mismatch:
    """Where and by how much two arrays differ; `str()` is the message to show."""

    max_abs: float
    max_rel: float
    index: tuple[int, ...]
    got: complex
    expected: complex
    count: int
    total: int
    dtype: torch.dtype
    allowed: float
    verdict: str = ""

    def __str__(self) -> str:
        where = f"[{', '.join(map(str, self.index))}]"
        text = (
            f"{self.count} of {self.total} values differ; the first is at {where}: "
            f"got {self.got:.6g}, expected {self.expected:.6g}. "
            f"{self._largest()}({str(self.dtype).removeprefix('torch.')}, {self.allowed:.1g} allowed)."
        )
        return f"{text} {self.verdict}" if self.verdict else text

    def _largest(self) -> str:
        """The largest errors; nothing beside NaN and infinity, and no ratio to an expected 0."""
        if not math.isfinite(self.max_abs):
            return ""
        relative = f", {self.max_rel:.3g} relative" if self.max_rel else ""
        return f"Largest error {self.max_abs:.3g} absolute{relative} "


def mismatch(
    got: torch.Tensor,
    expected: Any,
    *,
    terms: int = 1,
    in_float64: Callable[[], torch.Tensor] | None = None,
) -> Mismatch | None:
    """Compare a result with its oracle by the table above.

    Args:
        got: the result; its dtype chooses the row of the table.
        expected: the oracle, of the same shape; a tensor, an array or nested lists.
        terms: how many terms one element sums.
        in_float64: recomputes `got` from float64 inputs. When given, and the two differ, the
            message says which it is: a bug (float64 is wrong too) or rounding (float64 is right).
    Returns:
        None when they agree, else a Mismatch. NaN agrees with NaN only, infinity with itself only.

    Cost: one float64 copy of each.
    """
    dtype = got.dtype if got.dtype in BASE_RTOL or got.dtype in REAL_OF else torch.float64
    tol = tolerance(dtype, terms)
    g, e = to_float64(got), to_float64(expected)
    if g.shape != e.shape:
        raise ValueError(f"expected: got shape {e.shape}, expected the result's shape {g.shape}")
    bad, error = _differences(g, e, tol)
    if not bad.any():
        return None
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    scale = np.abs(e[np.isfinite(e)]).max(initial=0.0)
    with np.errstate(invalid="ignore"):  # infinity over infinity; left out below
        counts = (
            np.isfinite(error) & np.isfinite(e) & (np.abs(e) > tol.atol * scale)
        )  # what is 0 but for rounding has no relative error
    relative = np.divide(error, np.abs(e), out=np.zeros_like(error), where=counts)
    finite = np.isfinite(error)
    return Mismatch(
        max_abs=float(error[finite].max(initial=0.0)) if finite[bad].all() else float("inf"),
        max_rel=float(relative[finite].max(initial=0.0)) if finite[bad].all() else float("inf"),
        index=first,
        got=_scalar(g[first]),
        expected=_scalar(e[first]),
        count=int(bad.sum()),
        total=int(bad.size),
        dtype=dtype,
        allowed=tol.rtol,
        verdict=_verdict(dtype, e, terms, in_float64),
    )


def _differences(g: np.ndarray, e: np.ndarray, tol: Tolerance) -> tuple[np.ndarray, np.ndarray]:
    finite_expected = np.abs(e[np.isfinite(e)])
    scale = finite_expected.max(initial=0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(g - e)
        close = error <= tol.atol * scale + tol.rtol * np.abs(e)
    same = (g == e) | (np.isnan(g) & np.isnan(e))
    close = np.where(np.isfinite(e) & np.isfinite(g), close, same)
    return ~close, np.where(same, 0.0, error)


def _verdict(
    dtype: torch.dtype, e: np.ndarray, terms: int, in_float64: Callable[[], torch.Tensor] | None
) -> str:
    if in_float64 is None or dtype in (torch.float64, torch.complex128):
        return ""
    again = to_float64(in_float64())
    bad, _ = _differences(again, e, tolerance(torch.float64, terms))
    if bad.any():
        return "Recomputed in float64 it is still wrong: a bug, not rounding."
    return "Recomputed in float64 it is right: this is rounding; accumulate in a wider type."


def _scalar(value: Any) -> complex:
    return complex(value) if np.iscomplexobj(value) else float(value)
