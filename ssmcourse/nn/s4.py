"""S4 and S4D: a linear system for every channel, computed as a long convolution, then a mixing of the channels.

    y = GLU(W GELU(K * x + D x))

| here       | paper | meaning                                                             | shape             |
|------------|-------|---------------------------------------------------------------------|-------------------|
| `ssm`      |       | the h = d_model systems (ssmcourse/nn/systems.py)                   |                   |
| `D`        | D     | skip                                                                | (d,)              |
| `out_proj` | W     | mixes the channels, twice as many, of which half gate the others    | (2 d, d)          |
| `state`    | x     | in a cache: one mode of each conjugate pair                         | (b, d, n / 2)     |

Sources: Gu, Goel & Ré 2021 (S4), sections 3 and 4; Gu, Gupta, Goel & Ré 2022 (S4D). Lesson 03.
"""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmcourse.arguments import one_of, shown
from ssmcourse.convolution import fft_conv
from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, check_step, entries
from ssmcourse.nn.systems import DiagonalSystem, LinearSystem, NPLRSystem, at_least_float32, check_sizes
from ssmcourse.s4 import INITS

MEASURES = ("legs", "lagt", "legt", "fourier")


class LinearSystemLayer(SequenceLayer):
    """What S4 and S4D are but for the kind of their systems."""

    def __init__(
        self,
        ssm: LinearSystem,
        d_model: int,
        dropout: float,
        bare: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if isinstance(dropout, bool) or not isinstance(dropout, Real) or not 0 <= float(dropout) < 1:
            raise ValueError(f"dropout: got {shown(dropout)}, expected a number from 0 up to 1")
        self.d_model = d_model
        self.ssm = ssm
        self.D = nn.Parameter(torch.randn(d_model))
        self.dropout = nn.Dropout(dropout)
        self.readout = "" if bare else "out_proj"
        self.out_proj = None if bare else nn.Linear(d_model, 2 * d_model)
        self.to(device=device, dtype=dtype or torch.get_default_dtype())

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        rows = spans.rows(x)
        y = fft_conv(rows, self.ssm.kernel(rows.shape[1]), self.D)
        if cache is None and not keep:
            return self.mix_channels(spans.unrows(y)), None
        zeros = self.ssm.start(len(x))
        before = zeros if cache is None else entries(cache, state=tuple(zeros.shape))[0]
        start = spans.first(before, zeros)
        if cache is not None:
            y = y + self.ssm.free_response(start, rows.shape[1]).to(y.dtype)
        after = None
        if keep:
            lengths = None if spans.seq_idx is None else spans.row_lengths(x)
            after = {"state": spans.last(self.ssm.final_state(rows, start, lengths), before)}
        return self.mix_channels(spans.unrows(y)), after

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        check_step(x, cache, self.d_model)
        (before,) = entries(cache, state=(len(x), *self.ssm.C.shape[:2]))
        y, state = self.ssm.step(x, before)
        y = (y + at_least_float32(self.D) * x).to(x.dtype)
        return self.mix_channels(y), {"state": state}

    def mix_channels(self, y: Tensor) -> Tensor:
        """What comes after the systems, step by step: activation, projection, gate."""
        if self.out_proj is None:
            return y
        return functional.glu(self.out_proj(self.dropout(functional.gelu(y))), -1)

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        return {"state": self.ssm.start(batch)}


class S4(LinearSystemLayer):
    """S4: a system made from a HiPPO matrix, normal plus low-rank, for every channel.

        layer = S4(256)
        layer.ssm.kernel(1000)     # (256, 1000), what is convolved with
        layer.ssm.rate = 0.5       # for signals sampled twice as often as those it was trained on

    Args:
        d_model: d, channels in and out.
        d_state: n, the size of a channel's state, even.
        measure: the HiPPO matrix that it starts from: `legs`, `lagt`, `legt` or `fourier`.
        dt_min, dt_max: step sizes are drawn log-uniformly from this range, one for each channel. A state of `legs`
            remembers about 1 / dt steps.
        dropout: of the activations, before the channels are mixed.
        bare: the systems and their skip D alone, without activation and mixing.
        device, dtype: of the parameters.
    Raises:
        ValueError: a size or option that does not fit.

    C itself is stored, not the C-tilde of the authors' code. Parameters start from torch's global generator.

    Cost: O(b l d log l) for the convolution, O(d n^3 log l) for the kernel; a step O(b d n).
    Source: Gu, Goel & Ré 2021, algorithm 1 and section 4. Lesson 03.
    """

    ssm: NPLRSystem

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        measure: str = "legs",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dropout: float = 0.0,
        bare: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(d_model, d_state)
        one_of("measure", measure, MEASURES)
        ssm = NPLRSystem(d_model, d_state, measure, dt_min, dt_max)
        super().__init__(ssm, d_model, dropout, bare, device, dtype)


class S4D(LinearSystemLayer):
    """S4D: a diagonal system for every channel.

        layer = S4D(256, init="inv")

    Args:
        init: the A that it starts from, of `s4d_init`: `legs`, `lin`, `inv`, `real` or `random`.
        method: how the system is discretised, `zoh` or `bilinear`.
        d_model, d_state, dt_min, dt_max, dropout, bare, device, dtype: as in `S4`.
    Raises:
        ValueError: a size or option that does not fit.

    Cost: O(b l d log l) for the convolution, O(d n l) for the kernel; a step O(b d n).
    Source: Gu, Gupta, Goel & Ré 2022, sections 3 and 4. Lesson 03.
    """

    ssm: DiagonalSystem

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        init: str = "lin",
        method: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dropout: float = 0.0,
        bare: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(d_model, d_state)
        one_of("init", init, INITS)
        one_of("method", method, ("zoh", "bilinear"))
        ssm = DiagonalSystem(d_model, d_state, init, method, dt_min, dt_max)
        super().__init__(ssm, d_model, dropout, bare, device, dtype)
