"""Text in, text out: a tokenizer around `LanguageModel.stream`.

Two things make it more than decoding every token: a token may end in the middle of a character (é is two bytes),
and a stop string may begin in the middle of a token. So text is held back until it is certain. Lesson 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ssmcourse.arguments import shown

if TYPE_CHECKING:
    from ssmcourse.models.language_model import LanguageModel

UNKNOWN = "\ufffd"  # what decoders write for bytes that are no character, or not yet


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of the `tokenizers` and `transformers` libraries are such."""

    def encode(self, text: str, /) -> Any:
        """The ids, or an object with `.ids`."""
        ...

    def decode(self, ids: list[int], /) -> str: ...


def generate_text(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, **options: Any
) -> str:
    """The text that follows the prompt. Arguments and errors: those of `stream_text`."""
    return "".join(stream_text(model, tokenizer, prompt, max_new_tokens, **options))


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    stop: str | Sequence[str] = (),
    stop_tokens: Sequence[int] = (),
    **options: Any,
) -> Iterator[str]:
    """The text that follows the prompt, piece by piece.

        for piece in stream_text(model, tokenizer, "Once upon", 100, stop=["\\n\\n"]):
            print(piece, end="", flush=True)

    No piece ends within a character, and none has a part of a stop string in it.

    Args:
        prompt: text of one token or more.
        max_new_tokens: how many at most.
        stop: a string or several. The text ends before the first that occurs in it.
        stop_tokens: ids at which the text ends, that of the end of a document say. They are no text themselves.
        options: temperature, top_k, top_p and seed of `generation.stream`.
    Raises:
        ValueError: an empty prompt, an empty stop string, or an option out of its range.
    """
    strings = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"stop: got {shown(stop)}, expected strings of one character or more")
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: got {shown(prompt)}, expected a string")
    encoded = tokenizer.encode(prompt)
    ids = list(getattr(encoded, "ids", encoded))
    device = model.backbone.embedding.weight.device
    tokens = torch.tensor([ids], dtype=torch.int64, device=device)
    new = model.stream(tokens, max_new_tokens, stop=list(stop_tokens), **options)
    return _pieces(new, TextStream(tokenizer.decode, ids, strings), set(stop_tokens))


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a checkpoint: its tokenizer.json, read with the `tokenizers` library.

    Args:
        path: the checkpoint's directory, or the file.
    Raises:
        FileNotFoundError: there is no tokenizer.json.
        ImportError: the library is not installed.
        ValueError: the file is not one that it reads.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a tokenizer is read from tokenizer.json")
    try:
        from tokenizers import Tokenizer as FastTokenizer
    except ImportError as missing:
        raise ImportError(
            f"{file}: `tokenizers` is not installed, which reads it: pip install tokenizers"
        ) from missing
    try:
        return FastTokenizer.from_file(str(file))
    except Exception as wrong:  # the library raises nothing narrower
        raise ValueError(f"{file}: not a tokenizer ({str(wrong).splitlines()[0]})") from wrong


class TextStream:
    """Makes text of tokens as they come.

    Args:
        decode: token ids to text.
        prompt: ids that came before; some decoders treat the first token in another way.
        stop: strings to end before.
    Attributes:
        stopped: a stop string has come; no more text will.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], prompt: Sequence[int] = (), stop: Sequence[str] = ()
    ):
        self.decode, self.stop, self.stopped = decode, list(stop), False
        self.context = list(prompt)  # tokens whose text is settled; only the last few are kept
        self.open: list[int] = []  # tokens whose text is not
        self.held = ""  # settled text that may be the beginning of a stop string

    def push(self, token: int) -> str:
        """The text that this token makes certain; often it is empty."""
        self.open.append(token)
        new = self._text()
        if not new or new.endswith(UNKNOWN):
            return ""
        self.context, self.open = self.open, []
        return self._release(new)

    def finish(self) -> str:
        """The rest. A character of which only a part has come is left out."""
        rest = self._release(self._text().rstrip(UNKNOWN)) if self.open else ""
        if self.stopped:
            return rest
        rest, self.held = rest + self.held, ""
        return rest

    def _text(self) -> str:
        """What the open tokens add to the settled ones."""
        before = self.decode(self.context) if self.context else ""
        return self.decode(self.context + self.open)[len(before) :]

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self.held + new
        found = [place for place in (text.find(string) for string in self.stop) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        kept = max((_overlap(text, string) for string in self.stop), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _pieces(new: Iterator[torch.Tensor], text: TextStream, stop_tokens: set[int]) -> Iterator[str]:
    for token in new:
        if int(token) in stop_tokens:
            break
        if piece := text.push(int(token)):
            yield piece
        if text.stopped:
            return
    if piece := text.finish():
        yield piece


def _overlap(text: str, string: str) -> int:
    """How many characters at the text's end are the beginning of the string, and not all of it."""
    sizes = range(min(len(text), len(string) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(string[:size])), 0)
