"""The layout of transformers against the library itself: its files read here, ours read there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_table import config, draw_tokens, make

from ssmcourse.models import LanguageModel

transformers = pytest.importorskip("transformers")
VOCAB = 37
SMALL = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"state_size": 4}),
    "mamba biases": (
        "Mamba",
        {"use_bias": True, "use_conv_bias": False, "time_step_rank": 3, "conv_kernel": 3, "expand": 3},
    ),
    "mamba untied": ("Mamba", {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "mamba2": ("Mamba2", {"head_dim": 8, "num_heads": 4, "n_groups": 2, "chunk_size": 8}),
    "mamba2 tied": (
        "Mamba2",
        {"head_dim": 4, "num_heads": 12, "expand": 3, "n_groups": 1, "state_size": 4, "use_bias": True}
        | {"tie_word_embeddings": True, "use_conv_bias": False},
    ),
    # In published files; no code of transformers reads it, and the gate comes first.
    "mamba2 norm_before_gate": (
        "Mamba2",
        {"head_dim": 8, "num_heads": 4, "n_groups": 1, "norm_before_gate": True},
    ),
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def theirs(name: str, **more: Any) -> Any:
    """A random model of transformers, its weights large enough for lively text."""
    kind, given = KINDS[name]
    made = getattr(transformers, f"{kind}ForCausalLM")
    torch.manual_seed(0)
    model = made(getattr(transformers, f"{kind}Config")(**SMALL | given | more)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "embeddings" in key or "lm_head" in key:
                value.copy_(torch.randn_like(value))
            elif "mixer" in key:
                value.mul_(1 + 0.3 * torch.randn_like(value)).add_(0.1 * torch.randn_like(value))
            else:
                value.add_(0.2 * torch.randn_like(value))
    return model


def logits_agree(a: Any, b: Any) -> None:
    tokens = draw_tokens(2, 33, vocab=VOCAB)
    with torch.no_grad():
        found = [model(tokens) for model in (a, b)]
    first, second = (getattr(value, "logits", value)[..., :VOCAB] for value in found)
    assert first.std() > 0.5
    assert (first - second).abs().max() < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    model.save_pretrained(tmp_path / "a")
    ours = LanguageModel.from_pretrained(tmp_path / "a")
    assert ours.layout == "transformers"
    assert ours.config.padded_vocab_size == VOCAB
    logits_agree(model, ours)
    ours.save_pretrained(tmp_path / "b")
    back, report = type(model).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(report.values()), report
    logits_agree(back, ours)
    for key, value in model.state_dict().items():
        assert torch.equal(value, back.state_dict()[key]), key


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_greedy_text(name: str, tmp_path: Path) -> None:
    """The same 200 tokens after each of three prompts."""
    model = theirs(name, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "a")
    ours = LanguageModel.from_pretrained(tmp_path / "a")
    prompt = draw_tokens(3, 7, vocab=VOCAB)
    # Without a mask of its own, transformers takes every 0 in the prompts for padding.
    options = {"attention_mask": torch.ones_like(prompt), "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(prompt, max_new_tokens=200, do_sample=False, **options)
    assert expected.shape == (3, 207)
    assert len(expected[:, 7:].unique()) > 8
    assert torch.equal(ours.generate(prompt, 200), expected)


@pytest.mark.parametrize("safe", [True, False])
def test_shards(safe: bool, tmp_path: Path) -> None:
    model = theirs("mamba2")
    model.save_pretrained(tmp_path / "a", max_shard_size="6KB")
    files = sorted((tmp_path / "a").glob("model-*.safetensors"))
    assert len(files) > 2
    if not safe:  # version 5 writes no .bin; earlier ones wrote these names
        from safetensors.torch import load_file

        for file in files:
            torch.save(load_file(file), file.with_name(f"pytorch_{file.stem}.bin"))
            file.unlink()
        index = tmp_path / "a" / "model.safetensors.index.json"
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        index.with_name("pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    logits_agree(model, LanguageModel.from_pretrained(tmp_path / "a"))


def test_bfloat16(tmp_path: Path) -> None:
    model = theirs("mamba").bfloat16()
    model.save_pretrained(tmp_path / "a")
    ours = LanguageModel.from_pretrained(tmp_path / "a")
    assert {value.dtype for value in ours.parameters()} == {torch.bfloat16}
    ours.save_pretrained(tmp_path / "b")
    back = type(model).from_pretrained(tmp_path / "b", dtype="auto")
    assert back.dtype == torch.bfloat16
    assert torch.equal(back.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("pattern", ["MM", "22"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_ours(pattern: str, tied: bool, tmp_path: Path) -> None:
    """What transformers cannot have, rows of the embedding that no token has, it does not get."""
    options = {"M": {"d_state": 4}, "2": {"headdim": 4, "ngroups": 2}}[pattern[0]]
    model = make(
        pattern,
        torch.float32,
        tie_embeddings=tied,
        vocab_size=VOCAB,
        norm_eps=1e-5,
        options={pattern[0]: options},
    )
    assert model.config.padded_vocab_size == 40
    model.save_pretrained(tmp_path / "a", layout="transformers")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert back.config.vocab_size == VOCAB
    logits_agree(model, back)
    logits_agree(model, LanguageModel.from_pretrained(tmp_path / "a"))


def test_step_sizes_are_limited_as_there(tmp_path: Path) -> None:
    model = theirs("mamba2", time_step_limit=(0.05, 0.2))
    model.save_pretrained(tmp_path / "a")
    ours = LanguageModel.from_pretrained(tmp_path / "a")
    logits_agree(model, ours)
    values = json.loads((tmp_path / "a" / "config.json").read_text()) | {"time_step_limit": [0.0, 1e9]}
    (tmp_path / "a" / "config.json").write_text(json.dumps(values))
    with pytest.raises(AssertionError):
        logits_agree(model, LanguageModel.from_pretrained(tmp_path / "a"))


def test_defaults_are_theirs() -> None:
    """A config.json that says only what kind it is."""
    from ssmcourse.models.checkpoints.transformers import read_config, write_config

    for kind in ("Mamba", "Mamba2"):
        full = getattr(transformers, f"{kind}Config")()
        ours = read_config({"model_type": kind.lower()})
        for key, value in write_config(ours).items():
            if key not in ("architectures", "bos_token_id", "eos_token_id", "pad_token_id"):
                known = getattr(full, key)
                same = tuple(known) == tuple(value) if key == "time_step_limit" else known == value
                assert same or (key == "time_step_rank" and value == "auto"), (key, known, value)
    assert config("M").arguments("M")["dt_rank"] == "auto"
