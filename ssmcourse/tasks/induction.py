"""Induction heads: what followed this token the last time (lesson 05).

    q f s * c x y y f *   ->   c at the last token

The mark `*` stands once among random symbols and once more at the end; the answer is the symbol after the first.

Tokens: symbols 0 to symbols - 1, then the mark.

Source: Olsson et al. 2022, "In-context learning and induction heads"; as a task Fu et al. 2023, "H3", table 1, and
Gu & Dao 2023, "Mamba", table 2 (16 tokens, length 256 in training).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmcourse.tasks.task import IGNORE, Task


@dataclass(frozen=True)
class InductionHeads(Task):
    """Say which symbol followed the mark.

    symbols: how many different ones.
    length_before: random symbols, the first mark among them, before the mark at the end, at least 2.
    """

    symbols: int = 15
    length_before: int = 255

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length_before < 2:
            raise ValueError(
                f"length_before: got {self.length_before}, expected 2 or more: the mark and its symbol"
            )

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    @property
    def length(self) -> int:
        return self.length_before + 1

    @property
    def chance(self) -> float:
        return 1 / self.symbols

    def sample(self, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(self.symbols, (b, self.length), generator=generator)
        place = torch.randint(self.length_before - 1, (b, 1), generator=generator)
        answer = tokens.gather(1, place + 1)
        tokens = tokens.scatter(1, place, self.symbols)
        tokens[:, -1] = self.symbols
        return tokens, self._targets(tokens, answer)

    def solve(self, tokens: Tensor) -> Tensor:
        place = (tokens == self.symbols).int().argmax(1, keepdim=True)  # of the first mark
        return self._targets(tokens, tokens.gather(1, place + 1))

    def _targets(self, tokens: Tensor, answer: Tensor) -> Tensor:
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -1:] = answer
        return targets
