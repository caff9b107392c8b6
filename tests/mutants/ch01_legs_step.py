"""hippo.legs_step: wrong answers that learners write, and right ones in other styles."""

import numpy as np
import torch
from torch.linalg import solve


def eye(c):
    return torch.eye(len(c), dtype=c.dtype)


def forward_euler(c, f, k, A, B):
    return c + (A @ c + B * f) / k


def backward_euler(c, f, k, A, B):
    return solve(eye(c) - A / k, c + B * f / k)


def sign_turned(c, f, k, A, B):
    return solve(eye(c) + A / (2 * k), (eye(c) - A / (2 * k)) @ c + B * f / k)


def k_plus_one(c, f, k, A, B):
    return solve(eye(c) - A / (2 * (k + 1)), (eye(c) + A / (2 * (k + 1))) @ c + B * f / (k + 1))


def B_undivided(c, f, k, A, B):
    return solve(eye(c) - A / (2 * k), (eye(c) + A / (2 * k)) @ c + B * f)


def B_twice(c, f, k, A, B):
    return solve(eye(c) - A / (2 * k), (eye(c) + A / (2 * k)) @ c + B / k * f / k)


def B_halved(c, f, k, A, B):
    return solve(eye(c) - A / (2 * k), (eye(c) + A / (2 * k)) @ c + B * f / (2 * k))


def no_half(c, f, k, A, B):
    return solve(eye(c) - A / k, (eye(c) + A / k) @ c + B * f / k)


def fixed_step(c, f, k, A, B):
    return solve(eye(c) - A / 2, (eye(c) + A / 2) @ c + B * f)


def times_k(c, f, k, A, B):
    return solve(eye(c) - k * A / 2, (eye(c) + k * A / 2) @ c + k * B * f)


def B_outside(c, f, k, A, B):
    return solve(eye(c) - A / (2 * k), (eye(c) + A / (2 * k)) @ c) + B * f / k


def change_only(c, f, k, A, B):
    return solve(eye(c) - A / (2 * k), (A @ c + B * f) / k)


def no_sample(c, f, k, A, B):
    return solve(eye(c) - A / (2 * k), (eye(c) + A / (2 * k)) @ c)


def transposed(c, f, k, A, B):
    return solve(eye(c) - A.T / (2 * k), c @ (eye(c) + A / (2 * k)) + B * f / k)


def half_transposed(c, f, k, A, B):
    return solve(eye(c) - A / (2 * k), c @ (eye(c) + A / (2 * k)) + B * f / k)


def B_forgotten(c, f, k, A, B):
    return solve(eye(c) - A / (2 * k), (eye(c) + A / (2 * k)) @ c + f / k)


def entry_by_entry(c, f, k, A, B):
    right = (eye(c) + A / (2 * k)) @ c + B * f / k
    return right / torch.diag(eye(c) - A / (2 * k))


def divided_matrices(c, f, k, A, B):
    below = eye(c) - A / (2 * k)
    return ((eye(c) + A / (2 * k)) / below) @ c + (1 / below) @ B * f / k


def ones_for_identity(c, f, k, A, B):
    return solve(1 - A / (2 * k), (1 + A / (2 * k)) @ c + B * f / k)


def heun(c, f, k, A, B):
    guess = c + (A @ c + B * f) / k
    return c + (A @ (c + guess) / 2 + B * f) / k


def left_side_missing(c, f, k, A, B):
    return c + (A @ c / 2 + B * f) / k


def left_sign(c, f, k, A, B):
    return solve(eye(c) + A / (2 * k), (eye(c) + A / (2 * k)) @ c + B * f / k)


def running_means(c, f, k, A, B):
    a = torch.diagonal(A)
    return ((1 + a / (2 * k)) * c + B * f / k) / (1 - a / (2 * k))


