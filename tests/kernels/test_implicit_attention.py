"""Every backend of the semiseparable matrix against its columns, stepped down in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from operator_table import LENGTHS, Case, assert_agrees, random
from torch import Tensor

from ssmcourse.attention import selective_scan_matrix, semiseparable_matrix
from ssmcourse.tolerance import mismatch

BACKENDS = ["cpu", "reference"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


def by_columns(log_a: Tensor, B_bar: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """Column j: an impulse at step j, its states carried from step to step."""
    l, columns = log_a.shape[-2], []
    for j in range(l):
        h, column = B_bar[..., j, :] + 0 * log_a[..., j, :], []  # (for l = 1, where no gate acts)
        for i in range(j, l):
            h = log_a[..., i, :].exp() * h if i > j else h
            column.append((C[..., i, :] * h).sum(-1))
        lead = torch.broadcast_shapes(log_a.shape[:-2], B_bar.shape[:-2], C.shape[:-2])
        column = [c.expand(lead) for c in column]
        if D is not None:
            column[0] = column[0] + D
        columns.append(torch.stack([torch.zeros_like(column[0])] * j + column, -1))
    return torch.stack(columns, -1)


def log_gates(shape, dtype=torch.float64, seed=1) -> Tensor:
    decay = -random(shape, seed=seed).exp()
    return (torch.complex(decay, 3 * random(shape, seed=seed + 10)) if dtype.is_complex else decay).to(dtype)


def inputs(lead, l, n, dtype=torch.float64, D=True, of_B=None, of_C=None):
    made = {
        "log_a": log_gates((*lead, l, n), dtype),
        "B_bar": random((*(lead if of_B is None else of_B), l, n), dtype, seed=2),
        "C": random((*(lead if of_C is None else of_C), l, n), dtype, seed=3),
    }
    return made | ({"D": random(lead, dtype, seed=4)} if D else {})


def case(name, lead, l, n, *, terms=1, **made):
    return Case(name, functools.partial(inputs, lead, l, n, **made), terms * l * n)


TABLE = [
    *(case(f"l={l}", (2, 3), l, 4) for l in LENGTHS),
    *(case(f"{dtype}".removeprefix("torch."), (2, 2), 19, 3, dtype=dtype) for dtype in DTYPES),
    case("no D", (2, 3), 17, 4, D=False),
    case("one state", (2, 3), 33, 1),
    case("no leading dimension", (), 17, 5),
    case("shared B and C", (2, 3), 17, 4, of_B=(2, 1), of_C=(3,), terms=3),
    case("many rows", (40,), 5, 2),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_table(backend, row):
    made = row.make()
    dtype = made["C"].dtype

    def oracle(**given):
        M = by_columns(**given)
        return M.to(dtype) if dtype.itemsize == 2 else M

    assert_agrees(functools.partial(semiseparable_matrix, backend=backend), oracle, made, terms=row.terms)


@pytest.mark.parametrize("threads", [1, 4])
def test_more_columns_than_a_tile_and_threads_that_share_them(threads):
    """Long ones against the reference, which the table has held against the oracle."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for lead, l, n in (((1,), 600, 1), ((3,), 257, 2), ((20,), 130, 2)):
            made = {name: t.requires_grad_() for name, t in inputs(lead, l, n).items()}
            made["log_a"] = (0.05 * made["log_a"]).detach().requires_grad_()
            M = semiseparable_matrix(**made, backend="cpu")
            expected = semiseparable_matrix(**made, backend="reference")
            weight = random(M.shape, seed=8)
            got = torch.autograd.grad(M, list(made.values()), weight)
            wanted = torch.autograd.grad(expected, list(made.values()), weight)
            for name, g, e in zip(["M", *made], [M, *got], [expected, *wanted], strict=True):
                problem = mismatch(g, e, terms=l * l)
                assert problem is None, f"{name} of {(lead, l, n)}: {problem}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_in_a_slow_decay_leaves_the_steps_after_it_exact(backend):
    """A difference of two cumulative sums would keep no digit of 0.01 beside 10,000."""
    made = inputs((1,), 200, 2, torch.float32)
    made["log_a"] = torch.full_like(made["log_a"], -0.01)
    made["log_a"][:, 50] = -1e4
    M = semiseparable_matrix(**made, backend=backend)
    assert torch.count_nonzero(M[0, 50:, :50]) == 0
    problem = mismatch(M, by_columns(**{name: t.double() for name, t in made.items()}), terms=200)
    assert problem is None, str(problem)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_step_and_any_decay_is_finite(backend, dtype):
    """dt from 0 to 100 and A down to -1e4: values and gradients."""
    steps = torch.tensor([0.0, 1e-3, 1.0, 100.0, 0.0, 0.3, 100.0, 2.0], dtype=dtype)
    dt = steps[None, :, None].repeat(1, 1, 2)
    A = torch.tensor([[-1e4, -1e-4], [-1.0, -30.0]], dtype=dtype)
    B, C = random((1, 8, 2), dtype, seed=1), random((1, 8, 2), dtype, seed=2)
    for rule in ("euler", "zoh"):
        leaves = [t.clone().requires_grad_() for t in (dt, A, B, C)]
        M = selective_scan_matrix(*leaves, b_disc=rule, backend=backend)
        assert M.isfinite().all()
        for g in torch.autograd.grad(M.sum(), leaves):
            assert g.isfinite().all()
    assert M[0, 0, 5:, 3].abs().max() > 0, "the slow state is still there"


def test_what_has_decayed_is_zero_and_what_is_small_is_kept():
    """Below the normal numbers lies 0; above, B of 1e-30 is as exact as B of 1."""
    l = 400
    made = inputs((1,), l, 1, torch.float32, D=False)
    made["log_a"] = torch.full_like(made["log_a"], -0.5)
    small = made | {"B_bar": made["B_bar"] * 1e-30}
    M = semiseparable_matrix(**small, backend="cpu")
    expected = by_columns(**{name: t.double() for name, t in small.items()})
    problem = mismatch(M * 1e30, expected * 1e30, terms=l)
    assert problem is None, str(problem)
    assert torch.count_nonzero(semiseparable_matrix(**made, backend="cpu")[0, 200:, 0]) == 0


@pytest.mark.parametrize("name", ["log_a", "B_bar", "C"])
def test_a_nan_stays_in_the_rows_and_columns_that_it_belongs_to(name):
    made = inputs((2,), 40, 3, torch.float32)
    made[name][0, 20, 1] = torch.nan
    got, expected = (semiseparable_matrix(**made, backend=backend) for backend in BACKENDS)
    assert torch.equal(got.isnan(), expected.isnan())
    assert got[0].isnan().any()
    assert not got[0].triu(1).isnan().any()
    assert not got[1].isnan().any()


def test_one_clear_line():
    made = inputs((2, 3), 5, 4)
    for wrong, line in (
        ({"B_bar": made["B_bar"][..., :-1, :]}, "B_bar: got shape"),
        ({"C": random((4, 5, 4), seed=1)}, r"C: got leading shape \(4,\), expected one that broadcasts"),
        ({"D": random((5,), seed=1)}, r"D: got leading shape \(5,\), expected one that broadcasts"),
        ({"log_a": torch.zeros(2, 3, 5, 4, dtype=torch.int64)}, "log_a: got dtype"),
        ({"backend": "triton"}, "backend: got 'triton'"),
    ):
        with pytest.raises(ValueError, match=line):
            semiseparable_matrix(**(made | wrong))
