"""Judge one function by one check, in this process."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ssmcourse.grading.compare import Failure
from ssmcourse.grading.registry import Exercise
from ssmcourse.grading.report import FAILED, NOT_ATTEMPTED, PASSED, Report
from ssmcourse.grading.runner import can_alarm
from ssmcourse.grading.trial import NotAttempted, Trial


def judge(
    exercise: Exercise, function: Callable[..., Any], tell: Callable[[dict[str, Any]], None] | None = None
) -> Report:
    """The verdict on `function`, whatever it does. `tell` hears of layers and calls as they happen."""
    trial = Trial(exercise, function, tell)
    report = Report(exercise.id, exercise.title, FAILED, trial.layers)
    try:
        with _settled(exercise):
            exercise.check(trial)
    except NotAttempted:
        report.status, report.layers = NOT_ATTEMPTED, []
        return report
    except Failure as failure:
        report.message = failure.message
    else:
        report.status = PASSED if all(layer.status == PASSED for layer in trial.layers) else FAILED
    report.printed = trial.printed.short()
    return report


@contextlib.contextmanager
def _settled(exercise: Exercise) -> Iterator[None]:
    """Fixed seeds and torch's own defaults inside; everything as it was afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    seed = zlib.crc32(exercise.id.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    try:
        with torch.enable_grad():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_default_dtype(dtype)
        torch.set_default_device(device if device.type != "cpu" else None)


def verdict(exercise: Exercise, function: Callable[..., Any]) -> Report:
    """`judge` here, or in a process of its own: for kernels, and where no alarm can be set."""
    if exercise.process or not can_alarm():
        from ssmcourse.grading.process import judge_elsewhere

        return judge_elsewhere(exercise, function)
    return judge(exercise, function)
