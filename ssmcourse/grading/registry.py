"""The exercises of the course, and how a check is written.

A check is a plain function of one argument, the `Trial`, in `checks/ch<NN>_<idea>.py`. Importing that
module registers it. The last part of the id is the name of the learner's function; it is unique.

    @exercise(
        "start.run_memory", chapter="00", title="Run the memory", difficulty=1, minutes=5,
        signature="run_memory(a: float, x: Tensor) -> Tensor",
        unlocks="explore.memory() with your own function in it",
        forbidden=("ssmcourse.linear_scan", "torch.cumsum"),     # covers aliases, methods, in-place forms
        hints=("first", "second", "third"),
    )
    def check_run_memory(trial):
        trial.mistake("the words of a likely mistake", wrong_function)     # any number, most likely first
        trial.example(0.5, torch.tensor([1.0, 2.0]), expect=torch.tensor([1.0, 2.5]))
        with trial.layer("random inputs"):
            trial.compare((a, x), expected, terms=17)

Each `with trial.layer(name)` is one line of the report; after a failed layer the later ones are shown
as not reached, and what they ask of the trial does not happen. Inside a layer:

    trial.example(*args, expect=y)        the first two layers: signature and shape, worked example
    trial.compare(args, expected, ...)    calls the learner's function and compares with the oracle
    trial.gradients(args, oracle)         compares vector-Jacobian products with those of `oracle`
    trial.causal(args, arg="x")           later inputs do not change earlier outputs (dim=-1)
    trial.linear(args, arg="x")           M(p + 2q) = M p + 2 M q
    y = trial.call(*args)                 the bare answer, for a property of your own
    trial.same(got, expected, ...)        compares two values, of which `got` came from trial.call
    trial.require(condition, message)     the property; message is shown when the condition is false
    trial.randn(*shape), trial.rand(...)  float64 inputs from the exercise's own fixed seed

`expected` is a tensor, a number, or a tuple of them; kind, shape, dtype and device are compared first
(`any_float=True` accepts any floating dtype, for functions whose inputs do not set one).
`terms` is how many rounded terms one value sums (`ssmcourse.tolerance`). A mistake is a function of
the same arguments that gives the wrong answer: when the learner's answer is wrong and equals it, its
words are shown. `mistakes={words: value}` adds some to one comparison. The learner gets copies of the
inputs, a share of `time_limit` seconds (all calls together), no stdout; changed inputs, exceptions,
None, NaN and the rest are reported without help. With `process=True` the check always runs in a
process of its own. A check uses no notebook, file, network, GPU or solution, and its oracle is
written independently of the solution.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """One function, class or kernel for the learner to write."""

    id: str
    chapter: str
    title: str
    difficulty: int
    minutes: int
    signature: str
    unlocks: str
    hints: tuple[str, str, str]
    check: Callable[[Any], None] = field(repr=False)
    forbidden: tuple[str, ...] = ()
    time_limit: float = 5.0
    process: bool = False

    @property
    def name(self) -> str:
        """The name of the learner's function."""
        return self.id.rsplit(".", 1)[-1]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The argument names of the signature, in order."""
        return tuple(a.arg for a in self._tree().args.args)

    @property
    def results(self) -> tuple[str, ...]:
        """The names of what is returned, where the signature gives them: `-> (A, B)`."""
        returns = self._tree().returns
        names = returns.elts if isinstance(returns, ast.Tuple) else []
        return tuple(ast.unparse(name) for name in names)

    def _tree(self) -> ast.FunctionDef:
        tree = ast.parse(f"def {self.signature}: ...").body[0]
        assert isinstance(tree, ast.FunctionDef)
        return tree


_EXERCISES: dict[str, Exercise] = {}


def exercise(
    id: str,
    *,
    chapter: str,
    title: str,
    difficulty: int,
    minutes: int,
    signature: str,
    unlocks: str,
    hints: tuple[str, str, str],
    forbidden: tuple[str, ...] = (),
    time_limit: float = 5.0,
    process: bool = False,
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register the decorated check. The module's docstring explains the arguments.

    Raises:
        ValueError: the id or the function's name is taken, or a field is not what it should be.
    """

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        new = Exercise(
            id, chapter, title, difficulty, minutes, signature, unlocks, hints, check,
            tuple(forbidden), time_limit, process,
        )  # fmt: skip
        _validate(new)
        _EXERCISES[id] = new
        return check

    return register


def _validate(new: Exercise) -> None:
    if not (len(new.chapter) == 2 and new.chapter.isdigit()):
        raise ValueError(f"chapter: got {new.chapter!r} for {new.id}, expected two digits")
    if not 1 <= new.difficulty <= 5:
        raise ValueError(f"difficulty: got {new.difficulty} for {new.id}, expected 1 to 5")
    if len(new.hints) != 3:
        raise ValueError(f"hints: got {len(new.hints)} for {new.id}, expected three")
    if not new.signature.startswith(f"{new.name}("):
        raise ValueError(f"signature: got {new.signature!r}, expected it to begin with {new.name!r}")
    for other in _EXERCISES.values():
        if other.name == new.name and other.check.__module__ != new.check.__module__:
            raise ValueError(
                f"id: {new.id} and {other.id} share the name {new.name!r}, expected unique names"
            )


def load() -> None:
    """Import every module of checks, which registers its exercises."""
    from ssmcourse.grading import checks

    for module in sorted(m.name for m in pkgutil.iter_modules(checks.__path__)):
        importlib.import_module(f"{checks.__name__}.{module}")


def exercises(chapter: str | None = None) -> list[Exercise]:
    """All exercises, or those of one chapter, in the order of the course."""
    load()
    every = sorted(_EXERCISES.values(), key=lambda e: e.chapter)
    return [e for e in every if chapter is None or e.chapter == chapter]


def find(key: str) -> Exercise:
    """The exercise with this id, or with this function name.

    Raises:
        ValueError: there is none; the message names the closest.
    """
    load()
    for candidate in _EXERCISES.values():
        if key in (candidate.id, candidate.name):
            return candidate
    known = [name for e in _EXERCISES.values() for name in (e.id, e.name)]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}?" if close else "`ssmcourse list` shows them all."
    raise ValueError(f"no exercise is called {key!r}; {guess}")
