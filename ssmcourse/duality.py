"""State space duality (SSD): one linear map, computed as a recurrence, as attention, and as both in turn.

With a scalar decay for each head and step, the selective state space model of Mamba-2 is

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ,    y_t = h_t C_t                       the recurrence
    y = M x,  M = L ∘ (C Bᵀ),  L[i, j] = exp(log_a[j+1] + ... + log_a[i])             the masked attention

(Dao & Gu 2024, "Transformers are SSMs", eq. 1 and 16), and the chunked algorithm (section 6) uses the second form
inside chunks and the first between them. Lesson 09 derives and times all three.

| code            | paper     | shape             |                                               |
|-----------------|-----------|-------------------|-----------------------------------------------|
| `x`, `y`        | X, Y      | (b, l, h, p)      | input, output; p channels in each of h heads  |
| `dt`            | Δ         | (b, l, h)         | step sizes                                    |
| `xbar`          | Δ X       | (b, l, h, p)      | dt x: the input that enters the state         |
| `log_a`         | log a     | (b, l, h)         | dt A, the logarithm of each step's decay      |
| `B`, `C`        | B, C      | (b, l, g, n)      | shared by the h / g heads of a group          |
| `h`, `state`    | H         | (b, h, p, n)      |                                               |
| `L`, `M`        | L, M      | (b, h, l, l)      | the mask of decays, the matrix of the layer   |

In the algorithms below heads are (g, r): r heads of each of g groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, silu, softplus

from ssmcourse import packing
from ssmcourse.arguments import Arguments, groups
from ssmcourse.kernels import runtime
from ssmcourse.kernels.plain import backend_of_a_step
from ssmcourse.precision import without_autocast, working_dtype

Ends = list[tuple[int, int]]  # (row, step): where the sequences end whose states are wanted


def segsum(log_a: Tensor) -> Tensor:
    """Sums of log_a over every segment: out[..., i, j] = log_a[j+1] + ... + log_a[i].

    Exponentiated, this is the 1-semiseparable matrix L of Mamba-2 (Dao & Gu 2024, eq. 4 and 5; lesson 09).

    Args:
        log_a: (..., l), the logarithm of the decay at each step.
    Returns:
        (..., l, l), -inf above the diagonal, 0 on it; in log_a's dtype, summed in float32 at least.
    Raises:
        ValueError: log_a is not a floating tensor with a dimension.

    Cost: O(l²) time and memory. A difference of two cumulative sums would be cheaper and loses 1e-3 in float32
    at l = 4096. The mask comes before the exponential, so gradients have no NaN.
    """
    Arguments().activation("log_a", log_a, "... l")
    l = log_a.shape[-1]
    steps = log_a.to(working_dtype(log_a))[..., None].expand(*log_a.shape, l)  # (..., i, j): step i
    below = torch.ones(l, l, dtype=torch.bool, device=log_a.device).tril(-1)
    sums = steps.masked_fill(~below, 0).cumsum(-2)  # step i is part of the segment if i > j
    return sums.masked_fill(~below.fill_diagonal_(True), -torch.inf).to(log_a.dtype)


@without_autocast
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    chunk_size: int = 64,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Any:
    """The state space model of Mamba-2: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ, y_t = h_t C_t + D x_t.

    Args:
        x: (b, l, h, p), any l.
        dt: (b, l, h). What is used is clamp(dt + dt_bias, *dt_limit), with `dt_softplus` of softplus(dt + dt_bias);
            the gradient is zero outside the limits.
        A: (h,), negative for a state that fades.
        B, C: (b, l, g, n); head i uses group i // (h // g).
        D: (h,) or (h, p), a skip: D x is added to y.
        z: (b, l, h, p), a gate: y = (h C + D x) silu(z).
        dt_bias: (h,).
        chunk_size: steps in a chunk of the chunked algorithm, 1 or more. The result does not depend on it; the
            backend "cpu" has its own.
        initial_state: (b, h, p, n), zero if not given.
        return_final_state: also return the state after the last step.
        seq_idx: (b, l) integers, for sequences packed into one row: the state is reset where they change. The
            initial state is that of each row's first sequence.
        backend: a name from `backends("ssd")`: "reference" and "recurrent" are the recurrence, "quadratic" the
            masked attention, "chunked" the algorithm of chunks in torch; "auto" takes the best for x's device.
    Returns:
        y (b, l, h, p), in x's dtype; with return_final_state also the state (b, h, p, n), with seq_idx (s, h, p, n)
        for the s sequences of all rows, row by row. States are float32 for half types.
    Raises:
        ValueError: shapes, dtypes, devices or options do not fit, or the backend is not there.

    x, dt, B, C and z share one dtype; A, D, dt_bias and the initial state may be float32 beside half types.
    Computed in float32 at least, under autocast too. Gradients of every floating argument; "cpu" has first ones.
    To compile a call with both seq_idx and return_final_state in one graph, torch needs
    `torch._dynamo.config.capture_scalar_outputs`: how many states there are depends on the data.

    A NaN or an infinity in x, dt or B reaches every later step of its head or group, as it must. The algorithms that
    multiply matrices also take it to some steps before, of the same chunk ("quadratic": of the row), since 0 times NaN
    is NaN.

    Cost: recurrence O(b l h p n) work, l steps deep; quadratic O(b h l² (n + p)) and as much memory as M has
    elements; chunked O(b l h (p n + chunk_size (n + p))), all of it in products of matrices. "cpu" saves a state every
    1,024 steps for its backward. Source: Dao & Gu 2024, section 6 and listing 1; lessons 09 and 11.
    """
    _check("b l", x, dt, A, B, C, D, z, dt_bias, dt_limit, initial_state=initial_state, seq_idx=seq_idx)
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size!r}, expected an integer of 1 or more")
    core = runtime.choose("ssd", backend, x.device.type)
    if x.numel() == 0 or B.numel() == 0:
        core = _in_torch(_chunked)  # nothing to compute, but shapes and a graph to make
    A, skip, dt_bias = _parameters(dt, A, D, dt_bias, initial_state, x.shape[-2:])
    state = None if initial_state is None else initial_state.to(A.dtype)
    dt, log_a = _steps(dt, A, dt_bias, dt_softplus, *dt_limit)
    sequences = (len(x) if seq_idx is None else packing.count(seq_idx)) if return_final_state else 0
    y, final = core(x, dt, log_a, B, C, skip, z, state, seq_idx, sequences, chunk_size)
    return (y, final) if return_final_state else y


@without_autocast
def ssd_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor]:
    """One step of `ssd`, as a model that generates takes it.

    Args:
        state: (b, h, p, n), not changed.
        x, z: (b, h, p); dt: (b, h); A, dt_bias: (h,); B, C: (b, g, n); D: (h,) or (h, p). All as in `ssd`.
    Returns:
        y (b, h, p) in x's dtype, and the state after the step, float32 for half types.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Cost: O(b h p n). Source: Dao & Gu 2024, eq. 1.
    """
    _check("b", x, dt, A, B, C, D, z, dt_bias, dt_limit, state=state)
    return ssd_step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit)


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`ssd_state_update` for a layer that made the arguments, so that they fit: the checks cost as much again."""
    A, skip, dt_bias = _parameters(dt, A, D, dt_bias, state, x.shape[-2:])
    step = _one_step
    if x.numel() and B.numel():
        backend = backend_of_a_step(x, state, dt, A, B, C, D, z, dt_bias)
        step = runtime.choose("ssd_state_update", backend, x.device.type)
    return step(state.to(A.dtype), x, dt, A, B, C, skip, z, dt_bias, dt_softplus, *map(float, dt_limit))


