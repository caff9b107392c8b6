"""Replacing what a verdict depends on changes no verdict, and is told."""

import builtins
import importlib

import numpy as np
import pytest
import torch

import ssmcourse
from ssmcourse import check, tolerance
from ssmcourse.grading import judge as judge_module
from ssmcourse.grading import trial as trial_module
from ssmcourse.grading.report import Report


def run_memory(a, x):
    """Wrong: nothing fades."""
    total, out = 0, []
    for value in x:
        total = total + value
        out.append(total)
    return torch.stack(out)


def yes(*args, **kwargs):
    return True


REPLACED = [
    "torch.allclose", "torch.equal", "torch.isclose", "torch.testing.assert_close", "torch.abs",
    "numpy.allclose", "numpy.array_equal", "numpy.isclose", "numpy.abs",
    "numpy.testing.assert_allclose", "numpy.testing.assert_array_equal",
    "ssmcourse.tolerance.mismatch", "ssmcourse.tolerance.to_float64", "ssmcourse.grading.compare.same",
    "ssmcourse.grading.session._check", "ssmcourse.grading.session.verdict",
]  # fmt: skip


@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_function_changes_no_verdict(monkeypatch, name):
    honest = str(check(run_memory))
    module, _, attribute = name.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), attribute, yes)
    report = check(run_memory)
    assert report.status == "failed"
    told = [f"Replaced in this notebook, and not used by the check: {name}."]
    assert report.notes == told
    assert str(report).replace(f"    {told[0]}\n", "") == honest
    assert getattr(importlib.import_module(module), attribute) is yes  # the notebook keeps what it made


def test_methods_classes_bodies_tables_and_builtins(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "detach", lambda self: torch.zeros(4))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: [0])
    monkeypatch.setattr(Report, "passed", True)
    monkeypatch.setattr(trial_module.Trial, "compare", yes)
    monkeypatch.setattr(judge_module.judge, "__code__", yes.__code__)
    monkeypatch.setitem(tolerance.BASE_RTOL, torch.float32, 1e9)
    real = builtins.isinstance
    monkeypatch.setattr(builtins, "isinstance", lambda value, kind: real(value, kind))
    report = check(run_memory)
    assert report.status == "failed"
    for name in (
        "torch.Tensor.detach",
        "torch.Tensor.tolist",
        "Trial.compare",
        "judge.judge",
        "tolerance",
        "isinstance",
    ):
        assert name in report.notes[0]


def test_replacing_check_itself_is_the_notebooks_own_affair(monkeypatch):
    monkeypatch.setattr(ssmcourse, "check", yes)
    assert ssmcourse.check(run_memory) is True
    assert check(run_memory).status == "failed"


def test_nothing_replaced_nothing_told():
    import torch._dynamo  # noqa: F401  replaces torch.manual_seed by its own

    assert check(run_memory).notes == []
    assert np.isclose(1.0, 1.0)
