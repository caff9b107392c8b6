"""Bits a byte: against a loop over every byte, and the compressors by name."""

import bz2
import gzip
import lzma
import math

import pytest
import torch
from torch import nn

from ssmcourse.models import LanguageModel, LanguageModelConfig
from ssmcourse.tasks.text import Corpus, python_reference
from ssmcourse.training import bits_per_byte, compare_with_compressors


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = LanguageModel(LanguageModelConfig("M", d_model=8, vocab_size=256)).double()
    nn.init.normal_(made.backbone.embedding.weight)  # so that bytes cost different amounts
    return made


def by_hand(model, data, length):
    """Byte after byte: in the first window from all before it, else from length - half to length - 1 before it."""
    half, bits = length // 2, 8.0
    starts = list(range(0, len(data), half))
    for i in range(1, len(data)):
        if i <= length:
            begin = 0
        else:
            begin = next(s for s in starts if s + length >= i)
            begin = begin if begin + length < len(data) else len(data) - 1 - length
        with torch.no_grad():
            logits = model(data[None, begin:i].long())[0, -1]
        bits -= logits.log_softmax(-1)[data[i].long()].item() / math.log(2)
    return bits / len(data)


@pytest.mark.parametrize(
    ("n", "length"), [(2, 8), (7, 8), (9, 8), (10, 8), (13, 8), (14, 8), (40, 8), (41, 7), (30, 2)]
)
def test_every_byte_is_paid_for_once(model, n, length):
    data = torch.randint(256, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    assert bits_per_byte(model, data, length) == pytest.approx(by_hand(model, data, length), rel=1e-9)


def test_a_model_that_knows_nothing_needs_eight_bits(model):
    with torch.no_grad():
        blank = LanguageModel(LanguageModelConfig("M", d_model=8, vocab_size=256))
        blank.backbone.embedding.weight.zero_()
    data = torch.arange(200, dtype=torch.uint8)
    assert bits_per_byte(blank, data, 16) == pytest.approx(8.0, abs=1e-6)


def test_too_short(model):
    with pytest.raises(ValueError, match="data, length: got 1 bytes and length 8"):
        bits_per_byte(model, torch.zeros(1, dtype=torch.uint8), 8)


def test_the_compressors(model):
    text = bytes(python_reference().validation[:4000].tolist())
    before = bytes(python_reference().training[:9000].tolist())
    corpus = Corpus("piece", *(torch.tensor(list(part), dtype=torch.uint8) for part in (before, text)))
    found = compare_with_compressors(corpus, model, length=64)
    assert found.figures["gzip"] == 8 * len(gzip.compress(text)) / 4000
    assert found.figures["bz2"] == 8 * len(bz2.compress(text)) / 4000
    alone = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / 4000
    assert found.figures["xz"] == pytest.approx(alone)
    assert found.figures["xz, primed with the training part"] < alone
    assert found.figures["the model"] == bits_per_byte(model, corpus.validation, 64)
    lines = str(found).splitlines()
    assert lines[0] == "bits a byte of 4,000 bytes of piece, not seen in training"
    assert len(lines) == 6
    assert [float(line.split()[-1]) for line in lines[1:]] == sorted(
        (float(line.split()[-1]) for line in lines[1:]), reverse=True
    )


def test_the_reference_is_as_hard_as_is_said():
    figures = compare_with_compressors(python_reference()).figures
    for name in ("gzip", "bz2", "xz"):
        assert 2.4 < figures[name] < 3.1
    assert 1.8 < figures["xz, primed with the training part"] < 2.2
