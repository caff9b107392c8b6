"""The Numba CUDA ladder of the linear scan: right, clean under the sanitizer, as cheap as theory says, and compiled."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import textwrap
from collections import Counter
from math import log2

import fresh
import pytest
import torch
from operator_table import assert_agrees, need, random
from torch import Tensor

from ssmcourse.kernels import runtime
from ssmcourse.scan import linear_scan
from ssmcourse.tolerance import mismatch

if runtime.cuda_mode() == "absent":
    pytest.skip(runtime.why_absent("numba_cuda"), allow_module_level=True)

from numba import cuda

from ssmcourse.kernels.linear_scan import numba_cuda
from ssmcourse.kernels.linear_scan.numba_cuda import (
    ALGORITHMS,
    blelloch,
    hillis_steele,
    look_back,
    one_thread,
    scan,
    several_steps,
    three_phases,
    warp_shuffles,
)
from ssmcourse.kernels.linear_scan.numba_cuda.several_steps import STEPS
from ssmcourse.kernels.sanitizer import Report, sanitize
from ssmcourse.kernels.sanitizer.machine import SCHEDULES
from ssmcourse.kernels.sanitizer.memory import bank_conflicts

RUNGS = (one_thread, hillis_steele, blelloch, warp_shuffles, several_steps, three_phases, look_back)
PARALLEL = [name for name in ALGORITHMS if name != "one_thread"]
INF = float("inf")
DEVICE = runtime.device() if runtime.cuda_mode() == "real" else torch.device("cpu")
simulated = pytest.mark.skipif(runtime.cuda_mode() != "simulated", reason="watched where there is no GPU")


def given(b: int, l: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(b, l, d), (b, l, d), (b, d)]
    a, x, first = (random(shape, dtype, seed=i).to(DEVICE) for i, shape in enumerate(shapes))
    return a, x, first


def by_steps(a: Tensor, b: Tensor, first: Tensor, reverse: bool = False) -> Tensor:
    wide = [v.to(torch.promote_types(v.dtype, torch.float64)) for v in (a, b, first)]
    return linear_scan(*wide, reverse=reverse, backend="reference")


# --- Right ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l", [1, 2, 3, 17, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_rung_is_the_sequence(algorithm, l):
    for dtype, reverse in ((torch.float32, l % 2 == 0), (torch.float64, l % 2 == 1)):
        a, b, first = given(2, l, 3, dtype)
        problem = mismatch(scan(a, b, first, reverse, algorithm), by_steps(a, b, first, reverse), terms=l)
        assert problem is None, f"{dtype}, reverse={reverse}: {problem}"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_channels_than_a_strip(algorithm, reverse):
    a, b, first = given(1, 33, 35)
    assert mismatch(scan(a, b, first, reverse, algorithm), by_steps(a, b, first, reverse), terms=33) is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 4])
@pytest.mark.parametrize("rung", [three_phases, look_back])
def test_many_tiles(rung, segments, reverse):
    l = 9 * STEPS * segments + 5  # tiles of tiles of tiles in three phases, with one segment a tile
    a, b, first = given(2, l, 2, torch.float64)
    h = torch.empty_like(b)
    rung.scan(a, b, first, h, reverse, segments)
    assert mismatch(h, by_steps(a, b, first, reverse), terms=l) is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_views_and_nothing(algorithm):
    a, b, first = given(2, 3, 6)
    shared, across = a[:, :1].expand(2, 3, 6), b.mT.contiguous().mT
    assert torch.equal(
        scan(shared, across, first, False, algorithm), scan(shared.contiguous(), b, first, False, algorithm)
    )
    assert scan(a[:, :0], b[:, :0], first, False, algorithm).shape == (2, 0, 6)


@pytest.mark.parametrize("l", [5, 33])
@pytest.mark.parametrize("algorithm", PARALLEL)
def test_gradients_by_every_rung(algorithm, l, monkeypatch):
    """Backward is the scan in reverse; the operator of torch is the same for all rungs."""
    need("linear_scan", "numba_cuda")
    monkeypatch.setattr(numba_cuda, "best", lambda b: algorithm)
    inputs = dict(zip(("a", "b", "initial_state"), given(1, l, 2), strict=True))
    for reverse in (False, True):
        assert_agrees(
            lambda **v: linear_scan(**v, reverse=reverse, backend="numba_cuda"),  # noqa: B023
            lambda **v: linear_scan(**v, reverse=reverse, backend="reference"),  # noqa: B023
            inputs,
            terms=2 * l,
        )


def test_which_rung_linear_scan_takes(monkeypatch):
    b = random((1, 200, 2), seed=0)
    monkeypatch.setattr(numba_cuda, "SIMULATED", True)
    assert numba_cuda.best(b) == "one_thread"
    monkeypatch.setattr(numba_cuda, "SIMULATED", False)
    tile = look_back.SEGMENTS * STEPS
    assert numba_cuda.best(b[:, :tile]) == "several_steps"
    assert numba_cuda.best(b[:, : tile + 1]) == "look_back"
    assert numba_cuda.best(b.to(torch.complex64)) == "one_thread"


# --- Numbers at the edge of what floats hold ----------------------------------------------------------


def one_channel(*pieces: tuple[float, int]) -> Tensor:
    """Each value so many times."""
    return torch.tensor([float(v) for v, times in pieces for _ in range(times)]).reshape(1, -1, 1).to(DEVICE)


EDGES = {
    "gates of 0": (one_channel((0.5, 5), (0, 3), (2, 4), (0, 1), (1, 27)), one_channel((1, 40)), 3.0),
    "all gates 0": (one_channel((0, 40)), one_channel((2, 40)), 1.0),
    "a product overflows, then a reset": (one_channel((1e30, 3), (0, 1), (1, 36)), one_channel((0, 9), (1, 31)), 0.0),
    "a tile's product overflows": (one_channel((1e30, 16), (0, 1), (1, 23)), one_channel((0, 20), (1, 20)), 0.0),
    "over and over": (one_channel((1e30, 33), (0, 1), (1e30, 6)), one_channel((0, 40)), 0.0),
    "a product underflows": (one_channel((1e-30, 40)), one_channel((1, 40)), 1.0),
    "growth, a reset, decay": (one_channel((4, 20), (0, 1), (0.25, 19)), one_channel((1, 40)), 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_finite_where_the_sequence_is(algorithm, name):
    a, b, first = EDGES[name]
    initial = torch.full((1, 1), first, device=DEVICE)
    expected = linear_scan(a, b, initial, backend="reference")
    assert expected.isfinite().all()
    assert mismatch(scan(a, b, initial, False, algorithm), expected, terms=8) is None


@pytest.mark.parametrize("where", ["a", "b", "initial_state"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nan_goes_where_the_sequence_takes_it(algorithm, where):
    inputs = dict(zip(("a", "b", "initial_state"), given(1, 40, 2), strict=True))
    inputs["a"][0, 20] = 0  # which does not stop a NaN
    if where == "initial_state":
        inputs[where][0, 1] = torch.nan
    else:
        inputs[where][0, 11, 1] = torch.nan
    expected, got = by_steps(*inputs.values()), scan(*inputs.values(), False, algorithm)
    assert torch.equal(got.isnan(), expected.isnan())
    assert mismatch(got.nan_to_num(), expected.nan_to_num(), terms=40) is None


@pytest.mark.parametrize("algorithm", PARALLEL)
def test_what_products_outside_the_range_cost(algorithm):
    """As steps.py says: where the sequence comes back from an infinite product, or a tiny one, we need not."""
    a = one_channel(*[(1e30, 2), (1e-30, 2)] * 10)
    first = torch.full((1, 1), 1e-30, device=DEVICE)
    expected, got = linear_scan(a, 0 * a, first, backend="reference"), scan(a, 0 * a, first, False, algorithm)
    assert expected.isfinite().all()
    assert not got.isnan().any()
    wrong = ~torch.isclose(got, expected)
    assert wrong.any()
    assert (got[wrong].isinf() | (got[wrong] == 0)).all()


@pytest.mark.parametrize("algorithm", PARALLEL)
def test_zero_times_infinity_is_zero_but_in_the_first_rung(algorithm):
    a, b = one_channel((1, 12), (0, 1), (1, 27)), one_channel((0, 9), (INF, 1), (1, 30))
    first = torch.ones(1, 1, device=DEVICE)
    got, sequence = (
        scan(a, b, first, False, algorithm).flatten(),
        scan(a, b, first, False, "one_thread").flatten(),
    )
    assert torch.equal(got[:12], sequence[:12])
    assert sequence[12:].isnan().all()
    assert torch.equal(got[12:].cpu(), torch.arange(1.0, 29))


# --- Refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "limit"),
    [("hillis_steele", 1024), ("blelloch", 1024), ("warp_shuffles", 1024), ("several_steps", 16 * STEPS)],
)
def test_a_block_takes_so_many_steps(algorithm, limit):
    a, b, first = given(1, limit + 1, 1)
    message = (
        f"l: got {limit + 1}, expected {limit} or less for algorithm '{algorithm}' .* 'look_back' take any"
    )
    with pytest.raises(ValueError, match=message):
        scan(a, b, first, False, algorithm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "brent_kung"}, "algorithm: got 'brent_kung', expected one of one_thread, hillis_steele"),
        ({"b": torch.zeros(2, 3)}, r"b: got shape \(2, 3\), expected \(b, l, d\)"),
        ({"b": torch.zeros(2, 3, 4, dtype=torch.complex64)}, "b: got torch.complex64, .*; 'one_thread' takes complex"),
        ({"b": torch.zeros(2, 3, 4, dtype=torch.float16)}, "b: got torch.float16, expected one of torch.float32"),
        ({"a": torch.zeros(2, 3, 5)}, r"a: got \(2, 3, 5\), .* expected \(2, 3, 4\)"),
        ({"initial_state": torch.zeros(2, 4, dtype=torch.float64)}, r"initial_state: got \(2, 4\), torch.float64"),
    ],
)  # fmt: skip
def test_what_no_kernel_takes(change, message):
    inputs = dict(zip(("a", "b", "initial_state"), (v.cpu() for v in given(2, 3, 4)), strict=True))
    with pytest.raises(ValueError, match=message):
        scan(**{**inputs, "reverse": False, **change})


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


# --- Compiled for GPUs that are not here -----------------------------------------------------------------

AHEAD_OF_TIME = """
from numba import cuda, types
from ssmcourse.kernels.linear_scan.numba_cuda import ptx_compilations

