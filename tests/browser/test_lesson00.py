"""A newcomer's first half hour: lesson 00 runs, its picture moves, a wrong and a right answer are told apart."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "00_start_here.ipynb"
LESSON, EXERCISES = ROOT / "notebooks" / NAME, ROOT / "exercises" / NAME

ANSWER = """def run_memory(a: float, x: Tensor) -> Tensor:
    h, states = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        h = {step}
        states.append(h)
    return torch.stack(states)
"""
WRONG, RIGHT = ANSWER.format(step="a * (h + x_t)"), ANSWER.format(step="a * h + x_t")


def copy_to(lab, source, name):
    """The learner's own copy, in the folder that the server serves."""
    if not source.is_file():
        pytest.skip(f"{source.relative_to(ROOT)} is not built: run `make build`")
    shutil.copy(source, lab.server.root / name)
    return name


def test_the_lesson_runs_and_its_picture_moves(lab):
    lab.open(copy_to(lab, LESSON, "work_lesson_00.ipynb"))
    lab.run_all(timeout=120)
    assert lab.cells_with_errors() == []
    app = lab.page.locator(".ssm-explorable").first
    app.scroll_into_view_if_needed()
    app.locator("canvas[aria-label]").nth(1).wait_for()
    canvas = app.locator("canvas").nth(1)
    before = canvas.evaluate("c => c.toDataURL()")
    lab.press(app.locator(".noUi-handle").first, "ArrowLeft", 2)
    lab.page.wait_for_function(
        "([c, old]) => c.toDataURL() !== old", arg=[canvas.element_handle(), before], timeout=10_000
    )
    assert lab.errors == []


def test_the_exercise_tells_a_wrong_answer_from_a_right_one(lab):
    lab.open(copy_to(lab, EXERCISES, "work_exercises_00.ipynb"))
    lab.run(lab.cell("import torch"))
    stub, check = lab.cell("def run_memory"), lab.cell("check(run_memory)")
    for answer, verdict in ((WRONG, "false"), (RIGHT, "true")):
        lab.rewrite(stub, answer)
        lab.run(check)
        report = check.locator(".ssm-report").last
        report.wait_for(timeout=20_000)
        assert report.get_attribute("data-passed") == verdict
        assert report.inner_text().strip()
    assert lab.cells_with_errors() == []
    assert lab.errors == []
