"""The still image of a picture: what a notebook keeps for readers without a running kernel.

The same plain data as the canvas widgets, drawn by matplotlib's Agg in the light theme. The bytes
depend on the data only: no version, no date.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .palette import INK, scale_colors
from .picture import Curves, Line, MatrixImage, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = INK["light"]
HEIGHT, DPI = 4.0, 110


def still_png(*pictures: Curves | MatrixImage, encoded: bool = False) -> Any:
    """PNG of pictures side by side.

    Args:
        pictures: `Curves` or `MatrixImage`, left to right.
        encoded: return base64 text (for a display bundle) instead of bytes.
    Returns:
        bytes, or str when encoded. Equal pictures give equal bytes.
    """
    alone = len(pictures) == 1 and isinstance(pictures[0], Curves)
    widths = [7.4] if alone else [_width(picture) for picture in pictures]
    figure = Figure(
        figsize=(sum(widths), 1.15 * HEIGHT if alone else HEIGHT), dpi=DPI, facecolor=PAPER["back"]
    )
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    FigureCanvasAgg(figure)
    slots = figure.subfigures(1, len(pictures), width_ratios=widths, squeeze=False)[0]
    for slot, picture in zip(slots, pictures, strict=True):
        slot.set_facecolor(PAPER["back"])
        if isinstance(picture, Curves):
            _draw_curves(slot, picture)
        else:
            _draw_matrix(slot, picture)
    return _png(figure, encoded)


def _width(picture: Curves | MatrixImage) -> float:
    if isinstance(picture, Curves):
        return 5.2
    rows, cols = picture.values.shape
    return 1.5 + min(6.0, max(1.5, 3.1 * cols / rows))


def _draw_matrix(slot: Any, picture: MatrixImage) -> None:
    axes = slot.subplots()
    values = picture.values
    if picture.causal:
        values = np.ma.masked_array(values, np.triu(np.ones(values.shape, bool), 1))
        axes.set_facecolor("#f1f2f4")
    colors = ListedColormap([tuple(c) for c in scale_colors(picture.scale)])
    low = 0.0 if picture.scale == "sequential" else -picture.bound
    shown = axes.imshow(values, cmap=colors, vmin=low, vmax=picture.bound, interpolation="nearest")
    bar = slot.colorbar(shown, ax=axes, fraction=0.05, pad=0.03)
    bar.ax.tick_params(labelsize=8, color=PAPER["quiet"], labelcolor=PAPER["quiet"])
    bar.set_label(picture.value_name, color=PAPER["quiet"], fontsize=8)
    bar.outline.set_edgecolor(PAPER["faint"])
    _plain(axes, picture.column_name, picture.row_name, frame=True)
    _labels(axes.xaxis, picture.column_labels)
    _labels(axes.yaxis, picture.row_labels)
    if picture.column_labels:
        axes.tick_params(axis="x", labelrotation=90)
    if picture.title:
        axes.set_title(picture.title, loc="left", fontsize=10, fontweight="bold", color=PAPER["text"])


def _labels(axis: Any, labels: tuple[str, ...]) -> None:
    if not labels:
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        return
    step = -(-len(labels) // 32)
    axis.set_ticks(range(0, len(labels), step), [label[:14] for label in labels[::step]])


def _draw_curves(slot: Any, picture: Curves) -> None:
    weights = [panel.weight for panel in picture.panels]
    rows = slot.subplots(len(weights), 1, sharex=True, height_ratios=weights, squeeze=False)[:, 0]
    for axes, panel in zip(rows, picture.panels, strict=True):
        _plain(axes, "", "", frame=panel.strip is not None)
        axes.set_xlim(*picture.x_range)
        axes.set_title(panel.heading, loc="left", fontsize=9, color=PAPER["quiet"])
        if panel.strip is None:
            _draw_lines(axes, panel, picture)
        else:
            _draw_strip(slot, axes, panel, picture)
        if picture.marker is not None:
            axes.axvline(picture.marker, color=PAPER["text"], linewidth=1.2)
    rows[-1].set_xlabel(picture.x_heading, fontsize=9, color=PAPER["quiet"])
    if picture.title:
        slot.suptitle(picture.title, x=0.02, ha="left", fontsize=10, fontweight="bold", color=PAPER["text"])


def _draw_lines(axes: Axes, panel: Panel, picture: Curves) -> None:
    axes.set_ylim(*panel.span)
    axes.grid(axis="y", color=PAPER["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4 if panel.weight > 0.7 else 2))
    for band in picture.bands:
        axes.axvspan(band.start, band.stop, color=PAPER["main"], alpha=0.09, linewidth=0)
    for line in panel.lines:
        _draw_line(axes, line)
    if sum(bool(line.name) for line in panel.lines) > 1:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, frameon=False, fontsize=8,
            borderaxespad=0.0, handlelength=1.4, labelcolor=PAPER["text"],
        )  # fmt: skip


def _draw_line(axes: Axes, line: Line) -> None:
    color, label = PAPER[line.role], line.name or "_"
    if line.style == "area":
        axes.fill_between(line.x, 0, line.y, color=color, alpha=0.28, linewidth=0, label=label)
    if line.style in ("stems", "dots"):
        drawn = line.y != 0 if line.style == "stems" else np.ones(len(line.y), bool)
        if line.style == "stems":
            axes.vlines(line.x, 0, line.y, color=color, linewidth=1.6)
        axes.plot(line.x[drawn], line.y[drawn], "o", markersize=3.6, color=color, label=label)
        return
    dashes = "--" if line.style == "dashes" else "-"
    axes.plot(
        line.x, line.y, dashes, color=color, linewidth=1.6, label="_" if line.style == "area" else label
    )


def _draw_strip(slot: Any, axes: Axes, panel: Panel, picture: Curves) -> None:
    strip = panel.strip
    assert strip is not None
    colors = ListedColormap([tuple(c) for c in scale_colors("diverging")])
    shown = axes.imshow(
        strip.values, cmap=colors, vmin=-strip.bound, vmax=strip.bound, aspect="auto", origin="lower",
        extent=(*picture.x_range, 0, strip.values.shape[0]), interpolation="nearest",
    )  # fmt: skip
    bar = slot.colorbar(shown, ax=axes, fraction=0.04, pad=0.015)
    bar.ax.tick_params(labelsize=8, labelcolor=PAPER["quiet"])
    bar.outline.set_edgecolor(PAPER["faint"])


def _plain(axes: Axes, x_name: str, y_name: str, *, frame: bool) -> None:
    """Axis names and a frame that keep in the background."""
    axes.set_xlabel(x_name, fontsize=9, color=PAPER["quiet"])
    axes.set_ylabel(y_name, fontsize=9, color=PAPER["quiet"])
    axes.tick_params(which="both", labelsize=8, color=PAPER["faint"], labelcolor=PAPER["quiet"])
    for side, spine in axes.spines.items():
        spine.set_visible(frame or side in ("left", "bottom"))
        spine.set_color(PAPER["faint"])


def scatter_png(plot: Any, encoded: bool = False) -> Any:
    """PNG of a plotly figure that holds scatter traces only, with its axis names and log axes.

    Args:
        plot: the `plotly.graph_objects.Figure`.
        encoded: return base64 text instead of bytes.
    """
    figure = Figure(figsize=(7.4, 3.3), dpi=DPI, facecolor=PAPER["back"], layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for trace in plot.data:
        if trace.type not in ("scatter", "scattergl"):
            raise ValueError(f"figure: got a trace of type {trace.type!r}, expected scatter only")
        mode = trace.mode or "lines"
        axes.plot(
            trace.x,
            trace.y,
            linestyle="-" if "lines" in mode else "none",
            marker="o" if "markers" in mode else None,
            markersize=3.5,
            linewidth=1.7,
            color=trace.line.color or trace.marker.color,
            label=trace.name or "_",
        )
    layout = plot.layout
    _plain(axes, layout.xaxis.title.text or "", layout.yaxis.title.text or "", frame=False)
    axes.set_xscale("log" if layout.xaxis.type == "log" else "linear")
    axes.set_yscale("log" if layout.yaxis.type == "log" else "linear")
    axes.grid(color=PAPER["grid"], linewidth=0.8)
    if layout.title.text:
        axes.set_title(layout.title.text, loc="left", fontsize=10, fontweight="bold", color=PAPER["text"])
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 4}
        axes.legend(frameon=False, fontsize=8.5, labelcolor=PAPER["text"], **place)
    return _png(figure, encoded)


def _png(figure: Figure, encoded: bool) -> Any:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    png = buffer.getvalue()
    return base64.b64encode(png).decode() if encoded else png
