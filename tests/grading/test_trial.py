"""What a check can ask of the trial, with functions that are wrong in one way each."""

import pytest
import torch

from ssmcourse.grading.judge import judge
from ssmcourse.grading.registry import Exercise


def report_on(check, function, signature="f(x: Tensor) -> Tensor"):
    return judge(Exercise("test.f", "99", "F", 1, 1, signature, "", ("", "", ""), check), function)


def only(report):
    (layer,) = report.layers
    return layer


def layer(ask):
    def check(trial):
        with trial.layer("it"):
            ask(trial)

    return check


PROPERTIES = {
    "causal": (lambda t: t.causal((t.randn(8),), arg="x"), lambda x: x.cumsum(0), lambda x: x + x.mean()),
    "linear": (lambda t: t.linear((t.randn(8),), arg="x"), lambda x: 3 * x, lambda x: x * x),
    "affine": (lambda t: t.linear((t.randn(8),), arg="x"), lambda x: 3 * x, lambda x: x + 1),
    "gradients": (lambda t: t.gradients((t.randn(4),), torch.sin), torch.sin, lambda x: x.detach().sin() * x),
    "cut graph": (lambda t: t.gradients((t.randn(4),), torch.sin), torch.sin, lambda x: x.detach().sin()),
    "require": (
        lambda t: t.require(bool(t.call(t.rand(3)).sum() > 0), "no"),
        lambda x: x + 1,
        lambda x: x - 9,
    ),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_holds_or_fails(name):
    ask, right, wrong = PROPERTIES[name]
    assert report_on(layer(ask), right).passed
    assert only(report_on(layer(ask), wrong)).status == "failed"


def test_gradients_of_every_argument_and_of_tuples():
    def oracle(a, b):
        return a * b, a + b

    ask = layer(lambda t: t.gradients((t.randn(3), t.randn(3)), oracle))
    assert report_on(ask, oracle, "f(a, b) -> (p, q)").passed
    wrong = only(report_on(ask, lambda a, b: (a * b.detach(), a + b), "f(a, b) -> (p, q)"))
    assert wrong.message.startswith("The gradient of b")
    short = only(report_on(ask, lambda a, b: a * b, "f(a, b) -> (p, q)"))
    assert "expected (p, q)" in short.message


X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
PATTERNS = {
    "the sign is turned": lambda x: -X,
    "rows and columns are exchanged": lambda x: X.T.clone(),
    "2.5 times the expected one": lambda x: 2.5 * X,
    "all zeros": lambda x: 0 * X,
    "holds NaN": lambda x: X * torch.tensor([1.0, torch.nan]),
    "it is doubled and shifted": lambda x: 2 * X + 1,
}


@pytest.mark.parametrize("words", PATTERNS)
def test_a_wrong_answer_is_recognised(words):
    ask = layer(lambda t: t.compare((X,), X, mistakes={"it is doubled and shifted": 2 * X + 1}))
    failed = only(report_on(ask, PATTERNS[words]))
    assert words in failed.diagnosis
    if "NaN" not in words:
        assert "expected [[1, 2], [3, 4]]" in failed.message


def test_the_first_mistake_that_fits_is_told_and_a_crashing_layer_is_no_pass():
    def check(trial):
        trial.mistake("first", lambda x: x + 1)
        trial.mistake("second", lambda x: x + 1)
        with trial.layer("one"):
            trial.compare((X,), X)
        with trial.layer("two"):
            raise ZeroDivisionError

    one, two = report_on(check, lambda x: x + 1).layers
    assert one.diagnosis == "first"
    assert two.status == "not reached"
    one, two = report_on(check, lambda x: x.clone()).layers
    assert (one.status, two.status) == ("passed", "failed")
    assert "The check itself stopped with ZeroDivisionError" in two.message


def test_inputs_are_copies_and_lists_are_watched():
    def spoils(values):
        values.append(3)
        return torch.ones(1)

    given = [1, 2]
    failed = only(
        report_on(layer(lambda t: t.compare((given,), torch.ones(1))), spoils, "f(values: list) -> Tensor")
    )
    assert failed.message.startswith("You changed values in place")
    assert given == [1, 2]


@pytest.mark.parametrize(
    ("expected", "right", "wrong", "words"),
    [(3, 3, 4, "expected 3"), (0.5, torch.tensor(0.5), "half", "expected a number"), ("ab", "ab", "ba", "'ba'"),
     (True, True, 1, "expected a bool"), ((1, X), [1, X], (1, 2, 3), "expected (n, M)"), ((1, X), (1, X), (1, 2 * X), "M")],
)  # fmt: skip
def test_answers_of_other_kinds(expected, right, wrong, words):
    def check(trial):
        trial.example(X, expect=expected)

    signature = "f(x: Tensor) -> (n, M)"
    assert report_on(check, lambda x: right, signature).passed
    assert words in str(report_on(check, lambda x: wrong, signature))


def test_all_calls_share_one_limit():
    import dataclasses
    import time

    def check(trial):
        for i in range(10):
            with trial.layer(str(i)):
                trial.compare((X,), X)

    def slow(x):
        time.sleep(0.15)
        return x.clone()

    exercise = Exercise("test.f", "99", "F", 1, 1, "f(x)", "", ("", "", ""), check)
    report = judge(dataclasses.replace(exercise, time_limit=0.4), slow)
    assert [x.status for x in report.layers[:4]] == ["passed", "passed", "failed", "not reached"]
    assert "time limit of 0.4 s" in str(report)
