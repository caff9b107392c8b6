"""The layout of mamba_ssm (github.com/state-spaces/mamba): mamba-130m to mamba2-2.7b, and hybrids with attention.

A block there is a mixer and, with `d_intermediate`, an MLP, each behind a norm: `norm`, `mixer`, `norm2`, `mlp`. Here
these are two layers, so layer 5 may be the MLP of block 2. The names within a mixer are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ssmcourse.arguments import integer, one_of, shown
from ssmcourse.models.config import LanguageModelConfig

WEIGHTS = "pytorch_model.bin"
DEPTH = "n_layer"  # the key that says how many layers there are
EPS = 1e-5  # of all norms: configurations there do not say it
LETTERS = {"Mamba1": "M", "Mamba2": "2"}
DEFAULTS: dict[str, Any] = {
    "d_intermediate": 0,
    "ssm_cfg": {},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,  # computes the same, faster
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
SIZES = ("d_model", "n_layer", "vocab_size")


def matches(values: Mapping[str, Any]) -> bool:
    return "d_model" in values and "n_layer" in values and "hidden_size" not in values


def read_config(values: Mapping[str, Any]) -> LanguageModelConfig:
    for name in values:
        if name not in DEFAULTS and name not in SIZES:
            raise ValueError(f"{name}: got an option that mamba_ssm does not have")
    for name in SIZES:
        integer(name, values.get(name), 1)
    given = DEFAULTS | {name: value for name, value in values.items() if value is not None}
    if given["rms_norm"] is not True:
        raise ValueError(
            f"rms_norm: got {shown(given['rms_norm'])}, expected true: LayerNorm is not computed here"
        )
    mlp = integer("d_intermediate", given["d_intermediate"], 0)
    ssm, attention = _mapping(given, "ssm_cfg"), _mapping(given, "attn_cfg")
    letter = _letter(ssm.pop("layer", "Mamba1"))
    where = _attention_layers(given["attn_layer_idx"], given["n_layer"])
    if where and attention.pop("causal", False) is not True:
        raise ValueError(
            "attn_cfg: causal: expected true: attention that sees what follows is not computed here"
        )
    blocks = ["*" if i in where else letter for i in range(given["n_layer"])]
    pattern = "".join(block + "-" * (mlp > 0) for block in blocks)
    options = {letter: ssm, "*": attention, "-": {"hidden_features": mlp}}
    return LanguageModelConfig(
        pattern,
        d_model=given["d_model"],
        vocab_size=given["vocab_size"],
        pad_vocab_size_multiple=given["pad_vocab_size_multiple"],
        tie_embeddings=given["tie_embeddings"],
        norm_eps=EPS,
        residual_in_fp32=given["residual_in_fp32"],
        options={key: value for key, value in options.items() if key in pattern},
    )


def write_config(config: LanguageModelConfig) -> dict[str, Any]:
    """Its config.json. ValueError if mamba_ssm has no such model."""
    mixers = [letter for letter in config.pattern if letter != "-"]
    kinds = set(mixers) - {"*"}
    regular = config.pattern in ("".join(mixers), "".join(f"{letter}-" for letter in mixers))
    if not regular or not mixers or kinds not in ({"M"}, {"2"}, set()):
        raise ValueError(
            f"pattern: got {shown(config.pattern)}; the layout state-spaces has Mamba or Mamba-2 with some attention, "
            "and an MLP after every one or none"
        )
    if config.norm_eps != EPS:
        raise ValueError(f"norm_eps: got {config.norm_eps}; the layout state-spaces has {EPS} always")
    letter = "".join(kinds) or "M"
    kind = next(name for name, known in LETTERS.items() if known == letter)
    attention = [i for i, mixer in enumerate(mixers) if mixer == "*"]
    return {
        "d_model": config.d_model,
        "d_intermediate": _hidden_features(config) if "-" in config.pattern else 0,
        "n_layer": len(mixers),
        "vocab_size": config.vocab_size,
        "ssm_cfg": {"layer": kind, **config.options.get(letter, {})},
        "attn_layer_idx": attention,
        "attn_cfg": {"causal": True, **config.options["*"]} if attention else {},
        "rms_norm": True,
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": config.pad_vocab_size_multiple,
        "tie_embeddings": config.tie_embeddings,
    }


def their_name(config: LanguageModelConfig, name: str) -> str:
    found = re.fullmatch(r"backbone\.layers\.(\d+)\.(norm|mixer)\.(.+)", name)
    if not found or "-" not in config.pattern:
        return name
    block, is_mlp = divmod(int(found[1]), 2)
    part = {"norm": "norm2", "mixer": "mlp"}[found[2]] if is_mlp else found[2]
    return f"backbone.layers.{block}.{part}.{found[3]}"


def rows(config: LanguageModelConfig) -> int:
    return config.padded_vocab_size


def _hidden_features(config: LanguageModelConfig) -> int:
    options = config.options.get("-", {})
    if extra := set(options) - {"hidden_features"}:
        raise ValueError(
            f"options['-']: got {', '.join(sorted(extra))}; the layout state-spaces has hidden_features only"
        )
    return options.get("hidden_features") or int(8 * config.d_model / 3)


def _letter(kind: Any) -> str:
    one_of("ssm_cfg: layer", kind, tuple(LETTERS))
    return LETTERS[kind]


def _mapping(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(given[name], Mapping):
        raise ValueError(f"{name}: got {shown(given[name])}, expected an object")
    return dict(given[name])


def _attention_layers(value: Any, count: int) -> list[int]:
    if not isinstance(value, list):
        raise ValueError(f"attn_layer_idx: got {shown(value)}, expected a list")
    for place in value:
        if integer("attn_layer_idx", place, 0, f"layers from 0 to {count - 1}") >= count:
            raise ValueError(f"attn_layer_idx: got {place}, expected layers from 0 to {count - 1}")
    return value
