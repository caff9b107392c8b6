"""The convolutions at their public edge, and fft_conv against the dense Toeplitz matrix."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from ssmcourse import backends, causal_conv1d, causal_conv1d_update, fft_conv
from ssmcourse.tolerance import mismatch

HALF_OR_MORE = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def by_matrix(x: Tensor, kernel: Tensor, D: Tensor | None = None) -> Tensor:
    """M[t, s] = kernel[t - s] for s <= t, written down diagonal by diagonal."""
    l = x.shape[1]
    M = sum(kernel[:, j, None, None] * torch.ones(l, l).tril(-j).triu(-j) for j in range(l))  # (d, l, l)
    y = torch.einsum("dts,bsd->btd", M.to(x.dtype), x)
    return y if D is None else y + D * x


@pytest.mark.parametrize("l", [1, 2, 3, 5, 17, 64, 65, 127])
@pytest.mark.parametrize("dtype", HALF_OR_MORE)
def test_fft_conv_is_the_toeplitz_matrix(l, dtype):
    inputs = [randn(2, l, 3, dtype=dtype), randn(3, l, seed=1, dtype=dtype), randn(3, seed=2, dtype=dtype)]
    wide = [t.double().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    y, expected = fft_conv(*inputs), by_matrix(*wide)
    assert y.dtype == dtype
    assert mismatch(y, expected, terms=l) is None
    weights = randn(2, l, 3, seed=3, dtype=dtype)
    gradients = torch.autograd.grad(y, inputs, weights)
    for g, e in zip(gradients, torch.autograd.grad(expected, wide, weights.double()), strict=True):
        assert g.dtype == dtype
        assert mismatch(g, e, terms=2 * l) is None


def test_fft_conv_has_derivatives_of_any_order():
    inputs = [t.requires_grad_() for t in (randn(1, 5, 2), randn(2, 5, seed=1), randn(2, seed=2))]
    assert torch.autograd.gradcheck(fft_conv, inputs)
    assert torch.autograd.gradgradcheck(fft_conv, inputs)


def test_fft_conv_does_not_wrap_around():
    """An impulse at the last step reaches the last step only."""
    x = torch.zeros(1, 33, 1, dtype=torch.float64)
    x[0, -1] = 1
    y = fft_conv(x, 1 + torch.arange(33.0, dtype=torch.float64)[None])
    assert mismatch(y, x, terms=33) is None


def test_fft_conv_parameters_may_be_wider():
    x, kernel = randn(2, 9, 3, dtype=torch.bfloat16), randn(3, 9, seed=1, dtype=torch.float32)
    y = fft_conv(x, kernel)
    assert y.dtype == torch.bfloat16
    assert mismatch(y, by_matrix(x.double(), kernel.double()), terms=9) is None
    assert fft_conv(x.float(), kernel.double()).dtype == torch.float32


def test_half_inputs_near_the_end_of_their_range():
    x = torch.full((1, 64, 1), 6e4, dtype=torch.float16)
    y = fft_conv(x, torch.full((1, 64), 1 / 64, dtype=torch.float16))
    assert mismatch(y, 6e4 * (1 + torch.arange(64.0))[None, :, None] / 64, terms=64) is None


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3), (2, 4, 0)])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_nothing_in_nothing_out(shape, backend):
    b, l, d = shape
    x, kernel = torch.rand(shape, requires_grad=True), torch.rand(d, l, requires_grad=True)
    fft_conv(x, kernel, torch.rand(d)).sum().backward()
    assert kernel.grad.shape == (d, l)
    weight, state = torch.rand(d, 4, requires_grad=True), torch.rand(b, 3, d)
    y, last = causal_conv1d(x, weight, initial_state=state, return_final_state=True, backend=backend)
    y.sum().backward()
    assert y.shape == shape
    assert not weight.grad.any()
    assert torch.equal(last, state if l == 0 else last)
    assert last.shape == (b, 3, d)
    seq_idx = torch.zeros(b, l, dtype=torch.int64)
    options = {"initial_state": state, "seq_idx": seq_idx, "return_final_state": True, "backend": backend}
    _, states = causal_conv1d(x, weight, **options)
    assert states.shape == (b, 3, d)
    assert torch.equal(states, state if l == 0 else states)  # a row without steps passes its state on


@pytest.mark.parametrize("dtype", HALF_OR_MORE)
def test_dtypes_of_the_short_convolution(dtype):
    """The output and the states have x's dtype, whatever the parameters are."""
    x, weight = randn(2, 9, 3, dtype=dtype), randn(3, 4, seed=1)
    state = torch.zeros(2, 3, 3)
    y, last = causal_conv1d(x, weight, initial_state=state, return_final_state=True)
    y_t, new = causal_conv1d_update(x[:, 0], state, weight)
    assert {y.dtype, last.dtype, y_t.dtype, new.dtype} == {dtype}
    assert mismatch(y_t, y[:, 0]) is None


