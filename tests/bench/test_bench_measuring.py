"""How `ssmcourse bench` measures: a case, turns and clocks, limits, workers, a session."""

from __future__ import annotations

import subprocess

import pytest

from ssmcourse.bench import command, compare, judge, limits, session, tables, timing
from ssmcourse.bench.operators import OPERATORS
from ssmcourse.bench.peers import Peer
from ssmcourse.bench.session import Plan


def test_a_case_judges_and_times_everyone(result, cases):
    one, two = result["cases"]
    rows = {row["name"]: row for row in one["rows"]}
    assert not rows["quick and wrong"]["forward"]["valid"]
    assert rows["broken"]["failed"] == "RuntimeError: no such thing"
    assert rows["no gradient"]["forward"]["valid"]
    assert "RuntimeError" in rows["no gradient"]["both"]["failed"]
    assert "cpu_ms" not in rows["no gradient"]["both"]
    assert one["missing"] == {"missing": "pip-name"}
    for row in (rows["plain"], rows["ours, cpu"]):
        for direction in ("forward", "both"):
            part = row[direction]
            assert part["valid"]
            assert part["error"] < 1e-5
            assert part["cpu_ms"] > 0
            assert part["rounds"] == 2
    assert one["limits"]["both"]["by"] == "memory"
    assert one["limits"]["both"]["ms"] > one["limits"]["forward"]["ms"] > 0
    assert tables.speed_up(one, "forward") is None
    assert tables.speed_up(two, "forward") > 0
    assert cases[1] == 2


