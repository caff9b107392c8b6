"""MatrixView's JavaScript alone: cross-hair, keyboard, zoom, click, theme, resolution, text."""

import numpy as np
import pytest

from ssmcourse.explore import MatrixView

M = np.tril(0.8 ** np.abs(np.arange(16)[:, None] - np.arange(16)))


def plot(stage):
    """Left, top, width, height of the cells on the canvas, found by moving to the corners."""
    box = stage.canvas.bounding_box()
    return box["x"], box["y"], box["width"], box["height"]


def at(stage, row, col, rows=16, cols=16, left=52, top=10):
    """The page position of a cell of a picture without title, labels of two digits, 380 px."""
    x, y, width, _ = plot(stage)
    side = width - left - 76
    return x + left + (col + 0.5) * side / cols, y + top + (row + 0.5) * side / rows


def test_the_pointer_reads_off_the_exact_value(stage):
    s = stage(MatrixView(M))
    s.page.mouse.move(*at(s, 9, 4))
    s.settle()
    assert s.get("cursor") == [9, 4]
    assert s.text().startswith(f"M[9, 4] = {0.8**5:.5f}")
    s.page.mouse.move(2, 690)
    s.settle()
    assert s.get("cursor") is None
    assert "arrow keys" in s.text()


def test_arrow_keys_move_the_crosshair_and_stop_at_the_edge(stage):
    s = stage(
        MatrixView(M, row_labels=[f"r{k}" for k in range(16)], column_labels=[f"c{k}" for k in range(16)])
    )
    s.keys("ArrowDown")
    assert s.get("cursor") == [8, 8]  # the first key puts it in the middle
    s.keys("ArrowDown", "ArrowLeft", "ArrowLeft")
    assert s.get("cursor") == [9, 6]
    assert "r9" in s.text()
    assert "c6" in s.text()
    s.keys(*["Shift+ArrowLeft"] * 3)
    assert s.get("cursor") == [9, 0]
    assert s.page.locator(".ssm-readout").get_attribute("aria-live") == "polite"


def test_keys_and_wheel_zoom_and_escape_resets(stage):
    s = stage(MatrixView(M))
    s.keys("ArrowDown", "Escape")
    whole = s.picture()
    s.keys("+", "+")
    assert s.picture() != whole
    assert "Escape" in s.text()
    s.keys("Escape")
    assert s.picture() == whole


def test_the_page_scrolls_until_the_picture_has_the_focus(stage):
    s = stage(MatrixView(M))
    s.page.mouse.move(*at(s, 8, 8))
    s.page.mouse.wheel(0, 120)
    s.page.wait_for_timeout(150)
    assert s.page.evaluate("scrollY") > 0
    s.page.evaluate("scrollTo(0, 0)")
    s.canvas.focus()
    s.settle()
    before = s.picture()
    s.page.mouse.wheel(0, -120)
    s.settle()
    assert s.page.evaluate("scrollY") == 0
    assert s.picture() != before


def test_a_box_zooms_and_a_double_click_shows_all_again(stage):
    s = stage(MatrixView(M))
    s.page.mouse.move(*at(s, 4, 4))
    s.page.mouse.down()
    s.page.mouse.move(*at(s, 7, 7), steps=4)
    s.page.mouse.up()
    s.settle()
    assert s.get("selected") is None  # a box is not a click
    s.page.mouse.move(*at(s, 8, 8))
    s.settle()
    row, col = s.get("cursor")
    assert (row, col) in {(5, 5), (6, 6)}  # the middle of the canvas now shows the middle of the box
    s.canvas.dblclick(position={"x": 200, "y": 200})
    s.page.mouse.move(*at(s, 15, 0))
    s.settle()
    assert s.get("cursor") == [15, 0]


def test_click_and_enter_select(stage):
    s = stage(MatrixView(M))
    s.page.mouse.click(*at(s, 12, 3))
    s.settle()
    assert s.get("selected") == [12, 3]
    s.keys("ArrowUp", "Enter")
    assert s.get("selected") == [11, 3]


def test_a_new_matrix_from_python_is_drawn(stage):
    s = stage(MatrixView(M))
    before = s.picture()
    s.change(_values=(M.T).astype("<f4").tobytes())
    assert s.picture() != before
    small = np.eye(3)
    s.change(_values=small.astype("<f4").tobytes(), _rows=3, _cols=3)
    s.keys("ArrowDown")
    assert s.text().startswith("M[1, 1] = 1")


def test_colours_are_signed_and_symmetric_about_zero(stage):
    s = stage(MatrixView([[-1.0, 0.0, 1.0]] * 3, size=300))
    x = [52 - 10 + (k + 0.5) * 100 for k in range(3)]
    blue, zero, orange = (s.pixel(at, 150) for at in x)
    assert blue[2] > blue[0] + 40
    assert orange[0] > orange[2] + 40
    assert min(zero[:3]) > 235


def test_the_theme_is_followed_at_once(stage):
    s = stage(MatrixView(np.zeros((4, 4))))
    light = s.pixel(100, 100)
    s.theme(True)
    s.page.wait_for_timeout(450)
    dark = s.pixel(100, 100)
    assert sum(light[:3]) > 3 * 230
    assert sum(dark[:3]) < 3 * 50


def test_the_canvas_has_the_resolution_of_the_screen(stage):
    s = stage(MatrixView(M), ratio=2)
    wide, css = s.page.evaluate(
        "[c => c.width, c => c.clientWidth].map(f => f(document.querySelector('canvas')))"
    )
    assert wide == pytest.approx(2 * css, abs=2)


@pytest.mark.parametrize("width", [340, 620])
def test_nothing_is_wider_than_the_page(stage, width):
    labels = [f"a rather long token {k}" for k in range(40)]
    big = np.tril(np.ones((40, 40)))
    s = stage(MatrixView(big, row_labels=labels, column_labels=labels, title="title " * 30), width=width)
    assert s.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_reader_who_cannot_see_gets_a_sentence(stage):
    s = stage(MatrixView(M, title="decay"))
    assert s.canvas.get_attribute("role") == "img"
    assert s.canvas.get_attribute("aria-label").startswith("decay: matrix of 16 rows (output i)")
    s.change(_description="something else")
    assert s.canvas.get_attribute("aria-label") == "something else"


def test_labels_are_shown_as_text_not_as_html(stage):
    labels = ["<b>x</b>", "<img src=x onerror=alert(1)>", "&amp;"]
    s = stage(MatrixView(np.eye(3), row_labels=labels, column_labels=labels))
    s.keys("ArrowDown")
    assert "<img src=x onerror=alert(1)>" in s.text()


def test_a_view_that_goes_away_stops_listening(stage):
    s = stage(MatrixView(M))
    s.page.evaluate("window.stop()")
    before = s.picture()
    s.change(_values=(0 * M).astype("<f4").tobytes())
    assert s.picture() == before
