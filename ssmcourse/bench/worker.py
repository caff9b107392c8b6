"""A measurement in a process of its own: `python -m ssmcourse.bench.worker REQUEST ANSWER`.

Threads and memory are then those of the measurement, a peer that crashes takes nobody with it, and what it
prints is out of the way. REQUEST is JSON, ANSWER the file that the result is written to.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ssmcourse.bench import contestants
from ssmcourse.bench.compare import compare
from ssmcourse.bench.limits import Yardsticks
from ssmcourse.bench.memory import weigh
from ssmcourse.bench.operators import LENGTHS, OPERATORS, Operator
from ssmcourse.bench.timing import interleaved


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the request asks for; its other entries are arguments of the function that it names."""
    what, name, numbers = request.pop("what"), request.pop("operator"), tuple(request.pop("sizes"))
    op = OPERATORS[name]
    if what == "compare":
        return compare(op, numbers, **request)
    torch.set_num_threads(1)
    if what == "memory":
        return weigh(op, numbers, **request)
    return scaling(op, numbers, **request)


def scaling(op: Operator, numbers: tuple[int, ...], *, rounds: int) -> dict[str, Any]:
    """Our best backend, short and long in turn: nanoseconds a step, forward and with backward.

    A copy of the long input's size runs beside them: `of_copy_bandwidth` is the share of its bytes a second
    that the long run moves, counting what it must move.
    """
    best = contestants.ours(op)[0]
    entries = {}
    for l in LENGTHS:
        inputs = op.inputs(numbers, l=l)
        options = op.options(op.sizes(numbers) | {"l": l})
        entries[l] = contestants.enter(best, inputs, options, torch.randn_like(inputs[op.like]))
    sticks = Yardsticks(max(t.numel() * t.element_size() for t in inputs.values()))
    result: dict[str, Any] = {"sizes": list(numbers), "lengths": list(LENGTHS), "who": best.name}
    works = op.work(op.sizes(numbers) | {"l": LENGTHS[-1]}) if op.work else ()
    for direction, work in zip(("forward", "both"), works, strict=True):
        calls = [getattr(entries[l], direction) for l in LENGTHS]
        *ours, copy = interleaved([*calls, sticks.copy], rounds=rounds)
        steps = [1e6 * t.cpu_ms / l for t, l in zip(ours, LENGTHS, strict=True)]
        result[direction] = {
            "ns_a_step": steps,
            "ratio": steps[-1] / steps[0],
            "of_copy_bandwidth": (work.bytes / ours[-1].cpu_ms) / (sticks.bytes / copy.cpu_ms),
        }
    return result


def main() -> None:
    request, target = json.loads(sys.argv[1]), Path(sys.argv[2])
    start = time.perf_counter()
    result = answer(request)
    result["seconds"] = time.perf_counter() - start
    target.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
