"""What a learner calls in a notebook: check, hint, solution, predict, progress.

Each returns something that shows itself, as text, on a terminal or as HTML, and holds no times, so
that a notebook that runs unattended has the same output every time.
"""

from __future__ import annotations

import ast
import json
import linecache
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssmcourse.course import find_root
from ssmcourse.grading import registry, store
from ssmcourse.grading.guard import Snapshot
from ssmcourse.grading.judge import verdict
from ssmcourse.grading.overview import Overview, overview
from ssmcourse.grading.registry import Exercise
from ssmcourse.grading.report import NOT_ATTEMPTED, REFUSED, Note, Report
from ssmcourse.grading.values import describe

registry.load()

NOTHING = object()  # what check() was called without


def _make_check() -> Callable[..., Report]:
    """`check` with its snapshot in a closure, where replacing names of modules does not reach."""
    snapshot = Snapshot()

    def check(target: Any = NOTHING, function: Any = None) -> Report:
        """Check an answer: `check(my_function)`, or `check("scan.blelloch", my_function)`.

        Args:
            target: the function (or class), whose name says which exercise it answers; or an id.
            function: the function, where `target` is an id.
        Returns:
            Report: one line for each layer, `.passed`, `.layers`, `.to_dict()`; shown by a notebook.

        Never raises for what the function does. The attempt is recorded (`ssmcourse progress`).
        """
        with snapshot.restored() as replaced:
            return _check(target, function, replaced)

    return check


def _check(target: Any, function: Any, replaced: list[str]) -> Report:
    if isinstance(function, str):
        target, function = function, target
    try:
        exercise, function = _which(target, function)
    except ValueError as error:
        return Report("", "", REFUSED, message=str(error))
    report = verdict(exercise, function)
    stale = _stale(exercise.name, function)
    if stale:
        report.notes.append(stale)
    if replaced:
        report.notes.append(f"Replaced in this notebook, and not used by the check: {', '.join(replaced)}.")
    if report.status == NOT_ATTEMPTED:
        report.next = f"Write {exercise.name} in the cell above, run it, then run this cell again."
        return report
    report.next = _after(exercise) if report.passed else f'A hint: hint("{exercise.id}").'
    line = record(exercise.id, report.passed)
    if line:
        report.notes.append(line)
    return report


