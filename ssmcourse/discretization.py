"""From a continuous system to a recurrence: h' = A h + B x becomes h_k = A_bar h_{k-1} + B_bar x_k.

Five rules answer one question: the input is held at x_k for a time Δ; where is the state then?

| rule       | A_bar                       | B_bar                | in words                              |
|------------|-----------------------------|----------------------|---------------------------------------|
| `zoh`      | exp(ΔA)                     | A⁻¹ (exp(ΔA) - I) B  | the exact answer (zero-order hold)    |
| `bilinear` | (I - ΔA/2)⁻¹ (I + ΔA/2)     | (I - ΔA/2)⁻¹ ΔB      | the slope at the middle of the step   |
| `euler`    | I + ΔA                      | ΔB                   | the slope at the start of the step    |
| `backward` | (I - ΔA)⁻¹                  | (I - ΔA)⁻¹ ΔB        | the slope at the end of the step      |
| `mamba`    | exp(ΔA)                     | ΔB                   | zoh for the state, euler for the input |

Euler, bilinear and backward are the generalised bilinear transform with α = 0, 1/2 and 1
(HiPPO, Gu et al. 2020, appendix B.3). The last rule is the one of Mamba's published weights.
Lesson 02 draws all five.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

METHODS = ("zoh", "bilinear", "euler", "backward", "mamba")
# The weight that the generalised bilinear transform gives to the end of the step.
GBT_ALPHA = {"euler": 0.0, "bilinear": 0.5, "backward": 1.0}


def discretize(
    A: Tensor, B: Tensor, dt: Tensor | float, method: str = "zoh", *, diagonal: bool = False
) -> tuple[Tensor, Tensor]:
    """The recurrence that follows h' = A h + B x over steps of length dt, by one of five rules.

    Args:
        A: (n, n), or with `diagonal` the diagonal alone, (..., n); real or complex. The minus
            sign is inside: a memory that fades has Re A < 0.
        B: (n,), or with `diagonal` (..., n).
        dt: step length in units of time, a number or a real tensor. Dense: of any shape (...).
            Diagonal: broadcast against A and B, so a step for every (b, l, d) is (b, l, d, 1).
        method: `zoh`, `bilinear`, `euler`, `backward` or `mamba`; see the table of this module.
    Returns:
        A_bar, B_bar: dense (..., n, n) and (..., n), with the shape of dt in front; diagonal:
        what dt, A and B broadcast to. Both have the dtype that A and B promote to.
    Raises:
        ValueError: a shape, dtype or method that does not fit, or a step at which the implicit
            rules (`bilinear`, `backward`) have no answer because I - αΔA is singular.

    Every rule has its exact limit where ΔA is 0, in value and in gradient: B_bar is ΔB there.
    A singular A is no special case.

    Cost: dense O(n^3) for each step length; diagonal O(1) for each element.
    Source: Gu et al. 2020 (HiPPO), appendix B.3; Gu & Dao 2023 (Mamba), eq. 4. Lesson 02.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    _check_floating("A", A)
    _check_floating("B", B)
    if diagonal:
        _check_diagonal(A, B)
    elif A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"A: got shape {tuple(A.shape)}, expected (n, n), or diagonal=True with (..., n)")
    elif B.shape != A.shape[:1]:
        raise ValueError(f"B: got shape {tuple(B.shape)}, expected ({A.shape[0]},) to go with A")
    dtype = torch.promote_types(A.dtype, B.dtype)
    wide = torch.promote_types(dtype, torch.float32)  # half types are computed in float32
    dt = _step_tensor(dt, A.to(wide).real.dtype, A.device)
    if diagonal:
        _check_broadcast(dt, A, B)
    rule = _diagonal if diagonal else _dense
    A_bar, B_bar = rule(A.to(wide), B.to(wide), dt, method)
    return A_bar.to(dtype), B_bar.to(dtype)


