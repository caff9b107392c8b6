"""The matrix of a linear recurrence with n decaying states, as an operator of torch.

Every implicit attention matrix with a recurrence behind it is a sum over states of one kind of term:

    M[i, j] = sum over n of C_i exp(log_a_{j+1} + ... + log_a_i) B_j     for j <= i, else 0
    M[i, i] += D

An entry that has decayed is the one above it times one gate: S_ij = a_i S_{i-1,j}, S_jj = B_j. So a
backend keeps the n states of a column, takes l n exponentials and l^2 n products a channel, and writes
nothing but M. For the gradients, with dM what arrives from outside and ' for the conjugate:

    dS_ij     = dM_ij C_i' + a_{i+1}' dS_{i+1,j}        the same recurrence, upwards
    dB_j      = dS_jj
    dC_i      = sum over j of dM_ij S_ij'
    dlog_a_i  = sum over j < i of dS_ij S_ij'           no division by a gate: it may be 0
    dD        = sum over i of dM_ii

Arrays are log_a, B, C (r, l, n), D (r,), M (r, l, l), with a row r for every batch and channel, all of
one dtype, real or complex. Lesson 12 draws these matrices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssmcourse.kernels import registration

Matrix = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]
Gradient = Callable[..., list[Tensor]]


def register(name: str, matrix: Matrix, gradient: Gradient) -> Callable[..., Tensor]:
    """Make `matrix` the torch operator `ssmcourse::semiseparable_matrix_{name}`.

    Args:
        matrix: (log_a, B_bar, C, D) -> M, and exp(log_a), which is kept for the gradient.
        gradient: (upstream, outputs, log_a, B_bar, C, D) -> the gradients of those given.
    """
    operator = registration.register(
        f"semiseparable_matrix_{name}",
        "Tensor log_a, Tensor B_bar, Tensor C, Tensor? D",
        matrix,
        gradient,
        lambda log_a, B_bar, C, D: (log_a.new_empty(*log_a.shape[:2], log_a.shape[1]), _like(log_a)),
        results=1,
        kept=1,
    )
    return lambda log_a, B_bar, C, D: operator(log_a, B_bar, C, D)[0]


def _like(log_a: Tensor) -> Tensor:
    return torch.empty_like(log_a, memory_format=torch.contiguous_format)
