"""Layers: torch modules around the operators of this library, with the official names of their parameters.

Every one is a `SequenceLayer`: `ssmcourse/nn/sequence.py` says how they are called. Each is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmcourse import lazy

if TYPE_CHECKING:  # what an editor and a type checker see
    from ssmcourse.nn.attention import Attention as Attention
    from ssmcourse.nn.griffin import RGLRU as RGLRU
    from ssmcourse.nn.griffin import GriffinBlock as GriffinBlock
    from ssmcourse.nn.h3 import H3 as H3
    from ssmcourse.nn.linear_attention import LinearAttention as LinearAttention
    from ssmcourse.nn.mamba import Mamba as Mamba
    from ssmcourse.nn.mamba2 import Mamba2 as Mamba2
    from ssmcourse.nn.mlp import GatedMLP as GatedMLP
    from ssmcourse.nn.norms import GatedRMSNorm as GatedRMSNorm
    from ssmcourse.nn.norms import RMSNorm as RMSNorm
    from ssmcourse.nn.rwkv import RWKV4 as RWKV4
    from ssmcourse.nn.s4 import S4 as S4
    from ssmcourse.nn.s4 import S4D as S4D
    from ssmcourse.nn.sequence import SequenceLayer as SequenceLayer
    from ssmcourse.nn.sequence import parameter_groups as parameter_groups

# public name -> the module that defines it
_HOME = {
    "Attention": "attention",
    "GatedMLP": "mlp",
    "GatedRMSNorm": "norms",
    "GriffinBlock": "griffin",
    "H3": "h3",
    "LinearAttention": "linear_attention",
    "Mamba": "mamba",
    "Mamba2": "mamba2",
    "RGLRU": "griffin",
    "RMSNorm": "norms",
    "RWKV4": "rwkv",
    "S4": "s4",
    "S4D": "s4",
    "SequenceLayer": "sequence",
    "parameter_groups": "sequence",
}

__getattr__, __dir__ = lazy.names(__name__, _HOME)
