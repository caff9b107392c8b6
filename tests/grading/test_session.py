"""check, hint, solution, predict and progress, as a notebook calls them."""

import json
import subprocess
import sys
import time

import nbformat
import pytest
import torch

from ssmcourse import check, hint, predict, progress, solution
from ssmcourse.grading import registry, session, store
from ssmcourse.grading.report import Report

ID = "start.run_memory"


def stored(file):
    return json.loads(file.read_text())


def test_check_by_name_and_by_id(right, progress_file):
    for report in (check(right), check(ID, right), check("run_memory", right), check(right, ID)):
        assert report.passed
        assert report.id == ID
        assert "Next: memory_matrix, in this notebook." in report.next
    assert stored(progress_file)["exercises"][ID] == {"attempts": 4, "passed": True}


def test_a_failure_offers_a_hint_and_does_not_undo_a_pass(right, progress_file):
    check(right)
    report = check(ID, lambda a, x: x)
    assert report.status == "failed"
    assert report.next == f'A hint: hint("{ID}").'
    assert stored(progress_file)["exercises"][ID] == {"attempts": 2, "passed": True}


def test_the_stub_is_not_an_attempt(progress_file):
    def run_memory(a, x):
        raise NotImplementedError("your turn")

    report = check(run_memory)
    assert report.status == "not attempted"
    assert not report.passed
    assert "Write run_memory in the cell above" in report.next
    assert not progress_file.exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check(lambda x: x), "got a lambda, which has no name; write your answer with `def`"),
        (lambda: check(torch.ones(3)), "expected the function itself, without parentheses"),
        (lambda: check(None), "got None, expected the function itself"),
        (check, "got nothing, expected your function"),
        (lambda: check(ID), "expected the function itself: check(run_memory), without quotes"),
        (lambda: check("start.run_memroy", print), "did you mean 'start.run_memory'?"),
        (lambda: check(print, print), "expected an exercise's id"),
    ],
)
def test_a_wrong_call_of_check_is_told_in_one_line(call, words):
    report = call()
    assert report.status == "refused"
    assert not report.passed
    assert words in str(report)
    assert "\n" not in str(report)
    assert words.split("'")[0] in report._repr_html_()


def test_after_the_last_exercise_of_a_chapter_comes_the_next_chapter():
    last = registry.exercises("00")[-1]
    assert "next is chapter 01" in session._after(last)
    assert "That was the last exercise" in session._after(registry.exercises()[-1])


def test_a_report_shows_itself_in_three_ways(right):
    from rich.console import Console

    report = check(ID, lambda a, x: x.cumsum(0))
    assert str(report) == repr(report)
    console = Console(width=300)
    with console.capture() as out:
        console.print(report)
    assert [x.rstrip() for x in out.get().splitlines()] == str(report).splitlines()
    html = report._repr_html_()
    assert "never multiply h by a" in html
    assert html.count("var(--jp-") > 3
    assert "<script" not in html
    assert "#" in html.split("var(--jp-error-color1")[1][:12]  # a colour where there is no theme


def test_a_report_goes_to_json_and_back():
    report = check(ID, lambda a, x: print("hi <b>") or x.cumsum(0))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["passed"] is False
    assert [layer["status"] for layer in data["layers"]][:3] == ["passed", "failed", "not reached"]
    assert Report.from_dict(data) == report
    assert "&lt;b&gt;" in report._repr_html_()


