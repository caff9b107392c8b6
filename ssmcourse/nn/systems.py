"""The linear systems inside S4, S4D and H3: their parameters, and what a layer asks of them.

| here                       | paper     | meaning                                                  | shape               |
|----------------------------|-----------|----------------------------------------------------------|---------------------|
| `log_A_real`, `A_imag`     | A         | A = -exp(log_A_real) + i A_imag: S4D, H3                 | (h, n / 2)          |
| `log_Lambda_real`, ...     | Λ         | the same of S4's normal part                             | (h, n / 2)          |
| `P`                        | P = Q     | S4's low-rank part                                       | (h, n / 2, r, 2)    |
| `B`, `C`                   | B, C      | input and output                                         | (h, n / 2, 2)       |
| `log_dt`                   | log Δ     | Δ = exp(log_dt) rate                                     | (h,)                |
| `state`                    | x         | what is remembered: one mode of each conjugate pair      | (b, h, n / 2)       |

The last 2 are real and imaginary part: so a parameter keeps both under `.to(dtype)` and in any optimiser. There
are h systems, one input and one output each. The real part of A is negative whatever is learnt.

The system is discretised in float64. States are complex64, in a layer of float64 complex128.

Sources: Gu, Goel & Ré 2021 (S4); Gu, Gupta, Goel & Ré 2022 (S4D). Lesson 03.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssmcourse.arguments import COMPLEX_OF, shown
from ssmcourse.linear_system import final_state, free_response
from ssmcourse.nn.sequence import positive
from ssmcourse.normal_plus_low_rank import Recurrence, discretize_nplr, nplr, nplr_step, real_and_imaginary
from ssmcourse.precision import working_dtype
from ssmcourse.s4 import discretize_modes, s4_kernel, s4d_init, s4d_kernel

NEVER_NEUTRAL = 1e-4  # the least -Re A at the start: a logarithm has no zero (`legt` and `fourier` have one)


class LinearSystem(nn.Module):
    """What both kinds share: B, C and the step size. A subclass says what A is, and takes the steps.

    The published runs train all but C at a learning rate of 1e-3 at most, without weight decay.
    """

    rate: float  # of time: 0.5 where the signal is sampled twice as often as the one learnt from

    def __init__(self, B: Tensor, h: int, dt_min: float, dt_max: float) -> None:
        """B: (n / 2,), complex, the same for every channel at the start."""
        super().__init__()
        check_dt(dt_min, dt_max)
        self.rate = 1.0
        spread = math.log(dt_min) + torch.rand(h, dtype=torch.float64) * math.log(dt_max / dt_min)
        self.log_dt = nn.Parameter(spread)
        self.B = nn.Parameter(of_each_channel(B, h))
        self.C = nn.Parameter(torch.randn(h, len(B), 2, dtype=torch.float64) / math.sqrt(2))

    @property
    def dt(self) -> Tensor:
        """(h,), float32 at least."""
        return at_least_float32(self.log_dt).exp() * self.rate

    def start(self, batch: int) -> Tensor:
        """The state before the first step: (batch, h, n / 2), complex zeros."""
        dtype = COMPLEX_OF[at_least_float32(self.C).dtype]
        return torch.zeros(batch, *self.C.shape[:2], dtype=dtype, device=self.C.device)

    def kernel(self, l: int) -> Tensor:
        """(h, l), what an impulse leaves."""
        raise NotImplementedError

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """y (b, h) and the new state, from the input x (b, h) and the state."""
        raise NotImplementedError

    def free_response(self, state: Tensor, l: int) -> Tensor:
        """(b, l, h), what a state (b, h, n / 2) adds to the next l outputs."""
        raise NotImplementedError

    def final_state(self, x: Tensor, state: Tensor, lengths: Tensor | None) -> Tensor:
        """The state after the inputs x (b, l, h), of which row i has lengths_i (b,)."""
        raise NotImplementedError


class DiagonalSystem(LinearSystem):
    """A diagonal A: S4D. Made from `s4d_init(init, d_state)`, discretised by `zoh` or `bilinear`."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("log_A_real", "A_imag", "B", "log_dt")
    max_learning_rate: ClassVar[dict[str, float]] = dict.fromkeys(no_weight_decay, 1e-3)

    def __init__(self, h: int, d_state: int, init: str, method: str, dt_min: float, dt_max: float) -> None:
        A, B = s4d_init(init, d_state)
        super().__init__(B, h, dt_min, dt_max)
        self.method = method
        self.log_A_real, self.A_imag = (nn.Parameter(value) for value in stable(A, h))

    @property
    def A(self) -> Tensor:
        """(h, n / 2), complex."""
        return negative(self.log_A_real, self.A_imag)

    def kernel(self, l: int) -> Tensor:
        return s4d_kernel(self.A, as_complex(self.B), as_complex(self.C), self.dt, l, method=self.method)

    def discretized(self) -> tuple[Tensor, Tensor, Tensor]:
        """A_bar, B_bar and C, (h, n / 2), complex128."""
        A, B, C = (value.to(torch.complex128) for value in (self.A, as_complex(self.B), as_complex(self.C)))
        return *discretize_modes(A, B, self.dt.double()[:, None], self.method), C

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        A_bar, B_bar, C = (value.to(state.dtype) for value in self.discretized())
        state = A_bar * state + B_bar * x[..., None]
        return 2 * (C * state).sum(-1).real, state

    def free_response(self, state: Tensor, l: int) -> Tensor:
        A_bar, _, C = self.discretized()
        return free_response(A_bar, 2 * C, state.to(C.dtype), l)

    def final_state(self, x: Tensor, state: Tensor, lengths: Tensor | None) -> Tensor:
        A_bar, B_bar, _ = self.discretized()
        return final_state(A_bar, B_bar, x, state.to(B_bar.dtype), lengths).to(state.dtype)