def test_a_wrong_rival_is_never_the_best(result):
    case = result["cases"][0]
    for row in case["rows"]:
        if row["name"] == "quick and wrong":
            row["forward"]["cpu_ms"] = 1e-9
    name, ratio = tables.best_peer(case, "forward")
    assert name in ("plain", "no gradient")
    assert ratio > 0
    assert tables.best_peer(case, "both")[0] == "plain"
    assert tables.best_peer(case, "both", "as ours")[0] == "plain"
    assert tables.best_peer(case, "both", "torch")[0] == "plain"
    assert tables.best_peer(case, "both", "jax") is None
    assert tables.best_peer(case, "both", "quick and wrong") is None


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when `clock.wait(wall, cpu)` says so."""

    class Clock:
        wall = cpu = 0.0

        def wait(self, wall, cpu):
            self.wall += wall
            self.cpu += cpu

    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.wall)
    monkeypatch.setattr(timing.time, "process_time", lambda: made.cpu)
    return made


def test_a_backward_that_would_take_minutes_is_left_out(rivals, monkeypatch):
    rivals[-1] = Peer("linear_scan", "plain", OPERATORS["linear_scan"].oracle, quadratic=True)
    monkeypatch.setattr(judge, "QUADRATIC_UP_TO", 1000)
    case = compare.compare(OPERATORS["linear_scan"], (2, 70, 16), rounds=2, budget=1.0)
    part = case["rows"][-1]["both"]
    assert part["valid"]
    assert "cpu_ms" not in part
    assert tables.best_peer(case, "both") is None
    assert tables.best_peer(case, "forward") is not None
    assert tables._cells(case, case["rows"][-1], "both")[0] == "O(l²)"


def test_rivals_run_in_turn_and_who_is_very_slow_runs_once(clock):
    calls = []

    def rival(name, wall, cpu):
        return lambda: (calls.append(name), clock.wait(wall, cpu))

    rivals = [rival("a", 1e-3, 1e-3), rival("b", 0.5, 0.25), rival("c", 2.5, 0.0)]
    a, b, c = timing.interleaved(rivals, rounds=7, budget=1.0)
    assert (a.rounds, b.rounds, c.rounds) == (7, 2, 1)
    assert (a.cpu_ms, b.cpu_ms, c.wall_ms) == pytest.approx((1, 250, 2500))
    assert "".join(calls) == "aa" + "bb" + "c" + 2 * (21 * "a" + "b") + 5 * (21 * "a")


def test_a_median_is_not_moved_by_one_bad_turn(clock):
    walls = iter([0.02, 0.02, 0.02, 9.0, 0.04])
    (t,) = timing.interleaved([lambda: clock.wait(next(walls), 0.0)], rounds=3)
    assert t.wall_ms == pytest.approx(40)


def test_the_limit_is_the_slowest_of_the_three():
    rates = limits.Rates(bytes=1e9, flops=1e9, exps=1e9)
    assert rates.limit(limits.Work(bytes=1e6, flops=3e6, exps=2e6)) == (3.0, "matrix products")
    assert rates.limit(limits.Work(bytes=4e6, exps=2e6)) == (4.0, "memory")
    sticks = limits.Yardsticks(1 << 20)
    measured = sticks.rates(*timing.interleaved(sticks.calls, rounds=2))
    assert 1e8 < measured.bytes < 1e12
    assert 1e8 < measured.flops < 1e13
    assert 1e7 < measured.exps < 1e12


def test_what_cannot_be_avoided():
    forward, both = OPERATORS["linear_scan"].work(OPERATORS["linear_scan"].sizes((2, 10, 3)))
    assert (forward.bytes, both.bytes) == (3 * 4 * 60, 8 * 4 * 60)
    forward, both = OPERATORS["selective_scan"].work(OPERATORS["selective_scan"].sizes((1, 10, 3, 4)))
    assert (forward.exps, both.exps) == (120, 240)
    # SSD, one head, two chunks of 64: C B^T and M x are half a square each, then states in and out.
    forward, both = OPERATORS["ssd"].work(OPERATORS["ssd"].sizes((1, 128, 1, 8, 4, 64)))
    assert forward.flops == 2 * (64 * 64 * 4 + 64 * 64 * 8) + 2 * 2 * 128 * 8 * 4
    assert both.flops == 3 * forward.flops


# --- Workers ---------------------------------------------------------------------------------------


def test_a_worker_weighs_what_a_scan_needs():
    request = {"what": "memory", "operator": "linear_scan", "sizes": [1, 32768, 64]}
    answer = session.ask(request | {"who": "ours, cpu"}, 1)
    assert answer["needed_mb"] == pytest.approx(6 * 4 * 32768 * 64 / 1e6)
    assert 0.9 < answer["ratio"] < 2


@pytest.mark.slow
def test_what_a_worker_that_broke_off_said():
    request = {"what": "memory", "operator": "linear_scan", "sizes": [1, 8, 4], "who": "nobody"}
    crashed = session.ask(request, 1)["crashed"]
    assert crashed.startswith("exit code 1: ValueError: who: got 'nobody', expected one of ours, cpu")


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (
            1,
            "Traceback:\n  line 3\nValueError: who: got 'nobody'\n",
            "exit code 1: ValueError: who: got 'nobody'",
        ),
        (-9, "", "exit code -9: it said nothing"),
        (None, "", "not done after 15 minutes"),
    ],
)
def test_why_a_worker_broke_off(monkeypatch, code, said, why):
    def run(command, **options):
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(session.subprocess, "run", run)
    assert session.ask({"what": "compare"}, 1) == {"crashed": why}


def test_a_session_asks_for_everything(monkeypatch):
    asked = []

    def ask(request, threads):
        asked.append((request["what"], tuple(request["sizes"]), threads, request.get("who")))
        if request.get("who") == "large":
            return {"crashed": "out of memory"}
        assert (request.get("known") is None) == (threads == 1)
        right = {"both": {"valid": True, "cpu_ms": 1.0}}
        rows = [{"name": "ours, cpu", "kind": "ours"}, {"name": "large", "kind": "torch"} | right]
        rows.append({"name": "wrong", "kind": "torch"})
        return {"sizes": list(request["sizes"]), "rows": rows, "threads": threads} | {
            "missing": {},
            "limits": {},
        }

    monkeypatch.setattr(session, "ask", ask)
    said = []
    result = session.measure("selective_scan", Plan(), said.append)
    op = OPERATORS["selective_scan"]
    assert [a for a in asked if a[0] == "compare"] == [
        ("compare", sizes, k, None) for sizes in op.cases for k in (1, 2)
    ]
    assert ("scaling", op.scaling, 1, None) in asked
    assert [a[1:] for a in asked if a[0] == "memory"] == [
        (op.long, 1, "ours, cpu"),
        (op.memory[0], 1, "ours, cpu"),
        (op.memory[0], 1, "large"),
    ]
    assert len(said) == len(asked)
    assert result["failed"] == ["memory (1, 2,048, 768, 16), large: out of memory"]
    assert not command.sound(result)
    asked.clear()
    session.measure("ssd", Plan(quick=True))
    assert asked == [("compare", list(OPERATORS["ssd"].cases)[-1], 1, None)]
