"""MatrixView and CurveView from Python: traits, errors, display bundles."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import ssmcourse.explore as explore
from ssmcourse.explore import CurveView, MatrixView
from ssmcourse.explore.picture import Curves, Line, Panel, Strip

M = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=torch.float64)
WIDGET = "application/vnd.jupyter.widget-view+json"


def floats(block):
    return np.frombuffer(block, "<f4")


def test_the_values_travel_as_float32_bytes():
    view = MatrixView(M)
    np.testing.assert_array_equal(floats(view._values), [1, 0, -0.5, 1])
    assert (view._rows, view._cols, view._limit) == (2, 2, 1.0)
    np.testing.assert_array_equal(view.matrix, M)


def test_setting_the_matrix_changes_values_shape_and_sentence_and_keeps_the_rest():
    view = MatrixView(M, title="kept", limit=2.0)
    view.matrix = np.zeros((3, 4), dtype=np.float32)
    assert (view._rows, view._cols, view._limit, view.title) == (3, 4, 2.0, "kept")
    assert view.description.startswith("kept: matrix of 3 rows")
    assert view._description == view.description
    view.matrix[0, 0] = 9  # a copy
    assert view.matrix[0, 0] == 0


def test_one_message_for_a_change_of_matrix_and_labels():
    view = MatrixView(M, row_labels=["a", "b"])
    with pytest.raises(ValueError, match="row_labels: got 2 labels for 3 rows"):
        view.matrix = np.eye(3)
    np.testing.assert_array_equal(view.matrix, M)  # left as it was
    view.show(np.eye(3), row_labels=["a", "b", "c"], title="three")
    assert view._row_labels == ["a", "b", "c"]
    assert view.title == "three"
    with pytest.raises(ValueError, match="show: got colour, expected some of causal"):
        view.show(colour="red")


def test_traits_can_be_set_one_by_one_and_are_checked():
    view = MatrixView(M)
    view.title = "new"
    assert view.image.title == "new"
    view.causal = True
    assert view.image.causal
    with pytest.raises(ValueError, match="with scale='sequential'"):
        view.scale = "sequential"


def test_cursor_and_selection_are_observable_and_kept_inside():
    view, seen = MatrixView(M), []
    view.observe(lambda change: seen.append(change["new"]), "selected")
    view.selected = (1, 0)
    assert seen == [(1, 0)]
    with pytest.raises(ValueError, match=r"cursor: got \(2, 0\), expected None or a cell of 2 by 2"):
        view.cursor = (2, 0)
    view.matrix = [[1.0]]
    assert view.selected is None


def test_a_late_cursor_from_the_browser_does_not_raise():
    view = MatrixView(M)
    view.set_state({"cursor": [7, 7]})
    assert view.cursor is None
    view.set_state({"cursor": [1, 1], "selected": [0, 1]})
    assert (view.cursor, view.selected) == ((1, 1), (0, 1))


@pytest.mark.parametrize("options", [{"size": 10}, {"limit": 0.0}, {"scale": "x"}, {"row_labels": "ab"}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="expected"):
        MatrixView(M, **options)


def test_the_bundle_holds_the_widget_a_picture_and_a_line():
    bundle = MatrixView(M)._repr_mimebundle_()
    assert set(bundle) >= {WIDGET, "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"] == (
        "MatrixView: Matrix of 2 rows (output i) by 2 columns (input j), values from -0.5 to 1, "
        "zero above the diagonal."
    )
    again = MatrixView(M)._repr_mimebundle_()
    assert {k: v for k, v in bundle.items() if k != WIDGET} == {k: v for k, v in again.items() if k != WIDGET}


X = np.arange(4.0)


def curves(scale=1.0, marker=None):
    return Curves(
        x_name="t",
        x_range=(0.0, 3.0),
        panels=(
            Panel("f", lines=(Line("f", X, scale * X), Line("g", X[:2], X[:2]))),
            Panel("c", strip=Strip(np.ones((2, 3)), "c")),
        ),
        description="lines",
        marker=marker,
    )


def test_curves_travel_as_two_blocks_and_a_table():
    view = CurveView(curves(marker=2.0))
    lines, block = view._spec["panels"][0]["lines"], floats(view._lines)
    assert [(line["at"], line["size"]) for line in lines] == [(0, 4), (8, 2)]
    np.testing.assert_array_equal(block[4:8], X)
    np.testing.assert_array_equal(floats(view._strips), np.ones(6))
    assert view.marker == 2.0
    json.dumps(view._spec)


def test_only_what_changed_is_sent():
    view, sent = CurveView(curves()), []
    view.observe(lambda change: sent.append(change["name"]))
    view.curves = curves(scale=0.5)
    assert "_strips" not in sent
    assert "_lines" in sent


def test_a_drawing_arrives_as_numbers_and_is_counted():
    view, seen = CurveView(curves(), draw_samples=3), []
    view.observe(lambda change: seen.append(view.drawn), "drawn_count")
    assert view.drawn.size == 0
    view._drawn = np.array([1, -2, 3], "<f4").tobytes()
    np.testing.assert_array_equal(seen, [[1, -2, 3]])
    with pytest.raises(ValueError, match="draw_samples: got -1"):
        CurveView(curves(), draw_samples=-1)
    with pytest.raises(ValueError, match="height: got 5"):
        CurveView(curves(), height=5)


def test_the_curves_bundle():
    bundle = CurveView(curves())._repr_mimebundle_()
    assert set(bundle) >= {WIDGET, "image/png", "text/plain"}
    assert bundle["text/plain"] == "CurveView: lines"


def test_plots_of_the_lessons(capsys):
    figure = explore.curves({"a": torch.ones(30), "b": [1, 2] * 15}, x_name="x", y_name="y", log_y=True)
    assert figure.layout.xaxis.title.text == "x"
    assert figure.layout.yaxis.type == "log"
    assert [trace.name for trace in figure.data] == ["a", "b"]
    with pytest.raises(ValueError, match=r"lines\['b'\]: got 2 numbers, expected 3"):
        explore.curves({"a": [1, 2, 3], "b": [1, 2]})
    with pytest.raises(ValueError, match="lines: got none"):
        explore.curves({})
    with pytest.raises(ValueError, match="alt: got an empty string"):
        explore.show(figure, alt=" ")
    with pytest.raises(ValueError, match="name: got 'nothing', expected one of"):
        explore.stored_result("nothing")


def test_show_displays_a_figure_a_picture_and_a_line(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: shown.append((bundle, raw)))
    for _ in range(2):
        explore.show(explore.curves({"a": [1, 2, 3]}), alt="a rising line")
    (bundle, raw), (again, _) = shown
    assert raw
    assert bundle == again
    assert bundle["text/plain"] == "a rising line"
    assert bundle["application/vnd.plotly.v1+json"]["layout"]["meta"]["description"] == "a rising line"
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, ssmcourse.explore as e; "
        "heavy = {'torch', 'plotly', 'matplotlib', 'ipywidgets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; assert 'MatrixView' in dir(e)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        explore.nothing  # noqa: B018


def test_the_matrix_needs_no_torch():
    code = "import sys; from ssmcourse.explore import MatrixView, memory; memory(0.5); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
