"""What `ssmcourse bench` says of its results: tables, promises, plots, the README."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from rich.console import Console

from ssmcourse.bench import command, promises, tables
from ssmcourse.bench.operators import OPERATORS
from ssmcourse.explore.figures import speed

ROOT = Path(__file__).resolve().parents[2]


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
