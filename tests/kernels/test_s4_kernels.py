"""Every backend of s4_kernel and s4d_kernel against the dense matrix in float64, step by step."""

from __future__ import annotations

import functools

import pytest
import torch
from operator_table import LENGTHS, Case, among_nans, assert_agrees, random
from torch import Tensor

from ssmcourse.hippo import hippo_matrix
from ssmcourse.normal_plus_low_rank import nplr
from ssmcourse.s4 import s4_kernel, s4d_kernel
from ssmcourse.scan import backends
from ssmcourse.tolerance import mismatch

BACKENDS = ["cpu", "matmul", "reference"]


def powers(A_bar: Tensor, B_bar: Tensor, C: Tensor, l: int) -> Tensor:
    """C A_bar^t B_bar, one step after another: (h, l)."""
    h, K = B_bar[..., None], []
    for _ in range(l + 1):
        K.append((C[:, None] @ h)[:, 0, 0])
        h = A_bar @ h
    return torch.stack(K, 1)[:, :l]


def by_inverse(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """The bilinear rule as it is written down, with a dense inverse."""
    eye, dt = torch.eye(A.shape[-1], dtype=A.dtype), dt[:, None, None]
    inverse = torch.linalg.inv(eye - dt / 2 * A)
    return inverse @ (eye + dt / 2 * A), (dt * inverse @ B[..., None])[..., 0]


def dense_s4(Lambda, P, B, C, dt, *, l: int, half_modes: bool = False) -> Tensor:
    """diag(Lambda) - P P^H as a matrix, of all modes."""
    if half_modes:
        Lambda, P, B, C = (torch.cat([v, v.conj()], 1) for v in (Lambda, P, B, C))
    A = torch.diag_embed(Lambda) - P @ P.mH
    return powers(*by_inverse(A, B, dt.to(Lambda.real.dtype)), C, l).real


def dense_s4d(A, B, C, dt, *, l: int, method: str = "zoh") -> Tensor:
    """A diagonal matrix; zero-order hold by the exponential of [[A, B], [0, 0]], which needs no quotient."""
    n = A.shape[1]
    if method == "bilinear":
        A_bar, B_bar = by_inverse(torch.diag_embed(A), B, dt)
    else:
        block = torch.cat([torch.diag_embed(A), B[..., None]], 2)
        block = torch.cat([block, A.new_zeros(A.shape[0], 1, n + 1)], 1) * dt[:, None, None]
        both = torch.linalg.matrix_exp(block)
        A_bar, B_bar = both[:, :n, :n], both[:, :n, n]
    return 2 * powers(A_bar, B_bar, C, l).real


def s4_inputs(
    h=2, n=3, r=1, dtype=torch.complex128, steps=(0.05, 0.7), wrap=lambda t: t
) -> dict[str, Tensor]:
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    Lambda = torch.complex(-0.5 * random((h, n), seed=1).abs(), 4 * random((h, n), seed=2)).to(dtype)
    inputs = {
        "Lambda": Lambda,
        "P": random((h, n, r), dtype, seed=3),
        "B": random((h, n), dtype, seed=4),
        "C": random((h, n), dtype, seed=5),
        "dt": torch.tensor(steps, dtype=real)[:h],
    }
    return {name: wrap(value) for name, value in inputs.items()}


def s4d_inputs(**options) -> dict[str, Tensor]:
    inputs = s4_inputs(**options)
    return {"A": inputs["Lambda"], "B": inputs["B"], "C": inputs["C"], "dt": inputs["dt"]}


def measure_inputs(
    measure: str, n: int, steps, half_modes: bool, dtype=torch.complex128
) -> dict[str, Tensor]:
    Lambda, P, B, V = nplr(measure, n)
    kept, h = n // 2 if half_modes else n, len(steps)
    C = random((h, n), seed=7).to(V.dtype) @ V
    given = {"Lambda": Lambda, "P": P, "B": B}
    channels = {name: v[:kept].expand(h, *v[:kept].shape).to(dtype) for name, v in given.items()}
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    return channels | {"C": C[:, :kept].to(dtype), "dt": torch.tensor(steps, dtype=real)}


def row(name: str, make, *args, l: int = 17, options: dict | None = None, **inputs) -> Case:
    return Case(name, lambda: make(*args, **inputs), terms=16 * max(l, 1), options={"l": l} | (options or {}))


HALF = {"half_modes": True}
S4_TABLE = [
    *(row(f"l={l}", s4_inputs, l=l) for l in LENGTHS),
    *(row(f"l={l} half", s4_inputs, l=l, options=HALF) for l in LENGTHS),
    *(row(f"rank {r}", s4_inputs, r=r) for r in (0, 2, 3)),
    *(row(f"rank {r} half", s4_inputs, r=r, options=HALF) for r in (0, 2)),
    row("complex64", s4_inputs, dtype=torch.complex64),
    row("complex64 half", s4_inputs, dtype=torch.complex64, options=HALF, l=64),
    row("one mode", s4_inputs, n=1, options=HALF),
    row("no channels", s4_inputs, h=0),
    row("no modes", s4_inputs, n=0),
    row("l=0", s4_inputs, l=0),
    row("dt 0 and 100", s4_inputs, steps=(0.0, 100.0)),
    row("more channels than a block", s4_inputs, h=5, n=130, l=3, steps=(0.01, 0.1, 0.2, 0.5, 1.0)),
    row("not contiguous", s4_inputs, wrap=among_nans),
    *(
        row(f"{m} {'half' if half else 'all'}", measure_inputs, m, 4, [1e-3, 0.1, 1.0], half, options={"half_modes": half})
        for m in ("legs", "legt", "lagt", "fourier")
        for half in (False, True)
    ),
]  # fmt: skip
S4D_TABLE = [
    *(
        row(f"l={l} {method}", s4d_inputs, l=l, options={"method": method})
        for l in LENGTHS
        for method in ("zoh", "bilinear")
    ),
    row("complex64", s4d_inputs, dtype=torch.complex64, l=64),
    row("complex64 bilinear", s4d_inputs, dtype=torch.complex64, options={"method": "bilinear"}),
    row("one mode", s4d_inputs, n=1),
    row("no channels", s4d_inputs, h=0),
    row("no modes", s4d_inputs, n=0),
    row("l=0", s4d_inputs, l=0),
    row("dt 0 and 100", s4d_inputs, steps=(0.0, 100.0)),
    row("not contiguous", s4d_inputs, wrap=among_nans),
]


@pytest.mark.parametrize("case", S4_TABLE, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_s4_table(backend, case):
    call = functools.partial(s4_kernel, backend=backend)
    assert_agrees(call, dense_s4, case.make(), terms=case.terms, **case.options)


@pytest.mark.parametrize("case", S4D_TABLE, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_s4d_table(backend, case):
    call = functools.partial(s4d_kernel, backend=backend)
    assert_agrees(call, dense_s4d, case.make(), terms=case.terms, **case.options)


def test_the_backends_that_there_are():
    assert backends("s4_kernel") == backends("s4d_kernel") == BACKENDS
    with pytest.raises(ValueError, match="s4_kernel has here: auto, cpu, matmul, reference"):
        s4_kernel(**s4_inputs(), l=4, backend="fft")


# --- HiPPO in its real basis --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(("n", "l"), [(64, 300), (7, 33), (1, 8)])
@pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "fourier"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_is_that_of_hippos_dense_matrix(backend, measure, n, l, dtype):
    """From the real matrices to the kernel: nothing in between is taken on trust. legt and fourier have Λ on the
    imaginary axis, where the nodes are, and fourier at 0, where one of them is for every l."""
    n = n + n % 2 if measure == "fourier" else n
    steps = [1e-3, 0.03, 1.0, 100.0]
    A, B = hippo_matrix(measure, n)
    C, h = random((4, n), seed=7), len(steps)
    A_bar, B_bar = by_inverse(A.expand(h, n, n), B.expand(h, n), torch.tensor(steps, dtype=torch.float64))
    expected = powers(A_bar, B_bar, C, l)
    for half_modes in (False, True) if n % 2 == 0 else (False,):
        inputs = measure_inputs(measure, n, steps, half_modes)
        if dtype == torch.complex64:
            inputs = {k: v.to(torch.float32 if k == "dt" else dtype) for k, v in inputs.items()}
            wide = {k: v.to(torch.promote_types(v.dtype, torch.float64)) for k, v in inputs.items()}
            expected = dense_s4(**wide, l=l, half_modes=half_modes)  # of the rounded inputs
        K = s4_kernel(**inputs, l=l, half_modes=half_modes, backend=backend)
        assert K.dtype == inputs["dt"].dtype
        for got, wanted in zip(K, expected, strict=True):  # channel by channel: their sizes differ
            problem = mismatch(got, wanted, terms=l)
            assert problem is None, str(problem)


# --- long, stiff and packed ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_longer_kernel_begins_with_the_shorter(backend):
    inputs, diagonal = s4_inputs(r=2), s4d_inputs()
    whole, whole_diagonal = s4_kernel(**inputs, l=129), s4d_kernel(**diagonal, l=129)
    for l in (1, 2, 31, 64, 65, 128):
        assert mismatch(s4_kernel(**inputs, l=l, backend=backend), whole[:, :l], terms=l) is None
        assert mismatch(s4d_kernel(**diagonal, l=l, backend=backend), whole_diagonal[:, :l], terms=l) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_holds_at_l_4096(backend):
    """LegS with the steps of a layer: an error of Λ, Δ or a power would have grown 4096-fold."""
    inputs = measure_inputs("legs", 64, [1e-3, 1e-2, 1e-1], True, torch.complex64)
    wide = {k: v.to(torch.promote_types(v.dtype, torch.float64)) for k, v in inputs.items()}
    for K, expected in zip(
        s4_kernel(**inputs, l=4096, half_modes=True, backend=backend),
        dense_s4(**wide, l=4096, half_modes=True),
        strict=True,
    ):
        assert mismatch(K, expected) is None  # to the tolerance of one term
    diagonal = {"A": inputs["Lambda"], "B": inputs["B"], "C": inputs["C"], "dt": inputs["dt"]}
    wide = {k: v.to(torch.promote_types(v.dtype, torch.float64)) for k, v in diagonal.items()}
    t = torch.arange(4096, dtype=torch.float64)
    z = (wide["A"] * wide["dt"][:, None])[..., None]
    expected = 2 * ((wide["C"] * wide["B"])[..., None] * (torch.expm1(z) / z * wide["dt"][:, None, None]) * (z * t).exp()).sum(1).real  # fmt: skip
    for K, wanted in zip(s4d_kernel(**diagonal, l=4096, backend=backend), expected, strict=True):
        assert mismatch(K, wanted) is None


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_stiff_and_still_systems_have_finite_kernels_and_gradients(backend, method):
    """dt from 0 to 100 and A down to -1e4: exp(-1e6) is 0, and 0 is no NaN."""
    A = torch.tensor([[-1e4 + 0j, -1e-6 + 0j, -1.0 + 1e3j, 0j]], dtype=torch.complex64).repeat(5, 1)
    dt = torch.tensor([0.0, 1e-3, 1.0, 2.0, 100.0])
    ones = torch.ones_like(A)
    diagonal = [v.requires_grad_() for v in (A.clone(), ones.clone(), ones.clone(), dt.clone())]
    K = s4d_kernel(*diagonal, 200, method=method, backend=backend)
    low_rank = [v.requires_grad_() for v in (A.clone(), ones[..., None].clone(), ones.clone(), ones.clone(), dt.clone())]  # fmt: skip
    K_s4 = s4_kernel(*low_rank, 200, half_modes=True, backend=backend)
    for kernel, leaves in ((K, diagonal), (K_s4, low_rank)):
        assert kernel.isfinite().all()
        for gradient in torch.autograd.grad(kernel.square().sum(), leaves):
            assert (
                torch.view_as_real(gradient).isfinite().all()
                if gradient.is_complex()
                else gradient.isfinite().all()
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_comes_through_in_its_own_channel(backend):
    inputs, diagonal = s4_inputs(), s4d_inputs()
    inputs["B"][1, 0] = diagonal["B"][1, 0] = torch.nan
    for K in (s4_kernel(**inputs, l=9, backend=backend), s4d_kernel(**diagonal, l=9, backend=backend)):
        assert K[0].isfinite().all()
        assert K[1].isnan().all()


def test_a_bilinear_step_that_lands_on_zero():
    """Δ A = -2 makes A_bar 0: a logarithm of it would be NaN."""
    A, one = torch.tensor([[-2.0 + 0j]]), torch.ones(1, 1, dtype=torch.complex64)
    for backend in BACKENDS:
        K = s4d_kernel(A, one, one, torch.ones(1), 5, method="bilinear", backend=backend)
        assert K.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


# --- torch --------------------------------------------------------------------------------------


DERIVATIVES = {
    "s4": (s4_kernel, s4_inputs, {}),
    "s4 half": (s4_kernel, s4_inputs, HALF),
    "s4d zoh": (s4d_kernel, s4d_inputs, {"method": "zoh"}),
    "s4d bilinear": (s4d_kernel, s4d_inputs, {"method": "bilinear"}),
}


@pytest.mark.parametrize(("function", "make", "options"), DERIVATIVES.values(), ids=DERIVATIVES.keys())
@pytest.mark.parametrize("backend", BACKENDS)
def test_first_and_second_derivatives(backend, function, make, options):
    leaves = [v.requires_grad_() for v in make(h=1, n=2).values()]

    def kernel(*given):
        return function(*given, 5, backend=backend, **options)

    assert torch.autograd.gradcheck(kernel, leaves)
    if backend == "cpu":
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.gradgradcheck(kernel, leaves)
    else:
        assert torch.autograd.gradgradcheck(kernel, leaves)


@pytest.mark.parametrize("l", [1, 40])
def test_opcheck(l):
    from ssmcourse.kernels.s4_kernels import cpu

    for dtype in (torch.float64, torch.complex128):
        dense = [0.3 * random(shape, dtype, seed=1) for shape in ((3, 2, 2), (3, 2), (3, 2))]
        torch.library.opcheck(torch.ops.ssmcourse.dense_kernel_cpu.default, (*dense, l))
        given = [v.requires_grad_() for v in dense]
        assert torch.autograd.gradcheck(lambda *a: cpu.dense_kernel(*a, l), given)
    modes = [0.3 * random((3, 2), torch.complex128, seed=i) for i in range(2)]
    torch.library.opcheck(torch.ops.ssmcourse.vandermonde_cpu.default, (*modes, l))


@pytest.mark.parametrize("h", [1, 3, 70])
def test_threads_share_the_channels(h):
    """More threads than systems, a few, and more systems than a block takes: the same kernel and gradients."""
    before = torch.get_num_threads()
    steps = tuple(torch.logspace(-2, 0, h).tolist())
    for make, function, options in ((s4_inputs, s4_kernel, HALF), (s4d_inputs, s4d_kernel, {})):
        inputs = make(h=h, n=32, steps=steps)
        found = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            try:
                leaves = [v.clone().requires_grad_() for v in inputs.values()]
                K = function(*leaves, 70, backend="cpu", **options)
                found.append((K, *torch.autograd.grad(K.square().sum(), leaves)))
            finally:
                torch.set_num_threads(before)
        for one, four in zip(*found, strict=True):
            assert mismatch(four, one.detach(), terms=70) is None


def test_the_widest_argument_decides_the_dtype():
    inputs = s4_inputs(dtype=torch.complex64)
    assert s4_kernel(**inputs, l=4).dtype == torch.float32
    assert s4_kernel(**inputs | {"dt": inputs["dt"].double()}, l=4).dtype == torch.float64
    assert s4_kernel(**inputs | {"dt": inputs["dt"].bfloat16()}, l=4).dtype == torch.float32
    real = {name: value.real for name, value in inputs.items() if name != "dt"}
    assert s4_kernel(**real, dt=inputs["dt"], l=4).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"P": torch.zeros(2, 3)}, r"P: got shape \(2, 3\), expected \(h, n, r\)"),
        ({"C": torch.zeros(2, 4)}, r"C: got shape \(2, 4\), expected \(h, n\) with h=2, n=3 as in Lambda"),
        ({"dt": torch.zeros(3)}, r"dt: got shape \(3,\)"),
        ({"dt": torch.zeros(2, dtype=torch.complex64)}, "dt: got dtype torch.complex64"),
        ({"l": -1}, "l: got -1"),
        ({"l": 2.0}, "l: got 2.0"),
        ({"B": None}, "B: got NoneType"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        s4_kernel(**({**s4_inputs(), "l": 4} | change))


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="method: got 'euler', expected one of zoh, bilinear"):
        s4d_kernel(**s4d_inputs(), l=4, method="euler")
