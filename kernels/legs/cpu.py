"""The LegS memory in O(n) a step, compiled for the CPU.

One step of HiPPO-LegS by the generalised bilinear transform solves, for the new coefficients v,

    (I + a L) v = (I - b L) c + r q f,        a = α r,  b = (1 - α) r,

with r the share of the past that is new (1/k at step k), q_i = sqrt(2i + 1), and L = -A lower
triangular: L_ij = q_i q_j below the diagonal, L_ii = i + 1. So (L v)_i = q_i S_i + (i + 1) v_i needs
only the prefix sum S_i = q_0 v_0 + ... + q_{i-1} v_{i-1}, and row i of the equation reads

    (1 + a(i + 1)) v_i = (1 - b(i + 1)) c_i + q_i U_i,     U_i = r f - a S_i(v) - b S_i(c).

U is one number that is carried down the rows. Put v_i into U_{i+1} = U_i - q_i (a v_i + b c_i) and use
q_i² = 2i + 1 and a + b = r:

    v_i     = ((1 - b(i + 1)) c_i + q_i U_i) / (1 + a(i + 1))
    U_{i+1} = ((1 - a i) U_i - r q_i c_i)    / (1 + a(i + 1)),      U_0 = r f.

Two lines a coefficient, no matrix, and no prefix product to divide by, which would vanish at a i = 1
(Gu et al. 2020, proposition 4, says that O(n) is possible; lesson 01 derives it).

The state is kept in float64 whatever the input's dtype: a million roundings in float32 would show,
and the speed is that of the chain U_0, U_1, ..., not of the memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels import threads


@threads.native
def _scan_rows(f, ratios, alpha, q, out):
    """out (rows, l, n), or (rows, 1, n) for the last state only."""
    rows, l = f.shape
    n = q.shape[0]
    every = out.shape[1] == l
    c = np.empty(n, np.float64)
    for row in range(rows):
        c[:] = 0.0
        for k in range(l):
            r = ratios[k]
            a, b = alpha * r, (1.0 - alpha) * r
            u = r * np.float64(f[row, k])
            for i in range(n):
                inverse = 1.0 / (1.0 + a * (i + 1))
                old = c[i]
                c[i] = inverse * ((1.0 - b * (i + 1)) * old + q[i] * u)
                u = (inverse * (1.0 - a * i)) * u - inverse * (r * q[i] * old)
            if every:
                out[row, k, :] = c
        if not every:
            out[row, 0, :] = c


@threads.native
def _scan_rows_backward(grad, f, ratios, alpha, q, states, df, dratios):
    """The adjoint, from the last step to the first.

    With λ the gradient of v, every gradient follows from μ = (I + a L)^-T λ: that of c is
    (I - b L)^T μ, that of f is r q·μ, and that of r, because r is in a and in b too, is
    μ·(q f - L (α v + (1 - α) c)). L^T needs the suffix sums R_i = q_{i+1} μ_{i+1} + ... where L
    needs prefix sums. `states` holds every v, or is empty when the ratios need no gradient.
    """
    rows, l = f.shape
    n = q.shape[0]
    every = grad.shape[1] == l
    lam, mu = np.empty(n, np.float64), np.empty(n, np.float64)
    for row in range(rows):
        lam[:] = 0.0
        for k in range(l - 1, -1, -1):
            if every:
                lam += grad[row, k]
            elif k == l - 1:
                lam += grad[row, 0]
            r = ratios[k]
            a, b = alpha * r, (1.0 - alpha) * r
            suffix = 0.0
            for i in range(n - 1, -1, -1):
                mu[i] = (lam[i] - a * q[i] * suffix) / (1.0 + a * (i + 1))
                lam[i] = (1.0 - b * (i + 1)) * mu[i] - b * q[i] * suffix
                suffix += q[i] * mu[i]
            df[row, k] = r * suffix
            if states.size:
                total, prefix = suffix * f[row, k], 0.0
                for i in range(n):
                    old = states[row, k - 1, i] if k else 0.0
                    x = alpha * states[row, k, i] + (1.0 - alpha) * old
                    total -= mu[i] * (q[i] * prefix + (i + 1) * x)
                    prefix += q[i] * x
                dratios[k] += total


@torch.library.custom_op("ssmcourse::legs_scan", mutates_args=(), device_types="cpu")
def legs_scan(f: Tensor, ratios: Tensor, alpha: float, n: int, last_only: bool) -> Tensor:
    """The LegS coefficients of every row of f, after every sample or after the last.

    Args:
        f: (rows, l), float32 or float64.
        ratios: (l,), float64: the new share of the past at each step, (t_k - t_{k-1}) / t_k.
        alpha: 0 for forward Euler, 1/2 for the bilinear rule, 1 for backward Euler.
        n: number of coefficients.
    Returns:
        (rows, l, n), or (rows, 1, n) with last_only, contiguous, in f's dtype.

    Cost: O(rows l n) time, O(n) memory beside the input and the output.
    """
    out = f.new_empty(f.shape[0], 1 if last_only else f.shape[1], n)
    f_, ratios_, out_ = _arrays(f, ratios, out)
    threads.run(_scan_rows, [(f_[part], ratios_, alpha, _q(n), out_[part]) for part in _parts(len(f_))])
    return out


@legs_scan.register_fake
def _(f: Tensor, ratios: Tensor, alpha: float, n: int, last_only: bool) -> Tensor:
    return f.new_empty(f.shape[0], 1 if last_only else f.shape[1], n)


@torch.library.custom_op("ssmcourse::legs_scan_backward", mutates_args=(), device_types="cpu")
def legs_scan_backward(
    grad: Tensor, f: Tensor, ratios: Tensor, states: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Gradients of f (rows, l) and of the ratios (l,), the latter zero where `states` is empty."""
    df = torch.empty_like(f, memory_format=torch.contiguous_format)
    parts = _parts(f.shape[0])
    dratios = ratios.new_zeros(len(parts), ratios.shape[0])  # each thread adds to its own
    grad_, f_, ratios_, states_, df_, dratios_ = _arrays(grad, f, ratios, states, df, dratios)
    q = _q(grad.shape[-1])
    threads.run(
        _scan_rows_backward,
        [
            (grad_[part], f_[part], ratios_, alpha, q, states_[part], df_[part], dratios_[i])
            for i, part in enumerate(parts)
        ],
    )
    return df, dratios.sum(0)


