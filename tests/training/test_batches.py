"""Batches: functions of seed and step; validation: every byte once."""

import pytest
import torch

from ssmcourse.tasks.recall import AssociativeRecall
from ssmcourse.tasks.text import Corpus
from ssmcourse.training.data import TaskSource, TextSource

TEXT = Corpus("count", torch.arange(200, dtype=torch.uint8), torch.arange(100, 153, dtype=torch.uint8))


def sources(seed=0):
    return [TextSource(TEXT, 5, 8, seed), TaskSource(AssociativeRecall(pairs=3, keys=5, values=5), 5, seed)]


@pytest.mark.parametrize("which", [0, 1])
def test_a_batch_is_a_function_of_seed_and_step(which):
    first, second, other = sources()[which], sources()[which], sources(seed=1)[which]
    before = [first.batch(step) for step in (1, 2, 3)]
    for step in (3, 1):  # in any order, from a source that has drawn nothing before
        for mine, theirs in zip(second.batch(step), before[step - 1], strict=True):
            assert torch.equal(mine, theirs)
    assert not torch.equal(before[0][0], before[1][0])
    assert not torch.equal(first.batch(1)[0], other.batch(1)[0])


@pytest.mark.parametrize(("n", "b"), [(53, 3), (53, 100), (49, 2), (50, 2), (9, 1), (2, 1)])
def test_validation_predicts_every_byte_but_the_first_once(n, b):
    data = torch.arange(100, 100 + n, dtype=torch.uint8)
    source = TextSource(Corpus("count", TEXT.training, data), b, 8, 0)
    predicted = torch.cat([targets.flatten() for _, targets in source.validation()])
    assert sorted(predicted.tolist()) == data[1:].tolist()
    for tokens, targets in source.validation():
        assert torch.equal(targets, tokens + 1)
        assert tokens.shape[0] <= b


def test_validation_of_a_task_is_always_the_same_and_not_a_training_batch():
    source = sources()[1]
    first, second = list(source.validation()), list(source.validation())
    assert sum(len(tokens) for tokens, _ in first) == 512
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], source.batch(0)[0])


def test_the_hash_tells_data_from_data():
    a, b = sources()
    again_a, again_b = sources()
    assert (a.sha256, b.sha256) == (again_a.sha256, again_b.sha256)
    assert a.sha256 == TEXT.sha256
    other = TaskSource(AssociativeRecall(pairs=3, keys=5, values=6), 5, 0)
    assert len({a.sha256, b.sha256, other.sha256}) == 3
