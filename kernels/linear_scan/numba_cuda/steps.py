"""What every rung of the ladder shares: a step as a pair, two steps as one, and where a step lies in memory.

The step h -> a h + b is the pair (a, b). First (a1, b1), then (a2, b2), is the step

    h -> a2 (a1 h + b1) + b2  =  (a2 a1) h + (a2 b1 + b2),

which is `then`. It is associative, so any grouping will do, but it does not commute: the earlier step comes first.
The pair (1, 0) changes nothing; it stands where there is no step. One such combination is 3 operations on floats; in the
other files, Work counts combinations.

The product of many gates may leave the range of a float where the states themselves do not: 1e30 1e30 0 is 0 if a state
goes through it step by step, and infinity times 0 if the first two gates are multiplied first. So in these kernels 0
times infinity is 0 (`times`): a reset still resets, and a state of 0 stays 0. This goes for an infinity that was given
as well. What it cannot save: an infinite product that meets another state is infinite, and one that meets a product
that was too small for a float is 0, where the sequence may come back to ordinary numbers.
"""

# A device function is called with arrays that a type checker cannot know.
# pyright: reportIndexIssue=false

from __future__ import annotations

from numba import cuda

# A function that kernels call. Numba puts its code in place of each call, which it can do without a GPU.
device = cuda.jit(device=True, inline="always")


@device
def times(x, y):
    """x y, and 0 for 0 times infinity. A NaN among x and y stays one."""
    product = x * y
    if product != product and x == x and y == y:
        return x if x == 0 else y
    return product


@device
def then(a1, b1, a2, b2):
    """The step (a1, b1), then the step (a2, b2), as one step."""
    return times(a2, a1), times(a2, b1) + b2


@device
def time_of(step, l, reverse):
    """Where step number `step` lies among the l: counted from the end if the scan runs in reverse."""
    return l - 1 - step if reverse else step


@device
def load_step(a, b, initial_state, i, step, k, reverse):
    """The pair of one step. The initial state is part of the first one's input; past the last there is (1, 0)."""
    l = b.shape[1]
    if step >= l:
        return a.dtype.type(1), a.dtype.type(0)
    t = time_of(step, l, reverse)
    gate, state = a[i, t, k], b[i, t, k]
    if step == 0:
        state = times(gate, initial_state[i, k]) + state
    return gate, state
