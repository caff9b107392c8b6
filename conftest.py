"""Settings of every test run.

nbval compares text outputs, and no pictures, figures or widget views. Torch gets one thread: for
the tiny models of the lessons two were measured up to twenty times slower on two cores. What tests
and notebooks pass or predict goes to a scratch file, not into the learner's progress.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "SSMCOURSE_PROGRESS", str(Path(tempfile.mkdtemp(prefix="ssmcourse-")) / "progress.json")
)

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
