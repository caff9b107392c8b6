"""The public steps of generation choose Triton where the tensors are on a GPU: here as if it took those of the CPU."""

from __future__ import annotations

import pytest
import torch
from operator_table import need, random
from torch import Tensor

from ssmcourse import causal_conv1d_update, selective_state_update, ssd_state_update
from ssmcourse.kernels import runtime
from ssmcourse.kernels.sanitizer.programs import watch_programs
from ssmcourse.tolerance import mismatch

F = torch.float32


def selective(**options):
    b, d, n, g = 2, 6, 4, 2
    made = [
        random(s, F, seed=i) for i, s in enumerate([(b, d, n), (b, d), (b, d), (d, n), (b, g, n), (b, n)])
    ]
    made[3] = -made[3].exp()
    rest = [random(s, F, seed=9 + i) for i, s in enumerate([(d,), (b, d), (d,)])]
    return selective_state_update(*made, *rest, dt_softplus=True, **options)


def heads(D_shape):
    b, h, p, g, n = 2, 4, 3, 2, 5
    shapes = [(b, h, p, n), (b, h, p), (b, h), (h,), (b, g, n), (b, g, n), D_shape, (b, h, p), (h,)]
    made = [random(s, F, seed=i) for i, s in enumerate(shapes)]
    made[3] = -made[3].exp()
    return ssd_state_update(*made, dt_softplus=True, dt_limit=(0.1, 0.9))


def convolution():
    return causal_conv1d_update(
        *(random(s, F, seed=i) for i, s in enumerate([(2, 6), (2, 3, 6), (6, 4), (6,)]))
    )


CALLS = {
    "selective": selective,
    "selective, zero-order hold": lambda: selective(b_disc="zoh"),
    "ssd": lambda: heads((4,)),
    "ssd, D of channels": lambda: heads((4, 3)),
    "convolution": convolution,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_step_is_one_launch(name, monkeypatch):
    need("selective_scan", "triton")
    if runtime.triton_mode() != "interpreted":
        pytest.skip("launches are counted where Triton interprets")
    expected: tuple[Tensor, ...] = CALLS[name]()
    monkeypatch.setitem(runtime._PLACE, "interpreted", (0, "cpu"))
    with watch_programs() as report:
        got = CALLS[name]()
    assert report, str(report)
    assert len(report.launches) == 1
    for g, e in zip(got, expected, strict=True):
        assert mismatch(g, e, terms=10) is None
