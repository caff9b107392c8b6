"""What both Triton kernels of the selective scan are given, and what they refuse."""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ssmcourse.kernels import runtime

# Steps from one state that is kept for the gradient to the next. The interpreter's tests are short.
CHUNK = 64 if runtime.triton_mode() == "compiled" else 16
MOST_STATES = 256


class Given(NamedTuple):
    """The tensors as the kernels read them, and the numbers that both kernels take."""

    tensors: dict[str, Tensor | None]  # the first arguments of either kernel
    sizes: dict[str, int]  # the next
    options: dict[str, Any]  # and what is compiled in
    programs: int  # for each row


def read(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, sequence: Tensor | None, dt_softplus: bool, zoh: bool, states: int,
) -> Given:  # fmt: skip
    """`states`: how many numbers the tile of states of a program may have."""
    (_, l, d), n = x.shape, A.shape[1]
    groups_B, groups_C = (M.shape[2] if M.ndim == 4 else 1 for M in (B, C))
    groups = math.lcm(groups_B, groups_C)
    N = triton.next_power_of_2(max(1, n))
    block_d = min(64, triton.next_power_of_2(d // groups), max(1, states // N))
    rows = {"x": _evenly_spaced(x), "dt": _evenly_spaced(dt), "z": None if z is None else _evenly_spaced(z)}
    return Given(
        {
            "x_ptr": rows["x"],
            "dt_ptr": rows["dt"],
            "A_ptr": A.contiguous(),
            "B_ptr": B.contiguous(),
            "C_ptr": C.contiguous(),
            "D_ptr": None if D is None else D.contiguous(),
            "z_ptr": rows["z"],
            "bias_ptr": None if dt_bias is None else dt_bias.contiguous(),
            "sequence_ptr": None if sequence is None else sequence.contiguous(),
        },
        {"l": l, "d": d, "n": n, "groups": groups, "groups_B": groups_B, "groups_C": groups_C}
        | {f"stride_{name}": 0 if t is None else t.stride(1) for name, t in rows.items()},
        {
            "B_MOVES": B.ndim == 4,
            "C_MOVES": C.ndim == 4,
            "SOFTPLUS": dt_softplus,
            "ZOH": zoh,
            "CHUNK": CHUNK,
            "N": N,
            "BLOCK_D": block_d,
        },
        groups * triton.cdiv(d // groups, block_d),
    )


def empty(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None, sequence: Tensor | None,
    sequences: int, dt_softplus: bool, zoh: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Tensors of the shapes that a scan returns; the states before every CHUNK-th step are kept."""
    b, l, d = x.shape
    n = A.shape[1]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, A.new_empty((sequences, d, n)), A.new_empty((b, (l + CHUNK - 1) // CHUNK if keep else 0, n, d))


def refuse(A: Tensor) -> None:
    """What the kernels cannot take."""
    if A.is_complex():
        raise ValueError(
            f"A: got {A.dtype}, expected a real dtype: Triton has no complex numbers. "
            "For complex A pass backend='reference', or on the CPU backend='cpu'"
        )
    if A.shape[1] > MOST_STATES:
        raise ValueError(
            f"A: got n = {A.shape[1]} states a channel, expected at most {MOST_STATES}: the Triton kernel keeps "
            "them in registers. For more pass backend='reference', or on the CPU backend='cpu'"
        )


def _evenly_spaced(t: Tensor) -> Tensor:
    """t (b, l, d) with its channels side by side and one distance from step to step, over the rows as well.

    So are z = xz[..., d:] and the like as they are; anything else is copied.
    """
    b, l, d = t.shape
    side_by_side = d == 1 or t.stride(2) == 1
    rows_follow = b == 1 or t.stride(0) == l * t.stride(1)
    return t if side_by_side and rows_follow else t.contiguous()


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which may be another one than x's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
