"""Causal convolutions: a long one by FFT, and the short one that comes before a Mamba's scan.

| code            | symbol | shape         | meaning                                                       |
|-----------------|--------|---------------|---------------------------------------------------------------|
| `kernel`        | K      | (d, l)        | what an impulse leaves behind, lag 0 first                    |
| `D`             | D      | (d,)          | the skip: a multiple of x added to the result                 |
| `weight`        |        | (d, w)        | a short kernel, as torch has it: its last column is lag 0     |
| `initial_state` |        | (b, w - 1, d) | the inputs before the first step, oldest first                |
| `seq_idx`       |        | (b, l)        | which sequence a step belongs to, where a row packs several   |

As a matrix, y = M x with M[t, s] = K[t - s] for s <= t: a Toeplitz matrix, constant along diagonals.
Lesson 03 draws the long one, lesson 11 the short one, a band of w diagonals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmcourse import packing
from ssmcourse.arguments import Arguments, one_of
from ssmcourse.kernels import runtime
from ssmcourse.kernels.plain import backend_of_a_step
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


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """y_t = f(bias + weight_{w-1} x_t + ... + weight_0 x_{t-w+1}), each channel by itself.

    Args:
        x: (b, l, d).
        weight: (d, w), oldest lag first; `conv1d.weight[:, 0]` of a published Mamba. w is 1 or more.
        bias: (d,).
        activation: None, or "silu" for f(v) = v sigmoid(v).
        initial_state: (b, w - 1, d), the inputs before the first step, oldest first; zeros if not given.
        return_final_state: return the last w - 1 inputs too, which are the next call's initial state. Where
            there were fewer, the oldest are those of the initial state.
        seq_idx: (b, l) integers. Where they change along l a new sequence begins, which sees nothing of what
            was before. The initial state is that of each row's first sequence.
        backend: a name from `backends("causal_conv1d")`; "auto" takes the best one for x's device.
    Returns:
        y (b, l, d), in x's dtype. With `return_final_state` also the state in x's dtype, (b, w - 1, d); with
        seq_idx (s, w - 1, d), s counting the sequences of all rows, row by row.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is not there.

    weight, bias and initial_state may have any floating dtype; half types are computed in float32 and rounded
    once. Gradients of x, weight, bias and initial_state (first order; to any order with backend="reference").

    Cost: O(b l d w) work; memory for the result. The CPU backend takes little more time than copying x.
    Source: Gu & Dao 2023 (Mamba), section 3.4. Lesson 11.
    """
    given = Arguments()
    given.activation("x", x, "b l d")
    w = _width(given, weight, bias, activation)
    given.parameter("initial_state", initial_state, f"b {w - 1} d", optional=True)
    given.integers("seq_idx", seq_idx, "b l", optional=True)
    working = working_dtype(x, weight, bias, initial_state)
    convolve = runtime.choose("causal_conv1d", backend, x.device.type) if x.numel() else _by_definition
    y = convolve(
        x if working == torch.float32 else x.to(working),
        weight.to(working),
        None if bias is None else bias.to(working),
        None if initial_state is None else initial_state.to(working),
        None if seq_idx is None else seq_idx.to(torch.int64),
        activation == "silu",
    ).to(x.dtype)
    if not return_final_state:
        return y
    before = (
        x.new_zeros(x.shape[0], w - 1, x.shape[2]) if initial_state is None else initial_state.to(x.dtype)
    )
    if seq_idx is None or x.shape[1] == 0:
        return y, _last_inputs(x, before)
    return y, _last_of_each(x, before, seq_idx)


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> tuple[Tensor, Tensor]:
    """One step of `causal_conv1d`.

    Args:
        x: (b, d).
        state: (b, w - 1, d), the inputs before, oldest first.
        weight, bias, activation: as in `causal_conv1d`.
    Returns:
        y (b, d) and the new state (b, w - 1, d), both in x's dtype; the given state is not changed.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    given = Arguments()
    given.activation("x", x, "b d")
    w = _width(given, weight, bias, activation)
    given.parameter("state", state, f"b {w - 1} d")
    return conv1d_step(x, state, weight, bias, activation == "silu")


