"""How a benchmark times and stores: medians, one machine a file, its date and name beside the figures."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssmcourse.bench.timing import interleaved, machine

RESULTS = Path(__file__).resolve().parent / "results"


def median_ms(*rivals: Callable[[], Any], rounds: int = 7) -> list[float]:
    """The median milliseconds a call of each rival, in turn, so that all see the same machine."""
    return [timing.wall_ms for timing in interleaved(rivals, rounds=rounds)]


def store(name: str, *, quiet: bool = False, **figures: Any) -> None:
    """Write figures to results/NAME.json with the date and the machine; floats to four digits.

    They are printed too, unless `quiet`.
    """
    record = {"date": datetime.date.today().isoformat(), "machine": machine(), **figures}
    text = json.dumps(_short(record), indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    if not quiet:
        print(text, end="")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return value
