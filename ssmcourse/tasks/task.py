"""What every task has in common: questions as tokens, answers as targets, an oracle, and the level of chance.

| name        | meaning                                                          | shape        |
|-------------|------------------------------------------------------------------|--------------|
| `tokens`    | what the model reads                                             | (b, l) int64 |
| `targets`   | what it is to say at each position; `IGNORE` where it is not asked | (b, l) int64 |
| `logits`    | what it says                                                     | (b, l, v)    |

A task is a frozen dataclass whose fields are its sizes:

    task = AssociativeRecall(pairs=10, keys=10, values=10)
    tokens, targets = task.sample(64, torch.Generator().manual_seed(0))
    accuracy(model(tokens), targets), "beside", task.chance
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from ssmcourse.arguments import integer

IGNORE = -100  # what torch's cross-entropy passes by


class Task:
    """A synthetic task. A subclass, a frozen dataclass of integers, writes what is below."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            integer(field.name, getattr(self, field.name), 1)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        """l, of every row."""
        raise NotImplementedError

    @property
    def chance(self) -> float:
        """The accuracy of one who knows which tokens can be answers, and guesses."""
        raise NotImplementedError

    def sample(self, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """b rows: tokens and targets, both (b, l). The generator decides them; no other randomness is used."""
        raise NotImplementedError

    def solve(self, tokens: Tensor) -> Tensor:
        """The oracle: the answers, from tokens alone, (b, l), `IGNORE` where none is asked for."""
        raise NotImplementedError


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """The share of right answers among those that are asked for.

    Args:
        logits: (b, l, v).
        targets: (b, l), `IGNORE` where nothing is asked.
    Raises:
        ValueError: the shapes do not fit, or nothing is asked anywhere.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, expected {tuple(logits.shape[:-1])}, as in logits"
        )
    asked = targets != IGNORE
    if not asked.any():
        raise ValueError(f"targets: got {IGNORE} everywhere, expected an answer somewhere")
    return (logits.argmax(-1) == targets)[asked].double().mean().item()


def distinct(b: int, n: int, k: int, generator: torch.Generator) -> Tensor:
    """In each of b rows, k different numbers under n in random order: (b, k)."""
    return torch.rand(b, n, generator=generator).argsort(1)[:, :k]
