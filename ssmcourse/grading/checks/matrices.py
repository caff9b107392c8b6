"""What the checks of matrices share: a matrix by its entries, and mistakes that come in pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssmcourse.grading.trial import Trial

Entry = Callable[[int, int], float]
System = tuple[Tensor, Tensor]


def square(n: int, entry: Entry) -> Tensor:
    """The (n, n) float64 matrix of entry(row, column)."""
    rows = [[float(entry(i, j)) for j in range(n)] for i in range(n)]
    return torch.tensor(rows, dtype=torch.float64)


def lower(n: int, entry: Entry) -> Tensor:
    """The same, with 0 above the diagonal, where entry is not asked."""
    return square(n, lambda i, j: entry(i, j) if i >= j else 0.0)


def vector(n: int, entry: Callable[[int], float]) -> Tensor:
    """The (n,) float64 vector of entry(i)."""
    return torch.tensor([float(entry(i)) for i in range(n)], dtype=torch.float64)


def mistakes_in_pairs(
    trial: Trial,
    right: Callable[..., System],
    wrong_A: dict[str, Callable[..., Tensor]],
    wrong_B: dict[str, Callable[..., Tensor]],
) -> None:
    """Register every wrong A with the right B, every wrong B with the right A, and both wrong at once."""
    for A_words, A in {"": lambda *args: right(*args)[0], **wrong_A}.items():
        for B_words, B in {"": lambda *args: right(*args)[1], **wrong_B}.items():
            if A_words or B_words:
                words = ". And ".join(w for w in (A_words, B_words) if w)
                trial.mistake(words, lambda *args, A=A, B=B: (A(*args), B(*args)))
