"""The selective scan of Mamba (S6), and one step of it.

    code            symbol   shape        Gu & Dao 2023
    x, y            x, y     (b, l, d)    Alg. 2
    dt              Δ        (b, l, d)    Alg. 2; one step size for each channel and time
    A               A        (d, n)       constant: what is selective about it comes through Δ
    B, C            B, C     (b, l, n)    Alg. 2; what enters the state, and what is read from it
    A_bar, B_bar    Ā, B̄     (b, d, n)    Eq. 4
    h               h        (b, d, n)    Eq. 2a

Lesson 05 derives it, lesson 12 shows the matrix that it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmcourse import packing
from ssmcourse.arguments import Arguments, groups, one_of
from ssmcourse.discretization import discretize
from ssmcourse.kernels import runtime
from ssmcourse.kernels.plain import backend_of_a_step
from ssmcourse.precision import without_autocast, working_dtype

RULES = {"euler": "mamba", "zoh": "zoh"}  # b_disc -> the method of `discretize`


@without_autocast
def selective_scan(
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
    b_disc: str = "euler",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(Δ_t A) h_{t-1} + B̄_t x_t,  y_t = (C_t h_t + D x_t) silu(z_t), with Δ_t a function of the input.

    Args:
        x: (b, l, d).
        dt: (b, l, d), the step sizes Δ, or with dt_softplus what they are made from.
        A: (d, n) real; or complex, and then B and C are complex, each state stands for its conjugate as
            well, and y = 2 Re(C h).
        B, C: (b, l, n), or (b, l, g, n) for g groups of d / g neighbouring channels, or (d, n) constant in time.
        D: (d,), passes x on to y.
        z: (b, l, d), gates y by silu(z).
        dt_bias: (d,), added to dt.
        dt_softplus: Δ = softplus(dt + dt_bias).
        b_disc: B̄ = Δ B ("euler": what published weights were trained with), or B̄ = (ΔA)^-1 (exp(ΔA) - 1) Δ B
            ("zoh": Eq. 4 of the paper), whose limit at ΔA = 0 is Δ B.
        initial_state: (b, d, n), the state before the first step; zero if not given.
        return_final_state: return the state after the last step as well.
        seq_idx: (b, l) integers; where they change along a row, a new sequence starts from state 0.
        backend: a name from `backends("selective_scan")`; "auto" takes the best one for x's device. With complex A
            there is no "triton".
    Returns:
        y (b, l, d) of x's dtype. With return_final_state also the states (b, d, n), or with seq_idx (s, d, n):
        the final states of all sequences of all rows, row by row. States are float32 for half inputs.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, an option is not one of its names, or the backend is
            not there.

    x, dt, B, C and z share one dtype (B and C have its complex twin if A is complex); A, D, dt_bias and the
    initial state may be of a wider one. Computed in float32 at least; gradients of parameters are summed in it.
    Gradients of every floating argument; second derivatives with backend="reference" only. Autocast changes
    nothing here. To compile a call with both seq_idx and return_final_state in one graph, torch needs
    `torch._dynamo.config.capture_scalar_outputs`: how many states there are depends on the data.

    Cost: O(b l d n) work; memory of y alone, and with gradients of the states at every 32nd step. The
    reference keeps all states.
    """
    sizes = _check(x, dt, A, B, C, D, z, dt_bias, initial_state, "b l d", ("b l n", "b l g n", "d n"))
    sizes.integers("seq_idx", seq_idx, "b l", optional=True)
    one_of("b_disc", b_disc, tuple(RULES))
    real, dtype = _dtypes(x, A, D, dt_bias, initial_state)
    sequence = None if seq_idx is None else packing.number_over_all_rows(seq_idx)
    sequences = (len(x) if seq_idx is None else packing.count(seq_idx)) if return_final_state else 0
    tensors = (
        x,
        dt,
        A.to(dtype),
        B.unsqueeze(2) if B.ndim == 3 else B,
        C.unsqueeze(2) if C.ndim == 3 else C,
        None if D is None else D.to(real),
        z,
        None if dt_bias is None else dt_bias.to(real),
        None if initial_state is None else initial_state.to(dtype),
    )
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    cannot_take = {"triton": "complex A"} if A.is_complex() else {}  # it has no complex numbers
    scan = runtime.choose("selective_scan", backend, x.device.type, cannot_take)
    y, final, *_ = scan(*tensors, sequence, sequences, dt_softplus, b_disc == "zoh", keep)
    return (y, final) if return_final_state else y


