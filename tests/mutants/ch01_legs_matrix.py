"""hippo.legs_matrix: wrong answers that learners write, and right ones in other styles."""

import math

import numpy as np
import torch


def parts(n, first=0):
    """Row and column numbers, and the roots of 2k + 1, in float64."""
    index = torch.arange(first, n + first, dtype=torch.float64)
    return index[:, None], index[None, :], torch.sqrt(2 * index + 1)


def plus(n):
    i, _, B = parts(n)
    return torch.outer(B, B).tril(-1) + torch.diag(i[:, 0] + 1), B


def upper(n):
    i, _, B = parts(n)
    return -torch.outer(B, B).triu(1) - torch.diag(i[:, 0] + 1), B


def full(n):
    i, k, B = parts(n)
    return -torch.where(i == k, i + 1, torch.outer(B, B)), B


def diagonal_n(n):
    i, _, B = parts(n)
    return -torch.outer(B, B).tril(-1) - torch.diag(i[:, 0]), B


def formula_on_the_diagonal(n):
    _, _, B = parts(n)
    return -torch.outer(B, B).tril(), B


def diagonal_twice(n):
    i, _, B = parts(n)
    return -torch.outer(B, B).tril() - torch.diag(i[:, 0] + 1), B


def minus_before_the_roots_only(n):
    i, _, B = parts(n)
    return -torch.outer(B, B).tril(-1) + torch.diag(i[:, 0] + 1), B


def no_roots(n):
    i, k, B = parts(n)
    return -((2 * i + 1) * (2 * k + 1)).tril(-1) - torch.diag(i[:, 0] + 1), B


def no_root_in_B(n):
    i, _, B = parts(n)
    return -torch.outer(B, B).tril(-1) - torch.diag(i[:, 0] + 1), B**2


def ones_in_B(n):
    i, _, B = parts(n)
    return -torch.outer(B, B).tril(-1) - torch.diag(i[:, 0] + 1), torch.ones_like(B)


def from_one(n):
    i, _, B = parts(n, first=1)
    return -torch.outer(B, B).tril(-1) - torch.diag(i[:, 0] + 1), B


def plus_and_no_root_in_B(n):
    A, B = plus(n)
    return A, B**2


def rounded(n):
    index = torch.arange(n, dtype=torch.float32)
    B = torch.sqrt(2 * index + 1)
    return (-torch.outer(B, B).tril(-1) - torch.diag(index + 1)).double(), B.double()


def one_root_only(n):
    i, k, B = parts(n)
    return torch.where(i > k, -torch.sqrt(2 * i + 1), 0.0) - torch.diag(i[:, 0] + 1), B


def first_diagonal_only(n):
    i, _, B = parts(n)
    return -torch.diag(B[1:] * B[:-1], -1) - torch.diag(i[:, 0] + 1), B


def squeezed(n):
    i, _, B = parts(n)
    return (-torch.outer(B, B).tril(-1) - torch.diag(i[:, 0] + 1)).squeeze(), B


def lost_brackets(n):
    i, k, B = parts(n)
    return -torch.where(i > k, torch.sqrt(2 * i + 1 * 2 * k + 1), 0.0) - torch.diag(i[:, 0] + 1), B


MUTANTS = {
    "plus": (plus, "minus of A is missing"),
    "upper": (upper, "A is turned over"),
    "full": (full, "above the diagonal of A must be 0"),
    "diagonal_n": (diagonal_n, "you have -i"),
    "formula_on_the_diagonal": (formula_on_the_diagonal, "you have -(2i+1)"),
    "diagonal_twice": (diagonal_twice, "diagonal of A is there twice"),
    "minus_before_the_roots_only": (minus_before_the_roots_only, "diagonal of A has the wrong sign"),
    "no_roots": (no_roots, "the square root is missing below"),
    "no_root_in_B": (no_root_in_B, "B has the root of 2i+1"),
    "ones_in_B": (ones_in_B, "not all ones"),
    "from_one": (from_one, "indices of A run from 1"),
    "plus_and_no_root_in_B": (
        plus_and_no_root_in_B,
        "A is missing: it belongs inside A, and its diagonal is -1, -2, .... And B has",
    ),
    "rounded": (rounded, "rounded to float32"),
    "one_root_only": (one_root_only, "factor sqrt(2k+1) is missing"),
    "first_diagonal_only": (first_diagonal_only, "only the first diagonal below"),
    "squeezed": (squeezed, "A has shape (); expected (1, 1)"),
    "lost_brackets": (lost_brackets, "brackets are lost"),
}
PASS_EXAMPLE = {"one_root_only", "first_diagonal_only", "squeezed", "lost_brackets"}


def by_loops(n):
    A, B = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        B[i] = math.sqrt(2 * i + 1)
        for k in range(i):
            A[i, k] = -math.sqrt((2 * i + 1) * (2 * k + 1))
        A[i, i] = -(i + 1)
    return A, B


def as_in_s4(n):
    P = torch.sqrt(1 + 2 * torch.arange(n, dtype=torch.double))
    A = P[:, None] * P[None, :]
    A = torch.tril(A) - torch.diag(torch.arange(n, dtype=torch.double))
    return -A, P


def in_numpy(n):
    q = np.arange(n, dtype=np.float64)
    r = 2 * q + 1
    M = -(np.where(q[:, None] >= q, r, 0) - np.diag(q))
    T = np.sqrt(np.diag(r))
    return torch.from_numpy(T @ M @ np.linalg.inv(T)), torch.from_numpy(np.sqrt(r))


def list_of_lists(n):
    rows = [
        [-(((2 * i + 1) * (2 * k + 1)) ** 0.5) if i > k else -(i + 1.0) if i == k else 0.0 for k in range(n)]
        for i in range(n)
    ]
    return [torch.tensor(rows), torch.tensor([(2 * i + 1) ** 0.5 for i in range(n)])]


def recursive(n):
    if n == 1:
        return torch.tensor([[-1.0]]).double(), torch.ones(1).double()
    A, B = recursive(n - 1)
    B = torch.cat([B, B.new_tensor([2 * n - 1]).sqrt()])
    row = torch.cat([-B[-1] * B[:-1], B.new_tensor([-n])])
    return torch.cat([torch.nn.functional.pad(A, (0, 1)), row[None]]), B


def from_the_default_dtype(n):
    """float64 because the notebook made it the default."""
    B = (2 * torch.arange(n) + 1).sqrt()
    return -(torch.outer(B, B).tril(-1) + torch.diag(torch.arange(n) + 1)), B


RIGHT = {
    "by_loops": by_loops,
    "as_in_s4": as_in_s4,
    "in_numpy": in_numpy,
    "list_of_lists": list_of_lists,
    "recursive": recursive,
    "from_the_default_dtype": from_the_default_dtype,
}
