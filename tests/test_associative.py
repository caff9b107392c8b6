"""associative_scan against one operation after another, with operators that do not commute."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmcourse.associative import METHODS, associative_scan
from ssmcourse.scan import linear_scan
from ssmcourse.tolerance import mismatch
from ssmcourse.trace import scan_trace

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 64, 65]


def affine(earlier, later):
    """The step h -> a h + b of `earlier`, then that of `later`, as one step."""
    (a1, b1), (a2, b2) = earlier, later
    return a2 * a1, a2 * b1 + b2


def affine_maps(earlier, later):
    """The same with matrices for a and vectors for b."""
    (a1, b1), (a2, b2) = earlier, later
    return a2 @ a1, (a2 @ b1[..., None])[..., 0] + b2


def concatenate(earlier, later):
    """Strings of decimal digits, as (value, length)."""
    return earlier[0] * 10 ** later[1] + later[0], earlier[1] + later[1]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrices(l: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps near the identity, so that products of many stay of order 1."""
    return torch.eye(2, dtype=torch.float64) + 0.3 * randn(2, l, 2, 2, seed=seed), randn(
        2, l, 2, seed=seed + 1
    )


def one_after_another(op, elems, reverse: bool = False):
    """The oracle: no library code."""
    order = range(elems[0].shape[1])
    prefix, prefixes = None, []
    for t in reversed(order) if reverse else order:
        step = tuple(e[:, t : t + 1] for e in elems)
        prefix = step if prefix is None else op(prefix, step)
        prefixes.append(prefix)
    leaves = zip(*(prefixes[::-1] if reverse else prefixes), strict=True)
    return tuple(torch.cat(leaf, 1) for leaf in leaves)


IDENTITY = (torch.eye(2, dtype=torch.float64), 0.0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("identity", [None, IDENTITY], ids=["", "padded"])
@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize("method", METHODS)
def test_matrices_that_do_not_commute(method, l, identity, reverse):
    leaves = [m.requires_grad_() for m in matrices(l)]
    got = associative_scan(affine_maps, tuple(leaves), method=method, reverse=reverse, identity=identity)
    expected = one_after_another(affine_maps, leaves, reverse)
    weights = [randn(*e.shape, seed=9) for e in expected]
    for g, e in zip(got, expected, strict=True):
        assert mismatch(g, e, terms=l) is None
    for g, e in zip(
        torch.autograd.grad(got, leaves, weights), torch.autograd.grad(expected, leaves, weights), strict=True
    ):
        assert mismatch(g, e, terms=l) is None


@pytest.mark.parametrize("identity", [None, (0, 0)], ids=["", "padded"])
@pytest.mark.parametrize("method", METHODS)
def test_strings_are_joined_in_order(method, identity):
    digits = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]])
    elems = digits, torch.ones_like(digits)
    value, length = associative_scan(concatenate, elems, method=method, identity=identity)
    assert value[0].tolist() == [int("3141592653589"[: t + 1]) for t in range(13)]
    assert length[0].tolist() == list(range(1, 14))
    value, _ = associative_scan(concatenate, elems, method=method, identity=identity, reverse=True)
    assert value[0].tolist() == [int("9853562951413"[: 13 - t]) for t in range(13)]


@pytest.mark.parametrize("method", METHODS)
def test_the_linear_scan_is_one(method):
    a, b = torch.tanh(randn(2, 37, 3)), randn(2, 37, 3, seed=1)
    for reverse in (False, True):
        h = associative_scan(affine, (a, b), method=method, reverse=reverse, identity=(1.0, 0.0))[1]
        assert mismatch(h, linear_scan(a, b, reverse=reverse), terms=37) is None


@pytest.mark.parametrize("method", METHODS)
def test_what_elems_may_be(method):
    x = randn(2, 11, 3)
    alone = associative_scan(torch.maximum, x, method=method, identity=-torch.inf)
    assert torch.equal(alone, x.cummax(1).values)
    nested = associative_scan(
        lambda e, l: {"sum": e["sum"] + l["sum"], "last": (l["last"][0],)},
        {"sum": x.float(), "last": (torch.arange(11)[None],)},
        method=method,
    )
    assert mismatch(nested["sum"], x.cumsum(1), terms=11) is None
    assert nested["last"][0].tolist() == [list(range(11))]
    shared = torch.full((1, 11, 1), 0.5, dtype=torch.float64)  # one gate for all rows and channels
    h = associative_scan(affine, (shared, x), method=method)[1]
    assert mismatch(h, linear_scan(shared, x), terms=11) is None
    half = associative_scan(torch.add, x.bfloat16(), method=method)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
