"""Between the official layouts and ours: they have channels before length, (b, d, l); here they come last.

Views only. A tensor that was transposed from (b, l, d), as a linear layer gives it, is contiguous again.
"""

from __future__ import annotations

import torch
from torch import Tensor

SILU = ("silu", "swish")


def one_dtype(*activations: Tensor | None) -> list[Tensor | None]:
    """All of them in the widest dtype among them, None left as it is: the official kernels take mixtures."""
    dtypes = {t.dtype for t in activations if t is not None}
    if len(dtypes) == 1:
        return list(activations)
    widest = next(iter(dtypes))
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return [None if t is None else t.to(widest) for t in activations]


def activation_name(activation: str | None) -> str | None:
    """None or "silu", from what the official convolutions accept."""
    if activation not in (None, *SILU):
        raise NotImplementedError(f"activation: got {activation!r}, expected None, 'silu' or 'swish'")
    return None if activation is None else "silu"
