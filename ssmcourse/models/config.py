"""What a language model is made of: one letter a layer, and the sizes.

| letter | layer            | letter | layer                   |
|--------|------------------|--------|-------------------------|
| `M`    | Mamba            | `G`    | Griffin's RG-LRU block  |
| `2`    | Mamba-2          | `R`    | RWKV-4's time mixing    |
| `4`    | S4               | `L`    | linear attention        |
| `D`    | S4D              | `*`    | attention               |
| `H`    | H3               | `-`    | gated MLP               |

The letters `M`, `*` and `-` are those of Waleffe et al. 2024, who describe their hybrid by such a string. Every
letter is a layer with a norm and a residual connection of its own, so `-` may follow `-`. Lesson 11.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from ssmcourse import nn
from ssmcourse.arguments import integer, number, shown

# letter -> the name of its layer in ssmcourse.nn
LAYERS = {
    "M": "Mamba",
    "2": "Mamba2",
    "4": "S4",
    "D": "S4D",
    "H": "H3",
    "G": "GriffinBlock",
    "R": "RWKV4",
    "L": "LinearAttention",
    "*": "Attention",
    "-": "GatedMLP",
}
# What the model says to a layer, so that an option cannot.
_PLACED = ("device", "dtype", "layer_idx", "n_layer", "out_features")


@dataclass(frozen=True)
class LanguageModelConfig:
    """The shape of a `LanguageModel`.

    Args:
        pattern: one letter a layer, from the table above: "MMMM", or "2-2*2-" for a hybrid.
        d_model: channels of the residual stream.
        vocab_size: tokens that there are.
        pad_vocab_size_multiple: the embedding has this many rows or a multiple of it; no token has the last ones.
        tie_embeddings: the head is the embedding, transposed.
        norm_eps: keeps the root of every RMS norm between the layers from 0.
        residual_in_fp32: the residual stream is float32 beside half weights.
        options: letter -> keyword arguments of its layer, {"2": {"d_state": 64}} for one.
    Raises:
        ValueError: an unknown letter or option, or a size that is none.
    """

    pattern: str
    d_model: int
    vocab_size: int
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True
    norm_eps: float = 1e-5
    residual_in_fp32: bool = True
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)
        for name in ("d_model", "vocab_size", "pad_vocab_size_multiple"):
            integer(name, getattr(self, name), 1)
        for name in ("tie_embeddings", "residual_in_fp32"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {shown(getattr(self, name))}, expected True or False")
        number("norm_eps", self.norm_eps)
        object.__setattr__(self, "options", _checked_options(self.options))
        for letter in dict.fromkeys(self.pattern):
            needed = [name for name in _parameters(letter) if name not in self.arguments(letter)]
            if needed:
                raise ValueError(
                    f"options[{letter!r}]: got no {_listed(needed)}, which {LAYERS[letter]} has no default for"
                )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: vocab_size, rounded up."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    def arguments(self, letter: str) -> dict[str, Any]:
        """All arguments of a letter's layer but its width: the options, and the defaults of what they leave open."""
        found = {
            name: parameter.default
            for name, parameter in _parameters(letter).items()
            if parameter.default is not inspect.Parameter.empty
        }
        return found | dict(self.options.get(letter, {}))

    def to_dict(self) -> dict[str, Any]:
        """The same as a dictionary of numbers, strings and dictionaries."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return values | {"options": {letter: dict(given) for letter, given in self.options.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LanguageModelConfig:
        """What `to_dict` gave. ValueError if there is a key too many or one too few."""
        known = [entry.name for entry in fields(cls)]
        if extra := [key for key in values if key not in known]:
            raise ValueError(f"config: got {_listed(extra)}, expected keys among {', '.join(known)}")
        if missing := [name for name in known[:3] if name not in values]:
            raise ValueError(f"config: got no {_listed(missing)}, expected {', '.join(known[:3])} at least")
        return cls(**values)


def layer_pattern(n_layers: int, attention_ratio: float, mlp_ratio: float, mixer: str = "2") -> str:
    """The pattern of a hybrid: attention evenly spaced, MLPs evenly among the rest, the other layers mixers.

        layer_pattern(56, 0.08, 0.5, mixer="M")     the 56 layers of Mamba-2-Hybrid

    Attention layers part the stack into sections of the same length, one more than there are attention layers: it
    neither begins nor ends with one. The MLPs are then shared out evenly among the layers of all sections, and come
    as late as that allows.

    Args:
        n_layers: letters in the pattern.
        attention_ratio: attention layers, as a part of n_layers. Rounded to a whole number of layers.
        mlp_ratio: MLPs, the same way. Together with the attention layers at most n_layers.
        mixer: the letter of the other layers.
    Raises:
        ValueError: a ratio outside [0, 1], more than n_layers together, or no such letter.

    Source: Waleffe et al. 2024, section 4.1 (the rule), and Megatron-LM, whose rule this is. Lesson 11.
    """
    integer("n_layers", n_layers, 1)
    for name, ratio in (("attention_ratio", attention_ratio), ("mlp_ratio", mlp_ratio)):
        number(name, ratio)
        if ratio > 1:
            raise ValueError(f"{name}: got {ratio}, expected a number in [0, 1]")
    if mixer not in LAYERS or mixer in "*-":
        raise ValueError(f"mixer: got {shown(mixer)}, expected one of {', '.join(list(LAYERS)[:-2])}")
    attention, mlps = round(n_layers * attention_ratio), round(n_layers * mlp_ratio)
    mixers = n_layers - attention - mlps
    if mixers < 0:
        raise ValueError(
            f"mlp_ratio: got {mlps} MLPs beside {attention} attention layers, expected at most {n_layers} together"
        )
    letters = [mixer] * n_layers
    for place in _spread(list(range(n_layers)), attention, Fraction(n_layers - attention, attention + 1)):
        letters[place] = "*"
    rest = [place for place, letter in enumerate(letters) if letter != "*"]
    for place in _spread(rest, mlps, Fraction(mixers, max(mlps, 1))):
        letters[place] = "-"
    return "".join(letters)


def _spread(places: list[int], count: int, gap: Fraction) -> list[int]:
    """`count` of the places, `gap` others before each, rounded to the nearest place."""
    chosen, others = [], gap
    for place in places:
        if len(chosen) < count and others < Fraction(1, 2):
            chosen.append(place)
            others += gap
        else:
            others -= 1
    return chosen


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"pattern: got {shown(pattern)}, expected one letter a layer, of {''.join(LAYERS)}")
    for place, letter in enumerate(pattern):
        if letter not in LAYERS:
            raise ValueError(
                f"pattern: got {letter!r} at place {place} of {shown(pattern)}, expected letters of {''.join(LAYERS)}"
            )


def _checked_options(options: Any) -> dict[str, dict[str, Any]]:
    """A copy; refuse a letter or an argument that does not exist."""
    if not isinstance(options, Mapping):
        raise ValueError(f"options: got {shown(options)}, expected letter -> keyword arguments")
    for letter, given in options.items():
        if letter not in LAYERS:
            raise ValueError(f"options: got the letter {shown(letter)}, expected one of {''.join(LAYERS)}")
        if not isinstance(given, Mapping):
            raise ValueError(f"options[{letter!r}]: got {shown(given)}, expected keyword arguments")
        known = _parameters(letter)
        if extra := [name for name in given if name not in known]:
            raise ValueError(
                f"options[{letter!r}]: got {_listed(extra)}, expected arguments of {LAYERS[letter]}: {', '.join(known)}"
            )
    # A pair read from JSON is a list, and the same pair.
    return {
        letter: {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        for letter, given in options.items()
    }


def layer_class(letter: str) -> type[nn.SequenceLayer]:
    """The class of a letter's layer."""
    return getattr(nn, LAYERS[letter])


def _parameters(letter: str) -> dict[str, inspect.Parameter]:
    """What a layer can be told: its constructor's arguments but the first, which is the width, and its place."""
    known = list(inspect.signature(layer_class(letter)).parameters.items())[1:]
    return {name: parameter for name, parameter in known if name not in _PLACED}


def _listed(names: list[Any]) -> str:
    """A few names for a message, and how many more there are."""
    text = ", ".join(str(name) for name in names[:3])
    return text if len(names) <= 3 else f"{text} and {len(names) - 3} more"
