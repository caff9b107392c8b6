"""The course's folder: where it is, which chapters it has, and the learner's copies in work/.

A learner works on copies: `work/notebooks/` and `work/exercises/` mirror `notebooks/` and
`exercises/`, so that links between them keep working. Nothing here ever overwrites a file.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("notebooks", "exercises")


class CourseError(Exception):
    """Something a learner can mend, told in one line."""


class WrongCall(CourseError):  # noqa: N818 - it names the exit code
    """What was asked for does not exist."""


def find_root() -> Path | None:
    """The folder of the course: above the current folder, else around this package, else None."""
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "notebooks").is_dir() and _is_project(folder / "pyproject.toml"):
                return folder
    return None


def root() -> Path:
    """The folder of the course.

    Raises:
        CourseError: there is none, as where only the library was installed.
    """
    found = find_root()
    if found is None:
        raise CourseError(
            f"No course found in {Path.cwd()} or above. Clone its repository and run this command inside it."
        )
    return found


def _is_project(pyproject: Path) -> bool:
    try:
        return tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["name"] == "ssmcourse"
    except (OSError, ValueError, KeyError):
        return False


@dataclass(frozen=True)
class Chapter:
    """A chapter: its two digits, its file name without ending, and its title."""

    number: str
    stem: str
    title: str


def chapters() -> list[Chapter]:
    """The chapters that this clone has, in order."""
    found = []
    for path in sorted((root() / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        found.append(Chapter(path.stem[:2], path.stem, _title(path)))
    return found


def _title(notebook: Path) -> str:
    try:
        first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
        heading = re.search(r"^# (?:\d\d )?(.+)$", first, re.M)
        return heading.group(1) if heading else notebook.stem
    except (ValueError, KeyError, IndexError):
        return notebook.stem


def chapter(number: str) -> Chapter:
    """The chapter with this number; "1" means "01".

    Raises:
        WrongCall: there is none; the line lists those that there are.
    """
    every = chapters()
    wanted = number.zfill(2) if number.isdigit() else number
    for candidate in every:
        if wanted in (candidate.number, candidate.stem):
            return candidate
    known = ", ".join(c.number for c in every) or "none yet"
    raise WrongCall(f"There is no chapter {number!r}; there are {known}. `ssmcourse list` names them.")


@dataclass(frozen=True)
class Copies:
    """What `start` did: the learner's files, and which of them were there before."""

    made: tuple[Path, ...]
    kept: tuple[Path, ...]

    @property
    def lesson(self) -> Path:
        """The learner's copy of the lesson, or of the exercises where a chapter has no lesson."""
        return sorted(self.made + self.kept, key=lambda p: p.parent.name != "notebooks")[0]


def start(number: str) -> Copies:
    """Give the learner a copy of a chapter's lesson and exercises in work/.

    A file that is there is kept as it is, whatever it holds. A new one appears whole or not at all.

    Raises:
        CourseError: an unknown chapter, or a folder that cannot be written to.
    """
    base, made, kept = root(), [], []
    stem = chapter(number).stem
    for room in ROOMS:
        source, target = base / room / f"{stem}.ipynb", base / "work" / room / f"{stem}.ipynb"
        if not source.exists():
            continue
        try:
            (made if _copy_new(source, target) else kept).append(target)
        except OSError as error:
            raise CourseError(
                f"Cannot write {target}: {error.strerror}. Check the folder's permissions and free space."
            ) from None
    return Copies(tuple(made), tuple(kept))


def _unrun(notebook: Path) -> bytes:
    """A notebook without its stored outputs: whoever predicts should not see the answer below."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
    except ValueError:
        raise CourseError(
            f"{notebook} is damaged. `git checkout -- {notebook.name}` in its folder restores it."
        ) from None
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _copy_new(source: Path, target: Path) -> bool:
    """Copy unless `target` exists, even if it appears at this moment; whether it was copied."""
    if target.exists():
        return False
    content = _unrun(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        scratch.write_bytes(content)
        os.link(scratch, target)  # unlike a rename, refuses to replace what is there
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, or a full one
        return _create(target, content)
    finally:
        scratch.unlink(missing_ok=True)


def _create(target: Path, content: bytes) -> bool:
    try:
        file = target.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        target.unlink()  # ours, and not whole
        raise
    return True
