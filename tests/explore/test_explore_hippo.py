"""explore.hippo(): what is drawn against least squares and against the library; the controls."""

from dataclasses import replace

import numpy as np
import pytest

from ssmcourse import explore
from ssmcourse.explore.apps.hippo import _App
from ssmcourse.explore.figures import hippo
from ssmcourse.explore.figures.hippo import (
    DURATION,
    FINE,
    RATES,
    Hippo,
    arrays,
    facts,
    figure,
    pictures,
    samples,
)


def best_polynomial(f, n):
    """The least squares polynomial of degree n - 1 through the samples: what LegS approximates."""
    x = (np.arange(len(f)) + 0.5) / len(f) * 2 - 1
    return np.polynomial.legendre.legval(x, np.polynomial.legendre.legfit(x, f, n - 1))


@pytest.mark.parametrize("t", [100, 300, 512])
def test_legs_draws_the_best_polynomial_of_the_whole_past(t):
    p = Hippo(n=12, t=t)
    d = arrays(p)
    best = best_polynomial(samples(p)[:t], 12)
    inside = slice(t // 20, -t // 20)
    assert np.sqrt(np.mean((d.past - best)[inside] ** 2)) < 0.12 * best.std()
    np.testing.assert_array_equal(d.past_time, d.time[:t])


def test_legt_draws_its_window_and_nothing_else():
    d = arrays(Hippo(measure="legt", theta=100, t=400))
    assert d.window == (300.0, 400.0)
    assert len(d.past) == 100
    assert d.error < 1e-3
    early = arrays(Hippo(measure="legt", theta=200, t=50))  # the window reaches back before the start
    assert len(early.past) == 50
    assert early.window == (0.0, 50.0)


def test_lagt_fades():
    off = []
    for t in range(200, 513, 10):
        d = arrays(Hippo(measure="lagt", theta=128, t=t))
        assert len(d.past) == 192
        off.append(np.abs(d.past - d.f[t - 192 : t]))
    recent, middle, old = np.mean(off, axis=0).reshape(3, 64).mean(1)[::-1]
    assert recent < middle / 2
    assert middle < old


@pytest.mark.parametrize("measure", hippo.MEASURES)
@pytest.mark.parametrize("rate", RATES)
def test_the_weight_of_the_past_sums_to_one(measure, rate):
    d = arrays(Hippo(measure=measure, rate=rate, t=500, theta=100))
    assert np.trapezoid(d.weight, d.weight_time) == pytest.approx(1, abs=0.02)
    assert d.weight_time.max() == pytest.approx(500)


def test_another_rate_moves_legt_and_not_legs():
    for rate in (0.5, 2.0):
        d = arrays(Hippo(rate=rate))
        assert d.change["legs"] < 5
        assert d.change["legt"] > 50
        assert "LegS" in facts(d)
        assert "LegT" in facts(d)
    assert arrays(Hippo(measure="lagt", rate=2.0)).change["lagt"] > 20
    assert arrays(Hippo()).change["legt"] == 0


def test_the_rates_read_the_same_signal():
    fine = hippo.signal("chirp")
    for rate in RATES:
        got = samples(Hippo(signal="chirp", rate=rate))
        assert len(got) == DURATION * rate
        assert got[-1] == fine[-1]
        assert set(got) <= set(fine)


@pytest.mark.parametrize("name", hippo.SIGNALS[:-1])
@pytest.mark.parametrize("n", [1, 2, 64])
def test_every_signal_can_be_shown_at_every_time(name, n):
    for measure in hippo.MEASURES:
        for t in (2, 7, DURATION):
            for rate in RATES:
                d = arrays(Hippo(signal=name, n=n, measure=measure, t=t, rate=rate, theta=50))
                (curves,) = pictures(d)
                assert np.isfinite(curves.panels[2].strip.values).all()
                assert "number" in facts(d)


def test_a_silent_drawing_is_no_division_by_zero():
    with np.errstate(all="raise"):
        d = arrays(Hippo(signal="drawn", drawn=(0.0,) * FINE, rate=2.0))
        pictures(d)
    assert d.error == 0


def test_the_figure():
    drawn = figure(arrays(Hippo()))
    titles = {axis.title.text for axis in drawn.select_yaxes()}
    assert titles == {"value of f", "weight of the past, LegS (per ms)", "coefficients c[n], n upward"}
    assert "time (ms)" in {axis.title.text for axis in drawn.select_xaxes()}
    assert "drawn by HiPPO-LegS from 28 coefficients" in drawn.layout.meta["description"]


def test_moving_t_projects_nothing():
    arrays(Hippo(n=20))
    before = hippo._coefficients.cache_info().misses
    for t in range(2, 500, 50):
        arrays(Hippo(n=20, t=t))
    arrays(Hippo(n=20, theta=77))  # LegS does not look at theta
    assert hippo._coefficients.cache_info().misses == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": "song"}, "signal: got 'song'"),
        ({"measure": "fourier"}, "measure: got 'fourier', expected one of legs, legt, lagt"),
        ({"n": 0}, "n: got 0, expected 1 to 64"),
        ({"theta": 1}, "theta: got 1, expected 2 to 512"),
        ({"t": 513}, "t: got 513, expected 2 to 512"),
        ({"rate": 3.0}, "rate: got 3.0, expected 0.5, 1 or 2"),
        ({"signal": "drawn"}, "drawn: got 0 samples, expected 1024"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(ValueError, match=message):
        Hippo(**changes)


def test_bad_calls():
    with pytest.raises(ValueError, match="signal: got 'drawn'"):
        explore.hippo("drawn")
    with pytest.raises(ValueError, match="expected one of"):
        hippo.signal("drawn")


def controls(app):
    choice, measure, rate = app.widget.children[1].children
    t, n, theta = app.widget.children[2].children
    return {
        "signal": choice,
        "measure": measure.children[1],
        "rate": rate.children[1],
        "t": t,
        "n": n,
        "theta": theta,
    }


def test_every_control_changes_the_picture():
    app = _App(Hippo())
    wanted = {"measure": "legt", "t": 200, "n": 16, "theta": 64, "signal": "square", "rate": 0.5}
    for name, value in wanted.items():
        before = app.curves._lines
        controls(app)[name].value = value
        assert app.curves._lines != before, name
    assert app.p == Hippo(**wanted)


def test_theta_can_be_moved_only_where_it_counts():
    app = _App(Hippo())
    theta, measure = controls(app)["theta"], controls(app)["measure"]
    assert theta.disabled
    measure.value = "lagt"
    assert not theta.disabled


def test_the_marker_and_the_slider_move_together():
    app = _App(Hippo())
    app.curves.marker = 123.0
    assert app.p.t == controls(app)["t"].value == 123
    controls(app)["t"].value = 321
    assert app.curves.marker == 321


def test_a_drawing_becomes_the_signal():
    app = _App(Hippo(rate=1.0))
    controls(app)["signal"].value = "drawn"
    assert app.curves.draw_samples == FINE
    stroke = np.linspace(-1, 1, FINE).astype("<f4")
    app.curves._drawn = stroke.tobytes()
    np.testing.assert_array_equal(app.d.f, stroke[1::2])
    assert app.d.error < 1e-2  # a straight line is easy, but for the first few samples


def test_the_bundle_is_the_same_every_time():
    bundles = [explore.hippo(t=300)._repr_mimebundle_() for _ in range(2)]
    assert bundles[0]["text/plain"].startswith("hippo: 28 numbers for 300 samples.")
    for mime in ("image/png", "text/plain"):
        assert bundles[0][mime] == bundles[1][mime]
    assert replace(Hippo(), t=300).now == 300
