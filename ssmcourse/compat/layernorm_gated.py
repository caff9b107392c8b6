"""The norms of `mamba_ssm.ops.triton.layernorm_gated`, with a gate and in groups of channels.

    y = (norm(x) weight + bias) silu(z)       norm_before_gate, the default here as there
    y = norm(x silu(z)) weight + bias         otherwise: Mamba-2

Each group of `group_size` neighbouring channels is normalised by itself. y has x's dtype, computed in float32 at
least. The RMS norm without a bias is `ssmcourse.normalization.gated_rms_norm`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import layer_norm, rms_norm, silu

from ssmcourse.compat.layouts import one_dtype
from ssmcourse.normalization import gated_rms_norm


def layernorm_fn(
    x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True, is_rms_norm=False
):
    """Shapes: x, z (..., d), weight and bias (d,); y (..., d)."""
    if is_rms_norm and bias is None:
        wide, gate = one_dtype(x, z)
        return gated_rms_norm(
            wide, weight, gate, eps=eps, group_size=group_size, norm_before_gate=norm_before_gate
        ).to(x.dtype)
    working = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    gate = None if z is None else silu(z.to(working))
    h = x.to(working)
    if gate is not None and not norm_before_gate:
        h = h * gate
    size = (x.shape[-1] if group_size is None else group_size,)
    norm = rms_norm if is_rms_norm else layer_norm
    y = norm(h.unflatten(-1, (-1, *size)), size, eps=eps).flatten(-2) * weight
    if bias is not None:
        y = y + bias
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


def rmsnorm_fn(x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True):
    """`layernorm_fn` with the RMS norm."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


class LayerNorm(nn.Module):
    """`layernorm_fn` with its weight and bias, (hidden_size,), of ones and zeros."""

    def __init__(
        self, hidden_size, eps=1e-5, group_size=None, norm_before_gate=True, device=None, dtype=None
    ):
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x, z=None):
        return layernorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate)


class RMSNorm(nn.Module):
    """`rmsnorm_fn` with its weight, (hidden_size,), of ones."""

    def __init__(
        self, hidden_size, eps=1e-5, group_size=None, norm_before_gate=True, device=None, dtype=None
    ):
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.weight)

    def forward(self, x, z=None):
        return rmsnorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate)
