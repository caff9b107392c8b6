"""Grade files: every exercise in them, each file in a fresh process (`ssmcourse grade`, pytest)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ssmcourse.course import CourseError, WrongCall, chapter, root
from ssmcourse.grading import registry
from ssmcourse.grading.load import CELL_LIMIT, cells
from ssmcourse.grading.process import Child, Died, Overdue
from ssmcourse.grading.report import FAILED, NOT_ATTEMPTED, PASSED, Layer, Report
from ssmcourse.grading.trial import ENDLESS, out_of_time


@dataclass
class Graded:
    """A file and the verdict on each of its exercises."""

    path: Path
    reports: list[Report]

    def to_dict(self) -> dict[str, Any]:
        return {"file": str(self.path), "exercises": [r.to_dict() for r in self.reports]}


def files(path: Path | None) -> list[Path]:
    """The files to grade: one, those of a folder, or the learner's exercises in work/ (else exercises/).

    Raises:
        WrongCall: nothing is there to grade.
    """
    if path is None:
        mine = root() / "work" / "exercises"
        path = mine if mine.is_dir() else root() / "exercises"
    if not path.exists():
        path = _of_chapter(path)
    if path.is_file():
        return [path]
    found = [p for f in (path, path / "exercises") for p in sorted(f.glob("[!.]*.ipynb"))]
    if not found:
        raise WrongCall(f"{path} holds no notebook. `ssmcourse start 00` puts the first ones into work/.")
    return found


def _of_chapter(named: Path) -> Path:
    """The exercises of a chapter that was named by its number: the learner's, else the course's."""
    try:
        stem = chapter(str(named)).stem
    except CourseError:
        raise WrongCall(
            f"{named} does not exist: expected a notebook, a .py file, a folder of notebooks, or a chapter, as 00."
        ) from None
    mine, ours = (root() / room / f"{stem}.ipynb" for room in ("work/exercises", "exercises"))
    return mine if mine.exists() else ours


def grade_file(path: Path, limit: float = CELL_LIMIT) -> Graded:
    """The verdict on each exercise of a notebook or .py file; its cells may take `limit` seconds each.

    Code that ends or blocks its process costs the exercise or the cell that it is in, no other: the
    rest is judged in another process.

    Raises:
        CourseError: the file cannot be read.
    """
    cells(path)  # refuse what is no notebook before a process starts
    graded, skip = Graded(path, []), {}
    while True:
        done = [r.id for r in graded.reports]
        job = {"file": str(path.resolve()), "limit": limit, "done": done, "skip": skip}
        with Child(job) as child:
            if _follow(child, graded.reports, skip, limit):
                return graded


def _follow(child: Child, reports: list[Report], skip: dict[str, str], limit: float) -> bool:
    """Collect reports; False when the child was lost, and what it was busy with has been noted."""
    cell = exercise = None
    while True:
        try:
            event = child.next()
        except Overdue:
            end = "was stopped"
        except Died as how:
            end = f"ended the process that it ran in ({how})"
        else:
            cell = None if "loaded" in event else event.get("cell", cell)
            exercise = None if "report" in event else event.get("exercise", exercise)
            if "wrong" in event:
                skip[str(event["wrong"])] = event["because"]
            if "report" in event:
                reports.append(Report.from_dict(event["report"]))
            if "end" in event:
                return True
            continue
        if exercise:
            reports.append(_lost(exercise, end))
            return False
        if cell is None:
            raise CourseError(
                f"The process that grades {end} before it could begin. `ssmcourse doctor` may know why."
            )
        after = f" after {limit:g} s" if end == "was stopped" else ""
        skip[str(cell)] = f"cell {cell + 1} {end}{after}."
        return False


def _lost(id: str, end: str) -> Report:
    exercise = registry.find(id)
    report = Report(id, exercise.title, FAILED)
    if end == "was stopped":
        report.layers.append(Layer("your code comes back", FAILED, out_of_time(exercise), ENDLESS))
    else:
        report.message = f"Your code {end}."
    return report


def junit(graded: list[Graded]) -> str:
    """The verdicts as JUnit XML: failed exercises are failures, those not attempted are skipped."""
    every = [(g, r) for g in graded for r in g.reports]
    counts = {
        "tests": len(every),
        "failures": sum(r.status == FAILED for _, r in every),
        "skipped": sum(r.status == NOT_ATTEMPTED for _, r in every),
        "errors": 0,
    }
    attributes = {name: str(n) for name, n in counts.items()}
    suites = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(suites, "testsuite", attributes | {"name": "ssmcourse"})
    for g, report in every:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": g.path.stem, "name": report.id, "file": str(g.path)}
        )
        if report.status == FAILED:
            ElementTree.SubElement(case, "failure", {"message": first_words(report)}).text = _printable(
                str(report)
            )
        elif report.status == NOT_ATTEMPTED:
            ElementTree.SubElement(case, "skipped", {"message": report.message or NOT_ATTEMPTED})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c >= " " or c in "\n\t")


def first_words(report: Report) -> str:
    """One line: the layer that failed, and the likely mistake or the first line of its message."""
    if report.message:
        return _printable(report.message.splitlines()[0])
    for layer in report.layers:
        if layer.status == FAILED:
            reason = layer.diagnosis or layer.message.splitlines()[0]
            return _printable(f"{layer.name}: {reason}")
    return report.status


def failed(graded: list[Graded]) -> bool:
    """Whether any attempted exercise is wrong. What was not attempted does not count."""
    return any(r.status not in (PASSED, NOT_ATTEMPTED) for g in graded for r in g.reports)
