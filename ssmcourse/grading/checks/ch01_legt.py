"""Checks of chapter 01: the matrix of LegT, the sliding window.

The oracle is the formula, entry by entry in Python floats; a past that the window can represent
exactly must be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ssmcourse.grading.checks.matrices import Entry, System, mistakes_in_pairs, square, vector
from ssmcourse.grading.registry import exercise
from ssmcourse.grading.trial import Trial

Scale = Callable[[int, float], float]


def _root(n: int, k: int = 0) -> float:
    """sqrt((2i+1)(2k + 1))."""
    return math.sqrt((2 * n + 1) * (2 * k + 1))


def _entry(n: int, k: int) -> float:
    """A_nk for a window of length 1."""
    return -_root(n, k) * (1 if n >= k else (-1) ** (k - n))


def _legt(n: int, theta: float) -> System:
    return square(n, _entry) / theta, vector(n, _root) / theta


def _signs(sign: Entry) -> Entry:
    return lambda n, k: -_root(n, k) * sign(n, k)


WRONG_A: dict[str, Entry] = {
    "the signs of A are on the wrong side of the diagonal: (-1)**(i-k) belongs to i < k, above": _signs(
        lambda n, k: (-1) ** (n - k) if n >= k else 1
    ),
    "the minus of A is missing: it stands before the whole of A": lambda n, k: -_entry(n, k),
    "the signs of A are missing, turned, or those of the row: above the diagonal they alternate, (-1)**(i-k), with -1 next to it; "
    "with the minus in front A[0, 1] is positive": _signs(lambda n, k: 1),
    "the signs of A alternate below the diagonal too: there they are all 1": _signs(
        lambda n, k: (-1) ** (n - k)
    ),
    "above the diagonal A is 0, as in LegS: LegT is full there, with signs (-1)**(i-k)": _signs(
        lambda n, k: n >= k
    ),
    "above the diagonal all signs of A are turned: they alternate, (-1)**(i-k)": _signs(
        lambda n, k: 1 if n >= k else -1
    ),
    "above the diagonal the signs go by column, (-1)**k: it is the distance i - k that counts": _signs(
        lambda n, k: 1 if n >= k else (-1) ** k
    ),
    "brackets are lost under the root: it is (2i+1)(2k+1), and you have 2i + 2k + 1": lambda n, k: (
        _entry(n, k) / _root(n, k) * math.sqrt(2 * n + 2 * k + 1)
    ),
    "the diagonal of A is 0: there the formula for i >= k holds, -(2i+1)": lambda n, k: (
        _entry(n, k) if n != k else 0
    ),
    "the square root of A is missing: sqrt((2i+1)(2k+1))": lambda n, k: _root(n, k) * _entry(n, k),
    "A has the factor sqrt(2i+1) only: sqrt(2k+1) is missing": lambda n, k: _entry(n, k) / _root(k),
    "A has the factor 2i+1 for sqrt((2i+1)(2k+1)): that is the scaling of the Legendre Memory Unit, "
    "not the orthonormal one": lambda n, k: _entry(n, k) * _root(n) / _root(k),
    "the diagonal of A is -(i+1), that of LegS: in LegT the formula holds there too, -(2i+1)": lambda n, k: (
        -(n + 1) if n == k else _entry(n, k)
    ),
    "this is the A of LegS: LegT has -(2i+1) on the diagonal, and signs above it": lambda n, k: (
        -(n + 1) if n == k else -_root(n, k) if n > k else 0
    ),
    "the indices of A run from 1: rows and columns are numbered 0 to n-1": lambda n, k: _entry(n + 1, k + 1),
}
WRONG_B: dict[str, Callable[[int], float]] = {
    "B has the root of 2i+1; you took 2i+1 itself": lambda n: 2 * n + 1,
    "B is sqrt(2i+1) / theta, not 1 / theta": lambda n: 1,
    "B has no signs: they are in A only": lambda n: (-1) ** n * _root(n),
    "B has no minus: it stands in A only": lambda n: -_root(n),
    "the indices of B run from 1: B[0] is sqrt(1) / theta": lambda n: _root(n + 1),
}
WRONG_SCALES: dict[str, tuple[Scale, Scale]] = {
    "theta is missing: both A and B are divided by it": (lambda n, t: 1, lambda n, t: 1),
    "you multiply by theta: both A and B are divided by it": (lambda n, t: t, lambda n, t: t),
    "theta is missing in B: it is divided by theta as A is": (lambda n, t: 1 / t, lambda n, t: 1),
    "theta is missing in A: it is divided by theta as B is": (lambda n, t: 1, lambda n, t: 1 / t),
    "B is multiplied by theta: divide by it": (lambda n, t: 1 / t, lambda n, t: t),
    "you divide by n: divide by theta, the length of the window": (lambda n, t: 1 / n, lambda n, t: 1 / n),
    "you divide by theta twice": (lambda n, t: 1 / t**2, lambda n, t: 1 / t**2),
    "you divide by the root of theta": (lambda n, t: t**-0.5, lambda n, t: t**-0.5),
}


def _scaled(entry: Entry, scales: tuple[Scale, Scale], n: int, theta: float) -> System:
    of_A, of_B = scales
    return square(n, entry) * of_A(n, theta), vector(n, _root) * of_B(n, theta)


def _lmu(n: int, theta: float) -> System:
    """The scaling of Voelker et al. 2019, also that of HiPPO's theorem 1."""
    A = square(n, lambda r, k: -(2 * r + 1) * (1 if r < k else (-1) ** (r - k)))
    return A / theta, vector(n, lambda r: (2 * r + 1) * (-1) ** r) / theta


