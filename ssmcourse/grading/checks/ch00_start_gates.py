"""Check of chapter 00, exercise 3: the matrix of a memory with a gate for every step.

The oracle is the definition, entry by entry: a product of Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ssmcourse.grading.checks.matrices import lower, square
from ssmcourse.grading.registry import exercise
from ssmcourse.grading.trial import Trial


@exercise(
    "start.gated_matrix",
    chapter="00",
    title="A gate for every step",
    difficulty=2,
    minutes=12,
    signature="gated_matrix(a: Tensor) -> Tensor",
    unlocks="your M with two resets, and the matrix inside Mamba in lesson 05",
    forbidden=("ssmcourse.linear_scan",),
    hints=(
        "Follow input 1 by hand: it comes in at step 1 whole. Which gate does it meet at step 2, which at "
        "step 3? Now compare two rows of M that stand below each other.",
        "Row i is row i - 1 times a[i], with a 1 on the diagonal. Or, entry by entry: the product of "
        "a[j+1 : i+1], which is 1 when the slice is empty. Divide nothing: a gate may be 0.",
        "row, rows = torch.zeros(l, dtype=a.dtype), []\n"
        "for i in range(l):\n"
        "    row = a[i] * row       # everything older passes through gate i\n"
        "    row = torch.where(torch.arange(l) == i, ..., row)\n"
        "    rows.append(row)\n"
        "return torch.stack(rows)",
    ),
)
def check_gated_matrix(trial: Trial) -> None:
    _gated_matrix_mistakes(trial)

    example = torch.tensor([0.3, 0.5, 0.2, 2.0], dtype=torch.float32)
    trial.example(example, expect=_between(example))
    with trial.layer("random gates between 0 and 1, in float64"):
        for l in (2, 5, 12):
            a = trial.rand(l)
            trial.compare((a,), _between(a), terms=l)
    with trial.layer("length 1: no gate at all, M is [[1]]"):
        a = trial.rand(1)
        trial.compare((a,), _between(a))
    with trial.layer("gates of 0 wipe what came before, and nothing after"):
        for zeros in ([3], [0], [2, 3, 6]):
            a = trial.rand(8)
            a[zeros] = 0.0
            M = trial.compare((a,), _between(a), terms=8)
            behind = M[max(zeros) :, : max(zeros)]
            trial.require(
                not bool(behind.count_nonzero()),
                f"a[{max(zeros)}] = 0, and still something older gets through: behind a gate of 0 is exactly 0",
            )
    with trial.layer("the first gate, a[0], appears nowhere"):
        a = trial.rand(6)
        a[0] = 1e6
        trial.compare((a,), _between(a), terms=6)
    with trial.layer("gates below 0"):
        a = trial.randn(7)
        trial.compare((a,), _between(a), terms=7)
    with trial.layer("small gates: 40 times 1e-10, far below the smallest float"):
        a = torch.full((40,), 1e-10, dtype=torch.float64)
        trial.compare((a,), _between(a), terms=40)
    with trial.layer("equal gates give the matrix of exercise 2"):
        a = torch.full((9,), 0.8, dtype=torch.float64)
        trial.compare((a,), lower(9, lambda i, j: 0.8 ** (i - j)), terms=9)
    with trial.layer("gradients flow back to a"):
        trial.gradients((trial.rand(6),), _between_with_gradient)


def _between(a: Tensor) -> Tensor:
    """M[i, j] = a[j+1] ... a[i], entry by entry."""
    gates = a.tolist()
    return lower(len(gates), lambda i, j: math.prod(gates[j + 1 : i + 1])).to(a.dtype)


def _between_with_gradient(a: Tensor) -> Tensor:
    """The same by torch, so that it has a gradient."""
    zero = a.new_zeros(())
    rows = [[a[j + 1 : i + 1].prod() if i >= j else zero for j in range(len(a))] for i in range(len(a))]
    return torch.stack([torch.stack(row) for row in rows])


def _gated_matrix_mistakes(trial: Trial) -> None:
    def mistake(words: str, entry: Callable[[list[float], int, int], float]) -> None:
        trial.mistake(words, lambda a: square(len(a), lambda i, j: entry(a.tolist(), i, j)).to(a.dtype))

    mistake(
        "the gates are one step early: input j meets a[j+1] first and a[i] last; you took a[j] ... a[i-1]",
        lambda a, i, j: math.prod(a[j:i]) if i >= j else 0,
    )
    mistake(
        "input j passes through its own gate a[j]: begin with a[j+1], so that the diagonal is 1",
        lambda a, i, j: math.prod(a[j : i + 1]) if i >= j else 0,
    )
    mistake(
        "the last gate is missing: the product ends with a[i] (a slice a[j+1:i] stops before it)",
        lambda a, i, j: math.prod(a[j + 1 : i]) if i >= j else 0,
    )
    mistake(
        "above the diagonal stand ones, the product of an empty slice: put 0 where i < j",
        lambda a, i, j: math.prod(a[j + 1 : i + 1]),
    )
    mistake(
        "the triangle is above the diagonal: M[i, j] has the output in its row, the input in its column",
        lambda a, i, j: math.prod(a[i + 1 : j + 1]) if j >= i else 0,
    )
    mistake(
        "all columns are alike: the product of column j starts anew, with a[j+1]",
        lambda a, i, j: math.prod(a[1 : i + 1]) if i >= j else 0,
    )
    mistake(
        "only the last gate acts, a[i] ** (i - j): each step in between has its own gate",
        lambda a, i, j: a[i] ** (i - j) if i >= j else 0,
    )
    mistake(
        "below the diagonal is a[i] alone: multiply all the gates from a[j+1] to a[i]",
        lambda a, i, j: (a[i] if i > j else 1) if i >= j else 0,
    )
    mistake(
        "the gates are added: a[j+1] + ... + a[i]; multiply them",
        lambda a, i, j: (sum(a[j + 1 : i + 1]) if i > j else 1) if i >= j else 0,
    )
    mistake(
        "the diagonal is empty: an input counts at its own step, the empty product is 1",
        lambda a, i, j: math.prod(a[j + 1 : i + 1]) if i > j else 0,
    )
    mistake(
        "only the first gate acts, a[j] ** (i - j): each step in between has its own gate",
        lambda a, i, j: a[j] ** (i - j) if i >= j else 0,
    )
    mistake(
        "below the diagonal is a[j+1] alone: multiply all the gates from a[j+1] to a[i]",
        lambda a, i, j: (a[j + 1] if i > j else 1) if i >= j else 0,
    )
    mistake(
        "only the last input is remembered: go on below the first diagonal, with products of two and more gates",
        lambda a, i, j: a[i] if i == j + 1 else float(i == j),
    )
    mistake(
        "the product runs on to the last gate of all: it ends with a[i], the slice is a[j+1 : i+1]",
        lambda a, i, j: math.prod(a[j + 1 :]) if i >= j else 0,
    )
    mistake(
        "all rows are the last one: the list holds the same tensor many times, and changing it in place changes "
        "them all; keep row.clone()",
        lambda a, i, j: math.prod(a[j + 1 :]),
    )
    mistake(
        "the sign of the gates is lost: a product of gates below 0 may be negative",
        lambda a, i, j: abs(math.prod(a[j + 1 : i + 1])) if i >= j else 0,
    )
    trial.mistake(
        "NaN was replaced by a number afterwards: what stood there, 1 on the diagonal and products below, is "
        "lost. Multiply the gates in between; then there is no 0/0",
        lambda a: torch.nan_to_num(_ratios_of_products(a)),
    )
    for small in (10.0**-k for k in range(3, 11)):
        trial.mistake(
            f"{small:g} is added to the gates, so that nothing is divided by 0: it changes every product. "
            "Multiply the gates in between, then nothing is divided at all",
            lambda a, small=small: _ratios_of_products(a + small),
        )
        trial.mistake(
            f"{small:g} is added to what you divide by: it changes every product. Multiply the gates in between, "
            "then nothing is divided at all",
            lambda a, small=small: torch.tril(a.cumprod(0)[:, None] / (a.cumprod(0) + small)),
        )
    trial.mistake(
        "you divide one cumulative product by another, or subtract sums of logarithms: behind a gate of 0, or "
        "after many small gates, that is 0/0 (-inf minus -inf), NaN. Multiply the gates in between",
        _ratios_of_products,
    )
    trial.mistake("a gate below 0 has no logarithm: NaN. Multiply the gates themselves", _sums_of_logs)


def _ratios_of_products(a: Tensor) -> Tensor:
    """P_i / P_j with P the cumulative product: right on paper, 0/0 behind a gate of 0."""
    products = torch.cumprod(a, 0)
    return torch.tril(products[:, None] / products)


def _sums_of_logs(a: Tensor) -> Tensor:
    logs = torch.log(a)
    return square(len(a), lambda i, j: torch.exp(logs[j + 1 : i + 1].sum()).item() if i >= j else 0).to(
        a.dtype
    )
