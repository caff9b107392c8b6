"""explore.memory(): the arrays against the recurrence, the pictures, the controls."""

import numpy as np
import pytest
import torch

from ssmcourse import explore
from ssmcourse.explore.apps.memory import _App
from ssmcourse.explore.figures.memory import GATE, SIGNALS, Memory, arrays, facts, figure, pictures, signal
from ssmcourse.tolerance import mismatch


def recurrence(a, x):
    h, states = 0.0, []
    for a_t, x_t in zip(a, x, strict=True):
        h = a_t * h + x_t
        states.append(h)
    return torch.tensor(states, dtype=torch.float64)


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("name", SIGNALS[:-1])
@pytest.mark.parametrize("length", [2, 17, 64])
def test_the_matrix_does_what_the_loop_does(name, selective, length):
    p = Memory(A=-0.7, dt=0.3, signal=name, length=length, selective=selective)
    d = arrays(p)
    step = 0.3 * (1 + GATE * d.x**2) if selective else np.full(length, 0.3)
    assert mismatch(torch.from_numpy(d.h), recurrence(np.exp(-0.7 * step), d.x), terms=length) is None
    assert not np.triu(d.M, 1).any()
    np.testing.assert_array_equal(np.diag(d.M), 1)


def test_columns_are_shifted_copies_until_the_input_has_a_say():
    M = arrays(Memory(signal="two pulses")).M
    np.testing.assert_allclose(M[1:, 1:], M[:-1, :-1], rtol=1e-12)
    M = arrays(Memory(signal="two pulses", selective=True)).M
    assert np.abs(M[1:, 1:] - M[:-1, :-1]).max() > 0.3


def test_only_the_product_of_A_and_dt_matters():
    a, b = arrays(Memory(A=-1, dt=0.2)), arrays(Memory(A=-0.25, dt=0.8))
    np.testing.assert_allclose(a.M, b.M, rtol=1e-13)


def test_a_large_input_clears_the_memory():
    d = arrays(Memory(A=-1, dt=0.2, signal="two pulses", selective=True))
    after_first, second = 4, 16
    assert d.M[second, after_first] < d.M[second - 1, after_first] * np.exp(-0.2 * 0.49 * GATE)


def test_the_bars_of_a_row_add_up_to_its_output():
    d = arrays(Memory(signal="noise"))
    curves, matrix = pictures(d, row=20)
    bars = curves.panels[0].lines[1]
    assert bars.y.sum() == pytest.approx(d.h[20])
    assert matrix.causal
    np.testing.assert_array_equal(matrix.values, d.M)


def test_the_figure_and_the_words():
    d = arrays(Memory(A=-1.0, dt=np.log(2)))
    assert facts(d) == "a = exp(A·Δ) = 0.500: half is left after 1.0 steps, a hundredth after 6.6."
    drawn = figure(d, row=3)
    assert "lower triangular matrix" in drawn.layout.meta["description"]
    titles = {axis.title.text for axis in drawn.select_yaxes()}
    assert titles >= {"input x", "memory h", "output i"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": 0.0}, "A: got 0.0, expected a negative"),
        ({"A": float("-inf")}, "A: got -inf"),
        ({"dt": 0.0}, "dt: got 0.0, expected a positive"),
        ({"length": 65}, "length: got 65, expected 2 to 64"),
        ({"signal": "song"}, "signal: got 'song', expected one of impulse"),
        ({"signal": "drawn"}, "drawn: got 0 samples, expected 32"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(ValueError, match=message):
        Memory(**changes)


def test_bad_calls():
    for a in (0.0, 1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="a: got"):
            explore.memory(a)
    with pytest.raises(ValueError, match="signal: got 'drawn'"):
        explore.memory(signal="drawn")
    with pytest.raises(ValueError, match="expected one of"):
        signal("drawn", 8)


@pytest.mark.parametrize("a", [0.1, 0.5, 0.9, 0.999])
def test_a_given_a_is_what_the_sliders_stand_for(a):
    app = explore.memory(a)
    assert f"= {a:.3f}" in app.description
    rate = app.children[1].children[0]
    steps = (rate.value - rate.min) / rate.step
    assert steps == pytest.approx(round(steps), abs=1e-6)  # else the browser would move it
    assert rate.min <= rate.value <= rate.max < 0


def test_every_control_changes_the_picture():
    app = _App(Memory())
    rate, step = app.widget.children[1].children
    choice, gate = app.widget.children[2].children
    for control, value in ((rate, -0.5), (step, 0.5), (choice, "noise"), (gate, True)):
        before = app.matrix._values, app.curves._lines
        control.value = value
        assert (app.matrix._values, app.curves._lines) != before
    assert app.p == Memory(A=-0.5, dt=0.5, signal="noise", selective=True)
    np.testing.assert_array_equal(app.matrix.matrix, arrays(app.p).M)


def test_the_cursor_on_the_matrix_takes_its_row_apart():
    app = _App(Memory())
    app.matrix.cursor = (20, 3)
    assert [line.name for line in app.curves.curves.panels[0].lines] == ["input x", "kept in h[20]"]
    app.matrix.cursor = None
    assert len(app.curves.curves.panels[0].lines) == 1


def test_an_input_can_be_drawn():
    app = _App(Memory(length=8))
    choice = app.widget.children[2].children[0]
    choice.value = "drawn"
    assert app.curves.draw_samples == 8
    app.curves._drawn = np.arange(8, dtype="<f4").tobytes()
    np.testing.assert_array_equal(app.d.x, np.arange(8))
    choice.value = "step"
    assert app.curves.draw_samples == 0
    app.curves._drawn = np.ones(8, dtype="<f4").tobytes()  # a stroke that arrives late
    assert app.p.signal == "step"


def test_the_bundle_is_the_same_every_time():
    bundles = [explore.memory(0.8)._repr_mimebundle_() for _ in range(2)]
    assert "image/png" in bundles[0]
    assert bundles[0]["text/plain"].startswith("memory: a = exp(A·Δ) = 0.800")
    for mime in ("image/png", "text/plain"):
        assert bundles[0][mime] == bundles[1][mime]
