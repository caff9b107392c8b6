"""Checkpoints: round trips in every layout, dtypes, memory, and a folder that is whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from model_table import PATTERNS, config, draw_tokens, make, says
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssmcourse.models import LanguageModel
from ssmcourse.models.checkpoints import reading

HYBRIDS = ["MM", "22", "2*2*", "M-M-", "2-*-2-", "*-*-"]


def json_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def equal(a: LanguageModel, b: LanguageModel) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_in_our_own_layout(pattern: str, tied: bool, tmp_path: Path) -> None:
    model = make(pattern, torch.float32, tie_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    again = LanguageModel.from_pretrained(tmp_path / "model")
    equal(model, again)
    assert again.config == model.config
    assert not again.training
    assert (again.lm_head.weight is again.backbone.embedding.weight) == tied
    assert torch.equal(again(draw_tokens(2, 5)), model(draw_tokens(2, 5)))
    for path in ("model/model.safetensors", "model/config.json"):
        assert (tmp_path / path).is_file()
    equal(model, LanguageModel.from_pretrained(str(tmp_path / "model" / "model.safetensors")))


@pytest.mark.parametrize("pattern", HYBRIDS)
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_in_the_layout_of_state_spaces(pattern: str, tied: bool, tmp_path: Path) -> None:
    model = make(pattern, torch.float32, tie_embeddings=tied)
    model.save_pretrained(tmp_path / "a", layout="state-spaces")
    again = LanguageModel.from_pretrained(tmp_path / "a")
    equal(model, again)
    assert again.config == model.config
    assert again.layout == "state-spaces"
    again.save_pretrained(tmp_path / "b")  # as it was read
    assert json_of(tmp_path / "a") == json_of(tmp_path / "b")
    assert torch.equal(again(draw_tokens(2, 5)), model(draw_tokens(2, 5)))


def test_what_mamba_ssm_would_read(tmp_path: Path) -> None:
    """config.json as its MambaConfig has it, and the names of its blocks."""
    model = make("2-*-2-", torch.float32)
    model.save_pretrained(tmp_path / "a", layout="state-spaces")
    assert json_of(tmp_path / "a") == {
        "d_model": 8,
        "d_intermediate": 8,
        "n_layer": 3,
        "vocab_size": 11,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 4, "headdim": 4, "ngroups": 2},
        "attn_layer_idx": [1],
        "attn_cfg": {"causal": True, "num_heads": 2, "rotary_emb_dim": 4},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
        "tie_embeddings": True,
    }
    weights = torch.load(tmp_path / "a" / "pytorch_model.bin", weights_only=True)
    block = {name.removeprefix("backbone.layers.1.") for name in weights if ".layers.1." in name}
    assert block == {
        "norm.weight", "mixer.in_proj.weight", "mixer.in_proj.bias", "mixer.out_proj.weight", "mixer.out_proj.bias",
        "norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight",
    }  # fmt: skip
    assert weights["backbone.embedding.weight"].shape == (16, 8)
    assert torch.equal(weights["backbone.layers.2.mlp.fc2.weight"], model.backbone.layers[5].mixer.fc2.weight)
    assert weights["lm_head.weight"].data_ptr() == weights["backbone.embedding.weight"].data_ptr()


def test_the_published_configurations() -> None:
    """As mamba-130m, mamba2-2.7b and mamba2attn-2.7b have them, from the heads of their model cards' files."""
    from ssmcourse.models.checkpoints import state_spaces

    read = state_spaces.read_config
    common = {"rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "vocab_size": 50277}
    old = read(common | {"d_model": 768, "n_layer": 24, "ssm_cfg": {}, "pad_vocab_size_multiple": 8})
    assert (old.pattern, old.padded_vocab_size, old.options) == ("M" * 24, 50280, {"M": {}})
    new = common | {"d_model": 2560, "d_intermediate": 0, "n_layer": 64, "ssm_cfg": {"layer": "Mamba2"}}
    new |= {"pad_vocab_size_multiple": 16, "tie_embeddings": True, "attn_layer_idx": [], "attn_cfg": {}}
    assert read(new).pattern == "2" * 64
    heads = {"head_dim": 128, "num_heads": 30, "d_conv": 4, "rotary_emb_dim": 64}
    heads |= {"qkv_proj_bias": False, "out_proj_bias": False}
    hybrid = read(new | {"attn_layer_idx": [9, 18, 27, 36, 45, 56], "attn_cfg": {"causal": True} | heads})
    assert [i for i, letter in enumerate(hybrid.pattern) if letter == "*"] == [9, 18, 27, 36, 45, 56]
    assert hybrid.options["*"] == heads
    model = LanguageModel(hybrid, device="meta")
    assert model.get_parameter("backbone.layers.9.mixer.in_proj.weight").shape == (3 * 30 * 128, 2560)
    assert model.get_parameter("backbone.layers.9.mixer.conv1d.weight").shape == (3 * 30 * 128, 1, 4)


@pytest.mark.parametrize("layout", ["ssmcourse", "state-spaces", "transformers"])
def test_dtypes(layout: str, tmp_path: Path) -> None:
    """Half types stay what they are, A_log in float32 beside them too, unless another is asked for."""
    model = make("2", torch.bfloat16)
    model.backbone.layers[0].mixer.A_log.data = model.backbone.layers[0].mixer.A_log.data.float()
    model.save_pretrained(tmp_path / "a", layout=layout)
    again = LanguageModel.from_pretrained(tmp_path / "a")
    assert {str(value.dtype) for value in again.parameters()} == {"torch.bfloat16", "torch.float32"}
    assert again.backbone.layers[0].mixer.A_log.dtype == torch.float32
    assert torch.equal(again(draw_tokens(1, 5)), model(draw_tokens(1, 5))[..., : again.lm_head.out_features])
    wide = LanguageModel.from_pretrained(tmp_path / "a", dtype=torch.float64, device="cpu")
    assert {value.dtype for value in wide.parameters()} == {torch.float64}
    with pytest.raises(ValueError) as error:
        LanguageModel.from_pretrained(tmp_path / "a", dtype=torch.int8)
    says(error, "dtype", "int8")


def test_the_model_is_a_copy_of_the_file(tmp_path: Path) -> None:
    """Neither training nor a file that is overwritten reaches the other."""
    for layout, name in (("ssmcourse", "model.safetensors"), ("state-spaces", "pytorch_model.bin")):
        make("M", torch.float32).save_pretrained(tmp_path / layout, layout=layout)
        again = LanguageModel.from_pretrained(tmp_path / layout)
        before = again(draw_tokens(1, 5))
        with open(tmp_path / layout / name, "r+b") as file:
            file.truncate(10)
        assert torch.equal(again(draw_tokens(1, 5)), before)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards(ending: str, legacy: bool, tmp_path: Path) -> None:
    model = make("MM", torch.float32, tie_embeddings=False)
    model.save_pretrained(tmp_path / "a")
    whole = load_file(tmp_path / "a" / "model.safetensors")
    (tmp_path / "a" / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    weight_map = {}
    for i in range(3):
        part = dict(list(whole.items())[i::3])
        shard = tmp_path / "a" / f"{stem}-{i + 1:05}-of-00003.{ending}"
        if ending == "bin":
            torch.save(part, shard, _use_new_zipfile_serialization=not legacy)
        else:
            save_file(part, shard)
        weight_map |= dict.fromkeys(part, shard.name)
    index = tmp_path / "a" / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    equal(model, LanguageModel.from_pretrained(tmp_path / "a"))
    equal(model, LanguageModel.from_pretrained(index))


def test_links_lead_where_they_like(tmp_path: Path) -> None:
    """Download caches keep the files elsewhere, under names of their own."""
    model = make("M", torch.float32)
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for i, name in enumerate(("config.json", "model.safetensors")):
        (tmp_path / "a" / name).rename(tmp_path / "blobs" / str(i))
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{i}")
    equal(model, LanguageModel.from_pretrained(tmp_path / "snapshot"))


def anonymous_memory() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("layout", ["ssmcourse", "state-spaces"])
def test_the_weights_are_in_memory_once(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = LanguageModel(config("M" * 8, d_model=768, vocab_size=4_000))
    assert sum(value.nbytes for value in big.parameters()) > 100e6
    largest = max(value.nbytes for value in big.parameters())
    big.save_pretrained(tmp_path / "a", layout=layout)
    make("M", torch.float32).save_pretrained(tmp_path / "small", layout=layout)
    LanguageModel.from_pretrained(tmp_path / "small")  # modules of torch that are imported once
    before, seen = anonymous_memory(), []
    take = reading.Weights.take

    def watched(self: Any, name: str) -> Tensor:
        value = take(self, name)
        seen.append(anonymous_memory() - before)
        return value

    monkeypatch.setattr(reading.Weights, "take", watched)
    again = LanguageModel.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    seen.append(anonymous_memory() - before)
    size = sum(value.nbytes for value in again.parameters())
    assert max(seen) < size + largest + 10e6
    assert len(list(again.parameters())) < len(seen)


# --- Writing ------------------------------------------------------------------------------------------


def test_a_checkpoint_is_replaced_and_its_other_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "a"
    make("22", torch.float32).save_pretrained(path, layout="state-spaces")
    (path / "tokenizer.json").write_text("{}")
    (path / "pytorch_model-00001-of-00002.bin").write_text("old")
    model = make("M", torch.float32)
    model.save_pretrained(path)
    assert sorted(os.listdir(path)) == ["config.json", "model.safetensors", "tokenizer.json"]
    equal(model, LanguageModel.from_pretrained(path))
    (tmp_path / "link").symlink_to("a")
    make("MM", torch.float32).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert LanguageModel.from_pretrained(path).config.pattern == "MM"
    assert sorted(os.listdir(tmp_path)) == ["a", "link"]


def test_into_an_empty_directory_and_new_ones(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "new" / "deep"):
        make("M", torch.float32).save_pretrained(path)
        assert (
            path.stat().st_mode & 0o777
            == (tmp_path / "new" if path.name == "deep" else path).stat().st_mode & 0o777
        )
        assert sorted(os.listdir(path)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("fails_at", ["write_weights", "_put"])
def test_a_save_that_fails_leaves_what_was_there(
    fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssmcourse.models.checkpoints import writing

    model = make("M", torch.float32)
    model.save_pretrained(tmp_path / "a")

    def full(path: Path, *_: Any) -> None:
        (path / "half" if path.is_dir() else path).write_text("half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(writing, fails_at, full)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="no space left"):
            make("MM", torch.float32).save_pretrained(tmp_path / name)
    assert os.listdir(tmp_path) == ["a"]
    equal(model, LanguageModel.from_pretrained(tmp_path / "a"))


def test_a_rename_that_fails_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("M", torch.float32)
    model.save_pretrained(tmp_path / "a")
    rename, calls = Path.rename, []

    def second_fails(self: Path, to: Any) -> Any:
        calls.append(to)
        if len(calls) == 2:
            raise OSError("gone")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="gone"):
        make("MM", torch.float32).save_pretrained(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    equal(model, LanguageModel.from_pretrained(tmp_path / "a"))


@pytest.mark.parametrize(
    ("pattern", "layout", "given", "words"),
    [
        ("M", "gguf", {}, ["layout", "'gguf'", "state-spaces"]),
        ("M2", "state-spaces", {}, ["pattern", "'M2'"]),
        ("MM-", "state-spaces", {}, ["pattern", "'MM-'"]),
        ("RR", "state-spaces", {}, ["pattern", "'RR'"]),
        ("M", "state-spaces", {"norm_eps": 1e-6}, ["norm_eps", "1e-06"]),
        ("M*", "transformers", {}, ["pattern", "'M*'"]),
        ("RR", "transformers", {}, ["pattern", "'RR'"]),
        (
            "2",
            "transformers",
            {"options": {"2": {"headdim": 4, "norm_before_gate": True}}},
            ["norm_before_gate"],
        ),
        ("2", "transformers", {"options": {"2": {"headdim": 4, "d_ssm": 8}}}, ["d_ssm"]),
        ("-", "ssmcourse", {"options": {"-": {"activation": torch.tanh}}}, ["config", "JSON"]),
    ],
)
def test_layouts_that_have_no_such_model(
    pattern: str, layout: str, given: dict, words: list[str], tmp_path: Path
) -> None:
    model = LanguageModel(config(pattern, **given))
    with pytest.raises(ValueError) as error:
        model.save_pretrained(tmp_path / "a", layout=layout)
    says(error, *words)
    assert os.listdir(tmp_path) == []


def test_places_that_are_taken(tmp_path: Path) -> None:
    model = make("M", torch.float32)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / ".git").mkdir()
    for name, word in (("file", "a file"), ("home", "no checkpoint"), ("run", ".git/")):
        with pytest.raises(ValueError) as error:
            model.save_pretrained(tmp_path / name)
        says(error, str(tmp_path / name), word)
    assert (tmp_path / "file").read_text() == (tmp_path / "home" / "thesis.tex").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("layout", ["ssmcourse", "state-spaces", "transformers"])
def test_others_may_read_what_was_saved(layout: str, tmp_path: Path) -> None:
    """As the umask has it, like every other file."""
    mask = os.umask(0o027)
    try:
        make("MM", torch.float32).save_pretrained(tmp_path / "model", layout)
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}