@legs_scan_backward.register_fake
def _(grad: Tensor, f: Tensor, ratios: Tensor, states: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(f, memory_format=torch.contiguous_format), torch.empty_like(ratios)


def _setup_context(ctx, inputs, output) -> None:
    f, ratios, ctx.alpha, _, last_only = inputs
    if last_only and ctx.needs_input_grad[1]:
        raise ValueError("ratios: their gradient needs every state, so call with last_only=False")
    states = output if ctx.needs_input_grad[1] else output.new_empty(0, 0, 0)
    ctx.save_for_backward(f, ratios, states)


def _backward(ctx, grad: Tensor):
    f, ratios, states = ctx.saved_tensors
    df, dratios = legs_scan_backward(grad, f, ratios, states, ctx.alpha)
    return df, dratios if ctx.needs_input_grad[1] else None, None, None, None


legs_scan.register_autograd(_backward, setup_context=_setup_context)


def _q(n: int) -> np.ndarray:
    return np.sqrt(2.0 * np.arange(n) + 1.0)


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().contiguous().numpy() for t in tensors)


def _parts(rows: int) -> list[slice]:
    """The rows in as many parts as there are threads: every row is the same amount of work."""
    size = max(1, -(-rows // torch.get_num_threads()))
    return [slice(start, start + size) for start in range(0, rows, size)]
