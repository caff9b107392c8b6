"""Files that are damaged, hostile or of another kind: one clear line, and nothing done."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_table import make, says
from safetensors.torch import load_file, save_file

from ssmcourse.models import LanguageModel

NORM = "backbone.norm_f.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint in our own layout."""
    make("MM", torch.float32, tie_embeddings=False).save_pretrained(tmp_path / "a")
    return tmp_path / "a"


def refused(path: Path, *words: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as raised:
        LanguageModel.from_pretrained(path)
    says(raised, *words)


def change_config(path: Path, **values: Any) -> None:
    """Change keys of the config.json; None takes one out."""
    known = json.loads((path / "config.json").read_text()) | values
    kept = {name: value for name, value in known.items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept))


def test_nothing_there(saved: Path, tmp_path: Path) -> None:
    refused(
        tmp_path / "state-spaces" / "mamba-130m", "mamba-130m", "no such", "local", error=FileNotFoundError
    )
    (saved / "config.json").rename(tmp_path / "config.json")
    refused(saved, "config.json", "no such file", error=FileNotFoundError)
    (tmp_path / "config.json").rename(saved / "config.json")
    (saved / "model.safetensors").rename(saved / "weights.npz")
    refused(saved, "no weights", "model.safetensors", error=FileNotFoundError)
    refused(saved / "weights.npz", "weights.npz", "'.npz'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["not JSON"]),
        (b"{", ["not JSON"]),
        (b"\xff\xfe\x00", ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[1, 2]", ["[1, 2]", "a JSON object"]),
        (b"{}", ["keys none"]),
        (b'{"model_type": "llama", "hidden_size": 8}', ["model_type", "'llama'", "mamba2"]),
        (b'{"weights": 1}', ["weights", "state-spaces"]),
        (b'{"layout": "ssmcourse", "version": 9}', ["version", "got 9"]),
        (b'{"layout": "ssmcourse", "version": 1}', ["no pattern, d_model, vocab_size"]),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_configs(text: bytes, words: list[str], saved: Path) -> None:
    (saved / "config.json").write_bytes(text)
    refused(saved, str(saved / "config.json"), *words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pattern": "MX"}, ["'X'"]),
        ({"d_model": 10**30}, ["config.json"]),
        ({"depth": 3}, ["depth"]),
        ({"options": {"M": {"d_state": "x"}}}, ["d_state", "'x'"]),
    ],
    ids=str,
)
def test_options_of_ours(values: dict, words: list[str], saved: Path) -> None:
    change_config(saved, **values)
    refused(saved, "config.json", *words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_layer": 10**9}, ["n_layer", "1000000000", "tensors"]),
        ({"n_layer": "2"}, ["n_layer", "'2'"]),
        ({"n_layer": 2.0}, ["n_layer", "2.0"]),
        ({"vocab_size": None}, ["vocab_size", "None"]),
        ({"rms_norm": False}, ["rms_norm", "LayerNorm"]),
        ({"ssm_cfg": {"layer": "Mamba3"}}, ["ssm_cfg: layer", "'Mamba3'"]),
        ({"ssm_cfg": {"d_stat": 4}}, ["d_stat"]),
        ({"ssm_cfg": []}, ["ssm_cfg", "[]"]),
        ({"attn_layer_idx": [0], "attn_cfg": {"num_heads": 2}}, ["causal"]),
        ({"attn_layer_idx": [5], "attn_cfg": {"num_heads": 2, "causal": True}}, ["attn_layer_idx", "got 5"]),
        ({"attn_layer_idx": 3}, ["attn_layer_idx", "got 3"]),
        ({"bidirectional": True}, ["bidirectional"]),
        ({"d_intermediate": -1}, ["d_intermediate", "-1"]),
    ],
    ids=str,
)
def test_options_of_state_spaces(values: dict, words: list[str], tmp_path: Path) -> None:
    make("MM", torch.float32).save_pretrained(tmp_path / "a", layout="state-spaces")
    change_config(tmp_path / "a", **values)
    refused(tmp_path / "a", "config.json", *words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "1000000000"]),
        ({"architectures": ["MambaModel"]}, ["architectures", "Mamba2ForCausalLM"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"layer_norm_epsilon": 1e-6}, ["layer_norm_epsilon", "1e-06"]),
        ({"num_heads": 3}, ["num_heads", "got 3"]),
        ({"num_heads": "4"}, ["num_heads", "'4'"]),
        ({"rms_norm": False}, ["rms_norm", "False"]),
        ({"time_step_limit": [1.0, 0.5]}, ["dt_limit", "(1.0, 0.5)"]),
        ({"hidden_size": [8]}, ["hidden_size", "[8]"]),
    ],
    ids=str,
)
def test_options_of_transformers(values: dict, words: list[str], tmp_path: Path) -> None:
    make("22", torch.float32).save_pretrained(tmp_path / "a", layout="transformers")
    change_config(tmp_path / "a", **values)
    refused(tmp_path / "a", "config.json", *words)


