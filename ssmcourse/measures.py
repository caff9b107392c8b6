"""Five ways to weigh the past, and what each makes of it: a basis and a linear system.

HiPPO (Gu et al. 2020) keeps, at every time t, the best polynomial approximation of all that came
before. "Best" needs a measure: how much an error counts, s = t - x ago.

| measure   | window          | an error counts         | basis on the window, x in [0, 1], oldest 0     |
|-----------|-----------------|-------------------------|------------------------------------------------|
| `legs`    | [0, t]          | the same everywhere     | sqrt(2n+1) P_n(2x - 1), orthonormal            |
| `legt`    | [t - θ, t]      | the same everywhere     | sqrt(2n+1) P_n(2x - 1), orthonormal            |
| `lmu`     | [t - θ, t]      | the same everywhere     | P_n(1 - 2x), the Legendre Memory Unit's        |
| `lagt`    | (-∞, t]         | exp(-s), s = t - x      | Laguerre L_n(s), orthonormal under exp(-s)     |
| `fourier` | [t - θ, t]      | the same everywhere     | 1, 0, √2 cos 2πj(1-x), √2 sin 2πj(1-x), j = 1.. |

Differentiating c_n(t) = <f, basis_n> under the moving measure gives c' = A c + B f (for LegS
divided by t), the system that `hippo_matrix` returns. Lesson 01 does it line by line.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssmcourse.arguments import integer, one_of

MEASURES = ("legs", "legt", "lagt", "lmu", "fourier")


def hippo_matrix(measure: str, n: int, *, theta: float = 1.0) -> tuple[Tensor, Tensor]:
    """The system c' = A c + B f that keeps the n coefficients of the past up to date.

    For LegS the whole right side is divided by t: c' = (A c + B f) / t.

    Args:
        measure: `legs`, `legt`, `lagt`, `lmu` or `fourier`.
        n: number of coefficients, at least 1; even for `fourier`, which pairs a cosine with a
            sine. Its sine of frequency 0 is nothing: row 1 of A and B is zero, kept so that the
            coefficients 2j and 2j + 1 are the pair of frequency j.
        theta: length of the window of `legt`, `lmu` and `fourier`, in units of time: A and B are
            divided by it. `legs` and `lagt` have no such length and do not look at it.
    Returns:
        A (n, n) and B (n,), float64, the minus sign inside A.
    Raises:
        ValueError: an unknown measure, n below 1 (or odd for `fourier`), theta not positive.

    LegS and LagT are exact. A window also needs f(t - θ), which is what leaves it, and the memory
    has only its own approximation of that. `legt` and `lmu` read it off the polynomial. A Fourier
    series converges at its ends to (f(t) + f(t - θ)) / 2, so `fourier` reads f(t - θ) as twice
    the series' value minus f(t).

    Source: HiPPO theorems 1 and 2; LMU (Voelker et al. 2019, eq. 2); FouT (Gu et al. 2023,
    "How to train your HiPPO"). `lmu` is `legt` with c_n scaled by (-1)^n sqrt(2n + 1). Lesson 01.
    """
    check_measure(measure, n)
    check_positive("theta", theta)
    if measure == "legs":
        return _legs(n)
    if measure == "lagt":
        return -torch.ones(n, n, dtype=torch.float64).tril(), torch.ones(n, dtype=torch.float64)
    A, B = {"legt": _legt, "lmu": _lmu, "fourier": _fourier}[measure](n)
    return A / theta, B / theta


def hippo_basis(measure: str, n: int, points: Tensor, *, theta: float | None = None) -> Tensor:
    """The n basis functions of a measure at points of its window: f is about basis @ c.

    Args:
        measure: `legs`, `legt`, `lagt`, `lmu` or `fourier`; the table of this module has the
            formulas.
        n: number of functions, at least 1; even for `fourier`.
        points: (p,), positions in the window from 0, the oldest, to 1, now.
        theta: `lagt` only, and required there: the window is infinite, so the points span the
            last theta units of time. The others do not look at it.
    Returns:
        (p, n), in the dtype of points.
    Raises:
        ValueError: as `hippo_matrix`; points not (p,), not floating or not inside [0, 1]; no
            theta for `lagt`.

    Cost: O(p n), by the three-term recurrences, which are stable on the window (n = 256 gives
    full precision in float64). Differentiable in the points.
    """
    check_measure(measure, n)
    check_points(points)
    span = window_span(measure, theta)
    x = points.to(torch.float64)
    if measure in ("legs", "legt"):
        scale = torch.arange(n, dtype=torch.float64, device=x.device).mul(2).add(1).sqrt()
        basis = legendre(n, 2 * x - 1) * scale
    elif measure == "lmu":
        basis = legendre(n, 1 - 2 * x)
    elif measure == "lagt":
        basis = laguerre(n, (1 - x) * span)
    else:
        basis = _trigonometric(n, 1 - x)
    return basis.to(points.dtype)


def legendre(n: int, x: Tensor) -> Tensor:
    """P_0 ... P_{n-1} at x (p,) in [-1, 1]: (p, n). (k + 1) P_{k+1} = (2k + 1) x P_k - k P_{k-1}."""
    rows = [torch.ones_like(x), x]
    for k in range(1, n - 1):
        rows.append(((2 * k + 1) * x * rows[k] - k * rows[k - 1]) / (k + 1))
    return torch.stack(rows[:n], dim=-1)


def laguerre(n: int, s: Tensor) -> Tensor:
    """L_0 ... L_{n-1} at s (p,) >= 0: (p, n). (k + 1) L_{k+1} = (2k + 1 - s) L_k - k L_{k-1}."""
    rows = [torch.ones_like(s), 1 - s]
    for k in range(1, n - 1):
        rows.append(((2 * k + 1 - s) * rows[k] - k * rows[k - 1]) / (k + 1))
    return torch.stack(rows[:n], dim=-1)


def _trigonometric(n: int, age: Tensor) -> Tensor:
    angle = 2 * math.pi * age[:, None] * torch.arange(1, n // 2, dtype=age.dtype, device=age.device)
    pairs = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], dim=-1)  # (p, n/2 - 1, 2)
    constant = torch.stack([torch.ones_like(age), torch.zeros_like(age)], dim=-1)
    return torch.cat([constant, pairs.flatten(1)], dim=-1)


def _roots(n: int) -> Tensor:
    return (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()  # the value of basis n at now


def _legs(n: int) -> tuple[Tensor, Tensor]:
    q = _roots(n)
    A = torch.outer(q, q).tril(-1) + torch.diag(torch.arange(1, n + 1, dtype=torch.float64))
    return -A, q


def _legt(n: int) -> tuple[Tensor, Tensor]:
    q = _roots(n)
    return -torch.outer(q, q) * (torch.ones(n, n).tril() + _alternating(n).triu(1)), q


def _lmu(n: int) -> tuple[Tensor, Tensor]:
    odd = 2 * torch.arange(n, dtype=torch.float64) + 1
    signs = _alternating(n)
    return -odd[:, None] * (signs.tril() + torch.ones(n, n).triu(1)), odd * signs[:, 0]


def _fourier(n: int) -> tuple[Tensor, Tensor]:
    ends = torch.full((n,), math.sqrt(2), dtype=torch.float64)  # the basis at either end of the window
    ends[0], ends[1::2] = 1, 0
    omega = torch.zeros(n - 1, dtype=torch.float64)
    omega[::2] = 2 * math.pi * torch.arange(n // 2, dtype=torch.float64)
    # A pair turns as it ages; what enters minus what leaves is 2 (f - ends @ c).
    return torch.diag(omega, -1) - torch.diag(omega, 1) - 2 * torch.outer(ends, ends), 2 * ends


def _alternating(n: int) -> Tensor:
    k = torch.arange(n)
    return 1.0 - 2.0 * ((k[:, None] + k) % 2).to(torch.float64)  # (-1)^(n-k)


def check_measure(measure: str, n: int) -> None:
    one_of("measure", measure, MEASURES)
    integer("n", n, 1, "a number of coefficients, an integer of at least 1")
    if measure == "fourier" and n % 2:
        raise ValueError(f"n: got {n}, expected an even number for fourier: cosines and sines come in pairs")


def check_positive(name: str, value: float | Tensor) -> None:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: got {value!r}, expected one positive number") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: got {number:g}, expected a positive, finite number")


def window_span(measure: str, theta: float | None) -> float:
    """The length of time that points in [0, 1] span, where the basis depends on it: for `lagt`."""
    if theta is not None:
        check_positive("theta", theta)
    elif measure == "lagt":
        raise ValueError(
            "theta: got None, expected a length of time: the window of lagt is infinite, so say how much "
            "of the past the points span"
        )
    return 1.0 if theta is None else float(theta)


def check_points(points: Tensor) -> None:
    if not isinstance(points, Tensor) or points.ndim != 1 or not points.is_floating_point():
        what = (
            f"{points.dtype} of shape {tuple(points.shape)}" if isinstance(points, Tensor) else repr(points)
        )
        raise ValueError(f"points: got {what}, expected a floating tensor (p,)")
    if not bool(((points >= 0) & (points <= 1)).all()):
        low, high = points.min().item(), points.max().item()
        raise ValueError(
            f"points: got values from {low:g} to {high:g}, expected all within [0, 1], 1 being now"
        )
