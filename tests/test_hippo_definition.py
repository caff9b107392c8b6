"""Every HiPPO system against its definition: coefficients of the best approximation, differentiated.

The oracle knows no closed formula. With p_n the n-th dual basis function at age s, w the weight
and g_k the function that coefficient k stands for, c_n(t) = ∫ f(t-s) p_n(s) w(s) ds, so

    c_n' = p_n(0) w(0) f(t) - p_n(θ) w(θ) f(t-θ) + ∫ f(t-s) (p_n w)'(s) ds.

Putting f = Σ c_k g_k gives column k. All integrals are Gauss sums, exact for these polynomials, or
equispaced sums, exact for trigonometric ones, at 50 digits.
"""

import functools

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmcourse.hippo import MEASURES, hippo_basis, hippo_matrix, hippo_project, hippo_reconstruct
from ssmcourse.tolerance import mismatch

DIGITS = 50


def legendre(n, x):
    """Values and derivatives: P_{k+1}' = P_{k-1}' + (2k + 1) P_k."""
    P, D = [mp.mpf(1), x], [mp.mpf(0), mp.mpf(1)]
    for k in range(1, n):
        P.append(((2 * k + 1) * x * P[k] - k * P[k - 1]) / (k + 1))
        D.append(D[k - 1] + (2 * k + 1) * P[k])
    return P[:n], D[:n]


def laguerre(n, s):
    """Values and derivatives: L_{k+1}' = L_k' - L_k."""
    L, D = [mp.mpf(1), 1 - s], [mp.mpf(0), mp.mpf(-1)]
    for k in range(1, n):
        L.append(((2 * k + 1 - s) * L[k] - k * L[k - 1]) / (k + 1))
        D.append(D[k] - L[k])
    return L[:n], D[:n]


