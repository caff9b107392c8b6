"""What an exercise's text says and what its check asks are the same thing."""

import ast
import re
from pathlib import Path

import pytest
import torch

from ssmcourse.grading import registry
from ssmcourse.grading.judge import judge
from ssmcourse.grading.trial import Trial

TEXTS = Path(__file__).parents[2] / "authoring" / "exercises"
EXERCISES = registry.exercises()
HEADING = re.compile(r"^# ## \d+\. `(\w+)` \(difficulty (\d), (\d+) minutes\)$", re.M)


def chapter_text(chapter):
    (file,) = TEXTS.glob(f"{chapter}_*.py")
    return file.read_text()


def section(exercise):
    """The text from the exercise's heading to the next one."""
    text = chapter_text(exercise.chapter)
    starts = {m[1]: m.start() for m in HEADING.finditer(text)}
    later = [s for s in starts.values() if s > starts[exercise.name]]
    return text[starts[exercise.name] : min(later, default=len(text))]


class _Opening(Trial):
    """A trial that ends at the worked example: it holds the example and the mistakes that are known."""

    class EndError(Exception):
        pass

    def __init__(self, exercise):
        super().__init__(exercise, lambda *args: None)
        before = torch.get_default_dtype()
        try:
            with pytest.raises(self.EndError):
                exercise.check(self)
        finally:
            torch.set_default_dtype(before)

    def example(self, *args, expect, **_):
        self.seen = args, expect
        raise self.EndError


def numbers(value):
    if isinstance(value, torch.Tensor):
        return value.flatten().tolist()
    if isinstance(value, tuple):
        return [n for part in value for n in numbers(part)]
    return [float(value)]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_difficulty_and_minutes_are_those_of_the_text(exercise):
    said = {m[1]: (int(m[2]), int(m[3])) for m in HEADING.finditer(chapter_text(exercise.chapter))}
    assert said[exercise.name] == (exercise.difficulty, exercise.minutes)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_arguments_are_those_of_the_stub(exercise):
    functions = [n for n in ast.parse(chapter_text(exercise.chapter)).body if isinstance(n, ast.FunctionDef)]
    (stub,) = [f for f in functions if f.name == exercise.name]
    assert tuple(a.arg for a in stub.args.args) == exercise.arguments


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_the_worked_example_is_in_the_text(exercise):
    """Every number given and every number expected, to the four digits that the text prints."""
    text = section(exercise)
    text = text[text.index("Worked example") :]
    printed = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text)]
    for number in numbers(_Opening(exercise).seen):
        assert any(abs(number - p) <= 5e-5 for p in printed), number


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_the_third_hint_is_nearly_the_code(exercise):
    lines = exercise.hints[2].splitlines()
    ast.parse("def f():\n" + "\n".join(f"    {line}" for line in lines))
    assert "..." in exercise.hints[2]
    assert len(lines) <= 6


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_every_known_mistake_is_told_by_its_own_words(exercise):
    """Handed in as an answer, each fails, and no earlier one takes its place."""
    known = {w: f for w, f in _Opening(exercise)._mistakes.items() if ". And " not in w}
    assert len(known) >= 7
    for words, wrong in known.items():
        failed = [x for x in judge(exercise, wrong).layers if x.status == "failed"]
        assert [x.diagnosis for x in failed] == [words]