@without_autocast
def selective_state_update(
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
    b_disc: str = "euler",
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan`: what generation does for each token.

    Args:
        state: (b, d, n), left as it is.
        x, dt, z: (b, d).
        A: (d, n); D, dt_bias: (d,).
        B, C: (b, n) or (b, g, n).
        dt_softplus, b_disc: as in `selective_scan`.
    Returns:
        y (b, d) of x's dtype, and the new state (b, d, n), float32 for half inputs.
    Raises:
        ValueError: shapes, dtypes or devices do not fit, or b_disc is not one of its names.

    Cost: O(b d n).
    """
    _check(x, dt, A, B, C, D, z, dt_bias, state, "b d", ("b n", "b g n"), "state")
    one_of("b_disc", b_disc, tuple(RULES))
    return selective_step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, b_disc)


def selective_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, b_disc: str = "euler",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`selective_state_update` for a layer that made the arguments, so that they fit: the checks cost as much again."""
    real, dtype = _dtypes(x, A, D, dt_bias, state)
    B, C = (M.unsqueeze(1) if M.ndim == 2 else M for M in (B, C))
    D, dt_bias = (None if v is None else v.to(real) for v in (D, dt_bias))
    step = _one_step
    if x.numel() and not dtype.is_complex:
        backend = backend_of_a_step(x, state, dt, A, B, C, D, z, dt_bias)
        step = runtime.choose("selective_state_update", backend, x.device.type)
    return step(state.to(dtype), x, dt, A.to(dtype), B, C, D, z, dt_bias, dt_softplus, b_disc == "zoh")


# --- The definition ---------------------------------------------------------------------------


def _by_definition(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_state: Tensor | None, sequence: Tensor | None,
    sequences: int, dt_softplus: bool, zoh: bool, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step after another. `unbind`, since the backward of x[:, t] would fill a zero tensor a step."""
    (b, l, d), real = x.shape, A.real.dtype
    delta = _step_size(dt.to(real), dt_bias, dt_softplus)
    B, C = (_of_channels(M, d, A.dtype) for M in (B, C))
    B, C = (M.expand(b, l, d, -1) if M.ndim == 2 else M for M in (B, C))
    h = A.new_zeros(b, *A.shape) if initial_state is None else initial_state
    starts = None if sequence is None else packing.changes(sequence).unbind(1)
    ys, hs = [], [h]
    for t, (x_t, dt_t, B_t, C_t) in enumerate(
        zip(x.to(real).unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True)
    ):
        if starts is not None:
            h = torch.where(starts[t][:, None, None], 0, h)
        y_t, h = _step(h, x_t, dt_t, A, B_t, C_t, zoh)
        ys.append(y_t)
        hs.append(h)
    y = torch.stack(ys, 1) if ys else x.to(real)  # empty
    return _skip_and_gate(y, x, D, z).to(x.dtype), _final(hs, sequence, sequences)


def _step(
    h: Tensor, x_t: Tensor, dt_t: Tensor, A: Tensor, B_t: Tensor, C_t: Tensor, zoh: bool
) -> tuple[Tensor, Tensor]:
    """y (b, d) and the next h (b, d, n), from x_t, dt_t (b, d) and B_t, C_t (b, d, n)."""
    # Eq. 4, or Euler's rule for B:  Ā = exp(ΔA),  B̄ = (ΔA)^-1 (exp(ΔA) - 1) ΔB  or  ΔB
    A_bar, B_bar = discretize(A, B_t, dt_t[..., None], RULES["zoh" if zoh else "euler"], diagonal=True)
    # Eq. 2a:  h_t = Ā h_{t-1} + B̄ x_t
    h = A_bar * h + B_bar * x_t[..., None]
    # Eq. 2b:  y_t = C h_t, and for one of each pair of conjugate states twice its real part
    y = (C_t * h).sum(-1)
    return 2 * y.real if A.is_complex() else y, h


def _step_size(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> Tensor:
    if dt_bias is not None:
        dt = dt + dt_bias
    # Beyond 40, softplus(x) is x in float64 too.
    return torch.nn.functional.softplus(dt, threshold=40) if dt_softplus else dt


def _skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + D * x.to(y.dtype)
    return y if z is None else y * torch.nn.functional.silu(z.to(y.dtype))


def _of_channels(B: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """B or C for every channel: (..., g, n) -> (..., d, n); channel i uses group i // (d // g)."""
    B = B.to(dtype)
    return B.repeat_interleave(d // B.shape[-2], -2) if d != B.shape[-2] else B


def _one_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, zoh: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    real = A.real.dtype
    delta = _step_size(dt.to(real), dt_bias, dt_softplus)
    B, C = (_of_channels(M, x.shape[1], A.dtype) for M in (B, C))
    y, h = _step(state, x.to(real), delta, A, B, C, zoh)
    return _skip_and_gate(y, x, D, z).to(x.dtype), h


def _final(states: list[Tensor], sequence: Tensor | None, sequences: int) -> Tensor:
    """Of the states (l + 1 of (b, d, n)) those after the last step, or after every sequence's last."""
    if sequence is None or sequences == 0 or len(states) == 1:
        return states[-1][:sequences]
    return torch.stack(states[1:], 1)[packing.ends(sequence)]


runtime.register(
    "selective_scan",
    cpu="ssmcourse.kernels.selective_scan.cpu:selective_scan",
    triton="ssmcourse.kernels.selective_scan.triton:selective_scan",
    reference=_by_definition,
)
runtime.register(
    "selective_state_update",
    cpu="ssmcourse.kernels.state_update.cpu:selective_state_update",
    triton="ssmcourse.kernels.state_update.triton_selective:selective_state_update",
    reference=_one_step,
)


def _dtypes(
    x: Tensor, A: Tensor, D: Tensor | None, dt_bias: Tensor | None, state: Tensor | None
) -> tuple[torch.dtype, torch.dtype]:
    """What to compute in, and of which type the states are: the same, or its complex twin."""
    real = working_dtype(x, A.real, D, dt_bias, None if state is None else state.real)
    return real, torch.promote_types(real, A.dtype)


def _check(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, state: Tensor | None, of_x: str, of_B: tuple[str, ...], state_name: str = "initial_state",
) -> Arguments:  # fmt: skip
    given = Arguments()
    given.activation("x", x, of_x)
    given.activation("dt", dt, of_x)
    given.parameter("A", A, "d n", may_be_complex=True)
    is_complex = A.is_complex()
    for name, value in (("B", B), ("C", C)):
        given.activation(name, value, *of_B, is_complex=is_complex)
        if value.ndim == x.ndim + 1:
            groups(name, value.shape[-2], "channels", x.shape[-1])
    given.activation("z", z, of_x, optional=True)
    given.parameter("D", D, "d", optional=True)
    given.parameter("dt_bias", dt_bias, "d", optional=True)
    given.parameter(state_name, state, "b d n", optional=state_name != "state", may_be_complex=is_complex)
    return given
