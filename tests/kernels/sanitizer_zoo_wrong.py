"""Kernels with one mistake each, for the sanitizer to find: they fill WRONG of sanitizer_zoo.py."""

from __future__ import annotations

from sanitizer_zoo import BLOCK, N, cuda, flags, float32, totals, wrong

# --- Wrong: races ---------------------------------------------------------------------------------


@wrong("race")
@cuda.jit
def hillis_steele_in_place(x, y):
    s = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    cuda.syncthreads()
    d = 1
    while d < N:
        if i >= d:
            s[i] += s[i - d]
        cuda.syncthreads()
        d *= 2
    y[i] = s[i]


@wrong("race")
@cuda.jit
def no_barrier_after_the_load(x, y):
    s = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    y[i] = s[i - 1] if i > 0 else float32(0)


@wrong("race")
@cuda.jit
def a_tile_used_again_too_early(x, y):
    s = cuda.shared.array(BLOCK, float32)
    i = cuda.threadIdx.x % BLOCK
    for start in range(0, N, BLOCK):
        if cuda.threadIdx.x < BLOCK:
            s[i] = x[start + i]
        cuda.syncthreads()
        if cuda.threadIdx.x < BLOCK:
            y[start + i] = s[BLOCK - 1 - i]


@wrong("race", size=1)
@cuda.jit
def everybody_writes_one_number(x, y):
    y[0] = x[cuda.threadIdx.x]


@wrong("race", size=1, grid=2, block=1)
@cuda.jit
def a_sum_of_blocks_without_atomics(x, y):
    y[0] += x[cuda.blockIdx.x]


@wrong("race", grid=2, block=BLOCK)
@cuda.jit
def the_neighbour_block_is_not_done(x, y):
    i = cuda.grid(1)
    y[i] = x[i]
    cuda.syncthreads()
    if i == BLOCK:
        y[i] += y[i - 1]


