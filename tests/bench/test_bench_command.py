"""The command `ssmcourse bench`: its options, its exit codes, its file."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest

from ssmcourse.bench import command, session, tables
from ssmcourse.bench.operators import OPERATORS
from ssmcourse.bench.peers import PEERS
from ssmcourse.bench.session import Plan
from ssmcourse.course import WrongCall

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(run):
    """`ssmcourse bench` in this process."""
    return functools.partial(run, "bench")


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


@pytest.mark.parametrize("before", [None, "as it was"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_an_interruption_leaves_no_empty_file(run, monkeypatch, tmp_path, before, kind):
    def measure(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "measure", measure)
    file = tmp_path / "out.json"
    if kind == "link":
        file.symlink_to(tmp_path / "elsewhere.json")
    if before:
        file.write_text(before)
    found = sorted(tmp_path.iterdir())
    assert run("linear_scan", "--json", file)[0] == 130
    assert sorted(tmp_path.iterdir()) == found
    assert (file.read_text() if file.exists() else None) == before


def test_the_file_is_replaced_whole_or_not_at_all(monkeypatch, tmp_path):
    file, link = tmp_path / "out.json", tmp_path / "link.json"
    link.symlink_to(file)
    command.write(link, {"linear_scan": {"machine": "é"}})
    assert json.loads(file.read_text(encoding="utf-8")) == {"linear_scan": {"machine": "é"}}
    assert link.is_symlink()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.write(file, {})
    assert sorted(tmp_path.iterdir()) == [link, file]
    assert "machine" in file.read_text()


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    reader, writer = os.pipe()
    pipe = Path(f"/dev/fd/{writer}")
    if not pipe.exists():
        pytest.skip("no files for open pipes here")
    command.check_writable(pipe)
    command.write(pipe, {"ssd": 1})
    os.close(writer)
    with os.fdopen(reader) as read:
        assert json.load(read) == {"ssd": 1}


def test_a_file_that_cannot_be_written_is_found_out_before_measuring(run, monkeypatch, tmp_path):
    monkeypatch.setattr(session, "measure", lambda *_: pytest.fail("measured for nothing"))
    for file in (tmp_path / "no" / "such.json", tmp_path):
        code, out, err = run("linear_scan", "--json", file)
        assert (code, out) == (2, "")
        assert f"--json: {file} cannot be written: " in err


def test_the_extra_names_every_peer_package_and_stays_out_of_the_lock():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named, tested = ({line.partition(">")[0] for line in extras[extra]} for extra in ("bench", "test"))
    assert named == {p.package for p in PEERS if p.package}
    locked = (ROOT / "requirements.lock").read_text()
    assert not any(
        f"\n{name}==" in locked for name in named - tested
    )  # checkpoints are tested against transformers


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
