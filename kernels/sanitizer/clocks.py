"""Who knows of whose work: a clock for each thread of a launch, and what each has heard of the others'.

An access happens before another if news of it has reached the other's thread: through a barrier, through
`syncwarp`, or through an atomic flag with a fence on either side. Two accesses of which neither happens before the
other may come in either order on a GPU. If one of them is a plain write, that is a race. (Lamport 1978; Flanagan &
Freund 2009, "FastTrack", for one clock value instead of a vector wherever one will do.)
"""

from __future__ import annotations

from collections.abc import Iterable

News = list[int]  # thread -> how much of its work is known; never changed once made, so it can be shared


class Clock:
    """Of one thread. `now` goes up whenever others may have heard of what came before."""

    __slots__ = ("_block_fence", "_fence", "_heard", "_heard_in_block", "block", "known", "now", "thread")

    def __init__(self, thread: int, block: int, threads: int) -> None:
        self.thread, self.block, self.now = thread, block, 1
        self.known: News = [0] * threads
        self._fence: News | None = None  # what I knew at my last fence: what an atomic of mine passes on
        self._block_fence: News | None = None
        self._heard: News | None = None  # what flags told me: counts from my next fence on
        self._heard_in_block: News | None = None

    def knows(self, thread: int, time: int) -> bool:
        """Did what `thread` did at its `time` happen before what I do now?"""
        return thread == self.thread or self.known[thread] >= time

    def fence(self, *, in_block: bool) -> None:
        """`threadfence`, or with `in_block` `threadfence_block`, whose news only the own block may use."""
        heard = [self._heard_in_block] if in_block else [self._heard, self._heard_in_block]
        self.known = join([self.known, *heard]) or self.known
        self._heard_in_block = None
        self._block_fence = news = self._news()
        if not in_block:
            self._heard, self._fence = None, news
        self.now += 1

    def meet(self, flag: Flag) -> None:
        """An atomic operation on a flag: hear what others left there, leave what my last fence covers."""
        self._heard = join([self._heard, flag.everyone])
        self._heard_in_block = join([self._heard_in_block, flag.blocks.get(self.block)])
        if self._fence:
            flag.everyone = join([flag.everyone, self._fence])
        if self._block_fence:
            flag.blocks[self.block] = join([flag.blocks.get(self.block), self._block_fence])

    def _news(self) -> News:
        news = list(self.known)
        news[self.thread] = self.now
        return news


class NoClock(Clock):
    """Of a thread that nobody watches; a clock has a number for every thread of the launch."""

    def __init__(self) -> None:
        super().__init__(0, 0, 0)

    def fence(self, *, in_block: bool) -> None:
        """There is nobody to tell."""


class Flag:
    """What atomics leave at an address: for all blocks, and for threads of one block."""

    __slots__ = ("blocks", "everyone")

    def __init__(self) -> None:
        self.everyone: News | None = None
        self.blocks: dict[int, News | None] = {}


def join(news: Iterable[News | None]) -> News | None:
    """All of it together; None stands for no news."""
    different = list({id(n): n for n in news if n is not None}.values())
    if len(different) <= 1:
        return different[0] if different else None
    return list(map(max, *different))


def synchronise(clocks: list[Clock]) -> None:
    """A barrier: each of them knows of all that all of them did before."""
    together = list(join(c.known for c in clocks) or [])
    for c in clocks:
        together[c.thread] = c.now
    for c in clocks:
        c.known, c.now = together, c.now + 1
