"""The Triton norm, forward and backward, against a formula written out group by group in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from operator_table import Case, among_nans, assert_agrees, need, random
from torch import Tensor
from traffic import counted

from ssmcourse.normalization import gated_rms_norm
from ssmcourse.tolerance import mismatch

pytest.importorskip("triton")
norm = functools.partial(gated_rms_norm, backend="triton")


@pytest.fixture(autouse=True)
def _triton_runs_here():
    need("gated_rms_norm", "triton")


def by_formula(
    x: Tensor, weight: Tensor, z: Tensor | None = None, *, eps=1e-5, group_size=None, norm_before_gate=False
) -> Tensor:
    silu = torch.ones_like(x) if z is None else z / (1 + torch.exp(-z))
    u = x if norm_before_gate else x * silu
    groups = u.split(group_size or x.shape[-1], -1)
    y = torch.cat([g / ((g * g).mean(-1, keepdim=True) + eps).sqrt() for g in groups], -1) * weight
    return y * silu if norm_before_gate else y


def case(name, shape=(2, 5, 6), *, dtype=torch.float64, gated=True, wrap=lambda t: t, **options) -> Case:
    def make():
        wide = torch.promote_types(dtype, torch.float32)
        inputs = {"x": wrap(random(shape, dtype, seed=1)), "weight": random((shape[-1],), wide, seed=2)}
        return inputs | ({"z": wrap(random(shape, dtype, seed=3))} if gated else {})

    return Case(name, make, terms=torch.Size(shape).numel(), options=options)


LAST = {"norm_before_gate": True}
TABLE = [
    case("gate first"),
    case("norm first", **LAST),
    case("no gate", gated=False),
    case("no gate, norm first", gated=False, **LAST),
    case("groups", group_size=3),
    case("groups, norm first", group_size=2, **LAST),
    case("groups of one channel", group_size=1),
    *(case(f"{rows} rows", (rows, 4)) for rows in (1, 2, 3, 17, 64, 65)),  # a program walks over 32
    case("one vector", (7,)),
    case("one channel", (3, 1)),
    case("a wide group", (2, 1100), **LAST),
    case("several blocks of rows in a walk", (40, 130), group_size=130),
    *(case(str(dtype), dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)),
    case("bfloat16, norm first", dtype=torch.bfloat16, group_size=3, **LAST),
    case("another eps", eps=0.3),
    case("not contiguous", wrap=among_nans, group_size=3),
    case("a slice of channels", wrap=lambda t: torch.cat([t, t * torch.nan], -1)[..., : t.shape[-1]]),
    case("transposed", (6, 5, 6), wrap=lambda t: t.transpose(0, 2)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_table(row):
    assert_agrees(norm, by_formula, row.make(), terms=row.terms, **row.options)


def test_a_weight_wider_than_x():
    x, weight = random((3, 8), torch.float32, seed=1), random((8,), torch.float64, seed=2).requires_grad_()
    y = norm(x, weight)
    assert y.dtype == torch.float32
    (dweight,) = torch.autograd.grad(y.sum(), weight)
    assert dweight.dtype == torch.float64


@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_nan_and_infinity_stay_in_their_row_and_group(norm_before_gate):
    x = torch.ones(4, 6)
    x[1, 1], x[2, 5] = torch.nan, torch.inf
    y = norm(x, torch.ones(6), torch.ones(4, 6), group_size=3, norm_before_gate=norm_before_gate)
    assert y[1, :3].isnan().all()
    assert y[1, 3:].isfinite().all()
    assert y[2, :3].isfinite().all()
    assert y[[0, 3]].isfinite().all()


def test_half_types_are_computed_in_float32():
    x = torch.full((2, 8), 300.0, dtype=torch.float16)  # its square is beyond float16
    assert mismatch(norm(x, torch.ones(8)), torch.ones(2, 8), terms=1) is None


@pytest.mark.filterwarnings("error")
def test_squares_beyond_the_range_of_a_float():
    x = torch.tensor([[3e30, 4e30, 0.0], [3e-30, 4e-30, 0.0], [0.0, 0.0, 0.0]]).requires_grad_()
    y = norm(x, torch.ones(3))
    for got, row in zip(y, x.detach().double(), strict=True):
        assert mismatch(got, by_formula(row, torch.ones(3)), terms=3) is None
    weights = torch.tensor([1.0, 2.0, 3.0])
    (dx,) = torch.autograd.grad((y * weights).sum(), x)
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad((by_formula(wide, torch.ones(3)) * weights).sum(), wide)
    for got, row in zip(dx, expected, strict=True):
        assert mismatch(got, row, terms=3) is None


def test_gates_far_open_and_far_closed():
    z = torch.tensor([[-1e4, -100.0, 100.0, 1e4]]).requires_grad_()
    x, weight = torch.ones(1, 4), torch.ones(4)
    y = norm(x, weight, z, norm_before_gate=True)
    assert y[0].tolist() == pytest.approx([0, 0, 100, 1e4], rel=1e-4, abs=1e-30)
    (dz,) = torch.autograd.grad(y.sum(), z)
    assert dz[0].tolist() == pytest.approx([0, 0, 1, 1], rel=1e-4, abs=1e-30)


def test_opcheck_and_gradcheck():
    args = [random(s, seed=i).requires_grad_() for i, s in enumerate([(2, 3, 4), (4,), (2, 3, 4)])]
    norm(*(t.detach() for t in args))  # registers the operator
    operator = torch.ops.ssmcourse.gated_rms_norm_triton.default
    torch.library.opcheck(operator, (*args, 1e-5, 2, False))
    for norm_before_gate in (False, True):
        options = {"group_size": 2, "norm_before_gate": norm_before_gate}
        assert torch.autograd.gradcheck(functools.partial(norm, **options), args, fast_mode=True)


def test_gradients_are_the_same_every_time():
    inputs = {n: t.requires_grad_() for n, t in case("", (70, 6), dtype=torch.float32).make().items()}

    def slopes():
        return torch.autograd.grad(norm(**inputs).sin().sum(), list(inputs.values()))

    assert all(torch.equal(a, b) for a, b in zip(slopes(), slopes(), strict=True))


def test_bytes_moved():
    """At most 1.3 times what goes in and comes out, with and without a gate."""
    x, weight = (
        random((64, 256), torch.float32, seed=1).requires_grad_(),
        random((256,), torch.float32, seed=2),
    )
    for z, forward_tensors in ((None, 2), (x, 3)):
        with counted() as forward:
            y = norm(x, weight, z)
        assert forward.bytes_moved() < 1.3 * forward_tensors * x.nbytes
    with counted() as backward:
        y.sum().backward()
    assert backward.bytes_moved() < 1.3 * 5 * x.nbytes


def test_what_is_too_wide_is_refused():
    with pytest.raises(ValueError, match=r"group_size: got 8193, expected at most 8192 .*reference"):
        norm(torch.ones(1, 8193), torch.ones(8193))
