"""The recipes of checkpoints/: they are what they say, and a small one comes out with its card."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from trainings import small, with_training, write_words

from ssmcourse.models import LanguageModel
from ssmcourse.training import load_config

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints"
RECIPES = sorted(path.stem for path in (FOLDER / "configs").glob("*.toml"))


@pytest.fixture
def script(tmp_path, monkeypatch):
    """checkpoints/train.py, which finds its recipes and writes its models in a folder of the test."""
    spec = importlib.util.spec_from_file_location("checkpoints_train", FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    return module


@pytest.mark.parametrize("name", RECIPES)
def test_models_of_text_are_of_equal_size_and_all_are_small(name):
    config = load_config(FOLDER / "configs" / f"{name}.toml")
    parameters = sum(p.numel() for p in LanguageModel(config.model).parameters())
    assert 4 * parameters < 2_000_000
    if config.data.text:
        assert 370_000 < parameters < 420_000
        mamba = load_config(FOLDER / "configs" / "mamba.toml").training
        rates = {"learning_rate": mamba.learning_rate, "min_learning_rate": mamba.min_learning_rate}
        assert with_training(config, **rates).training == mamba  # each at a rate that suits it, else alike
    assert config.training.threads == 1


def test_there_is_a_recipe_for_every_kind():
    kinds = {name: load_config(FOLDER / "configs" / f"{name}.toml").model.pattern for name in RECIPES}
    assert set(kinds["mamba"]) == {"M"}
    assert set(kinds["mamba2"]) == {"2"}
    assert {"2", "*"} < set(kinds["hybrid"])
    assert set(kinds["attention"]) == {"*", "-"}
    assert {"griffin", "rwkv4", "recall_h3", "recall_mamba2", "recall_attention"} < set(kinds)


@pytest.mark.parametrize("name", [name for name in RECIPES if (FOLDER / name).is_dir()])
def test_a_card_is_of_the_weights_beside_it(name):
    weights = (FOLDER / name / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in (FOLDER / name / "card.md").read_text()
    config = load_config(FOLDER / "configs" / f"{name}.toml")
    assert LanguageModel.from_pretrained(FOLDER / name).config == config.model


def recipe(values):
    """A configuration as TOML; its values are numbers, strings, lists and inline tables, as in JSON."""
    lines = []
    for section, table in values.items():
        lines.append(f"[{section}]")
        for key, value in table.items():
            if isinstance(value, dict):
                lines += [f"{key}.{json.dumps(k)} = {inline(v)}" for k, v in value.items()]
            elif value is not None:
                lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines)


def inline(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    return script.main()


def test_a_text_model_comes_with_a_card(script, tmp_path, monkeypatch, capsys):
    config = small(write_words(tmp_path), steps=30, eval_every=1)
    (tmp_path / "configs" / "tiny.toml").write_text(recipe(config.to_dict()))
    assert run(script, monkeypatch, "tiny") == 0
    weights = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    card = (tmp_path / "tiny" / "card.md").read_text()
    assert card in capsys.readouterr().out
    for part in (
        "# tiny",
        "`python checkpoints/train.py tiny`",
        f"`-*`, d_model 8, {sum(p.numel() for p in LanguageModel.from_pretrained(tmp_path / 'tiny').parameters()):,}",
        hashlib.sha256(weights).hexdigest(),
        f"30 steps, {30 * 4 * 24:,} tokens",
        "xz, primed with the training part",
        "the model ",
    ):
        assert part in card, part
    curve = [line for line in card.splitlines() if line.startswith("| ") and line.count("|") == 5]
    assert curve[0].startswith("| step ")
    assert curve[-1].startswith("| 30 |")
    assert 10 < len(curve) < 25


def test_a_model_of_a_task_comes_with_its_chance(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs" / "task.toml").write_text(
        '[model]\npattern = "-"\nd_model = 8\n[data]\ntask = "copying"\n[training]\nsteps = 2\n'
    )
    assert run(script, monkeypatch, "task") == 0
    card = (tmp_path / "task" / "card.md").read_text()
    assert "Copying(symbols=8, kept=6, delay=48), chance 12.5%" in card
    assert "xz" not in card


def test_names(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs" / "b.toml").write_text("[model]")
    assert run(script, monkeypatch, "--list") == 0
    assert capsys.readouterr().out == "b\n"
    assert run(script, monkeypatch, "b") == 1
    assert "data: got None, expected a table [data]" in capsys.readouterr().err
