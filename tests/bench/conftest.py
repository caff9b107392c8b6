"""Rivals that are right, wrong, missing or broken, and what `ssmcourse bench` makes of them."""

from __future__ import annotations

import json

import pytest
import torch

from ssmcourse.bench import compare, contestants, session
from ssmcourse.bench.operators import OPERATORS
from ssmcourse.bench.peers import Peer


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def half(a, b):
    return OPERATORS["linear_scan"].oracle(a, b) * 1.001


def broken(a, b):
    raise RuntimeError("no such\nthing")


def no_gradient(a, b):
    return OPERATORS["linear_scan"].oracle(a.detach(), b)


def some_rivals():
    """A wrong rival, which is quick, one that fails, one without a gradient, one not installed, one that is right."""
    return [
        Peer("linear_scan", "quick and wrong", half),
        Peer("linear_scan", "broken", broken),
        Peer("linear_scan", "no gradient", no_gradient),
        Peer("linear_scan", "missing", half, package="pip-name", module="no_such_module.inside"),
        Peer("linear_scan", "plain", OPERATORS["linear_scan"].oracle),
    ]


@pytest.fixture
def rivals(monkeypatch):
    made = some_rivals()
    monkeypatch.setattr(contestants, "PEERS", made)
    return made


@pytest.fixture(scope="session")
def cases():
    """The rivals measured on one thread and on two, and how many threads torch used then."""
    op = OPERATORS["linear_scan"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestants, "PEERS", some_rivals())
        one = compare.compare(op, (2, 70, 16), rounds=2, budget=1.0)
        two = compare.compare(op, (2, 70, 16), threads=2, rounds=2, budget=1.0, known=one)
    return [one, two], torch.get_num_threads()


@pytest.fixture
def result(cases):
    """A result as it is stored, of two cases: one and two threads."""
    op, (cases, _) = OPERATORS["linear_scan"], cases
    made = {
        "date": "2026-01-31",
        "machine": "a machine",
        "operator": "linear_scan",
        "letters": op.letters,
        "dtype": "float32",
        "cases": cases,
        "scaling": {
            "lengths": [4096, 65536],
            "forward": {"ns_a_step": [1.0, 1.1], "ratio": 1.1, "of_copy_bandwidth": 0.7},
            "both": {"ns_a_step": [1.0, 1.3], "ratio": 1.3, "of_copy_bandwidth": 0.5},
        },
        "memory": [{"who": "ours, cpu", "sizes": [2, 70, 16], "mb": 12.0, "needed_mb": 10.0}],
        "failed": [],
        "load": {"least": 0.1, "most": 3.0},
    }
    made["memory"][0]["ratio"] = 1.2
    made["warnings"] = session.warnings(made)
    return json.loads(json.dumps(made))  # plain data only
