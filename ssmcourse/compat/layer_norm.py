"""The norms of `mamba_ssm.ops.triton.layer_norm`: with what comes before a norm in a pre-norm block.

    h = dropout(x rowscale) + dropout(x1) + residual
    y = norm(h) weight + bias,  y1 = norm(h) weight1 + bias1        norm: RMS, or with the mean taken out

Returned are y, y1 if there is a weight1, h if `prenorm`, and the two dropout masks if asked for. y has x's dtype, h
the residual's; without a residual x's, or float32 with `residual_in_fp32`. Computed in float32 at least.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm


def layer_norm_fn(
    x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6, dropout_p=0.0, rowscale=None,
    prenorm=False, residual_in_fp32=False, is_rms_norm=False, return_dropout_mask=False,
):  # fmt: skip
    """Shapes: x, x1, residual (..., d), rowscale (...), weights and biases (d,).

    Raises:
        ValueError: rowscale together with x1.
    """
    if x1 is not None and rowscale is not None:
        raise ValueError("rowscale: got it together with x1, expected one of them")
    working = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    if residual is not None:
        working = torch.promote_types(working, residual.dtype)
    h, mask = _dropped(x.to(working) if rowscale is None else x.to(working) * rowscale[..., None], dropout_p)
    mask1 = None
    if x1 is not None:
        other, mask1 = _dropped(x1.to(working), dropout_p)
        h = h + other
    if residual is not None:
        h = h + residual
    results = [_norm(h, weight, bias, eps, is_rms_norm).to(x.dtype)]
    if weight1 is not None:
        results.append(_norm(h, weight1, bias1, eps, is_rms_norm).to(x.dtype))
    if prenorm:
        without = torch.float32 if residual_in_fp32 else x.dtype
        results.append(h.to(without if residual is None else residual.dtype))
    if return_dropout_mask:
        results += [mask, mask1]
    return results[0] if len(results) == 1 else tuple(results)


def rms_norm_fn(
    x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6, dropout_p=0.0, rowscale=None,
    prenorm=False, residual_in_fp32=False, return_dropout_mask=False,
):  # fmt: skip
    """`layer_norm_fn` with the RMS norm."""
    return layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale,
        prenorm, residual_in_fp32, True, return_dropout_mask,
    )  # fmt: skip


class RMSNorm(nn.Module):
    """`rms_norm_fn` with its weight, (hidden_size,), of ones."""

    def __init__(self, hidden_size, eps=1e-5, dropout_p=0.0, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0.0 else None
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.weight)

    def forward(self, x, residual=None, prenorm=False, residual_in_fp32=False):
        dropout_p = self.drop.p if self.drop is not None and self.training else 0.0
        return rms_norm_fn(
            x, self.weight, self.bias, residual=residual, eps=self.eps, dropout_p=dropout_p,
            prenorm=prenorm, residual_in_fp32=residual_in_fp32,
        )  # fmt: skip


def _dropped(x: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    """x without what is dropped, and where it was kept."""
    if p == 0.0:
        return x, None
    kept = torch.rand(x.shape, device=x.device) >= p
    return x.masked_fill(~kept, 0) / (1 - p), kept


def _norm(h: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    weight, bias = weight.to(h.dtype), None if bias is None else bias.to(h.dtype)
    if not rms:
        return layer_norm(h, h.shape[-1:], weight, bias, eps)
    y = rms_norm(h, h.shape[-1:], weight, eps)
    return y if bias is None else y + bias
