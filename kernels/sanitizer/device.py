"""What `numba.cuda` offers inside a kernel, for a thread of the machine; and the kernel itself, made to use it."""

from __future__ import annotations

import builtins
import linecache
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.np import numpy_support

from ssmcourse.kernels import runtime
from ssmcourse.kernels.sanitizer.machine import Barrier, Machine, Together
from ssmcourse.kernels.sanitizer.memory import WARP, Memory, Watched, elements, fill
from ssmcourse.kernels.sanitizer.report import Instruction, Place, instruction

runtime.cuda_mode()  # settles whether numba.cuda simulates, before it is imported
from numba import cuda as numba_cuda  # noqa: E402

FULL_MASK = 0xFFFFFFFF


def _caller(depth: int = 2) -> Place:
    frame = sys._getframe(depth)
    return Place(frame.f_code.co_filename, frame.f_lineno)


class _Dim:
    """threadIdx and its like."""

    def __init__(self, of: Callable[[], tuple[int, int, int]]) -> None:
        self._of = of

    x = property(lambda self: self._of()[0])
    y = property(lambda self: self._of()[1])
    z = property(lambda self: self._of()[2])


class Cuda:
    """Stands in for the module `numba.cuda` in a kernel's globals."""

    warpsize = WARP

    def __init__(self, machine: Machine, shared_bytes: int, *, watching: bool) -> None:
        self._machine = machine
        self.threadIdx = _Dim(lambda: machine.running().at)
        self.blockIdx = _Dim(lambda: machine.running().block_at)
        self.blockDim = _Dim(lambda: machine.block)
        self.gridDim = _Dim(lambda: machine.grid)
        self.shared, self.local = Shared(machine, shared_bytes, watching), Local(machine, watching)
        self.const, self.atomic = Const(), Atomic(machine)

    def __getattr__(self, name: str) -> Any:
        value = getattr(numba.types, name, None)
        if value is None:
            raise NotImplementedError(
                f"cuda.{name} is not emulated here; run the kernel on a GPU to see what it does"
            )
        return value

    @property
    def laneid(self) -> int:
        return self._machine.running().lane

    def grid(self, ndim: int) -> int | tuple[int, ...]:
        thread, block = self._machine.running(), self._machine.block
        at = tuple(b * n + t for b, n, t in zip(thread.block_at, block, thread.at, strict=True))
        return at[0] if ndim == 1 else at[:ndim]

    def gridsize(self, ndim: int) -> int | tuple[int, ...]:
        size = tuple(b * n for b, n in zip(self._machine.grid, self._machine.block, strict=True))
        return size[0] if ndim == 1 else size[:ndim]

    # --- Barriers and fences ------------------------------------------------------------------------

    def syncthreads(self) -> None:
        self._machine.wait(Barrier(_caller()))

    def syncthreads_count(self, predicate: Any) -> int:
        return self._machine.wait(Barrier(_caller(), lambda all_of: sum(map(bool, all_of)), predicate))

    def syncthreads_and(self, predicate: Any) -> int:
        return self._machine.wait(Barrier(_caller(), lambda all_of: int(all(all_of)), predicate))

    def syncthreads_or(self, predicate: Any) -> int:
        return self._machine.wait(Barrier(_caller(), lambda all_of: int(any(all_of)), predicate))

    def threadfence(self) -> None:
        self._machine.running().clock.fence(in_block=False)

    threadfence_system = threadfence

    def threadfence_block(self) -> None:
        self._machine.running().clock.fence(in_block=True)

    def nanosleep(self, nanoseconds: int) -> None:
        self._machine.yield_(idle=True)

    # --- Warps ----------------------------------------------------------------------------------------

    def syncwarp(self, mask: int = FULL_MASK) -> None:
        self._together("syncwarp", mask, None, lambda lane, values: None, orders_memory=True)

    def shfl_sync(self, mask: int, value: Any, src_lane: int) -> Any:
        return self._shuffle("shfl_sync", mask, value, lambda lane: int(src_lane) % WARP)

    def shfl_up_sync(self, mask: int, value: Any, delta: int) -> Any:
        return self._shuffle(
            "shfl_up_sync", mask, value, lambda lane: lane - delta if lane >= delta else lane
        )

    def shfl_down_sync(self, mask: int, value: Any, delta: int) -> Any:
        return self._shuffle(
            "shfl_down_sync", mask, value, lambda lane: lane + delta if lane + delta < WARP else lane
        )

    def shfl_xor_sync(self, mask: int, value: Any, lane_mask: int) -> Any:
        return self._shuffle("shfl_xor_sync", mask, value, lambda lane: lane ^ lane_mask)

    def all_sync(self, mask: int, predicate: Any) -> int:
        return self._together("all_sync", mask, predicate, lambda lane, values: int(all(values.values())))

    def any_sync(self, mask: int, predicate: Any) -> int:
        return self._together("any_sync", mask, predicate, lambda lane, values: int(any(values.values())))

    def eq_sync(self, mask: int, predicate: Any) -> int:
        same = lambda lane, values: int(len({bool(v) for v in values.values()}) == 1)  # noqa: E731
        return self._together("eq_sync", mask, predicate, same)

    def ballot_sync(self, mask: int, predicate: Any) -> int:
        bits = lambda lane, values: sum(1 << k for k, v in values.items() if v)  # noqa: E731
        return self._together("ballot_sync", mask, predicate, bits)

    def match_any_sync(self, mask: int, value: Any) -> int:
        equal = lambda lane, values: sum(1 << k for k, v in values.items() if v == values[lane])  # noqa: E731
        return self._together("match_any_sync", mask, value, equal)

    def match_all_sync(self, mask: int, value: Any) -> tuple[int, bool]:
        def match(lane: int, values: dict[int, Any]) -> tuple[int, bool]:
            same = all(v == values[lane] for v in values.values())
            return (sum(1 << k for k in values) if same else 0), same

        return self._together("match_all_sync", mask, value, match)

    def lanemask_lt(self) -> int:
        return (1 << self.laneid) - 1

    def _shuffle(self, name: str, mask: int, value: Any, source: Callable[[int], int]) -> Any:
        place = _caller(3)

        def exchange(lane: int, values: dict[int, Any]) -> Any:
            wanted = source(lane)
            if wanted in values:
                return values[wanted]
            self._machine.watch.findings.add(
                "warp",
                f"lane {lane} calls {name} at {place} for the value of lane {wanted}, which takes no part: undefined",
                place,
                subject="source",
            )
            return values[lane]

        return self._together(name, mask, value, exchange, depth=4)

    def _together(
        self,
        name: str,
        mask: int,
        value: Any,
        exchange: Callable,
        *,
        orders_memory: bool = False,
        depth: int = 3,
    ) -> Any:
        waits = Together(_caller(depth), name, int(mask) & FULL_MASK, value, exchange, orders_memory)
        return self._machine.wait(waits)

    # --- Arithmetic -----------------------------------------------------------------------------------

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return a * b + c

    def selp(self, condition: Any, a: Any, b: Any) -> Any:
        return a if condition else b

    def popc(self, x: Any) -> int:
        return (int(x) & _ones(x)).bit_count()

    def clz(self, x: Any) -> int:
        return _ones(x).bit_length() - (int(x) & _ones(x)).bit_length()

    def ffs(self, x: Any) -> int:
        return (int(x) & -int(x)).bit_length()

    def brev(self, x: Any) -> int:
        bits = _ones(x).bit_length()
        return int(format(int(x) & _ones(x), f"0{bits}b")[::-1], 2)


