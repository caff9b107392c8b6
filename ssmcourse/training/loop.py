"""The training itself: one step after another, each a function of the weights, the optimiser and its number.

So a training that was killed goes on from its checkpoint to the same losses, bit for bit on one thread. Ctrl-C
saves before it stops.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ssmcourse.models import LanguageModel
from ssmcourse.tasks.task import IGNORE
from ssmcourse.training import checkpoint
from ssmcourse.training.config import Config
from ssmcourse.training.crew import Crew, assembled
from ssmcourse.training.data import Batch, Source, open_source
from ssmcourse.training.errors import TrainingError
from ssmcourse.training.records import LossFile, Row, read_rows
from ssmcourse.training.schedule import rate, set_rates

LOSSES = "loss.csv"


@dataclass
class Trained:
    """A training, finished or under way.

    model: the model, on its device.
    history: a row for every step so far, those before an interruption included.
    ended: no step follows, because all are done or because it was interrupted.
    """

    config: Config
    model: LanguageModel
    history: list[Row] = field(default_factory=list)
    ended: bool = False

    @property
    def step(self) -> int:
        return len(self.history)

    @property
    def interrupted(self) -> bool:
        """Did Ctrl-C end it?"""
        return self.ended and self.step < self.config.training.steps


# Called in the leading process after every step; `ended` is set at the last one.
Callback = Callable[[Trained], Any]


def train(config: Config, *, callbacks: Sequence[Callback] = ()) -> Trained:
    """Train a model, or go on with the training in `config.training.out`.

    In that folder are then checkpoint.pt, loss.csv with a line for every step, and model/, for
    `LanguageModel.from_pretrained`. Ctrl-C ends it after the step under way, with a checkpoint and a warning that
    says so; the same call goes on. Under torchrun several processes share each batch.

    Args:
        callbacks: called with the training so far after every step, in the leading process only. `LossPlot()` draws.
    Raises:
        ValueError, FileNotFoundError: the data cannot be read or does not fit.
        TrainingError: the loss or its gradient is no number, or the folder holds another training.

    The global random state is left as it is, and so is torch's number of threads.
    """
    with _threads(config.training.threads), assembled(config.training.device) as crew:
        run = _Run(config, crew)
        try:
            run.go(callbacks)
        finally:
            run.close()
        return run.trained


class _Run:
    """A training and what it works with."""

    def __init__(self, config: Config, crew: Crew) -> None:
        settings = config.training
        if settings.batch_size % crew.world:
            raise ValueError(
                f"training.batch_size: got {settings.batch_size} for {crew.world} processes, expected a multiple"
            )
        self.config, self.settings, self.crew = config, settings, crew
        self.source: Source = open_source(config)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            model = LanguageModel(config.model)
        self.trained = Trained(config, model.to(crew.device))
        self.forward: nn.Module = model if crew.world == 1 else DistributedDataParallel(model)
        self.optimizer = torch.optim.AdamW(
            model.parameter_groups(),
            lr=0.0,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.folder = None if settings.out is None else Path(settings.out)
        self.losses = self._resumed()
        self.saved = self.trained.step

    def _resumed(self) -> LossFile | None:
        """Take up the checkpoint if there is one; the file of losses, in the leading process."""
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        model, history = self.trained.model, self.trained.history
        step = checkpoint.load(self.folder, model, self.optimizer, self.config, self.source.sha256)
        if step:
            history += read_rows(self.folder / LOSSES, step)
        self.crew.total(torch.zeros(1))  # all have read before one writes
        return LossFile(self.folder / LOSSES, history) if self.crew.leads else None

    def close(self) -> None:
        if self.losses is not None:
            self.losses.close()

    def go(self, callbacks: Sequence[Callback]) -> None:
        steps, trained = self.settings.steps, self.trained
        trained.model.train()
        with _interruption() as interrupted:
            for step in range(trained.step + 1, steps + 1):
                loss, speed, stop = self._step(step, interrupted)
                due = step == steps or step % self.settings.eval_every == 0
                row = Row(step, loss, rate(self.settings, step), speed, *(self._validate() if due else ()))
                trained.history.append(row)
                trained.ended = stop or step == steps
                if self.losses is not None:
                    self.losses.append(row)
                if trained.ended or step % self.settings.checkpoint_every == 0:
                    self._save()
                if self.crew.leads:
                    for callback in callbacks:
                        callback(trained)
                if stop:
                    break
        trained.ended = True
        trained.model.eval()
        if not self.crew.leads:
            return
        if trained.interrupted:
            kept = "nothing is kept" if self.folder is None else f"a checkpoint is in {self.folder}"
            warnings.warn(f"training stopped at step {trained.step} of {steps}; {kept}", stacklevel=3)
        elif self.folder is not None:
            trained.model.save_pretrained(self.folder / "model")

    def _step(self, step: int, interrupted: Callable[[], bool]) -> tuple[float, float, bool]:
        """One update: the loss before it, tokens a second, and whether someone wants to stop."""
        started = time.perf_counter()
        set_rates(self.optimizer, self.settings, step)
        tokens, targets = self.source.batch(step)
        asked = int((targets != IGNORE).sum())
        loss = self._loss((tokens[self._mine], targets[self._mine])) / asked
        told = torch.tensor([loss.item(), float(interrupted())], dtype=torch.float64)
        total, stop = self.crew.total(told).tolist()
        self._demand_number("loss", total, step)
        self.optimizer.zero_grad()
        (loss * self.crew.world).backward()  # DistributedDataParallel takes the mean over the processes
        norm = nn.utils.clip_grad_norm_(self.trained.model.parameters(), self.settings.clip)
        self._demand_number("norm of the gradient", norm.item(), step)
        self.optimizer.step()
        return total, tokens.numel() / (time.perf_counter() - started), stop > 0

    @property
    def _mine(self) -> slice:
        """The rows of a batch that are this process's."""
        return slice(self.crew.rank, None, self.crew.world)

    def _logits(self, tokens: Tensor, model: nn.Module) -> Tensor:
        device = self.crew.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
            return model(tokens.to(device)).float()

    def _loss(self, batch: Batch) -> Tensor:
        """The sum over the tokens that are asked for."""
        tokens, targets = batch
        logits = self._logits(tokens, self.forward).flatten(0, 1)
        target = targets.to(logits.device).flatten()
        return functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Mean loss and accuracy over the validation batches, each judged by one process."""
        model = self.trained.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for i, (tokens, targets) in enumerate(self.source.validation()):
            if i % self.crew.world != self.crew.rank:
                continue
            logits, wanted = self._logits(tokens, model), targets.to(self.crew.device)
            asked = wanted != IGNORE
            logits, wanted = logits[asked], wanted[asked]
            loss = functional.cross_entropy(logits, wanted, reduction="sum")
            right = (logits.argmax(-1) == wanted).sum()
            sums += torch.tensor([loss.item(), right.item(), len(wanted)], dtype=torch.float64)
        model.train()
        loss, right, count = self.crew.total(sums).tolist()
        return loss / count, right / count

    def _save(self) -> None:
        if self.folder is None or not self.crew.leads:
            return
        if self.losses is not None:
            self.losses.sync()
        model, step = self.trained.model, self.trained.step
        checkpoint.save(self.folder, model, self.optimizer, step, self.config, self.source.sha256)
        self.saved = step

    def _demand_number(self, name: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        kept = f" The checkpoint of step {self.saved} is kept." if self.saved else ""
        raise TrainingError(
            f"the {name} is {value} at step {step}, with a learning rate of {rate(self.settings, step):.2g}: "
            f"lower training.learning_rate or training.clip, or warm up longer.{kept}"
        )


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop after this step; a second one stops at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
