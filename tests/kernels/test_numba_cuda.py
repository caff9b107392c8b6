"""The Numba CUDA ladder of the linear scan: right, clean under the sanitizer, as cheap as theory says, and compiled."""

from __future__ import annotations

import os

import fresh
import pytest
import torch
from operator_table import assert_agrees, need, random
from torch import Tensor

from ssmcourse.kernels import compiling_numba, runtime
from ssmcourse.scan import linear_scan
from ssmcourse.tolerance import mismatch

if runtime.cuda_mode() == "absent":
    pytest.skip(runtime.why_absent("numba_cuda"), allow_module_level=True)


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


# --- Compiled for GPUs that are not here: see test_compiling.py, too -----------------------------------

FENCES = """
from numba import cuda, types
from ssmcourse.kernels import compiling_numba
from ssmcourse.kernels.assembling import TARGETS

why = compiling_numba.why_not(TARGETS[1])
for c in compiling_numba.compilations():
    if not why and "look_back" in c.name:
        ptx, _ = cuda.compile_ptx(c.kernel.py_func, types.void(*c.signature), cc=(9, 0))
        assert "membar.gl" in ptx and "atom.global" in ptx and "shfl.sync" in ptx, c.name
print(why or "compiled")
"""


def test_look_back_has_its_fences_when_it_is_compiled():
    done = fresh.run(FENCES, {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"})
    assert done.status == 0, done.err
    if done.out.strip() != "compiled":
        pytest.skip(done.out.strip())


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
    assert compiling_numba.uncompiled() == []
    names = {c.kernel.py_func.__name__ for c in compiling_numba.compilations()}
    assert len(names) == len(RUNGS) + 1  # three_phases has two
