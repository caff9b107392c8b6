"""The small matrix products inside SSD's CPU backend, and what it makes of numbers next to denormals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssmcourse.kernels.ssd import products, tiles
from ssmcourse.tolerance import mismatch


def test_what_is_next_to_a_denormal_is_zero():
    values = np.array([[1e-38, -5e-38, 2e-37, 0.0, np.nan, np.inf, -1.0]], np.float32)
    tiles.flush(values)
    assert np.array_equal(
        values, np.array([[0, 0, 2e-37, 0, np.nan, np.inf, -1]], np.float32), equal_nan=True
    )


# --- The products of matrices -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.float32, np.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_products(transposed, number):
    """Every number of rows that occurs, whole and part vectors, depth to the last step."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        return generator.normal(size=shape).astype(number)

    for rows, cols, depth in [(1, 1, 1), (8, 16, 3), (17, 30, 0), (40, 48, 7), (64, 128, 64), (64, 32, 61)]:
        a = normal(64, 64)
        b, out = normal(64, 128), normal(64, 128)
        left = (a.T if transposed else a)[:rows, :depth].astype(np.float64)
        product = left @ b[:depth, :cols].astype(np.float64)
        for keep in (0.0, 1.0, -0.5):
            got = out.copy() if keep else np.full_like(out, np.nan)
            products.multiply(a, transposed, b, got, rows, cols, depth, keep, products.ALL)
            expected = product + (keep * out[:rows, :cols] if keep else 0)
            assert mismatch(torch.from_numpy(got[:rows, :cols].copy()), expected, terms=64) is None


@pytest.mark.parametrize("part", [products.A_LOWER, products.A_UPPER, products.OUT_LOWER])
@pytest.mark.parametrize("size", [1, 13, 50, 64])
def test_triangular_products(size, part):
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(64, 64)), generator.normal(size=(64, 64))
    a = {products.A_LOWER: np.tril, products.A_UPPER: np.triu}.get(part, np.asarray)(a)
    got = np.zeros((64, 64))
    products.multiply(np.ascontiguousarray(a), False, b, got, size, size, size, 0.0, part)
    expected = a[:size, :size] @ b[:size, :size]
    got = got[:size, :size]
    if part == products.OUT_LOWER:
        got, expected = np.tril(got), np.tril(expected)
    assert mismatch(torch.from_numpy(got.copy()), expected, terms=64) is None
