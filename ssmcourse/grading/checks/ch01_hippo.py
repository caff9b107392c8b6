"""Checks of chapter 01, first half: the best numbers for a past, and the past drawn from them.

The oracle is numpy.polynomial.legendre. Each known mistake is the right formula with one thing
changed: where the samples sit, how the argument is shifted, how a polynomial is scaled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.polynomial import chebyshev, legendre
from torch import Tensor

from ssmcourse.grading.registry import exercise
from ssmcourse.grading.trial import Trial

Numbers = Callable[[int], np.ndarray]
ANSWERS = ("ssmcourse.hippo_project", "ssmcourse.hippo_reconstruct")


def _root(n: int) -> np.ndarray:
    return np.sqrt(2 * np.arange(n) + 1)


def _middles(l: int) -> np.ndarray:
    return (np.arange(l) + 0.5) / l


def _basis(
    n: int,
    s: np.ndarray,
    *,
    shift: Callable[[np.ndarray], np.ndarray] = lambda s: 2 * s - 1,
    scale: Numbers = _root,
    polynomials: Callable[[np.ndarray, int], np.ndarray] = legendre.legvander,
) -> np.ndarray:
    """sqrt(2k + 1) P_k(2s - 1): (p,) -> (p, n)."""
    return polynomials(shift(s), n - 1) * scale(n)


def _project(f: Tensor, n: int, *, where: Numbers = _middles, **basis) -> Tensor:
    past = f.detach().numpy()
    return torch.from_numpy(_basis(n, where(len(past)), **basis).T @ past / len(past))


def _draw(c: Tensor, points: Tensor, **basis) -> Tensor:
    return torch.from_numpy(_basis(len(c), points.detach().numpy(), **basis) @ c.detach().numpy())


def _careless(z: np.ndarray, degree: int, *, weight: bool = False) -> np.ndarray:
    """The Legendre recurrence (k + 1) P_{k+1} = (2k + 1) z P_k - k P_{k-1}, with a factor forgotten:
    the k before P_{k-1}, or (weight) the division by k + 1."""
    P = [np.ones_like(z), z]
    for k in range(1, degree):
        P.append((2 * k + 1) * z * P[k] - (k if weight else 1) * P[k - 1])
        P[-1] /= 1 if weight else k + 1
    return np.stack(P[: degree + 1], axis=-1)


SHIFTS = {
    "s is not shifted: P_k lives on [-1, 1], so it takes z = 2s - 1, not s": lambda s: s,
    "s is shifted and not stretched: z = 2s - 1 runs from -1 to 1, s - 1/2 only halfway": lambda s: s - 0.5,
    "s is shifted twice: legendre_basis takes points in [0, 1] and makes z = 2s - 1 itself": lambda s: (
        4 * s - 3
    ),
}
SCALES = {
    "the factor sqrt(2k+1) is missing: g_k is sqrt(2k+1) P_k": np.ones,
    "g_k has the factor sqrt(2k+1), and you took 2k+1 without the root": lambda n: _root(n) ** 2,
    "you divide by sqrt(2k+1); g_k is sqrt(2k+1) times P_k": lambda n: 1 / _root(n),
    "the factor is sqrt(k + 1/2), which normalises on [-1, 1]; on [0, 1] it is sqrt(2k+1)": lambda n: (
        _root(n) / np.sqrt(2)
    ),
    "k is counted from 1 in the factor: the first is sqrt(1), that of P_0": lambda n: _root(n + 1)[1:],
}
POLYNOMIALS = {
    "the basis is 1, z, z**2, ...: plain powers are not orthogonal. From k = 2 on P_k differs, "
    "P_2 = (3z**2 - 1)/2": lambda z, degree: np.vander(z, degree + 1, increasing=True),
    "these are Chebyshev polynomials (2z**2 - 1, ...), not Legendre's": chebyshev.chebvander,
    "from P_2 on the recurrence is off: the last term is k P_{k-1}, and the k is missing": _careless,
    "from P_2 on the recurrence is off: divide by k + 1": lambda z, degree: _careless(z, degree, weight=True),
    "the polynomials begin with P_1: the first is P_0 = 1": lambda z, degree: legendre.legvander(
        z, degree + 1
    )[:, 1:],
}


def _basis_mistakes(mistake: Callable[..., None]) -> None:
    """What can go wrong with the basis, in either direction: one thing, or two at once."""
    groups = (("shift", SHIFTS), ("scale", SCALES), ("polynomials", POLYNOMIALS))
    for part, wrongs in groups:
        for words, wrong in wrongs.items():
            mistake(words, **{part: wrong})
    for i, (part, wrongs) in enumerate(groups):
        for other_part, other_wrongs in groups[i + 1 :]:
            for words, wrong in wrongs.items():
                for other_words, other in other_wrongs.items():
                    mistake(f"{words}. And {other_words}", **{part: wrong, other_part: other})


@exercise(
    "hippo.project_window",
    chapter="01",
    title="The best numbers for a past",
    difficulty=2,
    minutes=10,
    signature="project_window(f: Tensor, n: int) -> Tensor",
    unlocks="step 2 of the lesson, from scratch",
    forbidden=ANSWERS,
    hints=(
        "Each number asks one question: how much of g_k is in f? Multiply the two sample by sample and "
        "average. Where on [0, 1] does sample i sit?",
        "The middles are s = (torch.arange(l) + 0.5) / l. legendre_basis(n, s) has the shape (l, n), so one "
        "product with f makes all n sums; then divide by l.",
        "l = len(f)\n"
        "s = (torch.arange(l, dtype=f.dtype) + 0.5) / l\n"
        "G = legendre_basis(n, s)      # (l, n)\n"
        "return ...                    # the sum over samples of G[i, k] * f[i], divided by l",
    ),
)
def check_project_window(trial: Trial) -> None:
    torch.set_default_dtype(torch.float64)  # as the notebook does; the judge puts back what was there

    def mistake(words: str, **changed) -> None:
        trial.mistake(words, lambda f, n: _project(f, n, **changed))

    mistake(
        "the samples sit at the left ends i/l of their steps: take the middles, (i + 1/2)/l",
        where=lambda l: np.arange(l) / l,
    )
    mistake(
        "the samples run from 0 to 1 with both ends (linspace): take the middles of l steps, (i + 1/2)/l",
        where=lambda l: np.linspace(0, 1, l),
    )
    mistake(
        "the samples sit at the right ends (i + 1)/l of their steps: take the middles, (i + 1/2)/l",
        where=lambda l: (np.arange(l) + 1) / l,
    )
    trial.mistake("you sum, and the integral is a mean: divide by l", lambda f, n: len(f) * _project(f, n))
    trial.mistake(
        "the divisor is wrong: the mean over the samples divides by l, not by n and not by sqrt(l)",
        lambda f, n: _project(f, n) * len(f) / n,
    )
    trial.mistake(
        "time runs backwards: f[0] is the oldest sample and sits near s = 0 (every second number has the "
        "wrong sign)",
        lambda f, n: _project(f.flip(0), n),
    )
    mistake(
        "the samples sit at (i - 1/2)/l: counted from 0, the middles are (i + 1/2)/l",
        where=lambda l: (np.arange(l) - 0.5) / l,
    )
    mistake(
        "the middles are divided by l - 1: there are l steps, (i + 1/2)/l",
        where=lambda l: (np.arange(l) + 0.5) / max(l - 1, 1),
    )
    mistake("brackets are lost: i + 0.5/l is not (i + 0.5)/l", where=lambda l: np.arange(l) + 0.5 / l)
    trial.mistake(
        "the numbers come finest first: c[0] belongs to g_0, the mean", lambda f, n: _project(f, n).flip(0)
    )
    trial.mistake(
        "this is the least-squares fit through the samples; the exercise asks for the mean of f(s_i) g_k(s_i), "
        "in which no number depends on how many others are kept",
        _fit,
    )
    trial.mistake(
        "this is the least-squares fit by P_k: take the mean of f(s_i) g_k(s_i), with g_k = sqrt(2k+1) P_k",
        lambda f, n: _fit(f, n) * torch.from_numpy(_root(n)),
    )
    _basis_mistakes(mistake)

    ones, step = (torch.tensor(v) for v in ([1.0, 1.0, 1.0, 1.0], [0.0, 1.0]))
    trial.example(ones, 2, expect=torch.tensor([1.0, 0.0]), any_float=True)
    with trial.layer("the second example: a step up has a slope"):
        trial.compare((step, 2), torch.tensor([0.5, 3**0.5 / 4]), any_float=True)
    with trial.layer("random pasts"):
        for l, n in ((7, 2), (50, 3), (200, 8)):
            f = trial.randn(l)
            trial.compare((f, n), _project(f, n), terms=l, any_float=True)
    with trial.layer("one number, n = 1: the mean"):
        f = trial.randn(31)
        trial.compare((f, 1), f.mean()[None], terms=31, any_float=True)
    with trial.layer("one sample, l = 1"):
        f = trial.randn(1)
        trial.compare((f, 3), _project(f, 3), terms=3, any_float=True)
    with trial.layer("more numbers than before never change the first ones"):
        f = trial.randn(80)
        few, many = (trial.compare((f, n), _project(f, n), terms=80, any_float=True) for n in (4, 9))
        trial.same(many[:4], few, terms=80)
    with trial.layer("64 numbers, as in the lesson"):
        f = trial.randn(500)
        trial.compare((f, 64), _project(f, 64), terms=500, any_float=True)
    with trial.layer("linear in f"):
        trial.linear((trial.randn(40), 5), arg="f")


def _fit(f: Tensor, n: int) -> Tensor:
    basis = _basis(n, _middles(len(f)))
    return torch.from_numpy(np.linalg.lstsq(basis, f.detach().numpy(), rcond=None)[0])


@exercise(
    "hippo.reconstruct_window",
    chapter="01",
    title="The past, from the numbers",
    difficulty=2,
    minutes=10,
    signature="reconstruct_window(c: Tensor, points: Tensor) -> Tensor",
    unlocks="a past drawn from 4 and from 12 of your own numbers",
    forbidden=ANSWERS,
    hints=(
        "project_window took a curve apart into g_0, g_1, ... Now you have how much there is of each. What "
        "is the curve at one point?",
        "The number of coefficients is len(c). legendre_basis(len(c), points) has one row for each point, one "
        "column for each g_k: each value is a row times c.",
        "G = legendre_basis(len(c), points)      # (p, n)\n"
        "return ...                              # (p, n) times (n,)",
    ),
)
def check_reconstruct_window(trial: Trial) -> None:
    torch.set_default_dtype(torch.float64)

    def mistake(words: str, **changed) -> None:
        trial.mistake(words, lambda c, points: _draw(c, points, **changed))

    trial.mistake(
        "time runs backwards: s = 0 is the oldest moment and s = 1 is now", lambda c, s: _draw(c, 1 - s)
    )
    trial.mistake(
        "the sum is divided by n: f is the sum of c_k g_k, no mean", lambda c, s: _draw(c, s) / len(c)
    )
    trial.mistake(
        "the sum is divided by the number of points: f is the sum of c_k g_k, no mean",
        lambda c, s: _draw(c, s) / len(s),
    )
    trial.mistake("c is taken in reverse: c[0] belongs to g_0, the mean", lambda c, s: _draw(c.flip(0), s))
    trial.mistake(
        "points is not looked at, only how many there are: draw at the points that are given",
        lambda c, s: _draw(c, torch.linspace(0, 1, len(s), dtype=s.dtype)),
    )
    trial.mistake(
        "points is not looked at, only how many there are: draw at the points that are given, not at the "
        "middles of so many steps",
        lambda c, s: _draw(c, torch.from_numpy(_middles(len(s)))),
    )
    trial.mistake(
        "the points are stretched to fill 0 to 1: they are positions already, and need not reach the ends",
        lambda c, s: _draw(c, (s - s.min()) / (s.max() - s.min())),
    )
    trial.mistake(
        "the points are divided by the largest: they are positions already, and need not reach 1",
        lambda c, s: _draw(c, s / s.max()),
    )
    trial.mistake(
        "the last coefficient is left out: the sum has all len(c) of them",
        lambda c, s: _draw(torch.cat([c[:-1], c.new_zeros(1)]), s),
    )
    _basis_mistakes(mistake)

    c, points = (torch.tensor(v) for v in ([2.0, 1.0], [0.0, 0.5, 1.0]))
    trial.example(c, points, expect=torch.tensor([2 - 3**0.5, 2.0, 2 + 3**0.5]), any_float=True)
    with trial.layer("random numbers at random points"):
        for n, p in ((3, 5), (6, 9), (12, 40)):
            c, points = trial.randn(n), trial.rand(p)
            trial.compare((c, points), _draw(c, points), terms=n, any_float=True)
    with trial.layer("one number, n = 1: a flat line"):
        trial.compare((torch.tensor([1.5]), trial.rand(4)), torch.full((4,), 1.5), any_float=True)
    with trial.layer("one point"):
        c, points = trial.randn(5), trial.rand(1)
        trial.compare((c, points), _draw(c, points), terms=5, any_float=True)
    with trial.layer("as many points as numbers"):
        c, points = trial.randn(6), trial.rand(6)
        trial.compare((c, points), _draw(c, points), terms=6, any_float=True)
    with trial.layer("at s = 1, now, every g_k is sqrt(2k+1)"):
        c = trial.randn(20)
        now = torch.ones(1)
        trial.compare((c, now), (c * torch.from_numpy(_root(20))).sum()[None], terms=20, any_float=True)
    with trial.layer("64 numbers, at both ends and between"):
        c, points = trial.randn(64), torch.linspace(0, 1, 33)
        trial.compare((c, points), _draw(c, points), terms=64, any_float=True)
    with trial.layer("linear in c"):
        trial.linear((trial.randn(7), trial.rand(11)), arg="c")
