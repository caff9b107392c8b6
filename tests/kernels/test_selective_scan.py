"""Every backend of the selective scan against a loop over its definition, written out here in float64."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from operator_table import LENGTHS, Case, among_nans, assert_agrees, need, random, results_and_gradients
from torch import Tensor

from ssmcourse import selective_scan
from ssmcourse.kernels.selective_scan.cpu_jobs import read_arguments
from ssmcourse.tolerance import mismatch

BACKENDS = ["reference", "cpu"]
CHUNK = 32  # of the CPU backend


# --- The oracle: h_t = Ā h_{t-1} + B̄ x_t, one step, one row after another ------------------------------


def held_share(z: Tensor) -> Tensor:
    """(e^z - 1) / z: by its series near 0, where the quotient loses its digits."""
    near = z.abs() < 0.3
    inside = torch.where(near, z, 0)
    series = sum(inside**k / math.factorial(k + 1) for k in range(14))
    outside = torch.where(near, 1, z)
    return torch.where(near, series, (torch.exp(outside) - 1) / outside)


def by_steps(
    x, dt, A, B, C, D=None, z=None, dt_bias=None, *, dt_softplus=False, b_disc="euler", initial_state=None,
    return_final_state=False, seq_idx=None,
):  # fmt: skip
    """The definition for each row alone; with seq_idx for each sequence alone."""
    (rows, l, d), n = x.shape, A.shape[1]
    delta = dt if dt_bias is None else dt + dt_bias
    delta = torch.log1p(torch.exp(-delta.abs())) + delta.clamp(min=0) if dt_softplus else delta
    channel = torch.arange(d)

    def of_step(M, i, t):
        """(d, n)"""
        if M.ndim == 2:
            return M
        if M.ndim == 3:
            return M[i, t].expand(d, n)
        return M[i, t][channel // (d // M.shape[2])]

    ys, finals = [], []
    for i in range(rows):
        h = torch.zeros(d, n, dtype=A.dtype) if initial_state is None else initial_state[i]
        for t in range(l):
            if seq_idx is not None and t > 0 and seq_idx[i, t] != seq_idx[i, t - 1]:
                finals.append(h)
                h = torch.zeros_like(h)
            exponent = delta[i, t][:, None] * A
            share = held_share(exponent) if b_disc == "zoh" else 1
            entering = delta[i, t][:, None] * share * of_step(B, i, t) * x[i, t][:, None]
            h = torch.exp(exponent) * h + entering
            y = (of_step(C, i, t) * h).sum(-1)
            ys.append(2 * y.real if A.is_complex() else y)
        finals.append(h)
    y = torch.stack(ys).reshape(rows, l, d) if l else x
    y = y if D is None else y + D * x
    y = y if z is None else y * z / (1 + torch.exp(-z))
    return (y, torch.stack(finals)) if return_final_state else y


# --- The table --------------------------------------------------------------------------------

ALL = ("D", "z", "dt_bias", "initial_state")
TYPES = [torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]


def make(shape, dtype=torch.float64, *, B="b l n", C="b l n", extras=ALL, groups=2, wrap=lambda t: t):
    """Inputs of (b, l, d, n). Complex dtype: A, B, C and the state are; half: parameters are float32."""
    (b, l, d, n), wide, real = shape, torch.promote_types(dtype, torch.float32), dtype.to_real()
    forms = {"b l n": (b, l, n), "b l g n": (b, l, groups, n), "d n": (d, n)}
    A = -torch.exp(random((d, n), wide.to_real(), seed=3))
    inputs = {
        "x": random((b, l, d), real, seed=1),
        "dt": random((b, l, d), real, seed=2),
        "A": torch.complex(A, 3 * random((d, n), wide.to_real(), seed=4)) if dtype.is_complex else A,
        "B": random(forms[B], dtype, seed=5),
        "C": random(forms[C], dtype, seed=6),
        "D": random((d,), wide.to_real(), seed=7),
        "z": random((b, l, d), real, seed=8),
        "dt_bias": random((d,), wide.to_real(), seed=9),
        "initial_state": random((b, d, n), wide, seed=10),
    }
    return {k: wrap(t) for k, t in inputs.items() if k not in ALL or k in extras}


def case(name, shape=(2, 19, 6, 3), dtype=torch.float64, options=None, **how) -> Case:
    b, l, _, n = shape
    standard = {"dt_softplus": True, "return_final_state": True}
    # y sums n products for each of l steps; gradients of parameters sum over rows and time as well
    return Case(name, functools.partial(make, shape, dtype, **how), b * l * n, standard | (options or {}))


def marks(*lengths: tuple[int, ...]) -> Tensor:
    """seq_idx of rows made of sequences of these lengths."""
    return torch.stack([torch.repeat_interleave(torch.arange(len(r)), torch.tensor(r)) for r in lengths])


ZOH = {"b_disc": "zoh"}
TABLE = [
    *(case(f"l={l}", (2, l, 6, 3)) for l in LENGTHS),
    *(case(f"{dtype}".removeprefix("torch."), dtype=dtype) for dtype in TYPES),
    case("zoh", options=ZOH),
    case("zoh float32", dtype=torch.float32, options=ZOH),
    # A kernel is compiled for every dtype, rule and form of B and C; for complex numbers, for this form mostly.
    *(case(f"{dtype}, zoh".removeprefix("torch."), dtype=dtype, B="b l g n", C="d n", options=ZOH) for dtype in COMPLEX),
    *(case(f"without {name}", extras=[e for e in ALL if e != name]) for name in ALL),
    case("bare", extras=(), options={"dt_softplus": False, "return_final_state": False}),
    case("D alone", extras=("D",), options={"return_final_state": False}),
    case("z alone", extras=("z",), options={"dt_softplus": False}),
    case("groups", (2, 35, 8, 3), B="b l g n", C="b l g n"),
    case("groups of B", (2, 35, 8, 3), B="b l g n"),
    case("groups of C", (2, 35, 8, 3), C="b l g n", groups=4),
    case("groups of one channel", (2, 35, 8, 3), B="b l g n", C="b l g n", groups=8),
    case("constant B", (2, 35, 6, 3), B="d n"),
    case("constant C", (2, 35, 6, 3), C="d n"),
    case("constant B and C", (2, 35, 6, 3), B="d n", C="d n"),
    case("constant B, C in groups", (2, 35, 6, 3), B="d n", C="b l g n"),
    case("one channel", (2, 17, 1, 3)),
    case("one state", (2, 17, 5, 1)),
    case("blocks of channels", (1, 3, 600, 16)),
    case("blocks of channels in groups", (1, 3, 600, 8), B="b l g n", C="b l g n"),
    case("packed", (2, 35, 5, 2), options={"seq_idx": marks((1, 10, 24), (33, 1, 1))}),
    case("packed at a chunk's edge", (2, 66, 5, 2), options={"seq_idx": marks((32, 34), (31, 1, 34))}),
    case("packed, states not asked for", (2, 35, 5, 2),
         options={"seq_idx": marks((1, 10, 24), (33, 1, 1)), "return_final_state": False}),
    case("packed, not at all", (2, 9, 5, 2), options={"seq_idx": torch.full((2, 9), 7)}),
    case("packed, constant B", (1, 40, 5, 2), B="d n", options={"seq_idx": marks((3, 37)).to(torch.int32)}),
    case("not contiguous", wrap=among_nans),
    case("transposed", wrap=lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)),
]  # fmt: skip


SELDOM_COMPILED = [
    case("float16", dtype=torch.float16),
    case("bfloat16 in groups, zoh", dtype=torch.bfloat16, B="b l g n", C="d n", options=ZOH),
    case("complex, Euler", dtype=torch.complex128),
    case("complex, Euler, constant B and C", dtype=torch.complex128, B="d n", C="d n"),
    case("constant B and C, zoh", B="d n", C="d n", options=ZOH),
    case("complex, packed", dtype=torch.complex64, options={"seq_idx": marks((3, 16), (19,))}),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_table(backend, row):
    need("selective_scan", backend)
    call = functools.partial(selective_scan, backend=backend)
    assert_agrees(call, by_steps, row.make(), terms=row.terms, **row.options)


@pytest.mark.parametrize("row", SELDOM_COMPILED, ids=lambda row: row.name)
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.slow)])
def test_table_of_what_takes_another_compilation(backend, row):
    test_table(backend, row)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_that_pass_their_state_on_are_the_whole(backend, packed):
    inputs = make((2, 70, 5, 3), extras=("D", "z", "dt_bias"))
    seq_idx = marks((20, 50), (40, 30)) if packed else None
    scan = functools.partial(selective_scan, dt_softplus=True, backend=backend)
    whole = scan(**inputs, seq_idx=seq_idx)
    for size in (1, 31, 32, 50):
        state, parts, before = None, [], None
        for start in range(0, 70, size):
            part = slice(start, start + size)
            here = {k: t[:, part] if t.ndim == 3 else t for k, t in inputs.items()}
            if packed and before is not None:  # a row that starts anew forgets what came before
                same = (seq_idx[:, start] == before)[:, None, None]
                state = torch.where(same, state, 0)
            marked = None if not packed else seq_idx[:, part]
            y, states = scan(**here, initial_state=state, seq_idx=marked, return_final_state=True)
            parts.append(y)
            if packed:
                changes = 1 + (marked[:, 1:] != marked[:, :-1]).sum(1)
                states, before = states[changes.cumsum(0) - 1], marked[:, -1]
            state = states
        assert mismatch(torch.cat(parts, 1), whole, terms=210) is None, f"chunks of {size}"


# --- Far ends of the range --------------------------------------------------------------------


def finite_and_right(inputs, terms, **options):
    for backend in BACKENDS:
        call = functools.partial(selective_scan, backend=backend)
        got, _ = results_and_gradients(call, inputs, options)
        assert all(torch.isfinite(t).all() for t in got.values()), backend
        assert_agrees(call, by_steps, inputs, terms=terms, **options)


@pytest.mark.parametrize("b_disc", ["euler", "zoh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_from_0_to_100_and_decay_to_minus_10000(dtype, b_disc):
    inputs = make((1, 40, 6, 4), dtype, extras=("D", "initial_state"))
    inputs["dt"] = torch.linspace(0, 1, 240, dtype=dtype).reshape(1, 40, 6) ** 4 * 100
    inputs["A"] = -torch.logspace(-6, 4, 24, dtype=dtype).reshape(6, 4)
    inputs["A"][0, 0] = 0
    finite_and_right(inputs, 400, b_disc=b_disc)


@pytest.mark.parametrize("b_disc", ["euler", "zoh"])
def test_the_limit_at_zero_is_exact(b_disc):
    """dt A = 0, and within rounding of 0: Δ B either way, and gradients to match."""
    inputs = make((1, 8, 4, 3), extras=())
    inputs["A"] = torch.tensor([0, -1e-300, -1e-18, -1e-9], dtype=torch.float64)[:, None].expand(4, 3).clone()
    inputs["dt"] = inputs["dt"].abs()
    inputs["dt"][:, 3] = 0
    finite_and_right(inputs, 24, b_disc=b_disc)
    zoh, euler = (selective_scan(**inputs, b_disc=rule, backend="cpu") for rule in ("zoh", "euler"))
    assert mismatch(zoh[..., :3], euler[..., :3], terms=24) is None


@pytest.mark.parametrize("dt", [-100.0, 19.0, 25.0, 39.0, 100.0])
def test_softplus_to_the_last_digit(dt):
    """torch's own becomes x at 20, where log(1 + e^x) is still 2e-9 more."""
    inputs = make((1, 5, 3, 2), extras=())
    inputs["A"] = inputs["A"] / 100
    inputs["dt"] = inputs["dt"] + dt
    finite_and_right(inputs, 10, dt_softplus=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_forgets(backend):
    """dt A = -1e4 at one step, -0.01 at the others: what came before leaves no trace."""
    inputs = make((1, 80, 3, 2), torch.float32, extras=())
    inputs["A"] = torch.full((3, 2), -1.0)
    inputs["dt"] = torch.full((1, 80, 3), 0.01)
    inputs["dt"][:, 40] = 1e4
    inputs["x"][:, 40] *= 1e-4  # Euler's input is Δ B x
    inputs["x"][:, :40] *= 1e15
    after = selective_scan(**inputs, backend=backend)[:, 40:]
    late = {k: t.double()[:, 40:] if t.ndim == 3 else t.double() for k, t in inputs.items()}
    problem = mismatch(after, by_steps(**late), terms=80)
    assert problem is None, str(problem)


def test_growing_states_overflow_to_infinity():
    """A gate above 1 is not forbidden: NaN and infinity are what the definition gives."""
    inputs = make((1, 12, 2, 1), torch.float32, extras=())
    inputs["A"], inputs["dt"] = torch.full((2, 1), 1.0), torch.full((1, 12, 2), 60.0)
    inputs["B"], inputs["C"], inputs["x"] = (t.abs() for t in (inputs["B"], inputs["C"], inputs["x"]))
    inputs["x"][0, 5, 1] = torch.nan
    expected = selective_scan(**inputs, backend="reference")
    assert torch.isinf(expected).any()
    assert torch.isnan(expected).any()
    assert mismatch(selective_scan(**inputs, backend="cpu"), expected, terms=12) is None


def test_silence_does_not_slow_down():
    """States that fade to denormal numbers are set to zero now and then: so the end of this is exactly 0."""
    inputs = make((1, 2000, 3, 2), torch.float32, extras=("initial_state",))
    inputs["x"] = torch.zeros_like(inputs["x"])
    inputs["A"], inputs["dt"] = torch.full((3, 2), -0.1), torch.ones_like(inputs["dt"])
    _, state = selective_scan(**inputs, return_final_state=True, backend="cpu")
    assert torch.equal(state, torch.zeros_like(state))


# --- Half types, nothing at all ---------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_activations_have_float32_states(backend):
    inputs = make((2, 9, 4, 3), torch.bfloat16)
    y, state = selective_scan(**inputs, return_final_state=True, backend=backend)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32


def test_half_activations_are_converted_in_the_kernel():
    """A copy of them in float32 would take half as long as the scan, and twice their memory."""
    inputs = make((2, 9, 4, 3), torch.bfloat16)
    del inputs["initial_state"]
    given = read_arguments(*inputs.values(), sequence=None, dt_softplus=True)
    assert {array.dtype.name for array in (given.x, given.dt, given.B, given.C, given.z)} == {"uint16"}
    assert given.x.ctypes.data == inputs["x"].data_ptr()


def test_half_sums_are_taken_in_float32():
    """4096 times 1 is beyond what bfloat16 can count one by one (256)."""
    inputs = {k: torch.ones(1, 4096, 1, dtype=torch.bfloat16) for k in ("x", "dt", "B", "C")}
    inputs["A"] = torch.zeros(1, 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    y, state = selective_scan(**inputs, dt_bias=bias, return_final_state=True, backend="cpu")
    assert state.item() == 4096
    y.sum().backward()
    assert mismatch(bias.grad, [4096 * 4097 / 2]) is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("b", "l"), [(2, 0), (0, 5), (0, 0)])
def test_no_steps_and_no_rows(backend, b, l):
    inputs = {k: t.requires_grad_() for k, t in make((b, l, 4, 3)).items()}
    y, state = selective_scan(**inputs, return_final_state=True, backend=backend)
    assert y.shape == (b, l, 4)
    assert torch.equal(state, inputs["initial_state"])
    gradients = torch.autograd.grad((y.sum(), state.sum()), list(inputs.values()), allow_unused=True)
    assert all(g is None or g.shape == t.shape for g, t in zip(gradients, inputs.values(), strict=True))
    assert torch.equal(gradients[-1], torch.ones(b, 4, 3, dtype=torch.float64))


# --- Several threads --------------------------------------------------------------------------


@pytest.fixture
def six_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


SHARED_OUT = {
    "rows": ((7, 40, 20, 2), {}),
    "blocks of channels": ((1, 40, 200, 2), {}),
    "blocks of groups": ((1, 40, 256, 2), {"B": "b l g n", "C": "b l g n"}),
    "pieces of l": ((1, 1100, 3, 2), {}),
    "pieces of l, constant B": ((1, 800, 3, 2), {"B": "d n"}),
    "pieces of l, packed": ((1, 1100, 3, 2), {"options": {"seq_idx": marks((200, 7, 400, 493))}}),
    "pieces of l, complex": ((1, 600, 2, 2), {"dtype": torch.complex128, "B": "b l g n", "C": "d n", "options": ZOH}),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "how"), SHARED_OUT.values(), ids=SHARED_OUT.keys())
