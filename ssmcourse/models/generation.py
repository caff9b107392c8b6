"""Generation: one forward pass over the prompt, then one token at a time with what the layers remember.

| code       | shape      | meaning                                                              |
|------------|------------|----------------------------------------------------------------------|
| `tokens`   | (b, l)     | the prompts                                                          |
| `mask`     | (b, l)     | bool, False at padding, on either side: each row is continued as if alone |
| `logits`   | (b, vocab) | of the next token; ids from `vocab_size` on (padding of the embedding) are cut off |

Greedy generation takes the largest logit, of equal ones the lowest id. Sampling draws from the softmax of
logits / temperature; a row's draws depend on the seed and its place in the batch, not on the other rows. Lesson 11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssmcourse.arguments import integer, number, shown

if TYPE_CHECKING:
    from ssmcourse.models.language_model import LanguageModel
    from ssmcourse.nn.sequence import Cache

Stop = int | Sequence[int] | Sequence[int | Sequence[int]] | None


def generate(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Stop = None,
    seed: int | None = None,
) -> Tensor:
    """The prompts and what follows them, (b, l + new); new is max_new_tokens, or less if all rows have stopped.

    Args and errors: those of `stream`.
    """
    new = stream(
        model, tokens, max_new_tokens,
        mask=mask, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, seed=seed,
    )  # fmt: skip
    return torch.cat([tokens, *(token[:, None].to(tokens.dtype) for token in new)], 1)


def stream(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Stop = None,
    seed: int | None = None,
) -> Iterator[Tensor]:
    """The new tokens, (b,) int64 at a time, as they come.

    Args:
        tokens: (b, l), l of 1 or more.
        max_new_tokens: how many at most.
        mask: (b, l), bool, False at padding, for prompts of unequal length. A row needs one token at least.
        temperature: 0 for the most likely token each time; 1 for the model's own distribution.
        top_k: draw among the k most likely tokens only.
        top_p: draw among the most likely tokens that reach this probability together, after top_k. In (0, 1].
        stop: token ids at which a row ends, [0, 7]; or sequences of ids, [[5, 6], [7]]; or both, [0, [5, 6]]. They
            are looked for in the new tokens. A row that has ended is filled with the token that it ended with.
        seed: an integer of 0 or more, for the same draws again. Random draws are no others' business: torch's
            generators are neither read nor moved.
    Raises:
        ValueError: an option that is out of its range, no prompt, or a token that there is not.

    Cost: one forward pass over the prompt, then one `step` a token. Memory does not grow, unless there is attention.
    """
    integer("max_new_tokens", max_new_tokens, 0)
    choose = Choice(
        len(tokens) if isinstance(tokens, Tensor) and tokens.ndim else 0, temperature, top_k, top_p, seed
    )
    ends = _sequences(stop, model.config.vocab_size)
    _check_prompt(tokens, mask)
    logits, cache = _prefill(model, tokens, mask)  # also refuses what is no token
    return _tokens(model, logits, cache, max_new_tokens, choose, ends)


def _tokens(
    model: LanguageModel,
    logits: Tensor,
    cache: list[Cache],
    count: int,
    choose: Choice,
    ends: list[tuple[int, ...]],
) -> Iterator[Tensor]:
    recent: list[list[int]] = [[] for _ in range(len(logits))]
    longest = max(map(len, ends), default=0)
    last: dict[int, int] = {}  # the rows that have ended, and with what
    for i in range(count):
        token = choose(logits[:, : model.config.vocab_size])
        if ends:
            ids = [last.get(row, new) for row, new in enumerate(token.tolist())]
            token = torch.tensor(ids, dtype=torch.int64, device=token.device)
            for row, new in enumerate(ids):
                recent[row] = [*recent[row], new][-longest:]
                if any(tuple(recent[row][-len(end) :]) == end for end in ends):
                    last.setdefault(row, new)
        # Out of inference mode, so that the token can be trained on.
        yield token.clone()
        if i + 1 == count or (ends and len(last) == len(recent)):
            return
        logits, cache = _step(model, token, cache)


@torch.inference_mode()
def _prefill(model: LanguageModel, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Cache]]:
    return model.prefill(tokens, mask)


@torch.inference_mode()
def _step(model: LanguageModel, token: Tensor, cache: list[Cache]) -> tuple[Tensor, list[Cache]]:
    return model.step_unchecked(token, cache)


class Choice:
    """Chooses the next token of every row from its logits.

    Args:
        rows: b. Every row has random numbers of its own.
        temperature, top_k, top_p, seed: as in `stream`.
    """

    def __init__(
        self,
        rows: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> None:
        number("temperature", temperature)
        if top_k is not None:
            integer("top_k", top_k, 1)
        if top_p is not None:
            number("top_p", top_p)
            if not 0 < top_p <= 1:
                raise ValueError(f"top_p: got {shown(top_p)}, expected a number in (0, 1]")
        if seed is not None:
            integer("seed", seed, 0)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.draws = []
        if temperature:
            self.draws = [np.random.default_rng(None if seed is None else [seed, row]) for row in range(rows)]

    @torch.inference_mode()
    def __call__(self, logits: Tensor) -> Tensor:
        """(b,) int64 from logits (b, vocab)."""
        largest = logits.amax(1)
        if not bool(largest.isfinite().all()):
            raise ValueError(
                "generate: got logits that are not finite; the weights may be damaged or overflow"
            )
        if not self.temperature:
            return logits.argmax(1)  # of equal ones the first
        order = None
        logits = logits.double()
        if self.top_k is not None or self.top_p is not None:
            logits, order = torch.sort(logits, dim=1, descending=True, stable=True)
        weights = ((logits - largest[:, None]) / self.temperature).exp()
        weights = self._most_likely(weights).cumsum(1)
        draw = torch.tensor(
            [1 - rng.random() for rng in self.draws], dtype=torch.float64, device=logits.device
        )
        # The first whose sum reaches a draw in (0, 1]: there is one, and never one of weight 0.
        place = torch.searchsorted(weights, draw[:, None] * weights[:, -1:])
        return place[:, 0] if order is None else order.gather(1, place)[:, 0]

    def _most_likely(self, weights: Tensor) -> Tensor:
        """(b, vocab), largest first: 0 for those that top_k and top_p leave out."""
        if self.top_k is not None:
            weights = weights[:, : self.top_k]
        if self.top_p is not None:
            before = weights.cumsum(1) - weights
            weights = weights.masked_fill(before >= self.top_p * weights.sum(1, keepdim=True), 0)
        return weights


def _check_prompt(tokens: Any, mask: Any) -> None:
    if isinstance(tokens, Tensor) and tokens.ndim == 2 and not tokens.shape[1]:
        raise ValueError("tokens: got an empty prompt (b, 0), expected one token or more")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != tokens.shape:
        return  # None, or what the layers refuse
    empty = (~mask.any(1)).nonzero()
    if len(empty):
        raise ValueError(f"mask: got no token in row {int(empty[0])}, expected one or more in every row")


def _sequences(stop: Any, vocab_size: int) -> list[tuple[int, ...]]:
    """`stop` as a list of sequences."""
    entries = [] if stop is None else [stop] if isinstance(stop, Integral) else stop
    wrong = f"stop: got {shown(stop)}, expected token ids below {vocab_size}, or lists of them"
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise ValueError(wrong)
    found = []
    for entry in entries:
        ids = [entry] if isinstance(entry, Integral) else entry
        if isinstance(ids, str) or not isinstance(ids, Sequence) or not ids:
            raise ValueError(wrong)
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, Integral) or not 0 <= token < vocab_size:
                raise ValueError(wrong)
        found.append(tuple(int(token) for token in ids))
    return found
