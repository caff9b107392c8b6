"""`MatrixView`: the picture of a matrix that the whole course comes back to.

Every layer here is y = M x with M lower triangular. The picture shows M as it is: row i is what
output i is made of, column j is what became of input j. A small canvas widget draws it (its
JavaScript is matrix_view.js); where widgets cannot run, a still image stands in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anywidget
import numpy as np
import traitlets

from .front import css, esm, with_still
from .picture import MatrixImage, as_labels, as_matrix


class MatrixView(anywidget.AnyWidget):
    """A live picture of a matrix: axes, colour bar, cross-hair, zoom, keyboard, text alternative.

    Args:
        matrix: (rows, cols), a real tensor, array or nested lists. None starts with a single 0.
        row_labels, column_labels: one label for each row and column (tokens, say); default: numbers.
        row_name, column_name: the names of the axes, with units if there are any.
        value_name: what a cell is called; "[i, j]" in it is replaced by the indices.
        title: a line above the picture.
        scale: "diverging", centred at zero, or "sequential", from zero up (no negative values).
        limit: the value at the ends of the colour scale; None follows the largest magnitude.
        causal: hatch what lies above the diagonal, which is zero by construction.
        description: the text alternative, one line; default: made from the values.
        size: the longer side of the picture in CSS pixels (less where the page is narrow).

    Set `view.matrix = M` to draw another matrix with the same labels, `view.show(M, ...)` to change
    several things at once; `view.title = ...` and the like work too. `view.cursor` and
    `view.selected` are (row, column) or None, follow the pointer and the click, and can be
    observed and set.

    Raises:
        ValueError: for values that are not a finite real matrix, or labels that do not fit.

    Lesson 00. Cost: 4 bytes a value sent to the browser.
    """

    _esm = esm("matrix_view")
    _css = css()

    _values = traitlets.Bytes().tag(sync=True)
    _rows = traitlets.Int().tag(sync=True)
    _cols = traitlets.Int().tag(sync=True)
    _limit = traitlets.Float(1.0).tag(sync=True)
    _row_labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _column_labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _description = traitlets.Unicode().tag(sync=True)
    row_name = traitlets.Unicode().tag(sync=True)
    column_name = traitlets.Unicode().tag(sync=True)
    value_name = traitlets.Unicode().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    scale = traitlets.Unicode("diverging").tag(sync=True)
    causal = traitlets.Bool(False).tag(sync=True)
    size = traitlets.Int(380).tag(sync=True)
    cursor = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=None, allow_none=True).tag(
        sync=True
    )
    selected = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=None, allow_none=True).tag(
        sync=True
    )

    def __init__(
        self,
        matrix: Any = None,
        *,
        row_labels: Sequence[Any] | None = None,
        column_labels: Sequence[Any] | None = None,
        row_name: str = "output i",
        column_name: str = "input j",
        value_name: str = "M[i, j]",
        title: str = "",
        scale: str = "diverging",
        limit: float | None = None,
        causal: bool = False,
        description: str = "",
        size: int = 380,
    ) -> None:
        if not 80 <= size <= 2000:
            raise ValueError(f"size: got {size}, expected 80 to 2000 (CSS pixels)")
        image = MatrixImage(
            values=as_matrix([[0.0]] if matrix is None else matrix),
            title=title,
            row_name=row_name,
            column_name=column_name,
            value_name=value_name,
            row_labels=as_labels(row_labels),
            column_labels=as_labels(column_labels),
            scale=scale,
            limit=limit,
            causal=causal,
            description=description,
        )
        self._image = image
        super().__init__(size=size, **_traits(image))

    @property
    def matrix(self) -> np.ndarray:
        """The matrix shown: a copy, (rows, cols) in float64."""
        return self._image.values.copy()

    @matrix.setter
    def matrix(self, matrix: Any) -> None:
        self.show(matrix)

    @property
    def description(self) -> str:
        """The text alternative of what is shown now."""
        return self._image.sentence

    @property
    def image(self) -> MatrixImage:
        """What is drawn, as plain data (for `still_png` and `plotly_figure`)."""
        return self._image

    def show(self, matrix: Any = None, **changes: Any) -> None:
        """Draw another matrix, and change any of the constructor's arguments with it, at once.

        Args:
            matrix: the new (rows, cols); None keeps the present one.
            changes: any of the constructor's keywords but `size`.
        Raises:
            ValueError: as the constructor does; the picture is then left as it was.
        """
        fields = dict(self._image.__dict__)
        unknown = set(changes) - (set(fields) - {"values"})
        if unknown:
            known = ", ".join(sorted(set(fields) - {"values"}))
            raise ValueError(f"show: got {', '.join(sorted(unknown))}, expected some of {known}")
        for name in ("row_labels", "column_labels"):
            if name in changes:
                changes[name] = as_labels(changes[name])
        if matrix is not None:
            fields["values"] = as_matrix(matrix)
        image = MatrixImage(**{**fields, **changes})
        self._image = image
        with self.hold_sync():
            self._keep_marks_inside(image.values.shape)
            for name, value in _traits(image).items():
                setattr(self, name, value)

    def _keep_marks_inside(self, shape: tuple[int, ...]) -> None:
        for name in ("cursor", "selected"):
            at = getattr(self, name)
            if at is not None and not (at[0] < shape[0] and at[1] < shape[1]):
                setattr(self, name, None)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """What the browser reports; a cell of an earlier, larger matrix is no cell any more."""
        shape = self._image.values.shape
        cells = {name: sync_data[name] for name in ("cursor", "selected") if sync_data.get(name)}
        gone = {name: None for name, at in cells.items() if not (at[0] < shape[0] and at[1] < shape[1])}
        super().set_state({**sync_data, **gone})

    @traitlets.validate("cursor", "selected")
    def _inside(self, proposal: Any) -> tuple[int, int] | None:
        at, (rows, cols) = proposal["value"], self._image.values.shape
        if at is not None and not (0 <= at[0] < rows and 0 <= at[1] < cols):
            raise ValueError(
                f"{proposal['trait'].name}: got {tuple(at)}, expected None or a cell of {rows} by {cols}"
            )
        return at

    @traitlets.observe("title", "row_name", "column_name", "value_name", "scale", "causal")
    def _set_directly(self, change: Any) -> None:
        if getattr(self._image, change["name"]) != change["new"]:
            self.show(**{change["name"]: change["new"]})

    def __repr__(self) -> str:
        return f"MatrixView: {self.description}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        from .still import still_png

        bundle = super()._repr_mimebundle_(**kwargs)
        return with_still(bundle, still_png(self._image, encoded=True), repr(self))


def _traits(image: MatrixImage) -> dict[str, Any]:
    return {
        "_rows": image.values.shape[0],
        "_cols": image.values.shape[1],
        "_values": image.values.astype("<f4").tobytes(),
        "_limit": image.bound,
        "_row_labels": list(image.row_labels),
        "_column_labels": list(image.column_labels),
        "_description": image.sentence,
        "row_name": image.row_name,
        "column_name": image.column_name,
        "value_name": image.value_name,
        "title": image.title,
        "scale": image.scale,
        "causal": image.causal,
    }
