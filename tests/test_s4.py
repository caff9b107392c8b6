"""The inits of S4D, the kernel by its definition, and what a kernel means: a convolution that is a recurrence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssmcourse.convolution import fft_conv
from ssmcourse.hippo import hippo_matrix
from ssmcourse.normal_plus_low_rank import discretize_nplr, nplr, nplr_step
from ssmcourse.s4 import _generating_function, s4_kernel, s4d_init, s4d_kernel, ssm_kernel
from ssmcourse.tolerance import mismatch


def draw(*shape, dtype=torch.float64, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- inits --------------------------------------------------------------------------------------

INITS = {
    "lin": [-0.5, -0.5 + math.pi * 1j, -0.5 + 2 * math.pi * 1j],
    "inv": [-0.5 + 30 / math.pi * 1j, -0.5 + 6 / math.pi * 1j, -0.5 + 6 / math.pi * 0.2j],
    "real": [-1, -2, -3],
}


@pytest.mark.parametrize(("kind", "A"), INITS.items())
def test_inits_by_hand_for_n_6(kind, A):
    got, B = s4d_init(kind, 6)
    assert got.dtype == B.dtype == torch.complex128
    assert got.tolist() == pytest.approx(A)
    assert B.tolist() == [1, 1, 1]


def test_legs_is_half_of_its_nplr_form():
    A, B = s4d_init("legs", 64)
    Lambda, _, B_in_V, V = nplr("legs", 64)
    assert torch.equal(A, Lambda[:32])
    assert torch.equal(B, B_in_V[:32])
    _, B_real = hippo_matrix("legs", 64)
    assert mismatch(2 * (V[:, :32] @ B).real, B_real, terms=64) is None  # neither halved nor clipped


def test_inv_follows_legs():
    """S4D-Inv was fitted to the eigenvalues of LegS: the largest agree to some percent."""
    inverse, legs = s4d_init("inv", 64)[0].imag, s4d_init("legs", 64)[0].imag.flip(0)
    assert ((inverse - legs) / legs)[:4].abs().max() < 0.1


def test_random_follows_the_seed():
    torch.manual_seed(5)
    A, B = s4d_init("random", 8)
    torch.manual_seed(5)
    assert torch.equal(A.imag, torch.exp(torch.randn(4, dtype=torch.float64)))
    assert (A.real == -0.5).all()
    assert (B == 1).all()


@pytest.mark.parametrize("n", [0, 3, -2, 4.0, True])
def test_sizes_that_have_no_pairs_are_refused(n):
    with pytest.raises(ValueError, match="n: got"):
        s4d_init("lin", n)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="kind: got 'hippo', expected one of legs, lin, inv, real, random"):
        s4d_init("hippo", 4)


# --- the definition -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("l", [0, 1, 2, 3, 17])
def test_ssm_kernel_is_the_powers(l, dtype):
    A, B, C = 0.4 * draw(2, 4, 4, dtype=dtype), draw(2, 4, dtype=dtype, seed=1), draw(4, dtype=dtype, seed=2)
    K = ssm_kernel(A, B, C, l)
    assert K.shape == (2, l)
    assert K.dtype == dtype
    wide = [v.to(torch.promote_types(dtype, torch.float64)).numpy() for v in (A, B, C)]
    expected = [
        [wide[2] @ np.linalg.matrix_power(wide[0][i], t) @ wide[1][i] for t in range(l)] for i in range(2)
    ]
    assert mismatch(K, np.array(expected).reshape(2, l), terms=4 * max(l, 1)) is None


def test_ssm_kernel_of_a_number():
    K = ssm_kernel(torch.tensor([[0.5]]), torch.tensor([2.0]), torch.tensor([3.0]), 4)
    assert K.tolist() == [6.0, 3.0, 1.5, 0.75]


def test_ssm_kernel_has_gradients_and_rounds_half_types_once():
    leaves = [v.requires_grad_() for v in (0.4 * draw(3, 3), draw(3, seed=1), draw(3, seed=2))]
    assert torch.autograd.gradcheck(lambda A, B, C: ssm_kernel(A, B, C, 5), leaves)
    half = [v.detach().to(torch.bfloat16) for v in leaves]
    K = ssm_kernel(*half, 9)
    assert K.dtype == torch.bfloat16
    assert torch.equal(K, ssm_kernel(*(v.float() for v in half), 9).to(torch.bfloat16))


def test_ssm_kernel_names_what_does_not_fit():
    A, B, C = draw(2, 4, 4), draw(2, 4), draw(2, 4)
    with pytest.raises(ValueError, match="A_bar: got shape"):
        ssm_kernel(A[:, :3], B, C, 4)
    with pytest.raises(ValueError, match="C: got shape"):
        ssm_kernel(A, B, C[:, :3], 4)
    with pytest.raises(ValueError, match="leading dimensions"):
        ssm_kernel(A, draw(3, 4), C, 4)
    with pytest.raises(ValueError, match="l: got -1"):
        ssm_kernel(A, B, C, -1)


# --- what it means ------------------------------------------------------------------------------


def layer(measure: str, n: int, h: int) -> tuple[torch.Tensor, ...]:
    """Lambda, P, B, C, dt of h channels, one mode of each pair, with steps from 1e-3 to 1e-1."""
    Lambda, P, B, V = nplr(measure, n)
    C = (draw(h, n).to(V.dtype) @ V)[:, : n // 2]
    dt = torch.logspace(-3, -1, h, dtype=torch.float64)
    return *(v[: n // 2].expand(h, *v[: n // 2].shape) for v in (Lambda, P, B)), C, dt


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "fourier"])
def test_convolution_is_recurrence(measure):
    Lambda, P, B, C, dt = layer(measure, 8, 3)
    x = draw(2, 50, 3, seed=4)
    y = fft_conv(x, s4_kernel(Lambda, P, B, C, dt, 50, half_modes=True))
    recurrence = discretize_nplr(Lambda, P, B, dt, half_modes=True)
    state = torch.zeros(2, 3, 4, dtype=torch.complex128)
    for t in range(50):
        state = nplr_step(state, x[:, t], recurrence)
        assert mismatch(2 * (C * state).sum(-1).real, y[:, t], terms=400) is None


@pytest.mark.parametrize("measure", ["legs", "fourier"])
def test_the_node_at_minus_one_is_the_alternating_sum(measure):
    """At ω = -1 the paper's z is infinite; the value there is K_0 - K_1 + K_2 - ..., without any rounding luck."""
    l = 64
    Lambda, P, B, V = (value[None] for value in nplr(measure, 6))
    C, dt = draw(1, 6).to(V.dtype) @ V[0], torch.tensor([0.3], dtype=torch.float64)
    A_bar = discretize_nplr(Lambda, P, B, dt).A_bar()
    C_tilde = C - (C @ torch.linalg.matrix_power(A_bar[0], l))
    at_minus_one = _generating_function(
        Lambda, P, B, C_tilde, dt, torch.tensor([-1.0], dtype=torch.complex128)
    )
    K = s4_kernel(Lambda, P, B, C, dt, l)
    alternating = K[:, 0::2].sum(1) - K[:, 1::2].sum(1)
    assert mismatch(at_minus_one[:, 0].real, alternating, terms=l) is None
    assert mismatch(at_minus_one[:, 0], dt / 2 * (C_tilde * B).sum(1), terms=6) is None


def kernel_at(kind: str, dt_scale: float, l: int) -> torch.Tensor:
    Lambda, P, B, C, dt = layer("legs", 16, 3)
    if kind == "s4":
        return s4_kernel(Lambda, P, B, C, dt * dt_scale, l, half_modes=True)
    return s4d_kernel(Lambda, B, C, dt * dt_scale, l)


@pytest.mark.parametrize("kind", ["s4", "s4d"])
def test_another_sampling_rate_is_another_dt(kind):
    """The same signal sampled twice as often, dt halved: the same output, but for the error of the samples."""
    l = 400

    def signal(samples: int) -> torch.Tensor:
        t = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
        return torch.sin(2 * math.pi * 3 * t).expand(1, 3, -1).mT

    once = fft_conv(signal(l), kernel_at(kind, 1.0, l))
    finer = fft_conv(signal(8 * l), kernel_at(kind, 1 / 8, 8 * l))[:, 7::8]
    unchanged = fft_conv(signal(8 * l), kernel_at(kind, 1.0, 8 * l))[:, 7::8]
    size = once.abs().amax(1)
    assert ((finer - once).abs().amax(1) < 0.06 * size).all()
    assert ((unchanged - once).abs().amax(1) > 0.3 * size).all()
