"""What the official functions compute, as plain loops in their own layouts. Float64 in, float64 out, differentiable.

None of it calls the library. Shapes: x, u, delta, z (b, d, l); with heads x (b, l, h, p), dt (b, l, h).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmcourse.tolerance import mismatch


def assert_close(got: Tensor, expected: Tensor, terms: int = 1) -> None:
    wrong = mismatch(got, expected, terms=terms)
    assert wrong is None, str(wrong)


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def wide(value):
    """A copy in float64 that asks for gradients; what is no tensor as it is."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.detach().to(torch.complex128 if value.is_complex() else torch.float64).requires_grad_()


def compare(function, loop, inputs: dict, terms: int = 30, gradients: bool = True) -> None:
    """The outputs of both, and the gradients of every floating tensor for the same random cotangents."""
    ours = {k: v.detach().requires_grad_() if isinstance(wide(v), Tensor) and wide(v) is not v else v
            for k, v in inputs.items()}  # fmt: skip
    theirs = {k: wide(v) for k, v in inputs.items()}
    got, expected = _tuple(function(**ours)), _tuple(loop(**theirs))
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e, terms)
    if not gradients:
        return
    total_got = sum((g.double() * draw(*g.shape, seed=90 + i)).sum() for i, g in enumerate(got))
    total_expected = sum((e * draw(*e.shape, seed=90 + i)).sum() for i, e in enumerate(expected))
    total_got.backward()
    total_expected.backward()
    for name, value in theirs.items():
        if isinstance(value, Tensor) and value.requires_grad:
            assert ours[name].grad is not None, name
            assert ours[name].grad.dtype == ours[name].dtype, name
            wrong = mismatch(ours[name].grad, value.grad, terms=10 * terms)
            assert wrong is None, f"gradient of {name}: {wrong}"


def _tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def silu(v: Tensor) -> Tensor:
    return v / (1 + torch.exp(-v))


def softplus(v: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-v.abs())) + v.clamp(min=0)


def scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False
) -> tuple[Tensor, list[Tensor]]:
    """y (b, d, l) before any last projection, and the state (b, d, n) after every step."""
    b, d, l = u.shape

    def at(M: Tensor, t: int) -> Tensor:  # (b, d, n)
        if M.ndim == 2:
            return M.expand(b, -1, -1)
        M = M[:, None] if M.ndim == 3 else M
        now = torch.complex(M[..., 2 * t], M[..., 2 * t + 1]) if A.is_complex() else M[..., t]
        return torch.stack([now[:, i // (d // M.shape[1])] for i in range(d)], 1)

    h, states, y = torch.zeros(b, *A.shape, dtype=A.dtype), [], []
    for t in range(l):
        dt = delta[:, :, t] if delta_bias is None else delta[:, :, t] + delta_bias
        dt = softplus(dt) if delta_softplus else dt
        h = torch.exp(dt[..., None] * A) * h + (dt * u[:, :, t])[..., None] * at(B, t)
        states.append(h)
        y_t = (h * at(C, t)).sum(-1)
        y.append(2 * y_t.real if A.is_complex() else y_t)
    out = torch.stack(y, -1)
    if D is not None:
        out = out + D[:, None] * u
    return (out if z is None else out * silu(z)), states


def conv(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None) -> Tensor:
    """(b, d, l), output by output."""
    (b, d, l), w = x.shape, weight.shape[1]
    rows = []
    for row in range(b):
        columns = []
        for t in range(l):
            value = torch.zeros(d, dtype=x.dtype)
            for j in range(w):
                s = t - (w - 1) + j
                if s >= 0 and (seq_idx is None or seq_idx[row, s] == seq_idx[row, t]):
                    value = value + weight[:, j] * x[row, :, s]
                elif s < 0 and initial_states is not None:
                    value = value + weight[:, j] * initial_states[row, :, w - 1 + s]
            value = value if bias is None else value + bias
            value = silu(value) if activation else value
            columns.append(value * 0 if seq_idx is not None and seq_idx[row, t] < 0 else value)
        rows.append(torch.stack(columns, -1))
    return torch.stack(rows)


def ssd(
    x, dt, A, B, C, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, dt_softplus=False,
    dt_limit=(0.0, float("inf")),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (b, l, h, p), and the states (b, l, h, p, n) after every step."""
    (b, l, h, p), (g, n) = x.shape, B.shape[2:]
    ys, states = [], []
    for row in range(b):
        heads_y, heads_state = [], []
        for i in range(h):
            H = torch.zeros(p, n, dtype=x.dtype) if initial_states is None else initial_states[row, i]
            out, kept = [], []
            for t in range(l):
                if seq_idx is not None and t and seq_idx[row, t] != seq_idx[row, t - 1]:
                    H = H * 0
                step = dt[row, t, i] if dt_bias is None else dt[row, t, i] + dt_bias[i]
                step = (softplus(step) if dt_softplus else step).clamp(*dt_limit)
                H = torch.exp(step * A[i]) * H + step * torch.outer(x[row, t, i], B[row, t, i // (h // g)])
                y = H @ C[row, t, i // (h // g)]
                y = y if D is None else y + D[i] * x[row, t, i]
                out.append(y if z is None else y * silu(z[row, t, i]))
                kept.append(H)
            heads_y.append(torch.stack(out))
            heads_state.append(torch.stack(kept))
        ys.append(torch.stack(heads_y, 1))
        states.append(torch.stack(heads_state, 1))
    return torch.stack(ys), torch.stack(states)


def rms(x: Tensor, weight: Tensor, eps: float, size: int | None = None) -> Tensor:
    """Over the last dimension, in groups of `size`."""
    groups = x.reshape(*x.shape[:-1], -1, size or x.shape[-1])
    return (groups / torch.sqrt((groups**2).mean(-1, keepdim=True) + eps)).reshape(x.shape) * weight