def test_an_update_does_not_change_its_state():
    x, state, weight = (
        randn(2, 3).requires_grad_(),
        randn(2, 3, 3, seed=1).requires_grad_(),
        randn(3, 4, seed=2),
    )
    before = state.detach().clone()
    _, new = causal_conv1d_update(x, state, weight, activation="silu")
    assert torch.equal(state, before)
    assert torch.equal(new, torch.cat([state[:, 1:], x[:, None]], 1))
    assert torch.autograd.gradcheck(lambda x, state: causal_conv1d_update(x, state, weight), (x, state))


def test_it_is_the_depthwise_convolution_of_torch():
    x, weight, bias = randn(2, 21, 6), randn(6, 1, 4, seed=1), randn(6, seed=2)
    theirs = torch.nn.functional.conv1d(x.mT, weight, bias, padding=3, groups=6)[..., :21].mT
    assert mismatch(causal_conv1d(x, weight[:, 0], bias), theirs, terms=4) is None


def test_backends():
    assert {"cpu", "reference"} <= set(backends("causal_conv1d"))


# --- What is refused ------------------------------------------------------------------------------

X, W = torch.ones(2, 5, 3), torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fft_conv(X, torch.ones(3, 4)),
            "kernel: got shape (3, 4), expected (d, l) with d=3, l=5 as in x",
        ),
        (
            lambda: fft_conv(X, torch.ones(3, 6)),
            "kernel: got shape (3, 6), expected (d, l) with d=3, l=5 as in x",
        ),
        (
            lambda: fft_conv(X, torch.ones(3, 5), torch.ones(2)),
            "D: got shape (2,), expected (d,) with d=3 as in x",
        ),
        (lambda: fft_conv(X + 0j, torch.ones(3, 5)), "x: got dtype torch.complex64, expected float16, "),
        (lambda: causal_conv1d(X.int(), W), "x: got dtype torch.int32, expected float16, "),
        (lambda: causal_conv1d(X, W.T), "weight: got shape (4, 3), expected (d, w) with d=3 as in x"),
        (
            lambda: causal_conv1d(X, W[:, None]),
            "weight: got shape (3, 1, 4), expected (d, w) with d=3 as in x",
        ),
        (lambda: causal_conv1d(X, W[:, :0]), "weight: got w=0, expected w of 1 or more"),
        (lambda: causal_conv1d(X, W, W), "bias: got shape (3, 4), expected (d,) with d=3 as in x"),
        (
            lambda: causal_conv1d(X, W, activation="relu"),
            "activation: got 'relu', expected one of None, silu",
        ),
        (
            lambda: causal_conv1d(X, W, initial_state=torch.ones(2, 4, 3)),
            "initial_state: got shape (2, 4, 3), expected (b, 3, d) with b=2, d=3 as in x",
        ),
        (
            lambda: causal_conv1d(X, W, seq_idx=torch.ones(2, 4, dtype=torch.long)),
            "seq_idx: got shape (2, 4), expected (b, l) with b=2, l=5 as in x",
        ),
        (
            lambda: causal_conv1d(X, W, seq_idx=X[..., 0]),
            "seq_idx: got dtype torch.float32, expected an integer one",
        ),
        (lambda: causal_conv1d(X, W.to("meta")), "weight: got a tensor on meta, expected x's device cpu"),
        (
            lambda: causal_conv1d(X, W, backend="fast"),
            "backend: got 'fast', which is not one of its names. causal_conv1d has here: auto, cpu, reference",
        ),
        (
            lambda: causal_conv1d_update(X[:, 0], X, W),
            "state: got shape (2, 5, 3), expected (b, 3, d) with b=2, d=3 as in x",
        ),
        (lambda: causal_conv1d_update(X, X[:, :3], W), "x: got shape (2, 5, 3), expected (b, d)"),
    ],
)
def test_bad_arguments_get_one_clear_line(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        call()
    assert "\n" not in str(caught.value)
