"""What a check talks to: it calls the learner's function and compares what comes back.

`registry` explains it to those who write checks.
"""

from __future__ import annotations

import contextlib
import inspect
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ssmcourse.grading import compare, values
from ssmcourse.grading.capture import Printed, captured
from ssmcourse.grading.compare import Failure
from ssmcourse.grading.errors import is_stub, tell
from ssmcourse.grading.forbidden import Watch
from ssmcourse.grading.registry import Exercise
from ssmcourse.grading.report import FAILED, NOT_REACHED, PASSED, Layer
from ssmcourse.grading.runner import Outcome, run

SHAPE_LAYER, EXAMPLE_LAYER = "signature and shape", "worked example"


class NotAttempted(Exception):  # noqa: N818
    """The stub is still there."""


class Trial:
    """One run of one check over one function."""

    def __init__(
        self,
        exercise: Exercise,
        function: Callable[..., Any],
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.exercise = exercise
        self.function = function
        self.layers: list[Layer] = []
        self.printed = Printed()
        self.generator = torch.Generator().manual_seed(zlib.crc32(exercise.id.encode()))
        self._left = exercise.time_limit
        self._calls = 0
        self._stopped = False
        self._mistakes: dict[str, Callable[..., Any]] = {}
        self._tell = tell or (lambda event: None)

    # ---- layers

    @contextlib.contextmanager
    def layer(self, name: str) -> Iterator[None]:
        """One line of the report: failed when anything inside fails, not reached after a failure."""
        reached = not self._stopped
        done = Layer(name, PASSED if reached else NOT_REACHED)
        self._tell({"begin": name})
        try:
            yield
        except Failure as failure:
            if reached:
                done.status, done.message, done.diagnosis = FAILED, failure.message, failure.diagnosis
        except NotAttempted:
            raise
        except Exception as error:
            if reached:
                done.status = FAILED
                done.message = f"The check itself stopped with {type(error).__name__}: {error}"
        self._stopped = self._stopped or done.status == FAILED
        self.layers.append(done)
        self._tell({"layer": asdict(done)})

    def example(self, *args: Any, expect: Any, terms: int = 1, any_float: bool = False) -> None:
        """The first two layers: kind, shape and dtype of the answer to `args`; then its values."""
        got = None
        with self.layer(SHAPE_LAYER):
            self._fits(args)
            got = self.call(*args)
            mistakes = self._mistakes_for(args)
            compare.diagnosed_kind(got, expect, mistakes, self.exercise.results, any_float=any_float)
        with self.layer(EXAMPLE_LAYER):
            self._compare(args, got, expect, terms, {}, any_float)

    # ---- the learner's function

    def call(self, *args: Any) -> Any:
        """The learner's answer to copies of `args`.

        Fails the layer when the code raises, runs out of time, calls what it may not, or changes
        its inputs.
        """
        given = values.copy_of(args)
        got = self._limited(lambda: self.function(*given), args)
        self._unchanged(args, given)
        if any(got is value for value in given if isinstance(value, Tensor)):
            got = values.copy_of(got)
        return got

    def compare(
        self,
        args: tuple[Any, ...],
        expected: Any,
        *,
        terms: int = 1,
        mistakes: dict[str, Any] | None = None,
        any_float: bool = False,
    ) -> Any:
        """Call with `args` and compare with `expected`; returns the answer."""
        got = self.call(*args)
        self._compare(args, got, expected, terms, mistakes or {}, any_float)
        return got

    def same(
        self,
        got: Any,
        expected: Any,
        *,
        terms: int = 1,
        mistakes: dict[str, Any] | None = None,
        what: str = "",
    ) -> None:
        """Compare two values; `what` opens the message and says what they are."""
        self._reached()
        compare.same(
            got, expected, terms=terms, mistakes=mistakes or {}, what=what, names=self.exercise.results
        )

    def require(self, condition: bool, message: str) -> None:
        """Fail the layer with `message` unless `condition` holds."""
        self._reached()
        if not condition:
            raise Failure(message)

    def mistake(self, words: str, wrong: Callable[..., Any]) -> None:
        """Words to show when a wrong answer equals `wrong(*args)`."""
        self._mistakes[words] = wrong

    # ---- properties

    def gradients(self, args: tuple[Any, ...], oracle: Callable[..., Any], *, terms: int = 100) -> None:
        """Compare the gradients of every floating tensor argument with those of `oracle`.

        The cotangent is random and fixed. Tuples of answers count as one long answer.
        """
        self._reached()
        wrt = [
            i
            for i, a in enumerate(args)
            if isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex())
        ]
        mine = [
            a.detach().clone().requires_grad_(i in wrt) if isinstance(a, Tensor) else a
            for i, a in enumerate(args)
        ]
        theirs = values.copy_of(mine)
        answers = oracle(*mine)
        expected = _flat(answers)
        weights = [
            torch.randn(e.shape, generator=self.generator, dtype=torch.float64).to(e.dtype) for e in expected
        ]
        right = torch.autograd.grad(expected, [mine[i] for i in wrt], weights, allow_unused=True)

        def backward() -> Any:
            answer = self.function(*theirs)
            compare.kind(answer, answers, self.exercise.results)
            pairs = [(g, w) for g, w in zip(_flat(answer), weights, strict=True) if g.requires_grad]
            if not pairs:
                return None
            outputs, cotangents = zip(*pairs, strict=True)
            return torch.autograd.grad(outputs, [theirs[i] for i in wrt], cotangents, allow_unused=True)

        got = self._limited(backward, args)
        names = self._names()
        if got is None:
            raise Failure(
                "No gradient flows from your answer to its inputs.",
                "a detour through .item(), .detach(), float(), NumPy or torch.tensor(...) cuts the graph",
            )
        for i, g, e in zip(wrt, got, right, strict=True):
            e = torch.zeros_like(mine[i]) if e is None else e
            g = torch.zeros_like(mine[i]) if g is None else g
            compare.same(g, e, terms=terms, what=f"The gradient of {names[i]}")

    def causal(self, args: tuple[Any, ...], *, arg: str, dim: int = -1, terms: int = 10) -> None:
        """Changing `arg` from position k on leaves the answer before k as it was."""
        index = self._index(arg)
        x = args[index]
        before = self.call(*args)
        for k in sorted({1, x.shape[dim] // 2, x.shape[dim] - 1}):
            later = x.clone()
            later.narrow(dim, k, x.shape[dim] - k).add_(1.0)
            after = self.call(*args[:index], later, *args[index + 1 :])
            compare.kind(after, before)
            compare.same(
                after.narrow(dim, 0, k), before.narrow(dim, 0, k), terms=terms,
                what=f"The answer before position {k}, after changing {arg} from there on",
                default="an output uses inputs that come after it",
            )  # fmt: skip

    def linear(self, args: tuple[Any, ...], *, arg: str, terms: int = 100) -> None:
        """The answer to p + 2 q in place of `arg` is the answer to p plus twice that to q."""
        index = self._index(arg)
        p, q = args[index], self.randn(*args[index].shape, dtype=args[index].dtype)
        y, z, both = (self.call(*args[:index], v, *args[index + 1 :]) for v in (p, q, p + 2 * q))
        compare.same(
            both, y + 2 * z, terms=terms, what=f"The answer to {arg} = p + 2 q, against that to p plus twice that to q",
            default=f"the answer is not linear in {arg}",
        )  # fmt: skip

    # ---- inputs

    def randn(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Normal numbers, the same at every run of this exercise."""
        return torch.randn(shape, generator=self.generator, dtype=dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform numbers in [0, 1), the same at every run of this exercise."""
        return torch.rand(shape, generator=self.generator, dtype=dtype)

    # ---- inner works

    def _reached(self) -> None:
        if self._stopped:
            raise Failure("")

    def _limited(self, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        self._reached()
        self._calls += 1
        self._tell({"call": self._left})
        with Watch(self.exercise.forbidden, self.function) as watch, captured(self.printed):
            outcome = run(call, self._left)
        self._tell({"returned": True})
        self._left = max(self._left - outcome.seconds, 0.05)
        if watch.called:
            raise Failure(
                f"This calls the answer: {self.exercise.name} may not use {watch.called}"
                f"{f' ({watch.where})' if watch.where else ''}. Write the steps yourself."
            )
        return self._value(outcome, args)

    def _value(self, outcome: Outcome, args: tuple[Any, ...]) -> Any:
        if outcome.timed_out:
            late = outcome.seconds > self.exercise.time_limit + 1
            raise Failure(f"{out_of_time(self.exercise, late)}\nIt came up{self._when(args)}.", ENDLESS)
        if isinstance(outcome.error, Failure):
            raise outcome.error
        if outcome.error is not None:
            if self._calls == 1 and is_stub(outcome.error):
                raise NotAttempted
            raise Failure(f"{tell(outcome.error)}\nIt came up{self._when(args)}.")
        return outcome.value

    def _when(self, args: tuple[Any, ...]) -> str:
        return f" with {self._inputs(args)}" if args else " without arguments"

    def _inputs(self, args: tuple[Any, ...]) -> str:
        return ", ".join(f"{n} = {values.describe(a)}" for n, a in zip(self._names(), args, strict=False))

    def _names(self) -> tuple[str, ...]:
        return self.exercise.arguments

    def _index(self, arg: str) -> int:
        return self._names().index(arg)

    def _unchanged(self, args: tuple[Any, ...], given: tuple[Any, ...]) -> None:
        for name, before, after in zip(self._names(), args, given, strict=False):
            if values.fingerprint(before) != values.fingerprint(after):
                raise Failure(
                    f"You changed {name} in place: it was {values.describe(before)} and is now "
                    f"{values.describe(after)}. Work on a copy, {name}.clone()."
                )

    def _compare(
        self,
        args: tuple[Any, ...],
        got: Any,
        expected: Any,
        terms: int,
        mistakes: dict[str, Any],
        any_float: bool,
    ) -> None:
        self._reached()
        every = mistakes | {w: f for w, f in self._mistakes_for(args).items() if w not in mistakes}
        compare.same(
            got, expected, terms=terms, mistakes=every, what=f"With {self._inputs(args)}: the answer",
            names=self.exercise.results, any_float=any_float,
        )  # fmt: skip

    def _mistakes_for(self, args: tuple[Any, ...]) -> dict[str, Callable[[], Any]]:
        """The known mistakes, ready to be computed for these inputs."""
        return {w: lambda wrong=wrong: wrong(*values.copy_of(args)) for w, wrong in self._mistakes.items()}

    def _fits(self, args: tuple[Any, ...]) -> None:
        self._reached()
        if not callable(self.function):
            raise Failure(f"{self.exercise.name} is {values.kind(self.function)}, expected a function.")
        try:
            signature = inspect.signature(self.function)
            signature.bind(*args)
        except TypeError:
            raise Failure(
                f"The signature is {self.exercise.signature}; yours is {self.exercise.name}{signature}."
            ) from None
        except ValueError:
            return


ENDLESS = "a loop that does not end, or far too much work"


def out_of_time(exercise: Exercise, late: bool = False) -> str:
    """What a learner reads when the time is up; `late` when a native call had to be waited for."""
    text = f"Your code was stopped: its time limit of {exercise.time_limit:g} s ran out."
    return f"{text} It was in a long native call, which ends only when it returns." if late else text


def _flat(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else [a for a in answer if isinstance(a, Tensor)]
