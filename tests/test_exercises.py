"""Every exercise catches its wrong answers, each for the right reason, and refuses no right one.

`tests/mutants/ch<NN>_<name>.py` holds, for the exercise whose function is `<name>`:

    MUTANTS       name -> (a wrong answer, words that the report must show)
    PASS_EXAMPLE  names of mutants that pass the first two layers, signature and worked example
    RIGHT         name -> a right answer, written in another way than the solution
"""

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest

from ssmcourse.grading import registry
from ssmcourse.grading.forbidden import resolve
from ssmcourse.grading.grade import grade_file
from ssmcourse.grading.judge import judge
from ssmcourse.grading.trial import EXAMPLE_LAYER, SHAPE_LAYER

FOLDER = Path(__file__).parent / "mutants"
EXERCISES = registry.exercises()
IDS = [e.id for e in EXERCISES]


def answers(exercise):
    file = FOLDER / f"ch{exercise.chapter}_{exercise.name}.py"
    assert file.exists(), f"{exercise.id} has no mutants: write {file.name}"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ANSWERS = {e.id: answers(e) for e in EXERCISES}
MUTANTS = [(e, name) for e in EXERCISES for name in ANSWERS[e.id].MUTANTS]
RIGHT = [(e, name) for e in EXERCISES for name in ANSWERS[e.id].RIGHT]


def label(value):
    return value if isinstance(value, str) else value.id


@pytest.fixture(scope="session")
def reports():
    """The report on every mutant, made once."""
    return {(e.id, name): judge(e, ANSWERS[e.id].MUTANTS[name][0]) for e, name in MUTANTS}


@pytest.mark.parametrize(("exercise", "name"), MUTANTS, ids=label)
def test_a_mutant_fails_with_its_diagnosis(reports, exercise, name):
    report, words = reports[exercise.id, name], ANSWERS[exercise.id].MUTANTS[name][1]
    assert report.status == "failed", report
    assert words in str(report), report
    assert "The check itself stopped" not in str(report), report


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_mutants_are_many_and_their_diagnoses_distinct(reports, exercise):
    module = ANSWERS[exercise.id]
    words = [w for _, w in module.MUTANTS.values()]
    assert len(module.MUTANTS) >= 5
    assert len(set(words)) == len(words)
    shown = []
    for name in module.MUTANTS:
        (wrong,) = [layer for layer in reports[exercise.id, name].layers if layer.status == "failed"]
        shown.append(wrong.diagnosis or wrong.message)
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_three_mutants_pass_shape_and_example(reports, exercise):
    chosen = ANSWERS[exercise.id].PASS_EXAMPLE
    assert len(chosen) >= 3
    for name in chosen:
        layers = reports[exercise.id, name].layers
        assert [(x.name, x.status) for x in layers[:2]] == [
            (SHAPE_LAYER, "passed"),
            (EXAMPLE_LAYER, "passed"),
        ]


@pytest.mark.parametrize(("exercise", "name"), RIGHT, ids=label)
def test_a_right_answer_passes_however_it_is_written(exercise, name):
    report = judge(exercise, ANSWERS[exercise.id].RIGHT[name])
    assert report.passed, report
    assert len(ANSWERS[exercise.id].RIGHT) >= 3


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_the_stub_is_not_attempted(exercise):
    names = {}
    exec(f"def {exercise.name}(*args):\n    raise NotImplementedError('your turn')", names)
    report = judge(exercise, names[exercise.name])
    assert report.status == "not attempted"
    assert report.layers == []


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_an_exercise_is_complete(exercise):
    assert exercise.name.isidentifier()
    assert exercise.arguments
    assert 1 <= exercise.minutes <= 60
    assert all(len(hint) > 20 for hint in exercise.hints)
    assert len(set(exercise.hints)) == 3
    assert exercise.unlocks
    for name in exercise.forbidden:
        assert resolve(name) is not None, f"{name} does not exist"


def test_names_are_unique_over_the_course():
    names = [e.name for e in EXERCISES]
    assert len(set(names)) == len(names)


def test_every_mutants_module_has_its_exercise():
    wanted = {f"ch{e.chapter}_{e.name}" for e in EXERCISES}
    assert {p.stem for p in FOLDER.glob("ch*.py")} == wanted


def test_checks_are_independent_of_solutions_and_of_the_notebook():
    for exercise in EXERCISES:
        tree = ast.parse(inspect.getsource(inspect.getmodule(exercise.check)))
        names = [n.name for x in ast.walk(tree) if isinstance(x, ast.Import) for n in x.names]
        names += [x.module for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)]
        assert {n.split(".")[0] for n in names} <= {
            "__future__",
            "collections",
            "functools",
            "math",
            "numpy",
            "torch",
            "ssmcourse",
        }
        assert all(n.startswith("ssmcourse.grading") for n in names if n.startswith("ssmcourse"))


ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "exercises").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_worked_solution_passes_and_every_stub_is_not_attempted(notebook):
    wanted = [e.id for e in EXERCISES if e.chapter == notebook.stem[:2]]
    for folder, status in (("solutions", "passed"), ("exercises", "not attempted")):
        graded = grade_file(ROOT / folder / notebook.name)
        assert {r.id: r.status for r in graded.reports} == dict.fromkeys(wanted, status), graded.reports
