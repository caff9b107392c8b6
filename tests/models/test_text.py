"""Text: no half characters, no part of a stop string, and all pieces together are the text."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_table import make, says

from ssmcourse.models import LanguageModel, LanguageModelConfig, generate_text, load_tokenizer, stream_text
from ssmcourse.models.text import TextStream

TEXT = (
    "Zwölf Boxkämpfer jagen Viktor 🥊👩‍👩‍👧 quer über den großen Sylter Deich. 日本語も、한국어도. ENDE\n\n"
)


class Bytes:
    """A tokenizer of single bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


class Pieces:
    """A tokenizer whose tokens are given, bytes each; decoding joins them."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def encode(self, text: str) -> Any:
        return SimpleNamespace(ids=[0])

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


class Scripted:
    """Instead of a model: it says what it was told to."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        weight = torch.zeros(1)
        self.backbone = SimpleNamespace(embedding=SimpleNamespace(weight=weight))

    def stream(self, tokens: torch.Tensor, count: int, **_: Any) -> Iterator[torch.Tensor]:
        yield from (torch.tensor([token]) for token in self.ids[:count])


def pieces_of(ids: list[int], tokenizer: Any, **options: Any) -> list[str]:
    model: Any = Scripted(ids)
    return list(stream_text(model, tokenizer, "x", 10_000, **options))


def bpe() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT] * 3, vocab_size=330, show_progress=False)
    return made


@pytest.mark.parametrize("make_tokenizer", [Bytes, bpe], ids=["bytes", "bpe"])
def test_the_pieces_are_the_text(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    encoded = tokenizer.encode(TEXT)
    pieces = pieces_of(list(getattr(encoded, "ids", encoded)), tokenizer)
    assert "".join(pieces) == TEXT
    assert len(pieces) > 25
    assert "\ufffd" not in "".join(pieces)


def test_characters_come_whole() -> None:
    assert pieces_of(list("aé🥊b".encode()), Bytes()) == ["a", "é", "🥊", "b"]
    assert pieces_of(list("aé".encode())[:-1], Bytes()) == ["a"]  # the end of a character that never comes
    assert pieces_of([0xE9, 0x61, 0x62], Bytes()) == ["\ufffda", "b"]  # no character, and now that is certain


@pytest.mark.parametrize(
    ("tokens", "stop", "expected"),
    [
        ([b"one tw", b"o th", b"ree"], "two", "one "),  # begins inside a token, ends inside another
        ([b"a", b"b", b"a", b"b", b"c", b"d"], "abc", "ab"),  # a false start that overlaps the true one
        ([b"a", b"b", b"a", b"b"], "abc", "abab"),  # held back, and let go at the end
        ([b"aXbYc"], ["Y", "X"], "a"),  # the first in the text, not in the list
        ([b"caf\xc3", b"\xa9!", b"?"], "é", "caf"),
        ([b"stop"], "stop", ""),
        ([b"no", b"thing"], "thingamajig", "nothing"),
        ([b"a\n", b"\nb"], ["\n\n"], "a"),
    ],
)
def test_stop_strings(tokens: list[bytes], stop: Any, expected: str) -> None:
    tokenizer = Pieces(b"", *tokens)
    pieces = pieces_of(list(range(1, len(tokens) + 1)), tokenizer, stop=stop)
    assert "".join(pieces) == expected
    shown = ""
    for piece in pieces:  # what is shown is never taken back, nor the beginning of a stop string that comes
        shown += piece
        assert expected.startswith(shown)


def test_text_is_not_held_longer_than_it_must_be() -> None:
    text = TextStream(Bytes().decode, stop=["ab"])
    assert [text.push(ord(letter)) for letter in "xayab"] == ["x", "", "ay", "", ""]
    assert text.stopped
    assert text.push(ord("z")) == text.finish() == ""


def test_what_a_first_token_loses_the_next_ones_do_not() -> None:
    """As in sentencepiece: the space before the first word is left out, that before later ones is not."""

    def decode(ids: list[int]) -> str:
        return "".join(f" {i}" for i in ids)[1:]

    text = TextStream(decode, prompt=[7])
    assert [text.push(i) for i in (1, 2)] == [" 1", " 2"]


def test_tokens_without_text() -> None:
    """A special token that decodes to nothing is context for none."""

    def decode(ids: list[int]) -> str:
        return "".join(f" {i}" for i in ids if i != 9)[1:]

    text = TextStream(decode, prompt=[7])
    assert [text.push(i) for i in (1, 9, 2, 9, 9, 3)] == [" 1", "", " 2", "", "", " 3"]


def test_with_a_model() -> None:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig("M", 16, 256, options={"M": {"d_state": 4}})).eval()
    options = {"temperature": 2.0, "seed": 1}
    prompt = torch.tensor([list(b"Once")])
    ids = model.generate(prompt, 40, **options)[0, 4:].tolist()
    whole = bytes(ids).decode(errors="replace").rstrip("\ufffd")
    assert generate_text(model, Bytes(), "Once", 40, **options) == whole
    end = next(i for i, letter in enumerate(whole) if letter.isascii() and i > 3)
    assert (
        generate_text(model, Bytes(), "Once", 40, stop=whole[end], **options)
        == whole[: whole.index(whole[end])]
    )
    first = next(i for i, token in enumerate(ids) if token < 128)
    cut = bytes(ids[:first]).decode(errors="replace").rstrip("\ufffd")
    assert generate_text(model, Bytes(), "Once", 40, stop_tokens=[ids[first]], **options) == cut


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stop": ""}, ["stop"]),
        ({"stop": ["a", 3]}, ["stop", "3"]),
        ({"prompt": ""}, ["empty prompt"]),
        ({"prompt": 3}, ["prompt", "3"]),
        ({"max_new_tokens": -1}, ["max_new_tokens"]),
        ({"stop_tokens": [999]}, ["stop", "999"]),
    ],
    ids=str,
)
def test_what_is_refused(given: dict[str, Any], words: list[str]) -> None:
    model = make("M", torch.float32)
    with pytest.raises(ValueError) as error:
        stream_text(model, Bytes(), **{"prompt": "\1", "max_new_tokens": 3} | given)
    says(error, *words)


def test_load_tokenizer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_tokenizer(tmp_path)
    says(error, "tokenizer.json")
    file = tmp_path / "tokenizer.json"
    file.write_text('{"version": "1.0"')
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError) as error:
        load_tokenizer(tmp_path)
    says(error, str(file), "not a tokenizer")
    bpe().save(str(file))
    for path in (tmp_path, str(file)):
        assert load_tokenizer(path).decode(load_tokenizer(path).encode(TEXT).ids) == TEXT
    monkeypatch.delitem(sys.modules, "tokenizers")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError) as missing:
        load_tokenizer(tmp_path)
    says(missing, "tokenizers", "not installed")
