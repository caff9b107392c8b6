"""`selective_scan_cuda`, the compiled module beneath `mamba_ssm`: VMamba calls its `fwd` and `bwd` itself.

    out, x, *rest = fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)     rest: out_z if there is a gate
    du, ddelta, dA, dB, dC, dD, ddelta_bias, *rest = bwd(..., dout, x, ...)     rest: dz, out_z

Layouts are those of `ssmcourse.compat.selective_scan`; `out` is before the gate. `x`, (b, d, chunks, 2n), holds
after every 2,048 steps the product of all decays so far (even places) and the state (odd places).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmcourse.compat.selective_scan import of_time, scan_here, selective_scan_fn

CHUNK = 2048  # steps between two states in x


@torch.no_grad()
def fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> list[Tensor]:
    """[out, x] and with z also out * silu(z)."""
    steps = u.mT, delta.mT, of_time(B, A.is_complex()), of_time(C, A.is_complex())
    out, states, state = [], [], None
    for start in range(0, u.shape[-1], CHUNK):
        part = (t[:, start : start + CHUNK] if t.ndim > 2 else t for t in steps)
        y, state = scan_here(*part, None, A, D, delta_bias, delta_softplus, True, initial_state=state)
        out.append(y)
        states.append(state)
    y = torch.cat(out, 1).mT
    x = torch.stack([_decays(delta, A, delta_bias, delta_softplus), torch.stack(states, 2)], -1).flatten(-2)
    return [y, x] if z is None else [y, x, _gated(y, z)]


def bwd(
    u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z
) -> list[Tensor | None]:
    """The gradients of u, delta, A, B, C, D and delta_bias, None for what was None; with z also its own.

    The forward pass is done anew, so that `x` and `out` are not needed. A `dz` that is given is written into.
    With recompute_out_z the last is the gated output.
    """
    given = [u, delta, A, B, C, D, delta_bias, z]
    leaves = [None if t is None else t.detach().requires_grad_() for t in given]
    *front, gate = leaves
    with torch.enable_grad():
        y = selective_scan_fn(*front[:6], z=gate, delta_bias=front[6], delta_softplus=delta_softplus)
    wanted = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(y, wanted, dout.to(y.dtype)))
    gradients = [None if leaf is None else next(found) for leaf in leaves]
    d_gate = gradients.pop()
    if z is not None:
        gradients.append(d_gate if dz is None else dz.copy_(d_gate))
        if recompute_out_z:
            gradients.append(y.detach())
    return gradients


def _decays(delta: Tensor, A: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """(b, d, chunks, n), exp(A times the sum of all steps up to each chunk's end)."""
    steps = delta.to(A.real.dtype)
    if delta_bias is not None:
        steps = steps + delta_bias[:, None]
    if delta_softplus:
        steps = torch.nn.functional.softplus(steps, threshold=40)
    sums = steps.cumsum(-1)
    at = [min(start + CHUNK, delta.shape[-1]) - 1 for start in range(0, delta.shape[-1], CHUNK)]
    return torch.exp(sums[..., at, None] * A[:, None])


def _gated(y: Tensor, z: Tensor) -> Tensor:
    wide = torch.promote_types(y.dtype, torch.float32)
    return (y.to(wide) * torch.nn.functional.silu(z.to(wide))).to(y.dtype)
