"""The learning rate of every step: up in a line, down in half a cosine (lesson 11)."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from ssmcourse.training.config import TrainingConfig


def rate(config: TrainingConfig, step: int, largest: float = math.inf) -> float:
    """The learning rate at a step, counted from 1.

    Args:
        largest: what a parameter group can take ("max_lr"): the whole curve is lowered to it.
    """
    peak = min(config.learning_rate, largest)
    lowest = min(config.min_learning_rate, peak)
    if step <= config.warmup:
        return peak * step / config.warmup
    passed = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * passed)) / 2


def set_rates(optimizer: Optimizer, config: TrainingConfig, step: int) -> None:
    """Give every parameter group its rate for this step."""
    for group in optimizer.param_groups:
        group["lr"] = rate(config, step, group.get("max_lr", math.inf))
