"""The linear scan's CPU backend: work shared out among threads, memory used again, gates no float can hold."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from operator_table import assert_agrees, random
from test_linear_scan import gates
from torch import Tensor

from ssmcourse.kernels import memory
from ssmcourse.scan import linear_scan
from ssmcourse.tolerance import mismatch


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


SHARED_OUT = {
    "rows": ((5, 600, 30), None),
    "rows with one gate each": ((5, 600, 30), (5, 1, 30)),
    "rows with the same gates": ((5, 600, 30), (1, 600, 30)),
    "blocks of channels": ((1, 70, 1200), None),
    "pieces of l": ((1, 2100, 33), None),
    "pieces of l with a constant gate": ((1, 2100, 33), (1, 1, 33)),
    "pieces of l, two rows": ((1, 1400, 2, 32), None),
    "narrow": ((70, 950), None),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "gate"), SHARED_OUT.values(), ids=SHARED_OUT.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.usefixtures("four_threads")
def test_threads_share_the_work(shape, gate, dtype, reverse):
    inputs = {
        "a": 0.9 * gates(gate or shape, dtype),
        "b": random(shape, dtype, seed=2),
        "initial_state": random((shape[0], *shape[2:]), dtype, seed=3),
    }
    assert_agrees(
        functools.partial(linear_scan, backend="cpu"),
        by_steps,
        inputs,
        terms=100 if gate is None else 3000,
        reverse=reverse,
    )


def by_steps(a: Tensor, b: Tensor, initial_state: Tensor, *, reverse: bool) -> Tensor:
    """The definition again, for lengths at which the matrix would not fit: no library code."""
    h, out = initial_state, []
    order = range(b.shape[1])
    a, b = a.expand(b.shape).unbind(1), b.unbind(1)
    for t in reversed(order) if reverse else order:
        h = a[t] * h + b[t]
        out.append(h)
    return torch.stack(out[::-1] if reverse else out, 1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_shares_one_row(threads, reverse):
    """The first piece is done while the others are summed up; two threads have one of each."""
    inputs = {
        "a": 0.9 * gates((1, 2100, 33)),
        "b": random((1, 2100, 33), seed=2),
        "initial_state": random((1, 33), seed=3),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_agrees(
            functools.partial(linear_scan, backend="cpu"), by_steps, inputs, terms=100, reverse=reverse
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("shape", "gate"),
    [((2, 1024, 512), None), ((2, 1100, 512), (2, 1, 512)), ((1, 8256, 128), (1, 8256, 128))],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_results_too_large_for_the_cache(threads, shape, gate, reverse):
    """They are written past the cache, into memory that may have been used before."""
    a, b, first = 0.9 * gates(gate or shape), random(shape, seed=2), random((shape[0], shape[2]), seed=3)
    expected = by_steps(a, b, first, reverse=reverse)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dtype in (torch.float64, torch.float32):
            h = linear_scan(a.to(dtype), b.to(dtype), first.to(dtype), reverse=reverse, backend="cpu")
            assert mismatch(h, expected, terms=100) is None
            del h
    finally:
        torch.set_num_threads(before)


def test_memory_is_used_again_but_never_while_somebody_has_it():
    a, b = torch.full((1, 1, 512), 0.5), torch.ones(1, 4096, 512)
    h = linear_scan(a, b, backend="cpu")
    kept, place = h[0, -1:], h.data_ptr()
    del h
    other = linear_scan(a, 3 * b, backend="cpu")
    assert other.data_ptr() != place, "a view still has it"
    assert kept.unique().tolist() == [2]
    del kept
    assert linear_scan(a, b, backend="cpu").data_ptr() == place
    assert sum(size * len(free) for size, free in memory._free.items()) <= memory.KEPT


@pytest.mark.usefixtures("four_threads")
def test_gates_whose_product_overflows_a_piece():
    """1.2 to the 700th is beyond float32; the states that matter are not, since b is 0 until late."""
    a, b = torch.full((1, 2100, 33), 1.2), torch.zeros(1, 2100, 33)
    b[:, 2090:] = 1
    problem = mismatch(linear_scan(a, b, backend="cpu"), linear_scan(a, b, backend="reference"), terms=10)
    assert problem is None, str(problem)


# --- Products of gates that a float cannot hold -------------------------------------------------


def _then_ones(*gates: float) -> torch.Tensor:
    return torch.tensor([*gates, *[1.0] * (8 - len(gates))]).reshape(1, 8, 1)


def _halved_then_doubled() -> torch.Tensor:
    a = torch.ones(1, 9000, 16)
    a[:, 1300:1420], a[:, 2000:2120] = 0.5, 2.0  # both in one piece of four threads
    return a


@pytest.mark.parametrize(
    ("a", "state", "last"),
    [
        (_then_ones(1e-25, 1e-25, 1e25, 1e25), 1e30, 1e30),
        (_then_ones(1e20, 1e20, 0.0), 0.0, 0.0),
        (_then_ones(*[1e-20] * 8), math.inf, math.inf),
        (_then_ones(1.0, math.inf), 1.0, math.inf),
        (_halved_then_doubled(), 1.0, 1.0),
        (torch.full((1, 9000, 16), 0.5), math.inf, math.inf),
    ],
    ids=[
        "tiny then huge",
        "huge then zero",
        "inf state",
        "inf gate",
        "through pieces",
        "inf state in pieces",
    ],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_products_of_gates_that_a_float_cannot_hold(a, state, last, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = torch.full((1, a.shape[2]), state)
        h = linear_scan(a, torch.zeros_like(a), first, backend="cpu")
        expected = linear_scan(a, torch.zeros_like(a), first, backend="reference")
    finally:
        torch.set_num_threads(before)
    assert mismatch(h, expected, terms=a.shape[1]) is None
    assert h[0, -1, 0].item() == pytest.approx(last)
