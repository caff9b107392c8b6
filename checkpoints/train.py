"""Train one of the small models that lessons load, and write it down with a card that says how.

    python checkpoints/train.py mamba             some ten minutes on one core; started again, it goes on
    python checkpoints/train.py --list            the names

A model is a file configs/NAME.toml. What it becomes: NAME/config.json and NAME/model.safetensors, for
`LanguageModel.from_pretrained("checkpoints/NAME")`, and NAME/card.md with the data and its hash, the seed, the
command, the time, the curve of the losses, and for text the bits a byte beside those of compressors.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

from ssmcourse.bench.timing import machine
from ssmcourse.tasks.text import Corpus
from ssmcourse.training import (
    Config,
    ConfigError,
    Terminal,
    Trained,
    TrainingError,
    compare_with_compressors,
    load_config,
    train,
)
from ssmcourse.training.data import TextSource, open_source
from ssmcourse.training.files import write_atomically

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "work" / "checkpoints"  # what is needed to go on; git ignores it


def main() -> int:
    names = sorted(path.stem for path in (HERE / "configs").glob("*.toml"))
    parser = argparse.ArgumentParser(description="Train one of the small models that lessons load.")
    parser.add_argument("name", nargs="?", choices=names, help="the model")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    asked = parser.parse_args()
    if asked.list or asked.name is None:
        print(*names, sep="\n")
        return 0 if asked.list else 2
    try:
        make(asked.name)
    except (ConfigError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def make(name: str) -> None:
    """Train the model and write its folder."""
    config = load_config(HERE / "configs" / f"{name}.toml")
    config = replace(config, training=replace(config.training, out=str(RUNS / name)))
    with Terminal() as terminal:
        trained = train(config, callbacks=[terminal])
    if trained.interrupted:
        return
    trained.model.save_pretrained(HERE / name)
    text = card(name, trained)
    write_atomically(HERE / name / "card.md", lambda file: file.write(text.encode()))
    print(text)


def card(name: str, trained: Trained) -> str:
    """What one has to know about a checkpoint."""
    config, history = trained.config, trained.history
    settings, source = config.training, open_source(config)
    parameters = sum(p.numel() for p in trained.model.parameters())
    weights = (HERE / name / "model.safetensors").read_bytes()
    tokens = settings.steps * source.batch(1)[0].numel()
    minutes = tokens / settings.steps * sum(1 / row.tokens_per_second for row in history) / 60
    facts = {
        "made by": f"`python checkpoints/train.py {name}` from `configs/{name}.toml`",
        "layers": f"`{config.model.pattern}`, d_model {config.model.d_model}, {parameters:,} parameters",
        "weights": f"{len(weights):,} bytes, sha256 `{hashlib.sha256(weights).hexdigest()}`",
        "data": f"{_data(config)}, sha256 `{source.sha256}`",
        "seed": settings.seed,
        "training": f"{settings.steps} steps, {tokens:,} tokens, {minutes:.1f} minutes on {settings.threads} thread(s)",
        "date": datetime.date.today().isoformat(),
        "with": machine(),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    parts = [f"# {name}", f"| | |\n|---|---|\n{table}", _curve(trained)]
    if isinstance(source, TextSource):
        parts.append(_compression(source.corpus, trained))
    return "\n\n".join(parts) + "\n"


def _data(config: Config) -> str:
    task = config.data.make_task()
    if task is not None:
        return f"{task}, chance {task.chance:.1%}"
    return f"{config.data.text or config.data.path}, as bytes, split by seed {config.data.seed}"


def _curve(trained: Trained) -> str:
    """Some twenty points of the losses as a table."""
    judged = [row for row in trained.history if row.validation_loss is not None]
    some = judged[:: -(-len(judged) // 20)]
    some += judged[-1:] if some[-1] is not judged[-1] else []
    lines = [
        f"| {row.step} | {row.loss:.4f} | {row.validation_loss:.4f} | {row.validation_accuracy:.2%} |"
        for row in some
    ]
    head = "| step | loss | validation loss | right |\n|---:|---:|---:|---:|"
    return f"Losses in nats a token:\n\n{head}\n" + "\n".join(lines)


def _compression(corpus: Corpus, trained: Trained) -> str:
    compared = compare_with_compressors(corpus, trained.model, trained.config.training.length or 256)
    return f"```\n{compared}\n```"


if __name__ == "__main__":
    sys.exit(main())
