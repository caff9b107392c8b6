"""The progress file survives kills, corruption, company and newer versions."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from ssmcourse.grading import store

WRITER = """
import sys
from ssmcourse.grading import store
if {no_fcntl}:
    store.fcntl = None
def bump(data):
    entry = data["exercises"].setdefault("a.b", {{}})
    entry["attempts"] = entry.get("attempts", 0) + 1
    data["exercises"].setdefault("padding", {{"text": "x" * 20000}})
    return entry["attempts"]
for _ in range({rounds}):
    print(store.update(bump)[0], flush=True)
"""


def writer(rounds, no_fcntl=False):
    code = WRITER.format(rounds=rounds, no_fcntl=no_fcntl)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def bump(data):
    entry = data["exercises"].setdefault("a.b", {})
    entry["attempts"] = entry.get("attempts", 0) + 1


def test_what_is_written_is_read(progress_file):
    assert store.read() == (store.empty(), "")
    assert not progress_file.exists()
    store.update(bump)
    store.update(bump)
    assert store.read()[0]["exercises"]["a.b"]["attempts"] == 2
    data = json.loads(progress_file.read_text())
    assert data["format"] == store.FORMAT
    assert data["version"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_in_the_middle_of_writing(progress_file):
    """Twelve processes killed at random moments while they write: the file is always whole."""
    dice, last = random.Random(1), 0
    for _ in range(12):
        process = writer(10_000)
        seen = int(process.stdout.readline())
        assert seen > last  # nothing that was reported as written is ever lost
        time.sleep(dice.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        last = max([seen, *map(int, rest)])
        data, line = store.read()
        assert line == ""
        assert data["exercises"]["a.b"]["attempts"] in (last, last + 1)
        last = data["exercises"]["a.b"]["attempts"]
    store.update(bump)
    left = sorted(p.name for p in progress_file.parent.iterdir())
    assert left == [".progress.json.lock", "progress.json"]  # no scratch file of a killed writer stays


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_just_before_the_new_file_takes_its_name(progress_file, moment):
    store.update(bump)
    code = (
        "import os, signal\nfrom ssmcourse.grading import store\n"
        f"os.{moment} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.update(lambda data: data['exercises'].clear())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert store.read()[0]["exercises"]["a.b"]["attempts"] == 1
    store.update(bump)
    assert [p for p in progress_file.parent.iterdir() if p.name.endswith(".new")] == []


@pytest.mark.parametrize("no_fcntl", [False, True], ids=["fcntl", "lock file"])
def test_two_notebooks_at_once_lose_nothing(progress_file, no_fcntl):
    both = [writer(60, no_fcntl) for _ in range(2)]
    counts = [int(n) for process in both for n in process.communicate()[0].split()]
    assert sorted(counts) == list(range(1, 121))
    assert store.read()[0]["exercises"]["a.b"]["attempts"] == 120


def test_a_lock_file_of_a_dead_process_is_taken_over(progress_file, monkeypatch):
    monkeypatch.setattr(store, "fcntl", None)
    monkeypatch.setattr(store, "PATIENCE", 0.3)
    lock = progress_file.with_name(".progress.json.lock")
    lock.touch()
    with pytest.raises(store.StoreError, match="another notebook has held"):
        store.update(bump)
    os.utime(lock, (time.time() - 60, time.time() - 60))
    store.update(bump)
    assert store.read()[0]["exercises"]["a.b"]["attempts"] == 1
    assert not lock.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"a": 1}', b'{"format": "ssmcourse progress", "version": "x"}',
     b'{"format": "ssmcourse progress", "version": 1, "exercises": {"a": 3}}', b"[" * 100_000],
    ids=["empty", "cut", "binary", "list", "other", "version", "entry", "deep"],
)  # fmt: skip
def test_a_corrupt_file_is_set_aside_and_kept(progress_file, content):
    progress_file.write_bytes(content)
    data, line = store.read()
    assert data == store.empty()
    assert "progress.corrupt-1.json" in line
    assert progress_file.with_name("progress.corrupt-1.json").read_bytes() == content
    progress_file.write_bytes(b"broken again")
    _, line = store.update(bump)
    assert "progress.corrupt-2.json" in line
    assert progress_file.with_name("progress.corrupt-1.json").read_bytes() == content
    assert store.read()[0]["exercises"]["a.b"]["attempts"] == 1


def test_a_newer_file_is_left_alone(progress_file):
    text = json.dumps(store.empty() | {"version": 2, "news": "?"})
    progress_file.write_text(text)
    for call in (store.read, lambda: store.update(bump)):
        with pytest.raises(store.StoreError, match="newer version of the course"):
            call()
    assert progress_file.read_text() == text


def test_unknown_fields_survive(progress_file):
    progress_file.write_text(json.dumps(store.empty() | {"note": "mine"}))
    store.update(bump)
    assert json.loads(progress_file.read_text())["note"] == "mine"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSMCOURSE_PROGRESS", str(tmp_path / "file" / "progress.json"))
    with pytest.raises(store.StoreError, match=r"could not be saved|cannot be read"):
        store.update(bump)


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.delenv("SSMCOURSE_PROGRESS")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ssmcourse"\n')
    (tmp_path / "work" / "exercises").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "exercises")
    assert store.path() == tmp_path / "progress.json"
    monkeypatch.setattr(store, "find_root", lambda: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert store.path() == tmp_path / "data" / "ssmcourse" / "progress.json"
