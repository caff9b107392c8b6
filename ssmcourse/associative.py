"""The scan of any associative operator, by four algorithms: all prefixes x_0, x_0 ∘ x_1, x_0 ∘ x_1 ∘ x_2, ...

| method          | idea                                                         | steps             | combines          |
|-----------------|--------------------------------------------------------------|-------------------|-------------------|
| `sequential`    | one after another                                            | l - 1             | l - 1             |
| `hillis_steele` | each with the one 1, 2, 4, ... places before                 | log2 l            | l log2 l - l + 1  |
| `blelloch`      | up a tree of pairs, and down again with what lies to the left | 2 log2 l          | 2 (l - 1)         |
| `chunked`       | every chunk by itself, then the chunks' ends, then the rest  | about 2 sqrt(l)   | about 2 l         |

A step is one call of the operator on as many pairs as can be combined at once. `scan_trace` lists them,
and counts the same. The operator need not commute: its first operand is always the earlier one.

Hillis & Steele 1986, "Data parallel algorithms"; Blelloch 1990, "Prefix sums and their applications".
Lesson 06.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ssmcourse.arguments import one_of, shown

METHODS = ("sequential", "hillis_steele", "blelloch", "chunked")

Slices = list[Tensor]  # each (b, some steps, ...)
Combine = Callable[[Slices, Slices], Slices]


def associative_scan(
    op: Callable[[Any, Any], Any],
    elems: Any,
    *,
    method: str = "blelloch",
    reverse: bool = False,
    identity: Any = None,
) -> Any:
    """All prefixes of elems under op, along dimension 1: out_t = elems_0 ∘ elems_1 ∘ ... ∘ elems_t.

    Args:
        op: op(earlier, later), associative; commutative or not. It gets two of what `elems` is, with the
            same number of steps k, tensors (b, k, ...), and combines them step by step into one more.
        elems: a tuple of tensors (b, l, ...), any trailing shapes and dtypes; or nested, or a lone tensor.
        method: see the table of this module.
        reverse: flip, scan, flip: out_t = elems_{l-1} ∘ ... ∘ elems_t.
        identity: of elems' structure: scalars, or tensors of the trailing shape, that change nothing when
            combined. Only `blelloch` has a use for it: it then pads l to a power of two and starts the way
            down with it, as the textbook does. Without one it leaves out the combines that change nothing.
    Returns:
        Of elems' structure, shapes and dtypes.
    Raises:
        ValueError: elems, identity or what op returns does not fit, or no such method.

    Computed in elems' dtypes. Differentiable as far as op is.

    Cost: the calls of op in the table, and as many copies of elems.
    """
    one_of("method", method, METHODS)
    leaves, structure = tree_flatten(elems)
    l = _length(leaves)
    neutral = None if identity is None else _neutral(identity, leaves, structure)
    if l < 2:
        return tree_unflatten([leaf.clone() for leaf in leaves], structure)
    if reverse:
        leaves = [leaf.flip(1) for leaf in leaves]
    combine = _checked(op, structure)
    if method == "blelloch":
        found = (
            _blelloch_without_identity(combine, leaves)
            if neutral is None
            else _blelloch(combine, leaves, neutral)
        )
    else:
        scan = {"sequential": _sequential, "hillis_steele": _hillis_steele, "chunked": _chunked}[method]
        found = scan(combine, leaves)
    return tree_unflatten([leaf.flip(1) for leaf in found] if reverse else found, structure)


def chunk_length(l: int) -> int:
    """How many steps a chunk of method `chunked` has: as many as there are chunks, or nearly."""
    return max(1, math.isqrt(max(0, l - 1)) + 1)


# --- The algorithms -------------------------------------------------------------------------------


def _sequential(combine: Combine, x: Slices) -> Slices:
    prefixes = [_steps(x, 0, 1)]
    for t in range(1, x[0].shape[1]):
        prefixes.append(combine(prefixes[-1], _steps(x, t, t + 1)))
    return _joined(prefixes)


def _hillis_steele(combine: Combine, x: Slices) -> Slices:
    """After the step with distance r, every place holds the last 2r elements up to it, or all."""
    l, distance = x[0].shape[1], 1
    while distance < l:
        later = combine(_steps(x, 0, l - distance), _steps(x, distance, l))
        x = _joined([_steps(x, 0, distance), later])
        distance *= 2
    return x


def _blelloch(combine: Combine, x: Slices, identity: Slices) -> Slices:
    """Up: sums of 2, 4, 8, ... neighbours. Down: what lies to the left of 8, 4, 2, 1 neighbours."""
    l = x[0].shape[1]
    padding = (1 << (l - 1).bit_length()) - l
    x = _joined([x, [e.expand(-1, padding, *e.shape[2:]) for e in identity]]) if padding else x
    levels = []
    while x[0].shape[1] > 1:
        levels.append(x)
        x = combine(_steps(x, 0, None, 2), _steps(x, 1, None, 2))
    before = identity  # of the root: nothing lies to its left
    for level in reversed(levels):
        # To the left of a left child lies what lies to its parent's left; of a right child, its sibling too.
        before = _alternating(before, combine(before, _steps(level, 0, None, 2)))
    return _steps(_joined([_steps(before, 1, None), x]), 0, l)  # up to and with t is before t + 1


def _blelloch_without_identity(combine: Combine, x: Slices) -> Slices:
    """The same tree with no padding; on the way down, `upto` is what lies to the left and the node itself.

    Where nothing lies to the left of a node there is nothing to combine.
    """
    levels = []
    while x[0].shape[1] > 1:
        levels.append(x)
        even = x[0].shape[1] // 2 * 2
        x = combine(_steps(x, 0, even, 2), _steps(x, 1, even, 2))
    upto = x
    for level in reversed(levels):
        left, inner = _steps(level, 0, 1), _steps(level, 2, None, 2)
        if inner[0].shape[1]:
            left = _joined([left, combine(_steps(upto, 0, inner[0].shape[1]), inner)])
        upto = _alternating(left, upto)
    return upto


def _chunked(combine: Combine, x: Slices) -> Slices:
    """Scan all chunks side by side, then their ends, and pass each end on to the chunk after it."""
    l = x[0].shape[1]
    c = chunk_length(l)
    full, rest = divmod(l, c)
    places = [_steps(x, 0, None, c)]  # place j of every chunk that has one; the last chunk may be short
    for j in range(1, c):
        place = _steps(x, j, None, c)
        places.append(combine(_steps(places[-1], 0, place[0].shape[1]), place))
    ends = _sequential(combine, _steps(places.pop(), 0, full)) if full > 1 else places.pop()
    if full == 1 and not rest:
        return _joined([*places, ends])
    # Place j of all chunks but the first gets the end of the chunk before: one call for all places.
    counts = [place[0].shape[1] - 1 for place in places]
    passed_on = combine(
        _joined([_steps(ends, 0, n) for n in counts]), _joined([_steps(place, 1, None) for place in places])
    )
    offsets = [sum(counts[:j]) for j in range(len(counts) + 1)]
    places = [
        _joined([_steps(place, 0, 1), _steps(passed_on, offsets[j], offsets[j + 1])])
        for j, place in enumerate(places)
    ]
    whole = [_steps(place, 0, full) for place in places] + [ends]
    tail = [_steps(place, full, full + 1) for place in places[:rest]]
    return _joined([[torch.stack(leaf, 2).flatten(1, 2) for leaf in zip(*whole, strict=True)], *tail])


# --- Slices of all tensors at once ----------------------------------------------------------------


def _steps(x: Slices, start: int, stop: int | None, stride: int = 1) -> Slices:
    return [leaf[:, start:stop:stride] for leaf in x]


def _joined(parts: list[Slices]) -> Slices:
    return [torch.cat(leaf, 1) for leaf in zip(*parts, strict=True)]


def _alternating(first: Slices, second: Slices) -> Slices:
    """first_0, second_0, first_1, second_1, ...; first may be longer by one."""
    n = second[0].shape[1]
    paired = [torch.stack([a[:, :n], b], 2).flatten(1, 2) for a, b in zip(first, second, strict=True)]
    return paired if first[0].shape[1] == n else _joined([paired, _steps(first, n, None)])


# --- What is refused ------------------------------------------------------------------------------


def _length(leaves: list[Any]) -> int:
    """l, once all leaves are tensors that have it."""
    if not leaves:
        raise ValueError("elems: got no tensor, expected a tuple of tensors (b, l, ...)")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise ValueError(f"elems: got {type(leaf).__name__} at place {i}, expected a torch tensor")
        if leaf.ndim < 2:
            raise ValueError(f"elems: got shape {tuple(leaf.shape)} at place {i}, expected (b, l, ...)")
        if leaf.shape[1] != leaves[0].shape[1]:
            raise ValueError(
                f"elems: got shape {tuple(leaf.shape)} at place {i}, expected (b, l, ...) with "
                f"l={leaves[0].shape[1]} as at place 0"
            )
    return leaves[0].shape[1]


def _neutral(identity: Any, leaves: Slices, structure: Any) -> Slices:
    """The identity as one step of elems."""
    values, its_structure = tree_flatten(identity)
    if its_structure != structure:
        raise ValueError(f"identity: got {shown(identity)}, expected a value for each tensor of elems")
    steps = []
    for value, leaf in zip(values, leaves, strict=True):
        try:
            whole = torch.as_tensor(value, dtype=leaf.dtype, device=leaf.device)
            steps.append(whole.expand(leaf.shape[0], 1, *leaf.shape[2:]))
        except (RuntimeError, TypeError, ValueError):
            raise ValueError(
                f"identity: got {shown(value)}, expected a scalar or a tensor of shape {tuple(leaf.shape[2:])}"
            ) from None
    return steps


def _checked(op: Callable[[Any, Any], Any], structure: Any) -> Combine:
    """op on lists of tensors, and refused if it returns something else than it was given."""

    def combine(earlier: Slices, later: Slices) -> Slices:
        result = op(tree_unflatten(earlier, structure), tree_unflatten(later, structure))
        leaves, its_structure = tree_flatten(result)
        if its_structure != structure:
            raise ValueError(
                f"op: returned {type(result).__name__} with {len(leaves)} values, expected the structure of "
                f"elems, with {structure.num_leaves}"
            )
        for i, (got, given) in enumerate(zip(leaves, later, strict=True)):
            if not isinstance(got, Tensor) or got.shape != given.shape or got.dtype != given.dtype:
                what = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
                raise ValueError(
                    f"op: returned {what} at place {i}, expected {given.dtype} {tuple(given.shape)} as it was given"
                )
        return leaves

    return combine
