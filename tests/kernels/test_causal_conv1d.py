"""Every backend of the causal convolution against the definition, one step after another."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from operator_table import LENGTHS, Case, among_nans, assert_agrees, need, random
from torch import Tensor

from ssmcourse.convolution import causal_conv1d, causal_conv1d_update
from ssmcourse.tolerance import mismatch

BACKENDS = ["reference", "cpu"]


def by_steps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Each row with a list of its last w inputs, emptied where a sequence begins."""
    rows, states = [], []
    nothing = torch.zeros_like(x[0, 0])
    for i, row in enumerate(x.unbind(0)):
        seen, out = [nothing] * (weight.shape[1] - 1), []
        if initial_state is not None:
            seen = list(initial_state[i].unbind(0))
        for t, x_t in enumerate(row.unbind(0)):
            if seq_idx is not None and t > 0 and seq_idx[i, t] != seq_idx[i, t - 1]:
                states.append(seen)
                seen = [nothing] * (weight.shape[1] - 1)
            seen = [*seen, x_t]
            v = sum(tap * known for tap, known in zip(weight.unbind(1), seen, strict=True))
            v = v if bias is None else v + bias
            out.append(v if activation is None else v / (1 + torch.exp(-v)))
            seen = seen[1:]
        states.append(seen)
        rows.append(torch.stack(out))
    y = torch.stack(rows)
    return (y, torch.stack([torch.stack(s) for s in states])) if return_final_state else y


def packed(b: int, l: int, longest: int = 6) -> Tensor:
    """Sequences of 1 to `longest` steps; numbers come back, as long as neighbours differ."""
    generator = torch.Generator().manual_seed(l)
    lengths = torch.randint(1, longest + 1, (b, l), generator=generator)
    rows = [torch.arange(l).repeat_interleave(row)[:l] % 3 for row in lengths]
    return torch.stack(rows)


def case(
    name: str,
    shape=(2, 17, 6),
    *,
    w: int = 4,
    dtype=torch.float64,
    parameters: torch.dtype | None = None,
    without=(),
    wrap=lambda t: t,
    **options,
) -> Case:
    b, l, d = shape

    def make():
        wide = parameters or dtype
        inputs = {
            "x": wrap(random(shape, dtype, seed=1)),
            "weight": wrap(random((d, w), wide, seed=2)),
            "bias": random((d,), wide, seed=3),
            "initial_state": wrap(random((b, w - 1, d), dtype, seed=4)),
        }
        return {key: value for key, value in inputs.items() if key not in without}

    return Case(name, make, terms=b * l + w, options={"return_final_state": True} | options)


