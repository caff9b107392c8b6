"""HiPPO: a memory that is, at every moment, the best polynomial approximation of the past.

| here    | HiPPO paper | meaning                                                     | shape       |
|---------|-------------|-------------------------------------------------------------|-------------|
| `f`     | f           | the signal to remember                                      | (..., l)    |
| `c`     | c(t)        | the memory: n coefficients                                  | (..., l, n) |
| `A`,`B` | -A, B       | c' = A c + B f, the minus inside A (LegS: divided by t)     | (n, n), (n,) |
| `theta` | θ           | length of the window, in the units of dt                    |             |
| `ratio` | 1/k         | LegS: the share of the past that the newest sample makes up |             |

`hippo_matrix` and `hippo_basis` are in ssmcourse/measures.py, and are importable from here too.
Source: Gu, Dao, Ermon, Rudra & Ré 2020, "HiPPO: Recurrent Memory with Optimal Polynomial
Projections". Lesson 01.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ssmcourse.arguments import one_of, shown
from ssmcourse.discretization import GBT_ALPHA, discretize
from ssmcourse.kernels import runtime
from ssmcourse.measures import (
    MEASURES,
    check_measure,
    check_points,
    check_positive,
    hippo_basis,
    hippo_matrix,
)

__all__ = ["MEASURES", "hippo_basis", "hippo_matrix", "hippo_project", "hippo_reconstruct", "legs_step"]

PROJECT_METHODS = ("euler", "backward", "bilinear", "zoh")
BLOCK = 64  # steps that are discretised, or taken, at once


def hippo_project(
    f: Tensor,
    n: int,
    measure: str = "legs",
    *,
    theta: float | None = None,
    dt: float = 1.0,
    times: Tensor | None = None,
    method: str = "bilinear",
    last_only: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The coefficients of the past of f, after every sample.

    Sample k = 1, 2, ... of f is held from time t_{k-1} to t_k = k dt; the memory starts empty at
    time 0. One step is c_k = A_bar c_{k-1} + B_bar f_k, where A_bar, B_bar follow from
    `hippo_matrix` and `discretize` with a step of

    - LegS: ratio_k = (t_k - t_{k-1}) / t_k, the new share of the past: 1/k for even samples,
      whatever dt is. The first ratio is 1. For `zoh` it is log((k + 1) / k): the exact time that
      passes between k and k + 1 on LegS's logarithmic clock (the one from 0 to 1 is infinite).
    - the others: t_k - t_{k-1}.

    Args:
        f: (..., l), floating, l >= 1.
        n: number of coefficients.
        measure: `legs`, `legt`, `lagt`, `lmu` or `fourier`.
        theta: length of the window of `legt`, `lmu` and `fourier`, in the units of dt; None is
            the whole record, l dt or times[-1]. `legs` and `lagt` do not look at it.
        dt: time between samples. LagT forgets by a factor of e in one unit of time, so there dt
            says how fast.
        times: (l,), the times of the samples, rising, the first above 0; replaces dt.
        method: `euler`, `backward`, `bilinear` or `zoh`. Forward Euler explodes on LegS while
            n is above k: lesson 01 shows it.
        last_only: return only the coefficients after the last sample.
        backend: `reference` (a loop over dense matrices), `cpu` or `auto`.
    Returns:
        (..., l, n), or (..., n) with last_only, in the dtype of f. Computed in float64.
    Raises:
        ValueError: an argument that does not fit, or LegS `zoh` together with times.

    Differentiable in f and in times (once: a second derivative needs backend="reference" for LegS).

    Cost for each sample: LegS O(n) with backend `cpu`, `zoh` excepted; the other measures O(n^2)
    when samples are even; otherwise a dense discretisation, O(n^3). Memory beside f and the
    result is free of l.
    Source: HiPPO eq. 3 and 4, appendix B.3. Lesson 01.
    """
    check_measure(measure, n)
    _check_signal(f)
    one_of("method", method, PROJECT_METHODS)
    steps = _steps(f, measure, theta, dt, times, method)
    project = runtime.choose("hippo_project", backend, f.device.type)
    rows = f.reshape(-1, f.shape[-1])
    c = project(rows, n, measure, steps, method, last_only)  # (rows, l or 1, n)
    return c.reshape(*f.shape[:-1], n) if last_only else c.reshape(*f.shape, n)