def conv1d_step(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """`causal_conv1d_update` for a layer that made the arguments, so that they fit."""
    working = working_dtype(x, weight, bias, state)
    step = _one_step
    if x.numel():
        backend = backend_of_a_step(x, state, weight, bias)
        step = runtime.choose("causal_conv1d_update", backend, x.device.type)
    return step(x, state, weight.to(working), None if bias is None else bias.to(working), silu)


def _width(given: Arguments, weight: Tensor, bias: Tensor | None, activation: str | None) -> int:
    """w, once weight, bias and activation are checked."""
    given.parameter("weight", weight, "d w")
    given.parameter("bias", bias, "d", optional=True)
    one_of("activation", activation, (None, "silu"))
    given.at_least_one("w")
    return given.sizes["w"]


def _by_definition(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> Tensor:
    """A sum of w shifted copies of x. Computed in weight's dtype."""
    (b, l, d), w = x.shape, weight.shape[1]
    before = weight.new_zeros(b, w - 1, d) if initial_state is None else initial_state
    known = torch.cat([before, x.to(weight.dtype)], 1)  # (b, w - 1 + l, d)
    sequence = None if seq_idx is None else torch.nn.functional.pad(packing.number(seq_idx), (w - 1, 0))
    value = torch.zeros_like(known[:, :l])
    for j in range(w):
        shifted = known[:, j : j + l]
        if sequence is not None:  # what another sequence holds is left out, not multiplied by zero
            same = sequence[:, j : j + l] == sequence[:, w - 1 :]
            shifted = torch.where(same[..., None], shifted, 0)
        value = value + weight[:, j] * shifted
    return _activated(value if bias is None else value + bias, silu)


def _one_step(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    window = torch.cat([state.to(weight.dtype), x.to(weight.dtype)[:, None]], 1)  # (b, w, d)
    value = (window * weight.T).sum(1)
    y = _activated(value if bias is None else value + bias, silu)
    return y.to(x.dtype), window[:, 1:].to(x.dtype)


def _activated(value: Tensor, silu: bool) -> Tensor:
    return value * torch.sigmoid(value) if silu else value


def _last_inputs(x: Tensor, before: Tensor) -> Tensor:
    """The last w - 1 of (before, x)."""
    rows = before.shape[1]
    known = torch.cat([before, x[:, max(0, x.shape[1] - rows) :]], 1)
    return known[:, known.shape[1] - rows :]


def _last_of_each(x: Tensor, before: Tensor, seq_idx: Tensor) -> Tensor:
    """The last w - 1 inputs of every sequence; zeros (or, in a row's first, `before`) where it is shorter."""
    sequence = packing.number(seq_idx)
    row, end = (n[:, None] for n in packing.ends(seq_idx).nonzero(as_tuple=True))  # (s, 1)
    step = end + torch.arange(1 - before.shape[1], 1, device=x.device)  # (s, w - 1), negative: in `before`
    known = step.clamp(min=0)
    inputs = torch.where((step < 0)[..., None], before[row, step.clamp(max=-1)], x[row, known])
    return torch.where((sequence[row, known] == sequence[row, end])[..., None], inputs, 0)


runtime.register(
    "causal_conv1d",
    cpu="ssmcourse.kernels.causal_conv1d.cpu:causal_conv1d",
    triton="ssmcourse.kernels.causal_conv1d.triton:causal_conv1d",
    reference=_by_definition,
)
runtime.register(
    "causal_conv1d_update",
    cpu="ssmcourse.kernels.causal_conv1d.cpu_update:update",
    triton="ssmcourse.kernels.causal_conv1d.triton_update:update",
    reference=_one_step,
)
