"""Triton kernels of a whole forward and backward under the watch: they stay in bounds and out of each other's way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ssmcourse
from ssmcourse.kernels import runtime

if runtime.triton_mode() != "interpreted":
    pytest.skip("Triton does not interpret here", allow_module_level=True)

from ssmcourse.kernels.sanitizer.programs import watch_programs


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def steps(*shape: int) -> Tensor:
    return random(*shape).sigmoid()


def linear_scan():
    return {"a": steps(1, 256, 64), "b": random(1, 256, 64)}


def causal_conv1d():
    return {"x": random(1, 256, 64), "weight": random(64, 4), "bias": random(64)}


def gated_rms_norm():
    return {"x": random(64, 128), "weight": random(128), "z": random(64, 128)}


def selective_scan():
    l, d, n = 64, 32, 16
    return {
        "x": random(1, l, d), "dt": steps(1, l, d), "A": -steps(d, n), "B": random(1, l, n), "C": random(1, l, n),
        "D": random(d), "z": random(1, l, d),
    }  # fmt: skip


def ssd():
    l, h, p, n = 64, 2, 16, 16
    return {
        "x": random(1, l, h, p), "dt": steps(1, l, h), "A": -steps(h), "B": random(1, l, 1, n), "C": random(1, l, 1, n),
        "D": random(h),
    }  # fmt: skip


@pytest.mark.parametrize(
    "make", [linear_scan, causal_conv1d, gated_rms_norm, selective_scan, ssd], ids=lambda f: f.__name__
)
def test_programs_of_forward_and_backward_stay_in_bounds_and_apart(make):
    """Odd sizes: no tile is full."""
    given = {
        name: t[tuple(slice(0, max(1, n - 3) if n > 8 else n) for n in t.shape)] for name, t in make().items()
    }
    given = {name: t[:, :37] if t.ndim > 2 else t for name, t in given.items()}
    leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
    with watch_programs() as report:
        y = getattr(ssmcourse, make.__name__)(**leaves, backend="triton")
        y.square().sum().backward()
    assert report, str(report)
    assert y.isfinite().all()
    assert all(t.grad.isfinite().all() for t in leaves.values())
