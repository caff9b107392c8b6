"""The picture of a training in a notebook, without a notebook."""

import io
from types import SimpleNamespace

import IPython.display
import matplotlib.image
import pytest

from ssmcourse.training import LossPlot, plot
from ssmcourse.training.records import Row

HISTORY = [
    Row(i, 5 / i, 1e-3, 1000.0, 4 / i if i % 3 == 0 else None, 0.5 if i % 3 == 0 else None)
    for i in range(1, 10)
]


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would have been shown: the first bundle, then the updates."""
    bundles = []

    def display(bundle, raw, display_id):
        assert raw
        assert display_id
        bundles.append(bundle)
        return SimpleNamespace(update=lambda bundle, raw: bundles.append(bundle))

    monkeypatch.setattr(IPython.display, "display", display)
    return bundles


def test_one_picture_kept_up_to_date_at_most_once_a_second(shown, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(plot.time, "monotonic", lambda: clock[0])
    callback = LossPlot()
    for steps in range(1, 8):
        callback(SimpleNamespace(history=HISTORY[:steps], ended=False))
        clock[0] += 0.3
    assert len(shown) == 2  # at 0 and at 1.2 seconds
    callback(SimpleNamespace(history=HISTORY, ended=True))  # the end is always drawn
    assert len(shown) == 3
    for bundle in shown:
        assert bundle["image/png"].startswith(b"\x89PNG")
    assert shown[-1]["text/plain"] == "step 9: loss 0.5556, validation 0.4444, right 50.0%, 1,000 tokens/s"


def test_both_curves_are_drawn():
    with_both = matplotlib.image.imread(io.BytesIO(plot.draw(HISTORY)))
    without = matplotlib.image.imread(
        io.BytesIO(plot.draw([Row(r.step, r.loss, r.learning_rate, r.tokens_per_second) for r in HISTORY]))
    )
    orange = (abs(with_both[..., :3] - [1.0, 0.498, 0.055]).max(-1) < 0.02).sum()
    assert orange > 50
    assert (abs(without[..., :3] - [1.0, 0.498, 0.055]).max(-1) < 0.02).sum() == 0


def test_smoothing_is_a_mean_of_what_is_there():
    assert plot.smoothed([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    losses = [float(i % 7) for i in range(150)]
    by_hand = [sum(losses[max(0, i - 2) : i + 1]) / len(losses[max(0, i - 2) : i + 1]) for i in range(150)]
    assert plot.smoothed(losses) == pytest.approx(by_hand)
