"""The phonebook: a list of names and numbers, then some of the names, to be answered digit by digit (lesson 14).

    Ann 4 1 7  Bob 2 2 9  Cy 0 3 1  ?  Bob 2 2 9
                                        ^  ^ ^      2, 2 and 9 are asked for at the tokens before them

With digits=1 it is a lookup of pairs. With more, a memory that has kept a part of a number shows it.

Tokens: names 0 to names - 1, then the digits, then the question mark.

Source: Waleffe et al. 2024, "An empirical study of Mamba-based language models", section 3.3; Jelassi et al. 2024,
"Repeat after me".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmcourse.tasks.task import IGNORE, Task, distinct


@dataclass(frozen=True)
class Phonebook(Task):
    """Say the numbers of the people asked for.

    people: in the book, each with another name, at most `names`.
    names: how many different ones.
    symbols: how many different digits.
    digits: in a number.
    queries: different people asked for, at most `people`.
    """

    people: int = 8
    names: int = 40
    symbols: int = 10
    digits: int = 3
    queries: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.people > self.names:
            raise ValueError(
                f"people: got {self.people}, expected at most as many as there are names, {self.names}"
            )
        if self.queries > self.people:
            raise ValueError(
                f"queries: got {self.queries}, expected at most as many as there are people, {self.people}"
            )

    @property
    def vocab_size(self) -> int:
        return self.names + self.symbols + 1

    @property
    def entry(self) -> int:
        """Tokens of a name and its number."""
        return 1 + self.digits

    @property
    def length(self) -> int:
        return self.people * self.entry + 1 + self.queries * self.entry

    @property
    def chance(self) -> float:
        return 1 / self.symbols

    def sample(self, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        names = distinct(b, self.names, self.people, generator)
        shape = (b, self.people, self.digits)
        numbers = self.names + torch.randint(self.symbols, shape, generator=generator)
        book = torch.cat([names[..., None], numbers], 2)  # (b, people, entry)
        asked = distinct(b, self.people, self.queries, generator)
        answers = book.gather(1, asked[..., None].expand(-1, -1, self.entry))  # (b, queries, entry)
        mark = torch.full((b, 1), self.names + self.symbols)
        tokens = torch.cat([book.flatten(1), mark, answers.flatten(1)], 1)
        return tokens, self._targets(tokens, answers)

    def solve(self, tokens: Tensor) -> Tensor:
        b = len(tokens)
        book = tokens[:, : self.people * self.entry].reshape(b, self.people, self.entry)
        queries = tokens[:, -self.queries * self.entry :: self.entry]  # their names
        person = (queries[..., None] == book[:, None, :, 0]).int().argmax(2)
        return self._targets(tokens, book.gather(1, person[..., None].expand(-1, -1, self.entry)))

    def _targets(self, tokens: Tensor, entries: Tensor) -> Tensor:
        """Each digit of the entries (b, queries, entry) at the token before it."""
        nothing = entries.new_full((*entries.shape[:2], 1), IGNORE)
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -self.queries * self.entry :] = torch.cat([entries[..., 1:], nothing], 2).flatten(1)
        return targets
