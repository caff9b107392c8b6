"""The linear scan in Numba CUDA: one thread for each row and channel, which walks through all of l.

Neighbouring threads hold neighbouring channels, so that the 32 threads of a warp read 32 neighbours
in memory in one access. With few rows and channels most of the GPU idles; lesson 07 cures that.
"""

# A kernel is called with fewer arguments than a type checker counts.
# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from typing import Any

import torch
from numba import cuda
from torch import Tensor

from ssmcourse.kernels import runtime
from ssmcourse.kernels.linear_scan import operator

SIMULATED = runtime.cuda_mode() == "simulated"
THREADS_PER_BLOCK = 32 if SIMULATED else 128


@cuda.jit
def scan_kernel(a, b, initial_state, h, reverse):
    """a, b, h: (b, l, d); initial_state: (b, d)."""
    rows, l, d = b.shape
    thread = cuda.grid(1)
    if thread >= rows * d:
        return
    i, k = thread // d, thread % d
    state = initial_state[i, k]
    for step in range(l):
        t = l - 1 - step if reverse else step
        state = a[i, t, k] * state + b[i, t, k]
        h[i, t, k] = state


def scan(a: Tensor, b: Tensor, initial_state: Tensor, reverse: bool) -> Tensor:
    """h of `linear_scan`, for a and b (b, l, d) and the initial state (b, d), all of one dtype."""
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    blocks = -(-b.shape[0] * b.shape[2] // THREADS_PER_BLOCK)
    arrays = [_array(t) for t in (a, b, initial_state, h)]
    scan_kernel[blocks, THREADS_PER_BLOCK, _stream(b)](*arrays, reverse)
    return h


def _array(tensor: Tensor) -> Any:
    """The tensor's memory as Numba sees it, and without gaps, which the simulator insists on."""
    tensor = tensor.detach().contiguous()
    return tensor.numpy() if SIMULATED else cuda.as_cuda_array(tensor)


def _stream(tensor: Tensor) -> Any:
    """torch's current stream, so that the kernel waits for what computes its inputs."""
    return 0 if SIMULATED else cuda.external_stream(torch.cuda.current_stream(tensor.device).cuda_stream)


linear_scan = operator.register("numba_cuda", scan)
