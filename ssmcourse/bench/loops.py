"""Each operator as the plainest loop over time in torch: what one writes first, and measures against.

In float64 these loops are also the oracle of the errors. They share nothing with the library.
`unbind` and not `x[:, t]`, whose backward would fill an array of x's size with zeros at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t."""
    h, states = torch.zeros_like(b[:, 0]), []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, 1)


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t (Gu & Dao 2023, Algorithm 2)."""
    h, outputs = x.new_zeros(x.shape[0], *A.shape), []
    for x_t, dt_t, B_t, C_t in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * x_t)[..., None] * B_t[:, None]  # (b, d, n)
        outputs.append((h @ C_t[..., None])[..., 0])
    return torch.stack(outputs, 1)


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, chunk_size: int) -> Tensor:
    """The same with one decay a head and a state (p, n) (Dao & Gu 2024, section 5); one group."""
    state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1])  # (b, h, p, n)
    outputs = []
    for x_t, dt_t, B_t, C_t in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        decay = torch.exp(dt_t * A)[..., None, None]
        state = decay * state + (dt_t[..., None] * x_t)[..., None] * B_t[:, :, None]
        outputs.append((state @ C_t[..., None])[..., 0])
    return torch.stack(outputs, 1)


def causal_conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """y_t = sum_k weight_k x_{t-w+1+k}: a shifted copy for every tap."""
    l, taps = x.shape[1], weight.unbind(1)
    padded = torch.nn.functional.pad(x, (0, 0, len(taps) - 1, 0))
    return sum((padded[:, k : k + l] * tap for k, tap in enumerate(taps[1:], 1)), padded[:, :l] * taps[0])


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y_t = q_t S_t / (q_t z_t), S and z the sums of k v^T and of k so far (Katharopoulos et al. 2020, Eq. 18-20)."""
    state = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[-1])  # (b, h, n, p)
    total, outputs = torch.zeros_like(k[:, 0]), []
    for q_t, k_t, v_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        state, total = state + k_t[..., None] * v_t[..., None, :], total + k_t
        outputs.append((q_t[..., None, :] @ state)[..., 0, :] / (q_t * total).sum(-1, keepdim=True))
    return torch.stack(outputs, 1)


def wkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Peng et al. 2023 (RWKV), Eq. 16, and their appendix D: all exponents less the largest so far."""
    decay = -torch.exp(w)
    top = torch.full_like(k[:, 0], -1e30)  # (b, d)
    above, below, outputs = torch.zeros_like(top), torch.zeros_like(top), []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        seen = torch.maximum(top, k_t + u)
        before, now = torch.exp(top - seen), torch.exp(k_t + u - seen)
        outputs.append((before * above + now * v_t) / (before * below + now))
        seen = torch.maximum(top + decay, k_t)
        before, now = torch.exp(top + decay - seen), torch.exp(k_t - seen)
        above, below, top = before * above + now * v_t, before * below + now, seen
    return torch.stack(outputs, 1)


def selective_scan_matrix(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """M[i, j] = C_i exp(A (dt_{j+1} + ... + dt_i)) dt_j B_j, column by column."""
    b, l, d = dt.shape
    carried = dt.new_zeros(b, d, A.shape[1], 0)  # what every earlier input has become: (b, d, n, j)
    rows = []
    for t in range(l):
        fresh = (dt[:, t, :, None] * B[:, t, None])[..., None]
        carried = torch.cat([torch.exp(dt[:, t, :, None] * A)[..., None] * carried, fresh], -1)
        row = torch.einsum("bn,bdnj->bdj", C[:, t], carried)
        rows.append(torch.nn.functional.pad(row, (0, l - 1 - t)))
    return torch.stack(rows, 2)


def s4d_kernel(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, *, l: int) -> Tensor:
    """K_t = 2 Re sum_n C_n B_bar_n A_bar_n^t with zero-order hold (Gu et al. 2022, S4D, Eq. 8), step by step."""
    A_bar = torch.exp(A * dt[:, None])
    mode, steps = C * B * (A_bar - 1) / A, []  # (h, n / 2)
    for _ in range(l):
        steps.append(2 * mode.sum(-1).real)
        mode = mode * A_bar
    return torch.stack(steps, 1)


def s4_kernel(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, *, l: int) -> Tensor:
    """K_t = C A_bar^t B_bar with the dense A = diag(Lambda) - P P^H and the bilinear rule (Gu et al. 2022, Eq. 3-5).

    One of each conjugate pair is given. The powers come by doubling: log2(l) matrix products.
    """
    Lambda, P, B, C = (torch.cat([v, v.conj()], 1) for v in (Lambda, P, B, C))
    eye = torch.eye(Lambda.shape[1], dtype=Lambda.dtype)
    half = dt[:, None, None] / 2 * (torch.diag_embed(Lambda) - P @ P.mH)
    A_bar = torch.linalg.solve(eye - half, eye + half)
    columns = torch.linalg.solve(eye - half, dt[:, None] * B)[..., None]  # (h, n, 1), then twice as wide, ...
    while columns.shape[-1] < l:
        columns = torch.cat([columns, A_bar @ columns], -1)
        A_bar = A_bar @ A_bar
    return (C[:, None] @ columns[..., :l])[:, 0].real
