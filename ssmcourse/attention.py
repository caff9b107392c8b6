"""Implicit attention: the matrix M(x) of every operator, so that y = M(x) x exactly.

| code                | symbol       | shape           | meaning                                               |
|---------------------|--------------|-----------------|-------------------------------------------------------|
| the result          | M, α         | (b, d, l, l)    | row i: what output i is made of; 0 above the diagonal |
| `log_a`             | log Ā        | (..., l, n)     | logarithm of what a step keeps of each state          |
| `B_bar`, `C`        | B̄, C         | (..., l, n)     | what an input writes, and an output reads             |

M is signed and not normalised (only those of RWKV-4 and of linear attention have rows that sum to 1): a
picture of it is not a picture of probabilities. Memory is O(l^2) a channel, never l^2 n.

Sources: Ali et al. 2024 (The hidden attention of Mamba), eq. 11-12; Zimerman et al. 2024 (A unified implicit
attention formulation), section 3; Dao & Gu 2024 (Mamba-2), eq. 3. Lesson 12.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ssmcourse.arguments import Arguments, groups, integer, number, one_of
from ssmcourse.attribution import attribution as attribution
from ssmcourse.attribution import chosen
from ssmcourse.attribution import layer_attention as layer_attention
from ssmcourse.attribution import perturbation_curve as perturbation_curve
from ssmcourse.attribution import rollout as rollout
from ssmcourse.convolution import fft_conv
from ssmcourse.discretization import phi1
from ssmcourse.duality import segsum
from ssmcourse.kernels import runtime
from ssmcourse.precision import without_autocast, working_dtype
from ssmcourse.relatives import rglru_gates, wkv4_decay


def semiseparable_matrix(
    log_a: Tensor, B_bar: Tensor, C: Tensor, D: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """The matrix of h_t = exp(log_a_t) h_{t-1} + B_bar_t x_t, y_t = C_t . h_t + D x_t, one input and output.

        M[i, j] = sum over n of C_i exp(log_a_{j+1} + ... + log_a_i) B_bar_j    for j <= i

    Those of the recurrences below are special cases. With n = 1 and B_bar = C = 1 it is that of `linear_scan`.

    Args:
        log_a, B_bar, C: (..., l, n), real or complex; leading dimensions broadcast.
        D: (...,), added on the diagonal.
        backend: "auto", "cpu" or "reference".
    Returns:
        (..., l, l) in the dtype that the arguments promote to. Half types are computed in float32.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is not there.

    Gradients of all arguments; to second order and under torch.func with backend="reference", which then
    keeps an (l, l) matrix for each of the n states, where "cpu" recomputes them.

    Cost: O(l^2 n) work a row; "cpu" takes l n exponentials for it and goes over M once.
    Source: Dao & Gu 2024 (Mamba-2), eq. 3. Lessons 09 and 12.
    """
    given = Arguments()
    given.parameter("log_a", log_a, "... l n", may_be_complex=True)
    given.parameter("B_bar", B_bar, "... l n", may_be_complex=True)
    given.parameter("C", C, "... l n", may_be_complex=True)
    given.parameter("D", D, "...", may_be_complex=True, optional=True)
    lead = log_a.shape[:-2]
    for name, other in (
        ("B_bar", B_bar.shape[:-2]),
        ("C", C.shape[:-2]),
        ("D", () if D is None else D.shape),
    ):
        try:
            lead = torch.broadcast_shapes(lead, other)
        except RuntimeError:
            raise ValueError(
                f"{name}: got leading shape {tuple(other)}, expected one that broadcasts with {tuple(lead)}"
            ) from None
    return _semiseparable("semiseparable_matrix", backend, log_a, B_bar, C, D)


def _semiseparable(
    operator: str, backend: str, log_a: Tensor, B_bar: Tensor, C: Tensor, D: Tensor | None = None
) -> Tensor:
    """`semiseparable_matrix` of arguments that fit; `operator` is the public function, for its backends."""
    matrix = runtime.choose(operator, backend, log_a.device.type)
    dtype = torch.promote_types(torch.promote_types(log_a.dtype, B_bar.dtype), C.dtype)
    dtype = dtype if D is None else torch.promote_types(dtype, D.dtype)
    working = torch.promote_types(dtype, torch.float32)
    skip = () if D is None else D.shape
    lead = torch.broadcast_shapes(log_a.shape[:-2], B_bar.shape[:-2], C.shape[:-2], skip)
    rows, (l, n) = math.prod(lead), log_a.shape[-2:]
    log_a, B_bar, C = (t.to(working).expand(*lead, l, n).reshape(rows, l, n) for t in (log_a, B_bar, C))
    D = None if D is None else D.to(working).expand(lead).reshape(rows)
    return matrix(log_a, B_bar, C, D).reshape(*lead, l, l).to(dtype)


def _by_definition(log_a: Tensor, B_bar: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """One state after another: its own 1-semiseparable matrix, between what is read and what is written."""
    M = torch.zeros_like(log_a[..., :1] * log_a[..., None, :, 0])
    for gates, b, c in zip(log_a.unbind(-1), B_bar.unbind(-1), C.unbind(-1), strict=True):
        decay = segsum(gates.real).exp()
        decay = torch.polar(decay, segsum(gates.imag).tril()) if gates.is_complex() else decay
        M = M + c[..., :, None] * decay * b[..., None, :]
    M = M.tril()  # a NaN among B_bar or C has come through the zeros above the diagonal
    return M if D is None else M + torch.diag_embed(D[..., None].expand(log_a.shape[:-1]))


for _name in ("semiseparable_matrix", "selective_scan_matrix", "ssd_matrix", "rglru_matrix"):
    runtime.register(
        _name,
        cpu="ssmcourse.kernels.implicit_attention.cpu:semiseparable_matrix",
        reference=_by_definition,
    )


def selective_scan_matrix(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    b_disc: str = "euler",
    channels: Any = None,
    backend: str = "auto",
) -> Tensor:
    """The matrix of `selective_scan`: M[i, j] = C_i exp(A (dt_{j+1} + ... + dt_i)) B_bar_j, a channel.

    Args:
        dt: (b, l, d), after bias and softplus.
        A: (d, n), real; or complex, and M is then 2 Re of the sum, as in `selective_scan`.
        B, C: (b, l, n), (b, l, g, n) or constant in time (d, n); complex beside a complex A.
        D: (d,), added on the diagonal.
        b_disc: `euler` for B_bar = dt B (published weights), or `zoh`.
        channels: which of the d to return: an index, several, or a slice; all if not given.
        backend: as in `semiseparable_matrix`, which does the work.
    Returns:
        (b, d, l, l), or (b, len(channels), l, l), in dt's dtype.
    Raises:
        ValueError: shapes, dtypes, devices or options do not fit.

    Gradients of all tensors.

    Cost: O(l^2 n) work a channel, memory O(l^2 + l n). At l = 2,048 a channel's M has 16 MB: name `channels`.
    Source: Ali et al. 2024 (The hidden attention of Mamba), eq. 11-12. Lesson 12.
    """
    is_complex = isinstance(A, Tensor) and A.is_complex()
    given = Arguments()
    given.activation("dt", dt, "b l d")
    given.parameter("A", A, "d n", may_be_complex=True)
    for name, value in (("B", B), ("C", C)):
        given.activation(name, value, "b l n", "b l g n", "d n", is_complex=is_complex)
        if value.ndim == 4:
            groups(name, value.shape[2], "channels", dt.shape[2])
    given.parameter("D", D, "d", optional=True)
    one_of("b_disc", b_disc, ("euler", "zoh"))
    working = working_dtype(dt, A, B, C, D)
    picked, d = chosen(channels, dt.shape[2], dt.device), dt.shape[2]
    step = dt[..., picked].to(working).mT[..., None]  # (b, d, l, 1)
    log_a = step * A[picked, None].to(working)  # (b, d, l, n)
    B_bar = step * _per_channel(B, picked, d).to(working)
    if b_disc == "zoh":
        B_bar = B_bar * phi1(log_a)
    read = _per_channel(C, picked, d).to(working)
    skip = None if D is None else D[picked] / (2 if is_complex else 1)
    M = _semiseparable("selective_scan_matrix", backend, log_a, B_bar, read, skip)
    return (2 * M.real if is_complex else M).to(dt.dtype)  # complex modes stand for pairs of conjugates


@without_autocast
def ssd_matrix(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """The matrix of `ssd`: M[i, j] = (C_i . B_j) exp(A (dt_{j+1} + ... + dt_i)) dt_j, one for a head.

    Args:
        dt: (b, l, h), after bias, softplus and limits.
        A: (h,), real.
        B, C: (b, l, g, n).
        D: (h,), added on the diagonal. (A D of (h, p) differs among a head's channels: add it to y.)
        backend: as in `semiseparable_matrix`, which makes the decay.
    Returns:
        (b, h, l, l) in dt's dtype; all p channels of a head share it.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Gradients of all tensors. Autocast changes nothing here.

    Cost: O(l^2) a head and O(l^2 n) a group.
    Source: Dao & Gu 2024 (Mamba-2), eq. 16: the mask L times the scores C B^T. Lessons 09 and 12.
    """
    given = Arguments()
    given.activation("dt", dt, "b l h")
    given.parameter("A", A, "h")
    given.activation("B", B, "b l g n")
    given.activation("C", C, "b l g n")
    groups("B", B.shape[2], "heads", dt.shape[2])
    given.parameter("D", D, "h", optional=True)
    working = working_dtype(dt, A, D)
    step = dt.to(working).mT[..., None]  # (b, h, l, 1)
    log_a = step * A.to(working)[:, None, None]
    decay = _semiseparable("ssd_matrix", backend, log_a, step, torch.ones_like(step))
    scores = (C.to(working).transpose(1, 2) @ B.to(working).permute(0, 2, 3, 1)).tril()  # (b, g, l, l)
    M = (decay.unflatten(1, (scores.shape[1], -1)) * scores[:, :, None]).flatten(1, 2)
    return with_diagonal(M, D).to(dt.dtype)


@without_autocast
def h3_matrix(
    q: Tensor,
    k: Tensor,
    shift_kernel: Tensor,
    ssm_kernel: Tensor,
    *,
    D_shift: Tensor | None = None,
    D_ssm: Tensor | None = None,
) -> Tensor:
    """The matrix of `h3_mix` on the values v: M[i, j] = (q_i . k_shifted_j) kernel_{i-j}, one for a head.

    A head of p channels keeps S_i = sum over j of kernel_{i-j} k_shifted_j v_j^T, (p, p), and reads
    o_i = S_i^T q_i. So it is a linear attention whose mask is the SSM's Toeplitz matrix. With head_dim = 1 it
    is diag(q) T_ssm diag(k_shifted).

    Args:
        q, k: (b, l, d), channels as (head, head_dim), head slowest.
        shift_kernel: (d, m), the shift SSM's taps on k, lag 0 first; m is 1 or more.
        ssm_kernel: (d // head_dim, l), which sets the heads.
        D_shift: (d,), skip of the shift SSM.
        D_ssm: (d // head_dim,), skip of the diagonal SSM.
    Returns:
        (b, d // head_dim, l, l) in q's dtype; the channels of v in a head share it.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Gradients of all tensors to any order. Autocast changes nothing here.

    Cost: O(l^2 d) work, memory O(l^2) a head.
    Source: Fu et al. 2023 (H3), algorithm 1. Lessons 04 and 12.
    """
    given = Arguments()
    given.activation("q", q, "b l d")
    given.activation("k", k, "b l d")
    given.parameter("shift_kernel", shift_kernel, "d m")
    given.at_least_one("m")
    given.parameter("ssm_kernel", ssm_kernel, "h l")
    given.parameter("D_shift", D_shift, "d", optional=True)
    given.parameter("D_ssm", D_ssm, "h", optional=True)
    h, l = ssm_kernel.shape
    groups("ssm_kernel", h, "channels", q.shape[2])
    working = working_dtype(q, shift_kernel, ssm_kernel, D_shift, D_ssm)
    taps = pad(shift_kernel.to(working), (0, l - shift_kernel.shape[1]))
    shifted = fft_conv(k.to(working), taps, D_shift)
    by_head = (t.to(working).unflatten(2, (h, -1)).transpose(1, 2) for t in (q, shifted))
    queries, keys = by_head  # (b, h, l, p)
    return (queries @ keys.mT * with_diagonal(_toeplitz(ssm_kernel.to(working)), D_ssm)).to(q.dtype)


def kernel_matrix(kernel: Tensor) -> Tensor:
    """The Toeplitz matrix of a causal convolution, `fft_conv`: M[i, j] = kernel[i - j].

    Args:
        kernel: (d, l), lag 0 first; or with any other leading shape, (..., l).
    Returns:
        (d, l, l), of kernel's dtype. Gradients to any order.
    Raises:
        ValueError: not a tensor of floating or complex numbers.
    Source: Gu, Goel & Ré 2021 (S4), eq. 4-5. Lesson 03.
    """
    given = Arguments()
    given.parameter("kernel", kernel, "... l", may_be_complex=True)
    return _toeplitz(kernel)


def conv1d_matrix(weight: Tensor, l: int) -> Tensor:
    """The banded matrix of `causal_conv1d`, without bias and activation: M[i, j] = weight[w - 1 - (i - j)].

    Args:
        weight: (d, w), the present step's weight last.
        l: the length of the sequence.
    Returns:
        (d, l, l), of weight's dtype. Gradients to any order.
    Raises:
        ValueError: weight is not (d, w) with w of 1 or more, or l is not a length.
    Source: Zimerman et al. 2024 (unified implicit attention), section 3. Lesson 12.
    """
    given = Arguments()
    given.parameter("weight", weight, "d w")
    given.at_least_one("w")
    l = integer("l", l, 0)
    return _toeplitz(pad(weight.flip(-1), (0, l - weight.shape[1])))


def rglru_matrix(r: Tensor, i: Tensor, a_param: Tensor, *, c: float = 8.0, backend: str = "auto") -> Tensor:
    """The matrix of `rglru_scan`: M[t, s] = (a_t ... a_{s+1}) sqrt(1 - a_s^2) i_s, and without the root at s = 0.

    Args:
        r, i: (b, l, d), both gates after their sigmoid.
        a_param: (d,), Λ.
        c: as in `rglru_scan`.
        backend: as in `semiseparable_matrix`, which does the work.
    Returns:
        (b, d, l, l) in r's dtype. Gradients of all tensors.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Cost: O(l^2) a channel.
    Source: De et al. 2024 (Griffin), eq. 3-4; Zimerman et al. 2024, section 3. Lesson 12.
    """
    given = Arguments()
    given.activation("r", r, "b l d")
    given.activation("i", i, "b l d")
    given.parameter("a_param", a_param, "d")
    number("c", c)
    working = working_dtype(r, a_param)
    log_a, weight = rglru_gates(r.to(working), i.to(working), a_param.to(working), c, starts=True)
    log_a, weight = log_a.mT[..., None], weight.mT[..., None]  # (b, d, l, 1)
    return _semiseparable("rglru_matrix", backend, log_a, weight, torch.ones_like(weight)).to(r.dtype)


def wkv4_matrix(k: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """The matrix of `wkv4`, its rows sum to 1: a softmax of k_j - (i-1-j) exp(w) in the past, u + k_i now.

    Args:
        k: (b, l, d), keys of any size.
        w, u: (d,), decay and bonus as in `wkv4`.
    Returns:
        (b, d, l, l) in k's dtype. Gradients of all tensors to any order.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Cost: O(l^2) a channel.
    Source: Peng et al. 2023 (RWKV), eq. 16; Zimerman et al. 2024, section 3. Lesson 12.
    """
    given = Arguments()
    given.activation("k", k, "b l d")
    given.parameter("w", w, "d")
    given.parameter("u", u, "d")
    working = working_dtype(k, w, u)
    steps = torch.arange(k.shape[1], device=k.device)
    age = steps[:, None] - steps  # i - j
    penalty = wkv4_decay(w.to(working))[:, None, None] * (age - 1).clamp(min=0)  # (d, l, l)
    penalty = torch.where(age == 0, -u.to(working)[:, None, None], penalty).masked_fill(age < 0, torch.inf)
    return (k.to(working).mT[:, :, None] - penalty).softmax(-1).to(k.dtype)


@without_autocast
def linear_attention_matrix(q: Tensor, k: Tensor, *, normalize: bool = True, eps: float = 1e-6) -> Tensor:
    """The matrix of `linear_attention`: M[i, j] = q_i . k_j, with `normalize` divided by its row's sum + eps.

    Args:
        q, k: (b, l, h, n), after the feature map.
        normalize, eps: as in `linear_attention`.
    Returns:
        (b, h, l, l) in q's dtype. Gradients to any order. Autocast changes nothing here.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Cost: O(l^2 n) a head.
    Source: Katharopoulos et al. 2020 (Transformers are RNNs), eq. 8. Lessons 09 and 12.
    """
    given = Arguments()
    given.activation("q", q, "b l h n")
    given.activation("k", k, "b l h n")
    number("eps", eps)
    working = working_dtype(q)
    M = (q.to(working).transpose(1, 2) @ k.to(working).permute(0, 2, 3, 1)).tril()
    return (M / (M.sum(-1, keepdim=True) + eps) if normalize else M).to(q.dtype)


# --- Parts ------------------------------------------------------------------------------------


def _toeplitz(kernel: Tensor) -> Tensor:
    """(..., l) to (..., l, l): row i is a window on the reversed kernel, i places further to the left."""
    l = kernel.shape[-1]
    if l == 0:
        return kernel[..., None] * kernel[..., None, :]  # nothing, but differentiable
    return pad(kernel.flip(-1), (0, l - 1)).unfold(-1, l, 1).flip(-2)


def with_diagonal(M: Tensor, D: Tensor | None) -> Tensor:
    """M (..., h, l, l) with D (h,) added on the diagonals."""
    if D is None:
        return M
    return torch.diagonal_scatter(M, M.diagonal(0, -2, -1) + D.to(M.dtype)[:, None], 0, -2, -1)


def _per_channel(B: Tensor, chosen: Tensor, d: int) -> Tensor:
    """B or C of any of its shapes as (b, d, l, n), or what broadcasts to it, for the chosen of d channels."""
    if B.ndim == 2:
        return B[chosen, None]  # (d, 1, n): constant in time
    if B.ndim == 3:
        return B[:, None]  # (b, 1, l, n): the same for all channels
    return B.transpose(1, 2)[:, chosen // max(1, d // B.shape[2])]
