"""The gated RMS norm in Triton: one reading of x and z forward, one of x, z and dy backward.

    gate first:  u = x silu(z)    r = 1 / sqrt(mean(u^2) + eps)    y = u r weight
    norm first:  u = x            r = 1 / sqrt(mean(u^2) + eps)    y = u r weight silu(z)

The mean is over a group of N channels. Its gradient, with n = u r and dn = dy weight (silu(z)) that of n:

    du = r (dn - n mean(dn n))        dweight = sum over rows of dy n (silu(z))

All leading dimensions are one here, the rows m. d is G N, for G groups.

| pointer            | shape    | type                                                                          |
|--------------------|----------|-------------------------------------------------------------------------------|
| x_ptr, z_ptr       | (m, d)   | any floating one; the strides of rows are free; no gate: None                   |
| y_ptr, dx_ptr, ... | (m, d)   | x's; dy_ptr too                                                               |
| weight_ptr         | (d,)     | the one computed in, float32 or float64                                        |
| r_ptr              | (m, G)   | weight's; kept from forward to backward                                        |
| partial_ptr        | (p, d)   | weight's; what the rows of program p add to dweight                            |

Grid: blocks of rows, groups. A program has all N channels of its rows in registers.
Elements moved for one of x's: forward 3 (x, z, y), backward 5 (x, z, dy, dx, dz) and 2 / WALK for the partial
sums. FLOPs for one: about 10 forward, 30 backward.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels import registration
from ssmcourse.kernels.compiling import Compilation
from ssmcourse.kernels.launching import on_device_of
from ssmcourse.kernels.triton_math import sigmoid

SCHEMA = "Tensor x, Tensor weight, Tensor? z, float eps, int group_size, bool norm_first"
WIDEST = 8192  # channels of a group
ELEMENTS = 1024  # at once, where a group has fewer
WALK = 32  # rows that a program of the backward goes through

# --- Kernels ---------------------------------------------------------------------------------------


@triton.jit
def _tile(ptr, rows, stride, offs_d, mask, T: tl.constexpr):
    """(ROWS, BLOCK_N) of one argument, in the type computed in."""
    return tl.load(ptr + rows * stride + offs_d, mask=mask, other=0.0).to(T)


@triton.jit
def forward_kernel(
    x_ptr, z_ptr, weight_ptr, y_ptr, r_ptr, m, d, stride_x, stride_z,
    N: tl.constexpr, EPS: tl.constexpr, NORM_FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    mask = (rows < m) & (offs_n < N)
    offs_d = group * N + offs_n
    weight = tl.load(weight_ptr + offs_d, mask=offs_n < N, other=0.0)  # (1, BLOCK_N)
    T: tl.constexpr = weight.dtype
    u = _tile(x_ptr, rows, stride_x, offs_d, mask, T)  # (ROWS, BLOCK_N)
    gate = weight  # is used where there is a z
    if z_ptr is not None:
        z = _tile(z_ptr, rows, stride_z, offs_d, mask, T)
        gate = z * sigmoid(z)  # (ROWS, BLOCK_N)
        u = u if NORM_FIRST else u * gate
    largest = tl.max(tl.abs(u), 1)[:, None]  # (ROWS, 1)
    scale = 1 / tl.where(largest > 1e18, largest, 1.0)  # squares that would overflow are taken of u / largest
    v = u * scale
    r = scale / tl.sqrt(tl.sum(v * v, 1)[:, None] / N + EPS * scale * scale)  # (ROWS, 1)
    y = u * r * weight
    if NORM_FIRST and z_ptr is not None:
        y = y * gate
    tl.store(y_ptr + rows * d + offs_d, y, mask=mask)
    tl.store(r_ptr + rows * tl.num_programs(1) + group, r, mask=rows < m)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, z_ptr, weight_ptr, r_ptr, dx_ptr, dz_ptr, partial_ptr, m, d, stride_x, stride_z,
    N: tl.constexpr, NORM_FIRST: tl.constexpr, WALK: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * WALK
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    offs_d = group * N + offs_n
    T: tl.constexpr = weight_ptr.dtype.element_ty
    dweight = tl.zeros([ROWS, BLOCK_N], T)
    for walked in range(0, tl.minimum(WALK, m - first), ROWS):
        rows = first + walked + tl.arange(0, ROWS)[:, None]
        mask = (rows < m) & (offs_n < N)
        r = tl.load(r_ptr + rows * tl.num_programs(1) + group, mask=rows < m, other=0.0)  # (ROWS, 1)
        x = _tile(x_ptr, rows, stride_x, offs_d, mask, T)  # (ROWS, BLOCK_N), as all that follow
        n = r * x
        if z_ptr is not None:
            z = _tile(z_ptr, rows, stride_z, offs_d, mask, T)
            s = sigmoid(z)
            gate = z * s
            x_slope = x * (s * (1 + z * (1 - s)))
            n = n if NORM_FIRST else n * gate
        dy = _tile(dy_ptr, rows, d, offs_d, mask, T)
        # Loaded anew for every row, from the cache: registers are what a wide group is short of.
        weight = tl.load(weight_ptr + offs_d, mask=offs_n < N, other=0.0)  # (1, BLOCK_N)
        if NORM_FIRST and z_ptr is not None:
            tl.store(dz_ptr + rows * d + offs_d, dy * weight * r * x_slope, mask=mask)
            dy = dy * gate
        dweight += dy * n
        dn = dy * weight
        along = tl.sum(dn * n, 1)[:, None] / N  # (ROWS, 1), what would only make u longer, which r undoes
        du = r * (dn - n * along)
        if z_ptr is not None and not NORM_FIRST:
            tl.store(dz_ptr + rows * d + offs_d, du * x_slope, mask=mask)
            du = du * gate
        tl.store(dx_ptr + rows * d + offs_d, du, mask=mask)
    total = tl.sum(dweight, 0)[None, :]
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * d + offs_d, total, mask=offs_n < N)


# --- Launching -------------------------------------------------------------------------------------


def forward(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: float, group_size: int, norm_first: bool
) -> tuple[Tensor, Tensor]:
    """y and r, for x and z of any leading dimensions, not empty."""
    _refuse_wide(group_size)
    y, r = _fake(x, weight, z, eps, group_size, norm_first)
    x, z, d = _rows(x), None if z is None else _rows(z), x.shape[-1]
    rows, block_n, warps = _sizes(group_size)
    with on_device_of(x):
        forward_kernel[triton.cdiv(len(x), rows), d // group_size](
            x, z, weight.detach().contiguous(), y, r, len(x), d, x.stride(0), 0 if z is None else z.stride(0),
            N=group_size, EPS=eps, NORM_FIRST=norm_first, ROWS=rows, BLOCK_N=block_n, num_warps=warps,
        )  # fmt: skip
    return y, r


def gradient(
    upstream: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_first: bool,
) -> list[Tensor]:
    """The gradients of x, weight and, if there is one, z."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dz = None if z is None else torch.empty_like(dx)
    x, z, d = _rows(x), None if z is None else _rows(z), x.shape[-1]
    rows, block_n, warps = _sizes(group_size)
    partial = weight.new_empty(triton.cdiv(len(x), WALK), d)
    with on_device_of(x):
        backward_kernel[len(partial), d // group_size](
            upstream[0].detach().contiguous(), x, z, weight.detach().contiguous(), outputs[1], dx, dz, partial,
            len(x), d, x.stride(0), 0 if z is None else z.stride(0),
            N=group_size, NORM_FIRST=norm_first, WALK=WALK, ROWS=rows, BLOCK_N=block_n, num_warps=warps,
        )  # fmt: skip
    dweight = partial.sum(0)  # in one order, whatever the order in which programs ran
    return [dx, dweight] if dz is None else [dx, dweight, dz]


