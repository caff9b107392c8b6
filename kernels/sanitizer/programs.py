"""Run Triton kernels under watch in the interpreter, and hear what a GPU would punish.

    with watch_programs() as report:
        selective_scan(..., backend="triton")      # or kernel[grid](...)
    print(report)                                  # out of bounds, races of programs; or the bytes moved

The interpreter reads out of bounds in silence, runs programs one after another, and fills lanes that are masked out
with zeros where a GPU leaves anything. Here every load and store is held against the tensor that its pointer comes
from; two programs that touch one element, one of them writing, are named (a GPU runs programs in any order); and a
masked load without `other` gives NaN. Lessons 08 and 10 use it.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ssmcourse.kernels import runtime
from ssmcourse.kernels.sanitizer.report import Finding, Findings, Place

ADDRESS = (1 << 56) - 1  # what of a pointer is the address; above it stands which argument it comes from
NOBODY, SEVERAL = -1, -2
Program = tuple[int, int, int]


class Move(NamedTuple):
    """A load, store or atomic of one program. `elements` are offsets from the start of the argument, masked lanes out."""

    launch: int
    program: Program
    access: Literal["load", "store", "atomic"]
    argument: str
    elements: np.ndarray
    line: int


@dataclass
class Programs:
    """What was seen. True if nothing was found.

    Attributes:
        findings: each kind at each line once, with an example.
        launches: (kernel, grid) in order.
        loaded, stored: bytes that programs asked for, by (kernel, argument), each access anew. Lanes that are masked
            out ask for none, lanes that want the same element for one. Atomics count as both.
        moves: each load and store, if asked for.
    """

    launches: list[tuple[str, Program]] = field(default_factory=list)
    loaded: Counter[tuple[str, str]] = field(default_factory=Counter)
    stored: Counter[tuple[str, str]] = field(default_factory=Counter)
    moves: list[Move] = field(default_factory=list)
    _found: Findings = field(default_factory=Findings)

    @property
    def findings(self) -> list[Finding]:
        return self._found.all()

    def __bool__(self) -> bool:
        return not self.findings

    def kinds(self) -> set[str]:
        """The kinds of what was found."""
        return {finding.kind for finding in self.findings}

    def bytes_moved(self) -> int:
        """Loaded and stored, of all launches."""
        return self.loaded.total() + self.stored.total()

    def __str__(self) -> str:
        if self.findings:
            return "\n".join(map(str, self.findings))
        return (
            f"nothing wrong found. {len(self.launches)} launches, {self.loaded.total():,} bytes loaded, "
            f"{self.stored.total():,} stored"
        )


@contextmanager
def watch_programs(*, trace: bool = False) -> Iterator[Programs]:
    """Watch every Triton kernel launched in the block.

    Args:
        trace: keep every load and store in `moves`.
    Raises:
        RuntimeError: Triton does not interpret in this process.
    """
    if runtime.triton_mode() != "interpreted":
        raise RuntimeError(f"the watch needs Triton's interpreter: here Triton is {runtime.triton_mode()}")
    from triton.runtime import interpreter

    watch = _Watch(Programs(), trace, interpreter)
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    patches: list[tuple[Any, str, Callable]] = [
        (builder, "create_masked_load", watch.load),
        (builder, "create_masked_store", watch.store),
        (builder, "create_atomic_rmw", watch.atomic_rmw),
        (builder, "create_atomic_cas", watch.atomic_cas),
        (executor, "__call__", watch.launch(executor.__call__)),
        (executor, "_init_args_hst", watch.arguments(executor._init_args_hst)),
        (interpreter, "_implicit_cvt", watch.pointer(interpreter._implicit_cvt)),
    ]
    before = [(where, name, getattr(where, name), name in vars(where)) for where, name, _ in patches]
    try:
        for where, name, patch in patches:
            setattr(where, name, patch)
        yield watch.report
    finally:
        for where, name, original, own in before:
            setattr(where, name, original) if own else delattr(where, name)


class _Argument:
    """A tensor that a kernel was given: where it lies, and which program touched which element."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name, self.start, self.itemsize = name, tensor.data_ptr(), tensor.element_size()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        self.elements = 1 + sum((size - 1) * stride for size, stride in steps) if tensor.numel() else 0
        self.shape = tuple(tensor.shape)
        self.writer = np.full(self.elements, NOBODY, np.int64)
        self.reader = np.full(self.elements, NOBODY, np.int64)
        self.wrote: dict[int, Place] = {}  # program -> where it last stored; for the message
        self.read: dict[int, Place] = {}


