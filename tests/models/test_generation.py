"""Generation: greedy against the whole forward pass, padding, draws and their distribution, stops, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_table import PATTERNS, VOCAB, draw_tokens, make, says
from torch import Tensor

from ssmcourse.models import LanguageModel
from ssmcourse.models.generation import Choice

NEW = 12
ROWS = 2000  # drawn at once


def one_by_one(model: LanguageModel, tokens: Tensor, count: int) -> Tensor:
    """The most likely token of the whole forward pass, every time anew."""
    for _ in range(count):
        best = model(tokens)[:, -1, :VOCAB].argmax(1)
        tokens = torch.cat([tokens, best[:, None]], 1)
    return tokens


@pytest.mark.parametrize("pattern", PATTERNS)
def test_greedy(pattern: str) -> None:
    model, tokens = make(pattern), draw_tokens(2, 5)
    new = model.generate(tokens, NEW)
    assert torch.equal(new, one_by_one(model, tokens, NEW))
    assert torch.equal(torch.stack(list(model.stream(tokens, NEW)), 1), new[:, 5:])


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 1}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_prompts_of_unequal_length(pattern: str, options: dict) -> None:
    """Padding on the left, on the right, and none; row 0 has the draws that a prompt alone has."""
    model = make(pattern)
    tokens = draw_tokens(3, 7)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, :4] = mask[1, 2:] = False
    new = model.generate(tokens, NEW, mask=mask, **options)[:, 7:]
    for row in range(3) if not options else [0]:
        alone = tokens[row, mask[row]][None]
        assert torch.equal(model.generate(alone, NEW, **options)[0, alone.shape[1] :], new[row])


def test_draws() -> None:
    model, tokens = make("M2"), draw_tokens(3, 5)
    options = {"temperature": 3.0}
    state = torch.random.get_rng_state()
    first = model.generate(tokens, NEW, seed=7, **options)
    assert torch.equal(first, model.generate(tokens, NEW, seed=7, **options))
    assert torch.equal(first[:2], model.generate(tokens[:2], NEW, seed=7, **options))
    others = torch.cat([tokens[:1], draw_tokens(2, 5, seed=9)])
    assert torch.equal(first[0], model.generate(others, NEW, seed=7, **options)[0])
    same_prompts = model.generate(tokens[:1].expand(3, 5), NEW, seed=7, **options)
    assert len({tuple(row) for row in same_prompts.tolist()}) == 3
    assert not torch.equal(first, model.generate(tokens, NEW, seed=8, **options))
    drawn = model.generate(tokens, NEW, **options)
    assert not torch.equal(drawn, model.generate(tokens, NEW, **options))
    assert torch.equal(state, torch.random.get_rng_state())


def frequencies(logits: Tensor, **options: Any) -> Tensor:
    rows = ROWS
    choose = Choice(rows, seed=3, **options)
    return torch.bincount(choose(logits.expand(rows, -1)), minlength=logits.shape[-1]) / rows


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"temperature": 1.0}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 1.0, "top_k": 2}, [1, 3]),
        ({"temperature": 1.0, "top_k": 3}, [0, 1, 3]),  # 0 and 4 are equal: the lower id
        ({"temperature": 1.0, "top_k": 100}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 1.0, "top_p": 0.39}, [3]),
        ({"temperature": 1.0, "top_p": 0.45}, [1, 3]),
        ({"temperature": 2.0, "top_p": 0.45}, [1, 3]),
        ({"temperature": 1.0, "top_p": 1.0}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 1.0, "top_p": 1e-9}, [3]),
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [1, 3]),  # of the two, 3 has 0.57
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.5}, [3]),
    ],
    ids=str,
)
def test_distribution(options: dict[str, Any], allowed: list[int]) -> None:
    p = torch.tensor([[0.1, 0.3, 0.05, 0.4, 0.1, 0.05]], dtype=torch.float64)
    expected = torch.zeros_like(p[0])
    expected[allowed] = p[0, allowed] ** (1 / options["temperature"])
    expected /= expected.sum()
    got = frequencies((p.log() + 5).float(), **options)
    assert ((got - expected).abs() <= 5 * (expected * (1 - expected) / ROWS).sqrt()).all()


def test_the_smallest_temperature_is_greedy() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]]).expand(50, 3)
    assert (Choice(50, 1e-300, seed=0)(logits) == 1).all()


@pytest.mark.parametrize("size", [3, 1000, 50_277])
def test_of_equal_logits_the_lowest_id(size: int) -> None:
    logits = torch.zeros(2, size)
    logits[1, [size // 2, size - 1]] = 1
    assert Choice(2)(logits).tolist() == [0, size // 2]
    assert set(Choice(2, 1.0, top_k=2, seed=0)(logits[:1].expand(2, -1)).tolist()) <= {0, 1}


@pytest.mark.parametrize("options", [{}, {"temperature": 5.0, "seed": 0}], ids=["greedy", "drawn"])
def test_padded_ids_never_come(options: dict) -> None:
    model = make("M")
    with torch.no_grad():
        model.lm_head.weight[VOCAB:] = 100 * model.backbone.norm_f.weight.abs()
        model.lm_head.weight[VOCAB + 1 :] *= -1
    new = model.generate(draw_tokens(4, 5), 50, **options)
    assert int(new.max()) < VOCAB
    assert int(model(new).argmax(-1).max()) >= VOCAB  # they would have


def test_stop_tokens() -> None:
    model, tokens = make("M2"), draw_tokens(4, 5)
    free = model.generate(tokens, 30, temperature=4.0, seed=5)[:, 5:].tolist()
    new = model.generate(tokens, 30, temperature=4.0, seed=5, stop=[2, 7])[:, 5:].tolist()
    ends = [next((i for i, token in enumerate(row) if token in (2, 7)), len(row) - 1) for row in free]
    assert len(set(ends)) > 1
    assert len(new[0]) == max(ends) + 1
    for row, stopped, end in zip(free, new, ends, strict=True):
        assert stopped == row[: end + 1] + [row[end]] * (len(stopped) - end - 1)
    assert model.generate(tokens[:1], 30, temperature=4.0, seed=5, stop=free[0][0]).shape == (1, 6)


def test_stop_sequences() -> None:
    model, tokens = make("M2"), draw_tokens(1, 5)
    free = model.generate(tokens, 40, temperature=4.0, seed=5)[0, 5:].tolist()
    for end in (1, 7, 20):
        wanted = free[end - 1 : end + 1]
        first = next(i for i in range(1, 40) if free[i - 1 : i + 1] == wanted)
        for stop in ([wanted], [[free[0]] * 9, tuple(wanted)]):
            new = model.generate(tokens, 40, temperature=4.0, seed=5, stop=stop)[0, 5:].tolist()
            assert new == free[: first + 1]


def test_a_stop_sequence_does_not_begin_in_the_prompt() -> None:
    model, tokens = make("M2"), draw_tokens(1, 5)
    free = model.generate(tokens, 8)[0, 5:].tolist()
    new = model.generate(tokens, 8, stop=[[int(tokens[0, -1]), free[0]]])[0, 5:].tolist()
    assert new[:2] == free[:2]


def test_tokens_are_ordinary() -> None:
    """They can be trained on, and no graph comes with them."""
    model, tokens = make("M2"), draw_tokens(2, 5)
    for new in [*model.stream(tokens, 3), model.generate(tokens, 3)]:
        assert not new.is_inference()
        assert new.dtype == torch.int64
    model(model.generate(tokens, 3)).sum().backward()


def test_memory_stays_the_same() -> None:
    """The cache has as many numbers after 60 tokens as after one, and no step leaves a graph."""
    model = make("M2", torch.float32)
    sizes, step = [], model.step_unchecked

    def watched(token: Tensor, cache: list) -> Any:
        logits, cache = step(token, cache)
        assert logits.is_inference()
        sizes.append(sum(value.untyped_storage().nbytes() for layer in cache for value in layer.values()))
        return logits, cache

    model.step_unchecked = watched  # pyright: ignore
    list(model.stream(draw_tokens(2, 5), 60))
    assert len(sizes) == 59
    assert len(set(sizes)) == 1


def test_no_more_steps_than_tokens() -> None:
    model, tokens = make("M", torch.float32), draw_tokens(2, 5)
    assert torch.equal(model.generate(tokens, 0), tokens)
    assert model.generate(tokens.int(), 2).dtype == torch.int32
    model.step_unchecked = None  # pyright: ignore
    assert model.generate(tokens, 1).shape == (2, 6)
    assert model.generate(draw_tokens(0, 5), 1).shape == (0, 6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_new_tokens": -1}, ["max_new_tokens", "-1"]),
        ({"max_new_tokens": 2.0}, ["max_new_tokens", "2.0"]),
        ({"tokens": torch.zeros(2, 0, dtype=torch.int64)}, ["tokens", "empty prompt"]),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, ["tokens", "(3,)"]),
        ({"tokens": torch.full((1, 3), VOCAB)}, ["tokens", "expected 0 to 10"]),
        ({"tokens": "text"}, ["tokens", "str"]),
        ({"temperature": -0.1}, ["temperature", "-0.1"]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"top_k": 0}, ["top_k", "got 0"]),
        ({"top_p": 0.0}, ["top_p", "0.0", "(0, 1]"]),
        ({"top_p": 1.5}, ["top_p", "1.5"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"stop": "end"}, ["stop", "'end'"]),
        ({"stop": [VOCAB]}, ["stop", "below 11"]),
        ({"stop": [[]]}, ["stop", "[[]]"]),
        ({"stop": [True]}, ["stop", "True"]),
        ({"stop": 2.0}, ["stop", "2.0"]),
        ({"mask": torch.tensor([[True] * 5, [False] * 5])}, ["mask", "row 1"]),
        ({"mask": torch.ones(2, 5)}, ["mask", "float32"]),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, ["mask", "(2, 4)"]),
    ],
    ids=str,
)
def test_what_is_refused(given: dict[str, Any], words: list[str]) -> None:
    model = make("M", torch.float32)
    with pytest.raises(ValueError) as error:
        model.stream(**{"tokens": draw_tokens(2, 5), "max_new_tokens": 3} | given)  # at the call, not later
    says(error, *words)


def test_damaged_weights() -> None:
    model = make("M", torch.float32)
    with torch.no_grad():
        model.backbone.norm_f.weight.fill_(torch.nan)
    for options in ({}, {"temperature": 1.0}):
        with pytest.raises(ValueError) as error:
            model.generate(draw_tokens(1, 3), 2, **options)
        says(error, "not finite")
