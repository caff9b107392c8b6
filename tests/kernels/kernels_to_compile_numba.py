"""Kernels in Numba CUDA that compile, and would disappoint on a GPU: what test_compiling.py expects to be noticed."""

from __future__ import annotations

import math

from numba import cuda, types

from ssmcourse.kernels.compiling_numba import Compilation


@cuda.jit
def twice_kernel(x):
    i = cuda.grid(1)
    x[i] = x[i] + x[i]


@cuda.jit
def constant_kernel(x):
    i = cuda.grid(1)
    x[i] = 0.1 * x[i] + 0.3


@cuda.jit
def array_kernel(x):
    """Which element it wants is known too late for registers."""
    kept = cuda.local.array(64, x.dtype)
    for k in range(64):
        kept[k] = x[k]
    for k in range(x.shape[0]):
        kept[int(kept[k % 64])] += 1
    x[cuda.grid(1)] = kept[int(x[0])]


def hungry(many):
    """A kernel in which so many numbers are there before the first is used, and each is used by others."""

    @cuda.jit
    def kernel(x):
        kept = cuda.local.array(many, x.dtype)
        for k in range(many):
            kept[k] = x[k]
        for _ in range(x.shape[0]):
            for k in range(many):
                kept[k] = kept[k] * kept[(k + 7) % many] + kept[(k + 11) % many]
        for k in range(many):
            x[k] = kept[k]

    return kernel


hungry_kernel = hungry(48)
starving_kernel = hungry(150)


@cuda.jit
def sine_kernel(x):
    """For large numbers there is a function of its own, which is called."""
    i = cuda.grid(1)
    x[i] = math.sin(x[i])


@cuda.jit
def forgotten_kernel(x):
    x[0] = 0


def compilations() -> list[Compilation]:
    single, double = (types.float32[::1],), (types.float64[::1],)
    return [
        Compilation("right", twice_kernel, single, 128),
        Compilation("constant", constant_kernel, single, 128),
        Compilation("constant asked for", constant_kernel, double, 128),
        Compilation("array", array_kernel, single, 128),
        Compilation("calls", sine_kernel, double, 128),
        Compilation("too many threads", hungry_kernel, double, 1024),
        Compilation("fewer threads", hungry_kernel, double, 256),
        Compilation("spills", starving_kernel, double, 128),
        Compilation("too large", twice_kernel, single, 128, 64 * 1024),
    ]
