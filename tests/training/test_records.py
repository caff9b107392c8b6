"""The file of losses: whole lines, none lost, none twice."""

import math
from dataclasses import replace

import pytest

from ssmcourse.training import TrainingError
from ssmcourse.training.files import write_atomically
from ssmcourse.training.records import COLUMNS, LossFile, Row, read_rows

ROWS = [Row(i, 1 / (i + 1), 1e-3 / 3 * i, 12345.678 / i) for i in range(1, 6)]
ROWS[2] = replace(ROWS[2], validation_loss=math.pi, validation_accuracy=1 / 7)


def test_what_is_written_is_read_to_the_last_digit(tmp_path):
    file = LossFile(tmp_path / "loss.csv", ROWS[:2])
    for row in ROWS[2:]:
        file.append(row)
    file.sync()
    file.close()
    assert read_rows(tmp_path / "loss.csv", 5) == ROWS
    lines = (tmp_path / "loss.csv").read_text().splitlines()
    assert lines[0].split(",") == COLUMNS
    assert lines[1].endswith(",,")  # no validation in that step


def test_a_line_is_there_as_soon_as_it_is_appended(tmp_path):
    file = LossFile(tmp_path / "loss.csv", [])
    file.append(ROWS[0])
    assert read_rows(tmp_path / "loss.csv", 1) == ROWS[:1]
    file.close()


def test_lines_after_the_checkpoint_are_dropped_and_half_ones_too(tmp_path):
    path = tmp_path / "loss.csv"
    LossFile(path, ROWS).close()
    path.write_text(path.read_text() + "6,0.1")
    rows = read_rows(path, 3)
    LossFile(path, rows).close()
    assert read_rows(path, 3) == ROWS[:3]
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "damage", [lambda t: t[:60], lambda t: t.replace("\n2,", "\n7,"), lambda t: "", lambda t: None]
)
def test_lost_lines_are_noticed(tmp_path, damage):
    path = tmp_path / "loss.csv"
    LossFile(path, ROWS).close()
    text = damage(path.read_text())
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(TrainingError, match="does not hold the losses of steps 1 to 5"):
        read_rows(path, 5)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fail(file):
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, fail)
    assert path.read_text() == "before"
    write_atomically(path, lambda file: file.write(b"after"))
    assert path.read_text() == "after"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