def dual(measure, n, s):
    """p_n(s) and p_n'(s) at age s of a window of length 1 (for lagt, of infinite length)."""
    if measure == "lagt":
        return laguerre(n, s)
    if measure == "fourier":
        values, slopes = [mp.mpf(1), mp.mpf(0)], [mp.mpf(0), mp.mpf(0)]
        for j in range(1, n // 2):
            w = 2 * mp.pi * j
            values += [mp.sqrt(2) * mp.cos(w * s), mp.sqrt(2) * mp.sin(w * s)]
            slopes += [-mp.sqrt(2) * w * mp.sin(w * s), mp.sqrt(2) * w * mp.cos(w * s)]
        return values, slopes
    sign = 1 if measure == "lmu" else -1  # lmu counts from now, legt and legs from the far end
    P, D = legendre(n, sign * (2 * s - 1))
    scale = [2 * k + 1 if measure == "lmu" else mp.sqrt(2 * k + 1) for k in range(n)]
    return [q * p for q, p in zip(scale, P, strict=True)], [
        2 * sign * q * d for q, d in zip(scale, D, strict=True)
    ]


def primal(measure, k, p):
    """g_k from p_k: the same, but for lmu, whose p_k is (2k + 1) P_k."""
    return p / (2 * k + 1) if measure == "lmu" else p


@functools.cache
def quadrature(measure, n):
    if measure == "fourier":
        return [mp.mpf(i) / (2 * n) for i in range(2 * n)], [mp.mpf(1) / (2 * n)] * (2 * n)
    if measure == "lagt":
        return mp.mp.gauss_quadrature(n + 1, "laguerre")
    x, w = mp.mp.gauss_quadrature(n + 1, "legendre")
    return [(a + 1) / 2 for a in x], [b / 2 for b in w]


def to_array(rows):
    return np.array(rows, dtype=object)


def by_definition(measure, n):
    """A, B, and the Gram matrix of primal against dual, as arrays of 50-digit numbers; θ = 1."""
    nodes, weights = quadrature(measure, n)
    values, slopes = (to_array(v) for v in zip(*(dual(measure, n, s) for s in nodes), strict=True))
    k = range(n)
    g = to_array([[primal(measure, i, v) for i, v in enumerate(row)] for row in values])
    weighted = g * to_array(weights)[:, None]  # (node, k)
    gram = values.T @ weighted
    now = to_array(dual(measure, n, mp.mpf(0))[0])
    if measure == "legs":  # f at x t with x = 1 - s: t c_n' = f(t) p_n(now) - c_n - ∫ x p_n'(x) f
        x_slopes = slopes * -to_array([[1 - s] for s in nodes])
        return -gram - x_slopes.T @ weighted, now, gram
    if measure == "lagt":
        return (slopes - values).T @ weighted, now, gram
    far = to_array(dual(measure, n, mp.mpf(1))[0])
    A = slopes.T @ weighted
    if measure == "fourier":  # the series gives (f(t) + f(t - θ)) / 2 at its ends
        return A - 2 * np.outer(far, far), now + far, gram
    far_read = to_array([primal(measure, i, far[i]) for i in k])
    return A - np.outer(far, far_read), now, gram


@pytest.mark.parametrize("measure", MEASURES)
def test_matrix_is_the_definition(measure):
    n = 64
    with mp.workdps(DIGITS):
        A, B, gram = by_definition(measure, n)
        identity = np.eye(n)
        if measure == "fourier":
            identity[1, 1] = 0  # the sine of frequency 0
        assert np.abs(gram - identity).max() < 1e-40, "the oracle's basis is not dual to itself"
        got_A, got_B = hippo_matrix(measure, n)
        for got, exact in ((got_A, A), (got_B, B)):
            assert got.dtype == torch.float64
            error = np.abs(got.numpy() - exact)
            assert (error <= 1e-12 * np.abs(exact) + 1e-40).all()


@pytest.mark.parametrize("measure", ["legt", "lmu", "fourier"])
def test_theta_stretches_time(measure):
    A, B = hippo_matrix(measure, 8)
    A_5, B_5 = hippo_matrix(measure, 8, theta=5.0)
    assert mismatch(A_5 * 5, A) is None
    assert mismatch(B_5 * 5, B) is None


@pytest.mark.parametrize("measure", MEASURES)
def test_the_system_is_the_derivative_of_the_coefficients(measure):
    """On a signal that is no polynomial: c' = A c + B f, but for what the far end gets wrong."""
    n, t, theta = 6, mp.mpf("1.7"), mp.mpf("0.9")
    with mp.workdps(DIGITS):

        def f(x):
            return mp.sin(3 * x) + mp.exp(-x) * x

        def slope(x):
            return 3 * mp.cos(3 * x) + mp.exp(-x) * (1 - x)

        if measure == "legs":
            inner = [lambda s, h=h, i=i: h(t * (1 - s)) * dual(measure, n, s)[0][i] * (1 - s) ** (h is slope)
                     for h in (f, slope) for i in range(n)]  # fmt: skip
            scale = mp.mpf(1)
        elif measure == "lagt":
            f, slope = (lambda x: mp.sin(3 * x)), (lambda x: 3 * mp.cos(3 * x))
            inner = [lambda s, h=h, i=i: h(t - s) * mp.exp(-s) * dual(measure, n, s)[0][i]
                     for h in (f, slope) for i in range(n)]  # fmt: skip
            scale = mp.mpf(1)
        else:
            inner = [lambda s, h=h, i=i: h(t - theta * s) * dual(measure, n, s)[0][i]
                     for h in (f, slope) for i in range(n)]  # fmt: skip
            scale = theta
        end = [0, 10, 20, 40, 120] if measure == "lagt" else [0, 1]
        integrals = [mp.quad(h, end) for h in inner]
        c, rate = to_array(integrals[:n]), to_array(integrals[n:])
        A, B = (m.numpy() for m in hippo_matrix(measure, n, theta=float(scale)))
        system = A @ c + B * f(t)
        if measure == "legs":
            rate = rate * t
        elif measure != "lagt":
            far = to_array(dual(measure, n, mp.mpf(1))[0])
            read = sum(primal(measure, i, far[i]) * c[i] for i in range(n))
            believed = 2 * read - f(t) if measure == "fourier" else read
            system = system + far * (believed - f(t - theta)) / theta
        assert np.abs(system - rate).max() < 1e-12 * np.abs(rate).max() + 1e-13


@pytest.mark.parametrize("n", [2, 64, 256])
@pytest.mark.parametrize("measure", MEASURES)
def test_basis_is_the_definition(measure, n):
    points = torch.tensor([0.0, 1e-3, 0.31, 0.5, 0.77, 1.0], dtype=torch.float64)
    theta = 20.0
    with mp.workdps(DIGITS):
        ages = [mp.mpf(1) - mp.mpf(p) for p in points.tolist()]
        rows = [dual(measure, n, s * 20 if measure == "lagt" else s)[0] for s in ages]
        rows = [[float(primal(measure, i, p)) for i, p in enumerate(row)] for row in rows]
    got = hippo_basis(measure, n, points, theta=theta)
    assert mismatch(got, np.array(rows), terms=n) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.sampled_from(["legs", "legt", "lmu", "lagt"]), st.integers(0, 10**6))
