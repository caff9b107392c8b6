"""Where no alarm can be set, and for kernels, a process does the job."""

import dataclasses
import os
import signal
import threading
import time

import pytest

from ssmcourse.grading import registry
from ssmcourse.grading.judge import verdict
from ssmcourse.grading.process import judge_elsewhere
from ssmcourse.grading.report import FAILED, PASSED

EXERCISE = registry.find("start.run_memory")
SHORT = dataclasses.replace(EXERCISE, time_limit=0.5)


def test_the_verdict_is_the_same_as_here(right):
    wrong = lambda a, x: right(a, x) + (len(x) == 17)  # noqa: E731
    assert str(judge_elsewhere(EXERCISE, wrong)) == str(verdict(EXERCISE, wrong))


def ends_its_process(a, x):
    os._exit(3)


def crashes(a, x):
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize("function", [ends_its_process, crashes], ids=lambda f: f.__name__)
def test_code_that_ends_its_process_is_told(function):
    report = judge_elsewhere(EXERCISE, function)
    assert report.status == FAILED
    assert report.layers[-1].name == "signature and shape"
    assert "ended the process that it ran in" in str(report)


def test_what_cannot_be_sent_is_told():
    lock = threading.Lock()
    report = judge_elsewhere(EXERCISE, lambda a, x: lock)
    assert report.status == FAILED
    assert "cannot be sent" in str(report)


def test_a_kernel_exercise_goes_to_a_process(right, monkeypatch):
    seen = []
    monkeypatch.setattr("ssmcourse.grading.process.judge_elsewhere", lambda e, f: seen.append(e.id))
    verdict(dataclasses.replace(EXERCISE, process=True), right)
    verdict(EXERCISE, right)
    assert seen == [EXERCISE.id]


def test_in_another_thread_a_process_does_the_job():
    def endless(a, x):
        while True:
            pass

    reports = []
    began = time.monotonic()
    thread = threading.Thread(target=lambda: reports.append(verdict(SHORT, endless)))
    thread.start()
    thread.join()
    assert "time limit of 0.5 s ran out" in str(reports[0])
    assert time.monotonic() - began < 20  # and not the two minutes that a silent child may take


def test_code_that_no_alarm_reaches_is_killed():
    """A child that ignores the alarm, as a spinning native loop does."""

    def deaf(a, x):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while True:
            pass

    began = time.monotonic()
    report = judge_elsewhere(SHORT, deaf)
    assert report.layers[-1].message.startswith("Your code was stopped: its time limit of 0.5 s ran out.")
    assert report.layers[-1].name == "signature and shape"
    assert time.monotonic() - began < 20


def test_no_process_is_left_behind(right):
    import psutil

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    assert judge_elsewhere(EXERCISE, right).status == PASSED
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before