def _stale(name: str, function: Any) -> str:
    """A note when a newer cell that defines the function did not run: this verdict is on an older one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    code = getattr(function, "__code__", None)
    if shell is None or code is None:
        return ""
    cells = [c for c in shell.user_ns.get("In", []) if re.search(rf"^\s*def {name}\b", c, re.M)]
    ran = "".join(linecache.getlines(code.co_filename))
    if not cells or not ran or ran.strip() == cells[-1].strip():
        return ""
    return (
        f"This is the {name} of an earlier run: the newest cell that defines it ended with an error before."
    )


def _which(target: Any, function: Any) -> tuple[Exercise, Any]:
    if isinstance(target, str):
        exercise = registry.find(target)
        if function is None:
            raise ValueError(
                f"check: got only the name {target!r}, expected the function itself: "
                f"check({exercise.name}), without quotes."
            )
        return exercise, function
    if function is not None:
        raise ValueError(
            f"check: got {describe(target)} first, expected an exercise's id, as in `ssmcourse list`."
        )
    if target is NOTHING:
        raise ValueError("check: got nothing, expected your function, as in check(run_memory).")
    name = getattr(target, "__name__", "")
    if name == "<lambda>":
        raise ValueError("check: got a lambda, which has no name; write your answer with `def`.")
    if not callable(target) or not name:
        raise ValueError(f"check: got {describe(target)}, expected the function itself, without parentheses.")
    return registry.find(name), target


def record(id: str, passed: bool) -> str:
    """Note an attempt in the progress; a line for the learner when that went wrong."""

    def change(data: dict[str, Any]) -> None:
        entry = data["exercises"].setdefault(id, {})
        entry["attempts"] = entry.get("attempts", 0) + 1
        entry["passed"] = bool(entry.get("passed")) or passed

    return _change(change)[1]


def _change(change: Callable[[dict[str, Any]], Any]) -> tuple[Any, str]:
    """`store.update`, where a file that cannot be used costs a line and nothing else."""
    try:
        return store.update(change)
    except store.StoreError as error:
        return change(store.empty()), str(error)


def _after(exercise: Exercise) -> str:
    every = registry.exercises()
    at = every.index(exercise)
    text = f"You have now: {exercise.unlocks}."
    if at + 1 == len(every):
        return f"{text} That was the last exercise so far."
    following = every[at + 1]
    if following.chapter == exercise.chapter:
        return f"{text} Next: {following.name}, in this notebook."
    return f"{text} The chapter's exercises end here; next is chapter {following.chapter}: `ssmcourse next`."


def hint(target: Any, n: int | None = None) -> Note:
    """A hint for an exercise: the first, at the next call the second, then the third.

    Args:
        target: the exercise's id or your function.
        n: 1, 2 or 3, for that one.
    """
    try:
        exercise = registry.find(_name(target))
    except ValueError as error:
        return Note("", str(error))
    if n is not None and (type(n) is not int or n not in (1, 2, 3)):
        return Note("", f"hint: got n = {n!r}, expected 1, 2 or 3.")

    def change(data: dict[str, Any]) -> int:
        entry = data["exercises"].setdefault(exercise.id, {})
        number = n or min(entry.get("hints", 0) + 1, 3)
        entry["hints"] = max(entry.get("hints", 0), number)
        return number

    number, line = _change(change)
    rest = (
        f'Again for the next one: hint("{exercise.id}").'
        if number < 3
        else f'That is the last one. After an attempt: solution("{exercise.id}").'
    )
    return Note(
        f"Hint {number} of 3, {exercise.title}",
        exercise.hints[number - 1],
        "\n".join(filter(None, [rest, line])),
    )


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "") or describe(target)


def solution(target: Any, force: bool = False) -> Note:
    """The worked answer, once you have attempted the exercise.

    Args:
        target: the exercise's id or your function.
        force: show it without an attempt.
    """
    try:
        exercise = registry.find(_name(target))
        attempts = store.read()[0]["exercises"].get(exercise.id, {}).get("attempts", 0)
    except ValueError as error:
        return Note("", str(error))
    except store.StoreError as error:
        attempts, line = 0, str(error)
    else:
        line = ""
    if not attempts and not force:
        text = f'It opens after one attempt of your own, or now: solution("{exercise.id}", force=True).'
        return Note(f"Solution, {exercise.title}", text, line)
    code = _worked(exercise)
    if code is None:
        return Note(
            "",
            f"No solution of {exercise.id} was found in {(find_root() or Path.cwd()) / 'solutions'}.",
        )
    return Note(f"Solution, {exercise.title}", code, line, code=True)


def _worked(exercise: Exercise) -> str | None:
    """The cell of solutions/NN_*.ipynb that defines the function."""
    folder = find_root()
    for path in sorted(folder.glob(f"solutions/{exercise.chapter}_*.ipynb")) if folder else []:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and exercise.name in _defined(source):
                return source
    return None


def _defined(source: str) -> set[str]:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return set()
    return {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


class Predict:
    """Record a guess, and see it again beside what was measured.

    `predict("start.half_life", 7, question="After how many steps?")` records 7; None in its place
    records nothing. `predict.show("start.half_life", measured)` shows both.
    """

    __name__ = "predict"

    def __call__(self, id: str, answer: Any = None, *, question: str = "") -> Note:
        """Record `answer`: a number, a string, True or False, or a short list of these."""
        if answer is None:
            old, line = _prediction(id)
            text = (
                f"Your prediction: {_said(old)}."
                if old
                else "No prediction yet: write yours in place of None."
            )
            return Note(question, text, line)
        plain = _plain(answer)
        if plain is None:
            return Note(
                question, f"predict: got {describe(answer)}, expected a number, a string or a short list."
            )

        def change(data: dict[str, Any]) -> None:
            data["predictions"][id] = {"question": question, "answer": plain}

        _, line = _change(change)
        return Note(
            question, f"Your prediction: {describe(plain)}. It will be shown beside the measured one.", line
        )

    def show(self, id: str, measured: Any = None) -> Note:
        """The recorded prediction beside the measured value."""
        old, line = _prediction(id)
        mine = _said(old) if old else "no prediction recorded; write one in the cell above"
        plain = _plain(measured)
        text = f"Your prediction: {mine}"
        if measured is not None:
            text += f"\nMeasured:        {describe(measured if plain is None else plain)}"
        return Note((old or {}).get("question", ""), text, line)


def _prediction(id: str) -> tuple[dict[str, Any] | None, str]:
    try:
        data, line = store.read()
    except store.StoreError as error:
        return None, str(error)
    return data["predictions"].get(id), line


def _said(entry: dict[str, Any]) -> str:
    return describe(entry.get("answer"))


def _plain(value: Any) -> Any:
    """A value that JSON can hold, or None where it is too much to be a guess."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        items = [_plain(v) for v in value]
        return None if len(items) > 32 or None in items else items
    if isinstance(value, str):
        return value[:500]
    return value if isinstance(value, (bool, int, float)) else None


predict = Predict()


def progress() -> Overview:
    """What is done and what is next, for every exercise of the course."""
    try:
        data, line = store.read()
    except store.StoreError as error:
        data, line = store.empty(), str(error)
    return overview(data, line)


check = _make_check()  # last, so that its snapshot holds all of this module
