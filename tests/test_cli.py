"""The command line: what each command says, its exit codes, and never a traceback."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

COMMANDS = ["doctor", "list", "start", "next", "grade", "progress", "hint", "bench", "train", "lab"]
RUN_MEMORY = """import torch
def run_memory(a, x):
    h, out = 0.0, []
    for value in x:
        h = a * h + value
        out.append(h)
    return torch.stack(out)
"""


def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    title = nbformat.v4.new_markdown_cell(f"# {path.stem[:2]} The title of {path.stem[3:]}\n\nText.")
    nbformat.write(nbformat.v4.new_notebook(cells=[title, *code]), path)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course's folder with two chapters, in which the test runs."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ssmcourse"\n')
    for stem in ("00_start_here", "01_hippo"):
        write(tmp_path / "notebooks" / f"{stem}.ipynb", "1 + 1")
        write(tmp_path / "exercises" / f"{stem}.ipynb", "import torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSMCOURSE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys; from ssmcourse import cli; sys.argv = ['ssmcourse', '--help']\n"
        "try: cli.main()\nexcept SystemExit: print([m for m in ('torch', 'numpy', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"ssmcourse {command}" in out


def test_version_and_no_command(run):
    from ssmcourse import __version__

    assert run("--version")[:2] == (0, f"ssmcourse {__version__}\n")
    assert run()[0] == 2
    assert run("nonsense")[0] == 2
    assert run("list", "--nonsense")[0] == 2
    assert run("hint")[0] == 2


def test_the_installed_command_and_completion(course):
    where = Path(sys.executable).with_name("ssmcourse" + (".exe" if os.name == "nt" else ""))
    done = subprocess.run([where, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ssmcourse ")
    environment = os.environ | {
        "_SSMCOURSE_COMPLETE": "complete_bash",
        "COMP_WORDS": "ssmcourse start ",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([where], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["00", "01"]


def test_start_copies_and_never_overwrites(run, course):
    code, out, _ = run("start", "00")
    assert code == 0
    lesson, exercise = (course / "work" / room / "00_start_here.ipynb" for room in ("notebooks", "exercises"))
    cells = [
        json.loads(p.read_text())["cells"] for p in (lesson, course / "notebooks" / "00_start_here.ipynb")
    ]
    assert [c["source"] for c in cells[0]] == [c["source"] for c in cells[1]]
    assert f"made {Path('work/notebooks/00_start_here.ipynb')}" in out
    lesson.write_text("my own text")
    exercise.unlink()
    (course / "notebooks" / "00_start_here.ipynb").write_text("a new version")
    code, out, _ = run("start", "0")
    assert code == 0
    assert lesson.read_text() == "my own text"
    assert exercise.exists()
    assert "kept" in out
    assert "which is yours" in out
    assert sorted(p.name for p in (course / "work").rglob("*") if p.is_file()) == ["00_start_here.ipynb"] * 2


def test_the_learners_copy_holds_no_answers_and_a_damaged_lesson_is_named(run, course):
    lesson = course / "notebooks" / "01_hippo.ipynb"
    content = json.loads(lesson.read_text())
    answer = {"output_type": "stream", "name": "stdout", "text": "7"}
    (k,) = [k for k, cell in enumerate(content["cells"]) if cell["cell_type"] == "code"]
    content["cells"][k] |= {"outputs": [answer], "execution_count": 1}
    lesson.write_text(json.dumps(content))
    assert run("start", "01")[0] == 0
    copy = course / "work" / "notebooks" / "01_hippo.ipynb"
    assert json.loads(copy.read_text())["cells"][k]["outputs"] == []
    copy.unlink()
    lesson.write_text("{")
    code, _, err = run("start", "01")
    assert code == 1
    assert "01_hippo.ipynb is damaged" in err
    assert not copy.exists()


def test_an_unknown_chapter_lists_those_that_exist(run, course):
    code, _, err = run("start", "77")
    assert code == 2
    assert "There is no chapter '77'; there are 00, 01." in err
    assert err.count("\n") == 1


def test_outside_of_a_course(run, tmp_path, monkeypatch):
    from ssmcourse import course

    monkeypatch.setattr(course, "find_root", lambda: None)
    code, _, err = run("start", "00")
    assert code == 1
    assert "No course found" in err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(run, course):
    course.chmod(0o500)
    try:
        code, _, err = run("start", "00")
    finally:
        course.chmod(0o700)
    assert code == 1
    assert "Cannot write" in err


def test_a_file_in_the_way(run, course):
    (course / "work").touch()
    code, _, err = run("start", "00")
    assert code == 1
    assert "Cannot write" in err


def test_list_names_chapters_and_exercises(run, course):
    code, out, _ = run("list")
    assert code == 0
    assert "00  The title of start_here" in out
    assert "start.run_memory" in out
    assert "●○○○○" in out
    assert "5 min" in out


def test_next_goes_through_the_course(run, course):
    code, out, _ = run("next")
    assert code == 0
    assert "Next exercise: start.run_memory, Run the memory, difficulty 1 of 5, about 5 minutes." in out
    assert (course / "work" / "exercises" / "00_start_here.ipynb").exists()
    from ssmcourse.grading.registry import exercises

    done = {e.id: {"passed": True} for e in exercises("00")}
    file = {"format": "ssmcourse progress", "version": 1, "exercises": done, "predictions": {}}
    (course / "progress.json").write_text(json.dumps(file))
    assert "Next exercise: hippo." in run("next")[1]
    assert (course / "work" / "notebooks" / "01_hippo.ipynb").exists()
    file["exercises"] = {e.id: {"passed": True} for e in exercises()}
    (course / "progress.json").write_text(json.dumps(file))
    assert run("next")[:2] == (0, "Every exercise is done.\n")


def test_progress(run, course):
    code, out, _ = run("progress")
    assert code == 0
    assert "0 of" in out
    data = json.loads(run("progress", "--json")[1])
    assert data["next"] == "start.run_memory"
    assert data["exercises"][0]["state"] == "open"


def test_hint(run, course):
    first, second = run("hint", "run_memory")[1], run("hint", "start.run_memory")[1]
    assert first.startswith("Hint 1 of 3")
    assert second.startswith("Hint 2 of 3")
    assert run("hint", "run_memory", "-n", "1")[1] == first
    code, _, err = run("hint", "run_memroy")
    assert code == 2
    assert err == "no exercise is called 'run_memroy'; did you mean 'run_memory'?\n"
    assert run("hint", "run_memory", "-n", "4")[0] == 2


def test_grade_own_work(run, course):
    wrong = "def memory_matrix(a, l):\n    return torch.ones(l, l).tril()"
    write(course / "work" / "exercises" / "00_start_here.ipynb", RUN_MEMORY, wrong)
    code, out, _ = run("grade", "--junit", course / "out.xml")
    assert code == 1
    assert "✓  start.run_memory     passed" in out
    assert "nothing fades: all ones on and below the diagonal" in out
    assert "1 passed, 1 failed, 1 not attempted." in out
    assert ElementTree.parse(course / "out.xml").getroot().get("failures") == "1"
    entries = json.loads((course / "progress.json").read_text())["exercises"]
    assert entries["start.run_memory"] == {"attempts": 1, "passed": True}
    assert entries["start.memory_matrix"] == {"attempts": 1, "passed": False}
    assert "start.gated_matrix" not in entries


def test_grade_json_of_a_py_file_and_nothing_attempted_is_no_failure(run, course):
    (course / "answer.py").write_text(RUN_MEMORY)
    code, out, _ = run("grade", "answer.py", "--json")
    assert code == 0
    (graded,) = json.loads(out)
    assert graded["file"] == "answer.py"
    assert graded["exercises"][0]["id"] == "start.run_memory"
    assert graded["exercises"][0]["passed"] is True
    assert not (course / "progress.json").exists()  # someone else's file: not this learner's progress
    code, out, _ = run("grade", "exercises/00_start_here.ipynb")
    assert code == 0
    assert "0 passed, 0 failed, 3 not attempted." in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.ipynb"], "does not exist"),
        (["pyproject.toml"], "is not a notebook"),
        (["work"], "does not exist"),
    ],
)
def test_grade_of_what_is_not_there_is_a_wrong_call(run, course, arguments, words):
    code, _, err = run("grade", *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_junit_file_that_cannot_be_written(run, course):
    code, _, err = run("grade", "exercises/00_start_here.ipynb", "--junit", course / "no" / "out.xml")
    assert code == 2
    assert "cannot be written" in err


@pytest.fixture
def findings(monkeypatch):
    finding = types.SimpleNamespace
    rows = [
        finding(name="Python", ok=True, detail="3.11", cure=""),
        finding(name="disk", ok=True, detail="free [yes]", cure=""),
    ]
    monkeypatch.setitem(sys.modules, "ssmcourse.doctor", types.SimpleNamespace(diagnose=lambda: rows))
    return rows


def test_doctor(run, findings):
    assert run("doctor")[:2] == (0, "[ok] Python: 3.11\n[ok] disk: free [yes]\n")
    findings[1].ok, findings[1].cure = False, "make room"
    assert run("doctor")[:2] == (1, "[ok] Python: 3.11\n[fail] disk: free [yes] -> make room\n")
    code, out, _ = run("doctor", "--json")
    assert code == 1
    assert json.loads(out)[1] == {"name": "disk", "ok": False, "detail": "free [yes]", "cure": "make room"}


def test_lab_passes_its_arguments_on(run, monkeypatch):
    seen = []
    monkeypatch.setattr("ssmcourse.lab.open_lab", seen.append)
    assert run("lab", "--no-browser", "--port", "9999", "extra")[0] == 0
    assert seen == [["--no-browser", "--port", "9999", "extra"]]


def test_a_terminal_without_unicode(course):
    done = subprocess.run(
        [sys.executable, "-m", "ssmcourse.cli", "progress"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "start.run_memory" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX pipe")
def test_a_reader_that_goes_away(course):
    command = f"'{sys.executable}' -m ssmcourse.cli list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_grade_shows_a_cell_that_fails_in_two_lines(run, course):
    (course / "answer.py").write_text("import nosuchmodule\ndef run_memory(a, x):\n    return x\n")
    code, out, err = run("grade", "answer.py")
    assert code in (0, 1)
    assert "nosuchmodule" in out
    assert "Traceback" not in out + err


def test_grade_takes_a_chapter_and_the_work_folder(run, course):
    assert run("start", "00")[0] == 0
    for wanted in ("00", "work"):
        code, out, _ = run("grade", wanted)
        assert code == 0
        assert "start.run_memory" in out
    code, _, err = run("grade", "44")
    assert code == 2
    assert "44 does not exist" in err