@exercise(
    "hippo.legt_matrix",
    chapter="01",
    title="The matrix of the sliding window",
    difficulty=3,
    minutes=15,
    signature="legt_matrix(n: int, theta: float) -> (A, B)",
    unlocks="the picture of your sliding window's A",
    forbidden=("ssmcourse.hippo_matrix", "ssmcourse.measures._legt"),
    hints=(
        "Take A apart into three: a size for each entry, a sign for each entry, and one number for all. "
        "Which of the three did you build in legs_matrix?",
        "The sizes are torch.outer(root, root) with root = sqrt(2 * index + 1), the diagonal included. The signs "
        "are 1 where row >= column and (-1.0) ** (row - column) elsewhere: torch.where. Divide A and B by theta.",
        "index = torch.arange(n, dtype=torch.float64)\n"
        "root = torch.sqrt(2 * index + 1)\n"
        "signs = torch.where(index[:, None] >= index, 1.0, ...)\n"
        "return -torch.outer(root, root) * signs / theta, ...",
    ),
)
def check_legt_matrix(trial: Trial) -> None:
    torch.set_default_dtype(torch.float64)  # as the notebook does; the judge puts back what was there

    wrong_A = {words: lambda n, t, e=entry: square(n, e) / t for words, entry in WRONG_A.items()}
    wrong_B = {words: lambda n, t, e=entry: vector(n, e) / t for words, entry in WRONG_B.items()}
    trial.mistake(
        "this is the Legendre Memory Unit's scaling, that of the paper's Theorem 1: here the basis is "
        "orthonormal, with sqrt((2i+1)(2k+1)) and no signs in B",
        _lmu,
    )
    mistakes_in_pairs(trial, _legt, wrong_A, wrong_B)
    for scale_words, scales in WRONG_SCALES.items():
        trial.mistake(scale_words, lambda n, t, s=scales: _scaled(_entry, s, n, t))
        for words, entry in WRONG_A.items():
            trial.mistake(f"{words}. And {scale_words}", lambda n, t, e=entry, s=scales: _scaled(e, s, n, t))
    trial.mistake(
        "the roots were rounded to float32 on the way: begin with dtype=torch.float64, converting at the end "
        "is too late",
        lambda n, t: tuple(m.to(torch.float32).to(torch.float64) for m in _legt(n, t)),
    )

    trial.example(2, 2.0, expect=_legt(2, 2.0))
    with trial.layer("other n and theta"):
        for n, theta in ((3, 1.0), (5, 0.3), (8, 20.0)):
            trial.compare((n, theta), _legt(n, theta))
    with trial.layer("n = 1"):
        trial.compare((1, 4.0), _legt(1, 4.0))
    with trial.layer("n = 64, in float64"):
        trial.compare((64, 500.0), _legt(64, 500.0))
    with trial.layer("twice the window, half the speed"):
        (A, B), (A2, B2) = (trial.compare((6, theta), _legt(6, theta)) for theta in (1.5, 3.0))
        trial.same((A2, B2), (A / 2, B / 2))
    with trial.layer("a constant past stays: A c + B f = 0 for f = 1, c = (1, 0, 0, ...)"):
        A, B = trial.compare((7, 2.0), _legt(7, 2.0))
        trial.same(-A[:, 0], B)
    with trial.layer("a past f = t is kept exactly: its mean grows by 1 a second, its slope stays"):
        A, _ = trial.compare((5, 2.0), _legt(5, 2.0))
        c = torch.tensor([-1.0, 1 / 3**0.5, 0, 0, 0])  # the window from t = -2 to t = 0, where f = 0
        trial.same(A @ c, torch.tensor([1.0, 0, 0, 0, 0]))
