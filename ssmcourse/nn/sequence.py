"""What every sequence layer has in common: how it is called, and what padding and packing mean to it.

    y = layer(x)                                       a whole sequence, (b, l, d_model)
    y = layer(x, mask=mask)                            rows of unequal length, padded on either side
    y = layer(x, seq_idx=seq_idx)                      several sequences packed into a row
    y, cache = layer(x, cache=cache, return_cache=True)   a chunk: what came before is in the cache
    y, cache = layer.step(x, cache)                    one token, (b, d_model)

The last two give what the first gives, for every split of the sequence. A cache is a dictionary of tensors, batch
first, so the rows of a batch are picked with `{name: value[rows] for name, value in cache.items()}`.

A layer says what it computes in `mix` and `step`; padding is moved out of its way before (`Spans`). Lesson 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssmcourse import packing
from ssmcourse.arguments import Arguments, integer
from ssmcourse.attribution import LayerAttention

Cache = dict[str, Tensor]


class SequenceLayer(nn.Module):
    """A layer from sequences to sequences, (b, l, d_model) to (b, l, d_model), causal.

    A subclass sets `d_model` and writes `mix`, `step` and `allocate_cache`.
    """

    d_model: int
    # Names of this layer's own parameters that weight decay would spoil: `parameter_groups` reads them.
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    # Those that want a learning rate of their own: name -> the largest one.
    max_learning_rate: ClassVar[dict[str, float]] = {}

    def forward(
        self,
        x: Tensor,
        *,
        seq_idx: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        return_cache: bool = False,
    ) -> Any:
        """y, and with return_cache the cache after the last token of every row.

        Args:
            x: (b, l, d_model).
            seq_idx: (b, l) integers. Where they change along a row, a new sequence begins, which sees nothing of
                what was before. The cache given is that of each row's first sequence, the one returned of its last.
            mask: (b, l), bool, False at padding: the result is as if those tokens were absent. What y is there is
                not specified. The cache ends at the last token that is there.
            cache: what came before, from `allocate_cache` or an earlier call; it may be written into.
        Returns:
            y (b, l, d_model), or (y, cache).
        Raises:
            ValueError: shapes or dtypes do not fit, or the cache is of another batch size or layer.
        """
        given = Arguments()
        given.activation("x", x, f"b l {self.d_model}")
        given.integers("seq_idx", seq_idx, "b l", optional=True)
        spans = Spans.of(x, seq_idx, mask)
        check_cache(cache, len(x))
        y, after = self.mix(spans.align(x), spans, cache, return_cache)
        y = spans.restore(y)
        return (y, after) if return_cache else y

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        """y, and with `keep` the cache after each row's last token.

        Args:
            x: (b, l, d_model), a row's tokens first, its padding last.
            spans: which tokens belong together.
        """
        raise NotImplementedError

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """One token, (b, d_model), with all that came before in the cache, which may be written into."""
        raise NotImplementedError

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        """The cache before the first token. dtype: of the activations; the parameters' if not given."""
        raise NotImplementedError

    # What the channels that are mixed over time go into at last: a submodule's name; "" if it is y itself.
    readout: str = "out_proj"

    @property
    def mixed(self) -> slice:
        """Which channels of the readout's input were mixed over time."""
        return slice(0, self.d_model)

    def implicit_attention(self, x: Tensor, include: frozenset[str], channels: Tensor) -> LayerAttention:
        """The layer as a matrix; `ssmcourse.attention.layer_attention` is the front."""
        from ssmcourse.nn.implicit_attention import implicit_attention  # which imports every layer

        return implicit_attention(self, x, include, channels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters as AdamW takes them: those without weight decay in a group of their own."""
        return parameter_groups(self)


@dataclass(frozen=True)
class Spans:
    """Which tokens of a batch belong together, once padding is moved to the end of each row.

    seq_idx: (b, l), marks of the aligned tokens, padding with a mark of its own. None if every row is one sequence
        without padding, and nothing below is more than a name for what is there already.
    lengths: (b,), the tokens in each row. None if all rows are full.
    order: (b, l), where each aligned token was. None if nothing was moved.
    """

    seq_idx: Tensor | None = None
    lengths: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, seq_idx: Tensor | None, mask: Tensor | None) -> Spans:
        if mask is None:
            return cls(seq_idx)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != x.shape[:2]:
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: got {got}, expected torch.bool (b, l) = {tuple(x.shape[:2])}, as in x")
        if bool(mask.all()):
            return cls(seq_idx)
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        present = mask.gather(1, order)
        number = torch.zeros_like(order) if seq_idx is None else packing.number(seq_idx.gather(1, order))
        return cls(number.masked_fill(~present, -1), mask.sum(1), order)

    def align(self, x: Tensor) -> Tensor:
        """(b, l, d) with each row's tokens first, in their order. Padding becomes zeros, NaN or not."""
        if self.order is None or self.seq_idx is None:
            return x
        moved = x.gather(1, self.order[..., None].expand_as(x))
        return moved.masked_fill((self.seq_idx == -1)[..., None], 0)

    def restore(self, y: Tensor) -> Tensor:
        """The aligned (b, l, d) back in the order of the batch as it was given."""
        if self.order is None:
            return y
        return y.gather(1, self.order.argsort(1)[..., None].expand_as(y))

    # --- For operators that know seq_idx ---------------------------------------------------------

    def last(self, states: Tensor, before: Tensor) -> Tensor:
        """Of the final states of all sequences (s, ...), row by row, those at each row's last token: (b, ...).

        Args:
            before: (b, ...), what a row without tokens keeps.
        """
        if self.seq_idx is None:
            return states
        b, l = self.seq_idx.shape
        if not l:
            return before
        lengths = self.lengths if self.lengths is not None else self.seq_idx.new_full((b,), l)
        sequence = packing.number_over_all_rows(self.seq_idx)
        at_end = sequence.gather(1, (lengths - 1).clamp(min=0)[:, None].long())[:, 0]
        empty = (lengths == 0).reshape(-1, *(1,) * (before.ndim - 1))
        return torch.where(empty, before.to(states.dtype), states[at_end])

    # --- For those that do not: one sequence a row ------------------------------------------------

    def rows(self, x: Tensor) -> Tensor:
        """(b, l, ...) as (s, longest, ...): every sequence, padding among them, in a row of its own, then zeros."""
        if self.seq_idx is None or not x.shape[1]:
            return x
        row, step = self._places(self.seq_idx)
        out = x.new_zeros(int(row.max()) + 1, int(step.max()) + 1, *x.shape[2:])
        return out.index_put((row, step), x)

    def unrows(self, rows: Tensor) -> Tensor:
        """What `rows` made, back as (b, l, ...)."""
        if self.seq_idx is None or not self.seq_idx.shape[1]:
            return rows
        return rows[self._places(self.seq_idx)]

    def row_lengths(self, x: Tensor) -> Tensor:
        """(s,), how many tokens each row of `rows(x)` has."""
        if self.seq_idx is None or not x.shape[1]:
            return torch.full((len(x),), x.shape[1], device=x.device)
        return torch.bincount(packing.number_over_all_rows(self.seq_idx).flatten())

    def first(self, before: Tensor, start: Tensor) -> Tensor:
        """(s, ...): the cache (b, ...) for each row's first sequence, `start` (b, ...) for the others."""
        if self.seq_idx is None or not self.seq_idx.shape[1]:
            return before
        sequence = packing.number_over_all_rows(self.seq_idx)
        opening = sequence[:, 0]  # of each row
        count = int(sequence[-1, -1]) + 1 if len(sequence) else 0
        row = (
            torch.bucketize(torch.arange(count, device=opening.device), opening.contiguous(), right=True) - 1
        )
        return start[row].index_put((opening,), before)

    def _places(self, seq_idx: Tensor) -> tuple[Tensor, Tensor]:
        """For every token, the row and the column that it has in `rows`: both (b, l)."""
        return packing.number_over_all_rows(seq_idx), packing.places(seq_idx)


def last_inputs(x: Tensor, before: Tensor, lengths: Tensor) -> Tensor:
    """The last w - 1 inputs at each row's end: (s, w - 1, d), from x (s, l, d) and those before it (s, w - 1, d)."""
    known = torch.cat([before.to(x.dtype), x], 1)
    steps = lengths[:, None] + torch.arange(before.shape[1], device=x.device)
    return known.gather(1, steps[..., None].expand(-1, -1, x.shape[2]))


def check_cache(cache: Cache | None, b: int) -> None:
    """Refuse a cache that was made for another number of rows."""
    if cache is None:
        return
    if not isinstance(cache, dict) or not all(isinstance(value, Tensor) for value in cache.values()):
        raise ValueError(f"cache: got {type(cache).__name__}, expected what `allocate_cache(batch)` gives")
    for name, value in cache.items():
        if len(value) != b:
            raise ValueError(f"cache: got one for a batch of {len(value)} ({name}), expected {b}, as in x")


def entries(cache: Cache, **shapes: tuple[int, ...]) -> list[Tensor]:
    """The tensors of a cache by name; refuse one that another layer made, or for another number of rows."""
    if isinstance(cache, dict) and len(cache) == len(shapes):
        found: list = [cache.get(name) for name in shapes]
        if [getattr(value, "shape", None) for value in found] == list(shapes.values()):
            return found
    need(cache)
    for b, *_ in shapes.values():
        check_cache(cache, b)
    got = ", ".join(f"{name} {tuple(value.shape)}" for name, value in cache.items()) or "nothing"
    wanted = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(f"cache: got one with {got}, expected {wanted}")


def need(cache: Cache | None) -> None:
    """Refuse None, where there must be a cache."""
    if cache is None:
        raise ValueError("cache: got None, expected what `allocate_cache(batch)` gives")


def check_step(x: Tensor, cache: Cache, d_model: int) -> None:
    """Refuse what `step` cannot take."""
    Arguments().activation("x", x, f"b {d_model}")
    need(cache)
    check_cache(cache, len(x))


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """All parameters of a module in the groups that AdamW takes.

    Without weight decay are what a layer names in `no_weight_decay`, and vectors: biases, the weights of norms. A
    parameter with a `max_learning_rate` has "max_lr" in its group, for a schedule to respect.

        optimizer = torch.optim.AdamW(parameter_groups(model), lr=3e-3, weight_decay=0.1)

    Returns:
        Groups {"params": [...]}, {"params": [...], "weight_decay": 0.0}, ...; every parameter once, none empty.
    """
    groups: dict[tuple[bool, float | None], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for owner in module.modules():
        plain = getattr(owner, "no_weight_decay", ())
        largest = getattr(owner, "max_learning_rate", {})
        for name, value in owner.named_parameters(recurse=False):
            if id(value) in seen or not value.requires_grad:
                continue
            seen.add(id(value))
            decays = value.ndim >= 2 and name not in plain
            groups.setdefault((decays, largest.get(name)), []).append(value)
    found = []
    for (decays, rate), params in groups.items():
        group: dict[str, Any] = {"params": params}
        if not decays:
            group["weight_decay"] = 0.0
        if rate is not None:
            group["max_lr"] = rate
        found.append(group)
    return found


def positive(**sizes: Any) -> None:
    """Refuse sizes of a layer that are not integers of 1 or more: positive(d_model=d_model, d_state=d_state)."""
    for name, value in sizes.items():
        integer(name, value, 1)
