"""May a call leave torch? A small one does, where it may: torch's way into an operator would cost more than the call."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmcourse.kernels import runtime

FEW = 8  # rows; with more, products of matrices are worth torch's way in


def unwatched(*tensors: Tensor | None) -> bool:
    """Is this a plain call: no gradient is wanted, and nothing traces, transforms or intercepts torch's operations?"""
    return not (
        (torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors))
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def backend_of_a_step(x: Tensor, *others: Tensor | None) -> str:
    """What to ask of `runtime.choose`: "auto", but on the CPU "reference" where torch must see what is computed.

    There the compiled steps of generation are no operators of torch and have no gradient.
    """
    return "auto" if not x.is_cpu or unwatched(x, *others) else "reference"


def few_rows(first: Tensor, *others: Tensor | None) -> bool:
    """Is this a plain call on the CPU, with few rows, all of one dtype, float32 or float64? And is there Numba?"""
    dtype = first.dtype
    return (
        first.is_cpu
        and 0 < len(first) <= FEW
        and dtype in (torch.float32, torch.float64)
        and all(tensor is None or (tensor.dtype == dtype and tensor.is_cpu) for tensor in others)
        and unwatched(first, *others)
        and not runtime.why_absent("cpu")
    )
