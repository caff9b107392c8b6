"""The doctor: quick, complete, with a cure for what is wrong, and never an exception."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from ssmcourse import doctor
from ssmcourse.kernels import runtime
from ssmcourse.scan import backends

ROOT = Path(__file__).resolve().parent.parent


def finding(name: str) -> doctor.Finding:
    return next(f for f in doctor.diagnose() if f.name == name)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A course folder of our own, with a lock to write."""
    monkeypatch.setattr(doctor, "find_root", lambda: tmp_path)
    return tmp_path


def test_all_is_well_here_and_said_within_15_seconds():
    program = """
import json, time
start = time.perf_counter()
from ssmcourse.doctor import diagnose
findings = diagnose()
print(json.dumps([[f.name, f.ok, f.detail, f.cure] for f in findings]))
print(time.perf_counter() - start)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    rows, seconds = done.stdout.splitlines()
    assert float(seconds) < 15
    findings = [doctor.Finding(*row) for row in json.loads(rows)]
    names = [f.name for f in findings]
    assert names[:7] == ["Python", "packages", "device", "Triton", "Numba CUDA", "widgets", "write access"]
    assert names[7:] == [f"scan with {backend}" for backend in backends("linear_scan")]
    for f in findings:
        assert "\n" not in f.detail + f.cure
        assert f.ok == (not f.cure)
        if f.name != "packages":  # what is installed here may be on its way to the next lock
            assert f.ok, f


def test_packages_are_compared_with_the_lock(clone, monkeypatch):
    assert "not in a clone" in finding("packages").detail
    torch_version = torch.__version__.split("+")[0]
    right = f"# a comment\n\ntorch=={torch_version}\nno-such-thing==1.0 ; sys_platform == 'plan9'\n"
    (clone / "requirements.lock").write_text(right)
    assert finding("packages") == doctor.Finding("packages", True, "all 1 as in requirements.lock")
    (clone / "requirements.lock").write_text(right + "no-such-thing==1.0\nnumpy==1.0.0\n")
    wrong = finding("packages")
    assert not wrong.ok
    assert "no-such-thing is not installed (lock: 1.0), numpy is 2" in wrong.detail
    assert "make setup" in wrong.cure
    (clone / "requirements.lock").write_text("".join(f"no-such-thing-{i}==1.0\n" for i in range(20)))
    assert finding("packages").detail.endswith("and 16 more")
    monkeypatch.setattr(doctor, "find_root", lambda: None)
    assert finding("packages").ok


def test_a_lock_that_cannot_be_read_is_a_finding(clone):
    (clone / "requirements.lock").write_text("<<<<<<< HEAD\n")
    broken = finding("packages")
    assert not broken.ok
    assert broken.cure


@pytest.mark.parametrize(
    ("version", "ok"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_python(monkeypatch, version, ok):
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    found = doctor._python()
    assert found.ok == ok
    assert ok or "install Python 3.11, 3.12 or 3.13" in found.cure


@pytest.mark.parametrize(("platform", "ok"), [("linux", False), ("darwin", True), ("win32", True)])
@pytest.mark.parametrize(("name", "backend"), [("Triton", "triton"), ("Numba CUDA", "numba_cuda")])
def test_what_no_wheel_exists_for_is_no_failure(monkeypatch, name, backend, platform, ok):
    absent = runtime._Found("absent", "there are no wheels")
    monkeypatch.setattr(runtime, f"_{backend}", lambda: absent)
    monkeypatch.setitem(runtime._LIBRARY, backend, lambda: absent)
    monkeypatch.setattr(sys, "platform", platform)
    found = doctor._triton() if name == "Triton" else doctor._numba_cuda()
    assert (found.ok, found.ok == (not found.cure)) == (ok, True)
    assert "there are no wheels" in found.detail


def test_a_widget_that_jupyterlab_does_not_find(monkeypatch, tmp_path):
    paths = pytest.importorskip("jupyter_core.paths")
    monkeypatch.setattr(paths, "jupyter_path", lambda *_: [str(tmp_path)])
    found = doctor._widgets()
    assert not found.ok
    assert "@jupyter-widgets/jupyterlab-manager" in found.detail
    assert "jupyterlab_widgets" in found.cure


def test_a_widget_package_that_does_not_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    found = finding("widgets")
    assert not found.ok
    assert "anywidget" in found.detail


def test_a_folder_that_cannot_be_written_to(clone, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    assert finding("write access").ok
    assert os.listdir(clone) == []
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = finding("write access")
    assert not found.ok
    assert str(clone) in found.cure


def test_a_backend_that_computes_nonsense_is_found(monkeypatch):
    runtime.choose("linear_scan", "reference", "cpu")  # loads it
    monkeypatch.setitem(runtime._OPERATORS["linear_scan"], "reference", lambda a, b, first, reverse: b + a)
    found = finding("scan with reference")
    assert not found.ok
    assert "values differ; the first is at [0, 0, 0]" in found.detail
    assert finding("scan with cpu").ok


def test_nothing_that_breaks_stops_the_others(monkeypatch):
    def broken(*_):
        raise OSError("line one\nline two")

    healthy = [f.name for f in doctor.diagnose()]
    for check in (
        "_python",
        "_packages",
        "_device",
        "_triton",
        "_numba_cuda",
        "_widgets",
        "_write_access",
        "_scan",
    ):
        monkeypatch.setattr(doctor, check, broken)
    findings = doctor.diagnose()
    assert [f.name for f in findings] == healthy
    assert {(f.ok, f.detail, f.cure) for f in findings} == {
        (False, "OSError: line one line two", doctor.SET_UP)
    }


def test_without_torch_the_doctor_still_speaks():
    program = """
import sys
sys.modules["torch"] = None
from ssmcourse.doctor import diagnose
for f in diagnose():
    print(f.name, f.ok)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Python True" in done.stdout
    assert "device False" in done.stdout
    assert "scan False" in done.stdout
