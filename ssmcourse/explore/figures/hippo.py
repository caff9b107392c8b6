"""HiPPO at work: n numbers that hold the past of a signal, and the past drawn from them.

The pure half of `explore.hippo()`: parameters -> arrays -> pictures, no widget anywhere.

The record lasts 512 ms. At rate 1 it is read every millisecond; at rate 2 or 1/2 the same signal
is read twice or half as often, and the memory is not told: dt is one sample and theta is counted in
samples, as before. LegS has no dt and does not mind. LegT's window now spans half or twice the time.
LagT gets dt = 4 / theta: its weight has fallen to e^-4, two hundredths, theta samples ago. Lesson 01.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssmcourse.hippo import hippo_project, hippo_reconstruct
from ssmcourse.tasks.signals import band_limited_noise

from ..picture import Band, Curves, Line, Panel, Strip

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEASURES = {"legs": "LegS", "legt": "LegT", "lagt": "LagT"}
SIGNALS = ("noise", "chirp", "steps", "square", "drawn")
RATES = (0.5, 1.0, 2.0)
DURATION = 512  # ms, and samples at rate 1
FINE = 2 * DURATION  # samples at the highest rate
REACH = {"legt": 1.0, "lagt": 1.5}  # how far back the past is drawn, in theta; LegS: all of it
FADE = 4.0  # LagT's weight falls by a factor of e this often in theta samples


@dataclass(frozen=True)
class Hippo:
    """The parameters of the picture.

    Args:
        signal: one of SIGNALS. n: coefficients, 1 to 64. measure: `legs`, `legt` or `lagt`.
        theta: window (LegT) or fading time (LagT), in samples. t: now, in ms.
        rate: 0.5, 1 or 2 samples a millisecond. drawn: for signal="drawn", (FINE,).
    """

    signal: str = "noise"
    n: int = 28
    measure: str = "legs"
    theta: int = 128
    t: int = 400
    rate: float = 1.0
    drawn: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise ValueError(f"signal: got {self.signal!r}, expected one of {', '.join(SIGNALS)}")
        if self.measure not in MEASURES:
            raise ValueError(f"measure: got {self.measure!r}, expected one of {', '.join(MEASURES)}")
        if not 1 <= self.n <= 64:
            raise ValueError(f"n: got {self.n}, expected 1 to 64 coefficients")
        if not 2 <= self.theta <= DURATION:
            raise ValueError(f"theta: got {self.theta}, expected 2 to {DURATION} samples")
        if not 2 <= self.t <= DURATION:
            raise ValueError(f"t: got {self.t}, expected 2 to {DURATION} ms")
        if self.rate not in RATES:
            raise ValueError(f"rate: got {self.rate}, expected 0.5, 1 or 2")
        if self.signal == "drawn" and len(self.drawn) != FINE:
            raise ValueError(f"drawn: got {len(self.drawn)} samples, expected {FINE}")

    @property
    def now(self) -> int:
        """Samples read so far."""
        return max(1, int(self.t * self.rate))


@dataclass(frozen=True)
class HippoArrays:
    """What is drawn, times in ms.

    f (l,) at time (l,); c (l, n), the coefficients after every sample; past (m,), the signal's
    reconstruction at past_time (m,); weight (k,) at weight_time (k,); window, where the measure
    looks; error, the mean square error there over the signal's mean square; change, how far the
    coefficients of LegS, LegT and the chosen measure are from those at rate 1, in percent.
    """

    p: Hippo
    time: np.ndarray
    f: np.ndarray
    c: np.ndarray
    past_time: np.ndarray
    past: np.ndarray
    weight_time: np.ndarray
    weight: np.ndarray
    window: tuple[float, float]
    error: float
    change: dict[str, float]


@lru_cache(maxsize=16)
def signal(name: str) -> np.ndarray:
    """One of the ready-made signals at the highest rate, (FINE,), between about -2 and 2."""
    u = np.arange(1, FINE + 1) / FINE
    if name == "noise":
        return band_limited_noise(FINE, cycles=14, seed=4).numpy()
    if name == "chirp":
        return 1.2 * np.sin(2 * np.pi * (1.5 * u + 5 * u**2))
    if name == "steps":
        return np.select([u < 0.2, u < 0.45, u < 0.6, u < 0.85], [0.0, 1.2, -0.8, 0.5], -1.2)
    if name == "square":
        return np.where((5 * u) % 1 < 0.5, 1.0, -1.0)
    raise ValueError(f"signal: got {name!r}, expected one of {', '.join(SIGNALS[:-1])}")


def samples(p: Hippo) -> np.ndarray:
    """The signal as the memory reads it: (l,), each sample taken at the end of its step."""
    fine = np.array(p.drawn) if p.signal == "drawn" else signal(p.signal)
    stride = round(2 / p.rate)
    return fine[stride - 1 :: stride]


@lru_cache(maxsize=64)
def _coefficients(
    source: tuple[str, tuple[float, ...]], n: int, measure: str, theta: int, rate: float
) -> np.ndarray:
    p = Hippo(signal=source[0], drawn=source[1], rate=rate)
    f = torch.from_numpy(np.ascontiguousarray(samples(p), dtype=np.float64))
    if measure == "lagt":
        c = hippo_project(f, n, measure, dt=FADE / theta)
    else:
        c = hippo_project(f, n, measure, theta=None if measure == "legs" else float(theta))
    return c.numpy()


def coefficients(p: Hippo, measure: str | None = None, rate: float | None = None) -> np.ndarray:
    """(l, n), after every sample. Kept, so that moving t costs nothing."""
    measure, rate = measure or p.measure, rate or p.rate
    return _coefficients((p.signal, p.drawn), p.n, measure, 0 if measure == "legs" else p.theta, rate)


def arrays(p: Hippo) -> HippoArrays:
    """Everything that the picture shows. Cost: a projection, once; then O(l n) for each t."""
    f, c, k = samples(p), coefficients(p), p.now
    time = (np.arange(len(f)) + 0.5) / p.rate
    m = min(k, round(REACH[p.measure] * p.theta)) if p.measure in REACH else k
    past = _reconstruct(p, c[k - 1], m)
    seen = k if p.measure == "legs" else min(k, p.theta)
    truth = f[k - seen : k]
    weight_time, weight = _weight(p, k)
    return HippoArrays(
        p=p,
        time=time,
        f=f,
        c=c,
        past_time=time[k - m : k],
        past=past,
        weight_time=weight_time,
        weight=weight,
        window=((k - seen) / p.rate, k / p.rate),
        error=float(np.mean((past[-seen:] - truth) ** 2) / max(np.mean(truth**2), 1e-12)),
        change={name: _change(p, name) for name in dict.fromkeys(("legs", "legt", p.measure))},
    )


def _reconstruct(p: Hippo, c: np.ndarray, m: int) -> np.ndarray:
    """The last m samples, drawn from the coefficients."""
    window = {"legs": p.now, "legt": p.theta, "lagt": m}[p.measure]
    points = 1 - (torch.arange(m, dtype=torch.float64).flip(0) + 0.5) / window
    theta = FADE * m / p.theta if p.measure == "lagt" else None
    return hippo_reconstruct(torch.from_numpy(c), points, p.measure, theta=theta).numpy()


def _weight(p: Hippo, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The measure's density per ms, and where."""
    now = k / p.rate
    if p.measure == "lagt":
        at = np.linspace(0, now, 128)
        fade = FADE * p.rate / p.theta
        return at, fade * np.exp((at - now) * fade)
    width = now if p.measure == "legs" else p.theta / p.rate
    start = max(0.0, now - width)
    return np.array([start, start, now, now]), np.array([0, 1 / width, 1 / width, 0])


