"""HiPPO's matrices as a normal one less one of low rank: what lets S4 work in O(n) where a matrix takes O(n^2).

| here            | paper           | meaning                                                      | shape             |
|-----------------|-----------------|--------------------------------------------------------------|-------------------|
| `Lambda`        | Λ               | eigenvalues of the normal part, in conjugate pairs           | (n,), (h, n)      |
| `P`             | P = Q           | the low-rank part, in the basis of V; r is its rank          | (n, r), (h, n, r) |
| `B`, `C`        | V^H B, C V      | input and output, in the basis of V                          | (n,), (h, n)      |
| `V`             | V               | eigenvectors of the normal part: unitary                     | (n, n)            |
| `dt`            | Δ               | step                                                         | (h,)              |
| `state`         | x               | what is remembered, in the basis of V                        | (b, h, n)         |
| `E`             | D / (2/Δ)       | (1 - Δ/2 Λ)^-1                                               | (h, n)            |
| `half_modes`    |                 | one mode of each conjugate pair is kept: n is n / 2 then     |                   |

Source: Gu, Goel & Ré 2021, "Efficiently Modeling Long Sequences with Structured State Spaces" (S4), theorem 1,
appendix C. Lesson 03.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssmcourse.arguments import Arguments
from ssmcourse.measures import check_measure, hippo_matrix
from ssmcourse.precision import without_autocast, working_dtype


def nplr(measure: str, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lambda, P, B and V with A = V (diag(Lambda) - P P^H) V^H and B = V^H B_real of `hippo_matrix(measure, n)`.

    Every measure forgets at a rate that a few directions p_i of its coefficients decide: A + A^T is
    -I - 2 p p^T for `legs` and `lagt`, -2 (p p^T + q q^T) for `legt`, -2 p p^T for `fourier`. Add p p^T to A,
    and what is left is skew-symmetric (`legs`, `lagt`: less half of the identity): it turns, and its
    eigenvectors are orthogonal. HiPPO's own eigenvectors have entries of up to 2^(4n/3) (lemma 3.2) and
    cannot be used.

    Args:
        measure: `legs`, `lagt`, `fourier` (rank 1) or `legt` (rank 2), with theta = 1.
        n: number of coefficients, at least 1; even for `fourier`.
    Returns:
        Lambda (n,), P (n, r), B (n,), V (n, n), complex128. The first n // 2 modes have Im Lambda >= 0, rising;
        the next n // 2 are their exact conjugates, in the same order, in all four; with an odd n a real mode
        is last. So `Lambda[: n // 2]` and so on are the half that `half_modes=True` asks for. V's columns are
        turned so that B is real and not negative.
    Raises:
        ValueError: an unknown measure or size, or `lmu`, which is not of this form.

    Cost: O(n^3), once. Source: S4, theorem 1. Lesson 03.
    """
    check_measure(measure, n)
    if measure == "lmu":
        raise ValueError(
            "measure: got 'lmu', expected legs, legt, lagt or fourier: its scaling of the coefficients leaves no "
            "normal matrix; legt is the same memory with orthonormal ones"
        )
    A, B = hippo_matrix(measure, n)
    P = _low_rank_part(measure, B)
    normal = A + P @ P.mT
    decay = -0.5 if measure in ("legs", "lagt") else 0.0
    skew = (normal - normal.mT) / 2
    turning, half, rest = _eigenvectors(skew, B) if measure != "fourier" else _turning_pairs(n)
    frequency = torch.cat([turning, -turning, turning.new_zeros(rest.shape[1])])
    V = torch.cat([half, half.conj(), rest], 1)
    Lambda = torch.complex(torch.full_like(frequency, decay), frequency)

    def in_basis(columns: Tensor) -> Tensor:
        """V^H columns, of exactly conjugate pairs."""
        pair = half.mH @ columns.to(V.dtype)
        return torch.cat([pair, pair.conj(), rest.mH @ columns.to(V.dtype)])

    B_real = in_basis(B[:, None])[:, 0].real  # V is turned so: the imaginary part is rounding
    return Lambda, in_basis(P), torch.complex(B_real, torch.zeros_like(B_real)), V


def _low_rank_part(measure: str, B: Tensor) -> Tensor:
    """P (n, r), real, with A + P P^T normal. B holds the values of the basis at now (`fourier`: twice)."""
    if measure == "legt":  # A + A^T reads the basis at both ends of the window: its even and its odd half
        even = torch.arange(B.shape[0]) % 2 == 0
        return torch.stack([B * even, B * ~even], 1)
    return B[:, None] / math.sqrt(2)


