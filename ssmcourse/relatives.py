"""The recurrences of the relatives: Griffin's RG-LRU, RWKV-4's WKV, linear attention.

| code           | symbol          | shape          | meaning                                                     |
|----------------|-----------------|----------------|-------------------------------------------------------------|
| `x`            | x               | (b, l, d)      | RG-LRU: the layer's input                                   |
| `r`, `i`       | r_t, i_t        | (b, l, d)      | recurrence and input gate, after their sigmoid              |
| `a_param`      | Λ               | (d,)           | a = exp(-c r softplus(Λ))                                   |
| `k`, `v`       | k_t, v_t        | (b, l, d)      | RWKV: key (a logarithm of a weight) and value               |
| `w`, `u`       | w, u            | (d,)           | a step decays a weight by exp(-exp(w)); bonus of the present |
| `q`, `k`, `v`  | φ(Q), φ(K), V   | (b, l, h, n or p) | linear attention, after the feature map                  |

All three are matrices M(x) too: `rglru_matrix`, `wkv4_matrix` and `linear_attention_matrix` of
`ssmcourse.attention`. Lesson 12 draws them beside Mamba's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from ssmcourse import packing
from ssmcourse.arguments import Arguments, number
from ssmcourse.duality import ssd
from ssmcourse.kernels import runtime
from ssmcourse.precision import without_autocast, working_dtype
from ssmcourse.scan import linear_scan


def rglru_scan(
    x: Tensor,
    r: Tensor,
    i: Tensor,
    a_param: Tensor,
    *,
    c: float = 8.0,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Griffin's real-gated linear recurrent unit: h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t.

    Args:
        x: (b, l, d), the input.
        r: (b, l, d), the recurrence gate in [0, 1], after its sigmoid; log a_t = -c r_t softplus(a_param).
        i: (b, l, d), the input gate in [0, 1], after its sigmoid.
        a_param: (d,), Λ. Any floating dtype.
        c: how many times a gate can be closed, 8 in the paper; 0 or more.
        initial_state: (b, d), the state before the first step. Without one the first step starts the
            sequence: what enters there is i x, not scaled by sqrt(1 - a^2), as in the published model.
        return_final_state: also return the last state.
        seq_idx: (b, l) integers; where they change along a row, a new sequence starts, whose first input is not
            scaled either. The initial state is that of each row's first. A NaN in a state stays in its row.
    Returns:
        The states h (b, l, d) in x's dtype and, if asked for, the last one (b, d), or with seq_idx (s, d), s
        counting the sequences of all rows, row by row; in float32 at least: what continues the sequence when
        passed as initial_state.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Half types are computed in float32. Gradients of all tensors to any order. Where a is exactly 1 (r = 0)
    the slope of the square root is infinite; the gradient through it is then 0, its limit behind a sigmoid.

    Cost: O(b l d) work, some six arrays of x's size; one `linear_scan`.
    Source: De et al. 2024 (Griffin), eq. 3-4 and appendix A. Lesson 12.
    """
    given = Arguments()
    given.activation("x", x, "b l d")
    given.activation("r", r, "b l d")
    given.activation("i", i, "b l d")
    given.parameter("a_param", a_param, "d")
    given.parameter("initial_state", initial_state, "b d", optional=True)
    given.integers("seq_idx", seq_idx, "b l", optional=True)
    number("c", c)
    working = working_dtype(x, a_param, initial_state)
    first = x.new_zeros(x.shape[0], x.shape[2], dtype=working)
    first = first if initial_state is None else initial_state.to(working)
    log_a, weight = rglru_gates(r.to(working), i.to(working), a_param.to(working), c, initial_state is None)
    a = log_a.exp()
    if seq_idx is not None:
        begins = packing.changes(seq_idx)[..., None]
        a, weight = a.masked_fill(begins, 0), torch.where(begins, i.to(working), weight)
    h = linear_scan(a, weight * x.to(working), first)
    y = h.to(x.dtype)
    if not return_final_state:
        return y
    if not x.shape[1]:
        return y, first
    return y, h[:, -1] if seq_idx is None else h[packing.ends(seq_idx)]


