"""The Triton scan: its two ways, half types, and gates whose products no float can hold."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from operator_table import LENGTHS, assert_agrees, need, random
from test_linear_scan import by_matrix, gates
from torch import Tensor
from traffic import counted

from ssmcourse.scan import linear_scan
from ssmcourse.tolerance import mismatch

pytest.importorskip("triton")
WAYS = ["one_pass", "three_phases"]
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _triton_runs_here():
    need("linear_scan", "triton")


def scan(way: str, a: Tensor, b: Tensor, initial_state: Tensor, *, reverse: bool = False) -> Tensor:
    from ssmcourse.kernels.linear_scan import triton

    return getattr(triton, way)(a, b, initial_state, reverse, b.dtype)


# --- Both ways -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize("way", WAYS)
def test_lengths(way, l, reverse):
    a, b, first = gates((2, l, 3)), random((2, l, 3), seed=2), random((2, 3), seed=3)
    h = scan(way, a, b, first, reverse=reverse)
    assert mismatch(h, by_matrix(a, b, first, reverse=reverse), terms=l) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
@pytest.mark.parametrize("way", WAYS)
def test_types(way, dtype):
    a, b, first = gates((1, 20, 3), dtype), random((1, 20, 3), dtype, seed=2), random((1, 3), dtype, seed=3)
    for reverse in (False, True):
        h = scan(way, a, b, first, reverse=reverse)
        wide = [t.to(torch.promote_types(dtype, torch.float64)) for t in (a, b, first)]
        assert h.dtype == dtype
        assert mismatch(h, by_matrix(*wide, reverse=reverse), terms=20) is None


@pytest.mark.parametrize("way", WAYS)
def test_more_channels_than_a_block_and_shared_gates(way):
    a, b, first = gates((1, 20, 1)).expand(1, 20, 37), random((1, 20, 37), seed=2), random((1, 37), seed=3)
    assert mismatch(scan(way, a, b, first), by_matrix(a, b, first), terms=20) is None


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_many_chunks(way):
    a, b, first = gates((2, 700, 5)), random((2, 700, 5), seed=2), random((2, 5), seed=3)
    h, state = [], first
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        state = a_t * state + b_t
        h.append(state)
    assert mismatch(scan(way, a, b, first), torch.stack(h, 1), terms=700) is None


def test_programs_are_counted(monkeypatch):
    """Few programs and many steps: three phases. Many programs, or few steps: one pass."""
    from ssmcourse.kernels.linear_scan import triton

    taken = []
    for way in WAYS:
        monkeypatch.setattr(triton, way, lambda a, *_, way=way: taken.append(way) or torch.empty_like(a))
    long, short = 4 * triton.CHUNK, 4 * triton.CHUNK - 1
    for rows, l in ((1, long), (1, short), (triton.ENOUGH, long), (triton.ENOUGH - 1, long)):
        b = torch.empty(rows, l, 2)
        triton.scan(b, b, b[:, 0], False)
    assert taken == ["three_phases", "one_pass", "one_pass", "three_phases"]


def test_gradients_of_a_long_row():
    inputs = {
        "a": gates((1, 65, 2)),
        "b": random((1, 65, 2), seed=2),
        "initial_state": random((1, 2), seed=3),
    }
    for reverse in (False, True):
        call = functools.partial(linear_scan, backend="triton")
        assert_agrees(call, by_matrix, inputs, terms=65, reverse=reverse)


@pytest.mark.parametrize("way", WAYS)
def test_bytes_moved(way):
    """One pass reads a and b once and writes h; three phases read them twice."""
    a, b, first = (
        random(s, torch.float32, seed=i) for i, s in enumerate([(1, 128, 32), (1, 128, 32), (1, 32)])
    )
    with counted() as traffic:
        scan(way, a.tanh(), b, first)
    chunks = 4 * 4 * 32 * (128 // 8)  # gates, ends and states of the interpreter's short chunks
    most = 1.3 * 3 * b.nbytes if way == "one_pass" else 1.05 * (5 * b.nbytes + chunks)
    assert traffic.bytes_moved() < most


# --- Half types ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("l", [3, 17, 40])
@pytest.mark.parametrize("dtype", HALF)
def test_half(dtype, l, reverse):
    inputs = {
        "a": gates((2, l, 3), dtype),
        "b": random((2, l, 3), dtype, seed=2),
        "initial_state": random((2, 3), torch.float32, seed=3),
    }
    call = functools.partial(linear_scan, backend="triton")
    assert_agrees(call, by_matrix, inputs, terms=l, reverse=reverse)


@pytest.mark.parametrize("way", WAYS)
def test_half_states_are_float32_and_rounded_once(way):
    """A sum of ones: float16 cannot count beyond 2048, nor bfloat16 beyond 256."""
    ones = torch.ones(1, 40, 1, dtype=torch.float16)
    h = scan(way, ones, ones, torch.full((1, 1), 4094.0))
    assert torch.equal(h[0, :, 0], (4095 + torch.arange(40)).half())
    ones = ones.bfloat16()
    h = scan(way, ones, ones, torch.full((1, 1), 510.0))
    assert mismatch(h[0, :, 0], 511 + torch.arange(40.0), terms=1) is None


@pytest.mark.parametrize("way", WAYS)
def test_half_is_read_as_it_is(way):
    a, b, first = random((1, 64, 8), torch.float32, seed=1).tanh(), torch.ones(1, 64, 8), torch.zeros(1, 8)
    with counted() as full:
        scan(way, a, b, first)
    with counted() as half:
        scan(way, a.half(), b.half(), first)
    assert half.bytes_moved() < 0.65 * full.bytes_moved()


# --- Products of gates beyond the range of a float ---------------------------------------------------


def then_ones(*values: float, l: int = 40) -> Tensor:
    return torch.tensor([*values, *[1.0] * (l - len(values))]).reshape(1, l, 1)


@pytest.mark.parametrize(
    ("a", "state", "last"),
    [
        (then_ones(1e-25, 1e-25, 1e25, 1e25), 1e30, 1e30),
        (then_ones(1e-20, 1e-20, 1e-20, 1e19, 1e19, 1e19), 1e30, 1e27),
        (then_ones(*[1e-5] * 10, *[1e5] * 10), 1e20, 1e20),
        (then_ones(1e20, 1e20, 0.0), 0.0, 0.0),
        (then_ones(*[1e10] * 20), 0.0, 0.0),
        (then_ones(*[1e-20] * 20), math.inf, math.inf),
        (then_ones(1.0, math.inf), 1.0, math.inf),
        (then_ones(*[0.5] * 40), 1.0, 2.0**-40),
    ],
    ids=[
        "tiny then huge",
        "thrice",
        "over blocks",
        "huge then zero",
        "huge",
        "inf state",
        "inf gate",
        "halves",
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")  # the square of a huge gate, which is what is looked for
@pytest.mark.parametrize("way", WAYS)
def test_products_that_a_float_cannot_hold(way, a, state, last):
    first = torch.full((1, 1), state)
    for reverse in (False, True):
        gate = a.flip(1) if reverse else a
        h = scan(way, gate, torch.zeros_like(a), first, reverse=reverse)
        expected = linear_scan(gate, torch.zeros_like(a), first, reverse=reverse, backend="reference")
        assert mismatch(h, expected, terms=40) is None
        assert h[0, 0 if reverse else -1, 0].item() == pytest.approx(last, rel=1e-4)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("way", WAYS)
def test_one_channel_out_of_range_leaves_the_others_exact(way, dtype):
    a, b = gates((1, 40, 3), dtype), random((1, 40, 3), dtype, seed=2)
    a[:, 9:13, 1] = torch.tensor([1e-30, 1e-30, 1e30, 1e30])
    first = random((1, 3), dtype, seed=3)
    h = scan(way, a, b, first)
    assert mismatch(h, linear_scan(a, b, first, backend="reference"), terms=40) is None


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("way", WAYS)
def test_nan_and_infinity_reach_what_comes_after_them(way):
    a, b = torch.full((1, 40, 3), 0.5), torch.ones(1, 40, 3)
    a[0, 11, 0], b[0, 19, 1] = torch.nan, torch.inf
    h = scan(way, a, b, torch.zeros(1, 3))
    assert h[0, :11, 0].isfinite().all()
    assert h[0, 11:, 0].isnan().all()
    assert h[0, :19, 1].isfinite().all()
    assert h[0, 19:, 1].isinf().all()
    assert h[0, :, 2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize(("rows", "d"), [(1, 2**21 + 1), (70_000, 1)])
def test_no_grid_is_longer_than_a_gpu_takes(rows, d, dtype, monkeypatch):
    """A GPU starts 2^31 - 1 programs along the first side of a grid, and 65,535 along the others."""
    from ssmcourse.kernels.linear_scan import triton as module

    grids = []

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *_, **__: None

    for name in ("scan_kernel", "complex_scan_kernel", "ends_kernel", "pass_kernel", "states_kernel"):
        monkeypatch.setattr(module, name, Recorder())
    b = torch.zeros(rows, 1, d, dtype=dtype)
    module.scan(b, b, b[:, 0], False)
    (grid,) = grids
    assert math.prod(grid) * module._one_pass_sizes(d)["BLOCK_D"] >= rows * d
    assert all(side <= 65_535 for side in grid[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_more_blocks_of_channels_than_the_second_side_takes(dtype, monkeypatch):
    from ssmcourse.kernels.linear_scan import triton as module

    monkeypatch.setattr(module, "MOST_PROGRAMS", 1)
    a, b, first = gates((3, 5, 70), dtype), random((3, 5, 70), dtype, seed=2), random((3, 70), dtype, seed=3)
    wide = [t.to(torch.promote_types(dtype, torch.float64)) for t in (a, b, first)]
    assert mismatch(scan("one_pass", a, b, first), by_matrix(*wide), terms=5) is None
