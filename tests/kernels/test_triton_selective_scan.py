"""The Triton selective scan, forward, backward and one step, against the definition in float64."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
import test_selective_scan as scans
import torch
from operator_table import among_nans, assert_agrees, need, random, results_and_gradients
from test_selective_scan import ALL, ZOH, by_steps, case, make, marks
from traffic import counted

from ssmcourse import selective_scan, selective_state_update
from ssmcourse.tolerance import mismatch

pytest.importorskip("triton")
scan = functools.partial(selective_scan, backend="triton")
MODES = {"dt_softplus": True}


@pytest.fixture(autouse=True)
def _triton_runs_here():
    need("selective_scan", "triton")


# --- The table: what the interpreter does in seconds, and all of it -----------------------------------

SHORT = (1, 18, 4, 3)  # two steps more than a chunk of the interpreter
QUICK = [
    *(case(f"l={l}", (2, l, 4, 4)) for l in (1, 2, 3, 17)),
    case("n=16", (1, 5, 4, 16)),
    case("float32, zoh", SHORT, torch.float32, ZOH),
    case("zoh", SHORT, options=ZOH),
    case("float16", SHORT, torch.float16),
    case("bfloat16, zoh", SHORT, torch.bfloat16, ZOH),
    case("bare", SHORT, extras=(), options={"dt_softplus": False, "return_final_state": False}),
    case("D alone", SHORT, extras=("D",), options={"return_final_state": False}),
    case("z alone", SHORT, extras=("z",), options={"dt_softplus": False}),
    case("initial state alone", SHORT, extras=("initial_state",), options=ZOH),
    case("groups", (1, 5, 8, 3), B="b l g n", C="b l g n"),
    case("groups of B, zoh", (1, 5, 6, 3), B="b l g n", options=ZOH),
    case("groups of C, constant B", (1, 5, 8, 3), B="d n", C="b l g n", groups=4),
    case("constant B and C, zoh", SHORT, B="d n", C="d n", options=ZOH),
    case("constant C", SHORT, C="d n", extras=("z",)),
    case("one channel", (2, 5, 1, 3)),
    case("one state", (1, 5, 5, 1)),
    case("more channels than a block", (1, 2, 70, 8)),
    case("packed", (2, 18, 4, 2), options={"seq_idx": marks((1, 5, 12), (16, 1, 1))}),
    case("packed, zoh", (1, 18, 4, 2), options={"seq_idx": marks((7, 11))} | ZOH),
    case("packed, states not asked for", (1, 18, 4, 2), extras=("D",), B="d n",
         options={"seq_idx": marks((3, 15)), "return_final_state": False}),
    case("not contiguous", SHORT, wrap=among_nans),
    case("slices of channels", SHORT, wrap=lambda t: torch.cat([t, t * torch.nan], -1)[..., : t.shape[-1]]),
]  # fmt: skip
FULL = [row for row in (*scans.TABLE, *scans.SELDOM_COMPILED) if "complex" not in row.name]


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_table(row):
    assert_agrees(scan, by_steps, row.make(), terms=row.terms, **row.options)


@pytest.mark.slow
@pytest.mark.parametrize("row", FULL, ids=lambda row: row.name)
def test_the_whole_table(row):
    assert_agrees(scan, by_steps, row.make(), terms=row.terms, **row.options)


# --- What the other backends are asked, too -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_that_pass_their_state_on_are_the_whole(packed):
    scans.test_chunks_that_pass_their_state_on_are_the_whole("triton", packed)


@pytest.mark.parametrize("size", [4, 15, 16])
def test_two_chunks_are_the_whole(size):
    inputs = make((1, 18, 3, 2))
    whole, last = selective_scan(**inputs, **MODES, return_final_state=True, backend="reference")
    state, parts = inputs.pop("initial_state"), []
    for part in (slice(0, size), slice(size, 18)):
        here = {k: t[:, part] if t.ndim == 3 else t for k, t in inputs.items()}
        y, state = scan(**here, **MODES, initial_state=state, return_final_state=True)
        parts.append(y)
    assert mismatch(torch.cat(parts, 1), whole, terms=36) is None
    assert mismatch(state, last, terms=36) is None


@pytest.mark.slow
@pytest.mark.parametrize("b_disc", ["euler", "zoh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_ends_of_the_range(dtype, b_disc, monkeypatch):
    monkeypatch.setattr(scans, "BACKENDS", ["triton"])
    scans.test_steps_from_0_to_100_and_decay_to_minus_10000(dtype, b_disc)


@pytest.mark.parametrize("b_disc", ["euler", "zoh"])
def test_the_limit_at_zero_is_exact(b_disc):
    """dt A = 0, and within rounding of 0: Δ B either way, and gradients to match."""
    inputs = make((1, 3, 4, 2), extras=())
    inputs["A"] = torch.tensor([0, -1e-300, -1e-18, -1e-9], dtype=torch.float64)[:, None].expand(4, 2).clone()
    inputs["dt"] = inputs["dt"].abs()
    inputs["dt"][:, 1] = 0
    assert_agrees(scan, by_steps, inputs, terms=6, b_disc=b_disc)


@pytest.mark.parametrize("dt", [-100.0, 19.0, 39.0, 100.0])
def test_softplus_to_the_last_digit(dt, monkeypatch):
    monkeypatch.setattr(scans, "BACKENDS", ["triton"])
    scans.test_softplus_to_the_last_digit(dt)


def test_a_reset_forgets():
    scans.test_a_reset_forgets("triton")


def test_half_types():
    scans.test_half_activations_have_float32_states("triton")
    inputs = {k: torch.ones(1, 4, 1, dtype=torch.bfloat16) for k in ("x", "dt", "B", "C")}
    counted_to = torch.full((1, 1, 1), 256.0)  # bfloat16 counts no further
    _, state = scan(**inputs, A=torch.zeros(1, 1), initial_state=counted_to, return_final_state=True)
    assert state.item() == 260


@pytest.mark.parametrize(("b", "l"), [(2, 0), (0, 5), (0, 0)])
def test_no_steps_and_no_rows(b, l):
    scans.test_no_steps_and_no_rows("triton", b, l)


def test_nothing_that_grows_is_nothing():
    """exp(dt A) of a few steps together is infinite, and the state that enters them is 0."""
    inputs = make((1, 12, 3, 2), torch.float32, extras=())
    inputs["A"], inputs["dt"] = torch.ones(3, 2), torch.full((1, 12, 3), 60.0)
    inputs["x"][:, :11] = 0
    got, expected = scan(**inputs), selective_scan(**inputs, backend="reference")
    assert expected.isfinite().all()
    assert mismatch(got, expected, terms=20) is None


def test_tiny_gates_then_huge_ones():
    """A state of 1e30 through gates e^-60 twice and e^60 twice, whose products no float32 holds."""
    ones = torch.ones(1, 6, 1)
    dt = torch.tensor([60.0, 60, -60, -60, 0, 0])[None, :, None]
    given = {"x": 0 * ones, "dt": dt, "A": -torch.ones(1, 1), "B": ones, "C": ones}
    y = scan(**given, initial_state=torch.full((1, 1, 1), 1e30))
    assert y[0, -1, 0].item() == pytest.approx(1e30, rel=1e-4)


def test_a_nan_stays_in_its_sequence():
    inputs = make((1, 24, 3, 2), torch.float32, extras=("D",))
    inputs["x"][0, 6, 1] = torch.nan
    upstream = torch.ones(1, 24, 3)
    upstream[0, 20, 1] = torch.nan
    found = []
    for backend in ("reference", "triton"):
        leaves = {k: t.clone().requires_grad_() for k, t in inputs.items()}
        y = selective_scan(**leaves, dt_softplus=True, seq_idx=marks((5, 12, 7)), backend=backend)
        gradients = torch.autograd.grad(y, list(leaves.values()), upstream)
        found.append([t.isnan() for t in (y, *gradients)])
    for expected, got in zip(*found, strict=True):
        assert torch.equal(got, expected)


def test_a_decay_to_nothing_leaves_steps_past_the_end_alone():
    inputs = make((1, 5, 2, 2), torch.float32, extras=("initial_state",))
    inputs["A"][0, 0], inputs["dt"] = -torch.inf, inputs["dt"].abs()
    y, state = scan(**inputs, return_final_state=True)
    expected, last = selective_scan(**inputs, return_final_state=True, backend="reference")
    assert mismatch(y, expected, terms=10) is None
    assert mismatch(state, last, terms=10) is None


def test_the_same_call_gives_the_same_bits():
    inputs = make((2, 5, 20, 8), torch.float32)
    (first, _), (second, _) = (results_and_gradients(scan, inputs, MODES) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_tensor_in_two_places():
    t, A = random((1, 5, 3), seed=1).requires_grad_(), -torch.ones(3, 3, dtype=torch.float64)
    got = torch.autograd.grad(scan(t, t, A, t, t, dt_softplus=True).sum(), t)[0]
    expected = selective_scan(t, t, A, t, t, dt_softplus=True, backend="reference").sum()
    assert mismatch(got, torch.autograd.grad(expected, t)[0], terms=45) is None


# --- What is refused, the rules of torch, and the model of the bytes ----------------------------------


def test_what_the_kernel_cannot_take_is_refused():
    inputs = make((1, 3, 2, 2), torch.complex64)
    with pytest.raises(
        ValueError,
        match=r"^backend: got 'triton', which does not take complex A\. "
        r"selective_scan has here: auto, cpu, reference$",
    ):
        scan(**inputs)
    with pytest.raises(
        ValueError, match=r"^A: got n = 129 states a channel, expected at most 128: .*reference"
    ):
        scan(**make((1, 1, 1, 129), extras=()))


def test_opcheck():
    x, dt, A, B, C, D, z, bias, first = make((1, 3, 2, 2)).values()
    scan(x, dt, A, B, C)  # registers the operators
    sequence = torch.tensor([[0, 0, 1]])
    args = (x, dt, A, B[:, :, None], C[:, :, None], D, z, bias, first, sequence, 2, True, False, True)
    args = tuple(
        t.requires_grad_() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in args
    )
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.ssmcourse.selective_scan_triton.default, args, test_utils=checks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_moved(dtype, monkeypatch):
    """With the chunks of a GPU: at most 1.3 times what goes in and comes out, the kept states included."""
    from ssmcourse.kernels.selective_scan import triton_arguments, triton_backward

    for module in (triton_arguments, triton_backward):
        monkeypatch.setattr(module, "CHUNK", 64)
    l, d, n, blocks = 64, 128, 16, 2
    inputs = make((1, l, d, n), dtype, extras=("D", "z", "dt_bias"))
    in_and_out = sum(t.nbytes for t in inputs.values()) + inputs["x"].nbytes
    of_channels = 4 * inputs["x"].nbytes  # x, dt, z and y
    of_states = blocks * (inputs["B"].nbytes + inputs["C"].nbytes)
    of_parameters = 4 * d * (n + 2)
    kept = 4 * d * n * l // 64
    for keep in (False, True):
        given = {k: t.requires_grad_(keep) for k, t in inputs.items()}
        with counted() as forward:
            scan(**given, **MODES)
        assert forward.bytes_moved() == of_channels + of_states + of_parameters + keep * kept
        assert forward.bytes_moved() < 1.3 * in_and_out


# --- One step -----------------------------------------------------------------------------------------


def one_step(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, *, dt_softplus=False, b_disc="euler"):
    from ssmcourse.kernels.state_update.triton_selective import selective_state_update as update

    B, C = (M[:, None] if M.ndim == 2 else M for M in (B, C))
    return update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, b_disc == "zoh")


@pytest.mark.parametrize(
    ("shape", "dtype", "how", "options"),
    [
        ((2, 5, 3), torch.float64, {}, MODES),
        ((1, 40, 16), torch.float32, {}, MODES | ZOH),
        ((2, 4, 1), torch.float16, {}, {}),
        ((1, 4, 3), torch.bfloat16, {"B": "b l g n"}, MODES),
        ((1, 4, 3), torch.float64, {"C": "b l g n"}, MODES | ZOH),
        ((2, 5, 3), torch.float64, {"extras": ("initial_state",)}, {}),
        ((2, 5, 3), torch.float32, {"extras": ("z", "initial_state")}, MODES),
    ],
)
def test_update_is_one_step(shape, dtype, how, options):
    b, d, n = shape
    given = make((b, 1, d, n), dtype, **{"extras": ALL} | how)
    inputs = {"state": given.pop("initial_state")}
    inputs |= {k: t[:, 0] if k in ("x", "dt", "B", "C", "z") else t for k, t in given.items()}
    assert_agrees(one_step, selective_state_update, inputs, terms=b * d * n, **options)


def test_steps_go_on_where_a_prefill_ends():
    inputs = make((2, 9, 4, 3))
    whole = selective_scan(**inputs, **MODES, backend="reference")
    of_time = {k: inputs[k] for k in ("x", "dt", "B", "C", "z")}
    start = {k: t[:, :5] for k, t in of_time.items()}
    y, state = scan(**inputs | start, **MODES, return_final_state=True)
    others = {k: inputs[k] for k in ("A", "D", "dt_bias")}
    steps = [y]
    for t in range(5, 9):
        y_t, state = one_step(state, **{k: v[:, t] for k, v in of_time.items()}, **others, **MODES)
        steps.append(y_t[:, None])
    assert mismatch(torch.cat(steps, 1), whole, terms=27) is None


def test_update_refuses_complex_numbers():
    inputs = make((1, 1, 2, 2), torch.complex64, extras=("initial_state",))
    state = inputs.pop("initial_state")
    with pytest.raises(ValueError, match=r"^A: got torch\.complex64, expected a real dtype"):
        one_step(state, **{k: t if k == "A" else t[:, 0] for k, t in inputs.items()})


# --- Compiled for a GPU, on a machine without one -----------------------------------------------------

AHEAD_OF_TIME = """
from ssmcourse.kernels.compiling import TARGETS, compiled
from ssmcourse.kernels.selective_scan import triton_backward, triton_forward
from ssmcourse.kernels.state_update import triton_selective

for module in (triton_forward, triton_backward, triton_selective):
    found = compiled(next(iter(module.compilations())), TARGETS[1])
    assert not found.problems, found
print("compiled")
"""


def test_compiles_ahead_of_time(tmp_path):
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "NUMBA_ENABLE_CUDASIM": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    program = [sys.executable, "-c", AHEAD_OF_TIME]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    assert "compiled" in done.stdout
