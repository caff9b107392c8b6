"""hippo.project_window: wrong answers that learners write, and right ones in other styles."""

import math

import numpy as np
import torch


def basis(n, s, factor=lambda k: math.sqrt(2 * k + 1), shift=lambda s: 2 * s - 1):
    """(l, n) by the three-term recurrence."""
    z = shift(s)
    P = [torch.ones_like(z), z]
    while len(P) < n:
        k = len(P)
        P.append(((2 * k - 1) * z * P[-1] - (k - 1) * P[-2]) / k)
    return torch.stack([factor(k) * P[k] for k in range(n)], dim=1)


def middles(f):
    return (torch.arange(len(f), dtype=f.dtype) + 0.5) / len(f)


def left_ends(f, n):
    return basis(n, torch.arange(len(f)) / len(f)).T @ f / len(f)


def both_ends(f, n):
    return basis(n, torch.linspace(0, 1, len(f))).T @ f / len(f)


def summed(f, n):
    return basis(n, middles(f)).T @ f


def no_root(f, n):
    return basis(n, middles(f), factor=lambda k: 1.0).T @ f / len(f)


def square_of_the_root(f, n):
    return basis(n, middles(f), factor=lambda k: 2 * k + 1).T @ f / len(f)


def not_shifted(f, n):
    return basis(n, middles(f), shift=lambda s: s).T @ f / len(f)


def half_shifted(f, n):
    return basis(n, middles(f), shift=lambda s: s - 0.5).T @ f / len(f)


def backwards(f, n):
    return basis(n, 1 - middles(f)).T @ f / len(f)


def finest_first(f, n):
    return (basis(n, middles(f)).T @ f / len(f)).flip(0)


def least_squares(f, n):
    return torch.linalg.lstsq(basis(n, middles(f)), f[:, None]).solution[:, 0]


def other_interval(f, n):
    return basis(n, middles(f), factor=lambda k: math.sqrt(k + 0.5)).T @ f / len(f)


def plain_powers(f, n):
    z = 2 * middles(f) - 1
    return torch.stack([math.sqrt(2 * k + 1) * (z**k * f).mean() for k in range(n)])


def chebyshev(f, n):
    angle = torch.arccos(2 * middles(f) - 1)
    return torch.stack([math.sqrt(2 * k + 1) * (torch.cos(k * angle) * f).mean() for k in range(n)])


def lost_factor_in_the_recurrence(f, n):
    z = 2 * middles(f) - 1
    P = [torch.ones_like(z), z]
    for k in range(1, n):
        P.append(((2 * k + 1) * z * P[k] - P[k - 1]) / (k + 1))
    return torch.stack([math.sqrt(2 * k + 1) * (P[k] * f).mean() for k in range(n)])


def two_numbers_at_least(f, n):
    z = 2 * middles(f) - 1
    c = [f.mean(), math.sqrt(3) * (z * f).mean()]
    before, P = torch.ones_like(z), z
    for k in range(2, n):
        before, P = P, ((2 * k - 1) * z * P - (k - 1) * before) / k
        c.append(math.sqrt(2 * k + 1) * (P * f).mean())
    return torch.stack(c)


def squeezed(f, n):
    return (f[None] @ basis(n, middles(f))).squeeze() / len(f)


MUTANTS = {
    "left_ends": (left_ends, "left ends"),
    "both_ends": (both_ends, "both ends (linspace)"),
    "summed": (summed, "the integral is a mean"),
    "no_root": (no_root, "factor sqrt(2k+1) is missing"),
    "square_of_the_root": (square_of_the_root, "2k+1 without the root"),
    "not_shifted": (not_shifted, "s is not shifted"),
    "half_shifted": (half_shifted, "shifted and not stretched"),
    "backwards": (backwards, "time runs backwards"),
    "finest_first": (finest_first, "finest first"),
    "least_squares": (least_squares, "least-squares fit"),
    "other_interval": (other_interval, "sqrt(k + 1/2)"),
    "plain_powers": (plain_powers, "plain powers"),
    "chebyshev": (chebyshev, "Chebyshev"),
    "lost_factor_in_the_recurrence": (lost_factor_in_the_recurrence, "the k is missing"),
    "two_numbers_at_least": (two_numbers_at_least, "has shape (2,); expected (1,)"),
    "squeezed": (squeezed, "has shape (); expected (1,)"),
}
PASS_EXAMPLE = {
    "plain_powers",
    "chebyshev",
    "lost_factor_in_the_recurrence",
    "two_numbers_at_least",
    "squeezed",
}


def one_product(f, n):
    return basis(n, middles(f)).T @ f / len(f)


def by_loops(f, n):
    l, c = len(f), []
    for k in range(n):
        total = 0.0
        for i in range(l):
            z = 2 * (i + 0.5) / l - 1
            P, after = 1.0, z
            for m in range(1, k + 1):
                P, after = after, ((2 * m + 1) * z * after - m * P) / (m + 1)
            total += float(f[i]) * P
        c.append(math.sqrt(2 * k + 1) * total / l)
    return torch.tensor(c)


def in_numpy(f, n):
    z = np.linspace(-1 + 1 / len(f), 1 - 1 / len(f), len(f))
    G = np.polynomial.legendre.legvander(z, n - 1) * np.sqrt(2 * np.arange(n) + 1)
    return torch.tensor(G.T @ f.numpy() / len(f))


def by_einsum(f, n):
    return torch.einsum("ik,i->k", basis(n, middles(f)), f).div(len(f))


def torch_polynomials(f, n):
    z = 2 * middles(f) - 1
    return torch.stack(
        [(2 * k + 1) ** 0.5 * torch.mean(torch.special.legendre_polynomial_p(z, k) * f) for k in range(n)]
    )


def in_float32(f, n):
    return one_product(f.float(), n)


RIGHT = {
    "one_product": one_product,
    "by_loops": by_loops,
    "in_numpy": in_numpy,
    "by_einsum": by_einsum,
    "torch_polynomials": torch_polynomials,
    "in_float32": in_float32,
}
