"""Writing a folder whole or not at all.

The files are written into a temporary folder beside, which then takes the name. Whatever happens before, what was
there is there still; a process that is killed leaves at worst the temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ssmcourse.models.checkpoints.reading import NAMES


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `path` when the block ends without an error.

    If there is a checkpoint at `path`, its config and weights give way to the new ones, and its other files, a
    tokenizer say, stay.

    Raises:
        ValueError: there is something else at `path`.
    """
    target = Path(os.path.realpath(path))
    kept = _to_keep(path, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield new
        for file in kept:
            shutil.copy2(file, new / file.name, follow_symlinks=False)
        umask = _umask()
        new.chmod(0o777 & ~umask)
        for name in NAMES:  # safetensors writes for its owner alone
            if (new / name).exists():
                (new / name).chmod(0o666 & ~umask)
        _put(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(values, indent=2)
    except (TypeError, ValueError) as wrong:
        raise ValueError(f"config: cannot be written as JSON ({wrong})") from wrong
    path.write_text(text + "\n", encoding="utf-8")


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors by name, as the file's name says; those that share memory do so in the file, or are there once."""
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def _to_keep(path: Path, target: Path) -> list[Path]:
    """The files at the target that are neither config nor weights."""
    if not target.exists():
        return []
    if not target.is_dir():
        raise ValueError(f"{path}: got a file, expected a directory, or a name that there is not yet")
    entries = list(target.iterdir())
    if entries and not (target / "config.json").is_file():
        raise ValueError(
            f"{path}: got a directory that is no checkpoint, expected an empty one, or a new name"
        )
    if folders := [entry.name for entry in entries if entry.is_dir()]:
        raise ValueError(
            f"{path}: got a directory with {folders[0]}/ in it, expected files only, or a new name"
        )
    return [entry for entry in entries if entry.name != "config.json" and not _is_weights(entry.name)]


def _is_weights(name: str) -> bool:
    shard = name.startswith(("model-", "pytorch_model-")) and name.endswith((".safetensors", ".bin"))
    return shard or name in NAMES


def _put(new: Path, target: Path) -> None:
    """Give the new folder the target's name."""
    if not target.exists():
        new.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old)  # a folder may take the place of an empty one
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
