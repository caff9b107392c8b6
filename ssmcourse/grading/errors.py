"""A learner's exception in two lines: what it says, and the line of their code that it came from."""

from __future__ import annotations

import dis
import linecache
import sysconfig
from pathlib import Path
from types import TracebackType

_FOREIGN = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    | {str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parents[2] / "kernels")}
)


def is_stub(error: BaseException) -> bool:
    """Whether `error` is a `raise NotImplementedError` that the learner has not yet replaced.

    torch raises the same type for operators that it lacks; there the failing instruction is a call.
    """
    frame = _own(error)
    if not isinstance(error, NotImplementedError) or frame is None or frame.tb_next is not None:
        return False
    code = frame.tb_frame.f_code.co_code
    return dis.opname[code[frame.tb_lasti]] == "RAISE_VARARGS"


def is_foreign(filename: str) -> bool:
    """Whether a source file belongs to Python, to a package or to the course, not to the learner."""
    return filename.startswith((*_FOREIGN, "<frozen"))


def _own(error: BaseException) -> TracebackType | None:
    """The innermost traceback entry that is in the learner's code."""
    entry, found = error.__traceback__, None
    while entry is not None:
        if not is_foreign(entry.tb_frame.f_code.co_filename):
            found = entry
        entry = entry.tb_next
    return found


def tell(error: BaseException) -> str:
    """One or two lines for the learner, without a traceback of ours."""
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message cannot be shown)"
    text = text if len(text) <= 300 else text[:297] + "..."
    if isinstance(error, SystemExit):
        first = "Your code calls sys.exit(), which would end the notebook. Use return."
    elif isinstance(error, RecursionError):
        first = "Your function calls itself without end (RecursionError): which call stops?"
    elif isinstance(error, SyntaxError):
        return f"{name}: {error.msg}, line {error.lineno}: {(error.text or '').strip()}"
    elif isinstance(error, NotImplementedError) and is_stub(error):
        first = "A `raise NotImplementedError` is still in the way here."
    else:
        first = f"Your code raises {name}: {text}" if text else f"Your code raises {name}."
    line = where(error)
    return f"{first}\n{line}" if line else first


def where(error: BaseException) -> str:
    """`in f, line 3: h = a * h + x`, or nothing when the line is not in the learner's code."""
    entry = _own(error)
    if entry is None:
        return ""
    code = entry.tb_frame.f_code
    return place(code.co_name, code.co_filename, entry.tb_lineno)


def place(name: str, filename: str, lineno: int) -> str:
    """A line of source code and where it stands."""
    source = linecache.getline(filename, lineno).strip()
    start = f"line {lineno}" if name == "<module>" else f"in {name}, line {lineno}"
    source = source if len(source) <= 100 else source[:97] + "..."
    return f"{start}: {source}" if source else start
