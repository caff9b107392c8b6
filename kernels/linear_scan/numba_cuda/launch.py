"""How a kernel of this folder is started: on a GPU by Numba, without one by the sanitizer's executor.

The executor runs a kernel's own Python code. It is quicker than Numba's simulator, and it has the warp shuffles
that the simulator lacks.
"""

from __future__ import annotations

from typing import Any

import torch
from numba import cuda
from torch import Tensor

from ssmcourse.kernels import runtime

SIMULATED = runtime.cuda_mode() == "simulated"
MOST_THREADS = 1024  # of a block, on every GPU there is
WARP = 32


def launch(
    kernel: Any, blocks: int, threads: int | tuple[int, int], *arguments: Any, shared: int = 0
) -> None:
    """Run `kernel` on contiguous tensors (and numbers), with room for `shared` of their numbers in shared memory."""
    first = arguments[0]
    shared_bytes = shared * first.element_size()
    if SIMULATED:
        from ssmcourse.kernels.sanitizer import execute

        execute(kernel, blocks, threads, *arguments, shared_bytes=shared_bytes)
        return
    with torch.cuda.device(first.device):
        arrays = [cuda.as_cuda_array(v) if isinstance(v, Tensor) else v for v in arguments]
        # torch's own stream, so that the kernel waits for what computes its inputs
        stream = cuda.external_stream(torch.cuda.current_stream(first.device).cuda_stream)
        kernel[blocks, threads, stream, shared_bytes](*arrays)


def like(tensor: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a kernel to fill, on the tensor's device and of its dtype."""
    return torch.empty(shape, dtype=dtype or tensor.dtype, device=tensor.device)


def at_most(limit: int, l: int, algorithm: str, why: str) -> None:
    """Refuse more steps than a block of `algorithm` takes."""
    if l > limit:
        raise ValueError(
            f"l: got {l}, expected {limit} or less for algorithm {algorithm!r} ({why}); "
            "'one_thread', 'three_phases' and 'look_back' take any length"
        )


def power_of_two(n: int) -> int:
    """The least power of two that is n or more."""
    return 1 << (n - 1).bit_length()
