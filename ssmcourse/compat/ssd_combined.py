"""The scans of Mamba-2 in `mamba_ssm.ops.triton.ssd_combined`. Here the layouts are ours: `ssmcourse.duality.ssd`.

`chunk_size` is without effect: any length is fine, and the result does not depend on it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from ssmcourse import packing
from ssmcourse.compat.layernorm_gated import rmsnorm_fn
from ssmcourse.compat.layouts import activation_name, one_dtype
from ssmcourse.convolution import causal_conv1d
from ssmcourse.duality import ssd

NO_LIMIT = (0.0, float("inf"))


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None,
    dt_softplus=False, dt_limit=NO_LIMIT, return_final_states=False, return_varlen_states=False, state_dtype=None,
):  # fmt: skip
    """y of `ssd`, (b, l, h, p) in x's dtype, and the states that are asked for.

    Args:
        x, z: (b, l, h, p); dt: (b, l, h); A, dt_bias: (h,); B, C: (b, l, g, n); D: (h,) or (h, p).
        initial_states: (b, h, p, n), of each row's first sequence.
        seq_idx: (b, l), the sequences packed into each row.
        return_final_states: also the state after each row's last step, (b, h, p, n).
        return_varlen_states: also those after each sequence between `cu_seqlens`, (s, h, p, n); needs b = 1.
        state_dtype: of these states; float32 at least if not given.
    Raises:
        ValueError: shapes do not fit, or return_varlen_states without cu_seqlens or with b > 1.
    """
    x_dtype = x.dtype
    x, dt, B, C, z = one_dtype(x, dt, B, C, z)
    scan = {"dt_softplus": dt_softplus, "dt_limit": dt_limit, "initial_state": initial_states}
    scan |= {"dt_bias": dt_bias}
    y = ssd(x, dt, A, B, C, D, z, seq_idx=seq_idx, return_final_state=return_final_states, **scan)
    if return_final_states:
        y, states = y
        results = [y.to(x_dtype), _of_last(states, seq_idx).to(state_dtype or states.dtype)]
    else:
        results = [y.to(x_dtype)]
    if return_varlen_states:
        marks = marks_between(x, cu_seqlens)
        _, states = ssd(x, dt, A, B, C, seq_idx=marks, return_final_state=True, **scan)
        results.append(after_each(states, cu_seqlens).to(state_dtype or states.dtype))
    return results[0] if len(results) == 1 else tuple(results)


def mamba_split_conv1d_scan_combined(
    zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, initial_states=None, seq_idx=None,
    dt_limit=NO_LIMIT, return_final_states=False, activation="silu", rmsnorm_weight=None, rmsnorm_eps=1e-6,
    outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1, norm_before_gate=True,
):  # fmt: skip
    """All of a Mamba-2 block after its first projection.

    Args:
        zxbcdt: (b, l, 2m + 2hp + 2gn + h): the two halves of a gated MLP beside the scan (m channels, often none), the
            gate z, then x, B, C, which are convolved, and dt.
        conv1d_weight: (hp + 2gn, w).
        D: (h, p), or (h,) and then headdim is p.
        rmsnorm_weight: (hp,), a gated RMS norm in groups of hp / g channels; without it y silu(z).
        outproj_weight: (d_model, m + hp), a last projection.
        return_final_states: also the state after each row's last step.
    Returns:
        (b, l, m + hp), or (b, l, d_model) with the projection.
    """
    if D.ndim == 1 and headdim is None:
        raise ValueError("headdim: got None, expected the channels of a head, since D is (h,)")
    h, p = D.shape if D.ndim == 2 else (len(D), headdim)
    d, convolved = h * p, conv1d_weight.shape[0]
    beside = (zxbcdt.shape[-1] - d - convolved - h) // 2
    mlp, z, xBC, dt = zxbcdt.split([2 * beside, d, convolved, h], -1)
    xBC = causal_conv1d(
        xBC, conv1d_weight, conv1d_bias, activation=activation_name(activation), seq_idx=seq_idx
    )
    n = (convolved - d) // 2 // ngroups
    x, B, C = xBC.split([d, ngroups * n, ngroups * n], -1)
    result = mamba_chunk_scan_combined(
        x.unflatten(-1, (h, p)), dt, A, *(M.unflatten(-1, (ngroups, n)) for M in (B, C)), chunk_size, D,
        z.unflatten(-1, (h, p)) if rmsnorm_weight is None else None, dt_bias, initial_states, seq_idx, None, True,
        dt_limit, return_final_states,
    )  # fmt: skip
    y, *final = result if return_final_states else (result,)
    y = y.flatten(-2)
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, d // ngroups, norm_before_gate)
    if beside:
        gate, passed = mlp.chunk(2, -1)
        y = torch.cat([silu(gate) * passed, y], -1)
    if outproj_weight is not None:
        y = linear(y, outproj_weight, outproj_bias)
    return (y, *final) if final else y


def _of_last(states: Tensor, seq_idx: Tensor | None) -> Tensor:
    """Of the states after every sequence those of each row's last."""
    return states if seq_idx is None else states[packing.number_over_all_rows(seq_idx)[:, -1]]


def marks_between(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """(1, l), the sequences between `cu_seqlens` numbered, and what is behind the last as one more."""
    if cu_seqlens is None:
        raise ValueError("cu_seqlens: got None, expected where the sequences start, for return_varlen_states")
    if len(x) != 1:
        raise ValueError(f"x: got a batch of {len(x)}, expected 1, for return_varlen_states")
    steps = torch.arange(x.shape[1], device=x.device)
    return torch.bucketize(steps, cu_seqlens[1:].long(), right=True)[None]


def after_each(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The states after the sequences between `cu_seqlens`; zeros for one without steps."""
    present = cu_seqlens[1:] > cu_seqlens[:-1]
    found = states.new_zeros(len(present), *states.shape[1:])
    return found.index_put((present.nonzero()[:, 0],), states[: int(present.sum())])