def test_an_option_that_is_not_known_is_named(tmp_path: Path) -> None:
    make("22", torch.float32).save_pretrained(tmp_path / "a", layout="transformers")
    change_config(tmp_path / "a", new_trick=True)
    with pytest.warns(UserWarning, match="new_trick"):
        LanguageModel.from_pretrained(tmp_path / "a")


def keep(name: str, value: Any) -> Callable[[dict], Any]:
    return lambda tensors: tensors | {name: value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {n: v for n, v in t.items() if n != NORM}, ["1 missing", NORM]),
        (
            lambda t: {n: v for n, v in t.items() if ".layers.1." not in n},
            ["10 missing", "layers.1.norm.weight"],
        ),
        (keep("extra", torch.zeros(2)), ["1 not known", "extra"]),
        (keep(NORM, torch.zeros(9)), ["1 of another shape", NORM, "(9,) where (8,) is expected"]),
        (
            lambda t: {n.replace("layers.1", "layers.2"): v for n, v in t.items()},
            ["10 missing", "10 not known", "layers.2"],
        ),
        (keep(NORM, torch.zeros(8, dtype=torch.int8)), [NORM, "int8"]),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_tensors(change: Callable, words: list[str], ending: str, saved: Path) -> None:
    file = saved / "model.safetensors"
    tensors = change(load_file(file))
    if ending == "safetensors":
        save_file(tensors, file)
    else:
        file.unlink()
        torch.save(tensors, saved / "pytorch_model.bin")
    refused(saved, ending, *words)


def test_a_head_that_is_not_tied(saved: Path) -> None:
    change_config(saved, tie_embeddings=True)
    refused(saved, "lm_head.weight", "is not backbone.embedding.weight")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_cut_off(name: str, part: float, legacy: bool, saved: Path) -> None:
    file = saved / name
    if file.suffix == ".bin":
        torch.save(load_file(saved / "model.safetensors"), file, _use_new_zipfile_serialization=not legacy)
        (saved / "model.safetensors").unlink()
    os.truncate(file, int(part * file.stat().st_size))
    refused(saved, str(file), "damaged")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_something_else(name: str, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    refused(saved, name, "damaged")


class Shell:
    """Unpickled, it would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_not_run(form: str, saved: Path, tmp_path: Path) -> None:
    file = saved / "pytorch_model.bin"
    tensors = load_file(saved / "model.safetensors") | {"more": Shell(tmp_path / "ran")}
    (saved / "model.safetensors").unlink()
    if form == "pickle":
        file.write_bytes(pickle.dumps({"more": Shell(tmp_path / "ran")}, protocol=2))
    else:
        torch.save(tensors, file, _use_new_zipfile_serialization=form == "zip")
    refused(saved, str(file), "code", "system")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [[1, 2], {"model": {}}, {1: torch.zeros(1)}, torch.zeros(2)], ids=str)
def test_a_pickle_of_something_else(value: Any, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(value, saved / "pytorch_model.bin")
    refused(saved, "pytorch_model.bin", "a dictionary of tensors")


@pytest.mark.parametrize(
    "shard",
    [
        "/etc/passwd",
        "../b/model.safetensors",
        "..",
        "",
        "sub/model.safetensors",
        "C:\\x.bin",
        "..\\x",
        3,
        None,
        "a\0b",
    ],
    ids=str,
)
def test_a_shard_outside_the_folder(shard: Any, saved: Path, tmp_path: Path) -> None:
    """Refused by its name, before any file is opened, though the file is there."""
    for folder in (tmp_path / "b", saved / "sub"):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    names = list(load_file(saved / "model.safetensors"))
    (saved / "model.safetensors").unlink()
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    refused(saved, str(index), "the same folder")


@pytest.mark.parametrize(
    ("weight_map", "words", "error"),
    [
        ({NORM: "other.safetensors"}, ["other.safetensors", "no such file"], FileNotFoundError),
        ({NORM: "part.safetensors", "more": "part.safetensors"}, ["part.safetensors", "no more"], ValueError),
        ({NORM: "part.safetensors"}, ["backbone.embedding.weight", "does not say"], ValueError),
        ({}, ["weight_map", "{}"], ValueError),
        ([], ["weight_map", "[]"], ValueError),
    ],
    ids=str,
)
def test_an_index_that_is_wrong(weight_map: Any, words: list[str], error: type, saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "part.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(saved, *words, error=error)
