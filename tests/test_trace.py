"""scan_trace: its counts are the theory's, and replaying its combines gives the prefixes."""

from __future__ import annotations

import math
import re

import pytest

from ssmcourse.associative import METHODS
from ssmcourse.trace import Combine, scan_trace


@pytest.mark.parametrize(
    ("l", "method", "depth", "work"),
    [
        (8, "hillis_steele", 3, 17),
        (8, "blelloch", 6, 14),
        (64, "hillis_steele", 6, 321),
        (64, "blelloch", 12, 126),
        (1000, "sequential", 999, 999),
        (1000, "hillis_steele", 10, 8977),
        (1000, "blelloch", 20, 2046),
        (1024, "hillis_steele", 10, 9217),
        (1024, "blelloch", 20, 2046),
        (1024, "chunked", 31 + 31 + 1, 32 * 31 + 31 + 31 * 31),
    ],
)
def test_counts_of_the_textbook(l, method, depth, work):
    trace = scan_trace(l, method)
    assert (trace.depth, trace.work, trace.ticks) == (depth, work, depth)
    assert scan_trace(l, method, 1).ticks == work


@pytest.mark.parametrize("l", [0, 1, 2, 3, 5, 8, 17, 33, 100])
@pytest.mark.parametrize("method", METHODS)
def test_replaying_the_steps_gives_every_prefix(method, l):
    """Concatenation of strings: it does not commute, and shows what went where."""
    trace = scan_trace(l, method)
    letters = [chr(ord("a") + t % 26) + str(t) for t in range(l)]
    cells = letters + [""] * (trace.cells - l)
    for i, step in enumerate(trace.steps):
        if step.phase == "down" and trace.steps[i - 1].phase == "up":
            assert cells[-1] == "".join(letters)
            cells[-1] = ""
        read = list(cells)
        written = [cell for c in step for cell in (c.target, c.vacated) if cell is not None]
        assert len(set(written)) == len(written), "two write to one place"
        for c in step:
            cells[c.target] = read[c.earlier] + read[c.later]
            if c.vacated is not None:
                cells[c.vacated] = read[c.target]
    exclusive = method == "blelloch"
    if l > 1:
        assert cells[:l] == ["".join(letters[: t + (not exclusive)]) for t in range(l)]


@pytest.mark.parametrize("processors", [1, 2, 3, 7, 64, 5000])
@pytest.mark.parametrize("method", METHODS)
def test_processors(method, processors):
    """Brent: no more than work / P + depth ticks, and no fewer than work / P or depth."""
    trace = scan_trace(1000, method, processors)
    ticks = list(trace.timeline)
    assert len(ticks) == trace.ticks
    assert [c for tick in ticks for c in tick] == [c for step in trace.steps for c in step]
    assert max(map(len, ticks)) <= processors
    assert max(math.ceil(trace.work / processors), trace.depth) <= trace.ticks
    assert trace.ticks <= trace.work / processors + trace.depth


def test_the_choice_depends_on_the_processors():
    """Few processors reward little work, many reward few steps: the point of lesson 06."""

    def ticks(method, processors):
        return scan_trace(1024, method, processors).ticks

    assert ticks("sequential", 1) < ticks("blelloch", 1) < ticks("hillis_steele", 1)
    assert ticks("blelloch", 16) < ticks("hillis_steele", 16)
    assert ticks("hillis_steele", 1024) < ticks("blelloch", 1024)


def test_a_step_is_read_combine_by_combine():
    up, *_, down = scan_trace(4, "blelloch").steps
    assert list(up) == [Combine(0, 1, 1), Combine(2, 3, 3)]
    assert list(down) == [Combine(1, 0, 1, 0), Combine(3, 2, 3, 2)]
    assert [step.phase for step in scan_trace(9, "chunked").steps] == ["chunks"] * 2 + ["ends"] * 2 + ["rest"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, "fast"), "method: got 'fast', expected one of sequential, hillis_steele, blelloch, chunked"),
        ((-1, "blelloch"), "l: got -1, expected an integer of 0 or more"),
        ((2.0, "blelloch"), "l: got 2.0, expected an integer of 0 or more"),
        ((8, "blelloch", "4"), "processors: got '4', expected an integer of 1 or more, or None"),
        ((8, "blelloch", 0), "processors: got 0, expected an integer of 1 or more, or None"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scan_trace(*arguments)
