"""One step of the selective scan in Triton, for generation: one launch a token.

    h' = exp(Δ A) h + B̄ x,    y = (C h' + D x) silu(z)      (Gu & Dao 2023, Eq. 2)

The arithmetic is that of the scan's kernels, from triton_steps.py. A program takes one row and BLOCK_D channels.

Bytes: the state once in and once out, which is nearly all of it: 8n for each channel in float32, beside 4n of A;
x, dt, z, y once; B and C once for each block of channels. FLOPs: 7n + 40 for each channel.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.launching import contiguous, on_device_of
from ssmcourse.kernels.registration import register
from ssmcourse.kernels.selective_scan import triton_backward
from ssmcourse.kernels.selective_scan.triton_arguments import refuse, tile_of_states
from ssmcourse.kernels.selective_scan.triton_steps import advance, place, step_size
from ssmcourse.kernels.triton_math import sigmoid

STATES = 512  # numbers in a program's tile of states: small, since one row has to fill the GPU
WARPS = 2


@triton.jit
def selective_update_kernel(
    state_ptr,  # (b, d, n), as new
    x_ptr,  # (b, d); so are dt, z and y
    dt_ptr,
    A_ptr,  # (d, n)
    B_ptr,  # (b, groups_B, n); so is C
    C_ptr,
    D_ptr,  # (d,) or None, as bias
    z_ptr,  # or None
    bias_ptr,
    y_ptr,
    new_ptr,
    d, n, groups, groups_B, groups_C,
    SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid: (b · groups · blocks of channels in a group,)."""
    dtype: tl.constexpr = A_ptr.dtype.element_ty  # computed in: float32 or float64
    row, group, offs_d, mask_d = place(tl.program_id(0), d, groups, BLOCK_D)
    offs_n = tl.arange(0, N)
    offs = offs_d[None, :] * n + offs_n[:, None]  # in (d, n)
    mask_n = offs_n < n
    mask = mask_d[None, :] & mask_n[:, None]
    offs_B = (row * groups_B + group * groups_B // groups) * n + offs_n
    offs_C = (row * groups_C + group * groups_C // groups) * n + offs_n
    h = tl.load(state_ptr + row * d * n + offs, mask=mask, other=0.0)  # (N, BLOCK_D)
    A = tl.load(A_ptr + offs, mask=mask, other=0.0)  # (N, BLOCK_D)
    B = tl.load(B_ptr + offs_B, mask=mask_n, other=0.0).to(dtype)[:, None]  # (N, 1)
    C = tl.load(C_ptr + offs_C, mask=mask_n, other=0.0).to(dtype)[:, None]  # (N, 1)
    x = tl.load(x_ptr + row * d + offs_d, mask=mask_d, other=0.0).to(dtype)  # (BLOCK_D,)
    dt = tl.load(dt_ptr + row * d + offs_d, mask=mask_d, other=0.0).to(dtype)  # (BLOCK_D,)
    bias = 0.0 if bias_ptr is None else tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0)  # (BLOCK_D,)
    delta, _ = step_size(dt, bias, SOFTPLUS)
    h = advance(h, x, delta, A, B, ZOH)
    y = tl.sum(C * h, 0)  # (BLOCK_D,)
    if D_ptr is not None:
        y += tl.load(D_ptr + offs_d, mask=mask_d, other=0.0) * x
    if z_ptr is not None:
        z = tl.load(z_ptr + row * d + offs_d, mask=mask_d, other=0.0).to(dtype)  # (BLOCK_D,)
        y *= z * sigmoid(z)
    tl.store(new_ptr + row * d * n + offs, h, mask=mask)
    tl.store(y_ptr + row * d + offs_d, y.to(y_ptr.dtype.element_ty), mask=mask_d)


def update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, zoh: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, d) and the new state (b, d, n). B, C are (b, g, n); state, A, D, dt_bias have the dtype computed in."""
    refuse(A)
    y, new = _empty(state, x)
    (b, d), n = x.shape, A.shape[1]
    if x.numel() == 0:
        return y, new
    groups = math.lcm(B.shape[1], C.shape[1])
    N, block_d = tile_of_states(n, d // groups, STATES * 4 // A.element_size())
    given = [contiguous(t) for t in (state, x, dt, A, B, C, D, z, dt_bias)]
    with on_device_of(x):
        selective_update_kernel[(b * groups * triton.cdiv(d // groups, block_d),)](
            *given, y, new, d, n, groups, B.shape[1], C.shape[1],
            SOFTPLUS=dt_softplus, ZOH=zoh, N=N, BLOCK_D=block_d, num_warps=WARPS,
        )  # fmt: skip
    return y, new


def gradient(
    upstream: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...],
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, zoh: bool,
) -> list[Tensor]:  # fmt: skip
    """That of a scan of one step."""
    dy, dnew = upstream
    x, dt, B, C = (t[:, None] for t in (x, dt, B, C))
    z = None if z is None else z[:, None]
    arguments = (x, dt, A, B, C, D, z, dt_bias, state)
    has_steps = [
        t.ndim == rank
        for t, rank in zip(arguments, (3, 3, 0, 4, 4, 0, 3, 0, 0), strict=True)
        if t is not None
    ]
    found = triton_backward.gradient(
        (None if dy is None else dy[:, None], dnew),
        (),
        *(*arguments, None, len(x), dt_softplus, zoh, False),
    )
    *rest, dstate = (g[:, 0] if one_step else g for g, one_step in zip(found, has_steps, strict=True))
    return [dstate, *rest]


def _empty(state: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


selective_state_update = register(
    "selective_state_update_triton",
    "Tensor state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "bool dt_softplus, bool zoh",
    update,
    gradient,
    _empty,
    results=2,
)


def compilations() -> Iterator[Compilation]:
    """Half and single precision, and both rules for B."""
    for dtype, zoh in (("bf16", False), ("fp32", False), ("fp32", True)):
        pointers = {f"{name}_ptr": f"*{dtype}" for name in ("x", "dt", "B", "C", "z", "y")}
        pointers |= {f"{name}_ptr": "*fp32" for name in ("state", "A", "D", "bias", "new")}
        sizes = dict.fromkeys(("d", "n", "groups", "groups_B", "groups_C"), "i32")
        options = {"SOFTPLUS": True, "ZOH": zoh, "N": 16, "BLOCK_D": 32}
        name = f"selective_state_update {dtype}{' zoh' if zoh else ''}"
        yield Compilation(name, selective_update_kernel, pointers | sizes, options, num_warps=WARPS)
