"""`python -m ssmcourse.grading.worker`: the process that runs a learner's code (see `process`)."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any


def _voice() -> Callable[[dict[str, Any]], None]:
    """A function that writes events to the real stdout, which nothing else reaches from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)

    def tell(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    return tell


def main() -> None:
    tell = _voice()
    header, _, pickled = sys.stdin.buffer.read().partition(b"\n")
    job = json.loads(header)
    sys.path[:] = job["path"]

    import torch

    from ssmcourse.grading import load, registry
    from ssmcourse.grading.errors import tell as told
    from ssmcourse.grading.guard import Snapshot
    from ssmcourse.grading.judge import judge
    from ssmcourse.grading.report import FAILED, Report

    torch.set_num_threads(1)
    registry.load()
    snapshot = Snapshot()
    tell({"started": True})
    if "file" in job:
        load.judge_file(job, snapshot, tell)
        return
    exercise = replace(registry.find(job["id"]), time_limit=job["time_limit"])
    try:
        function = pickle.loads(pickled)
    except Exception as error:
        text = f"Your function could not be opened in a process of its own. {told(error)}"
        tell({"report": Report(exercise.id, exercise.title, FAILED, message=text).to_dict()})
        return
    with snapshot.restored():
        tell({"report": judge(exercise, function, tell).to_dict()})


if __name__ == "__main__":
    main()
