"""Checks of chapter 01: the matrix of LegS, and one step of its memory.

The oracles are the formula, entry by entry in Python floats, and forward substitution for the step.
What a matrix is for is checked too: a past that the memory can represent exactly, it must keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ssmcourse.grading.checks.matrices import Entry, System, mistakes_in_pairs, square, vector
from ssmcourse.grading.registry import exercise
from ssmcourse.grading.trial import Trial


def _root(n: int, k: int = 0) -> float:
    """sqrt((2i+1)(2k + 1))."""
    return math.sqrt((2 * n + 1) * (2 * k + 1))


def _triangle(below: Entry, diagonal: Callable[[int], float], above: Entry = lambda n, k: 0.0) -> Entry:
    return lambda n, k: below(n, k) if n > k else diagonal(n) if n == k else above(n, k)


def _legs(n: int) -> System:
    A = square(n, _triangle(lambda r, k: -_root(r, k), lambda r: -(r + 1)))
    return A, vector(n, _root)


WRONG_A: dict[str, Entry] = {
    "the minus of A is missing: it belongs inside A, and its diagonal is -1, -2, ...": _triangle(
        _root, lambda n: n + 1
    ),
    "A is turned over: the entries with i > k, row number larger than column number, stand below the "
    "diagonal": _triangle(lambda n, k: 0, lambda n: -(n + 1), lambda n, k: -_root(n, k)),
    "above the diagonal of A must be 0: a coarse number never needs to know a fine one": _triangle(
        lambda n, k: -_root(n, k), lambda n: -(n + 1), lambda n, k: -_root(n, k)
    ),
    "the diagonal of A is -(i+1), and i counts from 0: you have -i": _triangle(
        lambda n, k: -_root(n, k), lambda n: -n
    ),
    "the diagonal of A is -(i+1); you have -(2i+1), which goes on with the formula for i > k": _triangle(
        lambda n, k: -_root(n, k), lambda n: -(2 * n + 1)
    ),
    "the diagonal of A is there twice: -(2i+1) from the outer product and -(i+1). Keep the outer product "
    "strictly below the diagonal (tril(..., -1))": _triangle(
        lambda n, k: -_root(n, k), lambda n: -(3 * n + 2)
    ),
    "the formula for i > k is everywhere: above the diagonal A is 0, on it -(i+1)": lambda n, k: -_root(n, k),
    "the diagonal of A is 0: it should be -(i+1)": _triangle(lambda n, k: -_root(n, k), lambda n: 0),
    "the diagonal of A has the wrong sign: the minus stands before the whole of A": _triangle(
        lambda n, k: -_root(n, k), lambda n: n + 1
    ),
    "below the diagonal A has the wrong sign: every entry there is negative, no sign alternates": _triangle(
        _root, lambda n: -(n + 1)
    ),
    "the square root is missing below the diagonal: sqrt((2i+1)(2k+1))": _triangle(
        lambda n, k: -(2 * n + 1) * (2 * k + 1), lambda n: -(n + 1)
    ),
    "below the diagonal only sqrt(2i+1) is there: the factor sqrt(2k+1) is missing": _triangle(
        lambda n, k: -_root(n), lambda n: -(n + 1)
    ),
    "below the diagonal only sqrt(2k+1) is there: the factor sqrt(2i+1) is missing": _triangle(
        lambda n, k: -_root(k), lambda n: -(n + 1)
    ),
    "brackets are lost under the root: it is (2i+1)(2k+1), and you have 2i + 2k + 1": _triangle(
        lambda n, k: -math.sqrt(2 * n + 2 * k + 1), lambda n: -(n + 1)
    ),
    "only the first diagonal below the main one is filled: every i > k has an entry": _triangle(
        lambda n, k: -_root(n, k) if n == k + 1 else 0, lambda n: -(n + 1)
    ),
    "the indices of A run from 1: rows and columns are numbered 0 to n-1": _triangle(
        lambda n, k: -_root(n + 1, k + 1), lambda n: -(n + 2)
    ),
    "this is the A of LegT (full, with signs): LegS is 0 above the diagonal": lambda n, k: (
        -_root(n, k) * (1 if n >= k else (-1) ** (n - k))
    ),
}
WRONG_B: dict[str, Callable[[int], float]] = {
    "B has the root of 2i+1; you took 2i+1 itself": lambda n: 2 * n + 1,
    "B is sqrt(2i+1), not all ones": lambda n: 1,
    "the indices of B run from 1: B[0] is sqrt(1)": lambda n: _root(n + 1),
    "B has no minus: it stands in A only": lambda n: -_root(n),
}


@exercise(
    "hippo.legs_matrix",
    chapter="01",
    title="The matrix of LegS",
    difficulty=2,
    minutes=10,
    signature="legs_matrix(n: int) -> (A, B)",
    unlocks="the start of S4, lesson 03",
    forbidden=("ssmcourse.hippo_matrix", "ssmcourse.measures._legs"),
    hints=(
        "Write out A for n = 3 on paper first. Which of its entries are products of one factor for the row "
        "and one for the column, and have you met these factors already in B?",
        "B = sqrt(2 * index + 1) with index = torch.arange(n, dtype=torch.float64). torch.outer(B, B) has all "
        "the roots; torch.tril(..., -1) keeps what is strictly below the diagonal. The diagonal comes extra.",
        "index = torch.arange(n, dtype=torch.float64)\n"
        "B = torch.sqrt(2 * index + 1)\n"
        "A = -torch.tril(torch.outer(B, B), -1) - torch.diag(...)\n"
        "return A, B",
    ),
)
def check_legs_matrix(trial: Trial) -> None:
    torch.set_default_dtype(torch.float64)  # as the notebook does; the judge puts back what was there
    wrong_A: dict[str, Callable[..., Tensor]] = {
        words: lambda n, e=entry: square(n, e) for words, entry in WRONG_A.items()
    }
    wrong_B = {words: lambda n, e=entry: vector(n, e) for words, entry in WRONG_B.items()}
    wrong_A[
        "the diagonal of A is the same everywhere: i in -(i+1) is the number of the row, not the argument n"
    ] = lambda size: square(size, _triangle(lambda n, k: -_root(n, k), lambda n: -(size + 1)))
    mistakes_in_pairs(trial, _legs, wrong_A, wrong_B)
    trial.mistake(
        "the roots were rounded to float32 on the way: begin with dtype=torch.float64, converting at the end "
        "is too late",
        lambda n: tuple(m.to(torch.float32).to(torch.float64) for m in _legs(n)),
    )

    trial.example(2, expect=_legs(2))
    with trial.layer("n = 3, 5 and 16"):
        for n in (3, 5, 16):
            trial.compare((n,), _legs(n))
    with trial.layer("n = 1: the running mean, A = [[-1]], B = [1]"):
        trial.compare((1,), _legs(1))
    with trial.layer("n = 64, in float64"):
        trial.compare((64,), _legs(64))
    with trial.layer("a constant past stays: A c + B f = 0 for f = 1, c = (1, 0, 0, ...)"):
        A, B = trial.compare((7,), _legs(7))
        trial.same(-A[:, 0], B)
    with trial.layer("a past f = t**2 is kept exactly: c' = 2c/t, so A c + B = 2c at t = 1"):
        A, B = trial.compare((6,), _legs(6))
        c = torch.tensor([1 / 3, 1 / (2 * 3**0.5), 1 / (6 * 5**0.5), 0, 0, 0])
        trial.same(A @ c + B, 2 * c)


def _substituted(c: Tensor, f: float | Tensor, k: int, A: Tensor, B: Tensor) -> Tensor:
    """The bilinear step by forward substitution: row i of A knows only the numbers up to i."""
    old, new, a, b = c.tolist(), [], A.tolist(), B.tolist()
    for i in range(len(old)):
        slope = (
            sum(a[i][m] * (old[m] + new[m]) / 2 for m in range(i)) + a[i][i] * old[i] / 2 + b[i] * float(f)
        )
        new.append((old[i] + slope / k) / (1 - a[i][i] / (2 * k)))
    return torch.tensor(new, dtype=torch.float64)


def _solve(matrix: np.ndarray, right: np.ndarray) -> Tensor:
    """The solution, or NaN where there is none: a wrong answer must not end the check."""
    try:
        return torch.from_numpy(np.linalg.solve(matrix, right))
    except np.linalg.LinAlgError:
        return torch.full((len(right),), torch.nan)


def _step(
    c: Tensor,
    f: float,
    A: Tensor,
    B: Tensor,
    *,
    before: float,
    after: float,
    push: float,
    push_after: float = 0.0,
) -> Tensor:
    """(I - after A)^-1 ((I + before A) c + push B f) + push_after B f, for the wrong answers."""
    a, old, into = A.numpy(), c.numpy(), B.numpy() * float(f)
    eye = np.eye(len(old))
    right = (eye + before * a) @ old + push * into
    return _solve(eye - after * a, right) + torch.from_numpy(push_after * into)


def _legs_step_mistakes(trial: Trial) -> None:
    def mistake(words: str, numbers: Callable[[float], dict[str, float]]) -> None:
        trial.mistake(words, lambda c, f, k, A, B: _step(c, f, A, B, **numbers(k)))

    mistake(
        "this is forward Euler (for n = 1 the running mean): A acts on the old numbers only; take "
        "half of A before and half after",
        lambda k: {"before": 1 / k, "after": 0, "push": 1 / k},
    )
    mistake(
        "this is backward Euler (for n = 1 zero-order hold gives the same): A acts on the new numbers only; take "
        "half of A before and half after",
        lambda k: {"before": 0, "after": 1 / k, "push": 1 / k},
    )
    mistake(
        "the sign of A is turned: I + A/(2k) acts on the old numbers, I - A/(2k) is solved for the new ones",
        lambda k: {"before": -0.5 / k, "after": -0.5 / k, "push": 1 / k},
    )
    mistake(
        "the left side is missing: (I - A/(2k)) c_k equals what you have, so solve for c_k",
        lambda k: {"before": 0.5 / k, "after": 0, "push": 1 / k},
    )
    mistake(
        "the sign on the left is turned: brought over to the left, A c_k / (2k) becomes minus, I - A/(2k)",
        lambda k: {"before": 0.5 / k, "after": -0.5 / k, "push": 1 / k},
    )
    mistake(
        "the sign on the right is turned: I + A/(2k) acts on the old numbers",
        lambda k: {"before": -0.5 / k, "after": 0.5 / k, "push": 1 / k},
    )
    mistake("B f is subtracted: add it", lambda k: {"before": 0.5 / k, "after": 0.5 / k, "push": -1 / k})
    mistake(
        "A / 2 * k is A times k/2: write A / (2 * k)",
        lambda k: {"before": 0.5 * k, "after": 0.5 * k, "push": 1 / k},
    )
    mistake(
        "k is one too large: sample k is divided by k, and k counts from 1 already",
        lambda k: {"before": 0.5 / (k + 1), "after": 0.5 / (k + 1), "push": 1 / (k + 1)},
    )
    mistake(
        "k is one too small: sample k is divided by k, not by k - 1",
        lambda k: {"before": 0.5 / max(k - 1, 1), "after": 0.5 / max(k - 1, 1), "push": 1 / max(k - 1, 1)},
    )
    mistake(
        "the 1/k of B f is missing: it stands before the whole bracket, A and B",
        lambda k: {"before": 0.5 / k, "after": 0.5 / k, "push": 1},
    )
    mistake("B f is divided by k twice", lambda k: {"before": 0.5 / k, "after": 0.5 / k, "push": 1 / k**2})
    mistake(
        "B f is halved as A is: only the average of the old and new numbers has the 1/2",
        lambda k: {"before": 0.5 / k, "after": 0.5 / k, "push": 0.5 / k},
    )
    mistake(
        "the 1/k is missing everywhere: a step of LegS has length 1/k, a fixed step is for LegT",
        lambda k: {"before": 0.5, "after": 0.5, "push": 1},
    )
    mistake(
        "you multiply by k where you should divide by it",
        lambda k: {"before": 0.5 * k, "after": 0.5 * k, "push": k},
    )
    mistake(
        "the 1/2 is missing: A acts on the average of old and new numbers, so each gets A/(2k)",
        lambda k: {"before": 1 / k, "after": 1 / k, "push": 1 / k},
    )
    mistake(
        "B f is added after the system is solved: it belongs to its right-hand side",
        lambda k: {"before": 0.5 / k, "after": 0.5 / k, "push": 0, "push_after": 1 / k},
    )
    mistake(
        "the new sample does not come in: B f / k is missing",
        lambda k: {"before": 0.5 / k, "after": 0.5 / k, "push": 0},
    )
    trial.mistake(
        "c_k on the right is a guess by Euler's rule (this is Heun's method): leave it unknown, and solve",
        lambda c, f, k, A, B: c + (A @ (c + (A @ c + B * float(f)) / (2 * k)) + B * float(f)) / k,
    )
    trial.mistake(
        "1 + A/(2k) adds 1 to every entry of A: the identity I is torch.eye(n), with ones on the diagonal only",
        _ones_for_identity,
    )
    trial.mistake(
        "this is the change alone: add it to c", lambda c, f, k, A, B: _substituted(c, f, k, A, B) - c
    )
    trial.mistake(
        "A and B of LegS are used, whatever it is given: take the A and B among the arguments",
        lambda c, f, k, A, B: _substituted(c, f, k, *_legs(len(c))),
    )
    trial.mistake(
        "A is transposed (c @ A, or a system solved with A.T): A acts on a column, A @ c",
        lambda c, f, k, A, B: _step(c, f, A.T, B, before=0.5 / k, after=0.5 / k, push=1 / k),
    )
    trial.mistake(
        "A acts on the old numbers transposed (c @ A): write A @ c",
        lambda c, f, k, A, B: _step(
            torch.from_numpy(c.numpy() @ (np.eye(len(c)) + A.numpy() / (2 * k))), f, A, B,
            before=0, after=0.5 / k, push=1 / k,
        ),
    )  # fmt: skip
    trial.mistake(
        "B is left out: the sample enters number i times sqrt(2i+1)",
        lambda c, f, k, A, B: _step(c, f, A, torch.ones_like(B), before=0.5 / k, after=0.5 / k, push=1 / k),
    )
    trial.mistake(
        "only the diagonal of A is used: the numbers also act on each other",
        lambda c, f, k, A, B: _substituted(c, f, k, torch.diag(torch.diag(A)), B),
    )
    trial.mistake(
        "you divide by the diagonal of I - A/(2k) alone; the whole matrix acts on the new numbers, so solve the "
        "linear system (torch.linalg.solve)",
        lambda c, f, k, A, B: (c + (A @ c / 2 + B * float(f)) / k) / (1 - torch.diagonal(A) / (2 * k)),
    )
    trial.mistake(
        "you divide by the matrix I - A/(2k) entry by entry; solve the linear system instead "
        "(torch.linalg.solve)",
        _divided,
    )


def _ones_for_identity(c: Tensor, f: float, k: int, A: Tensor, B: Tensor) -> Tensor:
    a = A.numpy() / (2 * k)
    return _solve(1 - a, (1 + a) @ c.numpy() + B.numpy() * float(f) / k)


def _divided(c: Tensor, f: float, k: int, A: Tensor, B: Tensor) -> Tensor:
    """(I + A/2k) / (I - A/2k) entry by entry, as if the matrices were numbers."""
    eye = torch.eye(len(c), dtype=torch.float64)
    below, above = eye - A / (2 * k), eye + A / (2 * k)
    return (above / below) @ c + (1 / below) @ B * float(f) / k


@exercise(
    "hippo.legs_step",
    chapter="01",
    title="One step of LegS",
    difficulty=3,
    minutes=15,
    signature="legs_step(c: Tensor, f: float, k: int, A: Tensor, B: Tensor) -> Tensor",
    unlocks="a memory of any length, run by your own step",
    forbidden=("ssmcourse.hippo.legs_step", "ssmcourse.hippo_project", "ssmcourse.discretize"),
    hints=(
        "The unknown c_k stands on both sides. Bring everything with c_k to the left, all the rest to the "
        "right. What is the matrix on the left?",
        "(I - A/(2k)) c_k = (I + A/(2k)) c_{k-1} + B f / k. torch.linalg.solve(matrix, right) finds c_k; "
        "torch.eye(len(c), dtype=c.dtype) is I.",
        "eye = torch.eye(len(c), dtype=c.dtype)\n"
        "right = (eye + A / (2 * k)) @ c + ...\n"
        "return torch.linalg.solve(..., right)",
    ),
)
def check_legs_step(trial: Trial) -> None:
    torch.set_default_dtype(torch.float64)
    _legs_step_mistakes(trial)

    c, A, B = torch.tensor([2.0]), torch.tensor([[-1.0]]), torch.tensor([1.0])
    trial.example(c, 10.0, 4, A, B, expect=torch.tensor([34 / 9]), any_float=True)

    def compare(c: Tensor, f: float | Tensor, k: int, terms: int) -> Tensor:
        args = (c, f, k, *_legs(len(c)))
        return trial.compare(args, _substituted(*args), terms=terms, any_float=True)

    with trial.layer("2, 5 and 16 numbers, k = 3, 10 and 40"):
        for n, k in ((2, 3), (5, 10), (16, 40)):
            compare(trial.randn(n), trial.randn().item(), k, terms=n)
    with trial.layer("the first sample, k = 1"):
        compare(trial.randn(6), trial.randn().item(), 1, terms=6)
    with trial.layer("f as a tensor of shape ()"):
        compare(trial.randn(4), trial.randn(), 7, terms=4)
    with trial.layer("another A and B than those of LegS: it takes what it is given"):
        args = (trial.randn(4), 0.5, 6, trial.randn(4, 4).tril(), trial.randn(4))
        trial.compare(args, _substituted(*args), terms=16, any_float=True)
    with trial.layer("64 numbers, k = 1: nothing blows up"):
        compare(trial.randn(64), 1.0, 1, terms=500)
    with trial.layer("a constant past stays: f = 3, c = (3, 0, 0, ...) does not move"):
        still = torch.tensor([3.0, 0, 0, 0, 0])
        for k in (1, 2, 100):
            trial.compare((still, 3.0, k, *_legs(5)), still, terms=5, any_float=True)
    with trial.layer("200 steps along a straight line: mean and slope are remembered"):
        c = torch.zeros(3)
        for k in range(1, 201):
            c = compare(c, (k - 0.5) / 200, k, terms=3)
        best = torch.tensor([0.5, 1 / (2 * 3**0.5), 0])
        trial.require(
            bool((c - best).abs().max() < 0.01),
            f"after 200 samples of a line from 0 to 1 the numbers are {[round(v, 3) for v in c.tolist()]}, "
            f"expected about {[round(v, 3) for v in best.tolist()]}",
        )
