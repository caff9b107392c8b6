"""The still plots of the lessons: `curves` makes one, `show` displays it with its text alternative."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from .palette import ON_BOTH
from .plotly_figure import AXIS, PAGE

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
COLORS = [ON_BOTH[role] for role in ("signal", "main", "accent", "third")]
CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"]}
MORE = ["#a16cc4", "#a8872a"]  # for a fifth and a sixth curve


def curves(
    lines: Mapping[str, Any],
    *,
    x: Any = None,
    x_name: str = "index",
    y_name: str = "value",
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
) -> go.Figure:
    """Named curves over one axis.

    Args:
        lines: legend entry -> (k,) numbers; tensors, arrays or lists. The first of several is
            grey: the thing that the others are compared with.
        x: (k,) positions; default 0, 1, 2, ...
        x_name, y_name: the axes, with units if there are any.
        log_x, log_y: logarithmic axes.
        title: a line above.
    Returns:
        A plotly figure; `show` displays it.
    Raises:
        ValueError: no line, or lines of different lengths.
    """
    if not lines:
        raise ValueError("lines: got none, expected a dict of at least one name -> numbers")
    drawn = {name: _numbers(f"lines[{name!r}]", y) for name, y in lines.items()}
    at = np.arange(len(next(iter(drawn.values())))) if x is None else _numbers("x", x)
    colors = [*COLORS, *MORE] if len(drawn) > 1 else [COLORS[1]]
    figure = go.Figure()
    for k, (name, y) in enumerate(drawn.items()):
        if len(y) != len(at):
            raise ValueError(f"lines[{name!r}]: got {len(y)} numbers, expected {len(at)}, one for each x")
        mode = "lines+markers" if len(y) <= 24 else "lines"
        line = {"color": colors[k % len(colors)], "width": 2}
        figure.add_trace(go.Scatter(x=at, y=y, name=name, mode=mode, line=line))
    figure.update_xaxes(title=x_name, type="log" if log_x else "linear")
    figure.update_yaxes(title=y_name, type="log" if log_y else "linear", exponentformat="power")
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    return figure.update_layout(
        **PAGE,
        height=340,
        title=title or None,
        showlegend=True,
        margin={"l": 64, "r": 16, "t": 56 if title else 32, "b": 48},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )


def show(figure: go.Figure, alt: str) -> None:
    """Display a figure: interactive where plotly is understood, else a PNG, else one line.

    Args:
        figure: any plotly figure of scatter traces, `curves` makes one.
        alt: one sentence that says what there is to see.
    """
    from IPython.display import display

    from .still import scatter_png

    if not alt.strip():
        raise ValueError("alt: got an empty string, expected one sentence that says what there is to see")
    figure = go.Figure(figure).update_layout(meta={"description": alt})
    bundle = {
        "application/vnd.plotly.v1+json": {**json.loads(figure.to_json()), "config": CONFIG},
        "image/png": scatter_png(figure, encoded=True),
        "text/plain": alt,
    }
    display(bundle, raw=True)


def stored_result(name: str) -> dict[str, Any]:
    """The stored figures of a benchmark, with the date and the machine that they come from.

    Args:
        name: of a file in benchmarks/results/, without ".json".
    Raises:
        ValueError: when there is no such file; names those that there are.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json"))) or "none: is this a full clone?"
        raise ValueError(f"name: got {name!r}, expected one of benchmarks/results/: {there}")
    return json.loads(path.read_text(encoding="utf-8"))


def _numbers(what: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    elif isinstance(values, Sequence):
        values = [float(v) for v in values]
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{what}: got shape {array.shape}, expected (k,) with k at least 1")
    return array
