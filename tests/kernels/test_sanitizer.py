"""The sanitizer: what it says of right kernels and of wrong ones, what it counts, and what it refuses."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import tracemalloc
import warnings

import numpy as np
import pytest
import sanitizer_zoo as zoo
import sanitizer_zoo_wrong  # noqa: F401  (fills WRONG)
import torch
from sanitizer_zoo import BLOCK, RIGHT, WRONG, Case, N, X

from ssmcourse.kernels.sanitizer import execute, sanitize
from ssmcourse.kernels.sanitizer.memory import bank_conflicts

cuda, float32 = zoo.cuda, zoo.float32


def judged(case: Case, **options):
    arguments = case.arguments()
    report = sanitize(
        case.kernel, case.grid, case.block, *arguments, shared_bytes=case.shared_bytes, **options
    )
    return report, arguments[-1]


def test_the_zoo_is_large_enough():
    assert len(RIGHT) >= 20
    assert len(WRONG) >= 20


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_a_right_kernel_is_clean_and_computes_the_right_thing(case):
    report, got = judged(case)
    assert str(report).startswith("nothing wrong found")
    assert report
    np.testing.assert_array_equal(got, case.outcome)


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_a_wrong_kernel_is_reported(case):
    report, _ = judged(case)
    assert report.kinds() == {case.outcome}, str(report)
    file, first = inspect.getfile(case.kernel.py_func), inspect.getsourcelines(case.kernel.py_func)[1]
    last = first + len(inspect.getsource(case.kernel.py_func).splitlines())
    for finding in report.findings:
        assert finding.where
        assert all(place.file == file and first <= place.line < last for place in finding.where)
        assert f"line {finding.where[0].line} (" in str(finding)


@pytest.mark.parametrize(
    "case", RIGHT + [c for c in WRONG if c.outcome != "hang"], ids=lambda case: case.name
)
def test_a_verdict_is_the_same_every_time(case):
    (first, y1), (second, y2) = judged(case, trace=True), judged(case, trace=True)
    assert (first.findings, first.counts, first.trace) == (second.findings, second.counts, second.trace)
    np.testing.assert_array_equal(y1, y2)


# --- Take one barrier out ---------------------------------------------------------------------------


def barriers_of(kernel) -> int:
    return inspect.getsource(kernel.py_func).count("cuda.syncthreads()")


def without_barrier(kernel, number: int):
    """The kernel with `pass` in place of its barrier `number`, compiled from the same lines of the same file."""
    lines, first = inspect.getsourcelines(kernel.py_func)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    count = itertools.count()

    class Remove(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr):
            barrier = ast.unparse(node) == "cuda.syncthreads()" and next(count) == number
            return ast.copy_location(ast.Pass(), node) if barrier else node

    definition = Remove().visit(tree).body[0]
    definition.decorator_list = []
    ast.increment_lineno(tree, first - 1)
    scope = dict(kernel.py_func.__globals__)
    exec(compile(ast.fix_missing_locations(tree), kernel.py_func.__code__.co_filename, "exec"), scope)
    return cuda.jit(scope[definition.name])


TAKEN_OUT = [(case, number) for case in RIGHT for number in range(barriers_of(case.kernel))]


@pytest.mark.parametrize(
    ("case", "number"), TAKEN_OUT, ids=lambda v: v.name if isinstance(v, Case) else str(v)
)
def test_no_barrier_of_a_right_kernel_can_go(case, number):
    report, _ = judged(case._replace(kernel=without_barrier(case.kernel, number)))
    assert "race" in report.kinds(), str(report)


# --- What it counts ------------------------------------------------------------------------------------


def test_counts_of_blelloch():
    case = next(c for c in RIGHT if c.name == "blelloch")
    counts = judged(case)[0].counts
    assert counts.global_reads == counts.global_writes == N
    assert counts.sectors == 2 * N * 4 // 32
    assert counts.shared_reads == 2 * (N - 1) + 3 * (N - 1) + N  # up, down, out
    assert counts.shared_writes == N + (N - 1) + 2 * (N - 1) + 1
    assert counts.barriers == 1 + 6 + 6
    assert counts.atomics == counts.warp_operations == 0


def test_bank_conflicts():
    lanes = range(32)
    assert bank_conflicts([4 * i for i in lanes], 4) == 0
    assert bank_conflicts([8 * i for i in lanes], 4) == 1  # every second word: two rounds
    assert bank_conflicts([128 * i for i in lanes], 4) == 31  # one bank
    assert bank_conflicts([132 * i for i in lanes], 4) == 0  # padded
    assert bank_conflicts([0 for _ in lanes], 4) == 0  # one word for all
    assert bank_conflicts([8 * i for i in lanes], 8) == 0  # two rounds anyway
    assert bank_conflicts([256 * i for i in lanes], 8) == 30


def test_padding_takes_bank_conflicts_away():
    @cuda.jit
    def transpose(x, y, padded):
        wide = cuda.shared.array((32, 33), float32)
        narrow = cuda.shared.array((32, 32), float32)
        s = wide if padded else narrow
        i, j = cuda.threadIdx.y, cuda.threadIdx.x
        s[i, j] = x[i, j]
        cuda.syncthreads()
        y[i, j] = s[j, i]

    x, y = np.random.default_rng(0).random((32, 32)), np.zeros((32, 32))
    x, y = x.astype(np.float32), y.astype(np.float32)
    conflicts = [
        sanitize(transpose, 1, (32, 32), x, y, p, schedules=["forward"]).counts.bank_conflicts for p in (0, 1)
    ]
    assert conflicts == [32 * 31, 0]
    np.testing.assert_array_equal(y, x.T)


def test_threads_that_sit_out_a_round_are_not_counted_with_those_of_the_next():
    """Each round reads from other addresses, none of them in one bank."""

    @cuda.jit
    def kernel(x, y):
        s = cuda.shared.array(17 * 33, float32)
        i = cuda.threadIdx.x
        for k in range(i, 17 * 33, 32):
            s[k] = x[k]
        total, working = float32(0), 1
        while working <= 16:
            cuda.syncthreads()
            if i < working:
                total += s[33 * (i + 1) - working // 2]
            working *= 2
        y[i] = total

    x, y = np.ones(17 * 33, np.float32), np.zeros(32, np.float32)
    report = sanitize(kernel, 1, 32, x, y)
    assert report, str(report)
    assert report.counts.bank_conflicts == 0


def test_strides_cost_sectors():
    @cuda.jit
    def copy(x, y, stride):
        i = cuda.threadIdx.x
        y[i] = x[i * stride]

    x, y = np.zeros(32 * 32, np.float32), np.zeros(32, np.float32)
    assert [sanitize(copy, 1, 32, x, y, stride).counts.sectors for stride in (1, 2, 8, 32)] == [8, 12, 36, 36]


def test_trace():
    case = next(c for c in RIGHT if c.name == "reverse_through_shared")
    trace = judged(case, trace=True)[0].trace
    first, length = inspect.getsourcelines(case.kernel.py_func)[1], 4 * N
    assert len(trace) == length
    load = [e for e in trace if e.array == "x"]
    assert [(e.phase, e.thread, e.access, e.space, e.index) for e in load] == [
        (0, i, "read", "global", (i,)) for i in range(N)
    ]
    mirrored = [e for e in trace if e.array == "s" and e.access == "read"]
    assert [(e.phase, e.thread, e.index) for e in mirrored] == [(1, i, (N - 1 - i,)) for i in range(N)]
    assert {e.line - first for e in mirrored} == {7}
    assert not judged(case)[0].trace


# --- Executor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_execute_computes_the_same(case):
    arguments = case.arguments()
    execute(case.kernel, case.grid, case.block, *arguments, shared_bytes=case.shared_bytes)
    np.testing.assert_array_equal(arguments[-1], case.outcome)


@pytest.mark.parametrize(
    "case", [c for c in WRONG if c.outcome in ("barrier", "warp", "error")], ids=lambda c: c.name
)
def test_execute_says_what_it_cannot_overlook(case):
    with pytest.raises(RuntimeError, match=f"^{case.outcome}: "):
        execute(case.kernel, case.grid, case.block, *case.arguments())


def test_execute_has_some_blocks_at_a_time():
    """Not a clock for each thread with a number for each thread: here that would be 2 GB."""

    @cuda.jit
    def kernel(x, y):
        s = cuda.shared.array(BLOCK, float32)
        i, b = cuda.threadIdx.x, cuda.blockIdx.x
        s[i] = x[b]
        cuda.syncthreads()
        y[b, i] = s[BLOCK - 1 - i]

    x, y = np.arange(512, dtype=np.float32), np.zeros((512, BLOCK), np.float32)
    tracemalloc.start()
    execute(kernel, 512, BLOCK, x, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (y == x[:, None]).all()
    assert peak < 30e6


def test_warp_operations():
    @cuda.jit
    def kernel(x, out):
        i = cuda.threadIdx.x
        out[0, i] = cuda.shfl_sync(0xFFFFFFFF, x[i], 5)
        out[1, i] = cuda.shfl_down_sync(0xFFFFFFFF, x[i], 3)
        out[2, i] = cuda.shfl_xor_sync(0xFFFFFFFF, x[i], 6)
        out[3, i] = cuda.all_sync(0xFFFFFFFF, x[i] >= 0)
        out[4, i] = cuda.any_sync(0xFFFFFFFF, x[i] == 7)
        out[5, i] = cuda.eq_sync(0xFFFFFFFF, x[i] < 100)
        out[6, i] = cuda.popc(cuda.match_any_sync(0xFFFFFFFF, x[i] % 4))
        mask, same = cuda.match_all_sync(0xFFFFFFFF, i // 32)
        out[7, i] = cuda.popc(mask) if same else 0
        out[8, i] = cuda.popc(cuda.lanemask_lt())

    x, out, i = np.arange(32.0), np.zeros((9, 32)), np.arange(32)
    assert sanitize(kernel, 1, 32, x, out)
    expected = [
        0 * i + 5,
        np.where(i + 3 < 32, i + 3, i),
        i ^ 6,
        1 + 0 * i,
        1 + 0 * i,
        1 + 0 * i,
        8 + 0 * i,
        32 + 0 * i,
        i,
    ]
    np.testing.assert_array_equal(out, expected)


def test_tensors_are_written_in_place():
    case = next(c for c in RIGHT if c.name == "reverse_through_shared")
    y = torch.zeros(N)
    assert sanitize(case.kernel, 1, N, torch.from_numpy(X), y)
    assert torch.equal(y, torch.from_numpy(X).flip(0))


@pytest.mark.parametrize("run", [sanitize, execute])
def test_overflow_is_infinity_without_a_word(run):
    """As on a GPU. The tests turn warnings into errors, and each thread has settings of NumPy's of its own."""

    @cuda.jit
    def kernel(x, y):
        i = cuda.threadIdx.x
        y[i] = x[i] * x[i]
        cuda.syncthreads()
        y[i] = y[i] - y[i]

    y = np.zeros(2, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run(kernel, 1, 2, np.array([1e30, 2], np.float32), y)
    assert report is None or report
    np.testing.assert_array_equal(y, [np.nan, 0])


def test_a_read_only_array_may_be_read():
    x, y = X.copy(), np.zeros(N, np.float32)
    x.flags.writeable = False
    assert sanitize(zoo.reverse_through_shared, 1, N, x, y)
    np.testing.assert_array_equal(y, X[::-1])


def test_negative_strides():
    y = np.zeros(N, np.float32)
    assert sanitize(zoo.reverse_through_shared, 1, N, X[::-1], y)
    np.testing.assert_array_equal(y, X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, x, y: sanitize(k, 0, N, x, y), "grid: got 0, expected 1 to 3 integers of 1 or more"),
        (lambda k, x, y: sanitize(k, 1, 2048, x, y), "block: got 2048, expected .* 1,024 in all at most"),
        (
            lambda k, x, y: sanitize(k, 1, (2, 2, 2, 2), x, y),
            "block: got .2, 2, 2, 2., expected 1 to 3 integers",
        ),
        (lambda k, x, y: sanitize(k, 1, N, x), r"the kernel takes 2 arguments \(x, y\): got 1"),
        (lambda k, x, y: sanitize(k, 1, N, x, [1.0]), "y: got list, expected an array, a tensor or a number"),
        (
            lambda k, x, y: sanitize(k, 1, N, x, y, schedules=["sideways"]),
            "schedules: got .'sideways'., expected some",
        ),
        (
            lambda k, x, y: sanitize(len, 1, N, x, y),
            "kernel: got builtin_function_or_method, expected a function",
        ),
    ],
)
def test_a_wrong_launch_gets_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(zoo.reverse_through_shared, X.copy(), np.zeros(N, np.float32))


def test_what_is_not_emulated_says_so():
    @cuda.jit
    def kernel(x):
        cuda.cg.this_grid().sync()

    report = sanitize(kernel, 1, 1, X.copy())
    assert "cuda.cg is not emulated" in str(report)


def test_an_index_that_is_no_integer():
    @cuda.jit
    def kernel(x):
        x[0.5] = 1

    assert "x: got the index 0.5 (float); Numba takes integers and slices" in str(
        sanitize(kernel, 1, 1, X.copy())
    )


def test_the_blocks_of_a_grid_of_three_axes():
    @cuda.jit
    def kernel(y):
        i, j, k = cuda.grid(3)
        y[k, j, i] = cuda.blockIdx.x + 10 * cuda.blockIdx.y + 100 * cuda.blockIdx.z

    y = np.zeros((2, 3 * BLOCK // 8, 2), np.float32)
    assert sanitize(kernel, (2, 3, 2), (1, 4, 1), y)
    assert (y[1, 4:8, 1] == 111).all()
