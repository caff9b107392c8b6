"""Run a Numba CUDA kernel under watch, without a GPU, and hear what a GPU would punish.

    report = sanitize(kernel, blocks, threads, a, b, out)
    print(report)                      # races, barriers, bounds, ...; or what it cost

Numba's simulator runs blocks one after another and hides most mistakes: a missing barrier seldom shows, a barrier that
some threads skip passes, negative indices wrap, shuffles are missing. Here the kernel's own code runs, unchanged, with
arrays that watch. Nothing is left to chance: the order of threads is fixed, and a race is found where no barrier, fence
or warp synchronisation orders two accesses, whether or not it happened to change the result.

What it does not see: how registers are used, whether the code compiles for a GPU, and that Numba computes
`s = 0.0; s += x[i]` in float64 (here, as in the simulator, a sum of float32 stays float32). Lessons 06 and 07 use it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ssmcourse.kernels.sanitizer.device import Cuda, bound_to, python_function
from ssmcourse.kernels.sanitizer.machine import SCHEDULES, Dim, Machine, Schedule
from ssmcourse.kernels.sanitizer.memory import Memory, Watch, Watched
from ssmcourse.kernels.sanitizer.report import Counts, Event, Finding, Findings, Kind, Place, Report, merged

__all__ = ["Counts", "Event", "Finding", "Kind", "Place", "Report", "execute", "sanitize"]

Size = int | Sequence[int]
AT_ONCE = 1024  # threads that `execute` starts at a time, if not two blocks: each is a coroutine with a stack


def sanitize(
    kernel: Any, grid: Size, block: Size, *args: Any,
    shared_bytes: int = 0, schedules: Iterable[str] = tuple(SCHEDULES), trace: bool = False,
) -> Report:  # fmt: skip
    """Run `kernel[grid, block](*args)` under watch.

    It runs once for each of `schedules`, on copies of the arrays: all blocks at once (`forward`), all at once and the
    last first (`reverse`), and one after another, the last first (`alone`). CUDA promises no order, so a kernel
    must be right in all three. What the first run writes ends up in `args`.

    Args:
        kernel: a function decorated with `cuda.jit`.
        grid, block: blocks, and threads of a block: a number or up to three.
        args: NumPy arrays, torch tensors on the CPU, numbers.
        shared_bytes: the size of dynamic shared memory.
        trace: keep every access of the first run in `report.trace`.
    Returns:
        What was found, and what the first run cost. It is true if nothing was found.
    Raises:
        ValueError, TypeError: the launch itself is wrong, in one line.
    Cost:
        Some 5 microseconds an access, on one core: some 64 threads a block and a few thousand elements are enough.
    """
    schedules = tuple(schedules)
    unknown = [name for name in schedules if name not in SCHEDULES]
    if unknown or not schedules:
        raise ValueError(f"schedules: got {unknown or 'none'}, expected some of {', '.join(SCHEDULES)}")
    names, arrays = _arguments(kernel, args)
    first, runs = Report(), []
    inputs = [[a.copy() if isinstance(a, np.ndarray) else a for a in arrays] for _ in schedules]
    for number, (schedule, copies) in enumerate(zip(schedules, inputs, strict=True)):
        watch, machine, cuda = _machine(
            grid, block, shared_bytes, SCHEDULES[schedule], trace and number == 0, watching=True
        )
        seen = [_watched(watch, name, a) for name, a in zip(names, copies, strict=True)]
        _run(machine, bound_to(kernel, cuda), seen)
        runs.append(watch.findings.all())
        if number == 0:
            first.counts, first.trace = watch.finish(), watch.trace or []
            for array, copy in zip(arrays, copies, strict=True):
                if isinstance(array, np.ndarray) and array.flags.writeable:
                    array[...] = copy
    first.findings = merged(runs)
    return first


def execute(kernel: Any, grid: Size, block: Size, *args: Any, shared_bytes: int = 0) -> None:
    """Run `kernel[grid, block](*args)` in place, without watching its accesses.

    For kernels with warp shuffles and votes, which Numba's simulator has not. Misuse of barriers and of warp
    operations, and what never ends, is still found.

    Raises:
        RuntimeError: something was found; the message is the report.
    """
    _, arrays = _arguments(kernel, args)
    watch, machine, cuda = _machine(grid, block, shared_bytes, None, False, watching=False)
    _run(machine, bound_to(kernel, cuda), arrays)
    if found := watch.findings.all():
        raise RuntimeError("\n".join(map(str, found)))


def _machine(
    grid: Size, block: Size, shared_bytes: int, schedule: Schedule | None, trace: bool, *, watching: bool
) -> tuple[Watch, Machine, Cuda]:
    blocks, threads = _dim("grid", grid, 2**31), _dim("block", block, 1024)
    watch = Watch(Findings(), math.prod(threads), trace=trace)
    schedule = schedule or Schedule(resident=max(2, AT_ONCE // math.prod(threads)))
    machine = Machine(blocks, threads, schedule, watch, watching)
    watch.accessed = machine.accessed
    return watch, machine, Cuda(machine, shared_bytes, watching=watching)


def _run(machine: Machine, kernel: Callable[..., None], arguments: list[Any]) -> None:
    def body() -> None:
        with np.errstate(all="ignore"):  # in each thread: a coroutine does not see what the caller has set
            kernel(*arguments)

    machine.run(body)


def _dim(name: str, size: Size, at_most: int) -> Dim:
    sizes = (size,) if isinstance(size, int | np.integer) else tuple(size)
    good = 1 <= len(sizes) <= 3 and all(isinstance(n, int | np.integer) and n >= 1 for n in sizes)
    if not good or math.prod(map(int, sizes)) > at_most:
        raise ValueError(
            f"{name}: got {size!r}, expected 1 to 3 integers of 1 or more, {at_most:,} in all at most"
        )
    x, y, z = (*map(int, sizes), 1, 1)[:3]
    return x, y, z


def _arguments(kernel: Any, args: tuple) -> tuple[list[str], list[Any]]:
    names = list(inspect.signature(python_function(kernel)).parameters)
    if len(names) != len(args):
        raise TypeError(f"the kernel takes {len(names)} arguments ({', '.join(names)}): got {len(args)}")
    return names, [_plain(name, a) for name, a in zip(names, args, strict=True)]


def _plain(name: str, argument: Any) -> Any:
    if hasattr(argument, "detach"):  # a torch tensor
        argument = argument.detach()
        if argument.device.type != "cpu":
            raise ValueError(f"{name}: got a tensor on {argument.device}, expected one on the CPU")
        return argument.numpy()
    if isinstance(argument, np.ndarray | np.generic | int | float | complex | bool):
        return argument
    raise TypeError(f"{name}: got {type(argument).__name__}, expected an array, a tensor or a number")


def _watched(watch: Watch, name: str, argument: Any) -> Any:
    if not isinstance(argument, np.ndarray):
        return argument
    return Watched(watch, Memory("global", argument, has_values=True), argument, name)
