"""The watch over Triton programs: its verdicts, its counts, and that it leaves nothing behind."""

from __future__ import annotations

import inspect

import pytest
import torch

from ssmcourse import linear_scan
from ssmcourse.kernels import runtime
from ssmcourse.tolerance import mismatch

if runtime.triton_mode() != "interpreted":
    pytest.skip("Triton does not interpret here", allow_module_level=True)

import triton
import triton.language as tl

from ssmcourse.kernels.sanitizer.programs import watch_programs

N, BLOCK = 10, 4


@triton.jit
def _offsets(BLOCK: tl.constexpr):
    return tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)


# --- Right ------------------------------------------------------------------------------------------


@triton.jit
def copies(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n, other=0.0), mask=offs < n)


@triton.jit
def copies_from_the_end(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    mask = offs < n
    tl.store(y_ptr + n - 1 - offs, tl.load(x_ptr + n - 1 - offs, mask=mask, other=0.0), mask=mask)


@triton.jit
def goes_through_a_loop(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    if tl.program_id(0) == 0:
        for start in range(0, n, BLOCK):
            offs = start + tl.arange(0, BLOCK)
            tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)


@triton.jit
def adds_atomically(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.atomic_add(y_ptr + offs % 2, x, mask=offs < n)


@triton.jit
def reads_its_neighbours(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    left = tl.load(x_ptr + offs - 1, mask=(offs > 0) & (offs < n), other=0.0)
    tl.store(y_ptr + offs, left, mask=offs < n)


@triton.jit
def ignores_what_it_masked_out(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n)
    tl.store(y_ptr + tl.program_id(0), tl.sum(tl.where(offs < n, x, 0.0), 0))


RIGHT = [
    copies, copies_from_the_end, goes_through_a_loop, adds_atomically, reads_its_neighbours, ignores_what_it_masked_out,
]  # fmt: skip


# --- Wrong ------------------------------------------------------------------------------------------


@triton.jit
def loads_past_the_end(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs), mask=offs < n)


@triton.jit
def stores_past_the_end(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n, other=0.0))


@triton.jit
def loads_before_the_beginning(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs - 1, mask=offs < n, other=0.0), mask=offs < n)


@triton.jit
def jumps_far_away(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    x = tl.load(x_ptr + offs.to(tl.int64) * 1_000_000_000, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, x, mask=offs < n)


@triton.jit
def forgets_the_last_element(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs <= n, other=0.0), mask=offs < n)


@triton.jit
def all_programs_store_one_number(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    tl.store(y_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, BLOCK)), 0))


@triton.jit
def tiles_overlap(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n, other=0.0), mask=offs < n)


