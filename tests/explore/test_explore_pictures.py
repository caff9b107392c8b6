"""What is drawn, as data; the same as a plotly figure and as a still image. No browser."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ssmcourse.explore.palette import DIVERGING, INK, ON_BOTH, scale_colors
from ssmcourse.explore.picture import Band, Curves, Line, MatrixImage, Panel, Strip, as_labels, as_matrix
from ssmcourse.explore.plotly_figure import plotly_figure
from ssmcourse.explore.still import still_png

X = np.arange(5.0)
CURVES = Curves(
    x_name="time",
    x_units="ms",
    x_range=(0.0, 4.0),
    panels=(
        Panel("signal", "V", lines=(Line("f", X, X - 2, "signal"), Line("g", X, X, "main", "stems"))),
        Panel("numbers", strip=Strip(np.outer([1.0, -2.0, 3.0], X), "c[n]")),
    ),
    bands=(Band(1.0, 2.0),),
    marker=3.0,
    description="two lines and a strip",
)
MATRIX = MatrixImage(np.tril(np.ones((4, 4))), causal=True, title="ones")


def luminance(colors):
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def rgb(color):
    return np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255


def contrast(color, page):
    """WCAG contrast of a colour with a page of this luminance."""
    high, low = max(luminance(rgb(color)), page), min(luminance(rgb(color)), page)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_scale_is_even_about_zero_and_tells_size_by_lightness_alone(theme):
    light = luminance(scale_colors("diverging", theme))
    away = -np.diff(light) if theme == "light" else np.diff(light)
    assert (away[128:] >= 0).all()
    assert (away[:128] <= 0).all()
    np.testing.assert_allclose(light, light[::-1], atol=0.12)
    np.testing.assert_array_equal(
        scale_colors("sequential", theme, 129), scale_colors("diverging", theme)[128:]
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_two_signs_stay_apart_without_red_or_green_cones(theme):
    """Vienot, Brettel & Mollon 1999: linear RGB as a protanope and a deuteranope see it."""
    ends = scale_colors("diverging", theme)[[40, 216]]
    linear = np.where(ends <= 0.04045, ends / 12.92, ((ends + 0.055) / 1.055) ** 2.4)
    protan = np.array([[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.004, -0.004, 1]])
    deutan = np.array([[0.2927, 0.7073, 0], [0.2927, 0.7073, 0], [-0.0223, 0.0223, 1]])
    for seen in (linear @ protan.T, linear @ deutan.T):
        assert np.abs(seen[0] - seen[1]).max() > 0.25


def test_inks_can_be_read_on_their_page():
    for theme, inks in INK.items():
        page = luminance(scale_colors("diverging", theme)[128])
        for role in ("text", "quiet", "main", "accent", "third"):
            least = 4.5 if role in ("text", "quiet") else 3
            assert contrast(inks[role], page) > least, (theme, role)
    assert set(DIVERGING) == set(INK)


def test_stored_figures_can_be_read_on_both_pages():
    for role in ("text", "main", "accent", "signal", "third"):
        for back in ("light", "dark"):
            page = luminance(rgb(INK[back]["back"]))
            assert contrast(ON_BOTH[role], page) > (4 if role == "text" else 3), (role, back)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match=r"scale: got 'rainbow', expected 'diverging' or 'sequential'"):
        scale_colors("rainbow")


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], dtype=np.int8),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True),
        torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16),
        torch.tensor([[1, 2], [3, 4]]),
    ],
    ids=["list", "int8", "grad", "bfloat16", "int64"],
)
def test_matrices_of_every_kind_become_float64(matrix):
    got = as_matrix(matrix)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([1.0, 2.0], r"matrix: got shape \(2,\), expected \(rows, cols\)"),
        (np.zeros((0, 3)), r"got shape \(0, 3\)"),
        (torch.zeros(2, 2, dtype=torch.complex64), "got complex values, expected real"),
        (np.array([[0, np.nan]]), r"got nan at \[0, 1\], expected finite"),
        ([[1.0], [float("inf")]], r"got inf at \[1, 0\]"),
        ([["a"]], "got list, expected numbers"),
        ([[1, 2], [3]], "got list, expected numbers"),
        (None, "matrix: got"),
    ],
)
def test_bad_matrices_get_one_clear_line(matrix, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_matrix(matrix)
    assert "\n" not in str(caught.value)


def test_labels_must_fit():
    assert as_labels(range(2)) == ("0", "1")
    with pytest.raises(ValueError, match="expected a list with one label each"):
        as_labels("abc")
    with pytest.raises(ValueError, match="row_labels: got 3 labels for 4 rows"):
        replace(MATRIX, row_labels=("a", "b", "c"))
    with pytest.raises(ValueError, match="column_labels: got 1 labels for 4 columns"):
        replace(MATRIX, column_labels=("a",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "hot"}, "scale: got 'hot'"),
        ({"limit": -1.0}, "limit: got -1.0, expected a positive number"),
        ({"limit": float("nan")}, "limit: got nan"),
        ({"values": -np.eye(2), "scale": "sequential"}, "got a value of -1 with scale='sequential'"),
    ],
)
def test_bad_matrix_images(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(MATRIX, **changes)


def test_bad_curves():
    with pytest.raises(ValueError, match=r"got x of shape \(5,\) and y of shape \(4,\)"):
        Line("f", X, X[:4])
    with pytest.raises(ValueError, match="not finite in the line 'f'"):
        Line("f", X, np.where(X > 2, np.nan, X))
    with pytest.raises(ValueError, match="role: got 'pink'"):
        Line("f", X, X, "pink")
    with pytest.raises(ValueError, match="style: got 'wavy'"):
        Line("f", X, X, "main", "wavy")
    with pytest.raises(ValueError, match="panels: got none"):
        replace(CURVES, panels=())
    with pytest.raises(ValueError, match=r"x_range: got \(1.0, 1.0\)"):
        replace(CURVES, x_range=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"got a strip of shape \(5,\)"):
        replace(CURVES, panels=(Panel("p", strip=Strip(X, "c")),))


def test_the_text_alternative_is_made_from_the_values():
    assert MATRIX.sentence == (
        "ones: matrix of 4 rows (output i) by 4 columns (input j), values from 0 to 1, zero above the diagonal."
    )
    assert replace(MATRIX, description="said").sentence == "said"


def test_bounds_and_spans():
    assert MatrixImage(np.zeros((2, 2))).bound == 1.0
    assert MatrixImage(np.array([[-3.0, 2.0]])).bound == 3.0
    low, high = CURVES.panels[0].span
    assert low < -2
    assert high > 4
    assert CURVES.panels[1].span == (0.0, 3.0)
    assert Panel("empty").span == (0.0, 1.0)


def test_plotly_draws_every_line_with_its_axes_named():
    figure = plotly_figure(CURVES, MATRIX)
    assert [trace.type for trace in figure.data] == ["scatter", "scatter", "heatmap", "heatmap"]
    np.testing.assert_array_equal(figure.data[1].y, X)
    np.testing.assert_array_equal(figure.data[2].z, CURVES.panels[1].strip.values)
    drawn = np.array(figure.data[3].z, float)
    assert np.isnan(drawn[np.triu_indices(4, 1)]).all()
    assert (figure.data[3].zmin, figure.data[3].zmax) == (-1, 1)
    titles = {axis.title.text for axis in figure.select_xaxes()} | {
        axis.title.text for axis in figure.select_yaxes()
    }
    assert titles >= {"time (ms)", "signal (V)", "numbers", "output i", "input j"}
    assert figure.layout.meta["description"] == f"two lines and a strip {MATRIX.sentence}"


def test_the_still_image_has_the_same_bytes_every_time_and_no_version_in_it():
    first, second = still_png(CURVES, MATRIX), still_png(CURVES, MATRIX)
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
    assert b"tEXt" not in first
    assert base64.b64decode(still_png(CURVES, MATRIX, encoded=True)) == first
    image = imread(io.BytesIO(first))
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 0.05


def test_the_still_image_shows_the_values():
    other = replace(MATRIX, values=-MATRIX.values)
    a, b = (imread(io.BytesIO(still_png(m)))[..., :3] for m in (MATRIX, other))
    assert (a[..., 0] - a[..., 2]).max() > 0.3  # orange
    assert (b[..., 2] - b[..., 0]).max() > 0.2  # blue
    labels = tuple(f"token {k}" for k in range(70))
    wide = MatrixImage(
        np.tril(np.ones((70, 70))), row_labels=labels, column_labels=labels, scale="sequential"
    )
    assert len(still_png(wide)) > 5_000
