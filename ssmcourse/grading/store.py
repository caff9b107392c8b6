"""What a learner has done: one small JSON file beside the course, never lost.

    {"format": "ssmcourse progress", "version": 1,
     "exercises": {"start.run_memory": {"attempts": 2, "passed": true, "hints": 1}},
     "predictions": {"start.half_life": {"question": "...", "answer": 7}}}

Every change reads the file, changes it and writes it again, under a lock that other notebooks
respect. A write goes to a new file beside it, which then takes its name in one step: a process killed
at any moment leaves the old file or the new one. A file that cannot be read is set aside, not thrown
away; one that a newer course wrote is left alone. The file is `progress.json` in the course's folder,
or in the user's data folder where only the library is installed; SSMCOURSE_PROGRESS overrides both.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ssmcourse.course import find_root

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT, VERSION = "ssmcourse progress", 1
PATIENCE = 5.0  # seconds to wait for another notebook's lock
STALE = 10.0  # a lock file of this age was left by a process that died (only where there is no fcntl)


class StoreError(Exception):
    """The file cannot be used; the message is one line for the learner."""


def path() -> Path:
    """Where the progress is kept."""
    override = os.environ.get("SSMCOURSE_PROGRESS")
    if override:
        return Path(override)
    root = find_root()
    return (root or _data_folder()) / "progress.json"


def _data_folder() -> Path:
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "ssmcourse"


def empty() -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "exercises": {}, "predictions": {}}


def read() -> tuple[dict[str, Any], str]:
    """The progress, and a line for the learner when a broken file had to be set aside.

    Raises:
        StoreError: the file is a newer course's, or cannot be opened.
    """
    file = path()
    data = _parse(file)
    if data is not None:
        return data, ""
    with _locked(file):
        return _read_or_set_aside(file)


def update(change: Callable[[dict[str, Any]], Any]) -> tuple[Any, str]:
    """Apply `change` to the progress and store it; what it returned, and a line as in `read`.

    Raises:
        StoreError: the file is a newer course's, locked for too long, or cannot be written.
    """
    file = path()
    with _locked(file):
        data, line = _read_or_set_aside(file)
        result = change(data)
        _write(file, data)
    return result, line


def _read_or_set_aside(file: Path) -> tuple[dict[str, Any], str]:
    data = _parse(file)
    if data is not None:
        return data, ""
    aside = _free_name(file)
    try:
        os.replace(file, aside)
    except OSError as error:
        raise StoreError(f"{file} cannot be read and cannot be set aside: {error.strerror}.") from None
    return empty(), f"{file.name} could not be read; it is kept as {aside.name} and a new one begins."


def _parse(file: Path) -> dict[str, Any] | None:
    """The content; None when it is not ours or not whole."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return empty()
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise StoreError(f"Progress cannot be read: {file}: {error.strerror}.") from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("format") != FORMAT or type(data.get("version")) is not int:
        return None
    if data["version"] > VERSION:
        raise StoreError(
            f"{file} was written by a newer version of the course (format {data['version']}, this one knows "
            f"{VERSION}). Nothing was changed; update the course with `git pull`."
        )
    for part in ("exercises", "predictions"):
        entries = data.setdefault(part, {})
        if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
            return None
    return data


def _is_entry(entry: Any) -> bool:
    """Whether an entry's fields, where they are there, are what this module writes."""
    if not isinstance(entry, dict):
        return False
    counts = [entry.get("attempts", 0), entry.get("hints", 0)]
    return all(type(n) is int and n >= 0 for n in counts) and isinstance(entry.get("question", ""), str)


def _free_name(file: Path) -> Path:
    n = 1
    while (aside := file.with_name(f"{file.stem}.corrupt-{n}{file.suffix}")).exists():
        n += 1
    return aside


def _write(file: Path, data: dict[str, Any]) -> None:
    for leftover in file.parent.glob(f".{file.name}.*.new"):  # of a killed writer: we hold the lock
        leftover.unlink(missing_ok=True)
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".new", dir=file.parent)
        with open(handle, "w", encoding="utf-8") as out:
            json.dump(data, out, indent=1, sort_keys=True, ensure_ascii=False)
            out.write("\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, file)
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"Progress could not be saved to {file}: {reason}.") from None


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock = file.with_name(f".{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _flock(lock) if fcntl else _lock_file(lock):
            yield
    except OSError as error:
        raise StoreError(f"Progress could not be saved beside {file}: {error.strerror}.") from None


@contextlib.contextmanager
def _flock(lock: Path) -> Iterator[None]:
    """A lock that the system drops when its holder dies. The file stays: removing it would race."""
    assert fcntl is not None
    with lock.open("a") as handle:
        for _ in _attempts(lock):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
        yield


@contextlib.contextmanager
def _lock_file(lock: Path) -> Iterator[None]:
    """A lock that is the existence of a file; one left by a dead process is taken over."""
    for _ in _attempts(lock):
        with contextlib.suppress(FileExistsError, PermissionError):
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        with contextlib.suppress(OSError):
            if time.time() - lock.stat().st_mtime > STALE:
                lock.replace(lock.with_name(f"{lock.name}.{os.getpid()}"))
                lock.with_name(f"{lock.name}.{os.getpid()}").unlink()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _attempts(lock: Path) -> Iterator[None]:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        yield
        time.sleep(0.01)
    raise StoreError(f"Progress was not saved: another notebook has held {lock.name} for {PATIENCE:g} s.")
