"""The gated RMS norm against its formula in float64, its two orders, its groups, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssmcourse import backends, gated_rms_norm
from ssmcourse.tolerance import mismatch


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_formula(
    x: Tensor, weight: Tensor, z: Tensor | None = None, *, eps=1e-5, group_size=None, norm_before_gate=False
) -> Tensor:
    """Group by group, every root by itself."""
    silu = torch.ones_like(x) if z is None else z / (1 + torch.exp(-z))
    u = x if norm_before_gate else x * silu
    parts = []
    for group in u.split(group_size or x.shape[-1], -1):
        mean = sum(c * c for c in group.unbind(-1)) / group.shape[-1]
        parts.append(group / (mean + eps).sqrt()[..., None])
    y = torch.cat(parts, -1) * weight
    return y * silu if norm_before_gate else y


def test_by_hand():
    x = torch.tensor([3.0, 4.0])
    root = math.sqrt(12.5)
    assert gated_rms_norm(x, torch.tensor([1.0, 2.0]), eps=0.0).tolist() == pytest.approx(
        [3 / root, 8 / root]
    )
    closed = torch.tensor([0.0, -1e9])
    assert gated_rms_norm(x, torch.ones(2), closed).tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 5, 6)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [None, 1, 2, 6])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_formula(shape, gated, norm_before_gate, group_size, backend):
    x, weight, z = randn(*shape), randn(6, seed=1), randn(*shape, seed=2) if gated else None
    options = {"group_size": group_size, "norm_before_gate": norm_before_gate, "eps": 1e-3}
    got = gated_rms_norm(x, weight, z, backend=backend, **options)
    assert mismatch(got, by_formula(x, weight, z, **options), terms=6) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_types_are_computed_in_float32(dtype):
    """300^2 is beyond float16; the result is rounded once."""
    x, z, weight = 300 + randn(4, 8, dtype=dtype), randn(4, 8, dtype=dtype, seed=1), randn(8, seed=2).float()
    got = gated_rms_norm(x, weight, z)
    assert got.dtype == dtype
    assert mismatch(got, by_formula(x.double(), weight.double(), z.double()), terms=1) is None


@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_derivatives_to_second_order(norm_before_gate):
    leaves = [randn(2, 3, 4), randn(4, seed=1), randn(2, 3, 4, seed=2)]
    leaves = [t.requires_grad_() for t in leaves]

    def norm(x, weight, z):
        options = {"group_size": 2, "norm_before_gate": norm_before_gate, "backend": "reference"}
        return gated_rms_norm(x, weight, z, **options)

    assert torch.autograd.gradcheck(norm, leaves)
    assert torch.autograd.gradgradcheck(norm, leaves)


def test_the_length_of_x_does_not_matter_and_nothing_is_changed_in_place():
    x, weight, z = randn(3, 8), randn(8, seed=1), randn(3, 8, seed=2)
    before = [t.clone() for t in (x, weight, z)]
    once = gated_rms_norm(x, weight, z, eps=0.0)
    assert mismatch(gated_rms_norm(1000 * x, weight, z, eps=0.0), once) is None
    assert all(torch.equal(a, b) for a, b in zip((x, weight, z), before, strict=True))


def test_squares_beyond_the_range_of_a_float():
    x = torch.tensor([[3e30, 4e30, 0.0], [3e-30, 4e-30, 0.0]]).requires_grad_()
    y = gated_rms_norm(x, torch.ones(3))
    assert mismatch(y[0], by_formula(x[0].double(), torch.ones(3)), terms=3) is None
    assert mismatch(y[1], by_formula(x[1].double(), torch.ones(3)), terms=3) is None
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.isfinite().all()


def test_zeros_give_zeros_and_have_gradients():
    x = torch.zeros(2, 4, requires_grad=True)
    y = gated_rms_norm(x, torch.ones(4), torch.ones(2, 4))
    assert not y.any()
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4)])
def test_nothing_in_nothing_out(shape):
    x, weight = torch.ones(shape, requires_grad=True), torch.ones(shape[-1], requires_grad=True)
    y = gated_rms_norm(x, weight, torch.ones(shape))
    y.sum().backward()
    assert y.shape == shape
    assert not weight.grad.any()


def test_backends():
    assert "reference" in backends("gated_rms_norm")


X, W = torch.ones(2, 6), torch.ones(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gated_rms_norm(X.int(), W), "x: got dtype torch.int32, expected float16, "),
        (lambda: gated_rms_norm(torch.tensor(1.0), W), "x: got shape (), expected (..., d)"),
        (lambda: gated_rms_norm(X, torch.ones(5)), "weight: got shape (5,), expected (d,) with d=6 as in x"),
        (lambda: gated_rms_norm(X, W, X[:1]), "z: got shape (1, 6), expected (2, 6), as x"),
        (
            lambda: gated_rms_norm(X, W, X.double()),
            "z: got dtype torch.float64, expected torch.float32 to go with",
        ),
        (lambda: gated_rms_norm(X, W, eps=-1.0), "eps: got -1.0, expected a finite number of 0 or more"),
        (
            lambda: gated_rms_norm(X, W, group_size=4),
            "group_size: got 4, expected a number that divides the 6 ",
        ),
        (lambda: gated_rms_norm(X, W, group_size=0), "group_size: got 0, expected an integer of 1 or more"),
        (
            lambda: gated_rms_norm(X, W, backend="numba"),
            "backend: got 'numba', which is not one of its names",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
