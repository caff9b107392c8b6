"""One case: is every contestant right, and how long does each take?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ssmcourse.bench import contestants
from ssmcourse.bench.contestants import Entry
from ssmcourse.bench.limits import Rates, Work, Yardsticks
from ssmcourse.bench.operators import Inputs, Operator
from ssmcourse.bench.peers import Peer
from ssmcourse.bench.timing import interleaved
from ssmcourse.tolerance import mismatch

GRADIENTS_UP_TO = 320  # steps: the oracle keeps every state in float64; a chunk of 256, and some of the next
Row = dict[str, Any]


def compare(
    op: Operator, numbers: tuple[int, ...], *, threads: int = 1, rounds: int = 7, budget: float = 3.0
) -> dict[str, Any]:
    """Measure one case.

    Args:
        op: the operator.
        numbers: its sizes, in the order of `op.letters`.
        threads: how many torch and our kernels may use; with more than one, ours run on one as well.
        rounds, budget: of `interleaved`.
    Returns:
        Plain data: a row for each contestant with milliseconds and errors, forward and with backward; the
        rates of the machine and its limit in milliseconds.
    """
    torch.set_num_threads(threads)
    here, missing = contestants.rivals(op)
    everyone = [*contestants.ours(op), *here]
    rows: dict[str, Row] = {
        peer.name: {"name": peer.name, "kind": _kind(peer), "package": peer.package} for peer in everyone
    }
    inputs = op.inputs(numbers)
    entries = _checked(op, numbers, inputs, everyone, rows)
    sticks = Yardsticks(max(t.numel() * t.element_size() for t in inputs.values()))
    work = op.work(op.sizes(numbers)) if op.work else (None, None)
    limits = {}
    for direction, unavoidable in zip(
        ["forward", "both"] if op.backward else ["forward"], work, strict=False
    ):
        rates = _time(entries, rows, sticks, direction, threads, rounds=rounds, budget=budget)
        limits[direction] = _limit(rates, unavoidable)
    return {
        "sizes": list(numbers),
        "threads": threads,
        "rows": list(rows.values()),
        "missing": missing,
        "limits": limits,
    }


def _kind(peer: Peer) -> str:
    return "ours" if peer.name.startswith("ours") else peer.framework


# --- Right? --------------------------------------------------------------------------------------


def _checked(
    op: Operator, numbers: tuple[int, ...], inputs: Inputs, peers: list[Peer], rows: dict[str, Row]
) -> list[Entry]:
    """Fill in the errors of all, and return those that ran."""
    options = op.options(op.sizes(numbers))
    with torch.no_grad():
        expected = op.oracle(**op.inputs(numbers, torch.float64), **options)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    terms = op.length(numbers)
    entries = []
    for peer in peers:
        row = rows[peer.name]
        try:
            entry = contestants.enter(peer, inputs, options, weight)
            row["forward"] = _judged(entry.own(entry.forward()), expected, terms)
        except Exception as error:  # a peer's trouble is a line in the table, not the end of it
            row["failed"] = _one_line(error)
            continue
        entries.append(entry)
    if op.backward:
        _check_gradients(op, numbers, [entry.peer for entry in entries], rows)
    return entries


def _check_gradients(op: Operator, numbers: tuple[int, ...], peers: list[Peer], rows: dict[str, Row]) -> None:
    l = min(op.length(numbers), GRADIENTS_UP_TO)
    options = op.options(op.sizes(numbers) | {"l": l})
    inputs = op.inputs(numbers, l=l)
    wide = {name: t.requires_grad_() for name, t in op.inputs(numbers, torch.float64, l=l).items()}
    y = op.oracle(**wide, **options)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(y, list(wide.values()), weight.to(y.dtype))
    expected = dict(zip(wide, gradients, strict=True))
    terms = l * op.sizes(numbers).get(
        "n", 1
    )  # a parameter's gradient sums over steps, an input's over states
    for peer in peers:
        try:
            entry = contestants.enter(peer, inputs, options, weight)
            rows[peer.name]["both"] = _worst(entry.own(entry.both())[1], expected, terms)
        except Exception as error:
            rows[peer.name]["both"] = {"failed": _one_line(error)}


def _worst(got: Inputs, expected: Inputs, terms: int) -> Row:
    judged = [_judged(got[name], expected[name], terms) for name in expected]
    return {"error": max(j["error"] for j in judged), "valid": all(j["valid"] for j in judged)}


def _judged(got: Tensor, expected: Tensor, terms: int) -> Row:
    """The largest error relative to the largest value, and whether the tolerance table allows it."""
    problem = mismatch(got, expected, terms=terms)
    scale = float(expected.abs().max())
    error = float((got.to(expected.dtype) - expected).abs().max()) / (scale or 1.0)
    return {"error": error, "valid": problem is None}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# --- How long? -----------------------------------------------------------------------------------


def _time(
    entries: list[Entry], rows: dict[str, Row], sticks: Yardsticks, direction: str, threads: int, **turns: Any
) -> Rates:
    """Fill in the times of all who ran, and return what the machine did meanwhile."""
    running = [e for e in entries if "error" in rows[e.peer.name].get(direction, {})]
    alone = [e for e in running if rows[e.peer.name]["kind"] == "ours"] if threads > 1 else []
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
