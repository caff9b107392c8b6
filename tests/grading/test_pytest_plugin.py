"""`pytest exercises/`: one item for each exercise, and no quarrel with nbval."""

from xml.etree import ElementTree

import pytest

from .notebooks import RUN_MEMORY, STUB, write

pytest_plugins = ["pytester"]


@pytest.fixture
def course(pytester):
    """A folder with a lesson and with exercises: one right, one wrong, one not attempted."""
    wrong = "def memory_matrix(a, l):\n    return torch.ones(l, l).tril()"
    write(pytester.path / "exercises" / "00_start_here.ipynb", "import torch", RUN_MEMORY, wrong, STUB)
    write(pytester.path / "notebooks" / "00_start_here.ipynb", "1 + 1")
    return pytester


def test_an_item_for_each_exercise(course):
    done = course.runpytest("--junit-xml=out.xml")
    done.assert_outcomes(passed=1, failed=1, skipped=1)
    done.stdout.fnmatch_lines(["*Likely mistake: nothing fades*"])
    done.stdout.no_fnmatch_line("*Traceback*")
    cases = {
        c.get("name"): [x.tag for x in c] for c in ElementTree.parse(course.path / "out.xml").iter("testcase")
    }
    assert cases == {
        "start.run_memory": [],
        "start.memory_matrix": ["failure"],
        "start.gated_matrix": ["skipped"],
    }


def test_one_exercise_can_be_chosen(course):
    done = course.runpytest("--collect-only", "-q", "exercises", "-k", "run_memory")
    done.stdout.fnmatch_lines(["exercises/00_start_here.ipynb::start.run_memory", "*2 deselected*"])


def test_lessons_are_collected_only_when_named(course):
    course.runpytest("--collect-only", "notebooks").stdout.fnmatch_lines(["*no tests collected*"])
    course.runpytest("--collect-only", "notebooks/00_start_here.ipynb").stdout.fnmatch_lines(
        ["*3 tests collected*"]
    )


@pytest.mark.parametrize("option", ["--nbval", "--nbval-lax"])
def test_nbval_keeps_its_notebooks(course, option):
    done = course.runpytest("--collect-only", option, "exercises")
    done.stdout.fnmatch_lines(["*IPyNb*"])
    done.stdout.no_fnmatch_line("*ExerciseItem*")


def test_a_broken_notebook_is_one_line(course):
    (course.path / "exercises" / "01_x.ipynb").write_text("{")
    done = course.runpytest("exercises/01_x.ipynb")
    done.stdout.fnmatch_lines(["*01_x.ipynb is not a notebook*"])
    done.stdout.no_fnmatch_line("*Traceback*")
