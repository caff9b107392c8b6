"""One case: how long does each contestant take, and is it right (`judge`)?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ssmcourse.bench import contestants, judge
from ssmcourse.bench.contestants import Entry
from ssmcourse.bench.judge import Row
from ssmcourse.bench.limits import Rates, Work, Yardsticks
from ssmcourse.bench.operators import Inputs, Operator
from ssmcourse.bench.peers import Peer
from ssmcourse.bench.timing import interleaved

DIRECTIONS = ("forward", "both")
SLOW_MS = 500.0  # who takes longer on one thread is not timed on more


def compare(
    op: Operator,
    numbers: tuple[int, ...],
    *,
    threads: int = 1,
    rounds: int = 7,
    budget: float = 2.0,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure one case.

    Args:
        op: the operator.
        numbers: its sizes, in the order of `op.letters`.
        threads: how many torch and our kernels may use; with more than one, ours run on one as well.
        rounds, budget: of `interleaved`.
        known: the result on one thread: errors are taken from there, and who was slow does not run again.
    Returns:
        Plain data: a row for each contestant with milliseconds and errors, forward and with backward; the
        rates of the machine and its limit in milliseconds.
    """
    torch.set_num_threads(threads)
    here, missing = contestants.rivals(op)
    everyone = [*contestants.ours(op, op.length(numbers)), *here]
    rows = {peer.name: _row(peer) for peer in everyone}
    inputs = op.inputs(numbers)
    if known is None:
        entries, shape = judge.check(op, numbers, inputs, everyone, rows)
    else:
        entries, shape = _again(op, numbers, inputs, everyone, rows, known), known["shape"]
    sticks = Yardsticks(max(t.numel() * t.element_size() for t in inputs.values()))
    work = op.work(op.sizes(numbers)) if op.work else (None, None)
    limits = {}
    for direction, unavoidable in zip(DIRECTIONS[: 1 + op.backward], work, strict=False):
        rates = _time(entries, rows, sticks, direction, threads, rounds=rounds, budget=budget)
        limits[direction] = _limit(rates, unavoidable)
    return {
        "sizes": list(numbers),
        "threads": threads,
        "shape": shape,
        "rows": list(rows.values()),
        "missing": missing,
        "limits": limits,
    }


def _row(peer: Peer) -> Row:
    kind = "ours" if peer.name.startswith("ours") else peer.framework
    return {"name": peer.name, "kind": kind, "package": peer.package, "turned": peer.swap is not None}


def _again(
    op: Operator,
    numbers: tuple[int, ...],
    inputs: Inputs,
    peers: list[Peer],
    rows: dict[str, Row],
    known: dict[str, Any],
) -> list[Entry]:
    """Take over what is known, and return those who were quick enough to run once more."""
    before = {row["name"]: row for row in known["rows"]}
    weight, entries = judge.arriving(known["shape"]), []
    for peer in peers:
        for direction in DIRECTIONS:
            part = before[peer.name].get(direction, {})
            if part.get("cpu_ms", SLOW_MS) < SLOW_MS:
                rows[peer.name][direction] = {"error": part["error"], "valid": part["valid"]}
        if any(direction in rows[peer.name] for direction in DIRECTIONS):
            entries.append(contestants.enter(peer, inputs, op.options(op.sizes(numbers)), weight))
    return entries


def _time(
    entries: list[Entry], rows: dict[str, Row], sticks: Yardsticks, direction: str, threads: int, **turns: Any
) -> Rates:
    """Fill in the times of all who ran, and return what the machine did meanwhile."""
    parts = {e.peer.name: rows[e.peer.name].get(direction, {}) for e in entries}
    running = [e for e in entries if "error" in parts[e.peer.name] and "left_out" not in parts[e.peer.name]]
    alone = [e for e in running if rows[e.peer.name]["kind"] == "ours"] if threads > 1 else []
    for entry in running:
        entry.prepare(direction)
    calls = [getattr(e, direction) for e in running]
    calls += [functools.partial(_on_one_thread, getattr(e, direction), threads) for e in alone]
    timings = interleaved([*calls, *sticks.calls], **turns)
    for entry, timing in zip(running, timings, strict=False):
        rows[entry.peer.name][direction] |= asdict(timing)
    for entry, timing in zip(alone, timings[len(running) :], strict=False):
        rows[entry.peer.name][direction]["one_thread_wall_ms"] = timing.wall_ms
    return sticks.rates(*timings[-3:], threads=threads)


def _on_one_thread(call: Callable[[], Any], threads: int) -> None:
    torch.set_num_threads(1)
    try:
        call()
    finally:
        torch.set_num_threads(threads)


def _limit(rates: Rates, work: Work | None) -> Row:
    row: Row = {
        "copy_gb_s": rates.bytes / 1e9,
        "sgemm_gflop_s": rates.flops / 1e9,
        "exp_g_s": rates.exps / 1e9,
    }
    if work is not None:
        row["ms"], row["by"] = rates.limit(work)
    return row
