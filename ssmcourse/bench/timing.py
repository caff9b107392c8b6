"""Timing: rivals in turn, CPU time beside wall time, medians; and which machine it was."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROUND_AT_LEAST = 20e-3  # seconds; a quick rival is called more often
BUSY_FROM = 2.0  # a load average above this: others wait for the processor


@dataclass(frozen=True)
class Timing:
    """Medians over `rounds`, in milliseconds a call; `cpu_ms` sums all threads of the process."""

    cpu_ms: float
    wall_ms: float
    rounds: int


def interleaved(
    rivals: Sequence[Callable[[], Any]], *, rounds: int = 7, budget: float = math.inf
) -> list[Timing]:
    """Time the rivals in turn, so that all of them see the same machine.

    Each is called before, which compiles what compiles, and then once more to say how many calls make up a
    round of some 20 ms. A quick rival's round begins with a call that does not count: otherwise it would pay for
    what a slow one left in the caches (a scan of 1.6 ms took 3.4).

    Args:
        rivals: functions without arguments.
        rounds: turns of each.
        budget: seconds for one rival; one that needs longer gets fewer turns, and one whose very first
            call takes twice as long is not called again.
    """
    watches = [_Watch(rival, rounds, budget) for rival in rivals]
    for turn in range(rounds):
        for watch in watches:
            if turn < watch.turns:
                watch.lap()
    return [watch.median() for watch in watches]


class _Watch:
    def __init__(self, rival: Callable[[], Any], rounds: int, budget: float) -> None:
        self.rival, self.calls = rival, 1
        self.laps: list[tuple[float, float]] = []
        self.turns = 0
        if self.lap() > 2 * budget:
            return
        self.laps.clear()
        seconds = self.lap()
        self.laps.clear()
        self.calls = max(1, round(ROUND_AT_LEAST / max(seconds, 1e-9)))
        self.turns = int(min(rounds, max(1, budget / (seconds * self.calls))))

    def lap(self) -> float:
        if self.calls > 1:
            self.rival()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(self.calls):
            self.rival()
        seconds = time.perf_counter() - wall
        self.laps.append(((time.process_time() - cpu) / self.calls, seconds / self.calls))
        return seconds

    def median(self) -> Timing:
        cpu, wall = (1e3 * statistics.median(times) for times in zip(*self.laps, strict=True))
        return Timing(cpu, wall, len(self.laps))


def machine(*, threads: bool = True) -> str:
    """The processor, its cores, the versions that matter and how many threads torch uses, in one line."""
    import torch

    line = (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numba {metadata.version('numba')}"
    )
    return f"{line}, {torch.get_num_threads()} torch thread(s)" if threads else line


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load() -> float | None:
    """How many processes have been running or waiting in the last minute; None where nobody counts."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
