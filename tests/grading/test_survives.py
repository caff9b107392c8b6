# ruff: noqa: E722, SIM105, N818
"""Whatever the learner's function does: a verdict, a clear line, no traceback of ours."""

import sys
import time

import numpy as np
import pytest
import torch

from ssmcourse.grading import registry
from ssmcourse.grading.judge import judge
from ssmcourse.grading.registry import Exercise


def report_on(function, **changes):
    exercise = registry.find("start.run_memory")
    report = judge(Exercise(**(vars(exercise) | {"time_limit": 0.5} | changes)), function)
    assert "Traceback" not in str(report)
    assert "The check itself stopped" not in str(report)
    return report


def raises(a, x):
    return x[99]


def exits(a, x):
    sys.exit(0)


def recurses(a, x):
    return recurses(a, x)


def loops(a, x):
    while True:
        try:
            time.sleep(1)
        except:
            pass


def changes_x(a, x):
    for t in range(1, len(x)):
        x[t] += a * x[t - 1]
    return x


def raises_what_cannot_be_shown(a, x):
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    raise Odd


async def coroutine(a, x):
    return x


def generator(a, x):
    yield x


class Sub(torch.Tensor):
    pass


def not_implemented_by_torch(a, x):
    return torch.ops.aten._fused_adam_([x], [], [], [], [], [])


BAD = {
    "exception": (
        raises,
        "Your code raises IndexError: index 99 is out of bounds",
        "in raises, line",
        "return x[99]",
    ),
    "sys.exit": (exits, "calls sys.exit()"),
    "None": (lambda a, x: None, "The answer is None", "a `return` is missing"),
    "number": (lambda a, x: 3.0, "The answer is a float; expected a torch tensor of shape (4,)"),
    "list": (lambda a, x: x.tolist(), "The answer is a list"),
    "array": (lambda a, x: x.numpy(), "The answer is a NumPy array", "compute it in torch"),
    "subclass": (lambda a, x: x.clone().as_subclass(Sub), "a subclass of Tensor"),
    "coroutine": (coroutine, "The answer is a coroutine"),
    "generator": (generator, "The answer is a generator"),
    "tensors": (lambda a, x: list(x), "The answer is a list", "torch.stack(...) makes one tensor"),
    "asks": (lambda a, x: input("x?"), "input() waits for somebody to type"),
    "shape": (lambda a, x: x[None], "shape (1, 4); expected (4,)", "an axis of length 1 is too many"),
    "short": (lambda a, x: x[:-1], "shape (3,); expected (4,)", "one is missing"),
    "long": (lambda a, x: torch.cat([x, x[:1]]), "shape (5,); expected (4,)", "one too many"),
    "dtype": (lambda a, x: x.double(), "dtype float64; expected float32", "NumPy and of Python are float64"),
    "integers": (lambda a, x: x.long(), "dtype int64; expected float32"),
    "sparse": (lambda a, x: x.to_sparse(), "expected torch.strided"),
    "NaN": (lambda a, x: x * torch.nan, "holds NaN"),
    "infinity": (lambda a, x: x + torch.inf, "holds infinity"),
    "zeros": (lambda a, x: torch.zeros_like(x), "all zeros"),
    "endless": (loops, "time limit of 0.5 s ran out", "a loop that does not end"),
    "recursion": (recurses, "calls itself without end"),
    "in place": (changes_x, "You changed x in place: it was [1, 0, 2, 0]", "x.clone()"),
    "itself": (lambda a, x: x, "this is x itself"),
    "odd exception": (raises_what_cannot_be_shown, "Your code raises Odd"),
    "arguments": (lambda x: x, "The signature is run_memory(a: float, x: Tensor)", "yours is run_memory(x)"),
    "no function": (3, "run_memory is an int, expected a function"),
}


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("name", BAD)
def test_bad_code_gets_a_clear_line(name):
    function, *words = BAD[name]
    report = report_on(function)
    assert report.status == "failed"
    for part in words:
        assert part in str(report)
    assert [layer.status for layer in report.layers].count("failed") == 1
    assert report.layers[-1].status == "not reached"


def test_a_million_lines_are_cut(right):
    def prints(a, x):
        if len(x) == 4:
            for i in range(1_000_000):
                print(i)
            print("on stderr", file=sys.stderr)
        return right(a, x)

    report = report_on(prints, time_limit=60.0)
    assert report.passed
    assert len(report.printed) < 3000
    assert "characters in all" in report.printed
    assert report.printed.startswith("0\n1\n2\n")


def test_what_is_printed_is_not_on_the_screen(capsys, right):
    def prints(a, x):
        print("hello")
        return right(a, x)

    assert "hello" in report_on(prints).printed
    assert capsys.readouterr().out == ""


def test_one_endless_line_is_cut():
    def prints(a, x):
        sys.stdout.write("x" * 5_000_000)

    assert len(report_on(prints).printed) < 3000


def test_the_stub_is_not_attempted_and_torchs_own_gap_is_an_error():
    def stub(a, x):
        raise NotImplementedError("your turn")

    def gap(a, x):
        return torch.empty_like(x, device="meta").cpu()

    assert report_on(stub).status == "not attempted"
    report = report_on(gap)
    assert report.status == "failed"
    assert "NotImplementedError" in str(report)


def test_a_stub_left_in_a_branch_is_a_failure(right):
    def half(a, x):
        if len(x) == 4:
            return right(a, x)
        raise NotImplementedError

    report = report_on(half)
    assert report.status == "failed"
    assert "still in the way" in str(report)


def test_the_learners_seed_and_defaults_change_nothing(right):
    first = report_on(lambda a, x: right(a, x) + torch.rand(len(x)) * 0.01)
    np.random.seed(3)
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    try:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        second = report_on(lambda a, x: right(a, x) + torch.rand(len(x)) * 0.01)
        assert report_on(right).passed
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()
        assert torch.get_default_dtype() == torch.float64
        assert not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    assert str(first) == str(second)


def test_a_report_is_the_same_every_time():
    assert str(report_on(raises)) == str(report_on(raises))


def test_an_error_in_a_later_layer_says_with_what_it_came():
    def wrong(a, x):
        return x.cumsum(0) if len(x) != 4 else torch.tensor([1, 0.5, 2.25, 1.125])

    layers = report_on(wrong).layers
    assert [x.status for x in layers[:3]] == ["passed", "passed", "failed"]
    assert "a = 0.9, x = float64 of shape (17,)" in layers[2].message
    assert "never multiply h by a" in layers[2].diagnosis
