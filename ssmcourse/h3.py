"""H3: two linear systems and two products, so that a token can ask for what followed its like.

    O = Q · SSM_diag( SSM_shift(K) V )

| here           | paper        | meaning                                                        | shape             |
|----------------|--------------|----------------------------------------------------------------|-------------------|
| `q`, `k`, `v`  | Q, K, V      | what to ask for, what to file under, what to keep              | (b, l, d)         |
| `shift_kernel` | C of shift   | k_bar_t = sum_i shift_kernel_i k_{t-i}: the last m keys        | (d, m)            |
| `ssm_kernel`   | K̄ of diag    | the memory's kernel, one for each head                         | (d / p, l)        |
| `D_shift`      | D            | skip of the shift system                                       | (d,)              |
| `D_ssm`        | D            | skip of the diagonal system                                    | (d / p,)          |
| `head_dim`     | d_h          | p: a head keeps the p by p matrix k_bar v^T                    |                   |

The order of channels: channel h p + i is channel i of head h, the head the slowest. So (b, l, d) is (b, l, h, p)
with no transposition, in q, k, v, the result, and the d of shift_kernel and D_shift. (The paper's code has the
other order in one of its two ways to compute the same layer, and the two differ.)

With p > 1 the result is attention without softmax, o_t = sum_s K_{t-s} (q_t · k_bar_s) v_s: it is linear in v,
and K is the decay.

Source: Fu, Dao, Saab, Thomas, Rudra & Ré 2023, "Hungry Hungry Hippos: Towards Language Modeling with State Space
Models", algorithm 1. Lesson 04.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssmcourse.arguments import Arguments, integer
from ssmcourse.convolution import causal_conv1d_update, fft_conv
from ssmcourse.precision import without_autocast, working_dtype


@without_autocast
def h3_mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shift_kernel: Tensor,
    ssm_kernel: Tensor,
    *,
    head_dim: int = 1,
    D_shift: Tensor | None = None,
    D_ssm: Tensor | None = None,
) -> Tensor:
    """The core of an H3 layer, as convolutions: queries times a memory of shifted keys times values.

    Args:
        q, k, v: (b, l, d), channels in the order (head, head_dim), head the slowest.
        shift_kernel: (d, m), lag 0 first; m may be shorter or longer than l.
        ssm_kernel: (d // head_dim, l), from `s4d_kernel`, say.
        head_dim: p, a divisor of d.
        D_shift: (d,), adds D_shift k to the shifted keys.
        D_ssm: (d // head_dim,), adds D_ssm k_bar v^T to the memory.
    Returns:
        (b, l, d), in q's dtype. Half types are computed in float32 and rounded once.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Gradients of all tensors, to any order.

    Cost: O(p b d l log l) work: one convolution for each of the p channels of a key. Memory for a few times x,
    p times that under autograd; the matrices k_bar v^T, (b, l, d / p, p, p), are never there at once.
    """
    given = Arguments()
    given.activation("q", q, "b l d")
    heads = _check(given, q, k, v, shift_kernel, head_dim, D_shift, D_ssm)
    given.parameter("ssm_kernel", ssm_kernel, f"{heads} l")
    working = working_dtype(q, shift_kernel, ssm_kernel, D_shift, D_ssm)
    dtype = q.dtype
    q, k, v = (value.to(working).unflatten(2, (heads, head_dim)) for value in (q, k, v))  # (b, l, h, p)
    taps = functional.pad(shift_kernel, (0, k.shape[1] - shift_kernel.shape[1]))  # cut or padded to l
    k_bar = fft_conv(k.flatten(2), taps, D_shift).unflatten(2, (heads, head_dim))
    kernel = ssm_kernel.repeat_interleave(head_dim, 0)  # a head's kernel for each of its values
    skip = None if D_ssm is None else D_ssm.repeat_interleave(head_dim)
    mixed = torch.zeros_like(v)
    for q_i, k_i in zip(q.split(1, 3), k_bar.split(1, 3), strict=True):  # row i of k_bar v^T: (b, l, h, p)
        row = fft_conv((k_i * v).flatten(2), kernel, skip)
        mixed = mixed + q_i * row.unflatten(2, (heads, head_dim))
    return mixed.flatten(2).to(dtype)


def h3_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shift_state: Tensor,
    ssm_state: Tensor,
    shift_kernel: Tensor,
    A_bar: Tensor,
    B_bar: Tensor,
    C: Tensor,
    *,
    head_dim: int = 1,
    D_shift: Tensor | None = None,
    D_ssm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token of `h3_mix`, where ssm_kernel is 2 Re sum_n C_n B_bar_n A_bar_n^t: a memory of fixed size.

    Args:
        q, k, v: (b, d).
        shift_state: (b, m - 1, d), the keys before, oldest first; zeros at the start.
        ssm_state: (b, d // p, p, p, n), complex: n modes for each entry of k_bar v^T, the key's channel before
            the value's; zeros at the start.
        shift_kernel: (d, m), lag 0 first.
        A_bar, B_bar, C: (d // p, n), complex, half of the modes, discretised.
        head_dim, D_shift, D_ssm: as in `h3_mix`.
    Returns:
        y (b, d) in q's dtype, the new shift state, and the new SSM state.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Cost: O(b d p n), whatever came before.
    """
    given = Arguments()
    given.activation("q", q, "b d")
    heads = _check(given, q, k, v, shift_kernel, head_dim, D_shift, D_ssm)
    m = given.sizes["m"]
    given.parameter("shift_state", shift_state, f"b {m - 1} d")
    for name, value in (("A_bar", A_bar), ("B_bar", B_bar), ("C", C)):
        given.parameter(name, value, f"{heads} n", may_be_complex=True)
    given.parameter("ssm_state", ssm_state, f"b {heads} {head_dim} {head_dim} n", may_be_complex=True)
    working, dtype = working_dtype(q, shift_kernel, D_shift, D_ssm), q.dtype
    q, k, v = q.to(working), k.to(working), v.to(working)
    k_bar, keys = causal_conv1d_update(k, shift_state.to(working), shift_kernel.flip(1))
    k_bar = k_bar if D_shift is None else k_bar + D_shift.to(working) * k
    q, k_bar, v = (value.unflatten(1, (heads, head_dim)) for value in (q, k_bar, v))  # (b, h, p)
    kv = k_bar[..., None] * v[..., None, :]  # (b, h, p, p)
    A_bar, B_bar, C = (value[:, None, None] for value in (A_bar, B_bar, C))  # (h, 1, 1, n)
    new_state = A_bar * ssm_state + B_bar * kv[..., None]
    memory = 2 * (C * new_state).sum(-1).real
    memory = memory if D_ssm is None else memory + D_ssm[:, None, None] * kv
    y = (q[..., None] * memory).sum(2).flatten(1)
    return y.to(dtype), keys.to(shift_state.dtype), new_state.to(ssm_state.dtype)


def _check(
    given: Arguments,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shift_kernel: Tensor,
    head_dim: int,
    D_shift: Tensor | None,
    D_ssm: Tensor | None,
) -> int:
    """The number of heads, once all of these fit to q, which is checked."""
    shape = "b l d" if q.ndim == 3 else "b d"
    given.activation("k", k, shape)
    given.activation("v", v, shape)
    given.parameter("shift_kernel", shift_kernel, "d m")
    given.parameter("D_shift", D_shift, "d", optional=True)
    d = given.sizes["d"]
    given.at_least_one("m")
    divisor = f"an integer that divides the {d} channels"
    head_dim = integer("head_dim", head_dim, 1, divisor)
    if d % head_dim:
        raise ValueError(f"head_dim: got {head_dim}, expected {divisor}")
    heads = d // head_dim
    given.parameter("D_ssm", D_ssm, f"{heads}", optional=True)
    return heads
