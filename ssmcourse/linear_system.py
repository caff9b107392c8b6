"""The state of a linear system over many steps at once: what a convolution leaves out.

    h_t = A_bar h_{t-1} + B_bar x_t,    y_t = Re C h_t

| here           | meaning                                        | shape                                             |
|----------------|------------------------------------------------|---------------------------------------------------|
| `A_bar`        | the matrix of a step, or its diagonal          | (h, n, n), real; (h, n), complex                  |
| `B_bar`, `C`   | input and output, of A_bar's dtype             | (h, n)                                            |
| `state`        | h                                              | (b, h, n)                                         |
| `powers`       | A_bar, A_bar^2, A_bar^4, ...                   |                                                   |
| I, J           | t = i + I j, with i < I and j < J: I about √l  |                                                   |

`fft_conv` gives y of a system at rest. To begin from a state and to go on after the last step takes two things more:

    free_response    Re C A_bar^(t+1) h                            what the state before adds to y_t
    final_state      A_bar^l h + sum_t A_bar^(l-1-t) B_bar x_t     the state after

Neither keeps the states of all steps, (b, l, h, n), only those of every I-th one. Both are differentiable.

Source: Fu et al. 2023 (H3), algorithm 2 (state passing); lessons 03 and 04.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad

from ssmcourse.kernels.s4_kernels.matmul import columns_of, doubled
from ssmcourse.precision import without_autocast


@without_autocast
def free_response(A_bar: Tensor, C: Tensor, state: Tensor, l: int) -> Tensor:
    """Re C A_bar^(t+1) state for t < l: what the system says when nothing more comes in.

    Args:
        A_bar: (h, n, n) real, or (h, n) complex: its diagonal. C: (h, n), of the same dtype.
        state: (b, h, n), of the same dtype, before the first step.
        l: how many steps.
    Returns:
        (b, l, h), real.

    Cost: O(b l h n) work, and for a dense A_bar O(h n^3 log l); memory for (b, √l, h, n).
    """
    powers, turn = _powers(A_bar, l)
    rows = _orbit(_apply(_transposed(A_bar), C), [_transposed(power) for power in powers[:turn]])  # (I, h, n)
    blocks = -(-max(l, 1) // len(rows))
    states = _orbit(state, powers[turn : turn + (blocks - 1).bit_length()])[:blocks]  # (J, b, h, n)
    if rows.is_complex():  # Re(a b) is the scalar product of conj(a) and b
        rows, states = torch.view_as_real(rows.conj().resolve_conj()).flatten(2), _parts(states)
    return torch.einsum("ihn,jbhn->bjih", rows, states).flatten(1, 2)[:, :l]


@without_autocast
def final_state(
    A_bar: Tensor, B_bar: Tensor, x: Tensor, state: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """A_bar^l state + sum_t A_bar^(l-1-t) B_bar x_t: the state after the last step.

    Args:
        A_bar: (h, n, n) real, or (h, n) complex: its diagonal. B_bar: (h, n), of the same dtype.
        x: (b, l, h), real.
        state: (b, h, n), of A_bar's dtype, before the first step.
        lengths: (b,), how many steps each row has; what x holds after them is not looked at. All l if not given.
    Returns:
        (b, h, n), after each row's own last step.

    Cost: O(b l h n) work, and for a dense A_bar O(h n^3 log l); memory for (b, √l, h, n).
    """
    l = x.shape[1]
    powers, turn = _powers(A_bar, l)
    steps = torch.full((len(x),), l, device=x.device) if lengths is None else lengths
    if lengths is not None:
        x = _ends_together(x, lengths)
    columns = _orbit(B_bar, powers[:turn])  # (I, h, n): A_bar^i B_bar
    blocks = -(-max(l, 1) // len(columns))
    x = pad(x.to(A_bar.real.dtype), (0, 0, blocks * len(columns) - l, 0)).unflatten(1, (blocks, len(columns)))
    added = torch.einsum("bjih,ihn->bjhn", x, _parts(columns.flip(0)))  # at the end of each block
    if A_bar.is_complex():
        added = torch.view_as_complex(added.unflatten(3, (-1, 2)).contiguous())
    for power in powers[turn:]:  # two blocks become one
        if added.shape[1] > 1:
            added = pad(added, (0, 0, 0, 0, added.shape[1] % 2, 0))
            added = _apply(power, added[:, 0::2]) + added[:, 1::2]
    for bit, power in enumerate(powers):
        state = torch.where((steps >> bit & 1).bool()[:, None, None], _apply(power, state), state)
    return state + added[:, 0]


def _powers(A_bar: Tensor, l: int) -> tuple[list[Tensor], int]:
    """A_bar^(2^k) for every digit k of the binary number l, and how many of them make the I columns."""
    product = torch.mul if A_bar.ndim == 2 else torch.matmul
    return list(islice(doubled(A_bar, product), l.bit_length())), columns_of(max(l, 1)).bit_length() - 1


def _orbit(first: Tensor, powers: list[Tensor]) -> Tensor:
    """first, A first, A^2 first, ... along a new dimension in front, from A, A^2, A^4, ..."""
    table = first[None]
    for power in powers:
        table = torch.cat([table, _apply(power, table)])
    return table


def _apply(A_bar: Tensor, states: Tensor) -> Tensor:
    return A_bar * states if A_bar.ndim == 2 else torch.einsum("hmn,...hn->...hm", A_bar, states)


def _transposed(A_bar: Tensor) -> Tensor:
    return A_bar if A_bar.ndim == 2 else A_bar.mT


def _parts(value: Tensor) -> Tensor:
    """(..., 2n) real from (..., n) complex; what is real stays."""
    return torch.view_as_real(value.resolve_conj()).flatten(-2) if value.is_complex() else value


def _ends_together(x: Tensor, lengths: Tensor) -> Tensor:
    """(b, l, h) with each row's steps last and zeros before: with these, a system at rest stays at rest."""
    l = x.shape[1]
    source = torch.arange(l, device=x.device) - (l - lengths)[:, None]
    moved = x.gather(1, source.clamp(min=0)[..., None].expand_as(x))
    return moved.masked_fill((source < 0)[..., None], 0)
