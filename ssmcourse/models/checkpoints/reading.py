"""Reading files that others wrote: weights tensor by tensor, and nothing else that they may hold.

A weight file is opened as a `File`: the shapes of its tensors at once, a tensor when it is asked for. Safetensors are
read in place; a .bin is a pickle, read with `weights_only=True`, which builds tensors and refuses any other object,
and is mapped into memory where its format allows. Lesson 11.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from ssmcourse.arguments import FLOATING, shown

# In the order in which they are looked for.
NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class File(Protocol):
    """A weight file: the shapes of its tensors, and each tensor once."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def take(self, name: str) -> Tensor: ...


@dataclass
class Weights:
    """The tensors of a checkpoint, of one file or of several.

    source: what a message calls them: the file, or the index of the files.
    """

    source: Path
    homes: dict[str, File] = field(default_factory=dict)

    def add(self, name: str, file: File) -> None:
        self.homes[name] = file

    def shape(self, name: str) -> tuple[int, ...]:
        return self.homes[name].shapes[name]

    def take(self, name: str) -> Tensor:
        """The tensor; ask for it once."""
        file = self.homes[name]
        value = file.take(name)
        if value.dtype not in FLOATING or value.layout != torch.strided:
            raise ValueError(
                f"{file.path}: {name}: got {value.dtype}, {value.layout}, expected floating numbers"
            )
        return value


def find(path: Path) -> tuple[Path, Path]:
    """The folder of a checkpoint, and its weight file or index, from either of them."""
    if path.is_file():
        return path.parent, path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory; a checkpoint is read from a local one")
    for name in NAMES:
        if (path / name).is_file():
            return path, path / name
    raise FileNotFoundError(f"{path}: no weights in it; expected {', '.join(NAMES)}")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_hook=_infinity)
    except (ValueError, RecursionError) as wrong:
        raise ValueError(f"{path}: not JSON ({first_line(wrong)})") from wrong
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {shown(values)}, expected a JSON object")
    return values


def open_weights(path: Path) -> Weights:
    """All tensors of a weight file, or of the files that an index names."""
    weights = Weights(path)
    if not path.name.endswith(".index.json"):
        file = open_file(path)
        for name in file.shapes:
            weights.add(name, file)
        return weights
    listed = _weight_map(path)
    for shard in dict.fromkeys(listed.values()):
        if not (path.parent / shard).is_file():
            raise FileNotFoundError(f"{path.parent / shard}: no such file, which {path.name} names")
        file = open_file(path.parent / shard)
        for name in (name for name, home in listed.items() if home == shard):
            if name not in file.shapes:
                raise ValueError(f"{file.path}: got no {name}, which {path.name} says is there")
            weights.add(name, file)
        if extra := [name for name in file.shapes if listed.get(name) != shard]:
            raise ValueError(f"{file.path}: got {extra[0]}, which {path.name} does not say is there")
    return weights


def open_file(path: Path) -> File:
    """A weight file, by its name's end."""
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        return PickleFile(path)
    raise ValueError(f"{path}: got a file that ends in {path.suffix!r}, expected .safetensors or .bin")


class SafetensorsFile:
    """A .safetensors file. Its header says what is where; a tensor is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = safetensors.safe_open(path, framework="pt").__enter__()
            self.shapes = {name: tuple(self.file.get_slice(name).get_shape()) for name in self.file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as wrong:
            raise ValueError(
                f"{path}: damaged or cut off, or not safetensors ({first_line(wrong)})"
            ) from wrong

    def take(self, name: str) -> Tensor:
        return self.file.get_tensor(name)


class PickleFile:
    """A .bin file of torch.save. A file in the format before torch 1.6 is read whole; others are mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.open("rb").close()  # whether it may be read is another matter than what is in it
        try:
            self.values = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        except Exception as wrong:  # whatever its bytes make of the reader
            raise ValueError(f"{path}: {_why_not_loaded(wrong)}") from wrong
        if not isinstance(self.values, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in self.values.items()
        ):
            raise ValueError(f"{path}: got {type(self.values).__name__}, expected a dictionary of tensors")
        self.shapes = {name: tuple(value.shape) for name, value in self.values.items()}

    def take(self, name: str) -> Tensor:
        return self.values.pop(name)


def _weight_map(path: Path) -> dict[str, str]:
    """tensor -> shard, of an index. A shard is a name in the index's own folder; links there may lead anywhere."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{path}: weight_map: got {shown(listed)}, expected tensor names -> file names")
    for shard in listed.values():
        plain = isinstance(shard, str) and shard not in ("", ".", "..") and not set(shard) & set("/\\:\0")
        if not plain:
            raise ValueError(
                f"{path}: got the shard {shown(shard)}, expected the name of a file in the same folder"
            )
    return listed


def _infinity(values: dict[str, Any]) -> Any:
    """{"__float__": "Infinity"} is how transformers 5 writes a float that JSON has no name for."""
    return float(values["__float__"]) if list(values) == ["__float__"] else values


def _why_not_loaded(wrong: Exception) -> str:
    """What torch.load met, without its advice to load the file unsafely."""
    if found := re.search(r"GLOBAL (\S+)", str(wrong)):
        return f"got objects or code beside tensors, which are not loaded ({found[1]})"
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(wrong))
    return f"damaged or cut off, or not a file of torch.save ({found[1] if found else first_line(wrong)})"


def first_line(wrong: Exception) -> str:
    """An exception on one line."""
    return next(iter(str(wrong).splitlines()), "") or type(wrong).__name__
