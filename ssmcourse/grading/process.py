"""A process that runs a learner's code, seen from this side: what it says, and how it is ended.

The child (`worker`) reads its job from standard input, one line of JSON and then a pickled function
where there is one, and writes events, one JSON object a line. Before it lets the learner's code run it says for how long; when it is not back a second
after that, it is killed. So an endless loop ends on every system, also where there is no SIGALRM,
and threads that go on spinning end with it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle

from ssmcourse.grading.registry import Exercise
from ssmcourse.grading.report import FAILED, Layer, Report
from ssmcourse.grading.trial import ENDLESS, out_of_time

GRACE = 1.0  # seconds that a call may be late before its process is killed
PATIENCE = 120.0  # seconds for what is not the learner's code: starting Python, importing torch
NESTED = "SSMCOURSE_WORKER"


class Overdue(Exception):  # noqa: N818
    """The child did not answer in time; it has been killed."""


class Died(Exception):  # noqa: N818
    """The child ended without a word; the message says how."""


class Child:
    """One worker process with one job. Use as a context: it is gone at the end."""

    def __init__(self, job: dict[str, Any], function: Callable[..., Any] | None = None) -> None:
        header = json.dumps(job | {"path": sys.path}).encode() + b"\n"
        self.job = header + (cloudpickle.dumps(function) if function else b"")
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.group = os.name == "posix" and NESTED not in os.environ

    def __enter__(self) -> Child:
        quiet = {NESTED: "1", "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ssmcourse.grading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={"OMP_NUM_THREADS": "1"} | os.environ | quiet,
            start_new_session=self.group,
        )
        threading.Thread(target=self._listen, daemon=True).start()
        assert self.process.stdin
        try:
            self.process.stdin.write(self.job)
            self.process.stdin.close()
        except OSError:  # it died at once; `next` says so
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self.process.wait()
        self.errors.close()

    def next(self) -> dict[str, Any]:
        """The next event.

        Raises:
            Overdue: it did not come in the time that the previous event asked for.
            Died: the process ended.
        """
        try:
            event = self.events.get(timeout=self._wait)
        except queue.Empty:
            self._kill()
            raise Overdue from None
        if event is None:
            self.process.wait()
            self.errors.seek(0)
            last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Died(f"exit code {self.process.returncode}" + (f": {last[0]}" if last else ""))
        self._wait = event["call"] + GRACE if "call" in event else PATIENCE
        return event

    _wait = PATIENCE

    def _listen(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.events.put(json.loads(line))
        self.events.put(None)

    def _kill(self) -> None:
        try:
            if self.group:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        except (ProcessLookupError, PermissionError):
            pass


def judge_elsewhere(exercise: Exercise, function: Callable[..., Any]) -> Report:
    """The verdict on `function` from a fresh process, which gets a copy of it.

    Cost: starting Python and importing torch, one to three seconds.
    """
    try:
        child = Child({"id": exercise.id, "time_limit": exercise.time_limit}, function)
    except Exception as error:
        text = f"Your function cannot be sent to a process of its own: {error}"
        return Report(exercise.id, exercise.title, FAILED, message=text)
    with child:
        return follow(child, exercise)


def follow(child: Child, exercise: Exercise) -> Report:
    """Listen until the report comes; make one when the child has to be killed, or dies."""
    report = Report(exercise.id, exercise.title, FAILED)
    begun = ""
    while True:
        try:
            event = child.next()
        except Overdue:
            return _cut_off(report, begun, out_of_time(exercise), ENDLESS)
        except Died as how:
            return _cut_off(report, begun, f"Your code ended the process that it ran in ({how}).", "")
        if "begin" in event:
            begun = event["begin"]
        elif "layer" in event:
            report.layers.append(Layer(**event["layer"]))
            begun = ""
        elif "report" in event:
            return Report.from_dict(event["report"])


def _cut_off(report: Report, begun: str, message: str, diagnosis: str) -> Report:
    if begun:
        report.layers.append(Layer(begun, FAILED, message, diagnosis))
    else:
        report.message = message
    return report