def test_hints_come_one_after_the_other(right, progress_file):
    exercise = registry.find(ID)
    shown = [hint(ID), hint(right), hint("run_memory"), hint(ID)]
    for note, text in zip(shown, [*exercise.hints, exercise.hints[2]], strict=True):
        assert text in str(note)
    assert "That is the last one" in str(shown[2])
    assert stored(progress_file)["exercises"][ID]["hints"] == 3
    assert exercise.hints[0] in str(hint(ID, 1))
    assert "expected 1, 2 or 3" in str(hint(ID, 4))
    assert "no exercise is called" in str(hint("start.none"))
    assert hint(ID, 1)._repr_html_().startswith("<div")


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course's folder with one solution."""
    monkeypatch.setattr(session, "find_root", lambda: tmp_path)
    (tmp_path / "solutions").mkdir()
    cells = [
        "x = 1 +",
        "%time 3",
        "# not here: def run_memory",
        "def run_memory(a, x):\n    return 'the worked answer'",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(nb, tmp_path / "solutions" / "00_start_here.ipynb")
    return tmp_path


def test_the_solution_opens_after_an_attempt(course, right):
    assert "opens after one attempt" in str(solution(ID))
    assert "the worked answer" in str(solution(ID, force=True))
    assert "opens after one attempt" in str(solution(ID))
    check(ID, lambda a, x: x)
    assert "the worked answer" in str(solution(ID))
    assert "the worked answer" in str(solution(right))
    assert "opens after one attempt" in str(solution("memory_matrix"))
    assert "No solution of start.memory_matrix was found" in str(solution("memory_matrix", force=True))
    assert "no exercise is called" in str(solution("nothing"))


def test_without_a_course_the_solution_is_not_found(monkeypatch):
    monkeypatch.setattr(session, "find_root", lambda: None)
    assert "No solution" in str(solution(ID, force=True))


@pytest.mark.parametrize(
    ("answer", "shown"),
    [(7, "7"), (0.125, "0.125"), ("it grows", "'it grows'"), (True, "True"), ([1, 0.5], "[1, 0.5]"), ((2, 3), "[2, 3]"),
     (torch.tensor([1.0, 2.0]), "[1, 2]"), (torch.tensor(3), "3")],
)  # fmt: skip
def test_a_prediction_is_kept_and_shown_beside_the_measured(progress_file, answer, shown):
    assert shown in str(predict("start.life", answer, question="How long?"))
    assert stored(progress_file)["predictions"]["start.life"]["question"] == "How long?"
    text = str(predict.show("start.life", 6.64385619))
    assert f"Your prediction: {shown}" in text
    assert "Measured:        6.6439" in text
    assert "How long?" in text


def test_without_a_prediction_the_output_is_always_the_same(progress_file):
    assert "No prediction yet" in str(predict("start.life", None, question="How long?"))
    assert str(predict.show("start.life", 7)) == (
        "Your prediction: no prediction recorded; write one in the cell above\nMeasured:        7"
    )
    assert not progress_file.exists()


def test_none_keeps_the_earlier_prediction_and_nonsense_is_refused():
    predict("start.life", 5)
    assert "Your prediction: 5" in str(predict("start.life", None))
    assert "expected a number, a string or a short list" in str(predict("start.life", object()))
    assert "expected a number" in str(predict("start.life", list(range(1000))))
    assert "Your prediction: 5" in str(predict.show("start.life"))


def test_progress_shows_what_is_done_and_what_is_next(right):
    from rich.console import Console

    assert progress().next.id == ID
    check(right)
    check("memory_matrix", lambda a, l: None)
    seen = progress()
    assert {e.id: s for e, s in seen.rows} == dict.fromkeys([e.id for e in registry.exercises()], "open") | {
        ID: "done", "start.memory_matrix": "tried",
    }  # fmt: skip
    assert seen.next.id == "start.memory_matrix"
    assert f"1 of {len(registry.exercises())} exercises done. Next: start.memory_matrix" in str(seen)
    assert "start.memory_matrix" in seen._repr_html_()
    assert seen.to_dict()["next"] == "start.memory_matrix"
    console = Console(width=120)
    with console.capture() as out:
        console.print(seen)
    assert "start.gated_matrix" in out.get()


def test_a_file_that_cannot_be_used_costs_one_line(progress_file, right):
    progress_file.write_text(json.dumps(store.empty() | {"version": 9}))
    before = progress_file.read_text()
    assert check(right).passed
    assert "newer version" in check(right).notes[0]
    assert "newer version" in str(hint(ID))
    assert "newer version" in str(predict("a.b", 3))
    assert "newer version" in str(predict.show("a.b", 3))
    assert "newer version" in str(progress())
    assert progress_file.read_text() == before


def test_a_corrupt_file_is_told_once(progress_file, right):
    progress_file.write_text("{")
    assert "progress.corrupt-1.json" in check(right).notes[0]
    assert check(right).notes == []


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ssmcourse.grading.pytest_plugin; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_check_is_quick(right):
    began = time.monotonic()
    check(right)
    assert time.monotonic() - began < 2.0


def test_a_check_says_when_the_newest_cell_did_not_run(progress_file):
    import nbformat
    from nbclient import NotebookClient

    answer = "def run_memory(a, x):\n    return x"
    broken = "def run_memory(a, x):\n    return (x"
    cells = ["from ssmcourse import check", answer, "check(run_memory)", broken, "check(run_memory)"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(nb, allow_errors=True).execute()
    before, after = (nb.cells[k].outputs[0]["data"]["text/plain"] for k in (2, 4))
    assert "of an earlier run" not in before
    assert "the newest cell that defines it ended with an error" in after
