"""SSD of half types: computed in float32, rounded once, converted in the kernel."""

from __future__ import annotations

import functools

import pytest
import torch
from allocations import allocated
from operator_table import LENGTHS, assert_agrees
from test_ssd import ACTIVATIONS, BACKENDS, BARE, by_steps, case, inputs, packed

from ssmcourse.duality import ssd
from ssmcourse.tolerance import mismatch

HALF_TABLE = {
    **{f"l={l}": ({"l": l}, {}) for l in LENGTHS},
    "no gate": ({"z": False}, {}),
    "nothing optional": (BARE, {}),
    "whole registers": ({"h": 2, "p": 64, "n": 32, "g": 1, "l": 67}, {}),
    "packed": ({"l": 140, "h": 2, "g": 1}, {"seq_idx": packed(2, 140)}),
    "wider parameters": ({}, {}),
}
# Each half type is a compilation of its own, hence the mark.
HALF = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]


@pytest.mark.parametrize("row", HALF_TABLE)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *((name, dtype) for name in BACKENDS[:-1] for dtype in (torch.bfloat16, torch.float16)),
        ("cpu", torch.bfloat16),
        pytest.param("cpu", torch.float16, marks=pytest.mark.slow),
    ],
)
def test_half(backend, dtype, row):
    sizes, options = HALF_TABLE[row]
    made = case(row, dtype=dtype, **sizes)
    given = made.make()
    if row == "wider parameters":
        given["A"] = given["A"].double()

    def oracle(**wide):
        y, final = by_steps(**wide)  # rounded, so that the gradients that come in are rounded as well
        return y.to(dtype), final.to(given["A"].dtype)

    call = functools.partial(ssd, backend=backend)
    assert_agrees(call, oracle, given, terms=made.terms, **made.options, **options)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", HALF)
def test_half_over_spans(dtype, threads):
    """On four threads the gradients of B and C are sums of parts, each rounded."""
    made = inputs(b=1, l=1100, h=4, g=1, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_agrees(
            functools.partial(ssd, backend="cpu"),
            functools.partial(ssd, backend="chunked"),
            made,
            terms=1100 * 12,
            dt_softplus=True,
            return_final_state=True,
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", HALF)
def test_half_is_rounded_once(dtype):
    """Sums of ones along time, the states and the heads, on threads that share the heads: all are float32 inside."""
    l, n = 1500, 2
    made = inputs(b=1, l=l, h=4, p=1, n=n, g=1, dtype=dtype, **BARE)
    made = {name: torch.full_like(t, name != "A").requires_grad_() for name, t in made.items()}
    count = torch.arange(1, l + 1)
    before = torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        try:
            y, final = ssd(**made, return_final_state=True, backend="cpu")
            dx, dB = torch.autograd.grad(y.sum(), (made["x"], made["B"]))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(y[0, :, -1, 0], (n * count).to(dtype))
        assert torch.equal(final, torch.full_like(final, l))
        assert torch.equal(dx[0, :, 0, 0], (n * count.flip(0)).to(dtype))
        assert mismatch(dB[0, :, 0, 0], 4 * count.flip(0)) is None


@pytest.mark.parametrize("dtype", HALF)
def test_half_takes_half_the_memory(dtype):
    """Converted in the kernel, that is: a copy in float32 would take more than float32 itself."""
    made = inputs(b=1, l=1500, h=2, p=64, n=16, g=1, dtype=torch.float32)
    half = {name: t.to(dtype) if name in ACTIVATIONS else t for name, t in made.items()}
    of_float32, of_half = (allocated(ssd, given, dt_softplus=True, backend="cpu") for given in (made, half))
    assert all(h < 0.7 * f for h, f in zip(of_half, of_float32, strict=True)), (of_half, of_float32)
