"""The compiled LegS scan as a torch operator: registration, gradients, threads, compilation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmcourse.hippo import hippo_matrix
from ssmcourse.kernels.legs.cpu import legs_scan, legs_scan_backward
from ssmcourse.tolerance import mismatch

ALPHAS = (0.0, 0.5, 1.0)


def oracle(f, ratios, alpha, n):
    """(rows, l, n) in float64, by dense solves."""
    A, B = hippo_matrix("legs", n)
    eye = torch.eye(n, dtype=torch.float64)
    c, out = torch.zeros(f.shape[0], n, dtype=torch.float64), []
    for f_k, r in zip(f.double().unbind(-1), ratios, strict=True):
        right = c @ (eye + (1 - alpha) * r * A).mT + r * f_k[:, None] * B
        c = torch.linalg.solve(eye - alpha * r * A, right.mT).mT
        out.append(c)
    return torch.stack(out, 1)


def inputs(rows, l, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ratios = torch.rand(l, dtype=torch.float64, generator=generator) * 0.9 + 0.05
    ratios[0] = 1
    return torch.randn(rows, l, generator=generator, dtype=torch.float64).to(dtype), ratios


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("l", [1, 2, 3, 17, 64, 65])
def test_scan(l, alpha, dtype):
    f, ratios = inputs(3, l, dtype)
    n = 4 if alpha == 0 else 9
    want = oracle(f, ratios, alpha, n)
    scale = want.abs().max()
    got = legs_scan(f, ratios, alpha, n, False)
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert mismatch(got / scale, want / scale, terms=n * l) is None
    last = legs_scan(f, ratios, alpha, n, True)
    assert last.shape == (3, 1, n)
    assert (last == got[:, -1:]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 20), st.integers(1, 12), st.sampled_from(ALPHAS))
def test_backward_is_the_adjoint(rows, l, n, alpha):
    """<grad, scan f> = <scan^T grad, f>, for any grad."""
    f, ratios = inputs(rows, l, seed=n)
    out = legs_scan(f, ratios, alpha, n, False)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(l))
    df, dratios = legs_scan_backward(grad, f, ratios, out.new_empty(0, 0, 0), alpha)
    scale = float((grad.abs() * out.abs()).sum()) + 1
    assert abs(float((grad * out).sum() - (df * f).sum())) < 1e-11 * scale
    assert not dratios.any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients(alpha, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        f, ratios = (t.requires_grad_() for t in inputs(3, 5))
        assert torch.autograd.gradcheck(lambda f, r: legs_scan(f, r, alpha, 4, False), (f, ratios))
        assert torch.autograd.gradcheck(lambda f: legs_scan(f, ratios.detach(), alpha, 4, True), (f,))
    finally:
        torch.set_num_threads(before)


def test_threads_do_not_change_a_bit():
    f, ratios = inputs(5, 40)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            results.append(legs_scan(f, ratios, 0.5, 8, False))
    finally:
        torch.set_num_threads(before)
    assert all((r == results[0]).all() for r in results)


def test_the_last_state_alone_has_no_gradient_for_the_ratios():
    f, ratios = inputs(1, 3)
    with pytest.raises(ValueError, match=r"ratios: .* last_only=False"):
        legs_scan(f, ratios.requires_grad_(), 0.5, 2, True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_accepts_the_operators(dtype):
    f, ratios = inputs(2, 6, dtype)
    strided = inputs(6, 2, dtype)[0].T
    for x in (f, strided):
        torch.library.opcheck(legs_scan, (x.clone().requires_grad_(), ratios, 0.5, 4, True))
        torch.library.opcheck(
            legs_scan, (x.clone().requires_grad_(), ratios.clone().requires_grad_(), 0.5, 4, False)
        )
    out = legs_scan(f, ratios, 0.5, 4, False)
    torch.library.opcheck(legs_scan_backward, (torch.ones_like(out), f, ratios, out, 0.5))


@pytest.mark.slow
def test_it_compiles_in_one_graph():
    from ssmcourse.hippo import hippo_project

    f = inputs(2, 50)[0].requires_grad_()
    for measure in ("legs", "legt"):

        def loss(f, measure=measure):
            return (hippo_project(f, 8, measure, theta=20.0, last_only=True) ** 2).sum()

        (want,) = torch.autograd.grad(loss(f), f)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        (got,) = torch.autograd.grad(compiled(f), f)
        assert mismatch(got, want, terms=400) is None