def hippo_reconstruct(
    c: Tensor, points: Tensor, measure: str = "legs", *, theta: float | None = None
) -> Tensor:
    """The past that a memory stands for, at points of its window.

    Args:
        c: (..., n), the coefficients.
        points: (p,), positions in the window, from 0, the oldest, to 1, now. The window is the
            whole past for `legs`, the last theta for `legt`, `lmu` and `fourier`; sample k of l
            in the window sits at (k - 1/2) / l.
        measure: the measure that c was made with.
        theta: `lagt` only, and required there: its window is infinite, and the points span the
            last theta units of time.
    Returns:
        (..., p), in the dtype of c. Computed in float64.
    Raises:
        ValueError: c not floating, or as `hippo_basis`.

    Cost: O(p n) for each row of c.
    """
    if not isinstance(c, Tensor) or c.ndim == 0 or not c.is_floating_point():
        what = f"{c.dtype} of shape {tuple(c.shape)}" if isinstance(c, Tensor) else type(c).__name__
        raise ValueError(f"c: got {what}, expected a floating tensor (..., n)")
    check_points(points)
    basis = hippo_basis(measure, c.shape[-1], points.to(c.device, torch.float64), theta=theta)
    return (c.to(torch.float64) @ basis.mT).to(c.dtype)


