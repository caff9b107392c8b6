"""What a parallel scan does, step by step: who is combined with whom, and how long P processors take.

Lesson 06 counts with it, and its step debugger draws it. Cells are numbered from 0; a step reads all its
operands before it writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssmcourse.arguments import integer, one_of
from ssmcourse.associative import METHODS, chunk_length


class Combine(NamedTuple):
    """One application of the operator: cell `target` becomes cell `earlier` ∘ cell `later`.

    On Blelloch's way down `vacated` is the cell that takes over what target held; elsewhere it is None.
    """

    earlier: int
    later: int
    target: int
    vacated: int | None = None


@dataclass(frozen=True)
class Step:
    """The combines that happen at once, as arrays (k,) of cells; iterating gives them one by one.

    `phase` says to which part of the algorithm it belongs: "scan", "up", "down", "chunks", "ends", "rest".
    """

    phase: str
    earlier: np.ndarray
    later: np.ndarray
    target: np.ndarray
    vacated: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.target)

    def __iter__(self) -> Iterator[Combine]:
        columns = [self.earlier, self.later, self.target, *([] if self.vacated is None else [self.vacated])]
        return (Combine(*(int(cell) for cell in row)) for row in zip(*columns, strict=True))


@dataclass(frozen=True)
class ScanTrace:
    """A scan of l elements, as `scan_trace` returns it.

    Attributes:
        l, method, processors: as asked for; `processors` None stands for as many as there is work for.
        cells: how many there are: l, or for `blelloch` the next power of two, padded with the identity.
        steps: what happens, in order. At the end cell t holds the prefix up to and with t; for `blelloch` that
            without t (cell 0 the identity), as the textbook has it.
    """

    l: int
    method: str
    processors: int | None
    cells: int
    steps: tuple[Step, ...]

    @property
    def depth(self) -> int:
        """How many steps follow one another."""
        return len(self.steps)

    @property
    def work(self) -> int:
        """How many combines there are."""
        return sum(len(step) for step in self.steps)

    @property
    def ticks(self) -> int:
        """How long it takes, if each processor does one combine a tick and a step ends before the next begins."""
        at_once = self.processors or max(1, self.l)
        return sum(-(-len(step) // at_once) for step in self.steps)

    @property
    def timeline(self) -> Iterator[tuple[Combine, ...]]:
        """The combines of every tick."""
        for step in self.steps:
            combines = list(step)
            at_once = self.processors or len(combines)
            for first in range(0, len(combines), at_once):
                yield tuple(combines[first : first + at_once])


def scan_trace(l: int, method: str, processors: int | None = None) -> ScanTrace:
    """Every combine of every step that a scan of l elements takes.

    Args:
        l: number of elements, 0 or more.
        method: `sequential`, `hillis_steele`, `blelloch` or `chunked`, as in `associative_scan`, which makes
            the same combines in the same steps (`blelloch`: where it is given an identity).
        processors: how many combines can be done at a time; None for any number.
    Returns:
        ScanTrace.
    Raises:
        ValueError: l or processors is no such number, or there is no such method.

    Cost: memory for 24 bytes a combine.
    Source: Blelloch 1990, sections 1.2 and 1.3. Lesson 06.
    """
    one_of("method", method, METHODS)
    l = integer("l", l, 0)
    if processors is not None:
        processors = integer("processors", processors, 1, "an integer of 1 or more, or None")
    cells = 1 << (l - 1).bit_length() if method == "blelloch" and l else l
    steps = {
        "sequential": _sequential,
        "hillis_steele": _hillis_steele,
        "blelloch": _blelloch,
        "chunked": _chunked,
    }[method](cells)
    return ScanTrace(l, method, processors, cells, tuple(step for step in steps if len(step)))


def _sequential(n: int) -> Iterator[Step]:
    for t in range(1, n):
        yield _onto("scan", np.array([t]), 1)


def _hillis_steele(n: int) -> Iterator[Step]:
    distance = 1
    while distance < n:
        yield _onto("scan", np.arange(distance, n), distance)
        distance *= 2


def _blelloch(n: int) -> Iterator[Step]:
    half = 1
    while half < n:
        yield _onto("up", np.arange(2 * half - 1, n, 2 * half), half)
        half *= 2
    while half > 1:
        half //= 2
        right = np.arange(2 * half - 1, n, 2 * half)
        left = right - half
        # The right cell holds what lies left of the pair, the left cell its own sum.
        yield Step("down", earlier=right, later=left, target=right, vacated=left)


def _chunked(n: int) -> Iterator[Step]:
    c = chunk_length(n)
    for j in range(1, c):
        yield _onto("chunks", np.arange(j, n, c), 1)
    ends = np.arange(c - 1, n, c)
    for end in ends[1:]:
        yield _onto("ends", np.array([end]), c)
    later = np.setdiff1d(np.arange(c, n), ends)
    yield Step("rest", earlier=later // c * c - 1, later=later, target=later)


def _onto(phase: str, target: np.ndarray, distance: int) -> Step:
    """Each target is combined with the cell so far before it."""
    return Step(phase, earlier=target - distance, later=target, target=target)