def test_short_ones(method):
    for l in (0, 1):
        x = randn(2, l, 3)
        out = associative_scan(lambda e, l: pytest.fail("nothing to combine"), x, method=method)
        assert torch.equal(out, x)
        assert out.data_ptr() != x.data_ptr() or l == 0
    assert associative_scan(torch.add, randn(0, 5), method=method).shape == (0, 5)


# --- Cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("l", [1, 2, 3, 8, 17, 63, 64, 100, 1000, 1024])
@pytest.mark.parametrize("method", METHODS)
def test_combines_are_those_of_the_trace(method, l):
    steps = []

    def counting(earlier, later):
        assert earlier.shape == later.shape
        steps.append(later.shape[1])
        return earlier + later

    associative_scan(counting, torch.ones(1, l), method=method, identity=0.0)
    assert steps == [len(step) for step in scan_trace(l, method).steps]


def test_without_an_identity_blelloch_leaves_out_what_changes_nothing():
    combines = []

    def counting(earlier, later):
        combines.append(later.shape[1])
        return earlier + later

    associative_scan(counting, torch.ones(1, 1024))
    assert len(combines) == 2 * 10 - 1  # the first step down gives the right child its sibling's sum
    assert sum(combines) == 2 * 1023 - 10


# --- Rules of torch -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_derivatives(method):
    a, b = (t.requires_grad_() for t in (randn(1, 6, 2), randn(1, 6, 2, seed=1)))

    def scan(a, b):
        return associative_scan(affine, (a, b), method=method, identity=(1.0, 0.0))

    assert torch.autograd.gradcheck(scan, (a, b))
    assert torch.autograd.gradgradcheck(scan, (a, b))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_flows_back_in_time(method):
    x = randn(1, 21, 2)
    spoiled = x.clone()
    spoiled[:, 13, 0] = torch.nan
    out = associative_scan(torch.add, spoiled, method=method, identity=0.0)
    assert torch.equal(out[:, :13], associative_scan(torch.add, x, method=method)[:, :13])
    assert out[:, 13:, 0].isnan().all()
    assert not out[..., 1].isnan().any()


@pytest.mark.parametrize("method", METHODS)
def test_compiles_without_a_graph_break(method):
    torch.compiler.reset()

    def loss(a, b):
        return associative_scan(affine, (a, b), method=method, reverse=True)[1].sin().sum()

    inputs = [randn(2, 5, 3).requires_grad_(), randn(2, 5, 3, seed=1).requires_grad_()]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager" if method == "blelloch" else "eager")
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for g, e in zip(got, torch.autograd.grad(loss(*inputs), inputs), strict=True):
        assert mismatch(g, e, terms=5) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from(METHODS), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_any_length(l, method, reverse, padded, seed):
    elems = matrices(l, seed)
    options = {"method": method, "reverse": reverse, "identity": IDENTITY if padded else None}
    for g, e in zip(
        associative_scan(affine_maps, elems, **options),
        one_after_another(affine_maps, elems, reverse),
        strict=True,
    ):
        assert mismatch(g, e, terms=l) is None


# --- What is refused ------------------------------------------------------------------------------

X = torch.ones(2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (torch.add, X),
            {"method": "fast"},
            "method: got 'fast', expected one of sequential, hillis_steele, blelloch, ",
        ),
        ((torch.add, ()), {}, "elems: got no tensor, expected a tuple of tensors (b, l, ...)"),
        ((torch.add, (X, 1.0)), {}, "elems: got float at place 1, expected a torch tensor"),
        ((torch.add, torch.ones(3)), {}, "elems: got shape (3,) at place 0, expected (b, l, ...)"),
        (
            (affine, (X, X[:, :4])),
            {},
            "elems: got shape (2, 4, 3) at place 1, expected (b, l, ...) with l=5 as at place 0",
        ),
        ((affine, (X, X)), {"identity": 1.0}, "identity: got 1.0, expected a value for each tensor of elems"),
        (
            (torch.add, X),
            {"identity": torch.zeros(2)},
            "identity: got a tensor of shape (2,), expected a scalar or a tensor of shape (3,)",
        ),
        ((torch.add, X), {"identity": "0"}, "identity: got '0', expected a scalar or a tensor of shape (3,)"),
        (
            (lambda e, l: (e + l)[:, :1], X),
            {},
            "op: returned torch.float32 (2, 1, 3) at place 0, expected torch.float32 (2, 2, 3) as it was given",
        ),
        (
            (lambda e, l: (e, l), X),
            {},
            "op: returned tuple with 2 values, expected the structure of elems, with 1",
        ),
        (
            (lambda e, l: None, (X, X)),
            {},
            "op: returned NoneType with 1 values, expected the structure of elems, ",
        ),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        associative_scan(*arguments, **options)
    assert "\n" not in str(caught.value)
