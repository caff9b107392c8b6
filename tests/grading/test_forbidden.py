"""Calling the answer is noticed, however it is spelled."""

import functools
import itertools
from collections import deque

import numpy as np
import pytest
import torch

import ssmcourse
import ssmcourse.scan
from ssmcourse.grading.forbidden import CallsTheAnswer, Watch, resolve
from ssmcourse.grading.judge import judge
from ssmcourse.grading.registry import Exercise
from ssmcourse.grading.report import FAILED
from ssmcourse.scan import linear_scan as another_name

ALIAS = ssmcourse.linear_scan
IN_A_LIST = [ssmcourse.linear_scan]


def check_sum(trial):
    trial.example(torch.arange(1.0, 4.0), expect=torch.tensor([1.0, 3.0, 6.0]))


def report_on(function, *forbidden):
    exercise = Exercise(
        "test.running_sum", "99", "Running sum", 1, 1, "running_sum(x: Tensor) -> Tensor", "", ("", "", ""),
        check_sum, forbidden,
    )  # fmt: skip
    return judge(exercise, function)


def scan(function, x):
    return function(torch.ones(1, len(x)), x[None])[0]


def swallowing(x):
    try:
        return scan(ssmcourse.linear_scan, x)
    except:  # noqa: E722
        return x.cumsum(0)


def inner_import(x):
    from ssmcourse.scan import linear_scan

    return scan(linear_scan, x)


def default_argument(x, f=ssmcourse.linear_scan):
    return scan(f, x)


LIBRARY = {
    "attribute": lambda x: scan(ssmcourse.linear_scan, x),
    "module": lambda x: scan(ssmcourse.scan.linear_scan, x),
    "alias": lambda x: scan(ALIAS, x),
    "import as": lambda x: scan(another_name, x),
    "import inside": inner_import,
    "in a list": lambda x: scan(IN_A_LIST[0], x),
    "default argument": default_argument,
    "partial": lambda x: scan(functools.partial(another_name), x),
    "map": lambda x: next(map(another_name, [torch.ones(1, len(x))], [x[None]]))[0],
    "getattr": lambda x: scan(getattr(ssmcourse, "linear" + "_scan"), x),
    "bare except": swallowing,
}


@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_function_is_noticed(name):
    report = report_on(LIBRARY[name], "ssmcourse.linear_scan")
    assert report.status == FAILED
    assert "This calls the answer: running_sum may not use ssmcourse.linear_scan (in " in str(report)


def test_the_function_itself_handed_in_is_noticed():
    def check(trial):
        trial.example(torch.ones(1, 3), torch.ones(1, 3), expect=torch.tensor([[1.0, 2.0, 3.0]]))

    exercise = Exercise(
        "test.linear_scan",
        "99",
        "Scan",
        1,
        1,
        "linear_scan(a, b)",
        "",
        ("", "", ""),
        check,
        ("ssmcourse.linear_scan",),
    )
    assert "This calls the answer" in str(judge(exercise, ssmcourse.linear_scan))


TORCH = {
    "function": lambda x: torch.cumsum(x, 0),
    "method": lambda x: x.cumsum(0),
    "in place": lambda x: x.clone().cumsum_(0),
    "unbound": lambda x: torch.Tensor.cumsum(x, 0),
    "alias": (lambda f: lambda x: f(x, 0))(torch.cumsum),
    "map": lambda x: next(map(torch.cumsum, [x], [0])),
    "getattr": lambda x: getattr(x, "cum" + "sum")(0),
}


@pytest.mark.parametrize("name", TORCH)
def test_torchs_function_is_noticed(name):
    report = report_on(TORCH[name], "torch.cumsum")
    assert "may not use torch.cumsum" in str(report)


def test_the_line_is_named():
    def running_sum(x):
        y = x + 0
        return y.cumsum(0)

    assert "in running_sum, line" in str(report_on(running_sum, "torch.cumsum"))
    assert "return y.cumsum(0)" in str(report_on(running_sum, "torch.cumsum"))


def test_other_packages_are_noticed():
    spread = np.cumsum

    def by_closure(x):
        return torch.from_numpy(spread(x.numpy()))

    assert "may not use numpy.cumsum" in str(report_on(by_closure, "numpy.cumsum"))
    assert "may not use numpy.cumsum" in str(
        report_on(lambda x: torch.from_numpy(np.cumsum(x.numpy())), "numpy.cumsum")
    )
    sums = lambda x: torch.tensor(list(itertools.accumulate(x.tolist())))  # noqa: E731
    assert "may not use itertools.accumulate" in str(report_on(sums, "itertools.accumulate"))


def test_what_is_not_forbidden_passes_and_nothing_is_left_behind():
    before = ssmcourse.linear_scan.__code__, torch.cumsum, np.cumsum, itertools.accumulate
    names = ("ssmcourse.linear_scan", "torch.cumprod", "numpy.cumsum", "itertools.accumulate", "not.there")
    assert report_on(lambda x: x.cumsum(0), *names).passed
    assert report_on(LIBRARY["alias"], *names).status == FAILED
    assert (ssmcourse.linear_scan.__code__, torch.cumsum, np.cumsum, itertools.accumulate) == before
    assert scan(ssmcourse.linear_scan, torch.ones(3)).tolist() == [1.0, 2.0, 3.0]


def test_the_library_may_call_it_inside():
    """hippo_project may use linear_scan; only the learner's own calls count."""
    inside = {"__name__": "ssmcourse.somewhere", "f": ssmcourse.linear_scan}
    exec("def allowed(a, b):\n    return f(a, b)", inside)
    a, b = torch.ones(1, 3), torch.ones(1, 3)
    with Watch(("ssmcourse.linear_scan",)) as watch:
        assert inside["allowed"](a, b).tolist() == [[1.0, 2.0, 3.0]]
        with pytest.raises(CallsTheAnswer):
            ssmcourse.linear_scan(a, b)
    assert watch.called == "ssmcourse.linear_scan"


def test_a_closure_of_the_library_can_be_watched():
    def make():
        extra = deque([1])
        return lambda a: a + extra[0]

    ssmcourse.scan.made_up = make()
    try:
        with Watch(("ssmcourse.scan.made_up",)) as watch, pytest.raises(CallsTheAnswer):
            ssmcourse.scan.made_up(1)
        assert watch.called
        assert ssmcourse.scan.made_up(1) == 2
    finally:
        del ssmcourse.scan.made_up


def test_resolve_finds_names_and_says_none_for_others():
    assert resolve("torch.cumsum") is torch.cumsum
    assert resolve("torch.no_such") is None
    assert resolve("no_such_package.f") is None
