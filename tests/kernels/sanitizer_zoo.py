"""Kernels for the sanitizer to judge: those of RIGHT compute what they say; for WRONG see sanitizer_zoo_wrong.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ssmcourse.kernels import runtime

runtime.cuda_mode()  # before numba.cuda is imported
from numba import cuda, float32, int32  # noqa: E402

N, BLOCK = 64, 32


class Case(NamedTuple):
    """A launch. `outcome` is what a right kernel leaves in its last argument, or the kind of a wrong one's mistake."""

    kernel: Any
    arguments: Callable[[], tuple]
    outcome: Any
    grid: int = 1
    block: int = N
    shared_bytes: int = 0

    @property
    def name(self) -> str:
        return self.kernel.py_func.__name__


X = np.random.default_rng(0).integers(-9, 9, N).astype(np.float32)  # small integers: sums are exact
SUMS = X.cumsum()
BEFORE = np.concatenate([np.zeros(1, np.float32), SUMS[:-1]])
RIGHT: list[Case] = []
WRONG: list[Case] = []


def right(
    expected: Any, *extra: Callable[[], np.ndarray], size: int = N, **launch: int
) -> Callable[[Any], Any]:
    """Arguments are x, what `extra` makes, and y of `size` elements."""

    def add(kernel: Any) -> Any:
        RIGHT.append(Case(kernel, _arguments(extra, size), np.asarray(expected, np.float32), **launch))
        return kernel

    return add


def wrong(kind: str, *extra: Callable[[], np.ndarray], size: int = N, **launch: int) -> Callable[[Any], Any]:
    def add(kernel: Any) -> Any:
        WRONG.append(Case(kernel, _arguments(extra, size), kind, **launch))
        return kernel

    return add


def _arguments(extra: tuple[Callable[[], np.ndarray], ...], size: int) -> Callable[[], tuple]:
    return lambda: (X.copy(), *(make() for make in extra), np.zeros(size, np.float32))


def flags() -> np.ndarray:
    return np.zeros(N, np.int32)


def totals() -> np.ndarray:
    return np.zeros(N, np.float32)


@cuda.jit(device=True)
def own_array(i, value):
    """Calls of a device function have arrays of their own."""
    s = cuda.shared.array(N, float32)
    s[i] = value
    return s


# --- Right ----------------------------------------------------------------------------------------


@right(SUMS)
@cuda.jit
def hillis_steele_two_barriers(x, y):
    s = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    cuda.syncthreads()
    d = 1
    while d < N:
        v = s[i]
        if i >= d:
            v += s[i - d]
        cuda.syncthreads()
        s[i] = v
        cuda.syncthreads()
        d *= 2
    y[i] = s[i]


@right(SUMS)
@cuda.jit
def hillis_steele_double_buffer(x, y):
    s = cuda.shared.array((2, N), float32)
    i = cuda.threadIdx.x
    now = 0
    s[now, i] = x[i]
    cuda.syncthreads()
    d = 1
    while d < N:
        s[1 - now, i] = s[now, i] + (s[now, i - d] if i >= d else float32(0))
        now = 1 - now
        cuda.syncthreads()
        d *= 2
    y[i] = s[now, i]


@right(BEFORE)
@cuda.jit
def blelloch(x, y):
    s = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    cuda.syncthreads()
    d = 1
    while d < N:
        k = (i + 1) * 2 * d - 1
        if k < N:
            s[k] += s[k - d]
        d *= 2
        cuda.syncthreads()
    if i == 0:
        s[N - 1] = 0  # the same thread is alone in the first round of the way down
    while d > 1:
        d //= 2
        k = (i + 1) * 2 * d - 1
        if k < N:
            left = s[k - d]
            s[k - d] = s[k]
            s[k] += left
        cuda.syncthreads()
    y[i] = s[i]


@right(X[::-1])
@cuda.jit
def reverse_through_shared(x, y):
    s = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    cuda.syncthreads()
    y[i] = s[N - 1 - i]


