"""hippo.legt_matrix: wrong answers that learners write, and right ones in other styles."""

import math

import numpy as np
import torch


def parts(n):
    """Row numbers, column numbers, roots of 2k + 1, and the signs (-1)^(i-k), in float64."""
    index = torch.arange(n, dtype=torch.float64)
    i, k = index[:, None], index[None, :]
    return i, k, torch.sqrt(2 * index + 1), (-1.0) ** (i - k)


def right(n, theta):
    i, k, root, sign = parts(n)
    return -torch.outer(root, root) * torch.where(i >= k, 1.0, sign) / theta, root / theta


def signs_below(n, theta):
    i, k, root, sign = parts(n)
    return -torch.outer(root, root) * torch.where(i < k, 1.0, sign) / theta, root / theta


def plus(n, theta):
    A, B = right(n, theta)
    return -A, B


def no_signs(n, theta):
    _, _, root, _ = parts(n)
    return -torch.outer(root, root) / theta, root / theta


def signs_everywhere(n, theta):
    _, _, root, sign = parts(n)
    return -torch.outer(root, root) * sign / theta, root / theta


def zero_above(n, theta):
    A, B = right(n, theta)
    return A.tril(), B


def no_theta(n, theta):
    return right(n, 1.0)


def times_theta(n, theta):
    return right(n, 1 / theta)


def no_theta_in_B(n, theta):
    return right(n, theta)[0], right(n, 1.0)[1]


def memory_unit(n, theta):
    """Voelker's matrix."""
    i, k, _, sign = parts(n)
    A = (2 * i + 1) * torch.where(i < k, -1.0, -sign)
    return A / theta, (2 * i[:, 0] + 1) * (-1) ** i[:, 0] / theta


def no_roots(n, theta):
    i, k, root, sign = parts(n)
    return -(2 * i + 1) * (2 * k + 1) * torch.where(i >= k, 1.0, sign) / theta, root / theta


def no_root_in_B(n, theta):
    A, B = right(n, theta)
    return A, theta * B**2


def signs_in_B(n, theta):
    A, B = right(n, theta)
    return A, B * (-1) ** torch.arange(n)


def diagonal_of_legs(n, theta):
    A, B = right(n, theta)
    return A - torch.diag(torch.diag(A)) - torch.diag(torch.arange(1.0, n + 1)) / theta, B


def minus_above(n, theta):
    i, k, root, _ = parts(n)
    return -torch.outer(root, root) * torch.where(i >= k, 1.0, -1.0) / theta, root / theta


def signs_by_column(n, theta):
    i, k, root, _ = parts(n)
    return -torch.outer(root, root) * torch.where(i >= k, 1.0, (-1.0) ** k) / theta, root / theta


def divided_by_n(n, theta):
    return right(n, n)


def squeezed(n, theta):
    A, B = right(n, theta)
    return A.squeeze(), B.squeeze()


MUTANTS = {
    "signs_below": (signs_below, "wrong side of the diagonal"),
    "plus": (plus, "minus of A is missing"),
    "no_signs": (no_signs, "the signs of A are missing"),
    "signs_everywhere": (signs_everywhere, "alternate below the diagonal too"),
    "zero_above": (zero_above, "above the diagonal A is 0"),
    "no_theta": (no_theta, "theta is missing: both"),
    "times_theta": (times_theta, "multiply by theta: both"),
    "no_theta_in_B": (no_theta_in_B, "theta is missing in B"),
    "memory_unit": (memory_unit, "Legendre Memory Unit's scaling"),
    "no_roots": (no_roots, "the square root of A is missing"),
    "no_root_in_B": (no_root_in_B, "B has the root of 2i+1"),
    "signs_in_B": (signs_in_B, "B has no signs"),
    "diagonal_of_legs": (diagonal_of_legs, "diagonal of A is -(i+1)"),
    "minus_above": (minus_above, "all signs of A are turned"),
    "signs_by_column": (signs_by_column, "signs go by column"),
    "divided_by_n": (divided_by_n, "you divide by n"),
    "squeezed": (squeezed, "A has shape (); expected (1, 1)"),
}
PASS_EXAMPLE = {"minus_above", "signs_by_column", "divided_by_n", "squeezed"}


def by_loops(n, theta):
    A, B = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        B[i] = math.sqrt(2 * i + 1) / theta
        for k in range(n):
            sign = 1 if i >= k else (-1) ** (k - i)
            A[i, k] = -math.sqrt((2 * i + 1) * (2 * k + 1)) * sign / theta
    return A, B


def in_numpy(n, theta):
    q = np.arange(n, dtype=float)
    i, k = np.meshgrid(q, q, indexing="ij")
    R = np.sqrt(2 * q + 1)
    A = np.where(i < k, (-1.0) ** (i - k), 1) * R[None, :] * R[:, None]
    return torch.from_numpy(-A / theta), torch.from_numpy(R / theta)


def two_triangles(n, theta):
    _, _, root, sign = parts(n)
    outer = torch.einsum("n,k->nk", root, root)
    return -(outer.tril() + (outer * sign).triu(1)) / theta, root / theta


def limits_and_ruler(n, theta):
    """The derivation of step 5: what leaves the window, and how the basis slides."""
    n_, k, root, sign = parts(n)
    leaving = -torch.outer(root, root) * sign
    ruler = torch.where((n_ > k) & ((n_ - k) % 2 == 1), -2 * torch.outer(root, root), 0.0)
    return (leaving + ruler) / theta, root / theta


def from_the_memory_unit(n, theta):
    A, _ = memory_unit(n, theta)
    i, _, root, _ = parts(n)
    S = (-1) ** i[:, 0] / root
    return S[:, None] * A / S, root / theta


def cosines(n, theta):
    i, k, root, _ = parts(n)
    scale = torch.tensor(theta, dtype=torch.float64).reciprocal()
    return -scale * torch.outer(root, root) * torch.cos(math.pi * (k - i).clamp(min=0)), scale * root


RIGHT = {
    "by_loops": by_loops,
    "in_numpy": in_numpy,
    "two_triangles": two_triangles,
    "limits_and_ruler": limits_and_ruler,
    "from_the_memory_unit": from_the_memory_unit,
    "cosines": cosines,
}
