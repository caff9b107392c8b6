"""Causal convolutions: a long one by FFT, the form in which S4 and H3 train.

| code     | symbol | shape     | meaning                                            |
|----------|--------|-----------|----------------------------------------------------|
| `kernel` | K      | (d, l)    | what an impulse leaves behind, lag 0 first    |
| `D`      | D      | (d,)      | the skip: a multiple of x added to the result      |

As a matrix, y = M x with M[t, s] = K[t - s] for s <= t: a Toeplitz matrix, constant along diagonals.
Lesson 03 draws it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmcourse.arguments import Arguments
from ssmcourse.precision import without_autocast, working_dtype


@without_autocast
def fft_conv(x: Tensor, kernel: Tensor, D: Tensor | None = None) -> Tensor:
    """y_t = K_0 x_t + K_1 x_{t-1} + ... + K_t x_0 (+ D x_t): causal, with zeros before the first step.

    Args:
        x: (b, l, d).
        kernel: (d, l), as long as x: cut or pad a longer or a shorter one. Any floating dtype.
        D: (d,), the skip connection, of any floating dtype.
    Returns:
        (b, l, d) in x's dtype. Half types are computed in float32 and rounded once.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Gradients of x, kernel and D to any order. The error of one element is relative to the largest of its
    row and channel: a Fourier transform mixes all steps, so a NaN or infinity reaches every one of them.

    Cost: O(b d l log l) work, and memory for some six times x.
    Source: Gu, Goel & Ré 2021 (S4), eq. 5. Lesson 03.
    """
    given = Arguments()
    given.activation("x", x, "b l d")
    given.parameter("kernel", kernel, "d l")
    given.parameter("D", D, "d", optional=True)
    working = working_dtype(x, kernel, D)
    wide, taps = x.to(working), kernel.to(working)
    if x.numel() == 0:
        y = wide * taps.T  # nothing, but differentiable
    else:
        l = x.shape[1]
        n = _fast_length(2 * l - 1)  # a circular convolution of this length does not wrap around
        spectrum = torch.fft.rfft(wide.mT, n) * torch.fft.rfft(taps, n)  # (b, d, n // 2 + 1)
        y = torch.fft.irfft(spectrum, n)[..., :l].mT  # (b, l, d)
    if D is not None:
        y = y + wide * D.to(working)
    return y.to(x.dtype).contiguous()


def _fast_length(at_least: int) -> int:
    """The smallest even length 2^i, 3 2^i or 5 2^i that is long enough: quick to transform."""
    return min(odd << max(1, (-(-at_least // odd) - 1).bit_length()) for odd in (1, 3, 5))
