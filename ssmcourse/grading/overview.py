"""The exercises in a table: what is done, what is next."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from ssmcourse.grading import registry
from ssmcourse.grading.registry import Exercise

DONE, TRIED, OPEN = "done", "tried", "open"
MARKS = {DONE: "✓", TRIED: "✗", OPEN: "·"}


@dataclass
class Overview:
    """Every exercise with its state: `done`, `tried` (attempted, not passed yet) or `open`."""

    rows: list[tuple[Exercise, str]]
    line: str = ""

    @property
    def next(self) -> Exercise | None:
        """The first exercise, in the order of the course, that is not done."""
        return next((e for e, state in self.rows if state != DONE), None)

    @property
    def summary(self) -> str:
        done = sum(state == DONE for _, state in self.rows)
        text = f"{done} of {len(self.rows)} exercises done."
        return f"{text} Next: {self.next.id}, {self.next.title}." if self.next else text

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        states = [{"id": e.id, "chapter": e.chapter, "title": e.title, "state": s} for e, s in self.rows]
        return {"exercises": states, "next": self.next.id if self.next else None}

    def cells(self) -> list[tuple[str, ...]]:
        """(mark, chapter, id, title, difficulty, minutes) of each row, as text."""
        return [
            (
                MARKS[state],
                e.chapter,
                e.id,
                e.title,
                "●" * e.difficulty + "○" * (5 - e.difficulty),
                f"{e.minutes} min",
            )
            for e, state in self.rows
        ]

    def __str__(self) -> str:
        table = self.cells()
        widths = [max((len(row[i]) for row in table), default=0) for i in range(6)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*lines, self.summary, *filter(None, [self.line])])

    __repr__ = __str__

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("", "", "exercise", "", "difficulty", "time"):
            table.add_column(name, no_wrap=name in ("exercise", "difficulty", "time"))
        for (_, state), row in zip(self.rows, self.cells(), strict=True):
            table.add_row(*row, style={DONE: "green", TRIED: "yellow", OPEN: ""}[state])
        return Group(table, self.summary, *filter(None, [self.line]))

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(c)}</td>' for c in row) + "</tr>"
            for row in self.cells()
        )
        line = f"<div>{html.escape(self.line)}</div>" if self.line else ""
        return f"<table>{rows}</table><div>{html.escape(self.summary)}</div>{line}"


def overview(data: dict[str, Any], line: str = "") -> Overview:
    """The table for the progress in `data` (see `store`)."""
    entries = data["exercises"]
    return Overview([(e, _state(entries.get(e.id, {}))) for e in registry.exercises()], line)


def _state(entry: dict[str, Any]) -> str:
    return DONE if entry.get("passed") else TRIED if entry.get("attempts") else OPEN
