"""The normal plus low-rank form of HiPPO's matrices, and the recurrence that it makes cheap."""

from __future__ import annotations

import pytest
import torch

from ssmcourse.hippo import hippo_matrix
from ssmcourse.normal_plus_low_rank import Recurrence, discretize_nplr, nplr, nplr_step
from ssmcourse.tolerance import mismatch

RANK = {"legs": 1, "lagt": 1, "fourier": 1, "legt": 2}
SIZES = [(m, n) for m in RANK for n in (1, 2, 3, 6, 7, 64) if m != "fourier" or n % 2 == 0]


@pytest.mark.parametrize(("measure", "n"), SIZES)
def test_it_is_the_hippo_matrix(measure, n):
    A, B = hippo_matrix(measure, n)
    Lambda, P, B_in_V, V = nplr(measure, n)
    assert [t.dtype for t in (Lambda, P, B_in_V, V)] == [torch.complex128] * 4
    assert P.shape == (n, RANK[measure])
    assert (V.mH @ V - torch.eye(n)).abs().max() < 1e-12
    assert (V @ (torch.diag(Lambda) - P @ P.mH) @ V.mH - A).abs().max() < 1e-10
    assert (V @ B_in_V - B).abs().max() < 1e-10


@pytest.mark.parametrize(("measure", "n"), SIZES)
def test_modes_come_in_exact_pairs_of_which_the_first_half_turns_forward(measure, n):
    Lambda, P, B, V = nplr(measure, n)
    half = n // 2
    for value in (Lambda, P, B, V.mT):
        assert torch.equal(value[half : 2 * half], value[:half].conj())
    assert (Lambda.real == (-0.5 if measure in ("legs", "lagt") else 0.0)).all()
    assert (Lambda.imag[:half] >= 0).all()
    assert (Lambda.imag[:half].diff() > 0).all()
    assert (B.imag == 0).all()
    assert (B.real >= 0).all()
    if n % 2:
        assert Lambda[-1].imag == 0
        assert (V[:, -1].imag == 0).all()


def test_legs_by_hand():
    """n = 2: A + p p^T = -1/2 I + [[0, s], [-s, 0]] with p = (1, √3)/√2 and s = √3/2."""
    Lambda, P, _, _ = nplr("legs", 2)
    assert Lambda[0].item() == pytest.approx(-0.5 + 0.75**0.5 * 1j)
    assert (P.abs() ** 2).sum().item() == pytest.approx(2.0)  # |p|^2, whatever the basis


@pytest.mark.parametrize(
    ("measure", "n", "said"),
    [
        ("lmu", 4, "legt"),
        ("chebyshev", 4, "expected one of"),
        ("legs", 0, "n: got 0"),
        ("fourier", 3, "even"),
        ("legs", 2.5, "integer"),
    ],
)
def test_what_has_no_such_form_is_refused(measure, n, said):
    with pytest.raises(ValueError, match=said):
        nplr(measure, n)


# --- the recurrence -----------------------------------------------------------------------------


