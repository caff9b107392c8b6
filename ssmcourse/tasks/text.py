"""Text, a byte at a time: a corpus that every Python brings along, or files of your own (lessons 11 and 14).

| name         | meaning                                                     | shape          |
|--------------|-------------------------------------------------------------|----------------|
| `training`   | the bytes that a model learns from                          | (n,) uint8     |
| `validation` | the bytes that it is judged by, which it has not seen       | (n,) uint8     |
| `tokens`     | windows of either, as numbers 0 to 255                      | (b, l) int64   |
| `targets`    | the byte that follows each of them                          | (b, l) int64   |

A manual says many things twice, and a model that has seen a sentence in training is not judged by it. So equal
paragraphs are kept once, and paragraphs that share a long passage stay on one side of the split (`overlap` counts
what crosses it all the same).
"""

from __future__ import annotations

import hashlib
import random
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SHARED = 5  # words: paragraphs with a passage of this length in common stay together
SMALLEST = 20  # paragraphs or lines: with fewer there is nothing to split


class ByteTokenizer:
    """Text as its UTF-8 bytes, and back: 256 tokens, nothing to train, nothing out of vocabulary."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Iterable[int] | Tensor) -> str:
        """The text of some bytes; what is not UTF-8, such as half a character, becomes U+FFFD."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return bytes(numbers).decode("utf-8", errors="replace")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text in two parts that have next to nothing in common.

    name: where it is from.
    training, validation: (n,) uint8.
    """

    name: str
    training: Tensor
    validation: Tensor

    @property
    def sha256(self) -> str:
        """Of both parts: two corpora with the same one are the same, to the byte."""
        digest = hashlib.sha256(len(self.training).to_bytes(8, "little"))
        digest.update(self.training.numpy().tobytes())
        digest.update(self.validation.numpy().tobytes())
        return digest.hexdigest()


def python_reference(*, seed: int = 0, validation: float = 0.1) -> Corpus:
    """The language reference that Python's `help()` reads from: about 374,000 characters in Python 3.11.

    Its text differs from one version of Python to the next, and with it `Corpus.sha256`.

    Args:
        seed: chooses the order of the paragraphs and which of them are for validation.
        validation: their share of the text, over 0 and under 1.
    """
    from pydoc_data.topics import topics  # half a megabyte, needed here only

    return split_text("\n\n".join(topics.values()), "python", seed=seed, validation=validation)


def read_text(path: str | Path, *, seed: int = 0, validation: float = 0.1) -> Corpus:
    """A text file, or all text files of a folder and the folders in it, in the order of their names.

    In a folder, what is not UTF-8 text is left out and a warning says so; so is, without one, what begins with a dot.

    Args:
        path: the file or folder.
        seed, validation: as in `python_reference`.
    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: the file is not UTF-8 text, the folder holds none, or it is too little to split.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist")
    if path.is_file():
        return split_text(_decode(path), str(path), seed=seed, validation=validation)
    texts, refused = [], []
    for file in sorted(f for f in path.rglob("*") if f.is_file()):
        if any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        try:
            texts.append(_decode(file))
        except ValueError:
            refused.append(str(file.relative_to(path)))
    if refused:
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        warnings.warn(f"{path}: not UTF-8 text, left out: {', '.join(refused[:5])}{more}", stacklevel=2)
    if not texts:
        raise ValueError(f"path: {path} holds no text file")
    return split_text("\n\n".join(texts), str(path), seed=seed, validation=validation)


def _decode(file: Path) -> str:
    """The text of a file, with \\n for every end of line."""
    data = file.read_bytes()
    if b"\0" in data:
        raise ValueError(f"path: {file} is not text: it has a zero byte at {data.index(0)}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise ValueError(f"path: {file} is not UTF-8 text ({wrong}); convert it first") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_text(text: str, name: str, *, seed: int = 0, validation: float = 0.1) -> Corpus:
    """A text's different paragraphs, in an order drawn by seed, in two parts.

    Where there are next to no blank lines, lines take the place of paragraphs.

    Args:
        text: any.
        name: for `Corpus.name`.
        seed, validation: as in `python_reference`.
    Raises:
        ValueError: the share is out of range, or there are too few paragraphs that differ.

    Cost: memory for every passage of five words, about 40 times the text.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation: got {validation}, expected a share over 0 and under 1")
    pieces, between = _different(re.split(r"\n\s*\n", text)), "\n\n"
    if len(pieces) < SMALLEST:
        pieces, between = _different(text.split("\n")), "\n"
    random.Random(seed).shuffle(pieces)
    family = _families(pieces)
    held_out = _choose(pieces, family, seed, validation)
    parts = [[p for p, f in zip(pieces, family, strict=True) if (f in held_out) == side] for side in (0, 1)]
    if len(pieces) < SMALLEST or not all(parts):
        raise ValueError(
            f"{name}: got {len(pieces)} paragraphs or lines that differ, expected {SMALLEST} or more, "
            "not nearly all of them alike, to keep some for validation"
        )
    return Corpus(name, *(_bytes(between.join(part) + "\n") for part in parts))


def _different(pieces: Iterable[str]) -> list[str]:
    """Each piece once, whatever its white space; none that is empty."""
    found: dict[str, str] = {}
    for piece in pieces:
        words = " ".join(piece.split())
        if words:
            found.setdefault(words, piece.rstrip())
    return list(found.values())


def _families(pieces: Sequence[str]) -> list[int]:
    """For each piece the number of its family: pieces with a passage in common are of one, and so are theirs."""
    parent = list(range(len(pieces)))

    def eldest(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, ...], int] = {}
    for i, piece in enumerate(pieces):
        words = piece.split()
        for start in range(len(words) - SHARED + 1):
            j = first.setdefault(tuple(words[start : start + SHARED]), i)
            if j != i:
                parent[eldest(i)] = eldest(j)
    return [eldest(i) for i in range(len(pieces))]


def _choose(pieces: Sequence[str], family: Sequence[int], seed: int, share: float) -> set[int]:
    """The families for validation: drawn one by one, each taken if it still fits into the share."""
    size: dict[int, int] = {}
    for piece, f in zip(pieces, family, strict=True):
        size[f] = size.get(f, 0) + len(piece) + 2
    order = list(size)
    random.Random(seed).shuffle(order)
    room, chosen = share * sum(size.values()), set()
    for f in order:
        if size[f] <= room:
            chosen.add(f)
            room -= size[f]
    return chosen


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)


def overlap(corpus: Corpus, width: int = 100) -> float:
    """The share of the validation part's windows, of `width` bytes, that stand in the training part, too."""
    seen, judged = (part.numpy().tobytes() for part in (corpus.training, corpus.validation))
    known = {seen[i : i + width] for i in range(len(seen) - width + 1)}
    windows = range(len(judged) - width + 1)
    return sum(judged[i : i + width] in known for i in windows) / max(len(windows), 1)


def random_windows(data: Tensor, b: int, l: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """b windows of l bytes from anywhere in the data, and the byte that follows each of their bytes.

    Args:
        data: (n,), n over l.
        b, l: how many windows, and how long.
        generator: draws their places.
    Returns:
        tokens (b, l) and targets (b, l), int64.
    Raises:
        ValueError: the data is too short for one window.
    """
    if len(data) <= l:
        raise ValueError(f"length: got {l} with a text of {len(data)} bytes, expected less than that")
    starts = torch.randint(len(data) - l, (b, 1), generator=generator)
    windows = data[starts + torch.arange(l + 1)].long()  # (b, l + 1)
    return windows[:, :-1], windows[:, 1:]