def own_matrices(c, f, k, A, B):
    i = torch.arange(len(c), dtype=c.dtype)
    B = torch.sqrt(2 * i + 1)
    A = -torch.outer(B, B).tril(-1) - torch.diag(i + 1)
    eye = torch.eye(len(c), dtype=c.dtype)
    return torch.linalg.solve(eye - A / (2 * k), (eye + A / (2 * k)) @ c + B * f / k)


MUTANTS = {
    "own_matrices": (own_matrices, "whatever it is given"),
    "forward_euler": (forward_euler, "forward Euler"),
    "backward_euler": (backward_euler, "backward Euler"),
    "sign_turned": (sign_turned, "sign of A is turned"),
    "k_plus_one": (k_plus_one, "k is one too large"),
    "B_undivided": (B_undivided, "the 1/k of B f is missing"),
    "B_twice": (B_twice, "divided by k twice"),
    "B_halved": (B_halved, "B f is halved"),
    "no_half": (no_half, "the 1/2 is missing"),
    "fixed_step": (fixed_step, "1/k is missing everywhere"),
    "times_k": (times_k, "multiply by k"),
    "B_outside": (B_outside, "added after the system is solved"),
    "change_only": (change_only, "the change alone"),
    "no_sample": (no_sample, "does not come in"),
    "transposed": (transposed, "A is transposed"),
    "half_transposed": (half_transposed, "old numbers transposed"),
    "B_forgotten": (B_forgotten, "B is left out"),
    "entry_by_entry": (entry_by_entry, "the diagonal of I - A/(2k) alone"),
    "divided_matrices": (divided_matrices, "by the matrix I - A/(2k) entry by entry"),
    "ones_for_identity": (ones_for_identity, "adds 1 to every entry"),
    "heun": (heun, "Heun's method"),
    "left_side_missing": (left_side_missing, "the left side is missing"),
    "left_sign": (left_sign, "the sign on the left is turned"),
    "running_means": (running_means, "only the diagonal of A is used"),
}
PASS_EXAMPLE = {
    "ones_for_identity",
    "transposed",
    "half_transposed",
    "B_forgotten",
    "entry_by_entry",
    "divided_matrices",
    "running_means",
}


def by_inverse(c, f, k, A, B):
    M = torch.linalg.inv(eye(c) - A / (2 * k))
    return M @ (c + (A @ c / 2 + B * f) / k)


def scaled_by_2k(c, f, k, A, B):
    return solve(2 * k * eye(c) - A, 2 * k * c + A @ c + 2 * f * B)


def the_change_added(c, f, k, A, B):
    return c + solve(eye(c) - A / (2 * k), (A @ c + B * f) / k)


def triangular(c, f, k, A, B):
    right = c + A @ c / (2 * k) + B * f / k
    return torch.linalg.solve_triangular(eye(c) - A / (2 * k), right[:, None], upper=False)[:, 0]


def in_numpy(c, f, k, A, B):
    a, I = A.numpy(), np.eye(len(c))
    new = np.linalg.solve(I - 0.5 / k * a, (I + 0.5 / k * a) @ c.numpy() + B.numpy() * float(f) / k)
    return torch.as_tensor(new)


def row_by_row(c, f, k, A, B):
    """Forward substitution: row i needs only the new numbers above it."""
    new = []
    for i in range(len(c)):
        known = A[i, :i] @ torch.stack(new) if new else 0.0
        slope = (A[i] @ c + known) / 2 + B[i] * f
        new.append((c[i] + slope / k) / (1 - A[i, i] / (2 * k)))
    return torch.stack(new)


def two_halves(c, f, k, A, B):
    """Half a step of forward Euler, then half a step of backward Euler."""
    middle = c + (A @ c + B * f) / (2 * k)
    return solve(eye(c) - A / (2 * k), middle + B * f / (2 * k))


RIGHT = {
    "by_inverse": by_inverse,
    "scaled_by_2k": scaled_by_2k,
    "the_change_added": the_change_added,
    "triangular": triangular,
    "in_numpy": in_numpy,
    "row_by_row": row_by_row,
    "two_halves": two_halves,
}
