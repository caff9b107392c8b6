"""The Triton convolution, forward, backward and one step, against the definition step by step."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from operator_table import LENGTHS, among_nans, assert_agrees, need, random
from test_causal_conv1d import SILU, TABLE, by_steps, case, packed
from torch import Tensor
from traffic import counted

from ssmcourse.convolution import causal_conv1d
from ssmcourse.tolerance import mismatch

pytest.importorskip("triton")
convolve = functools.partial(causal_conv1d, backend="triton")


@pytest.fixture(autouse=True)
def _triton_runs_here():
    need("causal_conv1d", "triton")


def update() -> Callable[..., tuple[Tensor, Tensor]]:
    from ssmcourse.kernels.causal_conv1d import triton_update

    return triton_update.update


QUICK = [
    *(case(f"l={l}", (2, l, 4), **SILU) for l in LENGTHS if l < 64),
    *(case(f"l={l} packed", (2, l, 4), seq_idx=packed(2, l), **SILU) for l in (1, 3, 17)),
    *(case(f"w={w}", (1, 9, 3), w=w, **SILU) for w in (2, 3)),
    case("w=1", (1, 9, 3), w=1, without=("initial_state",), return_final_state=False, seq_idx=packed(1, 9)),
    case("a window longer than a strip", (1, 12, 2), w=10, **SILU),
    case("a window longer than all", (2, 3, 3), w=9, seq_idx=torch.tensor([[0, 0, 1], [4, 4, 4]])),
    case("identity", (2, 17, 4)),
    case("nothing optional", (2, 17, 4), without=("bias", "initial_state"), return_final_state=False),
    case("no bias", (2, 17, 4), without=("bias",), seq_idx=packed(2, 17), **SILU),
    case("no initial state, packed", (2, 17, 4), without=("initial_state",), seq_idx=packed(2, 17)),
    *(case(str(dtype), (2, 17, 4), dtype=dtype, **SILU) for dtype in (torch.float32, torch.float16)),
    case("bfloat16", (2, 17, 4), dtype=torch.bfloat16, **SILU),
    case("more channels than a block", (1, 9, 21), **SILU),
    case("not contiguous", (2, 9, 4), wrap=among_nans, **SILU),
    case(
        "a slice of channels", (2, 9, 4), wrap=lambda t: torch.cat([t, t * torch.nan], -1)[..., : t.shape[-1]]
    ),
]


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_table(row):
    assert_agrees(convolve, by_steps, row.make(), terms=row.terms, **row.options)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in TABLE if "several" not in row.name], ids=lambda row: row.name)
def test_the_whole_table(row):
    assert_agrees(convolve, by_steps, row.make(), terms=row.terms, **row.options)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float16, torch.float32), (torch.float32, torch.float64)])
def test_parameters_wider_than_x(dtype, wide):
    inputs = case("", (2, 9, 4), dtype=dtype, parameters=wide).make()
    leaves = [t.requires_grad_() for t in inputs.values()]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    y, expected = convolve(*leaves[:3], initial_state=leaves[3]), by_steps(*exact)
    assert mismatch(y, expected, terms=4) is None
    gradients = torch.autograd.grad(y.sum(), leaves)
    for g, e, leaf in zip(gradients, torch.autograd.grad(expected.sum(), exact), leaves, strict=True):
        assert g.dtype == leaf.dtype
        assert mismatch(g, e, terms=18) is None


@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_chunks_that_pass_their_state_on_are_the_whole(size):
    inputs = case("", (2, 19, 3), w=5).make()
    whole, last = causal_conv1d(**inputs, return_final_state=True, backend="reference")
    state, parts = inputs.pop("initial_state"), []
    for part in inputs.pop("x").split(size, 1):
        y, state = convolve(part, **inputs, initial_state=state, return_final_state=True)
        parts.append(y)
    assert mismatch(torch.cat(parts, 1), whole, terms=5) is None
    assert torch.equal(state, last)


def test_nan_and_infinity_stay_in_their_window_and_sequence():
    x, weight = torch.ones(1, 40, 4), torch.ones(4, 4)
    x[0, 10, 0], x[0, 20, 1], x[0, 30, 2] = torch.nan, torch.inf, torch.inf
    seq_idx = (torch.arange(40) >= 32).long()[None]
    x.requires_grad_()
    y = convolve(x, weight, seq_idx=seq_idx)
    bad = ~y.isfinite()
    assert bad[0, 10:14, 0].all()
    assert bad[0, 20:24, 1].all()
    assert bad[0, 30:32, 2].all()
    assert bad.sum() == 4 + 4 + 2
    dy = torch.ones_like(y)
    dy[0, 33, 3] = torch.inf
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx[0, 32:34, 3].isinf().all()
    assert (~dx.isfinite()).sum() == 2


@pytest.mark.filterwarnings("error")
def test_silu_of_large_arguments():
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])[None, :, None].requires_grad_()
    y = convolve(x, torch.ones(1, 1), activation="silu")
    assert y.flatten().tolist() == [0, pytest.approx(0, abs=1e-35), 0, 100, 1e4]
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.flatten().tolist() == [0, pytest.approx(0, abs=1e-35), 0.5, 1, 1]


def test_half_types_accumulate_in_float32():
    x = torch.tensor([2048.0, 1, 1, 1], dtype=torch.float16)[None, :, None]
    assert convolve(x, torch.ones(1, 4))[0, 3, 0] == 2052  # 2051, rounded once


def test_gradients_are_the_same_every_time():
    inputs = {
        name: t.requires_grad_() for name, t in case("", (2, 40, 4), dtype=torch.float32).make().items()
    }

    def slopes():
        return torch.autograd.grad(convolve(**inputs).sin().sum(), list(inputs.values()))

    assert all(torch.equal(a, b) for a, b in zip(slopes(), slopes(), strict=True))


def test_what_is_too_wide_is_refused():
    with pytest.raises(ValueError, match=r"weight: got w=33, expected w of at most 32 .*reference"):
        convolve(torch.ones(1, 5, 2), torch.ones(2, 33))


# --- One step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("w", "silu", "biased"), [(4, True, True), (2, False, True), (1, True, False)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_update_is_one_step(w, silu, biased, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    inputs = {
        "x": random((2, 5), dtype, seed=1),
        "state": random((2, w - 1, 5), dtype, seed=2),
        "weight": random((5, w), wide, seed=3),
    } | ({"bias": random((5,), wide, seed=4)} if biased else {})

    def one_step(x, state, weight, bias=None):
        return update()(x, state, weight, bias, silu)

    def oracle(x, state, weight, bias=None):
        options = {"activation": "silu"} if silu else {}
        y, new = by_steps(x[:, None], weight, bias, state, return_final_state=True, **options)
        return y[:, 0], new

    if w == 1:
        y, new = one_step(**inputs)
        assert new.shape == (2, 0, 5)
        wanted = by_steps(inputs["x"].double()[:, None], inputs["weight"].double(), activation="silu")
        assert mismatch(y, wanted[:, 0], terms=1) is None
    else:
        assert_agrees(one_step, oracle, inputs, terms=8)


def test_update_keeps_a_wider_state_apart_and_changes_nothing():
    x, state = random((2, 5), torch.float16, seed=1), random((2, 3, 5), torch.float32, seed=2)
    before = state.clone()
    y, new = update()(x, state, random((5, 4), torch.float32, seed=3), None, True)
    assert torch.equal(state, before)
    assert {y.dtype, new.dtype} == {torch.float16}
    assert torch.equal(new, torch.cat([state[:, 1:].half(), x[:, None]], 1))


def test_steps_go_on_where_a_prefill_ends():
    inputs = case("", (2, 9, 3)).make()
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    whole = causal_conv1d(x, weight, bias, activation="silu", backend="reference")
    y, state = convolve(x[:, :4], weight, bias, activation="silu", return_final_state=True)
    steps = [y]
    for x_t in x[:, 4:].unbind(1):
        y_t, state = update()(x_t, state, weight, bias, True)
        steps.append(y_t[:, None])
    assert mismatch(torch.cat(steps, 1), whole, terms=4) is None


# --- The rules of torch, and the model of the bytes ----------------------------------------------------


QUICK_CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def test_opcheck_and_gradcheck():
    args = [random(s, seed=i).requires_grad_() for i, s in enumerate([(1, 5, 2), (2, 3), (2,), (1, 2, 2)])]
    seq_idx = torch.tensor([[0, 0, 0, 1, 1]])
    convolve(args[0].detach(), args[1].detach())  # registers the operator
    operator = torch.ops.ssmcourse.causal_conv1d_triton.default
    torch.library.opcheck(operator, (*args, seq_idx, True), test_utils=QUICK_CHECKS)
    assert torch.autograd.gradcheck(lambda *t: operator(*t, seq_idx, True), args, fast_mode=True)
    step = [random(s, seed=i).requires_grad_() for i, s in enumerate([(2, 3), (2, 2, 3), (3, 3), (3,)])]
    update()
    torch.library.opcheck(
        torch.ops.ssmcourse.causal_conv1d_update_triton.default, (*step, True), test_utils=QUICK_CHECKS
    )
    assert torch.autograd.gradcheck(lambda *t: update()(*t, True), step, fast_mode=True)


@pytest.mark.parametrize("w", [2, 4])
def test_bytes_moved(w, monkeypatch):
    """With the tiles of a GPU, that is of as many steps: at most 1.3 times what goes in and comes out."""
    from ssmcourse.kernels.causal_conv1d import triton

    monkeypatch.setattr(triton, "FORWARD", triton.Tile(64, 32))
    monkeypatch.setattr(triton, "BACKWARD", triton.Tile(64, 32))
    x, weight = (
        random((1, 128, 32), torch.float32, seed=1).requires_grad_(),
        random((32, w), torch.float32, seed=2),
    )
    with counted() as forward:
        y = convolve(x, weight.requires_grad_())
    assert forward.stored.total() == x.nbytes
    assert forward.bytes_moved() < 1.3 * 2 * x.nbytes
    with counted() as backward:
        torch.autograd.grad(y.sum(), (x, weight))
    assert backward.bytes_moved() < 1.3 * 3 * x.nbytes
