"""SSD in Triton: what the kernels are given, and in which order they run.

    triton_tiles.py      sizes of tiles, and what several kernels call
    triton_forward.py    the five steps of the chunked algorithm
    triton_backward.py   their gradients, and in triton_backward_groups.py those that heads share

The forward keeps the states that enter the chunks, and nothing else; s and C Bᵀ are computed again for the backward,
which costs less than to keep them. Whatever chunk size the caller named, a chunk has 256 steps.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels.launching import on_device_of
from ssmcourse.kernels.ssd import operator, triton_backward, triton_backward_groups, triton_forward
from ssmcourse.kernels.ssd.triton_tiles import (
    CHUNK,
    CONFIGURATIONS,
    INTERPRETED,
    Blocks,
    blocks,
    configuration,
)

TYPES = {
    torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64,
}  # fmt: skip
# Tuning takes seconds for each new size, so it is asked for.
TUNE = os.environ.get("SSMCOURSE_AUTOTUNE", "0") == "1" and not INTERPRETED
MOST_PROGRAMS = 65535  # that a GPU starts along the second and third side of a grid


class Given(NamedTuple):
    """The operator's tensors as the kernels read them, contiguous; another one in the place of those not there."""

    x: Tensor
    dt: Tensor
    log_a: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor
    initial: Tensor
    number: Tensor  # (b, l), of each step's sequence, int32
    ends: Tensor  # (s,), the last steps of sequences, as row l + step
    flags: dict[str, bool]  # what is there
    sizes: Blocks
    operand: dict[str, Any]  # how matrices are multiplied
    multiplied: torch.dtype  # in which type

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.x.shape[1], self.sizes.chunk)

    @property
    def tiles(self) -> int:
        """Tiles of steps in a chunk."""
        return self.sizes.chunk // self.sizes.block

    @property
    def tiles_n(self) -> int:
        return triton.cdiv(self.B.shape[3], self.sizes.n)

    @property
    def tiles_p(self) -> int:
        return triton.cdiv(self.x.shape[3], self.sizes.p)

    def constants(self, *flags: str, block: bool = True, n: bool = True, p: bool = True) -> dict[str, Any]:
        """What is compiled into a kernel that multiplies matrices."""
        tiles = {"CHUNK": self.sizes.chunk} | ({"BLOCK": self.sizes.block} if block else {})
        tiles |= {"N": self.B.shape[3], "BLOCK_N": self.sizes.n} if n else {}
        tiles |= {"P": self.x.shape[3], "BLOCK_P": self.sizes.p} if p else {}
        return {flag: self.flags[flag] for flag in flags} | tiles | self.operand


def read(
    x: Tensor, dt: Tensor, log_a: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    initial_state: Tensor | None, seq_idx: Tensor | None, ends: bool,
) -> Given:  # fmt: skip
    """The operator's arguments, checked; `ends`: whether the ends of sequences are needed."""
    refuse(x, dt, B)
    (b, l, _, p), n = x.shape, B.shape[3]
    half = x.dtype in (torch.float16, torch.bfloat16) and dt.dtype == torch.float32
    operand = x.dtype if half and not INTERPRETED else dt.dtype
    tf32 = operand == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    x, dt, log_a, B, C = (t.contiguous() for t in (x, dt, log_a, B, C))
    optional = {"HAS_D": D, "HAS_Z": z, "HAS_INITIAL": initial_state}
    # The initial state's place is read in a branch that has to have its type, even if nobody takes it.
    absent = (x, x, log_a)
    D, z, initial = (
        a if t is None else t.contiguous() for t, a in zip(optional.values(), absent, strict=True)
    )
    number, last = _sequences(seq_idx, b, l, x.device, ends)
    return Given(
        x, dt, log_a, B, C, D, z, initial, number, last,
        {name: t is not None for name, t in optional.items()} | {"PACKED": seq_idx is not None},
        blocks(n, p, operand),
        {"OPERAND": TYPES[operand], "PRECISION": "tf32" if tf32 or operand.itemsize == 2 else "ieee"},
        operand,
    )  # fmt: skip


