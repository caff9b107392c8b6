"""The learning rate: a line up, half a cosine down, and what a group can take."""

import math

import pytest
import torch

from ssmcourse.training import TrainingConfig
from ssmcourse.training.schedule import rate, set_rates

SETTINGS = TrainingConfig(steps=110, warmup=10, learning_rate=2.0, min_learning_rate=0.5)


def by_hand(step, peak, lowest):
    if step <= 10:
        return peak * step / 10
    return lowest + (peak - lowest) * math.cos(math.pi * (step - 10) / 200) ** 2  # (1 + cos 2a) / 2


def test_up_and_down():
    for step in range(1, 111):
        assert rate(SETTINGS, step) == pytest.approx(by_hand(step, 2.0, 0.5), rel=1e-12)
    assert rate(SETTINGS, 10) == 2.0
    assert rate(SETTINGS, 110) == 0.5


def test_a_group_with_a_largest_rate_of_its_own():
    for step in (1, 10, 50, 110):
        assert rate(SETTINGS, step, 1.0) == pytest.approx(by_hand(step, 1.0, 0.5), rel=1e-12)
        assert rate(SETTINGS, step, 0.1) == pytest.approx(by_hand(step, 0.1, 0.1), rel=1e-12)
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "max_lr": 0.1}, {"params": weights[1:]}])
    set_rates(optimizer, SETTINGS, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 2.0]


def test_no_warm_up_and_nothing_but_warm_up():
    assert rate(TrainingConfig(steps=2, warmup=0, learning_rate=1.0), 1) == pytest.approx(0.5)
    assert rate(TrainingConfig(steps=4, warmup=4, learning_rate=1.0), 4) == 1.0
    assert rate(TrainingConfig(steps=4, warmup=8, learning_rate=1.0), 4) == 0.5