def phi1(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z, and its limit 1 at z = 0, element by element; real or complex.

    It is the share of a held input that zero-order hold lets through: B_bar = Δ phi1(ΔA) B.

    Near 0 the quotient is 0/0, and its derivative loses digits well before that, so there its
    Taylor series 1 + z/2 + z²/6 + ... takes over. Value and derivatives are right to rounding.
    """
    near = z.abs() < 0.5
    # Each branch gets an argument that is harmless to it: a NaN in the branch not taken would
    # still reach the gradient.
    small, large = torch.where(near, z, 0), torch.where(near, 1, z)
    series = torch.zeros_like(small)
    for k in range(16, 0, -1):  # 0.5**16 / 17! is below 1e-19
        series = series * small + 1 / math.factorial(k)
    return torch.where(near, series, torch.expm1(large) / large)


def _diagonal(A: Tensor, B: Tensor, dt: Tensor, method: str) -> tuple[Tensor, Tensor]:
    z = dt * A
    if method == "zoh":
        return torch.exp(z), dt * phi1(z) * B
    if method == "mamba":
        return torch.exp(z), (dt * B).expand(torch.broadcast_shapes(z.shape, B.shape))
    alpha = GBT_ALPHA[method]
    if bool((alpha * z == 1).any()):
        raise ValueError(_no_step(method, alpha))
    return (1 + (1 - alpha) * z) / (1 - alpha * z), dt * B / (1 - alpha * z)


def _dense(A: Tensor, B: Tensor, dt: Tensor, method: str) -> tuple[Tensor, Tensor]:
    n = A.shape[0]
    z, dB = dt[..., None, None] * A, dt[..., None] * B  # (..., n, n), (..., n)
    if method == "mamba":
        return _matrix_exp(z), dB
    if method == "zoh":
        # One exponential of [[A, B], [0, 0]] Δ holds both answers and needs no inverse of A.
        block = torch.cat([torch.cat([z, dB[..., None]], dim=-1), z.new_zeros(*dt.shape, 1, n + 1)], dim=-2)
        block = _matrix_exp(block)
        return block[..., :n, :n], block[..., :n, n]
    alpha = GBT_ALPHA[method]
    eye = torch.eye(n, dtype=A.dtype, device=A.device)
    after = torch.cat([eye + (1 - alpha) * z, dB[..., None]], dim=-1)
    if alpha > 0:
        try:
            after = torch.linalg.solve(eye - alpha * z, after)
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            raise ValueError(_no_step(method, alpha)) from None
    return after[..., :n], after[..., n]


def _no_step(method: str, alpha: float) -> str:
    return (
        f"dt: got a step at which I - {alpha:g} dt A is singular, expected one without; {method} is "
        f"undefined where dt times an eigenvalue of A is {1 / alpha:g}: take a smaller step, or zoh"
    )


def _matrix_exp(z: Tensor) -> Tensor:
    """torch.linalg.matrix_exp, by its path for batches.

    The path that torch 2.13 takes for a single matrix of small norm has a wrong coefficient in its
    polynomial of degree 8: errors up to 2e-10 in float64 and 2e-5 in float32.
    """
    if z.shape[:-2].numel() == 1:
        return torch.linalg.matrix_exp(torch.stack([z, z]))[0]
    return torch.linalg.matrix_exp(z)


def _step_tensor(dt: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(dt, Tensor):
        if not dt.is_floating_point():
            raise ValueError(f"dt: got dtype {dt.dtype}, expected a number or a real floating tensor")
        return dt.to(dtype)
    if not isinstance(dt, Real):
        raise ValueError(f"dt: got {dt!r}, expected a number or a real floating tensor")
    return torch.tensor(float(dt), dtype=dtype, device=device)


def _check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {type(value).__name__}, expected a torch tensor")
    if not (value.is_floating_point() or value.is_complex()):
        raise ValueError(f"{name}: got dtype {value.dtype}, expected a floating or complex tensor")


def _check_diagonal(A: Tensor, B: Tensor) -> None:
    for name, value in (("A", A), ("B", B)):
        if value.ndim == 0:
            raise ValueError(f"{name}: got shape (), expected (..., n) with diagonal=True")
    if A.shape[-1] != B.shape[-1]:
        raise ValueError(f"B: got shape {tuple(B.shape)}, expected (..., {A.shape[-1]}) to go with A")


def _check_broadcast(dt: Tensor, A: Tensor, B: Tensor) -> None:
    try:
        torch.broadcast_shapes(dt.shape, A.shape, B.shape)
    except RuntimeError:
        raise ValueError(
            f"dt: got shape {tuple(dt.shape)}, expected one that broadcasts against A {tuple(A.shape)} and "
            f"B {tuple(B.shape)}; for a step at every position write dt[..., None]"
        ) from None