@wrong("race", block=BLOCK, size=1)
@cuda.jit
def a_warp_is_not_in_lockstep(x, y):
    s = cuda.shared.array(BLOCK, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    cuda.syncwarp()
    half = 16
    while half:
        if i < half:
            s[i] += s[i + half]
        half //= 2
    if i == 0:
        y[0] = s[0]


@wrong("race", flags, totals, flags, grid=N, block=1)
@cuda.jit
def look_back_without_the_writers_fence(x, flag, total, counter, y):
    b = cuda.atomic.add(counter, 0, 1)
    before = float32(0)
    if b > 0:
        while cuda.atomic.add(flag, b - 1, 0) == 0:
            pass
        cuda.threadfence()
        before = total[b - 1]
    total[b] = before + x[b]
    cuda.atomic.exch(flag, b, 1)
    y[b] = total[b]


@wrong("race", flags, totals, flags, grid=N, block=1)
@cuda.jit
def look_back_without_the_readers_fence(x, flag, total, counter, y):
    b = cuda.atomic.add(counter, 0, 1)
    before = float32(0)
    if b > 0:
        while cuda.atomic.add(flag, b - 1, 0) == 0:
            pass
        before = total[b - 1]
    total[b] = before + x[b]
    cuda.threadfence()
    cuda.atomic.exch(flag, b, 1)
    y[b] = total[b]


@wrong("race", flags, totals, flags, grid=4, block=1)
@cuda.jit
def a_fence_of_the_block_for_other_blocks(x, flag, total, counter, y):
    b = cuda.atomic.add(counter, 0, 1)
    before = float32(0)
    if b > 0:
        while cuda.atomic.add(flag, b - 1, 0) == 0:
            pass
        cuda.threadfence()
        before = total[b - 1]
    total[b] = before + x[b]
    cuda.threadfence_block()
    cuda.atomic.exch(flag, b, 1)


@wrong("race", flags, totals, flags, grid=4, block=1)
@cuda.jit
def a_flag_that_is_not_atomic(x, flag, total, counter, y):
    b = cuda.atomic.add(counter, 0, 1)
    if b > 0:
        while flag[b - 1] == 0:
            pass
        cuda.threadfence()
        total[b] = total[b - 1]
    total[b] += x[b]
    cuda.threadfence()
    flag[b] = 1


@wrong("race", shared_bytes=4 * N)
@cuda.jit
def two_dynamic_arrays_are_one(x, y):
    a = cuda.shared.array(0, float32)
    b = cuda.shared.array(0, float32)
    i = cuda.threadIdx.x
    a[i] = x[i]
    b[N - 1 - i] = x[i]
    cuda.syncthreads()
    y[i] = a[i]


@wrong("race", size=1)
@cuda.jit
def an_atomic_sum_read_too_early(x, y):
    total = cuda.shared.array(1, float32)
    i = cuda.threadIdx.x
    if i == 0:
        total[0] = 0
    cuda.syncthreads()
    cuda.atomic.add(total, 0, x[i])
    if i == 0:
        y[0] = total[0]


# --- Wrong: barriers and warps ----------------------------------------------------------------------


@wrong("barrier")
@cuda.jit
def a_barrier_for_half_of_the_block(x, y):
    i = cuda.threadIdx.x
    if i < N // 2:
        y[i] = x[i]
        cuda.syncthreads()


@wrong("barrier", grid=3, block=BLOCK)
@cuda.jit
def returns_before_the_barrier(x, y):
    i = cuda.grid(1)
    if i >= N - 5:
        return
    cuda.syncthreads()
    y[i] = x[i]


@wrong("barrier")
@cuda.jit
def one_barrier_in_each_branch(x, y):
    i = cuda.threadIdx.x
    if i % 2:
        y[i] = x[i]
        cuda.syncthreads()
    else:
        cuda.syncthreads()
        y[i] = -x[i]


@wrong("barrier")
@cuda.jit
def as_many_barriers_as_the_index_says(x, y):
    i = cuda.threadIdx.x
    for _ in range(i % 3):
        cuda.syncthreads()
    y[i] = x[i]


@wrong("warp", block=BLOCK)
@cuda.jit
def a_shuffle_in_a_branch(x, y):
    i = cuda.threadIdx.x
    v = x[i]
    if i < 16:
        v = cuda.shfl_down_sync(0xFFFFFFFF, v, 1)
    y[i] = v


@wrong("warp", block=BLOCK)
@cuda.jit
def a_shuffle_from_a_lane_that_is_not_there(x, y):
    i = cuda.threadIdx.x
    v = x[i]
    if i < 16:
        v = cuda.shfl_down_sync(0xFFFF, v, 1)
    y[i] = v


@wrong("warp", block=BLOCK)
@cuda.jit
def a_vote_that_leaves_itself_out(x, y):
    i = cuda.threadIdx.x
    y[i] = cuda.any_sync(0xFFFF, x[i] > 0)


@wrong("warp", block=BLOCK)
@cuda.jit
def two_shuffles_meet(x, y):
    i = cuda.threadIdx.x
    if i % 2:
        y[i] = cuda.shfl_xor_sync(0xFFFFFFFF, x[i], 1)
    else:
        y[i] = cuda.shfl_up_sync(0xFFFFFFFF, x[i], 1)


# --- Wrong: what is read and where --------------------------------------------------------------------


@wrong("uninitialised")
@cuda.jit
def shared_memory_is_not_zero(x, y):
    s = cuda.shared.array(N, float32)
    i = cuda.threadIdx.x
    s[i] += x[i]
    y[i] = s[i]


@wrong("uninitialised")
@cuda.jit
def a_sum_into_a_local_array(x, y):
    mine = cuda.local.array(1, float32)
    i = cuda.threadIdx.x
    mine[0] += x[i]
    y[i] = mine[0]


@wrong("uninitialised")
@cuda.jit
def the_halo_is_missing(x, y):
    s = cuda.shared.array(N + 1, float32)
    i = cuda.threadIdx.x
    s[i + 1] = x[i]
    cuda.syncthreads()
    y[i] = s[i]


@wrong("bounds")
@cuda.jit
def one_to_the_left(x, y):
    i = cuda.threadIdx.x
    y[i] = x[i] + x[i - 1]


@wrong("bounds")
@cuda.jit
def one_to_the_right(x, y):
    i = cuda.threadIdx.x
    y[i] = x[i + 1]


@wrong("bounds", grid=3, block=BLOCK)
@cuda.jit
def no_guard_for_the_last_block(x, y):
    i = cuda.grid(1)
    y[i] = x[i]


@wrong("bounds")
@cuda.jit
def shared_memory_is_too_small(x, y):
    s = cuda.shared.array(BLOCK, float32)
    i = cuda.threadIdx.x
    s[i] = x[i]
    y[i] = x[i]


# --- Wrong: what never ends, and what stops ------------------------------------------------------------


@wrong("hang", flags, totals, grid=4, block=1)
@cuda.jit
def look_back_in_the_order_of_blocks(x, flag, total, y):
    b = cuda.blockIdx.x
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


@wrong("hang", flags)
@cuda.jit
def a_flag_that_nobody_sets(x, flag, y):
    while cuda.atomic.add(flag, 0, 0) == 0:
        pass


@wrong("hang", flags, block=2)
@cuda.jit
def a_flag_that_nobody_sets_read_plainly(x, flag, y):
    while flag[0] == 0:
        pass


@wrong("error", flags)
@cuda.jit
def divides_by_zero(x, flag, y):
    y[cuda.threadIdx.x] = 1 // (cuda.threadIdx.x - 3)
