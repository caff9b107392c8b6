"""Load a learner's notebook or file without a notebook server, and judge what it defines.

Runs in a process of its own (`worker`). Cells run in order in one namespace; an error stays with its
cell. IPython's magics and shell lines are left out, `check`, `hint`, `solution`, `predict`,
`progress`, `display` and the explorables do nothing.
"""

from __future__ import annotations

import ast
import contextlib
import json
import linecache
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmcourse.course import WrongCall
from ssmcourse.grading import registry
from ssmcourse.grading.capture import Printed, captured
from ssmcourse.grading.errors import tell as told
from ssmcourse.grading.judge import verdict
from ssmcourse.grading.registry import Exercise
from ssmcourse.grading.report import FAILED, NOT_ATTEMPTED, Report
from ssmcourse.grading.runner import run

Tell = Callable[[dict[str, Any]], None]
CELL_LIMIT = 20.0  # seconds for one cell
SILENT = ("check", "hint", "solution", "predict", "progress")


@dataclass(frozen=True)
class Cell:
    """A piece of the file, with the name that an error message gives it."""

    label: str
    source: str


def cells(path: Path) -> list[Cell]:
    """The code cells of a notebook; the `# %%` cells of a .py file, or all of it.

    Raises:
        WrongCall: the file is not there, or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise WrongCall(f"{path} cannot be read: {reason}.") from None
    if path.suffix == ".py":
        return _percent_cells(path.name, text)
    try:
        found = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        return [Cell(f"cell {i}", "".join(c["source"])) for i, c in enumerate(found, 1)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WrongCall(
            f"{path} is not a notebook: expected the .ipynb format, version 4, or a .py file."
        ) from None


def _percent_cells(name: str, text: str) -> list[Cell]:
    """The `# %%` cells, each with empty lines before it so that its line numbers are the file's."""
    found, line = [], 0
    for part in re.split(r"^(?=# %%)", text, flags=re.M):
        if part.strip() and not part.startswith("# %% [markdown]"):
            found.append("\n" * line + part)
        line += part.count("\n")
    return [Cell(name if len(found) == 1 else f"cell {i}", source) for i, source in enumerate(found, 1)]


def plain(source: str) -> str:
    """Python without IPython's own syntax; left alone when it compiles as it is."""
    with contextlib.suppress(SyntaxError, ValueError):
        ast.parse(source)
        return source
    lines = source.splitlines()
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    magic = re.match(r"\s*%%(\w+)", lines[first]) if lines else None
    if magic:
        if magic[1] not in ("time", "timeit", "capture"):
            return ""
        lines[first] = ""
    return "\n".join(_plain_line(line) for line in lines)


def _plain_line(line: str) -> str:
    """One line of the same indentation: `%time x = 1` keeps its statement, others become `pass`."""
    if timed := re.match(r"(\s*)%time\s+(.+)", line):
        return timed[1] + timed[2]
    if re.match(r"\s*[%!?]", line) or re.match(r"\s*[\w.]+\?{1,2}\s*$", line):
        return re.match(r"\s*", line)[0] + "pass"  # type: ignore[index]
    return re.sub(r"^(\s*[\w, ]+=\s*)[%!].*$", r"\1None", line)


class Silent:
    """Whatever is asked of it, it does nothing."""

    def __getattr__(self, name: str) -> Silent:
        if name.startswith("_") and name.endswith("_"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Silent:
        return self

    def __bool__(self) -> bool:
        return False


@dataclass
class Loaded:
    """What a file left behind: its names, and what went wrong in which cell."""

    names: dict[str, Any]
    errors: dict[int, str]
    cells: list[Cell]


def load(path: Path, *, skip: dict[int, str] | None = None, limit: float = CELL_LIMIT, tell: Tell) -> Loaded:
    """Run the cells of `path` except those in `skip`, which maps their indices to what went wrong."""
    import ssmcourse
    from ssmcourse import grading

    silent = Silent()
    for name in SILENT:
        setattr(ssmcourse, name, silent)
        setattr(grading, name, silent)
    setattr(ssmcourse, "explore", silent)  # noqa: B010
    names: dict[str, Any] = {"__name__": "__main__", "display": silent, "get_ipython": silent}
    loaded = Loaded(names, dict(skip or {}), cells(path))
    for i, cell in enumerate(loaded.cells):
        if i in loaded.errors:
            continue
        tell({"cell": i, "call": limit})
        error = _run_cell(cell, names, limit)
        if error:
            loaded.errors[i] = error
            tell({"wrong": i, "because": error})
    tell({"loaded": True})
    return loaded


def _run_cell(cell: Cell, names: dict[str, Any], limit: float) -> str:
    """What went wrong, or nothing."""
    source = plain(cell.source)
    linecache.cache[cell.label] = (len(source), None, source.splitlines(keepends=True), cell.label)
    try:
        code = compile(source, cell.label, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return f"{cell.label} does not compile. {told(error)}"
    with captured(Printed()):
        outcome = run(lambda: exec(code, names), limit)
    if outcome.timed_out:
        return f"{cell.label} was stopped after {limit:g} s."
    return f"{cell.label}: {told(outcome.error)}" if outcome.error else ""


def chapter_of(path: Path) -> str:
    """The two digits that a chapter's file begins with, or nothing."""
    found = re.match(r"(\d\d)_", path.name)
    return found[1] if found else ""


def exercises_in(path: Path) -> list[Exercise]:
    """The exercises of the chapter in the file's name, and all others that the file defines."""
    sources = [cell.source for cell in cells(path)]
    return [
        e
        for e in registry.exercises()
        if e.chapter == chapter_of(path) or any(_home(e.name).search(source) for source in sources)
    ]


def _home(name: str) -> re.Pattern[str]:
    """What a cell that defines `name` looks like, also where it does not compile."""
    return re.compile(rf"^\s*(?:async\s+)?(?:def|class)\s+{name}\b|^{name}\s*=", re.M)


def judge_file(job: dict[str, Any], snapshot: Any, tell: Tell) -> None:
    """Load `job["file"]` and tell a report for each of its exercises."""
    path = Path(job["file"])
    skip = {int(i): text for i, text in job.get("skip", {}).items()}
    loaded = load(path, skip=skip, limit=job.get("limit", CELL_LIMIT), tell=tell)
    done = set(job.get("done", ()))
    for exercise in exercises_in(path):
        if exercise.id in done:
            continue
        tell({"exercise": exercise.id})
        with snapshot.restored() as replaced:
            report = _report(exercise, loaded)
            if replaced:
                report.notes.append(f"Replaced by this file, and not used: {', '.join(replaced)}.")
            tell({"report": report.to_dict()})
    tell({"end": True})


def _report(exercise: Exercise, loaded: Loaded) -> Report:
    if exercise.name in loaded.names:
        return verdict(exercise, loaded.names[exercise.name])
    for i, error in loaded.errors.items():
        if _home(exercise.name).search(loaded.cells[i].source):
            return Report(exercise.id, exercise.title, FAILED, message=error)
    because = "".join(f" {error}" for error in loaded.errors.values())
    text = f"{exercise.name} is not defined in this file.{because}"
    return Report(exercise.id, exercise.title, NOT_ATTEMPTED, message=text)
