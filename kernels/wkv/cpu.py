"""WKV on the CPU: a block of channels goes through all steps, with the channels as SIMD lanes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssmcourse.kernels.arrays import as_array, empty
from ssmcourse.kernels.threads import native, run
from ssmcourse.kernels.vector_math import exp
from ssmcourse.kernels.wkv import operator
from ssmcourse.kernels.wkv.operator import CHUNK

BLOCK = 128  # channels; their states stay in the cache next to the core


# --- Kernels: channels lo to hi of row i ----------------------------------------------------------


@native
def _larger(x, y):
    return x if x > y else y


@native
def _copy(a, b, lo, hi, at):
    """Columns lo to hi of a to b, from its column `at` on. Assigning slices would compile for seconds."""
    for r in range(a.shape[0]):
        for j in range(hi - lo):
            b[r, at + j] = a[r, lo + j]


@native
def _forward(k, v, decay, u, state, y, befores, i, lo, hi):
    """y and, at every CHUNK steps, the state; `state` is the first one on entry and the last one at the end."""
    n, s, m = state[i, 0, lo:hi], state[i, 1, lo:hi], state[i, 2, lo:hi]
    slope, bonus = decay[lo:hi], u[lo:hi]
    for t in range(k.shape[1]):
        if t % CHUNK == 0:
            _copy(state[i], befores[i, t // CHUNK], lo, hi, lo)
        k_t, v_t, y_t = k[i, t, lo:hi], v[i, t, lo:hi], y[i, t, lo:hi]
        for j in range(hi - lo):
            now = bonus[j] + k_t[j]
            q = _larger(m[j], now)
            f, p = exp(m[j] - q), exp(now - q)
            y_t[j] = (f * n[j] + p * v_t[j]) / (f * s[j] + p)
            after = _larger(m[j] - slope[j], k_t[j])
            g, e = exp(m[j] - after - slope[j]), exp(k_t[j] - after)
            n[j] = g * n[j] + e * v_t[j]
            s[j] = g * s[j] + e
            m[j] = after


@native
def _gradient(dy, dstate, k, v, decay, u, befores, dk, dv, ddecay, du, i, lo, hi):
    """dk, dv, and into `ddecay`, `du` (b, d) sums over the steps. `dstate` goes from the last to the first."""
    l, width = k.shape[1], hi - lo
    dn, ds = dstate[i, 0, lo:hi], dstate[i, 1, lo:hi]
    slope, bonus = decay[lo:hi], u[lo:hi]
    kept = np.empty((CHUNK + 1, 3, width), k.dtype)  # the state before each step of a chunk
    for start in range((l - 1) // CHUNK * CHUNK, -1, -CHUNK):
        steps = min(CHUNK, l - start)
        _copy(befores[i, start // CHUNK], kept[0], lo, hi, 0)
        for t in range(steps):
            k_t, v_t = k[i, start + t, lo:hi], v[i, start + t, lo:hi]
            n, s, m = kept[t, 0], kept[t, 1], kept[t, 2]
            n_after, s_after, m_after = kept[t + 1, 0], kept[t + 1, 1], kept[t + 1, 2]
            for j in range(width):
                after = _larger(m[j] - slope[j], k_t[j])
                g, e = exp(m[j] - after - slope[j]), exp(k_t[j] - after)
                n_after[j] = g * n[j] + e * v_t[j]
                s_after[j] = g * s[j] + e
                m_after[j] = after
        for t in range(steps - 1, -1, -1):
            k_t, v_t, dy_t = k[i, start + t, lo:hi], v[i, start + t, lo:hi], dy[i, start + t, lo:hi]
            dk_t, dv_t = dk[i, start + t, lo:hi], dv[i, start + t, lo:hi]
            n, s, m, m_after = kept[t, 0], kept[t, 1], kept[t, 2], kept[t + 1, 2]
            ddecay_i, du_i = ddecay[i, lo:hi], du[i, lo:hi]
            for j in range(width):
                now = bonus[j] + k_t[j]
                q = _larger(m[j], now)
                f, p = exp(m[j] - q), exp(now - q)
                g, e = exp(m[j] - m_after[j] - slope[j]), exp(k_t[j] - m_after[j])
                share = dy_t[j] / (f * s[j] + p)
                y = (f * n[j] + p * v_t[j]) / (f * s[j] + p)
                of_now = share * p * (v_t[j] - y)
                dv_t[j] = share * p + e * dn[j]
                dk_t[j] = of_now + e * (v_t[j] * dn[j] + ds[j])
                du_i[j] += of_now
                ddecay_i[j] -= g * (n[j] * dn[j] + s[j] * ds[j])
                dn[j] = g * dn[j] + share * f
                ds[j] = g * ds[j] - share * f * y


# --- Who does what ----------------------------------------------------------------------------


def forward(k: Tensor, v: Tensor, decay: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, l, d), the last state (b, 3, d), and the states before every chunk."""
    arrays = as_array(k), as_array(v), as_array(decay), as_array(u)
    running = np.array(as_array(state))
    b, l, d = k.shape
    (y, y_array), (befores, kept) = empty(k.shape, k.dtype), empty((b, operator.chunks(l), 3, d), k.dtype)
    run(_forward, [(*arrays, running, y_array, kept, *block) for block in _blocks(b, d)])
    return y, torch.from_numpy(running), befores


def gradient(
    upstream: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    u: Tensor,
    state: Tensor,
) -> list[Tensor]:
    """dk, dv, d decay, du and d state."""
    of_y, of_state = upstream
    _, last, befores = outputs
    dy = as_array(torch.zeros_like(k) if of_y is None else of_y)
    dstate = np.zeros_like(as_array(last)) if of_state is None else np.array(as_array(of_state))
    arrays = as_array(k), as_array(v), as_array(decay), as_array(u), as_array(befores)
    (dk, dk_array), (dv, dv_array) = empty(k.shape, k.dtype), empty(k.shape, k.dtype)
    ddecay, du = np.zeros_like(dstate[:, 0]), np.zeros_like(dstate[:, 0])
    b, _, d = k.shape
    run(
        _gradient,
        [(dy, dstate, *arrays, dk_array, dv_array, ddecay, du, *block) for block in _blocks(b, d)],
    )
    found = [dk, dv, *(torch.from_numpy(array) for array in (ddecay, du, dstate))]
    # Through both sums the first m scales what came before, and the last m all there is.
    found[4][:, 2] = (found[4][:, :2] * state[:, :2]).sum(1)
    if of_state is not None:
        dm = of_state[:, 2] - (of_state[:, :2] * last[:, :2]).sum(1)
        to_keys, to_decay, to_first = operator.to_the_largest(k, decay, state, dm)
        found[0] += to_keys
        found[2] += to_decay
        found[4][:, 2] += to_first
    return [*found[:2], found[2].sum(0), found[3].sum(0), found[4]]


def _blocks(b: int, d: int) -> list[tuple[int, int, int]]:
    return [(i, lo, min(lo + BLOCK, d)) for i in range(b) for lo in range(0, d, BLOCK)]


wkv4 = operator.register("cpu", forward, gradient)
