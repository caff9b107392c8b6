"""The Mamba layer: a projection, a short convolution, the selective scan, a gate, a projection.

    x, z      = in_proj(u)                       two branches of d channels each
    x         = silu(conv1d(x))                  what follows sees w neighbours
    dt, B, C  = x_proj(x),  dt = dt_proj(dt)     functions of the input: this is the selection
    y         = selective_scan(x, dt, A, B, C, D) silu(z)
    output    = out_proj(y)

| code          | symbol | shape          | meaning                                                       |
|---------------|--------|----------------|---------------------------------------------------------------|
| `u`           |        | (b, l, d_model) | the layer's input; elsewhere in the library a layer's x       |
| `x`, `z`, `y` | x, z, y | (b, l, d)     | d = `d_inner` = expand * d_model                              |
| `dt`          | Δ      | (b, l, d)      | made from r = `dt_rank` numbers a step                        |
| `A_log`       |        | (d, n)         | A = -exp(A_log): negative, so that the state fades            |
| `B`, `C`      | B, C   | (b, l, n)      | n = `d_state`                                                 |
| `conv`        |        | (b, w - 1, d)  | in a cache: the last inputs of the convolution, oldest first  |
| `ssm`         | h      | (b, d, n)      | in a cache: the state                                         |

Gu & Dao 2023, section 3.4 and figure 3. The names of the parameters are those of the published weights. Lessons 05
and 11.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssmcourse.arguments import Arguments, integer, number, one_of, shown
from ssmcourse.convolution import causal_conv1d, conv1d_step
from ssmcourse.kernels.plain import few_rows
from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, entries, positive
from ssmcourse.precision import working_dtype
from ssmcourse.selective import selective_scan, selective_step


class Mamba(SequenceLayer):
    """Mamba (Gu & Dao 2023), with the argument names, parameters and initialisation of the published one.

    Args:
        d_model: channels of the input and the output.
        d_state: n, states of each channel.
        d_conv: w, the width of the convolution.
        expand: channels inside for each one outside.
        dt_rank: r, numbers that the step sizes of a token are made from; "auto" is d_model / 16, rounded up.
        dt_min, dt_max: the step sizes at first, for an input of zero: log-uniform between these.
        dt_init: `dt_proj.weight` at first: "random" between -s and s, or "constant" s = dt_scale / sqrt(dt_rank).
        dt_scale: see dt_init.
        dt_init_floor: no step size starts below it.
        conv_bias: whether the convolution has a bias.
        bias: whether in_proj and out_proj have one.
        use_fast_path: without effect; accepted since published configurations have it.
        layer_idx: kept as an attribute, without effect.
    Raises:
        ValueError: an argument is not of the kind described.

    Cost of a token: O(d_model d + d n) work. Its cache has d (w - 1 + n) numbers, whatever came before.
    """

    no_weight_decay = ("A_log", "D")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(d_model=d_model, d_state=d_state, d_conv=d_conv)
        if dt_rank != "auto":
            integer("dt_rank", dt_rank, 1, "'auto' or an integer of 1 or more")
        one_of("dt_init", dt_init, ("random", "constant"))
        number("dt_scale", dt_scale)
        self.d_model, self.d_state, self.d_conv, self.layer_idx = d_model, d_state, d_conv, layer_idx
        self.d_inner = d = expanded(expand, d_model)
        self.dt_rank = r = -(-d_model // 16) if isinstance(dt_rank, str) else int(dt_rank)
        where = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 2 * d, bias=bias, **where)
        self.conv1d = depthwise(d, d_conv, conv_bias, **where)
        self.x_proj = nn.Linear(d, r + 2 * d_state, bias=False, **where)
        self.dt_proj = nn.Linear(r, d, **where)
        spread = dt_scale / math.sqrt(r)
        nn.init.uniform_(self.dt_proj.weight, spread if dt_init == "constant" else -spread, spread)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step_size_bias(d, dt_min, dt_max, dt_init_floor, device))
        n = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(n.log().repeat(d, 1))  # A = -1, -2, ..., -n: S4D-Real
        self.D = nn.Parameter(torch.ones(d, device=device))
        self.out_proj = nn.Linear(d, d_model, bias=bias, **where)

    @property
    def mixed(self) -> slice:
        return slice(0, self.d_inner)

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        conv, ssm = (None, None) if cache is None else entries(cache, **self.cache_shapes(len(x)))
        x, z = self.in_proj(x).chunk(2, -1)
        x, conv = short_convolution(self.conv1d, x, conv, spans, keep)
        dt, B, C = self.select(x)
        scanned = selective_scan(
            x, dt, self.A(), B, C, self.D, z, self.dt_proj.bias, dt_softplus=True,
            initial_state=ssm, return_final_state=keep, seq_idx=spans.seq_idx,
        )  # fmt: skip
        if conv is None:  # nothing to keep
            return self.out_proj(scanned), None
        y, after = scanned
        before = after.new_zeros(len(x), self.d_inner, self.d_state) if ssm is None else ssm
        return self.out_proj(y), {"conv": conv, "ssm": spans.last(after, before)}

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        Arguments().activation("x", x, f"b {self.d_model}")
        conv, ssm = entries(cache, **self.cache_shapes(len(x)))
        y, conv, ssm = self.advance(self.in_proj(x), conv, ssm)
        return self.out_proj(y), {"conv": conv, "ssm": ssm}

    def advance(self, xz: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is between the projections, for one token: y (b, d), and what the cache has next."""
        weight, bias, D, dt_bias = self.conv1d.weight, self.conv1d.bias, self.D, self.dt_proj.bias
        if type(self.x_proj) is nn.Linear:  # what stands in for it may do more than its weight says
            given = (
                xz,
                conv,
                ssm,
                weight,
                bias,
                self.x_proj.weight,
                self.dt_proj.weight,
                dt_bias,
                self.A_log,
                D,
            )
            if few_rows(*given):
                from ssmcourse.kernels.layer_step import cpu

                return cpu.mamba(*given)
        x, z = xz.chunk(2, -1)
        x, conv = conv1d_step(x, conv, weight[:, 0], bias, silu=True)
        dt, B, C = self.select(x)
        y, ssm = selective_step(ssm, x, dt, self.A(), B, C, D, z, dt_bias, dt_softplus=True)
        return y, conv, ssm

    def select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt (..., d) before its bias and softplus, B and C (..., n), from what the convolution gives."""
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        return nn.functional.linear(dt, self.dt_proj.weight), B, C

    def A(self) -> Tensor:
        """(d, n), in float32 at least."""
        return negative_exp(self.A_log)

    def cache_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {"conv": (batch, self.d_conv - 1, self.d_inner), "ssm": (batch, self.d_inner, self.d_state)}

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        return zeros(self.cache_shapes(integer("batch", batch, 0)), self.in_proj.weight, dtype)


# --- What Mamba and Mamba-2 share -----------------------------------------------------------------


def short_convolution(
    conv1d: nn.Conv1d, x: Tensor, state: Tensor | None, spans: Spans, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """silu(conv1d(x)), causal, and with `keep` the inputs (b, w - 1, d) that the next step sees."""
    found = causal_conv1d(
        x, conv1d.weight[:, 0], conv1d.bias, activation="silu",
        initial_state=state, return_final_state=keep, seq_idx=spans.seq_idx,
    )  # fmt: skip
    if isinstance(found, Tensor):
        return found, None
    y, after = found
    before = x.new_zeros(len(x), after.shape[1], x.shape[2]) if state is None else state
    return y, spans.last(after, before)


def depthwise(d: int, width: int, bias: bool, **where: torch.device | torch.dtype | str | None) -> nn.Conv1d:
    """The convolution's parameters, weight (d, 1, w) and bias (d,), as torch keeps and draws them."""
    return nn.Conv1d(d, d, width, groups=d, padding=width - 1, bias=bias, **where)  # pyright: ignore


