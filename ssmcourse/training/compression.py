"""How well a model predicts a text, in bits a byte, beside the compressors that everyone has.

A model that gives the next byte the probability p needs -log2 p bits to say it (with arithmetic coding, to within
a bit for the whole text), so a language model and a compressor are measured by the same number. The model has read
the training part before; so that the comparison is fair, xz reads it as well ("primed").
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ssmcourse.models import LanguageModel
from ssmcourse.tasks.text import Corpus

ROWS = 16  # windows in a batch


@dataclass(frozen=True)
class Compression:
    """Bits a byte of one text: name -> figure, from most to fewest when printed."""

    name: str
    bytes: int
    figures: dict[str, float]

    def __str__(self) -> str:
        width = max(map(len, self.figures))
        ordered = sorted(self.figures.items(), key=lambda item: -item[1])
        lines = [f"{name:<{width}}  {bits:.3f}" for name, bits in ordered]
        return "\n".join(
            [f"bits a byte of {self.bytes:,} bytes of {self.name}, not seen in training", *lines]
        )


@torch.no_grad()
def bits_per_byte(model: LanguageModel, data: Tensor, length: int = 256) -> float:
    """The bits that a model needs for each byte of a text, from at least half of `length` bytes before it.

    Windows of `length` bytes begin every length // 2 bytes, and in each but the first only the second half counts.
    The very first byte, which nothing precedes, counts 8 bits.

    Args:
        model: of bytes, put in `eval` mode.
        data: (n,) uint8, n of 2 or more.
        length: of the windows, 2 or more; that of the training is a good choice.
    """
    if len(data) < 2 or length < 2:
        raise ValueError(
            f"data, length: got {len(data)} bytes and length {length}, expected 2 or more of both"
        )
    model.eval()
    device = next(model.parameters()).device
    half, n = length // 2, len(data)
    nats = _nats(model, data[None, : length + 1].to(device), 0)
    starts = torch.arange(half, max(half, n - length), half)
    for some in starts.split(ROWS):
        nats += _nats(model, data[some[:, None] + torch.arange(length + 1)].to(device), length - half)
    said = length + half * len(starts)  # the last place whose byte is paid for
    if said < n - 1:
        begin = max(0, n - 1 - length)
        nats += _nats(model, data[None, begin:].to(device), said - begin)
    return (nats / math.log(2) + 8) / n


def _nats(model: LanguageModel, windows: Tensor, skip: int) -> float:
    """What the bytes after place `skip` of windows (b, l + 1) cost together."""
    windows = windows.long()
    logits = model(windows[:, :-1])[:, skip:].double()
    return functional.cross_entropy(
        logits.flatten(0, 1), windows[:, skip + 1 :].flatten(), reduction="sum"
    ).item()


def compare_with_compressors(
    corpus: Corpus, model: LanguageModel | None = None, length: int = 256
) -> Compression:
    """Bits a byte of a corpus's validation part: gzip, bz2, xz, xz primed with the training part, and the model.

    Args:
        model: of bytes; None for the compressors alone.
        length: as in `bits_per_byte`.
    """
    before, text = (part.numpy().tobytes() for part in (corpus.training, corpus.validation))
    sizes = {
        "gzip": len(gzip.compress(text)),
        "bz2": len(bz2.compress(text)),
        "xz": len(_xz(text)),
        "xz, primed with the training part": len(_xz(before + text)) - len(_xz(before)),
    }
    figures = {name: 8 * size / len(text) for name, size in sizes.items()}
    if model is not None:
        figures["the model"] = bits_per_byte(model, corpus.validation, length)
    return Compression(corpus.name, len(text), figures)


def _xz(text: bytes) -> bytes:
    return lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
