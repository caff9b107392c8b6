"""LanguageModelConfig and layer_pattern: the published pattern, counts and spacing, round trips, errors."""

from __future__ import annotations

import json

import pytest
from model_table import says

from ssmcourse.models import LanguageModelConfig, layer_pattern

PUBLISHED = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"  # Waleffe et al. 2024
RATIOS = [(a / 20, m / 20) for a in range(0, 8) for m in range(0, 12)]


def test_the_published_hybrid() -> None:
    assert layer_pattern(56, 0.08, 0.5, mixer="M") == PUBLISHED
    assert layer_pattern(56, 0.08, 0.5) == PUBLISHED.replace("M", "2")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 24, 56, 65])
def test_counts_and_spacing(n: int) -> None:
    for attention_ratio, mlp_ratio in RATIOS:
        attention, mlps = round(n * attention_ratio), round(n * mlp_ratio)
        if attention + mlps > n:
            continue
        pattern = layer_pattern(n, attention_ratio, mlp_ratio)
        assert len(pattern) == n
        assert (pattern.count("*"), pattern.count("-")) == (attention, mlps)
        sections = [len(section) for section in pattern.split("*")]
        if attention and attention <= n // 3:
            assert min(sections) > 0
            assert max(sections) - min(sections) <= 1
        between = [len(run) for run in pattern.replace("*", "").split("-")]  # mixers before each MLP
        if mlps:
            assert max(between[:-1]) - min(between[:-1]) <= 1
            assert between[-1] <= max(between[:-1])  # as late as may be


def test_only_mixers() -> None:
    assert layer_pattern(4, 0, 0, mixer="M") == "MMMM"
    assert layer_pattern(4, 0, 0.5) == "2-2-"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0.1, 0.1), ["n_layers", "got 0"]),
        ((4, 1.5, 0.1), ["attention_ratio", "1.5", "[0, 1]"]),
        ((4, 0.1, -0.5), ["mlp_ratio", "-0.5"]),
        ((4, 0.75, 0.75), ["mlp_ratio", "at most 4 together"]),
        ((4, 0.1, 0.1, "*"), ["mixer", "'*'"]),
        ((4, 0.1, 0.1, "X"), ["mixer", "'X'"]),
    ],
)
def test_patterns_that_are_none(arguments: tuple, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        layer_pattern(*arguments)
    says(error, *words)


def test_round_trip() -> None:
    config = LanguageModelConfig(
        "2-*", 16, 100, tie_embeddings=False, options={"2": {"dt_limit": (0.0, 0.5)}, "*": {"num_heads": 2}}
    )
    assert LanguageModelConfig.from_dict(config.to_dict()) == config
    assert LanguageModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.arguments("2") | {"dt_limit": (0.0, 0.5), "d_state": 128} == config.arguments("2")


def test_the_options_are_a_copy() -> None:
    given = {"M": {"d_state": 4}}
    config = LanguageModelConfig("M", 8, 8, options=given)
    given["M"]["d_state"] = 5
    config.to_dict()["options"]["M"]["d_state"] = 6
    assert config.options["M"]["d_state"] == 4


@pytest.mark.parametrize(
    ("size", "multiple", "rows"), [(11, 8, 16), (16, 8, 16), (50277, 16, 50288), (7, 1, 7)]
)
def test_padded_vocabulary(size: int, multiple: int, rows: int) -> None:
    assert LanguageModelConfig("M", 8, size, pad_vocab_size_multiple=multiple).padded_vocab_size == rows


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pattern": ""}, ["pattern", "''"]),
        ({"pattern": None}, ["pattern", "None"]),
        ({"pattern": "MMX"}, ["pattern", "'X' at place 2"]),
        ({"d_model": 0}, ["d_model", "got 0"]),
        ({"d_model": 8.0}, ["d_model", "8.0"]),
        ({"vocab_size": -1}, ["vocab_size", "-1"]),
        ({"pad_vocab_size_multiple": True}, ["pad_vocab_size_multiple", "True"]),
        ({"tie_embeddings": 1}, ["tie_embeddings", "got 1"]),
        ({"residual_in_fp32": "yes"}, ["residual_in_fp32", "'yes'"]),
        ({"norm_eps": -1.0}, ["norm_eps", "-1.0"]),
        ({"options": []}, ["options", "[]"]),
        ({"options": {"X": {}}}, ["options", "'X'"]),
        ({"options": {"M": 4}}, ["options['M']", "got 4"]),
        ({"options": {"M": {"headdim": 4}}}, ["options['M']", "headdim", "Mamba"]),
        ({"options": {"M": {"device": "cpu"}}}, ["options['M']", "device"]),
        ({"pattern": "M*"}, ["options['*']", "no num_heads"]),
    ],
    ids=str,
)
def test_configs_that_are_none(given: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        LanguageModelConfig(**{"pattern": "MM", "d_model": 8, "vocab_size": 8} | given)
    says(error, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"n_layer": 2, "width": 3}, ["n_layer, width", "pattern"]), ({"d_model": None}, ["d_model"])],
)
def test_dictionaries_that_are_none(change: dict, words: list[str]) -> None:
    values = LanguageModelConfig("M", 8, 8).to_dict() | change
    with pytest.raises(ValueError) as error:
        LanguageModelConfig.from_dict({name: value for name, value in values.items() if value is not None})
    says(error, *words)
