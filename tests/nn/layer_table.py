"""The layers, each small: what test_layers.py goes through. To add one, write a line in LAYERS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssmcourse import nn

D = 8  # d_model of all of them

LAYERS: dict[str, Callable[[], nn.SequenceLayer]] = {
    "S4": lambda: nn.S4(D, d_state=6),
    "S4D": lambda: nn.S4D(D, d_state=6),
    "H3": lambda: nn.H3(D, d_state=6, shift_size=4),
    "H3 heads": lambda: nn.H3(D, d_state=6, head_dim=4, shift_size=4),
    "Mamba": lambda: nn.Mamba(D, d_state=4),
    "Mamba2": lambda: nn.Mamba2(D, d_state=4, headdim=4, ngroups=2),
    "Attention": lambda: nn.Attention(D, num_heads=4, num_heads_kv=2),
    "Attention rotary": lambda: nn.Attention(D, num_heads=2, rotary_emb_dim=4),
    "LinearAttention": lambda: nn.LinearAttention(D, num_heads=2),
    "GatedMLP": lambda: nn.GatedMLP(D),
    "RGLRU": lambda: nn.RGLRU(D),
    "GriffinBlock": lambda: nn.GriffinBlock(D),
    "RWKV4": lambda: nn.RWKV4(D),
}
GROWS = {"Attention", "Attention rotary"}  # whose cache grows with the sequence


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.SequenceLayer:
    """The layer, in eval mode, every parameter moved a little: ones and zeros would hide that they are not used."""
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype).eval()
    with torch.no_grad():
        for value in layer.parameters():
            value.mul_(1 + 0.1 * torch.randn_like(value)).add_(0.05 * torch.randn_like(value))
    return layer


def sequence(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
