"""RWKV-4's time mixing: an average of values in which the past fades, behind a gate.

    x̂_k = μ_k x_t + (1 - μ_k) x_{t-1}        and so for v and r: the token shift
    k_t, v_t = W_k x̂_k, W_v x̂_v              out_t = W_o (sigmoid(W_r x̂_r) * wkv_t)

| code                                                  | symbol        | shape     |
|-------------------------------------------------------|---------------|-----------|
| `time_mix_key`, `time_mix_value`, `time_mix_receptance` | μ_k, μ_v, μ_r | (1, 1, d) |
| `time_decay`                                          | w             | (d,)      |
| `time_first`                                          | u             | (d,)      |
| `key`, `value`, `receptance`, `output`                | W_k, W_v, W_r, W_o | (d, d) |

Source: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3 and appendix E. Parameters have
the names of RWKV in `transformers`. Lesson 12.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssmcourse import packing
from ssmcourse.arguments import integer, shown
from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, check_step, last_inputs, positive
from ssmcourse.precision import working_dtype
from ssmcourse.relatives import wkv4


class RWKV4(SequenceLayer):
    """The time mixing of RWKV-4. (Its channel mixing is an MLP with a token shift of its own, and not in here.)

    The cache: "shift" (b, 1, d), the last input, and "state" (b, 3, d), that of `wkv4`, float32 at least.
    """

    readout = "output"
    no_weight_decay: ClassVar[tuple[str, ...]] = (
        "time_decay",
        "time_first",
        "time_mix_key",
        "time_mix_value",
        "time_mix_receptance",
    )

    def __init__(
        self,
        d_model: int,
        layer_idx: int = 0,
        n_layer: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Decays, bonus and mixes as the paper sets them; they depend on where in a model the layer is.

        (`transformers` sets every bonus to 1; the paper's are log 0.3 and half a unit around it.) The projections'
        weights are as `torch.nn.Linear` makes them: the paper's model sets those of key, receptance and output to 0.

        Args:
            layer_idx: which of n_layer layers this is, from 0 on: later ones forget less and look back less.
            n_layer: how many there are.
        Raises:
            ValueError: a size is not an integer of 1 or more, or layer_idx is not one of n_layer.
        """
        super().__init__()
        positive(d_model=d_model, n_layer=n_layer)
        if integer("layer_idx", layer_idx, 0) >= n_layer:
            raise ValueError(f"layer_idx: got {shown(layer_idx)}, expected one below n_layer {n_layer}")
        self.d_model, self.layer_idx, self.n_layer = d_model, layer_idx, n_layer

        def times(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        def projection() -> nn.Linear:
            return nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)

        self.time_decay, self.time_first = times(d_model), times(d_model)
        self.time_mix_key, self.time_mix_value = times(1, 1, d_model), times(1, 1, d_model)
        self.time_mix_receptance = times(1, 1, d_model)
        self.key, self.value, self.receptance = projection(), projection(), projection()
        self.output = projection()
        self._set_times()

    @torch.no_grad()
    def _set_times(self) -> None:
        channel = torch.arange(self.d_model, dtype=torch.float64)
        depth = self.layer_idx / max(self.n_layer - 1, 1)  # 0 in the first layer, 1 in the last
        fraction = channel / max(self.d_model - 1, 1)
        self.time_decay.copy_(8 * fraction ** (0.7 + 1.3 * depth) - 5)
        self.time_first.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        mix = (channel / self.d_model) ** (1 - self.layer_idx / self.n_layer)
        self.time_mix_key.copy_(mix)
        self.time_mix_value.copy_(mix + 0.3 * depth)
        self.time_mix_receptance.copy_(mix.sqrt())

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        empty = self._cache(len(x), x)
        before = empty if cache is None else cache
        shifted = torch.cat([before["shift"].to(x.dtype), x[:, :-1]], 1)[:, : x.shape[1]]
        if spans.seq_idx is not None:
            shifted = shifted.masked_fill(packing.changes(spans.seq_idx)[..., None], 0)
        k, v, r = self.project(x, shifted)
        start = None if cache is None else spans.first(cache["state"], empty["state"])
        wkv, states = self._wkv(k, v, spans, start, keep)
        y = self.output(r * wkv)
        if states is None:
            return y, None
        if spans.lengths is not None:
            last = last_inputs(x, before["shift"], spans.lengths)
        else:
            last = x[:, -1:].clone() if x.shape[1] else before["shift"]
        return y, {"shift": last, "state": spans.last(states, before["state"])}

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        check_step(x, cache, self.d_model)
        now = x[:, None]
        k, v, r = self.project(now, cache["shift"].to(x.dtype))
        wkv, state = self._operator(k, v, cache["state"], True)
        return self.output(r * wkv)[:, 0], {"shift": now.clone(), "state": state}

    def project(self, x: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """k, v and r after its sigmoid, each (b, l, d), from the inputs and those one step before."""
        mixes = self.time_mix_key, self.time_mix_value, self.time_mix_receptance
        k, v, r = (shifted + mix * (x - shifted) for mix in mixes)
        return self.key(k), self.value(v), self.receptance(r).sigmoid()

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        """The cache before the first token. "shift" has that dtype, "state" is float32 at least."""
        cache = self._cache(batch, self.time_decay)
        return cache if dtype is None else cache | {"shift": cache["shift"].to(dtype)}

    def _cache(self, batch: int, like: Tensor) -> Cache:
        working = working_dtype(like, self.time_decay, self.time_first)
        state = like.new_zeros(batch, 3, self.d_model, dtype=working)
        state[:, 2] = -torch.inf  # the largest weight's logarithm: there is none
        return {"shift": like.new_zeros(batch, 1, self.d_model), "state": state}

    def _wkv(
        self, k: Tensor, v: Tensor, spans: Spans, start: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """wkv (b, l, d), and with `keep` the state at the end of each sequence of `spans`."""
        k, v = spans.rows(k), spans.rows(v)
        if not keep or spans.seq_idx is None:
            wkv, states = self._operator(k, v, start, keep)
            return spans.unrows(wkv), states
        # A step of padding would lower the state's logarithm by exp(w), which may be large, and adding that again
        # does not give its digits back. So all rows go up to the end of the shortest, the others on from there.
        lengths = spans.row_lengths(k)
        parts, begin = [v[:, :0]], 0
        states = self._cache(len(k), k)["state"] if start is None else start
        for end in lengths.unique().tolist():
            rows = (lengths >= end).nonzero()[:, 0]
            part, after = self._operator(k[rows, begin:end], v[rows, begin:end], states[rows], True)
            parts.append(v.new_zeros(len(k), end - begin, v.shape[2]).index_put((rows,), part))
            states, begin = states.index_put((rows,), after), end
        return spans.unrows(torch.cat(parts, 1)), states

    def _operator(
        self, k: Tensor, v: Tensor, state: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        found = wkv4(k, v, self.time_decay, self.time_first, initial_state=state, return_final_state=keep)
        return found if keep else (found, None)  # pyright: ignore[reportReturnType]