class NPLRSystem(LinearSystem):
    """A normal A less a low-rank one: S4. Made from `nplr(measure, d_state)`, discretised by the bilinear rule."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("log_Lambda_real", "Lambda_imag", "P", "B", "log_dt")
    max_learning_rate: ClassVar[dict[str, float]] = dict.fromkeys(no_weight_decay, 1e-3)

    def __init__(self, h: int, d_state: int, measure: str, dt_min: float, dt_max: float) -> None:
        Lambda, P, B = (value[: d_state // 2] for value in nplr(measure, d_state)[:3])
        super().__init__(B, h, dt_min, dt_max)
        self.log_Lambda_real, self.Lambda_imag = (nn.Parameter(value) for value in stable(Lambda, h))
        self.P = nn.Parameter(of_each_channel(P, h))

    @property
    def Lambda(self) -> Tensor:
        """(h, n / 2), complex."""
        return negative(self.log_Lambda_real, self.Lambda_imag)

    def kernel(self, l: int) -> Tensor:
        P, B, C = (as_complex(value) for value in (self.P, self.B, self.C))
        return s4_kernel(self.Lambda, P, B, C, self.dt, l, half_modes=True)

    def discretized(self) -> Recurrence:
        """One step in O(n), complex128."""
        wide = [v.to(torch.complex128) for v in (self.Lambda, as_complex(self.P), as_complex(self.B))]
        return discretize_nplr(*wide, self.dt.double(), half_modes=True)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        *tensors, half_modes = self.discretized()
        recurrence = Recurrence(*(value.to(state.dtype) for value in tensors), half_modes=half_modes)
        state = nplr_step(state, x.to(state.real.dtype), recurrence)
        return 2 * (as_complex(self.C) * state).sum(-1).real, state

    def free_response(self, state: Tensor, l: int) -> Tensor:
        C = as_complex(self.C).to(torch.complex128)
        C_real = 2 * real_and_imaginary(C.conj(), 1)  # 2 Re C h = 2 Re C Re h - 2 Im C Im h
        return free_response(self.discretized().A_bar(), C_real, both_parts(state), l)

    def final_state(self, x: Tensor, state: Tensor, lengths: Tensor | None) -> Tensor:
        step = self.discretized()
        B_real = real_and_imaginary(step.B_bar, 1)
        after = final_state(step.A_bar(), B_real, x, both_parts(state), lengths)
        return torch.complex(*after.chunk(2, -1)).to(state.dtype)


def both_parts(state: Tensor) -> Tensor:
    """(b, h, n), float64: the states that `Recurrence.A_bar` with half of the modes is a matrix for."""
    return real_and_imaginary(state, 2).double()


def at_least_float32(value: Tensor) -> Tensor:
    return value.to(working_dtype(value))


def as_complex(value: Tensor) -> Tensor:
    """(...) complex from the (..., 2) of a parameter, complex64 at least."""
    return torch.view_as_complex(at_least_float32(value).contiguous())


def negative(log_real: Tensor, imag: Tensor) -> Tensor:
    """-exp(log_real) + i imag: no gradient step leads to a real part that is not negative."""
    return torch.complex(-at_least_float32(log_real).exp(), at_least_float32(imag))


def stable(A: Tensor, h: int) -> tuple[Tensor, Tensor]:
    """What `negative` makes A (n / 2,) of, for each of h channels."""
    decay = (-A.real).clamp(min=NEVER_NEUTRAL)
    return decay.log().expand(h, -1).clone(), A.imag.expand(h, -1).clone()


def of_each_channel(value: Tensor, h: int) -> Tensor:
    """(h, ..., 2) from a complex (...)."""
    parts = torch.view_as_real(value.resolve_conj())
    return parts.expand(h, *parts.shape).clone()


def check_sizes(d_model: int, d_state: int) -> None:
    """Refuse sizes that are no positive integers, and states without pairs."""
    positive(d_model=d_model, d_state=d_state)
    if d_state % 2:
        raise ValueError(f"d_state: got {d_state}, expected an even number: modes come in conjugate pairs")


def check_dt(dt_min: float, dt_max: float) -> None:
    """Refuse a range of step sizes that is none."""
    for name, value in (("dt_min", dt_min), ("dt_max", dt_max)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise ValueError(f"{name}: got {shown(value)}, expected a positive number")
    if dt_min > dt_max:
        raise ValueError(f"dt_min: got {dt_min}, expected no more than dt_max {dt_max}")
