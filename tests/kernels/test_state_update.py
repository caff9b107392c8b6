"""The steps of generation on the CPU, against a loop over channels in float64, and when torch's own are used."""

from __future__ import annotations

import math

import pytest
import torch
from operator_table import random
from torch import Tensor

from ssmcourse import causal_conv1d_update, selective_state_update, ssd_state_update
from ssmcourse.kernels import plain, runtime
from ssmcourse.tolerance import mismatch

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [F64, F32, BF16, F16]


@pytest.fixture
def compiled(monkeypatch):
    """The names of the operators whose compiled step was chosen."""
    if runtime.why_absent("cpu"):
        pytest.skip("there is no Numba")
    chosen, choose = [], runtime.choose

    def watched(operator: str, backend: str, where: str, *more):
        found = choose(operator, backend, where, *more)
        if found is runtime._OPERATORS[operator].get("cpu"):
            chosen.append(operator)
        return found

    monkeypatch.setattr(runtime, "choose", watched)
    return chosen


def agree(got, expected, terms: int) -> None:
    for g, e in zip(got, expected, strict=True):
        problem = mismatch(g, e, terms=terms)
        assert problem is None, str(problem)


def softplus(v: float) -> float:
    return max(v, 0.0) + math.log1p(math.exp(-abs(v)))


def silu(v: float) -> float:
    return v / (1 + math.exp(-v))


# --- Selective scan ------------------------------------------------------------------------------


def selective_inputs(b, d, n, g, dtype, extras=("D", "z", "dt_bias")) -> dict[str, Tensor]:
    wide = torch.promote_types(dtype, F32)
    made = {
        "state": random((b, d, n), wide, seed=1),
        "x": random((b, d), dtype, seed=2),
        "dt": random((b, d), dtype, seed=3).abs(),
        "A": -random((d, n), wide, seed=4).exp(),
        "B": random((b, g, n) if g else (b, n), dtype, seed=5),
        "C": random((b, n), dtype, seed=6),
        "D": random((d,), wide, seed=7),
        "z": random((b, d), dtype, seed=8),
        "dt_bias": random((d,), wide, seed=9),
    }
    return {k: v for k, v in made.items() if k in extras or k not in ("D", "z", "dt_bias")}


def selective_by_loop(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, *, dt_softplus, zoh):
    (b, d, n), groups = state.shape, B.shape[1] if B.ndim == 3 else 1
    y, new = torch.empty(b, d, dtype=F64), torch.empty(b, d, n, dtype=F64)
    for row in range(b):
        for i in range(d):
            delta = float(dt[row, i]) + (0.0 if dt_bias is None else float(dt_bias[i]))
            delta = softplus(delta) if dt_softplus else delta
            total = 0.0
            for j in range(n):
                a = delta * float(A[i, j])
                share = math.expm1(a) / a if zoh else 1.0
                B_j = float(B[row, i // (d // groups), j]) if B.ndim == 3 else float(B[row, j])
                h = math.exp(a) * float(state[row, i, j]) + share * delta * B_j * float(x[row, i])
                new[row, i, j], total = h, total + float(C[row, j]) * h
            total += 0.0 if D is None else float(D[i]) * float(x[row, i])
            y[row, i] = total if z is None else total * silu(float(z[row, i]))
    return y, new


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "extras", "options"),
    [
        ((2, 6, 4, 2), ("D", "z", "dt_bias"), {"dt_softplus": True}),
        ((3, 5, 16, 0), ("z",), {"dt_softplus": True, "b_disc": "zoh"}),
        ((1, 70, 17, 1), ("D",), {}),  # more channels than a block
        ((1, 1, 1, 0), ("dt_bias",), {}),
    ],
    ids=str,
)
def test_selective_step(sizes, extras, options, dtype, compiled):
    given = selective_inputs(*sizes, dtype, extras)
    before = {k: v.clone() for k, v in given.items()}
    got = selective_state_update(**given, **options)
    expected = selective_by_loop(
        **given, dt_softplus=options.get("dt_softplus", False), zoh="b_disc" in options
    )
    assert compiled == ["selective_state_update"]
    agree(got, expected, terms=sizes[2] + 8)
    assert got[0].dtype == dtype
    assert got[1].dtype == torch.promote_types(dtype, F32)
    assert all(torch.equal(given[k], before[k]) for k in given)  # the state too


