"""What a watched launch has to say: what is wrong, what it cost, and which thread touched what when."""

from __future__ import annotations

import functools
import linecache
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Kind = Literal["race", "barrier", "warp", "uninitialised", "bounds", "hang", "error"]


class Place(NamedTuple):
    """A line of source."""

    file: str
    line: int

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        return f"line {self.line} ({source})" if source else f"line {self.line}"


Instruction = tuple[types.CodeType, Any]


def instruction(frame: types.FrameType) -> Instruction:
    """Which expression of the source a frame is at. Its index into the bytecode depends on how often it ran."""
    return frame.f_code, _positions(frame.f_code)[frame.f_lasti // 2]


@functools.cache
def _positions(code: types.CodeType) -> tuple:
    return tuple(code.co_positions())


class Finding(NamedTuple):
    """Something that a GPU may punish. `where` are the lines involved, the one that shows it first."""

    kind: Kind
    message: str
    where: tuple[Place, ...]

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Event(NamedTuple):
    """One access. `phase` counts the barriers that the thread has passed; `index` is into the array named."""

    phase: int
    block: int
    thread: int
    access: Literal["read", "write", "atomic"]
    space: Literal["global", "shared"]
    array: str
    index: tuple[int, ...]
    line: int


@dataclass
class Counts:
    """What all threads did together. Registers and local arrays cost nothing here.

    `sectors` are the pieces of 32 bytes that the global accesses of a warp fall into, which is what memory is
    asked for; `bank_conflicts` the extra rounds that shared accesses of a warp need because several of its
    threads want different words of one of the 32 banks; `barriers` are counted once a block.
    """

    global_reads: int = 0
    global_writes: int = 0
    shared_reads: int = 0
    shared_writes: int = 0
    atomics: int = 0
    barriers: int = 0
    warp_operations: int = 0
    sectors: int = 0
    bank_conflicts: int = 0


@dataclass
class Report:
    """The verdict on a launch. It is true in a condition where nothing was found.

    Attributes:
        findings: each kind at each line once, with an example and how often it happened.
        counts: of the first order in which the blocks ran.
        trace: every access of that order, if it was asked for.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    trace: list[Event] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.findings

    def kinds(self) -> set[str]:
        """The kinds of what was found."""
        return {finding.kind for finding in self.findings}

    def __str__(self) -> str:
        if self.findings:
            return "\n".join(map(str, self.findings))
        c = self.counts
        return (
            f"nothing wrong found. global: {c.global_reads} reads, {c.global_writes} writes, {c.sectors} sectors; "
            f"shared: {c.shared_reads} reads, {c.shared_writes} writes, {c.bank_conflicts} bank conflicts; "
            f"{c.barriers} barriers, {c.warp_operations} warp operations, {c.atomics} atomics"
        )


class Findings:
    """Gathers what is found; what happens again at the same lines is only counted."""

    def __init__(self) -> None:
        self._first: dict[tuple[Kind, tuple[Place, ...], str], str] = {}
        self._times: Counter[tuple[Kind, tuple[Place, ...], str]] = Counter()

    def add(self, kind: Kind, message: str, *where: Place, subject: str = "") -> None:
        """Note it, unless the same kind was found at the same lines with the same subject (say, an array)."""
        key = (kind, where, subject)
        self._first.setdefault(key, message)
        self._times[key] += 1

    def all(self) -> list[Finding]:
        times = self._times
        return [
            Finding(key[0], message + (f"; {times[key]} times in all" if times[key] > 1 else ""), key[1])
            for key, message in self._first.items()
        ]


def merged(many: Iterable[list[Finding]]) -> list[Finding]:
    """The findings of several runs, each kind at each place once."""
    seen: dict[tuple[Kind, frozenset[Place]], Finding] = {}
    for findings in many:
        for finding in findings:
            seen.setdefault((finding.kind, frozenset(finding.where)), finding)
    return list(seen.values())
