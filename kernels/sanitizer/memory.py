"""Arrays that watch: who read and wrote which element, whether it was there, and whether it had a value."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ssmcourse.kernels.sanitizer.clocks import Flag
from ssmcourse.kernels.sanitizer.report import Counts, Event, Findings, Place, instruction

if TYPE_CHECKING:
    from ssmcourse.kernels.sanitizer.machine import Thread

Space = Literal["global", "shared", "local"]
Access = Literal["read", "write", "atomic"]

BANKS, SECTOR, WARP = 32, 32, 32  # banks of 4 bytes; bytes of a sector; threads of a warp
WORD = 4
CONFLICTS: dict[Access, tuple[Access, ...]] = {
    "read": ("write", "atomic"),
    "write": ("write", "read", "atomic"),
    "atomic": ("write", "read"),
}


_Accesses = dict[int, tuple[int, Place]]  # thread -> when, by its clock, and where it did so last


class _Word:
    """What the watch knows of one word: its last plain write, what came since, and whether it has a value."""

    __slots__ = ("atomics", "flag", "has_value", "readers", "writer")

    def __init__(self, has_value: bool) -> None:
        self.has_value = has_value
        self.writer: _Accesses = {}  # one at most
        self.readers: _Accesses = {}
        self.atomics: _Accesses = {}
        self.flag: Flag | None = None


class Watch:
    """Sees every access of one launch."""

    def __init__(self, findings: Findings, threads_per_block: int, *, trace: bool = False) -> None:
        self.findings, self.counts, self.threads_per_block = findings, Counts(), threads_per_block
        self.trace: list[Event] | None = [] if trace else None
        self.thread: Thread | None = None  # who runs now
        self.accessed: Callable[..., None] | None = None  # told of each access
        # What the threads of a warp touch with one instruction: (instruction, which time, warp) -> addresses. Times are
        # counted from where threads last met: some may have left out a round of a loop in which others worked.
        self._together: dict[tuple, list[int]] = {}
        self._times: Counter[tuple] = Counter()

    def see(
        self, memory: Memory, start: int, size: int, access: Access, index: tuple, name: str, frame: Any
    ) -> None:
        """`thread` accesses `size` bytes of `memory` from `start` on: element `index` of what it calls `name`."""
        thread, place = self.running(), Place(frame.f_code.co_filename, frame.f_lineno)
        if self.accessed:
            self.accessed((memory, start), writes=access == "write")
        if memory.space != "local":
            self._count(memory, start, size, access, thread, frame)
            if self.trace is not None:
                self.trace.append(
                    Event(
                        thread.phase,
                        thread.block,
                        thread.index,
                        access,
                        memory.space,
                        name,
                        index,
                        place.line,
                    )
                )
        for number in memory.words(start, size):
            word = memory.word(number)
            self._see_word(memory, word, access, thread, place, f"{name}[{', '.join(map(str, index))}]", name)

    def running(self) -> Thread:
        assert self.thread is not None
        return self.thread

    def _see_word(
        self,
        memory: Memory,
        word: _Word,
        access: Access,
        thread: Thread,
        place: Place,
        element: str,
        name: str,
    ) -> None:
        if access != "write" and not word.has_value:
            self.findings.add(
                "uninitialised",
                f"{thread} reads {element} at {place}, and nobody has written it: a GPU gives whatever is there",
                place,
                subject=name,
            )
            word.has_value = True
        if memory.space == "local":
            word.has_value |= access != "read"
            return
        before = {"write": word.writer, "atomic": word.atomics, "read": word.readers}
        for what in CONFLICTS[access]:
            for other, (time, where) in before[what].items():
                if not thread.clock.knows(other, time):
                    self._race(memory, element, name, thread, access, place, other, what, where)
                    break
        mine = {thread.number: (thread.clock.now, place)}
        if access == "write":
            word.has_value, word.writer, word.readers, word.atomics = True, mine, {}, {}
        else:
            (word.readers if access == "read" else word.atomics).update(mine)

    def _race(
        self, memory: Memory, element: str, name: str, thread: Thread, access: Access, place: Place,
        other: int, others_access: Access, others_place: Place,
    ) -> None:  # fmt: skip
        verb = {"read": "reads", "write": "writes", "atomic": "changes"}
        block, index = divmod(other, self.threads_per_block)
        between = "with no barrier between" if block == thread.block else "and no barrier orders two blocks"
        self.findings.add(
            "race",
            f"on {element} ({memory.space} memory): thread {index} of block {block} {verb[others_access]} it at "
            f"{others_place}, {thread} {verb[access]} it at {place}, {between}",
            place,
            others_place,
            subject=name,
        )

    def _count(
        self, memory: Memory, start: int, size: int, access: Access, thread: Thread, frame: Any
    ) -> None:
        counts = self.counts
        if access == "atomic":
            counts.atomics += 1
            return
        kind = f"{memory.space}_{access}s"
        setattr(counts, kind, getattr(counts, kind) + 1)
        mine = (instruction(frame), access, thread.met, thread.number)
        self._times[mine] += 1
        together = (*mine[:3], self._times[mine], thread.block, thread.warp, memory, size)
        self._together.setdefault(together, []).append(start)

    def finish(self) -> Counts:
        """The counts, with sectors and bank conflicts."""
        for (*_, memory, size), starts in self._together.items():
            if memory.space == "global":
                ends = (start + size - 1 for start in starts)
                self.counts.sectors += len({at // SECTOR for at in (*starts, *ends)})
            else:
                self.counts.bank_conflicts += bank_conflicts(starts, size)
        return self.counts


def bank_conflicts(starts: list[int], size: int) -> int:
    """Rounds beyond the least that a warp needs to touch elements of `size` bytes that start there in shared memory.

    A bank gives one word of 4 bytes a round, to as many threads as want that word. Elements of 8 or 16 bytes go in
    2 or 4 rounds of 16 or 8 threads.
    """
    rounds, at_once = 0, max(1, WARP * WORD // max(size, WORD))
    groups = [starts[i : i + at_once] for i in range(0, len(starts), at_once)]
    for group in groups:
        words = {start // WORD + k for start in group for k in range(max(1, size // WORD))}
        rounds += max(Counter(word % BANKS for word in words).values())
    return rounds - len(groups)


class Memory:
    """The bytes behind one or more arrays, and what is known of each word of them."""

    def __init__(self, space: Space, array: np.ndarray, *, has_values: bool) -> None:
        self.space, self.array, self.has_values = space, array, has_values
        self.granularity = min(WORD, array.itemsize)
        self._words: dict[int, _Word] = {}

    def words(self, start: int, size: int) -> range:
        return range(start // self.granularity, -(-(start + size) // self.granularity))

    def word(self, number: int) -> _Word:
        found = self._words.get(number)
        if found is None:
            found = self._words[number] = _Word(self.has_values)
        return found


class Watched:
    """An array as a kernel sees it: indexed by numbers it reads and writes under watch, by slices it gives views."""

    def __init__(self, watch: Watch, memory: Memory, array: np.ndarray, name: str) -> None:
        self._watch, self._memory, self._array, self._name = watch, memory, array, name
        self._start = array.ctypes.data - memory.array.ctypes.data if array.size else 0

    shape = property(lambda self: self._array.shape)
    strides = property(lambda self: self._array.strides)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    dtype = property(lambda self: self._array.dtype)
    itemsize = property(lambda self: self._array.itemsize)

    @property
    def T(self) -> Watched:
        return self._view(self._array.T)

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        where = self._element(index)
        if where is None:
            return self._view(self._array[index])
        return self._read(where, sys._getframe(1))

    def __setitem__(self, index: Any, value: Any) -> None:
        where, frame = self._element(index), sys._getframe(1)
        if where is not None:
            self._write(where, value, frame)
            return
        part = self._array[index]
        values, view = np.broadcast_to(np.asarray(value), part.shape), self._view(part)
        for element in np.ndindex(part.shape):  # a thread that writes a slice writes its elements, one by one
            view._write(element, values[element], frame)

    def exchange(self, index: Any, change: Any, frame: Any) -> Any:
        """Atomically put `change(old)` there, unless it is None; the old value."""
        where = self._element(index)
        if where is None:
            raise TypeError(
                f"an atomic operation wants one element: got the index {index!r} for {self.ndim} axes"
            )
        if self._outside(where, frame):
            return self.dtype.type(0)
        start = self._address(where)
        self._watch.see(self._memory, start, self.itemsize, "atomic", where, self._name, frame)
        word = self._memory.word(self._memory.words(start, self.itemsize)[0])
        word.flag = word.flag or Flag()
        self._watch.running().clock.meet(word.flag)
        old = self._array[where]
        new = change(old)
        if new is not None:
            self._array[where] = new
        return old

    def _read(self, where: tuple[int, ...], frame: Any) -> Any:
        if self._outside(where, frame):
            return self.dtype.type(np.nan if self.dtype.kind in "fc" else 0)
        self._watch.see(self._memory, self._address(where), self.itemsize, "read", where, self._name, frame)
        return self._array[where]

    def _write(self, where: tuple[int, ...], value: Any, frame: Any) -> None:
        if self._outside(where, frame):
            return
        self._watch.see(self._memory, self._address(where), self.itemsize, "write", where, self._name, frame)
        self._array[where] = value

    def _element(self, index: Any) -> tuple[int, ...] | None:
        """The numbers that name an element, or None for what names a part of the array."""
        numbers = index if isinstance(index, tuple) else (index,)
        for number in numbers:
            if not isinstance(number, int | np.integer | slice) and number is not Ellipsis:
                raise TypeError(
                    f"{self._name}: got the index {number!r} ({type(number).__name__}); Numba takes integers and slices"
                )
        if len(numbers) > self.ndim:
            raise TypeError(f"{self._name}: got {len(numbers)} indices, it has {self.ndim} axes")
        whole = len(numbers) == self.ndim and not any(isinstance(n, slice) or n is Ellipsis for n in numbers)
        return tuple(map(int, numbers)) if whole else None

    def _outside(self, where: tuple[int, ...], frame: Any) -> bool:
        """Report an index that is not there; a negative one counts from the end, as Numba has it."""
        if all(0 <= i < n for i, n in zip(where, self.shape, strict=True)):
            return False
        place, thread = Place(frame.f_code.co_filename, frame.f_lineno), self._watch.running()
        element = f"{self._name}[{', '.join(map(str, where))}]"
        gone = any(not -n <= i < n for i, n in zip(where, self.shape, strict=True))
        what = "outside it: a GPU reads or overwrites something else" if gone else "which counts from the end"
        self._watch.findings.add(
            "bounds",
            f"{thread} uses {element} at {place}; the shape is {self.shape}, {what}",
            place,
            subject=self._name,
        )
        return gone

    def _address(self, where: tuple[int, ...]) -> int:
        return self._start + sum(
            (i if i >= 0 else i + n) * s for i, n, s in zip(where, self.shape, self.strides, strict=True)
        )

    def _view(self, array: np.ndarray) -> Watched:
        return Watched(self._watch, self._memory, array, self._name)


def fill(shape: Any, dtype: np.dtype) -> np.ndarray:
    """Memory nobody has written: NaN, or for integers a number that hardly anyone means."""
    array = np.empty(shape, dtype)
    array[...] = np.nan if dtype.kind in "fc" else False if dtype.kind == "b" else np.iinfo(dtype).max
    return array


def elements(shape: Any) -> int:
    """How many elements a shape has; a number is a shape of one axis."""
    return math.prod(shape) if isinstance(shape, tuple) else int(shape)