def rglru_gates(r: Tensor, i: Tensor, a_param: Tensor, c: float, starts: bool) -> tuple[Tensor, Tensor]:
    """log a_t, and what an input is weighted by as it enters: sqrt(1 - a_t^2) i_t. Both (b, l, d).

    Args:
        starts: whether the sequence begins here; its first input is then weighted by i alone.
    """
    log_a = -c * r * softplus(a_param)
    rest = -torch.expm1(2 * log_a)  # 1 - a^2, without its cancellation near a = 1
    open_ = rest > 0
    scale = torch.where(open_, torch.where(open_, rest, 1).sqrt(), 0)
    if starts:
        scale = torch.cat([torch.ones_like(scale[:, :1]), scale[:, 1:]], 1)
    return log_a, scale * i


def wkv4(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """RWKV-4's attention without queries: an average of the values so far, in which the past fades.

        y_t = (sum over j < t of exp(k_j - (t-1-j) exp(w)) v_j + exp(u + k_t) v_t)
            / (sum over j < t of exp(k_j - (t-1-j) exp(w))     + exp(u + k_t))

    Args:
        k: (b, l, d), keys of any size: weights are their exponentials, taken relative to the largest so far.
        v: (b, l, d), values.
        w: (d,), of any floating dtype: a weight decays by exp(-exp(w)) a step; above 64 that is 0, and so is
            the gradient of w.
        u: (d,), of any floating dtype: the bonus of the present step.
        initial_state: (b, 3, d): the numerator's sum, the denominator's sum and a maximum m, both sums
            divided by exp(m). It is how the paper's own code keeps its state.
        return_final_state: also return the state after the last step.
        backend: a name from `backends("wkv4")`; "auto" takes the best one for k's device.
    Returns:
        y (b, l, d) in v's dtype and, if asked for, the state (b, 3, d), in float32 at least.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is not there.

    Half types are computed in float32. Gradients of all tensors; to second order with backend="reference".

    Cost: O(b l d) work. "cpu" goes over k and v once and keeps a state for every 64 steps; "reference" is a
    `linear_scan` among some twenty arrays of k's size.
    Source: Peng et al. 2023 (RWKV), eq. 16 and appendix D. Lesson 12.
    """
    given = Arguments()
    given.activation("k", k, "b l d")
    given.activation("v", v, "b l d")
    given.parameter("w", w, "d")
    given.parameter("u", u, "d")
    given.parameter("initial_state", initial_state, "b 3 d", optional=True)
    working = working_dtype(k, w, u, initial_state)
    if initial_state is None:
        state = k.new_zeros(k.shape[0], 3, k.shape[2], dtype=working)
        state[:, 2] = -torch.inf
    else:
        state = initial_state.to(working)
    sums, top = state[:, :2], state[:, 2:].clamp(min=torch.finfo(working).min / 4)  # a finite -infinity
    run = runtime.choose("wkv4", backend, k.device.type)
    decay = wkv4_decay(w.to(working))
    y, state = run(k.to(working), v.to(working), decay, u.to(working), torch.cat([sums, top], 1))
    return (y.to(v.dtype), state) if return_final_state else y.to(v.dtype)


def wkv4_decay(w: Tensor) -> Tensor:
    """exp(w), what a step takes off a weight's logarithm; never infinity, whose product with 0 is NaN.

    As a power of 2: for 256 numbers torch leaves exp to MKL's threads, which then spin in the way of a kernel's.
    """
    return (w.clamp(max=64) / math.log(2)).exp2()


def _wkv4_by_scans(k: Tensor, v: Tensor, decay: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Both sums as one linear scan, kept divided by exp(top): where the divisor changes, the gates do too."""
    top = _running_top(k, decay, state[:, 2])  # (b, l + 1, d)
    gates = (top[:, :-1] - top[:, 1:] - decay).exp()
    weights = (k - top[:, 1:]).exp()
    first = state[:, :2] * (state[:, 2] - top[:, 0]).exp()[:, None]
    sums = linear_scan(gates[:, :, None], torch.stack([weights * v, weights], 2), first)
    sums = torch.cat([first[:, None], sums], 1)  # (b, l + 1, 2, d), those before each step and the last
    largest = torch.maximum(top[:, :-1], (u + k).detach())
    faded, present = (top[:, :-1] - largest).exp(), (u + k - largest).exp()
    numerator, denominator = (sums[:, :-1] * faded[:, :, None]).unbind(2)
    y = (numerator + present * v) / (denominator + present)
    return y, _last_state(k, decay, state[:, 2], sums[:, -1], top[:, -1])


runtime.register("wkv4", cpu="ssmcourse.kernels.wkv.cpu:wkv4", reference=_wkv4_by_scans)


def _running_top(keys: Tensor, decay: Tensor, before: Tensor) -> Tensor:
    """The logarithm of the largest weight so far, (b, l + 1, d): max over j <= t of k_j - (t - j) decay.

    It is a scale that the sums are kept relative to, and nothing else depends on it: it may be rounded, and
    carries no gradient.
    """
    steps = torch.arange(keys.shape[1] + 1, device=keys.device)[:, None]
    with torch.no_grad():  # in float64, with no slope so large that k_j + j slope has no digits left for k_j
        slope = steps * decay.double().clamp(max=2.0**50 / len(steps))
        heights = torch.cat([before[:, None], keys], 1) + slope
        return (heights.cummax(1).values - slope).to(keys.dtype)


def _last_state(keys: Tensor, decay: Tensor, before: Tensor, sums: Tensor, scale: Tensor) -> Tensor:
    """(b, 3, d): the last sums (b, 2, d), given relative to exp(scale), relative to the largest weight.

    The maximum is a part of this result, so here it has its gradient.
    """
    ages = torch.arange(keys.shape[1], -1, -1, device=keys.device)[:, None]
    top = (torch.cat([before[:, None], keys], 1) - ages * decay).amax(1)  # (b, d)
    return torch.cat([sums * (scale - top).exp()[:, None], top[:, None]], 1)


@without_autocast
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    normalize: bool = True,
    eps: float = 1e-6,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention without softmax: y_t = sum over j <= t of (q_t . k_j) v_j, divided by their sum.

        S_t = S_{t-1} + v_t k_t^T        z_t = z_{t-1} + k_t        y_t = S_t q_t / (z_t . q_t + eps)

    Args:
        q, k: (b, l, h, n), after the feature map; they are not scaled here.
        v: (b, l, h, p).
        normalize: divide by z_t . q_t + eps; without it y_t = S_t q_t. Features that are not positive may
            make the divisor 0.
        eps: added to the divisor, 0 or more.
        initial_state: (b, h, p, n), the sum S so far, or with `normalize` (b, h, p + 1, n): z is its last row.
        return_final_state: also return that sum after the last step.
        seq_idx: (b, l) integers. Where they change along l a new sequence begins, which sees nothing of what
            was before. The initial state is that of each row's first sequence.
        backend: as for `ssd`, which does the work.
    Returns:
        y (b, l, h, p) in v's dtype and, if asked for, the state, in float32 at least; with seq_idx that of every
        sequence of all rows, row by row: s of them in place of b.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is not there.

    Half types are computed in float32. Gradients of all tensors; to second order with backend="chunked" or
    "reference". Autocast changes nothing here.

    Cost: O(b l h n p) work, as products of matrices over chunks.
    Source: Katharopoulos et al. 2020 (Transformers are RNNs), eq. 9-12. Lessons 09 and 12.
    """
    given = Arguments()
    given.activation("q", q, "b l h n")
    given.activation("k", k, "b l h n")
    given.activation("v", v, "b l h p")
    b, _, h, n = q.shape
    number("eps", eps)
    rows = v.shape[3] + bool(normalize)
    given.parameter("initial_state", initial_state, f"b h {rows} n", optional=True)
    given.integers("seq_idx", seq_idx, "b l", optional=True)
    working = working_dtype(q, initial_state)
    queries, keys, values = q.to(working), k.to(working), v.to(working)
    if normalize:
        values = pad(values, (0, 1), value=1.0)  # a value of ones sums the weights
    state = queries.new_zeros(b, h, rows, n) if initial_state is None else initial_state.to(working)
    # Mamba-2 with (C, B, x) = (q, k, v) and no decay, as its dual form has it.
    step, rate = torch.ones_like(queries[..., 0]), queries.new_zeros(h)
    result = ssd(
        values,
        step,
        rate,
        keys,
        queries,
        initial_state=state,
        return_final_state=return_final_state,
        seq_idx=seq_idx,
        backend=backend,
    )
    y, *final = result if return_final_state else (result,)
    if normalize:
        y = y[..., :-1] / (y[..., -1:] + eps)
    y = y.to(v.dtype)
    return (y, *final) if final else y


# For `backends`; the call goes straight to `ssd`, which chooses.
runtime.register("linear_attention", cpu=ssd, chunked=ssd, quadratic=ssd, recurrent=ssd, reference=ssd)