def bilinear(measure: str, n: int, dt: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A_bar and B_bar by a dense inverse, in the real basis: the oracle."""
    A, B = hippo_matrix(measure, n)
    inverse = torch.linalg.inv(torch.eye(n) - dt / 2 * A)
    return inverse @ (torch.eye(n) + dt / 2 * A), dt * inverse @ B


def in_channels(
    measure: str, n: int, steps: list[float], half_modes: bool
) -> tuple[Recurrence, torch.Tensor]:
    Lambda, P, B, V = nplr(measure, n)
    kept = n // 2 if half_modes else n
    h = len(steps)
    given = [value[:kept].expand(h, *value[:kept].shape) for value in (Lambda, P, B)]
    dt = torch.tensor(steps, dtype=torch.float64)
    return discretize_nplr(*given, dt, half_modes=half_modes), V[:, :kept]


@pytest.mark.parametrize("half_modes", [False, True])
@pytest.mark.parametrize("measure", RANK)
def test_steps_in_order_n_are_those_of_the_dense_matrix(measure, half_modes):
    n, steps = 6, [0.003, 0.4, 50.0]
    recurrence, V = in_channels(measure, n, steps, half_modes)
    x = torch.randn(2, 9, len(steps), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = torch.zeros(2, len(steps), V.shape[1], dtype=torch.complex128)
    dense = torch.zeros(2, len(steps), n, dtype=torch.float64)
    systems = [bilinear(measure, n, dt) for dt in steps]
    for x_t in x.unbind(1):
        before = state.clone()
        new = nplr_step(state, x_t, recurrence)
        assert torch.equal(state, before)
        state = new
        dense = torch.stack([dense[:, i] @ A.mT + x_t[:, i, None] * B for i, (A, B) in enumerate(systems)], 1)
        in_real_basis = (2 if half_modes else 1) * (state @ V.mT).real
        assert mismatch(in_real_basis, dense, terms=9 * n) is None


@pytest.mark.parametrize("half_modes", [False, True])
def test_the_matrix_of_a_step(half_modes):
    n = 6
    recurrence, V = in_channels("legt", n, [0.1, 2.0], half_modes)
    A_bar = recurrence.A_bar()
    for i, dt in enumerate((0.1, 2.0)):
        expected, _ = bilinear("legt", n, dt)
        change = 2 * torch.cat([V.real, -V.imag], 1) if half_modes else V  # from modes to coefficients
        assert mismatch(change @ A_bar[i], expected.to(change.dtype) @ change, terms=n) is None
    assert A_bar.is_complex() == (not half_modes)


def test_float32_and_half_inputs_step_in_complex64():
    recurrence, _ = in_channels("legs", 8, [0.1, 0.2], True)
    narrow = Recurrence(*(v.to(torch.complex64) for v in recurrence[:4]), True)
    state = torch.zeros(1, 2, 4, dtype=torch.complex64)
    wide = nplr_step(state.to(torch.complex128), torch.ones(1, 2, dtype=torch.float64), recurrence)
    for dtype in (torch.float32, torch.bfloat16):
        new = nplr_step(state, torch.ones(1, 2, dtype=dtype), narrow)
        assert new.dtype == torch.complex64
        assert mismatch(new, wide, terms=8) is None


def test_gradients_of_the_step():
    generator = torch.Generator().manual_seed(3)

    def draw(*shape, dtype=torch.complex128):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    def step(Lambda, P, B, dt, state, x):
        return nplr_step(state, x, discretize_nplr(Lambda - 2, P, B, dt.exp(), half_modes=True))

    real = torch.float64
    given = (
        draw(2, 3),
        draw(2, 3, 2),
        draw(2, 3),
        draw(2, dtype=real),
        draw(1, 2, 3),
        draw(1, 2, dtype=real),
    )
    assert torch.autograd.gradcheck(step, given)


def test_arguments_that_do_not_fit_are_named():
    Lambda, P, B, _ = (value[None] for value in nplr("legs", 4))
    dt = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"P: got shape \(1, 4\), expected \(h, n, r\)"):
        discretize_nplr(Lambda, P[..., 0], B, dt)
    with pytest.raises(ValueError, match=r"dt: got shape \(2,\)"):
        discretize_nplr(Lambda, P, B, torch.ones(2))
    recurrence = discretize_nplr(Lambda, P, B, dt)
    with pytest.raises(ValueError, match="recurrence: got tuple, expected what discretize_nplr returns"):
        nplr_step(torch.zeros(2, 1, 4, dtype=torch.complex128), torch.ones(2, 1), tuple(recurrence))
    with pytest.raises(ValueError, match=r"state: got shape"):
        nplr_step(torch.zeros(2, 4, dtype=torch.complex128), torch.ones(2, 1), recurrence)
    with pytest.raises(ValueError, match=r"x: got shape"):
        nplr_step(torch.zeros(2, 1, 4, dtype=torch.complex128), torch.ones(2, 3), recurrence)
