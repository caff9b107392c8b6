"""A training as a terminal shows it: a bar, and a line at every validation."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssmcourse.training.loop import Trained
from ssmcourse.training.records import Row


class Terminal:
    """A callback of `train`, to be used in a `with` block. Where there is no terminal, the lines only.

    with Terminal() as terminal:
        train(config, callbacks=[terminal])
    """

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, trained: Trained) -> None:
        row = trained.history[-1]
        said = f"loss {row.loss:.4f}, {row.tokens_per_second:,.0f} tokens/s"
        self.bar.update(self.task, completed=row.step, total=trained.config.training.steps, description=said)
        if row.validation_loss is not None:
            self.console.print(summary(row))


def summary(row: Row) -> str:
    """A validated step on one line."""
    judged = "" if row.validation_loss is None else f"validation {row.validation_loss:.4f}, "
    right = "" if row.validation_accuracy is None else f"right {row.validation_accuracy:.1%}, "
    return f"step {row.step}: loss {row.loss:.4f}, {judged}{right}{row.tokens_per_second:,.0f} tokens/s"
