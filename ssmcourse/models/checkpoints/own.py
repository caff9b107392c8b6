"""The layout of this library: `LanguageModelConfig.to_dict` in config.json, our own names in model.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssmcourse.models.config import LanguageModelConfig

WEIGHTS = "model.safetensors"
DEPTH = "pattern"  # the key that says how many layers there are: its letters
_MARK = {"layout": "ssmcourse", "version": 1}


def matches(values: Mapping[str, Any]) -> bool:
    return values.get("layout") == _MARK["layout"]


def read_config(values: Mapping[str, Any]) -> LanguageModelConfig:
    if values.get("version") != _MARK["version"]:
        raise ValueError(f"version: got {values.get('version')!r}, expected {_MARK['version']}")
    return LanguageModelConfig.from_dict({key: value for key, value in values.items() if key not in _MARK})


def write_config(config: LanguageModelConfig) -> dict[str, Any]:
    return _MARK | config.to_dict()


def their_name(config: LanguageModelConfig, name: str) -> str:
    return name


def rows(config: LanguageModelConfig) -> int:
    return config.padded_vocab_size
