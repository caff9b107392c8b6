"""S4: a linear system as a convolution, and three ways to its kernel.

| here             | paper        | meaning                                                         | shape           |
|------------------|--------------|-----------------------------------------------------------------|-----------------|
| `A_bar`, `B_bar` | Ā, B̄         | the discretised system h_t = A_bar h_{t-1} + B_bar x_t          |                 |
| `C`              | C            | y_t = C h_t                                                     | (h, n)          |
| kernel           | K̄            | what an impulse leaves: K_t = C A_bar^t B_bar                   | (h, l)          |
| `Lambda`, `P`    | Λ, P = Q     | A = diag(Lambda) - P P^H (ssmcourse/normal_plus_low_rank.py)    | (h, n), (h,n,r) |
| `omega`          | ω            | the nodes at which the kernel's polynomial is evaluated         | (l,)            |
| `C_tilde`        | C̃            | C (I - ρ^l A_bar^l): what makes the infinite sum end at l       | (h, n)          |

y = K * x is the matrix M of this course with K on its diagonals, from K_0 downwards.

Sources: Gu, Goel & Ré 2021 (S4); Gu, Gupta, Goel & Ré 2022, "On the Parameterization and Initialization of
Diagonal State Space Models" (S4D). Lesson 03.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssmcourse.arguments import Arguments, integer, one_of
from ssmcourse.discretization import phi1
from ssmcourse.kernels import runtime
from ssmcourse.kernels.s4_kernels import matmul
from ssmcourse.normal_plus_low_rank import check_nplr, discretize_nplr, nplr, real_and_imaginary
from ssmcourse.precision import without_autocast, working_dtype

Kernel = Callable[[Tensor, Tensor, Tensor, int], Tensor]
INITS = ("legs", "lin", "inv", "real", "random")


def s4d_init(kind: str, n: int) -> tuple[Tensor, Tensor]:
    """A and B of a diagonal system: half of its modes, their conjugates implied.

    | kind     | A_k, k = 0 ... n/2 - 1                 | B   |
    |----------|----------------------------------------|-----|
    | `legs`   | the normal part of HiPPO-LegS (`nplr`) | its |
    | `lin`    | -1/2 + iπk                             | 1   |
    | `inv`    | -1/2 + i n/π (n / (2k + 1) - 1)        | 1   |
    | `real`   | -(k + 1)                               | 1   |
    | `random` | -1/2 + i exp(g), g normal              | 1   |

    Args:
        kind: one of the table. `random` draws from torch's global generator.
        n: the full size of the real state, even.
    Returns:
        A and B (n / 2,), complex128, with Im A >= 0. B of `legs` is the half of V^H B that belongs to A.
    Raises:
        ValueError: an unknown kind, or n not a positive even number.

    Source: S4D, section 4 and definition of its inits; `random` is that of the authors' code. Lesson 03.
    """
    one_of("kind", kind, INITS)
    even = "a positive even number: modes come in conjugate pairs"
    n = integer("n", n, 2, even)
    if n % 2:
        raise ValueError(f"n: got {n}, expected {even}")
    half = n // 2
    if kind == "legs":
        Lambda, _, B, _ = nplr("legs", n)
        return Lambda[:half], B[:half]
    k = torch.arange(half, dtype=torch.float64)
    decay, turn = torch.full_like(k, -0.5), torch.zeros_like(k)
    if kind == "lin":
        turn = math.pi * k
    elif kind == "inv":
        turn = n / math.pi * (n / (2 * k + 1) - 1)
    elif kind == "real":
        decay = -(k + 1)
    else:
        turn = torch.exp(torch.randn(half, dtype=torch.float64))
    return torch.complex(decay, turn), torch.ones(half, dtype=torch.complex128)


# --- the definition ---------------------------------------------------------------------------


@without_autocast
def ssm_kernel(A_bar: Tensor, B_bar: Tensor, C: Tensor, l: int) -> Tensor:
    """K_t = C A_bar^t B_bar for t = 0 ... l - 1: the answer to an impulse, step by step.

    Args:
        A_bar: (..., n, n), real or complex. B_bar, C: (..., n). Leading dimensions broadcast.
        l: how many steps.
    Returns:
        (..., l), of the dtype that the three promote to; half types are computed in float32.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Cost: l products of a matrix and a vector, O(n^2 l). Source: S4, eq. 5. Lesson 03.
    """
    given = Arguments()
    given.parameter("A_bar", A_bar, "... n n", may_be_complex=True)
    given.parameter("B_bar", B_bar, "... n", may_be_complex=True)
    given.parameter("C", C, "... n", may_be_complex=True)
    leading = _leading(A_bar, B_bar, C)
    l = integer("l", l, 0)
    working = working_dtype(A_bar, B_bar, C)
    dtype = torch.promote_types(torch.promote_types(A_bar.dtype, B_bar.dtype), C.dtype)
    A_bar, C = A_bar.to(working), C.to(working)
    h = B_bar.to(working).expand(*leading, B_bar.shape[-1])
    K = []
    for _ in range(max(l, 1)):
        K.append((C * h).sum(-1))
        h = (A_bar @ h[..., None])[..., 0]
    return torch.stack(K, -1)[..., :l].to(dtype)


# --- S4 -----------------------------------------------------------------------------------------


@without_autocast
def s4_kernel(
    Lambda: Tensor,
    P: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    l: int,
    *,
    half_modes: bool = False,
    backend: str = "auto",
) -> Tensor:
    """K_t = C A_bar^t B_bar of A = diag(Lambda) - P P^H under the bilinear rule, for every channel.

        Lambda, P, B, V = nplr("legs", 64)         # the same for every channel at the start
        C = C_real.to(V.dtype) @ V                 # (h, 64)
        y = fft_conv(x, s4_kernel(Lambda.expand(h, -1), P.expand(h, -1, -1), B.expand(h, -1), C, dt, l))

    C and dt are those of continuous time, so the layer has a knob for the sampling rate: for a signal that is
    sampled twice as often, the same layer is s4_kernel(Lambda, P, B, C, dt / 2, 2 * l).

    Args:
        Lambda, B, C: (h, n), complex, in the basis of `nplr`'s V; C is C itself, not the paper's C-tilde.
        P: (h, n, r), complex. dt: (h,), real, positive.
        l: length of the kernel, any.
        half_modes: one mode of each conjugate pair is given, n / 2 of them: the same kernel, at a third of
            the cost. `nplr` has them first: Lambda[: n // 2], P[: n // 2], ...
        backend: "cpu" (products of dense matrices), "matmul" (the same in torch, for every device) or
            "reference" (the paper's Cauchy sums); "auto" takes the best one for the device.
    Returns:
        (h, l), real: float32, or float64 if any argument is float64 or complex128. Computed in float64.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is not there.

    Gradients of all five tensors, to any order with "matmul" and "reference".

    Cost: O(n^3 log l + n l) for each channel, and "cpu" keeps nothing for the gradient. "reference":
    O(n^3 log l) for C-tilde, O(r^2 n l) for the sums, and memory for (h, n, l) complex numbers.
    Source: S4, theorem 3 and algorithm 1. Lesson 03.
    """
    given = Arguments()
    check_nplr(given, Lambda, P, B, dt)
    given.parameter("C", C, "h n", may_be_complex=True)
    l = integer("l", l, 0)
    result = _real_dtype(Lambda, P, B, C, dt)
    kernel = runtime.choose("s4_kernel", backend, Lambda.device.type)
    wide = [value.to(torch.complex128) for value in (Lambda, P, B, C)]
    return kernel(*wide, dt.to(torch.float64), max(l, 1), half_modes)[:, :l].to(result)


def _s4_by_products(
    Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, l: int, half_modes: bool, *, dense: Kernel
) -> Tensor:
    """The powers of a dense A_bar, of all modes or, with half of them, of their real and imaginary parts."""
    step = discretize_nplr(Lambda, P, B, dt, half_modes=half_modes)
    if not half_modes:
        return dense(step.A_bar(), step.B_bar, C, l).real
    # C h + conj(C h) = 2 Re C Re h - 2 Im C Im h
    C_real = 2 * real_and_imaginary(C.conj(), 1)
    return dense(step.A_bar(), real_and_imaginary(step.B_bar, 1), C_real, l)


def _s4_on_the_cpu(*arguments: Any) -> Tensor:
    from ssmcourse.kernels.s4_kernels.cpu import dense_kernel

    return _s4_by_products(*arguments, dense=dense_kernel)


def _s4_by_matmul(*arguments: Any) -> Tensor:
    return _s4_by_products(*arguments, dense=matmul.dense_kernel)


def _s4_by_cauchy(
    Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, l: int, half_modes: bool
) -> Tensor:
    """Algorithm 1 of the paper: the kernel's polynomial at l nodes, then the inverse Fourier transform.

        sum_{t<l} K_t ω^t = C (I - A_bar^l ω^l) (I - A_bar ω)^-1 B_bar

    The paper's nodes have |ω| = 1. There, Λ without a real part (legt, fourier) lies on the line of the nodes z,
    and a Cauchy sum may divide by zero. These have |ω| = ρ with ρ^l = 1/2: nothing is closer than about 1/l
    to a pole, and the transform gives K_t ρ^t, of which at most one bit is lost.
    """
    if half_modes:
        Lambda, P, B, C = (torch.cat([value, value.conj()], 1) for value in (Lambda, P, B, C))
    A_bar = discretize_nplr(Lambda, P, B, dt).A_bar()
    C_tilde = C - 0.5 * (C[:, None] @ torch.linalg.matrix_power(A_bar, l))[:, 0]
    t = torch.arange(l, dtype=torch.float64, device=dt.device)
    radius = 0.5 ** (1 / l)
    omega = torch.polar(torch.full_like(t, radius), -2 * math.pi * t / l)
    values = _generating_function(Lambda, P, B, C_tilde, dt, omega)
    if values.numel() == 0:  # a Fourier transform of no channels is an error
        return values.real
    return torch.fft.ifft(values).real * radius**-t


def _generating_function(
    Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, omega: Tensor
) -> Tensor:
    """C (I - A_bar ω)^-1 B_bar at every node: (h, l).

    The paper writes it as 2/(1+ω) C (z - A)^-1 B with z = 2/Δ (1-ω)/(1+ω), which is infinite at ω = -1, a node
    of every even l. Multiply by (1+ω) before dividing, and nothing special is left there:

        C (I - A_bar ω)^-1 B_bar = Δ C (a I - b A)^-1 B,      a = 1 - ω,  b = Δ/2 (1 + ω)

    (at ω = -1 this is Δ/2 C B.) a I - b A is the diagonal a - bΛ plus b P P^H, so by Woodbury's identity, with
    k(v, w) = sum_n v_n w_n / (a - b Λ_n):

        Δ [ k(C, B) - b k(C, P) (I + b k(P*, P))^-1 k(P*, B) ]
    """
    a, b = 1 - omega, dt[:, None] / 2 * (1 + omega)  # (l,), (h, l)
    cauchy = 1 / (a - b[:, None] * Lambda[..., None])  # (h, n, l)
    k_CB = torch.einsum("hnl,hn->hl", cauchy, C * B)
    k_CP = torch.einsum("hnl,hnr->hlr", cauchy, C[..., None] * P)
    k_PB = torch.einsum("hnl,hnr->hlr", cauchy, P.conj() * B[..., None])
    k_PP = torch.einsum("hnl,hnrs->hlrs", cauchy, P.conj()[..., None] * P[..., None, :])
    eye = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    corrected = torch.linalg.solve(eye + b[..., None, None] * k_PP, k_PB[..., None])[..., 0]
    return dt[:, None] * (k_CB - b * (k_CP * corrected).sum(-1))


# --- S4D ----------------------------------------------------------------------------------------


@without_autocast
def s4d_kernel(
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    l: int,
    *,
    method: str = "zoh",
    backend: str = "auto",
) -> Tensor:
    """K_t = 2 Re sum_n C_n B_bar_n A_bar_n^t: the kernel of a diagonal system, half of its modes given.

    As with `s4_kernel`, dt / 2 is the same system on a signal that is sampled twice as often.

    Args:
        A, B, C: (h, n / 2), complex, one mode of each conjugate pair. dt: (h,), real.
        l: length of the kernel.
        method: `zoh` or `bilinear`.
        backend: "cpu" (powers by doubling, then one product), "matmul" (the same in torch, for every device) or
            "reference" (the Vandermonde matrix); "auto" takes the best one for the device.
    Returns:
        (h, l), real: float32, or float64 if any argument is float64 or complex128. Computed in float64.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or an unknown method or backend.

    Gradients of all four tensors, to any order with "matmul" and "reference".

    Cost: O(n l) for each channel; "reference" has memory for (h, n, l) complex numbers.
    Source: S4D, eq. 4 and listing 1. Lesson 03.
    """
    given = Arguments()
    for name, value in (("A", A), ("B", B), ("C", C)):
        given.parameter(name, value, "h n", may_be_complex=True)
    given.parameter("dt", dt, "h")
    one_of("method", method, ("zoh", "bilinear"))
    l = integer("l", l, 0)
    kernel = runtime.choose("s4d_kernel", backend, A.device.type)
    wide, step = [v.to(torch.complex128) for v in (A, B, C)], dt.to(torch.float64)[:, None]
    A_bar, B_bar = discretize_modes(wide[0], wide[1], step, method)
    return kernel(wide[2] * B_bar, A_bar, max(l, 1))[:, :l].to(_real_dtype(A, B, C, dt))


def discretize_modes(A: Tensor, B: Tensor, dt: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """`discretize(A, B, dt, method, diagonal=True)`, without its look for a singular step."""
    z = dt * A
    if method == "zoh":
        return torch.exp(z), dt * phi1(z) * B
    E = 1 / (1 - z / 2)
    return (1 + z / 2) * E, dt * E * B


def _s4d_by_vandermonde(weight: Tensor, z: Tensor, l: int) -> Tensor:
    """2 Re weight V with V[n, t] = z_n^t. The powers by doubling: a logarithm would not do for z = 0."""
    powers, square = torch.ones_like(z)[..., None], z  # (h, n, 1)
    while powers.shape[-1] < l:
        powers = torch.cat([powers, powers[..., : l - powers.shape[-1]] * square[..., None]], -1)
        square = square * square
    return 2 * torch.einsum("hn,hnl->hl", weight, powers[..., :l]).real


runtime.register("s4_kernel", cpu=_s4_on_the_cpu, matmul=_s4_by_matmul, reference=_s4_by_cauchy)
runtime.register(
    "s4d_kernel",
    cpu="ssmcourse.kernels.s4_kernels.cpu:vandermonde",
    matmul=matmul.vandermonde,
    reference=_s4d_by_vandermonde,
)


def _real_dtype(*tensors: Tensor) -> torch.dtype:
    wide = working_dtype(*tensors) in (torch.float64, torch.complex128)
    return torch.float64 if wide else torch.float32


def _leading(A_bar: Tensor, B_bar: Tensor, C: Tensor) -> torch.Size:
    try:
        return torch.broadcast_shapes(A_bar.shape[:-2], B_bar.shape[:-1], C.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"B_bar: got shape {tuple(B_bar.shape)} beside A_bar {tuple(A_bar.shape)} and C {tuple(C.shape)}, "
            "expected leading dimensions that broadcast"
        ) from None
