"""Killed at any moment, a training goes on to the same losses, bit for bit; another one's checkpoint is refused."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from trainings import figures, small, with_training, write_words

from ssmcourse.training import TrainingError, train
from ssmcourse.training.records import read_rows

# A child that trains and is killed by a signal that it cannot catch.
CHILD = """
import os, signal, sys, torch
sys.path.insert(0, {here!r})
from pathlib import Path
from trainings import small
from ssmcourse.training import train, checkpoint, loop, records

moment, step = {moment!r}, {step}
def die(): os.kill(os.getpid(), signal.SIGKILL)

def at(owner, name, before):
    whole = getattr(owner, name)
    calls = []
    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == step and before: die()
        result = whole(*args, **kwargs)
        if len(calls) == step: die()
        return result
    setattr(owner, name, wrapped)

def half_write(handle, text):
    write(handle, text[: len(text) // 2] if len(lines) == step - 1 else text)
    lines.append(text)
    if len(lines) == step: die()
lines, write = [], os.write

if moment == "half a line": records.os.write = half_write
if moment == "after a line": at(records.LossFile, "append", False)
if moment == "before a line": at(records.LossFile, "append", True)
if moment == "before the name": at(Path, "replace", True)
if moment == "after the checkpoint": at(checkpoint, "save", False)
if moment == "during the update": at(torch.optim.AdamW, "step", False)
train(small(Path({words!r}), {pattern!r}, out={out!r}))
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def undisturbed(words, tmp_path_factory):
    """Pattern -> the losses of a training that nobody disturbs, in a process of its own."""
    found = {}

    def losses(pattern):
        if pattern not in found:
            out = tmp_path_factory.mktemp("whole")
            assert subprocess.run(child(words, out, "never", 0, pattern), check=False).returncode == 0
            found[pattern] = read_rows(out / "loss.csv", 12)
        return found[pattern]

    return losses


def child(words, out, moment, step, pattern):
    here = os.path.dirname(__file__)
    code = CHILD.format(here=here, words=str(words), out=str(out), moment=moment, step=step, pattern=pattern)
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(("moment", "step"), [("half a line", 9), ("before the name", 3)])
def test_killed_at_a_bad_moment(words, undisturbed, tmp_path, moment, step):
    check_a_kill(words, undisturbed, tmp_path, moment, step, "-*")


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["M-", "2*"])
@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("half a line", 1),
        ("half a line", 5),
        ("half a line", 6),
        ("after a line", 5),
        ("before a line", 5),
        ("before a line", 12),
        ("before the name", 1),
        ("before the name", 2),
        ("before the name", 3),
        ("after the checkpoint", 1),
        ("after the checkpoint", 3),
        ("during the update", 1),
        ("during the update", 7),
        ("during the update", 12),
    ],
)
def test_killed_at_every_bad_moment(words, undisturbed, tmp_path, moment, step, pattern):
    check_a_kill(words, undisturbed, tmp_path, moment, step, pattern)


def check_a_kill(words, undisturbed, out, moment, step, pattern):
    done = subprocess.run(child(words, out, moment, step, pattern), check=False)
    assert done.returncode == -signal.SIGKILL
    rows = train(small(words, pattern, out=str(out))).history
    assert figures(rows) == figures(undisturbed(pattern))
    assert rows == read_rows(out / "loss.csv", 12)
    assert len((out / "loss.csv").read_text().splitlines()) == 13  # the header, and no line more


@pytest.mark.slow
def test_killed_again_and_again_from_outside(words, undisturbed, tmp_path):
    """At moments that nobody chose, until it comes through."""
    *python, code = child(words, tmp_path, "never", 0, "M-")
    code = code.replace("train(small(", "print('go', flush=True); train(small(")
    for attempt in range(12):
        process = subprocess.Popen([*python, code], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.5 + 0.2 * attempt)
        process.kill()
        process.wait()
        process.stdout.close()
    rows = train(small(words, "M-", out=str(tmp_path))).history
    assert figures(rows) == figures(undisturbed("M-"))
    assert rows == read_rows(tmp_path / "loss.csv", 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-2}, r"training.learning_rate = 0.01, not 0.02"),
        ({"steps": 20}, r"training.steps = 12, not 20"),
        ({"betas": (0.9, 0.9)}, r"training.betas = \[0.9, 0.95\], not \[0.9, 0.9\]"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(words, tmp_path, change, message):
    config = small(words, out=str(tmp_path))
    train(config)
    before = (tmp_path / "loss.csv").read_bytes(), (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=f"checkpoint.pt: was made with {message}") as error:
        train(with_training(config, **change))
    assert "\n" not in str(error.value)
    assert before == ((tmp_path / "loss.csv").read_bytes(), (tmp_path / "checkpoint.pt").read_bytes())


def test_where_it_lies_and_how_often_it_is_kept_may_change(words, tmp_path):
    train(small(words, out=str(tmp_path / "a")))
    (tmp_path / "a").rename(tmp_path / "b")
    assert train(small(words, out=str(tmp_path / "b"), checkpoint_every=2)).step == 12


def test_a_checkpoint_of_other_data_is_refused(words, tmp_path):
    path = write_words(tmp_path)
    train(small(path, out=str(tmp_path / "run")))
    path.write_text(path.read_text().replace("w0", "v0"))
    with pytest.raises(TrainingError, match="was made with other data"):
        train(small(path, out=str(tmp_path / "run")))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 half a file", b"{}"])
def test_a_file_that_is_no_checkpoint_is_refused(words, tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint.pt: cannot be read as a checkpoint") as error:
        train(small(words, out=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_checkpoint_runs_no_code(words, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    torch.save({"step": 1, "config": {}, "data": "", "model": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(small(words, out=str(tmp_path)))
    assert not (tmp_path / "evil").exists()
