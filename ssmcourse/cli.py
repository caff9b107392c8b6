"""The command `ssmcourse`.

Exit codes: 0 all is well, 1 something failed, 2 a wrong call. A learner's mistake gets one line, never
a traceback. What needs torch is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ssmcourse import __version__
from ssmcourse.course import CourseError, WrongCall, chapters, find_root, start

app = typer.Typer(
    name="ssmcourse",
    help="State space models from HiPPO to Mamba: the course's command line.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _show(renderable: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(renderable)


def _short(path: Path) -> str:
    """A path as the learner would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ssmcourse {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check that this machine is ready: Python, packages, devices, backends. Exits 1 when something is not."""
    from ssmcourse.doctor import diagnose

    findings = diagnose()
    if as_json:
        rows = [{"name": f.name, "ok": f.ok, "detail": f.detail, "cure": f.cure} for f in findings]
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for f in findings:
            mark = typer.style("[ok]", fg="green") if f.ok else typer.style("[fail]", fg="red", bold=True)
            typer.echo(f"{mark} {f.name}: {f.detail}" + ("" if f.ok or not f.cure else f" -> {f.cure}"))
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


@app.command("list")
def list_() -> None:
    """List the chapters and their exercises: difficulty, time, and what is done."""
    from ssmcourse.grading import session

    seen = session.progress()
    if find_root():
        for chapter in chapters():
            typer.echo(f"{chapter.number}  {chapter.title}")
        typer.echo("")
    _show(seen)


def _complete_chapter(typed: str) -> list[str]:
    try:
        return [c.number for c in chapters() if c.number.startswith(typed)]
    except CourseError:
        return []


@app.command("start")
def start_(
    chapter: Annotated[str, typer.Argument(help="The chapter, as 00.", autocompletion=_complete_chapter)],
) -> None:
    """Put your own copy of a chapter into work/. What is there already is never overwritten."""
    _start(chapter)


def _start(number: str) -> None:
    copies = start(number)
    for path in copies.made:
        typer.echo(f"made {_short(path)}")
    for path in copies.kept:
        typer.echo(f"kept {_short(path)}, which is yours")
    typer.echo(f"Open {_short(copies.lesson)}, for instance with `ssmcourse lab`.")


@app.command("next")
def next_() -> None:
    """Start the chapter of the next exercise that is not done, and say where it is."""
    from ssmcourse.grading import session

    following = session.progress().next
    if following is None:
        typer.echo("Every exercise is done.")
        return
    _start(following.chapter)
    typer.echo(
        f"Next exercise: {following.id}, {following.title}, difficulty {following.difficulty} of 5, "
        f"about {following.minutes} minutes."
    )


@app.command()
def grade(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A notebook, a .py file, a folder of notebooks, or a chapter, as 00. Without it: work/exercises, or "
            "exercises where you have started nothing; passes are then noted in your progress."
        ),
    ] = None,
    as_json: Json = False,
    limit: Annotated[
        float, typer.Option("--limit", min=0.1, max=86_400, help="Seconds that one cell may take.")
    ] = 20.0,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Also write the verdicts as JUnit XML to this file.")
    ] = None,
) -> None:
    """Grade exercises in a fresh process. Exits 1 when an attempted exercise is wrong.

    Exercises not attempted are listed and do not count as wrong.
    """
    from ssmcourse.grading import grade as grading

    graded = [grading.grade_file(file, limit) for file in grading.files(path)]
    if path is None:
        _note(graded)
    if as_json:
        typer.echo(json.dumps([g.to_dict() for g in graded], indent=1, ensure_ascii=False))
    else:
        _verdicts(graded)
    if junit:
        try:
            junit.write_text(grading.junit(graded), encoding="utf-8")
        except OSError as error:
            raise WrongCall(f"--junit: {junit} cannot be written: {error.strerror}.") from None
    if grading.failed(graded):
        raise typer.Exit(1)


def _note(graded: list[Any]) -> None:
    """Note in the progress what the learner's own files pass and fail."""
    from ssmcourse.grading.session import record

    for report in (r for g in graded for r in g.reports if r.status in ("passed", "failed")):
        line = record(report.id, report.passed)
        if line:
            typer.echo(line, err=True)


def _verdicts(graded: list[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ssmcourse.grading.grade import first_words
    from ssmcourse.grading.report import MARKS

    colours = {"passed": "green", "failed": "bold red"}
    for g in graded:
        table = Table(title=_short(g.path), title_justify="left", box=None, pad_edge=False)
        for name in ("", "exercise", "verdict", "because"):
            table.add_column(name, overflow="fold")
        for r in g.reports:
            because = "" if r.passed else first_words(r).removeprefix("not attempted")
            row = (MARKS[r.status], r.id, r.status, because)
            table.add_row(*map(Text, row), style=colours.get(r.status, ""))
        _show(table)
        for r in g.reports:
            if r.status == "failed":
                _show("")
                _show(r)
    reports = [r for g in graded for r in g.reports]
    passed, wrong = (sum(r.status == s for r in reports) for s in ("passed", "failed"))
    rest = len(reports) - passed - wrong
    typer.echo(f"\n{passed} passed, {wrong} failed, {rest} not attempted.")


@app.command()
def progress(as_json: Json = False) -> None:
    """Show what is done and what is next."""
    from ssmcourse.grading import session

    seen = session.progress()
    if as_json:
        typer.echo(json.dumps(seen.to_dict(), indent=1, ensure_ascii=False))
    else:
        _show(seen)


@app.command()
def hint(
    id: Annotated[str, typer.Argument(help="The exercise, as start.run_memory or run_memory.")],
    number: Annotated[int | None, typer.Option("--number", "-n", min=1, max=3, help="1, 2 or 3.")] = None,
) -> None:
    """Give a hint for an exercise: the first, at the next call the second, then the third."""
    from ssmcourse.grading import registry, session

    try:
        found = registry.find(id)
    except ValueError as error:
        raise WrongCall(str(error)) from None
    in_notebook, in_shell = f'hint("{found.id}")', f"`ssmcourse hint {found.id}`"
    typer.echo(str(session.hint(id, number)).replace(in_notebook, in_shell))


@app.command()
def bench(
    operator: Annotated[
        str | None,
        typer.Argument(help="The operator, as selective_scan. Without it: all, one after another."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", min=1, help="Threads; may be given twice. Without it: 1 and 2."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One case, three turns, one thread, no memory.")
    ] = False,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Weigh the peak memory, too.")] = True,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--sizes", help="Your own case, as 1,2048,768,16; may be given twice. Needs an OPERATOR."
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
    static: Annotated[
        bool,
        typer.Option("--static", help="Measure nothing: show what the compiler made of the GPU kernels."),
    ] = False,
) -> None:
    """Measure the operators beside what else one can install: time, error, memory, the machine's limit.

    Exits 1 when one of ours is wrong or a measurement breaks off. All of it takes about a quarter of an hour.
    """
    from ssmcourse.bench import command

    if static:
        from ssmcourse.explore import stored_result

        try:
            stored = stored_result("kernels")
        except ValueError:
            raise WrongCall("--static: nothing is stored here; `make kernels` in a clone makes it.") from None
        typer.echo(command.static(stored, operator))
        return
    plan = command.plan(operator, threads, sizes, quick=quick, memory=memory)
    results = {}
    if file:
        command.check_writable(file)  # now, not when all is measured
    for name in command.names(operator):
        results[name] = command.measured(name, plan)
        if file:
            command.write(file, results)
    if not all(map(command.sound, results.values())):
        raise typer.Exit(1)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file with the tables model, data and training.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder to write to, in the place of training.out. Without both: runs/NAME."
        ),
    ] = None,
) -> None:
    """Train a language model, or go on where its training was ended. Exits 1 when it did not come to its end.

    Ctrl-C saves first. Started by torchrun, several processes share the work.
    """
    from ssmcourse.training.command import run

    run(config, out)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open JupyterLab on your copy of lesson 00. What follows goes to JupyterLab: lab --no-browser."""
    from ssmcourse.lab import open_lab

    open_lab(context.args)


def main() -> None:
    """The entry point: `app`, with a learner's mistakes told in one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ✓ gets a ?
    try:
        app()
    except CourseError as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, WrongCall) else 1)
    except BrokenPipeError:  # `ssmcourse list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
