"""`pytest exercises/`: each exercise of a notebook is one item.

Passed, failed with the report as its message, or skipped as not attempted; `--junit-xml` then works
as for any test. Notebooks in a folder named `exercises` are collected, and those named on the command
line. With `--nbval` or `--nbval-lax` the notebooks are nbval's and this plugin does nothing. It is
loaded by every pytest in the environment, so it imports nothing before there is such a notebook.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix != ".ipynb" or file_path.name.startswith("."):
        return None
    options = parent.config.option
    if getattr(options, "nbval", False) or getattr(options, "nbval_lax", False):
        return None
    named = [Path(str(a).partition("::")[0]).absolute() for a in parent.config.args]
    if file_path.parent.name == "exercises" or file_path in named:
        return ExerciseNotebook.from_parent(parent, path=file_path)
    return None


class ExerciseNotebook(pytest.File):
    """A notebook; it is graded once, when the first of its items runs."""

    _reports: dict[str, Any] | None = None

    def collect(self) -> Iterator[pytest.Item]:
        from ssmcourse.course import CourseError
        from ssmcourse.grading.load import exercises_in

        try:
            found = exercises_in(self.path)
        except CourseError as error:
            raise self.CollectError(str(error)) from None
        for exercise in found:
            yield ExerciseItem.from_parent(self, name=exercise.id)

    def report(self, id: str) -> Any:
        if self._reports is None:
            from ssmcourse.grading.grade import grade_file

            self._reports = {r.id: r for r in grade_file(self.path).reports}
        return self._reports[id]


class ExerciseItem(pytest.Item):
    """One exercise."""

    parent: ExerciseNotebook

    def runtest(self) -> None:
        report = self.parent.report(self.name)
        if report.status == "not attempted":
            pytest.skip(report.message or report.status)
        if not report.passed:
            pytest.fail(str(report), pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name
