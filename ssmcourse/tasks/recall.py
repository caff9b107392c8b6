"""Associative recall: pairs of a key and a value, then a key, and which value went with it? (lessons 04, 09, 14)

    AssociativeRecall      a 3  b 7  c 1 ... b     ->   7 at the last token
    MultiQueryRecall       a 3  b 7  c 1  . . c . a . . b .   ->   1, 3 and 7 at c, a and b

Tokens: keys 0 to keys - 1, then the values, then for MultiQueryRecall the blank `.`.

Source: Fu et al. 2023, "H3", section 3.1 (10 keys, sequences of 21); Arora et al. 2024, "Zoology: measuring and
improving recall in efficient language models", section 3 (multi-query: MQAR).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmcourse.tasks.task import IGNORE, Task, distinct


@dataclass(frozen=True)
class AssociativeRecall(Task):
    """Say the value that went with the last token.

    pairs: shown in a row, each with another key, at most `keys`.
    keys, values: how many different ones.
    """

    pairs: int = 10
    keys: int = 10
    values: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _enough_keys(self.pairs, self.keys)

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values

    @property
    def length(self) -> int:
        return 2 * self.pairs + 1

    @property
    def chance(self) -> float:
        return 1 / self.values

    def sample(self, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys, values, book = _book(b, self.pairs, self.keys, self.values, generator)
        asked = torch.randint(self.pairs, (b, 1), generator=generator)
        tokens = torch.cat([book, keys.gather(1, asked)], 1)
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -1:] = values.gather(1, asked)
        return tokens, targets

    def solve(self, tokens: Tensor) -> Tensor:
        return look_up(tokens, 2 * self.pairs, tokens < self.keys)


@dataclass(frozen=True)
class MultiQueryRecall(Task):
    """Say the value of every key that comes back, wherever it does.

    pairs: shown first, each with another key, at most `keys`; each comes back once, among blanks.
    keys, values: how many different ones.
    length_after: steps after the pairs, queries and blanks together, at least `pairs`.
    """

    pairs: int = 8
    keys: int = 64
    values: int = 64
    length_after: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        _enough_keys(self.pairs, self.keys)
        if self.length_after < self.pairs:
            raise ValueError(
                f"length_after: got {self.length_after}, expected room for the {self.pairs} queries"
            )

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values + 1

    @property
    def length(self) -> int:
        return 2 * self.pairs + self.length_after

    @property
    def chance(self) -> float:
        return 1 / self.values

    def sample(self, b: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys, values, book = _book(b, self.pairs, self.keys, self.values, generator)
        places = distinct(b, self.length_after, self.pairs, generator)  # in no order: nor are the queries
        after = torch.full((b, self.length_after), self.keys + self.values).scatter(1, places, keys)
        targets = torch.full((b, self.length), IGNORE)
        targets[:, 2 * self.pairs :] = torch.full_like(after, IGNORE).scatter(1, places, values)
        return torch.cat([book, after], 1), targets

    def solve(self, tokens: Tensor) -> Tensor:
        return look_up(tokens, 2 * self.pairs, tokens < self.keys)


def look_up(tokens: Tensor, book: int, asked: Tensor) -> Tensor:
    """For each token that is asked for, after the book's, the one that stood behind its equal in the book.

    Args:
        tokens: (b, l), of which the first `book` are the book.
        asked: (b, l), bool.
    Returns:
        (b, l), `IGNORE` where nothing is asked.
    """
    equal = tokens[:, book:, None] == tokens[:, None, :book]  # (b, l - book, book)
    place = equal.int().argmax(2)
    answers = tokens[:, :book].gather(1, (place + 1).clamp(max=book - 1))
    targets = torch.full_like(tokens, IGNORE)
    targets[:, book:] = answers.where(asked[:, book:], IGNORE)
    return targets


def _book(b: int, pairs: int, n_keys: int, n_values: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Keys and values, both (b, pairs), and both in turn, (b, 2 pairs)."""
    keys = distinct(b, n_keys, pairs, generator)
    values = n_keys + torch.randint(n_values, (b, pairs), generator=generator)
    return keys, values, torch.stack([keys, values], 2).flatten(1)


def _enough_keys(pairs: int, keys: int) -> None:
    if pairs > keys:
        raise ValueError(f"pairs: got {pairs}, expected at most as many as there are keys, {keys}")
