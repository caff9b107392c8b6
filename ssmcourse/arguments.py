"""What an operator asks of its arguments: one clear line when a shape, dtype or device does not fit.

    given = Arguments()
    given.activation("x", x, "b l d")          # the first one sets sizes, dtype and device
    given.activation("B", B, "b l n", "b l g n", "d n")
    given.parameter("A", A, "d n")
    given.parameter("D", D, "d", optional=True)  # None passes
    given.sizes["n"]

A shape is written as letters (lesson 00 has the table of them). A letter has the size that it had when it
was first seen; `1` is a size, and `...` in front stands for any leading dimensions.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
FLOATING_OR_COMPLEX = FLOATING + COMPLEX
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
COMPLEX_OF = {
    torch.float16: torch.complex64,
    torch.bfloat16: torch.complex64,
    torch.float32: torch.complex64,
    torch.float64: torch.complex128,
}


class Arguments:
    """Checks the arguments of one call and remembers the sizes of the letters.

    Every method takes the argument's name, its value (None passes if it is optional) and the shapes that
    it may have, and raises a ValueError that says what was got and what is expected.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.source: dict[str, str] = {}  # letter -> the argument that set its size
        self.first = ""
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None

    def activation(
        self, name: str, value: Any, *shapes: str, optional: bool = False, is_complex: bool = False
    ) -> None:
        """x, dt, B, C, z, ...: they all share one dtype, or with `is_complex` have its complex twin."""
        if value is None and optional:
            return
        if self.dtype is None:
            tensor = self._tensor(name, value, FLOATING, "float16, bfloat16, float32 or float64")
            self.dtype, self.device, self.first = tensor.dtype, tensor.device, name
        else:
            wanted = COMPLEX_OF[self.dtype] if is_complex else self.dtype
            tensor = self._tensor(name, value, (wanted,))
        self._shape(name, tensor, shapes)

    def parameter(
        self, name: str, value: Any, *shapes: str, optional: bool = False, may_be_complex: bool = False
    ) -> None:
        """A, D, dt_bias, states, ...: any floating dtype, float32 beside half activations say."""
        if value is None and optional:
            return
        dtypes, expected = FLOATING, "a floating one"
        if may_be_complex:
            dtypes, expected = FLOATING_OR_COMPLEX, "a floating or complex one"
        tensor = self._tensor(name, value, dtypes, expected)
        self._shape(name, tensor, shapes)

    def integers(self, name: str, value: Any, *shapes: str, optional: bool = False) -> None:
        """seq_idx, ...: any integer dtype."""
        if value is None and optional:
            return
        tensor = self._tensor(name, value, INTEGERS, "an integer one")
        self._shape(name, tensor, shapes)

    def at_least_one(self, letter: str) -> None:
        """Refuse the argument that set this letter's size if that is 0."""
        if self.sizes[letter] < 1:
            raise ValueError(f"{self.source[letter]}: got {letter}=0, expected {letter} of 1 or more")

    def _tensor(self, name: str, value: Any, dtypes: tuple[torch.dtype, ...], expected: str = "") -> Tensor:
        """The value, once it is a tensor of one of these dtypes; `expected`: what to call them, if not the first's."""
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: got {type(value).__name__}, expected a torch tensor")
        if value.layout != torch.strided:
            raise ValueError(f"{name}: got a tensor of layout {value.layout}, expected a dense (strided) one")
        if value.dtype not in dtypes:
            expected = expected or f"{dtypes[0]} to go with {self.first} ({self.dtype})"
            raise ValueError(f"{name}: got dtype {value.dtype}, expected {expected}")
        if self.device is None:
            self.device, self.first = value.device, name
        if value.device != self.device:
            raise ValueError(
                f"{name}: got a tensor on {value.device}, expected {self.first}'s device {self.device}"
            )
        return value

    def _shape(self, name: str, value: Tensor, shapes: tuple[str, ...]) -> None:
        for shape in shapes:
            letters, sizes = shape.split(), value.shape
            if letters[0] == "...":
                letters = letters[1:]
                sizes = sizes[max(0, len(sizes) - len(letters)) :]
            if len(letters) == len(sizes) and self._fits(name, letters, sizes):
                return
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {self._wanted(shapes)}")

    def _fits(self, name: str, letters: list[str], sizes: tuple[int, ...]) -> bool:
        """Are these the sizes of the letters? Those that were not known are noted, if all fit."""
        known = self.sizes
        for letter, size in zip(letters, sizes, strict=True):
            if letter in known:
                if known[letter] != size:
                    return False
            elif letter.isalpha():
                known = known | {letter: size}
            elif int(letter) != size:
                return False
        if known is not self.sizes:
            self.source |= {letter: name for letter in known if letter not in self.sizes}
            self.sizes = known
        return True

    def _wanted(self, shapes: tuple[str, ...]) -> str:
        """The shapes in letters and, where known, in numbers: "(b, l, n) with b=2, l=16 as in x"."""
        text = " or ".join(
            "(" + ", ".join(s.split()) + ("," if len(s.split()) == 1 else "") + ")" for s in shapes
        )
        known = dict.fromkeys(letter for s in shapes for letter in s.split() if letter in self.sizes)
        if not known:
            return text
        sources = dict.fromkeys(self.source[letter] for letter in known)
        sizes = ", ".join(f"{letter}={self.sizes[letter]}" for letter in known)
        return f"{text} with {sizes} as in {' and '.join(sources)}"


def groups(name: str, g: int, of: str, n: int) -> None:
    """Refuse g groups that do not share out n channels or heads evenly.

    Args:
        name: the argument that has the groups.
        of: what is shared out, "channels" or "heads".
    """
    if g < 1 or n % g:
        raise ValueError(f"{name}: got {g} groups for {n} {of}, expected a number that divides {n}")


def one_of(name: str, value: Any, choices: tuple) -> None:
    """Refuse an option that is not one of its names."""
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise ValueError(f"{name}: got {shown(value)}, expected one of {', '.join(map(str, choices))}")


def integer(name: str, value: Any, at_least: int, expected: str = "") -> int:
    """The option as an int; refuse what is not an integer of at least that (a bool is none).

    Args:
        expected: for the message, where there is more to say than "an integer of ... or more".
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise ValueError(
            f"{name}: got {shown(value)}, expected {expected or f'an integer of {at_least} or more'}"
        )
    return int(value)


def number(name: str, value: Any, *, zero: bool = True) -> None:
    """Refuse an option that is not a finite real number of 0 or more (a bool or a tensor is none).

    Args:
        zero: whether it may be 0.
    """
    fits = not isinstance(value, bool) and isinstance(value, Real) and 0 <= float(value) < math.inf
    if not fits or (value == 0 and not zero):
        expected = "a finite number of 0 or more" if zero else "a finite number above 0"
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")


def shown(value: Any) -> str:
    """A value in an error message, on one line however large it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
