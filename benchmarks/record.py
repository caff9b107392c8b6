"""How a benchmark times and stores: medians, one machine a file, its date and name beside the figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> str:
    """The processor, its cores, and the versions that matter, in one line."""
    import numba
    import torch

    try:
        info = Path("/proc/cpuinfo").read_text()
        model = next(
            line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numba {numba.__version__}, {torch.get_num_threads()} torch thread(s)"
    )


def median_ms(*rivals: Callable[[], Any], rounds: int = 7) -> list[float]:
    """The median milliseconds a call of each rival, in turn, so that all see the same machine.

    Each is called before, which compiles what compiles, and says how many calls make up a round of
    some 5 ms: a quick rival is not timed on the caches that a slow one left behind.
    """
    for rival in rivals:
        rival()
    calls = [max(1, round(5e-3 / _seconds(rival, 1))) for rival in rivals]
    times: list[list[float]] = [[] for _ in rivals]
    for _ in range(rounds):
        for rival, n, seen in zip(rivals, calls, times, strict=True):
            seen.append(1e3 * _seconds(rival, n) / n)
    return [statistics.median(seen) for seen in times]


def _seconds(rival: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        rival()
    return time.perf_counter() - start


def store(name: str, **figures: Any) -> None:
    """Write figures to results/NAME.json with the date and the machine; floats to four digits."""
    record = {"date": datetime.date.today().isoformat(), "machine": machine(), **figures}
    text = json.dumps(_short(record), indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    print(text, end="")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return value
