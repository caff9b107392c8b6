"""One step of SSD in Triton, for generation: one launch a token.

    h' = exp(Δ A) h + Δ x Bᵀ,    y = (h' C + D x) silu(z),    Δ = clamp(softplus(dt + bias))     (Dao & Gu 2024, eq. 1)

A program takes one row, one head and BLOCK_P of its channels, and goes through their states, BLOCK_N at a time.

Bytes: the state once in and once out, which is nearly all of it: 8 n for each channel in float32, beside x, z and y
once; B and C once for each head. FLOPs: 5 n for each channel.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmcourse.kernels.launching import contiguous, on_device_of
from ssmcourse.kernels.registration import register
from ssmcourse.kernels.ssd import triton as scan
from ssmcourse.kernels.triton_math import sigmoid, softplus

BLOCK_P, BLOCK_N, WARPS = 16, 128, 4


@triton.jit
def ssd_update_kernel(
    state_ptr,  # (b, h, p, n), as new
    x_ptr,  # (b, h, p); so are z and y
    dt_ptr,  # (b, h)
    A_ptr,  # (h,)
    B_ptr,  # (b, g, n); so is C
    C_ptr,
    D_ptr,  # (h, p) or None
    z_ptr,  # or None
    bias_ptr,  # (h,) or None
    y_ptr,
    new_ptr,
    h, g,
    SOFTPLUS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Grid: (b, h, p / BLOCK_P)."""
    dtype: tl.constexpr = state_ptr.dtype.element_ty  # computed in: float32 or float64
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = row * h + head
    group = row * g + head // (h // g)
    offs_p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_p = offs_p < P
    delta = tl.load(dt_ptr + at).to(dtype)
    if bias_ptr is not None:
        delta += tl.load(bias_ptr + head)
    if SOFTPLUS:
        delta = softplus(delta)
    delta = tl.where(delta < LOW, LOW, tl.where(delta > HIGH, HIGH, delta)).to(dtype)  # a NaN stays one
    decay = tl.exp(delta * tl.load(A_ptr + head))
    x = tl.load(x_ptr + at * P + offs_p, mask=mask_p, other=0.0).to(dtype)  # (BLOCK_P,)
    y = tl.zeros((BLOCK_P,), dtype)
    for start in range(0, N, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        mask = mask_p[:, None] & mask_n[None, :]
        offs = (at * P + offs_p[:, None]) * N + offs_n[None, :]
        B = tl.load(B_ptr + group * N + offs_n, mask=mask_n, other=0.0).to(dtype)  # (BLOCK_N,)
        C = tl.load(C_ptr + group * N + offs_n, mask=mask_n, other=0.0).to(dtype)  # (BLOCK_N,)
        state = tl.load(state_ptr + offs, mask=mask, other=0.0)  # (BLOCK_P, BLOCK_N)
        state = decay * state + (delta * x)[:, None] * B[None, :]
        tl.store(new_ptr + offs, state, mask=mask)
        y += tl.sum(state * C[None, :], 1)
    if D_ptr is not None:
        y += tl.load(D_ptr + head * P + offs_p, mask=mask_p, other=0.0) * x
    if z_ptr is not None:
        z = tl.load(z_ptr + at * P + offs_p, mask=mask_p, other=0.0).to(dtype)  # (BLOCK_P,)
        y *= z * sigmoid(z)
    tl.store(y_ptr + at * P + offs_p, y.to(y_ptr.dtype.element_ty), mask=mask_p)


def update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, low: float, high: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, h, p) and the new state. D is (h, p); state, A, D and dt_bias have the dtype computed in."""
    y, new = _empty(state, x)
    (b, h, p), (g, n) = x.shape, B.shape[1:]
    if 0 in state.shape:
        return y.zero_(), new
    scan.refuse(x[:, None], state, B[:, None])
    block_p, block_n = min(BLOCK_P, triton.next_power_of_2(p)), min(BLOCK_N, triton.next_power_of_2(n))
    given = [contiguous(t) for t in (state, x, dt, A, B, C, D, z, dt_bias)]
    with on_device_of(x):
        ssd_update_kernel[(b, h, triton.cdiv(p, block_p))](
            *given, y, new, h, g, SOFTPLUS=dt_softplus, LOW=low, HIGH=high, N=n, P=p,
            BLOCK_N=block_n, BLOCK_P=block_p, num_warps=WARPS,
        )  # fmt: skip
    return y, new


def gradient(
    upstream: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...],
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, low: float, high: float,
) -> list[Tensor]:  # fmt: skip
    """That of a scan of one step, whose dt is ready made: what makes it is differentiated here."""
    dy, dnew = upstream
    raw = dt.to(state.dtype) if dt_bias is None else dt.to(state.dtype) + dt_bias
    delta = torch.nn.functional.softplus(raw, threshold=40) if dt_softplus else raw
    slope = (torch.sigmoid(raw) if dt_softplus else 1) * ((delta >= low) & (delta <= high))
    delta = delta.clamp(low, high)
    steps = [None if t is None else t[:, None] for t in (dy, x, delta, delta * A, B, C, z)]
    dy, x, delta_, log_a, B, C, z = steps
    b, _, h, p = x.shape
    kept = state.new_empty(b, 0, h, B.shape[3], p)  # a single chunk
    dx, ddelta, dlog_a, dB, dC, *rest = scan.gradient(
        (dy, dnew), (x, state, kept), x, delta_, log_a, B, C, D, z, state, None, b, True
    )
    ddelta, dlog_a = ddelta[:, 0], dlog_a[:, 0]
    draw = (ddelta + dlog_a * A) * slope
    *others, dstate = rest
    found = [dstate, dx[:, 0], draw.to(dt.dtype), (dlog_a * delta).sum(0), dB[:, 0], dC[:, 0]]
    found += [] if D is None else [others.pop(0)]
    found += [] if z is None else [others.pop(0)[:, 0]]
    found += [] if dt_bias is None else [draw.sum(0)]
    return [t.contiguous() for t in found]


def _empty(state: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


ssd_state_update = register(
    "ssd_state_update_triton",
    "Tensor state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "bool dt_softplus, float low, float high",
    update,
    gradient,
    _empty,
    results=2,
)


def compilations() -> Iterator[Any]:
    """Half and single precision, with everything that is optional and with nothing."""
    from ssmcourse.kernels.compiling import Compilation

    for dtype in ("bf16", "fp32"):
        pointers = {f"{name}_ptr": f"*{dtype}" for name in ("x", "dt", "B", "C", "z", "y")}
        pointers |= {f"{name}_ptr": "*fp32" for name in ("state", "A", "D", "bias", "new")}
        sizes = {"N": 128, "P": 64, "BLOCK_N": 128, "BLOCK_P": 16, "LOW": 0.0, "HIGH": math.inf}
        for label, without in (("", ()), (" bare", ("D_ptr", "z_ptr", "bias_ptr"))):
            signature = {k: v for k, v in pointers.items() if k not in without} | {"h": "i32", "g": "i32"}
            constants: dict[str, Any] = sizes | {"SOFTPLUS": not without} | dict.fromkeys(without)
            yield Compilation(
                f"ssd_state_update {dtype}{label}", ssd_update_kernel, signature, constants, num_warps=WARPS
            )
