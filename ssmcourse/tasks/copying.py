"""Copying: keep what was said, say it again when asked (lesson 05).

    Copying             a b c . . . . . . ? ? ?   ->   a b c at the three question marks
    SelectiveCopying    . a . . b . . . c ? ? ?   ->   a b c as well

In the first the delay is always the same, and a fixed convolution solves it. In the second the place of every
symbol is drawn anew, so that what to keep depends on what is read.

Tokens: symbols 0 to symbols - 1, then the blank `.`, then the question mark.

Source: Arjovsky, Shah & Bengio 2016, "Unitary evolution recurrent neural networks" (copying); Gu & Dao 2023,
"Mamba", section 3.1 and table 1 (selective copying: 16 symbols kept among 4096 steps).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmcourse.tasks.task import IGNORE, Task, distinct


@dataclass(frozen=True)
class Copying(Task):
    """Say again what came before a delay.

    symbols: how many different ones.
    kept: how many are said.
    delay: blanks between the last symbol and the first question mark, at least 1.
    """

    symbols: int = 8
    kept: int = 6
    delay: int = 48

    @property
    def vocab_size(self) -> int:
        return self.symbols + 2

    @property
    def length(self) -> int:
        return self.kept + self.delay + self.kept

    @property
    def chance(self) -> float:
        return 1 / self.symbols

    def sample(self, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        said = torch.randint(self.symbols, (b, self.kept), generator=generator)
        tokens = torch.full((b, self.length), self.symbols)
        tokens[:, : self.kept] = said
        return _asked(tokens, said, self.symbols + 1)

    def solve(self, tokens: Tensor) -> Tensor:
        return _answers(tokens, tokens[:, : self.kept])


@dataclass(frozen=True)
class SelectiveCopying(Task):
    """Say again, in order, the symbols that stood among blanks.

    symbols: how many different ones.
    kept: how many are said.
    length_before: steps before the first question mark, symbols and blanks together, at least `kept`.
    """

    symbols: int = 8
    kept: int = 6
    length_before: int = 54

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length_before < self.kept:
            raise ValueError(
                f"length_before: got {self.length_before}, expected room for the {self.kept} symbols kept"
            )

    @property
    def vocab_size(self) -> int:
        return self.symbols + 2

    @property
    def length(self) -> int:
        return self.length_before + self.kept

    @property
    def chance(self) -> float:
        return 1 / self.symbols

    def sample(self, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        said = torch.randint(self.symbols, (b, self.kept), generator=generator)
        places = distinct(b, self.length_before, self.kept, generator).sort(1).values
        tokens = torch.full((b, self.length), self.symbols).scatter(1, places, said)
        return _asked(tokens, said, self.symbols + 1)

    def solve(self, tokens: Tensor) -> Tensor:
        is_symbol = tokens < self.symbols
        return _answers(tokens, tokens[is_symbol].reshape(len(tokens), self.kept))


def _asked(tokens: Tensor, said: Tensor, question: int) -> tuple[Tensor, Tensor]:
    """The row with a question mark for each symbol at its end, and the targets there."""
    tokens[:, -said.shape[1] :] = question
    return tokens, _answers(tokens, said)


def _answers(tokens: Tensor, said: Tensor) -> Tensor:
    targets = torch.full_like(tokens, IGNORE)
    targets[:, -said.shape[1] :] = said
    return targets
