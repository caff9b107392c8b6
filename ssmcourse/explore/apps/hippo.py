"""`explore.hippo()`: the past of a signal, drawn from a few numbers. Lesson 01."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ipywidgets as w
import numpy as np

from ..curve_view import CurveView
from ..figures.hippo import DURATION, FINE, MEASURES, RATES, SIGNALS, Hippo, arrays, facts, pictures, samples
from .shell import Explorable, slider

POINT = "Drag in the picture, or use the arrow keys, to move t."
DRAW = "Draw a signal in the upper plot; drag in the lower ones to move t."
ATTEMPT = (
    "let t run to the end with LegT and a small θ: a cliff, and nothing behind it. LegS: the whole past, "
    "a little blurred. Then press ×½ or ×2, the same signal read at another rate: whose numbers move?"
)


def hippo(
    signal: str = "noise", *, n: int = 28, measure: str = "legs", theta: int = 128, t: int = 400
) -> Explorable:
    """A signal, and its past as n numbers remember it, alive.

    Args:
        signal: `noise`, `chirp`, `steps` or `square`; a menu offers to draw one.
        n: number of coefficients, 1 to 64.
        measure: `legs`, `legt` or `lagt`.
        theta: window of LegT and fading time of LagT, in samples, 2 to 512.
        t: now, in ms, 2 to 512.
    Returns:
        A widget: display it as the last line of a cell.
    Raises:
        ValueError: a parameter out of its range.

    Lesson 01. The pure functions are in explore/figures/hippo.py.
    """
    if signal == "drawn":
        raise ValueError("signal: got 'drawn', expected a ready-made signal; draw in the picture")
    return _App(Hippo(signal=signal, n=n, measure=measure, theta=theta, t=t)).widget


class _App:
    """Holds the parameters; every control replaces one of them and draws again."""

    def __init__(self, p: Hippo) -> None:
        self.p = p
        self.d = arrays(p)
        (curves,) = pictures(self.d)
        self.curves = CurveView(curves, height=470, draggable=True, marker_name="t = ", hint=POINT)
        self.t = slider(w.IntSlider, "t", p.t, 2, DURATION, 1)
        self.t.observe(lambda change: self._set(t=change["new"]), "value")
        self.curves.observe(self._dragged, "marker")
        self.curves.observe(self._drawn, "drawn_count")
        self.widget = Explorable(
            "hippo",
            "HiPPO: the past of a signal, held in N numbers",
            [self._choices(), [self.t, self._number("N", "n", p.n, 1, 64), self._theta()]],
            [(self.curves, "1 1 100%")],
            ATTEMPT,
            lambda: pictures(self.d),
        )
        self.widget.say(facts(self.d))

    def _choices(self) -> list[w.Widget]:
        names = {"noise": "band-limited noise", "drawn": "draw one"}
        choice = w.Dropdown(
            options=[(names.get(s, s), s) for s in SIGNALS],
            value=self.p.signal,
            description="signal",
            layout=w.Layout(width="220px"),
            style={"description_width": "42px"},
        )
        choice.observe(lambda change: self._choose(change["new"]), "value")
        measure = self._buttons({label: name for name, label in MEASURES.items()}, self.p.measure, "62px")
        measure.observe(lambda change: self._set(measure=change["new"]), "value")
        rates: dict[str, Any] = dict(zip(("×½", "×1", "×2"), RATES, strict=True))
        rate = self._buttons(rates, self.p.rate, "46px")
        rate.tooltips = tuple(
            f"read the signal {label} as often, dt and θ in samples unchanged" for label in rates
        )
        rate.observe(lambda change: self._set(rate=change["new"]), "value")
        return [choice, _labelled("measure", measure), _labelled("samples", rate)]

    def _buttons(self, options: dict[str, Any], value: Any, width: str) -> w.ToggleButtons:
        return w.ToggleButtons(
            options=list(options.items()),
            value=value,
            style={"button_width": width},
            layout=w.Layout(width="auto"),
        )

    def _number(self, label: str, name: str, value: int, low: int, high: int) -> w.Widget:
        number = slider(w.IntSlider, label, value, low, high, 1)
        number.observe(lambda change: self._set(**{name: change["new"]}), "value")
        return number

    def _theta(self) -> w.Widget:
        self.theta = self._number("θ", "theta", self.p.theta, 2, DURATION)
        self.theta.disabled = self.p.measure == "legs"
        return self.theta

    def _dragged(self, change: Any) -> None:
        if change["new"] is not None:
            self.t.value = int(np.clip(round(change["new"]), 2, DURATION))

    def _choose(self, signal: str) -> None:
        drawing = signal == "drawn"
        stroke = np.repeat(samples(replace(self.p, rate=1.0)), 2) if drawing else ()
        self.curves.draw_samples = FINE if drawing else 0
        self.curves.hint = DRAW if drawing else POINT
        self._set(signal=signal, drawn=tuple(stroke))

    def _drawn(self, _: Any) -> None:
        stroke = self.curves.drawn
        if self.p.signal == "drawn" and len(stroke) == FINE:
            self._set(drawn=tuple(stroke))

    def _set(self, **changes: Any) -> None:
        self.p = replace(self.p, **changes)
        self.theta.disabled = self.p.measure == "legs"
        self.d = arrays(self.p)
        (self.curves.curves,) = pictures(self.d)
        self.widget.say(facts(self.d))


def _labelled(text: str, buttons: w.Widget) -> w.Widget:
    pair = w.HBox([w.Label(text), buttons], layout=w.Layout(align_items="center"))
    pair.add_class("ssm-pair")
    return pair
