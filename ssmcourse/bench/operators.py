"""The operators that are measured: their inputs, their sizes, what no algorithm can avoid, and what is promised.

Sizes are in the order of the letters of `Operator.letters`; q is the chunk that the caller names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ssmcourse.bench import loops
from ssmcourse.bench.limits import Work

Sizes = dict[str, int]
Inputs = dict[str, Tensor]
LENGTHS = (4096, 65_536)  # of the scaling: the short one and the long one
LONG = LENGTHS[1]


@dataclass(frozen=True)
class Promise:
    """How many times as long as ours the best peer takes, forward and with backward: at least, and as an aim.

    `limit` is how many times the machine's limit ours may take. None: nothing is said about it.
    """

    forward: float | None = None
    both: float | None = None
    aim: tuple[float | None, float | None] = (None, None)
    limit: tuple[float, float] | None = None
    against: str = ""  # who is meant, as `best_peer` of `tables` takes it; empty: the best valid peer


@dataclass(frozen=True)
class Operator:
    """An operator as the benchmark sees it.

    `make` draws its inputs, `oracle` is its definition, `work` what is unavoidable forward and what with
    backward. `cases` are the sizes measured, each with its promises; `scaling` the sizes that are measured at
    both LENGTHS, `long` those whose memory is weighed at l = LONG.
    """

    name: str
    letters: str
    make: Callable[[Sizes, torch.Generator], Inputs]
    oracle: Callable[..., Tensor]
    cases: dict[tuple[int, ...], tuple[Promise, ...]]
    work: Callable[[Sizes], tuple[Work, Work]] | None = None
    options: Callable[[Sizes], dict[str, Any]] = lambda sizes: {}
    ours: dict[str, Any] = field(default_factory=dict)  # options that only our function has
    like: str = "x"  # the input of whose shape the output is, where it is measured long
    home: str = "ssmcourse"
    backward: bool = True
    scaling: tuple[int, ...] | None = None
    long: tuple[int, ...] | None = None
    memory: tuple[tuple[int, ...], ...] = ()  # cases in which every contestant is weighed
    memory_ratio: float | None = None  # at most: peak of `long` over inputs, outputs and gradients
    memory_of: dict[str, float] = field(
        default_factory=dict
    )  # peer -> how many times ours it needs, at least
    by_memory: bool = False  # reading and writing is all that it has to wait for

    def sizes(self, numbers: tuple[int, ...]) -> Sizes:
        """Letter -> size."""
        return dict(zip(self.letters.split(), numbers, strict=True))

    def inputs(
        self, numbers: tuple[int, ...], dtype: torch.dtype = torch.float32, l: int | None = None
    ) -> Inputs:
        """Named tensors, the same numbers for every dtype; `l` replaces the length."""
        sizes = self.sizes(numbers) | ({} if l is None else {"l": l})
        made = self.make(sizes, torch.Generator().manual_seed(0))
        wide = dtype == torch.float64
        return {name: (_wide(t) if wide else t).contiguous() for name, t in made.items()}

    def length(self, numbers: tuple[int, ...]) -> int:
        return self.sizes(numbers)["l"]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


# --- Inputs: sizes as in trained models, steps dt from a thousandth to a tenth --------------------


def _steps(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return functional.softplus(torch.randn(shape, generator=draw) - 4)


def _scan_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    shape = s["b"], s["l"], s["d"]
    return {"a": 1 - 0.2 * torch.rand(shape, generator=draw), "b": torch.randn(shape, generator=draw)}


def _selective_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    b, l, d, n = (s[k] for k in "bldn")
    return {
        "x": torch.randn(b, l, d, generator=draw),
        "dt": _steps((b, l, d), draw),
        "A": -torch.arange(1.0, n + 1).expand(d, n),
        "B": torch.randn(b, l, n, generator=draw),
        "C": torch.randn(b, l, n, generator=draw),
    }


def _matrix_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    inputs = _selective_inputs(s, draw)
    del inputs["x"]
    return inputs


def _ssd_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    b, l, h, p, n = (s[k] for k in "blhpn")
    return {
        "x": torch.randn(b, l, h, p, generator=draw),
        "dt": _steps((b, l, h), draw),
        "A": -1 - 15 * torch.rand(h, generator=draw),
        "B": torch.randn(b, l, 1, n, generator=draw),
        "C": torch.randn(b, l, 1, n, generator=draw),
    }


def _attention_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    """Queries and keys after a feature map, so they are positive."""
    b, l, h, n, p = (s[k] for k in "blhnp")
    q, k = (functional.elu(torch.randn(b, l, h, n, generator=draw)) + 1 for _ in range(2))
    return {"q": q, "k": k, "v": torch.randn(b, l, h, p, generator=draw)}


def _wkv_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    b, l, d = (s[k] for k in "bld")
    k, v = (torch.randn(b, l, d, generator=draw) for _ in range(2))
    return {"k": k, "v": v, "w": torch.linspace(-5, 1, d), "u": torch.randn(d, generator=draw)}


def _conv_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    return {
        "x": torch.randn(s["b"], s["l"], s["d"], generator=draw),
        "weight": torch.randn(s["d"], s["w"], generator=draw),
    }


def _modes(s: Sizes, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Half of n modes for each of h channels: -1/2 + i pi k, and B and C to go with them."""
    h, half = s["h"], s["n"] // 2
    poles = torch.complex(torch.full((half,), -0.5), torch.pi * torch.arange(half))
    B, C = (torch.randn(h, half, dtype=torch.complex64, generator=draw) for _ in range(2))
    return poles.expand(h, half), B, C


