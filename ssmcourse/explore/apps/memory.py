"""`explore.memory()`: one state as a decaying memory, and the matrix M beside it. Lesson 00."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import ipywidgets as w

from ..curve_view import CurveView
from ..figures.memory import SIGNALS, Memory, arrays, facts, pictures
from ..matrix_view import MatrixView
from .shell import Explorable, slider

ATTEMPT = (
    "make Δ four times larger and A four times smaller: does anything move? "
    "Point at a row of M: the orange bars are what that output is made of. "
    "Then let Δ depend on the input, and look for the columns that stop being copies of each other."
)


def memory(
    a: float | None = None,
    *,
    A: float = -1.0,
    dt: float = 0.2,
    signal: str = "two pulses",
    length: int = 32,
    selective: bool = False,
) -> Explorable:
    """One number as a memory, h_t = exp(A dt) h_{t-1} + x_t, alive.

    Args:
        a: what is kept at each step, between 0 and 1; sets A to log(a) / dt.
        A: rate, negative. dt: step, positive.
        signal: `impulse`, `two pulses`, `step`, `sine` or `noise`.
        length: number of steps, 2 to 64.
        selective: start with Δ depending on the input.
    Returns:
        A widget: display it as the last line of a cell.
    Raises:
        ValueError: a parameter out of its range.

    Lesson 00. The pure functions are in explore/figures/memory.py.
    """
    if a is not None:
        if not 0 < a < 1:
            raise ValueError(f"a: got {a}, expected a number between 0 and 1, both excluded")
        A = math.log(a) / dt
    if signal == "drawn":
        raise ValueError("signal: got 'drawn', expected a ready-made input; draw in the picture")
    return _App(Memory(A=A, dt=dt, signal=signal, length=length, selective=selective)).widget


class _App:
    """Holds the parameters; every control replaces one of them and draws again."""

    def __init__(self, p: Memory) -> None:
        self.p = p
        self.d = arrays(p)
        curves, matrix = pictures(self.d)
        self.curves = CurveView(
            curves, height=396, join=False, hint="Point at the curves to read them off.", draw_samples=0
        )
        self.matrix = MatrixView(matrix.values, size=340, **_fields(matrix))
        self.widget = Explorable(
            "memory",
            "One number as a memory:  h[t] = a · h[t−1] + x[t],  a = exp(A·Δ)",
            [self._sliders(), self._choices()],
            [(self.curves, "1 1 380px"), (self.matrix, "0 1 466px")],
            ATTEMPT,
            lambda: pictures(self.d),
        )
        self.widget.say(facts(self.d))
        self.matrix.observe(lambda _: self._draw_curves(), "cursor")
        self.curves.observe(self._drawn, "drawn_count")

    def _sliders(self) -> list[w.Widget]:
        rate = slider(w.FloatSlider, "A", self.p.A, min(-4.0, self.p.A), max(-0.05, self.p.A), 0.05)
        step = slider(w.FloatSlider, "Δ", self.p.dt, min(0.01, self.p.dt), max(2.0, self.p.dt), 0.01)
        rate.observe(lambda change: self._set(A=change["new"]), "value")
        step.observe(lambda change: self._set(dt=change["new"]), "value")
        return [rate, step]

    def _choices(self) -> list[w.Widget]:
        names = {"drawn": "drawn by hand"}
        choice = w.Dropdown(
            options=[(names.get(s, s), s) for s in SIGNALS],
            value=self.p.signal,
            description="input",
            layout=w.Layout(width="296px"),
            style={"description_width": "42px"},
        )
        gate = w.Checkbox(
            value=self.p.selective,
            description="let Δ depend on the input",
            indent=False,
            layout=w.Layout(width="220px"),
        )
        choice.observe(lambda change: self._choose(change["new"]), "value")
        gate.observe(lambda change: self._set(selective=change["new"]), "value")
        return [choice, gate]

    def _choose(self, signal: str) -> None:
        drawing = signal == "drawn"
        self.curves.draw_samples = self.p.length if drawing else 0
        self.curves.hint = (
            "Draw in the upper plot: each step takes the height you point at."
            if drawing
            else "Point at the curves to read them off."
        )
        self._set(signal=signal, drawn=tuple(self.d.x) if drawing else ())

    def _drawn(self, _: Any) -> None:
        samples = self.curves.drawn
        if self.p.signal == "drawn" and len(samples) == self.p.length:
            self._set(drawn=tuple(samples))

    def _set(self, **changes: Any) -> None:
        self.p = replace(self.p, **changes)
        self.d = arrays(self.p)
        self.matrix.show(self.d.M, description=pictures(self.d)[1].description)
        self._draw_curves()
        self.widget.say(facts(self.d))

    def _draw_curves(self) -> None:
        at = self.matrix.cursor
        self.curves.curves = pictures(self.d, row=at[0] if at else None)[0]


def _fields(matrix: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(matrix).items() if name != "values"}
