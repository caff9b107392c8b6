"""The scans of `mamba_ssm.ops.selective_scan_interface`, and those that Vim adds to it.

| official            | here       | shape                                                                  |
|---------------------|------------|------------------------------------------------------------------------|
| `u`                 | `x`        | (b, d, l); here (b, l, d)                                              |
| `delta`             | `dt`       | (b, d, l)                                                              |
| `delta_bias`        | `dt_bias`  | (d,)                                                                   |
| `B`, `C`            | `B`, `C`   | (b, n, l), (b, g, n, l), or constant (d, n); of complex A, real (…, 2l) |
| `last_state`        | state      | (b, d, n)                                                              |
| `xz`                |            | (b, 2d, l), the input x and the gate z                                 |

With complex A, what varies in time has real and imaginary parts in turn: B[..., 2t] + i B[..., 2t + 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from ssmcourse.compat.layouts import one_dtype
from ssmcourse.convolution import causal_conv1d
from ssmcourse.selective import selective_scan


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """y of `selective_scan`, (b, d, l) in u's dtype; with return_last_state also the state (b, d, n).

    The last state has its gradient here; the official function leaves it out without a word.
    """
    return _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan_ref(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """The same by the definition, step by step."""
    return _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend="reference")


def mamba_inner_fn(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias,
    A, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True,
    checkpoint_lvl=1, b_rms_weight=None, c_rms_weight=None, dt_rms_weight=None, b_c_dt_rms_eps=1e-6,
):  # fmt: skip
    """All of a Mamba block after its first projection: convolution, selection, scan, gate, last projection.

    Args:
        xz: (b, 2d, l); conv1d_weight: (d, 1, w); conv1d_bias: (d,) or None.
        x_proj_weight: (r + 2n, d), with complex A (r + 4n, d); delta_proj_weight: (d, r).
        out_proj_weight: (d_model, d).
        B, C: None, made from the input; or as `selective_scan_fn` takes them.
        B_proj_bias, C_proj_bias: (n,), added to a B or C made from the input.
        checkpoint_lvl: without effect; what is kept for the backward pass is the operators' own choice.
        b_rms_weight, c_rms_weight: (n,), dt_rms_weight: (d,): RMS norms of B, C and delta (Falcon Mamba).
    Returns:
        (b, l, d_model).
    """
    selected = _select(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias,
        (b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps),
    )  # fmt: skip
    y = _gated_scan(selected, A, D, delta_bias, delta_softplus)
    return linear(y, out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias,
    A, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True,
):  # fmt: skip
    """`mamba_inner_fn` by the definition. As in the original, softplus is always taken."""
    selected = _select(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    y = _gated_scan(selected, A, D, delta_bias, True, backend="reference")
    return linear(y, out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight,
    A, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True,
):  # fmt: skip
    """`mamba_inner_fn` before its last projection: (b, d, l). Vim adds up two of them."""
    selected = _select(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    return _gated_scan(selected, A, D, delta_bias, delta_softplus).mT


def bimamba_inner_fn(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias,
    A, A_b, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True,
):  # fmt: skip
    """`mamba_inner_fn` with a second scan, of A_b, that runs from the end to the start; their sum is projected.

    Both share one convolution, which is causal, and one selection. Source: Zhu et al. 2024 (Vim), version 1.
    """
    selected = _select(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    forwards = _gated_scan(selected, A, D, delta_bias, delta_softplus)
    flipped = [t.flip(1) if t.ndim > 2 else t for t in selected]
    backwards = _gated_scan(flipped, A_b, D, delta_bias, delta_softplus).flip(1)
    return linear(forwards + backwards, out_proj_weight, out_proj_bias)


# --- In our layout: (b, l, ...) -------------------------------------------------------------------


def of_time(B: Tensor, is_complex: bool) -> Tensor:
    """B or C, from (b, n, l) or (b, g, n, l) to (b, l, n) or (b, l, g, n). Constant ones stay (d, n)."""
    if B.ndim == 2:
        return B
    if is_complex:
        B = torch.view_as_complex(B.to(torch.promote_types(B.dtype, torch.float32)).unflatten(-1, (-1, 2)))
    return B.movedim(-1, 1)


def _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend="auto"):
    given = (
        u.mT,
        delta.mT,
        of_time(B, A.is_complex()),
        of_time(C, A.is_complex()),
        None if z is None else z.mT,
    )
    y = scan_here(*given, A, D, delta_bias, delta_softplus, return_last_state, backend)
    if return_last_state:
        return y[0].mT, y[1]
    return y.mT


def scan_here(x, dt, B, C, z, A, D, dt_bias, dt_softplus, return_state=False, backend="auto", **options):
    """`selective_scan` for activations that may differ in dtype; y has x's."""
    wide_x, dt, z, *real = one_dtype(x, dt, z, *(M.real if M.is_complex() else M for M in (B, C)))
    if A.is_complex():
        B, C = (M.to(torch.promote_types(wide_x.dtype, torch.complex64)) for M in (B, C))
    else:
        B, C = real
    result = selective_scan(
        wide_x, dt, A, B, C, D, z, dt_bias,
        dt_softplus=bool(dt_softplus), return_final_state=return_state, backend=backend, **options,
    )  # fmt: skip
    return (result[0].to(x.dtype), result[1]) if return_state else result.to(x.dtype)


def _select(
    xz,
    conv1d_weight,
    conv1d_bias,
    x_proj_weight,
    delta_proj_weight,
    A,
    B,
    C,
    B_proj_bias,
    C_proj_bias,
    norms=None,
):
    """x after its convolution, delta, B, C and the gate z, all (b, l, ...) but for constant B and C."""
    x, z = xz.mT.chunk(2, -1)
    x = causal_conv1d(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    projected = linear(x, x_proj_weight)
    rank, states = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    delta = linear(projected[..., :rank], delta_proj_weight)
    b_norm, c_norm, delta_norm, eps = norms or (None, None, None, 0.0)
    B = _made_of_input(B, projected[..., rank : rank + states], B_proj_bias, b_norm, eps, A)
    C = _made_of_input(C, projected[..., -states:], C_proj_bias, c_norm, eps, A)
    return x, _normed(delta, delta_norm, eps), B, C, z


def _made_of_input(given, projected, bias, norm, eps, A):
    if given is not None:
        return of_time(given, A.is_complex())
    made = projected if bias is None else projected + bias.to(projected.dtype)
    made = _normed(made, norm, eps)
    if not A.is_complex():
        return made
    return torch.view_as_complex(
        made.to(torch.promote_types(made.dtype, torch.float32)).unflatten(-1, (-1, 2))
    )


def _normed(value: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return value
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    return rms_norm(wide, wide.shape[-1:], weight.to(wide.dtype), eps).to(value.dtype)


def _gated_scan(selected, A, D, dt_bias, dt_softplus, backend="auto"):
    x, dt, B, C, z = selected
    return scan_here(x, dt, B, C, z, A, D, dt_bias, dt_softplus, backend=backend)