def test_polynomials_are_remembered_exactly_by_their_coefficients(n, measure, seed):
    """Reconstruction inverts projection: a polynomial of degree < n from n coefficients."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(3, n, dtype=torch.float64, generator=generator)
    nodes, weights = np.polynomial.legendre.leggauss(2 * n)
    points = torch.from_numpy((nodes + 1) / 2)
    if measure == "lagt":  # evaluate the same series by numpy
        past = np.polynomial.laguerre.lagval(3 * (1 - points.numpy()), c.numpy().T)
        assert mismatch(hippo_reconstruct(c, points, measure, theta=3.0), past, terms=n) is None
        return
    past = hippo_reconstruct(c, points, measure)
    basis = hippo_basis(measure, n, points)
    if measure == "lmu":
        basis = basis * (2 * torch.arange(n) + 1)
    again = (past * torch.from_numpy(weights / 2)) @ basis
    assert mismatch(again, c, terms=4 * n) is None


@pytest.mark.parametrize(
    ("measure", "allowed"), [("legs", 1e-3), ("legt", 1e-5), ("lagt", 1e-5), ("fourier", 0.02)]
)
def test_projection_converges_to_the_best_approximation(measure, allowed):
    """The recurrence, run on a sampled signal, arrives at the integrals of the definition."""
    n, l, end = 8, 4000, 2.0
    dt, theta = end / l, 1.0
    middle = (torch.arange(l, dtype=torch.float64) + 0.5) * dt

    def signal(x):
        return torch.sin(3 * x) * torch.exp(-x) * x**2

    c = hippo_project(signal(middle), n, measure, theta=theta, dt=dt, last_only=True)
    length = {"legs": end, "lagt": end}.get(measure, theta)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x = torch.from_numpy((nodes + 1) / 2)
    weight = torch.from_numpy(weights / 2)
    if measure == "lagt":
        weight = weight * length * torch.exp(-length * (1 - x))
    basis = hippo_basis(measure, n, x, theta=length)
    best = (weight * signal(end - length * (1 - x))) @ basis
    if measure in ("legs", "lagt"):
        assert (c - best).abs().max() < allowed * best.abs().max()
    else:
        # A window's memory errs by what it believes about its far end: compare what it recalls.
        error = hippo_reconstruct(c, x, measure) - hippo_reconstruct(best, x, measure)
        assert error.abs().max() < 20 * allowed * signal(middle).abs().max()


def test_fourier_reads_the_far_end_as_the_series_means_it():
    """The midpoint rule is a better guess of f(t - θ) than the series' own value."""
    n, l = 64, 8000
    x = (torch.arange(l, dtype=torch.float64) + 0.5) / l
    f = torch.exp(-3 * x) * torch.sin(9 * x) + x
    window = f[l // 2 :]
    points = (torch.arange(l // 2, dtype=torch.float64) + 0.5) / (l // 2)
    best = (hippo_basis("fourier", n, points).mT @ window) / (l // 2)
    got = hippo_project(f, n, "fourier", theta=l / 2, last_only=True)
    A, B = hippo_matrix("fourier", n, theta=l / 2)
    naive_A, naive_B = A + torch.outer(B, B) * (l / 4) / 2, B / 2
    c = torch.zeros(n, dtype=torch.float64)
    eye = torch.eye(n, dtype=torch.float64)
    step = torch.linalg.inv(eye - naive_A / 2)
    advance, drive = step @ (eye + naive_A / 2), step @ naive_B
    for value in f:
        c = advance @ c + drive * value
    assert (got - best).norm() < 0.5 * (c - best).norm()
    assert (got - best).norm() < 0.1 * best.norm()