def refuse(x: Tensor, dt: Tensor, B: Tensor) -> None:
    """What the kernels cannot take."""
    instead = "For other sizes pass backend='chunked'"
    if x.dtype not in TYPES or dt.dtype not in TYPES:
        raise ValueError(f"x: got {x.dtype}, expected one of {', '.join(map(str, TYPES))}. {instead}")
    (_, _, h, p), (g, n) = x.shape, B.shape[2:]
    if h > MOST_PROGRAMS:
        raise ValueError(
            f"x: got {h} heads, expected at most {MOST_PROGRAMS}, one for each program of a GPU's grid. {instead}"
        )
    tiles = -(-n // 16) * -(-p // 16)
    if tiles > MOST_PROGRAMS:
        raise ValueError(
            f"x, B: got p = {p} and n = {n}, expected states of at most {MOST_PROGRAMS} tiles of 16 x 16. {instead}"
        )
    widest = max(h * p, g * n)
    if widest * CHUNK >= 2**31:
        raise ValueError(
            f"x, B: got {widest} numbers a step, expected fewer than {2**31 // CHUNK}: inside a chunk of {CHUNK} steps "
            f"places are counted in 32 bits. {instead}"
        )


def _sequences(
    seq_idx: Tensor | None, b: int, l: int, device: torch.device, ends: bool
) -> tuple[Tensor, Tensor]:
    """The number of each step's sequence, counted on from row to row, and where the sequences end."""
    if (
        seq_idx is None
    ):  # whole rows: known without a look at the data, for which a GPU would have to be waited for
        number = torch.empty(0, dtype=torch.int32, device=device)
        return number, torch.arange(1, b + 1, device=device) * l - 1 if ends else number
    starts = torch.ones(b, l, dtype=torch.bool, device=device)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    number = starts.flatten().cumsum(0, dtype=torch.int32).sub_(1).view(b, l)
    return number, starts.flatten().roll(-1).nonzero().flatten() if ends else number


def launch(given: Given, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the GPU that x is on; nothing for an empty grid."""
    if 0 in grid:
        return
    if TUNE and "OPERAND" in constants:
        kernel = _tuned(kernel)
    elif not INTERPRETED:
        constants |= configuration(kernel, given.multiplied)
    with on_device_of(given.x):
        kernel[grid](*arguments, **constants)


@functools.cache
def _tuned(kernel: Any) -> Any:
    """The kernel, which measures at its first call for some sizes in which configuration it is fastest."""
    configurations = [triton.Config({}, num_warps=w, num_stages=s) for w, s in CONFIGURATIONS]
    flags = ("N", "P", "BLOCK", "PACKED", "BACKWARD")
    return triton.autotune(configurations, key=[f for f in flags if f in kernel.arg_names])(kernel)


# --- Forward ------------------------------------------------------------------------------------------


def forward(
    x: Tensor, dt: Tensor, log_a: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    initial_state: Tensor | None, seq_idx: Tensor | None, sequences: int, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the final states (s, h, p, n), and with `keep` the states (b, c - 1, h, n, p) that enter the chunks."""
    given = read(x, dt, log_a, B, C, D, z, initial_state, seq_idx, sequences > 0)
    (b, _, h, p), n = x.shape, B.shape[3]
    steps, G = sums(given), matrix(given)
    states = dt.new_empty(b, given.chunks - 1, h, n, p)
    chunk_states(given, steps, states)
    y = torch.empty_like(given.x)
    scan(given, G, steps, states, y)
    final = dt.new_empty(sequences, h, p, n)
    final_states(given, steps, states, final)
    return y, final, states if keep else states.new_empty(b, 0, h, n, p)


def sums(given: Given) -> Tensor:
    """Step 1: dt and the cumulative sums of log_a, (b, h, 3, l)."""
    b, l, h = given.dt.shape
    steps = given.dt.new_empty(b, h, 3, l)
    block_h = min(8, triton.next_power_of_2(h))
    launch(
        given, triton_forward.cumulative_sum_kernel, (b * given.chunks, triton.cdiv(h, block_h)),
        given.dt, given.log_a, steps, l, h, CHUNK=given.sizes.chunk, BLOCK_H=block_h,
    )  # fmt: skip
    return steps


def matrix(given: Given) -> Tensor:
    """Step 2: G = C Bᵀ of each chunk and group."""
    b, l, g, _ = given.B.shape
    q = given.sizes.chunk
    G = given.dt.new_empty(b, given.chunks, g, q, q)
    launch(
        given, triton_forward.chunk_matrix_kernel, (b * given.chunks, g, (q // given.sizes.rows) ** 2),
        given.C, given.B, G, l, g, ROWS=given.sizes.rows, **given.constants(block=False, p=False),
    )  # fmt: skip
    return G


def chunk_states(given: Given, steps: Tensor, states: Tensor) -> None:
    """Steps 3 and 4: the states that enter all chunks but the first."""
    (b, l, h, p), (g, n) = given.x.shape, given.B.shape[2:]
    launch(
        given, triton_forward.chunk_state_kernel, (b * (given.chunks - 1), h, given.tiles_n * given.tiles_p),
        given.B, given.x, steps, given.number, states, l, h, g, **given.constants("PACKED"),
    )  # fmt: skip
    flags = {name: given.flags[name] for name in ("HAS_INITIAL", "PACKED")}
    block = min(256, triton.next_power_of_2(n * p))
    launch(
        given, triton_forward.state_passing_kernel, (b if given.chunks > 1 else 0, h, triton.cdiv(n * p, block)),
        states, given.initial, steps, given.number, l, h, N=n, P=p, CHUNK=given.sizes.chunk, BLOCK=block, **flags,
    )  # fmt: skip


def scan(
    given: Given, G: Tensor, steps: Tensor, states: Tensor, y: Tensor, dy: Tensor | None = None, dz: Tensor | None = None
) -> None:  # fmt: skip
    """Step 5: y; or with dy its gradient without the gate, and the gate's dz."""
    (b, l, h, _), g = given.x.shape, given.B.shape[2]
    flags = ("HAS_INITIAL", "HAS_D", "HAS_Z", "PACKED")
    launch(
        given, triton_forward.chunk_scan_kernel,
        (b * given.chunks, h, given.sizes.chunk // given.sizes.rows * given.tiles_p),
        G, given.C, given.x, steps, given.number, states, given.initial, given.D, given.z,
        y, y if dy is None else dy, y if dz is None else dz, l, h, g,
        BACKWARD=dy is not None, ROWS=given.sizes.rows, **given.constants(*flags),
    )  # fmt: skip


def final_states(given: Given, steps: Tensor, states: Tensor, final: Tensor) -> None:
    """The state after the last step of each sequence."""
    (_, l, h, _), g = given.x.shape, given.B.shape[2]
    launch(
        given, triton_forward.final_state_kernel, (len(final), h, given.tiles_n * given.tiles_p),
        given.B, given.x, steps, given.number, given.ends, states, given.initial, final, l, h, g,
        **given.constants("HAS_INITIAL", "PACKED"),
    )  # fmt: skip


# --- Backward -----------------------------------------------------------------------------------------


def gradient(
    upstream: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...],
    x: Tensor, dt: Tensor, log_a: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    initial_state: Tensor | None, seq_idx: Tensor | None, sequences: int, keep: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of the tensors that there are, in the order of the arguments."""
    dy, dfinal = upstream
    states = outputs[2]
    given = read(x, dt, log_a, B, C, D, z, initial_state, seq_idx, dfinal is not None)
    given.flags["HAS_FINAL"] = dfinal is not None
    dfinal = dt if dfinal is None else dfinal.contiguous()
    dy = torch.zeros_like(given.x) if dy is None else dy.contiguous()
    steps, G = sums(given), matrix(given)
    dz = torch.empty_like(given.z)
    if z is not None:
        dy_gated, dy = dy, torch.empty_like(dy, dtype=given.multiplied)
        scan(given, G, steps, states, dy, dy_gated, dz)
    dstates, dinitial, through = state_gradients(given, dy, steps, states, dfinal)
    dx, ddt, leaving, dD = input_gradients(given, G, dy, steps, dstates, dfinal)
    dB, dC, pairs, entered = group_gradients(given, G, dy, steps, states, dstates, dfinal)
    ddt, dlog_a = decay_gradients(given, pairs, entered, leaving, through, ddt)
    found = [dx, ddt, dlog_a, dB, dC]
    found += [] if D is None else [dD.sum(0)]
    found += [] if z is None else [dz]
    return found if initial_state is None else [*found, dinitial]


def state_gradients(
    given: Given, dy: Tensor, steps: Tensor, states: Tensor, dfinal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernels 1 and 2: dE of every chunk, of the initial state, and exp(s_last) E · dF in parts."""
    (b, l, h, p), (g, n) = given.x.shape, given.B.shape[2:]
    dstates = given.dt.new_empty(b, given.chunks, h, n, p)
    launch(
        given, triton_backward.state_gradient_kernel, (b * given.chunks, h, given.tiles_n * given.tiles_p),
        given.C, dy, steps, given.number, dstates, l, h, g, **given.constants("HAS_INITIAL", "PACKED"),
    )  # fmt: skip
    block = min(256, triton.next_power_of_2(n * p))
    parts = triton.cdiv(n * p, block)
    through = given.dt.new_zeros(b, h, parts, given.chunks)
    dinitial = given.dt.new_empty((b, h, p, n) if given.flags["HAS_INITIAL"] else 0)
    flags = {name: given.flags[name] for name in ("HAS_INITIAL", "HAS_FINAL", "PACKED")}
    launch(
        given, triton_backward.passing_gradient_kernel, (b, h, parts),
        dstates, dfinal, dinitial, through, states, given.initial, steps, given.number, given.ends, l, h,
        N=n, P=p, CHUNK=given.sizes.chunk, BLOCK=block, **flags,
    )  # fmt: skip
    return dstates, dinitial, through


def input_gradients(
    given: Given, G: Tensor, dy: Tensor, steps: Tensor, dstates: Tensor, dfinal: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernel 3: dx; ddt, the paths to the end, and dD, in parts."""
    (b, l, h, p), g = given.x.shape, given.B.shape[2]
    dx = torch.empty_like(given.x)
    ddt, leaving = (given.dt.new_empty(b, h, given.tiles_p, l) for _ in range(2))
    has_D = given.flags["HAS_D"]
    dD = given.dt.new_empty((b * given.chunks * given.tiles, h, p) if has_D else 0)
    launch(
        given, triton_backward.input_gradient_kernel, (b * given.chunks, h, given.tiles * given.tiles_p),
        G, given.B, given.x, dy, given.D, steps, given.number, given.ends, dstates, dfinal,
        dx, ddt, leaving, dD, l, h, g, **given.constants("HAS_FINAL", "HAS_D", "PACKED"),
    )  # fmt: skip
    return dx, ddt, leaving, dD


def group_gradients(
    given: Given, G: Tensor, dy: Tensor, steps: Tensor, states: Tensor, dstates: Tensor, dfinal: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernels 4 and 5: dB, dC; the paths inside chunks and from their start, in parts."""
    (b, l, h, _), g = given.x.shape, given.B.shape[2]
    dG = torch.empty_like(G, dtype=given.multiplied)
    pairs = given.dt.new_empty(b, h, given.tiles, l)
    launch(
        given, triton_backward_groups.matrix_gradient_kernel, (b * given.chunks, g, given.tiles**2),
        G, given.x, dy, steps, given.number, dG, pairs, l, h, g, **given.constants("PACKED", n=False),
    )  # fmt: skip
    dC, dB = torch.empty_like(given.C), torch.empty_like(given.B)
    entered = given.dt.new_empty(b, h, given.tiles_n, l)
    grid = (b * given.chunks, g, given.tiles * given.tiles_n)
    launch(
        given, triton_backward_groups.C_gradient_kernel, grid,
        dG, given.B, given.C, dy, steps, given.number, states, given.initial, dC, entered, l, h, g,
        **given.constants("HAS_INITIAL", "PACKED"),
    )  # fmt: skip
    launch(
        given, triton_backward_groups.B_gradient_kernel, grid,
        dG, given.C, given.x, steps, given.number, given.ends, dstates, dfinal, dB, l, h, g,
        **given.constants("HAS_FINAL", "PACKED"),
    )  # fmt: skip
    return dB, dC, pairs, entered


def decay_gradients(
    given: Given, pairs: Tensor, entered: Tensor, leaving: Tensor, through: Tensor, parts: Tensor
) -> tuple[Tensor, Tensor]:
    """Kernel 6: ddt and d log_a from their parts."""
    b, l, h = given.dt.shape
    ddt, dlog_a = torch.empty_like(given.dt), torch.empty_like(given.dt)
    block_h = min(8, triton.next_power_of_2(h))
    launch(
        given, triton_backward_groups.decay_gradient_kernel, (b * given.chunks, triton.cdiv(h, block_h)),
        pairs, entered, leaving, through, parts, given.number, given.ends, dlog_a, ddt, l, h,
        HAS_FINAL=given.flags["HAS_FINAL"], PACKED=given.flags["PACKED"],
        LINES=given.tiles, TILES_N=given.tiles_n, TILES_P=given.tiles_p, PARTS=through.shape[2],
        CHUNK=given.sizes.chunk, BLOCK_H=block_h,
    )  # fmt: skip
    return ddt, dlog_a


ssd = operator.register("triton", forward, gradient, CHUNK)
