"""The norms as layers: their formula in float64, half types, autocast, parameters, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from layer_table import sequence
from torch import Tensor

from ssmcourse import nn
from ssmcourse.tolerance import mismatch


def by_formula(x: Tensor, weight: Tensor, eps: float, size: int) -> Tensor:
    parts = [part / (part.square().mean(-1, keepdim=True) + eps).sqrt() for part in x.split(size, -1)]
    return torch.cat(parts, -1) * weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6)])
def test_rms_norm(shape, dtype):
    norm, x = nn.RMSNorm(6, 1e-3), sequence(*shape, dtype=dtype)
    torch.nn.init.normal_(norm.weight)
    y = norm(x)
    assert y.dtype == dtype
    assert mismatch(y, by_formula(x.double(), norm.weight.double(), 1e-3, 6), terms=6) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), y)
    norm = norm.to(dtype)
    with torch.no_grad():  # two rows: compiled
        assert mismatch(norm(x), by_formula(x.double(), norm.weight.double(), 1e-3, 6), terms=6) is None


def test_squares_are_taken_in_float32():
    """300^2 is beyond float16."""
    y = nn.RMSNorm(4).half()(torch.full((1, 4), 300.0, dtype=torch.float16))
    assert torch.equal(y, torch.ones(1, 4, dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group_size", [None, 3])
@pytest.mark.parametrize("first", [False, True])
def test_gated_rms_norm(dtype, group_size, first):
    norm = nn.GatedRMSNorm(6, eps=1e-3, group_size=group_size, norm_before_gate=first)
    torch.nn.init.normal_(norm.weight)
    x, z = sequence(2, 3, 6, dtype=dtype), sequence(2, 3, 6, dtype=dtype, seed=2)
    gate = z.double() / (1 + (-z.double()).exp())
    weight, size = norm.weight.double(), group_size or 6
    if first:
        expected = by_formula(x.double(), weight, 1e-3, size) * gate
    else:
        expected = by_formula(x.double() * gate, weight, 1e-3, size)
    assert mismatch(norm(x, z), expected, terms=6) is None
    assert mismatch(norm(x), by_formula(x.double(), weight, 1e-3, size), terms=6) is None


@pytest.mark.parametrize(
    "norm", [nn.RMSNorm(6), nn.GatedRMSNorm(6, group_size=2)], ids=lambda n: type(n).__name__
)
def test_its_one_parameter(norm):
    assert {name: value.tolist() for name, value in norm.named_parameters()} == {"weight": [1.0] * 6}
    (group,) = nn.parameter_groups(norm)
    assert group["weight_decay"] == 0
    assert "6, eps=1e-05" in repr(norm)
    assert torch.autograd.gradcheck(norm.double(), (sequence(2, 6).requires_grad_(),))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.RMSNorm(0), "d: got 0, expected an integer of 1 or more"),
        (lambda: nn.RMSNorm(4, eps=-1), "eps: got -1, expected a finite number of 0 or more"),
        (lambda: nn.GatedRMSNorm(2.5), "d: got 2.5, expected an integer of 1 or more"),
        (lambda: nn.GatedRMSNorm(6, group_size=4), "group_size: got 4, expected a number that divides d 6"),
        (lambda: nn.GatedRMSNorm(6, group_size=0), "group_size: got 0, expected a number that divides d 6"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message
