"""What a learner's code prints: kept short, whatever its length."""

from __future__ import annotations

import builtins
import contextlib
import io
from collections.abc import Iterator

HEAD, TAIL = 2000, 500  # characters kept from the beginning and from the end


class Printed(io.TextIOBase):
    """A text stream that remembers its first and last characters and counts the rest.

    Cost: O(1) memory, whatever is written.
    """

    def __init__(self) -> None:
        self.head, self.tail, self.count = "", "", 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write: got {type(text).__name__}, expected str")
        free = HEAD - len(self.head)
        if free > 0:
            self.head += text[:free]
        if len(text) > free:
            self.tail = (self.tail + text[max(free, 0) :][-TAIL:])[-TAIL:]
        self.count += len(text)
        return len(text)

    def short(self, lines: int = 6) -> str:
        """The first lines printed, and one that says how much was left out."""
        if not self.count:
            return ""
        shown = self.head.splitlines()[:lines]
        shown = [line if len(line) <= 200 else line[:200] + " ..." for line in shown]
        if self.count > len(self.head) or len(self.head.splitlines()) > lines:
            shown.append(f"... ({self.count:,} characters in all)")
        return "\n".join(shown)


@contextlib.contextmanager
def captured(into: Printed) -> Iterator[None]:
    """Send stdout and stderr into `into`, and let `input` say that nobody is there to answer."""
    ask, builtins.input = builtins.input, _nobody
    try:
        with contextlib.redirect_stdout(into), contextlib.redirect_stderr(into):
            yield
    finally:
        builtins.input = ask


def _nobody(prompt: object = "") -> str:
    raise RuntimeError("input() waits for somebody to type; a check hands over the arguments instead")