def _fake(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: float, group_size: int, norm_first: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(*x.shape[:-1], x.shape[-1] // group_size)


def _refuse_wide(group_size: int) -> None:
    if group_size > WIDEST:
        raise ValueError(
            f"group_size: got {group_size}, expected at most {WIDEST} for backend 'triton'; for wider groups there "
            "is backend='reference'"
        )


def _sizes(group_size: int) -> tuple[int, int, int]:
    """Rows and channels of a tile, and warps: 8 elements a thread, whose values the backward can hold in registers."""
    block_n = triton.next_power_of_2(group_size)
    rows = min(WALK, max(1, ELEMENTS // block_n))
    return rows, block_n, max(4, rows * block_n // 256)


def _rows(x: Tensor) -> Tensor:
    """(m, d), channels next to each other; rows may be apart, as where x is a slice of a projection."""
    x = x.detach()
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x.reshape(-1, x.shape[-1])


def compilations() -> Iterator[Compilation]:
    """Narrow and wide groups, a width that is no power of two, both orders, and no gate."""
    for dtype, n, norm_first, gated in (
        ("bf16", 1536, False, True), ("bf16", 64, True, True), ("fp16", WIDEST, False, True),
        ("fp32", 1536, True, True), ("fp32", WIDEST, False, True), ("bf16", 1000, False, False),
        ("fp64", 256, False, True),
    ):  # fmt: skip
        rows, block_n, warps = _sizes(n)
        wide = "*fp64" if dtype == "fp64" else "*fp32"
        shared: dict[str, Any] = {"N": n, "NORM_FIRST": norm_first, "ROWS": rows, "BLOCK_N": block_n}
        for kernel, own in ((forward_kernel, {"EPS": 1e-5}), (backward_kernel, {"WALK": WALK})):
            none = {} if gated else {name: None for name in kernel.arg_names if name in ("z_ptr", "dz_ptr")}
            constexprs = shared | own | none | {"d": n, "stride_x": n, "stride_z": n}
            signature = {
                name: "i32"
                if name == "m"
                else wide
                if name in ("weight_ptr", "r_ptr", "partial_ptr")
                else f"*{dtype}"
                for name in kernel.arg_names
                if name not in constexprs
            }
            label = f"{dtype} {n}{' norm first' if norm_first else ''}{'' if gated else ' no gate'}"
            name = f"gated_rms_norm.{kernel.__name__} {label}"
            yield Compilation(name, kernel, signature, constexprs, num_warps=warps)


gated_rms_norm = registration.register(
    "gated_rms_norm_triton", SCHEMA, forward, gradient, _fake, results=1, kept=1
)
