"""The stored benchmarks of the operators as still plots: who takes how long, and who is how exact.

`stored_result("operators_ssd")` of `explore.plots` reads a result, `show` displays a figure.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from ssmcourse.bench import tables

from ..palette import ON_BOTH
from ..plotly_figure import AXIS, PAGE
from ..plots import COLORS, MORE


def times_as_long(result: dict[str, Any], direction: str = "forward") -> dict[str, dict[str, float]]:
    """How many times as long as ours each valid contestant takes, on one thread.

    Args:
        result: of one operator, from benchmarks/results/.
        direction: "forward", or "both": with backward.
    Returns:
        sizes of a case -> contestant -> ratio, slowest first; ours is 1.
    """
    _check(direction)
    ratios = {}
    for case in _one_thread(result):
        mine = tables.time_of(case, tables.ours(case), direction)
        times = {row["name"]: tables.time_of(case, row, direction) for row in case["rows"]}
        if mine is not None:
            found = [(time / mine, name) for name, time in times.items() if time is not None]
            ratios[_sizes(case)] = {name: ratio for ratio, name in sorted(found, reverse=True)}
    return ratios


def exactness(result: dict[str, Any], direction: str = "forward") -> dict[str, tuple[float, float]]:
    """Milliseconds and largest relative error of each contestant in the first case, on one thread.

    Args:
        result, direction: as of `times_as_long`.
    Returns:
        contestant -> (milliseconds, error); those outside of the tolerance table too.
    """
    _check(direction)
    case = _one_thread(result)[0]
    parts = {row["name"]: row.get(direction, {}) for row in case["rows"]}
    return {name: (p["cpu_ms"], p["error"]) for name, p in parts.items() if "cpu_ms" in p}


def ratio_figure(result: dict[str, Any], direction: str = "forward") -> go.Figure:
    """A dot a contestant, on a logarithmic axis; a colour for each size."""
    ratios = times_as_long(result, direction)
    figure = go.Figure()
    for color, (sizes, found) in zip([*COLORS[1:], *MORE], ratios.items(), strict=False):
        marker = {"size": 11, "color": color}
        x, y = list(found.values()), list(found)
        figure.add_trace(go.Scatter(x=x, y=y, name=sizes, mode="markers", marker=marker))
    figure.update_xaxes(title="time, ours = 1", type="log", **AXIS)
    figure.update_yaxes(title="", type="category", **AXIS)
    most = max(((r, name) for found in ratios.values() for name, r in found.items()), default=(1.0, "none"))
    words = tables.DIRECTIONS[direction]
    alt = f"{result['operator']}, {words}: the slowest, {most[1]}, takes {tables.number(most[0])} times as long as ours."
    return _laid_out(figure, f"{result['operator']}, {words}", alt)


def exactness_figure(result: dict[str, Any], direction: str = "forward") -> go.Figure:
    """Error against time, both logarithmic: down and to the left is better. Ours are orange."""
    figure = go.Figure()
    for name, (ms, error) in exactness(result, direction).items():
        color = ON_BOTH["accent"] if name.startswith("ours") else ON_BOTH["main"]
        marker = {"size": 11, "color": color}
        # An exact result has no place on a logarithmic axis: it is drawn where float64 ends.
        y = [max(error, 1e-16)]
        figure.add_trace(go.Scatter(x=[ms], y=y, name=name, mode="markers", marker=marker))
    figure.update_xaxes(title="milliseconds", type="log", **AXIS)
    figure.update_yaxes(title="largest error, relative", type="log", exponentformat="power", **AXIS)
    case = _one_thread(result)[0]
    words = f"{result['operator']}, {tables.DIRECTIONS[direction]}, {_sizes(case)}"
    return _laid_out(figure, words, f"{words}: error against time of {len(figure.data)} ways to compute it.")


def _one_thread(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [case for case in result["cases"] if case["threads"] == 1]


def _sizes(case: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{n:,}" for n in case["sizes"]) + ")"


def _check(direction: str) -> None:
    if direction not in tables.DIRECTIONS:
        raise ValueError(f"direction: got {direction!r}, expected one of {', '.join(tables.DIRECTIONS)}")


def _laid_out(figure: go.Figure, title: str, alt: str) -> go.Figure:
    return figure.update_layout(
        **PAGE,
        height=360,
        title=title,
        showlegend=True,
        margin={"l": 16, "r": 16, "t": 56, "b": 48},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        meta={"description": alt},
    )
