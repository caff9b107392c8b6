"""The five rules, each against a formula in high precision and against what must hold for any system."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmcourse.discretization import METHODS, discretize, phi1
from ssmcourse.hippo import hippo_matrix
from ssmcourse.tolerance import mismatch

F64, C128 = torch.float64, torch.complex128
ALPHA = {"euler": 0, "bilinear": 0.5, "backward": 1}


def exact(A, B, dt, method):
    """One step by mpmath at 40 digits. ZOH by its power series, so that a singular A is no matter."""
    with mp.workdps(40):
        n = len(B)
        A, B, dt = mp.matrix(A), mp.matrix(B), mp.mpf(dt)
        eye = mp.eye(n)
        if method in ("zoh", "mamba"):
            A_bar = mp.expm(A * dt)
            term, total = eye * dt, eye * dt
            for k in range(2, 400):
                term = term * A * dt / k
                total += term
                if mp.mnorm(term, 1) < mp.mpf(10) ** -35:
                    break
            B_bar = total * B if method == "zoh" else B * dt
        else:
            alpha = mp.mpf(ALPHA[method])
            left = eye - A * dt * alpha
            A_bar, B_bar = left**-1 * (eye + A * dt * (1 - alpha)), left**-1 * B * dt
        return to_numpy(A_bar, (n, n)), to_numpy(B_bar, (n,))


def to_numpy(matrix, shape):
    return np.array([complex(v) for v in matrix]).reshape(shape)


def system(n, seed, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, dtype=dtype, generator=generator)
    return A - 2 * torch.eye(n, dtype=dtype), torch.randn(n, dtype=dtype, generator=generator)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("method", METHODS)
def test_dense_is_the_formula(method, dtype):
    A, B = system(4, 0, dtype)
    # the middle ones are where torch's exponential of a single matrix loses five digits
    for dt in (1e-6, 0.003, 0.01, 0.3, 2.0):
        A_bar, B_bar = discretize(A, B, dt, method)
        exact_A, exact_B = exact(A.tolist(), B.tolist(), dt, method)
        assert mismatch(A_bar.to(C128), exact_A) is None, (dt, method)
        assert mismatch(B_bar.to(C128), exact_B) is None, (dt, method)


@pytest.mark.parametrize("dt", [0.04, 0.02])
def test_one_small_rotation_is_exact(dt):
    """The regression test of the exponential: cos and sin to the last digits, also in float32."""
    A = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    A_bar, _ = discretize(A, A[0], dt)
    assert abs(A_bar[1, 0].item() - math.sin(dt)) < 1e-16
    single = discretize(A.float(), A[0].float(), 0.5)[0]
    assert abs(single[1, 0].item() - math.sin(0.5)) < 2e-7


@pytest.mark.parametrize("method", METHODS)
def test_singular_A_is_no_special_case(method):
    """The double integrator: position and speed, driven by a force. ZOH is (dt²/2, dt)."""
    A, B = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    A_bar, B_bar = discretize(A, B, 0.5, method)
    position = {"zoh": 0.125, "bilinear": 0.125, "euler": 0.0, "backward": 0.25, "mamba": 0.0}[method]
    assert mismatch(A_bar, [[1.0, 0.5], [0.0, 1.0]]) is None
    assert mismatch(B_bar, [position, 0.5]) is None


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("method", METHODS)
def test_diagonal_equals_dense(method, dtype):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(5, dtype=dtype, generator=generator) - 2
    a[2] = 0
    b = torch.randn(5, dtype=dtype, generator=generator)
    dt = torch.tensor([[0.1, 0.5, 1.0], [0.01, 0.2, 1e-5]], dtype=F64)
    dense_A, dense_B = discretize(torch.diag(a), b, dt, method)
    A_bar, B_bar = discretize(a, b, dt[..., None], method, diagonal=True)
    assert dense_A.shape == (2, 3, 5, 5)
    assert dense_B.shape == B_bar.shape == A_bar.shape == (2, 3, 5)
    assert mismatch(A_bar, dense_A.diagonal(dim1=-2, dim2=-1), terms=5) is None
    assert mismatch(B_bar, dense_B, terms=5) is None
    assert mismatch(torch.diag_embed(A_bar), dense_A, terms=5) is None


def test_dt_of_a_selective_layer_broadcasts():
    A, B, dt = -torch.rand(6, 4), torch.rand(2, 7, 1, 4), torch.rand(2, 7, 6, 1)
    A_bar, B_bar = discretize(A, B, dt, "mamba", diagonal=True)
    assert A_bar.shape == B_bar.shape == (2, 7, 6, 4)
    assert mismatch(A_bar, torch.exp(dt * A)) is None
    assert mismatch(B_bar, dt * B) is None


@settings(max_examples=200, deadline=None)
@given(st.floats(-12, 3), st.floats(0, 2 * math.pi), st.booleans())
def test_phi1_and_its_derivative_near_zero_and_far(log_size, angle, real):
    z = 10**log_size * (
        math.copysign(1, math.cos(angle)) if real else complex(math.cos(angle), math.sin(angle))
    )
    if z.real > 600:
        z = -z
    tensor = torch.tensor(z, dtype=F64 if real else C128, requires_grad=True)
    value = phi1(tensor)
    (slope,) = torch.autograd.grad(value.real if not real else value, tensor)
    with mp.workdps(60):
        w = mp.mpmathify(z)
        want = complex(mp.expm1(w) / w)
        want_slope = complex((mp.exp(w) * w - mp.expm1(w)) / w**2)
    size = max(abs(want), abs(want_slope), 1e-300)
    assert abs(complex(value.detach()) - want) <= 4e-15 * max(abs(want), 1 / max(1, abs(z)))
    assert abs(complex(slope).conjugate() - want_slope) <= 4e-14 * size


@pytest.mark.parametrize("dtype", [F64, C128])
def test_the_limit_at_zero_has_its_value_and_its_gradients(dtype):
    """At A dt = 0, B_bar = dt B, dB_bar/dA = dt²/2 B, dA_bar/dA = dt: no NaN, no zero."""
    A = torch.zeros(3, dtype=dtype, requires_grad=True)
    B = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    for method, second in {"zoh": 0.5, "bilinear": 0.5, "backward": 1.0, "euler": 0.0, "mamba": 0.0}.items():
        A_bar, B_bar = discretize(A, B, 0.25, method, diagonal=True)
        assert mismatch(A_bar, torch.ones(3, dtype=dtype)) is None
        assert mismatch(B_bar, 0.25 * B) is None
        (dA,) = torch.autograd.grad(A_bar.real.sum(), A, retain_graph=True)
        assert mismatch(dA, torch.full((3,), 0.25, dtype=dtype)) is None
        if second:
            (dA,) = torch.autograd.grad(B_bar.real.sum(), A)
            assert mismatch(dA, second * 0.25**2 * B) is None


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_every_argument(method, diagonal):
    for dtype in (F64, C128):
        A, B = system(3, 2, dtype)
        A = (A.diagonal() * torch.tensor([1, 0, 1e-9])).clone() if diagonal else A
        dt = torch.tensor([[0.3], [0.05]] if diagonal else [0.3, 0.05], dtype=F64)
        inputs = tuple(t.requires_grad_() for t in (A, B, dt))
        assert torch.autograd.gradcheck(
            lambda A, B, dt: discretize(A, B, dt, method, diagonal=diagonal), inputs
        )


def test_second_derivatives_at_zero():
    A = torch.tensor([0.0, 1e-9, -0.3, -0.7], dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda A: discretize(A, torch.ones_like(A), 1.0, diagonal=True), (A,))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(1e-4, 1.5), st.floats(1e-4, 1.5))
def test_zoh_is_a_semigroup(n, seed, s, t):
    """A held input does not care how the time is cut: exact for zoh, and only for zoh."""
    A, B = system(n, seed)
    (A_s, B_s), (A_t, B_t), (A_st, B_st) = (discretize(A, B, dt) for dt in (s, t, s + t))
    assert mismatch(A_t @ A_s, A_st, terms=100) is None
    assert mismatch(A_t @ B_s + B_t, B_st, terms=100) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_bilinear_backward_and_zoh_keep_a_stable_system_stable(n, seed, dt):
    generator = torch.Generator().manual_seed(seed)
    G, K = torch.randn(2, n, n, dtype=F64, generator=generator)
    A = (K - K.mT) - G @ G.mT - 1e-3 * torch.eye(n, dtype=F64)  # symmetric part negative: |h| never grows
    for method in ("bilinear", "backward", "zoh"):
        A_bar, _ = discretize(A, G[0], dt, method)
        assert torch.linalg.matrix_norm(A_bar, 2) < 1 + 1e-9


def test_euler_does_not():
    A, B = hippo_matrix("legs", 16)
    assert torch.linalg.eigvals(discretize(A, B, 0.5, "euler")[0]).abs().max() > 1
    assert torch.linalg.eigvals(discretize(A, B, 0.5, "bilinear")[0]).abs().max() < 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_every_rule_is_consistent_with_its_order(n, seed):
    """Halving dt divides the error of one step by 2^(order + 1)."""
    A, B = system(n, seed)
    x = torch.ones(n, dtype=F64)
    for method, order in {"euler": 1, "backward": 1, "bilinear": 2}.items():
        errors = []
        for dt in (2e-3, 1e-3):
            (A_bar, B_bar), (A_zoh, B_zoh) = discretize(A, B, dt, method), discretize(A, B, dt)
            errors.append(((A_bar - A_zoh) @ x + B_bar - B_zoh).norm())
        if errors[1] > 1e-12:
            assert abs(math.log2(errors[0] / errors[1]) - order - 1) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_narrow_types(method, dtype):
    A, B = (t.to(dtype) for t in system(4, 3, C128 if dtype.is_complex else F64))
    wide = C128 if dtype.is_complex else F64
    for arguments, diagonal in (((A, B), False), ((A.diagonal(), B), True)):
        got = discretize(*arguments, 0.125, method, diagonal=diagonal)
        want = discretize(*(t.to(wide) for t in arguments), 0.125, method, diagonal=diagonal)
        for g, w in zip(got, want, strict=True):
            assert g.dtype == dtype
            assert mismatch(g, w, terms=4) is None


def test_dtypes_promote_and_inputs_are_left_alone():
    A, B = system(3, 4)
    A_32 = A.float()
    before = A_32.clone()
    A_bar, B_bar = discretize(A_32, B.to(C128), torch.tensor(0.1))
    assert A_bar.dtype == B_bar.dtype == C128
    assert (before == A_32).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.eye(2), torch.ones(2), 0.1, "rk4"), {}, "method: got 'rk4', expected one of zoh, bilinear"),
        ((torch.ones(2, 3), torch.ones(2), 0.1), {}, r"A: got shape \(2, 3\), expected \(n, n\)"),
        (
            (torch.ones(3), torch.ones(3), 0.1),
            {},
            r"A: got shape \(3,\), expected \(n, n\), or diagonal=True",
        ),
        ((torch.eye(2), torch.ones(3), 0.1), {}, r"B: got shape \(3,\), expected \(2,\)"),
        ((torch.eye(2, dtype=torch.int64), torch.ones(2), 0.1), {}, "A: got dtype torch.int64"),
        ((torch.eye(2), [1.0, 1.0], 0.1), {}, "B: got list, expected a torch tensor"),
        ((torch.eye(2), torch.ones(2), torch.tensor(1)), {}, "dt: got dtype torch.int64"),
        ((torch.eye(2), torch.ones(2), torch.tensor(1j)), {}, "dt: got dtype torch.complex64"),
        ((torch.eye(2), torch.ones(2), "fast"), {}, "dt: got 'fast', expected a number"),
        (
            (torch.eye(2), torch.ones(2), 1.0, "backward"),
            {},
            "dt: got a step at which I - 1 dt A is singular",
        ),
        ((torch.eye(2), torch.ones(2), 2.0, "bilinear"), {}, "dt times an eigenvalue of A is 2"),
        (
            (torch.ones(2), torch.ones(3), 0.1),
            {"diagonal": True},
            r"B: got shape \(3,\), expected \(..., 2\)",
        ),
        (
            (torch.tensor(1.0), torch.ones(3), 0.1),
            {"diagonal": True},
            r"A: got shape \(\), expected \(..., n\)",
        ),
        (
            (torch.ones(2), torch.ones(2), torch.ones(3)),
            {"diagonal": True},
            r"dt: got shape \(3,\), .* dt\[..., None\]",
        ),
    ],
)
def test_what_does_not_fit_is_said(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        discretize(*arguments, **options)
