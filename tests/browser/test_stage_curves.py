"""CurveView's JavaScript alone: cross-hair, marker, drawing by hand, strips, theme."""

import numpy as np
import pytest

from ssmcourse.explore import CurveView
from ssmcourse.explore.picture import Band, Curves, Line, Panel, Strip


def curves(marker=None):
    x = np.arange(11.0)
    return Curves(
        x_name="time",
        x_units="ms",
        x_range=(0.0, 10.0),
        x_step=1.0,
        panels=(
            Panel("f", lines=(Line("f", x, x**2, "signal"), Line("g", x, 100 - x, "main"))),
            Panel("c", strip=Strip(np.outer([1.0, -1.0], x), "c[n]")),
        ),
        bands=(Band(2.0, 5.0, "window"),),
        marker=marker,
        description="a parabola and a line",
    )


def x_at(stage, value):
    """The page's x of a value on the axis; 46 px left of it, 64 right (there is a strip)."""
    box = stage.canvas.bounding_box()
    return box["x"] + 46 + value / 10 * (box["width"] - 46 - 64)


def y_of(stage):
    return stage.canvas.bounding_box()["y"] + 60


def test_the_crosshair_reads_every_curve_at_a_sample(stage):
    s = stage(CurveView(curves()))
    s.page.mouse.move(x_at(s, 3.2), y_of(s))
    s.settle()
    assert s.get("cursor") == 3
    assert "time 3" in s.text()
    assert "f 9" in s.text()
    assert "g 97" in s.text()
    s.keys("ArrowRight")
    assert "f 16" in s.text()


def test_the_marker_is_dragged_and_moved_by_keys(stage):
    s = stage(CurveView(curves(marker=5.0), draggable=True))
    s.page.mouse.move(x_at(s, 5), y_of(s))
    s.page.mouse.down()
    s.page.mouse.move(x_at(s, 7.6), y_of(s), steps=3)
    s.page.mouse.up()
    s.settle()
    assert s.get("marker") == 8
    s.keys("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert s.get("marker") == 5
    s.keys("Shift+ArrowRight")
    assert s.get("marker") == 10
    s.change(marker=2.0)
    s.keys("ArrowRight")
    assert s.get("marker") == 3


def drawn(stage):
    values = stage.page.evaluate("[...new Float32Array(window.model.get('_drawn').buffer)]")
    return np.array(values)


def test_a_stroke_draws_joined_samples(stage):
    s = stage(CurveView(curves(), draw_samples=11))
    y = s.canvas.bounding_box()["y"]
    s.page.mouse.move(x_at(s, 2), y + 150)
    s.page.mouse.down()
    s.page.mouse.move(x_at(s, 6), y + 50)
    s.page.mouse.up()
    s.settle()
    samples = drawn(s)
    assert len(samples) == 11
    np.testing.assert_array_equal(samples[[0, 1, 7, 10]], [0, 1, 49, 100])  # untouched ones keep the curve
    steps = np.diff(samples[2:7])
    assert (steps > 1).all()
    assert np.ptp(steps) < 0.05  # a straight stroke, though the pointer jumped


def test_without_joining_only_the_touched_sample_moves(stage):
    s = stage(CurveView(curves(), draw_samples=11, join=False))
    s.page.mouse.click(x_at(s, 4), s.canvas.bounding_box()["y"] + 60)
    s.settle()
    samples = drawn(s)
    assert samples[4] != 16
    np.testing.assert_array_equal(np.delete(samples, 4), np.delete(np.arange(11.0) ** 2, 4))


def test_the_keyboard_draws_too(stage):
    s = stage(CurveView(curves(), draw_samples=11))
    s.keys("ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp")
    samples = drawn(s)
    assert samples[2] > 4 + 3
    assert samples[3] == 9


def test_touch_scrolls_unless_something_is_to_be_drawn(stage):
    s = stage(CurveView(curves()))
    assert s.canvas.evaluate("c => c.style.touchAction") == "pan-y"
    s.change(draw_samples=11)
    assert s.canvas.evaluate("c => c.style.touchAction") == "none"


def test_themes_and_new_curves_redraw(stage):
    s = stage(CurveView(curves()))
    light = s.picture()
    s.theme(True)
    s.page.wait_for_timeout(450)
    dark = s.picture()
    assert dark != light
    other = CurveView(curves(marker=3.0))
    s.change(_spec=other._spec, _lines=other._lines, _strips=other._strips, marker=3.0)
    assert s.picture() != dark
    assert s.canvas.get_attribute("aria-label") == "a parabola and a line"


@pytest.mark.parametrize("width", [320, 900])
def test_nothing_is_wider_than_the_page(stage, width):
    s = stage(CurveView(curves(), hint="a hint " * 40), width=width)
    assert s.page.evaluate("document.documentElement.scrollWidth") <= width