@pytest.mark.usefixtures("six_threads")
def test_threads_share_the_work(shape, how):
    row = case("", shape, **how)
    call = functools.partial(selective_scan, backend="cpu")
    alone = functools.partial(selective_scan, backend="reference")
    assert_agrees(call, alone, row.make(), terms=row.terms, **row.options)


@pytest.mark.usefixtures("six_threads")
def test_a_nan_stays_in_its_sequence():
    """Pieces of l pass states on, and backward their gradients: neither over the start of a sequence."""
    inputs = make((1, 1100, 3, 2), torch.float32, extras=("D",))
    inputs["x"][0, 10, 1] = torch.nan
    upstream = torch.ones(1, 1100, 3)
    upstream[0, 1000, 1] = torch.nan
    found = []
    for backend in BACKENDS:
        leaves = {k: t.clone().requires_grad_() for k, t in inputs.items()}
        y = selective_scan(**leaves, dt_softplus=True, seq_idx=marks((300, 300, 500)), backend=backend)
        gradients = torch.autograd.grad(y, list(leaves.values()), upstream)
        found.append([t.isnan() for t in (y, *gradients)])
    for reference, cpu in zip(*found, strict=True):
        assert torch.equal(cpu, reference)


@pytest.mark.usefixtures("six_threads")
def test_nothing_that_grows_is_nothing():
    """Over a piece exp(dt A) is infinite, and the state that enters it is 0."""
    inputs = make((1, 1100, 3, 2), torch.float32, extras=())
    inputs["A"], inputs["dt"] = torch.ones(3, 2), torch.ones(1, 1100, 3)
    inputs["x"][:, :1090] = 0
    got, expected = (selective_scan(**inputs, backend=backend) for backend in ("cpu", "reference"))
    assert expected.isfinite().all()
    assert mismatch(got, expected, terms=20) is None


@pytest.mark.usefixtures("six_threads")
def test_the_same_call_gives_the_same_bits():
    inputs = make((2, 100, 300, 4), torch.float32)
    call = functools.partial(selective_scan, dt_softplus=True, backend="cpu")
    (first, _), (second, _) = (results_and_gradients(call, inputs, {}) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
