"""One step of generation, of `mamba_ssm.ops.triton.selective_state_update`: for Mamba, and with heads for Mamba-2.

| official            | shape                                                              |
|---------------------|--------------------------------------------------------------------|
| `state`             | (b, d, n), or with heads (b, h, p, n); written into                |
| `x`, `dt`, `z`      | (b, d), or (b, h, p)                                               |
| `A`                 | (d, n), or (h, p, n)                                               |
| `B`, `C`            | (b, n), or (b, g, n); head i uses group i // (h / g)               |
| `D`, `dt_bias`      | (d,), or (h, p)                                                    |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssmcourse.compat.layouts import one_dtype
from ssmcourse.duality import ssd_state_update
from ssmcourse.selective import selective_state_update as channel_step


@torch.no_grad()
def selective_state_update(
    state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None
):
    """y of x's shape and dtype; the new state is in `state`, in its dtype. No gradients.

    Args:
        state_batch_indices: (b,), the row of `state` that belongs to each row of x. Where it is negative the step
            starts from 0 and its state is not kept.
    """
    if state_batch_indices is None:
        y, new = _step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
        state.copy_(new)
        return y
    present = (state_batch_indices >= 0).nonzero()[:, 0]
    rows = state_batch_indices[present].long()
    states = state.new_zeros(len(x), *state.shape[1:])
    states[present] = state[rows]
    y, new = _step(states, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    state[rows] = new[present].to(state.dtype)
    return y


def _step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus) -> tuple[Tensor, Tensor]:
    wide, dt, B, C, z = one_dtype(x, dt, B, C, z)
    B, C = (M[:, None] if M.ndim == 2 else M for M in (B, C))
    if state.ndim == 3:
        y, new = channel_step(state, wide, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus)
    elif _one_decay(dt, A, dt_bias):
        bias = None if dt_bias is None else dt_bias[:, 0]
        step = state, wide, dt[..., 0], A[:, 0, 0], B, C, D, z, bias
        y, new = ssd_state_update(*step, dt_softplus=dt_softplus, dt_limit=(-math.inf, math.inf))
    else:
        wide, dt, z = (None if t is None else t.flatten(1) for t in (wide, dt, z))
        D, dt_bias = (None if t is None else t.flatten() for t in (D, dt_bias))
        y, new = channel_step(
            state.flatten(1, 2), wide, dt, A.flatten(0, 1), B, C, D, z, dt_bias, dt_softplus=dt_softplus
        )
        y, new = y.view(x.shape), new.view(state.shape)
    return y.to(x.dtype), new


def _one_decay(dt: Tensor, A: Tensor, dt_bias: Tensor | None) -> bool:
    """Whether all of a head's channels and states share one step and one decay, which was expanded to them."""
    expanded = (dt, 2), (A, 2), (A, 1), *(() if dt_bias is None else ((dt_bias, 1),))
    return all(t.shape[dim] == 1 or t.stride(dim) == 0 for t, dim in expanded)
