"""The losses: one line a step in a CSV file, none lost and none twice however often the training is killed.

A line is written by one call of the system, so that it is there whole or not at all. The lines up to a step are
brought to the disk before that step's checkpoint is. Who goes on from the checkpoint drops the lines after it,
which come again, with the same figures.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ssmcourse.training.errors import TrainingError
from ssmcourse.training.files import write_atomically


@dataclass(frozen=True)
class Row:
    """One step.

    step: counted from 1.
    loss: of its batch before the update, nats a token that is asked for.
    learning_rate: of the update.
    tokens_per_second: all processes together, without the time for validation and checkpoints.
    validation_loss, validation_accuracy: after the update, at the steps where it was asked for.
    """

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


COLUMNS = [f.name for f in fields(Row)]


class LossFile:
    """The CSV file, open for more lines.

    Args:
        path: the file.
        rows: the lines that it is to begin with; what was there before is replaced, at once and as a whole.
    """

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        text = "".join(map(_line, [COLUMNS, *map(astuple, rows)]))
        write_atomically(path, lambda file: file.write(text.encode()))
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, row: Row) -> None:
        os.write(self._handle, _line(astuple(row)).encode())

    def sync(self) -> None:
        """Bring all lines to the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)


def read_rows(path: Path, steps: int) -> list[Row]:
    """The lines of steps 1 to `steps`.

    Raises:
        TrainingError: they are not all there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [_row(cells) for cells in csv.reader(lines[1 : steps + 1])]
    except (OSError, ValueError, TypeError):
        rows = []
    if [row.step for row in rows] != list(range(1, steps + 1)):
        raise TrainingError(
            f"{path}: does not hold the losses of steps 1 to {steps}, which the checkpoint beside it has made"
        )
    return rows


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        cells
    )  # None becomes an empty cell, a float all its digits
    return text.getvalue()


def _row(cells: list[str]) -> Row:
    step, *rest = cells
    return Row(int(step), *(float(cell) if cell else None for cell in rest))  # type: ignore[arg-type]
