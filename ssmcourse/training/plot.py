"""The losses of a training, drawn in a notebook while it runs."""

from __future__ import annotations

import io
import time
from typing import Any

from ssmcourse.training.loop import Trained
from ssmcourse.training.records import Row
from ssmcourse.training.terminal import summary

SMOOTHED = 50  # the drawn loss is a mean over this part of the steps


class LossPlot:
    """A callback of `train` that keeps one picture up to date, at most once in `every` seconds.

        trained = train(config, callbacks=[LossPlot()])

    A PNG in the cell's output: it needs no widget, stays when the notebook is saved, and costs some 50 ms a time.
    """

    def __init__(self, every: float = 1.0) -> None:
        self.every = every
        self.drawn = -float("inf")
        self.handle: Any = None

    def __call__(self, trained: Trained) -> None:
        if not trained.ended and time.monotonic() - self.drawn < self.every:
            return
        from IPython.display import display

        bundle = {"image/png": draw(trained.history), "text/plain": summary(trained.history[-1])}
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
        self.drawn = time.monotonic()


def smoothed(losses: list[float]) -> list[float]:
    """The mean of each loss and those shortly before it: a fiftieth of all there are."""
    width = max(1, len(losses) // SMOOTHED)
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    return [(sums[i] - sums[max(0, i - width)]) / min(i, width) for i in range(1, len(sums))]


def draw(history: list[Row]) -> bytes:
    """The losses so far as a PNG."""
    from matplotlib.figure import Figure  # slow to import, needed here only

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    steps = [row.step for row in history]
    axes.plot(steps, smoothed([row.loss for row in history]), label="training", linewidth=1.2)
    judged = [(row.step, row.validation_loss) for row in history if row.validation_loss is not None]
    if judged:
        axes.plot(*zip(*judged, strict=True), label="validation", marker="o", markersize=3)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=summary(history[-1]))
    axes.title.set_fontsize("medium")
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
