"""Linear attention as a layer: softmax is replaced by a feature map, so what came before is a matrix a head.

    y_t = S_t φ(q_t) / (z_t . φ(q_t)),    S_t = S_{t-1} + v_t φ(k_t)^T,    z_t = z_{t-1} + φ(k_t)

| here                        | paper      | meaning                                              | shape              |
|-----------------------------|------------|------------------------------------------------------|--------------------|
| `q_proj`, `k_proj`, `v_proj`| W_Q, ...   | queries, keys and values, cut into heads             | (d, d)             |
| `out_proj`                  |            | mixes the heads                                      | (d, d)             |
| `feature_map`               | φ          | what keeps the weights positive                      |                    |
| `state`                     | S, z       | in a cache; z is the last row, if normalised         | (b, h, p (+ 1), p) |

Source: Katharopoulos et al. 2020, "Transformers are RNNs", sections 3.2 and 3.3. Lesson 12.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmcourse.arguments import one_of
from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, check_step, entries, positive
from ssmcourse.precision import working_dtype
from ssmcourse.relatives import linear_attention

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: functional.elu(x) + 1,  # the paper's, eq. 7
    "relu": functional.relu,
    "identity": lambda x: x,
}


class LinearAttention(SequenceLayer):
    """Causal attention without softmax, with a state of fixed size.

    Args:
        d_model: d, channels in and out.
        num_heads: h, a divisor of d. A head keeps a matrix of p by p, p = d / h.
        feature_map: `elu` (elu(x) + 1), `relu`, or `identity`, which is for `normalize=False`: weights of both signs
            may sum to 0.
        normalize: divide by the sum of the weights, so that y is an average of values.
        bias: of the four projections.
        device, dtype: of the parameters.
    Raises:
        ValueError: a size or option that does not fit.

    Cost: O(b l d p) work; a step O(b d p), whatever came before.
    Source: Katharopoulos et al. 2020, eq. 7 to 12. Lesson 12.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        feature_map: str = "elu",
        normalize: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(d_model=d_model, num_heads=num_heads)
        if d_model % num_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a number that divides d_model {d_model}")
        one_of("feature_map", feature_map, tuple(FEATURE_MAPS))
        self.d_model = d_model
        self.num_heads = num_heads
        self.feature_map = feature_map
        self.normalize = normalize
        projections = [nn.Linear(d_model, d_model, bias, device, dtype) for _ in range(4)]
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = projections

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        q, k, v = self.project(x)
        (before,) = entries(cache or self.allocate_cache(len(x)), state=self.state_shape(len(x)))
        result = linear_attention(
            q,
            k,
            v,
            normalize=self.normalize,
            initial_state=None if cache is None else before,
            return_final_state=keep,
            seq_idx=spans.seq_idx,
        )
        y, states = result if keep else (result, None)
        after = None if states is None else {"state": spans.last(states, before)}
        return self.out_proj(y.flatten(2)), after

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys after the feature map, and values: (b, l, h, p)."""
        feature_map = FEATURE_MAPS[self.feature_map]
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return feature_map(q), feature_map(k), v

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        check_step(x, cache, self.d_model)
        y, after = self.mix(x[:, None], Spans(), cache, True)
        return y[:, 0], after or {}

    def state_shape(self, batch: int) -> tuple[int, ...]:
        p = self.d_model // self.num_heads
        return batch, self.num_heads, p + bool(self.normalize), p

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        weight = self.q_proj.weight
        state = torch.zeros(self.state_shape(batch), dtype=working_dtype(weight), device=weight.device)
        return {"state": state}
