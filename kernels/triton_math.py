"""Functions that Triton kernels share, exact to the last digits in their arguments' type."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e), e = exp(-|x|), to the last digits also where it is small.

    log(1 + e) would round 1 + e. So log1p(e) = 2 artanh(s), s = e / (2 + e) <= 1/3, by its series.
    """
    TERMS: tl.constexpr = 17 if x.dtype == tl.float64 else 8
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    series = 0.0 * s
    for k in tl.static_range(TERMS, -1, -1):
        series = series * (s * s) + 1.0 / (2 * k + 1)
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def sigmoid(x):
    """By e^-|x|, which never overflows."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)