# --- The three algorithms -------------------------------------------------------------------------
# xbar (b, l, g, r, p), log_a (b, l, g, r), B, C (b, l, g, n), state (b, g, r, p, n) -> y (b, l, g, r, p), and the
# states (s, g, r, p, n) at the s `ends`. A reset is a step with log_a = -inf.


def _recurrence(
    xbar: Tensor, log_a: Tensor, B: Tensor, C: Tensor, state: Tensor, ends: Ends, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + B_t ⊗ xbar_t,  y_t = C_t · h_t        (eq. 1)"""
    wanted, states, y = {t for _, t in ends}, {}, []
    steps = zip(xbar.unbind(1), log_a.exp().unbind(1), B.unbind(1), C.unbind(1), strict=True)
    h = state
    for t, (x_t, a_t, B_t, C_t) in enumerate(steps):
        h = a_t[..., None, None] * h + torch.einsum("bgrp,bgn->bgrpn", x_t, B_t)
        y.append(torch.einsum("bgrpn,bgn->bgrp", h, C_t))
        if t in wanted:
            states[t] = h
    return torch.stack(y, 1), _stack([states[t][row] for row, t in ends], state)


def _quadratic(
    xbar: Tensor, log_a: Tensor, B: Tensor, C: Tensor, state: Tensor, ends: Ends, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """y = (L ∘ C Bᵀ) xbar        (eq. 16), and what the initial state adds: it decays with every step."""
    L = segsum(log_a.movedim(1, -1)).exp()  # (b, g, r, i, j)
    M = L * torch.einsum("bign,bjgn->bgij", C, B)[:, :, None]
    from_start = log_a.cumsum(1).exp()
    y = torch.einsum("bgrij,bjgrp->bigrp", M, xbar)
    y = y + from_start[..., None] * torch.einsum("bign,bgrpn->bigrp", C, state)
    rows, steps = [row for row, _ in ends], [t for _, t in ends]
    decayed = from_start[rows, steps][..., None, None] * state[rows]
    return y, decayed + torch.einsum("sgrj,sjgrp,sjgn->sgrpn", L[rows, :, :, steps], xbar[rows], B[rows])


def _chunked(
    xbar: Tensor, log_a: Tensor, B: Tensor, C: Tensor, state: Tensor, ends: Ends, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Masked attention inside each chunk, the recurrence from chunk to chunk        (section 6, listing 1)"""
    l = xbar.shape[1]
    q = max(1, min(chunk_size, l))
    xbar, log_a, B, C = (_cut(t, q) for t in (xbar, log_a, B, C))  # (b, c, q, ...)
    # 1. Inside a chunk.
    L = segsum(log_a.movedim(2, -1)).exp()  # (b, c, g, r, i, j)
    M = L * torch.einsum("bcign,bcjgn->bcgij", C, B)[:, :, :, None]
    y = torch.einsum("bcgrij,bcjgrp->bcigrp", M, xbar)
    # 2. What each chunk adds to the state: the last row of L is the decay to the chunk's end.
    added = torch.einsum("bcgrj,bcjgrp,bcjgn->bcgrpn", L[..., -1, :], xbar, B)
    # 3. The state that enters each chunk.
    from_start = log_a.cumsum(2).exp()  # (b, c, i, g, r)
    entering, h = [], state
    for decay, addition in zip(from_start[:, :, -1].unbind(1), added.unbind(1), strict=True):
        entering.append(h)
        h = decay[..., None, None] * h + addition
    h = torch.stack(entering, 1)
    # 4. What that state adds to the outputs.
    y = y + from_start[..., None] * torch.einsum("bcign,bcgrpn->bcigrp", C, h)
    at = [row for row, _ in ends], [t // q for _, t in ends]
    steps = [t % q for _, t in ends]
    decayed = from_start[(*at, steps)][..., None, None] * h[at]
    final = decayed + torch.einsum(
        "sgrj,sjgrp,sjgn->sgrpn", L[(*at, slice(None), slice(None), steps)], xbar[at], B[at]
    )
    return y.flatten(1, 2)[:, :l], final


def _cut(t: Tensor, q: int) -> Tensor:
    """(b, l, ...) as (b, c, q, ...). Steps that fill the last chunk up are zeros: no input, and no decay."""
    chunks = max(1, -(-t.shape[1] // q))
    filled = pad(t, (0, 0) * (t.ndim - 2) + (0, chunks * q - t.shape[1]))
    return filled.unflatten(1, (chunks, q))


def _stack(states: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(states) if states else like.new_empty(0, *like.shape[1:])


def _in_torch(algorithm: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A backend from an algorithm: in the dtype of dt, with D, z and packed sequences."""

    def backend(
        x: Tensor,
        dt: Tensor,
        log_a: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        initial_state: Tensor | None,
        seq_idx: Tensor | None,
        sequences: int,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        (b, l, h, p), (g, n) = x.shape, B.shape[2:]
        wide, B, C = (t.to(dt.dtype) for t in (x, B, C))
        state = wide.new_zeros(b, h, p, n) if initial_state is None else initial_state
        ends = [(row, l - 1) for row in range(b)]
        if seq_idx is not None:
            log_a = log_a.masked_fill(packing.changes(seq_idx)[..., None], -torch.inf)
            if sequences and l:
                ends = [(row, t) for row, t in packing.ends(seq_idx).nonzero().tolist()]
        grouped = (t.unflatten(dim, (g, -1)) for t, dim in ((dt[..., None] * wide, 2), (log_a, 2)))
        y, final = algorithm(
            *grouped, B, C, state.unflatten(1, (g, -1)), ends if sequences else [], chunk_size
        )
        y = y.flatten(2, 3)
        if D is not None:
            y = y + D * wide
        if z is not None:
            y = y * silu(z.to(dt.dtype))
        return y.to(x.dtype), final.flatten(1, 2)

    return backend


def _one_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    dt, log_a = _steps(dt, A, dt_bias, dt_softplus, low, high)
    sequence = (t[:, None] for t in (x, dt, log_a, B, C))
    gate = None if z is None else z[:, None]
    y, after = _in_torch(_recurrence)(*sequence, D, gate, state, None, len(x), 1)
    return y[:, 0], after


runtime.register(
    "ssd_state_update",
    cpu="ssmcourse.kernels.state_update.cpu:ssd_state_update",
    triton="ssmcourse.kernels.state_update.triton_ssd:ssd_state_update",
    reference=_one_step,
)
runtime.register(
    "ssd",
    cpu="ssmcourse.kernels.ssd.cpu:ssd",
    triton="ssmcourse.kernels.ssd.triton:ssd",
    chunked=_in_torch(_chunked),
    quadratic=_in_torch(_quadratic),
    recurrent=_in_torch(_recurrence),
    reference=_in_torch(_recurrence),
)


# --- Arguments ------------------------------------------------------------------------------------


def _parameters(
    dt: Tensor, A: Tensor, D: Tensor | None, dt_bias: Tensor | None, state: Tensor | None, heads: torch.Size
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A, D for every channel, and dt_bias, in the dtype computed in."""
    dtype = working_dtype(dt, A, D, dt_bias, state)
    if D is not None and D.ndim == 1:
        D = D[:, None].expand(heads)
    D, dt_bias = (None if v is None else v.to(dtype) for v in (D, dt_bias))
    return A.to(dtype), D, dt_bias


def _steps(
    dt: Tensor, A: Tensor, dt_bias: Tensor | None, dt_softplus: bool, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The steps used, and the logarithms of the decays."""
    dt = dt.to(A.dtype)
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = softplus(dt, threshold=40)  # beyond, softplus(x) is x in float64 too
    dt = dt.clamp(low, high)
    return dt, dt * A


def _check(
    steps: str,
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    z: Any,
    dt_bias: Any,
    dt_limit: Any,
    seq_idx: Any = None,
    **states: Any,
) -> None:
    """`steps` is "b l" for a sequence, "b" for a step; a state comes with its name, None if it is optional."""
    given = Arguments()
    given.activation("x", x, f"{steps} h p")
    given.activation("dt", dt, f"{steps} h")
    given.parameter("A", A, "h")
    given.activation("B", B, f"{steps} g n")
    given.activation("C", C, f"{steps} g n")
    groups("B", given.sizes["g"], "heads", given.sizes["h"])
    given.parameter("D", D, "h", "h p", optional=True)
    given.activation("z", z, f"{steps} h p", optional=True)
    given.parameter("dt_bias", dt_bias, "h", optional=True)
    given.integers("seq_idx", seq_idx, steps, optional=True)
    for name, state in states.items():
        given.parameter(name, state, "b h p n", optional=name != "state")
    limits = isinstance(dt_limit, (tuple, list)) and len(dt_limit) == 2 and dt_limit[0] <= dt_limit[1]
    if not limits:
        raise ValueError(f"dt_limit: got {dt_limit!r}, expected (low, high) with low <= high")
