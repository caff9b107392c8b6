"""Models: layers stacked into language models, with generation and published checkpoints. Loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmcourse import lazy

if TYPE_CHECKING:  # what an editor and a type checker see
    from ssmcourse.models.config import LanguageModelConfig as LanguageModelConfig
    from ssmcourse.models.config import layer_pattern as layer_pattern
    from ssmcourse.models.language_model import LanguageModel as LanguageModel
    from ssmcourse.models.text import generate_text as generate_text
    from ssmcourse.models.text import load_tokenizer as load_tokenizer
    from ssmcourse.models.text import stream_text as stream_text

# public name -> the module that defines it
_HOME = {
    "LanguageModel": "language_model",
    "LanguageModelConfig": "config",
    "generate_text": "text",
    "layer_pattern": "config",
    "load_tokenizer": "text",
    "stream_text": "text",
}

__getattr__, __dir__ = lazy.names(__name__, _HOME)
