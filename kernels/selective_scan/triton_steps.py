"""The arithmetic of the selective scan in Triton: a step of the recurrence, and the functions in it.

    delta = softplus(dt + bias)
    h     = gate h + share B delta x        gate = exp(delta A); share = 1 (Euler), (gate - 1) / (delta A) (zoh)

(Gu & Dao 2023, Eq. 2a and 4.) Everything here is called by the kernels beside it and knows no pointer. A tile has
the states along its first axis and the channels along its second: then a thread holds all states of its channel,
C h is a sum inside a thread, and neighbouring threads read neighbouring channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssmcourse.kernels.triton_math import softplus


@triton.jit
def step_size(dt, bias, SOFTPLUS: tl.constexpr):
    """delta, and what the softplus was taken of."""
    raw = dt + bias
    if SOFTPLUS:
        delta = softplus(raw)
    else:
        delta = raw
    return delta, raw


@triton.jit
def share(exponent, gate):
    """(e^z - 1) / z: the part of a held input that zero-order hold lets through. Near 0 by its Taylor series."""
    TERMS: tl.constexpr = 16 if exponent.dtype == tl.float64 else 9
    near = tl.abs(exponent) < 0.5
    z = tl.where(near, exponent, 0.0)
    series = 1.0 + 0.0 * z
    for k in tl.static_range(TERMS, 1, -1):  # 1 + z/2 (1 + z/3 (1 + z/4 (...)))
        series = series * z * (1.0 / k) + 1.0
    return tl.where(near, series, (gate - 1.0) / tl.where(near, 1.0, exponent))


@triton.jit
def share_slope(exponent, gate, share):
    """The derivative of `share`: (e^z - share) / z, near 0 the derivative of the series."""
    TERMS: tl.constexpr = 16 if exponent.dtype == tl.float64 else 9
    near = tl.abs(exponent) < 0.5
    z = tl.where(near, exponent, 0.0)
    series = 1.0 + 0.0 * z
    for k in tl.static_range(TERMS, 0, -1):  # 1/2 (1 + z 2/(1·3) (1 + z 3/(2·4) (...)))
        series = series * z * ((k + 1.0) / (k * (k + 2.0))) + 1.0
    return tl.where(near, 0.5 * series, (gate - share) / tl.where(near, 1.0, exponent))


@triton.jit
def advance(h, x, delta, A, B, ZOH: tl.constexpr):
    """The state after a step. h, A (N, BLOCK_D); B (N, BLOCK_D), or (N, 1) for all channels; x, delta (BLOCK_D,)."""
    exponent = delta[None, :] * A
    gate = tl.exp(exponent)
    entering = B * (delta * x)[None, :]
    if ZOH:
        entering *= share(exponent, gate)
    return gate * h + entering


@triton.jit
def retreat(g, before, x, delta, A, B, inside, ZOH: tl.constexpr):
    """The gradient through a step, from g = d loss / d h, with `before` the state that the step began with.

    dh of the state before    g gate
    dx                        sum over states of g B share delta
    ddelta                    sum over states of g gate before A, and g B x (zoh: g B x gate)
    dA                        g gate before delta; zoh also g B x delta, times delta share'
    dB                        g share delta x

    Not `inside` the row: dh is handed on. Shapes as in `advance`; dx, ddelta (BLOCK_D,), the others (N, BLOCK_D).
    """
    exponent = delta[None, :] * A
    gate = tl.where(inside, tl.exp(exponent), 1.0)
    u = (delta * x)[None, :]
    dh = g * gate
    of_gate = dh * before
    dA = of_gate * delta[None, :]
    if ZOH:
        part = share(exponent, gate)
        dA += g * B * u * share_slope(exponent, gate, part) * delta[None, :]
        dB = g * part
        ddelta = tl.sum(of_gate * A + dh * B * x[None, :], 0)
    else:
        dB = g
        ddelta = tl.sum(of_gate * A + g * B * x[None, :], 0)
    dx = delta * tl.sum(dB * B, 0)
    return dh, dx, ddelta, dA, dB * u


@triton.jit
def replay(h, x, delta, A, B, sequence_ptr, row, begin, l, B_MOVES: tl.constexpr, ZOH: tl.constexpr):
    """The states before, between and after the steps of a block: a tuple of STEPS + 1 tiles."""
    states = (h,)
    for s in tl.static_range(x.shape[0]):
        before = states[s]
        if sequence_ptr is not None:
            anew, _ = read_start(sequence_ptr, row, begin + s, l)
            before = tl.where(anew, 0.0, before)
        after = advance(before, step_of(x, s), step_of(delta, s), A, at_step(B, s, B_MOVES), ZOH)
        states += (after,)
    return states


# --- Blocks of steps ------------------------------------------------------------------------------


@triton.jit
def read_block(ptr, row, t, l, stride, offs_d, mask_d):
    """Steps t (STEPS,) of a row of (b, l, d), `stride` apart in memory; zero past the end."""
    offs = (row * l + t)[:, None] * stride + offs_d[None, :]
    mask = (t < l)[:, None] & mask_d[None, :]
    return tl.load(ptr + offs, mask=mask, other=0.0)  # (STEPS, BLOCK_D)


@triton.jit
def read_states(ptr, row, t, l, group, groups, n, N: tl.constexpr):
    """Steps t of B or C (b, l, groups, n); zero past the end."""
    offs_n = tl.arange(0, N)
    offs = ((row * l + t) * groups + group)[:, None] * n + offs_n[None, :]
    mask = (t < l)[:, None] & (offs_n < n)[None, :]
    return tl.load(ptr + offs, mask=mask, other=0.0)  # (STEPS, N)


@triton.jit
def read_steps(
    x_ptr, dt_ptr, z_ptr, B_ptr, C_ptr, row, t, l, n, group, groups, groups_B, groups_C,
    stride_x, stride_dt, stride_z, offs_d, mask_d, B_MOVES: tl.constexpr, C_MOVES: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Steps t of x, dt, z (STEPS, BLOCK_D), B and C (STEPS, N), as they lie in memory; x in place of what is not."""
    x = read_block(x_ptr, row, t, l, stride_x, offs_d, mask_d)
    dt = read_block(dt_ptr, row, t, l, stride_dt, offs_d, mask_d)
    z = x if z_ptr is None else read_block(z_ptr, row, t, l, stride_z, offs_d, mask_d)
    B = read_states(B_ptr, row, t, l, group * groups_B // groups, groups_B, n, N) if B_MOVES else x
    C = read_states(C_ptr, row, t, l, group * groups_C // groups, groups_C, n, N) if C_MOVES else x
    return x, dt, z, B, C


@triton.jit
def of_channels(B, BLOCK_D: tl.constexpr, dtype: tl.constexpr):
    """B or C (STEPS, N) for all channels."""
    return tl.broadcast_to(B.to(dtype)[:, :, None], (B.shape[0], B.shape[1], BLOCK_D))  # (STEPS, N, BLOCK_D)


@triton.jit
def step_of(block, s):
    """block[s], where a tile's first axis are steps.

    Triton cannot index a tile; a sum with zeros for all other steps can. It is taken of the numbers' bits: an
    integer plus 0 is nothing to do, once s is known and a thread holds all steps of its channel.
    """
    steps = tl.arange(0, block.shape[0]).reshape((block.shape[0],) + (1,) * (len(block.shape) - 1))
    bits = block.to(tl.int64 if block.dtype == tl.float64 else tl.int32, bitcast=True)
    return tl.sum(tl.where(steps == s, bits, 0), 0).to(block.dtype, bitcast=True)


@triton.jit
def at_step(B, s, MOVES: tl.constexpr):
    """B or C of step s, (N, BLOCK_D)."""
    if MOVES:
        return step_of(B, s)
    else:
        return B


@triton.jit
def with_step(block, s, value):
    """block (STEPS, BLOCK_D) with value (BLOCK_D,) as its step s; so (STEPS, N)."""
    steps = tl.arange(0, block.shape[0])[:, None]
    return tl.where(steps == s, value[None, :], block)


@triton.jit
def write_block(ptr, block, row, t, l, d, offs_d, mask_d):
    """block (STEPS, BLOCK_D) as steps t of a row of (b, l, d), contiguous."""
    offs = (row * l + t)[:, None] * d + offs_d[None, :]
    tl.store(ptr + offs, block.to(ptr.dtype.element_ty), mask=(t < l)[:, None] & mask_d[None, :])


@triton.jit
def read_start(sequence_ptr, row, t, l):
    """Whether step t starts a packed sequence anew, and the number of the one before it."""
    inside = (t > 0) & (t < l)
    here = tl.load(sequence_ptr + row * l + t, mask=inside, other=0)
    before = tl.load(sequence_ptr + row * l + t - 1, mask=inside, other=0)
    return here != before, before


@triton.jit
def read_parameters(
    A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, offs_d, mask_d, n, B_MOVES: tl.constexpr, C_MOVES: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    """A, B, C (N, BLOCK_D), D and bias (BLOCK_D,) of a program; A in place of B or C that moves, 0 of what is not."""
    offs_n = tl.arange(0, N)
    offs = offs_d[None, :] * n + offs_n[:, None]
    mask = mask_d[None, :] & (offs_n < n)[:, None]
    A = tl.load(A_ptr + offs, mask=mask, other=0.0)  # (N, BLOCK_D)
    B = A if B_MOVES else tl.load(B_ptr + offs, mask=mask, other=0.0).to(A.dtype)  # (N, BLOCK_D)
    C = A if C_MOVES else tl.load(C_ptr + offs, mask=mask, other=0.0).to(A.dtype)  # (N, BLOCK_D)
    none = tl.zeros(offs_d.shape, A.dtype)
    D = none if D_ptr is None else tl.load(D_ptr + offs_d, mask=mask_d, other=0.0)  # (BLOCK_D,)
    bias = none if bias_ptr is None else tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0)  # (BLOCK_D,)
    return A, B, C, D, bias


@triton.jit
def place(pid, d, groups, BLOCK_D: tl.constexpr):
    """What a program does: its row, group and channels, and which of them are there.

    A row takes `groups` times as many programs as blocks that cover a group: no block has channels of two groups.
    """
    each = d // groups
    blocks = tl.cdiv(each, BLOCK_D)
    group = pid // blocks % groups
    offs = pid % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    return (pid // (blocks * groups)).to(tl.int64), group, group * each + offs, offs < each