def _ones(x: Any) -> int:
    """All bits of its type: 64 of a Python integer, as Numba has it."""
    return (1 << 8 * getattr(x, "itemsize", 8)) - 1


# --- Arrays that a kernel makes -----------------------------------------------------------------------


class Shared:
    """`cuda.shared`: one array a block for each place in the program (calls of device functions count apart)."""

    def __init__(self, machine: Machine, shared_bytes: int, watching: bool) -> None:
        self._machine, self._bytes, self._watching = machine, shared_bytes, watching

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        arrays = self._machine.shared.setdefault(self._machine.running().block, {})
        kind = dtype_of(dtype)
        if elements(shape) == 0:
            return self._dynamic(arrays, kind)
        key = tuple(_calls(sys._getframe(1)))
        if key not in arrays:
            memory = fill(shape, kind)
            arrays[key] = self._seen(Memory("shared", memory, has_values=False), memory)
        return arrays[key]

    def _dynamic(self, arrays: dict[Any, Any], kind: np.dtype) -> Any:
        """All arrays of no size are the same memory, whose bytes the launch gives."""
        if "dynamic" not in arrays:
            memory = fill(-(-self._bytes // 8), np.dtype(np.float64))
            arrays["dynamic"] = Memory("shared", memory, has_values=False)
        memory = arrays["dynamic"]
        view = memory.array.view(np.uint8)[: self._bytes // kind.itemsize * kind.itemsize].view(kind)
        return self._seen(memory, view)

    def _seen(self, memory: Memory, array: np.ndarray) -> Any:
        return (
            Watched(self._machine.watch, memory, array, _name(sys._getframe(2))) if self._watching else array
        )


class Local:
    """`cuda.local`: an array of the thread's own."""

    def __init__(self, machine: Machine, watching: bool) -> None:
        self._machine, self._watching = machine, watching

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        array = fill(shape, dtype_of(dtype))
        if not self._watching:
            return array
        return Watched(
            self._machine.watch, Memory("local", array, has_values=False), array, _name(sys._getframe(1))
        )


class Const:
    """`cuda.const`."""

    def array_like(self, array: np.ndarray) -> np.ndarray:
        return array


def dtype_of(dtype: Any) -> np.dtype:
    """NumPy's dtype for one of Numba's or NumPy's own."""
    return numpy_support.as_dtype(dtype) if isinstance(dtype, numba.types.Type) else np.dtype(dtype)


def _calls(frame: types.FrameType | None) -> list[Instruction]:
    """Where in the program: the instruction, the call that led there, and so on."""
    chain = []
    while frame is not None:
        chain.append(instruction(frame))
        frame = frame.f_back
    return chain


def _name(frame: types.FrameType) -> str:
    """What the source calls the array that this line makes."""
    assigned = re.match(r"\s*(\w+)\s*=[^=]", linecache.getline(frame.f_code.co_filename, frame.f_lineno))
    return assigned[1] if assigned else f"the array of line {frame.f_lineno}"


# --- Atomics -----------------------------------------------------------------------------------------


class Atomic:
    """`cuda.atomic`. After each of them other threads get a turn."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def add(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: old + value)

    def sub(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: old - value)

    def max(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: builtins.max(old, value))

    def min(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: builtins.min(old, value))

    def and_(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: old & value)

    def or_(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: old | value)

    def xor(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: old ^ value)

    def inc(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: 0 if old >= value else old + 1)

    def dec(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: value if old == 0 or old > value else old - 1)

    def exch(self, array: Any, index: Any, value: Any) -> Any:
        return self._change(array, index, lambda old: value)

    def cas(self, array: Any, index: Any, old: Any, value: Any) -> Any:
        return self._change(array, index, lambda found: value if found == old else None)

    def compare_and_swap(self, array: Any, old: Any, value: Any) -> Any:
        return self._change(array, 0, lambda found: value if found == old else None)

    def _change(self, array: Any, index: Any, change: Callable[[Any], Any]) -> Any:
        changed = False

        def noting(old: Any) -> Any:
            nonlocal changed
            new = change(old)
            changed = new is not None and bool(new != old)
            return new

        if isinstance(array, Watched):
            old = array.exchange(index, noting, sys._getframe(2))
        else:
            old = array[index]
            if (new := noting(old)) is not None:
                array[index] = new
        self._machine.yield_(idle=not changed)
        return old


# --- The kernel ----------------------------------------------------------------------------------------


def python_function(kernel: Any) -> Callable[..., None]:
    """What `cuda.jit` was given."""
    function = getattr(kernel, "py_func", kernel)
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"kernel: got {type(kernel).__name__}, expected a function decorated with @cuda.jit")
    return function


def bound_to(function: Any, cuda: Cuda) -> Callable[..., None]:
    """The same code with `cuda` in place of numba.cuda, and so for the device functions that it calls."""
    made: dict[int, Any] = {}

    def translate(value: Any) -> Any:
        if value is numba_cuda:
            return cuda
        if value is numba:
            return types.SimpleNamespace(**{**vars(numba), "cuda": cuda})
        module = getattr(value, "__module__", None) or ""
        if hasattr(value, "py_func"):
            return rebuild(value.py_func)
        if (
            callable(value)
            and module.startswith("numba.cuda")
            and hasattr(Cuda, getattr(value, "__name__", ""))
        ):
            return getattr(cuda, value.__name__)
        return value

    def rebuild(f: types.FunctionType) -> types.FunctionType:
        if id(f) in made:
            return made[id(f)]
        scope = dict(f.__globals__)
        cells = tuple(types.CellType() for _ in f.__closure__ or ())
        made[id(f)] = new = types.FunctionType(f.__code__, scope, f.__name__, f.__defaults__, cells)
        new.__kwdefaults__ = f.__kwdefaults__
        for cell, old in zip(cells, f.__closure__ or (), strict=True):
            cell.cell_contents = translate(old.cell_contents)
        for name in _names(f.__code__):
            if name in scope:
                scope[name] = translate(scope[name])
        return new

    return rebuild(python_function(function))


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
