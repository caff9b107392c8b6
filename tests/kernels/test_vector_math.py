"""The elementary functions of the kernels against mpmath, and NaN and infinity as IEEE wants them."""

import math

import mpmath
import numba
import numpy as np
import pytest

from ssmcourse.kernels import vector_math
from ssmcourse.kernels.threads import native
from ssmcourse.kernels.vector_math import exp, exp2, expm1, sigmoid, softplus


@native
def _exp(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])


@native
def _exp2(x, y):
    for i in range(len(x)):
        y[i] = exp2(x[i])


@native
def _expm1(x, y):
    for i in range(len(x)):
        y[i] = expm1(x[i])


@native
def _softplus(x, y):
    for i in range(len(x)):
        y[i] = softplus(x[i])


@native
def _sigmoid(x, y):
    for i in range(len(x)):
        y[i] = sigmoid(x[i])


# name: the kernel, the true function, the relative error promised for float32 and float64
FUNCTIONS = {
    "exp": (_exp, mpmath.exp, 2e-7, 1e-15),
    "exp2": (_exp2, lambda x: mpmath.power(2, x), 2e-7, 1e-13),
    "expm1": (_expm1, mpmath.expm1, 3e-7, 4e-15),
    "softplus": (_softplus, lambda x: mpmath.log1p(mpmath.exp(x)), 4e-7, 2e-15),
    "sigmoid": (_sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), 4e-7, 2e-15),
}


def apply(kernel, x):
    y = np.empty_like(x)
    kernel(x, y)
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relative_error(name, dtype):
    kernel, true, *promised = FUNCTIONS[name]
    limit = 86.5 if dtype == np.float32 else 700
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-6, math.log10(limit), 3000)
    x = (sizes * rng.choice([-1, 1], 3000)).astype(dtype)
    got = apply(kernel, x)
    with mpmath.workdps(40):
        wanted = [true(mpmath.mpf(float(v))) for v in x]
        worst = max(abs((mpmath.mpf(float(g)) - w) / w) for g, w in zip(got, wanted, strict=True))
    assert worst < promised[dtype == np.float64], f"relative error {float(worst):.3g}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_the_ends_of_the_line(dtype):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30], dtype)
    inf, nan = np.inf, np.nan
    expected = {
        _exp: [1, 1, inf, 0, nan, inf, 0],
        _exp2: [1, 1, inf, 0, nan, inf, 0],
        _expm1: [0, 0, inf, -1, nan, inf, -1],
        _softplus: [math.log(2), math.log(2), inf, 0, nan, 1e30, 0],
        _sigmoid: [0.5, 0.5, 1, 0, nan, 1, 0],
    }
    for kernel, values in expected.items():
        np.testing.assert_allclose(apply(kernel, x), np.array(values, dtype), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "last", "over"), [(np.float32, 88.722, 88.73), (np.float64, 709.78, 709.79)]
)
def test_overflow_begins_where_it_does_for_numpy(dtype, last, over):
    x = np.array([last, over], dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(apply(_exp, x), np.exp(x), rtol=1e-6)
    assert np.isinf(apply(_exp, x)[1])
    np.testing.assert_allclose(apply(_expm1, x), apply(_exp, x), rtol=1e-6)


def test_a_gate_of_no_decay_is_exactly_1():
    """1 + 1e-7 would grow a memory of 65,536 steps by a hundredth."""
    for kernel in (_exp, _exp2):
        for dtype in (np.float32, np.float64):
            assert apply(kernel, np.zeros(1, dtype))[0] == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_loop_over_it_is_simd(name):
    """What these functions are for. Where the processor has no vectors, there is nothing to see."""
    kernel = FUNCTIONS[name][0]
    x = np.zeros(8, np.float32)
    options = {name: kernel.targetoptions[name] for name in ("fastmath", "error_model")}
    fresh = numba.njit(**options)(kernel.py_func)
    fresh(x, x.copy())
    (code,) = fresh.inspect_llvm().values()
    assert "x float>" in code


def test_python_is_told_that_these_are_for_kernels():
    with pytest.raises(NotImplementedError, match="only compiled code"):
        vector_math.exp(1.0)


@native
def _decays(log_a, begin, q, G, sums, from_start, to_end, L, M):
    """Long enough for Numba's inline="always" to lose the last two lines, as it did."""
    total = log_a[begin] * 0
    for i in range(q):
        total += log_a[begin + i]
        from_start[i] = total
    rest = log_a[begin] * 0
    for j in range(q - 1, -1, -1):
        to_end[j] = rest
        rest += log_a[begin + j]
    for i in range(q):
        from_start[i] = exp(from_start[i])
        to_end[i] = exp(to_end[i])
    sums[:] = 0
    for i in range(q):
        step, L_i, M_i, G_i = log_a[begin + i], L[i], M[i], G[i]
        for j in range(i):
            sums[j] += step
            L_i[j] = exp(sums[j])
            M_i[j] = L_i[j] * G_i[j]
        L_i[i] = 1
        M_i[i] = G_i[i]


def test_what_follows_an_inner_loop_that_calls_it_is_not_lost():
    G, L, M = np.ones((64, 64), np.float32), *np.zeros((2, 64, 64), np.float32)
    _decays(np.full(8, -1, np.float32), 0, 8, G, *np.zeros((3, 64), np.float32), L, M)
    i, j = np.indices((8, 8))
    np.testing.assert_allclose(np.tril(L[:8, :8]), np.tril(np.exp(-(i - j).clip(0))), rtol=1e-6)