def _change(p: Hippo, measure: str) -> float:
    """How far the coefficients at this rate are from those at rate 1, in percent of their norm."""
    if p.rate == 1.0:
        return 0.0
    here = coefficients(p, measure)[p.now - 1]
    there = coefficients(p, measure, rate=1.0)[p.t - 1]
    return float(100 * np.linalg.norm(here - there) / max(np.linalg.norm(there), 1e-12))


def facts(d: HippoArrays) -> str:
    """What the memory holds and how well, in words."""
    p = d.p
    where = {
        "legs": "of the whole past",
        "legt": f"in the window of {p.theta} samples, beyond which nothing is known",
        "lagt": f"of the last {p.theta} samples; what is older fades",
    }[p.measure]
    held = (
        f"{p.n} number{'s' if p.n > 1 else ''} for {p.now} samples. Error {where}: {_percent(d.error * 100)}."
    )
    if p.rate == 1.0:
        return held
    moved = ", ".join(f"{MEASURES[name]} {_percent(value)}" for name, value in d.change.items())
    often = "twice as often" if p.rate == 2 else "half as often"
    return f"{held} Read {often}, the coefficients moved by: {moved}."


def _percent(value: float) -> str:
    if value > 999:
        return "over 999 %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %" if value >= 0.095 else f"{value:.2g} %"


def pictures(d: HippoArrays) -> tuple[Curves]:
    """The signal and its past as remembered, the measure's weight, the coefficients."""
    p = d.p
    high = 1.15 * max(1.0, float(np.abs(d.f).max()))
    lines = (
        Line("signal f", d.time, d.f, "signal"),
        Line(f"from {p.n} numbers", d.past_time, np.clip(d.past, -3 * high, 3 * high), "main"),
    )
    weight = Line("", d.weight_time, d.weight, "main", "area")
    bound = float(np.abs(d.c[len(d.c) // 8 :]).max(initial=1e-9))
    name = MEASURES[p.measure]
    return (
        Curves(
            x_name="time",
            x_units="ms",
            x_step=1.0,
            x_range=(0.0, float(DURATION)),
            panels=(
                Panel("value of f", lines=lines, y_range=(-high, high), weight=1.6),
                Panel(f"weight of the past, {name}", "per ms", lines=(weight,), weight=0.55),
                Panel("coefficients c[n], n upward", strip=Strip(d.c.T, "c[n]", bound), weight=0.9),
            ),
            bands=(Band(*d.window),),
            marker=p.now / p.rate,
            description=f"A signal of {DURATION} ms and its past at {p.t} ms, drawn by HiPPO-{name} from "
            f"{p.n} coefficients, with the weight of the past below and the coefficients over time.",
        ),
    )


def figure(d: HippoArrays) -> go.Figure:
    """The same as one plotly figure."""
    from ..plotly_figure import plotly_figure

    return plotly_figure(*pictures(d), height=560)