def _eigenvectors(skew: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies (n // 2,) > 0, their eigenvectors (n, n // 2), and the real one of frequency 0 if n is odd."""
    n = skew.shape[0]
    frequency, vectors = torch.linalg.eigh(-1j * skew)  # Hermitian: rising, -ω before ω
    overlap = vectors.mH @ B.to(vectors.dtype)
    vectors = vectors * torch.polar(torch.ones_like(frequency), overlap.angle())
    rest = vectors[:, n // 2 : n - n // 2].real
    rest = rest / rest.norm(dim=0)
    return frequency[n - n // 2 :], vectors[:, n - n // 2 :], rest.to(vectors.dtype)


def _turning_pairs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same for `fourier`, whose skew part turns cosine j into sine j and has a frequency 0 twice."""
    eye = torch.eye(n, dtype=torch.complex128)
    half = (eye[:, 0::2] - 1j * eye[:, 1::2]) / math.sqrt(2)
    return 2 * math.pi * torch.arange(n // 2, dtype=torch.float64), half, eye[:, :0]


# --- the recurrence, O(n r) a step ------------------------------------------------------------


class Recurrence(NamedTuple):
    """h_t = diagonal h_{t-1} - left (right^H h_{t-1}) + B_bar x_t, the bilinear rule for A = diag(Λ) - P P^H.

    With `half_modes` the h's of a pair are each other's conjugates: half of the modes are kept, and right^H h
    means its real part (2's are in `left`).
    """

    diagonal: Tensor  # (h, n)
    left: Tensor  # (h, n, r)
    right: Tensor  # (h, n, r)
    B_bar: Tensor  # (h, n)
    half_modes: bool

    def A_bar(self) -> Tensor:
        """The matrix of a step: (h, n, n) complex, or with half_modes (h, 2n, 2n) real on (Re h, Im h)."""
        if not self.half_modes:
            return torch.diag_embed(self.diagonal) - self.left @ self.right.mH
        turn = torch.stack(
            [self.diagonal.real, -self.diagonal.imag, self.diagonal.imag, self.diagonal.real], 1
        )
        blocks = torch.diag_embed(turn).unflatten(1, (2, 2))  # (h, 2, 2, n, n)
        whole = blocks.transpose(2, 3).flatten(3).flatten(1, 2)
        return whole - real_and_imaginary(self.left, 1) @ real_and_imaginary(self.right, 1).mT


def real_and_imaginary(value: Tensor, dim: int) -> Tensor:
    """Both parts of a complex tensor, one after the other along dim."""
    return torch.cat([value.real, value.imag], dim)


@without_autocast
def discretize_nplr(
    Lambda: Tensor, P: Tensor, B: Tensor, dt: Tensor, *, half_modes: bool = False
) -> Recurrence:
    """The bilinear rule for A = diag(Lambda) - P P^H, without an n by n matrix.

    The rule needs R = (I - Δ/2 A)^-1: A_bar = 2 R - I and B_bar = R Δ B. With E = (1 - Δ/2 Λ)^-1, Woodbury's
    identity gives the inverse of a diagonal plus a low rank from an r by r one:

        R = (E^-1 + Δ/2 P P^H)^-1 = E - Δ/2 E P (I + Δ/2 P^H E P)^-1 P^H E

    Args:
        Lambda, B: (h, n), complex. P: (h, n, r), complex. dt: (h,), real, positive.
        half_modes: one of each conjugate pair is given; P^H h then sums both, 2 Re over the half.
    Returns:
        Recurrence, in the dtype that the arguments promote to. Differentiable.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Cost: O(h n r^2). Source: S4, theorem 2, appendix C.2. Lesson 03.
    """
    check_nplr(Arguments(), Lambda, P, B, dt)
    dtype = torch.promote_types(working_dtype(Lambda, P, B, dt), torch.complex64)
    Lambda, P, B = Lambda.to(dtype), P.to(dtype), B.to(dtype)
    dt = dt.to(Lambda.real.dtype)
    pair = 2 if half_modes else 1
    E = 1 / (1 - dt[:, None] / 2 * Lambda)
    left, right = E[..., None] * P, E.conj()[..., None] * P
    weight = (pair * dt / 2)[:, None, None]
    inner = P.mH @ left  # (h, r, r): P^H E P
    inner = inner.real.to(inner.dtype) if half_modes else inner
    eye = torch.eye(P.shape[-1], dtype=inner.dtype, device=inner.device)
    left = weight * torch.linalg.solve(eye + weight * inner, left, left=False)
    R_B = E * B - (left @ _seen(right, B[..., None], half_modes))[..., 0]
    return Recurrence(2 * E - 1, 2 * left, right, dt[:, None] * R_B, half_modes)


def nplr_step(state: Tensor, x: Tensor, recurrence: Recurrence) -> Tensor:
    """One step of the S4 recurrence in O(n r): the state after the input x.

    Args:
        state: (b, h, n), complex; zeros at the start.
        x: (b, h), real, the new input of every channel.
        recurrence: from `discretize_nplr`, made once for all steps.
    Returns:
        (b, h, n), the new state. The output is (C * state).sum(-1).real, or twice that with half_modes.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Source: S4, theorem 2. Lesson 03.
    """
    if not isinstance(recurrence, Recurrence):
        raise ValueError(
            f"recurrence: got {type(recurrence).__name__}, expected what discretize_nplr returns"
        )
    given = Arguments()
    given.parameter("recurrence.diagonal", recurrence.diagonal, "h n", may_be_complex=True)
    given.parameter("state", state, "b h n", may_be_complex=True)
    given.parameter("x", x, "b h")
    rank_one = recurrence.left @ _seen(recurrence.right, state[..., None], recurrence.half_modes)
    return recurrence.diagonal * state - rank_one[..., 0] + recurrence.B_bar * x[..., None]


def _seen(right: Tensor, states: Tensor, half_modes: bool) -> Tensor:
    """right^H states, summed over both modes of each pair (the factor 2 is with `left`)."""
    seen = right.mH @ states
    return seen.real.to(seen.dtype) if half_modes else seen


def check_nplr(given: Arguments, Lambda: Tensor, P: Tensor, B: Tensor, dt: Tensor) -> None:
    """Refuse what is not Lambda, B (h, n), P (h, n, r) and dt (h,)."""
    given.parameter("Lambda", Lambda, "h n", may_be_complex=True)
    given.parameter("P", P, "h n r", may_be_complex=True)
    given.parameter("B", B, "h n", may_be_complex=True)
    given.parameter("dt", dt, "h")
