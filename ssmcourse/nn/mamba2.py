"""The Mamba-2 layer: all projections at once, a short convolution over x, B and C, SSD with heads, a gated norm.

    z, x, B, C, dt = in_proj(u)                  (and with d_ssm < d_inner, before them, the two parts of a gated MLP)
    x, B, C        = silu(conv1d(x, B, C))
    y              = ssd(x, dt, A, B, C, D)      in h heads of p channels
    output         = out_proj(norm(y, z))        the norm of y silu(z)

| code            | symbol  | shape           | meaning                                                      |
|-----------------|---------|-----------------|--------------------------------------------------------------|
| `u`             |         | (b, l, d_model) | the layer's input; elsewhere in the library a layer's x      |
| `x`, `z`, `y`   | X, Z, Y | (b, l, h, p)    | h p = `d_ssm` channels, p = `headdim`                        |
| `dt`            | Δ       | (b, l, h)       | a step size for each head                                    |
| `A_log`         |         | (h,)            | A = -exp(A_log)                                              |
| `B`, `C`        | B, C    | (b, l, g, n)    | g = `ngroups`, n = `d_state`                                 |
| `conv`          |         | (b, w - 1, d)   | in a cache: the last x, B and C before the convolution       |
| `ssm`           | H       | (b, h, p, n)    | in a cache: the state                                        |

Dao & Gu 2024, section 7.1 and figure 6. The names of the parameters are those of the published weights. Lessons 09
and 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ssmcourse.arguments import Arguments, integer, number, shown
from ssmcourse.convolution import conv1d_step
from ssmcourse.duality import ssd, ssd_step
from ssmcourse.kernels.plain import few_rows
from ssmcourse.nn.mamba import depthwise, expanded, negative_exp, short_convolution, step_size_bias, zeros
from ssmcourse.nn.norms import GatedRMSNorm
from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, entries, positive


class Projected(NamedTuple):
    """What in_proj makes of a token: the parts of the gated MLP (or None), the gate, what is convolved, dt."""

    mlp: tuple[Tensor, Tensor] | None
    z: Tensor
    convolved: Tensor
    dt: Tensor


class Mamba2(SequenceLayer):
    """Mamba-2 (Dao & Gu 2024), with the argument names, parameters and initialisation of the published one.

    Args:
        d_model: channels of the input and the output.
        d_state: n, states of each channel.
        d_conv: w, the width of the convolution.
        conv_init: the convolution's weights at first lie between -conv_init and conv_init; as torch's if not given.
        expand: channels inside for each one outside.
        headdim: p, channels of a head.
        d_ssm: channels that go through the recurrence, all inner ones if not given. The rest is a gated MLP.
        ngroups: g, into how many groups of heads B and C come.
        A_init_range: -A at first, uniform.
        D_has_hdim: D has a number for each channel, not for each head.
        rmsnorm: with the gated norm, of groups of d_ssm / g channels; without it, y is gated only.
        norm_before_gate: the norm comes before the gate.
        dt_min, dt_max: the step sizes at first, for an input of zero: log-uniform between these.
        dt_init_floor: no step size starts below it.
        dt_limit: step sizes are clamped to these, whenever the layer is used.
        bias: whether in_proj and out_proj have one.
        conv_bias: whether the convolution has one.
        chunk_size, use_mem_eff_path: without effect; accepted since published configurations have them.
        layer_idx: kept as an attribute, without effect.
    Raises:
        ValueError: an argument is not of the kind described, or sizes do not divide each other.

    Cost of a token: O(d_model d + d n) work. Its cache has about d (w - 1 + n) numbers, whatever came before.
    """

    no_weight_decay = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: Sequence[float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Sequence[float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(d_model=d_model, d_state=d_state, d_conv=d_conv, headdim=headdim, ngroups=ngroups)
        self.d_model, self.d_state, self.d_conv, self.layer_idx = d_model, d_state, d_conv, layer_idx
        self.d_inner = expanded(expand, d_model)
        self.d_ssm = _channels(d_ssm, self.d_inner, headdim)
        self.headdim, self.nheads, self.ngroups = headdim, self.d_ssm // headdim, ngroups
        if self.nheads % ngroups:
            raise ValueError(f"ngroups: got {ngroups}, expected a number that divides {self.nheads} heads")
        self.dt_limit = _interval("dt_limit", dt_limit, at_least=-math.inf)
        where = {"device": device, "dtype": dtype}
        convolved = self.d_ssm + 2 * ngroups * d_state
        parts = 2 * self.d_inner - self.d_ssm + convolved + self.nheads
        self.in_proj = nn.Linear(d_model, parts, bias=bias, **where)
        self.conv1d = depthwise(convolved, d_conv, conv_bias, **where)
        if conv_init is not None:
            number("conv_init", conv_init)
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        shift = step_size_bias(self.nheads, dt_min, dt_max, dt_init_floor, device)
        self.dt_bias = nn.Parameter(shift.to(dtype or torch.get_default_dtype()))
        A = torch.empty(self.nheads, device=device, dtype=torch.float32)
        A.uniform_(*_interval("A_init_range", A_init_range, at_least=0.0))
        self.A_log = nn.Parameter(A.log().to(dtype or torch.get_default_dtype()))
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device))
        self.norm = None
        if rmsnorm:
            self.norm = GatedRMSNorm(
                self.d_ssm, group_size=self.d_ssm // ngroups, norm_before_gate=norm_before_gate, **where
            )
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **where)

    @property
    def mixed(self) -> slice:
        return slice(self.d_inner - self.d_ssm, self.d_inner)

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        conv, ssm = (None, None) if cache is None else entries(cache, **self.cache_shapes(len(x)))
        mlp, z, xBC, dt = self.split(self.in_proj(x))
        xBC, conv = short_convolution(self.conv1d, xBC, conv, spans, keep)
        x, B, C = self.heads(xBC)
        found = ssd(
            x, dt, self.A(), B, C, self.skip(), self.gate(z), self.dt_bias, dt_softplus=True,
            dt_limit=self.dt_limit, initial_state=ssm, return_final_state=keep, seq_idx=spans.seq_idx,
        )  # fmt: skip
        if conv is None:  # nothing to keep
            return self.out_proj(self.finish(found, z, mlp)), None
        y, after = found
        before = after.new_zeros(len(x), *after.shape[1:]) if ssm is None else ssm
        return self.out_proj(self.finish(y, z, mlp)), {"conv": conv, "ssm": spans.last(after, before)}

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        Arguments().activation("x", x, f"b {self.d_model}")
        conv, ssm = entries(cache, **self.cache_shapes(len(x)))
        y, conv, ssm = self.advance(self.in_proj(x), conv, ssm)
        return self.out_proj(y), {"conv": conv, "ssm": ssm}

    def advance(self, projected: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is between the projections, for one token: y (b, d_inner), and what the cache has next."""
        weight, bias, norm = self.conv1d.weight, self.conv1d.bias, self.norm
        scale = None if norm is None else norm.weight
        given = (projected, conv, ssm, weight, bias, self.dt_bias, self.A_log, self.D, scale)
        if few_rows(*given):
            from ssmcourse.kernels.layer_step import cpu

            how = (1, 0.0, False) if norm is None else (norm.group_size, norm.eps, norm.norm_before_gate)
            return cpu.mamba2(*given, self.d_inner, self.ngroups, self.dt_limit, *how)
        mlp, z, xBC, dt = self.split(projected)
        xBC, conv = conv1d_step(xBC, conv, weight[:, 0], bias, silu=True)
        x, B, C = self.heads(xBC)
        y, ssm = ssd_step(
            ssm, x, dt, self.A(), B, C, self.skip(), self.gate(z), self.dt_bias,
            dt_softplus=True, dt_limit=self.dt_limit,
        )  # fmt: skip
        return self.finish(y, z, mlp), conv, ssm

    # --- The parts, for (..., d_model) of a sequence or of a token --------------------------------

    def split(self, projected: Tensor) -> Projected:
        """What in_proj gives, in its parts."""
        rest, convolved = self.d_inner - self.d_ssm, self.conv1d.in_channels
        if not rest:
            return Projected(None, *projected.split([self.d_ssm, convolved, self.nheads], -1))
        gate, value, *others = projected.split([rest, rest, self.d_ssm, convolved, self.nheads], -1)
        return Projected((gate, value), *others)

    def heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., h, p), B and C (..., g, n)."""
        groups = self.ngroups * self.d_state
        x, B, C = xBC.split([self.d_ssm, groups, groups], -1)
        B, C = (t.unflatten(-1, (self.ngroups, self.d_state)) for t in (B, C))
        return x.unflatten(-1, (self.nheads, self.headdim)), B, C

    def gate(self, z: Tensor) -> Tensor | None:
        """z as ssd takes it, where there is no norm that takes it."""
        return z.unflatten(-1, (self.nheads, self.headdim)) if self.norm is None else None

    def finish(self, y: Tensor, z: Tensor, mlp: tuple[Tensor, Tensor] | None) -> Tensor:
        """Norm, and the MLP's channels in front: what out_proj gets."""
        y = y.flatten(-2)
        if self.norm is not None:
            y = self.norm(y, z)
        if mlp is not None:
            y = torch.cat([silu(mlp[0]) * mlp[1], y], -1)
        return y

    def A(self) -> Tensor:
        """(h,), in float32 at least."""
        return negative_exp(self.A_log)

    def skip(self) -> Tensor:
        """D, (h,) or (h, p)."""
        return self.D if len(self.D) == self.nheads else self.D.unflatten(0, (self.nheads, self.headdim))

    def cache_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {
            "conv": (batch, self.d_conv - 1, self.conv1d.in_channels),
            "ssm": (batch, self.nheads, self.headdim, self.d_state),
        }

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        return zeros(self.cache_shapes(integer("batch", batch, 0)), self.in_proj.weight, dtype)


def _channels(d_ssm: int | None, d_inner: int, headdim: int) -> int:
    """How many channels go through the recurrence."""
    if d_ssm is None:
        d_ssm = d_inner
        if d_ssm % headdim:
            raise ValueError(
                f"headdim: got {headdim}, expected a number that divides the {d_inner} inner channels"
            )
    expected = f"a multiple of headdim {headdim}, {d_inner} (the inner channels) at most"
    if integer("d_ssm", d_ssm, 1, expected) % headdim or d_ssm > d_inner:
        raise ValueError(f"d_ssm: got {d_ssm}, expected {expected}")
    return d_ssm


def _interval(name: str, value: Sequence[float], at_least: float) -> tuple[float, float]:
    """(low, high) with at_least < low <= high."""
    if (
        not isinstance(value, Sequence)
        or len(value) != 2
        or not all(isinstance(v, Real) for v in value)
        or not at_least < value[0] <= value[1]
    ):
        more = "" if at_least == -math.inf else f"{at_least:g} < "
        raise ValueError(f"{name}: got {shown(value)}, expected (low, high) with {more}low <= high")
    return float(value[0]), float(value[1])
