"""`CurveView`: live curves and heat strips over one axis, the sibling of `MatrixView`.

It draws a `Curves` (picture.py) on a canvas: stacked panels with lines, stems, shaded bands or a
heat strip, an upright marker that can be dragged, and a signal that can be drawn by hand. Static
plots are plotly's; this is for what has to move within a frame or two.
"""

from __future__ import annotations

from typing import Any

import anywidget
import numpy as np
import traitlets

from .front import css, esm, with_still
from .picture import Curves, Line, Panel


class CurveView(anywidget.AnyWidget):
    """A live picture of `Curves`.

    Args:
        curves: what to draw. Set `view.curves` to draw something else.
        height: in CSS pixels; the width is the page's.
        draggable: let the pointer and the arrow keys move the marker.
        marker_name: stands before the marker's number, "t = " say.
        draw_samples: when above 0, the pointer draws that many samples over the first panel
            (and the up and down keys change the one under the cross-hair).
        join: connect the drawn samples; False sets each touched one by itself.
        hint: the line below the picture while nothing is pointed at.

    Observe `marker` (float), `cursor` (float, or None when nothing is pointed at) and `drawn_count`
    (grows with each drawing; the samples are `view.drawn`).
    """

    _esm = esm("curve_view")
    _css = css()

    _spec = traitlets.Dict().tag(sync=True)
    _lines = traitlets.Bytes().tag(sync=True)
    _strips = traitlets.Bytes().tag(sync=True)
    _drawn = traitlets.Bytes().tag(sync=True)
    height = traitlets.Int(360).tag(sync=True)
    marker = traitlets.Float(None, allow_none=True).tag(sync=True)
    marker_name = traitlets.Unicode().tag(sync=True)
    cursor = traitlets.Float(None, allow_none=True).tag(sync=True)
    draggable = traitlets.Bool(False).tag(sync=True)
    draw_samples = traitlets.Int(0).tag(sync=True)
    join = traitlets.Bool(True).tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    drawn_count = traitlets.Int(0)

    def __init__(
        self,
        curves: Curves,
        *,
        height: int = 360,
        draggable: bool = False,
        marker_name: str = "",
        draw_samples: int = 0,
        join: bool = True,
        hint: str = "Point at the curves to read them off.",
    ) -> None:
        if not 80 <= height <= 2000:
            raise ValueError(f"height: got {height}, expected 80 to 2000 (CSS pixels)")
        if draw_samples < 0:
            raise ValueError(f"draw_samples: got {draw_samples}, expected 0 (off) or the number of samples")
        self._curves = curves
        super().__init__(
            height=height,
            draggable=draggable,
            marker_name=marker_name,
            draw_samples=draw_samples,
            join=join,
            hint=hint,
            **_traits(curves),
        )

    @property
    def curves(self) -> Curves:
        """What is drawn."""
        return self._curves

    @curves.setter
    def curves(self, curves: Curves) -> None:
        self._curves = curves
        with self.hold_sync():
            for name, value in _traits(curves).items():
                setattr(self, name, value)

    @property
    def drawn(self) -> np.ndarray:
        """The samples drawn by hand, (draw_samples,) in float64; empty before the first stroke."""
        return np.frombuffer(self._drawn, "<f4").astype(np.float64)

    @traitlets.observe("_drawn")
    def _count(self, change: Any) -> None:
        self.drawn_count += 1

    @property
    def description(self) -> str:
        """The text alternative of what is shown now."""
        return self._curves.description

    def __repr__(self) -> str:
        return f"CurveView: {self.description}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        from .still import still_png

        bundle = super()._repr_mimebundle_(**kwargs)
        return with_still(bundle, still_png(self._curves, encoded=True), repr(self))


def _traits(curves: Curves) -> dict[str, Any]:
    """The picture as traits: all numbers in two blocks of float32, and where each lies in them."""
    lines: list[np.ndarray] = []
    strips: list[np.ndarray] = []
    panels = [_panel(panel, lines, strips) for panel in curves.panels]
    return {
        "_spec": {
            "title": curves.title,
            "description": curves.description,
            "x_name": curves.x_name,
            "x_heading": curves.x_heading,
            "x_step": float(curves.x_step),
            "x_range": [float(x) for x in curves.x_range],
            "bands": [vars(band) for band in curves.bands],
            "panels": panels,
        },
        "_lines": b"".join(block.astype("<f4").tobytes() for block in lines),
        "_strips": b"".join(block.astype("<f4").tobytes() for block in strips),
        "marker": curves.marker,
    }


def _panel(panel: Panel, lines: list[np.ndarray], strips: list[np.ndarray]) -> dict[str, Any]:
    strip = None
    if panel.strip is not None:
        rows, cols = panel.strip.values.shape
        at = sum(block.size for block in strips)
        strip = {"at": at, "rows": rows, "cols": cols, "limit": panel.strip.bound}
        strips.append(panel.strip.values)
    return {
        "heading": panel.heading,
        "span": [float(y) for y in panel.span],
        "weight": panel.weight,
        "lines": [_line(line, lines) for line in panel.lines],
        "strip": strip,
    }


def _line(line: Line, lines: list[np.ndarray]) -> dict[str, Any]:
    at = sum(block.size for block in lines)
    lines += [np.asarray(line.x), np.asarray(line.y)]
    return {"name": line.name, "role": line.role, "style": line.style, "at": at, "size": len(line.x)}
