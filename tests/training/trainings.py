"""A training that takes a second, for the tests."""

from dataclasses import replace
from pathlib import Path

from ssmcourse.training import Config


def write_words(folder: Path) -> Path:
    """A text of 40 paragraphs that have no five words in common."""
    path = folder / "words.txt"
    path.write_text("\n\n".join(" ".join(f"w{i} {i * j % 101}" for j in range(9)) for i in range(40)))
    return path


def small(path: Path, pattern: str = "-*", **training) -> Config:
    """Two layers on a text, 12 steps; what is named is other. Without Mamba, which takes seconds to compile."""
    settings = {
        "steps": 12,
        "batch_size": 4,
        "length": 24,
        "learning_rate": 1e-2,
        "warmup": 2,
        "eval_every": 6,
        "checkpoint_every": 5,
    }
    return Config.from_dict(
        {
            "model": {
                "pattern": pattern,
                "d_model": 8,
                "options": {
                    "*": {"num_heads": 2},
                    "M": {"d_state": 4},
                    "2": {"d_state": 4, "headdim": 4},
                    "D": {"d_state": 4},
                },
            },
            "data": {"path": str(path)},
            "training": settings | training,
        }
    )


def with_training(config: Config, **values) -> Config:
    """The same configuration with other training settings."""
    return replace(config, training=replace(config.training, **values))


def figures(rows) -> list[tuple]:
    """Rows without the time that they took."""
    return [
        (row.step, row.loss, row.learning_rate, row.validation_loss, row.validation_accuracy) for row in rows
    ]
