"""One number as a memory: h_t = a h_{t-1} + x_t, and the matrix M that says the same.

The pure half of `explore.memory()`: parameters -> arrays -> pictures, no widget anywhere.

| here | meaning |
|---|---|
| A | the continuous rate, negative: h' = A h forgets |
| dt | Δ, the time that one step takes |
| a | exp(A Δ), what is kept in one step; with `selective`, one a_t for each step |
| M | M[i, j] = a_{j+1} ... a_i, what output i still holds of input j |

The input enters with weight 1, as in the lesson's `h = a * h + x`. (Exact discretisation would
weigh it by (a - 1) / A; lesson 02 comes to that. It scales M and changes nothing of its shape.)
Lesson 00.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..picture import Curves, Line, MatrixImage, Panel

if TYPE_CHECKING:
    import plotly.graph_objects as go

SIGNALS = ("impulse", "two pulses", "step", "sine", "noise", "drawn")
GATE = 16.0  # with `selective`, an input of 1 makes its own step 1 + GATE times as long


@dataclass(frozen=True)
class Memory:
    """The parameters of the picture.

    Args:
        A: rate, negative. dt: step, positive. Only their product matters, unless `selective`.
        signal: one of SIGNALS. length: number of steps, 2 to 64.
        selective: let the input set the step: Δ_t = Δ (1 + GATE x_t²), so a large input clears
            the memory before it is written.
        drawn: the input for signal="drawn", (length,).
    """

    A: float = -1.0
    dt: float = 0.2
    signal: str = "two pulses"
    length: int = 32
    selective: bool = False
    drawn: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.A) and self.A < 0):
            raise ValueError(f"A: got {self.A}, expected a negative number (the memory has to forget)")
        if not (np.isfinite(self.dt) and self.dt > 0):
            raise ValueError(f"dt: got {self.dt}, expected a positive number")
        if not 2 <= self.length <= 64:
            raise ValueError(f"length: got {self.length}, expected 2 to 64 steps")
        if self.signal not in SIGNALS:
            raise ValueError(f"signal: got {self.signal!r}, expected one of {', '.join(SIGNALS)}")
        if self.signal == "drawn" and len(self.drawn) != self.length:
            raise ValueError(f"drawn: got {len(self.drawn)} samples, expected {self.length}")


@dataclass(frozen=True)
class MemoryArrays:
    """What is drawn: x (l,), a (l,), M (l, l) and h = M x (l,)."""

    x: np.ndarray
    a: np.ndarray
    M: np.ndarray
    h: np.ndarray
    selective: bool


def signal(name: str, length: int) -> np.ndarray:
    """One of the ready-made inputs, (length,)."""
    t = np.arange(length)
    if name == "impulse":
        return (t == length // 8).astype(float)
    if name == "two pulses":
        return (t == length // 8).astype(float) + 0.7 * (t == length // 2)
    if name == "step":
        return (t >= length // 4).astype(float)
    if name == "sine":
        return np.sin(2 * np.pi * t / (length / 3))
    if name == "noise":
        return np.random.default_rng(7).uniform(-1, 1, length).round(3)
    raise ValueError(f"signal: got {name!r}, expected one of {', '.join(SIGNALS[:-1])}")


def arrays(p: Memory) -> MemoryArrays:
    """Run the memory by its matrix. Cost: O(l²)."""
    x = np.array(p.drawn) if p.signal == "drawn" else signal(p.signal, p.length)
    dt = p.dt * (1 + GATE * x**2) if p.selective else np.full(p.length, p.dt)
    M = np.exp(_segment_sums(p.A * dt))
    return MemoryArrays(x=x, a=np.exp(p.A * dt), M=M, h=M @ x, selective=p.selective)


def _segment_sums(log_a: np.ndarray) -> np.ndarray:
    """out[i, j] = log_a[j+1] + ... + log_a[i], -inf above the diagonal: (l, l)."""
    l = len(log_a)
    steps = np.where(np.tril(np.ones((l, l), bool), -1), log_a[:, None], 0.0)
    return np.where(np.tril(np.ones((l, l), bool)), np.cumsum(steps, axis=0), -np.inf)


def facts(d: MemoryArrays) -> str:
    """What is kept in a step, and how long an input lives, in words."""
    a = float(d.a[0] if not d.selective else d.a.max())
    half, gone = np.log(0.5) / np.log(a), np.log(0.01) / np.log(a)
    kept = f"a = exp(A·Δ) = {a:.3f}" + (" where x is 0, less where it is not" if d.selective else "")
    return f"{kept}: half is left after {half:.1f} steps, a hundredth after {gone:.1f}."


def pictures(d: MemoryArrays, row: int | None = None) -> tuple[Curves, MatrixImage]:
    """The curves of x and h, and the matrix M.

    Args:
        row: an output to take apart: the bars M[row, j] x_j of which h_row is the sum are drawn
            over the input.
    """
    l = len(d.x)
    t = np.arange(l)
    inputs = [Line("input x", t, d.x, "signal", "stems")]
    outputs = [Line("memory h", t, d.h, "main", "line"), Line("", t, d.h, "main", "dots")]
    if row is not None:
        inputs.append(Line(f"kept in h[{row}]", t, d.M[row] * d.x, "accent", "stems"))
        outputs.append(Line("their sum", t[[row]], d.h[[row]], "accent", "dots"))
    curves = Curves(
        x_name="step t",
        x_range=(-0.5, l - 0.5),
        x_step=1.0,
        panels=(
            Panel("input x", lines=tuple(inputs), y_range=_around(d.x), weight=0.8),
            Panel("memory h", lines=tuple(outputs), y_range=_around(d.h)),
        ),
        description=f"{l} inputs, and a memory that keeps {d.a.max():.3f} of itself at every step; "
        f"it ends at {_plain_number(d.h[-1])}.",
    )
    columns = "columns that differ" if d.selective else "every column the same decay, shifted down"
    matrix = MatrixImage(
        values=d.M,
        title="h = M x",
        row_name="output i",
        column_name="input j",
        value_name="M[i, j]",
        limit=1.0,
        causal=True,
        description=f"The memory as a {l} by {l} lower triangular matrix, 1 on the diagonal: {columns}.",
    )
    return curves, matrix


def figure(d: MemoryArrays, row: int | None = None) -> go.Figure:
    """The same as one plotly figure."""
    from ..plotly_figure import plotly_figure

    return plotly_figure(*pictures(d, row))


def _around(values: np.ndarray) -> tuple[float, float]:
    """A range of the axis that moves in steps, so that small changes do not rescale the picture."""
    most = max(1.0, float(np.abs(values).max()))
    top = next(s for s in (1.0, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 1e9) if s >= most * 0.999)
    return (-1.1 * top if values.min() < -1e-9 else 0.0, 1.1 * top)


def _plain_number(value: float) -> str:
    return f"{value:.3f}".replace("-0.000", "0.000")
