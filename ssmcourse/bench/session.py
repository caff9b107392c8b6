"""Measuring an operator whole: which workers are started, and what becomes of their answers."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ssmcourse.bench import tables
from ssmcourse.bench.operators import OPERATORS, Operator
from ssmcourse.bench.peers import PEERS
from ssmcourse.bench.timing import BUSY_FROM, load, machine

MINUTES_AT_MOST = 15  # for one worker
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    `sizes` replaces the operator's own cases. `quick` is its last case, three turns, one thread, no memory.
    """

    threads: tuple[int, ...] = (1, 2)
    quick: bool = False
    memory: bool = True
    sizes: tuple[tuple[int, ...], ...] = ()

    @property
    def turns(self) -> dict[str, Any]:
        return {"rounds": 3, "budget": 0.5} if self.quick else {"rounds": 7, "budget": 2.0}


def measure(name: str, plan: Plan, say: Say = lambda line: None) -> dict[str, Any]:
    """Everything about one operator, as plain data: cases, scaling, memory, the machine, its load, the date.

    Args:
        name: of an operator in `OPERATORS`.
        plan: what to measure.
        say: is told what comes next.
    """
    op, loads = OPERATORS[name], [load()]
    cases = plan.sizes or tuple(op.cases)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(threads=False),
        "operator": name,
        "letters": op.letters,
        "dtype": "float32",
        "packages": _versions(name),
        "cases": [],
        "scaling": None,
        "memory": [],
        "failed": [],
    }
    for numbers in cases[-1:] if plan.quick else cases:
        _add_cases(result, numbers, plan, say)
        loads.append(load())
    if not plan.quick and not plan.sizes:
        _add_scaling(result, op, say)
    if plan.memory and not plan.quick and not plan.sizes:
        _add_memory(result, op, say)
    known = [value for value in [*loads, load()] if value is not None]
    result["load"] = {"least": min(known), "most": max(known)} if known else {}
    result["warnings"] = warnings(result)
    return result


def _add_cases(result: dict[str, Any], numbers: tuple[int, ...], plan: Plan, say: Say) -> None:
    """The case with each number of threads; who is right is found out the first time only."""
    known = None
    for threads in plan.threads[:1] if plan.quick else plan.threads:
        say(f"{result['operator']} {_shape(numbers)}, {threads} thread{'s'[: threads > 1]}")
        request = {"what": "compare", "operator": result["operator"], "sizes": numbers, "threads": threads}
        answer = ask(request | plan.turns | {"known": known}, threads)
        _add(result, "cases", answer, request)
        known = known or (answer if "rows" in answer else None)


def _add_scaling(result: dict[str, Any], op: Operator, say: Say) -> None:
    if op.scaling is not None:
        say(f"{op.name}, long against short")
        request = {"what": "scaling", "operator": op.name, "sizes": op.scaling, "rounds": 7}
        result["scaling"] = ask(request, 1)


def _add_memory(result: dict[str, Any], op: Operator, say: Say) -> None:
    """Forward with backward: our best backend and every peer that is right, and ours at full length."""
    if not result["cases"]:
        return
    best = tables.ours(result["cases"][0])["name"]
    to_weigh = [(op.long, best)] if op.long else []
    for numbers in op.memory:
        case = next((c for c in result["cases"] if c["sizes"] == list(numbers)), {"threads": 1, "rows": []})
        peers = [r for r in case["rows"] if r["kind"] != "ours"]
        right = [r["name"] for r in peers if tables.time_of(case, r, "both") is not None]
        to_weigh += [(numbers, who) for who in [best, *right]]
    for numbers, who in to_weigh:
        say(f"{op.name} {_shape(numbers)}, memory of {who}")
        request = {"what": "memory", "operator": op.name, "sizes": numbers, "who": who}
        answer = ask(request, 1)
        _add(result, "memory", answer | {"sizes": list(numbers), "who": who}, request)


def _add(result: dict[str, Any], where: str, answer: dict[str, Any], request: dict[str, Any]) -> None:
    if "crashed" in answer:
        who = request.get("who", f"{request.get('threads')} thread(s)")
        result["failed"].append(f"{request['what']} {_shape(request['sizes'])}, {who}: {answer['crashed']}")
    else:
        result[where].append(answer)


def ask(request: dict[str, Any], threads: int) -> dict[str, Any]:
    """Start a worker, wait, and return its answer, or {"crashed": why}."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "ssmcourse.bench.worker", json.dumps(request), str(target)]
        try:
            done = subprocess.run(
                command,
                env=environment(threads),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60 * MINUTES_AT_MOST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"crashed": f"not done after {MINUTES_AT_MOST} minutes"}
        if target.is_file():
            return json.loads(target.read_text(encoding="utf-8"))
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"crashed": f"exit code {done.returncode}: {lines[-1][:200]}"}


def environment(threads: int) -> dict[str, str]:
    """For a worker: libraries that choose their threads when they start get told, and no GPU joins in."""
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if threads == 1:
        settings["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return os.environ | settings


def warnings(result: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the figures."""
    most = result["load"].get("most")
    if most is not None and most > BUSY_FROM:
        return [
            f"the load average was up to {most:.1f}: others used the processor; measure again when it is quiet"
        ]
    return []


def _versions(name: str) -> dict[str, str]:
    found = {}
    for package in sorted({p.package for p in PEERS if p.operator == name and p.package}):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _shape(numbers: Any) -> str:
    return "(" + ", ".join(f"{n:,}" for n in numbers) + ")"
