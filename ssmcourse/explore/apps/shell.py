"""What every explorable looks like: title, controls, pictures, what they say, what to try."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w

from ..front import css, with_still
from ..picture import Curves, MatrixImage
from ..still import still_png

WIDE = w.Layout(width="296px")


class Explorable(w.VBox):
    """A widget to play with, that leaves a still picture and a line of text where it cannot run.

    Args:
        name: for the text alternative.
        title: the line on top.
        controls: rows of widgets.
        body: the pictures, left to right; each with its share of the width, as a CSS flex value.
        attempt: what to try, HTML.
        still: makes the pictures of the present state, for the still image.
    """

    def __init__(
        self,
        name: str,
        title: str,
        controls: Sequence[Sequence[w.Widget]],
        body: Sequence[tuple[w.Widget, str]],
        attempt: str,
        still: Callable[[], tuple[Curves | MatrixImage, ...]],
    ) -> None:
        self._name, self._still = name, still
        self._says = w.HTML()
        self._facts = ""
        rows = [_row(list(row)) for row in controls]
        for view, flex in body:
            view.layout = w.Layout(flex=flex, min_width="0", overflow="hidden")
        pictures = _row([view for view, _ in body])
        style = w.HTML(f"<style>{css()}</style><div class='ssm-title'>{html.escape(title)}</div>")
        invitation = w.HTML(f"<div class='ssm-try'><b>Try:</b> {attempt}</div>")
        super().__init__([style, *rows, self._says, pictures, invitation])
        self.add_class("ssm-explorable")

    def say(self, facts: str) -> None:
        """The line between the controls and the pictures."""
        self._facts = facts
        self._says.value = f"<div class='ssm-say' aria-live='polite'>{html.escape(facts)}</div>"

    @property
    def description(self) -> str:
        """The text alternative of the present state: one line."""
        sentences = [p.description if isinstance(p, Curves) else p.sentence for p in self._still()]
        return f"{self._name}: {self._facts} {' '.join(sentences)}"

    def __repr__(self) -> str:
        return self.description

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        return with_still(bundle, still_png(*self._still(), encoded=True), self.description)


def _row(widgets: list[w.Widget]) -> w.HBox:
    row = w.HBox(widgets, layout=w.Layout(flex_flow="row wrap", align_items="center", width="100%"))
    row.add_class("ssm-row")
    return row


def slider(kind: type, label: str, value: float, low: float, high: float, step: float, **more: Any) -> Any:
    """A slider of the common width. The browser moves a value to the next step, so the steps start
    at a number that makes `value` one of them."""
    return kind(
        value=value,
        min=value - step * int((value - low) / step),
        max=high,
        step=step,
        description=label,
        layout=WIDE,
        style={"description_width": "42px"},
        continuous_update=True,
        **more,
    )
