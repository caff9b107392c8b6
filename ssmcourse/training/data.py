"""Batches: every one is a function of a seed and a step, so that a training that goes on needs no state of it.

| name      | meaning                                          | shape        |
|-----------|--------------------------------------------------|--------------|
| `tokens`  | what the model reads                             | (b, l) int64 |
| `targets` | what it is to say; -100 where it is not asked    | (b, l) int64 |

Under several processes each makes the whole batch, which costs next to nothing, and takes every world-th row of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ssmcourse.tasks.task import Task
from ssmcourse.tasks.text import Corpus, python_reference, random_windows, read_text
from ssmcourse.training.config import Config

Batch = tuple[Tensor, Tensor]
JUDGED = 512  # rows of a task that a model is judged by


class Source(Protocol):
    """Where batches come from."""

    sha256: str

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 1."""
        ...

    def validation(self) -> Iterator[Batch]:
        """Batches that are never learnt from, the same ones at every call."""
        ...


def generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """One that belongs to this purpose and step, whatever was drawn before."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class TextSource:
    """Random windows of a text; validation in windows side by side, so that each byte is predicted once."""

    def __init__(self, corpus: Corpus, b: int, l: int, seed: int) -> None:
        self.corpus, self.b, self.l, self.seed = corpus, b, l, seed
        self.sha256 = corpus.sha256

    def batch(self, step: int) -> Batch:
        return random_windows(self.corpus.training, self.b, self.l, generator(self.seed, "text", step))

    def validation(self) -> Iterator[Batch]:
        data = self.corpus.validation.long()
        n = (len(data) - 1) // self.l * self.l  # in whole windows
        tokens, targets = data[:n].reshape(-1, self.l), data[1 : n + 1].reshape(-1, self.l)
        yield from zip(tokens.split(self.b), targets.split(self.b), strict=True)
        if n + 1 < len(data):
            yield data[None, n:-1], data[None, n + 1 :]


class TaskSource:
    """Rows of a synthetic task, new ones at every step."""

    def __init__(self, task: Task, b: int, seed: int) -> None:
        self.task, self.b, self.seed = task, b, seed
        digest = hashlib.sha256(repr(task).encode())
        for values in task.sample(b, generator(seed, "validation", 0)):  # tells another way of drawing
            digest.update(values.numpy().tobytes())
        self.sha256 = digest.hexdigest()

    def batch(self, step: int) -> Batch:
        return self.task.sample(self.b, generator(self.seed, "task", step))

    def validation(self) -> Iterator[Batch]:
        tokens, targets = self.task.sample(JUDGED, generator(self.seed, "validation", 0))
        yield from zip(tokens.split(self.b), targets.split(self.b), strict=True)


def open_source(config: Config) -> Source:
    """The source that a configuration names.

    Raises:
        ValueError, FileNotFoundError: from `ssmcourse.tasks.text`.
    """
    data, training = config.data, config.training
    task = data.make_task()
    if task is not None:
        return TaskSource(task, training.batch_size, training.seed)
    length = training.length or 256
    split = {"seed": data.seed, "validation": data.validation}
    corpus = python_reference(**split) if data.path is None else read_text(data.path, **split)
    if len(corpus.training) <= length:
        raise ValueError(
            f"training.length: got {length} with a text of {len(corpus.training)} bytes, expected less than that"
        )
    return TextSource(corpus, training.batch_size, length, training.seed)
