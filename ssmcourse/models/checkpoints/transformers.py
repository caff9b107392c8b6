"""The layout of the `transformers` library, model_type mamba and mamba2: mamba-130m-hf, Mamba-Codestral-7B.

What follows from a configuration is what its code computes (version 5, models/mamba and models/mamba2). Some keys
that published files carry are read by none of it: `norm_before_gate` is true in Mamba-Codestral's, and the gate comes
first all the same. Those that only say how training began or how text is generated are without effect here too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from ssmcourse.arguments import integer, one_of, shown
from ssmcourse.models.config import LanguageModelConfig

WEIGHTS = "model.safetensors"
DEPTH = "num_hidden_layers"  # the key that says how many layers there are
LETTERS = {"mamba": "M", "mamba2": "2"}
ARCHITECTURES = {"mamba": "MambaForCausalLM", "mamba2": "Mamba2ForCausalLM"}

# their name -> the layer's argument
COMMON = {
    "state_size": "d_state",
    "conv_kernel": "d_conv",
    "expand": "expand",
    "use_bias": "bias",
    "use_conv_bias": "conv_bias",
}
OPTIONS = {
    "mamba": COMMON | {"time_step_rank": "dt_rank"},
    "mamba2": COMMON
    | {
        "head_dim": "headdim",
        "n_groups": "ngroups",
        "chunk_size": "chunk_size",
        "time_step_limit": "dt_limit",
    },
}
# Where a file says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mamba": {
        "vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 32, "state_size": 16, "conv_kernel": 4,
        "expand": 2, "use_bias": False, "use_conv_bias": True, "time_step_rank": "auto", "tie_word_embeddings": True,
    },
    "mamba2": {
        "vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 64, "state_size": 128, "conv_kernel": 4,
        "expand": 2, "use_bias": False, "use_conv_bias": True, "head_dim": 64, "num_heads": 128, "n_groups": 8,
        "chunk_size": 256, "time_step_limit": [0.0, math.inf], "tie_word_embeddings": False,
    },
}  # fmt: skip
for _defaults in DEFAULTS.values():
    _defaults |= {"layer_norm_epsilon": 1e-5, "residual_in_fp32": True, "hidden_act": "silu"}
# Arguments of our layers that say how training begins: nothing to write, nothing lost.
INITIAL = {
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "conv_init", "A_init_range",
    "use_fast_path", "use_mem_eff_path",
}  # fmt: skip
# What else published files say, without effect on what is computed.
IGNORED = {
    "model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "rescale_prenorm_residual", "use_mambapy",
    "use_associative_scan", "time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme",
    "time_step_floor", "intermediate_size", "norm_before_gate", "fused_add_norm", "d_inner", "d_model", "n_layer",
    "pad_vocab_size_multiple", "ssm_cfg", "num_heads", "rms_norm", "time_step_rank", "is_decoder", "output_hidden_states",
    "output_attentions", "return_dict", "problem_type", "id2label", "label2id", "chunk_size_feed_forward",
}  # fmt: skip


def matches(values: Mapping[str, Any]) -> bool:
    return values.get("model_type") in LETTERS


def read_config(values: Mapping[str, Any]) -> LanguageModelConfig:
    kind = values["model_type"]
    given = DEFAULTS[kind] | {name: value for name, value in values.items() if value is not None}
    _refuse(given, kind)
    if unknown := [name for name in values if name not in IGNORED and name not in DEFAULTS[kind]]:
        warnings.warn(f"config.json: not read: {', '.join(unknown)}", stacklevel=2)
    layers = integer("num_hidden_layers", given["num_hidden_layers"], 1)
    if kind == "mamba2" and given["num_heads"] * given["head_dim"] != int(
        given["expand"] * given["hidden_size"]
    ):
        raise ValueError(
            f"num_heads: got {given['num_heads']} of head_dim {given['head_dim']}, expected {given['expand']} * "
            f"{given['hidden_size']} channels together"
        )
    return LanguageModelConfig(
        LETTERS[kind] * layers,
        d_model=given["hidden_size"],
        vocab_size=given["vocab_size"],
        pad_vocab_size_multiple=1,
        tie_embeddings=given["tie_word_embeddings"],
        norm_eps=given["layer_norm_epsilon"],
        residual_in_fp32=given["residual_in_fp32"],
        options={LETTERS[kind]: {ours: given[theirs] for theirs, ours in OPTIONS[kind].items()}},
    )


def write_config(config: LanguageModelConfig) -> dict[str, Any]:
    """Its config.json. ValueError if transformers has no such model.

    The tokens that begin and end a text are not known here and left open.
    """
    letter = config.pattern[0]
    kind = next((kind for kind, known in LETTERS.items() if known == letter), None)
    if kind is None or set(config.pattern) != {letter}:
        raise ValueError(
            f"pattern: got {shown(config.pattern)}; the layout transformers has Mamba layers only, or Mamba-2 only"
        )
    arguments = config.arguments(letter)
    _refuse_to_write(config, kind, arguments)
    written = {theirs: arguments[ours] for theirs, ours in OPTIONS[kind].items()}
    if kind == "mamba2":
        written["num_heads"] = int(arguments["expand"] * config.d_model) // arguments["headdim"]
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.pattern),
        "layer_norm_epsilon": config.norm_eps,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **written,
    }


def their_name(config: LanguageModelConfig, name: str) -> str:
    return name.replace("backbone.embedding.", "backbone.embeddings.")


def rows(config: LanguageModelConfig) -> int:
    """transformers pads no embedding: the rows that no token has are left out."""
    return config.vocab_size


def _refuse(given: Mapping[str, Any], kind: str) -> None:
    """What this library does not compute."""
    for name in ("num_heads", "head_dim", "hidden_size", "expand"):
        if name in given:
            integer(name, given[name], 1)
    one_of("hidden_act", given["hidden_act"], ("silu", "swish"))
    architectures = given.get("architectures", [ARCHITECTURES[kind]])
    if architectures != [ARCHITECTURES[kind]]:
        raise ValueError(f"architectures: got {shown(architectures)}, expected [{ARCHITECTURES[kind]!r}]")
    if "quantization_config" in given:
        raise ValueError("quantization_config: got a quantised model, expected floating numbers")
    if given.get("rms_norm", True) is not True:
        raise ValueError(f"rms_norm: got {shown(given['rms_norm'])}, expected true")
    if kind == "mamba2" and given["layer_norm_epsilon"] != 1e-5:
        raise ValueError(
            f"layer_norm_epsilon: got {shown(given['layer_norm_epsilon'])}, expected 1e-05, as the norm inside Mamba2 has"
        )


def _refuse_to_write(config: LanguageModelConfig, kind: str, arguments: Mapping[str, Any]) -> None:
    """What transformers does not compute: options of a layer that it has no name for and that change something."""
    own = set(OPTIONS[kind].values()) | INITIAL
    plain = LanguageModelConfig(LETTERS[kind], config.d_model, config.vocab_size).arguments(LETTERS[kind])
    for name, value in arguments.items():
        if name not in own and value != plain[name]:
            raise ValueError(
                f"options: {name}: got {shown(value)}; the layout transformers has {plain[name]} always"
            )
    if kind == "mamba2" and config.norm_eps != 1e-5:
        raise ValueError(f"norm_eps: got {config.norm_eps}; the layout transformers needs 1e-05 for Mamba-2")
