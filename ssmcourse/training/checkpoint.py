"""Checkpoints: all that the next step depends on, in one file that is never half there.

That is the weights, the optimiser's averages and the number of the step; batches are functions of the step. A
checkpoint of another training, by configuration or by data, is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ssmcourse.training.config import Config
from ssmcourse.training.errors import TrainingError
from ssmcourse.training.files import write_atomically

NAME = "checkpoint.pt"
# Where and how often something is written down changes no figure.
FREE = {("training", "out"), ("training", "checkpoint_every")}


def save(
    folder: Path, model: nn.Module, optimizer: Optimizer, step: int, config: Config, data_sha256: str
) -> None:
    """Write the checkpoint of a step in the place of the one before."""
    state = {
        "step": step,
        "config": config.to_dict(),
        "data": data_sha256,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    write_atomically(folder / NAME, lambda file: torch.save(state, file))


def load(folder: Path, model: nn.Module, optimizer: Optimizer, config: Config, data_sha256: str) -> int:
    """Put the folder's checkpoint, if there is one, into model and optimiser. Returns its step, else 0.

    Raises:
        TrainingError: it is of another configuration or of other data, or cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, theirs, data = state["step"], state["config"], state["data"]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from None
    advice = "Name another folder (training.out), or remove this one to begin anew."
    for section, key, old, new in _differences(theirs, config.to_dict()):
        raise TrainingError(f"{path}: was made with {section}.{key} = {old!r}, not {new!r}. {advice}")
    if data != data_sha256:
        raise TrainingError(
            f"{path}: was made with other data (sha256 {data[:12]}, not {data_sha256[:12]}). {advice}"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return step


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    for section in new:
        mine, theirs = new[section], old.get(section, {})
        for key in {**mine, **theirs}:
            if (section, key) not in FREE and mine.get(key) != theirs.get(key):
                yield section, key, theirs.get(key), mine.get(key)