def zeros(shapes: dict[str, tuple[int, ...]], like: Tensor, dtype: torch.dtype | None) -> Cache:
    """A cache before the first token; the state in float32 at least."""
    dtype = dtype or like.dtype
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: like.new_zeros(shape, dtype=wide if name == "ssm" else dtype) for name, shape in shapes.items()
    }


def negative_exp(A_log: Tensor) -> Tensor:
    """-exp(A_log), in float32 at least: in half precision it may be infinite."""
    return -A_log.to(working_dtype(A_log)).exp()


def step_size_bias(
    count: int, dt_min: float, dt_max: float, floor: float, device: torch.device | str | None
) -> Tensor:
    """(count,), float32: biases b for which softplus(b) is log-uniform between dt_min and dt_max, floor at least.

    Gu & Dao 2023, section 3.6.
    """
    for name, value in (("dt_min", dt_min), ("dt_max", dt_max), ("dt_init_floor", floor)):
        number(name, value)
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min, dt_max: got {dt_min} and {dt_max}, expected 0 < dt_min <= dt_max")
    low, high = math.log(dt_min), math.log(dt_max)
    dt = torch.exp(torch.rand(count, device=device) * (high - low) + low).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus, exact for small dt


def expanded(expand: float, d_model: int) -> int:
    """The channels inside a layer."""
    number("expand", expand)
    d = int(expand * d_model)
    if d < 1:
        raise ValueError(
            f"expand: got {shown(expand)}, expected a number that makes 1 channel or more of {d_model}"
        )
    return d
