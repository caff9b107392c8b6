"""Registering exercises and finding them."""

import pytest

from ssmcourse.grading import registry
from ssmcourse.grading.registry import Exercise, exercise, exercises, find

FIELDS = {
    "chapter": "99", "title": "T", "difficulty": 1, "minutes": 1, "signature": "thing(a, b: int) -> (A, B)",
    "unlocks": "u", "hints": ("1", "2", "3"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    registry.load()
    monkeypatch.setattr(registry, "_EXERCISES", dict(registry._EXERCISES))


def test_registered_and_found():
    @exercise("test.thing", **FIELDS)
    def check(trial):
        pass

    found = find("thing")
    assert found is find("test.thing")
    assert found.check is check
    assert (found.name, found.arguments, found.results) == ("thing", ("a", "b"), ("A", "B"))
    assert exercises("99") == [found]
    assert exercises()[-1] is found


@pytest.mark.parametrize(
    ("change", "words"),
    [({"chapter": "9"}, "two digits"), ({"difficulty": 6}, "1 to 5"), ({"hints": ("1",)}, "expected three"),
     ({"signature": "other(a)"}, "expected it to begin with 'thing'")],
)  # fmt: skip
def test_a_field_that_is_not_right(change, words):
    with pytest.raises(ValueError, match=words):
        exercise("test.thing", **FIELDS | change)(lambda trial: None)


def test_a_name_that_is_taken():
    fields = FIELDS | {"signature": "run_memory(a)"}
    with pytest.raises(ValueError, match="share the name 'run_memory'"):
        exercise("test.run_memory", **fields)(lambda trial: None)


def test_a_signature_without_named_results():
    plain = Exercise("x.f", "99", "t", 1, 1, "f(x: Tensor) -> Tensor", "", ("", "", ""), lambda trial: None)
    assert plain.results == ()
