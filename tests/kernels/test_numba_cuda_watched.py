"""The Numba CUDA ladder under the sanitizer: clean, no barrier too many, and as cheap as theory says."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections import Counter
from math import log2

import pytest
import torch
from numba import cuda
from test_numba_cuda import PARALLEL, RUNGS, by_steps, given, simulated
from torch import Tensor

from ssmcourse.kernels.linear_scan.numba_cuda import (
    ALGORITHMS,
    blelloch,
    hillis_steele,
    look_back,
    scan,
    several_steps,
    three_phases,
    warp_shuffles,
)
from ssmcourse.kernels.linear_scan.numba_cuda.several_steps import STEPS
from ssmcourse.kernels.sanitizer import Report, sanitize
from ssmcourse.kernels.sanitizer.machine import SCHEDULES
from ssmcourse.kernels.sanitizer.memory import bank_conflicts
from ssmcourse.tolerance import mismatch

# --- Under watch -----------------------------------------------------------------------------------


def watched(monkeypatch, run, change=lambda kernel: kernel, **options) -> tuple[Tensor, list[Report]]:
    """What `run` returns, and the reports of the kernels that it launches, each changed by `change` before."""
    reports = []

    def launch(kernel, blocks, threads, *arguments, shared=0):
        shared_bytes = shared * arguments[0].element_size()
        reports.append(
            sanitize(change(kernel), blocks, threads, *arguments, shared_bytes=shared_bytes, **options)
        )

    with monkeypatch.context() as patch:
        for rung in RUNGS:
            patch.setattr(rung, "launch", launch)
        return run(), reports


def filled(rung, inputs: tuple[Tensor, Tensor, Tensor], reverse: bool = False, *segments: int):
    """A call of a rung, to be watched."""

    def run() -> Tensor:
        h = torch.full_like(inputs[1], torch.nan)
        rung.scan(*inputs, h, reverse, *segments)
        return h

    return run


@simulated
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_clean_in_every_order_of_blocks(algorithm, reverse, monkeypatch):
    inputs = given(2, 37, 2)
    got, reports = watched(monkeypatch, lambda: scan(*inputs, reverse, algorithm))
    for report in reports:
        assert report, str(report)
    assert len(reports) == (3 if algorithm == "three_phases" else 1)
    assert mismatch(got, by_steps(*inputs, reverse), terms=37) is None


@simulated
def test_look_back_gives_the_same_bits_in_every_order(monkeypatch):
    inputs = given(1, 8 * STEPS, 3)
    results = [
        watched(monkeypatch, filled(look_back, inputs, False, 1), schedules=[order])[0] for order in SCHEDULES
    ]
    assert all(torch.equal(h, results[0]) for h in results)


@simulated
def test_look_back_goes_back_past_totals_and_up_to_a_state(monkeypatch):
    """All blocks at once: most find only the totals of those before them; one after another: never."""
    inputs = given(1, 6 * STEPS, 2)

    def reads(order: str) -> Counter:
        _, (report,) = watched(
            monkeypatch, filled(look_back, inputs, False, 1), schedules=[order], trace=True
        )
        looked = [e for e in report.trace if e.array == "published" and e.access == "read" and e.thread == 0]
        return Counter(e.index[0] for e in looked)

    at_once, one_by_one = reads("forward"), reads("alone")
    assert at_once[look_back.GATES] == at_once[look_back.STATES] > 0
    assert one_by_one == {look_back.LAST: 5}
    assert at_once[look_back.LAST] == 5


# --- Take one barrier or fence out --------------------------------------------------------------------

ORDERING = ("cuda.syncthreads()", "cuda.syncwarp()", "cuda.threadfence()")


def parts_of(kernel) -> dict[str, object]:
    """The kernel and the device functions that it calls, by name."""
    found, open_ = {}, [kernel.py_func]
    while open_:
        function = open_.pop()
        found[function.__name__] = function
        called = (function.__globals__.get(name) for name in function.__code__.co_names)
        open_ += [f.py_func for f in called if hasattr(f, "py_func") and f.py_func.__name__ not in found]
    return found


def made_again(kernel, change, **instead):
    """The kernel, and what it calls, from the same lines of the same files after change(name of the function, tree).

    `instead`: name -> what to call in place of a device function.
    """
    made = dict(instead)

    def make(function):
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
        change(function.__name__, tree)
        tree.body[0].decorator_list = []
        ast.increment_lineno(tree, first - 1)
        scope = dict(function.__globals__)
        exec(compile(ast.fix_missing_locations(tree), function.__code__.co_filename, "exec"), scope)
        for name in function.__code__.co_names:
            called = scope.get(name)
            if hasattr(called, "py_func"):
                if name not in made:
                    made[name] = cuda.jit(device=True)(make(called.py_func))
                scope[name] = made[name]
        return scope[function.__name__]

    return cuda.jit(make(kernel.py_func))


def ordering_in(kernel) -> list[tuple[str, int]]:
    """(function, line) of every barrier and fence."""
    return [
        (name, number)
        for name, function in parts_of(kernel).items()
        for number, line in enumerate(inspect.getsourcelines(function)[0], 1)
        if line.strip() in ORDERING
    ]


def without(kernel, function: str, line: int):
    """The kernel with `pass` in that line of that function."""

    class Remove(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr):
            return ast.copy_location(ast.Pass(), node) if node.lineno == line else node

    return made_again(kernel, lambda name, tree: Remove().visit(tree) if name == function else None)


TAKEN_OUT = [
    pytest.param(rung, kernel, *place, id=f"{kernel.py_func.__name__}-{place[0]}-{place[1]}")
    for rung, kernel in (
        (hillis_steele, hillis_steele.hillis_steele_kernel),
        (blelloch, blelloch.blelloch_kernel),
        (warp_shuffles, warp_shuffles.warp_shuffles_kernel),
        (several_steps, several_steps.several_steps_kernel),
        (three_phases, three_phases.scan_tiles_kernel),
        (look_back, look_back.look_back_kernel),
    )
    for place in ordering_in(kernel)
]


def test_what_can_be_taken_out():
    count = Counter(p.values[1].py_func.__name__ for p in TAKEN_OUT)
    assert count == {
        "hillis_steele_kernel": 2, "blelloch_kernel": 3, "warp_shuffles_kernel": 2, "several_steps_kernel": 2,
        "scan_tiles_kernel": 2, "look_back_kernel": 2 + 2 + 4,
    }  # fmt: skip


@simulated
@pytest.mark.parametrize(("rung", "kernel", "function", "line"), TAKEN_OUT)
def test_no_barrier_and_no_fence_can_go(rung, kernel, function, line, monkeypatch):
    broken = without(kernel, function, line)
    inputs = given(1, 35, 2)
    _, reports = watched(monkeypatch, filled(rung, inputs), lambda k: broken if k is kernel else k)
    kinds = set().union(*(report.kinds() for report in reports))
    assert "race" in kinds, "\n".join(map(str, reports))


@simulated
def test_a_kernel_made_again_is_the_kernel(monkeypatch):
    """So that what is found above is found because of what was taken out."""
    inputs = given(1, 35, 2)
    for rung in PARALLEL:
        run = filled(dict(zip(ALGORITHMS, RUNGS, strict=True))[rung], inputs)
        h, reports = watched(
            monkeypatch, run, lambda k: made_again(k, lambda *_: None), schedules=["forward"]
        )
        assert all(reports), "\n".join(map(str, reports))
        assert mismatch(h, by_steps(*inputs), terms=35) is None


# --- As cheap as theory says --------------------------------------------------------------------------


def measured(monkeypatch, rung, inputs, *segments, instead=None, **options):
    """(combinations, the only report) of a rung, run once."""
    combinations = itertools.count()

    def then(a1, b1, a2, b2):
        next(combinations)
        return a2 * a1, a2 * b1 + b2

    replaced = {"then": then} | (instead or {})
    _, (report,) = watched(
        monkeypatch,
        filled(rung, inputs, False, *segments),
        lambda kernel: made_again(kernel, lambda *_: None, **replaced),
        schedules=["forward"],
        **options,
    )
    assert report, str(report)
    return next(combinations), report


@simulated
@pytest.mark.parametrize("n", [32, 64])
def test_cost_of_hillis_steele(n, monkeypatch):
    combinations, report = measured(monkeypatch, hillis_steele, given(1, n, 1))
    rounds = int(log2(n))
    assert combinations == n * rounds - n + 1
    assert report.counts.barriers == 1 + rounds
    assert report.counts.shared_reads == 2 * combinations
    assert report.counts.shared_writes == 2 * n * (1 + rounds)
    assert report.counts.bank_conflicts == 0


def conflicts_by_theory(n: int, size: int, place) -> int:
    """Of both sweeps: up reads 4 numbers of a pair of elements and writes 2; down reads 4 and writes 4."""
    conflicts, distance = 0, 1
    while distance < n:
        elements = [2 * distance * (i + 1) - 1 for i in range(n // (2 * distance))]
        for warp in (elements[w : w + 32] for w in range(0, len(elements), 32)):
            left, right = ([size * place(k - back) for k in warp] for back in (distance, 0))
            conflicts += (2 + 4) * bank_conflicts(left, size) + (2 + 2 + 2 + 4) * bank_conflicts(right, size)
        distance *= 2
    return conflicts


@simulated
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cost_of_blelloch(dtype, monkeypatch):
    n, size = 128, torch.empty(0, dtype=dtype).element_size()
    inputs = given(1, n, 1, dtype)
    combinations, report = measured(monkeypatch, blelloch, inputs)
    assert combinations == 2 * (n - 1)
    assert report.counts.barriers == 1 + 2 * log2(n)
    assert report.counts.bank_conflicts == conflicts_by_theory(n, size, lambda k: k + k // 32)
    if dtype == torch.float32:
        assert report.counts.bank_conflicts == 0
    _, report = measured(monkeypatch, blelloch, inputs, instead={"place": lambda k: k})
    unpadded = conflicts_by_theory(n, size, lambda k: k)
    assert report.counts.bank_conflicts == unpadded > 100


@pytest.mark.parametrize("n", [2**k for k in range(11)])
def test_the_tree_has_no_bank_conflicts_at_any_size(n):
    assert conflicts_by_theory(n, 4, lambda k: k + k // 32) == 0


@simulated
def test_cost_of_warp_shuffles(monkeypatch):
    warps = 3
    combinations, report = measured(monkeypatch, warp_shuffles, given(1, 32 * warps, 1))
    assert combinations == (32 * 5 - 31) * (warps + 1)
    assert report.counts.warp_operations == 2 * 5 * (warps + 1)
    assert report.counts.barriers == 2
    assert report.counts.bank_conflicts == 0


@simulated
@pytest.mark.parametrize("rung", [hillis_steele, blelloch, warp_shuffles])
def test_threads_along_l_ask_for_a_sector_each(rung, monkeypatch):
    _, report = measured(monkeypatch, rung, given(1, 32, 8))
    assert report.counts.sectors == 8 * (3 * 32 + 1)  # 1: the initial state


@simulated
def test_cost_of_several_steps(monkeypatch):
    segments, d = 4, 32
    l = segments * STEPS
    combinations, report = measured(monkeypatch, several_steps, given(1, l, d))
    assert combinations == d * (l + segments * log2(segments) - segments + 1)
    assert report.counts.barriers == 1 + log2(segments)
    assert report.counts.bank_conflicts == 0
    assert report.counts.sectors == (3 * l + segments) * d * 4 / 32  # each segment reads the initial state
    assert report.counts.global_reads == (2 * l + segments) * d


def bytes_moved(reports: list[Report]) -> int:
    return sum(32 * (report.counts.sectors + report.counts.atomics) for report in reports)


@simulated
def test_bytes_of_three_phases(monkeypatch):
    inputs = given(1, 8 * 2 * STEPS, 32)
    _, reports = watched(monkeypatch, filled(three_phases, inputs, False, 2), schedules=["forward"])
    least = 3 * inputs[0].numel() * 4
    assert 7 / 3 < bytes_moved(reports) / least < 1.15 * 7 / 3


@simulated
@pytest.mark.parametrize("order", SCHEDULES)
def test_bytes_of_look_back(order, monkeypatch):
    """a and b are read once, h is written once; and what tiles publish is little."""
    inputs = _, b, first = given(1, 3 * 4 * STEPS, 32)
    _, (report,) = watched(monkeypatch, filled(look_back, inputs, False, 4), schedules=[order], trace=True)
    assert report, str(report)
    seen = Counter((e.array, e.access, e.index) for e in report.trace if e.array in ("a", "b", "h"))
    elements = list(itertools.product(*map(range, b.shape)))
    assert seen == {(v, "write" if v == "h" else "read", at): 1 for v in "abh" for at in elements}
    inputs_and_outputs = (3 * b.numel() + first.numel()) * 4
    assert inputs_and_outputs < bytes_moved([report]) < 1.3 * inputs_and_outputs
