"""What `ssmcourse train` does: every mistake in one line."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ssmcourse.course import CourseError, WrongCall
from ssmcourse.training.config import load_config
from ssmcourse.training.errors import TrainingError
from ssmcourse.training.loop import train
from ssmcourse.training.terminal import Terminal


def run(path: Path, out: Path | None) -> None:
    """Train what a file says, into a folder, and tell the terminal.

    Raises:
        WrongCall: the configuration or the data cannot be meant.
        CourseError: the training did not come to its end.
    """
    try:
        config = load_config(path)
    except ValueError as error:
        raise WrongCall(str(error)) from None
    folder = str(out or config.training.out or Path("runs") / path.stem)
    config = replace(config, training=replace(config.training, out=folder))
    with Terminal() as terminal, _warnings_in_one_line():
        try:
            trained = train(config, callbacks=[terminal])
        except TrainingError as error:
            raise CourseError(f"{path}: {error}") from None
        except (ValueError, OSError) as error:
            raise WrongCall(f"{path}: {error}") from None
    if trained.interrupted:
        again = ["ssmcourse", "train", str(path)] + (["--out", str(out)] if out else [])
        raise CourseError(f"Go on with: {shlex.join(again)}")
    if _leads():
        print(f"{trained.step} steps done. {folder} holds model/, loss.csv and checkpoint.pt.")


def _leads() -> bool:
    """Is this the process that speaks, of those that torchrun started?"""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    def show(message: Warning | str, *rest: object) -> None:
        if _leads():
            print(message, file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
