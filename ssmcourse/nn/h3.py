"""H3 as a layer: a memory of what followed what, from two linear systems and two products.

    O = Q · SSM_diag( SSM_shift(K) V ) W_O

| here                         | paper          | meaning                                                 | shape              |
|------------------------------|----------------|---------------------------------------------------------|--------------------|
| `q_proj`, `k_proj`, `v_proj` | W_Q, W_K, W_V  | queries, keys and values                                | (d, d)             |
| `shift_kernel`, `D_shift`    | C, D of shift  | what a key is made of: the last m keys, lag 0 first     | (d, m), (d,)       |
| `ssm`, `D`                   | SSM_diag, D    | the memory: one diagonal system a head                  | (d / p,)           |
| `out_proj`                   | W_O            |                                                         | (d, d)             |
| `keys`                       |                | in a cache: the last m - 1 keys, oldest first           | (b, m - 1, d)      |
| `memory`                     |                | in a cache: n / 2 modes of every entry of a head's k v^T | (b, h, p, p, n / 2) |

Channel i of head j is channel j p + i: the head is the slowest, as in `h3_mix`. The authors' shift system has a B as
well, which is e_1 at the start: B and C are one kernel here.

Source: Fu, Dao, Saab, Thomas, Rudra & Ré 2023 (H3), algorithms 1 and 2. Lesson 04.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ssmcourse.arguments import one_of
from ssmcourse.convolution import causal_conv1d
from ssmcourse.h3 import h3_mix, h3_step
from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, check_step, entries, last_inputs, positive
from ssmcourse.nn.systems import DiagonalSystem, at_least_float32, check_sizes
from ssmcourse.precision import without_autocast
from ssmcourse.s4 import INITS


class H3(SequenceLayer):
    """Linear attention with a decay that is learnt and keys that are shifted.

        layer = H3(256, head_dim=8)

    Args:
        d_model: d, channels in and out.
        d_state: n, the modes of the memory, even.
        head_dim: p, a divisor of d. A head keeps a matrix of p by p; with 1 it is a product of channels.
        shift_size: m, how many keys the shift system remembers; d_state if not given.
        init: the A that the memory starts from, of `s4d_init`: `legs`, `lin`, `inv`, `real` or `random`.
        dt_min, dt_max: step sizes are drawn log-uniformly from this range, one for each head.
        device, dtype: of the parameters.
    Raises:
        ValueError: a size or option that does not fit.

    As in the authors' code the memory is discretised by the bilinear rule, the shift kernel starts as that of a
    depthwise `Conv1d`, and both skips start from a normal distribution.

    Cost: O(p b d l log l), see `h3_mix`; a step O(b d (m + p n)).
    Source: Fu et al. 2023, algorithm 1. Lesson 04.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        head_dim: int = 1,
        shift_size: int | None = None,
        *,
        init: str = "lin",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_model, d_state)
        shift_size = d_state if shift_size is None else shift_size
        positive(head_dim=head_dim, shift_size=shift_size)
        if d_model % head_dim:
            raise ValueError(f"head_dim: got {head_dim}, expected a number that divides d_model {d_model}")
        one_of("init", init, INITS)
        self.d_model = d_model
        self.head_dim = head_dim
        heads, bound = d_model // head_dim, 1 / math.sqrt(shift_size)
        projections = [nn.Linear(d_model, d_model) for _ in range(4)]
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = projections
        self.shift_kernel = nn.Parameter(torch.empty(d_model, shift_size).uniform_(-bound, bound))
        self.D_shift = nn.Parameter(torch.randn(d_model))
        self.ssm = DiagonalSystem(heads, d_state, init, "bilinear", dt_min, dt_max)
        self.D = nn.Parameter(torch.randn(heads))
        self.to(device=device, dtype=dtype or torch.get_default_dtype())

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        q, k, v = (spans.rows(value) for value in self.project(x))
        if cache is None and not keep:
            return self.out_proj(spans.unrows(self.recall(q, k, v))), None
        zeros = self.allocate_cache(len(x), k.dtype)
        before = zeros if cache is None else cache
        entries(before, **self.cache_shapes(len(x)))
        start = {name: spans.first(before[name], zeros[name]) for name in before}
        y = self.recall(q, k, v) if cache is None else self.recall_after(q, k, v, start)
        after = None
        if keep:
            lengths = spans.row_lengths(x)
            ends = {
                "keys": last_inputs(k, start["keys"], lengths),
                "memory": self.remember(k, v, start, lengths),
            }
            after = {name: spans.last(ends[name], before[name]) for name in ends}
        return self.out_proj(spans.unrows(y)), after

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each as x."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def recall(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(b, l, d), before the last projection, of sequences that begin here."""
        return h3_mix(
            q,
            k,
            v,
            self.shift_kernel,
            self.ssm.kernel(q.shape[1]),
            head_dim=self.head_dim,
            D_shift=self.D_shift,
            D_ssm=self.D,
        )

    @without_autocast
    def recall_after(self, q: Tensor, k: Tensor, v: Tensor, before: Cache) -> Tensor:
        """The same of sequences that go on.

        The keys before come in front, without a value: nothing is filed under them again. What the memory holds is
        asked for as well.
        """
        keys = before["keys"].to(k.dtype)
        earlier = keys.shape[1]
        q_all, v_all = (pad(value, (0, 0, earlier, 0)) for value in (q, v))
        y = at_least_float32(self.recall(q_all, torch.cat([keys, k], 1), v_all)[:, earlier:])
        for q_i, memory in zip(
            self._by_head(q), before["memory"].unbind(2), strict=True
        ):  # (b, l, h), (b, h, p, n)
            held = self.ssm.free_response(memory.transpose(1, 2).flatten(0, 1), q.shape[1])  # (b p, l, h)
            held = held.unflatten(0, (-1, self.head_dim)).permute(0, 2, 3, 1)
            y = y + (q_i[..., None] * held).flatten(2).to(y.dtype)
        return y.to(q.dtype)

    @without_autocast
    def remember(self, k: Tensor, v: Tensor, before: Cache, lengths: Tensor) -> Tensor:
        """(b, h, p, p, n / 2): the memory after the last of each row's tokens."""
        wide = at_least_float32(k)
        keys = causal_conv1d(wide, self.shift_kernel.flip(1), initial_state=before["keys"])
        keys = keys + self.D_shift * wide
        values = torch.stack(self._by_head(at_least_float32(v)), 1).flatten(0, 1)  # (b p, l, h)
        p, after = self.head_dim, []
        for k_i, memory in zip(self._by_head(keys), before["memory"].unbind(2), strict=True):
            filed = k_i.repeat_interleave(p, 0) * values
            state = memory.transpose(1, 2).flatten(0, 1)  # (b p, h, n / 2)
            end = self.ssm.final_state(filed, state, lengths.repeat_interleave(p))
            after.append(end.unflatten(0, (-1, p)).transpose(1, 2))
        return torch.stack(after, 2)

    def _by_head(self, value: Tensor) -> tuple[Tensor, ...]:
        """p times (b, l, h) from (b, l, d): the i-th channels of all heads."""
        return value.unflatten(2, (-1, self.head_dim)).unbind(3)

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        check_step(x, cache, self.d_model)
        keys, memory = entries(cache, **self.cache_shapes(len(x)))
        A_bar, B_bar, C = (value.to(memory.dtype) for value in self.ssm.discretized())
        y, keys, memory = h3_step(
            *self.project(x),
            keys,
            memory,
            self.shift_kernel,
            A_bar,
            B_bar,
            C,
            head_dim=self.head_dim,
            D_shift=self.D_shift,
            D_ssm=self.D,
        )
        return self.out_proj(y), {"keys": keys, "memory": memory}

    def cache_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        p, (heads, half, _) = self.head_dim, self.ssm.C.shape
        keys = (batch, self.shift_kernel.shape[1] - 1, self.d_model)
        return {"keys": keys, "memory": (batch, heads, p, p, half)}

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        shapes = self.cache_shapes(batch)
        keys = self.shift_kernel.new_zeros(shapes["keys"], dtype=dtype)
        return {"keys": keys, "memory": self.ssm.start(1).new_zeros(shapes["memory"])}