def compile_all(cc):
    for name, kernel, signature in ptx_compilations():
        try:
            ptx, _ = cuda.compile_ptx(kernel.py_func, types.void(*signature), cc=cc)
        except Exception as error:
            if "No such file" not in str(error):
                raise
            return f"no compiler: {str(error).splitlines()[0]}"
        assert "st.global" in ptx, name
        assert ".local" not in ptx, f"{name}: what should be in registers is in memory"
        assert "call" not in ptx, f"{name}: a device function was not inlined"
        assert name.endswith(("float64", "complex128")) or ".f64" not in ptx, f"{name}: computes in float64 unasked"
        if name.startswith("look_back"):
            assert "membar.gl" in ptx and "atom.global" in ptx and "shfl.sync" in ptx, name
    return "compiled"

print(compile_all(CC))
"""


@pytest.mark.parametrize("cc", [pytest.param((8, 0), marks=pytest.mark.slow), (9, 0)])
def test_every_kernel_compiles_ahead_of_time(cc):
    done = fresh.run(AHEAD_OF_TIME.replace("CC", str(cc)), {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"})
    assert done.status == 0, done.err
    if "no compiler" in done.out:
        pytest.skip(f"the extra [gpu] brings the CUDA toolkit; {done.out.strip()}")
    assert done.out.strip() == "compiled"


@simulated
@pytest.mark.parametrize("before", ["pass", "import numba"])
def test_the_package_may_be_imported_first(before):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("NUMBA_ENABLE_CUDASIM", "TRITON_INTERPRET")
    }
    program = f"""
{before}
import ssmcourse.kernels.linear_scan.numba_cuda as ladder
x = ladder.torch.ones(1, 3, 1)
print(ladder.scan(x, x, x[:, 0]).flatten().tolist())
"""
    done = fresh.run(program, environment)
    assert done.out.strip() == "[2.0, 3.0, 4.0]", done.err


def test_every_kernel_is_among_the_compilations():
    kernels = {
        value.py_func.__name__
        for rung in RUNGS
        for name, value in vars(rung).items()
        if name.endswith("_kernel") and hasattr(value, "py_func")
    }
    assert {c.kernel.py_func.__name__ for c in numba_cuda.ptx_compilations()} == kernels