@right(X[::-1], shared_bytes=4 * N)
@cuda.jit
def reverse_through_dynamic_shared(x, y):
    s = cuda.shared.array(0, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    cuda.syncthreads()
    y[i] = s[N - 1 - i]


@right(X + X[::-1], shared_bytes=8 * N)
@cuda.jit
def two_parts_of_dynamic_shared(x, y):
    s = cuda.shared.array(0, float32)
    there, back = s[:N], s[N:]
    i = cuda.threadIdx.x
    there[i] = x[i]
    back[N - 1 - i] = x[i]
    cuda.syncthreads()
    y[i] = there[i] + back[i]


@right(X - X[::-1])
@cuda.jit
def two_calls_have_two_arrays(x, y):
    i = cuda.threadIdx.x
    a, b = own_array(i, x[i]), own_array(i, x[N - 1 - i])
    y[i] = a[i] - b[i]


@right(X * 2, grid=3, block=BLOCK)
@cuda.jit
def a_guard_for_the_last_block(x, y):
    i = cuda.grid(1)
    if i < x.shape[0]:
        y[i] = 2 * x[i]


@right(X + 1, grid=2, block=8)
@cuda.jit
def a_stride_of_the_whole_grid(x, y):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        y[i] = x[i] + 1


@right([SUMS[-1]], size=1, grid=2, block=BLOCK)
@cuda.jit
def an_atomic_sum(x, y):
    cuda.atomic.add(y, 0, x[cuda.grid(1)])


@right([X.max()], size=1)
@cuda.jit
def the_largest_by_halves(x, y):
    s = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    half = N // 2
    while half:
        cuda.syncthreads()
        if i < half:
            s[i] = max(s[i], s[i + half])
        half //= 2
    if i == 0:
        y[0] = s[0]


@right([(X > 0).sum()], size=1)
@cuda.jit
def a_vote_of_the_block(x, y):
    i = cuda.threadIdx.x
    n = cuda.syncthreads_count(x[i] > 0)
    if i == 0:
        y[0] = n


@right(np.concatenate([X[:BLOCK].cumsum(), X[BLOCK:].cumsum()]))
@cuda.jit
def a_scan_by_shuffles(x, y):
    i = cuda.threadIdx.x
    v = x[i]
    d = 1
    while d < 32:
        w = cuda.shfl_up_sync(0xFFFFFFFF, v, d)
        if cuda.laneid >= d:
            v += w
        d *= 2
    y[i] = v


@right(X[:20], block=20, size=20)
@cuda.jit
def half_a_warp_with_its_mask(x, y):
    i = cuda.threadIdx.x
    if i < 16:
        y[i] = cuda.shfl_xor_sync(0xFFFF, x[i ^ 1], 1)
    else:
        y[i] = x[i]


@right([int(sum(1 << k for k in range(16) if X[k] > 0))], size=1, block=BLOCK)
@cuda.jit
def a_ballot(x, y):
    i = cuda.threadIdx.x
    bits = cuda.ballot_sync(0xFFFFFFFF, i < 16 and x[i] > 0)
    if i == 0:
        y[0] = bits


@right([X[:BLOCK].sum()], size=1, block=BLOCK)
@cuda.jit
def halves_of_a_warp_with_syncwarp(x, y):
    s = cuda.shared.array(BLOCK, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    half = 16
    while half:
        cuda.syncwarp()
        if i < half:
            s[i] += s[i + half]
        half //= 2
    if i == 0:
        y[0] = s[0]


@right(SUMS, flags, totals, flags, grid=N, block=1)
@cuda.jit
def look_back_with_a_ticket(x, flag, total, counter, y):
    b = cuda.atomic.add(counter, 0, 1)
    before = float32(0)
    if b > 0:
        while cuda.atomic.add(flag, b - 1, 0) == 0:
            pass
        cuda.threadfence()
        before = total[b - 1]
    total[b] = before + x[b]
    cuda.threadfence()
    cuda.atomic.exch(flag, b, 1)
    y[b] = total[b]


@right([SUMS[-1]], totals, flags, size=1, grid=4, block=16)
@cuda.jit
def the_last_block_adds_up(x, total, counter, y):
    s = cuda.shared.array(1, int32)
    i, b = cuda.threadIdx.x, cuda.blockIdx.x
    if i == 0:
        t = float32(0)
        for k in range(16):
            t += x[b * 16 + k]
        total[b] = t
        cuda.threadfence()
        s[0] = cuda.atomic.add(counter, 0, 1)
        cuda.threadfence()
    cuda.syncthreads()
    if s[0] == 3 and i == 0:
        y[0] = total[0] + total[1] + total[2] + total[3]


@right(X[:: N // 8], size=8, grid=2, block=4)
@cuda.jit
def local_arrays(x, y):
    mine = cuda.local.array(2, float32)
    i = cuda.grid(1)
    mine[0] = x[8 * i]
    mine[1] = 0
    y[i] = mine[0] + mine[1]


@right(X.reshape(8, 8).T.ravel(), block=N)
@cuda.jit
def a_transposed_tile(x, y):
    s = cuda.shared.array((8, 9), float32)
    i, j = cuda.threadIdx.x // 8, cuda.threadIdx.x % 8
    s[i, j] = x[i * 8 + j]
    cuda.syncthreads()
    y[i * 8 + j] = s[j, i]


@right(X, flags)
@cuda.jit
def a_lock_in_shared_memory(x, lock, y):
    """The thread that opens the way to the next: a fence of the block is enough."""
    turn = cuda.shared.array(1, int32)
    i = cuda.threadIdx.x
    if i == 0:
        turn[0] = 0
    cuda.syncthreads()
    while cuda.atomic.add(turn, 0, 0) != i:
        pass
    cuda.threadfence_block()
    lock[0] += 1
    y[i] = x[i]
    cuda.threadfence_block()
    cuda.atomic.add(turn, 0, 1)
