"""The two commands in a fresh clone, and the wheel in a clean environment.

A real installation from nothing takes minutes and is what CI does first. Here the packages are
lent: the clone's new .venv sees this environment's site-packages through a .pth line, so that only
what the course itself does is run: bootstrap, doctor, work copies, the server.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs make and a POSIX shell"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout to clone"),
]


def run(command: list[str], where: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=where, env=clean_environment(**env), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without its own virtual environment and course settings."""
    drop = ("PYTHONPATH", "VIRTUAL_ENV", "VENV", "MAKEFLAGS", "MAKELEVEL", "SSMCOURSE_", "PYTEST_")
    return {k: v for k, v in os.environ.items() if not k.startswith(drop)} | extra


def lend_packages(environment: Path) -> None:
    venv.create(environment, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "course"
    run(["git", "clone", "--quiet", str(ROOT), str(folder)], ROOT)
    return folder


@pytest.fixture(scope="module")
def ready(clone):
    """The clone with lent packages: its lock counts as installed, the course itself does not."""
    lend_packages(clone / ".venv")
    lock = run(
        [sys.executable, "-c", "import bootstrap; print(bootstrap.digest('requirements.lock'))"], clone
    ).strip()
    (clone / ".venv" / "course-stamp.json").write_text(json.dumps({"lock": lock}))
    return clone


def lab_environment(home: Path) -> dict[str, str]:
    share = Path(sys.prefix) / "share" / "jupyter"
    return {"HOME": str(home), "JUPYTER_PATH": str(share), "JUPYTERLAB_DIR": str(share / "lab")}


def test_make_lab_serves_the_learners_copy_of_lesson_00(ready, tmp_path):
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["make", "lab", f"PYTHON={sys.executable}", "ARGS=--no-browser"],
            cwd=ready,
            env=clean_environment(**lab_environment(tmp_path)),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = wait_for_address(log, process)
        base, token = re.match(r"(http://[^/]+)/.*token=(\w+)", address).groups()
        assert "/lab/tree/work/notebooks/00_start_here.ipynb" in address
        served = fetch(f"{base}/api/contents/work/notebooks/00_start_here.ipynb?token={token}")
        assert served["type"] == "notebook"
        assert (
            fetch(f"{base}/api/contents/work/exercises/00_start_here.ipynb?token={token}")["type"]
            == "notebook"
        )
        assert "python3" in fetch(f"{base}/api/kernelspecs?token={token}")["kernelspecs"]
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)
        psutil.wait_procs(children, timeout=10)
    text = log.read_text()
    assert "setup: installing the course itself" in text
    assert "[ok]" in text
    assert run(["git", "status", "--porcelain"], ready) == "", "running a lesson must change no tracked file"


def wait_for_address(log: Path, process: subprocess.Popen, seconds: float = 90) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = re.search(r"http://\S+token=\w+", log.read_text())
        if found:
            return found.group(0)
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(f"no address within {seconds} s:\n{log.read_text()}")


def fetch(url: str) -> dict:
    for _ in range(50):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except ConnectionError:
            time.sleep(0.2)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            time.sleep(0.2)
    raise AssertionError(f"no answer from {url}")


def test_the_second_set_up_does_nothing(ready):
    command = [sys.executable, "bootstrap.py"]
    run(command, ready)
    before = {p: p.stat().st_mtime_ns for p in (ready / ".venv").glob("*")}
    assert run(command, ready) == "setup: the environment is up to date\n"
    assert {p: p.stat().st_mtime_ns for p in (ready / ".venv").glob("*")} == before


def test_a_broken_stamp_means_a_fresh_start_and_pip_s_failure_is_one_clear_line(clone, tmp_path):
    copy = tmp_path / "course"
    shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".venv", ".git"))
    lend_packages(copy / ".venv")
    (copy / ".venv" / "course-stamp.json").write_text("{not json")
    (copy / "requirements.lock").write_text("this is not a requirement ===\n")
    done = subprocess.run(
        [sys.executable, "bootstrap.py"],
        cwd=copy,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "setup: could not install the locked packages" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_target(clone):
    text = run(["make", "help"], clone)
    for target in ("lab", "test", "test-slow", "build", "lint", "bench", "site"):
        assert re.search(rf"^{target}\s+\S", text, re.M), target


def test_the_wheel_installs_in_a_clean_environment_and_brings_the_kernels(clone, tmp_path):
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(clone),
        ],
        clone,
    )
    (wheel,) = tmp_path.glob("ssmcourse-*.whl")
    lend_packages(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", str(wheel)], tmp_path)
    say = "import ssmcourse, ssmcourse.kernels.runtime as r, ssmcourse.explore; print(ssmcourse.__file__, r.__file__)"
    package, runtime = map(Path, run([str(python), "-c", say], tmp_path).split())
    assert tmp_path in package.parents
    assert runtime.parent == package.parent / "kernels"
    assert list((package.parent / "explore").glob("*.js"))
    value = "import torch, ssmcourse; print(ssmcourse.linear_scan(torch.full((1, 3), 0.5), torch.ones(1, 3)).tolist())"
    assert run([str(python), "-c", value], tmp_path).strip() == "[[1.0, 1.5, 1.75]]"


def test_importing_ssmcourse_is_quick_and_leaves_torch_alone():
    code = "import time; s = time.perf_counter(); import ssmcourse, sys; print(time.perf_counter() - s, 'torch' in sys.modules)"
    runs = [run([sys.executable, "-c", code], ROOT).split() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.2
    assert {torch for _, torch in runs} == {"False"}


def test_a_broken_moved_or_foreign_environment_is_made_anew_and_nothing_else_is_touched(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT))
    import bootstrap

    environment = tmp_path / "env"
    assert not bootstrap.whole(str(environment))
    environment.mkdir()
    (environment / "thesis.tex").write_text("mine")
    with pytest.raises(SystemExit, match="is not an environment, and nothing in it was touched"):
        bootstrap.make(str(environment))
    assert (environment / "thesis.tex").read_text() == "mine"
    (environment / "thesis.tex").unlink()
    lend_packages(environment)
    assert bootstrap.whole(str(environment))
    moved = tmp_path / "elsewhere"
    environment.rename(moved)
    assert not bootstrap.whole(str(moved))
    (moved / "bin" / "python").unlink()
    assert not bootstrap.whole(str(moved))
    bootstrap.make(str(moved))
    assert bootstrap.whole(str(moved))
    assert "making" in capsys.readouterr().out
