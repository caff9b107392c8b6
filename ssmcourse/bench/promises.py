"""What a stored result falls short of: the ratios of `operators`, and what holds for every operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmcourse.bench import tables
from ssmcourse.bench.operators import OPERATORS, Operator, Promise

SPEED_UP = 1.6  # of two threads, at least
LONGER_STEP = 1.25  # at l = 65,536 against 4,096, at most
OF_COPY = 0.6  # of the bytes that a copy moves, at least, where the memory is the limit


def shortfalls(result: dict[str, Any]) -> list[str]:
    """A line for each promise that the result of one operator does not keep."""
    op = OPERATORS[result["operator"]]
    return [*_ratios(op, result), *_threads(result), *_scaling(op, result), *_memory(op, result)]


def _ratios(op: Operator, result: dict[str, Any]) -> Iterator[str]:
    for case in (c for c in result["cases"] if c["threads"] == 1):
        for promise in op.cases.get(tuple(case["sizes"]), ()):
            yield from _of_one(case, promise)


def _of_one(case: dict[str, Any], promise: Promise) -> Iterator[str]:
    for k, (direction, least) in enumerate((("forward", promise.forward), ("both", promise.both))):
        found = tables.best_peer(case, direction, promise.against)
        if least is not None and found is not None and found[1] < least:
            yield f"{_name(case)}, {direction}: {found[0]} takes {found[1]:.2f} times as long, promised {least}"
        limit = tables.of_limit(case, direction)
        if promise.limit is not None and limit is not None and limit > promise.limit[k]:
            yield f"{_name(case)}, {direction}: {limit:.2f} times the machine's limit, promised {promise.limit[k]}"


def _threads(result: dict[str, Any]) -> Iterator[str]:
    for case in (c for c in result["cases"] if c["threads"] == 2):
        for direction in case["limits"]:
            gain = tables.speed_up(case, direction)
            if gain is not None and gain < SPEED_UP:
                yield f"{_name(case)}, {direction}: two threads are {gain:.2f} times as quick, promised {SPEED_UP}"


def _scaling(op: Operator, result: dict[str, Any]) -> Iterator[str]:
    scaling = result["scaling"] or {}
    for direction in (d for d in tables.DIRECTIONS if d in scaling):
        ratio, share = scaling[direction]["ratio"], scaling[direction]["of_copy_bandwidth"]
        if ratio > LONGER_STEP:
            yield f"long, {direction}: a step takes {ratio:.2f} times as long, promised {LONGER_STEP}"
        if op.by_memory and share < OF_COPY:
            yield f"long, {direction}: {share:.2f} of the bytes that a copy moves, promised {OF_COPY}"


def _memory(op: Operator, result: dict[str, Any]) -> Iterator[str]:
    for m in result["memory"]:
        long = op.long is not None and m["sizes"] == list(op.long)
        if long and op.memory_ratio is not None and m["ratio"] > op.memory_ratio:
            yield f"memory: {m['ratio']:.2f} times what goes in and out, promised {op.memory_ratio}"
    for who, least in op.memory_of.items():
        here = {m["who"]: m["mb"] for m in result["memory"] if tuple(m["sizes"]) in op.memory}
        mine = next((mb for name, mb in here.items() if name.startswith("ours")), None)
        if mine is not None and who in here and here[who] < least * mine:
            yield f"memory: {who} needs {here[who] / mine:.1f} times ours, promised {least}"


def _name(case: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{n:,}" for n in case["sizes"]) + ")"