def legs_step(c: Tensor, f: Tensor, ratio: float | Tensor, *, method: str = "bilinear") -> Tensor:
    """One step of the LegS memory in O(n), with no matrix: the recurrence of kernels/legs/cpu.py.

    A of LegS is lower triangular, and below its diagonal it is the outer product of
    q = (1, √3, √5, ...) with itself. So a row needs only one number from the rows above it, U:

        v_i = ((1 - b(i + 1)) c_i + q_i U) / (1 + a(i + 1))
        U  <- ((1 - a i) U - ratio q_i c_i) / (1 + a(i + 1)),       first U = ratio f

    with a = α ratio, b = (1 - α) ratio. The file named above derives it. For n = 1 and forward
    Euler this is c <- (1 - ratio) c + ratio f: a gate, and the way to Mamba.

    Args:
        c: (..., n), the memory before the step; zeros at the start.
        f: (...), the new sample.
        ratio: the new share of the past: 1/k at step k; a number, or (...).
        method: `euler`, `bilinear` or `backward`.
    Returns:
        (..., n), the memory after it.
    """
    if not isinstance(method, str) or method not in GBT_ALPHA:
        raise ValueError(
            f"method: got {shown(method)}, expected one of {', '.join(GBT_ALPHA)}; zoh has no O(n) step"
        )
    for name, value in (("c", c), ("f", f)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: got {what}, expected a floating tensor")
    if c.ndim == 0 or f.shape != c.shape[:-1]:
        raise ValueError(
            f"f: got shape {tuple(f.shape)}, expected {tuple(c.shape[:-1])} to go with c {tuple(c.shape)}"
        )
    a, b = GBT_ALPHA[method] * ratio, (1 - GBT_ALPHA[method]) * ratio
    U, after = ratio * f, []
    for i, c_i in enumerate(c.unbind(-1)):
        q = (2 * i + 1) ** 0.5
        after.append(((1 - b * (i + 1)) * c_i + q * U) / (1 + a * (i + 1)))
        U = ((1 - a * i) * U - ratio * q * c_i) / (1 + a * (i + 1))
    return torch.stack(after, dim=-1)


# --- the clock: how far each sample moves the system ------------------------------------------


def _steps(
    f: Tensor, measure: str, theta: float | None, dt: float, times: Tensor | None, method: str
) -> Tensor:
    """The step of every sample, in units of the matrices for theta = 1: (l,), or () when all agree."""
    l = f.shape[-1]
    check_positive("dt", dt)
    if theta is not None:
        check_positive("theta", theta)
    if times is None:
        if measure == "legs":
            k = torch.arange(1, l + 1, dtype=torch.float64, device=f.device)
            return torch.log1p(1 / k) if method == "zoh" else 1 / k
        steps, record = torch.as_tensor(dt, dtype=torch.float64, device=f.device), l * dt
    else:
        if measure == "legs" and method == "zoh":
            raise ValueError(
                "times: got a tensor, expected None for legs with zoh: its first step would be infinite"
            )
        _check_times(times, l)
        times = times.to(f.device, torch.float64)
        steps, record = torch.diff(times, prepend=times.new_zeros(1)), times[-1]
        if measure == "legs":
            return steps / times
    if measure == "lagt":
        return steps
    return steps / (record if theta is None else theta)


def _check_signal(f: Tensor) -> None:
    if not isinstance(f, Tensor) or not f.is_floating_point():
        what = f.dtype if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(f"f: got {what}, expected a real floating tensor (..., l)")
    if f.ndim == 0 or f.shape[-1] == 0:
        raise ValueError(f"f: got shape {tuple(f.shape)}, expected (..., l) with at least one sample")


def _check_times(times: Tensor, l: int) -> None:
    if not isinstance(times, Tensor) or times.shape != (l,) or times.is_complex():
        what = (
            f"{times.dtype} of shape {tuple(times.shape)}"
            if isinstance(times, Tensor)
            else type(times).__name__
        )
        raise ValueError(f"times: got {what}, expected a real tensor ({l},), one time for each sample of f")
    if not bool((torch.diff(times, prepend=times.new_zeros(1)) > 0).all()) or not bool(times[-1] < torch.inf):
        raise ValueError(
            "times: got times that do not rise from above 0, expected 0 < times[0] < times[1] < ..."
        )


# --- the algorithms ---------------------------------------------------------------------------


def _project_reference(
    rows: Tensor, n: int, measure: str, steps: Tensor, method: str, last_only: bool
) -> Tensor:
    """The definition: one dense matrix-vector product a sample."""
    c = rows.new_zeros(rows.shape[0], n, dtype=torch.float64)
    history = []
    for f_k, (A_bar, B_bar) in zip(
        rows.unbind(-1), _recurrence(rows, n, measure, steps, method), strict=True
    ):
        c = c @ A_bar.mT + f_k[:, None] * B_bar
        if not last_only:
            history.append(c.to(rows.dtype))
    return c[:, None].to(rows.dtype) if last_only else torch.stack(history, dim=1)


def _recurrence(
    rows: Tensor, n: int, measure: str, steps: Tensor, method: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """A_bar (n, n), B_bar (n,) of every sample; a block of steps is discretised at a time."""
    A, B = (m.to(rows.device) for m in hippo_matrix(measure, n))
    if steps.ndim == 0:
        A_bar, B_bar = discretize(A, B, steps, method)
        yield from ((A_bar, B_bar) for _ in range(rows.shape[-1]))
        return
    for block in steps.split(BLOCK):
        yield from zip(*(m.unbind(0) for m in discretize(A, B, block, method)), strict=True)


def _project_cpu(rows: Tensor, n: int, measure: str, steps: Tensor, method: str, last_only: bool) -> Tensor:
    """LegS in O(n) a step, other measures by blocks of steps; the dense loop for what is left."""
    if measure == "legs" and method in GBT_ALPHA:
        from ssmcourse.kernels.legs.cpu import legs_scan

        every = steps.requires_grad or not last_only  # the gradient of times needs every state
        wide = torch.promote_types(rows.dtype, torch.float32)
        c = legs_scan(rows.to(wide), steps, GBT_ALPHA[method], n, not every).to(rows.dtype)
        return c[:, -1:] if last_only else c
    if steps.ndim == 0:
        A_bar, B_bar = discretize(*hippo_matrix(measure, n), steps, method)
        return _project_blocks(rows, A_bar, B_bar, last_only)
    return _project_reference(rows, n, measure, steps, method, last_only)


def _project_blocks(rows: Tensor, A_bar: Tensor, B_bar: Tensor, last_only: bool) -> Tensor:
    """Constant A_bar: q steps at once, c_{s+i} = A_bar^i c_s + sum_{j <= i} A_bar^(i-j) B_bar f_{s+j}.

    Two matrix products a block, O(q n + n^2) a step, in place of q small ones.
    """
    l, n = rows.shape[-1], A_bar.shape[0]
    q = min(BLOCK, l)
    powers = [torch.eye(n, dtype=A_bar.dtype, device=A_bar.device)]
    for _ in range(q):
        powers.append(A_bar @ powers[-1])
    impulse = torch.stack(powers[:q]) @ B_bar  # (q, n): what a sample has become i steps later
    decay = torch.stack(powers[1:])  # (q, n, n)
    lag = torch.arange(q)[:, None] - torch.arange(q)
    toeplitz = torch.where((lag >= 0)[..., None], impulse[lag.clamp(min=0)], 0)  # (i, j, n)
    c, history = rows.new_zeros(rows.shape[0], n, dtype=torch.float64), []
    for f_block in rows.to(torch.float64).split(q, dim=-1):
        m = f_block.shape[-1]
        if last_only:
            c = c @ decay[m - 1].mT + f_block @ impulse[:m].flip(0)
            continue
        every = torch.einsum("bn,ipn->bip", c, decay[:m]) + torch.einsum(
            "bj,ijn->bin", f_block, toeplitz[:m, :m]
        )
        c = every[:, -1]
        history.append(every.to(rows.dtype))
    return c[:, None].to(rows.dtype) if last_only else torch.cat(history, dim=1)


runtime.register("hippo_project", cpu=_project_cpu, reference=_project_reference)
