"""Grading files: what their cells may do, and that one loss costs only itself."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from ssmcourse.course import CourseError
from ssmcourse.grading import load
from ssmcourse.grading.grade import Graded, failed, files, first_words, grade_file, junit

from .notebooks import RUN_MEMORY, STUB, write

MAGICS = """%matplotlib inline
import torch
from ssmcourse import check, explore, hint, predict, progress, solution
!ls
listing = !ls
%time three = 1 + 2
torch.ones?
if three:
    %timeit three
display(get_ipython().kernel.whatever(three))"""
CALLS = """report = check(run_memory)
assert not report.passed
check("start.run_memory", run_memory); hint("x"); solution("x", force=True); progress()
predict("a.b", 3).anything
predict.show("a.b", 4)
explore.memory(run=run_memory).show()
print("seen" * 1_000_000)"""


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A notebook with everything that may go wrong in it, graded once."""
    cells = [
        MAGICS, RUN_MEMORY, CALLS, "def memory_matrix(a, l)\n    return a", "while True:\n    pass", "raise SystemExit",
        "import os\nos._exit(3)", STUB, "%%bash\nls", "", "1 / 0",
        "import ssmcourse.tolerance\nssmcourse.tolerance.mismatch = lambda *a, **k: None",
        "def legs_matrix(n):\n    return torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)",
        "import os\ndef legt_matrix(n, theta):\n    os._exit(4)",
    ]  # fmt: skip
    path = write(tmp_path_factory.mktemp("grade") / "exercises" / "00_start_here.ipynb", *cells)
    return grade_file(path, limit=2.0)


def verdict(graded, name):
    return next(r for r in graded.reports if r.id.endswith(name))


def test_each_exercise_has_its_verdict(graded):
    found = {r.id.split(".")[1]: r.status for r in graded.reports}
    assert found == {
        "run_memory": "passed", "memory_matrix": "failed", "gated_matrix": "not attempted",
        "legs_matrix": "failed", "legt_matrix": "failed",
    }  # fmt: skip


def test_a_syntax_error_is_told_with_its_line(graded):
    message = verdict(graded, "memory_matrix").message
    assert message.startswith(
        "cell 4 does not compile. SyntaxError: expected ':', line 1: def memory_matrix(a, l)"
    )


def test_a_notebook_that_replaces_the_comparison_fools_nobody(graded):
    report = verdict(graded, "legs_matrix")
    assert report.status == "failed"
    assert "ssmcourse.tolerance.mismatch" in report.notes[0]


def test_code_that_ends_the_process_costs_only_its_exercise(graded):
    assert "ended the process" in verdict(graded, "legt_matrix").message


def test_what_counts_as_failed(graded):
    assert failed([graded])
    assert not failed([Graded(graded.path, [verdict(graded, "run_memory"), verdict(graded, "gated_matrix")])])


def test_junit(graded):
    root = ElementTree.fromstring(junit([graded]).encode())
    assert root.attrib == {"tests": "5", "failures": "3", "skipped": "1", "errors": "0"}
    cases = {c.get("name"): c for c in root.iter("testcase")}
    assert list(cases["start.run_memory"]) == []
    assert "does not compile" in cases["start.memory_matrix"].find("failure").get("message")
    assert cases["start.gated_matrix"].find("skipped") is not None


def test_first_words_name_the_layer_and_the_mistake(graded):
    words = first_words(verdict(graded, "legs_matrix"))
    assert words == "worked example: your answer is all zeros"


def test_a_missing_function_is_not_attempted_and_says_what_went_wrong(tmp_path):
    path = tmp_path / "00_mine.py"
    path.write_text(f"import torch\n\n# %%\n{RUN_MEMORY}\n\n# %%\nraise ValueError('here')\n")
    reports = grade_file(path).reports
    assert [r.status for r in reports] == ["passed", "not attempted", "not attempted"]
    assert reports[1].message == (
        "memory_matrix is not defined in this file. "
        "cell 3: Your code raises ValueError: here\nline 12: raise ValueError('here')"
    )


def test_a_py_file_that_does_not_compile(tmp_path):
    path = tmp_path / "answer.py"
    path.write_text("def run_memory(a, x):\n    return (\n")
    (report,) = grade_file(path).reports
    assert report.id == "start.run_memory"
    assert report.status == "failed"
    assert "answer.py does not compile" in report.message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("a.ipynb", "{", "is not a notebook"), ("a.ipynb", "[]", "is not a notebook"), ("a.ipynb", '{"cells": 3}', "is not a notebook"),
     ("a.py", b"\xff\xfe", "not UTF-8"), ("none.py", None, "No such file")],
)  # fmt: skip
def test_a_file_that_cannot_be_graded_is_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CourseError, match=words):
        grade_file(path)


def test_which_files(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ssmcourse"\n')
    monkeypatch.chdir(tmp_path)
    first = write(tmp_path / "exercises" / "00_start_here.ipynb", "")
    write(tmp_path / "exercises" / ".hidden.ipynb", "")
    assert files(None) == [first]
    mine = write(tmp_path / "work" / "exercises" / "00_start_here.ipynb", "")
    assert files(None) == [mine]
    assert files(first) == [first]
    assert files(tmp_path / "exercises") == [first]
    with pytest.raises(CourseError, match="does not exist"):
        files(tmp_path / "nowhere")
    with pytest.raises(CourseError, match="holds no notebook"):
        files(tmp_path / "notebooks")


@pytest.mark.parametrize(
    ("source", "plain"),
    [
        ("x = (1\n     % 2)", "x = (1\n     % 2)"),  # Python's own %
        ("%matplotlib inline\nx = 1", "pass\nx = 1"),
        ("for i in y:\n    !ls {i}", "for i in y:\n    pass"),
        ("%time x = f(1)\n%timeit g()", "x = f(1)\npass"),
        ("%%time\nx = 1", "\nx = 1"),
        ("%%html\n<b>", ""),
        ("files = !ls\nn = %sql x", "files = None\nn = None"),
        ("?print\nprint??\nx.y?", "pass\npass\npass"),
        ("", ""),
    ],
)
def test_ipythons_own_lines_are_left_out(source, plain):
    assert load.plain(source) == plain


def test_the_cells_of_a_py_file_keep_their_line_numbers(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("# %% [markdown]\n# text\n\n# %%\nx = 1\n\n# %%\ny = 2\n")
    first, second = load.cells(path)
    assert first == load.Cell("cell 1", "\n\n\n# %%\nx = 1\n\n")
    assert second.source.splitlines().index("y = 2") == 7


def test_the_chapter_is_in_the_name():
    assert load.chapter_of(Path("x/01_hippo.ipynb")) == "01"
    assert load.chapter_of(Path("mine.ipynb")) == ""
