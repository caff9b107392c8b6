"""RWKV-4's WKV as an operator of torch: sums of weighted values and of weights, kept at a scale that fits.

With n and s the two sums before a step, divided by exp(m), one step with key k and value v is

    f = exp(m - q),  p = exp(u + k - q),            q = max(m, u + k)
    y = (f n + p v) / (f s + p)
    g = exp(m - m' - decay),  e = exp(k - m'),      m' = max(m - decay, k)
    n' = g n + e v,  s' = g s + e

Whatever m is, y is the same: it only has to keep the exponentials in range. So m may be rounded, as long as g
is made from the m and m' that are used, and no gradient goes through it. With dn, ds the gradients of the
sums and Z = f s + p, the way back is

    dv = (p / Z) dy + e dn'                 dn = g dn' + (f / Z) dy
    d(u + k) = (p / Z) (v - y) dy           ds = g ds' - (f / Z) y dy
    dk = d(u + k) + e (v dn' + ds')         d decay = -g (n dn' + s ds')

Only the last m is a result, and its gradient goes to the key whose weight is the largest then.

Arrays are k, v, y (b, l, d), decay, u (d,), a state (b, 3, d) of n, s and m, all of one dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssmcourse.kernels import registration

CHUNK = 64  # steps between the states that are kept for the gradient


def register(
    name: str, forward: Callable[..., tuple[Tensor, ...]], gradient: Callable[..., list[Tensor]]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Make `forward` the torch operator `ssmcourse::wkv4_{name}`.

    Args:
        forward: (k, v, decay, u, state) -> y, the last state, and for the gradient the states before
            every chunk, (b, chunks, 3, d).
        gradient: (upstream, outputs, k, v, decay, u, state) -> dk, dv, d decay, du, d state.
    """
    operator = registration.register(
        f"wkv4_{name}",
        "Tensor k, Tensor v, Tensor decay, Tensor u, Tensor state",
        forward,
        gradient,
        _shapes,
        results=2,
        kept=1,
    )
    return lambda k, v, decay, u, state: operator(k, v, decay, u, state)[:2]


def _shapes(k: Tensor, v: Tensor, decay: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    b, l, d = k.shape
    return k.new_empty(b, l, d), k.new_empty(b, 3, d), k.new_empty(b, chunks(l), 3, d)


def chunks(l: int) -> int:
    return (l + CHUNK - 1) // CHUNK


def to_the_largest(k: Tensor, decay: Tensor, state: Tensor, dm: Tensor) -> tuple[Tensor, ...]:
    """Where the gradient dm (b, d) of the last m goes: shares of dk, d decay (b, d), and d of the first m."""
    l = k.shape[1]
    steps = torch.arange(l + 1, device=k.device)[:, None]
    heights = torch.cat([state[:, 2:], k], 1).double() + steps * decay.double()  # the one before step 0 first
    largest = heights.argmax(1)  # (b, d)
    shares = torch.zeros_like(heights, dtype=dm.dtype).scatter_(1, largest[:, None], dm[:, None])
    return shares[:, 1:], -dm * (l - largest), shares[:, 0]
