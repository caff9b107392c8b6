"""Checks of chapter 00: a memory of one number, and the matrix that it is.

The oracles are the definitions, entry by entry: h_t as a sum over the past, M_ij as a power or a
product of Python floats. No recurrence, which is what the learner writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ssmcourse.grading.checks.matrices import lower, square
from ssmcourse.grading.registry import exercise
from ssmcourse.grading.trial import Trial


def _memory(a: float, x: Tensor, *, late: int = 0) -> Tensor:
    """h_t = sum over s <= t - late of a^(t - s - late) x_s."""
    steps = torch.arange(len(x))
    age = steps[:, None] - steps - late
    weights = torch.where(age >= 0, torch.tensor(float(a), dtype=x.dtype) ** age.clamp(min=0), 0.0)
    return weights.to(x.dtype) @ x


@exercise(
    "start.run_memory",
    chapter="00",
    title="Run the memory",
    difficulty=1,
    minutes=5,
    signature="run_memory(a: float, x: Tensor) -> Tensor",
    unlocks="the life of one input, drawn by your own function",
    forbidden=("ssmcourse.linear_scan",),
    hints=(
        "You need one number that survives from step to step. What is it before the first input, and what "
        "do two things happen to it when an input comes?",
        "Let h start at 0. In a loop over x, put a * h + x_t in place of h, and keep the new h in a list. "
        "torch.stack makes one tensor of a list of tensors.",
        "h, states = torch.zeros((), dtype=x.dtype), []\n"
        "for x_t in x:\n"
        "    h = ...            # the part that is kept, plus what comes in\n"
        "    states.append(h)\n"
        "return torch.stack(states)",
    ),
)
def check_run_memory(trial: Trial) -> None:
    _run_memory_mistakes(trial)
    x = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float32)
    trial.example(0.5, x, expect=torch.tensor([1.0, 0.5, 2.25, 1.125], dtype=torch.float32))
    with trial.layer("random inputs, in float64"):
        for a in (0.9, 0.3):
            x = trial.randn(17)
            trial.compare((a, x), _memory(a, x), terms=17)
    with trial.layer("one input, a = 0, a = 1, a below 0"):
        for a, l in ((0.5, 1), (0.0, 5), (1.0, 5), (-0.7, 9)):
            x = trial.randn(l)
            trial.compare((a, x), _memory(a, x), terms=l)
    with trial.layer("an input changes nothing before it"):
        trial.causal((0.8, trial.randn(12)), arg="x")
    with trial.layer("twice the input, twice the output"):
        trial.linear((0.8, trial.randn(12)), arg="x")
    with trial.layer("400 steps, a = 0.1: nothing overflows"):
        x = trial.randn(400)
        trial.compare((0.1, x), _memory(0.1, x), terms=50)
    with trial.layer("gradients flow back to x"):
        trial.gradients((0.9, trial.randn(9)), _memory)


def _run_memory_mistakes(trial: Trial) -> None:
    trial.mistake(
        "the starting 0 is in the list too: append h after the update only",
        lambda a, x: torch.cat([x.new_zeros(1), _memory(a, x)]),
    )
    trial.mistake(
        "only the last state comes back: collect h after every step", lambda a, x: _memory(a, x)[-1]
    )
    trial.mistake(
        "every output is one step late: h_t already holds x_t, so keep h after the update, not before",
        lambda a, x: _memory(a, x, late=1),
    )
    trial.mistake("nothing fades: you add up x and never multiply h by a", lambda a, x: _memory(1.0, x))
    trial.mistake("nothing is remembered: this is x itself", lambda a, x: x.clone())
    trial.mistake(
        "all outputs are the last one: the list holds the same tensor many times, and `h *= a` or `h += x_t` "
        "changes it in place; h = a * h + x_t makes a new one each step",
        lambda a, x: _memory(a, x)[-1].expand(len(x)),
    )
    trial.mistake(
        "the new input is scaled, by a (a * (h + x_t)) or by 1 - a (a running average): here x_t comes in whole",
        lambda a, x: a * _memory(a, x),
    )
    trial.mistake("a is the part that is kept, and you keep 1 - a of h", lambda a, x: _memory(1 - a, x))
    trial.mistake("h and x_t have changed places: h + a * x_t", lambda a, x: a * _memory(1.0, x))
    trial.mistake(
        "h forgets all but the last input: a * x[t-1] + x[t]; multiply the state h, not the input before",
        lambda a, x: x + a * torch.cat([x.new_zeros(1), x[:-1]]),
    )
    trial.mistake(
        "time runs backwards: you begin at the last input", lambda a, x: _memory(a, x.flip(0)).flip(0)
    )
    trial.mistake("the outputs come newest first: the list is in reverse", lambda a, x: _memory(a, x).flip(0))
    trial.mistake(
        "h starts at x[0], or at 1: before the first input nothing is held, so start it at 0",
        lambda a, x: _memory(a, x) + a ** torch.arange(1, len(x) + 1) * x[0],
    )
    trial.mistake(
        "the fading goes by position, a**t * x[t], and nothing is carried from step to step",
        lambda a, x: a ** torch.arange(len(x)) * x,
    )
    trial.mistake(
        "the sign of a is lost: a may be below 0, and then the memory flips at every step",
        lambda a, x: _memory(abs(a), x),
    )
    trial.mistake("the sign of a is turned: -a * h instead of a * h", lambda a, x: _memory(-a, x))
    trial.mistake(
        "you divide by powers of a and multiply again: with a = 0, or after many steps, that is 0/0 or an "
        "overflow; carry h forward instead",
        _memory_by_ratios,
    )


def _memory_by_ratios(a: float, x: Tensor) -> Tensor:
    """a^t times the running sum of x_s / a^s: right on paper, NaN in a computer."""
    powers = torch.tensor(float(a), dtype=x.dtype) ** torch.arange(len(x))
    return powers * torch.cumsum(x / powers, 0)


@exercise(
    "start.memory_matrix",
    chapter="00",
    title="The memory as a matrix",
    difficulty=1,
    minutes=8,
    signature="memory_matrix(a: float, l: int) -> Tensor",
    unlocks="the picture of M, drawn by your own function",
    forbidden=("ssmcourse.linear_scan",),
    hints=(
        "Every entry depends on one number only, how long ago the input came: i - j. What should happen "
        "where i - j is negative?",
        "torch.arange(l)[:, None] - torch.arange(l)[None, :] holds i - j for the whole matrix. Raise a to "
        "it, and put 0 above the diagonal with torch.where. Clamp negative exponents to 0 first: 0.0 ** -1 "
        "is infinite.",
        "lag = torch.arange(l)[:, None] - torch.arange(l)[None, :]\n"
        "powers = torch.tensor(float(a)) ** lag.clamp(min=0)\n"
        "return torch.where(..., powers, 0.0)      # where is an entry kept?",
    ),
)
def check_memory_matrix(trial: Trial) -> None:
    _memory_matrix_mistakes(trial)

    # any precision will do, so every a here is one whose powers even float32 holds exactly
    def power(a: float, l: int) -> Tensor:
        return lower(l, lambda i, j: a ** (i - j))

    trial.example(0.5, 3, expect=power(0.5, 3), any_float=True)
    with trial.layer("several a and l"):
        for a, l in ((0.75, 6), (0.25, 8), (1.0, 4), (1.125, 5)):
            trial.compare((a, l), power(a, l), terms=l, any_float=True)
    with trial.layer("length 1"):
        trial.compare((0.75, 1), power(0.75, 1), any_float=True)
    with trial.layer("a = 0: nothing is carried, and each input still counts once"):
        trial.compare((0.0, 5), torch.eye(5), any_float=True)
    with trial.layer("a below 0: the sign flips at every step"):
        trial.compare((-0.625, 6), power(-0.625, 6), terms=6, any_float=True)
    with trial.layer("300 steps: old inputs fade to 0, and nothing turns into NaN"):
        trial.compare((0.5, 300), power(0.5, 300), terms=300, any_float=True)


def _memory_matrix_mistakes(trial: Trial) -> None:
    def mistake(words: str, entry: Callable[[float, int, int], float]) -> None:
        trial.mistake(words, lambda a, l: square(l, lambda i, j: entry(a, i, j)))

    mistake(
        "with a = 0 everything is 0: a**0 is 1 for a = 0 too, so the diagonal remains",
        lambda a, i, j: a ** (i - j) if i >= j and a else 0,
    )
    mistake(
        "the triangle is above the diagonal: rows are outputs i, columns are inputs j, and a is raised to "
        "i - j, not to j - i",
        lambda a, i, j: a ** (j - i) if j >= i else 0,
    )
    mistake(
        "above the diagonal there is something: an output would know inputs that have not come yet. "
        "Put 0 where i < j",
        lambda a, i, j: a ** abs(i - j),
    )
    mistake(
        "above the diagonal the powers go on with negative exponents (1/a, 1/a**2, ...): put 0 where i < j",
        lambda a, i, j: _power(a, i - j),
    )
    mistake(
        "above the diagonal stand ones (a negative exponent clamped to 0 gives a**0 = 1): put 0 where i < j",
        lambda a, i, j: a ** max(i - j, 0),
    )
    mistake(
        "the diagonal is empty: an input counts at its own step, with a**0 = 1",
        lambda a, i, j: a ** (i - j) if i > j else 0,
    )
    mistake(
        "every exponent is one too large: the diagonal is a**0 = 1, not a",
        lambda a, i, j: a ** (i - j + 1) if i >= j else 0,
    )
    mistake(
        "below the diagonal is a alone: after two steps a**2 is left, after three a**3",
        lambda a, i, j: (a if i > j else 1) if i >= j else 0,
    )
    mistake(
        "you multiply a by the distance i - j; raise a to the power i - j",
        lambda a, i, j: a * (i - j) if i > j else float(i == j),
    )
    mistake("nothing fades: all ones on and below the diagonal", lambda a, i, j: float(i >= j))
    mistake(
        "the power is that of the row, a**i: it is the distance i - j that counts",
        lambda a, i, j: a**i if i >= j else 0,
    )
    mistake(
        "the power is that of the row, a**(i+1), as a cumulative product from a on gives it: it is the distance "
        "i - j that counts",
        lambda a, i, j: a ** (i + 1) if i >= j else 0,
    )
    mistake(
        "the power is that of the column, a**j: it is the distance i - j that counts",
        lambda a, i, j: a**j if i >= j else 0,
    )
    mistake(
        "all is one step late: input j counts at step j already, so the ones stand on the diagonal",
        lambda a, i, j: a ** (i - j - 1) if i > j else 0,
    )
    mistake(
        "torch.triu keeps what is above the diagonal; torch.tril keeps what is below",
        lambda a, i, j: float(i <= j),
    )
    mistake(
        "a is the part that is kept itself: raise it to i - j; exp is for a rate A, as a = exp(dt * A)",
        lambda a, i, j: math.exp(a * (i - j)) if i >= j else 0,
    )
    mistake(
        "the exponent has the wrong sign: a**(j - i) grows with the distance",
        lambda a, i, j: _power(a, j - i) if i >= j else 0,
    )
    mistake(
        "the sign of a is lost: a may be below 0, and then the sign flips at every step",
        lambda a, i, j: abs(a) ** (i - j) if i >= j else 0,
    )
    trial.mistake(
        "the columns wrap around (torch.roll brings the end back to the top): above the diagonal is 0",
        lambda a, l: square(l, lambda i, j: a ** ((i - j) % l)),
    )
    trial.mistake(
        "above the diagonal stands 0 times infinity = NaN: with a = 0 a negative exponent is 1/0. Choose with "
        "torch.where or torch.tril, do not multiply by a mask; or clamp the exponents first",
        lambda a, l: square(l, lambda i, j: _power(a, i - j) * (i >= j)),
    )
    trial.mistake(
        "exp((i - j) * log(a)) has no answer for a = 0 (0 times -inf) and for a below 0: raise a to the power",
        lambda a, l: square(l, lambda i, j: _by_logarithm(a, i - j) if i >= j else 0),
    )
    trial.mistake(
        "you divide a**i by a**j: with a = 0, or after many steps, that is 0/0 = NaN. Raise a to i - j",
        _quotients_of_powers,
    )


def _power(a: float, exponent: int) -> float:
    """a ** exponent, infinite where Python raises."""
    return math.inf if a == 0 and exponent < 0 else a**exponent


def _by_logarithm(a: float, exponent: int) -> float:
    if a < 0:
        return math.nan
    return math.exp(exponent * (math.log(a) if a else -math.inf))


def _quotients_of_powers(a: float, l: int) -> Tensor:
    powers = torch.tensor(float(a), dtype=torch.float64) ** torch.arange(l)
    return torch.tril(powers[:, None] / powers)
