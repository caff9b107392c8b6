"""Does a GPU backend compute what it should on this machine? Asked once per process, at its first use.

A compiler can be wrong for one GPU and right for the next: versions of Triton have given wrong results for
`tl.associative_scan` backwards. A small scan in both directions, whose answer is known, costs a second and
finds that out before a training run does.
"""

from __future__ import annotations

import importlib

import torch

L, D = 150, 3  # more than one block of steps
TOLERANCE = 1e-5


def why_not(backend: str, device: str) -> str:
    """Run the scans of `triton` or `numba_cuda` on `device`; what is wrong with them, as one clause, or nothing.

    Cost: about a second, most of it to compile them.
    """
    t = torch.arange(L * D, dtype=torch.float64).reshape(1, L, D)
    a, b, first = torch.cos(t), torch.sin(3 * t), torch.full((1, D), 2.0, dtype=torch.float64)
    try:
        module = importlib.import_module(f"ssmcourse.kernels.linear_scan.{backend}")
        for reverse in (False, True):
            given = [tensor.to(device, torch.float32) for tensor in (a, b, first)]
            error = (module.scan(*given, reverse).double().cpu() - _loop(a, b, first, reverse)).abs().max()
            if not error <= TOLERANCE:
                return f"its scan {'backwards' if reverse else 'forwards'} was wrong by {error:.2g} in a self-test"
    except Exception as error:  # whatever stops it here would stop the user's call
        return f"its self-test stopped: {type(error).__name__}: {error}"
    return ""


def _loop(a: torch.Tensor, b: torch.Tensor, state: torch.Tensor, reverse: bool) -> torch.Tensor:
    h = torch.empty_like(b)
    for t in reversed(range(L)) if reverse else range(L):
        state = h[:, t] = a[:, t] * state + b[:, t]
    return h
