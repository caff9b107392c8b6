"""Sequences packed into one row: where they start, where they end, and how many there are.

`seq_idx` (b, l) marks them with integers; a new sequence starts wherever the mark changes along a row, whatever
it changes to. Every row starts one. So 3 3 3 5 5 3 is three sequences, of 3, 2 and 1 steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def changes(seq_idx: Tensor) -> Tensor:
    """(b, l), true where a sequence starts that is not its row's first."""
    return pad(seq_idx[:, 1:] != seq_idx[:, :-1], (min(1, seq_idx.shape[1]), 0))


def ends(seq_idx: Tensor) -> Tensor:
    """(b, l), true at every sequence's last step."""
    return pad(seq_idx[:, 1:] != seq_idx[:, :-1], (0, min(1, seq_idx.shape[1])), value=True)


def number(seq_idx: Tensor) -> Tensor:
    """(b, l), int64: the sequences of each row numbered 0, 1, 2, ..."""
    return changes(seq_idx).long().cumsum(1)


def places(seq_idx: Tensor) -> Tensor:
    """(b, l), int64: each step's place in its own sequence: 0, 1, 2, ..."""
    steps = torch.arange(seq_idx.shape[1], device=seq_idx.device).expand_as(seq_idx)
    return steps - steps.masked_fill(~changes(seq_idx), 0).cummax(1).values


def count(seq_idx: Tensor) -> int:
    """How many sequences all rows hold together. A row without steps holds one, which is empty."""
    return len(seq_idx) + int(changes(seq_idx).sum())


def number_over_all_rows(seq_idx: Tensor) -> Tensor:
    """(b, l), int64: the sequences numbered on from row to row."""
    in_row = number(seq_idx)
    if not seq_idx.shape[1]:
        return in_row
    sizes = in_row[:, -1] + 1
    return in_row + (sizes.cumsum(0) - sizes)[:, None]