def test_zero_order_hold_where_its_quotient_is_nearly_0_over_0():
    given = selective_inputs(1, 8, 4, 0, F64, ()) | {
        "A": torch.linspace(-1e-9, -1e-3, 32, dtype=F64).view(8, 4)
    }
    got = selective_state_update(**given, b_disc="zoh")
    agree(got, selective_by_loop(**given, dt_softplus=False, zoh=True), terms=12)


# --- SSD -----------------------------------------------------------------------------------------


def ssd_inputs(b, h, p, g, n, D_shape, dtype, gated=True) -> dict[str, Tensor]:
    wide = torch.promote_types(dtype, F32)
    made = {
        "state": random((b, h, p, n), wide, seed=1),
        "x": random((b, h, p), dtype, seed=2),
        "dt": random((b, h), dtype, seed=3),
        "A": -random((h,), wide, seed=4).exp(),
        "B": random((b, g, n), dtype, seed=5),
        "C": random((b, g, n), dtype, seed=6),
    }
    if D_shape:
        made["D"] = random(D_shape, wide, seed=7)
    if gated:
        made |= {"z": random((b, h, p), dtype, seed=8), "dt_bias": random((h,), wide, seed=9)}
    return made


def ssd_by_loop(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, *, dt_softplus, dt_limit):
    (b, h, p, n), g = state.shape, B.shape[1]
    y, new = torch.empty(b, h, p, dtype=F64), torch.empty(b, h, p, n, dtype=F64)
    for row in range(b):
        for i in range(h):
            delta = float(dt[row, i]) + (0.0 if dt_bias is None else float(dt_bias[i]))
            delta = softplus(delta) if dt_softplus else delta
            delta = min(max(delta, dt_limit[0]), dt_limit[1])
            B_i, C_i = (M[row, i // (h // g)].double() for M in (B, C))
            for m in range(p):
                x_m = float(x[row, i, m])
                new[row, i, m] = math.exp(delta * float(A[i])) * state[row, i, m].double() + delta * x_m * B_i
                total = float(new[row, i, m] @ C_i)
                if D is not None:
                    total += float(D[i] if D.ndim == 1 else D[i, m]) * x_m
                y[row, i, m] = total if z is None else total * silu(float(z[row, i, m]))
    return y, new


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "gated", "options"),
    [
        ((2, 4, 3, 2, 5, (4,)), True, {"dt_softplus": True, "dt_limit": (0.3, 0.9)}),
        ((1, 6, 2, 3, 33, (6, 2)), False, {"dt_softplus": True}),
        ((3, 1, 1, 1, 1, ()), False, {"dt_limit": (-1.0, 1.0)}),
    ],
    ids=str,
)
def test_ssd_step(sizes, gated, options, dtype, compiled):
    given = ssd_inputs(*sizes, dtype, gated=gated)
    before = given["state"].clone()
    got = ssd_state_update(**given, **options)
    full = {"dt_softplus": False, "dt_limit": (0.0, math.inf)} | options
    assert compiled == ["ssd_state_update"]
    agree(got, ssd_by_loop(**given, **full), terms=sizes[4] + 8)
    assert (got[0].dtype, got[1].dtype) == (dtype, torch.promote_types(dtype, F32))
    assert torch.equal(given["state"], before)


