"""A picture as a `plotly.graph_objects.Figure`: interactive without a kernel, and testable."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .palette import ON_BOTH, scale_colors
from .picture import Curves, Line, MatrixImage, Panel

PAPER = ON_BOTH
PAGE = {
    "template": "none",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": PAPER["text"], "size": 12},
}
AXIS = {
    "gridcolor": PAPER["grid"],
    "zerolinecolor": PAPER["grid"],
    "linecolor": PAPER["grid"],
    "automargin": True,
}


def plotly_figure(*pictures: Curves | MatrixImage, height: int = 440) -> go.Figure:
    """Pictures side by side as one figure.

    Args:
        pictures: `Curves` (one subplot a panel) or `MatrixImage`, left to right.
        height: in pixels.
    Returns:
        The figure. Every axis has its name and units; `layout.meta["description"]` is the text
        alternative.
    """
    counts = [len(p.panels) if isinstance(p, Curves) else 1 for p in pictures]
    rows = int(np.lcm.reduce(counts))
    columns = len(pictures)
    specs: list[list[Any]] = [[None] * columns for _ in range(rows)]
    for column, count in enumerate(counts):
        for row in range(0, rows, rows // count):
            specs[row][column] = {"rowspan": rows // count}
    figure = make_subplots(rows, columns, specs=specs, vertical_spacing=0.09, horizontal_spacing=0.14)
    for column, (picture, count) in enumerate(zip(pictures, counts, strict=True), start=1):
        if isinstance(picture, Curves):
            _add_curves(figure, picture, column, rows // count)
        else:
            _add_matrix(figure, picture, column)
    figure.update_layout(
        height=height,
        **PAGE,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        meta={"description": " ".join(_sentence(picture) for picture in pictures)},
    )
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    return figure


def _sentence(picture: Curves | MatrixImage) -> str:
    return picture.description if isinstance(picture, Curves) else picture.sentence


def _colorscale(scale: str) -> list[list[Any]]:
    colors = scale_colors(scale, count=33)
    return [[k / 32, "rgb({:.0f},{:.0f},{:.0f})".format(*(255 * color))] for k, color in enumerate(colors)]


def _add_matrix(figure: go.Figure, picture: MatrixImage, column: int) -> None:
    values = picture.values
    if picture.causal:
        values = np.where(np.triu(np.ones(values.shape, bool), 1), np.nan, values)
    rows, cols = values.shape
    figure.add_trace(
        go.Heatmap(
            z=values,
            zmin=0.0 if picture.scale == "sequential" else -picture.bound,
            zmax=picture.bound,
            colorscale=_colorscale(picture.scale),
            colorbar={"title": picture.value_name, "thickness": 12},
            hovertemplate=f"{picture.row_name} %{{y}}<br>{picture.column_name} %{{x}}<br>%{{z:.6g}}<extra></extra>",
        ),
        row=1,
        col=column,
    )
    ticks = {"tickmode": "array"} if picture.column_labels else {}
    figure.update_xaxes(
        title=picture.column_name, row=1, col=column, **_ticks(picture.column_labels, cols), **ticks
    )
    figure.update_yaxes(
        title=picture.row_name, autorange="reversed", row=1, col=column, **_ticks(picture.row_labels, rows)
    )


def _ticks(labels: tuple[str, ...], count: int) -> dict[str, Any]:
    return {"tickvals": list(range(count)), "ticktext": list(labels)} if labels else {}


def _add_curves(figure: go.Figure, picture: Curves, column: int, span: int) -> None:
    for k, panel in enumerate(picture.panels):
        place = {"row": 1 + k * span, "col": column}
        if panel.strip is None:
            for line in panel.lines:
                figure.add_trace(_trace(line), **place)
            for band in picture.bands:
                figure.add_vrect(
                    x0=band.start, x1=band.stop, fillcolor=PAPER["main"], opacity=0.09, line_width=0, **place
                )
        else:
            figure.add_trace(_strip(panel, picture), **place)
        if picture.marker is not None:
            figure.add_vline(x=picture.marker, line_color=PAPER["text"], line_width=1.5, **place)
        figure.update_yaxes(title=panel.heading, range=list(panel.span), **place)
        last = k == len(picture.panels) - 1
        figure.update_xaxes(title=picture.x_heading if last else None, range=list(picture.x_range), **place)


def _strip(panel: Panel, picture: Curves) -> go.Heatmap:
    strip = panel.strip
    assert strip is not None
    rows, cols = strip.values.shape
    low, high = picture.x_range
    return go.Heatmap(
        z=strip.values,
        x=low + (np.arange(cols) + 0.5) * (high - low) / cols,
        y=np.arange(rows) + 0.5,
        zmin=-strip.bound,
        zmax=strip.bound,
        colorscale=_colorscale("diverging"),
        colorbar={"title": strip.value_name, "thickness": 10, "len": 0.3, "y": 0.15},
    )


def _trace(line: Line) -> go.Scatter:
    color = PAPER[line.role]
    common = {"x": line.x, "y": line.y, "name": line.name, "showlegend": bool(line.name)}
    if line.style == "area":
        return go.Scatter(**common, mode="lines", line={"color": color}, fill="tozeroy")
    if line.style == "dots":
        return go.Scatter(**common, mode="markers", marker={"color": color, "size": 6})
    if line.style == "stems":
        bars = {"type": "data", "symmetric": False, "array": 0 * line.y, "arrayminus": line.y}
        return go.Scatter(
            **common,
            mode="markers",
            marker={"color": color, "size": 6},
            error_y={**bars, "color": color, "thickness": 1.5, "width": 0},
        )
    dash = "dash" if line.style == "dashes" else "solid"
    return go.Scatter(**common, mode="lines", line={"color": color, "dash": dash})