SILU = {"activation": "silu"}
TABLE = [
    *(case(f"l={l}", (2, l, 6), **SILU) for l in LENGTHS),
    *(case(f"l={l} packed", (2, l, 6), seq_idx=packed(2, l), **SILU) for l in LENGTHS),
    *(case(f"w={w}", w=w, **SILU) for w in (2, 3, 4, 5, 9)),
    *(case(f"w={w} packed", w=w, seq_idx=packed(2, 17)) for w in (2, 3, 4, 5, 9)),
    case("w=1", w=1, without=("initial_state",), return_final_state=False),
    case("w=1 packed", w=1, without=("initial_state",), return_final_state=False, seq_idx=packed(2, 17)),
    case("w=9, l=3", (2, 3, 5), w=9),
    case("w=9, l=3 packed", (2, 3, 5), w=9, seq_idx=torch.tensor([[0, 0, 1], [4, 4, 4]])),
    case("identity"),
    case("no bias", without=("bias",), **SILU),
    case("no initial state", without=("initial_state",), **SILU),
    case("no initial state, packed", without=("initial_state",), seq_idx=packed(2, 17), **SILU),
    case("float32", dtype=torch.float32, **SILU),
    case("float16", dtype=torch.float16, **SILU),
    case("bfloat16", dtype=torch.bfloat16, **SILU),
    case("one channel", (2, 70, 1), **SILU),
    case("several steps at once", (1, 700, 6), **SILU),
    case("several steps at once, packed", (1, 700, 6), seq_idx=packed(1, 700, 60), **SILU),
    case("several chunks of the gradient", (1, 50, 3000), **SILU),
    case("several chunks, packed", (1, 50, 3000), seq_idx=packed(1, 50)),
    case("not contiguous", wrap=among_nans, **SILU),
    case("transposed", (3, 17, 3), wrap=lambda t: t.mT.contiguous().mT),
    case("one row for all", wrap=lambda t: t[:1].expand_as(t) if t.ndim == 3 else t),
    case("flipped views", wrap=lambda t: t.flip(0)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_table(backend, row):
    need("causal_conv1d", backend)
    assert_agrees(
        functools.partial(causal_conv1d, backend=backend),
        by_steps,
        row.make(),
        terms=row.terms,
        **row.options,
    )


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float64)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_wider_than_x(backend, dtype, wide):
    """They are used as they are, and their gradients have their precision."""
    need("causal_conv1d", backend)
    inputs = case("", dtype=dtype, parameters=wide).make()
    leaves = [t.requires_grad_() for t in inputs.values()]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    y = causal_conv1d(*leaves[:3], initial_state=leaves[3], backend=backend)
    expected = by_steps(*exact)
    assert mismatch(y, expected, terms=4) is None
    gradients = torch.autograd.grad(y.sum(), leaves)
    for g, e, leaf in zip(gradients, torch.autograd.grad(expected.sum(), exact), leaves, strict=True):
        assert g.dtype == leaf.dtype
        assert mismatch(g, e, terms=34) is None


SHARED_OUT = {"rows": (5, 300, 50), "pieces of l": (1, 1100, 64), "rows and pieces": (2, 700, 50)}


@pytest.mark.parametrize("shape", SHARED_OUT.values(), ids=SHARED_OUT.keys())
@pytest.mark.parametrize("is_packed", [False, True])
def test_threads_share_the_work(shape, is_packed):
    need("causal_conv1d", "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        row = case("threads", shape, seq_idx=packed(*shape[:2], 400) if is_packed else None, **SILU)
        assert_agrees(
            functools.partial(causal_conv1d, backend="cpu"),
            by_steps,
            row.make(),
            terms=row.terms,
            **row.options,
        )
    finally:
        torch.set_num_threads(before)


# --- State ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 36])
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_that_pass_their_state_on_are_the_whole(backend, size):
    """Chunks shorter than w - 1 too: the oldest inputs then come from the state before."""
    need("causal_conv1d", backend)
    inputs = case("", (2, 37, 5), w=5).make()
    whole, last = causal_conv1d(**inputs, return_final_state=True, backend="reference")
    state, parts = inputs.pop("initial_state"), []
    for part in inputs.pop("x").split(size, 1):
        y, state = causal_conv1d(
            part, **inputs, initial_state=state, return_final_state=True, backend=backend
        )
        parts.append(y)
    assert mismatch(torch.cat(parts, 1), whole, terms=5) is None
    assert torch.equal(state, last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("w", "prefill"), list(itertools.product((1, 2, 4), (0, 1, 2, 3, 7))))
def test_steps_go_on_where_a_prefill_of_any_length_ends(backend, w, prefill):
    need("causal_conv1d", backend)
    inputs = case("", (2, 9, 5), w=w).make()
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    whole = causal_conv1d(x, weight, bias, activation="silu", backend="reference")
    y, state = causal_conv1d(
        x[:, :prefill], weight, bias, activation="silu", return_final_state=True, backend=backend
    )
    steps = [y]
    for x_t in x[:, prefill:].unbind(1):
        assert state.shape == (2, w - 1, 5)
        y_t, state = causal_conv1d_update(x_t, state, weight, bias, activation="silu")
        steps.append(y_t[:, None])
    assert mismatch(torch.cat(steps, 1), whole, terms=w) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_are_the_sequences_apart(backend):
    need("causal_conv1d", backend)
    inputs = case("", (2, 12, 5)).make()
    x, first = inputs.pop("x"), inputs.pop("initial_state")
    seq_idx = torch.tensor([[7] * 2 + [3] * 6 + [7] * 4, [0] * 12], dtype=torch.int32)
    y, states = causal_conv1d(
        x, **inputs, initial_state=first, seq_idx=seq_idx, return_final_state=True, backend=backend
    )
    apart = [(0, 0, 2), (0, 2, 8), (0, 8, 12), (1, 0, 12)]
    assert states.shape == (4, 3, 5)
    for (i, begin, end), state in zip(apart, states, strict=True):
        given = first[i : i + 1] if begin == 0 else torch.zeros_like(first[:1])
        part, last = causal_conv1d(
            x[i : i + 1, begin:end],
            **inputs,
            initial_state=given,
            return_final_state=True,
            backend="reference",
        )
        assert mismatch(y[i : i + 1, begin:end], part, terms=4) is None
        assert torch.equal(state, last[0])


# --- What must not spread -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_stay_in_their_window_and_sequence(backend):
    need("causal_conv1d", backend)
    x, weight = torch.ones(1, 700, 7), torch.ones(7, 4)
    x[0, 100, 3], x[0, 200, 4], x[0, 300, 5] = torch.nan, torch.inf, torch.inf
    seq_idx = (torch.arange(700) >= 302).long()[None]
    x.requires_grad_()
    y = causal_conv1d(x, weight, seq_idx=seq_idx, backend=backend)
    bad = ~y.isfinite()
    assert bad[0, 100:104, 3].all()
    assert bad[0, 200:204, 4].all()
    assert bad[0, 300:302, 5].all()
    assert bad.sum() == 4 + 4 + 2
    dy = torch.ones_like(y)
    dy[0, 303, 6] = torch.inf
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx[0, 302:304, 6].isinf().all()
    assert (~dx.isfinite()).sum() == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_accumulate_in_float32(backend):
    """256 + 1 + 1 + 1: bfloat16, which has 8 bits, would stay at 256 until the end."""
    need("causal_conv1d", backend)
    x = torch.tensor([256.0, 1, 1, 1], dtype=torch.bfloat16)[None, :, None]
    assert causal_conv1d(x, torch.ones(1, 4), backend=backend)[0, 3, 0] == 260  # 259, rounded once
    many = torch.ones(1, 3000, 1, dtype=torch.bfloat16)
    weight = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    causal_conv1d(many, weight, backend=backend).sum().backward()
    assert weight.grad.item() == 3008  # 3000, rounded once


@pytest.mark.parametrize("backend", BACKENDS)
def test_silu_of_large_arguments(backend):
    need("causal_conv1d", backend)
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])[None, :, None].requires_grad_()
    y = causal_conv1d(x, torch.ones(1, 1), activation="silu", backend=backend)
    assert y.flatten().tolist() == [0, pytest.approx(0, abs=1e-35), 0, 100, 1e4]
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.flatten().tolist() == [0, pytest.approx(0, abs=1e-35), 0.5, 1, 1]
