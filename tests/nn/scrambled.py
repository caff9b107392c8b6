"""A layer against an oracle of one sequence, on batches that mix all there is: caches, padding, packing, steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssmcourse import nn
from ssmcourse.tolerance import mismatch

Oracle = Callable[[Tensor], Tensor]  # (l, d) -> (l, d), float64


def agrees(got: Tensor, expected: Tensor, what: str, terms: int = 64) -> None:
    found = mismatch(got.detach(), expected.detach(), terms=terms)
    assert found is None, f"{what}: {found}"


def check(layer: nn.SequenceLayer, oracle: Oracle, seed: int) -> None:
    """Three chunks of padded tokens, the first two packed, and two steps.

    A row each has no token in the first chunk, in the second, in the third, and in any. Padding holds NaN.
    """
    source = torch.Generator().manual_seed(seed)
    b, d = 4, layer.d_model
    cache, history = layer.allocate_cache(b), [torch.zeros(0, d).double() for _ in range(b)]
    for chunk in range(3):
        length = (5, 9, 9)[chunk]
        x = torch.randn(b, length, d, generator=source).double()
        mask = torch.rand(b, length, generator=source) < (0.5, 0.8, 0.3)[chunk]
        mask[[chunk, 3]] = False
        marks = (torch.rand(b, length, generator=source) < (0.1, 0.3, 0.0)[chunk]).cumsum(1)
        x[~mask] = torch.nan
        y, cache = layer(x, mask=mask, seq_idx=marks, cache=cache, return_cache=True)
        for row in range(b):
            there = marks[row, mask[row]].tolist()
            tokens, results = x[row, mask[row]], y[row, mask[row]]
            for t, token in enumerate(tokens):
                new = t > 0 and there[t] != there[t - 1]
                history[row] = torch.cat([history[row][: 0 if new else None], token[None]])
                agrees(results[t], oracle(history[row])[-1], f"chunk {chunk}, row {row}, token {t}")
    for step in range(2):
        x = torch.randn(b, d, generator=source).double()
        y, cache = layer.step(x, cache)
        for row in range(b):
            history[row] = torch.cat([history[row], x[row, None]])
            agrees(y[row], oracle(history[row])[-1], f"step {step}, row {row}")
