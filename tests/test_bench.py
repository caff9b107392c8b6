"""`ssmcourse bench`: rivals that are right, wrong, missing or broken, the tables, the plots, the README."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ssmcourse import cli
from ssmcourse.bench import command, compare, contestants, judge, limits, promises, session, tables, timing
from ssmcourse.bench.operators import OPERATORS
from ssmcourse.bench.peers import PEERS, Peer
from ssmcourse.bench.session import Plan
from ssmcourse.course import WrongCall
from ssmcourse.explore.figures import speed
from ssmcourse.tolerance import mismatch

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "selective_scan": (2, 70, 8, 4),
    "ssd": (1, 70, 2, 8, 4, 16),
    "linear_scan": (2, 70, 16),
    "causal_conv1d": (2, 70, 8, 4),
    "linear_attention": (1, 64, 2, 4, 8),
    "wkv4": (2, 70, 8),
    "s4_kernel": (3, 8, 70),
    "s4d_kernel": (3, 8, 70),
    "selective_scan_matrix": (1, 12, 3, 4),
}
STORED = ROOT / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- Who takes part --------------------------------------------------------------------------------


def everyone():
    return [(p.operator, p.name) for p in PEERS]


def test_every_operator_is_small_here_and_has_a_plain_rival():
    assert set(SMALL) == set(OPERATORS)
    for name in OPERATORS:
        assert any(p.operator == name and not p.package for p in PEERS)
    assert len(set(everyone())) == len(PEERS)


@pytest.mark.parametrize(("operator", "name"), everyone())
def test_a_peer_computes_what_the_oracle_does_and_its_gradients(operator, name):
    """What is not installed is skipped: nothing of the extra [bench] is needed to test the rest."""
    op, (peer,) = OPERATORS[operator], [p for p in PEERS if (p.operator, p.name) == (operator, name)]
    if peer.module:
        pytest.importorskip(peer.module.partition(".")[0])
    rows = {name: {}}
    judge.check(op, SMALL[operator], op.inputs(SMALL[operator]), [peer], rows)
    for direction in ("forward", "both")[: 1 + op.backward]:
        assert rows[name][direction]["valid"], rows
        assert rows[name][direction]["error"] < 1e-3


@pytest.mark.parametrize("operator", OPERATORS)
def test_ours_are_right(operator):
    op = OPERATORS[operator]
    team = contestants.ours(op)
    rows = {peer.name: {} for peer in team}
    judge.check(op, SMALL[operator], op.inputs(SMALL[operator]), team, rows)
    for row in rows.values():
        assert row["forward"]["valid"], rows
        assert not op.backward or row["both"]["valid"], rows


def test_a_quadratic_algorithm_does_not_run_on_long_sequences():
    op = OPERATORS["ssd"]
    short, long = ([peer.name for peer in contestants.ours(op, l)] for l in (1024, 1025))
    assert set(short) - set(long) == {"ours, quadratic"}
    assert long[0] == short[0] == "ours, cpu"


def test_the_oracle_of_the_scans_is_their_dense_matrix():
    """M[t, s] = a_t ... a_{s+1}, filled in entry by entry."""
    inputs = OPERATORS["linear_scan"].inputs((1, 9, 2), torch.float64)
    got = OPERATORS["linear_scan"].oracle(**inputs)
    a, b = (t[0].numpy() for t in inputs.values())
    for k in range(2):
        M = np.array([[np.prod(a[s + 1 : t + 1, k]) * (s <= t) for s in range(9)] for t in range(9)])
        assert mismatch(got[0, :, k], M @ b[:, k], terms=9) is None
    op = OPERATORS["selective_scan"]
    inputs = op.inputs((1, 9, 2, 3), torch.float64)
    x = inputs.pop("x")
    M = OPERATORS["selective_scan_matrix"].oracle(**inputs)
    assert mismatch(op.oracle(x, **inputs), torch.einsum("bdij,bjd->bid", M, x), terms=9) is None


# --- A case ----------------------------------------------------------------------------------------


def half(a, b):
    return OPERATORS["linear_scan"].oracle(a, b) * 1.001


def broken(a, b):
    raise RuntimeError("no such\nthing")


def no_gradient(a, b):
    return OPERATORS["linear_scan"].oracle(a.detach(), b)


def some_rivals():
    """A wrong rival, which is quick, one that fails, one without a gradient, one not installed, one that is right."""
    return [
        Peer("linear_scan", "quick and wrong", half),
        Peer("linear_scan", "broken", broken),
        Peer("linear_scan", "no gradient", no_gradient),
        Peer("linear_scan", "missing", half, package="pip-name", module="no_such_module.inside"),
        Peer("linear_scan", "plain", OPERATORS["linear_scan"].oracle),
    ]


@pytest.fixture
def rivals(monkeypatch):
    made = some_rivals()
    monkeypatch.setattr(contestants, "PEERS", made)
    return made


@pytest.fixture(scope="module")
def cases():
    """The rivals measured on one thread and on two, and how many threads torch used then."""
    op = OPERATORS["linear_scan"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestants, "PEERS", some_rivals())
        one = compare.compare(op, (2, 70, 16), rounds=2, budget=1.0)
        two = compare.compare(op, (2, 70, 16), threads=2, rounds=2, budget=1.0, known=one)
    return [one, two], torch.get_num_threads()


@pytest.fixture
def result(cases):
    """A result as it is stored, of two cases: one and two threads."""
    op, (cases, _) = OPERATORS["linear_scan"], cases
    made = {
        "date": "2026-01-31",
        "machine": "a machine",
        "operator": "linear_scan",
        "letters": op.letters,
        "dtype": "float32",
        "cases": cases,
        "scaling": {
            "lengths": [4096, 65536],
            "forward": {"ns_a_step": [1.0, 1.1], "ratio": 1.1, "of_copy_bandwidth": 0.7},
            "both": {"ns_a_step": [1.0, 1.3], "ratio": 1.3, "of_copy_bandwidth": 0.5},
        },
        "memory": [{"who": "ours, cpu", "sizes": [2, 70, 16], "mb": 12.0, "needed_mb": 10.0}],
        "failed": [],
        "load": {"least": 0.1, "most": 3.0},
    }
    made["memory"][0]["ratio"] = 1.2
    made["warnings"] = session.warnings(made)
    return json.loads(json.dumps(made))  # plain data only


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


# --- Tables, promises, plots -----------------------------------------------------------------------


def printed(result):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for piece in tables.terminal(result):
        console.print(piece)
    return console.export_text()


def test_the_terminal_shows_who_is_right_and_who_is_not(result):
    text = printed(result)
    assert "linear_scan  b l d = 2, 70, 16, float32, 1 thread" in text
    assert "2 threads" in text
    (line,) = [line for line in text.splitlines() if line.startswith("quick and wrong")][:1]
    assert "invalid" in line
    assert "limit of the machine" in text
    assert "not installed: missing (pip install 'ssmcourse[bench]')" in text
    assert "the best peer, plain, takes" in text
    assert "times the machine's limit (memory)" in text
    assert "a step at l = 65,536 against one at 4,096: forward 1.1 times" in text
    assert "warning: the load average was up to 3.0" in text
    assert "× inputs, outputs, gradients" in text


def test_numbers_have_two_digits_and_no_exponent():
    assert [tables.number(v) for v in (None, 0.123, 1.234, 12.34, 123.4, 12345.0)] == [
        "–",
        "0.12",
        "1.2",
        "12",
        "123",
        "12,345",
    ]


def test_what_falls_short_is_named(result):
    op = OPERATORS["linear_scan"]
    result["cases"][0]["sizes"] = list(next(iter(op.cases)))
    result["cases"][0]["limits"]["forward"]["ms"] = 1e-9
    lines = promises.shortfalls(result)
    assert any("times the machine's limit, promised 1.3" in line for line in lines)
    assert "long, both: a step takes 1.30 times as long, promised 1.25" in lines
    assert "long, both: 0.50 of the bytes that a copy moves, promised 0.6" in lines
    assert not any(line.startswith("long, forward") for line in lines)
    for row in result["cases"][0]["rows"]:
        if row["name"] == "plain":
            row["forward"]["cpu_ms"] = 1e-9
    assert any("plain takes 0.00 times as long, promised 4" in line for line in promises.shortfalls(result))


def test_the_plots_show_the_numbers_of_the_result(result):
    case = result["cases"][0]
    ratios = speed.times_as_long(result)["(2, 70, 16)"]
    assert ratios["ours, cpu"] == 1
    assert "quick and wrong" not in ratios
    assert ratios["plain"] == pytest.approx(tables.best_peer(case, "forward", "plain")[1])
    figure = speed.ratio_figure(result, "both")
    (trace,) = figure.data
    assert dict(zip(trace.y, trace.x, strict=True)) == speed.times_as_long(result, "both")["(2, 70, 16)"]
    assert figure.layout.xaxis.type == "log"
    assert "times as long as ours" in figure.layout.meta["description"]
    points = speed.exactness(result)
    assert points["quick and wrong"][1] > 1e-4
    assert "broken" not in points
    figure = speed.exactness_figure(result)
    assert [t.name for t in figure.data] == list(points)
    assert figure.data[0].x[0] == points["ours, cpu"][0]
    with pytest.raises(ValueError, match=r"direction: got 'sideways', expected one of forward, both"):
        speed.ratio_figure(result, "sideways")


def test_a_plot_has_a_still_image(result):
    from ssmcourse.explore.still import scatter_png

    for figure in (speed.ratio_figure(result), speed.exactness_figure(result)):
        assert scatter_png(figure).startswith(b"\x89PNG")


# --- The README ------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch):
    """benchmarks/operators.py, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(
        "benchmarks_operators", ROOT / "benchmarks" / "operators.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_what_was_measured(script):
    text = script.README.read_text(encoding="utf-8")
    assert text.count(script.BEGIN) == text.count(script.END) == 1
    inside = text.split(script.BEGIN)[1].split(script.END)[0]
    assert inside == tables.readme(script.results())
    for name in script.results():
        assert f"`{name}`" in inside


def test_the_script_rewrites_its_part_of_the_readme_only(script, result, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{script.BEGIN}old\n{script.END}after\n", encoding="utf-8")
    monkeypatch.setattr(script, "README", readme)
    monkeypatch.setattr(script, "results", lambda: {"linear_scan": result})
    script.write_readme()
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{script.BEGIN}")
    assert text.endswith(f"{script.END}after\n")
    assert "old" not in text
    assert "| `linear_scan` (b 2, l 70, d 16) |" in text
    assert "Measured 2026-01-31 on: a machine." in text
    assert "| 1.1 / 1.3, moving 70 % / 50 % of what a copy moves |" in text
    assert "12 MB, 1.2 times what goes in and out" in text


def test_the_script_keeps_nothing_where_a_peer_is_missing(script, rivals, capsys, monkeypatch):
    monkeypatch.setattr(command, "measured", lambda *_: pytest.fail("measured"))
    assert script.main(["linear_scan"]) == 1
    assert "not installed: pip-name" in capsys.readouterr().err
    assert script.main(["nonsense"]) == 2
    assert "got nonsense, expected" in capsys.readouterr().err


# --- The command -----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """Calls the command in this process: its exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ssmcourse", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return end.value.code or 0, out, err

    return call


def test_a_wrong_call_is_one_line_and_exit_code_2(run):
    code, _, err = run("mamba")
    assert code == 2
    assert err.count("\n") == 1
    assert "There is no operator 'mamba' to measure; there are selective_scan, ssd" in err
    code, _, err = run("ssd", "--sizes", "1,2")
    assert code == 2
    assert "--sizes: got '1,2', expected b l h p n q of ssd, as 1,2048,24,64,128,64." in err
    assert run("ssd", "--sizes", "1,2,x,4,5,6")[0] == 2
    assert run("ssd", "--sizes", "1,2,0,4,5,6")[0] == 2
    assert run("--sizes", "1,2")[0] == 2
    assert run("ssd", "--threads", "0")[0] == 2
    assert run("ssd", "--nonsense")[0] == 2


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0
    for option in ("--threads", "--quick", "--json", "--no-memory", "--sizes"):
        assert option in out


def test_bench_prints_a_table_and_writes_json(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    file = tmp_path / "out.json"
    arguments = ("--quick", "--threads", 1, "--sizes", "1,64,8,4", "--json", file)
    code, out, err = run("causal_conv1d", *arguments)
    assert code == 0, out + err
    assert err == "causal_conv1d (1, 64, 8, 4), 1 thread\n"
    assert "causal_conv1d  b l d w = 1, 64, 8, 4, float32, 1 thread" in out
    assert "ours, cpu" in out
    assert "torch conv1d" in out
    (case,) = json.loads(file.read_text())["causal_conv1d"]["cases"]
    assert case["rows"][0]["forward"]["valid"]
    assert case["limits"]["forward"]["copy_gb_s"] > 0


def test_a_wrong_result_of_ours_is_exit_code_1(run, result, monkeypatch):
    tables.ours(result["cases"][0])["both"]["valid"] = False
    monkeypatch.setattr(session, "measure", lambda *_: result)
    assert run("linear_scan")[0] == 1
    tables.ours(result["cases"][0])["both"]["valid"] = True
    assert run("linear_scan")[0] == 0
    result["failed"] = ["crashed"]
    assert run("linear_scan")[0] == 1


def test_an_interruption_says_what_is_kept(run, result, monkeypatch, tmp_path):
    def measure(name, *_):
        if name == "ssd":
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(session, "measure", measure)
    file = tmp_path / "out.json"
    code, out, err = run("--json", file)
    assert code == 130
    assert "linear_scan" in out
    assert err.startswith(
        "Stopped at ssd, of which nothing is kept; operators before it have their tables above"
    )
    assert list(json.loads(file.read_text())) == ["selective_scan"]


def test_a_file_that_cannot_be_written_is_found_out_before_measuring(run, monkeypatch, tmp_path):
    monkeypatch.setattr(session, "measure", lambda *_: pytest.fail("measured for nothing"))
    for file in (tmp_path / "no" / "such.json", tmp_path):
        code, out, err = run("linear_scan", "--json", file)
        assert (code, out) == (2, "")
        assert f"--json: {file} cannot be written: " in err


def test_the_extra_names_every_peer_package_and_stays_out_of_the_lock():
    import tomllib

    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    named = {line.partition(">")[0] for line in extra}
    assert named == {p.package for p in PEERS if p.package}
    locked = (ROOT / "requirements.lock").read_text()
    assert not any(f"\n{name}==" in locked for name in named)


def test_a_plan_reads_the_options():
    made = command.plan("linear_scan", [2], ["1,2,3", "4,5,6"], quick=True, memory=False)
    assert made == Plan(threads=(2,), quick=True, memory=False, sizes=((1, 2, 3), (4, 5, 6)))
    assert command.plan(None, None, None, quick=False, memory=True) == Plan()
    assert command.names(None) == list(OPERATORS)
    with pytest.raises(WrongCall):
        command.plan(None, None, ["1,2,3"], quick=False, memory=True)


def test_static_shows_the_stored_table_of_kernels(run):
    code, out, _ = run("ssd_state_update", "--static")
    assert code == 0
    *rows, last = out.splitlines()
    assert {row.split()[0] for row in rows[1:]} == {"ssd_state_update"}
    assert last.startswith("Compiled on ")
    code, _, err = run("nope", "--static")
    assert code == 2
    assert "--static: got 'nope', expected one of causal_conv1d, " in " ".join(err.split())
