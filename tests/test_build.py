"""The build: nbgrader's markers, stable cell ids, clean outputs, whole files."""

import base64
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from nbformat.v4 import new_output

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "authoring"))

import build  # noqa: E402

SOURCE = """\
# %% [markdown]
# # A title

# %%
def double(x):
    \"\"\"Twice x.\"\"\"
    ### BEGIN SOLUTION
    if x:
        return 2 * x
    return 0
    ### END SOLUTION


# %%
### BEGIN HIDDEN TESTS
assert double(3) == 6
### END HIDDEN TESTS
print("checked")

# %% tags=["timing"]
print("took 3 ms")

# %%
print("checked")
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "00_x.py"
    path.write_text(SOURCE)
    return path


def test_the_stub_has_neither_solution_nor_hidden_tests(source):
    cells = build.notebook(source, stub=True).cells
    assert cells[1].source == 'def double(x):\n    """Twice x."""\n    raise NotImplementedError("your turn")'
    assert cells[2].source == 'print("checked")'


def test_the_solution_has_everything_but_the_marker_lines(source):
    cells = build.notebook(source).cells
    assert "        return 2 * x\n    return 0" in cells[1].source
    assert cells[2].source == 'assert double(3) == 6\nprint("checked")'
    assert not any("###" in cell.source for cell in cells)


def test_an_empty_solution_and_two_in_one_cell_are_cut_each_by_itself():
    text = "a\n### BEGIN SOLUTION\n### END SOLUTION\nb\n  ### BEGIN SOLUTION\n  x\n  ### END SOLUTION\nc"
    turn = 'raise NotImplementedError("your turn")'
    assert build.stub_source(text) == f"a\n{turn}\nb\n  {turn}\nc"
    assert build.solved_source(text) == "a\nb\n  x\nc"


def test_cell_ids_come_from_the_content_and_are_unique(source):
    ids = [c.id for c in build.notebook(source).cells]
    assert ids == [c.id for c in build.notebook(source).cells]
    assert len(set(ids)) == len(ids)
    stub = build.notebook(source, stub=True).cells
    assert stub[2].source == stub[4].source
    assert stub[4].id == stub[2].id + "-2"


def test_a_timing_cell_runs_and_its_output_is_not_stored(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    target = tmp_path / "00_x.ipynb"
    build.build(source, target, False)
    first = target.read_bytes()
    cells = {
        c["source"].split("(")[0]: c
        for c in __import__("json").loads(first)["cells"]
        if "print" in c["source"]
    }
    assert b"checked" in first
    assert b"took 3 ms\\n" not in first
    assert cells
    build.build(source, target, False)
    assert target.read_bytes() == first
    assert build.differences(source, target, False) is None


def test_a_changed_source_is_seen(source, tmp_path):
    target = tmp_path / "00_x.ipynb"
    assert build.differences(source, target, True) == "is missing"
    build.build(source, target, True)
    assert build.differences(source, target, True) is None
    source.write_text(SOURCE.replace("# A title", "# Another"))
    assert build.differences(source, target, True) == "has other cells than its source"


def test_an_edited_notebook_is_seen_even_when_its_ids_are_kept(source, tmp_path):
    target = tmp_path / "00_x.ipynb"
    build.build(source, target, True)
    target.write_text(target.read_text().replace("checked", "edited"))
    assert "differs in cell" in build.differences(source, target, True)


def test_what_changes_from_run_to_run_is_dropped():
    view = new_output(
        "display_data", {build.WIDGET_VIEW: {"model_id": "0" * 32}, "text/plain": "Slider at 0x7f00aa11bb22"}
    )
    assert build.clean_output(view).data == {"text/plain": "Slider at 0x0"}
    assert build.clean_output(new_output("display_data", {build.WIDGET_VIEW: {}})) is None
    assert build.clean_output(new_output("stream", name="stderr", text="noise")) is None


def test_figures_are_rounded_to_five_digits():
    values = np.array([1 / 3, 2e-7 / 3, 1e5])
    bdata = base64.b64encode(values.tobytes()).decode()
    figure = {"data": [{"y": {"dtype": "f8", "bdata": bdata}, "uid": "x", "z": [1 / 3, 2]}]}
    (trace,) = build.clean_output(new_output("display_data", {build.PLOTLY: figure})).data[build.PLOTLY][
        "data"
    ]
    stored = np.frombuffer(base64.b64decode(trace["y"]["bdata"]), "<f4")
    np.testing.assert_allclose(stored, values, rtol=2e-5)
    assert trace["z"] == [0.33333, 2]
    assert "uid" not in trace


@pytest.mark.slow
def test_two_builds_of_the_course_are_equal_and_every_notebook_runs_within_its_budget(tmp_path):
    seconds = []
    for source, target, stub in build.products():
        if stub:
            continue
        copies = [tmp_path / str(k) / target.parent.name / target.name for k in range(2)]
        for copy in copies:
            copy.parent.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            build.build(source, copy, stub)
            seconds.append(time.perf_counter() - start)
        assert copies[0].read_bytes() == copies[1].read_bytes(), f"{target.name} differs from build to build"
    assert max(seconds) < 60
    assert sum(seconds) / len(seconds) < 25
