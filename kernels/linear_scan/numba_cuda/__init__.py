"""The linear scan in Numba CUDA: a ladder of seven kernels, which lessons 06 and 07 climb, one module a rung.

    one_thread       a thread a row and channel, through all of l
    hillis_steele    a block a row and channel, in shared memory: log2(l) rounds, n log2(n) combinations
    blelloch         up and down a tree: 2 log2(l) rounds, 2 (n - 1) combinations
    warp_shuffles    warps first, without barriers; then the warps' totals
    several_steps    eight steps a thread in registers, 32 channels a block, so that memory is read in whole lines
    three_phases     any length: scan tiles, scan the tiles' totals, add
    look_back        any length in a single pass: each number is read or written once

`steps` has what they share. All but the first multiply gates with each other: see there what becomes of a product
that leaves the range of a float. In short: 0 times infinity is 0 there, so that no NaN comes from gates and states
that are finite step by step; but a state may be infinite, or 0, where the sequence would have come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ssmcourse.kernels import runtime

runtime.cuda_mode()  # settles whether numba.cuda simulates, before it is imported

from ssmcourse.kernels.compiling_numba import Compilation  # noqa: E402
from ssmcourse.kernels.linear_scan import operator  # noqa: E402
from ssmcourse.kernels.linear_scan.numba_cuda import (  # noqa: E402
    blelloch,
    hillis_steele,
    look_back,
    one_thread,
    several_steps,
    three_phases,
    warp_shuffles,
)
from ssmcourse.kernels.linear_scan.numba_cuda.launch import MOST_THREADS, SIMULATED, WARP  # noqa: E402
from ssmcourse.kernels.linear_scan.numba_cuda.one_thread import scan_kernel  # noqa: E402

__all__ = ["ALGORITHMS", "compilations", "linear_scan", "scan", "scan_kernel"]

ALGORITHMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, bool], None]] = {
    "one_thread": one_thread.scan,
    "hillis_steele": hillis_steele.scan,
    "blelloch": blelloch.scan,
    "warp_shuffles": warp_shuffles.scan,
    "several_steps": several_steps.scan,
    "three_phases": three_phases.scan,
    "look_back": look_back.scan,
}


def scan(
    a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool = False, algorithm: str = "look_back"
) -> Tensor:
    """h of `linear_scan` by one rung of the ladder.

    Args:
        a, b: (b, l, d), of one dtype: float32 or float64, for "one_thread" also complex.
        initial_state: (b, d), of that dtype.
        algorithm: one of ALGORITHMS.
            All take any l but "hillis_steele", "blelloch", "warp_shuffles" (1024 at most) and "several_steps" (128).
    Returns:
        h, (b, l, d). Gradients do not pass; they do through `linear_scan(backend="numba_cuda")`.
    Raises:
        ValueError: the algorithm does not take such a length or dtype, or shapes do not fit.
    """
    _check(a, b, initial_state, algorithm)
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    if b.numel():
        ALGORITHMS[algorithm](*(v.detach().contiguous() for v in (a, b, initial_state)), h, reverse)
    return h


def _check(a: Tensor, b: Tensor, initial_state: Tensor, algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: got {algorithm!r}, expected one of {', '.join(ALGORITHMS)}")
    if b.ndim != 3:
        raise ValueError(f"b: got shape {tuple(b.shape)}, expected (b, l, d)")
    takes = [torch.float32, torch.float64]
    if algorithm == "one_thread":
        takes += [torch.complex64, torch.complex128]
    if b.dtype not in takes:
        advice = "; 'one_thread' takes complex numbers" if b.is_complex() else ""
        raise ValueError(
            f"b: got {b.dtype}, expected one of {', '.join(map(str, takes))} for algorithm {algorithm!r}{advice}"
        )
    rows, _, d = b.shape
    for name, value, shape in (("a", a, b.shape), ("initial_state", initial_state, (rows, d))):
        if value.shape != shape or value.dtype != b.dtype or value.device != b.device:
            raise ValueError(
                f"{name}: got {tuple(value.shape)}, {value.dtype} on {value.device}, "
                f"expected {tuple(shape)}, {b.dtype} on {b.device} beside b"
            )


def best(b: Tensor) -> str:
    """The rung for such inputs, on this machine.

    On a GPU the scan waits for memory, and `look_back` asks it for the least. What fits one tile needs no looking
    back, nor tickets and words to be set to zero: that is `several_steps`, which reads and writes as little.
    Without a GPU each thread is a coroutine: the fewer the better, and the first rung has the fewest.
    """
    if SIMULATED or b.is_complex():
        return "one_thread"
    return "several_steps" if b.shape[1] <= look_back.SEGMENTS * several_steps.STEPS else "look_back"


def _scan(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
    return scan(a, b, initial_state, reverse, best(b))


linear_scan = operator.register("numba_cuda", _scan)


# --- Compiled without a GPU -------------------------------------------------------------------------


def compilations() -> Iterator[Compilation]:
    """Every kernel of the ladder in float32 and float64, and the first one in complex numbers."""
    from numba import types

    most, tile = MOST_THREADS, WARP * several_steps.MOST_SEGMENTS
    for T in (types.float32, types.float64, types.complex64, types.complex128):
        steps, state, words = T[:, :, ::1], T[:, ::1], types.int32[::1]
        given = (steps, steps, state, steps)
        name = f"linear_scan.numba_cuda.{{}} {T}"
        reverse = types.boolean
        yield Compilation(
            name.format("one_thread"), one_thread.scan_kernel, (*given, reverse), one_thread.THREADS
        )
        if T in (types.complex64, types.complex128):
            continue
        for rung, kernel, signature, threads, shared in (
            ("hillis_steele", hillis_steele.hillis_steele_kernel, given, most, 4 * most),
            ("blelloch", blelloch.blelloch_kernel, given, most, 2 * (most + most // blelloch.BANKS)),
            ("warp_shuffles", warp_shuffles.warp_shuffles_kernel, given, most, 0),
            ("several_steps", several_steps.several_steps_kernel, given, tile, 4 * tile),
            ("three_phases.scan_tiles", three_phases.scan_tiles_kernel, (steps,) * 6, tile, 4 * tile),
            ("three_phases.add", three_phases.add_kernel, (steps, state, steps, steps), tile, 0),
            ("look_back", look_back.look_back_kernel, (*given, words, words, steps), tile, 4 * tile),
        ):
            size = T.bitwidth // 8
            yield Compilation(name.format(rung), kernel, (*signature, reverse), threads, shared * size)
