# ruff: noqa: E722, SIM105, B012
"""The time limit: what it stops, and that it leaves nothing behind."""

import contextlib
import signal
import sys
import threading
import time

import pytest

from ssmcourse.grading.runner import run

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
LIMIT = 0.2


def bare_loop():
    while True:
        pass


def loop_inside_bare_except():
    while True:
        try:
            while True:
                pass
        except:
            pass


def two_layers():
    while True:
        try:
            try:
                while True:
                    pass
            except:
                pass
        except:
            pass


def four_layers_and_finally():
    while True:
        try:
            try:
                try:
                    try:
                        while True:
                            pass
                    except:
                        x = 1
                except:
                    continue
                finally:
                    x = 2
            except BaseException as error:
                x = error
        except:
            del x


def calls_itself_in_except():
    try:
        return bare_loop()
    except:
        return calls_itself_in_except()


def calls_itself_in_finally():
    try:
        while True:
            pass
    finally:
        return calls_itself_in_finally()


def suppresses_everything():
    while True:
        with contextlib.suppress(BaseException), contextlib.suppress(BaseException):
            time.sleep(100)


def keeps_the_exceptions():
    kept = []
    while True:
        try:
            try:
                time.sleep(10)
            except BaseException as error:
                kept.append(error)
        except BaseException as error:
            kept.append(error)


def generator_that_swallows():
    def numbers():
        while True:
            try:
                yield 1
            except:
                pass

    while True:
        try:
            for _ in numbers():
                pass
        except:
            pass


def seven_frames_deep():
    def inner(depth):
        while True:
            try:
                inner(depth - 1) if depth else bare_loop()
            except:
                pass

    inner(6)


def callback_of_c_code():
    return max(range(10**9), key=lambda v: -v)


def doubling_recursion(n=0):
    try:
        return doubling_recursion(n + 1)
    except:
        return doubling_recursion(n + 1)


ENDLESS = [
    bare_loop, loop_inside_bare_except, two_layers, four_layers_and_finally, calls_itself_in_except,
    calls_itself_in_finally, suppresses_everything, keeps_the_exceptions, generator_that_swallows,
    seven_frames_deep, callback_of_c_code, doubling_recursion,
]  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a generator that will not close
@pytest.mark.parametrize("endless", ENDLESS, ids=lambda f: f.__name__)
def test_endless_code_stops_within_a_second_of_its_limit(endless):
    began = time.monotonic()
    outcome = run(endless, LIMIT)
    assert outcome.timed_out
    # doubling_recursion unwinds a thousand frames, and this machine may be busy with other tests
    assert time.monotonic() - began < LIMIT + (4.0 if endless is doubling_recursion else 1.0)


def test_a_value_and_an_error_come_back():
    assert run(lambda: 7, LIMIT).value == 7
    outcome = run(lambda: 1 / 0, LIMIT)
    assert isinstance(outcome.error, ZeroDivisionError)
    assert not outcome.timed_out
    assert isinstance(run(sys.exit, LIMIT).error, SystemExit)


def test_a_value_that_comes_too_late_does_not_count():
    def swallows_one_alarm():
        try:
            time.sleep(5)
        except BaseException:
            return "late"

    outcome = run(swallows_one_alarm, LIMIT)
    assert outcome.timed_out
    assert outcome.value is None


def test_a_native_call_is_noticed_when_it_returns():
    def native():
        return sum(range(60_000_000))

    outcome = run(native, 0.05)
    assert outcome.timed_out
    assert outcome.seconds > 0.05


def test_the_users_interrupt_passes_through():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, LIMIT)
    assert signal.getitimer(signal.ITIMER_REAL)[0] != LIMIT


@pytest.mark.parametrize(
    "code", [bare_loop, two_layers, lambda: 3, lambda: 1 / 0], ids=["loop", "layers", "value", "error"]
)
def test_handler_timer_trace_and_profile_are_put_back(code):
    def trace(frame, event, arg):
        return None

    def profile(frame, event, arg):
        return None

    def handler(signum, frame):
        raise AssertionError("the old timer went off too early")

    before = signal.signal(signal.SIGALRM, handler), signal.setitimer(signal.ITIMER_REAL, 50.0, 7.0)
    old_trace, old_profile = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        run(code, LIMIT)
        after = (
            sys.gettrace(),
            sys.getprofile(),
            signal.getsignal(signal.SIGALRM),
            signal.getitimer(signal.ITIMER_REAL),
        )
    finally:
        sys.settrace(old_trace)
        sys.setprofile(old_profile)
        signal.signal(signal.SIGALRM, before[0])
        signal.setitimer(signal.ITIMER_REAL, *before[1])
    assert after[0] is trace
    assert after[1] is profile
    assert after[2] is handler
    assert 40 < after[3][0] <= 50
    assert after[3][1] == 7.0


def test_the_recursion_limit_is_put_back():
    before = sys.getrecursionlimit()
    run(lambda: sys.setrecursionlimit(before + 1000), LIMIT)
    assert sys.getrecursionlimit() == before


def test_in_another_thread_the_call_just_runs():
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(run(lambda: 5, LIMIT)))
    thread.start()
    thread.join()
    assert outcomes[0].value == 5
