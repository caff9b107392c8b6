"""The matrices that the checks expect, against what they stand for: the integrals of lesson 01.

For a polynomial of degree below n the projection is exact, and so is LegT's guess of the sample that
leaves the window. Gauss-Legendre quadrature does these integrals exactly.
"""

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial, legendre

from ssmcourse.grading.checks import ch01_hippo, ch01_legs, ch01_legt
from ssmcourse.tolerance import mismatch

N = 8
F = Polynomial([0.3, -1.0, 0.5, 2.0, -0.7, 0.1, 0.4, -0.2])  # degree N - 1
NODES, WEIGHTS = legendre.leggauss(2 * N)
S = (NODES + 1) / 2
BASIS = legendre.legvander(NODES, N - 1) * np.sqrt(2 * np.arange(N) + 1)


def project(values):
    return BASIS.T @ (WEIGHTS / 2 * values)


@pytest.mark.parametrize("t", [0.4, 1.0, 2.5])
def test_legs_is_the_derivative_of_the_projection(t):
    A, B = ch01_legs._legs(N)
    c, change = project(F(t * S)), project(S * F.deriv()(t * S))  # d/dt f(t s) = s f'(t s)
    right = (A @ torch.from_numpy(c) + B * F(t)) / t
    assert mismatch(right, change, terms=N * N) is None


@pytest.mark.parametrize("theta", [0.5, 2.0])
def test_legt_is_the_derivative_of_the_projection(theta):
    A, B = ch01_legt._legt(N, theta)
    now = 0.8
    window = now - theta + theta * S
    c, change = project(F(window)), project(F.deriv()(window))
    assert mismatch(A @ torch.from_numpy(c) + B * F(now), change, terms=N * N) is None


def test_the_step_solves_its_equation():
    A, B = ch01_legs._legs(N)
    g = torch.Generator().manual_seed(0)
    c, f, k = torch.randn(N, generator=g, dtype=torch.float64), 1.3, 3
    new = ch01_legs._substituted(c, f, k, A, B)
    assert mismatch(new - c, (A @ (c + new) / 2 + B * f) / k, terms=N * N) is None


def test_project_and_draw_are_inverse_for_a_polynomial():
    s = torch.linspace(0, 1, 50, dtype=torch.float64)
    many = torch.from_numpy(F(ch01_hippo._middles(20000)))
    drawn = ch01_hippo._draw(ch01_hippo._project(many, N), s)
    assert np.abs(drawn.numpy() - F(s.numpy())).max() < 1e-5  # the midpoint rule's error, 1 / l^2
