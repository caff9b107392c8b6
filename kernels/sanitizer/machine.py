"""A grid of threads on one processor: each runs until it has to wait, in an order that is the same every time.

A thread is a coroutine (greenlet) that runs the kernel's own code. It stops at a barrier, at a warp operation and
after an atomic, and the machine goes on with the next one. What a GPU leaves undefined is reported and then
settled in some harmless way, so that one run finds more than the first mistake.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from greenlet import GreenletExit, greenlet

from ssmcourse.kernels.sanitizer.clocks import Clock, NoClock, synchronise
from ssmcourse.kernels.sanitizer.memory import WARP, Watch
from ssmcourse.kernels.sanitizer.report import Place

Dim = tuple[int, int, int]

IDLE_ROUNDS = 100  # so often all threads may look at flags that do not change, before they are said to hang
STEPS_AT_MOST = 2_000_000  # accesses and waits of all threads in one run
TURN = 256  # accesses after which a thread lets others run: one that reads a flag in a loop would never end
FEW = 8  # elements: a thread that touches no more in a whole turn, and writes none, waits for one of them to change


class Schedule(NamedTuple):
    """In which order blocks start, how many are there at once, and whether their threads take turns."""

    backwards: bool = False
    resident: int | None = None  # None: all


# A GPU promises no order of blocks, and no two at a time. One after the other, the last first, is harsh but fair.
SCHEDULES = {"forward": Schedule(), "reverse": Schedule(backwards=True), "alone": Schedule(True, 1)}


class Barrier(NamedTuple):
    """A thread waits for its block; with what it brings to a vote."""

    place: Place
    reduce: Callable[[Sequence[Any]], Any] | None = None
    value: Any = None


class Together(NamedTuple):
    """A thread waits for the lanes in `mask` of its warp. `exchange`: a lane, lane -> value of all, to its answer."""

    place: Place
    name: str
    mask: int
    value: Any
    exchange: Callable[[int, dict[int, Any]], Any]
    orders_memory: bool = False


@dataclass(eq=False)
class Thread:
    """One thread: where it is in the grid, what it waits for, and what it knows of the others."""

    number: int  # in the grid
    block: int
    index: int  # in the block
    at: Dim  # threadIdx
    block_at: Dim  # blockIdx
    clock: Clock
    coroutine: greenlet
    phase: int = 0  # barriers passed
    met: int = 0  # times that it met others, at barriers or in warp operations; the same for those who meet
    accesses: int = 0
    wrote: bool = False  # in this turn
    touched: set[Hashable] = field(default_factory=set)  # elements, in this turn
    waits: Barrier | Together | None = None
    finished: bool = False
    answer: Any = None  # what it waited for

    def __str__(self) -> str:
        return f"thread {self.index} of block {self.block}"

    lane = property(lambda self: self.index % WARP)
    warp = property(lambda self: self.index // WARP)


@dataclass(eq=False)
class Machine:
    """Runs a kernel on a grid, with one thread of it at a time."""

    grid: Dim
    block: Dim
    schedule: Schedule
    watch: Watch
    watching: bool = True
    steps: int = 0
    idle: int = 0
    now: Thread | None = None
    stopped: bool = False
    body: Callable[[], None] | None = None
    shared: dict[int, dict[Any, Any]] = field(default_factory=dict)  # block -> where it is allocated -> array

    def run(self, body: Callable[[], None]) -> None:
        """`body`, the kernel with its arguments, on all threads: to their end, or until they are found to hang."""
        self.body = body
        order = list(range(self.grid[0] * self.grid[1] * self.grid[2]))
        if self.schedule.backwards:
            order.reverse()
        starting = iter(order)
        at_once = self.schedule.resident or len(order)
        resident = [self._start(number) for number in itertools.islice(starting, at_once)]
        try:
            while resident and not self.stopped:
                for threads in resident:
                    self._turn(threads)
                self._notice_idling(resident)
                for threads in [threads for threads in resident if all(t.finished for t in threads)]:
                    self.shared.pop(threads[0].block, None)
                    resident.remove(threads)
                resident += [
                    self._start(number) for number in itertools.islice(starting, at_once - len(resident))
                ]
        finally:
            for threads in resident:
                for thread in threads:
                    self._end(thread)

    # --- What the device functions of device.py call ----------------------------------------------

    def wait(self, reason: Barrier | Together) -> Any:
        """The running thread stops until what it waits for has come; what came."""
        thread = self.running()
        thread.waits = reason
        self.idle = 0
        self._step()
        assert thread.coroutine.parent is not None
        thread.coroutine.parent.switch()
        return thread.answer

    def yield_(self, *, idle: bool) -> None:
        """Let others run: after an atomic operation, and with `idle` if it changed nothing."""
        if not idle:
            self.idle = 0
        self._step()
        parent = self.running().coroutine.parent
        assert parent is not None
        parent.switch()

    def accessed(self, element: Hashable, *, writes: bool) -> None:
        """The running thread touched an element of an array."""
        thread = self.running()
        self._step()
        thread.accesses += 1
        thread.wrote |= writes
        if len(thread.touched) <= FEW:
            thread.touched.add(element)
        if thread.accesses % TURN == 0:
            idle = not thread.wrote and len(thread.touched) <= FEW
            thread.wrote, thread.touched = False, set()
            self.yield_(idle=idle)

    def running(self) -> Thread:
        if self.now is None:
            raise RuntimeError("a device function was called outside of a kernel")
        return self.now

    # --- Threads and their turns --------------------------------------------------------------------

    def _start(self, number: int) -> list[Thread]:
        bx, by, _ = self.grid
        tx, ty, tz = self.block
        per_block = tx * ty * tz
        in_grid = per_block * self.grid[0] * self.grid[1] * self.grid[2]
        where = (number % bx, number // bx % by, number // (bx * by))
        threads = []
        for i in range(per_block):
            global_number = number * per_block + i
            clock = Clock(global_number, number, in_grid) if self.watching else NoClock()
            at = (i % tx, i // tx % ty, i // (tx * ty))
            thread = Thread(global_number, number, i, at, where, clock, greenlet(self._live))
            threads.append(thread)
        self.idle = 0
        return threads

    def _live(self) -> None:
        thread = self.running()
        assert self.body is not None
        try:
            self.body()
        except GreenletExit:
            pass
        except Exception as error:
            place = _innermost(error)
            self.watch.findings.add("error", f"{thread} at {place}: {type(error).__name__}: {error}", place)
        thread.finished = True

    def _end(self, thread: Thread) -> None:
        self.now = self.watch.thread = thread
        thread.coroutine.throw(GreenletExit)
        thread.finished = True

    def _turn(self, threads: list[Thread]) -> None:
        """Every thread of a block that can run does, once; then those whose wait is over are let go."""
        for thread in threads:
            if not thread.finished and thread.waits is None and not self.stopped:
                self.now = self.watch.thread = thread
                thread.coroutine.switch()
        for _, lanes in itertools.groupby(threads, lambda t: t.warp):
            self._settle_warp(list(lanes))
        self._settle_block(threads)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > STEPS_AT_MOST:
            thread = self.running()
            self.watch.findings.add(
                "hang", f"{thread} is still at work after {self.steps:,} steps of all: stopped"
            )
            self.stopped = True
            raise GreenletExit

    def _notice_idling(self, resident: list[list[Thread]]) -> None:
        """Nothing but looking at flags that nobody changes: it will be so for ever."""
        self.idle += 1
        if self.idle <= IDLE_ROUNDS:
            return
        stuck = [t for threads in resident for t in threads if not t.finished]
        for thread in stuck:
            place = _place_in(thread.coroutine)
            alone = ", whose turn may come only after it: take a ticket from an atomic counter instead of blockIdx"
            self.watch.findings.add(
                "hang",
                f"{thread} waits for ever at {place} for what no thread that runs will do"
                + (f". It may wait for a block{alone}" if self.schedule.resident else ""),
                place,
            )
            self._end(thread)

    # --- Barriers -------------------------------------------------------------------------------------

    def _settle_block(self, threads: list[Thread]) -> None:
        live = [t for t in threads if not t.finished]
        waiting = [t for t in live if isinstance(t.waits, Barrier)]
        if not live or len(waiting) < len(live):
            return
        places = list(dict.fromkeys(t.waits.place for t in waiting))
        absent = [t for t in threads if t.finished and t.phase <= waiting[0].phase]
        if absent:
            self._report_absent(absent, waiting, places[0])
        if len(places) > 1:
            examples = ", ".join(f"{next(t for t in waiting if t.waits.place == p)} at {p}" for p in places)
            self.watch.findings.add(
                "barrier", f"threads of a block wait at different barriers: {examples}", *places
            )
        self.watch.counts.barriers += 1
        self._synchronise(waiting)
        reduce = waiting[0].waits.reduce
        answer = reduce([t.waits.value for t in waiting]) if reduce else None
        met = 1 + max(t.met for t in waiting)
        for t in waiting:
            t.phase, t.met, t.waits, t.answer = t.phase + 1, met, None, answer

    def _report_absent(self, absent: list[Thread], waiting: list[Thread], place: Place) -> None:
        ended = absent[0]
        self.watch.findings.add(
            "barrier",
            f"{waiting[0]} and {len(waiting) - 1} more wait at {place}, but {ended} and {len(absent) - 1} more "
            f"have returned without reaching it: on a GPU a barrier is for all threads of the block or for none",
            place,
        )

    # --- Warp operations ------------------------------------------------------------------------------

    def _settle_warp(self, warp: list[Thread]) -> None:
        waiting = {t.lane: t for t in warp if isinstance(t.waits, Together)}
        while waiting:
            first = next(iter(waiting.values()))
            op = first.waits
            named = {t.lane: t for t in warp if op.mask >> t.lane & 1}
            here = {k: t for k, t in waiting.items() if t.waits.place == op.place and t.waits.mask == op.mask}
            missing = [t for k, t in named.items() if k not in here and not t.finished]
            if any(t.waits is None for t in missing):  # they may still come
                waiting = {k: t for k, t in waiting.items() if k not in here}
                continue
            self._check_warp(op, here, named, missing)
            self._perform(op, here)
            waiting = {k: t for k, t in waiting.items() if k not in here}

    def _check_warp(
        self, op: Together, here: dict[int, Thread], named: dict[int, Thread], missing: list[Thread]
    ) -> None:
        first = next(iter(here.values()))
        outside = [t for k, t in here.items() if k not in named]
        if outside:
            self.watch.findings.add(
                "warp",
                f"{outside[0]} calls {op.name} at {op.place} with a mask that leaves itself out: {op.mask:#x}",
                op.place,
            )
        gone = [t for k, t in named.items() if t.finished and k not in here]
        for what, absent in (("wait elsewhere", missing), ("have returned", gone)):
            if absent:
                self.watch.findings.add(
                    "warp",
                    f"{first} calls {op.name} at {op.place} with the mask {op.mask:#x}, but {absent[0]} and "
                    f"{len(absent) - 1} more whom it names {what}: all of them have to make this call",
                    op.place,
                    subject=what,
                )

    def _perform(self, op: Together, here: dict[int, Thread]) -> None:
        self.watch.counts.warp_operations += 1
        values = {lane: t.waits.value for lane, t in here.items()}
        if op.orders_memory:
            self._synchronise(here.values())
        met = 1 + max(t.met for t in here.values())
        for lane, t in here.items():
            self.now = self.watch.thread = t
            t.answer = op.exchange(lane, values)
            t.met, t.waits = met, None

    def _synchronise(self, threads: Iterable[Thread]) -> None:
        if self.watching:
            synchronise([t.clock for t in threads])


def _innermost(error: BaseException) -> Place:
    """The last line of the kernel's own code that an error went through."""
    place, trace = Place("", 0), error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not ours(name):
            place = Place(name, trace.tb_lineno)
        trace = trace.tb_next
    return place


def _place_in(coroutine: greenlet) -> Place:
    """The line of the kernel's own code where a coroutine stands."""
    frame = coroutine.gr_frame
    while frame is not None and ours(frame.f_code.co_filename):
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno) if frame else Place("", 0)


def ours(file: str) -> bool:
    """Is it a file of the sanitizer, and not of a kernel?"""
    return os.path.dirname(file) == os.path.dirname(__file__)
