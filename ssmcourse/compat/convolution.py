"""The short convolutions of `causal_conv1d`: over a sequence, in generation, and over packed sequences.

| official             | shape                                                                          |
|----------------------|--------------------------------------------------------------------------------|
| `x`                  | (b, d, l); here (b, l, d)                                                      |
| `weight`             | (d, w), oldest lag first                                                       |
| `initial_states`     | (b, d, w - 1), the inputs before the first, oldest first                       |
| `conv_state`         | (b, d, s), s >= w - 1: the last s inputs, or a ring of s places                |
| `seq_idx`            | (b, l); a step takes only inputs of its own number, and is 0 where it is < 0   |
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ssmcourse import convolution
from ssmcourse.compat.layouts import activation_name


def causal_conv1d_fn(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
    final_states_out=None, activation=None,
):  # fmt: skip
    """(b, d, l), and with return_final_states the last w - 1 inputs, in `final_states_out` if that is given.

    Raises:
        NotImplementedError: an activation other than None, "silu" or "swish".
        ValueError: seq_idx together with initial or final states, as in the original; or shapes do not fit.
    """
    activation = activation_name(activation)
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise ValueError("seq_idx: got it with initial_states or return_final_states, expected it alone")
        return _packed(x.mT, weight, bias, seq_idx, activation).mT
    before = None if initial_states is None else initial_states.mT
    result = convolution.causal_conv1d(
        x.mT,
        weight,
        bias,
        activation=activation,
        initial_state=before,
        return_final_state=return_final_states,
    )
    if not return_final_states:
        return result.mT
    final = result[1].mT
    return result[0].mT, final if final_states_out is None else final_states_out.copy_(final)


def _packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, activation: str | None
) -> Tensor:
    if _returns(seq_idx, weight.shape[1]):
        y = _by_number(x, weight, bias, seq_idx, activation)
    else:
        y = convolution.causal_conv1d(x, weight, bias, activation=activation, seq_idx=seq_idx)
    return y.masked_fill((seq_idx < 0)[..., None], 0)


def _returns(seq_idx: Tensor, w: int) -> bool:
    """Whether a number comes back, after another one, within w steps. Our operator starts anew there."""
    l = seq_idx.shape[1]
    ended = torch.zeros_like(seq_idx, dtype=torch.bool)
    for lag in range(1, min(w, l)):
        same = seq_idx[:, lag:] == seq_idx[:, :-lag]
        ended[:, lag:] |= seq_idx[:, 1 : l - lag + 1] != seq_idx[:, :-lag]
        if bool((same & ended[:, lag:]).any()):
            return True
    return False


def _by_number(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, activation: str | None
) -> Tensor:
    """A sum of w shifted copies, each where it has the number of the step."""
    w, l, working = weight.shape[1], x.shape[1], torch.promote_types(x.dtype, torch.float32)
    inputs, numbers = pad(x.to(working), (0, 0, w - 1, 0)), pad(seq_idx, (w - 1, 0), value=-1)
    y = torch.zeros_like(inputs[:, :l])
    for j in range(w):
        own = (numbers[:, j : j + l] == seq_idx)[..., None]
        y = y + torch.where(own, inputs[:, j : j + l], 0) * weight[:, j].to(working)
    y = y if bias is None else y + bias.to(working)
    return (torch.nn.functional.silu(y) if activation else y).to(x.dtype)


@torch.no_grad()
def causal_conv1d_update(
    x, conv_state, weight, bias=None, activation=None, cache_seqlens=None, conv_state_indices=None
):
    """The next one or more steps, x (b, d) or (b, d, l); `conv_state` is written into. No gradients.

    Args:
        cache_seqlens: (b,), how many inputs each row had; then the state is a ring, written from
            cache_seqlens modulo s on.
        conv_state_indices: (b,), the row of `conv_state` that belongs to each row of x. Where it is negative, the
            output is 0 and no state is touched.
    Returns:
        x's shape and dtype.
    """
    activation = activation_name(activation)
    steps = x[..., None] if x.ndim == 2 else x
    if conv_state_indices is None:
        y = _update(steps, conv_state, weight, bias, activation, cache_seqlens)
    else:
        present = (conv_state_indices >= 0).nonzero()[:, 0]
        rows = conv_state_indices[present].long()
        states, lengths = conv_state[rows], None if cache_seqlens is None else cache_seqlens[present]
        y = torch.zeros_like(steps)
        y[present] = _update(steps[present], states, weight, bias, activation, lengths)
        conv_state[rows] = states
    return y[..., 0] if x.ndim == 2 else y


def _update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    lengths: Tensor | None,
) -> Tensor:
    """y (b, d, l) of the inputs x (b, d, l) and those in state (b, d, s), which takes them in."""
    w, s, l = weight.shape[1], state.shape[2], x.shape[2]
    if lengths is None:
        before = state[..., s - w + 1 :].mT
    else:
        places = torch.arange(1 - w, l, device=x.device) + lengths[:, None].long()
        places = places.remainder(s)[:, None].expand(-1, x.shape[1], -1)  # (b, d, w - 1 + l)
        before = state.gather(2, places[..., : w - 1]).mT
    if l == 1:
        y, _ = convolution.causal_conv1d_update(x[..., 0], before, weight, bias, activation=activation)
        y = y[..., None]
    else:
        y = convolution.causal_conv1d(x.mT, weight, bias, activation=activation, initial_state=before).mT
    if lengths is not None:  # of more inputs than places, the last ones stay
        state.scatter_(2, places[..., w - 1 :][..., -s:], x[..., -s:].to(state.dtype))
    elif l < s:
        state.copy_(torch.cat([state[..., l:], x.to(state.dtype)], -1))
    else:
        state.copy_(x[..., -s:])
    return y


@torch.no_grad()
def causal_conv1d_varlen_states(x, cu_seqlens, state_len):
    """The last inputs of every packed sequence, zeros where it is shorter: (s, d, state_len). No gradients.

    Args:
        x: (tokens, d).
        cu_seqlens: (s + 1,), where each sequence starts, and the end.
    """
    ends, starts = cu_seqlens[1:, None].long(), cu_seqlens[:-1, None].long()
    places = ends + torch.arange(-state_len, 0, device=x.device)  # (s, state_len)
    inputs = x[places.clamp(min=0)] if len(x) else x.new_zeros(*places.shape, x.shape[1])
    return inputs.masked_fill((places < starts)[..., None], 0).mT
