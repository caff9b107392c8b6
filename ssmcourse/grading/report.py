"""What a check found, and how it is shown: as text, on a terminal, in a notebook."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from typing import Any

PASSED, FAILED, NOT_REACHED = "passed", "failed", "not reached"
NOT_ATTEMPTED, REFUSED = "not attempted", "refused"
MARKS = {PASSED: "✓", FAILED: "✗", NOT_REACHED: "·", NOT_ATTEMPTED: "–", REFUSED: "!"}


@dataclass
class Layer:
    """One line of a report."""

    name: str
    status: str
    message: str = ""
    diagnosis: str = ""


@dataclass
class Report:
    """The verdict on one exercise.

    `status` is `passed`, `failed`, `not attempted` (the stub is still there), or `refused` (there was
    nothing to check; `message` says why). The text form holds no times, so that a notebook's output
    is the same whenever it runs.
    """

    id: str
    title: str
    status: str
    layers: list[Layer] = field(default_factory=list)
    message: str = ""
    notes: list[str] = field(default_factory=list)
    printed: str = ""
    next: str = ""

    @property
    def passed(self) -> bool:
        return self.status == PASSED

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"passed": self.passed}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The inverse of `to_dict`."""
        fields: dict[str, Any] = {k: v for k, v in data.items() if k != "passed"}
        fields["layers"] = [Layer(**layer) for layer in data["layers"]]
        return cls(**fields)

    def lines(self) -> list[tuple[str, str]]:
        """(status, text) for every line shown; the status chooses mark and colour."""
        head = f"{self.title} ({self.id}): {self.status}" if self.id else self.message
        out = [(self.status, head)]
        if self.id and self.message:
            out += [("", line) for line in self.message.splitlines()]
        for layer in self.layers:
            late = f" ({NOT_REACHED})" if layer.status == NOT_REACHED else ""
            out.append((layer.status, layer.name + late))
            for text in layer.message.splitlines():
                out.append(("values" if text.startswith(("expected ", "got ")) else "", text))
            if layer.diagnosis:
                out.append(("likely", f"Likely mistake: {layer.diagnosis}."))
        out += [("", line) for note in self.notes for line in note.splitlines()]
        if self.printed:
            out.append(("", "Your code printed:"))
            out += [("printed", line) for line in self.printed.splitlines()]
        if self.next:
            out.append(("next", self.next))
        return out

    def __str__(self) -> str:
        rows = []
        for i, (status, text) in enumerate(self.lines()):
            indent = "" if i == 0 or status == "next" else "  " if status in MARKS else "    "
            mark = MARKS.get(status, "")
            rows.append(f"{indent}{mark}{' ' if mark else ''}{text}")
        return "\n".join(rows)

    __repr__ = __str__

    def __rich__(self) -> Any:
        from rich.text import Text

        style = {PASSED: "green", FAILED: "bold red", REFUSED: "red", "likely": "bold yellow", "next": "cyan"}
        style |= {NOT_REACHED: "dim", "printed": "dim"}
        out = Text()
        for (status, _), row in zip(self.lines(), str(self).split("\n"), strict=True):
            out.append(row + "\n", style.get(status, ""))
        out.rstrip()
        return out

    def _repr_html_(self) -> str:
        return _html(self)


_COLOURS = {
    PASSED: "var(--jp-success-color1, #2e7d32)",
    FAILED: "var(--jp-error-color1, #d32f2f)",
    REFUSED: "var(--jp-error-color1, #d32f2f)",
    NOT_ATTEMPTED: "var(--jp-warn-color1, #b26a00)",
    NOT_REACHED: "var(--jp-ui-font-color2, #757575)",
}


_MONO = "font-family:var(--jp-code-font-family, monospace);font-size:0.95em;"
_FRAME = (
    "border-left:4px solid {edge};padding:6px 12px;line-height:1.5;max-width:52em;overflow-wrap:anywhere;"
    "color:var(--jp-ui-font-color1, currentColor)"
)


def _html(report: Report) -> str:
    text = "var(--jp-ui-font-color1, currentColor)"
    soft = "var(--jp-layout-color2, rgba(128, 128, 128, 0.12))"
    edge = _COLOURS[report.status]
    rows = []
    for i, (status, line) in enumerate(report.lines()):
        line = html.escape(line)
        if status in MARKS:
            box = f"color:{_COLOURS[status]};font-weight:700;display:inline-block;width:1.2em"
            mark = f'<span style="{box}">{MARKS[status]}</span>'
            pale = f"color:{_COLOURS[NOT_REACHED]};" if status == NOT_REACHED else ""
            bold = "font-weight:600;margin-bottom:4px;" if i == 0 else ""
            rows.append(f'<div style="{pale}{bold}">{mark}{line}</div>')
        elif status == "printed":
            rows.append(f'<pre style="margin:0 0 0 1.4em;background:{soft};color:{text}">{line}</pre>')
        elif status == "next":
            rows.append(f'<div style="margin-top:6px;color:{text}">{line}</div>')
        else:
            extra = {"likely": "font-weight:600;", "values": _MONO}.get(status, "")
            rows.append(f'<div style="margin-left:1.4em;white-space:pre-wrap;{extra}">{line}</div>')
    passed = str(report.passed).lower()
    return (
        f'<div role="status" class="ssm-report" data-passed="{passed}" style="{_FRAME.format(edge=edge)}">'
        f"{''.join(rows)}</div>"
    )


@dataclass
class Note:
    """A few lines for the learner: a hint, a solution, a prediction."""

    title: str
    text: str
    rest: str = ""
    code: bool = False

    def __str__(self) -> str:
        return "\n".join(part for part in (self.title, self.text, self.rest) if part)

    __repr__ = __str__

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(str(self))

    def _repr_html_(self) -> str:
        mono = _MONO if self.code or "\n" in self.text else ""
        parts = [
            f'<div style="font-weight:600">{html.escape(self.title)}</div>' if self.title else "",
            f'<div style="white-space:pre-wrap;{mono}">{html.escape(self.text)}</div>',
            f'<div style="color:var(--jp-ui-font-color2, #757575)">{html.escape(self.rest)}</div>'
            if self.rest
            else "",
        ]
        return f'<div style="{_FRAME.format(edge="var(--jp-border-color1, #9e9e9e)")}">{"".join(parts)}</div>'