# --- Convolution -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "state_dtype", "weight_dtype"),
    [
        (F64, F64, F64),
        (F32, F32, F32),
        (BF16, BF16, F32),
        (BF16, F32, F32),
        (F32, BF16, F32),
        (F16, F16, F16),
    ],
    ids=str,
)
@pytest.mark.parametrize("w", [1, 2, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_step(dtype, state_dtype, weight_dtype, w, activation, compiled):
    x, state = random((2, 5), dtype, seed=1), random((2, w - 1, 5), state_dtype, seed=2)
    weight = random((5, w), weight_dtype, seed=3)
    bias = random((5,), weight_dtype, seed=4) if w > 1 else None
    given = state.clone()
    y, new = causal_conv1d_update(x, state, weight, bias, activation=activation)
    value = torch.zeros(2, 5, dtype=F64)
    known = [*state.double().unbind(1), x.double()]
    for j in range(w):
        value += weight[:, j].double() * known[j]
    value += 0 if bias is None else bias.double()
    value = value / (1 + (-value).exp()) if activation else value
    assert set(compiled) == {"causal_conv1d_update"}
    agree((y,), (value,), terms=w + 2)
    assert torch.equal(
        new.double(), torch.stack([k.to(dtype).double() for k in known[1:]] or [x.double()], 1)[:, : w - 1]
    )
    assert y.dtype == new.dtype == dtype
    assert torch.equal(state, given)


# --- What all of them share --------------------------------------------------------------------------


def test_many_rows_are_shared_out_among_threads():
    given = selective_inputs(33, 128, 17, 1, F32)
    one = selective_state_update(**given)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = selective_state_update(**given)
    finally:
        torch.set_num_threads(threads)
    assert given["state"].numel() > 1 << 16
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


def test_slices_and_transposes_are_read_right():
    given = selective_inputs(3, 6, 4, 2, F32)
    apart = {k: torch.stack([v, v], -1)[..., 0] for k, v in given.items()}
    apart["A"] = given["A"].mT.contiguous().mT
    assert not any(v.is_contiguous() for v in apart.values())
    agree(selective_state_update(**apart), selective_state_update(**given), terms=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(value):
    given = ssd_inputs(2, 2, 3, 1, 4, (2,), F32)
    clean = ssd_state_update(**given, dt_softplus=True)
    given["x"][0, 0, 0] = value
    y, state = ssd_state_update(**given, dt_softplus=True)
    assert not y[0, 0, 0].isfinite()
    assert not state[0, 0, 0].isfinite().any()
    assert torch.equal(y[1], clean[0][1])
    assert torch.equal(state[0, 1], clean[1][0, 1])


def test_a_nan_step_is_not_clamped_away():
    given = ssd_inputs(1, 2, 1, 1, 1, (), F32)
    given["dt"][0, 0] = math.nan
    y, _ = ssd_state_update(**given, dt_limit=(0.0, 1.0))
    assert y[0, 0].isnan().all()
    assert y[0, 1].isfinite().all()


def calls():
    conv = [random(s, F64, seed=i) for i, s in enumerate([(2, 3), (2, 1, 3), (3, 2), (3,)])]
    return {
        "selective": (selective_state_update, list(selective_inputs(2, 3, 2, 0, F64).values())),
        "ssd": (ssd_state_update, list(ssd_inputs(2, 2, 2, 1, 2, (2,), F64).values())),
        "convolution": (causal_conv1d_update, conv),
    }


@pytest.mark.parametrize("name", ["selective", "ssd", "convolution"])
def test_where_torch_must_see_the_step_it_does(name, compiled):
    """Gradients, torch.func and torch.compile get torch's own operations, and the same results."""
    step, given = calls()[name]
    expected = step(*given)
    assert len(compiled) == 1
    wanted = [t.clone().requires_grad_() for t in given]
    assert torch.autograd.gradcheck(lambda *t: step(*t), wanted)
    assert torch.autograd.gradgradcheck(lambda *t: step(*t), wanted)
    mapped = torch.func.vmap(lambda *t: step(*t))(*(t[None] for t in given))
    agree([t[0] for t in mapped], expected, terms=1)
    whole = torch.compile(step, backend="eager", fullgraph=True)(*given)
    agree(whole, expected, terms=1)
    assert len(compiled) == 1  # none of these
    with torch.no_grad():
        step(*wanted)
    assert len(compiled) == 2


def test_plain_calls():
    x = torch.zeros(1, requires_grad=True)
    assert not plain.unwatched(None, x)
    assert plain.unwatched(None, x.detach())
    with torch.no_grad():
        assert plain.unwatched(x)
        from torch._subclasses import FakeTensorMode

        with FakeTensorMode():
            assert not plain.unwatched(torch.zeros(1))
    assert plain.backend_of_a_step(torch.zeros(1, device="meta")) == "auto"


@pytest.mark.parametrize("change", ["rows", "dtype", "device", "gradient", "Numba"])
def test_few_rows(change, monkeypatch):
    x, others = torch.zeros(8, 2), [torch.zeros(2), None]
    assert plain.few_rows(x, *others)
    if change == "rows":
        x = torch.zeros(9, 2)
    elif change == "dtype":
        others[0] = others[0].double()
    elif change == "device":
        others[0] = others[0].to("meta")
    elif change == "gradient":
        others[0].requires_grad_()
    else:
        monkeypatch.setattr(runtime, "why_absent", lambda backend: "there is none")
    assert not plain.few_rows(x, *others)
