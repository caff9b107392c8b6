"""What is trained, on what, and how: a TOML file as frozen dataclasses.

    [model]                          fields of LanguageModelConfig; vocab_size is the data's if left out
    pattern = "MMMM"
    d_model = 96
    options.M = { d_state = 16 }

    [data]                           one of text = "python", path = "my/files", task = "recall"
    text = "python"

    [training]
    steps = 2000
    out = "runs/mamba"

What does not fit gets one line that names the key.
"""

from __future__ import annotations

import math
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ssmcourse.arguments import integer, number, one_of, shown
from ssmcourse.models import LanguageModelConfig
from ssmcourse.tasks.copying import Copying, SelectiveCopying
from ssmcourse.tasks.induction import InductionHeads
from ssmcourse.tasks.phonebook import Phonebook
from ssmcourse.tasks.recall import AssociativeRecall, MultiQueryRecall
from ssmcourse.tasks.task import Task
from ssmcourse.tasks.text import ByteTokenizer

TASKS: dict[str, type[Task]] = {
    "copying": Copying,
    "selective_copying": SelectiveCopying,
    "induction": InductionHeads,
    "recall": AssociativeRecall,
    "multi_query_recall": MultiQueryRecall,
    "phonebook": Phonebook,
}


class ConfigError(ValueError):
    """A configuration that cannot be meant, said in one line."""


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from: exactly one of text, path and task.

    text: "python", the language reference that every Python brings along.
    path: a text file, or a folder of text files.
    task: a name of `TASKS`, with its `arguments`.
    seed, validation: of the split of a text.
    """

    text: str | None = None
    path: str | None = None
    task: str | None = None
    seed: int = 0
    validation: float = 0.1
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("text", "path", "task") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"text, path, task: got {' and '.join(given) or 'none'}, expected one of the three"
            )
        if self.text is not None:
            one_of("text", self.text, ("python",))
        if self.task is None and self.arguments:
            raise ConfigError("arguments: got some without a task, expected them beside task only")
        self.make_task()

    def make_task(self) -> Task | None:
        """The task, if it is one."""
        if self.task is None:
            return None
        if self.task not in TASKS:
            raise ConfigError(f"task: got {shown(self.task)}, expected one of {', '.join(TASKS)}")
        return _filled(TASKS[self.task], self.arguments, "arguments")

    @property
    def vocab_size(self) -> int:
        task = self.make_task()
        return ByteTokenizer.vocab_size if task is None else task.vocab_size


@dataclass(frozen=True)
class TrainingConfig:
    """How it is trained.

    steps: updates of the weights.
    out: the folder for the checkpoint, the losses and the model. None: nothing is kept.
    batch_size: rows of a batch, over all processes.
    length: tokens of a row of text, 256 if not given; a task has its own.
    learning_rate: the largest, reached after `warmup` steps; from there half a cosine down to `min_learning_rate`.
    weight_decay, betas: AdamW's.
    clip: the largest norm that the gradient may have.
    seed: of the first weights and of the batches.
    threads: of torch, in each process. Small models are slower with two than with one.
    eval_every, checkpoint_every: steps. Both are done after the last step, too.
    dtype: float32, or bfloat16 for autocast.
    device: auto is cuda where there is one.
    """

    steps: int
    out: str | None = None
    batch_size: int = 16
    length: int | None = None
    learning_rate: float = 3e-3
    min_learning_rate: float = 0.0
    warmup: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0
    threads: int = 1
    eval_every: int = 100
    checkpoint_every: int = 500
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "batch_size", "threads", "eval_every", "checkpoint_every"):
            integer(name, getattr(self, name), 1)
        if self.length is not None:
            integer("length", self.length, 1)
        integer("warmup", self.warmup, 0)
        integer("seed", self.seed, 0)
        for name in ("learning_rate", "min_learning_rate", "weight_decay"):
            number(name, getattr(self, name))
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                f"min_learning_rate: got {self.min_learning_rate}, expected at most learning_rate, {self.learning_rate}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"betas: got {shown(self.betas)}, expected two numbers of 0 or more and under 1"
            )
        if not self.clip > 0:
            raise ConfigError(f"clip: got {self.clip}, expected a number over 0")
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        one_of("device", self.device, ("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class Config:
    """A whole training."""

    model: LanguageModelConfig
    data: DataConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        needed = self.data.vocab_size
        if self.model.vocab_size < needed:
            raise ConfigError(
                f"model.vocab_size: got {self.model.vocab_size}, expected the data's {needed} or more"
            )
        if self.data.task is not None and self.training.length is not None:
            raise ConfigError("training.length: got one beside a task, expected none: the task decides it")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The configuration of the three tables.

        Raises:
            ConfigError: a key that does not exist or is missing, or a value that it cannot have.
        """
        _known(values, [f.name for f in fields(cls)], "")
        for name in ("model", "data", "training"):
            if not isinstance(values.get(name), Mapping):
                raise ConfigError(f"{name}: got {shown(values.get(name))}, expected a table [{name}]")
        data = _filled(DataConfig, values["data"], "data")
        model = {"vocab_size": data.vocab_size, **values["model"]}
        return cls(
            _filled(LanguageModelConfig, model, "model"),
            data,
            _filled(TrainingConfig, values["training"], "training"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as tables of numbers, strings and lists, as JSON has them."""
        data, training = asdict(self.data), asdict(self.training)
        return {
            "model": self.model.to_dict(),
            "data": data | {"arguments": dict(self.data.arguments)},
            "training": training | {"betas": list(self.training.betas)},
        }


def load_config(path: str | Path) -> Config:
    """The configuration in a TOML file.

    Raises:
        ConfigError: it is not there, it is no TOML, or what `Config.from_dict` raises; with the file's name.
    """
    try:
        return Config.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _filled(cls: Any, values: Mapping[str, Any], section: str) -> Any:
    """The dataclass with these values; every complaint begins with section.key."""
    hints = get_type_hints(cls)
    _known(values, [f.name for f in fields(cls)], section)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ConfigError(f"{section}.{name}: got {shown(value)}, expected {_said(hints[name])}")
    for f in fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{section}.{f.name}: got none, expected {_said(hints[f.name])}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{section}.{error}") from None


def _known(values: Iterable[str], names: list[str], section: str) -> None:
    """Refuse a key that is none of the names; say which is nearest."""
    for key in values:
        if key not in names:
            near = get_close_matches(key, names, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{section}{'.' if section else ''}{key}: no such key, the nearest is {near}")


def _fits(value: Any, hint: Any) -> bool:
    """Is this of the type that a field is annotated with? An integer is a float, too; a bool is no number."""
    if get_origin(hint) in (types.UnionType, Union):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        wanted = get_args(hint)
        return (
            isinstance(value, list | tuple) and len(value) == len(wanted) and all(map(_fits, value, wanted))
        )
    if get_origin(hint) is not None:
        return isinstance(value, Mapping)
    if hint in (int, float):
        kind = Integral if hint is int else Real
        return isinstance(value, kind) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, hint)


def _said(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) in (types.UnionType, Union):
        return _said(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return f"a list of {len(get_args(hint))} numbers"
    if get_origin(hint) is not None:
        return "a table"
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[hint]
