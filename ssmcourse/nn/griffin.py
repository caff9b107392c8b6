"""Griffin's recurrent layer, the RG-LRU, and the block around it.

    r_t = sigmoid(W_a x_t + b_a)      how much is forgotten          log a_t = -c r_t softplus(Λ)
    i_t = sigmoid(W_x x_t + b_x)      how much of x_t enters         h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

| code                                       | symbol     | shape                                     |
|--------------------------------------------|------------|-------------------------------------------|
| `recurrent_param`                          | Λ          | (d,)                                      |
| `recurrent_gate_weight`, `input_gate_weight` | W_a, W_x | (num_heads, d / num_heads, d / num_heads) |
| `recurrent_gate_bias`, `input_gate_bias`   | b_a, b_x   | (num_heads, d / num_heads)                |
| `state`                                    | h          | (b, d)                                    |

Source: De et al. 2024, "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models",
sections 2.3 and 2.4, appendix A. Parameters have the names of RecurrentGemma in `transformers`. Lesson 12.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ssmcourse.arguments import number
from ssmcourse.convolution import causal_conv1d, causal_conv1d_update
from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, check_step, positive
from ssmcourse.precision import working_dtype
from ssmcourse.relatives import rglru_gates, rglru_scan


class RGLRU(SequenceLayer):
    """The bare recurrent layer: `rglru_scan` with the gates that x makes for itself.

    The cache: "state" (b, d), float32 at least, and "started" (b,), whether a row had a token: the first of a
    sequence is not scaled by sqrt(1 - a^2).
    """

    readout = ""
    no_weight_decay: ClassVar[tuple[str, ...]] = (
        "recurrent_param",
        "recurrent_gate_bias",
        "input_gate_bias",
    )

    def __init__(
        self,
        d_model: int,
        num_heads: int = 1,
        c: float = 8.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Λ such that the slowest decay, a^c = exp(-c softplus(Λ)), is uniform in [0.9, 0.999], as the paper has it.

        (Published code draws exp(-softplus(Λ)) from there, and so forgets c times as fast at first.) The gates'
        weights are normal with variance num_heads / d_model, their biases 0.

        Args:
            num_heads: how many blocks the gates' matrices have on their diagonal; a divisor of d_model.
            c: how many times a gate can be closed, above 0.
        Raises:
            ValueError: a size is not an integer of 1 or more, or does not divide.
        """
        super().__init__()
        positive(d_model=d_model, num_heads=num_heads)
        if d_model % num_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a number that divides d_model {d_model}")
        number("c", c, zero=False)
        self.d_model, self.num_heads, self.c = d_model, num_heads, c
        width = d_model // num_heads

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.recurrent_param = parameter(d_model)
        self.input_gate_weight = parameter(num_heads, width, width)
        self.input_gate_bias = parameter(num_heads, width)
        self.recurrent_gate_weight = parameter(num_heads, width, width)
        self.recurrent_gate_bias = parameter(num_heads, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        std = math.sqrt(self.num_heads / self.d_model)
        for weight in (self.input_gate_weight, self.recurrent_gate_weight):
            nn.init.normal_(weight, std=std)
        nn.init.zeros_(self.input_gate_bias)
        nn.init.zeros_(self.recurrent_gate_bias)
        # In float64: a bfloat16 would round many a 0.999 up to 1.
        decay = torch.empty_like(self.recurrent_param, dtype=torch.float64).uniform_(0.9, 0.999)
        self.recurrent_param.copy_((-decay.log() / self.c).expm1().log())

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        gates = self.gates(x)
        before = self._cache(len(x), x) if cache is None else cache
        state, started = before["state"], before["started"]

        def scan(initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
            options = {"c": self.c, "initial_state": initial_state, "seq_idx": spans.seq_idx}
            found = rglru_scan(x, *gates, self.recurrent_param, return_final_state=keep, **options)
            return (found[0], spans.last(found[1], state)) if keep else (found, state)

        if cache is None or not started.any():
            y, last = scan(None)
        elif started.all():
            y, last = scan(state)
        else:  # an operator's call has an initial state for all of its rows or for none
            (y, last), (y_new, last_new) = scan(state), scan(None)
            y = torch.where(started[:, None, None], y, y_new)
            last = torch.where(started[:, None], last, last_new)
        if not keep:
            return y, None
        now = started | (x.shape[1] > 0 if spans.lengths is None else spans.lengths > 0)
        return y, {"state": last, "started": now}

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        check_step(x, cache, self.d_model)
        r, i = self.gates(x)
        working = working_dtype(x, self.recurrent_param)
        i = i.to(working)
        log_a, weight = rglru_gates(r.to(working), i, self.recurrent_param.to(working), self.c, starts=False)
        weight = torch.where(cache["started"][:, None], weight, i)
        state = log_a.exp() * cache["state"] + weight * x.to(working)
        return state.to(x.dtype), {"state": state, "started": torch.ones_like(cache["started"])}

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """r and i after their sigmoid, in x's shape (..., d) and dtype."""
        blocks = x.unflatten(-1, (self.num_heads, -1))
        r, i = (
            (torch.einsum("...hi,hij->...hj", blocks, weight) + bias).flatten(-2).sigmoid().to(x.dtype)
            for weight, bias in (
                (self.recurrent_gate_weight, self.recurrent_gate_bias),
                (self.input_gate_weight, self.input_gate_bias),
            )
        )
        return r, i

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        """The cache before the first token; a dtype changes nothing, the state is float32 at least."""
        return self._cache(batch, self.recurrent_param)

    def _cache(self, batch: int, like: Tensor) -> Cache:
        state = like.new_zeros(batch, self.d_model, dtype=working_dtype(like, self.recurrent_param))
        return {"state": state, "started": like.new_zeros(batch, dtype=torch.bool)}


class GriffinBlock(SequenceLayer):
    """Griffin's recurrent block: a GELU branch times a branch of short convolution and RG-LRU.

        out = linear_out( gelu(linear_y(x)) * rg_lru(conv_1d(linear_x(x))) )

    The cache: "conv" (b, d_conv - 1, lru_width), and that of the RG-LRU.
    """

    readout = "linear_out"

    def __init__(
        self,
        d_model: int,
        lru_width: int | None = None,
        d_conv: int = 4,
        num_heads: int = 1,
        c: float = 8.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Projections are normal with variance 1 / inputs, the convolution with 0.01 / d_conv; biases are 0.

        Args:
            lru_width: the width of both branches; d_model if not given.
            d_conv: how many steps the convolution sees.
            num_heads, c: as in `RGLRU`.
        Raises:
            ValueError: a size is not an integer of 1 or more, or does not divide.
        """
        super().__init__()
        width = d_model if lru_width is None else lru_width
        positive(d_model=d_model, lru_width=width, d_conv=d_conv, num_heads=num_heads)
        if width % num_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a number that divides lru_width {width}")
        self.d_model, self.lru_width = d_model, width
        self.linear_y = nn.Linear(d_model, width, device=device, dtype=dtype)
        self.linear_x = nn.Linear(d_model, width, device=device, dtype=dtype)
        self.linear_out = nn.Linear(width, d_model, device=device, dtype=dtype)
        self.conv_1d = nn.Conv1d(
            width, width, d_conv, groups=width, padding=d_conv - 1, device=device, dtype=dtype
        )
        self.rg_lru = RGLRU(width, num_heads, c, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for layer in (self.linear_y, self.linear_x, self.linear_out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.conv_1d.weight, std=math.sqrt(0.01 / self.conv_1d.kernel_size[0]))
        nn.init.zeros_(self.conv_1d.bias)
        self.rg_lru.reset_parameters()

    @property
    def mixed(self) -> slice:
        return slice(0, self.lru_width)

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        branch = self.linear_x(x)
        before = self._conv_state(len(x), branch) if cache is None else cache["conv"]
        found = causal_conv1d(
            branch,
            self.conv_1d.weight[:, 0],
            self.conv_1d.bias,
            initial_state=None if cache is None else before,
            return_final_state=keep,
            seq_idx=spans.seq_idx,
        )
        branch, convs = found if keep else (found, None)
        h, after = self.rg_lru.mix(branch, spans, cache, keep)
        y = self._output(x, h)
        if convs is None or after is None:
            return y, None
        return y, {"conv": spans.last(convs, before), **after}

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        check_step(x, cache, self.d_model)
        weight, bias = self.conv_1d.weight[:, 0], self.conv_1d.bias
        branch, conv = causal_conv1d_update(self.linear_x(x), cache["conv"], weight, bias)
        h, after = self.rg_lru.step(branch, cache)
        return self._output(x, h), {"conv": conv, **after}

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        """The cache before the first token. "conv" has that dtype, "state" is float32 at least."""
        conv = self._conv_state(batch, self.linear_x.weight)
        return {"conv": conv if dtype is None else conv.to(dtype), **self.rg_lru.allocate_cache(batch)}

    def _output(self, x: Tensor, h: Tensor) -> Tensor:
        return self.linear_out(gelu(self.linear_y(x), approximate="tanh") * h)

    def _conv_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, self.conv_1d.kernel_size[0] - 1, self.lru_width)
