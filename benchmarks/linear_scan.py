"""The linear scan on one thread of the CPU: against the memory's limit, and against what torch offers.

The limit: a scan must read a and b and write h, three arrays, and a copy moves two. So no scan of arrays
that are in no cache takes less than 1.5 times a copy of one into memory that is there already; a gradient
reads a, h and dh and writes da and db, 2.5 times. `kernel` writes into memory that is there, too; `call`
is all of `linear_scan(a, b)`, which asks for fresh memory as every function does.

The rivals: the loop over steps; torch's own associative scan (a higher-order operator, still a prototype);
and a closed form in logarithms (Heinsen 2023, "Efficient parallelization of a ubiquitous sequential
computation"), which needs positive a and b.
"""

from __future__ import annotations

import torch
from record import median_ms, store
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from ssmcourse import linear_scan
from ssmcourse.kernels import memory
from ssmcourse.kernels.linear_scan import cpu

ROUNDS = 15
CASES = {
    "wide": (2, 4096, 256),
    "long": (1, 1 << 16, 64),
    "short": (8, 1024, 64),
    "one channel": (1, 1 << 16, 1),
}


def main() -> None:
    torch.set_num_threads(1)
    figures = {name: forward(shape) for name, shape in CASES.items()}
    store("linear_scan", dtype="float32", forward=figures, training=training(CASES["wide"]), rounds=ROUNDS)


def forward(shape: tuple[int, int, int]) -> dict:
    """Milliseconds and largest errors for positive gates near 1 and positive inputs.

    The rivals run in a round of their own: the gigabytes that they go through leave every cache cold.
    """
    a, b, source, target = (
        0.9 + 0.1 * torch.rand(shape),
        torch.rand(shape),
        torch.rand(shape),
        torch.empty(shape),
    )
    ways = {
        "call": lambda: linear_scan(a, b),
        "torch loop": lambda: linear_scan(a, b, backend="reference"),
        "torch associative_scan": lambda: by_associative_scan(a, b),
        "torch logcumsumexp": lambda: by_logarithms(a, b),
    }
    exact = linear_scan(a.double(), b.double(), backend="reference")
    errors = {name: float((way() - exact).abs().max() / exact.abs().max()) for name, way in ways.items()}
    copy, kernel, call = median_ms(lambda: target.copy_(source), in_place(a, b), ways["call"], rounds=ROUNDS)
    rivals = dict(zip(ways, median_ms(*ways.values(), rounds=ROUNDS), strict=True))
    limit = 1.5 * copy
    return {
        "shape": shape,
        "ms": {"limit": limit, "kernel": kernel, "call": call},
        "times the limit": {"kernel": kernel / limit, "call": call / limit},
        "ms beside the rivals": rivals,
        "times the call": {name: t / rivals["call"] for name, t in rivals.items() if name != "call"},
        "relative error": errors,
    }


def in_place(a: Tensor, b: Tensor):
    """The bare kernel, into an array that it fills again and again."""
    rows, l, d = b.shape
    h = memory.empty(b.shape, b.numpy().dtype)
    arrays = a.numpy(), b.numpy(), torch.zeros(rows, d).numpy(), h
    kernel = cpu._kernel(h, [(0, d)])
    return lambda: kernel(*arrays, 0, l, 0, d, False)


def by_associative_scan(a: Tensor, b: Tensor) -> Tensor:
    def then(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return associative_scan(then, (a, b), 1, combine_mode="generic")[1]


def by_logarithms(a: Tensor, b: Tensor) -> Tensor:
    decay = a.log().cumsum(1)
    return (decay + (b.log() - decay).logcumsumexp(1)).exp()


def training(shape: tuple[int, int, int]) -> dict:
    """Forward and backward together: three arrays of traffic, then five."""
    a, b = (0.9 + 0.1 * torch.rand(shape)).requires_grad_(), torch.rand(shape).requires_grad_()
    dh, source, target = torch.rand(shape), torch.rand(shape), torch.empty(shape)

    def both(backend: str):
        return lambda: torch.autograd.grad(linear_scan(a, b, backend=backend), (a, b), dh)

    copy, ours = median_ms(lambda: target.copy_(source), both("cpu"), rounds=ROUNDS)
    beside, loop = median_ms(both("cpu"), both("reference"), rounds=ROUNDS)
    return {
        "shape": shape,
        "ms": {"limit": 4 * copy, "call": ours},
        "times the limit": ours / (4 * copy),
        "ms beside the rivals": {"call": beside, "torch loop": loop},
        "times the call": loop / beside,
    }


if __name__ == "__main__":
    main()
