"""What this machine could do at best: three yardsticks, measured in the same turns as the rivals.

No scan can be quicker than reading its arrays and writing its result, no matrix product than the processor's
multiply-adds, no gate than its exponential. `Work` says how much of each an operator cannot do without; the
slowest of the three is its limit. The three can overlap, so the limit is a maximum and not a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssmcourse.bench.timing import Timing
from ssmcourse.kernels import vector_math
from ssmcourse.kernels.threads import native, run

SIDE = 512  # of the matrices multiplied
IN_CACHE = 1 << 13  # numbers, 32 KB: exponentials without the memory
PASSES = 64


@dataclass(frozen=True)
class Work:
    """What no algorithm avoids, in float32: bytes read and written, operations of matrix products, exponentials."""

    bytes: float = 0.0
    flops: float = 0.0
    exps: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops, self.exps + other.exps)


@dataclass(frozen=True)
class Rates:
    """Per second and for the threads in use: bytes copied (read and written), flops, exponentials."""

    bytes: float
    flops: float
    exps: float

    def limit(self, work: Work) -> tuple[float, str]:
        """The least milliseconds for `work`, and which of the three it is that takes so long."""
        times = {
            "memory": work.bytes / self.bytes,
            "matrix products": work.flops / self.flops,
            "exponentials": work.exps / self.exps,
        }
        slowest = max(times, key=lambda name: times[name])
        return 1e3 * times[slowest], slowest


class Yardsticks:
    """The three calls to be timed between the rivals, and what their times say.

    They use as many threads as torch was told to.
    """

    def __init__(self, largest: int) -> None:
        """Args: largest, the bytes of the largest array of the case, since a copy that fits a cache is quicker."""
        threads = torch.get_num_threads()
        source = np.ones(max(1 << 16, largest // 4), dtype=np.float32)
        target = source.copy()  # NumPy asks for huge pages, which torch's arrays do not have
        halves = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
        left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
        product = torch.empty(SIDE, SIDE)
        x = np.linspace(-8, 0, IN_CACHE, dtype=np.float32)
        passes = [(x, np.empty_like(x), PASSES) for _ in range(threads)]
        self.bytes, self.exps = 2 * source.nbytes, threads * PASSES * IN_CACHE
        self.copy: Callable[[], Any] = lambda: run(np.copyto, halves)
        self.calls: list[Callable[[], Any]] = [
            self.copy,
            lambda: torch.mm(left, right, out=product),
            lambda: run(_exponentials, passes),
        ]

    def rates(self, copy: Timing, matmul: Timing, exp: Timing, threads: int = 1) -> Rates:
        """From the time of each: CPU time on one thread, where others may be using the machine, else wall time."""
        copying, multiplying, exponentiating = (
            1e-3 * (timing.cpu_ms if threads == 1 else timing.wall_ms) for timing in (copy, matmul, exp)
        )
        return Rates(self.bytes / copying, 2 * SIDE**3 / multiplying, self.exps / exponentiating)


@native
def _exponentials(x, out, passes):
    for _ in range(passes):
        for k in range(x.shape[0]):
            out[k] = vector_math.exp(x[k])
