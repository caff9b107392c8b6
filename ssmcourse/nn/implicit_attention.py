"""Every layer as a matrix: what it does to one channel between its first and its last projection.

    output = matrix values + constant,      matrix = diag(norm) diag(gate) (M + D I) diag(σ) M_conv

| factor         | part of `include` | in                    |                                                            |
|----------------|-------------------|-----------------------|------------------------------------------------------------|
| M              | "ssm"             | all                   | of the operator (`ssmcourse.attention`), softmax included  |
| D              | "D"               | Mamba, S4, H3         | the skip                                                   |
| M_conv         | "conv"            | Mamba, Griffin, some attention | the short convolution, a band                     |
| diag(σ)        | "activation"      | Mamba                 | silu(u) = σ(u) u                                           |
|                |                   | S4                    | gelu(y) = Φ(y) y, on the left                              |
| diag(gate)     | "gate"            | Mamba, Griffin, RWKV  | silu(z), gelu of the other branch, σ(r)                    |
| diag(norm)     | "norm"            | Mamba-2               | weight / root mean square                                  |

A diagonal depends on the data, through the whole layer: it is computed with all of its parts, whatever `include` says.

Source: Zimerman et al. 2024 (A unified implicit attention formulation), section 3. Lesson 12.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad, silu, softplus

from ssmcourse.attention import (
    h3_matrix,
    kernel_matrix,
    linear_attention_matrix,
    rglru_matrix,
    selective_scan_matrix,
    ssd_matrix,
    with_diagonal,
    wkv4_matrix,
)
from ssmcourse.attribution import LayerAttention
from ssmcourse.convolution import causal_conv1d, fft_conv
from ssmcourse.duality import ssd
from ssmcourse.nn.attention import Attention
from ssmcourse.nn.griffin import RGLRU, GriffinBlock
from ssmcourse.nn.h3 import H3
from ssmcourse.nn.linear_attention import LinearAttention
from ssmcourse.nn.mamba import Mamba
from ssmcourse.nn.mamba2 import Mamba2
from ssmcourse.nn.rwkv import RWKV4
from ssmcourse.nn.s4 import LinearSystemLayer
from ssmcourse.nn.sequence import SequenceLayer
from ssmcourse.normalization import inverse_root

Parts = frozenset[str]


@singledispatch
def implicit_attention(layer: SequenceLayer, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    """The matrix of a layer on an input x (b, l, d_model), for the given channels: `layer_attention` is the front.

    Args:
        include: parts to multiply, of `ssmcourse.attribution.PARTS`.
        channels: indices into the channels that the layer mixes over time.
    """
    raise ValueError(f"layer: got {type(layer).__name__}, expected a layer that mixes tokens")


@implicit_attention.register
def _(layer: Mamba, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    values, z = layer.in_proj(x).chunk(2, -1)
    u = _convolved(layer.conv1d, values)
    active = silu(u)
    dt, B, C = layer.select(active)
    dt = softplus(dt + layer.dt_proj.bias)
    D = layer.D if "D" in include else None
    M = _identity(active, D, channels)
    if "ssm" in include:
        M = selective_scan_matrix(dt, layer.A(), B, C, D=D, channels=channels)
    return _assembled(
        M, values, include, channels, conv=_short(layer.conv1d), sigma=u.sigmoid(), gate=silu(z)
    )  # fmt: skip


@implicit_attention.register
def _(layer: Mamba2, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    _, z, xBC, dt = layer.split(layer.in_proj(x))
    u = _convolved(layer.conv1d, xBC)
    heads, B, C = layer.heads(silu(u))
    dt = softplus(dt + layer.dt_bias).clamp(*layer.dt_limit)
    D = layer.D.repeat_interleave(layer.d_ssm // len(layer.D))  # of each channel
    M = _identity(heads.flatten(2), None, channels)
    if "ssm" in include:
        M = ssd_matrix(dt, layer.A(), B, C)[:, channels // layer.headdim]
    if "D" in include:
        M = _with_skip(M, D[channels], replace="ssm" not in include)
    norm = None
    if layer.norm is not None:
        y = ssd(heads, dt, layer.A(), B, C, layer.skip()).flatten(2)
        norm = _norm_factor(layer, y, z)
    d = layer.d_ssm
    return _assembled(
        M, xBC[..., :d], include, channels, conv=_short(layer.conv1d), sigma=u[..., :d].sigmoid(),
        gate=silu(z), norm=norm,
    )  # fmt: skip


def _norm_factor(layer: Mamba2, y: Tensor, z: Tensor) -> Tensor:
    """weight / root mean square, (b, l, d): of what the norm sees, y silu(z) or y."""
    norm = layer.norm
    assert norm is not None
    seen = y if norm.norm_before_gate else y * silu(z)
    groups = seen.unflatten(-1, (-1, norm.group_size or seen.shape[-1]))
    return inverse_root(groups, norm.eps).expand_as(groups).flatten(-2) * norm.weight


@implicit_attention.register
def _(layer: LinearSystemLayer, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    kernel = layer.ssm.kernel(x.shape[1]).to(x.dtype)
    D = layer.D.to(x.dtype)
    M = kernel_matrix(kernel[channels])[None] if "ssm" in include else _identity(x, None, channels)
    if "D" in include:
        M = _with_skip(M, D[channels], replace="ssm" not in include)
    y = fft_conv(x, kernel, D)
    curve = None if layer.out_proj is None else torch.special.ndtr(y)  # gelu(y) = Φ(y) y
    return _assembled(M, x, include, channels, after=curve)


@implicit_attention.register
def _(layer: H3, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    q, k, values = layer.project(x)
    kernel = layer.ssm.kernel(x.shape[1]).to(x.dtype)
    M = _identity(values, None, channels)
    if "ssm" in include:
        D = layer.D if "D" in include else None
        M = h3_matrix(q, k, layer.shift_kernel, kernel, D_shift=layer.D_shift, D_ssm=D)
        M = M[:, channels // layer.head_dim]
    return _assembled(M, values, include, channels)


@implicit_attention.register
def _(layer: LinearAttention, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    q, k, v = layer.project(x)
    M = _identity(v.flatten(2), None, channels)
    if "ssm" in include:
        M = linear_attention_matrix(q, k, normalize=layer.normalize)[:, channels // v.shape[-1]]
    return _assembled(M, v.flatten(2), include, channels)


@implicit_attention.register
def _(layer: Attention, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    qkv, _ = layer.project(x)
    steps = torch.arange(x.shape[1], device=x.device)
    q, k, _ = layer.heads(_convolved(layer.conv1d, qkv) if layer.d_conv else qkv, steps)
    M = _identity(x, None, channels)
    if "ssm" in include:
        scale = layer.head_dim**-0.5 if layer.softmax_scale is None else layer.softmax_scale
        scores = scale * torch.einsum("bihp,bjhp->bhij", q, _for_each_query(layer, k, 2))
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        M = scores.masked_fill(future, -torch.inf).softmax(-1)[:, channels // layer.head_dim]
    values = _for_each_query(layer, _values_of(layer, qkv, 2), 2).flatten(2)
    conv = None
    if layer.d_conv:
        parts = (layer.conv1d.weight[:, 0], layer.conv1d.bias)
        conv = tuple(_for_each_query(layer, _values_of(layer, part, 0), 0).flatten(0, 1) for part in parts)
    return _assembled(M, values, include, channels, conv=conv)


def _values_of(layer: Attention, qkv: Tensor, dim: int) -> Tensor:
    """Of queries, keys and values side by side along `dim` the values, as (..., g, p, ...)."""
    g, p = layer.num_heads_kv, layer.head_dim
    return qkv.narrow(dim, qkv.shape[dim] - g * p, g * p).unflatten(dim, (g, p))


def _for_each_query(layer: Attention, value: Tensor, dim: int) -> Tensor:
    """What g heads of keys or values have along `dim`, for each of the h heads of queries."""
    return value.repeat_interleave(layer.num_heads // layer.num_heads_kv, dim)


@implicit_attention.register
def _(layer: RGLRU, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    return _assembled(_rglru(layer, x, include, channels), x, include, channels)


@implicit_attention.register
def _(layer: GriffinBlock, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    values = layer.linear_x(x)
    M = _rglru(layer.rg_lru, _convolved(layer.conv_1d, values), include, channels)
    gate = gelu(layer.linear_y(x), approximate="tanh")
    return _assembled(M, values, include, channels, conv=_short(layer.conv_1d), gate=gate)


def _rglru(layer: RGLRU, x: Tensor, include: Parts, channels: Tensor) -> Tensor:
    if "ssm" not in include:
        return _identity(x, None, channels)
    r, i = (value[..., channels] for value in layer.gates(x))
    return rglru_matrix(r, i, layer.recurrent_param[channels], c=layer.c)


@implicit_attention.register
def _(layer: RWKV4, x: Tensor, include: Parts, channels: Tensor) -> LayerAttention:
    k, values, r = layer.project(x, pad(x, (0, 0, 1, 0))[:, :-1])
    M = _identity(values, None, channels)
    if "ssm" in include:
        M = wkv4_matrix(k[..., channels], layer.time_decay[channels], layer.time_first[channels])
    return _assembled(M, values, include, channels, gate=r)


# --- Parts ------------------------------------------------------------------------------------


def _assembled(
    M: Tensor,
    values: Tensor,
    include: Parts,
    channels: Tensor,
    *,
    conv: tuple[Tensor, Tensor | None] | None = None,
    sigma: Tensor | None = None,
    after: Tensor | None = None,
    gate: Tensor | None = None,
    norm: Tensor | None = None,
) -> LayerAttention:
    """The product of the factors, from M (b or 1, d, l, l), which has the chosen channels only.

    Args:
        conv: weight (d, w) and bias (d,) of the short convolution.
        sigma: (b, l, d), what an activation multiplies by before M; `after`: behind it.
        gate, norm: (b, l, d).
    """
    b, l = values.shape[:2]
    M = M.expand(b, -1, -1, -1)
    if sigma is not None and "activation" in include:
        M = M * sigma[..., channels].mT[:, :, None]
    constant = M.new_zeros(b, l, len(channels))
    if conv is not None and "conv" in include:
        weight, bias = conv
        if bias is not None:
            constant = torch.einsum("bdij,d->bid", M, bias[channels].to(M.dtype))
        M = _after_convolution(M, weight[channels].to(M.dtype))
    for part, diagonal in (("activation", after), ("gate", gate), ("norm", norm)):
        if diagonal is not None and part in include:
            constant = constant * diagonal[..., channels]
            M = M * diagonal[..., channels].mT[..., None]
    return LayerAttention(M, constant, values[..., channels])


def _after_convolution(M: Tensor, weight: Tensor) -> Tensor:
    """M M_conv, by the w diagonals of the band: [i, j] = sum over lags of M[i, j + lag] weight[w - 1 - lag]."""
    l, w = M.shape[-1], weight.shape[1]
    ahead = pad(M, (0, w - 1))
    taps = weight.flip(1).unbind(1)  # lag 0 first
    return sum(ahead[..., lag : lag + l] * tap[:, None, None] for lag, tap in enumerate(taps))  # pyright: ignore


def _convolved(conv1d: torch.nn.Conv1d, x: Tensor) -> Tensor:
    """The short convolution and its bias, without an activation."""
    y = causal_conv1d(x, conv1d.weight[:, 0], conv1d.bias)
    assert isinstance(y, Tensor)
    return y


def _short(conv1d: torch.nn.Conv1d) -> tuple[Tensor, Tensor | None]:
    return conv1d.weight[:, 0], conv1d.bias


def _identity(x: Tensor, D: Tensor | None, channels: Tensor) -> Tensor:
    """(1, d, l, l): what stands for a mixing that is left out; with D, what is left of (M + D I)."""
    l = x.shape[1]
    eye = torch.eye(l, dtype=x.dtype, device=x.device).expand(1, len(channels), l, l)
    return eye if D is None else eye * D[channels].to(x.dtype)[:, None, None]


def _with_skip(M: Tensor, D: Tensor, *, replace: bool) -> Tensor:
    """M + D I; D I where M is only the stand-in of a mixing that was left out."""
    D = D.to(M.dtype)
    if replace:
        return M * D[:, None, None]
    return with_diagonal(M, D)