@triton.jit
def counts_on_the_program_before(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    before = tl.load(y_ptr + pid - 1, mask=pid > 0, other=0.0)
    tl.store(y_ptr + pid, before + tl.load(x_ptr + pid))


@triton.jit
def reads_what_a_later_program_writes(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    after = tl.load(y_ptr + pid + 1)
    tl.store(y_ptr + pid, after)


@triton.jit
def lanes_of_one_store_collide(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = _offsets(BLOCK)
    tl.store(y_ptr + offs // 2, tl.load(x_ptr + offs, mask=offs < n, other=0.0), mask=offs < n)


WRONG = [
    (loads_past_the_end, "bounds"), (stores_past_the_end, "bounds"), (loads_before_the_beginning, "bounds"),
    (jumps_far_away, "bounds"), (forgets_the_last_element, "bounds"), (all_programs_store_one_number, "race"),
    (tiles_overlap, "race"), (counts_on_the_program_before, "race"), (reads_what_a_later_program_writes, "race"),
    (lanes_of_one_store_collide, "race"),
]  # fmt: skip


def launch(kernel, **options):
    x, y = torch.arange(1.0, N + 1), torch.zeros(N)
    with watch_programs(**options) as report:
        kernel[(triton.cdiv(N, BLOCK),)](x, y, N, BLOCK=BLOCK)
    return report, y


@pytest.mark.parametrize("kernel", RIGHT, ids=lambda k: k.__name__)
def test_a_right_kernel_is_clean(kernel):
    report, watched = launch(kernel)
    assert report, str(report)
    assert str(report).startswith("nothing wrong found. 1 launches")
    y = torch.zeros(N)
    kernel[(triton.cdiv(N, BLOCK),)](torch.arange(1.0, N + 1), y, N, BLOCK=BLOCK)
    assert torch.equal(watched, y)
    assert y.isfinite().all()


@pytest.mark.parametrize(("kernel", "kind"), WRONG, ids=lambda v: getattr(v, "__name__", v))
def test_a_wrong_kernel_is_reported(kernel, kind):
    report, _ = launch(kernel)
    assert report.kinds() == {kind}, str(report)
    lines, first = inspect.getsourcelines(kernel.fn)
    for finding in report.findings:
        assert finding.where[0].file == __file__
        assert first <= finding.where[0].line < first + len(lines)
        assert "_ptr" in str(finding)


def test_what_is_masked_out_is_not_a_number():
    @triton.jit
    def sums(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
        offs = _offsets(BLOCK)
        tl.store(y_ptr + tl.program_id(0), tl.sum(tl.load(x_ptr + offs, mask=offs < n), 0))

    _, y = launch(sums)
    assert y[:2].tolist() == [10, 26]
    assert y[2].isnan()


def test_a_view_has_the_bounds_of_the_view():
    buffer = torch.full((3 * N,), torch.nan)
    x, y = buffer[N : 2 * N], torch.zeros(N)
    x[:] = 1
    with watch_programs() as report:
        loads_past_the_end[(3,)](x, y, N, BLOCK=BLOCK)
    assert "element 10 of x_ptr, whose shape (10,) spans 10 elements; 2 lanes are outside" in str(report)


def test_bytes_and_moves():
    report, _ = launch(copies, trace=True)
    assert report.loaded == {("copies", "x_ptr"): 4 * N}
    assert report.stored == {("copies", "y_ptr"): 4 * N}
    assert report.bytes_moved() == 8 * N
    assert report.launches == [("copies", (3, 1, 1))]
    assert [(m.program[0], m.access, m.argument, m.elements.tolist()) for m in report.moves] == [
        (p, access, argument, list(range(4 * p, min(4 * p + 4, N))))
        for p in range(3)
        for access, argument in (("load", "x_ptr"), ("store", "y_ptr"))
    ]
    assert not launch(copies)[0].moves


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_of_ours_is_clean(reverse):
    a, b = torch.rand(2, 33, 3), torch.randn(2, 33, 3)
    with watch_programs() as report:
        h = linear_scan(a, b, reverse=reverse, backend="triton")
    assert report, str(report)
    assert mismatch(h, linear_scan(a, b, reverse=reverse, backend="reference"), terms=10) is None
    assert report.bytes_moved() <= 2 * 4 * 3 * a.numel()  # in three phases: a and b are read twice


def test_the_interpreter_is_as_before():
    from triton.runtime import interpreter

    def parts():
        builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
        return (
            builder.create_masked_load.__func__, builder.create_masked_store.__func__, executor.__call__,
            executor._init_args_hst, interpreter._implicit_cvt, dict(vars(builder)).keys(),
        )  # fmt: skip

    before = parts()
    with pytest.raises(ZeroDivisionError), watch_programs():
        raise ZeroDivisionError
    launch(loads_past_the_end)
    assert parts() == before


def test_only_where_triton_interprets(monkeypatch):
    monkeypatch.setattr(runtime, "triton_mode", lambda: "absent")
    with (
        pytest.raises(RuntimeError, match="the watch needs Triton's interpreter: here Triton is absent"),
        watch_programs(),
    ):
        pass
