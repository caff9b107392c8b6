"""hippo.reconstruct_window: wrong answers that learners write, and right ones in other styles."""

import math

import numpy as np
import torch


def basis(n, s, factor=lambda k: math.sqrt(2 * k + 1), shift=lambda s: 2 * s - 1):
    """(p, n) by the three-term recurrence."""
    z = shift(s)
    P = [torch.ones_like(z), z]
    while len(P) < n:
        k = len(P)
        P.append(((2 * k - 1) * z * P[-1] - (k - 1) * P[-2]) / k)
    return torch.stack([factor(k) * P[k] for k in range(n)], dim=1)


def backwards(c, points):
    return basis(len(c), points, shift=lambda s: 1 - 2 * s) @ c


def averaged(c, points):
    return (basis(len(c), points) * c).mean(1)


def no_root(c, points):
    return basis(len(c), points, factor=lambda k: 1.0) @ c


def square_of_the_root(c, points):
    return basis(len(c), points, factor=lambda k: 2 * k + 1) @ c


def divided_by_the_root(c, points):
    return basis(len(c), points, factor=lambda k: 1 / math.sqrt(2 * k + 1)) @ c


def not_shifted(c, points):
    return basis(len(c), points, shift=lambda s: s) @ c


def reversed_numbers(c, points):
    return basis(len(c), points) @ c.flip(0)


def counted_from_one(c, points):
    return basis(len(c), points, factor=lambda k: math.sqrt(2 * k + 3)) @ c


def own_points(c, points):
    return basis(len(c), torch.linspace(0, 1, len(points))) @ c


def stretched_points(c, points):
    filled = (points - points.min()) / (points.max() - points.min())
    return basis(len(c), filled) @ c


def plain_powers(c, points):
    z = 2 * points - 1
    return sum(c[k] * math.sqrt(2 * k + 1) * z**k for k in range(len(c)))


def chebyshev(c, points):
    angle = torch.arccos(2 * points - 1)
    return sum(c[k] * math.sqrt(2 * k + 1) * torch.cos(k * angle) for k in range(len(c)))


def lost_division_in_the_recurrence(c, points):
    z = 2 * points - 1
    before, P, f = torch.ones_like(z), z, c[0] * torch.ones_like(z)
    for k in range(1, len(c)):
        f = f + c[k] * math.sqrt(2 * k + 1) * P
        before, P = P, (2 * k + 1) * z * P - k * before
    return f


def needs_two_numbers(c, points):
    z = 2 * points - 1
    f, before, P = c[0] + c[1] * math.sqrt(3) * z, torch.ones_like(z), z
    for k in range(2, len(c)):
        before, P = P, ((2 * k - 1) * z * P - (k - 1) * before) / k
        f = f + c[k] * math.sqrt(2 * k + 1) * P
    return f


def squeezed(c, points):
    return (basis(len(c), points) @ c[:, None]).squeeze()


MUTANTS = {
    "backwards": (backwards, "time runs backwards"),
    "averaged": (averaged, "the sum is divided by n"),
    "no_root": (no_root, "factor sqrt(2k+1) is missing"),
    "square_of_the_root": (square_of_the_root, "2k+1 without the root"),
    "divided_by_the_root": (divided_by_the_root, "you divide by sqrt(2k+1)"),
    "not_shifted": (not_shifted, "s is not shifted"),
    "reversed_numbers": (reversed_numbers, "c is taken in reverse"),
    "counted_from_one": (counted_from_one, "k is counted from 1"),
    "own_points": (own_points, "points is not looked at"),
    "stretched_points": (stretched_points, "stretched to fill 0 to 1"),
    "plain_powers": (plain_powers, "plain powers"),
    "chebyshev": (chebyshev, "Chebyshev"),
    "lost_division_in_the_recurrence": (lost_division_in_the_recurrence, "divide by k + 1"),
    "needs_two_numbers": (needs_two_numbers, "IndexError"),
    "squeezed": (squeezed, "has shape (); expected (1,)"),
}
PASS_EXAMPLE = {
    "own_points",
    "stretched_points",
    "plain_powers",
    "chebyshev",
    "lost_division_in_the_recurrence",
    "needs_two_numbers",
    "squeezed",
}


def one_product(c, points):
    return basis(len(c), points) @ c


def in_numpy(c, points):
    scaled = c.numpy() * np.sqrt(2 * np.arange(len(c)) + 1)
    return torch.from_numpy(np.polynomial.legendre.legval(2 * points.numpy() - 1, scaled))


def by_loops(c, points):
    out = torch.zeros(len(points))
    for i, s in enumerate(points):
        z = 2 * s.item() - 1
        P, after = 1.0, z
        for k in range(len(c)):
            out[i] += (c[k] * math.sqrt(2 * k + 1) * P).item()
            P, after = after, ((2 * k + 3) * z * after - (k + 1) * P) / (k + 2)
    return out


def clenshaw(c, points):
    """The recurrence run from the finest number down."""
    z = 2 * points - 1
    b1, b2 = torch.zeros_like(z), torch.zeros_like(z)
    for k in range(len(c) - 1, -1, -1):
        scaled = c[k] * math.sqrt(2 * k + 1)
        b1, b2 = scaled + (2 * k + 1) / (k + 1) * z * b1 - (k + 1) / (k + 2) * b2, b1
    return b1


def by_einsum(c, points):
    return torch.einsum("n,pn->p", c, basis(len(c), points))


def accumulated(c, points):
    f = 0
    for k, c_k in enumerate(c):
        f = f + c_k * (2 * k + 1) ** 0.5 * torch.special.legendre_polynomial_p(2 * points - 1, k)
    return f


RIGHT = {
    "one_product": one_product,
    "in_numpy": in_numpy,
    "by_loops": by_loops,
    "clenshaw": clenshaw,
    "by_einsum": by_einsum,
    "accumulated": accumulated,
}
