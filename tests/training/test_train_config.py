"""Configurations: what a TOML file may say, and one clear line for what it may not."""

import pytest

from ssmcourse.models import LanguageModelConfig
from ssmcourse.tasks.recall import AssociativeRecall
from ssmcourse.training import Config, ConfigError, TrainingConfig, load_config

GOOD = """
[model]
pattern = "M-"
d_model = 16
options.M = { d_state = 4 }

[data]
text = "python"

[training]
steps = 10
learning_rate = 1
betas = [0.9, 0.99]
"""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_becomes_dataclasses(tmp_path):
    config = load_config(write(tmp_path / "c.toml", GOOD))
    wanted = LanguageModelConfig("M-", d_model=16, vocab_size=256, options={"M": {"d_state": 4}})
    assert config.model == wanted
    assert config.data.text == "python"
    assert config.training == TrainingConfig(steps=10, learning_rate=1, betas=(0.9, 0.99))


def test_to_dict_and_back(tmp_path):
    config = load_config(write(tmp_path / "c.toml", GOOD))
    assert Config.from_dict(config.to_dict()) == config


def test_a_task_brings_its_vocabulary():
    config = Config.from_dict(
        {
            "model": {"pattern": "M", "d_model": 8},
            "data": {"task": "recall", "arguments": {"pairs": 3, "keys": 5, "values": 6}},
            "training": {"steps": 1},
        }
    )
    assert config.data.make_task() == AssociativeRecall(pairs=3, keys=5, values=6)
    assert config.model.vocab_size == 11
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 10", "stpes = 10", "training.stpes: no such key, the nearest is steps"),
        ("steps = 10", "", "training.steps: got none, expected an integer"),
        ("steps = 10", 'steps = "ten"', "training.steps: got 'ten', expected an integer"),
        ("steps = 10", "steps = true", "training.steps: got True, expected an integer"),
        ("steps = 10", "steps = 0", "training.steps: got 0, expected an integer of 1 or more"),
        ("steps = 10", "steps = 1.5", "training.steps: got 1.5, expected an integer"),
        ("learning_rate = 1", "learning_rate = -1", "training.learning_rate: got -1, expected a finite"),
        ("learning_rate = 1", "learning_rate = nan", "training.learning_rate: got nan, expected a number"),
        (
            "learning_rate = 1",
            "learning_rate = 1\nmin_learning_rate = 2",
            "training.min_learning_rate: got 2, expected at most",
        ),
        ("[0.9, 0.99]", "[0.9]", r"training.betas: got \[0.9\], expected a list of 2 numbers"),
        ("[0.9, 0.99]", "[0.9, 1.0]", r"training.betas: got \(0.9, 1.0\), expected two numbers of 0 or more"),
        ("steps = 10", "steps = 10\nclip = 0", "training.clip: got 0, expected a number over 0"),
        ("steps = 10", "steps = 10\nwarmup = -1", "training.warmup: got -1, expected an integer of 0"),
        (
            "steps = 10",
            'steps = 10\ndtype = "half"',
            "training.dtype: got 'half', expected one of float32, bf",
        ),
        (
            "steps = 10",
            'steps = 10\ndevice = "tpu"',
            "training.device: got 'tpu', expected one of auto, cpu, cuda",
        ),
        ("d_model", "dmodel", "model.dmodel: no such key, the nearest is d_model"),
        ("d_model = 16", "d_model = 16.0", "model.d_model: got 16.0, expected an integer"),
        ("d_model = 16", "", "model.d_model: got none, expected an integer"),
        ("d_model = 16", "d_model = 16\nvocab_size = 8", "model.vocab_size: got 8, expected the data's 256"),
        ('"M-"', '"MX"', "model.pattern: got 'X' at place 1"),
        ("d_state", "dstate", r"model.options\['M'\]: got dstate, expected arguments of Mamba"),
        ('text = "python"', "", "data.text, path, task: got none, expected one of the three"),
        (
            'text = "python"',
            'text = "python"\npath = "a"',
            "data.text, path, task: got text and path, expected one",
        ),
        ('text = "python"', 'text = "english"', "data.text: got 'english', expected one of python"),
        ('text = "python"', 'task = "memory"', "data.task: got 'memory', expected one of copying"),
        ('text = "python"', 'text = "python"\narguments.a = 1', "data.arguments: got some without a task"),
        (
            'text = "python"',
            'task = "recall"\narguments = { pair = 3 }',
            "data.arguments.pair: no such key, the nearest is pairs",
        ),
        (
            'text = "python"',
            'task = "recall"\narguments = { pairs = 30 }',
            "data.arguments.pairs: got 30, expected at most as many as there are keys",
        ),
        ("steps = 10", "steps = 10\nlength = 0", "training.length: got 0, expected an integer of 1 or more"),
        ("[training]", "[trainign]", "trainign: no such key, the nearest is training"),
        ("[data]", "[[data]]", r"data: got \[\{'text': 'python'\}\], expected a table \[data\]"),
        ("[data]", "[data", "is not TOML: "),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path, old, new, message):
    assert old in GOOD
    path = write(tmp_path / "c.toml", GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_length_beside_a_task_is_refused(tmp_path):
    text = GOOD.replace('text = "python"', 'task = "recall"').replace("steps = 10", "steps = 10\nlength = 5")
    with pytest.raises(ConfigError, match=r"training.length: got one beside a task, expected none"):
        load_config(write(tmp_path / "c.toml", text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
