"""Run a learner's function under a time limit, in this process.

An interval timer sends SIGALRM when the time is up, and twenty times a second from then on. The
first alarm raises `TimeLimit` wherever the learner's code is, which ends `while True: pass`. Code
that catches it with a bare `except:` meets the second: before it raises again, it sets a trace
function on the learner's frames, which raises at the very next line, that is inside the `except`
body and so outside its `try`. Python turns tracing off when a trace function raises. Three things
turn it on again, so that each layer of `try` is stripped in turn: the next alarm, the next call that
the learner's code makes (a profile function sees it), and the exception itself when it is dropped at
the end of an `except` body. What was there before (handler, timer, trace and profile function of a
debugger or of coverage) is put back.

A long native call cannot be interrupted: the alarm is seen when it returns.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

TICK = 0.05  # seconds between alarms once the limit is passed


class TimeLimit(BaseException):
    """The learner's code is over its time. Not an Exception, so that `except Exception` lets it by."""

    def __init__(self, alarm: Alarm) -> None:
        super().__init__()
        self.alarm = alarm

    def __del__(self) -> None:
        alarm = getattr(self, "alarm", None)
        if alarm and not alarm.done and alarm.ticks > 1:
            alarm.trace(sys._getframe(1))


@dataclass
class Outcome:
    """What came of a call: a value, an error, or neither because its time ran out."""

    value: Any = None
    error: BaseException | None = None
    timed_out: bool = False
    seconds: float = 0.0


def can_alarm() -> bool:
    """Whether a time limit can be held in this very thread."""
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


class Alarm:
    """The timer of one call. Its own lines, and all of this module's, are never interrupted."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(seconds, 0.001)
        self.done = False
        self.ticks = 0
        self.hook = self._line

    def start(self) -> None:
        self.began = time.monotonic()
        self.old_trace, self.old_profile = sys.gettrace(), sys.getprofile()
        self.old_handler = signal.signal(signal.SIGALRM, self._tick)
        self.old_timer = signal.setitimer(signal.ITIMER_REAL, self.seconds, TICK)

    def stop(self) -> None:
        self.done = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.ticks > 1:
            sys.settrace(self.old_trace)
            sys.setprofile(self.old_profile)
        signal.signal(signal.SIGALRM, self.old_handler or signal.SIG_DFL)
        left, interval = self.old_timer
        if left:
            elapsed = time.monotonic() - self.began
            signal.setitimer(signal.ITIMER_REAL, max(left - elapsed, 0.001), interval)

    def trace(self, frame: FrameType | None) -> None:
        """Make the next line of the learner's frames raise."""
        sys.settrace(self.hook)
        while frame is not None and frame.f_globals is not globals() and frame.f_trace is not self.hook:
            frame.f_trace = self.hook
            frame = frame.f_back

    def _tick(self, _signum: int, frame: FrameType | None) -> None:
        if self.done or frame is None or frame.f_globals is globals():
            return
        self.ticks += 1
        if self.ticks > 1:
            sys.setrecursionlimit(sys.getrecursionlimit() + 50)  # room for our own calls; `run` puts it back
            self.trace(frame)
            sys.setprofile(self._call)
        raise TimeLimit(self)

    def _call(self, frame: FrameType, _event: str, _arg: Any) -> None:
        if not self.done and frame.f_globals is not globals():
            self.trace(frame)

    def _line(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if self.done or frame.f_globals is globals():
            return None
        if event == "exception":  # the one just raised passes by; raising here would end the tracing
            return self.hook
        raise TimeLimit(self)


def run(call: Callable[[], Any], seconds: float) -> Outcome:
    """The outcome of `call()`, stopped after `seconds` where this thread can be stopped.

    KeyboardInterrupt passes through: it is the user's, not the learner's code's. The recursion
    limit is put back.

    Cost: a few microseconds over the call.
    """
    outcome = Outcome()
    alarm = Alarm(seconds) if can_alarm() else None
    depth, hook = sys.getrecursionlimit(), sys.unraisablehook
    sys.unraisablehook = lambda entry: None if entry.exc_type is TimeLimit else hook(entry)
    began = time.monotonic()
    if alarm:
        alarm.start()
    try:
        outcome.value = call()
    except TimeLimit:
        outcome.timed_out = True
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        outcome.error = error
    finally:
        if alarm:
            alarm.stop()
        sys.setrecursionlimit(depth)
        sys.unraisablehook = hook
    outcome.seconds = time.monotonic() - began
    if (alarm and alarm.ticks) or outcome.seconds > seconds:
        outcome = Outcome(timed_out=True, seconds=outcome.seconds)
    return outcome
