"""Figures that do not move: `curves` draws lines, `show` puts a figure into a notebook with words for it.

A figure made here reads on a light and on a dark page: no background of its own, and colours of
middle lightness. Beside plotly's data the notebook keeps a PNG of the same figure, which is what
a reader without plotly's extension sees (a repository's web page, say).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#2b88cf", "#e07b2a", "#12a37a", "#9a6fd0", "#8a929b")
TEXT, GRID = "#808890", "rgba(128,128,128,0.22)"


def curves(
    lines: Mapping[str, Any],
    *,
    x: Any = None,
    x_name: str,
    y_name: str,
    log_x: bool = False,
    log_y: bool = False,
) -> go.Figure:
    """Lines over one axis.

    Args:
        lines: name -> (k,) tensor, array or list; the name is the legend entry.
        x: (k,) shared by all lines; None counts from 0.
        x_name, y_name: the axes' names, with units.
        log_x, log_y: logarithmic axes.
    Returns:
        A plotly figure.
    """
    if not lines:
        raise ValueError("lines: got none, expected at least one, as {name: values}")
    figure = go.Figure()
    for k, (name, y) in enumerate(lines.items()):
        y = _plain(y)
        at = np.arange(len(y)) if x is None else _plain(x)
        if y.shape != at.shape or y.ndim != 1:
            raise ValueError(f"lines: got {name!r} of shape {y.shape} over x of shape {at.shape}, expected the same (k,)")
        style = {"color": COLORS[k % len(COLORS)], "width": 2, "dash": "solid" if k < len(COLORS) else "dash"}
        figure.add_trace(go.Scatter(x=at, y=y, name=name, mode="lines", line=style, showlegend=len(lines) > 1))
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": TEXT, "showline": True}
    return figure.update_layout(
        height=340,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": TEXT, "size": 13},
        margin={"l": 70, "r": 20, "t": 30, "b": 55},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={**axis, "title": {"text": x_name}, "type": "log" if log_x else "linear"},
        yaxis={**axis, "title": {"text": y_name}, "type": "log" if log_y else "linear"},
    )


class show:  # noqa: N801 (reads as a verb at the end of a notebook cell)
    """Display a figure of `curves` with a one-line description.

    Args:
        figure: what `curves` returned.
        alt: what the figure shows, in one sentence: its text alternative.
    """

    def __init__(self, figure: go.Figure, *, alt: str) -> None:
        if not alt.strip():
            raise ValueError("alt: got no words, expected one sentence that says what the figure shows")
        self.figure = figure.update_layout(meta={"description": alt})
        self.alt = alt

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {
            "application/vnd.plotly.v1+json": self.figure.to_plotly_json(),
            "image/png": base64.b64encode(png(self.figure)).decode(),
            "text/plain": self.alt,
        }

    def __repr__(self) -> str:
        return self.alt


def png(figure: go.Figure) -> bytes:
    """A figure of `curves` as PNG, by matplotlib. Equal figures give equal bytes."""
    page = Figure(figsize=(7.2, 3.4), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(page)
    axes = page.subplots()
    for trace in figure.data:
        axes.plot(trace.x, trace.y, "--" if trace.line.dash == "dash" else "-", color=trace.line.color, label=trace.name)
    layout = figure.layout
    axes.set_xlabel(layout.xaxis.title.text)
    axes.set_ylabel(layout.yaxis.title.text)
    axes.set_xscale(layout.xaxis.type)
    axes.set_yscale(layout.yaxis.type)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(figure.data) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    buffer = io.BytesIO()
    page.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plain(values: Any) -> np.ndarray:
    """A NumPy copy in float64 of a tensor, an array or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=float)
