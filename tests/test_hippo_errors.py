"""Every bad argument of the HiPPO functions gets a ValueError that names it."""

import math

import numpy as np
import pytest
import torch

from ssmcourse.hippo import hippo_basis, hippo_matrix, hippo_project, hippo_reconstruct, legs_step

F = torch.zeros(5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hippo_matrix("chebyshev", 4),
            "measure: got 'chebyshev', expected one of legs, legt, lagt, lmu",
        ),
        (
            lambda: hippo_matrix(np.array(["legs", "legt"]), 4),
            r"measure: got array\(.*, expected one of legs",
        ),
        (lambda: hippo_matrix(["legs"], 4), r"measure: got \['legs'\], expected one of legs"),
        (lambda: hippo_matrix("legs", 0), "n: got 0, expected"),
        (lambda: hippo_matrix("legs", np.array([4, 5])), r"n: got array\(\[4, 5\]\), expected a number"),
        (lambda: hippo_matrix("legs", 2.0), "n: got 2.0, expected"),
        (lambda: hippo_matrix("fourier", 5), "n: got 5, expected an even number for fourier"),
        (lambda: hippo_matrix("legt", 4, theta=0), "theta: got 0, expected a positive"),
        (lambda: hippo_matrix("legt", 4, theta=math.nan), "theta: got nan, expected a positive"),
        (lambda: hippo_matrix("legt", 4, theta=None), "theta: got None, expected one positive number"),
        (lambda: hippo_basis("legs", 4, torch.tensor([0.0, 1.5])), "points: got values from 0 to 1.5"),
        (lambda: hippo_basis("legs", 4, torch.zeros(2, 2)), r"points: got torch.float32 of shape \(2, 2\)"),
        (lambda: hippo_basis("legs", 4, torch.arange(2)), "points: got torch.int64"),
        (lambda: hippo_basis("legs", 4, 100), "points: got 100, expected a floating tensor"),
        (lambda: hippo_basis("lagt", 4, torch.zeros(2)), "theta: got None, expected a length of time"),
        (lambda: hippo_reconstruct(F, torch.zeros(2), "lagt"), "theta: got None"),
        (lambda: hippo_reconstruct(F, torch.zeros(2), "fourier"), "n: got 5, expected an even number"),
        (lambda: hippo_reconstruct(F.long(), torch.zeros(2)), r"c: got torch.int64 of shape \(5,\)"),
        (lambda: hippo_reconstruct([1.0], torch.zeros(2)), "c: got list, expected a floating tensor"),
        (lambda: hippo_reconstruct(F, torch.tensor([-0.1])), "points: got values from -0.1"),
        (lambda: hippo_project(F, 4, "leg"), "measure: got 'leg'"),
        (lambda: hippo_project(F, 4, method="rk4"), "method: got 'rk4', expected one of euler, backward"),
        (
            lambda: hippo_project(F, 4, method=np.array(["zoh", "rk4"])),
            r"method: got array\(.*, expected one of",
        ),
        (lambda: hippo_project(F, 4, backend="gpu"), "backend: got 'gpu'.*hippo_project has.*reference"),
        (lambda: hippo_project(F.long(), 4), "f: got torch.int64, expected a real floating tensor"),
        (lambda: hippo_project(F + 1j, 4), "f: got torch.complex64"),
        (lambda: hippo_project([1.0], 4), "f: got list"),
        (
            lambda: hippo_project(torch.zeros(3, 0), 4),
            r"f: got shape \(3, 0\), expected .* at least one sample",
        ),
        (lambda: hippo_project(torch.tensor(1.0), 4), r"f: got shape \(\)"),
        (lambda: hippo_project(F, 4, dt=-1), "dt: got -1, expected a positive"),
        (lambda: hippo_project(F, 4, "legt", theta=math.inf), "theta: got inf, expected a positive, finite"),
        (
            lambda: hippo_project(F, 4, times=torch.arange(4)),
            r"times: got torch.int64 of shape \(4,\), expected .*\(5,\)",
        ),
        (
            lambda: hippo_project(F, 4, times=torch.arange(5)),
            "times: got times that do not rise from above 0",
        ),
        (lambda: hippo_project(F, 4, times=[1, 2, 3, 4, 5]), "times: got list"),
        (
            lambda: hippo_project(F, 4, times=torch.arange(5) + 1, method="zoh"),
            "times: got a tensor, expected None",
        ),
        (
            lambda: legs_step(F, torch.tensor(1.0), 0.5, method="zoh"),
            "method: got 'zoh', expected one of euler",
        ),
        (
            lambda: legs_step(F, F, 0.5, method=np.array(["euler"])),
            r"method: got array\(.*, expected one of euler",
        ),
        (lambda: legs_step(F.long(), F, 0.5), "c: got torch.int64, expected a floating tensor"),
        (lambda: legs_step(F, 1.0, 0.5), "f: got float, expected a floating tensor"),
        (lambda: legs_step(F, F, 0.5), r"f: got shape \(5,\), expected \(\) to go with c \(5,\)"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