def _s4_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    Lambda, B, C = _modes(s, draw)
    P = 0.5 * torch.randn(s["h"], s["n"] // 2, 1, dtype=torch.complex64, generator=draw)
    return {"Lambda": Lambda, "P": P, "B": B, "C": C, "dt": _log_uniform(s["h"], draw)}


def _s4d_inputs(s: Sizes, draw: torch.Generator) -> Inputs:
    A, B, C = _modes(s, draw)
    return {"A": A, "B": B, "C": C, "dt": _log_uniform(s["h"], draw)}


def _log_uniform(h: int, draw: torch.Generator) -> Tensor:
    return 10 ** (-3 + 2 * torch.rand(h, generator=draw))


# --- What cannot be avoided ----------------------------------------------------------------------


def _scan_work(s: Sizes) -> tuple[Work, Work]:
    """a, b in and h out; then a, h and dh in, da and db out."""
    array = 4 * s["b"] * s["l"] * s["d"]
    return Work(bytes=3 * array), Work(bytes=8 * array)


def _selective_work(s: Sizes) -> tuple[Work, Work]:
    """One exponential a channel, state and step, and one more in the backward, where keeping it costs more."""
    wide, narrow = 4 * s["b"] * s["l"] * s["d"], 4 * s["b"] * s["l"] * s["n"]
    exps = s["b"] * s["l"] * s["d"] * s["n"]
    forward = Work(bytes=3 * wide + 2 * narrow, exps=exps)
    return forward, forward + Work(bytes=5 * wide + 4 * narrow, exps=exps)


def _ssd_work(s: Sizes) -> tuple[Work, Work]:
    """Matrix products of the chunked form with chunks of 64, of triangles the half that is not zero.

    Forward: C B^T once, the triangle times x, the states' inputs and outputs. Backward: the two gradients of each.
    """
    b, l, h, p, n = (s[k] for k in "blhpn")
    q = 64
    triangles = b * l * q * (n + h * p)  # 2 operations, half of them
    states = 4 * b * l * h * p * n
    array, narrow = 4 * b * l * h * p, 4 * b * l * n
    forward = Work(bytes=2 * array + 2 * narrow, flops=triangles + states)
    backward = Work(bytes=3 * array + 4 * narrow, flops=2 * (triangles + states))
    return forward, forward + backward


def _attention_work(s: Sizes) -> tuple[Work, Work]:
    """As SSD, with keys and queries of its own for every head, and no decay."""
    b, l, h, n, p = (s[k] for k in "blhnp")
    flops = b * l * h * (64 * (n + p) + 4 * n * p)
    arrays = 4 * b * l * h * (2 * n + 2 * p)
    return Work(bytes=arrays, flops=flops), Work(bytes=3 * arrays, flops=3 * flops)


def _conv_work(s: Sizes) -> tuple[Work, Work]:
    array = 4 * s["b"] * s["l"] * s["d"]
    return Work(bytes=2 * array), Work(bytes=5 * array)


# --- The table -----------------------------------------------------------------------------------

OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        Operator(
            "selective_scan",
            "b l d n",
            _selective_inputs,
            loops.selective_scan,
            {
                (1, 2048, 768, 16): (Promise(8, 12, (15, 22), (2.3, 5)), Promise(12, 20, against="torch")),
                (1, 8192, 256, 16): (Promise(8, 12, (15, 22), (2.3, 5)), Promise(12, 20, against="torch")),
                (2, 512, 256, 16): (Promise(2.5, 6, (5, 12), (2, 4)),),
            },
            _selective_work,
            scaling=(1, LONG, 256, 16),
            long=(1, LONG, 1024, 16),
            memory=((1, 2048, 768, 16),),
            memory_ratio=1.5,
            memory_of={"jax lax.scan": 10},
        ),
        Operator(
            "ssd",
            "b l h p n q",
            _ssd_inputs,
            loops.ssd,
            {
                (1, 2048, 24, 64, 128, 64): (Promise(1.4, 2, (2, 3), (2.8, 3)),),
                (1, 2048, 24, 64, 128, 256): (Promise(3, 4, (5, 5.5), (2.8, 3)),),
                (1, 8192, 8, 64, 64, 64): (Promise(1.4, 2, (2, 3), (2.8, 3)),),
            },
            _ssd_work,
            options=lambda s: {"chunk_size": s["q"]},
            scaling=(1, LONG, 8, 64, 64, 64),
            long=(1, LONG, 24, 64, 128, 64),
            memory=((1, 8192, 8, 64, 64, 64),),
            memory_ratio=2.5,
            memory_of={"fla naive chunk": 8},
        ),
        Operator(
            "linear_scan",
            "b l d",
            _scan_inputs,
            loops.linear_scan,
            {
                (2, 4096, 256): (Promise(4, 1.8, (5, 4), (1.3, 1.9), "as ours"), Promise(1, 1)),
                (1, LONG, 64): (Promise(4, 1.8, (5, 4), (1.3, 1.9), "as ours"), Promise(1, 1)),
            },
            _scan_work,
            scaling=(1, LONG, 256),
            memory=((2, 4096, 256),),
            like="b",
            by_memory=True,
        ),
        Operator(
            "causal_conv1d",
            "b l d w",
            _conv_inputs,
            loops.causal_conv1d,
            {(1, 2048, 1536, 4): (), (2, 4096, 256, 4): ()},
            _conv_work,
            scaling=(1, LONG, 256, 4),
            by_memory=True,
        ),
        Operator(
            "s4_kernel",
            "h n l",
            _s4_inputs,
            loops.s4_kernel,
            {(256, 64, 4096): (Promise(4, None, (8, None), against="Cauchy by broadcasting"),)},
            options=lambda s: {"l": s["l"]},
            ours={"half_modes": True},
        ),
        Operator(
            "s4d_kernel",
            "h n l",
            _s4d_inputs,
            loops.s4d_kernel,
            {(256, 64, 4096): (Promise(10, None, (30, None), against="Vandermonde by broadcasting"),)},
            options=lambda s: {"l": s["l"]},
        ),
        Operator(
            "linear_attention",
            "b l h n p",
            _attention_inputs,
            loops.linear_attention,
            {(1, 2048, 8, 64, 64): ()},
            _attention_work,
        ),
        Operator("wkv4", "b l d", _wkv_inputs, loops.wkv4, {(1, 2048, 768): ()}),
        Operator(
            "selective_scan_matrix",
            "b l d n",
            _matrix_inputs,
            loops.selective_scan_matrix,
            {
                (1, 128, 32, 16): (
                    Promise(60, None, (200, None), against="published triple loop"),
                    Promise(10, None, (30, None), against="segsum and einsum"),
                )
            },
            home="ssmcourse.attention",
            backward=False,
        ),
    )
}