class _Watch:
    def __init__(self, report: Programs, trace: bool, interpreter: Any) -> None:
        self.report, self.trace, self.interpreter = report, trace, interpreter
        self.builder = interpreter.interpreter_builder
        kind = type(self.builder)
        self._load, self._store = kind.create_masked_load, kind.create_masked_store
        self._rmw, self._cas = kind.create_atomic_rmw, kind.create_atomic_cas
        self._arguments: list[_Argument] = []
        self._names: dict[int, str] = {}
        self._kernel = ""

    # --- A launch and its arguments ---------------------------------------------------------------

    def launch(self, original: Callable) -> Callable:
        def __call__(executor: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            self._kernel, self._arguments = executor.fn.__name__, []
            self._grid_noted = False
            original(executor, *args, **kwargs)

        return __call__

    def arguments(self, original: Callable) -> Callable:
        def _init_args_hst(executor: Any, args: Any, kwargs: Any) -> Any:
            args, kwargs = original(executor, args, kwargs)
            given = inspect.getcallargs(executor.fn, *args, **kwargs)
            self._names = {id(value): name for name, value in given.items()}
            return args, kwargs

        return _init_args_hst

    def pointer(self, original: Callable) -> Callable:
        def _implicit_cvt(argument: Any) -> Any:
            value = original(argument)
            if hasattr(argument, "data_ptr"):
                tensor = getattr(argument, "base", argument)
                self._arguments.append(_Argument(self._names.get(id(argument), "a tensor"), tensor))
                value.handle.data = value.handle.data | np.uint64(len(self._arguments) << 56)
            return value

        return _implicit_cvt

    # --- What programs do -----------------------------------------------------------------------------

    def load(self, ptrs: Any, mask: Any, other: Any, *how: Any) -> Any:
        plain, inside = self._see("load", ptrs, mask)
        allowed = self.interpreter.TensorHandle(inside, mask.dtype)
        if other is None:
            dtype = ptrs.get_element_ty()
            kind = self.interpreter._get_np_dtype(dtype)
            nothing = _nothing(kind, is_bfloat16=str(dtype) == "bf16")
            other = self.interpreter.TensorHandle(np.full(plain.data.shape, nothing, kind), dtype)
        return self._load(self.builder, plain, allowed, other, *how)

    def store(self, ptrs: Any, value: Any, mask: Any, *how: Any) -> Any:
        plain, inside = self._see("store", ptrs, mask, value.data)
        return self._store(
            self.builder, plain, value, self.interpreter.TensorHandle(inside, mask.dtype), *how
        )

    def atomic_rmw(self, operation: Any, ptr: Any, value: Any, mask: Any, *how: Any) -> Any:
        plain, inside = self._see("atomic", ptr, mask)
        allowed = self.interpreter.TensorHandle(inside, mask.dtype)
        return self._rmw(self.builder, operation, plain, value, allowed, *how)

    def atomic_cas(self, ptr: Any, compare: Any, value: Any, *how: Any) -> Any:
        plain, _ = self._see("atomic", ptr, None)
        return self._cas(self.builder, plain, compare, value, *how)

    def _see(
        self, access: Any, ptrs: Any, mask: Any, values: np.ndarray | None = None
    ) -> tuple[Any, np.ndarray]:
        """The pointers without their marks, and the mask without lanes that are out of bounds."""
        self._note_grid()
        marked = ptrs.data
        wanted = np.broadcast_to(
            np.ones(1, bool) if mask is None else mask.data.astype(bool), marked.shape
        ).copy()
        place, program = _kernel_line(), self.builder.grid_idx
        plain = self.interpreter.TensorHandle(marked & np.uint64(ADDRESS), ptrs.dtype)
        itemsize = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        for mark in np.unique(marked[wanted] >> np.uint64(56)):
            lanes = wanted & (marked >> np.uint64(56) == mark)
            if not 1 <= mark <= len(self._arguments):
                self._outside(None, access, program, place, lanes, np.zeros(0, np.int64))
                wanted &= ~lanes
                continue
            argument = self._arguments[int(mark) - 1]
            offsets = plain.data.astype(np.int64) - argument.start
            good = lanes & (offsets >= 0) & (offsets + itemsize <= argument.elements * argument.itemsize)
            if (lanes & ~good).any():
                self._outside(argument, access, program, place, lanes & ~good, offsets[lanes & ~good])
                wanted &= ~(lanes & ~good)
            elements = offsets[good] // argument.itemsize
            self._count(access, argument, len(np.unique(elements)) * itemsize, program, elements, place)
            self._race(access, argument, elements, program, place, values, good)
        return plain, wanted

    def _note_grid(self) -> None:
        if not self._grid_noted:
            self._grid_noted = True
            self.report.launches.append((self._kernel, tuple(self.builder.grid_dim)))

    def _outside(
        self, argument: _Argument | None, access: str, program: Program, place: Place, lanes: np.ndarray, offsets: np.ndarray
    ) -> None:  # fmt: skip
        lane = tuple(int(i[0]) for i in np.nonzero(lanes))
        where = f"lane {lane} of the {access} at {place} in program {program}"
        if argument is None:
            message = f"{where} has a pointer that comes from no argument"
        else:
            message = (
                f"{where} is element {offsets[0] // argument.itemsize} of {argument.name}, whose shape "
                f"{argument.shape} spans {argument.elements} elements; {lanes.sum()} lanes are outside: mask them out"
            )
        self.report._found.add("bounds", message, place, subject=argument.name if argument else "")

    def _count(
        self,
        access: Any,
        argument: _Argument,
        size: int,
        program: Program,
        elements: np.ndarray,
        place: Place,
    ) -> None:
        key = (self._kernel, argument.name)
        if access != "store":
            self.report.loaded[key] += size
        if access != "load":
            self.report.stored[key] += size
        if self.trace:
            launch = len(self.report.launches) - 1
            self.report.moves.append(Move(launch, program, access, argument.name, elements, place.line))

    def _race(
        self, access: str, argument: _Argument, elements: np.ndarray, program: Program, place: Place,
        values: np.ndarray | None, lanes: np.ndarray,
    ) -> None:  # fmt: skip
        if access == "atomic":
            return
        x, y, _ = self.builder.grid_dim
        me = program[0] + x * (program[1] + y * program[2])
        writer, reader = argument.writer[elements], argument.reader[elements]
        self._conflict(argument, access, elements, writer, argument.wrote, me, "stores", place)
        if access == "store":
            self._conflict(argument, access, elements, reader, argument.read, me, "loads", place)
            if values is not None:
                self._lanes_agree(
                    argument, elements, np.broadcast_to(values, lanes.shape)[lanes], program, place
                )
            argument.writer[elements] = me
            argument.wrote[me] = place
        else:
            argument.reader[elements] = np.where((reader == NOBODY) | (reader == me), me, SEVERAL)
            argument.read[me] = place

    def _conflict(
        self, argument: _Argument, access: str, elements: np.ndarray, others: np.ndarray,
        places: dict[int, Place], me: int, what: str, place: Place,
    ) -> None:  # fmt: skip
        at = np.flatnonzero((others != NOBODY) & (others != me))
        if not at.size:
            return
        other = int(others[at[0]])
        someone = f"program {self._program(other)}" if other >= 0 else "several programs"
        there = places.get(other, place) if other >= 0 else place
        self.report._found.add(
            "race",
            f"element {elements[at[0]]} of {argument.name}: program {self._program(me)} {access}s it at {place}, "
            f"{someone} {what} it at {there}; a GPU runs programs in any order",
            place,
            subject=argument.name,
        )

    def _lanes_agree(
        self, argument: _Argument, elements: np.ndarray, values: np.ndarray, program: Program, place: Place
    ) -> None:
        order = np.argsort(elements, kind="stable")
        twice = np.flatnonzero(np.diff(elements[order]) == 0)
        differ = twice[values[order][twice] != values[order][twice + 1]]
        if differ.size:
            self.report._found.add(
                "race",
                f"two lanes of the store at {place} in program {program} write different values to element "
                f"{elements[order][differ[0]]} of {argument.name}",
                place,
                subject=argument.name,
            )

    def _program(self, number: int) -> Program:
        x, y, _ = self.builder.grid_dim
        return number % x, number // x % y, number // (x * y)


def _nothing(kind: Any, *, is_bfloat16: bool) -> Any:
    """What a lane holds that was not loaded: NaN, or a number that hardly anyone means."""
    kind = np.dtype(kind)
    if is_bfloat16:
        return 0x7FC0  # NaN; the interpreter keeps bfloat16 as uint16
    return np.nan if kind.kind == "f" else True if kind.kind == "b" else np.iinfo(kind).max


def _kernel_line() -> Place:
    """The line of the kernel, or of a function that it calls, that loads or stores."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_machinery(frame.f_code.co_filename):
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno)


def _is_machinery(file: str) -> bool:
    parts = Path(file).parts
    return file == __file__ or ("triton" in parts and "site-packages" in parts) or "contextlib" in file
