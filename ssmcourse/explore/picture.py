"""What a picture shows, as plain data: curves over one axis, and a matrix.

The same values are drawn three ways: by the canvas widgets (`CurveView`, `MatrixView`), as a
plotly figure (`plotly_figure`), and as the still image kept in a notebook (`still_png`). The
pure functions in `figures/` end here, so a test can look at what will be drawn without drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .palette import ROLES

STYLES = ("line", "dashes", "stems", "area", "dots")


@dataclass(frozen=True)
class Line:
    """One curve: y (k,) over x (k,). `name` is its legend entry; an empty one keeps it out."""

    name: str
    x: np.ndarray
    y: np.ndarray
    role: str = "main"
    style: str = "line"

    def __post_init__(self) -> None:
        x, y = np.shape(self.x), np.shape(self.y)
        if len(x) != 1 or x != y:
            raise ValueError(f"Line: got x of shape {x} and y of shape {y}, expected the same (k,)")
        if not np.isfinite(self.y).all():
            raise ValueError(f"y: got a value that is not finite in the line {self.name!r}")
        if self.role not in ROLES:
            raise ValueError(f"role: got {self.role!r}, expected one of {', '.join(ROLES)}")
        if self.style not in STYLES:
            raise ValueError(f"style: got {self.style!r}, expected one of {', '.join(STYLES)}")


@dataclass(frozen=True)
class Strip:
    """A heat strip: values (rows, columns), columns along the x axis, row 0 at the bottom."""

    values: np.ndarray
    value_name: str
    limit: float | None = None

    @property
    def bound(self) -> float:
        """The value at the ends of the colour scale: `limit`, or the largest magnitude."""
        return self.limit or float(np.abs(self.values).max(initial=0.0)) or 1.0


@dataclass(frozen=True)
class Panel:
    """One of the stacked plots: lines, or a strip. `y_range` None takes it from the lines."""

    name: str
    units: str = ""
    lines: tuple[Line, ...] = ()
    strip: Strip | None = None
    y_range: tuple[float, float] | None = None
    weight: float = 1.0

    @property
    def heading(self) -> str:
        """The name of the vertical axis with its units."""
        return f"{self.name} ({self.units})" if self.units else self.name

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest value of the vertical axis."""
        if self.strip is not None:
            return 0.0, float(self.strip.values.shape[0])
        if self.y_range is not None:
            return self.y_range
        values = np.concatenate([line.y for line in self.lines] or [np.zeros(1)])
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        room = 0.08 * (high - low) or 1.0
        return (low - room if low < 0 else 0.0), high + room


@dataclass(frozen=True)
class Band:
    """A shaded stretch of the x axis, in every panel."""

    start: float
    stop: float
    name: str = ""


@dataclass(frozen=True)
class Curves:
    """Panels over one x axis.

    `x_step` above 0 keeps the cross-hair and a dragged marker to its multiples; `marker` is an
    upright line; `description` is the text alternative.
    """

    x_name: str
    x_range: tuple[float, float]
    panels: tuple[Panel, ...]
    description: str
    x_units: str = ""
    x_step: float = 0.0
    title: str = ""
    bands: tuple[Band, ...] = ()
    marker: float | None = None

    def __post_init__(self) -> None:
        if not self.panels:
            raise ValueError("panels: got none, expected at least one Panel")
        low, high = self.x_range
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"x_range: got {self.x_range}, expected (low, high) with low < high")
        for panel in self.panels:
            if panel.strip is not None and np.ndim(panel.strip.values) != 2:
                shape = np.shape(panel.strip.values)
                raise ValueError(f"values: got a strip of shape {shape}, expected (rows, columns)")

    @property
    def x_heading(self) -> str:
        """The name of the horizontal axis with its units."""
        return f"{self.x_name} ({self.x_units})" if self.x_units else self.x_name


@dataclass(frozen=True)
class MatrixImage:
    """A matrix (rows, columns) to be drawn with row 0 on top; see `MatrixView` for the fields."""

    values: np.ndarray
    title: str = ""
    row_name: str = "output i"
    column_name: str = "input j"
    value_name: str = "M[i, j]"
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()
    scale: str = "diverging"
    limit: float | None = None
    causal: bool = False
    description: str = ""

    def __post_init__(self) -> None:
        if self.scale not in ("diverging", "sequential"):
            raise ValueError(f"scale: got {self.scale!r}, expected 'diverging' or 'sequential'")
        if self.limit is not None and not (np.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"limit: got {self.limit}, expected a positive number or None")
        if self.scale == "sequential" and self.values.min(initial=0.0) < 0:
            raise ValueError(
                f"matrix: got a value of {self.values.min():.4g} with scale='sequential', "
                "expected none below zero; use scale='diverging'"
            )
        for axis, labels in (("row", self.row_labels), ("column", self.column_labels)):
            size = self.values.shape[0 if axis == "row" else 1]
            if labels and len(labels) != size:
                raise ValueError(
                    f"{axis}_labels: got {len(labels)} labels for {size} {axis}s, expected one each; "
                    "to change the matrix and its labels together, use show(matrix, ...)"
                )

    @property
    def bound(self) -> float:
        """The value at the ends of the colour scale: `limit`, or the largest magnitude."""
        return self.limit or float(np.abs(self.values).max(initial=0.0)) or 1.0

    @property
    def sentence(self) -> str:
        """The text alternative: `description`, or one line made from the values."""
        if self.description:
            return self.description
        rows, cols = self.values.shape
        low, high = float(self.values.min()), float(self.values.max())
        shape = ", zero above the diagonal" if not np.triu(self.values, 1).any() and rows > 1 else ""
        name = f"{self.title}: m" if self.title else "M"
        return (
            f"{name}atrix of {rows} rows ({self.row_name}) by {cols} columns ({self.column_name}), "
            f"values from {low:.3g} to {high:.3g}{shape}."
        )


def as_matrix(matrix: Any) -> np.ndarray:
    """A torch tensor, array or nested lists as a finite real (rows, cols) array of float64.

    Raises:
        ValueError: for another number of dimensions, an empty side, complex or non-finite values.
    """
    values = matrix.detach().cpu() if hasattr(matrix, "detach") else matrix
    if hasattr(values, "double") and not _is_complex(values):
        values = values.double().numpy()  # bfloat16 has no NumPy twin
    try:
        array = np.asarray(values)
        if np.iscomplexobj(array):
            raise ValueError("matrix: got complex values, expected real ones (draw .real or .abs())")
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        if str(error).startswith("matrix:"):
            raise
        raise ValueError(f"matrix: got {type(matrix).__name__}, expected numbers (rows, cols)") from None
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"matrix: got shape {array.shape}, expected (rows, cols), neither of them 0")
    if not np.isfinite(array).all():
        row, col = map(int, np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"matrix: got {array[row, col]} at [{row}, {col}], expected finite values")
    return array


def _is_complex(tensor: Any) -> bool:
    return bool(getattr(tensor, "is_complex", lambda: False)())


def as_labels(labels: Sequence[Any] | None) -> tuple[str, ...]:
    """Token labels as a tuple of strings; None is no labels."""
    if isinstance(labels, str):
        raise ValueError(f"labels: got the string {labels[:20]!r}, expected a list with one label each")
    return tuple(str(label) for label in labels) if labels is not None else ()
