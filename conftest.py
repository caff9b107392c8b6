"""What nbval compares: text outputs. Pictures, figures and widget views are not compared.

Also chooses one thread for torch: for the tiny models of the lessons two threads were measured up
to twenty times slower on two cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

PICTURES = (
    "image/png",
    "image/svg+xml",
    "text/html",
    "application/vnd.plotly.v1+json",
    "application/vnd.jupyter.widget-view+json",
)


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += PICTURES
