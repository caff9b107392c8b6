"""The command `ssmcourse bench`: what was asked for, and the report while it is measured."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ssmcourse.bench import session, tables
from ssmcourse.bench.operators import OPERATORS
from ssmcourse.bench.session import Plan
from ssmcourse.course import WrongCall


def names(operator: str | None) -> list[str]:
    """The operators asked for.

    Raises:
        WrongCall: there is none of that name.
    """
    if operator is None:
        return list(OPERATORS)
    if operator not in OPERATORS:
        raise WrongCall(f"There is no operator {operator!r} to measure; there are {', '.join(OPERATORS)}.")
    return [operator]


def static(stored: dict[str, Any], operator: str | None) -> str:
    """What the compilers made of the GPU kernels (of an operator), from benchmarks/results/kernels.json.

    Raises:
        WrongCall: the operator has none.
    """
    from ssmcourse.kernels.compiling import Compiled, table

    rows = [Compiled(**row | {"problems": tuple(row["problems"])}) for row in stored["compiled"]]
    of = {row: row.name.split()[0].partition(".")[0] for row in rows}
    known = sorted(set(of.values()))
    if operator and operator not in known:
        raise WrongCall(f"--static: got {operator!r}, expected one of {', '.join(known)}.")
    shown = [row for row in rows if operator in (None, of[row])]
    by = " and ".join(f"{name} {version}" for name, version in stored["versions"].items())
    made = f"Compiled on {stored['date']} by {by}; `make kernels` does it again."
    return f"{table(shown, stored['left_out'])}\n{made}"


def plan(
    operator: str | None,
    threads: Sequence[int] | None,
    sizes: Sequence[str] | None,
    *,
    quick: bool,
    memory: bool,
) -> Plan:
    """The options of the command line as a plan.

    Raises:
        WrongCall: sizes that are none, or do not fit the operator.
    """
    names(operator)
    if sizes and operator is None:
        raise WrongCall("--sizes: needs an operator, since every operator has its own.")
    own = tuple(_parsed(operator, text) for text in sizes or ()) if operator else ()
    return Plan(threads=tuple(threads or (1, 2)), quick=quick, memory=memory, sizes=own)


def _parsed(operator: str, text: str) -> tuple[int, ...]:
    letters = OPERATORS[operator].letters
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != len(letters.split()) or min(numbers, default=0) < 1:
        example = ",".join(map(str, next(iter(OPERATORS[operator].cases))))
        raise WrongCall(f"--sizes: got {text!r}, expected {letters} of {operator}, as {example}.")
    return numbers


def measured(name: str, plan: Plan) -> dict[str, Any]:
    """Measure an operator and print its tables.

    What is being measured stands in a line that goes away, or, where there is no terminal, on stderr.
    """
    console = Console(highlight=False)
    try:
        if console.is_terminal:
            with console.status(name) as status:
                result = session.measure(name, plan, status.update)
        else:
            result = session.measure(name, plan, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print(
            f"Stopped at {name}, of which nothing is kept; operators before it have their tables above, and "
            f"are in the --json file. To go on, run `ssmcourse bench {name}`.",
            file=sys.stderr,
        )
        raise
    for piece in tables.terminal(result):
        console.print(piece)
    return result


def sound(result: dict[str, Any]) -> bool:
    """Nothing broke off, and all of ours are right."""
    mine = [row for case in result["cases"] for row in case["rows"] if row["kind"] == "ours"]
    right = all(
        "failed" not in row and row.get(d, {}).get("valid", True) for row in mine for d in tables.DIRECTIONS
    )
    return right and not result["failed"]


# --- The file of --json ------------------------------------------------------------------------------


def check_writable(file: Path) -> None:
    """Find out whether `write` will do, and leave everything as it was.

    Raises:
        WrongCall: it will not.
    """
    with _told(file):
        if _is_replaced(file):
            _beside(file).touch(exist_ok=False)
            _beside(file).unlink()
        else:
            file.open("a").close()


def write(file: Path, results: dict[str, Any]) -> None:
    """The results as JSON, whole or not at all: until then the file is what it was.

    Raises:
        WrongCall: it cannot be written.
    """
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    with _told(file):
        if not _is_replaced(file):
            file.write_text(text, encoding="utf-8")
            return
        scratch = _beside(file)
        try:
            scratch.write_text(text, encoding="utf-8")
            os.replace(scratch, file.resolve())
        finally:
            scratch.unlink(missing_ok=True)


def _is_replaced(file: Path) -> bool:
    """By another file, that is. A pipe or a device (/dev/stdout) is written to, and a folder not at all."""
    return file.is_file() or not file.exists()


def _beside(file: Path) -> Path:
    file = file.resolve()  # of a link, the file that it leads to
    return file.with_name(f".{file.name}.{os.getpid()}.new")


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WrongCall(f"--json: {file} cannot be written: {error.strerror}.") from None
