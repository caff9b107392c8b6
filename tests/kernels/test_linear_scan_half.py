"""The linear scan of half types: computed in float32, rounded once, converted in the kernel."""

from __future__ import annotations

import functools

import pytest
import torch
from allocations import allocated
from operator_table import LENGTHS, assert_agrees, random
from test_linear_scan import by_matrix, gates

from ssmcourse.scan import linear_scan
from ssmcourse.tolerance import mismatch

HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("d", [6, 19])  # on the CPU each has a kernel of its own
@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_half(backend, dtype, l, d, reverse):
    inputs = {
        "a": gates((2, l, d), dtype),
        "b": random((2, l, d), dtype, seed=2),
        "initial_state": random((2, d), torch.float32, seed=3),
    }
    call = functools.partial(linear_scan, backend=backend)
    assert_agrees(call, by_matrix, inputs, terms=l, reverse=reverse)
    inputs["initial_state"] = inputs["initial_state"].to(dtype)
    inputs["a"] = inputs["a"][:1, :, :1]
    assert_agrees(call, by_matrix, inputs, terms=2 * d * l, reverse=reverse)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("d", [1, 33])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_half_states_are_float32_and_rounded_once(backend, dtype, d, threads):
    """A sum of ones: bfloat16 cannot count beyond 256, float16 not beyond 2048."""
    l, before = 3000, torch.get_num_threads()
    count = torch.arange(l)
    torch.set_num_threads(threads)
    try:
        for reverse in (False, True):
            a = torch.ones(1, l, d, dtype=dtype, requires_grad=True)
            b, first = torch.ones_like(a, requires_grad=True), torch.zeros(1, d, requires_grad=True)
            h = linear_scan(a, b, first, reverse=reverse, backend=backend)
            _, db, dfirst = torch.autograd.grad(h.sum(), (a, b, first))
            up, down = ((count + 1).to(dtype), (l - count).to(dtype))
            assert torch.equal(h[0, :, -1], down if reverse else up)
            assert torch.equal(db[0, :, -1], up if reverse else down)
            assert dfirst.unique().item() == l
            assert first.count_nonzero() == 0, "the caller's initial state was written to"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_initial_state_beyond_half(backend, reverse):
    inputs = {
        "a": torch.tensor([[0.01, 0.01]], dtype=torch.float16),
        "b": torch.tensor([[3.0, 5.0]], dtype=torch.float16),
        "initial_state": torch.tensor([1e5]),
    }
    dh = torch.tensor([[0.02, 0.02]], dtype=torch.float16)

    def slope(function, given, **options):
        given = {name: t.requires_grad_() for name, t in given.items()}
        h = function(**given, reverse=reverse, **options)
        return torch.autograd.grad(h, given["a"], dh.to(h.dtype))[0]

    expected = slope(by_matrix, {name: t.double() for name, t in inputs.items()})
    assert mismatch(slope(linear_scan, inputs, backend=backend), expected, terms=2) is None


@pytest.mark.parametrize("dtype", HALF)
def test_half_takes_half_the_memory(dtype):
    """Converted in the kernel, that is: a copy in float32 would take more than float32 itself."""
    inputs = {name: random((1, 700, 96), torch.float32, seed=i) for i, name in enumerate("ab")}
    inputs["a"] = inputs["a"].tanh()
    full = allocated(linear_scan, inputs, backend="cpu")
    half = allocated(linear_scan, {name: t.to(dtype) for name, t in inputs.items()}, backend="cpu")
    assert all(h < 0.6 * f for h, f in zip(half, full, strict=True)), (half, full)


@pytest.mark.parametrize("dtype", HALF)
def test_half_in_the_rules_of_torch(dtype):
    a, b = (t.requires_grad_() for t in (gates((2, 5, 3), dtype), random((2, 5, 3), dtype, seed=2)))
    first = random((2, 3), torch.float32, seed=3).requires_grad_()
    linear_scan(a, b, backend="cpu")  # registers the operator
    torch.library.opcheck(torch.ops.ssmcourse.linear_scan_cpu.default, (a, b, first, True))
    given = [t.detach() for t in (b, a, b, first)]
    torch.library.opcheck(torch.ops.ssmcourse.linear_scan_cpu_gradient.default, (*given, True))

    def second(backend):
        h = linear_scan(a, b, first, backend=backend)
        slopes = torch.autograd.grad(h.sum(), (a, b, first), create_graph=True)
        return torch.autograd.grad(sum((s * s).sum().float() for s in slopes), (a, first))

    for got, expected in zip(second("cpu"), second("reference"), strict=True):
        assert got.dtype == expected.dtype
        assert mismatch(got.to(dtype), expected, terms=15) is None
