"""Small models of every pattern, and what their tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmcourse.models import LanguageModel, LanguageModelConfig
from ssmcourse.tolerance import mismatch

VOCAB = 11  # padded to 16
D = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "M": {"d_state": 4},
    "2": {"d_state": 4, "headdim": 4, "ngroups": 2},
    "4": {"d_state": 6},
    "D": {"d_state": 6},
    "H": {"d_state": 6, "shift_size": 4},
    "G": {},
    "R": {},
    "L": {"num_heads": 2},
    "*": {"num_heads": 2, "rotary_emb_dim": 4},
    "-": {"hidden_features": 8},
}
PATTERNS = [*(letter * 2 for letter in "M24DHGRL*"), "M-2-", "2*-M-"]


def config(pattern: str, **given: Any) -> LanguageModelConfig:
    options = {letter: OPTIONS[letter] for letter in OPTIONS if letter in pattern}
    return LanguageModelConfig(pattern, **{"d_model": D, "vocab_size": VOCAB, "options": options} | given)


def make(pattern: str, dtype: torch.dtype = torch.float64, seed: int = 0, **given: Any) -> LanguageModel:
    """Every parameter moved a little, and an embedding large enough for the logits to differ."""
    torch.manual_seed(seed)
    model = LanguageModel(config(pattern, **given)).double().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.mul_(1 + 0.1 * torch.randn_like(value)).add_(0.05 * torch.randn_like(value))
            if "embedding" in name or "lm_head" in name:
                value.copy_(torch.randn_like(value))
    return model.to(dtype)


def draw_tokens(*shape: int, seed: int = 1, vocab: int = VOCAB) -> Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def same(got: Tensor, expected: Tensor, terms: int = 256) -> None:
    found = mismatch(got.detach(), expected.detach(), terms=terms)
    assert found is None, str(found)


def says(error: Any, *words: str) -> None:
    """The message is one line and has these words."""
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    for word in words:
        assert word in text
