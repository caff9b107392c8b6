"""The synthetic tasks, each against a loop that plays it by hand."""

import pytest
import torch

from ssmcourse.tasks.copying import Copying, SelectiveCopying
from ssmcourse.tasks.induction import InductionHeads
from ssmcourse.tasks.phonebook import Phonebook
from ssmcourse.tasks.recall import AssociativeRecall, MultiQueryRecall
from ssmcourse.tasks.task import IGNORE, accuracy

TASKS = [
    Copying(),
    Copying(symbols=3, kept=1, delay=1),
    SelectiveCopying(),
    SelectiveCopying(symbols=2, kept=5, length_before=5),
    InductionHeads(),
    InductionHeads(symbols=2, length_before=2),
    AssociativeRecall(),
    AssociativeRecall(pairs=1, keys=1, values=3),
    AssociativeRecall(pairs=40, keys=50, values=7),
    MultiQueryRecall(),
    MultiQueryRecall(pairs=4, keys=4, values=2, length_after=4),
    Phonebook(),
    Phonebook(people=8, names=40, symbols=40, digits=1),
    Phonebook(people=5, names=6, symbols=3, digits=2, queries=5),
]


def copying_by_hand(task, row):
    before = row[: task.length - task.kept]
    said = [t for t in before if t < task.symbols]
    return {task.length - task.kept + i: symbol for i, symbol in enumerate(said)}


def induction_by_hand(task, row):
    return {len(row) - 1: row[row.index(task.symbols) + 1]}


def recall_by_hand(task, row):
    book = dict(zip(row[: 2 * task.pairs : 2], row[1 : 2 * task.pairs : 2], strict=True))
    return {i: book[t] for i, t in enumerate(row) if i >= 2 * task.pairs and t in book}


def phonebook_by_hand(task, row):
    mark = row.index(task.names + task.symbols)
    book = {}
    for i in range(0, mark, 1 + task.digits):
        book[row[i]] = row[i + 1 : i + 1 + task.digits]
    answers = {}
    for i in range(mark + 1, len(row), 1 + task.digits):
        for j, digit in enumerate(book[row[i]]):
            answers[i + j] = digit
    return answers


BY_HAND = {
    Copying: copying_by_hand,
    SelectiveCopying: copying_by_hand,
    InductionHeads: induction_by_hand,
    AssociativeRecall: recall_by_hand,
    MultiQueryRecall: recall_by_hand,
    Phonebook: phonebook_by_hand,
}


def sample(task, seed=0, b=64):
    return task.sample(b, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("task", TASKS, ids=repr)
class TestEveryTask:
    def test_targets_are_what_a_loop_finds(self, task):
        tokens, targets = sample(task)
        for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
            assert {i: t for i, t in enumerate(wanted) if t != IGNORE} == BY_HAND[type(task)](task, row)

    def test_the_oracle_is_always_right(self, task):
        tokens, targets = sample(task)
        assert torch.equal(task.solve(tokens), targets)
        logits = torch.nn.functional.one_hot(task.solve(tokens).clamp(min=0), task.vocab_size)
        assert accuracy(logits, targets) == 1.0

    def test_shapes_and_range(self, task):
        tokens, targets = sample(task)
        assert tokens.shape == targets.shape == (64, task.length)
        assert tokens.dtype == targets.dtype == torch.int64
        assert tokens.min() >= 0
        assert tokens.max() < task.vocab_size
        assert targets.max() < task.vocab_size
        per_row = (targets != IGNORE).sum(1)
        assert (per_row == per_row[0]).all()

    def test_the_seed_decides_and_the_global_one_is_left_alone(self, task):
        before = torch.random.get_rng_state()
        first, second, other = sample(task), sample(task), sample(task, seed=1)
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        assert not torch.equal(first[0], other[0])

    def test_guessing_comes_to_the_level_of_chance(self, task):
        """An answer drawn from those that occur is right as often as `chance` says."""
        _, targets = sample(task, b=4096)
        answers = targets[targets != IGNORE]
        counts = torch.bincount(answers).double()
        assert (counts > 0).sum() == round(1 / task.chance)
        most = counts.max() / counts.sum()  # the best that one can do without looking
        n = len(answers)
        assert abs(most - task.chance) < 5 * (task.chance / n) ** 0.5


def test_the_sizes_of_the_papers():
    assert AssociativeRecall(pairs=10, keys=10, values=10).length == 21
    assert InductionHeads(symbols=15, length_before=255).length == 256
    assert InductionHeads().vocab_size == 16


def test_selective_copying_has_its_symbols_at_places_of_their_own():
    tokens, _ = sample(SelectiveCopying(), b=2000)
    places = (tokens[:, :54] < 8).double().mean(0)
    assert (places - 6 / 54).abs().max() < 5 * (6 / 54 / 2000) ** 0.5
    fixed, _ = sample(Copying(), b=2000)
    assert (fixed[:, :6] < 8).all()


def test_accuracy_counts_only_what_is_asked():
    logits = torch.tensor([[[0.0, 1], [1, 0], [1, 0], [0, 1]]])
    assert accuracy(logits, torch.tensor([[1, 1, IGNORE, IGNORE]])) == 0.5
    assert accuracy(logits, torch.tensor([[IGNORE, IGNORE, 0, IGNORE]])) == 1.0
    with pytest.raises(ValueError, match="targets: got -100 everywhere"):
        accuracy(logits, torch.full((1, 4), IGNORE))
    with pytest.raises(ValueError, match=r"targets: got shape \(4,\), expected \(1, 4\), as in logits"):
        accuracy(logits, torch.ones(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copying(kept=0), "kept: got 0, expected an integer of 1 or more"),
        (lambda: Copying(delay=1.5), "delay: got 1.5, expected an integer"),
        (lambda: SelectiveCopying(kept=6, length_before=5), "length_before: got 5, expected room for the 6"),
        (lambda: InductionHeads(length_before=1), "length_before: got 1, expected 2 or more"),
        (
            lambda: AssociativeRecall(pairs=11),
            "pairs: got 11, expected at most as many as there are keys, 10",
        ),
        (lambda: MultiQueryRecall(pairs=9, length_after=8), "length_after: got 8, expected room for the 9"),
        (lambda: Phonebook(people=41), "people: got 41, expected at most as many as there are names, 40"),
        (lambda: Phonebook(queries=9), "queries: got 9, expected at most as many as there are people, 8"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
