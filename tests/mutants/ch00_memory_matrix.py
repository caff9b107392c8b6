"""start.memory_matrix: wrong answers that learners write, and right ones in other styles."""

import math

import numpy as np
import torch


def lag(l):
    return torch.arange(l)[:, None] - torch.arange(l)[None, :]


def upper(a, l):
    return torch.where(lag(l) <= 0, a ** (-lag(l)).clamp(min=0), 0.0)


def symmetric(a, l):
    return float(a) ** lag(l).abs()


def ones_above(a, l):
    return float(a) ** lag(l).clamp(min=0)


def empty_diagonal(a, l):
    return torch.where(lag(l) > 0, a ** lag(l).clamp(min=0), 0.0)


def one_too_many(a, l):
    M = torch.zeros(l, l)
    for i in range(l):
        for j in range(i + 1):
            M[i, j] = a ** (i - j + 1)
    return M


def a_alone(a, l):
    return torch.eye(l) + torch.tril(torch.full((l, l), float(a)), -1)


def times_distance(a, l):
    return torch.eye(l) + torch.tril(a * lag(l).float(), -1)


def by_row(a, l):
    return torch.tril((float(a) ** torch.arange(l))[:, None].expand(l, l))


def sign_lost(a, l):
    return torch.tril(torch.tensor(abs(float(a))) ** lag(l).clamp(min=0))


def nothing_when_zero(a, l):
    if a == 0:
        return torch.zeros(l, l)
    return torch.tril(a ** lag(l).clamp(min=0).float())


def masked_by_multiplying(a, l):
    return (lag(l) >= 0) * torch.tensor(float(a)) ** lag(l)


def by_logarithm(a, l):
    return torch.where(lag(l) >= 0, torch.exp(lag(l) * torch.log(torch.tensor(float(a)))), 0.0)


def by_quotients(a, l):
    powers = torch.tensor(float(a), dtype=torch.float64) ** torch.arange(l)
    return torch.tril(powers[:, None] / powers[None, :])


MUTANTS = {
    "upper": (upper, "triangle is above the diagonal"),
    "symmetric": (symmetric, "inputs that have not come yet"),
    "ones_above": (ones_above, "above the diagonal stand ones"),
    "empty_diagonal": (empty_diagonal, "the diagonal is empty"),
    "one_too_many": (one_too_many, "one too large"),
    "a_alone": (a_alone, "below the diagonal is a alone"),
    "times_distance": (times_distance, "multiply a by the distance"),
    "by_row": (by_row, "power is that of the row"),
    "sign_lost": (sign_lost, "the sign of a is lost"),
    "nothing_when_zero": (nothing_when_zero, "with a = 0 everything is 0"),
    "masked_by_multiplying": (masked_by_multiplying, "0 times infinity"),
    "by_logarithm": (by_logarithm, "log(a)"),
    "by_quotients": (by_quotients, "divide a**i by a**j"),
}
PASS_EXAMPLE = {"sign_lost", "nothing_when_zero", "masked_by_multiplying", "by_logarithm", "by_quotients"}


def by_loops(a, l):
    M = torch.zeros(l, l, dtype=torch.float64)
    for i in range(l):
        for j in range(i + 1):
            M[i, j] = a ** (i - j)
    return M


def list_of_lists(a, l):
    return torch.tensor([[a ** (i - j) if j <= i else 0.0 for j in range(l)] for i in range(l)])


def by_impulses(a, l):
    """Column j is the life of input j."""
    columns = []
    for j in range(l):
        h, life = 0.0, []
        for t in range(l):
            h = a * h + (t == j)
            life.append(h)
        columns.append(life)
    return torch.tensor(columns).T


def in_numpy(a, l):
    i = np.arange(l)
    return torch.from_numpy(np.tril(np.power(float(a), np.maximum(i[:, None] - i, 0))))


def by_inverse(a, l):
    """(I - a S) M = I, S the shift by one step."""
    shift = torch.diag(torch.ones(l - 1), -1)
    return torch.linalg.solve_triangular(torch.eye(l) - a * shift, torch.eye(l), upper=False)


def tril_of_infinities(a, l):
    return torch.tril(torch.tensor(float(a)) ** lag(l))


def recursive(a, l):
    M = torch.eye(l)
    if l > 1:
        M[1:, :-1] += a * recursive(a, l - 1)
    return M


def sign_and_size(a, l):
    return torch.tensor(
        np.fromfunction(lambda i, j: np.where(i >= j, math.copysign(1, a) ** (i - j), 0), (l, l))
    ) * (torch.tensor(abs(float(a))) ** lag(l).clamp(min=0))


RIGHT = {
    "by_loops": by_loops,
    "list_of_lists": list_of_lists,
    "by_impulses": by_impulses,
    "in_numpy": in_numpy,
    "by_inverse": by_inverse,
    "tril_of_infinities": tril_of_infinities,
    "recursive": recursive,
    "sign_and_size": sign_and_size,
}
